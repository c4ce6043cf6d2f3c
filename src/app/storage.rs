//! What outlives the process: the journal, and the board that is made from it.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::actors::dispatcher::{Recover, Setup};
use crate::actors::journal::{Journal, Position, Reader, Snapshots};
use crate::core::tasks::{Board, Replay};
use crate::edge::journal::{Directory, LocalJournal, LocalReader, LocalSnapshots, LocalWriter, Options};
use crate::planted;

/// Longest record of a snapshot, bytes.
const SNAPSHOT_RECORD_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the journal in {dir} cannot be used: {why}")]
pub struct StorageError {
    /// Its directory.
    pub dir: PathBuf,
    /// What is wrong, where, and what to do.
    pub why: String,
    /// Another process uses it.
    pub in_use: bool,
}

/// A journal that was read to its end.
pub(super) struct Storage {
    pub(super) writer: LocalWriter<Directory>,
    pub(super) recover: FromDisk,
    pub(super) board: Board,
    pub(super) epoch: u32,
}

/// Reads snapshot and records.
pub(super) struct FromDisk {
    dir: PathBuf,
    reader: LocalReader<Directory>,
}

impl Recover for FromDisk {
    fn replay(&mut self, replay: &mut Replay) -> Result<(), String> {
        let mut snapshots = LocalSnapshots::new(Directory::new(&self.dir).map_err(|e| e.to_string())?);
        let latest = snapshots.latest().map_err(|e| e.to_string())?;
        let mut at = match latest {
            Some(mut latest) => {
                replay_snapshot(&mut latest.source, replay)?;
                latest.position
            }
            None => Position::NONE,
        };
        let mut before = None;
        while let Some(mut record) = self.reader.next(&mut at).map_err(|e| e.to_string())? {
            if planted::is("lose_last_record") && record.ops > 0 {
                match before.replace(record) {
                    Some(earlier) => record = earlier,
                    None => continue,
                }
            }
            if record.ops > 0 {
                replay.apply(&record.body).map_err(|e| format!("record {}: {e}", record.position))?;
            }
        }
        Ok(())
    }
}

/// A snapshot is records with their lengths before them.
fn replay_snapshot(source: &mut impl Read, replay: &mut Replay) -> Result<(), String> {
    let mut body = Vec::new();
    loop {
        let mut length = [0; 4];
        match source.read_exact(&mut length) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(format!("snapshot: {e}")),
        }
        let length = u32::from_le_bytes(length);
        if length > SNAPSHOT_RECORD_BYTES_MAX {
            return Err(format!("snapshot: a record of {length} bytes is not possible"));
        }
        body.clear();
        let read =
            source.take(u64::from(length)).read_to_end(&mut body).map_err(|e| format!("snapshot: {e}"))?;
        if read != length as usize {
            return Err("snapshot: it ends in the middle of a record".into());
        }
        replay.apply(&body).map_err(|e| format!("snapshot: {e}"))?;
    }
}

/// Opens the journal in `dir`, reads it, and takes it over. `epoch` is the lowest that will do.
pub(super) fn open(dir: &Path, setup: &Setup, salt: u32, epoch: u32) -> Result<Storage, StorageError> {
    let bad = |why: String, in_use| StorageError { dir: dir.to_owned(), why, in_use };
    let wrong = |e: &dyn std::fmt::Display| bad(e.to_string(), false);
    let files = Directory::new(dir).map_err(|e| wrong(&e))?;
    let start = LocalSnapshots::new(files.clone()).latest().map_err(|e| wrong(&e))?;
    let start = start.map_or(Position::NONE, |latest| latest.position);
    let mut journal = LocalJournal::open(files, Options::new(salt), start).map_err(|e| {
        let in_use = matches!(e, crate::actors::journal::OpenError::InUse(_));
        bad(e.to_string(), in_use)
    })?;
    let recovered = journal.recovered().clone();
    if let Some(cut) = &recovered.cut {
        tracing::warn!(%cut, "the end of the journal was cut: an append that nobody was told of, or a lost bit");
    }
    let mut recover = FromDisk { dir: dir.to_owned(), reader: journal.reader() };
    let mut replay = Replay::new(setup.empty_board(epoch), None);
    recover.replay(&mut replay).map_err(|e| wrong(&e))?;
    let epoch = epoch.max(replay.epoch() + 1).max(journal.epoch() + 1);
    crate::edge::clock::begin_after(replay.time());
    let (writer, _) = journal.fence(epoch, "local").map_err(|e| wrong(&e))?;
    let board = replay.finish(epoch, setup.first_seq);
    tracing::info!(records = recovered.records, bytes = recovered.bytes, epoch, "journal read");
    Ok(Storage { writer, recover, board, epoch })
}
