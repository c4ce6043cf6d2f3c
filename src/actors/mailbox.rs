//! The seam between sessions and actors: a bounded channel of batches.
//!
//! Not a tokio channel, for three reasons: the receiver takes everything that waits with one lock; what waits survives
//! the receiver's panic, because the channel belongs to both sides; and a waiting sender costs nothing while idle
//! (a tokio channel would put 1 KiB into each of ten thousand idle sessions).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::directory::InFlight;
use super::journaler::Journaled;
use crate::core::time::Tick;
use crate::planted;
use hive_proto::{FrameRef, SessionId};

/// Batches that may wait for one actor.
const BATCHES_MAX: usize = 4096;
/// Bytes that may wait for one actor.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// What sessions tell an actor.
#[derive(Debug)]
pub enum Input {
    /// Complete frames that a session has cut and judged.
    Frames(Batch),
    /// A session whose client did not keep up has read what waited for it.
    HasRead(SessionId),
    /// A session sends nothing more. Said when it leaves, and again when it is gone.
    Closed(InFlight),
    /// What became of a record for the journal.
    Journaled(Journaled),
}

/// Frames of one session for one actor.
#[derive(Debug)]
pub struct Batch {
    /// Who sent them. Keep it until the answers are queued.
    pub from: InFlight,
    /// Complete frames, owned by nobody else.
    pub chunk: BytesMut,
    /// When they were read.
    pub read_at: Tick,
    /// Copies of subscriptions for the other hub shards: not answered.
    pub quiet: bool,
}

/// Whether complete frames are but one, about one task at most.
pub fn is_one_thing(frames: &[u8]) -> bool {
    FrameRef::parse(frames).is_some_and(|f| f.bytes() == frames.len() && f.prefix.count <= 1)
}

#[derive(Debug, Default)]
struct Queue {
    inputs: Vec<Input>,
    /// News of the journal, which go first.
    journaled: Vec<Input>,
    /// The receiver takes nothing but these for now.
    shut: bool,
    bytes: usize,
    blocked: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    receiver: AtomicWaker,
}

/// The channel; both ends are clones of it.
#[derive(Clone, Debug, Default)]
pub struct Inlet(Arc<Shared>);

impl Inlet {
    /// Queues a batch, or gives it back and wakes the caller when there is room.
    ///
    /// # Errors
    /// The batch, when the channel is full.
    pub fn push(&self, batch: Batch, cx: &Context<'_>) -> Result<(), Batch> {
        let mut q = self.0.queue.lock();
        if q.shut && planted::is("drop_when_shut") {
            return Ok(());
        }
        if q.inputs.len() >= BATCHES_MAX || q.bytes + batch.chunk.len() > BYTES_MAX && !q.inputs.is_empty() {
            if !q.blocked.iter().any(|w| w.will_wake(cx.waker())) {
                q.blocked.push(cx.waker().clone());
            }
            return Err(batch);
        }
        q.bytes += batch.chunk.len();
        let first = q.inputs.is_empty() && !q.shut;
        q.inputs.push(Input::Frames(batch));
        drop(q);
        if first {
            self.0.receiver.wake();
        }
        Ok(())
    }

    /// Says that a session sends nothing more. Never refused: there are two for each session.
    pub fn closed(&self, session: InFlight) {
        self.push_always(Input::Closed(session));
    }

    /// Says that a client has read what waited for it. Never refused: there is one for each time that somebody waits.
    pub fn has_read(&self, session: SessionId) {
        self.push_always(Input::HasRead(session));
    }

    /// Hands a subscription with wildcards on to another hub shard. Never refused: there is one for each that the first
    /// shard has taken.
    pub fn copied(&self, subscription: Batch) {
        self.push_always(Input::Frames(subscription));
    }

    /// Says what became of a record. Never refused: one is under way at a time.
    pub fn journaled(&self, journaled: Journaled) {
        self.put_journaled(journaled);
        self.wake();
    }

    /// The same, for a caller that holds a lock which the receiver will want: [`Self::wake`] is to follow.
    pub fn put_journaled(&self, journaled: Journaled) {
        self.0.queue.lock().journaled.push(Input::Journaled(journaled));
    }

    /// Wakes the receiver.
    pub fn wake(&self) {
        self.0.receiver.wake();
    }

    /// While `shut`, nothing is taken but news of the journal; senders wait once the channel is full.
    pub fn shut(&self, shut: bool) {
        self.0.queue.lock().shut = shut;
        if !shut {
            self.0.receiver.wake();
        }
    }

    fn push_always(&self, input: Input) {
        self.0.queue.lock().inputs.push(input);
        self.0.receiver.wake();
    }

    /// Takes everything that waits; `into` must be empty.
    pub fn take(&self, into: &mut Vec<Input>) {
        let blocked = {
            let mut q = self.0.queue.lock();
            into.append(&mut q.journaled);
            match into.is_empty() {
                _ if q.shut => return,
                true => std::mem::swap(&mut q.inputs, into),
                false => into.append(&mut q.inputs),
            }
            q.bytes = 0;
            std::mem::take(&mut q.blocked)
        };
        for waker in blocked {
            waker.wake();
        }
    }

    /// Takes the news of the journal alone.
    pub fn take_journaled(&self, into: &mut Vec<Journaled>) {
        let news = std::mem::take(&mut self.0.queue.lock().journaled);
        into.extend(
            news.into_iter().filter_map(|i| if let Input::Journaled(j) = i { Some(j) } else { None }),
        );
    }

    /// Batches that wait.
    pub fn depth(&self) -> usize {
        self.0.queue.lock().inputs.len()
    }

    /// Becomes ready whenever something waits.
    pub fn ready(&self) -> Ready {
        Ready(self.clone())
    }
}

/// The stream that an actor consumes: one item says that there is something to [`Inlet::take`].
#[derive(Debug)]
pub struct Ready(Inlet);

impl Stream for Ready {
    type Item = ();

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let shared = &self.0.0;
        shared.receiver.register(cx.waker());
        let q = shared.queue.lock();
        let waiting = !q.journaled.is_empty() || !q.shut && !q.inputs.is_empty();
        if waiting { Poll::Ready(Some(())) } else { Poll::Pending }
    }
}
