//! What is on disk because memory should not hold it: tasks that wait, and results.

use std::os::unix::fs::FileExt as _;

use hive_proto::items::Assign;
use hive_proto::{Op, TaskId, TaskState};

use crate::harness::{Client, Disk, Server, TaskOptions, eventually, items};

/// Tasks go to disk at once, into small segments, and snapshots come soon.
const ON_DISK: &str = "limits.message_bytes_max = 65536\nlimits.frame_bytes_max = 65536\nfaults = true\n\
    limits.results_bytes_max = 200000\njournal.segment_bytes = 262144\njournal.snapshot_bytes = 300000\n\
    journal.spill_bytes = 1\njournal.results_bytes = 0";

fn payload(n: usize) -> Vec<u8> {
    format!("{n:0>500}").into_bytes()
}

/// Submits numbered tasks.
fn submit(client: &mut Client, queue: &str, numbers: std::ops::Range<usize>) -> Vec<TaskId> {
    let numbers: Vec<usize> = numbers.collect();
    let batches = numbers.chunks(50).map(|batch| batch.iter().map(|n| payload(*n)).collect::<Vec<_>>());
    batches.flat_map(|payloads| client.submit(queue, &payloads)).collect()
}

/// Works off `count` tasks of a queue; gives their payloads in the order in which they came.
fn work_off(client: &mut Client, queue: &str, count: usize) -> Vec<Vec<u8>> {
    let consumer = client.work(queue, count as u32);
    let tasks = client.gather(consumer, count);
    client.credit(consumer, 0);
    tasks.chunks(100).for_each(|tasks| assert_eq!(client.complete(tasks).accepted as usize, tasks.len()));
    client.send(Op::StopWork, 0, consumer, 0, &[], &[]);
    client.answer(consumer).expect("closed");
    tasks.into_iter().map(|t| t.payload).collect()
}

/// Rounds through a queue, enough for several snapshots.
fn keep_busy(server: &Server) {
    let (mut client, mut worker) = (server.client(), server.client());
    let consumer = worker.work("busy", 100);
    for _ in 0..60 {
        client.submit("busy", &vec![vec![7; 500]; 50]);
        let tasks = worker.gather(consumer, 50);
        assert_eq!(worker.complete(&tasks).accepted, 50);
    }
}

fn states(client: &mut Client, ids: &[TaskId]) -> Vec<TaskState> {
    ids.chunks(100).flat_map(|ids| client.query(ids)).map(|t| t.state).collect()
}

fn on_disk(server: &Server, queue: &str) -> u64 {
    server.queue(queue).map_or(0, |q| q["on_disk"].as_u64().expect("a number"))
}

#[test]
fn a_backlog_on_disk_survives_and_is_given_out_in_order() {
    let server = Server::with(ON_DISK);
    let mut client = server.client();
    let ids = submit(&mut client, "q", 0..6000);
    assert!(on_disk(&server, "q") > 5900, "{}", server.status());
    server.queue_has("q", "waiting", 6000);
    assert!(states(&mut client, &ids).iter().all(|s| *s == TaskState::Waiting));
    // One that is on disk is cancelled, and waited for.
    let waits = client.ask_wait(true, 60_000, &ids[1500..1501]);
    assert_eq!(server.client().cancel(&ids[1500..1501]).accepted, 1);
    assert_eq!(client.tasks(waits)[0].state, TaskState::Cancelled);
    assert_eq!(client.results(1)[0].task, ids[1500], "whoever watches is told");
    let before = work_off(&mut server.client(), "q", 500);
    assert_eq!(client.results(500).len(), 500);
    keep_busy(&server);
    let server = server.killed_and_started_again();
    assert!(on_disk(&server, "q") > 3000, "{}", server.status());
    server.queue_has("q", "waiting", 5499);
    let mut client = server.client();
    let states = states(&mut client, &ids);
    assert!(states[500..1500].iter().chain(&states[1501..]).all(|s| *s == TaskState::Waiting));
    let after = work_off(&mut client, "q", 5499);
    let expected = (0..6000).filter(|n| *n != 1500).map(payload);
    assert!(before.into_iter().chain(after).eq(expected), "in order, and all of them");
    server.queue_has("q", "completed", 5999);
    assert_eq!(on_disk(&server, "q"), 0);
    // Once the last two snapshots do not need the old segments any more, they go.
    let old = server.journal_files(".seg")[0].clone();
    (0..3).for_each(|_| keep_busy(&server));
    assert!(!old.exists() && server.journal_files(".seg").len() <= 8, "{:?}", server.journal_files(".seg"));
}

/// Segments with tasks that wait in them stay, whatever snapshots cover; a backup has them, too.
#[test]
fn what_waits_on_disk_is_not_trimmed_away() {
    let server = Server::with(ON_DISK);
    let mut client = server.client();
    submit(&mut client, "idle", 0..500);
    let first = server.journal_files(".seg")[0].clone();
    for _ in 0..3 {
        keep_busy(&server);
    }
    assert!(first.exists() && server.journal_files(".seg").len() <= 9, "{:?}", server.journal_files(".seg"));
    let server = server.killed_and_started_again();
    keep_busy(&server);
    keep_busy(&server);
    assert!(first.exists() && server.journal_files(".seg").len() <= 9, "{:?}", server.journal_files(".seg"));
    let places = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| places.path().join(name).to_string_lossy().into_owned();
    let backup = server.hive(&["backup", &path("backup")]);
    assert_eq!(backup.0, Some(0), "{}", backup.1);
    let restored = server.hive(&["restore", &path("backup"), &path("data")]);
    assert_eq!(restored.0, Some(0), "{}", restored.1);
    let verified = server.hive(&["journal", "verify", &path("data/journal")]);
    assert_eq!(verified.0, Some(0), "{}", verified.1);
    let other = Server::with(&format!("{ON_DISK}\ndata_dir = {:?}", path("data")));
    for server in [server, other] {
        assert!(work_off(&mut server.client(), "idle", 500).into_iter().eq((0..500).map(payload)));
        server.queue_has("idle", "waiting", 0);
    }
}

#[test]
fn who_reads_from_the_disk_may_panic() {
    let server = Server::with(ON_DISK);
    let mut client = server.client();
    submit(&mut client, "q", 0..500);
    server.panic("fetcher");
    let (first, rest) = (work_off(&mut client, "q", 250), work_off(&mut client, "q", 250));
    assert!(first.into_iter().chain(rest).eq((0..500).map(payload)));
    assert_eq!(server.restarts("fetcher"), 1);
    // So may the dispatcher, which makes its board from the journal.
    submit(&mut client, "q", 500..1000);
    server.panic("dispatcher");
    eventually("a new dispatcher", || client.try_query(&[]).is_ok().then_some(()));
    assert!(on_disk(&server, "q") > 400, "{}", server.status());
    assert!(work_off(&mut client, "q", 500).into_iter().eq((500..1000).map(payload)));
}

/// A task that is not there any more is never passed over: the server says what is wrong, and stops.
#[test]
fn a_damaged_record_stops_the_server() {
    let mut server = Server::with(ON_DISK);
    let mut client = server.client();
    submit(&mut client, "q", 0..1000);
    let segment = server.journal_files(".seg")[1].clone();
    let file = std::fs::File::options().write(true).open(&segment).expect("a segment");
    file.write_all_at(b"damaged", 100_000).expect("written");
    let consumer = client.work("q", 1000);
    let mut given = 0;
    while let Some(frame) = client.try_take(|p| p.id == consumer && p.op == Op::Assign as u8) {
        given += items::<Assign<'_>>(&frame).len();
    }
    assert!((16..1000).contains(&given), "{given}");
    assert_eq!(server.exit().code(), Some(74));
    let log = server.log();
    assert!(log.contains("tasks that wait on disk cannot be read"), "{log}");
    assert!(log.contains(&*segment.to_string_lossy()) && log.contains("checksum"), "{log}");
}

/// Few results fit into memory; the rest stays in the journal, of which so much is kept.
fn results_on_disk(results_bytes: u64) -> String {
    let few = ON_DISK.replace("results_bytes_max = 200000", "results_bytes_max = 20000");
    few.replace("journal.results_bytes = 0", &format!("journal.results_bytes = {results_bytes}"))
}

fn result(task: TaskId) -> Vec<u8> {
    format!("{:0>300}", task.0).into_bytes()
}

/// Has tasks done, each with a result of its own.
fn finish(server: &Server, count: usize) -> Vec<TaskId> {
    let (mut client, mut worker) = (server.client(), server.client());
    let consumer = worker.work("done", 100);
    let mut ids = Vec::new();
    while ids.len() < count {
        ids.extend(client.submit("done", &vec![vec![7; 100]; 50]));
        for task in worker.gather(consumer, 50) {
            worker.ask_complete(task.lease, &result(task.lease.task));
        }
        worker.echo();
    }
    server.queue_has("done", "completed", count as u64);
    client.query(&ids[count - 1..]);
    ids
}

/// Asserts that all of these results can be had.
fn has_results(client: &mut Client, ids: &[TaskId]) {
    for ids in ids.chunks(100) {
        let seen = client.query(ids);
        for (id, seen) in ids.iter().zip(&seen) {
            assert_eq!((seen.task, seen.state), (*id, TaskState::Completed));
            assert!(seen.payload == result(*id), "{id} has another result");
        }
    }
}

fn archived(server: &Server) -> u64 {
    server.status()["shards"][0]["dispatcher"]["results_on_disk"].as_u64().expect("a number")
}

#[test]
fn results_beyond_memory_are_read_from_disk_also_by_the_next_process() {
    let server = Server::with(&results_on_disk(1 << 30));
    let ids = finish(&server, 5000);
    assert!(archived(&server) > 4500, "{}", server.status());
    let mut client = server.client();
    has_results(&mut client, &ids);
    // Everybody who asks is answered, whatever happens meanwhile.
    let asked = client.ask_wait(false, 1000, &ids[..50]);
    assert_eq!(client.tasks(asked).len(), 50);
    server.panic("fetcher");
    has_results(&mut client, &ids[..200]);
    assert_eq!(server.restarts("fetcher"), 1);
    server.panic("dispatcher");
    let _ = client.try_query(&ids[..100]);
    eventually("a new dispatcher", || client.try_query(&ids[..1]).is_ok().then_some(()));
    has_results(&mut client, &ids);
    let segments = server.journal_files(".seg").len();
    assert!(segments > 6, "{segments} segments");
    let server = server.killed_and_started_again();
    assert!(archived(&server) > 4500, "{}", server.status());
    let mut client = server.client();
    has_results(&mut client, &ids);
    let states: Vec<_> = states(&mut client, &ids);
    assert!(states.iter().all(|s| *s == TaskState::Completed));
    // The answer is refused when it has more than a message may have, and the session goes on.
    let e = client.try_query(&ids[..1000]).expect_err("300 KB");
    assert_eq!(e.code(), Some(hive_proto::Code::MessageTooLarge), "{e:?}");
    has_results(&mut client, &ids[4000..]);
}

#[test]
fn the_journal_that_is_kept_for_results_is_bounded() {
    let most = 3_000_000;
    let server = Server::with(&results_on_disk(most));
    let ids = finish(&server, 12_000);
    let bytes = || -> u64 {
        let files = server.journal_files(".seg");
        files.iter().map(|f| std::fs::metadata(f).map_or(0, |m| m.len())).sum()
    };
    // Beside them there is what two snapshots stand for, and what is being written. All that was written is 6 MB.
    eventually("the journal is trimmed", || (bytes() <= most + 1_500_000).then_some(()));
    let mut client = server.client();
    // The oldest go first, but for single ones that stand in a file that is needed for something else.
    let gone = |client: &mut Client| {
        let states = states(client, &ids);
        assert_eq!(states[0], TaskState::Unknown);
        states.iter().rposition(|s| *s == TaskState::Unknown).map_or(0, |at| at + 1)
    };
    let before = gone(&mut client);
    assert!(before > 1000 && before < 11_000, "{before} are gone");
    let server = server.killed_and_started_again();
    let after = gone(&mut server.client());
    assert!(after >= before && after < 11_000, "{after} are gone, and {before} were");
    has_results(&mut server.client(), &ids[after..]);
}

/// Results go before new tasks are refused for long: a disk that they have filled is free again by itself.
#[test]
fn results_make_room_on_a_full_disk() {
    // No snapshot comes that would trim the journal.
    let config = results_on_disk(1 << 30).replace("snapshot_bytes = 300000", "snapshot_bytes = 12000000");
    let Some(server) = Server::on_disk(&config, |path| Disk::tmpfs(path, 40)) else { return };
    let (mut client, mut worker) = (server.client(), server.client());
    let consumer = worker.work("q", 20);
    let (mut refused, mut last) = (0, Vec::new());
    // Twice as much as there is room for.
    for _ in 0..80 {
        last = eventually("tasks are taken", || {
            match client.try_submit("q", &vec![vec![7]; 20], &TaskOptions::default()) {
                Ok(accepted) => Some(accepted.tasks),
                Err(e) => {
                    assert_eq!(e.code(), Some(hive_proto::Code::DiskFull), "{e:?}");
                    refused += 1;
                    None
                }
            }
        });
        for task in worker.gather(consumer, 20) {
            assert_eq!(worker.complete_with(task.lease, &[b'r'; 50_000]).accepted, 1);
        }
    }
    assert!(refused > 0, "the disk was never full");
    assert_eq!(client.query(&last[..1])[0].payload.len(), 50_000);
}

/// Nothing depends on a result: who asks for a damaged one is told, and everybody else is served.
#[test]
fn a_damaged_result_harms_nobody_else() {
    let server = Server::with(&results_on_disk(1 << 30));
    let ids = finish(&server, 3000);
    let segment = server.journal_files(".seg")[1].clone();
    let file = std::fs::File::options().write(true).open(&segment).expect("a segment");
    for at in (5_000..260_000).step_by(5_000) {
        file.write_all_at(b"damaged", at).expect("written");
    }
    let mut client = server.client();
    let (mut good, mut bad) = (0, 0);
    for id in &ids {
        match client.try_query(&[*id]) {
            Ok(seen) => {
                assert!(seen[0].payload == result(*id), "{id} has another result");
                good += 1;
            }
            Err(e) => {
                assert_eq!(e.code(), Some(hive_proto::Code::Internal), "{e:?}");
                bad += 1;
            }
        }
    }
    assert!(bad > 0 && good > 2000, "{bad} and {good}");
    assert!(server.log().contains("a result on disk cannot be read"), "{}", server.log());
    assert_eq!(client.submit("q", &[payload(1)]).len(), 1);
}

/// Who sends nothing more still gets the answers to what it asked.
#[test]
fn questions_about_results_on_disk_are_answered_after_a_goodbye() {
    let server = Server::with(&results_on_disk(1 << 30));
    let ids = finish(&server, 2000);
    for round in 0..50 {
        let mut client = server.client();
        let asked: Vec<u32> =
            ids[round..].iter().step_by(100).map(|id| client.ask_wait(false, 0, &[*id])).collect();
        client.send(Op::Goodbye, 0, 0, 0, &[], &[]);
        for id in asked {
            assert_eq!(client.tasks(id)[0].state, TaskState::Completed);
        }
    }
}
