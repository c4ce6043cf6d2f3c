//! Snapshots as files beside the segments: `00000000000000071203.snap`, the last two of them.
//!
//! ```text
//!  header, 32 bytes: magic "HIVESNAP", version u32, zeroes u32, position u64, zeroes u32, crc of the 28 bytes before u32
//!  frames: length u32 (at most 256 KiB), crc u32, bytes     the crc goes on from the one before, first from the header's
//!  end: a frame of length 0, and nothing behind it
//! ```
//!
//! So a reader checks a frame before it gives it, frames cannot be swapped or left out, and a file that was not finished is known for one.

use std::io::{self, IoSlice, Read, Write};

use super::blocks::write_all;
use super::files::{File, Files};
use super::format::{position_in, u32_at, u64_at};
use super::recover::failed;
use crate::actors::journal::{Damage, Latest, Position, SnapshotError, Snapshots};

const MAGIC: [u8; 8] = *b"HIVESNAP";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const FRAME_HEADER: usize = 8;
/// Bytes of a frame.
const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Generations that are kept.
const GENERATIONS: usize = 2;
const ADVICE: &str = "remove the file, or restore it from a copy; an older snapshot serves as long as the records \
    after it are there";

/// The snapshots of a directory.
#[derive(Clone, Debug)]
pub struct LocalSnapshots<F: Files> {
    files: F,
}

impl<F: Files> LocalSnapshots<F> {
    /// Those of a directory, which may be a journal's.
    pub fn new(files: F) -> Self {
        Self { files }
    }

    /// Reads all of them; gives what is wrong with each.
    ///
    /// # Errors
    /// A call failed.
    pub fn verify_all(&self) -> Result<Vec<(Position, Option<Damage>)>, SnapshotError> {
        let judge = |at: Position| match self.verify(&snapshot_name(at), at) {
            Ok(()) => Ok((at, None)),
            Err(SnapshotError::Damaged(damage)) => Ok((at, Some(damage))),
            Err(e) => Err(e),
        };
        self.kept()?.into_iter().map(judge).collect()
    }

    /// Writes and reads back, under a name that does not count.
    fn write(
        &self,
        name: &str,
        at: Position,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, SnapshotError> {
        let file = self.files.create(name).map_err(|e| failed("make", &self.files, name, e))?;
        let filled = Frames::begin(&file, at).and_then(|mut frames| {
            fill(&mut frames)?;
            frames.end()
        });
        let bytes = filled.map_err(|e| failed("write", &self.files, name, e))?;
        file.sync_data().map_err(|e| failed("sync", &self.files, name, e))?;
        self.verify(name, at)?;
        Ok(bytes)
    }

    fn open(&self, name: &str, at: Position) -> Result<SnapshotSource<F::File>, SnapshotError> {
        let read = |e| failed("read", &self.files, name, e);
        let file = self.files.open(name).map_err(read)?;
        let mut source = SnapshotSource {
            file,
            place: self.files.place(name),
            at: 0,
            crc: 0,
            frame: Vec::new(),
            given: 0,
            ended: false,
            damaged: false,
        };
        source.begin(at)?;
        Ok(source)
    }

    /// Reads all of it.
    fn verify(&self, name: &str, at: Position) -> Result<(), SnapshotError> {
        let mut source = self.open(name, at)?;
        while source.next_frame()? {}
        Ok(())
    }
}

fn snapshot_name(at: Position) -> String {
    format!("{at:020}.snap")
}

impl<F: Files> Snapshots for LocalSnapshots<F> {
    type Source = SnapshotSource<F::File>;

    fn put(
        &mut self,
        at: Position,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, SnapshotError> {
        let name = snapshot_name(at);
        let new = format!("{name}.new");
        let written = self.write(&new, at, fill).and_then(|bytes| {
            let renamed = self.files.rename(&new, &name).and_then(|()| self.files.sync_dir());
            renamed.map_err(|e| failed("rename", &self.files, &new, e))?;
            Ok(bytes)
        });
        if written.is_err() {
            // What is left of it counts for nothing and goes with the next gc.
            let _ = self.files.remove(&new);
        }
        written
    }

    fn latest(&mut self) -> Result<Option<Latest<Self::Source>>, SnapshotError> {
        let mut passed_over = Vec::new();
        for position in self.kept()?.into_iter().rev() {
            let name = snapshot_name(position);
            match self.verify(&name, position) {
                Ok(()) => {
                    let source = self.open(&name, position)?;
                    return Ok(Some(Latest { position, source, passed_over }));
                }
                Err(SnapshotError::Damaged(damage)) => passed_over.push(damage),
                Err(e) => return Err(e),
            }
        }
        // Only damaged ones: starting without any would forget what they held.
        match passed_over.into_iter().next() {
            Some(damage) => Err(damage.into()),
            None => Ok(None),
        }
    }

    fn kept(&self) -> Result<Vec<Position>, SnapshotError> {
        let names = self.files.list().map_err(|e| failed("list", &self.files, "", e))?;
        let mut all: Vec<_> = names.iter().filter_map(|n| position_in(n, ".snap")).map(Position).collect();
        all.sort_unstable();
        Ok(all)
    }

    fn gc(&mut self) -> Result<usize, SnapshotError> {
        let kept = self.kept()?;
        let old = kept[..kept.len().saturating_sub(GENERATIONS)].iter().map(|p| snapshot_name(*p));
        let names = self.files.list().map_err(|e| failed("list", &self.files, "", e))?;
        let gone: Vec<String> = old.chain(names.into_iter().filter(|n| n.ends_with(".snap.new"))).collect();
        for name in &gone {
            self.files.remove(name).map_err(|e| failed("remove", &self.files, name, e))?;
        }
        self.files.sync_dir().map_err(|e| failed("sync", &self.files, "", e))?;
        Ok(gone.len())
    }
}

/// Cuts what is written into frames.
struct Frames<'f, F> {
    file: &'f F,
    at: u64,
    crc: u32,
    frame: Vec<u8>,
}

impl<'f, F: File> Frames<'f, F> {
    fn begin(file: &'f F, position: Position) -> io::Result<Self> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&position.0.to_le_bytes());
        let crc = crc32c::crc32c(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        write_all(file, &mut [IoSlice::new(&header)], 0, HEADER as u64)?;
        Ok(Self { file, at: HEADER as u64, crc, frame: Vec::with_capacity(FRAME_BYTES_MAX) })
    }

    fn put(&mut self) -> io::Result<()> {
        let mut header = [0; FRAME_HEADER];
        header[..4].copy_from_slice(&(self.frame.len() as u32).to_le_bytes());
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &header[..4]), &self.frame);
        header[4..].copy_from_slice(&self.crc.to_le_bytes());
        let len = (FRAME_HEADER + self.frame.len()) as u64;
        write_all(self.file, &mut [IoSlice::new(&header), IoSlice::new(&self.frame)], self.at, len)?;
        self.at += len;
        self.frame.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<u64> {
        if !self.frame.is_empty() {
            self.put()?;
        }
        self.put()?;
        Ok(self.at)
    }
}

impl<F: File> Write for Frames<'_, F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(FRAME_BYTES_MAX - self.frame.len());
        self.frame.extend_from_slice(&buf[..n]);
        if self.frame.len() == FRAME_BYTES_MAX {
            self.put()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot, one checked frame after the other. Holds one frame, 256 KiB, in memory.
#[derive(Debug)]
pub struct SnapshotSource<F> {
    file: F,
    place: String,
    at: u64,
    crc: u32,
    frame: Vec<u8>,
    given: usize,
    ended: bool,
    /// Nothing behind damage is ever given.
    damaged: bool,
}

impl<F: File> SnapshotSource<F> {
    fn damage(&self, what: impl Into<String>) -> SnapshotError {
        Damage { place: self.place.clone(), offset: self.at, what: what.into(), advice: ADVICE }.into()
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), SnapshotError> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], self.at + filled as u64) {
                Ok(0) => return Err(self.damage("the snapshot was not finished")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let place = self.place.clone();
                    return Err(crate::actors::journal::Failed { what: "read", place, source }.into());
                }
            }
        }
        self.at += buf.len() as u64;
        Ok(())
    }

    fn begin(&mut self, expected: Position) -> Result<(), SnapshotError> {
        let mut header = [0; HEADER];
        self.take(&mut header)?;
        self.at = 0;
        if header[..8] != MAGIC {
            return Err(self.damage("not a snapshot"));
        }
        if u32_at(&header, 8) > VERSION {
            let what = format!("format version {}, this program knows {VERSION}", u32_at(&header, 8));
            return Err(self.damage(what));
        }
        self.crc = crc32c::crc32c(&header[..28]);
        if self.crc != u32_at(&header, 28) || u32_at(&header, 8) != VERSION {
            return Err(self.damage("the checksum of the header does not hold"));
        }
        if u64_at(&header, 16) != expected.0 {
            let what = format!("it is of record {}, its name tells {expected}", u64_at(&header, 16));
            return Err(self.damage(what));
        }
        self.at = HEADER as u64;
        Ok(())
    }

    /// Reads and checks the next frame; `false` at the end.
    fn next_frame(&mut self) -> Result<bool, SnapshotError> {
        if self.ended {
            return Ok(false);
        }
        if std::mem::replace(&mut self.damaged, true) {
            return Err(self.damage("damage was found before"));
        }
        self.given = 0;
        let begins = self.at;
        let mut header = [0; FRAME_HEADER];
        self.take(&mut header)?;
        let len = u32_at(&header, 0) as usize;
        if len > FRAME_BYTES_MAX {
            self.at = begins;
            return Err(
                self.damage(format!("a frame of {len} bytes, at most {FRAME_BYTES_MAX} are possible"))
            );
        }
        let mut frame = std::mem::take(&mut self.frame);
        frame.resize(len, 0);
        self.take(&mut frame)?;
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &header[..4]), &frame);
        if self.crc != u32_at(&header, 4) {
            self.at = begins;
            return Err(self.damage("the checksum of a frame does not hold"));
        }
        self.frame = frame;
        self.ended = len == 0;
        if self.ended && self.take(&mut [0]).is_ok() {
            return Err(self.damage("there are bytes behind the end"));
        }
        self.damaged = false;
        Ok(!self.ended)
    }
}

impl<F: File> Read for SnapshotSource<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.given == self.frame.len() {
            match self.next_frame() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
        let n = buf.len().min(self.frame.len() - self.given);
        buf[..n].copy_from_slice(&self.frame[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}
