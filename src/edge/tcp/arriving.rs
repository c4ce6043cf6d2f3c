//! What has not arrived whole: the beginning of a frame, messages in fragments. Counted, and refused where there is no room:
//! the rest of what was refused is passed over as it comes, so the connection goes on.

use std::sync::Arc;
use std::task::Context;

use bytes::{Buf, BytesMut};
use hive_proto::error::Code;
use hive_proto::fragment::Assembler;
use hive_proto::{FrameRef, Op, PREFIX_LEN, Prefix, WireError};

use super::session::Session;
use crate::actors::directory::{Arriving, Directory};
use crate::core::time::Tick;

/// Beyond this the beginning of a frame grows in a buffer of its own instead of being copied to each read, bytes.
const OWN_BUFFER_BYTES: usize = 64 * 1024;
/// The beginning of a frame is kept up to this, whatever others hold: short frames always get through, bytes.
const ALWAYS_BYTES: usize = 1024;
/// When to send again what found no room, ms.
const RETRY_MS: u32 = 100;

/// See the module.
#[derive(Debug)]
pub(super) struct Partial {
    /// The beginning of a frame.
    buf: BytesMut,
    /// What came behind the hello: nobody has looked at it yet.
    fresh: bool,
    /// Bytes to come of a frame that was refused.
    skip: usize,
    assembler: Option<Box<Assembler>>,
    arriving: Arriving,
}

impl Partial {
    pub(super) fn new(directory: &Arc<Directory>, rest: &[u8]) -> Self {
        Self {
            buf: BytesMut::from(rest),
            fresh: !rest.is_empty(),
            skip: 0,
            assembler: None,
            arriving: Arriving::new(directory),
        }
    }

    /// What came behind the hello, once.
    pub(super) fn take_fresh(&mut self) -> Option<BytesMut> {
        std::mem::take(&mut self.fresh).then(|| std::mem::take(&mut self.buf))
    }

    /// The beginning of a frame that grows in a buffer of its own, which has room.
    pub(super) fn take_own(&mut self) -> Option<BytesMut> {
        (self.buf.len() >= OWN_BUFFER_BYTES).then(|| std::mem::take(&mut self.buf))
    }

    /// The beginning of a frame, to be copied before the next read.
    pub(super) fn take_short(&mut self) -> BytesMut {
        std::mem::take(&mut self.buf)
    }

    /// Passes over what belongs to a refused frame.
    pub(super) fn pass_over(&mut self, buf: &mut BytesMut) {
        let n = self.skip.min(buf.len());
        self.skip -= n;
        buf.advance(n);
    }

    /// Keeps the beginning of a frame, or tells why not: the frame is refused then.
    pub(super) fn keep(&mut self, rest: &mut BytesMut) -> Result<(), (u32, WireError)> {
        let mut capacity = rest.len();
        if let Some(prefix) = rest.first_chunk::<PREFIX_LEN>().filter(|_| capacity > ALWAYS_BYTES) {
            let prefix = Prefix::read(prefix);
            if rest.len() >= OWN_BUFFER_BYTES {
                // Grows by what has come already, not by what is announced.
                capacity = (2 * rest.len()).min(PREFIX_LEN + prefix.length as usize);
            }
            if self.parts() + capacity > self.arriving.room() {
                return Err(self.refuse(prefix, rest));
            }
        }
        // Copied: the read buffer belongs to the thread, and a slice of it would keep all of it alive.
        self.buf = BytesMut::with_capacity(capacity);
        self.buf.extend_from_slice(rest);
        rest.clear();
        self.count();
        Ok(())
    }

    /// Keeps what has grown in a buffer of its own, as long as that has room.
    pub(super) fn keep_own(&mut self, own: &mut BytesMut) -> Result<(), (u32, WireError)> {
        if own.len() < OWN_BUFFER_BYTES || own.len() == own.capacity() {
            return self.keep(own);
        }
        self.buf = std::mem::take(own);
        Ok(())
    }

    fn refuse(&mut self, prefix: Prefix, rest: &mut BytesMut) -> (u32, WireError) {
        let mut id = prefix.id;
        if prefix.op == Op::Fragment as u8 {
            let piece = &rest[(PREFIX_LEN + usize::from(prefix.header_len)).min(rest.len())..];
            id = self.assembler.get_or_insert_default().refuse(prefix, piece);
        }
        self.skip = PREFIX_LEN + prefix.length as usize - rest.len();
        rest.clear();
        self.count();
        let text = "frames and messages that have not arrived whole fill the memory for them";
        (id, WireError::new(Code::Overloaded, text).retry_after(RETRY_MS))
    }

    fn parts(&self) -> usize {
        self.assembler.as_ref().map_or(0, |a| a.bytes())
    }

    fn count(&mut self) {
        self.arriving.set(self.parts() + self.buf.capacity());
    }

    /// Takes a fragment; gives the whole message with the last one.
    fn fragment(
        &mut self,
        bytes_max: usize,
        frame: FrameRef<'_>,
    ) -> Result<Option<BytesMut>, (u32, WireError)> {
        let room = self.arriving.room();
        let assembler = self.assembler.get_or_insert_default();
        assembler.set_message_bytes_max(bytes_max.min(room));
        let pushed = assembler.push(frame);
        if assembler.is_idle() {
            self.assembler = None;
        }
        self.count();
        match pushed {
            Ok(whole) => Ok(whole.map(|w| w.try_into_mut().unwrap_or_else(|b| BytesMut::from(&b[..])))),
            Err((id, e)) if room < bytes_max && e.code == Code::MessageTooLarge as u16 => {
                let text = "frames and messages that have not arrived whole fill the memory for them";
                Err((id, WireError::new(Code::Overloaded, text).retry_after(RETRY_MS)))
            }
            Err(e) => Err(e),
        }
    }
}

impl Session {
    pub(super) fn fragment(
        &mut self,
        cx: &Context<'_>,
        now: Tick,
        frame: FrameRef<'_>,
    ) -> Result<(), WireError> {
        let bytes_max = self.shard.terms.message_bytes_max as usize + PREFIX_LEN;
        match self.partial.fragment(bytes_max, frame) {
            Ok(None) => Ok(()),
            Ok(Some(message)) if message[5] == Op::Fragment as u8 => {
                Err(WireError::new(Code::MalformedFrame, "a fragment inside a fragment"))
            }
            Ok(Some(message)) => {
                let class = self.classify(&message);
                self.dispatch(cx, now, class, 1, message);
                Ok(())
            }
            Err((id, e)) => {
                self.answer_error(id, &e);
                Ok(())
            }
        }
    }
}
