//! How a server ends: no new work, what runs is finished, everybody is told, then the connections close.

use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hive_proto::{Op, ids::Durability, messages};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Server;
use crate::actors::directory::Wish;
use crate::actors::dispatcher;
use crate::core::tasks::QueueView;

const LOOK: Duration = Duration::from_millis(20);
/// What closing the connections may take: until then clients may read what waits for them.
const FAREWELL: Duration = Duration::from_secs(2);

/// Returns when the server has drained, or at once after a second signal.
pub(super) async fn until_stopped(server: &Server, mut signals: Signals) {
    tokio::select! {
        () = signals.next() => tracing::info!("signal: draining"),
        () = server.stop.notified() => tracing::info!("asked to stop: draining"),
        () = server.journal.failed() => tracing::error!("the journal failed: stopping"),
    }
    server.draining.store(true, Ordering::SeqCst);
    // Wakes the acceptor, which then sees that the server drains.
    let _ = TcpStream::connect_timeout(&server.ready.server, Duration::from_millis(100));
    tokio::select! {
        () = drain(server) => {}
        () = signals.next() => tracing::warn!("second signal: quitting now"),
    }
}

/// Those that ask for the end. Made once: a signal that comes while nobody waits is not lost.
pub(super) struct Signals(Option<[Signal; 2]>);

impl Signals {
    pub(super) fn new() -> Self {
        // Without signal handlers the defaults of the system end the process.
        let both = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let [Ok(terminate), Ok(interrupt)] = both else { return Self(None) };
        Self(Some([terminate, interrupt]))
    }

    async fn next(&mut self) {
        let Some([terminate, interrupt]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

async fn drain(server: &Server) {
    let grace_ms = server.config.drain_ms;
    let drain = messages::Drain {
        reason: "the server is shutting down".into(),
        grace_ms: grace_ms.min(u64::from(u32::MAX)) as u32,
        servers: Vec::new(),
    };
    let header = messages::encode(&drain);
    server.directory.for_each(|p| {
        p.outbox.answer(Op::Drain, 0, 0, &header, &[]);
    });
    if let Some(dispatcher) = server.dispatcher.addr() {
        let _ = dispatcher.try_send(dispatcher::Drain);
    }
    let finished = tokio::time::timeout(Duration::from_millis(grace_ms), until_idle(server)).await.is_ok();
    let left = server.dispatcher_view().await.map_or(0, |d| unfinished(&d));
    if left > 0 {
        tracing::warn!(tasks = left, finished, "tasks in memory queues end with the server");
    }
    // What was decided last is worth the time of one sync.
    let _ = tokio::time::timeout(FAREWELL, until_committed(server)).await;
    server.directory.for_each(|p| p.wish(Wish::Close));
    let _ = tokio::time::timeout(FAREWELL, async {
        // Connections outlive their sessions until the client has read the last byte.
        while server.directory.connections.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
}

/// The journal has all that was decided, or never will.
async fn until_committed(server: &Server) {
    while server.journal.state().failed.is_none() {
        if server.dispatcher_view().await.is_some_and(|d| !d.uncommitted) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn in_memory(q: &QueueView) -> bool {
    q.durability == Durability::Memory
}

/// Nothing runs, and nothing waits in memory for which there is a worker. What needs a journal that failed cannot end.
async fn until_idle(server: &Server) {
    loop {
        let failed = server.journal.state().failed.is_some();
        let busy = |q: &QueueView| match in_memory(q) {
            true => q.running > 0 || q.waiting > 0 && q.consumers > 0,
            false => q.running > 0 && !failed,
        };
        // A dispatcher that restarts has no view, and is not idle.
        let idle = server.dispatcher_view().await.is_some_and(|d| !d.queues.iter().any(busy));
        if idle || server.directory.is_empty() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn unfinished(d: &dispatcher::View) -> usize {
    d.queues.iter().filter(|q| in_memory(q)).map(|q| q.waiting + q.scheduled + q.running).sum()
}
