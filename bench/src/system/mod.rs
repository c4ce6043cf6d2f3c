//! The systems that can be driven: how each is started, and its clients as state machines over bytes.
//!
//! Each is driven in its own best way: everything that a system can pipeline or batch is pipelined or batched.
//! A payload begins with its stamp (8 bytes) and the number of its producer (4 bytes); a result repeats both, so no
//! client has to remember what is under way.

mod beanstalkd;
mod floor;
mod gearman;
mod hive;
mod jetstream;
mod nats;
mod nats_wire;
mod redis;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use tempfile::TempDir;

use crate::cores::Cores;
use crate::disk;
use crate::run::Client;
use crate::server::{Place, Server};

/// Bytes of a payload that the harness uses; no payload is smaller.
pub(crate) const PAYLOAD_MIN: usize = 16;

/// A system that can be driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Name {
    Hive,
    /// nats-server, core: publish/subscribe and bare request/reply.
    Nats,
    /// nats-server, JetStream as a work queue.
    Jetstream,
    /// Redis: publish/subscribe, and Streams with a consumer group as a work queue.
    Redis,
    Gearman,
    Beanstalkd,
    /// A bare relay that only cuts and forwards frames.
    Floor,
}

impl Name {
    /// The name on the command line and in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hive => "hive",
            Self::Nats => "nats",
            Self::Jetstream => "jetstream",
            Self::Redis => "redis",
            Self::Gearman => "gearman",
            Self::Beanstalkd => "beanstalkd",
            Self::Floor => "floor",
        }
    }

    /// The system, ready to be started.
    pub(crate) fn system(self, setup: &Setup) -> Result<Box<dyn System>> {
        Ok(match self {
            Self::Hive => Box::new(hive::Hive::new(setup)?),
            Self::Nats => Box::new(nats::Nats),
            Self::Jetstream => {
                Box::new(jetstream::JetStream { durable: setup.durability == Durability::Journal })
            }
            Self::Redis => Box::new(redis::Redis),
            Self::Gearman => Box::new(gearman::Gearman),
            Self::Beanstalkd => Box::new(beanstalkd::Beanstalkd),
            Self::Floor => Box::new(floor::Floor),
        })
    }
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Durability {
    /// Nothing beyond the process.
    Memory,
    /// Synced to disk before the acknowledgement.
    Journal,
}

impl Durability {
    /// The name on the command line and in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Journal => "journal",
        }
    }
}

/// How servers are started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) durability: Durability,
    /// The binary of Hive, if named.
    pub(crate) hive: Option<PathBuf>,
    pub(crate) cores: Cores,
    /// Where the folders of durable servers are made, if named.
    pub(crate) disk: Option<PathBuf>,
}

impl Setup {
    /// A place for a server; on a disk, if it is to keep what it acknowledges.
    pub(crate) fn place(&self) -> Result<Place> {
        let dir = match self.durability {
            Durability::Memory => TempDir::new()?,
            Durability::Journal => disk::folder(self.disk.as_deref())?,
        };
        Ok(Place { dir, cores: self.cores })
    }
}

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Publish and subscribe; more than one subscriber share the messages.
    PubSub,
    /// Submit tasks, run them, get the results pushed.
    Task,
}

/// The clients of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    /// Publishers or submitters.
    pub(crate) producers: usize,
    /// Subscribers or workers; 0 leaves the tasks waiting.
    pub(crate) consumers: usize,
    /// Payload, bytes.
    pub(crate) size: usize,
    /// Result of a task, bytes.
    pub(crate) result_size: usize,
    /// Most messages or tasks under way at once; in an open loop what a worker may hold.
    pub(crate) in_flight: usize,
}

/// What a connection is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Publishes or submits.
    Producer,
    /// Receives messages or tasks, or collects results where that takes a connection of its own.
    Receiver,
}

/// A system's clients with their roles, in the order in which they connect: receivers first.
pub(crate) type Clients = Vec<(Role, Box<dyn Client>)>;

/// A system that can be started and driven.
pub(crate) trait System {
    /// Why it cannot do this kind of job, if it cannot.
    fn refuses(&self, kind: Kind, durability: Durability) -> Option<&'static str>;
    /// Whether tasks wait in it while no worker is there.
    fn keeps_tasks(&self) -> bool {
        true
    }
    /// Starts its server.
    fn start(&self, setup: &Setup) -> Result<Server>;
    /// Makes what the clients need: streams, groups.
    fn prepare(&self, _server: &Server, _job: &Job, _durability: Durability) -> Result<()> {
        Ok(())
    }
    /// The clients of a job.
    fn clients(&self, job: &Job) -> Clients;
    /// A client that only logs in. Its connection is one of many.
    fn idle(&self) -> Box<dyn Client>;
}

/// The bytes of a message, all the same but for the stamp.
pub(crate) struct Template {
    bytes: Vec<u8>,
    stamp_at: usize,
}

impl Template {
    /// A message of a payload of `size` bytes (at least [`PAYLOAD_MIN`]) between `before` and `after`.
    pub(crate) fn new(before: &[u8], size: usize, producer: usize, after: &[u8]) -> Self {
        let bytes = [before, &payload(size, producer)[..], after].concat();
        Self { bytes, stamp_at: before.len() }
    }

    /// Appends the message with this stamp.
    #[inline]
    pub(crate) fn write(&self, stamp: u64, out: &mut Vec<u8>) {
        let at = out.len() + self.stamp_at;
        out.extend_from_slice(&self.bytes);
        out[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
    }

    /// Length of the message, bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

fn payload(size: usize, producer: usize) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(&(producer as u32).to_le_bytes());
    bytes.extend((12..size.max(PAYLOAD_MIN)).map(|i| b'a' + (i % 26) as u8));
    bytes
}

/// The producer named in a payload.
#[inline]
pub(crate) fn producer_of(payload: &[u8]) -> usize {
    payload.get(8..12).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
}

/// Results: the head of the task, then filling.
pub(crate) struct Results(Vec<u8>);

impl Results {
    pub(crate) fn new(size: usize) -> Self {
        Self(payload(size, 0))
    }

    /// The result of a task.
    #[inline]
    pub(crate) fn of(&mut self, task: &[u8]) -> &[u8] {
        let n = task.len().min(12);
        self.0[..n].copy_from_slice(&task[..n]);
        &self.0
    }

    /// Length of a result, bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The number in ASCII digits, if it is one.
#[inline]
pub(crate) fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + usize::from(d - b'0')))
}

/// The line at the start of `input` without its CRLF, and its length with it.
#[inline]
pub(crate) fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = memchr::memchr(b'\n', input)?;
    Some((input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]), end + 1))
}

/// Random bits as 32 hexadecimal digits.
pub(crate) fn random_token() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::Tally;
    use crate::run::Stamps;

    /// Feeds `input` cut in pieces of every size at every place and checks that answers and counts are always the same.
    pub(crate) fn split_everywhere(input: &[u8], make: impl Fn() -> Box<dyn Client>) -> (Vec<u8>, Tally) {
        let run = |cuts: &[usize]| {
            let (mut client, mut tally, mut out) = (make(), Tally::new(), Vec::new());
            tally.now = 1;
            let mut start = 0;
            for end in cuts.iter().copied().chain([input.len()]) {
                start += client.receive(&input[start..end], &mut out, &mut tally).expect("valid input");
            }
            assert_eq!(start, input.len(), "all is taken");
            (out, tally)
        };
        let (whole, mut tally) = run(&[]);
        let bytewise: Vec<usize> = (0..input.len()).collect();
        for cuts in (0..input.len()).map(|i| vec![i]).chain([bytewise]) {
            let (_, mut other) = run(&cuts);
            assert_eq!(other.done.count(), tally.done.count(), "cut at {cuts:?}");
            assert_eq!(other.assigned.count(), tally.assigned.count(), "cut at {cuts:?}");
            assert_eq!(other.accepted, tally.accepted, "cut at {cuts:?}");
        }
        (whole, tally)
    }

    pub(crate) fn stamps(count: usize) -> Stamps {
        Stamps { first: 7.0, period: 0.0, count }
    }

    #[test]
    fn a_template_carries_stamp_and_producer() {
        let t = Template::new(b"head ", 20, 3, b"\r\n");
        let mut out = b"x".to_vec();
        t.write(99, &mut out);
        assert_eq!(out.len(), 1 + 5 + 20 + 2);
        let payload = &out[6..26];
        assert_eq!((crate::measure::stamp_of(payload), producer_of(payload)), (99, 3));
        let mut results = Results::new(64);
        let result = results.of(payload);
        assert_eq!((crate::measure::stamp_of(result), producer_of(result), result.len()), (99, 3, 64));
    }

    #[test]
    fn numbers_and_lines() {
        assert_eq!(
            (decimal(b"120"), decimal(b""), decimal(b"1x"), decimal(&[b'9'; 30])),
            (Some(120), None, None, None)
        );
        assert_eq!(line(b"ab\r\ncd"), Some((&b"ab"[..], 4)));
        assert_eq!(line(b"ab\r"), None);
    }
}
