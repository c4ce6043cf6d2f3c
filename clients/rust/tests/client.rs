//! The client against a server whose answers the test writes.

mod fake;

use std::time::Duration;

use bytes::Bytes;
use fake::{Fake, count, id, items, lease, list, next};
use hive_client::{Certainty, Client, Code, Error, Failure, Revocation, Status, TaskId, TaskState, WaitMode};
use hive_proto::fragment::{Assembler, split};
use hive_proto::items::{Complete, Fail, Progressed, Refused, Release, RevokeReason, Revoked, Submit, Task};
use hive_proto::messages::{self, Drain, TaskOptions, TasksLost, Work};
use hive_proto::{Flags, Lease, Op, WireError};

fn done(n: u64, result: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    hive_proto::items::Item::write(
        &Task { task: TaskId(n), state: TaskState::Completed, attempt: 1, payload: result },
        &mut out,
    );
    out
}

#[tokio::test]
async fn submits_made_together_share_a_frame_and_get_their_outcomes() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let submits = futures_util::future::join_all((0..100).map(|i| client.submit("q", format!("{i}")).send()));
    let server = async {
        let (mut frames, mut next_id, mut sent) = (0, 1, Vec::new());
        while next_id < 101 {
            let f = conn.expect(Op::Submit).await;
            assert_eq!((f.view().header, f.view().prefix.flags.0), (&b"q"[..], Flags::WATCH));
            sent.extend(
                list::<Submit<'_>>(&f.view()).iter().map(|s| String::from_utf8_lossy(s.payload).into_owned()),
            );
            conn.accept_tasks(&f, TaskId(next_id), count(&f), &[]).await;
            next_id += u64::from(count(&f));
            frames += 1;
        }
        (frames, sent)
    };
    let (handles, (frames, sent)) = tokio::join!(submits, server);
    assert!(frames <= 3, "{frames} frames for 100 submits");
    let results: Vec<u8> = (1..).zip(&sent).flat_map(|(n, payload)| done(n, payload.as_bytes())).collect();
    conn.send(Op::Result, 0, 100, &[], &results).await;
    for (i, handle) in handles.into_iter().enumerate() {
        let outcome = handle.expect("accepted").outcome().await.expect("pushed");
        assert_eq!((outcome.state, &outcome.result[..]), (TaskState::Completed, i.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn options_are_sent_and_refusals_are_told_item_by_item() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let submit = client
        .submit("q", "x")
        .labels(["gpu"])
        .max_attempts(2)
        .delay(Duration::from_secs(1))
        .detached()
        .send();
    let server = async {
        let f = conn.expect(Op::Submit).await;
        assert_eq!(f.view().prefix.flags.0, 0);
        let view = f.view();
        let options: TaskOptions = messages::decode(list::<Submit<'_>>(&view)[0].ext).expect("options");
        assert_eq!(
            (options.labels, options.max_attempts, options.delay_ms),
            (vec!["gpu".into()], Some(2), Some(1000))
        );
        let full = WireError::new(Code::MemoryFull, "full").retry_after(30);
        conn.send(Op::Error, id(&f), 0, &messages::encode(&full), &[]).await;
    };
    let (submit, ()) = tokio::join!(submit, server);
    let e = submit.expect_err("refused");
    assert_eq!((e.code(), e.retryable(), e.outcome()), (Some(Code::MemoryFull), true, Certainty::NotDone));

    let batch = client.submit_batch("q", ["a", "b", "c"]);
    let server = async {
        let f = conn.expect(Op::Submit).await;
        let refused = items(&[Refused { index: 1, code: Code::MessageTooLarge as u16, retry_after_ms: 0 }]);
        conn.accept_tasks(&f, TaskId(50), 2, &refused).await;
    };
    let (batch, ()) = tokio::join!(batch, server);
    let batch = batch.expect("a good queue name");
    let told: Vec<_> = batch.iter().map(|t| t.as_ref().map(|h| h.id().0).map_err(Error::code)).collect();
    assert_eq!(told, [Ok(50), Err(Some(Code::MessageTooLarge)), Ok(51)]);
    assert_eq!(
        client.submit("no spaces", "x").send().await.expect_err("local").code(),
        Some(Code::InvalidQueueName)
    );
}

#[tokio::test]
async fn submits_wait_for_credit_while_other_calls_go_on() {
    let mut fake = Fake::start().await;
    fake.welcome.credit_tasks = 2;
    let (client, mut conn) = fake.pair().await;
    let submits = tokio::spawn({
        let client = client.clone();
        async move {
            let one = async || client.submit("q", "x").send().await.map(|h| h.id().0);
            futures_util::future::join_all([one(), one(), one()]).await
        }
    });
    let first = conn.expect(Op::Submit).await;
    assert_eq!(count(&first), 2);
    // The third waits; a publish does not.
    client.publish("s", "m").await.expect("sent");
    conn.expect(Op::Publish).await;
    conn.accept_tasks(&first, TaskId(1), 2, &[]).await;
    let second = conn.expect(Op::Submit).await;
    assert_eq!(count(&second), 1);
    conn.accept_tasks(&second, TaskId(3), 1, &[]).await;
    let ids: Vec<_> = submits.await.expect("joined").into_iter().map(|r| r.expect("accepted")).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test]
async fn a_break_fails_what_was_sent_keeps_what_was_not_and_recovers_outcomes() {
    let mut fake = Fake::start().await;
    let (client, mut conn) = fake.pair().await;
    let (first, f) = tokio::join!(client.submit("q", "1").send(), async {
        let f = conn.expect(Op::Submit).await;
        conn.accept_tasks(&f, TaskId(1), 1, &[]).await;
    });
    let ((), first) = (f, first.expect("accepted"));
    let (second, ()) = tokio::join!(client.submit("q", "2").send(), async {
        conn.expect(Op::Submit).await;
        drop(conn);
    });
    let e = second.expect_err("broken");
    assert_eq!((e.outcome(), e.retryable()), (Certainty::Unknown, true));
    // Made while there is no connection: goes out on the next one.
    fake.welcome.epoch = 1;
    let third = client.submit("q", "3").send();
    let server = async {
        let mut conn = fake.accept().await;
        let wait = conn.expect(Op::Wait).await;
        assert_eq!(list::<TaskId>(&wait.view()), [TaskId(1)]);
        conn.send(Op::Tasks, id(&wait), 1, &[], &done(1, b"one")).await;
        let f = conn.expect(Op::Submit).await;
        assert_eq!(list::<Submit<'_>>(&f.view())[0].payload, b"3");
        conn.accept_tasks(&f, TaskId(9), 1, &[]).await;
        conn
    };
    let (third, mut conn) = tokio::join!(third, server);
    let third = third.expect("accepted");
    assert_eq!(first.outcome().await.expect("recovered").result, "one");
    // Another incarnation of the server does not know the task.
    conn.send(Op::Ping, 7, 0, &[], b"").await;
    conn.expect(Op::Pong).await;
    drop(conn);
    fake.welcome.epoch = 2;
    let mut conn = fake.accept().await;
    let wait = conn.expect(Op::Wait).await;
    let mut unknown = done(9, b"");
    unknown[8] = TaskState::Unknown as u8;
    conn.send(Op::Tasks, id(&wait), 1, &[], &unknown).await;
    assert_eq!(third.outcome().await.expect("told").state, TaskState::Lost);
}

#[tokio::test]
async fn a_client_that_may_not_reconnect_ends_with_the_reason() {
    let fake = Fake::start().await;
    let (client, conn) = tokio::join!(fake.client().reconnect(false).connect(), fake.accept());
    let client = client.expect("connected");
    drop(conn);
    let mut status = client.watch_status();
    status.wait_for(|s| matches!(s, Status::Closed(_))).await.expect("told");
    let e = client.publish("a", "b").await.expect_err("over");
    assert!(e.is_connection(), "{e}");
    assert!(client.query(&[TaskId(1)]).await.expect_err("over").is_connection());
}

#[tokio::test]
async fn a_client_gives_up_when_the_outage_is_too_long() {
    let fake = Fake::start().await;
    let outage = Duration::from_millis(100);
    let (client, mut conn) = tokio::join!(fake.client().outage_max(outage).connect(), fake.accept());
    let client = client.expect("connected");
    let (handle, ()) = tokio::join!(client.submit("q", "x").send(), async {
        let f = conn.expect(Op::Submit).await;
        conn.accept_tasks(&f, TaskId(1), 1, &[]).await;
    });
    let began = std::time::Instant::now();
    drop((conn, fake));
    let e = handle.expect("accepted").outcome().await.expect_err("given up");
    assert!(e.is_connection() && began.elapsed() >= outage / 2, "{e} after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_silent_server_is_held_for_dead() {
    let mut fake = Fake::start().await;
    (fake.welcome.heartbeat_ms, fake.welcome.dead_ms) = (20, 100);
    let (client, mut conn) = tokio::join!(fake.client().reconnect(false).connect(), fake.accept());
    let client = client.expect("connected");
    let mut pings = 0;
    while let Some(f) = conn.next().await {
        pings += u32::from(f.view().op() == Ok(Op::Ping));
    }
    assert!(pings >= 3, "{pings} pings before the client gave up");
    let e = client.publish_ack("a", "b").await.expect_err("over");
    assert!(e.to_string().contains("silent"), "{e}");
}

#[tokio::test]
async fn login_refusals_reach_the_caller_and_the_next_server_is_tried() {
    let (bad, good) = (Fake::start().await, Fake::start().await);
    let refuse = async {
        let (mut conn, hello) = bad.accept_silently().await;
        assert_eq!((hello.agent.as_str(), hello.labels), ("me", vec!["gpu".to_owned()]));
        let e = WireError::new(Code::Unauthorized, "wrong token");
        conn.send(Op::Error, 0, 0, &messages::encode(&e), &[]).await;
    };
    let connect = bad.client().agent_id("me").labels(["gpu"]).connect();
    let (refused, ()) = tokio::join!(connect, refuse);
    assert_eq!(refused.expect_err("refused").code(), Some(Code::Unauthorized));

    let closed = Fake::start().await.address();
    let both = good.client().servers([closed.clone(), good.address()]).connect();
    let (client, _conn) = tokio::join!(both, good.accept());
    assert!(matches!(client.expect("second").status(), Status::Connected { .. }));
    let e = Client::builder().servers([closed]).connect().await.expect_err("nobody there");
    assert!(matches!(e, Error::Unreachable { .. }) && e.outcome() == Certainty::NotDone);
    assert_eq!(
        Client::builder().agent_id("a b").connect().await.expect_err("local").code(),
        Some(Code::InvalidAgentId)
    );
}

#[tokio::test]
async fn bytes_one_at_a_time_and_unknown_frames_do_no_harm() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let mut sub = {
        let (sub, ()) = tokio::join!(client.subscribe("a.>"), async {
            let f = conn.expect(Op::Subscribe).await;
            conn.ok(&f).await;
        });
        sub.expect("open")
    };
    let mut stream = Vec::new();
    let mut unknown = fake::bytes(Op::Ping, 9, 0, b"h", b"p");
    unknown[4 + 1] = 0xee;
    for part in [
        &unknown,
        &fake::bytes(Op::Deliver, 1, 0, b"a.b", b"one"),
        &fake::bytes(Op::Ok, 77, 0, b"", b""),
        &fake::bytes(Op::Deliver, 99, 0, b"x", b"not mine"),
        &fake::bytes(Op::MessagesLost, 1, 0, &5_u64.to_le_bytes(), b""),
        &fake::bytes(Op::Deliver, 1, 0, b"a.c", b"two"),
    ] {
        stream.extend_from_slice(part);
    }
    for byte in stream {
        conn.raw(&[byte]).await;
    }
    let one = next(&mut sub).await.expect("open");
    assert_eq!((one.subject(), &one.payload[..], one.lost_before), ("a.b", &b"one"[..], 0));
    let two = next(&mut sub).await.expect("open");
    assert_eq!((two.subject(), &two.payload[..], two.lost_before), ("a.c", &b"two"[..], 5));
    drop(sub);
    assert_eq!(id(&conn.expect(Op::Unsubscribe).await), 1);
}

async fn consumer(
    client: &Client,
    conn: &mut fake::Conn,
    credit: u32,
) -> (hive_client::Consumer, hive_proto::codec::Frame) {
    let (consumer, work) = tokio::join!(client.work("q").credit(credit).labels(["cpu"]).open(), async {
        let work = conn.expect(Op::Work).await;
        conn.ok(&work).await;
        work
    });
    (consumer.expect("open"), work)
}

#[tokio::test]
async fn a_worker_settles_in_batches_and_gives_back_what_it_drops() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (mut tasks, work) = consumer(&client, &mut conn, 8).await;
    let spec: Work = messages::decode(work.view().header).expect("a header");
    assert_eq!((spec.queue.as_str(), spec.credit_tasks, spec.labels), ("q", 8, vec!["cpu".to_owned()]));
    conn.assign(&work, &[lease(1), lease(2), lease(3), lease(4), lease(5)], 30_000).await;
    let (a, b) = (next(&mut tasks).await.expect("task"), next(&mut tasks).await.expect("task"));
    assert_eq!(
        (a.id(), a.attempt(), &a.payload()[..], a.trace()),
        (TaskId(1), 1, &b"0000000000000001"[..], None)
    );
    let server = async {
        let f = conn.expect(Op::Complete).await;
        let view = f.view();
        let done: Vec<Complete<'_>> = list(&view);
        assert_eq!((done.len(), done[0].result, done[1].lease), (2, &b"A"[..], lease(2)));
        let refused = items(&[Refused { index: 1, code: Code::StaleLease as u16, retry_after_ms: 0 }]);
        conn.send(Op::Settled, id(&f), 1, &[], &refused).await;
    };
    let (a, b, ()) = tokio::join!(a.complete("A"), b.complete("B"), server);
    assert_eq!((a.is_ok(), b.expect_err("stale").code()), (true, Some(Code::StaleLease)));

    let failing =
        next(&mut tasks).await.expect("task").fail(Failure::permanent("no").after(Duration::from_millis(7)));
    let (failed, ()) = tokio::join!(failing, async {
        let f = conn.expect(Op::Fail).await;
        let view = f.view();
        let fail: Vec<Fail<'_>> = list(&view);
        assert_eq!((fail[0].error, fail[0].permanent, fail[0].delay_ms), ("no", true, 7));
        conn.send(Op::Settled, id(&f), 1, &[], &[]).await;
    });
    failed.expect("settled");

    drop(next(&mut tasks).await.expect("task"));
    let f = conn.expect(Op::Release).await;
    assert_eq!((id(&f), list::<Release>(&f.view())[0].lease), (0, lease(4)));
    // The fifth was never taken from the stream.
    drop(tasks);
    assert_eq!(id(&conn.expect(Op::StopWork).await), id(&work));
    let f = conn.expect(Op::Release).await;
    assert_eq!(list::<Release>(&f.view())[0].lease, lease(5));
}

#[tokio::test]
async fn leases_are_renewed_while_held_and_revocation_is_told() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (mut tasks, work) = consumer(&client, &mut conn, 4).await;
    let given = std::time::Instant::now();
    conn.assign(&work, &[lease(1), lease(2)], 150).await;
    let (a, b) = (next(&mut tasks).await.expect("task"), next(&mut tasks).await.expect("task"));
    for round in 1..=2_u32 {
        let f = conn.expect(Op::Renew).await;
        let mut leases: Vec<Lease> = list(&f.view());
        leases.sort_by_key(|l| l.task);
        assert_eq!(leases, [lease(1), lease(2)]);
        assert!(given.elapsed() >= Duration::from_millis(50) * round, "renewed too early");
        conn.send(Op::Settled, id(&f), 2, &[], &[]).await;
    }
    let revoked = items(&[Revoked { lease: lease(1), reason: RevokeReason::Cancelled }]);
    conn.send(Op::Revoked, id(&work), 1, &[], &revoked).await;
    assert_eq!(a.revoked().await, Revocation::Server(RevokeReason::Cancelled));
    let f = conn.expect(Op::Renew).await;
    let leases: Vec<Lease> = list(&f.view());
    assert_eq!(leases, [lease(2)]);
    // A refused renewal is a revocation as well.
    let refused = items(&[Refused { index: 0, code: Code::StaleLease as u16, retry_after_ms: 0 }]);
    conn.send(Op::Settled, id(&f), 0, &[], &refused).await;
    assert_eq!(b.revoked().await, Revocation::Server(RevokeReason::Expired));
    assert_eq!(a.complete("late").await.expect_err("void").code(), Some(Code::StaleLease));
}

#[tokio::test]
async fn consumers_and_subscriptions_live_through_a_break() {
    let fake = Fake::start().await;
    let (client, mut conn) = fake.pair().await;
    let (mut tasks, work) = consumer(&client, &mut conn, 4).await;
    let (sub, ()) = tokio::join!(client.queue_subscribe("s", "g"), async {
        let f = conn.expect(Op::Subscribe).await;
        conn.ok(&f).await;
    });
    let mut sub = sub.expect("open");
    conn.assign(&work, &[lease(1)], 30_000).await;
    let held = next(&mut tasks).await.expect("task");
    drop(conn);
    assert_eq!(held.revoked().await, Revocation::Disconnected);
    let mut conn = fake.accept().await;
    let again = conn.expect(Op::Work).await;
    assert_eq!((id(&again), again.view().header), (id(&work), work.view().header));
    conn.ok(&again).await;
    let f = conn.expect(Op::Subscribe).await;
    conn.ok(&f).await;
    assert_eq!(held.complete("late").await.expect_err("void").code(), Some(Code::StaleLease));
    conn.assign(&again, &[lease(1)], 30_000).await;
    conn.send(Op::Deliver, id(&f), 0, b"s", b"back").await;
    assert_eq!(next(&mut tasks).await.expect("task").id(), TaskId(1));
    assert_eq!(next(&mut sub).await.expect("message").payload, "back");
}

#[tokio::test]
async fn requests_are_asked_and_answered() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (answer, ()) = tokio::join!(client.request("svc", "ping", Duration::from_secs(1)), async {
        let f = conn.expect(Op::Request).await;
        assert_eq!(
            (&f.view().header[..8], &f.view().header[8..]),
            (&[232, 3, 0, 0, 0, 0, 0, 0][..], &b"svc"[..])
        );
        conn.send(Op::Response, id(&f), 0, &[0; 8], b"pong").await;
    });
    assert_eq!(answer.expect("answered"), "pong");
    let (answer, ()) = tokio::join!(client.request("svc", "ping", Duration::from_secs(1)), async {
        let f = conn.expect(Op::Request).await;
        let e = WireError::new(Code::NoResponders, "nobody");
        conn.send(Op::Error, id(&f), 0, &messages::encode(&e), &[]).await;
    });
    assert_eq!(answer.expect_err("nobody").code(), Some(Code::NoResponders));

    let (sub, f) = tokio::join!(client.subscribe("svc"), async {
        let f = conn.expect(Op::Subscribe).await;
        conn.ok(&f).await;
        f
    });
    let mut sub = sub.expect("open");
    let header = [&42_u64.to_le_bytes()[..], b"svc"].concat();
    conn.send(Op::Requested, id(&f), 0, &header, b"question").await;
    let message = next(&mut sub).await.expect("a request");
    assert!(message.is_request() && message.subject() == "svc");
    message.reply("answer").await.expect("sent");
    let f = conn.expect(Op::Reply).await;
    assert_eq!((f.view().header, f.view().payload), (&42_u64.to_le_bytes()[..], &b"answer"[..]));
}

#[tokio::test]
async fn agents_write_to_each_other() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let mut inbox = client.messages().await.expect("open");
    let (sent, ()) = tokio::join!(client.send_to("bob", "hi"), async {
        let f = conn.expect(Op::Direct).await;
        assert_eq!((f.view().header, f.view().prefix.flags.0), (&b"bob"[..], Flags::ACK));
        conn.ok(&f).await;
    });
    sent.expect("delivered");
    let (sent, ()) = tokio::join!(client.broadcast("all"), async {
        let f = conn.expect(Op::Broadcast).await;
        conn.send(Op::Ok, id(&f), 7, &[], &[]).await;
    });
    assert_eq!(sent.expect("delivered"), 7);
    conn.send(Op::Message, 0, 0, b"bob", b"hello").await;
    let message = next(&mut inbox).await.expect("a message");
    assert_eq!(
        (message.from.as_str(), &message.payload[..], message.broadcast),
        ("bob", &b"hello"[..], false)
    );
}

#[tokio::test]
async fn calls_end_when_a_hub_shard_restarts() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (sent, ()) = tokio::join!(client.send_to("bob", "hi"), async {
        conn.expect(Op::Direct).await;
        let error = messages::encode(&WireError::new(Code::Restarted, "a hub shard restarted").maybe_done());
        conn.send(Op::Error, 0, 0, &error, &[]).await;
    });
    assert_eq!(sent.expect_err("nobody answers any more").code(), Some(Code::Restarted));
}

#[tokio::test]
async fn large_messages_are_fragmented_both_ways() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let big = Bytes::from(vec![7; 3 << 20]);
    let (answer, ()) = tokio::join!(client.request("s", big.clone(), Duration::from_secs(5)), async {
        let mut assembler = Assembler::new(16 << 20);
        let whole = loop {
            let f = conn.expect(Op::Fragment).await;
            if let Some(whole) = assembler.push(f.view()).expect("fine") {
                break hive_proto::Frame::new(whole).expect("whole");
            }
        };
        assert_eq!((whole.view().op(), whole.payload().len()), (Ok(Op::Request), 3 << 20));
        let mut pieces = Vec::new();
        split(&fake::bytes(Op::Response, id(&whole), 0, &[0; 8], &whole.payload()), 1, 65_536, |p| {
            pieces.push(p);
        });
        for piece in pieces {
            conn.raw(&piece).await;
        }
    });
    assert_eq!(answer.expect("answered"), big);
    let too_big =
        client.request("s", vec![0; 17 << 20], Duration::from_secs(5)).await.expect_err("refused here");
    assert_eq!((too_big.code(), too_big.outcome()), (Some(Code::MessageTooLarge), Certainty::NotDone));
}

#[tokio::test]
async fn lost_tasks_and_missed_results_are_told() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (batch, ()) = tokio::join!(client.submit_batch("q", ["a", "b", "c"]), async {
        let f = conn.expect(Op::Submit).await;
        conn.accept_tasks(&f, TaskId(1), 3, &[]).await;
    });
    let mut handles: Vec<_> = batch.expect("a good name").into_iter().map(|t| t.expect("accepted")).collect();
    let mut progress = handles[2].progress().await.expect("open");
    // A question of its own, so that the stream is known to the driver before the report comes.
    let (cancelled, ()) = tokio::join!(client.cancel(&[TaskId(1)]), async {
        let f = conn.expect(Op::Cancel).await;
        conn.send(Op::Settled, id(&f), 1, &[], &[]).await;
    });
    assert!(cancelled.expect("answered")[0].is_ok());
    let mut report = Vec::new();
    let item = Progressed { task: TaskId(3), attempt: 1, value: 2500, note: b"n" };
    hive_proto::items::Item::write(&item, &mut report);
    conn.send(Op::Progressed, 0, 1, &[], &report).await;
    let p = next(&mut progress).await.expect("a report");
    assert_eq!((p.fraction, &p.note[..]), (Some(0.25), &b"n"[..]));

    conn.send(Op::ResultsMissed, 0, 0, &1_u64.to_le_bytes(), &[]).await;
    let wait = conn.expect(Op::Wait).await;
    assert_eq!(count(&wait), 3);
    conn.send(Op::Tasks, id(&wait), 1, &[], &done(1, b"one")).await;
    assert_eq!(handles.remove(0).outcome().await.expect("asked for").result, "one");
    assert_eq!(count(&conn.expect(Op::Wait).await), 2);
    let lost = TasksLost { shard: 0, shards: 1, below: 3 };
    conn.send(Op::TasksLost, 0, 0, &messages::encode(&lost), &[]).await;
    assert_eq!(handles.remove(0).outcome().await.expect("told").state, TaskState::Lost);
    conn.send(Op::Result, 0, 1, &[], &done(3, b"three")).await;
    assert_eq!(handles.remove(0).outcome().await.expect("pushed").result, "three");
    assert!(next(&mut progress).await.is_none());
}

#[tokio::test]
async fn waits_go_on_after_a_break() {
    let fake = Fake::start().await;
    let (client, mut conn) = fake.pair().await;
    let tasks = [TaskId(1)];
    let wait = client.wait(&tasks, WaitMode::All, Duration::from_secs(5));
    let (states, ()) = tokio::join!(wait, async {
        conn.expect(Op::Wait).await;
        drop(conn);
        let mut conn = fake.accept().await;
        let f = conn.expect(Op::Wait).await;
        assert_eq!(f.view().header[0], WaitMode::All as u8);
        conn.send(Op::Tasks, id(&f), 1, &[], &done(1, b"x")).await;
    });
    assert_eq!(states.expect("answered")[0].state, TaskState::Completed);
}

#[tokio::test]
async fn draining_finishes_what_is_held_and_says_goodbye() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (mut tasks, work) = consumer(&client, &mut conn, 4).await;
    conn.assign(&work, &[lease(1)], 30_000).await;
    let held = next(&mut tasks).await.expect("task");
    let drain = tokio::spawn({
        let client = client.clone();
        async move { client.drain().await }
    });
    let f = conn.expect(Op::StopWork).await;
    conn.ok(&f).await;
    assert!(next(&mut tasks).await.is_none(), "no more tasks");
    let (completed, ()) = tokio::join!(held.complete("done"), async {
        let f = conn.expect(Op::Complete).await;
        conn.send(Op::Settled, id(&f), 1, &[], &[]).await;
    });
    completed.expect("settled");
    conn.expect(Op::Goodbye).await;
    assert!(conn.next().await.is_none());
    drain.await.expect("joined").expect("in order");
    assert!(matches!(client.publish("a", "b").await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_worker_can_stop_and_drain_while_there_is_no_server() {
    let fake = Fake::start().await;
    let (client, mut conn) = fake.pair().await;
    let (mut tasks, work) = consumer(&client, &mut conn, 4).await;
    conn.assign(&work, &[lease(1)], 30_000).await;
    let held = next(&mut tasks).await.expect("task");
    drop((conn, fake));
    assert_eq!(held.revoked().await, Revocation::Disconnected);
    tasks.stop();
    assert!(next(&mut tasks).await.is_none() && tasks.failure().is_none());
    assert_eq!(held.complete("late").await.expect_err("void").code(), Some(Code::StaleLease));
    let drained = tokio::time::timeout(fake::PATIENCE, client.drain()).await.expect("in time");
    assert!(drained.expect_err("the reason why it ended").is_connection());
}

#[tokio::test]
async fn a_draining_server_is_left_for_another() {
    let (old, new) = (Fake::start().await, Fake::start().await);
    let (client, mut conn) = old.pair().await;
    let drain = Drain { reason: "update".into(), grace_ms: 10_000, servers: vec![new.address()] };
    conn.send(Op::Drain, 0, 0, &messages::encode(&drain), &[]).await;
    conn.expect(Op::Goodbye).await;
    let _conn = new.accept().await;
    let address = new.address();
    let mut status = client.watch_status();
    status
        .wait_for(|s| matches!(s, Status::Connected { server, .. } if *server == address))
        .await
        .expect("told");
}

#[tokio::test]
async fn the_last_handle_closes_the_connection_after_what_was_said() {
    let (client, mut conn) = Fake::start().await.pair().await;
    client.publish("s", "last words").await.expect("sent");
    drop(client);
    assert_eq!(conn.expect(Op::Publish).await.payload(), "last words");
    conn.expect(Op::Goodbye).await;
    assert!(conn.next().await.is_none());
}

#[tokio::test]
async fn closing_fails_what_is_under_way() {
    let (client, mut conn) = Fake::start().await.pair().await;
    let (answer, ()) = tokio::join!(client.request("s", "x", Duration::from_secs(5)), async {
        conn.expect(Op::Request).await;
        client.close().await;
    });
    assert!(matches!(answer, Err(Error::Closed)));
    conn.expect(Op::Goodbye).await;
}
