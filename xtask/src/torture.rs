//! `cargo xtask torture`: servers that are killed under load, and the checker of `integration-tests/tests/it/history`.

use anyhow::Result;

use crate::shell::{cargo, run as sh, target_dir};

/// What to do to the server.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Times that the server is killed; a new journal for each hundred.
    #[arg(long, default_value_t = 200)]
    cycles: u32,
    /// Seed of the dice; made up where it is not given, and printed if something is found.
    #[arg(long)]
    seed: Option<u64>,
    /// Shards of the server.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Tasks wait on disk, in small segments, and snapshots come often.
    #[arg(long)]
    spill: bool,
    /// The release profile.
    #[arg(long)]
    release: bool,
    /// Holds the checker to bugs that are planted: each must be found. `--planted=NAME,NAME` for some of them.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "", value_name = "NAMES")]
    planted: Option<String>,
}

/// Builds what is needed and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.planted {
        Some(names) => planted(names),
        None => torture(args),
    }
}

fn torture(args: &Args) -> Result<()> {
    let release = args.release.then_some("--release");
    sh(&mut cargo(["build", "--package", "hive-bus", "--bin", "hive"].into_iter().chain(release)))?;
    let profile = if args.release { "release" } else { "debug" };
    let mut test = tests("history::torture", &["--exact"]);
    test.env("HIVE_BIN", target_dir().join(profile).join("hive"))
        .env("HIVE_TORTURE_CYCLES", args.cycles.to_string())
        .env("HIVE_TORTURE_SHARDS", args.shards.to_string())
        .env("HIVE_TORTURE_SPILL", args.spill.to_string());
    if let Some(seed) = args.seed {
        test.env("HIVE_TORTURE_SEED", seed.to_string());
    }
    sh(&mut test)
}

/// The server with planted bugs goes into a folder of its own, so that nobody takes it for a good one.
fn planted(names: &str) -> Result<()> {
    let folder = target_dir().join("planted");
    let args = ["build", "--package", "hive-bus", "--bin", "hive", "--features", "planted-bugs"];
    sh(cargo(args).arg("--target-dir").arg(&folder))?;
    let only = if names.is_empty() { "history::planted" } else { "history::planted::planted_bugs_are_found" };
    let mut test = tests(only, &["--test-threads=1"]);
    sh(test.env("HIVE_PLANTED_BIN", folder.join("debug/hive")).env("HIVE_PLANTED_ONLY", names))
}

fn tests(name: &str, more: &[&str]) -> std::process::Command {
    let args = ["test", "--quiet", "--package", "hive-integration-tests", "--test", "it"];
    cargo(args.iter().chain(&["--", "--ignored", "--nocapture"]).chain(&[name]).chain(more))
}
