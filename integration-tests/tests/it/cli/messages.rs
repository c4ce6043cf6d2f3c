//! `hive pub`, `hive sub`, `hive request`.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::Server;

use super::{Done, Run, hive, keys};

fn subscriber(server: &Server, args: &[&str]) -> Run {
    let mut run = Run::fed(&mut hive(server.folder(), &[&["sub"][..], args].concat()), b"");
    run.says("subscribed to ");
    run
}

#[test]
fn what_is_published_is_printed() {
    let server = Server::start();
    let mut json = subscriber(&server, &["news.>", "--json", "--count", "2"]);
    let plain = subscriber(&server, &["news.*", "--count", "2"]);
    assert!(json.out().is_empty(), "nothing but messages on standard output");
    let publish = |args: &[&str], input: &[u8]| Done::fed(&mut hive(server.folder(), args), input).ok();
    let done = publish(&["pub", "news.today", "it works", "--json"], b"");
    assert_eq!(done.object(), json!({"subject": "news.today", "receivers": 2}));
    assert!(json.is_running(), "two were asked for");
    let done = publish(&["pub", "news.today", "-"], b"\xff\xfe");
    assert!(done.out.is_empty() && done.err.contains("published to 2 subscribers"), "{done:?}");
    let lines = json.end().ok().json();
    let expected =
        json!({"subject": "news.today", "payload": "it works", "lost_before": 0, "request": false});
    assert_eq!(lines[0], expected);
    assert_eq!(keys(&lines[1]), ["encoding", "lost_before", "payload", "request", "subject"]);
    assert_eq!((&lines[1]["payload"], &lines[1]["encoding"]), (&json!("//4="), &json!("base64")));
    assert_eq!(plain.end().ok().out, b"it works\n\xff\xfe\n");
    let nobody = publish(&["pub", "news.tomorrow", "x", "--json"], b"");
    assert_eq!(nobody.object()["receivers"], 0);
}

#[test]
fn a_subscriber_ends_well_on_a_signal() {
    let server = Server::start();
    for signal in [Signal::TERM, Signal::INT] {
        let mut run = subscriber(&server, &["a", "--json"]);
        Done::of(&mut hive(server.folder(), &["pub", "a", "x"])).ok();
        run.prints(1);
        run.signal(signal);
        assert_eq!(run.end().ok().json().len(), 1);
    }
}

#[test]
fn a_group_shares_messages() {
    let server = Server::start();
    let group = ["a", "--group", "g", "--json"];
    let (one, two) = (subscriber(&server, &group), subscriber(&server, &group));
    let mut all = subscriber(&server, &["a", "--json"]);
    for i in 0..20 {
        let done = Done::of(&mut hive(server.folder(), &["pub", "a", &i.to_string(), "--json"])).ok();
        assert_eq!(done.object()["receivers"], 2, "one of the group, and the one beside it");
    }
    all.prints(20);
    let lines: usize = [one, two]
        .map(|run| {
            run.signal(Signal::TERM);
            run.end().ok().json().len()
        })
        .iter()
        .sum();
    assert_eq!(lines, 20);
}

#[test]
fn a_request_prints_the_answer() {
    let server = Server::start();
    let mut responder = server.client();
    let sub = responder.subscribe("ask.*", None);
    let ask = |args: &[&str], input: &[u8]| {
        Run::fed(&mut hive(server.folder(), &[&["request"][..], args].concat()), input)
    };
    let json = ask(&["ask.me", "why?", "--json"], b"");
    let (token, subject, question) = responder.requested(sub);
    assert_eq!((subject.as_str(), &question[..]), ("ask.me", &b"why?"[..]));
    responder.reply(token, b"because");
    assert_eq!(json.end().ok().object(), json!({"subject": "ask.me", "payload": "because"}));
    let plain = ask(&["ask.me", "-"], b"\xffwhy\n");
    let (token, _, question) = responder.requested(sub);
    assert_eq!(question, b"\xffwhy\n");
    responder.reply(token, b"as it is\n\xff");
    let done = plain.end().ok();
    assert_eq!((&done.out[..], done.err.as_str()), (&b"as it is\n\xff"[..], ""));
}

#[test]
fn a_request_that_nobody_answers_fails() {
    let server = Server::start();
    let ask = |args: &[&str]| Done::of(&mut hive(server.folder(), &[&["request"][..], args].concat()));
    let done = ask(&["nobody.here", "x", "--json", "--timeout-ms", "60000"]);
    done.fails(1, &["no_responders"]);
    assert!(done.time.as_secs() < 30, "at once, not after the time: {done:?}");
    let mut silent = server.client();
    silent.subscribe("silent", None);
    ask(&["silent", "x", "--json", "--timeout-ms", "50"]).fails(1, &["request_timeout"]);
}

#[test]
fn a_subscriber_can_answer() {
    let server = Server::start();
    let run = subscriber(&server, &["ask", "--reply", "yes", "--json", "--count", "1"]);
    let done = Done::of(&mut hive(server.folder(), &["request", "ask", "well?"])).ok();
    assert_eq!(done.out, b"yes");
    let line = run.end().ok().object();
    assert_eq!(line, json!({"subject": "ask", "payload": "well?", "lost_before": 0, "request": true}));
}

#[test]
fn bad_subjects_are_refused() {
    let server = Server::start();
    for args in [["pub", "a..b", "x"], ["request", "a.*", "x"], ["sub", "a.>.b", "--json"]] {
        Done::of(&mut hive(server.folder(), &args)).fails(1, &[args[1], "hive explain"]);
    }
}
