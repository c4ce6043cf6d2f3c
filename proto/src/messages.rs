//! Headers in MessagePack (maps with string keys; an unknown key is an error that names it).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Code, WireError};

/// Protocol version 1.0: major in the upper byte, minor in the lower.
pub const PROTOCOL_1_0: u16 = 0x0100;
/// Deepest nesting of a header.
const DEPTH_MAX: usize = 16;

/// First frame of a client.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Lowest protocol version spoken.
    pub min: u16,
    /// Highest protocol version spoken.
    pub max: u16,
    /// Name and version of the client library, for people.
    pub client: String,
    /// Agent id; the server makes one up where it is empty.
    #[serde(default)]
    pub agent: String,
    /// Secret.
    #[serde(default)]
    pub token: String,
    /// Capabilities of the agent, offered by all its consumers.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// The server's answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// The protocol version agreed on: the highest that both speak.
    pub version: u16,
    /// Name and version of the server, for people.
    pub server: String,
    /// The agent id in force.
    pub agent: String,
    /// Session id.
    pub session: u64,
    /// Incarnation of the server.
    pub epoch: u32,
    /// How often each side sends something, at least a `Ping`, milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the other side is held for dead, milliseconds.
    pub dead_ms: u32,
    /// Longest frame (header and payload), bytes.
    pub frame_bytes_max: u32,
    /// Longest message, in fragments, bytes.
    pub message_bytes_max: u32,
    /// Tasks that may be submitted and not yet acknowledged.
    pub credit_tasks: u32,
    /// Bytes that may be submitted and not yet acknowledged.
    pub credit_bytes: u64,
    /// The server is about to stop.
    pub draining: bool,
}

/// Header of `Work`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Queue to work on.
    pub queue: String,
    /// Tasks that the consumer will hold at once.
    pub credit_tasks: u32,
    /// Payload bytes that the consumer will hold at once. One task is given even if it is larger.
    pub credit_bytes: u64,
    /// Capabilities in addition to those of the agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Header of `Subscribe`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// Subject, with `*` and `>`.
    pub subject: String,
    /// Queue group: each message goes to one member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Options of one task, in its submit item; an empty extension stands for the defaults.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskOptions {
    /// Labels that a worker must offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Attempts before the task is a dead letter, 1 to 1,000; the queue's policy where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Not before this many milliseconds from now, at most 2^31.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u32>,
    /// Trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<crate::Trace>,
}

/// Header of `Drain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Why, for people.
    pub reason: String,
    /// When the server closes the connection, milliseconds from now.
    pub grace_ms: u32,
    /// Where to go instead, `host:port`; empty where there is no other.
    #[serde(default)]
    pub servers: Vec<String>,
}

/// Header of `TasksLost`: every task without an outcome whose partition modulo `shards` is `shard` and whose sequence is
/// below `below` is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TasksLost {
    /// The dispatcher that restarted.
    pub shard: u16,
    /// Number of dispatchers.
    pub shards: u16,
    /// First sequence of the new incarnation.
    pub below: u64,
}

impl TasksLost {
    /// Whether a task without an outcome is among the lost.
    pub fn covers(&self, task: crate::TaskId) -> bool {
        task.partition().0 % self.shards.max(1) == self.shard && task.seq() < self.below
    }
}

/// Encodes a header.
///
/// # Panics
/// Never for the types of this module: their fields are plain.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("plain fields")
}

/// Decodes a header; all of it must be used.
///
/// # Errors
/// `malformed_header`, with the decoder's text, which names the field.
pub fn decode<T: DeserializeOwned>(header: &[u8]) -> Result<T, WireError> {
    let what = std::any::type_name::<T>().rsplit("::").next().unwrap_or("header");
    let mut rest = header;
    let mut d = rmp_serde::Deserializer::new(&mut rest);
    d.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut d)
        .map_err(|e| WireError::new(Code::MalformedHeader, format!("header {what}: {e}")))?;
    if !rest.is_empty() {
        let text = format!("header {what}: {} bytes too many", rest.len());
        return Err(WireError::new(Code::MalformedHeader, text));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_round_trip_and_name_what_is_wrong() {
        let hello = Hello { min: 256, max: 256, client: "c".into(), ..Hello::default() };
        let bytes = encode(&hello);
        assert_eq!(decode::<Hello>(&bytes), Ok(hello));
        assert!(decode::<Subscribe>(&bytes).expect_err("other").text.contains("unknown field `min`"));
        let long = [&bytes[..], &[0xc0]].concat();
        assert!(decode::<Hello>(&long).expect_err("rest").text.contains("1 bytes too many"));
        assert_eq!(decode::<Hello>(&bytes[..3]).expect_err("cut").code, Code::MalformedHeader as u16);
    }

    #[test]
    fn trace_contexts_are_25_bytes() {
        let options = TaskOptions { trace: Some(crate::Trace([7; 25])), ..TaskOptions::default() };
        let bytes = encode(&options);
        assert_eq!(bytes.len(), 1 + 6 + 2 + 25);
        assert_eq!(decode::<TaskOptions>(&bytes), Ok(options));
        let mut short = bytes;
        short[8] = 24;
        short.pop();
        assert!(decode::<TaskOptions>(&short).expect_err("short").text.contains("25 bytes"));
    }

    #[test]
    fn an_error_about_a_long_key_still_fits_into_a_header() {
        let key = "ä".repeat(8_000);
        let header = encode(&std::collections::BTreeMap::from([(key, 1)]));
        let error = decode::<Work>(&header).expect_err("unknown");
        assert!(error.text.contains("unknown field") && error.text.len() <= 1024);
        assert!(encode(&error).len() < crate::frame::HEADER_BYTES_MAX);
    }

    #[test]
    fn nesting_and_counts_are_bounded() {
        let deep = vec![0x91_u8; 10_000];
        assert!(decode::<Hello>(&deep).is_err());
        let bomb = [0xdd, 0xff, 0xff, 0xff, 0xff];
        assert!(decode::<Vec<String>>(&bomb).is_err());
    }

    #[test]
    fn lost_tasks_are_told_apart() {
        let lost = TasksLost { shard: 1, shards: 2, below: 100 };
        let id = |p, s| crate::TaskId::new(crate::Partition(p), s);
        assert!(lost.covers(id(3, 99)) && !lost.covers(id(3, 100)) && !lost.covers(id(2, 5)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Hello>(&bytes);
            let _ = decode::<TaskOptions>(&bytes);
            let _ = decode::<Work>(&bytes);
        }
    }
}
