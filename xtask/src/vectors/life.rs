//! A task from beginning to end, as vectors and as the example of PROTOCOL.md.

use std::fmt::Write;

use hive_proto::frame::{Flags, FrameRef, MAGIC, Op, PREFIX_LEN};
use hive_proto::ids::TaskState;
use hive_proto::{items, messages};

use super::cases::{batch, counted, hello, lease, plain, task, welcome};
use super::{Group, Vector};

struct Step {
    from_client: bool,
    name: &'static str,
    about: &'static str,
    bytes: Vec<u8>,
}

pub(super) fn group() -> Group {
    let vector = |s: Step| Vector::frame(&format!("life_{}", s.name), s.about, s.bytes);
    Group {
        name: "life",
        about: "One task from beginning to end, in the order of the frames; PROTOCOL.md shows the same bytes.",
        vectors: steps().into_iter().map(vector).collect(),
    }
}

/// The example of PROTOCOL.md: Markdown with a hex dump of every frame.
pub(crate) fn example() -> String {
    let mut out = String::from("```text\n");
    let _ = writeln!(out, "> the magic\n{}", dump(&MAGIC, ""));
    for step in steps() {
        let frame = FrameRef::parse(&step.bytes).expect("a whole frame");
        let p = frame.prefix;
        let op = Op::from_u8(p.op).expect("an operation");
        let arrow = if step.from_client { '>' } else { '<' };
        let flags = if p.flags.has(Flags::WATCH) { ", WATCH" } else { "" };
        let _ = writeln!(out, "\n{arrow} {op:?}: {}", step.about);
        let note = format!(
            "{} bytes follow{flags}, id {}, header {}, count {}",
            p.length, p.id, p.header_len, p.count
        );
        let _ = writeln!(out, "{}", dump(&step.bytes[..PREFIX_LEN], &note));
        for (part, note) in [(frame.header, "header"), (frame.payload, "payload")] {
            if !part.is_empty() {
                let _ = writeln!(out, "{}", dump(part, note));
            }
        }
    }
    out.push_str("```\n");
    out
}

fn steps() -> Vec<Step> {
    let step = |from_client, name, about, bytes| Step { from_client, name, about, bytes };
    let hello = messages::Hello { labels: Vec::new(), ..hello() };
    let work =
        messages::Work { queue: "builds".into(), credit_tasks: 8, credit_bytes: 65_536, labels: Vec::new() };
    let submit = items::Submit { ext: b"", payload: b"make all" };
    let accepted = [&task(41).0.to_le_bytes()[..], &[0]].concat();
    let assign = items::Assign { lease: lease(41, 1), lease_ms: 30_000, ext: b"", payload: b"make all" };
    let progress = items::Progress { lease: lease(41, 1), value: 5_000, note: b"" };
    let progressed = items::Progressed { task: task(41), attempt: 1, value: 5_000, note: b"" };
    let complete = items::Complete { lease: lease(41, 1), result: b"built" };
    let result = items::Task { task: task(41), state: TaskState::Completed, attempt: 1, payload: b"built" };
    vec![
        step(
            true,
            "hello",
            "who I am, in MessagePack",
            plain(Op::Hello, 0, 1, &[&messages::encode(&hello)], b""),
        ),
        step(
            false,
            "welcome",
            "who you are, and the limits",
            plain(Op::Welcome, 0, 1, &[&messages::encode(&welcome())], b""),
        ),
        step(
            true,
            "submit",
            "one task for the queue builds, watched",
            batch(Op::Submit, Flags::WATCH, 2, &[b"builds"], &[submit]),
        ),
        step(
            false,
            "accepted",
            "it is task 41 of its partition, kept in memory",
            counted(Op::Accepted, 2, 1, &accepted, &[]),
        ),
        step(
            true,
            "work",
            "a consumer, 8 tasks or 64 KiB at once",
            plain(Op::Work, 0, 3, &[&messages::encode(&work)], b""),
        ),
        step(false, "ok", "consumer 3 is open", plain(Op::Ok, 0, 3, &[], b"")),
        step(false, "assign", "first attempt, epoch 3, 30 s", batch(Op::Assign, 0, 3, &[], &[assign])),
        step(true, "progress", "half done; no answer wanted", batch(Op::Progress, 0, 0, &[], &[progress])),
        step(false, "progressed", "the watcher hears of it", batch(Op::Progressed, 0, 0, &[], &[progressed])),
        step(true, "complete", "the result", batch(Op::Complete, 0, 4, &[], &[complete])),
        step(false, "settled", "taken", counted(Op::Settled, 4, 1, b"", &[])),
        step(false, "result", "the watcher gets the outcome", batch(Op::Result, 0, 0, &[], &[result])),
        step(true, "goodbye", "leaves; the server closes", plain(Op::Goodbye, 0, 0, &[], b"")),
    ]
}

/// 16 bytes to a line: digits, then the note on the first line and the characters on all.
fn dump(bytes: &[u8], note: &str) -> String {
    let line = |(n, chunk): (usize, &[u8])| {
        let digits: Vec<_> = chunk.iter().map(|b| format!("{b:02x}")).collect();
        let chars: String =
            chunk.iter().map(|b| if b.is_ascii_graphic() || *b == b' ' { *b as char } else { '.' }).collect();
        let note = if n == 0 { note } else { "" };
        format!("  {:<47}  |{chars:<16}|  {note}", digits.join(" ")).trim_end().to_owned()
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}
