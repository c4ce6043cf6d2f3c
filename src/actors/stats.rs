//! A histogram that one thread fills: log-linear, 32 steps to the octave (3 % wide), fixed memory.

const STEPS: u32 = 5;
const BUCKETS: usize = 64 << STEPS;

/// Counts of values from 0 to 2^64-1.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

/// What a histogram says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Quantiles {
    /// Half of the values are at most this.
    pub p50: u64,
    /// 99 % of the values are at most this.
    pub p99: u64,
    /// Values.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.counts[Self::bucket(value)] += 1;
        self.total += 1;
    }

    #[inline]
    fn bucket(value: u64) -> usize {
        let v = value | 1;
        let octave = 63 - v.leading_zeros();
        if octave <= STEPS {
            return value as usize;
        }
        let step = (value >> (octave - STEPS)) as usize & ((1 << STEPS) - 1);
        (((octave - STEPS) as usize + 1) << STEPS) + step
    }

    /// Largest value of a bucket.
    fn upper(bucket: usize) -> u64 {
        let (octave, step) = (bucket >> STEPS, bucket as u64 & ((1 << STEPS) - 1));
        match octave.checked_sub(1) {
            None => step,
            Some(shift) => (((1 << STEPS) + step + 1) << shift) - 1,
        }
    }

    /// The value that a share `q` (0 to 1) of all values do not exceed, to 3 %.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = (self.total as f64 * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank && *n > 0 {
                return Self::upper(bucket);
            }
        }
        0
    }

    /// Median and 99th percentile.
    pub fn quantiles(&self) -> Quantiles {
        Quantiles { p50: self.quantile(0.5), p99: self.quantile(0.99), count: self.total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_hold_their_values() {
        for v in (0..10_000).chain([u64::MAX / 3, 1 << 40, (1 << 40) + 12345]) {
            let b = Histogram::bucket(v);
            assert!(Histogram::upper(b) >= v, "{v}");
            assert!(b == 0 || Histogram::upper(b - 1) < v, "{v}");
        }
        Histogram::default().record(u64::MAX);
    }

    #[test]
    fn quantiles_are_close() {
        let mut h = Histogram::default();
        (1..=1000).for_each(|v| h.record(v * 1000));
        let q = h.quantiles();
        assert!((500_000..=516_000).contains(&q.p50) && (990_000..=1_024_000).contains(&q.p99), "{q:?}");
        assert_eq!(Histogram::default().quantiles(), Quantiles::default());
    }
}
