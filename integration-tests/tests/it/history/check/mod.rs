//! The checker: a pure function over what clients recorded. It knows the promises, not how they are kept.
//!
//! | file | rules |
//! |---|---|
//! | `facts` | events, sorted by task |
//! | `identity` | `garbled` `not_submitted` `refused_appears` `twice` `id_again` `wrong_queue` `labels` `options` `early` `durability` `order` |
//! | `leases` | `lease_again` `settled_twice` `stale` `other_session` `attempts_max` `early` |
//! | `outcomes` | `outcome_changed` `outcome_vanished` `given_after_end` `unearned` `dead_error` `buried_early` `cancel_unasked` `lost` `told_stranger` |
//! | `end` | `no_answer` `unfinished` `not_told` `dead_letters` |

mod census;
mod end;
mod facts;
mod identity;
mod leases;
mod outcomes;

pub(super) use census::census;

use super::record::Event;
use facts::Facts;

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Violation {
    pub(super) rule: &'static str,
    pub(super) text: String,
}

/// When the checker looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Work is under way.
    Running,
    /// Faults have stopped, everything was worked off, and every task was asked for.
    Over,
}

/// What is wrong with a history.
pub(super) fn check(events: &[Event], stage: Stage) -> Vec<Violation> {
    let mut found = Vec::new();
    let facts = Facts::of(events);
    let mut blame = |rule, text| found.push(Violation { rule, text });
    identity::check(&facts, &mut blame);
    leases::check(&facts, &mut blame);
    outcomes::check(&facts, &mut blame);
    end::answers(events, &mut blame);
    end::told(&facts, events, &mut blame);
    if stage == Stage::Over {
        end::check(&facts, events, &mut blame);
    }
    found
}

/// Where rules put what they find.
type Blame<'a> = &'a mut dyn FnMut(&'static str, String);
