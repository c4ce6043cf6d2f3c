//! Outcomes that only the journal has: found there, for as long as they are kept.

use super::super::Found;
use super::*;

const DURABLE: Policy = Policy { durability: Durability::Journal, ..POLICY };

/// Ten results of a hundred bytes fit into memory.
fn room(archive_bytes_max: usize) -> Room {
    let limits = Limits { results_bytes_max: 1_640, archive_bytes_max, ..limits() };
    Room::with_policy(limits, DURABLE, Identity { epoch: EPOCH, first_seq: 1_000, hash_seed: 5 })
}

/// Has tasks done, `together` of them in one record.
fn done(room: &mut Room, count: usize, together: usize) -> Vec<TaskId> {
    let mut all = Vec::new();
    room.work_with(
        BOB,
        1,
        Work { queue: "q".into(), credit_tasks: 1_000, credit_bytes: 1 << 20, labels: vec![] },
        &[],
    );
    room.said();
    for _ in 0..count / together {
        let frame = room.frame(ALICE, "q");
        let items: Vec<(&[u8], &[u8])> = (0..together).map(|_| (&[][..], &b"p"[..])).collect();
        room.submit_frame(frame, &items);
        room.commit();
        room.accepted();
        let leases = room.leases();
        all.extend(leases.iter().map(|l| l.task));
        let results: Vec<String> = leases.iter().map(|l| format!("{:0>100}", l.task.seq())).collect();
        let items = leases.iter().zip(&results).map(|(l, r)| Complete { lease: *l, result: r.as_bytes() });
        room.board.complete(room.now, BOB, 0, items, &mut room.log);
        room.commit();
    }
    room.said();
    all
}

fn result(id: TaskId) -> (TaskState, String) {
    (TaskState::Completed, format!("{:0>100}", id.seq()))
}

fn known(room: &mut Room, id: TaskId) -> (TaskState, String) {
    let seen = room.seen(id);
    (seen.state, String::from_utf8(seen.payload).unwrap())
}

#[test]
fn results_that_find_no_room_are_read_from_the_journal() {
    let mut room = room(1 << 20);
    let ids = done(&mut room, 640, 640);
    assert_eq!(room.board.archived_len(), 630);
    for id in &ids {
        assert_eq!(known(&mut room, *id), result(*id));
    }
    // Where one record has them all, they take two and a half bytes each.
    assert!(room.board.archive.bytes() <= 11 * 160, "{}", room.board.archive.bytes());
    let more = done(&mut room, 200, 1);
    for id in ids.iter().chain(&more).step_by(7) {
        assert_eq!(known(&mut room, *id), result(*id));
    }
    let guessed = TaskId::new(hive_proto::Partition(1023), ids[0].seq());
    assert_eq!(room.state(guessed), TaskState::Unknown);
    assert_eq!(room.cancel(ALICE, ids[0]), Err(Code::AlreadySettled));
    let lease = Lease { task: ids[0], attempt: 1, epoch: EPOCH };
    assert_eq!(room.complete(BOB, lease, "again"), Err(Code::AlreadySettled));
}

#[test]
fn whoever_asks_for_many_gets_all_of_them_in_one_answer() {
    let mut room = room(1 << 20);
    let ids = done(&mut room, 100, 4);
    let waiting = room.submit(ALICE, "other", &[]);
    assert_eq!(waiting, []);
    let request = room.wait(CAROL, WaitMode::All, 1_000, &ids);
    assert_eq!(room.said(), [], "records have to be read first");
    assert_eq!(room.board.open_waits().collect::<Vec<_>>(), [(CAROL, request)]);
    room.look_up();
    let Effect::Tasks { to: CAROL, request: r, tasks } = room.answer() else { panic!("no answer") };
    assert_eq!((r, tasks.len()), (request, 100));
    assert!(tasks.iter().zip(&ids).all(|(t, id)| t.task == *id && t.state == TaskState::Completed));
    assert_eq!(room.board.open_waits().count(), 0);
    // Not more than may be waited for.
    room.board.query(CAROL, 1, ids[..90].iter().copied(), &mut room.log);
    room.board.query(CAROL, 2, ids[..20].iter().copied(), &mut room.log);
    assert_eq!(code(&room.answer()), Code::TooManyWaits);
    assert_eq!(room.board.end_lookups(), [(CAROL, 1)]);
    assert_eq!(known(&mut room, ids[0]), result(ids[0]));
}

#[test]
fn what_the_journal_does_not_have_any_more_is_not_known() {
    let mut room = room(1 << 20);
    let ids = done(&mut room, 100, 10);
    let from = room.board.results_from();
    assert!(from > 0 && from < room.journal.len() as u64);
    let middle = from + 8;
    room.board.results_gone(middle);
    let states: Vec<TaskState> = ids.iter().map(|id| room.state(*id)).collect();
    assert!(states.is_sorted_by_key(|s| *s == TaskState::Completed), "{states:?}");
    // A record that went while it was asked for.
    room.board.query(CAROL, 3, [ids[60]].into_iter(), &mut room.log);
    let lookup = room.board.next_lookup().expect("asked");
    room.board.looked_up(&lookup, &Found::default(), &mut room.log);
    let Effect::Tasks { tasks, .. } = room.answer() else { panic!("no answer") };
    assert_eq!(tasks[0].state, TaskState::Unknown);
}

#[test]
fn they_go_with_their_time_and_when_there_is_no_memory_for_their_places() {
    let mut short = room(1_000);
    let ids = done(&mut short, 640, 640);
    assert!(short.board.archive.bytes() <= 1_000 && short.board.archived_len() > 300);
    assert_eq!(short.state(ids[0]), TaskState::Unknown);
    assert_eq!(known(&mut short, ids[600]), result(ids[600]));
    let mut none = room(0);
    let ids = done(&mut none, 100, 10);
    assert_eq!((none.board.archived_len(), none.board.results_from()), (0, u64::MAX));
    assert_eq!(none.state(ids[0]), TaskState::Unknown);
    let mut room = room(1 << 20);
    let ids = done(&mut room, 100, 10);
    room.after_ms(59_999);
    assert_eq!(known(&mut room, ids[0]), result(ids[0]));
    room.after_ms(1);
    assert_eq!((room.board.archived_len(), room.state(ids[0])), (0, TaskState::Unknown));
}

#[test]
fn what_leaves_memory_while_a_question_is_under_way_is_read_as_well() {
    // In records of their own, and in the very one that is read anyway.
    for together in [10, 20] {
        let mut room = room(1 << 20);
        let ids = done(&mut room, 20, together);
        assert_eq!(room.board.archived_len(), 10);
        room.board.query(CAROL, 5, ids.iter().copied(), &mut room.log);
        let lookup = room.board.next_lookup().expect("ten are in the journal");
        let mut found = Found::default();
        for at in &lookup.records {
            lookup.read(&room.journal[*at as usize - 1], &mut found).expect("a good record");
        }
        done(&mut room, 10, 10);
        assert_eq!(room.board.archived_len(), 20);
        room.board.looked_up(&lookup, &found, &mut room.log);
        assert_eq!(room.said(), [], "more has to be read");
        assert_eq!(room.board.open_waits().count(), 1);
        room.look_up();
        let Effect::Tasks { to: CAROL, request: 5, tasks } = room.answer() else { panic!("no answer") };
        assert!(tasks.iter().all(|t| t.state == TaskState::Completed) && tasks.len() == 20);
    }
}

#[test]
fn a_question_that_needs_too_many_records_is_refused() {
    let limits = Limits { results_bytes_max: 164, waits_max: 10_000, ..limits() };
    let mut room =
        Room::with_policy(limits, DURABLE, Identity { epoch: EPOCH, first_seq: 1_000, hash_seed: 5 });
    let ids = done(&mut room, 4_200, 1);
    room.board.query(CAROL, 1, ids.iter().copied(), &mut room.log);
    assert_eq!(code(&room.answer()), Code::MessageTooLarge);
    room.board.query(CAROL, 2, ids[..4_000].iter().copied(), &mut room.log);
    room.look_up();
    assert!(
        matches!(room.answer(), Effect::Tasks { tasks, .. } if tasks.iter().all(|t| t.state == TaskState::Completed))
    );
}

#[test]
fn nobody_gets_the_result_of_a_task_by_guessing() {
    let mut room = room(1 << 20);
    let ids = done(&mut room, 100, 50);
    let guessed = TaskId::new(hive_proto::Partition(1023), ids[1].seq());
    room.board.query(CAROL, 1, [ids[0], guessed, ids[1]].into_iter(), &mut room.log);
    room.look_up();
    let Effect::Tasks { tasks, .. } = room.answer() else { panic!("no answer") };
    assert_eq!((tasks[1].state, tasks[1].payload.len()), (TaskState::Unknown, 0));
    assert_eq!((tasks[0].payload.len(), tasks[2].payload.len()), (100, 100));
}

#[test]
fn a_question_is_answered_once_whatever_comes_first() {
    let mut room = room(1 << 20);
    let ids = done(&mut room, 100, 50);
    room.board.query(CAROL, 1, [ids[0]].into_iter(), &mut room.log);
    let lookup = room.board.next_lookup().expect("asked");
    assert_eq!(room.board.end_lookups(), [(CAROL, 1)]);
    room.board.looked_up(&lookup, &Found::default(), &mut room.log);
    assert_eq!(room.said(), []);
    room.board.query(CAROL, 2, [ids[0]].into_iter(), &mut room.log);
    let lookup = room.board.next_lookup().expect("asked");
    room.board.looked_up(&lookup, &Found::failed(), &mut room.log);
    assert_eq!(code(&room.answer()), Code::Internal);
    assert_eq!(known(&mut room, ids[0]), result(ids[0]));
}

/// However many tasks of memory queues come last, the entries are written.
#[test]
fn a_snapshot_has_them_whatever_else_there_is() {
    for others in 7_950..8_150 {
        let mut room = room(1 << 20);
        room.board.declare("fast", POLICY).unwrap();
        done(&mut room, 100, 50);
        for batch in vec![(&[][..], &b"p"[..]); others].chunks(500) {
            let frame = room.frame(ALICE, "fast");
            room.submit_frame(frame, batch);
        }
        room.commit();
        let mut snapshot = room.board.begin_snapshot();
        let steps = std::iter::from_fn(|| room.board.snapshot_step(&mut snapshot, room.now, 1 << 20));
        let records = super::model::records_of(&steps.flatten().collect::<Vec<u8>>());
        let (limits, covered) = (room.board.limits.clone(), room.journal.len());
        let later = super::commit::replay_from(limits, &records, covered, &room.journal);
        assert_eq!(later.board.archived_len(), room.board.archived_len(), "{others}");
    }
}
