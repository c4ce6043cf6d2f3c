//! Decisions become records.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::super::spill::{Bits, Run};
use super::{FETCHED, RECORDED, Tag, Whole};
use crate::core::time::Tick;
use crate::planted;

/// Tasks of a lane that are in a record and not in memory: the first and the last; between them may be others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spilled {
    pub(crate) lane: u32,
    pub(crate) seqs: (u64, u64),
    pub(crate) tasks: u64,
}

/// A record that gets nothing more.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) body: Vec<u8>,
    /// Decisions in it.
    pub(crate) ops: u32,
    pub(crate) spilled: Vec<Spilled>,
    /// Tasks of which it has the outcome.
    pub(crate) finished: Vec<u64>,
}

/// Decisions that have not been handed to the journal.
#[derive(Debug)]
pub(crate) struct Ops {
    /// A record of this length gets no more decisions; the last one may be as long as a message. Bytes.
    record_bytes: usize,
    buf: Vec<u8>,
    count: u32,
    spilled: Vec<Spilled>,
    finished: Vec<u64>,
    /// Where in `spilled` each lane is.
    places: HashMap<u32, usize, foldhash::fast::FixedState>,
    /// Records that were full before.
    full: VecDeque<Sealed>,
    full_bytes: usize,
    /// The group that goes on.
    group: Option<Group>,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    start: usize,
    tag: Tag,
    lane: u32,
    watcher: u32,
    items: u16,
    seq: u64,
    /// Results of the queue, as the next item takes for granted.
    next: u64,
}

impl Ops {
    pub(crate) fn new(record_bytes: usize) -> Self {
        let (buf, count, spilled, finished, full, full_bytes, group) = Default::default();
        let places = HashMap::with_hasher(foldhash::fast::FixedState::default());
        Self { record_bytes, buf, count, spilled, finished, places, full, full_bytes, group }
    }

    /// Forgets what has been decided.
    pub(crate) fn clear(&mut self) {
        self.buf.clear();
        self.full.clear();
        self.spilled.clear();
        self.finished.clear();
        self.places.clear();
        (self.count, self.full_bytes, self.group) = (0, 0, None);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && self.full.is_empty()
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> usize {
        self.full_bytes + self.buf.len() + self.finished.len() * size_of::<u64>()
    }

    /// Takes the records, the oldest first: one, unless it would be too long. `spare` is
    /// filled next.
    pub(crate) fn seal(&mut self, now: Tick, spare: Vec<u8>) -> VecDeque<Sealed> {
        self.rotate(spare);
        self.full_bytes = 0;
        let mut records = std::mem::take(&mut self.full);
        for record in &mut records {
            if let Some(time) = record.body.first_chunk_mut() {
                *time = now.0.to_le_bytes();
            }
        }
        records
    }

    fn rotate(&mut self, spare: Vec<u8>) {
        self.close();
        let body = std::mem::replace(&mut self.buf, spare);
        self.buf.clear();
        let (ops, spilled) = (std::mem::take(&mut self.count), std::mem::take(&mut self.spilled));
        let finished = Vec::with_capacity(self.finished.len()); // the next record will be about as long
        let finished = std::mem::replace(&mut self.finished, finished);
        self.places.clear();
        if ops > 0 {
            self.full_bytes += body.len();
            self.full.push_back(Sealed { body, ops, spilled, finished });
        }
    }

    pub(crate) fn epoch(&mut self, epoch: u32) {
        self.group(Tag::Epoch, 0);
        self.number(u64::from(epoch));
    }

    pub(crate) fn lane(&mut self, lane: u32, queue: &str, labels: &[String]) {
        self.group(Tag::Lane, 0);
        self.number(u64::from(lane));
        self.put(queue.as_bytes());
        self.number(labels.len() as u64);
        labels.iter().for_each(|l| self.put(l.as_bytes()));
    }

    /// `spilled`: the task is not in memory.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        lane: u32,
        watcher: u32,
        seq: u64,
        ext: &[u8],
        payload: &[u8],
        spilled: bool,
    ) {
        let tag = if spilled { Tag::Spilled } else { Tag::Submit };
        match &mut self.group {
            // The next one of the group: its sequence follows from its place.
            Some(g)
                if g.tag == tag
                    && (g.lane, g.watcher) == (lane, watcher)
                    && g.seq + 1 == seq
                    && g.items < u16::MAX
                    && self.buf.len() < self.record_bytes =>
            {
                if planted::is("batch_tail_lost") && g.items == 3 {
                    return;
                }
                g.seq = seq;
                g.items += 1;
                self.count += 1;
            }
            _ => {
                self.group_of(tag, lane, watcher, seq);
                self.number(seq);
            }
        }
        if spilled {
            self.note_spilled(lane, seq);
        }
        self.number(ext.len() as u64);
        self.number(payload.len() as u64);
        self.buf.extend_from_slice(ext);
        self.buf.extend_from_slice(payload);
    }

    fn note_spilled(&mut self, lane: u32, seq: u64) {
        let at = *self.places.entry(lane).or_insert_with(|| {
            self.spilled.push(Spilled { lane, seqs: (seq, seq), tasks: 0 });
            self.spilled.len() - 1
        });
        let s = &mut self.spilled[at];
        s.seqs.1 = seq;
        s.tasks += 1;
    }

    pub(crate) fn bits(&mut self, ((page, lane, watcher), mask): Bits) {
        self.group_of(Tag::Bits, lane, watcher, 0);
        self.number(page);
        self.number(mask);
    }

    pub(crate) fn run(&mut self, lane: u32, run: Run) {
        self.group_of(Tag::Run, lane, 0, 0);
        [run.records.0, run.records.1, run.seqs.0, run.seqs.1, run.bytes as u64, run.left]
            .into_iter()
            .for_each(|n| self.number(n));
    }

    pub(crate) fn later(&mut self, lane: u32, watcher: u32, seq: u64, due: Tick, ext: &[u8], payload: &[u8]) {
        self.group_of(Tag::Later, lane, watcher, seq);
        self.number(seq);
        self.number(due.0);
        self.put(ext);
        self.put(payload);
    }

    /// `lane` stands for the queue, which had `before` results.
    #[inline]
    pub(crate) fn complete(&mut self, lane: u32, before: u64, seq: u64, attempt: u32, result: &[u8]) {
        let last = match &mut self.group {
            // The next one of the group: the count follows from its place.
            Some(g)
                if g.tag == Tag::Complete
                    && (g.lane, g.next) == (lane, before)
                    && g.items < u16::MAX
                    && self.buf.len() < self.record_bytes =>
            {
                g.items += 1;
                self.count += 1;
                g.next += 1;
                std::mem::replace(&mut g.seq, seq)
            }
            _ => {
                self.group_by(Tag::Complete, lane, 0, seq);
                self.number(u64::from(lane));
                self.number(before);
                if let Some(g) = &mut self.group {
                    g.next = before + 1;
                }
                0
            }
        };
        self.difference(seq, last);
        self.number(u64::from(attempt));
        self.put(result);
        self.finished.push(seq);
    }

    pub(crate) fn retry(&mut self, seq: u64, attempt: u32, failed: u16, due: Option<Tick>, error: &str) {
        self.settled(Tag::Retry, seq);
        self.number(u64::from(attempt));
        self.number(u64::from(failed));
        self.number(due.map_or(0, |d| d.0));
        self.put(error.as_bytes());
    }

    pub(crate) fn bury(&mut self, seq: u64, attempt: u32, failed: u16, error: &str) {
        self.settled(Tag::Bury, seq);
        self.number(u64::from(attempt));
        self.number(u64::from(failed));
        self.put(error.as_bytes());
    }

    pub(crate) fn cancel(&mut self, seq: u64) {
        self.settled(Tag::Cancel, seq);
        self.finished.push(seq);
    }

    pub(crate) fn redrive(&mut self, seq: u64) {
        self.settled(Tag::Redrive, seq);
    }

    pub(crate) fn purge(&mut self, seq: u64) {
        self.settled(Tag::Purge, seq);
    }

    pub(crate) fn count(&mut self, lane: u32, completed: u64) {
        self.group(Tag::Count, 0);
        self.number(u64::from(lane));
        self.number(completed);
    }

    pub(crate) fn task(&mut self, w: &Whole<'_>) {
        self.group_of(Tag::Task, w.lane, w.watcher, w.seq);
        self.number(w.seq);
        let recorded = if w.record > 0 { RECORDED } else { 0 };
        self.buf.push(w.state as u8 | recorded | if w.fetched { FETCHED } else { 0 });
        self.number(u64::from(w.attempt));
        self.number(u64::from(w.failed));
        self.number(u64::from(w.attempts_max));
        self.number(w.time.0);
        self.put(w.error.as_bytes());
        self.number(u64::from(w.ext_len));
        self.put(w.bytes);
        if w.record > 0 {
            self.number(w.record);
        }
    }

    /// `lane` stands for the queue. `records` are the positions of the records, one for each task of the mask or one for all.
    pub(crate) fn outcomes(
        &mut self,
        lane: u32,
        page: u64,
        mask: u64,
        until: Tick,
        records: impl ExactSizeIterator<Item = u64>,
    ) {
        self.group_of(Tag::Outcomes, lane, 0, 0);
        [page, mask, until.0, records.len() as u64].into_iter().for_each(|n| self.number(n));
        let mut before = 0;
        for record in records {
            self.difference(record, std::mem::replace(&mut before, record));
        }
    }

    /// The beginning of an item about a task that is known.
    #[inline]
    fn settled(&mut self, tag: Tag, seq: u64) {
        let last = self.group.map_or(0, |g| g.seq);
        let before = if self.group_by(tag, 0, 0, seq) { 0 } else { last };
        self.difference(seq, before);
    }

    #[inline]
    fn difference(&mut self, seq: u64, before: u64) {
        let difference = seq.wrapping_sub(before) as i64;
        self.number(((difference << 1) ^ (difference >> 63)) as u64);
    }

    /// Goes on with a group of tasks of one lane that one session watches, or begins it.
    #[inline]
    fn group_of(&mut self, tag: Tag, lane: u32, watcher: u32, seq: u64) {
        if self.group_by(tag, lane, watcher, seq) {
            self.number(u64::from(lane));
            self.number(u64::from(watcher));
        }
    }

    #[inline]
    fn group(&mut self, tag: Tag, seq: u64) {
        self.group_by(tag, 0, 0, seq);
    }

    /// Goes on with the group, or begins one. Gives whether it began one.
    #[inline]
    fn group_by(&mut self, tag: Tag, lane: u32, watcher: u32, seq: u64) -> bool {
        if let Some(g) = &mut self.group
            && g.tag == tag
            && (g.lane, g.watcher) == (lane, watcher)
            && g.items < u16::MAX
            && !matches!(tag, Tag::Submit | Tag::Spilled | Tag::Complete)
            && self.buf.len() < self.record_bytes
        {
            g.items += 1;
            g.seq = seq;
            self.count += 1;
            return false;
        }
        if self.buf.len() >= self.record_bytes {
            self.rotate(Vec::new());
        }
        self.close();
        self.count += 1;
        if self.buf.is_empty() {
            self.buf.extend_from_slice(&[0; 8]); // the time, known when the record is sealed
        }
        self.group = Some(Group { start: self.buf.len(), tag, lane, watcher, items: 1, seq, next: 0 });
        self.buf.extend_from_slice(&[tag as u8, 0, 0]);
        true
    }

    fn close(&mut self) {
        if let Some(g) = self.group.take() {
            self.buf[g.start + 1..g.start + 3].copy_from_slice(&g.items.to_le_bytes());
        }
    }

    #[inline]
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.buf.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.buf.push(n as u8);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.buf.extend_from_slice(bytes);
    }
}
