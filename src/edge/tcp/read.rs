//! From the socket to the actors: cut frames, gather those for one actor into one batch.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::BytesMut;
use hive_proto::codec::cut;
use hive_proto::error::Code;
use hive_proto::fragment::Assembler;
use hive_proto::messages::{self, Subscribe};
use hive_proto::{FrameRef, Frames, Op, PREFIX_LEN, Partition, WireError};
use tokio_util::io::poll_read_buf;

use super::session::Session;
use crate::actors::mailbox::{Batch, Inlet};
use crate::core::time::Tick;

/// What one read may bring, bytes.
const READ_BYTES: usize = 256 * 1024;
/// Beyond this the beginning of a frame grows in a buffer of the session's own instead of being copied to each read.
const OWN_BUFFER_BYTES: usize = 64 * 1024;
/// A ping may carry this much, bytes.
const PING_BYTES_MAX: usize = 64;

/// Who handles a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Dispatcher,
    Hub(u8),
    /// Subscribe and unsubscribe of subjects without wildcards.
    Control(u8),
    /// The same with wildcards: all hub shards, the first answers.
    ControlAll,
    /// Messages to agents: the shard's own hub.
    Agents,
    /// The session itself.
    Local,
}

impl Session {
    /// Reads once and routes what is complete. `false` at the end of the stream.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if std::mem::take(&mut self.fresh) {
            let mut buf = std::mem::take(&mut self.partial);
            self.route(cx, (self.shard.clock)(), &mut buf);
            self.partial = buf;
            return Poll::Ready(Ok(true));
        }
        if self.stream.poll_read_ready(cx)?.is_pending() {
            return Poll::Pending;
        }
        if self.partial.len() >= OWN_BUFFER_BYTES {
            let mut own = std::mem::take(&mut self.partial);
            own.reserve(own.len().max(READ_BYTES));
            let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut own);
            return self.after_read(cx, read, &mut own);
        }
        let mut buf = self.shard.buffer.take();
        if buf.capacity() < READ_BYTES / 4 + self.partial.len() {
            buf.reserve(READ_BYTES + self.partial.len());
        }
        buf.extend_from_slice(&self.partial);
        self.partial = BytesMut::new();
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut buf);
        let result = self.after_read(cx, read, &mut buf);
        buf.clear();
        self.shard.buffer.replace(buf);
        result
    }

    fn after_read(
        &mut self,
        cx: &mut Context<'_>,
        read: Poll<io::Result<usize>>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<bool>> {
        match read {
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) => {
                let now = (self.shard.clock)();
                self.peer.heard_at.store(now.0, Ordering::Relaxed);
                self.route(cx, now, buf);
            }
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => {}
        }
        self.partial = if buf.len() >= OWN_BUFFER_BYTES { buf.split() } else { BytesMut::from(&buf[..]) };
        read.map_ok(|_| true)
    }

    /// Routes the complete frames at the start of `buf` and leaves the rest in it.
    fn route(&mut self, cx: &Context<'_>, now: Tick, buf: &mut BytesMut) {
        let limit = self.shard.terms.frame_bytes_max as usize;
        let (mut run, mut class) = (0, Class::Local);
        loop {
            match cut(&buf[run..], limit) {
                Ok(Some(total)) => {
                    let next = self.classify(&buf[run..run + total]);
                    if next != class && run > 0 {
                        let chunk = buf.split_to(run);
                        self.dispatch(cx, now, class, chunk);
                        run = 0;
                    }
                    class = next;
                    run += total;
                }
                Ok(None) => break,
                Err(e) => {
                    self.dispatch_run(cx, now, class, run, buf);
                    buf.clear();
                    self.answer_error(0, &e);
                    self.closing = true;
                    return;
                }
            }
        }
        self.dispatch_run(cx, now, class, run, buf);
    }

    fn dispatch_run(&mut self, cx: &Context<'_>, now: Tick, class: Class, run: usize, buf: &mut BytesMut) {
        if run > 0 {
            let chunk = buf.split_to(run);
            self.dispatch(cx, now, class, chunk);
        }
    }

    #[inline]
    fn classify(&mut self, frame: &[u8]) -> Class {
        match frame[5] {
            0x10 if !self.may_submit(frame) => Class::Local,
            0x10..=0x1c => Class::Dispatcher,
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
        if f.prefix.op == Op::Unsubscribe as u8 {
            return shards.remove(&f.prefix.id).map_or(Class::ControlAll, Class::Control);
        }
        let Ok(s) = messages::decode::<Subscribe>(f.header) else { return Class::Control(0) };
        if hive_proto::names::pattern(s.subject.as_bytes()).is_err() {
            return Class::Control(0); // which refuses it; the id stays free
        }
        if s.subject.contains(['*', '>']) {
            return Class::ControlAll;
        }
        let shard = spread(s.subject.as_bytes(), self.shard.hubs.len()) as u8;
        // A second subscription under an id goes where the first one is, to be refused there.
        Class::Control(*shards.entry(f.prefix.id).or_insert(shard))
    }

    fn dispatch(&mut self, cx: &Context<'_>, now: Tick, class: Class, chunk: BytesMut) {
        if matches!(class, Class::Hub(_) | Class::Agents) {
            self.peer.requests.store(true, Ordering::Relaxed);
        }
        match class {
            Class::Local => self.local(cx, now, &chunk),
            Class::Dispatcher => {
                self.peer.submits.store(true, Ordering::Relaxed);
                self.send(cx, self.shard.dispatcher.clone(), now, chunk, false);
            }
            Class::Hub(n) | Class::Control(n) => {
                self.send(cx, self.shard.hubs[usize::from(n)].clone(), now, chunk, false);
            }
            Class::Agents => {
                let own = usize::from(self.shard.number) % self.shard.hubs.len();
                self.send(cx, self.shard.hubs[own].clone(), now, chunk, false);
            }
            Class::ControlAll => {
                for n in 1..self.shard.hubs.len() {
                    self.send(cx, self.shard.hubs[n].clone(), now, chunk.clone(), true);
                }
                self.send(cx, self.shard.hubs[0].clone(), now, chunk, false);
            }
        }
    }

    fn send(&mut self, cx: &Context<'_>, inlet: Inlet, read_at: Tick, chunk: BytesMut, quiet: bool) {
        let batch = Batch { from: self.peer.clone(), chunk, read_at, quiet };
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
                self.closing = true;
                Ok(())
            }
            Op::Fragment => self.fragment(cx, now, frame),
            Op::Hello => Err(WireError::new(Code::AlreadyLoggedIn, "Hello was sent before")),
            Op::Submit => Err(self.refusal()),
            op => Err(WireError::new(Code::UnknownOp, format!("{op:?} may not be sent by a client"))),
        }
    }

    fn refusal(&self) -> WireError {
        if self.shard.draining.load(Ordering::Relaxed) {
            return WireError::new(Code::Draining, "the server is shutting down").retry_after(1000);
        }
        let t = &self.shard.terms;
        let text = format!(
            "more than {} tasks or {} bytes are not acknowledged yet",
            t.credit_tasks, t.credit_bytes
        );
        WireError::new(Code::ProducerCredit, text).retry_after(10)
    }

    fn fragment(&mut self, cx: &Context<'_>, now: Tick, frame: &FrameRef<'_>) -> Result<(), WireError> {
        let (terms, all) = (&self.shard.terms, &self.shard.directory.parts_bytes);
        let limit = terms.message_bytes_max as usize + PREFIX_LEN;
        let assembler = self.assembler.get_or_insert_with(|| Box::new(Assembler::new(limit)));
        let held = assembler.bytes();
        let room = held + terms.parts_bytes_max.saturating_sub(all.load(Ordering::Relaxed));
        assembler.set_message_bytes_max(limit.min(room));
        let pushed = assembler.push(*frame);
        all.fetch_add(assembler.bytes(), Ordering::Relaxed);
        all.fetch_sub(held, Ordering::Relaxed);
        let whole = match pushed {
            Ok(Some(whole)) => whole,
            Ok(None) => return Ok(()),
            Err((id, e)) if room < limit && e.code == Code::MessageTooLarge as u16 => {
                let text = "messages that have not arrived whole fill the memory for them";
                self.answer_error(id, &WireError::new(Code::Overloaded, text).retry_after(100));
                return Ok(());
            }
            Err((id, e)) => {
                self.answer_error(id, &e);
                return Ok(());
            }
        };
        if assembler.is_idle() {
            self.assembler = None;
        }
        let message = whole.try_into_mut().unwrap_or_else(|b| BytesMut::from(&b[..]));
        match self.classify(&message) {
            Class::Local if message[5] == Op::Fragment as u8 => {
                Err(WireError::new(Code::MalformedFrame, "a fragment inside a fragment"))
            }
            class => {
                self.dispatch(cx, now, class, message);
                Ok(())
            }
        }
    }

    fn answer_error(&self, id: u32, e: &WireError) {
        self.peer.outbox.answer(Op::Error, id, 0, &messages::encode(e), &[]);
    }
}

/// The hub shard of a subject, by the same hash that spreads queues.
fn spread(subject: &[u8], shards: usize) -> usize {
    std::str::from_utf8(subject).map_or(0, |s| usize::from(Partition::of_queue(s).0)) % shards
}
