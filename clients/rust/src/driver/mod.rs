//! The driver: the one task that owns the connection.
//!
//! ```text
//!   connect ──ok──> serve ──lost / asked to leave──> reconnect ──ok──> serve ...
//!      │              │                                   │
//!    error          closed: goodbye, end            refused for good, or closed: end
//! ```
//!
//! `serve` repeats: take what callers have handed over, write, wait for the socket, a caller or the clock. Taking comes
//! in batches, so that calls which arrive together share frames and system calls. What frames mean is in [`state`],
//! which touches no socket.

mod hub;
mod leases;
mod link;
mod parts;
mod state;
mod submits;
mod watches;
mod wire;

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use hive_proto::codec::Frame;
use tokio::io::Interest;
use tokio::sync::mpsc;

use self::link::Link;
use self::state::State;
use crate::client::{Shared, Status};
use crate::command::{Command, Note, Submission};
use crate::{ClientBuilder, Error};

/// Messages taken from one channel in one round.
const ROUND: usize = 512;
/// Servers that are kept in mind.
const SERVERS_MAX: usize = 16;
/// Time for the last frames and the goodbye to leave.
const GOODBYE: Duration = Duration::from_secs(2);

/// Channels from the callers.
pub(crate) struct Receivers {
    pub(crate) submits: mpsc::Receiver<Submission>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) notes: mpsc::UnboundedReceiver<Note>,
}

/// See the module.
pub(crate) struct Driver {
    settings: ClientBuilder,
    servers: Vec<String>,
    /// The server in use.
    at: usize,
    shared: Arc<Shared>,
    channels: Receivers,
    /// Taken from its channel, waiting for credit.
    stalled: Option<Submission>,
    state: State,
    /// All callers are gone.
    orphaned: bool,
}

/// Why a connection is no longer served.
enum End {
    Lost(Error),
    /// The server asked to leave and nothing holds us.
    Left,
    Closed,
}

impl Driver {
    /// Connects for the first time: each server is tried once.
    pub(crate) async fn connect(
        settings: ClientBuilder,
        shared: Arc<Shared>,
        channels: Receivers,
    ) -> Result<(Self, LinkHandle), Error> {
        let servers = settings.servers.clone();
        let mut last = Error::Closed;
        for (at, server) in servers.iter().enumerate() {
            match Link::open(server, &settings).await {
                Ok((link, welcome)) => {
                    let state = State::new(Arc::clone(&shared), &settings, welcome, server);
                    let driver = Self {
                        settings,
                        at,
                        servers,
                        shared,
                        channels,
                        stalled: None,
                        state,
                        orphaned: false,
                    };
                    return Ok((driver, LinkHandle(link)));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Serves until the client is closed, or fails for good.
    pub(crate) async fn run(mut self, link: LinkHandle) {
        let mut link = link.0;
        let reason = loop {
            let end = self.serve(&mut link).await;
            let lost = match end {
                End::Closed | End::Left => {
                    self.state.goodbye();
                    // The peer may be gone already; there is nobody left to tell.
                    let _ = link.write_all(&mut self.state.wire, GOODBYE).await;
                    if matches!(end, End::Closed) {
                        break Error::Closed;
                    }
                    Error::Disconnected { reason: "the server is draining".into(), sent: true }
                }
                End::Lost(e) => e,
            };
            drop(link);
            self.state.disconnected(&lost);
            if !self.settings.reconnect {
                break lost;
            }
            match self.reconnect(&lost).await {
                Ok(l) => link = l,
                Err(e) => break e,
            }
        };
        self.finish(reason);
    }

    async fn serve(&mut self, link: &mut Link) -> End {
        loop {
            self.gather();
            if self.shared.is_draining() {
                self.state.leave();
            }
            if let Err(e) = link.write(&mut self.state.wire) {
                return End::Lost(lost(&e));
            }
            if self.shared.is_closing() || (self.orphaned || self.state.leaving) && self.is_done() {
                return End::Closed;
            }
            if self.state.may_leave(self.servers.len()) {
                return End::Left;
            }
            let interest = match self.state.wire.unwritten().is_empty() {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            let room = !self.orphaned && self.state.has_room();
            tokio::select! {
                biased;
                ready = link.stream.ready(interest) => {
                    let read = match ready {
                        Ok(r) if r.is_readable() => self.read(link),
                        Ok(_) => Ok(()),
                        Err(e) => Err(lost(&e)),
                    };
                    if let Err(e) = read {
                        return End::Lost(self.state.last_words.take().unwrap_or(e));
                    }
                }
                c = self.channels.commands.recv(), if room => match c {
                    Some(c) => self.state.on_command(c),
                    None => self.orphaned = true,
                },
                s = self.channels.submits.recv(), if room && self.stalled.is_none() && self.state.may_submit(self.servers.len()) => self.stalled = s,
                n = self.channels.notes.recv(), if room => {
                    if let Some(n) = n { self.state.on_note(n); }
                }
                () = self.shared.closing.notified() => {}
                () = tokio::time::sleep_until(self.state.next_tick.into()) => {
                    if let Err(e) = self.state.tick(Instant::now()) {
                        return End::Lost(e);
                    }
                }
            }
        }
    }

    /// Takes what callers have handed over, as far as there is room and credit.
    fn gather(&mut self) {
        if !self.state.has_room() {
            return;
        }
        let notes = std::iter::from_fn(|| self.channels.notes.try_recv().ok());
        self.state.on_notes(notes.take(ROUND));
        for _ in 0..ROUND {
            let Ok(command) = self.channels.commands.try_recv() else { break };
            self.state.on_command(command);
        }
        if self.state.may_submit(self.servers.len()) {
            for _ in 0..ROUND {
                let Some(s) = self.stalled.take().or_else(|| self.channels.submits.try_recv().ok()) else {
                    break;
                };
                if !self.state.credit.take(&s) {
                    self.stalled = Some(s);
                    break;
                }
                self.state.submit(s);
            }
            self.state.flush_submits();
        }
        self.state.give_back();
    }

    fn read(&mut self, link: &mut Link) -> Result<(), Error> {
        let open = link.read().map_err(|e| lost(&e))?;
        let now = Instant::now();
        loop {
            let run = link.run().map_err(|e| Error::Protocol(e.text))?;
            if run.is_empty() {
                break;
            }
            self.state.on_run(&run, now)?;
        }
        if open { Ok(()) } else { Err(lost(&std::io::Error::other("closed by the server"))) }
    }

    /// Whether nothing is owed in either direction.
    fn is_done(&self) -> bool {
        self.stalled.is_none()
            && self.channels.submits.is_empty()
            && self.channels.commands.is_empty()
            && self.channels.notes.is_empty()
            && self.state.owes_nothing(self.orphaned)
    }

    /// Tries until a server answers, the client is closed, or it has been without a server for too long.
    async fn reconnect(&mut self, lost: &Error) -> Result<Link, Error> {
        tracing::info!(%lost, "connection lost; connecting again");
        let last_heard = self.state.last_heard;
        let Some(outage_max) = self.settings.outage_max else { return self.try_servers(lost).await };
        let left = outage_max.saturating_sub(last_heard.elapsed());
        tokio::time::timeout(left, self.try_servers(lost)).await.unwrap_or_else(|_| Err(lost.clone()))
    }

    async fn try_servers(&mut self, lost: &Error) -> Result<Link, Error> {
        let (mut pause, longest) = self.settings.backoff;
        for failures in 0_u32.. {
            self.shared.set_status(Status::Reconnecting { failures });
            if self.shared.is_closing() || self.shared.is_draining() || self.channels.commands.is_closed() {
                return Err(lost.clone());
            }
            // The first round starts at the next server, without a pause where there is one.
            if failures > 0 || self.servers.len() == 1 {
                self.offline(async |_| tokio::time::sleep(jitter(pause)).await).await;
                pause = (pause * 2).min(longest);
            }
            self.learn_servers();
            for _ in 0..self.servers.len() {
                self.at = (self.at + 1) % self.servers.len();
                let server = self.servers[self.at].clone();
                let Some(opened) = self.offline(async |settings| Link::open(&server, settings).await).await
                else {
                    break;
                };
                match opened {
                    Ok((_, welcome)) if welcome.draining => {}
                    Ok((link, welcome)) => {
                        self.state.connected(welcome, &server);
                        return Ok(link);
                    }
                    Err(e @ Error::Refused(_)) if !e.retryable() => return Err(e),
                    Err(e) => tracing::debug!(%server, error = %e, "cannot connect"),
                }
            }
        }
        unreachable!("the loop above has no end")
    }

    /// Does something while there is no connection; `None` if the client is closed meanwhile. What ends is ended, what is
    /// to be sent waits.
    async fn offline<T>(&mut self, work: impl AsyncFnOnce(&ClientBuilder) -> T) -> Option<T> {
        let mut work = std::pin::pin!(work(&self.settings));
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                note = self.channels.notes.recv() => self.state.on_note(note?),
                () = self.shared.closing.notified() => return None,
            }
        }
    }

    /// Takes up the servers that a draining one has named; they come next.
    fn learn_servers(&mut self) {
        for server in std::mem::take(&mut self.state.other_servers) {
            if !self.servers.contains(&server) && self.servers.len() < SERVERS_MAX {
                self.servers.insert((self.at + 1).min(self.servers.len()), server);
            }
        }
    }

    /// Fails everything that is left. The senders' side sees closed channels from here on.
    fn finish(mut self, reason: Error) {
        self.shared.fail(reason.clone());
        self.channels.submits.close();
        self.channels.commands.close();
        self.channels.notes.close();
        self.state.disconnected(&reason);
        self.state.abandon(&reason);
        self.shared.set_status(Status::Closed(reason));
    }
}

/// Hides the link from the rest of the crate while it travels from `connect` to `run`.
pub(crate) struct LinkHandle(Link);

fn lost(e: &std::io::Error) -> Error {
    Error::Disconnected { reason: e.to_string(), sent: true }
}

/// The refused items of a `Settled` frame, by index.
pub(crate) fn refused(frame: &Frame) -> Result<HashMap<u16, Error>, Error> {
    Ok(parts::refusals(&frame.view())?.iter().map(|(i, r)| (*i, parts::refusal(r))).collect())
}

/// Half of `pause`, and a random part of the other half: clients that lost one server do not come back in step.
fn jitter(pause: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    pause / 2 + (pause / 2).mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_random_within_their_upper_half() {
        let pause = Duration::from_millis(100);
        let drawn: Vec<_> = (0..100).map(|_| jitter(pause)).collect();
        assert!(drawn.iter().all(|d| (pause / 2..=pause).contains(d)));
        assert!(drawn.iter().any(|d| *d != drawn[0]));
    }
}
