//! Frames as JSON: what the bytes mean, in the words of PROTOCOL.md. Shared by the tests of the golden vectors and by
//! `cargo xtask generate`, which writes them.

use hive_proto::frame::{Flags, FrameRef, Op, write_frame};
use hive_proto::ids::{Durability, Lease, TaskId, TaskState, Trace};
use hive_proto::items::{self, Item, RevokeReason};
use hive_proto::messages::{self, TaskOptions};
use hive_proto::{Code, WireError, names};
use serde_json::{Map, Value, json};

const FLAGS: [(u16, &str); 5] = [
    (Flags::TRACE, "TRACE"),
    (Flags::LAST, "LAST"),
    (Flags::WATCH, "WATCH"),
    (Flags::ACK, "ACK"),
    (Flags::BROADCAST, "BROADCAST"),
];

/// The step of decoding that refused a frame.
pub(crate) type Refusal = (&'static str, WireError);

/// What a complete frame means.
///
/// # Errors
/// The step that refuses it (`op`, `header`, `items`) and why.
pub(crate) fn describe(bytes: &[u8]) -> Result<Value, Refusal> {
    let malformed = || ("cut", WireError::new(Code::MalformedFrame, "not one complete frame"));
    let frame = FrameRef::parse(bytes).ok_or_else(malformed)?;
    let op = frame.op().map_err(|e| ("op", e))?;
    let (trace, header) = frame.traced_header().map_err(|e| ("header", e))?;
    let mut out = json!({
        "op": format!("{op:?}"),
        "flags": FLAGS.iter().filter(|(bit, _)| frame.prefix.flags.has(*bit)).map(|(_, name)| *name).collect::<Vec<_>>(),
        "id": frame.prefix.id,
        "count": frame.prefix.count,
        "header": describe_header(op, header).map_err(|e| ("header", e))?,
    });
    if let Some(Trace(trace)) = trace {
        out["trace"] = hex(&trace).into();
    }
    match describe_items(op, frame).map_err(|e| ("items", e))? {
        Some(items) => out["items"] = items,
        None if !frame.payload.is_empty() => out["payload_hex"] = hex(frame.payload).into(),
        None => {}
    }
    Ok(out)
}

/// The bytes of a meaning; the opposite of [`describe`].
pub(crate) fn build(meaning: &Value) -> Vec<u8> {
    let name = meaning["op"].as_str().expect("op");
    let op = *Op::ALL.iter().find(|op| format!("{op:?}") == name).expect("a known operation");
    let flag = |name: &Value| FLAGS.iter().find(|(_, f)| name == f).expect("a known flag").0;
    let flags = meaning["flags"].as_array().expect("flags").iter().map(flag).fold(0, |a, b| a | b);
    let trace = meaning.get("trace").map(|t| unhex(text(t))).unwrap_or_default();
    let header = build_header(op, &meaning["header"]);
    let payload = match meaning.get("items") {
        Some(items) => items.as_array().expect("items").iter().flat_map(|i| build_item(op, i)).collect(),
        None => meaning.get("payload_hex").map(|p| unhex(text(p))).unwrap_or_default(),
    };
    let mut out = Vec::new();
    write_frame(
        &mut out,
        op,
        flags,
        num(meaning, "id") as u32,
        num(meaning, "count") as u16,
        &[&trace, &header],
        &payload,
    );
    out
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes of hexadecimal digits.
pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    let pair = |i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal digits");
    (0..digits.len()).step_by(2).map(pair).collect()
}

fn describe_header(op: Op, header: &[u8]) -> Result<Value, WireError> {
    let mut r = items::Reader(header);
    let short = || WireError::new(Code::MalformedHeader, format!("the header of {op:?} has another length"));
    let value = match op {
        Op::Hello => {
            let hello: messages::Hello = messages::decode(header)?;
            names::labels(&hello.labels)?;
            if !hello.agent.is_empty() {
                names::agent(hello.agent.as_bytes())?;
            }
            to_json(&hello)
        }
        Op::Welcome => to_json(&messages::decode::<messages::Welcome>(header)?),
        Op::Work => {
            let work: messages::Work = messages::decode(header)?;
            names::queue(work.queue.as_bytes())?;
            names::labels(&work.labels)?;
            to_json(&work)
        }
        Op::Subscribe => {
            let subscribe: messages::Subscribe = messages::decode(header)?;
            names::pattern(subscribe.subject.as_bytes())?;
            to_json(&subscribe)
        }
        Op::Drain => to_json(&messages::decode::<messages::Drain>(header)?),
        Op::TasksLost => to_json(&messages::decode::<messages::TasksLost>(header)?),
        Op::Error => to_json(&messages::decode::<WireError>(header)?),
        Op::Submit => json!({ "queue": names::queue(header)? }),
        Op::Publish | Op::Deliver => json!({ "subject": names::subject(header)? }),
        Op::Direct | Op::Message => json!({ "agent": names::agent(header)? }),
        Op::Credit => {
            let (tasks, bytes) = (r.u32().ok_or_else(short)?, r.u64().ok_or_else(short)?);
            end(&r, json!({ "tasks": tasks, "bytes": bytes })).ok_or_else(short)?
        }
        Op::Wait => {
            let mode = r.u8().and_then(|m| ["all", "any"].get(usize::from(m)).copied()).ok_or_else(short)?;
            let timeout_ms = r.u32().ok_or_else(short)?;
            end(&r, json!({ "mode": mode, "timeout_ms": timeout_ms })).ok_or_else(short)?
        }
        Op::ListDead => json!({ "limit": r.u32().ok_or_else(short)?, "queue": names::queue(r.0)? }),
        Op::Request => {
            let timeout_ms = r.u32().ok_or_else(short)?;
            let _zero = r.u32().ok_or_else(short)?;
            json!({ "timeout_ms": timeout_ms, "subject": names::subject(r.0)? })
        }
        Op::Requested => {
            json!({ "token": token(r.u64().ok_or_else(short)?), "subject": names::subject(r.0)? })
        }
        Op::Reply => {
            let value = json!({ "token": token(r.u64().ok_or_else(short)?) });
            end(&r, value).ok_or_else(short)?
        }
        Op::Accepted => {
            let (first, durability) =
                (r.u64().ok_or_else(short)?, r.u8().and_then(Durability::from_u8).ok_or_else(short)?);
            end(&r, json!({ "first": token(first), "durability": durability.name() })).ok_or_else(short)?
        }
        Op::ResultsMissed | Op::MessagesLost => {
            let number = r.u64().ok_or_else(short)?;
            end(&r, json!({ "number": number })).ok_or_else(short)?
        }
        Op::Response if header.len() == 8 => json!({}),
        _ if header.is_empty() => json!({}),
        _ => return Err(short()),
    };
    Ok(value)
}

fn build_header(op: Op, h: &Value) -> Vec<u8> {
    fn packed<T: serde::Serialize + serde::de::DeserializeOwned>(h: &Value) -> Vec<u8> {
        messages::encode(&serde_json::from_value::<T>(h.clone()).expect("the fields of the header"))
    }
    let le32 = |name: &str| (num(h, name) as u32).to_le_bytes().to_vec();
    let le64 = |name: &str| num(h, name).to_le_bytes().to_vec();
    let plain = |name: &str| text(&h[name]).as_bytes().to_vec();
    let id = |name: &str| u64::from_str_radix(text(&h[name]), 16).expect("16 digits").to_le_bytes().to_vec();
    match op {
        Op::Hello => packed::<messages::Hello>(h),
        Op::Welcome => packed::<messages::Welcome>(h),
        Op::Work => packed::<messages::Work>(h),
        Op::Subscribe => packed::<messages::Subscribe>(h),
        Op::Drain => packed::<messages::Drain>(h),
        Op::TasksLost => packed::<messages::TasksLost>(h),
        Op::Error => packed::<WireError>(h),
        Op::Submit => plain("queue"),
        Op::Publish | Op::Deliver => plain("subject"),
        Op::Direct | Op::Message => plain("agent"),
        Op::Credit => [le32("tasks"), le64("bytes")].concat(),
        Op::Wait => [vec![u8::from(h["mode"] == "any")], le32("timeout_ms")].concat(),
        Op::ListDead => [le32("limit"), plain("queue")].concat(),
        Op::Request => [le32("timeout_ms"), vec![0; 4], plain("subject")].concat(),
        Op::Requested => [id("token"), plain("subject")].concat(),
        Op::Reply => id("token"),
        Op::Response => vec![0; 8],
        Op::Accepted => {
            let d = (0..3)
                .filter_map(Durability::from_u8)
                .find(|d| h["durability"] == d.name())
                .expect("a durability");
            [id("first"), vec![d as u8]].concat()
        }
        Op::ResultsMissed | Op::MessagesLost => le64("number"),
        _ => Vec::new(),
    }
}

fn describe_items(op: Op, frame: FrameRef<'_>) -> Result<Option<Value>, WireError> {
    fn each<'a, T: Item<'a>>(
        frame: FrameRef<'a>,
        count: u16,
        describe: impl Fn(T) -> Result<Value, WireError>,
    ) -> Result<Option<Value>, WireError> {
        let items = items::check::<T>(frame.payload, count)?.map(describe).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(items.into()))
    }
    let count = frame.prefix.count;
    match op {
        Op::Submit => each(frame, count, |i: items::Submit<'_>| {
            with_options(json!({ "payload_hex": hex(i.payload) }), i.ext)
        }),
        Op::Assign => each(frame, count, |i: items::Assign<'_>| {
            with_options(
                with_lease(json!({ "lease_ms": i.lease_ms, "payload_hex": hex(i.payload) }), i.lease),
                i.ext,
            )
        }),
        Op::Complete => each(frame, count, |i: items::Complete<'_>| {
            Ok(with_lease(json!({ "result_hex": hex(i.result) }), i.lease))
        }),
        Op::Fail => each(frame, count, |i: items::Fail<'_>| {
            let delay: Value =
                if i.delay_ms == items::DELAY_BY_POLICY { "by policy".into() } else { i.delay_ms.into() };
            let kind = if i.permanent { "permanent" } else { "retryable" };
            Ok(with_lease(json!({ "delay_ms": delay, "kind": kind, "text": i.error }), i.lease))
        }),
        Op::Release => {
            each(frame, count, |i: items::Release| Ok(with_lease(json!({ "delay_ms": i.delay_ms }), i.lease)))
        }
        Op::Renew => each(frame, count, |i: Lease| Ok(with_lease(json!({}), i))),
        Op::Progress => each(frame, count, |i: items::Progress<'_>| {
            Ok(with_lease(json!({ "value": value(i.value), "note_hex": hex(i.note) }), i.lease))
        }),
        Op::Progressed => each(frame, count, |i: items::Progressed<'_>| {
            let task = i.task.to_string();
            Ok(
                json!({ "task": task, "attempt": i.attempt, "value": value(i.value), "note_hex": hex(i.note) }),
            )
        }),
        Op::Cancel | Op::Redrive | Op::Purge | Op::Query | Op::Wait => {
            each(frame, count, |i: TaskId| Ok(i.to_string().into()))
        }
        Op::Result | Op::Tasks => each(frame, count, |i: items::Task<'_>| {
            let (task, state) = (i.task.to_string(), i.state.name());
            Ok(json!({ "task": task, "state": state, "attempt": i.attempt, "payload_hex": hex(i.payload) }))
        }),
        Op::Revoked => each(frame, count, |i: items::Revoked| {
            Ok(with_lease(json!({ "reason": REASONS[i.reason as usize].1 }), i.lease))
        }),
        Op::Accepted | Op::Settled => each(frame, (frame.payload.len() / 8) as u16, |i: items::Refused| {
            Ok(json!({ "index": i.index, "code": i.code, "retry_after_ms": i.retry_after_ms }))
        }),
        _ => Ok(None),
    }
}

fn build_item(op: Op, v: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = |name: &str| unhex(text(&v[name]));
    let task = |v: &Value| text(v).parse::<TaskId>().expect("16 digits");
    let lease =
        || Lease { task: task(&v["task"]), attempt: num(v, "attempt") as u32, epoch: num(v, "epoch") as u32 };
    let share = || v["value"].as_u64().map_or(items::NO_VALUE, |n| n as u16);
    match op {
        Op::Submit => items::Submit { ext: &options(v), payload: &bytes("payload_hex") }.write(&mut out),
        Op::Assign => {
            let (ext, payload) = (options(v), bytes("payload_hex"));
            let lease_ms = num(v, "lease_ms") as u32;
            items::Assign { lease: lease(), lease_ms, ext: &ext, payload: &payload }.write(&mut out);
        }
        Op::Complete => items::Complete { lease: lease(), result: &bytes("result_hex") }.write(&mut out),
        Op::Fail => {
            let delay_ms = v["delay_ms"].as_u64().map_or(items::DELAY_BY_POLICY, |n| n as u32);
            let permanent = v["kind"] == "permanent";
            items::Fail { lease: lease(), delay_ms, permanent, error: text(&v["text"]) }.write(&mut out);
        }
        Op::Release => items::Release { lease: lease(), delay_ms: num(v, "delay_ms") as u32 }.write(&mut out),
        Op::Renew => lease().write(&mut out),
        Op::Progress => {
            items::Progress { lease: lease(), value: share(), note: &bytes("note_hex") }.write(&mut out);
        }
        Op::Progressed => {
            let (task, attempt) = (task(&v["task"]), num(v, "attempt") as u32);
            items::Progressed { task, attempt, value: share(), note: &bytes("note_hex") }.write(&mut out);
        }
        Op::Cancel | Op::Redrive | Op::Purge | Op::Query | Op::Wait => task(v).write(&mut out),
        Op::Result | Op::Tasks => {
            let state = *TaskState::ALL.iter().find(|s| v["state"] == s.name()).expect("a state");
            let (task, attempt) = (task(&v["task"]), num(v, "attempt") as u32);
            items::Task { task, state, attempt, payload: &bytes("payload_hex") }.write(&mut out);
        }
        Op::Revoked => {
            let reason = REASONS.iter().find(|(_, name)| v["reason"] == *name).expect("a reason").0;
            items::Revoked { lease: lease(), reason }.write(&mut out);
        }
        Op::Accepted | Op::Settled => {
            let (index, code) = (num(v, "index") as u16, num(v, "code") as u16);
            items::Refused { index, code, retry_after_ms: num(v, "retry_after_ms") as u32 }.write(&mut out);
        }
        _ => panic!("{op:?} has no items"),
    }
    out
}

const REASONS: [(RevokeReason, &str); 3] = [
    (RevokeReason::Expired, "expired"),
    (RevokeReason::Cancelled, "cancelled"),
    (RevokeReason::Restarted, "restarted"),
];

fn with_lease(mut item: Value, lease: Lease) -> Value {
    item["task"] = lease.task.to_string().into();
    item["attempt"] = lease.attempt.into();
    item["epoch"] = lease.epoch.into();
    item
}

fn with_options(mut item: Value, ext: &[u8]) -> Result<Value, WireError> {
    if ext.is_empty() {
        return Ok(item);
    }
    let mut options: TaskOptions =
        messages::decode(ext).map_err(|e| WireError::new(Code::InvalidOptions, e.text))?;
    names::labels(&options.labels)?;
    let trace = options.trace.take();
    item["options"] = to_json(&options);
    if let Some(Trace(trace)) = trace {
        item["options"]["trace"] = hex(&trace).into();
    }
    Ok(item)
}

fn options(item: &Value) -> Vec<u8> {
    let Some(fields) = item.get("options") else { return Vec::new() };
    let mut fields: Map<String, Value> = fields.as_object().expect("options").clone();
    let trace = fields.remove("trace").map(|t| Trace(unhex(text(&t)).try_into().expect("25 bytes")));
    let options: TaskOptions = serde_json::from_value(fields.into()).expect("the fields of the options");
    messages::encode(&TaskOptions { trace, ..options })
}

fn end(r: &items::Reader<'_>, value: Value) -> Option<Value> {
    r.0.is_empty().then_some(value)
}

fn to_json<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("plain fields")
}

fn token(n: u64) -> String {
    format!("{n:016x}")
}

fn value(share: u16) -> Value {
    if share == items::NO_VALUE { Value::Null } else { share.into() }
}

fn text(v: &Value) -> &str {
    v.as_str().expect("text")
}

fn num(v: &Value, name: &str) -> u64 {
    v[name].as_u64().unwrap_or_else(|| panic!("{name} of {v} is no number"))
}
