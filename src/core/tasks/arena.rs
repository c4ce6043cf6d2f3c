//! Where bytes of tasks live: bump-allocated chunks that are given back whole.
//!
//! A queue is first in, first out, so its bytes die in the order in which they were born and a chunk empties soon after
//! its first byte is freed. A general allocator would pay 8-16 bytes and two calls for each task; the chunk
//! pays one counter. What pins a chunk is counted with the chunk: [`Arena::bytes`] is memory held, not memory asked for.

const CHUNK_BYTES: usize = 256 * 1024;
/// Longer blobs get a chunk of their own, so that one of them never pins more than itself.
const OWN_CHUNK_BYTES: usize = 32 * 1024;
/// Empty chunks kept for the next burst.
const SPARE_MAX: usize = 4;

/// A run of bytes in an [`Arena`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Blob {
    chunk: u32,
    offset: u32,
    len: u32,
}

impl Blob {
    /// No bytes.
    pub(crate) const EMPTY: Self = Self { chunk: u32::MAX, offset: 0, len: 0 };

    /// Length, bytes.
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }
}

#[derive(Debug, Default)]
struct Chunk {
    buf: Vec<u8>,
    live: u32,
}

/// Chunks and their free places.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    spare: Vec<Vec<u8>>,
    current: Option<u32>,
    bytes: usize,
}

impl Arena {
    /// Memory held, bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Blobs that were put and not freed.
    #[cfg(test)]
    pub(crate) fn live(&self) -> usize {
        self.chunks.iter().map(|c| c.live as usize).sum()
    }

    /// Copies the parts in, one after the other.
    #[inline]
    pub(crate) fn put(&mut self, parts: [&[u8]; 2]) -> Blob {
        let len = parts[0].len() + parts[1].len();
        if len == 0 {
            return Blob::EMPTY;
        }
        let at = if len > OWN_CHUNK_BYTES { self.open(len) } else { self.room(len) };
        let chunk = &mut self.chunks[at as usize];
        let offset = chunk.buf.len() as u32;
        chunk.buf.extend_from_slice(parts[0]);
        chunk.buf.extend_from_slice(parts[1]);
        chunk.live += 1;
        Blob { chunk: at, offset, len: len as u32 }
    }

    /// The bytes of a blob that has not been freed.
    #[inline]
    pub(crate) fn get(&self, blob: Blob) -> &[u8] {
        if blob.len == 0 {
            return &[];
        }
        let from = blob.offset as usize;
        &self.chunks[blob.chunk as usize].buf[from..from + blob.len as usize]
    }

    /// Gives a blob back. Each blob is freed once; the table owns that rule.
    #[inline]
    pub(crate) fn free(&mut self, blob: Blob) {
        if blob.len == 0 {
            return;
        }
        let chunk = &mut self.chunks[blob.chunk as usize];
        chunk.live -= 1;
        if chunk.live == 0 {
            if self.current == Some(blob.chunk) {
                // Nothing is left in the chunk being filled: start over at its beginning, while it is warm.
                chunk.buf.clear();
            } else {
                self.close(blob.chunk);
            }
        }
    }

    /// Moves a blob to another arena.
    pub(crate) fn hand_over(&mut self, blob: Blob, to: &mut Self) -> Blob {
        let there = to.put([self.get(blob), &[]]);
        self.free(blob);
        there
    }

    #[inline]
    fn room(&mut self, len: usize) -> u32 {
        if let Some(at) = self.current {
            let buf = &self.chunks[at as usize].buf;
            if buf.capacity() - buf.len() >= len {
                return at;
            }
        }
        self.next_chunk()
    }

    #[cold]
    fn next_chunk(&mut self) -> u32 {
        if let Some(old) = self.current.take()
            && self.chunks[old as usize].live == 0
        {
            self.close(old);
        }
        let at = self.open(CHUNK_BYTES);
        self.current = Some(at);
        at
    }

    fn open(&mut self, capacity: usize) -> u32 {
        let buf = match self.spare.pop() {
            Some(buf) if capacity == CHUNK_BYTES => buf,
            other => {
                self.spare.extend(other);
                self.bytes += capacity;
                Vec::with_capacity(capacity)
            }
        };
        let chunk = Chunk { buf, live: 0 };
        if let Some(at) = self.free.pop() {
            self.chunks[at as usize] = chunk;
            return at;
        }
        self.chunks.push(chunk);
        (self.chunks.len() - 1) as u32
    }

    #[cold]
    fn close(&mut self, at: u32) {
        let mut buf = std::mem::take(&mut self.chunks[at as usize].buf);
        self.free.push(at);
        if buf.capacity() == CHUNK_BYTES && self.spare.len() < SPARE_MAX {
            buf.clear();
            self.spare.push(buf);
        } else {
            self.bytes -= buf.capacity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_comes_back() {
        let mut a = Arena::default();
        let blobs: Vec<Blob> = (0..10_000).map(|i: u32| a.put([&i.to_le_bytes(), &[7; 250]])).collect();
        let large = a.put([&[1; 100_000], &[]]);
        assert!(a.bytes() >= 2_540_000 + 100_000 && a.bytes() < 2_540_000 + 100_000 + 2 * CHUNK_BYTES);
        for (i, b) in blobs.iter().enumerate() {
            assert_eq!(a.get(*b)[..4], (i as u32).to_le_bytes());
            a.free(*b);
        }
        assert_eq!(a.get(large).len(), 100_000);
        a.free(large);
        assert!(a.bytes() <= (SPARE_MAX + 1) * CHUNK_BYTES);
        let empty = a.put([&[], &[]]);
        assert_eq!(a.get(empty), b"");
        a.free(empty);
    }

    #[test]
    fn a_shallow_queue_stays_in_one_chunk() {
        let mut a = Arena::default();
        for _ in 0..100_000 {
            let b = a.put([&[1; 300], &[]]);
            a.free(b);
        }
        assert_eq!(a.bytes(), CHUNK_BYTES);
    }

    proptest! {
        #[test]
        fn blobs_keep_their_bytes(ops in prop::collection::vec((0_usize..70_000, any::<u8>(), any::<bool>()), 1..60)) {
            let mut a = Arena::default();
            let mut live: Vec<(Blob, Vec<u8>)> = Vec::new();
            for (len, byte, drop_first) in ops {
                let bytes = vec![byte; len];
                live.push((a.put([&bytes[..len / 2], &bytes[len / 2..]]), bytes));
                if drop_first {
                    let (b, _) = live.swap_remove(0);
                    a.free(b);
                }
                for (b, bytes) in &live {
                    prop_assert_eq!(a.get(*b), &bytes[..]);
                }
            }
        }
    }
}
