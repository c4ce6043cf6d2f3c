//! Durability: whether a server gave what it was asked for, and the least that it could have cost.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Plan, Scenario};
use crate::disk::{self, Block};
use crate::echo;
use crate::http;
use crate::measure::{Lane, Tally};
use crate::report::Report;
use crate::server::Server;
use crate::system::{Durability, Name};

/// A server that acknowledges less (or more) than it was asked for is not what the run is about.
///
/// Only Hive says in its acknowledgements what they promise; what peers promise is a matter of how they are started.
pub(super) fn check(plan: &Plan, tally: &Tally) -> Result<()> {
    let asked = plan.setup.durability.as_str();
    let given = match tally.durability {
        Some(given) => given.name(),
        None if plan.system == Name::Hive && tally.accepted > 0 => "unknown",
        None => return Ok(()),
    };
    if given != asked {
        bail!(
            "{} acknowledges with durability {given}; --durability {asked} was asked for",
            plan.system.as_str()
        );
    }
    Ok(())
}

/// How often a run pauses for the floor, and how long then.
pub(super) const PAUSES: u32 = 10;
const SYNCS: Duration = Duration::from_millis(50);
const ECHOES: Duration = Duration::from_millis(30);

/// The least that an acknowledgement can cost: a sync and an echo, in the server's folder and on its cores.
///
/// Measured in pauses of the run, not before or after it: what neighbours do to a machine changes by the second, and
/// both sides of a ratio have to have seen the same seconds.
pub(super) struct Floor {
    block: Block,
    syncs: Lane,
    echoes: Lane,
}

impl Floor {
    /// Where one task at a time waits for the disk. An open loop cannot pause.
    pub(super) fn of(plan: &Plan, server: &Server) -> Result<Option<Self>> {
        let durable = plan.setup.durability == Durability::Journal;
        if !durable || plan.scenario != Scenario::Rtt || plan.rate.is_some() {
            return Ok(None);
        }
        let block = Block::new(server.folder()).context("writing a block")?;
        Ok(Some(Self { block, syncs: Lane::new(), echoes: Lane::new() }))
    }

    /// To be called while the server has nothing to do.
    pub(super) fn measure(&mut self, plan: &Plan) -> Result<()> {
        let Self { block, syncs, echoes } = self;
        let cores = plan.setup.cores;
        cores.as_server(|| block.sync(SYNCS, syncs)).context("syncing a block")?;
        echo::probe(plan.size, cores, ECHOES, echoes)
    }

    fn describe(mut self, tally: &mut Tally, report: &mut Report) {
        let [ack, ack_p99] = [0.5, 0.99].map(|q| tally.acknowledged.quantile_us(q));
        let [sync, sync_p99] = [0.5, 0.99].map(|q| self.syncs.quantile_us(q));
        let echo = self.echoes.quantile_us(0.5);
        report.set("ack_p50_us", ack);
        report.set("ack_p99_us", ack_p99);
        report.set("disk_sync_p50_us", sync);
        report.set("disk_sync_p99_us", sync_p99);
        report.set("echo_p50_us", echo);
        report.set("ack_over_floor", ack / (sync + echo));
        // With one task in flight no other's sync can have covered it.
        report.set("ack_before_sync", ack < sync);
    }
}

/// Adds what matters where acknowledgements wait for the disk.
pub(super) fn describe(
    plan: &Plan,
    server: &Server,
    floor: Option<Floor>,
    tally: &mut Tally,
    report: &mut Report,
) -> Result<()> {
    if plan.setup.durability != Durability::Journal {
        return Ok(());
    }
    report.set("file_system", disk::file_system(server.folder())?);
    // Words are cheap. Less than a byte for each task keeps none, however it is packed; a token and a log are not that.
    if let Some(written) = server.written() {
        let name = plan.system.as_str();
        let least = tally.accepted;
        ensure!(
            written >= least,
            "{name} wrote {written} bytes to a disk for {least} durable acknowledgements"
        );
        report.set("disk_written_bytes_per_task", written as f64 / tally.accepted.max(1) as f64);
    }
    let journals = plan.system == Name::Hive && plan.scenario == Scenario::Task;
    if !journals && floor.is_none() {
        return Ok(());
    }
    let disk = disk::write_rate(server.folder()).context("writing in sequence")?;
    report.set("disk_write_bytes_per_s", disk as u64);
    if journals {
        let bytes = http::journal_bytes(server).context("reading the server's status")?;
        let each = bytes as f64 / tally.accepted.max(1) as f64;
        report.set("journal_bytes_per_task", each);
        report.set("journal_over_disk", each * report.rate_per_s / disk);
    }
    if let Some(floor) = floor {
        floor.describe(tally, report);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hive_proto::ids;

    #[test]
    fn an_acknowledgement_that_promises_less_fails_the_run() {
        let mut plan = crate::tests::plan();
        (plan.scenario, plan.setup.durability) = (Scenario::Task, Durability::Journal);
        let mut tally = Tally::new();
        tally.accept(2);
        assert!(check(&plan, &tally).expect_err("silence").to_string().contains("durability unknown"));
        tally.promise(Some(ids::Durability::Journal));
        check(&plan, &tally).expect("as asked");
        // One task of many is enough.
        tally.promise(None);
        tally.promise(Some(ids::Durability::Journal));
        assert!(check(&plan, &tally).expect_err("less").to_string().contains("durability memory"));
        plan.system = Name::Redis;
        check(&plan, &Tally::new()).expect("a peer says nothing");
    }
}
