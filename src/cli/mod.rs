//! The command line: one file per subcommand. What scripts may rely on is in docs/cli.md.

#![expect(clippy::disallowed_methods, reason = "commands live in real time: they wait, measure and give up")]

mod analyse;
mod backup;
mod dead;
mod demo;
mod demo_worker;
mod explain;
mod failure;
mod http;
mod journal;
mod messages;
mod output;
mod patience;
mod start;
mod status;
mod stop;
mod submit;
mod target;
mod top;
mod work;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::failure::Failure;

/// One server for fleets of agents: a message bus that knows tasks.
#[derive(Debug, Parser)]
#[command(
    name = "hive",
    bin_name = "hive",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(after_help = "Try it: `hive demo`. Start a server to play with: `hive start --dev`.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a server.
    Start(start::Args),
    /// Stop a server: running tasks are finished, then it exits.
    Stop(stop::Args),
    /// Show queues, agents, shards and actors.
    Status(status::Args),
    /// Submit tasks to a queue.
    Submit(submit::Args),
    /// Work on a queue: run a command for each task.
    Work(work::Args),
    /// List dead letters, give them another chance, or forget them.
    Dead(dead::Args),
    /// Publish a message.
    Pub(messages::PubArgs),
    /// Print the messages of a subject.
    Sub(messages::SubArgs),
    /// Ask whoever answers a subject, and print the answer.
    Request(messages::RequestArgs),
    /// Watch a server live.
    Top(top::Args),
    /// Analyse the files below a directory with a fleet of workers.
    Demo(demo::Args),
    /// Copy the journal of a running server.
    Backup(backup::BackupArgs),
    /// Put a backup where a server finds it.
    Restore(backup::RestoreArgs),
    /// Look at a journal that no server uses.
    Journal(journal::Args),
    /// Explain an error code.
    Explain(explain::Args),
    /// Print the version.
    Version(explain::VersionArgs),
    /// A worker of `hive demo`.
    #[command(hide = true)]
    DemoWorker(demo_worker::Args),
}

/// Runs the command that the arguments ask for.
pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Start(a) => start::run(a),
        Command::Stop(a) => stop::run(&a),
        Command::Status(a) => status::run(&a),
        Command::Submit(a) => wait_for(submit::run(a)),
        Command::Work(a) => wait_for(work::run(a)),
        Command::Dead(a) => wait_for(dead::run(a)),
        Command::Pub(a) => wait_for(messages::publish(a)),
        Command::Sub(a) => wait_for(messages::subscribe(a)),
        Command::Request(a) => wait_for(messages::request(a)),
        Command::Top(a) => top::run(&a),
        Command::Demo(a) => wait_for(demo::run(a)),
        Command::Backup(a) => backup::backup(&a),
        Command::Restore(a) => backup::restore(&a),
        Command::Journal(a) => journal::run(&a),
        Command::Explain(a) => explain::run(&a),
        Command::Version(a) => explain::version(&a),
        Command::DemoWorker(a) => wait_for(demo_worker::run(a)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Commands use one thread: they wait most of the time.
fn wait_for(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start the runtime", e))?;
    let done = runtime.block_on(command);
    // A thread that still waits for standard input must not keep the process.
    runtime.shutdown_background();
    done
}

/// A usage error that clap could not see.
fn usage(subcommand: &str, text: &str) -> Failure {
    let mut command = Cli::command();
    let command = command.find_subcommand_mut(subcommand).expect("the caller's own name");
    command.error(clap::error::ErrorKind::MissingRequiredArgument, text).exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_parse_as_documented() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for good in [
            "hive start --dev --listen 127.0.0.1:0 --http 127.0.0.1:0 --data-dir d --config f",
            "hive stop --http 127.0.0.1:1 --token t",
            "hive status --json",
            "hive submit q --from-file f --wait --json",
            "hive submit q --lines f --server 127.0.0.1:1",
            "hive submit q -",
            "hive work q --jobs 2 -- sh -c true",
            "hive pub a.b text",
            "hive sub a.> --json",
            "hive request a.b - --timeout-ms 100",
            "hive top --json --count 3",
            "hive demo --path d --agents 3 --json",
            "hive journal verify d --json",
            "hive journal inspect d --from 3 --count 2",
            "hive journal stats d",
            "hive backup d --http 127.0.0.1:1 --json",
            "hive restore d e --json",
            "hive explain 304",
            "hive version --json",
        ] {
            parse(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for bad in [
            "hive",
            "hive nonsense",
            "hive submit",
            "hive submit q --lines f -",
            "hive work q",
            "hive demo --agents 0",
            "hive journal verify",
        ] {
            let e = parse(bad).expect_err(bad);
            assert_eq!(e.exit_code(), 2, "{bad}");
        }
    }
}
