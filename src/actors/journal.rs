//! What actors need of a journal: bytes in, bytes out, in order, durable before they are acknowledged.
//!
//! A journal knows nothing of tasks. It is a sequence of records with dense positions from 1; the state machine that is
//! replayed from it gives them their meaning. Calls block: the actor that uses a [`Writer`] has a thread of its own, and
//! `&mut self` keeps one append in flight. That is not only simple: a store that takes appends on condition of the last
//! position (NATS JetStream) does not fence when several are in flight.
//!
//! ```text
//!  fence(epoch) ─▶ Writer ──append──▶ Ok: durable and mine
//!                    │  ├───────────▶ Full, NotSent: certainly not durable; may be tried again
//!                    │  ├───────────▶ Unknown ──resolve──▶ Landed | Lost ──▶ append goes on
//!                    │  └───────────▶ Fenced, Corrupt, Broken: never again with this writer
//!                    └── a later fence(epoch + n) ends it: Fenced
//! ```

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;

/// Place of a record in its journal: dense, from 1. 0 is before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Position(pub u64);

impl Position {
    /// Before the first record.
    pub const NONE: Self = Self(0);

    /// The position after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A durable record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its place.
    pub position: Position,
    /// Epoch of the writer. It never decreases from one record to the next; a store that cannot prevent it gives what a
    /// fenced writer left as a record without operations.
    pub epoch: u32,
    /// Operations in the body. 0: the journal's own record (fence, barrier), which changes no state and whose body is not the caller's.
    pub ops: u32,
    /// As it was appended.
    pub body: Bytes,
}

/// A part of the journal that can be removed as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Position of its first record.
    pub first: Position,
    /// Position of its last record; before `first` if it has none yet.
    pub last: Position,
    /// Length, bytes.
    pub bytes: u64,
    /// Whether it will take no more records. Only such segments can be removed.
    pub sealed: bool,
}

/// The position from which on no record is missing, as segments go from the oldest to the latest.
pub fn whole_from(segments: &[Segment]) -> Position {
    let Some((latest, before)) = segments.split_last() else { return Position::NONE };
    let mut from = latest.first;
    for s in before.iter().rev() {
        if s.last.next() != from {
            break;
        }
        from = s.first;
    }
    from
}

/// Where stored bytes are not what was written, and what can be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{place}, offset {offset}: {what}; {advice}")]
pub struct Damage {
    /// File or stream.
    pub place: String,
    /// Offset in it, bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// What can be done.
    pub advice: &'static str,
}

/// A call of the system that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {place}: {source}")]
pub struct Failed {
    /// What was tried, e.g. `open`.
    pub what: &'static str,
    /// File, directory or stream.
    pub place: String,
    /// Why not.
    pub source: io::Error,
}

/// Why a journal cannot be opened or fenced. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the journal in {0} is in use by another process; stop that one, or give this one another directory"
    )]
    InUse(String),
    /// A later epoch rules, or this very one does.
    #[error("epoch {asked} does not come after epoch {rules}, which rules the journal; take a higher one")]
    Stale {
        /// The epoch asked for.
        asked: u32,
        /// The epoch that rules.
        rules: u32,
    },
    /// Stored bytes are not what was written.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// Written by a later version of this program.
    #[error(
        "{place} has format version {found}, this program knows {known}; run the version that wrote it, or a later one"
    )]
    Newer {
        /// File or stream.
        place: String,
        /// Its version.
        found: u32,
        /// The last version known.
        known: u32,
    },
    /// Records that must be there are not.
    #[error(
        "{place}: records {from} to {to} are missing; restore their segments from a copy, or start from a snapshot that covers them"
    )]
    Missing {
        /// Directory or stream.
        place: String,
        /// First missing.
        from: Position,
        /// Last missing.
        to: Position,
    },
    /// The fence could not be made durable.
    #[error("cannot fence the journal: {0}")]
    Fence(AppendError),
    /// A call failed.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Why an append is not acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// Another writer rules, with this epoch. This one is done for.
    #[error("fenced: a writer with epoch {0} rules the journal now")]
    Fenced(u32),
    /// No space. Certainly not durable; may be tried again.
    #[error("no space left for the journal; free some, or trim it")]
    Full,
    /// Never reached the store. Certainly not durable; may be tried again.
    #[error("the journal's store was not reached; try again")]
    NotSent,
    /// May be durable or not, or become so later: [`Writer::resolve`] comes first.
    #[error("it is unknown whether the record is durable; resolve it first")]
    Unknown,
    /// What the store says about itself cannot be. This writer is done for.
    #[error("the journal's end is not where this writer left it; verify it before it is opened again")]
    Corrupt,
    /// Longer than [`Writer::batch_bytes_max`], or without operations: the caller's mistake. Nothing was written.
    #[error(
        "a record of {bytes} bytes and {ops} operations is not possible; at most {bytes_max} bytes, at least one operation"
    )]
    Invalid {
        /// Length of the body, bytes.
        bytes: usize,
        /// Operations.
        ops: u32,
        /// Longest body, bytes.
        bytes_max: usize,
    },
    /// A sync failed, or something as bad: what is on the disk is unknown. Never acknowledge, never retry, stop.
    #[error("the journal is broken: {0}; stop, check the disk, start again")]
    Broken(String),
}

/// What became of an append whose outcome was unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolved {
    /// Durable, at this position.
    Landed(Position),
    /// Not durable, and it never will be. Or nothing was in doubt.
    Lost,
}

/// Why a segment was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Another writer rules.
    #[error("fenced: a writer with epoch {0} rules the journal now")]
    Fenced(u32),
    /// No segment begins there.
    #[error("no segment begins at position {0}")]
    Unknown(Position),
    /// It still takes records.
    #[error("the segment that begins at position {0} still takes records")]
    Open(Position),
    /// A call failed. Readers do not see the segment any more; its file may come back with the next start.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Why a record is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was removed.
    #[error("record {0} is no longer in the journal")]
    Gone(Position),
    /// It is not durable yet.
    #[error("record {asked} is not in the journal, which ends at {last}")]
    NotYet {
        /// The position asked for.
        asked: Position,
        /// The last durable one.
        last: Position,
    },
    /// Its bytes are not what was written.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// A call failed.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// A journal that was opened, that is: verified up to its end.
pub trait Journal {
    /// What appends.
    type Writer: Writer + Send + 'static;
    /// What reads.
    type Reader: Reader;

    /// Ends all earlier writers and gives one with `epoch`, which must be above all epochs before. Gives the position of the fence,
    /// which is the last record: replay what comes before it.
    ///
    /// # Errors
    /// The epoch is stale, or the fence could not be made durable.
    fn fence(&mut self, epoch: u32, node: &str) -> Result<(Self::Writer, Position), OpenError>;

    /// The epoch that rules: of the last fence; 0 if there was none. Take a higher one for the next.
    fn epoch(&self) -> u32;

    /// A reader of what is durable.
    fn reader(&self) -> Self::Reader;
}

/// The one that may append.
pub trait Writer {
    /// Longest body of a record, bytes.
    fn batch_bytes_max(&self) -> usize;

    /// Appends one record with `ops` operations, at least 1. `Ok` means: durable, and mine.
    ///
    /// # Errors
    /// See [`AppendError`] for what is certain after which.
    fn append(&mut self, body: &[u8], ops: u32) -> Result<Position, AppendError>;

    /// What became of the append that ended with [`AppendError::Unknown`]. It may append a barrier, that is: a record without operations.
    ///
    /// # Errors
    /// As for [`Self::append`]; after `Unknown` and `NotSent` the doubt stands and it can be called again.
    fn resolve(&mut self) -> Result<Resolved, AppendError>;

    /// Position of the last durable record, as far as this writer knows.
    fn last(&self) -> Position;

    /// Whether the space that was kept for the end is in use: take no new work, let running work end.
    fn low_space(&self) -> bool;

    /// Tries to keep space for the end again. Gives whether it is kept.
    fn restore_reserve(&mut self) -> bool;

    /// All segments, the oldest first.
    fn segments(&self) -> Vec<Segment>;

    /// The sealed segment that begins at `first` will hardly be read: nothing of it need stay in memory.
    fn is_cold(&mut self, first: Position) {
        let _ = first;
    }

    /// Removes the sealed segment that begins at `first`. The caller has a durable snapshot that covers it.
    ///
    /// # Errors
    /// There is no such segment, it is not sealed, or a call failed.
    fn remove(&mut self, first: Position) -> Result<(), RemoveError>;
}

/// Reads records, from any thread, while the writer appends. Never gives what is not durable.
pub trait Reader: Clone + Send + 'static {
    /// The record at a position. Fast for positions in ascending order.
    ///
    /// # Errors
    /// It is gone, not there yet, or damaged.
    fn get(&mut self, at: Position) -> Result<Record, ReadError>;

    /// Position of the last durable record.
    fn last(&self) -> Position;

    /// Reads on behind the record that was read last, while nobody waits for it, if that saves time later.
    fn ahead(&mut self) {}

    /// Takes the record after `after` and moves `after` there; `None` at the end.
    ///
    /// # Errors
    /// As for [`Self::get`].
    fn next(&mut self, after: &mut Position) -> Result<Option<Record>, ReadError> {
        if *after >= self.last() {
            return Ok(None);
        }
        let record = self.get(after.next())?;
        *after = record.position;
        Ok(Some(record))
    }
}

/// Why a snapshot was not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// All generations are damaged; this is the latest one.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// A call failed, or the filling did.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// The latest valid snapshot.
#[derive(Debug)]
pub struct Latest<S> {
    /// It holds the effects of all records up to this one.
    pub position: Position,
    /// Its bytes.
    pub source: S,
    /// Later ones that are damaged. Worth an alarm.
    pub passed_over: Vec<Damage>,
}

/// Keeps the last two snapshots of the state, so that replay is bounded and one damaged file is no disaster.
pub trait Snapshots {
    /// Gives the bytes of a snapshot; fails rather than giving wrong ones.
    type Source: Read;

    /// Writes a snapshot, makes it durable, reads it back. Only then does it count. Gives its length, bytes.
    ///
    /// # Errors
    /// A call failed; earlier snapshots are as they were.
    fn put(
        &mut self,
        at: Position,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, SnapshotError>;

    /// The latest one that is whole, `None` if there never was one.
    ///
    /// # Errors
    /// There are snapshots, but none is whole; or a call failed.
    fn latest(&mut self) -> Result<Option<Latest<Self::Source>>, SnapshotError>;

    /// Positions of those that are there, ascending. The journal may be trimmed up to the first, not the last: an older
    /// generation is of use only with the records that follow it.
    ///
    /// # Errors
    /// A call failed.
    fn kept(&self) -> Result<Vec<Position>, SnapshotError>;

    /// Removes all but the last two generations. Gives how many went.
    ///
    /// # Errors
    /// A call failed.
    fn gc(&mut self) -> Result<usize, SnapshotError>;
}

#[cfg(test)]
pub(crate) mod conformance;
