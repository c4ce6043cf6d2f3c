//! The handle that callers hold, and what they share with the driver.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hive_proto::Op;
use hive_proto::codec::Frame;
use hive_proto::messages::Welcome;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::budget::Budget;
use crate::command::{Call, Command, Note, Submission};
use crate::driver::{Driver, Receivers};
use crate::{ClientBuilder, Error};

/// Messages that may wait for the driver, per channel; their bytes are bounded by the budget.
const CHANNEL: usize = 4096;

/// A connection to Hive. Cheap to clone; the connection ends when the last clone, consumer, subscription, assignment and
/// task handle is gone.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

/// Where the connection stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Logged in.
    Connected {
        /// `host:port`.
        server: String,
        /// The agent id in force.
        agent: String,
        /// The session's number, unique within one run of the server.
        session: u64,
    },
    /// The server asks its clients to finish and leave; the client does so by itself if it knows another server.
    Draining {
        /// For people.
        reason: String,
    },
    /// The connection broke and is being made again.
    Reconnecting {
        /// Rounds over all servers that have failed since.
        failures: u32,
    },
    /// It is over: closed on purpose, or failed for good.
    Closed(Error),
}

#[derive(Debug)]
pub(crate) struct Inner {
    submits: mpsc::Sender<Submission>,
    commands: mpsc::Sender<Command>,
    notes: mpsc::UnboundedSender<Note>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: ClientBuilder,
}

/// What the driver and its callers share. It holds no sender: the driver ends when the last [`Inner`] is gone.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) budget: Budget,
    pub(crate) closing: Notify,
    close: AtomicBool,
    drain: AtomicBool,
    generation: AtomicU64,
    credit_tasks: AtomicU32,
    credit_bytes: AtomicU64,
    status: watch::Sender<Status>,
    failure: OnceLock<Error>,
}

impl Shared {
    pub(crate) fn is_closing(&self) -> bool {
        self.close.load(Ordering::Acquire)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.load(Ordering::Acquire)
    }

    /// Changes with every connection made or lost.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn set_limits(&self, w: &Welcome) {
        self.credit_tasks.store(w.credit_tasks, Ordering::Relaxed);
        self.credit_bytes.store(w.credit_bytes, Ordering::Relaxed);
    }

    /// Tasks and bytes that may be submitted in one piece.
    pub(crate) fn submit_max(&self) -> (usize, usize) {
        let bytes = usize::try_from(self.credit_bytes.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        (self.credit_tasks.load(Ordering::Relaxed).max(1) as usize, bytes)
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.status.send_replace(status);
    }

    pub(crate) fn fail(&self, reason: Error) {
        // The first reason stands.
        let _ = self.failure.set(reason);
        self.budget.close();
    }
}

impl Inner {
    /// Why nothing can be sent any more.
    pub(crate) fn closed(&self) -> Error {
        self.shared.failure.get().cloned().unwrap_or(Error::Closed)
    }

    /// Whether there is a connection, or may be one again.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.failure.get().is_none()
    }

    /// Waits for room for `bytes` in the buffer of what is to be sent.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<tokio::sync::SemaphorePermit<'_>, Error> {
        self.shared.budget.reserve(bytes).await.map_err(|_| self.closed())
    }

    pub(crate) async fn submission(&self, s: Submission) -> Result<(), Error> {
        self.submits.send(s).await.map_err(|_| self.closed())
    }

    pub(crate) async fn command(&self, c: Command) -> Result<(), Error> {
        self.commands.send(c).await.map_err(|_| self.closed())
    }

    /// Works in destructors; a driver that is gone has settled everything.
    pub(crate) fn note(&self, n: Note) -> Result<(), Error> {
        self.notes.send(n).map_err(|_| self.closed())
    }

    pub(crate) async fn answer<T>(&self, rx: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        rx.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// As [`Self::answer`], but not longer than the client's own timeout.
    pub(crate) async fn answer_in_time<T>(
        &self,
        rx: oneshot::Receiver<Result<T, Error>>,
    ) -> Result<T, Error> {
        self.within(self.settings.timeout, self.answer(rx)).await
    }

    pub(crate) async fn within<T>(
        &self,
        time: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::time::timeout(time, work).await.unwrap_or(Err(Error::Timeout(time)))
    }

    /// Sends one frame that is not answered, or whose answer is not wanted.
    pub(crate) async fn send(
        &self,
        op: Op,
        flags: u16,
        header: Bytes,
        count: u16,
        payload: Bytes,
    ) -> Result<(), Error> {
        let permit = self.reserve(header.len() + payload.len()).await?;
        let weight = permit.num_permits();
        self.command(Command::Call(Call { op, flags, header, count, payload, weight, reply: None })).await?;
        permit.forget();
        Ok(())
    }

    /// Sends one frame and waits for its answer.
    pub(crate) async fn ask(
        &self,
        op: Op,
        flags: u16,
        header: Bytes,
        count: u16,
        payload: Bytes,
    ) -> Result<Frame, Error> {
        let permit = self.reserve(header.len() + payload.len()).await?;
        let weight = permit.num_permits();
        let (tx, rx) = oneshot::channel();
        self.command(Command::Call(Call { op, flags, header, count, payload, weight, reply: Some(tx) }))
            .await?;
        permit.forget();
        self.answer(rx).await
    }
}

impl Client {
    /// Starts to configure a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) async fn connect(settings: ClientBuilder) -> Result<Self, Error> {
        let (submits, submits_rx) = mpsc::channel(CHANNEL);
        let (commands, commands_rx) = mpsc::channel(CHANNEL);
        #[expect(
            clippy::disallowed_methods,
            reason = "bounded by what it ends, see `Note`; destructors cannot wait"
        )]
        let (notes, notes_rx) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            budget: Budget::new(settings.buffer_bytes),
            closing: Notify::new(),
            close: AtomicBool::new(false),
            drain: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            credit_tasks: AtomicU32::new(1),
            credit_bytes: AtomicU64::new(0),
            status: watch::Sender::new(Status::Reconnecting { failures: 0 }),
            failure: OnceLock::new(),
        });
        let receivers = Receivers { submits: submits_rx, commands: commands_rx, notes: notes_rx };
        let (driver, link) = Driver::connect(settings.clone(), Arc::clone(&shared), receivers).await?;
        tokio::spawn(driver.run(link));
        Ok(Self { inner: Arc::new(Inner { submits, commands, notes, shared, settings }) })
    }

    /// Where the connection stands now.
    pub fn status(&self) -> Status {
        self.inner.shared.status.borrow().clone()
    }

    /// Follows where the connection stands: breaks, new connections, and the server's wish to drain.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.inner.shared.status.subscribe()
    }

    /// Ends in order: consumers take no more, assignments and answers that are awaited are finished, what waits is
    /// sent, then the connection is closed. Outcomes that have not arrived by then are not waited for.
    ///
    /// # Errors
    /// Why the connection ended, if not by this call.
    pub async fn drain(&self) -> Result<(), Error> {
        self.end(&self.inner.shared.drain).await;
        match self.inner.closed() {
            Error::Closed => Ok(()),
            e => Err(e),
        }
    }

    /// Ends now: assignments are given back by the server, calls under way fail.
    pub async fn close(&self) {
        self.end(&self.inner.shared.close).await;
    }

    async fn end(&self, how: &AtomicBool) {
        let mut status = self.watch_status();
        how.store(true, Ordering::Release);
        self.inner.shared.closing.notify_one();
        // The driver sets its last status before it goes.
        let _ = status.wait_for(|s| matches!(s, Status::Closed(_))).await;
    }
}
