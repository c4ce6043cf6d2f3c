//! From the socket to the actors: cut frames, gather those for one actor into one batch.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use hive_proto::codec::cut;
use hive_proto::error::Code;
use hive_proto::messages::{self, Subscribe};
use hive_proto::{FrameRef, Frames, Op, Partition, WireError};
use tokio_util::io::poll_read_buf;

use super::arriving::Partial;
use super::session::Session;
use crate::actors::busy;
use crate::actors::directory::InFlight;
use crate::actors::mailbox::{Batch, Inlet, is_one_thing};
use crate::core::time::Tick;

/// What one read may bring, bytes.
const READ_BYTES: usize = 256 * 1024;
/// What a session may read when what is on its way fills the memory for it, if nothing of its own is on its way, bytes.
const READ_BYTES_MIN: usize = 512;
/// A ping may carry this much, bytes.
const PING_BYTES_MAX: usize = 64;

const REQUEST: u8 = Op::Request as u8;
const REPLY: u8 = Op::Reply as u8;

/// Who handles a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Dispatcher,
    Hub(u8),
    /// Subscribe and unsubscribe. Those with wildcards go to the first shard, which hands them on.
    Control(u8),
    /// Messages to agents: the shard's own hub.
    Agents,
    /// The session itself.
    Local,
}

/// How the beginning of a frame is kept.
type Keep = fn(&mut Partial, &mut BytesMut) -> Result<(), (u32, WireError)>;

impl Session {
    /// Reads once and routes what is complete. `false` at the end of the stream.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(mut fresh) = self.partial.take_fresh() {
            self.arrived(cx, (self.shard.clock)(), &mut fresh, Partial::keep);
            return Poll::Ready(Ok(true));
        }
        if self.stream.poll_read_ready(cx)?.is_pending() {
            return Poll::Pending;
        }
        if let Some(mut own) = self.partial.take_own() {
            let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut own);
            return self.after_read(cx, read, &mut own, Partial::keep_own);
        }
        let bytes_max = self.shard.directory.readable_bytes().clamp(READ_BYTES_MIN, READ_BYTES);
        if bytes_max == READ_BYTES_MIN && !self.peer.is_answered() {
            self.is_held_up();
            return Poll::Pending; // which wakes the task when it is
        }
        let start = self.partial.take_short();
        let mut buf = self.shard.buffer.take();
        if buf.capacity() < READ_BYTES / 4 + start.len() {
            buf.reserve(READ_BYTES + start.len());
        }
        buf.extend_from_slice(&start);
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut (&mut buf).limit(bytes_max));
        let result = self.after_read(cx, read, &mut buf, Partial::keep);
        buf.clear();
        self.shard.buffer.replace(buf);
        result
    }

    fn after_read(
        &mut self,
        cx: &mut Context<'_>,
        read: Poll<io::Result<usize>>,
        buf: &mut BytesMut,
        keep: Keep,
    ) -> Poll<io::Result<bool>> {
        let now = match read {
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) => (self.shard.clock)(),
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => Tick(self.peer.heard_at.load(Ordering::Relaxed)),
        };
        self.peer.heard_at.store(now.0, Ordering::Relaxed);
        self.arrived(cx, now, buf, keep);
        read.map_ok(|_| true)
    }

    /// Routes what is complete and keeps the rest.
    fn arrived(&mut self, cx: &Context<'_>, now: Tick, buf: &mut BytesMut, keep: Keep) {
        self.partial.pass_over(buf);
        self.route(cx, now, buf);
        if let Err((id, e)) = keep(&mut self.partial, buf) {
            self.answer_error(id, &e);
        }
    }

    /// Routes the complete frames at the start of `buf` and leaves the rest in it.
    fn route(&mut self, cx: &Context<'_>, now: Tick, buf: &mut BytesMut) {
        let limit = self.shard.terms.frame_bytes_max as usize;
        let (mut run, mut frames, mut class) = (0, 0, Class::Local);
        loop {
            match cut(&buf[run..], limit) {
                Ok(Some(total)) => {
                    let next = self.classify(&buf[run..run + total]);
                    if next != class && run > 0 {
                        let chunk = buf.split_to(run);
                        self.dispatch(cx, now, class, frames, chunk);
                        (run, frames) = (0, 0);
                    }
                    class = next;
                    run += total;
                    frames += 1;
                }
                Ok(None) => break,
                Err(e) => {
                    if run > 0 {
                        self.dispatch(cx, now, class, frames, buf.split_to(run));
                    }
                    buf.clear();
                    self.answer_error(0, &e);
                    self.closing = true;
                    return;
                }
            }
        }
        if run > 0 {
            self.dispatch(cx, now, class, frames, buf.split_to(run));
        }
    }

    #[inline]
    pub(super) fn classify(&mut self, frame: &[u8]) -> Class {
        match frame[5] {
            0x10 if !self.may_submit(frame) => Class::Local,
            0x10..=0x1e => Class::Dispatcher,
            0x20 | 0x23 | 0x24 if self.shard.hubs.len() == 1 => Class::Hub(0),
            0x20 | 0x23 | 0x24 => self.hub_of(frame),
            0x21 | 0x22 if self.shard.hubs.len() == 1 => Class::Control(0),
            0x21 | 0x22 => self.control_of(frame),
            0x25 | 0x26 => Class::Agents,
            _ => Class::Local,
        }
    }

    /// Takes producer credit for a submit. The reason of a refusal is worked out when it is answered.
    fn may_submit(&self, frame: &[u8]) -> bool {
        let Some(f) = FrameRef::parse(frame) else { return true };
        let (tasks, bytes) = (u32::from(f.prefix.count), f.payload.len());
        if self.shard.draining.load(Ordering::Relaxed) {
            return false;
        }
        let (p, t) = (&self.peer, &self.shard.terms);
        let have = (p.unacked_tasks.load(Ordering::Relaxed), p.unacked_bytes.load(Ordering::Relaxed));
        // One batch is always taken, so that a large task cannot wait for ever.
        if have.0 > 0 && (have.0 + tasks > t.credit_tasks || (have.1 + bytes) as u64 > t.credit_bytes) {
            return false;
        }
        p.unacked_tasks.fetch_add(tasks, Ordering::Relaxed);
        p.unacked_bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    fn hub_of(&self, frame: &[u8]) -> Class {
        let Some(f) = FrameRef::parse(frame) else { return Class::Hub(0) };
        let header = f.traced_header().map_or(&[][..], |(_, h)| h);
        let n = self.shard.hubs.len();
        let shard = match f.prefix.op {
            0x24 => header.get(7).map_or(0, |b| usize::from(*b)) % n,
            0x23 => spread(header.get(8..).unwrap_or_default(), n),
            _ => spread(header, n),
        };
        Class::Hub(shard as u8)
    }

    fn control_of(&mut self, frame: &[u8]) -> Class {
        let Some(f) = FrameRef::parse(frame) else { return Class::Control(0) };
        let shards = self.subscriptions.get_or_insert_default();
        for refused in self.peer.refused.lock().drain(..) {
            shards.remove(&refused);
        }
        if f.prefix.op == Op::Unsubscribe as u8 {
            return Class::Control(shards.remove(&f.prefix.id).unwrap_or(0));
        }
        let Ok(s) = messages::decode::<Subscribe>(f.header) else { return Class::Control(0) };
        if hive_proto::names::pattern(s.subject.as_bytes()).is_err() {
            return Class::Control(0); // which refuses it; the id stays free
        }
        let wild = s.subject.contains(['*', '>']);
        let shard = if wild { 0 } else { spread(s.subject.as_bytes(), self.shard.hubs.len()) as u8 };
        // A second subscription under an id goes where the first one is, to be refused there.
        Class::Control(*shards.entry(f.prefix.id).or_insert(shard))
    }

    pub(super) fn dispatch(
        &mut self,
        cx: &Context<'_>,
        now: Tick,
        class: Class,
        frames: usize,
        chunk: BytesMut,
    ) {
        if matches!(class, Class::Hub(_) | Class::Agents) {
            self.peer.requests.store(true, Ordering::Relaxed);
        }
        if frames == 1
            && (class == Class::Dispatcher || matches!(chunk[5], REQUEST | REPLY))
            && is_one_thing(&chunk)
        {
            busy::alone(now);
        }
        match class {
            Class::Local => self.local(cx, now, &chunk),
            Class::Dispatcher => {
                self.send(cx, self.shard.dispatcher.clone(), now, frames, chunk);
            }
            Class::Hub(n) | Class::Control(n) => {
                self.send(cx, self.shard.hubs[usize::from(n)].clone(), now, frames, chunk);
            }
            Class::Agents => {
                let own = usize::from(self.shard.number) % self.shard.hubs.len();
                self.send(cx, self.shard.hubs[own].clone(), now, frames, chunk);
            }
        }
    }

    fn send(&mut self, cx: &Context<'_>, inlet: Inlet, read_at: Tick, frames: usize, chunk: BytesMut) {
        let from = InFlight::new(&self.shard.directory, &self.peer, frames, chunk.len());
        let batch = Batch { from, chunk, read_at, quiet: false };
        if !self.blocked.is_empty() {
            self.blocked.push_back((inlet, batch));
        } else if let Err(batch) = inlet.push(batch, cx) {
            self.blocked.push_back((inlet, batch));
        }
    }

    fn local(&mut self, cx: &Context<'_>, now: Tick, chunk: &[u8]) {
        for frame in Frames(chunk) {
            if let Err(e) = self.local_frame(cx, now, &frame) {
                self.answer_error(frame.prefix.id, &e);
            }
        }
    }

    fn local_frame(&mut self, cx: &Context<'_>, now: Tick, frame: &FrameRef<'_>) -> Result<(), WireError> {
        match frame.op()? {
            Op::Ping if frame.payload.len() > PING_BYTES_MAX => Err(WireError::new(
                Code::MalformedFrame,
                format!("a ping carries at most {PING_BYTES_MAX} bytes"),
            )),
            Op::Ping => {
                self.peer.outbox.answer(Op::Pong, frame.prefix.id, 0, &[], frame.payload);
                Ok(())
            }
            Op::Pong => Ok(()),
            Op::Goodbye => {
                (self.closing, self.leaving) = (true, true);
                Ok(())
            }
            Op::Fragment => self.fragment(cx, now, *frame),
            Op::Hello => Err(WireError::new(Code::AlreadyLoggedIn, "Hello was sent before")),
            Op::Submit => Err(self.refusal()),
            op => Err(WireError::new(Code::UnknownOp, format!("{op:?} may not be sent by a client"))),
        }
    }

    fn refusal(&self) -> WireError {
        if self.shard.draining.load(Ordering::Relaxed) {
            let (code, text) = match self.shard.journal.state().failed {
                Some(_) => (Code::JournalFailed, "the journal failed; the server is about to stop"),
                None => (Code::Draining, "the server is shutting down"),
            };
            return WireError::new(code, text).retry_after(1000);
        }
        let t = &self.shard.terms;
        let text = format!(
            "more than {} tasks or {} bytes are not acknowledged yet",
            t.credit_tasks, t.credit_bytes
        );
        WireError::new(Code::ProducerCredit, text).retry_after(10)
    }

    pub(super) fn answer_error(&self, id: u32, e: &WireError) {
        self.peer.outbox.answer(Op::Error, id, 0, &messages::encode(e), &[]);
    }
}

/// The hub shard of a subject, by the same hash that spreads queues.
fn spread(subject: &[u8], shards: usize) -> usize {
    std::str::from_utf8(subject).map_or(0, |s| usize::from(Partition::of_queue(s).0)) % shards
}
