//! The frame: a 16-byte prefix, a header of at most 16 KiB, a payload.
//!
//! ```text
//!  0        4        5        6        8        12           14       16
//!  +--------+--------+--------+--------+--------+------------+--------+--------+---------+
//!  | length | version|   op   | flags  |   id   | header_len | count  | header | payload |
//!  |  u32   |   u8   |   u8   |  u16   |  u32   |    u16     |  u16   |        |         |
//!  +--------+--------+--------+--------+--------+------------+--------+--------+---------+
//!  little endian; length = header + payload (what follows the prefix)
//! ```

use crate::error::{Code, WireError};
use crate::ids::Trace;

/// First bytes of a connection, sent by the client before its first frame.
pub const MAGIC: [u8; 4] = *b"HIVE";
/// Major version, in every frame.
pub const VERSION: u8 = 1;
/// Length of the fixed prefix, bytes.
pub const PREFIX_LEN: usize = 16;
/// Longest header, bytes.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Longest frame (header and payload) before login, bytes.
pub const LOGIN_FRAME_BYTES_MAX: usize = 4 * 1024;
/// Default for the longest frame (header and payload) after login, bytes; the server's value is in `Welcome`.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $flags:expr;)*) => {
        /// What a frame asks or tells. Below 0x80 from client to server, above from server to client; 0x01-0x0f both ways.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum Op { $($(#[$doc])* $name = $value,)* }

        impl Op {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The operation of a wire value.
            #[inline]
            pub fn from_u8(v: u8) -> Option<Self> {
                match v { $($value => Some(Self::$name),)* _ => None }
            }

            /// The flags that may stand on a frame of this operation.
            #[inline]
            pub fn allowed_flags(self) -> u16 {
                match self { $(Self::$name => $flags,)* }
            }
        }
    };
}

const T: u16 = Flags::TRACE;

ops! {
    /// Asks for a `Pong`; the payload (up to 64 bytes) comes back.
    Ping = 0x01, 0;
    /// Answers a `Ping`.
    Pong = 0x02, 0;
    /// Part of a message larger than a frame; see [`crate::fragment`].
    Fragment = 0x03, Flags::LAST;
    /// Names, authenticates and describes the client; header: [`crate::messages::Hello`].
    Hello = 0x08, 0;
    /// Says that the client leaves on purpose.
    Goodbye = 0x09, 0;

    /// Tasks for a queue; header: queue name; payload: `count` submit items.
    Submit = 0x10, T | Flags::WATCH;
    /// Opens a consumer of a queue; header: [`crate::messages::Work`]; the id names the consumer.
    Work = 0x11, 0;
    /// Closes a consumer; its leases go on. The id names the consumer.
    StopWork = 0x12, 0;
    /// Sets a consumer's credit; header: tasks u32, bytes u64. The id names the consumer.
    Credit = 0x13, 0;
    /// Results; payload: `count` complete items, all leased by one consumer.
    Complete = 0x14, T;
    /// Failures; payload: `count` fail items.
    Fail = 0x15, T;
    /// Gives tasks back without counting the attempt; payload: `count` release items.
    Release = 0x16, 0;
    /// Extends leases; payload: `count` leases.
    Renew = 0x17, 0;
    /// Tells how far a task is; payload: `count` progress items.
    Progress = 0x18, 0;
    /// Cancels tasks; payload: `count` task ids.
    Cancel = 0x19, 0;
    /// Asks for the state of tasks; payload: `count` task ids.
    Query = 0x1a, 0;
    /// Waits for tasks; header: mode u8 (0 all, 1 any), timeout u32 ms; payload: `count` task ids.
    Wait = 0x1b, 0;
    /// Lists dead letters of a queue, newest first; header: limit u32, then queue name.
    ListDead = 0x1c, 0;
    /// Gives dead letters all their attempts again; payload: `count` task ids.
    Redrive = 0x1d, 0;
    /// Forgets dead letters; payload: `count` task ids.
    Purge = 0x1e, 0;

    /// Publishes; header: subject.
    Publish = 0x20, T | Flags::ACK;
    /// Opens a subscription; header: [`crate::messages::Subscribe`]; the id names it.
    Subscribe = 0x21, 0;
    /// Closes a subscription; the id names it.
    Unsubscribe = 0x22, 0;
    /// Asks one responder; header: timeout u32 ms, zero u32, subject.
    Request = 0x23, T;
    /// Answers a `Requested`; header: reply token u64.
    Reply = 0x24, T;
    /// A message to one agent; header: agent id.
    Direct = 0x25, T | Flags::ACK;
    /// A message to all other agents; no header.
    Broadcast = 0x26, T | Flags::ACK;

    /// Answers `Hello`; header: [`crate::messages::Welcome`].
    Welcome = 0x80, 0;
    /// Done; count: how many it reached, where that makes sense (at most 65,535).
    Ok = 0x81, 0;
    /// Refused or failed; header: [`crate::error::WireError`].
    Error = 0x82, 0;
    /// The server wants the client to leave; header: [`crate::messages::Drain`].
    Drain = 0x83, 0;

    /// Answers `Submit`; header: first task id u64, durability u8; payload: refused items.
    Accepted = 0x90, 0;
    /// Tasks for a consumer (the id); payload: `count` assign items.
    Assign = 0x91, 0;
    /// Outcomes of watched tasks; payload: `count` task items.
    Result = 0x92, 0;
    /// Answers `Complete`, `Fail`, `Release`, `Renew`, `Progress`, `Cancel`, `Redrive`, `Purge`; count: accepted; payload: refused
    /// items.
    Settled = 0x93, 0;
    /// Progress of watched tasks; payload: `count` progress event items.
    Progressed = 0x94, 0;
    /// Leases that are void; payload: `count` revoked items.
    Revoked = 0x95, 0;
    /// Answers `Query`, `Wait`, `ListDead`; payload: `count` task items.
    Tasks = 0x96, 0;
    /// A dispatcher lost its memory queues; header: [`crate::messages::TasksLost`].
    TasksLost = 0x97, 0;
    /// Results that could not be pushed because the client did not read; count in the header, u64.
    ResultsMissed = 0x98, 0;

    /// A message for a subscription (the id); header: subject.
    Deliver = 0xa0, T;
    /// A request for a subscription (the id); header: reply token u64, subject.
    Requested = 0xa1, T;
    /// Answers `Request`; header: 8 bytes to ignore.
    Response = 0xa2, T;
    /// A message from another agent; header: sender's agent id.
    Message = 0xa3, T | Flags::BROADCAST;
    /// Messages that a slow subscription (the id) lost since the last such frame; header: count u64.
    MessagesLost = 0xa4, 0;
}

impl Op {
    /// Whether a client may send it.
    #[inline]
    pub fn from_client(self) -> bool {
        (self as u8) < 0x80
    }
}

/// Bits that qualify an operation. Which may stand where: [`Op::allowed_flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// The header begins with a trace context of 25 bytes.
    pub const TRACE: u16 = 1;
    /// The last fragment of a message.
    pub const LAST: u16 = 1 << 1;
    /// The submitter wants progress and outcomes of these tasks pushed.
    pub const WATCH: u16 = 1 << 2;
    /// The publisher wants to know how many it reached.
    pub const ACK: u16 = 1 << 3;
    /// The message went to every agent.
    pub const BROADCAST: u16 = 1 << 4;

    /// Whether all of `bits` are set.
    #[inline]
    pub fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

/// The fixed prefix of a frame. `op` is raw: an unknown operation is answered, not a reason to lose the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Bytes that follow the prefix.
    pub length: u32,
    /// Major version.
    pub version: u8,
    /// Operation, see [`Op`].
    pub op: u8,
    /// Qualifiers, see [`Flags`].
    pub flags: Flags,
    /// Request, consumer or subscription, chosen by the client; 0 where no answer is wanted.
    pub id: u32,
    /// Bytes of the header.
    pub header_len: u16,
    /// Items in the payload.
    pub count: u16,
}

impl Prefix {
    /// Reads a prefix; meaning is not checked.
    #[inline]
    pub fn read(b: &[u8; PREFIX_LEN]) -> Self {
        Self {
            length: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            version: b[4],
            op: b[5],
            flags: Flags(u16::from_le_bytes([b[6], b[7]])),
            id: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            header_len: u16::from_le_bytes([b[12], b[13]]),
            count: u16::from_le_bytes([b[14], b[15]]),
        }
    }

    /// The prefix as it stands on the wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; PREFIX_LEN] {
        let mut b = [0; PREFIX_LEN];
        b[0..4].copy_from_slice(&self.length.to_le_bytes());
        b[4] = self.version;
        b[5] = self.op;
        b[6..8].copy_from_slice(&self.flags.0.to_le_bytes());
        b[8..12].copy_from_slice(&self.id.to_le_bytes());
        b[12..14].copy_from_slice(&self.header_len.to_le_bytes());
        b[14..16].copy_from_slice(&self.count.to_le_bytes());
        b
    }
}

/// Rewrites operation and id of a frame in place; `frame` starts at a prefix.
///
/// How a publish becomes a delivery without a copy.
#[inline]
pub fn patch(frame: &mut [u8], op: Op, id: u32) {
    frame[5] = op as u8;
    frame[8..12].copy_from_slice(&id.to_le_bytes());
}

/// A complete frame inside a buffer.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef<'a> {
    /// The prefix.
    pub prefix: Prefix,
    /// The header, trace context included.
    pub header: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> FrameRef<'a> {
    /// Length of the frame, prefix included.
    #[inline]
    pub fn bytes(&self) -> usize {
        PREFIX_LEN + self.header.len() + self.payload.len()
    }

    /// Splits a complete frame (prefix included). `None` if the lengths do not add up.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (prefix, body) = frame.split_first_chunk::<PREFIX_LEN>()?;
        let prefix = Prefix::read(prefix);
        if body.len() != prefix.length as usize {
            return None;
        }
        let (header, payload) = body.split_at_checked(usize::from(prefix.header_len))?;
        Some(Self { prefix, header, payload })
    }

    /// The operation, checked with its flags.
    ///
    /// # Errors
    /// `unknown_op`, `bad_flags`.
    #[inline]
    pub fn op(&self) -> Result<Op, WireError> {
        let op = Op::from_u8(self.prefix.op).ok_or_else(|| {
            WireError::new(
                Code::UnknownOp,
                format!("operation {:#04x} is not known to this version", self.prefix.op),
            )
        })?;
        let unknown = self.prefix.flags.0 & !op.allowed_flags();
        if unknown != 0 {
            return Err(WireError::new(
                Code::BadFlags,
                format!("flags {unknown:#06x} may not stand on {op:?}"),
            ));
        }
        Ok(op)
    }

    /// Trace context (if flagged) and the rest of the header.
    ///
    /// # Errors
    /// `malformed_header` if the flag stands and the header is shorter than a trace context.
    #[inline]
    pub fn traced_header(&self) -> Result<(Option<Trace>, &'a [u8]), WireError> {
        if !self.prefix.flags.has(Flags::TRACE) {
            return Ok((None, self.header));
        }
        match self.header.split_first_chunk::<{ Trace::LEN }>() {
            Some((t, rest)) => Ok((Some(Trace(*t)), rest)),
            None => {
                Err(WireError::new(Code::MalformedHeader, "the trace flag needs 25 bytes of trace context"))
            }
        }
    }
}

/// Writes one frame to the end of a buffer; the length is set when it is finished.
#[derive(Debug)]
pub struct FrameBuilder {
    start: usize,
}

impl FrameBuilder {
    /// Starts a frame: the prefix and the header, given in parts.
    ///
    /// # Panics
    /// If the header is longer than [`HEADER_BYTES_MAX`].
    #[inline]
    pub fn begin(out: &mut Vec<u8>, op: Op, flags: u16, id: u32, header: &[&[u8]]) -> Self {
        let start = out.len();
        let header_len: usize = header.iter().map(|h| h.len()).sum();
        assert!(header_len <= HEADER_BYTES_MAX, "header of {header_len} bytes");
        let prefix = Prefix {
            length: 0,
            version: VERSION,
            op: op as u8,
            flags: Flags(flags),
            id,
            header_len: header_len as u16,
            count: 0,
        };
        out.extend_from_slice(&prefix.to_bytes());
        for part in header {
            out.extend_from_slice(part);
        }
        Self { start }
    }

    /// Finishes the frame with the number of its items. Everything appended since `begin` is its payload.
    #[inline]
    pub fn finish(self, out: &mut [u8], count: u16) {
        let length = (out.len() - self.start - PREFIX_LEN) as u32;
        out[self.start..self.start + 4].copy_from_slice(&length.to_le_bytes());
        out[self.start + 14..self.start + 16].copy_from_slice(&count.to_le_bytes());
    }

    /// Where the frame starts in its buffer.
    pub fn start(&self) -> usize {
        self.start
    }
}

/// Appends a whole frame.
///
/// # Panics
/// If the header is longer than [`HEADER_BYTES_MAX`].
pub fn write_frame(
    out: &mut Vec<u8>,
    op: Op,
    flags: u16,
    id: u32,
    count: u16,
    header: &[&[u8]],
    payload: &[u8],
) {
    let frame = FrameBuilder::begin(out, op, flags, id, header);
    out.extend_from_slice(payload);
    frame.finish(out, count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_frame_reads_back() {
        let mut out = vec![9];
        write_frame(&mut out, Op::Publish, Flags::TRACE, 7, 3, &[&[1; 25], b"a.b"], b"hello");
        let f = FrameRef::parse(&out[1..]).expect("whole");
        assert_eq!(f.op(), Ok(Op::Publish));
        assert_eq!(f.traced_header().expect("trace"), (Some(Trace([1; 25])), &b"a.b"[..]));
        assert_eq!((f.payload, f.prefix.id, f.prefix.count), (&b"hello"[..], 7, 3));
        assert_eq!(Prefix::read(&f.prefix.to_bytes()), f.prefix);
        assert!(FrameRef::parse(&out).is_none());
    }

    #[test]
    fn unknown_operations_and_flags_are_named() {
        let mut out = Vec::new();
        write_frame(&mut out, Op::Publish, Flags::LAST, 0, 0, &[b"a"], b"");
        assert_eq!(FrameRef::parse(&out).expect("whole").op().expect_err("flag").code, Code::BadFlags as u16);
        out[5] = 0x7f;
        assert_eq!(FrameRef::parse(&out).expect("whole").op().expect_err("op").code, Code::UnknownOp as u16);
        out[5] = Op::Publish as u8;
        out[6..8].copy_from_slice(&Flags::TRACE.to_le_bytes());
        let err = FrameRef::parse(&out).expect("whole").traced_header().expect_err("short");
        assert_eq!(err.code, Code::MalformedHeader as u16);
    }

    #[test]
    fn patch_turns_a_publish_into_a_delivery() {
        let mut out = Vec::new();
        write_frame(&mut out, Op::Publish, 0, 0, 0, &[b"a"], b"x");
        patch(&mut out, Op::Deliver, 42);
        let f = FrameRef::parse(&out).expect("whole");
        assert_eq!((f.op(), f.prefix.id, f.header, f.payload), (Ok(Op::Deliver), 42, &b"a"[..], &b"x"[..]));
    }

    #[test]
    fn ops_round_trip() {
        for op in Op::ALL {
            assert_eq!(Op::from_u8(*op as u8), Some(*op));
        }
        assert!(Op::Publish.from_client() && !Op::Deliver.from_client());
    }
}
