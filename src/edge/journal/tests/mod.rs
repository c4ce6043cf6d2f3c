//! Tests of the journal: see each file's head.

mod crash;
mod damage;
pub(crate) mod double;
mod snapshots;
mod space;
mod speed;

use super::*;
use crate::actors::journal::Writer as _;
use crate::actors::journal::conformance::{self, Store};
use double::MemFiles;

/// Small segments, so that a test sees many.
pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 8192,
        batch_bytes_max: usize::MAX,
        zero_ahead_bytes: 1024,
        large_bytes: 2048,
        spares_max: 2,
        reserve_bytes: 4096,
        ..Options::new(0x5a17)
    }
}

struct Local<F>(F);

impl<F: Files> Store for Local<F> {
    type Journal = LocalJournal<F>;

    fn open(&mut self, start: Position) -> LocalJournal<F> {
        LocalJournal::open(self.0.clone(), small(), start).expect("opens")
    }
}

#[test]
fn the_local_journal_conforms_in_memory() {
    conformance::all(|| Local(MemFiles::new()));
}

#[test]
fn the_local_journal_conforms_on_a_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut n = 0;
    conformance::all(|| {
        n += 1;
        Local(Directory::new(&dir.path().join(n.to_string())).expect("made"))
    });
}

/// Version 1 as bytes: a fence and a record. Whoever changes this breaks journals that exist.
const GOLDEN: &str = include_str!("version_1.hex");

#[test]
fn the_bytes_of_version_1_stay() {
    let files = MemFiles::new();
    let options = Options { zero_ahead_bytes: 0, ..small() };
    let mut journal = LocalJournal::open(files.clone(), options, Position::NONE).expect("opens");
    let (mut writer, _) = journal.fence(1, "node").expect("fenced");
    writer.append(b"first", 2).expect("appended");
    let golden = GOLDEN.replace('\n', "");
    files.tamper("00000000000000000001.seg", |bytes| {
        let (records, rest) = bytes.split_at(golden.len() / 2);
        assert_eq!(records.iter().map(|b| format!("{b:02x}")).collect::<String>(), golden);
        assert!(rest.iter().all(|b| *b == 0), "zeroes up to the end of the block");
    });
}
