//! How an attempt ends: back to the queue, among the dead letters, or with an outcome that is told and kept for a while.

use hive_proto::items::Task;
use hive_proto::{SessionId, TaskId, TaskState};

use super::arena::Blob;
use super::table::Slot;
use super::{Board, TaskSink};
use crate::core::time::Tick;

/// What a result costs besides its bytes: its record and its place.
pub(crate) const RESULT_OVERHEAD: usize = 64;
/// Error text kept of a failure, bytes.
const ERROR_BYTES_MAX: usize = 4096;

impl Board {
    /// Puts tasks that lost their worker back. The youngest goes first, so that the oldest ends up first in its lane.
    pub(crate) fn put_back_in_order(
        &mut self,
        now: Tick,
        mut tasks: Vec<Slot>,
        error: &str,
        sink: &mut impl TaskSink,
    ) {
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
                let r = &mut self.table[slot];
                r.blob = self.payloads.hand_over(r.blob, &mut self.delayed);
                (r.state, r.deadline) = (TaskState::Scheduled, due);
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
        if text.is_empty() || self.is_full(0) {
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

    pub(crate) fn bury(&mut self, slot: Slot, error: &str, sink: &mut impl TaskSink) {
        self.keep_error(slot, error);
        let r = &mut self.table[slot];
        r.blob = self.payloads.hand_over(r.blob, &mut self.dead);
        r.state = TaskState::Dead;
        let queue = self.queue_of(slot);
        self.queues[queue as usize].dead.push_back(&mut self.table, slot);
        self.counters.dead += 1;
        self.tell(slot, sink);
    }

    /// Gives a task its outcome and keeps it for those who ask later. It is in no list and its payload is freed.
    #[inline]
    pub(crate) fn finish(
        &mut self,
        now: Tick,
        slot: Slot,
        state: TaskState,
        blob: Blob,
        sink: &mut impl TaskSink,
    ) {
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
