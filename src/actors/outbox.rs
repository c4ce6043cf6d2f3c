//! What waits to be written to one session, and what happens when it does not read.
//!
//! | kind | when the outbox is full |
//! |---|---|
//! | answers | queued; the session stops reading until they are out, so a client that asks without reading waits |
//! | assignments | queued; the worker's credit bounds them |
//! | outcomes, progress | not queued, counted; the client is told by `ResultsMissed` and can ask |
//! | published messages | not queued, counted for each subscription; the client is told by `MessagesLost` |

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hive_proto::frame::write_frame;
use hive_proto::{Op, fragment};
use parking_lot::Mutex;

/// Frames above this travel as fragments of this size, bytes.
pub const FRAGMENT_BYTES: usize = 256 * 1024;
/// Shorter runs are copied together instead of being a piece of their own, bytes.
const COPY_BYTES: usize = 4096;

/// Single answers are gathered in pieces of this size: each by itself would cost as much again for its place, bytes.
const GATHER_BYTES: usize = 16 * 1024;

/// Bytes ready to be written.
#[derive(Debug)]
pub enum Piece {
    /// From the pool of the thread that wrote it.
    Owned(Vec<u8>),
    /// A slice of somebody's read buffer, all of which it keeps alive.
    Shared(Bytes, Kept),
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Owned(v) => v,
            Self::Shared(b, _) => b,
        }
    }
}

/// A read buffer that a piece keeps alive, counted as long as it does.
#[derive(Debug)]
pub struct Kept(Arc<OutboxLimits>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.kept.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bounds of outboxes, and what they hold together.
#[derive(Debug)]
pub struct OutboxLimits {
    /// One outbox, bytes.
    pub bytes_max: usize,
    /// All outboxes, bytes.
    pub total_bytes_max: usize,
    /// Longest message, bytes.
    pub message_bytes_max: usize,
    total: AtomicUsize,
    /// What actors have gathered of long answers, to be queued when the journal allows it, bytes.
    gathered: AtomicUsize,
    open: AtomicUsize,
    kept: AtomicUsize,
}

impl OutboxLimits {
    /// Bounds of one outbox, of all together, and of one message, bytes.
    pub fn new(bytes_max: usize, total_bytes_max: usize, message_bytes_max: usize) -> Self {
        let (total, gathered, open, kept) = Default::default();
        Self { bytes_max, total_bytes_max, message_bytes_max, total, gathered, open, kept }
    }

    /// What may still be queued, bytes.
    pub fn room(&self) -> usize {
        let held = self.total.load(Ordering::Relaxed) + self.gathered.load(Ordering::Relaxed);
        self.total_bytes_max.saturating_sub(held)
    }

    /// Counts what is gathered to be queued later.
    pub fn gathered(&self, bytes: usize) {
        self.gathered.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It is queued, or dropped.
    pub fn released(&self, bytes: usize) {
        self.gathered.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What each outbox may hold when together they hold much: those that do not read must not take the room of those
    /// that do.
    fn share(&self) -> usize {
        (self.total_bytes_max / 2 / self.open.load(Ordering::Relaxed).max(1)).max(COPY_BYTES)
    }

    /// Whether a slice may keep the buffer alive that it is cut from. Short slices of long buffers would hold many times
    /// the bytes that are counted.
    fn may_share(&self, slice_bytes: usize) -> bool {
        let kept_bytes = self.kept.load(Ordering::Relaxed) * FRAGMENT_BYTES;
        slice_bytes >= FRAGMENT_BYTES / 4 * 3
            || slice_bytes >= COPY_BYTES && kept_bytes < self.total_bytes_max / 4
    }
}

#[derive(Debug, Default)]
struct Queues {
    /// Answers and heartbeats: overtake.
    answers: VecDeque<Piece>,
    /// Everything else, in order.
    data: VecDeque<Piece>,
    bytes: usize,
    answer_bytes: usize,
    lost: hashbrown::HashMap<u32, u64>,
    missed: u64,
    next_stream: u32,
    /// The dispatcher waits until there is room.
    stalled: bool,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    queues: Mutex<Queues>,
    writer: AtomicWaker,
    limits: Arc<OutboxLimits>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(limits: Arc<OutboxLimits>) -> Self {
        limits.open.fetch_add(1, Ordering::Relaxed);
        Self { queues: Mutex::default(), writer: AtomicWaker::new(), limits }
    }

    /// Whether droppable frames would be dropped now, if `more` bytes were queued before.
    pub fn is_full(&self, more: usize) -> bool {
        self.over(self.queues.lock().bytes + more)
    }

    /// Whether everything has been written.
    pub fn is_empty(&self) -> bool {
        self.queues.lock().bytes == 0
    }

    /// Whether the client asks faster than it reads the answers.
    pub fn is_clogged(&self) -> bool {
        let answers = self.queues.lock().answer_bytes;
        answers > self.limits.bytes_max
            || answers > 0 && self.limits.total.load(Ordering::Relaxed) > self.limits.total_bytes_max
    }

    /// Wakes `waker` when something is queued.
    pub fn register(&self, waker: &Waker) {
        self.writer.register(waker);
    }

    /// Wakes the session's task.
    pub fn wake(&self) {
        self.writer.wake();
    }

    fn over(&self, bytes: usize) -> bool {
        let l = &self.limits;
        bytes > l.bytes_max || l.total.load(Ordering::Relaxed) > l.total_bytes_max / 2 && bytes > l.share()
    }

    /// Queues what must not be dropped, swapping empty buffers back in. Gives whether the outbox is full now.
    pub fn push(&self, answers: &mut Vec<u8>, data: &mut Vec<u8>) -> bool {
        let mut q = self.queues.lock();
        if q.closed {
            answers.clear();
            data.clear();
            return false;
        }
        let added = answers.len() + data.len();
        q.bytes += added;
        q.answer_bytes += answers.len();
        self.limits.total.fetch_add(added, Ordering::Relaxed);
        for (queue, buf) in [(true, answers), (false, data)] {
            if !buf.is_empty() {
                let lane = if queue { &mut q.answers } else { &mut q.data };
                append(lane, buf);
            }
        }
        let full = self.over(q.bytes);
        drop(q);
        self.writer.wake();
        full
    }

    /// Queues one answer.
    pub fn answer(&self, op: Op, id: u32, count: u16, header: &[u8], payload: &[u8]) {
        let mut buf = pool::take();
        write_frame(&mut buf, op, 0, id, count, &[header], payload);
        self.push(&mut buf, &mut Vec::new());
        pool::give(buf);
    }

    /// Queues a frame longer than [`FRAGMENT_BYTES`] as fragments.
    pub fn push_large(&self, frame: &[u8]) {
        let mut q = self.queues.lock();
        if q.closed {
            return;
        }
        q.next_stream = q.next_stream.wrapping_add(1);
        let stream = q.next_stream;
        fragment::split(frame, stream, FRAGMENT_BYTES, |piece| {
            q.bytes += piece.len();
            self.limits.total.fetch_add(piece.len(), Ordering::Relaxed);
            q.data.push_back(Piece::Owned(piece));
        });
        drop(q);
        self.writer.wake();
    }

    /// Queues complete frames of one subscription, or counts them as lost. Gives whether they were queued.
    pub fn deliver(&self, sub: u32, count: u32, frames: Bytes) -> bool {
        let mut q = self.queues.lock();
        if q.closed {
            return false;
        }
        // A message longer than an outbox is taken alone, if there is room for it.
        let alone = q.bytes == 0
            && self.limits.total.load(Ordering::Relaxed) + frames.len() <= self.limits.total_bytes_max;
        if self.over(q.bytes + frames.len()) && !alone {
            *q.lost.entry(sub).or_default() += u64::from(count);
            return false;
        }
        if count == 1 && frames.len() > FRAGMENT_BYTES {
            drop(q);
            self.push_large(&frames);
            return true;
        }
        q.bytes += frames.len();
        self.limits.total.fetch_add(frames.len(), Ordering::Relaxed);
        if self.limits.may_share(frames.len()) {
            self.limits.kept.fetch_add(1, Ordering::Relaxed);
            q.data.push_back(Piece::Shared(frames, Kept(self.limits.clone())));
        } else {
            let lane = &mut q.data;
            match lane.back_mut() {
                Some(Piece::Owned(v)) if v.len() + frames.len() <= FRAGMENT_BYTES => {
                    v.extend_from_slice(&frames);
                }
                _ => {
                    let mut buf = pool::take();
                    buf.extend_from_slice(&frames);
                    lane.push_back(Piece::Owned(buf));
                }
            }
        }
        drop(q);
        self.writer.wake();
        true
    }

    /// Counts outcomes that were not queued.
    pub fn miss(&self, count: u64) {
        self.queues.lock().missed += count;
        self.writer.wake();
    }

    /// Moves what waits to the writer: answers first, then data, at most `data_bytes` of it. Gives whether anything moved.
    pub fn take(&self, into: &mut VecDeque<Piece>, data_bytes: usize) -> bool {
        let mut q = self.queues.lock();
        self.confess(&mut q);
        q.answer_bytes = 0;
        let before = into.len();
        into.append(&mut q.answers);
        let mut room = data_bytes;
        while room > 0
            && let Some(piece) = q.data.pop_front()
        {
            room = room.saturating_sub(piece.as_ref().len());
            into.push_back(piece);
        }
        if q.data.is_empty() && q.data.capacity() > 64 {
            q.data = VecDeque::new();
        }
        into.len() > before
    }

    /// Once there is room again, says what was lost.
    fn confess(&self, q: &mut Queues) {
        if (q.lost.is_empty() && q.missed == 0) || q.bytes > self.limits.bytes_max / 2 {
            return;
        }
        let mut buf = pool::take();
        for (sub, n) in q.lost.drain() {
            write_frame(&mut buf, Op::MessagesLost, 0, sub, 0, &[&n.to_le_bytes()], &[]);
        }
        if q.missed > 0 {
            write_frame(&mut buf, Op::ResultsMissed, 0, 0, 0, &[&q.missed.to_le_bytes()], &[]);
            q.missed = 0;
        }
        q.bytes += buf.len();
        self.limits.total.fetch_add(buf.len(), Ordering::Relaxed);
        append(&mut q.data, &mut buf);
    }

    /// The writer has written so many bytes. Gives whether the dispatcher waits for this.
    pub fn written(&self, bytes: usize) -> bool {
        let mut q = self.queues.lock();
        q.bytes -= bytes;
        self.limits.total.fetch_sub(bytes, Ordering::Relaxed);
        q.stalled && !self.over(2 * q.bytes) && std::mem::take(&mut q.stalled)
    }

    /// Notes that the dispatcher has more, unless there is room now.
    pub fn stall(&self) -> bool {
        let mut q = self.queues.lock();
        let over = self.over(q.bytes);
        q.stalled |= over; // another consumer of the session may be waiting already
        over
    }

    /// The session is gone: nothing is queued any more.
    pub fn close(&self) {
        let mut q = self.queues.lock();
        self.limits.total.fetch_sub(q.bytes, Ordering::Relaxed);
        self.limits.open.fetch_sub(usize::from(!q.closed), Ordering::Relaxed);
        *q = Queues { closed: true, ..Queues::default() };
    }
}

fn append(lane: &mut VecDeque<Piece>, buf: &mut Vec<u8>) {
    match lane.back_mut() {
        Some(Piece::Owned(last)) if last.len() + buf.len() <= last.capacity().max(GATHER_BYTES) => {
            last.extend_from_slice(buf);
            buf.clear();
        }
        _ => lane.push_back(Piece::Owned(std::mem::replace(buf, pool::take()))),
    }
}

/// Buffers that go round between the actors and the sessions of a thread.
pub mod pool {
    use std::cell::RefCell;

    /// All buffers of a thread, bytes.
    const BYTES_MAX: usize = 4 * 1024 * 1024;
    const BUFFERS_MAX: usize = 256;

    thread_local! {
        static POOL: RefCell<(Vec<Vec<u8>>, usize)> = const { RefCell::new((Vec::new(), 0)) };
    }

    /// An empty buffer, used before if there is one.
    pub fn take() -> Vec<u8> {
        POOL.with_borrow_mut(|(buffers, bytes)| {
            let buf = buffers.pop().unwrap_or_default();
            *bytes -= buf.capacity();
            buf
        })
    }

    /// Gives a buffer back.
    pub fn give(mut buf: Vec<u8>) {
        buf.clear();
        POOL.with_borrow_mut(|(buffers, bytes)| {
            if buf.capacity() > 0 && *bytes + buf.capacity() <= BYTES_MAX && buffers.len() < BUFFERS_MAX {
                *bytes += buf.capacity();
                buffers.push(buf);
            }
        });
    }
}
