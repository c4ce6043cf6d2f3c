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

/// Appends for a while; gives how many each second.
fn appends(options: Options, bytes: usize) -> f64 {
    let dir = place();
    let mut journal = open(&dir, options);
    let (mut writer, _) = journal.fence(1, "n").expect("fenced");
    let body: Vec<u8> = (0..bytes).map(|i| (i * 31) as u8).collect();
    let (begin, mut n) = (Instant::now(), 0);
    while begin.elapsed() < ROUND {
        writer.append(&body, 1).expect("appended");
        n += 1;
    }
    f64::from(n) / begin.elapsed().as_secs_f64()
}

/// The best of two kinds: what the disk does while nobody else uses it.
fn compare(bytes: usize, a: &Options, b: &Options) -> (f64, f64) {
    let mut rates: [Vec<f64>; 2] = Default::default();
    for _ in 0..ROUNDS {
        rates[0].push(appends(a.clone(), bytes));
        rates[1].push(appends(b.clone(), bytes));
    }
    let [a, b] = rates.map(|r| r.into_iter().fold(0.0, f64::max));
    (a, b)
}

#[test]
#[ignore = "it measures a disk, for a minute"]
fn figures() {
    let all = Options { large_bytes: u64::MAX, ..Options::new(1) };
    let none = Options { zero_ahead_bytes: 0, ..all.clone() };
    for bytes in [100, 1000, 4000, 16_000, 64_000, 256_000, 1_000_000, 4_000_000] {
        let (ahead, grows) = compare(bytes, &all, &none);
        let mb = |rate: f64| rate * bytes as f64 / 1e6;
        println!(
            "{bytes:>8} bytes: {ahead:>5.0}/s, {:>4.0} MB/s over zeroes; {grows:>5.0}/s, {:>4.0} MB/s where the file grows",
            mb(ahead),
            mb(grows)
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
