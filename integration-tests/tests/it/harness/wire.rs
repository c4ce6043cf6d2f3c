//! A connection of which nothing is expected: sends any bytes, receives frames.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hive_proto::codec::cut;
use hive_proto::fragment::Assembler;
use hive_proto::frame::{FRAME_BYTES_MAX, write_frame};
use hive_proto::items::{Item, check};
use hive_proto::{Code, Frame, Op, WireError, messages};

use super::PATIENCE;

/// Longest message that a test expects, bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What came.
#[derive(Debug)]
pub(crate) enum Seen {
    Frame(Frame),
    /// The server has closed the connection.
    End,
    /// Nothing within the time.
    Silence,
}

pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    buf: Vec<u8>,
    at: usize,
    assembler: Assembler,
    ready: VecDeque<Frame>,
    /// Pings are answered, as a living client does.
    pub(crate) alive: bool,
}

impl Wire {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).expect("the agents' port takes connections");
        stream.set_nodelay(true).expect("nodelay");
        Self::over(stream)
    }

    /// Over a connection that is open already.
    pub(crate) fn over(stream: TcpStream) -> Self {
        let assembler = Assembler::new(MESSAGE_BYTES_MAX);
        Self { stream, buf: Vec::new(), at: 0, assembler, ready: VecDeque::new(), alive: true }
    }

    /// Sends bytes; the server must still take them.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes bytes");
    }

    /// Sends bytes as long as the server takes them; it may refuse in the middle.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Says that nothing more comes.
    pub(crate) fn end(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next frame, fragments put together, pings left out.
    pub(crate) fn see(&mut self, within: Duration) -> Seen {
        let deadline = Instant::now() + within;
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Seen::Frame(frame);
            }
            if self.cut_one() {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Seen::Silence;
            }
            self.stream.set_read_timeout(Some(left)).expect("timeout");
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Seen::End,
                Ok(n) => {
                    self.buf.drain(..self.at);
                    self.at = 0;
                    self.buf.extend_from_slice(&chunk[..n]);
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Seen::Silence;
                }
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Seen::End;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("connection: {e}"),
            }
        }
    }

    /// Takes one frame from the buffer. `false` when there is none.
    fn cut_one(&mut self) -> bool {
        let rest = &self.buf[self.at..];
        let Some(total) = cut(rest, FRAME_BYTES_MAX).expect("the server sends frames") else { return false };
        let frame = Frame::new(rest[..total].to_vec().into()).expect("the server sends whole frames");
        self.at += total;
        let op = frame.view().op().expect("the server sends known operations");
        match op {
            Op::Ping if self.alive => {
                let pong = super::frame(Op::Pong, 0, frame.view().prefix.id, 0, &[], frame.view().payload);
                // The server may have closed meanwhile.
                let _ = self.stream.write_all(&pong);
            }
            Op::Ping => {}
            Op::Fragment => {
                let whole = self.assembler.push(frame.view()).expect("fragments that add up");
                self.ready.extend(whole.map(|w| Frame::new(w).expect("a whole frame")));
            }
            _ => self.ready.push_back(frame),
        }
        true
    }

    /// The next frame, which must come.
    pub(crate) fn frame(&mut self) -> Frame {
        match self.see(PATIENCE) {
            Seen::Frame(f) => f,
            other => panic!("a frame was expected: {other:?}"),
        }
    }

    /// The error that must come next.
    pub(crate) fn error(&mut self) -> WireError {
        error_of(&self.frame())
    }

    /// The end of the connection, which must come next.
    pub(crate) fn closed(&mut self) {
        match self.see(PATIENCE) {
            Seen::End => {}
            other => panic!("the end of the connection was expected: {other:?}"),
        }
    }
}

/// The bytes of a frame.
pub(crate) fn frame(op: Op, flags: u16, id: u32, count: u16, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, op, flags, id, count, &[header], payload);
    out
}

/// The error inside an error frame.
pub(crate) fn error_of(frame: &Frame) -> WireError {
    let f = frame.view();
    let op = f.op().expect("known");
    assert_eq!(op, Op::Error, "an error was expected");
    messages::decode(f.header).expect("a well-formed error")
}

/// The items of a frame.
pub(crate) fn items<'a, T: Item<'a>>(frame: &'a Frame) -> Vec<T> {
    let f = frame.view();
    check(f.payload, f.prefix.count).expect("well-formed items").collect()
}

/// The code is the one expected, and the text names what is wrong.
pub(crate) fn assert_error(e: &WireError, code: Code, names: &str) {
    assert_eq!(e.code(), Some(code), "{e:?}");
    assert!(e.text.contains(names), "{:?} does not name {names:?}", e.text);
    assert_eq!(e.retryable, code.retryable(), "{e:?}");
}
