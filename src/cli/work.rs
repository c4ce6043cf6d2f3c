//! `hive work`: runs a command for each task, so that whatever reads and writes can be a worker.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hive_client::{Assignment, Error, Failure as TaskFailure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;
use super::output;
use super::target::Reach;

/// EX_DATAERR: the payload is at fault, no attempt can succeed.
const DATA_ERROR: i32 = 65;
/// How much of the end of standard error becomes the error text, bytes.
const ERROR_TAIL: usize = 4096;
/// Longest result, bytes; the server's default for messages is 16 MiB.
const RESULT_MAX: usize = 15 << 20;
/// Time to read what is left of a command's output when it has ended; longer waits only who has gone to another process
/// group and keeps it open.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Time for the last answers to arrive after a second signal.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Options of `hive work`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command gets the payload on standard input and HIVE_TASK, HIVE_ATTEMPT and HIVE_QUEUE in its environment. What it
writes to standard output is the result. Exit code 0 completes the task, 65 fails it for good, any other (such as 75)
fails the attempt. SIGTERM or Ctrl-C: no more tasks, running ones are finished; a second one kills them.")]
pub(crate) struct Args {
    /// Queue to work on.
    queue: String,
    /// Commands that run at once; as many as there are cores by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: Option<u32>,
    /// What this worker is able to do; may be repeated.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Works until it is told to stop.
pub(crate) async fn run(a: Args) -> Result<(), Failure> {
    let target = a.reach.target();
    let client = target.lasting(a.labels.clone()).await?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let jobs = a.jobs.unwrap_or(cores);
    let opened = client.work(&a.queue).credit(jobs).open().await;
    let mut tasks = opened.map_err(|e| Failure::client("work", &target.server, &e))?;
    eprintln!(
        "working on {} at {} with {jobs} {}",
        a.queue,
        target.server,
        if jobs == 1 { "job" } else { "jobs" }
    );
    let mut running = FuturesUnordered::new();
    let mut stop = std::pin::pin!(stop_signal());
    let (mut open, mut stopping, mut broken) = (true, false, None);
    while open || !running.is_empty() {
        tokio::select! {
            task = tasks.next(), if open && running.len() < jobs as usize => match task {
                Some(task) => running.push(one(&a, task)),
                None => open = false,
            },
            Some(done) = running.next() => {
                let report: Report = match done {
                    Ok(report) => report,
                    Err(e) => {
                        broken.get_or_insert(e);
                        tasks.stop();
                        continue;
                    }
                };
                report.print(a.reach.json)?;
            }
            () = &mut stop => {
                if stopping {
                    break; // Dropping what runs kills its process group.
                }
                stopping = true;
                eprintln!("finishing {} running {}; once more to kill", running.len(), if running.len() == 1 { "task" } else { "tasks" });
                tasks.stop();
                stop.set(stop_signal());
            }
        }
    }
    let killed = running.len();
    drop(running);
    let failed = tasks.failure();
    drop(tasks);
    // What was given back is told to the server; it would find out by itself.
    let _ = tokio::time::timeout(if killed > 0 { LAST_WORDS } else { LAST_WORDS * 10 }, client.drain()).await;
    match (broken, failed) {
        (Some(e), _) => Err(e),
        (None, Some(e)) if !stopping => Err(Failure::client("go on working", &target.server, &e)),
        _ if killed > 0 => {
            Err(Failure::new(format!("killed {killed} running tasks"), "a second signal came"))
        }
        _ => Ok(()),
    }
}

/// Resolves with the next SIGTERM or SIGINT.
pub(crate) async fn stop_signal() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// What became of one task.
struct Report {
    task: String,
    attempt: u32,
    outcome: &'static str,
    exit: Option<i32>,
    ms: u128,
}

impl Report {
    fn print(&self, as_json: bool) -> Result<(), Failure> {
        let Self { task, attempt, outcome, exit, ms } = self;
        if as_json {
            let line = json!({"task": task, "attempt": attempt, "outcome": outcome, "exit": exit, "ms": ms});
            return output::json_line(&line);
        }
        eprintln!("task {task} attempt {attempt}: {outcome} after {ms} ms");
        Ok(())
    }
}

/// Runs the command for one task and settles it.
async fn one(a: &Args, task: Assignment) -> Result<Report, Failure> {
    let began = Instant::now();
    let (id, attempt) = (task.id().to_string(), task.attempt());
    let report =
        |outcome, exit| Report { task: id.clone(), attempt, outcome, exit, ms: began.elapsed().as_millis() };
    let mut job = match Job::start(a, &task) {
        Ok(job) => job,
        Err(e) => {
            let name = a.command[0].to_string_lossy();
            // Another worker may have the command; this one is of no use.
            let _ = task.release(Duration::from_secs(1)).await;
            return Err(Failure::new(format!("cannot run {name}"), e).next("check the command after --"));
        }
    };
    let ran = tokio::select! {
        ran = job.run(task.payload()) => ran,
        _ = task.revoked() => return Ok(report("revoked", None)),
    };
    drop(job);
    let (settled, report) = match ran {
        Err(e) => (task.fail(TaskFailure::retryable(e.to_string())).await, report("failed", None)),
        Ok(Ran { status, result, .. }) if status.success() && result.len() <= RESULT_MAX => {
            (task.complete(result).await, report("completed", status.code()))
        }
        Ok(ran) => (task.fail(ran.failure()).await, report("failed", ran.status.code())),
    };
    match settled {
        Err(e @ Error::Refused(_)) => {
            eprintln!("task {id}: the server did not take the outcome: {e}");
            Ok(Report { outcome: "refused", ..report })
        }
        // The connection broke, and the server gives the task to somebody again.
        Err(_) => Ok(Report { outcome: "revoked", ..report }),
        Ok(()) => Ok(report),
    }
}

/// A command that runs, in a process group of its own that does not outlive this value.
struct Job {
    child: Child,
    group: Option<Pid>,
}

/// What a command left behind.
struct Ran {
    status: ExitStatus,
    result: Vec<u8>,
    error: Vec<u8>,
}

impl Job {
    fn start(a: &Args, task: &Assignment) -> std::io::Result<Self> {
        let child = Command::new(&a.command[0])
            .args(&a.command[1..])
            .env("HIVE_TASK", task.id().to_string())
            .env("HIVE_ATTEMPT", task.attempt().to_string())
            .env("HIVE_QUEUE", &a.queue)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group })
    }

    async fn run(&mut self, payload: &[u8]) -> std::io::Result<Ran> {
        let (stdin, stdout, stderr) =
            (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command may end without having read everything.
                let _ = stdin.write_all(payload).await;
            }
        };
        let (mut result, mut error) = (Vec::new(), Vec::new());
        let streams = async {
            // One byte more than may be, to notice it.
            let result = head(stdout, RESULT_MAX + 1, &mut result);
            let (result, error, ()) = tokio::join!(result, tail(stderr, &mut error, std::io::stderr()), feed);
            result.and(error)
        };
        let status = {
            let mut streams = std::pin::pin!(streams);
            tokio::select! {
                read = &mut streams => {
                    read?;
                    None
                }
                status = self.child.wait() => {
                    // What it has left running in its group holds the streams open.
                    kill(self.group);
                    if let Ok(read) = tokio::time::timeout(LAST_OUTPUT, streams).await {
                        read?;
                    }
                    Some(status?)
                }
            }
        };
        if result.len() > RESULT_MAX {
            kill(self.group);
        }
        let status = match status {
            Some(status) => status,
            None => self.child.wait().await?,
        };
        Ok(Ran { status, result, error })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Also after a good end: what the command has left running in its group would hold nobody knows what.
        kill(self.group);
    }
}

impl Ran {
    fn failure(&self) -> TaskFailure {
        if self.status.success() {
            return TaskFailure::permanent(format!("the result is longer than {RESULT_MAX} bytes"));
        }
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended without an exit code".into(),
        };
        let tail = String::from_utf8_lossy(&self.error);
        let text = match tail.trim_end() {
            "" => how,
            tail => format!("{how}: {tail}"),
        };
        if self.status.code() == Some(DATA_ERROR) {
            TaskFailure::permanent(text)
        } else {
            TaskFailure::retryable(text)
        }
    }
}

fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        // Everybody in it may be gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Takes the first `max` bytes of a stream.
async fn head(from: Option<impl AsyncRead + Unpin>, max: usize, into: &mut Vec<u8>) -> std::io::Result<()> {
    if let Some(from) = from {
        from.take(max as u64).read_to_end(into).await?;
    }
    Ok(())
}

/// Passes a stream on; keeps its end.
async fn tail(
    from: Option<impl AsyncRead + Unpin>,
    end: &mut Vec<u8>,
    mut to: impl std::io::Write,
) -> std::io::Result<()> {
    let mut chunk = [0; 4096];
    let Some(mut from) = from else { return Ok(()) };
    loop {
        let n = from.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        // Losing a line of somebody's log must not fail the task.
        let _ = to.write_all(&chunk[..n]);
        end.extend_from_slice(&chunk[..n]);
        end.drain(..end.len().saturating_sub(ERROR_TAIL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(wait_status: i32, error: &str) -> TaskFailure {
        Ran { status: ExitStatus::from_raw(wait_status), result: Vec::new(), error: error.into() }.failure()
    }

    #[test]
    fn exit_codes_decide_what_becomes_of_the_task() {
        assert_eq!(ran(65 << 8, "bad data\n"), TaskFailure::permanent("exit code 65: bad data"));
        assert_eq!(ran(75 << 8, ""), TaskFailure::retryable("exit code 75"));
        assert_eq!(ran(9, "x"), TaskFailure::retryable("killed by signal 9: x"));
    }

    #[tokio::test]
    async fn the_end_of_standard_error_is_kept() {
        let text: Vec<u8> = (0..20_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
        let (mut end, mut passed_on, mut first) = (Vec::new(), Vec::new(), Vec::new());
        tail(Some(&text[..]), &mut end, &mut passed_on).await.expect("read");
        assert!(passed_on == text && end == text[text.len() - ERROR_TAIL..]);
        head(Some(&text[..]), 10, &mut first).await.expect("read");
        assert_eq!(first, text[..10]);
    }
}
