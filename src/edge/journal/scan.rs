//! Reading a segment in one pass, with one buffer, believing nothing before its checksum.

use std::io;

use super::blocks::{Aligned, BLOCK};
use super::files::File;
use super::format::{ALIGN, Header, RECORD_HEADER, SEGMENT_HEADER, u32_at, u64_at};

/// Buffer of a scan, bytes: large enough that the disk streams, small enough to stay in the processor's cache.
pub(super) const SCAN_BYTES: usize = 1024 * 1024;
/// One mark of the index for so many bytes of a segment: 16 bytes of memory each, 256 KiB for 1 GiB of journal.
pub(super) const MARK_BYTES: u64 = 64 * 1024;
/// What is read at least where nothing before it was, bytes.
const JUMP_BYTES: usize = 128 * 1024;
/// What a search for records in a tail may hash, as a multiple of the tail's length. Only bytes made for it need more.
const SEARCH_FACTOR: u64 = 8;

/// A file seen through one buffer.
#[derive(Debug)]
pub(super) struct Window<F> {
    file: F,
    buf: Aligned,
    from: u64,
    filled: usize,
    end: u64,
    direct: bool,
}

/// Why no record is at a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The file ends here.
    End,
    /// Only a part of a header fits.
    Short,
    /// The magic is not there.
    Magic,
    /// It would end behind the file.
    Length(u32),
    /// The checksum does not hold.
    Checksum,
    /// A good record, but not the one that follows.
    Misplaced(Header),
}

impl Fault {
    pub(super) fn text(self, expected: u64) -> String {
        match self {
            Self::End => format!("the file ends before record {expected}"),
            Self::Short | Self::Magic => format!("record {expected} does not begin here"),
            Self::Length(len) => format!("record {expected} would end behind the file, with {len} bytes"),
            Self::Checksum => format!("the checksum of record {expected} does not hold"),
            Self::Misplaced(h) => {
                format!(
                    "record {} of epoch {} is here, which does not follow its predecessor; record {expected} was expected",
                    h.position, h.epoch
                )
            }
        }
    }
}

/// The last record seen: what the next one must fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) position: u64,
    pub(super) crc: u32,
    pub(super) epoch: u32,
}

impl Chain {
    fn is_followed_by(&self, h: &Header) -> bool {
        h.position == self.position + 1 && h.prev == self.crc && h.epoch >= self.epoch
    }
}

/// Where a position is in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) position: u64,
    pub(super) offset: u64,
}

/// Adds a mark if the last one is far enough away.
pub(super) fn mark(marks: &mut Vec<Mark>, position: u64, offset: u64) {
    if marks.last().is_none_or(|m| offset >= m.offset + MARK_BYTES) {
        marks.push(Mark { position, offset });
    }
}

/// What a scan has found.
#[derive(Debug)]
pub(super) struct Scanned {
    /// Behind the last good record, bytes.
    pub(super) end: u64,
    /// Where the last good record is; `end` if there is none.
    pub(super) last_at: u64,
    pub(super) chain: Chain,
    pub(super) marks: Vec<Mark>,
    /// Why it went no further.
    pub(super) fault: Fault,
}

impl<F: File> Window<F> {
    /// Sees the bytes of `file` before `end`. The buffer is no longer than that.
    pub(super) fn new(file: F, end: u64, buffer: usize) -> Self {
        let buffer = buffer.min(end.max(RECORD_HEADER as u64) as usize);
        Self { file, buf: Aligned::new(buffer), from: 0, filled: 0, end, direct: false }
    }

    /// The same past the page cache, if that is possible: for what is read once. A buffer of two blocks at least.
    pub(super) fn past_cache(file: F, end: u64, buffer: usize) -> Self {
        let buf = Aligned::new(buffer.max(2 * BLOCK as usize).next_multiple_of(BLOCK as usize));
        let direct = file.direct(true);
        Self { file, buf, from: 0, filled: 0, end, direct }
    }

    pub(super) fn file(&self) -> &F {
        &self.file
    }

    pub(super) fn into_file(self) -> F {
        self.file
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Sees more. What is in the buffer was before the old end and stays good.
    pub(super) fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Up to `want` bytes at an offset, at least one before the end; fewer where the buffer or the file ends.
    pub(super) fn bytes(&mut self, at: u64, want: usize) -> io::Result<&[u8]> {
        let want = want.min(self.room(at)).min(self.end.saturating_sub(at) as usize);
        if at < self.from || at + want as u64 > self.from + self.filled as u64 {
            self.fill(at, want)?;
        }
        let from = (at - self.from) as usize;
        Ok(&self.buf[from..from + want.min(self.filled - from)])
    }

    /// What the buffer holds if `at` is the first that is wanted, bytes.
    fn room(&self, at: u64) -> usize {
        let before = if self.direct { (at % BLOCK) as usize } else { 0 };
        self.buf.len() - before
    }

    /// What the buffer holds from an offset on, at least one byte before the end.
    fn buffered(&mut self, at: u64) -> io::Result<&[u8]> {
        self.bytes(at, 1)?;
        Ok(&self.buf[(at - self.from) as usize..self.filled])
    }

    /// Reads what comes at `at`, while nobody waits for it, unless enough of it is here. What cannot be read is told when it is wanted.
    pub(super) fn ahead(&mut self, at: u64) {
        let here = (self.from + self.filled as u64).saturating_sub(at) as usize;
        let all = self.room(at).min(self.end.saturating_sub(at) as usize);
        if here < all / 2 {
            let _ = self.fill(at, all);
        }
    }

    /// Reads ahead as far as the buffer goes, if what came before was read as well; but waits only for what is wanted.
    fn fill(&mut self, at: u64, want: usize) -> io::Result<()> {
        let before = if self.direct { (at % BLOCK) as usize } else { 0 };
        let follows = (self.from..=self.from + self.filled as u64).contains(&at);
        let ahead = (before + want).next_multiple_of(BLOCK as usize).max(JUMP_BYTES);
        let ahead = if follows { usize::MAX } else { ahead };
        self.keep_from(at - before as u64);
        let (left, want) = (self.end.saturating_sub(self.from) as usize, before + want);
        let most = if self.direct { left.next_multiple_of(BLOCK as usize) } else { left };
        let most = most.min(before + self.room(at)).min(ahead);
        while self.filled < want {
            let into = &mut self.buf[self.filled..most];
            match self.file.read_at(into, self.from + self.filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The file system took the setting, and would not read by it.
                Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                    self.file.direct(false);
                    self.direct = false;
                    return self.fill(at, want - before);
                }
                Err(e) => return Err(e),
            }
        }
        // What is behind the end may be in the middle of being written.
        self.filled = self.filled.min(left);
        Ok(())
    }

    /// The buffer begins with this place from now on, and keeps what it has of it: whole blocks past the page cache.
    fn keep_from(&mut self, from: u64) {
        let kept =
            (from >= self.from).then(|| (from - self.from) as usize).filter(|skip| *skip < self.filled);
        let filled = kept.map_or(0, |skip| self.filled - skip);
        let filled = if self.direct { filled / BLOCK as usize * BLOCK as usize } else { filled };
        if let Some(skip) = kept {
            self.buf.copy_within(skip..skip + filled, 0);
        }
        (self.from, self.filled) = (from, filled);
    }

    /// What looks like a header at `at` and could be whole.
    pub(super) fn header(&mut self, at: u64) -> io::Result<Result<Header, Fault>> {
        let left = self.end.saturating_sub(at);
        if left < RECORD_HEADER as u64 {
            return Ok(Err(if left == 0 { Fault::End } else { Fault::Short }));
        }
        let Some(header) = Header::decode(self.bytes(at, RECORD_HEADER)?) else {
            return Ok(Err(Fault::Magic));
        };
        Ok(if header.stride() > left { Err(Fault::Length(header.len)) } else { Ok(header) })
    }

    /// The record at `at`, if its checksum holds. Its body goes through the buffer, into `body` if that is wanted.
    pub(super) fn record(
        &mut self,
        at: u64,
        salt: u32,
        mut body: Option<&mut Vec<u8>>,
    ) -> io::Result<Result<Header, Fault>> {
        let header = match self.header(at)? {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let (mut at, mut left) = (at + RECORD_HEADER as u64, header.stride() as usize - RECORD_HEADER);
        let (mut crc, mut wanted) = (header.begin_crc(salt), header.len as usize);
        while left > 0 {
            let part = self.bytes(at, left)?;
            crc = crc32c::crc32c_append(crc, part);
            let used = part.len().min(wanted);
            if let Some(body) = &mut body {
                // It grows with bytes that are there, whatever the length says.
                body.extend_from_slice(&part[..used]);
            }
            wanted -= used;
            (at, left) = (at + part.len() as u64, left - part.len());
        }
        Ok(if crc == header.crc { Ok(header) } else { Err(Fault::Checksum) })
    }

    /// Follows the records from `at` on as long as each is good and fits.
    pub(super) fn scan(
        &mut self,
        mut at: u64,
        salt: u32,
        mut chain: Chain,
        each: &mut dyn FnMut(&Header, u64),
    ) -> io::Result<Scanned> {
        let (mut marks, mut last_at) = (Vec::new(), at);
        let fault = loop {
            match self.record(at, salt, None)? {
                Ok(h) if chain.is_followed_by(&h) => {
                    mark(&mut marks, h.position, at);
                    each(&h, at);
                    chain = Chain { position: h.position, crc: h.crc, epoch: h.epoch };
                    (last_at, at) = (at, at + h.stride());
                }
                Ok(h) => break Fault::Misplaced(h),
                Err(fault) => break fault,
            }
        };
        Ok(Scanned { end: at, last_at, chain, marks, fault })
    }

    /// What is behind the last good record of the last segment. In a file that was `used` before, bytes there mean nothing unless they
    /// look like the record that would follow.
    pub(super) fn tail(&mut self, at: u64, salt: u32, chain: Chain, used: bool) -> io::Result<Tail> {
        let mut budget = (self.end - at).saturating_mul(SEARCH_FACTOR);
        let mut dirty = false;
        let mut place = at;
        while place < self.end {
            let here = self.buffered(place)?;
            let zeroes = here.iter().take_while(|b| **b == 0).count() as u64;
            let len = here.len() as u64;
            if zeroes == len {
                place += len;
                continue;
            }
            dirty = true;
            place += zeroes / ALIGN * ALIGN;
            // Records are no shorter than their headers.
            let most = chain.position + 1 + (place - at) / RECORD_HEADER as u64;
            if let Ok(h) = self.header(place)?
                && h.position > chain.position
                && (!used || h.position <= most && h.epoch >= chain.epoch)
            {
                let Some(left) = budget.checked_sub(h.stride()) else {
                    match used {
                        true => break, // what clients once put there must not keep the server from starting
                        false => return Ok(Tail::Suspicious(place)),
                    }
                };
                budget = left;
                if self.record(place, salt, None)?.is_ok() {
                    return Ok(Tail::Record(place, h));
                }
            }
            place += ALIGN;
        }
        let torn = dirty && (!used || self.is_begun(at, chain)?);
        Ok(if torn { Tail::Torn } else { Tail::Clean })
    }

    /// Whether something at `at` was meant to follow the chain: one flipped bit does not hide that.
    fn is_begun(&mut self, at: u64, chain: Chain) -> io::Result<bool> {
        let bytes = self.bytes(at, RECORD_HEADER)?;
        let follows =
            |b: &[u8]| u64_at(b, 16) == chain.position + 1 || chain.crc != 0 && u32_at(b, 12) == chain.crc;
        Ok(bytes.len() == RECORD_HEADER && follows(bytes))
    }
}

/// What is behind the last good record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// Zeroes, nothing, or what the file held before.
    Clean,
    /// Bytes of which none are a later record: an append that was not acknowledged.
    Torn,
    /// A good later record: what is between was not torn by a crash.
    Record(u64, Header),
    /// So many look-alikes that finding out would take too long.
    Suspicious(u64),
}

/// Where the first record of a segment is.
pub(super) const FIRST_RECORD: u64 = SEGMENT_HEADER;
