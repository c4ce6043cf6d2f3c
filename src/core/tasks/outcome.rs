//! How an attempt ends: back to the queue, among the dead letters, or with an outcome that is told and kept for a while.

use hive_proto::items::Task;
use hive_proto::{SessionId, TaskId, TaskState};

use super::arena::Blob;
use super::ops::Whole;
use super::table::Slot;
use super::{Board, TaskSink};
use crate::core::time::Tick;
use crate::planted;

/// Which end of its lane a task goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Front,
    Back,
}

/// What a result costs besides its bytes: its record and its place.
pub(crate) const RESULT_OVERHEAD: usize = 64;
/// Error text kept of a failure, bytes.
const ERROR_BYTES_MAX: usize = 4096;
/// Results forgotten at once.
const FORGET_MAX: usize = 10_000;

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
            if r.failed >= r.attempts_max && !planted::is("attempts_ignored") {
                return self.bury(slot, text, sink);
            }
            self.keep_error(slot, text);
        }
        let due = delay_ms.filter(|ms| *ms > 0).map(|ms| now.plus_ms(u64::from(ms)));
        // A task that is given back as it was needs no word in the journal: there it has never left.
        if (error.is_some() || due.is_some()) && self.is_durable(slot) {
            let error = error.map_or("", cut);
            if self.table[slot].fetched && !planted::is("fetched_not_whole") {
                let state = if due.is_some() { TaskState::Scheduled } else { TaskState::Waiting };
                self.log_whole(slot, state, due, error);
            } else {
                let r = &self.table[slot];
                self.ops.retry(self.table.seq(slot), r.attempt, r.failed, due, error);
            }
        }
        self.place(slot, due, End::Front);
    }

    /// The journal gets a task that it has as one on disk once more, as it is now: replay has no payload for it.
    fn log_whole(&mut self, slot: Slot, state: TaskState, due: Option<Tick>, error: &str) {
        let lane = self.logged(self.table[slot].lane);
        let r = &self.table[slot];
        self.ops.task(&Whole {
            lane,
            watcher: r.watcher.0,
            seq: self.table.seq(slot),
            state,
            attempt: r.attempt,
            failed: r.failed,
            attempts_max: r.attempts_max,
            time: due.unwrap_or(Tick::ZERO),
            error,
            ext_len: r.ext_len,
            fetched: true,
            bytes: self.payloads.get(r.blob),
            record: 0,
        });
    }

    /// Puts a task that is in no list where it waits. Its payload is among those of waiting tasks.
    pub(crate) fn place(&mut self, slot: Slot, due: Option<Tick>, end: End) {
        let queue = self.queue_of(slot);
        let r = &mut self.table[slot];
        if let Some(due) = due {
            r.blob = self.payloads.hand_over(r.blob, &mut self.delayed);
            (r.state, r.deadline) = (TaskState::Scheduled, due);
            self.timers.schedule(due, slot, self.table.seq(slot));
            self.queues[queue as usize].scheduled += 1;
            return;
        }
        r.state = TaskState::Waiting;
        match end {
            End::Front => {
                let lane = &mut self.lanes[r.lane as usize];
                lane.tasks.push_front(&mut self.table, slot);
            }
            End::Back => self.enter_lane(slot),
        }
        self.queues[queue as usize].waiting += 1;
        self.mark_dirty(queue);
    }

    /// Keeps the text for those who ask, unless memory is full: workers must not fill it beyond its limit.
    pub(crate) fn keep_error(&mut self, slot: Slot, text: &str) {
        self.drop_error(slot);
        if text.is_empty() || self.is_full(0) {
            return;
        }
        let text = cut(text);
        self.error_bytes += text.len() + RESULT_OVERHEAD;
        self.errors.insert(self.table.seq(slot), text.into());
    }

    pub(crate) fn drop_error(&mut self, slot: Slot) {
        if !self.errors.is_empty()
            && let Some(old) = self.errors.remove(&self.table.seq(slot))
        {
            self.error_bytes -= old.len() + RESULT_OVERHEAD;
        }
    }

    pub(crate) fn bury(&mut self, slot: Slot, error: &str, sink: &mut impl TaskSink) {
        if self.table[slot].fetched {
            self.log_whole(slot, TaskState::Dead, None, cut(error));
        } else if self.is_durable(slot) {
            let r = &self.table[slot];
            self.ops.bury(self.table.seq(slot), r.attempt, r.failed, cut(error));
        }
        self.lay_down(slot, error, sink);
    }

    /// Puts a task among the dead letters, of which the journal knows already.
    pub(crate) fn lay_down(&mut self, slot: Slot, error: &str, sink: &mut impl TaskSink) {
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
        self.keep(slot, state, blob, now.plus_ms(self.limits.result_ms));
        self.tell(slot, sink);
        self.forget_surplus();
    }

    /// Keeps an outcome until a time.
    #[inline]
    pub(crate) fn keep(&mut self, slot: Slot, state: TaskState, blob: Blob, until: Tick) {
        let r = &mut self.table[slot];
        (r.state, r.blob, r.deadline) = (state, blob, until);
        r.owner = self.archive.replayed; // from here on it names the record that has the outcome
        self.done.push_back(&mut self.table, slot);
        self.done_bytes += blob.len() + RESULT_OVERHEAD;
    }

    /// Forgets outcomes that find no room, or leaves them to the journal.
    #[inline]
    pub(crate) fn forget_surplus(&mut self) {
        while self.done_bytes > self.limits.results_bytes_max && !self.is_to_be_recorded() {
            self.archive(self.done.head);
            self.forget_oldest();
        }
    }

    /// Puts the outcomes that were read from a journal in the order in which they will go.
    pub(crate) fn sort_done(&mut self) {
        let mut slots = Vec::with_capacity(self.done.len);
        while let Some(slot) = self.done.pop_front(&mut self.table) {
            slots.push(slot);
        }
        // Those of which the record is not known yet are the latest.
        let key = |s: &Slot| (self.table[*s].deadline, self.record_of(*s).wrapping_sub(1));
        slots.sort_by_cached_key(key);
        slots.into_iter().for_each(|s| self.done.push_back(&mut self.table, s));
        self.forget_surplus();
    }

    /// Pushes an outcome to whoever watches or waits.
    #[inline]
    fn tell(&mut self, slot: Slot, sink: &mut impl TaskSink) {
        let r = &self.table[slot];
        if r.watcher == SessionId(0) && !r.waited {
            return;
        }
        self.hold(self.is_durable(slot) && !planted::is("tell_early"), sink);
        if r.watcher != SessionId(0) {
            sink.outcome(r.watcher, self.view(slot));
        }
        if r.waited {
            self.waits_hit(slot, sink);
        }
        sink.hold(false);
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

    /// Forgets outcomes whose time is over, a bounded part of them: a million that end together must not hold up a submit.
    pub(crate) fn forget_due(&mut self, now: Tick) {
        for _ in 0..FORGET_MAX {
            if self.done.len == 0 || self.table[self.done.head].deadline > now {
                break;
            }
            self.forget_oldest();
        }
        self.archive.forget_due(now);
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

/// What is kept of an error's text.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(ERROR_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
