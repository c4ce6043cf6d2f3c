//! The wire of nats-server, as core NATS and JetStream both speak it: parsing, greeting, signs of life.

use std::io::Write;

use anyhow::{Result, bail};

use super::{decimal, line, producer_of};
use crate::measure::Tally;
use crate::run::{Client, Stamps};

/// What stands at the start of a connection; the subscriptions follow, and a PING whose answer says that they stand.
pub(super) const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";

/// A message as a client gets it.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Msg<'a> {
    /// Subject, subscription and perhaps a reply subject.
    args: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Msg<'a> {
    /// Where it was published.
    #[inline]
    pub(super) fn subject(&self) -> &'a [u8] {
        self.args.split(|b| *b == b' ').next().unwrap_or_default()
    }

    /// Where its sender wants the answer.
    #[inline]
    pub(super) fn reply(&self) -> Result<&'a [u8]> {
        let mut words = self.args.split(|b| *b == b' ').skip(2);
        match words.next() {
            Some(reply) => Ok(reply),
            None => bail!("nats-server sent a message without a reply subject"),
        }
    }
}

/// One protocol message of the server.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Op<'a> {
    Msg(Msg<'a>),
    /// A message with headers, which come before the payload: what servers send to say that something ended.
    Headers(&'a [u8]),
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
                let (args, size) = last_number(args)?;
                return Ok(body(input, at, size).map(|(payload, end)| (Op::Msg(Msg { args, payload }), end)));
            }
            [b'H', b'M', b'S', b'G', b' ', args @ ..] => {
                let (_, size) = last_number(args)?;
                return Ok(body(input, at, size).map(|(head, end)| (Op::Headers(head), end)));
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
fn last_number(args: &[u8]) -> Result<(&[u8], usize)> {
    let split = memchr::memrchr(b' ', args).and_then(|s| Some((&args[..s], decimal(&args[s + 1..])?)));
    match split {
        Some(split) => Ok(split),
        None => bail!("nats-server sent a strange message: {}", String::from_utf8_lossy(args)),
    }
}

/// The bytes behind a line, and where their CRLF ends.
#[inline]
fn body(input: &[u8], at: usize, size: usize) -> Option<(&[u8], usize)> {
    let end = at + size + 2;
    (end <= input.len()).then(|| (&input[at..at + size], end))
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

/// The subject where the producer that `payload` names wants its results.
pub(super) fn result_subject<'a>(payload: &[u8], subjects: &'a [String]) -> Result<&'a [u8]> {
    match subjects.get(producer_of(payload)) {
        Some(s) => Ok(s.as_bytes()),
        None => bail!("a task of an unknown producer"),
    }
}

/// What one kind of client makes of what it is sent.
pub(super) trait Part {
    /// Appends the subscriptions, and what else comes before the PING.
    fn subscribe(&mut self, out: &mut Vec<u8>);
    /// Takes a message.
    fn message(&mut self, message: &Msg<'_>, out: &mut Vec<u8>, tally: &mut Tally) -> Result<()>;
    /// Takes the headers of a message that has some.
    fn headers(&mut self, head: &[u8]) -> Result<()> {
        bail!("nats-server: {}", String::from_utf8_lossy(head).trim_end())
    }
    /// Appends what follows when all that was read is taken.
    fn settle(&mut self, _out: &mut Vec<u8>) {}
    /// See [`Client::produce`].
    fn produce(&mut self, _stamps: Stamps, _out: &mut Vec<u8>) {}
}

/// A client of nats-server.
pub(super) struct Connection<P> {
    part: P,
    ready: bool,
}

impl<P: Part> Connection<P> {
    pub(super) fn new(part: P) -> Self {
        Self { part, ready: false }
    }
}

impl<P: Part> Client for Connection<P> {
    fn hello(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(CONNECT.as_bytes());
        self.part.subscribe(out);
        out.extend_from_slice(b"PING\r\n");
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let mut at = 0;
        while let Some((op, n)) = Op::read(&input[at..])? {
            at += n;
            match op {
                Op::Msg(message) => self.part.message(&message, out, tally)?,
                Op::Headers(head) => self.part.headers(head)?,
                Op::Ping => out.extend_from_slice(b"PONG\r\n"),
                Op::Pong => self.ready = true,
                Op::Other => {}
            }
        }
        self.part.settle(out);
        Ok(at)
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        self.part.produce(stamps, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_subject_and_reply() {
        let read = |text: &'static str| Op::read(text.as_bytes()).expect("valid").map(|(op, _)| op);
        let Some(Op::Msg(message)) = read("MSG t 1 r0 2\r\nab\r\n") else { panic!("a message") };
        assert_eq!((message.subject(), message.payload), (&b"t"[..], &b"ab"[..]));
        assert_eq!(message.reply().expect("one"), b"r0");
        let Some(Op::Msg(message)) = read("MSG t 1 0\r\n\r\n") else { panic!("a message") };
        assert!(message.reply().is_err());
        assert_eq!(read("HMSG t 1 2 3\r\nabc\r\n"), Some(Op::Headers(b"abc")));
        assert_eq!(read("MSG t 1 2\r\nab\r"), None);
        assert!(Op::read(b"MSG a 1 x\r\n").is_err() && Op::read(b"-ERR 'x'\r\n").is_err());
    }
}
