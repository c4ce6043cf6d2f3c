//! When a snapshot is taken, and how: in steps, so that nobody waits for it.

use std::sync::Arc;

use crate::actors::journal::Position;
use crate::actors::snapshotter::{Feed, FeedError, Take};
use crate::core::tasks::{Board, Snapshot};
use crate::core::time::Tick;

/// What one step writes, bytes: some tens of microseconds.
const STEP_BYTES: usize = 128 * 1024;

/// Has a snapshot written. Gives whether somebody took it on.
pub type TakeSnapshot = Arc<dyn Fn(Take) -> bool + Send + Sync>;

/// Decides when, and feeds the one that is under way.
pub(super) struct Snapshots {
    take: TakeSnapshot,
    /// Records of so many bytes are worth a snapshot, and twice the bytes of the last one.
    bytes_min: u64,
    /// Bytes of records since the last one began.
    since: u64,
    last_bytes: u64,
    running: Option<Running>,
    /// The last one has not been reported written.
    writing: bool,
}

struct Running {
    snapshot: Snapshot,
    feed: Feed,
    /// What was not taken.
    piece: Option<Vec<u8>>,
    /// All is written down, and counts after so many more commits.
    commits_left: Option<u32>,
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Snapshots {
    /// `since` are bytes of records that no snapshot covers.
    pub(super) fn new(take: TakeSnapshot, bytes_min: u64, since: u64) -> Self {
        Self { take, bytes_min, since, last_bytes: 0, running: None, writing: false }
    }

    /// All decisions up to a position are in force; a record of so many bytes was the last.
    pub(super) fn committed(&mut self, board: &Board, at: Position, bytes: usize) {
        self.since += bytes as u64;
        if let Some(left) = self.running.as_mut().and_then(|r| r.commits_left.as_mut()) {
            *left = left.saturating_sub(1);
        }
        if !self.writing && self.since >= self.bytes_min.max(2 * self.last_bytes) {
            let snapshot = board.begin_snapshot();
            let (feed, take) = Feed::new(at, snapshot.needs().into(), board.results_from());
            if (self.take)(take) {
                self.running = Some(Running { snapshot, feed, piece: None, commits_left: None });
                self.writing = true;
            }
            self.since = 0;
        }
    }

    /// Whether a step is to be made soon.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Writes some more down.
    pub(super) fn step(&mut self, board: &Board, now: Tick) {
        let Some(r) = &mut self.running else { return };
        let piece = match (r.piece.take(), r.commits_left) {
            (Some(piece), _) => piece,
            (None, Some(left)) => {
                // It may not count before the journal has all that it knows.
                if left > 0 && board.is_uncommitted() {
                    return;
                }
                match r.feed.end() {
                    Ok(()) => self.running = None,
                    Err(FeedError::Busy(_)) => {}
                    Err(FeedError::Gone) => (self.running, self.writing) = (None, false),
                }
                return;
            }
            (None, None) => match board.snapshot_step(&mut r.snapshot, now, STEP_BYTES) {
                Some(piece) if piece.is_empty() => return,
                Some(piece) => piece,
                None => {
                    // What is gathered now goes into the record after the one under way.
                    r.commits_left = Some(2);
                    return;
                }
            },
        };
        match r.feed.put(piece) {
            Ok(()) => {}
            Err(FeedError::Busy(piece)) => r.piece = Some(piece),
            Err(FeedError::Gone) => (self.running, self.writing) = (None, false),
        }
    }

    /// The one under way was written, or will never be.
    pub(super) fn written(&mut self, bytes: Option<u64>) {
        self.writing = false;
        self.running = None;
        self.last_bytes = bytes.unwrap_or(self.last_bytes);
    }
}
