//! The wire protocol of Hive, free of IO: `PROTOCOL.md` beside this crate is its text, `vectors/` its golden files.
//!
//! Layers, from the byte up: [`frame`] (the 16-byte prefix, operations, flags), [`codec`] (cutting frames out of a
//! stream), [`fragment`] (messages larger than a frame), [`items`] (the fixed layouts inside batch frames),
//! [`messages`] (MessagePack headers) and [`error`] (stable codes).

pub mod codec;
pub mod error;
pub mod fragment;
pub mod frame;
pub mod ids;
pub mod items;
pub mod messages;
pub mod names;

pub use codec::{Frame, FrameCodec, Frames};
pub use error::{Code, Outcome, WireError};
pub use frame::{Flags, FrameBuilder, FrameRef, Op, PREFIX_LEN, Prefix};
pub use ids::{Lease, Partition, SessionId, TaskId, TaskState, Trace};
