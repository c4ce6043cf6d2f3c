//! Where the board's effects go: out at once, or held back until the journal has what they depend on.
//!
//! ```text
//!  now        ──────────────────────────────────────────────▶ flush at the end of each batch
//!  gathering  ──seal──▶ in_flight ──durable──▶ flush
//! ```

use std::sync::Arc;

use hive_proto::items::{Assign, Progressed, Refused, Revoked, Task};
use hive_proto::{SessionId, TaskId, WireError, ids::Durability};

use crate::actors::directory::{Directory, InFlight};
use crate::actors::outgoing::Outgoing;
use crate::core::tasks::TaskSink;

/// Effects that wait for the journal, and the senders whose answers are among them.
#[derive(Debug)]
pub(super) struct Held {
    out: Outgoing,
    unanswered: Vec<InFlight>,
}

impl Held {
    fn new(directory: &Arc<Directory>) -> Self {
        Self { out: Outgoing::held(directory.clone()), unanswered: Vec::new() }
    }

    fn release(&mut self) {
        self.out.flush();
        self.unanswered.clear();
    }

    /// Answers with an error whoever waits for an answer. Everything else is dropped.
    fn refuse(&mut self, error: &WireError) {
        self.out.refuse(error);
        self.unanswered.clear();
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) now: Outgoing,
    gathering: Held,
    in_flight: Held,
    hold: bool,
    /// Something was held back since it was last asked.
    has_held: bool,
    /// Answers to questions may be among what is held back.
    has_questions: bool,
}

impl Sinks {
    pub(super) fn new(directory: &Arc<Directory>) -> Self {
        Self {
            now: Outgoing::new(directory.clone()),
            gathering: Held::new(directory),
            in_flight: Held::new(directory),
            hold: false,
            has_held: false,
            has_questions: false,
        }
    }

    /// Whether something was held back since this was last asked.
    pub(super) fn has_held(&mut self) -> bool {
        std::mem::take(&mut self.has_held)
    }

    /// A sender whose answers are among those that are held back; `sealed` if they have been sealed since. What it sent
    /// counts from here on as a part of what is gathered for the journal.
    pub(super) fn unanswered(&mut self, mut from: InFlight, sealed: bool) {
        from.is_decided();
        let held = if sealed { &mut self.in_flight } else { &mut self.gathering };
        held.unanswered.push(from);
    }

    /// What was gathered is on its way to the journal.
    pub(super) fn seal(&mut self) {
        std::mem::swap(&mut self.gathering, &mut self.in_flight);
    }

    /// The journal has it.
    pub(super) fn committed(&mut self) {
        self.in_flight.release();
    }

    /// Nothing is on its way to the journal: what was held back meanwhile depends on nothing any more.
    pub(super) fn settled(&mut self) {
        self.gathering.release();
    }

    /// The journal will never have it: `in_flight` for what was on its way, `gathered` for what had not left.
    pub(super) fn refuse_held(&mut self, in_flight: &WireError, gathered: &WireError) {
        self.in_flight.refuse(in_flight);
        self.gathering.refuse(gathered);
    }

    /// Answers with an error who asked for what is held back. What was decided stays, it may happen.
    pub(super) fn refuse_questions(&mut self, error: &WireError) {
        if std::mem::take(&mut self.has_questions) {
            for held in [&mut self.in_flight, &mut self.gathering] {
                for (session, request) in held.out.take_questions() {
                    TaskSink::error(&mut self.now, session, request, error.clone());
                }
            }
            self.now.flush();
        }
    }

    /// Whether a request of the batch in hand has been answered, or will be with what is held back.
    pub(super) fn was_answered(&self, session: SessionId, request: u32) -> bool {
        self.now.was_answered(session, request)
            || self.gathering.out.holds_answer(session, request)
            || self.in_flight.out.holds_answer(session, request)
    }

    pub(super) fn closed(&mut self, session: SessionId) {
        self.now.closed(session);
        self.gathering.out.closed(session);
        self.in_flight.out.closed(session);
    }

    /// Outcomes that were not pushed because the receiver did not read.
    pub(super) fn lost(&self) -> u64 {
        self.now.lost + self.gathering.out.lost + self.in_flight.out.lost
    }

    #[inline]
    fn out(&mut self) -> &mut Outgoing {
        self.has_held |= self.hold;
        if self.hold { &mut self.gathering.out } else { &mut self.now }
    }
}

impl TaskSink for Sinks {
    fn accepted(
        &mut self,
        to: SessionId,
        request: u32,
        first: TaskId,
        count: u16,
        durability: Durability,
        refused: &[Refused],
    ) {
        self.out().accepted(to, request, first, count, durability, refused);
    }

    fn error(&mut self, to: SessionId, request: u32, error: WireError) {
        TaskSink::error(self.out(), to, request, error);
    }

    fn ok(&mut self, to: SessionId, request: u32) {
        TaskSink::ok(self.out(), to, request);
    }

    #[inline]
    fn assign(&mut self, to: SessionId, consumer: u32, item: Assign<'_>) -> bool {
        self.now.assign(to, consumer, item)
    }

    fn settled(&mut self, to: SessionId, request: u32, accepted: u16, refused: &[Refused]) {
        self.out().settled(to, request, accepted, refused);
    }

    #[inline]
    fn outcome(&mut self, to: SessionId, item: Task<'_>) {
        self.out().outcome(to, item);
    }

    fn progressed(&mut self, to: SessionId, item: Progressed<'_>) {
        self.out().progressed(to, item);
    }

    fn revoked(&mut self, to: SessionId, item: Revoked) {
        self.out().revoked(to, item);
    }

    fn tasks<'a>(&mut self, to: SessionId, request: u32, items: impl Iterator<Item = Task<'a>>) {
        self.has_questions |= self.hold;
        self.out().tasks(to, request, items);
    }

    #[inline]
    fn hold(&mut self, until_committed: bool) {
        self.hold = until_committed;
    }
}
