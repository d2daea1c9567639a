//! What nodes are joined by, as the environment wants it.

use std::sync::Arc;

use trunkline::{Config, NodeName, Peer, config};

use super::{NodeCommand, Redis, RedisCluster};

/// What the names of channels and keys begin with.
const PREFIX: &str = "test";

/// What joins the nodes of a test. The same tests are to pass whatever it is.
#[derive(Debug, Clone)]
pub(crate) enum Carrier {
    /// Each names others as its peers.
    Quic,
    /// One redis-server.
    Redis(Arc<Redis>),
    /// Three masters of a cluster.
    RedisCluster(RedisCluster),
}

impl Carrier {
    /// What `TRUNKLINE_TEST_CARRIER` says: `quic`, as if it were not there, `redis` or `redis-cluster`.
    pub(crate) async fn of_environment() -> Self {
        match std::env::var("TRUNKLINE_TEST_CARRIER").as_deref() {
            Ok("quic") | Err(_) => Self::Quic,
            Ok("redis") => Self::Redis(Arc::new(Redis::start().await)),
            Ok("redis-cluster") => Self::RedisCluster(RedisCluster::start().await),
            Ok(other) => panic!("TRUNKLINE_TEST_CARRIER is {other}, not quic, redis or redis-cluster"),
        }
    }

    /// Where nodes find it; nowhere, if it is QUIC.
    fn urls(&self) -> Vec<String> {
        match self {
            Self::Quic => Vec::new(),
            Self::Redis(redis) => vec![redis.url()],
            Self::RedisCluster(cluster) => cluster.urls(),
        }
    }

    /// What a node that is a process is told of it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let urls = self.urls().into_iter().map(|url| format!("--redis={url}"));
        let mut flags: Vec<_> = urls.collect();
        if !flags.is_empty() {
            flags.push(format!("--redis-prefix={PREFIX}"));
        }
        flags
    }

    /// Has a node find these others.
    pub(crate) fn join(&self, config: &mut Config, others: Vec<Peer>) {
        match self {
            Self::Quic => config.peers = others,
            Self::Redis(_) | Self::RedisCluster(_) => config.redis = Some(redis_config(&self.urls())),
        }
    }

    /// Has a node that is a process find these others.
    pub(crate) fn join_process(&self, command: &mut NodeCommand, others: &[Peer]) {
        match self {
            Self::Quic => {
                let peers = others.iter().map(|peer| format!("{}={}", peer.name, peer.link));
                command.peers = peers.collect();
            }
            Self::Redis(_) | Self::RedisCluster(_) => command.carrier = self.clone(),
        }
    }
}

/// How a node reaches Redis.
pub(crate) fn redis_config(urls: &[String]) -> config::Redis {
    config::Redis {
        urls: urls.iter().map(|url| url.parse().unwrap()).collect(),
        prefix: PREFIX.to_owned(),
        ca: None,
        plaintext: false,
    }
}

/// The channel that a node listens on.
pub(crate) fn channel_of(node: &NodeName) -> String {
    format!("{PREFIX}:to:{node}")
}
