//! The life of requests.

use super::*;

fn ask(id: u32, timeout_ms: u32, subject: &str) -> Vec<u8> {
    let header = [&timeout_ms.to_le_bytes()[..], &[0; 4], subject.as_bytes()].concat();
    frame(Op::Request, 0, id, &header, b"question")
}

fn answer(token: u64) -> Vec<u8> {
    frame(Op::Reply, 0, 55, &token.to_le_bytes(), b"answer")
}

/// The one `Requested` among events: to whom, for which subscription, with which token.
fn requested(events: &[Event]) -> (u32, u32, u64) {
    let [Event::Response { to, frame }] = events else { panic!("{events:?}") };
    let f = Frames(frame).next().expect("a frame");
    assert_eq!((f.op(), f.payload), (Ok(Op::Requested), &b"question"[..]));
    (*to, f.prefix.id, u64::from_le_bytes(f.header[..8].try_into().expect("a token")))
}

impl Bench {
    fn ask(&mut self, from: u32, id: u32, subject: &str) -> (u32, u32, u64) {
        requested(&self.apply(from, &ask(id, 0, subject)))
    }
}

#[test]
fn a_request_is_answered_once() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(2, 9, "math.*", None);
    let events = b.apply(1, &ask(7, 0, "math.add"));
    let (to, sub, token) = requested(&events);
    assert_eq!((to, sub, token >> 56), (2, 9, 5));
    let Event::Response { frame: question, .. } = &events[0] else { unreachable!() };
    assert_eq!(question[24..], *b"math.addquestion");
    assert_eq!(b.apply(3, &answer(token)), error(3, 55, Code::UnknownReply));
    let response = frame(Op::Response, 0, 7, &[0; 8], b"answer");
    assert_eq!(b.apply(2, &answer(token)), [Event::Response { to: 1, frame: response.into() }]);
    assert_eq!(b.apply(2, &answer(token)), error(2, 55, Code::UnknownReply));
    let c = b.hub.counters();
    assert_eq!((c.requests, c.replies, c.requests_waiting), (1, 1, 0));
}

#[test]
fn traces_travel_both_ways() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(2, 9, "a", None);
    let trace = [3; 25];
    let events = b.apply(1, &frame(Op::Request, Flags::TRACE, 7, &[&trace[..], &[0; 8], b"a"].concat(), b""));
    let [Event::Response { to: 2, frame: question }] = &events[..] else { panic!("{events:?}") };
    let f = Frames(question).next().expect("a frame");
    assert_eq!((&f.header[..25], &f.header[33..], f.prefix.flags.0), (&trace[..], &b"a"[..], Flags::TRACE));
    let reply = frame(Op::Reply, Flags::TRACE, 0, &f.header[..33], b"");
    let response = frame(Op::Response, Flags::TRACE, 7, &[&trace[..], &[0; 8]].concat(), b"");
    assert_eq!(b.apply(2, &reply), [Event::Response { to: 1, frame: response.into() }]);
}

#[test]
fn one_responder_is_asked_and_all_take_turns() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(1, 1, "a", None);
    b.subscribe(2, 1, "*", None);
    b.subscribe(3, 1, "a", Some("g"));
    b.subscribe(4, 1, "a", Some("g"));
    let mut turns = BTreeMap::<u32, u32>::new();
    for id in 0..60 {
        *turns.entry(b.ask(9, id, "a").0).or_default() += 1;
    }
    assert_eq!(turns, BTreeMap::from([(1, 20), (2, 20), (3, 10), (4, 10)]));
}

#[test]
fn requests_that_cannot_be_asked_fail_at_once() {
    let mut b = Bench::new(HubLimits { requests_max: 2, ..LIMITS });
    assert_eq!(b.apply(1, &ask(7, 0, "a")), error(1, 7, Code::NoResponders));
    b.subscribe(2, 1, "a", None);
    b.log.full.push(2);
    assert_eq!(b.apply(1, &ask(7, 0, "a")), error(1, 7, Code::ReceiverSlow));
    b.log.full.clear();
    let (_, _, token) = b.ask(1, 7, "a");
    b.ask(1, 8, "a");
    assert_eq!(b.apply(1, &ask(9, 0, "a")), error(1, 9, Code::TooManyRequests));
    b.apply(2, &answer(token));
    b.ask(1, 9, "a");
    let c = b.hub.counters();
    assert_eq!((c.no_responders, c.responders_gone, c.requests_waiting), (1, 1, 2));
}

#[test]
fn requests_time_out() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(2, 1, "a", None);
    let ms = |n| Tick::ZERO.plus_ms(n);
    assert_eq!(b.hub.next_deadline(), None);
    let tokens: Vec<u64> =
        [(7, 0), (8, 10), (9, 5000)].map(|(id, wish)| requested(&b.apply(1, &ask(id, wish, "a"))).2).into();
    assert_eq!(b.hub.next_deadline(), Some(ms(10)));
    b.hub.on_deadline(Tick(ms(10).0 - 1), &mut b.log);
    assert_eq!(b.log.events, []);
    b.hub.on_deadline(ms(10), &mut b.log);
    assert_eq!(std::mem::take(&mut b.log.events), error(1, 8, Code::RequestTimeout));
    assert_eq!(b.apply(2, &answer(tokens[1])), error(2, 55, Code::UnknownReply));
    assert_eq!(b.hub.next_deadline(), Some(ms(1000)), "0 and wishes beyond the limit mean the limit");
    assert_eq!(b.apply(2, &answer(tokens[0])).len(), 1);
    b.hub.on_deadline(ms(1000), &mut b.log);
    assert_eq!(std::mem::take(&mut b.log.events), error(1, 9, Code::RequestTimeout));
    assert_eq!((b.hub.next_deadline(), b.hub.counters().timeouts), (None, 2));
}

#[test]
fn a_closed_responder_fails_its_requests_and_a_closed_asker_forgets_them() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(2, 1, "a", None);
    b.subscribe(1, 1, "b", None);
    b.ask(1, 7, "a");
    b.ask(3, 8, "a");
    let (_, _, forgotten) = b.ask(2, 9, "b");
    b.ask(2, 10, "a");
    let mut events = b.close(2);
    events.sort_by_key(|e| matches!(e, Event::Error { id: 8, .. }));
    assert_eq!(events, [error(1, 7, Code::ResponderGone), error(3, 8, Code::ResponderGone)].concat());
    assert_eq!(b.apply(1, &answer(forgotten)), error(1, 55, Code::UnknownReply));
    assert_eq!(b.hub.counters().requests_waiting, 0);
    assert_eq!(b.apply(1, &ask(7, 0, "a")), error(1, 7, Code::NoResponders));
}

#[test]
fn an_unsubscribed_responder_may_still_answer() {
    let mut b = Bench::new(LIMITS);
    b.subscribe(2, 1, "a", None);
    let (_, _, token) = b.ask(1, 7, "a");
    b.apply(2, &frame(Op::Unsubscribe, 0, 1, b"", b""));
    assert!(matches!(b.apply(2, &answer(token))[..], [Event::Response { to: 1, .. }]));
}

#[test]
fn tokens_of_an_earlier_hub_do_not_fit() {
    let mut tokens = [1_u64 << 40, 2 << 40].map(|seed| {
        let mut b = Bench { hub: Hub::new(5, LIMITS, seed), log: Log::default() };
        b.subscribe(2, 1, "a", None);
        let (_, _, token) = b.ask(1, 7, "a");
        (b, token)
    });
    let old = tokens[0].1;
    assert_eq!(tokens[1].0.apply(2, &answer(old)), error(2, 55, Code::UnknownReply));
}
