//! What outlives the process: the journal, and the board that is made from it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::actors::dispatcher::{Recover, Setup};
use crate::actors::journal::{Failed, Journal, OpenError, Position, Reader, Snapshots, Writer, whole_from};
use crate::actors::snapshotter::Needs;
use crate::core::tasks::{Board, Replay};
use crate::edge::clock;
use crate::edge::journal::{Directory, LocalJournal, LocalReader, LocalSnapshots, LocalWriter, Options};
use crate::planted;

/// Longest record of a snapshot, bytes: that of the longest segment. Nothing is allocated before it is read.
const SNAPSHOT_RECORD_BYTES_MAX: u32 = 1024 * 1024 * 1024;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the journal in {dir} cannot be used: {why}")]
pub struct StorageError {
    /// Its directory.
    pub dir: PathBuf,
    /// What is wrong, where, and what to do.
    pub why: String,
    /// The configuration is to blame, not the disk: another process uses it, or it may not be used.
    pub configured: bool,
}

/// What to do about a call that failed, and whether the configuration is to blame.
pub(super) fn advice(e: &io::Error) -> (&'static str, bool) {
    use io::ErrorKind::{
        AlreadyExists, NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem,
        StorageFull,
    };
    match e.kind() {
        StorageFull | QuotaExceeded => ("free some space on that disk, then start again", false),
        PermissionDenied => {
            ("let the server's user read and write it, or choose another with --data-dir", true)
        }
        ReadOnlyFilesystem => ("mount it writable, or choose another with --data-dir", true),
        NotADirectory | AlreadyExists | NotFound => ("choose another with --data-dir", true),
        _ => (
            "see what the system's log says of that disk; `hive journal verify` reads the whole journal",
            false,
        ),
    }
}

/// A journal that was read to its end.
pub(super) struct Storage {
    pub(super) writer: LocalWriter<Directory>,
    pub(super) recover: FromDisk,
    pub(super) reader: LocalReader<Directory>,
    /// The snapshot that the board was made from, and what it needs of the records before.
    pub(super) snapshot: Option<(Position, Needs)>,
    pub(super) board: Board,
    pub(super) epoch: u32,
    /// Bytes of records that no snapshot covers.
    pub(super) bytes: u64,
}

/// Reads snapshot and records.
pub(super) struct FromDisk {
    dir: PathBuf,
    reader: LocalReader<Directory>,
    /// Position of the snapshot that was read last.
    snapshot: Option<Position>,
}

impl Recover for FromDisk {
    fn replay(&mut self, replay: &mut Replay) -> Result<(), String> {
        let mut snapshots = LocalSnapshots::new(Directory::new(&self.dir).map_err(|e| e.to_string())?);
        let latest = snapshots.latest().map_err(|e| e.to_string())?;
        let mut at = match latest {
            Some(mut latest) => {
                for damage in &latest.passed_over {
                    tracing::error!(%damage, "a snapshot is damaged; an older one is taken");
                }
                replay_snapshot(&mut latest.source, replay)?;
                replay.snapshot_read();
                self.snapshot = Some(latest.position);
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
                replay
                    .apply(&record.body, record.position.0)
                    .map_err(|e| format!("record {}: {e}", record.position))?;
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
        replay.apply(&body, 0).map_err(|e| format!("snapshot: {e}"))?;
    }
}

/// Opens the journal in `dir`, reads it, and takes it over. `epoch` is the lowest that will do.
pub(super) fn open(dir: &Path, setup: &Setup, options: Options, epoch: u32) -> Result<Storage, StorageError> {
    let bad = |why: String, configured| StorageError { dir: dir.to_owned(), why, configured };
    let wrong = |e: &dyn std::fmt::Display| bad(e.to_string(), false);
    let unopened = |e: OpenError| match &e {
        OpenError::InUse(_) => bad(e.to_string(), true),
        OpenError::Failed(f) => {
            let (advice, configured) = advice(&f.source);
            bad(format!("{e}; {advice}"), configured)
        }
        _ => wrong(&e),
    };
    let files = Directory::new(dir).map_err(|source| {
        let place = dir.display().to_string();
        unopened(OpenError::Failed(Failed { what: "make", place, source }))
    })?;
    let start = LocalSnapshots::new(files.clone()).latest().map_err(|e| wrong(&e))?;
    let start = start.map_or(Position::NONE, |latest| latest.position);
    let mut journal = LocalJournal::open(files, options, start).map_err(unopened)?;
    let recovered = journal.recovered().clone();
    if let Some(cut) = &recovered.cut {
        tracing::warn!(%cut, "the end of the journal was cut: an append that nobody was told of, or a lost bit");
    }
    let mut recover = FromDisk { dir: dir.to_owned(), reader: journal.reader(), snapshot: None };
    // Of the sessions that watched none is there any more.
    let mut replay = Replay::new(setup.empty_board(epoch), u32::MAX);
    recover.replay(&mut replay).map_err(|e| wrong(&e))?;
    let snapshot = recover.snapshot.map(|at| (at, replay.snapshot_needs().into()));
    let epoch = epoch.max(replay.epoch() + 1).max(journal.epoch() + 1);
    clock::begin_after(replay.time());
    let (writer, _) = journal.fence(epoch, "local").map_err(|e| wrong(&e))?;
    let after = if planted::is("seq_again") { 0 } else { clock::sequence_at(replay.time()) };
    let first_seq = setup.first_seq.max(after);
    let mut board = replay.finish(epoch, first_seq);
    board.results_gone(whole_from(&writer.segments()).0);
    tracing::info!(records = recovered.records, bytes = recovered.bytes, epoch, "journal read");
    let reader = journal.reader().past_cache();
    Ok(Storage { writer, recover, reader, snapshot, board, epoch, bytes: recovered.bytes })
}
