//! The power goes after every single call of a long history, and what is left must open and hold what was acknowledged.

use super::double::{Call, Dice, Disk, Planted};
use super::*;
use crate::actors::journal::conformance::read_all;
use crate::actors::journal::{AppendError, Record, Segment, Writer};
use std::collections::VecDeque;

/// What a caller knows at a moment.
#[derive(Clone, Default, Debug)]
pub(super) struct Known {
    /// Position of the snapshot that a restart would begin with.
    start: u64,
    epoch: u32,
    last: u64,
    /// Acknowledged records after `start`.
    acknowledged: VecDeque<Record>,
    /// The one that is on its way: operations and body.
    in_flight: Option<(u32, Vec<u8>)>,
}

impl Known {
    fn acknowledge(&mut self, position: Position, ops: u32, body: Vec<u8>) {
        assert_eq!(position.0, self.last + 1, "positions are dense");
        self.last = position.0;
        let epoch = self.epoch;
        self.acknowledged.push_back(Record { position, epoch, ops, body: body.into() });
        self.in_flight = None;
    }

    /// The one on its way is known not to have arrived.
    pub(super) fn forget_in_flight(&mut self) {
        self.in_flight = None;
    }

    /// What is wrong with a directory, or how many records were there.
    pub(super) fn check(&self, files: &MemFiles) -> Result<usize, String> {
        let journal = match LocalJournal::open(files.clone(), small(), Position(self.start)) {
            Ok(journal) => journal,
            Err(e) => return Err(format!("refused: {e}")),
        };
        let found = journal.recovered().last.0;
        if found < self.last || found > self.last + u64::from(self.in_flight.is_some()) {
            return Err(format!("the journal ends at {found}, acknowledged was {}", self.last));
        }
        let mut expected = self.acknowledged.iter().cloned().collect::<Vec<_>>();
        if let Some((ops, body)) = self.in_flight.as_ref().filter(|_| found > self.last) {
            let (position, epoch) = (Position(found), if *ops == 0 { self.epoch + 1 } else { self.epoch });
            expected.push(Record { position, epoch, ops: *ops, body: body.clone().into() });
        }
        let read = read_all(&mut journal.reader().past_cache(), Position(self.start));
        if read != expected {
            return Err("the records are not those that were appended".into());
        }
        Ok(read.len())
    }

    /// A second life: append, lose the power at once, and everything is there.
    pub(super) fn live_on(&self, files: &MemFiles, seed: u64) -> Result<(), String> {
        let mut journal = LocalJournal::open(files.clone(), small(), Position(self.start))
            .map_err(|e| format!("refused: {e}"))?;
        let before = read_all(&mut journal.reader(), Position(self.start));
        let (mut writer, fence) = journal.fence(self.epoch + 2, "next").map_err(|e| e.to_string())?;
        let last = writer.append(b"after the crash", 1).map_err(|e| e.to_string())?;
        let again = LocalJournal::open(files.crashed(seed), small(), Position(self.start))
            .map_err(|e| format!("refused after a second crash: {e}"))?;
        let after = read_all(&mut again.reader(), Position(self.start));
        let kept = after.starts_with(&before) && after.len() == before.len() + 2;
        let ends = after.last().is_some_and(|r| r.position == last && last == fence.next());
        if kept && ends { Ok(()) } else { Err("lost in a second crash".into()) }
    }
}

/// A history of appends, restarts, snapshots and removals.
pub(super) struct History {
    pub(super) files: MemFiles,
    pub(super) known: Arc<Mutex<Known>>,
    /// Files of segments that are used again.
    spares_max: usize,
    dice: Dice,
}

impl History {
    pub(super) fn new(seed: u64) -> Self {
        let spares_max = small().spares_max;
        Self { files: MemFiles::new(), known: Arc::default(), spares_max, dice: Dice(seed) }
    }

    pub(super) fn start(&mut self) -> Option<LocalWriter<MemFiles>> {
        let start = Position(self.known.lock().start);
        let options = Options { spares_max: self.spares_max, ..small() };
        let mut journal = LocalJournal::open(self.files.clone(), options, start).ok()?;
        let epoch = {
            let mut known = self.known.lock();
            known.in_flight = Some((0, b"n".to_vec()));
            known.epoch + 1
        };
        let (writer, fence) = journal.fence(epoch, "n").ok()?;
        let mut known = self.known.lock();
        known.epoch = epoch;
        known.acknowledge(fence, 0, b"n".to_vec());
        Some(writer)
    }

    pub(super) fn append(&mut self, writer: &mut LocalWriter<MemFiles>) -> Result<(), AppendError> {
        let dice = &mut self.dice;
        let len = if dice.below(20) == 0 { 1500 + dice.below(2000) } else { dice.below(300) };
        // Zeroes at the end are what a torn write is best at hiding.
        let mut body: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
        body[len - dice.below(len + 1)..].fill(0);
        let ops = 1 + dice.below(9) as u32;
        self.known.lock().in_flight = Some((ops, body.clone()));
        let position = writer.append(&body, ops)?;
        self.known.lock().acknowledge(position, ops, body);
        Ok(())
    }

    /// A snapshot covers everything up to now: the segments before it go.
    fn trim(&mut self, writer: &mut LocalWriter<MemFiles>) {
        {
            let mut known = self.known.lock();
            known.start = known.last;
            known.acknowledged.clear();
        }
        let last = writer.last();
        for Segment { first, .. } in writer.segments().into_iter().filter(|s| s.sealed && s.last <= last) {
            writer.remove(first).expect("removed");
        }
    }

    fn run(&mut self, operations: usize) {
        let mut writer = self.start().expect("a new journal opens");
        for i in 1..operations {
            match i {
                _ if i % 331 == 0 => {
                    drop(writer);
                    writer = self.start().expect("it opens again");
                }
                _ if i % 40 == 0 => self.trim(&mut writer),
                _ => self.append(&mut writer).expect("there is space"),
            }
        }
    }
}

/// The first thing that goes wrong when the power goes after each call, with so many ways to go.
fn first_loss(history: u64, operations: usize, seeds: u64, planted: Planted) -> Result<[usize; 7], String> {
    first_loss_of(History::new(history), operations, seeds, planted)
}

fn first_loss_of(
    mut history: History,
    operations: usize,
    seeds: u64,
    planted: Planted,
) -> Result<[usize; 7], String> {
    history.files.with(|d| d.planted = planted);
    let known = history.known.clone();
    let outcome = Arc::new(Mutex::new((None::<String>, [0_usize; 7])));
    let (result, mut n) = (outcome.clone(), 0_u64);
    history.files.watch(move |call, disk| {
        let (known, mut result) = (known.lock().clone(), result.lock());
        result.1[call as usize] += 1;
        n += 1;
        if result.0.is_some() {
            return;
        }
        for seed in 0..seeds {
            let seed = n * seeds + seed;
            let wrong = judge(&known, disk, seed).err();
            result.0 = wrong.map(|e| format!("after call {n} ({call:?}), seed {seed}: {e}"));
            if result.0.is_some() {
                return;
            }
        }
    });
    history.run(operations);
    let (wrong, calls) = outcome.lock().clone();
    wrong.map_or(Ok(calls), Err)
}

fn judge(known: &Known, disk: &Disk, seed: u64) -> Result<(), String> {
    let files = disk.crashed(seed);
    known.check(&files)?;
    // Every few times, or it takes too long.
    if seed.is_multiple_of(9) { known.live_on(&files, seed / 9) } else { Ok(()) }
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_goes() {
    let anew = History { spares_max: 0, ..History::new(7) };
    let calls = first_loss_of(anew, 2000, 5, Planted::Nothing).unwrap_or_else(|e| panic!("{e}"));
    let [write, sync_data, set_len, create, rename, remove, sync_dir] = calls;
    assert!(write > 1900 && sync_data > 1900 && sync_dir > 100, "{calls:?}");
    assert!(set_len > 50 && create > 50 && rename > 50 && remove > 50, "{calls:?}");
    assert_eq!(Call::SyncDir as usize, 6);
}

#[test]
fn nothing_is_lost_either_where_files_are_used_again() {
    let calls = first_loss(7, 2000, 5, Planted::Nothing).unwrap_or_else(|e| panic!("{e}"));
    let [write, _, set_len, create, rename, remove, sync_dir] = calls;
    assert!(write > 1900 && set_len > 50 && rename > 150 && sync_dir > 200, "{calls:?}");
    assert!(create < 20 && remove < 20, "files are used again: {calls:?}");
}

#[test]
fn other_histories_lose_nothing_either() {
    for seed in 100..110 {
        first_loss(seed, 100, 3, Planted::Nothing).unwrap_or_else(|e| panic!("history {seed}: {e}"));
    }
}

#[test]
fn a_journal_that_forgets_a_sync_is_caught() {
    let e = first_loss(7, 100, 3, Planted::NoSyncData).expect_err("data that is not synced is lost");
    assert!(e.contains("acknowledged was") || e.contains("refused"), "{e}");
    let e = first_loss(7, 300, 3, Planted::NoSyncDir).expect_err("names that are not synced are lost");
    assert!(e.contains("acknowledged was") || e.contains("refused") || e.contains("missing"), "{e}");
}

#[test]
fn a_failed_sync_ends_the_journal_and_loses_nothing() {
    let mut failed = 0;
    for nth in 0.. {
        let mut history = History::new(nth as u64);
        history.files.with(|d| d.fail_sync = Some(nth));
        let Some(mut writer) = history.start() else {
            let known = history.known.lock().clone();
            known.live_on(&history.files.copy(), 0).unwrap_or_else(|e| panic!("sync {nth}: {e}"));
            continue;
        };
        let broken = (0..60).find_map(|_| history.append(&mut writer).err());
        if history.files.with(|d| d.fail_sync.is_some()) {
            break;
        }
        failed += 1;
        let Some(AppendError::Broken(why)) = broken else { panic!("sync {nth} failed, but: {broken:?}") };
        assert!(why.contains("mem/") && why.contains("sync"), "{why}");
        // For ever, although the disk is well again.
        assert!(matches!(writer.append(b"x", 1), Err(AppendError::Broken(_))));
        let known = history.known.lock().clone();
        // Its pages can still be read. They are not on the disk, and the next process must not build on them.
        drop(writer);
        for seed in 0..20 {
            let readable = history.files.copy();
            known.live_on(&readable, seed).unwrap_or_else(|e| panic!("sync {nth}, seed {seed}: {e}"));
            let crashed = history.files.crashed(seed);
            known.check(&crashed).unwrap_or_else(|e| panic!("sync {nth}, seed {seed}: {e}"));
        }
    }
    assert!(failed > 50, "only {failed} syncs failed");
}
