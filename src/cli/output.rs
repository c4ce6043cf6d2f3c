//! Standard output: JSON lines and plain text. Whoever reads it may go away.

use std::io::{self, IsTerminal as _, Read as _, Write};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::failure::Failure;

/// Longest payload read from a file or standard input, bytes; the server's limit is lower.
const INPUT_BYTES_MAX: u64 = 1 << 30;

/// Prints one JSON object on a line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(value).map_err(|e| Failure::new("cannot write JSON", e))?;
    line.push(b'\n');
    print(&line)
}

/// Prints bytes, at once.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(),
        _ => Failure::new("cannot write to standard output", e),
    })
}

/// Prints bytes and a line break.
pub(crate) fn print_line(bytes: &[u8]) -> Result<(), Failure> {
    print(&[bytes, b"\n"].concat())
}

/// A result as it is to be printed; a terminal gets a line break after it.
pub(crate) fn result(bytes: &[u8]) -> Vec<u8> {
    let ends = bytes.ends_with(b"\n") || bytes.is_empty();
    let line_break: &[u8] = if io::stdout().is_terminal() && !ends { b"\n" } else { b"" };
    [bytes, line_break].concat()
}

/// Adds `bytes` under `key`: as text, or where they are none in base64, which a field `encoding` then says.
pub(crate) fn put_bytes(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(key.into(), json!(text)),
        Err(_) => {
            object.insert("encoding".into(), json!("base64"));
            object.insert(key.into(), json!(base64(bytes)))
        }
    };
}

/// Reads all of standard input.
pub(crate) fn stdin() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(INPUT_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|e| Failure::new("cannot read standard input", e))?;
    Ok(bytes)
}

/// The payload that an argument names: itself, or standard input for `-`.
pub(crate) fn payload(argument: String) -> Result<Vec<u8>, Failure> {
    if argument == "-" { stdin() } else { Ok(argument.into_bytes()) }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |w, i| w << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_in_base64() {
        let mut object = Map::new();
        put_bytes(&mut object, "result", b"text");
        assert_eq!(Value::from(object.clone()), json!({"result": "text"}));
        put_bytes(&mut object, "result", &[0xff, 0xfe]);
        assert_eq!(Value::from(object), json!({"result": "//4=", "encoding": "base64"}));
        // The vectors of RFC 4648.
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
