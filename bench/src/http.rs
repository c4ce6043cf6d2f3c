//! The HTTP requests that the harness makes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::server::Server;

/// How long decisions took, as the server itself reports it: `decision_ns` and `queued_ns` of each shard.
pub(crate) fn decisions(server: &Server) -> Result<Value> {
    let status = status(server)?;
    let shards = status["shards"].as_array().context("/v1/status has no shards")?;
    let of = |s: &Value| {
        json!({
            "shard": s["shard"],
            "decision_ns": s["dispatcher"]["decision_ns"],
            "queued_ns": s["dispatcher"]["queued_ns"],
            "batches": s["dispatcher"]["batches"],
            "tasks": s["dispatcher"]["tasks"],
        })
    };
    Ok(shards.iter().map(of).collect())
}

/// Bytes of records in the journal, as the server itself reports them.
pub(crate) fn journal_bytes(server: &Server) -> Result<u64> {
    status(server)?["journal"]["bytes"].as_u64().context("/v1/status has no journal.bytes")
}

fn status(server: &Server) -> Result<Value> {
    let addr = server.http.context("the server has no HTTP address")?;
    let status = get(addr, "/v1/status", Duration::from_secs(5))?;
    serde_json::from_str(&status).context("/v1/status is not JSON")
}

/// The body of `GET path`.
fn get(addr: SocketAddr, path: &str, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(timeout))?;
    // HTTP/1.0 keeps the answer free of chunks and ends it with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(64 * 1024 * 1024).read_to_end(&mut answer).context("reading the answer")?;
    body(&String::from_utf8(answer)?).map(str::to_owned)
}

fn body(answer: &str) -> Result<&str> {
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    let status = head.split(' ').nth(1).unwrap_or("");
    ensure!(status == "200", "HTTP status {status}");
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_success_has_a_body() {
        assert_eq!(body("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}").expect("body"), "{}");
        assert!(body("HTTP/1.1 503 No\r\n\r\n{}").is_err());
        assert!(body("HTTP/1.1 200 OK").is_err());
    }
}
