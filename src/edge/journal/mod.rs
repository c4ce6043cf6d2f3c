//! The journal of one machine: segment files in a directory.
//!
//! ```text
//!  00000000000000000001.seg     sealed: records up to its last byte
//!  00000000000000071204.seg     the last: records, then what was written ahead or was there before
//!  00000000000000000001.spare   was a segment, and becomes one again
//!  reserve                      space for the end, given up when the disk is full
//!  lock                         held by the one process that may write
//! ```
//!
//! An append is a `pwritev` past the page cache and an `fdatasync`. A disk syncs twice as fast where bytes are overwritten as where the
//! file grows, because new space is a second write of the file system. So segments that nobody needs are written over by the next ones; and where there are none, a
//! small append that runs out of prepared space carries zeroes behind it, and the next ones overwrite them. Large batches are bound by
//! bytes, not by syncs, and prepare nothing. Measured on a virtual disk with ext4, best of seven (`tests/speed.rs`), appends/s:
//!
//! | record | over a segment | where the file grows | the same, through the page cache |
//! |---:|---:|---:|---:|
//! | 16 kB | 11,500 | 10,300 | 8,300 |
//! | 64 kB | 9,700 (620 MB/s) | 7,000 (450 MB/s) | 5,900 (380 MB/s) |
//! | 256 kB | 4,700 (1.2 GB/s) | 3,000 (0.8 GB/s) | 2,300 (0.6 GB/s) |
//! | 1 MB | 1,980 (2.0 GB/s) | 1,450 (1.5 GB/s) | 760 (0.8 GB/s) |
//!
//! From memory, records of 1 kB are recovered with 6 GB/s and read in order with 5 GB/s; one at random takes 13 us.
//!
//! Memory: 16 bytes for each 64 KiB of segment, that is 256 KiB for 1 GiB; 1 MiB for each reader that reads; 1 MiB for appending.
//!
//! | module | |
//! |---|---|
//! | `files` | what is needed of a directory: a trait, the real one |
//! | `format` | bytes |
//! | `scan` | reading in one pass |
//! | `recover` | what may be cut and what is refused |
//! | `tail` | appending: the end of the last segment |
//! | `blocks` | how it reaches the disk |
//! | `reader` | reading by position |
//! | `snapshots` | two generations of state |
//! | `backup` | copying a journal that is in use |
//! | `offline` | looking at a journal that nobody uses |
//! | `sim` | the same journal in memory, with faults |

mod backup;
mod blocks;
mod files;
mod format;
mod offline;
mod reader;
mod recover;
mod scan;
pub mod sim;
mod snapshots;
mod tail;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

pub use backup::{COPY_END, Part, archive_bytes, segment_parts, snapshot_parts, write_archive};
pub use files::{Directory, File, Files};
pub use offline::{Entry, survey};
pub use reader::LocalReader;
pub use recover::Recovered;
pub use snapshots::{LocalSnapshots, SnapshotSource};
pub use tail::LocalWriter;

use crate::actors::journal::{Failed, Journal, OpenError, Position};
use reader::View;
use recover::failed;
use tail::Tail;

/// Sizes. What is out of its range is taken to the nearest end of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a segment, bytes: 4 KiB to 1 GiB. What is removed, is removed by segments.
    pub segment_bytes: u64,
    /// Longest body of a record, bytes; at most what fits into a segment. A record never spans segments.
    pub batch_bytes_max: usize,
    /// Zeroes written behind a small append that runs out of prepared space, bytes: up to 1 MiB.
    pub zero_ahead_bytes: u64,
    /// Records of so many bytes and more prepare nothing.
    pub large_bytes: u64,
    /// Appends go past the page cache, where the file system lets them.
    pub direct: bool,
    /// Segments that nobody needs, of which the files are kept for the next ones.
    pub spares_max: usize,
    /// Space kept for the end, bytes.
    pub reserve_bytes: u64,
    /// Secret of a new journal, random: what makes its records hard to forge in a payload. A journal that exists has its own.
    pub salt: u32,
}

impl Options {
    /// Segments of 64 MiB, batches up to 32 MiB, 1 MiB of zeroes ahead, 8 MiB of reserve.
    pub fn new(salt: u32) -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            batch_bytes_max: 32 * 1024 * 1024,
            zero_ahead_bytes: 1024 * 1024,
            large_bytes: 256 * 1024,
            direct: true,
            spares_max: 8,
            reserve_bytes: 8 * 1024 * 1024,
            salt,
        }
    }

    fn in_range(mut self) -> Self {
        self.segment_bytes = self.segment_bytes.clamp(4096, format::SEGMENT_BYTES_MAX);
        self.reserve_bytes = self.reserve_bytes.max(4096);
        self.zero_ahead_bytes = self.zero_ahead_bytes.min(blocks::ZEROES_MAX);
        let fits = (self.segment_bytes - format::SEGMENT_HEADER) as usize - format::stride(0) as usize;
        self.batch_bytes_max = self.batch_bytes_max.min(fits - format::ALIGN as usize);
        self
    }
}

/// What writers and readers share. Whoever holds any of them holds the lock of the directory.
struct Shared<F: Files> {
    files: F,
    options: Options,
    tail: Mutex<Tail<F>>,
    view: RwLock<View>,
    _lock: F::Lock,
}

/// A journal in a directory, verified and ready to be fenced.
pub struct LocalJournal<F: Files = Directory> {
    shared: Arc<Shared<F>>,
    recovered: Recovered,
}

impl<F: Files> std::fmt::Debug for LocalJournal<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalJournal").field("recovered", &self.recovered).finish_non_exhaustive()
    }
}

impl<F: Files> LocalJournal<F> {
    /// Takes the directory, verifies what comes after `start` (the position of the snapshot that replay begins with,
    /// [`Position::NONE`] without one), and cuts an append that a crash has torn. Segments that `start` covers may be
    /// missing; those that are there can be read, and are verified when they are.
    ///
    /// # Errors
    /// Another process has it, or it does not hold together, in which case nothing was changed.
    pub fn open(files: F, options: Options, start: Position) -> Result<Self, OpenError> {
        let options = options.in_range();
        let lock = files.lock().map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => OpenError::InUse(files.place("")),
            _ => failed("lock", &files, "lock", e).into(),
        })?;
        let state = recover::examine(&files, start, &mut |_, _, _| {})?;
        discard_unfinished(&files)?;
        let recovered = state.as_ref().map(|s| s.recovered.clone()).unwrap_or_default();
        let tail = match &state {
            Some(state) => Tail::resume(&files, &options, state)?,
            None => Tail::begin(&files, &options)?,
        };
        let mut view = View::new(state.map(|s| s.segments).unwrap_or_default(), recovered.last.0);
        view.begun(tail.first());
        let view = RwLock::new(view);
        let shared = Shared { files, options, tail: Mutex::new(tail), view, _lock: lock };
        Ok(Self { shared: Arc::new(shared), recovered })
    }

    /// What opening has found.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }
}

impl<F: Files> Journal for LocalJournal<F> {
    type Writer = LocalWriter<F>;
    type Reader = LocalReader<F>;

    fn fence(&mut self, epoch: u32, node: &str) -> Result<(LocalWriter<F>, Position), OpenError> {
        LocalWriter::fence(&self.shared, epoch, node)
    }

    fn epoch(&self) -> u32 {
        self.shared.tail.lock().epoch()
    }

    fn reader(&self) -> LocalReader<F> {
        LocalReader::new(&self.shared)
    }
}

/// Removes segments that were being made when the power went: they were never used.
fn discard_unfinished<F: Files>(files: &F) -> Result<(), Failed> {
    let names = files.list().map_err(|e| failed("list", files, "", e))?;
    for name in names.iter().filter(|n| n.ends_with(".seg.new")) {
        files.remove(name).map_err(|e| failed("remove", files, name, e))?;
    }
    Ok(())
}
