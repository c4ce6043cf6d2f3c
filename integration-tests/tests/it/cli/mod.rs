//! The command line as scripts use it: streams, JSON keys, exit codes, signals.

mod dead;
mod journal;
mod messages;
mod operate;
mod outage;
mod run;
mod start;
mod submit;
mod work;

pub(crate) use run::{Done, Run, Server as DevServer, hive, keys};
