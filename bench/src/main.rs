//! The load harness: drives Hive and its peers with one generator, and compares them side by side.

mod compare;
mod cores;
mod disk;
mod echo;
mod floor;
mod http;
mod measure;
mod report;
mod run;
mod scenario;
mod server;
mod system;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use cores::Cores;
use report::Report;
use scenario::{Counts, Plan, Scenario};
use system::{Durability, Name, Setup};

/// Measures Hive, its peers, and what the machine can do at all.
#[derive(Parser)]
#[command(name = "hive-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish/subscribe; several subscribers share the messages as a queue group.
    Pubsub(One),
    /// One task in flight: from before the write of its submission until a worker has parsed it.
    ///
    /// With `--durability journal` also until the submission is acknowledged (`ack_p50_us`, `ack_p99_us`), the whole
    /// cycle (`cycle_p50_us`), and, in pauses of the same run and in the server's folder, the least that this can cost:
    /// a written 4 KiB block overwritten and synced (`disk_sync_p50_us`, `disk_sync_p99_us`), an echo of `--size` bytes
    /// over TCP (`echo_p50_us`), writing 256 MiB in sequence (`disk_write_bytes_per_s`, once). `ack_over_floor` is the
    /// p50 of the acknowledgement over the sum of the first two medians; `ack_before_sync` says that it was less than
    /// the sync alone.
    Rtt(One),
    /// The full cycle of a task: submit, assign, complete, result pushed.
    ///
    /// With `--durability journal` also what Hive's journal takes for each (`journal_bytes_per_task`), what a plain program writes
    /// to the same folder in sequence, 256 MiB and one sync (`disk_write_bytes_per_s`, once), and how much of that the
    /// journal reaches (`journal_over_disk`).
    Task(One),
    /// Memory of idle connections, or of waiting tasks.
    Conns(One),
    /// A bare relay that only cuts and forwards frames: what the machine can do at all.
    Floor(Load),
    /// Hive and its peers, alternating; prints the ratios.
    ///
    /// With `--durability journal` each system syncs before it acknowledges: Redis `appendfsync always`, beanstalkd
    /// `-f0`, JetStream file storage with `sync_interval: always`. A task counts once its submission is acknowledged and
    /// its result is back. Peers without such a mode are reported as `unsupported`. Hive says in each acknowledgement
    /// what it promises; less than was asked for, or next to nothing written to the disk, is reported as `failed`.
    Compare(Compare),
    #[command(hide = true)]
    Relay,
    #[command(hide = true)]
    Launch {
        parent: u32,
        /// Separated by commas.
        cores: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
struct One {
    /// The system to drive.
    #[arg(long, value_enum, default_value = "hive")]
    system: Name,
    #[command(flatten)]
    load: Load,
}

#[derive(Args)]
struct Load {
    /// Publishers+subscribers, or submitters+workers [default: 1+1; compare: 1+1 and 4+4].
    #[arg(long)]
    clients: Option<Counts>,
    /// Payload, bytes [default: 128 for pubsub, else 256; compare pubsub: 16, 128, 1024, 16384].
    #[arg(long)]
    size: Option<usize>,
    /// Messages or tasks under way at once [default: 512 tasks, or 1 MiB of messages].
    #[arg(long)]
    in_flight: Option<usize>,
    /// Open loop: operations a second; latency then counts from the intended send time.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Measured time, seconds.
    #[arg(long, default_value = "5", value_parser = positive)]
    duration: f64,
    /// Time before it that does not count, seconds.
    #[arg(long, default_value = "1", value_parser = positive)]
    warm_up: f64,
    /// What acknowledgements must promise; `durability_acknowledged` is the least that Hive named.
    #[arg(long, value_enum, default_value = "memory")]
    durability: Durability,
    /// Whether the generator and the servers keep to cores of their own.
    #[arg(long, value_enum, default_value = "apart")]
    cores: Cores,
    /// journal: servers keep their data in a folder made here, which must be on a disk [default: the temporary
    /// directory, /var/tmp, or beside this binary: the first that is not in memory].
    #[arg(long)]
    disk: Option<PathBuf>,
    /// conns: idle connections.
    #[arg(long, default_value = "10000")]
    connections: usize,
    /// conns: this many waiting tasks instead of idle connections.
    #[arg(long)]
    waiting: Option<usize>,
    /// conns: then have the waiting tasks done.
    #[arg(long, requires = "waiting")]
    drain: bool,
    /// The server's binary [default: HIVE_BIN, else beside this one].
    #[arg(long)]
    hive: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Compare {
    /// What to compare.
    #[arg(long, value_enum)]
    scenario: Scenario,
    /// The peers, separated by commas; `floor` is one. `hive` is Hive in memory: what a journal costs.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "nats,jetstream,redis,gearman,beanstalkd"
    )]
    peers: Vec<Name>,
    /// Pairs of runs for each peer.
    #[arg(long, default_value = "5")]
    rounds: usize,
    #[command(flatten)]
    load: Load,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0).ok_or_else(|| "a positive number".into())
}

impl Load {
    fn plan(&self, scenario: Scenario, system: Name) -> Plan {
        Plan {
            scenario,
            system,
            setup: Setup {
                durability: self.durability,
                hive: self.hive.clone(),
                cores: self.cores,
                disk: self.disk.clone(),
            },
            clients: self.clients.unwrap_or(Counts { producers: 1, consumers: 1 }),
            size: self.size.unwrap_or(if scenario == Scenario::Pubsub { 128 } else { 256 }),
            in_flight: self.in_flight,
            rate: self.rate,
            duration: Duration::from_secs_f64(self.duration),
            warm_up: Duration::from_secs_f64(self.warm_up),
            connections: self.connections,
            waiting: self.waiting,
            drain: self.drain,
        }
    }
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hive-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Pubsub(one) => single(&one, Scenario::Pubsub),
        Command::Rtt(one) => single(&one, Scenario::Rtt),
        Command::Task(one) => single(&one, Scenario::Task),
        Command::Conns(one) => single(&one, Scenario::Conns),
        Command::Floor(load) => all_floors(&load),
        Command::Compare(compare) => compare_all(&compare),
        Command::Relay => floor::relay(),
        Command::Launch { parent, cores, command } => {
            let cores: Vec<usize> = cores.split(',').filter_map(|c| c.parse().ok()).collect();
            server::become_server(parent, &cores, &command)
        }
    }
}

fn single(one: &One, scenario: Scenario) -> Result<()> {
    print(&scenario::run(&one.load.plan(scenario, one.system))?, one.load.json, true);
    Ok(())
}

fn all_floors(load: &Load) -> Result<()> {
    for (i, work) in [Scenario::Rtt, Scenario::Task, Scenario::Pubsub].into_iter().enumerate() {
        let mut report = scenario::run(&load.plan(work, Name::Floor))?;
        report.part_of("floor");
        print(&report, load.json, i == 0);
    }
    Ok(())
}

fn compare_all(compare: &Compare) -> Result<()> {
    let mut failed = 0;
    for plan in plans(compare) {
        for peer in &compare.peers {
            let result = compare::compare(&plan, *peer, compare.rounds.max(1));
            failed += usize::from(result["status"] == "failed");
            println!("{}", if compare.load.json { result.to_string() } else { compare::row(&result) });
        }
    }
    anyhow::ensure!(failed == 0, "{failed} comparisons failed; their lines say why");
    Ok(())
}

/// The runs of a comparison: those sizes and numbers of clients that were not named.
fn plans(compare: &Compare) -> Vec<Plan> {
    let plan = compare.load.plan(compare.scenario, Name::Hive);
    let many = matches!(compare.scenario, Scenario::Pubsub | Scenario::Task);
    let clients = match compare.load.clients {
        None if many => [1, 4].map(|n| Counts { producers: n, consumers: n }).to_vec(),
        _ => vec![plan.clients],
    };
    let sizes = match (compare.scenario, compare.load.size, compare.load.rate) {
        (Scenario::Pubsub, None, None) => vec![16, 128, 1024, 16_384],
        (Scenario::Pubsub, None, Some(_)) => vec![256],
        _ => vec![plan.size],
    };
    let with = |c: &Counts, size: &usize| Plan { clients: *c, size: *size, ..plan.clone() };
    clients.iter().flat_map(|c| sizes.iter().map(move |s| with(c, s))).collect()
}

fn print(report: &Report, json: bool, title: bool) {
    if json {
        println!("{}", report.to_json());
    } else {
        if title {
            println!("{}", Report::title());
        }
        println!("{}", report.row());
    }
    warn(report);
}

/// Says what makes a figure doubtful.
fn warn(report: &Report) {
    if report.get("ack_before_sync") == Some(&true.into()) {
        eprintln!("half of the acknowledgements came sooner than a sync takes here");
    }
    if !report.generator_bound() {
        return;
    }
    match report.get("send_lag_p99_us") {
        Some(lag) => eprintln!(
            "the generator is the bottleneck: it sent late (p99 {lag} us), which the latencies include"
        ),
        None => eprintln!("the generator is the bottleneck: the server can do more than this"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    pub(crate) fn plan() -> Plan {
        let cli = Cli::try_parse_from(["hive-bench", "pubsub"]).expect("valid");
        match cli.command {
            Command::Pubsub(one) => one.load.plan(Scenario::Pubsub, one.system),
            _ => unreachable!("pubsub was asked for"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["hive-bench", "task", "--rate", "0"]).is_err());
        assert!(Cli::try_parse_from(["hive-bench", "task", "--clients", "4"]).is_err());
    }

    #[test]
    fn a_comparison_covers_sizes_and_clients() {
        let of = |args: &[&str]| match Cli::try_parse_from([&["hive-bench", "compare"], args].concat()) {
            Ok(Cli { command: Command::Compare(c) }) => {
                plans(&c).iter().map(|p| (p.clients.producers, p.size)).collect()
            }
            _ => Vec::new(),
        };
        assert_eq!(of(&["--scenario", "pubsub"]).len(), 8);
        assert_eq!(of(&["--scenario", "task"]), [(1, 256), (4, 256)]);
        assert_eq!(of(&["--scenario", "rtt", "--peers", "floor,nats"]), [(1, 256)]);
        assert_eq!(of(&["--scenario", "pubsub", "--size", "64", "--clients", "2+2"]), [(2, 64)]);
    }
}
