//! What a node counts of trouble: each kind of refusal, hold and disconnection by which it keeps to its limits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the set, so that no counter lacks a name or a place.
macro_rules! counters {
    ($($(#[$doc:meta])* $counter:ident = $name:literal,)*) => {
        /// What is counted: one closed set.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Counter {
            $($(#[$doc])* $counter,)*
        }

        impl Counter {
            /// Every counter there is, in the order of their declaration.
            pub(crate) const ALL: &[Self] = &[$(Self::$counter,)*];

            /// The counter's name, in logs and snapshots.
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$counter => $name,)*
                }
            }
        }

        /// How many counters there are.
        const COUNT: usize = Counter::ALL.len();
    };
}

counters! {
    /// The system could not give a connection to the TCP listener.
    AcceptErrors = "accept-errors",
    /// Clients turned away because of `--max-clients`.
    RefusedClients = "refused-clients",
    /// TCP connections closed, as they came from outside the networks of `--tcp-allow`.
    RefusedNetwork = "refused-network",
    /// TCP clients turned away because as many as may be were about to log in.
    RefusedLogins = "refused-logins",
    /// Logins refused: no token, or one that is not accepted.
    RefusedTokens = "refused-tokens",
    /// Messages refused because the sender's token does not allow them.
    RefusedPermission = "refused-permission",
    /// Clients turned away because of `--max-per-source`.
    RefusedSource = "refused-source",
    /// TCP clients turned away because there are no file descriptors for more.
    RefusedDescriptors = "refused-descriptors",
    /// Retry packets asked for: QUIC clients that have to prove their address first.
    Retries = "retries",
    /// QUIC handshakes of clients refused, as the node shuts down.
    HandshakesRefused = "handshakes-refused",
    /// QUIC handshakes of clients ignored because of `--max-handshakes`.
    HandshakesIgnored = "handshakes-ignored",
    /// QUIC handshakes of clients ignored because of `--max-handshakes-per-source`.
    HandshakesIgnoredSource = "handshakes-ignored-source",
    /// QUIC connections of clients without a `hello` within `--hello`.
    HandshakesLate = "handshakes-late",
    /// QUIC connections of clients that broke, or began with something else than a `hello` that is spoken here.
    HandshakesFailed = "handshakes-failed",
    /// Retry packets asked for on the link port.
    LinkRetries = "link-retries",
    /// Handshakes refused on the link port, as the node shuts down.
    LinkHandshakesRefused = "link-handshakes-refused",
    /// Handshakes ignored on the link port because of `--max-handshakes`.
    LinkHandshakesIgnored = "link-handshakes-ignored",
    /// Handshakes ignored on the link port because of `--max-handshakes-per-source`.
    LinkHandshakesIgnoredSource = "link-handshakes-ignored-source",
    /// Connections to the link port that took too long to shake hands or to greet.
    LinkHandshakesLate = "link-handshakes-late",
    /// Connections to the link port that broke, or showed no certificate of a node that is welcome.
    LinkHandshakesFailed = "link-handshakes-failed",
    /// Packets that came by the bus and were not made by the node that they should be from, or were altered.
    BusForged = "bus-forged",
    /// Packets that came by the bus a second time.
    BusReplayed = "bus-replayed",
    /// Packets that came by the bus for a session that there is none of, or no more.
    BusStray = "bus-stray",
    /// Packets for another node that more than one process has taken from the bus.
    BusTwins = "bus-twins",
    /// TCP clients that had no line within `--first-line`.
    EndedFirstLine = "ended-first-line",
    /// Clients without a message, from them or to them, for `--idle`.
    EndedIdle = "ended-idle",
    /// TCP clients whose line did not end within `--line-time`.
    EndedSlowLine = "ended-slow-line",
    /// QUIC clients with a message that did not end within `--line-time`.
    EndedSlowStream = "ended-slow-stream",
    /// TCP clients with a line over the limit.
    EndedLongLine = "ended-long-line",
    /// TCP connections that speak another protocol.
    EndedStranger = "ended-stranger",
    /// QUIC clients that broke the protocol.
    EndedProtocol = "ended-protocol",
    /// Clients that took nothing for `--stall`.
    EndedStalled = "ended-stalled",
    /// TCP clients that took what was written to them more slowly than `--min-rate`.
    EndedSlowReader = "ended-slow-reader",
    /// Messages refused to QUIC clients that had more under way than they may.
    RefusedWindow = "refused-window",
    /// Times that a client was held because of `--client-message-rate` or `--client-byte-rate`.
    HeldRate = "held-rate",
    /// Messages for a client that is not there.
    RefusedNoClient = "refused-no-client",
    /// Messages for a client that is not there, those to one of the last few such addresses not counted.
    Misses = "misses",
    /// Times that a client was held because of `--miss-rate`.
    HeldMisses = "held-misses",
    /// Messages refused because a legacy server could not be reached, or had no turn for them in time.
    RefusedLegacy = "refused-legacy",
    /// Messages of legacy servers refused because they were for a client of another node.
    RefusedHop = "refused-hop",
    /// Messages that may not have come to a legacy server: the connection broke while they were written, or was too
    /// slow.
    UnknownLegacy = "unknown-legacy",
}

/// The counters of a node. Counting is one addition without a lock.
pub(crate) struct Counters([AtomicU64; COUNT]);

impl Counters {
    /// All at zero.
    pub(crate) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }

    /// Counts one more.
    pub(crate) fn bump(&self, counter: Counter) {
        self.count(counter);
    }

    /// Counts one more. Gives the number at the first, the second, the fourth and so on: what others can do as often as
    /// they like is logged then, so that nobody can fill the log.
    pub(crate) fn bump_logged(&self, counter: Counter) -> Option<u64> {
        let count = self.count(counter);
        count.is_power_of_two().then_some(count)
    }

    fn count(&self, counter: Counter) -> u64 {
        let count = self.0.get(counter as usize);
        count.map_or(0, |count| count.fetch_add(1, Ordering::Relaxed).wrapping_add(1))
    }

    /// What was counted so far, by name.
    pub(crate) fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Counter::ALL
            .iter()
            .map(|counter| counter.as_str())
            .zip(counts)
            .collect()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.snapshot()).finish()
    }
}

/// For the log: the counters that differ from what they were `before`, as `name=value`. `None`: none does.
pub(crate) fn changes(before: &BTreeMap<&'static str, u64>, now: &BTreeMap<&'static str, u64>) -> Option<String> {
    let changed: Vec<String> = now
        .iter()
        .filter(|&(name, value)| before.get(name).copied().unwrap_or_default() != *value)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    (!changed.is_empty()).then(|| changed.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_counts_under_a_name_of_its_own() {
        let counters = Counters::new();
        assert_eq!(counters.snapshot().len(), Counter::ALL.len());
        for (index, &counter) in Counter::ALL.iter().enumerate() {
            for _ in 0..=index {
                counters.bump(counter);
            }
            assert_eq!(counters.snapshot()[counter.as_str()], index as u64 + 1);
        }
    }

    #[test]
    fn each_counter_is_in_the_documents() {
        let documents = include_str!("../docs/architecture.md");
        for counter in Counter::ALL {
            assert!(
                documents.contains(&format!("| `{}` |", counter.as_str())),
                "{counter:?}"
            );
        }
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let counters = Counters::new();
        let start = counters.snapshot();
        assert_eq!(changes(&start, &start), None);
        counters.bump(Counter::Retries);
        counters.bump(Counter::HeldRate);
        let later = counters.snapshot();
        assert_eq!(changes(&start, &later).unwrap(), "held-rate=1 retries=1");
        counters.bump(Counter::Retries);
        assert_eq!(changes(&later, &counters.snapshot()).unwrap(), "retries=2");
        assert_eq!(changes(&BTreeMap::new(), &later).unwrap(), "held-rate=1 retries=1");
    }
}
