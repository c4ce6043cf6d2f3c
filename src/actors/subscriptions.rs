//! The subscriptions of a hub shard as they came: what its next incarnation is made from, and what they take of the memory.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use hive_proto::messages::{self, Subscribe};
use hive_proto::{FrameRef, SessionId};

use super::directory::Directory;

/// What a subscription takes besides its frame and the hub's copies of its text: entries in five tables, bytes.
const OVERHEAD_BYTES: usize = 300;
/// What a token of a pattern with wildcards takes, bytes.
const TOKEN_BYTES: usize = 80;

/// An open subscription.
#[derive(Debug)]
pub(super) struct Open {
    /// Its Subscribe frame.
    pub(super) frame: Bytes,
    /// A copy for this shard, answered by another.
    pub(super) quiet: bool,
}

/// All open subscriptions of a shard.
#[derive(Debug)]
pub(super) struct OpenSubscriptions {
    by_session: HashMap<SessionId, HashMap<u32, Open>>,
    directory: Arc<Directory>,
}

impl OpenSubscriptions {
    pub(super) fn new(directory: Arc<Directory>) -> Self {
        Self { by_session: HashMap::new(), directory }
    }

    pub(super) fn insert(&mut self, session: SessionId, id: u32, open: Open) {
        self.directory.pool.subscribed(cost(&open.frame));
        self.by_session.entry(session).or_default().insert(id, open);
    }

    pub(super) fn contains(&self, session: SessionId, id: u32) -> bool {
        self.by_session.get(&session).is_some_and(|mine| mine.contains_key(&id))
    }

    pub(super) fn remove(&mut self, session: SessionId, id: u32) -> Option<Open> {
        let open = self.by_session.get_mut(&session)?.remove(&id)?;
        self.directory.pool.unsubscribed(cost(&open.frame));
        Some(open)
    }

    pub(super) fn remove_all(&mut self, session: SessionId) {
        for open in self.by_session.remove(&session).iter().flat_map(HashMap::values) {
            self.directory.pool.unsubscribed(cost(&open.frame));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Open)> {
        self.by_session.iter().flat_map(|(session, mine)| mine.values().map(|open| (*session, open)))
    }
}

/// What the subscription of a frame takes, bytes.
pub(super) fn cost(frame: &[u8]) -> usize {
    let tokens = wildcards(frame).map_or(0, |subject| subject.split('.').count());
    OVERHEAD_BYTES + 2 * frame.len() + tokens * TOKEN_BYTES
}

/// The pattern of a Subscribe frame, if it has wildcards: every shard must know of it.
pub(super) fn wildcards(frame: &[u8]) -> Option<String> {
    let wish: Subscribe = messages::decode(FrameRef::parse(frame)?.header).ok()?;
    wish.subject.contains(['*', '>']).then_some(wish.subject)
}
