//! How a client is configured.

use std::time::Duration;

use hive_proto::names;

use crate::{Client, Error};

/// Settings of a [`Client`]; see [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    pub(crate) servers: Vec<String>,
    pub(crate) token: String,
    pub(crate) agent: String,
    pub(crate) labels: Vec<String>,
    pub(crate) name: String,
    pub(crate) reconnect: bool,
    pub(crate) outage_max: Option<Duration>,
    pub(crate) silence_max: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) timeout: Duration,
    pub(crate) buffer_bytes: u32,
    pub(crate) inbox_bytes: usize,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            token: String::new(),
            agent: String::new(),
            labels: Vec::new(),
            name: concat!("hive-client/", env!("CARGO_PKG_VERSION")).into(),
            reconnect: true,
            outage_max: None,
            silence_max: None,
            connect_timeout: Duration::from_secs(3),
            backoff: (Duration::from_millis(50), Duration::from_secs(5)),
            timeout: Duration::from_secs(30),
            buffer_bytes: 16 << 20,
            inbox_bytes: 8 << 20,
        }
    }
}

impl ClientBuilder {
    /// Servers to try, `host:port`, in this order; `127.0.0.1:7878` where none is given.
    pub fn servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers = servers.into_iter().map(Into::into).collect();
        self
    }

    /// The secret that the server asks for.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// The name others address this agent by; the server makes one up where none is given.
    pub fn agent_id(mut self, agent: impl Into<String>) -> Self {
        self.agent = agent.into();
        self
    }

    /// What this agent is able to do; tasks that ask for these labels may come to its consumers.
    pub fn labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Name and version of the program, for the server's list of agents.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Whether a broken connection is made again (the default) or ends the client.
    pub fn reconnect(mut self, on: bool) -> Self {
        self.reconnect = on;
        self
    }

    /// Ends the client when no server has been heard for this long; by default it tries for ever.
    pub fn outage_max(mut self, outage: Duration) -> Self {
        self.outage_max = Some(outage);
        self
    }

    /// Longest silence of a server before it is held for dead, where that is shorter than the server's own `dead_ms`.
    pub fn silence_max(mut self, silence: Duration) -> Self {
        self.silence_max = Some(silence);
        self
    }

    /// Time for one attempt to connect and log in; 3 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Shortest and longest pause between attempts to connect again; 50 ms and 5 s by default. Half of each pause is random.
    pub fn backoff(mut self, shortest: Duration, longest: Duration) -> Self {
        self.backoff = (shortest, longest.max(shortest));
        self
    }

    /// Time for calls that name no time of their own (query, cancel, opening of consumers and subscriptions,
    /// acknowledged publishing); 30 s by default. Submissions wait as long as the server has no room for them.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bytes that may wait to be sent, also while there is no connection; callers wait beyond it. 16 MiB by default.
    pub fn buffer_bytes(mut self, bytes: u32) -> Self {
        self.buffer_bytes = bytes.max(1);
        self
    }

    /// Bytes that may wait to be read in each subscription; messages beyond it are dropped and counted. 8 MiB by default.
    pub fn inbox_bytes(mut self, bytes: usize) -> Self {
        self.inbox_bytes = bytes;
        self
    }

    /// Connects and logs in; tries each server once.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no server answers, the server's refusal if it sent one (`unauthorized`,
    /// `agent_id_in_use`, ...), `invalid_agent_id` and `invalid_label` before anything is sent.
    pub async fn connect(mut self) -> Result<Client, Error> {
        if !self.agent.is_empty() {
            names::agent(self.agent.as_bytes())?;
        }
        names::labels(&self.labels)?;
        if self.servers.is_empty() {
            self.servers.push("127.0.0.1:7878".into());
        }
        Client::connect(self).await
    }
}
