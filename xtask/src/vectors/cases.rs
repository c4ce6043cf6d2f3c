//! Vectors for every operation.

use hive_proto::frame::{Flags, FrameBuilder, Op, write_frame};
use hive_proto::ids::{Lease, Partition, TaskId, TaskState, Trace};
use hive_proto::items::{self, Item, RevokeReason};
use hive_proto::messages::{self, PROTOCOL_1_0, TaskOptions};
use hive_proto::{Code, Outcome, WireError};

use super::{Group, Means, Vector};

const TRACE: [u8; Trace::LEN] = [
    0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36, 0x00,
    0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7, 0x01,
];

/// The task that most vectors speak of: the first of the queue `builds`.
pub(super) fn task(seq: u64) -> TaskId {
    TaskId::new(Partition::of_queue("builds"), seq)
}

pub(super) fn lease(seq: u64, attempt: u32) -> Lease {
    Lease { task: task(seq), attempt, epoch: 3 }
}

/// A frame without items.
pub(super) fn plain(op: Op, flags: u16, id: u32, header: &[&[u8]], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, op, flags, id, 0, header, payload);
    out
}

/// A frame with items.
pub(super) fn batch<'a, T: Item<'a>>(op: Op, flags: u16, id: u32, header: &[&[u8]], list: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    let frame = FrameBuilder::begin(&mut out, op, flags, id, header);
    list.iter().for_each(|i| i.write(&mut out));
    frame.finish(&mut out, list.len() as u16);
    out
}

/// A frame that counts what its items do not: `Accepted`, `Settled`, `Ok`.
pub(super) fn counted(op: Op, id: u32, count: u16, header: &[u8], refused: &[items::Refused]) -> Vec<u8> {
    let mut payload = Vec::new();
    refused.iter().for_each(|r| r.write(&mut payload));
    let mut out = Vec::new();
    write_frame(&mut out, op, 0, id, count, &[header], &payload);
    out
}

fn packed<T: serde::Serialize>(op: Op, id: u32, header: &T) -> Vec<u8> {
    plain(op, 0, id, &[&messages::encode(header)], b"")
}

pub(super) fn hello() -> messages::Hello {
    messages::Hello {
        min: PROTOCOL_1_0,
        max: PROTOCOL_1_0,
        client: "example/1".into(),
        agent: "agent-1".into(),
        token: "secret".into(),
        labels: vec!["gpu".into(), "model=large".into()],
    }
}

pub(super) fn welcome() -> messages::Welcome {
    messages::Welcome {
        version: PROTOCOL_1_0,
        server: "hive/0.1.0".into(),
        agent: "agent-1".into(),
        session: 17,
        epoch: 3,
        heartbeat_ms: 3_000,
        dead_ms: 12_000,
        frame_bytes_max: 1 << 20,
        message_bytes_max: 64 << 20,
        credit_tasks: 65_536,
        credit_bytes: 64 << 20,
        draining: false,
    }
}

pub(super) fn groups() -> Vec<Group> {
    vec![connection(), errors(), submit(), work(), settle(), ask(), lost(), hub(), fragments()]
}

fn group(name: &'static str, about: &'static str, vectors: Vec<(&str, &str, Vec<u8>)>) -> Group {
    let vectors = vectors.into_iter().map(|(name, about, bytes)| Vector::frame(name, about, bytes)).collect();
    Group { name, about, vectors }
}

fn connection() -> Group {
    let anonymous =
        messages::Hello { agent: String::new(), token: String::new(), labels: Vec::new(), ..hello() };
    let draining = messages::Welcome { draining: true, session: 1 << 40, credit_bytes: 1 << 33, ..welcome() };
    let drain =
        messages::Drain { reason: "upgrade".into(), grace_ms: 30_000, servers: vec!["10.0.0.2:7878".into()] };
    group(
        "connection",
        "Login, heartbeats and the end of a connection.",
        vec![
            ("hello", "all fields", packed(Op::Hello, 1, &hello())),
            (
                "hello_anonymous",
                "empty agent, token and labels stand for none",
                packed(Op::Hello, 1, &anonymous),
            ),
            ("welcome", "the usual limits", packed(Op::Welcome, 1, &welcome())),
            (
                "welcome_draining",
                "large numbers, and a server that is about to stop",
                packed(Op::Welcome, 1, &draining),
            ),
            ("ping", "no payload", plain(Op::Ping, 0, 0, &[], b"")),
            ("ping_payload", "the payload comes back", plain(Op::Ping, 0, 0xffff_fffe, &[], b"12345678")),
            ("pong", "answers ping_payload", plain(Op::Pong, 0, 0xffff_fffe, &[], b"12345678")),
            ("drain", "the server is about to stop", packed(Op::Drain, 0, &drain)),
            ("goodbye", "leaves on purpose", plain(Op::Goodbye, 0, 0, &[], b"")),
        ],
    )
}

fn errors() -> Group {
    let full = WireError { retry_after_ms: Some(250), ..WireError::new(Code::MemoryFull, "memory is full") };
    let restarted = WireError::new(Code::Restarted, "the dispatcher restarted").maybe_done();
    let done = WireError { outcome: Outcome::Done, ..WireError::new(Code::Internal, "the answer got lost") };
    let newer =
        WireError { code: 9_999, retryable: true, ..WireError::new(Code::Internal, "from the future") };
    group(
        "errors",
        "Error frames.",
        vec![
            ("error", "not done, try later", packed(Op::Error, 7, &full)),
            ("error_unknown_outcome", "may have happened", packed(Op::Error, 8, &restarted)),
            ("error_done", "happened all the same", packed(Op::Error, 9, &done)),
            ("error_newer_code", "a code that this page does not list", packed(Op::Error, 10, &newer)),
            (
                "error_connection",
                "id 0: concerns the connection",
                packed(Op::Error, 0, &WireError::new(Code::BadMagic, "no HIVE")),
            ),
        ],
    )
}

fn submit() -> Group {
    let plain_item = items::Submit { ext: b"", payload: b"make" };
    let all = TaskOptions {
        labels: vec!["gpu".into()],
        max_attempts: Some(5),
        delay_ms: Some(60_000),
        trace: Some(Trace(TRACE)),
    };
    let all = messages::encode(&all);
    let labels = messages::encode(&TaskOptions { labels: vec!["gpu".into()], ..TaskOptions::default() });
    let list = [
        plain_item,
        items::Submit { ext: &all, payload: b"train" },
        items::Submit { ext: &labels, payload: b"" },
    ];
    let header = |first: TaskId, durability: u8| [&first.0.to_le_bytes()[..], &[durability]].concat();
    let refused = items::Refused { index: 1, code: Code::InvalidOptions as u16, retry_after_ms: 0 };
    let full = items::Refused { index: 2, code: Code::MemoryFull as u16, retry_after_ms: 250 };
    group(
        "submit",
        "Submitting tasks.",
        vec![
            (
                "submit_one",
                "default options, nothing pushed",
                batch(Op::Submit, 0, 2, &[b"builds"], &[plain_item]),
            ),
            (
                "submit_three",
                "options in full, in part, none; watched",
                batch(Op::Submit, Flags::WATCH, 3, &[b"builds"], &list),
            ),
            (
                "submit_traced",
                "the trace context of the request stands before the queue name",
                batch(Op::Submit, Flags::TRACE | Flags::WATCH, 4, &[&TRACE, b"builds"], &[plain_item]),
            ),
            ("accepted", "one task, memory", counted(Op::Accepted, 2, 1, &header(task(41), 0), &[])),
            (
                "accepted_in_part",
                "two of the three that were sent",
                counted(Op::Accepted, 3, 2, &header(task(42), 1), &[refused]),
            ),
            (
                "accepted_one_of_three",
                "two refused",
                counted(Op::Accepted, 4, 1, &header(task(44), 2), &[refused, full]),
            ),
        ],
    )
}

fn work() -> Group {
    let work = messages::Work {
        queue: "builds".into(),
        credit_tasks: 64,
        credit_bytes: 1 << 20,
        labels: vec!["gpu".into()],
    };
    let bare = messages::Work { labels: Vec::new(), ..work.clone() };
    let ext = messages::encode(&TaskOptions { trace: Some(Trace(TRACE)), ..TaskOptions::default() });
    let first = items::Assign { lease: lease(41, 1), lease_ms: 30_000, ext: b"", payload: b"make" };
    let again = items::Assign { lease: lease(42, 2), lease_ms: 30_000, ext: &ext, payload: b"train" };
    let credit = |tasks: u32, bytes: u64| [&tasks.to_le_bytes()[..], &bytes.to_le_bytes()].concat();
    group(
        "work",
        "Consumers and what they are given.",
        vec![
            ("work", "with labels of its own", packed(Op::Work, 5, &work)),
            ("work_without_labels", "offers those of the agent", packed(Op::Work, 6, &bare)),
            ("ok", "answers work", counted(Op::Ok, 5, 0, b"", &[])),
            ("assign", "one task", batch(Op::Assign, 0, 5, &[], &[first])),
            ("assign_two", "the second has been tried before", batch(Op::Assign, 0, 5, &[], &[first, again])),
            ("credit", "a new window", plain(Op::Credit, 0, 5, &[&credit(128, 1 << 33)], b"")),
            ("credit_none", "pauses", plain(Op::Credit, 0, 5, &[&credit(0, 0)], b"")),
            ("stop_work", "closes the consumer", plain(Op::StopWork, 0, 5, &[], b"")),
        ],
    )
}

fn settle() -> Group {
    let done = |seq, result| items::Complete { lease: lease(seq, 1), result };
    let fail =
        |seq, delay_ms, permanent, error| items::Fail { lease: lease(seq, 1), delay_ms, permanent, error };
    let progress = |seq, value, note| items::Progress { lease: lease(seq, 1), value, note };
    let stale = items::Refused { index: 1, code: Code::StaleLease as u16, retry_after_ms: 0 };
    group(
        "settle",
        "What a worker says about tasks it holds.",
        vec![
            (
                "complete",
                "two results",
                batch(Op::Complete, 0, 8, &[], &[done(41, &b"built"[..]), done(42, b"")]),
            ),
            ("complete_unanswered", "id 0", batch(Op::Complete, 0, 0, &[], &[done(41, b"built")])),
            (
                "complete_traced",
                "with a trace context",
                batch(Op::Complete, Flags::TRACE, 8, &[&TRACE], &[done(41, b"built")]),
            ),
            (
                "fail",
                "by policy, after a second, and for good",
                batch(
                    Op::Fail,
                    0,
                    9,
                    &[],
                    &[
                        fail(41, items::DELAY_BY_POLICY, false, "no space"),
                        fail(42, 1_000, false, "später"),
                        fail(43, 0, true, ""),
                    ],
                ),
            ),
            (
                "release",
                "at once, and in a second",
                batch(
                    Op::Release,
                    0,
                    10,
                    &[],
                    &[
                        items::Release { lease: lease(41, 1), delay_ms: 0 },
                        items::Release { lease: lease(42, 1), delay_ms: 1_000 },
                    ],
                ),
            ),
            ("renew", "two leases", batch(Op::Renew, 0, 11, &[], &[lease(41, 1), lease(42, 1)])),
            (
                "progress",
                "a share, and a note alone",
                batch(
                    Op::Progress,
                    0,
                    0,
                    &[],
                    &[progress(41, 2_500, b""), progress(42, items::NO_VALUE, b"linking")],
                ),
            ),
            ("settled", "all of two", counted(Op::Settled, 8, 2, b"", &[])),
            ("settled_in_part", "the second was stale", counted(Op::Settled, 8, 1, b"", &[stale])),
            (
                "settled_unasked",
                "a refusal of a request with id 0",
                counted(Op::Settled, 0, 0, b"", &[items::Refused { index: 0, ..stale }]),
            ),
        ],
    )
}

fn ask() -> Group {
    let ids = [task(41), task(42)];
    let wait = |mode: u8, ms: u32| [&[mode][..], &ms.to_le_bytes()].concat();
    let tasks = TaskState::ALL.map(|state| items::Task {
        task: task(41 + state as u64),
        state,
        attempt: u32::from(state as u8 > 2),
        payload: match state {
            TaskState::Completed => b"built",
            TaskState::Dead => b"no space",
            _ => b"",
        },
    });
    group(
        "ask",
        "States and outcomes.",
        vec![
            ("query", "two tasks", batch(Op::Query, 0, 12, &[], &ids)),
            ("wait_all", "for ten seconds", batch(Op::Wait, 0, 13, &[&wait(0, 10_000)], &ids)),
            ("wait_any", "as long as can be said", batch(Op::Wait, 0, 14, &[&wait(1, u32::MAX)], &ids)),
            ("cancel", "one task", batch(Op::Cancel, 0, 15, &[], &ids[..1])),
            ("redrive", "two dead letters", batch(Op::Redrive, 0, 17, &[], &ids[..2])),
            ("purge", "one dead letter", batch(Op::Purge, 0, 18, &[], &ids[..1])),
            (
                "list_dead",
                "the newest hundred",
                plain(Op::ListDead, 0, 16, &[&100_u32.to_le_bytes(), b"builds"], b""),
            ),
            ("tasks", "every state", batch(Op::Tasks, 0, 12, &[], &tasks)),
            ("tasks_none", "an empty answer", batch::<items::Task<'_>>(Op::Tasks, 0, 16, &[], &[])),
            ("result", "outcomes pushed", batch(Op::Result, 0, 0, &[], &tasks[4..6])),
            (
                "progressed",
                "a share with a note, and a note alone",
                batch(
                    Op::Progressed,
                    0,
                    0,
                    &[],
                    &[
                        items::Progressed { task: task(41), attempt: 1, value: 10_000, note: b"all" },
                        items::Progressed {
                            task: task(42),
                            attempt: 2,
                            value: items::NO_VALUE,
                            note: b"linking",
                        },
                    ],
                ),
            ),
        ],
    )
}

fn lost() -> Group {
    let reasons = [RevokeReason::Expired, RevokeReason::Cancelled, RevokeReason::Restarted];
    let revoked = reasons.map(|reason| items::Revoked { lease: lease(41 + reason as u64, 1), reason });
    let lost = messages::TasksLost { shard: 1, shards: 2, below: 1 << 32 };
    group(
        "lost",
        "What a client is told when something is void or gone.",
        vec![
            ("revoked", "every reason", batch(Op::Revoked, 0, 0, &[], &revoked)),
            ("tasks_lost", "partitions 1, 3, 5, ...", packed(Op::TasksLost, 0, &lost)),
            ("results_missed", "12 outcomes", plain(Op::ResultsMissed, 0, 0, &[&12_u64.to_le_bytes()], b"")),
            (
                "messages_lost",
                "1,000 messages of subscription 20",
                plain(Op::MessagesLost, 0, 20, &[&1_000_u64.to_le_bytes()], b""),
            ),
        ],
    )
}

fn hub() -> Group {
    let subscribe = messages::Subscribe { subject: "build.*.done".into(), group: None };
    let grouped = messages::Subscribe { subject: "build.>".into(), group: Some("loggers".into()) };
    let token = 0x0102_0304_0506_0708_u64.to_le_bytes();
    let mut reached = Vec::new();
    write_frame(&mut reached, Op::Ok, 0, 22, 3, &[], b"");
    let timeout = [&5_000_u32.to_le_bytes()[..], &[0; 4]].concat();
    group(
        "hub",
        "Messages between agents.",
        vec![
            ("subscribe", "a wildcard in the middle", packed(Op::Subscribe, 20, &subscribe)),
            ("subscribe_group", "the tail, in a group", packed(Op::Subscribe, 21, &grouped)),
            ("unsubscribe", "closes a subscription", plain(Op::Unsubscribe, 0, 20, &[], b"")),
            ("publish", "no answer", plain(Op::Publish, 0, 0, &[b"build.core.done"], b"ok")),
            (
                "publish_ack",
                "traced, with an answer",
                plain(Op::Publish, Flags::TRACE | Flags::ACK, 22, &[&TRACE, b"build.core.done"], b"ok"),
            ),
            ("ok_reached", "answers publish_ack", reached),
            ("deliver", "of publish", plain(Op::Deliver, 0, 20, &[b"build.core.done"], b"ok")),
            (
                "deliver_traced",
                "of publish_ack",
                plain(Op::Deliver, Flags::TRACE, 21, &[&TRACE, b"build.core.done"], b"ok"),
            ),
            (
                "deliver_unicode",
                "subjects are UTF-8",
                plain(Op::Deliver, 0, 20, &["größe.ä".as_bytes()], b""),
            ),
            ("request", "five seconds", plain(Op::Request, 0, 23, &[&timeout, b"ask.price"], b"tea")),
            ("requested", "at the responder", plain(Op::Requested, 0, 20, &[&token, b"ask.price"], b"tea")),
            ("reply", "with the token", plain(Op::Reply, 0, 0, &[&token], b"3.20")),
            ("response", "8 bytes to ignore", plain(Op::Response, 0, 23, &[&[0; 8]], b"3.20")),
            (
                "request_traced",
                "the trace context comes first",
                plain(Op::Request, Flags::TRACE, 24, &[&TRACE, &timeout, b"ask.price"], b""),
            ),
            ("direct", "to one agent", plain(Op::Direct, 0, 0, &[b"agent-2"], b"hi")),
            ("direct_ack", "with an answer", plain(Op::Direct, Flags::ACK, 25, &[b"agent-2"], b"hi")),
            ("broadcast", "to all others", plain(Op::Broadcast, 0, 0, &[], b"hi all")),
            ("message", "of direct", plain(Op::Message, 0, 0, &[b"agent-1"], b"hi")),
            (
                "message_broadcast",
                "of broadcast",
                plain(Op::Message, Flags::BROADCAST, 0, &[b"agent-1"], b"hi all"),
            ),
        ],
    )
}

fn fragments() -> Group {
    let payload: Vec<u8> = (0..100).collect();
    let whole = plain(Op::Publish, 0, 0, &[b"big"], &payload);
    let fragmented = Means::Fragmented { stream: 9, fragment_bytes: 48 };
    let exact = plain(Op::Publish, 0, 0, &[b"big"], &payload[..77]);
    let piece = plain(Op::Fragment, Flags::LAST, 9, &[], &plain(Op::Ping, 0, 1, &[], b""));
    Group {
        name: "fragments",
        about: "Frames that travel in pieces.",
        vectors: vec![
            Vector {
                means: fragmented,
                ..Vector::frame("fragmented", "three pieces, the last one shorter", whole)
            },
            Vector {
                means: Means::Fragmented { stream: 0, fragment_bytes: 48 },
                ..Vector::frame("fragmented_exactly", "two pieces of the same length", exact)
            },
            Vector::frame("fragment", "a whole ping in one piece", piece),
        ],
    }
}
