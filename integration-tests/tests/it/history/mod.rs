//! Histories: clients record what they did and saw while the server is killed, stopped and made to panic, and a checker that knows
//! nothing of the server says which promise was broken.
//!
//! | file | what |
//! |---|---|
//! | `record` | what is written down |
//! | `link` | a connection that writes it down |
//! | `load` | submitters, workers and watchers |
//! | `torture` | lives of a server under load |
//! | `check` | the promises |
//! | `planted` | bugs that must be found |

mod check;
mod link;
mod load;
mod planted;
mod record;
#[cfg(test)]
mod tests;
mod torture;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use torture::{Options, run};

/// A number from the environment, or what stands for it.
fn setting<T: std::str::FromStr>(name: &str, usual: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(usual)
}

fn options(cycles: u32) -> Options {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Options {
        seed: setting("HIVE_TORTURE_SEED", now.as_micros() as u64),
        cycles: setting("HIVE_TORTURE_CYCLES", cycles),
        shards: setting("HIVE_TORTURE_SHARDS", setting("HIVE_TEST_SHARDS", 1)),
        spill: setting("HIVE_TORTURE_SPILL", false),
        calm_every: setting("HIVE_TORTURE_CALM_EVERY", 10),
        check_every: setting("HIVE_TORTURE_CHECK_EVERY", 5),
        patience: Duration::from_millis(setting("HIVE_TORTURE_PATIENCE_MS", 20_000)),
        synced: std::env::var_os("HIVE_PLANT_SYNCED").map(Into::into),
        progress: false,
    }
}

fn passes(options: &Options) {
    let began = Instant::now();
    let report = run(options);
    let Options { seed, shards, cycles, .. } = options;
    let spill = if options.spill { " --spill" } else { "" };
    let rerun = format!("cargo xtask torture --seed {seed} --shards {shards} --cycles {cycles}{spill}");
    let (cycles, s) = (report.cycles, began.elapsed().as_secs());
    println!("{cycles} kills, {} tasks, {} events in {s} s", report.tasks, report.events);
    report.census.iter().for_each(|(what, n)| println!("{n:>8} {what}"));
    if !report.violations.is_empty() {
        let rules: BTreeSet<_> = report.violations.iter().map(|v| v.rule).collect();
        let rules: Vec<_> = rules.into_iter().collect();
        println!("caught {} after {cycles}", rules.join(" "));
        for v in report.violations.iter().take(20) {
            println!("{}: {}", v.rule, v.text);
        }
        panic!(
            "{} promises were broken; the same dice, if not the same times: {rerun}",
            report.violations.len()
        );
    }
}

/// kill -9 under mixed load, again and again, with tasks in memory and with tasks on disk.
#[test]
fn fifty_kills() {
    for spill in [false, true] {
        passes(&Options { spill, ..options(25) });
    }
}

/// `cargo xtask torture`: as many as were asked for, each server for a hundred of them.
#[test]
#[ignore = "as long as asked for: cargo xtask torture"]
fn torture() {
    let mut options = Options { progress: true, ..options(200) };
    let mut left = options.cycles;
    while left > 0 {
        options.cycles = left.min(100);
        passes(&options);
        left -= options.cycles;
        options.seed = options.seed.wrapping_add(1);
    }
}
