//! Figures of the disk at hand. Run it alone, with the code optimised:
//!
//! ```text
//! HIVE_JOURNAL_DIR=/var/tmp cargo test -p hive-bus --lib --config 'profile.dev.package.hive-bus.opt-level=3' \
//!     journal::tests::speed -- --ignored --nocapture
//! ```

#![allow(clippy::disallowed_methods, reason = "it measures")]

use std::time::{Duration, Instant};

use super::double::Dice;
use super::*;
use crate::actors::journal::{Reader, Writer};

/// A directory on the disk that is to be measured.
fn place() -> tempfile::TempDir {
    match std::env::var_os("HIVE_JOURNAL_DIR") {
        Some(dir) => tempfile::tempdir_in(dir).expect("a directory"),
        None => tempfile::tempdir().expect("a directory"),
    }
}

fn open(dir: &tempfile::TempDir, options: Options) -> LocalJournal {
    LocalJournal::open(Directory::new(dir.path()).expect("made"), options, Position::NONE).expect("opens")
}

/// Rounds of each kind, in turn: a disk has moods.
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);

/// Appends for a while; gives how many each second. `again`: over the space of segments that are not needed any more.
fn appends(options: &Options, bytes: usize, again: bool) -> f64 {
    let dir = place();
    let options = Options { segment_bytes: 16 << 20, ..options.clone() };
    let mut journal = open(&dir, options);
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    let body: Vec<u8> = (0..bytes).map(|i| (i * 31) as u8).collect();
    let mut append = |recycle: bool| {
        writer.append(&body, 1).expect("appended");
        if recycle && writer.segments().len() > 1 {
            writer.remove(writer.segments()[0].first).expect("removed");
        }
    };
    if again {
        (0..(40 << 20) / bytes).for_each(|_| append(true));
    }
    let (begin, mut n) = (Instant::now(), 0);
    while begin.elapsed() < ROUND {
        append(again);
        n += 1;
    }
    f64::from(n) / begin.elapsed().as_secs_f64()
}

#[test]
#[ignore = "it measures a disk, for minutes"]
fn figures() {
    let past = Options::new(1);
    let through = Options { direct: false, ..past.clone() };
    for bytes in [16_000, 64_000, 256_000, 1_000_000] {
        let mut best = [0.0_f64; 4];
        // In turn: a disk has moods. The best is what it does while nobody else uses it.
        for _ in 0..ROUNDS {
            for (at, (options, again)) in
                [(&past, true), (&past, false), (&through, true), (&through, false)].into_iter().enumerate()
            {
                best[at] = best[at].max(appends(options, bytes, again));
            }
        }
        let [a, b, c, d] = best.map(|rate| format!("{rate:.0}/s, {:.0} MB/s", rate * bytes as f64 / 1e6));
        println!(
            "{bytes:>8} bytes: past the page cache {a} again and {b} new; through it {c} again and {d} new"
        );
    }
    let dir = place();
    reading(&dir, 1000, 500_000);
    let dir = place();
    reading(&dir, 64_000, 8_000);
}

/// Fills a journal in large batches that are made of `bytes`, then recovers and reads it.
fn reading(dir: &tempfile::TempDir, bytes: usize, records: u64) {
    // Without syncs it would take no time; with them it is bound by the disk, so the file is made behind the journal's back.
    let files = double::MemFiles::new();
    let options = Options::new(1);
    {
        let mut journal = LocalJournal::open(files.clone(), options.clone(), Position::NONE).expect("opens");
        let (mut writer, _) = journal.fence(1, "n").expect("fenced");
        let body = vec![7; bytes];
        for _ in 1..records {
            writer.append(&body, 1).expect("appended");
        }
    }
    for (name, _) in files.files().into_iter().filter(|(n, _)| n.ends_with(".seg")) {
        files.tamper(&name, |b| std::fs::write(dir.path().join(&name), b).expect("written"));
    }
    let begin = Instant::now();
    let journal = open(dir, options);
    let (took, found) = (begin.elapsed().as_secs_f64(), journal.recovered().clone());
    assert_eq!(found.last.0, records);
    println!(
        "{records} records of {bytes} bytes: recovered in {:.0} ms, {:.2} GB/s, {:.1} million records/s",
        took * 1e3,
        found.bytes as f64 / took / 1e9,
        records as f64 / took / 1e6
    );
    let (mut reader, mut after, begin) = (journal.reader(), Position::NONE, Instant::now());
    while reader.next(&mut after).expect("readable").is_some() {}
    let took = begin.elapsed().as_secs_f64();
    println!(
        "  read in order: {:.2} GB/s, {:.2} million records/s",
        found.bytes as f64 / took / 1e9,
        records as f64 / took / 1e6
    );
    let (mut dice, begin) = (Dice(1), Instant::now());
    for _ in 0..10_000 {
        reader.get(Position(1 + dice.roll() % records)).expect("readable");
    }
    println!("  read at random: {:.1} us each", begin.elapsed().as_secs_f64() * 1e6 / 1e4);
}
