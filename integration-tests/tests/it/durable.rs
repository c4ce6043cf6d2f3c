//! Tasks that survive the server: kill -9, stops, and what clients see of it.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hive_proto::items::{Assign, Complete, Item, Task};
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

/// Dead letters that wait again, and those that are forgotten, are that after a kill as well.
#[test]
fn what_becomes_of_dead_letters_survives() {
    let server = Server::with("queue_defaults.attempts_max = 1");
    let (mut client, mut worker) = (server.client(), server.client());
    let ids = client.submit("q", &payloads(4));
    let consumer = worker.work("q", 4);
    for task in worker.gather(consumer, 4) {
        worker.fail(task.lease, 0, false, "broken");
    }
    client.results(4);
    drop(worker);
    assert_eq!(client.redrive(&ids[..2]).accepted, 2);
    assert_eq!(client.purge(&ids[2..3]).accepted, 1);
    let server = server.killed_and_started_again();
    let (mut client, mut worker) = (server.client(), server.client());
    let states: Vec<TaskState> = client.query(&ids).iter().map(|t| t.state).collect();
    let (waiting, unknown, dead) = (TaskState::Waiting, TaskState::Unknown, TaskState::Dead);
    assert_eq!(states, [waiting, waiting, unknown, dead]);
    let consumer = worker.work("q", 4);
    let again = worker.gather(consumer, 2);
    assert!(again.iter().zip(payloads(2)).all(|(t, p)| t.payload == p && t.lease.attempt == 2));
    worker.complete(&again[..1]);
    worker.fail(again[1].lease, 0, false, "broken again");
    let told: Vec<_> = client.list_dead("q", 9).expect("a list").into_iter().map(|d| d.task).collect();
    assert_eq!(told, [ids[1], ids[3]]);
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
        let is_task = frame.view().op() == Ok(Op::Assign); // not the end of the lease before
        is_task.then(|| items::<Assign<'_>>(&frame)[0].lease)
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
    let mut command = Command::new(binary());
    command.args(["start", "--durability", "journal", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let (code, text) = outcome(&mut command);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
}

/// Segments go once a snapshot covers them, while the server serves; what is left is the state.
#[test]
fn snapshots_are_taken_and_the_journal_is_trimmed() {
    let config = "limits.message_bytes_max = 65536\nlimits.frame_bytes_max = 65536\nlimits.results_bytes_max = 100000\n\
                  journal.segment_bytes = 262144\njournal.snapshot_bytes = 300000\njournal.results_bytes = 0";
    let mut server = Server::with(config);
    let mut waiting = Vec::new();
    for round in 0..3 {
        let (mut client, mut worker) = (server.client(), server.client());
        let consumer = worker.work("busy", 200);
        for n in 0..60 {
            let ids = client.submit("busy", &vec![vec![7; 500]; 50]);
            if n % 10 == 0 {
                waiting.extend(client.submit("idle", &[format!("{round} {n}")]));
            }
            let tasks = worker.gather(consumer, 50);
            assert_eq!(worker.complete(&tasks).accepted, 50);
            assert_eq!(client.results_of(&ids).len(), 50);
        }
        let [segments, snapshots] = [".seg", ".snap"].map(|end| server.journal_files(end).len());
        assert!(snapshots >= 1 && segments <= 8, "{segments} segments, {snapshots} snapshots");
        server = server.killed_and_started_again();
        server.queue_has("idle", "waiting", waiting.len() as u64);
        server.queue_has("busy", "completed", (round + 1) * 3000);
    }
    let mut worker = server.client();
    let consumer = worker.work("idle", 100);
    let mut payloads: Vec<_> =
        worker.gather(consumer, waiting.len()).into_iter().map(|t| (t.lease.task, t.payload)).collect();
    payloads.sort();
    let expected =
        (0..3).flat_map(|round| (0..60).step_by(10).map(move |n| format!("{round} {n}").into_bytes()));
    assert!(payloads.into_iter().eq(waiting.into_iter().zip(expected)));
}

/// A copy is made while tasks come and go, snapshots are taken and segments removed. It has all that was acknowledged before.
#[test]
fn a_backup_of_a_busy_server_can_be_restored() {
    let config = "limits.message_bytes_max = 65536\nlimits.frame_bytes_max = 65536\nlimits.results_bytes_max = 100000\n\
                  journal.segment_bytes = 262144\njournal.snapshot_bytes = 300000\njournal.results_bytes = 0";
    let server = Server::with(config);
    let mut client = server.client();
    let kept = client.submit("kept", &payloads(100));
    let stop = AtomicBool::new(false);
    let places = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| places.path().join(name).to_string_lossy().into_owned();
    let made = std::thread::scope(|threads| {
        threads.spawn(|| {
            let (mut client, mut worker) = (server.client(), server.client());
            let consumer = worker.work("busy", 200);
            while !stop.load(Ordering::Relaxed) {
                client.submit("busy", &vec![vec![7; 500]; 50]);
                let tasks = worker.gather(consumer, 50);
                worker.complete(&tasks);
            }
        });
        let made: Vec<_> = (0..5)
            .map(|n| {
                std::thread::sleep(Duration::from_millis(50));
                server.hive(&["backup", &path(&format!("backup-{n}"))])
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        made
    });
    assert!(made.iter().all(|(code, _)| *code == Some(0)), "{made:?}");
    // Not into a folder that has something in it, and not from one that is damaged.
    let (code, text) = server.hive(&["backup", &path("backup-4")]);
    assert!(code == Some(1) && text.contains("is not empty"), "{code:?} {text}");
    let (code, text) = server.hive(&["restore", &path("backup-4"), &path("data")]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = server.hive(&["restore", &path("backup-3"), &path("data")]);
    assert!(code == Some(1) && text.contains("is not empty"), "{code:?} {text}");
    let copy = places.path().join("backup-3/journal");
    let damaged = std::fs::read_dir(&copy).expect("a copy").map(|f| f.expect("an entry").path());
    damaged.filter(|p| p.extension().is_some_and(|e| e == "snap")).for_each(|p| {
        let mut bytes = std::fs::read(&p).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&p, bytes).expect("writable");
    });
    let (code, text) = server.hive(&["restore", &path("backup-3"), &path("other")]);
    assert!(code == Some(1) && text.contains("is not good"), "{code:?} {text}");
    let restored = Server::with(&format!("data_dir = {:?}", path("data")));
    assert!(restored.client().query(&kept).iter().all(|t| t.state == TaskState::Waiting));
    let mut worker = restored.client();
    let consumer = worker.work("kept", 100);
    assert_eq!(worker.gather(consumer, 100).len(), 100);
}

/// A command that finds the server.
/// Works off `n` tasks of 256 bytes in batches, and leaves `waiting` in another queue.
fn fill(server: &Server, n: usize, waiting: usize) {
    let (mut client, mut worker) = (server.client(), server.client());
    let consumer = worker.work("busy", 5_000);
    let batch = vec![vec![7; 256]; 2_500];
    for _ in 0..n / batch.len() {
        client.submit("busy", &batch);
        let tasks = worker.gather(consumer, batch.len());
        let done: Vec<_> = tasks.iter().map(|t| Complete { lease: t.lease, result: &[7; 64] }).collect();
        let mut payload = Vec::new();
        done.iter().for_each(|c| c.write(&mut payload));
        client.send(Op::Ping, 0, 1, 0, &[], &[]); // stays alive while it reads
        let id = worker.ask(Op::Complete, 0, done.len() as u16, &[], &payload);
        worker.answer(id).expect("settled");
        client.results(batch.len());
    }
    for _ in 0..waiting / batch.len() {
        client.submit("idle", &batch);
    }
}

/// How long a server takes from its start until it serves.
fn restart(server: Server) -> (Server, Duration) {
    let began = Instant::now();
    let server = server.killed_and_started_again();
    (server, began.elapsed())
}

#[test]
#[ignore = "long: a gigabyte of journal, for the release profile"]
fn a_gigabyte_of_journal_is_read_in_seconds() {
    let server = Server::with("journal.snapshot_bytes = 100000000000");
    fill(&server, 3_000_000, 0);
    let bytes = server.status()["journal"]["bytes"].as_u64().expect("bytes");
    let (server, took) = restart(server);
    println!("{} MB of journal were read in {took:?}", bytes / 1_000_000);
    server.queue_has("busy", "completed", 3_000_000);
    assert!(bytes > 900_000_000 && took < Duration::from_secs(10), "{took:?}");
}

#[test]
#[ignore = "long: eleven million tasks, for the release profile"]
fn a_million_waiting_and_ten_million_finished_tasks_are_there_again_in_seconds() {
    let server = Server::start();
    let mut client = server.client();
    let ids = client.submit("first", &payloads(500));
    let mut worker = server.client();
    let consumer = worker.work("first", 500);
    for task in worker.gather(consumer, 500) {
        worker.complete_with(task.lease, &task.lease.task.0.to_le_bytes());
    }
    drop(worker);
    fill(&server, 10_000_000, 1_000_000);
    let on_disk = |server: &Server| server.status()["shards"][0]["dispatcher"]["results_on_disk"].clone();
    println!("{} results on disk, {} MB resident", on_disk(&server), server.memory("VmRSS") / 1_000_000);
    let (server, took) = restart(server);
    println!(
        "1,000,000 waiting tasks and {} results were there again after {took:?}; {} MB resident",
        on_disk(&server),
        server.memory("VmRSS") / 1_000_000
    );
    server.queue_has("idle", "waiting", 1_000_000);
    server.queue_has("busy", "completed", 10_000_000);
    let mut client = server.client();
    let began = Instant::now();
    for id in &ids {
        assert_eq!(client.query(&[*id])[0].payload, id.0.to_le_bytes());
    }
    println!("a result on disk is told in {:?}", began.elapsed() / 500);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

/// The acknowledgement of one submit after the other, while another client keeps the journal growing: those during a snapshot against
/// those between two.
#[test]
#[ignore = "long: latencies, for the release profile"]
fn nobody_waits_for_a_snapshot() {
    let server = Server::with("journal.snapshot_bytes = 3000000000\njournal.results_bytes = 0");
    // A state that takes a while to write: 120 MB.
    let mut client = server.client();
    (0..200).for_each(|_| assert_eq!(client.submit("idle", &vec![vec![7; 600]; 1000]).len(), 1000));
    let (stop, mut samples) = (AtomicBool::new(false), [Vec::new(), Vec::new()]);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let (mut client, mut worker) = (server.client(), server.client());
            let consumer = worker.work("busy", 2_000);
            while !stop.load(Ordering::Relaxed) {
                client.submit("busy", &vec![vec![7; 1000]; 500]);
                let tasks = worker.gather(consumer, 500);
                worker.complete(&tasks);
                client.results(500);
            }
        });
        let is_written = || !server.journal_files(".snap.new").is_empty();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            let (before, sent) = (is_written(), Instant::now());
            client.submit("other", &[[7; 256]]);
            let took = sent.elapsed();
            if before == is_written() {
                samples[usize::from(before)].push(took);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    samples.iter_mut().for_each(|s| s.sort_unstable());
    let [between, during] = samples.map(|s| [s.len() / 2, s.len() * 99 / 100].map(|n| (s[n], s.len())));
    println!("p50 and p99, and of how many: {during:?} during snapshots, {between:?} between them");
    let (during, between) = (during[1].0, between[1].0);
    assert!(during < 2 * between, "{during:?} against {between:?}");
}
