//! Accepting connections, on a thread of its own: a flood of them does not slow those that are in.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::actors::directory::{Counted, Directory};

/// Gives each connection to the next shard.
pub struct Acceptor {
    /// Where to listen.
    pub listener: TcpListener,
    /// Counts connections.
    pub directory: Arc<Directory>,
    /// Connections, logged in or not.
    pub sockets_max: usize,
    /// Where connections go, by shard.
    pub shards: Vec<Box<dyn Fn(TcpStream, Counted) + Send>>,
    /// The server is about to stop.
    pub draining: Arc<AtomicBool>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// A listening socket with a backlog for reconnect storms.
///
/// # Errors
/// Those of `bind` and `listen`.
pub fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(TcpListener::from(socket))
}

impl Acceptor {
    /// Accepts until the server drains.
    #[allow(clippy::disallowed_methods)] // a thread of its own, which has nothing else to do while descriptors are short
    pub fn run(self) {
        let mut next = 0;
        while !self.draining.load(Ordering::Relaxed) {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let Some(counted) = self.prepare(&stream) else { continue };
                    self.shards[next](stream, counted);
                    next = (next + 1) % self.shards.len();
                }
                Err(e) if e.kind() == ErrorKind::ConnectionAborted || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept connections; trying again in 100 ms");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn prepare(&self, stream: &TcpStream) -> Option<Counted> {
        let counted = Counted::new(&self.directory, self.sockets_max)?;
        stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_ok().then_some(counted)
    }
}
