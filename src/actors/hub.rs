//! A hub shard: messages in, messages out. Subjects are spread over the shards by hash.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::{Actor, AsyncContext, Context, Handler, Message, MessageResponse, StreamHandler};
use bytes::{Bytes, BytesMut};
use hive_proto::error::Code;
use hive_proto::frame::write_frame;
use hive_proto::{Flags, FrameRef, Frames, Op, PREFIX_LEN, SessionId, WireError, messages};

use super::Clock;
use super::directory::{Directory, InFlight, Peer};
use super::mailbox::{Batch, Inlet, Input};
use super::outgoing::{Outgoing, restarted};
use super::subscriptions::{Open, OpenSubscriptions, cost, wildcards};
use super::supervise::{DeathGuard, Fault};
use super::timer::Timer;
use crate::core::hub::{Counters, Hub, HubLimits, HubSink};
use crate::core::time::Tick;

/// What outlives an incarnation.
#[derive(Debug)]
struct Legacy {
    setup: Setup,
    open: OpenSubscriptions,
}

/// What a hub shard needs to begin.
#[derive(Debug)]
pub struct Setup {
    /// Number of the shard.
    pub shard: u8,
    /// Number of shards.
    pub shards: usize,
    /// Where sessions put batches.
    pub inlet: Inlet,
    /// The other shards, if this is the first: they get copies of subscriptions with wildcards.
    pub others: Vec<Inlet>,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// Bounds.
    pub limits: HubLimits,
    /// Time.
    pub clock: Clock,
    /// Random.
    pub hash_seed: u64,
}

impl Setup {
    /// The session remembers which shard has a subscription, where there are several.
    fn refused(&self, peer: &Peer, id: u32) {
        if self.shards > 1 {
            peer.refused.lock().push(id);
        }
    }
}

/// A factory for [`super::supervise::Supervised::start`].
pub fn factory(setup: Setup) -> impl FnMut(u32, DeathGuard) -> HubShard {
    let open = OpenSubscriptions::new(setup.directory.clone());
    let legacy = Rc::new(RefCell::new(Legacy { setup, open }));
    move |incarnation, guard| HubShard::new(incarnation, guard, legacy.clone())
}

/// See the module.
#[derive(Debug)]
pub struct HubShard {
    hub: Hub,
    out: Outgoing,
    inputs: Vec<Input>,
    /// Senders of what has been applied, whose answers have not been queued.
    answered: Vec<InFlight>,
    /// Frames of the batch in hand that have not been applied, where they are applied one by one.
    in_hand: Option<(SessionId, Bytes)>,
    legacy: Rc<RefCell<Legacy>>,
    clock: Clock,
    timer: Timer,
    guard: DeathGuard,
    fault: bool,
}

impl HubShard {
    fn new(incarnation: u32, guard: DeathGuard, legacy: Rc<RefCell<Legacy>>) -> Self {
        let l = legacy.borrow();
        let s = &l.setup;
        let mut hub = Hub::new(s.shard, s.limits, s.hash_seed.wrapping_add(u64::from(incarnation)));
        let mut out = Outgoing::new(s.directory.clone());
        if incarnation > 0 {
            report_loss(&s.directory);
            out.muted = true;
            for (session, open) in l.open.iter() {
                hub.apply((s.clock)(), session, BytesMut::from(&open.frame[..]), open.quiet, &mut out);
            }
            out.muted = false;
        }
        let clock = s.clock;
        drop(l);
        Self {
            hub,
            out,
            inputs: Vec::new(),
            answered: Vec::new(),
            in_hand: None,
            legacy,
            clock,
            timer: Timer::default(),
            guard,
            fault: false,
        }
    }

    fn guarded(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.guard.blame(&*panic);
            // What was gathered did happen: messages are out already, so their answers go out too.
            self.refuse_inputs();
            actix::ActorContext::terminate(ctx);
            return;
        }
        self.arm(ctx);
    }

    /// Publishing is at most once, so only those who wait for an answer are told.
    fn refuse_inputs(&mut self) {
        let refuse = |out: &mut Outgoing, from, frames: &[u8]| {
            for frame in Frames(frames).filter(|f| f.prefix.id != 0 && f.prefix.op != Op::Reply as u8) {
                HubSink::error(out, from, frame.prefix.id, restarted("the hub shard"));
            }
        };
        if let Some((from, frames)) = self.in_hand.take() {
            refuse(&mut self.out, from, &frames);
        }
        for input in self.inputs.drain(..) {
            match input {
                Input::HasRead(_) | Input::Journaled(_) => {}
                Input::Frames(batch) => {
                    if !batch.quiet {
                        refuse(&mut self.out, batch.from.peer.session, &batch.chunk);
                    }
                    self.answered.push(batch.from);
                }
                Input::Closed(from) => {
                    self.legacy.borrow_mut().open.remove_all(from.peer.session);
                    self.answered.push(from);
                }
            }
        }
        self.out.flush();
        self.answered.clear();
    }

    fn process(&mut self) {
        let now = (self.clock)();
        assert!(!std::mem::take(&mut self.fault), "injected fault");
        self.inputs.reverse(); // taken from the end, so that a panic leaves the rest to `refuse_inputs`
        while let Some(input) = self.inputs.pop() {
            match input {
                Input::Frames(batch) => self.apply(now, batch),
                Input::HasRead(_) | Input::Journaled(_) => {} // for the dispatcher
                Input::Closed(from) => {
                    let session = from.peer.session;
                    self.hub.session_closed(session, &mut self.out);
                    self.legacy.borrow_mut().open.remove_all(session);
                    self.out.closed(session);
                    self.answered.push(from);
                }
            }
        }
        self.out.flush();
        self.answered.clear();
    }

    /// A batch holds either data, or control, or messages to agents; its first frame tells.
    fn apply(&mut self, now: Tick, batch: Batch) {
        let Batch { from, chunk, quiet, .. } = batch;
        let peer = from.peer.clone();
        self.answered.push(from);
        match chunk.get(5).and_then(|op| Op::from_u8(*op)) {
            Some(Op::Subscribe | Op::Unsubscribe) => self.control(now, &peer, chunk.freeze(), quiet),
            Some(Op::Direct | Op::Broadcast) => {
                let chunk = chunk.freeze();
                self.in_hand = Some((peer.session, chunk.clone()));
                for frame in Frames(&chunk) {
                    if let Err(e) = self.message_agents(&peer, &frame) {
                        HubSink::error(&mut self.out, peer.session, frame.prefix.id, e);
                    }
                    self.applied(&frame);
                }
                self.in_hand = None;
            }
            _ => self.hub.apply(now, peer.session, chunk, quiet, &mut self.out),
        }
    }

    /// A frame of the batch in hand is done.
    fn applied(&mut self, frame: &FrameRef<'_>) {
        if let Some((_, rest)) = &mut self.in_hand {
            bytes::Buf::advance(rest, PREFIX_LEN + frame.prefix.length as usize);
        }
    }

    /// Subscriptions come and go. Those with wildcards are the first shard's to judge; the others get copies, before the
    /// client hears that it is subscribed.
    fn control(&mut self, now: Tick, peer: &Arc<Peer>, mut chunk: Bytes, quiet: bool) {
        let from = peer.session;
        if quiet && self.legacy.borrow().setup.directory.session(from).is_none() {
            return; // it left before its copy came: nobody would end the subscription
        }
        self.in_hand = (!quiet).then(|| (from, chunk.clone()));
        let all = chunk.clone();
        for frame in Frames(&all) {
            let one = chunk.split_to(PREFIX_LEN + frame.prefix.length as usize);
            if let Err(e) = self.has_room(&frame, &one, quiet) {
                HubSink::error(&mut self.out, from, frame.prefix.id, e);
                self.legacy.borrow().setup.refused(peer, frame.prefix.id);
            } else {
                self.subscribe(now, peer, &one, frame.prefix.id, quiet);
            }
            self.applied(&frame);
        }
        self.in_hand = None;
    }

    fn has_room(&self, frame: &FrameRef<'_>, bytes: &[u8], quiet: bool) -> Result<(), WireError> {
        let pool = &self.legacy.borrow().setup.directory.pool;
        if quiet || frame.prefix.op != Op::Subscribe as u8 || pool.has_room_for_subscription(cost(bytes)) {
            return Ok(());
        }
        let text = "tasks and subscriptions fill the memory of the server";
        Err(WireError::new(Code::MemoryFull, text).retry_after(1000))
    }

    fn subscribe(&mut self, now: Tick, peer: &Arc<Peer>, frame: &Bytes, id: u32, quiet: bool) {
        let (from, before) = (peer.session, self.hub.counters().subscriptions);
        self.hub.apply(now, from, BytesMut::from(&frame[..]), quiet, &mut self.out);
        let after = self.hub.counters().subscriptions;
        let mut legacy = self.legacy.borrow_mut();
        let wild = if after > before {
            // Not a slice of the read buffer, which it would keep alive.
            let open = Open { frame: Bytes::copy_from_slice(frame), quiet };
            legacy.open.insert(from, id, open);
            wildcards(frame).is_some()
        } else if after < before {
            legacy.open.remove(from, id).is_some_and(|open| wildcards(&open.frame).is_some())
        } else {
            if !legacy.open.contains(from, id) {
                legacy.setup.refused(peer, id);
            }
            false
        };
        if wild && !quiet {
            for other in &legacy.setup.others {
                let from = InFlight::new(&legacy.setup.directory, peer, 0, frame.len());
                other.copied(Batch { from, chunk: BytesMut::from(&frame[..]), read_at: now, quiet: true });
            }
        }
    }

    fn message_agents(&mut self, from: &Arc<Peer>, frame: &FrameRef<'_>) -> Result<(), WireError> {
        let op = frame.op()?;
        let (trace, rest) = frame.traced_header()?;
        let mut message = Vec::new();
        let flags =
            if op == Op::Broadcast { Flags::BROADCAST } else { 0 } | frame.prefix.flags.0 & Flags::TRACE;
        let trace = trace.as_ref().map_or(&[][..], |t| &t.0);
        write_frame(&mut message, Op::Message, flags, 0, 0, &[trace, from.agent.as_bytes()], frame.payload);
        let message = Bytes::from(message);
        let mut reached = 0_usize;
        if op == Op::Broadcast {
            let directory = self.legacy.borrow().setup.directory.clone();
            directory.for_each(|peer| {
                if peer.session != from.session && peer.outbox.deliver(0, 1, message.clone()) {
                    reached += 1;
                }
            });
        } else {
            let agent = hive_proto::names::agent(rest)?;
            let peer = self.legacy.borrow().setup.directory.agent(agent);
            let unknown = || WireError::new(Code::UnknownAgent, format!("no agent {agent:?} is connected"));
            if !peer.ok_or_else(unknown)?.outbox.deliver(0, 1, message) {
                return Err(WireError::new(Code::ReceiverSlow, format!("agent {agent:?} does not read"))
                    .retry_after(100));
            }
            reached = 1;
        }
        self.out.delivered += reached as u64;
        if frame.prefix.flags.has(Flags::ACK) {
            HubSink::ok(
                &mut self.out,
                from.session,
                frame.prefix.id,
                reached.min(usize::from(u16::MAX)) as u16,
            );
        }
        Ok(())
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.hub.next_deadline(), self.clock, ctx, |this, ctx| {
            this.timer.fired();
            this.guarded(ctx, |this| {
                this.hub.on_deadline((this.clock)(), &mut this.out);
                this.out.flush();
            });
        });
    }
}

/// Requests under way are gone; those who may have sent one are told by an error that answers none in particular.
fn report_loss(directory: &Directory) {
    let text = "a hub shard restarted; requests and acknowledged publishes without an answer have failed";
    let error = messages::encode(&WireError::new(Code::Restarted, text).maybe_done());
    directory.for_each(|peer| {
        if peer.requests.load(Ordering::Relaxed) {
            peer.outbox.answer(Op::Error, 0, 0, &error, &[]);
        }
    });
}

impl Actor for HubShard {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.legacy.borrow().setup.inlet.ready());
    }
}

impl StreamHandler<()> for HubShard {
    fn handle(&mut self, (): (), ctx: &mut Self::Context) {
        self.legacy.borrow().setup.inlet.take(&mut self.inputs);
        self.guarded(ctx, Self::process);
    }
}

/// Asks a hub shard for its state.
#[derive(Debug, Message)]
#[rtype(result = "View")]
pub struct GetView;

/// State of a hub shard.
#[derive(Debug, Clone, Copy, MessageResponse)]
pub struct View {
    /// Events since this incarnation began.
    pub counters: Counters,
    /// Messages queued for receivers.
    pub delivered: u64,
    /// Messages that slow receivers lost.
    pub lost: u64,
}

impl Handler<GetView> for HubShard {
    type Result = View;

    fn handle(&mut self, _: GetView, _: &mut Self::Context) -> View {
        View { counters: self.hub.counters(), delivered: self.out.delivered, lost: self.out.lost }
    }
}

impl Handler<Fault> for HubShard {
    type Result = ();

    fn handle(&mut self, _: Fault, _: &mut Self::Context) {
        self.fault = true;
    }
}
