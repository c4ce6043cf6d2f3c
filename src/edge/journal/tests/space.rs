//! The disk is full, at any moment.

use super::crash::History;
use super::*;
use crate::actors::journal::conformance::read_all;
use crate::actors::journal::{AppendError, OpenError, Segment, Writer};

#[test]
fn a_full_disk_loses_nothing_and_is_survived() {
    let (mut full, mut low) = (0, 0);
    for space in (100..40_000).step_by(173) {
        let mut history = History::new(space as u64);
        history.files.with(|d| (d.space, d.full_lies) = (Some(space), space % 2 == 0));
        let Some(mut writer) = history.start() else { continue };
        let mut room = 0;
        let e = loop {
            match history.append(&mut writer) {
                Ok(()) => room += usize::from(writer.low_space()),
                Err(e) => break e,
            }
        };
        assert_eq!(e, AppendError::Full, "with {space} bytes");
        assert!(writer.low_space() && !writer.restore_reserve(), "with {space} bytes");
        full += 1;
        low += room;
        // Certainly not durable: not with the power gone either, whatever the body ends with.
        let mut known = history.known.lock().clone();
        known.forget_in_flight();
        for seed in 0..8 {
            let crashed = history.files.crashed(seed);
            known.check(&crashed).unwrap_or_else(|e| panic!("with {space} bytes, seed {seed}: {e}"));
        }
        history.files.with(|d| d.space = None);
        assert!(writer.restore_reserve() && !writer.low_space());
        for _ in 0..5 {
            history.append(&mut writer).expect("there is space again");
        }
        drop(writer);
        let mut known = history.known.lock().clone();
        known.forget_in_flight();
        known.check(&history.files).unwrap_or_else(|e| panic!("with {space} bytes: {e}"));
    }
    assert!(full > 150, "{full}");
    // The reserve has room for some appends more after the caller is told.
    assert!(low > full * 10, "{low} appends with the reserve of {full} disks");
}

#[test]
fn space_that_is_as_good_as_gone_is_not_kept_again() {
    let files = MemFiles::new();
    files.with(|d| d.space = Some(30_000));
    let mut journal = LocalJournal::open(files.clone(), small(), Position::NONE).expect("opens");
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    while !writer.low_space() {
        writer.append(&[1; 500], 1).expect("space");
    }
    assert!(!files.files().iter().any(|(name, _)| name == "reserve"));
    // One reserve is there, two are not: it would be gone with the next append.
    files.with(|d| d.space = Some(4096 + 1000));
    assert!(!writer.restore_reserve());
    assert_eq!(files.with(|d| d.space), Some(4096 + 1000), "what was tried is given back");
    files.with(|d| d.space = Some(2 * 4096));
    assert!(writer.restore_reserve());
    let last = writer.append(b"x", 1).expect("space");
    // An operator who removes it to make space has done what the journal would do.
    files.remove("reserve").expect("there");
    files.with(|d| d.space = Some(0));
    assert_eq!(writer.append(&[1; 5000], 1), Err(AppendError::Full));
    assert_eq!(read_all(&mut journal.reader(), Position::NONE).len() as u64, last.0);
}

#[test]
fn files_kept_for_later_are_given_up_before_the_space_for_the_end() {
    let files = MemFiles::new();
    let mut journal = LocalJournal::open(files.clone(), small(), Position::NONE).expect("opens");
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    while writer.segments().len() < 5 {
        writer.append(&[1; 500], 1).expect("space");
    }
    let sealed: Vec<Position> = writer.segments().iter().filter(|s| s.sealed).map(|s| s.first).collect();
    sealed.into_iter().for_each(|first| writer.remove(first).expect("removed"));
    let spares = || files.files().iter().filter(|(name, _)| name.ends_with(".spare")).count();
    assert_eq!(spares(), 2, "not more than may be kept");
    // An operator who removes one to make space has done no harm.
    let one = files.files().iter().map(|(n, _)| n.clone()).rfind(|n| n.ends_with(".spare")).expect("one");
    files.remove(&one).expect("there");
    for _ in 0..20 {
        writer.append(&[1; 500], 1).expect("space");
    }
    let first = writer.segments()[0].first;
    writer.remove(first).expect("removed");
    assert_eq!(spares(), 1);
    files.with(|d| d.space = Some(0));
    let mut room = 0;
    while !writer.low_space() {
        writer.append(&[1; 500], 1).expect("there was space in the files");
        room += 1;
    }
    assert!(spares() == 0 && room >= 15, "{room}");
    // The next process finds what was kept, and keeps no more than it may.
    let start = Position(writer.segments()[0].first.0 - 1);
    drop((writer, journal));
    files.with(|d| d.space = None);
    (1..=3).for_each(|n| files.put(&format!("{n:020}.spare"), &[1; 8192]));
    let _journal = LocalJournal::open(files.clone(), small(), start).expect("opens");
    assert_eq!(spares(), 2);
}

/// What others have taken of the disk is missed for the end first: files kept for later are worth less.
#[test]
fn files_kept_for_later_make_room_for_the_space_for_the_end() {
    let files = MemFiles::new();
    let open = |start| LocalJournal::open(files.clone(), small(), start).expect("opens");
    let mut journal = open(Position::NONE);
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    while writer.segments().len() < 4 {
        writer.append(&[1; 500], 1).expect("space");
    }
    let sealed: Vec<Segment> = writer.segments().into_iter().filter(|s| s.sealed).collect();
    sealed[..2].iter().for_each(|s| writer.remove(s.first).expect("removed"));
    let start = sealed[1].last;
    drop((writer, journal));
    let has = |ending: &str| files.files().iter().filter(|(name, _)| name.ends_with(ending)).count();
    assert_eq!((has(".spare"), has("reserve")), (2, 1));
    files.remove("reserve").expect("there");
    files.with(|d| d.space = Some(100));
    let mut journal = open(start);
    assert_eq!((has(".spare"), has("reserve")), (0, 1));
    let (writer, _) = journal.fence(2, "n").expect("fenced");
    assert!(!writer.low_space());
}

/// It takes the setting, and then writes nothing by it.
#[test]
fn a_file_system_with_longer_blocks_is_written_through_the_page_cache() {
    let files = MemFiles::new();
    files.with(|d| d.block = Some(16384));
    let mut journal = LocalJournal::open(files.clone(), small(), Position::NONE).expect("opens");
    let (mut writer, _) = journal.fence(1, "n").expect("written");
    for i in 0..100 {
        writer.append(&[i; 300], 1).expect("written");
    }
    drop((writer, journal));
    let journal = LocalJournal::open(files, small(), Position::NONE).expect("opens");
    assert_eq!(journal.recovered().records, 101);
    assert_eq!(read_all(&mut journal.reader().past_cache(), Position::NONE).len(), 101);
}

/// Longer than the buffer, so that it goes in pieces, from any place in a block.
#[test]
fn long_records_come_back_whole() {
    let options = Options { segment_bytes: 16 << 20, zero_ahead_bytes: 65536, ..small() };
    let files = MemFiles::new();
    let open = || LocalJournal::open(files.clone(), options.clone(), Position::NONE).expect("opens");
    let mut journal = open();
    let (mut writer, fence) = journal.fence(1, "n").expect("written");
    let lengths = [1, (1 << 20) - 200, 1 << 20, 5, (3 << 20) + 77, 4096, 4064, 2 << 20, 9];
    let bodies = lengths.map(|len| (0..len).map(|i| (i * 7 + len) as u8).collect::<Vec<u8>>());
    for body in &bodies {
        writer.append(body, 1).expect("written");
    }
    drop((writer, journal));
    let read = read_all(&mut open().reader().past_cache(), fence);
    assert!(read.iter().map(|r| &r.body[..]).eq(bodies.iter().map(|b| &b[..])));
}

/// A copy has its files open while the journal goes on: what it reads is what was there.
#[test]
fn a_file_that_is_being_copied_is_not_written_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = Directory::new(dir.path()).expect("made");
    let mut journal = LocalJournal::open(files, small(), Position::NONE).expect("opens");
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    let fill = |writer: &mut LocalWriter<Directory>, segments: usize, byte: u8| {
        while writer.segments().len() < segments {
            writer.append(&[byte; 500], 1).expect("space");
        }
    };
    fill(&mut writer, 3, 1);
    let old = writer.segments();
    let copied = |parts| {
        let mut archive = Vec::new();
        write_archive(parts, &mut archive).expect("copied");
        archive
    };
    let expected = copied(segment_parts(dir.path(), &old[..1]).expect("there"));
    let parts = segment_parts(dir.path(), &old[..1]).expect("there");
    old[..2].iter().for_each(|s| writer.remove(s.first).expect("removed"));
    assert!(segment_parts(dir.path(), &old[..1]).is_err(), "it is gone for whoever comes later");
    fill(&mut writer, 4, 2);
    assert!(copied(parts) == expected, "another segment was written over it");
    let spares = || {
        std::fs::read_dir(dir.path())
            .expect("there")
            .filter(|e| e.as_ref().expect("there").file_name().to_string_lossy().ends_with(".spare"))
    };
    assert_eq!(spares().count(), 0, "the other file was used, this one was not kept");
}

#[test]
fn one_process_has_the_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || {
        let files = Directory::new(&dir.path().join("journal")).expect("made");
        LocalJournal::open(files, small(), Position::NONE)
    };
    let mut journal = open().expect("opens");
    let e = open().expect_err("in use");
    assert!(matches!(&e, OpenError::InUse(place) if place.ends_with("journal")), "{e}");
    assert!(e.to_string().contains("in use by another process"), "{e}");
    let look = Directory::read_only(&dir.path().join("journal")).expect("there");
    assert!(matches!(survey(&look, Position::NONE, &mut |_| {}), Err(OpenError::InUse(_))));
    // Whoever can still append keeps it.
    let (writer, _) = journal.fence(1, "n").expect("fenced");
    drop(journal);
    assert!(matches!(open(), Err(OpenError::InUse(_))));
    drop(writer);
    open().expect("free again");
}

/// `HIVE_SMALL_DIR` is on a file system of its own, of some 50 MB, that may be filled.
#[test]
#[ignore = "needs a small file system in HIVE_SMALL_DIR"]
fn a_file_system_that_is_really_full_loses_nothing() {
    let dir = std::path::PathBuf::from(std::env::var_os("HIVE_SMALL_DIR").expect("HIVE_SMALL_DIR"));
    let dir = tempfile::tempdir_in(dir).expect("a directory");
    let options = Options { segment_bytes: 4 << 20, reserve_bytes: 2 << 20, ..Options::new(1) };
    let open = || {
        let files = Directory::new(dir.path()).expect("made");
        LocalJournal::open(files, options.clone(), Position::NONE).expect("opens")
    };
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![1; 100_000]).expect("space");
    let mut journal = open();
    let (mut writer, mut last) = journal.fence(1, "n").expect("fenced");
    let (mut normal, mut low) = (0, 0);
    let full = loop {
        match writer.append(&vec![last.0 as u8; 1 + (last.0 * 7919 % 9000) as usize], 1) {
            Ok(position) => last = position,
            Err(e) => break e,
        }
        *if writer.low_space() { &mut low } else { &mut normal } += 1;
    };
    assert_eq!(full, AppendError::Full);
    println!("{normal} appends, then {low} with the reserve, then it was full");
    assert!(low > 100 && !writer.restore_reserve());
    let first = writer.segments()[0].first;
    drop(writer);
    drop(journal);
    let mut journal = open();
    assert_eq!((journal.recovered().last, journal.recovered().cut.as_ref()), (last, None));
    std::fs::remove_file(&filler).expect("removed");
    let (mut writer, _) = journal.fence(2, "n").expect("there is some space again");
    writer.remove(first).expect("removed");
    assert!(writer.restore_reserve() && !writer.low_space(), "4 MB are free");
    writer.append(&[1; 5000], 1).expect("there is space again");
}
