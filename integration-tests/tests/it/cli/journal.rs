//! `hive journal`, on a journal of format version 1 as it lies in a file.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::{Done, hive, keys};

/// A fence with a body of 4 bytes at 64, a record with 5 at 104.
const JOURNAL: &str = include_str!("../../../../src/edge/journal/tests/version_1.hex");
const SEGMENT: &str = "00000000000000000001.seg";

struct Journal {
    folder: tempfile::TempDir,
}

impl Journal {
    fn new() -> Self {
        let journal = Self { folder: tempfile::tempdir().expect("temporary folder") };
        let digits: String = JOURNAL.split_whitespace().collect();
        let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal");
        journal.write(&(0..digits.len()).step_by(2).map(byte).collect::<Vec<_>>());
        journal
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(SEGMENT)
    }

    fn read(&self) -> Vec<u8> {
        fs::read(self.path()).expect("a segment")
    }

    fn write(&self, bytes: &[u8]) {
        fs::write(self.path(), bytes).expect("a segment");
    }

    fn run(&self, command: &str, options: &[&str]) -> Done {
        let dir = self.folder.path().to_string_lossy().into_owned();
        Done::of(&mut hive(self.folder.path(), &[&["journal", command, &dir], options].concat()))
    }
}

#[test]
fn a_good_journal_is_verified_listed_and_summed_up() {
    let journal = Journal::new();
    let verified = journal.run("verify", &["--json"]).ok().object();
    assert_eq!(keys(&verified), ["bytes", "epoch", "last", "ok", "records", "snapshots", "torn"]);
    assert_eq!(
        (&verified["ok"], &verified["records"], &verified["last"]),
        (&json!(true), &json!(2), &json!(2))
    );
    assert_eq!(verified["torn"], json!(null));
    assert!(journal.run("verify", &[]).ok().text().contains("2 records"));
    let all = journal.run("inspect", &["--json"]).ok().json();
    let record = json!({"position": 2, "epoch": 1, "ops": 2, "bytes": 5, "segment": 1, "offset": 104});
    assert_eq!((all.len(), &all[1]), (2, &record));
    assert_eq!(journal.run("inspect", &["--json", "--from", "2"]).ok().json(), [record]);
    assert_eq!(journal.run("inspect", &["--count", "1"]).ok().text().lines().count(), 2, "head and record");
    let sum = journal.run("stats", &["--json"]).ok().object();
    assert_eq!(
        sum,
        json!({"segment": 1, "last": 2, "records": 2, "ops": 2, "bytes": 9, "largest": 5, "epochs": [1, 1]})
    );
    assert!(journal.run("stats", &[]).ok().text().contains("largest"));
    // Nothing is left behind, not even a lock.
    assert_eq!(fs::read_dir(journal.folder.path()).expect("a folder").count(), 1);
}

#[test]
fn damage_is_told_with_its_place_and_a_torn_end_is_no_damage() {
    let journal = Journal::new();
    let good = journal.read();
    let mut bad = good.clone();
    bad[100] ^= 1;
    journal.write(&bad);
    let places = [SEGMENT, "offset 64", "checksum of record 1", "good record 2 follows", "restore"];
    journal.run("verify", &[]).fails(1, &places);
    journal.run("stats", &["--json"]).fails(1, &[SEGMENT]);
    let done = journal.run("verify", &["--json"]);
    assert_eq!((done.code, &done.object()["ok"]), (Some(1), &json!(false)));
    assert!(done.object()["error"].as_str().is_some_and(|e| e.contains("offset 64")), "{done:?}");
    journal.write(&good[..good.len() - 3]);
    let torn = journal.run("verify", &["--json"]).ok().object();
    assert_eq!((&torn["last"], &torn["torn"]["offset"]), (&json!(1), &json!(104)));
    assert!(journal.run("verify", &[]).ok().text().contains("the next start cuts here"));
    assert_eq!(journal.read().len(), good.len() - 3, "nothing was cut");
    fs::remove_file(journal.path()).expect("removed");
    journal.run("verify", &[]).fails(1, &["no journal in", ".seg files"]);
    fs::write(journal.folder.path().join("00000000000000000007.snap"), "no snapshot").expect("written");
    journal.write(&good);
    journal.run("verify", &[]).fails(1, &["00000000000000000007.snap", "not finished"]);
}
