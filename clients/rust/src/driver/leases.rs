//! Consumers and the leases they hold: assigned, renewed, settled, revoked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;
use hive_proto::items::{self, Assign, Complete, Fail, Item, Release, RevokeReason, Revoked};
use hive_proto::messages::{self, Work};
use hive_proto::{Code, FrameRef, Lease, Op};
use tokio::sync::mpsc;

use super::parts::{Refusals, share, whole};
use super::state::{Awaiting, State};
use crate::Error;
use crate::command::{How, Reply, Settle};
use crate::worker::{AssignBatch, ConsumerShared, Revocation};

/// A group of settlements leaves at this size at the latest, bytes.
const GROUP_BYTES: usize = 64 * 1024;
const GROUP_ITEMS: usize = 8192;

/// A consumer as the driver sees it.
pub(super) struct OpenConsumer {
    spec: Work,
    shared: Arc<ConsumerShared>,
    /// `None` once it takes no more.
    batches: Option<mpsc::Sender<AssignBatch>>,
    /// Who waits for the first opening.
    opening: Option<Reply<u32>>,
    refused: bool,
}

impl OpenConsumer {
    pub(super) fn new(
        spec: Work,
        shared: Arc<ConsumerShared>,
        batches: mpsc::Sender<AssignBatch>,
        reply: Reply<u32>,
    ) -> Self {
        Self { spec, shared, batches: Some(batches), opening: Some(reply), refused: false }
    }

    pub(super) fn fail(&mut self, e: &Error) {
        if let Some(reply) = self.opening.take() {
            let _ = reply.send(Err(e.clone()));
        }
        self.shared.fail(e.clone());
        self.batches = None;
    }
}

/// A lease in the hands of this client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    consumer: u32,
    lease: Lease,
    renew_after: Duration,
    renew_at: Instant,
}

/// Settlements that leave in one frame: of one kind, by one consumer.
pub(super) struct SettleGroup {
    consumer: u32,
    op: Op,
    items: Vec<u8>,
    replies: Vec<Option<Reply<()>>>,
}

impl State {
    pub(super) fn open_consumer(&mut self, consumer: OpenConsumer) {
        let id = self.number();
        self.consumers.insert(id, consumer);
        self.ask_consumer(id);
    }

    pub(super) fn reopen_consumers(&mut self) {
        let ids: Vec<_> = self.consumers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.ask_consumer(id));
    }

    fn ask_consumer(&mut self, id: u32) {
        let Some(c) = self.consumers.get_mut(&id) else { return };
        c.refused = false;
        let header = messages::encode(&c.spec);
        self.ask(id, Op::Work, 0, &header, (0, &[]), Awaiting::Consumer(id));
    }

    pub(super) fn consumer_opened(&mut self, id: u32) {
        let Some(c) = self.consumers.get_mut(&id) else { return };
        if c.opening.take().is_some_and(|reply| reply.send(Ok(id)).is_err()) {
            self.stop_consumer(id);
        }
    }

    pub(super) fn consumer_refused(&mut self, id: u32, e: &Error) {
        let Some(c) = self.consumers.get_mut(&id) else { return };
        if c.opening.is_none() && e.retryable() {
            c.refused = true;
            self.retry_later();
            return;
        }
        c.fail(e);
        self.consumers.remove(&id);
    }

    pub(super) fn refused_consumers(&mut self) {
        let ids: Vec<_> = self.consumers.iter().filter(|(_, c)| c.refused).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.ask_consumer(id));
    }

    pub(super) fn set_credit(&mut self, id: u32, tasks: u32, bytes: u64) {
        let Some(c) = self.consumers.get_mut(&id) else { return };
        (c.spec.credit_tasks, c.spec.credit_bytes) = (tasks, bytes);
        let mut header = tasks.to_le_bytes().to_vec();
        header.extend_from_slice(&bytes.to_le_bytes());
        // A frame of 28 bytes always fits.
        let _ = self.wire.frame(Op::Credit, 0, id, 0, &header, &[]);
    }

    /// Takes no more for a consumer. It stays known while it holds leases.
    pub(super) fn stop_consumer(&mut self, id: u32) {
        let Some(c) = self.consumers.get_mut(&id) else { return };
        let was_open = c.batches.take().is_some();
        if !self.online {
            self.consumers.remove(&id);
        } else if was_open {
            self.ask(id, Op::StopWork, 0, &[], (0, &[]), Awaiting::Nothing);
        }
    }

    pub(super) fn stop_consumers(&mut self) {
        let ids: Vec<_> = self.consumers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.stop_consumer(id));
    }

    pub(super) fn on_assign(&mut self, frame: &FrameRef<'_>, run: &Bytes, now: Instant) -> Result<(), Error> {
        let id = frame.prefix.id;
        let assigned = items::check::<Assign<'_>>(frame.payload, frame.prefix.count)?;
        for a in assigned.clone() {
            let renew_after = Duration::from_millis((a.lease_ms / 3).max(1).into());
            let held = Held { consumer: id, lease: a.lease, renew_after, renew_at: now + renew_after };
            self.held.insert(a.lease.task, held);
            self.renew_every = self.renew_every.min(renew_after / 2);
        }
        self.next_tick = self.next_tick.min(now + self.renew_every);
        let bytes = share(run, whole(frame, run));
        let batch = AssignBatch::new(bytes, frame.prefix, self.generation);
        let taken = self
            .consumers
            .get(&id)
            .and_then(|c| c.batches.as_ref())
            .is_some_and(|b| b.try_send(batch).is_ok());
        if !taken {
            // Stopped meanwhile, or more than was asked for.
            for a in assigned {
                let how = How::Release { delay_ms: 0 };
                let generation = self.generation;
                self.settle(Settle { consumer: id, generation, lease: a.lease, how, weight: 0, reply: None });
            }
            self.flush_settles();
        }
        Ok(())
    }

    /// Adds a settlement to the group of its kind, unless its lease is known to be void.
    pub(super) fn settle(&mut self, s: Settle) {
        self.weigh(s.weight);
        let held = self.held.get(&s.lease.task).is_some_and(|h| h.lease == s.lease);
        if s.generation != self.generation || !held {
            if let Some(c) = self.consumers.get(&s.consumer) {
                c.shared.forget(s.lease);
            }
            if let Some(reply) = s.reply {
                let _ = reply.send(Err(Error::local(Code::StaleLease, Code::StaleLease.help())));
            }
            return;
        }
        self.held.remove(&s.lease.task);
        let op = match s.how {
            How::Complete(_) => Op::Complete,
            How::Fail { .. } => Op::Fail,
            How::Release { .. } => Op::Release,
        };
        let group = self.settle_group(s.consumer, op, s.how.size());
        match s.how {
            How::Complete(result) => Complete { lease: s.lease, result: &result }.write(&mut group.items),
            How::Fail { error, permanent, delay_ms } => {
                Fail { lease: s.lease, delay_ms, permanent, error: &error }.write(&mut group.items);
            }
            How::Release { delay_ms } => Release { lease: s.lease, delay_ms }.write(&mut group.items),
        }
        group.replies.push(s.reply);
    }

    fn settle_group(&mut self, consumer: u32, op: Op, size: usize) -> &mut SettleGroup {
        let mut at = self.settle_groups.iter().position(|g| g.consumer == consumer && g.op == op);
        if let Some(i) = at {
            let g = &self.settle_groups[i];
            if g.items.len() + size > GROUP_BYTES || g.replies.len() >= GROUP_ITEMS {
                let group = self.settle_groups.swap_remove(i);
                self.send_settles(group);
                at = None;
            }
        }
        let at = at.unwrap_or_else(|| {
            self.settle_groups.push(SettleGroup { consumer, op, items: Vec::new(), replies: Vec::new() });
            self.settle_groups.len() - 1
        });
        &mut self.settle_groups[at]
    }

    pub(super) fn flush_settles(&mut self) {
        while let Some(group) = self.settle_groups.pop() {
            self.send_settles(group);
        }
    }

    fn send_settles(&mut self, g: SettleGroup) {
        let count = g.replies.len() as u16;
        if g.replies.iter().any(Option::is_some) {
            let id = self.number();
            self.ask(id, g.op, 0, &[], (count, &g.items), Awaiting::Settle(g.replies));
        } else if let Err(e) = self.wire.frame(g.op, 0, 0, count, &[], &g.items) {
            tracing::warn!(error = %e, "a settlement was not sent; its lease will expire");
        }
    }

    /// Extends the leases whose time has come.
    pub(super) fn renew(&mut self, now: Instant) {
        let mut due: HashMap<u32, Vec<Lease>> = HashMap::default();
        for h in self.held.values_mut().filter(|h| h.renew_at <= now) {
            h.renew_at = now + h.renew_after;
            due.entry(h.consumer).or_default().push(h.lease);
        }
        for leases in due.values().flat_map(|l| l.chunks(GROUP_ITEMS / 4)) {
            let mut payload = Vec::with_capacity(leases.len() * 16);
            leases.iter().for_each(|l| l.write(&mut payload));
            let id = self.number();
            self.ask(
                id,
                Op::Renew,
                0,
                &[],
                (leases.len() as u16, &payload),
                Awaiting::Renew(leases.to_vec()),
            );
        }
        let held_by = |id: u32| self.held.values().any(|h| h.consumer == id);
        self.consumers.retain(|id, c| c.batches.is_some() || held_by(*id));
    }

    pub(super) fn on_renewed(&mut self, refused: &Refusals, leases: &[Lease]) {
        for lease in refused.keys().filter_map(|i| leases.get(usize::from(*i))) {
            self.revoke(*lease, Revocation::Server(RevokeReason::Expired));
        }
    }

    pub(super) fn on_revoked(&mut self, frame: &FrameRef<'_>) -> Result<(), Error> {
        for r in items::check::<Revoked>(frame.payload, frame.prefix.count)? {
            self.revoke(r.lease, Revocation::Server(r.reason));
        }
        Ok(())
    }

    fn revoke(&mut self, lease: Lease, why: Revocation) {
        let Some(held) = self.held.get(&lease.task).filter(|h| h.lease == lease) else { return };
        if let Some(c) = self.consumers.get(&held.consumer) {
            c.shared.revoke(lease, why);
        }
        self.held.remove(&lease.task);
    }

    /// The connection is gone, and the leases with it.
    pub(super) fn void_leases(&mut self) {
        self.generation = self.shared.next_generation();
        self.held.clear();
        for c in self.consumers.values() {
            c.shared.void_all();
        }
        self.consumers.retain(|_, c| c.batches.is_some());
    }

    pub(super) fn retry_later(&mut self) {
        self.retry_soon = true;
        self.next_tick = self.next_tick.min(Instant::now() + super::state::RETRY);
    }

    pub(super) fn reopen_refused(&mut self) {
        self.refused_consumers();
        self.refused_subscriptions();
    }
}

impl How {
    /// Bytes of the item, nearly.
    fn size(&self) -> usize {
        match self {
            Self::Complete(result) => 20 + result.len(),
            Self::Fail { error, .. } => 23 + error.len(),
            Self::Release { .. } => 20,
        }
    }
}
