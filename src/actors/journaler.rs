//! The journaler: takes records from the dispatcher, makes them durable, says so. On a thread of its own, because a sync blocks.
//!
//! ```text
//!  dispatcher ──Desk::put──▶ journaler ──append, sync──▶ disk
//!             ◀───────────── Journaled, by the dispatcher's inlet
//! ```
//!
//! One record is under way at a time. While it is, the dispatcher gathers the next one: group commit needs no timer.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, MessageResult, StreamHandler};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use parking_lot::{Condvar, Mutex};

use super::journal::{AppendError, Position, Resolved, Segment, Writer, whole_from};
use super::mailbox::Inlet;
use super::snapshotter::Needs;
use super::supervise::{DeathGuard, Fault};
use crate::core::tasks::{Found, Lookup, Want};
use crate::planted;

/// How long the journaler waits before it tries again what may go well later.
const AGAIN: Duration = Duration::from_millis(100);

/// A record on its way to the disk.
#[derive(Debug)]
pub struct Order {
    /// Incarnation of the dispatcher that decided it.
    pub incarnation: u32,
    /// Its body.
    pub body: Vec<u8>,
    /// Decisions in it.
    pub ops: u32,
}

/// What became of a record.
#[derive(Debug)]
pub enum Journaled {
    /// It is durable, at this position.
    Durable(Order, Position),
    /// It has to wait: the disk is full. It is tried again until there is room.
    Full,
    /// Space that was kept for the end is in use (`true`), or kept again (`false`).
    LowSpace(bool),
    /// The journal takes nothing any more.
    Failed(String),
    /// A snapshot of so many bytes was written; `None` if it was not.
    Snapshot(Option<u64>),
    /// Records with tasks, which an incarnation of the dispatcher asked for.
    Fetched(u32, Want, Vec<Bytes>),
    /// What was found of a question of an incarnation of the dispatcher.
    Found(u32, Arc<Lookup>, Found),
    /// Records before this position are gone, but for those of which the snapshots have need.
    Trimmed(Position),
}

#[derive(Debug, Default)]
struct Place {
    waiting: Option<Order>,
    /// A record waits or is being written.
    busy: bool,
    /// What waits was tried, is certainly not durable, and is tried again later.
    stalled: bool,
}

#[derive(Debug, Default)]
struct Shared {
    place: Mutex<Place>,
    idle: Condvar,
    journaler: AtomicWaker,
}

/// Where the dispatcher puts its record. Survives the panic of either side.
#[derive(Clone, Debug, Default)]
pub struct Desk(Arc<Shared>);

impl Desk {
    /// Puts a record. There must be none under way.
    pub fn put(&self, order: Order) {
        let mut place = self.0.place.lock();
        debug_assert!(!place.busy, "one record at a time");
        *place = Place { waiting: Some(order), busy: true, stalled: false };
        drop(place);
        self.0.journaler.wake();
    }

    /// Blocks until no record is being written, for `most` at the longest. One that waits for space is taken back: it never
    /// was durable, and never will be. Gives whether the last record is known to be durable or to have failed.
    pub fn settle(&self, most: Duration) -> bool {
        let mut place = self.0.place.lock();
        self.0.idle.wait_while_for(&mut place, |p| p.busy && !p.stalled, most);
        if place.stalled {
            *place = Place::default();
            return false;
        }
        !place.busy
    }

    /// Whether a record is under way.
    pub fn is_busy(&self) -> bool {
        self.0.place.lock().busy
    }

    fn is_stalled(&self) -> bool {
        self.0.place.lock().stalled
    }

    /// The record is not durable for now.
    fn stall(&self, order: Order) {
        *self.0.place.lock() = Place { waiting: Some(order), busy: true, stalled: true };
        self.0.idle.notify_all();
    }

    /// The record that is to be tried again, unless it was taken back.
    fn again(&self) -> Option<Order> {
        let mut place = self.0.place.lock();
        std::mem::take(&mut place.stalled).then(|| place.waiting.take()).flatten()
    }

    /// The record is dealt with. Whoever waits for that finds the news in the inlet, and whoever hears the news finds the
    /// desk free.
    fn done(&self, inlet: &Inlet, news: Journaled) {
        let mut place = self.0.place.lock();
        place.busy = false;
        inlet.put_journaled(news);
        drop(place);
        inlet.wake();
        self.0.idle.notify_all();
    }
}

/// Becomes ready when a record waits.
#[derive(Debug)]
struct Orders(Desk);

impl Stream for Orders {
    type Item = Order;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Order>> {
        let shared = &self.0.0;
        shared.journaler.register(cx.waker());
        let mut place = shared.place.lock();
        let fresh = if place.stalled { None } else { place.waiting.take() };
        fresh.map_or(Poll::Pending, |order| Poll::Ready(Some(order)))
    }
}

/// What outlives an incarnation.
#[derive(Debug)]
struct Legacy<W> {
    writer: W,
    desk: Desk,
    /// Where the dispatcher hears of it.
    inlet: Inlet,
    health: Health,
    /// The record under way, and the end of the journal before it was tried last.
    in_hand: Option<(Order, Position)>,
    /// It is unknown whether the last try landed.
    in_doubt: bool,
    low_space: bool,
    /// What may be kept for results alone, bytes.
    results_bytes: u64,
    /// What may go, as of the last snapshot.
    trim: Option<Trim>,
    /// Up to here segments are kept out of memory.
    cold: Position,
}

/// How the journal fares, for `/readyz` and the status.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<(Mutex<State>, tokio::sync::Notify)>);

/// See [`Health`].
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Position of the last durable record.
    pub position: u64,
    /// Records written by this process.
    pub records: u64,
    /// Decisions in them.
    pub ops: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The disk is full, or nearly.
    pub low_space: bool,
    /// Why nothing more is taken.
    pub failed: Option<String>,
}

impl Health {
    /// How it fares now.
    pub fn state(&self) -> State {
        self.0.0.lock().clone()
    }

    /// From here on the journal takes nothing any more.
    pub fn fail(&self, why: &str) {
        tracing::error!(error = why, "the journal takes nothing any more");
        self.0.0.lock().failed = Some(why.to_owned());
        self.0.1.notify_one();
    }

    /// Waits until the journal takes nothing any more.
    pub async fn failed(&self) {
        self.0.1.notified().await;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Journaler<W: Writer + Unpin + 'static> {
    legacy: Rc<RefCell<Legacy<W>>>,
    guard: DeathGuard,
    fault: bool,
}

/// A factory for [`super::supervise::Supervised::start`], to be made on the journaler's thread.
pub fn factory<W: Writer + Unpin + 'static>(
    writer: W,
    desk: Desk,
    inlet: Inlet,
    health: Health,
    results_bytes: u64,
) -> impl FnMut(u32, DeathGuard) -> Journaler<W> {
    health.0.0.lock().position = writer.last().0;
    let legacy = Legacy {
        writer,
        desk,
        inlet,
        health,
        in_hand: None,
        in_doubt: false,
        low_space: false,
        results_bytes,
        trim: None,
        cold: Position::NONE,
    };
    let legacy = Rc::new(RefCell::new(legacy));
    move |_, guard| Journaler { legacy: legacy.clone(), guard, fault: false }
}

/// What to do after a try.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Wait for the next record.
    Rest,
    /// Try the same again, later.
    Again,
}

impl<W: Writer + Unpin> Legacy<W> {
    /// Tries the record that has to be tried again, if there is one.
    fn again(&mut self) -> Next {
        if self.in_hand.is_none() {
            self.in_hand = self.desk.again().map(|order| (order, self.writer.last()));
        }
        self.write()
    }

    /// Tries to append the record in hand.
    fn write(&mut self) -> Next {
        match self.append() {
            None => Next::Rest,
            Some(Ok(position)) => {
                self.durable(position);
                Next::Rest
            }
            Some(Err(AppendError::NotSent | AppendError::Unknown)) => self.stall(),
            Some(Err(AppendError::Full)) => {
                self.health.0.0.lock().low_space = true;
                self.inlet.journaled(Journaled::Full);
                self.stall()
            }
            Some(Err(e)) => {
                let text = e.to_string();
                self.health.fail(&text);
                self.in_hand = None;
                self.desk.done(&self.inlet, Journaled::Failed(text));
                Next::Rest
            }
        }
    }

    /// Not durable for now: it is tried again, from the desk, where it can be taken back. In doubt it stays in hand.
    fn stall(&mut self) -> Next {
        if !self.in_doubt
            && let Some((order, _)) = self.in_hand.take()
        {
            self.desk.stall(order);
        }
        Next::Again
    }

    /// One try; first it finds out what became of the one before. `None`: there is nothing to append.
    fn append(&mut self) -> Option<Result<Position, AppendError>> {
        let (order, before) = self.in_hand.as_mut()?;
        if self.in_doubt {
            match self.writer.resolve() {
                Ok(Resolved::Landed(position)) => {
                    self.in_doubt = false;
                    return Some(Ok(position));
                }
                // A barrier may stand there now.
                Ok(Resolved::Lost) => *before = self.writer.last(),
                Err(e) => return Some(Err(e)),
            }
            self.in_doubt = false;
        }
        // A panic between the append and here must not append it twice.
        if self.writer.last() > *before {
            return Some(Ok(self.writer.last()));
        }
        let appended = self.writer.append(&order.body, order.ops);
        self.in_doubt = appended == Err(AppendError::Unknown);
        Some(appended)
    }

    fn durable(&mut self, position: Position) {
        let Some((order, _)) = self.in_hand.take() else { return };
        let mut state = self.health.0.0.lock();
        state.position = position.0;
        state.records += 1;
        state.ops += u64::from(order.ops);
        state.bytes += order.body.len() as u64;
        drop(state);
        self.space(self.writer.low_space());
        self.desk.done(&self.inlet, Journaled::Durable(order, position));
    }

    /// Says so when space becomes short, or comes back.
    fn space(&mut self, low: bool) {
        self.health.0.0.lock().low_space = low;
        if low != self.low_space {
            self.low_space = low;
            match low {
                true => tracing::error!("the disk of the journal is full: what survives takes no new tasks"),
                false => tracing::warn!("there is space for the journal again"),
            }
            self.inlet.journaled(Journaled::LowSpace(low));
            if low {
                self.trim(0); // tasks need it more than results
            }
        }
    }

    /// Removes what may go, except the latest `results_bytes` of what is worth keeping for results.
    fn trim(&mut self, results_bytes: u64) {
        let Some(Trim { before, spare, results_from }) = &self.trim else { return };
        let needed = |s: &Segment| spare.iter().any(|(first, last)| *first <= s.last.0 && s.first.0 <= *last);
        let covered = |s: &&Segment| s.sealed && s.last <= *before && !needed(s);
        let (segments, mut bytes, mut goes) = (self.writer.segments(), 0, Vec::new());
        for segment in segments.iter().rev().filter(covered) {
            bytes += segment.bytes;
            if segment.last.0 < *results_from || bytes > results_bytes {
                goes.push(segment.first);
            }
        }
        // A start does not read what a snapshot covers. The memory serves the end of the journal better.
        for s in segments.iter().filter(|s| s.sealed && s.last <= *before && s.last > self.cold) {
            self.writer.is_cold(s.first);
        }
        self.cold = *before;
        for first in goes.into_iter().rev() {
            if let Err(e) = self.writer.remove(first) {
                tracing::warn!(error = %e, "a segment that nobody needs stays");
            }
        }
        self.inlet.journaled(Journaled::Trimmed(whole_from(&self.writer.segments())));
    }

    /// Looks whether space has come back. Not while a record waits for it: that one needs it more than the reserve.
    fn look_for_space(&mut self) {
        if self.low_space && self.in_hand.is_none() && !self.desk.is_stalled() {
            let low = !self.writer.restore_reserve();
            self.space(low);
        }
    }
}

impl<W: Writer + Unpin> Journaler<W> {
    fn again(&mut self) -> Next {
        self.legacy.borrow_mut().again()
    }

    fn guarded(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self) -> Next) {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Next::Rest) => {}
            Ok(Next::Again) => {
                ctx.run_later(AGAIN, |this, ctx| this.guarded(ctx, Self::again));
            }
            Err(panic) => {
                self.guard.blame(&*panic);
                ctx.terminate();
            }
        }
    }
}

impl<W: Writer + Unpin + 'static> Actor for Journaler<W> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if planted::is("in_hand_as_done") {
            let position = self.legacy.borrow().writer.last();
            self.legacy.borrow_mut().durable(position);
        } else if planted::is("in_hand_dropped") {
            self.legacy.borrow_mut().in_hand = None;
        }
        // What the incarnation before had in hand comes first.
        self.guarded(ctx, |this| {
            let mut legacy = this.legacy.borrow_mut();
            if legacy.in_hand.is_none() {
                let low = legacy.writer.low_space();
                legacy.space(low);
            }
            legacy.again()
        });
        ctx.add_stream(Orders(self.legacy.borrow().desk.clone()));
        ctx.run_interval(10 * AGAIN, |this, ctx| {
            this.guarded(ctx, |this| {
                this.legacy.borrow_mut().look_for_space();
                Next::Rest
            });
        });
    }
}

impl<W: Writer + Unpin + 'static> StreamHandler<Order> for Journaler<W> {
    fn handle(&mut self, order: Order, ctx: &mut Self::Context) {
        self.guarded(ctx, |this| {
            let mut legacy = this.legacy.borrow_mut();
            let before = legacy.writer.last();
            legacy.in_hand = Some((order, before));
            assert!(!std::mem::take(&mut this.fault), "injected fault");
            legacy.write()
        });
    }
}

/// Removes segments that a snapshot covers.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Trim {
    /// The position of the snapshot.
    pub before: Position,
    /// Records before it that are needed all the same, as ranges of positions.
    pub spare: Needs,
    /// Records from this position on are worth keeping for the results in them.
    pub results_from: u64,
}

impl<W: Writer + Unpin + 'static> Handler<Trim> for Journaler<W> {
    type Result = ();

    fn handle(&mut self, trim: Trim, _: &mut Self::Context) {
        let mut legacy = self.legacy.borrow_mut();
        legacy.trim = Some(trim);
        let bytes = if legacy.low_space { 0 } else { legacy.results_bytes };
        legacy.trim(bytes);
    }
}

/// Asks for the segments, as far as they are durable.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<Segment>")]
pub struct GetSegments;

impl<W: Writer + Unpin + 'static> Handler<GetSegments> for Journaler<W> {
    type Result = MessageResult<GetSegments>;

    fn handle(&mut self, _: GetSegments, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.legacy.borrow().writer.segments())
    }
}

impl<W: Writer + Unpin + 'static> Handler<Fault> for Journaler<W> {
    type Result = ();

    fn handle(&mut self, _: Fault, _: &mut Self::Context) {
        self.fault = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::journal::{Journal, Reader};
    use crate::edge::journal::sim::{Faults, SimJournal};

    /// A store that loses, refuses and doubts what it is given: each record lands once, in order, and is told as durable only then.
    #[test]
    fn each_record_lands_once_whatever_the_store_does() {
        for seed in 0..300 {
            let mut journal = SimJournal::new(seed, Faults::default());
            let (writer, _) = journal.fence(1, "node").expect("fenced");
            let (inlet, desk) = (Inlet::default(), Desk::default());
            let mut legacy = Legacy {
                writer,
                desk,
                inlet: inlet.clone(),
                health: Health::default(),
                in_hand: None,
                in_doubt: false,
                low_space: false,
                results_bytes: 0,
                trim: None,
                cold: Position::NONE,
            };
            journal.set_faults(Faults {
                not_sent: 200,
                full: 100,
                landed: 200,
                late: 100,
                lost: 200,
                ..Faults::default()
            });
            for n in 0..20_u8 {
                let before = legacy.writer.last();
                legacy.in_hand = Some((Order { incarnation: 0, body: vec![n], ops: 1 }, before));
                let mut next = legacy.write();
                while next == Next::Again {
                    next = legacy.again();
                }
                let mut news = Vec::new();
                inlet.take_journaled(&mut news);
                let durable = news.iter().filter(|j| matches!(j, Journaled::Durable(o, _) if o.body == [n]));
                assert_eq!(durable.count(), 1, "seed {seed}, record {n}: {news:?}");
            }
            let (mut reader, mut at, mut bodies) = (journal.reader(), Position::NONE, Vec::new());
            while let Some(r) = reader.next(&mut at).expect("readable") {
                bodies.extend((r.ops > 0).then_some(r.body[0]).filter(|_| r.ops > 0));
            }
            assert_eq!(bodies, (0..20).collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn a_record_that_waits_for_space_can_be_taken_back() {
        let mut journal = SimJournal::new(1, Faults::default());
        let (writer, _) = journal.fence(1, "node").expect("fenced");
        let before = writer.last();
        let desk = Desk::default();
        desk.0.place.lock().busy = true;
        let mut legacy = Legacy {
            writer,
            desk: desk.clone(),
            inlet: Inlet::default(),
            health: Health::default(),
            in_hand: Some((Order { incarnation: 0, body: vec![1], ops: 1 }, before)),
            in_doubt: false,
            low_space: false,
            results_bytes: 0,
            trim: None,
            cold: Position::NONE,
        };
        journal.set_faults(Faults { full: 1000, ..Faults::default() });
        assert_eq!(legacy.write(), Next::Again);
        assert!(desk.is_busy() && !desk.settle(Duration::from_millis(1)) && !desk.is_busy());
        assert_eq!(legacy.again(), Next::Rest);
    }
}
