//! Who waits for an outcome: `Wait` and `Query`.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use hive_proto::error::Code;
use hive_proto::items::Task;
use hive_proto::{SessionId, TaskId, TaskState, WireError};

use super::archive::Found;
use super::table::Slot;
use super::{Board, TaskSink};
use crate::core::time::Tick;
use crate::planted;

/// When a wait is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitMode {
    /// Every task has its outcome.
    All,
    /// One of the tasks has its outcome.
    Any,
}

#[derive(Debug)]
pub(super) struct Wait {
    pub(super) session: SessionId,
    request: u32,
    pub(super) ids: Box<[TaskId]>,
    /// Outcomes still to come.
    pub(super) left: usize,
    pub(super) generation: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Waits {
    pub(super) all: Vec<Option<Wait>>,
    free: Vec<u32>,
    /// Sequences of tasks and the waits for them. A tree, because one task may have as many waits as there are.
    pub(super) by_task: BTreeSet<(u64, u32)>,
    pub(super) deadlines: BinaryHeap<Reverse<(Tick, u32, u32)>>,
    generation: u32,
    /// Ids of all waits together.
    pub(super) ids: usize,
}

impl Waits {
    fn len(&self) -> usize {
        self.all.len() - self.free.len()
    }

    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.peek().map(|Reverse((at, ..))| *at)
    }

    fn add(&mut self, deadline: Tick, wait: Wait, open: &[u64]) -> u32 {
        let generation = wait.generation;
        let handle = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            (self.all.len() - 1) as u32
        });
        self.ids += wait.ids.len();
        self.all[handle as usize] = Some(wait);
        for seq in open {
            self.by_task.insert((*seq, handle));
        }
        self.deadlines.push(Reverse((deadline, handle, generation)));
        handle
    }

    /// Whether somebody waits for a task.
    pub(super) fn has(&self, seq: u64) -> bool {
        self.by_task.range((seq, 0)..=(seq, u32::MAX)).next().is_some()
    }

    /// Ends a wait without an answer.
    pub(crate) fn remove(&mut self, handle: u32) -> Option<(SessionId, u32, Box<[TaskId]>)> {
        let wait = self.all.get_mut(handle as usize)?.take()?;
        self.free.push(handle);
        self.ids -= wait.ids.len();
        for id in &wait.ids {
            self.by_task.remove(&(id.seq(), handle));
        }
        if self.deadlines.len() > 1024 && self.deadlines.len() > 4 * self.len() {
            let all = &self.all;
            self.deadlines
                .retain(|Reverse((_, h, g))| all[*h as usize].as_ref().is_some_and(|w| w.generation == *g));
        }
        Some((wait.session, wait.request, wait.ids))
    }
}

impl Board {
    /// Tells where tasks stand, once what only the journal has was read.
    pub fn query(
        &mut self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId> + Clone,
        sink: &mut impl TaskSink,
    ) {
        if !self.ask_archive(from, request, ids.clone(), sink) {
            self.tell_states(from, request, ids, None, sink);
        }
    }

    /// The same with what was read from the journal.
    pub(super) fn tell_states(
        &self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId> + Clone,
        found: Option<&Found>,
        sink: &mut impl TaskSink,
    ) {
        let durable = self.is_uncommitted() && ids.clone().any(|id| self.is_durable_task(id));
        self.hold(durable && !planted::is("query_early"), sink);
        let read = |id| found.and_then(|f| f.outcome(id));
        sink.tasks(from, request, ids.map(|id| read(id).unwrap_or_else(|| self.state_of(id))));
        sink.hold(false);
    }

    /// Answers when all or any of the tasks have their outcome, or at the deadline. Tasks that are not known count as
    /// having one: nothing more can be learned about them.
    #[allow(clippy::too_many_arguments)] // the fields of one frame
    pub fn wait(
        &mut self,
        now: Tick,
        from: SessionId,
        request: u32,
        mode: WaitMode,
        timeout_ms: u32,
        ids: impl Iterator<Item = TaskId>,
        sink: &mut impl TaskSink,
    ) {
        let ids: Box<[TaskId]> = ids.collect();
        let (mut open, mut known) = (Vec::new(), 0);
        for id in &ids {
            if let Some(slot) = self.find(*id).filter(|s| !self.table[*s].state.is_final()) {
                self.table[slot].waited = true;
                open.push(id.seq());
            } else if self.is_spilled(*id) {
                open.push(id.seq());
            } else {
                known += 1;
            }
        }
        open.sort_unstable();
        open.dedup();
        let done = open.is_empty() || (mode == WaitMode::Any && known > 0);
        if done || timeout_ms == 0 {
            return self.query(from, request, ids.iter().copied(), sink);
        }
        if self.waits.ids + ids.len() > self.limits.waits_max {
            let text =
                format!("{} task ids are waited for; waits_max is {}", self.waits.ids, self.limits.waits_max);
            return sink.error(from, request, WireError::new(Code::TooManyWaits, text).retry_after(1000));
        }
        let left = if mode == WaitMode::Any { 1 } else { open.len() };
        self.waits.generation = self.waits.generation.wrapping_add(1);
        let wait = Wait { session: from, request, ids, left, generation: self.waits.generation };
        let handle = self.waits.add(now.plus_ms(u64::from(timeout_ms)), wait, &open);
        self.sessions.entry(from).or_default().waits.insert(handle);
    }

    /// Sessions and request ids of all waits and questions under way.
    pub fn open_waits(&self) -> impl Iterator<Item = (SessionId, u32)> + '_ {
        let waits = self.waits.all.iter().flatten().map(|w| (w.session, w.request));
        waits.chain(self.open_lookups())
    }

    /// Ends a wait of a session without an answer.
    pub fn end_wait(&mut self, session: SessionId, request: u32) {
        let of = |w: &Wait| w.session == session && w.request == request;
        let found = self.waits.all.iter().position(|w| w.as_ref().is_some_and(of));
        let Some(handle) = found.map(|at| at as u32) else { return };
        self.waits.remove(handle);
        if let Some(s) = self.sessions.get_mut(&session) {
            s.waits.remove(&handle);
        }
    }

    /// A task that is waited for has its outcome.
    #[cold]
    pub(crate) fn waits_hit(&mut self, slot: Slot, sink: &mut impl TaskSink) {
        self.table[slot].waited = false;
        let seq = self.table.seq(slot);
        let hit: Vec<u32> = self.waits.by_task.range((seq, 0)..=(seq, u32::MAX)).map(|(_, h)| *h).collect();
        for handle in hit {
            self.waits.by_task.remove(&(seq, handle));
            let Some(wait) = &mut self.waits.all[handle as usize] else { continue };
            wait.left -= 1;
            if wait.left == 0 {
                self.waits_answer(handle, sink);
            }
        }
    }

    pub(crate) fn waits_expire(&mut self, now: Tick, sink: &mut impl TaskSink) {
        while let Some(Reverse((at, handle, generation))) = self.waits.deadlines.peek().copied()
            && at <= now
        {
            self.waits.deadlines.pop();
            if self.waits.all[handle as usize].as_ref().is_some_and(|w| w.generation == generation) {
                self.waits_answer(handle, sink);
            }
        }
    }

    fn waits_answer(&mut self, handle: u32, sink: &mut impl TaskSink) {
        let Some((session, request, ids)) = self.waits.remove(handle) else { return };
        if let Some(s) = self.sessions.get_mut(&session) {
            s.waits.remove(&handle);
        }
        self.query(session, request, ids.iter().copied(), sink);
    }

    pub(super) fn state_of(&self, task: TaskId) -> Task<'_> {
        let in_memory = self.find(task).map(|slot| self.view(slot));
        in_memory.or_else(|| self.view_spilled(task)).unwrap_or(Task {
            task,
            state: TaskState::Unknown,
            attempt: 0,
            payload: &[],
        })
    }
}
