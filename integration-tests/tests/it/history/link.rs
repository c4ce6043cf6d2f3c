//! A connection that survives anything the server does, and writes down what it did and saw.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hive_proto::error::Outcome;
use hive_proto::frame::MAGIC;
use hive_proto::items::{self, Assign, Item, Refused, Task};
use hive_proto::messages::{self, Welcome, Work};
use hive_proto::{Code, Flags, Frame, Lease, Op, TaskId};

use super::load::{Queue, Site, name_of};
use super::record::{Answer, How, Key, Mark, Micros, Seen, Submitted, What};
use crate::harness::{
    Client, PATIENCE, Seen as Came, Server, Wire, error_of, frame, hello, items as items_of,
};

/// A task in hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) key: Key,
    pub(super) queue: &'static Queue,
    /// Until when it is left alone.
    pub(super) until: Micros,
}

enum Asking {
    Submit { queue: &'static str, tasks: Vec<Submitted> },
    Settle { how: How, items: Vec<(Lease, Mark)> },
    Cancel(Vec<TaskId>),
    Query,
    Dead,
    Work(&'static Queue),
}

/// See the module.
pub(super) struct Link<'s> {
    site: &'s Site<'s>,
    pub(super) number: u32,
    wire: Wire,
    next_id: u32,
    asking: HashMap<u32, (Micros, Asking)>,
    consumers: HashMap<u32, &'static Queue>,
    /// Tasks that came and that nobody has taken up.
    pub(super) came: VecDeque<Held>,
    /// Tasks submitted here whose outcome has not been pushed.
    pub(super) awaited: HashSet<TaskId>,
    /// Tasks that were seen here, the latest last.
    pub(super) known: VecDeque<TaskId>,
    missed: u64,
    pub(super) open: bool,
}

impl<'s> Link<'s> {
    /// Logs in, if the server is there.
    pub(super) fn open(site: &'s Site<'s>, server: &Server, labels: &[&'static str]) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&server.addr, PATIENCE).ok()?;
        stream.set_nodelay(true).ok()?;
        let from = site.log.now();
        let mut wire = Wire::over(stream);
        wire.try_send(&[&MAGIC[..], &hello(&Client::hello(server, "", labels))].concat());
        let Came::Frame(first) = wire.see(PATIENCE) else { return None };
        if first.view().op() != Ok(Op::Welcome) {
            return None;
        }
        let welcome: Welcome = messages::decode(first.view().header).expect("a well-formed welcome");
        let number = site.log.link();
        let what = What::Opened { epoch: welcome.epoch, labels: labels.to_vec() };
        site.log.note(number, from, what);
        Some(Self {
            site,
            number,
            wire,
            next_id: 0,
            asking: HashMap::new(),
            consumers: HashMap::new(),
            came: VecDeque::new(),
            awaited: HashSet::new(),
            known: VecDeque::new(),
            missed: 0,
            open: true,
        })
    }

    fn ask(&mut self, op: Op, flags: u16, count: u16, header: &[u8], payload: &[u8], asking: Asking) {
        self.next_id += 1;
        let id = self.next_id;
        self.asking.insert(id, (self.site.log.now(), asking));
        self.wire.try_send(&frame(op, flags, id, count, header, payload));
    }

    /// Requests without an answer so far.
    pub(super) fn unanswered(&self) -> usize {
        self.asking.len()
    }

    pub(super) fn work(&mut self, queue: &'static Queue, credit_tasks: u32) {
        let work =
            Work { queue: queue.name.into(), credit_tasks, credit_bytes: 16 * 1024 * 1024, labels: vec![] };
        self.ask(Op::Work, 0, 0, &messages::encode(&work), &[], Asking::Work(queue));
        self.consumers.insert(self.next_id, queue);
    }

    /// Submits tasks with their payloads and their options as they go over the wire.
    pub(super) fn submit(&mut self, queue: &'static str, tasks: Vec<(Submitted, Vec<u8>, Vec<u8>)>) {
        let mut payload = Vec::new();
        for (_, bytes, ext) in &tasks {
            items::Submit { ext, payload: bytes }.write(&mut payload);
        }
        let count = tasks.len() as u16;
        let tasks = tasks.into_iter().map(|t| t.0).collect();
        self.ask(
            Op::Submit,
            Flags::WATCH,
            count,
            queue.as_bytes(),
            &payload,
            Asking::Submit { queue, tasks },
        );
    }

    /// Settles tasks of one queue, each with its result or its error.
    pub(super) fn settle(&mut self, how: How, by_policy: bool, tasks: &[(Lease, Vec<u8>)]) {
        let mut payload = Vec::new();
        for (lease, bytes) in tasks {
            let (lease, error) = (*lease, std::str::from_utf8(bytes).unwrap_or_default());
            match how {
                How::Complete => items::Complete { lease, result: bytes }.write(&mut payload),
                How::Fail { delay_ms } => {
                    let delay_ms = if by_policy { items::DELAY_BY_POLICY } else { delay_ms };
                    items::Fail { lease, delay_ms, permanent: false, error }.write(&mut payload);
                }
                How::FailForGood => {
                    items::Fail { lease, delay_ms: 0, permanent: true, error }.write(&mut payload);
                }
                How::Release { delay_ms } => items::Release { lease, delay_ms }.write(&mut payload),
            }
        }
        let op = match how {
            How::Complete => Op::Complete,
            How::Fail { .. } | How::FailForGood => Op::Fail,
            How::Release { .. } => Op::Release,
        };
        let items = tasks.iter().map(|(lease, bytes)| (*lease, Mark::of(bytes))).collect();
        self.ask(op, 0, tasks.len() as u16, &[], &payload, Asking::Settle { how, items });
    }

    pub(super) fn cancel(&mut self, tasks: Vec<TaskId>) {
        self.ask(Op::Cancel, 0, tasks.len() as u16, &[], &packed(&tasks), Asking::Cancel(tasks));
    }

    pub(super) fn query(&mut self, tasks: &[TaskId]) {
        self.ask(Op::Query, 0, tasks.len() as u16, &[], &packed(tasks), Asking::Query);
    }

    /// Waits for any of the tasks, for a moment.
    pub(super) fn wait(&mut self, tasks: &[TaskId]) {
        let header = [&[1_u8][..], &50_u32.to_le_bytes()].concat();
        self.ask(Op::Wait, 0, tasks.len() as u16, &header, &packed(tasks), Asking::Query);
    }

    pub(super) fn list_dead(&mut self, queue: &str) {
        let header = [&u32::from(u16::MAX).to_le_bytes()[..], queue.as_bytes()].concat();
        self.ask(Op::ListDead, 0, 0, &header, &[], Asking::Dead);
    }

    /// Takes what comes within the time.
    pub(super) fn pump(&mut self, within: Duration) {
        let mut within = within;
        while self.open {
            match self.wire.see(within) {
                Came::Frame(f) => self.take(&f),
                Came::Silence => break,
                Came::End => self.end(),
            }
            within = Duration::from_micros(100);
        }
        let patience = self.site.patience.as_micros() as Micros;
        let now = self.site.log.now();
        let late = |(from, _): &(Micros, Asking)| now.saturating_sub(*from) > patience;
        if self.asking.values().any(late) {
            self.site.gave_up.store(true, Ordering::Relaxed);
            self.give_up(true);
            self.open = false;
        }
    }

    /// Waits until everything is answered.
    pub(super) fn catch_up(&mut self) {
        while self.open && self.unanswered() > 0 {
            self.pump(Duration::from_millis(20));
        }
    }

    /// Everything has an outcome: stays until it has been told, and says so.
    pub(super) fn stay_to_the_end(mut self) {
        let began = self.site.log.now();
        let patience = self.site.patience.as_micros() as Micros;
        while self.open && !self.awaited.is_empty() && self.site.log.now() - began < patience {
            self.pump(Duration::from_millis(20));
        }
        // The answer stands behind what was said before.
        self.query(&[]);
        self.catch_up();
        if self.open {
            self.site.log.note(self.number, began, What::Told { missed: self.missed });
        }
    }

    /// The connection is lost: nobody knows what became of what was asked.
    pub(super) fn end(&mut self) {
        self.open = false;
        self.give_up(false);
    }

    fn give_up(&mut self, never: bool) {
        for (_, (from, asking)) in self.asking.drain() {
            let what = match asking {
                Asking::Submit { queue, tasks } => {
                    What::Submit { queue, tasks, answer: if never { Answer::Never } else { Answer::Unknown } }
                }
                Asking::Settle { how, items } => {
                    What::Settle { how, items, answer: if never { Answer::Never } else { Answer::Unknown } }
                }
                Asking::Cancel(tasks) => {
                    What::Cancel { tasks, answer: if never { Answer::Never } else { Answer::Unknown } }
                }
                Asking::Query if never => What::Silence("query"),
                Asking::Dead if never => What::Silence("list of dead letters"),
                Asking::Work(_) if never => What::Silence("work"),
                Asking::Query | Asking::Dead | Asking::Work(_) => continue,
            };
            self.site.log.note(self.number, from, what);
        }
    }

    fn take(&mut self, frame: &Frame) {
        let f = frame.view();
        match f.op().expect("the server sends known operations") {
            Op::Assign => self.assigned(frame),
            Op::Result => {
                let seen = seen(frame);
                for s in &seen {
                    self.awaited.remove(&s.task);
                    self.remember(s.task);
                }
                self.site.log.note(self.number, self.site.log.now(), What::Pushed(seen));
            }
            Op::ResultsMissed => self.missed += 1,
            Op::Accepted | Op::Settled | Op::Tasks | Op::Ok | Op::Error => {
                if let Some((from, asking)) = self.asking.remove(&f.prefix.id) {
                    self.answered(from, asking, frame);
                }
            }
            _ => {}
        }
    }

    fn assigned(&mut self, frame: &Frame) {
        let Some(queue) = self.consumers.get(&frame.view().prefix.id).copied() else { return };
        let now = self.site.log.now();
        for a in items_of::<Assign<'_>>(frame) {
            let payload = name_of(a.payload);
            if let Ok(key) = payload {
                self.came.push_back(Held { lease: a.lease, key, queue, until: 0 });
            }
            let options = Mark::of(a.ext);
            let what = What::Assign { queue: queue.name, lease: a.lease, payload, options };
            self.site.log.note(self.number, now, what);
        }
    }

    fn answered(&mut self, from: Micros, asking: Asking, frame: &Frame) {
        let error = (frame.view().op() == Ok(Op::Error)).then(|| error_of(frame));
        let failed = error.map(|e| match e.outcome {
            Outcome::NotDone => (true, e.to_string()),
            _ => (false, String::new()),
        });
        let what = match asking {
            Asking::Submit { queue, tasks } => {
                let answer = failed.map_or_else(|| Answer::Ok(accepted(frame)), refusal);
                if let Answer::Ok((ids, _)) = &answer {
                    self.awaited.extend(ids);
                    ids.iter().for_each(|id| self.remember(*id));
                }
                What::Submit { queue, tasks, answer }
            }
            Asking::Settle { how, items } => {
                let answer = failed.map_or_else(|| Answer::Ok(settled(frame, items.len())), refusal);
                What::Settle { how, items, answer }
            }
            Asking::Cancel(tasks) => {
                let answer = failed.map_or_else(|| Answer::Ok(settled(frame, tasks.len())), refusal);
                What::Cancel { tasks, answer }
            }
            Asking::Query if failed.is_none() => What::Asked(seen(frame)),
            Asking::Dead if failed.is_none() => What::DeadLetters(seen(frame)),
            // The dispatcher was made anew, and the consumer is not open.
            Asking::Work(queue) if failed.is_some() => {
                let credit = 16;
                return self.work(queue, credit);
            }
            Asking::Query | Asking::Dead | Asking::Work(_) => return,
        };
        self.site.log.note(self.number, from, what);
    }

    fn remember(&mut self, task: TaskId) {
        self.known.push_back(task);
        if self.known.len() > 200 {
            self.known.pop_front();
        }
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn refusal<T>((not_done, text): (bool, String)) -> Answer<T> {
    if not_done { Answer::NotDone(text) } else { Answer::Unknown }
}

fn accepted(frame: &Frame) -> (Vec<TaskId>, u8) {
    let f = frame.view();
    let mut r = items::Reader(f.header);
    let (first, durability) = (TaskId(r.u64().expect("first task")), r.u8().expect("durability"));
    ((0..u64::from(f.prefix.count)).map(|n| first.offset(n)).collect(), durability)
}

/// Of each item why it was refused; the count of the answer must fit.
fn settled(frame: &Frame, items: usize) -> Vec<Option<Code>> {
    let mut all = vec![None; items];
    let mut reader = items::Reader(frame.view().payload);
    let refused: Vec<_> = std::iter::from_fn(|| Refused::read(&mut reader)).collect();
    assert_eq!(usize::from(frame.view().prefix.count) + refused.len(), items, "accepted and refused");
    for r in refused {
        all[usize::from(r.index)] = Some(Code::from_u16(r.code).expect("a known code"));
    }
    all
}

fn seen(frame: &Frame) -> Vec<Seen> {
    let seen =
        |t: Task<'_>| Seen { task: t.task, state: t.state, attempt: t.attempt, payload: Mark::of(t.payload) };
    items_of(frame).into_iter().map(seen).collect()
}

fn packed(tasks: &[TaskId]) -> Vec<u8> {
    let mut out = Vec::new();
    tasks.iter().for_each(|t| t.write(&mut out));
    out
}
