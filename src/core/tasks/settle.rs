//! What workers say about tasks that they hold.

use hive_proto::error::Code;
use hive_proto::items::{
    Complete, DELAY_BY_POLICY, Fail, Progress, Progressed, Refused, Release, RevokeReason, Revoked,
};
use hive_proto::{Lease, SessionId, TaskId, TaskState};

use super::arena::Blob;
use super::table::Slot;
use super::{Board, TaskSink};
use crate::core::time::Tick;
use crate::planted;

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
        self.settle(
            from,
            request,
            items,
            sink,
            true,
            |c| c.lease,
            |board, slot, item, sink| {
                board.unlease(slot);
                let r = &board.table[slot];
                board.payloads.free(r.blob);
                if board.is_durable(slot) {
                    board.log_result(slot, &item);
                }
                let blob = board.results.put([item.result, &[]]);
                let queue = board.queue_of(slot);
                board.queues[queue as usize].completed += 1;
                board.counters.completed += 1;
                board.finish(now, slot, TaskState::Completed, blob, sink);
            },
        );
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
        self.settle(
            from,
            request,
            items,
            sink,
            true,
            |f| f.lease,
            |board, slot, item, sink| {
                board.unlease(slot);
                board.counters.failed += 1;
                let delay = (item.delay_ms != DELAY_BY_POLICY).then_some(item.delay_ms);
                if item.permanent {
                    board.bury(slot, item.error, sink);
                } else {
                    let policy = board.queues[board.queue_of(slot) as usize].policy.retry_delay_ms;
                    board.put_back_or_bury(now, slot, Some(item.error), Some(delay.unwrap_or(policy)), sink);
                }
            },
        );
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
        self.settle(
            from,
            request,
            items,
            sink,
            true,
            |r| r.lease,
            |board, slot, item, sink| {
                board.unlease(slot);
                let delay_ms = (!planted::is("release_at_once")).then_some(item.delay_ms);
                board.put_back_or_bury(now, slot, None, delay_ms, sink);
            },
        );
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
        self.settle(
            from,
            request,
            items,
            sink,
            false,
            |l| *l,
            |board, slot, _, _| {
                let r = &board.table[slot];
                let (lane, owner) = (r.lane, r.owner);
                let queue = board.lanes[lane as usize].queue;
                let lease_ms = board.queues[queue as usize].policy.lease_ms;
                if let Some(c) = &mut board.consumers[owner as usize] {
                    board.table[slot].deadline = c.lease_until(now, lease_ms, &board.table);
                    c.leases.remove(&mut board.table, slot);
                    c.leases.push_back(&mut board.table, slot);
                }
            },
        );
    }

    /// Progress, told to the submitter if it watches.
    pub fn progress<'a>(
        &mut self,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = Progress<'a>>,
        sink: &mut impl TaskSink,
    ) {
        self.settle(
            from,
            request,
            items,
            sink,
            false,
            |p| p.lease,
            |board, slot, item, sink| {
                let r = &board.table[slot];
                if r.watcher != SessionId(0) {
                    let (task, attempt) = (item.lease.task, r.attempt);
                    sink.progressed(
                        r.watcher,
                        Progressed { task, attempt, value: item.value, note: item.note },
                    );
                }
            },
        );
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
        self.each_task(from, request, ids, sink, |board, task, sink| board.cancel_one(now, task, sink));
    }

    /// The frame of what is decided by task ids: each is judged by itself, the refused are told.
    pub(super) fn each_task<S: TaskSink>(
        &mut self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId>,
        sink: &mut S,
        mut apply: impl FnMut(&mut Self, TaskId, &mut S) -> Result<(), Code>,
    ) {
        self.refused.clear();
        let mut accepted = 0;
        for (index, task) in ids.enumerate() {
            match apply(self, task, sink) {
                Ok(()) => accepted += 1,
                Err(code) => {
                    self.refused.push(Refused { index: index as u16, code: code as u16, retry_after_ms: 0 });
                }
            }
        }
        self.answer(from, request, accepted, true, sink);
    }

    fn cancel_one(&mut self, now: Tick, task: TaskId, sink: &mut impl TaskSink) -> Result<(), Code> {
        let in_memory = self.find(task);
        let on_disk = || self.is_spilled(task).then(|| self.unspill(task.seq())).flatten();
        let slot = in_memory.or_else(on_disk).ok_or_else(|| self.why_not_there(task))?;
        let queue = self.queue_of(slot);
        let r = self.table[slot];
        match r.state {
            TaskState::Waiting if in_memory.is_none() => {}
            TaskState::Waiting => {
                self.leave_lane(slot);
                self.queues[queue as usize].waiting -= 1;
            }
            TaskState::Scheduled => self.queues[queue as usize].scheduled -= 1,
            TaskState::Running => {
                let lease = Lease { task, attempt: r.attempt, epoch: self.identity.epoch };
                sink.hold(false); // a worker may stop early, whatever becomes of the rest
                if let Some(c) = &self.consumers[r.owner as usize] {
                    sink.revoked(c.session, Revoked { lease, reason: RevokeReason::Cancelled });
                }
                self.unlease(slot);
            }
            _ => return Err(Code::AlreadySettled),
        }
        if r.state == TaskState::Scheduled { &mut self.delayed } else { &mut self.payloads }.free(r.blob);
        self.counters.cancelled += 1;
        let forgotten = planted::is("cancel_running_unjournaled") && r.state == TaskState::Running;
        let forgotten = forgotten || planted::is("spilled_cancel_lost") && in_memory.is_none();
        if self.queues[queue as usize].is_durable() && !forgotten {
            self.ops.cancel(task.seq());
        }
        self.finish(now, slot, TaskState::Cancelled, Blob::EMPTY, sink);
        if r.state == TaskState::Scheduled {
            self.timers.unschedule(&self.table);
        }
        Ok(())
    }

    /// The frame of every settlement: each item is judged by itself, the refused are told. `decides` says whether it may
    /// change what the journal has.
    #[inline]
    #[allow(clippy::too_many_arguments)] // the parts of one loop
    fn settle<T, S: TaskSink>(
        &mut self,
        from: SessionId,
        request: u32,
        items: impl Iterator<Item = T>,
        sink: &mut S,
        decides: bool,
        lease: impl Fn(&T) -> Lease,
        mut apply: impl FnMut(&mut Self, Slot, T, &mut S),
    ) {
        self.refused.clear();
        let (mut accepted, mut durable) = (0, false);
        for (index, item) in items.enumerate() {
            match self.held(from, lease(&item)) {
                Ok(slot) => {
                    durable |= self.is_durable(slot);
                    apply(self, slot, item, sink);
                    accepted += 1;
                }
                Err(Code::AlreadySettled) if planted::is("complete_twice") => accepted += 1,
                Err(code) => {
                    self.counters.stale += u64::from(code == Code::StaleLease);
                    self.refused.push(Refused { index: index as u16, code: code as u16, retry_after_ms: 0 });
                }
            }
        }
        self.answer(from, request, accepted, durable && decides, sink);
    }

    fn answer(
        &mut self,
        from: SessionId,
        request: u32,
        accepted: u16,
        durable: bool,
        sink: &mut impl TaskSink,
    ) {
        if request != 0 || !self.refused.is_empty() {
            self.hold(durable && !planted::is("settle_early"), sink);
            sink.settled(from, request, accepted, &self.refused);
        }
        sink.hold(false);
    }

    /// The running task of a lease, if the lease is valid and the session holds it.
    #[inline]
    fn held(&self, from: SessionId, lease: Lease) -> Result<Slot, Code> {
        let slot = self.find(lease.task).ok_or_else(|| self.why_not_there(lease.task))?;
        let r = &self.table[slot];
        let same_attempt = r.attempt == lease.attempt || planted::is("stale_attempt");
        let same_epoch = lease.epoch == self.identity.epoch || planted::is("stale_epoch");
        if r.state.is_final() && same_attempt && same_epoch {
            return Err(Code::AlreadySettled);
        }
        if r.state != TaskState::Running || !same_attempt || !same_epoch {
            return Err(Code::StaleLease);
        }
        match &self.consumers[r.owner as usize] {
            Some(c) if c.session == from || planted::is("other_session") => Ok(slot),
            _ => Err(Code::NotOwner),
        }
    }

    /// Why a task is not where it could be settled.
    #[cold]
    fn why_not_there(&self, task: TaskId) -> Code {
        if self.is_archived(task) { Code::AlreadySettled } else { Code::UnknownTask }
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
}
