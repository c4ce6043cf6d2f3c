//! A server whose answers the test writes: it speaks the protocol, and decides nothing.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt as _;
use hive_client::{Client, ClientBuilder, Lease, TaskId};
use hive_proto::codec::{Frame, FrameCodec};
use hive_proto::frame::write_frame;
use hive_proto::items::{Assign, Item};
use hive_proto::messages::{self, Hello, Welcome};
use hive_proto::{FrameRef, Op};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::Decoder as _;

/// Longest wait in a test; only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Fake {
    listener: TcpListener,
    pub(crate) welcome: Welcome,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let welcome = Welcome {
            version: 0x0100,
            server: "fake".into(),
            agent: "agent".into(),
            session: 1,
            epoch: 1,
            heartbeat_ms: 3000,
            dead_ms: 12_000,
            frame_bytes_max: 1 << 20,
            message_bytes_max: 16 << 20,
            credit_tasks: 10_000,
            credit_bytes: 16 << 20,
            draining: false,
        };
        Self { listener, welcome }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().expect("bound").to_string()
    }

    pub(crate) fn client(&self) -> ClientBuilder {
        let short = Duration::from_millis(5);
        Client::builder().servers([self.address()]).token("secret").backoff(short, short)
    }

    /// Accepts a connection and its login; does not answer.
    pub(crate) async fn accept_silently(&self) -> (Conn, Hello) {
        let (mut stream, _) =
            tokio::time::timeout(PATIENCE, self.listener.accept()).await.expect("in time").expect("accepted");
        let mut magic = [0; 4];
        stream.read_exact(&mut magic).await.expect("magic");
        assert_eq!(&magic, b"HIVE");
        let mut conn = Conn { stream, input: BytesMut::new() };
        let hello = conn.expect(Op::Hello).await;
        let hello = messages::decode(hello.view().header).expect("a hello");
        (conn, hello)
    }

    /// Accepts a connection and welcomes it.
    pub(crate) async fn accept(&self) -> Conn {
        let (mut conn, hello) = self.accept_silently().await;
        assert_eq!(hello.token, "secret");
        conn.send(Op::Welcome, 0, 0, &messages::encode(&self.welcome), &[]).await;
        conn
    }

    /// A client and its connection.
    pub(crate) async fn pair(&self) -> (Client, Conn) {
        let (client, conn) = tokio::join!(self.client().connect(), self.accept());
        (client.expect("connected"), conn)
    }
}

pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    input: BytesMut,
}

impl Conn {
    /// The next frame; `None` when the client has closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut codec = FrameCodec { frame_bytes_max: 1 << 20 };
        loop {
            if let Some(frame) = codec.decode(&mut self.input).expect("frames") {
                return Some(frame);
            }
            let read =
                tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await.expect("in time");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next frame that is no ping, which must be `op`.
    pub(crate) async fn expect(&mut self, op: Op) -> Frame {
        loop {
            let frame = self.next().await.expect("open");
            let got = frame.view().op().expect("a valid frame");
            if got != Op::Ping {
                assert_eq!(got, op);
                return frame;
            }
        }
    }

    pub(crate) async fn send(&mut self, op: Op, id: u32, count: u16, header: &[u8], payload: &[u8]) {
        self.raw(&bytes(op, id, count, header, payload)).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
    }

    pub(crate) async fn ok(&mut self, to: &Frame) {
        self.send(Op::Ok, id(to), 0, &[], &[]).await;
    }

    pub(crate) async fn accept_tasks(
        &mut self,
        submit: &Frame,
        first: TaskId,
        accepted: u16,
        refused: &[u8],
    ) {
        let header = [&first.0.to_le_bytes()[..], &[0]].concat();
        self.send(Op::Accepted, id(submit), accepted, &header, refused).await;
    }

    pub(crate) async fn assign(&mut self, consumer: &Frame, leases: &[Lease], lease_ms: u32) {
        let mut items = Vec::new();
        for lease in leases {
            Assign { lease: *lease, lease_ms, ext: &[], payload: lease.task.to_string().as_bytes() }
                .write(&mut items);
        }
        self.send(Op::Assign, id(consumer), leases.len() as u16, &[], &items).await;
    }
}

pub(crate) fn bytes(op: Op, id: u32, count: u16, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, op, 0, id, count, &[header], payload);
    out
}

pub(crate) fn id(frame: &Frame) -> u32 {
    frame.view().prefix.id
}

pub(crate) fn count(frame: &Frame) -> u16 {
    frame.view().prefix.count
}

pub(crate) fn list<'a, T: Item<'a>>(view: &FrameRef<'a>) -> Vec<T> {
    hive_proto::items::check(view.payload, view.prefix.count).expect("valid items").collect()
}

pub(crate) fn items<T: for<'a> Item<'a>>(items: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    items.iter().for_each(|i| i.write(&mut out));
    out
}

pub(crate) fn lease(n: u64) -> Lease {
    Lease { task: TaskId(n), attempt: 1, epoch: 1 }
}

/// The next item of a stream, in time.
pub(crate) async fn next<S: futures_util::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("in time")
}
