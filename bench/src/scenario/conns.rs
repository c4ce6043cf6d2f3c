//! Memory: what an idle connection costs the server, and what a waiting task does.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{LOGIN, Plan};
use crate::measure::own_cpu;
use crate::report::Report;
use crate::run::{Engine, Stamps};
use crate::server::Server;
use crate::system::{Job, System};

/// Time for a server to come to rest before memory is read: collectors run, buffers of idle clients are trimmed.
const REST: Duration = Duration::from_secs(6);
/// Tasks that are submitted and not yet acknowledged.
const UNACKNOWLEDGED: u64 = 1024;

pub(super) fn run(plan: &Plan, system: &dyn System) -> Result<Report> {
    let mut server = system.start(&plan.setup)?;
    let report = match plan.waiting {
        Some(count) => waiting(plan, system, &server, count as u64),
        None => idle(plan, system, &server),
    };
    report.map_err(|e| server.explain(e))
}

fn idle(plan: &Plan, system: &dyn System, server: &Server) -> Result<Report> {
    let mut engine = Engine::new()?;
    // The first connections pay for what the server sets up once.
    for _ in 0..8 {
        engine.connect(server.addr, system.idle())?;
    }
    engine.until("login", LOGIN, |e| e.ready(0))?;
    rest(&mut engine)?;
    let meter = Meter::start(server)?;
    for _ in 0..plan.connections {
        let begin = engine.now();
        let number = engine.connect(server.addr, system.idle())?;
        engine.until("login of an idle client", LOGIN, |e| e.ready(number))?;
        let now = engine.now();
        engine.tally.done.hit(begin, now);
    }
    let mut report = meter.stop(plan, server, &mut engine, plan.connections as u64, "connection")?;
    report.latency_us = Some([0.5, 0.99, 0.999].map(|q| engine.tally.done.quantile_us(q)));
    Ok(report)
}

fn waiting(plan: &Plan, system: &dyn System, server: &Server, count: u64) -> Result<Report> {
    let Job { kind, producers, size, result_size, .. } = plan.job();
    let job = Job { kind, producers, consumers: 0, size, result_size, in_flight: UNACKNOWLEDGED as usize };
    system.prepare(server, &job, plan.setup.durability)?;
    let mut engine = Engine::new()?;
    let clients = system.clients(&job);
    let links =
        clients.into_iter().map(|(_, c)| engine.connect(server.addr, c)).collect::<Result<Vec<_>>>()?;
    engine.until("login", LOGIN, |e| e.ready(0))?;
    rest(&mut engine)?;
    let meter = Meter::start(server)?;
    let (mut sent, mut turn) = (0, 0);
    engine.until("submission of all tasks", Duration::from_secs(600), |e| {
        let room = UNACKNOWLEDGED.saturating_sub(sent - e.tally.accepted).min(count - sent);
        // Half a window at a time: large batches, and the server never waits.
        if room >= UNACKNOWLEDGED / 2 || room == count - sent {
            let stamps = Stamps { first: e.now() as f64, period: 0.0, count: room as usize };
            sent += e.produce(links[turn % links.len()], stamps) as u64;
            turn += 1;
        }
        e.tally.accepted >= count
    })?;
    super::durable::check(plan, &engine.tally)?;
    let mut report = meter.stop(plan, server, &mut engine, count, "task")?;
    if plan.drain {
        drain(plan, system, server, &mut engine, count, &mut report)?;
    }
    Ok(report)
}

/// Has all tasks done, and their results pushed to who submitted them.
fn drain(
    plan: &Plan,
    system: &dyn System,
    server: &Server,
    engine: &mut Engine,
    count: u64,
    report: &mut Report,
) -> Result<()> {
    let (begin, cpu) = (Instant::now(), server.cpu()?);
    for (_, client) in system.clients(&Job { producers: 0, ..plan.job() }) {
        engine.connect(server.addr, client)?;
    }
    engine.until("the results of all tasks", Duration::from_secs(600), |e| e.tally.done.count() >= count)?;
    let cpu = (server.cpu()? - cpu).as_secs_f64();
    report.set("drained_per_s", count as f64 / begin.elapsed().as_secs_f64());
    report.set("drain_cpu_us_per_op", cpu * 1e6 / count as f64);
    report.rss_peak_bytes = server.memory()?.1;
    Ok(())
}

fn rest(engine: &mut Engine) -> Result<()> {
    let end = Instant::now() + REST;
    // Turning, not sleeping: heartbeats go on.
    engine.until("rest", REST * 2, |_| Instant::now() >= end)
}

struct Meter {
    begin: Instant,
    memory: u64,
    cpu: Duration,
    own: Duration,
}

impl Meter {
    fn start(server: &Server) -> Result<Self> {
        let (begin, own) = (Instant::now(), own_cpu());
        Ok(Self { begin, own, memory: server.memory()?.0, cpu: server.cpu()? })
    }

    fn stop(
        self,
        plan: &Plan,
        server: &Server,
        engine: &mut Engine,
        count: u64,
        what: &str,
    ) -> Result<Report> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let cpu = (server.cpu()? - self.cpu).as_secs_f64();
        let busy = (own_cpu() - self.own).as_secs_f64() / seconds;
        rest(engine)?;
        let (now, peak) = server.memory()?;
        let mut report = Report::new(plan);
        report.rate_per_s = count as f64 / seconds;
        report.server_cpu_us_per_op = cpu * 1e6 / count as f64;
        report.rss_peak_bytes = peak;
        report.set("rss_bytes", now);
        report.set("rss_before_bytes", self.memory);
        report.set(&format!("rss_bytes_per_{what}"), now.saturating_sub(self.memory) as f64 / count as f64);
        report.set("generator_busy", busy);
        report.set("generator_bound", false);
        Ok(report)
    }
}
