//! Identifiers that travel on the wire.

use std::fmt;
use std::str::FromStr;

/// Number of partitions that queues are hashed into. Part of the wire format: a task id names its partition.
pub const PARTITIONS: u16 = 1024;

const SEQ_BITS: u32 = 54;

/// One of [`PARTITIONS`] virtual shards; a queue belongs to the one its name hashes to (FNV-1a, 32 bit, modulo 1,024).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Partition(pub u16);

impl Partition {
    /// The partition of a queue. FNV-1a is written out because every client and every later node must agree on it.
    pub fn of_queue(name: &str) -> Self {
        let hash = name.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Self((hash % u32::from(PARTITIONS)) as u16)
    }
}

/// A task: the partition in the upper 10 bits, a sequence in the lower 54. Never zero, never used twice.
/// Its text form is 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);

impl TaskId {
    /// Largest sequence that an id can hold.
    pub const SEQ_MAX: u64 = (1 << SEQ_BITS) - 1;

    /// Puts an id together; `seq` is cut to 54 bits.
    pub fn new(partition: Partition, seq: u64) -> Self {
        Self((u64::from(partition.0) << SEQ_BITS) | (seq & Self::SEQ_MAX))
    }

    /// The partition of the queue that holds the task.
    pub fn partition(self) -> Partition {
        Partition((self.0 >> SEQ_BITS) as u16)
    }

    /// The sequence within the dispatcher that made the id.
    pub fn seq(self) -> u64 {
        self.0 & Self::SEQ_MAX
    }

    /// The id `n` places later in the same batch.
    #[must_use]
    pub fn offset(self, n: u64) -> Self {
        Self::new(self.partition(), self.seq() + n)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// The text was not 16 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a task id is 16 hexadecimal digits")]
pub struct ParseTaskIdError;

impl FromStr for TaskId {
    type Err = ParseTaskIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() != 16 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseTaskIdError);
        }
        u64::from_str_radix(s, 16).map(Self).map_err(|_| ParseTaskIdError)
    }
}

/// The right to settle a task: valid only for this attempt of this task under this epoch of its dispatcher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Lease {
    /// The task.
    pub task: TaskId,
    /// Counts the assignments of the task, from 1.
    pub attempt: u32,
    /// Incarnation of the dispatcher that gave the lease.
    pub epoch: u32,
}

/// A logged-in connection, unique within one run of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u32);

/// W3C trace context in binary: trace id, parent span id, flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trace(pub [u8; Trace::LEN]);

impl Trace {
    /// Bytes of a trace context: 16 + 8 + 1.
    pub const LEN: usize = 25;
}

impl serde::Serialize for Trace {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Trace {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Trace;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a trace context of 25 bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, v: &[u8]) -> Result<Trace, E> {
                v.try_into().map(Trace).map_err(|_| E::invalid_length(v.len(), &self))
            }
        }
        d.deserialize_bytes(Bytes)
    }
}

/// Where a task stands, as told to clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum TaskState {
    /// No such task here: never submitted, or its result is no longer kept.
    Unknown = 0,
    /// In its queue.
    Waiting = 1,
    /// In its queue, not before a time.
    Scheduled = 2,
    /// Leased by a worker.
    Running = 3,
    /// Finished; the payload is the result.
    Completed = 4,
    /// In the dead-letter list; the payload is the last error.
    Dead = 5,
    /// Cancelled before it completed.
    Cancelled = 6,
    /// Lost by a memory queue when its dispatcher restarted.
    Lost = 7,
}

impl TaskState {
    /// All states, in the order of their wire values.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Waiting,
        Self::Scheduled,
        Self::Running,
        Self::Completed,
        Self::Dead,
        Self::Cancelled,
        Self::Lost,
    ];

    /// The state of a wire value.
    pub fn from_u8(v: u8) -> Option<Self> {
        Self::ALL.get(usize::from(v)).copied()
    }

    /// Whether nothing can change the state any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Dead | Self::Cancelled | Self::Lost)
    }

    /// The state's name in JSON and text output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Waiting => "waiting",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

/// What an acknowledged submission survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Durability {
    /// Nothing beyond the server process (nor a restart of its dispatcher, which is then reported).
    Memory = 0,
    /// The process and the machine's power: synced to disk before the acknowledgement.
    Journal = 1,
    /// The loss of a machine.
    Replicated = 2,
}

impl Durability {
    /// The durability of a wire value.
    pub fn from_u8(v: u8) -> Option<Self> {
        [Self::Memory, Self::Journal, Self::Replicated].get(usize::from(v)).copied()
    }

    /// The name in JSON, text and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Journal => "journal",
            Self::Replicated => "replicated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_id_keeps_its_parts_and_its_text() {
        let id = TaskId::new(Partition(1023), TaskId::SEQ_MAX);
        assert_eq!((id.partition(), id.seq()), (Partition(1023), TaskId::SEQ_MAX));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(TaskId::new(Partition(3), 7).offset(5), TaskId::new(Partition(3), 12));
        assert_eq!("xyz".parse::<TaskId>(), Err(ParseTaskIdError));
        assert_eq!("+000000000000001".parse::<TaskId>(), Err(ParseTaskIdError));
    }

    #[test]
    fn partition_hash_is_the_documented_one() {
        // FNV-1a 32 of "a" is 0xe40c292c.
        assert_eq!(Partition::of_queue("a"), Partition((0xe40c_292c_u32 % 1024) as u16));
    }

    #[test]
    fn states_and_durabilities_round_trip() {
        for s in TaskState::ALL {
            assert_eq!(TaskState::from_u8(s as u8), Some(s));
        }
        assert_eq!(TaskState::from_u8(8), None);
        for d in [Durability::Memory, Durability::Journal, Durability::Replicated] {
            assert_eq!(Durability::from_u8(d as u8), Some(d));
        }
        assert_eq!(Durability::from_u8(3), None);
    }
}
