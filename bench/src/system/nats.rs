//! nats-server, core: publish/subscribe, and bare request/reply as a task cycle without lease and acknowledgement.

use std::process::Command;

use anyhow::Result;

use super::nats_wire::{Connection, Msg, Part, publish};
use super::{Clients, Durability, Job, Kind, Results, Role, Setup, System, Template};
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

    fn start(&self, setup: &Setup) -> Result<Server> {
        let program = find("nats-server")?;
        Server::start(setup.place()?, |port, _| {
            let mut c = Command::new(&program);
            c.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
            c
        })
    }

    fn clients(&self, job: &Job) -> Clients {
        let consumers = (0..job.consumers).map(|_| match job.kind {
            Kind::PubSub => bare("SUB bench g 1\r\n", Does::Subscribe),
            Kind::Task => bare("SUB bench g 1\r\n", Does::Work(Results::new(job.result_size))),
        });
        let producers = (0..job.producers).map(|i| {
            let (subscribe, before) = match job.kind {
                Kind::PubSub => (String::new(), format!("PUB bench {}\r\n", job.size)),
                Kind::Task => (format!("SUB r{i} 1\r\n"), format!("PUB bench r{i} {}\r\n", job.size)),
            };
            bare(&subscribe, Does::Produce(Template::new(before.as_bytes(), job.size, i, b"\r\n")))
        });
        let receivers = consumers.map(|c| (Role::Receiver, c));
        receivers.chain(producers.map(|p| (Role::Producer, p))).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        bare("", Does::Subscribe)
    }
}

enum Does {
    /// Publishes or asks; what it is sent are results.
    Produce(Template),
    Subscribe,
    Work(Results),
}

struct Bare {
    subscribe: String,
    does: Does,
}

fn bare(subscribe: &str, does: Does) -> Box<dyn Client> {
    Box::new(Connection::new(Bare { subscribe: subscribe.to_owned(), does }))
}

/// Headers end the run: the only ones that core NATS sends by itself say that nobody listens.
impl Part for Bare {
    fn subscribe(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.subscribe.as_bytes());
    }

    fn message(&mut self, message: &Msg<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        match &mut self.does {
            Does::Produce(_) | Does::Subscribe => tally.done(message.payload),
            Does::Work(results) => {
                tally.assigned(message.payload);
                publish(out, message.reply()?, results.of(message.payload));
            }
        }
        Ok(())
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        if let Does::Produce(template) = &self.does {
            out.reserve(template.len() * stamps.count);
            stamps.for_each(|s| template.write(s, out));
        }
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
        let (out, mut tally) = split_everywhere(&input.concat(), || bare("", Does::Subscribe));
        assert_eq!((out.len(), tally.done.count()), (0, 2));
    }

    #[test]
    fn a_worker_answers_to_the_inbox() {
        let input = [b"PING\r\n".to_vec(), message("MSG bench 1 r0 20\r\n", 20)].concat();
        let (out, mut tally) = split_everywhere(&input, || bare("", Does::Work(Results::new(64))));
        assert!(out.starts_with(b"PONG\r\nPUB r0 64\r\n") && out.len() == 6 + 11 + 64 + 2);
        assert_eq!(tally.assigned.count(), 1);
    }

    #[test]
    fn errors_and_lost_requests_are_not_overlooked() {
        let mut client = bare("", Does::Subscribe);
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
