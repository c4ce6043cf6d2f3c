//! Messages: subjects, requests, other agents. At most once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hive_proto::items::Reader;
use hive_proto::messages::Subscribe;
use hive_proto::{Code, Flags, Op, Trace, names};
use tokio::sync::oneshot;

use crate::client::Inner;
use crate::command::{Command, Note};
use crate::inbox::{Inbox, Received, inbox};
use crate::{Client, Error};

/// What is added to a request's timeout before this side gives up: the server's verdict says more.
const GRACE: Duration = Duration::from_secs(2);

impl Client {
    /// Publishes to whoever subscribes; waits for room in the buffer only.
    ///
    /// # Errors
    /// `invalid_subject`, or the reason why the client ended.
    pub async fn publish(&self, subject: &str, payload: impl Into<Bytes>) -> Result<(), Error> {
        names::subject(subject.as_bytes())?;
        self.inner.send(Op::Publish, 0, copy(subject), 0, payload.into()).await
    }

    /// As [`Self::publish`], with a trace context.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_traced(
        &self,
        subject: &str,
        payload: impl Into<Bytes>,
        trace: Trace,
    ) -> Result<(), Error> {
        names::subject(subject.as_bytes())?;
        let header = [&trace.0, subject.as_bytes()].concat().into();
        self.inner.send(Op::Publish, Flags::TRACE, header, 0, payload.into()).await
    }

    /// Publishes, and tells how many subscribers the message went to (65,535 stands for that and more).
    ///
    /// # Errors
    /// `invalid_subject`, and those of the connection.
    pub async fn publish_ack(&self, subject: &str, payload: impl Into<Bytes>) -> Result<u16, Error> {
        names::subject(subject.as_bytes())?;
        self.count(Op::Publish, copy(subject), payload.into()).await
    }

    /// Subscribes to a subject; `*` stands for one token, a last `>` for one or more.
    ///
    /// # Errors
    /// `invalid_subject`, `too_many_subscriptions`, and those of the connection.
    pub async fn subscribe(&self, pattern: &str) -> Result<Subscription, Error> {
        self.open(pattern, None).await
    }

    /// Subscribes as a member of a queue group: each message goes to one member.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub async fn queue_subscribe(&self, pattern: &str, group: &str) -> Result<Subscription, Error> {
        self.open(pattern, Some(group.to_owned())).await
    }

    async fn open(&self, pattern: &str, group: Option<String>) -> Result<Subscription, Error> {
        names::pattern(pattern.as_bytes())?;
        let (tx, rx) = inbox(self.inner.settings.inbox_bytes);
        let (reply, opened) = oneshot::channel();
        let spec = Subscribe { subject: pattern.to_owned(), group };
        self.inner.command(Command::OpenSubscription { spec, inbox: tx, reply }).await?;
        let id = self.inner.answer_in_time(opened).await?;
        Ok(Subscription { inner: Arc::clone(&self.inner), id, inbox: rx })
    }

    /// Asks one of those who have subscribed to `subject`, and waits for the answer.
    ///
    /// # Errors
    /// `no_responders` at once, `request_timeout`, `responder_gone`, and those of the connection.
    pub async fn request(
        &self,
        subject: &str,
        payload: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, Error> {
        names::subject(subject.as_bytes())?;
        let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let header = [&ms.to_le_bytes()[..], &[0; 4], subject.as_bytes()].concat().into();
        let ask = self.inner.ask(Op::Request, 0, header, 0, payload.into());
        match self.inner.within(timeout.saturating_add(GRACE), ask).await {
            Ok(frame) => Ok(frame.payload()),
            Err(Error::Timeout(_)) => Err(Error::Timeout(timeout)),
            Err(e) => Err(e),
        }
    }

    /// Sends a message to one agent.
    ///
    /// # Errors
    /// `unknown_agent`, `receiver_slow`, `invalid_agent_id`, and those of the connection.
    pub async fn send_to(&self, agent: &str, payload: impl Into<Bytes>) -> Result<(), Error> {
        names::agent(agent.as_bytes())?;
        self.count(Op::Direct, copy(agent), payload.into()).await.map(drop)
    }

    /// Sends a message to all other agents, and tells how many that were (65,535 stands for that and more).
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn broadcast(&self, payload: impl Into<Bytes>) -> Result<u16, Error> {
        self.count(Op::Broadcast, Bytes::new(), payload.into()).await
    }

    /// The messages that other agents send to this one, from now on. A second stream replaces the first.
    ///
    /// # Errors
    /// The reason why the client ended.
    pub async fn messages(&self) -> Result<AgentMessages, Error> {
        let (tx, rx) = inbox(self.inner.settings.inbox_bytes);
        self.inner.command(Command::AgentMessages(tx)).await?;
        Ok(AgentMessages { inbox: rx, _client: Arc::clone(&self.inner) })
    }

    /// Sends something acknowledged, whose acknowledgement counts the receivers.
    async fn count(&self, op: Op, header: Bytes, payload: Bytes) -> Result<u16, Error> {
        let ask = self.inner.ask(op, Flags::ACK, header, 0, payload);
        let frame = self.inner.within(self.inner.settings.timeout, ask).await?;
        Ok(frame.view().prefix.count)
    }
}

fn copy(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A stream of messages. It lives through breaks of the connection (what is published meanwhile is missed) and ends
/// with the client. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    inner: Arc<Inner>,
    id: u32,
    inbox: Inbox,
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let this = self.get_mut();
        loop {
            return match this.inbox.poll_frame(cx) {
                Poll::Ready(Some(received)) => match Message::read(&received, &this.inner) {
                    Some(message) => Poll::Ready(Some(message)),
                    None => continue, // Not text where a subject was due.
                },
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // Without a driver there is nothing to close.
        let _ = self.inner.note(Note::CloseSubscription(self.id));
    }
}

/// A message for a subscription; a request if it asks for a reply.
#[derive(Clone, Debug)]
pub struct Message {
    /// The payload.
    pub payload: Bytes,
    /// The sender's trace context.
    pub trace: Option<Trace>,
    /// Messages of this subscription that were lost before this one, because it was read too slowly.
    pub lost_before: u64,
    subject: Bytes,
    reply: Option<ReplyTo>,
}

#[derive(Clone, Debug)]
struct ReplyTo {
    inner: Arc<Inner>,
    token: u64,
    generation: u64,
}

impl Message {
    fn read(received: &Received, inner: &Arc<Inner>) -> Option<Self> {
        let Received { frame, lost_before, generation } = received;
        let (view, lost_before, generation) = (frame.view(), *lost_before, *generation);
        let (trace, header) = view.traced_header().ok()?;
        let mut header = Reader(header);
        let reply = match view.prefix.op == Op::Requested as u8 {
            true => Some(ReplyTo { inner: Arc::clone(inner), token: header.u64()?, generation }),
            false => None,
        };
        std::str::from_utf8(header.0).ok()?;
        let subject = frame.clone().into_bytes().slice_ref(header.0);
        Some(Self { payload: frame.payload(), trace, lost_before, subject, reply })
    }

    /// What the message was published to.
    pub fn subject(&self) -> &str {
        std::str::from_utf8(&self.subject).unwrap_or_default()
    }

    /// Whether somebody waits for a reply.
    pub fn is_request(&self) -> bool {
        self.reply.is_some()
    }

    /// Answers the request. Whether the answer was still wanted is not told.
    ///
    /// # Errors
    /// `unknown_reply` if the message is no request or came by a connection that is gone, or the reason why the client
    /// ended.
    pub async fn reply(&self, payload: impl Into<Bytes>) -> Result<(), Error> {
        let to = self.reply.as_ref().filter(|to| to.generation == to.inner.shared.generation());
        let to = to.ok_or_else(|| Error::local(Code::UnknownReply, Code::UnknownReply.help()))?;
        let header = Bytes::copy_from_slice(&to.token.to_le_bytes());
        to.inner.send(Op::Reply, 0, header, 0, payload.into()).await
    }
}

/// A stream of messages from other agents; ends with the client.
#[derive(Debug)]
pub struct AgentMessages {
    inbox: Inbox,
    _client: Arc<Inner>,
}

/// A message from another agent.
#[derive(Clone, Debug)]
pub struct AgentMessage {
    /// Who sent it.
    pub from: String,
    /// The payload.
    pub payload: Bytes,
    /// It went to all agents.
    pub broadcast: bool,
    /// The sender's trace context.
    pub trace: Option<Trace>,
    /// Messages that were lost before this one, because they were read too slowly.
    pub lost_before: u64,
}

impl Stream for AgentMessages {
    type Item = AgentMessage;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AgentMessage>> {
        let this = self.get_mut();
        loop {
            let Some(Received { frame, lost_before, .. }) = std::task::ready!(this.inbox.poll_frame(cx))
            else {
                return Poll::Ready(None);
            };
            let view = frame.view();
            let Ok((trace, from)) = view.traced_header() else { continue };
            return Poll::Ready(Some(AgentMessage {
                from: String::from_utf8_lossy(from).into_owned(),
                payload: frame.payload(),
                broadcast: view.prefix.flags.has(Flags::BROADCAST),
                trace,
                lost_before,
            }));
        }
    }
}
