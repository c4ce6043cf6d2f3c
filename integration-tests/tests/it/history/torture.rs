//! Lives of a server, one after the other on the same data, each under load and each ended by kill -9. Between them the histories
//! of all clients are checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hive_proto::TaskId;
use rustix::process::Signal;

use super::check::{Stage, Violation, census, check};
use super::link::Link;
use super::load::{DRAIN, Dice, END, Fleet, LOAD, QUEUES, SETTLED, Site, submitter, watcher, worker};
use crate::harness::Server;

/// Tasks of one query.
const QUERY: usize = 2_000;

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) seed: u64,
    /// Lives that end with kill -9.
    pub(super) cycles: u32,
    pub(super) shards: usize,
    /// Tasks wait on disk, in small segments, and snapshots come often.
    pub(super) spill: bool,
    /// After so many of them the load is worked off and everybody must have been told.
    pub(super) calm_every: u32,
    pub(super) check_every: u32,
    /// How long a client waits for an answer.
    pub(super) patience: Duration,
    /// What a power loss leaves: written by a server with planted bugs. Where it is given, each kill takes the power, too.
    pub(super) synced: Option<PathBuf>,
    pub(super) progress: bool,
}

/// What a torture has come to.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) cycles: u32,
    pub(super) tasks: u64,
    pub(super) events: usize,
    pub(super) census: BTreeMap<String, usize>,
    pub(super) violations: Vec<Violation>,
}

/// Runs the lives, until they are over or a promise is broken.
pub(super) fn run(options: &Options) -> Report {
    let fleet = Fleet::new(options.patience);
    let mut dice = Dice(options.seed);
    let mut report = Report::default();
    let mut server = Server::with(&config(options.shards, options.spill));
    let began = Instant::now();
    while report.cycles < options.cycles {
        report.cycles += 1;
        let kills = report.cycles;
        life(&fleet, &server, &mut dice, End::Killed);
        let Some(next) = started_again(server, options) else {
            let text = "the server does not start on its own data".into();
            report.violations.push(Violation { rule: "no_start", text });
            break;
        };
        server = next;
        ask_some(&fleet, &server, &mut dice);
        let last = kills == options.cycles;
        let mut look = last || kills.is_multiple_of(options.check_every);
        if last || kills.is_multiple_of(options.calm_every) {
            life(&fleet, &server, &mut dice, End::Calm);
            look = true;
        }
        if look {
            report.violations = fleet.log.with(|events| check(events, Stage::Running));
        }
        if last && report.violations.is_empty() {
            ask_all(&fleet, &server);
            report.violations = fleet.log.with(|events| check(events, Stage::Over));
        }
        (report.tasks, report.events) = (fleet.submitted(), fleet.log.with(<[_]>::len));
        if options.progress {
            let (n, all, tasks, s) = (kills, options.cycles, report.tasks, began.elapsed().as_secs());
            eprint!("\r{n}/{all} kills, {tasks} tasks, {} events, {s} s ", report.events);
        }
        if !report.violations.is_empty() {
            break;
        }
    }
    if options.progress {
        eprintln!();
        report.census = fleet.log.with(census);
    }
    report
}

fn config(shards: usize, spill: bool) -> String {
    // Every result is asked for in the end: all of them are in memory, or next to none.
    let results = if spill { 20_000 } else { 190_000_000 };
    let mut text = format!(
        "faults = true\nshards = {shards}\nlimits.results_bytes_max = {results}\nqueue_defaults.durability = \"journal\"\n"
    );
    if spill {
        text += "limits.message_bytes_max = 4194304\njournal.segment_bytes = 8388608\njournal.snapshot_bytes = 300000\n\
                 journal.spill_bytes = 1\n";
    }
    for q in &QUEUES {
        text += &format!(
            "[[queues]]\nname = {:?}\nlease_ms = {}\nattempts_max = {}\nretry_delay_ms = {}\n",
            q.name, q.lease_ms, q.attempts_max, q.retry_delay_ms
        );
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// In the middle of everything.
    Killed,
    /// Everything was worked off and told.
    Calm,
}

/// A server's life under load, with a fault or two.
fn life(fleet: &Fleet, server: &Server, dice: &mut Dice, end: End) {
    let site = Site { fleet, phase: AtomicU8::new(LOAD) };
    fleet.open_are(unfinished(server) as i64);
    let mut seeds = || Dice(dice.roll());
    let mut more = seeds();
    std::thread::scope(|threads| {
        let site = &site;
        for n in 0..3 {
            let (a, b) = (seeds(), seeds());
            if n < 2 {
                threads.spawn(move || submitter(site, server, a));
            }
            let labels = if n == 0 { &["gpu"][..] } else { &[] };
            threads.spawn(move || worker(site, server, b, labels));
        }
        let dice = seeds();
        threads.spawn(move || watcher(site, server, dice));
        let dice = &mut more;
        pass(dice.between(100, 400));
        fault(server, dice, end);
        match end {
            End::Killed => {
                pass([0, dice.below(20), dice.below(150)][dice.below(3) as usize]);
                server.signal(Signal::KILL);
            }
            End::Calm => {
                pass(100);
                site.phase.store(DRAIN, Ordering::Relaxed);
                let began = Instant::now();
                // Longer than any delay or lease; what is not worked off then, the checker finds.
                let hangs = || fleet.gave_up.load(Ordering::Relaxed) || began.elapsed() > 3 * fleet.patience;
                while unfinished(server) > 0 && !hangs() {
                    pass(10);
                }
                site.phase.store(SETTLED, Ordering::Relaxed);
                return;
            }
        }
        site.phase.store(END, Ordering::Relaxed);
    });
}

fn fault(server: &Server, dice: &mut Dice, end: End) {
    // Where nobody is killed, everybody can find out what a panic does: there is always one.
    let which = if end == End::Calm { dice.between(12, 58) } else { dice.below(100) };
    match which {
        0..12 => {
            server.signal(Signal::STOP);
            pass(dice.between(20, 200));
            server.signal(Signal::CONT);
        }
        12..28 => server.panic("dispatcher"),
        28..46 => server.panic("journaler"),
        46..49 => server.panic("hub"),
        49..58 => {
            server.panic("journaler");
            server.panic("dispatcher");
        }
        _ => return,
    }
    pass(dice.between(0, 60));
}

/// Tasks that have no outcome.
fn unfinished(server: &Server) -> u64 {
    let (code, body) = server.get("/v1/status");
    let status: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let Some(queues) = status["queues"].as_array().filter(|q| code == 200 && !q.is_empty()) else {
        return 1; // the dispatcher is being made anew
    };
    let open = ["waiting", "scheduled", "running"];
    queues.iter().flat_map(|q| open.map(|key| q[key].as_u64().unwrap_or(1))).sum()
}

fn started_again(mut server: Server, options: &Options) -> Option<Server> {
    server.exit();
    if let Some(path) = &options.synced {
        lose_power(path);
    }
    // The harness gives up on a server that does not start.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.started_again())).ok()
}

/// Cuts the journal to what was synced.
fn lose_power(synced: &PathBuf) {
    let text = std::fs::read_to_string(synced).expect("the server tells what it has synced");
    let (end, segment) = text.split_once(' ').expect("an offset and a file");
    let file = std::fs::OpenOptions::new().write(true).open(segment).expect("the segment");
    let end = end.parse().expect("an offset");
    if file.metadata().expect("its length").len() > end {
        file.set_len(end).expect("a shorter segment");
    }
}

/// All ids that somebody has heard of, in no order.
fn ids(fleet: &Fleet) -> Vec<TaskId> {
    use super::record::{Answer, What};
    let mut all: Vec<u64> = fleet.log.with(|events| {
        let of = |what: &What| match what {
            What::Submit { answer: Answer::Ok((ids, _)), .. } => ids.iter().map(|t| t.0).collect(),
            What::Assign { lease, .. } => vec![lease.task.0],
            What::Pushed(seen) => seen.iter().map(|s| s.task.0).collect(),
            _ => Vec::new(),
        };
        events.iter().flat_map(|e| of(&e.what)).collect()
    });
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(TaskId).collect()
}

/// A cheap look after each start: the youngest tasks, and some of all.
fn ask_some(fleet: &Fleet, server: &Server, dice: &mut Dice) {
    let all = ids(fleet);
    let young = &all[all.len().saturating_sub(QUERY)..];
    let mut some = young.to_vec();
    some.extend((0..QUERY.min(all.len())).map(|_| all[dice.below(all.len() as u64) as usize]));
    ask(fleet, server, &some, false);
}

fn ask_all(fleet: &Fleet, server: &Server) {
    ask(fleet, server, &ids(fleet), true);
}

fn ask(fleet: &Fleet, server: &Server, tasks: &[TaskId], dead: bool) {
    let site = Site { fleet, phase: AtomicU8::new(SETTLED) };
    let Some(mut link) = Link::open(&site, server, &[]) else { return };
    for part in tasks.chunks(QUERY) {
        link.query(part);
        link.catch_up();
    }
    if dead {
        QUEUES.iter().for_each(|q| link.list_dead(q.name));
        link.catch_up();
    }
}

fn pass(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
