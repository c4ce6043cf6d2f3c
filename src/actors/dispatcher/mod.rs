//! The dispatcher: task frames in, task frames out. One for the process: the core decides a task in well under a
//! microsecond, and one board needs no agreement with others about waits, limits and order.

mod end;
mod fetches;
mod frames;
mod legacy;
mod sinks;
mod snapshots;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message, MessageResponse, StreamHandler};
use bytes::Bytes;
use hive_proto::Frames;

use super::Clock;
use super::busy;
use super::directory::{InFlight, Peer};
use super::journaler::{Desk, Journaled, Order};
use super::mailbox::{Batch, Input, is_one_thing};
use super::stats::{Histogram, Quantiles};
use super::supervise::{DeathGuard, Fault};
use super::timer::Timer;
use crate::core::tasks::{Board, Counters, QueueView, TaskSink, Want};
use crate::core::time::Tick;
use crate::planted;
use fetches::Fetches;
use frames::{JournalState, apply_frame, failed, full, settle_credit};
use legacy::{Change, Legacy};
use sinks::Sinks;
use snapshots::Snapshots;

pub use legacy::{FetchRecords, Journal, Recover, Setup};
pub use snapshots::TakeSnapshot;

/// What waited outside while nothing was taken in has so much time to come in before leases expire, ms.
const REOPENED_MS: u64 = 1000;
/// How often a snapshot makes a step.
const STEP_EVERY: Duration = Duration::from_millis(1);

/// A factory for [`super::supervise::Supervised::start`].
pub fn factory(setup: Setup) -> impl FnMut(u32, DeathGuard) -> Dispatcher {
    let legacy = Rc::new(RefCell::new(Legacy::new(setup)));
    move |incarnation, guard| Dispatcher::new(incarnation, guard, legacy.clone())
}

/// See the module.
#[derive(Debug)]
pub struct Dispatcher {
    incarnation: u32,
    board: Board,
    out: Sinks,
    inputs: Vec<Input>,
    /// Batches among `inputs` with answers that are held back.
    held: Vec<usize>,
    /// Whose questions about results on disk the batch in hand has answered, under which id, and whether that is held back.
    told: Vec<(InFlight, u32, bool)>,
    /// Frames of `inputs` whose producer credit is back.
    credited: usize,
    changes: Vec<Change>,
    legacy: Rc<RefCell<Legacy>>,
    clock: Clock,
    desk: Option<Desk>,
    journal: JournalState,
    /// Nothing is taken in until the journal has caught up.
    shut: bool,
    /// When leases may expire again.
    leases_from: Tick,
    /// A buffer to gather in.
    spare: Vec<u8>,
    /// Of the records since the last commit.
    sealed_bytes: usize,
    snapshots: Option<Snapshots>,
    /// A step of the snapshot under way is to come.
    stepping: bool,
    fetches: Fetches,
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
            l.report_loss();
        }
        let mut board = l.board(incarnation);
        let mut out = Sinks::new(&l.setup.directory);
        out.now.muted = true;
        for (session, (peer, consumers)) in &l.consumers {
            for (id, work) in consumers {
                board.work(*session, *id, work, &peer.labels, &mut out);
            }
        }
        out.now.muted = false;
        l.setup.inlet.shut(false);
        let snapshots = l
            .setup
            .journal
            .as_ref()
            .map(|j| Snapshots::new(j.take_snapshot.clone(), j.snapshot_bytes, j.bytes_since_snapshot));
        let fetches =
            Fetches::new(l.setup.journal.as_ref().map(|j| j.fetch.clone()), l.setup.directory.clone());
        let journal = l.journal.clone();
        let (clock, desk) = (l.setup.clock, l.setup.journal.as_ref().map(|j| j.desk.clone()));
        drop(l);
        Self {
            incarnation,
            board,
            out,
            inputs: Vec::new(),
            held: Vec::new(),
            told: Vec::new(),
            credited: 0,
            changes: Vec::new(),
            legacy,
            clock,
            desk,
            journal,
            shut: false,
            leases_from: Tick::ZERO,
            spare: Vec::new(),
            sealed_bytes: 0,
            snapshots,
            stepping: false,
            fetches,
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
            self.out.now.abandon();
            self.refuse_waits();
            self.revoke_leases();
            self.refuse_inputs();
            self.end_commits();
            actix::ActorContext::terminate(ctx);
            return;
        }
        self.arm(ctx);
        self.step_soon(ctx);
    }

    /// Has tasks read that are not in memory, where they will be needed soon.
    fn fetch(&mut self) {
        self.fetches.ask(&mut self.board, self.incarnation);
    }

    /// Tasks that were read are in memory.
    fn fetched(&mut self, want: Want, records: &[Bytes]) {
        self.fetches.answered();
        if let Err(e) = self.board.fetched(want, records.iter().map(|r| &r[..])) {
            let why = e.to_string();
            if let Some(j) = &self.legacy.borrow().setup.journal {
                j.health.fail(&why);
            }
            self.journaled(Journaled::Failed(why));
        }
    }

    /// Takes the next step of a snapshot, if one is under way.
    fn step_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.stepping && self.snapshots.as_ref().is_some_and(Snapshots::is_running) {
            self.stepping = true;
            ctx.run_later(STEP_EVERY, |this, ctx| {
                this.stepping = false;
                this.guarded(ctx, Self::step);
            });
        }
    }

    fn step(&mut self) {
        if let Some(s) = &mut self.snapshots {
            s.step(&self.board, (self.clock)());
        }
    }

    fn process(&mut self) {
        let now = (self.clock)();
        assert!(!std::mem::take(&mut self.fault), "injected fault");
        self.board.set_elsewhere(self.legacy.borrow().setup.directory.pool.subscriptions());
        if let [Input::Frames(batch)] = &self.inputs[..]
            && is_one_thing(&batch.chunk)
        {
            busy::alone(batch.read_at);
        }
        let tasks_before = decided(&self.board.counters());
        for at in 0..self.inputs.len() {
            match &mut self.inputs[at] {
                Input::Frames(batch) => {
                    let (peer, read_at) = (batch.from.peer.clone(), batch.read_at);
                    self.out.has_held();
                    self.apply(now, at, &peer);
                    if self.out.has_held() {
                        self.held.push(at);
                    }
                    self.queued.record(now.since(read_at));
                }
                Input::HasRead(session) => self.board.resume(*session),
                Input::Closed(from) => {
                    let session = from.peer.session;
                    self.board.session_closed(now, session, &mut self.out);
                    self.changes.push(Change::Gone(session));
                    self.out.closed(session);
                }
                Input::Journaled(news) => {
                    let news = std::mem::replace(news, Journaled::LowSpace(self.journal.low_space));
                    self.journaled(news);
                }
            }
        }
        let sealed = self.write(now);
        self.board.pump(now, &mut self.out);
        self.fetch();
        let mut legacy = self.legacy.borrow_mut();
        legacy.next_seq = self.board.next_seq();
        legacy.setup.directory.pool.tasks(self.board.memory_bytes());
        self.changes.drain(..).for_each(|c| legacy.apply(c));
        drop(legacy);
        let tasks = decided(&self.board.counters()) - tasks_before;
        self.batches += 1;
        if let Some(each) = (self.clock)().since(now).checked_div(tasks) {
            self.decision.record(each);
        }
        self.out.now.flush();
        let mut held = self.held.drain(..).peekable();
        for (at, input) in self.inputs.drain(..).enumerate() {
            if held.next_if_eq(&at).is_some()
                && let Input::Frames(batch) = input
            {
                self.out.unanswered(batch.from, sealed);
            }
        }
        drop(held);
        for (from, _, _) in self.told.drain(..).filter(|(.., held)| *held) {
            self.out.unanswered(from, sealed);
        }
        self.credited = 0;
        self.give_up();
    }

    /// Once the journal has failed, what is held back will never be told; and while it is full, questions can be asked again.
    fn give_up(&mut self) {
        if self.journal.failed.is_some() {
            self.out.refuse_held(&failed(), &failed());
        } else if self.journal.full {
            self.out.refuse_questions(&full());
        }
    }

    fn apply(&mut self, now: Tick, input: usize, peer: &Arc<Peer>) {
        // The batch stays in `inputs`, so that a panic leaves it to `refuse_inputs`.
        let Input::Frames(Batch { chunk, .. }) = &self.inputs[input] else { return };
        for frame in Frames(chunk) {
            let (board, out) = (&mut self.board, &mut self.out);
            let done = apply_frame(board, out, &self.journal, now, peer, &frame, &mut self.changes);
            settle_credit(peer, &frame);
            self.credited += 1;
            if let Err(e) = done {
                TaskSink::error(&mut out.now, peer.session, frame.prefix.id, e);
            }
        }
    }

    /// Hands what was decided to the journaler, unless it is at work. Gives whether it did.
    fn write(&mut self, now: Tick) -> bool {
        let Some(desk) = &self.desk else { return false };
        if let Some((body, ops)) = self.board.seal(now, &mut self.spare) {
            self.out.seal();
            desk.put(Order { incarnation: self.incarnation, body, ops });
            return true;
        }
        // While the record under way waits for space, everybody is answered instead, for that may be long.
        let most = if planted::is("drop_when_shut") { 4096 } else { self.board.gather_bytes_max() };
        if self.board.gathered_bytes() > most && !self.journal.full {
            self.legacy.borrow().setup.inlet.shut(true);
            self.shut = true;
        }
        false
    }

    /// News of the journal.
    fn journaled(&mut self, news: Journaled) {
        match news {
            // Of an incarnation before this one, which has told it.
            Journaled::Durable(order, _) if order.incarnation != self.incarnation => {}
            Journaled::Durable(mut order, position) => {
                self.journal.full = false;
                self.board.recorded(position.0, order.body.len());
                self.sealed_bytes += order.body.len();
                order.body.clear();
                if order.body.capacity() <= 2 * self.board.gather_bytes_max() {
                    self.spare = order.body;
                }
                if let (Some((body, ops)), Some(desk)) = (self.board.next_record(), &self.desk) {
                    return desk.put(Order { incarnation: self.incarnation, body, ops });
                }
                self.out.committed();
                self.board.committed();
                if !self.board.is_uncommitted() {
                    self.out.settled();
                }
                let bytes = std::mem::take(&mut self.sealed_bytes);
                if let Some(s) = &mut self.snapshots {
                    s.committed(&self.board, position, bytes);
                }
                self.open();
            }
            Journaled::Fetched(incarnation, ..) | Journaled::Found(incarnation, ..)
                if incarnation != self.incarnation => {}
            Journaled::Fetched(_, want, records) => self.fetched(want, &records),
            Journaled::Found(_, lookup, found) => {
                self.out.has_held();
                self.board.looked_up(&lookup, &found, &mut self.out);
                let waits = self.fetches.looked_up(&lookup, &mut self.board, self.incarnation);
                self.told.extend(waits.map(|from| (from, lookup.asked().1, self.out.has_held())));
            }
            Journaled::Trimmed(first) => {
                self.board.results_gone(first.0);
                self.legacy.borrow_mut().results_from = first;
            }
            Journaled::Snapshot(bytes) => {
                if let Some(s) = &mut self.snapshots {
                    s.written(bytes);
                }
            }
            Journaled::Full => {
                self.journal.full = true;
                self.open();
            }
            Journaled::LowSpace(low) => {
                self.journal.low_space = low;
                self.legacy.borrow_mut().journal.low_space = low;
            }
            Journaled::Failed(why) => {
                self.journal.failed = Some(why.clone());
                self.out.refuse_held(&failed().maybe_done(), &failed().maybe_done());
                for (session, request) in self.board.end_lookups() {
                    TaskSink::error(&mut self.out.now, session, request, failed());
                }
                self.fetches.end_lookups();
                let mut legacy = self.legacy.borrow_mut();
                legacy.journal.failed = Some(why);
                legacy.setup.inlet.shut(false);
            }
        }
    }

    /// Takes in again what sessions send.
    fn open(&mut self) {
        if std::mem::take(&mut self.shut) {
            self.leases_from = (self.clock)().plus_ms(REOPENED_MS);
        }
        self.legacy.borrow().setup.inlet.shut(false);
    }

    /// Arms the one timer, at the core's next deadline.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.board.next_deadline(), self.clock, ctx, |this, ctx| {
            this.timer.fired();
            this.guarded(ctx, |this| {
                let now = (this.clock)();
                // While nothing is taken in, settlements and renewals wait as well: no lease is held against its worker.
                if !this.shut && now >= this.leases_from {
                    this.board.expire_leases(now, &mut this.out);
                }
                this.board.on_deadline(now, &mut this.out);
                this.write(now);
                this.board.pump(now, &mut this.out);
                this.fetch();
                this.out.now.flush();
                this.give_up();
            });
        });
    }
}

/// Tasks that were decided on, in either direction.
fn decided(c: &Counters) -> u64 {
    c.submitted + c.assigned + c.completed + c.failed
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.legacy.borrow().setup.inlet.ready());
        // That a new incarnation begins, and whatever was due meanwhile.
        self.guarded(ctx, |this| {
            this.write((this.clock)());
        });
    }
}

impl StreamHandler<()> for Dispatcher {
    fn handle(&mut self, (): (), ctx: &mut Self::Context) {
        self.legacy.borrow().setup.inlet.take(&mut self.inputs);
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
    /// The journal does not have all that was decided.
    pub uncommitted: bool,
    /// Results that only the journal has.
    pub results_on_disk: usize,
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
            missed: self.out.lost(),
            uncommitted: self.board.is_uncommitted(),
            results_on_disk: self.board.archived_len(),
        }
    }
}

/// The server is about to stop: what survives waits for the next one.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;

impl Handler<Drain> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.board.drain();
    }
}

impl Handler<Fault> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: Fault, _: &mut Self::Context) {
        self.fault = true;
    }
}
