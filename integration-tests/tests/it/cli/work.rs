//! `hive work`: any command is a worker.

use std::path::{Path, PathBuf};

use hive_proto::TaskState;
use rustix::process::{Pid, Signal, test_kill_process};

use crate::harness::{Server, TaskOptions, eventually};

use super::{Done, Run, hive, keys};

/// A worker that runs a shell script for each task, once it is there.
fn worker(server: &Server, queue: &str, script: &str) -> Run {
    let mut command =
        hive(server.folder(), &["work", queue, "--jobs", "2", "--json", "--", "sh", "-c", script]);
    let mut run = Run::fed(command.env("FOLDER", server.folder()), b"");
    run.says(&format!("working on {queue}"));
    run
}

/// Ends a worker that has nothing to do; gives what it has printed.
fn stopped(run: Run) -> Vec<serde_json::Value> {
    run.signal(Signal::TERM);
    run.end().ok().json()
}

#[test]
fn output_is_the_result_and_the_environment_tells_which_task() {
    let server = Server::start();
    let mut run =
        worker(&server, "q", r#"cat; printf ' %s %s %s' "$HIVE_TASK" "$HIVE_ATTEMPT" "$HIVE_QUEUE""#);
    let mut client = server.client();
    let ids = client.submit("q", &[b"payload \xff\n"]);
    let outcome = client.results_of(&ids).remove(0);
    run.prints(1);
    let lines = stopped(run);
    let id = ids[0].to_string();
    assert_eq!(outcome.state, TaskState::Completed);
    assert_eq!(outcome.payload, [b"payload \xff\n ", format!("{id} 1 q").as_bytes()].concat());
    assert_eq!(lines.len(), 1);
    assert_eq!(keys(&lines[0]), ["attempt", "exit", "ms", "outcome", "task"]);
    assert_eq!((&lines[0]["task"], &lines[0]["outcome"]), (&id.into(), &"completed".into()));
    assert_eq!((&lines[0]["exit"], &lines[0]["attempt"]), (&0.into(), &1.into()));
}

#[test]
fn a_large_payload_and_a_large_result_pass_through() {
    let server = Server::start();
    let _run = worker(&server, "q", "cat");
    let payload: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let done = Done::fed(&mut hive(server.folder(), &["submit", "q", "-", "--wait"]), &payload).ok();
    assert!(done.out == payload, "{} bytes", done.out.len());
}

#[test]
fn exit_code_65_is_a_dead_letter_at_once() {
    let server = Server::start();
    let mut run = worker(&server, "q", "echo 'bad data' >&2; exit 65");
    let mut client = server.client();
    let ids = client.submit("q", &["x"]);
    let outcome = client.results_of(&ids).remove(0);
    assert_eq!((outcome.state, outcome.attempt), (TaskState::Dead, 1));
    assert_eq!(outcome.payload, b"exit code 65: bad data");
    let dead = client.list_dead("q", 10).expect("a list");
    assert_eq!(dead.iter().map(|o| o.task).collect::<Vec<_>>(), ids);
    run.prints(1);
    let line = stopped(run).remove(0);
    assert_eq!((&line["outcome"], &line["exit"]), (&"failed".into(), &65.into()));
}

#[test]
fn other_exit_codes_and_signals_are_tried_again() {
    let server = Server::with("[[queues]]\nname = \"q\"\nretry_delay_ms = 1\n");
    let script = r#"case $HIVE_ATTEMPT in 1) exit 75;; 2) exit 1;; 3) kill -9 $$;; *) echo "at last";; esac"#;
    let mut run = worker(&server, "q", script);
    let mut client = server.client();
    let ids = client.submit("q", &["x"]);
    let outcome = client.results_of(&ids).remove(0);
    assert_eq!((outcome.state, outcome.attempt), (TaskState::Completed, 4));
    assert_eq!(outcome.payload, b"at last\n");
    let last =
        client.submit_with("q", &["y"], &TaskOptions { max_attempts: Some(2), ..TaskOptions::default() });
    let outcome = client.results_of(&last).remove(0);
    assert_eq!((outcome.state, outcome.attempt), (TaskState::Dead, 2));
    assert_eq!(outcome.payload, b"exit code 1");
    run.prints(6);
    let lines = stopped(run);
    let exits: Vec<_> = lines.iter().map(|l| (l["attempt"].as_u64(), l["exit"].as_i64())).collect();
    let of = |attempt, exit| (Some(attempt), exit);
    assert_eq!(exits[..4], [of(1, Some(75)), of(2, Some(1)), of(3, None), of(4, Some(0))]);
}

/// A script that says which processes it consists of, and does not end before a file is there.
const PATIENT: &str = "trap '' TERM; sleep 100 & echo $$ $! > $FOLDER/new; mv $FOLDER/new $FOLDER/pids; \
    while [ -d $FOLDER -a ! -e $FOLDER/go ]; do sleep 0.02; done; echo finished";

fn pids(folder: &Path) -> Vec<Pid> {
    let file = folder.join("pids");
    eventually("the script's processes", || file.exists().then_some(()));
    let text = std::fs::read_to_string(file).expect("there");
    let pids: Vec<_> = text.split_whitespace().map(|p| p.parse().expect("a number")).collect();
    assert_eq!(pids.len(), 2, "{text:?}");
    pids.into_iter().map(|p| Pid::from_raw(p).expect("a process")).collect()
}

/// Waits until processes are gone, or nobody but a parent that takes its time knows of them.
fn gone(pids: &[Pid]) {
    let stat = |p: &Pid| -> PathBuf { format!("/proc/{}/stat", p.as_raw_nonzero()).into() };
    let zombie = |p: &Pid| {
        std::fs::read_to_string(stat(p))
            .is_ok_and(|s| s.rsplit_once(") ").is_some_and(|s| s.1.starts_with('Z')))
    };
    let is_gone = |p: &Pid| test_kill_process(*p).is_err() || zombie(p);
    eventually("the end of the process group", || pids.iter().all(is_gone).then_some(()));
}

#[test]
fn a_signal_finishes_what_runs_and_takes_nothing_new() {
    let server = Server::start();
    let mut run = worker(&server, "q", PATIENT);
    let mut client = server.client();
    let ids = client.submit("q", &["first"]);
    let pids = pids(server.folder());
    run.signal(Signal::TERM);
    run.says("finishing 1 running task");
    let late = client.submit("q", &["late"]);
    assert!(run.is_running());
    std::fs::write(server.folder().join("go"), "").expect("written");
    let outcome = client.results_of(&ids).remove(0);
    assert_eq!((outcome.state, &outcome.payload[..]), (TaskState::Completed, &b"finished\n"[..]));
    let lines = run.end().ok().json();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["outcome"], "completed");
    gone(&pids); // What the script has left behind, too.
    assert_eq!(client.query(&late)[0].state, TaskState::Waiting);
}

/// A daemon keeps the command's standard output open.
#[test]
fn what_a_command_leaves_behind_holds_up_no_result() {
    let server = Server::start();
    let script = "setsid sh -c 'while [ -d $FOLDER -a ! -e $FOLDER/go ]; do sleep 0.02; done' & echo done";
    let _run = worker(&server, "q", script);
    let mut client = server.client();
    let ids = client.submit("q", &["x"]);
    assert_eq!(client.results_of(&ids)[0].payload, b"done\n");
    std::fs::write(server.folder().join("go"), "").expect("written");
}

#[test]
fn a_second_signal_kills() {
    let server = Server::start();
    let mut run = worker(&server, "q", PATIENT);
    let mut client = server.client();
    let ids = client.submit("q", &["x"]);
    let pids = pids(server.folder());
    run.signal(Signal::TERM);
    run.says("finishing 1 running task");
    run.signal(Signal::INT);
    run.end().fails(1, &["killed 1 running task"]);
    gone(&pids);
    let consumer = client.work("q", 1);
    assert_eq!(client.one(consumer).lease.task, ids[0], "somebody else gets it");
}

#[test]
fn a_revoked_lease_kills_the_process_group() {
    let server = Server::start();
    let mut run = worker(&server, "q", PATIENT);
    let mut client = server.client();
    let ids = client.submit("q", &["cancelled"]);
    let running = pids(server.folder());
    assert_eq!(client.cancel(&ids).accepted, 1);
    gone(&running);
    assert_eq!(client.results_of(&ids)[0].state, TaskState::Cancelled);
    run.prints(1);
    // The worker goes on.
    std::fs::write(server.folder().join("go"), "").expect("written");
    let next = client.submit("q", &["next"]);
    assert_eq!(client.results_of(&next)[0].state, TaskState::Completed);
    run.prints(2);
    let outcomes: Vec<_> = stopped(run).iter().map(|l| l["outcome"].clone()).collect();
    assert_eq!(outcomes, ["revoked", "completed"]);
}

#[test]
fn a_lost_connection_kills_the_process_group() {
    let server = Server::start();
    let mut run = worker(&server, "q", PATIENT);
    let mut client = server.client();
    client.submit("q", &["x"]);
    let running = pids(server.folder());
    server.signal(Signal::KILL);
    gone(&running);
    run.prints(1);
    assert!(run.is_running(), "it waits for the server to come back");
    assert_eq!(stopped(run)[0]["outcome"], "revoked");
}

#[test]
fn a_command_that_is_not_there_costs_no_task() {
    let server = Server::start();
    let run = Run::fed(&mut hive(server.folder(), &["work", "q", "--json", "--", "/nowhere/agent"]), b"");
    let mut client = server.client();
    let ids = client.submit("q", &["x"]);
    run.end().fails(1, &["/nowhere/agent"]);
    let consumer = client.work("q", 1);
    let task = client.one(consumer);
    assert_eq!(task.lease.task, ids[0]);
}

#[test]
fn labels_decide_what_a_worker_gets() {
    let server = Server::start();
    let mut client = server.client();
    let needs = TaskOptions { labels: vec!["gpu".into()], ..TaskOptions::default() };
    let ids = client.submit_with("q", &["x"], &needs);
    let mut plain = worker(&server, "q", "echo plain");
    let any = client.submit("q", &["y"]);
    assert_eq!(client.results_of(&any)[0].payload, b"plain\n");
    plain.prints(1);
    let args = ["work", "q", "--label", "gpu", "--json", "--", "echo", "able"];
    let mut able = Run::fed(&mut hive(server.folder(), &args), b"");
    assert_eq!(client.results_of(&ids)[0].payload, b"able\n");
    able.prints(1);
    assert_eq!((stopped(able).len(), stopped(plain).len()), (1, 1));
}
