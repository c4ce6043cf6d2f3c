//! The checker, held to histories made by hand: what is right passes, and each thing that is wrong is found by its rule.

use hive_proto::{Code, Lease, Partition, TaskId, TaskState};

use super::check::{Stage, check};
use super::record::{Answer, Event, How, Key, Mark, Micros, Seen, Submitted, What};

const QUEUE: &str = "q";
const EPOCH: u32 = 7;
const SUBMITTER: u32 = 1;
const WORKER: u32 = 2;
const OTHER: u32 = 3;

/// A history that is written one moment after the other.
struct Story {
    events: Vec<Event>,
    now: Micros,
}

fn id(n: u64) -> TaskId {
    TaskId::new(Partition::of_queue(QUEUE), n)
}

fn lease(n: u64, attempt: u32) -> Lease {
    Lease { task: id(n), attempt, epoch: EPOCH }
}

fn task(key: Key) -> Submitted {
    Submitted { key, delay_ms: 0, label: None, attempts_max: 2, options: Mark::of(&[]) }
}

fn seen(n: u64, state: TaskState, attempt: u32, text: &str) -> Seen {
    Seen { task: id(n), state, attempt, payload: Mark::of(text.as_bytes()) }
}

impl Story {
    /// A submitter and two workers have logged in.
    fn new() -> Self {
        let mut story = Self { events: Vec::new(), now: 0 };
        for link in [SUBMITTER, WORKER, OTHER] {
            story.opened(link, EPOCH, &[]);
        }
        story
    }

    /// Payload 1 is task 1, and the first worker has it.
    fn running() -> Self {
        let mut story = Self::new();
        story.submit(task(1), Answer::Ok(1)).assign(WORKER, 1, 1, 1);
        story
    }

    fn note(&mut self, link: u32, what: What) -> &mut Self {
        self.now += 10;
        self.events.push(Event { link, from: self.now, to: self.now + 5, what });
        self
    }

    fn later(&mut self, ms: u64) -> &mut Self {
        self.now += ms * 1000;
        self
    }

    fn opened(&mut self, link: u32, epoch: u32, labels: &[&'static str]) -> &mut Self {
        self.note(link, What::Opened { epoch, labels: labels.to_vec() })
    }

    /// The answer names the id.
    fn submit(&mut self, task: Submitted, answer: Answer<u64>) -> &mut Self {
        let answer = match answer {
            Answer::Ok(n) => Answer::Ok((vec![id(n)], 1)),
            Answer::NotDone(why) => Answer::NotDone(why),
            Answer::Unknown => Answer::Unknown,
            Answer::Never => Answer::Never,
        };
        self.note(SUBMITTER, What::Submit { queue: QUEUE, tasks: vec![task], answer })
    }

    fn assign(&mut self, link: u32, n: u64, attempt: u32, key: Key) -> &mut Self {
        self.assign_lease(link, lease(n, attempt), Ok(key))
    }

    fn assign_lease(&mut self, link: u32, lease: Lease, payload: Result<Key, String>) -> &mut Self {
        self.note(link, What::Assign { queue: QUEUE, lease, payload, options: Mark::of(&[]) })
    }

    fn settle(
        &mut self,
        link: u32,
        how: How,
        lease: Lease,
        text: &str,
        answer: Answer<Option<Code>>,
    ) -> &mut Self {
        let answer = match answer {
            Answer::Ok(refused) => Answer::Ok(vec![refused]),
            Answer::NotDone(why) => Answer::NotDone(why),
            Answer::Unknown => Answer::Unknown,
            Answer::Never => Answer::Never,
        };
        self.note(link, What::Settle { how, items: vec![(lease, Mark::of(text.as_bytes()))], answer })
    }

    /// A settlement that was accepted.
    fn settled(&mut self, link: u32, how: How, n: u64, attempt: u32, text: &str) -> &mut Self {
        self.settle(link, how, lease(n, attempt), text, Answer::Ok(None))
    }

    fn cancel(&mut self, n: u64, answer: Answer<Vec<Option<Code>>>) -> &mut Self {
        self.note(SUBMITTER, What::Cancel { tasks: vec![id(n)], answer })
    }

    fn asked(&mut self, seen: Seen) -> &mut Self {
        self.note(SUBMITTER, What::Asked(vec![seen]))
    }

    fn pushed(&mut self, seen: Seen) -> &mut Self {
        self.note(SUBMITTER, What::Pushed(vec![seen]))
    }

    fn rules(&self, stage: Stage) -> Vec<&'static str> {
        let mut rules: Vec<_> = check(&self.events, stage).iter().map(|v| v.rule).collect();
        rules.dedup();
        rules
    }

    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(check(&self.events, Stage::Over), []);
    }

    /// The rule finds it, whatever else does.
    #[track_caller]
    fn breaks(&self, rule: &str) {
        let rules = self.rules(Stage::Running);
        assert!(rules.contains(&rule), "{rules:?}");
    }

    #[track_caller]
    fn breaks_at_the_end(&self, rule: &str) {
        assert_eq!(self.rules(Stage::Running), Vec::<&str>::new());
        let rules = self.rules(Stage::Over);
        assert!(rules.contains(&rule), "{rules:?}");
    }
}

const DONE: TaskState = TaskState::Completed;
const COMPLETE: How = How::Complete;
const FAIL: How = How::Fail { delay_ms: 0 };

#[test]
fn a_life_without_faults_is_clean() {
    let mut s = Story::running();
    s.settled(WORKER, COMPLETE, 1, 1, "r").pushed(seen(1, DONE, 1, "r")).asked(seen(1, DONE, 1, "r"));
    s.note(SUBMITTER, What::Told { missed: 0 }).is_clean();
}

#[test]
fn retries_releases_and_dead_letters_are_clean() {
    let mut s = Story::running();
    s.settled(WORKER, How::Release { delay_ms: 0 }, 1, 1, "").assign(OTHER, 1, 2, 1);
    s.settled(OTHER, FAIL, 1, 2, "e1").assign(WORKER, 1, 3, 1).settled(WORKER, FAIL, 1, 3, "e2");
    s.asked(seen(1, TaskState::Dead, 3, "e2"));
    s.note(SUBMITTER, What::DeadLetters(vec![seen(1, TaskState::Dead, 3, "e2")])).is_clean();
    let mut s = Story::running();
    s.settled(WORKER, How::FailForGood, 1, 1, "no").asked(seen(1, TaskState::Dead, 1, "no"));
    s.note(SUBMITTER, What::DeadLetters(vec![seen(1, TaskState::Dead, 1, "no")])).is_clean();
    let mut s = Story::running();
    s.cancel(1, Answer::Ok(vec![None])).asked(seen(1, TaskState::Cancelled, 1, "")).is_clean();
    // A worker that vanished twice.
    let mut s = Story::running();
    let dead = seen(1, TaskState::Dead, 2, "the worker's connection ended");
    s.assign(OTHER, 1, 2, 1).asked(dead.clone()).note(SUBMITTER, What::DeadLetters(vec![dead])).is_clean();
}

/// Nobody knows what became of it, and all that may have become of it is right.
#[test]
fn what_is_unknown_may_go_either_way() {
    let mut s = Story::new();
    s.submit(task(1), Answer::Unknown).is_clean();
    s.assign(WORKER, 9, 1, 1).settle(WORKER, COMPLETE, lease(9, 1), "r", Answer::Unknown);
    let (mut kept, mut lost) = (Story { events: s.events.clone(), now: s.now }, s);
    kept.asked(seen(9, DONE, 1, "r")).is_clean();
    let again = Lease { epoch: EPOCH + 1, ..lease(9, 1) };
    lost.opened(9, EPOCH + 1, &[]).assign_lease(9, again, Ok(1));
    lost.settle(9, COMPLETE, again, "again", Answer::Ok(None)).asked(seen(9, DONE, 1, "again")).is_clean();
    let mut s = Story::running();
    s.cancel(1, Answer::Unknown).settled(WORKER, COMPLETE, 1, 1, "r").asked(seen(1, DONE, 1, "r")).is_clean();
}

/// A result that comes late is refused, and the one that counts is another.
#[test]
fn a_stale_result_that_was_refused_is_clean() {
    let mut s = Story::running();
    s.assign(OTHER, 1, 2, 1);
    s.settle(WORKER, COMPLETE, lease(1, 1), "late", Answer::Ok(Some(Code::StaleLease)));
    s.settled(OTHER, COMPLETE, 1, 2, "r").asked(seen(1, DONE, 2, "r")).is_clean();
}

#[test]
fn what_was_acknowledged_is_lost() {
    let mut s = Story::new();
    s.submit(task(1), Answer::Ok(1)).asked(seen(1, TaskState::Unknown, 0, "")).breaks("lost");
    let mut s = Story::new();
    s.submit(task(1), Answer::Ok(1)).breaks_at_the_end("unfinished");
    let mut s = Story::new();
    s.submit(task(1), Answer::Ok(1))
        .asked(seen(1, TaskState::Waiting, 0, ""))
        .breaks_at_the_end("unfinished");
    // It was handed out, so it was there for good.
    let mut s = Story::new();
    s.submit(task(1), Answer::Unknown).assign(WORKER, 1, 1, 1).asked(seen(1, TaskState::Unknown, 0, ""));
    s.breaks("lost");
}

#[test]
fn something_appears_that_should_not() {
    Story::new().assign(WORKER, 1, 1, 1).breaks("not_submitted");
    Story::new().assign_lease(WORKER, lease(1, 1), Err("other bytes".into())).breaks("garbled");
    let mut s = Story::new();
    s.submit(task(1), Answer::NotDone("restarted".into())).assign(WORKER, 1, 1, 1).breaks("refused_appears");
    let mut s = Story::new();
    s.submit(task(1), Answer::Unknown).assign(WORKER, 1, 1, 1).assign(WORKER, 2, 1, 1).breaks("twice");
    let mut s = Story::running();
    s.assign(WORKER, 2, 1, 1).breaks("twice");
    let mut s = Story::running();
    s.submit(task(2), Answer::Ok(1)).breaks("id_again");
}

#[test]
fn it_goes_to_the_wrong_hands() {
    let mut s = Story::new();
    let labelled = Submitted { label: Some("gpu"), ..task(1) };
    s.submit(labelled, Answer::Ok(1)).assign(WORKER, 1, 1, 1).breaks("labels");
    let mut s = Story::new();
    let optioned = Submitted { options: Mark::of(b"options"), ..task(1) };
    s.submit(optioned, Answer::Ok(1)).assign(WORKER, 1, 1, 1).breaks("options");
    let mut s = Story::new();
    s.submit(task(1), Answer::Ok(1));
    let (lease, payload, options) = (lease(1, 1), Ok(1), Mark::of(&[]));
    s.note(WORKER, What::Assign { queue: "other", lease, payload, options }).breaks("wrong_queue");
    let mut s = Story::new();
    let elsewhere = TaskId::new(Partition::of_queue("other"), 1);
    let answer = Answer::Ok((vec![elsewhere], 1));
    s.note(SUBMITTER, What::Submit { queue: QUEUE, tasks: vec![task(1)], answer }).breaks("wrong_queue");
    let mut s = Story::new();
    let answer = Answer::Ok((vec![id(1)], 0));
    s.note(SUBMITTER, What::Submit { queue: QUEUE, tasks: vec![task(1)], answer }).breaks("durability");
    let mut s = Story::new();
    s.submit(task(1), Answer::Ok(2)).submit(task(2), Answer::Ok(1)).breaks("order");
}

#[test]
fn it_comes_before_its_time() {
    let delayed = Submitted { delay_ms: 50, ..task(1) };
    let mut s = Story::new();
    s.submit(delayed.clone(), Answer::Ok(1)).later(49).assign(WORKER, 1, 1, 1).breaks("early");
    let mut s = Story::new();
    s.submit(delayed, Answer::Ok(1)).later(51).assign(WORKER, 1, 1, 1);
    assert_eq!(s.rules(Stage::Running), Vec::<&str>::new());
    for how in [How::Fail { delay_ms: 50 }, How::Release { delay_ms: 50 }] {
        let mut s = Story::running();
        s.settled(WORKER, how, 1, 1, "e").later(20).assign(OTHER, 1, 2, 1).breaks("early");
        let mut s = Story::running();
        s.settled(WORKER, how, 1, 1, "e").later(51).assign(OTHER, 1, 2, 1);
        assert_eq!(s.rules(Stage::Running), Vec::<&str>::new());
    }
}

#[test]
fn an_outcome_changes_or_goes() {
    let mut s = Story::running();
    s.settled(WORKER, COMPLETE, 1, 1, "r")
        .asked(seen(1, TaskState::Waiting, 1, ""))
        .breaks("outcome_vanished");
    let mut s = Story::running();
    s.pushed(seen(1, DONE, 1, "r")).asked(seen(1, DONE, 1, "other")).breaks("outcome_changed");
    let mut s = Story::running();
    s.cancel(1, Answer::Ok(vec![None])).settled(WORKER, COMPLETE, 1, 1, "r").breaks("outcome_changed");
    let mut s = Story::running();
    s.settled(WORKER, How::FailForGood, 1, 1, "no").asked(seen(1, DONE, 1, "r")).breaks("outcome_changed");
    let mut s = Story::running();
    s.cancel(1, Answer::Ok(vec![None])).asked(seen(1, TaskState::Unknown, 0, "")).breaks("lost");
    let mut s = Story::running();
    s.settled(WORKER, COMPLETE, 1, 1, "r").opened(9, EPOCH, &[]).assign(9, 1, 2, 1).breaks("given_after_end");
    // Both attempts failed, and they were all that it had.
    let mut s = Story::running();
    s.settled(WORKER, FAIL, 1, 1, "e1").assign(WORKER, 1, 2, 1).settled(WORKER, FAIL, 1, 2, "e2");
    s.asked(seen(1, TaskState::Waiting, 2, "")).breaks("outcome_vanished");
}

#[test]
fn an_outcome_was_not_earned() {
    Story::running().asked(seen(1, DONE, 1, "r")).breaks("unearned");
    let mut s = Story::running();
    s.settle(WORKER, COMPLETE, lease(1, 1), "r", Answer::Ok(Some(Code::StaleLease)));
    s.asked(seen(1, DONE, 1, "r")).breaks("unearned");
    let mut s = Story::running();
    s.settle(WORKER, COMPLETE, lease(1, 1), "r", Answer::NotDone("restarted".into()));
    s.asked(seen(1, DONE, 1, "r")).breaks("unearned");
    let mut s = Story::running();
    s.settle(WORKER, COMPLETE, lease(1, 1), "r", Answer::Unknown)
        .asked(seen(1, DONE, 2, "r"))
        .breaks("unearned");
    Story::running().asked(seen(1, TaskState::Cancelled, 1, "")).breaks("cancel_unasked");
    let mut s = Story::running();
    s.cancel(1, Answer::Ok(vec![Some(Code::AlreadySettled)])).asked(seen(1, TaskState::Cancelled, 1, ""));
    s.breaks("cancel_unasked");
    let mut s = Story::running();
    s.settled(WORKER, How::FailForGood, 1, 1, "no")
        .asked(seen(1, TaskState::Dead, 1, ""))
        .breaks("dead_error");
    let mut s = Story::running();
    s.settle(WORKER, FAIL, lease(1, 1), "e", Answer::Unknown).asked(seen(1, TaskState::Dead, 1, "e"));
    s.breaks("buried_early");
    Story::running().asked(seen(1, TaskState::Lost, 1, "")).breaks("lost");
}

#[test]
fn a_lease_is_worth_too_much() {
    let mut s = Story::running();
    s.assign(OTHER, 1, 1, 1).breaks("lease_again");
    let mut s = Story::running();
    s.assign(OTHER, 1, 2, 1).settled(WORKER, COMPLETE, 1, 1, "late").breaks("stale");
    let mut s = Story::running();
    s.opened(9, EPOCH + 1, &[]).settled(9, COMPLETE, 1, 1, "late").breaks("stale");
    let mut s = Story::running();
    s.settled(OTHER, COMPLETE, 1, 1, "stolen").breaks("other_session");
    let mut s = Story::running();
    s.settled(WORKER, FAIL, 1, 1, "e").settled(WORKER, COMPLETE, 1, 1, "after all").breaks("settled_twice");
    let mut s = Story::running();
    s.settled(WORKER, COMPLETE, 1, 1, "r").settled(WORKER, COMPLETE, 1, 1, "r").breaks("settled_twice");
    let mut s = Story::running();
    s.settled(WORKER, FAIL, 1, 1, "1").assign(WORKER, 1, 2, 1).settled(WORKER, FAIL, 1, 2, "2");
    s.assign(WORKER, 1, 3, 1).settled(WORKER, FAIL, 1, 3, "3").breaks("attempts_max");
}

#[test]
fn somebody_is_left_waiting() {
    Story::new().submit(task(1), Answer::Never).breaks("no_answer");
    Story::running().settle(WORKER, COMPLETE, lease(1, 1), "r", Answer::Never).breaks("no_answer");
    Story::running().cancel(1, Answer::Never).breaks("no_answer");
    Story::new().note(SUBMITTER, What::Silence("query")).breaks("no_answer");
    let mut s = Story::running();
    s.settled(WORKER, COMPLETE, 1, 1, "r").asked(seen(1, DONE, 1, "r"));
    s.note(SUBMITTER, What::Told { missed: 0 }).breaks("not_told");
}

#[test]
fn a_stranger_is_told() {
    let mut s = Story::running();
    s.settled(WORKER, COMPLETE, 1, 1, "r").note(OTHER, What::Pushed(vec![seen(1, DONE, 1, "r")]));
    s.breaks("told_stranger");
}

#[test]
fn dead_letters_are_not_those_that_died() {
    let mut s = Story::running();
    s.settled(WORKER, How::FailForGood, 1, 1, "no").asked(seen(1, TaskState::Dead, 1, "no"));
    s.breaks_at_the_end("dead_letters");
}
