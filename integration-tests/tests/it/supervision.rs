//! Demand 5 of the issue: each kind of actor panics under load. The process lives, service resumes within a second, and
//! nothing is lost in silence.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hive_proto::error::Outcome;
use hive_proto::frame::MAGIC;
use hive_proto::items::{Assign, Complete, Item, RevokeReason, Revoked, Task};
use hive_proto::messages::{self, TasksLost};
use hive_proto::{Code, Frame, Op, TaskId, TaskState};

use crate::harness::{
    Bystander, Client, PATIENCE, Seen, Server, Wire, assert_error, error_of, eventually, hello, items,
    payloads,
};

const CONFIG: &str = "faults = true";
/// Panics of an actor in a test. The quickest return counts: on a busy machine one may be held up.
const PANICS: u64 = 3;
const RESUMED_WITHIN: Duration = Duration::from_secs(1);
const BATCH: usize = 20;

/// What became of the tasks of one submitter.
#[derive(Default)]
struct Ledger {
    open: HashSet<TaskId>,
    completed: HashSet<TaskId>,
    lost: HashSet<TaskId>,
    accepted: usize,
    refused: usize,
    /// Submitted, and nobody knows whether they were taken.
    unknown: usize,
}

impl Ledger {
    fn note(&mut self, frame: &Frame) {
        match frame.view().op() {
            Ok(Op::Result) => {
                for t in items::<Task<'_>>(frame) {
                    assert_eq!(t.state, TaskState::Completed);
                    // News of the loss overtake results that were on their way.
                    if !(self.open.remove(&t.task) || self.lost.remove(&t.task)) {
                        self.unknown = self.unknown.checked_sub(1).expect("a task that was not open");
                        self.accepted += 1;
                    }
                    assert!(self.completed.insert(t.task), "{} completed twice", t.task);
                }
            }
            Ok(Op::TasksLost) => {
                let lost: TasksLost = messages::decode(frame.view().header).expect("well-formed");
                let gone: Vec<_> = self.open.iter().copied().filter(|t| lost.covers(*t)).collect();
                for task in gone {
                    self.open.remove(&task);
                    self.lost.insert(task);
                }
            }
            Ok(Op::ResultsMissed) => {} // what is open at the end is asked for
            Ok(Op::Error) => assert_error(&error_of(frame), Code::Restarted, "restarted"),
            other => panic!("{other:?}"),
        }
    }
}

/// Submits until told to stop, then waits until nothing is open.
fn submit_all_the_time(mut client: Client, stop: &AtomicBool, completed: &AtomicU64) -> Ledger {
    let mut ledger = Ledger::default();
    let mut said = 0;
    while !stop.load(Ordering::Relaxed) {
        match client.try_submit("load", &payloads(BATCH), &Default::default()) {
            Ok(accepted) => {
                assert_eq!(accepted.tasks.len(), BATCH);
                ledger.accepted += BATCH;
                ledger.open.extend(accepted.tasks);
            }
            Err(e) if e.outcome == Outcome::Unknown => ledger.unknown += BATCH,
            Err(e) => {
                assert_error(&e, Code::Restarted, "it did not happen");
                ledger.refused += BATCH;
            }
        }
        while let Some(frame) = client.poll(Duration::from_millis(u64::from(ledger.open.len() > 10 * BATCH)))
        {
            ledger.note(&frame);
        }
        completed.fetch_add((ledger.completed.len() - said) as u64, Ordering::Relaxed);
        said = ledger.completed.len();
    }
    let began = Instant::now();
    while !ledger.open.is_empty() {
        assert!(began.elapsed() < PATIENCE, "{} tasks were lost in silence", ledger.open.len());
        match client.poll(Duration::from_secs(1)) {
            Some(frame) => ledger.note(&frame),
            None => {
                let open: Vec<_> = ledger.open.iter().copied().collect();
                for task in client.query(&open).into_iter().filter(|t| t.state == TaskState::Completed) {
                    ledger.open.remove(&task.task);
                    ledger.completed.insert(task.task);
                }
            }
        }
    }
    ledger
}

/// Completes whatever comes; knows nothing of restarts.
fn work_all_the_time(mut client: Client, stop: &AtomicBool) {
    client.work("load", 100);
    while !stop.load(Ordering::Relaxed) {
        let Some(frame) = client.poll(Duration::from_millis(20)) else { continue };
        if frame.view().op() == Ok(Op::Assign) {
            let (mut results, tasks) = (Vec::new(), items::<Assign<'_>>(&frame));
            tasks.iter().for_each(|t| Complete { lease: t.lease, result: t.payload }.write(&mut results));
            client.send(Op::Complete, 0, 0, tasks.len() as u16, &[], &results);
        }
    }
}

/// Lets an actor panic [`PANICS`] times. `again` is service: it is asked for until the actor has been made anew, and
/// once more. From the panic to the end of that it must once take less than [`RESUMED_WITHIN`].
fn resumes(server: &mut Server, actor: &str, name: &str, mut again: impl FnMut(&Server)) {
    let mut best = Duration::MAX;
    for n in 1..=PANICS {
        let began = Instant::now();
        server.panic(actor);
        eventually("the restart", || {
            again(server);
            (server.restarts(name) == n).then_some(())
        });
        again(server);
        best = best.min(began.elapsed());
    }
    assert!(best < RESUMED_WITHIN, "service resumed after {best:?}");
    assert!(server.is_running());
    let status = server.status();
    let actors = status["actors"].as_array().expect("actors");
    let it = actors.iter().find(|a| a["name"] == name).expect("named");
    assert_eq!((&it["restarts"], &it["last_panic"]), (&PANICS.into(), &"injected fault".into()));
    eventually("ready again", || (server.get("/readyz").0 == 200).then_some(()));
}

#[test]
fn the_dispatcher_panics() {
    // Several shards: the dispatcher has a thread of its own.
    let mut server = Server::with("faults = true\nshards = 2\nqueue_defaults.durability = \"memory\"");
    let (stop, completed) = (AtomicBool::new(false), AtomicU64::new(0));
    let clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let mut waiter = server.client();
    let held = waiter.submit("nobody-works-here", &payloads(3));
    std::thread::scope(|threads| {
        let (mut submitters, mut workers) = (Vec::new(), Vec::new());
        let (stop, completed) = (&stop, &completed);
        let flags = [stop];
        let _ends = Ends(&flags);
        for (n, client) in clients.into_iter().enumerate() {
            if n % 2 == 0 {
                submitters.push(threads.spawn(move || submit_all_the_time(client, stop, completed)));
            } else {
                workers.push(threads.spawn(move || work_all_the_time(client, stop)));
            }
        }
        let more = || {
            let until = completed.load(Ordering::Relaxed) + 500;
            eventually("tasks that complete", || (completed.load(Ordering::Relaxed) > until).then_some(()));
        };
        more();
        let waiting = waiter.ask_wait(false, 600_000, &held);
        waiter.echo();
        resumes(&mut server, "dispatcher", "dispatcher-0", |_| more());
        let told = waiter.next(Op::TasksLost);
        let lost: TasksLost = messages::decode(told.view().header).expect("well-formed");
        assert!(held.iter().all(|t| lost.covers(*t)), "{lost:?} does not cover {held:?}");
        assert!(waiter.query(&held).iter().all(|t| matches!(t.state, TaskState::Unknown | TaskState::Lost)));
        let _ = waiting; // ended by TasksLost
        // The workers go on until the submitters have everything.
        stop.store(true, Ordering::Relaxed);
        let rescue = server.client();
        let done = AtomicBool::new(false);
        std::thread::scope(|inner| {
            inner.spawn(|| work_all_the_time(rescue, &done));
            workers.into_iter().for_each(|w| w.join().expect("the worker"));
            for s in submitters {
                let l = s.join();
                done.store(l.is_err(), Ordering::Relaxed);
                let l = l.expect("the submitter");
                assert_eq!(l.accepted, l.completed.len() + l.lost.len());
                assert!(l.completed.len() > l.lost.len(), "{} lost", l.lost.len());
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

/// Ends what runs beside a test that fails, which would otherwise wait for it for ever.
struct Ends<'a>(&'a [&'a AtomicBool]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::Relaxed));
    }
}

/// Queues that are journaled lose nothing, whoever panics: each task that was taken has its result pushed.
fn nothing_is_lost(actor: &str, name: &str) {
    let mut server = Server::with("faults = true\nshards = 2");
    let (stop, completed) = (AtomicBool::new(false), AtomicU64::new(0));
    let (submitter, worker) = (server.client(), server.client());
    let mut waiter = server.client();
    let held = waiter.submit("nobody-works-here", &payloads(3));
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let (stop, completed, done) = (&stop, &completed, &done);
        let flags = [stop, done];
        let _ends = Ends(&flags);
        let submitter = threads.spawn(move || submit_all_the_time(submitter, stop, completed));
        threads.spawn(move || work_all_the_time(worker, done));
        let more = || {
            let until = completed.load(Ordering::Relaxed) + 200;
            eventually("tasks that complete", || (completed.load(Ordering::Relaxed) > until).then_some(()));
        };
        more();
        resumes(&mut server, actor, name, |_| more());
        stop.store(true, Ordering::Relaxed);
        let ledger = submitter.join();
        done.store(true, Ordering::Relaxed);
        let ledger = ledger.expect("the submitter");
        assert_eq!(ledger.accepted, ledger.completed.len());
        assert!(ledger.accepted > 500 && ledger.lost.is_empty(), "{} accepted", ledger.accepted);
    });
    assert!(waiter.query(&held).iter().all(|t| t.state == TaskState::Waiting));
    assert_eq!(waiter.count(Op::TasksLost), 0, "nothing to tell");
}

#[test]
fn the_dispatcher_panics_and_journaled_queues_lose_nothing() {
    nothing_is_lost("dispatcher", "dispatcher-0");
}

#[test]
fn the_journaler_panics() {
    nothing_is_lost("journaler", "journaler");
}

#[test]
fn a_hub_shard_panics() {
    let mut server = Server::with(CONFIG);
    let (mut publisher, mut subscriber) = (server.client(), server.client());
    let (exact, wild) = (subscriber.subscribe("news.x", None), subscriber.subscribe("news.*", None));
    let team = subscriber.subscribe("news.>", Some("team"));
    let service = subscriber.subscribe("service", None);
    let mut reached = Vec::new();
    let mut n = 0_u32;
    let mut pending = None;
    resumes(&mut server, "hub", "hub-0", |_| {
        n += 1;
        match publisher.publish("news.x", &n.to_le_bytes()) {
            Ok(count) => {
                assert_eq!(count, 3, "all subscriptions are there, nobody has renewed them");
                reached.push(n);
            }
            Err(e) => assert_error(&e, Code::Restarted, "it did not happen"),
        }
        // Of a request that was under way the asker is told, without its number.
        pending.get_or_insert_with(|| publisher.ask_request("service", 600_000, b"?"));
    });
    assert_error(&publisher.answer(0).expect_err("told"), Code::Restarted, "requests");
    for sub in [exact, wild, team] {
        let heard: HashSet<u32> = (0..reached.len())
            .map(|_| u32::from_le_bytes(subscriber.heard(sub).payload.try_into().expect("a number")))
            .collect();
        assert!(reached.iter().all(|n| heard.contains(n)), "what was acknowledged was delivered");
    }
    let id = publisher.ask_request("service", 600_000, b"!");
    let last = loop {
        let (token, _, payload) = subscriber.requested(service);
        if payload == b"!" {
            break token;
        }
    };
    subscriber.reply(last, b"served");
    assert_eq!(publisher.response(id).expect("answered"), b"served");
}

#[test]
fn the_owner_of_sessions_panics() {
    let mut server = Server::with_session(CONFIG, "heartbeat_ms = 200\ndead_ms = 20000");
    let bystander = Bystander::start(&server);
    let mut old = server.client();
    resumes(&mut server, "sessions", "sessions-0", |server| {
        old.echo();
        eventually("a new connection", || logs_in(server));
    });
    // Heartbeats go on: nobody is found dead, and the server is heard from.
    old.wire.alive = false;
    let mut bytes = [0; 16];
    use std::io::Read as _;
    old.wire.stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    old.wire.stream.read_exact(&mut bytes).expect("a ping");
    assert_eq!(bytes[5], Op::Ping as u8);
    bystander.undisturbed();
}

/// A connection that finds nobody who takes it in is closed, and comes again.
fn logs_in(server: &Server) -> Option<()> {
    let mut wire = Wire::connect(server.addr);
    wire.try_send(&[&MAGIC[..], &hello(&Client::hello(server, "", &[]))].concat());
    matches!(wire.see(PATIENCE), Seen::Frame(f) if f.view().op() == Ok(Op::Welcome)).then_some(())
}

#[test]
fn one_session_panics() {
    let mut server = Server::with(CONFIG);
    let mut submitter = server.client();
    let ids = submitter.submit("q", &payloads(40));
    drop(submitter);
    eventually("only workers are left", || (server.status()["agents_total"] == 0).then_some(()));
    let mut workers: Vec<_> = (0..4).map(|n| server.agent(&format!("worker-{n}"), &[])).collect();
    let consumers: Vec<_> = workers.iter_mut().map(|w| w.work("q", 10)).collect();
    for (worker, consumer) in workers.iter_mut().zip(&consumers) {
        worker.gather(*consumer, 10);
    }
    server.panic("session");
    server.queue_has("q", "waiting", 10);
    let left = server.status()["agents"].to_string();
    let gone: Vec<_> = (0..4).filter(|n| !left.contains(&format!("worker-{n}"))).collect();
    assert_eq!(gone.len(), 1, "one and only one session ended: {left}");
    workers[gone[0]].closed();
    for (n, worker) in workers.iter_mut().enumerate() {
        if n != gone[0] {
            worker.echo();
        }
    }
    let mut again = server.agent(&format!("worker-{}", gone[0]), &[]);
    let consumer = again.work("q", 10);
    let tasks = again.gather(consumer, 10);
    assert!(tasks.iter().all(|t| ids.contains(&t.lease.task) && t.lease.attempt == 2));
    assert_eq!(again.complete(&tasks).accepted, 10);
    assert!(server.is_running());
}

/// A batch that a panic ends did not happen: what it asked for is refused, and asking again works.
#[test]
fn what_a_panic_interrupts_is_answered_and_can_be_asked_again() {
    let server = Server::with(CONFIG);
    let (mut submitter, mut worker) = (server.client(), server.client());
    let task = submitter.submit("q", &[b"x"])[0];
    let header = [&[0_u8][..], &60_000_u32.to_le_bytes()].concat();
    let wait = submitter.ask(Op::Wait, 0, 1, &header, &task.0.to_le_bytes());
    submitter.echo();
    server.queue_has("q", "waiting", 1);
    server.panic("dispatcher");
    let work = messages::encode(&messages::Work {
        queue: "q".into(),
        credit_tasks: 10,
        credit_bytes: 1000,
        labels: vec![],
    });
    let consumer = worker.fresh();
    worker.send(Op::Work, 0, consumer, 0, &work, &[]);
    assert_error(&worker.answer(consumer).expect_err("interrupted"), Code::Restarted, "did not happen");
    assert_error(&submitter.answer(wait).expect_err("gone"), Code::Restarted, "restarted");
    worker.send(Op::Work, 0, consumer, 0, &work, &[]);
    worker.answer(consumer).expect("the id is free");
    // The queue is journaled: the task is still there, and comes before the next one.
    let again = submitter.submit("q", &[b"again"])[0];
    let assigned: Vec<TaskId> = worker.gather(consumer, 2).iter().map(|t| t.lease.task).collect();
    assert_eq!(assigned, [task, again]);
}

/// The leases of a dispatcher end with it: their workers are told, and the tasks come again under the next epoch.
#[test]
fn leases_end_with_the_dispatcher() {
    let server = Server::with(CONFIG);
    let (mut submitter, mut worker) = (server.client(), server.client());
    let ids = submitter.submit("q", &payloads(3));
    let consumer = worker.work("q", 10);
    let old = worker.gather(consumer, 3);
    server.panic("dispatcher");
    let _ = submitter.try_query(&[]); // the batch that the panic interrupts
    let mut revoked = Vec::new();
    while revoked.len() < 3 {
        let frame = worker.next(Op::Revoked);
        revoked.extend(items::<Revoked>(&frame).iter().map(|r| (r.lease, r.reason)));
    }
    assert!(old.iter().all(|t| revoked.contains(&(t.lease, RevokeReason::Restarted))));
    let again = worker.gather(consumer, 3);
    assert!(again.iter().all(|t| ids.contains(&t.lease.task) && t.lease.epoch > old[0].lease.epoch));
    assert_eq!(worker.complete(&again).accepted, 3);
    assert_eq!(submitter.results_of(&ids).len(), 3);
}
