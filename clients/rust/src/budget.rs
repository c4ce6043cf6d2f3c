//! The bound on what callers have handed over and the driver has not yet sent.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Error;

/// Bytes that callers may have on their way to the driver.
#[derive(Debug)]
pub(crate) struct Budget {
    free: Semaphore,
    total: u32,
}

impl Budget {
    pub(crate) fn new(bytes: u32) -> Self {
        Self { free: Semaphore::new(bytes as usize), total: bytes }
    }

    /// Waits for room. One call larger than the whole budget gets all of it.
    ///
    /// The permit returns its room when it is dropped; a caller whose message is on its way forgets it, and the driver
    /// gives the message's weight back.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Error> {
        let weight = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.total);
        self.free.acquire_many(weight).await.map_err(|_| Error::Closed)
    }

    pub(crate) fn give_back(&self, weight: usize) {
        if weight > 0 {
            self.free.add_permits(weight);
        }
    }

    /// Fails all who wait.
    pub(crate) fn close(&self) {
        self.free.close();
    }
}
