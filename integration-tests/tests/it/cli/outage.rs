//! Servers that are not there, that die, and that hang.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Client, Server, free_port};

use super::{Done, Run, hive};

/// What is promised for commands that do one thing.
const GIVES_UP: Duration = Duration::from_secs(5);

/// Commands that do one thing.
const ONE_SHOT: [&[&str]; 8] = [
    &["submit", "q", "x", "--json"],
    &["submit", "q", "x", "--wait", "--json"],
    &["pub", "a", "x", "--json"],
    &["request", "a", "x", "--timeout-ms", "60000", "--json"],
    &["status", "--json"],
    &["top", "--json", "--count", "1"],
    &["stop", "--json"],
    &["demo", "--path", ".", "--json"],
];

/// The command has given up on its server in time, without a word on standard output.
fn gave_up(what: &[&str], done: &Done, since: Duration) {
    assert_eq!(done.code, Some(69), "{what:?}: {done:?}");
    assert!(done.err.contains("no answer from the server at 127.0.0.1:"), "{what:?}: {done:?}");
    assert!(since < GIVES_UP, "{what:?} took {since:?}");
}

#[test]
fn nobody_listens() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (keeps, closed) = free_port();
    drop(keeps);
    let closed = closed.to_string();
    let lasting: [&[&str]; 2] = [&["sub", "a", "--json"], &["work", "q", "--json", "--", "true"]];
    for args in ONE_SHOT.into_iter().chain(lasting) {
        let mut command = hive(folder.path(), args);
        let done = Done::of(command.env("HIVE_SERVER", &closed).env("HIVE_HTTP", &closed));
        gave_up(args, &done, done.time);
        assert!(done.out.is_empty() && done.err.contains(&closed), "{done:?}");
    }
}

/// Connections are taken by the kernel, and nobody says anything.
#[test]
fn the_server_hangs_from_the_beginning() {
    let server = Server::start();
    server.signal(Signal::STOP);
    // Named, for a demo that has only found this server would start its own instead.
    let addr = server.addr.to_string();
    let runs =
        ONE_SHOT.map(|args| (args, Run::fed(hive(server.folder(), args).env("HIVE_SERVER", &addr), b"")));
    for (args, run) in runs {
        let done = run.end();
        gave_up(args, &done, done.time);
        assert!(done.out.is_empty(), "{done:?}");
    }
}

/// Commands that wait for something that does not come, and those that keep them waiting.
struct Waiting {
    runs: [(&'static [&'static str], Run); 2],
    _agents: [Client; 2],
}

impl Waiting {
    fn on(server: &Server) -> Self {
        let (mut worker, mut responder) = (server.client(), server.client());
        let (consumer, sub) = (worker.work("q", 1), responder.subscribe("a", None));
        let commands: [&[&str]; 2] =
            [&["submit", "q", "x", "--wait", "--json"], &["request", "a", "x", "--timeout-ms", "60000"]];
        let mut runs = commands.map(|args| (args, Run::fed(&mut hive(server.folder(), args), b"")));
        worker.one(consumer);
        responder.requested(sub);
        runs[0].1.prints(1);
        Self { runs, _agents: [worker, responder] }
    }

    /// The server has just got a signal that it cannot answer.
    fn give_up(self) {
        let began = Instant::now();
        for (args, run) in self.runs {
            gave_up(args, &run.end(), began.elapsed());
        }
    }
}

#[test]
fn the_server_is_killed_under_a_command() {
    let server = Server::start();
    let waiting = Waiting::on(&server);
    server.signal(Signal::KILL);
    waiting.give_up();
}

#[test]
fn the_server_hangs_under_a_command() {
    let server = Server::start();
    let waiting = Waiting::on(&server);
    server.signal(Signal::STOP);
    waiting.give_up();
}
