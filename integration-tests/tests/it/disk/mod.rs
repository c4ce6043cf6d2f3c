//! What a server does when its disk misbehaves: calls that fail, disks that are full, files that are not what they were.
//!
//! Whatever was acknowledged is there after the next start, which is how each of these tests ends.

mod failing;
mod files;
mod full;
mod order;
mod small;

use std::collections::{HashMap, HashSet};

use hive_proto::{Code, TaskId, TaskState, WireError};

use crate::harness::{Client, Server, TaskOptions};

/// A queue that needs no disk, and a drain that is seen but not waited for.
const WITH_FAST: &str =
    "drain_ms = 4000\nfaults = true\n[[queues]]\nname = \"fast\"\ndurability = \"memory\"\n";

/// What clients were told.
#[derive(Default)]
struct Told {
    /// Tasks that were accepted, and what they carry.
    accepted: HashMap<TaskId, Vec<u8>>,
    /// Tasks whose completion was accepted.
    completed: Vec<TaskId>,
    /// What was refused.
    errors: Vec<WireError>,
}

impl Told {
    fn accept(&mut self, tasks: &[TaskId], payloads: &[Vec<u8>]) {
        self.accepted.extend(tasks.iter().copied().zip(payloads.iter().cloned()));
    }

    /// All that was acknowledged is known to this server, and every task that is left can be worked on, once.
    fn is_kept_by(&self, server: &Server) {
        let mut client = server.client();
        let ids: Vec<TaskId> = self.accepted.keys().copied().collect();
        let mut open = 0;
        for ids in ids.chunks(1000) {
            for task in client.query(ids) {
                if self.completed.contains(&task.task) {
                    assert_eq!(task.state, TaskState::Completed, "{} was acknowledged", task.task);
                } else {
                    // A completion may be there although nobody could be told.
                    let kept = matches!(task.state, TaskState::Waiting | TaskState::Completed);
                    assert!(kept, "{} was accepted and is {:?}", task.task, task.state);
                    open += usize::from(task.state == TaskState::Waiting);
                }
            }
        }
        let waiting = server.queue("q").map_or(0, |q| q["waiting"].as_u64().expect("a number") as usize);
        let consumer = client.work("q", 100_000);
        let mut seen = HashSet::new();
        while seen.len() < waiting {
            for t in client.assigned(consumer) {
                assert!(seen.insert(t.lease.task), "{} was given twice", t.lease.task);
                if let Some(payload) = self.accepted.get(&t.lease.task) {
                    assert!(*payload == t.payload, "{} carries something else", t.lease.task);
                }
                assert_eq!(client.complete_with(t.lease, b"done").accepted, 1);
            }
        }
        assert_eq!(seen.iter().filter(|t| self.accepted.contains_key(t)).count(), open);
    }
}

/// Submits one task after the other, until one is refused.
fn submit_until_refused(client: &mut Client, prefix: &str, bytes: usize, most: usize) -> Told {
    let mut told = Told::default();
    for n in 0..most {
        let mut payload = format!("{prefix} {n} ").into_bytes();
        payload.resize(payload.len().max(bytes), b'.');
        let payloads = [payload];
        match client.try_submit("q", &payloads, &TaskOptions::default()) {
            Ok(accepted) => told.accept(&accepted.tasks, &payloads),
            Err(e) => {
                told.errors.push(e);
                return told;
            }
        }
    }
    panic!("{most} tasks were taken");
}

fn code(e: &WireError) -> Code {
    e.code().unwrap_or_else(|| panic!("{e:?}"))
}

/// Why the server is not ready, once it is not.
fn not_ready(server: &Server, why: &str) {
    crate::harness::eventually(&format!("readyz with {why:?}"), || {
        let (code, body) = server.get("/readyz");
        (code == 503 && body.contains(why)).then_some(())
    });
}

fn ready(server: &Server) {
    crate::harness::eventually("readyz", || (server.get("/readyz").0 == 200).then_some(()));
}
