//! Decisions about queues whose tasks must survive: gathered, handed to the journal, then in force.
//!
//! ```text
//!  submit ─▶ lane.gathering ──seal──▶ lane.in_flight ──committed──▶ lane.tasks ─▶ may be assigned
//!  others ─▶ in force at once; what they tell is held back by the sink until the same `committed`
//! ```
//!
//! While one record is being written, the next one is gathered: the slower the disk, the more goes into each.

use std::collections::VecDeque;

use hive_proto::TaskId;
use hive_proto::ids::Durability;
use hive_proto::items::Complete;

use super::ops::{Sealed, Spilled};
use super::table::{List, Slot};
use super::{Board, TaskSink};
use crate::core::time::Tick;
use crate::planted;

/// Where records stand on their way to the journal.
#[derive(Debug)]
pub(super) struct Commit {
    /// Lanes with tasks that are gathered.
    gathering: Vec<u32>,
    /// Lanes with tasks in the record that is being written.
    in_flight: Vec<u32>,
    /// Records are being written.
    busy: bool,
    /// The journal does not know the epoch of this board: a lease that is given now could be given once more by the next process.
    unannounced: bool,
    /// Those of them that have not been handed over.
    records: VecDeque<Sealed>,
    /// What the one handed over last has that is not in memory.
    pub(super) handed: Vec<Spilled>,
    /// Tasks of which it has the outcome.
    pub(super) finished: Vec<u64>,
    /// Tasks from here on are gathered.
    sealed_seq: u64,
    /// Tasks from here on are not durable.
    durable_seq: u64,
}

impl Commit {
    pub(super) fn new(first_seq: u64) -> Self {
        let (gathering, in_flight, records, handed, finished) = Default::default();
        let (busy, unannounced) = (false, false);
        Self {
            gathering,
            in_flight,
            busy,
            unannounced,
            records,
            handed,
            finished,
            sealed_seq: first_seq,
            durable_seq: first_seq,
        }
    }
}

/// The part of a lane in which a task stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Durable,
    InFlight,
    Gathering,
}

impl Board {
    /// Whether something was decided that the journal does not have.
    #[inline]
    pub fn is_uncommitted(&self) -> bool {
        self.commit.busy || !self.ops.is_empty()
    }

    /// Bytes of decisions that wait for the journal.
    pub fn gathered_bytes(&self) -> usize {
        self.ops.bytes()
    }

    /// How many bytes of decisions may wait before nothing more should be taken in.
    pub fn gather_bytes_max(&self) -> usize {
        self.limits.gather_bytes_max
    }

    /// Hands over what was decided since the last time: a record, and the decisions in it. `None` while the record before
    /// is being written, or when there is nothing. Else `spare`, an empty buffer, is taken to go on with. What is too long for one
    /// record comes in several: take them by [`Board::next_record`], one after the other.
    pub fn seal(&mut self, now: Tick, spare: &mut Vec<u8>) -> Option<(Vec<u8>, u32)> {
        if self.commit.busy || self.ops.is_empty() {
            return None;
        }
        self.commit.busy = true;
        self.commit.sealed_seq = self.table.next_seq();
        std::mem::swap(&mut self.commit.gathering, &mut self.commit.in_flight);
        for lane in &self.commit.in_flight {
            let lane = &mut self.lanes[*lane as usize];
            lane.in_flight = std::mem::take(&mut lane.gathering);
        }
        self.commit.records = self.ops.seal(now, std::mem::take(spare));
        self.next_record()
    }

    /// The next record, once the one before is durable.
    pub fn next_record(&mut self) -> Option<(Vec<u8>, u32)> {
        let Sealed { body, ops, spilled, finished } = self.commit.records.pop_front()?;
        (self.commit.handed, self.commit.finished) = (spilled, finished);
        Some((body, ops))
    }

    /// Whether the rest of what was sealed has not been handed over.
    pub fn has_records(&self) -> bool {
        !self.commit.records.is_empty()
    }

    /// From here on only memory queues are assigned from: what survives can wait for the next process.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether tasks that survive may be assigned by now.
    pub(super) fn may_assign_durable(&self) -> bool {
        !self.draining && !self.commit.unannounced
    }

    /// The first record tells the epoch. No lease of it is given before that is durable.
    pub(super) fn announce(&mut self, epoch: u32) {
        self.ops.epoch(epoch);
        self.commit.unannounced = true;
    }

    /// Whether tasks of a queue must survive; of one that is not there, whether they would have to.
    pub fn is_durable_queue(&self, name: &[u8]) -> bool {
        let known = std::str::from_utf8(name).ok().and_then(|n| self.by_name.get(n));
        let policy = known.map_or(&self.default_policy, |at| &self.queues[*at as usize].policy);
        policy.durability != Durability::Memory
    }

    /// All that was handed over is durable, and [`Board::recorded`] was told where. Follow it with [`Board::pump`].
    pub fn committed(&mut self) {
        self.commit.busy = false;
        if std::mem::take(&mut self.commit.unannounced) {
            (0..self.queues.len() as u32).for_each(|queue| self.mark_dirty(queue));
        }
        self.commit.durable_seq = self.commit.sealed_seq;
        self.release_runs();
        self.forget_surplus();
        while let Some(at) = self.commit.in_flight.pop() {
            let lane = &mut self.lanes[at as usize];
            let list = std::mem::take(&mut lane.in_flight);
            lane.tasks.append(&mut self.table, list);
            let queue = lane.queue;
            self.mark_dirty(queue);
        }
    }

    /// Whether what becomes of a task must survive.
    #[inline]
    pub(super) fn is_durable(&self, slot: Slot) -> bool {
        self.queues[self.queue_of(slot) as usize].is_durable()
    }

    /// Whether what becomes of a task must survive. What is not known may have been known a moment ago.
    pub fn is_durable_task(&self, task: TaskId) -> bool {
        self.find(task).is_none_or(|slot| self.is_durable(slot))
    }

    /// Tells the sink whether what comes next depends on decisions that the journal does not have.
    #[inline]
    pub(super) fn hold(&self, durable: bool, sink: &mut impl TaskSink) {
        sink.hold(durable && self.is_uncommitted());
    }

    /// The number under which the journal knows a lane, which it is told first.
    pub(super) fn logged(&mut self, at: u32) -> u32 {
        let lane = &mut self.lanes[at as usize];
        if !lane.logged {
            lane.logged = true;
            self.ops.lane(at, &self.queues[lane.queue as usize].name, &lane.labels);
        }
        at
    }

    /// The journal hears of a result.
    #[inline]
    pub(super) fn log_result(&mut self, slot: Slot, item: &Complete<'_>) {
        let queue = self.queue_of(slot) as usize;
        let (lane, before) = (self.queues[queue].lanes[0], self.queues[queue].completed);
        let lane = self.logged(lane);
        self.ops.complete(lane, before, item.lease.task.seq(), item.lease.attempt, item.result);
    }

    fn line_of(&self, slot: Slot) -> Line {
        let seq = self.table.seq(slot);
        match &self.commit {
            _ if !self.is_durable(slot) || planted::is("assign_early") => Line::Durable,
            c if seq >= c.sealed_seq => Line::Gathering,
            c if seq >= c.durable_seq => Line::InFlight,
            _ => Line::Durable,
        }
    }

    /// Puts a task at the end of its lane, behind what is durable or among what is not.
    #[inline]
    pub(super) fn enter_lane(&mut self, slot: Slot) {
        let (line, at) = (self.line_of(slot), self.table[slot].lane);
        let lane = &mut self.lanes[at as usize];
        let (list, lanes) = match line {
            Line::Durable => return lane.tasks.push_back(&mut self.table, slot),
            Line::InFlight => (&mut lane.in_flight, &mut self.commit.in_flight),
            Line::Gathering => (&mut lane.gathering, &mut self.commit.gathering),
        };
        if list.len == 0 && !lanes.contains(&at) {
            lanes.push(at);
        }
        list.push_back(&mut self.table, slot);
    }

    /// Takes a waiting task out of its lane.
    pub(super) fn leave_lane(&mut self, slot: Slot) {
        let line = self.line_of(slot);
        let lane = &mut self.lanes[self.table[slot].lane as usize];
        let list: &mut List = match line {
            Line::Durable => &mut lane.tasks,
            Line::InFlight => &mut lane.in_flight,
            Line::Gathering => &mut lane.gathering,
        };
        list.remove(&mut self.table, slot);
    }

    /// Tasks below this are durable.
    pub(super) fn durable_below(&self) -> u64 {
        self.commit.durable_seq
    }

    /// Below which sequences tasks are durable, and handed over.
    #[cfg(test)]
    pub(super) fn bounds(&self) -> (u64, u64) {
        (self.commit.durable_seq, self.commit.sealed_seq)
    }

    /// Tasks below this are durable: they were read from the journal.
    pub(super) fn set_durable_below(&mut self, seq: u64) {
        (self.commit.sealed_seq, self.commit.durable_seq) = (seq, seq);
    }
}
