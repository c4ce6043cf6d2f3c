//! What is measured: counts and latencies in the generator, processor time and memory of processes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use hive_proto::ids::Durability;

/// Longest latency told apart, ns; longer ones count as this.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// Count and latencies of one kind of event.
///
/// Messages that were sent together and came together share both stamps, so a run of them costs one histogram record:
/// what keeps the generator cheap at ten million messages a second.
pub(crate) struct Lane {
    hist: Histogram<u64>,
    run: (u64, u64, u64),
    count: u64,
    window: (u64, u64),
}

impl Lane {
    /// No events yet.
    pub(crate) fn new() -> Self {
        let hist = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("constant bounds are valid");
        Self { hist, run: (0, 0, 0), count: 0, window: (0, u64::MAX) }
    }

    /// Notes an event at `now` of the message stamped `stamp`, both ns since the run's epoch.
    #[inline]
    pub(crate) fn hit(&mut self, stamp: u64, now: u64) {
        if (stamp, now) == (self.run.0, self.run.1) {
            self.run.2 += 1;
            return;
        }
        self.flush();
        self.run = (stamp, now, 1);
    }

    fn flush(&mut self) {
        let (stamp, now, n) = std::mem::take(&mut self.run);
        self.count += n;
        if n > 0 && (self.window.0..self.window.1).contains(&stamp) {
            self.hist.saturating_record_n(now.saturating_sub(stamp).max(1), n);
        }
    }

    /// Events so far, those outside the window included.
    pub(crate) fn count(&mut self) -> u64 {
        self.flush();
        self.count
    }

    /// Events of messages stamped inside the window.
    pub(crate) fn recorded(&mut self) -> u64 {
        self.flush();
        self.hist.len()
    }

    /// Forgets the latencies; from now on only messages stamped in `from..until` are recorded.
    pub(crate) fn restart(&mut self, from: u64, until: u64) {
        self.flush();
        self.hist.reset();
        self.window = (from, until);
    }

    /// Latency at a quantile (0 to 1), µs.
    pub(crate) fn quantile_us(&mut self, q: f64) -> f64 {
        self.flush();
        self.hist.value_at_quantile(q) as f64 / 1e3
    }

    /// Longest latency, µs.
    pub(crate) fn max_us(&mut self) -> f64 {
        self.quantile_us(1.0)
    }
}

/// What the clients of a run report.
pub(crate) struct Tally {
    /// Now, ns since the run's epoch; set before bytes are parsed.
    pub(crate) now: u64,
    /// Tasks that reached a worker.
    pub(crate) assigned: Lane,
    /// Messages delivered, or tasks whose result came back.
    pub(crate) done: Lane,
    /// Messages or tasks that the server acknowledged to their producer.
    pub(crate) accepted: u64,
    /// Acknowledgements, counted from what was sent last: they mean something with one task in flight.
    pub(crate) acknowledged: Lane,
    /// Stamp of what was sent last.
    pub(crate) last_sent: u64,
    /// Messages that the server said it dropped.
    pub(crate) dropped: u64,
    /// The least that the server promised in any acknowledgement, if it promises in words.
    pub(crate) durability: Option<Durability>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            now: 0,
            assigned: Lane::new(),
            done: Lane::new(),
            accepted: 0,
            acknowledged: Lane::new(),
            last_sent: 0,
            dropped: 0,
            durability: None,
        }
    }

    /// The server acknowledged so many messages or tasks.
    #[inline]
    pub(crate) fn accept(&mut self, count: u64) {
        self.accepted += count;
        self.acknowledged.hit(self.last_sent, self.now);
    }

    /// The durability that an acknowledgement named; one that names none promises nothing.
    #[inline]
    pub(crate) fn promise(&mut self, named: Option<Durability>) {
        let named = named.unwrap_or(Durability::Memory);
        self.durability = match self.durability {
            Some(least) if (least as u8) < named as u8 => Some(least),
            _ => Some(named),
        };
    }

    /// A worker has the task whose payload begins with this stamp.
    #[inline]
    pub(crate) fn assigned(&mut self, payload: &[u8]) {
        self.assigned.hit(stamp_of(payload), self.now);
    }

    /// A message was delivered, or a result came back.
    #[inline]
    pub(crate) fn done(&mut self, payload: &[u8]) {
        self.done.hit(stamp_of(payload), self.now);
    }
}

/// The stamp that a payload begins with.
#[inline]
pub(crate) fn stamp_of(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// Processor time that the calling thread has used.
pub(crate) fn own_cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// Processor time of a process and of its children that have ended.
///
/// The scheduler's own figures of each thread are exact to a tick of each; `stat` knows threads that have ended but
/// only in hundredths of a second: the larger is nearer to the truth.
pub(crate) fn process_cpu(pid: u32) -> Result<Duration> {
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        threads += text.split(' ').next().and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (own, children) = stat_ticks(&stat).context("/proc/PID/stat has another format")?;
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    Ok(Duration::from_nanos(threads.max(own * tick) + children * tick))
}

/// Ticks of a process and of its ended children in the text of /proc/PID/stat.
fn stat_ticks(stat: &str) -> Option<(u64, u64)> {
    // The command may hold spaces and parentheses; its last closing one ends it.
    let fields: Vec<u64> = stat[stat.rfind(')')? + 1..]
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|f| f.parse().ok())
        .collect();
    match fields[..] {
        [user, system, children_user, children_system] => {
            Some((user + system, children_user + children_system))
        }
        _ => None,
    }
}

/// Resident memory of a process, bytes: now, and its peak.
pub(crate) fn process_memory(pid: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| {
        let line =
            text.lines().find_map(|l| l.strip_prefix(key)).context("/proc/PID/status has another format")?;
        let number = line.trim_start_matches(':').split_whitespace().next().unwrap_or("");
        Ok::<u64, anyhow::Error>(number.parse::<u64>()? * 1024)
    };
    Ok((kib("VmRSS")?, kib("VmHWM")?))
}

/// Bytes that a process has had written to disks, as far as the kernel counts them and lets us see.
pub(crate) fn process_written(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_counts_runs_and_keeps_their_latency() {
        let mut lane = Lane::new();
        for _ in 0..99 {
            lane.hit(1_000, 3_000);
        }
        lane.hit(1_000, 51_000);
        assert_eq!((lane.count(), lane.recorded()), (100, 100));
        assert!((lane.quantile_us(0.5) - 2.0).abs() < 0.01, "{}", lane.quantile_us(0.5));
        assert!((lane.quantile_us(0.99) - 2.0).abs() < 0.01);
        assert!((lane.max_us() - 50.0).abs() < 0.1);
    }

    #[test]
    fn only_stamps_inside_the_window_are_recorded() {
        let mut lane = Lane::new();
        lane.hit(5, 10);
        lane.restart(100, 200);
        lane.hit(99, 150);
        lane.hit(100, 150);
        lane.hit(199, 900);
        lane.hit(200, 900);
        assert_eq!((lane.count(), lane.recorded()), (5, 2));
        assert!((lane.max_us() - 0.701).abs() < 0.001);
    }

    #[test]
    fn an_event_before_its_stamp_counts_as_no_time() {
        let mut lane = Lane::new();
        lane.hit(100, 50);
        assert_eq!((lane.recorded(), lane.quantile_us(1.0)), (1, 0.001));
    }

    #[test]
    fn stat_is_read_behind_a_hostile_command() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 3 4 20 0 1 0";
        assert_eq!(stat_ticks(stat), Some((33, 7)));
        assert_eq!(stat_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let mut x = 1_u64;
        let start = own_cpu();
        while own_cpu() - start < Duration::from_millis(30) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(process_cpu(std::process::id()).expect("own") >= Duration::from_millis(20));
        let (now, peak) = process_memory(std::process::id()).expect("own");
        assert!(now > 0 && peak >= now);
    }
}
