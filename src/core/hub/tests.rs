//! The hub against what it promises; `model.rs` compares it with a model.

mod model;
mod requests;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use hive_proto::frame::write_frame;
use hive_proto::messages::{self, Subscribe};
use hive_proto::{Code, Flags, Frames, Op, SessionId, WireError};
use proptest::prelude::*;

use super::{Hub, HubLimits, HubSink};
use crate::core::time::Tick;

const LIMITS: HubLimits = HubLimits {
    subscriptions_per_session_max: 100,
    requests_max: 100,
    request_ms_max: 1000,
    subscriptions_max: 1000,
};

#[derive(Clone, PartialEq, Eq, Debug)]
enum Event {
    Deliver { to: u32, sub: u32, count: u32, frames: Bytes },
    Response { to: u32, frame: Bytes },
    Ok { to: u32, id: u32, count: u16 },
    Error { to: u32, id: u32, code: Code },
}

/// Writes down what the hub does.
#[derive(Default)]
struct Log {
    events: Vec<Event>,
    /// Responders that take no more.
    full: Vec<u32>,
}

impl HubSink for Log {
    fn deliver(&mut self, to: SessionId, sub: u32, count: u32, frames: Bytes) {
        self.events.push(Event::Deliver { to: to.0, sub, count, frames });
    }

    fn response(&mut self, to: SessionId, frame: Bytes) {
        self.events.push(Event::Response { to: to.0, frame });
    }

    fn requested(&mut self, to: SessionId, frame: Bytes) -> bool {
        let takes = !self.full.contains(&to.0);
        if takes {
            self.response(to, frame);
        }
        takes
    }

    fn ok(&mut self, to: SessionId, id: u32, count: u16) {
        self.events.push(Event::Ok { to: to.0, id, count });
    }

    fn error(&mut self, to: SessionId, id: u32, error: WireError) {
        self.events.push(Event::Error { to: to.0, id, code: error.code().expect("a known code") });
    }
}

/// A hub under test. Every call gives the events it caused.
struct Bench {
    hub: Hub,
    log: Log,
}

impl Bench {
    fn new(limits: HubLimits) -> Self {
        Self { hub: Hub::new(5, limits, 1), log: Log::default() }
    }

    fn apply(&mut self, from: u32, frames: &[u8]) -> Vec<Event> {
        self.hub.apply(Tick::ZERO, SessionId(from), BytesMut::from(frames), false, &mut self.log);
        std::mem::take(&mut self.log.events)
    }

    fn subscribe(&mut self, from: u32, id: u32, subject: &str, group: Option<&str>) {
        let events = self.apply(from, &subscribe(id, subject, group));
        assert_eq!(events, [Event::Ok { to: from, id, count: 0 }]);
    }

    fn close(&mut self, session: u32) -> Vec<Event> {
        self.hub.session_closed(SessionId(session), &mut self.log);
        std::mem::take(&mut self.log.events)
    }

    /// What each subscription gets when these are published: payloads by (session, subscription).
    fn publish(&mut self, from: u32, messages: &[(&str, &str)]) -> BTreeMap<(u32, u32), Vec<String>> {
        let chunk: Vec<u8> =
            messages.iter().flat_map(|(s, p)| frame(Op::Publish, 0, 0, s.as_bytes(), p.as_bytes())).collect();
        let mut got = BTreeMap::new();
        for event in self.apply(from, &chunk) {
            let Event::Deliver { to, sub, count, frames } = event else { panic!("{event:?}") };
            let payloads: Vec<String> =
                Frames(&frames).map(|f| String::from_utf8_lossy(f.payload).into()).collect();
            assert_eq!(payloads.len(), count as usize);
            got.entry((to, sub)).or_insert_with(Vec::new).extend(payloads);
        }
        got
    }
}

fn frame(op: Op, flags: u16, id: u32, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, op, flags, id, 0, &[header], payload);
    out
}

fn subscribe(id: u32, subject: &str, group: Option<&str>) -> Vec<u8> {
    let wish = Subscribe { subject: subject.into(), group: group.map(Into::into) };
    frame(Op::Subscribe, 0, id, &messages::encode(&wish), b"")
}

fn error(to: u32, id: u32, code: Code) -> Vec<Event> {
    vec![Event::Error { to, id, code }]
}

#[test]
fn a_run_is_delivered_whole_and_without_a_copy() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(1, 77, "a", None);
    let chunk: Vec<u8> =
        ["x", "", "long"].iter().flat_map(|p| frame(Op::Publish, 0, 9, b"a", p.as_bytes())).collect();
    let input = BytesMut::from(&chunk[..]);
    let place = input.as_ptr();
    b.hub.apply(Tick::ZERO, SessionId(2), input, false, &mut b.log);
    let expected: Vec<u8> =
        ["x", "", "long"].iter().flat_map(|p| frame(Op::Deliver, 0, 77, b"a", p.as_bytes())).collect();
    let [Event::Deliver { to: 1, sub: 77, count: 3, frames }] = &b.log.events[..] else {
        panic!("{:?}", b.log.events)
    };
    assert_eq!((&frames[..], frames.as_ptr()), (&expected[..], place));
}

#[test]
fn subscriptions_with_the_same_number_share_their_bytes() {
    let mut b = Bench::new(LIMITS);
    for (session, sub) in [(1, 1), (2, 2), (3, 1), (4, 1)] {
        b.subscribe(session, sub, "a", None);
    }
    let events = b.apply(9, &frame(Op::Publish, 0, 0, b"a", b"x"));
    let place = |n: usize| match &events[n] {
        Event::Deliver { to, sub, frames, .. } => (*to, *sub, frames.as_ptr()),
        e => panic!("{e:?}"),
    };
    assert_eq!(events.len(), 4);
    assert_eq!([0, 1, 2, 3].map(|n| (place(n).0, place(n).1)), [(1, 1), (3, 1), (4, 1), (2, 2)]);
    assert!(place(0).2 == place(1).2 && place(1).2 == place(2).2 && place(2).2 != place(3).2);
}

#[test]
fn acknowledged_publishes_learn_how_many_they_reached() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(1, 1, "a", None);
    b.subscribe(1, 2, ">", None);
    b.subscribe(2, 1, "a", Some("g"));
    b.subscribe(3, 1, "a", Some("g"));
    let publish = |subject: &[u8], id| frame(Op::Publish, Flags::ACK, id, subject, b"");
    let events = b.apply(9, &[publish(b"a", 7), publish(b"a", 8), publish(b"b", 9)].concat());
    let oks: Vec<_> = events.iter().filter(|e| matches!(e, Event::Ok { .. })).cloned().collect();
    let ok = |id, count| Event::Ok { to: 9, id, count };
    assert_eq!(oks, [ok(7, 3), ok(8, 3), ok(9, 1)]);
    for event in events {
        if let Event::Deliver { frames, .. } = event {
            assert!(Frames(&frames).all(|f| f.op() == Ok(Op::Deliver) && f.prefix.flags.0 == 0));
        }
    }
    assert_eq!((b.hub.counters().published, b.hub.counters().delivered), (3, 7));
}

#[test]
fn a_trace_travels_and_does_not_split_a_run() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(1, 1, "a", None);
    let traced = |t: u8| frame(Op::Publish, Flags::TRACE, 0, &[&[t; 25][..], b"a"].concat(), b"x");
    let events = b.apply(2, &[traced(1), traced(2)].concat());
    let [Event::Deliver { count: 2, frames, .. }] = &events[..] else { panic!("{events:?}") };
    let headers: Vec<_> = Frames(frames).map(|f| (f.prefix.flags.0, f.header.to_vec())).collect();
    assert_eq!(headers, [1, 2].map(|t: u8| (Flags::TRACE, [&[t; 25][..], b"a"].concat())));
}

#[test]
fn groups_share_evenly_and_take_turns() {
    let mut b = Bench::new(LIMITS);
    (0..3).for_each(|s| b.subscribe(s, 1, "a", Some("g")));
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let mut totals = BTreeMap::<u32, usize>::new();
    let mut sent = 0;
    for size in [1, 1, 1, 2, 2, 7, 9, 50, 27] {
        let run: Vec<_> = names[..size].iter().map(|n| ("a", n.as_str())).collect();
        let got = b.publish(0, &run);
        sent += size;
        for ((to, _), part) in got {
            let first: usize = part[0].parse().expect("a number");
            let contiguous: Vec<String> = (first..first + part.len()).map(|n| n.to_string()).collect();
            assert_eq!(part, contiguous);
            *totals.entry(to).or_default() += part.len();
        }
        let (low, high) = (sent / 3, sent.div_ceil(3));
        assert!((0..3).all(|s| (low..=high).contains(totals.get(&s).unwrap_or(&0))), "{totals:?} of {sent}");
    }
}

#[test]
fn bad_frames_are_answered_and_the_rest_goes_on() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(1, 1, "a", None);
    let good = frame(Op::Publish, 0, 0, b"a", b"");
    let bad: &[(Vec<u8>, Code)] = &[
        (frame(Op::Publish, 0, 4, b"a.*", b""), Code::InvalidSubject),
        (frame(Op::Publish, 0, 4, b"", b""), Code::InvalidSubject),
        (frame(Op::Publish, 0, 4, b"a\xff", b""), Code::InvalidSubject),
        (frame(Op::Publish, Flags::LAST, 4, b"a", b""), Code::BadFlags),
        (frame(Op::Publish, Flags::TRACE, 4, b"a", b""), Code::MalformedHeader),
        (frame(Op::Submit, 0, 4, b"a", b""), Code::UnknownOp),
        (frame(Op::Deliver, 0, 4, b"a", b""), Code::UnknownOp),
        (frame(Op::Subscribe, 0, 4, b"a", b""), Code::MalformedHeader),
        (subscribe(4, "a..b", None), Code::InvalidSubject),
        (subscribe(4, "a", Some("")), Code::MalformedHeader),
        (subscribe(4, "a", Some(&"g".repeat(129))), Code::MalformedHeader),
        (frame(Op::Unsubscribe, 0, 4, b"", b""), Code::UnknownSubscription),
        (frame(Op::Request, 0, 4, b"1234567", b""), Code::MalformedHeader),
        (frame(Op::Request, 0, 4, b"\0\0\0\0\0\0\0\x01a", b""), Code::MalformedHeader),
        (frame(Op::Request, 0, 4, b"\0\0\0\0\0\0\0\0>", b""), Code::InvalidSubject),
        (frame(Op::Reply, 0, 4, b"1234567", b""), Code::MalformedHeader),
        (frame(Op::Reply, 0, 4, b"123456789", b""), Code::MalformedHeader),
        (frame(Op::Reply, 0, 4, b"12345678", b""), Code::UnknownReply),
    ];
    for (frame, code) in bad {
        let events = b.apply(2, &[&good[..], frame, &good].concat());
        assert_eq!(events[1..2], error(2, 4, *code));
        assert!(
            events.len() == 3 && events[0] == events[2] && matches!(events[0], Event::Deliver { to: 1, .. })
        );
    }
    let mut unknown = good.clone();
    unknown[5] = 0x7f;
    assert_eq!(b.apply(2, &unknown), error(2, 0, Code::UnknownOp));
    assert_eq!(b.hub.counters().refused, bad.len() as u64 + 1);
}

#[test]
fn quiet_subscriptions_work_without_an_answer() {
    let mut b = Bench::new(HubLimits { subscriptions_per_session_max: 1, ..LIMITS });
    let quietly = |b: &mut Bench, frames: Vec<u8>| {
        b.hub.apply(Tick::ZERO, SessionId(1), BytesMut::from(&frames[..]), true, &mut b.log);
        std::mem::take(&mut b.log.events)
    };
    for silent in [subscribe(1, "*", None), subscribe(2, "", None), frame(Op::Unsubscribe, 0, 2, b"", b"")] {
        assert_eq!(quietly(&mut b, silent), []);
    }
    assert_eq!(quietly(&mut b, subscribe(2, "*", None)), error(1, 2, Code::TooManySubscriptions));
    assert_eq!(b.publish(2, &[("a", "x")]), BTreeMap::from([((1, 1), vec!["x".to_owned()])]));
    assert_eq!(quietly(&mut b, frame(Op::Unsubscribe, 0, 1, b"", b"")), []);
    assert_eq!(b.publish(2, &[("a", "x")]), BTreeMap::new());
}

#[test]
fn subscriptions_are_limited_per_session_and_per_shard() {
    let mut b = Bench::new(HubLimits { subscriptions_per_session_max: 2, subscriptions_max: 3, ..LIMITS });
    b.subscribe(1, 1, "a", None);
    assert_eq!(b.apply(1, &subscribe(1, "b", None)), error(1, 1, Code::DuplicateSubscription));
    b.subscribe(1, 2, "a", None);
    assert_eq!(b.apply(1, &subscribe(3, "a", None)), error(1, 3, Code::TooManySubscriptions));
    b.subscribe(2, 1, "*", None);
    assert_eq!(b.apply(2, &subscribe(2, "a", None)), error(2, 2, Code::TooManySubscriptions));
    assert_eq!(b.apply(1, &frame(Op::Unsubscribe, 0, 2, b"", b"")), [Event::Ok { to: 1, id: 2, count: 0 }]);
    b.subscribe(2, 2, "a", None);
    assert_eq!(b.hub.counters().subscriptions, 3);
    b.close(1);
    b.close(2);
    assert!(b.hub.subscriptions.is_clean());
}

#[test]
fn many_sessions_close_at_once() {
    let mut b = Bench::new(HubLimits { subscriptions_max: 100_000, ..LIMITS });
    for s in 0..10_000 {
        b.subscribe(s, 1, "all", None);
        b.subscribe(s, 2, "all.*.x", Some("g"));
    }
    assert_eq!(b.publish(0, &[("all", "x")]).len(), 10_000);
    assert!((0..10_000).all(|s| b.close(s * 7_919 % 10_000).is_empty()));
    assert!(b.hub.subscriptions.is_clean());
    assert_eq!(b.publish(0, &[("all", "x")]).len(), 0);
}

/// A well-cut frame that need not make any sense.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let op = prop_oneof![4 => 0x20_u8..0x27, 1 => any::<u8>()];
    let flags =
        prop_oneof![3 => Just(0_u16), 2 => Just(Flags::TRACE), 1 => Just(Flags::ACK), 1 => any::<u16>()];
    let wish = prop_oneof!["[a*>.]{0,6}", "a"]
        .prop_map(|subject| messages::encode(&Subscribe { subject, group: None }));
    let header = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        wish,
        "\0{8}[ab]".prop_map(String::into_bytes),
        "[ab.]{1,4}".prop_map(String::into_bytes)
    ];
    (op, flags, 0_u32..4, any::<u16>(), header, prop::collection::vec(any::<u8>(), 0..20)).prop_map(
        |(op, flags, id, count, header, payload)| {
            let mut out = frame(Op::Publish, flags, id, &header, &payload);
            out[5] = op;
            out[14..16].copy_from_slice(&count.to_le_bytes());
            out
        },
    )
}

proptest! {
    #[test]
    fn hostile_frames_never_panic_and_what_goes_out_is_well_formed(
        chunks in prop::collection::vec((0_u32..3, any::<bool>(), prop::collection::vec(hostile(), 1..8)), 1..12),
    ) {
        let mut b = Bench::new(HubLimits { subscriptions_per_session_max: 3, requests_max: 3, ..LIMITS });
        for (from, quiet, frames) in chunks {
            let chunk = BytesMut::from(&frames.concat()[..]);
            b.hub.apply(Tick::ZERO, SessionId(from), chunk, quiet, &mut b.log);
            for event in b.log.events.drain(..) {
                let (Event::Deliver { frames, .. } | Event::Response { frame: frames, .. }) = event else { continue };
                let whole: usize = Frames(&frames).map(|f| { assert!(f.op().is_ok_and(|op| !op.from_client())); 16 + f.prefix.length as usize }).sum();
                prop_assert_eq!(whole, frames.len());
            }
        }
        (0..3).for_each(|s| drop(b.close(s)));
        prop_assert!(b.hub.subscriptions.is_clean());
        prop_assert_eq!(b.hub.counters().requests_waiting, 0);
    }

    #[test]
    fn bytes_that_were_not_cut_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0_u8..60) {
        if let Some(prefix) = bytes.first_chunk_mut::<6>() {
            *prefix = [length, 0, 0, 0, 1, 0x20];
        }
        let mut b = Bench::new(LIMITS);
        b.subscribe(1, 1, ">", None);
        b.apply(1, &bytes);
    }
}
