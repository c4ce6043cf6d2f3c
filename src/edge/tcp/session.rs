//! The task of one connection: reads, routes, writes. Written as a future of its own because an idle session should be
//! small: no buffer, no timer, no channel, only a socket and three empty queues.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use hashbrown::HashMap;
use tokio::net::TcpStream;

use super::Shard;
use super::arriving::Partial;
use super::login::{farewell, login};
use crate::actors::directory::{Counted, InFlight, Peer, Wish};
use crate::actors::mailbox::{Batch, Inlet};
use crate::actors::outbox::Piece;
use crate::actors::sessions::Spawn;

/// Rounds of reading and writing before other sessions get their turn.
const ROUNDS: usize = 4;

/// A logged-in connection.
pub(crate) struct Session {
    pub(super) stream: TcpStream,
    pub(super) peer: Arc<Peer>,
    pub(super) shard: Rc<Shard>,
    /// What has not arrived whole.
    pub(super) partial: Partial,
    /// Batches that their actor had no room for; while there are any, nothing is read.
    pub(super) blocked: VecDeque<(Inlet, Batch)>,
    /// What is being written, and how much of its first piece is out.
    pub(super) out: VecDeque<Piece>,
    pub(super) out_at: usize,
    /// Hub shard of each subscription without wildcards, where there are several shards.
    pub(super) subscriptions: Option<Box<HashMap<u32, u8>>>,
    /// Nothing more is read: end once everything is answered and written.
    pub(super) closing: bool,
    /// The client sends nothing more: its leases and subscriptions end with what it has sent.
    pub(super) leaving: bool,
    place: Place,
}

/// The place of a session among the others.
struct Place {
    peer: Arc<Peer>,
    shard: Rc<Shard>,
}

impl Session {
    fn new(stream: TcpStream, peer: Arc<Peer>, shard: Rc<Shard>, rest: &[u8]) -> Self {
        Self {
            stream,
            partial: Partial::new(&shard.directory, rest),
            place: Place { peer: peer.clone(), shard: shard.clone() },
            peer,
            shard,
            blocked: VecDeque::new(),
            out: VecDeque::new(),
            out_at: 0,
            subscriptions: None,
            closing: false,
            leaving: false,
        }
    }

    fn unblock(&mut self, cx: &Context<'_>) {
        while let Some((inlet, batch)) = self.blocked.pop_front() {
            if let Err(batch) = inlet.push(batch, cx) {
                self.blocked.push_front((inlet, batch));
                return;
            }
        }
    }
}

impl Session {
    /// Runs until the connection is to be closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.peer.outbox.register(cx.waker());
        let wish = self.peer.wish.load(Ordering::Acquire);
        assert!(wish != Wish::Panic as u32, "injected fault");
        self.closing |= wish == Wish::Close as u32;
        let abort = wish == Wish::Abort as u32;
        for _ in 0..ROUNDS {
            let Ok(wrote) = self.write(cx) else { return Poll::Ready(()) };
            if abort {
                return Poll::Ready(());
            }
            self.unblock(cx);
            if self.closing {
                if self.has_ended() {
                    return Poll::Ready(());
                }
                if wrote {
                    continue;
                }
                return Poll::Pending;
            }
            if !self.blocked.is_empty() {
                self.is_held_up();
            }
            let may_read = self.blocked.is_empty() && !self.peer.outbox.is_clogged();
            let read = if may_read { self.read(cx) } else { Poll::Pending };
            match read {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => (self.closing, self.leaving) = (true, true),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending if wrote => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Nothing is read from the client for the server's own reasons: its silence is not its fault. Said anew with each
    /// heartbeat, which wakes the task.
    pub(super) fn is_held_up(&self) {
        self.peer.heard_at.store((self.shard.clock)().0, Ordering::Relaxed);
    }

    /// Gives its place up, and the connection back if it may take its time to close.
    fn end(self) -> Option<TcpStream> {
        self.closing.then_some(self.stream)
    }

    /// Whether all that was sent is answered and the answers are written. Wakes the task again until then.
    fn has_ended(&mut self) -> bool {
        if self.blocked.is_empty() && std::mem::take(&mut self.leaving) {
            self.place.leave(); // behind the last batch, so that leases go back now and not with the last answer
        }
        self.blocked.is_empty() && self.peer.is_answered() && self.peer.outbox.is_empty()
    }
}

impl Place {
    fn leave(&self) {
        let gone = || InFlight::new(&self.shard.directory, &self.peer, 0, 0);
        self.shard.dispatcher.closed(gone());
        self.shard.hubs.iter().for_each(|hub| hub.closed(gone()));
    }
}

impl Drop for Place {
    /// However the session ends, a panic included: its leases go back, its subscriptions end, its name is free.
    fn drop(&mut self) {
        // Out of the directory first: an actor that has heard of the end must not find the session again.
        self.shard.directory.close(&self.peer);
        self.leave();
    }
}

/// Starts sessions on the thread of their shard.
#[derive(Debug)]
pub struct Spawner(pub Rc<Shard>);

impl Spawn for Spawner {
    fn spawn(&self, stream: std::net::TcpStream, counted: Counted) {
        let shard = self.0.clone();
        actix_rt::spawn(async move {
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            // Boxed, so that the login does not weigh on the session for the rest of its life.
            if let Some((stream, peer, rest)) = Box::pin(login(stream, &shard)).await {
                let mut session = Session::new(stream, peer, shard, &rest);
                std::future::poll_fn(|cx| session.poll(cx)).await;
                if let Some(stream) = session.end() {
                    Box::pin(farewell(stream)).await;
                }
            }
            drop(counted);
        });
    }
}
