//! End-to-end tests: whole nodes, and clients that see only what is on the wire.
//!
//! One binary for all topics, as each binary is linked on its own. Every test starts its own nodes, on ports that the
//! system chooses, with certificates of its own, and every wait has a deadline.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test that goes wrong is to end there and then"
)]

mod bad_wire;
mod bench;
mod cli;
mod exchange;
mod floods;
mod hostile_lines;
mod hostile_links;
mod hostile_quic;
mod identity;
mod ids;
mod kill;
mod legacy;
mod links;
mod load;
mod mixed;
mod permission;
mod real_tools;
mod rebind;
mod redis;
mod resume;
mod shutdown;
mod slow_readers;
mod support;
mod unasked;
