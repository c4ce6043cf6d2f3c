//! Dead letters: listed, given all their attempts again, or forgotten.

use hive_proto::error::Code;
use hive_proto::items::Refused;
use hive_proto::{SessionId, TaskId, TaskState, WireError};

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
        self.each_dead(from, request, ids, sink, |board, slot| {
            if board.is_durable(slot) {
                board.ops.redrive(board.table.seq(slot));
            }
            board.revive(slot);
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
        self.each_dead(from, request, ids, sink, |board, slot| {
            if board.is_durable(slot) {
                board.ops.purge(board.table.seq(slot));
            }
            board.forget_dead(slot);
        });
    }

    fn each_dead(
        &mut self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId>,
        sink: &mut impl TaskSink,
        apply: impl Fn(&mut Self, Slot),
    ) {
        self.refused.clear();
        let mut accepted = 0;
        for (index, task) in ids.enumerate() {
            match self.find_dead(task) {
                Ok(slot) => {
                    apply(self, slot);
                    accepted += 1;
                }
                Err(code) => {
                    self.refused.push(Refused { index: index as u16, code: code as u16, retry_after_ms: 0 });
                }
            }
        }
        self.answer(from, request, accepted, true, sink);
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
