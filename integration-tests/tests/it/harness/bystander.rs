//! A well-behaved agent that goes on working while others misbehave, and notices when it is disturbed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hive_proto::{TaskId, TaskState};

use super::{Client, Server, eventually, payloads};

/// Tasks that wait from the beginning to the end, to show that nothing is lost.
const KEPT: usize = 20;
/// Longest round that still counts as undisturbed. A round takes well under a millisecond on an idle machine.
const ROUND_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Duration>>,
    keeper: Client,
    kept: Vec<TaskId>,
}

impl Bystander {
    pub(crate) fn start(server: &Server) -> Self {
        let mut keeper = server.client();
        let kept = keeper.submit("kept", &payloads(KEPT));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, client) = (stop.clone(), rounds.clone(), server.client());
        let thread = std::thread::spawn(move || go_round(client, &stopped, &counted));
        let this = Self { stop, rounds, thread: Some(thread), keeper, kept };
        this.goes_on();
        this
    }

    /// Waits until the bystander has worked on for a while.
    pub(crate) fn goes_on(&self) {
        let until = self.rounds.load(Ordering::Relaxed) + 10;
        eventually("the bystander's work", || {
            let dead = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            (dead || self.rounds.load(Ordering::Relaxed) >= until).then_some(())
        });
    }

    /// The work went on at its pace, and the tasks that waited all the time are all there.
    pub(crate) fn undisturbed(mut self) {
        self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.take().expect("once").join().expect("the bystander was disturbed");
        assert!(longest < ROUND_MAX, "a round of the bystander took {longest:?}");
        let Self { keeper, kept, .. } = &mut self;
        let states: Vec<_> = keeper.query(kept).into_iter().map(|t| t.state).collect();
        assert_eq!(states, vec![TaskState::Waiting; KEPT]);
        let consumer = keeper.work("kept", 100);
        let tasks = keeper.gather(consumer, KEPT);
        assert_eq!(tasks.iter().map(|t| t.payload.clone()).collect::<Vec<_>>(), payloads(KEPT));
        keeper.complete(&tasks);
        assert!(keeper.results_of(kept).iter().all(|o| o.state == TaskState::Completed));
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Submits, works, gets the result; publishes and hears it.
fn go_round(mut client: Client, stop: &AtomicBool, rounds: &AtomicU64) -> Duration {
    let consumer = client.work("bystander", 1);
    let sub = client.subscribe("bystander.*", None);
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let round = format!("round {}", rounds.load(Ordering::Relaxed)).into_bytes();
        let id = client.submit("bystander", &[&round])[0];
        let task = client.one(consumer);
        assert_eq!((task.lease.task, &task.payload), (id, &round));
        client.complete(&[task]);
        assert_eq!(client.results(1)[0].task, id);
        client.publish("bystander.hears", &round).expect("published");
        assert_eq!(client.heard(sub).payload, round);
        longest = longest.max(began.elapsed());
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    longest
}
