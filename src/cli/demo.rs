//! `hive demo`: the main job on real input. One task per file, a fleet of worker processes, totals that `find`, `wc` and
//! `sha256sum` agree with.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, io};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hive_client::{Client, Error, Outcome, Status, TaskState};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::analyse::{Analysis, hex};
use super::demo_worker::Finding;
use super::failure::Failure;
use super::patience::Patience;
use super::status::{bytes, table};
use super::target::{Reach, Target};
use super::{output, target};

/// Files under way at once.
const WINDOW: usize = 8192;
/// Time for a server of our own to be ready, and to go.
const START: Duration = Duration::from_secs(10);

/// Options of `hive demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory to analyse; by default the sources of the crates that cargo has fetched, else the current directory.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Worker processes; as many as there are cores by default, but two at least.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    agents: Option<u16>,
    #[command(flatten)]
    reach: Reach,
}

/// Runs the demo.
pub(crate) async fn run(a: Args) -> Result<(), Failure> {
    let path = a.path.clone().unwrap_or_else(default_path);
    let unusable = |e| {
        Failure::new(format!("cannot analyse {}", path.display()), e).next("name a directory with --path")
    };
    let root = path.canonicalize().map_err(unusable)?;
    let files = Files::below(&root).map_err(unusable)?;
    let (target, client, server) = find_or_start(&a.reach).await?;
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 1000) as u16);
    let agents = a.agents.unwrap_or(cores);
    let queue = format!("demo/{}-{}", std::process::id(), random_hex(4)?);
    eprintln!(
        "{} files below {}, {agents} agents, server {}",
        files.paths.len(),
        root.display(),
        target.server
    );
    let mut workers = Workers::start(&target, &queue, &root, agents)?;
    let done = tokio::select! {
        // Thousands of futures share this task; tokio's budget per task would have most of them polled in vain.
        done = tokio::task::unconstrained(analyse_all(&client, &target, &queue, &files.paths)) => done,
        why = workers.ended() => Err(why),
    };
    workers.stop().await;
    client.close().await;
    if let Some(server) = server {
        server.stop().await;
    }
    let mut report = done?;
    for (path, why) in &files.unreadable {
        eprintln!("directory not read: {}: {why}", path.display());
    }
    report.unreadable += files.unreadable.len() as u64;
    report.print(a.reach.json)
}

fn default_path() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cargo = set("CARGO_HOME").or_else(|| std::env::home_dir().map(|h| h.join(".cargo")));
    let sources = cargo.map(|c| c.join("registry").join("src"));
    sources.filter(|s| s.is_dir()).unwrap_or_else(|| ".".into())
}

/// The regular files below a directory, as paths relative to it, in any bytes.
#[derive(Debug, Default)]
struct Files {
    paths: Vec<Bytes>,
    /// Directories that could not be listed, and why.
    unreadable: Vec<(PathBuf, io::Error)>,
}

impl Files {
    /// Hidden files count, links are not followed.
    fn below(root: &Path) -> io::Result<Self> {
        let mut files = Self::default();
        let mut directories = vec![PathBuf::new()];
        // The directory itself must be readable; below it, what is not is reported.
        fs::read_dir(root)?;
        while let Some(dir) = directories.pop() {
            if let Err(e) = files.list(root, &dir, &mut directories) {
                files.unreadable.push((dir, e));
            }
        }
        Ok(files)
    }

    fn list(&mut self, root: &Path, dir: &Path, directories: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(root.join(dir))? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, dir.join(entry.file_name()));
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                self.paths.push(path.into_os_string().into_vec().into());
            }
        }
        Ok(())
    }
}

/// The server to use: the one that is named or runs on this machine, else one of our own.
async fn find_or_start(reach: &Reach) -> Result<(Target, Client, Option<Server>), Failure> {
    let target = reach.target();
    match target.one_shot().await {
        Ok(client) => return Ok((target, client, None)),
        Err(e) if target.named || !e.is_unreachable() => return Err(e),
        Err(_) => {}
    }
    let (server, target) = Server::start().await?;
    let client = target.one_shot().await?;
    Ok((target, client, Some(server)))
}

/// A server for this run only. It is not started with `--dev`, lest another command finds it and loses it with the demo.
struct Server {
    child: Child,
    /// It stops when this is closed, also if the demo is killed.
    stdin: Option<ChildStdin>,
}

impl Server {
    async fn start() -> Result<(Self, Target), Failure> {
        let failed = |e: io::Error| {
            Failure::new("cannot start a server", e).next("run `hive start --dev` to see more")
        };
        let token = random_hex(16)?;
        let free = ["start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--until-stdin-closes"];
        let mut child = own_command()
            .map_err(failed)?
            .args(free)
            .env("HIVE_TOKEN", &token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        let mut ready =
            BufReader::new(child.stdout.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?);
        match tokio::time::timeout(START, ready.read_line(&mut line)).await {
            Ok(read) => read.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        let (Some(server), Some(http)) = (field(&line, "server="), field(&line, "http=")) else {
            return Err(failed(io::Error::other("it ended before it was ready")));
        };
        Ok((Self { child, stdin }, Target { server, http, token, named: true }))
    }

    async fn stop(mut self) {
        drop(self.stdin.take());
        // If it does not go in time it is killed when `self` is dropped.
        let _ = tokio::time::timeout(START, self.child.wait()).await;
    }
}

fn field(line: &str, name: &str) -> Option<String> {
    line.split_whitespace().find_map(|w| w.strip_prefix(name)).map(str::to_owned)
}

fn own_command() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    for name in target::VARIABLES {
        command.env_remove(name);
    }
    Ok(command)
}

fn random_hex(bytes: usize) -> Result<String, Failure> {
    let mut random = vec![0; bytes];
    let read = fs::File::open("/dev/urandom").and_then(|mut f| io::Read::read_exact(&mut f, &mut random));
    read.map_err(|e| Failure::new("cannot make up a name", e))?;
    Ok(hex(&random))
}

/// The fleet.
struct Workers {
    children: Vec<Child>,
    /// A worker ends when its input does, also if the demo is killed.
    inputs: Vec<ChildStdin>,
}

impl Workers {
    fn start(target: &Target, queue: &str, root: &Path, agents: u16) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::new("cannot start a worker", e);
        let mut workers = Self { children: Vec::new(), inputs: Vec::new() };
        for _ in 0..agents {
            let mut child = own_command()
                .map_err(failed)?
                .args(["demo-worker", "--queue", queue, "--root"])
                .arg(root)
                .env("HIVE_SERVER", &target.server)
                .env("HIVE_HTTP", &target.http)
                .env("HIVE_TOKEN", &target.token)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .map_err(failed)?;
            workers.inputs.extend(child.stdin.take());
            workers.children.push(child);
        }
        Ok(workers)
    }

    /// Resolves when nobody works any more.
    async fn ended(&mut self) -> Failure {
        for child in &mut self.children {
            // An error means that there is nothing to wait for.
            let _ = child.wait().await;
        }
        Failure::new("all workers have ended", "see their messages above")
    }

    async fn stop(mut self) {
        self.inputs.clear();
        // Who does not go in time is killed when `self` is dropped.
        let _ = tokio::time::timeout(START, self.ended()).await;
    }
}

/// Submits a task per file and gathers what comes back.
async fn analyse_all(
    client: &Client,
    target: &Target,
    queue: &str,
    paths: &[Bytes],
) -> Result<Report, Failure> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} files  {per_sec}  {elapsed}");
    let bar = ProgressBar::new(paths.len() as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let began = Instant::now();
    let (mut report, mut running, mut left) = (Report::default(), FuturesUnordered::new(), paths.iter());
    loop {
        while running.len() < WINDOW
            && let Some(path) = left.next()
        {
            running.push(async move { (path, one(client, queue, path).await) });
        }
        let Some((path, outcome)) = running.next().await else { break };
        report.add(path, &outcome.map_err(|e| Failure::client("run the tasks", &target.server, &e))?)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Has one file analysed; again if the server lost the task, the connection broke, or there was no room. Twice does no harm.
async fn one(client: &Client, queue: &str, path: &Bytes) -> Result<Outcome, Error> {
    let patience = Patience::new();
    loop {
        match client.submit(queue, path.clone()).send().await {
            Ok(handle) => match handle.outcome().await? {
                o if o.state == TaskState::Lost => {}
                o => return Ok(o),
            },
            Err(e) if patience.waits(&e).await => {}
            // A client that has given up says `Closed`, or the same again at once; then it is over.
            Err(Error::Disconnected { .. }) if !matches!(client.status(), Status::Closed(_)) => {}
            Err(e) => return Err(e),
        }
    }
}

#[derive(Debug, Default)]
struct Report {
    total: Sum,
    languages: BTreeMap<String, Sum>,
    unreadable: u64,
    /// What the digest is made of, without line ends.
    digests: Vec<Vec<u8>>,
    seconds: f64,
}

#[derive(Debug, Default)]
struct Sum {
    files: u64,
    bytes: u64,
    lines: u64,
    words: u64,
    todos: u64,
}

impl Sum {
    fn add(&mut self, a: &Analysis) {
        self.files += 1;
        self.bytes += a.bytes;
        self.lines += a.lines;
        self.words += a.words;
        self.todos += a.todos;
    }

    fn cells(&self, name: &str) -> Vec<String> {
        let numbers = [self.files, self.lines, self.words].map(|n| n.to_string());
        [name.to_owned()]
            .into_iter()
            .chain(numbers)
            .chain([bytes(self.bytes), self.todos.to_string()])
            .collect()
    }
}

impl Report {
    fn add(&mut self, path: &[u8], outcome: &Outcome) -> Result<(), Failure> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        if outcome.state != TaskState::Completed {
            let why = String::from_utf8_lossy(&outcome.result).into_owned();
            return Err(Failure::new(format!("the task for {} is {}", shown(), outcome.state.name()), why));
        }
        let finding = serde_json::from_slice(&outcome.result);
        match finding.map_err(|e| Failure::new(format!("the answer for {} is not understood", shown()), e))? {
            Finding::Unreadable(why) => {
                eprintln!("file not read: {}: {why}", shown());
                self.unreadable += 1;
            }
            Finding::Read(a) => {
                self.total.add(&a);
                self.digests.push([a.sha256.as_bytes(), b"  ", path].concat());
                self.languages.entry(a.language.clone()).or_default().add(&a);
            }
        }
        Ok(())
    }

    /// SHA-256 over the lines `<sha256>  <relative path>`, sorted by their bytes.
    fn digest(&mut self) -> String {
        self.digests.sort_unstable();
        let mut hash = Sha256::new();
        for line in &self.digests {
            hash.update(line);
            hash.update(b"\n");
        }
        hex(&hash.finalize())
    }

    fn print(mut self, as_json: bool) -> Result<(), Failure> {
        let digest = self.digest();
        let t = &self.total;
        let rate = if self.seconds > 0.0 { t.files as f64 / self.seconds } else { 0.0 };
        if as_json {
            return output::json_line(&json!({
                "files": t.files, "bytes": t.bytes, "lines": t.lines, "words": t.words, "digest": digest,
                "seconds": self.seconds, "tasks_per_s": rate, "todos": t.todos, "unreadable": self.unreadable,
            }));
        }
        let mut languages: Vec<_> = self.languages.iter().collect();
        languages.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.bytes));
        let mut rows: Vec<_> = languages.into_iter().map(|(name, sum)| sum.cells(name)).collect();
        rows.push(t.cells("total"));
        let table = table(&["language", "files", "lines", "words", "bytes", "TODO"], rows);
        let unreadable =
            if self.unreadable > 0 { format!(", {} not readable", self.unreadable) } else { String::new() };
        output::print(
            format!(
                "{table}\n\n{} files ({} bytes{unreadable}) in {:.2} s: {rate:.0} tasks/s\ndigest {digest}\n",
                t.files, t.bytes, self.seconds
            )
            .as_bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    #[test]
    fn all_regular_files_are_found_and_links_are_not() {
        let root = std::env::temp_dir().join(format!("hive-demo-{}", std::process::id()));
        let odd = OsStr::from_bytes(b"new\nline\xff");
        fs::create_dir_all(root.join(".hidden").join(odd)).expect("made");
        for name in [Path::new("a"), Path::new(".b"), &Path::new(".hidden").join(odd).join("c")] {
            fs::write(root.join(name), "x").expect("written");
        }
        symlink(root.join("a"), root.join("link")).expect("linked");
        symlink(&root, root.join("loop")).expect("linked");
        let mut files = Files::below(&root).expect("readable");
        fs::remove_dir_all(&root).expect("removed");
        files.paths.sort();
        assert_eq!(files.paths, [&b".b"[..], b".hidden/new\nline\xff/c", b"a"]);
        assert!(files.unreadable.is_empty() && Files::below(&root).is_err());
    }

    #[test]
    fn the_digest_is_over_sorted_lines() {
        // printf '%s\n' '11  b' '22  a' | sha256sum
        let mut report = Report { digests: vec![b"22  a".to_vec(), b"11  b".to_vec()], ..Report::default() };
        assert_eq!(report.digest(), hex(&Sha256::digest(b"11  b\n22  a\n")));
        let mut empty = Report::default();
        assert_eq!(empty.digest(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn the_ready_line_is_understood() {
        let line = "hive 0.1.0 ready server=127.0.0.1:4242 http=127.0.0.1:4243 durability=memory\n";
        assert_eq!(field(line, "server="), Some("127.0.0.1:4242".into()));
        assert_eq!((field(line, "http="), field("", "http=")), (Some("127.0.0.1:4243".into()), None));
    }
}
