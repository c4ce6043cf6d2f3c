//! Records that are being read, for tasks and results that are not in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::legacy::FetchRecords;
use crate::actors::directory::{Directory, InFlight};
use crate::actors::fetcher::{Fetch, What};
use crate::core::tasks::{Board, Lookup};

/// So many reads of tasks may be under way: each may bring as much as the longest record has.
const FETCHES_MAX: usize = 2;

/// Asks for what the board wants, a bounded part at a time.
pub(super) struct Fetches {
    fetch: Option<FetchRecords>,
    directory: Arc<Directory>,
    under_way: usize,
    /// Questions, of which the first is read for: the answer may be as long as a message. Their sessions wait for them.
    lookups: VecDeque<(Arc<Lookup>, Option<InFlight>)>,
}

impl std::fmt::Debug for Fetches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetches").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl Fetches {
    pub(super) fn new(fetch: Option<FetchRecords>, directory: Arc<Directory>) -> Self {
        Self { fetch, directory, under_way: 0, lookups: VecDeque::new() }
    }

    /// Has read what the board wants.
    #[inline]
    pub(super) fn ask(&mut self, board: &mut Board, incarnation: u32) {
        let Some(fetch) = &self.fetch else { return };
        while self.under_way < FETCHES_MAX
            && let Some(want) = board.want()
        {
            fetch(Fetch { incarnation, what: What::Tasks(want) });
            self.under_way += 1;
        }
        while let Some(lookup) = board.next_lookup() {
            let peer = self.directory.session(lookup.session());
            let waits = peer.map(|p| InFlight::new(&self.directory, &p, 1, 0));
            self.lookups.push_back((Arc::new(lookup), waits));
            if self.lookups.len() == 1 {
                self.look_up(incarnation);
            }
        }
    }

    fn look_up(&self, incarnation: u32) {
        if let (Some(fetch), Some((lookup, _))) = (&self.fetch, self.lookups.front()) {
            let bytes_max = self.directory.outbox_limits.message_bytes_max;
            fetch(Fetch { incarnation, what: What::Outcomes(lookup.clone(), bytes_max) });
        }
    }

    /// Tasks were read.
    pub(super) fn answered(&mut self) {
        self.under_way -= 1;
    }

    /// What was asked first was answered.
    pub(super) fn looked_up(&mut self, incarnation: u32) {
        self.lookups.pop_front();
        self.look_up(incarnation);
    }

    /// Nobody is answered any more.
    pub(super) fn end_lookups(&mut self) {
        self.lookups.clear();
    }
}
