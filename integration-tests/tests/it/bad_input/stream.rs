//! Bytes that are not the protocol, in the middle of a session or instead of one.

use hive_proto::frame::MAGIC;
use hive_proto::messages::{self, Hello, Work};
use hive_proto::{Code, Flags, Op, PREFIX_LEN};

use super::beside_a_bystander;
use crate::harness::{
    Client, PATIENCE, Seen, Server, Wire, assert_error, eventually, frame, hello, payloads,
};

/// A submit of one task, its outcome not asked for.
fn submit(queue: &str, payload: &[u8]) -> Vec<u8> {
    let item = [&(payload.len() as u32).to_le_bytes()[..], &[0; 2], payload].concat();
    frame(Op::Submit, 0, 7, 1, queue.as_bytes(), &item)
}

/// The bytes of a login.
fn login(server: &Server) -> Vec<u8> {
    [&MAGIC[..], &hello(&Client::hello(server, "", &[]))].concat()
}

/// Sends bytes instead of a login: an error must come, and the connection must end.
fn refused_at_once(server: &Server, bytes: &[u8], code: Code, names: &str) {
    let mut wire = Wire::connect(server.addr);
    wire.try_send(bytes);
    assert_error(&wire.error(), code, names);
    wire.closed();
}

/// Sends bytes after a login: an error must come that answers `id`, and the session must go on.
fn refused_alone(client: &mut Client, bytes: &[u8], id: u32, code: Code, names: &str) {
    client.wire.send(bytes);
    let e = client.answer(id).expect_err("refused");
    assert_error(&e, code, names);
    client.echo();
}

/// Sends bytes after a login that spoil the stream: an error must come, and the connection must end.
fn refused_for_good(server: &Server, bytes: &[u8], code: Code, names: &str) {
    let mut client = server.client();
    client.wire.try_send(bytes);
    assert_error(&client.answer(0).expect_err("refused"), code, names);
    client.closed();
}

fn with_bytes(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn wrong_magic() {
    beside_a_bystander("", |server| {
        refused_at_once(server, b"XIVE0123456789abcdef", Code::BadMagic, "HIVE");
        refused_at_once(server, b"Hi", Code::BadMagic, "HIVE");
    });
}

#[test]
fn http_on_the_agents_port() {
    beside_a_bystander("", |server| {
        refused_at_once(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Code::BadMagic, "HTTP");
    });
}

#[test]
fn unknown_version() {
    beside_a_bystander("", |server| {
        let old = with_bytes(login(server), MAGIC.len() + 4, &[9]);
        refused_at_once(server, &old, Code::UnsupportedVersion, "version 9");
        let future = Hello { min: 0x0200, max: 0x0300, ..Client::hello(server, "", &[]) };
        refused_at_once(server, &[&MAGIC[..], &hello(&future)].concat(), Code::UnsupportedVersion, "0x0200");
        let past = Hello { min: 0, max: 0x00ff, ..Client::hello(server, "", &[]) };
        refused_at_once(server, &[&MAGIC[..], &hello(&past)].concat(), Code::UnsupportedVersion, "0x00ff");
        refused_for_good(
            server,
            &with_bytes(submit("q", b"x"), 4, &[2]),
            Code::UnsupportedVersion,
            "version 2",
        );
        let wide = Hello { min: 0x0100, max: 0x0300, ..Client::hello(server, "", &[]) };
        let mut wire = Wire::connect(server.addr);
        wire.send(&[&MAGIC[..], &hello(&wide)].concat());
        assert_eq!(Client::welcomed(wire).expect("both speak 1.0").welcome.version, 0x0100);
    });
}

#[test]
fn unknown_operation() {
    beside_a_bystander("", |server| {
        let mut client = server.client();
        let raw = |op: u8| with_bytes(frame(Op::Ping, 0, 5, 0, &[], &[]), 5, &[op]);
        refused_alone(&mut client, &raw(0x7f), 5, Code::UnknownOp, "0x7f");
        refused_alone(&mut client, &raw(0x1f), 5, Code::UnknownOp, "0x1f");
        refused_alone(&mut client, &raw(Op::Welcome as u8), 5, Code::UnknownOp, "Welcome");
        let flagged = frame(Op::Publish, Flags::LAST, 5, 0, b"a", b"");
        refused_alone(&mut client, &flagged, 5, Code::BadFlags, "Publish");
        let again = hello(&Client::hello(server, "", &[]));
        refused_alone(&mut client, &again, 1, Code::AlreadyLoggedIn, "Hello");
        let ping = frame(Op::Ping, 0, 5, 0, &[], &[0; 65]);
        refused_alone(&mut client, &ping, 5, Code::MalformedFrame, "64");
    });
}

#[test]
fn length_bombs_before_login() {
    beside_a_bystander("", |server| {
        let first = |bytes: &[u8]| [&MAGIC[..], bytes].concat();
        let hello = hello(&Client::hello(server, "", &[]));
        let long = with_bytes(hello.clone(), 0, &u32::MAX.to_le_bytes());
        refused_at_once(server, &first(&long), Code::FrameTooLarge, "4294967295");
        let header = with_bytes(hello, 12, &u16::MAX.to_le_bytes());
        refused_at_once(server, &first(&header), Code::MalformedFrame, "65535");
        let nested = frame(Op::Hello, 0, 1, 0, &vec![0x91; 4000], &[]);
        refused_at_once(server, &first(&nested), Code::MalformedHeader, "Hello");
        // A map of one field, `labels`, an array of four billion.
        let array = [b"\x81\xa6labels\xdd".as_slice(), &[0xff; 4]].concat();
        refused_at_once(
            server,
            &first(&frame(Op::Hello, 0, 1, 0, &array, &[])),
            Code::MalformedHeader,
            "Hello",
        );
        let other = frame(Op::Submit, 0, 1, 0, b"q", &[]);
        refused_at_once(server, &first(&other), Code::LoginRequired, "Hello");
    });
}

#[test]
fn length_bombs_after_login() {
    beside_a_bystander("", |server| {
        let long = with_bytes(submit("q", b"x"), 0, &u32::MAX.to_le_bytes());
        refused_for_good(server, &long[..PREFIX_LEN], Code::FrameTooLarge, "4294967295");
        let header = with_bytes(submit("q", b"x"), 12, &u16::MAX.to_le_bytes());
        refused_for_good(server, &header, Code::MalformedFrame, "65535");

        let mut client = server.client();
        let count = with_bytes(submit("q", b"x"), 14, &u16::MAX.to_le_bytes());
        refused_alone(&mut client, &count, 7, Code::MalformedFrame, "item 1 of 65535");
        let item = with_bytes(submit("q", b"x"), PREFIX_LEN + 1, &u32::MAX.to_le_bytes());
        refused_alone(&mut client, &item, 7, Code::MalformedFrame, "item 0 of 1");
        let nested = frame(Op::Work, 0, 8, 0, &vec![0x91; 10_000], &[]);
        refused_alone(&mut client, &nested, 8, Code::MalformedHeader, "Work");
        let work = Work { queue: "q".into(), credit_tasks: 1, credit_bytes: 1, labels: vec![] };
        let mut fields = messages::encode(&work);
        fields[0] += 1; // one field more
        let array = [&fields[..], b"\xa6labels\xdd", &[0xff; 4]].concat();
        refused_alone(&mut client, &frame(Op::Work, 0, 8, 0, &array, &[]), 8, Code::MalformedHeader, "Work");
        let deep = [&5_u32.to_le_bytes()[..], &1000_u16.to_le_bytes(), &[0x91; 1000], b"hello"].concat();
        refused_alone(
            &mut client,
            &frame(Op::Submit, 0, 8, 1, b"q", &deep),
            8,
            Code::InvalidOptions,
            "TaskOptions",
        );
        let short = frame(Op::Wait, 0, 8, 0, &[0], &[]);
        refused_alone(&mut client, &short, 8, Code::MalformedHeader, "Wait");
        let traced = frame(Op::Publish, Flags::TRACE, 8, 0, b"short", &[]);
        refused_alone(&mut client, &traced, 8, Code::MalformedHeader, "trace");
        assert!(server.queue("q").is_none_or(|q| q["waiting"] == 0));
    });
}

#[test]
fn truncated_frames() {
    beside_a_bystander("", |server| {
        let (login, submit) = (login(server), submit("cut", b"the whole task"));
        let session = [&login[..], &submit].concat();
        for cut in (0..session.len()).step_by(3) {
            let mut wire = Wire::connect(server.addr);
            wire.send(&session[..cut]);
            wire.end();
            // What was whole is answered; then the connection ends, without an error: the client has left.
            let mut answers = 0;
            loop {
                match wire.see(PATIENCE) {
                    Seen::Frame(f) => {
                        assert_eq!((f.view().op(), answers), (Ok(Op::Welcome), 0), "cut at {cut}");
                    }
                    Seen::End => break,
                    Seen::Silence => panic!("cut at {cut}: the connection goes on"),
                }
                answers += 1;
            }
            assert_eq!(answers, usize::from(cut >= login.len()), "cut at {cut}");
        }
        assert!(server.queue("cut").is_none(), "half a task was taken");
        let mut wire = Wire::connect(server.addr);
        wire.send(&session);
        server.queue_has("cut", "waiting", 1);
        eventually("all connections but the bystander's two and this one gone", || {
            (server.status()["connections"] == 3).then_some(())
        });
    });
}

#[test]
fn one_byte_at_a_time() {
    beside_a_bystander("", |server| {
        let mut wire = Wire::connect(server.addr);
        let trickle = |wire: &mut Wire, bytes: &[u8]| bytes.iter().for_each(|b| wire.send(&[*b]));
        trickle(&mut wire, &login(server));
        let mut client = Client::welcomed(wire).expect("welcome");
        let work = Work { queue: "slow".into(), credit_tasks: 5, credit_bytes: 1000, labels: vec![] };
        trickle(&mut client.wire, &frame(Op::Work, 0, 3, 0, &messages::encode(&work), &[]));
        assert_eq!(client.answer(3).expect("consumer").view().op(), Ok(Op::Ok));
        trickle(&mut client.wire, &submit("slow", b"crumbs"));
        let first = client.accepted(7).expect("accepted").tasks[0];
        let task = client.one(3);
        assert_eq!((task.lease.task, &task.payload[..]), (first, &b"crumbs"[..]));
        let lease =
            [&first.0.to_le_bytes()[..], &task.lease.attempt.to_le_bytes(), &task.lease.epoch.to_le_bytes()];
        let item = [&lease.concat()[..], &2_u32.to_le_bytes(), b"ok"].concat();
        trickle(&mut client.wire, &frame(Op::Complete, 0, 9, 1, &[], &item));
        assert_eq!(client.answer(9).expect("settled").view().prefix.count, 1);
        assert_eq!(client.query(&[first])[0].payload, b"ok");
    });
}

#[test]
fn everything_in_one_write() {
    let server = Server::start();
    let mut wire = Wire::connect(server.addr);
    wire.alive = false; // a pong would push the rest along
    wire.send(
        &[login(&server), submit("q", b"x"), submit("q", b"y"), submit("q", b"cut")[..9].to_vec()].concat(),
    );
    let mut client = Client::welcomed(wire).expect("welcome");
    client.accepted(7).expect("the first");
    client.accepted(7).expect("the second");
    client.wire.send(&submit("q", b"cut")[9..]);
    client.accepted(7).expect("the third");
    server.queue_has("q", "waiting", 3);
}

#[test]
fn garbage_after_login() {
    beside_a_bystander("", |server| {
        let mut other = server.client();
        let kept = other.submit("held", &payloads(10));
        // As often as the tasks have attempts; after the last they are dead letters.
        for seed in 1..=5 {
            let mut client = server.client();
            let consumer = client.work("held", 100);
            client.gather(consumer, 10);
            client.wire.try_send(&noise(seed, 600_000));
            let e = client.answer(0).expect_err("garbage");
            let known = [Code::UnsupportedVersion, Code::FrameTooLarge, Code::MalformedFrame];
            assert!(e.code().is_some_and(|c| known.contains(&c)), "{e:?}");
            client.closed();
            server.queue_has("held", "waiting", if seed < 5 { 10 } else { 0 });
        }
        let outcomes = other.results_of(&kept);
        assert!(
            outcomes.iter().all(|o| o.payload == b"the worker's connection ended" && o.attempt == 5),
            "{outcomes:?}"
        );
    });
}

/// Bytes that look like nothing, the same each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
