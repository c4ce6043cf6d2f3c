//! From the files of a directory to the state of a journal, or to a refusal that says where and why.
//!
//! The rule: only the end of the last segment may be cut, and only if no good later record follows it, because that is
//! what a crash leaves: one append in flight, not acknowledged. Whatever else does not hold together was durable once, so
//! nothing is repaired and nothing is changed.
//!
//! What remains behind the rule: a flipped bit in the very last record looks like a torn append, so that an acknowledged record can
//! be cut there. It is told ([`Recovered::cut`]), and every earlier record is beyond it. In a file that was another segment before it is
//! told unless the record's whole beginning is gone: what was there before looks like that as well.

use std::io;

use super::files::{File, Files};
use super::format::{self, NoSegment, SEGMENT_HEADER, SegmentHeader};
use super::scan::{Chain, FIRST_RECORD, Fault, Mark, SCAN_BYTES, Scanned, Tail, Window};
use crate::actors::journal::{Damage, Failed, OpenError, Position};

const RESTORE: &str = "nothing was changed: restore the file from a copy, or start from a snapshot that covers it \
    and move the files of older segments away; `hive journal verify` tells what else is wrong";

/// What opening a journal has found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Recovered {
    /// Last durable record.
    pub last: Position,
    /// The epoch that ruled last; 0 if none did.
    pub epoch: u32,
    /// Records verified.
    pub records: u64,
    /// Bytes verified.
    pub bytes: u64,
    /// What was cut off the end: a torn append that was never acknowledged, or, if a disk lost bits exactly there, the last record.
    pub cut: Option<Damage>,
}

/// A segment as recovery has found it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) first: u64,
    /// Last record; where the segment was not scanned, the one before the next segment.
    pub(super) last: u64,
    /// Behind the last record, bytes.
    pub(super) end: u64,
    /// `None`: not scanned, because a snapshot covers it.
    pub(super) marks: Option<Vec<Mark>>,
}

/// Everything that the writer goes on from.
#[derive(Debug)]
pub(super) struct State {
    pub(super) segments: Vec<Found>,
    pub(super) chain: Chain,
    pub(super) salt: u32,
    /// Where the last good record of the last segment is, `end` if there is none.
    pub(super) last_at: u64,
    pub(super) recovered: Recovered,
}

/// A failed call on a file.
pub(super) fn failed<F: Files>(what: &'static str, files: &F, name: &str, source: io::Error) -> Failed {
    Failed { what, place: files.place(name), source }
}

/// First positions of all segments, ascending.
pub(super) fn segments_in<F: Files>(files: &F) -> Result<Vec<u64>, Failed> {
    let names = files.list().map_err(|e| failed("list", files, "", e))?;
    let mut firsts: Vec<u64> = names.iter().filter_map(|n| format::position_in(n, ".seg")).collect();
    firsts.sort_unstable();
    Ok(firsts)
}

/// Opens a segment and believes its header, which must name the position that the file's name has. `end` is where its bytes
/// end that may be looked at; without it, the file's. `direct`: past the page cache.
pub(super) fn open_segment<F: Files>(
    files: &F,
    first: u64,
    buffer: usize,
    end: Option<u64>,
    direct: bool,
) -> Result<(Window<F::File>, SegmentHeader), OpenError> {
    let name = format::segment_name(first);
    let file = files.open(&name).map_err(|e| failed("open", files, &name, e))?;
    let end = end.map_or_else(|| file.size(), Ok).map_err(|e| failed("measure", files, &name, e))?;
    let mut window = match direct {
        true => Window::past_cache(file, end, buffer),
        false => Window::new(file, end, buffer.max(SEGMENT_HEADER as usize)),
    };
    let bytes =
        window.bytes(0, SEGMENT_HEADER as usize).map_err(|e| failed("read", files, &name, e))?.to_vec();
    let damage = |what: &str| {
        let (place, what) = (files.place(&name), what.to_owned());
        Damage { place, offset: 0, what, advice: RESTORE }
    };
    if end > format::SEGMENT_BYTES_MAX {
        Err(damage(&format!("{end} bytes are more than a segment can have")))?;
    }
    match SegmentHeader::decode(&bytes) {
        Ok(h) if h.first == first => Ok((window, h)),
        Ok(h) => Err(damage(&format!("the segment begins with record {}, its name tells {first}", h.first)))?,
        Err(NoSegment::Damaged(what)) => Err(damage(what))?,
        Err(NoSegment::Newer(found)) => {
            Err(OpenError::Newer { place: files.place(&name), found, known: format::VERSION })
        }
    }
}

/// The segments that `start` covers whole, ascending.
pub(super) fn covered<F: Files>(files: &F, start: Position) -> Result<Vec<u64>, Failed> {
    let mut firsts = segments_in(files)?;
    let needed = start.0.saturating_add(1);
    firsts.truncate(firsts.iter().rposition(|first| *first <= needed).unwrap_or(0));
    Ok(firsts)
}

/// Verifies a sealed segment by itself.
pub(super) fn scan_sealed<F: Files>(
    files: &F,
    first: u64,
    visit: &mut dyn FnMut(u64, &format::Header, u64),
) -> Result<Found, OpenError> {
    let name = format::segment_name(first);
    let (mut window, header) = open_segment(files, first, SCAN_BYTES, None, false)?;
    let chain = Chain { position: first - 1, crc: header.prev, epoch: header.epoch };
    let scanned = window.scan(FIRST_RECORD, header.salt, chain, &mut |h, at| visit(first, h, at));
    let scanned = scanned.map_err(|e| failed("read", files, &name, e))?;
    let last = scanned.chain.position;
    if scanned.fault != Fault::End {
        let (place, what) = (files.place(&name), scanned.fault.text(last + 1));
        return Err(Damage { place, offset: scanned.end, what, advice: RESTORE }.into());
    }
    Ok(Found { first, last, end: scanned.end, marks: Some(scanned.marks) })
}

/// Verifies the segments that hold what comes after `start` and finds the end. Changes nothing.
///
/// `visit` is given the header of each record, its segment and its offset there.
pub(super) fn examine<F: Files>(
    files: &F,
    start: Position,
    visit: &mut dyn FnMut(u64, &format::Header, u64),
) -> Result<Option<State>, OpenError> {
    let firsts = segments_in(files)?;
    let missing =
        |from, to| OpenError::Missing { place: files.place(""), from: Position(from), to: Position(to) };
    let needed = start.0.saturating_add(1);
    let Some(from) = firsts.iter().rposition(|first| *first <= needed) else {
        // A new journal has no segments; one with a snapshot has had some.
        return match firsts.first() {
            None if start == Position::NONE => Ok(None),
            None => Err(missing(1, start.0)),
            Some(first) => Err(missing(needed, first - 1)),
        };
    };
    let mut segments = firsts[..from].iter().zip(&firsts[1..]);
    let segments: Result<Vec<Found>, OpenError> = segments.try_fold(Vec::new(), |mut all, (first, next)| {
        let (window, _) = open_segment(files, *first, 0, None, false)?;
        all.push(Found { first: *first, last: next - 1, end: window.end(), marks: None });
        Ok(all)
    });
    let mut walk = Walk { files, state: None, segments: segments?, recovered: Recovered::default() };
    for (i, first) in firsts.iter().enumerate().skip(from) {
        walk.segment(*first, i + 1 == firsts.len(), visit)?;
    }
    let state = walk.finish();
    match &state {
        Some(s) if s.chain.position < start.0 => Err(missing(s.chain.position + 1, start.0)),
        _ => Ok(state),
    }
}

struct Walk<'f, F> {
    files: &'f F,
    /// The segment before: where its chain ended, and its salt.
    state: Option<(Chain, u32, u64)>,
    segments: Vec<Found>,
    recovered: Recovered,
}

impl<F: Files> Walk<'_, F> {
    fn segment(
        &mut self,
        first: u64,
        is_last: bool,
        visit: &mut dyn FnMut(u64, &format::Header, u64),
    ) -> Result<(), OpenError> {
        let (mut window, header) = open_segment(self.files, first, SCAN_BYTES, None, false)?;
        let chain = self.follows(first, &header)?;
        let name = format::segment_name(first);
        let read = |e| failed("read", self.files, &name, e);
        let mut records = 0;
        let scanned = window.scan(FIRST_RECORD, header.salt, chain, &mut |h, at| {
            records += 1;
            visit(first, h, at);
        });
        let scanned = scanned.map_err(read)?;
        self.recovered.records += records;
        self.recovered.bytes += scanned.end;
        if !is_last {
            self.is_whole(first, &scanned)?;
        } else {
            let tail = window.tail(scanned.end, header.salt, scanned.chain, header.used).map_err(read)?;
            self.recovered.cut = self.judge(first, &scanned, tail, window.end())?;
        }
        self.state = Some((scanned.chain, header.salt, scanned.last_at));
        self.segments.push(Found {
            first,
            last: scanned.chain.position,
            end: scanned.end,
            marks: Some(scanned.marks),
        });
        Ok(())
    }

    /// The chain that the segment's records go on with.
    fn follows(&self, first: u64, header: &SegmentHeader) -> Result<Chain, OpenError> {
        let told = Chain { position: first - 1, crc: header.prev, epoch: header.epoch };
        let chain = self.state.map_or(told, |(chain, ..)| chain);
        let last = chain.position;
        if last < told.position {
            let (from, to) = (Position(last + 1), Position(told.position));
            return Err(OpenError::Missing { place: self.files.place(""), from, to });
        }
        if last > told.position {
            let what = format!("the segment begins with record {first}, the one before it ends with {last}");
            return Err(self.damage(first, 16, what));
        }
        if chain != told {
            return Err(self.damage(first, 24, "the segment does not follow the one before it".into()));
        }
        Ok(chain)
    }

    /// A segment that has a successor was cut to its last record and made durable before that was made.
    fn is_whole(&self, first: u64, scanned: &Scanned) -> Result<(), OpenError> {
        match scanned.fault {
            Fault::End => Ok(()),
            fault => Err(self.damage(first, scanned.end, fault.text(scanned.chain.position + 1))),
        }
    }

    /// Whether what follows the last good record may be cut.
    fn judge(
        &self,
        first: u64,
        scanned: &Scanned,
        tail: Tail,
        end: u64,
    ) -> Result<Option<Damage>, OpenError> {
        let text = scanned.fault.text(scanned.chain.position + 1);
        let what = match (tail, scanned.fault) {
            (_, Fault::Misplaced(_)) => text,
            (Tail::Record(at, h), _) => format!("{text}, but a good record {} follows at {at}", h.position),
            (Tail::Suspicious(at), _) => {
                format!("{text}, and from {at} on too much looks like records to tell a torn end from damage")
            }
            (Tail::Clean, _) => return Ok(None),
            (Tail::Torn, _) => {
                return Ok(Some(Damage {
                    place: self.files.place(&format::segment_name(first)),
                    offset: scanned.end,
                    what: format!("{text}; {} bytes are cut", end - scanned.end),
                    advice: "an append that was torn by a crash looks like this, and it was not acknowledged; \
                        without a crash, suspect the disk",
                }));
            }
        };
        Err(self.damage(first, scanned.end, what))
    }

    fn damage(&self, first: u64, offset: u64, what: String) -> OpenError {
        let place = self.files.place(&format::segment_name(first));
        OpenError::Damaged(Damage { place, offset, what, advice: RESTORE })
    }

    fn finish(self) -> Option<State> {
        let (chain, salt, last_at) = self.state?;
        let last = Position(chain.position);
        let recovered = Recovered { last, epoch: chain.epoch, ..self.recovered };
        Some(State { segments: self.segments, chain, salt, last_at, recovered })
    }
}
