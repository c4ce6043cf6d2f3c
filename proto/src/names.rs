//! Names: queues, agents, labels, subjects. What is allowed, judged in one place for both sides.

use crate::error::{Code, WireError};

/// Longest queue name and agent id, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest label, bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Labels on an agent, a consumer or a task.
pub const LABELS_MAX: usize = 32;
/// Longest subject, bytes.
pub const SUBJECT_BYTES_MAX: usize = 255;
/// Most tokens in a subject.
pub const SUBJECT_TOKENS_MAX: usize = 32;

fn plain(b: u8, extra: &[u8]) -> bool {
    b.is_ascii_alphanumeric() || extra.contains(&b)
}

/// The queue name in `bytes`.
///
/// # Errors
/// `invalid_queue_name`.
pub fn queue(bytes: &[u8]) -> Result<&str, WireError> {
    let ok = (1..=NAME_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(|b| plain(*b, b"-_.:/"));
    text(bytes, ok, Code::InvalidQueueName, "queue name")
}

/// The agent id in `bytes`.
///
/// # Errors
/// `invalid_agent_id`.
pub fn agent(bytes: &[u8]) -> Result<&str, WireError> {
    let ok = (1..=NAME_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(|b| plain(*b, b"-_.:/@"));
    text(bytes, ok, Code::InvalidAgentId, "agent id")
}

/// Checks a list of labels.
///
/// # Errors
/// `invalid_label`.
pub fn labels(labels: &[String]) -> Result<(), WireError> {
    if labels.len() > LABELS_MAX {
        return Err(WireError::new(
            Code::InvalidLabel,
            format!("{} labels; at most {LABELS_MAX}", labels.len()),
        ));
    }
    for l in labels {
        let ok = (1..=LABEL_BYTES_MAX).contains(&l.len()) && l.bytes().all(|b| plain(b, b"-_.:/="));
        text(l.as_bytes(), ok, Code::InvalidLabel, "label")?;
    }
    Ok(())
}

/// The subject of a publish or request in `bytes`: tokens joined by dots, no wildcards.
///
/// # Errors
/// `invalid_subject`.
pub fn subject(bytes: &[u8]) -> Result<&str, WireError> {
    let ok = subject_shape(bytes) && !bytes.iter().any(|b| matches!(b, b'*' | b'>'));
    text(bytes, ok, Code::InvalidSubject, "subject")
}

/// The pattern of a subscription in `bytes`: as a subject, but `*` may stand for one token and a last `>` for one or more.
///
/// # Errors
/// `invalid_subject`.
pub fn pattern(bytes: &[u8]) -> Result<&str, WireError> {
    let tokens = bytes.split(|b| *b == b'.').count();
    let wild = |i: usize, t: &[u8]| match t {
        b"*" => true,
        b">" => i + 1 == tokens,
        t => !t.iter().any(|b| matches!(b, b'*' | b'>')),
    };
    let ok = subject_shape(bytes) && bytes.split(|b| *b == b'.').enumerate().all(|(i, t)| wild(i, t));
    text(bytes, ok, Code::InvalidSubject, "subject")
}

fn subject_shape(bytes: &[u8]) -> bool {
    let mut tokens = bytes.split(|b| *b == b'.');
    (1..=SUBJECT_BYTES_MAX).contains(&bytes.len())
        && tokens.clone().count() <= SUBJECT_TOKENS_MAX
        && tokens
            .all(|t| !t.is_empty() && t.iter().all(|b| !b.is_ascii_whitespace() && !b.is_ascii_control()))
}

fn text<'a>(bytes: &'a [u8], ok: bool, code: Code, what: &str) -> Result<&'a str, WireError> {
    match std::str::from_utf8(bytes) {
        Ok(s) if ok => Ok(s),
        _ => {
            let shown: String = String::from_utf8_lossy(bytes).chars().take(64).collect();
            Err(WireError::new(code, format!("invalid {what} {shown:?}: {}", code.help())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        assert!(queue(b"a.b-c_d:e/9").is_ok() && agent(b"me@host").is_ok());
        for bad in [&b""[..], b"a b", b"\xff", b"a\n", b"a*", &[b'x'; 129]] {
            assert_eq!(queue(bad).expect_err("bad").code, Code::InvalidQueueName as u16);
            assert_eq!(agent(bad).expect_err("bad").code, Code::InvalidAgentId as u16);
        }
        assert!(labels(&["gpu".into(), "model=x".into()]).is_ok());
        assert!(labels(&[String::new()]).is_err());
        assert!(labels(&vec!["a".into(); 33]).is_err());
    }

    #[test]
    fn subjects_are_judged() {
        assert!(subject(b"a.b.c").is_ok() && subject("t.ä".as_bytes()).is_ok());
        for bad in
            [&b""[..], b".", b"a.", b".a", b"a..b", b"a b", b"a.*", b">", b"a.\xff", b"a\0", &[b'x'; 256]]
        {
            assert_eq!(subject(bad).expect_err("bad").code, Code::InvalidSubject as u16, "{bad:?}");
        }
        assert!(subject("a.".repeat(33).trim_end_matches('.').as_bytes()).is_err());
        for good in ["a", "*", ">", "a.*.c", "a.>", "*.*.>"] {
            assert!(pattern(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["a.>.b", "a*", "a.b>", "", "a..*", ">>"] {
            assert!(pattern(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
