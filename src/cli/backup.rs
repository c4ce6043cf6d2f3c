//! `hive backup` and `hive restore`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hive::actors::journal::Position;
use hive::edge::journal::{COPY_END, Directory, LocalSnapshots, survey};
use serde_json::json;

use super::failure::Failure;
use super::http;
use super::output;
use super::target::Reach;

/// Options of `hive backup`.
#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// Folder for the copy; made, and it must be empty.
    dir: PathBuf,
    #[command(flatten)]
    reach: Reach,
}

/// Options of `hive restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// Folder that `hive backup` has made.
    backup: PathBuf,
    /// Data directory for a server; it must not have a journal yet.
    data_dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was copied.
struct Copied {
    files: usize,
    bytes: u64,
    last: Position,
}

/// Copies the journal of a running server.
pub(crate) fn backup(a: &BackupArgs) -> Result<(), Failure> {
    let journal = a.dir.join("journal");
    let cannot = |e: io::Error| Failure::new(format!("cannot write the backup to {}", a.dir.display()), e);
    empty(&journal).map_err(cannot)?;
    let target = a.reach.target();
    let stream = http::download(&target, "/v1/backup")?;
    let (files, bytes) = unpack(stream, &journal).map_err(|e| {
        let next = "nothing of the server was changed; remove the folder and try again";
        Failure::new("the backup was cut short", e).next(next)
    })?;
    let last = verify(&journal)?;
    report(&a.dir, &Copied { files, bytes, last }, a.reach.json)
}

/// Puts a copy where a server will find it.
pub(crate) fn restore(a: &RestoreArgs) -> Result<(), Failure> {
    let from = a.backup.join("journal");
    let last = verify(&from)?;
    let to = a.data_dir.join("journal");
    let cannot = |e: io::Error| Failure::new(format!("cannot restore to {}", a.data_dir.display()), e);
    empty(&to).map_err(cannot)?;
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(&from).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        if is_part(&name.to_string_lossy()) {
            bytes += write(&to.join(&name), fs::File::open(entry.path()).map_err(cannot)?).map_err(cannot)?;
            files += 1;
        }
    }
    fs::File::open(&to).and_then(|dir| dir.sync_all()).map_err(cannot)?;
    report(&a.data_dir, &Copied { files, bytes, last }, a.json)
}

fn report(dir: &Path, c: &Copied, as_json: bool) -> Result<(), Failure> {
    let Copied { files, bytes, last } = c;
    if as_json {
        return output::json_line(
            &json!({ "dir": dir, "files": files, "bytes": bytes, "position": last.0, "verified": true }),
        );
    }
    let text = format!("{}: {files} files, {bytes} bytes, good up to record {last}", dir.display());
    output::print_line(text.as_bytes())
}

/// Makes a folder, which must have nothing in it.
fn empty(dir: &Path) -> io::Result<()> {
    Directory::new(dir)?;
    if fs::read_dir(dir)?.next().is_some() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is not empty", dir.display())));
    }
    Ok(())
}

/// Whether a file is part of a journal; whoever sent the archive may have put anything into it.
fn is_part(name: &str) -> bool {
    let stem = name.strip_suffix(".seg").or_else(|| name.strip_suffix(".snap"));
    stem.is_some_and(|s| s.len() == 20 && s.bytes().all(|b| b.is_ascii_digit()))
}

fn unpack(stream: impl Read, to: &Path) -> io::Result<(usize, u64)> {
    let (mut files, mut bytes, mut whole) = (0, 0, false);
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries()? {
        let entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        if name == COPY_END {
            whole = true;
        } else if is_part(&name) {
            let expected = entry.size();
            let written = write(&to.join(&name), entry)?;
            if written != expected {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} ends too early")));
            }
            bytes += written;
            files += 1;
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name:?} does not belong in it"),
            ));
        }
    }
    if !whole {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server ended it early; its log says why",
        ));
    }
    fs::File::open(to)?.sync_all()?;
    Ok((files, bytes))
}

fn write(path: &Path, mut from: impl Read) -> io::Result<u64> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    let bytes = io::copy(&mut from, &mut file)?;
    file.sync_all()?;
    Ok(bytes)
}

/// Checks every record and snapshot; gives the last position.
fn verify(journal: &Path) -> Result<Position, Failure> {
    let bad = |why: String| Failure::new(format!("the copy in {} is not good", journal.display()), why);
    let files = Directory::read_only(journal).map_err(|e| bad(e.to_string()))?;
    let snapshots = LocalSnapshots::new(files.clone()).verify_all().map_err(|e| bad(e.to_string()))?;
    let whole = snapshots.iter().filter(|(_, damage)| damage.is_none()).map(|(at, _)| *at);
    let start = whole.max().unwrap_or(Position::NONE);
    let found = survey(&files, start, &mut |_| {}).map_err(|e| bad(e.to_string()))?;
    found.map(|r| r.last).ok_or_else(|| bad("there is no journal".into()))
}
