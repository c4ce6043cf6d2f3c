//! Chores of the workspace; `cargo xtask help` lists them.

mod arrows;
mod ci;
mod coverage;
mod fuzz;
mod generate;
mod peers;
mod shell;
mod testing;
mod torture;
mod vectors;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs the tests; without an option, unit and integration tests.
    Test(testing::Args),
    /// Installs the systems that Hive is compared with.
    Peers,
    /// Measures line coverage, room by room.
    Coverage(coverage::Args),
    /// Writes the golden vectors and the generated parts of the documents.
    Generate {
        /// Write nothing; fail if a file is not as it would be written.
        #[arg(long)]
        check: bool,
    },
    /// Fuzzes every decoder of the protocol.
    Fuzz(fuzz::Args),
    /// Kills a server under load, again and again, and checks what its clients saw.
    Torture(torture::Args),
    /// Checks who uses whom.
    Arrows,
    /// All that must pass before a change lands.
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Test(args) => testing::run(&args),
        Chore::Peers => peers::run(),
        Chore::Coverage(args) => coverage::run(&args),
        Chore::Generate { check } => generate::run(root(), check),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Torture(args) => torture::run(&args),
        Chore::Arrows => arrows::run(root()),
        Chore::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\nxtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace")
}
