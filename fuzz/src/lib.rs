//! What each fuzz target does with its bytes. A target fails by a panic: in the decoder, or in a check of what it gave.

use bytes::BytesMut;
use hive_proto::codec::{FrameCodec, Frames, cut};
use hive_proto::fragment::{Assembler, STREAMS_MAX};
use hive_proto::frame::{FrameRef, HEADER_BYTES_MAX, PREFIX_LEN, Prefix};
use hive_proto::items::{self, Item};
use hive_proto::{Lease, TaskId, WireError, messages, names};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::Decoder;

/// A target: its name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 6] = [
    ("frames", frames),
    ("stream", stream),
    ("items", items),
    ("headers", headers),
    ("fragments", fragments),
    ("names", names),
];

/// Cuts frames out of the bytes and reads prefix, operation, flags and trace context of each.
pub fn frames(mut data: &[u8]) {
    while let Ok(Some(total)) = cut(data, data.len()) {
        let frame = FrameRef::parse(&data[..total]).expect("cut gives whole frames");
        assert_eq!(&frame.prefix.to_bytes()[..], &data[..PREFIX_LEN]);
        assert_eq!(Prefix::read(&frame.prefix.to_bytes()), frame.prefix);
        assert!(frame.header.len() <= HEADER_BYTES_MAX);
        assert_eq!(PREFIX_LEN + frame.header.len() + frame.payload.len(), total);
        let _ = frame.op();
        if let Ok((Some(trace), rest)) = frame.traced_header() {
            assert_eq!([&trace.0, rest].concat(), frame.header);
        }
        data = &data[total..];
    }
    let _ = Frames(data).count();
}

/// The first byte is the size of reads: frames must not depend on how their bytes arrive.
pub fn stream(data: &[u8]) {
    let Some((step, data)) = data.split_first() else { return };
    let mut codec = FrameCodec { frame_bytes_max: 4096 };
    let mut all = |step: usize| {
        let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
        for piece in data.chunks(step.max(1)) {
            buffer.extend_from_slice(piece);
            loop {
                match codec.decode(&mut buffer) {
                    Ok(Some(frame)) => got.push(frame.into_bytes()),
                    Ok(None) => break,
                    Err(_) => return (got, true),
                }
            }
        }
        (got, false)
    };
    assert_eq!(all(usize::from(*step)), all(data.len()));
}

/// The first byte is the kind of item, the next two their number. What is accepted must come back byte for byte.
pub fn items(data: &[u8]) {
    fn round<'a, T: Item<'a>>(payload: &'a [u8], count: u16) {
        let Ok(items) = items::check::<T>(payload, count) else { return };
        let (mut out, mut n) = (Vec::new(), 0);
        for item in items {
            item.write(&mut out);
            n += 1;
        }
        assert_eq!((n, &out[..]), (count, payload));
    }
    let [kind, a, b, payload @ ..] = data else { return };
    let count = u16::from_le_bytes([*a, *b]);
    match kind % 12 {
        0 => round::<items::Submit<'_>>(payload, count),
        1 => round::<items::Assign<'_>>(payload, count),
        2 => round::<items::Complete<'_>>(payload, count),
        3 => round::<items::Fail<'_>>(payload, count),
        4 => round::<items::Release>(payload, count),
        5 => round::<Lease>(payload, count),
        6 => round::<items::Progress<'_>>(payload, count),
        7 => round::<items::Progressed<'_>>(payload, count),
        8 => round::<items::Task<'_>>(payload, count),
        9 => round::<items::Revoked>(payload, count),
        10 => round::<items::Refused>(payload, count),
        _ => round::<TaskId>(payload, count),
    }
}

/// Every MessagePack header. What is accepted must survive being written and read again.
pub fn headers(data: &[u8]) {
    fn round<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(header: &[u8]) {
        let Ok(value) = messages::decode::<T>(header) else { return };
        assert_eq!(messages::decode::<T>(&messages::encode(&value)), Ok(value));
    }
    round::<messages::Hello>(data);
    round::<messages::Welcome>(data);
    round::<messages::Work>(data);
    round::<messages::Subscribe>(data);
    round::<messages::TaskOptions>(data);
    round::<messages::Drain>(data);
    round::<messages::TasksLost>(data);
    round::<WireError>(data);
}

/// The bytes are frames; each is pushed as a fragment, whatever its operation. Memory and streams stay within their limits.
pub fn fragments(data: &[u8]) {
    const MAX: usize = 2048;
    let mut assembler = Assembler::new(MAX);
    for frame in Frames(data) {
        if let Ok(Some(whole)) = assembler.push(frame) {
            assert!(FrameRef::parse(&whole).is_some() && whole.len() <= MAX);
        }
        assert!(assembler.bytes() <= MAX, "{} bytes in {STREAMS_MAX} streams", assembler.bytes());
    }
}

/// Every kind of name; a subject is also a pattern, a queue name also an agent id.
pub fn names(data: &[u8]) {
    if let Ok(subject) = names::subject(data) {
        assert_eq!((subject.as_bytes(), names::pattern(data)), (data, Ok(subject)));
    }
    if let Ok(queue) = names::queue(data) {
        assert_eq!(names::agent(data), Ok(queue));
        assert!(hive_proto::Partition::of_queue(queue).0 < hive_proto::ids::PARTITIONS);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let labels: Vec<String> = text.split(',').map(str::to_owned).collect();
        let _ = names::labels(&labels);
        if let Ok(task) = text.parse::<TaskId>() {
            assert_eq!(task.to_string(), text.to_ascii_lowercase());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_pass() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for (name, target) in TARGETS {
            let seeds = std::fs::read_dir(corpus.join(name)).expect("`cargo xtask fuzz` writes the seeds");
            let files: Vec<_> = seeds.map(|f| f.expect("entry").path()).collect();
            files.iter().for_each(|f| target(&std::fs::read(f).expect("seed")));
            assert!(!files.is_empty(), "no seeds for {name}");
            println!("{name}: {} seeds", files.len());
        }
    }
}
