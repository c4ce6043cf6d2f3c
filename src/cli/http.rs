//! HTTP/1.0 for two kinds of question to our own server; a library for that would be larger than the rest of the CLI.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::target::Target;

/// Time for the whole exchange: a command has promised to give up on its server within 5 s.
const TIME: Duration = Duration::from_millis(3500);
/// Silence in the middle of a long body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Longest answer, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An answer.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Asks the target; a refusal becomes a failure.
pub(crate) fn ask(target: &Target, method: &str, path: &str) -> Result<Answer, Failure> {
    let answer = exchange(&target.http, method, path, &target.token);
    let answer = answer.map_err(|e| Failure::unreachable(&target.http, e))?;
    judge(&format!("{method} {path}"), answer)
}

fn judge(what: &str, answer: Answer) -> Result<Answer, Failure> {
    match answer.status {
        200..=299 => Ok(answer),
        401 | 403 => Err(Failure::new("the server refused the token", format!("HTTP {}", answer.status))
            .next("give the server's token with --token or HIVE_TOKEN")),
        status => {
            Err(Failure::new(format!("{what} failed"), format!("HTTP {status} {}", answer.body.trim()))
                .next("check that --http names the HTTP port of a Hive server"))
        }
    }
}

/// Asks for a body of any length; what is given ends where the server ends it.
pub(crate) fn download(target: &Target, path: &str) -> Result<impl io::Read + use<>, Failure> {
    let begin = || -> io::Result<(u16, Vec<u8>, TcpStream)> {
        let mut stream = request(&target.http, "GET", path, &target.token)?;
        stream.set_read_timeout(Some(BODY_TIME))?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 16 * 1024];
        while split(&bytes).is_none() {
            match stream.read(&mut chunk)? {
                0 => break,
                n => bytes.extend_from_slice(&chunk[..n]),
            }
        }
        let no_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
        let (_, body) = split(&bytes).ok_or_else(no_http)?;
        let status = parse(&bytes).ok_or_else(no_http)?.status;
        Ok((status, body.to_vec(), stream))
    };
    let (status, body, stream) = begin().map_err(|e| Failure::unreachable(&target.http, e))?;
    let mut rest = io::Cursor::new(body).chain(stream);
    if status == 200 {
        return Ok(rest);
    }
    let mut text = String::new();
    let _ = rest.by_ref().take(4096).read_to_string(&mut text); // for the message only
    judge(&format!("GET {path}"), Answer { status, body: text }).map(|_| rest)
}

/// One request on a connection of its own.
pub(crate) fn exchange(address: &str, method: &str, path: &str, token: &str) -> io::Result<Answer> {
    let end = Instant::now() + TIME;
    let mut stream = request(address, method, path, token)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while !complete(&bytes) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no complete answer within {TIME:?}"),
            ));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// Sends a request and gives the connection for the answer.
fn request(address: &str, method: &str, path: &str, token: &str) -> io::Result<TcpStream> {
    let mut stream = connect(address)?;
    let authorization = match token {
        "" => String::new(),
        token => format!("Authorization: Bearer {token}\r\n"),
    };
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{authorization}Content-Length: 0\r\n\r\n");
    stream.set_write_timeout(Some(TIME))?;
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the address names no host");
    for a in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&a, TIME / 2) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Whether the body is as long as its header says, so that a server which keeps the connection open is not waited for.
fn complete(bytes: &[u8]) -> bool {
    let Some((head, body)) = split(bytes) else { return false };
    let length = head.lines().find_map(|l| {
        let (name, value) = l.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|n| body.len() >= n)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = split(bytes)?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: String::from_utf8_lossy(body).into_owned() })
}

fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&bytes[..at]).ok()?, &bytes[at + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_read_though_the_connection_stays_open() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).expect("a request");
                request.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nhello").expect("written");
            (String::from_utf8(request).expect("text"), stream)
        });
        let answer = exchange(&address, "POST", "/v1/stop", "secret").expect("answered");
        assert_eq!(answer, Answer { status: 202, body: "hello".into() });
        let (request, _stream) = server.join().expect("served");
        assert!(request.starts_with("POST /v1/stop HTTP/1.0\r\n") && request.contains("Bearer secret\r\n"));
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert_eq!(parse(b"HIVE\r\n\r\n"), None);
        assert_eq!(
            parse(b"HTTP/1.1 404 Not Found\r\n\r\nno"),
            Some(Answer { status: 404, body: "no".into() })
        );
        assert!(!complete(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"));
    }
}
