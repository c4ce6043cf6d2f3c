//! Records become decisions, each number and length of them judged.

use hive_proto::TaskState;

use super::super::spill::Run;
use super::{Decision, FETCHED, Labels, RECORDED, Records, Tag, Whole};
use crate::core::time::Tick;

/// A record that does not make sense although its checksum is right: written by another version, or by a bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("byte {at} of the record is not understood")]
pub struct BadRecord {
    /// Offset in the record, bytes.
    pub at: usize,
}

/// Calls `apply` for each decision of a record, in order, with the time of the record. `apply` gives `None` for one that cannot be.
///
/// # Errors
/// The first decision that is not understood.
pub(crate) fn read(
    body: &[u8],
    mut apply: impl FnMut(Tick, Decision<'_>) -> Option<()>,
) -> Result<(), BadRecord> {
    let mut r = Input(body);
    let all = (|| {
        let time = Tick(u64::from_le_bytes(*r.take(8)?.first_chunk()?));
        while !r.0.is_empty() {
            group(&mut r, |d| apply(time, d))?;
        }
        Some(())
    })();
    all.ok_or(BadRecord { at: body.len() - r.0.len() })
}

fn group(r: &mut Input<'_>, mut apply: impl FnMut(Decision<'_>) -> Option<()>) -> Option<()> {
    let tag = Tag::from_u8(r.byte()?)?;
    let count = u16::from_le_bytes(*r.take(2)?.first_chunk()?);
    let (lane, watcher) = if tag.has_lane() { (r.number32()?, r.number32()?) } else { (0, 0) };
    let follows = matches!(tag, Tag::Submit | Tag::Spilled);
    let mut seq = if follows { r.number()?.checked_sub(1)? } else { 0 };
    let (queue, mut completed) = if tag == Tag::Complete { (r.number32()?, r.number()?) } else { (0, 0) };
    for _ in 0..count {
        let decision = match tag {
            Tag::Epoch => Decision::Epoch(r.number32()?),
            Tag::Lane => lane_item(r)?,
            Tag::Count => Decision::Count { lane: r.number32()?, completed: r.number()? },
            Tag::Submit | Tag::Spilled => {
                seq = seq.checked_add(1)?;
                let (ext, payload) = (r.number()?, r.number()?);
                let ext = r.take(usize::try_from(ext).ok()?)?;
                let payload = r.take(usize::try_from(payload).ok()?)?;
                Decision::Submit { lane, watcher, seq, due: None, spilled: tag == Tag::Spilled, ext, payload }
            }
            Tag::Later => {
                let (seq, due) = (r.number()?, Some(Tick(r.number()?)));
                let (ext, payload) = (r.bytes()?, r.bytes()?);
                Decision::Submit { lane, watcher, seq, due, spilled: false, ext, payload }
            }
            Tag::Task => Decision::Task(whole(r, lane, watcher)?),
            Tag::Bits => Decision::Bits { lane, watcher, page: r.number()?, mask: r.number()? },
            Tag::Run => Decision::Run { lane, run: run(r)? },
            Tag::Outcomes => outcomes(r, lane)?,
            Tag::Complete => {
                seq = seq.wrapping_add(r.difference()?);
                completed = completed.checked_add(1)?;
                let (attempt, result) = (r.number32()?, r.bytes()?);
                Decision::Complete { lane: queue, completed, seq, attempt, result }
            }
            Tag::Retry | Tag::Bury | Tag::Cancel | Tag::Redrive | Tag::Purge => {
                seq = seq.wrapping_add(r.difference()?);
                settled(r, tag, seq)?
            }
        };
        apply(decision)?;
    }
    Some(())
}

fn outcomes<'a>(r: &mut Input<'a>, lane: u32) -> Option<Decision<'a>> {
    let (page, mask, until) = (r.number()?, r.number()?, Tick(r.number()?));
    let count = usize::try_from(r.number()?).ok()?;
    if count != 1 && count != mask.count_ones() as usize || mask == 0 {
        return None;
    }
    let start = r.0;
    for _ in 0..count {
        r.difference()?;
    }
    let records = Records { count, bytes: &start[..start.len() - r.0.len()] };
    Some(Decision::Outcomes { lane, page, mask, until, records })
}

fn lane_item<'a>(r: &mut Input<'a>) -> Option<Decision<'a>> {
    let (lane, queue) = (r.number32()?, r.text()?);
    let count = usize::try_from(r.number()?).ok()?;
    let start = r.0;
    for _ in 0..count {
        r.text()?;
    }
    let labels = Labels { count, bytes: &start[..start.len() - r.0.len()] };
    Some(Decision::Lane { lane, queue, labels })
}

fn settled<'a>(r: &mut Input<'a>, tag: Tag, seq: u64) -> Option<Decision<'a>> {
    Some(match tag {
        Tag::Retry => {
            let (attempt, failed, due) = (r.number32()?, r.number16()?, r.number()?);
            let due = (due > 0).then_some(Tick(due));
            Decision::Retry { seq, attempt, failed, due, error: r.text()? }
        }
        Tag::Bury => {
            let (attempt, failed) = (r.number32()?, r.number16()?);
            Decision::Bury { seq, attempt, failed, error: r.text()? }
        }
        Tag::Redrive => Decision::Redrive { seq },
        Tag::Purge => Decision::Purge { seq },
        _ => Decision::Cancel { seq },
    })
}

fn whole<'a>(r: &mut Input<'a>, lane: u32, watcher: u32) -> Option<Whole<'a>> {
    let (seq, state) = (r.number()?, r.byte()?);
    Some(Whole {
        lane,
        watcher,
        seq,
        state: TaskState::from_u8(state & !(FETCHED | RECORDED))?,
        fetched: state & FETCHED != 0,
        attempt: r.number32()?,
        failed: r.number16()?,
        attempts_max: r.number16()?,
        time: Tick(r.number()?),
        error: r.text()?,
        ext_len: r.number16()?,
        bytes: r.bytes()?,
        record: if state & RECORDED != 0 { r.number()? } else { 0 },
    })
}

fn run(r: &mut Input<'_>) -> Option<Run> {
    let (records, seqs) = ((r.number()?, r.number()?), (r.number()?, r.number()?));
    let sound = records.0 <= records.1 && seqs.0 <= seqs.1 && seqs.1 < u64::MAX;
    let (bytes, left) = (usize::try_from(r.number()?).ok()?, r.number()?);
    sound.then_some(Run { records, seqs, bytes, left })
}

/// What is left to read.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    #[inline]
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    #[inline]
    fn number(&mut self) -> Option<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn number32(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    fn number16(&mut self) -> Option<u16> {
        self.number()?.try_into().ok()
    }

    #[inline]
    pub(super) fn difference(&mut self) -> Option<u64> {
        let n = self.number()?;
        Some((n >> 1) ^ 0_u64.wrapping_sub(n & 1))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = self.number()?;
        self.take(usize::try_from(n).ok()?)
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}
