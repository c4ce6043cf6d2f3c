//! How an incarnation ends in a panic: everybody who is owed a word gets it, once, and it is true.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hive_proto::error::Code;
use hive_proto::items::{RevokeReason, Revoked};
use hive_proto::{Frames, WireError};

use super::Dispatcher;
use super::frames::settle_credit;
use crate::actors::mailbox::Input;
use crate::actors::outgoing::restarted;
use crate::core::tasks::TaskSink;
use crate::planted;

impl Dispatcher {
    /// Waits end with the board; the board may be broken, so its word is taken only if it can still speak.
    pub(super) fn refuse_waits(&mut self) {
        let waits = catch_unwind(AssertUnwindSafe(|| self.board.open_waits().collect::<Vec<_>>()));
        for (session, request) in waits.unwrap_or_default() {
            TaskSink::error(&mut self.out.now, session, request, restarted("the dispatcher"));
        }
    }

    /// Leases end with the board as well: workers are told to stop, whoever gets the tasks next.
    pub(super) fn revoke_leases(&mut self) {
        let leases = catch_unwind(AssertUnwindSafe(|| self.board.open_leases()));
        for (session, lease) in leases.unwrap_or_default() {
            self.out.now.revoked(session, Revoked { lease, reason: RevokeReason::Restarted });
        }
    }

    /// The batch in hand did not happen, since the board it was applied to is gone: say so.
    pub(super) fn refuse_inputs(&mut self) {
        let mut legacy = self.legacy.borrow_mut();
        let mut credited = std::mem::take(&mut self.credited);
        self.changes.clear();
        self.held.clear();
        for (from, request, _) in std::mem::take(&mut self.told) {
            let to = from.peer.session;
            if !self.out.was_answered(to, request) {
                TaskSink::error(&mut self.out.now, to, request, restarted("the dispatcher"));
            }
        }
        let mut answered = Vec::new(); // once it is dropped
        for input in self.inputs.drain(..) {
            match input {
                Input::HasRead(_) => {} // the next board has paused nobody
                Input::Journaled(news) => legacy.setup.inlet.journaled(news),
                Input::Closed(from) => {
                    legacy.consumers.remove(&from.peer.session);
                    answered.push(from);
                }
                Input::Frames(batch) => {
                    for frame in Frames(&batch.chunk) {
                        match credited.checked_sub(1) {
                            Some(left) => credited = left,
                            None => settle_credit(&batch.from.peer, &frame),
                        }
                        let (to, id) = (batch.from.peer.session, frame.prefix.id);
                        if id != 0 && !self.out.was_answered(to, id) {
                            TaskSink::error(&mut self.out.now, to, id, restarted("the dispatcher"));
                        }
                    }
                    answered.push(batch.from);
                }
            }
        }
        self.out.now.flush();
    }

    /// What waits for the journal is told if the journal has it by now. Else it may have happened, or did not.
    pub(super) fn end_commits(&mut self) {
        let legacy = self.legacy.borrow();
        let all = !self.board.has_records();
        let told = legacy.last_record_is_durable(self.incarnation) && all;
        if told && !planted::is("done_as_not_done") {
            self.out.committed();
        }
        let gone = restarted("the dispatcher");
        if planted::is("gathered_unanswered") {
            return;
        } else if planted::is("gathered_as_done") {
            self.out.settled();
        } else if planted::is("done_as_not_done") {
            return self.out.refuse_held(&gone, &gone);
        }
        let text = "the dispatcher restarted while the journal was being written; it may have happened";
        let maybe = WireError::new(Code::Restarted, text).retry_after(100).maybe_done();
        self.out.refuse_held(&maybe, &gone);
    }
}
