//! A journal in memory whose faults come from a seed: for tests of what stands above a journal. It behaves as a replicated store does:
//! an append may end without an answer, and land at once, later, or never; resolving takes a barrier; another node may fence.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::actors::journal::{
    AppendError, Journal, OpenError, Position, ReadError, Reader, Record, RemoveError, Resolved, Segment,
    Writer,
};

/// Records of a segment.
const SEGMENT_RECORDS: usize = 16;
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// Numbers from a seed (splitmix64): the same ones each time.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    fn hits(&mut self, per_mille: u32) -> bool {
        self.below(1000) < per_mille as usize
    }
}

/// How often appends go wrong, each of 1,000.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// [`AppendError::NotSent`].
    pub not_sent: u32,
    /// [`AppendError::Full`]; space is low from then on, until the reserve is restored.
    pub full: u32,
    /// [`AppendError::Unknown`], and it is durable at once.
    pub landed: u32,
    /// [`AppendError::Unknown`], and it becomes durable only when it is resolved.
    pub late: u32,
    /// [`AppendError::Unknown`], and nothing whole has arrived: lost, or torn.
    pub lost: u32,
    /// Another node has fenced, and written.
    pub fenced: u32,
    /// [`AppendError::Broken`] until [`SimJournal::restart`]; the append has arrived or not.
    pub broken: u32,
}

/// The journal. Clones are the same journal, as its other nodes see it.
#[derive(Clone, Debug)]
pub struct SimJournal(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    dice: Dice,
    faults: Faults,
    /// Segments by first position.
    segments: BTreeMap<u64, Vec<Record>>,
    last: u64,
    epoch: u32,
    doubt: Option<Doubt>,
    low_space: bool,
    broken: bool,
}

/// An append without an answer.
#[derive(Debug)]
enum Doubt {
    Landed(Position),
    Late(Bytes, u32),
    Lost,
}

impl SimJournal {
    /// An empty journal. The same seed and calls give the same faults.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State {
            dice: Dice(seed),
            faults,
            segments: BTreeMap::new(),
            last: 0,
            epoch: 0,
            doubt: None,
            low_space: false,
            broken: false,
        })))
    }

    /// What a process finds that starts after its predecessor has crashed: what was in doubt has landed or not.
    pub fn restart(&self) -> Self {
        let mut state = self.0.lock();
        state.settle();
        (state.broken, state.low_space) = (false, false);
        self.clone()
    }

    /// Sets other faults.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }
}

impl State {
    fn push(&mut self, epoch: u32, ops: u32, body: Bytes) -> Position {
        self.last += 1;
        let position = Position(self.last);
        let full = self.segments.last_entry().is_none_or(|s| s.get().len() >= SEGMENT_RECORDS);
        let first = if full { self.last } else { self.segments.last_key_value().map_or(1, |(k, _)| *k) };
        self.segments.entry(first).or_default().push(Record { position, epoch, ops, body });
        position
    }

    /// Decides what is in doubt. Nothing lands later than that.
    fn settle(&mut self) -> Resolved {
        match self.doubt.take() {
            Some(Doubt::Landed(position)) => Resolved::Landed(position),
            Some(Doubt::Late(body, ops)) => Resolved::Landed(self.push(self.epoch, ops, body)),
            Some(Doubt::Lost) | None => Resolved::Lost,
        }
    }

    fn may_append(&self, epoch: u32) -> Result<(), AppendError> {
        match self.broken {
            _ if epoch != self.epoch => Err(AppendError::Fenced(self.epoch)),
            true => Err(AppendError::Broken("a fault was injected".into())),
            false => Ok(()),
        }
    }

    fn fence(&mut self, node: &str) -> Position {
        self.settle();
        self.push(self.epoch, 0, Bytes::copy_from_slice(node.as_bytes()))
    }

    fn append(&mut self, body: &[u8], ops: u32) -> Result<Position, AppendError> {
        if self.doubt.is_some() {
            return Err(AppendError::Unknown);
        }
        let (body, faults) = (Bytes::copy_from_slice(body), self.faults);
        if self.dice.hits(faults.not_sent) {
            return Err(AppendError::NotSent);
        }
        if self.dice.hits(faults.full) {
            self.low_space = true;
            return Err(AppendError::Full);
        }
        if self.dice.hits(faults.fenced) {
            self.epoch += 1;
            self.fence("another");
            self.push(self.epoch, 1, Bytes::from_static(b"written by another"));
            return Err(AppendError::Fenced(self.epoch));
        }
        if self.dice.hits(faults.broken) {
            if self.dice.hits(500) {
                self.push(self.epoch, ops, body);
            }
            self.broken = true;
            return Err(AppendError::Broken("a fault was injected".into()));
        }
        self.doubt = Some(if self.dice.hits(faults.landed) {
            Doubt::Landed(self.push(self.epoch, ops, body))
        } else if self.dice.hits(faults.late) {
            Doubt::Late(body, ops)
        } else if self.dice.hits(faults.lost) {
            Doubt::Lost
        } else {
            return Ok(self.push(self.epoch, ops, body));
        });
        Err(AppendError::Unknown)
    }

    fn get(&self, at: Position) -> Result<Record, ReadError> {
        if at.0 > self.last {
            return Err(ReadError::NotYet { asked: at, last: Position(self.last) });
        }
        let segment = self.segments.range(..=at.0).next_back();
        let record = segment.and_then(|(first, records)| records.get((at.0 - first) as usize));
        record.cloned().ok_or(ReadError::Gone(at))
    }
}

impl Journal for SimJournal {
    type Writer = SimWriter;
    type Reader = SimReader;

    fn fence(&mut self, epoch: u32, node: &str) -> Result<(SimWriter, Position), OpenError> {
        let mut state = self.0.lock();
        if epoch <= state.epoch {
            return Err(OpenError::Stale { asked: epoch, rules: state.epoch });
        }
        let ruled = state.epoch;
        state.may_append(ruled).map_err(OpenError::Fence)?;
        state.settle();
        state.epoch = epoch;
        let at = state.fence(node);
        Ok((SimWriter { journal: self.clone(), epoch }, at))
    }

    fn epoch(&self) -> u32 {
        self.0.lock().epoch
    }

    fn reader(&self) -> SimReader {
        SimReader(self.clone())
    }
}

/// A writer of a [`SimJournal`].
#[derive(Debug)]
pub struct SimWriter {
    journal: SimJournal,
    epoch: u32,
}

impl Writer for SimWriter {
    fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX
    }

    fn append(&mut self, body: &[u8], ops: u32) -> Result<Position, AppendError> {
        if body.len() > BATCH_BYTES_MAX || ops == 0 {
            return Err(AppendError::Invalid { bytes: body.len(), ops, bytes_max: BATCH_BYTES_MAX });
        }
        let mut state = self.journal.0.lock();
        state.may_append(self.epoch)?;
        state.append(body, ops)
    }

    fn resolve(&mut self) -> Result<Resolved, AppendError> {
        let mut state = self.journal.0.lock();
        state.may_append(self.epoch)?;
        let (not_sent, unknown) = (state.faults.not_sent, state.faults.late);
        if state.dice.hits(not_sent) {
            return Err(AppendError::NotSent);
        }
        if state.dice.hits(unknown) {
            return Err(AppendError::Unknown);
        }
        let resolved = state.settle();
        let epoch = self.epoch;
        state.push(epoch, 0, Bytes::from_static(b"barrier"));
        Ok(resolved)
    }

    fn last(&self) -> Position {
        Position(self.journal.0.lock().last)
    }

    fn low_space(&self) -> bool {
        self.journal.0.lock().low_space
    }

    fn restore_reserve(&mut self) -> bool {
        let mut state = self.journal.0.lock();
        state.low_space = state.low_space && state.dice.hits(500);
        !state.low_space
    }

    fn segments(&self) -> Vec<Segment> {
        let state = self.journal.0.lock();
        let open = state.segments.keys().next_back().copied();
        let tell = |(first, records): (&u64, &Vec<Record>)| Segment {
            first: Position(*first),
            last: Position(first + records.len() as u64 - 1),
            bytes: records.iter().map(|r| r.body.len() as u64).sum(),
            sealed: Some(*first) != open,
        };
        state.segments.iter().map(tell).collect()
    }

    fn remove(&mut self, first: Position) -> Result<(), RemoveError> {
        let mut state = self.journal.0.lock();
        if state.epoch != self.epoch {
            return Err(RemoveError::Fenced(state.epoch));
        }
        if state.segments.keys().next_back() == Some(&first.0) {
            return Err(RemoveError::Open(first));
        }
        state.segments.remove(&first.0).map(|_| ()).ok_or(RemoveError::Unknown(first))
    }
}

/// A reader of a [`SimJournal`].
#[derive(Clone, Debug)]
pub struct SimReader(SimJournal);

impl Reader for SimReader {
    fn get(&mut self, at: Position) -> Result<Record, ReadError> {
        self.0.0.lock().get(at)
    }

    fn last(&self) -> Position {
        Position(self.0.0.lock().last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::journal::conformance::{self, Store, read_all, resolve};

    struct Sim(SimJournal);

    impl Store for Sim {
        type Journal = SimJournal;

        fn open(&mut self, _start: Position) -> SimJournal {
            self.0.restart()
        }
    }

    const FAULTS: Faults =
        Faults { not_sent: 100, full: 50, landed: 100, late: 100, lost: 100, fenced: 0, broken: 0 };

    #[test]
    fn the_journal_in_memory_conforms() {
        conformance::all(|| Sim(SimJournal::new(0, Faults::default())));
    }

    #[test]
    fn with_faults_it_conforms_as_well() {
        for seed in 0..10 {
            let mut n = seed * 100;
            conformance::all(|| {
                n += 1;
                Sim(SimJournal::new(n, FAULTS))
            });
        }
    }

    /// What a writer sees of 1,000 appends, and whether the journal holds exactly what it was told.
    fn history(seed: u64, faults: Faults) -> Vec<String> {
        let mut journal = SimJournal::new(seed, faults);
        let (mut writer, _) = journal.fence(1, "n").expect("fenced");
        let (mut seen, mut told) = (Vec::new(), BTreeMap::new());
        for i in 0..1000_u32 {
            let done = writer.append(&i.to_le_bytes(), 1);
            seen.push(format!("{done:?}"));
            let landed = match done {
                Ok(position) => Some(position),
                Err(AppendError::Unknown) => match resolve(&mut writer) {
                    Resolved::Landed(position) => Some(position),
                    Resolved::Lost => None,
                },
                Err(AppendError::Fenced(_) | AppendError::Broken(_)) => break,
                Err(_) => None,
            };
            told.extend(landed.map(|p| (p, i)));
        }
        let all = read_all(&mut journal.reader(), Position::NONE);
        let own = all.iter().filter(|r| r.ops == 1 && r.epoch == 1);
        let own: BTreeMap<_, _> =
            own.map(|r| (r.position, u32::from_le_bytes(r.body[..].try_into().expect("four")))).collect();
        let in_doubt = seen.last().is_some_and(|s| s.contains("Broken"));
        assert!(own == told || in_doubt && own.len() == told.len() + 1, "seed {seed}");
        seen
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_all_of_them() {
        let all = Faults { fenced: 1, broken: 1, ..FAULTS };
        assert_eq!(history(3, all), history(3, all));
        let seen: Vec<String> = (0..30).flat_map(|seed| history(seed, all)).collect();
        for kind in ["Ok", "NotSent", "Full", "Unknown", "Fenced(2)", "Broken"] {
            assert!(seen.iter().any(|s| s.contains(kind)), "{kind}");
        }
    }

    #[test]
    fn what_is_in_doubt_is_settled_by_a_restart_or_another_fence() {
        for (fault, lands) in [
            (Faults { landed: 1000, ..Faults::default() }, true),
            (Faults { late: 1000, ..Faults::default() }, true),
            (Faults { lost: 1000, ..Faults::default() }, false),
        ] {
            let mut journal = SimJournal::new(1, fault);
            let (mut writer, fence) = journal.fence(1, "n").expect("fenced");
            assert_eq!(writer.append(b"x", 1), Err(AppendError::Unknown));
            assert_eq!(writer.append(b"y", 1), Err(AppendError::Unknown), "not before it is resolved");
            let (_, second) = journal.fence(2, "m").expect("fenced");
            assert_eq!(second.0 - fence.0, 1 + u64::from(lands), "{fault:?}");
            assert_eq!(writer.resolve(), Err(AppendError::Fenced(2)));
        }
    }
}
