//! Where bytes of tasks live: bump-allocated chunks that are given back whole.
//!
//! A queue is first in, first out, so its bytes die in the order in which they were born and a chunk empties soon after
//! its first byte is freed, and each lane has chunks of its own. A general allocator would pay 8-16 bytes and two calls for each task; the chunk
//! pays one counter. What pins a chunk is counted with the chunk: [`Arena::bytes`] is memory held, not memory asked for.

/// Longest chunk for many blobs. What lives long pins so much at the most.
const CHUNK_BYTES: usize = 64 * 1024;
/// The first chunk of a stream; each further one is twice as long.
const FIRST_CHUNK_BYTES: usize = 1024;
/// Longer blobs get a chunk of their own, so that one of them never pins more than itself.
const OWN_CHUNK_BYTES: usize = 8 * 1024;
/// Empty chunks kept for the next burst.
const SPARE_MAX: usize = 16;

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

/// Where blobs go that die about in the order in which they are born: those of one lane. Streams share no chunk, so that a
/// slow one does not pin what a fast one has left behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// The chunk that is being filled.
    chunk: Option<u32>,
    /// Length of the next one, bytes.
    bytes: u32,
}

impl Default for Stream {
    fn default() -> Self {
        Self { chunk: None, bytes: FIRST_CHUNK_BYTES as u32 }
    }
}

#[derive(Debug, Default)]
struct Chunk {
    /// Without memory while it is being filled and nothing lives in it.
    buf: Vec<u8>,
    live: u32,
    /// A stream has it.
    filling: bool,
}

/// Chunks and their free places.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    spare: Vec<Vec<u8>>,
    /// Of those who name none.
    stream: Stream,
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
        let mut stream = self.stream;
        let blob = self.put_in(&mut stream, parts);
        self.stream = stream;
        blob
    }

    /// The same, for a stream of this arena.
    #[inline]
    pub(crate) fn put_in(&mut self, stream: &mut Stream, parts: [&[u8]; 2]) -> Blob {
        let len = parts[0].len() + parts[1].len();
        if len == 0 {
            return Blob::EMPTY;
        }
        let at = if len > OWN_CHUNK_BYTES { self.open(len) } else { self.room(stream, len) };
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
            self.empty(blob.chunk);
        }
    }

    /// Moves a blob to another arena.
    pub(crate) fn hand_over(&mut self, blob: Blob, to: &mut Self) -> Blob {
        let there = to.put([self.get(blob), &[]]);
        self.free(blob);
        there
    }

    /// Moves a blob to a stream of another arena.
    pub(crate) fn hand_over_in(&mut self, blob: Blob, to: &mut Self, stream: &mut Stream) -> Blob {
        let there = to.put_in(stream, [self.get(blob), &[]]);
        self.free(blob);
        there
    }

    #[inline]
    fn room(&mut self, stream: &mut Stream, len: usize) -> u32 {
        if let Some(at) = stream.chunk {
            let buf = &self.chunks[at as usize].buf;
            if buf.capacity() - buf.len() >= len {
                return at;
            }
        }
        self.next_chunk(stream, len)
    }

    #[cold]
    fn next_chunk(&mut self, stream: &mut Stream, len: usize) -> u32 {
        if let Some(old) = stream.chunk.take() {
            let chunk = &mut self.chunks[old as usize];
            chunk.filling = false;
            // One that was filled is followed by a longer one, one that emptied first by a shorter one.
            let emptied = chunk.buf.capacity() == 0;
            let bytes = if emptied { stream.bytes / 2 } else { stream.bytes * 2 };
            stream.bytes = bytes.clamp(FIRST_CHUNK_BYTES as u32, CHUNK_BYTES as u32);
            if chunk.live == 0 {
                self.empty(old);
            }
        }
        let at = self.open(len.next_power_of_two().max(stream.bytes as usize));
        self.chunks[at as usize].filling = true;
        stream.chunk = Some(at);
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
        let chunk = Chunk { buf, live: 0, filling: false };
        if let Some(at) = self.free.pop() {
            self.chunks[at as usize] = chunk;
            return at;
        }
        self.chunks.push(chunk);
        (self.chunks.len() - 1) as u32
    }

    /// Nothing lives in a chunk: its memory is given back, and its place unless a stream has it.
    #[cold]
    fn empty(&mut self, at: u32) {
        let chunk = &mut self.chunks[at as usize];
        let mut buf = std::mem::take(&mut chunk.buf);
        if !chunk.filling {
            self.free.push(at);
        }
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
        assert!(a.bytes() <= SPARE_MAX * CHUNK_BYTES);
        let empty = a.put([&[], &[]]);
        assert_eq!(a.get(empty), b"");
        a.free(empty);
    }

    #[test]
    fn a_shallow_queue_takes_little_and_an_empty_one_nothing() {
        let mut a = Arena::default();
        for _ in 0..100_000 {
            let b = a.put([&[1; 300], &[]]);
            assert_eq!(a.bytes(), FIRST_CHUNK_BYTES);
            a.free(b);
            assert_eq!((a.bytes(), a.free.len()), (0, 0));
        }
        assert!(a.chunks.len() <= 2);
    }

    /// A thousand blobs that stay, among millions that go.
    #[test]
    fn a_slow_stream_does_not_pin_what_a_fast_one_leaves_behind() {
        let (mut a, mut slow, mut fast) = (Arena::default(), Stream::default(), Stream::default());
        let mut under_way = std::collections::VecDeque::new();
        for n in 0..1_000_000 {
            under_way.push_back(a.put_in(&mut fast, [&[1; 100], &[]]));
            if under_way.len() > 1_000 {
                a.free(under_way.pop_front().unwrap());
            }
            if n % 1_000 == 0 {
                a.put_in(&mut slow, [&[2; 100], &[]]);
            }
        }
        let most = 1_000 * 100 + 1_000 * 100 + (4 + SPARE_MAX) * CHUNK_BYTES;
        assert!(a.bytes() <= most, "{} bytes", a.bytes());
    }

    proptest! {
        #[test]
        fn blobs_keep_their_bytes(ops in prop::collection::vec((prop_oneof![0..500_usize, 0..70_000_usize], any::<u8>(), any::<bool>()), 1..60)) {
            let (mut a, mut stream) = (Arena::default(), Stream::default());
            let mut live: Vec<(Blob, Vec<u8>)> = Vec::new();
            for (len, byte, drop_first) in ops {
                let bytes = vec![byte; len];
                let parts = [&bytes[..len / 2], &bytes[len / 2..]];
                let blob = if byte % 2 == 0 { a.put(parts) } else { a.put_in(&mut stream, parts) };
                live.push((blob, bytes));
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
