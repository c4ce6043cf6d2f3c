//! The relay behind the system `floor`: reads, cuts frames by their length prefix, forwards them to the other socket of
//! the pair. The same epoll, reads and writes as a server's, and no logic.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use hive_proto::codec::cut;
use hive_proto::frame::FRAME_BYTES_MAX;
use hive_proto::{PREFIX_LEN, Prefix};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const BUFFER: usize = 256 * 1024;
/// What a slow reader may have pending before its writer is no longer read, bytes.
const PENDING_MAX: usize = 4 * 1024 * 1024;
const LISTENER: Token = Token(usize::MAX);

struct End {
    stream: TcpStream,
    other: Option<usize>,
    pair: Option<u32>,
    /// The start of a frame whose end has not come yet.
    rest: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    readable: bool,
    open: bool,
}

/// The hidden subcommand: serves until it is killed.
pub(crate) fn relay() -> Result<()> {
    let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("relay ready server={}", listener.local_addr()?);
    let (mut ends, mut buffer, mut events) = (Vec::new(), vec![0; BUFFER], Events::with_capacity(256));
    loop {
        let more = ends.iter().any(|e: &End| e.readable && e.open && !stopped(&ends, e));
        match poll.poll(&mut events, more.then_some(std::time::Duration::ZERO)) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut ends)?;
            } else {
                ends[event.token().0].readable |= event.is_readable() || event.is_read_closed();
            }
        }
        for i in 0..ends.len() {
            if ends[i].readable && ends[i].open && !stopped(&ends, &ends[i]) {
                read(&mut ends, i, &mut buffer)?;
            }
        }
        for end in &mut ends {
            flush(end);
        }
    }
}

fn stopped(ends: &[End], end: &End) -> bool {
    end.other.is_some_and(|o| ends[o].out.len() - ends[o].sent > PENDING_MAX)
}

fn accept(listener: &TcpListener, poll: &Poll, ends: &mut Vec<End>) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nodelay(true)?;
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(ends.len()), interest)?;
                let (rest, out) = (Vec::new(), Vec::new());
                ends.push(End {
                    stream,
                    other: None,
                    pair: None,
                    rest,
                    out,
                    sent: 0,
                    readable: false,
                    open: true,
                });
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e).context("accepting"),
        }
    }
}

fn read(ends: &mut [End], i: usize, buffer: &mut [u8]) -> Result<()> {
    let end = &mut ends[i];
    let held = end.rest.len();
    buffer[..held].copy_from_slice(&end.rest);
    let n = match end.stream.read(&mut buffer[held..]) {
        Ok(n) if n > 0 => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            end.readable = false;
            return Ok(());
        }
        _ => {
            end.open = false;
            return Ok(());
        }
    };
    end.readable = n == buffer.len() - held;
    let (bytes, mut at) = (&buffer[..held + n], 0);
    let mut pair = end.pair;
    while let Some(n) = cut(&bytes[at..], FRAME_BYTES_MAX)? {
        if pair.is_none() {
            // The first frame only names the pair.
            pair = bytes[at..].first_chunk::<PREFIX_LEN>().map(|p| Prefix::read(p).id);
            join(ends, i, pair, &bytes[at..at + n]);
            at += n;
            break;
        }
        at += n;
    }
    // Bytes behind a first frame wait for the next read; clients send nothing before the answer.
    let end = &mut ends[i];
    let first = end.pair != pair;
    end.pair = pair;
    end.rest.clear();
    end.rest.extend_from_slice(&bytes[at..]);
    match (first, end.other) {
        (false, Some(other)) => ends[other].out.extend_from_slice(&bytes[..at]),
        _ => return Ok(()),
    }
    Ok(())
}

/// Joins two ends of the same pair and tells both by their own first frame.
fn join(ends: &mut [End], i: usize, pair: Option<u32>, hello: &[u8]) {
    let Some(other) = ends.iter().position(|e| e.pair == pair && e.open && e.other.is_none()) else { return };
    (ends[i].other, ends[other].other) = (Some(other), Some(i));
    ends[i].out.extend_from_slice(hello);
    ends[other].out.extend_from_slice(hello);
}

fn flush(end: &mut End) {
    if end.out.is_empty() || !end.open {
        return;
    }
    match end.stream.write(&end.out[end.sent..]) {
        Ok(n) => end.sent += n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        Err(_) => end.open = false,
    }
    if end.sent == end.out.len() {
        end.out.clear();
        end.sent = 0;
    }
}
