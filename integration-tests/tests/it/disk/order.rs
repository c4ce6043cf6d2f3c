//! In which order a server calls the system: written, synced, and only then told.

use hive_proto::{Op, TaskId};
use rustix::process::Signal;

use super::Told;
use crate::harness::{Server, Strace, TaskOptions, payloads};

/// What the log of the calls has to do with the journal and with clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    /// A record has been written.
    Written,
    /// It has been synced.
    Synced,
    /// Something is being sent.
    Sends,
}

const WATCHED: &str = "trace=pwritev,fdatasync,write,writev,sendto,sendmsg";

/// Calls on the journal when they have ended well, calls on sockets when they begin. A call that is interrupted by another
/// thread's takes two lines, of which the second names no file; only the journaler makes those.
fn calls(log: &str) -> Vec<Call> {
    let ended = |line: &str, name: &str| {
        let begun = line.contains(&format!("{name}(")) && line.contains(".seg>");
        (begun && !line.contains("<unfinished") || line.contains(&format!("<... {name} resumed>")))
            && line
                .rsplit_once("= ")
                .is_some_and(|(_, value)| value.starts_with(|c: char| c.is_ascii_digit()))
    };
    let call = |line: &str| match line {
        l if ended(l, "pwritev") => Some(Call::Written),
        l if ended(l, "fdatasync") => Some(Call::Synced),
        l if l.contains("<TCP:") && !l.contains("resumed>") => Some(Call::Sends),
        _ => None,
    };
    log.lines().filter_map(call).collect()
}

/// Nothing is said but what is asked for.
fn quiet() -> Server {
    Server::with_session("", "heartbeat_ms = 60000\ndead_ms = 600000\n")
}

#[test]
fn each_acknowledgement_follows_its_sync() {
    let server = quiet();
    let (mut client, mut worker) = (server.client(), server.client());
    client.submit("q", &payloads(50));
    let consumer = worker.work("q", 10);
    let tasks = worker.gather(consumer, 10);
    worker.credit(consumer, 0);
    worker.echo();
    let Some(strace) = Strace::attach(&server, &[WATCHED]) else { return };
    for payload in payloads(30) {
        client.submit("q", &[payload]);
    }
    let log = strace.detach();
    let expected = [Call::Written, Call::Synced, Call::Sends].repeat(30);
    assert_eq!(calls(&log), expected, "{log}");
    // A completion is told to the worker, and its result to the submitter.
    let strace = Strace::attach(&server, &[WATCHED]).expect("as before");
    for (n, task) in tasks.iter().enumerate() {
        assert_eq!(worker.complete_with(task.lease, b"done").accepted, 1);
        client.results(1);
        assert_eq!(n, usize::from(task.payload[5] - b'0'));
    }
    let log = strace.detach();
    let expected = [Call::Written, Call::Synced, Call::Sends, Call::Sends].repeat(10);
    assert_eq!(calls(&log), expected, "{log}");
}

/// While one record is being synced the next one gathers: syncs are shared.
#[test]
fn many_at_once_share_syncs() {
    let server = quiet();
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let Some(strace) = Strace::attach(&server, &[WATCHED, "inject=fdatasync:delay_exit=2000"]) else {
        return;
    };
    let options = TaskOptions::default();
    let asked: Vec<Vec<u32>> = clients
        .iter_mut()
        .map(|c| (0..250).map(|n| c.ask_submit("q", &[format!("{n}")], &options)).collect())
        .collect();
    for (client, asked) in clients.iter_mut().zip(asked) {
        for id in asked {
            assert_eq!(client.accepted(id).expect("taken").tasks.len(), 1);
        }
    }
    let log = strace.detach();
    let calls = calls(&log);
    let count = |call| calls.iter().filter(|c| **c == call).count();
    // 1,000 acknowledgements.
    assert!((1..=250).contains(&count(Call::Synced)), "{} syncs", count(Call::Synced));
    assert_eq!(count(Call::Synced), count(Call::Written));
    // Records are written one at a time, and nobody is told anything before the first is synced.
    let on_disk: Vec<_> = calls.iter().filter(|c| **c != Call::Sends).collect();
    assert!(on_disk.chunks(2).all(|c| c == [&Call::Written, &Call::Synced]), "{on_disk:?}");
    assert_eq!(calls[..2], [Call::Written, Call::Synced], "{log}");
}

/// A stop with much under way: whatever was taken is written and told, the rest is refused.
#[test]
fn a_stop_leaves_nothing_gathered() {
    let mut server = quiet();
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let Some(strace) = Strace::attach(&server, &["trace=none", "inject=fdatasync:delay_exit=20000"]) else {
        return;
    };
    let options = TaskOptions::default();
    let body = |c: usize, n: usize| format!("{c}/{n}").into_bytes();
    let mut asked = Vec::new();
    for (c, client) in clients.iter_mut().enumerate() {
        asked.push((0..300).map(|n| client.ask_submit("q", &[body(c, n)], &options)).collect::<Vec<_>>());
    }
    let mut told = Told::default();
    told.accept(&clients[0].accepted(asked[0].remove(0)).expect("taken").tasks, &[body(0, 0)]);
    server.signal(Signal::TERM);
    for (c, (client, asked)) in clients.iter_mut().zip(asked).enumerate() {
        client.try_take(|p| p.op == Op::Drain as u8).expect("told of the stop");
        for (n, id) in (300 - asked.len()..).zip(asked) {
            // What the server has not read is not answered either.
            let Some(answer) = client.try_take(|p| p.id == id) else { continue };
            if answer.view().op() == Ok(Op::Accepted) {
                let first = answer.view().header.first_chunk().expect("the first task");
                told.accept(&[TaskId(u64::from_le_bytes(*first))], &[body(c, n)]);
            }
        }
    }
    drop(clients);
    assert_eq!(server.exit().code(), Some(0));
    drop(strace);
    // Whatever was taken was told.
    let server = server.started_again();
    server.queue_has("q", "waiting", told.accepted.len() as u64);
    told.is_kept_by(&server);
}
