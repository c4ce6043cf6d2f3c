//! A server process, raw clients, a bystander that notices when it is disturbed.

mod bystander;
mod client;
mod disk;
mod http;
mod hub;
mod server;
mod tasks;
mod wire;

use std::time::{Duration, Instant};

pub(crate) use bystander::Bystander;
pub(crate) use client::{Client, hello};
pub(crate) use disk::{Disk, Strace};
pub(crate) use http::ask as http_ask;
pub(crate) use hub::Heard;
pub(crate) use server::{Server, binary, command, free_port, outcome};
pub(crate) use tasks::{Outcome, Settled, TaskOptions, payloads};
pub(crate) use wire::{Seen, Wire, assert_error, error_of, frame, items};

/// How long a test waits for what must come. Far above what it takes: machines that run tests are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until `look` gives something; for what the server tells nobody.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "in vain waited for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
