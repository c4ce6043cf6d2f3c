//! Subscriptions: opened again on every connection; deliveries go on in runs.

use bytes::Bytes;
use hive_proto::messages::{self, Subscribe};
use hive_proto::{FrameRef, Op};

use super::parts::share;
use super::state::{Awaiting, State};
use crate::Error;
use crate::command::Reply;
use crate::inbox::InboxSender;

/// A subscription as the driver sees it.
pub(super) struct OpenSubscription {
    spec: Subscribe,
    inbox: InboxSender,
    /// Who waits for the first opening.
    opening: Option<Reply<u32>>,
    refused: bool,
}

impl OpenSubscription {
    pub(super) fn new(spec: Subscribe, inbox: InboxSender, reply: Reply<u32>) -> Self {
        Self { spec, inbox, opening: Some(reply), refused: false }
    }

    pub(super) fn fail(&mut self, e: &Error) {
        if let Some(reply) = self.opening.take() {
            let _ = reply.send(Err(e.clone()));
        }
    }
}

/// Deliveries for one subscription that lie side by side in a run of frames.
#[derive(Debug, Default)]
pub(super) struct DeliveryRun {
    id: u32,
    at: usize,
    len: usize,
    messages: u64,
}

impl DeliveryRun {
    /// Adds the next frame; `false` if it is for another subscription.
    pub(super) fn add(&mut self, frame: &FrameRef<'_>) -> bool {
        if self.len == 0 {
            (self.id, self.at) = (frame.prefix.id, frame.header.as_ptr() as usize - hive_proto::PREFIX_LEN);
        } else if self.id != frame.prefix.id {
            return false;
        }
        self.len += hive_proto::PREFIX_LEN + frame.prefix.length as usize;
        self.messages += u64::from(frame.prefix.op != Op::MessagesLost as u8);
        true
    }
}

impl State {
    pub(super) fn open_subscription(&mut self, subscription: OpenSubscription) {
        let id = self.number();
        self.subscriptions.insert(id, subscription);
        self.ask_subscription(id);
    }

    pub(super) fn reopen_subscriptions(&mut self) {
        let ids: Vec<_> = self.subscriptions.keys().copied().collect();
        ids.into_iter().for_each(|id| self.ask_subscription(id));
    }

    fn ask_subscription(&mut self, id: u32) {
        let Some(s) = self.subscriptions.get_mut(&id) else { return };
        s.refused = false;
        let header = messages::encode(&s.spec);
        self.ask(id, Op::Subscribe, 0, &header, (0, &[]), Awaiting::Subscription(id));
    }

    pub(super) fn subscription_opened(&mut self, id: u32) {
        let Some(s) = self.subscriptions.get_mut(&id) else { return };
        if s.opening.take().is_some_and(|reply| reply.send(Ok(id)).is_err()) {
            self.close_subscription(id);
        }
    }

    pub(super) fn subscription_refused(&mut self, id: u32, e: &Error) {
        let Some(s) = self.subscriptions.get_mut(&id) else { return };
        if s.opening.is_none() && e.retryable() {
            s.refused = true;
            self.retry_later();
            return;
        }
        tracing::warn!(subject = %s.spec.subject, error = %e, "subscription refused");
        s.fail(e);
        self.subscriptions.remove(&id);
    }

    pub(super) fn refused_subscriptions(&mut self) {
        let ids: Vec<_> = self.subscriptions.iter().filter(|(_, s)| s.refused).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.ask_subscription(id));
    }

    pub(super) fn close_subscription(&mut self, id: u32) {
        if self.subscriptions.remove(&id).is_some() && self.online {
            self.ask(id, Op::Unsubscribe, 0, &[], (0, &[]), Awaiting::Nothing);
        }
    }

    /// Hands a run of deliveries to its subscriber.
    pub(super) fn deliver(&mut self, run: &Bytes, d: &DeliveryRun) {
        if d.len == 0 {
            return;
        }
        if let Some(s) = self.subscriptions.get_mut(&d.id) {
            let start = d.at - run.as_ptr() as usize;
            s.inbox.push(share(run, &run[start..start + d.len]), d.messages, self.generation);
        }
    }
}
