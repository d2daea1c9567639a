//! What the tests share: deadlines, nodes, clients, processes.

mod authority;
mod bystanders;
mod carrier;
mod cluster;
mod legacy_server;
mod line_client;
mod process;
mod raw_quic;
mod redis;
mod relay;
mod talk;
mod tokens;

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

pub(crate) use authority::{Flaw, issue, put};
pub(crate) use bystanders::Bystanders;
pub(crate) use carrier::{Carrier, channel_of, redis_config};
pub(crate) use cluster::{Certs, Cluster, connect_quic, linked, name, node_config, peer};
pub(crate) use legacy_server::LegacyServer;
pub(crate) use line_client::{HELD, LineClient, LineReader, LineWriter, message_line, message_line_with_id};
pub(crate) use process::{NodeCommand, NodeProcess, Process};
pub(crate) use raw_quic::{RawQuic, tls_config};
pub(crate) use redis::{Redis, RedisCluster};
pub(crate) use relay::Relay;
pub(crate) use talk::Talk;
pub(crate) use tokens::{LONG, free_token, now, sign, token};

/// How long anything that must happen may take. Far more than it does, so that a busy machine fails no test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A port for a node that others have to know before, or that comes back to it.
pub(crate) fn own_port() -> SocketAddr {
    trunkline_lab::ports::own_port().unwrap()
}

/// What the future gives, which must come before the deadline.
pub(crate) async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// Waits until the condition holds, which it must before the deadline.
pub(crate) async fn eventually(what: impl Display, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        sleep(LOOK).await;
    }
}
