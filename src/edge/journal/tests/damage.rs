//! Bytes that are not what was written: never served, never a panic, and told with the place.

use std::io::IoSlice;

use proptest::prelude::*;

use super::super::format::{Header, SegmentHeader, padding, segment_name, u32_at};
use super::double::Dice;
use super::*;
use crate::actors::journal::conformance::read_all;
use crate::actors::journal::{OpenError, ReadError, Reader, Record, Writer};

const LAST_RECORD_BYTES: usize = 300;

/// Three segments, and what is in them.
fn journal() -> (MemFiles, Vec<Record>, Vec<u64>) {
    let files = MemFiles::new();
    let options = Options { segment_bytes: 4096, ..small() };
    let mut journal = LocalJournal::open(files.clone(), options, Position::NONE).expect("opens");
    let (mut writer, _) = journal.fence(1, "node").expect("fenced");
    let mut dice = Dice(1);
    while writer.segments().len() < 3 || writer.segments()[2].bytes < 1000 {
        let body: Vec<u8> = (0..dice.below(200)).map(|_| dice.roll() as u8).collect();
        writer.append(&body, 1).expect("appended");
    }
    writer.append(&[0xaa; LAST_RECORD_BYTES - 32], 1).expect("appended");
    let records = read_all(&mut journal.reader(), Position::NONE);
    (files, records, writer.segments().iter().map(|s| s.first.0).collect())
}

fn open(files: &MemFiles, start: u64) -> Result<LocalJournal<MemFiles>, OpenError> {
    LocalJournal::open(files.clone(), Options { segment_bytes: 4096, ..small() }, Position(start))
}

/// Where the last record begins and ends in the last segment.
fn last_record(files: &MemFiles, first: u64) -> std::ops::Range<usize> {
    let mut range = 0..0;
    files.tamper(&segment_name(first), |bytes| {
        let end = bytes.len() - bytes.iter().rev().take_while(|b| **b == 0).count();
        // The body ends with other bytes than zeroes, the padding follows.
        range = end.next_multiple_of(8) - 304..end.next_multiple_of(8);
    });
    range
}

#[test]
fn every_flipped_byte_is_refused_or_cut_at_the_very_end() {
    let (files, records, firsts) = journal();
    let last = last_record(&files, firsts[2]);
    let mut cut = 0;
    for first in &firsts {
        let name = segment_name(*first);
        let len = files.files().iter().find(|(n, _)| *n == name).expect("there").1;
        for i in 0..len {
            let by = if i % 3 == 0 { 0xff } else { 1 << (i % 8) };
            let flipped = files.copy();
            flipped.flip(&name, i..i + 1, by);
            match open(&flipped, 0) {
                Err(OpenError::Damaged(d)) => {
                    assert!(d.place.ends_with(".seg") && !d.what.is_empty(), "{d}");
                    assert!(d.offset <= i as u64 || d.place != format!("mem/{name}"), "byte {i}: {d}");
                }
                Err(OpenError::Newer { .. }) => assert!((8..12).contains(&i), "{name} byte {i}"),
                Err(e) => panic!("{name} byte {i}: {e}"),
                Ok(journal) => {
                    // Behind the last record nothing is lost. In the last record a flip looks like a torn append: an
                    // acknowledged record is cut, and that is told. There is no other place for it.
                    let read = read_all(&mut journal.reader(), Position::NONE);
                    let kept = if i >= last.end { records.len() } else { records.len() - 1 };
                    assert!(*first == firsts[2] && i >= last.start, "{name} byte {i} passed");
                    assert_eq!(read, records[..kept], "byte {i}");
                    let told = journal.recovered().cut.as_ref().expect("told");
                    assert!(told.place.ends_with(&name) && told.what.contains("are cut"), "{told}");
                    cut += 1;
                }
            }
        }
    }
    assert!(cut >= 304, "{cut}");
}

#[test]
fn a_reader_never_serves_flipped_bytes() {
    let (files, records, firsts) = journal();
    let name = segment_name(firsts[1]);
    let mut refused = 0;
    for (start, from) in [(0, 1), (firsts[2] - 1, firsts[1])] {
        // From 64 on: the header of a segment is read once and not needed again by whoever has it open.
        for i in 64..3000 {
            let flipped = files.copy();
            let journal = open(&flipped, start).expect("whole");
            flipped.flip(&name, i..i + 1, 1 << (i % 8));
            let mut reader = journal.reader();
            for record in &records[from as usize - 1..] {
                match reader.get(record.position) {
                    Ok(read) => assert_eq!(&read, record, "byte {i}"),
                    Err(ReadError::Damaged(d)) => {
                        assert!(d.place.ends_with(&name), "byte {i}: {d}");
                        refused += 1;
                        break;
                    }
                    Err(e) => panic!("byte {i}: {e}"),
                }
            }
        }
    }
    assert_eq!(refused, 2 * (3000 - 64), "each flip is met by a reader of everything");
}

#[test]
fn missing_and_foreign_files_are_refused() {
    let (files, _, firsts) = journal();
    let missing = |gone: &[u64], start| {
        let copy = files.copy();
        gone.iter().for_each(|first| copy.remove(&segment_name(*first)).expect("removed"));
        open(&copy, start).map(|_| ())
    };
    let (one, two) = (firsts[1] - 1, firsts[2] - 1);
    let range = |e| match e {
        Err(OpenError::Missing { from, to, .. }) => (from.0, to.0),
        other => panic!("{other:?}"),
    };
    assert_eq!(range(missing(&firsts[..1], 0)), (1, one));
    assert_eq!(range(missing(&firsts[1..2], 0)), (one + 1, two));
    assert_eq!(range(missing(&firsts[1..2], one)), (one + 1, two));
    assert_eq!(range(missing(&firsts, 5)), (1, 5), "a journal that had a snapshot had segments");
    assert_eq!(range(missing(&firsts[1..], two)), (one + 1, two), "it ends before the snapshot");
    missing(&firsts[..1], one).expect("the snapshot covers it");
    missing(&firsts[..2], two).expect("the snapshot covers both");
    missing(&firsts[1..2], two).expect("a hole below the snapshot");
    missing(&firsts, 0).expect("a new journal");
    // A segment of another journal in the place of one.
    let copy = files.copy();
    let other = SegmentHeader { salt: 1, first: firsts[2], prev: 2, epoch: 1, used: false };
    copy.put(&segment_name(firsts[2]), &other.encode());
    let e = open(&copy, 0).expect_err("foreign").to_string();
    assert!(e.contains("does not follow") && e.contains("restore the file"), "{e}");
    // A newer program was here.
    let copy = files.copy();
    copy.flip(&segment_name(firsts[2]), 8..9, 3);
    let e = open(&copy, 0).expect_err("newer").to_string();
    assert!(e.contains("format version 2, this program knows 1"), "{e}");
}

#[test]
fn a_survey_sees_what_a_snapshot_covers_and_changes_nothing() {
    let (files, records, firsts) = journal();
    let list = |files: &MemFiles, start: u64| {
        let mut seen = Vec::new();
        let found = survey(files, Position(start), &mut |e| seen.push(*e))?;
        Ok::<_, OpenError>((seen, found.expect("a journal")))
    };
    let before = files.files();
    let all: Vec<u64> = (1..=records.len() as u64).collect();
    for start in [0, firsts[2] - 1, records.len() as u64] {
        let (seen, found) = list(&files, start).expect("whole");
        assert_eq!(seen.iter().map(|e| e.position.0).collect::<Vec<_>>(), all);
        assert!(seen.iter().zip(&records).all(|(e, r)| e.bytes as usize == r.body.len() && e.ops == r.ops));
        assert_eq!((found.records, found.last.0, found.cut), (all.len() as u64, all.len() as u64, None));
    }
    assert_eq!(files.files(), before);
    // Damage in a segment that a start with this snapshot would not read.
    files.flip(&segment_name(firsts[0]), 200..201, 1);
    open(&files, firsts[2] - 1).expect("not looked at");
    let e = list(&files, firsts[2] - 1).expect_err("damaged").to_string();
    assert!(e.contains(&segment_name(firsts[0])), "{e}");
    files.remove(&segment_name(firsts[0])).expect("removed");
    let (seen, _) = list(&files, firsts[2] - 1).expect("what is there is whole");
    assert_eq!(seen[0].position.0, firsts[1]);
    assert!(survey(&MemFiles::new(), Position::NONE, &mut |_| {}).expect("nothing").is_none());
}

/// A record as bytes.
fn record(salt: u32, prev: u32, position: u64, body: &[u8]) -> Vec<u8> {
    let header = Header { len: 0, crc: 0, prev, position, epoch: 9, ops: 1 }.seal(salt, body);
    [&header.encode()[..], body, padding(body.len())].concat()
}

/// A journal whose last record has `body`, torn at its very end.
fn torn(body: &[u8]) -> Result<LocalJournal<MemFiles>, OpenError> {
    let files = MemFiles::new();
    let mut journal = open(&files, 0)?;
    let (mut writer, _) = journal.fence(1, "n")?;
    writer.append(b"good", 1).expect("appended");
    let end = writer.segments()[0].bytes as usize;
    writer.append(body, 1).expect("appended");
    drop((writer, journal));
    files.flip(&segment_name(1), end + 8..end + 9, 1);
    open(&files, 0)
}

#[test]
fn a_payload_cannot_pass_for_a_record() {
    let last = |j: &LocalJournal<MemFiles>| j.recovered().last.0;
    // Whoever does not know the salt makes nothing that is believed; old records of this journal are not later ones.
    let forged = record(0x5a18, 0, 4, b"forged");
    assert_eq!(last(&torn(&forged).expect("cut")), 2);
    assert_eq!(last(&torn(&record(0x5a17, 0, 2, b"a copy")).expect("cut")), 2);
    // This is what a later record looks like: something was there that was not torn.
    let e = torn(&record(0x5a17, 0, 4, b"a later one")).expect_err("refused").to_string();
    assert!(e.contains("record 3") && e.contains("good record 4 follows"), "{e}");
}

/// A file that was a segment before: what it held is no record of the new one, and no torn one either.
#[test]
fn what_a_file_held_before_means_nothing() {
    let at = |files: &MemFiles, start| LocalJournal::open(files.clone(), small(), Position(start));
    let files = MemFiles::new();
    let mut journal = at(&files, 0).expect("opens");
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    let sealed = |writer: &mut LocalWriter<MemFiles>, sealed: usize| {
        while writer.segments().len() <= sealed {
            writer.append(&[7; 200], 1).expect("space");
        }
        writer.segments()[0].first
    };
    let first = sealed(&mut writer, 1);
    let covered = writer.segments()[0].last;
    writer.remove(first).expect("removed");
    assert!(files.files().iter().any(|(name, _)| name.ends_with(".spare")));
    sealed(&mut writer, 1);
    let (last, segment) = (writer.last(), writer.segments()[1]);
    assert!(!files.files().iter().any(|(name, _)| name.ends_with(".spare")), "it is a segment again");
    drop((writer, journal));
    let name = segment_name(segment.first.0);
    let mut behind = 0;
    files.tamper(&name, |b| behind = b[segment.bytes as usize..].iter().filter(|b| **b == 7).count());
    assert!(behind > 3000, "{behind} bytes of the segment before");
    let found = at(&files.copy(), covered.0).expect("opens");
    assert_eq!((found.recovered().last, &found.recovered().cut), (last, &None));
    // The last record, with any bit flipped, is told to be cut.
    let begin = (segment.bytes as usize) - 232;
    for i in begin..segment.bytes as usize {
        let flipped = files.copy();
        flipped.flip(&name, i..i + 1, 1 << (i % 8));
        let found = at(&flipped, covered.0).expect("opens");
        assert_eq!(found.recovered().last.0, last.0 - 1, "byte {i}");
        assert!(found.recovered().cut.is_some(), "byte {i}");
    }
}

#[test]
fn a_good_record_that_does_not_follow_is_refused() {
    let segment = |third: &[u8]| {
        let files = MemFiles::new();
        let header = SegmentHeader { salt: 7, first: 1, prev: 0, epoch: 0, used: false };
        let first = record(7, 0, 1, b"one");
        let second = record(7, u32_at(&first, 8), 2, b"two");
        files.put(&segment_name(1), &[&header.encode()[..], &first, &second, third].concat());
        open(&files, 0)
    };
    let crc = u32_at(&record(7, u32_at(&record(7, 0, 1, b"one"), 8), 2, b"two"), 8);
    let good = record(7, crc, 3, b"three");
    assert_eq!(segment(&good).expect("whole").recovered().last.0, 3);
    let earlier = Header { len: 0, crc: 0, prev: crc, position: 3, epoch: 8, ops: 1 }.seal(7, b"");
    for (what, third) in [
        ("another history", record(7, crc ^ 1, 3, b"three")),
        ("one is left out", record(7, crc, 4, b"three")),
        ("one comes twice", record(7, crc, 2, b"two")),
        ("an earlier epoch", earlier.encode().to_vec()),
    ] {
        let e = segment(&third).expect_err(what).to_string();
        assert!(e.contains("does not follow its predecessor"), "{what}: {e}");
    }
}

#[test]
fn an_unfinished_segment_is_discarded() {
    let (files, records, _) = journal();
    files.put("00000000000000000999.seg.new", b"HIVE");
    let journal = open(&files, 0).expect("opens");
    assert_eq!(journal.recovered().last, records[records.len() - 1].position);
    assert!(files.files().iter().all(|(name, _)| !name.ends_with(".new")));
}

#[test]
fn look_alikes_do_not_keep_recovery_busy() {
    // Each says that it is as long as the rest of the file: hashing them all would take quadratic time.
    let mut tail = Vec::new();
    let count = 100;
    for i in 0..count {
        let len = (count - i) * 32 - 32;
        let header = Header { len: len as u32, crc: 0, prev: 0, position: 50 + i as u64, epoch: 1, ops: 1 };
        tail.extend_from_slice(&header.encode());
    }
    let e = torn(&tail).expect_err("refused").to_string();
    assert!(e.contains("too much looks like records"), "{e}");
    // What clients have left in a file that was another segment does not keep a server from starting.
    let files = MemFiles::new();
    let header = SegmentHeader { salt: 7, first: 1, prev: 0, epoch: 0, used: true };
    let near = |i: usize| Header {
        len: ((count - i) * 32 - 32) as u32,
        crc: 0,
        prev: 0,
        position: 3,
        epoch: 9,
        ops: 1,
    };
    let left: Vec<u8> = (0..count).flat_map(|i| near(i).encode()).collect();
    files.put(&segment_name(1), &[&header.encode()[..], &record(7, 0, 1, b"one"), &[1; 64], &left].concat());
    let found = open(&files, 0).expect("opens");
    assert_eq!((found.recovered().last.0, &found.recovered().cut), (1, &None));
}

#[test]
fn lengths_that_lie_allocate_nothing() {
    let files = MemFiles::new();
    let header = SegmentHeader { salt: 7, first: 1, prev: 0, epoch: 0, used: false };
    let liar = Header { len: u32::MAX, crc: 0, prev: 0, position: 1, epoch: 1, ops: 1 };
    files.put(&segment_name(1), &[&header.encode()[..], &liar.encode()].concat());
    let journal = open(&files, 0).expect("a torn append");
    assert!(journal.recovered().cut.as_ref().expect("told").what.contains("would end behind the file"));
    // A file that only claims to be long.
    let file = files.open(&segment_name(1)).expect("there");
    file.write_at(&[IoSlice::new(&liar.encode())], 64).expect("written");
    file.set_len(8 << 20).expect("extended");
    drop(journal);
    assert_eq!(open(&files, 0).expect("a torn append").recovered().last, Position::NONE);
    // One that would take minutes to be read.
    let dir = tempfile::tempdir().expect("a directory");
    let file = std::fs::File::create(dir.path().join(segment_name(1))).expect("made");
    file.write_at(&[IoSlice::new(&header.encode())], 0).expect("written");
    File::set_len(&file, 1 << 40).expect("sparse");
    let files = Directory::new(dir.path()).expect("there");
    let e = LocalJournal::open(files, small(), Position::NONE).expect_err("refused").to_string();
    assert!(e.contains("more than a segment can have"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done to the files: what is served is what was written, and nothing panics.
    #[test]
    fn mangled_files_are_refused_or_serve_what_was_written(
        edits in prop::collection::vec((0_usize..3, 0_usize..4096, prop::collection::vec(any::<u8>(), 0..40), 0_u8..4), 1..4),
    ) {
        let (files, records, firsts) = journal();
        for (which, at, bytes, how) in edits {
            files.tamper(&segment_name(firsts[which]), |file| {
                let at = at.min(file.len());
                let end = (at + bytes.len()).min(file.len());
                match how {
                    0 => file[at..end].copy_from_slice(&bytes[..end - at]),
                    1 => file.truncate(at),
                    2 => drop(file.splice(at..at, bytes)),
                    _ => drop(file.splice(at..end, [])),
                }
            });
        }
        if let Ok(journal) = open(&files, 0) {
            let mut reader = journal.reader();
            let mut after = Position::NONE;
            while let Ok(Some(read)) = reader.next(&mut after) {
                prop_assert_eq!(&read, &records[read.position.0 as usize - 1]);
            }
        }
    }

    /// Bytes of chance behind a good header.
    #[test]
    fn garbage_is_no_journal(bytes in prop::collection::vec(any::<u8>(), 0..3000), salt: u32) {
        let files = MemFiles::new();
        let header = SegmentHeader { salt, first: 1, prev: 0, epoch: 0, used: false };
        files.put(&segment_name(1), &[&header.encode()[..], &bytes].concat());
        let journal = open(&files, 0).expect("a torn append");
        prop_assert_eq!(journal.recovered().last, Position::NONE);
    }
}
