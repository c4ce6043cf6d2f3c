//! nats-server, JetStream: a work-queue stream, one durable pull consumer that the workers share, asynchronous
//! publishing with acknowledgements, results published to the submitter's subject.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::nats_wire::{CONNECT, Connection, Msg, Op, Part, publish, result_subject};
use super::{Clients, Durability, Job, Kind, Results, Role, Setup, System, Template, decimal, producer_of};
use crate::measure::{Tally, stamp_of};
use crate::run::{Client, Stamps};
use crate::server::{Server, find};

pub(crate) struct JetStream {
    /// Whether workers wait until an acknowledgement is confirmed, which is when its removal is on the disk, before
    /// they send the result: otherwise a result could be seen of a task that is still waiting on the disk.
    pub(crate) durable: bool,
}

impl System for JetStream {
    fn refuses(&self, kind: Kind, _: Durability) -> Option<&'static str> {
        (kind == Kind::PubSub)
            .then_some("JetStream is compared as a work queue; core NATS is for publish/subscribe")
    }

    fn start(&self, setup: &Setup) -> Result<Server> {
        let program = find("nats-server")?;
        let place = setup.place()?;
        let store = place.dir.path().join("store");
        let mut config = format!("jetstream {{ store_dir: {store:?}, max_mem: 8G");
        if setup.durability == Durability::Journal {
            config.push_str(", sync_interval: always");
        }
        config.push_str(" }\n");
        let path = place.dir.path().join("nats.conf");
        std::fs::write(&path, config)?;
        Server::start(place, |port, _| {
            let mut c = Command::new(&program);
            c.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"]).arg(&path);
            c
        })
    }

    fn prepare(&self, server: &Server, job: &Job, durability: Durability) -> Result<()> {
        let storage = if durability == Durability::Memory { "memory" } else { "file" };
        let mut admin = Admin::connect(server)?;
        admin.ask(
            "$JS.API.STREAM.CREATE.W",
            &format!(
                r#"{{"name":"W","subjects":["t"],"retention":"workqueue","storage":"{storage}","num_replicas":1}}"#
            ),
        )?;
        if job.consumers > 0 {
            let memory = durability == Durability::Memory;
            admin.ask(
                "$JS.API.CONSUMER.DURABLE.CREATE.W.C",
                &format!(
                    r#"{{"stream_name":"W","config":{{"durable_name":"C","ack_policy":"explicit","max_ack_pending":1000000,"mem_storage":{memory}}}}}"#
                ),
            )?;
        }
        Ok(())
    }

    fn clients(&self, job: &Job) -> Clients {
        let subjects: Vec<String> = (0..job.producers).map(|i| format!("r{i}")).collect();
        let batch = (job.in_flight / job.consumers.max(1)).clamp(1, 512);
        let workers = (0..job.consumers).map(|i| {
            let results = Results::new(job.result_size);
            let worker = Worker {
                number: i,
                durable: self.durable,
                batch,
                asked: 0,
                results,
                subjects: subjects.clone(),
                acks: Vec::new(),
            };
            (Role::Receiver, Box::new(Connection::new(worker)) as Box<dyn Client>)
        });
        let submitters = (0..job.producers).map(|i| {
            let before = format!("PUB t a{i} {}\r\n", job.size);
            (Role::Producer, submitter(i, Template::new(before.as_bytes(), job.size, i, b"\r\n")))
        });
        workers.chain(submitters).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        submitter(0, Template::new(b"", 16, 0, b""))
    }
}

fn submitter(number: usize, template: Template) -> Box<dyn Client> {
    Box::new(Connection::new(Submitter { number, template }))
}

/// A blocking connection for the requests that set things up.
struct Admin {
    stream: TcpStream,
}

impl Admin {
    fn connect(server: &Server) -> Result<Self> {
        let mut stream = TcpStream::connect(server.addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{CONNECT}SUB admin 1\r\n").as_bytes())?;
        Ok(Self { stream })
    }

    fn ask(&mut self, subject: &str, body: &str) -> Result<()> {
        let request = format!("PUB {subject} admin {}\r\n{body}\r\n", body.len());
        self.stream.write_all(request.as_bytes())?;
        let (mut input, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let n = self.stream.read(&mut piece).with_context(|| format!("{subject} has no answer"))?;
            if n == 0 {
                bail!("nats-server closed the connection");
            }
            input.extend_from_slice(&piece[..n]);
            let mut at = 0;
            while let Some((op, n)) = Op::read(&input[at..])? {
                at += n;
                match op {
                    Op::Msg(answer) => return refused(answer.payload),
                    Op::Headers(head) => bail!("{subject}: {}", String::from_utf8_lossy(head).trim_end()),
                    _ => {}
                }
            }
            input.drain(..at);
        }
    }
}

/// Whether an answer of JetStream is an error.
fn refused(answer: &[u8]) -> Result<()> {
    if memchr::memmem::find(answer, b"\"error\"").is_some() {
        bail!("JetStream: {}", String::from_utf8_lossy(answer));
    }
    Ok(())
}

struct Submitter {
    number: usize,
    template: Template,
}

impl Part for Submitter {
    fn subscribe(&mut self, out: &mut Vec<u8>) {
        let i = self.number;
        out.extend_from_slice(format!("SUB r{i} 1\r\nSUB a{i} 2\r\n").as_bytes());
    }

    fn message(&mut self, message: &Msg<'_>, _: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        if message.subject().starts_with(b"r") {
            tally.done(message.payload);
        } else {
            refused(message.payload)?;
            tally.accept(1);
        }
        Ok(())
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        stamps.for_each(|s| self.template.write(s, out));
    }
}

/// The head of the task whose acknowledgement is confirmed: the subject `c<worker>.<producer>.<stamp>` names it.
fn confirmed(subject: &[u8]) -> Result<[u8; 12]> {
    let mut words = subject.split(|b| *b == b'.').skip(1).map(decimal);
    let (Some(Some(producer)), Some(Some(stamp))) = (words.next(), words.next()) else {
        bail!("JetStream confirmed something else: {}", String::from_utf8_lossy(subject))
    };
    let mut task = [0; 12];
    task[..8].copy_from_slice(&(stamp as u64).to_le_bytes());
    task[8..].copy_from_slice(&(producer as u32).to_le_bytes());
    Ok(task)
}

/// Keeps between one and two batches asked for, so that the server never waits for the next pull.
struct Worker {
    number: usize,
    durable: bool,
    batch: usize,
    asked: usize,
    results: Results,
    subjects: Vec<String>,
    acks: Vec<u8>,
}

impl Worker {
    fn pull(&mut self, out: &mut Vec<u8>) {
        while self.asked <= self.batch {
            let body = format!("{{\"batch\":{}}}", self.batch);
            let head = format!("PUB $JS.API.CONSUMER.MSG.NEXT.W.C w{} {}\r\n", self.number, body.len());
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(body.as_bytes());
            out.extend_from_slice(b"\r\n");
            self.asked += self.batch;
        }
    }
}

impl Part for Worker {
    fn subscribe(&mut self, out: &mut Vec<u8>) {
        let i = self.number;
        out.extend_from_slice(format!("SUB w{i} 1\r\nSUB c{i}.> 2\r\n").as_bytes());
        self.pull(out);
    }

    fn message(&mut self, message: &Msg<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        if message.subject().starts_with(b"c") {
            let task = confirmed(message.subject())?;
            publish(out, result_subject(&task, &self.subjects)?, self.results.of(&task));
            return Ok(());
        }
        let task = message.payload;
        tally.assigned(task);
        self.asked = self.asked.saturating_sub(1);
        // An empty acknowledgement is a plain one.
        if self.durable {
            let confirm = format!(" c{}.{}.{}", self.number, producer_of(task), stamp_of(task));
            publish(&mut self.acks, &[message.reply()?, confirm.as_bytes()].concat(), b"");
        } else {
            publish(out, result_subject(task, &self.subjects)?, self.results.of(task));
            publish(&mut self.acks, message.reply()?, b"");
        }
        Ok(())
    }

    /// A pull request has ended: 404, 408, 409.
    fn headers(&mut self, _: &[u8]) -> Result<()> {
        self.asked = self.asked.saturating_sub(self.batch);
        Ok(())
    }

    fn settle(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.acks);
        self.pull(out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::split_everywhere;
    use super::*;

    fn worker(durable: bool) -> Box<dyn Client> {
        let job =
            Job { kind: Kind::Task, producers: 2, consumers: 1, size: 20, result_size: 64, in_flight: 4 };
        let mut worker = JetStream { durable }.clients(&job).remove(0).1;
        worker.hello(&mut Vec::new());
        worker
    }

    #[test]
    fn a_worker_publishes_acknowledges_and_asks_again() {
        let mut input = b"PONG\r\n".to_vec();
        for producer in [0, 1, 0, 1] {
            let head = b"MSG w0 1 $JS.ACK.W.C.1.1.1.0.0 20\r\n";
            Template::new(head, 20, producer, b"\r\n").write(5, &mut input);
        }
        let (out, mut tally) = split_everywhere(&input, || worker(false));
        let text = String::from_utf8_lossy(&out);
        assert_eq!((tally.assigned.count(), text.matches("PUB r1 64\r\n").count()), (4, 2));
        assert_eq!(text.matches("PUB $JS.ACK.W.C.1.1.1.0.0 0\r\n\r\n").count(), 4);
        assert_eq!(text.matches("MSG.NEXT").count(), 1);
    }

    #[test]
    fn a_durable_worker_sends_the_result_of_a_confirmed_task() {
        let mut task = b"PONG\r\n".to_vec();
        Template::new(b"MSG t 1 $JS.ACK.9 20\r\n", 20, 1, b"\r\n").write(5, &mut task);
        let (out, _) = split_everywhere(&task, || worker(true));
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("PUB $JS.ACK.9 c0.1.5 0\r\n\r\n") && !text.contains("PUB r1"), "{text}");
        let (out, _) = split_everywhere(b"MSG c0.1.5 2 0\r\n\r\n", || worker(true));
        let result = out.strip_prefix(b"PUB r1 64\r\n").expect("a result");
        assert_eq!((stamp_of(result), producer_of(result)), (5, 1));
        let strange = worker(true).receive(b"MSG c0.x 2 0\r\n\r\n", &mut Vec::new(), &mut Tally::new());
        assert!(strange.is_err());
    }

    #[test]
    fn a_refused_publish_ends_the_run() {
        let input = b"MSG a0 2 21\r\n{\"error\":{\"code\":503}\r\n";
        assert!(
            JetStream { durable: false }.idle().receive(input, &mut Vec::new(), &mut Tally::new()).is_err()
        );
        let (_, tally) = split_everywhere(b"MSG a0 2 24\r\n{\"stream\":\"W\", \"seq\": 11}\r\n", || {
            JetStream { durable: false }.idle()
        });
        assert_eq!(tally.accepted, 1);
    }
}
