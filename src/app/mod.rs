//! Wiring only: threads, actors, listeners, order of shutdown.
//!
//! ```text
//!  main thread      signals, HTTP status, shutdown
//!  accept thread    blocking accept, connections to the shards in turn
//!  shard threads    sessions, their owner, a hub shard          (one Arbiter each)
//!  dispatcher       on the only shard's thread; on its own where there are several shards
//!  journaler        blocks while the disk syncs
//!  snapshotter      blocks while snapshots are written
//!  fetcher          blocks while records are read
//!  http threads     actix-web
//! ```

mod control;
mod drain;
mod memory;
mod plan;
mod storage;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use actix_rt::Arbiter;
use tokio::sync::Notify;

use crate::actors::directory::{Counted, Directory};
use crate::actors::fetcher::Fetcher;
use crate::actors::journaler::{Health, Journaler};
use crate::actors::snapshotter::Snapshotter;
use crate::actors::supervise::{Roster, Supervised};
use crate::actors::{dispatcher, hub, sessions};
use crate::config::Config;
use crate::core::time::Tick;
use crate::edge::journal::{LocalReader, LocalSnapshots, LocalWriter};
use crate::edge::tcp::{TokenDigest, listen};
use crate::edge::{clock, host, http, journal};
use plan::Plan;

pub use storage::StorageError;

type LocalJournaler = Journaler<LocalWriter<journal::Directory>>;
type LocalSnapshotter = Snapshotter<LocalSnapshots<journal::Directory>>;
type LocalFetcher = Fetcher<LocalReader<journal::Directory>>;

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
    /// Durability of queues that are not declared.
    pub durability: &'static str,
    /// Where the journal is.
    pub data_dir: Option<PathBuf>,
    /// `data_dir` goes with the server.
    pub temporary: bool,
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
    #[error("data directory {dir} cannot be written: {error}; {}", storage::advice(.error).0)]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
    /// The journal failed while the server ran.
    #[error("the journal failed: {0}")]
    Journal(String),
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
    /// Exit code of the process: 78 where the configuration is to blame, 74 where the disk or what is on it is.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::DataDir { error, .. } if storage::advice(error).1 => 78,
            Self::Storage(e) if e.configured => 78,
            Self::DataDir { .. } | Self::Storage(_) | Self::Journal(_) => 74,
            _ => 1,
        }
    }
}

/// Serves until stopped by a signal or over HTTP. `on_ready` is called once everything serves.
///
/// # Errors
/// The server could not start.
pub fn run(mut config: Config, on_ready: impl FnOnce(&Ready)) -> Result<(), AppError> {
    // A server that is tried out is as durable as any other, as long as it lives.
    let temporary = (config.dev && config.data_dir.is_none())
        .then(|| tempfile::Builder::new().prefix("hive-dev-").tempdir().map_err(system("temporary folder")))
        .transpose()?;
    if let Some(folder) = &temporary {
        config.data_dir = Some(folder.path().to_owned());
    }
    let token = token(&config)?;
    let agents = bind("listen", config.listen)?;
    let web = bind("http", config.http)?;
    let addr = |l: &TcpListener| l.local_addr().map_err(system("local address"));
    let durability = config.default_policy().durability.name();
    let ready = Ready {
        server: addr(&agents)?,
        http: addr(&web)?,
        token,
        durability,
        data_dir: config.data_dir.clone(),
        temporary: temporary.is_some(),
        dev: config.dev,
    };
    if config.data_dir.is_none() {
        tracing::warn!("no --data-dir: all queues are in memory, and their tasks end with the server");
    }
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
    journaler: Option<Arc<Supervised<LocalJournaler>>>,
    /// Supervised as long as this lives.
    _snapshotter: Arc<OnceLock<Supervised<LocalSnapshotter>>>,
    fetcher: Arc<OnceLock<Supervised<LocalFetcher>>>,
    journal: Health,
    started: Tick,
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
    let mut plan = Plan::new(&config, arbiters.len(), &ready)?;
    let setup = plan.dispatcher_setup()?;
    // A disk blocks: who uses it has a thread of its own.
    let on_disk = plan.writer.is_some().then(|| [Arbiter::new(), Arbiter::new(), Arbiter::new()]);
    let mut journaler = None;
    if let Some([appends, snapshots, fetches]) = &on_disk {
        plan.start_fetcher(fetches).await;
        journaler = plan.start_journaler(appends).await.map(Arc::new);
        if let Some(journaler) = &journaler {
            plan.start_snapshotter(snapshots, journaler).await;
        }
    }
    let dispatcher = plan.start_dispatcher(own.as_ref().unwrap_or(&arbiters[0]), setup).await;
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
        journaler,
        _snapshotter: plan.snapshotter.clone(),
        fetcher: plan.fetcher.clone(),
        journal: plan.health.clone(),
        started: clock::now(),
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
    for arbiter in arbiters.iter().chain(&own).chain(on_disk.iter().flatten()) {
        arbiter.stop();
    }
    match server.journal.state().failed {
        Some(why) => Err(AppError::Journal(why)),
        None => Ok(()),
    }
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
