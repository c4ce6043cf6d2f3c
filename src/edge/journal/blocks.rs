//! What is appended goes to the disk in whole blocks, past the page cache where the file system lets it.
//!
//! ```text
//!  block of the disk  |-------------------|-------------------|-------------------|
//!  written before     ==========
//!  appended                     ######################
//!  one write          ===================================.....0000000000000000000 ...
//!                     held: written anew with what follows    zeroes ahead
//! ```
//!
//! The page cache is of no use to what is written once and seldom read: filling it takes more of the processor than all the rest of an
//! append, and its pages have to be thrown out again.

use std::io::{self, IoSlice};

use super::files::File;

/// Length of a block, bytes. Disks take multiples of 512, page caches and file systems write this much in any case.
pub(super) const BLOCK: u64 = 4096;
/// Zeroes that one append carries at most, bytes.
pub(super) const ZEROES_MAX: u64 = (ZEROES.0.len() * ZERO_SLICES) as u64;
const ZERO_SLICES: usize = 16;
/// What one write takes at most besides zeroes, bytes.
const PIECE: usize = 1024 * 1024;

#[repr(align(4096))]
struct Zeroes([u8; 64 * 1024]);
static ZEROES: Zeroes = Zeroes([0; 64 * 1024]);

/// Memory that begins with a block, as reads and writes past the page cache want it.
#[derive(Debug)]
pub(super) struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK as usize];
        let begin = bytes.as_ptr().align_offset(BLOCK as usize);
        Self { bytes, begin, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.begin..][..self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..][..self.len]
    }
}

/// The way of a file's end to the disk.
#[derive(Debug)]
pub(super) struct Blocks {
    /// One piece.
    buf: Aligned,
    /// What the file's last block holds, if it is not full.
    held: Vec<u8>,
    /// Writes go past the page cache.
    direct: bool,
}

impl Blocks {
    /// Goes on in a file that ends with `held`, which begins with a block. `direct`: past the page cache, if that is possible.
    pub(super) fn new<F: File>(file: &F, held: &[u8], direct: bool) -> Self {
        let mut blocks = Self { buf: Aligned::new(PIECE), held: Vec::with_capacity(BLOCK as usize), direct };
        blocks.go_on(file, held);
        blocks
    }

    /// Goes on in another file.
    pub(super) fn go_on<F: File>(&mut self, file: &F, held: &[u8]) {
        self.held.clear();
        self.held.extend_from_slice(held);
        self.direct = self.direct && file.direct(true);
    }

    /// Writes the parts at the end of the file, `at`, zeroes up to the end of a block, and `ahead` bytes of zeroes, whole blocks. Gives
    /// up to where something was written, at least what belongs to the parts.
    ///
    /// # Errors
    /// A part of it may have been written. The next call may begin at the same end.
    pub(super) fn append<F: File>(
        &mut self,
        file: &F,
        at: u64,
        parts: [&[u8]; 3],
        ahead: u64,
    ) -> io::Result<u64> {
        let (mut to, mut filled) = (at - self.held.len() as u64, self.held.len());
        self.buf[..filled].copy_from_slice(&self.held);
        for mut part in parts {
            while filled + part.len() > PIECE {
                let (now, later) = part.split_at(PIECE - filled);
                self.buf[filled..][..now.len()].copy_from_slice(now);
                self.write(file, PIECE, 0, to)?;
                (to, filled, part) = (to + PIECE as u64, 0, later);
            }
            self.buf[filled..][..part.len()].copy_from_slice(part);
            filled += part.len();
        }
        let whole = filled.next_multiple_of(BLOCK as usize);
        self.buf[filled..whole].fill(0);
        let written = self.write(file, whole, ahead as usize, to)?;
        self.held.clear();
        let last = filled / BLOCK as usize * BLOCK as usize;
        self.held.extend_from_slice(&self.buf[last..filled]);
        Ok(to + written / BLOCK * BLOCK)
    }

    /// Writes the first bytes of the buffer, and zeroes.
    fn write<F: File>(&mut self, file: &F, len: usize, ahead: usize, to: u64) -> io::Result<u64> {
        match write_all(file, &mut Self::parts(&self.buf[..len], ahead)[..], to, len as u64) {
            // The file system took the setting, and would not write by it: blocks of its own size, perhaps.
            Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                file.direct(false);
                self.direct = false;
                write_all(file, &mut Self::parts(&self.buf[..len], ahead)[..], to, len as u64)
            }
            written => written,
        }
    }

    fn parts(bytes: &[u8], mut ahead: usize) -> [IoSlice<'_>; 1 + ZERO_SLICES] {
        let mut parts = [IoSlice::new(&[]); 1 + ZERO_SLICES];
        parts[0] = IoSlice::new(bytes);
        for part in &mut parts[1..] {
            let zeroes = &ZEROES.0[..ahead.min(ZEROES.0.len())];
            (*part, ahead) = (IoSlice::new(zeroes), ahead - zeroes.len());
        }
        parts
    }
}

/// Writes at least `least` bytes of the parts. Gives how many.
pub(super) fn write_all<F: File>(
    file: &F,
    mut parts: &mut [IoSlice<'_>],
    at: u64,
    least: u64,
) -> io::Result<u64> {
    let mut written = 0;
    while written < least {
        match file.write_at(parts, at + written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                written += n as u64;
                IoSlice::advance_slices(&mut parts, n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(written)
}
