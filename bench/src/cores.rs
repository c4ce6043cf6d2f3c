//! The machine shared out: one core for the generator, the others for the server under test.
//!
//! Neither side then takes time from the other, and a server that asks how many cores it may use gets an honest
//! answer. Where there is only one core, nothing is shared out.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

static CORES: OnceLock<Vec<usize>> = OnceLock::new();

/// The cores that this process had when it started.
fn all() -> &'static [usize] {
    CORES.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|c| set.is_set(*c)).collect()
    })
}

/// The cores of servers, and their number.
pub(crate) fn of_servers() -> &'static [usize] {
    match all() {
        [_, rest @ ..] if !rest.is_empty() => rest,
        one => one,
    }
}

/// Keeps this thread, the generator, on the core that servers do not get.
pub(crate) fn take_own() -> Result<()> {
    match all() {
        [own, _, ..] => pin(&[*own]),
        _ => Ok(()),
    }
}

/// Keeps this thread, and what it becomes, on some cores.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cores.iter().for_each(|c| set.set(*c));
    sched_setaffinity(None, &set).context("choosing cores")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_and_servers_share_no_core() {
        let servers = of_servers();
        assert!(!servers.is_empty());
        take_own().expect("pinned");
        let set = sched_getaffinity(None).expect("affinity");
        assert!(all().len() == 1 || servers.iter().all(|c| !set.is_set(*c)));
        pin(all()).expect("unpinned");
    }
}
