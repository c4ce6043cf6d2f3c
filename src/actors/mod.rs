//! The only place that implements actix traits. Actors are thin: take a batch, read the clock once, apply it to the
//! core, send the effects.
//!
//! ```text
//!  session task ──Batch──▶ Inlet ──▶ Dispatcher (core::tasks)  ──frames──▶ Outbox ──▶ session task
//!  (edge::tcp)  ──Batch──▶ Inlet ──▶ HubShard   (core::hub)    ──frames──▶ Outbox ──▶ session task
//! ```

pub mod busy;
pub mod directory;
pub mod dispatcher;
pub mod fetcher;
pub mod hub;
pub mod journal;
pub mod journaler;
pub mod mailbox;
pub mod outbox;
pub mod outgoing;
pub mod sessions;
pub mod snapshotter;
pub mod stats;
mod subscriptions;
pub mod supervise;
mod timer;

use crate::core::time::Tick;

/// How actors read the clock: monotonic nanoseconds since the process began. `edge::clock` is the real one.
pub type Clock = fn() -> Tick;
