//! Reading by position: a sparse index in memory finds the neighbourhood, the records' own lengths the place.

use std::io;
use std::sync::Arc;

use super::Shared;
use super::files::Files;
use super::format::{self, SEGMENT_HEADER};
use super::recover::{Found, failed, open_segment, scan_sealed};
use super::scan::{FIRST_RECORD, Fault, Mark, Window, mark};
use crate::actors::journal::{Damage, OpenError, Position, ReadError, Reader, Record, Segment};

/// Buffer of a reader, bytes: a mark's neighbourhood and a record behind it.
const READ_BYTES: usize = 1024 * 1024;
const ADVICE: &str = "stop the server, run `hive journal verify`, and restore the file from a copy";

/// What is durable. The writer extends it after each sync, so that nobody reads what may yet be lost.
#[derive(Debug)]
pub(super) struct View {
    segments: Vec<Found>,
    last: u64,
}

/// The neighbourhood of a record.
#[derive(Clone, Copy, Debug)]
struct Spot {
    first: u64,
    end: u64,
    /// `None`: the segment has no index yet.
    mark: Option<Mark>,
}

impl View {
    pub(super) fn new(segments: Vec<Found>, last: u64) -> Self {
        Self { segments, last }
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Records go to this segment now; the one before it is sealed.
    pub(super) fn begun(&mut self, first: u64) {
        if self.segments.last().is_none_or(|s| s.first != first) {
            let (last, marks) = (first - 1, Some(Vec::new()));
            self.segments.push(Found { first, last, end: SEGMENT_HEADER, marks });
        }
    }

    /// A record of the last segment is durable.
    pub(super) fn appended(&mut self, position: u64, offset: u64, end: u64) {
        self.last = position;
        if let Some(segment) = self.segments.last_mut() {
            (segment.last, segment.end) = (position, end);
            mark(segment.marks.get_or_insert_default(), position, offset);
        }
    }

    pub(super) fn segments(&self) -> Vec<Segment> {
        let open = self.segments.len().saturating_sub(1);
        let tell = |(i, s): (usize, &Found)| Segment {
            first: Position(s.first),
            last: Position(s.last),
            bytes: s.end,
            sealed: i < open,
        };
        self.segments.iter().enumerate().map(tell).collect()
    }

    pub(super) fn forget(&mut self, first: u64) {
        self.segments.retain(|s| s.first != first);
    }

    fn find(&self, at: Position) -> Result<Spot, ReadError> {
        if at.0 > self.last {
            return Err(ReadError::NotYet { asked: at, last: Position(self.last) });
        }
        let i = self.segments.partition_point(|s| s.first <= at.0);
        let Some(segment) = i.checked_sub(1).map(|i| &self.segments[i]).filter(|s| s.last >= at.0) else {
            return Err(ReadError::Gone(at));
        };
        let mark = segment.marks.as_ref().map(|marks| {
            let i = marks.partition_point(|m| m.position <= at.0);
            i.checked_sub(1).map_or(Mark { position: segment.first, offset: FIRST_RECORD }, |i| marks[i])
        });
        Ok(Spot { first: segment.first, end: segment.end, mark })
    }

    /// What a scan has found in a segment that had no index.
    fn learn(&mut self, found: Found) {
        if let Some(segment) = self.segments.iter_mut().find(|s| s.first == found.first) {
            *segment = found;
        }
    }
}

/// Reads records of a [`super::LocalJournal`].
pub struct LocalReader<F: Files> {
    shared: Arc<Shared<F>>,
    open: Option<Open<F::File>>,
    direct: bool,
}

/// The segment read last.
struct Open<F> {
    first: u64,
    salt: u32,
    window: Window<F>,
    /// Behind the record read last.
    next: Mark,
}

impl<F: Files> Clone for LocalReader<F> {
    fn clone(&self) -> Self {
        Self { direct: self.direct, ..Self::new(&self.shared) }
    }
}

impl<F: Files> std::fmt::Debug for LocalReader<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalReader").field("segment", &self.open.as_ref().map(|o| o.first)).finish()
    }
}

impl<F: Files> Reader for LocalReader<F> {
    fn get(&mut self, at: Position) -> Result<Record, ReadError> {
        let mut spot = self.shared.view.read().find(at)?;
        if spot.mark.is_none() {
            if let Err(e) = self.index(spot.first) {
                self.shared.view.read().find(at)?; // removed while it was read?
                return Err(e);
            }
            spot = self.shared.view.read().find(at)?;
        }
        let got = self.read(spot, at);
        if got.is_err() {
            self.open = None;
            // Removed while it was read?
            self.shared.view.read().find(at)?;
        }
        got
    }

    fn last(&self) -> Position {
        Position(self.shared.view.read().last)
    }

    fn ahead(&mut self) {
        if let Some(open) = self.open.as_mut().filter(|_| self.direct) {
            open.window.ahead(open.next.offset);
        }
    }
}

impl<F: Files> LocalReader<F> {
    pub(super) fn new(shared: &Arc<Shared<F>>) -> Self {
        Self { shared: shared.clone(), open: None, direct: false }
    }

    /// The same for what is read once: past the page cache, if the journal is written so.
    #[must_use]
    pub fn past_cache(self) -> Self {
        Self { direct: self.shared.options.direct, ..self }
    }

    fn read(&mut self, spot: Spot, at: Position) -> Result<Record, ReadError> {
        let from = spot.mark.unwrap_or(Mark { position: spot.first, offset: FIRST_RECORD });
        let mut open = match self.open.take() {
            Some(mut open) if open.first == spot.first => {
                open.window.extend(spot.end);
                open
            }
            _ => self.open_segment(spot)?,
        };
        let near = (from.position..=at.0).contains(&open.next.position);
        let mut here = if near { open.next } else { from };
        let mut body = Vec::new();
        loop {
            // Of records that are passed only the length is used: one that lies leads to a place where the right record is not.
            let wanted = here.position == at.0;
            let got = match wanted {
                true => open.window.record(here.offset, open.salt, Some(&mut body)),
                false => open.window.header(here.offset),
            };
            let header = match got.map_err(|e| self.unreadable(spot.first, here.offset, e))? {
                Ok(h) if h.position == here.position => h,
                Ok(h) => return Err(self.damaged(spot.first, here, Fault::Misplaced(h))),
                Err(fault) => return Err(self.damaged(spot.first, here, fault)),
            };
            here = Mark { position: here.position + 1, offset: here.offset + header.stride() };
            if wanted {
                open.next = here;
                self.open = Some(open);
                return Ok(Record { position: at, epoch: header.epoch, ops: header.ops, body: body.into() });
            }
        }
    }

    fn open_segment(&self, spot: Spot) -> Result<Open<F::File>, ReadError> {
        let opened = open_segment(&self.shared.files, spot.first, READ_BYTES, Some(spot.end), self.direct);
        let (window, header) = opened.map_err(|e| self.closed(spot.first, e))?;
        let next = Mark { position: spot.first, offset: FIRST_RECORD };
        Ok(Open { first: spot.first, salt: header.salt, window, next })
    }

    /// Scans a segment that was passed over when the journal was opened, and keeps its index.
    fn index(&self, first: u64) -> Result<(), ReadError> {
        let found = scan_sealed(&self.shared.files, first, &mut |_, _, _| {});
        let found = found.map_err(|e| self.closed(first, e))?;
        self.shared.view.write().learn(found);
        Ok(())
    }

    fn damaged(&self, first: u64, here: Mark, fault: Fault) -> ReadError {
        self.damage(first, here.offset, fault.text(here.position))
    }

    fn damage(&self, first: u64, offset: u64, what: String) -> ReadError {
        let place = self.shared.files.place(&format::segment_name(first));
        ReadError::Damaged(Damage { place, offset, what, advice: ADVICE })
    }

    fn unreadable(&self, first: u64, offset: u64, e: io::Error) -> ReadError {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.damage(first, offset, "the file is shorter than it was".into())
            }
            _ => failed("read", &self.shared.files, &format::segment_name(first), e).into(),
        }
    }

    fn closed(&self, first: u64, e: OpenError) -> ReadError {
        match e {
            OpenError::Failed(f) => f.into(),
            OpenError::Damaged(d) => d.into(),
            other => self.damage(first, 0, other.to_string()),
        }
    }
}
