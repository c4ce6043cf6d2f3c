//! What clients are owed when they stay, and what can only be judged once everything is over.

use std::collections::HashSet;

use hive_proto::{TaskId, TaskState};

use super::Blame;
use super::facts::{Facts, Look, Verdict};
use crate::history::record::{Answer, Event, What};

/// Whoever asks is answered.
pub(super) fn answers(events: &[Event], blame: Blame<'_>) {
    for e in events {
        let asked = match &e.what {
            What::Submit { answer: Answer::Never, .. } => "submit",
            What::Settle { answer: Answer::Never, .. } => "settlement",
            What::Cancel { answer: Answer::Never, .. } => "cancel",
            What::Silence(what) => *what,
            _ => continue,
        };
        let waited = (e.to - e.from) / 1000;
        blame("no_answer", format!("connection {} waited {waited} ms for the answer to its {asked}", e.link));
    }
}

pub(super) fn check(facts: &Facts<'_>, events: &[Event], blame: Blame<'_>) {
    for (id, task) in &facts.tasks {
        if facts.known_since(task).is_none() {
            continue;
        }
        let last = facts.looks_of(task).filter(|l| l.asked).max_by_key(|l| l.from);
        if last.is_none_or(|l| !l.seen.state.is_final()) {
            let state = last.map(|l| l.seen.state);
            blame("unfinished", format!("task {id:x} of payload {:?} has no outcome: {state:?}", task.keys));
        }
    }
    dead_letters(facts, events, blame);
}

/// Whoever submits and stays is told.
pub(super) fn told(facts: &Facts<'_>, events: &[Event], blame: Blame<'_>) {
    let pushed: HashSet<(u32, u64)> =
        facts.looks.iter().filter(|l| !l.asked).map(|l| (l.link, l.seen.task.0)).collect();
    for e in events {
        let What::Told { missed: 0 } = e.what else { continue };
        let mine = facts.submits.values().filter(|s| s.link == e.link && s.verdict == Verdict::Accepted);
        for id in mine.filter_map(|s| s.id).filter(|id| !pushed.contains(&(e.link, id.0))) {
            blame("not_told", format!("connection {} was never told what became of {id}", e.link));
        }
    }
}

/// The lists of dead letters at the end are the tasks that are dead.
fn dead_letters(facts: &Facts<'_>, events: &[Event], blame: Blame<'_>) {
    let lists = events.iter().filter_map(|e| match &e.what {
        What::DeadLetters(seen) => Some(seen),
        _ => None,
    });
    let listed: HashSet<u64> = lists.flatten().map(|s| s.task.0).collect();
    for (id, task) in &facts.tasks {
        let last: Option<&Look<'_>> = facts.looks_of(task).filter(|l| l.asked).max_by_key(|l| l.from);
        let dead = last.is_some_and(|l| l.seen.state == TaskState::Dead);
        if dead != listed.contains(id) {
            let id = TaskId(*id);
            blame("dead_letters", format!("{id}: dead is {dead}, in the list is {}", !dead));
        }
    }
}
