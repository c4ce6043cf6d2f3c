//! The dispatcher: task frames in, task frames out. One for the process: the core decides a task in well under a
//! microsecond, and one board needs no agreement with others about waits, limits and order.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::{Actor, AsyncContext, Context, Handler, Message, MessageResponse, StreamHandler};
use hashbrown::HashMap;
use hive_proto::error::Code;
use hive_proto::items::{self, Items, Reader};
use hive_proto::messages::{self, TasksLost, Work};
use hive_proto::{Flags, FrameRef, Frames, Lease, Op, SessionId, TaskId, WireError, ids::Durability};

use super::Clock;
use super::directory::{Directory, Peer};
use super::mailbox::{Batch, Inlet, Input};
use super::outgoing::{Outgoing, restarted};
use super::stats::{Histogram, Quantiles};
use super::supervise::DeathGuard;
use super::timer::Timer;
use crate::core::tasks::{
    Board, Counters, Identity, Limits, Policy, QueueView, SubmitFrame, TaskSink, WaitMode,
};
use crate::core::time::Tick;

/// Sequences that a new incarnation stays clear of the old one's.
const SEQ_GAP: u64 = 1 << 24;

/// What outlives an incarnation.
#[derive(Debug)]
pub struct Legacy {
    inlet: Inlet,
    directory: Arc<Directory>,
    limits: Limits,
    default_policy: Policy,
    queues: Vec<(String, Policy)>,
    clock: Clock,
    epoch: u32,
    hash_seed: u64,
    /// Above every sequence given out.
    next_seq: u64,
    /// Open consumers, so that a new board knows the workers of the old one.
    consumers: HashMap<SessionId, (Arc<Peer>, HashMap<u32, Work>)>,
}

/// What a batch changes in the legacy, once all of it is done.
#[derive(Debug)]
enum Change {
    Open(Arc<Peer>, u32, Work),
    Window(SessionId, u32, u32, u64),
    Close(SessionId, u32),
    Gone(SessionId),
}

impl Legacy {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Open(peer, id, work) => {
                let session = peer.session;
                let (_, mine) = self.consumers.entry(session).or_insert_with(|| (peer, HashMap::new()));
                mine.insert(id, work);
            }
            Change::Window(session, id, tasks, bytes) => {
                if let Some(work) = self.consumers.get_mut(&session).and_then(|(_, mine)| mine.get_mut(&id)) {
                    (work.credit_tasks, work.credit_bytes) = (tasks, bytes);
                }
            }
            Change::Close(session, id) => {
                if let Some((_, mine)) = self.consumers.get_mut(&session) {
                    mine.remove(&id);
                }
            }
            Change::Gone(session) => {
                self.consumers.remove(&session);
            }
        }
    }
}

/// What the dispatcher needs to begin.
#[derive(Debug)]
pub struct Setup {
    /// Where sessions put batches.
    pub inlet: Inlet,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// Bounds of the board.
    pub limits: Limits,
    /// Policy of queues that are not declared.
    pub default_policy: Policy,
    /// Declared queues.
    pub queues: Vec<(String, Policy)>,
    /// Time.
    pub clock: Clock,
    /// First incarnation: seconds since 1970 when the process began.
    pub epoch: u32,
    /// First task sequence: above those of earlier processes.
    pub first_seq: u64,
    /// Random.
    pub hash_seed: u64,
}

/// A factory for [`super::supervise::Supervised::start`].
pub fn factory(setup: Setup) -> impl FnMut(u32, DeathGuard) -> Dispatcher {
    let legacy = Rc::new(RefCell::new(Legacy {
        inlet: setup.inlet,
        directory: setup.directory,
        limits: setup.limits,
        default_policy: setup.default_policy,
        queues: setup.queues,
        clock: setup.clock,
        epoch: setup.epoch,
        hash_seed: setup.hash_seed,
        next_seq: setup.first_seq,
        consumers: HashMap::new(),
    }));
    move |incarnation, guard| Dispatcher::new(incarnation, guard, legacy.clone())
}

/// See the module.
#[derive(Debug)]
pub struct Dispatcher {
    board: Board,
    out: Outgoing,
    inputs: Vec<Input>,
    /// Frames of `inputs` whose producer credit is back.
    credited: usize,
    changes: Vec<Change>,
    legacy: Rc<RefCell<Legacy>>,
    clock: Clock,
    timer: Timer,
    guard: DeathGuard,
    batches: u64,
    decision: Histogram,
    queued: Histogram,
    fault: bool,
}

impl Dispatcher {
    fn new(incarnation: u32, guard: DeathGuard, legacy: Rc<RefCell<Legacy>>) -> Self {
        let mut l = legacy.borrow_mut();
        if incarnation > 0 {
            l.next_seq += SEQ_GAP;
        }
        let epoch = l.epoch.wrapping_add(incarnation);
        let identity = Identity { epoch, first_seq: l.next_seq, hash_seed: l.hash_seed };
        let mut board = Board::new(l.limits.clone(), l.default_policy, identity);
        for (name, policy) in &l.queues {
            if let Err(e) = board.declare(name, *policy) {
                tracing::error!(queue = name, error = %e, "declared queue refused");
            }
        }
        let mut out = Outgoing::new(l.directory.clone(), Durability::Memory);
        if incarnation > 0 {
            report_loss(&l);
            out.muted = true;
            for (session, (peer, consumers)) in &l.consumers {
                for (id, work) in consumers {
                    board.work(*session, *id, work, &peer.labels, &mut out);
                }
            }
            out.muted = false;
        }
        let clock = l.clock;
        drop(l);
        Self {
            board,
            out,
            inputs: Vec::new(),
            credited: 0,
            changes: Vec::new(),
            legacy,
            clock,
            timer: Timer::default(),
            guard,
            batches: 0,
            decision: Histogram::default(),
            queued: Histogram::default(),
            fault: false,
        }
    }

    /// Runs a piece of work; a panic ends this incarnation.
    fn guarded(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.guard.blame(&*panic);
            self.out.abandon();
            self.refuse_waits();
            self.refuse_inputs();
            actix::ActorContext::terminate(ctx);
            return;
        }
        self.arm(ctx);
    }

    /// Waits end with the board; the board may be broken, so its word is taken only if it can still speak.
    fn refuse_waits(&mut self) {
        let waits = catch_unwind(AssertUnwindSafe(|| self.board.open_waits().collect::<Vec<_>>()));
        for (session, request) in waits.unwrap_or_default() {
            TaskSink::error(&mut self.out, session, request, restarted("the dispatcher"));
        }
    }

    /// The batch in hand did not happen, since the board it was applied to is gone: say so.
    fn refuse_inputs(&mut self) {
        let mut legacy = self.legacy.borrow_mut();
        let mut credited = std::mem::take(&mut self.credited);
        self.changes.clear();
        let mut answered = Vec::new(); // once it is dropped
        for input in self.inputs.drain(..) {
            match input {
                Input::HasRead(_) => {} // the next board has paused nobody
                Input::Closed(from) => {
                    legacy.consumers.remove(&from.peer.session);
                    answered.push(from);
                }
                Input::Frames(batch) => {
                    for frame in Frames(&batch.chunk) {
                        match credited.checked_sub(1) {
                            Some(left) => credited = left,
                            None => settle_credit(&batch.from.peer, &frame),
                        }
                        let (to, id) = (batch.from.peer.session, frame.prefix.id);
                        if id != 0 && !self.out.was_answered(to, id) {
                            TaskSink::error(&mut self.out, to, id, restarted("the dispatcher"));
                        }
                    }
                    answered.push(batch.from);
                }
            }
        }
        self.out.flush();
    }

    fn process(&mut self) {
        let now = (self.clock)();
        assert!(!std::mem::take(&mut self.fault), "injected fault");
        self.board.set_elsewhere(self.legacy.borrow().directory.pool.subscriptions());
        let tasks_before = decided(&self.board.counters());
        for at in 0..self.inputs.len() {
            match &self.inputs[at] {
                Input::Frames(batch) => {
                    let (peer, read_at) = (batch.from.peer.clone(), batch.read_at);
                    self.apply(now, at, &peer);
                    self.queued.record(now.since(read_at));
                }
                Input::HasRead(session) => self.board.resume(*session),
                Input::Closed(from) => {
                    let session = from.peer.session;
                    self.board.session_closed(now, session, &mut self.out);
                    self.changes.push(Change::Gone(session));
                    self.out.closed(session);
                }
            }
        }
        self.board.pump(now, &mut self.out);
        let mut legacy = self.legacy.borrow_mut();
        legacy.next_seq = self.board.next_seq();
        legacy.directory.pool.tasks(self.board.memory_bytes());
        self.changes.drain(..).for_each(|c| legacy.apply(c));
        drop(legacy);
        let tasks = decided(&self.board.counters()) - tasks_before;
        self.batches += 1;
        if let Some(each) = (self.clock)().since(now).checked_div(tasks) {
            self.decision.record(each);
        }
        self.out.flush();
        self.inputs.clear();
        self.credited = 0;
    }

    fn apply(&mut self, now: Tick, input: usize, peer: &Arc<Peer>) {
        // The batch stays in `inputs`, so that a panic leaves it to `refuse_inputs`.
        let Input::Frames(Batch { chunk, .. }) = &self.inputs[input] else { return };
        for frame in Frames(chunk) {
            let (board, out) = (&mut self.board, &mut self.out);
            let done = apply_frame(board, out, now, peer, &frame, &mut self.changes);
            settle_credit(peer, &frame);
            self.credited += 1;
            if let Err(e) = done {
                TaskSink::error(out, peer.session, frame.prefix.id, e);
            }
        }
    }

    /// Arms the one timer, at the core's next deadline.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.board.next_deadline(), self.clock, ctx, |this, ctx| {
            this.timer.fired();
            this.guarded(ctx, |this| {
                let now = (this.clock)();
                this.board.on_deadline(now, &mut this.out);
                this.board.pump(now, &mut this.out);
                this.out.flush();
            });
        });
    }
}

/// Tasks that were decided on, in either direction.
fn decided(c: &Counters) -> u64 {
    c.submitted + c.assigned + c.completed + c.failed
}

/// Producer credit comes back with the answer.
fn settle_credit(peer: &Peer, frame: &FrameRef<'_>) {
    if frame.prefix.op == Op::Submit as u8 {
        peer.unacked_tasks.fetch_sub(u32::from(frame.prefix.count), Ordering::Relaxed);
        peer.unacked_bytes.fetch_sub(frame.payload.len(), Ordering::Relaxed);
    }
}

fn apply_frame(
    board: &mut Board,
    out: &mut Outgoing,
    now: Tick,
    peer: &Arc<Peer>,
    frame: &FrameRef<'_>,
    changes: &mut Vec<Change>,
) -> Result<(), WireError> {
    let (from, id, count) = (peer.session, frame.prefix.id, frame.prefix.count);
    match frame.op()? {
        Op::Submit => {
            let (trace, queue) = frame.traced_header()?;
            let items = items::check(frame.payload, count)?;
            let watch = frame.prefix.flags.has(Flags::WATCH);
            let bytes = frame.payload.len();
            board.submit(now, SubmitFrame { from, request: id, queue, watch, trace, bytes }, items, out);
        }
        Op::Complete => {
            frame.traced_header()?;
            board.complete(now, from, id, items::check(frame.payload, count)?, out);
        }
        Op::Fail => board.fail(now, from, id, items::check(frame.payload, count)?, out),
        Op::Release => board.release(now, from, id, items::check(frame.payload, count)?, out),
        Op::Renew => board.renew(now, from, id, items::check::<Lease>(frame.payload, count)?, out),
        Op::Progress => board.progress(from, id, items::check(frame.payload, count)?, out),
        Op::Cancel => board.cancel(now, from, id, items::check::<TaskId>(frame.payload, count)?, out),
        Op::Query => board.query(from, id, items::check::<TaskId>(frame.payload, count)?, out),
        Op::Wait => {
            let mut r = Reader(frame.header);
            let (mode, timeout) = match (r.u8(), r.u32(), r.0) {
                (Some(0), Some(t), []) => (WaitMode::All, t),
                (Some(1), Some(t), []) => (WaitMode::Any, t),
                _ => return Err(malformed("Wait", "mode (0 or 1) u8, timeout u32 ms")),
            };
            let ids: Items<'_, TaskId> = items::check(frame.payload, count)?;
            board.wait(now, from, id, mode, timeout, ids, out);
        }
        Op::ListDead => {
            let mut r = Reader(frame.header);
            let limit = r.u32().ok_or_else(|| malformed("ListDead", "limit u32, queue name"))?;
            let queue = hive_proto::names::queue(r.0)?;
            board.list_dead(from, id, queue, limit.min(u32::from(u16::MAX)) as usize, out);
        }
        Op::Work => {
            let work: Work = messages::decode(frame.header)?;
            board.work(from, id, &work, &peer.labels, out);
            if out.last_ok {
                changes.push(Change::Open(peer.clone(), id, work));
            }
        }
        Op::StopWork => {
            board.stop_work(from, id, out);
            changes.push(Change::Close(from, id));
        }
        Op::Credit => {
            let mut r = Reader(frame.header);
            let (Some(tasks), Some(bytes), []) = (r.u32(), r.u64(), r.0) else {
                return Err(malformed("Credit", "tasks u32, bytes u64"));
            };
            board.credit(from, id, tasks, bytes, out);
            changes.push(Change::Window(from, id, tasks, bytes));
        }
        op => return Err(WireError::new(Code::UnknownOp, format!("{op:?} may not be sent by a client"))),
    }
    Ok(())
}

fn malformed(op: &str, layout: &str) -> WireError {
    WireError::new(Code::MalformedHeader, format!("the header of {op} is {layout}"))
}

/// What a memory queue loses in a panic, its submitters are told.
fn report_loss(l: &Legacy) {
    let header = messages::encode(&TasksLost { shard: 0, shards: 1, below: l.next_seq });
    l.directory.for_each(|peer| {
        if peer.submits.load(Ordering::Relaxed) {
            peer.outbox.answer(Op::TasksLost, 0, 0, &header, &[]);
        }
    });
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.legacy.borrow().inlet.ready());
    }
}

impl StreamHandler<()> for Dispatcher {
    fn handle(&mut self, (): (), ctx: &mut Self::Context) {
        self.legacy.borrow().inlet.take(&mut self.inputs);
        self.guarded(ctx, Self::process);
    }
}

/// Asks the dispatcher for its state.
#[derive(Debug, Message)]
#[rtype(result = "View")]
pub struct GetView;

/// State of the dispatcher.
#[derive(Debug, Clone, MessageResponse)]
pub struct View {
    /// Incarnation.
    pub epoch: u32,
    /// Queues.
    pub queues: Vec<QueueView>,
    /// Events since this incarnation began.
    pub counters: Counters,
    /// Wake-ups of the actor that had work.
    pub batches: u64,
    /// Time of a batch by its tasks, ns.
    pub decision_ns: Quantiles,
    /// From read to queued, by batch, ns.
    pub queued_ns: Quantiles,
    /// Memory of the board, bytes.
    pub memory_bytes: usize,
    /// Outcomes that were not pushed because the submitter did not read.
    pub missed: u64,
}

impl Handler<GetView> for Dispatcher {
    type Result = View;

    fn handle(&mut self, _: GetView, _: &mut Self::Context) -> View {
        View {
            epoch: self.board.epoch(),
            queues: self.board.queues().collect(),
            counters: self.board.counters(),
            batches: self.batches,
            decision_ns: self.decision.quantiles(),
            queued_ns: self.queued.quantiles(),
            memory_bytes: self.board.memory_bytes(),
            missed: self.out.lost,
        }
    }
}

/// Makes the actor panic in the middle of its next batch (fault injection).
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Fault;

impl Handler<Fault> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: Fault, _: &mut Self::Context) {
        self.fault = true;
    }
}
