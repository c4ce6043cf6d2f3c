//! How the memory of the server is shared out: the sum of everything that clients can make it hold.

use crate::actors::directory::Budget;
use crate::config::Config;

/// What the program itself holds: its code, stacks, tables, idle sessions, buffers for reading, two records of the journal, bytes.
const OWN_BYTES: usize = 24 * 1024 * 1024;

/// To gather more than this for one record of the journal makes nothing faster, bytes.
const GATHER_BYTES: usize = 4 * 1024 * 1024;

/// Parts of `limits.memory_bytes_max`, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Tasks alone. A full board still takes results: those that do not fit into what is left beside it are left room for.
    pub(super) tasks: usize,
    /// Tasks that survive wait on disk from here on.
    pub(super) spill: usize,
    /// Decisions that wait while as many are being written to the journal.
    pub(super) gather: usize,
    /// Bytes that wait to be written, all sessions together.
    pub(super) outboxes: usize,
    pub(super) budget: Budget,
}

impl Shares {
    pub(super) fn of(config: &Config) -> Self {
        let l = &config.limits;
        let percent = l.memory_bytes_max.saturating_sub(OWN_BYTES) / 100;
        let results = l.results_bytes_max.saturating_sub(percent * 8);
        let gather = GATHER_BYTES.min(percent);
        let tasks = (percent * 86).saturating_sub(results);
        // One message must have room, however little there is.
        let message = l.message_bytes_max as usize + hive_proto::PREFIX_LEN;
        Self {
            tasks,
            spill: match config.journal.spill_bytes as usize {
                0 => tasks / 2,
                bytes => bytes.min(tasks),
            },
            gather,
            outboxes: percent * 7,
            budget: Budget { pool: tasks, in_flight: percent * 3, arriving: (percent * 4).max(message) },
        }
    }
}
