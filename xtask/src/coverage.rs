//! `cargo xtask coverage`: line coverage by cargo-tarpaulin, which needs nothing beyond the toolchain.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::root;
use crate::shell::{cargo_tool, program, run as sh, target_dir};

/// What to do with the figures.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do not fail where coverage is below its limit.
    #[arg(long)]
    no_fail: bool,
    /// Leave out the integration tests; quicker, and enough for the rooms that have a limit.
    #[arg(long)]
    unit: bool,
}

/// Rooms in the order they are printed: name, places, and the percentage below which the command fails.
const ROOMS: &[(&str, &[&str], Option<f64>)] = &[
    ("proto", &["proto/src/"], Some(95.0)),
    ("core", &["src/core/"], Some(95.0)),
    ("insight", &["src/insight/"], Some(95.0)),
    ("actors", &["src/actors/"], None),
    ("edge", &["src/edge/"], None),
    ("app, cli, config", &["src/"], None),
    ("clients", &["clients/"], None),
    ("bench", &["bench/src/"], None),
    ("xtask", &["xtask/src/"], None),
];

#[derive(Deserialize)]
struct Report {
    files: Vec<FileReport>,
}

#[derive(Deserialize)]
struct FileReport {
    path: Vec<String>,
    covered: u64,
    coverable: u64,
}

#[derive(Clone, Copy, Default)]
struct Lines {
    covered: u64,
    coverable: u64,
}

impl Lines {
    fn percent(self) -> f64 {
        if self.coverable == 0 { 100.0 } else { 100.0 * self.covered as f64 / self.coverable as f64 }
    }
}

/// Runs the tests under tarpaulin and prints a table.
pub(crate) fn run(args: &Args) -> Result<()> {
    // Without its default features it needs no TLS library.
    let tool = cargo_tool("cargo-tarpaulin", &["--no-default-features"])?;
    let out = target_dir().join("coverage");
    fs::create_dir_all(&out)?;
    let (out_text, build) =
        (out.to_string_lossy().into_owned(), out.join("build").to_string_lossy().into_owned());
    let binary = |name: &str| Path::new(&build).join("debug").join(name).to_string_lossy().into_owned();
    let (hive, bench) = (binary("hive"), binary("hive-bench"));
    let mut options = vec![
        "tarpaulin",
        "--engine",
        "llvm",
        "--workspace",
        "--skip-clean",
        "--no-fail-fast",
        // A binary of tests that takes longer is killed, without a word: the integration tests do.
        "--timeout",
        "1800",
        "--out",
        "Json",
    ];
    options.extend(["--output-dir", &out_text, "--target-dir", &build, "--exclude-files", "fuzz/*"]);
    if args.unit {
        options.extend(["--exclude", "hive-integration-tests"]);
    } else {
        // Servers that the integration tests start count as well; those that a test kills leave no figures.
        build_instrumented(&tool, &build)?;
        options.extend(["--follow-exec", "--objects", &hive, "--objects", &bench]);
    }
    let mut command = program(&tool.to_string_lossy(), options);
    command.env("HIVE_BIN", &hive).env("HIVE_BENCH_BIN", &bench);
    let report = out.join("tarpaulin-report.json");
    let _ = fs::remove_file(&report);
    // A test that fails does not keep the figures of the others from being seen.
    let tests = sh(&mut command);
    let text = fs::read_to_string(&report).context("tarpaulin wrote no report")?;
    print(&serde_json::from_str(&text).context("tarpaulin's report")?, args.no_fail)?;
    tests
}

fn build_instrumented(tool: &Path, build: &str) -> Result<()> {
    let options = [
        "tarpaulin",
        "--engine",
        "llvm",
        "--workspace",
        "--skip-clean",
        "--command",
        "build",
        "--no-run",
        "--target-dir",
    ];
    sh(&mut program(&tool.to_string_lossy(), options.into_iter().chain([build])))
}

fn print(report: &Report, no_fail: bool) -> Result<()> {
    let (rooms, whole) = tally(report);
    let mut low = Vec::new();
    println!("\n{:<20} {:>8} {:>8} {:>8}", "room", "covered", "lines", "%");
    for (name, _, limit) in ROOMS {
        let lines = rooms.get(name).copied().unwrap_or_default();
        if lines.coverable == 0 {
            continue;
        }
        let short = limit.is_some_and(|l| lines.percent() < l);
        let mark = if short { "  below its limit" } else { "" };
        println!("{name:<20} {:>8} {:>8} {:>8.1}{mark}", lines.covered, lines.coverable, lines.percent());
        if short {
            low.push(format!("{name} {:.1} %", lines.percent()));
        }
    }
    println!("{:<20} {:>8} {:>8} {:>8.1}", "whole", whole.covered, whole.coverable, whole.percent());
    if !low.is_empty() && !no_fail {
        bail!("below 95 %: {}", low.join(", "));
    }
    Ok(())
}

fn tally(report: &Report) -> (BTreeMap<&'static str, Lines>, Lines) {
    let (mut rooms, mut whole) = (BTreeMap::<_, Lines>::new(), Lines::default());
    for file in &report.files {
        let path = file.path.join("/").replace("//", "/");
        let path = path.strip_prefix(&format!("{}/", root().display())).unwrap_or(&path);
        if path.contains("/tests/") || path.ends_with("/tests.rs") {
            continue;
        }
        // `src/` is the last resort of what stands there: the longest place that fits wins.
        let fits = ROOMS.iter().flat_map(|(name, places, _)| places.iter().map(move |p| (*name, *p)));
        let best = fits.filter(|(_, place)| path.starts_with(place)).max_by_key(|(_, place)| place.len());
        let Some((room, _)) = best else { continue };
        for lines in [rooms.entry(room).or_default(), &mut whole] {
            lines.covered += file.covered;
            lines.coverable += file.coverable;
        }
    }
    (rooms, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_for_their_room() {
        let here = root().display().to_string();
        let file = |path: &str, covered, coverable| FileReport {
            path: [
                &["/".to_owned()][..],
                &format!("{here}/{path}")[1..].split('/').map(String::from).collect::<Vec<_>>(),
            ]
            .concat(),
            covered,
            coverable,
        };
        let files = vec![
            file("src/core/a.rs", 9, 10),
            file("src/app.rs", 1, 10),
            file("proto/src/b.rs", 5, 5),
            file("fuzz/x.rs", 0, 9),
            file("src/core/tests.rs", 0, 9),
        ];
        let report = Report { files };
        let (rooms, whole) = tally(&report);
        assert_eq!(
            (rooms["core"].covered, rooms["app, cli, config"].coverable, rooms["proto"].coverable),
            (9, 10, 5)
        );
        assert_eq!((whole.covered, whole.coverable), (15, 25));
        assert!(print(&report, false).is_err() && print(&report, true).is_ok());
    }
}
