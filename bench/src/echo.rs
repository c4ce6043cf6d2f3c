//! An echo over TCP: what any request and its answer cost on this machine before a server does anything.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cores::Cores;
use crate::measure::Lane;

/// Echoes are measured for this long.
const ECHOES: Duration = Duration::from_millis(300);

/// Half of all round trips of so many bytes are faster, µs. The other end runs where servers do.
pub(crate) fn probe(size: usize, cores: Cores) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| cores.as_server(|| answer(far, size)));
        let result = ask(near, size);
        other.join().ok().context("the other end has panicked")??;
        result
    })
}

/// Ends with the connection; so does the other end.
fn ask(mut stream: TcpStream, size: usize) -> Result<f64> {
    let (begin, mut lane, mut bytes) = (Instant::now(), Lane::new(), vec![0; size]);
    let now = || begin.elapsed().as_nanos() as u64;
    while begin.elapsed() < ECHOES {
        let start = now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        lane.hit(start, now());
    }
    Ok(lane.quantile_us(0.5))
}

fn answer(mut stream: TcpStream, size: usize) -> Result<()> {
    let mut bytes = vec![0; size];
    while stream.read_exact(&mut bytes).is_ok() {
        stream.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_takes_some_time() {
        let us = probe(256, Cores::Shared).expect("echoes");
        assert!((0.1..100_000.0).contains(&us), "{us}");
    }
}
