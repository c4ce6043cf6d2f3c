//! The board, seen from outside (scenarios) and from inside (`check`), alone and against a model.

mod archive;
mod assign;
mod check;
mod commit;
mod expire;
mod model;
mod ops;
mod settle;
mod spill;
mod submit;
mod waits;

use hive_proto::error::Code;
use hive_proto::items::{
    Assign, Complete, DELAY_BY_POLICY, Fail, Item, Items, Progress, Progressed, Refused, Release,
    RevokeReason, Revoked, Submit, Task,
};
use hive_proto::messages::{self, TaskOptions, Work};
use hive_proto::{Lease, SessionId, TaskId, TaskState, WireError, ids::Durability};

use super::submit::SubmitFrame;
use super::{Board, Identity, Limits, Policy, TaskSink, WaitMode};
use crate::core::time::Tick;

const ALICE: SessionId = SessionId(1);
const BOB: SessionId = SessionId(2);
const CAROL: SessionId = SessionId(3);
const EPOCH: u32 = 7;
const POLICY: Policy =
    Policy { lease_ms: 30_000, attempts_max: 3, retry_delay_ms: 1_000, durability: Durability::Memory };

/// An effect, owned.
#[derive(Clone, PartialEq, Debug)]
enum Effect {
    Accepted { to: SessionId, request: u32, first: TaskId, count: u16, refused: Vec<Refused> },
    Error { to: SessionId, request: u32, error: WireError },
    Ok { to: SessionId, request: u32 },
    Assign { to: SessionId, consumer: u32, given: Given },
    Settled { to: SessionId, request: u32, accepted: u16, refused: Vec<Refused> },
    Outcome { to: SessionId, task: Seen },
    Progressed { to: SessionId, task: TaskId, attempt: u32, value: u16, note: Vec<u8> },
    Revoked { to: SessionId, lease: Lease, reason: RevokeReason },
    Tasks { to: SessionId, request: u32, tasks: Vec<Seen> },
}

#[derive(Clone, PartialEq, Debug)]
struct Given {
    lease: Lease,
    lease_ms: u32,
    ext: Vec<u8>,
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Debug)]
struct Seen {
    task: TaskId,
    state: TaskState,
    attempt: u32,
    payload: Vec<u8>,
}

impl From<Task<'_>> for Seen {
    fn from(t: Task<'_>) -> Self {
        Self { task: t.task, state: t.state, attempt: t.attempt, payload: t.payload.to_vec() }
    }
}

/// A sink that keeps everything: what was said; the session that takes no more tasks, once it was given one; what is held
/// back, and whether what comes now is.
#[derive(Default, Debug)]
struct Log(Vec<Effect>, Option<SessionId>, Vec<Effect>, bool);

impl Log {
    fn push(&mut self, effect: Effect) {
        if self.3 { self.2.push(effect) } else { self.0.push(effect) }
    }
}

impl TaskSink for Log {
    fn accepted(
        &mut self,
        to: SessionId,
        request: u32,
        first: TaskId,
        count: u16,
        _: Durability,
        refused: &[Refused],
    ) {
        self.push(Effect::Accepted { to, request, first, count, refused: refused.to_vec() });
    }
    fn error(&mut self, to: SessionId, request: u32, error: WireError) {
        self.push(Effect::Error { to, request, error });
    }
    fn ok(&mut self, to: SessionId, request: u32) {
        self.push(Effect::Ok { to, request });
    }
    fn assign(&mut self, to: SessionId, consumer: u32, i: Assign<'_>) -> bool {
        let given =
            Given { lease: i.lease, lease_ms: i.lease_ms, ext: i.ext.to_vec(), payload: i.payload.to_vec() };
        self.push(Effect::Assign { to, consumer, given });
        self.1 != Some(to)
    }
    fn settled(&mut self, to: SessionId, request: u32, accepted: u16, refused: &[Refused]) {
        self.push(Effect::Settled { to, request, accepted, refused: refused.to_vec() });
    }
    fn outcome(&mut self, to: SessionId, item: Task<'_>) {
        self.push(Effect::Outcome { to, task: item.into() });
    }
    fn progressed(&mut self, to: SessionId, i: Progressed<'_>) {
        let note = i.note.to_vec();
        self.push(Effect::Progressed { to, task: i.task, attempt: i.attempt, value: i.value, note });
    }
    fn revoked(&mut self, to: SessionId, i: Revoked) {
        self.push(Effect::Revoked { to, lease: i.lease, reason: i.reason });
    }
    fn tasks<'a>(&mut self, to: SessionId, request: u32, items: impl Iterator<Item = Task<'a>>) {
        self.push(Effect::Tasks { to, request, tasks: items.map(Seen::from).collect() });
    }
    fn hold(&mut self, until_committed: bool) {
        self.3 = until_committed;
    }
}

/// A board, a clock and what the board said since it was last asked.
struct Room {
    board: Board,
    log: Log,
    now: Tick,
    request: u32,
    /// Records that were written.
    journal: Vec<Vec<u8>>,
}

fn limits() -> Limits {
    Limits {
        memory_bytes_max: 64 << 20,
        results_bytes_max: 1 << 20,
        archive_bytes_max: 1 << 20,
        result_ms: 60_000,
        queues_max: 4,
        queues_auto_create: true,
        consumers_max: 4,
        credit_tasks_max: 1_000,
        credit_bytes_max: 1 << 20,
        waits_max: 100,
        record_bytes: 1 << 23,
        gather_bytes_max: 1 << 22,
        spill_bytes: usize::MAX,
        lane_tasks_min: 0,
    }
}

impl Room {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: Limits) -> Self {
        let identity = Identity { epoch: EPOCH, first_seq: 1_000, hash_seed: 5 };
        Self::with_policy(limits, POLICY, identity)
    }

    fn with_policy(limits: Limits, policy: Policy, identity: Identity) -> Self {
        let board = Board::new(limits, policy, identity);
        Self { board, log: Log::default(), now: Tick(1_000_000_000), request: 0, journal: Vec::new() }
    }

    /// What the board said; its insides are checked on the way.
    fn said(&mut self) -> Vec<Effect> {
        self.board.check();
        std::mem::take(&mut self.log.0)
    }

    /// The one thing that the board said.
    fn answer(&mut self) -> Effect {
        let mut said = self.said();
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    }

    fn request(&mut self) -> u32 {
        self.request += 1;
        self.request
    }

    fn submit_frame(&mut self, frame: SubmitFrame<'_>, items: &[(&[u8], &[u8])]) {
        let mut bytes = Vec::new();
        for (ext, payload) in items {
            Submit { ext, payload }.write(&mut bytes);
        }
        let frame = SubmitFrame { bytes: bytes.len(), ..frame };
        self.board.submit(self.now, frame, Items::new(&bytes, items.len() as u16), &mut self.log);
    }

    fn frame(&mut self, from: SessionId, queue: &'static str) -> SubmitFrame<'static> {
        let request = self.request();
        SubmitFrame { from, request, queue: queue.as_bytes(), watch: false, trace: None, bytes: 0 }
    }

    /// Submits one task for each payload, unwatched.
    fn submit(&mut self, from: SessionId, queue: &'static str, payloads: &[&str]) -> Vec<TaskId> {
        let frame = self.frame(from, queue);
        let items: Vec<(&[u8], &[u8])> = payloads.iter().map(|p| (&[][..], p.as_bytes())).collect();
        self.submit_frame(frame, &items);
        self.accepted()
    }

    /// Submits one watched task with options.
    fn submit_one(
        &mut self,
        from: SessionId,
        queue: &'static str,
        options: &TaskOptions,
        payload: &str,
    ) -> TaskId {
        let frame = self.frame(from, queue);
        let ext = messages::encode(options);
        self.submit_frame(SubmitFrame { watch: true, ..frame }, &[(&ext, payload.as_bytes())]);
        self.accepted()[0]
    }

    fn accepted(&mut self) -> Vec<TaskId> {
        match self.answer() {
            Effect::Accepted { first, count, .. } => (0..count).map(|i| first.offset(u64::from(i))).collect(),
            other => panic!("not accepted: {other:?}"),
        }
    }

    fn work(&mut self, from: SessionId, id: u32, queue: &str, tasks: u32) {
        self.work_with(
            from,
            id,
            Work { queue: queue.into(), credit_tasks: tasks, credit_bytes: 1_000, labels: vec![] },
            &[],
        );
        assert_eq!(self.answer(), Effect::Ok { to: from, request: id });
    }

    #[allow(clippy::needless_pass_by_value)] // made on the spot by every caller
    fn work_with(&mut self, from: SessionId, id: u32, work: Work, offered: &[&str]) {
        let offered: Vec<String> = offered.iter().map(ToString::to_string).collect();
        self.board.work(from, id, &work, &offered, &mut self.log);
    }

    /// Pumps and returns who got what; nothing else may be said.
    fn pump(&mut self) -> Vec<(SessionId, u32, Given)> {
        self.board.pump(self.now, &mut self.log);
        self.board.check_pumped();
        let only = |e| match e {
            Effect::Assign { to, consumer, given } => (to, consumer, given),
            other => panic!("not an assignment: {other:?}"),
        };
        self.said().into_iter().map(only).collect()
    }

    /// Pumps and returns the leases given.
    fn leases(&mut self) -> Vec<Lease> {
        self.pump().into_iter().map(|(_, _, g)| g.lease).collect()
    }

    /// Pumps and returns the payloads given, joined.
    fn given(&mut self) -> String {
        let payloads = self.pump().into_iter().map(|(_, _, g)| String::from_utf8(g.payload).unwrap());
        payloads.collect::<Vec<_>>().join(" ")
    }

    /// One task, submitted by Alice and watched by her, leased by Bob.
    fn leased(&mut self, queue: &'static str) -> Lease {
        self.submit_one(ALICE, queue, &TaskOptions::default(), "t");
        self.work(BOB, 1, queue, 1);
        self.leases()[0]
    }

    fn complete(&mut self, from: SessionId, lease: Lease, result: &str) -> Result<(), Code> {
        let request = self.request();
        let items = [Complete { lease, result: result.as_bytes() }];
        self.board.complete(self.now, from, request, items.into_iter(), &mut self.log);
        self.settled(from, request)
    }

    fn fail(&mut self, from: SessionId, lease: Lease, delay_ms: u32, error: &str) -> Result<(), Code> {
        self.fail_with(from, Fail { lease, delay_ms, permanent: false, error })
    }

    fn fail_with(&mut self, from: SessionId, item: Fail<'_>) -> Result<(), Code> {
        let request = self.request();
        self.board.fail(self.now, from, request, [item].into_iter(), &mut self.log);
        self.settled(from, request)
    }

    fn release(&mut self, from: SessionId, lease: Lease, delay_ms: u32) -> Result<(), Code> {
        let request = self.request();
        self.board.release(self.now, from, request, [Release { lease, delay_ms }].into_iter(), &mut self.log);
        self.settled(from, request)
    }

    fn renew(&mut self, from: SessionId, lease: Lease) -> Result<(), Code> {
        let request = self.request();
        self.board.renew(self.now, from, request, [lease].into_iter(), &mut self.log);
        self.settled(from, request)
    }

    fn progress(&mut self, from: SessionId, lease: Lease, value: u16) -> Result<(), Code> {
        let request = self.request();
        self.board.progress(
            from,
            request,
            [Progress { lease, value, note: b"n" }].into_iter(),
            &mut self.log,
        );
        self.settled(from, request)
    }

    fn cancel(&mut self, from: SessionId, task: TaskId) -> Result<(), Code> {
        let request = self.request();
        self.board.cancel(self.now, from, request, [task].into_iter(), &mut self.log);
        self.settled(from, request)
    }

    /// The answer of a settlement of one item; what was said before it stays.
    fn settled(&mut self, from: SessionId, expected: u32) -> Result<(), Code> {
        self.board.check();
        let Some(Effect::Settled { to, request, accepted, refused }) = self.log.0.pop() else {
            panic!("no answer")
        };
        assert_eq!((to, request), (from, expected));
        match &refused[..] {
            [] if accepted == 1 => Ok(()),
            [Refused { index: 0, code, retry_after_ms: 0 }] if accepted == 0 => {
                Err(Code::from_u16(*code).unwrap())
            }
            other => panic!("{accepted} accepted, refused {other:?}"),
        }
    }

    /// Lets time pass and the board do what is due.
    fn after_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.board.expire_leases(self.now, &mut self.log);
        self.board.on_deadline(self.now, &mut self.log);
    }

    fn close(&mut self, session: SessionId) {
        self.board.session_closed(self.now, session, &mut self.log);
    }

    fn wait(&mut self, from: SessionId, mode: WaitMode, timeout_ms: u32, ids: &[TaskId]) -> u32 {
        let request = self.request();
        self.board.wait(self.now, from, request, mode, timeout_ms, ids.iter().copied(), &mut self.log);
        request
    }

    fn seen(&mut self, task: TaskId) -> Seen {
        let before = std::mem::take(&mut self.log.0);
        self.board.query(CAROL, 9, [task].into_iter(), &mut self.log);
        self.look_up();
        let Effect::Tasks { to: CAROL, request: 9, mut tasks } = self.answer() else { panic!("no answer") };
        self.log.0 = before;
        tasks.remove(0)
    }

    fn state(&mut self, task: TaskId) -> TaskState {
        self.seen(task).state
    }
}

fn code(effect: &Effect) -> Code {
    match effect {
        Effect::Error { error, .. } => error.code().unwrap(),
        other => panic!("not an error: {other:?}"),
    }
}

fn text(effect: &Effect) -> &str {
    match effect {
        Effect::Error { error, .. } => &error.text,
        other => panic!("not an error: {other:?}"),
    }
}
