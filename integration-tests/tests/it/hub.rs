//! Demand 4 of the issue: the hub.

use hive_proto::frame::write_frame;
use hive_proto::{Code, Flags, Op, Trace};

use crate::harness::{Heard, Server, assert_error, eventually};

fn told(from: &str, payload: &[u8]) -> Heard {
    Heard { from: from.into(), payload: payload.into(), broadcast: false }
}

#[test]
fn wildcards() {
    let server = Server::with("shards = 3");
    let (mut publisher, mut subscriber) = (server.client(), server.client());
    let exact = subscriber.subscribe("a.b.c", None);
    let star = subscriber.subscribe("a.*.c", None);
    let rest = subscriber.subscribe("a.>", None);
    let all = subscriber.subscribe(">", None);
    for (subject, reached, subs) in [
        ("a.b.c", 4, vec![exact, star, rest, all]),
        ("a.x.c", 3, vec![star, rest, all]),
        ("a.b", 2, vec![rest, all]),
        ("a", 1, vec![all]),
        ("other.one", 1, vec![all]),
    ] {
        assert_eq!(publisher.publish(subject, subject.as_bytes()).expect("published"), reached, "{subject}");
        for sub in subs {
            assert_eq!(subscriber.heard(sub), told(subject, subject.as_bytes()));
        }
    }
    subscriber.unsubscribe(all).expect("open");
    subscriber.unsubscribe(star).expect("open");
    assert_eq!(publisher.publish("a.x.c", b"1").expect("published"), 1);
    assert_eq!(publisher.publish("other", b"2").expect("published"), 0);
    assert_eq!(subscriber.heard(rest), told("a.x.c", b"1"));
    assert_eq!(subscriber.count(Op::Deliver), 0);
}

#[test]
fn order_is_kept_and_a_publisher_hears_itself() {
    let server = Server::start();
    let mut client = server.client();
    let sub = client.subscribe("own", None);
    let mut batch = Vec::new();
    for i in 0..1000_u32 {
        write_frame(&mut batch, Op::Publish, 0, 0, 0, &[b"own"], &i.to_le_bytes());
    }
    client.wire.send(&batch);
    for i in 0..1000_u32 {
        assert_eq!(client.heard(sub).payload, i.to_le_bytes());
    }
}

#[test]
fn groups_share_evenly() {
    let server = Server::with("shards = 2");
    let mut publisher = server.client();
    let mut members: Vec<_> = (0..4).map(|_| server.client()).collect();
    let subs: Vec<_> = members.iter_mut().map(|m| m.subscribe("work.>", Some("team"))).collect();
    let mut witness = server.client();
    let all = witness.subscribe("work.*", None);
    let mut batch = Vec::new();
    for i in 0..400_u32 {
        write_frame(&mut batch, Op::Publish, 0, 0, 0, &[b"work.x"], &i.to_le_bytes());
    }
    publisher.wire.send(&batch);
    for i in 0..400_u32 {
        assert_eq!(witness.heard(all).payload, i.to_le_bytes());
    }
    let mut seen: Vec<u32> = Vec::new();
    for (member, sub) in members.iter_mut().zip(subs) {
        let before = seen.len();
        for _ in 0..member.count(Op::Deliver) {
            seen.push(u32::from_le_bytes(member.heard(sub).payload.try_into().expect("a number")));
        }
        let share = seen.len() - before;
        assert!((90..=110).contains(&share), "a share of {share}");
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..400).collect::<Vec<_>>(), "each message went to one member");
}

#[test]
fn requests_are_answered() {
    let server = Server::with("shards = 2");
    let (mut asker, mut responder) = (server.client(), server.client());
    let sub = responder.subscribe("math.*", None);
    let id = asker.ask_request("math.add", 10_000, b"1+1");
    let (token, subject, payload) = responder.requested(sub);
    assert_eq!((&subject[..], &payload[..]), ("math.add", &b"1+1"[..]));
    responder.reply(token, b"2");
    assert_eq!(asker.response(id).expect("answered"), b"2");
    let again = responder.reply(token, b"3");
    assert_error(&responder.answer(again).expect_err("once"), Code::UnknownReply, "token");
}

#[test]
fn requests_fail_in_time() {
    let server = Server::start();
    let (mut asker, mut responder) = (server.client(), server.client());
    let id = asker.ask_request("nobody.home", 600_000, b"?");
    let e = asker.response(id).expect_err("at once, not after ten minutes");
    assert_error(&e, Code::NoResponders, "nobody");
    let sub = responder.subscribe("slow", None);
    let id = asker.ask_request("slow", 100, b"?");
    let (token, ..) = responder.requested(sub);
    assert_error(&asker.response(id).expect_err("too late"), Code::RequestTimeout, "in time");
    let late = responder.reply(token, b"late");
    assert_error(&responder.answer(late).expect_err("too late"), Code::UnknownReply, "token");
    let id = asker.ask_request("slow", 600_000, b"?");
    responder.requested(sub);
    drop(responder);
    assert_error(&asker.response(id).expect_err("gone"), Code::ResponderGone, "ended");
    asker.echo();
}

#[test]
fn responders_take_turns() {
    let server = Server::start();
    let mut asker = server.client();
    let mut responders: Vec<_> = (0..3).map(|_| server.client()).collect();
    let subs: Vec<_> = responders.iter_mut().map(|r| r.subscribe("serve", Some("group"))).collect();
    let ids: Vec<_> = (0..30).map(|i: u8| asker.ask_request("serve", 60_000, &[i])).collect();
    asker.echo();
    for (responder, sub) in responders.iter_mut().zip(subs) {
        for _ in 0..10 {
            let (token, _, payload) = responder.requested(sub);
            responder.reply(token, &payload);
        }
    }
    for (i, id) in ids.into_iter().enumerate() {
        assert_eq!(asker.response(id).expect("answered"), [i as u8]);
    }
}

#[test]
fn messages_to_agents() {
    let server = Server::with("shards = 2");
    let (mut a, mut b, mut c) = (server.agent("a", &[]), server.agent("b", &[]), server.agent("c", &[]));
    assert_eq!(a.direct("b", b"psst").expect("connected"), 1);
    assert_eq!(b.message(), told("a", b"psst"));
    assert_eq!(a.direct("a", b"self").expect("connected"), 1);
    assert_eq!(a.message(), told("a", b"self"));
    assert_eq!(b.broadcast(b"all").expect("sent"), 2);
    let all = Heard { broadcast: true, ..told("b", b"all") };
    assert_eq!((a.message(), c.message()), (all.clone(), all));
    assert_eq!((a.count(Op::Message), b.count(Op::Message), c.count(Op::Message)), (0, 0, 0));
    drop(c);
    eventually("c is gone", || a.direct("c", b"x").err().filter(|e| e.code() == Some(Code::UnknownAgent)));
}

#[test]
fn trace_contexts_travel_along() {
    let server = Server::start();
    let mut client = server.client();
    let sub = client.subscribe("t", None);
    let trace = Trace([7; Trace::LEN]);
    client.send(Op::Publish, Flags::TRACE, 0, 0, &[&trace.0[..], b"t"].concat(), b"x");
    let frame = client.next(Op::Deliver);
    let seen = frame.view().traced_header().expect("traced");
    assert_eq!((frame.view().prefix.id, seen), (sub, (Some(trace), &b"t"[..])));
}

/// A subscriber that does not read is told the exact number it lost, once it reads again; others lose nothing.
#[test]
fn a_slow_subscriber_is_told_what_it_lost() {
    const MESSAGES: u64 = 4000;
    let server = Server::with("limits.outbox_bytes_max = 1000000");
    let (mut publisher, mut slow, mut quick) = (server.client(), server.client(), server.client());
    let (slow_sub, quick_sub) = (slow.subscribe("flood", None), quick.subscribe("flood", None));
    let body = vec![b'x'; 8192];
    for i in 0..MESSAGES {
        publisher.send(Op::Publish, 0, 0, 0, b"flood", &body);
        // The quick one keeps up, so that only the slow one is slow.
        assert_eq!(quick.heard(quick_sub).payload.len(), body.len(), "message {i}");
    }
    publisher.echo();
    let (mut heard, mut lost) = (0, 0);
    while heard + lost < MESSAGES {
        let frame = slow.take("a message or the number lost", |p| p.id == slow_sub);
        match frame.view().op() {
            Ok(Op::Deliver) => heard += 1,
            Ok(Op::MessagesLost) => {
                lost += u64::from_le_bytes(frame.view().header.try_into().expect("a count"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard + lost, MESSAGES, "{heard} heard and {lost} lost");
    assert!(lost > 0 && heard * 8192 >= 1_000_000, "{heard} heard, {lost} lost");
    assert_eq!(quick.count(Op::MessagesLost), 0);
    assert_eq!(server.status()["totals"]["lost"], lost);
    publisher.publish("flood", b"after").expect("published");
    assert_eq!(slow.heard(slow_sub).payload, b"after", "it is heard as before");
}

/// With several shards a subscription lives on that of its subject, and an id that was refused on one is free on all.
#[test]
fn a_refused_id_may_be_used_again() {
    let server = Server::with("shards = 4\nlimits.subscriptions_max = 3");
    let (mut client, mut publisher) = (server.client(), server.client());
    let wish = |subject: &str, group: Option<&str>| {
        hive_proto::messages::encode(&hive_proto::messages::Subscribe {
            subject: subject.into(),
            group: group.map(Into::into),
        })
    };
    let subjects: Vec<String> = (0..12).map(|n| format!("subject.{n}")).collect();
    for subject in &subjects {
        // Refused for its group by the shard of one subject, then taken for another that lives elsewhere.
        client.send(Op::Subscribe, 0, 500, 0, &wish("first", Some("not a group")), &[]);
        assert_error(&client.answer(500).expect_err("refused"), Code::MalformedHeader, "group");
        client.send(Op::Subscribe, 0, 500, 0, &wish(subject, None), &[]);
        client.answer(500).expect("taken");
        client.send(Op::Subscribe, 0, 500, 0, &wish("a.*", None), &[]);
        let e = client.answer(500).expect_err("in use");
        assert_error(&e, Code::DuplicateSubscription, "500");
        assert_eq!(publisher.publish(subject, b"x").expect("published"), 1, "{subject}");
        assert_eq!(client.heard(500).from, *subject);
        client.unsubscribe(500).expect("open");
        assert_eq!(publisher.publish(subject, b"x").expect("published"), 0, "{subject}");
    }
}

/// A subscription with wildcards is judged by one shard: it has one answer, and is on all shards or on none.
#[test]
fn a_wildcard_has_one_answer() {
    let server = Server::with("shards = 3\nlimits.subscriptions_max = 2");
    let (mut client, mut publisher) = (server.client(), server.client());
    let first = client.subscribe("a.*", None);
    let second = client.subscribe("b.>", Some("team"));
    let e = client.try_subscribe("c.*", None).expect_err("two are all");
    assert_error(&e, Code::TooManySubscriptions, "2");
    assert_eq!((client.count(Op::Ok), client.count(Op::Error)), (0, 0), "one answer each");
    for n in 0..20 {
        assert_eq!(publisher.publish(&format!("a.{n}"), b"1").expect("published"), 1);
        assert_eq!(publisher.publish(&format!("b.{n}"), b"2").expect("published"), 1);
        assert_eq!(publisher.publish(&format!("c.{n}"), b"3").expect("published"), 0);
    }
    client.unsubscribe(first).expect("open");
    client.unsubscribe(second).expect("open");
    assert_error(&client.unsubscribe(first).expect_err("closed"), Code::UnknownSubscription, "");
    for n in 0..20 {
        assert_eq!(publisher.publish(&format!("a.{n}"), b"1").expect("published"), 0);
    }
    let third = client.subscribe("c.*", None);
    drop(client);
    eventually("gone", || (publisher.publish("c.1", b"").expect("published") == 0).then_some(()));
    assert!(third > 0);
}
