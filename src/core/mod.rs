//! The pure core: state machines that are told the time and give back effects. No IO, no clock, no randomness, no logging.

pub mod hub;
pub mod tasks;
pub mod time;
