//! Snapshots: whole or not there.

use std::io::{self, Read as _, Write};

use super::double::Dice;
use super::*;
use crate::actors::journal::{Latest, SnapshotError, Snapshots};

/// Large enough for several frames.
fn state(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..len).map(|_| dice.roll() as u8).collect()
}

fn put<S: Snapshots>(snapshots: &mut S, at: u64, bytes: &[u8]) -> Result<u64, SnapshotError> {
    // Written as a state is: many pieces of different lengths.
    let pieces = |out: &mut dyn Write| {
        bytes.chunks(1000).try_for_each(|c| out.write_all(c)).and_then(|()| out.flush())
    };
    snapshots.put(Position(at), &mut { pieces })
}

fn read<S: Snapshots>(snapshots: &mut S) -> Option<(u64, Vec<u8>, usize)> {
    let Latest { position, mut source, passed_over } = snapshots.latest().expect("one is whole")?;
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes).expect("whole");
    Some((position.0, bytes, passed_over.len()))
}

#[test]
fn two_generations_are_kept_and_the_latest_whole_one_is_given() {
    let files = MemFiles::new();
    let mut snapshots = LocalSnapshots::new(files.clone());
    assert!(read(&mut snapshots).is_none());
    let sizes = [0, 1, 256 * 1024, 600_000];
    for (i, len) in sizes.into_iter().enumerate() {
        let (at, bytes) = (10 + i as u64, state(i as u64, len));
        assert!(put(&mut snapshots, at, &bytes).expect("written") >= len as u64 + 40);
        assert_eq!(read(&mut snapshots), Some((at, bytes, 0)));
    }
    files.put("00000000000000000099.snap.new", b"unfinished");
    assert_eq!(snapshots.gc().expect("collected"), 3);
    assert_eq!(snapshots.kept().expect("listed"), [Position(12), Position(13)]);
    assert_eq!(files.files().len(), 2);
    // The last one is damaged: the one before it serves, and it is told.
    files.flip("00000000000000000013.snap", 300_000..300_001, 1);
    assert_eq!(read(&mut snapshots), Some((12, state(2, sizes[2]), 1)));
    // None is whole: that is not the same as none.
    files.tamper("00000000000000000012.snap", |bytes| bytes.truncate(100_000));
    let e = snapshots.latest().expect_err("damaged").to_string();
    assert!(e.contains("00000000000000000013.snap, offset") && e.contains("restore it"), "{e}");
}

#[test]
fn every_flip_and_every_cut_of_a_snapshot_is_told() {
    let files = MemFiles::new();
    put(&mut LocalSnapshots::new(files.clone()), 7, &state(1, 200)).expect("written");
    let name = "00000000000000000007.snap";
    let len = files.files()[0].1;
    for i in 0..len {
        for cut in [false, true] {
            let copy = files.copy();
            match cut {
                true => copy.tamper(name, |bytes| bytes.truncate(i)),
                false => copy.flip(name, i..i + 1, 1 << (i % 8)),
            }
            let latest = LocalSnapshots::new(copy).latest();
            assert!(matches!(latest, Err(SnapshotError::Damaged(_))), "byte {i}, cut: {cut}");
        }
    }
    files.tamper(name, |bytes| bytes.push(0));
    let e = LocalSnapshots::new(files).latest().expect_err("damaged").to_string();
    assert!(e.contains("behind the end"), "{e}");
}

#[test]
fn damage_that_comes_while_it_is_read_is_told() {
    let files = MemFiles::new();
    let mut snapshots = LocalSnapshots::new(files.clone());
    let bytes = state(1, 600_000);
    put(&mut snapshots, 7, &bytes).expect("written");
    let mut latest = snapshots.latest().expect("whole").expect("there");
    files.flip("00000000000000000007.snap", 400_000..400_001, 1);
    let mut read = Vec::new();
    let e = latest.source.read_to_end(&mut read).expect_err("damaged");
    assert_eq!((e.kind(), &read[..]), (io::ErrorKind::InvalidData, &bytes[..256 * 1024]));
    assert!(latest.source.read(&mut [0; 10]).is_err(), "it does not end as if it were whole");
}

#[test]
fn a_snapshot_that_fails_leaves_the_earlier_ones() {
    let files = MemFiles::new();
    let mut snapshots = LocalSnapshots::new(files.clone());
    put(&mut snapshots, 1, b"the first").expect("written");
    let mut fails = |_: &mut dyn Write| Err(io::Error::other("the state is not well"));
    let e = snapshots.put(Position(2), &mut fails).expect_err("not filled").to_string();
    assert!(e.contains("the state is not well") && e.contains(".snap.new"), "{e}");
    files.with(|d| d.space = Some(1000));
    put(&mut snapshots, 3, &state(1, 5000)).expect_err("no space");
    for sync in 0..2 {
        files.with(|d| (d.space, d.fail_sync) = (None, Some(sync)));
        put(&mut snapshots, 1, b"another first").expect_err("not synced");
    }
    files.with(|d| d.fail_sync = None);
    let (at, bytes, _) = read(&mut snapshots).expect("there");
    assert!(at == 1 && (bytes == b"the first" || bytes == b"another first"));
}

#[test]
fn a_crash_leaves_a_whole_snapshot() {
    let files = MemFiles::new();
    let before = state(1, 3000);
    let after = state(2, 4000);
    put(&mut LocalSnapshots::new(files.clone()), 5, &before).expect("written");
    let known = (before.clone(), after.clone());
    let calls = Arc::new(Mutex::new(0_u64));
    let count = calls.clone();
    files.watch(move |_, disk| {
        *count.lock() += 1;
        for seed in 0..20 {
            let seed = *count.lock() * 20 + seed;
            let crashed = disk.crashed(seed);
            let (at, bytes, passed_over) = read(&mut LocalSnapshots::new(crashed)).expect("one is there");
            let expected = if at == 5 { &known.0 } else { &known.1 };
            assert!(bytes == *expected && passed_over == 0, "seed {seed}");
        }
    });
    put(&mut LocalSnapshots::new(files.clone()), 6, &after).expect("written");
    assert!(*calls.lock() > 4);
    for seed in 0..20 {
        let kept = read(&mut LocalSnapshots::new(files.crashed(seed))).expect("there");
        assert_eq!(kept, (6, after.clone(), 0), "put has returned");
    }
}
