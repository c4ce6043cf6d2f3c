//! A disk that says it is full, and then is not: nothing new is taken, everything else goes on, and no restart is needed.

use std::time::{Duration, Instant};

use hive_proto::{Code, Op, TaskState, WireError};
use rustix::process::Signal;

use super::{Told, WITH_FAST, code, not_ready, ready, submit_until_refused};
use crate::harness::{Client, Server, Strace, TaskOptions, assert_error, eventually, payloads};

/// No write finds space, not even with the reserve.
const NO_SPACE: &str = "inject=pwritev:error=ENOSPC";
/// One write finds no space, so the reserve is given up, and cannot be had again.
const LOW_SPACE: [&str; 2] = ["inject=pwritev:error=ENOSPC:when=1", "inject=fallocate:error=ENOSPC"];

fn one(client: &mut Client) -> Result<(), WireError> {
    client.try_submit("q", &payloads(1), &TaskOptions::default()).map(|_| ())
}

fn is_refused(client: &mut Client) {
    let e = one(client).expect_err("refused");
    assert_error(&e, Code::DiskFull, "the disk of the journal is full");
    assert!(e.retry_after_ms.is_some_and(|ms| ms > 0), "{e:?}");
}

/// A round through a memory queue.
fn memory_queues_go_on(client: &mut Client) {
    let ids = client.submit("fast", &payloads(3));
    let consumer = client.work("fast", 3);
    let tasks = client.gather(consumer, 3);
    assert_eq!(client.query(&ids)[0].state, TaskState::Running);
    assert_eq!(client.complete(&tasks).accepted, 3);
    assert_eq!(client.results_of(&ids).len(), 3);
    client.send(Op::StopWork, 0, consumer, 0, &[], &[]);
    client.answer(consumer).expect("stopped");
}

fn refused_until_taken(client: &mut Client) {
    eventually("a submit is taken", || match one(client) {
        Ok(()) => Some(()),
        Err(e) => {
            assert_eq!(code(&e), Code::DiskFull, "{e:?}");
            None
        }
    });
}

#[test]
fn the_reserve_lets_workers_end() {
    let server = Server::with(WITH_FAST);
    let (mut client, mut worker) = (server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(20));
    let ids = client.submit("q", &first);
    told.accept(&ids, &first);
    let consumer = worker.work("q", 10);
    let running = worker.gather(consumer, 10);
    let Some(strace) = Strace::attach(&server, &LOW_SPACE) else { return };
    // The one that finds the disk full is taken all the same.
    let last = submit_until_refused(&mut client, "last", 10, 10);
    assert_eq!((last.accepted.len(), code(&last.errors[0])), (1, Code::DiskFull));
    told.accepted.extend(last.accepted);
    not_ready(&server, "the disk of the journal is full");
    assert_eq!(server.status()["journal"]["low_space"], true);
    for task in &running[..5] {
        assert_eq!(worker.complete_with(task.lease, b"done").accepted, 1);
        told.completed.push(task.lease.task);
    }
    // An actor that is made anew knows of it.
    server.panic("dispatcher");
    let _ = client.try_query(&ids);
    eventually("a new dispatcher", || client.try_query(&ids).is_ok().then_some(()));
    is_refused(&mut client);
    server.panic("journaler");
    assert_eq!(client.cancel(&ids[19..]).accepted, 1);
    told.accepted.remove(&ids[19]);
    is_refused(&mut client);
    assert_eq!((server.restarts("dispatcher-0"), server.restarts("journaler")), (1, 1));
    let consumer = client.work("q", 1);
    let task = client.one(consumer);
    assert_eq!(client.complete_with(task.lease, b"done").accepted, 1);
    told.completed.push(task.lease.task);
    client.send(Op::StopWork, 0, consumer, 0, &[], &[]);
    memory_queues_go_on(&mut worker);
    drop(strace);
    ready(&server);
    refused_until_taken(&mut client);
    assert!(server.log().contains("there is space for the journal again"), "{}", server.log());
    told.is_kept_by(&server.killed_and_started_again());
}

/// Not even the reserve helps: what is under way waits, everybody else is answered.
#[test]
fn nothing_can_be_written() {
    let server = Server::with(WITH_FAST);
    let (mut client, mut worker, mut other) = (server.client(), server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(40));
    let ids = client.submit("q", &first);
    told.accept(&ids, &first);
    let consumer = worker.work("q", 30);
    let running = worker.gather(consumer, 30);
    let Some(strace) = Strace::attach(&server, &[NO_SPACE]) else { return };
    let waiting = client.ask_submit("q", &[b"waits"], &TaskOptions::default());
    not_ready(&server, "the disk of the journal is full");
    is_refused(&mut other);
    assert_eq!(code(&other.try_query(&ids).expect_err("not now")), Code::DiskFull);
    assert_eq!(code(&other.list_dead("q", 1).expect_err("not now")), Code::DiskFull);
    memory_queues_go_on(&mut other);
    // Results are taken, but not without end.
    let large = vec![b'r'; 500_000];
    let asked: Vec<_> =
        running.iter().map(|t| (t.lease.task, worker.ask_complete(t.lease, &large))).collect();
    let refused = worker.take("a refusal", |p| p.op == Op::Error as u8);
    assert_eq!(code(&crate::harness::error_of(&refused)), Code::DiskFull);
    worker.echo();
    memory_queues_go_on(&mut other);
    // Whoever goes on asking does not use up what others need.
    for _ in 0..20_000 {
        other.ask_submit("q", &[b"again"], &TaskOptions::default());
    }
    is_refused(&mut other);
    memory_queues_go_on(&mut other);
    assert!(client.poll(Duration::ZERO).is_none_or(|f| f.view().prefix.id != waiting), "not yet");
    drop(strace);
    let accepted = client.accepted(waiting).expect("taken in the end");
    told.accept(&accepted.tasks, &[b"waits".to_vec()]);
    for (task, id) in asked {
        if id != refused.view().prefix.id {
            match worker.settled(id) {
                Ok(settled) => {
                    assert_eq!(settled.accepted, 1);
                    told.completed.push(task);
                }
                Err(e) => assert_eq!(code(&e), Code::DiskFull),
            }
        }
    }
    assert!(told.completed.len() >= 8, "{}", told.completed.len());
    ready(&server);
    refused_until_taken(&mut client);
    told.is_kept_by(&server.killed_and_started_again());
}

/// Who asked before the disk was known to be full is told that it is; what was decided meanwhile happens once there is space.
#[test]
fn questions_that_were_held_back() {
    let server = Server::with(WITH_FAST);
    let (mut client, mut worker) = (server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(4));
    let ids = client.submit("q", &first);
    told.accept(&ids, &first);
    let consumer = worker.work("q", 4);
    let running = worker.gather(consumer, 4);
    // Each attempt to write takes a while before it fails.
    let slow = format!("{NO_SPACE}:delay_enter=400000:when=1..6");
    let Some(_strace) = Strace::attach(&server, &[&slow]) else { return };
    let waiting = client.ask_submit("q", &[b"waits"], &TaskOptions::default());
    let before = client.ask_wait(false, 0, &ids);
    client.echo();
    let settling: Vec<_> =
        running[..2].iter().map(|t| worker.ask_complete(t.lease, &[b'r'; 300_000])).collect();
    worker.echo();
    let asked = [client.ask_wait(false, 0, &ids), client.ask_wait(true, 1000, &ids[3..])];
    client.echo();
    let settling = [settling, vec![worker.ask_complete(running[2].lease, b"r")]].concat();
    for id in [&[before][..], &asked].concat() {
        assert_eq!(code(&client.answer(id).expect_err("held back")), Code::DiskFull);
    }
    let accepted = client.accepted(waiting).expect("taken in the end");
    told.accept(&accepted.tasks, &[b"waits".to_vec()]);
    for (id, task) in settling.into_iter().zip(&running) {
        assert_eq!(worker.settled(id).expect("in the end").accepted, 1);
        told.completed.push(task.lease.task);
    }
    assert_eq!(client.results(3).iter().map(|o| o.task).collect::<Vec<_>>(), told.completed);
    ready(&server);
    told.is_kept_by(&server.killed_and_started_again());
}

/// Results that wait for space do not take the memory that others, and their own senders, are read into.
#[test]
fn who_waits_for_space_is_read_from() {
    let server = Server::with(&format!("{WITH_FAST}[limits]\nmemory_bytes_max = 67108864\n"));
    let (mut client, mut worker) = (server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(2));
    told.accept(&client.submit("q", &first), &first);
    let consumer = worker.work("q", 2);
    let running = worker.gather(consumer, 2);
    let Some(strace) = Strace::attach(&server, &[NO_SPACE]) else { return };
    let result = vec![b'r'; 700_000];
    let first = worker.ask_complete(running[0].lease, &result);
    not_ready(&server, "the disk of the journal is full");
    let second = worker.ask_complete(running[1].lease, &result);
    worker.echo();
    memory_queues_go_on(&mut worker);
    memory_queues_go_on(&mut client);
    drop(strace);
    for (id, task) in [first, second].into_iter().zip(&running) {
        assert_eq!(worker.settled(id).expect("in the end").accepted, 1);
        told.completed.push(task.lease.task);
    }
    told.is_kept_by(&server.killed_and_started_again());
}

/// Clients that write as fast as they can when the disk becomes full: all of them are answered.
#[test]
fn a_full_disk_under_load() {
    let server = Server::with(WITH_FAST);
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    let mut other = server.client();
    let Some(strace) = Strace::attach(&server, &["inject=pwritev:error=ENOSPC:when=3+"]) else { return };
    let large = vec![b'x'; 700_000];
    let options = TaskOptions::default();
    let asked: Vec<Vec<u32>> = clients
        .iter_mut()
        .map(|c| (0..20).map(|_| c.ask_submit("q", &[&large], &options)).collect())
        .collect();
    not_ready(&server, "the disk of the journal is full");
    memory_queues_go_on(&mut other);
    is_refused(&mut other);
    drop(strace);
    let mut told = Told::default();
    for (client, asked) in clients.iter_mut().zip(asked) {
        for id in asked {
            match client.accepted(id) {
                Ok(a) => told.accept(&a.tasks, std::slice::from_ref(&large)),
                // Too much at once, which is another reason.
                Err(e) => assert!(matches!(code(&e), Code::DiskFull | Code::ProducerCredit), "{e:?}"),
            }
        }
    }
    assert!(told.accepted.len() >= 3, "{}", told.accepted.len());
    ready(&server);
    told.is_kept_by(&server.killed_and_started_again());
}

/// The dispatcher panics while its record waits for space: the record is taken back, so that what the next one knows is what
/// the journal has.
#[test]
fn a_panic_of_the_dispatcher_while_nothing_can_be_written() {
    let server = Server::with(WITH_FAST);
    let (mut client, mut other) = (server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(5));
    told.accept(&client.submit("q", &first), &first);
    let Some(strace) = Strace::attach(&server, &[NO_SPACE]) else { return };
    let waiting = client.ask_submit("q", &[b"waits"], &TaskOptions::default());
    not_ready(&server, "the disk of the journal is full");
    let before = Instant::now();
    server.panic("dispatcher");
    assert_eq!(code(&client.accepted(waiting).expect_err("it is gone")), Code::Restarted);
    memory_queues_go_on(&mut other);
    assert!(before.elapsed() < Duration::from_secs(4), "nobody waits for a disk");
    // The next one has a record to write as well.
    is_refused(&mut other);
    drop(strace);
    refused_until_taken(&mut other);
    assert_eq!(server.restarts("dispatcher-0"), 1);
    server.queue_has("q", "waiting", 6);
    let server = server.killed_and_started_again();
    server.queue_has("q", "waiting", 6);
    told.is_kept_by(&server);
}

/// The journaler panics while the disk is full: its record is written once.
#[test]
fn a_panic_of_the_journaler_and_a_full_disk() {
    let server = Server::with(WITH_FAST);
    let mut client = server.client();
    let (mut told, first) = (Told::default(), payloads(5));
    told.accept(&client.submit("q", &first), &first);
    let position = || server.status()["journal"]["position"].as_u64().expect("a number");
    let before = position();
    let Some(strace) = Strace::attach(&server, &["inject=pwritev:error=ENOSPC:when=1..5"]) else { return };
    server.panic("journaler");
    told.accept(&client.submit("q", &[b"sixth"]), &[b"sixth".to_vec()]);
    assert_eq!((server.restarts("journaler"), position()), (1, before + 1));
    ready(&server);
    drop(strace);
    refused_until_taken(&mut client);
    assert_eq!(position(), before + 2);
    told.is_kept_by(&server.killed_and_started_again());
}

/// A stop does not wait for space.
#[test]
fn a_full_server_can_be_stopped() {
    for expressions in [&LOW_SPACE[..], &[NO_SPACE]] {
        let mut server = Server::with(&WITH_FAST.replace("4000", "500"));
        let mut client = server.client();
        let (mut told, first) = (Told::default(), payloads(5));
        told.accept(&client.submit("q", &first), &first);
        let Some(strace) = Strace::attach(&server, expressions) else { return };
        let asked = client.ask_submit("q", &[b"waits"], &TaskOptions::default());
        not_ready(&server, "the disk of the journal is full");
        let before = Instant::now();
        server.signal(Signal::TERM);
        let answered = client.try_take(|p| p.id == asked);
        if answered.is_some_and(|f| f.view().op() == Ok(Op::Accepted)) {
            assert_eq!(expressions.len(), 2, "nothing was written");
        }
        drop(client);
        assert_eq!(server.exit().code(), Some(0));
        assert!(before.elapsed() < Duration::from_secs(6), "{:?}", before.elapsed());
        drop(strace);
        told.is_kept_by(&server.started_again());
    }
}

/// The log is on a full disk, too: nobody stumbles over that.
#[test]
fn a_log_that_takes_nothing() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().expect("a folder");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let config = folder.path().join("hive.toml");
    std::fs::write(&config, "faults = true\n").expect("configuration");
    let mut child = std::process::Command::new(crate::harness::binary())
        .args([
            "start",
            "--until-stdin-closes",
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--config",
        ])
        .arg(&config)
        .env("HIVE_TOKEN", "secret")
        .env("HIVE_LOG", "debug")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(full)
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let http =
        line.split(' ').find_map(|w| w.strip_prefix("http=")).expect("an address").parse().expect("one");
    let ask = |method: &str, path: &str| crate::harness::http_ask(http, method, path, Some("secret")).0;
    // The death of an actor is told to the log.
    assert_eq!(ask("POST", "/v1/faults/panic?actor=sessions"), 202);
    eventually("it serves", || (ask("GET", "/readyz") == 200).then_some(()));
    assert_eq!(ask("POST", "/v1/stop"), 202);
    drop(child.stdin.take());
    assert!(child.wait().expect("own child").success());
}
