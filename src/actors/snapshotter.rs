//! The snapshotter: writes snapshots that the dispatcher takes in steps, and has the journal trimmed behind them. On a thread of its
//! own, because a file system blocks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use actix::{Actor, ActorContext, Context, Handler, Message};

use super::journal::{Position, SnapshotError, Snapshots};
use super::journaler::{Journaled, Trim};
use super::mailbox::Inlet;
use super::supervise::DeathGuard;

/// Pieces of a snapshot that may wait to be written.
const PIECES: usize = 4;

/// The end of a snapshot from which it is filled. It counts only once [`Feed::end`] was called.
#[derive(Debug)]
pub struct Feed(SyncSender<Option<Vec<u8>>>);

/// Why a piece was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedError {
    /// Enough waits; try again with the same piece.
    Busy(Vec<u8>),
    /// Nobody writes this snapshot any more.
    Gone,
}

impl Feed {
    /// A snapshot as of a position, what it needs of the records before, from where on records are worth keeping for the results in
    /// them, and where to fill it.
    pub fn new(at: Position, needs: Needs, results_from: u64) -> (Self, Take) {
        let (tx, rx) = sync_channel(PIECES);
        (Self(tx), Take { at, needs, results_from, pieces: rx })
    }

    /// Adds a piece, unless enough of them wait.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub fn put(&self, piece: Vec<u8>) -> Result<(), FeedError> {
        self.send(Some(piece))
    }

    /// The snapshot is whole, and the journal has all that it knows.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub fn end(&self) -> Result<(), FeedError> {
        self.send(None)
    }

    fn send(&self, piece: Option<Vec<u8>>) -> Result<(), FeedError> {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        match self.0.try_send(piece) {
            Ok(()) => Ok(()),
            Err(Full(piece)) => Err(FeedError::Busy(piece.unwrap_or_default())),
            Err(Disconnected(_)) => Err(FeedError::Gone),
        }
    }
}

/// A snapshot to be written.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Take {
    at: Position,
    needs: Needs,
    results_from: u64,
    pieces: Receiver<Option<Vec<u8>>>,
}

impl Take {
    fn fill(&self, to: &mut dyn Write) -> io::Result<()> {
        loop {
            match self.pieces.recv() {
                Ok(Some(piece)) => to.write_all(&piece)?,
                Ok(None) => return Ok(()),
                Err(_) => return Err(io::Error::other("the snapshot was given up")),
            }
        }
    }
}

/// Records that a snapshot needs although it covers them, as ranges of positions.
pub type Needs = Arc<[(u64, u64)]>;

/// Has records removed.
pub type Remove = Rc<dyn Fn(Trim)>;

/// See the module.
pub struct Snapshotter<S> {
    snapshots: S,
    /// Where the dispatcher hears of it.
    inlet: Inlet,
    remove: Remove,
    /// What the snapshots need that are kept.
    needs: Rc<RefCell<BTreeMap<Position, Needs>>>,
    guard: DeathGuard,
}

/// A factory for [`super::supervise::Supervised::start`], to be made on the snapshotter's thread. `open` looks at the directory anew;
/// `first` is the snapshot that the board was made from, and what it needs.
pub fn factory<S: Snapshots + Unpin + 'static>(
    mut open: impl FnMut() -> S,
    first: Option<(Position, Needs)>,
    inlet: Inlet,
    remove: Remove,
) -> impl FnMut(u32, DeathGuard) -> Snapshotter<S> {
    let needs = Rc::new(RefCell::new(first.into_iter().collect::<BTreeMap<_, _>>()));
    move |_, guard| {
        let (inlet, remove, needs) = (inlet.clone(), remove.clone(), needs.clone());
        Snapshotter { snapshots: open(), inlet, remove, needs, guard }
    }
}

impl<S: Snapshots> Snapshotter<S> {
    fn take(&mut self, take: &Take) -> Result<u64, SnapshotError> {
        let bytes = self.snapshots.put(take.at, &mut |to| take.fill(to))?;
        self.snapshots.gc()?;
        let kept = self.snapshots.kept()?;
        let mut needs = self.needs.borrow_mut();
        needs.insert(take.at, take.needs.clone());
        needs.retain(|at, _| kept.contains(at));
        // An older generation is of use only with the records that follow it; with one alone, all are kept. So they are if
        // it is not known what one needs: it was not read, because a later one was. What the later one needs is not always
        // among what the older one does: a panic of the dispatcher may lie between them.
        if let [before, _, ..] = kept[..]
            && needs.len() == kept.len()
        {
            let spare = needs.values().flat_map(|needs| needs.iter().copied()).collect();
            (self.remove)(Trim { before, spare, results_from: take.results_from });
        }
        Ok(bytes)
    }
}

impl<S: Snapshots + Unpin + 'static> Actor for Snapshotter<S> {
    type Context = Context<Self>;
}

impl<S: Snapshots + Unpin + 'static> Handler<Take> for Snapshotter<S> {
    type Result = ();

    fn handle(&mut self, take: Take, ctx: &mut Self::Context) {
        match catch_unwind(AssertUnwindSafe(|| self.take(&take))) {
            Ok(Ok(bytes)) => {
                tracing::info!(position = take.at.0, bytes, "snapshot written");
                self.inlet.journaled(Journaled::Snapshot(Some(bytes)));
            }
            Ok(Err(e)) => {
                tracing::error!(error = %e, "no snapshot was written; the journal goes on, and grows");
                self.inlet.journaled(Journaled::Snapshot(None));
            }
            Err(panic) => {
                self.inlet.journaled(Journaled::Snapshot(None));
                self.guard.blame(&*panic);
                ctx.terminate();
            }
        }
    }
}
