//! Producing for a while, in a closed loop (so many under way) or an open one (so many a second, come what may).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use super::Plan;
use super::durable::{Floor, PAUSES};
use crate::measure::own_cpu;
use crate::run::{Engine, Stamps};
use crate::server::Server;
use crate::system::Durability;

/// Silence after which what is under way is held for lost.
const SILENCE: Duration = Duration::from_secs(5);

/// How much is produced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// So many messages or tasks under way.
    Closed(usize),
    /// So many a second.
    Open(f64),
}

/// What a run gave, besides what is in the engine's tally.
#[derive(Debug)]
pub(super) struct Measured {
    /// Length of the measured part.
    pub(super) seconds: f64,
    /// Operations that were done in it; in an open loop, of those that were to be sent in it.
    pub(super) operations: u64,
    /// Processor seconds of the server and of the generator in it.
    pub(super) server_cpu: f64,
    pub(super) generator_cpu: f64,
    /// Open loop: messages that never came, and how late the generator sent, p99, µs.
    pub(super) lost: u64,
    pub(super) send_lag_p99_us: f64,
}

/// Produces for the plan's time to warm up and then for its duration, which is measured.
pub(super) fn run(
    engine: &mut Engine,
    server: &Server,
    producers: &[usize],
    plan: &Plan,
    floor: Option<&mut Floor>,
) -> Result<Measured> {
    let (pace, start) = (plan.pace(), engine.now());
    let from = start + plan.warm_up.as_nanos() as u64;
    let until = from + plan.duration.as_nanos() as u64;
    let acknowledged = plan.setup.durability == Durability::Journal;
    let mut producer = Producer::new(producers, pace, acknowledged, start);
    if let Pace::Open(_) = pace {
        engine.tally.done.restart(from, until);
        engine.tally.assigned.restart(from, until);
        engine.tally.acknowledged.restart(from, until);
    }
    producer.until(engine, from)?;
    if let Pace::Closed(_) = pace {
        engine.tally.done.restart(0, u64::MAX);
        engine.tally.assigned.restart(0, u64::MAX);
        engine.tally.acknowledged.restart(0, u64::MAX);
    }
    let (time, done) = (engine.now(), producer.ended(engine));
    let (server_cpu, generator_cpu) = (server.cpu()?, own_cpu());
    producer.lag.reset();
    let paused = match floor {
        Some(floor) => producer.with_pauses(engine, plan, floor, until)?,
        None => Duration::ZERO,
    };
    producer.until(engine, until + paused.as_nanos() as u64)?;
    let server_cpu = (server.cpu()? - server_cpu).as_secs_f64();
    let generator_cpu = (own_cpu() - generator_cpu).as_secs_f64();
    let seconds = (engine.now() - time) as f64 / 1e9 - paused.as_secs_f64();
    let mut operations = producer.ended(engine) - done;
    let mut lost = 0;
    if let Pace::Open(rate) = pace {
        lost = producer.drain(engine, until, rate)?;
        operations = engine.tally.done.recorded();
    }
    let send_lag_p99_us = producer.lag.value_at_quantile(0.99) as f64 / 1e3;
    Ok(Measured { seconds, operations, server_cpu, generator_cpu, lost, send_lag_p99_us })
}

struct Producer<'a> {
    links: &'a [usize],
    next: usize,
    pace: Pace,
    /// Whether an operation has to be acknowledged to its producer before it counts as ended.
    acknowledged: bool,
    start: u64,
    sent: u64,
    progress: (u64, u64),
    lag: Histogram<u64>,
}

impl<'a> Producer<'a> {
    fn new(links: &'a [usize], pace: Pace, acknowledged: bool, start: u64) -> Self {
        let lag = Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("constant bounds are valid");
        Self { links, next: 0, pace, acknowledged, start, sent: 0, progress: (start, 0), lag }
    }

    fn until(&mut self, engine: &mut Engine, end: u64) -> Result<()> {
        loop {
            let now = engine.now();
            if now >= end {
                return Ok(());
            }
            self.watch(engine, now)?;
            self.produce(engine, now);
            engine.flush()?;
            // An open loop must not sleep past the next intended time, and timers are coarser than that: it spins.
            let wait = match self.pace {
                Pace::Closed(_) => Duration::from_nanos(end - now).min(Duration::from_millis(100)),
                Pace::Open(_) => Duration::ZERO,
            };
            engine.turn(Some(wait))?;
        }
    }

    /// Produces until `end`, interrupted by measurements of the floor; gives the time that they took, which is still to
    /// be produced in.
    fn with_pauses(
        &mut self,
        engine: &mut Engine,
        plan: &Plan,
        floor: &mut Floor,
        end: u64,
    ) -> Result<Duration> {
        let (mut paused, step) = (Duration::ZERO, (plan.duration / PAUSES).as_nanos() as u64);
        for left in (0..u64::from(PAUSES)).rev() {
            self.until(engine, end - left * step + paused.as_nanos() as u64)?;
            // What is under way would wait through the pause.
            engine.until("end of what is under way", SILENCE, |e| self.under_way(e) == 0)?;
            let begin = Instant::now();
            floor.measure(plan)?;
            paused += begin.elapsed();
        }
        Ok(paused)
    }

    fn produce(&mut self, engine: &mut Engine, now: u64) {
        let (mut count, mut first, period) = match self.pace {
            Pace::Closed(window) => {
                (window as u64 - self.under_way(engine).min(window as u64), now as f64, 0.0)
            }
            Pace::Open(rate) => {
                let period = 1e9 / rate;
                let first = self.start as f64 + self.sent as f64 * period;
                (self.due(now, rate).saturating_sub(self.sent), first, period)
            }
        };
        if count == 0 {
            return;
        }
        if period > 0.0 {
            self.lag.saturating_record((now as f64 - first).max(1.0) as u64);
        }
        let share = count.div_ceil(self.links.len() as u64);
        for _ in 0..self.links.len() {
            let link = self.links[self.next];
            self.next = (self.next + 1) % self.links.len();
            let stamps = Stamps { first, period, count: share.min(count) as usize };
            let produced = engine.produce(link, stamps) as u64;
            self.sent += produced;
            count -= produced;
            first += period * produced as f64;
        }
    }

    /// Messages that should have been sent by `now`.
    fn due(&self, now: u64, rate: f64) -> u64 {
        ((now - self.start) as f64 * rate / 1e9) as u64
    }

    /// Operations that have ended. A result may come before the acknowledgement of its submission, which a durable
    /// system still owes.
    fn ended(&self, engine: &mut Engine) -> u64 {
        let done = engine.tally.done.count();
        if self.acknowledged { done.min(engine.tally.accepted) } else { done }
    }

    fn under_way(&self, engine: &mut Engine) -> u64 {
        self.sent.saturating_sub(self.ended(engine) + engine.tally.dropped)
    }

    /// Ends a run in which nothing moves any more. Acknowledgements count as well: a system that syncs for each task
    /// may acknowledge hundreds before the first result.
    fn watch(&mut self, engine: &mut Engine, now: u64) -> Result<()> {
        let moved = engine.tally.done.count() + engine.tally.accepted;
        if moved != self.progress.1 || self.under_way(engine) == 0 {
            self.progress = (now, moved);
        }
        let silent = Duration::from_nanos(now.saturating_sub(self.progress.0));
        let lost = self.under_way(engine);
        ensure!(silent < SILENCE, "nothing came for {} s with {lost} messages under way", SILENCE.as_secs());
        Ok(())
    }

    /// Sends what is owed until `until` and waits for what is under way; gives the number that never came.
    fn drain(&mut self, engine: &mut Engine, until: u64, rate: f64) -> Result<u64> {
        let mut last = (engine.now(), u64::MAX);
        loop {
            self.produce(engine, until);
            engine.flush()?;
            let missing = self.due(until, rate).saturating_sub(self.sent) + self.under_way(engine);
            if missing != last.1 {
                last = (engine.now(), missing);
            }
            if missing == 0 || engine.now() - last.0 > SILENCE.as_nanos() as u64 {
                return Ok(missing + engine.tally.dropped);
            }
            engine.turn(Some(Duration::from_millis(10)))?;
        }
    }
}
