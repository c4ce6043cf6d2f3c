//! A lease is given once, to one session, for one settlement, and is void with the next one.

use super::Blame;
use super::facts::{Facts, Said, Task, Verdict, rank};
use crate::history::record::How;

pub(super) fn check(facts: &Facts<'_>, blame: Blame<'_>) {
    for (id, task) in &facts.tasks {
        // Sorted by lease.
        for pair in task.given.windows(2).filter(|p| p[0].lease == p[1].lease) {
            blame(
                "lease_again",
                format!("{:?} was given to {} and {}", pair[0].lease, pair[0].link, pair[1].link),
            );
        }
        let accepted = || task.said.iter().filter(|s| s.verdict == Verdict::Accepted);
        accepted().for_each(|s| settled(facts, task, s, blame));
        let mut leases: Vec<_> = accepted().map(|s| rank(s.lease)).collect();
        leases.sort_unstable();
        if let Some(pair) = leases.windows(2).find(|p| p[0] == p[1]) {
            blame("settled_twice", format!("task {id:x}: lease {:?} was settled twice", pair[0]));
        }
        let completed = accepted().filter(|s| s.how == How::Complete).count();
        if completed > 1 {
            blame("settled_twice", format!("task {id:x} was completed {completed} times"));
        }
        let failed = accepted().filter(|s| matches!(s.how, How::Fail { .. })).count();
        if let Some(max) = facts.submit_of(task).map(|s| s.task.attempts_max)
            && failed > usize::from(max)
        {
            blame("attempts_max", format!("task {id:x} failed {failed} times of {max}"));
        }
    }
}

/// A settlement that was accepted.
fn settled(facts: &Facts<'_>, task: &Task, said: &Said, blame: Blame<'_>) {
    let lease = said.lease;
    if let Some(later) = task.given.iter().find(|g| rank(g.lease) > rank(lease) && g.at <= said.from) {
        blame("stale", format!("{lease:?}: {:?} was accepted after {:?} had come", said.how, later.lease));
    }
    let epoch = facts.links.get(&said.link).map_or(0, |l| l.1);
    if lease.epoch < epoch {
        blame("stale", format!("{lease:?}: {:?} was accepted in epoch {epoch}", said.how));
    }
    let mut holders = task.given.iter().filter(|g| g.lease == lease).map(|g| g.link).peekable();
    if holders.peek().is_some() && !holders.any(|link| link == said.link) {
        blame("other_session", format!("{lease:?}: {:?} of connection {} was accepted", said.how, said.link));
    }
    let (How::Fail { delay_ms } | How::Release { delay_ms }) = said.how else { return };
    let due = said.from + u64::from(delay_ms) * 1000;
    if let Some(next) = task.given.iter().find(|g| rank(g.lease) > rank(lease)).filter(|g| g.at < due) {
        let by = due - next.at;
        blame("early", format!("{:?} came {by} us before the delay of {:?}", next.lease, said.how));
    }
}
