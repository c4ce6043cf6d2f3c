//! Whatever comes over the agents' port: a clear error, nothing is lost, nobody else is disturbed.

mod fragments;
mod leases;
mod login;
mod names;
mod stream;

use crate::harness::{Bystander, Server};

/// Runs `act` against a server where a bystander works all the time, and asks the bystander afterwards.
fn beside_a_bystander(config: &str, act: impl FnOnce(&Server)) {
    let server = Server::with(config);
    let bystander = Bystander::start(&server);
    act(&server);
    bystander.undisturbed();
}
