//! Who is connected: shared by all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use hive_proto::error::Code;
use hive_proto::{PREFIX_LEN, SessionId, WireError};
use parking_lot::Mutex;

use super::outbox::{Outbox, OutboxLimits};
use crate::core::time::Tick;

/// The part of a session that others see.
#[derive(Debug)]
pub struct Peer {
    /// Its id.
    pub session: SessionId,
    /// The agent's id.
    pub agent: Box<str>,
    /// Name and version of its client library.
    pub client: Box<str>,
    /// Capabilities of the agent.
    pub labels: Box<[String]>,
    /// The shard that owns the connection.
    pub shard: u16,
    /// When it logged in.
    pub since: Tick,
    /// What waits to be written to it.
    pub outbox: Outbox,
    /// When something was last read from it, ns.
    pub heard_at: AtomicU64,
    /// When something was last queued for it by a heartbeat, ns.
    pub pinged_at: AtomicU64,
    /// Tasks submitted and not yet acknowledged.
    pub unacked_tasks: AtomicU32,
    /// Bytes of them.
    pub unacked_bytes: AtomicUsize,
    /// Has submitted to a memory queue: concerned when a dispatcher loses its memory.
    pub submits: AtomicBool,
    /// Has sent requests: concerned when a hub shard restarts.
    pub requests: AtomicBool,
    /// What others want of the session's task; see [`Wish`].
    pub wish: AtomicU32,
    /// Batches of it that actors have not answered.
    in_flight: AtomicUsize,
    /// Its task waits until there are none.
    awaited: AtomicBool,
    /// Subscriptions that a hub shard has refused, so that the session forgets which shard has them.
    pub refused: Mutex<Vec<u32>>,
}

/// What others want of a session's task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Wish {
    /// Nothing.
    None = 0,
    /// Write what waits, then close.
    Close = 1,
    /// Write what the socket takes, then close: the client does not read.
    Abort = 2,
    /// Panic (fault injection).
    Panic = 3,
}

impl Peer {
    /// Asks the session's task for something.
    pub fn wish(&self, wish: Wish) {
        self.wish.store(wish as u32, Ordering::Release);
        self.outbox.wake();
    }

    /// Whether everything that the session sent has been answered; if not, its task is woken when it has been.
    pub fn is_answered(&self) -> bool {
        self.awaited.store(true, Ordering::SeqCst);
        self.in_flight.load(Ordering::SeqCst) == 0
    }
}

/// What an actor answers to a frame that it refuses takes about this much, bytes. A frame may be 16 bytes.
const ANSWER_BYTES: usize = 200;

/// Frames on their way to an actor and through it, and then what is answered, counted until that is queued.
#[derive(Debug)]
pub struct InFlight {
    /// Who sent them.
    pub peer: Arc<Peer>,
    directory: Arc<Directory>,
    frame_bytes: usize,
    answer_bytes: usize,
}

impl InFlight {
    /// Counts `frames` frames of `bytes` bytes.
    pub fn new(directory: &Arc<Directory>, peer: &Arc<Peer>, frames: usize, bytes: usize) -> Self {
        let answer_bytes = frames * ANSWER_BYTES;
        peer.in_flight.fetch_add(1, Ordering::SeqCst);
        directory.in_flight_bytes.fetch_add(bytes + answer_bytes, Ordering::Relaxed);
        Self { peer: peer.clone(), directory: directory.clone(), frame_bytes: bytes, answer_bytes }
    }

    /// The frames are gone; the answers may be held back for long, and others are read from meanwhile.
    pub fn is_decided(&mut self) {
        self.directory.in_flight_bytes.fetch_sub(std::mem::take(&mut self.frame_bytes), Ordering::Relaxed);
        if self.peer.awaited.load(Ordering::SeqCst) {
            self.peer.outbox.wake();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let bytes = self.frame_bytes + self.answer_bytes;
        self.directory.in_flight_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.peer.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.peer.awaited.load(Ordering::SeqCst)
        {
            self.peer.awaited.store(false, Ordering::SeqCst);
            self.peer.outbox.wake();
        }
    }
}

/// What one session holds of frames and messages that have not arrived whole, counted as long as it does.
#[derive(Debug)]
pub struct Arriving {
    directory: Arc<Directory>,
    bytes: usize,
}

impl Arriving {
    /// Nothing yet.
    pub fn new(directory: &Arc<Directory>) -> Self {
        Self { directory: directory.clone(), bytes: 0 }
    }

    /// It holds so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        let all = &self.directory.arriving_bytes;
        all.fetch_add(bytes, Ordering::Relaxed);
        all.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }

    /// What it may hold, bytes: its own and what nobody has taken.
    pub fn room(&self) -> usize {
        let d = &self.directory;
        self.bytes + d.budget.arriving.saturating_sub(d.arriving_bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How the memory is shared out, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Tasks and subscriptions.
    pub pool: usize,
    /// Frames and messages that have not arrived whole.
    pub arriving: usize,
    /// Frames in the hands of actors, and their answers.
    pub in_flight: usize,
}

/// A connection, counted as long as this lives, wherever it is lost.
#[derive(Debug)]
pub struct Counted(Arc<Directory>);

impl Counted {
    /// Counts one more, unless there are `max` already.
    pub fn new(directory: &Arc<Directory>, max: usize) -> Option<Self> {
        let counted = Self(directory.clone());
        (directory.connections.fetch_add(1, Ordering::Relaxed) < max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that tasks and subscriptions fill together, bytes: whoever comes first.
#[derive(Debug)]
pub struct Pool {
    bytes_max: usize,
    tasks: AtomicUsize,
    subscriptions: AtomicUsize,
}

impl Pool {
    /// Subscriptions may always take one part in so many: a server full of tasks must let those in that empty it.
    const SUBSCRIPTIONS_SHARE: usize = 64;

    fn new(bytes_max: usize) -> Self {
        Self { bytes_max, tasks: AtomicUsize::new(0), subscriptions: AtomicUsize::new(0) }
    }

    /// Tasks take so much now.
    pub fn tasks(&self, bytes: usize) {
        self.tasks.store(bytes, Ordering::Relaxed);
    }

    /// What subscriptions take.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// Whether one more subscription finds room.
    pub fn has_room_for_subscription(&self, bytes: usize) -> bool {
        let subscriptions = self.subscriptions() + bytes;
        subscriptions <= self.bytes_max / Self::SUBSCRIPTIONS_SHARE
            || subscriptions + self.tasks.load(Ordering::Relaxed) <= self.bytes_max
    }

    /// A subscription came.
    pub fn subscribed(&self, bytes: usize) {
        self.subscriptions.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A subscription went.
    pub fn unsubscribed(&self, bytes: usize) {
        self.subscriptions.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// All sessions that have logged in.
#[derive(Debug)]
pub struct Directory {
    sessions: DashMap<SessionId, Arc<Peer>>,
    agents: DashMap<Box<str>, SessionId>,
    next: AtomicU32,
    connections_max: usize,
    /// Connections, logged in or not.
    pub connections: AtomicUsize,
    /// What tasks and subscriptions hold.
    pub pool: Pool,
    budget: Budget,
    arriving_bytes: AtomicUsize,
    in_flight_bytes: AtomicUsize,
    /// Bounds of outboxes.
    pub outbox_limits: Arc<OutboxLimits>,
}

/// What a client said of itself.
#[derive(Debug)]
pub struct Login {
    /// Agent id; empty for one made up.
    pub agent: String,
    /// Client library.
    pub client: String,
    /// Capabilities.
    pub labels: Vec<String>,
}

impl Directory {
    /// Nobody is connected.
    pub fn new(connections_max: usize, budget: Budget, outbox_limits: OutboxLimits) -> Self {
        Self {
            sessions: DashMap::new(),
            agents: DashMap::new(),
            next: AtomicU32::new(0),
            connections_max,
            connections: AtomicUsize::new(0),
            pool: Pool::new(budget.pool),
            budget,
            arriving_bytes: AtomicUsize::new(0),
            in_flight_bytes: AtomicUsize::new(0),
            outbox_limits: Arc::new(outbox_limits),
        }
    }

    /// Lets an agent in.
    ///
    /// # Errors
    /// `agent_id_in_use`, `too_many_connections`.
    pub fn open(&self, login: Login, shard: u16, now: Tick) -> Result<Arc<Peer>, WireError> {
        if self.sessions.len() >= self.connections_max {
            let text = format!("the server has connections_max = {} connections", self.connections_max);
            return Err(WireError::new(Code::TooManyConnections, text).retry_after(1000));
        }
        let session = self.next_id();
        let agent = if login.agent.is_empty() { format!("agent-{}", session.0) } else { login.agent };
        match self.agents.entry(agent.clone().into()) {
            dashmap::Entry::Occupied(_) => {
                let text = format!("agent id {agent:?} is in use by another connection");
                return Err(WireError::new(Code::AgentIdInUse, text).retry_after(1000));
            }
            dashmap::Entry::Vacant(free) => free.insert(session),
        };
        let peer = Arc::new(Peer {
            session,
            agent: agent.into(),
            client: login.client.into(),
            labels: login.labels.into(),
            shard,
            since: now,
            outbox: Outbox::new(self.outbox_limits.clone()),
            heard_at: AtomicU64::new(now.0),
            pinged_at: AtomicU64::new(now.0),
            unacked_tasks: AtomicU32::new(0),
            unacked_bytes: AtomicUsize::new(0),
            submits: AtomicBool::new(false),
            requests: AtomicBool::new(false),
            wish: AtomicU32::new(Wish::None as u32),
            in_flight: AtomicUsize::new(0),
            awaited: AtomicBool::new(false),
            refused: Mutex::default(),
        });
        self.sessions.insert(session, peer.clone());
        Ok(peer)
    }

    /// How many bytes of requests may be read now, such that they and their answers, up to a dozen times as long, find room.
    pub fn readable_bytes(&self) -> usize {
        let in_flight = self.budget.in_flight.saturating_sub(self.in_flight_bytes.load(Ordering::Relaxed));
        in_flight.min(self.outbox_limits.room()) / (1 + ANSWER_BYTES / PREFIX_LEN)
    }

    /// Ids count up; after four billion connections those still in use are passed over. 0 stands for nobody.
    fn next_id(&self) -> SessionId {
        loop {
            let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
            if id.0 != 0 && !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }

    /// Forgets a session.
    pub fn close(&self, peer: &Peer) {
        self.sessions.remove(&peer.session);
        self.agents.remove_if(&peer.agent, |_, s| *s == peer.session);
        peer.outbox.close();
    }

    /// A session by its id.
    pub fn session(&self, id: SessionId) -> Option<Arc<Peer>> {
        self.sessions.get(&id).map(|p| p.clone())
    }

    /// A session by its agent's id.
    pub fn agent(&self, id: &str) -> Option<Arc<Peer>> {
        let session = *self.agents.get(id)?;
        self.session(session)
    }

    /// Calls `f` for every session, in no order. `f` must not open or close sessions.
    pub fn for_each(&self, mut f: impl FnMut(&Arc<Peer>)) {
        for peer in &self.sessions {
            f(&peer);
        }
    }

    /// Sessions that have logged in.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nobody has logged in.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}
