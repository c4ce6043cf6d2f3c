//! From the driver to a subscriber: runs of frames, bounded by bytes, lossy beyond that, and the loss is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hive_proto::codec::Frame;
use hive_proto::items::Reader;
use hive_proto::{Op, PREFIX_LEN};
use tokio::sync::mpsc;

/// Room that a run takes in addition to its bytes, so that empty messages are bounded as well.
const RUN_OVERHEAD: usize = 64;

/// One channel for whole frames, `limit` bytes deep.
pub(crate) fn inbox(limit: usize) -> (InboxSender, Inbox) {
    #[expect(
        clippy::disallowed_methods,
        reason = "bounded by `held`: bytes, which a count of messages would not bound"
    )]
    let (tx, rx) = mpsc::unbounded_channel();
    let held = Arc::new(AtomicUsize::new(0));
    let sender = InboxSender { tx, held: Arc::clone(&held), limit, lost: 0 };
    (sender, Inbox { rx, held, run: Bytes::new(), generation: 0, lost: 0 })
}

struct Run {
    frames: Bytes,
    lost_before: u64,
    generation: u64,
}

/// A frame that is a message.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) frame: Frame,
    /// How many were lost before it.
    pub(crate) lost_before: u64,
    /// The connection it came by.
    pub(crate) generation: u64,
}

/// The driver's end.
#[derive(Debug)]
pub(crate) struct InboxSender {
    tx: mpsc::UnboundedSender<Run>,
    held: Arc<AtomicUsize>,
    limit: usize,
    lost: u64,
}

impl InboxSender {
    /// Hands over a run of `count` whole frames that came by connection `generation`, or counts them as lost where the reader is too far behind.
    pub(crate) fn push(&mut self, frames: Bytes, count: u64, generation: u64) {
        let room = frames.len() + RUN_OVERHEAD;
        if self.held.load(Ordering::Relaxed) + room > self.limit.max(room) {
            self.lost += count;
            return;
        }
        self.held.fetch_add(room, Ordering::Relaxed);
        // A closed inbox is about to be unsubscribed.
        let _ = self.tx.send(Run { frames, lost_before: std::mem::take(&mut self.lost), generation });
    }
}

/// The subscriber's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    rx: mpsc::UnboundedReceiver<Run>,
    held: Arc<AtomicUsize>,
    run: Bytes,
    generation: u64,
    lost: u64,
}

impl Inbox {
    /// The next frame that is a message.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        loop {
            while let Some(frame) = self.next_of_run() {
                if frame.view().prefix.op == Op::MessagesLost as u8 {
                    self.lost += Reader(frame.view().header).u64().unwrap_or(0);
                    continue;
                }
                let lost_before = std::mem::take(&mut self.lost);
                return Poll::Ready(Some(Received { frame, lost_before, generation: self.generation }));
            }
            match self.rx.poll_recv(cx) {
                Poll::Ready(Some(run)) => {
                    self.held.fetch_sub(run.frames.len() + RUN_OVERHEAD, Ordering::Relaxed);
                    self.lost += run.lost_before;
                    (self.run, self.generation) = (run.frames, run.generation);
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn next_of_run(&mut self) -> Option<Frame> {
        let prefix = hive_proto::Prefix::read(self.run.first_chunk::<PREFIX_LEN>()?);
        let total = PREFIX_LEN + prefix.length as usize;
        let frame = (total <= self.run.len()).then(|| self.run.split_to(total))?;
        Frame::new(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hive_proto::frame::write_frame;

    fn frame(op: Op, header: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(&mut out, op, 0, 1, 0, &[header], payload);
        out
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_told_with_the_next_message() {
        let (mut tx, mut rx) = inbox(200);
        let run = frame(Op::Deliver, b"a", &[7; 50]);
        for _ in 0..4 {
            tx.push(run.clone().into(), 1, 1);
        }
        let mut next = async || std::future::poll_fn(|cx| rx.poll_frame(cx)).await.expect("open");
        assert_eq!(next().await.lost_before, 0);
        let told = [frame(Op::MessagesLost, &5_u64.to_le_bytes(), b""), run].concat();
        tx.push(told.into(), 1, 2);
        let last = next().await;
        assert_eq!((last.frame.payload().len(), last.generation), (50, 2));
        assert_eq!(last.lost_before, 8, "3 dropped here, 5 by the server");
    }
}
