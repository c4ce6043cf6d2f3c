//! Commands as processes: their streams go to files, so that nobody has to read along.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{self, binary, eventually};

/// `hive` with arguments; it finds only servers that were started in `folder`.
pub(crate) fn hive(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env("XDG_RUNTIME_DIR", folder).env("TMPDIR", folder);
    for name in ["HIVE_SERVER", "HIVE_HTTP", "HIVE_TOKEN", "HIVE_FAULTS"] {
        command.env_remove(name);
    }
    command
}

/// The names in an object, sorted.
pub(crate) fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// A command that runs; killed when dropped.
pub(crate) struct Run {
    child: Child,
    stdin: Option<ChildStdin>,
    began: Instant,
    folder: tempfile::TempDir,
}

/// What a command has left.
#[derive(Debug)]
pub(crate) struct Done {
    /// `None` where a signal has ended it.
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
    pub(crate) time: Duration,
}

impl Run {
    /// Starts a command with a file as its standard input.
    pub(crate) fn fed(command: &mut Command, input: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("in");
        fs::write(&file, input).expect("input");
        command.stdin(File::open(file).expect("input"));
        Self::spawn(command, folder)
    }

    /// Starts a command with a standard input that ends with [`Run`].
    pub(crate) fn open(command: &mut Command) -> Self {
        command.stdin(Stdio::piped());
        Self::spawn(command, tempfile::tempdir().expect("temporary folder"))
    }

    fn spawn(command: &mut Command, folder: tempfile::TempDir) -> Self {
        let create = |name: &str| File::create(folder.path().join(name)).expect("a file for a stream");
        let began = Instant::now();
        let mut child = command.stdout(create("out")).stderr(create("err")).spawn().expect("starts");
        Self { stdin: child.stdin.take(), child, began, folder }
    }

    /// What it has written to standard output so far.
    pub(crate) fn out(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("out")).expect("kept")
    }

    /// What it has written to standard error so far.
    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("err")).expect("kept")).into_owned()
    }

    /// Waits for a text on standard error.
    pub(crate) fn says(&mut self, text: &str) {
        self.await_output(text, |run| run.err().contains(text));
    }

    /// Waits for a number of lines on standard output.
    pub(crate) fn prints(&mut self, lines: usize) {
        let printed = |run: &Self| run.out().iter().filter(|b| **b == b'\n').count() >= lines;
        self.await_output(&format!("{lines} lines"), printed);
    }

    fn await_output(&mut self, what: &str, come: impl Fn(&Self) -> bool) {
        eventually(what, || {
            // Looked at before the output: what an ended command has said is all there.
            let ended = self.child.try_wait().expect("own child").is_some();
            let there = come(self);
            assert!(there || !ended, "it ended without {what:?}: {}", self.err());
            there.then_some(())
        });
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_none()
    }

    /// Closes its standard input.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Done {
        let status = eventually("the command's end", || self.child.try_wait().expect("own child"));
        let (out, err, time) = (self.out(), self.err(), self.began.elapsed());
        Done { code: status.code(), out, err, time }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Done {
    /// Runs a command to its end, without any input.
    pub(crate) fn of(command: &mut Command) -> Self {
        Self::fed(command, b"")
    }

    /// Runs a command to its end.
    pub(crate) fn fed(command: &mut Command, input: &[u8]) -> Self {
        Run::fed(command, input).end()
    }

    /// It has ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It has ended with a code, has said nothing on standard output, and why on standard error.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, names: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.out.is_empty(), "{self:?}");
        for name in names {
            assert!(self.err.contains(name), "{name:?} is not in {self:?}");
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// One object for each line of standard output, which holds nothing else.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<Value> {
        assert!(self.out.is_empty() || self.out.ends_with(b"\n"), "{self:?}");
        let object = |line: &str| serde_json::from_str(line).ok().filter(Value::is_object);
        let text = self.text();
        text.lines().map(|l| object(l).unwrap_or_else(|| panic!("no object: {l:?} in {self:?}"))).collect()
    }

    /// The only object on standard output.
    #[track_caller]
    pub(crate) fn object(&self) -> Value {
        let mut all = self.json();
        assert_eq!(all.len(), 1, "{self:?}");
        all.remove(0)
    }
}

/// `hive start --dev` on free ports.
pub(crate) struct Server {
    pub(crate) run: Run,
    pub(crate) addr: SocketAddr,
    pub(crate) http: SocketAddr,
    /// The line that scripts wait for.
    pub(crate) ready: String,
}

impl Server {
    /// Started in a folder, with further arguments.
    pub(crate) fn start(folder: &Path, args: &[&str]) -> Self {
        let usual =
            ["start", "--dev", "--until-stdin-closes", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        Self::ready(Run::open(&mut hive(folder, &[&usual[..], args].concat())))
    }

    /// Waits until a server is ready that was asked for its plain line.
    pub(crate) fn ready(mut run: Run) -> Self {
        run.prints(1);
        let ready = String::from_utf8(run.out()).expect("text");
        let field = |name: &str| {
            let value = ready.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {name} in {ready:?}"))
        };
        Self { addr: field("server"), http: field("http"), run, ready }
    }

    /// `GET /v1/status`.
    pub(crate) fn status(&self) -> Value {
        let (code, body) = harness::http_ask(self.http, "GET", "/v1/status", None);
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }
}
