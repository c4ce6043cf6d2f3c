//! `hive journal`: looks at a journal that no server uses, and changes nothing.

use std::path::{Path, PathBuf};

use hive::actors::journal::{Damage, OpenError, Position};
use hive::edge::journal::{Directory, Entry, LocalSnapshots, Recovered, survey};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output;

/// Lines are printed in portions of so many bytes: a journal has millions.
const PORTION_BYTES: usize = 64 * 1024;

/// Options of `hive journal`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Verify every record and every snapshot.
    Verify(Place),
    /// List the records.
    Inspect(Inspect),
    /// Sum up each segment.
    Stats(Place),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Directory of the journal.
    dir: PathBuf,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Inspect {
    #[command(flatten)]
    place: Place,
    /// First position to list.
    #[arg(long, value_name = "N", default_value_t = 1)]
    from: u64,
    /// Records to list at most.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    count: u64,
}

/// Runs the subcommand.
pub(crate) fn run(a: &Args) -> Result<(), Failure> {
    match &a.command {
        Command::Verify(place) => verify(place),
        Command::Inspect(a) => inspect(a),
        Command::Stats(place) => stats(place),
    }
}

/// A journal and its snapshots.
struct Found {
    files: Directory,
    /// Position of the latest whole snapshot: what it covers may be gone.
    start: Position,
    /// Positions of all snapshots.
    snapshots: Vec<Position>,
    /// What is wrong with them.
    damaged: Vec<Damage>,
}

fn find(dir: &Path) -> Result<Found, Failure> {
    let cannot = |why: String| Failure::new(format!("cannot read the journal in {}", dir.display()), why);
    let files = Directory::read_only(dir).map_err(|e| cannot(e.to_string()))?;
    let all = LocalSnapshots::new(files.clone()).verify_all().map_err(|e| cannot(e.to_string()))?;
    let whole = all.iter().filter(|(_, damage)| damage.is_none());
    let start = whole.map(|(at, _)| *at).max().unwrap_or(Position::NONE);
    let snapshots = all.iter().map(|(at, _)| *at).collect();
    Ok(Found { files, start, snapshots, damaged: all.into_iter().filter_map(|(_, d)| d).collect() })
}

impl Found {
    /// Gives each record to `each`; what is wrong ends it.
    fn survey(&self, dir: &Path, each: &mut dyn FnMut(&Entry)) -> Result<Recovered, Failure> {
        match survey(&self.files, self.start, each) {
            Ok(Some(recovered)) => Ok(recovered),
            Ok(None) => Err(Failure::new(format!("no journal in {}", dir.display()), "it has no segments")
                .next("give the directory that holds the .seg files")),
            Err(OpenError::Damaged(d)) => Err(damaged(&d)),
            Err(e @ OpenError::InUse(_)) => {
                Err(Failure::new(format!("cannot look at the journal in {}", dir.display()), e)
                    .next("stop the server first: an end that moves looks like a torn one"))
            }
            Err(e) => Err(Failure::new("the journal does not hold together", e)),
        }
    }
}

fn damaged(d: &Damage) -> Failure {
    let what = format!("{} is damaged at offset {}", d.place, d.offset);
    Failure::new(what, &d.what).next(d.advice)
}

fn verify(place: &Place) -> Result<(), Failure> {
    let found = find(&place.dir)?;
    let verified = found.survey(&place.dir, &mut |_| {});
    let verified = verified.and_then(|r| found.damaged.first().map_or(Ok(r), |d| Err(damaged(d))));
    let snapshots: Vec<u64> = found.snapshots.iter().map(|p| p.0).collect();
    match &verified {
        Ok(r) if place.json => output::json_line(&whole(r, &snapshots))?,
        Err(e) if place.json => output::json_line(&json!({"ok": false, "error": e.to_string()}))?,
        Ok(r) => output::print(text(r, &snapshots).as_bytes())?,
        Err(_) => {}
    }
    verified.map(|_| ())
}

fn whole(r: &Recovered, snapshots: &[u64]) -> Value {
    let torn = r.cut.as_ref().map(|d| json!({"file": d.place, "offset": d.offset, "what": d.what}));
    json!({"ok": true, "records": r.records, "bytes": r.bytes, "last": r.last.0, "epoch": r.epoch, "snapshots": snapshots, "torn": torn})
}

fn text(r: &Recovered, snapshots: &[u64]) -> String {
    let mut text = format!(
        "{} records in {} bytes are good; the last is {}, its epoch {}\n",
        r.records, r.bytes, r.last, r.epoch
    );
    if !snapshots.is_empty() {
        text += &format!(
            "snapshots are good: {}\n",
            snapshots.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        );
    }
    if let Some(d) = &r.cut {
        text += &format!(
            "{}, offset {}: the next start cuts here: {}; {}\n",
            d.place, d.offset, d.what, d.advice
        );
    }
    text
}

fn inspect(a: &Inspect) -> Result<(), Failure> {
    let found = find(&a.place.dir)?;
    let mut lines = Lines::default();
    let until = a.from.saturating_add(a.count);
    if !a.place.json {
        lines.add(format!("{:>12} {:>6} {:>8} {:>10}  {}", "position", "epoch", "ops", "bytes", "offset"));
    }
    let done = found.survey(&a.place.dir, &mut |e| {
        if (a.from..until).contains(&e.position.0) {
            lines.add(if a.place.json { record_json(e).to_string() } else { record_text(e) });
        }
    });
    // What came before the damage is worth to be seen.
    lines.end()?;
    done.map(|_| ())
}

fn record_json(e: &Entry) -> Value {
    json!({"position": e.position.0, "epoch": e.epoch, "ops": e.ops, "bytes": e.bytes, "segment": e.segment.0, "offset": e.offset})
}

fn record_text(e: &Entry) -> String {
    let Entry { position, epoch, ops, bytes, segment, offset } = e;
    format!("{:>12} {epoch:>6} {ops:>8} {bytes:>10}  {offset} of {:020}.seg", position.0, segment.0)
}

/// What a segment adds up to.
#[derive(Clone, Copy, Default)]
struct Sum {
    segment: u64,
    last: u64,
    records: u64,
    ops: u64,
    bytes: u64,
    largest: u32,
    epochs: Option<(u32, u32)>,
}

impl Sum {
    fn add(&mut self, e: &Entry) {
        self.last = e.position.0;
        self.records += 1;
        self.ops += u64::from(e.ops);
        self.bytes += u64::from(e.bytes);
        self.largest = self.largest.max(e.bytes);
        self.epochs = Some((self.epochs.map_or(e.epoch, |(first, _)| first), e.epoch));
    }

    fn print(&self, json: bool, lines: &mut Lines) {
        let Sum { segment, last, records, ops, bytes, largest, .. } = *self;
        let (from, to) = self.epochs.unwrap_or_default();
        lines.add(match json {
            true => json!({"segment": segment, "last": last, "records": records, "ops": ops, "bytes": bytes,
                "largest": largest, "epochs": [from, to]})
            .to_string(),
            false => format!(
                "{segment:>12} {last:>12} {records:>10} {ops:>10} {bytes:>13} {largest:>10}  {from} to {to}"
            ),
        });
    }
}

fn stats(place: &Place) -> Result<(), Failure> {
    let found = find(&place.dir)?;
    let (mut lines, mut sum) = (Lines::default(), Sum::default());
    if !place.json {
        lines.add(format!(
            "{:>12} {:>12} {:>10} {:>10} {:>13} {:>10}  {}",
            "segment", "last", "records", "ops", "bytes", "largest", "epochs"
        ));
    }
    let done = found.survey(&place.dir, &mut |e| {
        if sum.segment != e.segment.0 {
            if sum.records > 0 {
                sum.print(place.json, &mut lines);
            }
            sum = Sum { segment: e.segment.0, ..Sum::default() };
        }
        sum.add(e);
    });
    if sum.records > 0 {
        sum.print(place.json, &mut lines);
    }
    lines.end()?;
    done.map(|_| ())
}

/// Standard output in portions. Once nobody reads it, nothing more is printed.
#[derive(Default)]
struct Lines {
    waiting: Vec<u8>,
    failed: Option<Failure>,
}

impl Lines {
    fn add(&mut self, line: impl AsRef<str>) {
        if self.failed.is_some() {
            return;
        }
        self.waiting.extend_from_slice(line.as_ref().as_bytes());
        self.waiting.push(b'\n');
        if self.waiting.len() >= PORTION_BYTES {
            self.failed = output::print(&self.waiting).err();
            self.waiting.clear();
        }
    }

    fn end(self) -> Result<(), Failure> {
        match self.failed {
            Some(failure) => Err(failure),
            None => output::print(&self.waiting),
        }
    }
}
