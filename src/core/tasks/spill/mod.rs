//! Waiting tasks beyond what memory should hold. They stay in the journal, where they are anyway, and come back in order
//! when their lane runs low.
//!
//! ```text
//!  submit ─▶ record, index ──durable──▶ lane.runs ──want──▶ whoever reads ──fetched──▶ lane.tasks
//! ```
//!
//! What stays in memory is one bit for each task (the index: for those who ask for it, cancel it or wait for it) and an entry for
//! each MiB of records in a row that have tasks of the lane (the runs). A lane of which something is on disk sends there all that comes in, so it stays first in,
//! first out; only tasks that come back to the queue (after a delay, from a worker) pass what is there.
//!
//! Whether a task is on disk is itself a decision in the journal: replay does not bring back into memory what was not
//! there. A task that was fetched is on disk again after a restart, so what happens to it is written down whole if it keeps its payload.

mod index;

use std::collections::VecDeque;

use hive_proto::items::Task;
use hive_proto::messages::{self, TaskOptions};
use hive_proto::{SessionId, TaskId, TaskState};

use super::Board;
use super::ops::{self, Decision, Spilled};
use super::table::{Record, Slot};
use crate::planted;

pub(crate) use index::{Bits, Index};

/// Records are fetched together up to this length, bytes; one that is longer is fetched alone.
const RUN_BYTES: usize = 1024 * 1024;
/// A queue of which nothing runs gets so much into a full memory, bytes, or one task.
const FETCH_BYTES_MIN: usize = 16 * 1024;
/// One fetch takes one part in so many of what is free, where memory is to be kept.
const FETCH_SHARE: usize = 16;
/// One part in so many of the memory for tasks may be taken beyond it, for the index alone.
const BEYOND_SHARE: usize = 32;
/// What a run takes, with its share of the queue and of a snapshot's copy, bytes.
const RUN_ENTRY_BYTES: usize = 2 * (size_of::<Run>() + 8);
/// Records are fetched together while their tasks are not more than this.
const RUN_TASKS: u64 = 8 * 1024;
/// A fetch stops at so many tasks: others want to be served.
const FETCH_TASKS_MAX: usize = 64 * 1024;
/// Pages of the table and chunks come on top of what a fetch may bring in, bytes.
const FETCH_SLACK: usize = 1024 * 1024;

/// Records in which tasks of one lane are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Positions of the first and the last record.
    pub(crate) records: (u64, u64),
    /// The first and the last task; between them may be others.
    pub(crate) seqs: (u64, u64),
    /// Length of the records, bytes.
    pub(crate) bytes: usize,
    /// Tasks that are still there.
    pub(crate) left: u64,
}

/// Records to be read from the journal for a lane, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    lane: u32,
    /// Position of the first.
    pub first: u64,
    /// Position of the last.
    pub last: u64,
}

/// What was read from the journal is not what is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpillError {
    /// A record does not make sense.
    #[error(transparent)]
    Bad(#[from] ops::BadRecord),
    /// A task is not there.
    #[error("records {first} to {last} of the journal do not have all tasks that are waiting there")]
    Lost {
        /// Position of the first record.
        first: u64,
        /// Position of the last.
        last: u64,
    },
}

/// All that a board knows of tasks on disk.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    pub(crate) index: Index,
    /// Lanes that have runs.
    lanes: Vec<u32>,
    runs: usize,
    /// The one to be looked at first.
    turn: usize,
    /// Runs that are being read.
    fetching: usize,
    /// Runs of records that are durable, as parts of what is not.
    fresh: Vec<(u32, Run)>,
    /// Lanes and tasks that were taken away before their runs were known.
    early: Vec<(u32, u64)>,
    /// Found out once for each frame: memory is to be kept for those who have nothing else, it is scarce, there is none left.
    pub(super) pressed: bool,
    pub(super) scarce: bool,
    pub(super) full: bool,
}

impl Spill {
    /// Whether a lane is among those that have runs.
    #[cfg(test)]
    pub(super) fn lists(&self, lane: u32) -> bool {
        self.lanes.contains(&lane)
    }

    /// Memory held, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.index.bytes() + self.runs * RUN_ENTRY_BYTES
    }
}

impl Board {
    /// Whether the next task of a lane goes to disk.
    #[inline]
    pub(super) fn spills(&self, lane: u32) -> bool {
        let lane = &self.lanes[lane as usize];
        lane.spilled > 0
            || self.spill.pressed && (lane.in_memory() >= self.limits.lane_tasks_min || self.spill.scarce)
    }

    /// How memory stands, for the frame that comes.
    pub(super) fn look_at_memory(&mut self, frame_bytes: usize) {
        let on_disk = self.limits.spill_bytes < usize::MAX;
        self.make_room(frame_bytes);
        self.spill.full = self.is_full(frame_bytes);
        self.spill.pressed = on_disk && (self.spill.full || self.memory_bytes() > self.limits.spill_bytes);
        self.spill.scarce = self.spill.full || self.held_bytes() > self.limits.memory_bytes_max / 4 * 3;
    }

    /// Whether a task is on disk.
    pub(super) fn is_spilled(&self, task: TaskId) -> bool {
        self.spilled_lane(task).is_some()
    }

    fn spilled_lane(&self, task: TaskId) -> Option<u32> {
        let (lane, _) = self.spill.index.find(task.seq())?;
        let queue = self.lanes[lane as usize].queue;
        (self.queues[queue as usize].partition == task.partition()).then_some(lane)
    }

    /// A task on disk as clients see it.
    pub(super) fn view_spilled(&self, task: TaskId) -> Option<Task<'_>> {
        self.is_spilled(task).then_some(Task { task, state: TaskState::Waiting, attempt: 0, payload: &[] })
    }

    /// A task is in the journal, or will be, and not in memory.
    pub(super) fn add_spilled(&mut self, lane: u32, watcher: SessionId, page: u64, mask: u64) {
        if mask == 0 {
            return;
        }
        self.spill.index.add(page, lane, watcher, mask);
        self.table.seen(page * 64 + u64::from(mask.ilog2()));
        let (count, lane) = (mask.count_ones() as usize, &mut self.lanes[lane as usize]);
        lane.spilled += count;
        self.queues[lane.queue as usize].waiting += count;
    }

    /// Tasks of a lane are in this record of the journal, behind those that are known.
    pub(super) fn add_run(&mut self, at: u32, run: Run) {
        let lane = &mut self.lanes[at as usize];
        let is_read = lane.fetching && lane.runs.len() == 1;
        if let Some(last) = lane.runs.back_mut().filter(|_| !is_read) {
            let same = last.records.1 == run.records.1;
            let fits = last.bytes + run.bytes <= RUN_BYTES && last.left + run.left <= RUN_TASKS;
            if same || last.records.1 + 1 == run.records.0 && fits {
                (last.records.1, last.seqs.1) = (run.records.1, run.seqs.1);
                last.bytes += if same { 0 } else { run.bytes };
                last.left += run.left;
                return;
            }
        }
        lane.runs.push_back(run);
        self.spill.runs += 1;
        if !std::mem::replace(&mut lane.listed, true) {
            self.spill.lanes.push(at);
        }
    }

    /// The record handed over last is durable, at a position of the journal.
    pub fn recorded(&mut self, position: u64, bytes: usize) {
        let finished = std::mem::take(&mut self.commit.finished);
        self.outcomes_recorded(position, &finished);
        for Spilled { lane, seqs, tasks } in self.commit.handed.drain(..) {
            self.spill.fresh.push((lane, Run { records: (position, position), seqs, bytes, left: tasks }));
        }
    }

    /// All of what was handed over is durable, so its tasks may be fetched.
    pub(super) fn release_runs(&mut self) {
        let durable_below = self.durable_below();
        let mut fresh = std::mem::take(&mut self.spill.fresh);
        self.spill.early.retain(|(lane, seq)| {
            let has = |(l, run): &&mut (u32, Run)| l == lane && (run.seqs.0..=run.seqs.1).contains(seq);
            if let Some((_, run)) = fresh.iter_mut().find(has) {
                run.left -= 1;
            }
            *seq >= durable_below
        });
        fresh.into_iter().filter(|(_, run)| run.left > 0).for_each(|(lane, run)| self.add_run(lane, run));
    }

    /// What should be read from the journal now; [`Board::fetched`] is expected for each.
    pub fn want(&mut self) -> Option<Want> {
        if self.spill.lanes.is_empty() {
            return None;
        }
        let (full, beyond) = (self.is_full(0), !self.is_within_bounds());
        let pressed = full || self.memory_bytes() > self.limits.spill_bytes;
        if full && (self.spill.fetching > 0 || beyond && self.queues.iter().any(|q| q.running > 0)) {
            return None; // what workers hold will make room
        }
        let mut looks = self.spill.lanes.len();
        while looks > 0 && !self.spill.lanes.is_empty() {
            looks -= 1;
            let turn = self.spill.turn % self.spill.lanes.len();
            let at = self.spill.lanes[turn];
            let lane = &mut self.lanes[at as usize];
            while !lane.fetching && lane.runs.pop_front_if(|run| run.left == 0).is_some() {
                self.spill.runs -= 1;
            }
            if lane.runs.is_empty() {
                (lane.runs, lane.listed) = (VecDeque::new(), false);
                self.spill.lanes.swap_remove(turn);
                continue;
            }
            self.spill.turn = turn + 1;
            let queue = &self.queues[lane.queue as usize];
            let needed = match lane.tasks.len {
                0 if full => lane.in_line > 0 && queue.running == 0,
                0 => !pressed || queue.consumers > 0,
                waiting => !pressed && waiting < self.limits.lane_tasks_min,
            };
            if needed && !lane.fetching {
                lane.fetching = true;
                self.spill.fetching += 1;
                let (first, last) = lane.runs[0].records;
                return Some(Want { lane: at, first, last });
            }
        }
        None
    }

    /// The records that were wanted, in order. Follow it with [`Board::pump`].
    ///
    /// # Errors
    /// They do not have what they must have: the journal is not to be trusted any more.
    pub fn fetched<'a>(
        &mut self,
        want: Want,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), SpillError> {
        let (before, mut room) = (self.memory_bytes(), self.room_to_fetch());
        let most = before.saturating_add(room).saturating_add(FETCH_SLACK);
        let mut tasks = FETCH_TASKS_MAX;
        let lane = &mut self.lanes[want.lane as usize];
        lane.fetching = false;
        self.spill.fetching -= 1;
        let queue = lane.queue;
        for record in records {
            ops::read(record, |_, decision| match decision {
                Decision::Submit { spilled: true, seq, ext, payload, .. } if room > 0 && tasks > 0 => {
                    let bytes = self.fetch(want.lane, seq, ext, payload)?;
                    if bytes > 0 {
                        tasks -= 1;
                        room = if self.memory_bytes() > most { 0 } else { room.saturating_sub(bytes) };
                    }
                    Some(())
                }
                _ => Some(()),
            })?;
        }
        self.mark_dirty(queue);
        let left = self.lanes[want.lane as usize].runs.front().is_some_and(|run| run.left > 0);
        if left && room > 0 && tasks > 0 {
            return Err(SpillError::Lost { first: want.first, last: want.last });
        }
        Ok(()) // a run of which nothing is left goes before the next is wanted
    }

    /// How much a fetch may bring in before it stops, bytes.
    fn room_to_fetch(&self) -> usize {
        let free = self.limits.memory_bytes_max.saturating_sub(self.held_bytes());
        let is_plenty = free > FETCH_SLACK * FETCH_SHARE && self.memory_bytes() <= self.limits.spill_bytes;
        if is_plenty { free } else { (free / FETCH_SHARE).max(FETCH_BYTES_MIN) }
    }

    /// Whether tasks may go to disk: their index takes memory, too.
    pub(super) fn may_spill(&self) -> bool {
        self.limits.spill_bytes < usize::MAX && self.is_within_bounds()
    }

    /// Whether not more is held than the memory for tasks and the little beyond it.
    fn is_within_bounds(&self) -> bool {
        let most = self.limits.memory_bytes_max;
        self.held_bytes() <= most.saturating_add(most / BEYOND_SHARE)
    }

    /// A task that was on disk is in memory, unless it was taken away before. Gives what it takes, bytes.
    fn fetch(&mut self, lane: u32, seq: u64, ext: &[u8], payload: &[u8]) -> Option<usize> {
        if self.spill.index.find(seq).is_none_or(|(l, _)| l != lane) {
            return Some(0);
        }
        let attempts_max = self.attempts_max(lane, ext)?;
        let ext_len = u16::try_from(ext.len()).ok()?;
        let blob = self.payloads.put_in(&mut self.lanes[lane as usize].stream, [ext, payload]);
        let slot = self.unspill(seq)?;
        if planted::is("fetch_skips_one") && seq.is_multiple_of(64) {
            self.payloads.free(blob);
            self.table.remove(slot);
            return Some(0);
        }
        let r = &mut self.table[slot];
        if planted::is("spilled_watcher_lost") {
            r.watcher = SessionId(0);
        }
        *r = Record { blob, ext_len, attempts_max, fetched: true, ..*r };
        let lane = &mut self.lanes[lane as usize];
        self.queues[lane.queue as usize].waiting += 1;
        lane.tasks.push_back(&mut self.table, slot);
        Some(blob.len() + size_of::<Record>())
    }

    /// Attempts of a task with these options.
    pub(super) fn attempts_max(&self, lane: u32, ext: &[u8]) -> Option<u16> {
        let policy = &self.queues[self.lanes[lane as usize].queue as usize].policy;
        if ext.is_empty() {
            return Some(policy.attempts_max);
        }
        let options: TaskOptions = messages::decode(ext).ok()?;
        Some(options.max_attempts.map_or(policy.attempts_max, |a| a as u16))
    }

    /// Takes a task off the disk as a record that waits, in no list and without its payload.
    pub(super) fn unspill(&mut self, seq: u64) -> Option<Slot> {
        let (lane, watcher) = self.spill.index.take(seq)?;
        let l = &mut self.lanes[lane as usize];
        l.spilled -= 1;
        self.queues[l.queue as usize].waiting -= 1;
        // Runs are in the order of their tasks.
        let at = l.runs.partition_point(|run| run.seqs.1 < seq);
        match l.runs.get_mut(at).filter(|run| run.seqs.0 <= seq) {
            Some(run) => run.left -= 1,
            None => self.spill.early.push((lane, seq)),
        }
        let waited = self.waits.has(seq);
        let record = Record { lane, watcher, waited, state: TaskState::Waiting, ..Record::EMPTY };
        Some(self.table.insert(seq, record))
    }

    /// The runs as they are now, by lane, as far as something is left of them.
    pub(super) fn all_runs(&self) -> Vec<(u32, Run)> {
        let lanes = self.spill.lanes.iter().map(|at| (*at, &self.lanes[*at as usize].runs));
        let runs = lanes.flat_map(|(at, runs)| runs.iter().map(move |run| (at, *run)));
        runs.filter(|(_, run)| run.left > 0).collect()
    }
}

/// The records of runs, as few ranges, ascending.
pub(super) fn ranges(runs: &[(u32, Run)]) -> Vec<(u64, u64)> {
    let mut records: Vec<(u64, u64)> = runs.iter().map(|(_, run)| run.records).collect();
    records.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (first, last) in records {
        match ranges.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => ranges.push((first, last)),
        }
    }
    ranges
}
