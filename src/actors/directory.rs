//! Who is connected: shared by all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use hive_proto::error::Code;
use hive_proto::{SessionId, WireError};

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
    /// Has submitted or waited: concerned when a dispatcher loses its memory.
    pub submits: AtomicBool,
    /// Has sent requests: concerned when a hub shard restarts.
    pub requests: AtomicBool,
    /// What others want of the session's task; see [`Wish`].
    pub wish: AtomicU32,
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
        self.outbox.miss(0); // wakes it
    }
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

/// All sessions that have logged in.
#[derive(Debug)]
pub struct Directory {
    sessions: DashMap<SessionId, Arc<Peer>>,
    agents: DashMap<Box<str>, SessionId>,
    next: AtomicU32,
    connections_max: usize,
    /// Connections, logged in or not.
    pub connections: AtomicUsize,
    /// What all sessions hold of messages in fragments that are not complete, bytes.
    pub parts_bytes: AtomicUsize,
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
    pub fn new(connections_max: usize, outbox_limits: OutboxLimits) -> Self {
        Self {
            sessions: DashMap::new(),
            agents: DashMap::new(),
            next: AtomicU32::new(0),
            connections_max,
            connections: AtomicUsize::new(0),
            parts_bytes: AtomicUsize::new(0),
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
        });
        self.sessions.insert(session, peer.clone());
        Ok(peer)
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
