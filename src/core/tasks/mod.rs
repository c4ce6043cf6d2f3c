//! The task board of one dispatcher: a deterministic state machine. The same calls with the same times give the same
//! state and the same effects, so a journal of calls can rebuild it.
//!
//! ```text
//!                 delay over                  credit free
//!   Scheduled ───────────────▶ Waiting ───────────────────▶ Running ──complete──▶ Completed ──▶ forgotten
//!       ▲                       ▲   │                        │ │ │                             (result_ms or
//!       └──submit with delay,   │   │ cancel     release,     │ │ └─cancel──▶ Cancelled ───▶    results_bytes_max)
//!          fail with delay      │   └──────▶     fail, lease  │ └─fail: permanent or
//!                               │    Cancelled   expired,     │   attempts used up ──▶ Dead
//!                               └────────────────worker gone──┘
//! ```
//!
//! A dead letter goes back to Waiting by redrive, and is forgotten by purge.
//!
//! Rooms: `arena` (bytes), `table` (records), `queue` (lanes and policy), `assign` (who gets what), `settle` (what
//! workers say), `outcome` (how an attempt ends), `dead` (dead letters), `expire` (what time does), `waits` (who waits for an outcome), `view`
//! (counts); for queues that must survive, `ops` (what the journal says), `commit` (when it counts),
//! `replay` and `snapshot`, `spill` (what waits on disk), `archive` (outcomes on disk).

mod archive;
pub(crate) mod arena;
mod assign;
mod commit;
mod dead;
mod expire;
mod ops;
mod outcome;
mod queue;
mod replay;
mod settle;
mod snapshot;
mod spill;
mod submit;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod view;
mod waits;

use std::collections::BTreeSet;

use hashbrown::HashMap;
use hive_proto::items::{Assign, Progressed, Refused, Revoked, Task};
use hive_proto::{SessionId, TaskId, WireError, ids::Durability};

pub use archive::{Found, Lookup};
pub use ops::BadRecord;
pub use queue::Policy;
pub use replay::Replay;
pub use snapshot::Snapshot;
pub use spill::{SpillError, Want};
pub use submit::SubmitFrame;
pub use view::{Counters, QueueView};
pub use waits::WaitMode;

use arena::Arena;
use assign::Consumer;
use expire::Timers;
use queue::Queue;
use table::{List, Table};

/// Bounds of one board.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Memory that tasks, results and dead letters may hold together, bytes.
    pub memory_bytes_max: usize,
    /// Results kept, bytes (each counts 64 more); the oldest go first.
    pub results_bytes_max: usize,
    /// Memory in which it is noted where in the journal further results are, bytes; 0 for none.
    pub archive_bytes_max: usize,
    /// How long results are kept, milliseconds.
    pub result_ms: u64,
    /// Queues.
    pub queues_max: usize,
    /// Whether a queue comes into being with its first task or consumer.
    pub queues_auto_create: bool,
    /// Consumers of one session.
    pub consumers_max: usize,
    /// Credit of one consumer, tasks.
    pub credit_tasks_max: u32,
    /// Credit of one consumer, bytes.
    pub credit_bytes_max: u64,
    /// Task ids that are waited for, all waits together.
    pub waits_max: usize,
    /// Length at which a record for the journal gets no more decisions, bytes; the last one may be as long as a message.
    pub record_bytes: usize,
    /// Memory held, from which on further tasks that survive wait on disk, bytes. The maximum for never.
    pub spill_bytes: usize,
    /// Tasks that a lane keeps in memory where it can, so that workers need not wait for the disk.
    pub lane_tasks_min: usize,
    /// Decisions that may wait while a record is being written; beyond this nothing more should be taken in, bytes.
    pub gather_bytes_max: usize,
}

/// Which board this is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Incarnation; leases of another one are stale.
    pub epoch: u32,
    /// First task sequence; above every sequence of earlier incarnations.
    pub first_seq: u64,
    /// Seed of the hash of queue names, which clients choose.
    pub hash_seed: u64,
}

/// Where the board's effects go. Items borrow from the board: encode or copy them at once.
pub trait TaskSink {
    /// Answers a submit of which at least one item was taken.
    fn accepted(
        &mut self,
        to: SessionId,
        request: u32,
        first: TaskId,
        count: u16,
        durability: Durability,
        refused: &[Refused],
    );
    /// Answers anything that failed whole.
    fn error(&mut self, to: SessionId, request: u32, error: WireError);
    /// Answers an operation with nothing to tell.
    fn ok(&mut self, to: SessionId, request: u32);
    /// A task for a consumer. Gives whether the consumer should get more; if not, it gets none before [`Board::resume`].
    fn assign(&mut self, to: SessionId, consumer: u32, item: Assign<'_>) -> bool;
    /// Answers a batch of settlements.
    fn settled(&mut self, to: SessionId, request: u32, accepted: u16, refused: &[Refused]);
    /// The outcome of a watched task.
    fn outcome(&mut self, to: SessionId, item: Task<'_>);
    /// Progress of a watched task.
    fn progressed(&mut self, to: SessionId, item: Progressed<'_>);
    /// A lease that is void.
    fn revoked(&mut self, to: SessionId, item: Revoked);
    /// Answers a query, a wait or a list.
    fn tasks<'a>(&mut self, to: SessionId, request: u32, items: impl Iterator<Item = Task<'a>>);
    /// From here on: whether the effects depend on what the journal does not have, so that nobody may hear of them before
    /// [`Board::committed`]. `false` at first.
    fn hold(&mut self, until_committed: bool);
}

/// Tasks, queues, consumers and waits of one dispatcher.
#[derive(Debug)]
pub struct Board {
    limits: Limits,
    default_policy: Policy,
    identity: Identity,
    table: Table,
    /// Extension and payload of tasks that wait or run.
    payloads: Arena,
    /// The same of tasks with a delay: apart, because they may stay for days.
    delayed: Arena,
    /// Results of completed tasks.
    results: Arena,
    /// Extension and payload of dead letters: apart, because they may stay for weeks.
    dead: Arena,
    /// Last error of tasks that failed and are still here, by sequence.
    errors: HashMap<u64, Box<str>, foldhash::fast::FixedState>,
    error_bytes: usize,
    queues: Vec<Queue>,
    by_name: HashMap<Box<str>, u32, foldhash::fast::FixedState>,
    lanes: Vec<queue::Lane>,
    /// What the labels of `lanes` take: clients choose them, and they stay.
    lane_bytes: usize,
    /// What `consumers` take.
    consumer_bytes: usize,
    /// What others have taken of the memory for tasks.
    elsewhere: usize,
    consumers: Vec<Option<Consumer>>,
    free_consumers: Vec<u32>,
    sessions: HashMap<SessionId, SessionState, foldhash::fast::FixedState>,
    waits: waits::Waits,
    /// Decisions for the journal, and where tasks stand on their way to it.
    ops: ops::Ops,
    commit: commit::Commit,
    spill: spill::Spill,
    archive: archive::Archive,
    draining: bool,
    timers: Timers,
    /// Completed and cancelled tasks, the oldest first.
    done: List,
    /// Bytes that `done` counts against `results_bytes_max`.
    done_bytes: usize,
    dirty: Vec<u32>,
    /// Reused by every settlement.
    refused: Vec<Refused>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct SessionState {
    consumers: Vec<u32>,
    waits: BTreeSet<u32>,
}

impl Board {
    /// An empty board.
    pub fn new(limits: Limits, default_policy: Policy, identity: Identity) -> Self {
        let record_bytes = limits.record_bytes;
        let seeded = foldhash::fast::FixedState::with_seed(identity.hash_seed);
        Self {
            limits,
            default_policy,
            identity,
            table: Table::new(identity.first_seq),
            payloads: Arena::default(),
            delayed: Arena::default(),
            results: Arena::default(),
            dead: Arena::default(),
            errors: HashMap::with_hasher(seeded.clone()),
            error_bytes: 0,
            queues: Vec::new(),
            by_name: HashMap::with_hasher(seeded.clone()),
            lanes: Vec::new(),
            lane_bytes: 0,
            consumer_bytes: 0,
            elsewhere: 0,
            consumers: Vec::new(),
            free_consumers: Vec::new(),
            sessions: HashMap::with_hasher(seeded.clone()),
            waits: waits::Waits::default(),
            ops: ops::Ops::new(record_bytes),
            commit: commit::Commit::new(identity.first_seq),
            spill: spill::Spill::default(),
            archive: archive::Archive::default(),
            draining: false,
            timers: Timers::default(),
            done: List::default(),
            done_bytes: 0,
            dirty: Vec::new(),
            refused: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Incarnation of this board.
    pub fn epoch(&self) -> u32 {
        self.identity.epoch
    }

    /// The sequence that the next task gets.
    pub fn next_seq(&self) -> u64 {
        self.table.next_seq()
    }

    /// Memory held, bytes: chunks and pages, not what clients asked for.
    pub fn memory_bytes(&self) -> usize {
        let arenas = self.payloads.bytes() + self.delayed.bytes() + self.results.bytes() + self.dead.bytes();
        let names = self.error_bytes + self.lane_bytes + self.consumer_bytes;
        arenas + self.table.bytes() + self.timers.bytes() + self.spill.bytes() + self.archive.bytes() + names
    }

    /// Others have taken so much of the memory that tasks may fill, bytes.
    pub fn set_elsewhere(&mut self, bytes: usize) {
        self.elsewhere = bytes;
    }

    /// What is taken of the memory for tasks, bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.memory_bytes() + self.elsewhere
    }

    /// Whether `more` bytes find no room.
    pub(crate) fn is_full(&self, more: usize) -> bool {
        self.held_bytes() + more > self.limits.memory_bytes_max
    }
}
