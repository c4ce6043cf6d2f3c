use super::*;

fn outcome(to: SessionId, lease: Lease, state: TaskState, payload: &str) -> Effect {
    let payload = payload.as_bytes().to_vec();
    Effect::Outcome { to, task: Seen { task: lease.task, state, attempt: lease.attempt, payload } }
}

#[test]
fn a_result_is_told_to_who_watches() {
    let mut room = Room::new();
    let lease = room.leased("q");
    assert_eq!(room.complete(BOB, lease, "42"), Ok(()));
    assert_eq!(room.said(), [outcome(ALICE, lease, TaskState::Completed, "42")]);
    assert_eq!(room.seen(lease.task).payload, b"42");
    assert_eq!((room.board.counters().completed, room.board.queues().next().unwrap().completed), (1, 1));
}

#[test]
fn a_result_nobody_watches_is_kept_only() {
    let mut room = Room::new();
    let task = room.submit(ALICE, "q", &["a"])[0];
    room.work(BOB, 1, "q", 1);
    let lease = room.leases()[0];
    room.complete(BOB, lease, "42").unwrap();
    assert_eq!(room.said(), []);
    assert_eq!(room.seen(task).payload, b"42");
}

#[test]
fn only_a_valid_lease_settles() {
    let mut room = Room::new();
    let lease = room.leased("q");
    let other = TaskId::new(lease.task.partition(), 5);
    let elsewhere = TaskId::new(hive_proto::Partition(lease.task.partition().0 ^ 1), lease.task.seq());
    assert_eq!(room.complete(CAROL, lease, ""), Err(Code::NotOwner));
    assert_eq!(room.complete(BOB, Lease { attempt: 2, ..lease }, ""), Err(Code::StaleLease));
    assert_eq!(room.complete(BOB, Lease { attempt: 0, ..lease }, ""), Err(Code::StaleLease));
    assert_eq!(room.complete(BOB, Lease { epoch: EPOCH - 1, ..lease }, ""), Err(Code::StaleLease));
    assert_eq!(room.complete(BOB, Lease { task: other, ..lease }, ""), Err(Code::UnknownTask));
    assert_eq!(room.complete(BOB, Lease { task: elsewhere, ..lease }, ""), Err(Code::UnknownTask));
    assert_eq!(room.board.counters().stale, 3);
    assert_eq!(room.said(), []);
    assert_eq!(room.complete(BOB, lease, ""), Ok(()));
}

#[test]
fn a_second_settlement_is_refused() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.complete(BOB, lease, "first").unwrap();
    assert_eq!(room.complete(BOB, lease, "second"), Err(Code::AlreadySettled));
    assert_eq!(room.complete(CAROL, lease, "third"), Err(Code::AlreadySettled));
    assert_eq!(room.complete(BOB, Lease { epoch: 1, ..lease }, ""), Err(Code::StaleLease));
    assert_eq!(room.fail(BOB, lease, 0, ""), Err(Code::AlreadySettled));
    assert_eq!(room.release(BOB, lease, 0), Err(Code::AlreadySettled));
    assert_eq!(room.renew(BOB, lease), Err(Code::AlreadySettled));
    assert_eq!(room.progress(BOB, lease, 1), Err(Code::AlreadySettled));
    assert_eq!(room.cancel(ALICE, lease.task), Err(Code::AlreadySettled));
    assert_eq!(room.seen(lease.task).payload, b"first");
}

#[test]
fn items_of_a_batch_are_judged_one_by_one() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["a", "b"]);
    room.work(BOB, 1, "q", 2);
    let l = room.leases();
    let batch = |lease| Complete { lease, result: b"" };
    let items = [batch(l[0]), batch(l[0]), batch(Lease { epoch: 0, ..l[1] }), batch(l[1])];
    room.board.complete(room.now, BOB, 0, items.into_iter(), &mut room.log);
    let refused = |index, code| Refused { index, code: code as u16, retry_after_ms: 0 };
    let refused = vec![refused(1, Code::AlreadySettled), refused(2, Code::StaleLease)];
    assert_eq!(room.answer(), Effect::Settled { to: BOB, request: 0, accepted: 2, refused });
}

#[test]
fn request_0_is_answered_only_when_something_was_refused() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["a"]);
    room.work(BOB, 1, "q", 1);
    let lease = room.leases()[0];
    room.board.renew(room.now, BOB, 0, [lease].into_iter(), &mut room.log);
    assert_eq!(room.said(), []);
    room.board.renew(room.now, CAROL, 0, [lease].into_iter(), &mut room.log);
    assert!(matches!(room.answer(), Effect::Settled { to: CAROL, request: 0, accepted: 0, .. }));
}

#[test]
fn a_failure_waits_as_its_queue_says_and_is_tried_again() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.fail(BOB, lease, DELAY_BY_POLICY, "oops").unwrap();
    assert_eq!(room.said(), [], "nothing to tell before the outcome");
    assert_eq!(room.state(lease.task), TaskState::Scheduled);
    room.after_ms(999);
    assert_eq!(room.leases(), []);
    room.after_ms(1);
    assert_eq!(room.leases(), [Lease { attempt: 2, ..lease }]);
    assert_eq!(room.complete(BOB, lease, ""), Err(Code::StaleLease));
    assert_eq!(room.complete(BOB, Lease { attempt: 2, ..lease }, "ok"), Ok(()));
    assert_eq!(room.board.errors.len(), 0);
}

#[test]
fn a_failure_may_name_its_delay() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.submit(ALICE, "q", &["next"]);
    room.fail(BOB, lease, 0, "oops").unwrap();
    assert_eq!(room.given(), "t", "at once, before the others");
    let lease = Lease { attempt: 2, ..lease };
    room.fail(BOB, lease, 7, "oops").unwrap();
    assert_eq!(room.given(), "next");
    room.board.credit(BOB, 1, 2, 9, &mut room.log);
    room.after_ms(6);
    assert_eq!(room.given(), "");
    room.after_ms(1);
    assert_eq!(room.given(), "t");
}

#[test]
fn attempts_are_limited() {
    let mut room = Room::new();
    let mut lease = room.leased("q");
    for attempt in 1..=3 {
        assert_eq!(lease.attempt, attempt);
        room.fail(BOB, lease, 0, &format!("error {attempt}")).unwrap();
        lease = room.said().first().map_or_else(
            || room.leases()[0],
            |dead| {
                assert_eq!(*dead, outcome(ALICE, lease, TaskState::Dead, "error 3"));
                lease
            },
        );
    }
    assert_eq!(room.state(lease.task), TaskState::Dead);
    assert_eq!((room.board.counters().failed, room.board.counters().dead), (3, 1));
    assert_eq!(room.fail(BOB, lease, 0, ""), Err(Code::AlreadySettled));
}

#[test]
fn a_permanent_failure_is_the_last() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.fail_with(BOB, Fail { lease, delay_ms: 5, permanent: true, error: "broken" }).unwrap();
    assert_eq!(room.said(), [outcome(ALICE, lease, TaskState::Dead, "broken")]);
    room.after_ms(1_000_000);
    assert_eq!(room.state(lease.task), TaskState::Dead, "dead letters stay");
}

#[test]
fn error_texts_are_cut_between_characters_and_dropped_when_memory_is_full() {
    let mut room = Room::new();
    let long = "ä".repeat(3_000);
    let lease = room.leased("q");
    room.fail(BOB, lease, 0, &format!("x{long}")).unwrap();
    assert_eq!(room.board.error_bytes, 4_095 + 64);
    let lease = room.leases()[0];
    room.fail(BOB, lease, 0, "").unwrap();
    assert_eq!(room.board.error_bytes, 0, "the last one counts");
    room.board.limits.memory_bytes_max = 1;
    let lease = room.leases()[0];
    room.fail(BOB, lease, 0, "the third").unwrap();
    assert_eq!(room.said(), [outcome(ALICE, lease, TaskState::Dead, "")]);
}

#[test]
fn a_release_does_not_count() {
    let mut room = Room::new();
    let mut lease = room.leased("q");
    for _ in 0..70_000 {
        let items = [Release { lease, delay_ms: 0 }];
        room.board.release(room.now, BOB, 0, items.into_iter(), &mut room.log);
        room.board.pump(room.now, &mut room.log);
        let Some(Effect::Assign { given, .. }) = room.log.0.pop() else { panic!("not given again") };
        lease = given.lease;
    }
    assert_eq!(lease.attempt, 70_001);
    room.fail(BOB, lease, 0, "1").unwrap();
    let lease = room.leases()[0];
    room.fail(BOB, lease, 0, "2").unwrap();
    let lease = room.leases()[0];
    room.release(BOB, lease, 50).unwrap();
    assert_eq!(room.state(lease.task), TaskState::Scheduled);
    room.after_ms(50);
    let lease = room.leases()[0];
    room.fail(BOB, lease, 0, "3").unwrap();
    assert_eq!(room.said(), [outcome(ALICE, lease, TaskState::Dead, "3")]);
}

#[test]
fn attempt_numbers_wrap_and_do_not_panic() {
    let mut room = Room::new();
    let lease = room.leased("q");
    let slot = room.board.find(lease.task).unwrap();
    room.board.table[slot].attempt = u32::MAX;
    room.release(BOB, Lease { attempt: u32::MAX, ..lease }, 0).unwrap();
    assert_eq!(room.leases(), [Lease { attempt: 0, ..lease }]);
    room.fail(BOB, Lease { attempt: 0, ..lease }, 0, "e").unwrap();
    assert_eq!(room.state(lease.task), TaskState::Waiting);
}

#[test]
fn progress_reaches_who_watches() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.progress(BOB, lease, 5_000).unwrap();
    let told =
        Effect::Progressed { to: ALICE, task: lease.task, attempt: 1, value: 5_000, note: b"n".to_vec() };
    assert_eq!(room.said(), [told]);
    assert_eq!(room.progress(CAROL, lease, 1), Err(Code::NotOwner));
    room.submit(ALICE, "other", &["unwatched"]);
    room.work(BOB, 2, "other", 1);
    let lease = room.leases()[0];
    room.progress(BOB, lease, 1).unwrap();
    assert_eq!(room.said(), []);
}

#[test]
fn a_task_is_cancelled_in_any_state_before_its_outcome() {
    let mut room = Room::new();
    let options = TaskOptions { delay_ms: Some(100), ..TaskOptions::default() };
    let scheduled = room.submit_one(ALICE, "q", &options, "s");
    let running = room.leased("q");
    let waiting = room.submit_one(ALICE, "q", &TaskOptions::default(), "w");
    for task in [scheduled, waiting] {
        room.cancel(CAROL, task).unwrap();
        let seen = Seen { task, state: TaskState::Cancelled, attempt: 0, payload: vec![] };
        assert_eq!(room.said(), [Effect::Outcome { to: ALICE, task: seen }]);
    }
    room.cancel(CAROL, running.task).unwrap();
    let revoked = Effect::Revoked { to: BOB, lease: running, reason: RevokeReason::Cancelled };
    assert_eq!(room.said(), [revoked, outcome(ALICE, running, TaskState::Cancelled, "")]);
    assert_eq!(room.complete(BOB, running, ""), Err(Code::AlreadySettled));
    assert_eq!(room.cancel(ALICE, running.task), Err(Code::AlreadySettled));
    assert_eq!(room.cancel(ALICE, TaskId(7)), Err(Code::UnknownTask));
    room.after_ms(200);
    room.submit(ALICE, "q", &["next"]);
    assert_eq!(room.given(), "next", "the credit came back");
    assert_eq!(room.board.counters().cancelled, 3);
}

#[test]
fn a_failed_task_that_is_cancelled_forgets_its_error() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.fail(BOB, lease, 100, "oops").unwrap();
    assert_eq!(room.board.errors.len(), 1);
    room.cancel(ALICE, lease.task).unwrap();
    assert_eq!(room.board.errors.len(), 0);
}

#[test]
fn cancelled_delays_do_not_pile_up() {
    let mut room = Room::with(Limits { results_bytes_max: 0, ..limits() });
    let ext = messages::encode(&TaskOptions { delay_ms: Some(1 << 31), ..TaskOptions::default() });
    for _ in 0..3_000 {
        let frame = room.frame(ALICE, "q");
        room.submit_frame(frame, &[(&ext, b"p")]);
        let Some(Effect::Accepted { first, .. }) = room.log.0.pop() else { panic!("not accepted") };
        room.board.cancel(room.now, ALICE, 0, [first].into_iter(), &mut room.log);
    }
    assert_eq!(room.said(), []);
    assert!(room.board.timers.scheduled.len() <= 1_024);
    room.after_ms(1 << 31);
    assert_eq!((room.said(), room.board.next_deadline()), (vec![], None));
}

#[test]
fn a_dead_letter_waits_behind_the_others_and_fails_as_often_again() {
    let mut room = Room::new();
    let lease = room.leased("q");
    for _ in 1..POLICY.attempts_max {
        let lease = Lease { attempt: room.seen(lease.task).attempt, ..lease };
        room.fail(BOB, lease, 0, "no").unwrap();
        room.leases();
    }
    let last = Lease { attempt: u32::from(POLICY.attempts_max), ..lease };
    assert_eq!(room.state(last.task), TaskState::Running);
    room.fail(BOB, last, 0, "no").unwrap();
    assert_eq!(room.state(lease.task), TaskState::Dead);
    room.board.stop_work(BOB, 1, &mut room.log);
    room.said();
    let other = room.submit(ALICE, "q", &["other"])[0];
    let dead = room.board.memory_bytes();
    room.board.redrive(ALICE, 7, [lease.task].into_iter(), &mut room.log);
    room.board.check();
    room.said();
    room.work(BOB, 2, "q", 1);
    let mut order = room.leases();
    assert_eq!(order[0].task, other);
    room.complete(BOB, order[0], "").unwrap();
    order = room.leases();
    assert_eq!((order[0].task, order[0].attempt), (lease.task, last.attempt + 1));
    for _ in 1..POLICY.attempts_max {
        let again = Lease { attempt: room.seen(lease.task).attempt, ..lease };
        room.fail(BOB, again, 0, "no").unwrap();
        assert_ne!(room.state(lease.task), TaskState::Dead);
        room.leases();
    }
    let again = Lease { attempt: room.seen(lease.task).attempt, ..lease };
    room.fail(BOB, again, 0, "no").unwrap();
    assert_eq!(room.state(lease.task), TaskState::Dead);
    room.board.purge(ALICE, 8, [lease.task].into_iter(), &mut room.log);
    room.board.check();
    assert_eq!(room.state(lease.task), TaskState::Unknown);
    assert!(room.board.memory_bytes() <= dead, "nothing of it is kept");
}
