//! The clocks of the machine.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::time::Tick;

/// An instant, and what time it was.
static ORIGIN: OnceLock<(Instant, Tick)> = OnceLock::new();

/// Time since 1970 by the wall clock when the process first looked at it, and from then on by the monotonic clock: it never
/// goes back, and what is kept on disk means the same to the next process.
#[allow(clippy::disallowed_methods)] // the one place that reads the monotonic clock
pub fn now() -> Tick {
    let (origin, then) = *ORIGIN.get_or_init(|| (Instant::now(), Tick(unix().as_nanos() as u64)));
    Tick(then.0 + origin.elapsed().as_nanos() as u64)
}

/// Lets time begin after `last`, the latest time that is on disk, should the wall clock have gone back since. To be called before
/// [`now`]; later it changes nothing.
#[allow(clippy::disallowed_methods)] // as above
pub fn begin_after(last: Tick) {
    ORIGIN.get_or_init(|| (Instant::now(), Tick(unix().as_nanos() as u64).max(last)));
}

/// Microseconds since 1970, for ids that must rise from one process to the next.
pub fn unix_micros() -> u64 {
    unix().as_micros() as u64
}

#[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
