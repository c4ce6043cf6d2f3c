//! Real file systems of a few megabytes, filled to the last byte.

use std::io::Write as _;
use std::path::Path;

use hive_proto::Code;
use rustix::process::Signal;

use super::{Told, WITH_FAST, code, not_ready, ready, submit_until_refused};
use crate::harness::{Disk, Server, TaskOptions, eventually, payloads};

const MIB: usize = 1024 * 1024;

/// Fills a disk by submitting; running work ends all the same, and service comes back when there is space.
fn fills(disk: impl FnOnce(&Path) -> Option<Disk>) {
    let Some(server) = Server::on_disk(WITH_FAST, disk) else { return };
    // Somebody else's file.
    let ballast = server.folder().join("data/ballast");
    std::fs::write(&ballast, vec![7; 20 * MIB]).expect("space");
    let (mut client, mut worker) = (server.client(), server.client());
    let (mut told, first) = (Told::default(), payloads(30));
    told.accept(&client.submit("q", &first), &first);
    let consumer = worker.work("q", 20);
    let running = worker.gather(consumer, 20);
    let filled = submit_until_refused(&mut client, "fills", 200_000, 1000);
    assert_eq!(code(&filled.errors[0]), Code::DiskFull);
    assert!(filled.errors[0].retry_after_ms.is_some());
    told.accepted.extend(filled.accepted);
    not_ready(&server, "the disk of the journal is full");
    let result = vec![b'r'; 50_000];
    for task in &running {
        assert_eq!(worker.complete_with(task.lease, &result).accepted, 1);
        told.completed.push(task.lease.task);
    }
    let e = client.try_submit("q", &payloads(1), &TaskOptions::default()).expect_err("still full");
    assert_eq!(code(&e), Code::DiskFull);
    client.submit("fast", &payloads(10));
    std::fs::remove_file(&ballast).expect("it was there");
    ready(&server);
    let more = payloads(3);
    told.accept(&client.submit("q", &more), &more);
    told.is_kept_by(&server.killed_and_started_again());
}

#[test]
fn a_small_file_system_in_memory() {
    fills(|path| Disk::tmpfs(path, 56));
}

#[test]
fn a_small_ext4() {
    fills(|path| Disk::ext4(path, 64));
}

/// Not even the reserve is left: the server still tells, stops, says why it does not start, and starts when there is space.
#[test]
fn the_reserve_is_used_up() {
    for ended in ["stopped", "killed"] {
        let config = WITH_FAST.replace("4000", "500");
        let Some(mut server) = Server::on_disk(&config, |path| Disk::tmpfs(path, 48)) else { return };
        let ballast = server.folder().join("data/ballast");
        std::fs::write(&ballast, vec![7; 20 * MIB]).expect("space");
        let (mut client, mut worker) = (server.client(), server.client());
        let (mut told, first) = (Told::default(), payloads(30));
        told.accept(&client.submit("q", &first), &first);
        let consumer = worker.work("q", 30);
        let running = worker.gather(consumer, 30);
        told.accepted.extend(submit_until_refused(&mut client, "fills", 300_000, 1000).accepted);
        let result = vec![b'r'; 700_000];
        let asked: Vec<_> =
            running.iter().map(|t| (t.lease.task, worker.ask_complete(t.lease, &result))).collect();
        eventually("nothing can be written", || {
            client.try_query(&[running[0].lease.task]).err().map(|e| assert_eq!(code(&e), Code::DiskFull))
        });
        client.submit("fast", &payloads(10));
        assert_eq!(server.status()["journal"]["low_space"], true);
        server.signal(if ended == "stopped" { Signal::TERM } else { Signal::KILL });
        for (task, id) in asked {
            // Whoever was not answered does not know.
            let answered = worker.try_take(|p| p.id == id);
            if answered.is_some_and(|f| f.view().op() == Ok(hive_proto::Op::Settled)) {
                told.completed.push(task);
            }
        }
        assert!(!told.completed.is_empty());
        drop((client, worker));
        let code = server.exit().code();
        assert_eq!(code, (ended == "stopped").then_some(0));
        // What a record did not need is taken by somebody else.
        let rest = std::fs::File::create(server.folder().join("data/rest")).expect("a name");
        while (&rest).write_all(&[7; 4096]).is_ok() {}
        let (code, text) = server.refused_again();
        assert_eq!(code, Some(74), "{text}");
        assert!(text.contains("No space left") && text.contains("free some space"), "{text}");
        let left: Vec<_> = std::fs::read_dir(server.folder().join("data")).expect("there").collect();
        let probe = |f: &std::fs::DirEntry| f.file_name().to_string_lossy().contains("probe");
        assert!(!left.iter().flatten().any(probe), "{left:?}");
        std::fs::remove_file(&ballast).expect("it was there");
        let server = server.started_again();
        ready(&server);
        told.is_kept_by(&server);
    }
}

/// A server that starts with little space knows that from the beginning.
#[test]
fn a_start_with_little_space() {
    let Some(mut server) = Server::on_disk(WITH_FAST, |path| Disk::tmpfs(path, 40)) else { return };
    let (mut told, first) = (Told::default(), payloads(30));
    told.accept(&server.client().submit("q", &first), &first);
    server.signal(Signal::TERM);
    assert_eq!(server.exit().code(), Some(0));
    let data = server.folder().join("data");
    std::fs::remove_file(data.join("journal/reserve")).expect("a reserve");
    std::fs::write(data.join("ballast"), vec![7; 30 * MIB]).expect("space");
    let server = server.started_again();
    not_ready(&server, "the disk of the journal is full");
    let mut client = server.client();
    let e = client.try_submit("q", &payloads(1), &TaskOptions::default()).expect_err("full");
    assert_eq!(code(&e), Code::DiskFull);
    let consumer = client.work("q", 1);
    let task = client.one(consumer);
    assert_eq!(client.complete_with(task.lease, b"done").accepted, 1);
    told.completed.push(task.lease.task);
    std::fs::remove_file(data.join("ballast")).expect("it was there");
    ready(&server);
    told.is_kept_by(&server.killed_and_started_again());
}
