//! Effects become frames here: one buffer per destination, one push per destination and batch.

mod dest;

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use hive_proto::error::{Code, Outcome};
use hive_proto::items::{Assign, Item, Progressed, Refused, Revoked, Task};
use hive_proto::{
    FrameBuilder, FrameRef, Frames, Op, SessionId, TaskId, WireError, ids::Durability, messages,
};

use super::directory::Directory;
use super::outbox::{FRAGMENT_BYTES, pool};
use crate::core::hub::HubSink;
use crate::core::tasks::TaskSink;
use dest::{Dest, OpenFrame, answers};

/// Assignments are pushed at this size, bytes: a client that does not read is noticed before it has been given everything.
const PUSH_BYTES: usize = 512 * 1024;
/// A frame of items is closed at this size, bytes, so that a client gets the first ones early.
const FRAME_BYTES: usize = 128 * 1024;

/// Destinations of one actor, kept from batch to batch.
#[derive(Debug)]
pub(crate) struct Outgoing {
    directory: Arc<Directory>,
    dests: Vec<Dest>,
    free: Vec<usize>,
    by_session: HashMap<SessionId, usize, foldhash::fast::FixedState>,
    touched: Vec<usize>,
    /// Sessions that end with the batch.
    leaving: Vec<SessionId>,
    /// Long answers and, if what is gathered may stay long, outcomes, bytes.
    gathered: usize,
    /// What is gathered waits for the journal.
    held: bool,
    last: (SessionId, usize),
    /// The answer given last was `Ok`.
    pub(crate) last_ok: bool,
    /// Effects are dropped: a new incarnation hears what its sessions had asked for, and they need not hear it again.
    pub(crate) muted: bool,
    /// Outcomes and messages that were pushed, and those that were not.
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
}

impl Outgoing {
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            dests: Vec::new(),
            free: Vec::new(),
            by_session: HashMap::with_hasher(foldhash::fast::FixedState::default()),
            touched: Vec::new(),
            leaving: Vec::new(),
            gathered: 0,
            held: false,
            last: (SessionId(0), 0),
            last_ok: false,
            muted: false,
            delivered: 0,
            lost: 0,
        }
    }

    /// Destinations of what waits for the journal.
    pub(crate) fn held(directory: Arc<Directory>) -> Self {
        Self { held: true, ..Self::new(directory) }
    }

    /// Pushes what has been gathered, the latest first: an assignment is worth more than the acknowledgement before it.
    pub(crate) fn flush(&mut self) {
        for at in self.touched.drain(..).rev() {
            let d = &mut self.dests[at];
            d.close_frame();
            d.touched = false;
            d.push();
            if d.missed > 0
                && let Some(peer) = &d.peer
            {
                peer.outbox.miss(std::mem::take(&mut d.missed));
            }
            // An idle session holds no buffer.
            pool::give(std::mem::take(&mut d.answers));
            pool::give(std::mem::take(&mut d.data));
            d.early.clear();
        }
        self.directory.outbox_limits.released(std::mem::take(&mut self.gathered));
        self.forget_leaving();
    }

    /// Whether a request of the batch in hand has been answered already.
    pub(crate) fn was_answered(&self, session: SessionId, request: u32) -> bool {
        self.by_session.get(&session).is_some_and(|at| self.dests[*at].early.contains(&request))
    }

    /// Whether the answer to a request is among what has been gathered.
    pub(crate) fn holds_answer(&self, session: SessionId, request: u32) -> bool {
        let Some(at) = self.by_session.get(&session) else { return false };
        answers(&self.dests[*at]).any(|id| id == request)
    }

    /// Takes the answers to questions out of what has been gathered, and gives whose they are.
    pub(crate) fn take_questions(&mut self) -> Vec<(SessionId, u32)> {
        let mut taken = Vec::new();
        for at in &self.touched {
            let d = &mut self.dests[*at];
            let Some(session) = d.peer.as_ref().map(|p| p.session) else { continue };
            let (ids, bytes) = d.take_questions();
            taken.extend(ids.into_iter().map(|request| (session, request)));
            self.gathered -= bytes;
            self.directory.outbox_limits.released(bytes);
        }
        taken
    }

    /// Puts an error in the place of each answer that has been gathered, and drops the rest.
    pub(crate) fn refuse(&mut self, error: &WireError) {
        for at in 0..self.touched.len() {
            let d = &mut self.dests[self.touched[at]];
            d.close_frame();
            let ids: Vec<u32> = answers(d).collect();
            // Outcomes that are not pushed are to be asked for, if they may have happened; else they are still to come.
            let maybe = error.outcome == Outcome::Unknown;
            let pushed = Frames(&d.data).chain(d.large.iter().flat_map(|(_, frame)| Frames(frame)));
            let outcomes: u64 =
                pushed.filter(|f| f.prefix.op == Op::Result as u8).map(|f| u64::from(f.prefix.count)).sum();
            let missed = d.missed + outcomes;
            d.clear();
            d.missed = if maybe { missed } else { 0 };
            let header = messages::encode(error);
            for id in ids {
                FrameBuilder::begin(&mut d.answers, Op::Error, 0, id, &[&header]).finish(&mut d.answers, 0);
            }
        }
        self.flush();
    }

    /// Drops what has been gathered: the batch it came from did not happen.
    pub(crate) fn abandon(&mut self) {
        for at in self.touched.drain(..) {
            let d = &mut self.dests[at];
            (d.open, d.touched) = (None, false);
            d.clear();
        }
    }

    /// Forgets a destination once it has got what was gathered for it.
    pub(crate) fn closed(&mut self, session: SessionId) {
        if self.by_session.contains_key(&session) {
            self.leaving.push(session);
        }
    }

    fn forget_leaving(&mut self) {
        for session in self.leaving.drain(..) {
            if let Some(at) = self.by_session.remove(&session) {
                self.dests[at] = Dest::default();
                self.free.push(at);
                self.last = (SessionId(0), 0);
            }
        }
    }

    #[inline]
    fn dest(&mut self, to: SessionId) -> Option<&mut Dest> {
        let at = if self.last.0 == to { self.last.1 } else { self.find(to)? };
        self.last = (to, at);
        let d = &mut self.dests[at];
        if !d.touched {
            d.touched = true;
            (d.answers, d.data) = (pool::take(), pool::take());
            self.touched.push(at);
        }
        Some(d)
    }

    fn find(&mut self, to: SessionId) -> Option<usize> {
        if let Some(at) = self.by_session.get(&to) {
            return Some(*at);
        }
        if self.muted {
            return None;
        }
        let peer = self.directory.session(to)?;
        let at = self.free.pop().unwrap_or_else(|| {
            self.dests.push(Dest::default());
            self.dests.len() - 1
        });
        self.dests[at].peer = Some(peer);
        self.by_session.insert(to, at);
        Some(at)
    }

    fn answer(
        &mut self,
        to: SessionId,
        op: Op,
        id: u32,
        count: u16,
        header: &[&[u8]],
        payload: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some(d) = self.dest(to) else { return };
        let frame = FrameBuilder::begin(&mut d.answers, op, 0, id, header);
        payload(&mut d.answers);
        frame.finish(&mut d.answers, count);
    }

    /// Appends an item to a frame that goes on as long as operation and id stay the same.
    #[inline]
    fn item<'a>(&mut self, to: SessionId, op: Op, id: u32, item: &impl Item<'a>) {
        let Some(d) = self.dest(to) else { return };
        let fits = |o: &OpenFrame, len: usize| {
            o.op == op && o.id == id && o.count < u16::MAX && len - o.frame.start() < FRAME_BYTES
        };
        if !d.open.as_ref().is_some_and(|o| fits(o, d.data.len())) {
            d.close_frame();
            let frame = FrameBuilder::begin(&mut d.data, op, 0, id, &[]);
            d.open = Some(OpenFrame { op, id, frame, count: 0 });
        }
        item.write(&mut d.data);
        if let Some(o) = &mut d.open {
            o.count += 1;
        }
    }

    /// Counts what an item has added to a destination.
    #[inline]
    fn count_gathered(&mut self, to: SessionId, before: usize) {
        let bytes = self.dest(to).map_or(0, |d| d.data.len().saturating_sub(before));
        self.gathered += bytes;
        self.directory.outbox_limits.gathered(bytes);
    }

    /// Appends an item that may be dropped when the receiver is slow.
    #[inline]
    fn droppable<'a>(&mut self, to: SessionId, op: Op, item: &impl Item<'a>) {
        let full = self.held && self.directory.outbox_limits.room() == 0;
        let held = self.held;
        let Some(d) = self.dest(to) else { return };
        if d.full {
            // It may have drained since; asking costs a lock, but only while it is slow.
            d.full = d.is_full();
        }
        if d.full || full {
            d.missed += 1;
            self.lost += 1;
        } else {
            let before = d.data.len();
            self.item(to, op, 0, item);
            if held {
                self.count_gathered(to, before);
            }
        }
    }
}

impl TaskSink for Outgoing {
    fn accepted(
        &mut self,
        to: SessionId,
        request: u32,
        first: TaskId,
        count: u16,
        durability: Durability,
        refused: &[Refused],
    ) {
        let durability = [durability as u8];
        self.answer(to, Op::Accepted, request, count, &[&first.0.to_le_bytes(), &durability], |out| {
            refused.iter().for_each(|r| r.write(out));
        });
    }

    fn error(&mut self, to: SessionId, request: u32, error: WireError) {
        self.last_ok = false;
        self.answer(to, Op::Error, request, 0, &[&messages::encode(&error)], |_| {});
    }

    fn ok(&mut self, to: SessionId, request: u32) {
        self.last_ok = true;
        self.answer(to, Op::Ok, request, 0, &[], |_| {});
    }

    #[inline]
    fn assign(&mut self, to: SessionId, consumer: u32, item: Assign<'_>) -> bool {
        self.item(to, Op::Assign, consumer, &item);
        self.dest(to).is_some_and(|d| !d.full && d.data.len() < PUSH_BYTES || d.takes_more())
    }

    fn settled(&mut self, to: SessionId, request: u32, accepted: u16, refused: &[Refused]) {
        self.answer(to, Op::Settled, request, accepted, &[], |out| refused.iter().for_each(|r| r.write(out)));
    }

    #[inline]
    fn outcome(&mut self, to: SessionId, item: Task<'_>) {
        self.droppable(to, Op::Result, &item);
    }

    fn progressed(&mut self, to: SessionId, item: Progressed<'_>) {
        self.droppable(to, Op::Progressed, &item);
    }

    fn revoked(&mut self, to: SessionId, item: Revoked) {
        self.item(to, Op::Revoked, 0, &item);
    }

    /// A question of a few bytes may have an answer of many, so these answers are refused where others are queued.
    fn tasks<'a>(&mut self, to: SessionId, request: u32, items: impl Iterator<Item = Task<'a>>) {
        let message_bytes_max = self.directory.outbox_limits.message_bytes_max;
        let full = self.directory.outbox_limits.room() == 0;
        let Some(d) = self.dest(to) else { return };
        d.close_frame();
        if d.is_full() || full {
            let text = "the answers before this one have not been read";
            return TaskSink::error(
                self,
                to,
                request,
                WireError::new(Code::Overloaded, text).retry_after(100),
            );
        }
        let start = d.data.len();
        let frame = FrameBuilder::begin(&mut d.data, Op::Tasks, 0, request, &[]);
        let mut count = 0;
        for item in items {
            item.write(&mut d.data);
            count += 1;
            if d.data.len() - start > message_bytes_max {
                d.data.truncate(start);
                let text = format!(
                    "the answer has more than {message_bytes_max} bytes: ask for fewer tasks at once"
                );
                return TaskSink::error(self, to, request, WireError::new(Code::MessageTooLarge, text));
            }
        }
        d.open = Some(OpenFrame { op: Op::Tasks, id: request, frame, count });
        let bytes = d.data.len() - start;
        d.close_frame(); // as fragments, where the results are long
        self.gathered += bytes;
        self.directory.outbox_limits.gathered(bytes);
    }

    fn hold(&mut self, _: bool) {} // whoever has this sink decides when it is flushed
}

impl HubSink for Outgoing {
    fn deliver(&mut self, to: SessionId, sub: u32, count: u32, frames: Bytes) {
        let Some(d) = self.dest(to) else { return };
        d.push_gathered(); // frames keep their order
        if d.peer.as_ref().is_some_and(|p| p.outbox.deliver(sub, count, frames)) {
            self.delivered += u64::from(count);
        } else {
            self.lost += u64::from(count);
        }
    }

    fn response(&mut self, to: SessionId, frame: Bytes) {
        let Some(d) = self.dest(to) else { return };
        if d.is_full() {
            let id = FrameRef::parse(&frame).map_or(0, |f| f.prefix.id);
            let text = "the responses before this one have not been read; it was dropped";
            return TaskSink::error(self, to, id, WireError::new(Code::ReceiverSlow, text).maybe_done());
        }
        if frame.len() > FRAGMENT_BYTES {
            d.push_gathered();
            if let Some(p) = &d.peer {
                p.outbox.push_large(&frame);
            }
        } else {
            d.data.extend_from_slice(&frame);
        }
    }

    fn requested(&mut self, to: SessionId, frame: Bytes) -> bool {
        if self.dest(to).is_none_or(|d| d.is_full()) {
            return false;
        }
        self.response(to, frame);
        true
    }

    fn ok(&mut self, to: SessionId, id: u32, count: u16) {
        self.last_ok = true;
        self.answer(to, Op::Ok, id, count, &[], |_| {});
    }

    fn error(&mut self, to: SessionId, id: u32, error: WireError) {
        TaskSink::error(self, to, id, error);
    }
}

/// The error for requests that were in the hands of an actor that restarted.
pub(crate) fn restarted(what: &str) -> WireError {
    WireError::new(
        Code::Restarted,
        format!("{what} restarted while it handled the request; it did not happen"),
    )
    .retry_after(100)
}
