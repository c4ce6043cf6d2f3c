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
        let idle = self.lookups.is_empty();
        while let Some(lookup) = board.next_lookup() {
            let peer = self.directory.session(lookup.asked().0);
            let waits = peer.map(|p| InFlight::new(&self.directory, &p, 1, 0));
            self.lookups.push_back((Arc::new(lookup), waits));
        }
        if idle {
            self.look_up(board, incarnation);
        }
    }

    /// Has read what is asked first by somebody who is still there.
    fn look_up(&mut self, board: &mut Board, incarnation: u32) {
        let Some(fetch) = &self.fetch else { return };
        while let Some((lookup, _)) = self.lookups.front() {
            if self.directory.session(lookup.asked().0).is_some() {
                let bytes_max = self.directory.outbox_limits.message_bytes_max;
                return fetch(Fetch { incarnation, what: What::Outcomes(lookup.clone(), bytes_max) });
            }
            board.end_lookup(lookup);
            self.lookups.pop_front();
        }
    }

    /// Tasks were read.
    pub(super) fn answered(&mut self) {
        self.under_way -= 1;
    }

    /// A question was read for. Gives who waits for the answer, until that is queued.
    pub(super) fn looked_up(
        &mut self,
        lookup: &Arc<Lookup>,
        board: &mut Board,
        incarnation: u32,
    ) -> Option<InFlight> {
        let first = self.lookups.pop_front_if(|(first, _)| Arc::ptr_eq(first, lookup));
        self.look_up(board, incarnation);
        first.and_then(|(_, waits)| waits)
    }

    /// Nobody is answered any more.
    pub(super) fn end_lookups(&mut self) {
        self.lookups.clear();
    }
}
