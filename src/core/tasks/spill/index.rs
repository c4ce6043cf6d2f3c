//! Which tasks are on disk: one bit each.

use std::collections::BTreeMap;

use hive_proto::SessionId;

/// What an entry of the index takes, with its share of the tree's nodes and of a snapshot's copy, bytes.
const ENTRY_BYTES: usize = 72;

/// 64 consecutive sequences: which of them are on disk, of one lane and for one watcher.
pub(crate) type Bits = ((u64, u32, u32), u64);

/// Which tasks are on disk.
#[derive(Debug, Default)]
pub(crate) struct Index(BTreeMap<(u64, u32, u32), u64>);

impl Index {
    /// Adds some of 64 sequences.
    pub(crate) fn add(&mut self, page: u64, lane: u32, watcher: SessionId, mask: u64) {
        *self.0.entry((page, lane, watcher.0)).or_default() |= mask;
    }

    fn place(&self, seq: u64) -> Option<(u64, u32, u32)> {
        let (page, bit) = (seq / 64, 1 << (seq % 64));
        let mut entries = self.0.range((page, 0, 0)..=(page, u32::MAX, u32::MAX));
        entries.find(|(_, mask)| **mask & bit != 0).map(|(place, _)| *place)
    }

    /// Lane and watcher of a task that is on disk.
    pub(crate) fn find(&self, seq: u64) -> Option<(u32, SessionId)> {
        self.place(seq).map(|(_, lane, watcher)| (lane, SessionId(watcher)))
    }

    pub(crate) fn take(&mut self, seq: u64) -> Option<(u32, SessionId)> {
        let place = self.place(seq)?;
        let mask = self.0.get_mut(&place)?;
        *mask &= !(1 << (seq % 64));
        if *mask == 0 {
            self.0.remove(&place);
        }
        Some((place.1, SessionId(place.2)))
    }

    /// Memory held, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.0.len() * ENTRY_BYTES
    }

    /// All below a sequence.
    pub(crate) fn below(&self, seq: u64) -> Vec<Bits> {
        let Some(last) = seq.checked_sub(1) else { return Vec::new() };
        let entries = self.0.range(..=(last / 64, u32::MAX, u32::MAX));
        let upto = |page: u64| if page < last / 64 { u64::MAX } else { u64::MAX >> (63 - last % 64) };
        let cut = entries.map(|(place, mask)| (*place, mask & upto(place.0)));
        cut.filter(|(_, mask)| *mask != 0).collect()
    }
}
