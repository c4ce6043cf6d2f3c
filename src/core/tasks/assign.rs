//! Who gets what: consumers, their credit, and the pump that brings tasks and credit together.

use hive_proto::error::Code;
use hive_proto::items::Assign;
use hive_proto::messages::Work;
use hive_proto::{Lease, SessionId, TaskId, TaskState, WireError, names};

use super::queue::{Lane, sorted};
use super::table::{List, Slot, Table};
use super::{Board, TaskSink};
use crate::core::time::Tick;

/// Workers may always take one part in so many of the memory: a full board needs those that empty it.
const CONSUMERS_SHARE: usize = 32;

#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) session: SessionId,
    /// The consumer's id on the wire.
    pub(crate) id: u32,
    pub(crate) queue: u32,
    /// Labels that it offers, sorted.
    pub(crate) labels: Box<[String]>,
    /// Lanes that it may take from.
    pub(crate) lanes: Vec<u32>,
    pub(crate) credit_tasks: u32,
    pub(crate) credit_bytes: u64,
    pub(crate) held_bytes: u64,
    /// Its leases, the next to expire first. Its length is the tasks held.
    pub(crate) leases: List,
    /// Stands in its queue's `ready`.
    pub(crate) ready: bool,
    /// Has an entry in the timers.
    pub(crate) timed: bool,
    /// Its client does not read: what it was given waits in a buffer.
    pub(crate) paused: bool,
    /// Closed by the client; stays while it holds leases.
    pub(crate) closed: bool,
    /// Number of this use of the handle, so that old timers are known.
    pub(crate) generation: u32,
    /// What it counts as memory.
    pub(crate) bytes: usize,
}

impl Consumer {
    /// Deadline of a lease that starts or is renewed now. Never before that of another lease, so that `leases` stays
    /// sorted by it even when the queue's policy is made shorter.
    #[inline]
    pub(crate) fn lease_until(&self, now: Tick, lease_ms: u32, table: &Table) -> Tick {
        let last = if self.leases.len > 0 { table[self.leases.tail].deadline } else { Tick::ZERO };
        now.plus_ms(u64::from(lease_ms)).max(last)
    }

    /// Takes its place in line, or leaves it.
    #[inline]
    fn stand(&mut self, ready: bool, lanes: &mut [Lane]) {
        if self.ready != ready {
            self.ready = ready;
            for l in &self.lanes {
                let lane = &mut lanes[*l as usize];
                lane.in_line = if ready { lane.in_line + 1 } else { lane.in_line - 1 };
            }
        }
    }

    /// Whether it may be given one more task.
    #[inline]
    fn has_credit(&self) -> bool {
        !self.closed
            && !self.paused
            && self.leases.len < self.credit_tasks as usize
            && self.held_bytes < self.credit_bytes
    }
}

impl Board {
    /// Opens a consumer. `offered` are the labels of its agent.
    pub fn work(
        &mut self,
        from: SessionId,
        id: u32,
        work: &Work,
        offered: &[String],
        sink: &mut impl TaskSink,
    ) {
        match self.open_consumer(from, id, work, offered) {
            Ok(()) => sink.ok(from, id),
            Err(e) => sink.error(from, id, e),
        }
    }

    fn open_consumer(
        &mut self,
        from: SessionId,
        id: u32,
        work: &Work,
        offered: &[String],
    ) -> Result<(), WireError> {
        self.check_credit(work.credit_tasks, work.credit_bytes)?;
        names::labels(&work.labels)?;
        if self.find_consumer(from, id).is_some() {
            return Err(WireError::new(Code::DuplicateConsumer, format!("consumer {id} is open already")));
        }
        let open = self.sessions.get(&from).map_or(0, |s| s.consumers.len());
        if open >= self.limits.consumers_max {
            let text = format!("the connection has consumers_max = {open} consumers");
            return Err(WireError::new(Code::TooManyConsumers, text));
        }
        let bytes = consumer_bytes(offered, work);
        if self.is_full(bytes) && self.consumer_bytes > self.limits.memory_bytes_max / CONSUMERS_SHARE {
            let text = "tasks and workers fill the memory of the server";
            return Err(WireError::new(Code::MemoryFull, text).retry_after(1000));
        }
        let queue = self.queue(work.queue.as_bytes())?;
        let labels = sorted([offered, &work.labels].concat());
        let lanes = self.queues[queue as usize].lanes.iter().copied();
        let lanes = lanes.filter(|l| self.lanes[*l as usize].fits(&labels)).collect();
        let handle = self.free_consumers.pop().unwrap_or_else(|| {
            self.consumers.push(None);
            (self.consumers.len() - 1) as u32
        });
        self.consumers[handle as usize] = Some(Consumer {
            session: from,
            id,
            queue,
            labels,
            lanes,
            credit_tasks: work.credit_tasks,
            credit_bytes: work.credit_bytes,
            held_bytes: 0,
            leases: List::default(),
            ready: false,
            timed: false,
            paused: false,
            closed: false,
            generation: self.timers.next_generation(),
            bytes,
        });
        self.consumer_bytes += bytes;
        self.sessions.entry(from).or_default().consumers.push(handle);
        self.queues[queue as usize].consumers += 1;
        self.offer(handle);
        Ok(())
    }

    fn check_credit(&self, tasks: u32, bytes: u64) -> Result<(), WireError> {
        let (t, b) = (self.limits.credit_tasks_max, self.limits.credit_bytes_max);
        if tasks > t || bytes > b {
            let text = format!(
                "credit of {tasks} tasks and {bytes} bytes; a consumer may have {t} tasks and {b} bytes"
            );
            return Err(WireError::new(Code::CreditOverflow, text));
        }
        Ok(())
    }

    /// Sets the window of a consumer. Answered only when refused.
    pub fn credit(&mut self, from: SessionId, id: u32, tasks: u32, bytes: u64, sink: &mut impl TaskSink) {
        if let Err(e) = self.check_credit(tasks, bytes) {
            return sink.error(from, id, e);
        }
        let Some(handle) = self.find_consumer(from, id) else {
            return sink.error(from, id, unknown_consumer(id));
        };
        if let Some(c) = &mut self.consumers[handle as usize] {
            (c.credit_tasks, c.credit_bytes) = (tasks, bytes);
        }
        self.offer(handle);
    }

    /// The client of a session has read what waited for it.
    pub fn resume(&mut self, session: SessionId) {
        let Some(state) = self.sessions.get(&session) else { return };
        for handle in state.consumers.clone() {
            if let Some(c) = &mut self.consumers[handle as usize] {
                c.paused = false;
            }
            self.offer(handle);
        }
    }

    /// Closes a consumer; tasks that it holds may still be settled.
    pub fn stop_work(&mut self, from: SessionId, id: u32, sink: &mut impl TaskSink) {
        let Some(handle) = self.find_consumer(from, id) else {
            return sink.error(from, id, unknown_consumer(id));
        };
        self.close_consumer(handle);
        if self.consumers[handle as usize].as_ref().is_some_and(|c| c.leases.len == 0) {
            self.drop_consumer(handle);
        }
        sink.ok(from, id);
    }

    /// A consumer gets nothing more. Its place in line stays until it is popped, or until such places are the greater
    /// part of the line.
    fn close_consumer(&mut self, handle: u32) {
        let Some(c) = self.consumers[handle as usize].as_mut().filter(|c| !c.closed) else { return };
        c.closed = true;
        c.stand(false, &mut self.lanes);
        let q = &mut self.queues[c.queue as usize];
        q.consumers -= 1;
        if q.ready.len() > 2 * q.consumers + 16 {
            let open = |c: &Consumer, generation| c.generation == generation && !c.closed;
            q.ready.retain(|(h, g)| self.consumers[*h as usize].as_ref().is_some_and(|c| open(c, *g)));
        }
    }

    /// A session is gone: its leases go back at once, its consumers and waits end.
    pub fn session_closed(&mut self, now: Tick, session: SessionId, sink: &mut impl TaskSink) {
        let Some(state) = self.sessions.remove(&session) else { return };
        for wait in state.waits {
            self.waits.remove(wait);
        }
        let mut held = Vec::new();
        for handle in state.consumers {
            self.close_consumer(handle);
            while let Some(slot) = self.consumers[handle as usize].as_ref().map(|c| c.leases.head)
                && slot != Slot::NONE
            {
                self.unlease(slot);
                held.push(slot);
            }
            self.drop_consumer(handle); // if it held nothing; else it went with its last lease
        }
        self.put_back_in_order(now, held, "the worker's connection ended", sink);
    }

    /// All leases and who holds them.
    pub fn open_leases(&self) -> Vec<(SessionId, Lease)> {
        let mut leases = Vec::new();
        for c in self.consumers.iter().flatten() {
            let mut slot = c.leases.head;
            while slot != Slot::NONE {
                let task = TaskId::new(self.queues[c.queue as usize].partition, self.table.seq(slot));
                let attempt = self.table[slot].attempt;
                leases.push((c.session, Lease { task, attempt, epoch: self.identity.epoch }));
                slot = self.table[slot].next;
            }
        }
        leases
    }

    /// Forgets a consumer that holds nothing.
    pub(crate) fn drop_consumer(&mut self, handle: u32) {
        let Some(c) = self.consumers[handle as usize].take() else { return };
        self.consumer_bytes -= c.bytes;
        if let Some(s) = self.sessions.get_mut(&c.session) {
            s.consumers.retain(|h| *h != handle);
        }
        self.free_consumers.push(handle);
        self.timers.sweep_leases(&self.consumers, self.free_consumers.len());
    }

    fn find_consumer(&self, from: SessionId, id: u32) -> Option<u32> {
        let open = |h: &&u32| self.consumers[**h as usize].as_ref().is_some_and(|c| c.id == id && !c.closed);
        self.sessions.get(&from)?.consumers.iter().find(open).copied()
    }

    /// Puts a consumer in line if it has credit.
    #[inline]
    pub(crate) fn offer(&mut self, handle: u32) {
        let Some(c) = &mut self.consumers[handle as usize] else { return };
        if !c.ready && c.has_credit() {
            c.stand(true, &mut self.lanes);
            let queue = c.queue;
            self.queues[queue as usize].ready.push_back((handle, c.generation));
            self.mark_dirty(queue);
        }
    }

    /// Assigns what can be assigned. Call it once after a batch of calls, so that a burst goes out in few frames.
    pub fn pump(&mut self, now: Tick, sink: &mut impl TaskSink) {
        while let Some(queue) = self.dirty.pop() {
            self.queues[queue as usize].dirty = false;
            self.pump_queue(now, queue, sink);
        }
    }

    /// Shares the waiting tasks out evenly: each consumer gets a contiguous part, which goes into one frame.
    fn pump_queue(&mut self, now: Tick, queue: u32, sink: &mut impl TaskSink) {
        if !self.may_assign_durable() && self.queues[queue as usize].is_durable() {
            return;
        }
        // A round gives everybody in line one part.
        let mut given = 1;
        while given > 0 {
            given = 0;
            for left in (1..=self.queues[queue as usize].ready.len()).rev() {
                let q = &mut self.queues[queue as usize];
                // What needs labels that nobody in line offers is not shared.
                let lanes = q.lanes.iter().map(|l| &self.lanes[*l as usize]).filter(|l| l.in_line > 0);
                let waiting: usize = lanes.map(|l| l.tasks.len).sum();
                if waiting == 0 {
                    return;
                }
                let share = waiting.div_ceil(left);
                let Some((handle, generation)) = q.ready.pop_front() else { return };
                if self.consumers[handle as usize].as_ref().is_none_or(|c| c.generation != generation) {
                    continue;
                }
                given += self.give(now, handle, share, sink);
                let Some(c) = &mut self.consumers[handle as usize] else { continue };
                if !c.has_credit() {
                    c.stand(false, &mut self.lanes);
                } else {
                    self.queues[queue as usize].ready.push_back((handle, generation));
                }
            }
        }
    }

    fn give(&mut self, now: Tick, handle: u32, share: usize, sink: &mut impl TaskSink) -> usize {
        let Self { consumers, lanes, table, payloads, queues, timers, identity, counters, .. } = self;
        let Some(c) = &mut consumers[handle as usize] else { return 0 };
        let q = &mut queues[c.queue as usize];
        let deadline = c.lease_until(now, q.policy.lease_ms, table);
        let mut given = 0;
        while given < share && c.has_credit() {
            let lane = match *c.lanes {
                [only] => only,
                // The oldest task first, across the lanes that fit.
                ref fitting => {
                    let waiting = fitting.iter().filter(|l| lanes[**l as usize].tasks.len > 0);
                    let Some(l) = waiting.min_by_key(|l| table.seq(lanes[**l as usize].tasks.head)) else {
                        break;
                    };
                    *l
                }
            };
            let Some(slot) = lanes[lane as usize].tasks.pop_front(table) else { break };
            c.leases.push_back(table, slot);
            let seq = table.seq(slot);
            let r = &mut table[slot];
            r.state = TaskState::Running;
            r.attempt = r.attempt.wrapping_add(1); // a worker may give a task back for ever
            r.owner = handle;
            r.deadline = deadline;
            c.held_bytes += r.blob.len() as u64;
            let task = TaskId::new(q.partition, seq);
            let lease = Lease { task, attempt: r.attempt, epoch: identity.epoch };
            let (ext, payload) = payloads.get(r.blob).split_at(usize::from(r.ext_len));
            c.paused =
                !sink.assign(c.session, c.id, Assign { lease, lease_ms: q.policy.lease_ms, ext, payload });
            given += 1;
        }
        if given > 0 {
            q.waiting -= given;
            q.running += given;
            counters.assigned += given as u64;
            if !c.timed {
                c.timed = true;
                timers.lease(deadline, handle, c.generation);
            }
        }
        given
    }
}

/// What a consumer takes: here with its places in lists and in line, and once more where it is kept for the next board.
fn consumer_bytes(offered: &[String], work: &Work) -> usize {
    let labels = offered.iter().chain(&work.labels).map(|l| size_of::<String>() + 16 + l.len());
    2 * (size_of::<Consumer>() + work.queue.len() + labels.sum::<usize>())
}

fn unknown_consumer(id: u32) -> WireError {
    WireError::new(Code::UnknownConsumer, format!("consumer {id} is not open"))
}
