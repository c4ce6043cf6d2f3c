//! What clients did and saw, in their own words: nothing of it is believed because the server says so.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use hive_proto::{Code, Lease, TaskId, TaskState};

/// Since the history began. All clients read one monotonic clock.
pub(super) type Micros = u64;

/// Names a payload. The number is the first 8 bytes of it, and no two are alike.
pub(super) type Key = u64;

/// Bytes that are compared and never looked into.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Mark {
    len: u32,
    hash: u64,
}

impl Mark {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        Self { len: bytes.len() as u32, hash: hasher.finish() }
    }
}

/// One thing that a client did or saw.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Number of the connection.
    pub(super) link: u32,
    /// When it was sent; of what the server pushes, when it came.
    pub(super) from: Micros,
    /// When the answer came, or when the client gave up.
    pub(super) to: Micros,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Opened {
        epoch: u32,
        labels: Vec<&'static str>,
    },
    /// The connection stayed until every task had its outcome and everything had been told; `missed` is what the server confesses.
    Told {
        missed: u64,
    },
    Submit {
        queue: &'static str,
        tasks: Vec<Submitted>,
        /// Ids and durability.
        answer: Answer<(Vec<TaskId>, u8)>,
    },
    Assign {
        queue: &'static str,
        lease: Lease,
        /// The payload's name, or what is wrong with it.
        payload: Result<Key, String>,
        options: Mark,
    },
    Settle {
        how: How,
        items: Vec<(Lease, Mark)>,
        /// Of each item why it was refused.
        answer: Answer<Vec<Option<Code>>>,
    },
    Cancel {
        tasks: Vec<TaskId>,
        answer: Answer<Vec<Option<Code>>>,
    },
    /// Asked for, by a query or a wait.
    Asked(Vec<Seen>),
    /// Pushed to the submitter.
    Pushed(Vec<Seen>),
    /// All dead letters of a queue.
    DeadLetters(Vec<Seen>),
    /// A question without consequences that nobody answered.
    Silence(&'static str),
}

/// A task as it was submitted, watched by its submitter.
#[derive(Clone, Debug)]
pub(super) struct Submitted {
    pub(super) key: Key,
    pub(super) delay_ms: u32,
    pub(super) label: Option<&'static str>,
    pub(super) attempts_max: u16,
    /// As they went over the wire.
    pub(super) options: Mark,
}

#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) task: TaskId,
    pub(super) state: TaskState,
    pub(super) attempt: u32,
    pub(super) payload: Mark,
}

/// What a worker says of a task. Delays are those that hold, also where the queue's policy gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    Complete,
    Fail { delay_ms: u32 },
    FailForGood,
    Release { delay_ms: u32 },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer<T> {
    Ok(T),
    /// It certainly did not happen.
    NotDone(String),
    /// The connection was lost, or the server does not know.
    Unknown,
    /// The connection was there, and the answer never came.
    Never,
}

/// Takes the events of all clients.
pub(super) struct Recorder {
    origin: Instant,
    events: Mutex<Vec<Event>>,
    links: AtomicU32,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), events: Mutex::default(), links: AtomicU32::new(0) }
    }

    pub(super) fn now(&self) -> Micros {
        self.origin.elapsed().as_micros() as Micros
    }

    /// A number for a new connection.
    pub(super) fn link(&self) -> u32 {
        self.links.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn note(&self, link: u32, from: Micros, what: What) {
        let event = Event { link, from, to: self.now(), what };
        self.events.lock().expect("no client panics while it writes").push(event);
    }

    /// Everything so far.
    pub(super) fn with<T>(&self, look: impl FnOnce(&[Event]) -> T) -> T {
        look(&self.events.lock().expect("no client panics while it writes"))
    }
}
