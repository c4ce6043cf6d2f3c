//! How commands find a server that was started with `--dev` on this machine: one file per server, readable by its owner.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// What the file tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DevServer {
    /// Agents' address, `host:port`.
    pub server: String,
    /// HTTP address, `host:port`.
    pub http: String,
    /// The token.
    pub token: String,
    /// The server's process.
    pub pid: u32,
    /// The server's version.
    pub version: String,
}

/// The file of a running server; it goes when this is dropped.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    pid: u32,
}

impl DevServer {
    /// Writes the file.
    ///
    /// # Errors
    /// If no directory is to be had that belongs to this user alone.
    pub fn publish(&self) -> io::Result<Published> {
        self.publish_in(&directories())
    }

    fn publish_in(&self, directories: &[PathBuf]) -> io::Result<Published> {
        let mut last = io::Error::other("no directory to write to");
        for dir in directories {
            match own(dir).and_then(|()| {
                sweep(dir);
                self.write(dir)
            }) {
                Ok(published) => return Ok(published),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Written beside and renamed, so that nobody reads half a file.
    fn write(&self, dir: &Path) -> io::Result<Published> {
        let port = self.server.rsplit(':').next().unwrap_or_default();
        let path = dir.join(format!("dev-{port}.json"));
        let new = dir.join(format!("dev-{port}.{}", self.pid));
        // What a crashed predecessor with this pid has left.
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, &path)?;
        Ok(Published { path, pid: self.pid })
    }

    fn is_alive(&self) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // A later server on the same port has written a file of its own.
        if read(&self.path).is_some_and(|s| s.pid == self.pid) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The servers that run now, the one started last first.
pub fn find() -> Vec<DevServer> {
    find_in(&directories())
}

fn find_in(directories: &[PathBuf]) -> Vec<DevServer> {
    let mut found = Vec::new();
    for path in directories.iter().filter(|d| is_own(d)).flat_map(|d| files(d)) {
        let modified = fs::metadata(&path).and_then(|m| m.modified()).ok();
        if let Some(server) = read(&path).filter(DevServer::is_alive) {
            found.push((modified, server));
        }
    }
    found.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
    found.into_iter().map(|(_, server)| server).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let is_ours = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("dev-") && name.ends_with(".json")
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(is_ours).collect()
}

/// Removes what killed servers have left.
fn sweep(dir: &Path) {
    for path in files(dir) {
        if read(&path).is_some_and(|s| !s.is_alive()) {
            // Another start may have been faster.
            let _ = fs::remove_file(path);
        }
    }
}

/// `$XDG_RUNTIME_DIR/hive`, then `hive-UID` in the directory for temporary files.
fn directories() -> Vec<PathBuf> {
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()).map(|d| PathBuf::from(d).join("hive"));
    let uid = rustix::process::getuid().as_raw();
    runtime.into_iter().chain([std::env::temp_dir().join(format!("hive-{uid}"))]).collect()
}

/// Makes a directory for this user alone, or finds it so.
fn own(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ if is_own(dir) => Ok(()),
        _ => Err(io::Error::other(format!("{} does not belong to this user alone", dir.display()))),
    }
}

/// Whether somebody else could have put files here: the directory of temporary files is everybody's.
fn is_own(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|m| {
        m.is_dir() && m.uid() == rustix::process::getuid().as_raw() && m.permissions().mode() & 0o077 == 0
    })
}

fn read(path: &Path) -> Option<DevServer> {
    let meta = fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(port: u16, pid: u32) -> DevServer {
        let server = format!("127.0.0.1:{port}");
        DevServer { server, http: "127.0.0.1:2".into(), token: "t".into(), pid, version: "0".into() }
    }

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("hive-discovery-{}-{name}", std::process::id()));
            fs::create_dir(&dir).expect("a fresh directory");
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn published_servers_are_found_until_they_go() {
        let scratch = Scratch::new("found");
        let dirs = [scratch.0.join("missing").join("deep"), scratch.0.join("own")];
        let me = server(7878, std::process::id());
        let published = me.publish_in(&dirs).expect("the second directory can be made");
        assert_eq!(find_in(&dirs), std::slice::from_ref(&me));
        let mode = |p: &Path| fs::metadata(p).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&dirs[1]), mode(&published.path)), (0o700, 0o600));
        // A server on the same port took over: its file stays when the first one goes.
        let later = DevServer { token: "new".into(), pid: 1, ..me };
        let taken_over = later.publish_in(&dirs).expect("written");
        drop(published);
        assert_eq!(read(&taken_over.path), Some(later));
        drop(taken_over);
        assert_eq!(find_in(&dirs), []);
    }

    #[test]
    fn dead_servers_and_foreign_directories_are_passed_over() {
        let scratch = Scratch::new("dead");
        let dirs = [scratch.0.join("own")];
        // Above the largest pid that Linux gives.
        let dead = server(1, 1 << 30).publish_in(&dirs).expect("written");
        fs::write(dirs[0].join("dev-2.json"), "not json").expect("written");
        assert_eq!(find_in(&dirs), []);
        let alive = server(3, std::process::id()).publish_in(&dirs).expect("written");
        assert!(!dead.path.exists() && alive.path.exists(), "starting sweeps");
        fs::set_permissions(&dirs[0], fs::Permissions::from_mode(0o777)).expect("changed");
        let e = server(7878, std::process::id()).publish_in(&dirs).expect_err("open to others");
        assert!(e.to_string().contains("this user alone"), "{e}");
    }
}
