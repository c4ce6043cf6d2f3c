//! `hive start`.

use std::io::Read as _;
use std::path::PathBuf;

use hive::config::{Config, Overrides};

use super::failure::{CONFIG, Failure};

/// Options of `hive start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For trying it out: makes up a token that commands on this machine find by themselves.
    #[arg(long)]
    dev: bool,
    /// Address for agents; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address for HTTP; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Where the server keeps what outlives it.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Secret that agents must show.
    #[arg(long, env = "HIVE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Accepted as everywhere; the ready line is one line either way.
    #[arg(long)]
    json: bool,
    /// Stop in order when standard input ends: for a server that another process has started.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Serves until stopped.
pub(crate) fn run(a: Args) -> Result<(), Failure> {
    let overrides = Overrides {
        config: a.config,
        dev: a.dev,
        listen: a.listen,
        http: a.http,
        data_dir: a.data_dir,
        token: a.token.filter(|t| !t.is_empty()),
    };
    let bad = |e| {
        let next = "correct it and start again; docs/configuration.md lists every key";
        Failure::new("the configuration cannot be used", e).next(next).code(CONFIG)
    };
    let config = Config::load(overrides).map_err(bad)?;
    if a.until_stdin_closes {
        std::thread::spawn(stop_at_end_of_stdin);
    }
    hive::app::run(config).map_err(|e| Failure::new("the server cannot run", &e).code(e.exit_code()))
}

/// Sends this process what `kill` would send it.
pub(crate) fn stop_at_end_of_stdin() {
    // An error ends the input as well.
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
}
