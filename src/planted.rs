//! Bugs on purpose: the checker in `integration-tests/tests/it/history` is believed because it finds each of them. They exist
//! only with the feature `planted-bugs`; without it every question is answered `false` before the program runs, and nothing is left.
//!
//! `HIVE_PLANT` names the bug. `HIVE_PLANT_SYNC_MS` makes each sync slower, as on other disks, so that what happens before it can be
//! seen. `HIVE_PLANT_SYNCED` is a file that is told how far the journal is synced: what a power loss would leave.

/// Whether there are planted bugs.
pub const ON: bool = cfg!(feature = "planted-bugs");

/// Whether this bug was asked for.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn is(_: &str) -> bool {
    false
}

/// Before a sync.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn before_sync() {}

/// A segment is durable up to an offset.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub fn synced(_: &str, _: u64) {}

#[cfg(feature = "planted-bugs")]
pub use on::{before_sync, is, synced};

#[cfg(feature = "planted-bugs")]
mod on {
    use std::sync::LazyLock;
    use std::time::Duration;

    /// All that there are.
    const NAMES: [&str; 46] = [
        // The journal and its disk.
        "skip_sync",
        "sync_sometimes",
        "in_hand_as_done",
        "in_hand_dropped",
        // What is told before it is durable.
        "ack_early",
        "assign_early",
        "tell_early",
        "settle_early",
        "query_early",
        // Leases.
        "stale_epoch",
        "stale_attempt",
        "other_session",
        "complete_twice",
        "epoch_again",
        // Decisions.
        "attempts_ignored",
        "release_at_once",
        "results_swapped",
        "batch_tail_lost",
        "cancel_running_unjournaled",
        // Panics.
        "drop_when_shut",
        "gathered_unanswered",
        "gathered_as_done",
        "done_as_not_done",
        "watchers_lost",
        "watchers_of_before",
        // Replay.
        "seq_again",
        "lose_last_record",
        "skip_complete",
        "skip_cancel",
        "skip_bury",
        "skip_retry",
        "forget_failures",
        "due_at_once",
        "retry_at_once",
        "labels_lost",
        "options_lost",
        "error_lost",
        "payload_garbled",
        "task_doubled",
        // Tasks on disk.
        "bits_lost",
        "fetch_skips_one",
        "fetched_not_whole",
        "spilled_watcher_lost",
        "spilled_cancel_lost",
        // Results on disk.
        "archive_lost",
        "archived_too_low",
    ];

    static PLANT: LazyLock<String> = LazyLock::new(|| {
        let name = std::env::var("HIVE_PLANT").unwrap_or_default();
        assert!(name.is_empty() || NAMES.contains(&&*name), "HIVE_PLANT: {name:?} is none of {NAMES:?}");
        name
    });
    static SYNC: LazyLock<Option<Duration>> = LazyLock::new(|| {
        let ms = std::env::var("HIVE_PLANT_SYNC_MS").ok()?;
        Some(Duration::from_millis(ms.parse().expect("HIVE_PLANT_SYNC_MS is a number")))
    });

    /// Whether this bug was asked for.
    pub fn is(name: &str) -> bool {
        debug_assert!(NAMES.contains(&name), "{name} is not in the list");
        *PLANT == name
    }

    /// Before a sync: the disk may be slow.
    #[allow(clippy::disallowed_methods)] // on the journaler's thread, which waits for the disk anyway
    pub fn before_sync() {
        if let Some(time) = *SYNC {
            std::thread::sleep(time);
        }
    }

    /// A segment is durable up to an offset.
    pub fn synced(segment: &str, end: u64) {
        if let Ok(path) = std::env::var("HIVE_PLANT_SYNCED") {
            let new = format!("{path}.new");
            std::fs::write(&new, format!("{end} {segment}")).expect("HIVE_PLANT_SYNCED can be written");
            std::fs::rename(&new, &path).expect("HIVE_PLANT_SYNCED can be written");
        }
    }
}
