//! Which outcomes are in the journal, and in which records.

use std::collections::{BTreeMap, VecDeque};

use super::lookup::Lookups;
use crate::core::time::Tick;

/// What an entry takes without its records: its own and its place in the tree, bytes.
const ENTRY_BYTES: usize = 144;
/// Entries forgotten at once.
pub(super) const FORGET_MAX: usize = 256;

/// 64 consecutive sequences of one queue: which of them are here.
pub(crate) type Place = (u64, u32);

/// Where the outcomes of up to 64 tasks are.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) mask: u64,
    /// When the last of them may go.
    pub(crate) until: Tick,
    /// The lower half of the position of each one's record, in the order of the tasks; a single one stands for all.
    pub(super) records: Vec<u32>,
}

impl Entry {
    fn add(&mut self, bit: u64, record: u32) {
        let count = self.mask.count_ones() as usize;
        if count > 0 && self.records == [record] {
            self.mask |= bit;
            return;
        }
        if self.records.len() == 1 {
            self.records.resize(count, self.records[0]);
        }
        self.records.insert(self.rank(bit), record);
        self.mask |= bit;
    }

    fn rank(&self, bit: u64) -> usize {
        (self.mask & (bit - 1)).count_ones() as usize
    }

    fn record(&self, bit: u64) -> Option<u32> {
        let at = if self.records.len() == 1 { 0 } else { self.rank(bit) };
        (self.mask & bit != 0).then(|| self.records[at])
    }
}

/// All that a board knows of outcomes in the journal.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// The oldest first.
    entries: VecDeque<(Place, Entry)>,
    /// The number of each entry; the oldest has `forgotten`.
    numbers: BTreeMap<Place, u64>,
    forgotten: u64,
    /// The number of the entry that got something last: tasks that follow each other are mostly settled together.
    latest: u64,
    /// Memory of their records, bytes.
    record_bytes: usize,
    /// Outcomes.
    pub(crate) len: usize,
    /// Position of the last record that is durable.
    pub(crate) last: u64,
    /// Records before this one are gone.
    pub(super) floor: u64,
    /// Records are being replayed, and the lower half of the position of this one; else 0.
    pub(crate) replaying: bool,
    pub(crate) replayed: u32,
    pub(super) lookups: Lookups,
}

impl Archive {
    /// Memory held, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + self.record_bytes
    }

    /// The position of which this is the lower half: records are not four billion apart.
    pub(super) fn position(&self, record: u32) -> u64 {
        self.last.wrapping_sub(u64::from((self.last as u32).wrapping_sub(record)))
    }

    /// Adds an outcome.
    pub(crate) fn add(&mut self, seq: u64, queue: u32, until: Tick, position: u64) {
        let (place, bit) = ((seq / 64, queue), 1 << (seq % 64));
        let at = self.place(place);
        let entry = &mut self.entries[at].1;
        if entry.mask & bit == 0 {
            let before = entry.records.capacity();
            entry.add(bit, position as u32);
            entry.until = entry.until.max(until);
            self.record_bytes += (entry.records.capacity() - before) * size_of::<u32>();
            self.len += 1;
        }
        self.last = self.last.max(position);
    }

    /// Where in `entries` the one of a place is, a new one if there was none.
    fn place(&mut self, place: Place) -> usize {
        let latest = self.latest.wrapping_sub(self.forgotten) as usize;
        if self.entries.get(latest).is_some_and(|(p, _)| *p == place) {
            return latest;
        }
        let next = self.forgotten + self.entries.len() as u64;
        self.latest = *self.numbers.entry(place).or_insert(next);
        if self.latest == next {
            self.entries.push_back((place, Entry::default()));
        }
        (self.latest - self.forgotten) as usize
    }

    fn entry(&self, number: u64) -> &Entry {
        &self.entries[(number - self.forgotten) as usize].1
    }

    /// The queue and the record of a task whose outcome is here.
    pub(super) fn find(&self, seq: u64) -> impl Iterator<Item = (u32, u64)> + '_ {
        let (page, bit) = (seq / 64, 1 << (seq % 64));
        let places = self.numbers.range((page, 0)..=(page, u32::MAX));
        places.filter_map(move |((_, queue), n)| Some((*queue, self.position(self.entry(*n).record(bit)?))))
    }

    /// Whether the outcome of a task is here.
    #[inline]
    pub(crate) fn has(&self, seq: u64) -> bool {
        !self.entries.is_empty() && self.find(seq).next().is_some()
    }

    /// The queue of a task whose outcome is here.
    #[cfg(test)]
    pub(crate) fn queue_of(&self, seq: u64) -> Option<u32> {
        self.find(seq).next().map(|(queue, _)| queue)
    }

    /// Panics unless what is counted is what is there.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert_eq!(self.numbers.len(), self.entries.len(), "each entry has its number");
        for (at, (place, e)) in self.entries.iter().enumerate() {
            assert_eq!(self.numbers.get(place), Some(&(self.forgotten + at as u64)));
            assert!(self.from() <= Some(self.first(e)), "the oldest does not go first");
            assert!(e.mask != 0 && (e.records.len() == 1 || e.records.len() == e.mask.count_ones() as usize));
        }
        let entries = || self.entries.iter().map(|(_, e)| e);
        assert_eq!(self.len, entries().map(|e| e.mask.count_ones() as usize).sum::<usize>());
        let capacity: usize = entries().map(|e| e.records.capacity() * size_of::<u32>()).sum();
        assert_eq!(self.record_bytes, capacity);
    }

    pub(super) fn forget_oldest(&mut self) {
        if let Some((place, entry)) = self.entries.pop_front() {
            self.numbers.remove(&place);
            self.forgotten += 1;
            self.record_bytes -= entry.records.capacity() * size_of::<u32>();
            self.len -= entry.mask.count_ones() as usize;
        }
    }

    pub(super) fn oldest(&self) -> Option<&Entry> {
        self.entries.front().map(|(_, entry)| entry)
    }

    /// Puts entries that were read from a snapshot in the order in which they will go.
    pub(crate) fn sort(&mut self) {
        let mut entries: Vec<(Place, Entry)> = std::mem::take(&mut self.entries).into();
        entries.sort_by_cached_key(|(_, e)| self.first(e));
        self.numbers = (self.forgotten..).zip(&entries).map(|(n, (place, _))| (*place, n)).collect();
        self.entries = entries.into();
    }

    /// Position of the first record of an entry.
    fn first(&self, entry: &Entry) -> u64 {
        entry.records.iter().map(|r| self.position(*r)).min().unwrap_or(0)
    }

    /// Position of the first record of all.
    pub(super) fn from(&self) -> Option<u64> {
        self.oldest().map(|e| self.first(e))
    }

    /// Whether there is nothing here.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the oldest may go.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.oldest().map(|e| e.until)
    }

    /// Forgets what may go, a bounded part of it.
    pub(crate) fn forget_due(&mut self, now: Tick) {
        for _ in 0..FORGET_MAX {
            match self.oldest() {
                Some(e) if e.until <= now => self.forget_oldest(),
                _ => return,
            }
        }
    }

    /// The first entry with this number or a later one, with its own number and the positions of its records.
    pub(crate) fn numbered(
        &self,
        number: u64,
    ) -> Option<(u64, Place, &Entry, impl ExactSizeIterator<Item = u64>)> {
        let number = number.max(self.forgotten);
        let (place, entry) = self.entries.get((number - self.forgotten) as usize)?;
        Some((number, *place, entry, entry.records.iter().map(|r| self.position(*r))))
    }
}
