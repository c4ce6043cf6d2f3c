//! Demand 6 of the issue: overload is refused in words, memory stays bounded, no well-behaved connection is closed.

use std::io::Write as _;
use std::time::Duration;

use hive_proto::frame::write_frame;
use hive_proto::items::{Item, Submit};
use hive_proto::{Code, Flags, Op, TaskState, WireError};

use crate::harness::{
    Bystander, Client, Seen, Server, TaskOptions, assert_error, error_of, eventually, items, payloads,
};

const MB: u64 = 1_000_000;

/// Most memory that was resident, without the program's own text: unoptimized, it is larger than what is reckoned for it.
fn held(server: &Server) -> u64 {
    server.memory("VmHWM") - if cfg!(debug_assertions) { server.memory("RssFile") } else { 0 }
}

/// Submits batches of 1,000 tasks of 256 bytes until one is refused: how many were taken, and the refusal.
fn fill(client: &mut Client, queue: &str) -> (usize, WireError) {
    let mut payload = Vec::new();
    (0..1000).for_each(|_| Submit { ext: &[], payload: &[7; 256] }.write(&mut payload));
    let (mut taken, mut asked) = (0, std::collections::VecDeque::new());
    loop {
        // A few batches under way, well within the credit.
        asked.push_back(client.ask(Op::Submit, 0, 1000, queue.as_bytes(), &payload));
        if asked.len() < 8 {
            continue;
        }
        let id = asked.pop_front().expect("eight");
        match client.accepted(id) {
            Ok(a) => taken += a.tasks.len(),
            Err(e) => {
                for id in asked {
                    taken += client.accepted(id).map_or(0, |a| a.tasks.len());
                }
                return (taken, e);
            }
        }
    }
}

/// Works a queue off, `n` tasks of it, with results far longer than the tasks.
fn drain(client: &mut Client, queue: &str, n: usize) {
    let consumer = client.work(queue, 10_000);
    let mut done = 0;
    while done < n {
        let tasks = client.assigned(consumer);
        done += tasks.len();
        let leases: Vec<_> = tasks
            .iter()
            .map(|t| hive_proto::items::Complete { lease: t.lease, result: &[7; 2000] })
            .collect();
        let mut payload = Vec::new();
        leases.iter().for_each(|l| l.write(&mut payload));
        client.send(Op::Complete, 0, 0, tasks.len() as u16, &[], &payload);
    }
    client.send(Op::StopWork, 0, consumer, 0, &[], &[]);
    client.answer(consumer).expect("closed");
}

/// Tasks have no other place to wait.
const MEMORY: &str = "queue_defaults.durability = \"memory\"";

fn full_and_empty_again(config: &str, memory_bytes_max: u64, tasks_min: usize) {
    let server = Server::with(config);
    let mut client = server.client();
    let (taken, e) = fill(&mut client, "q");
    assert_error(&e, Code::MemoryFull, "bytes");
    assert!(e.retry_after_ms.is_some_and(|ms| ms > 0));
    let peak = held(&server);
    println!("{taken} tasks of 256 B; {} MB resident at most, limit {} MB", peak / MB, memory_bytes_max / MB);
    assert!(taken >= tasks_min, "{taken} tasks fit");
    assert!(peak < memory_bytes_max, "{peak} bytes were resident");
    let mut other = server.client();
    // As much as was refused.
    let e = other
        .try_submit("other", &[[7; 256]; 1000], &TaskOptions::default())
        .expect_err("full for everybody");
    assert_error(&e, Code::MemoryFull, "bytes");
    server.queue_has("q", "waiting", taken as u64);
    client.echo();
    drain(&mut client, "q", taken);
    server.queue_has("q", "completed", taken as u64);
    assert_eq!(other.submit("other", &[[7; 1000]; 100]).len(), 100);
    let peak = held(&server);
    assert!(peak < memory_bytes_max, "{peak} bytes were resident");
}

#[test]
fn waiting_tasks_fill_the_memory_up_to_its_limit() {
    let config =
        format!("{MEMORY}\nlimits.memory_bytes_max = 100000000\nlimits.results_bytes_max = 30000000");
    full_and_empty_again(&config, 100 * MB, 100_000);
}

#[test]
#[ignore = "long: a million tasks, for the release profile"]
fn a_million_tasks_fit_the_default_limit() {
    full_and_empty_again(MEMORY, 400 * MB, 1_000_000);
}

#[test]
fn subscribers_that_never_read_cost_what_their_outboxes_hold() {
    let server = Server::with("limits.outbox_bytes_max = 4000000");
    let bystander = Bystander::start(&server);
    let mut deaf: Vec<_> = (0..20).map(|_| server.client()).collect();
    for d in &mut deaf {
        d.subscribe("flood", None);
    }
    let before = held(&server);
    let mut publisher = server.client();
    let mut batch = Vec::new();
    for _ in 0..100 {
        write_frame(&mut batch, Op::Publish, 0, 0, 0, &[b"flood"], &[7; 1000]);
    }
    for _ in 0..400 {
        publisher.wire.send(&batch); // 40 MB to each of 20
        publisher.echo();
    }
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 80 * MB, "grown by {grown} bytes; outboxes may hold 32 MB together");
    bystander.undisturbed();
    let lost = server.status()["totals"]["lost"].as_u64().expect("a number");
    assert!(lost > 0);
    let mut told = 0;
    eventually("each is told what it lost", || {
        for d in &mut deaf {
            while let Some(frame) = d.poll(Duration::from_millis(1)) {
                if frame.view().op() == Ok(Op::MessagesLost) {
                    told += u64::from_le_bytes(frame.view().header.try_into().expect("a count"));
                }
            }
        }
        (told == lost).then_some(())
    });
}

/// A short message that waits must not keep the long one alive that was read together with it.
#[test]
fn a_message_that_waits_holds_no_more_than_itself() {
    let server = Server::start();
    let mut deaf = server.client();
    deaf.subscribe("short", None);
    let mut publisher = server.client();
    let before = held(&server);
    let mut pair = Vec::new();
    write_frame(&mut pair, Op::Publish, 0, 0, 0, &[b"short"], &[7; 4200]);
    write_frame(&mut pair, Op::Publish, 0, 0, 0, &[b"long"], &[7; 250_000]);
    for n in 0..2000 {
        publisher.wire.send(&pair);
        if n % 10 == 0 {
            publisher.echo();
        }
    }
    publisher.echo();
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 100 * MB, "grown by {grown} bytes for 8 MB that wait");
}

#[test]
fn a_large_message_for_many_that_do_not_read() {
    let server = Server::start();
    let mut deaf: Vec<_> = (0..30).map(|_| server.client()).collect();
    for d in &mut deaf {
        d.subscribe("large", None);
    }
    let mut publisher = server.client();
    let before = held(&server);
    let message = crate::harness::frame(Op::Publish, Flags::ACK, 9, 0, b"large", &vec![7; 15_000_000]);
    hive_proto::fragment::split(&message, 1, 256 * 1024, |part| publisher.wire.send(&part));
    publisher.answer(9).expect("published");
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 150 * MB, "grown by {grown} bytes");
}

#[test]
fn results_that_are_not_read_are_counted_and_kept() {
    const TASKS: usize = 3000;
    let server = Server::with("limits.outbox_bytes_max = 200000");
    let (mut submitter, mut worker) = (server.client(), server.client());
    let ids = submitter.submit("q", &payloads(TASKS));
    let consumer = worker.work("q", 100);
    let mut done = 0;
    while done < TASKS {
        for task in worker.assigned(consumer) {
            assert_eq!(worker.complete_with(task.lease, &[7; 2000]).accepted, 1);
            done += 1;
        }
    }
    let (mut pushed, mut missed) = (0, 0);
    while pushed + missed < TASKS {
        let frame = submitter.take("a result or the number missed", |_| true);
        match frame.view().op() {
            Ok(Op::Result) => pushed += usize::from(frame.view().prefix.count),
            Ok(Op::ResultsMissed) => {
                missed += u64::from_le_bytes(frame.view().header.try_into().expect("a count")) as usize;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pushed + missed, TASKS, "{pushed} pushed and {missed} missed");
    assert!(missed > 0 && pushed > 50, "{pushed} pushed and {missed} missed");
    for part in ids.chunks(100) {
        for o in submitter.query(part) {
            assert_eq!(
                (o.state, o.payload.len()),
                (TaskState::Completed, 2000),
                "what was missed can be asked for"
            );
        }
    }
}

/// Writes as long as the server takes bytes: how many whole copies of `part` it took.
fn flood(client: &mut Client, part: &[u8], most: usize) -> usize {
    client.wire.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("timeout");
    let mut written = 0;
    while written < most * part.len() {
        match client.wire.stream.write(&part[written % part.len()..]) {
            Ok(n) => written += n,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                break;
            }
            Err(e) => panic!("the connection was closed: {e}"),
        }
    }
    client.wire.stream.set_write_timeout(None).expect("timeout");
    written / part.len()
}

#[test]
fn who_asks_without_reading_waits() {
    let server = Server::with("limits.outbox_bytes_max = 1000000");
    let bystander = Bystander::start(&server);
    let before = held(&server);
    let mut deaf = server.client();
    let ping = crate::harness::frame(Op::Ping, 0, 77, 0, &[], &[7; 64]);
    let asked = flood(&mut deaf, &ping.repeat(1000), 4000) * 1000;
    assert!(asked < 4_000_000, "the server read on and on");
    let grown = held(&server).saturating_sub(before);
    assert!(grown < 40 * MB, "grown by {grown} bytes");
    bystander.undisturbed();
    let mut answers = 0;
    while answers < asked {
        match deaf.wire.see(Duration::from_secs(30)) {
            Seen::Frame(f) => answers += usize::from(f.view().prefix.op == Op::Pong as u8),
            other => panic!("{answers} of {asked} answers: {other:?}"),
        }
    }
}

/// A query is 8 bytes an answer, and an answer may be a long result.
#[test]
fn short_questions_with_long_answers() {
    let server = Server::start();
    let bystander = Bystander::start(&server);
    let mut client = server.client();
    let consumer = client.work("q", 1);
    let id = client.submit("q", &[b"x"])[0];
    let task = client.one(consumer);
    client.complete_with(task.lease, &vec![7; 500_000]);
    let before = held(&server);
    let ids: Vec<u8> = id.0.to_le_bytes().repeat(2000); // a gigabyte
    let mut deaf = server.client();
    deaf.send(Op::Query, 0, 77, 2000, &[], &ids);
    let e = deaf.answer(77).expect_err("more than a message may hold");
    assert_error(&e, Code::MessageTooLarge, "");
    let query = crate::harness::frame(Op::Query, 0, 77, 1, &[], &id.0.to_le_bytes());
    flood(&mut deaf, &query.repeat(100), 100);
    bystander.goes_on();
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 150 * MB, "grown by {grown} bytes");
    bystander.undisturbed();
}

#[test]
fn responses_that_are_not_read() {
    let server = Server::start();
    let (mut asker, mut responder) = (server.client(), server.client());
    let sub = responder.subscribe("long", None);
    let before = held(&server);
    for _ in 0..1000 {
        asker.ask_request("long", 60_000, b"?");
    }
    for _ in 0..1000 {
        let (token, ..) = responder.requested(sub);
        responder.reply(token, &vec![7; 500_000]);
    }
    responder.echo();
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 150 * MB, "grown by {grown} bytes");
}

/// Messages that are begun and not ended.
#[test]
fn half_a_message_from_many() {
    let server = Server::start();
    let bystander = Bystander::start(&server);
    let before = held(&server);
    let message = crate::harness::frame(Op::Publish, 0, 9, 0, b"large", &vec![7; 15_000_000]);
    let mut parts = Vec::new();
    hive_proto::fragment::split(&message, 1, 256 * 1024, |part| parts.push(part));
    let mut clients: Vec<_> = (0..30).map(|_| server.client()).collect();
    for client in &mut clients {
        parts[..parts.len() - 1].iter().for_each(|p| client.wire.send(p));
        client.echo();
    }
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 150 * MB, "grown by {grown} bytes");
    bystander.undisturbed();
}

/// Tasks in the hands of a worker that does not read are held once, not twice.
#[test]
fn a_worker_that_does_not_read() {
    for durability in ["memory", "journal"] {
        deaf_worker(durability);
    }
}

fn deaf_worker(durability: &str) {
    let server = Server::with(&format!(
        "queue_defaults.durability = {durability:?}\nlimits.memory_bytes_max = 100000000\nlimits.results_bytes_max = 1000000"
    ));
    let mut client = server.client();
    let taken = match durability {
        "memory" => fill(&mut client, "q").0,
        _ => (0..400).map(|_| client.submit("q", &[[7; 1000]; 1000]).len()).sum(),
    };
    let mut deaf = server.client();
    for _ in 0..4 {
        let work = hive_proto::messages::Work {
            queue: "q".into(),
            credit_tasks: 100_000,
            credit_bytes: 60_000_000,
            labels: vec![],
        };
        deaf.ask(Op::Work, 0, 0, &hive_proto::messages::encode(&work), &[]);
    }
    eventually("assignments", || server.queue("q").filter(|q| q["running"].as_u64() > Some(0)).map(|_| ()));
    client.echo();
    let peak = held(&server);
    println!("{taken} tasks of a {durability} queue, {} MB resident at most", peak / MB);
    assert!(peak < 100 * MB, "{peak} bytes were resident");
    // When it reads, it gets them all, as far as it makes room for those on disk.
    let mut got = 0;
    while got < taken {
        let frame = deaf.next(Op::Assign);
        let tasks = items::<hive_proto::items::Assign<'_>>(&frame);
        got += tasks.len();
        if durability == "journal" {
            let mut payload = Vec::new();
            let done = |t: &hive_proto::items::Assign<'_>| hive_proto::items::Complete {
                lease: t.lease,
                result: &[],
            };
            tasks.iter().for_each(|t| done(t).write(&mut payload));
            deaf.send(Op::Complete, 0, 0, tasks.len() as u16, &[], &payload);
        }
    }
    let peak = held(&server);
    assert!(peak < 100 * MB, "{peak} bytes were resident");
}

#[test]
fn more_unacknowledged_tasks_than_granted() {
    let server = Server::with("limits.producer_credit_tasks = 100");
    let bystander = Bystander::start(&server);
    let mut client = server.client();
    assert_eq!(client.welcome.credit_tasks, 100);
    let mut batch = Vec::new();
    (0..60).for_each(|_| Submit { ext: &[], payload: b"x" }.write(&mut batch));
    let frames: Vec<u8> =
        (1..=2).flat_map(|id| crate::harness::frame(Op::Submit, 0, id + 1000, 60, b"q", &batch)).collect();
    client.wire.send(&frames);
    client.accepted(1001).expect("within the credit");
    let e = client.accepted(1002).expect_err("beyond the credit");
    assert_error(&e, Code::ProducerCredit, "100 tasks");
    assert!(e.retry_after_ms.is_some());
    client.submit("q", &payloads(60));
    assert_eq!(client.submit("q", &payloads(500)).len(), 500, "one batch is always taken");
    server.queue_has("q", "waiting", 620);
    bystander.undisturbed();
}

/// Labels stay with their queue, so they are counted as memory; else clients could fill it with them.
#[test]
fn labels_fill_the_memory_up_to_its_limit() {
    let server = Server::with("limits.memory_bytes_max = 50000000\nlimits.results_bytes_max = 1000000");
    let mut client = server.client();
    let distinct = |q: u32, l: u32| (0..30).map(|n| format!("{:0>60}", format!("{q}-{l}-{n}"))).collect();
    let refused = (0..100).find_map(|q| {
        (0..250).find_map(|l| {
            let options = TaskOptions { labels: distinct(q, l), ..TaskOptions::default() };
            client.try_submit(&format!("q{q}"), &[b"x"], &options).err()
        })
    });
    assert_error(&refused.expect("full at last"), Code::MemoryFull, "bytes");
    let peak = held(&server);
    assert!(peak < 50 * MB, "{peak} bytes were resident");
    client.echo();
}

/// Frames that are begun and not ended: as many as there is room for are kept, the others refused by name and passed over.
#[test]
fn half_a_frame_from_many() {
    let server = Server::start();
    let bystander = Bystander::start(&server);
    let before = held(&server);
    let publish = crate::harness::frame(Op::Publish, Flags::ACK, 9, 0, b"large", &vec![7; 1_000_000]);
    let (most, last) = publish.split_at(publish.len() - 1);
    let mut clients: Vec<_> = (0..100).map(|_| server.client()).collect();
    for client in &mut clients {
        client.wire.alive = false; // a pong would stand in the middle of the frame
        client.wire.send(most);
    }
    let mut refused = vec![false; clients.len()];
    for (client, refused) in clients.iter_mut().zip(&mut refused) {
        // Whoever is refused hears it before the frame is complete.
        while let Some(frame) = client.poll(Duration::from_millis(20)) {
            let e = error_of(&frame);
            assert_eq!(frame.view().prefix.id, 9);
            assert_error(&e, Code::Overloaded, "not arrived whole");
            assert!(e.retry_after_ms.is_some());
            *refused = true;
        }
    }
    let grown = held(&server).saturating_sub(before);
    println!("grown by {} MB", grown / MB);
    assert!(grown < 60 * MB, "grown by {grown} bytes");
    for (client, refused) in clients.iter_mut().zip(&mut refused) {
        client.wire.send(last);
        client.wire.alive = true;
        // Of some little had been read so far; what is not refused is published.
        *refused = *refused || client.answer(9).is_err();
        client.echo();
    }
    let refused = refused.iter().filter(|r| **r).count();
    assert!((50..100).contains(&refused), "{refused} of 100 were refused");
    assert_eq!(clients[99].publish("large", b"again").expect("there is room again"), 0);
    bystander.undisturbed();
}

/// An unknown operation is 16 bytes and its refusal several times as long.
#[test]
fn short_frames_with_longer_answers_from_many() {
    let server = Server::start();
    let bystander = Bystander::start(&server);
    let before = held(&server);
    let mut unknown = crate::harness::frame(Op::Ping, 0, 7, 0, &[], &[]);
    unknown[5] = 0x7f;
    let credit = crate::harness::frame(Op::Credit, 0, 7, 0, &[0; 12], &[]); // for a consumer that there is not
    let mut deaf: Vec<_> = (0..40).map(|_| server.client()).collect();
    let many = [unknown.repeat(8_000), credit.repeat(4_000)].concat();
    let mut asked = 0;
    for client in &mut deaf {
        client.wire.stream.set_nonblocking(true).expect("nonblocking");
        let mut at = 0;
        while let Ok(n) = client.wire.stream.write(&many[at..]) {
            at += n;
            if n == 0 {
                break;
            }
        }
        client.wire.stream.set_nonblocking(false).expect("blocking");
        assert!(at > 0);
        asked += 1;
    }
    bystander.goes_on();
    let grown = held(&server).saturating_sub(before);
    println!("{asked} clients, grown by {} MB", grown / MB);
    assert!(grown < 80 * MB, "grown by {grown} bytes");
    bystander.undisturbed();
    let e = error_of(&deaf[0].wire.frame());
    assert_error(&e, Code::UnknownOp, "");
}

#[test]
fn subscriptions_fill_the_memory_up_to_its_limit() {
    let server = Server::with("limits.memory_bytes_max = 50000000\nlimits.results_bytes_max = 1000000");
    let subject = |c: usize, n: usize| format!("{}.{c}.{n}.*", "x".repeat(200));
    let mut clients: Vec<_> = (0..10).map(|_| server.client()).collect();
    let mut taken = 0;
    let refused = clients.iter_mut().enumerate().find_map(|(c, client)| {
        (0..9_000).find_map(|n| match client.try_subscribe(&subject(c, n), None) {
            Ok(_) => {
                taken += 1;
                None
            }
            Err(e) => Some(e),
        })
    });
    assert_error(&refused.expect("full at last"), Code::MemoryFull, "subscriptions");
    let peak = held(&server);
    println!("{taken} subscriptions, {} MB resident", peak / MB);
    assert!(taken > 5_000 && peak < 50 * MB, "{taken} subscriptions, {peak} bytes were resident");
    let e = clients[9].try_submit("new", &[[7; 100_000]; 10], &TaskOptions::default());
    assert_error(&e.expect_err("full for tasks as well"), Code::MemoryFull, "bytes");
    drop(clients);
    let mut client = server.client();
    eventually("room", || client.try_submit("q", &payloads(100), &TaskOptions::default()).ok());
}

#[test]
fn workers_fill_the_memory_up_to_its_limit() {
    let server = Server::with("limits.memory_bytes_max = 40000000\nlimits.results_bytes_max = 1000000");
    let labels: Vec<String> = (0..32).map(|n| format!("{n:0>60}")).collect();
    let mut clients: Vec<_> = (0..100).map(|_| server.client()).collect();
    let mut taken = 0;
    let refused = clients.iter_mut().find_map(|client| {
        (0..250).find_map(|_| {
            let work = hive_proto::messages::Work {
                queue: "q".into(),
                credit_tasks: 1,
                credit_bytes: 1000,
                labels: labels.clone(),
            };
            let done = client.call(Op::Work, 0, 0, &hive_proto::messages::encode(&work), &[]);
            taken += usize::from(done.is_ok());
            done.err()
        })
    });
    assert_error(&refused.expect("full at last"), Code::MemoryFull, "workers");
    let peak = held(&server);
    println!("{taken} workers, {} MB resident", peak / MB);
    assert!(peak < 40 * MB, "{peak} bytes were resident");
}
