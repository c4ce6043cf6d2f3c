//! Restart by factory. The stock supervisor of actix keeps the object that panicked, forgets its futures and does not
//! catch the panic; here a new actor is made, and whoever depended on the old one is told.
//!
//! ```text
//!   factory(incarnation) ─▶ running ──panic──▶ dead ──backoff 10 ms .. 500 ms──▶ factory(incarnation + 1)
//! ```

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Message};
use futures_util::future::{AbortHandle, Abortable};
use parking_lot::Mutex;
use tokio::sync::mpsc;

const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Service must be back within a second.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// An incarnation that lived this long starts the backoff anew.
const STABLE: Duration = Duration::from_secs(10);

/// How an actor has fared, for `hive status`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Health {
    /// Name, e.g. `hub-0`.
    pub name: String,
    /// Times it was made anew.
    pub restarts: u32,
    /// Text of its last panic.
    pub last_panic: Option<String>,
}

/// All supervised actors of the process.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<Vec<Health>>>);

impl Roster {
    /// How all actors have fared.
    pub fn snapshot(&self) -> Vec<Health> {
        self.0.lock().clone()
    }

    fn add(&self, name: &str) -> usize {
        let mut all = self.0.lock();
        all.push(Health { name: name.into(), restarts: 0, last_panic: None });
        all.len() - 1
    }

    fn died(&self, at: usize, panic: &str) -> u32 {
        let h = &mut self.0.lock()[at];
        h.restarts += 1;
        h.last_panic = Some(panic.into());
        h.restarts
    }
}

/// Makes an actor panic with its next piece of work in hand (fault injection).
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Fault;

/// Lives inside an actor and reports its death, however it came.
#[derive(Debug)]
pub struct DeathGuard {
    report: mpsc::Sender<String>,
    cause: Option<String>,
}

impl DeathGuard {
    /// Notes why the actor is about to end.
    pub fn blame(&mut self, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        self.cause = Some(text.unwrap_or_else(|| "panic without a text".into()));
    }
}

impl Drop for DeathGuard {
    fn drop(&mut self) {
        // There is room: one message for each incarnation. The supervisor is gone only at shutdown.
        let _ = self.report.try_send(self.cause.take().unwrap_or_else(|| "ended without a word".into()));
    }
}

/// A supervised actor: the address of its present incarnation. The supervision ends when this is dropped.
#[derive(Debug)]
pub struct Supervised<A: Actor<Context = Context<A>>> {
    addr: Arc<Mutex<Option<Addr<A>>>>,
    stop: AbortHandle,
}

impl<A: Actor<Context = Context<A>>> Supervised<A> {
    /// Starts an actor on this thread and keeps it alive. The factory is given the number of the incarnation, from 0.
    pub fn start(
        name: &str,
        roster: &Roster,
        mut factory: impl FnMut(u32, DeathGuard) -> A + 'static,
    ) -> Self {
        let (report, mut deaths) = mpsc::channel(2);
        let guard = move || DeathGuard { report: report.clone(), cause: None };
        let addr = Arc::new(Mutex::new(Some(factory(0, guard()).start())));
        let (stop, registration) = AbortHandle::new_pair();
        let (name, roster, current) = (name.to_owned(), roster.clone(), addr.clone());
        let place = roster.add(&name);
        let watch = async move {
            let mut backoff = BACKOFF_MIN;
            let mut born = tokio::time::Instant::now();
            while let Some(cause) = deaths.recv().await {
                *current.lock() = None;
                let restarts = roster.died(place, &cause);
                tracing::error!(actor = name, restarts, cause, "actor died; it is made anew");
                if born.elapsed() > STABLE {
                    backoff = BACKOFF_MIN;
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                born = tokio::time::Instant::now();
                // A panic in the factory drops the guard, which reports one more death: tried again after the backoff.
                if let Ok(actor) = catch_unwind(AssertUnwindSafe(|| factory(restarts, guard()))) {
                    *current.lock() = Some(actor.start());
                }
            }
        };
        actix_rt::spawn(Abortable::new(watch, registration));
        Self { addr, stop }
    }

    /// The present incarnation, if there is one.
    pub fn addr(&self) -> Option<Addr<A>> {
        self.addr.lock().clone()
    }
}

impl<A: Actor<Context = Context<A>>> Drop for Supervised<A> {
    fn drop(&mut self) {
        self.stop.abort();
    }
}
