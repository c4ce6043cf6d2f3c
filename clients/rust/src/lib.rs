//! The Rust client of Hive: tasks, workers and messages over one TCP connection.
//!
//! ```no_run
//! # async fn example() -> Result<(), hive_client::Error> {
//! use futures_util::StreamExt as _;
//!
//! let client = hive_client::Client::builder().servers(["127.0.0.1:7878"]).token("secret").connect().await?;
//!
//! // A worker: takes up to 8 tasks at a time.
//! let mut tasks = client.work("thumbnails").credit(8).open().await?;
//! let worker = async move {
//!     while let Some(task) = tasks.next().await {
//!         let result = task.payload().to_ascii_uppercase();
//!         let _ = task.complete(result).await;
//!     }
//! };
//!
//! // A submitter: the outcome is pushed to it.
//! let handle = client.submit("thumbnails", "cat.png").send().await?;
//! println!("{} is {}", handle.id(), handle.outcome().await?.state.name());
//! # worker.await; Ok(()) }
//! ```
//!
//! A [`Client`] is a cheap handle; clones share one connection, owned by one background task (the *driver*). Calls made
//! at the same time leave in common frames, so one-task calls from many callers are as fast as batches. When the
//! connection breaks, the driver logs in again (at another server if it has several), opens consumers and subscriptions
//! again, and asks for the outcomes it still owes. What a break means to each kind of call:
//!
//! | call | when the connection breaks |
//! |---|---|
//! | not sent yet | waits in a bounded buffer and goes out on the next connection |
//! | submit, settle, publish with acknowledgement, request | fails; [`Error::outcome`] says whether it may have happened |
//! | query, wait, list of dead letters | asked again |
//! | outcome of a task | asked for again, then as before |
//! | assignment held by a worker | revoked: the server has given the task back |
//!
//! Everything has a bound: what waits to be sent ([`ClientBuilder::buffer_bytes`]), what waits to be read by a slow
//! subscriber ([`ClientBuilder::inbox_bytes`]; beyond it messages are dropped and counted), what a worker holds (its credit).

mod budget;
mod builder;
mod client;
mod command;
mod driver;
mod error;
mod hub;
mod inbox;
mod tasks;
mod worker;

pub use builder::ClientBuilder;
pub use client::{Client, Status};
pub use error::Error;
pub use hive_proto::ids::Durability;
pub use hive_proto::items::RevokeReason;
pub use hive_proto::{Code, Lease, TaskId, TaskState, Trace};
pub use hub::{AgentMessage, AgentMessages, Message, Subscription};
pub use tasks::{Outcome, Progress, ProgressStream, SubmitBuilder, TaskHandle, WaitMode};
pub use worker::{Assignment, Consumer, Failure, Revocation, WorkBuilder};

/// What became of an operation that failed.
pub use hive_proto::Outcome as Certainty;
