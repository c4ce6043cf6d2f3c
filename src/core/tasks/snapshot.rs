//! The state of a board, written down while it goes on.
//!
//! A snapshot is taken in small steps between batches, so nobody waits for it; each task is written as it is when its turn
//! comes. What happened after the snapshot began is in the journal behind its position, and is replayed over it. That works because
//! every decision states what became of a task: applied to a task that was written later, it changes nothing.

use hive_proto::TaskState;

use super::Board;
use super::ops::{Ops, Whole};
use super::spill::{Bits, Run, ranges};
use super::table::Slot;
use crate::core::time::Tick;
use crate::planted;

/// Tasks looked at in one step, at most: those of memory queues add no bytes.
const STEP_TASKS: usize = 4096;

/// How far a snapshot has come.
#[derive(Debug)]
pub struct Snapshot {
    /// Pages of the table when it began. Later ones are in the journal.
    pages: Vec<u64>,
    next: usize,
    /// Records of the next page that have been written.
    place: usize,
    begun: bool,
    /// Lanes that have been written.
    lanes: usize,
    /// What was on disk when it began, and where. That comes first: what is fetched meanwhile is found once more among the pages,
    /// or not.
    bits: std::vec::IntoIter<Bits>,
    runs: std::vec::IntoIter<(u32, Run)>,
    needs: Vec<(u64, u64)>,
    /// The number of the next entry of the archive. They come last: an outcome that leaves the table meanwhile is among them.
    archived: u64,
    ops: Ops,
}

impl Snapshot {
    /// Records before the snapshot that it needs, as ranges of positions, ascending.
    pub fn needs(&self) -> &[(u64, u64)] {
        &self.needs
    }
}

impl Board {
    /// Begins a snapshot. It belongs to the position of the last committed record.
    pub fn begin_snapshot(&self) -> Snapshot {
        let runs = self.all_runs();
        Snapshot {
            needs: ranges(&runs),
            // What is not durable is in the records behind the snapshot.
            bits: match planted::is("bits_lost") {
                true => Vec::new(),
                false => self.spill.index.below(self.durable_below()),
            }
            .into_iter(),
            runs: runs.into_iter(),
            pages: self.table.page_numbers(),
            next: 0,
            place: 0,
            begun: false,
            lanes: 0,
            archived: 0,
            ops: Ops::new(self.limits.record_bytes),
        }
    }

    /// Writes down some more: about `bytes`, as records of which each follows its length (u32). `None` when there is nothing
    /// more; a step may give nothing (empty). The snapshot is whole once all that was decided until then is committed.
    pub fn snapshot_step(&self, s: &mut Snapshot, now: Tick, bytes: usize) -> Option<Vec<u8>> {
        if !std::mem::replace(&mut s.begun, true) {
            s.ops.epoch(self.identity.epoch);
        }
        // Pages that were there may have got tasks of lanes that were not.
        for at in s.lanes..self.lanes.len() {
            self.write_lane(at, &mut s.ops);
        }
        s.lanes = self.lanes.len();
        let mut looked = 0;
        for bits in s.bits.by_ref().take(STEP_TASKS) {
            s.ops.bits(bits);
            looked += 1;
        }
        for (lane, run) in s.runs.by_ref().take(STEP_TASKS - looked) {
            s.ops.run(lane, run);
            looked += 1;
        }
        while s.ops.bytes() < bytes && looked < STEP_TASKS {
            let Some(page) = s.pages.get(s.next) else { break };
            // Places stay what they are: a record that is gone meanwhile leaves its place empty.
            match self.table.slot_from(*page, s.place) {
                Some((slot, place)) => {
                    self.write_task(slot, &mut s.ops);
                    s.place = place + 1;
                    looked += 1;
                }
                None => {
                    (s.next, s.place) = (s.next + 1, 0);
                    looked += 1;
                }
            }
        }
        let all = s.next == s.pages.len() && !planted::is("archive_lost");
        while all && s.ops.bytes() < bytes && looked < STEP_TASKS {
            let Some((number, place, entry, records)) = self.archive.numbered(s.archived) else { break };
            let lane = self.queues[place.1 as usize].lanes[0];
            s.ops.outcomes(lane, place.0, entry.mask, entry.until, records);
            s.archived = number + 1;
            looked += 1;
        }
        // Pages of memory queues add nothing: go on with the next step.
        if s.ops.is_empty() && looked > 0 {
            return Some(Vec::new());
        }
        let mut out = Vec::with_capacity(s.ops.bytes() + 16);
        for record in s.ops.seal(now, Vec::new()) {
            out.extend_from_slice(&(record.body.len() as u32).to_le_bytes());
            out.extend_from_slice(&record.body);
        }
        (!out.is_empty()).then_some(out)
    }

    /// What the records behind the snapshot take for granted: lanes by their numbers, and what a queue has counted.
    fn write_lane(&self, at: usize, ops: &mut Ops) {
        let lane = &self.lanes[at];
        let queue = &self.queues[lane.queue as usize];
        if queue.is_durable() {
            ops.lane(at as u32, &queue.name, &lane.labels);
            if lane.labels.is_empty() {
                ops.count(at as u32, queue.completed);
            }
        }
    }

    fn write_task(&self, slot: Slot, ops: &mut Ops) {
        if !self.is_durable(slot) {
            return;
        }
        let (r, seq) = (&self.table[slot], self.table.seq(slot));
        let (state, arena) = match r.state {
            // Leases end with the process.
            TaskState::Waiting | TaskState::Running => (TaskState::Waiting, &self.payloads),
            TaskState::Scheduled => (r.state, &self.delayed),
            TaskState::Dead => (r.state, &self.dead),
            _ => (r.state, &self.results),
        };
        ops.task(&Whole {
            lane: r.lane,
            watcher: r.watcher.0,
            seq,
            state,
            attempt: r.attempt,
            failed: r.failed,
            attempts_max: r.attempts_max,
            time: if state == TaskState::Waiting { Tick::ZERO } else { r.deadline },
            error: self.errors.get(&seq).map_or("", |e| e),
            fetched: r.fetched,
            ext_len: if state.is_final() && state != TaskState::Dead { 0 } else { r.ext_len },
            bytes: arena.get(r.blob),
            record: if matches!(state, TaskState::Completed | TaskState::Cancelled) {
                self.record_of(slot)
            } else {
                0
            },
        });
    }
}
