//! Everything that needs a running server: each test starts the built binary, as users do, and speaks to it over TCP.
//!
//! The binary is `HIVE_BIN`, else `hive` beside the folder of this test's executable.

mod backlog;
mod backpressure;
mod bad_input;
mod bench;
mod cli;
mod demo;
mod disk;
mod durable;
mod harness;
mod history;
mod http;
mod hub;
mod sessions;
mod settings;
mod supervision;
mod tasks;
