//! Outcomes beyond what memory should hold. They stay in the journal, where they are anyway; what stays in memory is which record
//! has each.
//!
//! ```text
//!  done (record and result) ──no room──▶ archive (record of the journal) ──result_ms, or the journal is trimmed──▶ forgotten
//!                                           └──query──▶ Lookup ──▶ whoever reads ──looked_up──▶ answer
//! ```
//!
//! Tasks that were submitted together are mostly settled together, so an entry is for 64 of them, and is 2.5 bytes for each where one
//! record has them all, six where each is elsewhere.

mod index;
mod lookup;

use hive_proto::{TaskId, TaskState};

use super::Board;
use super::table::Slot;
use crate::planted;

use index::FORGET_MAX;

pub(crate) use index::Archive;
pub use lookup::{Found, Lookup};

/// Outcomes of memory queues that are passed over to find one that is in the journal.
const LOOKED_AT: usize = 4096;

impl Board {
    /// Moves an outcome for which there is no room to where only its record is known, if that is known and will stay.
    pub(super) fn archive(&mut self, slot: Slot) {
        let r = &self.table[slot];
        if r.owner == 0 || self.limits.archive_bytes_max == 0 || !self.is_durable(slot) {
            return;
        }
        let (seq, queue, until) = (self.table.seq(slot), self.queue_of(slot), r.deadline);
        let position = self.archive.position(r.owner);
        if position >= self.archive.floor {
            self.archive.add(seq, queue, until, position);
        }
        self.bound_archive();
    }

    /// Forgets what finds no room.
    pub(super) fn bound_archive(&mut self) {
        while self.archive.bytes() > self.limits.archive_bytes_max {
            self.archive.forget_oldest();
        }
    }

    /// Tasks need memory more than the places of results do: makes room for so many bytes, a bounded part at a time.
    pub(super) fn make_room(&mut self, bytes: usize) {
        for _ in 0..FORGET_MAX {
            if self.archive.is_empty() || !self.is_full(bytes) {
                return;
            }
            self.archive.forget_oldest();
        }
    }

    /// Whether the oldest outcome in memory is worth its room for the moment: where it will be is known once it is durable, or
    /// replayed behind a snapshot. Those of memory queues behind it wait as well, but not without end.
    pub(super) fn is_to_be_recorded(&self) -> bool {
        let most = self.limits.results_bytes_max.saturating_add(2 * self.limits.gather_bytes_max);
        self.limits.archive_bytes_max > 0
            && (self.is_uncommitted() || self.archive.replaying)
            && self.table[self.done.head].owner == 0
            && self.done_bytes <= most
            && self.is_durable(self.done.head)
    }

    /// The outcomes of these tasks are in the record at this position, which is durable.
    pub(super) fn outcomes_recorded(&mut self, position: u64, seqs: &[u64]) {
        let position = position - u64::from(planted::is("archived_too_low") && !seqs.is_empty());
        self.archive.last = self.archive.last.max(position);
        seqs.iter().for_each(|seq| self.is_recorded(*seq, position as u32));
        self.forget_surplus();
    }

    /// The outcome of a task, if it is in memory, is in the record of whose position this is the lower half.
    pub(super) fn is_recorded(&mut self, seq: u64, record: u32) {
        if let Some(slot) = self.table.find(seq)
            && matches!(self.table[slot].state, TaskState::Completed | TaskState::Cancelled)
        {
            self.table[slot].owner = record;
        }
    }

    /// Where the record of an outcome in memory is; 0 where that is not known.
    pub(super) fn record_of(&self, slot: Slot) -> u64 {
        match self.table[slot].owner {
            0 => 0,
            record => self.archive.position(record),
        }
    }

    /// The record of a task whose outcome is in the journal.
    pub(super) fn archived(&self, task: TaskId) -> Option<u64> {
        if self.archive.is_empty() {
            return None;
        }
        let mine = |queue: u32| self.queues[queue as usize].partition == task.partition();
        self.archive.find(task.seq()).find(|(queue, _)| mine(*queue)).map(|(_, position)| position)
    }

    /// The partition of a task whose outcome is in the journal.
    #[cfg(test)]
    pub(super) fn archived_in(&self, seq: u64) -> Option<hive_proto::Partition> {
        self.archive.queue_of(seq).map(|queue| self.queues[queue as usize].partition)
    }

    /// Whether the outcome of a task is in the journal.
    pub(super) fn is_archived(&self, task: TaskId) -> bool {
        self.archived(task).is_some()
    }

    /// Records from here on are worth keeping for the outcomes in them; the maximum where none is.
    pub fn results_from(&self) -> u64 {
        if self.limits.archive_bytes_max == 0 {
            return u64::MAX;
        }
        self.archive.from().unwrap_or_else(|| self.first_in_memory())
    }

    /// The record of the oldest outcome in memory of which it is known.
    fn first_in_memory(&self) -> u64 {
        let mut slot = self.done.head;
        for _ in 0..LOOKED_AT {
            match slot {
                Slot::NONE => return self.archive.last,
                s if self.record_of(s) > 0 => return self.record_of(s),
                s => slot = self.table[s].next,
            }
        }
        self.archive.floor // so many of memory queues: nothing goes for now
    }

    /// Records before this one are gone, and the outcomes in them with them.
    pub fn results_gone(&mut self, before: u64) {
        self.archive.floor = before;
        while let Some(e) = self.archive.oldest()
            && e.records.iter().all(|r| self.archive.position(*r) < before)
        {
            self.archive.forget_oldest();
        }
    }

    /// Outcomes that only the journal has.
    pub fn archived_len(&self) -> usize {
        self.archive.len
    }
}
