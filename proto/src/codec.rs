//! Cutting frames out of a byte stream.
//!
//! [`cut`] is the one place that decides whether bytes are a frame; the server's sessions call it on their read buffer
//! and pass whole chunks on, clients use [`FrameCodec`] under `tokio_util::codec`.

use bytes::{Buf, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::{Code, WireError};
use crate::frame::{FrameRef, HEADER_BYTES_MAX, PREFIX_LEN, Prefix, VERSION};

/// Length of the complete frame at the start of `buf` (prefix included), or `None` while bytes are missing.
/// The lengths are judged as soon as the prefix is there, so a length bomb is refused before anything is allocated.
///
/// # Errors
/// `unsupported_version`, `frame_too_large`, `malformed_frame`: the stream cannot be trusted after these.
#[inline]
pub fn cut(buf: &[u8], frame_bytes_max: usize) -> Result<Option<usize>, WireError> {
    let Some(prefix) = buf.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    let prefix = Prefix::read(prefix);
    let length = prefix.length as usize;
    if prefix.version != VERSION
        || length > frame_bytes_max
        || usize::from(prefix.header_len) > length.min(HEADER_BYTES_MAX)
    {
        return Err(explain(prefix, frame_bytes_max));
    }
    let total = PREFIX_LEN + length;
    Ok((buf.len() >= total).then_some(total))
}

#[cold]
fn explain(p: Prefix, frame_bytes_max: usize) -> WireError {
    if p.version != VERSION {
        return WireError::new(
            Code::UnsupportedVersion,
            format!("frame of protocol version {}; this side speaks {VERSION}", p.version),
        );
    }
    if p.length as usize > frame_bytes_max {
        return WireError::new(
            Code::FrameTooLarge,
            format!(
                "frame of {} bytes; the limit is {frame_bytes_max}: send larger messages as fragments",
                p.length
            ),
        );
    }
    WireError::new(
        Code::MalformedFrame,
        format!(
            "header of {} bytes in a frame of {}; a header has at most {HEADER_BYTES_MAX} and ends inside its frame",
            p.header_len, p.length
        ),
    )
}

/// The complete frames of a chunk that [`cut`] has judged.
#[derive(Clone, Debug)]
pub struct Frames<'a>(pub &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = FrameRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<FrameRef<'a>> {
        let prefix = Prefix::read(self.0.first_chunk::<PREFIX_LEN>()?);
        let (frame, rest) = self.0.split_at_checked(PREFIX_LEN + prefix.length as usize)?;
        self.0 = rest;
        FrameRef::parse(frame)
    }
}

/// An owned frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    bytes: Bytes,
}

impl Frame {
    /// Takes the bytes of one complete frame, prefix included. `None` if they are not one.
    pub fn new(bytes: Bytes) -> Option<Self> {
        FrameRef::parse(&bytes)?;
        Some(Self { bytes })
    }

    /// The frame, split.
    pub fn view(&self) -> FrameRef<'_> {
        FrameRef::parse(&self.bytes).expect("judged when it was made")
    }

    /// The payload, without a copy.
    pub fn payload(&self) -> Bytes {
        let at = PREFIX_LEN + usize::from(self.view().prefix.header_len);
        self.bytes.slice(at..)
    }

    /// The whole frame, prefix included.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Frames over a byte stream.
#[derive(Clone, Copy, Debug)]
pub struct FrameCodec {
    /// Longest frame accepted, bytes.
    pub frame_bytes_max: usize,
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        match cut(src, self.frame_bytes_max)? {
            Some(total) => {
                let bytes = src.split_to(total).freeze();
                Ok(Some(Frame { bytes }))
            }
            None => Ok(None),
        }
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> Result<(), CodecError> {
        if frame.bytes.len() - PREFIX_LEN > self.frame_bytes_max {
            return Err(explain(frame.view().prefix, self.frame_bytes_max).into());
        }
        dst.reserve(frame.bytes.remaining());
        dst.extend_from_slice(&frame.bytes);
        Ok(())
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The connection failed.
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    /// The bytes are not Hive's protocol.
    #[error(transparent)]
    Protocol(#[from] WireError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Op, write_frame};
    use proptest::prelude::*;

    fn code(r: Result<Option<usize>, WireError>) -> u16 {
        r.expect_err("refused").code
    }

    #[test]
    fn bombs_are_refused_with_the_prefix_alone() {
        let mut out = Vec::new();
        write_frame(&mut out, Op::Ping, 0, 1, 0, &[b"abc"], b"");
        assert_eq!(cut(&out[..15], 64), Ok(None));
        assert_eq!(cut(&out[..16], 64), Ok(None));
        assert_eq!(cut(&out, 64), Ok(Some(19)));
        let with = |at: usize, v: u8| {
            let mut b = out[..16].to_vec();
            b[at] = v;
            b
        };
        assert_eq!(code(cut(&with(3, 0xff), 64)), Code::FrameTooLarge as u16);
        assert_eq!(code(cut(&with(4, 2), 64)), Code::UnsupportedVersion as u16);
        assert_eq!(code(cut(&with(12, 200), 64)), Code::MalformedFrame as u16);
        let mut long = Vec::new();
        write_frame(&mut long, Op::Ping, 0, 1, 0, &[], &[0; 20_000]);
        long[12..14].copy_from_slice(&20_000_u16.to_le_bytes());
        assert_eq!(code(cut(&long, 1 << 20)), Code::MalformedFrame as u16);
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..10), step in 1_usize..50) {
            let mut out = Vec::new();
            for (i, p) in payloads.iter().enumerate() {
                write_frame(&mut out, Op::Publish, 0, i as u32, 0, &[b"s"], p);
            }
            let (mut codec, mut buf, mut got) = (FrameCodec { frame_bytes_max: 4096 }, BytesMut::new(), Vec::new());
            for piece in out.chunks(step) {
                buf.extend_from_slice(piece);
                while let Some(f) = codec.decode(&mut buf).expect("frames") {
                    got.push(f.payload().to_vec());
                }
            }
            prop_assert_eq!(&got, &payloads);
            prop_assert_eq!(Frames(&out).map(|f| f.payload.to_vec()).collect::<Vec<_>>(), payloads);
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = cut(&bytes, 100);
            let _ = Frames(&bytes).filter(|f| f.op().is_ok()).count();
        }
    }

    #[test]
    fn encoding_respects_the_limit() {
        let mut out = Vec::new();
        write_frame(&mut out, Op::Ping, 0, 1, 0, &[], &[1; 100]);
        let frame = Frame::new(out.clone().into()).expect("whole");
        let mut dst = BytesMut::new();
        assert!(FrameCodec { frame_bytes_max: 99 }.encode(frame.clone(), &mut dst).is_err());
        FrameCodec { frame_bytes_max: 100 }.encode(frame.clone(), &mut dst).expect("fits");
        assert_eq!(&dst[..], &out[..]);
        assert_eq!(frame.into_bytes().len(), 116);
        assert!(Frame::new(Bytes::from_static(b"short")).is_none());
    }
}
