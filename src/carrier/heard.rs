//! Whether the other side of a connection is still there.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How the carrier watches over the other side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Liveness {
    /// How often to ping.
    pub(crate) ping: Duration,
    /// How long a silence may last before the connection is given up.
    pub(crate) silence: Duration,
}

/// How many unanswered pings are remembered.
const MOST_PINGS: usize = 64;

/// When the other side was last heard of, and since when it owes an answer; readable while the carrier runs.
#[derive(Debug)]
pub(crate) struct Heard {
    state: Mutex<HeardState>,
}

#[derive(Debug)]
struct HeardState {
    at: Instant,
    /// Pings that are not answered, with their numbers, oldest first.
    pings: VecDeque<(u64, Instant)>,
}

impl Heard {
    pub(crate) fn now() -> Self {
        Self {
            state: Mutex::new(HeardState {
                at: Instant::now(),
                pings: VecDeque::new(),
            }),
        }
    }

    pub(crate) fn at(&self) -> Instant {
        self.state.lock().at
    }

    /// For how long the connection has been in doubt: nothing is heard, or what is heard answers none of the pings since
    /// then, as when what goes the other way is lost.
    pub(crate) fn doubt(&self, now: Instant) -> Duration {
        let state = self.state.lock();
        let since = state.pings.front().map_or(state.at, |&(_, sent)| sent.min(state.at));
        now.saturating_duration_since(since)
    }

    pub(super) fn touch(&self, now: Instant) {
        self.state.lock().at = now;
    }

    pub(super) fn pinged(&self, now: Instant, number: u64) {
        let mut state = self.state.lock();
        // The oldest one tells; without the rest, an answer to one of the first would tell nothing.
        if state.pings.len() < MOST_PINGS {
            state.pings.push_back((number, now));
        }
    }

    /// The newest ping that came is answered, and with it those before.
    pub(super) fn ponged(&self, number: u64) {
        let mut state = self.state.lock();
        let answered = state.pings.partition_point(|(ping, _)| *ping <= number);
        state.pings.drain(..answered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_in_doubt_since_it_was_heard_or_owes_an_answer() {
        let heard = Heard::now();
        let start = heard.at();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(heard.doubt(at(3)), Duration::from_secs(3), "silent");
        for number in 1..=4 {
            heard.pinged(at(number), number);
        }
        heard.touch(at(9));
        assert_eq!(heard.doubt(at(10)), Duration::from_secs(9), "heard, and not answered");
        heard.ponged(3);
        assert_eq!(
            heard.doubt(at(10)),
            Duration::from_secs(6),
            "the last one is not answered"
        );
        heard.ponged(4);
        assert_eq!(heard.doubt(at(10)), Duration::from_secs(1));
    }
}
