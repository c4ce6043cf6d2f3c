//! The clocks of the machine.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::time::Tick;

/// An instant, and what time it was.
static ORIGIN: OnceLock<(Instant, Tick)> = OnceLock::new();

/// Time since 1970 by the wall clock when the process first looked at it, and from then on by the monotonic clock: it never
/// goes back, and what is kept on disk means the same to the next process.
#[allow(clippy::disallowed_methods)] // the one place that reads the monotonic clock
pub fn now() -> Tick {
    let (origin, then) = *ORIGIN.get_or_init(|| (Instant::now(), unix()));
    Tick(then.0 + origin.elapsed().as_nanos() as u64)
}

/// Lets time begin after `last`, the latest time that is on disk, should the wall clock have gone back since. To be called before
/// [`now`]; later it changes nothing.
#[allow(clippy::disallowed_methods)] // as above
pub fn begin_after(last: Tick) {
    ORIGIN.get_or_init(|| (Instant::now(), unix().max(last)));
}

/// A task sequence for a time: above all that earlier processes gave out below 3.9 million tasks a second, and within 54 bits
/// until 2116.
pub fn sequence_at(time: Tick) -> u64 {
    time.0 >> 8
}

/// Time since 1970 by the wall clock, which may go back.
#[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
pub fn unix() -> Tick {
    Tick(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64))
}
