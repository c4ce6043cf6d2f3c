//! Queues, and their lanes: the tasks of a queue that ask for the same labels stand in one line.

use std::collections::VecDeque;

use hive_proto::error::Code;
use hive_proto::{Partition, WireError, ids::Durability, names};

use super::Board;
use super::arena::Stream;
use super::spill::Run;
use super::table::List;

/// Distinct label sets of one queue.
pub(crate) const LANES_MAX: usize = 256;

/// What a lane and each of its labels take besides the text, bytes.
const LANE_BYTES: usize = 128;
const LABEL_BYTES: usize = 40;

/// How a queue treats its tasks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How long a worker may hold a task without renewing it, milliseconds.
    pub lease_ms: u32,
    /// Attempts before a task is a dead letter.
    pub attempts_max: u16,
    /// Wait before the next attempt of a task that failed, milliseconds.
    pub retry_delay_ms: u32,
    /// What its acknowledgements promise. Anything but memory needs a journal behind the board.
    pub durability: Durability,
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) name: Box<str>,
    pub(crate) partition: Partition,
    pub(crate) policy: Policy,
    pub(crate) lanes: Vec<u32>,
    /// Consumers with credit and their generations, in the order in which they are served; each at most once.
    pub(crate) ready: VecDeque<(u32, u32)>,
    pub(crate) consumers: usize,
    /// Is in [`Board::dirty`].
    pub(crate) dirty: bool,
    pub(crate) waiting: usize,
    pub(crate) scheduled: usize,
    pub(crate) running: usize,
    pub(crate) completed: u64,
    pub(crate) dead: List,
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) queue: u32,
    /// Labels that a worker must offer, sorted.
    pub(crate) labels: Box<[String]>,
    pub(crate) tasks: List,
    /// Tasks in the record that is being written, and those that go into the next: not to be assigned yet.
    pub(crate) in_flight: List,
    pub(crate) gathering: List,
    /// Where the payloads of its tasks go.
    pub(crate) stream: Stream,
    /// Tasks on disk: they come after those in memory.
    pub(crate) spilled: usize,
    /// Where they are.
    pub(crate) runs: VecDeque<Run>,
    /// The first run is being read.
    pub(crate) fetching: bool,
    /// The board knows that it has runs.
    pub(crate) listed: bool,
    /// The journal knows the lane by its number.
    pub(crate) logged: bool,
    /// Consumers that fit and stand in their queue's `ready`: without them a pump would ask everybody in line in vain.
    pub(crate) in_line: usize,
}

impl Queue {
    /// Whether what happens to its tasks must survive.
    #[inline]
    pub(crate) fn is_durable(&self) -> bool {
        self.policy.durability != Durability::Memory
    }
}

impl Lane {
    fn new(queue: u32, labels: Box<[String]>) -> Self {
        let (tasks, in_flight, gathering, stream, runs) = Default::default();
        let (spilled, fetching, listed, logged, in_line) = (0, false, false, false, 0);
        Self {
            queue,
            labels,
            tasks,
            in_flight,
            gathering,
            stream,
            spilled,
            runs,
            fetching,
            listed,
            logged,
            in_line,
        }
    }

    /// Waiting tasks that are not on disk.
    #[inline]
    pub(crate) fn in_memory(&self) -> usize {
        self.tasks.len + self.in_flight.len + self.gathering.len
    }

    /// Whether a worker that offers `offered` (sorted) may take its tasks.
    pub(crate) fn fits(&self, offered: &[String]) -> bool {
        self.labels.iter().all(|l| offered.binary_search(l).is_ok())
    }
}

impl Board {
    /// Declares a queue with a policy of its own; an existing one takes the policy over.
    ///
    /// # Errors
    /// `invalid_queue_name`, `too_many_queues`.
    pub fn declare(&mut self, name: &str, policy: Policy) -> Result<(), WireError> {
        let at = match self.by_name.get(name) {
            Some(at) => *at,
            None => self.create_within_limits(name)?,
        };
        self.queues[at as usize].policy = policy;
        Ok(())
    }

    /// The queue of this name, made if need be.
    #[inline]
    pub(crate) fn queue(&mut self, name: &[u8]) -> Result<u32, WireError> {
        // Names that exist were judged when they were made.
        if let Some(at) = std::str::from_utf8(name).ok().and_then(|n| self.by_name.get(n)) {
            return Ok(*at);
        }
        let name = names::queue(name)?;
        if !self.limits.queues_auto_create {
            let text = format!("queue {name:?} does not exist and queues_auto_create is false");
            return Err(WireError::new(Code::UnknownQueue, text));
        }
        self.create_within_limits(name)
    }

    fn create_within_limits(&mut self, name: &str) -> Result<u32, WireError> {
        names::queue(name.as_bytes())?;
        if self.queues.len() >= self.limits.queues_max {
            let text =
                format!("queue {name:?} would be one more than queues_max = {}", self.limits.queues_max);
            return Err(WireError::new(Code::TooManyQueues, text));
        }
        Ok(self.create(name))
    }

    /// Makes a queue of a valid name that is not there yet.
    pub(crate) fn create(&mut self, name: &str) -> u32 {
        let at = self.queues.len() as u32;
        self.lanes.push(Lane::new(at, Box::default()));
        self.queues.push(Queue {
            name: name.into(),
            partition: Partition::of_queue(name),
            policy: self.default_policy,
            lanes: vec![(self.lanes.len() - 1) as u32],
            ready: VecDeque::new(),
            consumers: 0,
            dirty: false,
            waiting: 0,
            scheduled: 0,
            running: 0,
            completed: 0,
            dead: List::default(),
        });
        self.by_name.insert(name.into(), at);
        at
    }

    /// The lane for a set of labels; the empty set is always the first.
    pub(crate) fn lane(&mut self, queue: u32, labels: &[String]) -> Result<u32, WireError> {
        if labels.is_empty() {
            return Ok(self.queues[queue as usize].lanes[0]);
        }
        names::labels(labels)?;
        let wanted = sorted(labels.to_vec());
        if let Some(l) = self.find_lane(queue, &wanted) {
            return Ok(l);
        }
        if self.spill.full {
            return Err(self.memory_full());
        }
        if self.queues[queue as usize].lanes.len() >= LANES_MAX {
            let text = format!(
                "queue {:?} has {LANES_MAX} distinct label sets already",
                self.queues[queue as usize].name
            );
            return Err(WireError::new(Code::TooManyLabels, text));
        }
        Ok(self.lane_or_new(queue, wanted))
    }

    fn find_lane(&self, queue: u32, labels: &[String]) -> Option<u32> {
        self.queues[queue as usize].lanes.iter().copied().find(|l| *self.lanes[*l as usize].labels == *labels)
    }

    /// The lane for a set of labels, sorted; made if need be.
    pub(crate) fn lane_or_new(&mut self, queue: u32, wanted: Box<[String]>) -> u32 {
        if let Some(l) = self.find_lane(queue, &wanted) {
            return l;
        }
        let at = self.lanes.len() as u32;
        self.lane_bytes += LANE_BYTES + wanted.iter().map(|l| l.len() + LABEL_BYTES).sum::<usize>();
        self.lanes.push(Lane::new(queue, wanted));
        self.queues[queue as usize].lanes.push(at);
        for consumer in self.consumers.iter_mut().flatten().filter(|c| c.queue == queue) {
            if self.lanes[at as usize].fits(&consumer.labels) {
                consumer.lanes.push(at);
                self.lanes[at as usize].in_line += usize::from(consumer.ready);
            }
        }
        at
    }

    #[inline]
    pub(crate) fn mark_dirty(&mut self, queue: u32) {
        let q = &mut self.queues[queue as usize];
        if !q.dirty {
            q.dirty = true;
            self.dirty.push(queue);
        }
    }
}

/// Labels as lanes and consumers keep them.
pub(crate) fn sorted(mut labels: Vec<String>) -> Box<[String]> {
    labels.sort_unstable();
    labels.dedup();
    labels.into()
}
