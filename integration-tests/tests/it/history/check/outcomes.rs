//! An outcome is one, stays, and was brought by somebody who was entitled to.

use hive_proto::TaskState;

use super::Blame;
use super::facts::{Facts, Look, Outcome, Task, Verdict};
use crate::history::record::{How, Mark};

/// What the server writes where a worker did not fail but vanish.
const LOST_WORKERS: [&str; 2] = ["the worker's connection ended", "the lease expired"];

pub(super) fn check(facts: &Facts<'_>, blame: Blame<'_>) {
    for (id, task) in &facts.tasks {
        let outcomes = facts.outcomes(task);
        if let Some(first) = outcomes.first() {
            stays(facts, *id, task, first, &outcomes, blame);
        }
        let mut told = None;
        for look in facts.looks_of(task).filter(|l| l.seen.state.is_final()) {
            // The same news once more has nothing new to be judged.
            let news = (look.seen.state, look.seen.attempt, look.seen.payload);
            if told.replace(news) != Some(news) {
                earned(facts, *id, task, look, blame);
            }
        }
        known(facts, *id, task, blame);
        told_to(facts, *id, task, blame);
    }
}

fn stays(facts: &Facts<'_>, id: u64, task: &Task, first: &Outcome, all: &[Outcome], blame: Blame<'_>) {
    let differs = |o: &&Outcome| {
        let attempts = o.attempt.is_some() && first.attempt.is_some() && o.attempt != first.attempt;
        (o.state, o.mark) != (first.state, first.mark) || attempts
    };
    if let Some(other) = all.iter().find(differs) {
        blame("outcome_changed", format!("task {id:x}: {first:?} became {other:?}"));
    }
    let gone = |l: &&Look<'_>| l.asked && l.from >= first.to && !l.seen.state.is_final();
    if let Some(look) = facts.looks_of(task).find(gone) {
        blame("outcome_vanished", format!("task {id:x}: {first:?}, and then {:?}", look.seen));
    }
    // Frames of other connections may have been on their way; not to one that was opened later.
    let opened = |link| facts.links.get(&link).map_or(0, |l| l.0);
    if let Some(given) = task.given.iter().find(|g| opened(g.link) >= first.to) {
        blame("given_after_end", format!("{:?} was handed out after {first:?}", given.lease));
    }
}

fn earned(facts: &Facts<'_>, id: u64, task: &Task, look: &Look<'_>, blame: Blame<'_>) {
    let seen = look.seen;
    match seen.state {
        TaskState::Completed => {
            let brought = |mark| move |s: &&super::facts::Said| s.how == How::Complete && s.mark == mark;
            let mut all = task.said.iter().filter(brought(seen.payload)).peekable();
            if all.peek().is_none() {
                blame("unearned", format!("task {id:x} has a result that nobody brought: {seen:?}"));
            } else if !all.any(|s| s.lease.attempt == seen.attempt && s.verdict.maybe()) {
                let text = "has a result that was refused, or of another attempt";
                blame("unearned", format!("task {id:x} {text}: {seen:?}"));
            }
        }
        TaskState::Dead => dead(facts, id, task, look, blame),
        TaskState::Cancelled => {
            if !task.cancels.iter().any(|c| c.2.maybe()) {
                blame("cancel_unasked", format!("task {id:x} is cancelled, and nobody asked for it"));
            }
        }
        other => blame("lost", format!("task {id:x} of a journaled queue is {other:?}")),
    }
}

fn dead(facts: &Facts<'_>, id: u64, task: &Task, look: &Look<'_>, blame: Blame<'_>) {
    let seen = look.seen;
    let failed =
        |s: &&super::facts::Said| s.verdict.maybe() && matches!(s.how, How::Fail { .. } | How::FailForGood);
    let by_worker = task.said.iter().filter(failed).any(|s| s.mark == seen.payload);
    let by_server = LOST_WORKERS.iter().any(|text| Mark::of(text.as_bytes()) == seen.payload);
    if !by_worker && !by_server {
        blame("dead_error", format!("task {id:x} is dead with an error that nobody told: {seen:?}"));
    }
    let for_good = task.said.iter().filter(failed).any(|s| s.how == How::FailForGood);
    let max = facts.submit_of(task).map_or(0, |s| u32::from(s.task.attempts_max));
    if !for_good && seen.attempt < max {
        blame("buried_early", format!("task {id:x} died with {} attempts of {max}", seen.attempt));
    }
}

/// Outcomes are pushed to whoever submitted, over the connection over which it did.
fn told_to(facts: &Facts<'_>, id: u64, task: &Task, blame: Blame<'_>) {
    let Some(submit) = facts.submit_of(task) else { return };
    if let Some(look) = facts.looks_of(task).find(|l| l.pushed && l.link != submit.link) {
        blame(
            "told_stranger",
            format!("task {id:x} of connection {} was told to {}", submit.link, look.link),
        );
    }
}

/// What was acknowledged, handed out or seen is not forgotten.
fn known(facts: &Facts<'_>, id: u64, task: &Task, blame: Blame<'_>) {
    let Some(since) = facts.known_since(task) else { return };
    let gone = |l: &&Look<'_>| l.asked && l.from >= since && l.seen.state == TaskState::Unknown;
    if facts.looks_of(task).any(|l| gone(&l)) {
        let acknowledged = facts.submit_of(task).is_some_and(|s| s.verdict == Verdict::Accepted);
        let how = if acknowledged { "acknowledged" } else { "handed out or seen" };
        blame("lost", format!("task {id:x} of payload {:?} was {how}, and is unknown", task.keys));
    }
}
