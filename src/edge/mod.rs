//! The only place that does IO. Rooms do not use each other.

pub mod clock;
pub mod discovery;
pub mod host;
pub mod http;
pub mod journal;
pub mod tcp;
