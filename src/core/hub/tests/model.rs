//! The hub against a model that is too simple to be wrong: a list of subscriptions, and a match by recursion.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Subscribe { session: u32, id: u32, pattern: String, group: Option<String> },
    Unsubscribe { session: u32, id: u32 },
    Publish { session: u32, messages: Vec<Message> },
    Close { session: u32 },
}

#[derive(Clone, Debug)]
struct Message {
    subject: String,
    acked: bool,
    traced: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (session, id) = (0_u32..4, 0_u32..4);
    let pattern = prop_oneof!["[ab](\\.[ab*]){0,2}", "[ab*](\\.[ab*]){0,2}(\\.>)?", Just(">".to_owned())];
    let group = prop::option::of("[gh]");
    let message = ("[ab](\\.[ab]){0,2}", prop::bool::weighted(0.2), prop::bool::weighted(0.2))
        .prop_map(|(subject, acked, traced)| Message { subject, acked, traced });
    // Stretches of like messages, as real publishers send them.
    let messages = prop::collection::vec((message, 1_usize..6), 1..8)
        .prop_map(|stretches| stretches.into_iter().flat_map(|(m, n)| vec![m; n]).collect());
    let step = prop_oneof![
        5 => (session.clone(), id.clone(), pattern, group)
            .prop_map(|(session, id, pattern, group)| Step::Subscribe { session, id, pattern, group }),
        2 => (session.clone(), id).prop_map(|(session, id)| Step::Unsubscribe { session, id }),
        5 => (session.clone(), messages).prop_map(|(session, messages)| Step::Publish { session, messages }),
        1 => session.prop_map(|session| Step::Close { session }),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Clone, Debug)]
struct Known {
    session: u32,
    id: u32,
    pattern: String,
    group: Option<String>,
}

fn fits(pattern: &[&str], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([">"], [_, ..]) | ([], []) => true,
        ([p, pattern @ ..], [s, subject @ ..]) => (p == s || *p == "*") && fits(pattern, subject),
        _ => false,
    }
}

/// The subscriptions that a message concerns: alone, or as one of a group.
fn concerned(known: &[Known], subject: &str) -> BTreeMap<String, Vec<(u32, u32)>> {
    let subject: Vec<_> = subject.split('.').collect();
    let mut audiences = BTreeMap::<_, Vec<_>>::new();
    for k in known.iter().filter(|k| fits(&k.pattern.split('.').collect::<Vec<_>>(), &subject)) {
        let key = match &k.group {
            Some(group) => format!("{} {group}", k.pattern),
            None => format!("{} {}", k.session, k.id),
        };
        audiences.entry(key).or_default().push((k.session, k.id));
    }
    audiences
}

/// Publishes and compares what arrives with what must: every audience gets each message once, in order.
fn compare(b: &mut Bench, known: &[Known], session: u32, messages: &[Message], next: &mut u64) {
    let (mut chunk, mut sent) = (Vec::new(), Vec::new());
    for m in messages {
        let trace = [7_u8; 25];
        let header = [if m.traced { &trace[..] } else { &[] }, m.subject.as_bytes()].concat();
        let flags = (Flags::ACK * u16::from(m.acked)) | (Flags::TRACE * u16::from(m.traced));
        chunk.extend(frame(Op::Publish, flags, sent.len() as u32, &header, &next.to_le_bytes()));
        sent.push((*next, header, flags & Flags::TRACE, concerned(known, &m.subject)));
        *next += 1;
    }
    let mut got = BTreeMap::<(u32, u32), Vec<u64>>::new();
    let mut oks = Vec::new();
    for event in b.apply(session, &chunk) {
        match event {
            Event::Deliver { to, sub, count, frames } => {
                assert_eq!(Frames(&frames).count(), count as usize);
                for f in Frames(&frames) {
                    let n = u64::from_le_bytes(f.payload.try_into().expect("a number"));
                    let (_, header, flags, _) = &sent[(n - sent[0].0) as usize];
                    assert_eq!((f.op(), f.prefix.id, f.prefix.flags.0), (Ok(Op::Deliver), sub, *flags));
                    assert_eq!(f.header, &header[..]);
                    got.entry((to, sub)).or_default().push(n);
                }
            }
            Event::Ok { id, count, .. } => oks.push((id, count)),
            other => panic!("{other:?}"),
        }
    }
    let expected_oks: Vec<_> = (0..)
        .zip(messages)
        .zip(&sent)
        .filter(|((_, m), _)| m.acked)
        .map(|((i, _), s)| (i, s.3.len() as u16))
        .collect();
    assert_eq!(oks, expected_oks);
    for received in got.values() {
        assert!(received.is_sorted_by(|a, b| a < b), "order is kept: {received:?}");
    }
    for (n, _, _, audiences) in &sent {
        for members in audiences.values() {
            let receivers =
                members.iter().filter(|m| got.get(m).is_some_and(|r| r.binary_search(n).is_ok())).count();
            assert_eq!(receivers, 1, "message {n} for one of {members:?}");
        }
    }
    let total: usize = sent.iter().map(|s| s.3.len()).sum();
    assert_eq!(got.values().map(Vec::len).sum::<usize>(), total, "nothing goes to anybody else");
}

fn run(b: &mut Bench, steps: &[Step]) {
    let (mut known, mut next) = (Vec::<Known>::new(), 0);
    for step in steps {
        match step {
            Step::Subscribe { session, id, pattern, group } => {
                let events = b.apply(*session, &subscribe(*id, pattern, group.as_deref()));
                if known.iter().any(|k| (k.session, k.id) == (*session, *id)) {
                    assert_eq!(events, error(*session, *id, Code::DuplicateSubscription));
                } else {
                    assert_eq!(events, [Event::Ok { to: *session, id: *id, count: 0 }]);
                    known.push(Known {
                        session: *session,
                        id: *id,
                        pattern: pattern.clone(),
                        group: group.clone(),
                    });
                }
            }
            Step::Unsubscribe { session, id } => {
                let events = b.apply(*session, &frame(Op::Unsubscribe, 0, *id, b"", b""));
                let before = known.len();
                known.retain(|k| (k.session, k.id) != (*session, *id));
                let was_there = known.len() < before;
                assert_eq!(matches!(events[..], [Event::Ok { .. }]), was_there);
            }
            Step::Publish { session, messages } => compare(b, &known, *session, messages, &mut next),
            Step::Close { session } => {
                assert_eq!(b.close(*session), []);
                known.retain(|k| k.session != *session);
            }
        }
        assert_eq!(b.hub.counters().subscriptions, known.len() as u64);
    }
}

/// Everything that a hub does with these steps.
fn record(seed: u64, steps: &[Step]) -> Vec<Event> {
    let mut b = Bench { hub: Hub::new(0, LIMITS, seed), log: Log::default() };
    let mut events = Vec::new();
    for step in steps {
        events.extend(match step {
            Step::Subscribe { session, id, pattern, group } => {
                b.apply(*session, &subscribe(*id, pattern, group.as_deref()))
            }
            Step::Unsubscribe { session, id } => b.apply(*session, &frame(Op::Unsubscribe, 0, *id, b"", b"")),
            Step::Publish { session, messages } => {
                let publish = |m: &Message| frame(Op::Publish, 0, 0, m.subject.as_bytes(), b"x");
                b.apply(*session, &messages.iter().flat_map(publish).collect::<Vec<_>>())
            }
            Step::Close { session } => b.close(*session),
        });
    }
    events
}

proptest! {
    #[test]
    fn the_hub_does_what_the_model_does(steps in steps()) {
        let mut b = Bench::new(LIMITS);
        run(&mut b, &steps);
        (0..4).for_each(|s| drop(b.close(s)));
        prop_assert!(b.hub.subscriptions.is_clean());
    }

    #[test]
    fn nothing_depends_on_the_order_of_a_table(steps in steps(), seed in any::<u64>()) {
        prop_assert_eq!(record(0, &steps), record(seed, &steps));
    }
}
