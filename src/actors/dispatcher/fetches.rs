//! Records that are being read, for tasks that are not in memory.

use super::legacy::FetchRecords;
use crate::actors::fetcher::Fetch;
use crate::core::tasks::Board;

/// So many reads may be under way: each may bring as much as the longest record has.
const FETCHES_MAX: usize = 2;

/// Asks for what the board wants, a bounded part at a time.
pub(super) struct Fetches {
    fetch: Option<FetchRecords>,
    under_way: usize,
}

impl std::fmt::Debug for Fetches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetches").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl Fetches {
    pub(super) fn new(fetch: Option<FetchRecords>) -> Self {
        Self { fetch, under_way: 0 }
    }

    /// Has read what the board wants.
    #[inline]
    pub(super) fn ask(&mut self, board: &mut Board, incarnation: u32) {
        let Some(fetch) = &self.fetch else { return };
        while self.under_way < FETCHES_MAX
            && let Some(want) = board.want()
        {
            fetch(Fetch { incarnation, want });
            self.under_way += 1;
        }
    }

    /// One of them is done.
    pub(super) fn answered(&mut self) {
        self.under_way -= 1;
    }
}
