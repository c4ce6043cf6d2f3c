//! Wiring only: threads, actors, listeners, order of shutdown.
//!
//! ```text
//!  main thread      signals, HTTP status, shutdown
//!  accept thread    blocking accept, connections to the shards in turn
//!  shard threads    sessions, their owner, a hub shard          (one Arbiter each)
//!  dispatcher       on the only shard's thread; on its own where there are several shards
//!  http threads     actix-web
//! ```

mod control;
mod drain;
mod memory;

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use actix_rt::{Arbiter, ArbiterHandle};
use bytes::BytesMut;
use tokio::sync::{Notify, oneshot};

use crate::actors::directory::{Counted, Directory};
use crate::actors::mailbox::Inlet;
use crate::actors::outbox::OutboxLimits;
use crate::actors::supervise::{Roster, Supervised};
use crate::actors::{dispatcher, hub, sessions};
use crate::config::Config;
use crate::core::hub::HubLimits;
use crate::core::tasks;
use crate::edge::tcp::{Shard, Terms, TokenDigest, listen, session::Spawner};
use crate::edge::{clock, host, http};

/// File descriptors that are not for agents: HTTP, files, event loops.
const OWN_DESCRIPTORS: usize = 128;

/// What a server that serves tells of itself.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Agents' address.
    pub server: SocketAddr,
    /// HTTP address.
    pub http: SocketAddr,
    /// The token in force.
    pub token: String,
    /// Durability of queues.
    pub durability: &'static str,
    /// Started with `--dev`.
    pub dev: bool,
}

/// The server could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {addr} ({key}): {error}{hint}")]
    Listen {
        /// Key of the address in the configuration.
        key: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The data directory cannot be used.
    #[error("data directory {dir} cannot be written: {error}; choose another with --data-dir")]
    DataDir {
        /// The directory.
        dir: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something that the system should have.
    #[error("{what}: {error}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        error: std::io::Error,
    },
}

impl AppError {
    /// Exit code of the process: 78 where the configuration is to blame.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::DataDir { .. } => 78,
            _ => 1,
        }
    }
}

/// Serves until stopped by a signal or over HTTP. `on_ready` is called once everything serves.
///
/// # Errors
/// The server could not start.
pub fn run(config: Config, on_ready: impl FnOnce(&Ready)) -> Result<(), AppError> {
    let token = token(&config)?;
    let agents = bind("listen", config.listen)?;
    let web = bind("http", config.http)?;
    let addr = |l: &TcpListener| l.local_addr().map_err(system("local address"));
    let ready =
        Ready { server: addr(&agents)?, http: addr(&web)?, token, durability: "memory", dev: config.dev };
    actix_rt::System::new().block_on(serve(config, agents, web, ready, on_ready))
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    move |error| AppError::System { what, error }
}

fn bind(key: &'static str, addr: SocketAddr) -> Result<TcpListener, AppError> {
    listen::bind(addr).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "; another program (another hive?) listens there: stop it, or choose another port (0 for any)"
            }
            _ => "",
        };
        AppError::Listen { key, addr, error, hint }
    })
}

fn token(config: &Config) -> Result<String, AppError> {
    let kept = match &config.data_dir {
        Some(dir) => {
            let bad = |error| AppError::DataDir { dir: dir.clone(), error };
            host::check_writable(dir).map_err(bad)?;
            config.token.is_empty().then(|| host::token_in(dir).map_err(bad)).transpose()?
        }
        None => None,
    };
    match kept {
        Some(token) => Ok(token),
        None if config.token.is_empty() => host::random_token().map_err(system("random token")),
        None => Ok(config.token.clone()),
    }
}

/// All actors and what they share.
struct Server {
    config: Config,
    ready: Ready,
    directory: Arc<Directory>,
    roster: Roster,
    dispatcher: Supervised<dispatcher::Dispatcher>,
    shards: Vec<ShardActors>,
    draining: Arc<AtomicBool>,
    stop: Notify,
    token: TokenDigest,
    epoch: u32,
}

struct ShardActors {
    hub: Supervised<hub::HubShard>,
    sessions: Supervised<sessions::Sessions>,
}

async fn serve(
    config: Config,
    agents: TcpListener,
    web: TcpListener,
    ready: Ready,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), AppError> {
    let descriptors = host::raise_descriptors();
    let shares = memory::Shares::of(&config);
    tracing::info!(memory_bytes_max = config.limits.memory_bytes_max, ?shares, descriptors, "limits");
    let arbiters: Vec<Arbiter> = (0..config.shard_count()).map(|_| Arbiter::new()).collect();
    let own = (arbiters.len() > 1).then(Arbiter::new);
    let plan = Plan::new(&config, arbiters.len(), &ready)?;
    let dispatcher = plan.start_dispatcher(own.as_ref().unwrap_or(&arbiters[0])).await;
    let mut shards = Vec::new();
    for (number, arbiter) in arbiters.iter().enumerate() {
        shards.push(plan.start_shard(number, &arbiter.handle()).await);
    }
    let server = Arc::new(Server {
        token: plan.terms.token.clone(),
        epoch: plan.terms.epoch,
        config,
        ready,
        directory: plan.directory.clone(),
        roster: plan.roster.clone(),
        dispatcher,
        shards,
        draining: plan.draining.clone(),
        stop: Notify::new(),
    });
    start_accepting(&server, agents, descriptors)?;
    let (http, http_handle) = http::serve(web, Arc::new(server.clone())).map_err(system("http"))?;
    actix_rt::spawn(http);
    let signals = drain::Signals::new();
    on_ready(&server.ready);
    drain::until_stopped(&server, signals).await;
    http_handle.stop(false).await;
    for arbiter in arbiters.iter().chain(&own) {
        arbiter.stop();
    }
    Ok(())
}

fn start_accepting(server: &Arc<Server>, listener: TcpListener, descriptors: u64) -> Result<(), AppError> {
    let limits = &server.config.limits;
    let give = |at: usize| -> Box<dyn Fn(TcpStream, Counted) + Send> {
        let server = server.clone();
        Box::new(move |stream, counted| {
            // While the owner is made anew a connection is closed, and comes again. What waits is bounded by `sockets_max`.
            if let Some(addr) = server.shards[at].sessions.addr() {
                let _ = addr.try_send(sessions::Accept(stream, counted));
            }
        })
    };
    let room = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OWN_DESCRIPTORS);
    let acceptor = listen::Acceptor {
        listener,
        directory: server.directory.clone(),
        sockets_max: (limits.connections_max + limits.half_open_max).min(room),
        shards: (0..server.shards.len()).map(give).collect(),
        draining: server.draining.clone(),
    };
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(|| acceptor.run())
        .map_err(system("accept thread"))?;
    Ok(())
}

/// What all shards are made from.
struct Plan {
    directory: Arc<Directory>,
    roster: Roster,
    draining: Arc<AtomicBool>,
    dispatcher_inlet: Inlet,
    hub_inlets: Vec<Inlet>,
    terms: Terms,
    config: Config,
    hash_seed: u64,
}

impl Plan {
    fn new(config: &Config, shards: usize, ready: &Ready) -> Result<Self, AppError> {
        let l = &config.limits;
        let shares = memory::Shares::of(config);
        let outboxes = OutboxLimits::new(l.outbox_bytes_max, shares.outboxes, l.message_bytes_max as usize);
        let terms = Terms {
            token: TokenDigest::of(&ready.token),
            epoch: (clock::unix_micros() / 1_000_000) as u32,
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
        })
    }

    async fn start_dispatcher(&self, arbiter: &Arbiter) -> Supervised<dispatcher::Dispatcher> {
        let l = &self.config.limits;
        let setup = dispatcher::Setup {
            inlet: self.dispatcher_inlet.clone(),
            directory: self.directory.clone(),
            limits: tasks::Limits {
                memory_bytes_max: memory::Shares::of(&self.config).tasks,
                results_bytes_max: l.results_bytes_max,
                result_ms: self.config.result_ms,
                queues_max: l.queues_max,
                queues_auto_create: l.queues_auto_create,
                consumers_max: l.consumers_max,
                credit_tasks_max: l.credit_tasks_max,
                credit_bytes_max: l.credit_bytes_max,
                waits_max: l.waits_max,
            },
            default_policy: self.config.queue_defaults.into(),
            queues: self.config.queue_policies(),
            clock: clock::now,
            epoch: self.terms.epoch,
            // Microseconds since 1970: above the sequences of earlier processes below a million tasks a second.
            first_seq: clock::unix_micros(),
            hash_seed: self.hash_seed,
        };
        let roster = self.roster.clone();
        on(&arbiter.handle(), move || Supervised::start("dispatcher-0", &roster, dispatcher::factory(setup)))
            .await
    }

    async fn start_shard(&self, number: usize, arbiter: &ArbiterHandle) -> ShardActors {
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
        on(arbiter, move || {
            let (heartbeat_ms, dead_ms) = (terms.heartbeat_ms, terms.dead_ms);
            let shard = Rc::new(Shard {
                number: number as u16,
                directory: directory.clone(),
                dispatcher,
                hubs,
                clock: clock::now,
                terms,
                draining,
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
