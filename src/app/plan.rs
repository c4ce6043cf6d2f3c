//! What the actors are made from, and how each of them starts.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use actix_rt::{Arbiter, ArbiterHandle};
use bytes::BytesMut;
use tokio::sync::oneshot;

use super::memory::Shares;
use super::{AppError, LocalFetcher, LocalJournaler, LocalSnapshotter, Ready, ShardActors, storage, system};
use crate::actors::directory::Directory;
use crate::actors::journal::Position;
use crate::actors::journaler::{self, Desk, Health};
use crate::actors::mailbox::Inlet;
use crate::actors::outbox::OutboxLimits;
use crate::actors::supervise::{Roster, Supervised};
use crate::actors::{busy, dispatcher, fetcher, hub, sessions, snapshotter};
use crate::config::{self, Config};
use crate::core::hub::HubLimits;
use crate::core::tasks;
use crate::edge::journal::{self, LocalReader, LocalSnapshots, LocalWriter};
use crate::edge::tcp::{Shard, Terms, TokenDigest, session::Spawner};
use crate::edge::{clock, host};
use crate::planted;

/// Files of the journal that are kept to be used again, however short they are.
const SPARES_MAX: u64 = 32;

/// What all shards are made from.
pub(super) struct Plan {
    pub(super) directory: Arc<Directory>,
    pub(super) roster: Roster,
    pub(super) draining: Arc<AtomicBool>,
    dispatcher_inlet: Inlet,
    hub_inlets: Vec<Inlet>,
    pub(super) terms: Terms,
    config: Config,
    hash_seed: u64,
    desk: Desk,
    pub(super) health: Health,
    pub(super) snapshotter: Arc<OnceLock<Supervised<LocalSnapshotter>>>,
    /// Of the journal, until the journaler has it.
    pub(super) writer: Option<LocalWriter<journal::Directory>>,
    /// Of the journal, until the fetcher has it.
    reader: Option<LocalReader<journal::Directory>>,
    pub(super) fetcher: Arc<OnceLock<Supervised<LocalFetcher>>>,
    requests: fetcher::Requests,
    /// The snapshot that the board was made from, and what it needs of the journal.
    first_snapshot: Option<(Position, snapshotter::Needs)>,
}

impl Plan {
    pub(super) fn new(config: &Config, shards: usize, ready: &Ready) -> Result<Self, AppError> {
        let l = &config.limits;
        let shares = Shares::of(config);
        let outboxes = OutboxLimits::new(l.outbox_bytes_max, shares.outboxes, l.message_bytes_max as usize);
        let terms = Terms {
            token: TokenDigest::of(&ready.token),
            epoch: (clock::unix().0 / 1_000_000_000) as u32,
            login_ms: config.session.login_ms,
            heartbeat_ms: config.session.heartbeat_ms,
            dead_ms: config.session.dead_ms,
            frame_bytes_max: l.frame_bytes_max,
            message_bytes_max: l.message_bytes_max,
            credit_tasks: l.producer_credit_tasks,
            credit_bytes: l.producer_credit_bytes,
        };
        Ok(Self {
            directory: Arc::new(Directory::new(l.connections_max, shares.budget, outboxes)),
            roster: Roster::default(),
            draining: Arc::new(AtomicBool::new(false)),
            dispatcher_inlet: Inlet::default(),
            hub_inlets: (0..shards).map(|_| Inlet::default()).collect(),
            terms,
            config: config.clone(),
            hash_seed: u64::from_le_bytes(host::random().map_err(system("randomness"))?),
            desk: Desk::default(),
            health: Health::default(),
            snapshotter: Arc::default(),
            writer: None,
            reader: None,
            fetcher: Arc::default(),
            requests: fetcher::Requests::default(),
            first_snapshot: None,
        })
    }

    /// What the dispatcher begins with: an empty board, or what the journal holds.
    pub(super) fn dispatcher_setup(&mut self) -> Result<dispatcher::Setup, AppError> {
        let (l, shares) = (&self.config.limits, Shares::of(&self.config));
        let mut setup = dispatcher::Setup {
            inlet: self.dispatcher_inlet.clone(),
            directory: self.directory.clone(),
            limits: tasks::Limits {
                memory_bytes_max: shares.tasks,
                results_bytes_max: l.results_bytes_max,
                archive_bytes_max: if self.config.journal.results_bytes > 0 { shares.tasks / 4 } else { 0 },
                result_ms: self.config.result_ms,
                queues_max: l.queues_max,
                queues_auto_create: l.queues_auto_create,
                consumers_max: l.consumers_max,
                credit_tasks_max: l.credit_tasks_max,
                credit_bytes_max: l.credit_bytes_max,
                waits_max: l.waits_max,
                gather_bytes_max: shares.gather,
                spill_bytes: shares.spill,
                lane_tasks_min: (shares.spill / 4096).clamp(16, 4096),
                record_bytes: self.config.journal.record_bytes(),
            },
            default_policy: self.config.default_policy(),
            queues: self.config.queue_policies(),
            clock: clock::now,
            epoch: self.terms.epoch,
            first_seq: match planted::is("seq_again") {
                true => 1_000_000,
                false => clock::sequence_at(clock::unix()),
            },
            hash_seed: self.hash_seed,
            journal: None,
        };
        if let Some(dir) = &self.config.data_dir {
            let salt = u32::from_le_bytes(host::random().map_err(system("randomness"))?);
            let storage =
                storage::open(&dir.join("journal"), &setup, self.journal_options(salt), self.terms.epoch)?;
            (setup.epoch, self.terms.epoch) = (storage.epoch, storage.epoch);
            self.writer = Some(storage.writer);
            self.reader = Some(storage.reader);
            self.first_snapshot = storage.snapshot;
            setup.journal = Some(dispatcher::Journal {
                desk: self.desk.clone(),
                recover: Box::new(storage.recover),
                first: Some(storage.board),
                take_snapshot: self.take_snapshot(),
                snapshot_bytes: self.config.journal.snapshot_bytes,
                bytes_since_snapshot: storage.bytes,
                fetch: self.fetch_records(),
                health: self.health.clone(),
            });
        }
        Ok(setup)
    }

    /// How the dispatcher reaches the snapshotter, which starts later and may be made anew.
    fn take_snapshot(&self) -> dispatcher::TakeSnapshot {
        let snapshotter = self.snapshotter.clone();
        Arc::new(move |take| {
            let addr = snapshotter.get().and_then(Supervised::addr);
            addr.is_some_and(|a| a.try_send(take).is_ok())
        })
    }

    /// How the dispatcher reaches the fetcher, which starts later and may be made anew.
    fn fetch_records(&self) -> dispatcher::FetchRecords {
        let (fetcher, requests) = (self.fetcher.clone(), self.requests.clone());
        Arc::new(move |fetch| {
            requests.put(fetch);
            if let Some(addr) = fetcher.get().and_then(Supervised::addr) {
                let _ = addr.try_send(fetcher::Look); // one that begins looks by itself
            }
        })
    }

    /// Starts the fetcher.
    pub(super) async fn start_fetcher(&mut self, arbiter: &Arbiter) {
        let Some(reader) = self.reader.take() else { return };
        let (inlet, requests) = (self.dispatcher_inlet.clone(), self.requests.clone());
        let (roster, health) = (self.roster.clone(), self.health.clone());
        let factory = fetcher::factory(reader, requests, inlet, health);
        let start = move || Supervised::start("fetcher", &roster, factory);
        let _ = self.fetcher.set(on(&arbiter.handle(), start).await);
    }

    /// Starts the snapshotter, which has the journaler remove what a snapshot covers.
    pub(super) async fn start_snapshotter(
        &self,
        arbiter: &Arbiter,
        journaler: &Arc<Supervised<LocalJournaler>>,
    ) {
        let Some(dir) = self.config.data_dir.as_ref().map(|d| d.join("journal")) else { return };
        let (inlet, roster, journaler) =
            (self.dispatcher_inlet.clone(), self.roster.clone(), journaler.clone());
        let first = self.first_snapshot.clone();
        let start = move || {
            let remove = move |trim| {
                if let Some(addr) = journaler.addr() {
                    let _ = addr.try_send(trim); // the next snapshot does it
                }
            };
            let open = move || {
                let files = journal::Directory::new(&dir).expect("the directory of the journal is there");
                LocalSnapshots::new(files)
            };
            let factory = snapshotter::factory(open, first, inlet, Rc::new(remove));
            Supervised::start("snapshotter", &roster, factory)
        };
        let _ = self.snapshotter.set(on(&arbiter.handle(), start).await);
    }

    fn journal_options(&self, salt: u32) -> journal::Options {
        let config::Journal { segment_bytes, snapshot_bytes, direct_io: direct, .. } = self.config.journal;
        // What one snapshot lets go is what is written until the next.
        let spares_max = (snapshot_bytes / segment_bytes + 1).min(SPARES_MAX) as usize;
        // The longest record is as long as it must be: whatever a segment holds is taken.
        let batch_bytes_max = usize::MAX;
        journal::Options { segment_bytes, batch_bytes_max, direct, spares_max, ..journal::Options::new(salt) }
    }

    pub(super) async fn start_journaler(&mut self, arbiter: &Arbiter) -> Option<Supervised<LocalJournaler>> {
        let writer = self.writer.take()?;
        let (desk, inlet, health) = (self.desk.clone(), self.dispatcher_inlet.clone(), self.health.clone());
        let roster = self.roster.clone();
        let results_bytes = self.config.journal.results_bytes;
        let factory = move || journaler::factory(writer, desk, inlet, health, results_bytes);
        let start = move || Supervised::start("journaler", &roster, factory());
        Some(on(&arbiter.handle(), start).await)
    }

    pub(super) async fn start_dispatcher(
        &self,
        arbiter: &Arbiter,
        setup: dispatcher::Setup,
    ) -> Supervised<dispatcher::Dispatcher> {
        let roster = self.roster.clone();
        let poll = self.config.busy_poll();
        on(&arbiter.handle(), move || {
            poll.into_iter().for_each(|window| busy::start(window, clock::now));
            Supervised::start("dispatcher-0", &roster, dispatcher::factory(setup))
        })
        .await
    }

    pub(super) async fn start_shard(&self, number: usize, arbiter: &ArbiterHandle) -> ShardActors {
        let l = &self.config.limits;
        let share = |total: usize| (total / self.hub_inlets.len()).max(1);
        let setup = hub::Setup {
            shard: number as u8,
            shards: self.hub_inlets.len(),
            inlet: self.hub_inlets[number].clone(),
            others: if number == 0 { self.hub_inlets[1..].to_vec() } else { Vec::new() },
            directory: self.directory.clone(),
            limits: HubLimits {
                subscriptions_per_session_max: l.subscriptions_max,
                requests_max: share(l.requests_max),
                request_ms_max: l.request_ms_max,
                subscriptions_max: l.subscriptions_total_max,
            },
            clock: clock::now,
            hash_seed: self.hash_seed,
        };
        let (directory, dispatcher, hubs) =
            (self.directory.clone(), self.dispatcher_inlet.clone(), self.hub_inlets.clone());
        let (terms, draining, roster) = (self.terms.clone(), self.draining.clone(), self.roster.clone());
        let (journal, poll) = (self.health.clone(), self.config.busy_poll());
        on(arbiter, move || {
            poll.into_iter().for_each(|window| busy::start(window, clock::now));
            let (heartbeat_ms, dead_ms) = (terms.heartbeat_ms, terms.dead_ms);
            let shard = Rc::new(Shard {
                number: number as u16,
                directory: directory.clone(),
                dispatcher,
                hubs,
                clock: clock::now,
                terms,
                draining,
                journal,
                buffer: RefCell::new(BytesMut::new()),
            });
            let owner = sessions::Setup {
                shard: number as u16,
                directory,
                spawn: Rc::new(Spawner(shard)),
                clock: clock::now,
                heartbeat_ms,
                dead_ms,
            };
            let hub = Supervised::start(&format!("hub-{number}"), &roster, hub::factory(setup));
            let sessions =
                Supervised::start(&format!("sessions-{number}"), &roster, sessions::factory(owner));
            ShardActors { hub, sessions }
        })
        .await
    }
}

/// Runs `make` on the thread of an arbiter.
async fn on<T: Send + 'static>(arbiter: &ArbiterHandle, make: impl FnOnce() -> T + Send + 'static) -> T {
    let (give, get) = oneshot::channel();
    arbiter.spawn_fn(move || {
        let _ = give.send(make());
    });
    get.await.expect("the thread has just been started")
}
