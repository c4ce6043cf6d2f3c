//! Heartbeats, and what a session leaves behind.

use std::time::Duration;

use hive_proto::{Code, Op};

use crate::harness::{Seen, Server, TaskOptions, assert_error, error_of, payloads};

#[test]
fn a_silent_client_is_dead_and_a_quiet_one_is_not() {
    let server = Server::with_session("", "heartbeat_ms = 100\ndead_ms = 600");
    let (mut silent, mut quiet) = (server.agent("silent", &[]), server.agent("quiet", &[]));
    quiet.submit("q", &payloads(2));
    let consumer = silent.work("q", 2);
    silent.gather(consumer, 2);
    silent.wire.alive = false; // it reads, but says nothing
    let waiting = quiet.work("q", 2);
    let told = loop {
        // The quiet one answers pings, and nothing else.
        if let Some(frame) = quiet.poll(Duration::from_millis(10)) {
            assert_eq!((frame.view().op(), frame.view().prefix.id), (Ok(Op::Assign), waiting));
        }
        match silent.wire.see(Duration::from_millis(10)) {
            Seen::Frame(f) => break f,
            Seen::Silence => {}
            Seen::End => panic!("closed without a word"),
        }
    };
    assert_error(&error_of(&told), Code::HeartbeatTimeout, "600 ms");
    silent.closed();
    server.queue_has("q", "running", 2);
    quiet.echo();
}

#[test]
fn a_client_that_takes_its_leave_is_gone() {
    let server = Server::start();
    let mut client = server.agent("polite", &[]);
    client.send(Op::Goodbye, 0, 0, 0, &[], &[]);
    client.closed();
    server.agent("polite", &[]).echo();
}

/// `Goodbye` behind the last request, and the end of the client's side: both say that nothing more comes.
#[test]
fn what_was_sent_before_the_end_is_answered() {
    let server = Server::start();
    for goodbye in [true, false] {
        let mut client = server.client();
        let id = client.ask_submit("q", &payloads(10), &TaskOptions::default());
        if goodbye {
            client.send(Op::Goodbye, 0, 0, 0, &[], &[]);
        } else {
            client.wire.end();
        }
        assert_eq!(client.accepted(id).expect("answered").tasks.len(), 10, "goodbye: {goodbye}");
        client.closed();
    }
    server.queue_has("q", "waiting", 20);
}

#[test]
fn a_worker_that_sends_nothing_more_gives_its_leases_back() {
    let server = Server::start();
    let (mut client, mut worker) = (server.client(), server.client());
    client.submit("q", &payloads(5));
    let consumer = worker.work("q", 5);
    worker.gather(consumer, 5);
    worker.wire.end();
    server.queue_has("q", "waiting", 5);
    worker.closed();
    client.echo();
}

/// What the server has not read when it closes must not turn the last frames into a reset.
#[test]
fn the_last_frames_arrive_whatever_the_client_still_sends() {
    let server = Server::start();
    for _ in 0..20 {
        let mut client = server.client();
        let id = client.ask_submit("q", &payloads(1), &TaskOptions::default());
        client.send(Op::Goodbye, 0, 0, 0, &[], &[]);
        (0..4).for_each(|_| client.wire.try_send(&[7; 100_000])); // nobody looks at it
        client.accepted(id).expect("answered");
        client.closed();
    }
}
