//! Durability: whether a server gave what it was asked for, and the least that it could have cost.

use anyhow::{Result, bail};

use super::{Plan, Scenario};
use crate::measure::Tally;
use crate::report::Report;
use crate::server::Server;
use crate::system::{Durability, Name};
use crate::{disk, echo};

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

/// Adds what matters where acknowledgements wait for the disk.
pub(super) fn describe(plan: &Plan, server: &Server, tally: &mut Tally, report: &mut Report) -> Result<()> {
    if plan.setup.durability != Durability::Journal {
        return Ok(());
    }
    report.set("file_system", disk::file_system(server.folder())?);
    if plan.scenario != Scenario::Rtt {
        return Ok(());
    }
    let [ack, p99] = [0.5, 0.99].map(|q| tally.acknowledged.quantile_us(q));
    report.set("ack_p50_us", ack);
    report.set("ack_p99_us", p99);
    // In the same folder, on the same cores, in the same minute: the server is there but has nothing to do.
    let cores = plan.setup.cores;
    let echo = echo::probe(plan.size, cores)?;
    let disk = cores.as_server(|| disk::probe(server.folder()))?;
    report.set("echo_p50_us", echo);
    report.set("disk_sync_p50_us", disk.sync_us[0]);
    report.set("disk_sync_p99_us", disk.sync_us[1]);
    report.set("disk_write_bytes_per_s", disk.write_bytes_per_s);
    report.set("ack_over_floor", ack / (disk.sync_us[0] + echo));
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
