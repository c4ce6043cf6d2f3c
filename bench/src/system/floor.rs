//! The floor: Hive's frames through a relay that only cuts and forwards. What the machine can do at all.
//!
//! A client's first frame names its pair and comes back when both ends of the pair are there.

use std::process::Command;

use anyhow::{Context, Result};
use hive_proto::frame::{FRAME_BYTES_MAX, write_frame};
use hive_proto::items::{Complete, Items, Submit};
use hive_proto::{FrameRef, Lease, Op, TaskId, codec};

use super::hive::{CompleteBatch, publish_template, submit, submit_item};
use super::{Clients, Durability, Job, Kind, Results, Role, Setup, System, Template};
use crate::measure::Tally;
use crate::run::{Client, Stamps};
use crate::server::Server;

pub(crate) struct Floor;

impl System for Floor {
    fn refuses(&self, _: Kind, durability: Durability) -> Option<&'static str> {
        (durability != Durability::Memory).then_some("the relay keeps nothing")
    }

    fn keeps_tasks(&self) -> bool {
        false
    }

    fn start(&self, setup: &Setup) -> Result<Server> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("relay");
        Server::start_announced(setup.place()?, &command)
    }

    fn clients(&self, job: &Job) -> Clients {
        let boxed =
            |role, pair, part| (role, Box::new(FloorClient { pair, part, ready: false }) as Box<dyn Client>);
        // The relay joins two connections: more of one side than of the other share nothing here.
        let pairs = job.producers.min(job.consumers) as u32;
        let receivers = (0..pairs).map(|i| match job.kind {
            Kind::PubSub => boxed(Role::Receiver, i, Part::Subscriber),
            Kind::Task => boxed(Role::Receiver, i, Part::Worker(Results::new(job.result_size))),
        });
        let producers = (0..pairs).map(|i| match job.kind {
            Kind::PubSub => boxed(Role::Producer, i, Part::Publisher(publish_template(job.size, i as usize))),
            Kind::Task => boxed(Role::Producer, i, Part::Submitter(submit_item(job.size, i as usize))),
        });
        receivers.chain(producers).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        Box::new(FloorClient { pair: 0, part: Part::Subscriber, ready: true })
    }
}

enum Part {
    Publisher(Template),
    Subscriber,
    Submitter(Template),
    Worker(Results),
}

struct FloorClient {
    pair: u32,
    part: Part,
    ready: bool,
}

impl Client for FloorClient {
    fn hello(&mut self, out: &mut Vec<u8>) {
        write_frame(out, Op::Hello, 0, self.pair, 0, &[], &[]);
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let (mut at, mut batch) = (0, None::<CompleteBatch>);
        while let Some(n) = codec::cut(&input[at..], FRAME_BYTES_MAX)? {
            let frame = FrameRef::parse(&input[at..at + n]).context("a frame that is none")?;
            at += n;
            match &mut self.part {
                _ if !self.ready => self.ready = true,
                Part::Publisher(_) => {}
                Part::Subscriber => tally.done(frame.payload),
                Part::Submitter(_) => {
                    let results = Items::<Complete<'_>>::new(frame.payload, frame.prefix.count);
                    results.for_each(|r| tally.done(r.result));
                }
                Part::Worker(results) => {
                    for task in Items::<Submit<'_>>::new(frame.payload, frame.prefix.count) {
                        tally.assigned(task.payload);
                        let lease = Lease { task: TaskId(1), attempt: 1, epoch: 1 };
                        let open = batch.get_or_insert_with(|| CompleteBatch::begin(out));
                        open.push(lease, results.of(task.payload), out);
                        if open.full(out) {
                            batch.take().into_iter().for_each(|b| b.finish(out));
                        }
                    }
                }
            }
        }
        batch.into_iter().for_each(|b| b.finish(out));
        Ok(at)
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        match &self.part {
            Part::Publisher(frame) => stamps.for_each(|s| frame.write(s, out)),
            Part::Submitter(item) => submit(item, stamps, out, || 1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{split_everywhere, stamps};
    use super::*;

    #[test]
    fn a_task_goes_there_and_back_through_any_split() {
        let job =
            Job { kind: Kind::Task, producers: 1, consumers: 1, size: 32, result_size: 64, in_flight: 4 };
        let mut hello = Vec::new();
        write_frame(&mut hello, Op::Hello, 0, 0, 0, &[], &[]);
        let mut tasks = hello.clone();
        Floor.clients(&job)[1].1.produce(stamps(4), &mut tasks);
        let (out, mut tally) = split_everywhere(&tasks, || Floor.clients(&job).remove(0).1);
        assert_eq!(tally.assigned.count(), 4);
        let (_, mut tally) = split_everywhere(&[hello, out].concat(), || Floor.clients(&job).remove(1).1);
        assert_eq!(tally.done.count(), 4);
    }
}
