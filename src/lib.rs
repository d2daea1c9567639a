//! Trunkline: an encrypted message relay. Clients connect to any node and get an [`Address`]; a message sent to an
//! address arrives, whichever node its owner is on.
//!
//! ```text
//! client line ─ tcp | quic ─ router ┬─ outbox ─ tcp | quic ─ client line
//!                                   ├─ link ─ carrier ─▶ QUIC ─▶ carrier ─ link ─ router ─ outbox ─ …
//!                                   └─ legacy ─▶ TCP ─▶ a legacy server
//! ```
//!
//! | file | what it is | pure |
//! |---|---|---|
//! | `address` `outcome` `message` | the words: names, ends of messages, a message on its way | yes |
//! | `delivery` | the machine: order, no loss, no repeats | yes |
//! | `wire` | every byte that is written or read | yes |
//! | `flow` `ids` `registry` `backoff` `pace` `network` `config` | limits of a sender, ids, who is here, waits, least progress, where from, settings | yes |
//! | `counters` `admission` `misses` | what is counted of trouble; how many there may be; who guesses ids | yes |
//! | `congestion` | how much may be in flight on a connection | yes |
//! | `phase` `turn` | how far a node's shutdown has come; how much a task does at a time | no I/O |
//! | `restraint` | holds one client to its rate and its misses | no I/O |
//! | `outbox` `buffers` `exchange` | a client's queue, memory that is used again, and the machine, shared among tasks | no I/O |
//! | `transport` | QUIC: its settings, sockets, connections and streams | |
//! | `tls` `certs` | certificates, and all settings of TLS | |
//! | `descriptors` | the limit of open files | |
//! | `permission` | what a client may do, the tokens that say so, and the files of their keys | but for the files |
//! | `keyring` | those keys kept up to date, and who was let in by them | |
//! | `redis` | what nodes say to each other through Redis, one server or a cluster | |
//! | `sealed` | sessions between two nodes over that, which nobody else can read or make | but for its hub |
//! | `carrier` | drives an exchange over a QUIC connection, or over such a session | |
//! | `legacy` | what waits for a legacy server, and how it is handed over | its `queue` |
//! | `link` `router` | what is kept about another node, and its tasks; where a message goes | no I/O in the latter |
//! | `clients` `tcp` `quic` | sessions of clients | |
//! | `node` | binds, starts and ends everything | |
//! | `client` | the library for programs that are clients | |
//! | `fuzzing` | hostile input for every reader, in tests and for the fuzzer alone | no I/O |
//! | `hot_paths` | what each message costs, for those alone who count or time that | but for certificates |
//! | `bench` | measures a relay, Trunkline or another, through its clients | |
//!
//! Imports go from the bottom of the table to its top (`link` and `router` alone know each other). `docs/architecture.md` follows a message through the files.

#![forbid(unsafe_code)]

pub mod address;
mod admission;
mod backoff;
#[cfg(feature = "bench")]
pub mod bench;
mod buffers;
mod carrier;
pub mod certs;
pub mod client;
mod clients;
pub mod config;
mod congestion;
mod counters;
mod course;
mod delivery;
mod descriptors;
mod exchange;
mod flow;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "hot-paths")]
#[doc(hidden)]
pub mod hot_paths;
mod ids;
mod keyring;
mod legacy;
mod link;
mod message;
mod misses;
mod network;
mod node;
mod outbox;
pub mod outcome;
mod pace;
pub mod permission;
mod phase;
mod quic;
mod redis;
mod registry;
mod restraint;
mod router;
mod sealed;
mod tcp;
mod tls;
mod transport;
mod turn;
mod wire;

pub use address::{Address, ClientId, HostPort, NodeName};
pub use client::Client;
pub use config::{ClientRule, Config, Congestion, Limits, Peer, UnknownClientRule, UnknownCongestion};
pub use message::MESSAGE_OVERHEAD;
pub use network::{Network, UnknownNetwork};
pub use node::{Node, StartError};
pub use outcome::{Code, Outcome};
pub use permission::Pattern;
