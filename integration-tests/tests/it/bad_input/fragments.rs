//! Messages that are too large, or too many in parts.

use hive_proto::frame::FRAME_BYTES_MAX;
use hive_proto::{Code, Flags, Op, PREFIX_LEN};

use super::beside_a_bystander;
use crate::harness::{Client, assert_error, frame};

const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
const CONFIG: &str = "limits.message_bytes_max = 2097152";

/// A publish that asks how many it reached.
fn publish(id: u32, bytes: usize) -> Vec<u8> {
    frame(Op::Publish, Flags::ACK, id, 0, b"large", &vec![b'x'; bytes])
}

fn send_in_parts(client: &mut Client, stream: u32, message: &[u8]) {
    hive_proto::fragment::split(message, stream, 256 * 1024, |part| client.wire.send(&part));
}

#[test]
fn oversized_frame() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        client.wire.try_send(&publish(5, FRAME_BYTES_MAX));
        let e = client.answer(0).expect_err("too large");
        assert_error(&e, Code::FrameTooLarge, "1048576: send larger messages as fragments");
        client.closed();
        let mut client = server.client();
        client.wire.send(&publish(5, FRAME_BYTES_MAX - b"large".len()));
        client.answer(5).expect("the largest frame there may be");
    });
}

#[test]
fn oversized_message() {
    beside_a_bystander(CONFIG, |server| {
        let mut client = server.client();
        let sub = client.subscribe("large", None);
        send_in_parts(&mut client, 1, &publish(5, MESSAGE_BYTES_MAX + 1));
        assert_error(&client.answer(5).expect_err("too large"), Code::MessageTooLarge, "2097");
        let fits = MESSAGE_BYTES_MAX - b"large".len();
        send_in_parts(&mut client, 1, &publish(6, fits));
        assert_eq!(client.answer(6).expect("fits").view().prefix.count, 1);
        assert_eq!(client.heard(sub).payload.len(), fits);
    });
}

#[test]
fn a_task_larger_than_a_frame_goes_round() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let consumer = client.work("large", 1);
        let body: Vec<u8> = (0..3_000_000_u32).map(|i| i as u8).collect();
        let item = [&(body.len() as u32).to_le_bytes()[..], &[0; 2], &body].concat();
        send_in_parts(&mut client, 9, &frame(Op::Submit, Flags::WATCH, 5, 1, b"large", &item));
        let id = client.accepted(5).expect("accepted").tasks[0];
        let task = client.one(consumer);
        assert!(task.lease.task == id && task.payload == body);
        let lease =
            [&id.0.to_le_bytes()[..], &task.lease.attempt.to_le_bytes(), &task.lease.epoch.to_le_bytes()];
        let item = [&lease.concat()[..], &(body.len() as u32).to_le_bytes(), &body].concat();
        send_in_parts(&mut client, 9, &frame(Op::Complete, 0, 6, 1, &[], &item));
        assert_eq!(client.answer(6).expect("settled").view().prefix.count, 1);
        assert!(client.results(1)[0].payload == body);
        assert!(client.query(&[id])[0].payload == body);
    });
}

#[test]
fn too_many_messages_in_parts() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let message = publish(5, 100);
        let (head, tail) = message.split_at(PREFIX_LEN + 50);
        for stream in 0..16 {
            client.send(Op::Fragment, 0, stream, 0, &[], head);
        }
        client.echo();
        client.send(Op::Fragment, 0, 16, 0, &[], head);
        let e = client.answer(5).expect_err("one too many");
        assert_error(&e, Code::TooManyFragments, "16");
        for stream in 0..16 {
            client.send(Op::Fragment, Flags::LAST, stream, 0, &[], tail);
            client.answer(5).expect("those that came first are whole");
        }
    });
}

#[test]
fn parts_that_do_not_add_up() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let message = publish(5, 100);
        client.send(Op::Fragment, Flags::LAST, 1, 0, &[], &message[..60]);
        assert_error(&client.answer(5).expect_err("cut short"), Code::MalformedFrame, "do not add up");
        client.send(Op::Fragment, Flags::LAST, 1, 0, &[], &[&message[..], b"more"].concat());
        assert_error(&client.answer(5).expect_err("too long"), Code::MalformedFrame, "do not add up");
        let nested = frame(Op::Fragment, Flags::LAST, 5, 0, &[], &message);
        client.send(Op::Fragment, Flags::LAST, 5, 0, &[], &nested);
        assert_error(&client.answer(5).expect_err("nested"), Code::MalformedFrame, "inside a fragment");
        client.send(Op::Fragment, Flags::LAST, 1, 0, &[], &message);
        client.answer(5).expect("the connection is as good as before");
    });
}
