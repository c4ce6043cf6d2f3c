//! Questions about tasks whose outcomes are in the journal: answered once that was read.

use std::collections::VecDeque;

use hashbrown::HashMap;
use hive_proto::error::Code;
use hive_proto::items::Task;
use hive_proto::{SessionId, TaskId, TaskState, WireError};

use crate::core::tasks::ops::{self, BadRecord, Decision};
use crate::core::tasks::{Board, TaskSink};

/// Records read for one question: others, and tasks on disk, wait meanwhile.
const RECORDS_MAX: usize = 4096;

/// Questions under way.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    /// Those that wait to be read for.
    waiting: VecDeque<Lookup>,
    /// Those that are read for.
    under_way: Vec<(SessionId, u32)>,
    /// Tasks that are looked for in all of them.
    tasks: usize,
}

/// A question about tasks whose outcomes are in the journal.
#[derive(Debug)]
pub struct Lookup {
    session: SessionId,
    request: u32,
    ids: Box<[TaskId]>,
    /// Those of them that are in the journal, by sequence.
    wanted: Box<[TaskId]>,
    /// Positions of the records to be read, ascending.
    pub records: Vec<u64>,
}

/// What was found of it.
#[derive(Debug, Default)]
pub struct Found {
    /// State, attempt and result.
    outcomes: HashMap<TaskId, (TaskState, u32, Box<[u8]>)>,
    /// Length of the results, bytes.
    pub bytes: usize,
    /// Not all could be read; the log says why.
    failed: bool,
}

impl Lookup {
    /// Who asked, and under which id.
    pub fn asked(&self) -> (SessionId, u32) {
        (self.session, self.request)
    }

    /// Takes what a record has of it.
    ///
    /// # Errors
    /// The record does not make sense.
    pub fn read(&self, record: &[u8], found: &mut Found) -> Result<(), BadRecord> {
        ops::read(record, |_, decision| {
            let (seq, outcome) = match decision {
                Decision::Complete { seq, attempt, result, .. } => {
                    (seq, (TaskState::Completed, attempt, result))
                }
                Decision::Cancel { seq } => (seq, (TaskState::Cancelled, 0, &[][..])),
                _ => return Some(()),
            };
            if let Ok(at) = self.wanted.binary_search_by_key(&seq, |id| id.seq()) {
                let (state, attempt, result) = outcome;
                found.bytes += result.len();
                found.outcomes.insert(self.wanted[at], (state, attempt, result.into()));
            }
            Some(())
        })
    }
}

impl Found {
    /// What could not be read.
    pub fn failed() -> Self {
        Self { failed: true, ..Self::default() }
    }

    /// The outcome of a task.
    pub(in crate::core::tasks) fn outcome(&self, task: TaskId) -> Option<Task<'_>> {
        let (state, attempt, payload) = self.outcomes.get(&task)?;
        Some(Task { task, state: *state, attempt: *attempt, payload })
    }
}

impl Board {
    /// Notes a question for which records have to be read, if it is one. Gives whether it is.
    pub(in crate::core::tasks) fn ask_archive(
        &mut self,
        from: SessionId,
        request: u32,
        ids: impl Iterator<Item = TaskId> + Clone,
        sink: &mut impl TaskSink,
    ) -> bool {
        let mut wanted = self.in_journal(ids.clone());
        if wanted.is_empty() {
            return false;
        }
        let mut records: Vec<u64> = wanted.iter().map(|(record, _)| *record).collect();
        records.sort_unstable();
        records.dedup();
        wanted.sort_unstable_by_key(|(_, id)| id.seq());
        let lookups = &mut self.archive.lookups;
        if lookups.tasks > 0 && lookups.tasks + wanted.len() > self.limits.waits_max {
            let (asked, most) = (lookups.tasks, self.limits.waits_max);
            let text = format!("{asked} tasks are looked up on disk; waits_max is {most}");
            sink.error(from, request, WireError::new(Code::TooManyWaits, text).retry_after(100));
            return true;
        }
        if records.len() > RECORDS_MAX {
            let text =
                format!("the results are in {} records on disk: ask for fewer tasks at once", records.len());
            sink.error(from, request, WireError::new(Code::MessageTooLarge, text));
            return true;
        }
        lookups.tasks += wanted.len();
        let wanted = wanted.into_iter().map(|(_, id)| id).collect();
        lookups.waiting.push_back(Lookup { session: from, request, ids: ids.collect(), wanted, records });
        true
    }

    /// Those of these tasks whose outcomes are in the journal alone, each with its record.
    fn in_journal(&self, ids: impl Iterator<Item = TaskId>) -> Vec<(u64, TaskId)> {
        if self.archive.is_empty() {
            return Vec::new();
        }
        let elsewhere = ids.filter(|id| self.find(*id).is_none());
        elsewhere.filter_map(|id| Some((self.archived(id)?, id))).collect()
    }

    /// The next question for which records have to be read; [`Board::looked_up`] is expected for each.
    pub fn next_lookup(&mut self) -> Option<Lookup> {
        let lookup = self.archive.lookups.waiting.pop_front()?;
        self.archive.lookups.under_way.push((lookup.session, lookup.request));
        Some(lookup)
    }

    /// Answers a question with what was read for it; what is not there is not known any more. What was in memory when it was asked
    /// and is not any more has to be read first: then it is asked again.
    pub fn looked_up(&mut self, lookup: &Lookup, found: &Found, sink: &mut impl TaskSink) {
        if !self.end_lookup(lookup) {
            return; // it was answered otherwise
        }
        let Lookup { session, request, ids, wanted, .. } = lookup;
        if found.failed {
            let text = "a result on disk cannot be read; the server's log says why";
            return sink.error(*session, *request, WireError::new(Code::Internal, text).retry_after(1000));
        }
        let unread = ids.iter().copied().filter(|id| found.outcome(*id).is_none());
        let is_new = |id: &TaskId| wanted.binary_search_by_key(&id.seq(), |w| w.seq()).is_err();
        let more = self.in_journal(unread).iter().any(|(_, id)| is_new(id));
        if !(more && self.ask_archive(*session, *request, ids.iter().copied(), sink)) {
            self.tell_states(*session, *request, ids.iter().copied(), Some(found), sink);
        }
    }

    /// Forgets a question. Gives whether it was under way.
    pub fn end_lookup(&mut self, lookup: &Lookup) -> bool {
        let lookups = &mut self.archive.lookups;
        let asked = (lookup.session, lookup.request);
        let found = lookups.under_way.iter().position(|l| *l == asked);
        if let Some(at) = found {
            lookups.under_way.swap_remove(at);
            lookups.tasks -= lookup.wanted.len();
        }
        found.is_some()
    }

    /// Sessions and request ids of questions that wait for records.
    pub(in crate::core::tasks) fn open_lookups(&self) -> impl Iterator<Item = (SessionId, u32)> + '_ {
        let waiting = self.archive.lookups.waiting.iter().map(|l| (l.session, l.request));
        waiting.chain(self.archive.lookups.under_way.iter().copied())
    }

    /// Nothing is read any more: gives those who wait for it.
    pub fn end_lookups(&mut self) -> Vec<(SessionId, u32)> {
        let open = self.open_lookups().collect();
        self.archive.lookups = Lookups::default();
        open
    }
}
