//! Messages larger than a frame.
//!
//! A frame longer than the receiver's `frame_bytes_max` (or than the sender finds polite) travels as fragments: frames
//! of operation `Fragment` with one stream id, whose payloads, put together, are the whole frame, prefix included. The
//! last one carries the flag `LAST`. Other frames may stand between fragments, so heartbeats and acknowledgements overtake.

use std::collections::HashMap;

use bytes::Bytes;

use crate::codec::cut;
use crate::error::{Code, WireError};
use crate::frame::{Flags, FrameRef, Op, PREFIX_LEN, Prefix, write_frame};

/// Fragmented messages that one side of a connection may have under way.
pub const STREAMS_MAX: usize = 16;

/// Writes `frame` (a complete frame, prefix included) as fragments with `fragment_bytes` of payload each.
///
/// # Panics
/// If `fragment_bytes` is 0.
pub fn split(frame: &[u8], stream: u32, fragment_bytes: usize, mut emit: impl FnMut(Vec<u8>)) {
    let mut pieces = frame.chunks(fragment_bytes).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { Flags::LAST } else { 0 };
        let mut out = Vec::with_capacity(PREFIX_LEN + piece.len());
        write_frame(&mut out, Op::Fragment, flags, stream, 0, &[], piece);
        emit(out);
    }
}

/// Puts fragments of one connection together.
#[derive(Debug, Default)]
pub struct Assembler {
    message_bytes_max: usize,
    streams: HashMap<u32, Stream>,
    bytes: usize,
}

#[derive(Debug)]
enum Stream {
    Filling(Vec<u8>),
    /// Refused once; the rest of it is dropped in silence.
    Refused,
}

impl Assembler {
    /// `message_bytes_max` bounds the sum of all messages under way, prefix included, bytes.
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, streams: HashMap::new(), bytes: 0 }
    }

    /// Changes the bound from here on, bytes; what is under way already may stand above it.
    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// Whether no message is under way, not even a refused one.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Bytes held for messages that are not complete.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes one fragment. Gives the whole frame, prefix included, with the last.
    ///
    /// # Errors
    /// `too_many_fragments`, `message_too_large`, or those of [`cut`] for the frame inside; each once for a
    /// message. The connection stays usable.
    pub fn push(&mut self, fragment: FrameRef<'_>) -> Result<Option<Bytes>, (u32, WireError)> {
        let stream = fragment.prefix.id;
        let last = fragment.prefix.flags.has(Flags::LAST);
        let result = self.fill(stream, fragment.payload, last);
        if result.is_err() || last {
            self.forget(stream);
        }
        if result.is_err() && !last && self.streams.len() < 4 * STREAMS_MAX {
            self.streams.insert(stream, Stream::Refused);
        }
        result
    }

    /// Refuses a fragment of which only the beginning is known, and with it its message. Gives the id of the message, 0
    /// where it is not known.
    pub fn refuse(&mut self, fragment: Prefix, piece: &[u8]) -> u32 {
        let stream = fragment.id;
        let id = match self.streams.get(&stream) {
            Some(Stream::Filling(message)) if !message.is_empty() => id_inside(message),
            Some(Stream::Refused) => 0,
            _ => id_inside(piece),
        };
        self.forget(stream);
        if !fragment.flags.has(Flags::LAST) && self.streams.len() < 4 * STREAMS_MAX {
            self.streams.insert(stream, Stream::Refused);
        }
        id
    }

    fn fill(&mut self, stream: u32, piece: &[u8], last: bool) -> Result<Option<Bytes>, (u32, WireError)> {
        if !self.streams.contains_key(&stream) && self.streams.len() >= STREAMS_MAX {
            let text = format!("{STREAMS_MAX} fragmented messages are under way already");
            return Err((id_inside(piece), WireError::new(Code::TooManyFragments, text)));
        }
        let Stream::Filling(message) =
            self.streams.entry(stream).or_insert_with(|| Stream::Filling(Vec::new()))
        else {
            return Ok(None);
        };
        message.extend_from_slice(piece);
        self.bytes += piece.len();
        let id = id_inside(message);
        if self.bytes > self.message_bytes_max {
            let text = format!("message longer than {} bytes", self.message_bytes_max);
            return Err((id, WireError::new(Code::MessageTooLarge, text)));
        }
        let limit = self.message_bytes_max.saturating_sub(PREFIX_LEN);
        let whole = cut(message, limit).map_err(|e| {
            let e = if e.code == Code::FrameTooLarge as u16 {
                WireError::new(
                    Code::MessageTooLarge,
                    format!("message longer than {} bytes", self.message_bytes_max),
                )
            } else {
                e
            };
            (id, e)
        })?;
        match (whole, last) {
            (Some(total), true) if total == message.len() => Ok(Some(std::mem::take(message).into())),
            (None, false) => Ok(None),
            (Some(total), false) if total == message.len() => Ok(None),
            _ => Err((id, WireError::new(Code::MalformedFrame, "the fragments do not add up to one frame"))),
        }
    }

    fn forget(&mut self, stream: u32) {
        self.streams.remove(&stream);
        // Few and short: the sum is cheaper to trust than a running difference.
        self.bytes =
            self.streams.values().map(|s| if let Stream::Filling(m) = s { m.len() } else { 0 }).sum();
    }
}

/// The id of the frame that begins with these bytes; 0 where they do not reach that far.
fn id_inside(message: &[u8]) -> u32 {
    message.get(8..12).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(frame: &[u8], stream: u32, n: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        split(frame, stream, n, |f| out.push(f));
        out
    }

    fn big() -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(&mut out, Op::Publish, 0, 77, 0, &[b"a"], &[5; 1000]);
        out
    }

    /// A reader without room for a fragment knows its prefix and a piece: the message is refused by its id, once, and the rest passes.
    #[test]
    fn a_fragment_that_does_not_fit_is_refused_with_its_message() {
        let message = big();
        let parts = frames(&message, 3, 400);
        let view = |n: usize| FrameRef::parse(&parts[n]).expect("whole");
        let mut asm = Assembler::new(4096);
        assert!(asm.is_idle());
        // In the middle of a message, whose beginning is here.
        assert_eq!(asm.push(view(0)), Ok(None));
        assert_eq!((asm.bytes(), asm.is_idle()), (400, false));
        assert_eq!(asm.refuse(view(1).prefix, &[]), 77);
        assert_eq!((asm.bytes(), asm.is_idle()), (0, false));
        assert_eq!(asm.refuse(view(1).prefix, &[]), 0, "it was told");
        assert_eq!(asm.push(view(2)), Ok(None), "the rest of it");
        assert!(asm.is_idle());
        // At its beginning, with enough of it to know the id, and without.
        assert_eq!(asm.refuse(view(0).prefix, &message[..20]), 77);
        assert_eq!(asm.refuse(view(2).prefix, &[]), 0);
        assert!(asm.is_idle(), "that was its last fragment");
        assert_eq!(asm.refuse(view(0).prefix, &message[..5]), 0);
    }

    #[test]
    fn the_bound_can_be_changed_between_messages() {
        let message = big();
        let mut asm = Assembler::new(100);
        let refused = asm.push(FrameRef::parse(&frames(&message, 1, 2000)[0]).expect("whole"));
        assert_eq!(refused.expect_err("too long").1.code, Code::MessageTooLarge as u16);
        asm.set_message_bytes_max(4096);
        let whole = asm.push(FrameRef::parse(&frames(&message, 1, 2000)[0]).expect("whole"));
        assert_eq!(whole.expect("fits").as_deref(), Some(&message[..]));
    }

    #[test]
    fn interleaved_messages_come_together() {
        let (a, b) = (big(), big());
        let mut asm = Assembler::new(4096);
        let mut got = 0;
        for (x, y) in frames(&a, 1, 100).iter().zip(&frames(&b, 2, 100)) {
            for f in [x, y] {
                if let Some(whole) = asm.push(FrameRef::parse(f).expect("whole")).expect("fine") {
                    assert_eq!(&whole[..], &a[..]);
                    got += 1;
                }
            }
        }
        assert_eq!((got, asm.bytes()), (2, 0));
    }

    #[test]
    fn too_large_is_refused_once_and_by_the_first_fragment() {
        let pieces = frames(&big(), 1, 100);
        let mut asm = Assembler::new(500);
        let mut errors = Vec::new();
        for p in &pieces {
            if let Err(e) = asm.push(FrameRef::parse(p).expect("whole")) {
                errors.push(e);
            }
        }
        assert_eq!(errors.len(), 1);
        assert_eq!((errors[0].0, errors[0].1.code), (77, Code::MessageTooLarge as u16));
        assert_eq!(asm.bytes(), 0);
        let mut small = Vec::new();
        write_frame(&mut small, Op::Ping, 0, 1, 0, &[], b"x");
        assert!(
            asm.push(FrameRef::parse(&frames(&small, 1, 100)[0]).expect("whole")).expect("usable").is_some()
        );
    }

    #[test]
    fn streams_are_bounded_and_sums_must_agree() {
        let piece = &frames(&big(), 0, 100)[0];
        let mut asm = Assembler::new(1 << 20);
        let mut codes = Vec::new();
        for stream in 0..100_u32 {
            let mut p = piece.clone();
            p[8..12].copy_from_slice(&stream.to_le_bytes());
            if let Err((id, e)) = asm.push(FrameRef::parse(&p).expect("whole")) {
                codes.push((id, e.code));
            }
        }
        assert_eq!(codes, vec![(77, Code::TooManyFragments as u16); 84]);
        let mut asm = Assembler::new(1 << 20);
        let mut p = piece.clone();
        p[6] = Flags::LAST as u8;
        assert_eq!(
            asm.push(FrameRef::parse(&p).expect("whole")).expect_err("short").1.code,
            Code::MalformedFrame as u16
        );
    }
}
