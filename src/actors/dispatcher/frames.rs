//! Task frames, one by one, for the board.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hive_proto::error::Code;
use hive_proto::items::{self, Complete, Fail, Item, Items, Reader, Release};
use hive_proto::messages::{self, Work};
use hive_proto::{Flags, FrameRef, Lease, Op, TaskId, WireError};

use super::legacy::Change;
use super::sinks::Sinks;
use crate::actors::directory::Peer;
use crate::core::tasks::{Board, SubmitFrame, WaitMode};
use crate::core::time::Tick;
use crate::planted;

/// What the journal takes.
#[derive(Clone, Debug, Default)]
pub(super) struct JournalState {
    /// Space is short: tasks that run may end, no new ones come in.
    pub(super) low_space: bool,
    /// The record under way waits for space.
    pub(super) full: bool,
    /// Why nothing is taken any more.
    pub(super) failed: Option<String>,
}

impl JournalState {
    fn takes_tasks(&self) -> Result<(), WireError> {
        if self.low_space || self.full {
            let text =
                "the disk of the journal is full: queues that survive take no tasks until there is space";
            return Err(WireError::new(Code::DiskFull, text).retry_after(1000));
        }
        Ok(())
    }

    /// While nothing becomes durable, nothing is answered that depends on it, be it for a long time (the disk is full) or
    /// for ever (the journal failed): so what would have to be held back is refused. Memory queues go on.
    fn takes(&self, board: &Board, frame: &FrameRef<'_>, op: Op) -> Result<(), WireError> {
        if self.failed.is_none() && !self.full || !is_durable(board, frame, op) {
            return Ok(());
        }
        let asks = matches!(op, Op::Query | Op::ListDead | Op::Wait);
        match &self.failed {
            Some(_) => Err(failed()),
            None if asks || board.gathered_bytes() > board.gather_bytes_max() => Err(full()),
            None => Ok(()),
        }
    }
}

/// Whether a frame decides something that must survive, or asks for it.
fn is_durable(board: &Board, frame: &FrameRef<'_>, op: Op) -> bool {
    fn any<'a, T: Item<'a>>(board: &Board, frame: &FrameRef<'a>, task: impl Fn(&T) -> TaskId) -> bool {
        Items::<T>::new(frame.payload, frame.prefix.count).any(|item| board.is_durable_task(task(&item)))
    }
    match op {
        Op::Submit => frame.traced_header().is_ok_and(|(_, queue)| board.is_durable_queue(queue)),
        Op::Complete => any(board, frame, |i: &Complete<'_>| i.lease.task),
        Op::Fail => any(board, frame, |i: &Fail<'_>| i.lease.task),
        Op::Release => any(board, frame, |i: &Release| i.lease.task),
        Op::Cancel | Op::Query | Op::Wait | Op::Redrive | Op::Purge => any(board, frame, |id: &TaskId| *id),
        Op::ListDead => frame.header.get(4..).is_some_and(|queue| board.is_durable_queue(queue)),
        _ => false,
    }
}

/// The error for what the journal does not take.
pub(super) fn failed() -> WireError {
    WireError::new(Code::JournalFailed, "the journal failed; the server is about to stop").retry_after(1000)
}

/// The error for what is not told while the record under way waits for space.
pub(super) fn full() -> WireError {
    let text = "the disk of the journal is full: what became of this can be told once there is space";
    WireError::new(Code::DiskFull, text).retry_after(1000)
}

/// Producer credit comes back with the answer.
pub(super) fn settle_credit(peer: &Peer, frame: &FrameRef<'_>) {
    if frame.prefix.op == Op::Submit as u8 {
        peer.unacked_tasks.fetch_sub(u32::from(frame.prefix.count), Ordering::Relaxed);
        peer.unacked_bytes.fetch_sub(frame.payload.len(), Ordering::Relaxed);
    }
}

pub(super) fn apply_frame(
    board: &mut Board,
    out: &mut Sinks,
    journal: &JournalState,
    now: Tick,
    peer: &Arc<Peer>,
    frame: &FrameRef<'_>,
    changes: &mut Vec<Change>,
) -> Result<(), WireError> {
    let (from, id, count) = (peer.session, frame.prefix.id, frame.prefix.count);
    let op = frame.op()?;
    journal.takes(board, frame, op)?;
    match op {
        Op::Submit => {
            let (trace, queue) = frame.traced_header()?;
            let items = items::check(frame.payload, count)?;
            let watch = frame.prefix.flags.has(Flags::WATCH);
            let bytes = frame.payload.len();
            if board.is_durable_queue(queue) {
                journal.takes_tasks()?;
            } else {
                peer.submits.store(true, Ordering::Relaxed); // has something to lose
            }
            board.submit(now, SubmitFrame { from, request: id, queue, watch, trace, bytes }, items, out);
        }
        Op::Complete => {
            frame.traced_header()?;
            let items = items::check(frame.payload, count)?;
            if planted::is("results_swapped") {
                board.complete(now, from, id, swapped(items), out);
            } else {
                board.complete(now, from, id, items, out);
            }
        }
        Op::Fail => board.fail(now, from, id, items::check(frame.payload, count)?, out),
        Op::Release => board.release(now, from, id, items::check(frame.payload, count)?, out),
        Op::Renew => board.renew(now, from, id, items::check::<Lease>(frame.payload, count)?, out),
        Op::Progress => board.progress(from, id, items::check(frame.payload, count)?, out),
        Op::Cancel => board.cancel(now, from, id, items::check::<TaskId>(frame.payload, count)?, out),
        Op::Redrive => board.redrive(from, id, items::check::<TaskId>(frame.payload, count)?, out),
        Op::Purge => board.purge(from, id, items::check::<TaskId>(frame.payload, count)?, out),
        Op::Query => board.query(from, id, items::check::<TaskId>(frame.payload, count)?, out),
        Op::Wait => {
            let mut r = Reader(frame.header);
            let (mode, timeout) = match (r.u8(), r.u32(), r.0) {
                (Some(0), Some(t), []) => (WaitMode::All, t),
                (Some(1), Some(t), []) => (WaitMode::Any, t),
                _ => return Err(malformed("Wait", "mode (0 or 1) u8, timeout u32 ms")),
            };
            let ids: Items<'_, TaskId> = items::check(frame.payload, count)?;
            board.wait(now, from, id, mode, timeout, ids, out);
        }
        Op::ListDead => {
            let mut r = Reader(frame.header);
            let limit = r.u32().ok_or_else(|| malformed("ListDead", "limit u32, queue name"))?;
            let queue = hive_proto::names::queue(r.0)?;
            board.list_dead(from, id, queue, limit.min(u32::from(u16::MAX)) as usize, out);
        }
        Op::Work => {
            let work: Work = messages::decode(frame.header)?;
            board.work(from, id, &work, &peer.labels, out);
            if out.now.last_ok {
                changes.push(Change::Open(peer.clone(), id, work));
            }
        }
        Op::StopWork => {
            board.stop_work(from, id, out);
            changes.push(Change::Close(from, id));
        }
        Op::Credit => {
            let mut r = Reader(frame.header);
            let (Some(tasks), Some(bytes), []) = (r.u32(), r.u64(), r.0) else {
                return Err(malformed("Credit", "tasks u32, bytes u64"));
            };
            board.credit(from, id, tasks, bytes, out);
            changes.push(Change::Window(from, id, tasks, bytes));
        }
        op => return Err(WireError::new(Code::UnknownOp, format!("{op:?} may not be sent by a client"))),
    }
    Ok(())
}

/// The planted bug `results_swapped`: the first two tasks of a batch get each other's result.
fn swapped<'a>(items: Items<'a, Complete<'a>>) -> impl Iterator<Item = Complete<'a>> {
    let mut items: Vec<_> = items.collect();
    if let [a, b, ..] = &mut items[..] {
        std::mem::swap(&mut a.result, &mut b.result);
    }
    items.into_iter()
}

fn malformed(op: &str, layout: &str) -> WireError {
    WireError::new(Code::MalformedHeader, format!("the header of {op} is {layout}"))
}
