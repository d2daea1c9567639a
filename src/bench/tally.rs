//! Pure: what a message carries, and the check of what arrives.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use hdrhistogram::Histogram;

use super::LEAST_SIZE;

/// How many bytes of a number are in a body: enough for a run of 78 hours.
const BYTES: usize = 6;

/// The largest number that is in a body.
const MOST: u64 = (1 << (8 * BYTES)) - 1;

/// By how much a body's number may be ahead of what has come before; it is none of the run otherwise.
const AHEAD: u64 = 1 << 24;

/// The longest latency that is told from a longer one, in nanoseconds.
const LONGEST: u64 = 600_000_000_000;

/// What a body says beside its filling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The message's number in its pair, from 0.
    pub number: u64,
    /// When it was due, in nanoseconds from the run's start.
    pub due: u64,
}

impl Stamp {
    /// Writes a body of this size into `body`, in place of what is there. Of either number only what is below 2^48 can be told.
    pub fn write(self, size: usize, body: &mut Vec<u8>) {
        let mut bytes = [0; 2 * BYTES];
        let (number, due) = bytes.split_at_mut(BYTES);
        for (place, value) in [(number, self.number), (due, self.due)] {
            place.copy_from_slice(&value.min(MOST).to_be_bytes()[8 - BYTES..]);
        }
        let mut digits = [0; LEAST_SIZE];
        // Four digits are three bytes, so they are as many as there is place for.
        let _ = URL_SAFE_NO_PAD.encode_slice(bytes, &mut digits);
        body.clear();
        body.extend_from_slice(&digits);
        body.resize(size.max(LEAST_SIZE), b'.');
    }

    /// Reads a body.
    pub fn read(body: &[u8]) -> Option<Self> {
        let mut bytes = [0; 2 * BYTES];
        URL_SAFE_NO_PAD.decode_slice(body.get(..LEAST_SIZE)?, &mut bytes).ok()?;
        let (number, due) = bytes.split_at(BYTES);
        let value = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Some(Self {
            number: value(number),
            due: value(due),
        })
    }
}

/// What has arrived of one pair.
#[derive(Debug, Default)]
struct Seen {
    next: u64,
    /// Below `next`, and not arrived.
    missing: BTreeSet<u64>,
}

/// What has arrived of all pairs.
#[derive(Debug)]
pub struct Tally {
    pairs: Vec<Seen>,
    latencies: Histogram<u64>,
    /// Messages that arrived for the first time.
    pub arrived: u64,
    /// Messages that arrived again.
    pub repeated: u64,
    /// Messages that arrived after a later one.
    pub reordered: u64,
    /// Bodies that are none of this run.
    pub strange: u64,
}

impl Tally {
    /// Nothing yet.
    pub fn new(pairs: usize) -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constant")]
        let latencies = Histogram::new_with_bounds(1, LONGEST, 3).expect("good bounds");
        Self {
            pairs: (0..pairs).map(|_| Seen::default()).collect(),
            latencies,
            arrived: 0,
            repeated: 0,
            reordered: 0,
            strange: 0,
        }
    }

    /// A body has arrived, `now` nanoseconds after the start; its latency is recorded if it was due within `measured`.
    /// Says whether it was a new message.
    pub fn arrive(&mut self, pair: usize, body: &[u8], now: u64, measured: &std::ops::Range<u64>) -> bool {
        let (Some(seen), Some(stamp)) = (self.pairs.get_mut(pair), Stamp::read(body)) else {
            self.strange += 1;
            return false;
        };
        let Stamp { number, due } = stamp;
        if number.saturating_sub(seen.next) > AHEAD {
            self.strange += 1;
            return false;
        }
        if number >= seen.next {
            seen.missing.extend(seen.next..number);
            seen.next = number + 1;
        } else if seen.missing.remove(&number) {
            self.reordered += 1;
        } else {
            self.repeated += 1;
            return false;
        }
        self.arrived += 1;
        if measured.contains(&due) {
            self.latencies.saturating_record(now.saturating_sub(due).max(1));
        }
        true
    }

    /// The latencies that were recorded, in nanoseconds.
    pub fn latencies(&self) -> &Histogram<u64> {
        &self.latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(number: u64, due: u64) -> Vec<u8> {
        let mut body = Vec::new();
        Stamp { number, due }.write(40, &mut body);
        body
    }

    #[test]
    fn a_body_says_its_number_and_time() {
        for (number, due) in [(0, 0), (1, MOST), (0x0123_4567_89ab, 10)] {
            assert_eq!(Stamp::read(&body(number, due)), Some(Stamp { number, due }));
        }
        assert_eq!(Stamp::read(&body(u64::MAX, 3)).map(|stamp| stamp.number), Some(MOST));
        assert_eq!(body(7, 7).len(), 40);
        let mut least = Vec::new();
        Stamp { number: 9, due: 8 }.write(0, &mut least);
        assert_eq!(least.len(), LEAST_SIZE);
        assert_eq!(Stamp::read(&least), Some(Stamp { number: 9, due: 8 }));
        assert_eq!(Stamp::read(b"hello"), None);
        assert_eq!(Stamp::read(&[b'.'; 40]), None);
    }

    #[test]
    fn what_is_wrong_is_counted() {
        let mut tally = Tally::new(2);
        let measured = 100..200;
        let mut arrive = |pair, number, due| tally.arrive(pair, &body(number, due), 250, &measured);
        assert!(arrive(0, 0, 50));
        assert!(arrive(0, 3, 150));
        assert!(arrive(0, 1, 199));
        assert!(!arrive(0, 1, 199));
        assert!(arrive(1, 0, 200));
        assert!(!arrive(2, 0, 150));
        assert!(!arrive(1, MOST, 150));
        assert_eq!(
            (tally.arrived, tally.repeated, tally.reordered, tally.strange),
            (4, 1, 1, 2)
        );
        assert_eq!(tally.latencies().len(), 2);
        assert_eq!((tally.latencies().min(), tally.latencies().max()), (51, 100));
    }
}
