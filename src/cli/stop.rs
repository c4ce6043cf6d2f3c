//! `hive stop`.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::failure::Failure;
use super::target::{Reach, Target};
use super::{http, output};

/// How often it is looked whether the server is gone.
const LOOK: Duration = Duration::from_millis(50);

/// Options of `hive stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Longest time to wait for the server's end, seconds.
    #[arg(long, value_name = "S", default_value_t = 60)]
    timeout_s: u64,
    #[command(flatten)]
    reach: Reach,
}

/// Asks the server to drain, and waits until it is gone.
pub(crate) fn run(a: &Args) -> Result<(), Failure> {
    let target = a.reach.target();
    let status = http::ask(&target, "GET", "/v1/status")?;
    let pid = serde_json::from_str::<Value>(&status.body).ok().and_then(|s| s["pid"].as_i64());
    http::ask(&target, "POST", "/v1/stop")?;
    let bar = ProgressBar::new_spinner()
        .with_message(format!("waiting for the server at {} to finish", target.http));
    bar.enable_steady_tick(LOOK * 2);
    let began = Instant::now();
    while is_there(&target, pid) {
        if began.elapsed().as_secs() >= a.timeout_s {
            let why = format!("it has not exited within {} s", a.timeout_s);
            return Err(
                Failure::new("the server still drains", why).next("wait, or send its process SIGTERM again")
            );
        }
        std::thread::sleep(LOOK);
    }
    bar.finish_and_clear();
    if a.reach.json {
        return output::json_line(&json!({"stopped": true, "server": target.server, "pid": pid}));
    }
    eprintln!("stopped");
    Ok(())
}

/// On this machine the process tells; elsewhere its port has to.
fn is_there(target: &Target, pid: Option<i64>) -> bool {
    let host = target.http.rsplit_once(':').map_or("", |(host, _)| host);
    let local = ["127.0.0.1", "localhost", "[::1]"].contains(&host);
    let pid = pid.and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw);
    match pid.filter(|_| local) {
        Some(pid) => rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid),
        None => http::exchange(&target.http, "GET", "/livez", "").is_ok(),
    }
}

/// A process that has ended and whose parent has not noticed yet.
fn is_zombie(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z'))
}
