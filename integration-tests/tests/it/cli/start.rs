//! `hive start`, and how commands find the server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::harness::{binary, eventually, free_port, http_ask};

use super::{DevServer, Done, Run, hive, keys};

const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

#[test]
fn the_ready_line_names_the_real_ports() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let args = [&["start", "--until-stdin-closes"][..], &FREE].concat();
    let mut server = DevServer::ready(Run::open(&mut hive(folder.path(), &args)));
    assert!(server.addr.port() != 0 && server.http.port() != 0);
    let (version, addr, http) = (env!("CARGO_PKG_VERSION"), server.addr, server.http);
    let expected = format!("hive {version} ready server={addr} http={http} durability=memory\n");
    assert_eq!(server.ready, expected);
    assert_eq!(http_ask(http, "GET", "/livez", None).0, 200);
    std::net::TcpStream::connect(addr).expect("the agents' port answers");
    server.run.close();
    let done = server.run.end().ok();
    assert_eq!(done.text(), expected, "nothing but the one line");
    assert!(
        !done.err.contains("token  ") && !done.err.contains("Paste"),
        "no banner without --dev: {done:?}"
    );
}

#[test]
fn the_ready_line_as_json() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let args = [&["start", "--dev", "--json", "--until-stdin-closes"][..], &FREE].concat();
    let mut run = Run::open(&mut hive(folder.path(), &args));
    run.prints(1);
    run.close();
    let done = run.end().ok();
    let line = done.object();
    assert_eq!(keys(&line), ["durability", "http", "ready", "server", "version"]);
    assert_eq!(line["ready"], true);
    assert_eq!(
        (&line["durability"], &line["version"]),
        (&"journal".into(), &env!("CARGO_PKG_VERSION").into())
    );
    for key in ["server", "http"] {
        let addr: std::net::SocketAddr = line[key].as_str().expect("text").parse().expect("an address");
        assert_ne!(addr.port(), 0);
        assert!(done.err.contains(&addr.to_string()), "the banner names {addr}: {}", done.err);
    }
}

#[test]
fn the_banner_says_what_one_needs_and_its_line_works() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = DevServer::start(folder.path(), &["--token", "secret-of-this-test"]);
    let banner = server.run.err();
    for text in [
        server.addr.to_string(),
        server.http.to_string(),
        "durability  journal, in ".into(),
        "secret-of-this-test".into(),
    ] {
        assert!(banner.contains(&text), "{text} is not in {banner}");
    }
    assert_eq!(server.ready.lines().count(), 1, "the banner is not on standard output");
    let paste = banner.lines().find(|l| l.contains("hive submit")).expect("a line to paste");
    // The line calls `hive`, wherever that is.
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).expect("created");
    std::os::unix::fs::symlink(binary(), bin.join("hive")).expect("linked");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("set"));
    let mut shell = Command::new("bash");
    let like = hive(folder.path(), &[]);
    like.get_envs().for_each(|(k, v)| match v {
        Some(v) => drop(shell.env(k, v)),
        None => drop(shell.env_remove(k)),
    });
    let done = Done::of(shell.args(["-c", paste]).env("PATH", path));
    assert_eq!(done.text(), "IT WORKS", "{done:?}");
}

#[test]
fn the_latest_dev_server_is_found_and_the_token_of_any() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let old = DevServer::start(folder.path(), &[]);
    let new = DevServer::start(folder.path(), &[]);
    let pid = |args: &[&str]| Done::of(&mut hive(folder.path(), args)).ok().object()["pid"].clone();
    let is = |s: &DevServer| s.run.pid().as_raw_nonzero().get();
    assert_eq!(pid(&["status", "--json"]), is(&new));
    assert_eq!(pid(&["status", "--json", "--http", &old.http.to_string()]), is(&old));
    assert_eq!(pid(&["status", "--json", "--server", &old.addr.to_string()]), is(&old));
    // Each has a token of its own: those who submit need the right one.
    for (server, queue) in [(&old, "old"), (&new, "new")] {
        let args = ["submit", queue, "x", "--json", "--server", &server.addr.to_string()];
        Done::of(&mut hive(folder.path(), &args)).ok().object();
        assert_eq!(server.status()["queues"][0]["name"], queue);
    }
    Done::of(&mut hive(folder.path(), &["submit", "found", "x"])).ok();
    assert_eq!(new.status()["totals"]["submitted"], 2);
}

#[test]
fn only_the_user_can_read_where_a_dev_server_is() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut server = DevServer::start(folder.path(), &[]);
    let dir = folder.path().join("hive");
    let file = dir.join(format!("dev-{}.json", server.addr.port()));
    let mode = |path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600));
    let told: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
    assert_eq!(keys(&told), ["http", "pid", "server", "token", "version"]);
    server.run.close();
    server.run.end().ok();
    assert!(!file.exists(), "it goes with the server");
}

#[test]
fn the_environment_says_where_and_an_empty_value_says_nothing() {
    let (folder, elsewhere) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let server = DevServer::start(folder.path(), &["--token", "t0k"]);
    let (_keeps, closed) = free_port();
    drop(_keeps);
    let closed = closed.to_string();
    let (addr, http) = (server.addr.to_string(), server.http.to_string());
    let submit = |e: &[(&str, &str)], more: &[&str]| {
        let args = [&["submit", "q", "x", "--json"][..], more].concat();
        Done::of(hive(elsewhere.path(), &args).envs(e.iter().copied()))
    };
    submit(&[("HIVE_SERVER", &addr), ("HIVE_TOKEN", "t0k")], &[]).ok();
    submit(&[("HIVE_SERVER", &closed), ("HIVE_TOKEN", "no")], &["--server", &addr, "--token", "t0k"]).ok();
    submit(&[("HIVE_SERVER", &closed)], &[]).fails(69, &[&closed, "hive start --dev"]);
    submit(&[("HIVE_SERVER", &addr), ("HIVE_TOKEN", "")], &[]).fails(1, &["--token", "HIVE_TOKEN"]);
    let status = |http: &str| Done::of(hive(elsewhere.path(), &["status", "--json"]).env("HIVE_HTTP", http));
    assert_eq!(status(&http).ok().object()["server"], addr);
    status(&closed).fails(69, &[&closed]);
    // In the server's own folder, empty is unset: the server and its token are found.
    let empty = [("HIVE_SERVER", ""), ("HIVE_HTTP", ""), ("HIVE_TOKEN", "")];
    Done::of(hive(folder.path(), &["submit", "q", "x"]).envs(empty)).ok();
    Done::of(hive(folder.path(), &["status"]).envs(empty)).ok();
    eventually("three tasks", || (server.status()["totals"]["submitted"] == 3).then_some(()));
}

#[test]
fn a_wrong_token_is_refused_in_clear_words() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut server = DevServer::start(folder.path(), &[]);
    for args in [
        &["submit", "q", "x", "--json"][..],
        &["pub", "a", "x", "--json"],
        &["request", "a", "x", "--json"],
        &["sub", "a", "--json"],
        &["work", "q", "--json", "--token=wrong", "--", "true"],
        &["demo", "--json", "--path", "."],
        &["stop", "--json"],
    ] {
        let done = Done::of(hive(folder.path(), args).env("HIVE_TOKEN", "wrong"));
        done.fails(1, &["token", "HIVE_TOKEN"]);
    }
    assert!(server.run.is_running());
    assert_eq!(server.status()["totals"]["submitted"], 0);
}

#[test]
fn a_bad_configuration_ends_with_78() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("hive.toml");
    fs::write(&file, "[limits]\nmemory_byte_max = 5\n").expect("written");
    let args = ["start", "--dev", "--json", "--config", &file.to_string_lossy()];
    Done::of(&mut hive(folder.path(), &args)).fails(78, &["memory_bytes_max", "hive.toml"]);
}
