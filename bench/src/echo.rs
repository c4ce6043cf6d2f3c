//! An echo over TCP: what any request and its answer cost on this machine before a server does anything.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cores::Cores;
use crate::measure::Lane;

/// Sends so many bytes there and back again and again for some time. The other end runs where servers do.
pub(crate) fn probe(size: usize, cores: Cores, time: Duration, lane: &mut Lane) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| cores.as_server(|| answer(far, size)));
        // On a thread of its own, so that the generator's processor time stays what the run took.
        let asked = scope.spawn(|| ask(near, size, time, lane)).join();
        other.join().ok().context("the other end has panicked")??;
        asked.ok().context("this end has panicked")?
    })
}

/// Ends with the connection; so does the other end.
fn ask(mut stream: TcpStream, size: usize, time: Duration, lane: &mut Lane) -> Result<()> {
    let (begin, mut bytes) = (Instant::now(), vec![0; size]);
    let now = || begin.elapsed().as_nanos() as u64;
    while begin.elapsed() < time {
        let start = now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        lane.hit(start, now());
    }
    Ok(())
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
        let mut lane = Lane::new();
        probe(256, Cores::Shared, Duration::from_millis(20), &mut lane).expect("echoes");
        assert!(lane.recorded() > 0 && lane.quantile_us(0.5) > 0.1);
    }
}
