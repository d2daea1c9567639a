//! Nodes within the test's own process.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use trunkline::{Client, Config, Node, NodeName, Peer, certs};

use super::{Carrier, LineClient, eventually, free_token, own_port, within};

/// The name of a test's `index`-th node. Nothing is bound to it: nodes and clients are told where to connect.
pub(crate) fn name(index: usize) -> NodeName {
    format!("127.0.0.1:{}", index + 1).parse().unwrap()
}

/// A directory of certificates, gone when dropped.
#[derive(Debug)]
pub(crate) struct Certs(TempDir);

impl Certs {
    /// Certificates for that many nodes and the client `guest`, of an authority that no other has.
    pub(crate) fn make(nodes: usize) -> Self {
        let names: Vec<_> = (0..nodes).map(name).collect();
        Self::named(&names)
    }

    /// The same for nodes of these names.
    pub(crate) fn named(names: &[NodeName]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = "guest".parse().unwrap();
        certs::make_for(dir.path(), names, &[guest], certs::DEFAULT_CLUSTER).unwrap();
        Self(dir)
    }

    /// The same, with a key for tokens.
    pub(crate) fn with_token_key(nodes: usize) -> Self {
        let certs = Self::make(nodes);
        free_token(&certs, "first");
        certs
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }
}

/// What a node with this index is started with: free ports, no peers.
pub(crate) fn node_config(certs: &Certs, index: usize) -> Config {
    Config {
        tcp: Some(own_port().into()),
        quic: Some(own_port().into()),
        link: Some(own_port().into()),
        advertise: Some(name(index)),
        certs: certs.dir().to_owned(),
        ..Config::default()
    }
}

/// Nodes, each linked to each other, by what the environment wants.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) certs: Certs,
    pub(crate) nodes: Vec<Node>,
    /// What the nodes are joined by; it ends with them.
    pub(crate) carrier: Carrier,
}

impl Cluster {
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |_| {}).await
    }

    /// Starts nodes whose configuration `adjust` has had a hand in; each names those before it as its peers.
    pub(crate) async fn start_with(count: usize, adjust: impl Fn(&mut Config)) -> Self {
        Self::start_on(Certs::make(count), count, adjust).await
    }

    /// The same, with certificates that are there.
    pub(crate) async fn start_on(certs: Certs, count: usize, adjust: impl Fn(&mut Config)) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        let carrier = Carrier::of_environment().await;
        for index in 0..count {
            let mut config = node_config(&certs, index);
            carrier.join(&mut config, nodes.iter().map(peer).collect());
            adjust(&mut config);
            nodes.push(Node::start(config).await.unwrap());
        }
        for node in &nodes {
            linked(node, count - 1).await;
        }
        Self { certs, nodes, carrier }
    }

    /// A new legacy client of a node.
    pub(crate) async fn line(&self, node: usize) -> LineClient {
        LineClient::connect(self.nodes[node].tcp_addr()).await
    }

    /// A new QUIC client of a node.
    pub(crate) async fn quic(&self, node: usize) -> Client {
        connect_quic(self.nodes[node].quic_addr(), &self.certs).await
    }
}

/// A node as others name it.
pub(crate) fn peer(node: &Node) -> Peer {
    Peer {
        name: node.name().clone(),
        link: node.link_addr().into(),
    }
}

/// Waits until a node has that many links.
pub(crate) async fn linked(node: &Node, links: usize) {
    eventually(format!("{} has {links} links", node.name()), || {
        node.linked().len() == links
    })
    .await;
}

/// A new QUIC client of the node that listens there.
pub(crate) async fn connect_quic(addr: SocketAddr, certs: &Certs) -> Client {
    within("a QUIC client connects", Client::connect(&addr.into(), certs.dir()))
        .await
        .unwrap()
}
