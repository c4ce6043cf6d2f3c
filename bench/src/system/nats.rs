//! nats-server, core: publish/subscribe, and bare request/reply as a task cycle without lease and acknowledgement.

use std::io::Write;
use std::process::Command;

use anyhow::{Result, bail};
use tempfile::TempDir;

use super::{
    Clients, Durability, Job, Kind, Results, Role, Setup, System, Template, decimal, line, producer_of,
};
use crate::measure::Tally;
use crate::run::{Client, Stamps};
use crate::server::{Server, find};

pub(crate) struct Nats;

impl System for Nats {
    fn refuses(&self, _: Kind, durability: Durability) -> Option<&'static str> {
        (durability != Durability::Memory).then_some("core NATS keeps nothing; JetStream does")
    }

    fn keeps_tasks(&self) -> bool {
        false
    }

    fn start(&self, _: &Setup) -> Result<Server> {
        let program = find("nats-server")?;
        Server::start(TempDir::new()?, |port, _| {
            let mut c = Command::new(&program);
            c.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
            c
        })
    }

    fn clients(&self, job: &Job) -> Clients {
        let consumers = (0..job.consumers).map(|_| match job.kind {
            Kind::PubSub => NatsClient::new("SUB bench g 1\r\n", Part::Subscriber),
            Kind::Task => NatsClient::new("SUB bench g 1\r\n", Part::Worker(Results::new(job.result_size))),
        });
        let producers = (0..job.producers).map(|i| match job.kind {
            Kind::PubSub => {
                let before = format!("PUB bench {}\r\n", job.size);
                NatsClient::new("", Part::Producer(Template::new(before.as_bytes(), job.size, i, b"\r\n")))
            }
            Kind::Task => {
                let before = format!("PUB bench r{i} {}\r\n", job.size);
                let part = Part::Producer(Template::new(before.as_bytes(), job.size, i, b"\r\n"));
                NatsClient::new(&format!("SUB r{i} 1\r\n"), part)
            }
        });
        let consumers = consumers.map(|c| (Role::Receiver, Box::new(c) as Box<dyn Client>));
        consumers.chain(producers.map(|p| (Role::Producer, Box::new(p) as Box<dyn Client>))).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        Box::new(NatsClient::new("", Part::Subscriber))
    }
}

/// What stands at the start of a connection; the subscriptions follow, and a PING whose answer says that they stand.
pub(super) const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";

/// One protocol message of the server.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Op<'a> {
    /// Subject, subscription and perhaps a reply subject in `args`.
    Msg {
        args: &'a [u8],
        payload: &'a [u8],
    },
    /// The same with headers, which come before the payload.
    Headers {
        head: &'a [u8],
    },
    Ping,
    Pong,
    Other,
}

impl<'a> Op<'a> {
    /// The message at the start of `input` and its length; `None` while bytes are missing.
    #[inline]
    pub(super) fn read(input: &'a [u8]) -> Result<Option<(Self, usize)>> {
        let Some((text, at)) = line(input) else { return Ok(None) };
        let op = match text {
            [b'M', b'S', b'G', b' ', args @ ..] => {
                let Some((args, size)) = last_number(args) else { bail!("nats-server sent a strange MSG") };
                let Some(payload) = input.get(at..at + size) else { return Ok(None) };
                let end = at + size + 2;
                return Ok((end <= input.len()).then_some((Op::Msg { args, payload }, end)));
            }
            [b'H', b'M', b'S', b'G', b' ', args @ ..] => {
                let Some((_, size)) = last_number(args) else { bail!("nats-server sent a strange HMSG") };
                let Some(head) = input.get(at..at + size) else { return Ok(None) };
                let end = at + size + 2;
                return Ok((end <= input.len()).then_some((Op::Headers { head }, end)));
            }
            b"PING" => Op::Ping,
            b"PONG" => Op::Pong,
            [b'-', ..] => bail!("nats-server: {}", String::from_utf8_lossy(text)),
            _ => Op::Other,
        };
        Ok(Some((op, at)))
    }
}

/// The arguments before the last, and the last, a number.
#[inline]
fn last_number(args: &[u8]) -> Option<(&[u8], usize)> {
    let space = memchr::memrchr(b' ', args)?;
    Some((&args[..space], decimal(&args[space + 1..])?))
}

/// Appends a PUB.
#[inline]
pub(super) fn publish(out: &mut Vec<u8>, subject: &[u8], payload: &[u8]) {
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(subject);
    write!(out, " {}\r\n", payload.len()).expect("writing to memory");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

enum Part {
    /// Publishes or asks; what it is sent are results.
    Producer(Template),
    Subscriber,
    Worker(Results),
}

struct NatsClient {
    subscribe: String,
    part: Part,
    ready: bool,
}

impl NatsClient {
    fn new(subscribe: &str, part: Part) -> Self {
        Self { subscribe: subscribe.to_owned(), part, ready: false }
    }
}

impl Client for NatsClient {
    fn hello(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(CONNECT.as_bytes());
        out.extend_from_slice(self.subscribe.as_bytes());
        out.extend_from_slice(b"PING\r\n");
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let mut at = 0;
        while let Some((op, n)) = Op::read(&input[at..])? {
            at += n;
            match op {
                Op::Msg { args, payload } => match &mut self.part {
                    Part::Producer(_) | Part::Subscriber => tally.done(payload),
                    Part::Worker(results) => {
                        tally.assigned(payload);
                        let Some(space) = memchr::memrchr(b' ', args) else {
                            bail!("a request without an inbox")
                        };
                        publish(out, &args[space + 1..], results.of(payload));
                    }
                },
                Op::Headers { head } => {
                    // The only message with headers that core NATS sends by itself: nobody listens.
                    bail!("nats-server: {}", String::from_utf8_lossy(head).trim_end());
                }
                Op::Ping => out.extend_from_slice(b"PONG\r\n"),
                Op::Pong => self.ready = true,
                Op::Other => {}
            }
        }
        Ok(at)
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        if let Part::Producer(template) = &self.part {
            out.reserve(template.len() * stamps.count);
            stamps.for_each(|s| template.write(s, out));
        }
    }
}

/// The subject where producer number `payload` names wants its results.
pub(super) fn result_subject<'a>(payload: &[u8], subjects: &'a [String]) -> Result<&'a [u8]> {
    match subjects.get(producer_of(payload)) {
        Some(s) => Ok(s.as_bytes()),
        None => bail!("a task of an unknown producer"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{split_everywhere, stamps};
    use super::*;

    fn message(head: &str, size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        Template::new(head.as_bytes(), size, 0, b"\r\n").write(1, &mut out);
        out
    }

    #[test]
    fn deliveries_survive_any_split() {
        let input = [
            b"INFO {}\r\nPONG\r\n".to_vec(),
            message("MSG bench 1 20\r\n", 20),
            message("MSG bench 1 16\r\n", 16),
        ];
        let (out, mut tally) =
            split_everywhere(&input.concat(), || Box::new(NatsClient::new("", Part::Subscriber)));
        assert_eq!((out.len(), tally.done.count()), (0, 2));
    }

    #[test]
    fn a_worker_answers_to_the_inbox() {
        let input = [b"PING\r\n".to_vec(), message("MSG bench 1 r0 20\r\n", 20)].concat();
        let (out, mut tally) =
            split_everywhere(&input, || Box::new(NatsClient::new("", Part::Worker(Results::new(64)))));
        assert!(out.starts_with(b"PONG\r\nPUB r0 64\r\n") && out.len() == 6 + 11 + 64 + 2);
        assert_eq!(tally.assigned.count(), 1);
    }

    #[test]
    fn errors_and_lost_requests_are_not_overlooked() {
        let mut client = NatsClient::new("", Part::Subscriber);
        let error = client.receive(b"-ERR 'x'\r\n", &mut Vec::new(), &mut Tally::new()).expect_err("error");
        assert!(error.to_string().contains("'x'"));
        let none = b"HMSG r0 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        assert!(client.receive(none, &mut Vec::new(), &mut Tally::new()).is_err());
        assert!(client.receive(b"MSG a 1 x\r\n", &mut Vec::new(), &mut Tally::new()).is_err());
    }

    #[test]
    fn producing_writes_whole_messages() {
        let job =
            Job { kind: Kind::Task, producers: 1, consumers: 0, size: 16, result_size: 64, in_flight: 1 };
        let mut clients = Nats.clients(&job);
        let mut out = Vec::new();
        clients[0].1.produce(stamps(2), &mut out);
        assert_eq!(out.len(), 2 * ("PUB bench r0 16\r\n".len() + 18));
    }
}
