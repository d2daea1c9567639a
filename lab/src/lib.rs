//! The lab: measures a relay over a bad network, and plays faults to one, on one machine.
//!
//! | file | what it is |
//! |---|---|
//! | `wire` | pure: what a bad wire does to each packet |
//! | `control` | how a running wire is told what to be |
//! | `namespace` | threads in another network namespace |
//! | `process` | programs whose log is read, and directories, that end with their owner |
//! | `ports` | ports that no two processes draw at once |
//! | `nodes` | linked nodes as processes on loopback |
//! | `redis_server` | redis-servers, alone or as a cluster |
//! | `row` | what is measured: the wires, and the load on each |
//! | `figures` | pure: checks what arrives, and sums it up |
//! | `talk` | conversations that are measured while something else goes on |
//! | `target` | pure: what the relays speak with their clients |
//! | `report` | pure: the table and the plot |
//! | `trials` | pure: what Trunkline, nats-server and Redis are compared by, and the aims |
//! | `peers` | those three as processes on loopback |
//! | `crowd` | many clients at once that do next to nothing |
//! | `comparison` | pure: medians, ratios round by round, and their tables |
//! | `charts` | the plots of those |
//! | `schedule` | pure: which faults happen when, drawn from a seed |
//! | `proxy` | the wire's model between UDP sockets |
//! | `journal` | the file that a client of the fault run writes |
//! | `fleet` | the processes of the fault run: nodes and clients |

pub mod charts;
pub mod comparison;
pub mod control;
pub mod crowd;
pub mod figures;
pub mod fleet;
pub mod journal;
pub mod namespace;
pub mod nodes;
pub mod peers;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod redis_server;
pub mod report;
pub mod row;
pub mod schedule;
pub mod talk;
pub mod target;
pub mod trials;
pub mod wire;
