//! The machine: memory, limits, randomness, the data directory.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Resident memory of this process, bytes; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages =
        pages.as_deref().and_then(|s| s.split_whitespace().nth(1)).and_then(|s| s.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Raises the number of file descriptors to what the system allows, and tells it.
pub fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Random bytes from the system.
///
/// # Errors
/// The system has none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// A token of 256 random bits, in hexadecimal.
///
/// # Errors
/// The system has no randomness.
pub fn random_token() -> io::Result<String> {
    Ok(random::<32>()?.iter().map(|b| format!("{b:02x}")).collect())
}

/// The token kept in a data directory; made with the directory if it is not there. Only the owner may read it.
///
/// # Errors
/// The directory cannot be made or written.
pub fn token_in(dir: &Path) -> io::Result<String> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join("token");
    match fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let token = random_token()?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    Ok(token)
}

/// Whether files can be written there.
///
/// # Errors
/// They cannot.
pub fn check_writable(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    // A full disk may have made it without taking the byte.
    let written = fs::write(&probe, b"x");
    let removed = fs::remove_file(probe);
    written.and(removed)
}
