//! Running programs, timing steps, installing what is missing.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::root;

/// A program that runs in the root of the workspace.
pub(crate) fn program<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that runs this.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    program(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args)
}

/// Prints a command, runs it, and fails as it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = text(command);
    eprintln!("$ {text}");
    let status = command.status().with_context(|| format!("cannot start: {text}"))?;
    if !status.success() {
        bail!("{text}: {status}");
    }
    Ok(())
}

/// What a command prints on standard output; `None` if it fails or cannot be started.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let out = command.output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn text(command: &Command) -> String {
    let parts = [command.get_program()].into_iter().chain(command.get_args());
    parts.map(|p| p.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Whether a program is on the PATH.
pub(crate) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Where builds go.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A program that cargo installs from the registry; built once, kept in `target/tools`.
///
/// # Errors
/// If it cannot be installed.
pub(crate) fn cargo_tool(name: &str, options: &[&str]) -> Result<PathBuf> {
    let folder = target_dir().join("tools");
    let tool = folder.join("bin").join(name);
    if !tool.is_file() {
        let args = ["install", "--locked", "--root"].map(OsStr::new).into_iter().chain([folder.as_os_str()]);
        let args = args.chain(options.iter().map(OsStr::new)).chain([OsStr::new(name)]);
        run(&mut cargo(args)).with_context(|| format!("{name} could not be installed"))?;
    }
    Ok(tool)
}

/// Installs Debian packages, as far as this user may.
///
/// # Errors
/// Says what to run where it may not.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let by_hand = || format!("install {list} by hand (on Debian: sudo apt-get install -y {list})");
    if !on_path("apt-get") {
        bail!("there is no apt-get here; {}", by_hand());
    }
    let root = output(&mut program("id", ["-u"])).is_some_and(|id| id.trim() == "0");
    if !root {
        bail!("only root may run apt-get; {}", by_hand());
    }
    let args = ["install", "-y", "--no-install-recommends"].iter().chain(packages);
    let mut install = program("apt-get", args);
    install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    if run(&mut install).is_ok() {
        return Ok(());
    }
    // The package lists may be old or absent; a first try without them is quicker where they are not.
    run(program("apt-get", ["update"]).stdout(Stdio::null())).with_context(by_hand)?;
    run(&mut install).with_context(by_hand)
}

/// Steps with the time that each took, and what failed.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration, Option<String>)>,
}

impl Steps {
    /// Runs a step; the next one runs even if this fails.
    pub(crate) fn step(&mut self, name: &str, action: impl FnOnce() -> Result<()>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = action();
        let error = result.err().map(|e| format!("{e:#}"));
        if let Some(e) = &error {
            eprintln!("== {name} failed: {e}");
        }
        self.done.push((name.into(), start.elapsed(), error));
    }

    /// Prints the summary.
    ///
    /// # Errors
    /// If a step failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!();
        for (name, time, error) in &self.done {
            let verdict = error.as_ref().map_or_else(|| "ok".to_owned(), |e| format!("FAILED: {e}"));
            println!("{:>7.1} s  {name:<24} {verdict}", time.as_secs_f64());
        }
        let failed = self.done.iter().filter(|(_, _, e)| e.is_some()).count();
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.done.len());
        }
        Ok(())
    }
}
