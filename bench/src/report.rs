//! What a run gave: one JSON object, or one line of a table.

use serde_json::{Map, Value, json};

use crate::scenario::Plan;

/// What some scenarios have beyond the table, line by line.
const PECULIAR: [&[&str]; 7] = [
    &["rss_bytes_per_connection", "rss_bytes_per_task"],
    &["ack_p50_us", "ack_p99_us", "cycle_p50_us", "ack_over_floor"],
    &["disk_sync_p50_us", "disk_sync_p99_us", "echo_p50_us", "disk_write_bytes_per_s"],
    &["file_system", "disk_written_bytes_per_task"],
    &["journal_bytes_per_task", "journal_over_disk"],
    &["lost", "send_lag_p99_us"],
    &["decisions"],
];

/// The outcome of one run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    scenario: &'static str,
    system: &'static str,
    params: Value,
    /// Operations a second: messages delivered, tasks with their result back, connections.
    pub(crate) rate_per_s: f64,
    /// p50, p99 and p99.9, µs, where the run has latencies.
    pub(crate) latency_us: Option<[f64; 3]>,
    /// Processor time of the server for each operation, µs.
    pub(crate) server_cpu_us_per_op: f64,
    /// Peak resident memory of the server, bytes.
    pub(crate) rss_peak_bytes: u64,
    more: Map<String, Value>,
}

impl Report {
    /// An empty report of a plan.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            scenario: plan.scenario.as_str(),
            system: plan.system.as_str(),
            params: plan.params(),
            rate_per_s: 0.0,
            latency_us: None,
            server_cpu_us_per_op: 0.0,
            rss_peak_bytes: 0,
            more: Map::new(),
        }
    }

    /// Says that the run was a part of another scenario.
    pub(crate) fn part_of(&mut self, scenario: &'static str) {
        self.params["work"] = self.scenario.into();
        self.scenario = scenario;
    }

    /// Adds a figure.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        self.more.insert(key.to_owned(), if value.is_f64() { rounded(value.as_f64()) } else { value });
    }

    /// A figure that was added.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.more.get(key)
    }

    /// Whether the generator was the bottleneck.
    pub(crate) fn generator_bound(&self) -> bool {
        self.more.get("generator_bound") == Some(&Value::Bool(true))
    }

    /// The report as one JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let latency = |i: usize| rounded(self.latency_us.map(|l| l[i]));
        let mut json = json!({
            "scenario": self.scenario,
            "system": self.system,
            "params": self.params,
            "rate_per_s": rounded(Some(self.rate_per_s)),
            "p50_us": latency(0),
            "p99_us": latency(1),
            "p999_us": latency(2),
            "server_cpu_us_per_op": rounded(Some(self.server_cpu_us_per_op)),
            "rss_peak_bytes": self.rss_peak_bytes,
        });
        if let Some(object) = json.as_object_mut() {
            object.extend(self.more.clone());
        }
        json
    }

    /// The title line of the table.
    pub(crate) fn title() -> String {
        format!(
            "{:<10} {:<11} {:<38} {:>12} {:>10} {:>10} {:>10} {:>10} {:>9}",
            "scenario",
            "system",
            "parameters",
            "rate/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "cpu us/op",
            "rss MiB"
        )
    }

    /// The report as a line of the table; what is peculiar to its scenario follows on lines of its own.
    pub(crate) fn row(&self) -> String {
        let latency = |i: usize| self.latency_us.map_or_else(|| "-".into(), |l| format!("{:.1}", l[i]));
        let mut row = format!(
            "{:<10} {:<11} {:<38} {:>12.0} {:>10} {:>10} {:>10} {:>10.3} {:>9.1}",
            self.scenario,
            self.system,
            brief(&self.params),
            self.rate_per_s,
            latency(0),
            latency(1),
            latency(2),
            self.server_cpu_us_per_op,
            self.rss_peak_bytes as f64 / (1024.0 * 1024.0),
        );
        for line in PECULIAR {
            let words: Vec<_> =
                line.iter().filter_map(|key| Some(format!("{key} {}", self.more.get(*key)?))).collect();
            if !words.is_empty() {
                row.push_str(&format!("\n{:>22} {}", "", words.join("  ")));
            }
        }
        row
    }
}

/// The parameters in few words.
pub(crate) fn brief(params: &Value) -> String {
    let Some(object) = params.as_object() else { return String::new() };
    let hidden = ["duration_s", "result_size"];
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let usual = |v: &Value| *v == "memory" || *v == "apart";
    let words = object.iter().filter(|(k, v)| !hidden.contains(&k.as_str()) && !usual(v));
    words
        .map(|(k, v)| if k == "clients" { text(v) } else { format!("{k}={}", text(v)) })
        .collect::<Vec<_>>()
        .join(" ")
}

/// A number with three digits after the point.
pub(crate) fn rounded(value: Option<f64>) -> Value {
    value.filter(|v| v.is_finite()).map_or(Value::Null, |v| json!((v * 1000.0).round() / 1000.0))
}
