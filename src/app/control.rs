//! What HTTP asks of the server.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Server;
use crate::actors::supervise::Fault;
use crate::actors::{dispatcher, hub, journaler, sessions};
use crate::edge::http::{Control, FaultOutcome, Pieces};
use crate::edge::journal::{archive_bytes, segment_parts, snapshot_parts, write_archive};
use crate::edge::{clock, host};

/// Agents listed in the status.
const AGENTS_MAX: usize = 1000;

/// Pieces of a backup that wait for the client, and their size, bytes.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 256 * 1024;
/// How often the files of a backup are looked for anew.
const BACKUP_TRIES: u32 = 10;

/// What is written goes to the client, as fast as it reads.
struct Sending(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Control for Arc<Server> {
    fn authorized(&self, token: &str) -> bool {
        self.token.matches(token)
    }

    fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("draining".to_owned());
        }
        if self.dispatcher.addr().is_none() {
            reasons.push("dispatcher-0 is restarting".to_owned());
        }
        let journal = self.journal.state();
        if let Some(why) = journal.failed {
            reasons.push(format!("the journal failed: {why}"));
        } else if journal.low_space {
            reasons.push("the disk of the journal is full".to_owned());
        }
        if self.journaler.as_ref().is_some_and(|j| j.addr().is_none()) {
            reasons.push("journaler is restarting".to_owned());
        }
        for (n, shard) in self.shards.iter().enumerate() {
            if shard.hub.addr().is_none() {
                reasons.push(format!("hub-{n} is restarting"));
            }
        }
        reasons
    }

    fn status(&self) -> LocalBoxFuture<'static, Value> {
        let server = self.clone();
        Box::pin(async move { server.gather().await })
    }

    fn stop(&self) {
        self.stop.notify_one();
    }

    fn backup(&self) -> LocalBoxFuture<'static, Result<Pieces, String>> {
        let server = self.clone();
        Box::pin(async move { server.copy_journal().await })
    }

    fn fault(&self, actor: &str, shard: usize) -> FaultOutcome {
        let Some(s) = self.shards.get(shard).filter(|_| self.config.faults) else {
            return FaultOutcome::Unknown;
        };
        let sent = match actor {
            "dispatcher" => self.dispatcher.addr().is_some_and(|a| a.try_send(Fault).is_ok()),
            "hub" => s.hub.addr().is_some_and(|a| a.try_send(Fault).is_ok()),
            "journaler" => match &self.journaler {
                Some(j) => j.addr().is_some_and(|a| a.try_send(Fault).is_ok()),
                None => return FaultOutcome::Unknown,
            },
            "fetcher" => match self.fetcher.get() {
                Some(f) => f.addr().is_some_and(|a| a.try_send(Fault).is_ok()),
                None => return FaultOutcome::Unknown,
            },
            "sessions" | "session" => {
                let fault = sessions::Fault { session: actor == "session" };
                s.sessions.addr().is_some_and(|a| a.try_send(fault).is_ok())
            }
            _ => return FaultOutcome::Unknown,
        };
        if sent { FaultOutcome::Injected } else { FaultOutcome::Restarting }
    }
}

impl Server {
    /// State of the dispatcher; `None` while it restarts.
    pub(super) async fn dispatcher_view(&self) -> Option<dispatcher::View> {
        let addr = self.dispatcher.addr()?;
        addr.send(dispatcher::GetView).await.ok()
    }

    async fn gather(&self) -> Value {
        let d = self.dispatcher_view().await;
        let mut hubs = Vec::new();
        for shard in &self.shards {
            hubs.push(match shard.hub.addr() {
                Some(addr) => addr.send(hub::GetView).await.ok(),
                None => None,
            });
        }
        let sum = |f: fn(&hub::View) -> u64| hubs.iter().flatten().map(f).sum::<u64>();
        let c = d.as_ref().map(|d| d.counters).unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": clock::now().since(self.started) / 1_000_000_000,
            "epoch": self.epoch,
            "dev": self.config.dev,
            "draining": self.draining.load(Ordering::Relaxed),
            "server": self.ready.server.to_string(),
            "http": self.ready.http.to_string(),
            "memory_bytes": host::resident_bytes(),
            "memory_bytes_max": self.config.limits.memory_bytes_max,
            "connections": self.directory.connections.load(Ordering::Relaxed),
            "queues": d.as_ref().map(queues).unwrap_or_default(),
            "agents": self.agents(),
            "agents_total": self.directory.len(),
            "shards": self.shard_views(d.as_ref(), &hubs),
            "actors": self.roster.snapshot(),
            "journal": self.journaler.as_ref().map(|_| self.journal_view()),
            "totals": {
                "submitted": c.submitted, "refused": c.refused, "assigned": c.assigned, "completed": c.completed,
                "failed": c.failed, "dead": c.dead, "cancelled": c.cancelled, "expired": c.expired, "stale": c.stale,
                "published": sum(|h| h.counters.published), "delivered": sum(|h| h.delivered), "lost": sum(|h| h.lost),
            },
        })
    }

    /// Opens what is to be copied, and reads it on a thread of its own as the client takes it.
    async fn copy_journal(&self) -> Result<Pieces, String> {
        let (Some(dir), Some(journaler)) = (&self.config.data_dir, &self.journaler) else {
            return Err("all queues are in memory: there is no journal".into());
        };
        let dir = dir.join("journal");
        let mut tries = 0;
        let parts = loop {
            let cannot = |e: std::io::Error| format!("the journal cannot be read: {e}");
            let mut parts = snapshot_parts(&dir).map_err(cannot)?;
            let addr = journaler.addr().ok_or("the journaler is being made anew; try again")?;
            let segments = addr.send(journaler::GetSegments).await.map_err(|e| e.to_string())?;
            match segment_parts(&dir, &segments) {
                Ok(more) => {
                    parts.extend(more);
                    break parts;
                }
                // Trimmed in between: a later snapshot covers it.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && tries < BACKUP_TRIES => tries += 1,
                Err(e) => return Err(cannot(e)),
            }
        };
        let bytes = archive_bytes(&parts);
        let (tx, pieces) = mpsc::channel(PIECES);
        let writer = std::io::BufWriter::with_capacity(PIECE_BYTES, Sending(tx.clone()));
        std::thread::Builder::new()
            .name("backup".into())
            .spawn(move || {
                if let Err(e) = write_archive(parts, writer) {
                    tracing::warn!(error = %e, "a backup was cut short");
                    let _ = tx.blocking_send(Err(e));
                }
            })
            .map_err(|e| format!("no thread for the backup: {e}"))?;
        Ok(Pieces { bytes, pieces })
    }

    fn journal_view(&self) -> Value {
        let j = self.journal.state();
        json!({
            "position": j.position, "records": j.records, "decisions": j.ops, "bytes": j.bytes,
            "low_space": j.low_space, "failed": j.failed,
        })
    }

    fn agents(&self) -> Vec<Value> {
        let now = clock::now();
        let mut agents = Vec::new();
        self.directory.for_each(|p| {
            if agents.len() < AGENTS_MAX {
                let connected_s = now.since(p.since) / 1_000_000_000;
                agents.push(json!({
                    "id": p.agent, "client": p.client, "labels": p.labels, "connected_s": connected_s,
                }));
            }
        });
        agents
    }

    fn shard_views(&self, d: Option<&dispatcher::View>, hubs: &[Option<hub::View>]) -> Vec<Value> {
        let mut connections = vec![0_usize; hubs.len()];
        self.directory.for_each(|p| connections[usize::from(p.shard)] += 1);
        let view = |(n, h): (usize, &Option<hub::View>)| {
            let dispatcher = d.filter(|_| n == 0).map(|d| {
                json!({
                    "epoch": d.epoch, "batches": d.batches, "tasks": d.counters.submitted, "missed": d.missed,
                    "decision_ns": d.decision_ns, "queued_ns": d.queued_ns, "memory_bytes": d.memory_bytes, "results_on_disk": d.results_on_disk,
                })
            });
            let hub = h.map(|h| {
                json!({
                    "subscriptions": h.counters.subscriptions, "published": h.counters.published,
                    "delivered": h.delivered, "lost": h.lost, "requests": h.counters.requests,
                })
            });
            json!({ "shard": n, "connections": connections[n], "dispatcher": dispatcher, "hub": hub })
        };
        hubs.iter().enumerate().map(view).collect()
    }
}

fn queues(d: &dispatcher::View) -> Vec<Value> {
    let view = |q: &crate::core::tasks::QueueView| {
        json!({
            "name": q.name, "durability": q.durability, "waiting": q.waiting, "on_disk": q.on_disk, "scheduled": q.scheduled,
            "running": q.running, "completed": q.completed, "dead": q.dead, "consumers": q.consumers,
        })
    };
    d.queues.iter().map(view).collect()
}
