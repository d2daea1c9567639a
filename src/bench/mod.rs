//! Measures a relay: pairs of clients, each a sender and a receiver, that check every message.
//!
//! - [`speech`] (pure) is what Trunkline's line clients, NATS and Redis say and hear; QUIC clients are the library's.
//! - [`tally`] (pure) checks what arrives: lost, repeated, out of order, and how long it took.
//! - [`load`](mod@load) sends and receives. [`usage`] is what processes take of the machine meanwhile.
//! - [`report`] is what was seen: a table, JSON, a plot.
//!
//! A latency counts from the time when a message was due, not from when it could be sent: a relay that holds its senders
//! up is not let off (no coordinated omission). At full speed a message is due when there is room for it.

pub mod load;
pub mod report;
pub mod speech;
pub mod tally;
pub mod usage;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::HostPort;

/// The shortest body, in bytes: a number and a time, of 48 bits each in base64.
pub const LEAST_SIZE: usize = 16;

/// The longest body, in bytes: each sender has one in memory.
const MOST_SIZE: usize = 1 << 30;

/// The longest run: a body has no place for later times.
const LONGEST: Duration = Duration::from_secs(3 * 24 * 3600);

/// What is run.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The node of the senders.
    pub from: Target,
    /// The node of the receivers.
    pub to: Target,
    /// Pairs of a sender and a receiver.
    pub pairs: usize,
    /// Bytes of a body.
    pub size: usize,
    /// Messages that one pair may have sent and not received.
    pub window: u64,
    /// Messages a second of all pairs together; `None`: as fast as it goes.
    pub rate: Option<u64>,
    /// When it is over.
    pub extent: Extent,
    /// Processes to look at.
    pub pids: Vec<u32>,
    /// Where `node-ca.pem` is, for QUIC clients.
    pub certs: PathBuf,
}

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// After so many messages of each pair, all of which are measured.
    Count(u64),
    /// After this time, what comes in the first part of it not being measured.
    Time {
        /// Not measured.
        warm_up: Duration,
        /// Measured.
        measured: Duration,
    },
}

/// How clients come to a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Trunkline's legacy protocol.
    Line,
    /// Trunkline's client protocol.
    Quic,
    /// `nats-server`'s protocol, a subject a pair.
    Nats,
    /// Redis's publish and subscribe, a channel a pair.
    Redis,
}

impl Transport {
    const ALL: [Self; 4] = [Self::Line, Self::Quic, Self::Nats, Self::Redis];

    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Line => "tcp",
            Self::Quic => "quic",
            Self::Nats => "nats",
            Self::Redis => "redis",
        }
    }
}

/// A relay to measure: `tcp://HOST:PORT`, `quic://HOST:PORT`, `nats://HOST:PORT` or `redis://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How to talk to it.
    pub transport: Transport,
    /// Where it is.
    pub at: HostPort,
}

/// A text that is no [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not tcp://HOST:PORT, quic://HOST:PORT, nats://HOST:PORT or redis://HOST:PORT")]
pub struct NoTarget;

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let (scheme, at) = text.split_once("://").ok_or(NoTarget)?;
        let mut all = Transport::ALL.into_iter();
        let transport = all.find(|one| one.scheme() == scheme).ok_or(NoTarget)?;
        let at = at.strip_suffix('/').unwrap_or(at).parse().map_err(|_| NoTarget)?;
        Ok(Self { transport, at })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.scheme(), self.at)
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The workload makes no sense.
    #[error("{0}")]
    Workload(String),
    /// A client can't get to its relay.
    #[error("can't connect to {0}: {1}")]
    Connect(Target, String),
    /// A client's connection broke, or the relay refused something.
    #[error("pair {pair}, its {side}: {what}")]
    Client {
        /// Which pair, from 0.
        pair: usize,
        /// `sender` or `receiver`.
        side: &'static str,
        /// What happened.
        what: String,
    },
    /// A process can't be looked at.
    #[error("process {0}: {1}; is it running, and yours?")]
    Process(u32, std::io::Error),
}

impl Workload {
    /// Whether it makes sense.
    ///
    /// # Errors
    ///
    /// With a text for whoever wrote it.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |text: String| Err(BenchError::Workload(text));
        let same = |one: Transport| matches!(one, Transport::Line | Transport::Quic);
        if self.from.transport != self.to.transport && !(same(self.from.transport) && same(self.to.transport)) {
            return wrong(format!("{} and {} do not understand each other", self.from, self.to));
        }
        if self.pairs == 0 || self.window == 0 || self.rate == Some(0) {
            return wrong("pairs, window and rate are at least 1".to_owned());
        }
        if self.size < LEAST_SIZE {
            return wrong(format!(
                "a body has at least {LEAST_SIZE} bytes: its number and its time are in it"
            ));
        }
        if self.size > MOST_SIZE {
            return wrong(format!("a body has at most {MOST_SIZE} bytes"));
        }
        match self.extent {
            Extent::Count(0) => wrong("there is nothing to count".to_owned()),
            Extent::Time { measured, .. } if measured.is_zero() => wrong("there is no time to measure in".to_owned()),
            Extent::Time { warm_up, measured } if warm_up.saturating_add(measured) > LONGEST => {
                wrong("three days are the longest that can be measured".to_owned())
            }
            Extent::Count(_) | Extent::Time { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_url() {
        for text in [
            "tcp://127.0.0.1:1215",
            "quic://[::1]:1",
            "nats://a.example:4222",
            "redis://h:6379",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("tcp://h:1/".parse::<Target>().unwrap().to_string(), "tcp://h:1");
        for text in ["", "127.0.0.1:1", "http://h:1", "tcp://h", "tcp://h:1/x"] {
            assert_eq!(text.parse::<Target>(), Err(NoTarget), "{text}");
        }
    }
}
