//! What is measured of a system, one run at a time: its server starts with the run and ends with it.

mod conns;
mod durable;
mod load;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cores;
use crate::http;
use crate::report::Report;
use crate::run::Engine;
use crate::server::Server;
use crate::system::{self, Durability, Job, Kind, Name, Role, Setup, System};
use durable::Floor;
use load::{Measured, Pace};

/// How long clients may take to log in.
const LOGIN: Duration = Duration::from_secs(10);
/// Bytes under way in a closed loop of publish/subscribe unless said otherwise: enough to fill the pipe, little enough
/// that no system drops or leaves its caches.
const PUBSUB_BYTES: usize = 1024 * 1024;
/// Result of a task, bytes.
const RESULT_BYTES: usize = 64;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Scenario {
    /// Messages a second from publishers to subscribers; several subscribers share them as a queue group.
    Pubsub,
    /// One task in flight: from before the write of its submission until a worker has parsed it.
    Rtt,
    /// The full cycle of a task: submit, assign, complete, result pushed.
    Task,
    /// Memory of idle connections, or of waiting tasks.
    Conns,
}

impl Scenario {
    /// The name on the command line and in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pubsub => "pubsub",
            Self::Rtt => "rtt",
            Self::Task => "task",
            Self::Conns => "conns",
        }
    }

    /// The kind of work.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Pubsub => Kind::PubSub,
            Self::Rtt | Self::Task | Self::Conns => Kind::Task,
        }
    }
}

/// Publishers and subscribers, or submitters and workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) producers: usize,
    pub(crate) consumers: usize,
}

impl std::str::FromStr for Counts {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse().ok().filter(|n| (1..=1000).contains(n));
        match s.split_once('+').map(|(p, c)| (number(p), number(c))) {
            Some((Some(producers), Some(consumers))) => Ok(Self { producers, consumers }),
            _ => Err("write it as PRODUCERS+CONSUMERS, each 1 to 1,000, for example 4+4".into()),
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.producers, self.consumers)
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) system: Name,
    pub(crate) setup: Setup,
    pub(crate) clients: Counts,
    pub(crate) size: usize,
    pub(crate) in_flight: Option<usize>,
    pub(crate) rate: Option<f64>,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) connections: usize,
    pub(crate) waiting: Option<usize>,
    /// The waiting tasks are done afterwards.
    pub(crate) drain: bool,
}

impl Plan {
    fn in_flight(&self) -> usize {
        match self.scenario {
            Scenario::Rtt => 1,
            Scenario::Task | Scenario::Conns => self.in_flight.unwrap_or(512),
            Scenario::Pubsub => self.in_flight.unwrap_or_else(|| (PUBSUB_BYTES / self.size).clamp(64, 8192)),
        }
    }

    fn pace(&self) -> Pace {
        self.rate.map_or(Pace::Closed(self.in_flight()), Pace::Open)
    }

    fn job(&self) -> Job {
        let Counts { producers, consumers } = self.clients;
        // In an open loop nothing may hold work back that the rate has sent.
        let in_flight = if self.rate.is_some() { self.in_flight().max(4096) } else { self.in_flight() };
        Job {
            kind: self.scenario.kind(),
            producers,
            consumers,
            size: self.size,
            result_size: RESULT_BYTES,
            in_flight,
        }
    }

    /// The parameters as they stand in JSON.
    pub(crate) fn params(&self) -> Value {
        let (durability, cores) = (self.setup.durability.as_str(), self.setup.cores.as_str());
        match (self.scenario, self.waiting) {
            (Scenario::Conns, Some(waiting)) => {
                json!({ "waiting": waiting, "size": self.size, "durability": durability, "cores": cores })
            }
            (Scenario::Conns, None) => json!({ "connections": self.connections, "cores": cores }),
            _ => {
                let mut params = json!({
                    "clients": self.clients.to_string(),
                    "size": self.size,
                    "duration_s": self.duration.as_secs_f64(),
                    "durability": durability,
                    "cores": cores,
                });
                match self.pace() {
                    Pace::Closed(n) => params["in_flight"] = n.into(),
                    Pace::Open(rate) => params["rate"] = rate.into(),
                }
                if self.scenario != Scenario::Pubsub {
                    params["result_size"] = RESULT_BYTES.into();
                }
                params
            }
        }
    }
}

/// A system that cannot do what was asked: a fact to report, not a failure.
#[derive(Debug)]
pub(crate) struct Unsupported(String);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsupported {}

/// Runs a plan.
///
/// # Errors
/// [`Unsupported`], [`crate::server::Missing`], or whatever went wrong.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    ensure!((system::PAYLOAD_MIN..=128 * 1024).contains(&plan.size), "--size is 16 to 131,072 bytes");
    check_support(plan)?;
    let system = plan.system.system(&plan.setup)?;
    plan.setup.cores.take_own()?;
    match plan.scenario {
        Scenario::Conns => conns::run(plan, &*system),
        _ => load(plan, &*system),
    }
}

/// Whether the system can do what the plan asks at all, judged without starting it.
///
/// # Errors
/// [`Unsupported`].
pub(crate) fn check_support(plan: &Plan) -> Result<()> {
    let system = plan.system.system(&plan.setup)?;
    if plan.waiting.is_some() && !system.keeps_tasks() {
        return Err(Unsupported("it keeps no tasks waiting".into()).into());
    }
    let (kind, durability) = (plan.scenario.kind(), plan.setup.durability);
    let Some(reason) = system.refuses(kind, durability) else { return Ok(()) };
    // What it can do otherwise is told apart from what it cannot do at all.
    let otherwise = durability != Durability::Memory && system.refuses(kind, Durability::Memory).is_none();
    let reason = match otherwise {
        true => format!("not applicable to durability {}: {reason}", durability.as_str()),
        false => reason.to_owned(),
    };
    Err(Unsupported(reason).into())
}

fn load(plan: &Plan, system: &dyn System) -> Result<Report> {
    let mut server = system.start(&plan.setup)?;
    drive(plan, system, &server).map_err(|e| server.explain(e))
}

fn drive(plan: &Plan, system: &dyn System, server: &Server) -> Result<Report> {
    let job = plan.job();
    system.prepare(server, &job, plan.setup.durability)?;
    let mut engine = Engine::new()?;
    let mut producers = Vec::new();
    for (role, client) in system.clients(&job) {
        let number = engine.connect(server.addr, client)?;
        if role == Role::Producer {
            producers.push(number);
        }
    }
    engine.until("login of all clients", LOGIN, |e| e.ready(0))?;
    ensure!(!producers.is_empty(), "no producers");
    let mut floor = Floor::of(plan, server)?;
    let measured = load::run(&mut engine, server, &producers, plan, floor.as_mut())?;
    durable::check(plan, &engine.tally)?;
    let mut report = summarise(plan, &mut engine, &measured);
    report.rss_peak_bytes = server.memory()?.1;
    durable::describe(plan, server, floor, &mut engine.tally, &mut report)?;
    if plan.system == Name::Hive && plan.scenario == Scenario::Task && plan.rate.is_some() {
        report.set("decisions", http::decisions(server).context("reading the server's status")?);
    }
    Ok(report)
}

fn summarise(plan: &Plan, engine: &mut Engine, m: &Measured) -> Report {
    let tally = &mut engine.tally;
    let mut report = Report::new(plan);
    let seconds = if plan.rate.is_some() { plan.duration.as_secs_f64() } else { m.seconds };
    report.rate_per_s = m.operations as f64 / seconds;
    report.server_cpu_us_per_op = m.server_cpu * 1e6 / (m.operations.max(1)) as f64;
    let lane = if plan.scenario == Scenario::Rtt { &mut tally.assigned } else { &mut tally.done };
    report.latency_us = Some([0.5, 0.99, 0.999].map(|q| lane.quantile_us(q)));
    report.set("max_us", lane.max_us());
    if plan.scenario == Scenario::Rtt {
        report.set("cycle_p50_us", tally.done.quantile_us(0.5));
        report.set("cycle_p99_us", tally.done.quantile_us(0.99));
    }
    if plan.scenario == Scenario::Task {
        report.set("assigned_p50_us", tally.assigned.quantile_us(0.5));
        report.set("assigned_p99_us", tally.assigned.quantile_us(0.99));
    }
    report.set("operations", m.operations);
    report.set("seconds", m.seconds);
    report.set("bytes_per_s", report.rate_per_s * plan.size as f64);
    report.set("server_busy", m.server_cpu / m.seconds);
    report.set("generator_busy", m.generator_cpu / m.seconds);
    report.set("generator_cpu_us_per_op", m.generator_cpu * 1e6 / m.operations.max(1) as f64);
    if let Some(durability) = tally.durability {
        report.set("durability_acknowledged", durability.name());
    }
    if plan.rate.is_some() {
        report.set("lost", m.lost);
        report.set("send_lag_p99_us", m.send_lag_p99_us);
    } else if tally.dropped > 0 {
        report.set("lost", tally.dropped);
    }
    report.set("generator_bound", generator_bound(plan, m));
    report
}

/// Whether the figure says more about the generator than about the server.
///
/// Closed loop: the generator's thread had hardly a pause while the server did not use what was left of the machine.
/// Open loop: the generator spins by design, so what counts is whether it sent late.
fn generator_bound(plan: &Plan, m: &Measured) -> bool {
    let useful = cores::left_to_servers() as f64;
    let server_idle = m.server_cpu / m.seconds < 0.9 * useful;
    match plan.rate {
        None => m.generator_cpu / m.seconds > 0.9 && server_idle,
        Some(_) => m.send_lag_p99_us > 1000.0 && server_idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(server_cpu: f64, generator_cpu: f64, send_lag_p99_us: f64) -> Measured {
        Measured { seconds: 1.0, operations: 1, server_cpu, generator_cpu, lost: 0, send_lag_p99_us }
    }

    fn plan(rate: Option<f64>) -> Plan {
        Plan {
            scenario: Scenario::Pubsub,
            system: Name::Nats,
            setup: Setup {
                durability: Durability::Memory,
                hive: None,
                cores: cores::Cores::Apart,
                disk: None,
            },
            clients: "4+2".parse().expect("counts"),
            size: 1024,
            in_flight: None,
            rate,
            duration: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            connections: 1,
            waiting: None,
            drain: false,
        }
    }

    #[test]
    fn the_generator_says_when_it_is_the_bottleneck() {
        assert!(generator_bound(&plan(None), &measured(0.5, 0.95, 0.0)));
        assert!(!generator_bound(&plan(None), &measured(0.5, 0.5, 0.0)));
        assert!(!generator_bound(&plan(None), &measured(1000.0, 0.95, 0.0)));
        assert!(!generator_bound(&plan(Some(1.0)), &measured(0.1, 1.0, 3.0)));
        assert!(generator_bound(&plan(Some(1.0)), &measured(0.1, 1.0, 5000.0)));
    }

    #[test]
    fn counts_are_read_and_params_are_named() {
        assert!("4".parse::<Counts>().is_err() && "0+1".parse::<Counts>().is_err());
        let params = plan(None).params();
        assert_eq!((&params["clients"], &params["in_flight"]), (&json!("4+2"), &json!(1024)));
        assert_eq!(plan(Some(50.0)).params()["rate"], json!(50.0));
    }

    #[test]
    fn refusals_are_told_apart() {
        let mut plan = plan(None);
        plan.system = Name::Gearman;
        let error = run(&plan).expect_err("no publish/subscribe");
        assert!(error.downcast_ref::<Unsupported>().is_some());
    }
}
