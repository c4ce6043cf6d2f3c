//! The hot path: publishes become deliveries.
//!
//! A run is a stretch of publishes with one route. A frame joins it by looking like the frame before ([`join_alike`]), or
//! else by the route of its subject. Frames are patched in place as they join, so a run with one receiver is ready when
//! it ends.

use std::mem::take;

use bytes::{Buf, BytesMut};
use hive_proto::{Flags, FrameRef, Op, PREFIX_LEN, Prefix, SessionId, Trace};

use super::routes::{Many, Route, Routes};
use super::{Hub, HubSink, first_frame};

/// The first `bytes` of a chunk: `count` deliveries with one route.
struct Run {
    bytes: usize,
    count: u32,
    route: Route,
}

impl Hub {
    /// Applies the publishes at the start of `chunk`, up to the first frame that is none.
    pub(super) fn publish(&mut self, from: SessionId, chunk: &mut BytesMut, sink: &mut impl HubSink) {
        let mut run = Run { bytes: 0, count: 0, route: Route::Nobody };
        while let Some(frame) = publish_at(&chunk[run.bytes..]) {
            match frame.traced_header().and_then(|(_, subject)| self.route(subject)) {
                Ok(route) => {
                    if !route.same(&run.route) {
                        self.send(chunk, &mut run, sink);
                        run.route = route;
                    }
                    join_alike(&mut run, chunk, &self.routes, |id, count| sink.ok(from, id, count));
                }
                Err(error) => {
                    let (id, total) = (frame.prefix.id, PREFIX_LEN + frame.prefix.length as usize);
                    self.send(chunk, &mut run, sink);
                    chunk.advance(total);
                    self.refuse(from, id, error, sink);
                }
            }
        }
        self.send(chunk, &mut run, sink);
    }

    /// Cuts the run off the chunk and delivers it.
    fn send(&mut self, chunk: &mut BytesMut, run: &mut Run, sink: &mut impl HubSink) {
        let (bytes, count) = (take(&mut run.bytes), take(&mut run.count));
        if count == 0 {
            return;
        }
        self.counters.published += u64::from(count);
        self.counters.delivered += u64::from(count) * run.route.receivers() as u64;
        // Taking the whole chunk is cheaper than sharing it with an empty rest.
        let mut cut = || if bytes == chunk.len() { take(chunk) } else { chunk.split_to(bytes) };
        match &run.route {
            Route::Nobody => {
                self.counters.unheard += u64::from(count);
                chunk.advance(bytes);
            }
            Route::One(to) => sink.deliver(to.session, to.sub, count, cut().freeze()),
            Route::Many(many) => self.fan_out(many, cut(), count, sink),
        }
    }

    /// Delivers a run to several. Each group, and each number among the plain subscriptions, needs bytes of its own; the
    /// last takes the run itself.
    fn fan_out(&mut self, many: &Many, mut run: BytesMut, count: u32, sink: &mut impl HubSink) {
        let mut needed = many.groups.len() + many.plain.chunk_by(|a, b| a.sub == b.sub).count();
        let mut bytes = || {
            needed -= 1;
            if needed == 0 { take(&mut run) } else { run.clone() }
        };
        for group in &many.groups {
            self.share_out(*group, bytes(), count, sink);
        }
        for alike in many.plain.chunk_by(|a, b| a.sub == b.sub) {
            let mut frames = bytes();
            address(&mut frames, count, alike[0].sub);
            let frames = frames.freeze();
            for to in alike {
                sink.deliver(to.session, to.sub, count, frames.clone());
            }
        }
    }

    /// Delivers a run to a group: one stretch of it to each member, as even as can be, beginning with the member whose
    /// turn it is.
    fn share_out(&mut self, group: u32, mut run: BytesMut, count: u32, sink: &mut impl HubSink) {
        let members = self.subscriptions.members(group) as u32;
        let (each, more) = (count / members, count % members);
        let parts = self.subscriptions.take_turns(group, count as usize).take(members.min(count) as usize);
        for (i, to) in (0..).zip(parts) {
            let part = each + u32::from(i < more);
            let bytes = address(&mut run, part, to.sub);
            let frames = if bytes == run.len() { take(&mut run) } else { run.split_to(bytes) };
            sink.deliver(to.session, to.sub, part, frames.freeze());
        }
    }
}

/// The frame at the start of `bytes`, if it is a publish without a flag that does not belong there.
fn publish_at(bytes: &[u8]) -> Option<FrameRef<'_>> {
    let frame = FrameRef::parse(&bytes[..first_frame(bytes)?])?;
    let flagged_well = frame.prefix.flags.0 & !Op::Publish.allowed_flags() == 0;
    (frame.prefix.op == Op::Publish as u8 && flagged_well).then_some(frame)
}

/// Adds the publish behind the run, whose route is known to be the run's, and all that follow it with the same flags and
/// the same subject, or one that is remembered to have the same route. `reached` hears the ids of those that want to know
/// how many they reach.
fn join_alike(run: &mut Run, chunk: &mut [u8], routes: &Routes, mut reached: impl FnMut(u32, u16)) {
    let mut rest = &mut chunk[run.bytes..];
    let Some(&[_, _, _, _, version, op, f0, f1, ..]) = rest.first_chunk::<PREFIX_LEN>() else { return };
    let (kind, flags) = ([version, op, f0, f1], u16::from_le_bytes([f0, f1]));
    let acked = flags & Flags::ACK != 0;
    let subject_at = if flags & Flags::TRACE != 0 { Trace::LEN } else { 0 };
    let sub = if let Route::One(to) = &run.route { to.sub } else { 0 };
    let stamp = stamp(version, flags & Flags::TRACE, sub);
    let receivers = u16::try_from(run.route.receivers()).unwrap_or(u16::MAX);
    let mut subject: Option<&[u8]> = None;
    while let Some((prefix, body)) = rest.split_first_chunk_mut::<PREFIX_LEN>() {
        let Prefix { length, id, header_len, .. } = Prefix::read(prefix);
        let Some((body, behind)) = body.split_at_mut_checked(length as usize) else { break };
        let Some(own) = body.get(subject_at..usize::from(header_len)) else { break };
        let known = |before: &[u8]| own == before || routes.get(own).is_some_and(|r| r.same(&run.route));
        if prefix[4..8] != kind || !subject.is_none_or(known) {
            break;
        }
        if acked {
            reached(id, receivers);
        }
        prefix[4..12].copy_from_slice(&stamp);
        run.bytes += PREFIX_LEN + length as usize;
        run.count += 1;
        subject = Some(own);
        rest = behind;
    }
}

/// Bytes 4 to 12 of the prefix of a delivery.
fn stamp(version: u8, flags: u16, sub: u32) -> [u8; 8] {
    (u64::from(version) | u64::from(Op::Deliver as u8) << 8 | u64::from(flags) << 16 | u64::from(sub) << 32)
        .to_le_bytes()
}

/// Sets the subscription of the first `count` frames and tells their length in bytes.
fn address(frames: &mut [u8], count: u32, sub: u32) -> usize {
    let mut at = 0;
    for _ in 0..count {
        let Some(frame) = frames.get_mut(at..) else { break };
        let Some(prefix) = frame.first_chunk_mut::<PREFIX_LEN>() else { break };
        prefix[8..12].copy_from_slice(&sub.to_le_bytes());
        at += PREFIX_LEN + u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
    }
    at
}
