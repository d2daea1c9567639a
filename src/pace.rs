//! The least progress that is asked of the other side, so that nobody holds memory by being slow.

use std::time::Duration;

/// A time for each piece of work, and a rate for its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// What a piece of any size may take.
    pub(crate) time: Duration,
    /// Bytes a second that must be kept up beyond that.
    pub(crate) rate: u32,
}

impl Pace {
    /// How long a piece of so many bytes may take.
    pub(crate) fn allows(self, bytes: usize) -> Duration {
        let milliseconds = (bytes as u64).saturating_mul(1000) / u64::from(self.rate.max(1));
        self.time.saturating_add(Duration::from_millis(milliseconds))
    }

    /// The same with up to a quarter more time, as `part` (0 to 1) says. Drawn for each connection: of many that were begun
    /// at once, and are slow, not all end at once, which would hold up the others for as long as that takes.
    pub(crate) fn spread(self, part: f32) -> Self {
        let more = self.time.mul_f32(part.clamp(0.0, 1.0) / 4.0);
        Self {
            time: self.time.saturating_add(more),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bytes_may_take_longer() {
        let pace = Pace {
            time: Duration::from_secs(60),
            rate: 4096,
        };
        assert_eq!(pace.allows(0), Duration::from_secs(60));
        assert_eq!(pace.allows(2048), Duration::from_millis(60_500));
        assert_eq!(pace.allows(1 << 20), Duration::from_secs(60 + 256));
        assert!(pace.allows(usize::MAX) > Duration::from_secs(60));
        assert_eq!(pace.spread(0.0), pace);
        assert_eq!(pace.spread(1.0).allows(2048), Duration::from_millis(75_500));
    }
}
