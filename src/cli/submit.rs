//! `hive submit`: one task, or one per line; acknowledged in batches, with a window instead of a round trip per task.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt as _};
use hive_client::{Client, Error, Outcome, TaskHandle, TaskState};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, json};
use tokio::sync::mpsc;

use super::failure::Failure;
use super::output;
use super::patience::Patience;
use super::target::{Reach, Target};

/// Submissions under way at once: enough to fill the server's frames.
const WINDOW: usize = 8192;
/// Tasks whose outcome is waited for at once; more are submitted as outcomes come.
const OUTCOMES: usize = 65_536;
/// Output that is printed at once, bytes.
const OUT: usize = 32 * 1024;
/// Lines that are read ahead.
const READ_AHEAD: usize = 4096;

/// Options of `hive submit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Queue; it comes into being with its first task.
    queue: String,
    /// The task's payload, or - for standard input (also without any, where that is no terminal).
    #[arg(conflicts_with_all = ["from_file", "lines"], allow_hyphen_values = true)]
    payload: Option<String>,
    /// The task's payload is the content of a file; - stands for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "lines")]
    from_file: Option<PathBuf>,
    /// One task for each line of a file; - stands for standard input.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// Wait for the outcomes, and print the results.
    #[arg(long)]
    wait: bool,
    /// Label that a worker must offer; may be repeated.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Attempts before a task is a dead letter.
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Not before this many milliseconds from now.
    #[arg(long, value_name = "MS")]
    delay_ms: Option<u32>,
    #[command(flatten)]
    reach: Reach,
}

/// Submits, and waits if asked to.
pub(crate) async fn run(a: Args) -> Result<(), Failure> {
    let input = Input::open(&a)?;
    let target = a.reach.target();
    let client = target.one_shot().await?;
    let many = a.lines.is_some();
    let bar = if many { input.bar() } else { ProgressBar::hidden() };
    let payloads = input.read(bar.clone());
    let mut run = Run {
        args: &a,
        target: &target,
        client: &client,
        bar: &bar,
        many,
        accepted: 0,
        bad: 0,
        out: Vec::new(),
    };
    // Thousands of futures share this task; tokio's budget per task would have most of them polled in vain.
    let done = tokio::task::unconstrained(run.all(payloads)).await;
    let (accepted, bad) = (run.accepted, run.bad);
    bar.finish_and_clear();
    done?;
    client.close().await;
    if many {
        eprintln!("submitted {accepted} {} to {}", if accepted == 1 { "task" } else { "tasks" }, a.queue);
    }
    match bad {
        0 => Ok(()),
        n => {
            Err(Failure::new(format!("{n} of {accepted} tasks did not complete"), "their outcomes are above"))
        }
    }
}

/// Where payloads come from.
enum Input {
    One(Vec<u8>),
    Lines { from: Box<dyn Read + Send>, bytes: Option<u64> },
}

impl Input {
    fn open(a: &Args) -> Result<Self, Failure> {
        let stdin = Path::new("-");
        let cannot = |path: &Path, e: &io::Error| Failure::new(format!("cannot read {}", path.display()), e);
        if let Some(path) = &a.lines {
            if path == stdin {
                return Ok(Self::Lines { from: Box::new(io::stdin()), bytes: None });
            }
            let file = File::open(path).map_err(|e| cannot(path, &e))?;
            let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
            return Ok(Self::Lines { from: Box::new(file), bytes });
        }
        match (&a.from_file, &a.payload) {
            (Some(path), _) if path != stdin => {
                std::fs::read(path).map(Self::One).map_err(|e| cannot(path, &e))
            }
            (None, Some(text)) if text != "-" => Ok(Self::One(text.clone().into_bytes())),
            (None, None) if io::IsTerminal::is_terminal(&io::stdin()) => {
                Err(super::usage("submit", "give a payload, --from-file, --lines, or - for standard input"))
            }
            _ => output::stdin().map(Self::One),
        }
    }

    fn bar(&self) -> ProgressBar {
        let Self::Lines { bytes, .. } = self else { return ProgressBar::hidden() };
        let (bar, style) = match bytes {
            Some(n) => (ProgressBar::new(*n), "{bar:30} {percent:>3} %  {msg}  {elapsed}, {eta} left"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
        };
        bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// Reads in a thread of its own, for reading a pipe blocks.
    fn read(self, bar: ProgressBar) -> mpsc::Receiver<io::Result<Vec<u8>>> {
        let (tx, rx) = mpsc::channel(READ_AHEAD);
        std::thread::spawn(move || {
            let from = match self {
                Self::One(payload) => return drop(tx.blocking_send(Ok(payload))),
                Self::Lines { from, .. } => from,
            };
            let mut from = BufReader::with_capacity(1 << 16, from);
            loop {
                let mut line = Vec::new();
                let read = from.read_until(b'\n', &mut line);
                bar.inc(*read.as_ref().unwrap_or(&0) as u64);
                let send = match read {
                    Ok(0) => return,
                    Ok(_) => {
                        if line.ends_with(b"\n") {
                            line.pop();
                        }
                        Ok(line)
                    }
                    Err(e) => Err(e),
                };
                let failed = send.is_err();
                if tx.blocking_send(send).is_err() || failed {
                    return; // Nobody listens, or there is nothing more to read.
                }
            }
        });
        rx
    }
}

struct Run<'a> {
    args: &'a Args,
    target: &'a Target,
    client: &'a Client,
    bar: &'a ProgressBar,
    many: bool,
    accepted: u64,
    bad: u64,
    /// Lines to be printed when nothing else is to be done, or there are many.
    out: Vec<u8>,
}

impl Run<'_> {
    async fn all(&mut self, mut payloads: mpsc::Receiver<io::Result<Vec<u8>>>) -> Result<(), Failure> {
        let (client, args, server) = (self.client, self.args, &self.target.server);
        let (mut submits, mut outcomes) = (FuturesOrdered::new(), FuturesUnordered::new());
        let mut waiting = VecDeque::new();
        let mut reading = true;
        loop {
            let room = submits.len() < WINDOW && outcomes.len() + submits.len() < OUTCOMES;
            tokio::select! {
                biased;
                Some(outcome) = outcomes.next(), if !outcomes.is_empty() => {
                    let outcome: Result<Outcome, Error> = outcome;
                    self.settled(&outcome.map_err(|e| Failure::client("learn the outcome", server, &e))?);
                }
                Some(accepted) = submits.next(), if !submits.is_empty() => {
                    let accepted: Result<TaskHandle, Error> = accepted;
                    let handle = accepted.map_err(|e| Failure::client("submit", server, &e))?;
                    self.acknowledged(&handle);
                    if args.wait {
                        outcomes.push(handle.outcome());
                    }
                }
                payload = payloads.recv(), if reading && room => match payload {
                    Some(payload) => {
                        waiting.push_back(payload.map_err(|e| Failure::new("cannot read the payloads", e))?);
                        // What has been read goes out together.
                        while waiting.len() + submits.len() < WINDOW && let Ok(Ok(more)) = payloads.try_recv() {
                            waiting.push_back(more);
                        }
                        submits.extend(waiting.drain(..).map(|payload| submit(client, args, payload)));
                    }
                    None => reading = false,
                },
                () = std::future::ready(()), if !self.out.is_empty() => self.print()?,
                else => return Ok(()),
            }
            if self.out.len() > OUT {
                self.print()?;
            }
        }
    }

    fn print(&mut self) -> Result<(), Failure> {
        output::print(&std::mem::take(&mut self.out))
    }

    fn line(&mut self, line: &[u8]) {
        self.out.extend_from_slice(line);
        self.out.push(b'\n');
    }

    fn acknowledged(&mut self, handle: &TaskHandle) {
        self.accepted += 1;
        if self.accepted.is_multiple_of(256) {
            self.bar.set_message(format!("{} tasks", self.accepted));
        }
        let (id, durability) = (handle.id().to_string(), handle.durability().name());
        match (self.args.reach.json, self.args.wait) {
            (true, _) => self.line(json!({"task": id, "durability": durability}).to_string().as_bytes()),
            (false, false) => self.line(id.as_bytes()),
            (false, true) => {}
        }
    }

    fn settled(&mut self, o: &Outcome) {
        self.bad += u64::from(o.state != TaskState::Completed);
        let (id, state) = (o.task.to_string(), o.state.name());
        if self.args.reach.json {
            let mut object = Map::new();
            object.insert("task".into(), json!(id));
            object.insert("outcome".into(), json!(state));
            output::put_bytes(&mut object, "result", &o.result);
            self.line(serde_json::Value::from(object).to_string().as_bytes());
        } else if self.many {
            let result = o.result.strip_suffix(b"\n").unwrap_or(&o.result);
            self.line(&[format!("{id}\t{state}\t").as_bytes(), result].concat());
        } else if o.state == TaskState::Completed {
            self.out.extend_from_slice(&output::result(&o.result));
        } else {
            eprintln!("task {id} is {state}: {}", String::from_utf8_lossy(&o.result));
        }
    }
}

/// Submits one task; where the server has no room, again and again for a while.
async fn submit(client: &Client, a: &Args, payload: Vec<u8>) -> Result<TaskHandle, Error> {
    let payload = bytes::Bytes::from(payload);
    let patience = Patience::new();
    loop {
        let mut builder = client.submit(&a.queue, payload.clone()).labels(&a.labels);
        if let Some(n) = a.max_attempts {
            builder = builder.max_attempts(n);
        }
        if let Some(ms) = a.delay_ms {
            builder = builder.delay(Duration::from_millis(ms.into()));
        }
        if !a.wait {
            builder = builder.detached();
        }
        match builder.send().await {
            Err(e) if patience.waits(&e).await => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_newlines_only() {
        let from: &[u8] = b"one\r\n\ntwo\xff\nlast";
        let input = Input::Lines { from: Box::new(from), bytes: None };
        let mut lines = input.read(ProgressBar::hidden());
        let read: Vec<_> =
            std::iter::from_fn(|| lines.blocking_recv()).map(|l| l.expect("readable")).collect();
        assert_eq!(read, [&b"one\r"[..], b"", b"two\xff", b"last"]);
    }
}
