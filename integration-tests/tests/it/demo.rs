//! `hive demo` on trees that the tests make: its totals against `find`, `wc` and `sha256sum`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::{DevServer, Done, Run, hive, keys};
use crate::harness::eventually;

/// What the tools say about a tree.
#[derive(PartialEq, Debug)]
struct Totals {
    files: u64,
    bytes: u64,
    lines: u64,
    digest: String,
}

impl Totals {
    fn by_the_tools(root: &Path) -> Self {
        let files = sh(root, "find . -type f -print0").iter().filter(|b| **b == 0).count() as u64;
        let counts = numbers(&sh(root, "find . -type f -print0 | xargs -0 cat | wc -lc"));
        // With -z names stay as they are, and a zero byte ends each.
        let sums = sh(root, "find . -type f -print0 | xargs -0 -r sha256sum -z");
        let mut lines: Vec<Vec<u8>> = sums
            .split(|b| *b == 0)
            .filter(|l| !l.is_empty())
            .map(|l| [&l[..64], b"  ", l[64..].strip_prefix(b"  ./").expect("a relative path")].concat())
            .collect();
        lines.sort();
        let digest = sha256sum(&lines.iter().flat_map(|l| [&l[..], b"\n"].concat()).collect::<Vec<_>>());
        Self { files, lines: counts[0], bytes: counts[1], digest }
    }

    /// As the demo printed them, with exactly the keys that it promises.
    fn by_the_demo(done: &Done) -> Self {
        let o = done.object();
        let promised =
            ["bytes", "digest", "files", "lines", "seconds", "tasks_per_s", "todos", "unreadable", "words"];
        assert_eq!(keys(&o), promised);
        let number = |key: &str| o[key].as_u64().unwrap_or_else(|| panic!("{key} in {o}"));
        assert!(o["seconds"].as_f64() > Some(0.0) && o["tasks_per_s"].as_f64() > Some(0.0), "{o}");
        assert_eq!(o["unreadable"], 0, "{o}");
        let digest = o["digest"].as_str().expect("text").to_owned();
        Self { files: number("files"), bytes: number("bytes"), lines: number("lines"), digest }
    }
}

/// What a shell command prints in a directory.
fn sh(folder: &Path, script: &str) -> Vec<u8> {
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", script]).current_dir(folder).env("LC_ALL", "C");
    let done = command.stderr(Stdio::inherit()).output().expect("starts");
    assert!(done.status.success(), "{script}");
    done.stdout
}

fn numbers(text: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(text);
    text.split_whitespace().map(|n| n.parse().expect("a number")).collect()
}

fn sha256sum(bytes: &[u8]) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    // It reads everything before it prints anything.
    child.stdin.take().expect("piped").write_all(bytes).expect("read");
    let out = child.wait_with_output().expect("ends").stdout;
    String::from_utf8_lossy(&out[..64]).into_owned()
}

/// Bytes without a pattern that a hash could miss.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// All that a file system may hold.
fn odd_tree(root: &Path) {
    for dir in [".hidden/deeper", "empty directory", "src/a/b/c"] {
        fs::create_dir_all(root.join(dir)).expect("created");
    }
    let large = noise(1_500_000);
    let twin = b"the same twice\n";
    let files: [(&[u8], &[u8]); 17] = [
        (b".dotfile", b"hidden\n"),
        (b".hidden/deeper/.env", b"KEY=value\n"),
        (b"two\nlines", b"a name of two lines\n"),
        (b"\nnewline first", b"x\n"),
        (b"newline last\n", b"x"),
        (b" name with  spaces ", b"y\n"),
        (b"-rf", b"looks like an option\n"),
        (b"back\\slash 'and' \"quotes\" $HOME *", b"z\n"),
        (b"\xff\xfe\x80", b"no UTF-8 in the name\n"),
        (b"empty", b""),
        (b"src/a/b/c/empty too.rs", b""),
        (b"no final newline", b"one\ntwo"),
        (b"only newlines", b"\n\n\n"),
        (b"binary", &[0, 1, 2, 10, 0, 255, 254, 10, 13, 0]),
        (b"large", &large),
        (b"twin", twin),
        (b"twin copied", twin),
    ];
    for (name, content) in files {
        fs::write(root.join(OsStr::from_bytes(name)), content).expect("written");
    }
    symlink("large", root.join("link to a file")).expect("linked");
    symlink("/etc", root.join("link to a directory")).expect("linked");
    symlink("..", root.join("src/a/link up")).expect("linked");
    symlink("nothing", root.join("dangling link")).expect("linked");
    // Whoever opens it to read waits for ever.
    sh(root, "mkfifo pipe && mkfifo .hidden/pipe");
}

/// Plain ASCII, words parted in all six ways.
fn ascii_tree(root: &Path) {
    fs::create_dir(root.join("sub")).expect("created");
    let all: Vec<u8> = (b' '..=b'~').chain(*b"\n").collect();
    let long = b"words \t of\x0bmany\x0c kinds\r\n  in a row\n".repeat(5_000);
    let files: [(&str, &[u8]); 8] = [
        ("six", b"a b\tc\nd\x0be\x0cf\rg"),
        ("runs", b"  a \t\n\x0b\x0c\r b  \n\n"),
        ("blank", b" \t\n\x0b\x0c\r"),
        ("empty", b""),
        ("sub/one", b"one"),
        ("sub/all", &all),
        // Longer than any buffer, cut anywhere.
        ("sub/long", &long),
        (".hidden", b"// TODO: say more\nlet todo = 1; # TODO\n"),
    ];
    for (name, content) in files {
        fs::write(root.join(name), content).expect("written");
    }
}

fn demo(folder: &Path, root: &Path, agents: &str) -> Run {
    let root = root.to_string_lossy();
    Run::fed(&mut hive(folder, &["demo", "--path", &root, "--agents", agents, "--json"]), b"")
}

#[test]
fn totals_are_those_of_find_wc_and_sha256sum() {
    let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    odd_tree(root.path());
    let _server = DevServer::start(folder.path(), &[]);
    let done = demo(folder.path(), root.path(), "3").end().ok();
    let tools = Totals::by_the_tools(root.path());
    assert_eq!(Totals::by_the_demo(&done), tools);
    assert_eq!(tools.files, 17, "what the test has made");
    assert!(done.err.contains("17 files"), "{done:?}");
}

#[test]
fn words_are_those_of_wc_on_plain_ascii() {
    let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    ascii_tree(root.path());
    let _server = DevServer::start(folder.path(), &[]);
    let done = demo(folder.path(), root.path(), "2").end().ok();
    assert_eq!(Totals::by_the_demo(&done), Totals::by_the_tools(root.path()));
    // File by file: the last word of one and the first of the next are two.
    let by_file = numbers(&sh(root.path(), "find . -type f -exec sh -c 'wc -w < \"$1\"' sh {} ';'"));
    assert_eq!(done.object()["words"], by_file.iter().sum::<u64>());
    assert_eq!(done.object()["todos"], 2);
}

#[test]
fn the_table_says_the_same() {
    let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    odd_tree(root.path());
    let _server = DevServer::start(folder.path(), &[]);
    let args = ["demo", "--path", &root.path().to_string_lossy()];
    let done = Done::of(&mut hive(folder.path(), &args)).ok();
    let tools = Totals::by_the_tools(root.path());
    let text = done.text();
    assert!(text.contains(&format!("digest {}", tools.digest)), "{text}");
    assert!(text.contains(&format!("{} files ({} bytes)", tools.files, tools.bytes)), "{text}");
    assert!(text.contains("language") && text.contains("Rust") && text.contains("TODO"), "{text}");
    let empty = Done::of(&mut hive(folder.path(), &["demo", "--path", "/nowhere/at all", "--json"]));
    empty.fails(1, &["/nowhere/at all", "--path"]);
}

#[test]
fn an_empty_tree_has_the_digest_of_nothing() {
    let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let _server = DevServer::start(folder.path(), &[]);
    let o = demo(folder.path(), root.path(), "1").end().ok().object();
    assert_eq!((&o["files"], &o["bytes"], &o["words"]), (&0.into(), &0.into(), &0.into()));
    assert_eq!(o["digest"], sha256sum(b""));
}

/// Two at once on one server do not mix up their files.
#[test]
fn two_at_once() {
    let folder = tempfile::tempdir().expect("folder");
    let (odd, many) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    odd_tree(odd.path());
    many_files(many.path(), 2_000);
    let server = DevServer::start(folder.path(), &[]);
    let runs = [(&many, demo(folder.path(), many.path(), "2")), (&odd, demo(folder.path(), odd.path(), "2"))];
    for (root, run) in runs {
        let done = run.end().ok();
        assert_eq!(Totals::by_the_demo(&done), Totals::by_the_tools(root.path()));
    }
    assert_eq!(server.status()["totals"]["completed"], 2_017, "the running server did the work");
}

fn many_files(root: &Path, files: usize) {
    for i in 0..files {
        let dir = root.join(format!("{}", i % 20));
        if i < 20 {
            fs::create_dir(&dir).expect("created");
        }
        fs::write(dir.join(format!("{i}.txt")), format!("file {i}\n").repeat(i % 50)).expect("written");
    }
}

/// A worker dies with tasks in its hands: they go to the others, and every file counts once.
#[test]
fn a_worker_that_is_killed_costs_nothing() {
    let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    many_files(root.path(), 6_000);
    let tools = Totals::by_the_tools(root.path());
    let server = DevServer::start(folder.path(), &[]);
    let killed_in_the_middle = (0..10).any(|_| {
        let mut run = demo(folder.path(), root.path(), "2");
        let in_the_middle = kill_a_worker(&mut run, &server);
        assert_eq!(Totals::by_the_demo(&run.end().ok()), tools);
        in_the_middle
    });
    assert!(killed_in_the_middle, "ten demos were faster than this test");
}

/// Stops a worker under way, kills it when the other has done all the rest. `false` if it was too late for that.
fn kill_a_worker(run: &mut Run, server: &DevServer) -> bool {
    let queue = |server: &DevServer| -> Option<Value> {
        let status = server.status();
        let all = status["queues"].as_array().expect("a list").clone();
        all.into_iter().find(|q| q["consumers"] != 0)
    };
    let count = |q: &Value, key: &str| q[key].as_u64().expect("a number");
    while run.is_running() {
        let busy = queue(server).is_some_and(|q| q["consumers"] == 2 && count(&q, "completed") > 0);
        if busy && let Some(worker) = workers(run.pid()).first() {
            kill_process(*worker, Signal::STOP).expect("it runs");
            let held = eventually("the rest", || {
                let q = queue(server)?;
                (q["waiting"] == 0 && count(&q, "running") <= 64).then(|| count(&q, "running"))
            });
            kill_process(*worker, Signal::KILL).expect("it is there");
            return held > 0;
        }
    }
    false
}

/// The workers among the children of a demo.
fn workers(demo: Pid) -> Vec<Pid> {
    let pid = demo.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let is_worker = |p: &&str| {
        fs::read(format!("/proc/{p}/cmdline"))
            .is_ok_and(|c| c.split(|b| *b == 0).any(|w| w == b"demo-worker"))
    };
    let pids = children.split_whitespace().filter(is_worker).filter_map(|p| p.parse().ok());
    pids.filter_map(Pid::from_raw).collect()
}

/// Without a server it starts one of its own, and leaves none behind.
#[test]
fn a_demo_without_a_server_starts_its_own() {
    if std::net::TcpStream::connect("127.0.0.1:7878").is_ok() {
        eprintln!("skipped: somebody uses port 7878 of this machine, where the demo would look first");
        return;
    }
    let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    odd_tree(root.path());
    let done = demo(folder.path(), root.path(), "2").end().ok();
    assert_eq!(Totals::by_the_demo(&done), Totals::by_the_tools(root.path()));
    let address =
        done.err.split_whitespace().find(|w| w.starts_with("127.0.0.1:")).expect("the server's address");
    assert!(std::net::TcpStream::connect(address).is_err(), "the server is gone");
}
