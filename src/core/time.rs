//! Time as the core sees it: a number handed in, never read.

/// Nanoseconds since an epoch that the caller chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// The epoch itself.
    pub const ZERO: Self = Self(0);

    /// `ms` milliseconds later; stops at the end of time.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to `self`, 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
