//! Trunkline: an encrypted message relay. Clients connect to any node and get an [`Address`]; a message sent to an
//! address arrives, whichever node its owner is on.
//!
//! ```text
//! client line ─ tcp | quic ─ router ┬─ outbox ─ tcp | quic ─ client line
//!                                   └─ link ─ carrier ─▶ QUIC ─▶ carrier ─ link ─ router ─ outbox ─ …
//! ```
//!
//! | file | what it is | pure |
//! |---|---|---|
//! | `address` `outcome` `message` | the words: names, ends of messages, a message on its way | yes |
//! | `delivery` | the machine: order, no loss, no repeats | yes |
//! | `wire` | every byte that is written or read | yes |
//! | `flow` `ids` `registry` `backoff` `config` | limits of a sender, ids, who is here, waits, settings | yes |
//! | `congestion` | how much may be in flight on a connection | yes |
//! | `phase` `turn` | how far a node's shutdown has come; how much a task does at a time | no I/O |
//! | `outbox` `exchange` | a client's queue, and the machine, shared among tasks | no I/O |
//! | `tls` `certs` `endpoint` | certificates, and all settings of TLS and QUIC | |
//! | `carrier` | drives an exchange over a QUIC connection | |
//! | `link` `router` | what is kept about another node, and its tasks; where a message goes | no I/O in the latter |
//! | `clients` `tcp` `quic` | sessions of clients | |
//! | `node` | binds, starts and ends everything | |
//! | `client` | the library for programs that are clients | |
//! | `bench` | measures a relay, Trunkline or another, through its clients | |
//!
//! Imports go from the bottom of the table to its top (`link` and `router` alone know each other). `docs/architecture.md` follows a message through the files.

#![forbid(unsafe_code)]

pub mod address;
mod backoff;
#[cfg(feature = "bench")]
pub mod bench;
mod carrier;
pub mod certs;
pub mod client;
mod clients;
pub mod config;
mod congestion;
mod delivery;
mod endpoint;
mod exchange;
mod flow;
mod ids;
mod link;
mod message;
mod node;
mod outbox;
pub mod outcome;
mod phase;
mod quic;
mod registry;
mod router;
mod tcp;
mod tls;
mod turn;
mod wire;

pub use address::{Address, ClientId, HostPort, NodeName};
pub use client::Client;
pub use config::{ClientRule, Config, Congestion, Limits, Peer, UnknownClientRule, UnknownCongestion};
pub use message::MESSAGE_OVERHEAD;
pub use node::{Node, StartError};
pub use outcome::{Code, Outcome};
