//! Dead letters: listed, given all their attempts again, or forgotten.

use hive_proto::error::Code;
use hive_proto::{SessionId, TaskId, TaskState, WireError};

use super::ops::Ops;
use super::outcome::End;
use super::table::Slot;
use super::{Board, TaskSink};

impl Board {
    /// Dead letters of a queue, the newest first.
    pub fn list_dead(
        &self,
        from: SessionId,
        request: u32,
        queue: &str,
        limit: usize,
        sink: &mut impl TaskSink,
    ) {
        let Some(at) = self.by_name.get(queue) else {
            let text = format!("queue {queue:?} does not exist");
            return sink.error(from, request, WireError::new(Code::UnknownQueue, text));
        };
        let mut slot = self.queues[*at as usize].dead.tail;
        let newest = std::iter::from_fn(|| {
            let here = (slot != Slot::NONE).then_some(slot)?;
            slot = self.table[here].prev;
            Some(self.view(here))
        });
        self.hold(self.queues[*at as usize].is_durable(), sink);
        sink.tasks(from, request, newest.take(limit));
        sink.hold(false);
    }

    /// Puts dead letters back where they wait, with all their attempts before them. Their numbers go on, and what they failed of last is
    /// kept until they have another outcome.
    pub fn redrive(
        &mut self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId>,
        sink: &mut impl TaskSink,
    ) {
        self.each_task(from, request, ids, sink, |board, task, _| {
            board.end_dead(task, Ops::redrive, Self::revive)
        });
    }

    /// Forgets dead letters, and what they are about.
    pub fn purge(
        &mut self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId>,
        sink: &mut impl TaskSink,
    ) {
        self.each_task(from, request, ids, sink, |board, task, _| {
            board.end_dead(task, Ops::purge, Self::forget_dead)
        });
    }

    fn end_dead(
        &mut self,
        task: TaskId,
        log: fn(&mut Ops, u64),
        apply: fn(&mut Self, Slot),
    ) -> Result<(), Code> {
        let slot = self.find_dead(task)?;
        if self.is_durable(slot) {
            log(&mut self.ops, task.seq());
        }
        apply(self, slot);
        Ok(())
    }

    fn find_dead(&self, task: TaskId) -> Result<Slot, Code> {
        match self.find(task) {
            Some(slot) if self.table[slot].state == TaskState::Dead => Ok(slot),
            Some(_) => Err(Code::NotDead),
            None if self.is_spilled(task) || self.is_archived(task) => Err(Code::NotDead),
            None => Err(Code::UnknownTask),
        }
    }

    /// For replay: a snapshot may have what came after.
    pub(super) fn if_dead(&mut self, seq: u64, apply: impl FnOnce(&mut Self, Slot)) {
        if let Some(slot) = self.table.find(seq)
            && self.table[slot].state == TaskState::Dead
        {
            apply(self, slot);
        }
    }

    /// A dead letter waits again; the journal knows.
    pub(super) fn revive(&mut self, slot: Slot) {
        self.leave_dead(slot);
        let r = &mut self.table[slot];
        r.failed = 0;
        let stream = &mut self.lanes[r.lane as usize].stream;
        r.blob = self.dead.hand_over_in(r.blob, &mut self.payloads, stream);
        self.place(slot, None, End::Back);
    }

    /// A dead letter is gone; the journal knows.
    pub(super) fn forget_dead(&mut self, slot: Slot) {
        self.leave_dead(slot);
        self.drop_error(slot);
        self.dead.free(self.table[slot].blob);
        self.table.remove(slot);
    }

    fn leave_dead(&mut self, slot: Slot) {
        let queue = self.queue_of(slot) as usize;
        self.queues[queue].dead.remove(&mut self.table, slot);
    }
}
