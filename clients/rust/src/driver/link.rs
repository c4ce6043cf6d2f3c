//! One TCP connection: how it is made, read and written.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hive_proto::codec::cut;
use hive_proto::frame::{FRAME_BYTES_MAX, MAGIC, write_frame};
use hive_proto::messages::{self, Hello, PROTOCOL_1_0, Welcome};
use hive_proto::{FrameRef, Op, WireError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::wire::Wire;
use crate::{ClientBuilder, Error};

/// Room made for each read, bytes.
const READ: usize = 64 * 1024;
/// Runs up to this are copied out of the read buffer, so that what is kept for long does not pin it, bytes.
const COPIED: usize = 8 * 1024;

/// A connection that is logged in.
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    input: BytesMut,
    frame_max: usize,
}

impl Link {
    /// Connects and logs in.
    pub(crate) async fn open(server: &str, settings: &ClientBuilder) -> Result<(Self, Welcome), Error> {
        match tokio::time::timeout(settings.connect_timeout, Self::log_in(server, settings)).await {
            Ok(done) => done,
            Err(_) => Err(Error::unreachable(server, timed_out(settings.connect_timeout))),
        }
    }

    async fn log_in(server: &str, settings: &ClientBuilder) -> Result<(Self, Welcome), Error> {
        let failed = |e| Error::unreachable(server, e);
        let mut stream = TcpStream::connect(server).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let hello = Hello {
            min: PROTOCOL_1_0,
            max: PROTOCOL_1_0,
            client: settings.name.clone(),
            agent: settings.agent.clone(),
            token: settings.token.clone(),
            labels: settings.labels.clone(),
        };
        let mut out = MAGIC.to_vec();
        write_frame(&mut out, Op::Hello, 0, 0, 0, &[&messages::encode(&hello)], &[]);
        stream.write_all(&out).await.map_err(failed)?;
        let mut link = Self { stream, input: BytesMut::with_capacity(READ), frame_max: FRAME_BYTES_MAX };
        let answer = loop {
            if let Some(n) = cut(&link.input, link.frame_max)? {
                break link.input.split_to(n).freeze();
            }
            if link.stream.read_buf(&mut link.input).await.map_err(failed)? == 0 {
                let text = "the server closed the connection during login; is this the agents' port?";
                return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
        };
        let welcome = welcome(&answer)?;
        link.frame_max = FRAME_BYTES_MAX.max(welcome.frame_bytes_max as usize);
        Ok((link, welcome))
    }

    /// Reads what is there. `Ok(false)` when the server has closed.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        self.input.reserve(READ);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(n) => Ok(n > 0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Takes the whole frames that have been read, as one run; empty while there are none.
    pub(crate) fn run(&mut self) -> Result<Bytes, WireError> {
        let mut end = 0;
        while let Some(n) = cut(&self.input[end..], self.frame_max)? {
            end += n;
        }
        let run = self.input.split_to(end);
        Ok(if end <= COPIED { Bytes::copy_from_slice(&run) } else { run.freeze() })
    }

    /// Writes as much as the system takes.
    pub(crate) fn write(&mut self, wire: &mut Wire) -> io::Result<()> {
        wire.pump();
        while !wire.unwritten().is_empty() {
            match self.stream.try_write(wire.unwritten()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => wire.wrote(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
            wire.pump();
        }
        Ok(())
    }

    /// Writes everything, for at most `time`.
    pub(crate) async fn write_all(&mut self, wire: &mut Wire, time: Duration) -> io::Result<()> {
        let all = async {
            loop {
                self.write(wire)?;
                if wire.is_empty() {
                    return Ok(());
                }
                self.stream.writable().await?;
            }
        };
        tokio::time::timeout(time, all).await.unwrap_or_else(|_| Err(timed_out(time)))
    }
}

fn welcome(answer: &[u8]) -> Result<Welcome, Error> {
    let frame = FrameRef::parse(answer).ok_or_else(|| Error::Protocol("frame cut short".into()))?;
    match frame.op()? {
        Op::Welcome => Ok(messages::decode(frame.header)?),
        Op::Error => Err(messages::decode::<WireError>(frame.header)?.into()),
        op => Err(Error::Protocol(format!("{op:?} where a Welcome was due"))),
    }
}

fn timed_out(after: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {after:?}"))
}
