//! HTTP, and how a server ends.

use std::time::{Duration, Instant};

use hive_proto::messages::{self, Drain};
use hive_proto::{Code, Op};
use rustix::net::sockopt;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Server, TaskOptions, assert_error, eventually, payloads};

#[test]
fn health() {
    let server = Server::start();
    assert_eq!(server.get("/livez"), (200, "ok\n".into()));
    let (code, body) = server.get("/readyz");
    assert_eq!(code, 200);
    let ready: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(ready, serde_json::json!({ "ready": true, "reasons": [] }));
    assert_eq!(server.get("/nothing").0, 404);
    assert!(server.get("/nothing").1.contains("GET /nothing"));
}

#[test]
fn status_has_what_scripts_rely_on() {
    let server = Server::start();
    let mut client = server.agent("me", &["gpu", "model=x"]);
    client.submit("q", &payloads(3));
    let consumer = client.work("q", 1);
    let task = client.one(consumer);
    client.complete(&[task]);
    let s = server.status();
    for key in [
        "version",
        "pid",
        "uptime_s",
        "dev",
        "draining",
        "server",
        "http",
        "memory_bytes",
        "memory_bytes_max",
    ] {
        assert!(!s[key].is_null(), "{key} is missing in {s}");
    }
    for key in ["connections", "queues", "agents", "agents_total", "shards", "actors", "totals"] {
        assert!(!s[key].is_null(), "{key} is missing in {s}");
    }
    assert_eq!(
        (&s["server"], &s["http"]),
        (&server.addr.to_string().into(), &server.http.to_string().into())
    );
    let rss = s["memory_bytes"].as_u64().expect("bytes");
    assert!((1 << 20..1 << 30).contains(&rss), "{rss}");
    let q = server.queue("q").expect("there");
    let expected = serde_json::json!({
        "name": "q", "durability": "journal", "waiting": 1, "on_disk": 0, "scheduled": 0, "running": 1, "completed": 1, "dead": 0,
        "consumers": 1,
    });
    assert_eq!(q, expected);
    let agent = &s["agents"][0];
    assert_eq!((&agent["id"], &agent["labels"]), (&"me".into(), &serde_json::json!(["gpu", "model=x"])));
    assert_eq!(agent["client"], "integration-tests");
    let names: Vec<_> = s["actors"].as_array().expect("actors").iter().map(|a| a["name"].clone()).collect();
    for name in ["dispatcher-0", "hub-0", "sessions-0"] {
        assert!(names.contains(&name.into()), "{names:?}");
    }
    let d = &s["shards"][0]["dispatcher"];
    for key in ["epoch", "batches", "tasks", "decision_ns", "queued_ns", "memory_bytes"] {
        assert!(!d[key].is_null(), "{key} is missing in {d}");
    }
    assert!(d["decision_ns"]["count"].as_u64() > Some(0));
    let t = &s["totals"];
    assert_eq!((&t["submitted"], &t["completed"], &t["refused"]), (&3.into(), &1.into(), &0.into()));
}

#[test]
fn stop_and_faults_need_the_token() {
    let mut server = Server::start();
    for path in ["/v1/stop", "/v1/faults/panic?actor=hub"] {
        let (code, body) = server.post(path, None);
        assert!(code == 401 && body.contains("Bearer TOKEN"), "{path}: {code} {body}");
        assert_eq!(server.post(path, Some("guess")).0, 403, "{path}");
    }
    assert_eq!(server.get("/v1/stop").0, 404, "not by GET");
    let (code, body) = server.post("/v1/faults/panic?actor=hub", Some(&server.token));
    assert!(code == 404 && body.contains("faults = false"), "{code} {body}");
    assert!(server.is_running());
    assert_eq!(server.status()["draining"], false);
}

#[test]
fn a_stop_drains() {
    // What is in memory only is worked off as far as there are workers.
    let mut server = Server::with("queue_defaults.durability = \"memory\"");
    let (mut submitter, mut worker) = (server.client(), server.client());
    let ids = submitter.submit("q", &payloads(2));
    let consumer = worker.work("q", 1);
    let task = worker.one(consumer);
    let (code, body) = server.stop();
    assert_eq!((code, body), (202, "{\"stopping\":true}".into()));
    for client in [&mut submitter, &mut worker] {
        let drain: Drain = messages::decode(client.next(Op::Drain).view().header).expect("well-formed");
        assert!(drain.reason.contains("shutting down") && drain.grace_ms == 30_000, "{drain:?}");
    }
    let e = submitter.try_submit("q", &[b"late"], &TaskOptions::default()).expect_err("refused");
    assert_error(&e, Code::Draining, "shutting down");
    let (code, body) = server.get("/readyz");
    assert!(code == 503 && body.contains("draining"), "{code} {body}");
    assert!(server.is_running(), "a task runs");
    worker.complete(&[task]);
    let next = worker.one(consumer);
    worker.complete(&[next]);
    assert_eq!(submitter.results_of(&ids).len(), 2);
    submitter.closed();
    worker.closed();
    assert_eq!(server.exit().code(), Some(0));
}

#[test]
fn a_drain_ends_in_its_time() {
    let mut server = Server::with("drain_ms = 300");
    let mut worker = server.client();
    worker.submit("q", &payloads(1));
    let consumer = worker.work("q", 1);
    worker.one(consumer);
    let began = Instant::now();
    server.stop();
    assert_eq!(server.exit().code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(300));
    worker.closed();
}

#[test]
fn a_stop_without_work_is_quick() {
    let mut server = Server::start();
    let mut idle = server.client();
    server.stop();
    idle.next(Op::Drain);
    idle.closed();
    assert_eq!(server.exit().code(), Some(0));
}

#[test]
fn a_signal_drains_and_a_second_one_quits() {
    let mut server = Server::start();
    let mut worker = server.client();
    worker.submit("q", &payloads(1));
    let consumer = worker.work("q", 1);
    worker.one(consumer);
    server.signal(Signal::TERM);
    worker.next(Op::Drain);
    eventually("not ready", || (server.get("/readyz").0 == 503).then_some(()));
    assert!(server.is_running(), "a task runs");
    let began = Instant::now();
    server.signal(Signal::TERM);
    server.exit();
    assert!(began.elapsed() < Duration::from_secs(10), "the drain would take 30 s");
    worker.closed();
}

/// What was pushed before the end still reaches a client that was slow to read it.
#[test]
fn results_that_wait_are_written_before_the_end() {
    let mut server = Server::start();
    let (mut submitter, mut worker) = (server.client(), server.client());
    sockopt::set_socket_recv_buffer_size(&submitter.wire.stream, 64 * 1024).expect("a small buffer");
    let ids = submitter.submit("q", &payloads(60));
    let consumer = worker.work("q", 60);
    let tasks = worker.gather(consumer, 60);
    server.stop();
    worker.next(Op::Drain);
    // More than the sockets hold; the submitter reads none of it until the server has begun to close.
    for task in &tasks {
        assert_eq!(worker.complete_with(task.lease, &vec![7; 100_000]).accepted, 1);
    }
    worker.closed();
    assert!(submitter.results_of(&ids).iter().all(|o| o.payload.len() == 100_000));
    submitter.closed();
    assert_eq!(server.exit().code(), Some(0));
}
