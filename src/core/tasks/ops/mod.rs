//! What the journal says of tasks: decisions, not requests. Replayed in order they rebuild the board.
//!
//! ```text
//! record  := time u64 (ns since 1970), group*
//! group   := tag u8, count u16, head, item * count
//!
//! tag      head                      item
//! Epoch                              epoch
//! Lane                               lane, queue, labels, label *
//! Submit   lane, watcher, first seq. extension length, payload length, extension, payload
//! Spilled  lane, watcher, first seq. the same, for tasks that are to wait on disk: that is, here
//! Later    lane, watcher             sequence, due, extension, payload
//! Complete lane, results before      task, attempt, result
//! Retry                              task, attempt, failed, due or 0, error
//! Bury                               task, attempt, failed, error
//! Cancel                             task
//! Redrive                            task
//! Purge                              task
//! Count                              lane, results so far
//! Task     lane, watcher             sequence, state (and 0x80: was on disk; 0x40: the last field is there), attempt, failed, attempts, time, error,
//!                                    extension length, bytes, record of the outcome
//! Bits     lane, watcher             sequence / 64, which of 64 tasks are on disk
//! Run      lane, watcher (0)         first and last record, first and last sequence, length of the records, tasks
//! Outcomes lane, watcher (0)         sequence / 64, which of 64 tasks, until, records of their outcomes: how many, difference to the one before *
//! ```
//!
//! `Count`, `Bits`, `Run` and `Outcomes` stand in snapshots only; `Task` there, and where a task that was on disk comes back to its queue. Numbers are LEB128; texts and bytes have their length before them. A task is the difference to the task before it in the
//! group, zigzag: what is settled together was submitted together. Each decision states what became of the task, not a difference, so
//! that applying one twice does no harm: a snapshot that was taken while tasks moved on needs that.

mod read;
mod write;

use hive_proto::TaskState;

use crate::core::time::Tick;
use read::Input;

pub use read::BadRecord;
pub(crate) use read::read;
pub(crate) use write::{Ops, Sealed, Spilled};

/// Beside the state of a task: it was on disk.
const FETCHED: u8 = 0x80;
/// Beside the state of a task: the record of its outcome is known.
const RECORDED: u8 = 0x40;

/// What a group says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Tag {
    Epoch = 1,
    Lane = 2,
    Submit = 3,
    Later = 4,
    Complete = 5,
    Retry = 6,
    Bury = 7,
    Cancel = 8,
    Task = 9,
    Count = 10,
    Spilled = 11,
    Bits = 12,
    Run = 13,
    Outcomes = 14,
    Redrive = 15,
    Purge = 16,
}

impl Tag {
    fn from_u8(tag: u8) -> Option<Self> {
        use Tag::{
            Bits, Bury, Cancel, Complete, Count, Epoch, Lane, Later, Outcomes, Purge, Redrive, Retry, Run,
            Spilled, Submit, Task,
        };
        let all = [
            Epoch, Lane, Submit, Later, Complete, Retry, Bury, Cancel, Task, Count, Spilled, Bits, Run,
            Outcomes, Redrive, Purge,
        ];
        all.get(usize::from(tag).checked_sub(1)?).copied()
    }

    /// Whether the group begins with a lane.
    fn has_lane(self) -> bool {
        use Tag::{Bits, Later, Outcomes, Run, Spilled, Submit, Task};
        matches!(self, Submit | Spilled | Later | Task | Bits | Run | Outcomes)
    }
}

/// One decision, as it is read back.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Decision<'a> {
    /// Incarnation of the board that decided what follows.
    Epoch(u32),
    /// The lane that later decisions call by this number.
    Lane {
        lane: u32,
        queue: &'a str,
        labels: Labels<'a>,
    },
    Submit {
        lane: u32,
        watcher: u32,
        seq: u64,
        due: Option<Tick>,
        /// It waits on disk.
        spilled: bool,
        ext: &'a [u8],
        payload: &'a [u8],
    },
    /// `completed` are the results of the queue of the lane, this one included.
    Complete {
        lane: u32,
        completed: u64,
        seq: u64,
        attempt: u32,
        result: &'a [u8],
    },
    Retry {
        seq: u64,
        attempt: u32,
        failed: u16,
        due: Option<Tick>,
        error: &'a str,
    },
    Bury {
        seq: u64,
        attempt: u32,
        failed: u16,
        error: &'a str,
    },
    Cancel {
        seq: u64,
    },
    /// A dead letter waits again, with all its attempts before it.
    Redrive {
        seq: u64,
    },
    /// A dead letter is forgotten.
    Purge {
        seq: u64,
    },
    Task(Whole<'a>),
    /// Those of 64 tasks that are on disk.
    Bits {
        lane: u32,
        watcher: u32,
        page: u64,
        mask: u64,
    },
    /// Where they are.
    Run {
        lane: u32,
        run: super::spill::Run,
    },
    /// Those of 64 tasks of the queue of a lane whose outcomes are in the journal.
    Outcomes {
        lane: u32,
        page: u64,
        mask: u64,
        until: Tick,
        records: Records<'a>,
    },
    /// Results of the queue of a lane so far.
    Count {
        lane: u32,
        completed: u64,
    },
}

/// All there is to know of a task, for a snapshot.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Whole<'a> {
    pub(crate) lane: u32,
    pub(crate) watcher: u32,
    pub(crate) seq: u64,
    pub(crate) state: TaskState,
    pub(crate) attempt: u32,
    pub(crate) failed: u16,
    pub(crate) attempts_max: u16,
    /// When a delay ends or the result may go.
    pub(crate) time: Tick,
    pub(crate) error: &'a str,
    pub(crate) ext_len: u16,
    /// It was on disk, and is for an earlier snapshot.
    pub(crate) fetched: bool,
    /// Extension and payload, or the result.
    pub(crate) bytes: &'a [u8],
    /// Position of the record that has the outcome; 0 where that is not known, or there is none.
    pub(crate) record: u64,
}

/// Positions of records as they stand in one: each the difference to the one before.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Records<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl Records<'_> {
    /// The record of each of so many tasks, in their order.
    pub(crate) fn of(self, tasks: usize) -> impl Iterator<Item = u64> {
        let (mut r, mut at) = (Input(self.bytes), 0_u64);
        (0..tasks).map(move |n| {
            if n < self.count {
                at = at.wrapping_add(r.difference().unwrap_or(0));
            }
            at
        })
    }
}

/// Labels as they stand in a record.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Labels<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Labels<'a> {
    pub(crate) const NONE: Self = Self { count: 0, bytes: &[] };

    pub(crate) fn iter(self) -> impl Iterator<Item = &'a str> {
        let mut r = Input(self.bytes);
        (0..self.count).filter_map(move |_| r.text())
    }
}
