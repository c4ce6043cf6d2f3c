//! Requests that wait for their reply.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;
use hive_proto::SessionId;

use super::Hashing;
use super::slab::Chains;
use crate::core::time::Tick;

const GENERATIONS: u32 = 1 << 24;
/// Stale deadlines that are not worth a clean-up.
const STALE_MAX: usize = 64;

/// A request that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pending {
    /// Who asked.
    pub(super) asker: SessionId,
    /// What the asker calls it.
    pub(super) id: u32,
    /// Who is to answer.
    pub(super) responder: SessionId,
}

/// The slots of waiting requests.
///
/// A token names a slot and how often it has been used, so a late reply never answers a later request:
///
/// ```text
///  63      56 55            32 31                 0
/// +----------+----------------+--------------------+
/// |  shard   |   generation   |        slot        |
/// +----------+----------------+--------------------+
/// ```
#[derive(Debug)]
pub(super) struct Requests {
    shard: u8,
    max: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    first_generation: u32,
    /// Deadline, slot, generation. Entries of requests that are over stay until they come up or outnumber the others.
    deadlines: BinaryHeap<Reverse<(Tick, u32, u32)>>,
    sessions: HashMap<SessionId, Ends, Hashing>,
    chains: [Chains; 2],
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

/// The requests that a session has asked, and those it is to answer: the heads of two chains.
type Ends = [Option<u32>; 2];
const ASKED: usize = 0;
const OWED: usize = 1;

impl Requests {
    /// `first_generation`: where slots begin to count. Chosen at random it keeps tokens of an earlier hub from fitting.
    pub(super) fn new(shard: u8, max: usize, first_generation: u32, hashing: Hashing) -> Self {
        Self {
            shard,
            max: max.min(u32::MAX as usize),
            slots: Vec::new(),
            free: Vec::new(),
            first_generation: first_generation % GENERATIONS,
            deadlines: BinaryHeap::new(),
            sessions: HashMap::with_hasher(hashing),
            chains: Default::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Begins to wait; gives the token that the reply must carry. `None` if all slots are taken.
    pub(super) fn open(&mut self, pending: Pending, deadline: Tick) -> Option<u64> {
        let at = self.free.pop().or_else(|| self.grow())?;
        let slot = &mut self.slots[at as usize];
        slot.pending = Some(pending);
        for (role, session) in pending.ends() {
            self.chains[role].push(&mut self.sessions.entry(session).or_default()[role], at);
        }
        self.deadlines.push(Reverse((deadline, at, slot.generation)));
        Some(u64::from(self.shard) << 56 | u64::from(slot.generation) << 32 | u64::from(at))
    }

    /// Ends the request of a token, if it waits for `responder`.
    pub(super) fn close(&mut self, token: u64, responder: SessionId) -> Option<Pending> {
        let (shard, generation, at) = ((token >> 56) as u8, (token >> 32) as u32 % GENERATIONS, token as u32);
        let slot = self.slots.get(at as usize)?;
        let known = shard == self.shard && generation == slot.generation;
        slot.pending.filter(|p| known && p.responder == responder)?;
        self.free(at)
    }

    /// Ends one request whose deadline has come. `None` when there is no more.
    pub(super) fn expire(&mut self, now: Tick) -> Option<Pending> {
        while let Some(Reverse((deadline, at, generation))) = self.deadlines.peek().copied() {
            if deadline > now {
                return None;
            }
            self.deadlines.pop();
            if self.slots[at as usize].generation == generation {
                return self.free(at);
            }
        }
        None
    }

    /// The earliest deadline; that of a request already over may still be among them.
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.peek().map(|Reverse((deadline, ..))| *deadline)
    }

    /// Ends one request that `session` has asked. `None` when there is no more.
    pub(super) fn forget_asked(&mut self, session: SessionId) -> Option<Pending> {
        let at = self.sessions.get(&session)?[ASKED]?;
        self.free(at)
    }

    /// Ends one request that `session` was to answer. `None` when there is no more.
    pub(super) fn forget_owed(&mut self, session: SessionId) -> Option<Pending> {
        let at = self.sessions.get(&session)?[OWED]?;
        self.free(at)
    }

    fn grow(&mut self) -> Option<u32> {
        if self.slots.len() >= self.max {
            return None;
        }
        self.slots.push(Slot { generation: self.first_generation, pending: None });
        Some((self.slots.len() - 1) as u32)
    }

    fn free(&mut self, at: u32) -> Option<Pending> {
        let slot = &mut self.slots[at as usize];
        let pending = slot.pending.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(at);
        for (role, session) in pending.ends() {
            let Some(ends) = self.sessions.get_mut(&session) else { continue };
            self.chains[role].remove(&mut ends[role], at);
            if *ends == Ends::default() {
                self.sessions.remove(&session);
            }
        }
        self.drop_stale();
        Some(pending)
    }

    fn drop_stale(&mut self) {
        if self.len() == 0 {
            // An idle hub needs no timer.
            self.deadlines.clear();
        } else if self.deadlines.len() > 2 * self.len() + STALE_MAX {
            let slots = &self.slots;
            self.deadlines
                .retain(|Reverse((_, at, generation))| slots[*at as usize].generation == *generation);
        }
    }
}

impl Pending {
    fn ends(&self) -> [(usize, SessionId); 2] {
        [(ASKED, self.asker), (OWED, self.responder)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(max: usize) -> Requests {
        Requests::new(3, max, GENERATIONS - 1, super::super::hashing(1))
    }

    fn pending(asker: u32, id: u32, responder: u32) -> Pending {
        Pending { asker: SessionId(asker), id, responder: SessionId(responder) }
    }

    #[test]
    fn a_token_fits_once_and_only_for_its_responder() {
        let mut r = requests(1);
        let token = r.open(pending(1, 7, 2), Tick(5)).expect("room");
        assert_eq!(token, 3 << 56 | 0xff_ffff << 32);
        assert_eq!(r.open(pending(1, 8, 2), Tick(5)), None);
        for (wrong, by) in
            [(token, 1), (token ^ 1, 2), (token ^ 1 << 32, 2), (token ^ 1 << 56, 2), (u64::MAX, 2)]
        {
            assert_eq!(r.close(wrong, SessionId(by)), None);
        }
        assert_eq!(r.close(token, SessionId(2)), Some(pending(1, 7, 2)));
        assert_eq!(r.close(token, SessionId(2)), None);
        let next = r.open(pending(1, 8, 2), Tick(5)).expect("room");
        assert_eq!(next, 3 << 56, "the generation wraps");
        assert_eq!(r.close(token, SessionId(2)), None);
    }

    #[test]
    fn deadlines_come_in_order_and_stale_ones_do_not_pile_up() {
        let mut r = requests(10);
        r.open(pending(3, 0, 4), Tick(10_000)).expect("room");
        for i in 0..10_000 {
            let token = r.open(pending(1, i, 2), Tick(u64::from(i))).expect("room");
            assert!(r.close(token, SessionId(2)).is_some());
            assert!(r.deadlines.len() <= 2 * 10 + STALE_MAX);
        }
        for deadline in [30, 10, 20] {
            r.open(pending(1, deadline, 2), Tick(u64::from(deadline))).expect("room");
        }
        let mut due = |now| std::iter::from_fn(|| r.expire(Tick(now))).map(|p| p.id).collect::<Vec<_>>();
        assert_eq!((due(9), due(20), due(100), due(10_000)), (vec![], vec![10, 20], vec![30], vec![0]));
        assert_eq!((r.next_deadline(), r.len(), r.sessions.len()), (None, 0, 0));
    }

    #[test]
    fn sessions_let_go_of_both_ends() {
        let mut r = requests(10);
        for i in 0..3 {
            r.open(pending(1, i, 2), Tick(9)).expect("room");
        }
        r.open(pending(2, 9, 2), Tick(9)).expect("room");
        assert_eq!(r.forget_asked(SessionId(2)), Some(pending(2, 9, 2)));
        assert_eq!(r.forget_asked(SessionId(2)), None);
        let owed = std::iter::from_fn(|| r.forget_owed(SessionId(2))).count();
        assert_eq!((owed, r.len(), r.sessions.len()), (3, 0, 0));
    }
}
