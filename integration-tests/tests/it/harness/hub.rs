//! What publishers, subscribers and responders say, in the words of the tests.

use hive_proto::messages::{self, Subscribe};
use hive_proto::{Flags, Frame, Op, WireError};

use super::Client;

/// A message that came: for a subscription, or from another agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Heard {
    /// Subject, or the sender's agent id.
    pub(crate) from: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) broadcast: bool,
}

impl Client {
    /// Opens a subscription.
    pub(crate) fn subscribe(&mut self, subject: &str, group: Option<&str>) -> u32 {
        self.try_subscribe(subject, group).unwrap_or_else(|e| panic!("subscribe: {e}"))
    }

    pub(crate) fn try_subscribe(&mut self, subject: &str, group: Option<&str>) -> Result<u32, WireError> {
        let header = messages::encode(&Subscribe { subject: subject.into(), group: group.map(Into::into) });
        let answer = self.call(Op::Subscribe, 0, 0, &header, &[])?;
        assert_eq!(answer.view().op(), Ok(Op::Ok));
        Ok(answer.view().prefix.id)
    }

    pub(crate) fn unsubscribe(&mut self, sub: u32) -> Result<(), WireError> {
        self.send(Op::Unsubscribe, 0, sub, 0, &[], &[]);
        self.answer(sub).map(|_| ())
    }

    /// Publishes; gives how many it reached.
    pub(crate) fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<u16, WireError> {
        self.call(Op::Publish, Flags::ACK, 0, subject.as_bytes(), payload).map(|f| f.view().prefix.count)
    }

    /// The next message of a subscription.
    pub(crate) fn heard(&mut self, sub: u32) -> Heard {
        heard(&self.take("a message", |p| p.op == Op::Deliver as u8 && p.id == sub))
    }

    /// The next message from another agent.
    pub(crate) fn message(&mut self) -> Heard {
        heard(&self.next(Op::Message))
    }

    pub(crate) fn direct(&mut self, agent: &str, payload: &[u8]) -> Result<u16, WireError> {
        self.call(Op::Direct, Flags::ACK, 0, agent.as_bytes(), payload).map(|f| f.view().prefix.count)
    }

    pub(crate) fn broadcast(&mut self, payload: &[u8]) -> Result<u16, WireError> {
        self.call(Op::Broadcast, Flags::ACK, 0, &[], payload).map(|f| f.view().prefix.count)
    }

    /// Sends a request without waiting for the response.
    pub(crate) fn ask_request(&mut self, subject: &str, timeout_ms: u32, payload: &[u8]) -> u32 {
        let header = [&timeout_ms.to_le_bytes()[..], &[0; 4], subject.as_bytes()].concat();
        self.ask(Op::Request, 0, 0, &header, payload)
    }

    /// The response to a request.
    pub(crate) fn response(&mut self, id: u32) -> Result<Vec<u8>, WireError> {
        let answer = self.answer(id)?;
        assert_eq!(answer.view().op(), Ok(Op::Response));
        Ok(answer.view().payload.to_vec())
    }

    /// The next request for a subscription: token, subject, payload.
    pub(crate) fn requested(&mut self, sub: u32) -> (u64, String, Vec<u8>) {
        let frame = self.take("a request", |p| p.op == Op::Requested as u8 && p.id == sub);
        let (token, subject) = frame.view().header.split_first_chunk().expect("a token");
        let subject = String::from_utf8(subject.to_vec()).expect("a subject");
        (u64::from_le_bytes(*token), subject, frame.view().payload.to_vec())
    }

    /// Answers a request; `id` is for errors only.
    pub(crate) fn reply(&mut self, token: u64, payload: &[u8]) -> u32 {
        self.ask(Op::Reply, 0, 0, &token.to_le_bytes(), payload)
    }
}

fn heard(frame: &Frame) -> Heard {
    let f = frame.view();
    Heard {
        from: String::from_utf8(f.header.to_vec()).expect("a subject or an agent id"),
        payload: f.payload.to_vec(),
        broadcast: f.prefix.flags.has(Flags::BROADCAST),
    }
}
