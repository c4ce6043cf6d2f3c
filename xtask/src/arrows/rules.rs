//! The rules: which room may use what, and why.

use super::paths::Reference;

/// A part of the workspace with rules of its own, found by where its files stand.
pub(crate) struct Room {
    /// Folder or file, from the root of the workspace.
    pub(crate) place: &'static str,
    /// What of the same crate it may use; `None`: all of it.
    ours: Option<&'static [&'static str]>,
    /// What other crates it may use; `None`: all but those in `never`.
    crates: Option<&'static [&'static str]>,
    /// Paths that it may not use, whatever else is said.
    never: &'static [&'static str],
    /// Most lines of a file, tests excluded.
    pub(crate) lines_max: usize,
    /// Why.
    pub(crate) reason: &'static str,
}

/// IO by the standard library and by tokio. Addresses (`std::net::SocketAddr`) are plain values.
const IO: &[&str] = &[
    "std::fs",
    "std::process::Command",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::os::unix::net",
    "tokio::fs",
    "tokio::net",
    "tokio::process",
    "mio",
    "socket2",
];
const PURE_CRATES: &[&str] =
    &["std", "core", "alloc", "hive_proto", "bytes", "hashbrown", "foldhash", "thiserror"];
const IMPURE: &[&str] = &[
    "std::net",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "std::time::Instant",
    "std::time::SystemTime",
];
const OURS_BUT_PROTO: &[&str] = &["hive", "hive_client", "hive_bench"];

/// All rooms; a file belongs to the one with the longest place that fits.
pub(crate) const ROOMS: &[Room] = &[
    Room {
        place: "src/core",
        // What is planted is nothing in a server that serves.
        ours: Some(&["core", "planted"]),
        crates: Some(PURE_CRATES),
        never: IMPURE,
        lines_max: 400,
        reason: "the core is a state machine that a journal replays: no clock, no IO, no thread, nothing outward",
    },
    Room {
        place: "src/insight",
        ours: Some(&["insight"]),
        crates: Some(PURE_CRATES),
        never: IMPURE,
        lines_max: 400,
        reason: "insight is numbers in, judgements out: no clock, no IO, no thread, nothing outward",
    },
    Room {
        place: "src/actors",
        ours: Some(&["core", "insight", "actors", "config", "edge::clock", "planted"]),
        crates: None,
        never: IO,
        lines_max: 500,
        reason: "actors apply the core and perform effects through traits that edges implement; they do no IO themselves",
    },
    Room {
        place: "src/edge",
        // A tick is a plain number; the clock makes it and the actors' messages carry it.
        ours: Some(&["config", "actors", "edge::clock", "core::time", "planted"]),
        crates: None,
        never: &[],
        lines_max: 500,
        reason: "an edge knows the actors' handles and itself, not the core and not its neighbours",
    },
    Room {
        place: "src/config.rs",
        ours: Some(&["config", "core"]),
        crates: None,
        never: IO,
        lines_max: 500,
        reason: "the configuration is plain data: it fills the types of the core and leaves reading files to others",
    },
    Room {
        place: "src/main.rs",
        ours: None,
        crates: None,
        never: IO,
        lines_max: 59,
        reason: "main only turns arguments into a run",
    },
    Room {
        place: "src",
        ours: None,
        crates: None,
        never: &[],
        lines_max: 500,
        reason: "app and cli wire everything",
    },
    Room {
        place: "proto/src",
        ours: None,
        crates: None,
        never: &[
            "hive",
            "hive_client",
            "hive_bench",
            "tokio",
            "actix",
            "std::net",
            "std::fs",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
        ],
        lines_max: 500,
        reason: "the protocol is free of IO and uses nothing of ours, so that every client can build on it",
    },
    Room {
        place: "clients/rust/src",
        ours: None,
        crates: None,
        never: &["hive", "hive_bench", "actix"],
        lines_max: 500,
        reason: "a client knows the protocol and nothing of the server",
    },
    Room {
        place: "bench/src",
        ours: None,
        crates: None,
        // What scores the detectors will link `hive::insight`; nothing links the server.
        never: &["hive::core", "hive::actors", "hive::edge", "hive::app", "hive::cli", "hive_client"],
        lines_max: 500,
        reason: "the load must not depend on how server or client are built",
    },
    Room {
        place: "bench/src/scenario",
        ours: None,
        crates: None,
        never: OURS_BUT_PROTO,
        lines_max: 500,
        reason: "load scenarios speak the protocol and know nothing of the server",
    },
    Room {
        place: "integration-tests",
        ours: None,
        crates: None,
        never: &["hive", "hive_bench"],
        lines_max: 500,
        reason: "integration tests drive the built binary, as users do",
    },
    Room {
        place: "xtask/src",
        ours: None,
        crates: None,
        never: OURS_BUT_PROTO,
        lines_max: 500,
        reason: "chores must build in seconds",
    },
];

/// Arrows that are allowed in one file: the file, the path, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "src/actors/sessions.rs",
        "std::net::TcpStream",
        "an accepted socket is handed to the shard that will serve it, unread; the edge does the IO",
    ),
    (
        "src/config.rs",
        "std::fs::read_to_string",
        "the one file that --config names is read where it is parsed",
    ),
];

const ACTOR_TRAITS: &[&str] =
    &["Actor", "Handler", "StreamHandler", "Supervised", "SystemService", "ArbiterService"];

/// What a rule needs to know about the workspace.
#[derive(Default)]
pub(crate) struct World {
    /// Names of the crates that the workspace depends on, with underscores.
    pub(crate) crates: Vec<String>,
    /// Names of the traits that `src/edge` declares.
    pub(crate) edge_traits: Vec<String>,
}

/// The room of a file, given from the root of the workspace with `/`.
pub(crate) fn room_of(file: &str) -> Option<&'static Room> {
    let fits =
        |place: &str| file == place || file.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
    ROOMS.iter().filter(|r| fits(r.place)).max_by_key(|r| r.place.len())
}

/// Why `reference` may not stand in `file`, or `None` if it may.
pub(crate) fn judge(file: &str, reference: &Reference, world: &World) -> Option<&'static str> {
    let room = room_of(file)?;
    let path = &reference.path;
    if EXCEPTIONS.iter().any(|(f, p, _)| *f == file && begins(&path.join("::"), p)) {
        return None;
    }
    if room.never.iter().any(|p| reaches(path, p)) {
        return Some(room.reason);
    }
    // `hive::x` in the binary's own files is the library that they belong to.
    let ours = path[0] == "crate" || path[0] == "hive" && file.starts_with("src/");
    if ours {
        let inside = path[1..].join("::");
        let allowed = room.ours.is_none_or(|list| list.iter().any(|p| begins(&inside, p)))
            || room.place == "src/edge" && same_edge(file, &inside)
            || room.place == "src/actors" && is_edge_trait(path, world);
        return (!allowed).then_some(room.reason);
    }
    let known = ["std", "core", "alloc"].contains(&path[0].as_str()) || world.crates.contains(&path[0]);
    let allowed = !known || room.crates.is_none_or(|list| list.contains(&path[0].as_str()));
    (!allowed).then_some(room.reason)
}

/// Why a trait may not be implemented in `file`, or `None` if it may.
pub(crate) fn judge_trait(file: &str, implemented: &Reference) -> Option<&'static str> {
    let path = &implemented.path;
    // A name without a path came by a glob, and nothing but actix gives these names by glob.
    let of_actix = path.len() == 1 || path[0] == "actix";
    let actor = of_actix && path.last().is_some_and(|t| ACTOR_TRAITS.contains(&t.as_str()));
    (actor && !file.starts_with("src/actors/"))
        .then_some("only actors/ implements actix's traits, so that a reader finds every actor there")
}

/// Whether `path` names something below `forbidden`, or imports a module from which it can be named.
fn reaches(path: &[String], forbidden: &str) -> bool {
    let forbidden: Vec<&str> = forbidden.split("::").collect();
    let glob = path.last().is_some_and(|l| l == "*");
    let path = if glob { &path[..path.len() - 1] } else { path };
    let common = path.iter().zip(&forbidden).take_while(|(a, b)| a == b).count();
    common == forbidden.len() || glob && common == path.len()
}

fn begins(path: &str, start: &str) -> bool {
    path == start || path.strip_prefix(start).is_some_and(|rest| rest.starts_with("::"))
}

/// Whether `path` stays in the edge that `file` belongs to, or names what all edges share (`src/edge/mod.rs`).
fn same_edge(file: &str, path: &str) -> bool {
    let room =
        file.trim_start_matches("src/edge/").split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let mut parts = path.split("::");
    let (edge, next) = (parts.next(), parts.next());
    edge == Some("edge")
        && (room == "mod" || next.is_none_or(|n| n == room || n.starts_with(char::is_uppercase)))
}

fn is_edge_trait(path: &[String], world: &World) -> bool {
    path.get(1).is_some_and(|p| p == "edge") && path.iter().any(|p| world.edge_traits.contains(p))
}

#[cfg(test)]
mod tests {
    use super::super::check_text;
    use super::*;

    fn world() -> World {
        let crates = ["tokio", "actix", "bytes", "hive_proto", "rand"].map(String::from).to_vec();
        World { crates, edge_traits: vec!["Link".into()] }
    }

    fn found(file: &str, source: &str) -> Vec<String> {
        check_text(file, source, &world()).iter().map(|v| format!("{}:{}", v.line, v.what)).collect()
    }

    #[test]
    fn the_core_stays_pure() {
        let ok = "use std::time::Duration; use hive_proto::TaskId; use bytes::Bytes; use super::queue::Queue; use crate::core::time::Tick;";
        assert_eq!(found("src/core/tasks/mod.rs", ok), [""; 0]);
        for bad in [
            "use tokio::time::sleep;",
            "use actix::prelude::*;",
            "use std::time::Instant;",
            "use std::time::*;",
            "use std::time as t; fn x() { t::SystemTime::now() }",
            "fn x() { std::thread::sleep(d) }",
            "use std::{fmt, net::SocketAddr};",
            "use crate::actors::mailbox::Sender;",
            "use super::super::super::config::Config;",
            "#[derive(rand::X)] struct Y;",
            "fn x() { hive::edge::y() }",
        ] {
            assert_eq!(found("src/core/hub/routes.rs", bad).len(), 1, "{bad}");
            assert_eq!(found("src/insight/detect/ewma.rs", bad).len(), 1, "{bad}");
        }
        let tests_may = "#[cfg(test)]\nmod tests { use std::time::Instant; }";
        assert_eq!(found("src/core/a.rs", tests_may), [""; 0]);
        assert_eq!(found("src/core/a.rs", "// use tokio::net;\nconst A: &str = \"use std::fs;\";"), [""; 0]);
    }

    #[test]
    fn actors_reach_edges_by_their_traits_only() {
        let file = "src/actors/dispatcher.rs";
        assert_eq!(
            found(file, "use crate::edge::tcp::Link; use crate::core::tasks; use crate::edge::clock::now;"),
            [""; 0]
        );
        assert_eq!(found(file, "\nuse crate::edge::tcp::Session;"), ["2:uses crate::edge::tcp::Session"]);
        assert_eq!(found(file, "use tokio::net::TcpStream;"), ["1:uses tokio::net::TcpStream"]);
        assert_eq!(found(file, "fn x() { std::fs::read(p) }"), ["1:uses std::fs::read"]);
        assert_eq!(found(file, "use std::net::SocketAddr; use tokio::sync::mpsc;"), [""; 0]);
    }

    #[test]
    fn edges_do_not_know_each_other_nor_the_core() {
        let file = "src/edge/http/status.rs";
        assert_eq!(
            found(
                file,
                "use super::server; use crate::edge::http::auth; use crate::edge::clock; use std::fs;"
            ),
            [""; 0]
        );
        assert_eq!(found(file, "use crate::edge::tcp::session;").len(), 1);
        assert_eq!(found(file, "use super::super::tcp;").len(), 1);
        assert_eq!(found(file, "use crate::core::tasks;").len(), 1);
    }

    #[test]
    fn packages_keep_their_distance() {
        assert_eq!(found("proto/src/frame.rs", "use hive_client::Client; use tokio::io;").len(), 2);
        assert_eq!(found("clients/rust/src/lib.rs", "use hive::core::tasks;").len(), 1);
        assert_eq!(found("bench/src/scenario/task.rs", "use hive::insight::detect;").len(), 1);
        assert_eq!(found("bench/src/score.rs", "use hive::insight::detect;"), [""; 0]);
        assert_eq!(found("bench/src/score.rs", "use hive::actors::dispatcher;").len(), 1);
        assert_eq!(
            found(
                "src/config.rs",
                "use crate::core::tasks::Policy; use crate::actors::x; fn y() { std::fs::read(z) }"
            )
            .len(),
            2
        );
        assert_eq!(
            found("src/cli/work.rs", "use crate::edge::tcp; use std::fs; use hive_client::Client;"),
            [""; 0]
        );
    }

    #[test]
    fn only_actors_implement_actor_traits() {
        let code = "use actix::prelude::*;\nimpl Actor for A {}\nimpl<T> Handler<M<T>> for A {}";
        assert_eq!(found("src/app.rs", code), ["2:implements Actor", "3:implements Handler"]);
        assert_eq!(found("src/actors/hub.rs", code), [""; 0]);
        assert_eq!(found("src/app.rs", "use crate::x::Handler;\nimpl Handler for A {}"), [""; 0]);
    }

    #[test]
    fn exceptions_hold_for_one_file_and_one_path() {
        assert_eq!(found("src/actors/sessions.rs", "use std::net::TcpStream;"), [""; 0]);
        assert_eq!(found("src/actors/hub.rs", "use std::net::TcpStream;").len(), 1);
        assert_eq!(found("src/actors/sessions.rs", "use std::net::TcpListener;").len(), 1);
        assert!(
            EXCEPTIONS
                .iter()
                .all(|(file, _, why)| super::super::root().join(file).is_file() && !why.is_empty())
        );
    }

    #[test]
    fn files_stay_short() {
        assert_eq!(found("src/core/a.rs", &"\n".repeat(401)), ["401:has 401 lines"]);
        assert_eq!(found("src/app.rs", &"\n".repeat(500)), [""; 0]);
        assert_eq!(found("src/main.rs", &"\n".repeat(60)), ["60:has 60 lines"]);
        let tests = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(900));
        assert_eq!(found("src/core/a.rs", &tests), [""; 0]);
    }
}
