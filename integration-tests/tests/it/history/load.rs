//! The load: submitters, workers and watchers, each in a thread, each with dice of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use hive_proto::{Lease, TaskId, messages};

use super::link::{Held, Link};
use super::record::{How, Key, Mark, Recorder, Submitted};
use crate::harness::{Server, TaskOptions};

/// A queue and its policy.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: &'static str,
    pub(super) attempts_max: u16,
    pub(super) lease_ms: u32,
    pub(super) retry_delay_ms: u32,
}

pub(super) const QUEUES: [Queue; 3] = [
    Queue { name: "plain", attempts_max: 3, lease_ms: 30_000, retry_delay_ms: 0 },
    Queue { name: "twice", attempts_max: 2, lease_ms: 30_000, retry_delay_ms: 30 },
    // Leases end while workers sit on them.
    Queue { name: "brief", attempts_max: 5, lease_ms: 150, retry_delay_ms: 10 },
];
const LABEL: &str = "gpu";
/// Tasks without an outcome beyond which nothing more is submitted.
const OPEN_MAX: i64 = 600;
const HOT_MAX: usize = 256;
const SAT_ON_MAX: usize = 8;

/// What the clients do: the load, then no more of it, then nothing is left to do, then the end.
pub(super) const LOAD: u8 = 0;
pub(super) const DRAIN: u8 = 1;
pub(super) const SETTLED: u8 = 2;
pub(super) const END: u8 = 3;

/// What all clients of a history share.
pub(super) struct Fleet {
    pub(super) log: Recorder,
    pub(super) patience: Duration,
    /// Somebody waited in vain: the server hangs.
    pub(super) gave_up: AtomicBool,
    keys: AtomicU64,
    /// Tasks that were acknowledged, less those that were completed: a rough guess.
    open: AtomicI64,
    /// The latest lease of each task, of this server or an earlier one, and whose it was.
    leases: Mutex<HashMap<TaskId, (Lease, u32)>>,
    /// Leases that somebody sits on, and who.
    sat_on: Mutex<VecDeque<(Lease, u32)>>,
    /// Tasks that were handed out last.
    hot: Mutex<VecDeque<TaskId>>,
}

/// A fleet in one life of the server.
pub(super) struct Site<'f> {
    pub(super) fleet: &'f Fleet,
    pub(super) phase: AtomicU8,
}

impl std::ops::Deref for Site<'_> {
    type Target = Fleet;
    fn deref(&self) -> &Fleet {
        self.fleet
    }
}

impl Fleet {
    pub(super) fn new(patience: Duration) -> Self {
        let (leases, sat_on, hot) = Default::default();
        let (gave_up, keys, open) = (AtomicBool::new(false), AtomicU64::new(0), AtomicI64::new(0));
        Self { log: Recorder::new(), patience, gave_up, keys, open, leases, sat_on, hot }
    }

    /// So many tasks have no outcome.
    pub(super) fn open_are(&self, tasks: i64) {
        self.open.store(tasks, Ordering::Relaxed);
    }

    /// Payloads that were made.
    pub(super) fn submitted(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }
}

impl Site<'_> {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }
}

/// A generator that needs no crate: splitmix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    /// So many times in a thousand.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len() as u64) as usize])
    }
}

/// A payload of at least 16 bytes: its name, and what follows from the name and the length.
fn payload(key: Key, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend_from_slice(&key.to_le_bytes());
    bytes.extend_from_slice(&(len as u64).to_le_bytes());
    let mut dice = Dice(key ^ (len as u64) << 32);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.roll().to_le_bytes());
    }
    bytes.truncate(len.max(16));
    bytes
}

/// The name of a payload, if it is exactly what was submitted under it.
pub(super) fn name_of(bytes: &[u8]) -> Result<Key, String> {
    let Some((key, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are no payload", bytes.len()));
    };
    let key = Key::from_le_bytes(*key);
    let len = rest.first_chunk::<8>().map_or(0, |l| u64::from_le_bytes(*l)) as usize;
    if len != bytes.len() || payload(key, len) != bytes {
        return Err(format!("payload {key} of {len} bytes came as {} other bytes", bytes.len()));
    }
    Ok(key)
}

/// Opens a connection, as often as it takes; `None` once the server's life is over.
fn open<'s>(site: &'s Site<'s>, server: &Server, labels: &[&'static str]) -> Option<Link<'s>> {
    loop {
        if let Some(link) = Link::open(site, server, labels) {
            return Some(link);
        }
        if site.phase() == END {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Submits, cancels, and asks what became of it.
pub(super) fn submitter(site: &Site<'_>, server: &Server, mut dice: Dice) {
    let Some(mut link) = open(site, server, &[]) else { return };
    loop {
        match site.phase() {
            LOAD => {}
            DRAIN if link.open => {
                link.pump(Duration::from_millis(5));
                continue;
            }
            SETTLED => return link.stay_to_the_end(),
            _ => return, // what a client without its connection does not hear, it is not owed
        }
        if !link.open {
            let Some(next) = open(site, server, &[]) else { return };
            link = next;
        }
        if link.unanswered() < 4 && site.open.load(Ordering::Relaxed) < OPEN_MAX {
            submit(site, &mut link, &mut dice);
        }
        if dice.chance(80) {
            let recent: Vec<TaskId> = link.known.iter().rev().take(20).copied().collect();
            let count = dice.between(1, 4);
            let chosen: Vec<TaskId> = (0..count).filter_map(|_| dice.one(&recent)).collect();
            link.cancel(distinct(chosen));
        }
        if dice.chance(200) {
            let recent: Vec<TaskId> = link.known.iter().rev().take(30).copied().collect();
            link.query(&recent);
        }
        link.pump(Duration::from_micros(dice.between(200, 6_000)));
    }
}

fn submit(site: &Site<'_>, link: &mut Link<'_>, dice: &mut Dice) {
    let queue = &QUEUES[dice.below(3) as usize];
    let count = if dice.chance(150) { dice.between(20, 60) } else { dice.between(1, 8) };
    let large = dice.chance(15);
    let tasks = (0..count).map(|at| {
        let key = site.keys.fetch_add(1, Ordering::Relaxed) + 1;
        let len = if large && at == 0 { dice.between(20_000, 300_000) } else { dice.between(16, 200) };
        let delay_ms = if dice.chance(60) { dice.between(200, 1_500) as u32 } else { 0 };
        let label = dice.chance(60).then_some(LABEL);
        let attempts = dice.chance(40).then(|| dice.between(1, 4) as u32);
        let options = TaskOptions {
            labels: label.iter().map(ToString::to_string).collect(),
            max_attempts: attempts,
            delay_ms: (delay_ms > 0).then_some(delay_ms),
            ..TaskOptions::default()
        };
        let ext = if options == TaskOptions::default() { vec![] } else { messages::encode(&options) };
        let attempts_max = attempts.map_or(queue.attempts_max, |a| a as u16);
        let options = Mark::of(&ext);
        (Submitted { key, delay_ms, label, attempts_max, options }, payload(key, len as usize), ext)
    });
    let tasks: Vec<_> = tasks.collect();
    site.open.fetch_add(tasks.len() as i64, Ordering::Relaxed);
    link.submit(queue.name, tasks);
}

/// Asks, waits and lists; does nothing else.
pub(super) fn watcher(site: &Site<'_>, server: &Server, mut dice: Dice) {
    let Some(mut link) = open(site, server, &[]) else { return };
    while site.phase() == LOAD {
        if !link.open {
            let Some(next) = open(site, server, &[]) else { return };
            link = next;
        }
        let hot: Vec<TaskId> = site.hot.lock().expect("no panic").iter().rev().take(64).copied().collect();
        if link.unanswered() < 8 && !hot.is_empty() {
            if dice.chance(300) { link.wait(&hot) } else { link.query(&hot) }
        }
        if dice.chance(10) {
            link.list_dead(QUEUES[dice.below(3) as usize].name);
        }
        link.pump(Duration::from_micros(dice.between(200, 3_000)));
    }
    if site.phase() != END {
        link.catch_up();
    }
}

/// Works, and does everything that a worker should not.
pub(super) fn worker(site: &Site<'_>, server: &Server, mut dice: Dice, labels: &[&'static str]) {
    let mut hand: Vec<Held> = Vec::new();
    let mut link: Option<Link<'_>> = None;
    while !matches!(site.phase(), SETTLED | END) {
        if !link.as_ref().is_some_and(|l| l.open) {
            hand.clear();
            let Some(mut new) = open(site, server, labels) else { return };
            for queue in &QUEUES {
                new.work(queue, dice.between(4, 24) as u32);
            }
            link = Some(new);
        }
        let Some(l) = &mut link else { continue };
        l.pump(Duration::from_micros(dice.between(200, 3_000)));
        let loaded = site.phase() == LOAD;
        while let Some(held) = l.came.pop_front() {
            take_up(site, l, &mut dice, held, loaded);
            hand.push(held);
        }
        if loaded && dice.chance(6) {
            link = None; // with all that it holds
            continue;
        }
        if loaded && dice.chance(60) {
            steal(site, l, &mut dice);
        }
        let now = site.log.now();
        let (due, later): (Vec<_>, Vec<_>) = hand.drain(..).partition(|h| h.until <= now);
        hand = later;
        work_on(site, l, &mut dice, due, &mut hand, loaded);
    }
    if site.phase() == SETTLED
        && let Some(mut l) = link
    {
        l.catch_up();
    }
}

/// A task has come. If somebody had it before, his result may be late.
fn take_up(site: &Site<'_>, link: &mut Link<'_>, dice: &mut Dice, held: Held, loaded: bool) {
    let mut hot = site.hot.lock().expect("no panic");
    hot.push_back(held.lease.task);
    if hot.len() > HOT_MAX {
        hot.pop_front();
    }
    drop(hot);
    let before = site.leases.lock().expect("no panic").insert(held.lease.task, (held.lease, link.number));
    if let Some((old, _)) = before.filter(|_| loaded && dice.chance(400)) {
        link.settle(How::Complete, false, &[(old, result(old, held.key, "late"))]);
    }
}

/// Settles a task that somebody else holds.
fn steal(site: &Site<'_>, link: &mut Link<'_>, dice: &mut Dice) {
    let mut sat_on = site.sat_on.lock().expect("no panic");
    let place = dice.below(sat_on.len().max(1) as u64) as usize;
    let theirs = sat_on.get(place).copied();
    sat_on.retain(|one| Some(*one) != theirs);
    drop(sat_on);
    if let Some((lease, _)) = theirs.filter(|(_, owner)| *owner != link.number) {
        link.settle(How::Complete, false, &[(lease, result(lease, 0, "stolen"))]);
    }
}

fn work_on(
    site: &Site<'_>,
    link: &mut Link<'_>,
    dice: &mut Dice,
    due: Vec<Held>,
    hand: &mut Vec<Held>,
    loaded: bool,
) {
    let mut done: HashMap<&str, Vec<(Lease, Vec<u8>)>> = HashMap::new();
    for mut held in due {
        let (lease, key) = (held.lease, held.key);
        match if loaded { dice.below(100) } else { 0 } {
            0..72 => {
                let bytes =
                    if dice.chance(20) { long_result(lease, key, dice) } else { result(lease, key, "") };
                done.entry(held.queue.name).or_default().push((lease, bytes));
            }
            72..84 => {
                let by_policy = dice.chance(300);
                let delay_ms = [0, 0, 30, 600][dice.below(4) as usize];
                let delay_ms = if by_policy { held.queue.retry_delay_ms } else { delay_ms };
                let error = result(lease, key, "failed");
                link.settle(How::Fail { delay_ms }, by_policy, &[(lease, error.clone())]);
                if dice.chance(100) {
                    link.settle(How::Complete, false, &[(lease, result(lease, key, "after all"))]);
                }
            }
            84..86 => link.settle(How::FailForGood, false, &[(lease, result(lease, key, "hopeless"))]),
            86..92 => {
                let delay_ms = [0, 40][dice.below(2) as usize];
                link.settle(How::Release { delay_ms }, false, &[(lease, vec![])]);
            }
            _ => {
                let mut sat_on = site.sat_on.lock().expect("no panic");
                sat_on.push_back((lease, link.number));
                if sat_on.len() > SAT_ON_MAX {
                    sat_on.pop_front();
                }
                drop(sat_on);
                held.until = site.log.now() + dice.between(20_000, 300_000);
                hand.push(held);
            }
        }
    }
    for tasks in done.into_values() {
        site.open.fetch_sub(tasks.len() as i64, Ordering::Relaxed);
        link.settle(How::Complete, false, &tasks);
        if loaded && dice.chance(100) {
            let again = tasks.iter().map(|(lease, _)| (*lease, result(*lease, 0, "again")));
            link.settle(How::Complete, false, &again.collect::<Vec<_>>());
        }
    }
}

/// Text that no other attempt has.
fn result(lease: Lease, key: Key, word: &str) -> Vec<u8> {
    let Lease { task, attempt, epoch } = lease;
    format!("{key} {task} {attempt} {epoch} {word}").into_bytes()
}

fn long_result(lease: Lease, key: Key, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = result(lease, key, "long");
    bytes.resize(dice.between(1_000, 60_000) as usize, b'.');
    bytes
}

fn distinct(mut tasks: Vec<TaskId>) -> Vec<TaskId> {
    tasks.sort_unstable_by_key(|t| t.0);
    tasks.dedup();
    tasks
}
