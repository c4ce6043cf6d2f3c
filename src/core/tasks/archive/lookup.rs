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
    /// Ids in all of them.
    ids: usize,
}

/// A question about tasks whose outcomes are in the journal.
#[derive(Debug)]
pub struct Lookup {
    session: SessionId,
    request: u32,
    ids: Box<[TaskId]>,
    /// Sequences of the tasks, ascending.
    seqs: Box<[u64]>,
    /// Positions of the records to be read, ascending.
    pub records: Vec<u64>,
}

/// What was found of it.
#[derive(Debug, Default)]
pub struct Found {
    /// State, attempt and result, by sequence.
    outcomes: HashMap<u64, (TaskState, u32, Box<[u8]>)>,
    /// Length of the results, bytes.
    pub bytes: usize,
}

impl Lookup {
    /// Who asked.
    pub fn session(&self) -> SessionId {
        self.session
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
            if self.seqs.binary_search(&seq).is_ok() {
                let (state, attempt, result) = outcome;
                found.bytes += result.len();
                found.outcomes.insert(seq, (state, attempt, result.into()));
            }
            Some(())
        })
    }
}

impl Found {
    /// The outcome of a task.
    pub(in crate::core::tasks) fn outcome(&self, task: TaskId) -> Option<Task<'_>> {
        let (state, attempt, payload) = self.outcomes.get(&task.seq())?;
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
        let records = self.records_of(ids.clone());
        if records.is_empty() {
            return false;
        }
        let ids: Box<[TaskId]> = ids.collect();
        let lookups = &mut self.archive.lookups;
        if lookups.ids + ids.len() > self.limits.waits_max {
            let (asked, most) = (lookups.ids, self.limits.waits_max);
            let text = format!("{asked} task ids are looked up on disk; waits_max is {most}");
            sink.error(from, request, WireError::new(Code::TooManyWaits, text).retry_after(100));
            return true;
        }
        if records.len() > RECORDS_MAX {
            let text =
                format!("the results are in {} records on disk: ask for fewer tasks at once", records.len());
            sink.error(from, request, WireError::new(Code::MessageTooLarge, text));
            return true;
        }
        let mut seqs: Box<[u64]> = ids.iter().map(|id| id.seq()).collect();
        seqs.sort_unstable();
        lookups.ids += ids.len();
        lookups.waiting.push_back(Lookup { session: from, request, ids, seqs, records });
        true
    }

    /// The records in which the outcomes of these tasks are, ascending.
    fn records_of(&self, ids: impl Iterator<Item = TaskId>) -> Vec<u64> {
        if self.archive.is_empty() {
            return Vec::new();
        }
        let elsewhere = ids.filter(|id| self.find(*id).is_none());
        let mut records: Vec<u64> = elsewhere.filter_map(|id| self.archived(id)).collect();
        records.sort_unstable();
        records.dedup();
        records
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
        let Lookup { session, request, ids, records, .. } = lookup;
        let lookups = &mut self.archive.lookups;
        if let Some(at) = lookups.under_way.iter().position(|l| *l == (*session, *request)) {
            lookups.under_way.swap_remove(at);
            lookups.ids -= ids.len();
        }
        let unread = ids.iter().copied().filter(|id| found.outcome(*id).is_none());
        let more = self.records_of(unread).iter().any(|r| records.binary_search(r).is_err());
        if !(more && self.ask_archive(*session, *request, ids.iter().copied(), sink)) {
            self.tell_states(*session, *request, ids.iter().copied(), Some(found), sink);
        }
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
