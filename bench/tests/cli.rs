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

#[test]
fn failures_have_a_reason_and_a_status() {
    let output = bench(&["pubsub", "--system", "floor", "--size", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--size is 16"));
    assert_eq!(bench(&["pubsub", "--system", "nothing"]).status.code(), Some(2));
}
