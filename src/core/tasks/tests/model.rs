//! Random calls, judged by a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::commit::replay_from;
use super::*;

const QUEUES: [&str; 2] = ["a", "b"];
const LABELS: [&[&str]; 4] = [&[], &["x"], &["y"], &["x", "y"]];
const ATTEMPTS: u16 = 3;

#[derive(Clone, Debug)]
enum Op {
    Submit { from: u32, queue: usize, tasks: Vec<NewTask> },
    Work { from: u32, id: u32, queue: usize, tasks: u32, bytes: u64, labels: usize },
    Credit { from: u32, id: u32, tasks: u32, bytes: u64 },
    StopWork { from: u32, id: u32 },
    Settle { how: How, thief: Option<u32>, leases: Vec<usize> },
    Cancel { task: usize },
    Redrive { tasks: Vec<usize> },
    Purge { tasks: Vec<usize> },
    Wait { from: u32, any: bool, timeout_ms: u32, tasks: Vec<usize> },
    Close { from: u32 },
    Pass { ms: u64 },
    Pump,
}

#[derive(Clone, Debug)]
struct NewTask {
    labels: usize,
    delay_ms: Option<u32>,
    max_attempts: Option<u32>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Complete,
    Fail { delay_ms: u32, permanent: bool },
    Release { delay_ms: u32 },
    Renew,
    Progress,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let from = || 1..4_u32;
    let delay = || prop_oneof![4 => Just(0), 1 => Just(DELAY_BY_POLICY), 2 => 1..3_000_u32];
    let task =
        (0..LABELS.len(), prop::option::weighted(0.2, 0..2_000_u32), prop::option::of(1..4_u32), 0..50_usize)
            .prop_map(|(labels, delay_ms, max_attempts, bytes)| NewTask {
                labels,
                delay_ms,
                max_attempts,
                bytes,
            });
    let how = prop_oneof![
        3 => Just(How::Complete),
        3 => (delay(), prop::bool::weighted(0.1)).prop_map(|(delay_ms, permanent)| How::Fail { delay_ms, permanent }),
        1 => (0..2_000_u32).prop_map(|delay_ms| How::Release { delay_ms }),
        2 => Just(How::Renew),
        1 => Just(How::Progress),
    ];
    let op = prop_oneof![
        6 => (from(), 0..2_usize, prop::collection::vec(task, 1..6))
            .prop_map(|(from, queue, tasks)| Op::Submit { from, queue, tasks }),
        4 => (from(), 1..3_u32, 0..2_usize, 0..6_u32, 0..150_u64, 0..LABELS.len())
            .prop_map(|(from, id, queue, tasks, bytes, labels)| Op::Work { from, id, queue, tasks, bytes, labels }),
        2 => (from(), 1..3_u32, 0..6_u32, 0..150_u64)
            .prop_map(|(from, id, tasks, bytes)| Op::Credit { from, id, tasks, bytes }),
        1 => (from(), 1..3_u32).prop_map(|(from, id)| Op::StopWork { from, id }),
        10 => (how, prop::option::weighted(0.1, from()), prop::collection::vec(0..8_usize, 1..4))
            .prop_map(|(how, thief, leases)| Op::Settle { how, thief, leases }),
        2 => (0..30_usize).prop_map(|task| Op::Cancel { task }),
        2 => prop::collection::vec(0..30_usize, 1..5).prop_map(|tasks| Op::Redrive { tasks }),
        1 => prop::collection::vec(0..30_usize, 1..3).prop_map(|tasks| Op::Purge { tasks }),
        2 => (from(), any::<bool>(), 0..5_000_u32, prop::collection::vec(0..30_usize, 0..4))
            .prop_map(|(from, any, timeout_ms, tasks)| Op::Wait { from, any, timeout_ms, tasks }),
        1 => from().prop_map(|from| Op::Close { from }),
        4 => prop_oneof![0..500_u64, 500..20_000_u64].prop_map(|ms| Op::Pass { ms }),
        8 => Just(Op::Pump),
    ];
    prop::collection::vec(op, 1..120)
}

/// What the model knows of a task.
#[derive(Clone, Debug)]
struct Known {
    lane: (usize, usize),
    state: TaskState,
    /// When the lease expires or the delay ends, as the state says.
    due: Tick,
    holder: SessionId,
    attempt: u32,
    failed: u16,
    attempts_max: u16,
    /// Never had a delay.
    prompt: bool,
    outcomes: usize,
}

#[derive(Default)]
struct Model {
    tasks: BTreeMap<TaskId, Known>,
    leases: Vec<(SessionId, Lease)>,
    /// Last task that each lane gave out for the first time.
    first_given: BTreeMap<(usize, usize), TaskId>,
    waits: BTreeMap<u32, (SessionId, bool, Tick, Vec<TaskId>)>,
    /// Waits, and outcomes that they have counted although there are none any more.
    counted: BTreeSet<(u32, TaskId)>,
    /// How many items of a request must be accepted.
    accepted: BTreeMap<u32, u16>,
}

impl Model {
    /// A task is free again after an attempt that brought nothing.
    fn back(&mut self, now: Tick, task: TaskId, counts: bool, delay_ms: u32, permanent: bool) {
        let t = self.tasks.get_mut(&task).unwrap();
        t.failed += u16::from(counts);
        t.due = now.plus_ms(u64::from(delay_ms));
        t.state = match delay_ms {
            _ if permanent || (counts && t.failed >= t.attempts_max) => TaskState::Dead,
            0 => TaskState::Waiting,
            _ => TaskState::Scheduled,
        };
    }

    /// A dead letter waits again, or is gone. Gives whether it was one.
    fn end_dead(&mut self, task: &TaskId, purge: bool) -> bool {
        let Some(t) = self.tasks.get_mut(task).filter(|t| t.state == TaskState::Dead) else { return false };
        if purge {
            self.tasks.remove(task);
        } else {
            (t.state, t.failed, t.outcomes) = (TaskState::Waiting, 0, 0);
            self.counted.extend(self.waits.keys().map(|wait| (*wait, *task)));
        }
        true
    }

    fn holds(&self, from: SessionId, lease: Lease) -> bool {
        let is = |t: &Known| t.state == TaskState::Running && t.holder == from && t.attempt == lease.attempt;
        self.tasks.get(&lease.task).is_some_and(is)
    }

    fn settle(&mut self, now: Tick, from: SessionId, lease: Lease, how: How) -> bool {
        if !self.holds(from, lease) {
            return false;
        }
        let t = self.tasks.get_mut(&lease.task).unwrap();
        match how {
            How::Complete => t.state = TaskState::Completed,
            How::Renew => t.due = now.plus_ms(u64::from(POLICY.lease_ms)),
            How::Progress => {}
            How::Release { delay_ms } => self.back(now, lease.task, false, delay_ms, false),
            How::Fail { delay_ms, permanent } => {
                let delay = if delay_ms == DELAY_BY_POLICY { POLICY.retry_delay_ms } else { delay_ms };
                self.back(now, lease.task, true, delay, permanent);
            }
        }
        true
    }

    fn assigned(&mut self, now: Tick, to: SessionId, lease: Lease) {
        let t = self.tasks.get_mut(&lease.task).expect("only known tasks are given");
        assert_eq!((t.state, t.attempt + 1), (TaskState::Waiting, lease.attempt));
        (t.state, t.attempt, t.holder) = (TaskState::Running, lease.attempt, to);
        t.due = now.plus_ms(u64::from(POLICY.lease_ms));
        assert!(t.failed < t.attempts_max, "an attempt too many");
        if t.attempt == 1 && t.prompt {
            let before = self.first_given.insert(t.lane, lease.task);
            assert!(before < Some(lease.task), "a lane is first in, first out");
        }
        self.leases.push((to, lease));
    }

    /// Time passes: delays end, leases expire.
    fn pass(&mut self, now: Tick) -> Vec<Lease> {
        let mut revoked = Vec::new();
        for (task, t) in &mut self.tasks {
            if t.state == TaskState::Scheduled && t.due <= now {
                t.state = TaskState::Waiting;
            }
            if t.state == TaskState::Running && t.due <= now {
                revoked.push(Lease { task: *task, attempt: t.attempt, epoch: EPOCH });
            }
        }
        for lease in &revoked {
            self.back(now, lease.task, true, 0, false);
        }
        revoked
    }

    fn close(&mut self, now: Tick, session: SessionId) {
        let running = |t: &Known| t.state == TaskState::Running && t.holder == session;
        let held: Vec<TaskId> = self.tasks.iter().filter(|(_, t)| running(t)).map(|(id, _)| *id).collect();
        for task in held {
            self.back(now, task, true, 0, false);
        }
        self.waits.retain(|_, (s, ..)| *s != session);
    }

    /// Waits that are over.
    fn over(&self, now: Tick) -> BTreeSet<u32> {
        let is_final = |id: &TaskId| self.tasks.get(id).is_none_or(|t| t.state.is_final());
        let over = |(request, (_, any, at, ids)): &(&u32, &(SessionId, bool, Tick, Vec<TaskId>))| {
            let done = |id: &TaskId| is_final(id) || self.counted.contains(&(**request, *id));
            *at <= now || ids.is_empty() || if *any { ids.iter().any(done) } else { ids.iter().all(done) }
        };
        self.waits.iter().filter(over).map(|(r, _)| *r).collect()
    }
}

/// No result goes before the end: the model would have to know when.
fn lasting() -> Limits {
    Limits { result_ms: u64::MAX, ..limits() }
}

/// Tasks that survive go to disk when a lane has two, or a few pages are full.
fn spilling(spill_bytes: usize) -> Limits {
    Limits { spill_bytes, lane_tasks_min: 2, ..lasting() }
}

/// Three outcomes fit into memory.
fn archiving() -> Limits {
    Limits { results_bytes_max: 200, ..lasting() }
}

fn stage(durability: Durability, limits: Limits) -> Room {
    let mut room = Room::with(limits);
    for q in QUEUES {
        room.board.declare(q, Policy { attempts_max: ATTEMPTS, durability, ..POLICY }).unwrap();
    }
    room
}

/// Runs calls against a board and the model; returns all that the board said, and what is in its journal.
fn run(durability: Durability, limits: &Limits, ops: &[Op]) -> (Vec<Effect>, Vec<Vec<u8>>) {
    let mut room = stage(durability, limits.clone());
    let (mut model, mut all) = (Model::default(), Vec::new());
    for op in ops {
        let expected = apply(&mut room, &mut model, op);
        room.commit();
        let fetched = room.fetch();
        room.look_up();
        let said = room.said();
        judge(&room, &mut model, &said, &expected);
        if matches!(op, Op::Pump) && !fetched {
            room.board.check_pumped();
        }
        for (id, t) in &model.tasks {
            let seen = room.seen(*id);
            // Of a cancelled task the journal does not say which attempt it was.
            let attempt = if t.state == TaskState::Cancelled { seen.attempt } else { t.attempt };
            assert_eq!((seen.state, seen.attempt), (t.state, attempt), "{id}");
            assert_eq!(t.outcomes, usize::from(t.state.is_final()), "an outcome is told once");
        }
        all.extend(said);
    }
    if durability == Durability::Journal {
        comes_back(&room, limits, &[], 0);
    }
    (all, room.journal)
}

/// A board made from a snapshot and the records behind it has all that must survive of this one.
fn comes_back(room: &Room, limits: &Limits, snapshot: &[Vec<u8>], covered: usize) {
    let mut later = replay_from(limits.clone(), snapshot, covered, &room.journal);
    later.now = room.now;
    later.after_ms(0);
    later.board.check();
    let (was, is) = (room.board.kept(&room.journal), later.board.kept(&room.journal));
    if let Some((was, is)) = was.0.iter().zip(&is.0).find(|(was, is)| was != is) {
        panic!("{was:?} came back as {is:?}");
    }
    assert!(was == is, "{} tasks came back as {}; {:?} {:?}", was.0.len(), is.0.len(), was.1, is.1);
    // All of it can be had: with credit enough, nothing stays on disk.
    for (n, queue) in QUEUES.iter().enumerate() {
        let labels = LABELS[3].iter().map(ToString::to_string).collect();
        let work = Work { queue: (*queue).into(), credit_tasks: 1_000, credit_bytes: 1 << 20, labels };
        later.work_with(SessionId(900 + n as u32), 1, work, &[]);
    }
    for _ in 0..1_000 {
        later.fetch();
        later.board.pump(later.now, &mut later.log);
    }
    later.board.check();
    assert_eq!(later.board.queues().map(|q| q.waiting).sum::<usize>(), 0, "something stays on disk");
}

/// Runs calls while records are written and read now and then, each some calls after it was begun. A snapshot begins on the
/// way and is taken a page at a time; with the records behind it, it stands for the records before.
fn run_with_a_slow_disk(limits: &Limits, ops: &[Op], disk: &[bool], snapshot_at: usize) {
    let mut room = stage(Durability::Journal, limits.clone());
    let (mut model, mut writing, mut reading) = (Model::default(), false, None);
    let (mut snapshot, mut written, mut behind) = (None, Vec::new(), 0);
    for (n, (op, tick)) in ops.iter().zip(disk.iter().cycle()).enumerate() {
        apply(&mut room, &mut model, op);
        room.said();
        if n == snapshot_at {
            behind = room.journal.len() - usize::from(writing);
            snapshot = Some(room.board.begin_snapshot());
        }
        if let Some(s) = &mut snapshot
            && *tick
        {
            written.extend(room.board.snapshot_step(s, room.now, 1).unwrap_or_default());
        }
        match reading.take() {
            Some(want) if *tick => room.fetched(want),
            Some(want) => reading = Some(want),
            None => reading = room.board.want(),
        }
        if *tick && writing {
            room.committed();
            writing = false;
        } else if *tick {
            writing = room.seal().is_some();
        }
        room.board.check();
    }
    if writing {
        room.committed();
    }
    room.commit();
    comes_back(&room, limits, &[], 0);
    if let Some(mut s) = snapshot {
        while let Some(more) = room.board.snapshot_step(&mut s, room.now, 1) {
            written.extend(more);
        }
        let short = records_of(&written);
        // Records that it covers and does not need are gone.
        for at in 0..behind {
            let needed = |(first, last): &(u64, u64)| (*first..=*last).contains(&(at as u64 + 1));
            let result = at as u64 + 1 >= room.board.results_from();
            if !s.needs().iter().any(needed) && !result {
                room.journal[at] = vec![0; 8];
            }
        }
        comes_back(&room, limits, &short, behind);
    }
    let (durable_below, sealed_below) = room.board.bounds();
    assert_eq!(durable_below, sealed_below);
}

/// The records of a snapshot.
pub(super) fn records_of(mut written: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some((length, body)) = written.split_first_chunk() {
        let (record, more) = body.split_at(u32::from_le_bytes(*length) as usize);
        records.push(record.to_vec());
        written = more;
    }
    records
}

/// A snapshot in which a task is on disk serves although a later one had it in memory, from which the server went on.
#[test]
fn an_earlier_snapshot_serves_as_well() {
    let limits = Limits { lane_tasks_min: 0, ..spilling(0) };
    let mut room = stage(Durability::Journal, limits.clone());
    let whole = |room: &Room| {
        let mut snapshot = room.board.begin_snapshot();
        let steps = std::iter::from_fn(|| room.board.snapshot_step(&mut snapshot, room.now, 1));
        (records_of(&steps.flatten().collect::<Vec<u8>>()), room.journal.len())
    };
    for payload in ["one", "two", "three", "four"] {
        let frame = room.frame(ALICE, "a");
        room.submit_frame(frame, &[(b"", payload.as_bytes())]);
        room.commit();
    }
    room.said();
    assert!(room.board.queues().next().unwrap().on_disk >= 3);
    let (earlier, covered) = whole(&room);
    room.work(BOB, 1, "a", 9);
    room.pump();
    while room.fetch() {
        room.pump();
    }
    let (later, both) = whole(&room);
    let mut room = replay_from(limits.clone(), &later, both, &room.journal);
    room.said();
    room.work(BOB, 1, "a", 9);
    let mut leases = room.leases();
    while room.fetch() {
        leases.extend(room.leases());
    }
    assert_eq!(leases.len(), 4);
    for lease in leases {
        let permanent = lease.task.seq().is_multiple_of(2);
        let item = Fail { lease, delay_ms: 0, permanent, error: "so it goes" };
        room.board.fail(room.now, BOB, 0, [item].into_iter(), &mut room.log);
    }
    room.commit();
    comes_back(&room, &limits, &later, both);
    comes_back(&room, &limits, &earlier, covered);
}

/// Makes the call on both sides; returns the leases that must be revoked.
fn apply(room: &mut Room, model: &mut Model, op: &Op) -> Vec<Lease> {
    let now = room.now;
    match op {
        Op::Submit { from, queue, tasks } => submit(room, model, SessionId(*from), *queue, tasks),
        Op::Work { from, id, queue, tasks, bytes, labels } => {
            let labels = LABELS[*labels].iter().map(ToString::to_string).collect();
            let work =
                Work { queue: QUEUES[*queue].into(), credit_tasks: *tasks, credit_bytes: *bytes, labels };
            room.work_with(SessionId(*from), *id, work, &[]);
        }
        Op::Credit { from, id, tasks, bytes } => {
            room.board.credit(SessionId(*from), *id, *tasks, *bytes, &mut room.log);
        }
        Op::StopWork { from, id } => room.board.stop_work(SessionId(*from), *id, &mut room.log),
        Op::Settle { how, thief, leases } => settle(room, model, *how, thief.map(SessionId), leases),
        Op::Cancel { task } => {
            let Some((id, t)) = model.tasks.iter_mut().nth(*task) else { return vec![] };
            let revoked = Lease { task: *id, attempt: t.attempt, epoch: EPOCH };
            room.board.cancel(now, CAROL, 0, [*id].into_iter(), &mut room.log);
            let before = t.state;
            if !before.is_final() {
                t.state = TaskState::Cancelled;
            }
            return if before == TaskState::Running { vec![revoked] } else { vec![] };
        }
        Op::Redrive { tasks } | Op::Purge { tasks } => {
            let ids: Vec<TaskId> = tasks.iter().filter_map(|n| model.tasks.keys().nth(*n).copied()).collect();
            let request = room.request();
            let purge = matches!(op, Op::Purge { .. });
            match purge {
                true => room.board.purge(CAROL, request, ids.iter().copied(), &mut room.log),
                false => room.board.redrive(CAROL, request, ids.iter().copied(), &mut room.log),
            }
            let right = ids.iter().filter(|id| model.end_dead(id, purge)).count();
            model.accepted.insert(request, right as u16);
        }
        Op::Wait { from, any, timeout_ms, tasks } => {
            let ids: Vec<TaskId> = tasks
                .iter()
                .map(|n| model.tasks.keys().nth(*n).copied().unwrap_or(TaskId(*n as u64)))
                .collect();
            let mode = if *any { WaitMode::Any } else { WaitMode::All };
            let request = room.wait(SessionId(*from), mode, *timeout_ms, &ids);
            model.waits.insert(request, (SessionId(*from), *any, now.plus_ms(u64::from(*timeout_ms)), ids));
        }
        Op::Close { from } => {
            room.close(SessionId(*from));
            model.close(now, SessionId(*from));
        }
        Op::Pass { ms } => {
            room.after_ms(*ms);
            return model.pass(room.now);
        }
        Op::Pump => room.board.pump(now, &mut room.log),
    }
    vec![]
}

fn submit(room: &mut Room, model: &mut Model, from: SessionId, queue: usize, tasks: &[NewTask]) {
    let mut items = Vec::new();
    let mut next = TaskId::new(hive_proto::Partition::of_queue(QUEUES[queue]), room.board.next_seq());
    for t in tasks {
        let labels = LABELS[t.labels].iter().map(ToString::to_string).collect();
        let options = TaskOptions { labels, max_attempts: t.max_attempts, delay_ms: t.delay_ms, trace: None };
        items.push((messages::encode(&options), vec![7; t.bytes]));
        let delay = t.delay_ms.unwrap_or(0);
        let known = Known {
            lane: (queue, t.labels),
            state: if delay > 0 { TaskState::Scheduled } else { TaskState::Waiting },
            due: room.now.plus_ms(u64::from(delay)),
            holder: SessionId(0),
            attempt: 0,
            failed: 0,
            attempts_max: t.max_attempts.map_or(ATTEMPTS, |m| m as u16),
            prompt: delay == 0,
            outcomes: 0,
        };
        model.tasks.insert(next, known);
        next = next.offset(1);
    }
    let items: Vec<(&[u8], &[u8])> = items.iter().map(|(e, p)| (&e[..], &p[..])).collect();
    let frame = SubmitFrame { watch: true, ..room.frame(from, QUEUES[queue]) };
    room.submit_frame(frame, &items);
}

/// Settles some of the last leases, which may be void by now; sometimes by a session that does not hold them.
fn settle(room: &mut Room, model: &mut Model, how: How, thief: Option<SessionId>, picks: &[usize]) {
    let last = |n: &usize| model.leases.len().checked_sub(n + 1).map(|at| model.leases[at]);
    let picked: Vec<(SessionId, Lease)> = picks.iter().filter_map(last).collect();
    let Some(from) = thief.or(picked.first().map(|p| p.0)) else { return };
    let leases: Vec<Lease> = picked.into_iter().map(|p| p.1).collect();
    let (now, request) = (room.now, room.request());
    let (board, log, leases_of) = (&mut room.board, &mut room.log, leases.iter().copied());
    match how {
        How::Complete => {
            board.complete(now, from, request, leases_of.map(|lease| Complete { lease, result: b"r" }), log);
        }
        How::Fail { delay_ms, permanent } => {
            board.fail(
                now,
                from,
                request,
                leases_of.map(|lease| Fail { lease, delay_ms, permanent, error: "e" }),
                log,
            );
        }
        How::Release { delay_ms } => {
            board.release(now, from, request, leases_of.map(|lease| Release { lease, delay_ms }), log);
        }
        How::Renew => board.renew(now, from, request, leases_of, log),
        How::Progress => {
            board.progress(
                from,
                request,
                leases_of.map(|lease| Progress { lease, value: 1, note: b"" }),
                log,
            );
        }
    }
    let right: Vec<bool> = leases.iter().map(|lease| model.settle(now, from, *lease, how)).collect();
    let (accepted, refused) = answer(room, request);
    assert_eq!(usize::from(accepted), right.iter().filter(|r| **r).count());
    let wrong = right.iter().enumerate().filter(|(_, r)| !**r).map(|(i, _)| i as u16);
    assert!(refused.iter().map(|r| r.index).eq(wrong));
}

/// The answer to a settlement, which was the last thing said.
fn answer(room: &Room, request: u32) -> (u16, &[Refused]) {
    let answer = [room.log.0.last(), room.log.2.last()].into_iter().flatten().find_map(|e| match e {
        Effect::Settled { request: r, accepted, refused, .. } if *r == request => {
            Some((*accepted, &refused[..]))
        }
        _ => None,
    });
    answer.expect("an answer")
}

/// Compares what was said with what the model expects.
fn judge(room: &Room, model: &mut Model, said: &[Effect], revocations: &[Lease]) {
    let mut revoked = Vec::new();
    let over = model.over(room.now);
    let mut answered = BTreeSet::new();
    for effect in said {
        match effect {
            Effect::Assign { to, given, .. } => model.assigned(room.now, *to, given.lease),
            Effect::Outcome { task, .. } => {
                let t = model.tasks.get_mut(&task.task).unwrap();
                assert_eq!(task.state, t.state);
                t.outcomes += 1;
            }
            Effect::Revoked { lease, .. } => revoked.push(*lease),
            Effect::Tasks { to, request, tasks } => {
                let (session, _, _, ids) = &model.waits[request];
                assert_eq!(session, to);
                assert!(tasks.iter().map(|t| t.task).eq(ids.iter().copied()));
                assert!(answered.insert(*request), "answered twice");
            }
            Effect::Accepted { refused, .. } => assert_eq!(refused, &[]),
            Effect::Settled { request, accepted, .. } => {
                let right = model.accepted.remove(request);
                assert!(right.is_none_or(|right| right == *accepted), "{right:?} are right, not {accepted}");
            }
            Effect::Progressed { .. } | Effect::Ok { .. } | Effect::Error { .. } => {}
        }
    }
    revoked.sort_by_key(|l| l.task);
    assert_eq!(revoked, revocations);
    // Time is looked at only when it passes: a wait may be over by the clock, but no later than at the next look.
    assert!(answered.is_subset(&over), "answered too early");
    let late = over.difference(&answered).filter(|r| model.waits[r].2 > room.now);
    assert_eq!(late.count(), 0, "a wait that is over is not answered");
    model.waits.retain(|request, _| !answered.contains(request));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn any_calls_keep_the_rules_and_replay_alike(ops in ops()) {
        let first = run(Durability::Memory, &lasting(), &ops);
        let second = run(Durability::Memory, &lasting(), &ops);
        prop_assert_eq!(&first.0, &second.0);
        prop_assert!(first.1.is_empty(), "a memory queue is in the journal");
        // With a disk that takes no time a journal changes nothing.
        let durable = run(Durability::Journal, &lasting(), &ops);
        prop_assert_eq!(&first.0, &durable.0);
        // On disk, tasks that come back to their queue pass those that wait there; all else is as it was.
        run(Durability::Journal, &spilling(0), &ops);
        // Where an outcome is makes no difference to anybody.
        run(Durability::Journal, &archiving(), &ops);
    }

    #[test]
    fn outcomes_in_the_journal_come_back(
        ops in ops(),
        disk in prop::collection::vec(any::<bool>(), 1..20),
        snapshot_at in 0..60_usize,
    ) {
        run_with_a_slow_disk(&Limits { spill_bytes: 0, lane_tasks_min: 2, ..archiving() }, &ops, &disk, snapshot_at);
    }

    #[test]
    fn whatever_is_committed_comes_back(
        ops in ops(),
        disk in prop::collection::vec(any::<bool>(), 1..20),
        snapshot_at in 0..60_usize,
    ) {
        run_with_a_slow_disk(&lasting(), &ops, &disk, snapshot_at);
    }

    #[test]
    fn whatever_waits_on_disk_comes_back(
        ops in ops(),
        disk in prop::collection::vec(any::<bool>(), 1..20),
        snapshot_at in 0..60_usize,
        spill_bytes in prop_oneof![Just(0), Just(270_000_usize)],
    ) {
        run_with_a_slow_disk(&spilling(spill_bytes), &ops, &disk, snapshot_at);
    }
}
