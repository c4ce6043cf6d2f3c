//! Hive and its peers side by side: A B A B ..., one pair after the other, so that both sides of a ratio saw the same
//! minutes of the machine.

use anyhow::Result;
use serde_json::{Value, json};

use crate::report::{Report, brief, rounded};
use crate::scenario::{self, Plan, Unsupported};
use crate::server::Missing;
use crate::system::{Durability, Name};

/// Figures that only some runs have; those of the server also get a ratio.
const OF_SERVERS: [&str; 6] = [
    "rss_bytes_per_connection",
    "rss_bytes_per_task",
    "ack_p50_us",
    "ack_p99_us",
    "cycle_p50_us",
    "disk_written_bytes_per_task",
];
const OF_MACHINES: [&str; 7] = [
    "ack_over_floor",
    "echo_p50_us",
    "disk_sync_p50_us",
    "disk_sync_p99_us",
    "disk_write_bytes_per_s",
    "journal_bytes_per_task",
    "journal_over_disk",
];

/// Why there is no ratio.
#[derive(Debug)]
struct Gap {
    status: &'static str,
    reason: String,
}

/// Compares Hive with one peer; gives one JSON object. `plan` is Hive's.
pub(crate) fn compare(plan: &Plan, peer: Name, rounds: usize) -> Value {
    let mut other = Plan { system: peer, ..plan.clone() };
    if peer == Name::Hive {
        other.setup.durability = Durability::Memory; // what the journal costs; or how much two equal runs differ
    }
    let head = json!({
        "scenario": plan.scenario.as_str(),
        "system": plan.system.as_str(),
        "peer": peer.as_str(),
        "params": plan.params(),
    });
    match pairs(plan, &other, rounds) {
        Ok(pairs) => merge(head, summary(&pairs)),
        Err(gap) => merge(head, json!({ "status": gap.status, "reason": gap.reason })),
    }
}

fn pairs(hive: &Plan, peer: &Plan, rounds: usize) -> Result<Vec<(Report, Report)>, Gap> {
    scenario::check_support(peer).map_err(|e| gap(peer, &e))?;
    (1..=rounds)
        .map(|round| {
            let a = one(hive, round)?;
            Ok((a, one(peer, round)?))
        })
        .collect()
}

fn one(plan: &Plan, round: usize) -> Result<Report, Gap> {
    let report = scenario::run(plan).map_err(|e| gap(plan, &e))?;
    eprintln!("round {round}: {}", report.row());
    crate::warn(&report);
    Ok(report)
}

fn gap(plan: &Plan, error: &anyhow::Error) -> Gap {
    let status = if error.downcast_ref::<Missing>().is_some() {
        "missing"
    } else if error.downcast_ref::<Unsupported>().is_some() {
        "unsupported"
    } else {
        "failed"
    };
    Gap { status, reason: format!("{}: {error:#}", plan.system.as_str()) }
}

fn merge(mut a: Value, b: Value) -> Value {
    if let (Some(a), Value::Object(b)) = (a.as_object_mut(), b) {
        a.extend(b);
    }
    a
}

/// Medians of both sides and the ratios of the pairs.
fn summary(pairs: &[(Report, Report)]) -> Value {
    let ratio = |of: &dyn Fn(&Report) -> Option<f64>| {
        let ratios =
            pairs.iter().filter_map(|(a, b)| Some(of(a)? / of(b)?)).filter(|r| r.is_finite()).collect();
        Spread::of(ratios).map_or(Value::Null, Spread::to_json)
    };
    let mut summary = json!({
        "status": "ok",
        "rounds": pairs.len(),
        "rate_ratio": ratio(&|r| Some(r.rate_per_s)),
        "cpu_ratio": ratio(&|r| Some(r.server_cpu_us_per_op)),
        "p50_ratio": ratio(&|r| r.latency_us.map(|l| l[0])),
        "p99_ratio": ratio(&|r| r.latency_us.map(|l| l[1])),
        "rss_ratio": ratio(&|r| Some(r.rss_peak_bytes as f64)),
        "generator_bound": pairs.iter().any(|(a, _)| a.generator_bound()),
        "peer_generator_bound": pairs.iter().any(|(_, b)| b.generator_bound()),
    });
    for key in OF_SERVERS {
        let of = |r: &Report| r.get(key).and_then(Value::as_f64);
        if pairs.iter().any(|(a, _)| of(a).is_some()) {
            summary[format!("{}_ratio", key.trim_end_matches("_us"))] = ratio(&of);
        }
    }
    for key in ["durability_acknowledged", "file_system"] {
        if let Some(value) = pairs.first().and_then(|(a, _)| a.get(key)) {
            summary[key] = value.clone();
        }
    }
    let hive: Vec<_> = pairs.iter().map(|(a, _)| a).collect();
    let peer: Vec<_> = pairs.iter().map(|(_, b)| b).collect();
    summary["peer_run"] = medians(&peer);
    merge(summary, medians(&hive))
}

fn medians(reports: &[&Report]) -> Value {
    let median = |of: &dyn Fn(&Report) -> Option<f64>| {
        rounded(Spread::of(reports.iter().filter_map(|r| of(r)).collect()).map(|s| s.median))
    };
    let mut json = json!({
        "rate_per_s": median(&|r| Some(r.rate_per_s)),
        "p50_us": median(&|r| r.latency_us.map(|l| l[0])),
        "p99_us": median(&|r| r.latency_us.map(|l| l[1])),
        "p999_us": median(&|r| r.latency_us.map(|l| l[2])),
        "server_cpu_us_per_op": median(&|r| Some(r.server_cpu_us_per_op)),
        "rss_peak_bytes": median(&|r| Some(r.rss_peak_bytes as f64)),
    });
    for key in OF_SERVERS.into_iter().chain(OF_MACHINES) {
        let value = median(&|r| r.get(key).and_then(Value::as_f64));
        if !value.is_null() {
            json[key] = value;
        }
    }
    json
}

/// Median, least and greatest of some numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` of none.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { median, min, max })
    }

    fn to_json(self) -> Value {
        json!({ "median": rounded(Some(self.median)), "min": rounded(Some(self.min)), "max": rounded(Some(self.max)) })
    }
}

/// The line of a comparison for people.
pub(crate) fn row(json: &Value) -> String {
    let text = |key: &str| json[key].as_str().unwrap_or("-").to_owned();
    let head = format!("{:<8} {:<38} hive / {:<11}", text("scenario"), brief(&json["params"]), text("peer"));
    if json["status"] != "ok" {
        return format!("{head} {}: {}", text("status"), text("reason"));
    }
    let ratio = |key: &str| {
        let part = |p: &str| json[key][p].as_f64().map_or_else(|| "-".into(), |v| format!("{v:.2}"));
        format!("{} ({}..{})", part("median"), part("min"), part("max"))
    };
    let bound = if json["generator_bound"] == true { "  generator bound" } else { "" };
    let [rate, cpu, p50, p99, rss] =
        ["rate_ratio", "cpu_ratio", "p50_ratio", "p99_ratio", "rss_ratio"].map(ratio);
    let row = format!("{head} rate {rate}  cpu {cpu}  p50 {p50}  p99 {p99}  rss {rss}{bound}");
    if !json["ack_p50_ratio"].is_object() {
        return row;
    }
    let both = |key: &str| {
        [&json[key], &json["peer_run"][key]]
            .map(|v| v.as_f64().map_or_else(|| "-".into(), |v| format!("{v:.1}")))
            .join(" / ")
    };
    format!(
        "{row}\n{:>20} acknowledged {}  cycle {}  acknowledged over sync + echo {}  sync us {}",
        "",
        ratio("ack_p50_ratio"),
        ratio("cycle_p50_ratio"),
        both("ack_over_floor"),
        both("disk_sync_p50_us"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_some_numbers() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(Spread::of(vec![5.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 5.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let plan = crate::tests::plan();
        let report = |rate: f64, p50: f64| {
            let mut r = Report::new(&plan);
            (r.rate_per_s, r.server_cpu_us_per_op, r.rss_peak_bytes) = (rate, 1.0, 100);
            r.latency_us = Some([p50, 2.0 * p50, 3.0 * p50]);
            r
        };
        // The median of the ratios, not the ratio of the medians.
        let pairs = [
            (report(30.0, 1.0), report(10.0, 2.0)),
            (report(40.0, 1.0), report(40.0, 4.0)),
            (report(10.0, 1.0), report(5.0, 1.0)),
        ];
        let json = summary(&pairs);
        assert_eq!(json["rate_ratio"], json!({ "median": 2.0, "min": 1.0, "max": 3.0 }));
        assert_eq!(json["p50_ratio"], json!({ "median": 0.5, "min": 0.25, "max": 1.0 }));
        assert_eq!((&json["rate_per_s"], &json["peer_run"]["rate_per_s"]), (&json!(30.0), &json!(10.0)));
    }

    #[test]
    fn acknowledgements_are_compared_and_set_against_the_floor() {
        let plan = crate::tests::plan();
        let report = |ack: f64, over: f64| {
            let mut r = Report::new(&plan);
            r.set("ack_p50_us", ack);
            r.set("cycle_p50_us", 2.0 * ack);
            r.set("ack_over_floor", over);
            r.set("disk_sync_p50_us", 100.0);
            r.set("file_system", "ext4");
            r
        };
        let json = merge(json!({ "status": "ok" }), summary(&[(report(150.0, 1.1), report(300.0, 2.2))]));
        assert_eq!(json["ack_p50_ratio"]["median"], json!(0.5));
        assert_eq!(
            (&json["ack_over_floor"], &json["peer_run"]["ack_over_floor"]),
            (&json!(1.1), &json!(2.2))
        );
        assert_eq!((&json["file_system"], &json["disk_sync_p50_us"]), (&json!("ext4"), &json!(100.0)));
        let row = row(&json);
        assert!(row.contains("acknowledged 0.50") && row.contains("sync + echo 1.1 / 2.2"), "{row}");
    }

    #[test]
    fn what_a_peer_cannot_do_is_said() {
        let json = compare(&crate::tests::plan(), Name::Beanstalkd, 1);
        assert_eq!((&json["status"], &json["peer"]), (&json!("unsupported"), &json!("beanstalkd")));
        assert!(row(&json).contains("no publish/subscribe"));
    }
}
