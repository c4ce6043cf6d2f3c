//! One timer for each actor, at its core's next deadline.

use std::time::Duration;

use actix::{Actor, AsyncContext, Context, SpawnHandle};

use super::Clock;
use crate::core::time::Tick;

/// Deadlines closer than this wait for it, ns: the event loop's timers are no finer.
const GRAIN_NS: u64 = 1_000_000;

/// The timer of an actor, armed or not.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<(Tick, SpawnHandle)>);

impl Timer {
    /// Calls `due` at `next`, unless it is called earlier anyway. `due` begins with [`Timer::fired`].
    pub(crate) fn arm<A: Actor<Context = Context<A>>>(
        &mut self,
        next: Option<Tick>,
        clock: Clock,
        ctx: &mut Context<A>,
        due: fn(&mut A, &mut Context<A>),
    ) {
        let Some(next) = next else { return };
        if let Some((at, handle)) = self.0 {
            if at <= next {
                return;
            }
            ctx.cancel_future(handle);
        }
        let wait = Duration::from_nanos(next.since(clock()).max(GRAIN_NS));
        self.0 = Some((next, ctx.run_later(wait, due)));
    }

    /// The timer has gone off.
    pub(crate) fn fired(&mut self) {
        self.0 = None;
    }
}
