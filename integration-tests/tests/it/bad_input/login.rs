//! Connections that do not log in, or not as they should.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use hive_proto::frame::MAGIC;
use hive_proto::messages::Hello;
use hive_proto::{Code, Op};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::beside_a_bystander;
use crate::harness::{
    Bystander, Client, PATIENCE, Seen, Server, Wire, assert_error, eventually, frame, hello,
};

/// Connections that are opened and left.
const HALF_OPEN: usize = 10_000;

#[test]
fn slow_login() {
    let server = Server::with_session("", "login_ms = 300");
    let bystander = Bystander::start(&server);
    let bytes = [&MAGIC[..], &hello(&Client::hello(&server, "", &[]))].concat();
    let mut wire = Wire::connect(server.addr);
    let began = Instant::now();
    // A byte now and then does not extend the time.
    let e = bytes.iter().find_map(|b| {
        wire.try_send(&[*b]);
        match wire.see(Duration::from_millis(20)) {
            Seen::Silence => None,
            Seen::Frame(f) => Some(crate::harness::error_of(&f)),
            Seen::End => panic!("closed without a word"),
        }
    });
    assert_error(&e.unwrap_or_else(|| wire.error()), Code::LoginTimeout, "300 ms");
    assert!(began.elapsed() >= Duration::from_millis(290));
    wire.closed();
    bystander.undisturbed();
}

#[test]
fn ten_thousand_half_open_connections() {
    raise_descriptors();
    let server = Server::with_session("", "login_ms = 8000");
    let bystander = Bystander::start(&server);
    let before = server.memory("VmRSS");
    let flood: Vec<_> = (0..HALF_OPEN).map(|i| half_open(&server, i)).collect();
    eventually("connections that are open all at once", || {
        (server.status()["connections"].as_u64()? >= HALF_OPEN as u64).then_some(())
    });
    let each = server.memory("VmRSS").saturating_sub(before) / HALF_OPEN as u64;
    assert!(each < 16 * 1024, "a half-open connection takes {each} bytes");
    bystander.goes_on();
    // The clients never close: it is the server that gets rid of them.
    eventually("all of them gone", || (server.status()["connections"] == 2).then_some(()));
    for stream in flood.into_iter().step_by(100) {
        let mut wire = Wire::over(stream);
        assert_error(&wire.error(), Code::LoginTimeout, "8000 ms");
        wire.closed();
    }
    bystander.undisturbed();
}

/// Some say nothing, some say a part of what they should.
fn half_open(server: &Server, i: usize) -> TcpStream {
    use std::io::Write as _;
    let mut stream = TcpStream::connect_timeout(&server.addr, PATIENCE).expect("taken in");
    let said: &[u8] = [b"".as_slice(), b"HI", b"HIVE", b"HIVE\x40\0\0\0\x01\x08"][i % 4];
    stream.write_all(said).expect("taken in");
    stream
}

fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit");
    let enough = limit.maximum.is_none_or(|max| max > HALF_OPEN as u64 + 1000);
    assert!(enough, "this test needs {HALF_OPEN} descriptors; the hard limit is {:?}", limit.maximum);
}

#[test]
fn duplicate_agent_id() {
    beside_a_bystander("", |server| {
        let mut first = server.agent("twin", &[]);
        let e = Client::try_login(server, "twin", &[]).err().expect("refused");
        assert_error(&e, Code::AgentIdInUse, "\"twin\"");
        assert!(e.retry_after_ms.is_some());
        first.echo();
        drop(first);
        eventually("the name is free again", || Client::try_login(server, "twin", &[]).ok());
    });
}

#[test]
fn what_a_hello_may_not_say() {
    beside_a_bystander("", |server| {
        let refused = |hello: Hello, code, names: &str| {
            let mut wire = Wire::connect(server.addr);
            wire.send(&[&MAGIC[..], &crate::harness::hello(&hello)].concat());
            assert_error(&wire.error(), code, names);
            wire.closed();
        };
        let good = Client::hello(server, "", &[]);
        refused(Hello { token: String::new(), ..good.clone() }, Code::Unauthorized, "no token");
        refused(Hello { token: "guess".into(), ..good.clone() }, Code::Unauthorized, "wrong");
        refused(Hello { agent: "a b".into(), ..good.clone() }, Code::InvalidAgentId, "\"a b\"");
        refused(Hello { agent: "x".repeat(129), ..good.clone() }, Code::InvalidAgentId, "xxx");
        refused(Hello { labels: vec!["a b".into()], ..good.clone() }, Code::InvalidLabel, "\"a b\"");
        refused(Hello { labels: vec!["a".into(); 33], ..good.clone() }, Code::InvalidLabel, "33");
        let mut wire = Wire::connect(server.addr);
        let mut bad = hive_proto::messages::encode(&Hello { agent: "AGENT".into(), ..good });
        let at = bad.windows(5).position(|w| w == b"AGENT").expect("there");
        bad[at] = 0xff;
        wire.send(&[&MAGIC[..], &frame(Op::Hello, 0, 1, 0, &bad, &[])].concat());
        assert_error(&wire.error(), Code::MalformedHeader, "utf-8");
        wire.closed();
    });
}

#[test]
fn more_connections_than_there_may_be() {
    beside_a_bystander("limits.connections_max = 4", |server| {
        let (mut a, mut b) = (server.client(), server.client());
        let e = Client::try_login(server, "", &[]).err().expect("refused");
        assert_error(&e, Code::TooManyConnections, "connections_max = 4");
        a.echo();
        b.echo();
        drop(a);
        eventually("a place is free", || Client::try_login(server, "", &[]).ok());
    });
}
