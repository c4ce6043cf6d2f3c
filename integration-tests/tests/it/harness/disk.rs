//! Disks that misbehave: calls that fail, and file systems of a few megabytes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::Server;

/// The system calls of a server, watched or made to fail, from now until this is dropped.
pub(crate) struct Strace {
    child: Child,
    folder: tempfile::TempDir,
}

impl Strace {
    /// Puts strace with some `-e` expressions to a server; `None`, and a word to whoever runs the tests, where that is impossible.
    ///
    /// `when=N` of an injection counts the calls of each thread by itself. Only the journaler syncs.
    pub(crate) fn attach(server: &Server, expressions: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut command = Command::new("strace");
        command.args(["-f", "-yy", "-s", "0", "-o"]).arg(folder.path().join("calls"));
        for e in expressions {
            command.args(["-e", e]);
        }
        command.args(["-p", &server.pid().as_raw_nonzero().to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let Ok(mut child) = child else { return skipped("strace is not installed") };
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            if said.read_line(&mut line).expect("text") == 0 {
                let _ = child.wait();
                return skipped("strace may not watch other processes here");
            }
            assert!(!line.contains("invalid"), "{line}");
        }
        // It must not run into a closed pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Some(Self { child, folder })
    }

    /// Lets go of the server. Gives the calls.
    pub(crate) fn detach(mut self) -> String {
        self.end();
        std::fs::read_to_string(self.folder.path().join("calls")).expect("the calls")
    }

    fn end(&mut self) {
        if self.child.try_wait().expect("own child").is_none() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.end();
    }
}

/// A mounted file system. It goes with this.
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A file system in memory.
    pub(crate) fn tmpfs(path: &Path, mib: u64) -> Option<Self> {
        Self::mount(path, &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
    }

    /// A file system in a file beside it.
    pub(crate) fn ext4(path: &Path, mib: u64) -> Option<Self> {
        let image = path.with_extension("ext4");
        std::fs::File::create(&image).and_then(|f| f.set_len(mib << 20)).expect("an image");
        let image = image.to_string_lossy();
        if !done("mkfs.ext4", &["-q", "-m", "0", "-F", &image]) {
            return skipped("there is no mkfs.ext4");
        }
        Self::mount(path, &["-o", "loop", &image])
    }

    /// A directory of which nothing can be changed.
    pub(crate) fn read_only(path: &Path) -> Option<Self> {
        let text = path.to_string_lossy();
        let disk = Self::mount(path, &["--bind", &text])?;
        done("mount", &["-o", "remount,bind,ro", &text]).then_some(disk)
    }

    fn mount(path: &Path, args: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(path).expect("a directory");
        if !done("mount", &[args, &[&path.to_string_lossy()]].concat()) {
            return skipped("file systems may not be mounted here (root may)");
        }
        Some(Self { path: path.to_owned() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        done("umount", &["-l", &self.path.to_string_lossy()]);
    }
}

fn done(program: &str, args: &[&str]) -> bool {
    let run = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|s| s.success())
}

fn skipped<T>(why: &str) -> Option<T> {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    eprintln!("SKIPPED {test}: {why}");
    None
}
