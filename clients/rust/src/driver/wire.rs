//! What is to be written: one buffer of whole frames, and large messages that enter it a fragment at a time.

use std::collections::VecDeque;

use hive_proto::frame::write_frame;
use hive_proto::{Code, Flags, FrameBuilder, Op, PREFIX_LEN};

use crate::Error;

/// The driver takes no more from callers while this much waits to be written, bytes.
const HIGH_WATER: usize = 512 * 1024;
/// Frames beyond this go in fragments even where the server would take them whole, so that others overtake, bytes.
const WHOLE_MAX: usize = 256 * 1024;
const FRAGMENT: usize = 64 * 1024;

/// The outgoing side of one connection.
#[derive(Debug)]
pub(crate) struct Wire {
    out: Vec<u8>,
    /// How much of `out` is written.
    at: usize,
    /// Bytes of this connection written before `out`.
    before: u64,
    /// Sent one after the other: the server bounds the sum of the messages under way.
    large: VecDeque<Large>,
    whole_max: usize,
    message_max: usize,
    streams: u32,
}

#[derive(Debug)]
struct Large {
    frame: Vec<u8>,
    at: usize,
    stream: u32,
}

impl Wire {
    pub(crate) fn new(frame_bytes_max: u32, message_bytes_max: u32) -> Self {
        Self {
            out: Vec::with_capacity(16 * 1024),
            at: 0,
            before: 0,
            large: VecDeque::new(),
            whole_max: (frame_bytes_max as usize).min(WHOLE_MAX),
            message_max: message_bytes_max as usize,
            streams: 0,
        }
    }

    /// Appends a frame, or queues it as fragments. Gives the place in the stream where it starts.
    pub(crate) fn frame(
        &mut self,
        op: Op,
        flags: u16,
        id: u32,
        count: u16,
        header: &[u8],
        payload: &[u8],
    ) -> Result<u64, Error> {
        let length = header.len() + payload.len();
        let start = self.place();
        if length <= self.whole_max {
            write_frame(&mut self.out, op, flags, id, count, &[header], payload);
            return Ok(start);
        }
        if length + PREFIX_LEN > self.message_max {
            let text = format!("message of {length} bytes; the server takes {} at most", self.message_max);
            return Err(Error::local(Code::MessageTooLarge, text));
        }
        let mut frame = Vec::with_capacity(PREFIX_LEN + length);
        let builder = FrameBuilder::begin(&mut frame, op, flags, id, &[header]);
        frame.extend_from_slice(payload);
        builder.finish(&mut frame, count);
        self.streams = self.streams.wrapping_add(1);
        self.large.push_back(Large { frame, at: 0, stream: self.streams });
        Ok(start)
    }

    /// Moves fragments into the buffer while it is short.
    pub(crate) fn pump(&mut self) {
        while self.waiting() < FRAGMENT {
            let Some(large) = self.large.front_mut() else { return };
            let end = (large.at + FRAGMENT.min(self.whole_max)).min(large.frame.len());
            let last = end == large.frame.len();
            let flags = if last { Flags::LAST } else { 0 };
            write_frame(
                &mut self.out,
                Op::Fragment,
                flags,
                large.stream,
                0,
                &[],
                &large.frame[large.at..end],
            );
            large.at = end;
            if last {
                self.large.pop_front();
            }
        }
    }

    /// What is to be written next.
    pub(crate) fn unwritten(&self) -> &[u8] {
        &self.out[self.at..]
    }

    /// Notes that the first `n` unwritten bytes are written.
    pub(crate) fn wrote(&mut self, n: usize) {
        self.at += n;
        if self.at == self.out.len() {
            self.before += self.at as u64;
            self.at = 0;
            self.out.clear();
            self.out.shrink_to(2 * HIGH_WATER);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting() == 0 && self.large.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.waiting() < HIGH_WATER
            && self.large.iter().map(|l| l.frame.len() - l.at).sum::<usize>() < HIGH_WATER
    }

    /// Whether any of the frame that starts at `place` has left.
    pub(crate) fn has_left(&self, place: u64) -> bool {
        place < self.before + self.at as u64
    }

    /// Where the next frame starts, bytes since the connection began.
    pub(crate) fn place(&self) -> u64 {
        self.before + self.out.len() as u64
    }

    fn waiting(&self) -> usize {
        self.out.len() - self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hive_proto::Frames;
    use hive_proto::fragment::Assembler;

    #[test]
    fn large_messages_go_in_fragments_and_small_ones_overtake() {
        let mut wire = Wire::new(1 << 20, 16 << 20);
        wire.frame(Op::Publish, 0, 0, 0, b"s", &[7; 300_000]).expect("fits");
        wire.pump();
        wire.frame(Op::Ping, 0, 9, 0, b"", b"").expect("fits");
        let (mut bytes, mut assembler, mut order) = (Vec::new(), Assembler::new(1 << 20), Vec::new());
        while !wire.is_empty() {
            let piece = wire.unwritten().to_vec();
            bytes.extend_from_slice(&piece);
            wire.wrote(piece.len());
            wire.pump();
        }
        for f in Frames(&bytes) {
            if f.op() != Ok(Op::Fragment) {
                order.push(f.prefix.op);
            } else if let Some(whole) = assembler.push(f).expect("fine") {
                order.push(whole[5]);
                assert_eq!(whole.len(), 16 + 1 + 300_000);
            }
        }
        assert_eq!(order, [Op::Ping as u8, Op::Publish as u8]);
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_and_places_are_told() {
        let mut wire = Wire::new(1024, 2048);
        assert_eq!(
            wire.frame(Op::Publish, 0, 0, 0, b"s", &[0; 2048]).expect_err("large").code(),
            Some(Code::MessageTooLarge)
        );
        let first = wire.frame(Op::Ping, 0, 1, 0, b"", b"").expect("fits");
        let second = wire.frame(Op::Ping, 0, 2, 0, b"", b"").expect("fits");
        wire.wrote(16);
        assert!(wire.has_left(first) && !wire.has_left(second));
        wire.wrote(16);
        assert!(wire.has_left(second) && wire.is_empty());
    }
}
