//! The owner of a shard's sessions: takes connections in, keeps heartbeats, finds the dead, sends everybody away when
//! the server drains. The sessions themselves are tasks (`edge::tcp::session`) and outlive a restart of their owner.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message};
use hive_proto::error::Code;
use hive_proto::{Op, WireError, messages};

use super::Clock;
use super::directory::{Counted, Directory, Wish};
use super::supervise::DeathGuard;

const SWEEP: Duration = Duration::from_millis(500);

/// Starts the task of a new connection; the edge implements it.
pub trait Spawn {
    /// Takes the connection over.
    fn spawn(&self, stream: std::net::TcpStream, counted: Counted);
}

/// What an owner needs.
#[derive(Clone)]
pub struct Setup {
    /// Number of the shard.
    pub shard: u16,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// Starts sessions.
    pub spawn: Rc<dyn Spawn>,
    /// Time.
    pub clock: Clock,
    /// How often each side says something, ms.
    pub heartbeat_ms: u32,
    /// Silence after which a client is dead, ms.
    pub dead_ms: u32,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("shard", &self.shard).finish_non_exhaustive()
    }
}

/// A factory for [`super::supervise::Supervised::start`].
pub fn factory(setup: Setup) -> impl FnMut(u32, DeathGuard) -> Sessions {
    move |_, guard| Sessions { setup: setup.clone(), guard, fault: false }
}

/// See the module.
#[derive(Debug)]
pub struct Sessions {
    setup: Setup,
    guard: DeathGuard,
    fault: bool,
}

impl Sessions {
    fn guarded(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.guard.blame(&*panic);
            ctx.terminate();
        }
    }

    /// One walk over the sessions of the shard, so that ten thousand idle sessions need one timer.
    fn sweep(&mut self) {
        assert!(!std::mem::take(&mut self.fault), "injected fault");
        let now = (self.setup.clock)();
        let (beat, dead) =
            (u64::from(self.setup.heartbeat_ms) * 1_000_000, u64::from(self.setup.dead_ms) * 1_000_000);
        self.setup.directory.for_each(|peer| {
            if peer.shard != self.setup.shard {
                return;
            }
            if now.0.saturating_sub(peer.heard_at.load(Ordering::Relaxed)) > dead {
                let text = format!("nothing was heard for {} ms", self.setup.dead_ms);
                let error = messages::encode(&WireError::new(Code::HeartbeatTimeout, text));
                peer.outbox.answer(Op::Error, 0, 0, &error, &[]);
                peer.wish(Wish::Abort);
            } else if now.0.saturating_sub(peer.pinged_at.load(Ordering::Relaxed)) >= beat {
                peer.pinged_at.store(now.0, Ordering::Relaxed);
                peer.outbox.answer(Op::Ping, 0, 0, &[], &[]);
            }
        });
    }
}

impl Actor for Sessions {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(SWEEP, |this, ctx| this.guarded(ctx, Self::sweep));
    }
}

/// A connection for this shard.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Accept(pub std::net::TcpStream, pub Counted);

impl Handler<Accept> for Sessions {
    type Result = ();

    fn handle(&mut self, Accept(stream, counted): Accept, ctx: &mut Self::Context) {
        self.guarded(ctx, |this| this.setup.spawn.spawn(stream, counted));
    }
}

/// Makes the actor panic at its next sweep (fault injection), or one of its sessions at once.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Fault {
    /// Not the owner: the task of one of its sessions.
    pub session: bool,
}

impl Handler<Fault> for Sessions {
    type Result = ();

    fn handle(&mut self, fault: Fault, _: &mut Self::Context) {
        if !fault.session {
            self.fault = true;
            return;
        }
        let mut one = None;
        self.setup.directory.for_each(|peer| {
            if peer.shard == self.setup.shard {
                one = Some(peer.clone());
            }
        });
        if let Some(peer) = one {
            peer.wish(Wish::Panic);
        }
    }
}
