//! A copy of a journal while it is written to: snapshots, and segments as far as they are durable.
//!
//! Files are opened first and read later, so that trimming does not take them away, and locked, so that no other segment is written over
//! them; and they only grow, so that what is read up to a length is what was there. Snapshots are opened before the segments are asked for: whichever of them is whole
//! is followed by the segments that it needs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::format::segment_name;
use crate::actors::journal::Segment;

/// Name of the entry that ends a copy: without it, it was cut short.
pub const COPY_END: &str = "complete";

/// An open file, and how much of it is to be copied.
#[derive(Debug)]
pub struct Part {
    name: String,
    file: File,
    bytes: u64,
}

/// Opens the snapshots of a directory.
///
/// # Errors
/// The directory or one of them cannot be read.
pub fn snapshot_parts(dir: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".snap") {
            match File::open(dir.join(&name)) {
                Ok(file) => parts.push(Part { bytes: file.metadata()?.len(), name, file }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // there is a later one
                Err(e) => return Err(e),
            }
        }
    }
    Ok(parts)
}

/// Opens segments as they are told to be, and keeps them as they are until they are closed.
///
/// # Errors
/// One cannot be opened: [`io::ErrorKind::NotFound`] if it was removed meanwhile, begin again then.
pub fn segment_parts(dir: &Path, segments: &[Segment]) -> io::Result<Vec<Part>> {
    let open = |s: &Segment| {
        let name = segment_name(s.first.0);
        let file = File::open(dir.join(&name))?;
        file.lock_shared()?;
        // Before it was locked it may have become another one.
        let named = std::fs::metadata(dir.join(&name))?;
        match (named.dev(), named.ino()) == (file.metadata()?.dev(), file.metadata()?.ino()) {
            true => Ok(Part { file, name, bytes: s.bytes }),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    };
    segments.iter().map(open).collect()
}

/// Length of the archive of these parts, bytes: blocks of 512, one for each name and two at the end.
pub fn archive_bytes(parts: &[Part]) -> u64 {
    parts.iter().map(|p| 512 + p.bytes.next_multiple_of(512)).sum::<u64>() + 512 + 1024
}

/// Writes the parts as a tar archive of [`archive_bytes`].
///
/// # Errors
/// Reading or writing failed.
pub fn write_archive(parts: Vec<Part>, to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    let header = |bytes| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header
    };
    for part in parts {
        archive.append_data(&mut header(part.bytes), &part.name, part.file.take(part.bytes))?;
    }
    archive.append_data(&mut header(0), COPY_END, io::empty())?;
    archive.finish()
}
