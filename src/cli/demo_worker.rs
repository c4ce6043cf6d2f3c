//! `hive demo-worker`: one of the demo's processes. Ends when its standard input does, that is with the demo.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::analyse::{Analysis, analyse};
use super::failure::Failure;
use super::target::Reach;

/// Tasks held at once: the next ones are here before one is done.
const CREDIT: u32 = 64;
/// Files up to this size are read where the connection is served; larger ones must not hold up its heartbeats, bytes.
const INLINE: u64 = 1 << 20;

/// Options of the demo's worker.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Queue of this run.
    #[arg(long)]
    queue: String,
    /// Directory that payloads are relative to.
    #[arg(long)]
    root: PathBuf,
    #[command(flatten)]
    reach: Reach,
}

/// What a worker answers: never an error of the task, for a file that cannot be read is a finding.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finding {
    Read(Analysis),
    Unreadable(String),
}

/// Works until standard input ends.
pub(crate) async fn run(a: Args) -> Result<(), Failure> {
    let mut demo_ended = end_of_stdin();
    let target = a.reach.target();
    let client = target.lasting(Vec::new()).await?;
    let opened = client.work(&a.queue).credit(CREDIT).open().await;
    let mut tasks = opened.map_err(|e| Failure::client("work", &target.server, &e))?;
    loop {
        let next = tokio::select! {
            biased;
            _ = &mut demo_ended => None,
            task = tasks.next() => task,
        };
        let Some(task) = next else { return Ok(()) };
        let finding = examine(&a.root, task.payload()).await;
        let answer = serde_json::to_vec(&finding).map_err(|e| Failure::new("cannot write JSON", e))?;
        let sent = task.complete_unconfirmed(answer).await;
        sent.map_err(|e| Failure::client("go on working", &target.server, &e))?;
    }
}

/// Resolves when standard input ends.
fn end_of_stdin() -> oneshot::Receiver<()> {
    let (tx, rx) = oneshot::channel();
    std::thread::spawn(move || {
        // An error ends the input as well.
        let _ = io::Read::read_to_end(&mut io::stdin().lock(), &mut Vec::new());
        drop(tx);
    });
    rx
}

/// Reads the file that a payload names: any bytes, relative to `root`.
async fn examine(root: &Path, payload: &[u8]) -> Finding {
    let path = root.join(OsStr::from_bytes(payload));
    let read = match open(&path) {
        Ok((file, length)) if length <= INLINE => analyse(&path, file),
        Ok((file, _)) => {
            let reading = tokio::task::spawn_blocking(move || analyse(&path, file)).await;
            reading.unwrap_or_else(|e| Err(io::Error::other(e)))
        }
        Err(e) => Err(e),
    };
    read.map_or_else(|e| Finding::Unreadable(e.to_string()), Finding::Read)
}

/// Opens a regular file, not following a link that has taken its place.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    match meta.is_file() {
        true => Ok((file, meta.len())),
        false => Err(io::Error::other("not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_with_any_name_are_read_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("hive-demo-worker-{}", std::process::id()));
        std::fs::create_dir(&root).expect("a fresh directory");
        let name = b"odd \xff\nname.rs";
        std::fs::write(root.join(OsStr::from_bytes(name)), "// TODO\n").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).expect("linked");
        let found = examine(&root, name).await;
        let unreadable =
            [examine(&root, b"link").await, examine(&root, b"missing").await, examine(&root, b"").await];
        std::fs::remove_dir_all(&root).expect("removed");
        let Finding::Read(a) = found else { panic!("{found:?}") };
        assert_eq!((a.language.as_str(), a.lines, a.words, a.todos), ("Rust", 1, 2, 1));
        assert!(unreadable.iter().all(|f| matches!(f, Finding::Unreadable(_))), "{unreadable:?}");
    }
}
