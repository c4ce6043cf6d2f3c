use hive_proto::Trace;

use super::*;

fn options() -> TaskOptions {
    TaskOptions::default()
}

/// What the board says to a submit of one item with this extension.
fn say(room: &mut Room, ext: &[u8]) -> Effect {
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(ext, b"p")]);
    room.answer()
}

#[test]
fn a_batch_gets_consecutive_ids_of_its_queue() {
    let mut room = Room::new();
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(b"", b"a"), (b"", b"b")]);
    let first = TaskId::new(hive_proto::Partition::of_queue("q"), 1_000);
    assert_eq!(room.answer(), Effect::Accepted { to: ALICE, request: 1, first, count: 2, refused: vec![] });
    assert_eq!(room.submit(BOB, "other", &["c"])[0].seq(), 1_002);
    assert_eq!((room.board.next_seq(), room.board.epoch()), (1_003, EPOCH));
    assert_eq!([room.state(first), room.state(first.offset(1))], [TaskState::Waiting; 2]);
    assert_eq!(room.state(first.offset(2)), TaskState::Unknown, "its partition is another");
    let queues: Vec<_> = room.board.queues().map(|q| (q.name, q.waiting)).collect();
    assert_eq!(queues, [("q".into(), 2), ("other".into(), 1)]);
    assert_eq!(room.board.counters().submitted, 3);
}

#[test]
fn options_reach_the_task_and_the_worker() {
    let mut room = Room::new();
    let opts =
        TaskOptions { labels: vec!["gpu".into()], max_attempts: Some(1), delay_ms: Some(500), trace: None };
    let task = room.submit_one(ALICE, "q", &opts, "p");
    room.work_with(
        BOB,
        1,
        Work { queue: "q".into(), credit_tasks: 1, credit_bytes: 9, labels: vec!["gpu".into()] },
        &[],
    );
    room.answer();
    assert_eq!(room.state(task), TaskState::Scheduled);
    room.after_ms(499);
    assert_eq!(room.given(), "");
    room.after_ms(1);
    assert_eq!(room.state(task), TaskState::Waiting);
    let given = room.pump();
    assert_eq!(messages::decode(&given[0].2.ext), Ok(opts));
    assert_eq!(room.fail(BOB, given[0].2.lease, 0, "no"), Ok(()));
    assert_eq!(room.state(task), TaskState::Dead, "one attempt was all it had");
}

#[test]
fn a_delay_of_nothing_is_none() {
    let mut room = Room::new();
    let task = room.submit_one(ALICE, "q", &TaskOptions { delay_ms: Some(0), ..options() }, "p");
    assert_eq!(room.state(task), TaskState::Waiting);
}

#[test]
fn options_out_of_range_or_unknown_are_named() {
    let mut room = Room::new();
    let high =
        |max_attempts, delay_ms| messages::encode(&TaskOptions { max_attempts, delay_ms, ..options() });
    for (ext, word) in [
        (high(Some(0), None), "max_attempts = 0 is not in 1 to 1000"),
        (high(Some(1_001), None), "max_attempts = 1001"),
        (high(Some(u32::MAX), None), "max_attempts"),
        (high(None, Some((1 << 31) + 1)), "delay_ms = 2147483649"),
        (messages::encode(&std::collections::BTreeMap::from([("priority", 1)])), "unknown field `priority`"),
        (vec![0xc1], "TaskOptions"),
        (vec![0x80, 0x80], "1 bytes too many"),
    ] {
        let said = say(&mut room, &ext);
        assert_eq!(code(&said), Code::InvalidOptions);
        assert!(text(&said).contains(word), "{said:?}");
    }
    assert!(matches!(say(&mut room, &high(Some(1_000), Some(1 << 31))), Effect::Accepted { count: 1, .. }));
    let label = |l: &str| messages::encode(&TaskOptions { labels: vec![l.into()], ..options() });
    assert_eq!(code(&say(&mut room, &label("a b"))), Code::InvalidLabel);
    assert_eq!(code(&say(&mut room, &label(""))), Code::InvalidLabel);
    let many = messages::encode(&TaskOptions { labels: vec!["x".into(); 33], ..options() });
    assert_eq!(code(&say(&mut room, &many)), Code::InvalidLabel);
    assert_eq!(room.board.counters().refused, 10);
}

#[test]
fn the_good_items_of_a_batch_are_taken() {
    let mut room = Room::new();
    let frame = room.frame(ALICE, "q");
    let good = messages::encode(&TaskOptions { max_attempts: Some(5), ..options() });
    room.submit_frame(frame, &[(b"\xc1", b"a"), (&good, b"b"), (b"\xc1", b"c"), (b"", b"d")]);
    let Effect::Accepted { first, count: 2, refused, .. } = room.answer() else { panic!() };
    let refusal = |index| Refused { index, code: Code::InvalidOptions as u16, retry_after_ms: 0 };
    assert_eq!(refused, [refusal(0), refusal(2)]);
    room.work(BOB, 1, "q", 9);
    let given = room.pump();
    let got: Vec<_> = given.iter().map(|(_, _, g)| (g.lease.task, &g.payload[..])).collect();
    assert_eq!(got, [(first, &b"b"[..]), (first.offset(1), b"d")]);
}

#[test]
fn the_trace_of_the_frame_reaches_items_without_one() {
    let mut room = Room::new();
    let (outer, inner) = (Trace([1; 25]), Trace([2; 25]));
    let own = messages::encode(&TaskOptions { trace: Some(inner), ..options() });
    let plain = messages::encode(&TaskOptions { max_attempts: Some(2), ..options() });
    let frame = SubmitFrame { trace: Some(outer), ..room.frame(ALICE, "q") };
    room.submit_frame(frame, &[(b"", b"a"), (&own, b"b"), (&plain, b"c")]);
    room.accepted();
    room.work(BOB, 1, "q", 9);
    let ext: Vec<TaskOptions> =
        room.pump().iter().map(|(_, _, g)| messages::decode(&g.ext).unwrap()).collect();
    assert_eq!(ext.iter().map(|o| o.trace).collect::<Vec<_>>(), [Some(outer), Some(inner), Some(outer)]);
    assert_eq!(ext[2].max_attempts, Some(2));
}

#[test]
fn queues_are_made_on_first_use_within_limits() {
    let mut room = Room::new();
    for q in ["a", "b", "c", "d"] {
        room.submit(ALICE, q, &["x"]);
    }
    let frame = room.frame(ALICE, "e");
    room.submit_frame(frame, &[(b"", b"x"), (b"", b"y")]);
    let said = room.answer();
    assert_eq!(
        (code(&said), text(&said)),
        (Code::TooManyQueues, "queue \"e\" would be one more than queues_max = 4")
    );
    for bad in ["", "a b", "ä"] {
        let frame = room.frame(ALICE, bad);
        room.submit_frame(frame, &[(b"", b"x")]);
        assert_eq!(code(&room.answer()), Code::InvalidQueueName);
    }
    let frame = SubmitFrame { queue: b"\xff", ..room.frame(ALICE, "") };
    room.submit_frame(frame, &[(b"", b"x")]);
    assert_eq!(code(&room.answer()), Code::InvalidQueueName);
    assert_eq!(room.board.counters().refused, 6);
}

#[test]
fn without_auto_create_only_declared_queues_exist() {
    let mut room = Room::with(Limits { queues_auto_create: false, ..limits() });
    let own = Policy { lease_ms: 5, attempts_max: 1, retry_delay_ms: 0, ..POLICY };
    room.board.declare("q", own).unwrap();
    assert_eq!(room.board.declare("a b", own).unwrap_err().code(), Some(Code::InvalidQueueName));
    room.submit(ALICE, "q", &["x"]);
    let frame = room.frame(ALICE, "r");
    room.submit_frame(frame, &[(b"", b"x")]);
    assert_eq!(code(&room.answer()), Code::UnknownQueue);
    room.work_with(BOB, 1, Work { queue: "r".into(), credit_tasks: 1, credit_bytes: 1, labels: vec![] }, &[]);
    assert_eq!(code(&room.answer()), Code::UnknownQueue);
    room.work(BOB, 1, "q", 1);
    assert_eq!(room.pump()[0].2.lease_ms, 5);
    room.board.declare("q", POLICY).unwrap();
    room.submit(ALICE, "q", &["y"]);
    room.work(BOB, 2, "q", 1);
    assert_eq!(room.pump()[0].2.lease_ms, POLICY.lease_ms, "a later declaration counts from then on");
}

#[test]
fn full_memory_refuses_with_a_time_to_come_back() {
    let mut room = Room::with(Limits { memory_bytes_max: 8_000_000, ..limits() });
    let big = "x".repeat(30_000);
    let mut taken = 0;
    let error = loop {
        let frame = room.frame(ALICE, "q");
        room.submit_frame(frame, &[(b"", big.as_bytes())]);
        match room.answer() {
            Effect::Accepted { .. } => taken += 1,
            Effect::Error { error, .. } => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (error.code(), error.retry_after_ms, error.retryable),
        (Some(Code::MemoryFull), Some(100), true)
    );
    // Memory is counted in chunks of 256 KiB, the last of which may go beyond.
    assert!(taken >= 230 && room.board.memory_bytes() <= 8_000_000 + 256 * 1024, "{taken} taken");
    room.work(BOB, 1, "q", 1);
    let lease = room.leases()[0];
    room.complete(BOB, lease, "").unwrap();
    while let [lease] = room.leases()[..] {
        room.complete(BOB, lease, "").unwrap();
    }
    room.submit(ALICE, "q", &["it fits again"]);
}

#[test]
fn a_queue_has_256_label_sets_and_no_more() {
    let mut room = Room::new();
    let set =
        |i: usize| messages::encode(&TaskOptions { labels: vec!["z".into(), format!("l{i}")], ..options() });
    for i in 0..255 {
        assert!(matches!(say(&mut room, &set(i)), Effect::Accepted { .. }), "set {i}");
    }
    assert_eq!(code(&say(&mut room, &set(255))), Code::TooManyLabels);
    let turned = TaskOptions { labels: vec!["l7".into(), "z".into(), "l7".into()], ..options() };
    assert!(
        matches!(say(&mut room, &messages::encode(&turned)), Effect::Accepted { .. }),
        "the same set, turned"
    );
    assert!(matches!(say(&mut room, b""), Effect::Accepted { .. }));
    assert_eq!(room.board.queues[0].lanes.len(), 256);
}
