//! What callers tell the driver.

use std::sync::Arc;

use bytes::Bytes;
use hive_proto::codec::Frame;
use hive_proto::ids::Durability;
use hive_proto::messages::{Subscribe, Work};
use hive_proto::{Lease, Op, TaskId};
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::inbox::InboxSender;
use crate::tasks::{Outcome, Progress};
use crate::worker::{AssignBatch, ConsumerShared};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Tasks on their way to a queue. They have a channel of their own, which the driver reads only while it has credit, so
/// that the server's backpressure reaches submitters and nobody else.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) queue: Arc<str>,
    /// The outcome is to be pushed.
    pub(crate) watch: bool,
    pub(crate) tasks: Tasks,
    /// To be given back to the budget.
    pub(crate) weight: usize,
}

/// One task, or many that are laid out already.
#[derive(Debug)]
pub(crate) enum Tasks {
    One { ext: Bytes, payload: Bytes, reply: Reply<Submitted> },
    Many { items: Vec<u8>, count: u16, reply: Reply<Vec<Result<Submitted, Error>>> },
}

/// A task that the server has accepted.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) id: TaskId,
    pub(crate) durability: Durability,
    /// Present where the task is watched.
    pub(crate) outcome: Option<oneshot::Receiver<Result<Outcome, Error>>>,
}

/// A request that the driver only numbers, sends and answers with the frame that comes back.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) flags: u16,
    pub(crate) header: Bytes,
    pub(crate) count: u16,
    pub(crate) payload: Bytes,
    pub(crate) weight: usize,
    /// `None`: sent with id 0.
    pub(crate) reply: Option<Reply<Frame>>,
}

/// Requests that are neither tasks nor settlements.
#[derive(Debug)]
pub(crate) enum Command {
    Call(Call),
    OpenConsumer {
        spec: Work,
        shared: Arc<ConsumerShared>,
        batches: mpsc::Sender<AssignBatch>,
        reply: Reply<u32>,
    },
    SetCredit {
        consumer: u32,
        tasks: u32,
        bytes: u64,
    },
    OpenSubscription {
        spec: Subscribe,
        inbox: InboxSender,
        reply: Reply<u32>,
    },
    AgentMessages(InboxSender),
    Progress {
        task: TaskId,
        to: mpsc::Sender<Progress>,
    },
}

/// What must reach the driver even from a destructor, so its channel has no bound of its own: each note ends something
/// that is bounded (an assignment by its consumer's credit, a consumer, a subscription).
#[derive(Debug)]
pub(crate) enum Note {
    Settle(Settle),
    StopConsumer(u32),
    CloseConsumer(u32),
    CloseSubscription(u32),
}

/// The end of an assignment.
#[derive(Debug)]
pub(crate) struct Settle {
    pub(crate) consumer: u32,
    /// The connection that the lease came by; on another it is void.
    pub(crate) generation: u64,
    pub(crate) lease: Lease,
    pub(crate) how: How,
    pub(crate) weight: usize,
    pub(crate) reply: Option<Reply<()>>,
}

/// How an assignment ends.
#[derive(Debug)]
pub(crate) enum How {
    Complete(Bytes),
    Fail { error: String, permanent: bool, delay_ms: u32 },
    Release { delay_ms: u32 },
}
