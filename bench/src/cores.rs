//! The machine shared out: one core for the generator, the others for the server under test.
//!
//! Neither side then takes time from the other, and a server that asks how many cores it may use gets an honest
//! answer. Where there is only one core, or where sharing was asked for, nothing is shared out.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Who runs where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Cores {
    /// The generator on the first core, servers on the others.
    Apart,
    /// Both on all cores, as the kernel sees fit.
    Shared,
}

impl Cores {
    /// The name on the command line and in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Shared => "shared",
        }
    }

    /// The cores of servers.
    pub(crate) fn of_servers(self) -> &'static [usize] {
        match (self, all()) {
            (Self::Apart, [_, rest @ ..]) if !rest.is_empty() => rest,
            (_, all) => all,
        }
    }

    /// Does something on the cores of servers, as a server would.
    pub(crate) fn as_server<T: Send>(self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                pin(self.of_servers())?;
                work()
            });
            there.join().map_err(|_| anyhow!("what ran on the cores of servers has panicked"))?
        })
    }

    /// Keeps this thread, the generator, on the cores that it may use.
    pub(crate) fn take_own(self) -> Result<()> {
        match (self, all()) {
            (Self::Apart, [own, _, ..]) => pin(&[*own]),
            (_, all) => pin(all),
        }
    }
}

static CORES: OnceLock<Vec<usize>> = OnceLock::new();

/// The cores that this process had when it started.
fn all() -> &'static [usize] {
    CORES.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|c| set.is_set(*c)).collect()
    })
}

/// How many cores a busy generator leaves to servers, shared out or not.
pub(crate) fn left_to_servers() -> usize {
    all().len().saturating_sub(1).max(1)
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
    fn generator_and_servers_share_no_core_unless_told_to() {
        let servers = Cores::Apart.of_servers();
        assert!(!servers.is_empty());
        Cores::Apart.take_own().expect("pinned");
        let set = sched_getaffinity(None).expect("affinity");
        assert!(all().len() == 1 || servers.iter().all(|c| !set.is_set(*c)));
        Cores::Shared.take_own().expect("unpinned");
        let set = sched_getaffinity(None).expect("affinity");
        assert!(Cores::Shared.of_servers().iter().all(|c| set.is_set(*c)));
        assert_eq!(Cores::Shared.of_servers(), all());
    }
}
