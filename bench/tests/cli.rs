//! The binary as scripts use it, with the relay as the system: real sockets, real processes.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hive-bench"))
        .args(args)
        .env_remove("HIVE_BIN")
        .output()
        .expect("it starts")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|l| serde_json::from_str(l).expect("one object per line")).collect()
}

#[test]
fn the_floor_is_measured_and_every_promised_key_is_there() {
    let output = bench(&["floor", "--duration", "0.3", "--warm-up", "0.1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = lines(&output);
    let works: Vec<_> = lines.iter().map(|l| l["params"]["work"].as_str().unwrap_or("")).collect();
    assert_eq!(works, ["rtt", "task", "pubsub"]);
    for line in &lines {
        assert_eq!((line["scenario"].as_str(), line["system"].as_str()), (Some("floor"), Some("floor")));
        assert!(line["params"].is_object());
        for key in ["rate_per_s", "p50_us", "p99_us", "p999_us", "server_cpu_us_per_op", "rss_peak_bytes"] {
            assert!(line[key].as_f64().is_some_and(|v| v > 0.0), "{key} in {line}");
        }
        assert!(line["p50_us"].as_f64() <= line["p99_us"].as_f64());
    }
}

#[test]
fn an_open_loop_keeps_its_rate_and_loses_nothing() {
    for scenario in ["pubsub", "task"] {
        let args = [
            "--system",
            "floor",
            "--clients",
            "2+2",
            "--rate",
            "2000",
            "--duration",
            "0.5",
            "--warm-up",
            "0.1",
        ];
        let output = bench(&[&[scenario][..], &args, &["--json"]].concat());
        let line = lines(&output).pop().expect("a line");
        let rate = line["rate_per_s"].as_f64().expect("a rate");
        assert!((1990.0..2010.0).contains(&rate), "{line}");
        assert_eq!((&line["lost"], &line["params"]["rate"]), (&0.into(), &2000.0.into()));
    }
}

#[test]
fn a_comparison_reports_what_is_missing() {
    let args = [
        "compare",
        "--scenario",
        "rtt",
        "--peers",
        "floor",
        "--rounds",
        "1",
        "--hive",
        "/nowhere/hive",
        "--json",
    ];
    let output = bench(&args);
    assert!(output.status.success());
    let lines = lines(&output);
    assert_eq!(
        (lines.len(), &lines[0]["status"], &lines[0]["peer"]),
        (1, &"missing".into(), &"floor".into())
    );
    assert!(lines[0]["reason"].as_str().expect("a reason").contains("/nowhere/hive"));
}

/// What acknowledgements cost, of every durable peer that is installed.
#[test]
fn durable_peers_are_measured_on_a_disk() {
    for system in ["redis", "beanstalkd", "jetstream"] {
        let args = ["--system", system, "--durability", "journal", "--duration", "0.8", "--warm-up", "0.1"];
        let run = |more: &[&str]| bench(&[more, &args, &["--json"]].concat());
        let output = run(&["task", "--in-flight", "4"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("is not installed") {
            eprintln!("missing: {said}");
            continue;
        }
        let line = lines(&output).pop().expect(&said);
        assert_eq!(line["params"]["durability"], "journal");
        assert!(line["rate_per_s"].as_f64().is_some_and(|r| r > 0.0), "{line}");
        assert!(line["file_system"].as_str().is_some_and(|kind| !kind.is_empty() && kind != "tmpfs"));
        // Payload and bookkeeping, or nothing that can be known.
        let written = &line["disk_written_bytes_per_task"];
        assert!(written.is_null() || written.as_f64() > Some(256.0), "{line}");
        let line = lines(&run(&["rtt"])).pop().expect("a line");
        let of = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        assert!(of("disk_sync_p50_us") > 0.0 && of("disk_sync_p50_us") <= of("disk_sync_p99_us"));
        assert!(of("ack_p50_us") <= of("ack_p99_us") && of("cycle_p50_us") > 0.0);
        assert!(of("disk_write_bytes_per_s") > 1e5);
        let floor = of("disk_sync_p50_us") + of("echo_p50_us");
        assert!((of("ack_over_floor") - of("ack_p50_us") / floor).abs() < 0.01, "{line}");
    }
}

#[test]
fn peers_that_keep_nothing_are_reported_as_such() {
    let peers = ["nats", "gearman", "floor"];
    let args = ["compare", "--scenario", "task", "--clients", "1+1", "--durability", "journal", "--json"];
    let output = bench(&[&args[..], &["--peers", &peers.join(",")]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = lines(&output);
    assert_eq!(lines.len(), peers.len());
    for (line, peer) in lines.iter().zip(peers) {
        assert_eq!((&line["peer"], &line["status"]), (&peer.into(), &"unsupported".into()), "{line}");
        let reason = line["reason"].as_str().expect("a reason");
        assert!(reason.contains("not applicable to durability journal"), "{reason}");
    }
}

#[test]
fn what_is_kept_in_memory_is_not_taken_for_durable() {
    let args = ["task", "--system", "beanstalkd", "--durability", "journal", "--disk", "/proc/nowhere"];
    let output = bench(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("--disk") || said.contains("is not installed"), "{said}");
}

#[test]
fn the_parameters_say_who_ran_where() {
    for (cores, named) in [(&[][..], "apart"), (&["--cores", "shared"], "shared")] {
        let args = ["rtt", "--system", "floor", "--duration", "0.1", "--warm-up", "0.1", "--json"];
        let line = lines(&bench(&[&args[..], cores].concat())).pop().expect("a line");
        assert_eq!(line["params"]["cores"], named);
    }
}

#[test]
fn failures_have_a_reason_and_a_status() {
    let output = bench(&["pubsub", "--system", "floor", "--size", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--size is 16"));
    assert_eq!(bench(&["pubsub", "--system", "nothing"]).status.code(), Some(2));
}
