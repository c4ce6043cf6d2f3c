//! How the memory of the server is shared out: the sum of everything that clients can make it hold.

use crate::actors::directory::Budget;
use crate::config::Config;

/// What the program itself holds: its code, stacks, tables, idle sessions, buffers for reading, bytes.
const OWN_BYTES: usize = 24 * 1024 * 1024;

/// Parts of `limits.memory_bytes_max`, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Tasks alone. A full board still takes results: those that do not fit into what is left beside it are left room for.
    pub(super) tasks: usize,
    /// Bytes that wait to be written, all sessions together.
    pub(super) outboxes: usize,
    pub(super) budget: Budget,
}

impl Shares {
    pub(super) fn of(config: &Config) -> Self {
        let l = &config.limits;
        let percent = l.memory_bytes_max.saturating_sub(OWN_BYTES) / 100;
        let results = l.results_bytes_max.saturating_sub(percent * 8);
        let tasks = (percent * 86).saturating_sub(results);
        // One message must have room, however little there is.
        let message = l.message_bytes_max as usize + hive_proto::PREFIX_LEN;
        Self {
            tasks,
            outboxes: percent * 7,
            budget: Budget { pool: tasks, in_flight: percent * 3, arriving: (percent * 4).max(message) },
        }
    }
}
