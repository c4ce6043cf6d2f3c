//! The processes under test: found, started on a free loopback port, ended with the run.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cores::{self, Cores};
use crate::measure;

/// How long a server may take until it serves.
const START: Duration = Duration::from_secs(15);

/// Where a server's stderr goes, below its directory.
const STDERR: &str = "hive-bench.stderr";

/// A system that is not installed here: a fact to report, not a failure of the run.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Where a server runs.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its folder, which ends with it.
    pub(crate) dir: TempDir,
    pub(crate) cores: Cores,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it takes clients.
    pub(crate) addr: SocketAddr,
    /// Where it answers HTTP, if it does.
    pub(crate) http: Option<SocketAddr>,
    place: Place,
}

impl Server {
    /// Starts a server that is told its port, and waits until it accepts a connection.
    pub(crate) fn start(place: Place, command: impl Fn(u16, &Path) -> Command) -> Result<Self> {
        let mut last = None;
        // Another process may take the port between our asking and the server's binding.
        for _ in 0..3 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let mut child = launch(&command(port, place.dir.path()), Stdio::null(), &place)?;
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match accepts(addr, &mut child) {
                Ok(()) => return Ok(Self { child, addr, http: None, place }),
                Err(e) => last = Some(explain(e, place.dir.path())),
            }
            end(&mut child);
        }
        Err(last.context("no attempt")?)
    }

    /// Starts a server that prints a line with `ready` and `server=A:P` (and `http=A:P`) on stdout.
    pub(crate) fn start_announced(place: Place, command: &Command) -> Result<Self> {
        let mut child = launch(command, Stdio::piped(), &place)?;
        match announced(&mut child) {
            Ok((addr, http)) => Ok(Self { child, addr, http, place }),
            Err(e) => {
                end(&mut child);
                Err(explain(e, place.dir.path()))
            }
        }
    }

    /// Adds to an error what the server said last, if it has ended.
    pub(crate) fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.child.try_wait() {
            Ok(Some(status)) => explain(error.context(format!("the server ended: {status}")), self.folder()),
            _ => error,
        }
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.place.dir.path()
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        measure::process_cpu(self.child.id()).context("the server is gone")
    }

    /// Bytes written to disks so far, if that can be known.
    pub(crate) fn written(&self) -> Option<u64> {
        measure::process_written(self.child.id())
    }

    /// Resident memory now and at its peak, bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        measure::process_memory(self.child.id()).context("the server is gone")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn explain(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    let text = std::fs::read(dir.join(STDERR)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(500)..]).trim().to_owned();
    if text.is_empty() { error } else { error.context(format!("the server said: {text}")) }
}

fn end(child: &mut Child) {
    // It may have ended by itself; nothing is to be done about either.
    let _ = child.kill();
    let _ = child.wait();
}

/// Starts a command through `hive-bench launch`, so that it dies with this process however this process dies.
fn launch(command: &Command, stdout: Stdio, place: &Place) -> Result<Child> {
    let mut launch = Command::new(std::env::current_exe()?);
    let cores: Vec<_> = place.cores.of_servers().iter().map(ToString::to_string).collect();
    launch.arg("launch").arg(std::process::id().to_string()).arg(cores.join(","));
    launch.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => launch.env(key, value),
            None => launch.env_remove(key),
        };
    }
    let stderr = File::create(place.dir.path().join(STDERR))?;
    launch.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    launch.spawn().with_context(|| format!("starting {:?}", command.get_program()))
}

fn accepts(addr: SocketAddr, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("the server ended at once: {status}");
        }
        if TcpStream::connect(addr).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("the server does not accept connections within {} s", START.as_secs())
}

fn announced(child: &mut Child) -> Result<(SocketAddr, Option<SocketAddr>)> {
    let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    let line = loop {
        match lines.next() {
            Some(line) => match line? {
                line if line.split_whitespace().any(|w| w == "ready") => break line,
                _ => {}
            },
            None => bail!("the server ended before it was ready"),
        }
    };
    // Whatever it prints later must not fill the pipe and stop it.
    std::thread::spawn(move || lines.for_each(drop));
    parse_ready(&line).with_context(|| format!("the ready line names no address: {line}"))
}

fn parse_ready(line: &str) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let field = |key: &str| line.split_whitespace().find_map(|w| w.strip_prefix(key)?.parse().ok());
    Some((field("server=")?, field("http=")))
}

/// The hidden subcommand: asks to die with the parent, keeps to its cores, then becomes the server.
pub(crate) fn become_server(parent: u32, cores: &[usize], command: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    cores::pin(cores)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // The parent may have died before the line above.
    if rustix::process::getppid().is_none_or(|p| p.as_raw_pid().unsigned_abs() != parent) {
        bail!("the harness is gone");
    }
    let (program, args) = command.split_first().context("no command")?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("starting {program}"))
}

/// Finds a program of a peer: on PATH, in target/peers beside this executable or the working directory, where
/// distributions and Python put servers.
///
/// # Errors
/// [`Missing`].
pub(crate) fn find(program: &str) -> Result<PathBuf> {
    let mut dirs = Vec::new();
    if let Some(target) = std::env::current_exe()?.parent().and_then(Path::parent) {
        dirs.push(target.join("peers"));
    }
    dirs.push("target/peers".into());
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    dirs.extend(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from));
    // A version manager's shim is a script that forks: its process is not the server's.
    let real = |p: &PathBuf| p.is_file() && !p.to_string_lossy().contains("/shims/");
    if let Some(found) = dirs.iter().map(|d| d.join(program)).find(real) {
        return Ok(std::path::absolute(found)?);
    }
    let script = "import sysconfig; print(sysconfig.get_path('scripts'))";
    let scripts = Command::new("python3").args(["-c", script]).output().map(|o| o.stdout).unwrap_or_default();
    let found = Path::new(String::from_utf8_lossy(&scripts).trim()).join(program);
    if found.is_file() {
        return Ok(found);
    }
    Err(Missing(format!("{program} is not installed; `cargo xtask peers` installs the peers")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_both_addresses() {
        let line = "hive 0.1.0 ready server=127.0.0.1:7878 http=127.0.0.1:7879 durability=memory";
        let (server, http) = parse_ready(line).expect("addresses");
        assert_eq!((server.port(), http.map(|h| h.port())), (7878, Some(7879)));
        assert_eq!(parse_ready("ready server=127.0.0.1:1").expect("one").1, None);
        assert!(parse_ready("hive ready").is_none());
    }

    #[test]
    fn a_missing_program_is_told_apart() {
        let error = find("no-such-program-anywhere").expect_err("missing");
        assert!(error.downcast_ref::<Missing>().is_some());
    }
}
