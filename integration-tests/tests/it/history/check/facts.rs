//! Events, sorted by task.

use std::collections::{BTreeMap, HashMap};

use hive_proto::{Code, Lease, TaskId, TaskState};

use crate::history::record::{Answer, Event, How, Key, Mark, Micros, Seen, Submitted, What};

/// A submit of one task.
pub(super) struct Submit<'a> {
    pub(super) queue: &'static str,
    pub(super) link: u32,
    pub(super) from: Micros,
    pub(super) to: Micros,
    pub(super) task: &'a Submitted,
    pub(super) verdict: Verdict,
    /// The id that was acknowledged.
    pub(super) id: Option<TaskId>,
    pub(super) durability: u8,
}

/// What a client knows of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Accepted,
    Refused(Code),
    NotDone,
    Unknown,
}

impl Verdict {
    /// It may have happened.
    pub(super) fn maybe(self) -> bool {
        matches!(self, Self::Accepted | Self::Unknown)
    }
}

pub(super) struct Given {
    pub(super) lease: Lease,
    pub(super) link: u32,
    pub(super) at: Micros,
    pub(super) queue: &'static str,
    pub(super) key: Key,
    pub(super) options: Mark,
}

pub(super) struct Said {
    pub(super) how: How,
    pub(super) lease: Lease,
    pub(super) mark: Mark,
    pub(super) link: u32,
    pub(super) from: Micros,
    pub(super) to: Micros,
    pub(super) verdict: Verdict,
}

/// A look at a task.
pub(super) struct Look<'a> {
    pub(super) from: Micros,
    pub(super) to: Micros,
    pub(super) link: u32,
    pub(super) seen: &'a Seen,
    /// Asked for, so that it tells the state at a moment after `from`.
    pub(super) asked: bool,
    /// Pushed to whoever is held for the submitter.
    pub(super) pushed: bool,
}

/// All that was seen of one id.
#[derive(Default)]
pub(super) struct Task {
    /// Names of the payloads that were seen under the id.
    pub(super) keys: Vec<Key>,
    pub(super) given: Vec<Given>,
    pub(super) said: Vec<Said>,
    /// Cancels: from, to, verdict.
    pub(super) cancels: Vec<(Micros, Micros, Verdict)>,
    pub(super) looks: Vec<usize>,
}

/// An outcome that somebody knows of since `to`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) to: Micros,
    pub(super) state: TaskState,
    pub(super) mark: Mark,
    /// The attempt that brought it, where that is known.
    pub(super) attempt: Option<u32>,
}

#[derive(Default)]
pub(super) struct Facts<'a> {
    pub(super) submits: HashMap<Key, Submit<'a>>,
    pub(super) tasks: BTreeMap<u64, Task>,
    pub(super) looks: Vec<Look<'a>>,
    /// Connections: when they were opened, the epoch that they were told, and their labels.
    pub(super) links: HashMap<u32, (Micros, u32, &'a [&'static str])>,
    /// Payloads that were not what was submitted.
    pub(super) garbled: Vec<(Lease, &'a str)>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(events: &'a [Event]) -> Self {
        let mut facts = Self::default();
        events.iter().for_each(|e| facts.take(e));
        for task in facts.tasks.values_mut() {
            task.keys.sort_unstable();
            task.keys.dedup();
            task.given.sort_by_key(|g| (rank(g.lease), g.at));
        }
        facts
    }

    fn take(&mut self, e: &'a Event) {
        match &e.what {
            What::Opened { epoch, labels } => {
                self.links.insert(e.link, (e.from, *epoch, labels));
            }
            What::Submit { queue, tasks, answer } => self.submitted(e, queue, tasks, answer),
            What::Assign { queue, lease, payload, options } => match payload {
                Ok(key) => {
                    let task = self.task(lease.task);
                    task.keys.push(*key);
                    let (lease, options, key) = (*lease, *options, *key);
                    task.given.push(Given { lease, link: e.link, at: e.from, queue, key, options });
                }
                Err(why) => self.garbled.push((*lease, why)),
            },
            What::Settle { how, items, answer } => {
                for (at, (lease, mark)) in items.iter().enumerate() {
                    let said = Said {
                        how: *how,
                        lease: *lease,
                        mark: *mark,
                        link: e.link,
                        from: e.from,
                        to: e.to,
                        verdict: verdict(answer, at),
                    };
                    self.task(lease.task).said.push(said);
                }
            }
            What::Cancel { tasks, answer } => {
                for (at, task) in tasks.iter().enumerate() {
                    self.task(*task).cancels.push((e.from, e.to, verdict(answer, at)));
                }
            }
            What::Asked(seen) => self.looked(e, seen, true),
            What::Pushed(seen) | What::DeadLetters(seen) => self.looked(e, seen, false),
            What::Told { .. } | What::Silence(_) => {}
        }
    }

    fn submitted(
        &mut self,
        e: &'a Event,
        queue: &'static str,
        tasks: &'a [Submitted],
        answer: &Answer<(Vec<TaskId>, u8)>,
    ) {
        for (at, task) in tasks.iter().enumerate() {
            let (verdict, id, durability) = match answer {
                Answer::Ok((ids, durability)) => (Verdict::Accepted, ids.get(at).copied(), *durability),
                Answer::NotDone(_) => (Verdict::NotDone, None, 0),
                Answer::Unknown | Answer::Never => (Verdict::Unknown, None, 0),
            };
            if let Some(id) = id {
                self.task(id).keys.push(task.key);
            }
            let submit =
                Submit { queue, link: e.link, from: e.from, to: e.to, task, verdict, id, durability };
            self.submits.insert(task.key, submit);
        }
    }

    fn looked(&mut self, e: &'a Event, all: &'a [Seen], asked: bool) {
        for seen in all {
            let at = self.looks.len();
            let pushed = matches!(e.what, What::Pushed(_));
            self.looks.push(Look { from: e.from, to: e.to, link: e.link, seen, asked, pushed });
            self.task(seen.task).looks.push(at);
        }
    }

    fn task(&mut self, id: TaskId) -> &mut Task {
        self.tasks.entry(id.0).or_default()
    }

    /// The submit of a task, if its payload is known.
    pub(super) fn submit_of(&self, task: &Task) -> Option<&Submit<'a>> {
        self.submits.get(task.keys.first()?)
    }

    pub(super) fn looks_of(&self, task: &Task) -> impl Iterator<Item = &Look<'a>> {
        task.looks.iter().map(|at| &self.looks[*at])
    }

    /// Since when somebody has known that the task is there for good: it was acknowledged, handed out or seen.
    pub(super) fn known_since(&self, task: &Task) -> Option<Micros> {
        let submit = self.submit_of(task).filter(|s| s.verdict == Verdict::Accepted).map(|s| s.to);
        let given = task.given.iter().map(|g| g.at);
        let seen = self.looks_of(task).filter(|l| l.seen.state != TaskState::Unknown).map(|l| l.to);
        submit.into_iter().chain(given).chain(seen).min()
    }

    /// Outcomes that clients know: seen, or acknowledged to whoever brought them.
    pub(super) fn outcomes(&self, task: &Task) -> Vec<Outcome> {
        let mut all: Vec<Outcome> = self
            .looks_of(task)
            .filter(|l| l.seen.state.is_final())
            .map(|l| {
                // A task that was cancelled has no attempt that brought it there.
                let attempt = (l.seen.state != TaskState::Cancelled).then_some(l.seen.attempt);
                Outcome { to: l.to, state: l.seen.state, mark: l.seen.payload, attempt }
            })
            .collect();
        let accepted = |s: &&Said| s.verdict == Verdict::Accepted;
        for s in task.said.iter().filter(accepted) {
            let state = match s.how {
                How::Complete => TaskState::Completed,
                How::FailForGood => TaskState::Dead,
                _ => continue,
            };
            all.push(Outcome { to: s.to, state, mark: s.mark, attempt: Some(s.lease.attempt) });
        }
        let cancelled = task.cancels.iter().filter(|c| c.2 == Verdict::Accepted);
        let empty = Mark::of(&[]);
        all.extend(cancelled.map(|c| Outcome {
            to: c.1,
            state: TaskState::Cancelled,
            mark: empty,
            attempt: None,
        }));
        // The failure that used up the attempts.
        let mut failures: Vec<&Said> =
            task.said.iter().filter(accepted).filter(|s| matches!(s.how, How::Fail { .. })).collect();
        failures.sort_by_key(|s| rank(s.lease));
        if let Some(max) = self.submit_of(task).map(|s| usize::from(s.task.attempts_max))
            && let Some(last) = max.checked_sub(1).and_then(|n| failures.get(n))
        {
            let attempt = Some(last.lease.attempt);
            all.push(Outcome { to: last.to, state: TaskState::Dead, mark: last.mark, attempt });
        }
        all.sort_by_key(|o| o.to);
        all
    }
}

/// Leases of a task in the order in which they were given out.
pub(super) fn rank(lease: Lease) -> (u32, u32) {
    (lease.epoch, lease.attempt)
}

fn verdict(answer: &Answer<Vec<Option<Code>>>, at: usize) -> Verdict {
    match answer {
        Answer::Ok(refused) => match refused.get(at) {
            Some(Some(code)) => Verdict::Refused(*code),
            _ => Verdict::Accepted,
        },
        Answer::NotDone(_) => Verdict::NotDone,
        Answer::Unknown | Answer::Never => Verdict::Unknown,
    }
}
