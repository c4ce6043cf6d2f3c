//! Submissions: grouped by queue into common frames, sent as far as the server's credit goes.

use std::sync::Arc;

use hive_proto::frame::Flags;
use hive_proto::ids::Durability;
use hive_proto::items::{Item as _, Reader, Submit};
use hive_proto::{FrameRef, Op, TaskId};

use super::parts::{Refusals, refusal, refusals};
use super::state::{Awaiting, State};
use crate::Error;
use crate::command::{Reply, Submission, Submitted, Tasks};

/// A group leaves at this size at the latest, bytes; it then still is one frame for every server.
const GROUP_BYTES: usize = 64 * 1024;
/// Items in a group.
const GROUP_TASKS: u16 = 8192;
/// Bytes of an item beside extension and payload.
const ITEM_OVERHEAD: usize = 6;

/// What may be submitted before the server acknowledges more.
#[derive(Debug, Default)]
pub(super) struct Credit {
    tasks: (u64, u64),
    bytes: (u64, u64),
}

impl Credit {
    pub(super) fn new(tasks: u32, bytes: u64) -> Self {
        Self { tasks: (0, tasks.into()), bytes: (0, bytes) }
    }

    /// Takes the credit for a submission, if there is enough; one alone may exceed it, so that the server says why not.
    pub(super) fn take(&mut self, s: &Submission) -> bool {
        let (tasks, bytes) = s.size();
        let fits = self.tasks.0 + tasks <= self.tasks.1 && self.bytes.0 + bytes <= self.bytes.1;
        if fits || self.tasks.0 == 0 {
            self.tasks.0 += tasks;
            self.bytes.0 += bytes;
            return true;
        }
        false
    }

    pub(super) fn give_back(&mut self, tasks: u64, bytes: u64) {
        self.tasks.0 = self.tasks.0.saturating_sub(tasks);
        self.bytes.0 = self.bytes.0.saturating_sub(bytes);
    }
}

impl Submission {
    /// Tasks, and bytes of their items.
    fn size(&self) -> (u64, u64) {
        match &self.tasks {
            Tasks::One { ext, payload, .. } => (1, (ITEM_OVERHEAD + ext.len() + payload.len()) as u64),
            Tasks::Many { items, count, .. } => ((*count).into(), items.len() as u64),
        }
    }
}

/// Submissions that leave in one frame.
pub(super) struct SubmitGroup {
    queue: Arc<str>,
    watch: bool,
    items: Vec<u8>,
    count: u16,
    replies: Vec<SubmitReply>,
}

/// Who is told about an item, or about several in a row.
pub(super) enum SubmitReply {
    One(Reply<Submitted>),
    Many(u16, Reply<Vec<Result<Submitted, Error>>>),
}

impl SubmitReply {
    pub(super) fn fail(self, e: &Error) {
        // A caller that is gone needs no answer.
        match self {
            Self::One(reply) => drop(reply.send(Err(e.clone()))),
            Self::Many(_, reply) => drop(reply.send(Err(e.clone()))),
        }
    }
}

impl State {
    /// Adds a submission to the group of its queue.
    pub(super) fn submit(&mut self, s: Submission) {
        self.weigh(s.weight);
        let (tasks, bytes) = s.size();
        let at = self.submit_groups.iter().position(|g| g.watch == s.watch && g.queue == s.queue);
        let full = |g: &SubmitGroup| {
            g.items.len() + bytes as usize > GROUP_BYTES || u64::from(g.count) + tasks > GROUP_TASKS.into()
        };
        let at = match at {
            Some(at) if full(&self.submit_groups[at]) => {
                let group = self.submit_groups.swap_remove(at);
                self.send_group(group);
                None
            }
            at => at,
        };
        let group = match at {
            Some(at) => &mut self.submit_groups[at],
            None => {
                let (queue, watch) = (s.queue, s.watch);
                self.submit_groups.push(SubmitGroup {
                    queue,
                    watch,
                    items: Vec::new(),
                    count: 0,
                    replies: Vec::new(),
                });
                self.submit_groups.last_mut().expect("just pushed")
            }
        };
        match s.tasks {
            Tasks::One { ext, payload, reply } => {
                Submit { ext: &ext, payload: &payload }.write(&mut group.items);
                group.count += 1;
                group.replies.push(SubmitReply::One(reply));
            }
            Tasks::Many { items, count, reply } => {
                if group.items.is_empty() {
                    group.items = items;
                } else {
                    group.items.extend_from_slice(&items);
                }
                group.count += count;
                group.replies.push(SubmitReply::Many(count, reply));
            }
        }
    }

    pub(super) fn flush_submits(&mut self) {
        while let Some(group) = self.submit_groups.pop() {
            self.send_group(group);
        }
    }

    fn send_group(&mut self, g: SubmitGroup) {
        let id = self.number();
        let flags = if g.watch { Flags::WATCH } else { 0 };
        let (tasks, bytes) = (g.count.into(), g.items.len() as u64);
        let what = Awaiting::Submit { replies: g.replies, watch: g.watch, tasks, bytes };
        self.ask(id, Op::Submit, flags, g.queue.as_bytes(), (g.count, &g.items), what);
    }

    pub(super) fn on_accepted(
        &mut self,
        frame: &FrameRef<'_>,
        replies: Vec<SubmitReply>,
        watch: bool,
    ) -> Result<(), Error> {
        let mut header = Reader(frame.header);
        let read = (header.u64(), header.u8().and_then(Durability::from_u8));
        let (Some(first), Some(durability)) = read else {
            return Err(Error::Protocol("an acknowledgement without a task id or durability".into()));
        };
        let refused = refusals(frame)?;
        let mut items = Numbering { next: TaskId(first), index: 0, refused: &refused };
        for reply in replies {
            match reply {
                SubmitReply::One(reply) => {
                    let answer = items.take().map(|id| self.accepted(id, durability, watch));
                    // A caller that is gone needs no answer; its watch goes with it.
                    let _ = reply.send(answer);
                }
                SubmitReply::Many(count, reply) => {
                    let answer = (0..count)
                        .map(|_| items.take().map(|id| self.accepted(id, durability, watch)))
                        .collect();
                    let _ = reply.send(Ok(answer));
                }
            }
        }
        Ok(())
    }

    fn accepted(&mut self, id: TaskId, durability: Durability, watch: bool) -> Submitted {
        let outcome = watch.then(|| self.watches.add(id, self.epoch, durability));
        Submitted { id, durability, outcome }
    }
}

/// Gives accepted items their ids, in order.
struct Numbering<'a> {
    next: TaskId,
    index: u16,
    refused: &'a Refusals,
}

impl Numbering<'_> {
    fn take(&mut self) -> Result<TaskId, Error> {
        let refused = if self.refused.is_empty() { None } else { self.refused.get(&self.index) };
        self.index = self.index.wrapping_add(1);
        if let Some(r) = refused {
            return Err(refusal(r));
        }
        let id = self.next;
        self.next = id.offset(1);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn one(bytes: usize) -> Submission {
        let (reply, _) = tokio::sync::oneshot::channel();
        let tasks = Tasks::One { ext: Bytes::new(), payload: vec![0; bytes - ITEM_OVERHEAD].into(), reply };
        Submission { queue: "q".into(), watch: false, tasks, weight: 0 }
    }

    #[test]
    fn credit_is_taken_and_given_back() {
        let mut credit = Credit::new(2, 100);
        assert!(credit.take(&one(60)) && !credit.take(&one(60)));
        assert!(credit.take(&one(40)) && !credit.take(&one(10)));
        credit.give_back(2, 100);
        assert!(credit.take(&one(500)), "alone");
        assert!(!credit.take(&one(10)));
    }
}
