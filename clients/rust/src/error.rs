//! Why a call failed, and what is known about what it asked for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hive_proto::{Code, Outcome, WireError};

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused, or this side did so with the code that the server would have used.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// No server could be reached; the last one tried.
    #[error("cannot reach {server}: {source}")]
    Unreachable {
        /// `host:port`.
        server: String,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// The connection broke before the answer came.
    #[error("connection lost: {reason}")]
    Disconnected {
        /// For people.
        reason: String,
        /// Whether any of the request had left this process.
        sent: bool,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The client was closed, or all that could be answered is gone.
    #[error("the client is closed")]
    Closed,
    /// The server sent what may not be.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

impl Error {
    /// The stable code, where the error has one that this version knows.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(e) => e.code(),
            _ => None,
        }
    }

    /// Whether the same call may succeed later, unchanged.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(e) => e.retryable,
            Self::Unreachable { .. } | Self::Disconnected { .. } | Self::Timeout(_) => true,
            Self::Closed | Self::Protocol(_) => false,
        }
    }

    /// When to try again, where the server said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(e) => e.retry_after_ms.map(|ms| Duration::from_millis(ms.into())),
            _ => None,
        }
    }

    /// Whether the operation certainly did not happen, certainly did, or may have.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(e) => e.outcome,
            Self::Unreachable { .. } | Self::Disconnected { sent: false, .. } => Outcome::NotDone,
            Self::Disconnected { .. } | Self::Timeout(_) | Self::Closed | Self::Protocol(_) => {
                Outcome::Unknown
            }
        }
    }

    /// Whether the server is out of reach, as opposed to unwilling.
    pub fn is_connection(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Disconnected { .. } | Self::Closed)
    }

    pub(crate) fn local(code: Code, text: impl Into<String>) -> Self {
        Self::Refused(WireError::new(code, text))
    }

    pub(crate) fn unreachable(server: &str, source: io::Error) -> Self {
        Self::Unreachable { server: server.to_owned(), source: Arc::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_says_whether_it_happened() {
        let lost = |sent| Error::Disconnected { reason: "reset".into(), sent };
        assert_eq!((lost(true).outcome(), lost(false).outcome()), (Outcome::Unknown, Outcome::NotDone));
        assert!(lost(true).retryable() && !Error::Closed.retryable());
        let refused = Error::from(WireError::new(Code::MemoryFull, "full").retry_after(20));
        assert_eq!((refused.code(), refused.outcome()), (Some(Code::MemoryFull), Outcome::NotDone));
        assert_eq!(refused.retry_after(), Some(Duration::from_millis(20)));
    }
}
