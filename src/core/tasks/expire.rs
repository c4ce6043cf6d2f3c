//! What time does: leases expire, delays end, results and waits go.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hive_proto::items::{RevokeReason, Revoked};
use hive_proto::{Lease, TaskId, TaskState};

use super::assign::Consumer;
use super::table::{Slot, Table};
use super::{Board, TaskSink};
use crate::core::time::Tick;

/// Entries without a reason that are not worth a sweep.
const SWEEP_MIN: usize = 1024;

/// Deadlines, the next first. Entries are not taken out when their reason goes; they are recognised when they come up.
///
/// Leases cost nothing here: a consumer's leases are a list sorted by deadline, and only the consumer has an entry (for
/// a deadline that is not later than its first lease's). One entry a lease would hold every task of the last 30 s.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    pub(super) leases: BinaryHeap<Reverse<(Tick, u32, u32)>>,
    pub(super) scheduled: BinaryHeap<Reverse<(Tick, u64, Slot)>>,
    /// Entries of `scheduled` whose task was cancelled.
    pub(super) stale: usize,
    generation: u32,
}

impl Timers {
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    pub(crate) fn lease(&mut self, at: Tick, consumer: u32, generation: u32) {
        self.leases.push(Reverse((at, consumer, generation)));
    }

    /// Drops the entries of consumers that are gone, once they are the greater part.
    pub(crate) fn sweep_leases(&mut self, consumers: &[Option<Consumer>], free: usize) {
        if self.leases.len() > SWEEP_MIN && self.leases.len() > 2 * (consumers.len() - free) {
            let alive = |h: u32, g: u32| consumers[h as usize].as_ref().is_some_and(|c| c.generation == g);
            self.leases.retain(|Reverse((_, h, g))| alive(*h, *g));
        }
    }

    /// Memory held for tasks with a delay, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.scheduled.len() * size_of::<(Tick, u64, Slot)>()
    }

    pub(crate) fn schedule(&mut self, at: Tick, slot: Slot, seq: u64) {
        self.scheduled.push(Reverse((at, seq, slot)));
    }

    /// A scheduled task was cancelled. Entries of such tasks are dropped once they are the greater part.
    pub(crate) fn unschedule(&mut self, table: &Table) {
        self.stale += 1;
        if self.stale > SWEEP_MIN && self.stale > self.scheduled.len() / 2 {
            self.scheduled.retain(|Reverse((at, seq, slot))| is_scheduled(table, *at, *seq, *slot));
            self.stale = 0;
        }
    }
}

/// Whether an entry of `scheduled` still means its task.
pub(super) fn is_scheduled(table: &Table, at: Tick, seq: u64, slot: Slot) -> bool {
    table.find(seq) == Some(slot) && table[slot].state == TaskState::Scheduled && table[slot].deadline == at
}

impl Board {
    /// When [`Board::on_deadline`] or [`Board::expire_leases`] has something to do, at the earliest.
    pub fn next_deadline(&self) -> Option<Tick> {
        let lease = self.timers.leases.peek().map(|Reverse((at, ..))| *at);
        let scheduled = self.timers.scheduled.peek().map(|Reverse((at, ..))| *at);
        let result = (self.done.len > 0).then(|| self.table[self.done.head].deadline);
        [lease, scheduled, result, self.waits.next_deadline(), self.archive.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due, of results that may go a bounded part: the rest stays due. Follow it with [`Board::pump`].
    pub fn on_deadline(&mut self, now: Tick, sink: &mut impl TaskSink) {
        self.wake_scheduled(now);
        self.waits_expire(now, sink);
        self.forget_due(now);
    }

    /// Takes tasks back whose workers did not settle or renew them in time.
    pub fn expire_leases(&mut self, now: Tick, sink: &mut impl TaskSink) {
        let mut expired = Vec::new();
        while let Some(Reverse((at, handle, generation))) = self.timers.leases.peek().copied()
            && at <= now
        {
            self.timers.leases.pop();
            while let Some(c) =
                self.consumers[handle as usize].as_mut().filter(|c| c.generation == generation)
            {
                let slot = c.leases.head;
                if slot == Slot::NONE {
                    c.timed = false;
                    break;
                }
                let deadline = self.table[slot].deadline;
                if deadline > now {
                    self.timers.lease(deadline, handle, generation);
                    break;
                }
                let session = c.session;
                let attempt = self.table[slot].attempt;
                let partition = self.queues[c.queue as usize].partition;
                let task = TaskId::new(partition, self.table.seq(slot));
                let lease = Lease { task, attempt, epoch: self.identity.epoch };
                sink.revoked(session, Revoked { lease, reason: RevokeReason::Expired });
                self.counters.expired += 1;
                self.unlease(slot);
                expired.push(slot);
            }
        }
        self.put_back_in_order(now, expired, "the lease expired", sink);
    }

    fn wake_scheduled(&mut self, now: Tick) {
        while let Some(Reverse((at, seq, slot))) = self.timers.scheduled.peek().copied()
            && at <= now
        {
            self.timers.scheduled.pop();
            if !is_scheduled(&self.table, at, seq, slot) {
                self.timers.stale = self.timers.stale.saturating_sub(1);
                continue;
            }
            let queue = self.queue_of(slot);
            let r = &mut self.table[slot];
            let stream = &mut self.lanes[r.lane as usize].stream;
            r.blob = self.delayed.hand_over_in(r.blob, &mut self.payloads, stream);
            r.state = TaskState::Waiting;
            self.enter_lane(slot);
            let q = &mut self.queues[queue as usize];
            q.scheduled -= 1;
            q.waiting += 1;
            self.mark_dirty(queue);
        }
    }
}
