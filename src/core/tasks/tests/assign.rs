use super::*;

fn consumer(queue: &str, credit_tasks: u32, credit_bytes: u64, labels: &[&str]) -> Work {
    Work {
        queue: queue.into(),
        credit_tasks,
        credit_bytes,
        labels: labels.iter().map(ToString::to_string).collect(),
    }
}

/// Opens a consumer of queue q.
fn open(room: &mut Room, from: SessionId, id: u32, labels: &[&str]) {
    room.work_with(from, id, consumer("q", 100, 1_000, labels), &[]);
    assert_eq!(room.answer(), Effect::Ok { to: from, request: id });
}

fn submit_labelled(room: &mut Room, labels: &[&str], payload: &str) -> TaskId {
    let labels = labels.iter().map(ToString::to_string).collect();
    room.submit_one(ALICE, "q", &TaskOptions { labels, ..TaskOptions::default() }, payload)
}

/// Payloads by consumer, in the order in which they were given.
fn shares(room: &mut Room) -> Vec<(u32, String)> {
    let mut shares: Vec<(u32, String)> = Vec::new();
    for (_, id, given) in room.pump() {
        let payload = String::from_utf8(given.payload).unwrap();
        match shares.last_mut() {
            Some((last, text)) if *last == id => text.push_str(&payload),
            _ => shares.push((id, payload)),
        }
    }
    shares
}

#[test]
fn a_task_goes_to_who_works_on_its_queue() {
    let mut room = Room::new();
    let task = room.submit(ALICE, "q", &["hello"])[0];
    room.work(CAROL, 1, "other", 9);
    assert_eq!(room.pump(), []);
    room.work(BOB, 4, "q", 9);
    let lease = Lease { task, attempt: 1, epoch: EPOCH };
    let given = Given { lease, lease_ms: 30_000, ext: vec![], payload: b"hello".to_vec() };
    assert_eq!(room.pump(), [(BOB, 4, given)]);
    assert_eq!((room.state(task), room.board.counters().assigned), (TaskState::Running, 1));
}

#[test]
fn a_worker_gets_tasks_whose_labels_it_offers_the_oldest_first() {
    let mut room = Room::new();
    for (labels, payload) in [
        (&["gpu", "eu"][..], "1"),
        (&["gpu"], "2"),
        (&[], "3"),
        (&["tpu"], "4"),
        (&["gpu"], "5"),
        (&["eu", "gpu"], "6"),
    ] {
        submit_labelled(&mut room, labels, payload);
    }
    open(&mut room, BOB, 1, &["eu"]);
    assert_eq!(room.given(), "3");
    room.work_with(BOB, 2, consumer("q", 3, 1_000, &["gpu"]), &["eu", "gpu"]);
    room.answer();
    assert_eq!(room.given(), "1 2 5", "its agent's labels count too");
    open(&mut room, CAROL, 1, &["gpu", "eu", "x"]);
    assert_eq!(room.given(), "6");
    submit_labelled(&mut room, &["x"], "7");
    assert_eq!(room.given(), "7", "a label set that came later than the worker");
    assert_eq!(room.board.queues().next().unwrap().waiting, 1);
}

#[test]
fn credit_of_tasks_is_a_window() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["a", "b", "c", "d", "e"]);
    room.work(BOB, 1, "q", 2);
    let leases = room.leases();
    assert_eq!((leases.len(), room.given().as_str()), (2, ""));
    room.complete(BOB, leases[1], "").unwrap();
    assert_eq!(room.given(), "c");
    room.board.credit(BOB, 1, 0, 1_000, &mut room.log);
    room.complete(BOB, leases[0], "").unwrap();
    assert_eq!(room.given(), "", "paused");
    room.board.credit(BOB, 1, 3, 1_000, &mut room.log);
    assert_eq!(room.given(), "d e");
}

#[test]
fn credit_of_bytes_is_a_window() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["large one", "b", "c", "four", "e"]);
    room.work_with(BOB, 1, consumer("q", 9, 4, &[]), &[]);
    room.answer();
    let given = room.pump();
    assert_eq!(given.len(), 1, "one task is given even if it is larger");
    room.complete(BOB, given[0].2.lease, "").unwrap();
    assert_eq!(room.given(), "b c four", "given while less than the credit is held");
    room.board.credit(BOB, 1, 9, 0, &mut room.log);
    assert_eq!(room.given(), "");
}

#[test]
fn a_pause_reaches_a_worker_that_stands_in_line() {
    let mut room = Room::new();
    room.work(BOB, 1, "q", 2);
    assert_eq!(room.given(), "");
    room.board.credit(BOB, 1, 0, 0, &mut room.log);
    room.submit(ALICE, "q", &["a"]);
    assert_eq!(room.given(), "");
    room.board.credit(BOB, 1, 1, 1, &mut room.log);
    assert_eq!(room.given(), "a");
}

#[test]
fn credit_beyond_the_limits_is_refused() {
    let mut room = Room::new();
    room.work(BOB, 1, "q", 1);
    for (tasks, bytes) in [(1_001, 1), (1, (1 << 20) + 1), (u32::MAX, u64::MAX)] {
        room.work_with(BOB, 2, consumer("q", tasks, bytes, &[]), &[]);
        assert_eq!(code(&room.answer()), Code::CreditOverflow);
        room.board.credit(BOB, 1, tasks, bytes, &mut room.log);
        assert_eq!(code(&room.answer()), Code::CreditOverflow);
    }
    room.board.credit(BOB, 2, 1, 1, &mut room.log);
    assert_eq!(code(&room.answer()), Code::UnknownConsumer);
    room.board.credit(CAROL, 1, 1, 1, &mut room.log);
    assert_eq!(code(&room.answer()), Code::UnknownConsumer);
}

#[test]
fn consumers_are_judged_when_they_open() {
    let mut room = Room::new();
    let mut refusal = |id, work| {
        room.work_with(BOB, id, work, &[]);
        match room.answer() {
            Effect::Ok { .. } => None,
            other => Some(code(&other)),
        }
    };
    assert_eq!(refusal(1, consumer("a b", 1, 1, &[])), Some(Code::InvalidQueueName));
    assert_eq!(refusal(1, consumer("q", 1, 1, &["a b"])), Some(Code::InvalidLabel));
    assert_eq!(refusal(1, consumer("q", 1, 1, &["a"; 33])), Some(Code::InvalidLabel));
    for id in 1..=4 {
        assert_eq!(refusal(id, consumer("q", 1, 1, &[])), None);
    }
    assert_eq!(refusal(4, consumer("q", 1, 1, &[])), Some(Code::DuplicateConsumer));
    assert_eq!(refusal(5, consumer("q", 1, 1, &[])), Some(Code::TooManyConsumers));
    room.board.stop_work(BOB, 4, &mut room.log);
    assert_eq!(room.answer(), Effect::Ok { to: BOB, request: 4 });
    room.board.stop_work(BOB, 4, &mut room.log);
    assert_eq!(code(&room.answer()), Code::UnknownConsumer);
    room.work(BOB, 5, "q", 1);
}

#[test]
fn workers_share_evenly_each_a_contiguous_part() {
    let mut room = Room::new();
    for id in 1..=4 {
        open(&mut room, BOB, id, &[]);
    }
    let letters = "abcdefghijklmnopqr";
    let payloads: Vec<&str> = letters.split("").filter(|s| !s.is_empty()).collect();
    room.submit(ALICE, "q", &payloads);
    let want = [(1, "abcde"), (2, "fghij"), (3, "klmn"), (4, "opqr")];
    assert_eq!(shares(&mut room), want.map(|(id, s)| (id, s.into())));
    room.submit(ALICE, "q", &["s", "t"]);
    room.submit(ALICE, "q", &["u"]);
    assert_eq!(shares(&mut room), [(1, "s".into()), (2, "t".into()), (3, "u".into())]);
    room.submit(ALICE, "q", &["v"]);
    assert_eq!(shares(&mut room), [(4, "v".into())], "whose turn it is, is remembered");
}

#[test]
fn what_one_worker_may_not_take_goes_to_the_others() {
    let mut room = Room::new();
    room.work(BOB, 1, "q", 1);
    open(&mut room, CAROL, 2, &[]);
    open(&mut room, CAROL, 3, &["gpu"]);
    for p in ["a", "b", "c", "d", "e", "f"] {
        submit_labelled(&mut room, if p == "c" { &["gpu"] } else { &[] }, p);
    }
    assert_eq!(shares(&mut room), [(1, "a".into()), (2, "bde".into()), (3, "cf".into())]);
}

#[test]
fn what_nobody_in_line_may_take_is_not_shared() {
    let mut room = Room::new();
    open(&mut room, BOB, 1, &[]);
    open(&mut room, BOB, 2, &[]);
    for p in ["1", "2", "3", "4", "5", "6"] {
        submit_labelled(&mut room, &["gpu"], p);
    }
    room.submit(ALICE, "q", &["a", "b", "c", "d"]);
    assert_eq!(shares(&mut room), [(1, "ab".into()), (2, "cd".into())]);
    open(&mut room, CAROL, 3, &["gpu"]);
    assert_eq!(shares(&mut room), [(3, "123456".into())]);
}

#[test]
fn a_stopped_consumer_gets_nothing_and_may_finish() {
    let mut room = Room::new();
    let lease = room.leased("q");
    room.submit(ALICE, "q", &["next"]);
    room.board.stop_work(BOB, 1, &mut room.log);
    room.answer();
    assert_eq!(room.given(), "");
    room.board.credit(BOB, 1, 9, 9, &mut room.log);
    assert_eq!(code(&room.answer()), Code::UnknownConsumer);
    room.work(BOB, 1, "q", 1);
    assert_eq!(room.complete(BOB, lease, "done"), Ok(()));
    assert_eq!(room.board.consumers.iter().flatten().count(), 1);
    room.said();
    assert_eq!(room.given(), "next");
}

#[test]
fn a_stopped_consumer_in_line_is_passed() {
    let mut room = Room::new();
    for id in 1..=3 {
        open(&mut room, BOB, id, &[]);
    }
    room.board.stop_work(BOB, 1, &mut room.log);
    room.answer();
    room.submit(ALICE, "q", &["a", "b"]);
    assert_eq!(shares(&mut room), [(2, "a".into()), (3, "b".into())]);
}

#[test]
fn a_worker_that_is_gone_gives_back_in_the_original_order() {
    let mut room = Room::new();
    room.work(BOB, 1, "q", 2);
    room.work(BOB, 2, "q", 2);
    room.submit(ALICE, "q", &["a", "b", "c", "d"]);
    let ids = room.submit(ALICE, "q", &["e"]);
    let leases = room.leases();
    assert_eq!(leases.len(), 4);
    room.renew(BOB, leases[0]).unwrap();
    room.close(BOB);
    assert_eq!(room.said(), []);
    assert_eq!(room.board.consumers.iter().flatten().count(), 0);
    room.work(CAROL, 1, "q", 9);
    assert_eq!(room.given(), "a b c d e");
    assert_eq!(room.complete(BOB, leases[0], "late"), Err(Code::StaleLease));
    assert_eq!(room.seen(leases[0].task).attempt, 2);
    assert_eq!(room.seen(ids[0]).attempt, 1);
}

#[test]
fn a_worker_that_goes_takes_the_last_attempt_with_it() {
    let mut room = Room::new();
    let task =
        room.submit_one(ALICE, "q", &TaskOptions { max_attempts: Some(1), ..TaskOptions::default() }, "x");
    room.work(BOB, 1, "q", 1);
    room.leases();
    room.close(BOB);
    let seen =
        Seen { task, state: TaskState::Dead, attempt: 1, payload: b"the worker's connection ended".to_vec() };
    assert_eq!(room.said(), [Effect::Outcome { to: ALICE, task: seen }]);
    room.close(BOB);
    room.close(SessionId(99));
    assert_eq!(room.said(), []);
}

#[test]
fn places_in_line_do_not_pile_up() {
    let mut room = Room::new();
    for round in 0..1_000 {
        open(&mut room, BOB, round, &[]);
        room.board.stop_work(BOB, round, &mut room.log);
        room.said();
    }
    assert!(room.board.queues[0].ready.len() <= 17);
    assert_eq!(room.board.consumers.len(), 1);
}

#[test]
fn lease_timers_do_not_pile_up() {
    let mut room = Room::new();
    room.submit(ALICE, "q", &["x"]);
    for round in 1..3_000 {
        room.work(BOB, round, "q", 1);
        let lease = room.leases()[0];
        room.release(BOB, lease, 0).unwrap();
        room.board.stop_work(BOB, round, &mut room.log);
        room.said();
    }
    assert!(room.board.timers.leases.len() <= 1_025);
}

#[test]
fn who_does_not_read_gets_no_more_until_it_has_read() {
    let mut room = Room::new();
    let tasks = room.submit(ALICE, "q", &["a", "b", "c", "d", "e"]);
    room.log.1 = Some(BOB);
    open(&mut room, BOB, 1, &[]);
    open(&mut room, BOB, 2, &[]);
    assert_eq!(shares(&mut room), [(1, "a".into()), (2, "b".into())]);
    assert_eq!(room.state(tasks[2]), TaskState::Waiting);
    room.log.1 = None;
    assert_eq!(shares(&mut room), []);
    room.board.resume(BOB);
    assert_eq!(shares(&mut room), [(1, "cd".into()), (2, "e".into())]);
    room.board.resume(CAROL);
}
