//! Busy polling: a thread that was given one thing alone goes on looking for the next one before it sleeps.
//!
//! With one task in flight, most of its time is spent on waking halted cores: client, server, worker, and back. A thread that looks
//! for the next frame for a moment saves its share of that. Whether it is worth the CPU is learned: each look that finds less
//! than it costs doubles the number of occasions that are let pass (as the kernel's `halt_poll_ns` does for halted guests).

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Clock;
use crate::core::time::Tick;

/// What finding one thing saves, ns: about the time that a halted core takes to wake.
const SAVED_NS: u64 = 25_000;
/// After this many looks in vain in a row, no more occasions are let pass: 255 of 256.
const VAIN_MAX: u32 = 8;

thread_local! {
    /// The poller of this thread, if it has one.
    static POLLER: OnceCell<Rc<Poller>> = const { OnceCell::new() };
}

/// Lets this thread poll from now on, for `window` at a time. To be called once, on its event loop.
pub fn start(window: Duration, clock: Clock) {
    let poller = Rc::new(Poller {
        window_ns: window.as_nanos() as u64,
        last: Cell::new(Tick::ZERO),
        polling: Cell::new(false),
        habit: Cell::default(),
        begun: Notify::new(),
    });
    if POLLER.with(|p| p.set(poller.clone()).is_ok()) {
        actix_rt::spawn(async move { poller.run(clock).await });
    }
}

/// Something came alone, at `now`, and somebody waits for what it brings about.
#[inline]
pub fn alone(now: Tick) {
    POLLER.with(|p| {
        if let Some(poller) = p.get() {
            poller.alone(now);
        }
    });
}

#[derive(Debug)]
struct Poller {
    window_ns: u64,
    /// When the latest thing came.
    last: Cell<Tick>,
    polling: Cell<bool>,
    habit: Cell<Habit>,
    begun: Notify,
}

impl Poller {
    fn alone(&self, now: Tick) {
        if now == self.last.replace(now) {
            return; // the same thing, one actor further
        }
        let mut habit = self.habit.get();
        if self.polling.get() {
            habit.heard += 1;
        } else if habit.begins() {
            self.begun.notify_one();
        }
        self.habit.set(habit);
    }

    async fn run(&self, clock: Clock) {
        loop {
            self.begun.notified().await;
            self.polling.set(true);
            while clock().since(self.last.get()) < self.window_ns {
                // The event loop asks the kernel what has come, without waiting for it; other threads get their turn.
                tokio::task::yield_now().await;
                std::thread::yield_now();
            }
            self.polling.set(false);
            let mut habit = self.habit.get();
            habit.ended(self.window_ns);
            self.habit.set(habit);
        }
    }
}

/// What looking has brought so far.
#[derive(Clone, Copy, Debug, Default)]
struct Habit {
    /// Looks in a row that were not worth it.
    vain: u32,
    /// Occasions to let pass.
    pass: u32,
    /// Things that came during this look.
    heard: u64,
}

impl Habit {
    /// Whether to look now.
    fn begins(&mut self) -> bool {
        let begins = self.pass == 0;
        self.pass = self.pass.saturating_sub(1);
        self.heard = 0;
        begins
    }

    /// A look has ended with a whole window in which nothing came.
    fn ended(&mut self, window_ns: u64) {
        self.vain = if self.heard * SAVED_NS >= window_ns { 0 } else { (self.vain + 1).min(VAIN_MAX) };
        self.pass = (1 << self.vain) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many occasions, those that were looked at; during each look so many things come.
    fn looks(habit: &mut Habit, occasions: u32, heard: u64) -> u32 {
        let mut looks = 0;
        for _ in 0..occasions {
            if habit.begins() {
                looks += 1;
                habit.heard = heard;
                habit.ended(2 * SAVED_NS);
            }
        }
        looks
    }

    #[test]
    fn looks_that_find_enough_go_on_and_others_become_rare() {
        let mut habit = Habit::default();
        assert_eq!(looks(&mut habit, 100, 2), 100);
        let rare = looks(&mut habit, 100_000, 1);
        assert!((390..410).contains(&rare), "{rare}");
        // One that finds enough is all that it takes.
        assert!(looks(&mut habit, 256 + 99, 2) >= 100);
    }
}
