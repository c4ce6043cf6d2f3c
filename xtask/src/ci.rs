//! `cargo xtask ci`: all that must pass before a change lands.

use anyhow::Result;

use crate::shell::{Steps, cargo, run as sh};
use crate::{fuzz, generate, root, testing};

/// Runs every check and prints what each took.
pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::default();
    steps.step("format", || sh(&mut cargo(["fmt", "--all", "--check"])));
    steps.step("generated files", || generate::run(root(), true));
    steps.step("clippy", || {
        sh(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    });
    steps.step("documentation", || {
        sh(cargo(["doc", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    });
    steps.step("tests", || testing::run(&testing::Args::default()));
    steps.step("fuzzing", || fuzz::run(&fuzz::Args::of_seconds(60)));
    steps.finish()
}
