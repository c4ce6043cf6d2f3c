//! Workers: consumers of queues, and the tasks they hold.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use futures_util::Stream;
use hive_proto::items::{Assign, DELAY_BY_POLICY, Item as _, NO_VALUE, Progress, Reader, RevokeReason};
use hive_proto::messages::{self, TaskOptions, Work};
use hive_proto::{Lease, Op, PREFIX_LEN, Prefix, TaskId, Trace, names};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::client::Inner;
use crate::command::{Command, How, Note, Settle};
use crate::{Client, Error};

impl Client {
    /// Starts to open a consumer of `queue`.
    pub fn work(&self, queue: &str) -> WorkBuilder {
        let spec =
            Work { queue: queue.to_owned(), credit_tasks: 1, credit_bytes: 16 << 20, labels: Vec::new() };
        WorkBuilder { inner: Arc::clone(&self.inner), spec }
    }
}

/// Settings of a [`Consumer`].
#[derive(Debug)]
#[must_use]
pub struct WorkBuilder {
    inner: Arc<Inner>,
    spec: Work,
}

impl WorkBuilder {
    /// Tasks held at once; 1 by default.
    pub fn credit(mut self, tasks: u32) -> Self {
        self.spec.credit_tasks = tasks;
        self
    }

    /// Payload bytes held at once; 16 MiB by default. One task is given even if it is larger.
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.spec.credit_bytes = bytes;
        self
    }

    /// Capabilities in addition to those of the agent.
    pub fn labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.spec.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Opens the consumer; tasks come from then on.
    ///
    /// # Errors
    /// `invalid_queue_name`, `invalid_label`, `unknown_queue`, `credit_overflow`, ...
    pub async fn open(self) -> Result<Consumer, Error> {
        names::queue(self.spec.queue.as_bytes())?;
        names::labels(&self.spec.labels)?;
        let shared = Arc::new(ConsumerShared::default());
        // A batch holds at least one task; twice the window, because a new connection has a window of its own while
        // batches of the last one are still unread.
        let (tx, rx) = mpsc::channel(2 * (self.spec.credit_tasks as usize).clamp(1, 1 << 20));
        let (reply, opened) = oneshot::channel();
        let (inner, spec) = (self.inner, self.spec);
        inner
            .command(Command::OpenConsumer { spec, shared: Arc::clone(&shared), batches: tx, reply })
            .await?;
        let id = inner.answer_in_time(opened).await?;
        Ok(Consumer { handle: Arc::new(Handle { inner, shared, id }), batches: rx, current: None })
    }
}

/// What the driver tells the holders of a consumer's assignments.
#[derive(Debug, Default)]
pub(crate) struct ConsumerShared {
    revoked: Mutex<HashMap<Lease, Revocation>>,
    changed: Notify,
    failure: OnceLock<Error>,
}

impl ConsumerShared {
    pub(crate) fn revoke(&self, lease: Lease, why: Revocation) {
        self.revoked().insert(lease, why);
        self.changed.notify_waiters();
    }

    /// The connection is gone; its generation tells each assignment so.
    pub(crate) fn void_all(&self) {
        self.revoked().clear();
        self.changed.notify_waiters();
    }

    pub(crate) fn forget(&self, lease: Lease) {
        self.revoked().remove(&lease);
    }

    pub(crate) fn fail(&self, e: Error) {
        // The first reason stands.
        let _ = self.failure.set(e);
    }

    fn revoked(&self) -> MutexGuard<'_, HashMap<Lease, Revocation>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tasks that came in one frame.
#[derive(Debug)]
pub(crate) struct AssignBatch {
    frame: Bytes,
    at: usize,
    left: u16,
    generation: u64,
}

impl AssignBatch {
    /// Over a frame whose items have been checked.
    pub(crate) fn new(frame: Bytes, prefix: Prefix, generation: u64) -> Self {
        Self { frame, at: PREFIX_LEN + usize::from(prefix.header_len), left: prefix.count, generation }
    }

    fn next(&mut self, handle: &Arc<Handle>) -> Option<Assignment> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader(self.frame.get(self.at..)?);
        let a = Assign::read(&mut reader)?;
        let assignment = Assignment {
            handle: Arc::clone(handle),
            lease: a.lease,
            generation: self.generation,
            ext: if a.ext.is_empty() { Bytes::new() } else { self.frame.slice_ref(a.ext) },
            payload: self.frame.slice_ref(a.payload),
            settled: false,
        };
        self.at = self.frame.len() - reader.0.len();
        Some(assignment)
    }
}

#[derive(Debug)]
struct Handle {
    inner: Arc<Inner>,
    shared: Arc<ConsumerShared>,
    id: u32,
}

/// A stream of tasks. It lives through breaks of the connection, and ends when it is stopped, refused for good, or the
/// client ends. Dropping it gives back what was not taken from it; assignments in hand stay valid.
#[derive(Debug)]
pub struct Consumer {
    handle: Arc<Handle>,
    batches: mpsc::Receiver<AssignBatch>,
    current: Option<AssignBatch>,
}

impl Consumer {
    /// Asks for no more tasks: the stream gives what has arrived and then ends.
    pub fn stop(&self) {
        // Without a driver there is nothing to stop.
        let _ = self.handle.inner.note(Note::StopConsumer(self.handle.id));
    }

    /// Changes the window: how many tasks and payload bytes may be held at once. 0 pauses. More than twice the first
    /// window is not used.
    ///
    /// # Errors
    /// [`Error::Closed`] or the reason why the client ended.
    pub async fn set_credit(&self, tasks: u32, bytes: u64) -> Result<(), Error> {
        self.handle.inner.command(Command::SetCredit { consumer: self.handle.id, tasks, bytes }).await
    }

    /// Why the stream ended by itself, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.handle.shared.failure.get().cloned()
    }
}

impl Stream for Consumer {
    type Item = Assignment;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Assignment>> {
        let this = self.get_mut();
        loop {
            if let Some(assignment) = this.current.as_mut().and_then(|b| b.next(&this.handle)) {
                if assignment.revocation().is_none() {
                    return Poll::Ready(Some(assignment));
                }
                continue; // Void before anybody saw it.
            }
            match this.batches.poll_recv(cx) {
                Poll::Ready(Some(batch)) => this.current = Some(batch),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Without a driver there is nothing to close or give back.
        let _ = self.handle.inner.note(Note::CloseConsumer(self.handle.id));
        self.batches.close();
        while let Some(mut batch) = self.current.take().or_else(|| self.batches.try_recv().ok()) {
            while batch.next(&self.handle).is_some() {}
        }
    }
}

/// Why an assignment is void.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Revocation {
    /// The server said so.
    Server(RevokeReason),
    /// The connection broke; the server has given the task back to its queue.
    Disconnected,
}

/// How a task failed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Failure {
    error: String,
    permanent: bool,
    delay_ms: u32,
}

impl Failure {
    /// Another attempt may succeed; it comes after the delay of the queue's policy.
    pub fn retryable(error: impl Into<String>) -> Self {
        Self { error: error.into(), permanent: false, delay_ms: DELAY_BY_POLICY }
    }

    /// No attempt can succeed: the task becomes a dead letter.
    pub fn permanent(error: impl Into<String>) -> Self {
        Self { error: error.into(), permanent: true, delay_ms: DELAY_BY_POLICY }
    }

    /// Delays the next attempt; at most 49 days.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay_ms = millis(delay);
        self
    }
}

/// A task in the hands of this worker. Its lease is renewed until it is settled; dropping it gives it back.
#[derive(Debug)]
pub struct Assignment {
    handle: Arc<Handle>,
    lease: Lease,
    generation: u64,
    ext: Bytes,
    payload: Bytes,
    settled: bool,
}

impl Assignment {
    /// The task.
    pub fn id(&self) -> TaskId {
        self.lease.task
    }

    /// Counts the assignments of the task, from 1.
    pub fn attempt(&self) -> u32 {
        self.lease.attempt
    }

    /// The right to settle the task.
    pub fn lease(&self) -> Lease {
        self.lease
    }

    /// What was submitted.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The submitter's trace context.
    pub fn trace(&self) -> Option<Trace> {
        if self.ext.is_empty() {
            return None;
        }
        messages::decode::<TaskOptions>(&self.ext).ok()?.trace
    }

    /// Settles the task with its result, and waits until the server has it.
    ///
    /// # Errors
    /// `stale_lease` if the task is in other hands; a lost connection leaves it unknown whether the result counted.
    pub async fn complete(mut self, result: impl Into<Bytes>) -> Result<(), Error> {
        let result = result.into();
        self.settle(result.len(), How::Complete(result), true).await
    }

    /// Settles the task with its result, and waits for room in the client's buffer only. If the lease turns out to be
    /// void the result is dropped, as it must be; that is logged.
    ///
    /// # Errors
    /// [`Error::Closed`] or the reason why the client ended.
    pub async fn complete_unconfirmed(mut self, result: impl Into<Bytes>) -> Result<(), Error> {
        let result = result.into();
        self.settle(result.len(), How::Complete(result), false).await
    }

    /// Reports that the attempt failed. Errors longer than 65,535 bytes are cut.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub async fn fail(mut self, failure: Failure) -> Result<(), Error> {
        let Failure { error, permanent, delay_ms } = failure;
        self.settle(error.len(), How::Fail { error, permanent, delay_ms }, true).await
    }

    /// Gives the task back, to be assigned again after `delay`; the attempt does not count.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub async fn release(mut self, delay: Duration) -> Result<(), Error> {
        self.settle(0, How::Release { delay_ms: millis(delay) }, true).await
    }

    /// Tells those who watch the task how far it is: a fraction from 0 to 1 (`None` where unknown), and a note for
    /// whoever understands it.
    ///
    /// # Errors
    /// [`Error::Closed`] or the reason why the client ended.
    pub async fn progress(&self, fraction: Option<f32>, note: &[u8]) -> Result<(), Error> {
        let value = fraction.map_or(NO_VALUE, |f| (f.clamp(0.0, 1.0) * 10_000.0).round() as u16);
        let mut item = Vec::with_capacity(22 + note.len());
        Progress { lease: self.lease, value, note }.write(&mut item);
        if self.revocation().is_some() {
            return Ok(()); // In other hands; `revoked` tells.
        }
        self.handle.inner.send(Op::Progress, 0, Bytes::new(), 1, item.into()).await
    }

    /// Why the assignment is void, if it is.
    pub fn revocation(&self) -> Option<Revocation> {
        if self.generation != self.handle.inner.shared.generation() {
            return Some(Revocation::Disconnected);
        }
        self.handle.shared.revoked().get(&self.lease).copied()
    }

    /// Waits until the assignment is void, and tells why: the work should stop, for nobody wants its result.
    pub async fn revoked(&self) -> Revocation {
        loop {
            let mut changed = std::pin::pin!(self.handle.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(why) = self.revocation() {
                return why;
            }
            changed.await;
        }
    }

    async fn settle(&mut self, bytes: usize, how: How, confirm: bool) -> Result<(), Error> {
        let inner = Arc::clone(&self.handle.inner);
        let permit = inner.reserve(bytes).await?;
        let (reply, answer) = if confirm {
            let (tx, rx) = oneshot::channel();
            (Some(tx), Some(rx))
        } else {
            (None, None)
        };
        inner.note(Note::Settle(self.note(how, permit.num_permits(), reply)))?;
        self.settled = true;
        permit.forget();
        match answer {
            Some(rx) => inner.answer(rx).await,
            None => Ok(()),
        }
    }

    fn note(&self, how: How, weight: usize, reply: Option<oneshot::Sender<Result<(), Error>>>) -> Settle {
        Settle {
            consumer: self.handle.id,
            generation: self.generation,
            lease: self.lease,
            how,
            weight,
            reply,
        }
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        if !self.settled {
            // Without a driver the server has noticed by itself.
            let _ = self.handle.inner.note(Note::Settle(self.note(How::Release { delay_ms: 0 }, 0, None)));
        }
    }
}

fn millis(d: Duration) -> u32 {
    // The largest value has a meaning of its own.
    u32::try_from(d.as_millis()).unwrap_or(u32::MAX).min(u32::MAX - 1)
}
