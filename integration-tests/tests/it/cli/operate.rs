//! `hive status`, `hive stop`, `hive top`, `hive explain`; usage.

use hive_proto::Op;
use serde_json::{Value, json};

use crate::harness::{Server, payloads};

use super::{DevServer, Done, Run, hive, keys};

#[test]
fn status_has_the_keys_that_scripts_rely_on() {
    let server = Server::start();
    let mut agent = server.agent("somebody", &["gpu"]);
    agent.submit("q", &payloads(3));
    let consumer = agent.work("q", 1);
    agent.one(consumer);
    let done = Done::of(&mut hive(server.folder(), &["status", "--json"])).ok();
    assert_eq!(done.err, "");
    let status = done.object();
    for key in ["actors", "agents", "memory_bytes", "queues", "shards", "version"] {
        assert!(!status[key].is_null(), "{key} is missing in {status}");
    }
    let queue = json!({
        "name": "q", "on_disk": 0, "durability": "journal", "waiting": 2, "scheduled": 0, "running": 1, "completed": 0, "dead": 0,
        "consumers": 1,
    });
    assert_eq!(status["queues"], json!([queue]));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["memory_bytes"].as_u64() > Some(1 << 20));
    assert_eq!(
        (&status["agents"][0]["id"], &status["agents"][0]["labels"]),
        (&json!("somebody"), &json!(["gpu"]))
    );
    assert!(status["shards"].as_array().is_some_and(|s| !s.is_empty()));
    for actor in status["actors"].as_array().expect("a list") {
        assert!(actor["name"].is_string() && actor["restarts"] == 0, "{actor}");
    }
    let text = Done::of(&mut hive(server.folder(), &["status"])).ok().text();
    for word in ["somebody", "waiting", "dispatcher-0", env!("CARGO_PKG_VERSION")] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
}

#[test]
fn status_shows_a_restart() {
    let server = Server::with("faults = true");
    server.panic("hub");
    // It comes with the next message.
    Done::of(&mut hive(server.folder(), &["pub", "a", "x"]));
    crate::harness::eventually("the restart", || (server.restarts("hub-0") == 1).then_some(()));
    let status = Done::of(&mut hive(server.folder(), &["status", "--json"])).ok().object();
    let hub = status["actors"].as_array().and_then(|all| all.iter().find(|a| a["name"] == "hub-0")).cloned();
    assert_eq!(hub.expect("the hub")["restarts"], 1);
    let text = Done::of(&mut hive(server.folder(), &["status"])).ok().text();
    let row = text.lines().find(|l| l.contains("hub-0")).expect("the hub's row");
    assert!(row.split_whitespace().any(|w| w == "1"), "{row}");
}

#[test]
fn stop_waits_until_the_server_has_finished_its_work() {
    let mut server = Server::start();
    let mut worker = server.client();
    let ids = worker.submit("q", &payloads(1));
    let consumer = worker.work("q", 1);
    let task = worker.one(consumer);
    let pid = server.status()["pid"].clone();
    let mut stop = Run::fed(&mut hive(server.folder(), &["stop", "--json"]), b"");
    worker.next(Op::Drain);
    assert!(server.is_running() && stop.is_running(), "a task runs");
    worker.complete(&[task]);
    assert_eq!(worker.results_of(&ids).len(), 1);
    let line = stop.end().ok().object();
    assert_eq!(line, json!({"stopped": true, "server": server.addr.to_string(), "pid": pid}));
    assert_eq!(server.exit().code(), Some(0));
    let dir = server.folder().join("hive");
    assert_eq!(std::fs::read_dir(dir).expect("there").count(), 0, "nobody finds it any more");
}

#[test]
fn stop_gives_up_after_its_time() {
    let mut server = Server::start();
    let mut worker = server.client();
    worker.submit("q", &payloads(1));
    let consumer = worker.work("q", 1);
    worker.one(consumer);
    let done = Done::of(&mut hive(server.folder(), &["stop", "--timeout-s", "0", "--json"]));
    done.fails(1, &["still drains"]);
    assert!(server.is_running());
}

#[test]
fn top_without_a_terminal_is_one_snapshot() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = DevServer::start(folder.path(), &[]);
    Done::of(&mut hive(folder.path(), &["submit", "some-queue", "x"])).ok();
    let done = Done::of(&mut hive(folder.path(), &["top"])).ok();
    assert!(done.text().contains("some-queue") && !done.text().contains('\x1b'), "{done:?}");
    let mut top = Run::fed(&mut hive(folder.path(), &["top", "--json", "--count", "2"]), b"");
    top.prints(1);
    Done::of(&mut hive(folder.path(), &["submit", "some-queue", "x"])).ok();
    let lines = top.end().ok().json();
    assert_eq!(lines.len(), 2);
    let expected = ["completed_per_s", "delivered_per_s", "published_per_s", "submitted_per_s"];
    for line in &lines {
        assert_eq!(keys(&line["rates"]), expected);
        assert_eq!(line["server"], server.addr.to_string());
        assert_eq!(line["queues"][0]["name"], "some-queue");
    }
    let one = Done::of(&mut hive(folder.path(), &["top", "--json", "--count", "1"])).ok().object();
    assert_eq!((&one["totals"]["submitted"], &one["rates"]["submitted_per_s"]), (&json!(2), &json!(0.0)));
}

#[test]
fn codes_are_explained_by_number_and_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let explain = |args: &[&str]| Done::of(&mut hive(folder.path(), &[&["explain"][..], args].concat()));
    let by_number = explain(&["304", "--json"]).ok().object();
    assert_eq!(keys(&by_number), ["code", "help", "name", "retryable"]);
    assert_eq!((&by_number["code"], &by_number["name"]), (&json!(304), &json!("stale_lease")));
    assert_eq!(explain(&["stale_lease", "--json"]).ok().object(), by_number);
    let text = explain(&["stale_lease"]).ok().text();
    assert!(text.starts_with("304 stale_lease") && text.contains(by_number["help"].as_str().expect("text")));
    explain(&["stale_leese", "--json"]).fails(1, &["stale_leese", "did you mean stale_lease?"]);
    explain(&["9999"]).fails(1, &["9999", "hive explain"]);
    let all = explain(&["--json"]).ok().json();
    assert_eq!(all.len(), hive_proto::Code::ALL.len());
    assert!(all.iter().all(|c| keys(c) == keys(&by_number)));
}

#[test]
fn version() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let line = Done::of(&mut hive(folder.path(), &["version", "--json"])).ok().object();
    assert_eq!(line, json!({"version": env!("CARGO_PKG_VERSION"), "protocol": "1.0"}));
    let text = Done::of(&mut hive(folder.path(), &["--version"])).ok().text();
    assert_eq!(text, format!("hive {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_errors_end_with_2() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for args in [
        &["nonsense"][..],
        &["submit"],
        &["submit", "q", "x", "--lines", "f"],
        &["submit", "q", "--from-file", "f", "--lines", "f"],
        &["submit", "q", "x", "--max-attempts", "many"],
        &["work", "q"],
        &["work", "q", "true"],
        &["work", "q", "--jobs", "0", "--", "true"],
        &["pub"],
        &["sub"],
        &["request", "a", "x", "--timeout-ms", "-1"],
        &["status", "--jsno"],
        &["top", "--count", "x"],
        &["demo", "--agents", "0"],
        &["start", "--port", "1"],
    ] {
        Done::of(&mut hive(folder.path(), args)).fails(2, &["error: ", "--help"]);
    }
    Done::of(&mut hive(folder.path(), &[])).fails(2, &["Usage: hive", "start", "submit"]);
    let help = Done::of(&mut hive(folder.path(), &["--help"])).ok().text();
    for command in [
        "start", "stop", "status", "submit", "work", "pub", "sub", "request", "top", "demo", "explain",
        "version",
    ] {
        assert!(help.contains(&format!("  {command} ")), "{command} is not in {help}");
        let own = Done::of(&mut hive(folder.path(), &[command, "--help"])).ok().text();
        assert!(own.contains("--json"), "{command} has no --json: {own}");
    }
}

/// The reader of a command's output may go away.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let server = Server::start();
    let mut command = hive(server.folder(), &["explain", "--json"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = command.stdout(writer).status().expect("starts");
    assert_eq!(status.code(), Some(0));
    let value: Value = server.status();
    assert!(value.is_object());
}
