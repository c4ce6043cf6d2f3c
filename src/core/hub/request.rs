//! Requests and replies; their life is drawn in the module above.

use bytes::BytesMut;
use hive_proto::frame::patch;
use hive_proto::{Code, FrameRef, Op, PREFIX_LEN, SessionId, WireError};

use super::requests::Pending;
use super::routes::{Choice, Target};
use super::subscribe::whole;
use super::{Hub, HubSink};
use crate::core::time::Tick;

impl Hub {
    pub(super) fn request(
        &mut self,
        now: Tick,
        from: SessionId,
        mut frame: BytesMut,
        sink: &mut impl HubSink,
    ) -> Result<(), WireError> {
        let view = whole(&frame)?;
        let (at, wish, subject) = field(&view)?;
        let (timeout_ms, reserved) = (wish as u32, (wish >> 32) as u32);
        if reserved != 0 {
            return Err(WireError::new(Code::MalformedHeader, "header Request: bytes 4 to 8 must be zero"));
        }
        let id = view.prefix.id;
        let Some(responder) = self.responder(subject)? else {
            self.counters.no_responders += 1;
            let text = "nobody has subscribed to the subject of the request";
            sink.error(from, id, WireError::new(Code::NoResponders, text));
            return Ok(());
        };
        let deadline = now.plus_ms(u64::from(self.patience(timeout_ms)));
        let Some(token) =
            self.requests.open(Pending { asker: from, id, responder: responder.session }, deadline)
        else {
            let text = format!("{} requests are under way already", self.limits.requests_max);
            return Err(WireError::new(Code::TooManyRequests, text));
        };
        self.counters.requests += 1;
        patch(&mut frame, Op::Requested, responder.sub);
        frame[at..at + 8].copy_from_slice(&token.to_le_bytes());
        if !sink.requested(responder.session, frame.freeze()) {
            self.requests.close(token, responder.session);
            self.counters.responders_gone += 1;
            let text = "the responder does not read; the request was not delivered";
            sink.error(from, id, WireError::new(Code::ReceiverSlow, text));
        }
        Ok(())
    }

    pub(super) fn reply(
        &mut self,
        from: SessionId,
        mut frame: BytesMut,
        sink: &mut impl HubSink,
    ) -> Result<(), WireError> {
        let view = whole(&frame)?;
        let (at, token, rest) = field(&view)?;
        if !rest.is_empty() {
            return Err(WireError::new(Code::MalformedHeader, "header Reply: must be a token of 8 bytes"));
        }
        let Some(request) = self.requests.close(token, from) else {
            let text = format!("no request waits for a reply with token {token:#018x} from this connection");
            return Err(WireError::new(Code::UnknownReply, text));
        };
        self.counters.replies += 1;
        patch(&mut frame, Op::Response, request.id);
        frame[at..at + 8].fill(0);
        sink.response(request.asker, frame.freeze());
        Ok(())
    }

    /// Whose turn it is to answer: plain subscriptions and groups take turns, and so do the members of a group.
    fn responder(&mut self, subject: &[u8]) -> Result<Option<Target>, WireError> {
        Ok(match self.route(subject)?.choose() {
            None => None,
            Some(Choice::Plain(target)) => Some(target),
            Some(Choice::Group(group)) => self.subscriptions.take_turns(group, 1).next(),
        })
    }

    fn patience(&self, timeout_ms: u32) -> u32 {
        match timeout_ms {
            0 => self.limits.request_ms_max,
            ms => ms.min(self.limits.request_ms_max),
        }
    }
}

/// The 8 bytes with which the headers of requests and replies begin, behind the trace context: where they stand in the
/// frame, their value, and what follows them in the header.
fn field<'a>(frame: &FrameRef<'a>) -> Result<(usize, u64, &'a [u8]), WireError> {
    let (_, header) = frame.traced_header()?;
    let Some((field, rest)) = header.split_first_chunk::<8>() else {
        return Err(WireError::new(Code::MalformedHeader, "the header must begin with a field of 8 bytes"));
    };
    let at = PREFIX_LEN + frame.header.len() - header.len();
    Ok((at, u64::from_le_bytes(*field), rest))
}
