use super::*;

/// Lets the board sleep until it wants to be woken.
fn wake(room: &mut Room) -> u64 {
    let at = room.board.next_deadline().expect("something is due");
    let ms = at.since(room.now) / 1_000_000;
    room.after_ms(ms);
    ms
}

#[test]
fn an_expired_lease_is_revoked_and_its_task_goes_first() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["a", "b", "c", "d"]);
    room.work(BOB, 1, "q", 3);
    let leases = room.leases();
    assert_eq!(wake(&mut room), 30_000);
    let revoked = |l: &Lease| Effect::Revoked { to: BOB, lease: *l, reason: RevokeReason::Expired };
    assert_eq!(room.said(), leases.iter().map(revoked).collect::<Vec<_>>());
    assert_eq!(room.complete(BOB, leases[0], ""), Err(Code::StaleLease));
    assert_eq!(room.given(), "a b c", "in their order, before the others");
    assert_eq!((room.board.counters().expired, room.board.counters().stale), (3, 1));
}

#[test]
fn leases_of_several_workers_expire_into_one_order() {
    let mut room = Room::new();
    room.work(BOB, 1, "q", 2);
    room.work(CAROL, 1, "q", 2);
    room.submit(ALICE, "q", &["a", "b", "c", "d"]);
    let leases = room.leases();
    room.renew(BOB, leases[0]).unwrap();
    room.after_ms(30_000);
    room.said();
    room.board.credit(BOB, 1, 0, 0, &mut room.log);
    room.board.credit(CAROL, 1, 9, 9, &mut room.log);
    assert_eq!(room.given(), "a b c d");
}

#[test]
fn a_lease_that_expires_on_the_last_attempt_leaves_a_dead_letter() {
    let mut room = Room::new();
    let lease = room.leased("q");
    for attempt in 2..=3 {
        wake(&mut room);
        room.said();
        assert_eq!(room.leases(), [Lease { attempt, ..lease }]);
    }
    wake(&mut room);
    let lease = Lease { attempt: 3, ..lease };
    let payload = b"the lease expired".to_vec();
    let dead = Seen { task: lease.task, state: TaskState::Dead, attempt: 3, payload };
    let revoked = Effect::Revoked { to: BOB, lease, reason: RevokeReason::Expired };
    assert_eq!(room.said(), [revoked, Effect::Outcome { to: ALICE, task: dead }]);
    assert_eq!(room.board.next_deadline(), None);
}

#[test]
fn a_renewal_moves_the_deadline() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["a", "b"]);
    room.work(BOB, 1, "q", 2);
    let leases = room.leases();
    room.after_ms(20_000);
    room.renew(BOB, leases[0]).unwrap();
    room.after_ms(10_000);
    assert!(matches!(room.answer(), Effect::Revoked { lease, .. } if lease == leases[1]));
    assert_eq!(wake(&mut room), 20_000);
    assert!(matches!(room.answer(), Effect::Revoked { lease, .. } if lease == leases[0]));
}

#[test]
fn a_shorter_policy_keeps_leases_in_order() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["a"]);
    room.work(BOB, 1, "q", 2);
    room.work(CAROL, 1, "q", 1);
    let first = room.leases()[0];
    room.board.declare("q", Policy { lease_ms: 10, ..POLICY }).unwrap();
    room.submit(ALICE, "q", &["b", "c"]);
    room.pump();
    assert_eq!(wake(&mut room), 10, "Carol's");
    assert!(matches!(room.answer(), Effect::Revoked { to: CAROL, .. }));
    room.renew(BOB, first).unwrap();
    room.after_ms(29_990);
    assert_eq!(room.said().len(), 2, "Bob's later leases end with his first");
}

#[test]
fn a_stopped_consumer_goes_with_its_last_lease() {
    let mut room = Room::new();
    room.leased("q");
    room.board.stop_work(BOB, 1, &mut room.log);
    room.answer();
    wake(&mut room);
    assert_eq!(room.said().len(), 1);
    assert_eq!(room.board.consumers.iter().flatten().count(), 0);
    room.work(CAROL, 1, "q", 1);
    assert_eq!(room.given(), "t");
}

#[test]
fn a_timer_of_an_earlier_consumer_does_not_touch_the_next() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.complete(BOB, lease, "").unwrap();
    room.board.stop_work(BOB, 1, &mut room.log);
    room.said();
    room.after_ms(1_000);
    let lease = room.leased("q");
    room.after_ms(29_000);
    assert_eq!((room.said(), room.state(lease.task)), (vec![], TaskState::Running));
    room.after_ms(1_000);
    assert_eq!(room.said().len(), 1);
}

#[test]
fn results_go_after_their_time() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.complete(BOB, lease, "r").unwrap();
    room.said();
    room.after_ms(30_000); // the timer of the lease, which is settled
    room.after_ms(29_999);
    assert_eq!(room.state(lease.task), TaskState::Completed);
    assert_eq!(wake(&mut room), 1);
    assert_eq!(room.state(lease.task), TaskState::Unknown);
    assert_eq!(room.complete(BOB, lease, "r"), Err(Code::UnknownTask));
    assert_eq!(room.board.next_deadline(), None);
}

#[test]
fn results_go_when_they_are_too_many_bytes() {
    let mut room = Room::with(Limits { results_bytes_max: 3 * 64 + 10, ..limits() });
    let ids = room.submit(ALICE, "q", &["a", "b", "c", "d", "e"]);
    room.work(BOB, 1, "q", 9);
    let leases = room.leases();
    for (lease, result) in leases.iter().zip(["1234", "123", "123", "1234", "12345678901234567890123456789"])
    {
        room.complete(BOB, *lease, result).unwrap();
    }
    use TaskState::{Completed, Unknown};
    let kept: Vec<TaskState> = ids.iter().map(|id| room.state(*id)).collect();
    assert_eq!(kept, [Unknown, Unknown, Unknown, Completed, Completed]);
    let large = "x".repeat(1_000);
    let last = room.submit_one(ALICE, "q", &TaskOptions::default(), "f");
    let lease = room.leases()[0];
    let request = room.wait(CAROL, WaitMode::All, 9, &[last]);
    room.complete(BOB, lease, &large).unwrap();
    let said = room.said();
    let seen = Seen { task: last, state: Completed, attempt: 1, payload: large.into_bytes() };
    let told = Effect::Outcome { to: ALICE, task: seen.clone() };
    assert_eq!(
        said,
        [told, Effect::Tasks { to: CAROL, request, tasks: vec![seen] }],
        "told, and then forgotten"
    );
    assert_eq!((room.state(last), room.board.done.len), (Unknown, 0));
}

#[test]
fn memory_comes_back() {
    let mut room = Room::with(Limits { credit_bytes_max: 1 << 40, credit_tasks_max: 1 << 20, ..limits() });
    let work = Work { queue: "q".into(), credit_tasks: 1 << 20, credit_bytes: 1 << 40, labels: vec![] };
    room.work_with(BOB, 1, work, &[]);
    let payload = "x".repeat(500);
    let delay = messages::encode(&TaskOptions { delay_ms: Some(1_000), ..TaskOptions::default() });
    for _ in 0..300 {
        let frame = room.frame(ALICE, "q");
        let items: Vec<(&[u8], &[u8])> =
            (0..100).map(|i| (if i % 10 == 0 { &delay[..] } else { b"" }, payload.as_bytes())).collect();
        room.submit_frame(frame, &items);
    }
    room.said();
    assert!(room.board.memory_bytes() > 30_000 * 556);
    for _ in 0..2 {
        for lease in room.leases() {
            match lease.task.seq() % 3 {
                0 => room.board.complete(
                    room.now,
                    BOB,
                    0,
                    [Complete { lease, result: b"r" }].into_iter(),
                    &mut room.log,
                ),
                1 => room.board.cancel(room.now, BOB, 0, [lease.task].into_iter(), &mut room.log),
                _ => {
                    let item = Fail { lease, delay_ms: 1_000, permanent: false, error: "an error" };
                    room.board.fail(room.now, BOB, 0, [item].into_iter(), &mut room.log);
                }
            }
        }
        room.after_ms(1_000);
        room.said();
    }
    for lease in room.leases() {
        room.board.complete(room.now, BOB, 0, [Complete { lease, result: b"r" }].into_iter(), &mut room.log);
    }
    room.after_ms(60_000);
    // In steps: results that end together do not hold up the others.
    let mut steps = 1;
    while room.board.next_deadline().is_some() {
        room.after_ms(0);
        steps += 1;
    }
    assert!((2..=5).contains(&steps), "{steps} steps");
    room.said();
    let empty = 4 * 5 * 256 * 1024 + 64 * 64 + room.board.consumer_bytes;
    assert!(room.board.memory_bytes() < empty, "{} bytes are held", room.board.memory_bytes());
    assert_eq!((room.board.table.slots().count(), room.board.errors.len()), (0, 0));
}

#[test]
fn an_empty_board_has_nothing_due() {
    let mut room = Room::new();
    assert_eq!(room.board.next_deadline(), None);
    room.after_ms(u64::MAX);
    assert_eq!((room.said(), room.given()), (vec![], String::new()));
}
