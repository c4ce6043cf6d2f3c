//! What outlives an incarnation of the dispatcher, and how the next one begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hashbrown::HashMap;
use hive_proto::messages::{self, TasksLost, Work};
use hive_proto::{Op, SessionId};

use super::frames::JournalState;
use super::snapshots::TakeSnapshot;
use crate::actors::Clock;
use crate::actors::directory::{Directory, Peer};
use crate::actors::fetcher::Fetch;
use crate::actors::journal::Position;
use crate::actors::journaler::{Desk, Health, Journaled};
use crate::actors::mailbox::Inlet;
use crate::core::tasks::{Board, Identity, Limits, Policy, Replay};
use crate::planted;

/// How long an incarnation that ends waits to learn what became of its last record, and the next one until it is settled.
const LAST_RECORD: Duration = Duration::from_secs(5);
/// Sequences that a new incarnation stays clear of the old one's.
const SEQ_GAP: u64 = 1 << 24;

/// Reads the journal from its beginning.
pub trait Recover: Send {
    /// Applies the latest snapshot and all records after it.
    ///
    /// # Errors
    /// What cannot be read or understood, and where it stands.
    fn replay(&mut self, replay: &mut Replay) -> Result<(), String>;
}

/// What a dispatcher needs of its journal.
pub struct Journal {
    /// Where records are put.
    pub desk: Desk,
    /// How a board is made from it.
    pub recover: Box<dyn Recover>,
    /// The board of the first incarnation, made from it already.
    pub first: Option<Board>,
    /// Has snapshots written.
    pub take_snapshot: TakeSnapshot,
    /// Bytes of records that are worth a snapshot.
    pub snapshot_bytes: u64,
    /// Bytes of records that no snapshot covers.
    pub bytes_since_snapshot: u64,
    /// Has records read.
    pub fetch: FetchRecords,
    /// Who has to know when they are not what they should be.
    pub health: Health,
}

/// Has records read.
pub type FetchRecords = Arc<dyn Fn(Fetch) + Send + Sync>;

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("desk", &self.desk).finish_non_exhaustive()
    }
}

/// What the dispatcher needs to begin.
#[derive(Debug)]
pub struct Setup {
    /// Where sessions put batches.
    pub inlet: Inlet,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// Bounds of the board.
    pub limits: Limits,
    /// Policy of queues that are not declared.
    pub default_policy: Policy,
    /// Declared queues.
    pub queues: Vec<(String, Policy)>,
    /// Time.
    pub clock: Clock,
    /// First incarnation: above the epochs of all earlier processes.
    pub epoch: u32,
    /// First task sequence: above those of earlier processes.
    pub first_seq: u64,
    /// Random.
    pub hash_seed: u64,
    /// Behind queues that must survive.
    pub journal: Option<Journal>,
}

impl Setup {
    /// A board with the declared queues and nothing in them.
    pub fn empty_board(&self, epoch: u32) -> Board {
        let identity = Identity { epoch, first_seq: self.first_seq, hash_seed: self.hash_seed };
        let mut board = Board::new(self.limits.clone(), self.default_policy, identity);
        for (name, policy) in &self.queues {
            if let Err(e) = board.declare(name, *policy) {
                tracing::error!(queue = name, error = %e, "declared queue refused");
            }
        }
        board
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Legacy {
    pub(super) setup: Setup,
    /// Above every sequence given out.
    pub(super) next_seq: u64,
    /// What the journal takes, so that a new board does not take what the old one refused.
    pub(super) journal: JournalState,
    /// Records before this one are gone.
    pub(super) results_from: Position,
    /// Open consumers, so that a new board knows the workers of the old one.
    pub(super) consumers: HashMap<SessionId, (Arc<Peer>, HashMap<u32, Work>)>,
}

/// What a batch changes in the legacy, once all of it is done.
#[derive(Debug)]
pub(super) enum Change {
    Open(Arc<Peer>, u32, Work),
    Window(SessionId, u32, u32, u64),
    Close(SessionId, u32),
    Gone(SessionId),
}

impl Legacy {
    pub(super) fn new(setup: Setup) -> Self {
        let (journal, results_from, consumers) = Default::default();
        Self { next_seq: setup.first_seq, setup, journal, results_from, consumers }
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Open(peer, id, work) => {
                let session = peer.session;
                let (_, mine) = self.consumers.entry(session).or_insert_with(|| (peer, HashMap::new()));
                mine.insert(id, work);
            }
            Change::Window(session, id, tasks, bytes) => {
                if let Some(work) = self.consumers.get_mut(&session).and_then(|(_, mine)| mine.get_mut(&id)) {
                    (work.credit_tasks, work.credit_bytes) = (tasks, bytes);
                }
            }
            Change::Close(session, id) => {
                if let Some((_, mine)) = self.consumers.get_mut(&session) {
                    mine.remove(&id);
                }
            }
            Change::Gone(session) => {
                self.consumers.remove(&session);
            }
        }
    }

    /// The board of an incarnation: from the journal, if there is one, else empty.
    ///
    /// # Panics
    /// If the journal cannot be read, or a record of the incarnation before is still being written, which the board has to
    /// know of. The supervisor tries again.
    pub(super) fn board(&mut self, incarnation: u32) -> Board {
        if incarnation > 0 {
            self.next_seq += SEQ_GAP;
            self.setup.first_seq = self.next_seq;
        }
        let later = if planted::is("epoch_again") { 0 } else { incarnation };
        let epoch = self.setup.epoch.wrapping_add(later);
        if let Some(first) = self.setup.journal.as_mut().and_then(|j| j.first.take()) {
            self.next_seq = first.next_seq();
            return first;
        }
        let board = self.setup.empty_board(epoch);
        let Some(journal) = &mut self.setup.journal else { return board };
        assert!(!journal.desk.is_busy(), "the last record of the dispatcher before is still being written");
        let mut replay = Replay::new(board, self.setup.epoch);
        if let Err(e) = journal.recover.replay(&mut replay) {
            panic!("the journal cannot be read: {e}");
        }
        let mut board = replay.finish(epoch, self.next_seq);
        board.results_gone(self.results_from.0);
        self.next_seq = board.next_seq();
        board
    }

    /// Whether all records of an incarnation that ends are durable. Waits for the one that is being written, and takes back the
    /// one that waits for space.
    pub(super) fn last_record_is_durable(&self, incarnation: u32) -> bool {
        let Some(journal) = &self.setup.journal else { return true };
        let idle = journal.desk.settle(LAST_RECORD);
        let mut news = Vec::new();
        self.setup.inlet.take_journaled(&mut news);
        let failed = |j: &Journaled| matches!(j, Journaled::Failed(_));
        let failure = news.iter().any(failed);
        // The next incarnation has to hear of what lasts.
        news.into_iter()
            .filter(|j| !matches!(j, Journaled::Durable(o, _) if o.incarnation == incarnation))
            .for_each(|j| self.setup.inlet.journaled(j));
        idle && !failure
    }

    /// What memory queues lose in a panic, their submitters are told.
    pub(super) fn report_loss(&self) {
        let header = messages::encode(&TasksLost { shard: 0, shards: 1, below: self.next_seq });
        self.setup.directory.for_each(|peer| {
            if peer.submits.load(Ordering::Relaxed) {
                peer.outbox.answer(Op::TasksLost, 0, 0, &header, &[]);
            }
        });
    }
}
