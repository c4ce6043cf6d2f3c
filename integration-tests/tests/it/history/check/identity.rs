//! What comes out is what went in: each payload under one id, in its queue, for whom it was meant, not before its time.

use std::collections::HashMap;

use hive_proto::{Partition, TaskId};

use super::Blame;
use super::facts::{Facts, Given, Submit, Verdict};
use crate::history::record::Key;

pub(super) fn check(facts: &Facts<'_>, blame: Blame<'_>) {
    for (lease, why) in &facts.garbled {
        blame("garbled", format!("{lease:?}: {why}"));
    }
    ids(facts, blame);
    order(facts, blame);
    for task in facts.tasks.values() {
        for given in &task.given {
            handed_out(facts, given, blame);
        }
    }
}

fn ids(facts: &Facts<'_>, blame: Blame<'_>) {
    let mut by_key: HashMap<Key, Vec<u64>> = HashMap::new();
    for (id, task) in &facts.tasks {
        for key in &task.keys {
            by_key.entry(*key).or_default().push(*id);
        }
        if let [one, other, ..] = task.keys[..] {
            blame("id_again", format!("task {id:x} is payload {one} and payload {other}"));
        }
    }
    for (key, ids) in by_key {
        let Some(submit) = facts.submits.get(&key) else {
            blame("not_submitted", format!("payload {key} is task {ids:x?}, and nobody submitted it"));
            continue;
        };
        if ids.len() > 1 {
            blame("twice", format!("payload {key} is tasks {ids:x?}; it was {:?}", submit.verdict));
        }
        if submit.verdict == Verdict::NotDone {
            blame("refused_appears", format!("payload {key} was refused as not done, and is task {ids:x?}"));
        }
        let partition = Partition::of_queue(submit.queue);
        if let Some(id) = ids.iter().find(|id| TaskId(**id).partition() != partition) {
            blame(
                "wrong_queue",
                format!("payload {key} of queue {} is task {id:x} of another", submit.queue),
            );
        }
    }
    for (key, submit) in facts.submits.iter().filter(|(_, s)| s.verdict == Verdict::Accepted) {
        if submit.durability != 1 {
            blame("durability", format!("payload {key} was given durability {}", submit.durability));
        }
        if submit.id.is_none() {
            blame("durability", format!("payload {key} was acknowledged without an id"));
        }
    }
}

/// Tasks of one connection for one queue get rising ids.
fn order(facts: &Facts<'_>, blame: Blame<'_>) {
    let mut lines: HashMap<(u32, &str), Vec<&Submit<'_>>> = HashMap::new();
    for submit in facts.submits.values().filter(|s| s.id.is_some()) {
        lines.entry((submit.link, submit.queue)).or_default().push(submit);
    }
    for line in lines.values_mut() {
        line.sort_by_key(|s| (s.from, s.id.map(|id| id.0)));
        for pair in line.windows(2) {
            if pair[0].id.map(|id| id.0) >= pair[1].id.map(|id| id.0) {
                let [a, b] = [pair[0], pair[1]].map(|s| (s.task.key, s.id));
                blame("order", format!("{a:?} was sent before {b:?} to queue {}", pair[0].queue));
            }
        }
    }
}

fn handed_out(facts: &Facts<'_>, given: &Given, blame: Blame<'_>) {
    let Some(submit) = facts.submits.get(&given.key) else { return };
    let (lease, key) = (given.lease, given.key);
    if given.queue != submit.queue {
        blame("wrong_queue", format!("payload {key} of queue {} came from {}", submit.queue, given.queue));
    }
    if given.options != submit.task.options {
        blame("options", format!("{lease:?}: the options are not those that were submitted"));
    }
    let labels = facts.links.get(&given.link).map_or(&[][..], |l| l.2);
    if let Some(label) = submit.task.label.filter(|l| !labels.contains(l)) {
        blame("labels", format!("{lease:?} needs {label:?} and went to a worker that offers {labels:?}"));
    }
    let due = submit.from + u64::from(submit.task.delay_ms) * 1000;
    if given.at < due {
        let by = due - given.at;
        blame(
            "early",
            format!("{lease:?} was handed out {by} us before its delay of {} ms", submit.task.delay_ms),
        );
    }
}
