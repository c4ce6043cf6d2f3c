//! What one session is to get: answers and data, in the order in which they go out.

use std::sync::Arc;

use hive_proto::{FrameBuilder, FrameRef, Frames, Op};

use crate::actors::directory::Peer;
use crate::actors::outbox::FRAGMENT_BYTES;

#[derive(Debug, Default)]
pub(super) struct Dest {
    pub(super) peer: Option<Arc<Peer>>,
    pub(super) answers: Vec<u8>,
    pub(super) data: Vec<u8>,
    /// Frames that will travel as fragments, and before which byte of `data` they stand.
    pub(super) large: Vec<(usize, Vec<u8>)>,
    pub(super) large_bytes: usize,
    pub(super) open: Option<OpenFrame>,
    pub(super) touched: bool,
    /// Was full at the last push.
    pub(super) full: bool,
    pub(super) missed: u64,
    /// Requests whose answers were pushed before the batch was done.
    pub(super) early: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct OpenFrame {
    pub(super) op: Op,
    pub(super) id: u32,
    pub(super) frame: FrameBuilder,
    pub(super) count: u16,
}

impl Dest {
    /// Pushes what is gathered, which has become much. If the receiver does not keep up, its session says when it has.
    #[cold]
    pub(super) fn takes_more(&mut self) -> bool {
        self.close_frame();
        let answered: Vec<u32> = answers(self).collect();
        self.early.extend(answered);
        self.push();
        self.peer.as_ref().is_some_and(|peer| !(self.full && peer.outbox.stall()))
    }

    /// Whether what is gathered and what waits are more than the receiver should have unread.
    pub(super) fn is_full(&self) -> bool {
        self.peer.as_ref().is_none_or(|p| p.outbox.is_full(self.data.len() + self.large_bytes))
    }

    /// Pushes what has been gathered, where something goes to the outbox directly.
    pub(super) fn push_gathered(&mut self) {
        if !(self.data.is_empty() && self.answers.is_empty()) {
            self.push();
        }
    }

    /// Pushes what has been gathered, in its order.
    #[inline]
    pub(super) fn push(&mut self) {
        if !self.large.is_empty() {
            self.push_large();
        }
        if let Some(peer) = &self.peer {
            self.full = peer.outbox.push(&mut self.answers, &mut self.data);
        }
    }

    #[cold]
    pub(super) fn push_large(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut from = 0;
        for (at, frame) in std::mem::take(&mut self.large) {
            if let Some(peer) = &self.peer {
                peer.outbox.push(&mut self.answers, &mut data[from..at].to_vec());
                peer.outbox.push_large(&frame);
            }
            from = at;
        }
        self.data.extend_from_slice(&data[from..]);
        self.large_bytes = 0;
    }

    /// Drops what has been gathered.
    pub(super) fn clear(&mut self) {
        self.answers.clear();
        self.data.clear();
        self.large.clear();
        self.large_bytes = 0;
        self.missed = 0;
    }

    /// Takes out the answers to questions: their ids, and their bytes.
    pub(super) fn take_questions(&mut self) -> (Vec<u32>, usize) {
        self.close_frame();
        let (mut ids, mut bytes, mut from) = (Vec::new(), 0, 0);
        let (data, large) = (std::mem::take(&mut self.data), std::mem::take(&mut self.large));
        let mut is_question = |frame: &FrameRef<'_>| {
            let is = frame.prefix.op == Op::Tasks as u8;
            if is {
                ids.push(frame.prefix.id);
                bytes += frame.bytes();
            }
            is
        };
        let ends = large.iter().map(|(at, _)| *at).chain([data.len()]).collect::<Vec<_>>();
        let mut large = large.into_iter();
        for end in ends {
            for frame in Frames(&data[from..end]) {
                let next = from + frame.bytes();
                if !is_question(&frame) {
                    self.data.extend_from_slice(&data[from..next]);
                }
                from = next;
            }
            if let Some((_, frame)) = large.next() {
                if FrameRef::parse(&frame).is_some_and(|f| is_question(&f)) {
                    self.large_bytes -= frame.len();
                } else {
                    self.large.push((self.data.len(), frame));
                }
            }
        }
        (ids, bytes)
    }

    pub(super) fn close_frame(&mut self) {
        let Some(open) = self.open.take() else { return };
        let start = open.frame.start();
        open.frame.finish(&mut self.data, open.count);
        if self.data.len() - start > FRAGMENT_BYTES {
            // Only a single large item makes a frame this long.
            let large = self.data.split_off(start);
            self.large_bytes += large.len();
            self.large.push((start, large));
        }
    }
}

/// Requests whose answers have been gathered for a destination.
pub(super) fn answers(d: &Dest) -> impl Iterator<Item = u32> {
    let data = std::iter::once(&d.data[..]).chain(d.large.iter().map(|(_, frame)| &frame[..]));
    let in_data = data.flat_map(Frames).filter(|f| f.prefix.op == Op::Tasks as u8);
    Frames(&d.answers).chain(in_data).map(|f| f.prefix.id)
}
