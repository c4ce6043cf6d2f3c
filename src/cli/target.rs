//! Which server a command talks to: by option, environment, or the `--dev` server of this machine.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use hive::edge::discovery::{self, DevServer};
use hive_client::{Client, ClientBuilder};

use super::failure::Failure;

const DEFAULT_SERVER: &str = "127.0.0.1:7878";
const DEFAULT_HTTP: &str = "127.0.0.1:7879";
/// What the environment may say.
pub(crate) const VARIABLES: [&str; 3] = ["HIVE_SERVER", "HIVE_HTTP", "HIVE_TOKEN"];
/// A one-shot command tries another connection when its server is silent for this long, and gives up after that: it has
/// promised to be done with a server that is gone within 5 s.
const SILENCE_MAX: Duration = Duration::from_millis(2500);
const OUTAGE_MAX: Duration = Duration::from_secs(4);

/// Options that every command has which talks to a server.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Reach {
    /// The server's address for agents.
    #[arg(long, env = "HIVE_SERVER", value_name = "HOST:PORT", hide_env_values = true)]
    server: Option<String>,
    /// The server's address for HTTP.
    #[arg(long, env = "HIVE_HTTP", value_name = "HOST:PORT", hide_env_values = true)]
    http: Option<String>,
    /// The server's secret; that of a `--dev` server on this machine is found.
    #[arg(long, env = "HIVE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print one JSON object per line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where to go and with which token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) server: String,
    pub(crate) http: String,
    pub(crate) token: String,
    /// Named by the user, not found.
    pub(crate) named: bool,
}

impl Reach {
    /// Decides where to go.
    pub(crate) fn target(&self) -> Target {
        self.among(&discovery::find())
    }

    fn among(&self, running: &[DevServer]) -> Target {
        let set = |o: &Option<String>| o.clone().filter(|s| !s.is_empty());
        let (server, http, token) = (set(&self.server), set(&self.http), set(&self.token));
        let named = server.is_some() || http.is_some();
        let found = running.iter().find(|dev| match (&server, &http) {
            (Some(s), _) => same(s, &dev.server),
            (None, Some(h)) => same(h, &dev.http),
            (None, None) => true,
        });
        let pick = |given: Option<String>, dev: Option<&String>, beside: Option<&String>, default: &str| {
            given.or_else(|| dev.cloned()).unwrap_or_else(|| match beside.and_then(|b| b.rsplit_once(':')) {
                Some((host, _)) => format!("{host}:{}", default.rsplit(':').next().unwrap_or_default()),
                None => default.into(),
            })
        };
        Target {
            server: pick(server.clone(), found.map(|d| &d.server), http.as_ref(), DEFAULT_SERVER),
            http: pick(http, found.map(|d| &d.http), server.as_ref(), DEFAULT_HTTP),
            token: token.or_else(|| found.map(|d| d.token.clone())).unwrap_or_default(),
            named,
        }
    }
}

impl Target {
    /// A client for a command that does one thing: it gives up when its server is gone.
    pub(crate) async fn one_shot(&self) -> Result<Client, Failure> {
        let builder = self.builder().silence_max(SILENCE_MAX).outage_max(OUTAGE_MAX);
        self.connect(builder).await
    }

    /// A client for a command that stays: it connects again.
    pub(crate) async fn lasting(&self, labels: Vec<String>) -> Result<Client, Failure> {
        self.connect(self.builder().labels(labels)).await
    }

    fn builder(&self) -> ClientBuilder {
        let name = concat!("hive-cli/", env!("CARGO_PKG_VERSION"));
        Client::builder().servers([&self.server]).token(&self.token).name(name)
    }

    async fn connect(&self, builder: ClientBuilder) -> Result<Client, Failure> {
        builder.connect().await.map_err(|e| Failure::client("log in", &self.server, &e))
    }
}

/// Whether both addresses name one port of this machine.
fn same(given: &str, dev: &str) -> bool {
    let resolve = |a: &str| a.to_socket_addrs().into_iter().flatten().collect::<Vec<SocketAddr>>();
    let dev = resolve(dev);
    resolve(given).iter().any(|g| dev.iter().any(|d| g == d || g.port() == d.port() && g.ip().is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(port: u16) -> DevServer {
        let (server, http) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", port + 1));
        DevServer { server, http, token: format!("token-{port}"), pid: 1, version: "0".into() }
    }

    fn target(reach: &Reach, running: &[DevServer]) -> (String, String, String) {
        let t = reach.among(running);
        (t.server, t.http, t.token)
    }

    fn three(server: &str, http: &str, token: &str) -> (String, String, String) {
        (server.into(), http.into(), token.into())
    }

    #[test]
    fn a_dev_server_is_found_and_its_token_in_either_case() {
        let running = [dev(5000), dev(6000)];
        let none = Reach::default();
        assert_eq!(target(&none, &running), three("127.0.0.1:5000", "127.0.0.1:5001", "token-5000"));
        assert_eq!(target(&none, &[]), three(DEFAULT_SERVER, DEFAULT_HTTP, ""));
        let by_server = Reach { server: Some("127.0.0.1:6000".into()), ..Reach::default() };
        assert_eq!(target(&by_server, &running), three("127.0.0.1:6000", "127.0.0.1:6001", "token-6000"));
        let by_http = Reach { http: Some("127.0.0.1:6001".into()), ..Reach::default() };
        assert_eq!(target(&by_http, &running), three("127.0.0.1:6000", "127.0.0.1:6001", "token-6000"));
    }

    #[test]
    fn what_is_given_goes_first_and_empty_is_unset() {
        let running = [dev(5000)];
        let empty = Reach { server: Some(String::new()), token: Some(String::new()), ..Reach::default() };
        assert_eq!(target(&empty, &running).2, "token-5000");
        let elsewhere =
            Reach { server: Some("10.0.0.1:5000".into()), token: Some("t".into()), ..Reach::default() };
        assert_eq!(target(&elsewhere, &running), three("10.0.0.1:5000", "10.0.0.1:7879", "t"));
        let unknown = Reach { http: Some("127.0.0.1:99".into()), ..Reach::default() };
        assert_eq!(target(&unknown, &running), three("127.0.0.1:7878", "127.0.0.1:99", ""));
    }
}
