//! Files and directories that are not what they were: a server that does not start says which, where, and what to do.

use std::path::PathBuf;

use hive_proto::{TaskId, TaskState};
use rustix::process::Signal;

use super::Told;
use crate::harness::{Disk, Server, command, outcome, payloads};

/// A server that has ended, and left several files behind.
fn with_files() -> (Server, Vec<PathBuf>, Told) {
    let mut server = Server::with("limits.message_bytes_max = 1048576\njournal.segment_bytes = 10485760\n");
    let mut client = server.client();
    let mut told = Told::default();
    for n in 0..25_u8 {
        let payloads = [vec![n; 1_000_000]];
        told.accept(&client.submit("q", &payloads), &payloads);
    }
    drop(client);
    server.signal(Signal::TERM);
    assert_eq!(server.exit().code(), Some(0));
    let files =
        std::fs::read_dir(server.journal()).expect("the journal").map(|f| f.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    (server, files, told)
}

fn is_refused(server: &Server, exit: i32, says: &[&str]) {
    let (code, text) = server.refused_again();
    assert_eq!(code, Some(exit), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

fn name(path: &std::path::Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).expect("a name")
}

/// Each fault by itself; once it is undone, everything is there.
#[test]
fn what_is_wrong_with_files_is_told() {
    let (server, files, told) = with_files();
    let middle = &files[1];
    let kept = std::fs::read(middle).expect("readable");
    let aside = server.folder().join("aside");

    std::fs::rename(middle, &aside).expect("moved");
    let journal = server.journal();
    is_refused(&server, 74, &[&journal.to_string_lossy(), "records", "are missing", "restore"]);

    std::fs::create_dir(middle).expect("made");
    is_refused(&server, 74, &["cannot open", name(middle), "Is a directory", "hive journal verify"]);
    std::fs::remove_dir(middle).expect("removed");

    let changed = |at: usize, to: u8| {
        let mut bytes = kept.clone();
        bytes[at] ^= to;
        std::fs::write(middle, bytes).expect("written");
    };
    changed(8, 1 ^ 7); // the version
    is_refused(&server, 74, &[name(middle), "format version 7", "knows 1", "run the version that wrote it"]);
    let at = kept.len() / 2;
    changed(at, 4);
    is_refused(&server, 74, &[name(middle), "offset ", "checksum", "nothing was changed", "restore"]);
    changed(20, 4); // the header
    is_refused(&server, 74, &[name(middle), "offset 0", "restore"]);
    std::fs::write(middle, &kept[..kept.len() - 8]).expect("written");
    is_refused(&server, 74, &[name(middle), "offset ", "restore"]);

    std::fs::rename(&aside, middle).expect("moved");
    told.is_kept_by(&server.started_again());
}

/// What a crash leaves at the very end is cut, and that is said.
#[test]
fn a_torn_end_is_cut_and_told() {
    let mut server = Server::start();
    let (mut told, first) = (Told::default(), payloads(5));
    told.accept(&server.client().submit("q", &first), &first);
    let lost: Vec<TaskId> = server.client().submit("q", &[vec![b'x'; 5000]]);
    server.signal(Signal::KILL);
    server.exit();
    let file = server.journal().join("00000000000000000001.seg");
    let mut bytes = std::fs::read(&file).expect("readable");
    // The end of the last record was not written.
    let end = bytes.iter().rposition(|b| *b == b'x').expect("the last record");
    bytes[end - 2000..].fill(0);
    std::fs::write(&file, bytes).expect("writable");
    let server = server.started_again();
    let log = server.log();
    for part in ["the end of the journal was cut", "00000000000000000001.seg", "offset", "torn by a crash"] {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    assert_eq!(server.client().query(&lost)[0].state, TaskState::Unknown);
    told.is_kept_by(&server);
}

/// Where the configuration is to blame the exit code says so.
#[test]
fn a_directory_that_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::write(&data, "a file").expect("written");
    let path = data.to_string_lossy();
    let (code, text) = outcome(&mut command(&["--data-dir", &path]));
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains(&*path) && text.contains("--data-dir"), "{text}");
}

#[test]
fn a_directory_that_is_read_only() {
    let (mut server, files, told) = with_files();
    let data = server.folder().join("data");
    let Some(disk) = Disk::read_only(&data) else { return };
    is_refused(&server, 78, &[&data.to_string_lossy(), "Read-only file system", "mount it writable"]);
    drop(disk);
    // The journal alone.
    let journal = server.journal();
    let Some(disk) = Disk::read_only(&journal) else { return };
    is_refused(&server, 78, &[&journal.to_string_lossy(), "Read-only file system", "mount it writable"]);
    drop(disk);
    assert!(files.iter().all(|f| f.exists()) && !server.is_running());
    told.is_kept_by(&server.started_again());
}

/// A task as long as messages may be fits into the journal, whatever that length is.
#[test]
fn a_task_of_any_length_that_is_allowed_fits() {
    let server = Server::with(
        "limits.message_bytes_max = 50000000\nlimits.frame_bytes_max = 50000000\n\
         limits.producer_credit_bytes = 50000000\njournal.segment_bytes = 100000000\n",
    );
    let mut client = server.client();
    let payloads = [vec![b'l'; 40_000_000]];
    let tasks = client.submit("q", &payloads);
    let server = server.killed_and_started_again();
    let mut worker = server.client();
    let consumer = worker.work_as("q", 1, 64_000_000, &[]).expect("a consumer");
    let task = worker.one(consumer);
    assert_eq!((task.lease.task, task.payload.len()), (tasks[0], 40_000_000));
}
