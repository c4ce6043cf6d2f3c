//! Looking at a journal that nobody uses: for `hive journal`. Nothing is changed, not even a torn end.

use super::files::Files;
use super::recover::{self, Recovered, failed};
use crate::actors::journal::{OpenError, Position};

/// A record and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its position.
    pub position: Position,
    /// Epoch of its writer.
    pub epoch: u32,
    /// Its operations; 0 for the journal's own records.
    pub ops: u32,
    /// Length of its body, bytes.
    pub bytes: u32,
    /// First position of its segment.
    pub segment: Position,
    /// Offset in the file of the segment, bytes.
    pub offset: u64,
}

/// Verifies all segments and gives their records in order. Records after `start` must all be there, older segments may be missing.
/// `None` if there is no journal.
///
/// # Errors
/// Somebody uses the journal, or it does not hold together; what came before the damage has been given.
pub fn survey<F: Files>(
    files: &F,
    start: Position,
    each: &mut dyn FnMut(&Entry),
) -> Result<Option<Recovered>, OpenError> {
    let _lock = files.lock().map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => OpenError::InUse(files.place("")),
        _ => failed("lock", files, "lock", e).into(),
    })?;
    let mut visit = |first, h: &super::format::Header, offset| {
        let (position, segment) = (Position(h.position), Position(first));
        each(&Entry { position, epoch: h.epoch, ops: h.ops, bytes: h.len, segment, offset });
    };
    let covered = recover::covered(files, start)?;
    let (mut records, mut bytes) = (0, 0);
    for first in covered {
        let found = recover::scan_sealed(files, first, &mut visit)?;
        records += found.last + 1 - first;
        bytes += found.end;
    }
    let state = recover::examine(files, start, &mut visit)?;
    Ok(state.map(|s| Recovered {
        records: s.recovered.records + records,
        bytes: s.recovered.bytes + bytes,
        ..s.recovered
    }))
}
