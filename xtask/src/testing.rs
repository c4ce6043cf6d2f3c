//! `cargo xtask test`.

use anyhow::Result;

use crate::shell::{Steps, apt_install, cargo, on_path, run as sh, target_dir};

/// Which tests to run; without an option, unit and integration tests.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Tests inside the crates, and their documentation's examples.
    #[arg(long)]
    unit: bool,
    /// Tests that drive the built binaries.
    #[arg(long)]
    integration: bool,
    /// Long tests under load, in the release profile.
    #[arg(long)]
    stress: bool,
}

/// What the tests call besides Rust: program and Debian package.
const NEEDED: [(&str, &str); 6] = [
    ("cc", "gcc"),
    ("make", "make"),
    ("strace", "strace"),
    ("find", "findutils"),
    ("wc", "coreutils"),
    ("sha256sum", "coreutils"),
];

/// The long tests; those of planted bugs need a server that has some (`cargo xtask torture --planted`).
const LONG: [&str; 5] = ["--", "--ignored", "--test-threads=1", "--skip", "history::planted"];

/// Installs what is missing and runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let usual = !(args.unit || args.integration || args.stress);
    install_missing()?;
    let mut steps = Steps::default();
    if args.unit || usual {
        steps.step("unit tests", unit);
    }
    if args.integration || usual {
        steps.step("integration tests", || integration("debug"));
        steps.step("the same with two shards", two_shards);
    }
    if args.stress {
        steps.step("stress tests", || integration("release"));
    }
    steps.finish()
}

fn unit() -> Result<()> {
    sh(&mut cargo(["test", "--workspace", "--exclude", "hive-integration-tests"]))
}

/// Builds the binaries, tells the tests where they are, and runs them; in the release profile the long ones.
///
/// Always all of the workspace: with a part of it cargo would choose other features of the dependencies, and build them
/// once more.
fn integration(profile: &str) -> Result<()> {
    let release = (profile == "release").then_some("--release");
    sh(&mut cargo(["build", "--workspace", "--bins"].into_iter().chain(release)))?;
    let long = release.map_or(&[][..], |_| &LONG[..]);
    let bin = target_dir().join(profile);
    let args = ["test", "--workspace", "--test", "*"].into_iter().chain(release).chain(long.iter().copied());
    sh(cargo(args).env("HIVE_BIN", bin.join("hive")).env("HIVE_BENCH_BIN", bin.join("hive-bench")))
}

/// A server with several shards has its actors on several threads: the tests that drive one must hold there, too.
fn two_shards() -> Result<()> {
    let bin = target_dir().join("debug");
    let args = ["test", "--package", "hive-integration-tests", "--test", "it"];
    sh(cargo(args)
        .env("HIVE_TEST_SHARDS", "2")
        .env("HIVE_BIN", bin.join("hive"))
        .env("HIVE_BENCH_BIN", bin.join("hive-bench")))
}

fn install_missing() -> Result<()> {
    let mut packages: Vec<_> =
        NEEDED.iter().filter(|(name, _)| !on_path(name)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { apt_install(&packages) }
}
