//! From the first byte to `Welcome`: everything small, everything with a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hive_proto::codec::cut;
use hive_proto::error::Code;
use hive_proto::frame::{LOGIN_FRAME_BYTES_MAX, MAGIC, PREFIX_LEN, write_frame};
use hive_proto::messages::{self, Hello, PROTOCOL_1_0, Welcome};
use hive_proto::{FrameRef, Op, WireError, names};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Shard;
use crate::actors::directory::{Login, Peer};

const CLIENT_NAME_BYTES_MAX: usize = 128;
/// How long a client may take to read the last bytes and close.
const FAREWELL: Duration = Duration::from_millis(500);
/// What it may still send meanwhile, in reads of 4 KiB.
const FAREWELL_READS: usize = 1024;

/// Lets a client in, or tells it why not. `None`: the connection is over.
pub(crate) async fn login(mut stream: TcpStream, shard: &Shard) -> Option<(TcpStream, Arc<Peer>, Vec<u8>)> {
    let deadline = Duration::from_millis(u64::from(shard.terms.login_ms));
    let hello = match tokio::time::timeout(deadline, read_hello(&mut stream)).await {
        Ok(Ok(Some(hello))) => hello,
        Ok(Ok(None)) => return None,
        Ok(Err(e)) => return refuse(stream, 0, e).await,
        Err(_) => {
            let text = format!("no Hello within {} ms", shard.terms.login_ms);
            return refuse(stream, 0, WireError::new(Code::LoginTimeout, text)).await;
        }
    };
    let (id, hello, rest) = hello;
    let peer = match admit(hello, shard) {
        Ok(peer) => peer,
        Err(e) => return refuse(stream, id, e).await,
    };
    welcome(&peer, id, shard);
    Some((stream, peer, rest))
}

type First = (u32, Hello, Vec<u8>);

async fn read_hello(stream: &mut TcpStream) -> Result<Option<First>, WireError> {
    let mut buf = Vec::with_capacity(512);
    loop {
        let n = stream.read_buf(&mut buf).await.unwrap_or(0);
        let known = buf.len().min(MAGIC.len());
        if buf[..known] != MAGIC[..known] {
            return Err(bad_magic(&buf));
        }
        if let Some(frames) = buf.get(MAGIC.len()..)
            && let Some(total) = cut(frames, LOGIN_FRAME_BYTES_MAX)?
        {
            let frame = FrameRef::parse(&frames[..total]);
            let frame =
                frame.ok_or_else(|| WireError::new(Code::MalformedFrame, "the first frame is not one"))?;
            if frame.prefix.op != Op::Hello as u8 {
                return Err(WireError::new(Code::LoginRequired, "the first frame must be Hello"));
            }
            let hello = messages::decode(frame.header)?;
            return Ok(Some((frame.prefix.id, hello, frames[total..].to_vec())));
        }
        if n == 0 {
            return Ok(None);
        }
        if buf.len() > MAGIC.len() + PREFIX_LEN + LOGIN_FRAME_BYTES_MAX {
            return Err(WireError::new(Code::FrameTooLarge, "too many bytes before login"));
        }
    }
}

fn bad_magic(buf: &[u8]) -> WireError {
    let http =
        ["GET ", "POST", "HEAD", "PUT "].iter().any(|m| m.as_bytes().starts_with(&buf[..buf.len().min(4)]));
    let hint = if http && buf.len() >= 3 { "; this is the agents' port, HTTP has its own" } else { "" };
    WireError::new(Code::BadMagic, format!("a connection begins with the bytes HIVE{hint}"))
}

fn admit(hello: Hello, shard: &Shard) -> Result<Arc<Peer>, WireError> {
    if hello.min > PROTOCOL_1_0 || hello.max < PROTOCOL_1_0 {
        let text =
            format!("client speaks {:#06x} to {:#06x}, the server {PROTOCOL_1_0:#06x}", hello.min, hello.max);
        return Err(WireError::new(Code::UnsupportedVersion, text));
    }
    if !shard.terms.token.matches(&hello.token) {
        let what = if hello.token.is_empty() { "no token was given" } else { "the token is wrong" };
        return Err(WireError::new(Code::Unauthorized, what));
    }
    if !hello.agent.is_empty() {
        names::agent(hello.agent.as_bytes())?;
    }
    names::labels(&hello.labels)?;
    let mut client = hello.client;
    let mut end = client.len().min(CLIENT_NAME_BYTES_MAX);
    while !client.is_char_boundary(end) {
        end -= 1;
    }
    client.truncate(end);
    let login = Login { agent: hello.agent, client, labels: hello.labels };
    shard.directory.open(login, shard.number, (shard.clock)())
}

fn welcome(peer: &Peer, id: u32, shard: &Shard) {
    let t = &shard.terms;
    let header = messages::encode(&Welcome {
        version: PROTOCOL_1_0,
        server: concat!("hive ", env!("CARGO_PKG_VERSION")).into(),
        agent: peer.agent.to_string(),
        session: u64::from(peer.session.0),
        epoch: t.epoch,
        heartbeat_ms: t.heartbeat_ms,
        dead_ms: t.dead_ms,
        frame_bytes_max: t.frame_bytes_max,
        message_bytes_max: t.message_bytes_max,
        credit_tasks: t.credit_tasks,
        credit_bytes: t.credit_bytes,
        draining: shard.draining.load(Ordering::Relaxed),
    });
    peer.outbox.answer(Op::Welcome, id, 0, &header, &[]);
}

/// Says why, and closes so that the client can still read it.
async fn refuse<T>(mut stream: TcpStream, id: u32, error: WireError) -> Option<T> {
    tracing::debug!(error = %error, "login refused");
    let mut out = Vec::new();
    write_frame(&mut out, Op::Error, 0, id, 0, &[&messages::encode(&error)], &[]);
    let written = tokio::time::timeout(FAREWELL, stream.write_all(&out)).await;
    if matches!(written, Ok(Ok(()))) {
        farewell(stream).await;
    }
    None
}

/// Closes such that the client can read what was written to it: bytes that it sent and nobody read would turn the close
/// into a reset, which overtakes them. Reads on for a while, therefore, until the client closes as well.
pub(super) async fn farewell(mut stream: TcpStream) {
    let until_closed = async {
        stream.shutdown().await?;
        let mut sink = [0_u8; 4096];
        for _ in 0..FAREWELL_READS {
            if stream.read(&mut sink).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(FAREWELL, until_closed).await;
}
