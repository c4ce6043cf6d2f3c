//! `cargo xtask fuzz`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use hive_proto::frame::{FrameRef, Op};

use crate::root;
use crate::shell::{Steps, cargo, cargo_tool, output, program, run as sh};
use crate::vectors::{self, Vector};

/// How long to fuzz.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds in all, shared by the targets.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl Args {
    /// So many seconds in all.
    pub(crate) fn of_seconds(seconds: u64) -> Self {
        Self { seconds }
    }
}

const TARGETS: [&str; 6] = ["frames", "stream", "items", "headers", "fragments", "names"];

/// Fuzzes every target, or runs the seeds alone where a nightly toolchain or cargo-fuzz is not to be had.
pub(crate) fn run(args: &Args) -> Result<()> {
    write_seeds()?;
    let tool = match nightly().and_then(|()| cargo_tool("cargo-fuzz", &[])) {
        Ok(tool) => tool,
        Err(e) => {
            println!("no fuzzing here ({e:#}); the seeds run as plain tests instead");
            return seeds_only();
        }
    };
    let each = (args.seconds / TARGETS.len() as u64).max(1);
    let mut steps = Steps::default();
    // Built first, so that the time of a target is spent on fuzzing.
    steps.step("build", || sh(&mut cargo_fuzz(&tool, &["build", "--sanitizer", "none"])));
    for target in TARGETS {
        steps.step(target, || fuzz(&tool, target, each));
    }
    steps.finish()
}

/// Fuzzes one target; its output goes to a file, of which the end is shown if it fails.
fn fuzz(tool: &Path, target: &str, seconds: u64) -> Result<()> {
    let (limit, log) =
        (format!("-max_total_time={seconds}"), root().join(format!("fuzz/target/{target}.log")));
    // The decoders are safe code: an address sanitizer would find nothing and halve the speed.
    let args = ["run", "--sanitizer", "none", target, "--", &limit, "-max_len=4096", "-print_final_stats=1"];
    let result = sh(cargo_fuzz(tool, &args).stderr(File::create(&log)?));
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if result.is_err() {
        let lines: Vec<_> = text.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }
    let runs = text.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"));
    println!("{target}: {} runs, log in {}", runs.unwrap_or("unknown").trim(), log.display());
    result
}

fn cargo_fuzz(tool: &Path, args: &[&str]) -> Command {
    let mut command = program("cargo", ["+nightly", "fuzz"].iter().chain(args));
    // Variables of the stable cargo that runs this must not reach the nightly one.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO_TARGET_DIR").env_remove("CARGO");
    let path = std::env::var("PATH").unwrap_or_default();
    let tools = tool.parent().expect("a program stands in a folder");
    command.env("PATH", format!("{}:{path}", tools.display()));
    command
}

fn nightly() -> Result<()> {
    match output(program("cargo", ["+nightly", "--version"]).env_remove("RUSTUP_TOOLCHAIN")) {
        Some(_) => Ok(()),
        None => bail!("no nightly toolchain: rustup toolchain install nightly"),
    }
}

fn seeds_only() -> Result<()> {
    sh(&mut cargo(["test", "--manifest-path", "fuzz/Cargo.toml", "--no-default-features", "--lib"]))
}

/// The golden vectors, taken apart into what each target reads.
fn write_seeds() -> Result<()> {
    let groups = vectors::groups();
    let vectors: Vec<&Vector> = groups.iter().flat_map(vectors::Group::vectors).collect();
    for target in TARGETS {
        let folder = root().join("fuzz/corpus").join(target);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for vector in &vectors {
            for (i, seed) in seeds(target, &vector.bytes).into_iter().enumerate() {
                fs::write(folder.join(format!("{}-{i}", vector.name)), seed)?;
            }
        }
    }
    Ok(())
}

fn seeds(target: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
    let frame = FrameRef::parse(bytes);
    let header = frame.map(|f| f.header).filter(|h| !h.is_empty());
    match target {
        "frames" => vec![bytes.to_vec()],
        "stream" => vec![[&[7], bytes, bytes].concat()],
        "items" => frame.and_then(item_seed).into_iter().collect(),
        "headers" => header.map(<[u8]>::to_vec).into_iter().collect(),
        "fragments" => {
            let mut pieces = Vec::new();
            hive_proto::fragment::split(bytes, 3, 24, |f| pieces.extend_from_slice(&f));
            vec![pieces]
        }
        _ => header.map(<[u8]>::to_vec).into_iter().collect(),
    }
}

/// Kind of item, count and payload, as the target `items` reads them.
fn item_seed(frame: FrameRef<'_>) -> Option<Vec<u8>> {
    let kind: u8 = match Op::from_u8(frame.prefix.op)? {
        Op::Submit => 0,
        Op::Assign => 1,
        Op::Complete => 2,
        Op::Fail => 3,
        Op::Release => 4,
        Op::Renew => 5,
        Op::Progress => 6,
        Op::Progressed => 7,
        Op::Tasks | Op::Result => 8,
        Op::Revoked => 9,
        Op::Accepted | Op::Settled => 10,
        Op::Query | Op::Cancel | Op::Wait | Op::Redrive | Op::Purge => 11,
        _ => return None,
    };
    let count = if kind == 10 { (frame.payload.len() / 8) as u16 } else { frame.prefix.count };
    Some([&[kind], &count.to_le_bytes()[..], frame.payload].concat())
}
