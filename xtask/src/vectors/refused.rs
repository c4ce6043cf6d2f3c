//! Bytes that must be refused, with the code and the step of decoding that refuses them.

use hive_proto::frame::{FRAME_BYTES_MAX, Flags, LOGIN_FRAME_BYTES_MAX, Op};
use hive_proto::items::{self, EXT_BYTES_MAX};
use hive_proto::messages;
use hive_proto::{Code, TaskState};

use super::cases::{batch, hello, lease, plain, task};
use super::{Group, Means, Vector};

pub(super) fn group() -> Group {
    let vectors = [prefix(), operation(), header(), names(), payload()].into_iter().flatten().collect();
    Group { name: "refused", about: "Bytes that a receiver must refuse.", vectors }
}

fn refuse(name: &str, about: &str, at: &'static str, code: Code, bytes: Vec<u8>) -> Vector {
    let means = Means::Error { at, code, frame_bytes_max: FRAME_BYTES_MAX };
    Vector { means, ..Vector::frame(name, about, bytes) }
}

/// A ping with other bytes from `at` on.
fn ping_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = plain(Op::Ping, 0, 1, &[], b"");
    out[at..at + bytes.len()].copy_from_slice(bytes);
    out
}

fn prefix() -> Vec<Vector> {
    let cut = |name, about, code, bytes| refuse(name, about, "cut", code, bytes);
    let before_login =
        Means::Error { at: "cut", code: Code::FrameTooLarge, frame_bytes_max: LOGIN_FRAME_BYTES_MAX };
    let too_large = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    vec![
        cut("version_0", "there is no version 0", Code::UnsupportedVersion, ping_with(4, &[0])),
        cut("version_2", "a newer major version", Code::UnsupportedVersion, ping_with(4, &[2])),
        cut("length_bomb", "4 GiB announced, nothing sent", Code::FrameTooLarge, ping_with(0, &[0xff; 4])),
        cut("length_one_over", "one byte more than the limit", Code::FrameTooLarge, ping_with(0, &too_large)),
        Vector {
            means: before_login,
            ..Vector::frame("length_before_login", "4,097 bytes", ping_with(0, &4_097_u32.to_le_bytes()))
        },
        cut("header_outside", "a header longer than the frame", Code::MalformedFrame, ping_with(12, &[1])),
        cut(
            "header_too_long",
            "16,385 bytes of header",
            Code::MalformedFrame,
            [&ping_with(0, &20_000_u32.to_le_bytes())[..12], &16_385_u16.to_le_bytes(), &[0; 2]].concat(),
        ),
        cut(
            "http",
            "a request of another protocol",
            Code::UnsupportedVersion,
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ),
    ]
}

fn operation() -> Vec<Vector> {
    let op = |name, about, code, bytes| refuse(name, about, "op", code, bytes);
    vec![
        op("unknown_op", "0x7f", Code::UnknownOp, ping_with(5, &[0x7f])),
        op("unknown_op_0", "0x00", Code::UnknownOp, ping_with(5, &[0])),
        op("bad_flag", "LAST on a ping", Code::BadFlags, ping_with(6, &[Flags::LAST as u8])),
        op("unknown_flag", "the highest bit", Code::BadFlags, ping_with(7, &[0x80])),
        op(
            "trace_on_query",
            "no trace context there",
            Code::BadFlags,
            batch(Op::Query, Flags::TRACE, 1, &[&[0; 25]], &[task(1)]),
        ),
    ]
}

fn header() -> Vec<Vector> {
    let header = |name, about, op, id, h: &[u8]| {
        refuse(name, about, "header", Code::MalformedHeader, plain(op, 0, id, &[h], b""))
    };
    let good = messages::encode(&hello());
    let mut wrong_type = messages::encode(&messages::Subscribe { subject: "a".into(), group: None });
    // The text "a" becomes the integer 1 in a place where text must stand.
    wrong_type.truncate(wrong_type.len() - 2);
    wrong_type.push(1);
    let unknown_key = b"\x83\xa3min\xcd\x01\x00\xa3max\xcd\x01\x00\xa4when\x01";
    let twice = b"\x82\xa7subject\xa1a\xa7subject\xa1b";
    vec![
        refuse(
            "trace_too_short",
            "24 bytes",
            "header",
            Code::MalformedHeader,
            plain(Op::Publish, Flags::TRACE, 0, &[&[0; 24]], b""),
        ),
        header("unknown_field", "`when` is not of this version", Op::Hello, 1, unknown_key),
        header("missing_field", "a map without anything", Op::Hello, 1, &[0x80]),
        header("field_twice", "two subjects", Op::Subscribe, 1, twice),
        header("wrong_type", "a number for a text", Op::Subscribe, 1, &wrong_type),
        header("cut_header", "the map ends in the middle", Op::Hello, 1, &good[..10]),
        header("bytes_after_header", "one byte too many", Op::Hello, 1, &[&good[..], &[0xc0]].concat()),
        header("count_bomb", "a map of 2^32 - 1 entries", Op::Work, 1, &[0xdf, 0xff, 0xff, 0xff, 0xff]),
        header("nesting_bomb", "1,000 lists in one another", Op::Work, 1, &[0x91; 1_000]),
        header("no_header", "nothing at all", Op::Work, 1, b""),
        header("invalid_utf8", "a subject that is no text", Op::Subscribe, 1, b"\x81\xa7subject\xa1\xff"),
        header("short_credit", "11 bytes", Op::Credit, 1, &[0; 11]),
        header("long_credit", "13 bytes", Op::Credit, 1, &[0; 13]),
        header("wait_mode", "neither all nor any", Op::Wait, 1, &[2, 0, 0, 0, 0]),
        header("short_request", "no room for timeout and zero", Op::Request, 1, &[0; 7]),
        header("short_token", "7 bytes", Op::Reply, 0, &[0; 7]),
    ]
}

fn names() -> Vec<Vector> {
    let name =
        |name, about, code, op, h: &[u8]| refuse(name, about, "header", code, plain(op, 0, 1, &[h], b""));
    let agent = messages::encode(&messages::Hello { agent: "a b".into(), ..hello() });
    let labels = messages::encode(&messages::Hello { labels: vec!["l".into(); 33], ..hello() });
    let pattern = |p: &str| messages::encode(&messages::Subscribe { subject: p.into(), group: None });
    vec![
        name("queue_empty", "no name", Code::InvalidQueueName, Op::Submit, b""),
        name("queue_space", "a space", Code::InvalidQueueName, Op::Submit, b"two words"),
        name("queue_too_long", "129 bytes", Code::InvalidQueueName, Op::Submit, &[b'q'; 129]),
        name(
            "queue_not_ascii",
            "UTF-8 is not for queues",
            Code::InvalidQueueName,
            Op::Submit,
            "größe".as_bytes(),
        ),
        name("agent_space", "a space", Code::InvalidAgentId, Op::Hello, &agent),
        name("labels_too_many", "33", Code::InvalidLabel, Op::Hello, &labels),
        name("subject_wildcard", "publishing to a pattern", Code::InvalidSubject, Op::Publish, b"a.*"),
        name("subject_empty_token", "two dots", Code::InvalidSubject, Op::Publish, b"a..b"),
        name("subject_not_utf8", "no text", Code::InvalidSubject, Op::Publish, b"a.\xff"),
        name("subject_too_long", "256 bytes", Code::InvalidSubject, Op::Publish, &[b's'; 256]),
        name("pattern_inner_tail", "`>` not last", Code::InvalidSubject, Op::Subscribe, &pattern("a.>.b")),
        name(
            "pattern_part",
            "a wildcard that is no whole token",
            Code::InvalidSubject,
            Op::Subscribe,
            &pattern("a*"),
        ),
    ]
}

fn payload() -> Vec<Vector> {
    let items = |name, about, bytes| refuse(name, about, "items", Code::MalformedFrame, bytes);
    let with_count = |mut frame: Vec<u8>, count: u8| {
        frame[14] = count;
        frame
    };
    let one = batch(Op::Renew, 0, 1, &[], &[lease(41, 1)]);
    let ext = [0; EXT_BYTES_MAX + 1];
    let mut state = batch(
        Op::Tasks,
        0,
        1,
        &[],
        &[items::Task { task: task(1), state: TaskState::Lost, attempt: 0, payload: b"" }],
    );
    state[16 + 8] = 8;
    let mut bomb = batch(Op::Complete, 0, 1, &[], &[items::Complete { lease: lease(41, 1), result: b"" }]);
    bomb[16 + 16..].copy_from_slice(&[0xff; 4]);
    let mut utf8 = batch(
        Op::Fail,
        0,
        1,
        &[],
        &[items::Fail { lease: lease(41, 1), delay_ms: 0, permanent: false, error: "x" }],
    );
    utf8[16 + 23] = 0xff;
    let mut kind = batch(
        Op::Fail,
        0,
        1,
        &[],
        &[items::Fail { lease: lease(41, 1), delay_ms: 0, permanent: true, error: "" }],
    );
    kind[16 + 20] = 2;
    vec![
        items("count_too_high", "two items announced, one there", with_count(one.clone(), 2)),
        items("count_too_low", "none announced, one there", with_count(one.clone(), 0)),
        items("item_cut", "15 bytes of 16", plain_count(Op::Renew, &one[16..31])),
        items("length_in_item", "4 GiB of result announced", bomb),
        items(
            "options_too_long",
            "4,097 bytes",
            batch(Op::Submit, 0, 1, &[b"q"], &[items::Submit { ext: &ext, payload: b"" }]),
        ),
        items(
            "share_out_of_range",
            "10,001 of 10,000",
            batch(
                Op::Progress,
                0,
                1,
                &[],
                &[items::Progress { lease: lease(41, 1), value: 10_001, note: b"" }],
            ),
        ),
        items("state_out_of_range", "8", state),
        items("kind_out_of_range", "2", kind),
        items("fail_text_not_utf8", "no text", utf8),
        refuse("options_unknown", "an option that does not exist", "items", Code::InvalidOptions, {
            batch(Op::Submit, 0, 1, &[b"q"], &[items::Submit { ext: b"\x81\xa4when\x01", payload: b"" }])
        }),
    ]
}

fn plain_count(op: Op, payload: &[u8]) -> Vec<u8> {
    let mut out = plain(op, 0, 1, &[], payload);
    out[14] = 1;
    out
}
