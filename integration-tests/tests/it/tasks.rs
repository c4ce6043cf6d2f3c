//! Demand 3 of the issue: tasks, from the submit to the result.

use hive_proto::items::{DELAY_BY_POLICY, Progressed, RevokeReason, Revoked};
use hive_proto::{Code, Op, TaskState};

use crate::harness::{Server, TaskOptions, assert_error, eventually, items, payloads};

#[test]
fn a_batch_goes_round() {
    let server = Server::start();
    let (mut submitter, mut worker) = (server.client(), server.client());
    let consumer = worker.work("jobs", 1000);
    let accepted = submitter.try_submit("jobs", &payloads(500), &TaskOptions::default()).expect("accepted");
    assert_eq!((accepted.tasks.len(), accepted.durability, accepted.refused), (500, 1, vec![]));
    let tasks = worker.gather(consumer, 500);
    assert_eq!(tasks.iter().map(|t| t.lease.task).collect::<Vec<_>>(), accepted.tasks, "first in, first out");
    assert!(tasks.iter().all(|t| t.lease.attempt == 1 && t.lease_ms == 30_000 && t.ext.is_empty()));
    assert_eq!(worker.complete(&tasks).accepted, 500);
    let results = submitter.results_of(&accepted.tasks);
    for (i, r) in results.iter().enumerate() {
        assert_eq!((r.state, &r.payload), (TaskState::Completed, &format!("done: task {i}").into_bytes()));
    }
    server.queue_has("jobs", "completed", 500);
}

#[test]
fn tasks_go_to_workers_that_offer_their_labels() {
    let server = Server::start();
    let mut submitter = server.client();
    let mut plain = server.agent("plain", &[]);
    let mut gpu = server.agent("gpu", &["gpu"]);
    let label = |l: &[&str]| TaskOptions {
        labels: l.iter().map(ToString::to_string).collect(),
        ..TaskOptions::default()
    };
    let plain_consumer = plain.work("q", 10);
    let gpu_consumer = gpu.work_as("q", 10, 1000, &["model=x"]).expect("consumer");
    let needs_gpu = submitter.submit_with("q", &payloads(3), &label(&["gpu"]))[0];
    let needs_both = submitter.submit_with("q", &payloads(1), &label(&["model=x", "gpu"]))[0];
    let needs_more = submitter.submit_with("q", &payloads(1), &label(&["gpu", "vision"]))[0];
    let got: Vec<_> = gpu.gather(gpu_consumer, 4).iter().map(|t| t.lease.task).collect();
    assert_eq!(got, [needs_gpu, needs_gpu.offset(1), needs_gpu.offset(2), needs_both]);
    assert_eq!((plain.count(Op::Assign), gpu.count(Op::Assign)), (0, 0));
    assert_eq!(submitter.query(&[needs_more])[0].state, TaskState::Waiting);
    let anyone = submitter.submit("q", &payloads(20));
    let shares = (plain.gather(plain_consumer, 10).len(), gpu.gather(gpu_consumer, 6).len());
    assert_eq!(shares, (10, 6), "credit is what bounds both");
    assert_eq!(anyone.len(), 20);
}

#[test]
fn credit_is_a_window() {
    let server = Server::start();
    let mut client = server.client();
    client.submit("q", &payloads(10));
    let consumer = client.work("q", 3);
    let first = client.gather(consumer, 3);
    assert_eq!(client.count(Op::Assign), 0);
    client.complete(&first[..1]);
    client.one(consumer);
    client.credit(consumer, 5);
    client.gather(consumer, 2);
    client.credit(consumer, 0);
    client.complete(&first[1..]);
    assert_eq!(client.count(Op::Assign), 0, "no credit, no task");
    client.credit(consumer, 100);
    client.gather(consumer, 4);
    // Bytes bound as well, but one task is given even if it is larger.
    client.submit("large", &[vec![1; 5000], vec![2; 5000]]);
    let narrow = client.work_as("large", 10, 100, &[]).expect("consumer");
    let large = client.one(narrow);
    assert_eq!(client.count(Op::Assign), 0);
    client.complete(&[large]);
    client.one(narrow);
}

#[test]
fn a_closed_consumer_gets_nothing_more_and_may_settle() {
    let server = Server::start();
    let mut client = server.client();
    client.submit("q", &payloads(2));
    let consumer = client.work("q", 1);
    let task = client.one(consumer);
    client.send(Op::StopWork, 0, consumer, 0, &[], &[]);
    client.answer(consumer).expect("closed");
    assert_eq!(client.complete(&[task]).accepted, 1);
    assert_eq!(client.count(Op::Assign), 0);
    server.queue_has("q", "waiting", 1);
}

#[test]
fn expired_leases_return_and_renewed_ones_do_not() {
    let server = Server::with("queues = [{ name = \"q\", lease_ms = 1500 }]");
    let mut client = server.client();
    client.submit("q", &payloads(2));
    let consumer = client.work("q", 2);
    let tasks = client.gather(consumer, 2);
    let (kept, left) = (tasks[0].lease, tasks[1].lease);
    let began = std::time::Instant::now();
    let revoked = loop {
        assert_eq!(client.renew(kept).accepted, 1, "renewed in time");
        if client.count(Op::Revoked) > 0 {
            break client.next(Op::Revoked);
        }
        std::thread::sleep(std::time::Duration::from_millis(50)); // a pace, not a wait: renewing is what is tested
    };
    assert_eq!(items::<Revoked>(&revoked), [Revoked { lease: left, reason: RevokeReason::Expired }]);
    assert!(began.elapsed().as_millis() >= 1400, "not before its time");
    let again = client.one(consumer);
    assert_eq!((again.lease.task, again.lease.attempt), (left.task, 2));
    assert_eq!(client.complete_with(kept, b"kept").accepted, 1);
    assert_eq!(client.complete_with(left, b"late").refused, [(0, Code::StaleLease)]);
}

#[test]
fn a_worker_that_goes_gives_back_at_once() {
    let server = Server::start();
    let (mut submitter, mut second) = (server.client(), server.client());
    let ids = submitter.submit("q", &payloads(5));
    let mut first = server.client();
    let consumer = first.work("q", 5);
    first.gather(consumer, 5);
    let waiting = second.work("q", 5);
    drop(first);
    let again = second.gather(waiting, 5);
    assert_eq!(again.iter().map(|t| t.lease.task).collect::<Vec<_>>(), ids, "in their old order");
    assert!(again.iter().all(|t| t.lease.attempt == 2));
    second.complete(&again);
    assert!(submitter.results_of(&ids).iter().all(|o| o.state == TaskState::Completed && o.attempt == 2));
}

#[test]
fn dead_letters_get_another_chance_or_are_forgotten() {
    let server = Server::with("queues = [{ name = \"q\", attempts_max = 2, retry_delay_ms = 0 }]");
    let (mut client, mut worker) = (server.client(), server.client());
    let consumer = worker.work("q", 8);
    let ids = client.submit("q", &[b"one", b"two"]);
    let mut fail = |times: usize| {
        for task in worker.gather(consumer, times) {
            assert_eq!(worker.fail(task.lease, 0, false, "no").accepted, 1);
        }
    };
    let dead = |client: &mut crate::harness::Client, n| {
        let told = client.results(n);
        assert!(told.iter().all(|o| o.state == TaskState::Dead && o.payload == b"no"), "{told:?}");
        told.iter().map(|o| o.attempt).collect::<Vec<_>>()
    };
    fail(2);
    fail(2);
    assert_eq!(dead(&mut client, 2), [2, 2]);
    // Whoever watched is told the next outcome as well; all attempts are there again.
    assert_eq!(client.redrive(&ids[..1]).accepted, 1);
    fail(1);
    fail(1);
    assert_eq!(dead(&mut client, 1), [4]);
    assert_eq!(client.purge(&ids[..1]).accepted, 1);
    assert_eq!(client.query(&ids)[0].state, TaskState::Unknown);
    server.queue_has("q", "dead", 1);
    // One by one: what is no dead letter is refused, and the rest is done.
    let other = client.submit("other", &[b"waits"])[0];
    let mixed = [ids[0], other, ids[1], ids[1]];
    let answer = client.redrive(&mixed);
    let refused = [(0, Code::UnknownTask), (1, Code::NotDead), (3, Code::NotDead)];
    assert_eq!((answer.accepted, &answer.refused[..]), (1, &refused[..]));
    let answer = client.purge(&mixed);
    let refused = [(0, Code::UnknownTask), (1, Code::NotDead), (2, Code::NotDead), (3, Code::NotDead)];
    assert_eq!((answer.accepted, &answer.refused[..]), (0, &refused[..]));
    assert_eq!(worker.one(consumer).lease.task, ids[1]);
}

#[test]
fn failures_end_in_the_dead_letters() {
    let server = Server::with("queues = [{ name = \"q\", attempts_max = 3, retry_delay_ms = 1 }]");
    let mut client = server.client();
    let consumer = client.work("q", 1);
    let id = client.submit("q", &[b"doomed"])[0];
    for attempt in 1..=3 {
        let task = client.one(consumer);
        assert_eq!((task.lease.task, task.lease.attempt), (id, attempt));
        assert_eq!(client.fail(task.lease, DELAY_BY_POLICY, false, &format!("reason {attempt}")).accepted, 1);
    }
    let outcome = client.results(1).remove(0);
    assert_eq!(
        (outcome.state, outcome.attempt, &outcome.payload[..]),
        (TaskState::Dead, 3, &b"reason 3"[..])
    );
    let permanent = client.submit("q", &[b"hopeless"])[0];
    let task = client.one(consumer);
    client.fail(task.lease, 0, true, "never");
    assert_eq!(client.results(1)[0].state, TaskState::Dead);
    let dead = client.list_dead("q", 10).expect("list");
    let told: Vec<_> = dead.iter().map(|d| (d.task, d.state, &d.payload[..])).collect();
    assert_eq!(told, [(permanent, TaskState::Dead, &b"never"[..]), (id, TaskState::Dead, &b"reason 3"[..])]);
    assert_eq!(client.list_dead("q", 1).expect("list").len(), 1);
    assert_error(&client.list_dead("none", 1).expect_err("no queue"), Code::UnknownQueue, "\"none\"");
    server.queue_has("q", "dead", 2);
    let own = TaskOptions { max_attempts: Some(1), ..TaskOptions::default() };
    client.submit_with("q", &[b"once"], &own);
    let task = client.one(consumer);
    client.fail(task.lease, 0, false, "once is enough");
    assert_eq!(client.results(1)[0].state, TaskState::Dead);
}

#[test]
fn released_tasks_lose_no_attempt() {
    let server = Server::with("queues = [{ name = \"q\", attempts_max = 1 }]");
    let mut client = server.client();
    let consumer = client.work("q", 1);
    let id = client.submit("q", &[b"x"])[0];
    for attempt in 1..=5 {
        let task = client.one(consumer);
        assert_eq!(task.lease.attempt, attempt);
        assert_eq!(client.release(task.lease, u32::from(attempt == 2)).accepted, 1);
    }
    let task = client.one(consumer);
    client.complete(&[task]);
    let outcome = client.results(1).remove(0);
    assert_eq!((outcome.task, outcome.state), (id, TaskState::Completed));
}

#[test]
fn delayed_tasks_wait() {
    let server = Server::start();
    let mut client = server.client();
    let consumer = client.work("q", 10);
    let began = std::time::Instant::now();
    let later = TaskOptions { delay_ms: Some(400), ..TaskOptions::default() };
    let id = client.submit_with("q", &[b"later"], &later)[0];
    assert_eq!(client.query(&[id])[0].state, TaskState::Scheduled);
    let now = client.submit("q", &[b"now"])[0];
    assert_eq!(client.one(consumer).lease.task, now);
    assert_eq!(client.one(consumer).lease.task, id);
    assert!(began.elapsed().as_millis() >= 400);
}

#[test]
fn progress_is_pushed() {
    let server = Server::start();
    let (mut submitter, mut worker) = (server.client(), server.client());
    let consumer = worker.work("q", 1);
    let id = submitter.submit("q", &[b"x"])[0];
    let task = worker.one(consumer);
    assert_eq!(worker.progress(task.lease, 5000, b"half way").accepted, 1);
    let told = submitter.next(Op::Progressed);
    let expected = Progressed { task: id, attempt: 1, value: 5000, note: b"half way" };
    assert_eq!(items::<Progressed<'_>>(&told), [expected]);
    worker.complete(std::slice::from_ref(&task));
    assert_eq!(worker.progress(task.lease, 1, b"").refused, [(0, Code::AlreadySettled)]);
}

#[test]
fn cancelled_tasks_are_not_run() {
    let server = Server::start();
    let (mut submitter, mut worker) = (server.client(), server.client());
    let ids = submitter.submit("q", &payloads(3));
    let consumer = worker.work("q", 1);
    let running = worker.one(consumer);
    assert_eq!(submitter.cancel(&ids[..2]).accepted, 2);
    let states: Vec<_> = submitter.results_of(&ids[..2]).iter().map(|o| o.state).collect();
    assert_eq!(states, [TaskState::Cancelled; 2]);
    let void = worker.next(Op::Revoked);
    assert_eq!(items::<Revoked>(&void), [Revoked { lease: running.lease, reason: RevokeReason::Cancelled }]);
    let next = worker.one(consumer);
    assert_eq!(next.lease.task, ids[2], "its credit came back with the task");
    assert_eq!(worker.complete(&[running]).refused.len(), 1);
    assert_eq!(submitter.cancel(&ids[..1]).refused, [(0, Code::AlreadySettled)]);
}

#[test]
fn waits_end_with_all_or_any_or_their_time() {
    let server = Server::start();
    let (mut submitter, mut worker) = (server.client(), server.client());
    let ids = submitter.submit("q", &payloads(3));
    let consumer = worker.work("q", 3);
    let tasks = worker.gather(consumer, 3);
    let states = |o: &[crate::harness::Outcome]| o.iter().map(|o| o.state).collect::<Vec<_>>();
    use TaskState::{Completed, Running};

    let soon = submitter.ask_wait(false, 50, &ids);
    assert_eq!(states(&submitter.tasks(soon)), [Running; 3], "its time was over");
    let (any, all) = (submitter.ask_wait(true, 60_000, &ids), submitter.ask_wait(false, 60_000, &ids));
    submitter.echo();
    worker.complete(&tasks[1..2]);
    let first = submitter.tasks(any);
    assert_eq!(states(&first), [Running, Completed, Running]);
    assert_eq!(first[1].payload, b"done: task 1");
    worker.complete(&[tasks[0].clone(), tasks[2].clone()]);
    assert_eq!(states(&submitter.tasks(all)), [Completed; 3]);
    let at_once = submitter.ask_wait(false, 60_000, &ids);
    assert_eq!(states(&submitter.tasks(at_once)), [Completed; 3], "nothing to wait for");
    let polled = submitter.ask_wait(true, 0, &ids);
    assert_eq!(submitter.tasks(polled).len(), 3);
}

#[test]
fn others_may_wait_and_query() {
    let server = Server::start();
    let (mut submitter, mut other, mut worker) = (server.client(), server.client(), server.client());
    let ids = submitter.submit("q", &[b"x"]);
    let wait = other.ask_wait(false, 60_000, &ids);
    other.echo();
    drop(submitter);
    let consumer = worker.work("q", 1);
    let task = worker.one(consumer);
    worker.complete(&[task]);
    assert_eq!(other.tasks(wait)[0].payload, b"done: x");
    assert_eq!(other.query(&ids)[0].payload, b"done: x");
}

#[test]
fn results_are_kept_for_their_time() {
    let server = Server::with("result_ms = 300");
    let mut client = server.client();
    let consumer = client.work("q", 1);
    let ids = client.submit("q", &[b"x"]);
    let task = client.one(consumer);
    client.complete(&[task]);
    assert_eq!(client.results(1)[0].payload, b"done: x");
    eventually("the result is forgotten", || {
        (client.query(&ids)[0].state == TaskState::Unknown).then_some(())
    });
}

#[test]
fn results_are_kept_up_to_their_size() {
    let server = Server::with("limits.results_bytes_max = 100000\njournal.results_bytes = 0");
    let mut client = server.client();
    let consumer = client.work("q", 100);
    let ids = client.submit("q", &payloads(20));
    let tasks = client.gather(consumer, 20);
    for task in &tasks {
        assert_eq!(client.complete_with(task.lease, &[7; 10_000]).accepted, 1);
    }
    let states: Vec<_> = client.query(&ids).iter().map(|o| o.state).collect();
    let kept = states.iter().filter(|s| **s == TaskState::Completed).count();
    assert_eq!(kept, 100_000 / (10_000 + 64), "the newest that fit");
    assert!(states[..20 - kept].iter().all(|s| *s == TaskState::Unknown));
}
