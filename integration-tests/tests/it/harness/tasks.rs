//! What submitters and workers say, in the words of the tests.

use std::collections::VecDeque;

use hive_proto::items::{self, Complete, Fail, Item, Progress, Refused, Release, Submit, Task};
use hive_proto::messages::{self, Work};
use hive_proto::{Code, Flags, Frame, Lease, Op, TaskId, TaskState, WireError};

pub(crate) use hive_proto::messages::TaskOptions;

use super::{Client, items as items_of};

/// Credit that no test uses up, bytes.
const BYTES: u64 = 32 * 1024 * 1024;

/// Answer to a submit.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) durability: u8,
    pub(crate) refused: Vec<(u16, Code)>,
}

/// A task in a worker's hand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Assigned {
    pub(crate) lease: Lease,
    pub(crate) lease_ms: u32,
    pub(crate) ext: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// A task as its submitter sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) task: TaskId,
    pub(crate) state: TaskState,
    pub(crate) attempt: u32,
    pub(crate) payload: Vec<u8>,
}

/// Answer to a settlement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settled {
    pub(crate) accepted: u16,
    pub(crate) refused: Vec<(u16, Code)>,
}

/// `n` payloads that can be told apart.
pub(crate) fn payloads(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("task {i}").into_bytes()).collect()
}

fn packed<'a, T: Item<'a>>(items: impl IntoIterator<Item = T>) -> (u16, Vec<u8>) {
    let mut out = Vec::new();
    let mut count = 0;
    for item in items {
        item.write(&mut out);
        count += 1;
    }
    (count, out)
}

fn refused(frame: &Frame) -> Vec<(u16, Code)> {
    let code = |r: &Refused| (r.index, Code::from_u16(r.code).expect("a known code"));
    // The count of these frames is that of the accepted: the refused are what there is.
    let mut reader = items::Reader(frame.view().payload);
    std::iter::from_fn(|| Refused::read(&mut reader)).map(|r| code(&r)).collect()
}

impl Client {
    /// Submits watched tasks without waiting for the answer.
    pub(crate) fn ask_submit<P: AsRef<[u8]>>(
        &mut self,
        queue: &str,
        payloads: &[P],
        options: &TaskOptions,
    ) -> u32 {
        let ext = if *options == TaskOptions::default() { Vec::new() } else { messages::encode(options) };
        let (count, payload) = packed(payloads.iter().map(|p| Submit { ext: &ext, payload: p.as_ref() }));
        self.ask(Op::Submit, Flags::WATCH, count, queue.as_bytes(), &payload)
    }

    /// Submits watched tasks.
    pub(crate) fn try_submit<P: AsRef<[u8]>>(
        &mut self,
        queue: &str,
        payloads: &[P],
        options: &TaskOptions,
    ) -> Result<Accepted, WireError> {
        let id = self.ask_submit(queue, payloads, options);
        self.accepted(id)
    }

    /// The answer to a submit.
    pub(crate) fn accepted(&mut self, id: u32) -> Result<Accepted, WireError> {
        let answer = self.answer(id)?;
        let f = answer.view();
        assert_eq!(f.op(), Ok(Op::Accepted));
        let mut r = items::Reader(f.header);
        let (first, durability) = (TaskId(r.u64().expect("first task")), r.u8().expect("durability"));
        assert!(r.0.is_empty());
        let tasks = (0..u64::from(f.prefix.count)).map(|n| first.offset(n)).collect();
        Ok(Accepted { tasks, durability, refused: refused(&answer) })
    }

    /// Submits watched tasks, all of which must be taken.
    pub(crate) fn submit<P: AsRef<[u8]>>(&mut self, queue: &str, payloads: &[P]) -> Vec<TaskId> {
        self.submit_with(queue, payloads, &TaskOptions::default())
    }

    pub(crate) fn submit_with<P: AsRef<[u8]>>(
        &mut self,
        queue: &str,
        payloads: &[P],
        options: &TaskOptions,
    ) -> Vec<TaskId> {
        let accepted = self.try_submit(queue, payloads, options).unwrap_or_else(|e| panic!("submit: {e}"));
        assert_eq!((accepted.tasks.len(), accepted.refused), (payloads.len(), vec![]));
        accepted.tasks
    }

    /// Opens a consumer.
    pub(crate) fn work(&mut self, queue: &str, credit: u32) -> u32 {
        self.work_as(queue, credit, BYTES, &[]).unwrap_or_else(|e| panic!("work: {e}"))
    }

    pub(crate) fn work_as(
        &mut self,
        queue: &str,
        tasks: u32,
        bytes: u64,
        labels: &[&str],
    ) -> Result<u32, WireError> {
        let labels = labels.iter().map(ToString::to_string).collect();
        let work = Work { queue: queue.into(), credit_tasks: tasks, credit_bytes: bytes, labels };
        let answer = self.call(Op::Work, 0, 0, &messages::encode(&work), &[])?;
        assert_eq!(answer.view().op(), Ok(Op::Ok));
        Ok(answer.view().prefix.id)
    }

    /// Sets the window of a consumer.
    pub(crate) fn credit(&mut self, consumer: u32, tasks: u32) {
        let header = [&tasks.to_le_bytes()[..], &BYTES.to_le_bytes()].concat();
        self.send(Op::Credit, 0, consumer, 0, &header, &[]);
    }

    /// The tasks of the next assignment to a consumer.
    pub(crate) fn assigned(&mut self, consumer: u32) -> Vec<Assigned> {
        let frame = self.take("an assignment", |p| p.op == Op::Assign as u8 && p.id == consumer);
        let owned = |a: items::Assign<'_>| Assigned {
            lease: a.lease,
            lease_ms: a.lease_ms,
            ext: a.ext.to_vec(),
            payload: a.payload.to_vec(),
        };
        items_of(&frame).into_iter().map(owned).collect()
    }

    /// Waits until a consumer has been given `n` tasks.
    pub(crate) fn gather(&mut self, consumer: u32, n: usize) -> Vec<Assigned> {
        let mut all = Vec::new();
        while all.len() < n {
            all.extend(self.assigned(consumer));
        }
        assert_eq!(all.len(), n, "more tasks than expected");
        all
    }

    /// The next single task of a consumer.
    pub(crate) fn one(&mut self, consumer: u32) -> Assigned {
        self.gather(consumer, 1).remove(0)
    }

    /// Completes tasks; the result is `done: ` and the payload.
    pub(crate) fn complete(&mut self, tasks: &[Assigned]) -> Settled {
        let results: Vec<_> = tasks.iter().map(|t| [b"done: ", &t.payload[..]].concat()).collect();
        let items = tasks.iter().zip(&results).map(|(t, r)| Complete { lease: t.lease, result: r });
        self.settle_with(Op::Complete, items)
    }

    pub(crate) fn complete_with(&mut self, lease: Lease, result: &[u8]) -> Settled {
        self.settle_with(Op::Complete, [Complete { lease, result }])
    }

    pub(crate) fn try_complete(&mut self, lease: Lease, result: &[u8]) -> Result<Settled, WireError> {
        let id = self.ask_complete(lease, result);
        self.settled(id)
    }

    /// Completes a task without waiting for the answer.
    pub(crate) fn ask_complete(&mut self, lease: Lease, result: &[u8]) -> u32 {
        let (count, payload) = packed([Complete { lease, result }]);
        self.ask(Op::Complete, 0, count, &[], &payload)
    }

    /// The answer to a settlement.
    pub(crate) fn settled(&mut self, id: u32) -> Result<Settled, WireError> {
        let answer = self.answer(id)?;
        assert_eq!(answer.view().op(), Ok(Op::Settled));
        Ok(Settled { accepted: answer.view().prefix.count, refused: refused(&answer) })
    }

    pub(crate) fn fail(&mut self, lease: Lease, delay_ms: u32, permanent: bool, error: &str) -> Settled {
        self.settle_with(Op::Fail, [Fail { lease, delay_ms, permanent, error }])
    }

    pub(crate) fn release(&mut self, lease: Lease, delay_ms: u32) -> Settled {
        self.settle_with(Op::Release, [Release { lease, delay_ms }])
    }

    pub(crate) fn renew(&mut self, lease: Lease) -> Settled {
        self.settle_with(Op::Renew, [lease])
    }

    pub(crate) fn progress(&mut self, lease: Lease, value: u16, note: &[u8]) -> Settled {
        self.settle_with(Op::Progress, [Progress { lease, value, note }])
    }

    pub(crate) fn cancel(&mut self, tasks: &[TaskId]) -> Settled {
        self.settle_with(Op::Cancel, tasks.iter().copied())
    }

    pub(crate) fn redrive(&mut self, tasks: &[TaskId]) -> Settled {
        self.settle_with(Op::Redrive, tasks.iter().copied())
    }

    pub(crate) fn purge(&mut self, tasks: &[TaskId]) -> Settled {
        self.settle_with(Op::Purge, tasks.iter().copied())
    }

    fn settle_with<'a, T: Item<'a>>(&mut self, op: Op, items: impl IntoIterator<Item = T>) -> Settled {
        let (count, payload) = packed(items);
        let id = self.ask(op, 0, count, &[], &payload);
        self.settled(id).unwrap_or_else(|e| panic!("{op:?}: {e}"))
    }

    /// The state of tasks now.
    pub(crate) fn query(&mut self, tasks: &[TaskId]) -> Vec<Outcome> {
        self.try_query(tasks).unwrap_or_else(|e| panic!("query: {e}"))
    }

    pub(crate) fn try_query(&mut self, tasks: &[TaskId]) -> Result<Vec<Outcome>, WireError> {
        let (count, payload) = packed(tasks.iter().copied());
        self.call(Op::Query, 0, count, &[], &payload).map(|f| outcomes(&f))
    }

    /// Begins to wait for tasks.
    pub(crate) fn ask_wait(&mut self, any: bool, timeout_ms: u32, tasks: &[TaskId]) -> u32 {
        let (count, payload) = packed(tasks.iter().copied());
        let header = [&[u8::from(any)][..], &timeout_ms.to_le_bytes()].concat();
        self.ask(Op::Wait, 0, count, &header, &payload)
    }

    /// The answer to a wait, a query or a list.
    pub(crate) fn tasks(&mut self, id: u32) -> Vec<Outcome> {
        let answer = self.answer(id).unwrap_or_else(|e| panic!("tasks: {e}"));
        outcomes(&answer)
    }

    /// Dead letters of a queue.
    pub(crate) fn list_dead(&mut self, queue: &str, limit: u32) -> Result<Vec<Outcome>, WireError> {
        let header = [&limit.to_le_bytes()[..], queue.as_bytes()].concat();
        self.call(Op::ListDead, 0, 0, &header, &[]).map(|f| outcomes(&f))
    }

    /// Waits until `n` outcomes have been pushed.
    pub(crate) fn results(&mut self, n: usize) -> Vec<Outcome> {
        let mut all: VecDeque<Outcome> = VecDeque::new();
        while all.len() < n {
            let frame = self.next(Op::Result);
            all.extend(outcomes(&frame));
        }
        assert_eq!(all.len(), n, "more outcomes than expected");
        all.into()
    }

    /// Pushed outcomes until all of `tasks` have theirs, in the order of `tasks`.
    pub(crate) fn results_of(&mut self, tasks: &[TaskId]) -> Vec<Outcome> {
        let mut all = self.results(tasks.len());
        let place =
            |t: TaskId| tasks.iter().position(|x| *x == t).unwrap_or_else(|| panic!("{t} was not submitted"));
        all.sort_by_key(|o| place(o.task));
        all
    }
}

fn outcomes(frame: &Frame) -> Vec<Outcome> {
    let owned = |t: Task<'_>| Outcome {
        task: t.task,
        state: t.state,
        attempt: t.attempt,
        payload: t.payload.to_vec(),
    };
    items_of(frame).into_iter().map(owned).collect()
}
