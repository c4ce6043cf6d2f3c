//! `hive status`, and what the server tells about itself.

use comfy_table::{CellAlignment, Table, presets};
use serde::Deserialize;
use serde_json::Value;

use super::failure::Failure;
use super::target::{Reach, Target};
use super::{http, output};

/// Options of `hive status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    reach: Reach,
}

/// The parts of the server's answer that are shown. What an older or newer server leaves out is empty.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_s: f64,
    pub(crate) draining: bool,
    pub(crate) server: String,
    pub(crate) http: String,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_bytes_max: u64,
    pub(crate) connections: u64,
    pub(crate) queues: Vec<Queue>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) agents_total: u64,
    pub(crate) shards: Vec<Shard>,
    pub(crate) actors: Vec<Actor>,
    pub(crate) totals: Totals,
}

/// A queue.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) durability: String,
    pub(crate) waiting: u64,
    pub(crate) scheduled: u64,
    pub(crate) running: u64,
    pub(crate) completed: u64,
    pub(crate) dead: u64,
    pub(crate) consumers: u64,
}

/// An agent that is logged in.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) client: String,
    pub(crate) labels: Vec<String>,
    pub(crate) connected_s: f64,
}

/// A thread of the server.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Shard {
    pub(crate) shard: u64,
    pub(crate) connections: u64,
    /// The first shard's, unless it is being made anew.
    pub(crate) dispatcher: Option<Dispatcher>,
    /// None while it is being made anew.
    pub(crate) hub: Option<Hub>,
}

/// The part of a shard that holds queues.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Dispatcher {
    pub(crate) tasks: u64,
    pub(crate) decision_ns: Quantiles,
    pub(crate) memory_bytes: u64,
}

/// The part of a shard that passes messages on.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Hub {
    pub(crate) subscriptions: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
}

/// Of a distribution, nanoseconds.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Quantiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
}

/// A supervised actor.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) restarts: u64,
    pub(crate) last_panic: Option<String>,
}

/// Since the server started.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Totals {
    pub(crate) submitted: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) refused: u64,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
}

/// Prints the server's status.
pub(crate) fn run(a: &Args) -> Result<(), Failure> {
    let target = a.reach.target();
    if a.reach.json {
        return output::json_line(&fetch_value(&target)?);
    }
    output::print(text(&fetch(&target)?).as_bytes())
}

/// The server's status as it comes.
pub(crate) fn fetch_value(target: &Target) -> Result<Value, Failure> {
    let answer = http::ask(target, "GET", "/v1/status")?;
    serde_json::from_str(&answer.body).map_err(not_understood)
}

/// The server's status.
pub(crate) fn fetch(target: &Target) -> Result<Status, Failure> {
    serde_json::from_value(fetch_value(target)?).map_err(not_understood)
}

fn not_understood(e: serde_json::Error) -> Failure {
    Failure::new("the server's status is not understood", e)
        .next("check that --http names the HTTP port of a Hive server")
}

/// The status as tables.
pub(crate) fn text(s: &Status) -> String {
    let mut out = format!(
        "hive {} at {} (HTTP {}), process {}, up {}{}\nmemory {} of {}, {} connections\n",
        s.version,
        s.server,
        s.http,
        s.pid,
        duration(s.uptime_s),
        if s.draining { ", DRAINING" } else { "" },
        bytes(s.memory_bytes),
        bytes(s.memory_bytes_max),
        s.connections,
    );
    let t = &s.totals;
    out += &format!(
        "tasks: {} submitted, {} completed, {} failed attempts, {} refused; messages: {} published, {} delivered, {} lost\n",
        t.submitted, t.completed, t.failed, t.refused, t.published, t.delivered, t.lost
    );
    out += &section(
        "queues",
        &["queue", "durability", "waiting", "scheduled", "running", "completed", "dead", "consumers"],
        queues(s),
    );
    out += &section("agents", &["agent", "client", "labels", "connected"], agents(s));
    if s.agents_total > s.agents.len() as u64 {
        out += &format!("and {} more\n", s.agents_total - s.agents.len() as u64);
    }
    out += &section("shards", &SHARD_HEADS, shards(s));
    out += &section("actors", &["actor", "restarts", "last panic"], actors(s));
    out
}

/// The cells of the table of queues.
pub(crate) fn queues(s: &Status) -> Vec<Vec<String>> {
    let row = |q: &Queue| {
        let counts =
            [q.waiting, q.scheduled, q.running, q.completed, q.dead, q.consumers].map(|n| n.to_string());
        [q.name.clone(), q.durability.clone()].into_iter().chain(counts).collect()
    };
    s.queues.iter().map(row).collect()
}

/// The cells of the table of agents.
pub(crate) fn agents(s: &Status) -> Vec<Vec<String>> {
    let row = |a: &Agent| vec![a.id.clone(), a.client.clone(), a.labels.join(" "), duration(a.connected_s)];
    s.agents.iter().map(row).collect()
}

/// The heads of the table of shards.
pub(crate) const SHARD_HEADS: [&str; 9] =
    ["shard", "connections", "tasks", "decision p50", "p99", "memory", "subscriptions", "delivered", "lost"];

/// The cells of the table of shards.
pub(crate) fn shards(s: &Status) -> Vec<Vec<String>> {
    let row = |s: &Shard| {
        let (d, h) = (s.dispatcher.clone().unwrap_or_default(), s.hub.clone().unwrap_or_default());
        vec![
            s.shard.to_string(),
            s.connections.to_string(),
            d.tasks.to_string(),
            nanos(d.decision_ns.p50),
            nanos(d.decision_ns.p99),
            bytes(d.memory_bytes),
            h.subscriptions.to_string(),
            h.delivered.to_string(),
            h.lost.to_string(),
        ]
    };
    s.shards.iter().map(row).collect()
}

fn actors(s: &Status) -> Vec<Vec<String>> {
    let row =
        |a: &Actor| vec![a.name.clone(), a.restarts.to_string(), a.last_panic.clone().unwrap_or_default()];
    s.actors.iter().map(row).collect()
}

fn section(title: &str, heads: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return format!("\nno {title}\n");
    }
    format!("\n{}\n", table(heads, rows))
}

/// A table without lines; numbers stand to the right.
pub(crate) fn table(heads: &[&str], rows: Vec<Vec<String>>) -> Table {
    let numeric =
        |i: usize| rows.iter().all(|r| r.get(i).is_some_and(|c| c.starts_with(|d: char| d.is_ascii_digit())));
    let right: Vec<_> = (0..heads.len()).filter(|i| *i > 0 && numeric(*i)).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads.to_vec()).add_rows(rows);
    for i in right {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A number of bytes, for people.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A duration in seconds, for people.
pub(crate) fn duration(s: f64) -> String {
    let s = s.max(0.0) as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

fn nanos(n: u64) -> String {
    match n {
        0..1000 => format!("{n} ns"),
        1000..1_000_000 => format!("{:.1} us", n as f64 / 1e3),
        _ => format!("{:.1} ms", n as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([bytes(999), bytes(1500), bytes(400_000_000)], ["999 B", "1.5 kB", "400.0 MB"]);
        assert_eq!([duration(59.9), duration(3601.0), duration(90_000.0)], ["59 s", "1 h 0 min", "1 d 1 h"]);
        assert_eq!([nanos(400), nanos(1_500), nanos(2_000_000)], ["400 ns", "1.5 us", "2.0 ms"]);
    }

    #[test]
    fn a_status_is_shown_and_what_is_missing_is_empty() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "version": "9", "queues": [{"name": "q", "durability": "memory", "waiting": 5, "new_field": 1}],
            "actors": [{"name": "dispatcher-0", "restarts": 2, "last_panic": "boom"}],
        }))
        .expect("valid");
        let text = text(&status);
        for part in ["hive 9", "dispatcher-0", "boom", "no agents"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(queues(&status)[0][2], "5");
    }
}
