//! Heartbeats, and what a session leaves behind.

use std::time::Duration;

use hive_proto::{Code, Op};

use crate::harness::{Seen, Server, assert_error, error_of, payloads};

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
