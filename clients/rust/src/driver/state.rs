//! What the driver knows, and what frames mean. No socket here: frames come in through `on_run`, leave through `wire`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;
use hive_proto::Code;
use hive_proto::codec::{Frame, Frames};
use hive_proto::fragment::Assembler;
use hive_proto::messages::{self, Drain, TasksLost, Welcome};
use hive_proto::{FrameRef, Lease, Op, TaskId, WireError};

use super::hub::{DeliveryRun, OpenSubscription};
use super::leases::{Held, OpenConsumer, SettleGroup};
use super::parts::{refusals, settled, share, whole};
use super::submits::{Credit, SubmitGroup, SubmitReply};
use super::watches::Watches;
use super::wire::Wire;
use crate::client::{Shared, Status};
use crate::command::{Call, Command, Note, Reply};
use crate::inbox::InboxSender;
use crate::{ClientBuilder, Error};

/// Requests that may be unanswered at once; no more are taken from callers beyond it.
const PENDING_MAX: usize = 65_536;
/// Bytes of fragmented messages that the server may have under way, beyond `message_bytes_max`.
const ASSEMBLY_SLACK: usize = 64 << 20;
/// How soon something refused for now is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

pub(super) struct State {
    pub(super) shared: Arc<Shared>,
    pub(super) wire: Wire,
    pub(super) generation: u64,
    pub(super) epoch: u32,
    pub(super) online: bool,
    next_id: u32,
    pending: HashMap<u32, Pending>,
    pub(super) credit: Credit,
    pub(super) submit_groups: Vec<SubmitGroup>,
    pub(super) settle_groups: Vec<SettleGroup>,
    pub(super) watches: Watches,
    pub(super) consumers: HashMap<u32, OpenConsumer>,
    pub(super) held: HashMap<TaskId, Held>,
    pub(super) subscriptions: HashMap<u32, OpenSubscription>,
    agent_messages: Option<InboxSender>,
    assembler: Assembler,
    /// To be given back to the budget.
    weight: usize,

    silence_max: Option<Duration>,
    heartbeat: Duration,
    dead: Duration,
    pub(super) last_heard: Instant,
    /// Place in the outgoing stream at the last tick: who has sent since needs no ping.
    place_at_tick: u64,
    next_ping: Instant,
    pub(super) next_tick: Instant,
    /// How often held leases are looked at.
    pub(super) renew_every: Duration,
    /// Something was refused for now.
    pub(super) retry_soon: bool,

    /// The server drains; it closes at this time.
    draining: Option<Instant>,
    pub(super) other_servers: Vec<String>,
    reconnect: bool,
    /// The client drains.
    pub(super) leaving: bool,
    /// An error that answered nothing, sent before the server closed.
    pub(super) last_words: Option<Error>,
}

/// A request without an answer.
struct Pending {
    /// Where it starts in the outgoing stream.
    place: u64,
    what: Awaiting,
}

pub(super) enum Awaiting {
    Call(Reply<Frame>),
    Submit {
        replies: Vec<SubmitReply>,
        watch: bool,
        tasks: u64,
        bytes: u64,
    },
    Settle(Vec<Option<Reply<()>>>),
    Renew(Vec<Lease>),
    Recovery(Vec<TaskId>),
    Consumer(u32),
    Subscription(u32),
    /// An answer that tells nothing new.
    Nothing,
}

impl State {
    pub(super) fn new(shared: Arc<Shared>, settings: &ClientBuilder, welcome: Welcome, server: &str) -> Self {
        let now = Instant::now();
        let mut state = Self {
            shared,
            wire: Wire::new(0, 0),
            generation: 0,
            epoch: 0,
            online: false,
            next_id: 0,
            pending: HashMap::default(),
            credit: Credit::default(),
            submit_groups: Vec::new(),
            settle_groups: Vec::new(),
            watches: Watches::default(),
            consumers: HashMap::default(),
            held: HashMap::default(),
            subscriptions: HashMap::default(),
            agent_messages: None,
            assembler: Assembler::new(0),
            weight: 0,
            silence_max: settings.silence_max,
            heartbeat: Duration::ZERO,
            dead: Duration::ZERO,
            last_heard: now,
            place_at_tick: 0,
            next_ping: now,
            next_tick: now,
            renew_every: Duration::MAX,
            retry_soon: false,
            draining: None,
            other_servers: Vec::new(),
            reconnect: settings.reconnect,
            leaving: false,
            last_words: None,
        };
        state.connected(welcome, server);
        state
    }

    /// A connection is there: takes over its terms, and opens again what was open.
    pub(super) fn connected(&mut self, w: Welcome, server: &str) {
        let now = Instant::now();
        self.wire = Wire::new(w.frame_bytes_max, w.message_bytes_max);
        self.assembler = Assembler::new(ASSEMBLY_SLACK + w.message_bytes_max as usize);
        self.generation = self.shared.next_generation();
        (self.epoch, self.online) = (w.epoch, true);
        self.credit = Credit::new(w.credit_tasks, w.credit_bytes);
        self.shared.set_limits(&w);
        self.dead = Duration::from_millis(w.dead_ms.max(50).into());
        self.dead = self.silence_max.map_or(self.dead, |s| s.min(self.dead));
        self.heartbeat = Duration::from_millis(w.heartbeat_ms.max(10).into()).min(self.dead / 2);
        (self.last_heard, self.place_at_tick, self.draining, self.last_words) = (now, 0, None, None);
        self.renew_every = Duration::MAX;
        self.next_ping = now + self.heartbeat / 2;
        self.next_tick = self.next_ping;
        self.shared.set_status(Status::Connected {
            server: server.to_owned(),
            agent: w.agent,
            session: w.session,
        });
        self.reopen_consumers();
        self.reopen_subscriptions();
        self.watches.recover_all();
        self.pump_recovery(now);
    }

    /// The connection is gone: unanswered requests fail, leases are void.
    pub(super) fn disconnected(&mut self, reason: &Error) {
        self.online = false;
        let pending: Vec<_> = self.pending.drain().map(|(_, p)| p).collect();
        for p in pending {
            if matches!(p.what, Awaiting::Consumer(_) | Awaiting::Subscription(_)) {
                continue; // Opened on the next connection.
            }
            let error = match reason {
                Error::Disconnected { reason, .. } => {
                    Error::Disconnected { reason: reason.clone(), sent: self.wire.has_left(p.place) }
                }
                other => other.clone(),
            };
            self.fail(p.what, &error);
        }
        self.watches.forget_recovery();
        self.void_leases();
        self.give_back();
    }

    /// There will be no other connection.
    pub(super) fn abandon(&mut self, reason: &Error) {
        self.watches.abandon(reason);
        for (_, mut consumer) in self.consumers.drain() {
            consumer.fail(reason);
        }
        for (_, mut subscription) in self.subscriptions.drain() {
            subscription.fail(reason);
        }
        self.agent_messages = None;
    }

    pub(super) fn goodbye(&mut self) {
        // A frame of 16 bytes always fits.
        let _ = self.wire.frame(Op::Goodbye, 0, 0, 0, &[], &[]);
    }

    /// Takes no more tasks; what is held is still settled.
    pub(super) fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.stop_consumers();
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.wire.has_room() && self.pending.len() < PENDING_MAX
    }

    /// Whether submissions may go out: a draining server would refuse what another may take.
    pub(super) fn may_submit(&self, servers: usize) -> bool {
        self.draining.is_none() || !self.has_choice(servers)
    }

    /// Whether the server asked to leave, there is another to go to, and nothing is owed.
    pub(super) fn may_leave(&self, servers: usize) -> bool {
        let Some(deadline) = self.draining else { return false };
        let done = self.owes_nothing(false) && self.watches.is_empty();
        self.has_choice(servers) && (done || Instant::now() >= deadline)
    }

    fn has_choice(&self, servers: usize) -> bool {
        self.reconnect && (servers > 1 || !self.other_servers.is_empty())
    }

    /// Whether no answer is awaited and no assignment held; of the `orphaned` nobody waits for answers.
    pub(super) fn owes_nothing(&self, orphaned: bool) -> bool {
        let asked =
            |p: &Pending| !matches!(p.what, Awaiting::Recovery(_) | Awaiting::Renew(_) | Awaiting::Nothing);
        self.wire.is_empty() && (orphaned || self.held.is_empty() && !self.pending.values().any(asked))
    }

    /// Returns the room of what has been taken since the last call.
    pub(super) fn give_back(&mut self) {
        self.shared.budget.give_back(std::mem::take(&mut self.weight));
    }

    pub(super) fn weigh(&mut self, weight: usize) {
        self.weight += weight;
    }

    /// A number that no request, consumer or subscription has.
    pub(super) fn number(&mut self) -> u32 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            let id = self.next_id;
            let taken = self.pending.contains_key(&id)
                || self.consumers.contains_key(&id)
                || self.subscriptions.contains_key(&id);
            if id != 0 && !taken {
                return id;
            }
        }
    }

    /// Sends a request and notes what its answer is for; on failure (too large) that is told at once.
    pub(super) fn ask(
        &mut self,
        id: u32,
        op: Op,
        flags: u16,
        header: &[u8],
        (count, payload): (u16, &[u8]),
        what: Awaiting,
    ) {
        match self.wire.frame(op, flags, id, count, header, payload) {
            Ok(place) => {
                self.pending.insert(id, Pending { place, what });
            }
            Err(e) => self.fail(what, &e),
        }
    }

    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Call(call) => self.call(call),
            Command::OpenConsumer { spec, shared, batches, reply } => {
                self.open_consumer(OpenConsumer::new(spec, shared, batches, reply));
            }
            Command::SetCredit { consumer, tasks, bytes } => self.set_credit(consumer, tasks, bytes),
            Command::OpenSubscription { spec, inbox, reply } => {
                self.open_subscription(OpenSubscription::new(spec, inbox, reply));
            }
            Command::AgentMessages(inbox) => self.agent_messages = Some(inbox),
            Command::Progress { task, to } => self.watches.progress_to(task, to),
        }
    }

    fn call(&mut self, call: Call) {
        self.weigh(call.weight);
        let Some(reply) = call.reply else {
            if let Err(e) = self.wire.frame(call.op, call.flags, 0, call.count, &call.header, &call.payload) {
                tracing::warn!(op = ?call.op, error = %e, "not sent");
            }
            return;
        };
        let id = self.number();
        self.ask(id, call.op, call.flags, &call.header, (call.count, &call.payload), Awaiting::Call(reply));
    }

    pub(super) fn on_notes(&mut self, notes: impl Iterator<Item = Note>) {
        notes.for_each(|n| self.on_note(n));
        self.flush_settles();
    }

    /// As [`Self::on_notes`], to be followed by it: settlements wait for others that may share their frame.
    pub(super) fn on_note(&mut self, note: Note) {
        match note {
            Note::Settle(s) => self.settle(s),
            Note::StopConsumer(id) | Note::CloseConsumer(id) => self.stop_consumer(id),
            Note::CloseSubscription(id) => self.close_subscription(id),
        }
    }

    /// Takes a run of whole frames.
    pub(super) fn on_run(&mut self, run: &Bytes, now: Instant) -> Result<(), Error> {
        self.last_heard = now;
        let mut deliveries = DeliveryRun::default();
        for frame in Frames(run) {
            let Some(op) = Op::from_u8(frame.prefix.op) else { continue };
            if matches!(op, Op::Deliver | Op::Requested | Op::MessagesLost) {
                if !deliveries.add(&frame) {
                    self.deliver(run, &std::mem::take(&mut deliveries));
                    deliveries.add(&frame);
                }
                continue;
            }
            self.deliver(run, &std::mem::take(&mut deliveries));
            if op == Op::Fragment {
                match self.assembler.push(frame) {
                    Ok(Some(whole)) if whole[5] != Op::Fragment as u8 => self.on_run(&whole, now)?,
                    Ok(_) => {}
                    Err((_, e)) => return Err(Error::Protocol(e.text)),
                }
                continue;
            }
            self.on_frame(op, &frame, run, now)?;
        }
        self.deliver(run, &deliveries);
        Ok(())
    }

    fn on_frame(&mut self, op: Op, frame: &FrameRef<'_>, run: &Bytes, now: Instant) -> Result<(), Error> {
        let id = frame.prefix.id;
        match op {
            Op::Ping => {
                let echo = &frame.payload[..frame.payload.len().min(64)];
                self.wire.frame(Op::Pong, 0, id, 0, &[], echo)?;
            }
            Op::Assign => self.on_assign(frame, run, now)?,
            Op::Result => self.on_result(frame, run)?,
            Op::Accepted | Op::Ok | Op::Error | Op::Settled | Op::Tasks | Op::Response => {
                self.on_answer(op, frame, run, now)?;
            }
            Op::Progressed => self.on_progressed(frame, run)?,
            Op::Revoked => self.on_revoked(frame)?,
            Op::TasksLost => self.watches.lose(messages::decode::<TasksLost>(frame.header)?),
            Op::ResultsMissed => {
                self.watches.recover_all();
                self.pump_recovery(now);
            }
            Op::Message => {
                if let Some(inbox) = &mut self.agent_messages {
                    inbox.push(share(run, whole(frame, run)), 1, self.generation);
                }
            }
            Op::Drain => self.on_drain(messages::decode(frame.header)?, now),
            // A newer server may say more than this client understands.
            _ => {}
        }
        Ok(())
    }

    fn on_answer(&mut self, op: Op, frame: &FrameRef<'_>, run: &Bytes, now: Instant) -> Result<(), Error> {
        let id = frame.prefix.id;
        let error = match op {
            Op::Error => Some(Error::from(messages::decode::<WireError>(frame.header)?)),
            _ => None,
        };
        let Some(Pending { what, .. }) = self.pending.remove(&id) else {
            match error {
                Some(e) if id == 0 && e.code() == Some(Code::Restarted) => self.fail_calls(&e),
                Some(e) if id == 0 => self.last_words = Some(e),
                _ if op == Op::Settled => tracing::warn!("settlements were refused: {:?}", refusals(frame)?),
                _ => {}
            }
            return Ok(());
        };
        if let Some(e) = error {
            self.fail(what, &e);
            return Ok(());
        }
        match what {
            Awaiting::Call(reply) => {
                if let Some(frame) = Frame::new(share(run, whole(frame, run))) {
                    // The caller may have given up.
                    let _ = reply.send(Ok(frame));
                }
            }
            Awaiting::Submit { replies, watch, tasks, bytes } => {
                self.credit.give_back(tasks, bytes);
                self.on_accepted(frame, replies, watch)?;
            }
            Awaiting::Settle(replies) => settled(&refusals(frame)?, replies),
            Awaiting::Renew(leases) => self.on_renewed(&refusals(frame)?, &leases),
            Awaiting::Recovery(tasks) => self.on_recovered(frame, run, &tasks, now)?,
            Awaiting::Consumer(id) => self.consumer_opened(id),
            Awaiting::Subscription(id) => self.subscription_opened(id),
            Awaiting::Nothing => {}
        }
        Ok(())
    }

    /// A hub shard restarted, and does not know whose calls it had in hand: none of them is answered any more.
    fn fail_calls(&mut self, e: &Error) {
        let calls = self.pending.extract_if(|_, p| matches!(p.what, Awaiting::Call(_)));
        for (_, call) in calls.collect::<Vec<_>>() {
            self.fail(call.what, e);
        }
    }

    fn fail(&mut self, what: Awaiting, e: &Error) {
        match what {
            Awaiting::Call(reply) => {
                let _ = reply.send(Err(e.clone()));
            }
            Awaiting::Submit { replies, tasks, bytes, .. } => {
                self.credit.give_back(tasks, bytes);
                replies.into_iter().for_each(|r| r.fail(e));
            }
            Awaiting::Settle(replies) => {
                for reply in replies.into_iter().flatten() {
                    let _ = reply.send(Err(e.clone()));
                }
            }
            Awaiting::Recovery(tasks) => self.watches.recover_later(tasks),
            Awaiting::Consumer(id) => self.consumer_refused(id, e),
            Awaiting::Subscription(id) => self.subscription_refused(id, e),
            Awaiting::Renew(_) | Awaiting::Nothing => {}
        }
    }

    fn on_drain(&mut self, drain: Drain, now: Instant) {
        self.draining = Some(now + Duration::from_millis(drain.grace_ms.into()));
        self.other_servers = drain.servers;
        self.shared.set_status(Status::Draining { reason: drain.reason });
    }

    /// Heartbeats, renewals, second tries.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Error> {
        let silent = now - self.last_heard;
        if silent > self.dead {
            let reason = format!("the server was silent for {:.1} s", silent.as_secs_f32());
            return Err(Error::Disconnected { reason, sent: true });
        }
        if now >= self.next_ping {
            if self.wire.place() == self.place_at_tick || silent > self.heartbeat / 2 {
                self.wire.frame(Op::Ping, 0, 0, 0, &[], &[])?;
            }
            self.place_at_tick = self.wire.place();
            self.next_ping = now + self.heartbeat / 2;
        }
        self.renew(now);
        if std::mem::take(&mut self.retry_soon) {
            self.reopen_refused();
            self.pump_recovery(now);
        }
        self.next_tick = self.next_ping;
        if !self.held.is_empty() {
            self.next_tick = self.next_tick.min(now + self.renew_every);
        }
        if self.retry_soon {
            self.next_tick = self.next_tick.min(now + RETRY);
        }
        Ok(())
    }
}
