//! Disks: where servers keep what must survive, and what the disk below can do at all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate};
use tempfile::{NamedTempFile, TempDir};

use crate::measure::Lane;

/// File systems in memory: there a sync costs nothing and promises nothing.
const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];
/// What is synced again and again: the least that a journal can write.
const BLOCK: usize = 4096;
/// What is written in sequence, in writes of 1 MiB.
const SEQUENCE: usize = 256;
const MIB: usize = 1024 * 1024;

/// A temporary folder on a disk: in `named`, else in the first of the usual places that is not in memory.
pub(crate) fn folder(named: Option<&Path>) -> Result<TempDir> {
    let usual = || {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
        [std::env::temp_dir(), PathBuf::from("/var/tmp")].into_iter().chain(beside).collect()
    };
    let places = named.map_or_else(usual, |dir| vec![dir.to_owned()]);
    for dir in &places {
        // A place that is not there is no place.
        if file_system(dir).is_ok_and(|kind| !IN_MEMORY.contains(&kind.as_str())) {
            return TempDir::new_in(dir).with_context(|| format!("a folder in {}", dir.display()));
        }
    }
    bail!("no folder on a disk, only in memory or missing: {places:?}; name one with --disk")
}

/// The kind of file system that holds `path`.
pub(crate) fn file_system(path: &Path) -> Result<String> {
    let path = fs::canonicalize(path)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    kind_of(&mounts, &path).map(str::to_owned).with_context(|| format!("{} is on no mount", path.display()))
}

/// The deepest mount above `path` counts, and the last of those at the same point, which hides the others.
fn kind_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mount = |line: &'a str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = PathBuf::from(mount.split(' ').nth(4)?.replace("\\040", " "));
        path.starts_with(&point).then_some((point.components().count(), file_system.split(' ').next()?))
    };
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// A block that is allocated and written, so that no sync of it has to write metadata as well: a journal that
/// preallocates pays this and no less. Its file ends with it.
pub(crate) struct Block(NamedTempFile);

impl Block {
    /// In a file of its own in `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let file = NamedTempFile::new_in(folder)?;
        fallocate(&file, FallocateFlags::empty(), 0, BLOCK as u64)?;
        file.as_file().write_all_at(&[1; BLOCK], 0)?;
        file.as_file().sync_all()?;
        Ok(Self(file))
    }

    /// Writes it in place and syncs it again and again for some time, ten times at least.
    pub(crate) fn sync(&self, time: Duration, lane: &mut Lane) -> Result<()> {
        let (begin, file) = (Instant::now(), self.0.as_file());
        let now = || begin.elapsed().as_nanos() as u64;
        let mut count = 0;
        while begin.elapsed() < time || count < 10 {
            let start = now();
            file.write_all_at(&[2; BLOCK], 0)?;
            file.sync_data()?;
            lane.hit(start, now());
            count += 1;
        }
        Ok(())
    }
}

/// Bytes a second written in sequence, one sync at the end included.
///
/// Only once: where a disk has a budget for bursts, the runs of a comparison are not to compete for it.
pub(crate) fn write_rate(folder: &Path) -> Result<f64> {
    static RATE: OnceLock<f64> = OnceLock::new();
    match RATE.get() {
        Some(rate) => Ok(*rate),
        None => sequence(folder).map(|rate| *RATE.get_or_init(|| rate)),
    }
}

fn sequence(folder: &Path) -> Result<f64> {
    let mut file = NamedTempFile::new_in(folder)?;
    // Not zeros: some disks do not write those.
    let piece: Vec<u8> = (0..MIB).map(|i| (i * 31 % 251) as u8).collect();
    let begin = Instant::now();
    for _ in 0..SEQUENCE {
        file.write_all(&piece)?;
    }
    file.as_file().sync_data()?;
    Ok((SEQUENCE * MIB) as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_names_the_file_system() {
        let mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      28 27 0:25 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      29 28 8:1 / /tmp/a\\040b rw - xfs /dev/sda rw\n\
                      30 28 8:2 / /tmp/a\\040b rw - btrfs /dev/sdb rw\n";
        let of = |path: &str| kind_of(mounts, Path::new(path));
        assert_eq!((of("/var/tmp"), of("/tmp/x"), of("/tmpx")), (Some("ext4"), Some("tmpfs"), Some("ext4")));
        assert_eq!((of("/tmp/a b/c"), kind_of("", Path::new("/"))), (Some("btrfs"), None));
    }

    #[test]
    fn nothing_durable_is_kept_in_memory() {
        let shm = Path::new("/dev/shm");
        if file_system(shm).is_ok_and(|kind| kind == "tmpfs") {
            let error = folder(Some(shm)).expect_err("memory");
            assert!(error.to_string().contains("--disk"), "{error}");
        }
        assert!(folder(Some(Path::new("/nowhere"))).is_err());
    }

    #[test]
    fn a_block_is_synced_and_leaves_nothing_behind() {
        let (dir, mut lane) = (folder(None).expect("a disk"), Lane::new());
        Block::new(dir.path()).expect("written").sync(Duration::ZERO, &mut lane).expect("synced");
        assert_eq!(lane.recorded(), 10);
        assert!(lane.quantile_us(0.5) > 0.0);
        assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 0);
    }
}
