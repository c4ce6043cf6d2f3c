//! Submitting tasks, and learning what became of them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hive_proto::codec::Frame;
use hive_proto::ids::Durability;
use hive_proto::items::{self, EXT_BYTES_MAX, Item as _, Submit, Task};
use hive_proto::messages::{self, TaskOptions};
use hive_proto::{Code, Op, TaskId, TaskState, Trace, names};
use tokio::sync::{mpsc, oneshot};

use crate::client::Inner;
use crate::command::{Command, Submission, Submitted, Tasks};
use crate::{Client, Error};

/// Tasks and bytes that `submit_batch` hands over in one piece.
const PIECE: (usize, usize) = (1024, 48 * 1024);
/// Ids in one query.
const QUERY_TASKS: usize = 8192;
/// A wait is repeated at the server in steps of this length.
const WAIT_STEP: Duration = Duration::from_secs(20);
/// Progress reports that may wait to be read.
const PROGRESS_BACKLOG: usize = 64;

impl Client {
    /// Starts to submit one task to `queue`.
    pub fn submit(&self, queue: &str, payload: impl Into<Bytes>) -> SubmitBuilder<'_> {
        SubmitBuilder {
            client: self,
            queue: queue.into(),
            payload: payload.into(),
            options: TaskOptions::default(),
            watch: true,
        }
    }

    /// Submits many tasks without options to `queue`; gives what became of each, in order. Waits while the server has no
    /// room for more. The handles' outcomes are pushed.
    ///
    /// # Errors
    /// `invalid_queue_name`; all else is told task by task.
    pub async fn submit_batch<P: AsRef<[u8]>>(
        &self,
        queue: &str,
        payloads: impl IntoIterator<Item = P>,
    ) -> Result<Vec<Result<TaskHandle, Error>>, Error> {
        names::queue(queue.as_bytes())?;
        let queue: Arc<str> = queue.into();
        let (tasks_max, bytes_max) = self.inner.shared.submit_max();
        let (tasks_max, bytes_max) = (tasks_max.min(PIECE.0), bytes_max.min(PIECE.1));
        let (mut items, mut count, mut answers) = (Vec::new(), 0_u16, Vec::new());
        for payload in payloads {
            let payload = payload.as_ref();
            if count > 0 && (usize::from(count) == tasks_max || items.len() + payload.len() > bytes_max) {
                answers.push(self.piece(&queue, std::mem::take(&mut items), count).await);
                count = 0;
            }
            Submit { ext: &[], payload }.write(&mut items);
            count += 1;
        }
        if count > 0 {
            answers.push(self.piece(&queue, items, count).await);
        }
        let mut handles = Vec::new();
        for (count, answer) in answers {
            let piece = match answer {
                Ok(rx) => self.inner.answer(rx).await,
                Err(e) => Err(e),
            };
            match piece {
                Ok(tasks) => {
                    handles.extend(tasks.into_iter().map(|t| t.map(|t| TaskHandle::new(&self.inner, t))));
                }
                Err(e) => handles.extend((0..count).map(|_| Err(e.clone()))),
            }
        }
        Ok(handles)
    }

    /// Hands over a piece of a batch; the answer is awaited later, so that pieces follow each other without a pause.
    async fn piece(&self, queue: &Arc<str>, items: Vec<u8>, count: u16) -> (u16, Result<PieceAnswer, Error>) {
        let hand_over = async {
            let permit = self.inner.reserve(items.len()).await?;
            let (reply, answer) = oneshot::channel();
            let (queue, weight) = (Arc::clone(queue), permit.num_permits());
            let tasks = Tasks::Many { items, count, reply };
            self.inner.submission(Submission { queue, watch: true, tasks, weight }).await?;
            permit.forget();
            Ok(answer)
        };
        (count, hand_over.await)
    }

    /// The state of tasks, in the order of `tasks`; `Unknown` for those that the server does not know.
    ///
    /// # Errors
    /// Those of the connection; asked again after a break.
    pub async fn query(&self, tasks: &[TaskId]) -> Result<Vec<Outcome>, Error> {
        let mut states = Vec::with_capacity(tasks.len());
        for some in tasks.chunks(QUERY_TASKS) {
            let ask = || self.tasks(Op::Query, Bytes::new(), some);
            states.extend(self.inner.within(self.inner.settings.timeout, retry(&self.inner, ask)).await?);
        }
        Ok(states)
    }

    /// Waits until all or any of at most 8,192 tasks have their outcome, or until `timeout`; gives the state of each.
    ///
    /// # Errors
    /// `malformed_frame` for more tasks, and those of the connection; goes on after a break.
    pub async fn wait(
        &self,
        tasks: &[TaskId],
        mode: WaitMode,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, Error> {
        if tasks.len() > QUERY_TASKS {
            return Err(Error::local(
                Code::MalformedFrame,
                format!("a wait names at most {QUERY_TASKS} tasks"),
            ));
        }
        let end = tokio::time::Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let step = left.min(WAIT_STEP);
            let mut header = vec![mode as u8];
            header.extend_from_slice(&(step.as_millis() as u32).to_le_bytes());
            let header = Bytes::from(header);
            let ask = || self.tasks(Op::Wait, header.clone(), tasks);
            // The server answers at the end of the step; the rest is for the way and for a new connection.
            let states =
                self.inner.within(step + self.inner.settings.timeout, retry(&self.inner, ask)).await?;
            let settled = |o: &Outcome| o.state.is_final() || o.state == TaskState::Unknown;
            let done = match mode {
                WaitMode::All => states.iter().all(settled),
                WaitMode::Any => states.iter().any(settled),
            };
            if done || step == left {
                return Ok(states);
            }
        }
    }

    /// Cancels tasks that have no outcome yet; gives, in order, why not where it was refused.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn cancel(&self, tasks: &[TaskId]) -> Result<Vec<Result<(), Error>>, Error> {
        self.settle(Op::Cancel, tasks).await
    }

    /// Gives dead letters all their attempts again; gives, in order, why not where it was refused. Whoever watches a task is told its
    /// next outcome as well.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn redrive(&self, tasks: &[TaskId]) -> Result<Vec<Result<(), Error>>, Error> {
        self.settle(Op::Redrive, tasks).await
    }

    /// Forgets dead letters; gives, in order, why not where it was refused.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn purge(&self, tasks: &[TaskId]) -> Result<Vec<Result<(), Error>>, Error> {
        self.settle(Op::Purge, tasks).await
    }

    async fn settle(&self, op: Op, tasks: &[TaskId]) -> Result<Vec<Result<(), Error>>, Error> {
        let mut answers = Vec::with_capacity(tasks.len());
        for some in tasks.chunks(QUERY_TASKS) {
            let ask = self.inner.ask(op, 0, Bytes::new(), some.len() as u16, ids(some));
            let frame = self.inner.within(self.inner.settings.timeout, ask).await?;
            let refused = crate::driver::refused(&frame)?;
            answers
                .extend((0..some.len()).map(|i| refused.get(&(i as u16)).map_or(Ok(()), |e| Err(e.clone()))));
        }
        Ok(answers)
    }

    /// Dead letters of a queue, newest first, at most `limit`; their `result` is the last error.
    ///
    /// # Errors
    /// `invalid_queue_name`, and those of the connection; asked again after a break.
    pub async fn list_dead(&self, queue: &str, limit: u32) -> Result<Vec<Outcome>, Error> {
        names::queue(queue.as_bytes())?;
        let header = Bytes::from([&limit.to_le_bytes(), queue.as_bytes()].concat());
        let ask = || self.tasks(Op::ListDead, header.clone(), &[]);
        self.inner.within(self.inner.settings.timeout, retry(&self.inner, ask)).await
    }

    async fn tasks(&self, op: Op, header: Bytes, tasks: &[TaskId]) -> Result<Vec<Outcome>, Error> {
        let frame = self.inner.ask(op, 0, header, tasks.len() as u16, ids(tasks)).await?;
        outcomes(&frame)
    }
}

type PieceAnswer = oneshot::Receiver<Result<Vec<Result<Submitted, Error>>, Error>>;

fn ids(tasks: &[TaskId]) -> Bytes {
    tasks.iter().flat_map(|id| id.0.to_le_bytes()).collect::<Vec<_>>().into()
}

fn outcomes(frame: &Frame) -> Result<Vec<Outcome>, Error> {
    let (view, payload) = (frame.view(), frame.payload());
    let tasks = items::check::<Task<'_>>(view.payload, view.prefix.count)?;
    Ok(tasks
        .map(|t| Outcome {
            task: t.task,
            state: t.state,
            attempt: t.attempt,
            result: payload.slice_ref(t.payload),
        })
        .collect())
}

/// Repeats a question, which changes nothing, when the connection breaks under it.
async fn retry<T, F: Future<Output = Result<T, Error>>>(
    inner: &Inner,
    mut ask: impl FnMut() -> F,
) -> Result<T, Error> {
    loop {
        match ask().await {
            Err(Error::Disconnected { .. }) if inner.is_alive() => {}
            answer => return answer,
        }
    }
}

/// What [`Client::wait`] waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum WaitMode {
    /// The outcome of every task.
    All = 0,
    /// The outcome of one of them.
    Any = 1,
}

/// One task on its way.
#[derive(Debug)]
#[must_use = "nothing happens before `send`"]
pub struct SubmitBuilder<'a> {
    client: &'a Client,
    queue: Arc<str>,
    payload: Bytes,
    options: TaskOptions,
    watch: bool,
}

impl SubmitBuilder<'_> {
    /// Labels that a worker must offer.
    pub fn labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.options.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Attempts before the task is a dead letter, 1 to 1,000; the queue's policy otherwise.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = Some(attempts);
        self
    }

    /// Not before this time from now; at most 24 days.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.options.delay_ms = Some(u32::try_from(delay.as_millis()).unwrap_or(u32::MAX));
        self
    }

    /// The trace context that the worker gets.
    pub fn trace(mut self, trace: Trace) -> Self {
        self.options.trace = Some(trace);
        self
    }

    /// Nobody will ask the handle for the outcome, so it need not be pushed.
    pub fn detached(mut self) -> Self {
        self.watch = false;
        self
    }

    /// Submits, and waits for the acknowledgement; before that for room and credit.
    ///
    /// # Errors
    /// The server's refusal (`overloaded`, `memory_full`, `invalid_options`, ...), `invalid_queue_name` and
    /// `invalid_label` before anything is sent, and those of the connection; [`Error::outcome`] tells whether the task
    /// may have been accepted nevertheless.
    pub async fn send(self) -> Result<TaskHandle, Error> {
        names::queue(self.queue.as_bytes())?;
        names::labels(&self.options.labels)?;
        let default = self.options == TaskOptions::default();
        let ext = if default { Bytes::new() } else { messages::encode(&self.options).into() };
        if ext.len() > EXT_BYTES_MAX {
            return Err(Error::local(
                Code::InvalidOptions,
                format!("options of more than {EXT_BYTES_MAX} bytes"),
            ));
        }
        let inner = &self.client.inner;
        let permit = inner.reserve(ext.len() + self.payload.len()).await?;
        let (reply, answer) = oneshot::channel();
        let tasks = Tasks::One { ext, payload: self.payload, reply };
        let (queue, watch, weight) = (self.queue, self.watch, permit.num_permits());
        inner.submission(Submission { queue, watch, tasks, weight }).await?;
        permit.forget();
        Ok(TaskHandle::new(inner, inner.answer(answer).await?))
    }
}

/// A task that was accepted.
#[derive(Debug)]
pub struct TaskHandle {
    inner: Arc<Inner>,
    task: Submitted,
}

impl TaskHandle {
    fn new(inner: &Arc<Inner>, task: Submitted) -> Self {
        Self { inner: Arc::clone(inner), task }
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.task.id
    }

    /// What the acknowledgement promises.
    pub fn durability(&self) -> Durability {
        self.task.durability
    }

    /// Waits for the outcome: completed, dead, cancelled, or lost by a memory queue. `Unknown` if after a break of the
    /// connection the server no longer keeps it. A task submitted [`SubmitBuilder::detached`] is asked for.
    ///
    /// # Errors
    /// The reason why the client ended before the outcome came.
    pub async fn outcome(self) -> Result<Outcome, Error> {
        if let Some(rx) = self.task.outcome {
            return self.inner.answer(rx).await;
        }
        let client = Client { inner: Arc::clone(&self.inner) };
        loop {
            let states = client.wait(&[self.task.id], WaitMode::All, WAIT_STEP).await?;
            match states.into_iter().next() {
                Some(o) if o.state.is_final() || o.state == TaskState::Unknown => return Ok(o),
                Some(_) => {}
                None => return Err(Error::Protocol("an answer about no task".into())),
            }
        }
    }

    /// Follows the task's progress from now on; ends with the outcome. A slow reader misses some. One stream per task:
    /// a second replaces the first.
    ///
    /// # Errors
    /// The reason why the client ended.
    pub async fn progress(&self) -> Result<ProgressStream, Error> {
        let (to, reports) = mpsc::channel(PROGRESS_BACKLOG);
        self.inner.command(Command::Progress { task: self.task.id, to }).await?;
        Ok(ProgressStream { reports })
    }
}

/// Reports about a running task.
#[derive(Debug)]
pub struct ProgressStream {
    reports: mpsc::Receiver<Progress>,
}

impl Stream for ProgressStream {
    type Item = Progress;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Progress>> {
        self.reports.poll_recv(cx)
    }
}

/// How far a task is.
#[derive(Clone, PartialEq, Debug)]
pub struct Progress {
    /// The attempt that reports.
    pub attempt: u32,
    /// From 0 to 1, where the worker knows.
    pub fraction: Option<f32>,
    /// For whoever understands it.
    pub note: Bytes,
}

/// Where a task stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The task.
    pub task: TaskId,
    /// Its state.
    pub state: TaskState,
    /// Assignments so far.
    pub attempt: u32,
    /// The result if completed, the last error if dead, else empty.
    pub result: Bytes,
}
