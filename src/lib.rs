//! Hive: a message bus that knows tasks, for fleets of agents. The map is in ARCHITECTURE.md.

pub mod actors;
pub mod app;
pub mod config;
pub mod core;
pub mod edge;
pub mod planted;
