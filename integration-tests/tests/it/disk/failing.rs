//! Calls that fail: nothing is acknowledged any more, and the process ends by itself.

use hive_proto::error::Outcome;
use hive_proto::{Code, Op};

use super::{Told, WITH_FAST, code, not_ready, submit_until_refused};
use crate::harness::{Server, Strace, TaskOptions, payloads};

/// A file of the journal is full after ten of these tasks.
const SMALL_FILES: &str = "limits.message_bytes_max = 1048576\njournal.segment_bytes = 10485760\n";
const LARGE: usize = 900_000;

/// Several clients at work; then a call of the system fails, once.
fn fails(injection: &str, said: &str, bytes: usize) {
    let mut server = Server::with(&format!("{SMALL_FILES}{WITH_FAST}"));
    let (mut client, mut worker) = (server.client(), server.client());
    let first = payloads(20);
    let ids = client.submit("q", &first);
    let consumer = worker.work("q", 20);
    let running = worker.gather(consumer, 20);
    client.submit("fast", &[b"in memory"]);
    let fast = worker.work("fast", 1);
    let fast = worker.one(fast);
    let mut told = Told::default();
    told.accept(&ids, &first);
    let Some(strace) = Strace::attach(&server, &[injection]) else { return };
    let clients: Vec<_> = (0..3).map(|n| (n, server.client())).collect();
    let submitters = clients.into_iter().map(|(n, mut client)| {
        let work = move || (submit_until_refused(&mut client, &format!("client {n}"), bytes, 2000), client);
        std::thread::spawn(work)
    });
    let submitters: Vec<_> = submitters.collect();
    // A worker goes on as well, as long as it is allowed to.
    for task in &running {
        match worker.try_complete(task.lease, b"done") {
            Ok(settled) if settled.accepted == 1 => told.completed.push(task.lease.task),
            Ok(settled) => panic!("{settled:?}"),
            Err(e) => {
                told.errors.push(e);
                break;
            }
        }
    }
    let mut clients = Vec::new();
    for submitter in submitters {
        let (theirs, client) = submitter.join().expect("a submitter");
        told.accepted.extend(theirs.accepted);
        told.errors.extend(theirs.errors);
        clients.push(client);
    }
    // Those that waited cannot be told whether it happened; those that came later can.
    assert!(told.errors.iter().all(|e| code(e) == Code::JournalFailed), "{:?}", told.errors);
    assert!(told.errors.iter().any(|e| e.outcome == Outcome::Unknown), "{:?}", told.errors);
    // While the server drains, it tells what is wrong, decides nothing that it would forget, and lets memory queues end.
    not_ready(&server, "the journal failed: ");
    let failed = server.status()["journal"]["failed"].as_str().unwrap_or_default().to_owned();
    assert!(failed.contains(said) && failed.contains("error 5") | said.contains("write"), "{failed}");
    let mut late = clients.remove(0);
    let e = late.try_submit("q", &payloads(1), &TaskOptions::default()).expect_err("refused");
    assert_eq!((code(&e), e.outcome), (Code::JournalFailed, Outcome::NotDone));
    assert_eq!(code(&late.try_query(&ids).expect_err("refused")), Code::JournalFailed);
    assert_eq!(code(&late.list_dead("q", 1).expect_err("refused")), Code::JournalFailed);
    let last = running.last().expect("one");
    assert_eq!(code(&worker.try_complete(last.lease, b"late").expect_err("refused")), Code::JournalFailed);
    assert_eq!(worker.complete_with(fast.lease, b"done").accepted, 1);
    worker.next(Op::Drain);
    drop((client, worker, clients, late));
    assert_eq!(server.exit().code(), Some(74));
    drop(strace);
    let log = server.log();
    assert!(log.contains("the journal failed") && log.contains(said), "{log}");
    let server = server.started_again();
    told.is_kept_by(&server);
}

#[test]
fn the_first_sync_fails() {
    fails("inject=fdatasync:error=EIO:when=1", "cannot sync", 10);
}

#[test]
fn a_sync_fails_under_load() {
    fails("inject=fdatasync:error=EIO:when=40", "cannot sync", 2000);
}

#[test]
fn a_write_fails() {
    fails("inject=pwritev:error=EIO:when=1", "cannot write", 10);
}

#[test]
fn a_write_fails_under_load() {
    fails("inject=pwritev:error=EIO:when=25", "cannot write", 2000);
}

#[test]
fn a_write_writes_nothing() {
    fails("inject=pwritev:retval=0:when=5", "cannot write", 10);
}

/// What is done when a file of the journal is full: cut, synced, the next one made, synced, renamed, its directory synced.
#[test]
fn the_end_of_a_file_is_not_cut() {
    fails("inject=/^ftruncate:error=EIO:when=1", "cannot seal", 60_000);
}

#[test]
fn a_new_file_is_not_made() {
    fails("inject=/^open:error=EIO:when=1", "cannot make", LARGE);
}

#[test]
fn a_new_file_is_not_renamed() {
    fails("inject=/^rename:error=EIO:when=1", "cannot make", LARGE);
}

#[test]
fn the_directory_is_not_synced() {
    fails("inject=fsync:error=EIO:when=1", "cannot sync the directory", LARGE);
}

/// The journaler panics with a record in hand, and its next incarnation cannot write it.
#[test]
fn a_panic_and_then_a_failure() {
    for injection in ["inject=pwritev:error=EIO:when=1", "inject=fdatasync:error=EIO:when=1"] {
        let mut server = Server::with(WITH_FAST);
        let mut client = server.client();
        let first = payloads(5);
        let mut told = Told::default();
        told.accept(&client.submit("q", &first), &first);
        let Some(strace) = Strace::attach(&server, &[injection]) else { return };
        server.panic("journaler");
        let e = client.try_submit("q", &payloads(1), &TaskOptions::default()).expect_err("refused");
        assert_eq!((code(&e), e.outcome), (Code::JournalFailed, Outcome::Unknown));
        drop(client);
        assert_eq!(server.exit().code(), Some(74));
        drop(strace);
        assert!(server.log().contains("journaler"), "{}", server.log());
        told.is_kept_by(&server.started_again());
    }
}

/// A dispatcher that is made anew after the journal has failed does not keep the process from its end.
#[test]
fn a_panic_after_a_failure() {
    let mut server = Server::with(WITH_FAST);
    let (mut client, mut worker) = (server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(5));
    told.accept(&client.submit("q", &first), &first);
    client.submit("fast", &payloads(2));
    let fast = worker.work("fast", 1);
    worker.one(fast);
    let Some(strace) = Strace::attach(&server, &["inject=fdatasync:error=EIO:when=1"]) else { return };
    client.try_submit("q", &payloads(1), &TaskOptions::default()).expect_err("refused");
    server.panic("dispatcher");
    worker.ask_wait(false, 0, &[]);
    drop((client, worker));
    assert_eq!(server.exit().code(), Some(74));
    drop(strace);
    told.is_kept_by(&server.started_again());
}
