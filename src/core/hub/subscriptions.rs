//! Who has subscribed to what.
//!
//! ```text
//! session 7 --+--> subscription (7, 1) --.
//!             '--> subscription (7, 2) --|--> audience: pattern "jobs.*", no group    --.
//! session 9 -----> subscription (9, 1) --'                                              |--> pattern "jobs.*"
//!             '--> subscription (9, 5) -----> audience: pattern "jobs.*", group "left" -'
//! ```
//!
//! An audience is all subscriptions with the same pattern and group. Without a group each member gets every message;
//! with one, each message goes to one member. Every arrow is kept at both ends, so adding and removing a subscription
//! cost the same whatever else there is.

use std::hash::BuildHasher;

use hashbrown::{HashMap, HashTable};
use hive_proto::SessionId;

use super::Hashing;
use super::routes::{Route, Target};
use super::slab::{Chains, Slab};
use super::trie::{Trie, is_wild};

#[derive(Debug)]
pub(super) struct Subscriptions {
    all: Slab<Subscription>,
    by_name: HashTable<u32>,
    sessions: HashMap<SessionId, Held, Hashing>,
    chains: Chains,
    audiences: Slab<Audience>,
    by_kind: HashTable<u32>,
    patterns: Slab<Pattern>,
    exact: HashTable<u32>,
    wild: Trie,
    hashing: Hashing,
    /// Kept for its memory.
    matched: Vec<u32>,
}

#[derive(Debug)]
struct Subscription {
    target: Target,
    audience: u32,
    /// Place among the members.
    at: u32,
}

/// What one session has.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    first: Option<u32>,
}

#[derive(Debug)]
struct Audience {
    pattern: u32,
    group: Option<Box<str>>,
    members: Vec<u32>,
    /// The member whose turn it is; a group only.
    turn: usize,
    /// Place among the audiences of the pattern.
    at: u32,
}

#[derive(Debug)]
struct Pattern {
    text: Box<[u8]>,
    audiences: Vec<u32>,
}

impl Subscriptions {
    pub(super) fn new(hashing: &Hashing) -> Self {
        Self {
            all: Slab::new(),
            by_name: HashTable::new(),
            sessions: HashMap::with_hasher(hashing.clone()),
            chains: Chains::default(),
            audiences: Slab::new(),
            by_kind: HashTable::new(),
            patterns: Slab::new(),
            exact: HashTable::new(),
            wild: Trie::new(hashing.clone()),
            hashing: hashing.clone(),
            matched: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn of_session(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |held| held.count)
    }

    pub(super) fn contains(&self, target: Target) -> bool {
        self.find(target).is_some()
    }

    /// Adds a subscription that is not there yet; the pattern has been judged.
    pub(super) fn add(&mut self, target: Target, pattern: &[u8], group: Option<&str>) {
        let pattern = self.pattern(pattern);
        let audience = self.audience(pattern, group);
        let members = &mut self.audiences[audience].members;
        let sub = self.all.insert(Subscription { target, audience, at: members.len() as u32 });
        members.push(sub);
        let held = self.sessions.entry(target.session).or_default();
        held.count += 1;
        self.chains.push(&mut held.first, sub);
        let (all, hashing) = (&self.all, &self.hashing);
        self.by_name.insert_unique(hashing.hash_one(target), sub, |s| hashing.hash_one(all[*s].target));
    }

    /// Removes a subscription and tells its pattern. `None` if it is not there.
    pub(super) fn remove(&mut self, target: Target) -> Option<Box<[u8]>> {
        self.find(target).map(|sub| self.take(sub))
    }

    /// Removes one subscription of a session that ends and tells its pattern. `None` when it has no more.
    pub(super) fn remove_any(&mut self, session: SessionId) -> Option<Box<[u8]>> {
        let first = self.sessions.get(&session)?.first?;
        Some(self.take(first))
    }

    /// Where messages of a valid subject go.
    pub(super) fn route(&mut self, subject: &[u8], turn: u32) -> Route {
        let mut matched = std::mem::take(&mut self.matched);
        matched.clear();
        matched.extend(self.exact(subject));
        self.wild.matches(subject, &mut matched);
        let (mut plain, mut groups) = (Vec::new(), Vec::new());
        for key in matched.iter().flat_map(|p| &self.patterns[*p].audiences) {
            let audience = &self.audiences[*key];
            match audience.group {
                Some(_) if audience.members.len() > 1 => groups.push(*key),
                _ => plain.extend(audience.members.iter().map(|sub| self.all[*sub].target)),
            }
        }
        self.matched = matched;
        Route::new(plain, groups, turn)
    }

    /// How many members a group has, at least 1.
    pub(super) fn members(&self, group: u32) -> usize {
        self.audiences[group].members.len()
    }

    /// The members of a group, over and over, beginning with the one whose turn it is. `n` turns are taken.
    pub(super) fn take_turns(&mut self, group: u32, n: usize) -> impl Iterator<Item = Target> {
        let audience = &mut self.audiences[group];
        let count = audience.members.len();
        let first = audience.turn % count;
        audience.turn = (first + n) % count;
        let (all, members) = (&self.all, &self.audiences[group].members);
        (first..).map(move |i| all[members[i % count]].target)
    }

    fn find(&self, target: Target) -> Option<u32> {
        self.by_name.find(self.hashing.hash_one(target), |s| self.all[*s].target == target).copied()
    }

    fn exact(&self, text: &[u8]) -> Option<u32> {
        self.exact.find(self.hashing.hash_one(text), |p| *self.patterns[*p].text == *text).copied()
    }

    fn pattern(&mut self, text: &[u8]) -> u32 {
        let wild = is_wild(text);
        if let Some(key) = if wild { self.wild.get(text) } else { self.exact(text) } {
            return key;
        }
        let key = self.patterns.insert(Pattern { text: text.into(), audiences: Vec::new() });
        if wild {
            self.wild.insert(text, key);
        } else {
            let (patterns, hashing) = (&self.patterns, &self.hashing);
            self.exact.insert_unique(hashing.hash_one(text), key, |p| hashing.hash_one(&*patterns[*p].text));
        }
        key
    }

    fn audience(&mut self, pattern: u32, group: Option<&str>) -> u32 {
        let (audiences, hashing) = (&mut self.audiences, &self.hashing);
        let hash = hashing.hash_one((pattern, group));
        let is = |a: &u32| audiences[*a].pattern == pattern && audiences[*a].group.as_deref() == group;
        if let Some(key) = self.by_kind.find(hash, is) {
            return *key;
        }
        let at = self.patterns[pattern].audiences.len() as u32;
        let key = audiences.insert(Audience {
            pattern,
            group: group.map(Into::into),
            members: Vec::new(),
            turn: 0,
            at,
        });
        self.patterns[pattern].audiences.push(key);
        self.by_kind.insert_unique(hash, key, |a| {
            hashing.hash_one((audiences[*a].pattern, audiences[*a].group.as_deref()))
        });
        key
    }

    fn take(&mut self, sub: u32) -> Box<[u8]> {
        let target = self.all[sub].target;
        forget(&mut self.by_name, self.hashing.hash_one(target), sub);
        if let Some(held) = self.sessions.get_mut(&target.session) {
            self.chains.remove(&mut held.first, sub);
            held.count -= 1;
            if held.count == 0 {
                self.sessions.remove(&target.session);
            }
        }
        let Subscription { audience: key, at, .. } = self.all.remove(sub);
        let audience = &mut self.audiences[key];
        let text = self.patterns[audience.pattern].text.clone();
        audience.members.swap_remove(at as usize);
        if let Some(moved) = audience.members.get(at as usize) {
            self.all[*moved].at = at;
        }
        if audience.members.is_empty() {
            self.drop_audience(key);
        }
        text
    }

    fn drop_audience(&mut self, key: u32) {
        let Audience { pattern, group, at, .. } = self.audiences.remove(key);
        forget(&mut self.by_kind, self.hashing.hash_one((pattern, group.as_deref())), key);
        let siblings = &mut self.patterns[pattern].audiences;
        siblings.swap_remove(at as usize);
        if let Some(moved) = siblings.get(at as usize) {
            self.audiences[*moved].at = at;
        }
        if siblings.is_empty() {
            let text = self.patterns.remove(pattern).text;
            if is_wild(&text) {
                self.wild.remove(&text);
            } else {
                forget(&mut self.exact, self.hashing.hash_one(&*text), pattern);
            }
        }
    }

    /// Whether nothing is left of all that was there.
    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        let mut all = Vec::new();
        self.wild.matches(b"a", &mut all);
        self.all.len() + self.audiences.len() + self.patterns.len() + self.sessions.len() + all.len() == 0
            && self.by_name.is_empty()
            && self.by_kind.is_empty()
            && self.exact.is_empty()
    }
}

fn forget(table: &mut HashTable<u32>, hash: u64, key: u32) {
    if let Ok(entry) = table.find_entry(hash, |k| *k == key) {
        entry.remove();
    }
}
