//! Outcomes that callers wait for. The server pushes them on the connection that submitted; after another login they
//! are asked for with `Wait`.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use foldhash::HashMap;
use hive_proto::items::{self, NO_VALUE, Progressed, Task};
use hive_proto::messages::TasksLost;
use hive_proto::{FrameRef, Op, TaskId, TaskState, ids::Durability};
use tokio::sync::{mpsc, oneshot};

use super::parts::share;
use super::state::{Awaiting, State};
use crate::Error;
use crate::tasks::{Outcome, Progress};

/// Tasks asked for in one `Wait`: few, because each answer names all of them.
const WAIT_TASKS: usize = 256;
/// `Wait`s under way at once.
const WAITS: usize = 8;
/// Time of a `Wait` when nothing else is to be asked, and when more tasks want their turn, milliseconds.
const WAIT_MS: (u32, u32) = (20_000, 200);
/// Abandoned watches are looked for when there are this many, and again whenever they have doubled.
const SWEEP_MIN: usize = 4096;

#[derive(Debug)]
struct Watch {
    outcome: oneshot::Sender<Result<Outcome, Error>>,
    progress: Option<mpsc::Sender<Progress>>,
    /// Incarnation of the server that accepted the task.
    epoch: u32,
    /// What the acknowledgement promised.
    durability: Durability,
}

/// The watched tasks of this client.
#[derive(Debug, Default)]
pub(super) struct Watches {
    tasks: HashMap<TaskId, Watch>,
    sweep_at: usize,
    /// To be asked for.
    recovery: VecDeque<TaskId>,
    waits: usize,
}

impl Watches {
    pub(super) fn add(
        &mut self,
        id: TaskId,
        epoch: u32,
        durability: Durability,
    ) -> oneshot::Receiver<Result<Outcome, Error>> {
        if self.tasks.len() >= self.sweep_at {
            self.tasks.retain(|_, w| !w.outcome.is_closed());
            self.sweep_at = SWEEP_MIN.max(2 * self.tasks.len());
        }
        let (tx, rx) = oneshot::channel();
        self.tasks.insert(id, Watch { outcome: tx, progress: None, epoch, durability });
        rx
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn progress_to(&mut self, task: TaskId, to: mpsc::Sender<Progress>) {
        if let Some(w) = self.tasks.get_mut(&task) {
            w.progress = Some(to);
        }
    }

    fn settle(&mut self, task: &Task<'_>, keep: impl FnOnce(&[u8]) -> Bytes) {
        if let Some(w) = self.tasks.remove(&task.task) {
            let outcome = Outcome {
                task: task.task,
                state: task.state,
                attempt: task.attempt,
                result: keep(task.payload),
            };
            // Nobody may be interested any more.
            let _ = w.outcome.send(Ok(outcome));
        }
    }

    /// Ends the watches of tasks that are lost: those that the server kept in memory.
    pub(super) fn lose(&mut self, lost: TasksLost) {
        let gone = |(id, w): (&TaskId, &Watch)| {
            (w.durability == Durability::Memory && lost.covers(*id)).then_some(*id)
        };
        let gone: Vec<_> = self.tasks.iter().filter_map(gone).collect();
        for id in gone {
            self.settle(&Task { task: id, state: TaskState::Lost, attempt: 0, payload: &[] }, |_| {
                Bytes::new()
            });
        }
    }

    /// All outcomes are to be asked for.
    pub(super) fn recover_all(&mut self) {
        self.tasks.retain(|_, w| !w.outcome.is_closed());
        self.recovery = self.tasks.keys().copied().collect();
    }

    /// A `Wait` failed; its tasks are asked for again.
    pub(super) fn recover_later(&mut self, tasks: Vec<TaskId>) {
        self.waits = self.waits.saturating_sub(1);
        self.recovery.extend(tasks);
    }

    pub(super) fn forget_recovery(&mut self) {
        self.recovery.clear();
        self.waits = 0;
    }

    pub(super) fn abandon(&mut self, reason: &Error) {
        for (_, w) in self.tasks.drain() {
            let _ = w.outcome.send(Err(reason.clone()));
        }
    }

    fn next_wait(&mut self) -> Vec<TaskId> {
        let mut ids = Vec::new();
        while ids.len() < WAIT_TASKS {
            let Some(id) = self.recovery.pop_front() else { break };
            if self.tasks.get(&id).is_some_and(|w| !w.outcome.is_closed()) {
                ids.push(id);
            }
        }
        ids
    }
}

impl State {
    pub(super) fn on_result(&mut self, frame: &FrameRef<'_>, run: &Bytes) -> Result<(), Error> {
        for task in items::check::<Task<'_>>(frame.payload, frame.prefix.count)? {
            self.watches.settle(&task, |payload| share(run, payload));
        }
        Ok(())
    }

    pub(super) fn on_progressed(&mut self, frame: &FrameRef<'_>, run: &Bytes) -> Result<(), Error> {
        for p in items::check::<Progressed<'_>>(frame.payload, frame.prefix.count)? {
            let Some(to) = self.watches.tasks.get(&p.task).and_then(|w| w.progress.as_ref()) else {
                continue;
            };
            let fraction = (p.value != NO_VALUE).then(|| f32::from(p.value) / 10_000.0);
            // Progress is for onlookers: who is slow misses some.
            let _ = to.try_send(Progress { attempt: p.attempt, fraction, note: share(run, p.note) });
        }
        Ok(())
    }

    /// Asks for outcomes as far as `Wait`s are to be had.
    pub(super) fn pump_recovery(&mut self, _now: Instant) {
        while self.watches.waits < WAITS && !self.watches.recovery.is_empty() {
            let ids = self.watches.next_wait();
            if ids.is_empty() {
                return;
            }
            let timeout = if self.watches.recovery.is_empty() { WAIT_MS.0 } else { WAIT_MS.1 };
            let mut header = vec![1]; // any
            header.extend_from_slice(&timeout.to_le_bytes());
            let payload: Vec<u8> = ids.iter().flat_map(|id| id.0.to_le_bytes()).collect();
            self.watches.waits += 1;
            let (id, count) = (self.number(), ids.len() as u16);
            self.ask(id, Op::Wait, 0, &header, (count, &payload), Awaiting::Recovery(ids));
        }
    }

    pub(super) fn on_recovered(
        &mut self,
        frame: &FrameRef<'_>,
        run: &Bytes,
        asked: &[TaskId],
        now: Instant,
    ) -> Result<(), Error> {
        for mut task in items::check::<Task<'_>>(frame.payload, frame.prefix.count)? {
            if task.state == TaskState::Unknown {
                // A server that has restarted since does not know what its predecessor held in memory.
                let restarted = self.watches.tasks.get(&task.task).is_some_and(|w| w.epoch != self.epoch);
                task.state = if restarted { TaskState::Lost } else { TaskState::Unknown };
            } else if !task.state.is_final() {
                continue;
            }
            self.watches.settle(&task, |payload| share(run, payload));
        }
        self.watches.waits = self.watches.waits.saturating_sub(1);
        let open = asked.iter().filter(|id| self.watches.tasks.contains_key(id));
        self.watches.recovery.extend(open);
        self.pump_recovery(now);
        Ok(())
    }
}
