//! Hive, through the bytes of its protocol alone: batches of tasks in one frame, batches of results in one frame,
//! publishes one after the other.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use hive_proto::fragment::Assembler;
use hive_proto::frame::{FRAME_BYTES_MAX, MAGIC, write_frame};
use hive_proto::items::{Assign, Complete, Item, Items, Refused, Task};
use hive_proto::messages::{self, Hello, PROTOCOL_1_0, Subscribe, Welcome, Work};
use hive_proto::{Flags, FrameBuilder, FrameRef, Op, TaskState, WireError, codec, ids};

use super::{Clients, Durability, Job, Kind, Results, Role, Setup, System, Template, random_token};
use crate::measure::Tally;
use crate::run::{Client, Stamps};
use crate::server::{Missing, Server};

/// Name of the queue and of the subject.
const NAME: &str = "bench";
/// A batch of tasks takes about this much of a frame at most, bytes.
const BATCH_BYTES: usize = 128 * 1024;
/// Largest message taken, bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) struct Hive {
    token: String,
}

impl Hive {
    pub(crate) fn new(_: &Setup) -> Result<Self> {
        Ok(Self { token: random_token()? })
    }

    fn client(&self, part: Part) -> HiveClient {
        HiveClient::new(&self.token, part)
    }
}

impl System for Hive {
    fn refuses(&self, kind: Kind, durability: Durability) -> Option<&'static str> {
        (kind == Kind::PubSub && durability == Durability::Journal)
            .then_some("publish/subscribe of Hive keeps nothing")
    }

    fn start(&self, setup: &Setup) -> Result<Server> {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("hive"));
        let from_env = || std::env::var_os("HIVE_BIN").filter(|v| !v.is_empty()).map(Into::into);
        let program = setup.hive.clone().or_else(from_env).or_else(beside).context("no path to hive")?;
        if !program.is_file() {
            return Err(Missing(format!(
                "no hive at {}; build it or name it with --hive",
                program.display()
            ))
            .into());
        }
        let place = setup.place()?;
        let mut command = Command::new(program);
        command.args(["start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        match setup.durability {
            Durability::Memory => command.args(["--dev", "--durability", "memory"]),
            // Nothing more: what is measured is what those get who only say where to keep the data.
            Durability::Journal => command.arg("--data-dir").arg(place.dir.path().join("data")),
        };
        command.env("HIVE_TOKEN", &self.token).env_remove("HIVE_SERVER").env_remove("HIVE_HTTP");
        // Where the server tells local commands of itself: not where a person's own servers are.
        command.env("XDG_RUNTIME_DIR", place.dir.path());
        Server::start_announced(place, &command)
    }

    fn clients(&self, job: &Job) -> Clients {
        let boxed = |role, part| (role, Box::new(self.client(part)) as Box<dyn Client>);
        let consumers = (0..job.consumers).map(|_| match job.kind {
            Kind::PubSub => boxed(Role::Receiver, Part::Subscriber { shared: job.consumers > 1 }),
            Kind::Task => boxed(
                Role::Receiver,
                Part::Worker {
                    results: Results::new(job.result_size),
                    credit: job.in_flight.max(1),
                    batch: None,
                },
            ),
        });
        let producers = (0..job.producers).map(|i| match job.kind {
            Kind::PubSub => boxed(Role::Producer, Part::Publisher(publish_template(job.size, i))),
            Kind::Task => {
                boxed(Role::Producer, Part::Submitter { item: submit_template(job.size, i), last_id: 0 })
            }
        });
        consumers.chain(producers).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        Box::new(self.client(Part::Idle))
    }
}

/// A whole Publish frame.
pub(super) fn publish_template(size: usize, producer: usize) -> Template {
    let mut frame = Vec::new();
    write_frame(&mut frame, Op::Publish, 0, 0, 0, &[NAME.as_bytes()], &vec![0; size]);
    Template::new(&frame[..frame.len() - size], size, producer, b"")
}

/// One submit item.
fn submit_template(size: usize, producer: usize) -> Template {
    let mut before = (size as u32).to_le_bytes().to_vec();
    before.extend_from_slice(&[0; 2]);
    Template::new(&before, size, producer, b"")
}

/// Appends Submit frames for all stamps; `id` gives each its request id.
pub(super) fn submit(item: &Template, mut stamps: Stamps, out: &mut Vec<u8>, mut id: impl FnMut() -> u32) {
    let most = (BATCH_BYTES / item.len()).clamp(1, 4096);
    while stamps.len() > 0 {
        let n = stamps.len().min(most);
        let frame = FrameBuilder::begin(out, Op::Submit, Flags::WATCH, id(), &[NAME.as_bytes()]);
        for stamp in stamps.by_ref().take(n) {
            item.write(stamp, out);
        }
        frame.finish(out, n as u16);
    }
}

/// A Submit item template for the relay's clients, which speak the same frames.
pub(super) fn submit_item(size: usize, producer: usize) -> Template {
    submit_template(size, producer)
}

/// A batch of results that is being written at the end of a buffer.
pub(super) struct CompleteBatch {
    frame: FrameBuilder,
    count: u16,
}

impl CompleteBatch {
    pub(super) fn begin(out: &mut Vec<u8>) -> Self {
        Self { frame: FrameBuilder::begin(out, Op::Complete, 0, 0, &[]), count: 0 }
    }

    pub(super) fn push(&mut self, lease: ids::Lease, result: &[u8], out: &mut Vec<u8>) {
        Complete { lease, result }.write(out);
        self.count += 1;
    }

    /// Whether the frame has as many items as it should.
    pub(super) fn full(&self, out: &[u8]) -> bool {
        self.count == 4096 || out.len() - self.frame.start() > BATCH_BYTES
    }

    pub(super) fn finish(self, out: &mut [u8]) {
        self.frame.finish(out, self.count);
    }
}

enum Part {
    Idle,
    Publisher(Template),
    Subscriber { shared: bool },
    Submitter { item: Template, last_id: u32 },
    Worker { results: Results, credit: usize, batch: Option<CompleteBatch> },
}

struct HiveClient {
    token: String,
    part: Part,
    ready: bool,
    frame_bytes_max: usize,
    fragments: Assembler,
}

impl HiveClient {
    fn new(token: &str, part: Part) -> Self {
        Self {
            token: token.to_owned(),
            part,
            ready: false,
            frame_bytes_max: FRAME_BYTES_MAX,
            fragments: Assembler::new(MESSAGE_BYTES_MAX),
        }
    }

    #[inline]
    fn take(&mut self, frame: FrameRef<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        match frame.op()? {
            Op::Deliver => tally.done(frame.payload),
            Op::Assign => self.run(frame, out, tally)?,
            Op::Result => {
                for task in Items::<Task<'_>>::new(frame.payload, frame.prefix.count) {
                    ensure!(
                        task.state == TaskState::Completed,
                        "task {} is {}",
                        task.task,
                        task.state.name()
                    );
                    tally.done(task.payload);
                }
            }
            Op::Accepted => accepted(frame, tally)?,
            op => self.rare(op, frame, out, tally)?,
        }
        Ok(())
    }

    /// What does not come once per batch.
    #[cold]
    fn rare(&mut self, op: Op, frame: FrameRef<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        match op {
            Op::Welcome => self.welcome(frame, out)?,
            Op::Ok => self.ready = true,
            Op::Ping => {
                self.close_batch(out);
                write_frame(out, Op::Pong, 0, frame.prefix.id, 0, &[], frame.payload);
            }
            Op::Pong | Op::Progressed => {}
            Op::Settled => refused(frame).context("a result was refused")?,
            Op::MessagesLost | Op::ResultsMissed => {
                tally.dropped += frame.header.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            }
            Op::Fragment => {
                let whole = self.fragments.push(frame).map_err(|(_, e)| e)?;
                if let Some(whole) = whole {
                    let inner = FrameRef::parse(&whole).context("fragments of no frame")?;
                    ensure!(inner.prefix.op != Op::Fragment as u8, "fragments of a fragment");
                    self.take(inner, out, tally)?;
                }
            }
            Op::Error => bail!("Hive: {}", messages::decode::<WireError>(frame.header)?),
            op => bail!("Hive sent {op:?}"),
        }
        Ok(())
    }

    fn welcome(&mut self, frame: FrameRef<'_>, out: &mut Vec<u8>) -> Result<()> {
        let welcome: Welcome = messages::decode(frame.header)?;
        self.frame_bytes_max = welcome.frame_bytes_max as usize;
        match &self.part {
            Part::Subscriber { shared } => {
                let group = shared.then(|| "g".to_owned());
                let header = messages::encode(&Subscribe { subject: NAME.into(), group });
                write_frame(out, Op::Subscribe, 0, 1, 0, &[&header], &[]);
            }
            Part::Worker { credit, .. } => {
                let work = Work {
                    queue: NAME.into(),
                    credit_tasks: *credit as u32,
                    credit_bytes: 16 * 1024 * 1024,
                    labels: Vec::new(),
                };
                write_frame(out, Op::Work, 0, 1, 0, &[&messages::encode(&work)], &[]);
            }
            _ => self.ready = true,
        }
        Ok(())
    }

    fn run(&mut self, frame: FrameRef<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        let Part::Worker { results, batch, .. } = &mut self.part else {
            bail!("tasks for a client that does not work")
        };
        for task in Items::<Assign<'_>>::new(frame.payload, frame.prefix.count) {
            tally.assigned(task.payload);
            let open = batch.get_or_insert_with(|| CompleteBatch::begin(out));
            open.push(task.lease, results.of(task.payload), out);
            if open.full(out) {
                batch.take().into_iter().for_each(|b| b.finish(out));
            }
        }
        Ok(())
    }

    fn close_batch(&mut self, out: &mut [u8]) {
        if let Part::Worker { batch, .. } = &mut self.part {
            batch.take().into_iter().for_each(|b| b.finish(out));
        }
    }
}

fn accepted(frame: FrameRef<'_>, tally: &mut Tally) -> Result<()> {
    refused(frame).context("a task was refused")?;
    tally.accept(u64::from(frame.prefix.count));
    tally.promise(frame.header.get(8).and_then(|d| ids::Durability::from_u8(*d)));
    Ok(())
}

/// An error if the frame's payload names refused items.
fn refused(frame: FrameRef<'_>) -> Result<()> {
    match Items::<Refused>::new(frame.payload, u16::MAX).next() {
        Some(r) => bail!("item {}: code {}, retry after {} ms", r.index, r.code, r.retry_after_ms),
        None => Ok(()),
    }
}

impl Client for HiveClient {
    fn hello(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        let hello = Hello {
            min: PROTOCOL_1_0,
            max: PROTOCOL_1_0,
            client: concat!("hive-bench/", env!("CARGO_PKG_VERSION")).into(),
            token: self.token.clone(),
            ..Hello::default()
        };
        write_frame(out, Op::Hello, 0, 1, 0, &[&messages::encode(&hello)], &[]);
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let mut at = 0;
        while let Some(n) = codec::cut(&input[at..], self.frame_bytes_max)? {
            let frame = FrameRef::parse(&input[at..at + n]).context("a frame that is none")?;
            self.take(frame, out, tally)?;
            at += n;
        }
        self.close_batch(out);
        Ok(at)
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        match &mut self.part {
            Part::Publisher(frame) => {
                out.reserve(frame.len() * stamps.len());
                stamps.for_each(|s| frame.write(s, out));
            }
            Part::Submitter { item, last_id } => submit(item, stamps, out, || {
                *last_id = last_id.wrapping_add(1).max(1);
                *last_id
            }),
            _ => {}
        }
    }

    fn keep_alive(&mut self, out: &mut Vec<u8>) {
        write_frame(out, Op::Ping, 0, 1, 0, &[], &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{split_everywhere, stamps};
    use super::*;
    use hive_proto::codec::Frames;
    use hive_proto::items::{Submit, check};
    use hive_proto::{Lease, Partition, TaskId};

    fn clients(kind: Kind) -> Clients {
        let hive = Hive { token: "secret".into() };
        hive.clients(&Job { kind, producers: 1, consumers: 1, size: 300, result_size: 64, in_flight: 8 })
    }

    fn welcome() -> Vec<u8> {
        let welcome = Welcome {
            version: PROTOCOL_1_0,
            server: "s".into(),
            agent: "a".into(),
            session: 1,
            epoch: 1,
            heartbeat_ms: 3000,
            dead_ms: 12_000,
            frame_bytes_max: 1 << 20,
            message_bytes_max: 1 << 24,
            credit_tasks: 1000,
            credit_bytes: 1 << 20,
            draining: false,
        };
        let mut out = Vec::new();
        write_frame(&mut out, Op::Welcome, 0, 1, 0, &[&messages::encode(&welcome)], &[]);
        out
    }

    fn frames(bytes: &[u8]) -> Vec<(Op, u16)> {
        Frames(bytes).map(|f| (f.op().expect("known"), f.prefix.count)).collect()
    }

    #[test]
    fn a_login_names_the_token_and_opens_the_consumer() {
        let (_, mut worker) = clients(Kind::Task).remove(0);
        let (mut out, mut tally) = (Vec::new(), Tally::new());
        worker.hello(&mut out);
        assert_eq!(out[..4], MAGIC);
        let hello: Hello =
            messages::decode(FrameRef::parse(&out[4..]).expect("frame").header).expect("hello");
        assert_eq!(hello.token, "secret");
        out.clear();
        worker.receive(&welcome(), &mut out, &mut tally).expect("welcome");
        let work: Work = messages::decode(FrameRef::parse(&out).expect("frame").header).expect("work");
        assert_eq!((work.credit_tasks, worker.ready()), (8, false));
        let mut ok = Vec::new();
        write_frame(&mut ok, Op::Ok, 0, 1, 0, &[], &[]);
        worker.receive(&ok, &mut out, &mut tally).expect("ok");
        assert!(worker.ready());
    }

    #[test]
    fn what_is_submitted_can_be_assigned_and_completed() {
        let mut submitted = Vec::new();
        clients(Kind::Task)[1].1.produce(stamps(1000), &mut submitted);
        let kinds = frames(&submitted);
        assert!(kinds.len() > 1 && kinds.iter().all(|(op, _)| *op == Op::Submit));
        assert_eq!(kinds.iter().map(|(_, n)| usize::from(*n)).sum::<usize>(), 1000);

        let mut assigned = welcome();
        for frame in Frames(&submitted).take(1) {
            assert!(frame.prefix.flags.has(Flags::WATCH) && frame.header == NAME.as_bytes());
            let tasks = check::<Submit<'_>>(frame.payload, frame.prefix.count).expect("items").take(3);
            let builder = FrameBuilder::begin(&mut assigned, Op::Assign, 0, 1, &[]);
            for (i, task) in tasks.enumerate() {
                assert_eq!((task.payload.len(), crate::measure::stamp_of(task.payload)), (300, 7));
                let lease = Lease { task: TaskId::new(Partition(1), i as u64), attempt: 1, epoch: 2 };
                Assign { lease, lease_ms: 1000, ext: &[], payload: task.payload }.write(&mut assigned);
            }
            builder.finish(&mut assigned, 3);
        }
        let (out, mut tally) = split_everywhere(&assigned, || clients(Kind::Task).remove(0).1);
        assert_eq!(tally.assigned.count(), 3);
        assert_eq!(frames(&out), [(Op::Work, 0), (Op::Complete, 3)]);
        let complete = Frames(&out).last().expect("complete");
        let results: Vec<_> = check::<Complete<'_>>(complete.payload, 3).expect("items").collect();
        assert_eq!((results[2].lease.task.seq(), results[2].result.len()), (2, 64));
    }

    #[test]
    fn results_acknowledgements_and_fragments_are_counted() {
        let mut input = welcome();
        let header = [&7_u64.to_le_bytes()[..], &[1]].concat();
        write_frame(&mut input, Op::Accepted, 0, 1, 5, &[&header], &[]);
        let mut result = Vec::new();
        let builder = FrameBuilder::begin(&mut result, Op::Result, 0, 0, &[]);
        let task = Task {
            task: TaskId::new(Partition(1), 9),
            state: TaskState::Completed,
            attempt: 1,
            payload: &[5; 64],
        };
        task.write(&mut result);
        builder.finish(&mut result, 1);
        input.extend_from_slice(&result);
        hive_proto::fragment::split(&result, 3, 40, |f| input.extend_from_slice(&f));
        let (_, mut tally) = split_everywhere(&input, || clients(Kind::Task).remove(1).1);
        assert_eq!(
            (tally.accepted, tally.done.count(), tally.durability),
            (5, 2, Some(ids::Durability::Journal))
        );
    }

    #[test]
    fn refusals_end_the_run() {
        let mut input = Vec::new();
        let builder = FrameBuilder::begin(&mut input, Op::Settled, 0, 0, &[]);
        Refused { index: 1, code: 304, retry_after_ms: 0 }.write(&mut input);
        builder.finish(&mut input, 0);
        let error = clients(Kind::Task)[0]
            .1
            .receive(&input, &mut Vec::new(), &mut Tally::new())
            .expect_err("refused");
        assert!(format!("{error:#}").contains("code 304"), "{error:#}");
    }

    #[test]
    fn a_publish_becomes_a_delivery() {
        let mut out = Vec::new();
        clients(Kind::PubSub)[1].1.produce(stamps(3), &mut out);
        assert_eq!(frames(&out), [(Op::Publish, 0); 3]);
        let one = out.len() / 3;
        for i in 0..3 {
            hive_proto::frame::patch(&mut out[i * one..], Op::Deliver, 1);
        }
        let (_, mut tally) =
            split_everywhere(&[welcome(), out].concat(), || clients(Kind::PubSub).remove(0).1);
        assert_eq!(tally.done.count(), 3);
    }

    #[test]
    fn a_ping_is_answered_between_batches() {
        let mut input = welcome();
        write_frame(&mut input, Op::Ping, 0, 77, 0, &[], b"abc");
        let mut client = clients(Kind::PubSub).remove(1).1;
        let mut out = Vec::new();
        client.receive(&input, &mut out, &mut Tally::new()).expect("ping");
        let pong = Frames(&out).last().expect("pong");
        assert_eq!((pong.op(), pong.prefix.id, pong.payload), (Ok(Op::Pong), 77, &b"abc"[..]));
    }
}
