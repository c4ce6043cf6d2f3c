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

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, StreamHandler};
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use parking_lot::{Condvar, Mutex};

use super::journal::{AppendError, Position, Resolved, Writer};
use super::mailbox::Inlet;
use super::supervise::DeathGuard;
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
    /// It is durable.
    Durable(Order),
    /// It has to wait: the disk is full. It is tried again until there is room.
    Full,
    /// Space that was kept for the end is in use (`true`), or kept again (`false`).
    LowSpace(bool),
    /// The journal takes nothing any more.
    Failed(String),
}

#[derive(Debug, Default)]
struct Place {
    waiting: Option<Order>,
    /// A record waits or is being written.
    busy: bool,
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
        *place = Place { waiting: Some(order), busy: true };
        drop(place);
        self.0.journaler.wake();
    }

    /// Blocks until no record is under way, for `most` at the longest. Gives whether there is none.
    pub fn wait_idle(&self, most: Duration) -> bool {
        let mut place = self.0.place.lock();
        self.0.idle.wait_while_for(&mut place, |p| p.busy, most);
        !place.busy
    }

    /// The record is dealt with. Whoever waits for that finds the news in the inlet, and whoever hears the news finds the
    /// desk free.
    fn done(&self, inlet: &Inlet, news: Journaled) {
        let mut place = self.0.place.lock();
        place.busy = false;
        inlet.journaled(news);
        drop(place);
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
        match shared.place.lock().waiting.take() {
            Some(order) => Poll::Ready(Some(order)),
            None => Poll::Pending,
        }
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
    /// The record under way, and the end of the journal before it.
    in_hand: Option<(Order, Position)>,
    low_space: bool,
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
) -> impl FnMut(u32, DeathGuard) -> Journaler<W> {
    health.0.0.lock().position = writer.last().0;
    let legacy = Legacy { writer, desk, inlet, health, in_hand: None, low_space: false };
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
    /// Tries to append the record in hand.
    fn write(&mut self) -> Next {
        let Some((order, before)) = &self.in_hand else { return Next::Rest };
        // A panic between the append and here must not append it twice.
        let landed = (self.writer.last() > *before).then(|| self.writer.last());
        let appended = match landed {
            Some(position) => Ok(position),
            None => append(&mut self.writer, order),
        };
        match appended {
            Ok(position) => {
                self.durable(position);
                Next::Rest
            }
            Err(AppendError::NotSent) => Next::Again,
            Err(AppendError::Full) => {
                self.health.0.0.lock().low_space = true;
                self.inlet.journaled(Journaled::Full);
                Next::Again
            }
            Err(e) => {
                let text = e.to_string();
                tracing::error!(error = text, "the journal takes nothing any more");
                self.health.0.0.lock().failed = Some(text.clone());
                self.health.0.1.notify_one();
                self.in_hand = None;
                self.desk.done(&self.inlet, Journaled::Failed(text));
                Next::Rest
            }
        }
    }

    fn durable(&mut self, position: Position) {
        let Some((order, _)) = self.in_hand.take() else { return };
        let mut state = self.health.0.0.lock();
        state.position = position.0;
        state.records += 1;
        state.ops += u64::from(order.ops);
        state.bytes += order.body.len() as u64;
        state.low_space = self.writer.low_space();
        drop(state);
        self.space();
        self.desk.done(&self.inlet, Journaled::Durable(order));
    }

    /// Says so when space becomes short, or comes back.
    fn space(&mut self) {
        let low = self.writer.low_space() && !self.writer.restore_reserve();
        if low != self.low_space {
            self.low_space = low;
            self.health.0.0.lock().low_space = low;
            tracing::warn!(low, "space for the journal");
            self.inlet.journaled(Journaled::LowSpace(low));
        }
    }
}

/// Appends, and finds out what became of it where that is unknown.
fn append<W: Writer>(writer: &mut W, order: &Order) -> Result<Position, AppendError> {
    match writer.append(&order.body, order.ops) {
        Err(AppendError::Unknown) => match writer.resolve()? {
            Resolved::Landed(position) => Ok(position),
            Resolved::Lost => Err(AppendError::NotSent),
        },
        other => other,
    }
}

impl<W: Writer + Unpin> Journaler<W> {
    fn write(&mut self) -> Next {
        self.legacy.borrow_mut().write()
    }

    fn guarded(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self) -> Next) {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Next::Rest) => {}
            Ok(Next::Again) => {
                ctx.run_later(AGAIN, |this, ctx| this.guarded(ctx, Self::write));
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
        self.guarded(ctx, Self::write);
        ctx.add_stream(Orders(self.legacy.borrow().desk.clone()));
        ctx.run_interval(10 * AGAIN, |this, ctx| {
            this.guarded(ctx, |this| {
                let mut legacy = this.legacy.borrow_mut();
                if legacy.low_space && legacy.in_hand.is_none() {
                    legacy.space();
                }
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

/// Makes the actor panic with its next record in hand (fault injection).
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Fault;

impl<W: Writer + Unpin + 'static> Handler<Fault> for Journaler<W> {
    type Result = ();

    fn handle(&mut self, _: Fault, _: &mut Self::Context) {
        self.fault = true;
    }
}
