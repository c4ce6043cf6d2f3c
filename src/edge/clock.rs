//! The clocks of the machine.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::time::Tick;

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// Monotonic time since the first call.
#[allow(clippy::disallowed_methods)] // the one place that reads the monotonic clock
pub fn now() -> Tick {
    let origin = *ORIGIN.get_or_init(Instant::now);
    Tick(origin.elapsed().as_nanos() as u64)
}

/// Microseconds since 1970, for ids that must rise from one process to the next.
#[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
pub fn unix_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}
