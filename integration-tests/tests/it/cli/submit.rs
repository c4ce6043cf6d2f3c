//! `hive submit`.

use std::process::Command;

use hive_proto::Code;
use serde_json::{Value, json};

use crate::harness::{Client, Server, error_of};

use super::{Done, Run, hive, keys};

fn submit(server: &Server, args: &[&str]) -> Command {
    hive(server.folder(), &[&["submit"][..], args].concat())
}

/// The payloads that wait in a queue.
fn waiting(server: &Server, queue: &str, n: usize) -> Vec<Vec<u8>> {
    let mut worker = server.client();
    let consumer = worker.work(queue, 100);
    worker.gather(consumer, n).into_iter().map(|t| t.payload).collect()
}

#[test]
fn a_line_for_each_task_when_it_is_acknowledged() {
    let server = Server::start();
    let line = Done::of(&mut submit(&server, &["q", "hello", "--json"])).ok().object();
    assert_eq!(keys(&line), ["durability", "task"]);
    assert_eq!(line["durability"], "journal");
    let lines =
        Done::fed(&mut submit(&server, &["q", "--lines", "-", "--json"]), b"one\r\n\ntwo\xff\nlast").ok();
    assert!(lines.err.contains("submitted 4 tasks"), "{lines:?}");
    let mut ids: Vec<Value> = lines
        .json()
        .into_iter()
        .map(|l| {
            assert_eq!(keys(&l), ["durability", "task"]);
            l["task"].clone()
        })
        .collect();
    ids.push(line["task"].clone());
    assert!(ids.iter().all(Value::is_string), "{ids:?}");
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), 5, "every task has an id of its own");
    assert_eq!(waiting(&server, "q", 5), [&b"hello"[..], b"one\r", b"", b"two\xff", b"last"]);
}

#[test]
fn payloads_come_from_arguments_files_and_pipes() {
    let server = Server::start();
    let file = server.folder().join("payload");
    std::fs::write(&file, b"from\na file\xff\n").expect("written");
    let file = file.to_string_lossy();
    let plain = Done::of(&mut submit(&server, &["q", "--from-file", &file])).ok();
    assert_eq!(plain.text().lines().count(), 1, "the id: {plain:?}");
    Done::of(&mut submit(&server, &["q", "--lines", &file])).ok();
    Done::fed(&mut submit(&server, &["q", "-"]), b"piped\n").ok();
    Done::fed(&mut submit(&server, &["q"]), b"piped too").ok();
    Done::fed(&mut submit(&server, &["q", "--from-file", "-"]), b"and again").ok();
    Done::of(&mut submit(&server, &["q", "-x 5"])).ok();
    let expected: [&[u8]; 7] =
        [b"from\na file\xff\n", b"from", b"a file\xff", b"piped\n", b"piped too", b"and again", b"-x 5"];
    assert_eq!(waiting(&server, "q", 7), expected);
}

/// Answers `n` tasks of a queue with a function of their payloads.
fn serve(worker: &mut Client, queue: &str, n: usize, result: impl Fn(&[u8]) -> Vec<u8>) {
    let consumer = worker.work(queue, 100);
    let mut left = n;
    while left > 0 {
        for task in worker.assigned(consumer) {
            worker.complete_with(task.lease, &result(&task.payload));
            left -= 1;
        }
    }
}

#[test]
fn waiting_gives_the_outcome_and_the_result() {
    let server = Server::start();
    let run = Run::fed(&mut submit(&server, &["q", "hello", "--wait", "--json"]), b"");
    let bytes = Run::fed(&mut submit(&server, &["bytes", "x", "--wait", "--json"]), b"");
    let plain = Run::fed(&mut submit(&server, &["plain", "x", "--wait"]), b"");
    let mut worker = server.client();
    serve(&mut worker, "q", 1, |p| [b"done: ", p].concat());
    serve(&mut worker, "bytes", 1, |_| vec![0xff, 0xfe]);
    serve(&mut worker, "plain", 1, |_| b"as\nit \xff is".to_vec());
    let lines = run.end().ok().json();
    assert_eq!(lines.len(), 2);
    assert_eq!(keys(&lines[0]), ["durability", "task"]);
    assert_eq!(lines[1], json!({"task": lines[0]["task"], "outcome": "completed", "result": "done: hello"}));
    let line = &bytes.end().ok().json()[1];
    assert_eq!((&line["result"], &line["encoding"]), (&json!("//4="), &json!("base64")));
    assert_eq!(plain.end().ok().out, b"as\nit \xff is");
}

#[test]
fn waiting_for_many() {
    let server = Server::start();
    let input: String = (0..300).map(|i| format!("line {i}\n")).collect();
    let json = Run::fed(&mut submit(&server, &["q", "--lines", "-", "--wait", "--json"]), input.as_bytes());
    let plain = Run::fed(&mut submit(&server, &["p", "--lines", "-", "--wait"]), b"a\nb\n");
    serve(&mut server.client(), "q", 300, |p| [b"done: ", p].concat());
    serve(&mut server.client(), "p", 2, |p| [b"done: ", p].concat());
    let lines = json.end().ok().json();
    let (outcomes, accepted): (Vec<_>, Vec<_>) = lines.iter().partition(|l| !l["outcome"].is_null());
    assert_eq!((outcomes.len(), accepted.len()), (300, 300));
    assert!(outcomes.iter().all(|l| keys(l) == ["outcome", "result", "task"] && l["outcome"] == "completed"));
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let text = |l: &&Value, key: &str| l[key].as_str().expect("text").to_owned();
    let of = |all: &[&Value], key: &str| sorted(all.iter().map(|l| text(l, key)).collect());
    assert_eq!(of(&outcomes, "task"), of(&accepted, "task"));
    assert_eq!(of(&outcomes, "result"), sorted((0..300).map(|i| format!("done: line {i}")).collect()));
    let plain = plain.end().ok();
    let rows =
        sorted(plain.text().lines().map(|l| l.split_once('\t').expect("columns").1.to_owned()).collect());
    assert_eq!(rows, ["completed\tdone: a", "completed\tdone: b"]);
}

#[test]
fn a_task_that_does_not_complete_makes_the_command_fail() {
    let server = Server::start();
    let dead = Run::fed(&mut submit(&server, &["dead", "x", "--wait", "--json"]), b"");
    let cancelled = Run::fed(&mut submit(&server, &["cancelled", "x", "--wait", "--json"]), b"");
    let plain = Run::fed(&mut submit(&server, &["plain", "x", "--wait"]), b"");
    let mut client = server.client();
    for queue in ["dead", "plain"] {
        let consumer = client.work(queue, 1);
        let task = client.one(consumer);
        client.fail(task.lease, 0, true, "no good");
    }
    let consumer = client.work("cancelled", 1);
    let task = client.one(consumer);
    client.cancel(&[task.lease.task]);
    for (run, outcome, result) in [(dead, "dead", Some("no good")), (cancelled, "cancelled", None)] {
        let done = run.end();
        assert_eq!(done.code, Some(1), "{done:?}");
        let line = &done.json()[1];
        assert_eq!(keys(line), ["outcome", "result", "task"]);
        assert_eq!(line["outcome"], outcome);
        assert!(result.is_none_or(|r| line["result"] == r), "{line}");
        assert!(done.err.contains("1 of 1 tasks did not complete"), "{done:?}");
    }
    plain.end().fails(1, &["is dead: no good"]);
}

#[test]
fn options_reach_the_server() {
    let server = Server::start();
    Done::of(&mut submit(&server, &["q", "later", "--delay-ms", "3600000"])).ok();
    server.queue_has("q", "scheduled", 1);
    Done::of(&mut submit(&server, &["q", "fast gpu", "--label", "gpu", "--label", "fast"])).ok();
    Done::of(&mut submit(&server, &["q", "any", "--max-attempts", "1"])).ok();
    let mut worker = server.client();
    let any = worker.work("q", 10);
    let task = worker.one(any);
    assert_eq!(task.payload, b"any");
    worker.fail(task.lease, 0, false, "once is enough");
    server.queue_has("q", "dead", 1);
    let able = worker.work_as("q", 10, 1 << 20, &["gpu", "fast", "big"]).expect("a consumer");
    assert_eq!(worker.one(able).payload, b"fast gpu");
}

#[test]
fn what_cannot_be_submitted_is_refused() {
    let server = Server::start();
    let refused = |args: &[&str], names: &[&str]| Done::of(&mut submit(&server, args)).fails(1, names);
    refused(&["a b", "x", "--json"], &["a b", "hive explain"]);
    refused(&["q", "--from-file", "/nowhere/at all", "--json"], &["/nowhere/at all"]);
    refused(&["q", "--lines", "/nowhere/at all", "--json"], &["/nowhere/at all"]);
    let large = server.folder().join("large");
    std::fs::File::create(&large).and_then(|f| f.set_len(20 << 20)).expect("a large file");
    refused(&["q", "--from-file", &large.to_string_lossy(), "--json"], &["bytes"]);
    let strict = Server::with("[limits]\nqueues_auto_create = false");
    let mut client = strict.client();
    let id = client.ask_submit("q", &["x"], &crate::harness::TaskOptions::default());
    let frame = client.take("the refusal", |p| p.id == id);
    assert_eq!(error_of(&frame).code(), Some(Code::UnknownQueue));
    Done::of(&mut submit(&strict, &["q", "x", "--json"])).fails(1, &["unknown_queue"]);
}
