//! How long to wait before the next attempt.

use std::time::Duration;

/// Waits that double from one failure to the next, each shortened by up to a half at random, so that those who failed
/// together do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `first` to `most`.
    pub(crate) const fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// The wait after one more failure. `random` is from 0 to 1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let wait = self
            .first
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(self.most);
        self.failures = (self.failures + 1).min(31);
        wait.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }

    /// An attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<u128> = (0..6).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.next(1.0).as_millis(), 500);
        for _ in 0..100 {
            backoff.next(0.5);
        }
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 100);
    }
}
