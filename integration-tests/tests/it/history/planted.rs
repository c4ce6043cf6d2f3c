//! The checker is believed because it finds bugs: each that `src/planted.rs` can switch on, within a few lives of the server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::setting;

/// Lives within which a bug must be found.
const CYCLES: u32 = 24;
/// Torn down if it takes longer: a bug may make the server hang.
const MOST: Duration = Duration::from_secs(180);

/// What a planted bug needs to come to light, besides the load.
#[derive(Clone, Copy)]
enum Needs {
    Kills,
    /// The disk takes its time.
    SlowDisk,
    /// Kills that take what was not synced.
    PowerLoss,
    /// Tasks that wait on disk, and results there.
    Spill,
}

/// The bug, what it needs, and the rules of which one must find it.
const BUGS: [(&str, Needs, &[&str]); 46] = [
    ("skip_sync", Needs::PowerLoss, LOST),
    ("sync_sometimes", Needs::PowerLoss, LOST),
    ("in_hand_as_done", Needs::Kills, LOST),
    ("in_hand_dropped", Needs::Kills, &["no_answer"]),
    ("ack_early", Needs::SlowDisk, &["lost"]),
    ("assign_early", Needs::SlowDisk, &["lost"]),
    ("tell_early", Needs::SlowDisk, UNDONE),
    ("settle_early", Needs::SlowDisk, UNDONE),
    ("query_early", Needs::SlowDisk, UNDONE),
    ("stale_epoch", Needs::Kills, &["stale"]),
    ("stale_attempt", Needs::Kills, &["stale"]),
    ("other_session", Needs::Kills, &["other_session"]),
    ("complete_twice", Needs::Kills, &["settled_twice"]),
    ("epoch_again", Needs::Kills, &["lease_again"]),
    ("attempts_ignored", Needs::Kills, &["attempts_max", "outcome_vanished", "outcome_changed"]),
    ("release_at_once", Needs::Kills, &["early"]),
    ("results_swapped", Needs::Kills, &["unearned", "outcome_changed"]),
    ("batch_tail_lost", Needs::Kills, &["lost"]),
    ("cancel_running_unjournaled", Needs::Kills, UNDONE),
    ("drop_when_shut", Needs::SlowDisk, &["no_answer"]),
    ("gathered_unanswered", Needs::SlowDisk, &["no_answer"]),
    ("gathered_as_done", Needs::SlowDisk, &["lost", "outcome_vanished", "outcome_changed", "settled_twice"]),
    ("done_as_not_done", Needs::SlowDisk, &["refused_appears", "unearned"]),
    ("watchers_lost", Needs::Kills, &["not_told"]),
    ("watchers_of_before", Needs::Kills, &["told_stranger"]),
    ("seq_again", Needs::Kills, &["id_again"]),
    ("lose_last_record", Needs::Kills, LOST),
    ("skip_complete", Needs::Kills, UNDONE),
    ("skip_cancel", Needs::Kills, UNDONE),
    ("skip_bury", Needs::Kills, UNDONE),
    ("skip_retry", Needs::Kills, &["early", "attempts_max", "buried_early", "outcome_vanished"]),
    ("forget_failures", Needs::Kills, &["attempts_max", "outcome_vanished", "outcome_changed"]),
    ("due_at_once", Needs::Kills, &["early"]),
    ("retry_at_once", Needs::Kills, &["early"]),
    ("labels_lost", Needs::Kills, &["labels"]),
    ("options_lost", Needs::Kills, &["options"]),
    ("error_lost", Needs::Kills, &["dead_error", "outcome_changed"]),
    ("payload_garbled", Needs::Kills, &["garbled"]),
    ("task_doubled", Needs::Kills, &["twice"]),
    ("bits_lost", Needs::Spill, LOST),
    ("fetch_skips_one", Needs::Spill, LOST),
    ("archive_lost", Needs::Spill, LOST),
    ("archived_too_low", Needs::Spill, LOST),
    ("fetched_not_whole", Needs::Spill, &["no_start"]),
    ("spilled_watcher_lost", Needs::Spill, &["not_told"]),
    ("spilled_cancel_lost", Needs::Spill, UNDONE),
];
const LOST: &[&str] = &["lost", "outcome_vanished", "outcome_changed", "given_after_end"];
const UNDONE: &[&str] = &["outcome_vanished", "outcome_changed", "given_after_end"];

#[derive(Debug)]
struct Found {
    rules: Vec<String>,
    cycles: String,
    took: Duration,
}

#[test]
#[ignore = "needs a server with planted bugs: cargo xtask torture --planted"]
fn planted_bugs_are_found() {
    let only = setting("HIVE_PLANTED_ONLY", String::new());
    let bugs: Vec<_> = BUGS.iter().filter(|b| only.is_empty() || only.split(',').any(|o| o == b.0)).collect();
    assert!(!bugs.is_empty(), "{only} is none of the planted bugs");
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|threads| {
        for _ in 0..setting("HIVE_PLANTED_JOBS", 2) {
            threads.spawn(|| {
                while let Some((name, needs, _)) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = hunt(name, *needs);
                    match &result {
                        Ok(f) => {
                            let s = f.took.as_secs();
                            println!(
                                "{name:<28} found after {:>2} kills by {} ({s} s)",
                                f.cycles,
                                f.rules.join(" ")
                            );
                        }
                        Err(why) => println!("{name:<28} NOT FOUND: {why}"),
                    }
                    found.lock().expect("no panic").insert(*name, result);
                }
            });
        }
    });
    let found = found.into_inner().expect("no panic");
    let missed: Vec<_> = bugs
        .iter()
        .filter(|(name, _, rules)| !matches!(&found[name], Ok(f) if f.rules.iter().any(|r| rules.contains(&&**r))))
        .map(|b| (b.0, &found[b.0]))
        .collect();
    println!("{} of {} planted bugs were found as they should", bugs.len() - missed.len(), bugs.len());
    assert!(missed.is_empty(), "not found, or by chance: {missed:#?}");
}

/// Without a planted bug a slow disk and power losses break no promise.
#[test]
#[ignore = "needs a server with planted bugs: cargo xtask torture --planted"]
fn without_a_bug_nothing_is_found() {
    for needs in [Needs::SlowDisk, Needs::PowerLoss, Needs::Spill] {
        let result = hunt("", needs);
        assert!(matches!(&result, Err(why) if why.starts_with("clean")), "{result:?}");
    }
}

/// Runs the torture in a process of its own, against a server with one planted bug.
fn hunt(name: &str, needs: Needs) -> Result<Found, String> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let binary =
        PathBuf::from(std::env::var_os("HIVE_PLANTED_BIN").expect("HIVE_PLANTED_BIN names the server"));
    let output = folder.path().join("output");
    let file = std::fs::File::create(&output).expect("a file");
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .args(["--exact", "history::torture", "--ignored", "--nocapture"])
        .env("HIVE_BIN", binary)
        .env("HIVE_PLANT", name)
        .env("HIVE_TORTURE_CYCLES", CYCLES.to_string())
        .env("HIVE_TORTURE_CALM_EVERY", "2")
        .env("HIVE_TORTURE_CHECK_EVERY", "1")
        .env("HIVE_TORTURE_PATIENCE_MS", "6000")
        .stdout(file)
        .stderr(std::process::Stdio::null());
    match needs {
        Needs::Kills => {}
        Needs::Spill => {
            command.env("HIVE_TORTURE_SPILL", "true");
        }
        Needs::SlowDisk => {
            command.env("HIVE_PLANT_SYNC_MS", "15");
        }
        Needs::PowerLoss => {
            command.env("HIVE_PLANT_SYNC_MS", "5").env("HIVE_PLANT_SYNCED", folder.path().join("synced"));
        }
    }
    let began = Instant::now();
    let mut child = command.spawn().expect("this program starts");
    let status = loop {
        match child.try_wait().expect("own child") {
            Some(status) => break status,
            None if began.elapsed() > MOST => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("it did not end".into());
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let text = std::fs::read_to_string(&output).expect("text");
    let caught = text.lines().find_map(|l| l.strip_prefix("caught ")?.split_once(" after "));
    match caught {
        Some((rule, cycles)) => Ok(Found {
            rules: rule.split(' ').map(str::to_owned).collect(),
            cycles: cycles.into(),
            took: began.elapsed(),
        }),
        None if status.success() => Err(format!("clean after {CYCLES} kills")),
        None => Err(format!("{status}: {}", text.lines().last().unwrap_or_default())),
    }
}
