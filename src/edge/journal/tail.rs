//! Appending: the end of the last segment, and the one writer that may move it.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::blocks::{BLOCK, Blocks, write_all};
use super::files::{File, Files};
use super::format::{self, Header, SEGMENT_HEADER, SegmentHeader};
use super::recover::{State, failed};
use super::scan::{Chain, FIRST_RECORD, SCAN_BYTES, Window};
use super::{Options, Shared};
use crate::actors::journal::{
    AppendError, Failed, OpenError, Position, RemoveError, Resolved, Segment, Writer,
};
use crate::planted;

/// Longest name of a node in a fence, bytes.
const NODE_BYTES_MAX: usize = 256;
const RESERVE: &str = "reserve";

/// The end of the journal.
pub(super) struct Tail<F: Files> {
    files: F,
    options: Options,
    file: F::File,
    blocks: Blocks,
    /// First position of the segment.
    first: u64,
    salt: u32,
    /// The last durable record.
    chain: Chain,
    /// Where the next record goes, bytes.
    at: u64,
    /// Up to here the file has space that was written, bytes.
    prepared: u64,
    /// The epoch that may append.
    epoch: u32,
    reserve: bool,
    /// Files that were segments: their space is taken, and a disk syncs faster what it writes over.
    spares: Vec<String>,
    /// A sync failed: what is on the disk is unknown, and asking again would not tell.
    broken: Option<String>,
}

/// What a durable record has moved.
struct Appended {
    position: u64,
    offset: u64,
    end: u64,
}

impl<F: Files> Tail<F> {
    /// A new journal.
    pub(super) fn begin(files: &F, options: &Options) -> Result<Self, Failed> {
        let chain = Chain { position: 0, crc: 0, epoch: 0 };
        let header = SegmentHeader { salt: options.salt, first: 1, prev: 0, epoch: 0, used: false };
        let name = format::segment_name(1);
        let (file, _) = make(files, &header, None).map_err(|e| failed("make", files, &name, e))?;
        files.sync_dir().map_err(|e| failed("sync", files, "", e))?;
        let blocks = Blocks::new(&file, &header.encode(), options.direct);
        Ok(Self::at_end(files, options, (file, blocks, 1), (chain, options.salt), SEGMENT_HEADER))
    }

    /// Goes on behind the last good record.
    ///
    /// That record is written once more before it is synced: if its sync failed under the last process, the system may hold its
    /// pages for clean, so that they can be read but are not on the disk.
    pub(super) fn resume(files: &F, options: &Options, state: &State) -> Result<Self, Failed> {
        let last = state.segments.last().expect("a state has a segment");
        let name = format::segment_name(last.first);
        let file = files.open(&name).map_err(|e| failed("open", files, &name, e))?;
        file.set_len(last.end).map_err(|e| failed("cut", files, &name, e))?;
        let (file, held) =
            rewrite(file, state.last_at, last.end).map_err(|e| failed("rewrite", files, &name, e))?;
        file.sync_data().map_err(|e| failed("sync", files, &name, e))?;
        files.sync_dir().map_err(|e| failed("sync", files, "", e))?;
        let blocks = Blocks::new(&file, &held, options.direct);
        Ok(Self::at_end(files, options, (file, blocks, last.first), (state.chain, state.salt), last.end))
    }

    fn at_end(
        files: &F,
        options: &Options,
        (file, blocks, first): (F::File, Blocks, u64),
        (chain, salt): (Chain, u32),
        end: u64,
    ) -> Self {
        let (files, options) = (files.clone(), options.clone());
        let mut tail = Self {
            files,
            options,
            file,
            blocks,
            first,
            salt,
            chain,
            at: end,
            prepared: end,
            epoch: chain.epoch,
            reserve: false,
            spares: Vec::new(),
            broken: None,
        };
        tail.find_spares();
        tail.restore_reserve();
        tail.tell_synced(end);
        tail
    }

    /// First position of the segment that takes records.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The epoch that may append.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    fn may_append(&self, epoch: u32) -> Result<(), AppendError> {
        match &self.broken {
            Some(why) => Err(AppendError::Broken(why.clone())),
            None if epoch != self.epoch => Err(AppendError::Fenced(self.epoch)),
            None => Ok(()),
        }
    }

    /// One record: written, synced, and only then counted.
    fn append(&mut self, epoch: u32, ops: u32, body: &[u8]) -> Result<Appended, AppendError> {
        let stride = format::stride(body.len());
        if self.at + stride > self.options.segment_bytes {
            self.roll()?;
        }
        let (position, prev) = (self.chain.position + 1, self.chain.crc);
        let header = Header { len: 0, crc: 0, prev, position, epoch, ops }.seal(self.salt, body);
        self.write(&header, body)?;
        let forgotten =
            planted::is("skip_sync") || planted::is("sync_sometimes") && !position.is_multiple_of(16);
        if !forgotten {
            self.sync()?;
            self.tell_synced(self.at + stride);
        }
        let offset = self.at;
        self.at += stride;
        self.chain = Chain { position, crc: header.crc, epoch };
        Ok(Appended { position, offset, end: self.at })
    }

    /// Writes a record and what is prepared behind it; without space, once more with what can be given up, and nothing prepared.
    fn write(&mut self, header: &Header, body: &[u8]) -> Result<(), AppendError> {
        let mut ahead = self.ahead(header.stride());
        while let Err(e) = self.put(header, body, ahead) {
            self.is_full(&e, "write")?;
            if !self.give_up_space()? {
                return self.take_back();
            }
            ahead = 0;
        }
        Ok(())
    }

    /// A part of a record may be there, and with the zeroes behind it that can be the whole: makes sure that it never is one.
    fn take_back(&mut self) -> Result<(), AppendError> {
        if let Err(e) = self.file.set_len(self.at) {
            return Err(self.break_down("cut", &e));
        }
        self.prepared = self.at;
        self.sync()?;
        Err(AppendError::Full)
    }

    /// Zeroes to write behind the last block of a record of this length.
    fn ahead(&self, stride: u64) -> u64 {
        let end = (self.at + stride).next_multiple_of(BLOCK);
        if end <= self.prepared || stride >= self.options.large_bytes {
            return 0;
        }
        let to = (end + self.options.zero_ahead_bytes).min(self.options.segment_bytes);
        (to / BLOCK * BLOCK).saturating_sub(end)
    }

    fn put(&mut self, header: &Header, body: &[u8], ahead: u64) -> io::Result<()> {
        let parts = [&header.encode(), body, format::padding(body.len())];
        let written = self.blocks.append(&self.file, self.at, parts, ahead)?;
        self.prepared = self.prepared.max(written);
        Ok(())
    }

    /// Tells a test what a power loss would leave.
    fn tell_synced(&self, end: u64) {
        if planted::ON {
            planted::synced(&self.files.place(&format::segment_name(self.first)), end);
        }
    }

    fn sync(&mut self) -> Result<(), AppendError> {
        planted::before_sync();
        self.file.sync_data().map_err(|e| self.break_down("sync", &e))
    }

    /// Seals the last segment and makes the next one. Whatever fails for lack of space leaves the old one in use.
    fn roll(&mut self) -> Result<(), AppendError> {
        if self.prepared > self.at {
            self.file.set_len(self.at).map_err(|e| self.break_down("seal", &e))?;
            self.prepared = self.at;
            self.sync()?;
        }
        let Chain { position, crc, epoch } = self.chain;
        let (salt, first) = (SegmentHeader::salt_after(self.salt, position + 1), position + 1);
        let mut header = SegmentHeader { salt, first, prev: crc, epoch, used: false };
        let (file, prepared) = loop {
            let spare = self.spares.pop();
            header.used = spare.is_some();
            match make(&self.files, &header, spare.as_deref()) {
                Ok(made) => break made,
                // Somebody who needed space has removed it, or somebody copies it.
                Err(e) if spare.is_some() && e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => self.is_full(&e, "make the segment after")?,
            }
            if !self.give_up_space()? {
                return Err(AppendError::Full);
            }
        };
        self.files.sync_dir().map_err(|e| self.break_down("sync the directory of", &e))?;
        self.blocks.go_on(&file, &header.encode());
        (self.file, self.first, self.salt) = (file, header.first, header.salt);
        (self.at, self.prepared) = (FIRST_RECORD, prepared);
        Ok(())
    }

    /// Removes a segment that nobody needs, or keeps its file for the next one.
    fn retire(&mut self, first: u64) -> io::Result<()> {
        let (name, spare) = (format::segment_name(first), format::spare_name(first));
        if self.reserve && self.spares.len() < self.options.spares_max {
            self.files.rename(&name, &spare)?;
            self.spares.push(spare);
        } else {
            self.files.remove(&name)?;
        }
        self.files.sync_dir()
    }

    /// Takes over what was kept before, as much as may be.
    fn find_spares(&mut self) {
        let names = self.files.list().unwrap_or_default();
        for name in names.into_iter().filter(|n| format::position_in(n, format::SPARE).is_some()) {
            if self.spares.len() < self.options.spares_max {
                self.spares.push(name);
            } else {
                let _ = self.files.remove(&name); // only its space is missed, until the next start
            }
        }
    }

    /// `Ok` if it was for lack of space. Anything else ends this journal.
    fn is_full(&mut self, e: &io::Error, what: &str) -> Result<(), AppendError> {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ok(()),
            _ => Err(self.break_down(what, e)),
        }
    }

    fn break_down(&mut self, what: &str, e: &io::Error) -> AppendError {
        let why = format!("cannot {what} {}: {e}", self.files.place(&format::segment_name(self.first)));
        self.broken = Some(why.clone());
        AppendError::Broken(why)
    }

    /// Gives up space: files kept for later, then what was kept for the end. `false` if it was gone already.
    fn give_up_space(&mut self) -> Result<bool, AppendError> {
        let mut names = std::mem::take(&mut self.spares);
        if names.is_empty() {
            if !std::mem::take(&mut self.reserve) {
                return Ok(false);
            }
            names.push(RESERVE.into());
        }
        self.release(&names).map_err(|e| self.break_down("give up space for", &e)).map(|()| true)
    }

    /// Removes files. File systems give space back when that is durable.
    fn release(&self, names: &[String]) -> io::Result<()> {
        let remove = |name: &String| match self.files.remove(name) {
            // Somebody who needed space was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        names.iter().try_for_each(remove).and_then(|()| self.files.sync_dir())
    }

    /// Keeps space for the end. Twice as much must be there, or it would be gone again with the next append.
    fn restore_reserve(&mut self) -> bool {
        if self.reserve {
            return true;
        }
        let bytes = self.options.reserve_bytes;
        let keep = || {
            let file = self.files.open(RESERVE).or_else(|_| self.files.create(RESERVE));
            file.and_then(|f| f.allocate(bytes * 2).and_then(|()| f.set_len(bytes))).is_ok()
        };
        // Files that are kept for later are worth less.
        self.reserve = keep() || {
            let spares = std::mem::take(&mut self.spares);
            !spares.is_empty() && self.release(&spares).is_ok() && keep()
        };
        if !self.reserve {
            // What it has taken must not be missing elsewhere. If even that fails, the next start tries again.
            let _ = self.files.remove(RESERVE);
        }
        self.reserve
    }
}

/// Makes a segment under another name and renames it once it is whole, so that a segment always has a good header. Gives the file, and
/// up to where its space was written before.
fn make<F: Files>(files: &F, header: &SegmentHeader, spare: Option<&str>) -> io::Result<(F::File, u64)> {
    let name = format::segment_name(header.first);
    let new = format!("{name}.new");
    let file = match spare {
        None => files.create(&new),
        // Durable before it is written to: whatever the power leaves, it never has the names of both.
        Some(spare) => files
            .rename(spare, &new)
            .and_then(|()| files.sync_dir().map_err(|e| not_space(&e)))
            .and_then(|()| files.open(&new))
            // Somebody who copies it has it open under its old name.
            .and_then(|file| if file.is_free() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }),
    };
    let made = file.and_then(|file| {
        let bytes = header.encode();
        write_all(&file, &mut [IoSlice::new(&bytes)], 0, SEGMENT_HEADER)?;
        file.sync_data().map_err(|e| not_space(&e))?;
        files.rename(&new, &name)?;
        let prepared = file.size()?.max(FIRST_RECORD);
        Ok((file, prepared))
    });
    if made.is_err() {
        let _ = files.remove(&new);
    }
    made
}

/// A sync that failed is not tried again, for whatever reason it did.
fn not_space(e: &io::Error) -> io::Error {
    io::Error::other(format!("sync: {e}"))
}

/// Writes the same bytes again, so that the next sync is about them. Gives what the last block before `end` holds as well.
fn rewrite<F: File>(file: F, from: u64, end: u64) -> io::Result<(F, Vec<u8>)> {
    let mut window = Window::new(file, end, SCAN_BYTES);
    let mut at = from;
    while at < end {
        let bytes = window.bytes(at, SCAN_BYTES)?.to_vec();
        write_all(window.file(), &mut [IoSlice::new(&bytes)], at, bytes.len() as u64)?;
        at += bytes.len() as u64;
    }
    let held = window.bytes(end / BLOCK * BLOCK, BLOCK as usize)?.to_vec();
    Ok((window.into_file(), held))
}

/// The writer of a [`super::LocalJournal`]. Its appends are never [`AppendError::Unknown`]: a failed sync breaks the journal.
pub struct LocalWriter<F: Files> {
    shared: Arc<Shared<F>>,
    epoch: u32,
}

impl<F: Files> std::fmt::Debug for LocalWriter<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWriter").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl<F: Files> LocalWriter<F> {
    pub(super) fn fence(
        shared: &Arc<Shared<F>>,
        epoch: u32,
        node: &str,
    ) -> Result<(Self, Position), OpenError> {
        let mut tail = shared.tail.lock();
        if epoch <= tail.epoch {
            return Err(OpenError::Stale { asked: epoch, rules: tail.epoch });
        }
        let node = &node.as_bytes()[..node.len().min(NODE_BYTES_MAX)];
        let before = tail.epoch;
        tail.may_append(before).map_err(OpenError::Fence)?;
        let fence = shared.append(&mut tail, epoch, 0, node).map_err(OpenError::Fence)?;
        tail.epoch = epoch;
        Ok((Self { shared: shared.clone(), epoch }, fence))
    }
}

impl<F: Files> Shared<F> {
    fn append(&self, tail: &mut Tail<F>, epoch: u32, ops: u32, body: &[u8]) -> Result<Position, AppendError> {
        let done = tail.append(epoch, ops, body)?;
        let mut view = self.view.write();
        view.begun(tail.first);
        view.appended(done.position, done.offset, done.end);
        Ok(Position(done.position))
    }
}

impl<F: Files> Writer for LocalWriter<F> {
    fn batch_bytes_max(&self) -> usize {
        self.shared.options.batch_bytes_max
    }

    fn append(&mut self, body: &[u8], ops: u32) -> Result<Position, AppendError> {
        let bytes_max = self.batch_bytes_max();
        if body.len() > bytes_max || ops == 0 {
            return Err(AppendError::Invalid { bytes: body.len(), ops, bytes_max });
        }
        let mut tail = self.shared.tail.lock();
        tail.may_append(self.epoch)?;
        self.shared.append(&mut tail, self.epoch, ops, body)
    }

    fn resolve(&mut self) -> Result<Resolved, AppendError> {
        self.shared.tail.lock().may_append(self.epoch).map(|()| Resolved::Lost)
    }

    fn last(&self) -> Position {
        Position(self.shared.view.read().last())
    }

    fn low_space(&self) -> bool {
        !self.shared.tail.lock().reserve
    }

    fn restore_reserve(&mut self) -> bool {
        self.shared.tail.lock().restore_reserve()
    }

    fn segments(&self) -> Vec<Segment> {
        self.shared.view.read().segments()
    }

    fn is_cold(&mut self, first: Position) {
        if let Ok(file) = self.shared.files.open(&format::segment_name(first.0)) {
            file.is_cold();
        }
    }

    fn remove(&mut self, first: Position) -> Result<(), RemoveError> {
        let mut tail = self.shared.tail.lock();
        if tail.epoch != self.epoch {
            return Err(RemoveError::Fenced(tail.epoch));
        }
        match self.segments().iter().find(|s| s.first == first) {
            None => return Err(RemoveError::Unknown(first)),
            Some(s) if !s.sealed => return Err(RemoveError::Open(first)),
            Some(_) => self.shared.view.write().forget(first.0),
        }
        let failed = |e| failed("remove", &self.shared.files, &format::segment_name(first.0), e);
        tail.retire(first.0).map_err(|e| failed(e).into())
    }
}
