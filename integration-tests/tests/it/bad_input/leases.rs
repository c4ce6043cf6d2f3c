//! Settlements of those who may not settle, and numbers that are not open or open already.

use hive_proto::items::{RevokeReason, Revoked};
use hive_proto::messages::{self, Subscribe, Work};
use hive_proto::{Code, Lease, Op, TaskId, TaskState};

use super::beside_a_bystander;
use crate::harness::{Settled, TaskOptions, assert_error, items, payloads};

fn refused(code: Code) -> Settled {
    Settled { accepted: 0, refused: vec![(0, code)] }
}

#[test]
fn stale_lease() {
    beside_a_bystander("[[queues]]\nname = \"quick\"\nlease_ms = 50", |server| {
        let mut client = server.client();
        let consumer = client.work("quick", 1);
        let id = client.submit("quick", &[b"x"])[0];
        let first = client.one(consumer);
        assert_eq!((first.lease.attempt, first.lease_ms), (1, 50));
        let void = client.next(Op::Revoked);
        assert_eq!(items::<Revoked>(&void), [Revoked { lease: first.lease, reason: RevokeReason::Expired }]);
        let second = client.one(consumer);
        assert_eq!((second.lease.task, second.lease.attempt), (id, 2));
        assert_eq!(client.complete_with(first.lease, b"late"), refused(Code::StaleLease));
        let other = Lease { epoch: second.lease.epoch.wrapping_add(1), ..second.lease };
        assert_eq!(client.complete_with(other, b"other epoch"), refused(Code::StaleLease));
        // The machine may be slow enough for more attempts; the last one counts.
        let mut last = second;
        while client.complete_with(last.lease, b"in time").accepted == 0 {
            last = client.one(consumer);
        }
        let outcome = client.results(1).remove(0);
        assert_eq!(
            (outcome.task, outcome.state, &outcome.payload[..]),
            (id, TaskState::Completed, &b"in time"[..])
        );
    });
}

#[test]
fn double_complete() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let consumer = client.work("q", 1);
        let id = client.submit("q", &[b"x"])[0];
        let task = client.one(consumer);
        assert_eq!(client.complete_with(task.lease, b"first").accepted, 1);
        assert_eq!(client.complete_with(task.lease, b"second"), refused(Code::AlreadySettled));
        assert_eq!(client.fail(task.lease, 0, true, "third"), refused(Code::AlreadySettled));
        assert_eq!(client.query(&[id])[0].payload, b"first");
        assert_eq!(client.results(1)[0].payload, b"first");
        assert_eq!(client.count(Op::Result), 0, "one outcome for one task");
        assert_eq!(client.cancel(&[id]), refused(Code::AlreadySettled));
    });
}

#[test]
fn complete_by_another_agent() {
    beside_a_bystander("", |server| {
        let (mut owner, mut thief) = (server.agent("owner", &[]), server.agent("thief", &[]));
        let consumer = owner.work("q", 1);
        let id = thief.submit("q", &[b"x"])[0];
        let task = owner.one(consumer);
        let lease = task.lease;
        assert_eq!(thief.complete_with(lease, b"stolen"), refused(Code::NotOwner));
        assert_eq!(thief.fail(lease, 0, true, "stolen"), refused(Code::NotOwner));
        assert_eq!(thief.release(lease, 0), refused(Code::NotOwner));
        assert_eq!(thief.renew(lease), refused(Code::NotOwner));
        assert_eq!(thief.progress(lease, 1, b""), refused(Code::NotOwner));
        assert_eq!(thief.query(&[id])[0].state, TaskState::Running);
        assert_eq!(owner.complete(&[task]).accepted, 1);
        assert_eq!(thief.results(1)[0].payload, b"done: x");
    });
}

#[test]
fn a_task_that_never_was() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let real = client.submit("q", &[b"x"])[0];
        let ahead = real.offset(1000);
        let elsewhere = TaskId(real.0 ^ 1 << 60); // the same sequence in another partition
        for task in [ahead, elsewhere, TaskId(0), TaskId(u64::MAX)] {
            let lease = Lease { task, attempt: 1, epoch: client.welcome.epoch };
            assert_eq!(client.complete_with(lease, b"x"), refused(Code::UnknownTask));
            assert_eq!(client.cancel(&[task]), refused(Code::UnknownTask));
            assert_eq!(client.query(&[task])[0].state, TaskState::Unknown);
        }
        assert_eq!(client.query(&[real])[0].state, TaskState::Waiting);
    });
}

#[test]
fn a_batch_is_judged_item_by_item() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let consumer = client.work("q", 10);
        client.submit("q", &payloads(3));
        let mut tasks = client.gather(consumer, 3);
        tasks[1].lease.attempt += 1;
        let settled = client.complete(&tasks);
        assert_eq!(settled, Settled { accepted: 2, refused: vec![(1, Code::StaleLease)] });
    });
}

#[test]
fn credit_overflow() {
    beside_a_bystander("limits.credit_tasks_max = 1000", |server| {
        let mut client = server.client();
        let e = client.work_as("q", 1001, 1, &[]).expect_err("refused");
        assert_error(&e, Code::CreditOverflow, "1001 tasks");
        let e = client.work_as("q", u32::MAX, u64::MAX, &[]).expect_err("refused");
        assert_error(&e, Code::CreditOverflow, "4294967295 tasks");
        let consumer = client.work("q", 1);
        client.credit(consumer, 1001);
        assert_error(&client.answer(consumer).expect_err("refused"), Code::CreditOverflow, "1001 tasks");
        client.submit("q", &payloads(2));
        let task = client.one(consumer);
        assert_eq!(client.count(Op::Assign), 0, "the window is what it was");
        client.complete(&[task]);
        client.one(consumer);
    });
}

#[test]
fn numbers_that_are_open_or_not() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let (consumer, sub) = (client.work("q", 1), client.subscribe("s", None));
        let work =
            messages::encode(&Work { queue: "q".into(), credit_tasks: 1, credit_bytes: 1, labels: vec![] });
        client.send(Op::Work, 0, consumer, 0, &work, &[]);
        assert_error(
            &client.answer(consumer).expect_err("refused"),
            Code::DuplicateConsumer,
            &consumer.to_string(),
        );
        let subscribe = messages::encode(&Subscribe { subject: "t".into(), group: None });
        client.send(Op::Subscribe, 0, sub, 0, &subscribe, &[]);
        assert_error(
            &client.answer(sub).expect_err("refused"),
            Code::DuplicateSubscription,
            &sub.to_string(),
        );
        client.send(Op::StopWork, 0, 999, 0, &[], &[]);
        assert_error(&client.answer(999).expect_err("refused"), Code::UnknownConsumer, "999");
        client.credit(999, 1);
        assert_error(&client.answer(999).expect_err("refused"), Code::UnknownConsumer, "999");
        assert_error(&client.unsubscribe(999).expect_err("refused"), Code::UnknownSubscription, "999");
        let reply = client.reply(0xdead_beef, b"x");
        assert_error(&client.answer(reply).expect_err("refused"), Code::UnknownReply, "deadbeef");
        client.submit("q", &[b"x"]);
        client.one(consumer);
        assert_eq!(client.publish("s", b"x").expect("published"), 1);
        assert_eq!(client.publish("t", b"x").expect("published"), 0);
    });
}

#[test]
fn options_out_of_range() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let bad = [
            (
                TaskOptions { max_attempts: Some(0), ..TaskOptions::default() },
                Code::InvalidOptions,
                "max_attempts = 0",
            ),
            (
                TaskOptions { max_attempts: Some(1001), ..TaskOptions::default() },
                Code::InvalidOptions,
                "1001",
            ),
            (
                TaskOptions { delay_ms: Some(u32::MAX), ..TaskOptions::default() },
                Code::InvalidOptions,
                "delay_ms",
            ),
            (
                TaskOptions { labels: vec!["a b".into()], ..TaskOptions::default() },
                Code::InvalidLabel,
                "\"a b\"",
            ),
        ];
        for (options, code, names) in bad {
            assert_error(&client.try_submit("q", &[b"x"], &options).expect_err("refused"), code, names);
        }
        server.queue_has("q", "waiting", 0);
    });
}
