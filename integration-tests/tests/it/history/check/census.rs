//! What a history holds.

use std::collections::BTreeMap;

use super::facts::{Facts, Verdict};
use crate::history::record::{Event, How};

/// Counts for those who want to know whether a history was worth its time.
pub(in crate::history) fn census(events: &[Event]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut count = |what: String, n: usize| *counts.entry(what).or_default() += n;
    let tell = |verdict| match verdict {
        Verdict::Accepted => "accepted".to_owned(),
        Verdict::Refused(code) => format!("refused, {}", code.name()),
        Verdict::NotDone => "not done".to_owned(),
        Verdict::Unknown => "unknown".to_owned(),
    };
    let facts = Facts::of(events);
    facts.submits.values().for_each(|s| count(format!("submit {}", tell(s.verdict)), 1));
    for task in facts.tasks.values() {
        count("assigned".into(), task.given.len());
        for said in &task.said {
            let how = match said.how {
                How::Complete => "complete",
                How::Fail { .. } => "fail",
                How::FailForGood => "fail for good",
                How::Release { .. } => "release",
            };
            count(format!("{how} {}", tell(said.verdict)), 1);
        }
        task.cancels.iter().for_each(|c| count(format!("cancel {}", tell(c.2)), 1));
        if let Some(outcome) = facts.outcomes(task).first() {
            count(format!("outcome {}", outcome.state.name()), 1);
        }
    }
    counts
}
