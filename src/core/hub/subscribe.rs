//! Subscriptions come and go.

use hive_proto::messages::{self, Subscribe};
use hive_proto::{Code, FrameRef, SessionId, WireError, names};

use super::routes::Target;
use super::{Hub, HubSink};

impl Hub {
    pub(super) fn subscribe(
        &mut self,
        from: SessionId,
        frame: &[u8],
        quiet: bool,
        sink: &mut impl HubSink,
    ) -> Result<(), WireError> {
        let frame = whole(frame)?;
        let wish = match judged(&frame) {
            Err(_) if quiet => return Ok(()),
            wish => wish?,
        };
        let target = Target { sub: frame.prefix.id, session: from };
        self.room_for(target)?;
        self.subscriptions.add(target, wish.subject.as_bytes(), wish.group.as_deref());
        self.routes.changed(wish.subject.as_bytes());
        if !quiet {
            sink.ok(from, target.sub, 0);
        }
        Ok(())
    }

    pub(super) fn unsubscribe(
        &mut self,
        from: SessionId,
        frame: &[u8],
        quiet: bool,
        sink: &mut impl HubSink,
    ) -> Result<(), WireError> {
        let sub = whole(frame)?.prefix.id;
        let removed = self.subscriptions.remove(Target { sub, session: from });
        if let Some(pattern) = &removed {
            self.routes.changed(pattern);
        }
        match removed {
            _ if quiet => {}
            Some(_) => sink.ok(from, sub, 0),
            None => {
                let text = format!("no subscription {sub} is open");
                return Err(WireError::new(Code::UnknownSubscription, text));
            }
        }
        Ok(())
    }

    fn room_for(&self, target: Target) -> Result<(), WireError> {
        if self.subscriptions.contains(target) {
            let text = format!("subscription {} is open already", target.sub);
            return Err(WireError::new(Code::DuplicateSubscription, text));
        }
        let per_session = self.limits.subscriptions_per_session_max;
        if self.subscriptions.of_session(target.session) >= per_session {
            let text = format!("the connection has {per_session} subscriptions; it may not have more");
            return Err(WireError::new(Code::TooManySubscriptions, text));
        }
        if self.subscriptions.len() >= self.limits.subscriptions_max.min(u32::MAX as usize) {
            let text =
                format!("the server has {} subscriptions; it takes no more", self.limits.subscriptions_max);
            return Err(WireError::new(Code::TooManySubscriptions, text));
        }
        Ok(())
    }
}

fn judged(frame: &FrameRef<'_>) -> Result<Subscribe, WireError> {
    if !frame.payload.is_empty() {
        return Err(WireError::new(Code::MalformedFrame, "Subscribe has no payload"));
    }
    let wish: Subscribe = messages::decode(frame.header)?;
    names::pattern(wish.subject.as_bytes())?;
    if let Some(group) = &wish.group
        && names::queue(group.as_bytes()).is_err()
    {
        let text = "header Subscribe: group must be 1 to 128 characters of A-Z a-z 0-9 - _ . : /";
        return Err(WireError::new(Code::MalformedHeader, text));
    }
    Ok(wish)
}

pub(super) fn whole(frame: &[u8]) -> Result<FrameRef<'_>, WireError> {
    FrameRef::parse(frame)
        .ok_or_else(|| WireError::new(Code::MalformedFrame, "the lengths of the frame do not add up"))
}
