//! Tasks that wait on disk: in order, within memory, and not without being noticed when they are not there.

use super::super::spill::{Index, SpillError};
use super::*;

const DURABLE: Policy = Policy { durability: Durability::Journal, ..POLICY };

fn room(memory_bytes_max: usize) -> Room {
    let limits =
        Limits { memory_bytes_max, spill_bytes: memory_bytes_max / 2, lane_tasks_min: 2, ..limits() };
    Room::with_policy(limits, DURABLE, Identity { epoch: EPOCH, first_seq: 1_000, hash_seed: 5 })
}

/// Submits tasks of a thousand bytes, all of which are taken.
fn fill(room: &mut Room, queue: &'static str, count: u64) -> Vec<TaskId> {
    let mut ids = Vec::new();
    for n in 0..count / 10 {
        let payloads: Vec<String> = (0..10).map(|i| format!("{:0>1000}", n * 10 + i)).collect();
        let frame = room.frame(ALICE, queue);
        let items: Vec<(&[u8], &[u8])> = payloads.iter().map(|p| (&[][..], p.as_bytes())).collect();
        room.submit_frame(SubmitFrame { watch: true, ..frame }, &items);
        room.commit();
        ids.extend(room.accepted());
    }
    ids
}

fn on_disk(room: &Room, queue: usize) -> usize {
    room.board.queues().nth(queue).expect("a queue").on_disk
}

#[test]
fn a_backlog_beyond_memory_is_given_out_in_order_and_within_memory() {
    let most = 4 << 20;
    let mut room = room(most);
    let ids = fill(&mut room, "q", 5_000);
    assert!(on_disk(&room, 0) > 2_500 && room.board.memory_bytes() < most / 2 + (512 << 10));
    let work = Work { queue: "q".into(), credit_tasks: 100, credit_bytes: 1 << 20, labels: vec![] };
    room.work_with(BOB, 1, work, &[]);
    room.said();
    let (mut given, mut done) = (Vec::new(), 0);
    while given.len() < ids.len() {
        room.fetch();
        let tasks = room.pump();
        assert!(!tasks.is_empty(), "{} were given out", given.len());
        assert!(room.board.memory_bytes() < most, "{} bytes", room.board.memory_bytes());
        for (_, _, task) in tasks {
            assert_eq!(String::from_utf8(task.payload), Ok(format!("{:0>1000}", given.len())));
            let item = [Complete { lease: task.lease, result: b"" }];
            room.board.complete(room.now, BOB, 0, item.into_iter(), &mut room.log);
            given.push(task.lease.task);
        }
        room.commit();
        done += room.said().iter().filter(|e| matches!(e, Effect::Outcome { to: ALICE, .. })).count();
    }
    assert_eq!((given, done), (ids.clone(), ids.len()));
    assert_eq!(on_disk(&room, 0), 0);
    room.after_ms(60_000); // results are forgotten
    // It is over: what comes now stays in memory.
    fill(&mut room, "q", 10);
    assert_eq!(on_disk(&room, 0), 0);
}

/// A memory full of something else: what is on disk comes a few at a time, and only while the queue has nothing else.
#[test]
fn a_full_memory_is_not_made_fuller() {
    let most = 2 << 20;
    let mut room = room(most);
    room.board.declare("other", POLICY).unwrap();
    fill(&mut room, "q", 10);
    let other: Vec<String> = (0..100).map(|_| "x".repeat(1000)).collect();
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    while !room.board.is_full(300_000) {
        room.submit(ALICE, "other", &other);
    }
    room.board.set_elsewhere(most - room.board.memory_bytes());
    let before = room.board.memory_bytes();
    fill(&mut room, "q", 3_000);
    assert!(on_disk(&room, 1) >= 2_990 && room.board.memory_bytes() < before + 10_000);
    // Nothing new is made, and nothing that has to wait in memory is taken.
    let refused = |room: &mut Room, queue, options: &TaskOptions| {
        let frame = room.frame(ALICE, queue);
        room.submit_frame(frame, &[(&messages::encode(options), b"t")]);
        code(&room.answer())
    };
    let later = TaskOptions { delay_ms: Some(5), ..TaskOptions::default() };
    let labels = TaskOptions { labels: vec!["gpu".into()], ..TaskOptions::default() };
    assert_eq!(refused(&mut room, "q", &later), Code::MemoryFull);
    assert_eq!(refused(&mut room, "q", &labels), Code::MemoryFull);
    assert_eq!(refused(&mut room, "new", &TaskOptions::default()), Code::MemoryFull);
    assert_eq!(refused(&mut room, "other", &TaskOptions::default()), Code::MemoryFull);
    let work = Work { queue: "q".into(), credit_tasks: 1_000, credit_bytes: 1 << 20, labels: vec![] };
    room.work_with(BOB, 1, work, &[]);
    room.said();
    let mut seen = 0;
    while seen < 3_010 {
        room.fetch();
        let tasks = room.pump();
        assert!((1..50).contains(&tasks.len()), "{} at a time, after {seen}", tasks.len());
        assert!(!room.fetch(), "the workers have some");
        // Two chunks, and the records of results.
        assert!(room.board.memory_bytes() < before + (512 << 10) + 60 * seen + 20_000);
        for (_, _, task) in &tasks {
            let item = [Complete { lease: task.lease, result: b"" }];
            room.board.complete(room.now, BOB, 0, item.into_iter(), &mut room.log);
        }
        seen += tasks.len();
        room.commit();
        room.said();
    }
}

/// So many tasks on disk that even their index has no room any more.
#[test]
fn the_index_has_its_bounds() {
    let most = 1 << 20;
    let mut room = room(most);
    fill(&mut room, "q", 2_000);
    room.board.set_elsewhere(most);
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(b"", b"t")]);
    assert_eq!(code(&room.answer()), Code::MemoryFull);
}

#[test]
fn tasks_that_are_not_where_they_must_be_are_missed() {
    let fresh = || {
        let mut room = room(1 << 20);
        fill(&mut room, "q", 2_000);
        let work = Work { queue: "q".into(), credit_tasks: 900, credit_bytes: 1 << 20, labels: vec![] };
        room.work_with(BOB, 1, work, &[]);
        room.said();
        let want = std::iter::from_fn(|| {
            room.pump();
            room.board.want()
        });
        let want = want.into_iter().next().expect("something is on disk");
        (room, want)
    };
    let (mut room, want) = fresh();
    let others = room.journal[..1].to_vec();
    let lost = room.board.fetched(want, others.iter().map(|r| &r[..]));
    assert_eq!(lost, Err(SpillError::Lost { first: want.first, last: want.last }));
    let (mut room, want) = fresh();
    let bad = room.board.fetched(want, [&b"nonsense"[..], b"and more of it"].into_iter());
    assert!(matches!(bad, Err(SpillError::Bad(_))), "{bad:?}");
    let (mut room, want) = fresh();
    assert_eq!(room.board.want(), None, "it is being read");
    room.fetched(want);
    assert!(!room.pump().is_empty());
}

proptest::proptest! {
    /// The index against a set.
    #[test]
    fn the_index_knows_its_tasks(
        tasks in proptest::collection::btree_map(0..500_u64, (0..3_u32, 0..2_u32), 0..200),
        last in 0..500_u64,
    ) {
        let mut index = Index::default();
        for (seq, (lane, watcher)) in &tasks {
            index.add(seq / 64, *lane, SessionId(*watcher), 1 << (seq % 64));
        }
        for seq in 0..500 {
            let known = tasks.get(&seq).map(|(lane, watcher)| (*lane, SessionId(*watcher)));
            proptest::prop_assert_eq!(index.find(seq), known);
        }
        let bits = index.below(last).iter().map(|(_, mask)| mask.count_ones() as usize).sum::<usize>();
        proptest::prop_assert_eq!(bits, tasks.range(..last).count());
        for seq in tasks.keys() {
            proptest::prop_assert!(index.take(*seq).is_some() && index.find(*seq).is_none());
        }
        proptest::prop_assert!(index.below(u64::MAX).is_empty());
    }
}
