//! The agents' port.

mod arriving;
pub mod listen;
mod login;
mod read;
pub mod session;
mod write;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::BytesMut;
use sha2::{Digest, Sha256};

use crate::actors::Clock;
use crate::actors::directory::Directory;
use crate::actors::journaler::Health;
use crate::actors::mailbox::Inlet;

/// What sessions need of their server, the same for all of a shard.
#[derive(Debug)]
pub struct Shard {
    /// Number of the shard.
    pub number: u16,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// The dispatcher's door.
    pub dispatcher: Inlet,
    /// The hub shards' doors.
    pub hubs: Vec<Inlet>,
    /// Time.
    pub clock: Clock,
    /// What clients are told, and what bounds them.
    pub terms: Terms,
    /// The server is about to stop.
    pub draining: Arc<AtomicBool>,
    /// How the journal fares: why the server is about to stop.
    pub journal: Health,
    /// One read buffer for the sessions of the thread: an idle session has none.
    pub buffer: RefCell<BytesMut>,
}

/// Bounds of a connection.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Digest of the token that clients must show.
    pub token: TokenDigest,
    /// Incarnation of the server.
    pub epoch: u32,
    /// Time to log in, ms.
    pub login_ms: u32,
    /// How often each side says something, ms.
    pub heartbeat_ms: u32,
    /// Silence after which the other side is dead, ms.
    pub dead_ms: u32,
    /// Longest frame, bytes.
    pub frame_bytes_max: u32,
    /// Longest message, bytes.
    pub message_bytes_max: u32,
    /// Producer credit, tasks.
    pub credit_tasks: u32,
    /// Producer credit, bytes.
    pub credit_bytes: u64,
}

/// SHA-256 of a token; the token itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenDigest([u8; 32]);

impl std::fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

impl TokenDigest {
    /// The digest of a token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Whether `token` is the one, in time that does not depend on where it differs.
    pub fn matches(&self, token: &str) -> bool {
        let other = Self::of(token);
        self.0.iter().zip(other.0).fold(0, |d, (a, b)| d | (a ^ b)) == 0
    }
}
