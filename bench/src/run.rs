//! The loop that drives all clients of a run on one thread: one poll, one read per readable socket, one write per
//! socket with something to say. Nothing is allocated per message.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::measure::Tally;

/// Shared read buffer: large enough for a batch, small enough to stay in the second-level cache. It grows for a message
/// that is larger.
const SCRATCH: usize = 256 * 1024;
/// Largest message taken, bytes.
const SCRATCH_MAX: usize = 64 * 1024 * 1024;
/// Clients are asked for a sign of life this often.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// A producer is given no more to encode while it has this much unsent.
const BACKLOG: usize = 4 * 1024 * 1024;

/// One connection's half of a system's protocol: bytes in, bytes out.
pub(crate) trait Client {
    /// Appends what is sent right after the connection stands.
    fn hello(&mut self, out: &mut Vec<u8>);
    /// Takes the complete messages at the start of `input`, reports them, appends the answers; gives the bytes taken.
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize>;
    /// Whether the client is logged in and its subscriptions stand.
    fn ready(&self) -> bool;
    /// Appends one message or task for each stamp.
    fn produce(&mut self, _stamps: Stamps, _out: &mut Vec<u8>) {}
    /// Appends a sign of life, where the protocol wants one.
    fn keep_alive(&mut self, _out: &mut Vec<u8>) {}
}

/// Send times of consecutive messages, ns since the run's epoch; the intended ones in an open loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamps {
    /// Of the first message.
    pub(crate) first: f64,
    /// Between two messages; 0 in a closed loop.
    pub(crate) period: f64,
    /// Number of messages.
    pub(crate) count: usize,
}

impl Iterator for Stamps {
    type Item = u64;
    #[inline]
    fn next(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        let stamp = self.first as u64;
        self.first += self.period;
        Some(stamp)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Stamps {}

struct Link {
    stream: TcpStream,
    client: Box<dyn Client>,
    out: Vec<u8>,
    sent: usize,
    rest: Vec<u8>,
    readable: bool,
    writable: bool,
    /// Whether it stands in the engine's list of links with something to send.
    listed: bool,
}

impl Link {
    /// Reads once and lets the client parse.
    fn pump(&mut self, scratch: &mut Vec<u8>, clock: Instant, tally: &mut Tally) -> Result<()> {
        let held = self.rest.len();
        scratch[..held].copy_from_slice(&self.rest);
        let n = match self.stream.read(&mut scratch[held..]) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(());
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(e) => return Err(e).context("reading"),
        };
        // A short read has drained the socket: the next bytes raise a new edge.
        self.readable = n == scratch.len() - held;
        let end = held + n;
        tally.now = clock.elapsed().as_nanos() as u64;
        let used = self.client.receive(&scratch[..end], &mut self.out, tally)?;
        if used == 0 && end == scratch.len() {
            ensure!(end < SCRATCH_MAX, "a message is larger than {end} bytes");
            scratch.resize(2 * end, 0);
        }
        self.rest.clear();
        self.rest.extend_from_slice(&scratch[used..end]);
        Ok(())
    }

    /// Writes once what is to be sent.
    fn flush(&mut self) -> Result<()> {
        if self.out.is_empty() || !self.writable {
            return Ok(());
        }
        match self.stream.write(&self.out[self.sent..]) {
            Ok(n) => self.sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(e) => return Err(e).context("writing"),
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else {
            self.writable = false;
        }
        Ok(())
    }

    fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }
}

/// All clients of a run.
pub(crate) struct Engine {
    poll: Poll,
    events: Events,
    links: Vec<Link>,
    /// Links that have something to read, and links that have something to send: what a turn costs does not depend on
    /// how many others are idle.
    readable: Vec<usize>,
    sending: Vec<usize>,
    scratch: Vec<u8>,
    clock: Instant,
    alive: Instant,
    /// What the clients have reported.
    pub(crate) tally: Tally,
}

impl Engine {
    /// No clients yet.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            links: Vec::new(),
            readable: Vec::new(),
            sending: Vec::new(),
            scratch: vec![0; SCRATCH],
            clock: Instant::now(),
            alive: Instant::now(),
            tally: Tally::new(),
        })
    }

    /// Connects a client and gives its number.
    pub(crate) fn connect(&mut self, addr: SocketAddr, mut client: Box<dyn Client>) -> Result<usize> {
        let stream = StdStream::connect(addr).with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let number = self.links.len();
        self.poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        let (mut out, rest) = (Vec::new(), Vec::new());
        client.hello(&mut out);
        let link =
            Link { stream, client, out, sent: 0, rest, readable: false, writable: true, listed: false };
        self.links.push(link);
        self.list(number);
        Ok(number)
    }

    fn list(&mut self, number: usize) {
        let link = &mut self.links[number];
        if !link.listed && !link.out.is_empty() {
            link.listed = true;
            self.sending.push(number);
        }
    }

    /// Turns until `done` holds.
    ///
    /// # Errors
    /// If it does not within `limit`; `what` names the thing waited for.
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.flush()?;
            if done(self) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
            self.turn(Some(Duration::from_millis(20)))?;
        }
    }

    /// Whether all clients from number `from` on are ready.
    pub(crate) fn ready(&self, from: usize) -> bool {
        self.links[from..].iter().all(|l| l.client.ready())
    }

    /// Now, ns since the run's epoch.
    pub(crate) fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// Waits for the sockets at most so long, reads each that has something once.
    pub(crate) fn turn(&mut self, wait: Option<Duration>) -> Result<()> {
        let wait = if self.readable.is_empty() { wait } else { Some(Duration::ZERO) };
        match self.poll.poll(&mut self.events, wait) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        for event in &self.events {
            let number = event.token().0;
            let link = &mut self.links[number];
            link.writable |= event.is_writable();
            let readable = event.is_readable() || event.is_read_closed() || event.is_error();
            if readable && !std::mem::replace(&mut link.readable, true) {
                self.readable.push(number);
            }
        }
        for i in 0..self.readable.len() {
            let number = self.readable[i];
            self.links[number].pump(&mut self.scratch, self.clock, &mut self.tally)?;
            self.list(number);
        }
        self.readable.retain(|n| self.links[*n].readable);
        self.keep_alive();
        Ok(())
    }

    fn keep_alive(&mut self) {
        if self.alive.elapsed() >= KEEP_ALIVE {
            self.alive = Instant::now();
            for number in 0..self.links.len() {
                let link = &mut self.links[number];
                if link.client.ready() {
                    link.client.keep_alive(&mut link.out);
                    self.list(number);
                }
            }
        }
    }

    /// Has a client produce, unless it cannot send what it has; gives the number produced.
    pub(crate) fn produce(&mut self, number: usize, stamps: Stamps) -> usize {
        let link = &mut self.links[number];
        if stamps.count == 0 || link.unsent() > BACKLOG {
            return 0;
        }
        self.tally.last_sent = stamps.first as u64;
        link.client.produce(stamps, &mut link.out);
        self.list(number);
        stamps.count
    }

    /// Writes what the clients have to say, once each.
    pub(crate) fn flush(&mut self) -> Result<()> {
        for number in &self.sending {
            let link = &mut self.links[*number];
            link.flush()?;
            link.listed = !link.out.is_empty();
        }
        self.sending.retain(|n| self.links[*n].listed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_an_open_loop_are_the_intended_times() {
        let stamps = Stamps { first: 10.0, period: 2.5, count: 4 };
        assert_eq!(stamps.len(), 4);
        assert_eq!(stamps.collect::<Vec<_>>(), [10, 12, 15, 17]);
    }
}
