//! The hub: publish and subscribe, queue groups, request and reply. One shard of it, as a state machine.
//!
//! The hub delivers at most once and keeps nothing: a message goes to whoever is subscribed at that moment. A session
//! with several matching subscriptions gets it once for each; a publisher that is subscribed, or a member of a group,
//! receives its own messages like anybody else. Messages of one publisher on one subject keep their order, except that
//! the members of a group run side by side.
//!
//! # The life of a batch of messages
//!
//! ```text
//! chunk from a session     | Publish a | Publish a | Publish a | Publish b | Subscribe | Publish a |
//!                          '------------ run ------------------'- run -----'           '- run -----'
//!  same subject as before? -> same route: the frame joins the run, patched in place into a Deliver
//!  other subject           -> routes.rs remembers it, or subscriptions.rs and trie.rs find it
//! end of the run:            one receiver     the run itself is sent, no byte copied
//!                            several          one copy for each *number* among their subscriptions, shared by reference
//!                            a group of m     the run is cut into m even parts, sent without a copy
//!                            nobody           skipped
//! ```
//!
//! So what is paid per message is a comparison with the message before and a store of eight bytes; look-ups, reference
//! counts and sends are paid per run. See `publish.rs`.
//!
//! # The life of a request
//!
//! ```text
//!  asker                         hub                                           responder
//!    |  Request id=7 "math.add"   |                                                |
//!    |--------------------------->| route: whose turn among all that match?        |
//!    |   Error no_responders <----| nobody                                         |
//!    |   Error too_many_requests <| no slot free                                   |
//!    |                            | slot 12 := {asker, 7, responder}, deadline     |
//!    |                            |  Requested id=subscription, token of slot 12   |
//!    |                            |----------------------------------------------->|
//!    |   Error receiver_slow <----| it takes no more                               |
//!    |                            |                    Reply, token of slot 12     |
//!    |                            |<-----------------------------------------------|
//!    |        Response id=7       | token fits slot, generation, responder?        |
//!    |<---------------------------| slot 12 free, generation + 1                   |
//!    |                            |------ no: Error unknown_reply ---------------->|
//!    |   Error request_timeout <--| deadline first   (a later reply: unknown_reply)|
//!    |   Error responder_gone <---| responder closed first                         |
//!    |  closed first              | slot free, nothing is sent                     |
//! ```
//!
//! Exactly one of these ends a request. All three frames are the same bytes, patched in place.
//!
//! # What the caller owes
//!
//! - All frames of a session about one subject come to one shard, in their order; a subscription with wildcards goes to
//!   every shard, `quiet` on all but one, and so does its end.
//! - Nothing of a session comes after [`Hub::session_closed`].

mod publish;
mod request;
mod requests;
mod routes;
mod slab;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;
mod trie;

use bytes::{Buf, Bytes, BytesMut};
use hive_proto::{Code, FrameRef, Op, PREFIX_LEN, SessionId, WireError};

use crate::core::time::Tick;
use requests::Requests;
use routes::{Route, Routes};
use subscriptions::Subscriptions;

type Hashing = foldhash::fast::SeedableRandomState;

/// What a hub shard may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HubLimits {
    /// Subscriptions of one session in this shard.
    pub subscriptions_per_session_max: usize,
    /// Requests under way in this shard, at most 2^32 - 1.
    pub requests_max: usize,
    /// Longest time that a request may wait, milliseconds. Longer wishes are cut to it.
    pub request_ms_max: u32,
    /// Subscriptions in this shard, at most 2^32 - 1.
    pub subscriptions_max: usize,
}

/// What has happened since the hub was made; the last two are what there is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages published on a valid subject.
    pub published: u64,
    /// Messages handed to [`HubSink::deliver`], once for every receiver.
    pub delivered: u64,
    /// Messages published that nobody was subscribed to.
    pub unheard: u64,
    /// Requests given to a responder.
    pub requests: u64,
    /// Replies passed on.
    pub replies: u64,
    /// Requests that nobody was subscribed to.
    pub no_responders: u64,
    /// Requests whose deadline came first.
    pub timeouts: u64,
    /// Requests whose responder closed, or took no more, before it answered.
    pub responders_gone: u64,
    /// Frames answered with an error for what they were, not for what happened to them.
    pub refused: u64,
    /// Subscriptions open.
    pub subscriptions: u64,
    /// Requests under way.
    pub requests_waiting: u64,
}

/// Where a hub's effects go. Called in the order in which things happen.
pub trait HubSink {
    /// `count` complete `Deliver` frames for subscription `sub`. May be dropped, and counted, when the receiver is slow.
    fn deliver(&mut self, to: SessionId, sub: u32, count: u32, frames: Bytes);

    /// A complete frame that must not be dropped.
    fn response(&mut self, to: SessionId, frame: Bytes);

    /// A complete `Requested` frame. Must not be dropped in silence either: `false` says that the responder takes no
    /// more, and the asker is told `receiver_slow`. A sink that cannot tell treats it as a response.
    fn requested(&mut self, to: SessionId, frame: Bytes) -> bool {
        self.response(to, frame);
        true
    }

    /// Frame `id` is done; it reached `count` (65,535 stands for that many or more).
    fn ok(&mut self, to: SessionId, id: u32, count: u16);

    /// Frame `id` is refused, or the request `id` has failed.
    fn error(&mut self, to: SessionId, id: u32, error: WireError);
}

/// One shard of the hub.
#[derive(Debug)]
pub struct Hub {
    limits: HubLimits,
    subscriptions: Subscriptions,
    routes: Routes,
    requests: Requests,
    counters: Counters,
}

impl Hub {
    /// `shard` stands in the tokens of requests, so that replies find back. `seed` is to be random: it keeps clients from
    /// choosing subjects that collide in the hub's tables, and tokens of an earlier hub from fitting this one. Nothing
    /// else depends on it.
    pub fn new(shard: u8, limits: HubLimits, seed: u64) -> Self {
        let hashing = hashing(seed);
        Self {
            limits,
            subscriptions: Subscriptions::new(&hashing),
            routes: Routes::new(hashing.clone()),
            requests: Requests::new(shard, limits.requests_max, (seed >> 40) as u32, hashing),
            counters: Counters::default(),
        }
    }

    /// Applies complete frames of one session, as [`hive_proto::codec::cut`] has judged them: `Publish`, `Subscribe`,
    /// `Unsubscribe`, `Request`, `Reply`. Each other one is answered with an error.
    ///
    /// `quiet` is for subscriptions replicated to several shards, and their ends: they are not answered with `ok`, nor
    /// with those errors that the other shard gives as well.
    pub fn apply(
        &mut self,
        now: Tick,
        from: SessionId,
        mut chunk: BytesMut,
        quiet: bool,
        sink: &mut impl HubSink,
    ) {
        // A chunk that was not well cut ends where it stops making sense.
        while let Some(total) = first_frame(&chunk) {
            let Some(frame) = FrameRef::parse(&chunk[..total]) else { return };
            match frame.op() {
                Ok(Op::Publish) => self.publish(from, &mut chunk, sink),
                Ok(op) => {
                    let id = frame.prefix.id;
                    let frame = chunk.split_to(total);
                    if let Err(error) = self.single(now, from, op, frame, quiet, sink) {
                        self.refuse(from, id, error, sink);
                    }
                }
                Err(error) => {
                    self.refuse(from, frame.prefix.id, error, sink);
                    chunk.advance(total);
                }
            }
        }
    }

    /// Forgets a session: its subscriptions, and the requests that it has asked. Requests that waited for its reply fail
    /// with `responder_gone`.
    pub fn session_closed(&mut self, session: SessionId, sink: &mut impl HubSink) {
        while let Some(pattern) = self.subscriptions.remove_any(session) {
            self.routes.changed(&pattern);
        }
        while self.requests.forget_asked(session).is_some() {}
        while let Some(request) = self.requests.forget_owed(session) {
            self.counters.responders_gone += 1;
            let text = "the responder's connection ended before it answered";
            sink.error(request.asker, request.id, WireError::new(Code::ResponderGone, text).maybe_done());
        }
    }

    /// When [`Hub::on_deadline`] is to be called next. May be too early, when a request has been answered meanwhile.
    pub fn next_deadline(&self) -> Option<Tick> {
        self.requests.next_deadline()
    }

    /// Ends the requests whose time is over.
    pub fn on_deadline(&mut self, now: Tick, sink: &mut impl HubSink) {
        while let Some(request) = self.requests.expire(now) {
            self.counters.timeouts += 1;
            let text = "the responder did not answer in time";
            sink.error(request.asker, request.id, WireError::new(Code::RequestTimeout, text).maybe_done());
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        Counters {
            subscriptions: self.subscriptions.len() as u64,
            requests_waiting: self.requests.len() as u64,
            ..self.counters
        }
    }

    fn single(
        &mut self,
        now: Tick,
        from: SessionId,
        op: Op,
        frame: BytesMut,
        quiet: bool,
        sink: &mut impl HubSink,
    ) -> Result<(), WireError> {
        match op {
            Op::Subscribe => self.subscribe(from, &frame, quiet, sink),
            Op::Unsubscribe => self.unsubscribe(from, &frame, quiet, sink),
            Op::Request => self.request(now, from, frame, sink),
            Op::Reply => self.reply(from, frame, sink),
            op => Err(WireError::new(
                Code::UnknownOp,
                format!("operation {op:?} is not one that the hub takes"),
            )),
        }
    }

    fn refuse(&mut self, to: SessionId, id: u32, error: WireError, sink: &mut impl HubSink) {
        self.counters.refused += 1;
        sink.error(to, id, error);
    }

    /// Where messages of a subject go. A subject that is remembered has been judged before.
    fn route(&mut self, subject: &[u8]) -> Result<Route, WireError> {
        if let Some(route) = self.routes.get(subject) {
            return Ok(route.clone());
        }
        hive_proto::names::subject(subject)?;
        let route = self.subscriptions.route(subject, self.counters.requests as u32);
        self.routes.remember(subject, route.clone());
        Ok(route)
    }
}

/// Length of the first frame, prefix included.
#[inline]
fn first_frame(chunk: &[u8]) -> Option<usize> {
    let length = chunk.first_chunk::<4>()?;
    let total = PREFIX_LEN + u32::from_le_bytes(*length) as usize;
    (chunk.len() >= total).then_some(total)
}

/// The hub's tables are filled by strangers, so all of the hash's seed is random, not only the part that foldhash changes
/// per table: with a known shared seed, inputs can be made that cancel it. The 48 bytes are leaked, once for each hub.
fn hashing(seed: u64) -> Hashing {
    let shared = Box::leak(Box::new(foldhash::SharedSeed::from_u64(seed)));
    Hashing::with_seed(seed.rotate_left(32), shared)
}
