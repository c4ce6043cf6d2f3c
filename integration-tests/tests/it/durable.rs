//! Tasks that survive the server: kill -9, stops, and what clients see of it.

use std::time::Duration;

use hive_proto::items::{Assign, Task};
use hive_proto::{Code, Op, TaskState};

use crate::harness::{Client, Server, TaskOptions, binary, command, eventually, items, outcome, payloads};

/// Waiting, scheduled, running, completed, dead and cancelled tasks of two queues.
#[test]
fn everything_comes_back_after_kill_9() {
    let server = Server::with("queue_defaults.attempts_max = 2\nqueue_defaults.retry_delay_ms = 0");
    let (mut client, mut worker) = (server.client(), server.client());
    let ids = client.submit("q", &payloads(100));
    let label = TaskOptions { labels: vec!["gpu".into()], ..TaskOptions::default() };
    let labelled = client.submit_with("q", &[b"labelled"], &label);
    let later = TaskOptions { delay_ms: Some(3_600_000), ..TaskOptions::default() };
    let scheduled = client.submit_with("other", &[b"later"], &later);
    let consumer = worker.work("q", 30);
    let tasks = worker.gather(consumer, 30);
    for task in &tasks[..10] {
        assert_eq!(worker.complete_with(task.lease, &task.payload).accepted, 1);
    }
    assert_eq!(worker.fail(tasks[10].lease, 0, false, "broken").accepted, 1);
    assert_eq!(client.cancel(&ids[99..]).accepted, 1);
    let server = server.killed_and_started_again();
    let mut client = server.client();
    let states = |client: &mut Client, ids: &[hive_proto::TaskId]| {
        client.query(ids).iter().map(|t| t.state).collect::<Vec<_>>()
    };
    let done = client.query(&ids[..10]);
    assert!(done.iter().zip(payloads(10)).all(|(t, p)| (t.state, &t.payload) == (TaskState::Completed, &p)));
    // What ran waits again; nothing else has changed.
    assert!(states(&mut client, &ids[10..99]).iter().all(|s| *s == TaskState::Waiting));
    assert_eq!(states(&mut client, &ids[99..]), [TaskState::Cancelled]);
    assert_eq!(states(&mut client, &scheduled), [TaskState::Scheduled]);
    server.queue_has("q", "waiting", 90);
    server.queue_has("q", "completed", 10);
    server.queue_has("other", "scheduled", 1);
    let mut worker = server.agent("w", &["gpu"]);
    let consumer = worker.work("q", 200);
    let tasks = worker.gather(consumer, 90);
    assert!(tasks.iter().any(|t| t.lease.task == labelled[0] && t.payload == b"labelled"));
    // The attempt that failed before the kill counts.
    let task = tasks.iter().find(|t| t.lease.task == ids[10]).expect("the failed one");
    worker.fail(task.lease, 0, false, "again");
    let dead = client.list_dead("q", 10).expect("a list");
    assert_eq!((dead.len(), &dead[0].payload[..]), (1, &b"again"[..]));
    let server = server.killed_and_started_again();
    assert_eq!(server.client().list_dead("q", 10).expect("a list"), dead);
}

#[test]
fn a_lease_of_the_server_before_is_void() {
    let server = Server::start();
    let (mut client, mut worker) = (server.client(), server.client());
    let ids = client.submit("q", &[b"x"]);
    let consumer = worker.work("q", 1);
    let old = worker.one(consumer);
    let server = server.killed_and_started_again();
    let mut worker = server.client();
    let refused = worker.complete_with(old.lease, b"late");
    assert_eq!(refused.refused, [(0, Code::StaleLease)]);
    let consumer = worker.work("q", 1);
    let new = worker.one(consumer);
    assert_eq!((new.lease.task, new.lease.epoch > old.lease.epoch), (ids[0], true));
    assert_eq!(worker.complete_with(old.lease, b"late").refused, [(0, Code::StaleLease)]);
    assert_eq!(worker.complete_with(new.lease, b"done").accepted, 1);
    assert_eq!(server.client().query(&ids)[0].payload, b"done");
}

/// A dispatcher that is made anew has a new epoch, and gives no lease before the journal knows it: else the next process could
/// give the same lease again.
#[test]
fn no_lease_is_given_twice_by_a_panic_and_a_kill() {
    let mut server = Server::with("faults = true");
    // Each start takes a second's epoch, so that many starts are ahead of the clock.
    for _ in 0..6 {
        server = server.killed_and_started_again();
    }
    let (mut client, mut worker) = (server.client(), server.client());
    // The more often the journaler has died, the longer it takes to come back.
    for n in 1..=5 {
        server.panic("journaler");
        client.submit("other", &[b"x"]);
        eventually("the journaler is back", || (server.restarts("journaler") == n).then_some(()));
    }
    client.submit("q", &[b"x"]);
    let consumer = worker.work("q", 1);
    let before = worker.one(consumer).lease;
    server.panic("journaler");
    server.panic("dispatcher");
    // The first one makes it panic, the others make it work.
    let lease = eventually("the lease of the next incarnation", || {
        client.send(Op::Query, 0, 0, 0, &[], &[]);
        let frame = worker.poll(Duration::from_millis(1))?;
        items::<Assign<'_>>(&frame).first().map(|a| a.lease)
    });
    assert!(lease.epoch > before.epoch, "{lease:?} {before:?}");
    let server = server.killed_and_started_again();
    let mut worker = server.client();
    let consumer = worker.work("q", 1);
    let after = worker.one(consumer).lease;
    assert!(after.epoch > lease.epoch, "{after:?} follows {lease:?}");
}

/// Sessions are numbered anew by each process: after a panic nobody is told what another submitted to the process before.
#[test]
fn a_panic_tells_nobody_the_results_of_the_process_before() {
    let server = Server::with("faults = true");
    let mut client = server.client();
    let old = client.submit("q", &[b"secret"]);
    let server = server.killed_and_started_again();
    let mut strangers: Vec<_> = (0..4).map(|_| server.client()).collect();
    let new = strangers[0].submit("q", &[b"mine"]);
    server.panic("dispatcher");
    let mut worker = server.client();
    eventually("the restart", || {
        strangers[1].send(Op::Query, 0, 0, 0, &[], &[]);
        (server.restarts("dispatcher-0") == 1).then_some(())
    });
    let consumer = worker.work("q", 2);
    let tasks = worker.gather(consumer, 2);
    assert_eq!(worker.complete(&tasks).accepted, 2);
    assert_eq!(worker.query(&old)[0].state, TaskState::Completed);
    let told: Vec<_> = strangers[0].results(1).iter().map(|o| o.task).collect();
    assert_eq!(told, new, "whoever submitted is still there, and is told");
    assert!(strangers.iter_mut().all(|s| s.count(Op::Result) == 0), "nobody else is");
}

/// A stop finishes what runs; what waits is there when the server comes back.
#[test]
fn a_stop_leaves_what_waits() {
    let mut server = Server::start();
    let (mut client, mut worker) = (server.client(), server.client());
    let ids = client.submit("q", &payloads(5));
    let consumer = worker.work("q", 1);
    let task = worker.one(consumer);
    server.stop();
    worker.next(Op::Drain);
    worker.complete(&[task]);
    // The result is pushed before the connection ends.
    let results = client.results_of(&ids[..1]);
    assert_eq!(results.len(), 1);
    worker.closed();
    assert_eq!(server.exit().code(), Some(0));
    let server = server.started_again();
    server.queue_has("q", "waiting", 4);
    assert_eq!(server.client().query(&ids[..1])[0].state, TaskState::Completed);
}

#[test]
fn a_memory_queue_says_so_and_is_gone() {
    let server = Server::with("[[queues]]\nname = \"fast\"\ndurability = \"memory\"\n");
    let mut client = server.client();
    let fast = client.try_submit("fast", &payloads(3), &TaskOptions::default()).expect("taken");
    let kept = client.try_submit("kept", &payloads(3), &TaskOptions::default()).expect("taken");
    assert_eq!((fast.durability, kept.durability), (0, 1));
    let server = server.killed_and_started_again();
    let mut client = server.client();
    assert!(client.query(&fast.tasks).iter().all(|t| t.state == TaskState::Unknown));
    assert!(client.query(&kept.tasks).iter().all(|t| t.state == TaskState::Waiting));
    // Sequences never repeat, whatever was lost.
    let again = client.submit("fast", &payloads(3));
    assert!(again.iter().all(|id| !fast.tasks.contains(id) && !kept.tasks.contains(id)));
}

/// Nobody hears of a result before it is on the disk, and a submitter who watches hears of it once it is.
#[test]
fn results_are_pushed_after_their_sync() {
    let server = Server::start();
    let (mut client, mut worker) = (server.client(), server.client());
    let ids = client.submit("q", &payloads(50));
    let consumer = worker.work("q", 50);
    let tasks = worker.gather(consumer, 50);
    worker.complete(&tasks);
    let mut seen = 0;
    while seen < 50 {
        seen += items::<Task<'_>>(&client.next(Op::Result)).len();
    }
    let server = server.killed_and_started_again();
    assert!(server.client().query(&ids).iter().all(|t| t.state == TaskState::Completed));
}

#[test]
fn a_directory_in_use_is_refused() {
    let server = Server::start();
    let data = server.folder().join("data");
    let mut command = command(&["--data-dir", &data.to_string_lossy()]);
    let (code, text) = outcome(&mut command);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("in use by another process") && text.contains("journal"), "{text}");
    server.client().echo();
}

/// Damage in the middle is not repaired: the server refuses to start, says where it is and what to do.
#[test]
fn a_damaged_journal_is_refused() {
    let mut server = Server::start();
    let mut client = server.client();
    for _ in 0..5 {
        client.submit("q", &payloads(10));
    }
    server.stop();
    assert_eq!(server.exit().code(), Some(0));
    let file = std::fs::read_dir(server.journal())
        .expect("the journal")
        .map(|f| f.expect("an entry").path())
        .find(|p| p.extension().is_some_and(|e| e == "seg"))
        .expect("a segment");
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[300] ^= 1;
    std::fs::write(&file, bytes).expect("writable");
    let data = server.folder().join("data");
    let mut command = command(&["--data-dir", &data.to_string_lossy()]);
    let (code, text) = outcome(&mut command);
    assert_eq!(code, Some(74), "{text}");
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    for part in [&name[..], "offset", "restore"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn a_journal_needs_a_place() {
    let mut command = std::process::Command::new(binary());
    command.args(["start", "--durability", "journal", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let (code, text) = outcome(&mut command);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
}
