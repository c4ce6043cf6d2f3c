//! A server process.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Client, Disk, eventually, http};

/// What every server of a test is given, before what the test asks for: a test that is held up for a few seconds is not dead.
const SESSION: &str = "heartbeat_ms = 2000\ndead_ms = 60000\n";

/// A running server; killed when dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) token: String,
    child: Child,
    /// The server stops when this ends, so that a test that is killed leaves none behind.
    _stdin: Option<ChildStdin>,
    /// Goes before the folder that it is mounted in.
    disk: Option<Disk>,
    folder: tempfile::TempDir,
}

impl Server {
    /// Started with the defaults.
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// Started with a configuration. Keys of `[session]` are to be given by [`Server::with_session`].
    pub(crate) fn with(config: &str) -> Self {
        Self::with_session(config, "")
    }

    /// Started with a configuration and keys of `[session]`, which stand in for those of the tests.
    pub(crate) fn with_session(config: &str, session: &str) -> Self {
        let folder = Self::prepared(config, session);
        Self::launch(folder, None)
    }

    /// Started with its data on a disk of its own; `None` where none can be had.
    pub(crate) fn on_disk(config: &str, disk: impl FnOnce(&Path) -> Option<Disk>) -> Option<Self> {
        let folder = Self::prepared(config, "");
        let disk = disk(&folder.path().join("data"))?;
        Some(Self::launch(folder, Some(disk)))
    }

    /// A folder with a configuration.
    fn prepared(config: &str, session: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("hive.toml");
        let usual = SESSION.lines().filter(|l| !session.contains(l.split(' ').next().unwrap_or_default()));
        let usual: Vec<_> = usual.collect();
        // Tables come last in TOML, and the test's own keys may stand outside of any.
        let shards = match std::env::var("HIVE_TEST_SHARDS") {
            Ok(n) if !config.contains("shards") => format!("shards = {n}\n"),
            _ => String::new(),
        };
        let data_dir = match config.contains("data_dir") {
            true => String::new(),
            false => format!("data_dir = {:?}\n", folder.path().join("data")),
        };
        let text = format!("{data_dir}{shards}{config}\n[session]\n{}\n{session}\n", usual.join("\n"));
        std::fs::write(&file, text).expect("configuration");
        folder
    }

    /// Started with what is in the folder: the configuration, and the data of an earlier server.
    fn launch(folder: tempfile::TempDir, disk: Option<Disk>) -> Self {
        let token = format!("token-{}", folder.path().display());
        let mut child = command(&["--config", &folder.path().join("hive.toml").to_string_lossy()])
            .env("HIVE_TOKEN", &token)
            .env("XDG_RUNTIME_DIR", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("log")).expect("log"))
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary().display()));
        let stdin = child.stdin.take();
        let line = ready_line(&mut child, folder.path());
        let field = |name: &str| {
            let value = line.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line:?}"))
        };
        Self { addr: field("server"), http: field("http"), token, child, _stdin: stdin, disk, folder }
    }

    /// A client that has logged in under a name that the server makes up.
    pub(crate) fn client(&self) -> Client {
        Client::login(self, "", &[])
    }

    /// A client that has logged in.
    pub(crate) fn agent(&self, agent: &str, labels: &[&str]) -> Client {
        Client::login(self, agent, labels)
    }

    /// `GET /v1/status`.
    pub(crate) fn status(&self) -> Value {
        let (code, body) = self.get("/v1/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// One queue of the status.
    pub(crate) fn queue(&self, name: &str) -> Option<Value> {
        self.status()["queues"].as_array()?.iter().find(|q| q["name"] == name).cloned()
    }

    /// Waits until a count of a queue has a value.
    pub(crate) fn queue_has(&self, name: &str, key: &str, value: u64) {
        eventually(&format!("queue {name} with {key} = {value}"), || {
            self.queue(name).filter(|q| q[key] == value).map(|_| ())
        });
    }

    pub(crate) fn restarts(&self, actor: &str) -> u64 {
        let status = self.status();
        let found = status["actors"].as_array().and_then(|all| all.iter().find(|a| a["name"] == actor));
        found.and_then(|a| a["restarts"].as_u64()).unwrap_or_else(|| panic!("no actor {actor} in {status}"))
    }

    /// Makes an actor panic, as soon as there is one.
    pub(crate) fn panic(&self, actor: &str) {
        eventually(&format!("{actor} takes a fault"), || {
            let (code, body) =
                self.post(&format!("/v1/faults/panic?actor={actor}&shard=0"), Some(&self.token));
            assert!(matches!(code, 202 | 503), "{code} {body}");
            (code == 202).then_some(())
        });
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        http::ask(self.http, "GET", path, None)
    }

    pub(crate) fn post(&self, path: &str, token: Option<&str>) -> (u16, String) {
        http::ask(self.http, "POST", path, token)
    }

    /// Asks the server to stop.
    pub(crate) fn stop(&self) -> (u16, String) {
        self.post("/v1/stop", Some(&self.token))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    /// Waits for the end of the process.
    pub(crate) fn exit(&mut self) -> ExitStatus {
        eventually("the server's end", || self.child.try_wait().expect("own child"))
    }

    /// Kills the process at once, and starts another on the same data.
    pub(crate) fn killed_and_started_again(mut self) -> Self {
        let _ = self.child.kill();
        self.started_again()
    }

    /// Starts another process on the data of this one, which has ended.
    pub(crate) fn started_again(mut self) -> Self {
        let (folder, disk) = self.left_behind();
        Self::launch(folder, disk)
    }

    /// Tries to start another process on the data of this one, which has ended: its exit code, and what it said.
    pub(crate) fn refused_again(&self) -> (Option<i32>, String) {
        outcome(&mut command(&["--config", &self.folder.path().join("hive.toml").to_string_lossy()]))
    }

    fn left_behind(&mut self) -> (tempfile::TempDir, Option<Disk>) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("temporary folder"));
        (folder, self.disk.take())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_none()
    }

    /// A figure of the process's memory, as Linux names it, bytes.
    pub(crate) fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("running");
        let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        let kib: u64 =
            line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).expect("a number of KiB");
        kib * 1024
    }

    /// CPU time of the process, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("running");
        // utime and stime, proc_pid_stat(5); the name before them may contain blanks.
        let fields = stat.rsplit(") ").next().expect("a name").split(' ').skip(11);
        fields.take(2).map(|f| f.parse::<u64>().expect("a number")).sum()
    }

    /// Files of the journal with an ending, the oldest first.
    pub(crate) fn journal_files(&self, end: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.journal()).expect("the journal").flatten();
        let mut paths: Vec<_> = entries.map(|f| f.path()).collect();
        paths.retain(|p| p.to_string_lossy().ends_with(end));
        paths.sort();
        paths
    }

    /// Runs `hive` for this server: its exit code, and what it said.
    pub(crate) fn hive(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        outcome(command.args(args).env("HIVE_HTTP", self.http.to_string()).env("HIVE_TOKEN", &self.token))
    }

    /// Where the journal is.
    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.path().join("data/journal")
    }

    /// The directory in which commands find this server.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!("--- the server's log ends with");
            tail.iter().rev().for_each(|l| eprintln!("{l}"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `hive start` on free ports, with further arguments.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["start", "--dev", "--until-stdin-closes"]).args(args);
    for option in ["--listen", "--http"].iter().filter(|o| !args.contains(o)) {
        command.args([option, "127.0.0.1:0"]);
    }
    command
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HIVE_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("own path");
    let folder = exe.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let path = folder.join("hive");
    assert!(path.exists(), "{} is not there: run `cargo build`, or set HIVE_BIN", path.display());
    path
}

fn ready_line(child: &mut Child, folder: &Path) -> String {
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains(" ready ") {
        line.clear();
        let n = out.read_line(&mut line).expect("stdout of the server");
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(n > 0, "the server ended before it was ready: {}", log());
    }
    // Nobody reads on; the server says nothing more there.
    line.trim().to_owned()
}

/// Runs a command to its end: exit code and what it said on standard error.
pub(crate) fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).stdin(Stdio::piped()).spawn().expect("starts");
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("own child") {
            break status;
        }
        if began.elapsed() > super::PATIENCE {
            let _ = child.kill();
            panic!("the command did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    (status.code(), text)
}

/// A port that was free a moment ago, and the socket that keeps it.
pub(crate) fn free_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    (listener, addr)
}
