//! `hive start` with what it cannot use: exit code and text.

use crate::harness::{Server, command, free_port, outcome, payloads};

/// Starts with a configuration file; exit code 78 and the text are expected.
fn refused(config: &str, names: &[&str]) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("hive.toml");
    std::fs::write(&file, config).expect("configuration");
    let (code, text) = outcome(&mut command(&["--config", &file.to_string_lossy()]));
    assert_eq!(code, Some(78), "{text}");
    for name in names {
        assert!(text.contains(name), "{name:?} is not in {text:?}");
    }
}

#[test]
fn unknown_keys_get_a_suggestion() {
    refused(
        "[limits]\nmemory_byte_max = 5\n",
        &["memory_byte_max", "did you mean `memory_bytes_max`?", "hive.toml"],
    );
    refused("xyzzy = 5\n", &["xyzzy", "listen"]);
}

#[test]
fn wrong_units_and_types_are_named() {
    refused("[session]\nheartbeat_s = 3\n", &["heartbeat_s", "did you mean `heartbeat_ms`?"]);
    refused("[session]\nheartbeat_ms = \"3s\"\n", &["heartbeat_ms"]);
    refused("[limits]\nmemory_bytes_max = \"400MB\"\n", &["memory_bytes_max"]);
    refused("[limits]\nmemory_bytes_max = -1\n", &["memory_bytes_max"]);
}

#[test]
fn values_that_may_not_be() {
    refused("allow_plaintext_network = maybe\n", &["hive.toml"]);
    refused("[limits]\nmemory_bytes_max = 1000\n", &["limits.memory_bytes_max"]);
    refused("[session]\ndead_ms = 100\n", &["session.dead_ms"]);
    refused("[[queues]]\nname = \"a b\"\n", &["queues.name", "a b"]);
    let (code, text) = outcome(&mut command(&["--listen", "nowhere"]));
    assert!(code == Some(78) && text.contains("nowhere"), "{code:?} {text}");
    let (code, text) = outcome(&mut command(&["--listen", "0.0.0.0:0"]));
    assert!(code == Some(78) && text.contains("allow_plaintext_network"), "{code:?} {text}");
    let (code, text) = outcome(&mut command(&["--config", "/nowhere/hive.toml"]));
    assert!(code == Some(78) && text.contains("/nowhere/hive.toml"), "{code:?} {text}");
}

#[test]
fn port_in_use() {
    let (_keeps, addr) = free_port();
    for option in ["--listen", "--http"] {
        let (code, text) = outcome(&mut command(&[option, &addr.to_string()]));
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(&addr.to_string()) && text.contains("in use"), "{text}");
    }
}

#[test]
fn data_directory_not_writable() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").expect("written");
    for dir in [file.join("below"), "/proc/hive".into()] {
        let dir = dir.to_string_lossy().into_owned();
        let (code, text) = outcome(&mut command(&["--data-dir", &dir]));
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains(&dir) && text.contains("cannot be written"), "{text}");
    }
}

/// Looking for what comes next ends when nothing comes.
#[test]
fn an_idle_server_does_not_poll() {
    refused("busy_poll_us = 1001\n", &["busy_poll_us", "at most 1000"]);
    let server = Server::with("busy_poll_us = 1000\n");
    let mut client = server.client();
    let consumer = client.work("q", 1);
    for _ in 0..300 {
        client.submit("q", &payloads(1));
        let task = client.one(consumer);
        assert_eq!(client.complete_with(task.lease, b"done").accepted, 1);
    }
    let before = server.cpu_ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let idle = server.cpu_ticks() - before;
    assert!(idle < 30, "{idle} of 100 ticks of CPU while nothing was to do");
}
