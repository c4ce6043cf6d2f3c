use super::*;

fn states(said: &Effect, from: SessionId, request: u32) -> Vec<TaskState> {
    match said {
        Effect::Tasks { to, request: r, tasks } if (*to, *r) == (from, request) => {
            tasks.iter().map(|t| t.state).collect()
        }
        other => panic!("not the answer: {other:?}"),
    }
}

use TaskState::{Cancelled, Completed, Dead, Running, Unknown, Waiting};

/// Three tasks, the first two leased by Bob.
fn three() -> (Room, Vec<TaskId>, Vec<Lease>) {
    let mut room = Room::new();
    let ids = room.submit(ALICE, "q", &["a", "b", "c"]);
    room.work(BOB, 1, "q", 2);
    let leases = room.leases();
    (room, ids, leases)
}

#[test]
fn wait_all_ends_with_the_last_outcome() {
    let (mut room, ids, leases) = three();
    let request = room.wait(ALICE, WaitMode::All, 1_000, &ids[..2]);
    assert_eq!(room.said(), []);
    room.complete(BOB, leases[0], "r").unwrap();
    assert_eq!(room.said(), []);
    room.fail_with(BOB, Fail { lease: leases[1], delay_ms: 0, permanent: true, error: "e" }).unwrap();
    let said = room.answer();
    assert_eq!(states(&said, ALICE, request), [Completed, Dead]);
    let Effect::Tasks { tasks, .. } = said else { panic!() };
    assert_eq!([&tasks[0].payload[..], &tasks[1].payload], [b"r", b"e"]);
    assert_eq!(room.board.waits.ids, 0);
}

#[test]
fn wait_any_ends_with_the_first_outcome() {
    let (mut room, ids, leases) = three();
    let request = room.wait(ALICE, WaitMode::Any, 1_000, &ids);
    room.complete(BOB, leases[1], "r").unwrap();
    assert_eq!(states(&room.answer(), ALICE, request), [Running, Completed, Waiting]);
    room.complete(BOB, leases[0], "r").unwrap();
    assert_eq!(room.said(), [], "it was answered already");
}

#[test]
fn a_wait_ends_at_its_timeout() {
    let (mut room, ids, _) = three();
    let request = room.wait(ALICE, WaitMode::All, 1_000, &ids);
    let second = room.wait(ALICE, WaitMode::All, 2_000, &ids);
    room.after_ms(999);
    assert_eq!(room.said(), []);
    room.after_ms(1);
    assert_eq!(states(&room.answer(), ALICE, request), [Running, Running, Waiting]);
    room.after_ms(1_000);
    assert_eq!(states(&room.answer(), ALICE, second), [Running, Running, Waiting]);
}

#[test]
fn a_wait_that_is_over_already_is_answered_at_once() {
    let (mut room, ids, leases) = three();
    let unknown = TaskId::new(ids[0].partition(), 5);
    room.complete(BOB, leases[0], "r").unwrap();
    let mut at_once = |mode, timeout, ids: &[TaskId]| {
        let request = room.wait(ALICE, mode, timeout, ids);
        states(&room.answer(), ALICE, request)
    };
    assert_eq!(at_once(WaitMode::All, 0, &ids), [Completed, Running, Waiting]);
    assert_eq!(at_once(WaitMode::All, 1_000, &[ids[0], unknown, ids[0]]), [Completed, Unknown, Completed]);
    assert_eq!(at_once(WaitMode::Any, 1_000, &[ids[1], ids[0]]), [Running, Completed]);
    assert_eq!(at_once(WaitMode::Any, 1_000, &[ids[1], unknown]), [Running, Unknown]);
    assert_eq!(at_once(WaitMode::All, 1_000, &[]), []);
    assert_eq!(at_once(WaitMode::Any, 1_000, &[]), []);
}

#[test]
fn an_id_named_twice_counts_once() {
    let (mut room, ids, leases) = three();
    let elsewhere = TaskId::new(hive_proto::Partition(ids[0].partition().0 ^ 1), ids[0].seq());
    let request = room.wait(ALICE, WaitMode::All, 1_000, &[ids[0], ids[0], elsewhere]);
    assert_eq!(room.said(), []);
    room.complete(BOB, leases[0], "r").unwrap();
    assert_eq!(states(&room.answer(), ALICE, request), [Completed, Completed, Unknown]);
}

#[test]
fn many_may_wait_for_one_task() {
    let (mut room, ids, _) = three();
    let requests = [ALICE, BOB, ALICE, CAROL].map(|s| (s, room.wait(s, WaitMode::Any, 1_000, &ids[2..])));
    room.close(CAROL);
    room.cancel(BOB, ids[2]).unwrap();
    let said = room.said();
    assert_eq!(said.len(), 3);
    for ((session, request), said) in requests.iter().zip(&said) {
        assert_eq!(states(said, *session, *request), [Cancelled]);
    }
}

#[test]
fn waits_are_bounded_and_end_with_their_session() {
    let (mut room, ids, _) = three();
    let many: Vec<TaskId> = ids.iter().copied().cycle().take(98).collect();
    room.wait(ALICE, WaitMode::All, 1_000, &many);
    room.wait(BOB, WaitMode::All, 1_000, &ids);
    let said = room.answer();
    assert_eq!(
        (code(&said), text(&said)),
        (Code::TooManyWaits, "98 task ids are waited for; waits_max is 100")
    );
    room.wait(BOB, WaitMode::All, 1_000, &ids[..2]);
    room.close(ALICE);
    room.wait(BOB, WaitMode::All, 1_000, &many);
    assert_eq!(room.said(), []);
    room.close(BOB);
    room.after_ms(5_000);
    assert_eq!(room.said(), []);
    assert_eq!(room.board.waits.ids, 0);
}

#[test]
fn ended_waits_do_not_pile_up() {
    let (mut room, ids, _) = three();
    for _ in 0..5_000 {
        room.board.wait(room.now, ALICE, 1, WaitMode::All, u32::MAX, ids.iter().copied(), &mut room.log);
        room.close(ALICE);
    }
    assert!(room.board.waits.deadlines.len() <= 1_025 && room.board.waits.all.len() == 1);
    room.board.check();
}

#[test]
fn query_tells_every_state() {
    let mut room = Room::new();
    let ids = room.submit(ALICE, "q", &["a", "b", "c", "d"]);
    let later =
        room.submit_one(ALICE, "q", &TaskOptions { delay_ms: Some(5), ..TaskOptions::default() }, "e");
    room.work(BOB, 1, "q", 3);
    let leases = room.leases();
    room.complete(BOB, leases[0], "r").unwrap();
    room.fail_with(BOB, Fail { lease: leases[1], delay_ms: 0, permanent: true, error: "e" }).unwrap();
    room.board.credit(BOB, 1, 0, 0, &mut room.log);
    room.cancel(BOB, ids[3]).unwrap();
    room.said();
    let asked = [ids[0], ids[1], ids[2], ids[3], later, TaskId(1)];
    room.board.query(CAROL, 4, asked.into_iter(), &mut room.log);
    let said = room.answer();
    assert_eq!(states(&said, CAROL, 4), [Completed, Dead, Running, Cancelled, TaskState::Scheduled, Unknown]);
    let Effect::Tasks { tasks, .. } = said else { panic!() };
    assert_eq!(tasks.iter().map(|t| t.attempt).collect::<Vec<_>>(), [1, 1, 1, 0, 0, 0]);
    let view = room.board.queues().next().unwrap();
    let counts = (view.waiting, view.scheduled, view.running, view.completed, view.dead, view.consumers);
    assert_eq!(counts, (0, 1, 1, 1, 1, 1));
}

#[test]
fn dead_letters_are_listed_newest_first() {
    let mut room = Room::new();
    let ids = room.submit(ALICE, "q", &["a", "b", "c"]);
    room.submit(ALICE, "other", &["d"]);
    room.work(BOB, 1, "q", 9);
    for lease in room.leases() {
        let error = lease.task.to_string();
        room.fail_with(BOB, Fail { lease, delay_ms: 0, permanent: true, error: &error }).unwrap();
    }
    let mut list = |queue, limit| {
        room.board.list_dead(ALICE, 3, queue, limit, &mut room.log);
        room.answer()
    };
    let Effect::Tasks { to: ALICE, request: 3, tasks } = list("q", 2) else { panic!() };
    assert_eq!(tasks.iter().map(|t| t.task).collect::<Vec<_>>(), [ids[2], ids[1]]);
    assert!(tasks.iter().all(|t| t.state == Dead && t.payload == t.task.to_string().as_bytes()));
    assert!(matches!(list("q", 9), Effect::Tasks { tasks, .. } if tasks.len() == 3));
    assert!(matches!(list("other", 9), Effect::Tasks { tasks, .. } if tasks.is_empty()));
    assert_eq!(code(&list("none", 9)), Code::UnknownQueue);
}
