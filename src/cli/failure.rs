//! How a command fails: what, why, what to do next, and the exit code.

use std::fmt::Display;
use std::process::ExitCode;

use hive_client::{Code, Error};

/// Exit code where the server is out of reach (EX_UNAVAILABLE).
pub(crate) const UNREACHABLE: u8 = 69;
/// Exit code for a bad configuration (EX_CONFIG).
pub(crate) const CONFIG: u8 = 78;

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// Why a command ends with another code than 0; printed as up to three lines on standard error.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: String,
    next: String,
    code: u8,
}

impl Failure {
    /// A failure with code 1.
    pub(crate) fn new(what: impl Into<String>, why: impl Display) -> Self {
        Self { what: what.into(), why: why.to_string(), next: String::new(), code: 1 }
    }

    /// Adds what to do next.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// Sets another exit code.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Nobody reads the output any more: as good a reason to end as any.
    pub(crate) fn silent() -> Self {
        Self { what: String::new(), why: String::new(), next: String::new(), code: 0 }
    }

    /// The server at `address` does not answer.
    pub(crate) fn unreachable(address: &str, why: impl Display) -> Self {
        Self::new(format!("no answer from the server at {address}"), why)
            .next("start one with `hive start --dev`, or name another with --server/--http or HIVE_SERVER/HIVE_HTTP")
            .code(UNREACHABLE)
    }

    /// A client's error while doing `what` at `server`.
    pub(crate) fn client(what: &str, server: &str, e: &Error) -> Self {
        if e.is_connection() {
            let why = match e {
                Error::Unreachable { source, .. } => source.to_string(),
                e => e.to_string(),
            };
            return Self::unreachable(server, why);
        }
        let failure = Self::new(format!("cannot {what}"), e);
        match e.code() {
            Some(Code::Unauthorized) => failure.next("give the server's token with --token or HIVE_TOKEN"),
            Some(code) => failure.next(format!("`hive explain {}` tells more", code.name())),
            None => failure,
        }
    }

    /// Whether the server is out of reach.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.code == UNREACHABLE
    }

    /// Prints what happened; gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        for (label, text) in [("error", &self.what), ("  why", &self.why), (" next", &self.next)] {
            if !text.is_empty() {
                eprintln!("{label}: {text}");
            }
        }
        ExitCode::from(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn exit_codes_follow_the_kind_of_failure() {
        let refused = |code: Code| Error::Refused(hive_proto::WireError::new(code, "text"));
        let code = |e: &Error| Failure::client("x", "s", e).code;
        assert_eq!(code(&Error::Disconnected { reason: "reset".into(), sent: true }), UNREACHABLE);
        assert_eq!((code(&refused(Code::StaleLease)), code(&Error::Timeout(Duration::ZERO))), (1, 1));
        assert!(Failure::client("x", "s", &refused(Code::Unauthorized)).next.contains("HIVE_TOKEN"));
        assert!(Failure::client("x", "s", &refused(Code::StaleLease)).next.contains("stale_lease"));
    }
}
