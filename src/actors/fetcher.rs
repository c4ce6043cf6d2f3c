//! The fetcher: reads records back from the journal, for the tasks and results in them that are not in memory. On a thread of its
//! own, because a disk blocks.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use actix::{Actor, ActorContext, Context, Handler, Message};
use bytes::Bytes;
use parking_lot::Mutex;

use super::journal::{Position, ReadError, Reader};
use super::journaler::{Health, Journaled};
use super::mailbox::Inlet;
use super::supervise::{DeathGuard, Fault};
use crate::core::tasks::{Found, Lookup, Want};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Incarnation of the dispatcher that asks.
    pub incarnation: u32,
    /// What it asks.
    pub what: What,
}

/// See [`Fetch`].
#[derive(Debug, Clone)]
pub enum What {
    /// Records with tasks; the answer is [`Journaled::Fetched`].
    Tasks(Want),
    /// Outcomes of tasks, with results of so many bytes at most; the answer is [`Journaled::Found`].
    Outcomes(Arc<Lookup>, usize),
}

/// What is asked for and not answered yet. Survives the panic of either side.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Mutex<VecDeque<Fetch>>>);

impl Requests {
    /// Asks. The fetcher has to hear [`Look`], unless it begins just now.
    pub fn put(&self, fetch: Fetch) {
        self.0.lock().push_back(fetch);
    }

    fn first(&self) -> Option<Fetch> {
        self.0.lock().front().cloned()
    }

    fn first_is_done(&self) {
        self.0.lock().pop_front();
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fetcher<R> {
    reader: R,
    /// The last record that was read for tasks.
    behind: u64,
    requests: Requests,
    /// Where the dispatcher hears of it.
    inlet: Inlet,
    health: Health,
    guard: DeathGuard,
    fault: bool,
}

/// A factory for [`super::supervise::Supervised::start`], to be made on the fetcher's thread.
pub fn factory<R: Reader + Unpin>(
    reader: R,
    requests: Requests,
    inlet: Inlet,
    health: Health,
) -> impl FnMut(u32, DeathGuard) -> Fetcher<R> {
    move |_, guard| {
        let (reader, requests) = (reader.clone(), requests.clone());
        Fetcher {
            reader,
            behind: 0,
            requests,
            inlet: inlet.clone(),
            health: health.clone(),
            guard,
            fault: false,
        }
    }
}

impl<R: Reader + Unpin> Fetcher<R> {
    fn answer_all(&mut self, ctx: &mut Context<Self>) {
        while let Some(fetch) = self.requests.first() {
            let news = match catch_unwind(AssertUnwindSafe(|| self.answer(&fetch))) {
                Ok(Ok(news)) => news,
                Ok(Err(text)) => {
                    self.health.fail(&text);
                    Journaled::Failed(text)
                }
                Err(panic) => {
                    self.guard.blame(&*panic);
                    return ctx.terminate(); // the next one reads it
                }
            };
            self.requests.first_is_done();
            self.inlet.journaled(news);
            self.read_ahead(&fetch);
        }
    }

    fn answer(&mut self, fetch: &Fetch) -> Result<Journaled, String> {
        assert!(!std::mem::take(&mut self.fault), "injected fault");
        match &fetch.what {
            What::Tasks(want) => {
                let failed = |e| format!("tasks that wait on disk cannot be read: {e}");
                let records = self.read(*want).map_err(failed)?;
                Ok(Journaled::Fetched(fetch.incarnation, *want, records))
            }
            What::Outcomes(lookup, bytes_max) => {
                // Nothing depends on a result: who asked is told, and the server goes on.
                let found = self.look_up(lookup, *bytes_max).unwrap_or_else(|e| {
                    tracing::error!(error = %e, "a result on disk cannot be read");
                    Found::failed()
                });
                Ok(Journaled::Found(fetch.incarnation, lookup.clone(), found))
            }
        }
    }

    /// While the dispatcher deals with what was read, the disk brings what it will want next, if it reads in order.
    fn read_ahead(&mut self, fetch: &Fetch) {
        let What::Tasks(want) = fetch.what else { return };
        let in_order = (self.behind..=self.behind + 1).contains(&want.first);
        self.behind = want.last;
        if in_order {
            self.reader.ahead();
        }
    }

    /// What the records have that is asked for. More than `bytes_max` cannot be told anyway.
    fn look_up(&mut self, lookup: &Lookup, bytes_max: usize) -> Result<Found, String> {
        let mut found = Found::default();
        for at in &lookup.records {
            match self.reader.get(Position(*at)) {
                Ok(record) => lookup
                    .read(&record.body, &mut found)
                    .map_err(|e| format!("record {}: {e}", record.position))?,
                // Results go when the journal is trimmed.
                Err(ReadError::Gone(_)) => {}
                Err(e) => return Err(e.to_string()),
            }
            if found.bytes > bytes_max {
                break;
            }
        }
        Ok(found)
    }

    fn read(&mut self, want: Want) -> Result<Vec<Bytes>, ReadError> {
        let mut records = Vec::new();
        for at in want.first..=want.last {
            match self.reader.get(Position(at)) {
                Ok(record) => records.push(record.body),
                // Nobody needs it any more, or the board misses what was in it.
                Err(ReadError::Gone(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(records)
    }
}

impl<R: Reader + Unpin> Actor for Fetcher<R> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.answer_all(ctx);
    }
}

/// Something is asked for.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Look;

impl<R: Reader + Unpin> Handler<Look> for Fetcher<R> {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Self::Context) {
        self.answer_all(ctx);
    }
}

impl<R: Reader + Unpin> Handler<Fault> for Fetcher<R> {
    type Result = ();

    fn handle(&mut self, _: Fault, _: &mut Self::Context) {
        self.fault = true;
    }
}
