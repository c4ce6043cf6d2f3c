//! Names that may not be.

use hive_proto::items::{DELAY_BY_POLICY, Fail, Item};
use hive_proto::messages::{self, Subscribe, Work};
use hive_proto::{Code, Flags, Op};

use super::beside_a_bystander;
use crate::harness::{Client, TaskOptions, assert_error};

const BAD_NAMES: [&str; 5] = ["", "a b", "a*", "naïve", "line\nbreak"];

fn refused(client: &mut Client, op: Op, header: &[u8], payload: &[u8], code: Code, names: &str) {
    let count = u16::from(!payload.is_empty());
    let e = client.call(op, 0, count, header, payload).expect_err("refused");
    assert_error(&e, code, names);
    client.echo();
}

fn work(queue: &str) -> Vec<u8> {
    messages::encode(&Work { queue: queue.into(), credit_tasks: 1, credit_bytes: 1, labels: vec![] })
}

/// The decoder quotes the key in its error, which must still fit into a frame: once it did not, and killed the actor.
#[test]
fn a_key_as_long_as_a_header() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let header = messages::encode(&std::collections::BTreeMap::from([("k".repeat(16_300), 1)]));
        for op in [Op::Work, Op::Subscribe] {
            refused(&mut client, op, &header, &[], Code::MalformedHeader, "unknown field `kkk");
        }
        assert_eq!(server.restarts("dispatcher-0") + server.restarts("hub-0"), 0);
    });
}

#[test]
fn a_subscription_with_a_payload() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let header = messages::encode(&Subscribe { subject: "a".into(), group: None });
        refused(&mut client, Op::Subscribe, &header, &[7; 1000], Code::MalformedFrame, "no payload");
    });
}

#[test]
fn bad_queue_name() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let long = "x".repeat(129);
        for name in BAD_NAMES.iter().chain([&long.as_str()]) {
            let names = format!("{:?}", name.chars().take(64).collect::<String>());
            let e = client.try_submit(name, &[b"x"], &TaskOptions::default()).expect_err("refused");
            assert_error(&e, Code::InvalidQueueName, &names);
            refused(&mut client, Op::Work, &work(name), &[], Code::InvalidQueueName, &names);
            let list = [&1_u32.to_le_bytes()[..], name.as_bytes()].concat();
            refused(&mut client, Op::ListDead, &list, &[], Code::InvalidQueueName, &names);
        }
        let queues = server.status()["queues"].as_array().expect("queues").len();
        assert_eq!(queues, 2, "only the bystander's");
    });
}

#[test]
fn unknown_queue() {
    // The bystander's queues are declared, and one more.
    let config = "limits.queues_auto_create = false\n\
                  queues = [{ name = \"kept\" }, { name = \"bystander\" }, { name = \"declared\", attempts_max = 1 }]";
    beside_a_bystander(config, |server| {
        let mut client = server.client();
        let e = client.try_submit("made-up", &[b"x"], &TaskOptions::default()).expect_err("refused");
        assert_error(&e, Code::UnknownQueue, "\"made-up\"");
        assert!(e.text.contains("queues_auto_create"));
        refused(&mut client, Op::Work, &work("made-up"), &[], Code::UnknownQueue, "\"made-up\"");
        assert_error(
            &client.list_dead("made-up", 1).expect_err("refused"),
            Code::UnknownQueue,
            "\"made-up\"",
        );
        client.submit("declared", &[b"x"]);
        assert_eq!(server.status()["queues"].as_array().expect("queues").len(), 3);
    });
}

#[test]
fn too_many_queues() {
    beside_a_bystander("limits.queues_max = 3", |server| {
        let mut client = server.client();
        client.submit("third", &[b"x"]);
        let e = client.try_submit("fourth", &[b"x"], &TaskOptions::default()).expect_err("refused");
        assert_error(&e, Code::TooManyQueues, "queues_max = 3");
        client.submit("third", &[b"y"]);
        server.queue_has("third", "waiting", 2);
    });
}

#[test]
fn bad_subject() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let long = "x".repeat(256);
        for subject in ["", ".", "a.", ".a", "a..b", "a b", "a.*", ">", "tab\there", &long] {
            let names = format!("{:?}", subject.chars().take(64).collect::<String>());
            assert_error(&client.publish(subject, b"x").expect_err("refused"), Code::InvalidSubject, &names);
            let id = client.ask_request(subject, 100, b"x");
            assert_error(&client.response(id).expect_err("refused"), Code::InvalidSubject, &names);
        }
        for pattern in ["", "a.>.b", "a*", "a.b>", "a..*", ">>"] {
            let e = client.try_subscribe(pattern, None).expect_err("refused");
            assert_error(&e, Code::InvalidSubject, &format!("{pattern:?}"));
        }
        let e = client.try_subscribe("a", Some("bad group")).expect_err("refused");
        assert_error(&e, Code::MalformedHeader, "group");
        client.echo();
    });
}

#[test]
fn invalid_utf8() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let item = [&1_u32.to_le_bytes()[..], &[0; 2], b"x"].concat();
        refused(&mut client, Op::Submit, b"q\xff", &item, Code::InvalidQueueName, "queue name \"q\u{fffd}\"");
        refused(&mut client, Op::Publish, b"a.\xff", &[], Code::InvalidSubject, "subject \"a.\u{fffd}\"");
        let request = [&[0; 8][..], b"\xc3\x28"].concat();
        refused(&mut client, Op::Request, &request, &[], Code::InvalidSubject, "subject");
        let e = client.call(Op::Direct, Flags::ACK, 0, b"\x80me", &[]).expect_err("refused");
        assert_error(&e, Code::InvalidAgentId, "agent id \"\u{fffd}me\"");

        let spoilt = |mut header: Vec<u8>| {
            let at = header.windows(3).position(|w| w == b"BAD").expect("the mark");
            header[at] = 0xff;
            header
        };
        refused(&mut client, Op::Work, &spoilt(work("BAD")), &[], Code::MalformedHeader, "utf-8");
        let subscribe = messages::encode(&Subscribe { subject: "BAD".into(), group: None });
        refused(&mut client, Op::Subscribe, &spoilt(subscribe), &[], Code::MalformedHeader, "utf-8");

        let consumer = client.work("q", 1);
        client.submit("q", &[b"x"]);
        let task = client.one(consumer);
        let mut fail = Vec::new();
        Fail { lease: task.lease, delay_ms: DELAY_BY_POLICY, permanent: true, error: "BAD" }.write(&mut fail);
        refused(&mut client, Op::Fail, &[], &spoilt(fail), Code::MalformedFrame, "item 0 of 1");
        assert_eq!(client.complete(&[task]).accepted, 1, "the task is still in the worker's hands");
    });
}

#[test]
fn unknown_agent() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        assert_error(&client.direct("nobody", b"x").expect_err("refused"), Code::UnknownAgent, "\"nobody\"");
        assert_error(
            &client.direct("no body", b"x").expect_err("refused"),
            Code::InvalidAgentId,
            "\"no body\"",
        );
    });
}
