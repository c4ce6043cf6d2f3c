//! From the outbox to the socket: one vectored write for whatever waits.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::session::Session;
use crate::actors::outbox::{Piece, pool};

/// Data taken from the outbox at once, bytes: what answers may have to wait behind.
const TAKE_BYTES: usize = 512 * 1024;
const SLICES_MAX: usize = 32;

impl Session {
    /// Writes until nothing waits or the socket takes no more. Gives whether anything was written.
    pub(super) fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut wrote = 0;
        while wrote < 2 * TAKE_BYTES
            && (!self.out.is_empty() || self.peer.outbox.take(&mut self.out, TAKE_BYTES))
        {
            let n = match self.write_some(cx)? {
                0 => break,
                n => n,
            };
            wrote += n;
            self.advance(n);
            if self.peer.outbox.written(n) {
                self.shard.dispatcher.has_read(self.peer.session);
            }
        }
        if self.out.is_empty() && self.out.capacity() > SLICES_MAX {
            self.out = std::collections::VecDeque::new();
        }
        Ok(wrote > 0)
    }

    fn write_some(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.out) {
            let skip = if used == 0 { self.out_at } else { 0 };
            *slot = IoSlice::new(&piece.as_ref()[skip..]);
            used += 1;
        }
        match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..used]) {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(r) => r,
            Poll::Pending => Ok(0),
        }
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(piece) = self.out.front() {
            let left = piece.as_ref().len() - self.out_at;
            if n < left {
                self.out_at += n;
                return;
            }
            n -= left;
            self.out_at = 0;
            if let Some(Piece::Owned(buf)) = self.out.pop_front() {
                pool::give(buf);
            }
        }
    }
}
