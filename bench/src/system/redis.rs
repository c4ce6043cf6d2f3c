//! Redis: publish/subscribe on one channel for each pair (it has no queue groups), and Streams with a consumer group as
//! a work queue. Results go through a list of each submitter: one RPUSH carries many, one BLMPOP takes many, which is
//! cheaper for the server than a PUBLISH each.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{
    Clients, Durability, Job, Kind, Results, Role, Setup, System, Template, decimal, line, producer_of,
};
use crate::measure::Tally;
use crate::run::{Client, Stamps};
use crate::server::{Server, find};

/// Entries taken by one XREADGROUP or BLMPOP, at most.
const TAKE_MAX: usize = 256;

pub(crate) struct Redis;

impl System for Redis {
    fn refuses(&self, kind: Kind, durability: Durability) -> Option<&'static str> {
        (kind == Kind::PubSub && durability == Durability::Journal)
            .then_some("publish/subscribe of Redis keeps nothing")
    }

    fn start(&self, setup: &Setup) -> Result<Server> {
        let program = find("redis-server")?;
        let aof = if setup.durability == Durability::Journal { "yes" } else { "no" };
        // Rewriting the log in the midst of a short run would cost more than it is worth.
        let aof = ["--appendonly", aof, "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"];
        Server::start(setup.place()?, |port, dir| {
            let mut c = Command::new(&program);
            c.args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--maxclients",
                "15000",
            ]);
            c.args(aof).arg("--dir").arg(dir);
            c.args(["--client-output-buffer-limit", "pubsub 0 0 0"]);
            c
        })
    }

    fn prepare(&self, server: &Server, job: &Job, _: Durability) -> Result<()> {
        if job.kind == Kind::PubSub {
            return Ok(());
        }
        let mut stream = TcpStream::connect(server.addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"XGROUP CREATE t g 0 MKSTREAM\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        ensure!(answer == *b"+OK\r\n", "XGROUP CREATE failed: {}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    fn clients(&self, job: &Job) -> Clients {
        let boxed = |role, c: RedisClient| (role, Box::new(c) as Box<dyn Client>);
        let mut clients = Vec::new();
        match job.kind {
            Kind::PubSub => {
                let channel = |i: usize| format!("c{}", i % job.consumers);
                clients.extend((0..job.consumers).map(|i| {
                    boxed(
                        Role::Receiver,
                        RedisClient::new(&command(&["SUBSCRIBE", &channel(i)]), Part::Subscriber),
                    )
                }));
                clients.extend((0..job.producers).map(|i| {
                    boxed(Role::Producer, RedisClient::producer(&["PUBLISH", &channel(i)], job.size, i))
                }));
            }
            Kind::Task => {
                let take = (job.in_flight / job.consumers.max(1)).clamp(1, TAKE_MAX);
                clients.extend((0..job.consumers).map(|i| boxed(Role::Receiver, worker(i, take, job))));
                let collectors = if job.consumers > 0 { job.producers } else { 0 };
                clients.extend((0..collectors).map(|i| boxed(Role::Receiver, collector(i, take))));
                // What workers have acknowledged is trimmed by the way, which is cheaper than deleting it.
                let keep = (4 * job.in_flight).max(10_000).to_string();
                let bounded = ["XADD", "t", "MAXLEN", "~", &keep, "*", "p"];
                let unbounded = ["XADD", "t", "*", "p"];
                let words = if job.consumers > 0 { &bounded[..] } else { &unbounded[..] };
                clients.extend(
                    (0..job.producers)
                        .map(|i| boxed(Role::Producer, RedisClient::producer(words, job.size, i))),
                );
            }
        }
        clients
    }

    fn idle(&self) -> Box<dyn Client> {
        Box::new(RedisClient::producer(&["PUBLISH", "c"], 16, 0))
    }
}

fn worker(number: usize, take: usize, job: &Job) -> RedisClient {
    let read = command(&[
        "XREADGROUP",
        "GROUP",
        "g",
        &format!("w{number}"),
        "COUNT",
        &take.to_string(),
        "BLOCK",
        "0",
        "STREAMS",
        "t",
        ">",
    ]);
    let worker = Worker {
        read: read.clone(),
        left: 0,
        ids: Vec::new(),
        count: 0,
        lists: (0..job.producers).map(|_| List::default()).collect(),
        results: Results::new(job.result_size),
    };
    RedisClient::new(&read, Part::Worker(worker))
}

fn collector(number: usize, take: usize) -> RedisClient {
    let take = take.to_string();
    let pop = command(&["BLMPOP", "0", "1", &format!("r{number}"), "LEFT", "COUNT", &take]);
    let hello = pop.clone();
    RedisClient::new(&hello, Part::Collector { pop, left: 0 })
}

/// A command as it stands on the wire.
fn command(words: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len());
    for w in words {
        out.push_str(&format!("${}\r\n{w}\r\n", w.len()));
    }
    out.into_bytes()
}

/// Reads replies from the front of a slice; `None` while bytes are missing.
#[derive(Clone)]
struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The number behind a type byte.
    #[inline]
    fn number(&mut self, kind: u8) -> Result<Option<usize>> {
        let Some((text, n)) = line(&self.input[self.at..]) else { return Ok(None) };
        match text.split_first() {
            Some((k, digits)) if *k == kind => {
                let Some(v) = decimal(digits) else {
                    bail!("Redis sent {:?}", String::from_utf8_lossy(text))
                };
                self.at += n;
                Ok(Some(v))
            }
            _ => bail!("Redis: {}", String::from_utf8_lossy(text)),
        }
    }

    #[inline]
    fn bulk(&mut self) -> Result<Option<&'a [u8]>> {
        let Some(size) = self.number(b'$')? else { return Ok(None) };
        let (start, end) = (self.at, self.at + size);
        if self.input.len() < end + 2 {
            return Ok(None);
        }
        self.at = end + 2;
        Ok(Some(&self.input[start..end]))
    }
}

/// Takes the value or gives up until more bytes are there.
macro_rules! want {
    ($e:expr) => {
        match $e? {
            Some(v) => v,
            None => return Ok(false),
        }
    };
}

#[derive(Default)]
struct List {
    bytes: Vec<u8>,
    count: usize,
}

struct Worker {
    read: Vec<u8>,
    /// Entries of the current reply that are still to come.
    left: usize,
    ids: Vec<u8>,
    count: usize,
    lists: Vec<List>,
    results: Results,
}

impl Worker {
    fn entry(&mut self, c: &mut Cursor<'_>, tally: &mut Tally) -> Result<bool> {
        want!(c.number(b'*'));
        let id = want!(c.bulk());
        want!(c.number(b'*'));
        want!(c.bulk());
        let payload = want!(c.bulk());
        tally.assigned(payload);
        put_bulk(&mut self.ids, id);
        self.count += 1;
        let Some(list) = self.lists.get_mut(producer_of(payload)) else {
            bail!("a task of an unknown producer")
        };
        put_bulk(&mut list.bytes, self.results.of(payload));
        list.count += 1;
        Ok(true)
    }

    /// Acknowledges what was read, pushes the results, reads on.
    fn settle(&mut self, out: &mut Vec<u8>) {
        for (i, list) in self.lists.iter_mut().enumerate().filter(|(_, l)| l.count > 0) {
            let name = format!("r{i}");
            write!(out, "*{}\r\n$5\r\nRPUSH\r\n${}\r\n{name}\r\n", list.count + 2, name.len())
                .expect("memory");
            out.append(&mut list.bytes);
            list.count = 0;
        }
        write!(out, "*{}\r\n$4\r\nXACK\r\n$1\r\nt\r\n$1\r\ng\r\n", self.count + 3).expect("memory");
        out.append(&mut self.ids);
        self.count = 0;
        out.extend_from_slice(&self.read);
    }
}

fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    write!(out, "${}\r\n", bytes.len()).expect("writing to memory");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

enum Part {
    Producer(Template),
    Subscriber,
    Worker(Worker),
    Collector { pop: Vec<u8>, left: usize },
}

struct RedisClient {
    hello: Vec<u8>,
    part: Part,
    ready: bool,
}

impl RedisClient {
    fn new(after_ping: &[u8], part: Part) -> Self {
        Self { hello: [b"PING\r\n", after_ping].concat(), part, ready: false }
    }

    /// A producer whose messages are the command's words and the payload.
    fn producer(words: &[&str], size: usize, number: usize) -> Self {
        let mut before = command(&[words, &["x"]].concat());
        before.truncate(before.len() - b"$1\r\nx\r\n".len());
        before.extend_from_slice(format!("${size}\r\n").as_bytes());
        Self::new(&[], Part::Producer(Template::new(&before, size, number, b"\r\n")))
    }

    /// Takes one message, or one entry of a long one.
    #[inline]
    fn step(&mut self, c: &mut Cursor<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<bool> {
        if !self.ready {
            let Some((text, n)) = line(&c.input[c.at..]) else { return Ok(false) };
            ensure!(text == b"+PONG", "Redis: {}", String::from_utf8_lossy(text));
            c.at += n;
            self.ready = true;
            return Ok(true);
        }
        match &mut self.part {
            Part::Producer(_) => {
                // PUBLISH answers a number, XADD an id.
                match c.input.get(c.at) {
                    Some(b'$') => drop(want!(c.bulk())),
                    Some(_) => drop(want!(c.number(b':'))),
                    None => return Ok(false),
                }
                tally.accept(1);
            }
            Part::Subscriber => {
                want!(c.number(b'*'));
                let kind = want!(c.bulk());
                want!(c.bulk());
                match kind {
                    b"message" => tally.done(want!(c.bulk())),
                    _ => drop(want!(c.number(b':'))),
                }
            }
            Part::Worker(w) if w.left > 0 => {
                if !w.entry(c, tally)? {
                    return Ok(false);
                }
                w.left -= 1;
                if w.left == 0 {
                    w.settle(out);
                }
            }
            Part::Worker(w) => match c.input.get(c.at) {
                Some(b':') => drop(want!(c.number(b':'))),
                Some(_) => {
                    want!(c.number(b'*'));
                    want!(c.number(b'*'));
                    want!(c.bulk());
                    w.left = want!(c.number(b'*'));
                }
                None => return Ok(false),
            },
            Part::Collector { pop, left } if *left > 0 => {
                tally.done(want!(c.bulk()));
                *left -= 1;
                if *left == 0 {
                    out.extend_from_slice(pop);
                }
            }
            Part::Collector { left, .. } => {
                want!(c.number(b'*'));
                want!(c.bulk());
                *left = want!(c.number(b'*'));
            }
        }
        Ok(true)
    }
}

impl Client for RedisClient {
    fn hello(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hello);
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let mut c = Cursor { input, at: 0 };
        loop {
            let start = c.at;
            if !self.step(&mut c, out, tally)? {
                return Ok(start);
            }
        }
    }

    fn ready(&self) -> bool {
        self.ready
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

    fn task_clients() -> Clients {
        Redis.clients(&Job {
            kind: Kind::Task,
            producers: 2,
            consumers: 1,
            size: 16,
            result_size: 20,
            in_flight: 8,
        })
    }

    fn bulk(size: usize, producer: usize) -> Vec<u8> {
        let mut out = Vec::new();
        Template::new(format!("${size}\r\n").as_bytes(), size, producer, b"\r\n").write(3, &mut out);
        out
    }

    #[test]
    fn a_worker_settles_a_whole_reply_at_once() {
        let entry = |p| [&b"*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\np\r\n"[..], &bulk(16, p)].concat();
        let input = [
            b"+PONG\r\n*1\r\n*2\r\n$1\r\nt\r\n*3\r\n".to_vec(),
            entry(0),
            entry(1),
            entry(0),
            b":2\r\n:1\r\n:3\r\n".to_vec(),
        ];
        let (out, mut tally) = split_everywhere(&input.concat(), || task_clients().remove(0).1);
        let text = String::from_utf8_lossy(&out);
        assert_eq!(tally.assigned.count(), 3);
        assert!(text.starts_with("*4\r\n$5\r\nRPUSH\r\n$2\r\nr0\r\n$20\r\n"), "{text}");
        assert!(text.contains("*3\r\n$5\r\nRPUSH\r\n$2\r\nr1\r\n"));
        assert!(text.contains("*6\r\n$4\r\nXACK\r\n$1\r\nt\r\n$1\r\ng\r\n$3\r\n1-1\r\n$3\r\n1-1\r\n"));
        assert_eq!(text.matches("XREADGROUP").count(), 1);
    }

    #[test]
    fn a_collector_takes_a_list() {
        let input = [&b"+PONG\r\n*2\r\n$2\r\nr0\r\n*2\r\n"[..], &bulk(20, 0), &bulk(20, 0)].concat();
        let (out, mut tally) = split_everywhere(&input, || task_clients().remove(1).1);
        assert_eq!(
            (tally.done.count(), out),
            (2, command(&["BLMPOP", "0", "1", "r0", "LEFT", "COUNT", "8"]))
        );
    }

    #[test]
    fn producers_and_subscribers_survive_any_split() {
        let (_, tally) = split_everywhere(b"+PONG\r\n$3\r\n1-1\r\n:12\r\n", || Redis.idle());
        assert_eq!(tally.accepted, 2);
        let message = [&b"*3\r\n$7\r\nmessage\r\n$2\r\nc0\r\n"[..], &bulk(16, 0)].concat();
        let input = [&b"+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$2\r\nc0\r\n:1\r\n"[..], &message].concat();
        let make = || Box::new(RedisClient::new(&[], Part::Subscriber)) as Box<dyn Client>;
        let (_, mut tally) = split_everywhere(&input, make);
        assert_eq!(tally.done.count(), 1);
        assert!(make().receive(b"+PONG\r\n-ERR no\r\n", &mut Vec::new(), &mut Tally::new()).is_err());
    }
}
