//! `hive start`.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use hive::app::Ready;
use hive::config::{Config, Durability, Overrides};
use hive::edge::discovery::{DevServer, Published};
use tracing_subscriber::EnvFilter;

use super::failure::{CONFIG, Failure};
use super::output;

const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    /// What acknowledgements of tasks promise, unless their queue is declared otherwise: `memory`, or `journal`, which is
    /// the default and needs --data-dir (or --dev, which takes a temporary folder).
    #[arg(long, value_name = "DURABILITY", value_parser = durability)]
    durability: Option<Durability>,
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Secret that agents must show.
    #[arg(long, env = "HIVE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print the ready line as a JSON object.
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
        durability: a.durability,
    };
    let bad = |e| {
        let next = "correct it and start again; docs/configuration.md lists every key";
        Failure::new("the configuration cannot be used", e).next(next).code(CONFIG)
    };
    let config = Config::load(overrides).map_err(bad)?;
    log();
    if a.until_stdin_closes {
        std::thread::spawn(stop_at_end_of_stdin);
    }
    // Kept until the server has ended: the file that other commands find it by.
    let mut published = None;
    let ran = hive::app::run(config, |ready| {
        if ready.dev {
            published = publish(ready);
            banner(ready);
        }
        announce(ready, a.json);
    });
    drop(published);
    ran.map_err(|e| Failure::new("the server cannot run", &e).code(e.exit_code()))
}

/// What the server has to say while it runs goes to standard error: warnings and errors, or what `HIVE_LOG` asks for.
fn log() {
    let filter = EnvFilter::try_from_env("HIVE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log on a full disk must not end the server: its complaint about that would be a panic.
        .log_internal_errors(false);
    // Whoever embeds the command may have one.
    let _ = log.try_init();
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "memory" => Ok(Durability::Memory),
        "journal" => Ok(Durability::Journal),
        _ => Err("it is memory or journal".into()),
    }
}

/// The one line that scripts wait for.
fn announce(r: &Ready, as_json: bool) {
    let Ready { server, http, durability, .. } = r;
    let printed = match as_json {
        true => output::json_line(&serde_json::json!({
            "ready": true, "version": VERSION, "server": server, "http": http, "durability": durability,
        })),
        false => output::print_line(
            format!("hive {VERSION} ready server={server} http={http} durability={durability}").as_bytes(),
        ),
    };
    // Nobody may read the line; the server serves all the same.
    drop(printed);
}

/// What somebody needs who tries Hive out.
fn banner(r: &Ready) {
    let Ready { server, http, durability, token, .. } = r;
    let kept = match &r.data_dir {
        Some(dir) if r.temporary => {
            format!("{durability}, in {} (which goes when the server stops)", dir.display())
        }
        Some(dir) => format!("{durability}, in {}", dir.display()),
        None => "memory (tasks are gone when the server stops)".to_owned(),
    };
    eprintln!(
        "\n  hive {VERSION}, for development\n\
         \n    agents      {server}\
         \n    HTTP        http://{http}/v1/status\
         \n    durability  {kept}\
         \n    token       {token}\
         \n                (commands on this machine find it by themselves)\n\
         \n  Paste this into another terminal:\n\
         \n    hive work hello -- tr a-z A-Z &  hive submit hello 'it works' --wait; kill %1\n"
    );
}

fn publish(r: &Ready) -> Option<Published> {
    let server = DevServer {
        server: r.server.to_string(),
        http: r.http.to_string(),
        token: r.token.clone(),
        pid: std::process::id(),
        version: VERSION.into(),
    };
    match server.publish() {
        Ok(published) => Some(published),
        Err(e) => {
            eprintln!("warning: other commands will not find this server by themselves: {e}");
            None
        }
    }
}

/// Sends this process what `kill` would send it.
fn stop_at_end_of_stdin() {
    // An error ends the input as well.
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
}
