//! Pure: which faults happen, to whom and for how long, drawn from one seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The wire between the nodes loses 1 to 30 % of the packets.
    Loss,
    /// It lets packets overtake each other.
    Reorder,
    /// It carries packets twice.
    Duplicate,
    /// Its delay varies.
    Jitter,
    /// It is cut for less than the silence after which nodes give a link up.
    ShortCut,
    /// It is cut for longer than that.
    LongCut,
    /// It is cut from the first node to the second.
    CutThere,
    /// It is cut from the second node to the first.
    CutBack,
    /// A node is killed and started again.
    NodeKilled,
    /// Both are, at the same time.
    BothNodesKilled,
    /// A node is stopped (`SIGSTOP`) for a while.
    NodeStopped,
    /// A client is stopped for a while.
    ClientStopped,
    /// A client is killed; another takes its place.
    ClientKilled,
    /// A QUIC client's packets get nowhere, so that it has to come back.
    ClientCutOff,
    /// A QUIC client's wire loses packets.
    ClientLoss,
    /// A QUIC client goes on from another port.
    ClientRebound,
    /// A client reads slowly.
    SlowReader,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 17] = [
        Self::Loss,
        Self::Reorder,
        Self::Duplicate,
        Self::Jitter,
        Self::ShortCut,
        Self::LongCut,
        Self::CutThere,
        Self::CutBack,
        Self::NodeKilled,
        Self::BothNodesKilled,
        Self::NodeStopped,
        Self::ClientStopped,
        Self::ClientKilled,
        Self::ClientCutOff,
        Self::ClientLoss,
        Self::ClientRebound,
        Self::SlowReader,
    ];

    /// The kinds that a lane deals, from a deck that is shuffled anew whenever it is empty.
    fn deck(lane: Lane) -> &'static [Self] {
        match lane {
            Lane::Link => &Self::ALL_OF_LINK,
            Lane::Nodes => &[
                Self::NodeKilled,
                Self::NodeStopped,
                Self::BothNodesKilled,
                Self::NodeStopped,
            ],
            Lane::Clients(_) => &[
                Self::ClientStopped,
                Self::ClientKilled,
                Self::ClientCutOff,
                Self::ClientLoss,
                Self::ClientRebound,
                Self::SlowReader,
            ],
        }
    }

    const ALL_OF_LINK: [Self; 8] = [
        Self::Loss,
        Self::Reorder,
        Self::Duplicate,
        Self::Jitter,
        Self::ShortCut,
        Self::LongCut,
        Self::CutThere,
        Self::CutBack,
    ];

    /// The shortest and the longest time it goes on, in milliseconds. For what is killed: until it is started again.
    fn range(self) -> (u64, u64) {
        match self {
            Self::Loss | Self::Reorder | Self::Duplicate | Self::Jitter | Self::ClientLoss => (2000, 6000),
            Self::ShortCut => (1000, 5000),
            Self::LongCut => (12_000, 25_000),
            Self::CutThere | Self::CutBack => (1000, 15_000),
            Self::NodeKilled | Self::BothNodesKilled => (0, 3000),
            Self::NodeStopped | Self::ClientStopped => (1000, 20_000),
            Self::ClientKilled | Self::ClientRebound => (0, 0),
            Self::ClientCutOff => (3000, 8000),
            Self::SlowReader => (2000, 8000),
        }
    }

    /// Whether only a QUIC client can have it.
    fn needs_quic(self) -> bool {
        matches!(self, Self::ClientCutOff | Self::ClientLoss | Self::ClientRebound)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "link: packets lost",
            Self::Reorder => "link: packets reordered",
            Self::Duplicate => "link: packets duplicated",
            Self::Jitter => "link: delay varies",
            Self::ShortCut => "link: short cut",
            Self::LongCut => "link: long cut",
            Self::CutThere => "link: cut one way",
            Self::CutBack => "link: cut the other way",
            Self::NodeKilled => "node: killed",
            Self::BothNodesKilled => "both nodes: killed",
            Self::NodeStopped => "node: stopped",
            Self::ClientStopped => "client: stopped",
            Self::ClientKilled => "client: killed",
            Self::ClientCutOff => "client: cut off",
            Self::ClientLoss => "client: packets lost",
            Self::ClientRebound => "client: other port",
            Self::SlowReader => "client: reads slowly",
        })
    }
}

/// Faults of one lane follow each other; those of different lanes overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The wire between the nodes.
    Link,
    /// The nodes.
    Nodes,
    /// A part of the clients: those whose place is this modulo [`CLIENT_LANES`].
    Clients(usize),
}

/// How many lanes the clients have.
pub const CLIENT_LANES: usize = 2;

/// One fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// How long nothing happens in its lane before it.
    pub gap: Duration,
    /// How long it goes on.
    pub length: Duration,
    /// Which node or client it happens to; of no meaning for the link.
    pub target: usize,
    /// How strong it is, 0.01 to 0.3: a share of packets.
    pub share: f64,
}

/// Draws `faults` faults from a seed, in lanes. No fault is longer than `longest`. `quic` says of each place for a client
/// whether it is a QUIC client's; each lane of clients must have one.
pub fn draw(seed: u64, faults: usize, longest: Duration, quic: &[bool]) -> Vec<(Lane, Vec<Fault>)> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut lanes = vec![(Lane::Link, 7), (Lane::Nodes, 3)];
    lanes.extend((0..CLIENT_LANES).map(|lane| (Lane::Clients(lane), 5)));
    let shares: usize = lanes.iter().map(|(_, share)| share).sum();
    let mut left = faults;
    let mut plan = Vec::new();
    for (index, (lane, share)) in lanes.iter().enumerate() {
        let last = index + 1 == lanes.len();
        let count = if last {
            left
        } else {
            (faults * share / shares).min(left)
        };
        left -= count;
        let mut deck = Vec::new();
        let mut dealt = Vec::new();
        for _ in 0..count {
            if deck.is_empty() {
                deck.extend_from_slice(Kind::deck(*lane));
                deck.shuffle(&mut chance);
            }
            dealt.extend(deck.pop().map(|kind| fault(kind, *lane, longest, quic, &mut chance)));
        }
        plan.push((*lane, dealt));
    }
    plan
}

fn fault(kind: Kind, lane: Lane, longest: Duration, quic: &[bool], chance: &mut StdRng) -> Fault {
    let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    let (least, most) = kind.range();
    let (least, most) = (least.min(longest), most.min(longest));
    let places: Vec<usize> = match lane {
        Lane::Link => vec![0],
        Lane::Nodes => vec![0, 1],
        Lane::Clients(lane) => (0..quic.len())
            .filter(|place| place % CLIENT_LANES == lane)
            .filter(|place| !kind.needs_quic() || quic.get(*place) == Some(&true))
            .collect(),
    };
    let target = chance.random_range(0..places.len().max(1));
    Fault {
        kind,
        gap: Duration::from_millis(chance.random_range(200..1500)),
        length: Duration::from_millis(chance.random_range(least..=most)),
        target: places.get(target).copied().unwrap_or_default(),
        share: chance.random_range(0.01..0.3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIC: [bool; 8] = [false, false, true, true, false, false, true, true];

    #[test]
    fn a_seed_gives_the_same_faults_each_time_and_all_kinds_of_them() {
        let longest = Duration::from_secs(60);
        let plan = draw(7, 200, longest, &QUIC);
        assert_eq!(plan, draw(7, 200, longest, &QUIC));
        let faults: Vec<&Fault> = plan.iter().flat_map(|(_, faults)| faults).collect();
        assert_eq!(faults.len(), 200);
        for kind in Kind::ALL {
            assert!(faults.iter().filter(|fault| fault.kind == kind).count() >= 5, "{kind}");
        }
        for fault in faults {
            assert!(!fault.kind.needs_quic() || QUIC[fault.target], "{fault:?}");
        }
        assert_ne!(plan, draw(8, 200, longest, &QUIC));
    }

    #[test]
    fn clients_have_faults_of_their_own_lane_only() {
        for (lane, faults) in draw(1, 100, Duration::from_secs(1), &QUIC) {
            assert!(faults.iter().all(|fault| fault.length <= Duration::from_secs(1)));
            if let Lane::Clients(lane) = lane {
                assert!(faults.iter().all(|fault| fault.target % CLIENT_LANES == lane));
            }
        }
    }
}
