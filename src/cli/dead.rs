//! `hive dead`: dead letters are listed, given all their attempts again, or forgotten.

use std::collections::HashSet;

use hive_client::{Client, Code, Outcome, TaskId};
use serde_json::{Map, json};

use super::failure::Failure;
use super::output;
use super::target::{Reach, Target};

/// Dead letters asked for at once: as many as an answer may have.
const LIST: u32 = 65_535;
/// Tasks that change at once.
const CHANGE: usize = 1024;

/// Options of `hive dead`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show dead letters and why they failed, the newest first.
    List {
        /// Queue.
        queue: String,
        /// Only those whose error has this text.
        #[arg(long = "match", value_name = "TEXT")]
        matching: Option<String>,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        reach: Reach,
    },
    /// Give dead letters all their attempts again.
    Redrive {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        reach: Reach,
    },
    /// Forget dead letters for ever.
    Purge {
        #[command(flatten)]
        which: Which,
        /// Do it; without this only their number is told.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Queue.
    queue: String,
    /// Ids of tasks.
    #[arg(conflicts_with_all = ["all", "matching"])]
    tasks: Vec<TaskId>,
    /// All of the queue.
    #[arg(long, conflicts_with = "matching")]
    all: bool,
    /// Those whose error has this text.
    #[arg(long = "match", value_name = "TEXT")]
    matching: Option<String>,
}

/// Runs it.
pub(crate) async fn run(a: Args) -> Result<(), Failure> {
    match a.what {
        What::List { queue, matching, limit, reach } => {
            list(&queue, matching.as_deref(), limit, &reach).await
        }
        What::Redrive { which, reach } => change(&which, &reach, Change::Redrive).await,
        What::Purge { which, yes, reach } => {
            change(&which, &reach, if yes { Change::Purge } else { Change::Count }).await
        }
    }
}

async fn list(queue: &str, matching: Option<&str>, limit: u32, reach: &Reach) -> Result<(), Failure> {
    let target = reach.target();
    let client = target.one_shot().await?;
    let asked = if matching.is_some() { LIST } else { limit };
    let (dead, all) = listed(&client, &target, queue, asked).await?;
    client.close().await;
    let shown = dead.iter().filter(|d| matches(d, matching)).take(limit as usize);
    for d in shown {
        if !reach.json {
            let line = format!("{}\t{}\t{}", d.task, d.attempt, error(d).replace(['\n', '\t'], " "));
            output::print_line(line.as_bytes())?;
            continue;
        }
        let mut object = Map::new();
        object.insert("task".into(), json!(d.task.to_string()));
        object.insert("attempt".into(), json!(d.attempt));
        object.insert("error".into(), json!(error(d)));
        output::json_line(&object)?;
    }
    if !all && (matching.is_some() || dead.len() < limit as usize) {
        eprintln!("only the newest {} were looked at", dead.len());
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Redrive,
    Purge,
    /// Nothing: their number is told.
    Count,
}

async fn change(which: &Which, reach: &Reach, change: Change) -> Result<(), Failure> {
    if which.tasks.is_empty() && !which.all && which.matching.is_none() {
        return Err(super::usage("dead", "give the ids of tasks, --match TEXT, or --all"));
    }
    let target = reach.target();
    let client = target.one_shot().await?;
    // What dies anew meanwhile is not of those that were meant.
    let (mut seen, mut done, mut refused) = (HashSet::new(), 0, 0);
    loop {
        let mut all = true;
        let some = match which.tasks.is_empty() {
            true => {
                let (dead, complete) = listed(&client, &target, &which.queue, LIST).await?;
                all = complete;
                let meant = dead.iter().filter(|d| matches(d, which.matching.as_deref()));
                meant.map(|d| d.task).filter(|t| seen.insert(*t)).collect()
            }
            false => which.tasks.iter().copied().filter(|t| seen.insert(*t)).collect::<Vec<_>>(),
        };
        if change == Change::Count {
            return count(&client, which, some.len(), all, reach.json).await;
        }
        for some in some.chunks(CHANGE) {
            let answers = match change {
                Change::Purge => client.purge(some).await,
                _ => client.redrive(some).await,
            };
            let answers = answers.map_err(|e| Failure::client("change dead letters", &target.server, &e))?;
            for (task, answer) in some.iter().zip(answers) {
                (done, refused) = if answer.is_ok() { (done + 1, refused) } else { (done, refused + 1) };
                let why = answer.err().map(|e| e.code().map_or_else(|| e.to_string(), |c| c.name().into()));
                tell(*task, why, reach.json)?;
            }
        }
        if all {
            break;
        }
        if some.is_empty() {
            eprintln!(
                "only the newest dead letters were looked at: older ones are behind more than one answer holds"
            );
            break;
        }
    }
    client.close().await;
    let what = if change == Change::Purge { "forgotten" } else { "waiting again" };
    eprintln!("{done} {} {what}", if done == 1 { "task" } else { "tasks" });
    match refused {
        0 => Ok(()),
        n => Err(Failure::new(format!("{n} tasks were refused"), "they are no dead letters")),
    }
}

async fn count(client: &Client, which: &Which, tasks: usize, all: bool, json: bool) -> Result<(), Failure> {
    client.close().await;
    if json {
        output::json_line(&json!({"queue": which.queue, "dead": tasks}))?;
    }
    let least = if all { "" } else { "at least " };
    Err(Failure::new(
        format!("{least}{tasks} dead letters of {} would be forgotten", which.queue),
        "nothing was done",
    )
    .next("add --yes to forget them for ever"))
}

fn tell(task: TaskId, refused: Option<String>, json: bool) -> Result<(), Failure> {
    match (json, refused) {
        (true, why) => output::json_line(&json!({"task": task.to_string(), "refused": why})),
        (false, None) => output::print_line(task.to_string().as_bytes()),
        (false, Some(why)) => {
            eprintln!("{task}: {why}");
            Ok(())
        }
    }
}

/// Dead letters, and whether there are no more than these.
async fn listed(
    client: &Client,
    target: &Target,
    queue: &str,
    mut limit: u32,
) -> Result<(Vec<Outcome>, bool), Failure> {
    loop {
        match client.list_dead(queue, limit).await {
            // Long errors: fewer of them in one answer.
            Err(e) if e.code() == Some(Code::MessageTooLarge) && limit > 1 => limit /= 2,
            Err(e) => return Err(Failure::client("list dead letters", &target.server, &e)),
            Ok(dead) => {
                let all = dead.len() < limit as usize;
                return Ok((dead, all));
            }
        }
    }
}

fn error(dead: &Outcome) -> String {
    String::from_utf8_lossy(&dead.result).into_owned()
}

fn matches(dead: &Outcome, text: Option<&str>) -> bool {
    text.is_none_or(|text| error(dead).contains(text))
}
