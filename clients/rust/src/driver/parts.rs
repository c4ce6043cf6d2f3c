//! Parts of frames: what is kept of them, and what their items refuse.

use bytes::Bytes;
use foldhash::HashMap;
use hive_proto::items::Refused;
use hive_proto::{Code, FrameRef, WireError};

use crate::Error;
use crate::command::Reply;

/// The bytes of `frame` within `run`, prefix included.
pub(super) fn whole<'a>(frame: &FrameRef<'_>, run: &'a [u8]) -> &'a [u8] {
    let start = frame.header.as_ptr() as usize - run.as_ptr() as usize - hive_proto::PREFIX_LEN;
    &run[start..start + hive_proto::PREFIX_LEN + frame.prefix.length as usize]
}

/// A part of `run` to keep: copied where it would pin a much larger run.
pub(super) fn share(run: &Bytes, part: &[u8]) -> Bytes {
    if part.len() * 4 < run.len() { Bytes::copy_from_slice(part) } else { run.slice_ref(part) }
}

/// Refused items by index.
pub(super) type Refusals = HashMap<u16, Refused>;

pub(super) fn refusals(frame: &FrameRef<'_>) -> Result<Refusals, Error> {
    // The count of the frame is that of the accepted; a refused item has a fixed length.
    const REFUSED_LEN: usize = 8;
    let count = u16::try_from(frame.payload.len() / REFUSED_LEN).unwrap_or(u16::MAX);
    Ok(hive_proto::items::check::<Refused>(frame.payload, count)?.map(|r| (r.index, r)).collect())
}

/// The error that a refused item stands for.
pub(super) fn refusal(r: &Refused) -> Error {
    let known = Code::from_u16(r.code);
    Error::Refused(WireError {
        code: r.code,
        retryable: known.is_some_and(Code::retryable),
        outcome: hive_proto::Outcome::NotDone,
        retry_after_ms: (r.retry_after_ms > 0).then_some(r.retry_after_ms),
        text: known.map_or_else(|| "refused".into(), |c| c.help().to_owned()),
    })
}

/// Tells the settlers of a frame what became of each item.
pub(super) fn settled(refused: &Refusals, replies: Vec<Option<Reply<()>>>) {
    for (i, reply) in replies.into_iter().enumerate() {
        if let Some(reply) = reply {
            // The caller may have given up.
            let _ = reply.send(refused.get(&(i as u16)).map_or(Ok(()), |r| Err(refusal(r))));
        }
    }
}
