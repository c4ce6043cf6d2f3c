//! Tasks come in.

use hive_proto::error::Code;
use hive_proto::items::{Items, Refused, Submit};
use hive_proto::messages::{self, TaskOptions};
use hive_proto::{SessionId, TaskId, TaskState, Trace, WireError, ids::Durability};

use super::table::{Record, Slot};
use super::{Board, TaskSink};
use crate::core::time::Tick;
use crate::planted;

const ATTEMPTS_MAX: u32 = 1_000;
const DELAY_MS_MAX: u32 = 1 << 31;
/// When a client should try again after memory was full, milliseconds.
const RETRY_MEMORY_MS: u32 = 100;

/// The frame that brings tasks.
#[derive(Clone, Copy, Debug)]
pub struct SubmitFrame<'a> {
    /// Who submits.
    pub from: SessionId,
    /// Names the answer.
    pub request: u32,
    /// Queue name, as it came.
    pub queue: &'a [u8],
    /// Whether progress and outcomes are pushed to the submitter.
    pub watch: bool,
    /// Trace context of all items that have none of their own.
    pub trace: Option<Trace>,
    /// Bytes of all items.
    pub bytes: usize,
}

impl Board {
    /// Takes a batch of tasks for one queue. Each item is judged by itself; the answer tells which were refused.
    /// Nothing is assigned before [`Board::pump`].
    pub fn submit(
        &mut self,
        now: Tick,
        frame: SubmitFrame<'_>,
        items: Items<'_, Submit<'_>>,
        sink: &mut impl TaskSink,
    ) {
        let (to, request) = (frame.from, frame.request);
        let queue = match self.admit(&frame) {
            Ok(queue) => queue,
            Err(e) => {
                self.counters.refused += items.size_hint().1.unwrap_or(0) as u64;
                return sink.error(to, request, e);
            }
        };
        let trace_ext =
            frame.trace.map(|t| messages::encode(&TaskOptions { trace: Some(t), ..TaskOptions::default() }));
        let first = TaskId::new(self.queues[queue as usize].partition, self.table.next_seq());
        let watcher = if frame.watch { to } else { SessionId(0) };
        self.refused.clear();
        let (mut taken, mut first_error) = (0_u16, None);
        for (index, item) in items.enumerate() {
            match self.take(now, queue, watcher, item, trace_ext.as_deref()) {
                Ok(()) => taken += 1,
                Err(e) => {
                    self.refused.push(Refused { index: index as u16, code: e.code, retry_after_ms: 0 });
                    first_error.get_or_insert(e);
                }
            }
        }
        self.counters.submitted += u64::from(taken);
        self.counters.refused += self.refused.len() as u64;
        self.mark_dirty(queue);
        let durability = self.queues[queue as usize].policy.durability;
        match first_error {
            Some(e) if taken == 0 => sink.error(to, request, e),
            _ => {
                self.hold(durability != Durability::Memory && !planted::is("ack_early"), sink);
                sink.accepted(to, request, first, taken, durability, &self.refused);
                sink.hold(false);
            }
        }
    }

    fn admit(&mut self, frame: &SubmitFrame<'_>) -> Result<u32, WireError> {
        self.look_at_memory(frame.bytes);
        if !self.spill.full {
            return self.queue(frame.queue);
        }
        // Only what goes to disk is taken, and nothing is made for it.
        let known = std::str::from_utf8(frame.queue).ok().and_then(|name| self.by_name.get(name)).copied();
        known
            .filter(|at| self.may_spill() && self.queues[*at as usize].is_durable())
            .ok_or_else(|| self.memory_full())
    }

    pub(super) fn memory_full(&self) -> WireError {
        let held = self.held_bytes();
        let text = format!("tasks hold {held} of {} bytes", self.limits.memory_bytes_max);
        WireError::new(Code::MemoryFull, text).retry_after(RETRY_MEMORY_MS)
    }

    #[inline]
    fn take(
        &mut self,
        now: Tick,
        queue: u32,
        watcher: SessionId,
        item: Submit<'_>,
        trace_ext: Option<&[u8]>,
    ) -> Result<(), WireError> {
        if !item.ext.is_empty() {
            return self.take_with_options(now, queue, watcher, item, trace_ext);
        }
        let lane = self.queues[queue as usize].lanes[0];
        self.insert(queue, lane, None, watcher, item.payload, trace_ext.unwrap_or_default(), None);
        Ok(())
    }

    fn take_with_options(
        &mut self,
        now: Tick,
        queue: u32,
        watcher: SessionId,
        item: Submit<'_>,
        trace_ext: Option<&[u8]>,
    ) -> Result<(), WireError> {
        let options: TaskOptions =
            messages::decode(item.ext).map_err(|e| WireError::new(Code::InvalidOptions, e.text))?;
        check_range("max_attempts", options.max_attempts, 1, ATTEMPTS_MAX)?;
        check_range("delay_ms", options.delay_ms, 0, DELAY_MS_MAX)?;
        let lane = self.lane(queue, &options.labels)?;
        let due = options.delay_ms.filter(|d| *d > 0).map(|d| now.plus_ms(u64::from(d)));
        if due.is_some() && self.spill.full {
            return Err(self.memory_full()); // it would have to wait in memory
        }
        let whole;
        let ext = match trace_ext {
            Some(t) if options.trace.is_none() => {
                let outer: TaskOptions = messages::decode(t)?;
                whole = messages::encode(&TaskOptions { trace: outer.trace, ..options.clone() });
                &whole
            }
            _ => item.ext,
        };
        self.insert(queue, lane, due, watcher, item.payload, ext, options.max_attempts);
        Ok(())
    }

    #[inline]
    #[allow(clippy::too_many_arguments)] // the fields of one record, built in one place
    fn insert(
        &mut self,
        queue: u32,
        lane: u32,
        due: Option<Tick>,
        watcher: SessionId,
        payload: &[u8],
        ext: &[u8],
        attempts_max: Option<u32>,
    ) {
        let durable = self.queues[queue as usize].is_durable();
        if durable {
            let (lane, seq) = (self.logged(lane), self.table.next_seq());
            match due {
                Some(due) => self.ops.later(lane, watcher.0, seq, due, ext, payload),
                None if self.spills(lane) => {
                    self.ops.submit(lane, watcher.0, seq, ext, payload, true);
                    let seq = self.table.skip();
                    return self.add_spilled(lane, watcher, seq / 64, 1 << (seq % 64));
                }
                None => self.ops.submit(lane, watcher.0, seq, ext, payload, false),
            }
        }
        let q = &mut self.queues[queue as usize];
        let blob = match due {
            Some(_) => self.delayed.put([ext, payload]),
            None => self.payloads.put_in(&mut self.lanes[lane as usize].stream, [ext, payload]),
        };
        let record = Record {
            deadline: due.unwrap_or(Tick::ZERO),
            blob,
            next: Slot::NONE,
            prev: Slot::NONE,
            lane,
            owner: u32::MAX,
            watcher,
            attempt: 0,
            ext_len: ext.len() as u16,
            failed: 0,
            attempts_max: attempts_max.map_or(q.policy.attempts_max, |a| a as u16),
            state: if due.is_some() { TaskState::Scheduled } else { TaskState::Waiting },
            waited: false,
            fetched: false,
        };
        let slot = self.table.push(record);
        if let Some(due) = due {
            q.scheduled += 1;
            self.timers.schedule(due, slot, self.table.seq(slot));
        } else {
            q.waiting += 1;
            match durable {
                true => self.enter_lane(slot),
                false => self.lanes[lane as usize].tasks.push_back(&mut self.table, slot),
            }
        }
    }
}

fn check_range(field: &str, value: Option<u32>, min: u32, max: u32) -> Result<(), WireError> {
    match value {
        Some(v) if !(min..=max).contains(&v) => {
            Err(WireError::new(Code::InvalidOptions, format!("{field} = {v} is not in {min} to {max}")))
        }
        _ => Ok(()),
    }
}
