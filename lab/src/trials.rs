//! Pure: what is compared. A trial has entrants, which take turns, and aims.

use crate::comparison::{Bound, Comparison, Quantity};

/// What is started for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relay {
    /// Trunkline.
    Trunkline {
        /// How many nodes, each linked with each other.
        nodes: usize,
        /// Flags beside the defaults.
        flags: &'static [&'static str],
    },
    /// Trunkline's nodes, joined by a redis-server.
    Joined {
        /// How many.
        nodes: usize,
    },
    /// nats-server.
    Nats {
        /// How many servers, each with a route to each other.
        servers: usize,
        /// Whether the routes are encrypted, both ends with certificates.
        tls: bool,
    },
    /// redis-server, one.
    Redis,
}

/// What is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Messages flow.
    Flow(Flow),
    /// Clients are connected, and nothing more.
    Idle {
        /// How they come.
        clients: Clients,
        /// How many there are.
        count: usize,
    },
    /// Clients connect, as fast as they are let in.
    Accept {
        /// How many in all.
        connections: usize,
    },
    /// Clients of two nodes are connected, and each of the one has written a single message to one of the other.
    Conversations {
        /// How many of those there are.
        count: usize,
    },
}

/// How clients of Trunkline come. Those of other relays come by TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// By TCP, with lines.
    Tcp,
    /// By QUIC.
    Quic,
}

/// Between which relays messages flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// From the first to the last; of one relay, to itself.
    One,
    /// From each to the next, and from the last to the first.
    Ring,
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// How clients come.
    pub clients: Clients,
    /// From where to where.
    pub ways: Ways,
    /// Pairs of a sender and a receiver in all.
    pub pairs: usize,
    /// Bytes of a body.
    pub size: usize,
    /// Messages that a pair may have under way.
    pub window: u64,
    /// Messages a second of all pairs together; `None`: as fast as it goes.
    pub rate: Option<u64>,
}

/// A relay, and what is done with it.
#[derive(Debug, Clone)]
pub struct Entrant {
    /// What it is called in the table.
    pub label: String,
    /// What is started.
    pub relay: Relay,
    /// What is done with it.
    pub task: Task,
}

impl Entrant {
    /// Whether it is Trunkline, which is not to fail.
    pub fn is_ours(&self) -> bool {
        matches!(self.relay, Relay::Trunkline { .. } | Relay::Joined { .. })
    }

    /// How many files one process has to have open for it at least.
    pub fn open_files(&self) -> usize {
        let clients = match self.task {
            // The load can be split; a relay has one side of all pairs, or both.
            Task::Flow(flow) => match self.relay {
                Relay::Trunkline { nodes: 1, .. } | Relay::Nats { servers: 1, .. } | Relay::Redis => 2 * flow.pairs,
                Relay::Trunkline { .. } | Relay::Joined { .. } | Relay::Nats { .. } => flow.pairs,
            },
            Task::Idle { count, .. } => count,
            Task::Accept { connections } => connections,
            Task::Conversations { count } => 2 * count,
        };
        clients + OTHER_FILES
    }
}

/// Files that a process has open beside the connections of clients, and some to spare.
const OTHER_FILES: usize = 300;

/// Files that a load has open for a pair: the sender's socket twice, where it keeps to a rate, and the receiver's.
const FILES_OF_A_PAIR: usize = 3;

/// Over how many processes a load of so many pairs has to be spread, where one may have so many files open.
pub fn parts(pairs: usize, open_files: usize) -> usize {
    let most = open_files.saturating_sub(OTHER_FILES).max(FILES_OF_A_PAIR);
    (FILES_OF_A_PAIR * pairs).div_ceil(most).max(1)
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Trial {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is called in the document.
    pub title: &'static str,
    /// What a reader has to know of it.
    pub about: &'static str,
    /// What is measured.
    pub quantities: &'static [Quantity],
    /// Who takes turns.
    pub entrants: Vec<Entrant>,
    /// What is judged.
    pub comparisons: Vec<Comparison>,
}

const FLOW: &[Quantity] = &[
    Quantity::Messages,
    Quantity::Cpu,
    Quantity::P50,
    Quantity::P99,
    Quantity::Load,
];
const GROWTH: &[Quantity] = &[Quantity::Messages, Quantity::Cpu];

const NODE: Relay = Relay::Trunkline { nodes: 1, flags: &[] };
const NODES: Relay = Relay::Trunkline { nodes: 2, flags: &[] };
const JOINED: Relay = Relay::Joined { nodes: 2 };
const NATS: Relay = Relay::Nats { servers: 1, tls: false };
const NATS_TLS: Relay = Relay::Nats { servers: 2, tls: true };
const NATS_PLAIN: Relay = Relay::Nats { servers: 2, tls: false };

/// For more clients than the defaults let in, all of which come from one address.
const CROWD: &[&str] = &["--max-clients", "12000", "--max-per-source", "12000"];

const FULL_SPEED: Flow = Flow {
    clients: Clients::Tcp,
    ways: Ways::One,
    pairs: 16,
    size: 128,
    window: 1024,
    rate: None,
};

/// A rate far below what the relays can do. The window is wide enough that none is held by it.
const STEADY: Flow = Flow {
    pairs: 50,
    rate: Some(5000),
    ..FULL_SPEED
};

/// How cost grows is measured at a rate, so that what differs is not how full the batches are.
const GROWING: Flow = Flow {
    rate: Some(20_000),
    ..FULL_SPEED
};

/// The window for bodies of a size: a pair has about 1 MiB under way, two bodies at least.
fn window(size: usize) -> u64 {
    ((1 << 20) / size.max(1) as u64).clamp(2, FULL_SPEED.window)
}

fn entrant(label: impl Into<String>, relay: Relay, task: Task) -> Entrant {
    Entrant {
        label: label.into(),
        relay,
        task,
    }
}

/// The first entrant compared to another, or judged by itself.
fn first(to: Option<usize>, aims: &[(Quantity, Bound)]) -> Comparison {
    Comparison {
        of: 0,
        to,
        aims: aims.to_vec(),
    }
}

/// Each but the first entrant compared to the first.
fn each_to_first(entrants: &[Entrant], aims: &[(Quantity, Bound)]) -> Vec<Comparison> {
    let others = 1..entrants.len();
    others
        .map(|of| Comparison {
            of,
            to: Some(0),
            aims: aims.to_vec(),
        })
        .collect()
}

/// Trunkline and nats-server, two of each.
fn across(name: &'static str, title: &'static str, about: &'static str, flow: Flow) -> Trial {
    Trial {
        name,
        title,
        about,
        quantities: FLOW,
        entrants: vec![
            entrant("Trunkline", NODES, Task::Flow(flow)),
            entrant("NATS (TLS routes)", NATS_TLS, Task::Flow(flow)),
        ],
        comparisons: vec![first(Some(1), &[(Quantity::Messages, Bound::AtLeast(1.2))])],
    }
}

/// All trials, in the order of the document.
pub fn all() -> Vec<Trial> {
    let mut trials = at_full_speed();
    trials.extend(at_a_rate());
    trials.extend(of_clients());
    trials.extend(of_growth());
    trials
}

fn at_full_speed() -> Vec<Trial> {
    let mut main = across(
        "across",
        "Across nodes, 16 pairs",
        "At full speed, from TCP clients of one node to TCP clients of the other, with bodies of 128 bytes and 1,024 messages \
         under way a pair.",
        FULL_SPEED,
    );
    main.entrants
        .push(entrant("NATS (plaintext routes)", NATS_PLAIN, Task::Flow(FULL_SPEED)));
    main.comparisons = vec![
        first(
            Some(1),
            &[
                (Quantity::Messages, Bound::AtLeast(1.2)),
                (Quantity::Cpu, Bound::AtMost(0.85)),
            ],
        ),
        first(Some(2), &[]),
    ];
    vec![
        main,
        across(
            "across-1",
            "Across nodes, one pair",
            "The same with a single pair.",
            Flow { pairs: 1, ..FULL_SPEED },
        ),
        across(
            "across-1000",
            "Across nodes, 1,000 pairs",
            "The same with 1,000 pairs and 64 messages under way a pair.",
            Flow {
                pairs: 1000,
                window: 64,
                ..FULL_SPEED
            },
        ),
        across(
            "across-16k",
            "Across nodes, bodies of 16 KiB",
            "16 pairs with bodies of 16 KiB and 64 messages under way a pair.",
            Flow {
                size: 16 << 10,
                window: 64,
                ..FULL_SPEED
            },
        ),
        Trial {
            name: "quic",
            title: "Across nodes, QUIC clients",
            about: "16 pairs, QUIC clients on both sides, with bodies of 128 bytes and 1,024 messages under way a pair. The other \
                    relays have no such clients.",
            quantities: FLOW,
            entrants: vec![entrant(
                "Trunkline",
                NODES,
                Task::Flow(Flow {
                    clients: Clients::Quic,
                    ..FULL_SPEED
                }),
            )],
            comparisons: vec![first(None, &[(Quantity::Messages, Bound::AtLeast(250_000.0))])],
        },
        Trial {
            name: "by-redis",
            title: "Across nodes by Redis, 16 pairs",
            about: "Two nodes that are joined by a Redis, beside that Redis alone, which clients publish to and subscribe at \
                    directly. The processor time is that of all servers, Redis too.",
            quantities: FLOW,
            entrants: vec![
                entrant("Trunkline by Redis", JOINED, Task::Flow(FULL_SPEED)),
                entrant("Redis", Relay::Redis, Task::Flow(FULL_SPEED)),
            ],
            comparisons: vec![first(Some(1), &[(Quantity::Messages, Bound::AtLeast(1.0))])],
        },
        Trial {
            name: "one-node",
            title: "One node, 16 pairs",
            about: "At full speed on one node, with bodies of 128 bytes and 1,024 messages under way a pair.",
            quantities: FLOW,
            entrants: vec![
                entrant("Trunkline", NODE, Task::Flow(FULL_SPEED)),
                entrant("Redis", Relay::Redis, Task::Flow(FULL_SPEED)),
                entrant("NATS (one server)", NATS, Task::Flow(FULL_SPEED)),
            ],
            comparisons: vec![
                first(
                    Some(1),
                    &[
                        (Quantity::Messages, Bound::AtLeast(1.6)),
                        (Quantity::Cpu, Bound::AtMost(0.55)),
                    ],
                ),
                first(Some(2), &[(Quantity::Messages, Bound::AtLeast(1.3))]),
            ],
        },
    ]
}

fn at_a_rate() -> Vec<Trial> {
    vec![
        Trial {
            name: "steady",
            title: "Across nodes, 5,000 messages a second",
            about: "50 pairs of TCP clients with bodies of 128 bytes.",
            quantities: FLOW,
            entrants: vec![
                entrant("Trunkline", NODES, Task::Flow(STEADY)),
                entrant("NATS (TLS routes)", NATS_TLS, Task::Flow(STEADY)),
            ],
            comparisons: vec![first(
                Some(1),
                &[
                    (Quantity::P50, Bound::AtMost(0.85)),
                    (Quantity::P99, Bound::AtMost(0.85)),
                    (Quantity::Cpu, Bound::AtMost(0.5)),
                ],
            )],
        },
        Trial {
            name: "steady-by-redis",
            title: "Across nodes by Redis, 5,000 messages a second",
            about: "50 pairs of TCP clients with bodies of 128 bytes, of two nodes that are joined by a Redis, beside that Redis \
                    alone.",
            quantities: FLOW,
            entrants: vec![
                entrant("Trunkline by Redis", JOINED, Task::Flow(STEADY)),
                entrant("Redis", Relay::Redis, Task::Flow(STEADY)),
            ],
            comparisons: vec![first(Some(1), &[(Quantity::P50, Bound::AtMost(2.5))])],
        },
        Trial {
            name: "steady-one-node",
            title: "One node, 5,000 messages a second",
            about: "The same on one node.",
            quantities: FLOW,
            entrants: vec![
                entrant("Trunkline", NODE, Task::Flow(STEADY)),
                entrant("Redis", Relay::Redis, Task::Flow(STEADY)),
            ],
            comparisons: vec![first(Some(1), &[])],
        },
    ]
}

fn of_clients() -> Vec<Trial> {
    let crowd = Relay::Trunkline { nodes: 1, flags: CROWD };
    let idle = Task::Idle {
        clients: Clients::Tcp,
        count: 10_000,
    };
    let accept = Task::Accept { connections: 5000 };
    vec![
        Trial {
            name: "idle-tcp",
            title: "10,000 idle TCP clients",
            about: "What the memory of one relay has grown by for each, two seconds after the last has come. Those of NATS have one \
                    subscription each. The kernel's memory for sockets is not counted.",
            quantities: &[Quantity::ClientMemory],
            entrants: vec![
                entrant("Trunkline", crowd, idle),
                entrant("NATS (one server)", NATS, idle),
            ],
            comparisons: vec![
                first(None, &[(Quantity::ClientMemory, Bound::AtMost(4.0))]),
                first(Some(1), &[]),
            ],
        },
        Trial {
            name: "idle-quic",
            title: "2,000 idle QUIC clients",
            about: "The same with QUIC clients.",
            quantities: &[Quantity::ClientMemory],
            entrants: vec![entrant(
                "Trunkline",
                crowd,
                Task::Idle {
                    clients: Clients::Quic,
                    count: 2000,
                },
            )],
            comparisons: vec![first(None, &[(Quantity::ClientMemory, Bound::AtMost(64.0))])],
        },
        Trial {
            name: "accept",
            title: "Accepting TCP clients",
            about: "5,000 clients connect to one relay, 64 at once, each until it has read the relay's first line; none leaves until \
                    all have.",
            quantities: &[Quantity::Connections, Quantity::ConnectionCpu, Quantity::Load],
            entrants: vec![
                entrant("Trunkline", crowd, accept),
                entrant("NATS (one server)", NATS, accept),
            ],
            comparisons: vec![first(Some(1), &[(Quantity::Connections, Bound::AtLeast(1.2))])],
        },
    ]
}

fn of_growth() -> Vec<Trial> {
    let crowd = Relay::Trunkline { nodes: 2, flags: CROWD };
    let conversations: Vec<Entrant> = [
        ("1 conversation", 1),
        ("10 conversations", 10),
        ("100 conversations", 100),
        ("1,000 conversations", 1000),
        ("10,000 conversations", 10_000),
    ]
    .into_iter()
    .map(|(label, pairs)| entrant(label, crowd, Task::Flow(Flow { pairs, ..GROWING })))
    .collect();
    let rings = |flow_of: fn(usize) -> Flow| -> Vec<Entrant> {
        [("2 nodes", 2), ("4 nodes", 4), ("8 nodes", 8)]
            .into_iter()
            .map(|(label, nodes)| {
                entrant(
                    label,
                    Relay::Trunkline { nodes, flags: &[] },
                    Task::Flow(flow_of(nodes)),
                )
            })
            .collect()
    };
    let nodes = rings(|_| Flow {
        ways: Ways::Ring,
        pairs: 64,
        ..GROWING
    });
    let busy_nodes = rings(|nodes| Flow {
        ways: Ways::Ring,
        pairs: 8 * nodes,
        rate: Some(2500 * nodes as u64),
        ..GROWING
    });
    let bodies = SIZES
        .into_iter()
        .map(|(label, size)| {
            let flow = Flow {
                size,
                window: window(size),
                ..FULL_SPEED
            };
            entrant(label, NODES, Task::Flow(flow))
        })
        .collect();
    vec![
        Trial {
            name: "conversations",
            title: "More conversations",
            about: "Trunkline, two nodes, 20,000 messages a second of 128 bytes over so many pairs.",
            quantities: GROWTH,
            comparisons: each_to_first(&conversations, &[(Quantity::Cpu, Bound::AtMost(1.5))]),
            entrants: conversations,
        },
        Trial {
            name: "nodes",
            title: "More nodes",
            about: "Trunkline, each node linked with each other; from each node to the next, and from the last to the first, 20,000 \
                    messages a second of 128 bytes over 64 pairs in all.",
            quantities: GROWTH,
            comparisons: each_to_first(&nodes, &[(Quantity::Cpu, Bound::AtMost(1.3))]),
            entrants: nodes,
        },
        Trial {
            name: "busy-nodes",
            title: "More nodes, each as busy",
            about: "The same with 2,500 messages a second from each node to the next, over 8 pairs.",
            quantities: GROWTH,
            comparisons: each_to_first(&busy_nodes, &[(Quantity::Cpu, Bound::AtMost(1.3))]),
            entrants: busy_nodes,
        },
        Trial {
            name: BODIES,
            title: "Larger bodies",
            about: "Trunkline, two nodes, 16 pairs at full speed; a pair has 1,024 messages under way, or as many as are 1 MiB, two at \
                    least.",
            quantities: FLOW,
            entrants: bodies,
            comparisons: Vec::new(),
        },
        Trial {
            name: "idle-conversations",
            title: "Idle conversations",
            about: "Trunkline, two nodes with 5,000 TCP clients each: what the memory of both together has grown by, two seconds after \
                    each client of the one has sent one message to a client of the other. The clients' own is not in it.",
            quantities: &[Quantity::ConversationMemory],
            entrants: vec![entrant("Trunkline", crowd, Task::Conversations { count: 5000 })],
            comparisons: Vec::new(),
        },
    ]
}

/// The trial whose entrants have bodies of these sizes, in this order.
pub const BODIES: &str = "bodies";

/// What they are called, and how many bytes they are.
pub const SIZES: [(&str, usize); 7] = [
    ("16 B", 16),
    ("64 B", 64),
    ("256 B", 256),
    ("2 KiB", 2 << 10),
    ("16 KiB", 16 << 10),
    ("128 KiB", 128 << 10),
    ("1 MiB", 1 << 20),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_judged_is_measured() {
        let trials = all();
        let names: BTreeSet<&str> = trials.iter().map(|trial| trial.name).collect();
        assert_eq!(names.len(), trials.len());
        for trial in &trials {
            let entrants = 0..trial.entrants.len();
            for comparison in &trial.comparisons {
                assert!(entrants.contains(&comparison.of), "{}", trial.name);
                assert!(comparison.to.is_none_or(|to| entrants.contains(&to)), "{}", trial.name);
                assert!(trial.entrants[comparison.of].is_ours(), "{}", trial.name);
                for (quantity, _) in &comparison.aims {
                    assert!(trial.quantities.contains(quantity), "{}: {quantity:?}", trial.name);
                }
            }
        }
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        for trial in all() {
            for entrant in &trial.entrants {
                let Task::Flow(flow) = entrant.task else {
                    continue;
                };
                let bytes = flow.pairs as u64 * flow.window * flow.size as u64;
                // At a rate there is that much only if a relay stands still.
                assert!(bytes <= 32 << 20 || flow.rate.is_some(), "{}: {bytes}", trial.name);
            }
        }
        assert_eq!(SIZES.map(|(_, size)| window(size)), [1024, 1024, 1024, 512, 64, 8, 2]);
    }

    #[test]
    fn a_load_is_split_where_files_are_few() {
        assert_eq!(parts(1, 100), 1);
        assert_eq!(parts(16, 1024), 1);
        assert_eq!(parts(10_000, 20_000), 2);
        assert_eq!(parts(10_000, 1 << 20), 1);
        assert_eq!(parts(1000, 1024), 5);
    }
}
