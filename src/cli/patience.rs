//! How long a command keeps asking a server that has no room.

use std::time::{Duration, Instant};

use hive_client::{Certainty, Code, Error};

/// A server may refuse a task for want of room for this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Shortest and longest pause before another try.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Patience with one task.
pub(crate) struct Patience {
    end: Instant,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { end: Instant::now() + PATIENCE }
    }

    /// Waits, if the task was refused and may be taken soon; otherwise `false` at once.
    pub(crate) async fn waits(&self, e: &Error) -> bool {
        let wait = is_passing(e) && Instant::now() < self.end;
        if wait {
            tokio::time::sleep(e.retry_after().unwrap_or(PAUSE.0).clamp(PAUSE.0, PAUSE.1)).await;
        }
        wait
    }
}

fn is_passing(e: &Error) -> bool {
    let refused = matches!(e, Error::Refused(_)) && e.retryable() && e.outcome() == Certainty::NotDone;
    // A server that drains will not have room again.
    refused && e.code() != Some(Code::Draining)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_want_of_room_is_waited_for() {
        let refused = |code| is_passing(&Error::Refused(hive_proto::WireError::new(code, "")));
        assert!(refused(Code::MemoryFull) && refused(Code::Overloaded));
        assert!(!refused(Code::Draining) && !refused(Code::UnknownQueue) && !is_passing(&Error::Closed));
    }
}
