//! beanstalkd: tasks in one tube, results in a tube of each submitter.
//!
//! The server answers a connection's commands strictly in order and `reserve` blocks those behind it, so results are
//! collected by a connection of their own, and what is taken in one go is one blocking `reserve` and several that do
//! not wait.

use std::io::Write;
use std::process::Command;

use anyhow::{Result, bail};

use super::{
    Clients, Durability, Job, Kind, Results, Role, Setup, System, Template, decimal, line, producer_of,
};
use crate::measure::Tally;
use crate::run::{Client, Stamps};
use crate::server::{Server, find};

/// Jobs taken in one go, at most.
const TAKE_MAX: usize = 16;

pub(crate) struct Beanstalkd;

impl System for Beanstalkd {
    fn refuses(&self, kind: Kind, _: Durability) -> Option<&'static str> {
        (kind == Kind::PubSub).then_some("beanstalkd has no publish/subscribe")
    }

    fn start(&self, setup: &Setup) -> Result<Server> {
        let program = find("beanstalkd")?;
        Server::start(setup.place()?, |port, dir| {
            let mut c = Command::new(&program);
            c.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-z", "1048576"]);
            if setup.durability == Durability::Journal {
                c.arg("-f0").arg("-b").arg(dir);
            }
            c
        })
    }

    fn clients(&self, job: &Job) -> Clients {
        let take = (job.in_flight / job.consumers.max(1)).clamp(1, TAKE_MAX);
        let workers = (0..job.consumers).map(|_| Part::Worker(Results::new(job.result_size), usize::MAX));
        let workers = workers.map(|p| BeanClient::new("watch t\r\nignore default\r\n", p, take));
        // Without workers there are no results to collect.
        let collectors = (0..if job.consumers > 0 { job.producers } else { 0 })
            .map(|i| BeanClient::new(&format!("watch r{i}\r\nignore default\r\n"), Part::Collector, take));
        let receivers = workers.chain(collectors).map(|c| (Role::Receiver, Box::new(c) as Box<dyn Client>));
        let producers = (0..job.producers).map(|i| {
            let before = format!("put 0 0 60 {}\r\n", job.size);
            let template = Template::new(before.as_bytes(), job.size, i, b"\r\n");
            let client = BeanClient::new("use t\r\n", Part::Producer(template), 0);
            (Role::Producer, Box::new(client) as Box<dyn Client>)
        });
        receivers.chain(producers).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        Box::new(BeanClient::new("use t\r\n", Part::Producer(Template::new(b"", 16, 0, b"")), 0))
    }
}

enum Part {
    Producer(Template),
    /// Also the producer whose tube is in use.
    Worker(Results, usize),
    Collector,
}

struct BeanClient {
    hello: String,
    part: Part,
    /// Most jobs to take in one go, what the next go asks for, and answers of this go that are missing.
    take: usize,
    next: usize,
    missing: usize,
    found: usize,
    greeted: bool,
}

impl BeanClient {
    fn new(hello: &str, part: Part, take: usize) -> Self {
        Self { hello: hello.to_owned(), part, take, next: 1, missing: 0, found: 0, greeted: false }
    }

    /// Asks for the next jobs: up to twice what this go found, so that a backlog is taken and little is asked in vain.
    fn reserve(&mut self, out: &mut Vec<u8>) {
        self.next = (self.found * 2).clamp(1, self.take);
        (self.missing, self.found) = (self.next, 0);
        out.extend_from_slice(b"reserve\r\n");
        for _ in 1..self.next {
            out.extend_from_slice(b"reserve-with-timeout 0\r\n");
        }
    }

    fn job(&mut self, id: &[u8], payload: &[u8], out: &mut Vec<u8>, tally: &mut Tally) {
        self.found += 1;
        self.missing -= 1;
        match &mut self.part {
            Part::Worker(results, tube) => {
                tally.assigned(payload);
                let producer = producer_of(payload);
                if *tube != producer {
                    *tube = producer;
                    write!(out, "use r{producer}\r\n").expect("writing to memory");
                }
                write!(out, "put 0 0 60 {}\r\n", results.len()).expect("writing to memory");
                out.extend_from_slice(results.of(payload));
                out.extend_from_slice(b"\r\n");
            }
            _ => tally.done(payload),
        }
        out.extend_from_slice(b"delete ");
        out.extend_from_slice(id);
        out.extend_from_slice(b"\r\n");
    }
}

impl Client for BeanClient {
    fn hello(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.hello.as_bytes());
        if !matches!(self.part, Part::Producer(_)) {
            self.reserve(out);
        }
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let mut at = 0;
        while let Some((text, head)) = line(&input[at..]) {
            let mut words = text.split(|b| *b == b' ');
            match words.next().unwrap_or_default() {
                b"RESERVED" => {
                    let (Some(id), Some(size)) = (words.next(), words.next().and_then(decimal)) else {
                        bail!("beanstalkd sent a strange RESERVED");
                    };
                    let body = at + head;
                    if input.len() < body + size + 2 {
                        break;
                    }
                    self.job(id, &input[body..body + size], out, tally);
                    at += size + 2;
                }
                b"INSERTED" if matches!(self.part, Part::Producer(_)) => tally.accept(1),
                b"TIMED_OUT" => self.missing -= 1,
                b"USING" | b"WATCHING" => self.greeted = true,
                b"INSERTED" | b"DELETED" => {}
                _ => bail!("beanstalkd: {}", String::from_utf8_lossy(text)),
            }
            at += head;
            if self.missing == 0 && self.found > 0 {
                self.reserve(out);
            }
        }
        Ok(at)
    }

    fn ready(&self) -> bool {
        self.greeted
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        if let Part::Producer(template) = &self.part {
            stamps.for_each(|s| template.write(s, out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::split_everywhere;
    use super::*;

    fn reserved(producer: usize) -> Vec<u8> {
        let mut out = Vec::new();
        Template::new(b"RESERVED 12 16\r\n", 16, producer, b"\r\n").write(5, &mut out);
        out
    }

    fn receiver(number: usize) -> Box<dyn Client> {
        let job =
            Job { kind: Kind::Task, producers: 2, consumers: 1, size: 16, result_size: 20, in_flight: 8 };
        let mut client = Beanstalkd.clients(&job).remove(number).1;
        client.hello(&mut Vec::new());
        client
    }

    #[test]
    fn a_worker_changes_tubes_and_reserves_again() {
        let input =
            [b"WATCHING 2\r\nWATCHING 1\r\n".to_vec(), reserved(1), b"USING r1\r\n".to_vec()].concat();
        let (out, mut tally) = split_everywhere(&input, || receiver(0));
        let text = String::from_utf8_lossy(&out);
        assert!(text.starts_with("use r1\r\nput 0 0 60 20\r\n"), "{text}");
        assert!(text.ends_with("delete 12\r\nreserve\r\nreserve-with-timeout 0\r\n"), "{text}");
        assert_eq!(tally.assigned.count(), 1);
    }

    #[test]
    fn a_collector_takes_results() {
        let input = [reserved(0), b"DELETED\r\n".to_vec(), reserved(0), b"TIMED_OUT\r\n".to_vec()].concat();
        let (_, mut tally) = split_everywhere(&input, || receiver(1));
        assert_eq!(tally.done.count(), 2);
        assert!(receiver(1).receive(b"OUT_OF_MEMORY\r\n", &mut Vec::new(), &mut Tally::new()).is_err());
    }
}
