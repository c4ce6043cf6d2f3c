//! What is true of a board between any two calls.

use std::collections::{BTreeMap, BTreeSet};

use super::super::expire::is_scheduled;
use super::super::outcome::RESULT_OVERHEAD;
use super::super::table::{List, Slot};
use super::*;

impl Board {
    /// Panics unless the parts of the board agree with each other.
    pub(super) fn check(&self) {
        self.check_lists();
        self.check_queues();
        self.check_consumers();
        self.check_memory();
        self.check_waits();
        self.check_deadlines();
        self.archive.check();
        for slot in self.table.slots() {
            assert!(!self.archive.has(self.table.seq(slot)), "in memory and in the archive");
        }
    }

    /// Panics if a consumer has credit for a task that waits: what must not be after a pump.
    pub(super) fn check_pumped(&self) {
        assert!(self.dirty.is_empty());
        for c in self.consumers.iter().flatten() {
            let credit = c.leases.len < c.credit_tasks as usize && c.held_bytes < c.credit_bytes;
            let fitting = c.lanes.iter().any(|l| self.lanes[*l as usize].tasks.len > 0);
            assert!(
                c.closed || c.paused || !credit || !fitting,
                "consumer {} of {:?} waits beside a task",
                c.id,
                c.session
            );
        }
    }

    /// The slots of a list, whose links are checked.
    fn walk(&self, list: List) -> Vec<Slot> {
        let (mut slots, mut prev, mut at) = (Vec::new(), Slot::NONE, list.head);
        while at != Slot::NONE {
            assert_eq!(self.table[at].prev, prev);
            slots.push(at);
            (prev, at) = (at, self.table[at].next);
        }
        assert_eq!((list.tail, list.len), (prev, slots.len()));
        slots
    }

    /// Every record is in exactly one list, which matches its state.
    fn check_lists(&self) {
        let mut places: BTreeMap<Slot, &str> = BTreeMap::new();
        let mut put = |slots: Vec<Slot>, what, states: &[TaskState]| {
            for s in slots {
                assert!(states.contains(&self.table[s].state), "{:?} among the {what}", self.table[s]);
                assert_eq!(places.insert(s, what), None, "{:?} is in two lists", self.table[s]);
            }
        };
        for (at, lane) in self.lanes.iter().enumerate() {
            let lines = [self.walk(lane.tasks), self.walk(lane.in_flight), self.walk(lane.gathering)];
            let (durable_below, sealed_below) = self.bounds();
            let seqs = |line: &[Slot]| line.iter().map(|s| self.table.seq(*s)).collect::<Vec<_>>();
            assert!(seqs(&lines[1]).iter().all(|s| (durable_below..sealed_below).contains(s)));
            assert!(seqs(&lines[2]).iter().all(|s| *s >= sealed_below));
            for slots in lines {
                assert!(slots.iter().all(|s| self.table[*s].lane as usize == at));
                put(slots, "waiting", &[TaskState::Waiting]);
            }
        }
        for c in self.consumers.iter().flatten() {
            put(self.walk(c.leases), "running", &[TaskState::Running]);
        }
        for q in &self.queues {
            put(self.walk(q.dead), "dead", &[TaskState::Dead]);
        }
        put(self.walk(self.done), "done", &[TaskState::Completed, TaskState::Cancelled]);
        let entries = self.timers.scheduled.iter().map(|e| e.0);
        let valid: Vec<Slot> =
            entries.filter(|(at, seq, s)| is_scheduled(&self.table, *at, *seq, *s)).map(|e| e.2).collect();
        assert_eq!(self.timers.stale, self.timers.scheduled.len() - valid.len());
        put(valid, "scheduled", &[TaskState::Scheduled]);
        assert!(places.into_keys().eq(self.table.slots().collect::<BTreeSet<_>>()), "a record is in no list");
    }

    fn check_queues(&self) {
        for (at, q) in self.queues.iter().enumerate() {
            let of = |state| {
                let mine = |s: &Slot| self.queue_of(*s) as usize == at && self.table[*s].state == state;
                self.table.slots().filter(mine).count()
            };
            let on_disk: usize = q.lanes.iter().map(|l| self.lanes[*l as usize].spilled).sum();
            let counts = (q.waiting - on_disk, q.scheduled, q.running, q.dead.len);
            let states =
                [TaskState::Waiting, TaskState::Scheduled, TaskState::Running, TaskState::Dead].map(of);
            assert_eq!(counts, states.into(), "queue {}", q.name);
            let mine = |c: &&super::super::Consumer| c.queue as usize == at;
            let consumers = self.consumers.iter().flatten().filter(mine);
            assert_eq!(q.consumers, consumers.filter(|c| !c.closed).count());
            assert_eq!(q.dirty, self.dirty.contains(&(at as u32)));
        }
        for (at, lane) in self.lanes.iter().enumerate() {
            let stands = |c: &&super::super::Consumer| c.ready && c.lanes.contains(&(at as u32));
            let below = self.spill.index.below(u64::MAX);
            let mine = below.iter().filter(|((_, l, _), _)| *l as usize == at);
            assert_eq!(lane.spilled, mine.map(|(_, mask)| mask.count_ones() as usize).sum::<usize>());
            let left = lane.runs.iter().map(|run| run.left as usize).sum::<usize>();
            assert!(left <= lane.spilled && (left == lane.spilled || self.is_uncommitted()));
            let mut seqs = lane.runs.iter().flat_map(|run| [run.seqs.0, run.seqs.1]);
            assert!(seqs.by_ref().is_sorted(), "runs are in the order of their tasks");
            assert_eq!(lane.listed, self.spill.lists(at as u32));
            assert!(lane.listed || lane.runs.is_empty());
            for ((page, ..), mask) in &below {
                let seqs = (0..64).filter(|n| mask & 1 << n != 0).map(|n| page * 64 + n);
                assert!(seqs.into_iter().all(|seq| self.table.find(seq).is_none()), "on disk and in memory");
            }
            assert_eq!(lane.in_line, self.consumers.iter().flatten().filter(stands).count());
        }
        let distinct: BTreeSet<u32> = self.dirty.iter().copied().collect();
        assert_eq!(distinct.len(), self.dirty.len());
    }

    fn check_consumers(&self) {
        for (handle, c) in self.consumers.iter().enumerate() {
            let handle = handle as u32;
            let Some(c) = c else {
                assert!(self.free_consumers.contains(&handle));
                continue;
            };
            let leases = self.walk(c.leases);
            assert!(leases.iter().all(|s| self.table[*s].owner == handle));
            assert!(leases.is_sorted_by_key(|s| self.table[*s].deadline), "leases are out of order");
            assert_eq!(c.held_bytes, leases.iter().map(|s| self.table[*s].blob.len() as u64).sum::<u64>());
            assert!(!c.closed || !leases.is_empty(), "a closed consumer that holds nothing stays");
            assert!(self.sessions[&c.session].consumers.contains(&handle));
            let in_line =
                self.queues[c.queue as usize].ready.iter().filter(|e| **e == (handle, c.generation));
            assert!(c.closed && !c.ready || in_line.count() == usize::from(c.ready));
            let mut timers =
                self.timers.leases.iter().map(|e| e.0).filter(|e| (e.1, e.2) == (handle, c.generation));
            let first = timers.next();
            assert!(timers.next().is_none(), "a consumer has two timers");
            assert_eq!(c.timed, first.is_some());
            if let Some(s) = leases.first() {
                assert!(first.is_some_and(|t| t.0 <= self.table[*s].deadline), "a lease without a timer");
            }
            let fitting: BTreeSet<u32> = c.lanes.iter().copied().collect();
            let lanes =
                self.lanes.iter().enumerate().filter(|(_, l)| l.queue == c.queue && l.fits(&c.labels));
            assert!(fitting.into_iter().eq(lanes.map(|(at, _)| at as u32)));
        }
    }

    fn check_memory(&self) {
        let blobs = |states: &[TaskState]| {
            let filled = |s: &Slot| states.contains(&self.table[*s].state) && self.table[*s].blob.len() > 0;
            self.table.slots().filter(filled).count()
        };
        use TaskState::{Completed, Dead, Running, Scheduled, Waiting};
        assert_eq!(self.payloads.live(), blobs(&[Waiting, Running]));
        assert_eq!(self.delayed.live(), blobs(&[Scheduled]));
        assert_eq!(self.results.live(), blobs(&[Completed]));
        assert_eq!(self.dead.live(), blobs(&[Dead]));
        assert_eq!(self.consumer_bytes, self.consumers.iter().flatten().map(|c| c.bytes).sum::<usize>());
        let done = self.walk(self.done);
        assert_eq!(
            self.done_bytes,
            done.iter().map(|s| self.table[*s].blob.len() + RESULT_OVERHEAD).sum::<usize>()
        );
        assert!(self.done_bytes <= self.limits.results_bytes_max || self.is_to_be_recorded());
        assert_eq!(self.error_bytes, self.errors.values().map(|e| e.len() + RESULT_OVERHEAD).sum::<usize>());
        for seq in self.errors.keys() {
            let state = self.table[self.table.find(*seq).expect("an error has its task")].state;
            assert!(!state.is_final() || state == Dead);
        }
    }

    fn check_waits(&self) {
        let mut open = BTreeSet::new();
        let mut ids = 0;
        for (handle, w) in
            self.waits.all.iter().enumerate().filter_map(|(h, w)| Some((h as u32, w.as_ref()?)))
        {
            let unsettled = |id: &TaskId| {
                self.is_spilled(*id) || self.find(*id).is_some_and(|s| !self.table[s].state.is_final())
            };
            // An outcome that was there once counts, even if the task was a dead letter and waits again.
            let counts = |id: &&TaskId| unsettled(id) && self.waits.by_task.contains(&(id.seq(), handle));
            let mine: BTreeSet<(u64, u32)> =
                w.ids.iter().filter(counts).map(|id| (id.seq(), handle)).collect();
            assert!(w.left > 0 && (w.left == mine.len() || w.left == 1), "a wait that is over stays");
            assert!(self.sessions[&w.session].waits.contains(&handle));
            assert!(self.waits.deadlines.iter().any(|e| (e.0.1, e.0.2) == (handle, w.generation)));
            open.extend(mine);
            ids += w.ids.len();
        }
        assert_eq!(self.waits.ids, ids);
        assert_eq!(self.waits.by_task, open);
        for (seq, _) in open {
            assert!(
                self.table.find(seq).map_or(self.spill.index.find(seq).is_some(), |s| self.table[s].waited)
            );
        }
        for (session, s) in &self.sessions {
            let theirs =
                |h: &u32| self.waits.all[*h as usize].as_ref().is_some_and(|w| w.session == *session);
            assert!(s.waits.iter().all(theirs));
            let theirs =
                |h: &u32| self.consumers[*h as usize].as_ref().is_some_and(|c| c.session == *session);
            assert!(s.consumers.iter().all(theirs));
        }
    }

    /// The board wakes up in time for whatever is next.
    fn check_deadlines(&self) {
        let timed = |s: &Slot| !matches!(self.table[*s].state, TaskState::Waiting | TaskState::Dead);
        let next = self.table.slots().filter(timed).map(|s| self.table[s].deadline).min();
        assert!(next.is_none() || self.next_deadline().is_some_and(|d| Some(d) <= next));
        assert!(self.archive.next_deadline().is_none_or(|d| self.next_deadline().is_some_and(|n| n <= d)));
        assert!(self.walk(self.done).is_sorted_by_key(|s| self.table[*s].deadline));
    }
}
