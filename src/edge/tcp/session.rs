//! The task of one connection: reads, routes, writes. Written as a future of its own because an idle session should be
//! small: no buffer, no timer, no channel, only a socket and three empty queues.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::BytesMut;
use hashbrown::HashMap;
use hive_proto::fragment::Assembler;
use tokio::net::TcpStream;

use super::Shard;
use super::login::login;
use crate::actors::directory::{Counted, Peer, Wish};
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
    /// The beginning of a frame that has not arrived whole.
    pub(super) partial: BytesMut,
    /// `partial` is what came behind the hello: nobody has looked at it yet.
    pub(super) fresh: bool,
    /// Batches that their actor had no room for; while there are any, nothing is read.
    pub(super) blocked: VecDeque<(Inlet, Batch)>,
    /// What is being written, and how much of its first piece is out.
    pub(super) out: VecDeque<Piece>,
    pub(super) out_at: usize,
    pub(super) assembler: Option<Box<Assembler>>,
    /// Hub shard of each subscription without wildcards, where there are several shards.
    pub(super) subscriptions: Option<Box<HashMap<u32, u8>>>,
    /// Write what waits, then end.
    pub(super) closing: bool,
}

impl Session {
    fn new(stream: TcpStream, peer: Arc<Peer>, shard: Rc<Shard>, rest: &[u8]) -> Self {
        Self {
            stream,
            peer,
            shard,
            partial: BytesMut::from(rest),
            fresh: !rest.is_empty(),
            blocked: VecDeque::new(),
            out: VecDeque::new(),
            out_at: 0,
            assembler: None,
            subscriptions: None,
            closing: false,
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

impl Future for Session {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.peer.outbox.register(cx.waker());
        let wish = this.peer.wish.load(Ordering::Acquire);
        assert!(wish != Wish::Panic as u32, "injected fault");
        this.closing |= wish == Wish::Close as u32;
        let abort = wish == Wish::Abort as u32;
        for _ in 0..ROUNDS {
            let Ok(wrote) = this.write(cx) else { return Poll::Ready(()) };
            if abort || this.closing && this.peer.outbox.is_empty() {
                return Poll::Ready(());
            }
            if this.closing {
                if wrote {
                    continue;
                }
                return Poll::Pending;
            }
            this.unblock(cx);
            let may_read = this.blocked.is_empty() && !this.peer.outbox.is_clogged();
            let read = if may_read { this.read(cx) } else { Poll::Pending };
            match read {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(()),
                Poll::Pending if wrote => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Session {
    /// However the session ends, a panic included: its leases go back, its subscriptions end, its name is free.
    fn drop(&mut self) {
        let parts = self.assembler.as_ref().map_or(0, |a| a.bytes());
        self.shard.directory.parts_bytes.fetch_sub(parts, Ordering::Relaxed);
        // Out of the directory first: an actor that has heard of the end must not find the session again.
        self.shard.directory.close(&self.peer);
        self.shard.dispatcher.closed(self.peer.session);
        for hub in &self.shard.hubs {
            hub.closed(self.peer.session);
        }
    }
}

/// Starts sessions on the thread of their shard.
#[derive(Debug)]
pub struct Spawner(pub Rc<Shard>);

impl Spawn for Spawner {
    fn spawn(&self, stream: std::net::TcpStream, counted: Counted) {
        let shard = self.0.clone();
        actix_rt::spawn(async move {
            let Ok(mut stream) = TcpStream::from_std(stream) else { return };
            // Boxed, so that the login does not weigh on the session for the rest of its life.
            if let Some((peer, rest)) = Box::pin(login(&mut stream, &shard)).await {
                Session::new(stream, peer, shard, &rest).await;
            }
            drop(counted);
        });
    }
}
