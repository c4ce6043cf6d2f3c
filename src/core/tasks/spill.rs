//! Waiting tasks beyond what memory should hold. They stay in the journal, where they are anyway, and come back in order
//! when their lane runs low.
//!
//! ```text
//!  submit ─▶ record, index ──durable──▶ lane.runs ──want──▶ whoever reads ──fetched──▶ lane.tasks
//! ```
//!
//! What stays in memory is one bit for each task (the index: for those who ask for it, cancel it or wait for it) and an entry for
//! each MiB of records (the runs). A lane of which something is on disk sends there all that comes in, so it stays first in,
//! first out; only tasks that come back to the queue (after a delay, from a worker) pass what is there.
//!
//! Whether a task is on disk is itself a decision in the journal: replay does not bring back into memory what was not
//! there. A task that was fetched is on disk again after a restart, so what happens to it is written down whole if it keeps its payload.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use hive_proto::items::Task;
use hive_proto::messages::{self, TaskOptions};
use hive_proto::{SessionId, TaskId, TaskState};

use super::Board;
use super::ops::{self, Decision, Spilled};
use super::table::{Record, Slot};
use crate::planted;

/// Records are fetched together up to this length, bytes; one that is longer is fetched alone.
const RUN_BYTES: usize = 1024 * 1024;
/// A queue of which nothing runs gets so much into a full memory, bytes, or one task.
const FETCH_BYTES_MIN: usize = 16 * 1024;
/// One fetch takes one part in so many of what is free, where memory is to be kept.
const FETCH_SHARE: usize = 16;
/// One part in so many of the memory for tasks may be taken beyond it, for the index alone.
const BEYOND_SHARE: usize = 32;
/// What an entry of the index takes, with its share of the tree's nodes, bytes.
const ENTRY_BYTES: usize = 48;

/// 64 consecutive sequences: which of them are on disk, of one lane and for one watcher.
pub(crate) type Bits = ((u64, u32, u32), u64);

/// Which tasks are on disk.
#[derive(Debug, Default)]
pub(crate) struct Index(BTreeMap<(u64, u32, u32), u64>);

impl Index {
    /// Adds some of 64 sequences.
    pub(crate) fn add(&mut self, page: u64, lane: u32, watcher: SessionId, mask: u64) {
        *self.0.entry((page, lane, watcher.0)).or_default() |= mask;
    }

    fn place(&self, seq: u64) -> Option<(u64, u32, u32)> {
        let (page, bit) = (seq / 64, 1 << (seq % 64));
        let mut entries = self.0.range((page, 0, 0)..=(page, u32::MAX, u32::MAX));
        entries.find(|(_, mask)| **mask & bit != 0).map(|(place, _)| *place)
    }

    /// Lane and watcher of a task that is on disk.
    pub(crate) fn find(&self, seq: u64) -> Option<(u32, SessionId)> {
        self.place(seq).map(|(_, lane, watcher)| (lane, SessionId(watcher)))
    }

    pub(crate) fn take(&mut self, seq: u64) -> Option<(u32, SessionId)> {
        let place = self.place(seq)?;
        let mask = self.0.get_mut(&place)?;
        *mask &= !(1 << (seq % 64));
        if *mask == 0 {
            self.0.remove(&place);
        }
        Some((place.1, SessionId(place.2)))
    }

    /// Whether a lane has any of these.
    pub(crate) fn has_any(&self, lane: u32, seqs: RangeInclusive<u64>) -> bool {
        let (first, last) = (*seqs.start(), *seqs.end());
        let mut entries = self.0.range((first / 64, 0, 0)..=(last / 64, u32::MAX, u32::MAX));
        entries.any(|((page, l, _), mask)| *l == lane && mask & within(*page, first, last) != 0)
    }

    /// All below a sequence.
    pub(crate) fn below(&self, seq: u64) -> Vec<Bits> {
        let Some(last) = seq.checked_sub(1) else { return Vec::new() };
        let entries = self.0.range(..=(last / 64, u32::MAX, u32::MAX));
        let cut = entries.map(|(place, mask)| (*place, mask & within(place.0, 0, last)));
        cut.filter(|(_, mask)| *mask != 0).collect()
    }
}

/// The bits of a page whose sequences lie between two, both included.
fn within(page: u64, first: u64, last: u64) -> u64 {
    let from = first.saturating_sub(page * 64).min(64) as u32;
    let behind = (last + 1).saturating_sub(page * 64).min(64) as u32;
    let below = |n: u32| if n == 64 { u64::MAX } else { (1 << n) - 1 };
    below(behind) & !below(from)
}

/// Records in which tasks of one lane are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Positions of the first and the last record.
    pub(crate) records: (u64, u64),
    /// The first and the last task; between them may be others.
    pub(crate) seqs: (u64, u64),
    /// Length of the records, bytes.
    pub(crate) bytes: usize,
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
    /// Runs of records that are durable, as parts of what is not.
    fresh: Vec<(u32, Run)>,
    /// Memory is to be kept for those who have nothing else, and there is none left: found out once for each frame.
    pub(super) pressed: bool,
    pub(super) full: bool,
}

impl Spill {
    /// Memory held, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.index.0.len() * ENTRY_BYTES + self.runs * size_of::<Run>()
    }
}

impl Board {
    /// Whether the next task of a lane goes to disk.
    #[inline]
    pub(super) fn spills(&self, lane: u32) -> bool {
        let lane = &self.lanes[lane as usize];
        lane.spilled > 0
            || self.spill.pressed && (lane.in_memory() >= self.limits.lane_tasks_min || self.spill.full)
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
            if last.records.1 == run.records.1 {
                last.seqs.1 = run.seqs.1;
                return;
            }
            if last.records.1 + 1 == run.records.0 && last.bytes + run.bytes <= RUN_BYTES {
                (last.records.1, last.seqs.1) = (run.records.1, run.seqs.1);
                last.bytes += run.bytes;
                return;
            }
        }
        lane.runs.push_back(run);
        self.spill.runs += 1;
        if !self.spill.lanes.contains(&at) {
            self.spill.lanes.push(at);
        }
    }

    /// The record handed over last is durable, at a position of the journal.
    pub fn recorded(&mut self, position: u64, bytes: usize) {
        for Spilled { lane, seqs } in self.commit.handed.drain(..) {
            self.spill.fresh.push((lane, Run { records: (position, position), seqs, bytes }));
        }
    }

    /// All of what was handed over is durable, so its tasks may be fetched.
    pub(super) fn release_runs(&mut self) {
        for (lane, run) in std::mem::take(&mut self.spill.fresh) {
            self.add_run(lane, run);
        }
    }

    /// What should be read from the journal now; [`Board::fetched`] is expected for each.
    pub fn want(&mut self) -> Option<Want> {
        if self.spill.lanes.is_empty() {
            return None;
        }
        let (pressed, full) = (self.memory_bytes() > self.limits.spill_bytes, self.is_full(0));
        let mut n = 0;
        while let Some(at) = self.spill.lanes.get(n).copied() {
            let lane = &mut self.lanes[at as usize];
            let needed = match lane.tasks.len {
                // What its workers hold will make room.
                0 if full => lane.in_line > 0 && self.queues[lane.queue as usize].running == 0,
                0 => !pressed || lane.in_line > 0,
                waiting => !pressed && waiting < self.limits.lane_tasks_min,
            };
            if lane.fetching || !needed {
                n += 1;
                continue;
            }
            while let Some(run) = lane.runs.front()
                && !self.spill.index.has_any(at, run.seqs.0..=run.seqs.1)
            {
                lane.runs.pop_front(); // all cancelled
                self.spill.runs -= 1;
            }
            let Some(run) = lane.runs.front() else {
                self.spill.lanes.swap_remove(n);
                continue;
            };
            lane.fetching = true;
            return Some(Want { lane: at, first: run.records.0, last: run.records.1 });
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
        let mut room = self.room_to_fetch();
        let lane = &mut self.lanes[want.lane as usize];
        lane.fetching = false;
        let queue = lane.queue;
        let Some(run) = lane.runs.front().copied() else { return Ok(()) };
        for record in records {
            ops::read(record, |_, decision| match decision {
                Decision::Submit { spilled: true, seq, ext, payload, .. } if room > 0 => {
                    room -= self.fetch(want.lane, seq, ext, payload)? as isize;
                    Some(())
                }
                _ => Some(()),
            })?;
        }
        self.mark_dirty(queue);
        if room > 0 && self.spill.index.has_any(want.lane, run.seqs.0..=run.seqs.1) {
            return Err(SpillError::Lost { first: want.first, last: want.last });
        }
        Ok(()) // a run of which nothing is left goes before the next is wanted
    }

    /// How much a fetch may bring in before it stops, bytes: all of it while there is plenty.
    fn room_to_fetch(&self) -> isize {
        let held = self.memory_bytes();
        if held <= self.limits.spill_bytes {
            return isize::MAX;
        }
        let free = self.limits.memory_bytes_max.saturating_sub(held + self.elsewhere);
        (free / FETCH_SHARE).max(FETCH_BYTES_MIN) as isize
    }

    /// Whether tasks may go to disk: their index takes memory, too.
    pub(super) fn may_spill(&self) -> bool {
        self.limits.spill_bytes < usize::MAX && {
            let most = self.limits.memory_bytes_max;
            self.memory_bytes() + self.elsewhere <= most.saturating_add(most / BEYOND_SHARE)
        }
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
        let waited = self.waits.has(seq);
        let r = &mut self.table[slot];
        if planted::is("spilled_watcher_lost") {
            r.watcher = SessionId(0);
        }
        *r = Record { blob, ext_len, attempts_max, waited, fetched: true, ..*r };
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
        let waited = self.waits.has(seq);
        let record = Record { lane, watcher, waited, state: TaskState::Waiting, ..Record::EMPTY };
        Some(self.table.insert(seq, record))
    }

    /// The runs as they are now, by lane, as far as something is left of them.
    pub(super) fn all_runs(&self) -> Vec<(u32, Run)> {
        let lanes = self.spill.lanes.iter().map(|at| (*at, &self.lanes[*at as usize].runs));
        let runs = lanes.flat_map(|(at, runs)| runs.iter().map(move |run| (at, *run)));
        runs.filter(|(at, run)| self.spill.index.has_any(*at, run.seqs.0..=run.seqs.1)).collect()
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
