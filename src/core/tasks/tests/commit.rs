//! Queues that must survive: nothing is told or given out before it is durable, and what is durable comes back.

use super::super::ops::{Decision, read};
use super::super::table::Slot;
use super::super::{Found, Replay, Want};
use super::*;

const DURABLE: Policy = Policy { durability: Durability::Journal, ..POLICY };

/// Results of this length in all stay in memory in every test, bytes.
const ROOM_FOR_ALL: usize = 1 << 16;

fn identity() -> Identity {
    Identity { epoch: EPOCH, first_seq: 1_000, hash_seed: 5 }
}

fn room() -> Room {
    Room::with_policy(limits(), DURABLE, identity())
}

/// What is held back is told: the record is durable.
fn commit(room: &mut Room) -> Vec<u8> {
    room.commit().expect("something to write")
}

impl Room {
    /// Writes what has been decided; what was held back is told.
    pub(super) fn commit(&mut self) -> Option<Vec<u8>> {
        let body = self.seal()?;
        self.committed();
        Some(body)
    }

    /// Writes what has been decided, which is not durable yet.
    pub(super) fn seal(&mut self) -> Option<Vec<u8>> {
        let (body, _) = self.board.seal(self.now, &mut Vec::new())?;
        self.journal.push(body.clone());
        Some(body)
    }

    /// What was written is durable.
    pub(super) fn committed(&mut self) {
        let bytes = self.journal.last().map_or(0, Vec::len);
        self.board.recorded(self.journal.len() as u64, bytes);
        self.board.committed();
        let held = std::mem::take(&mut self.log.2);
        self.log.0.extend(held);
    }

    /// Reads from the journal what the board wants, until it wants nothing. Gives whether that was anything.
    pub(super) fn fetch(&mut self) -> bool {
        let mut any = false;
        while let Some(want) = self.board.want() {
            self.fetched(want);
            any = true;
        }
        any
    }

    /// Reads from the journal what is asked about.
    pub(super) fn look_up(&mut self) {
        while let Some(lookup) = self.board.next_lookup() {
            let mut found = Found::default();
            for at in &lookup.records {
                lookup.read(&self.journal[*at as usize - 1], &mut found).expect("a good record");
            }
            self.board.looked_up(&lookup, &found, &mut self.log);
        }
    }

    pub(super) fn fetched(&mut self, want: Want) {
        let records = &self.journal[want.first as usize - 1..want.last as usize];
        self.board.fetched(want, records.iter().map(|r| &r[..])).expect("good records");
    }
}

fn replay(records: &[Vec<u8>]) -> Room {
    replay_from(limits(), &[], 0, records)
}

/// A board made from a snapshot of the first `covered` records, and the others.
pub(super) fn replay_from(limits: Limits, snapshot: &[Vec<u8>], covered: usize, records: &[Vec<u8>]) -> Room {
    let mut replay = Replay::new(Board::new(limits, DURABLE, identity()), u32::MAX);
    snapshot.iter().for_each(|r| replay.apply(r, 0).expect("a good record"));
    replay.snapshot_read();
    for (at, r) in records.iter().enumerate().skip(covered) {
        replay.apply(r, at as u64 + 1).expect("a good record");
    }
    let mut room = room();
    room.journal = records.to_vec();
    room.now = replay.time();
    room.board = replay.finish(EPOCH + 1, 0);
    room.commit().expect("the epoch");
    room.board.check();
    room
}

/// All that must survive of a task.
#[derive(PartialEq, Debug)]
pub(super) struct Kept {
    id: TaskId,
    state: TaskState,
    failed: u16,
    attempts_max: u16,
    due: Tick,
    ext_len: u16,
    bytes: Vec<u8>,
    error: Option<Box<str>>,
    labels: Box<[String]>,
}

impl Board {
    /// All that must survive, by task, and the results of each queue. A task that runs is one that waits.
    /// What waits on disk is read there.
    pub(super) fn kept(&self, journal: &[Vec<u8>]) -> (Vec<Kept>, Vec<(String, u64)>) {
        let keep = |slot: Slot| {
            let r = &self.table[slot];
            let (state, arena) = match r.state {
                TaskState::Running | TaskState::Waiting => (TaskState::Waiting, &self.payloads),
                TaskState::Scheduled => (r.state, &self.delayed),
                TaskState::Dead => (r.state, &self.dead),
                other => (other, &self.results),
            };
            let queue = &self.queues[self.queue_of(slot) as usize];
            Kept {
                id: TaskId::new(queue.partition, self.table.seq(slot)),
                state,
                failed: r.failed,
                attempts_max: r.attempts_max,
                due: if state == TaskState::Waiting { Tick::ZERO } else { r.deadline },
                ext_len: if state.is_final() { 0 } else { r.ext_len },
                bytes: arena.get(r.blob).into(),
                error: self.errors.get(&self.table.seq(slot)).cloned(),
                labels: self.lanes[r.lane as usize].labels.clone(),
            }
        };
        let mut all: Vec<Kept> = self.table.slots().map(keep).collect();
        let mut on_disk = |_, decision: Decision<'_>| {
            if let Decision::Submit { spilled: true, seq, ext, payload, .. } = decision
                && let Some((lane, _)) = self.spill.index.find(seq)
            {
                let l = &self.lanes[lane as usize];
                all.push(Kept {
                    id: TaskId::new(self.queues[l.queue as usize].partition, seq),
                    state: TaskState::Waiting,
                    failed: 0,
                    attempts_max: self.attempts_max(lane, ext).expect("good options"),
                    due: Tick::ZERO,
                    ext_len: ext.len() as u16,
                    bytes: [ext, payload].concat(),
                    error: None,
                    labels: l.labels.clone(),
                });
            }
            let (seq, state, bytes) = match decision {
                Decision::Complete { seq, result, .. } => (seq, TaskState::Completed, result),
                Decision::Cancel { seq } => (seq, TaskState::Cancelled, &[][..]),
                _ => return Some(()),
            };
            if let Some(partition) = self.archived_in(seq) {
                all.push(Kept {
                    id: TaskId::new(partition, seq),
                    state,
                    failed: 0,
                    attempts_max: 0,
                    due: Tick::ZERO,
                    ext_len: 0,
                    bytes: bytes.into(),
                    error: None,
                    labels: Box::default(),
                });
            }
            Some(())
        };
        journal.iter().for_each(|record| read(record, &mut on_disk).expect("a good record"));
        all.sort_by_key(|k| k.id);
        // Dead letters never go by themselves, so their time means nothing.
        all.iter_mut().filter(|k| k.state == TaskState::Dead).for_each(|k| k.due = Tick::ZERO);
        // Nor does what was left of attempts, once there is an outcome.
        let ended = |k: &&mut Kept| matches!(k.state, TaskState::Completed | TaskState::Cancelled);
        all.iter_mut().filter(ended).for_each(|k| k.attempts_max = 0);
        // Where outcomes may be in the journal, one of two boards may have one there and the other in memory.
        if self.limits.results_bytes_max < ROOM_FOR_ALL {
            all.iter_mut().filter(ended).for_each(|k| {
                (k.failed, k.due, k.labels) = (0, Tick::ZERO, Box::default());
            });
        }
        let used = self.queues.iter().filter(|q| q.completed > 0);
        let mut counts: Vec<_> = used.map(|q| (q.name.to_string(), q.completed)).collect();
        counts.sort();
        (all, counts)
    }
}

#[test]
fn nothing_is_told_or_given_before_it_is_durable() {
    let mut room = room();
    room.work_with(
        BOB,
        1,
        Work { queue: "q".into(), credit_tasks: 9, credit_bytes: 100, labels: vec![] },
        &[],
    );
    room.said();
    let frame = room.frame(ALICE, "q");
    room.submit_frame(SubmitFrame { watch: true, ..frame }, &[(b"", b"one")]);
    assert_eq!((room.said(), room.given()), (vec![], String::new()));
    let (first, count) = room.board.seal(room.now, &mut Vec::new()).expect("a record");
    assert_eq!(count, 2, "the lane and the task");
    // The next one is gathered while the first is being written.
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(b"", b"two")]);
    assert!(room.board.seal(room.now, &mut Vec::new()).is_none(), "one record at a time");
    assert_eq!((room.said(), room.given()), (vec![], String::new()));
    room.board.committed();
    assert_eq!(room.given(), "one");
    let second = commit(&mut room);
    assert!(matches!(room.said()[..], [Effect::Accepted { .. }, Effect::Accepted { .. }]));
    let lease = room.leases()[0];
    room.board.complete(room.now, BOB, 5, [Complete { lease, result: b"r" }].into_iter(), &mut room.log);
    assert_eq!(room.said(), []);
    let asked = room.request();
    room.board.query(CAROL, asked, [lease.task].into_iter(), &mut room.log);
    assert_eq!(room.said(), [], "nobody sees a result that may not last");
    let third = commit(&mut room);
    assert_eq!(room.said().len(), 2, "settled and queried; nobody watches the second task");
    let mut later = replay(&[first, second, third]);
    assert_eq!(later.seen(lease.task).payload, b"r");
    later.work(BOB, 1, "q", 9);
    assert_eq!(later.given(), "one");
}

#[test]
fn a_memory_queue_beside_it_waits_for_nobody() {
    let mut room = room();
    room.board.declare("fast", POLICY).unwrap();
    let frame = room.frame(ALICE, "slow");
    room.submit_frame(frame, &[(b"", b"s")]);
    let ids = room.submit(ALICE, "fast", &["f"]);
    room.work(BOB, 1, "fast", 1);
    let lease = room.leases()[0];
    assert_eq!(lease.task, ids[0]);
    assert_eq!(room.complete(BOB, lease, "r"), Ok(()));
    assert!(room.board.is_uncommitted());
    assert_eq!(replay(&[commit(&mut room)]).state(ids[0]), TaskState::Unknown, "it was in memory only");
}

#[test]
fn a_task_may_be_cancelled_or_come_due_before_it_is_durable() {
    let mut room = room();
    let options = |ms| messages::encode(&TaskOptions { delay_ms: Some(ms), ..TaskOptions::default() });
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(b"", b"a"), (&options(5), b"b")]);
    let first = room.board.seal(room.now, &mut Vec::new()).expect("a record").0;
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(b"", b"c"), (&options(5), b"d")]);
    room.after_ms(6);
    room.work_with(
        BOB,
        1,
        Work { queue: "q".into(), credit_tasks: 9, credit_bytes: 100, labels: vec![] },
        &[],
    );
    room.said();
    assert_eq!(room.given(), "");
    let partition = hive_proto::Partition::of_queue("q");
    let ids: Vec<TaskId> = (1_000..1_004).map(|seq| TaskId::new(partition, seq)).collect();
    room.board.cancel(room.now, ALICE, 0, [ids[0], ids[2]].into_iter(), &mut room.log);
    room.board.committed();
    assert_eq!(room.given(), "b");
    let second = commit(&mut room);
    room.said();
    assert_eq!(room.given(), "d");
    let mut later = replay(&[first, second]);
    use TaskState::{Cancelled, Scheduled};
    let states: Vec<TaskState> = ids.iter().map(|id| later.state(*id)).collect();
    assert_eq!(states, [Cancelled, Scheduled, Cancelled, Scheduled]);
    later.after_ms(6);
    later.work(BOB, 1, "q", 9);
    assert_eq!(later.given(), "b d");
}

#[test]
fn a_failed_task_keeps_its_count_and_a_dead_one_its_error() {
    let mut room = room();
    room.submit_frame(
        SubmitFrame { from: ALICE, request: 1, queue: b"q", watch: false, trace: None, bytes: 0 },
        &[(b"", b"t")],
    );
    let mut records = vec![commit(&mut room)];
    room.said();
    room.work(BOB, 1, "q", 1);
    for n in 0..3 {
        let Some(lease) = room.leases().first().copied() else { panic!("attempt {n}") };
        let item = Fail { lease, delay_ms: 0, permanent: false, error: "so it goes" };
        room.board.fail(room.now, BOB, 0, [item].into_iter(), &mut room.log);
        records.push(commit(&mut room));
        room.said();
        let mut later = replay(&records);
        let id = lease.task;
        match n {
            2 => assert_eq!(
                (later.state(id), &later.seen(id).payload[..]),
                (TaskState::Dead, &b"so it goes"[..])
            ),
            _ => assert_eq!((later.state(id), later.seen(id).attempt), (TaskState::Waiting, n + 1)),
        }
    }
}

/// Reading a journal writes nothing but the new epoch: a server that starts again and again must not fill its disk.
#[test]
fn what_is_replayed_is_not_journaled_once_more() {
    let mut room = room();
    let frame = room.frame(ALICE, "q");
    room.submit_frame(frame, &[(b"", b"dies"), (b"", b"fails"), (b"", b"ends"), (b"", b"goes")]);
    let mut records = vec![commit(&mut room)];
    room.said();
    room.work(BOB, 1, "q", 9);
    let leases = room.leases();
    let failures = [(leases[0], true), (leases[1], false)];
    let item = |(lease, permanent)| Fail { lease, delay_ms: 0, permanent, error: "so it goes" };
    room.board.fail(room.now, BOB, 0, failures.map(item).into_iter(), &mut room.log);
    let done = Complete { lease: leases[2], result: b"r" };
    room.board.complete(room.now, BOB, 0, [done].into_iter(), &mut room.log);
    room.board.cancel(room.now, ALICE, 0, [leases[3].task].into_iter(), &mut room.log);
    records.push(commit(&mut room));
    let mut replay = Replay::new(Board::new(limits(), DURABLE, identity()), u32::MAX);
    records.iter().for_each(|r| replay.apply(r, 1).expect("a good record"));
    let now = replay.time();
    let (_, decisions) = replay.finish(EPOCH + 1, 0).seal(now, &mut Vec::new()).expect("the epoch");
    assert_eq!(decisions, 1);
}

#[test]
fn a_record_of_another_kind_is_refused() {
    let mut room = room();
    room.submit_frame(
        SubmitFrame { from: ALICE, request: 1, queue: b"q", watch: false, trace: None, bytes: 0 },
        &[(b"", b"t")],
    );
    let record = commit(&mut room);
    let fresh = || Replay::new(Board::new(limits(), DURABLE, identity()), u32::MAX);
    let error = fresh().apply(&record[..record.len() - 1], 1).expect_err("cut");
    assert!(error.to_string().contains("not understood"), "{error}");
    let mut unknown = record.clone();
    unknown[8] = 99;
    fresh().apply(&unknown, 1).expect_err("no such group");
}

/// Sessions are numbered anew by each process: who watched in an earlier one must not be taken for somebody else.
#[test]
fn watchers_of_an_earlier_process_are_nobody() {
    let mut room = room();
    let frame = room.frame(ALICE, "q");
    room.submit_frame(SubmitFrame { watch: true, ..frame }, &[(b"", b"one")]);
    let first = commit(&mut room);
    let second = {
        let mut next = Replay::new(Board::new(limits(), DURABLE, identity()), u32::MAX);
        next.apply(&first, 1).unwrap();
        let mut board = next.finish(EPOCH + 1, 0);
        board.seal(room.now, &mut Vec::new()).expect("the epoch").0
    };
    // The second process replays once more, after a panic: it keeps its own watchers only.
    let mut third = Replay::new(Board::new(limits(), DURABLE, identity()), EPOCH + 1);
    third.apply(&first, 1).unwrap();
    third.apply(&second, 2).unwrap();
    let board = third.finish(EPOCH + 2, 0);
    let watchers: Vec<_> = board.table.slots().map(|s| board.table[s].watcher).collect();
    assert_eq!(watchers, [SessionId(0)]);
}

#[test]
fn what_is_replayed_is_not_written_again() {
    let mut room = room();
    room.work_with(
        BOB,
        1,
        Work { queue: "q".into(), credit_tasks: 900, credit_bytes: 1 << 20, labels: vec![] },
        &[],
    );
    for _ in 0..100 {
        let frame = room.frame(ALICE, "q");
        room.submit_frame(frame, &[(b"", b"x")]);
    }
    let mut records = vec![commit(&mut room)];
    room.said();
    let error = "e".repeat(4000);
    for lease in room.leases() {
        let item = Fail { lease, delay_ms: 0, permanent: true, error: &error };
        room.board.fail(room.now, BOB, 0, [item].into_iter(), &mut room.log);
    }
    records.push(commit(&mut room));
    let mut again = Replay::new(Board::new(limits(), DURABLE, identity()), u32::MAX);
    records.iter().for_each(|r| again.apply(r, 1).unwrap());
    let board = again.finish(EPOCH + 1, 0);
    assert!(board.gathered_bytes() < 100, "{} bytes besides the epoch", board.gathered_bytes());
    assert_eq!(board.counters(), Default::default());
}

#[test]
fn a_step_of_a_snapshot_is_about_as_long_as_asked() {
    let mut room = room();
    let large = vec![7; 10_000];
    for _ in 0..200 {
        let frame = room.frame(ALICE, "q");
        room.submit_frame(frame, &[(b"", &large)]);
    }
    commit(&mut room);
    let mut snapshot = room.board.begin_snapshot();
    let (mut steps, mut most) = (0, 0);
    while let Some(piece) = room.board.snapshot_step(&mut snapshot, room.now, 1000) {
        most = most.max(piece.len());
        steps += 1;
    }
    assert!(most < 11_000 && steps >= 200, "{steps} steps, {most} bytes at most");
}
