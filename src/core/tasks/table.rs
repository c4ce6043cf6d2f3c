//! The records of tasks, found by position: pages of 64 consecutive sequences.
//!
//! Two names for a record: its sequence (in the task id, for ever) and its [`Slot`] (where it lies now, for links between
//! records). A page is freed with its last record, so a task that stays for weeks pins one page and not
//! everything younger. A hash map keyed by task would cost 20 bytes and a cache miss for each; here it is one entry a page.

use std::cell::Cell;

use hashbrown::HashMap;
use hive_proto::{SessionId, TaskState};

use super::arena::Blob;
use crate::core::time::Tick;
use crate::planted;

const PAGE: usize = 64;
/// Free pages that keep their memory for the next burst.
const WARM_PAGES: usize = 256;

/// Place of a record; valid until the record is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

impl Slot {
    /// No record.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

/// What the table holds for a task: 56 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// When the lease expires, the delay ends or the result may go, by state.
    pub(crate) deadline: Tick,
    /// Extension and payload; the result once completed.
    pub(crate) blob: Blob,
    /// Neighbours in the one list the task is in: its lane, its consumer's leases, the dead letters or the results.
    pub(crate) next: Slot,
    pub(crate) prev: Slot,
    pub(crate) lane: u32,
    /// Handle of the consumer that holds the lease.
    pub(crate) owner: u32,
    /// Session that wants the outcome pushed; 0 for none.
    pub(crate) watcher: SessionId,
    /// Assignments so far; names the lease.
    pub(crate) attempt: u32,
    pub(crate) ext_len: u16,
    /// Attempts that failed, of `attempts_max`.
    pub(crate) failed: u16,
    pub(crate) attempts_max: u16,
    pub(crate) state: TaskState,
    /// Somebody waits for it by `Wait`.
    pub(crate) waited: bool,
    /// Was on disk, and is again after a restart.
    pub(crate) fetched: bool,
}

impl Record {
    pub(crate) const EMPTY: Self = Self {
        deadline: Tick::ZERO,
        blob: Blob::EMPTY,
        next: Slot::NONE,
        prev: Slot::NONE,
        lane: 0,
        owner: 0,
        watcher: SessionId(0),
        attempt: 0,
        ext_len: 0,
        failed: 0,
        attempts_max: 0,
        state: TaskState::Unknown,
        waited: false,
        fetched: false,
    };
}

#[derive(Debug)]
struct Page {
    /// Empty while the page lies in a long free list.
    records: Box<[Record]>,
    number: u64,
    live: u64,
}

/// All records of one dispatcher.
#[derive(Debug)]
pub(crate) struct Table {
    pages: Vec<Page>,
    free: Vec<u32>,
    by_number: HashMap<u64, u32, foldhash::fast::FixedState>,
    next_seq: u64,
    open: Option<u32>,
    /// Where the last look-up ended: what comes in batches lies together.
    last: Cell<u32>,
}

impl Table {
    pub(crate) fn new(first_seq: u64) -> Self {
        // Sequences come from this side alone, so a fixed seed gives nobody a way to collide them.
        let by_number = HashMap::with_hasher(foldhash::fast::FixedState::default());
        Self {
            pages: Vec::new(),
            free: Vec::new(),
            by_number,
            next_seq: first_seq,
            open: None,
            last: Cell::new(0),
        }
    }

    /// The sequence that the next record gets.
    #[inline]
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Memory held, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.by_number.len() * (size_of::<[Record; PAGE]>() + size_of::<Page>() + 24)
    }

    /// Adds a record under [`Self::next_seq`].
    #[inline]
    pub(crate) fn push(&mut self, record: Record) -> Slot {
        let place = (self.next_seq % PAGE as u64) as u32;
        let number = self.next_seq / PAGE as u64;
        let page = match self.open {
            Some(page) if self.pages[page as usize].number == number => page,
            _ => self.open_page(number),
        };
        self.next_seq += 1;
        let p = &mut self.pages[page as usize];
        p.records[place as usize] = record;
        p.live |= 1 << place;
        Slot(page * PAGE as u32 + place)
    }

    /// Gives a sequence away without a record.
    #[inline]
    pub(crate) fn skip(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// Sequences from here up to this one are given away.
    pub(crate) fn seen(&mut self, seq: u64) {
        self.next_seq = self.next_seq.max(seq + 1);
    }

    /// Adds a record under a sequence that is not there, whatever comes next.
    pub(crate) fn insert(&mut self, seq: u64, record: Record) -> Slot {
        let (number, place) = (seq / PAGE as u64, (seq % PAGE as u64) as u32);
        let page = self.page(number);
        let p = &mut self.pages[page as usize];
        p.records[place as usize] = record;
        p.live |= 1 << place;
        self.seen(seq);
        Slot(page * PAGE as u32 + place)
    }

    /// Goes on behind all records, at `seq` or later, with a page that nobody has used.
    pub(crate) fn reopen(&mut self, seq: u64) {
        let seq = if planted::is("seq_again") { seq } else { self.next_seq.max(seq) };
        self.next_seq = seq.next_multiple_of(PAGE as u64);
        self.open = None;
    }

    #[cold]
    fn open_page(&mut self, number: u64) -> u32 {
        if let Some(old) = self.open.take() {
            self.close_if_empty(old);
        }
        let at = self.page(number);
        self.open = Some(at);
        at
    }

    fn page(&mut self, number: u64) -> u32 {
        self.by_number.get(&number).copied().unwrap_or_else(|| self.new_page(number))
    }

    fn new_page(&mut self, number: u64) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.pages.push(Page { records: Box::default(), number, live: 0 });
            (self.pages.len() - 1) as u32
        });
        let page = &mut self.pages[at as usize];
        page.number = number;
        if page.records.is_empty() {
            page.records = vec![Record::EMPTY; PAGE].into();
        }
        self.by_number.insert(number, at);
        at
    }

    /// The record of a sequence.
    #[inline]
    pub(crate) fn find(&self, seq: u64) -> Option<Slot> {
        let number = seq / PAGE as u64;
        let mut page = self.last.get();
        if self.pages.get(page as usize).is_none_or(|p| p.number != number) {
            page = *self.by_number.get(&number)?;
            self.last.set(page);
        }
        let place = (seq % PAGE as u64) as u32;
        (self.pages[page as usize].live & (1 << place) != 0).then_some(Slot(page * PAGE as u32 + place))
    }

    /// The sequence of a record.
    #[inline]
    pub(crate) fn seq(&self, slot: Slot) -> u64 {
        self.pages[slot.0 as usize / PAGE].number * PAGE as u64 + u64::from(slot.0) % PAGE as u64
    }

    /// Removes a record that is in no list.
    #[inline]
    pub(crate) fn remove(&mut self, slot: Slot) {
        let page = slot.0 / PAGE as u32;
        self.pages[page as usize].live &= !(1 << (slot.0 as usize % PAGE));
        self.close_if_empty(page);
    }

    /// The pages that hold records, by their numbers.
    pub(crate) fn page_numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.by_number.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// The first record of a page at a place or behind it, and its place. `None` when there is none, or the page is gone.
    pub(crate) fn slot_from(&self, number: u64, place: usize) -> Option<(Slot, usize)> {
        let page = *self.by_number.get(&number)?;
        let live = self.pages[page as usize].live;
        let place = (place..PAGE).find(|place| live & (1 << place) != 0)?;
        Some((Slot(page * PAGE as u32 + place as u32), place))
    }

    /// Every record.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let places = (0..self.pages.len()).flat_map(|p| (0..PAGE).map(move |r| (p, r)));
        let live = places.filter(|(p, r)| self.pages[*p].live & (1 << r) != 0);
        live.map(|(p, r)| Slot((p * PAGE + r) as u32))
    }

    #[inline]
    fn close_if_empty(&mut self, page: u32) {
        let p = &mut self.pages[page as usize];
        if p.live == 0 && self.open != Some(page) {
            self.by_number.remove(&p.number);
            p.number = u64::MAX; // the number may come again, with another page
            if self.free.len() >= WARM_PAGES {
                p.records = Box::default();
            }
            self.free.push(page);
        }
    }
}

impl std::ops::Index<Slot> for Table {
    type Output = Record;
    #[inline]
    fn index(&self, s: Slot) -> &Record {
        &self.pages[s.0 as usize / PAGE].records[s.0 as usize % PAGE]
    }
}

impl std::ops::IndexMut<Slot> for Table {
    #[inline]
    fn index_mut(&mut self, s: Slot) -> &mut Record {
        &mut self.pages[s.0 as usize / PAGE].records[s.0 as usize % PAGE]
    }
}

/// A list of records through their own links: the ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) head: Slot,
    pub(crate) tail: Slot,
    pub(crate) len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { head: Slot::NONE, tail: Slot::NONE, len: 0 }
    }
}

impl List {
    #[inline]
    pub(crate) fn push_back(&mut self, t: &mut Table, s: Slot) {
        let r = &mut t[s];
        (r.prev, r.next) = (self.tail, Slot::NONE);
        match self.tail {
            Slot::NONE => self.head = s,
            tail => t[tail].next = s,
        }
        self.tail = s;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn push_front(&mut self, t: &mut Table, s: Slot) {
        let r = &mut t[s];
        (r.prev, r.next) = (Slot::NONE, self.head);
        match self.head {
            Slot::NONE => self.tail = s,
            head => t[head].prev = s,
        }
        self.head = s;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn remove(&mut self, t: &mut Table, s: Slot) {
        let Record { prev, next, .. } = t[s];
        match prev {
            Slot::NONE => self.head = next,
            p => t[p].next = next,
        }
        match next {
            Slot::NONE => self.tail = prev,
            n => t[n].prev = prev,
        }
        self.len -= 1;
    }

    /// Puts another list behind this one.
    pub(crate) fn append(&mut self, t: &mut Table, other: Self) {
        if other.len == 0 {
            return;
        }
        match self.tail {
            Slot::NONE => self.head = other.head,
            tail => {
                t[tail].next = other.head;
                t[other.head].prev = tail;
            }
        }
        self.tail = other.tail;
        self.len += other.len;
    }

    #[inline]
    pub(crate) fn pop_front(&mut self, t: &mut Table) -> Option<Slot> {
        let s = self.head;
        if s == Slot::NONE {
            return None;
        }
        self.remove(t, s);
        Some(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small() {
        assert_eq!(size_of::<Record>(), 56);
    }

    #[test]
    fn pages_are_freed_with_their_last_record_and_found_again() {
        let mut t = Table::new(1_000_003);
        let slots: Vec<Slot> = (0..1000).map(|_| t.push(Record::EMPTY)).collect();
        assert_eq!(t.seq(slots[999]), 1_001_002);
        assert_eq!(t.find(1_000_500), Some(slots[497]));
        for s in &slots[..999] {
            t.remove(*s);
        }
        assert_eq!(t.by_number.len(), 1);
        assert_eq!(t.find(1_000_500), None);
        let again = t.push(Record::EMPTY);
        assert_eq!(t.seq(again), 1_001_003);
        assert_eq!(t.find(1_001_002), Some(slots[999]));
    }

    #[test]
    fn lists_keep_their_order() {
        let mut t = Table::new(0);
        let s: Vec<Slot> = (0..4).map(|_| t.push(Record::EMPTY)).collect();
        let mut l = List::default();
        l.push_back(&mut t, s[1]);
        l.push_back(&mut t, s[2]);
        l.push_front(&mut t, s[0]);
        l.push_back(&mut t, s[3]);
        l.remove(&mut t, s[2]);
        assert_eq!(l.len, 3);
        assert_eq!(
            [l.pop_front(&mut t), l.pop_front(&mut t), l.pop_front(&mut t)],
            [Some(s[0]), Some(s[1]), Some(s[3])]
        );
        assert_eq!(l.pop_front(&mut t), None);
        assert_eq!((l.head, l.tail), (Slot::NONE, Slot::NONE));
    }
}
