//! Stable error codes and the error that travels in a frame.

use serde::{Deserialize, Serialize};

/// Longest text of an error, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// What became of the operation that an error answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It certainly did not happen.
    NotDone,
    /// It certainly happened.
    Done,
    /// It may have happened.
    Unknown,
}

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal, $retryable:literal, $help:literal;)*) => {
        /// Stable code of an error. `hive explain CODE` prints the help.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u16)]
        pub enum Code { $(#[doc = $help] $name = $value,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// The code of a wire value.
            pub fn from_u16(v: u16) -> Option<Self> {
                match v { $($value => Some(Self::$name),)* _ => None }
            }
            /// The code's name, snake case.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
            /// Whether the same operation may succeed later, unchanged.
            pub fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }
            /// What it means and what to do.
            pub fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }
        }
    };
}

codes! {
    BadMagic = 100, "bad_magic", false, "The connection did not begin with the bytes HIVE. Check that the client speaks Hive's protocol and that the address is the agents' port, not the HTTP port.";
    UnsupportedVersion = 101, "unsupported_version", false, "Client and server have no protocol version in common. Upgrade the older one.";
    UnknownOp = 102, "unknown_op", false, "The operation is unknown to this server or may not be sent by a client. Upgrade the server, or check the client.";
    FrameTooLarge = 103, "frame_too_large", false, "A frame is longer than frame_bytes_max (4 KiB before login). Send larger messages as fragments.";
    MalformedFrame = 104, "malformed_frame", false, "The lengths or counts inside a frame do not add up. The client has a bug; the connection is closed if the stream cannot be trusted any more.";
    MalformedHeader = 105, "malformed_header", false, "The header of a frame could not be decoded; the text names the field.";
    BadFlags = 106, "bad_flags", false, "A flag stands on an operation that does not know it.";
    LoginRequired = 107, "login_required", false, "The first frame must be Hello.";
    LoginTimeout = 108, "login_timeout", true, "The client did not log in in time (login_ms). Connect again.";
    MessageTooLarge = 109, "message_too_large", false, "A message is longer than message_bytes_max. Store the data elsewhere and send a reference, or raise the limit.";
    TooManyFragments = 110, "too_many_fragments", true, "More fragmented messages at once than a connection may have. Finish some first.";
    HeartbeatTimeout = 111, "heartbeat_timeout", true, "Nothing was heard from the client for dead_ms. Connect again; leases have been put back.";
    AlreadyLoggedIn = 112, "already_logged_in", false, "Hello may be sent once per connection.";

    Unauthorized = 200, "unauthorized", false, "The token is missing or wrong. Give --token or HIVE_TOKEN; a server started with --dev prints its token.";
    AgentIdInUse = 201, "agent_id_in_use", true, "Another connection has logged in with this agent id. Choose another, or wait until the old connection is found dead.";
    InvalidAgentId = 202, "invalid_agent_id", false, "An agent id is 1 to 128 characters of A-Z a-z 0-9 - _ . : / @.";
    TooManyConnections = 203, "too_many_connections", true, "The server has connections_max connections. Try again later, or raise the limit.";
    InvalidLabel = 204, "invalid_label", false, "Labels are 1 to 64 characters of A-Z a-z 0-9 - _ . : / =, at most 32 of them.";

    UnknownQueue = 300, "unknown_queue", false, "The queue does not exist and queues_auto_create is false. Declare it in the configuration.";
    InvalidQueueName = 301, "invalid_queue_name", false, "A queue name is 1 to 128 characters of A-Z a-z 0-9 - _ . : /.";
    TooManyQueues = 302, "too_many_queues", false, "The server has queues_max queues.";
    UnknownTask = 303, "unknown_task", false, "No task with this id is kept here: never submitted, or its result is no longer kept.";
    StaleLease = 304, "stale_lease", false, "The lease is no longer valid: it expired, the task was given to another worker, or the dispatcher restarted. Drop the result; the task is in other hands.";
    NotOwner = 305, "not_owner", false, "The lease belongs to another session.";
    AlreadySettled = 306, "already_settled", false, "The task has its outcome already.";
    CreditOverflow = 307, "credit_overflow", false, "More credit than the server grants a consumer (credit_tasks_max, credit_bytes_max).";
    UnknownConsumer = 308, "unknown_consumer", false, "No open consumer has this id.";
    DuplicateConsumer = 309, "duplicate_consumer", false, "A consumer with this id is open already.";
    InvalidOptions = 310, "invalid_options", false, "A task option is unknown or out of range; the text names it.";
    TooManyConsumers = 311, "too_many_consumers", false, "The connection has consumers_max consumers.";
    TooManyWaits = 312, "too_many_waits", true, "The server has waits_max waits under way.";
    TooManyLabels = 313, "too_many_labels", false, "The queue has seen more distinct label sets than it may have (256).";
    NotDead = 314, "not_dead", false, "The task is no dead letter: it waits, runs, or has another outcome.";

    InvalidSubject = 400, "invalid_subject", false, "A subject is tokens joined by dots, at most 255 bytes; * and > may stand only in subscriptions, as whole tokens, > last.";
    NoResponders = 401, "no_responders", true, "Nobody has subscribed to the subject of the request.";
    UnknownAgent = 402, "unknown_agent", true, "No agent with this id is connected.";
    DuplicateSubscription = 403, "duplicate_subscription", false, "A subscription with this id is open already.";
    UnknownSubscription = 404, "unknown_subscription", false, "No open subscription has this id.";
    RequestTimeout = 405, "request_timeout", true, "The responder did not answer in time.";
    ResponderGone = 406, "responder_gone", true, "The responder's connection ended before it answered.";
    TooManySubscriptions = 407, "too_many_subscriptions", false, "The connection has subscriptions_max subscriptions.";
    UnknownReply = 408, "unknown_reply", false, "The reply token is not, or no longer, known: answered already, timed out, or made up.";
    ReceiverSlow = 409, "receiver_slow", true, "The receiver does not read; its buffer is full and the message was not delivered.";
    TooManyRequests = 410, "too_many_requests", true, "The server has requests_max requests under way.";

    Overloaded = 500, "overloaded", true, "The server has more work than it can take. Try again after retry_after_ms.";
    MemoryFull = 501, "memory_full", true, "Tasks, workers and subscriptions fill the server's memory limit (memory_bytes_max). Add workers, or try again after retry_after_ms.";
    Draining = 502, "draining", true, "The server is shutting down. Connect to another.";
    Restarted = 503, "restarted", true, "The part of the server that handled the request restarted. Send it again.";
    Internal = 504, "internal", true, "An error that should not be. The server's log says more.";
    ProducerCredit = 505, "producer_credit", true, "More unacknowledged tasks than the server granted (credit_tasks, credit_bytes in Welcome). Wait for acknowledgements.";
    DiskFull = 506, "disk_full", true, "The disk of the journal is full: queues that survive a restart take no tasks. Free space; running tasks can still be completed.";
    JournalFailed = 507, "journal_failed", true, "The journal cannot be written; the server stops, because it could not keep what it acknowledges. The server's log says why.";
}

/// The error that an `Error` frame carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{text} ({code})")]
pub struct WireError {
    /// Stable code, see [`Code`].
    pub code: u16,
    /// Whether the same operation may succeed later, unchanged.
    pub retryable: bool,
    /// What became of the operation.
    pub outcome: Outcome,
    /// When to try again, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
    /// What happened and what to do, for people.
    pub text: String,
}

impl WireError {
    /// An error of an operation that certainly did not happen.
    ///
    /// The text may quote what a client sent, so it is cut: an error must always fit into a header.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Self {
            code: code as u16,
            retryable: code.retryable(),
            outcome: Outcome::NotDone,
            retry_after_ms: None,
            text,
        }
    }

    /// Adds when to try again.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Says that the operation may have happened.
    #[must_use]
    pub fn maybe_done(mut self) -> Self {
        self.outcome = Outcome::Unknown;
        self
    }

    /// The code, if this version knows it.
    pub fn code(&self) -> Option<Code> {
        Code::from_u16(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_explained() {
        for c in Code::ALL {
            assert_eq!(Code::from_u16(*c as u16), Some(*c));
            assert!(c.help().ends_with('.') && !c.name().contains(' '));
        }
        assert_eq!(Code::from_u16(0), None);
    }

    #[test]
    fn an_error_says_all() {
        let e = WireError::new(Code::MemoryFull, "full").retry_after(20).maybe_done();
        assert_eq!((e.retryable, e.outcome, e.retry_after_ms), (true, Outcome::Unknown, Some(20)));
        assert_eq!((e.code(), e.to_string()), (Some(Code::MemoryFull), "full (501)".into()));
    }
}
