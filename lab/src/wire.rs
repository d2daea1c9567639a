//! Pure: what a bad wire does to each packet. Time and chance come in as arguments.

use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// What a wire is like, each way.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How long every packet is under way.
    pub delay: Duration,
    /// By how much that varies, to each side, evenly. Packets keep their order.
    pub jitter: Duration,
    /// The share of packets that is lost, each by itself.
    pub loss: f64,
    /// The share of packets that others overtake.
    pub reorder: f64,
    /// How much later than they should such packets are.
    pub reorder_by: Duration,
    /// The share of packets that come twice.
    pub duplicate: f64,
    /// Bits a second; `None`: any number.
    pub rate: Option<u64>,
    /// Bytes that may wait where the rate is limited; what comes on top is dropped.
    pub queue: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
            duplicate: 0.0,
            rate: None,
            queue: 1 << 20,
        }
    }
}

/// What became of the packets of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Packets that were to be carried.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets dropped because the queue was full.
    pub dropped: u64,
    /// Packets that came while the wire was cut.
    pub cut: u64,
    /// Packets that others may have overtaken.
    pub reordered: u64,
    /// Packets that came twice.
    pub duplicated: u64,
}

/// When a packet comes out: never, once or twice.
pub type Arrivals = [Option<Duration>; 2];

/// One direction of a wire.
#[derive(Debug, Default)]
pub struct Path {
    /// What it is like from now on.
    pub settings: Settings,
    /// Whether it is cut: what comes in is lost. What is under way arrives.
    pub cut: bool,
    /// What has happened so far.
    pub stats: Stats,
    /// When the last packet will have left the queue.
    free_at: Duration,
    /// When the last packet that kept the order comes out.
    last_arrival: Duration,
}

impl Path {
    /// A packet of `bytes` comes in: says when it comes out.
    pub fn send(&mut self, now: Duration, bytes: usize, chance: &mut impl Rng) -> Arrivals {
        self.stats.packets += 1;
        self.stats.bytes += bytes as u64;
        if self.cut {
            self.stats.cut += 1;
            return [None, None];
        }
        let Some(left) = self.through_queue(now, bytes) else {
            self.stats.dropped += 1;
            return [None, None];
        };
        if happens(self.settings.loss, chance) {
            self.stats.lost += 1;
            return [None, None];
        }
        let first = self.arrival(left, chance);
        let second = happens(self.settings.duplicate, chance).then(|| {
            self.stats.duplicated += 1;
            self.arrival(left, chance)
        });
        [Some(first), second]
    }

    /// When a packet that comes now has left the queue; `None` if there is no room.
    fn through_queue(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Some(rate) = self.settings.rate.filter(|rate| *rate > 0) else {
            return Some(now);
        };
        let wait = self.free_at.saturating_sub(now);
        let waiting = wait.as_secs_f64() * rate as f64 / 8.0;
        if waiting + bytes as f64 > self.settings.queue as f64 {
            return None;
        }
        self.free_at = now + wait + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64);
        Some(self.free_at)
    }

    fn arrival(&mut self, left: Duration, chance: &mut impl Rng) -> Duration {
        let jitter = self.settings.jitter.as_secs_f64();
        let delay = self.settings.delay.as_secs_f64() + jitter * chance.random_range(-1.0..=1.0);
        let arrival = left + Duration::from_secs_f64(delay.max(0.0));
        if happens(self.settings.reorder, chance) {
            self.stats.reordered += 1;
            return arrival + self.settings.reorder_by;
        }
        self.last_arrival = self.last_arrival.max(arrival);
        self.last_arrival
    }
}

fn happens(share: f64, chance: &mut impl Rng) -> bool {
    share > 0.0 && chance.random::<f64>() < share
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn path(settings: Settings) -> (Path, StdRng) {
        let path = Path {
            settings,
            ..Path::default()
        };
        (path, StdRng::seed_from_u64(1))
    }

    /// Sends packets of 1,000 bytes, one each millisecond.
    fn send(path: &mut Path, chance: &mut StdRng, packets: u32) -> Vec<Arrivals> {
        (0..packets).map(|i| path.send(MS * i, 1000, chance)).collect()
    }

    #[test]
    fn a_good_wire_only_delays() {
        let (mut path, mut chance) = path(Settings {
            delay: 10 * MS,
            ..Settings::default()
        });
        for (i, arrivals) in (0..100).zip(send(&mut path, &mut chance, 100)) {
            assert_eq!(arrivals, [Some(MS * i + 10 * MS), None]);
        }
    }

    #[test]
    fn jitter_varies_the_delay_and_keeps_the_order() {
        let (mut path, mut chance) = path(Settings {
            delay: 10 * MS,
            jitter: 5 * MS,
            ..Settings::default()
        });
        let arrivals: Vec<_> = send(&mut path, &mut chance, 1000)
            .iter()
            .map(|arrivals| arrivals[0].unwrap())
            .collect();
        assert!(arrivals.is_sorted());
        let delays = arrivals.iter().zip(0..).map(|(arrival, i)| *arrival - MS * i);
        assert!(delays.clone().all(|delay| delay >= 5 * MS && delay <= 15 * MS));
        assert!(delays.clone().min() < delays.max());
    }

    #[test]
    fn loss_takes_its_share() {
        let (mut path, mut chance) = path(Settings {
            loss: 0.05,
            ..Settings::default()
        });
        let lost = send(&mut path, &mut chance, 10_000)
            .iter()
            .filter(|arrivals| arrivals[0].is_none())
            .count();
        assert!((400..600).contains(&lost), "{lost}");
        assert_eq!(path.stats.lost, lost as u64);
    }

    #[test]
    fn some_are_overtaken_and_some_come_twice() {
        let (mut path, mut chance) = path(Settings {
            reorder: 0.1,
            duplicate: 0.1,
            ..Settings::default()
        });
        let arrivals = send(&mut path, &mut chance, 1000);
        assert!(!arrivals.iter().map(|arrivals| arrivals[0]).is_sorted());
        let twice = arrivals.iter().filter(|arrivals| arrivals[1].is_some()).count();
        assert!((50..200).contains(&twice), "{twice}");
        assert_eq!(path.stats.duplicated, twice as u64);
        assert!(path.stats.reordered > 50);
    }

    #[test]
    fn a_narrow_wire_queues_and_then_drops() {
        // A packet of 1,000 bytes takes 8 ms; three may wait.
        let (mut path, mut chance) = path(Settings {
            rate: Some(1_000_000),
            queue: 3000,
            ..Settings::default()
        });
        let at_once: Vec<_> = (0..5)
            .map(|_| path.send(Duration::ZERO, 1000, &mut chance)[0])
            .collect();
        assert_eq!(at_once, [Some(8 * MS), Some(16 * MS), Some(24 * MS), None, None]);
        assert_eq!(path.stats.dropped, 2);
        assert_eq!(path.send(24 * MS, 1000, &mut chance)[0], Some(32 * MS));
    }

    #[test]
    fn nothing_passes_a_cut_wire_until_it_is_mended() {
        let (mut path, mut chance) = path(Settings::default());
        path.cut = true;
        assert_eq!(path.send(MS, 100, &mut chance), [None, None]);
        path.cut = false;
        assert_eq!(path.send(2 * MS, 100, &mut chance), [Some(2 * MS), None]);
        assert_eq!(path.stats.cut, 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_wire() {
        let settings = Settings {
            loss: 0.1,
            jitter: MS,
            ..Settings::default()
        };
        let (mut one, mut chance) = path(settings.clone());
        let (mut other, mut same_chance) = path(settings);
        assert_eq!(
            send(&mut one, &mut chance, 500),
            send(&mut other, &mut same_chance, 500)
        );
    }
}
