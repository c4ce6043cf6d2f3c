//! A client that has logged in. It takes frames in any order: what nobody asks for yet waits in its inbox.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hive_proto::frame::MAGIC;
use hive_proto::messages::{self, Hello, PROTOCOL_1_0, Welcome};
use hive_proto::{Frame, Op, Prefix, WireError};

use super::{PATIENCE, Seen, Server, Wire, error_of, frame};

pub(crate) struct Client {
    pub(crate) wire: Wire,
    pub(crate) welcome: Welcome,
    inbox: VecDeque<Frame>,
    next_id: u32,
}

/// The first frame of a client.
pub(crate) fn hello(hello: &Hello) -> Vec<u8> {
    frame(Op::Hello, 0, 1, 0, &messages::encode(hello), &[])
}

impl Client {
    pub(crate) fn login(server: &Server, agent: &str, labels: &[&str]) -> Self {
        Self::try_login(server, agent, labels).unwrap_or_else(|e| panic!("login: {e}"))
    }

    pub(crate) fn try_login(server: &Server, agent: &str, labels: &[&str]) -> Result<Self, WireError> {
        let mut wire = Wire::connect(server.addr);
        wire.send(&[&MAGIC[..], &hello(&Self::hello(server, agent, labels))].concat());
        Self::welcomed(wire)
    }

    /// What a well-behaved client says first.
    pub(crate) fn hello(server: &Server, agent: &str, labels: &[&str]) -> Hello {
        Hello {
            min: PROTOCOL_1_0,
            max: PROTOCOL_1_0,
            client: "integration-tests".into(),
            agent: agent.into(),
            token: server.token.clone(),
            labels: labels.iter().map(ToString::to_string).collect(),
        }
    }

    /// Takes the server's answer to the hello that was sent.
    pub(crate) fn welcomed(mut wire: Wire) -> Result<Self, WireError> {
        let first = wire.frame();
        if first.view().op() != Ok(Op::Welcome) {
            return Err(error_of(&first));
        }
        let welcome = messages::decode(first.view().header).expect("a well-formed welcome");
        Ok(Self { wire, welcome, inbox: VecDeque::new(), next_id: 1 })
    }

    /// A number that this client has not used yet.
    pub(crate) fn fresh(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn send(&mut self, op: Op, flags: u16, id: u32, count: u16, header: &[u8], payload: &[u8]) {
        self.wire.send(&frame(op, flags, id, count, header, payload));
    }

    /// Sends a frame under a new number and gives the number.
    pub(crate) fn ask(&mut self, op: Op, flags: u16, count: u16, header: &[u8], payload: &[u8]) -> u32 {
        let id = self.fresh();
        self.send(op, flags, id, count, header, payload);
        id
    }

    /// Sends a frame and takes its answer.
    pub(crate) fn call(
        &mut self,
        op: Op,
        flags: u16,
        count: u16,
        header: &[u8],
        payload: &[u8],
    ) -> Result<Frame, WireError> {
        let id = self.ask(op, flags, count, header, payload);
        self.answer(id)
    }

    /// The answer to a frame sent under `id`.
    pub(crate) fn answer(&mut self, id: u32) -> Result<Frame, WireError> {
        let found = self.take(&format!("the answer to {id}"), |p| p.id == id && is_answer(p.op));
        if found.view().prefix.op == Op::Error as u8 { Err(error_of(&found)) } else { Ok(found) }
    }

    /// The next frame of an operation.
    pub(crate) fn next(&mut self, op: Op) -> Frame {
        self.take(&format!("{op:?}"), |p| p.op == op as u8)
    }

    /// The first frame that fits, which must come; those before it stay for later.
    pub(crate) fn take(&mut self, what: &str, fits: impl Fn(Prefix) -> bool) -> Frame {
        let deadline = Instant::now() + PATIENCE;
        let mut looked = 0;
        loop {
            if let Some(at) = self.inbox.iter().skip(looked).position(|f| fits(f.view().prefix)) {
                return self.inbox.remove(looked + at).expect("just seen");
            }
            looked = self.inbox.len();
            match self.wire.see(deadline.saturating_duration_since(Instant::now())) {
                Seen::Frame(f) => self.inbox.push_back(f),
                other => panic!("{what} was expected: {other:?}; waiting: {:?}", self.waiting()),
            }
        }
    }

    /// The first frame that fits; `None` if the connection ends before it comes.
    pub(crate) fn try_take(&mut self, fits: impl Fn(Prefix) -> bool) -> Option<Frame> {
        loop {
            if let Some(at) = self.inbox.iter().position(|f| fits(f.view().prefix)) {
                return self.inbox.remove(at);
            }
            match self.wire.see(PATIENCE) {
                Seen::Frame(f) => self.inbox.push_back(f),
                Seen::End => return None,
                Seen::Silence => panic!("neither a frame nor the end came"),
            }
        }
    }

    /// The next frame of any kind, if one comes within the time.
    pub(crate) fn poll(&mut self, within: Duration) -> Option<Frame> {
        if let Some(frame) = self.inbox.pop_front() {
            return Some(frame);
        }
        match self.wire.see(within) {
            Seen::Frame(f) => Some(f),
            Seen::Silence => None,
            Seen::End => panic!("the server has closed the connection"),
        }
    }

    /// The number of frames of an operation that have come by now and that nobody has taken.
    pub(crate) fn count(&mut self, op: Op) -> usize {
        self.catch_up();
        self.inbox.iter().filter(|f| f.view().prefix.op == op as u8).count()
    }

    /// Receives what the dispatcher and the hub have said so far. The answer of the dispatcher stands behind all that it
    /// said before. Pongs overtake, but not what was taken from the outbox before the first of them.
    fn catch_up(&mut self) {
        assert!(self.query(&[]).is_empty());
        self.echo();
        self.echo();
    }

    /// A round through the session: a ping comes back.
    pub(crate) fn echo(&mut self) {
        let id = self.fresh();
        self.send(Op::Ping, 0, id, 0, &[], b"echo");
        let pong = self.take("the pong", |p| p.op == Op::Pong as u8 && p.id == id);
        assert_eq!(pong.view().payload, b"echo");
    }

    /// The end of the connection, which must come; what comes before it stays in the inbox.
    pub(crate) fn closed(&mut self) {
        loop {
            match self.wire.see(PATIENCE) {
                Seen::Frame(f) => self.inbox.push_back(f),
                Seen::End => return,
                Seen::Silence => panic!("the end of the connection was expected"),
            }
        }
    }

    fn waiting(&self) -> Vec<u8> {
        self.inbox.iter().map(|f| f.view().prefix.op).collect()
    }
}

/// Answers carry the number of their request; what is pushed carries that of a consumer or a subscription.
fn is_answer(op: u8) -> bool {
    let pushed = [
        Op::Assign,
        Op::Result,
        Op::Progressed,
        Op::Revoked,
        Op::Deliver,
        Op::Requested,
        Op::MessagesLost,
        Op::Pong,
    ];
    !pushed.iter().any(|p| *p as u8 == op)
}
