//! A board made from its journal.

use hashbrown::HashMap;
use hive_proto::items::{Assign, Progressed, Refused, Revoked, Task};
use hive_proto::{SessionId, TaskId, TaskState, WireError, ids::Durability};

use super::arena::Blob;
use super::ops::{self, BadRecord, Decision, Labels, Whole};
use super::outcome::End;
use super::spill::{Run, ranges};
use super::table::{Record, Slot};
use super::{Board, Counters, TaskSink};
use crate::core::time::Tick;
use crate::planted;

/// Applies records of the journal to an empty board.
#[derive(Debug)]
pub struct Replay {
    board: Board,
    /// Lanes by their numbers in the incarnation whose records are read.
    lanes: HashMap<u32, u32>,
    epoch: u32,
    /// Of the records that are read.
    current: u32,
    time: Tick,
    watchers_from: u32,
    needs: Vec<(u64, u64)>,
}

impl Replay {
    /// Begins with an empty board. Sessions that submitted may still be there, and are told outcomes, if the record
    /// is of epoch `watchers_from` or later: of this very process.
    pub fn new(mut board: Board, watchers_from: u32) -> Self {
        board.set_durable_below(u64::MAX);
        board.archive.replaying = true;
        let (lanes, needs) = Default::default();
        Self { board, lanes, epoch: 0, current: 0, time: Tick::ZERO, watchers_from, needs }
    }

    /// Applies one record. Records come in their order, each with its position in the journal; those of a snapshot come first
    /// and have none.
    ///
    /// # Errors
    /// The record is not one of this version.
    pub fn apply(&mut self, record: &[u8], position: u64) -> Result<(), BadRecord> {
        self.board.archive.last = self.board.archive.last.max(position);
        self.board.archive.replayed = position as u32;
        ops::read(record, |time, decision| {
            self.time = self.time.max(time);
            self.decide(decision, (position, record.len()))
        })?;
        self.board.ops.clear(); // what is read is in the journal already
        // What was forgotten then is forgotten now, so that memory holds what it held.
        self.board.forget_due(self.time);
        Ok(())
    }

    /// The snapshot has been read, records follow.
    pub fn snapshot_read(&mut self) {
        self.board.sort_done();
        self.board.archive.sort();
        self.needs = ranges(&self.board.all_runs());
    }

    /// Records before the snapshot that it needs, as ranges of positions, ascending.
    pub fn snapshot_needs(&self) -> &[(u64, u64)] {
        &self.needs
    }

    /// Highest epoch in the records; the next board must have a higher one.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Time of the last record: time goes on from here.
    pub fn time(&self) -> Tick {
        self.time
    }

    /// The board, ready to go on under `epoch` and with sequences from `first_seq` at the least.
    pub fn finish(self, epoch: u32, first_seq: u64) -> Board {
        let mut board = self.board;
        board.identity.epoch = epoch;
        (board.archive.replaying, board.archive.replayed) = (false, 0);
        board.table.reopen(first_seq);
        board.set_durable_below(board.next_seq());
        board.sort_done();
        board.archive.sort();
        board.bound_archive();
        board.counters = Counters::default();
        board.announce(epoch);
        board
    }

    /// `record` is its position and its length.
    fn decide(&mut self, decision: Decision<'_>, record: (u64, usize)) -> Option<()> {
        let time = self.time;
        let skipped = match decision {
            Decision::Complete { .. } => planted::is("skip_complete"),
            Decision::Cancel { .. } => planted::is("skip_cancel"),
            Decision::Bury { .. } => planted::is("skip_bury"),
            Decision::Retry { .. } => planted::is("skip_retry"),
            _ => false,
        };
        if skipped {
            return Some(());
        }
        match decision {
            // What keeps its payload is written down whole when it was on disk.
            Decision::Bury { seq, .. } | Decision::Retry { seq, .. }
                if self.board.spill.index.find(seq).is_some() =>
            {
                return None;
            }
            Decision::Epoch(epoch) => {
                (self.epoch, self.current) = (self.epoch.max(epoch), epoch);
                self.lanes.clear();
            }
            Decision::Lane { lane, queue, labels } => {
                let labels = if planted::is("labels_lost") { Labels::NONE } else { labels };
                let at = self.board.restore_lane(queue, labels)?;
                self.lanes.insert(lane, at);
            }
            Decision::Count { lane, completed } => {
                let queue = self.board.lanes[*self.lanes.get(&lane)? as usize].queue;
                let q = &mut self.board.queues[queue as usize];
                q.completed = q.completed.max(completed);
            }
            Decision::Submit { lane, watcher, seq, spilled: true, .. } => {
                let lane = *self.lanes.get(&lane)?;
                let watcher = self.watcher(watcher);
                self.board.restore_spilled(lane, watcher, seq, record);
            }
            Decision::Bits { page, .. } if page >= u64::MAX / 64 => return None,
            Decision::Bits { lane, watcher, page, mask } => {
                let lane = *self.lanes.get(&lane)?;
                let watcher = self.watcher(watcher);
                let mask = self.board.unknown_of(page, mask);
                self.board.add_spilled(lane, watcher, page, mask);
            }
            Decision::Outcomes { page, .. } if page >= u64::MAX / 64 => return None,
            Decision::Outcomes { lane, page, mask, until, records } => {
                let queue = self.board.lanes[*self.lanes.get(&lane)? as usize].queue;
                let places = (0..64).filter(|n| mask & 1 << n != 0);
                for (n, record) in places.zip(records.of(mask.count_ones() as usize)) {
                    self.board.restore_archived(page * 64 + n, queue, until, record);
                }
            }
            Decision::Run { lane, run } => self.board.add_run(*self.lanes.get(&lane)?, run),
            Decision::Submit { lane, watcher, seq, due, ext, payload, .. } => {
                let lane = *self.lanes.get(&lane)?;
                let watcher = self.watcher(watcher);
                let due = due.filter(|_| !planted::is("due_at_once"));
                let ext = if planted::is("options_lost") { &[] } else { ext };
                let lost = usize::from(planted::is("payload_garbled"));
                let payload = &payload[..payload.len().saturating_sub(lost)];
                self.board.restore_submit(lane, watcher, seq, due, ext, payload)?;
                if planted::is("task_doubled") {
                    self.board.restore_submit(lane, watcher, seq + (1 << 40), due, ext, payload)?;
                }
            }
            Decision::Task(whole) => {
                let lane = *self.lanes.get(&whole.lane)?;
                let watcher = self.watcher(whole.watcher);
                self.board.restore_task(lane, watcher, &whole)?;
            }
            Decision::Complete { lane, completed, seq, attempt, result } => {
                let queue = self.board.lanes[*self.lanes.get(&lane)? as usize].queue;
                let q = &mut self.board.queues[queue as usize];
                q.completed = q.completed.max(completed);
                self.board.restore_result(time, seq, attempt, result);
            }
            Decision::Cancel { seq } => match self.board.detach_any(seq) {
                Some(slot) => {
                    self.board.free_payload(slot);
                    self.board.finish(time, slot, TaskState::Cancelled, Blob::EMPTY, &mut Nobody);
                }
                None => self.board.is_recorded(seq, self.board.archive.replayed),
            },
            Decision::Redrive { seq } => self.board.if_dead(seq, Board::revive),
            Decision::Purge { seq } => self.board.if_dead(seq, Board::forget_dead),
            Decision::Bury { seq, attempt, failed, error } => {
                let error = if planted::is("error_lost") { "" } else { error };
                self.board.is_dead(seq, (attempt, failed), error);
            }
            Decision::Retry { seq, attempt, failed, due, error } => {
                let failed = if planted::is("forget_failures") { 0 } else { failed };
                let due = due.filter(|_| !planted::is("retry_at_once"));
                self.board.comes_back(seq, (attempt, failed), due, error);
            }
        }
        Some(())
    }

    fn watcher(&self, session: u32) -> SessionId {
        let keep = self.current >= self.watchers_from || planted::is("watchers_of_before");
        SessionId(if keep && !planted::is("watchers_lost") { session } else { 0 })
    }
}

impl Board {
    fn restore_lane(&mut self, queue: &str, labels: Labels<'_>) -> Option<u32> {
        hive_proto::names::queue(queue.as_bytes()).ok()?;
        let at = match self.by_name.get(queue) {
            Some(at) => *at,
            None => self.create(queue),
        };
        // Its tasks are in the journal, whatever is configured now: else what becomes of them would be forgotten.
        self.queues[at as usize].policy.durability = Durability::Journal;
        let labels: Vec<String> = labels.iter().map(str::to_owned).collect();
        Some(self.lane_or_new(at, labels.into()))
    }

    fn restore_submit(
        &mut self,
        lane: u32,
        watcher: SessionId,
        seq: u64,
        due: Option<Tick>,
        ext: &[u8],
        payload: &[u8],
    ) -> Option<()> {
        if self.table.find(seq).is_some() || self.archive.has(seq) {
            return Some(()); // the snapshot has it
        }
        let attempts_max = self.attempts_max(lane, ext)?;
        let ext_len = u16::try_from(ext.len()).ok()?;
        let blob = self.payloads.put_in(&mut self.lanes[lane as usize].stream, [ext, payload]);
        let record = Record { blob, lane, watcher, ext_len, attempts_max, ..Record::EMPTY };
        let slot = self.table.insert(seq, record);
        self.place(slot, due, End::Back);
        Some(())
    }

    fn restore_spilled(&mut self, lane: u32, watcher: SessionId, seq: u64, (at, bytes): (u64, usize)) {
        if self.has_no_place(seq) {
            self.add_spilled(lane, watcher, seq / 64, 1 << (seq % 64));
            self.add_run(lane, Run { records: (at, at), seqs: (seq, seq), bytes, left: 1 });
        }
    }

    /// Those of 64 sequences that have no place yet.
    fn unknown_of(&self, page: u64, mask: u64) -> u64 {
        let unknown = |n: &u64| self.has_no_place(page * 64 + *n);
        (0..64).filter(|n| mask & 1 << n != 0).filter(unknown).fold(0, |mask, n| mask | 1 << n)
    }

    /// Whether a task is not known: a snapshot may have it, in memory or on disk.
    fn has_no_place(&self, seq: u64) -> bool {
        self.table.find(seq).is_none() && self.spill.index.find(seq).is_none() && !self.archive.has(seq)
    }

    /// The outcome of a task is in the journal. The snapshot may have it as it was earlier, waiting.
    fn restore_archived(&mut self, seq: u64, queue: u32, until: Tick, record: u64) {
        if let Some(slot) = self.detach_any(seq) {
            self.free_payload(slot);
            self.drop_error(slot);
            self.table.remove(slot);
        }
        if self.table.find(seq).is_none() {
            self.archive.add(seq, queue, until, record);
            self.table.seen(seq);
        }
    }

    fn restore_task(&mut self, lane: u32, watcher: SessionId, w: &Whole<'_>) -> Option<()> {
        if usize::from(w.ext_len) > w.bytes.len() {
            return None;
        }
        let due = (w.state == TaskState::Scheduled).then_some(w.time);
        if self.table.find(w.seq).is_some() || self.archive.has(w.seq) {
            // It was on disk and came back to its queue; the snapshot or an earlier record has it in memory already.
            match w.state {
                TaskState::Dead => self.is_dead(w.seq, (w.attempt, w.failed), w.error),
                _ => self.comes_back(w.seq, (w.attempt, w.failed), due, w.error),
            }
            return Some(());
        }
        if let Some(slot) = self.unspill(w.seq) {
            self.table.remove(slot);
        }
        let record = Record {
            lane,
            watcher,
            attempt: w.attempt,
            failed: w.failed,
            attempts_max: w.attempts_max,
            ext_len: w.ext_len,
            fetched: w.fetched,
            deadline: w.time,
            ..Record::EMPTY
        };
        let slot = self.table.insert(w.seq, record);
        if !w.error.is_empty() {
            self.keep_error(slot, w.error);
        }
        match w.state {
            TaskState::Waiting | TaskState::Scheduled => {
                let stream = &mut self.lanes[lane as usize].stream;
                self.table[slot].blob = self.payloads.put_in(stream, [w.bytes, &[]]);
                self.place(slot, due, End::Back);
            }
            TaskState::Dead => {
                let stream = &mut self.lanes[lane as usize].stream;
                self.table[slot].blob = self.payloads.put_in(stream, [w.bytes, &[]]);
                self.lay_down(slot, w.error, &mut Nobody);
            }
            TaskState::Completed | TaskState::Cancelled => {
                let blob = self.results.put([w.bytes, &[]]);
                self.keep(slot, w.state, blob, w.time);
                self.table[slot].owner = w.record as u32;
                self.archive.last = self.archive.last.max(w.record);
            }
            _ => return None,
        }
        Some(())
    }

    /// An attempt ended, and the task goes back to its queue. Nothing if it has its outcome already.
    fn comes_back(&mut self, seq: u64, (attempt, failed): (u32, u16), due: Option<Tick>, error: &str) {
        let Some(slot) = self.detach(seq) else { return };
        (self.table[slot].attempt, self.table[slot].failed) = (attempt, failed);
        if !error.is_empty() {
            self.keep_error(slot, error);
        }
        self.place(slot, due, End::Back);
    }

    /// The last attempt ended.
    fn is_dead(&mut self, seq: u64, (attempt, failed): (u32, u16), error: &str) {
        let Some(slot) = self.detach(seq) else { return };
        (self.table[slot].attempt, self.table[slot].failed) = (attempt, failed);
        self.lay_down(slot, error, &mut Nobody);
    }

    fn restore_result(&mut self, time: Tick, seq: u64, attempt: u32, result: &[u8]) {
        let Some(slot) = self.detach_any(seq) else {
            // The snapshot has the outcome, and may not know its record.
            return self.is_recorded(seq, self.archive.replayed);
        };
        self.table[slot].attempt = attempt;
        self.free_payload(slot);
        let blob = self.results.put([result, &[]]);
        self.finish(time, slot, TaskState::Completed, blob, &mut Nobody);
    }

    /// The same for a task that may be on disk, whose payload is not needed any more.
    fn detach_any(&mut self, seq: u64) -> Option<Slot> {
        self.detach(seq).or_else(|| self.unspill(seq))
    }

    /// Takes a task that has no outcome out of its place; its payload is among those of waiting tasks.
    fn detach(&mut self, seq: u64) -> Option<Slot> {
        let slot = self.table.find(seq)?;
        let queue = self.queue_of(slot) as usize;
        match self.table[slot].state {
            TaskState::Waiting => {
                self.leave_lane(slot);
                self.queues[queue].waiting -= 1;
            }
            TaskState::Scheduled => {
                let r = &mut self.table[slot];
                let stream = &mut self.lanes[r.lane as usize].stream;
                r.blob = self.delayed.hand_over_in(r.blob, &mut self.payloads, stream);
                r.state = TaskState::Waiting;
                self.queues[queue].scheduled -= 1;
                self.timers.unschedule(&self.table);
            }
            _ => return None,
        }
        Some(slot)
    }

    fn free_payload(&mut self, slot: Slot) {
        let blob = std::mem::replace(&mut self.table[slot].blob, Blob::EMPTY);
        self.payloads.free(blob);
    }
}

/// Nobody listens.
struct Nobody;

impl TaskSink for Nobody {
    fn accepted(&mut self, _: SessionId, _: u32, _: TaskId, _: u16, _: Durability, _: &[Refused]) {}
    fn error(&mut self, _: SessionId, _: u32, _: WireError) {}
    fn ok(&mut self, _: SessionId, _: u32) {}
    fn assign(&mut self, _: SessionId, _: u32, _: Assign<'_>) -> bool {
        true
    }
    fn settled(&mut self, _: SessionId, _: u32, _: u16, _: &[Refused]) {}
    fn outcome(&mut self, _: SessionId, _: Task<'_>) {}
    fn progressed(&mut self, _: SessionId, _: Progressed<'_>) {}
    fn revoked(&mut self, _: SessionId, _: Revoked) {}
    fn tasks<'a>(&mut self, _: SessionId, _: u32, _: impl Iterator<Item = Task<'a>>) {}
    fn hold(&mut self, _: bool) {}
}
