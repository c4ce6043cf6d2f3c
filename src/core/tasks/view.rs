//! Counts for status and metrics.

use hive_proto::ids::Durability;

use super::Board;

/// What has happened since the board was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tasks taken.
    pub submitted: u64,
    /// Tasks refused.
    pub refused: u64,
    /// Assignments.
    pub assigned: u64,
    /// Results.
    pub completed: u64,
    /// Failed attempts that workers reported.
    pub failed: u64,
    /// Tasks that became dead letters.
    pub dead: u64,
    /// Tasks cancelled.
    pub cancelled: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Settlements refused for a stale lease.
    pub stale: u64,
}

/// A queue as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// Its name.
    pub name: String,
    /// What its acknowledgements promise.
    pub durability: Durability,
    /// Tasks that could be assigned now.
    pub waiting: usize,
    /// Those of them that are in the journal and not in memory.
    pub on_disk: usize,
    /// Tasks with a delay.
    pub scheduled: usize,
    /// Tasks leased.
    pub running: usize,
    /// Results since the start.
    pub completed: u64,
    /// Dead letters.
    pub dead: usize,
    /// Open consumers.
    pub consumers: usize,
}

impl Board {
    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// All queues, in the order in which they came into being.
    pub fn queues(&self) -> impl Iterator<Item = QueueView> + '_ {
        self.queues.iter().map(|q| QueueView {
            name: q.name.to_string(),
            durability: q.policy.durability,
            waiting: q.waiting,
            on_disk: q.lanes.iter().map(|l| self.lanes[*l as usize].spilled).sum(),
            scheduled: q.scheduled,
            running: q.running,
            completed: q.completed,
            dead: q.dead.len,
            consumers: q.consumers,
        })
    }
}
