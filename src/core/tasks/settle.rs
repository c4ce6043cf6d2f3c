//! What workers say about tasks that they hold.

use hive_proto::error::Code;
use hive_proto::items::{Complete, DELAY_BY_POLICY, Fail, Progress, Progressed, Refused, Release, RevokeReason, Revoked, Task};
use hive_proto::{Lease, SessionId, TaskId, TaskState};

use super::arena::Blob;
use super::table::Slot;
use super::{Board, TaskSink};
use crate::core::time::Tick;

/// What a result costs besides its bytes: its record and its place.
pub(crate) const RESULT_OVERHEAD: usize = 64;
/// Error text kept of a failure, bytes.
const ERROR_BYTES_MAX: usize = 4096;

impl Board {
    /// Results. The first one for a valid lease counts; anything later is refused.
    pub fn complete<'a>(
        &mut self,
        now: Tick,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = Complete<'a>>,
        sink: &mut impl TaskSink,
    ) {
        self.settle(from, request, items, sink, |c| c.lease, |board, slot, item, sink| {
            board.unlease(slot);
            let payload = board.table[slot].blob;
            board.payloads.free(payload);
            let blob = board.results.put([item.result, &[]]);
            let queue = board.queue_of(slot);
            board.queues[queue as usize].completed += 1;
            board.counters.completed += 1;
            board.finish(now, slot, TaskState::Completed, blob, sink);
        });
    }

    /// Failures: back to the queue, or to the dead letters.
    pub fn fail<'a>(
        &mut self,
        now: Tick,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = Fail<'a>>,
        sink: &mut impl TaskSink,
    ) {
        self.settle(from, request, items, sink, |f| f.lease, |board, slot, item, sink| {
            board.unlease(slot);
            board.counters.failed += 1;
            let delay = (item.delay_ms != DELAY_BY_POLICY).then_some(item.delay_ms);
            if item.permanent {
                board.bury(slot, item.error, sink);
            } else {
                let policy = board.queues[board.queue_of(slot) as usize].policy.retry_delay_ms;
                board.put_back_or_bury(now, slot, Some(item.error), Some(delay.unwrap_or(policy)), sink);
            }
        });
    }

    /// Tasks given back; the attempt does not count.
    pub fn release(
        &mut self,
        now: Tick,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = Release>,
        sink: &mut impl TaskSink,
    ) {
        self.settle(from, request, items, sink, |r| r.lease, |board, slot, item, sink| {
            board.unlease(slot);
            board.put_back_or_bury(now, slot, None, Some(item.delay_ms), sink);
        });
    }

    /// Leases made longer, from now.
    pub fn renew(
        &mut self,
        now: Tick,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = Lease>,
        sink: &mut impl TaskSink,
    ) {
        self.settle(from, request, items, sink, |l| *l, |board, slot, _, _| {
            let r = &board.table[slot];
            let (lane, owner) = (r.lane, r.owner);
            let queue = board.lanes[lane as usize].queue;
            let lease_ms = board.queues[queue as usize].policy.lease_ms;
            if let Some(c) = &mut board.consumers[owner as usize] {
                board.table[slot].deadline = c.lease_until(now, lease_ms, &board.table);
                c.leases.remove(&mut board.table, slot);
                c.leases.push_back(&mut board.table, slot);
            }
        });
    }

    /// Progress, told to the submitter if it watches.
    pub fn progress<'a>(
        &mut self,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = Progress<'a>>,
        sink: &mut impl TaskSink,
    ) {
        self.settle(from, request, items, sink, |p| p.lease, |board, slot, item, sink| {
            let r = &board.table[slot];
            if r.watcher != SessionId(0) {
                let (task, attempt) = (item.lease.task, r.attempt);
                sink.progressed(r.watcher, Progressed { task, attempt, value: item.value, note: item.note });
            }
        });
    }

    /// Cancels tasks: waiting ones at once; of running ones the lease is void and the worker is told.
    pub fn cancel(
        &mut self,
        now: Tick,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId>,
        sink: &mut impl TaskSink,
    ) {
        self.refused.clear();
        let mut accepted = 0;
        for (index, task) in ids.enumerate() {
            match self.cancel_one(now, task, sink) {
                Ok(()) => accepted += 1,
                Err(code) => self.refused.push(Refused { index: index as u16, code: code as u16, retry_after_ms: 0 }),
            }
        }
        self.answer(from, request, accepted, sink);
    }

    fn cancel_one(&mut self, now: Tick, task: TaskId, sink: &mut impl TaskSink) -> Result<(), Code> {
        let slot = self.find(task).ok_or(Code::UnknownTask)?;
        let queue = self.queue_of(slot);
        let r = self.table[slot];
        match r.state {
            TaskState::Waiting => {
                self.lanes[r.lane as usize].tasks.remove(&mut self.table, slot);
                self.queues[queue as usize].waiting -= 1;
            }
            TaskState::Scheduled => self.queues[queue as usize].scheduled -= 1,
            TaskState::Running => {
                let lease = Lease { task, attempt: r.attempt, epoch: self.identity.epoch };
                if let Some(c) = &self.consumers[r.owner as usize] {
                    sink.revoked(c.session, Revoked { lease, reason: RevokeReason::Cancelled });
                }
                self.unlease(slot);
            }
            _ => return Err(Code::AlreadySettled),
        }
        self.payloads.free(r.blob);
        self.counters.cancelled += 1;
        self.finish(now, slot, TaskState::Cancelled, Blob::EMPTY, sink);
        if r.state == TaskState::Scheduled {
            self.timers.unschedule(&self.table);
        }
        Ok(())
    }

    /// The frame of every settlement: each item is judged by itself, the refused are told.
    #[inline]
    fn settle<T, S: TaskSink>(
        &mut self,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = T>,
        sink: &mut S,
        lease: impl Fn(&T) -> Lease,
        mut apply: impl FnMut(&mut Self, Slot, T, &mut S),
    ) {
        self.refused.clear();
        let mut accepted = 0;
        for (index, item) in items.enumerate() {
            match self.held(from, lease(&item)) {
                Ok(slot) => {
                    apply(self, slot, item, sink);
                    accepted += 1;
                }
                Err(code) => {
                    self.counters.stale += u64::from(code == Code::StaleLease);
                    self.refused.push(Refused { index: index as u16, code: code as u16, retry_after_ms: 0 });
                }
            }
        }
        self.answer(from, request, accepted, sink);
    }

    fn answer(&mut self, from: SessionId, request: u32, accepted: u16, sink: &mut impl TaskSink) {
        if request != 0 || !self.refused.is_empty() {
            sink.settled(from, request, accepted, &self.refused);
        }
    }

    /// The running task of a lease, if the lease is valid and the session holds it.
    #[inline]
    fn held(&self, from: SessionId, lease: Lease) -> Result<Slot, Code> {
        let slot = self.find(lease.task).ok_or(Code::UnknownTask)?;
        let r = &self.table[slot];
        if r.state.is_final() && r.attempt == lease.attempt && lease.epoch == self.identity.epoch {
            return Err(Code::AlreadySettled);
        }
        if r.state != TaskState::Running || r.attempt != lease.attempt || lease.epoch != self.identity.epoch {
            return Err(Code::StaleLease);
        }
        match &self.consumers[r.owner as usize] {
            Some(c) if c.session == from => Ok(slot),
            _ => Err(Code::NotOwner),
        }
    }

    #[inline]
    pub(crate) fn find(&self, task: TaskId) -> Option<Slot> {
        let slot = self.table.find(task.seq())?;
        // The partition is part of the id: a guessed one does not reach a task of another queue.
        (self.queues[self.queue_of(slot) as usize].partition == task.partition()).then_some(slot)
    }

    #[inline]
    pub(crate) fn queue_of(&self, slot: Slot) -> u32 {
        self.lanes[self.table[slot].lane as usize].queue
    }

    /// Takes a running task from its consumer, whose credit comes back.
    #[inline]
    pub(crate) fn unlease(&mut self, slot: Slot) {
        let (owner, bytes) = (self.table[slot].owner, self.table[slot].blob.len() as u64);
        let Some(c) = &mut self.consumers[owner as usize] else { return };
        c.leases.remove(&mut self.table, slot);
        c.held_bytes -= bytes;
        self.queues[c.queue as usize].running -= 1;
        if c.closed && c.leases.len == 0 {
            self.drop_consumer(owner);
        } else {
            self.offer(owner);
        }
    }

    /// Puts tasks that lost their worker back. The youngest goes first, so that the oldest ends up first in its lane.
    pub(crate) fn put_back_in_order(&mut self, now: Tick, mut tasks: Vec<Slot>, error: &str, sink: &mut impl TaskSink) {
        tasks.sort_unstable_by_key(|slot| std::cmp::Reverse(self.table.seq(*slot)));
        for slot in tasks {
            self.put_back_or_bury(now, slot, Some(error), None, sink);
        }
    }

    /// After an attempt that brought no result. The task is in no list. Without an error the attempt does not count.
    pub(crate) fn put_back_or_bury(
        &mut self,
        now: Tick,
        slot: Slot,
        error: Option<&str>,
        delay_ms: Option<u32>,
        sink: &mut impl TaskSink,
    ) {
        if let Some(text) = error {
            let r = &mut self.table[slot];
            r.failed = r.failed.saturating_add(1);
            if r.failed >= r.attempts_max {
                return self.bury(slot, text, sink);
            }
            self.keep_error(slot, text);
        }
        let queue = self.queue_of(slot);
        match delay_ms {
            Some(ms) if ms > 0 => {
                let due = now.plus_ms(u64::from(ms));
                self.table[slot].state = TaskState::Scheduled;
                self.table[slot].deadline = due;
                self.timers.schedule(due, slot, self.table.seq(slot));
                self.queues[queue as usize].scheduled += 1;
            }
            _ => {
                self.table[slot].state = TaskState::Waiting;
                let lane = self.table[slot].lane;
                self.lanes[lane as usize].tasks.push_front(&mut self.table, slot);
                self.queues[queue as usize].waiting += 1;
                self.mark_dirty(queue);
            }
        }
    }

    /// Keeps the text for those who ask, unless memory is full: workers must not fill it beyond its limit.
    fn keep_error(&mut self, slot: Slot, text: &str) {
        self.drop_error(slot);
        if text.is_empty() || self.memory_bytes() >= self.limits.memory_bytes_max {
            return;
        }
        let mut end = text.len().min(ERROR_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.error_bytes += end + RESULT_OVERHEAD;
        self.errors.insert(self.table.seq(slot), text[..end].into());
    }

    pub(crate) fn drop_error(&mut self, slot: Slot) {
        if !self.errors.is_empty()
            && let Some(old) = self.errors.remove(&self.table.seq(slot))
        {
            self.error_bytes -= old.len() + RESULT_OVERHEAD;
        }
    }

    fn bury(&mut self, slot: Slot, error: &str, sink: &mut impl TaskSink) {
        self.keep_error(slot, error);
        let blob = self.table[slot].blob;
        self.table[slot].blob = self.dead.put([self.payloads.get(blob), &[]]);
        self.payloads.free(blob);
        self.table[slot].state = TaskState::Dead;
        let queue = self.queue_of(slot);
        self.queues[queue as usize].dead.push_back(&mut self.table, slot);
        self.counters.dead += 1;
        self.tell(slot, sink);
    }

    /// Gives a task its outcome and keeps it for those who ask later. It is in no list and its payload is freed.
    #[inline]
    fn finish(&mut self, now: Tick, slot: Slot, state: TaskState, blob: Blob, sink: &mut impl TaskSink) {
        self.drop_error(slot);
        let r = &mut self.table[slot];
        r.state = state;
        r.blob = blob;
        r.deadline = now.plus_ms(self.limits.result_ms);
        self.done.push_back(&mut self.table, slot);
        self.done_bytes += blob.len() + RESULT_OVERHEAD;
        self.tell(slot, sink);
        while self.done_bytes > self.limits.results_bytes_max {
            self.forget_oldest();
        }
    }

    /// Pushes an outcome to whoever watches or waits.
    #[inline]
    fn tell(&mut self, slot: Slot, sink: &mut impl TaskSink) {
        let r = &self.table[slot];
        if r.watcher != SessionId(0) {
            sink.outcome(r.watcher, self.view(slot));
        }
        if r.waited {
            self.waits_hit(slot, sink);
        }
    }

    /// A task as clients see it.
    #[inline]
    pub(crate) fn view(&self, slot: Slot) -> Task<'_> {
        let r = &self.table[slot];
        let seq = self.table.seq(slot);
        let task = TaskId::new(self.queues[self.queue_of(slot) as usize].partition, seq);
        let payload = match r.state {
            TaskState::Completed => self.results.get(r.blob),
            TaskState::Dead => self.errors.get(&seq).map_or(&[][..], |e| e.as_bytes()),
            _ => &[],
        };
        Task { task, state: r.state, attempt: r.attempt, payload }
    }

    /// Forgets the outcome that is kept longest.
    pub(crate) fn forget_oldest(&mut self) {
        if let Some(slot) = self.done.pop_front(&mut self.table) {
            let blob = self.table[slot].blob;
            self.done_bytes -= blob.len() + RESULT_OVERHEAD;
            self.results.free(blob);
            self.table.remove(slot);
        }
    }
}
