//! `hive-bench` as scripts use it, with the server under test.
//!
//! The binary is `HIVE_BENCH_BIN`, else `hive-bench` beside that of the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cli::{Done, keys};
use crate::harness::binary;

const SHORT: [&str; 5] = ["--duration", "0.2", "--warm-up", "0.1", "--json"];
const PROMISED: [&str; 9] = [
    "scenario",
    "system",
    "params",
    "rate_per_s",
    "p50_us",
    "p99_us",
    "p999_us",
    "server_cpu_us_per_op",
    "rss_peak_bytes",
];

/// `None` where it is not built: it is no part of what the tests of the server need.
fn bench(args: &[&str]) -> Option<Command> {
    let named = std::env::var_os("HIVE_BENCH_BIN").map(PathBuf::from);
    let path = named.unwrap_or_else(|| binary().with_file_name("hive-bench"));
    if !path.exists() {
        eprintln!(
            "skipped: {} is not there: run `cargo build -p bench`, or set HIVE_BENCH_BIN",
            path.display()
        );
        return None;
    }
    let mut command = Command::new(path);
    command.args(args).env("HIVE_BIN", binary());
    Some(command)
}

/// The line of a run: all that is promised is there, and no figure is nothing.
fn check(line: &Value, scenario: &str, system: &str) {
    let there = keys(line);
    for key in PROMISED {
        assert!(there.contains(&key), "{key} is missing in {line}");
    }
    assert_eq!((&line["scenario"], &line["system"]), (&scenario.into(), &system.into()));
    assert!(line["params"].is_object(), "{line}");
    for key in &PROMISED[3..] {
        let least = if *key == "server_cpu_us_per_op" { -0.1 } else { 0.0 };
        assert!(line[key].as_f64().is_some_and(|v| v > least), "{key} in {line}");
    }
    let [p50, p99, p999] = ["p50_us", "p99_us", "p999_us"].map(|k| line[k].as_f64());
    assert!(p50 <= p99 && p99 <= p999, "{line}");
}

#[test]
fn every_scenario_reports_what_is_promised() {
    for scenario in ["task", "pubsub", "rtt"] {
        let Some(mut command) = bench(&[&[scenario, "--system", "hive"], &SHORT[..]].concat()) else {
            return;
        };
        check(&Done::of(&mut command).ok().object(), scenario, "hive");
    }
    let Some(mut floor) = bench(&[&["floor"], &SHORT[..]].concat()) else { return };
    let lines = Done::of(&mut floor).ok().json();
    assert_eq!(lines.len(), 3);
    lines.iter().for_each(|l| check(l, "floor", "floor"));
}

#[test]
fn idle_connections_are_measured() {
    let Some(mut command) = bench(&["conns", "--system", "hive", "--connections", "50", "--json"]) else {
        return;
    };
    let line = Done::of(&mut command).ok().object();
    check(&line, "conns", "hive");
    assert_eq!(line["params"]["connections"], 50);
    assert!(line["rss_bytes_per_connection"].is_number(), "{line}");
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let args = [&["task", "--system", "hive", "--rate", "1000"], &SHORT[..]].concat();
    let Some(mut command) = bench(&args) else { return };
    let line = Done::of(&mut command).ok().object();
    check(&line, "task", "hive");
    assert!(line["rate_per_s"].as_f64().is_some_and(|r| (900.0..1100.0).contains(&r)), "{line}");
}

#[test]
fn a_comparison_prints_ratios() {
    let args = ["compare", "--scenario", "rtt", "--peers", "floor", "--rounds", "2"];
    let Some(mut command) = bench(&[&args, &SHORT[..]].concat()) else { return };
    let line = Done::of(&mut command).ok().object();
    check(&line, "rtt", "hive");
    assert_eq!((&line["peer"], &line["status"], &line["rounds"]), (&"floor".into(), &"ok".into(), &2.into()));
    for key in ["rate_ratio", "cpu_ratio", "p50_ratio", "p99_ratio", "rss_ratio"] {
        let ratio = &line[key];
        assert_eq!(keys(ratio), ["max", "median", "min"], "{key} in {line}");
        let [min, median, max] = ["min", "median", "max"].map(|k| ratio[k].as_f64());
        assert!(min.is_some() && min <= median && median <= max, "{key} in {line}");
    }
}

/// Whatever the server promises today: a durable comparison has figures of a server that acknowledged as `journal`, or
/// says that it did not.
#[test]
fn a_durable_run_checks_what_was_promised() {
    for scenario in ["task", "rtt"] {
        let args = [scenario, "--system", "hive", "--durability", "journal"];
        let Some(mut command) = bench(&[&args, &SHORT[..]].concat()) else { return };
        let done = Done::of(&mut command);
        if done.code != Some(0) {
            assert!(done.err.contains("--durability journal was asked for"), "{}", done.err);
            continue;
        }
        let line = done.object();
        check(&line, scenario, "hive");
        assert_eq!(line["durability_acknowledged"], "journal");
        let ack = ["ack_p50_us", "disk_sync_p50_us", "echo_p50_us", "ack_over_floor"];
        assert!(scenario == "task" || ack.iter().all(|key| line[key].is_number()), "{line}");
    }
}

/// Peers that are installed are run; the others, and those that keep nothing, have their lines too.
#[test]
fn a_durable_comparison_leaves_no_peer_out() {
    let peers = ["jetstream", "redis", "beanstalkd", "nats", "gearman"];
    let args = ["compare", "--scenario", "task", "--clients", "1+1", "--in-flight", "8", "--rounds", "1"];
    let durable = ["--durability", "journal", "--peers", &peers.join(",")];
    let Some(mut command) = bench(&[&args[..], &durable, &SHORT].concat()) else { return };
    let lines = Done::of(&mut command).json();
    assert_eq!(lines.len(), peers.len());
    for (line, peer) in lines.iter().zip(peers) {
        assert_eq!((&line["peer"], &line["params"]["durability"]), (&peer.into(), &"journal".into()));
        let reason = line["reason"].as_str().unwrap_or_default();
        match line["status"].as_str() {
            Some("ok") => assert_eq!(line["durability_acknowledged"], "journal", "{line}"),
            Some("missing") => assert!(reason.contains("cargo xtask peers"), "{line}"),
            Some("unsupported") => {
                assert!(reason.contains("not applicable to durability journal"), "{line}");
                assert!(["nats", "gearman"].contains(&peer), "{line}");
            }
            _ => assert!(reason.contains("--durability journal was asked for"), "{line}"),
        }
    }
}

/// A missing peer has its line. Where the system itself has a peer, that one is left alone here.
#[test]
fn a_peer_that_is_missing_is_not_left_out() {
    let peers = [
        ("nats", "nats-server"),
        ("jetstream", "nats-server"),
        ("redis", "redis-server"),
        ("gearman", "gearmand"),
        ("beanstalkd", "beanstalkd"),
    ];
    let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    let installed = |program: &str| system.iter().any(|dir| Path::new(dir).join(program).exists());
    let missing: Vec<_> = peers.iter().filter(|p| !installed(p.1)).map(|p| p.0).collect();
    if missing.is_empty() {
        eprintln!("skipped: the system has all peers");
        return;
    }
    let args =
        ["compare", "--scenario", "task", "--clients", "1+1", "--rounds", "1", "--peers", &missing.join(",")];
    let Some(command) = bench(&[&args, &SHORT[..]].concat()) else { return };
    // A copy elsewhere, for peers are also looked for beside the binary.
    let folder = tempfile::tempdir().expect("temporary folder");
    let copy = folder.path().join("bin").join("hive-bench");
    std::fs::create_dir(folder.path().join("bin")).expect("created");
    std::fs::copy(command.get_program(), &copy).expect("copied");
    let mut moved = Command::new(copy);
    moved.args(command.get_args()).env("HIVE_BIN", binary()).env("PATH", "").current_dir(&folder);
    let lines = Done::of(&mut moved).ok().json();
    assert_eq!(lines.len(), missing.len());
    for (line, peer) in lines.iter().zip(&missing) {
        assert_eq!((&line["peer"], &line["status"]), (&(*peer).into(), &"missing".into()), "{line}");
        assert!(line["reason"].as_str().is_some_and(|r| r.contains("cargo xtask peers")), "{line}");
        assert_eq!((&line["scenario"], &line["system"]), (&"task".into(), &"hive".into()));
    }
}
