//! Pure: checks every message that arrives, and sums up what was seen.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::target::Target;
use crate::wire::Stats;

/// The load: messages are numbered, and each is due at a time of its own, whatever became of those before it.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Senders, each with a receiver.
    pub pairs: usize,
    /// Links that they are spread over.
    pub links: usize,
    /// Messages a second in all.
    pub rate: u32,
    /// Bytes of a body.
    pub body: usize,
    /// How many messages there are.
    pub messages: u64,
    /// How many come before latencies are recorded.
    pub warm_up: u64,
}

impl Load {
    /// When a message is due, from the start.
    pub fn due(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / f64::from(self.rate))
    }

    /// Whose message it is: the pairs take turns.
    pub fn pair(&self, number: u64) -> usize {
        (number % self.pairs as u64) as usize
    }

    /// The link that a pair's messages cross: the first pairs the first one, and so on.
    pub fn link(&self, pair: usize) -> usize {
        pair * self.links / self.pairs.max(1)
    }

    /// The body of a message: its number, filled up.
    pub fn body(&self, number: u64) -> String {
        format!("{number:.<width$}", width = self.body)
    }

    /// The number in a body, if it is a body of this load.
    fn number(&self, body: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(body).ok()?;
        let number = text.trim_end_matches('.').parse().ok()?;
        (body.len() == self.body && number < self.messages).then_some(number)
    }
}

/// Sees every message that arrives.
#[derive(Debug)]
pub struct Check {
    load: Load,
    latencies: Histogram<u64>,
    seen: Vec<bool>,
    newest: Vec<Option<u64>>,
    /// Messages that arrived, each counted once.
    pub received: u64,
    repeated: u64,
    reordered: u64,
    wrong: u64,
    /// When the wire was back.
    mended: Option<Duration>,
    /// When the last of the messages that were due before the wire was back arrived.
    backlog: Option<Duration>,
    /// When the last message arrived.
    pub last: Duration,
    /// What came over each link while it was counted.
    by_link: Vec<u64>,
    counting: bool,
}

impl Check {
    /// Nothing has arrived yet.
    pub fn new(load: Load) -> anyhow::Result<Self> {
        Ok(Self {
            load,
            // From a microsecond to ten minutes, to a thousandth.
            latencies: Histogram::new_with_bounds(1, 600_000_000, 3)?,
            seen: vec![false; usize::try_from(load.messages)?],
            newest: vec![None; load.pairs],
            received: 0,
            repeated: 0,
            reordered: 0,
            wrong: 0,
            mended: None,
            backlog: None,
            last: Duration::ZERO,
            by_link: vec![0; load.links],
            counting: false,
        })
    }

    /// The wire is back.
    pub fn mended(&mut self, now: Duration) {
        self.mended = Some(now);
    }

    /// From now on, or no longer, what comes over each link is counted: while all of them are loaded.
    pub fn count_links(&mut self, counting: bool) {
        self.counting = counting;
    }

    /// A message came to the receiver of this pair.
    pub fn arrived(&mut self, pair: usize, body: &[u8], now: Duration) {
        self.last = now;
        let number = self.load.number(body).filter(|number| self.load.pair(*number) == pair);
        let Some(number) = number else {
            self.wrong += 1;
            return;
        };
        if let Some(seen) = usize::try_from(number).ok().and_then(|at| self.seen.get_mut(at))
            && std::mem::replace(seen, true)
        {
            self.repeated += 1;
            return;
        }
        self.received += 1;
        if self.counting
            && let Some(count) = self.by_link.get_mut(self.load.link(pair))
        {
            *count += 1;
        }
        if let Some(newest) = self.newest.get_mut(pair) {
            if newest.is_some_and(|newest| number < newest) {
                self.reordered += 1;
            }
            *newest = (*newest).max(Some(number));
        }
        let due = self.load.due(number);
        if let Some(mended) = self.mended
            && due <= mended
        {
            self.backlog = Some(now - mended);
        }
        if number >= self.load.warm_up {
            let latency = now.saturating_sub(due).as_micros();
            self.latencies
                .saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
        }
    }

    /// What was seen.
    pub fn figures(&self) -> Figures {
        let at = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Figures {
            sent: self.load.messages,
            lost: self.load.messages - self.received,
            repeated: self.repeated,
            reordered: self.reordered,
            wrong: self.wrong,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: self.latencies.max() as f64 / 1000.0,
            backlog: self.backlog.map(|backlog| backlog.as_secs_f64()),
            by_link: self.by_link.clone(),
            ..Figures::default()
        }
    }
}

/// What one run showed. Latencies are in milliseconds, from when a message was due to when its receiver had it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// The row.
    pub row: String,
    /// The relay.
    pub target: Option<Target>,
    /// Messages sent.
    pub sent: u64,
    /// Messages that did not arrive.
    pub lost: u64,
    /// Arrivals of messages that had arrived before.
    pub repeated: u64,
    /// Messages that came after a later one of their sender.
    pub reordered: u64,
    /// Bodies that are not those of this receiver's messages.
    pub wrong: u64,
    /// Half of the messages were as fast.
    pub p50: f64,
    /// Nine tenths were.
    pub p90: f64,
    /// All but a hundredth were.
    pub p99: f64,
    /// The slowest that arrived.
    pub max: f64,
    /// How long after the wire's return the last message arrived that was due before it, in seconds.
    pub backlog: Option<f64>,
    /// What came over each link while all of them were loaded.
    pub by_link: Vec<u64>,
    /// How many messages senders were told of as delivered, if receipts were asked for.
    pub delivered: Option<u64>,
    /// How many errors (or receipts of another kind) senders were told.
    pub errors: u64,
    /// One of them.
    pub error: String,
    /// Connections that ended before the run did.
    pub broken: u64,
    /// Megabits a second that came to the wire from A to B.
    pub megabits: f64,
    /// The packets, from A to B and from B to A.
    pub wire: [Stats; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        pairs: 2,
        links: 2,
        rate: 1000,
        body: 16,
        messages: 8,
        warm_up: 0,
    };

    fn arrive(check: &mut Check, number: u64, ms: u64) {
        let body = LOAD.body(number);
        check.arrived(LOAD.pair(number), body.as_bytes(), Duration::from_millis(ms));
    }

    #[test]
    fn what_is_lost_repeated_or_out_of_order_is_seen() {
        let mut check = Check::new(LOAD).unwrap();
        for (number, ms) in [(0, 1), (4, 5), (2, 6), (4, 7), (1, 8), (3, 9)] {
            arrive(&mut check, number, ms);
        }
        check.arrived(0, LOAD.body(5).as_bytes(), Duration::ZERO);
        check.arrived(0, b"no", Duration::ZERO);
        let figures = check.figures();
        assert_eq!(
            (figures.lost, figures.repeated, figures.reordered, figures.wrong),
            (3, 1, 1, 2)
        );
    }

    #[test]
    fn each_link_is_counted_by_itself_and_only_when_told() {
        let mut check = Check::new(LOAD).unwrap();
        arrive(&mut check, 0, 1);
        check.count_links(true);
        for number in [1, 2, 3, 5] {
            arrive(&mut check, number, 10);
        }
        check.count_links(false);
        arrive(&mut check, 4, 20);
        assert_eq!(check.figures().by_link, [1, 3]);
    }

    #[test]
    fn latency_counts_from_when_a_message_was_due() {
        let mut check = Check::new(LOAD).unwrap();
        arrive(&mut check, 0, 10);
        arrive(&mut check, 1, 101);
        let figures = check.figures();
        assert!(
            (figures.p50 - 10.0).abs() < 0.02 && (figures.max - 100.0).abs() < 0.2,
            "{figures:?}"
        );
    }

    #[test]
    fn the_backlog_is_what_was_due_before_the_wire_was_back() {
        let mut check = Check::new(LOAD).unwrap();
        arrive(&mut check, 0, 1);
        check.mended(Duration::from_millis(3));
        arrive(&mut check, 2, 53);
        arrive(&mut check, 6, 90);
        assert_eq!(check.figures().backlog, Some(0.05));
    }
}
