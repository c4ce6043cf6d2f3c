//! Where the messages of a subject go, and the memory of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashMap;
use hive_proto::SessionId;

use super::Hashing;
use super::trie::is_wild;

/// Subjects remembered.
const SUBJECTS_MAX: usize = 4096;
/// Targets remembered, over all subjects: a subject with very many subscribers must not be held thousands of times.
const TARGETS_MAX: usize = 64 * 1024;

/// One subscription.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Target {
    /// The number that the subscriber gave it. First, so that targets sort by it.
    pub(super) sub: u32,
    pub(super) session: SessionId,
}

/// Where the messages of a subject go. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Route {
    Nobody,
    One(Target),
    Many(Arc<Many>),
}

#[derive(Debug)]
pub(super) struct Many {
    /// Sorted, so that subscriptions with the same number stand together: they get the same bytes.
    pub(super) plain: Vec<Target>,
    /// Groups of two members or more.
    pub(super) groups: Vec<u32>,
    /// Counts requests, whose responders take turns. Atomic only because a route is shared within the hub.
    turn: AtomicU32,
}

/// Whom a request is for.
pub(super) enum Choice {
    Plain(Target),
    Group(u32),
}

impl Route {
    pub(super) fn new(mut plain: Vec<Target>, groups: Vec<u32>, turn: u32) -> Self {
        match (&plain[..], &groups[..]) {
            ([], []) => Self::Nobody,
            ([one], []) => Self::One(*one),
            _ => {
                plain.sort_unstable();
                Self::Many(Arc::new(Many { plain, groups, turn: AtomicU32::new(turn) }))
            }
        }
    }

    /// Copies of each message that are delivered.
    pub(super) fn receivers(&self) -> usize {
        match self {
            Self::Nobody => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.plain.len() + many.groups.len(),
        }
    }

    /// Whether messages of both may be delivered as one run. Different subjects can have one route, through wildcards.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nobody, Self::Nobody) => true,
            (Self::One(a), Self::One(b)) => a == b,
            (Self::Many(a), Self::Many(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The next responder's turn: plain subscriptions and groups count alike. `None` if there is nobody.
    pub(super) fn choose(&self) -> Option<Choice> {
        match self {
            Self::Nobody => None,
            Self::One(target) => Some(Choice::Plain(*target)),
            Self::Many(many) => {
                let i = many.turn.fetch_add(1, Ordering::Relaxed) as usize % self.receivers();
                Some(
                    many.plain.get(i).map_or_else(
                        || Choice::Group(many.groups[i - many.plain.len()]),
                        |t| Choice::Plain(*t),
                    ),
                )
            }
        }
    }
}

/// Routes of subjects seen lately. Forgets all when it is full: what is used comes back at the cost of a match.
#[derive(Debug)]
pub(super) struct Routes {
    known: HashMap<Box<[u8]>, Route, Hashing>,
    targets: usize,
}

impl Routes {
    pub(super) fn new(hashing: Hashing) -> Self {
        Self { known: HashMap::with_hasher(hashing), targets: 0 }
    }

    #[inline]
    pub(super) fn get(&self, subject: &[u8]) -> Option<&Route> {
        self.known.get(subject)
    }

    pub(super) fn remember(&mut self, subject: &[u8], route: Route) {
        let targets = route.receivers();
        if self.known.len() >= SUBJECTS_MAX || self.targets + targets > TARGETS_MAX {
            self.clear();
        }
        if targets <= TARGETS_MAX {
            self.targets += targets;
            self.known.insert(subject.into(), route);
        }
    }

    /// The subscriptions of a pattern have changed.
    pub(super) fn changed(&mut self, pattern: &[u8]) {
        if is_wild(pattern) {
            self.clear();
        } else if let Some(route) = self.known.remove(pattern) {
            self.targets -= route.receivers();
        }
    }

    fn clear(&mut self) {
        // An empty map is left alone: many subscriptions in a row must not each pay for its whole table.
        if !self.known.is_empty() {
            self.known.clear();
            self.targets = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(n: u32) -> Route {
        Route::new((0..n).map(|s| Target { sub: 1, session: SessionId(s) }).collect(), Vec::new(), 0)
    }

    #[test]
    fn memory_is_bounded_by_subjects_and_by_targets() {
        let mut routes = Routes::new(super::super::hashing(1));
        for i in 0..SUBJECTS_MAX + 5 {
            routes.remember(format!("s{i}").as_bytes(), route(1));
            assert_eq!(routes.targets, routes.known.len());
        }
        assert_eq!(routes.known.len(), 5);
        for i in 0..20_u32 {
            routes.remember(&i.to_le_bytes(), route(10_000));
            assert!(routes.targets <= TARGETS_MAX);
        }
        let held = routes.known.len();
        routes.remember(b"huge", route(TARGETS_MAX as u32 + 1));
        assert!(held > 0 && routes.get(b"huge").is_none());
    }

    #[test]
    fn a_change_forgets_what_it_may_concern() {
        let mut routes = Routes::new(super::super::hashing(1));
        routes.remember(b"a", route(2));
        routes.remember(b"b", route(3));
        routes.changed(b"a");
        assert!(routes.get(b"a").is_none() && routes.get(b"b").is_some());
        assert_eq!(routes.targets, 3);
        routes.changed(b"*");
        assert!(routes.get(b"b").is_none());
        assert_eq!(routes.targets, 0);
    }
}
