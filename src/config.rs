//! One tree with every limit in it, parsed once into valid types. Order of sources: defaults, file, command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::tasks::Policy;

/// The whole configuration. Sizes in bytes, times in milliseconds: keys end in their unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address for agents.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Address for HTTP.
    #[schemars(with = "String")]
    pub http: SocketAddr,
    /// Where the server keeps what outlives it: the journal, and the token. Without it all queues are in memory.
    pub data_dir: Option<PathBuf>,
    /// Secret that agents must show; made up at start where it is empty.
    pub token: String,
    /// Allows addresses other than loopback although there is neither TLS nor access control yet.
    pub allow_plaintext_network: bool,
    /// Threads that serve connections; 0 stands for half of the cores, at least one.
    pub shards: usize,
    /// How long a thread that was given one thing alone looks for the next before it sleeps, microseconds; 0 stands for not at
    /// all. It saves waking a core, where that turns out to happen, and is not done where threads outnumber cores.
    pub busy_poll_us: u32,
    /// Fault injection over HTTP, for tests.
    pub faults: bool,
    /// Started with `--dev`.
    #[serde(skip)]
    pub dev: bool,
    /// What bounds memory and counts.
    pub limits: Limits,
    /// Heartbeats and login.
    pub session: Session,
    /// Where tasks that survive are kept.
    pub journal: Journal,
    /// How queues treat tasks unless declared otherwise.
    pub queue_defaults: QueuePolicy,
    /// Queues that exist from the start.
    pub queues: Vec<QueueConfig>,
    /// How long results are kept, milliseconds.
    pub result_ms: u64,
    /// How long a stop waits for running and waiting tasks, milliseconds.
    pub drain_ms: u64,
}

/// Bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory of the whole server, bytes: 24 MiB for the program, of the rest 86 % for tasks, workers and subscriptions,
    /// 7 % for what waits to be written, 4 % for frames and messages that have not arrived whole, 3 % for what is being
    /// handled.
    pub memory_bytes_max: usize,
    /// Results kept in memory, bytes; those of journaled queues stay on disk beyond this. They count as tasks; what exceeds 8 % of the memory is kept free for them.
    pub results_bytes_max: usize,
    /// One connection's unread output, bytes.
    pub outbox_bytes_max: usize,
    /// Longest frame, bytes.
    pub frame_bytes_max: u32,
    /// Longest message in fragments, bytes.
    pub message_bytes_max: u32,
    /// Agents logged in.
    pub connections_max: usize,
    /// Connections that have not logged in, in addition.
    pub half_open_max: usize,
    /// Queues.
    pub queues_max: usize,
    /// Whether a queue comes into being with its first task or worker.
    pub queues_auto_create: bool,
    /// Consumers of a connection.
    pub consumers_max: usize,
    /// Credit of a consumer, tasks.
    pub credit_tasks_max: u32,
    /// Credit of a consumer, bytes.
    pub credit_bytes_max: u64,
    /// Unacknowledged tasks of a connection.
    pub producer_credit_tasks: u32,
    /// Unacknowledged bytes of a connection.
    pub producer_credit_bytes: u64,
    /// Subscriptions of a connection.
    pub subscriptions_max: usize,
    /// Subscriptions of the server.
    pub subscriptions_total_max: usize,
    /// Requests (request/reply) under way.
    pub requests_max: usize,
    /// Longest time for a reply, milliseconds.
    pub request_ms_max: u32,
    /// Task ids that are waited for.
    pub waits_max: usize,
}

/// Where tasks that survive are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// Length of a file of the journal, bytes: twice `limits.message_bytes_max` to 1 GiB. Files are removed as a whole; as many as
    /// `snapshot_bytes` fill are kept to be used again.
    pub segment_bytes: u64,
    /// Records of so many bytes bring about a snapshot, after which older ones can go; at least twice the last snapshot.
    pub snapshot_bytes: u64,
    /// Memory that tasks hold, from which on further tasks wait in the journal alone, bytes; 0 for half of what tasks may hold.
    pub spill_bytes: u64,
    /// Journal that is kept for results alone, beyond those in memory, bytes; 0 for none. It goes after `result_ms`, or when the disk is
    /// full.
    pub results_bytes: u64,
    /// Writes go to the disk past the system's page cache, where the file system lets them: half the CPU of an append.
    pub direct_io: bool,
}

/// Heartbeats and login.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// Time to log in, milliseconds.
    pub login_ms: u32,
    /// How often each side says something, milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the other side is dead, milliseconds.
    pub dead_ms: u32,
}

/// How a queue treats its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueuePolicy {
    /// How long a worker may hold a task without renewing it, milliseconds.
    pub lease_ms: u32,
    /// Attempts before a task is a dead letter, 1 to 1,000.
    pub attempts_max: u16,
    /// Wait before the next attempt of a failed task, milliseconds.
    pub retry_delay_ms: u32,
    /// What acknowledgements of its tasks promise. Without a `data_dir` all queues are in memory.
    pub durability: Durability,
}

/// What survives, and what an acknowledgement therefore promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing beyond the process.
    Memory,
    /// The process and the machine's power: synced to disk before the acknowledgement.
    Journal,
}

impl From<Durability> for hive_proto::ids::Durability {
    fn from(d: Durability) -> Self {
        match d {
            Durability::Memory => Self::Memory,
            Durability::Journal => Self::Journal,
        }
    }
}

/// A declared queue. What is left out is as in `queue_defaults`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// Its name.
    pub name: String,
    /// See [`QueuePolicy::lease_ms`].
    pub lease_ms: Option<u32>,
    /// See [`QueuePolicy::attempts_max`].
    pub attempts_max: Option<u16>,
    /// See [`QueuePolicy::retry_delay_ms`].
    pub retry_delay_ms: Option<u32>,
    /// See [`QueuePolicy::durability`].
    pub durability: Option<Durability>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7878)),
            http: SocketAddr::from(([127, 0, 0, 1], 7879)),
            data_dir: None,
            token: String::new(),
            allow_plaintext_network: false,
            shards: 0,
            busy_poll_us: 150,
            faults: false,
            dev: false,
            limits: Limits::default(),
            session: Session::default(),
            journal: Journal::default(),
            queue_defaults: QueuePolicy::default(),
            queues: Vec::new(),
            result_ms: 3_600_000,
            drain_ms: 30_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 400_000_000,
            results_bytes_max: 32 * 1024 * 1024,
            outbox_bytes_max: 8 * 1024 * 1024,
            frame_bytes_max: 1024 * 1024,
            message_bytes_max: 16 * 1024 * 1024,
            connections_max: 16_000,
            half_open_max: 12_000,
            queues_max: 10_000,
            queues_auto_create: true,
            consumers_max: 256,
            credit_tasks_max: 100_000,
            credit_bytes_max: 64 * 1024 * 1024,
            producer_credit_tasks: 65_536,
            producer_credit_bytes: 16 * 1024 * 1024,
            subscriptions_max: 10_000,
            subscriptions_total_max: 100_000,
            requests_max: 100_000,
            request_ms_max: 600_000,
            waits_max: 200_000,
        }
    }
}

impl Journal {
    /// Length at which a record gets no more decisions, bytes: with a message behind it, it fits into a segment.
    pub fn record_bytes(&self) -> usize {
        (self.segment_bytes as usize / 4).min(8 * 1024 * 1024)
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            snapshot_bytes: 512 * 1024 * 1024,
            spill_bytes: 0,
            results_bytes: 4 * 1024 * 1024 * 1024,
            direct_io: true,
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self { login_ms: 2_000, heartbeat_ms: 3_000, dead_ms: 12_000 }
    }
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self { lease_ms: 30_000, attempts_max: 5, retry_delay_ms: 1_000, durability: Durability::Journal }
    }
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// File to read.
    pub config: Option<PathBuf>,
    /// For trying it: a random token, found by other commands on this machine.
    pub dev: bool,
    /// Address for agents.
    pub listen: Option<String>,
    /// Address for HTTP.
    pub http: Option<String>,
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// Token from the environment.
    pub token: Option<String>,
    /// See [`QueuePolicy::durability`], of queues that are not declared otherwise.
    pub durability: Option<Durability>,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {text}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what is meant perhaps.
        text: String,
    },
    /// A value that may not be.
    #[error("{key}: {text}")]
    Value {
        /// Its key.
        key: &'static str,
        /// What is wrong and what to do.
        text: String,
    },
}

impl Config {
    /// Defaults, then the file, then the command line; judged as a whole.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(o: Overrides) -> Result<Self, ConfigError> {
        let mut c = match &o.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        if let Some(a) = &o.listen {
            c.listen = address("listen", a)?;
        }
        if let Some(a) = &o.http {
            c.http = address("http", a)?;
        }
        if o.data_dir.is_some() {
            c.data_dir = o.data_dir;
        }
        if let Some(t) = o.token {
            c.token = t;
        }
        c.dev = o.dev;
        if let Some(d) = o.durability {
            c.queue_defaults.durability = d;
            if d == Durability::Journal && c.data_dir.is_none() && !c.dev {
                let text = "a journal needs a place: give --data-dir DIR".into();
                return Err(ConfigError::Value { key: "durability", text });
            }
        }
        c.check()?;
        Ok(c)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.into(), error })?;
        Self::parse(&text).map_err(|text| ConfigError::Parse { path: path.into(), text })
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// What is wrong, with a suggestion where a key is unknown.
    pub fn parse(text: &str) -> Result<Self, String> {
        let source = config::File::from_str(text, config::FileFormat::Toml);
        let tree = config::Config::builder().add_source(source).build().map_err(|e| e.to_string())?;
        tree.try_deserialize().map_err(|e| suggest(&e.to_string()))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, text: &str| Err(ConfigError::Value { key, text: text.into() });
        for (key, addr) in [("listen", self.listen), ("http", self.http)] {
            if !addr.ip().is_loopback() && !self.allow_plaintext_network {
                let text = "there is no TLS yet, so only loopback addresses are served; on a network you trust, set \
                            allow_plaintext_network = true";
                return value(key, text);
            }
        }
        let l = &self.limits;
        if l.memory_bytes_max < 32 * 1024 * 1024 {
            return value("limits.memory_bytes_max", "at least 33554432 (32 MiB) are needed");
        }
        if l.results_bytes_max > l.memory_bytes_max / 2 {
            return value("limits.results_bytes_max", "may be at most half of memory_bytes_max");
        }
        if l.frame_bytes_max < 64 * 1024 {
            return value("limits.frame_bytes_max", "at least 65536 are needed");
        }
        if l.message_bytes_max < l.frame_bytes_max {
            return value("limits.message_bytes_max", "may not be less than frame_bytes_max");
        }
        let s = &self.session;
        if s.login_ms == 0 || s.heartbeat_ms == 0 || s.dead_ms < s.heartbeat_ms.saturating_mul(2) {
            return value("session.dead_ms", "must be at least twice heartbeat_ms, and all times above 0");
        }
        // A record gets no more tasks at a quarter of this, and one of them may be as long as a message.
        let least = 2 * u64::from(l.message_bytes_max);
        if !(least..=1024 * 1024 * 1024).contains(&self.journal.segment_bytes) {
            let text = format!("from twice limits.message_bytes_max, {least}, to 1073741824");
            return value("journal.segment_bytes", &text);
        }
        if self.shards > 64 {
            return value("shards", "at most 64");
        }
        if self.busy_poll_us > 1000 {
            return value("busy_poll_us", "at most 1000: it is for what comes at once");
        }
        for p in self.queue_policies().iter().map(|(_, p)| p).chain([&self.default_policy()]) {
            if p.lease_ms < 10 || p.attempts_max == 0 || p.attempts_max > 1000 {
                return value("queues", "lease_ms must be at least 10, attempts_max 1 to 1000");
            }
        }
        for q in &self.queues {
            if let Err(e) = hive_proto::names::queue(q.name.as_bytes()) {
                return value("queues.name", &e.text);
            }
            if q.durability == Some(Durability::Journal) && self.data_dir.is_none() && !self.dev {
                return value(
                    "queues.durability",
                    "a journal needs a place: give --data-dir DIR, or set data_dir",
                );
            }
        }
        Ok(())
    }

    /// Declared queues with their whole policies.
    pub fn queue_policies(&self) -> Vec<(String, Policy)> {
        let d = self.queue_defaults;
        let whole = |q: &QueueConfig| QueuePolicy {
            lease_ms: q.lease_ms.unwrap_or(d.lease_ms),
            attempts_max: q.attempts_max.unwrap_or(d.attempts_max),
            retry_delay_ms: q.retry_delay_ms.unwrap_or(d.retry_delay_ms),
            durability: q.durability.unwrap_or(d.durability),
        };
        self.queues.iter().map(|q| (q.name.clone(), self.in_force(whole(q)))).collect()
    }

    /// Policy of queues that are not declared.
    pub fn default_policy(&self) -> Policy {
        self.in_force(self.queue_defaults)
    }

    /// Without a place for a journal everything is in memory.
    fn in_force(&self, p: QueuePolicy) -> Policy {
        let durability = if self.data_dir.is_some() { p.durability } else { Durability::Memory };
        Policy {
            lease_ms: p.lease_ms,
            attempts_max: p.attempts_max,
            retry_delay_ms: p.retry_delay_ms,
            durability: durability.into(),
        }
    }

    /// Threads that serve connections.
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => (cores() / 2).clamp(1, 64),
            n => n,
        }
    }

    /// How long threads poll; `None` where they do not.
    pub fn busy_poll(&self) -> Option<Duration> {
        let threads = match self.shard_count() {
            1 => 1,
            shards => shards + 1, // the dispatcher's
        };
        (self.busy_poll_us > 0 && threads <= cores()).then(|| Duration::from_micros(self.busy_poll_us.into()))
    }
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Value {
        key,
        text: format!("{text:?} is not an address; it is written as 127.0.0.1:7878 or [::1]:7878"),
    })
}

/// Turns the parser's list of what it knows into the one key that is meant perhaps.
fn suggest(error: &str) -> String {
    let quoted = |s: &str| s.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let Some((before, after)) = error.split_once(", expected") else { return error.into() };
    let unknown = quoted(before);
    let (Some(unknown), true) = (unknown.first(), before.contains("unknown field")) else {
        return error.into();
    };
    let known = quoted(after);
    let near = known.iter().map(|k| (strsim::jaro_winkler(k, unknown), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    let origin = after.rsplit_once(" for key").map_or("", |(_, o)| o);
    match near {
        Some((likeness, key)) if likeness > 0.7 => {
            format!("unknown key `{unknown}`{origin}; did you mean `{key}`?")
        }
        _ => format!("unknown key `{unknown}`{origin}; known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/configuration.md is made from the types above: `HIVE_GENERATE=1 cargo test -p hive-bus config` writes it.
    #[test]
    fn the_reference_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let text = reference();
        if std::env::var_os("HIVE_GENERATE").is_some() {
            std::fs::write(path, &text).expect("writable");
        }
        assert_eq!(std::fs::read_to_string(path).expect("there"), text, "docs/configuration.md is stale");
    }

    fn reference() -> String {
        let schema = serde_json::to_value(schemars::schema_for!(Config)).expect("plain");
        let defaults = serde_json::to_value(Config::default()).expect("plain");
        let mut out = String::from(
            "# Configuration reference\n\nGenerated from `src/config.rs`. A file in TOML, given by `hive start --config FILE`; \
             the command line wins over the file. Unknown keys are errors. Sizes are in bytes, times in milliseconds.\n",
        );
        let section =
            |out: &mut String, title: &str, schema: &serde_json::Value, defaults: &serde_json::Value| {
                out.push_str(&format!("\n## {title}\n\n| key | default | meaning |\n|---|---|---|\n"));
                for (key, field) in schema["properties"].as_object().expect("fields") {
                    if field.get("$ref").is_some() || field["items"].get("$ref").is_some() {
                        continue;
                    }
                    let meaning = field["description"].as_str().unwrap_or_default().replace('\n', " ");
                    let default = match &defaults[key] {
                        serde_json::Value::Null => "-".to_owned(),
                        v => format!("`{v}`"),
                    };
                    out.push_str(&format!("| `{key}` | {default} | {meaning} |\n"));
                }
            };
        section(&mut out, "Top level", &schema, &defaults);
        for (table, name) in [
            ("limits", "Limits"),
            ("journal", "Journal"),
            ("session", "Session"),
            ("queue_defaults", "QueuePolicy"),
        ] {
            section(&mut out, &format!("`[{table}]`"), &schema["$defs"][name], &defaults[table]);
        }
        section(
            &mut out,
            "`[[queues]]`, one for each declared queue",
            &schema["$defs"]["QueueConfig"],
            &serde_json::Value::Null,
        );
        out
    }

    #[test]
    fn an_empty_file_is_the_default_and_the_default_is_valid() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
        Config::default().check().expect("valid");
    }

    #[test]
    fn the_example_file_lists_the_defaults() {
        assert_eq!(Config::parse(include_str!("../deploy/hive.toml")), Ok(Config::default()));
    }

    #[test]
    fn unknown_keys_get_a_suggestion() {
        let e = Config::parse("[limits]\nmemory_byte_max = 5\n").expect_err("unknown");
        assert!(e.contains("memory_byte_max") && e.contains("did you mean `memory_bytes_max`?"), "{e}");
        let e = Config::parse("xyzzy = 5\n").expect_err("unknown");
        assert!(e.contains("xyzzy") && e.contains("listen"), "{e}");
    }

    #[test]
    fn wrong_units_and_types_are_named() {
        let e = Config::parse("[session]\nheartbeat_ms = \"3s\"\n").expect_err("text");
        assert!(e.contains("heartbeat_ms"), "{e}");
        let e = Config::parse("[session]\nheartbeat_s = 3\n").expect_err("unit");
        assert!(e.contains("did you mean `heartbeat_ms`?"), "{e}");
    }

    #[test]
    fn values_are_judged_as_a_whole() {
        let bad = |t: &str| Config::parse(t).expect("parses").check().expect_err("bad").to_string();
        assert!(bad("listen = \"0.0.0.0:7878\"").contains("allow_plaintext_network"));
        assert!(bad("[limits]\nmemory_bytes_max = 1000").contains("memory_bytes_max"));
        assert!(bad("[session]\ndead_ms = 3000").contains("dead_ms"));
        assert!(bad("[journal]\nsegment_bytes = 1000").contains("33554432"));
        assert!(bad("[limits]\nmessage_bytes_max = 60000000").contains("segment_bytes"));
        assert!(bad("[[queues]]\nname = \"a b\"").contains("queues.name"));
        assert!(bad("[[queues]]\nname = \"a\"\nattempts_max = 0").contains("attempts_max"));
        let o = Overrides { listen: Some("nowhere".into()), ..Overrides::default() };
        assert!(Config::load(o).expect_err("address").to_string().contains("nowhere"));
    }

    #[test]
    fn declared_queues_inherit() {
        let c =
            Config::parse("[queue_defaults]\nlease_ms = 5000\n[[queues]]\nname = \"a\"\nattempts_max = 2\n")
                .expect("ok");
        let durability = hive_proto::ids::Durability::Memory; // no data_dir
        let p = Policy { lease_ms: 5000, attempts_max: 2, retry_delay_ms: 1000, durability };
        assert_eq!(c.queue_policies(), [("a".to_owned(), p)]);
    }
}
