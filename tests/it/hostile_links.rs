//! Who is no node of the cluster gets no link.

use trunkline::{Node, Peer};

use crate::support::{
    Bystanders, Certs, Cluster, LineClient, NodeCommand, NodeProcess, RawQuic, eventually, name, node_config, within,
};

const LINK_ALPN: &[u8] = b"trunkline-link/1";

/// Starts an honest node, two clients of it that talk meanwhile, and checks that what `body` does makes the node log
/// that it refused a link.
async fn refused_a_link<F: Future<Output = ()>>(certs: &Certs, body: impl FnOnce(std::net::SocketAddr) -> F) -> String {
    let mut node = NodeCommand::new(certs, 0).start().await;
    let (mut one, mut other) = two_clients(&node).await;
    body(node.link()).await;
    let logged = node.process.stderr.until("refused a link").await;
    assert_eq!(node.process.stderr.count("link up"), 0);
    one.say(&other.address, "still here").await;
    other.reader.expect_message(&one.address, "still here").await;
    logged
}

async fn two_clients(node: &NodeProcess) -> (LineClient, LineClient) {
    let (mut one, mut other) = (
        LineClient::connect(node.tcp()).await,
        LineClient::connect(node.tcp()).await,
    );
    one.say(&other.address, "are you there?").await;
    other.reader.expect_message(&one.address, "are you there?").await;
    (one, other)
}

#[tokio::test]
async fn a_node_certificate_of_another_authority() {
    let (certs, others) = (Certs::make(2), Certs::make(2));
    refused_a_link(&certs, async |link| {
        let mut config = node_config(&others, 1);
        config.peers = vec![Peer {
            name: name(0),
            link: link.into(),
        }];
        let impostor = Node::start(config).await.unwrap();
        // The impostor trusts the honest node no more than the other way round, and may break off first. One who trusts
        // anyone goes on to show its certificate.
        let crafted = RawQuic::connect(
            link,
            &with_identity_of(&certs, &others),
            LINK_ALPN,
            Some("node-127.0.0.1-2"),
        )
        .await;
        if let Ok(client) = crafted {
            within("the node closes the connection", client.connection.closed()).await;
        }
        assert!(impostor.linked().is_empty());
    })
    .await;
}

/// A directory that trusts the authority of `trusted` and has the certificates of `identity`.
fn with_identity_of(trusted: &Certs, identity: &Certs) -> Certs {
    let mixed = Certs::make(0);
    for file in ["node-127.0.0.1-2.pem", "node-127.0.0.1-2.key"] {
        std::fs::copy(identity.dir().join(file), mixed.dir().join(file)).unwrap();
    }
    std::fs::copy(trusted.dir().join("node-ca.pem"), mixed.dir().join("node-ca.pem")).unwrap();
    mixed
}

#[tokio::test]
async fn a_client_certificate() {
    let certs = Certs::make(1);
    refused_a_link(&certs, async |link| {
        if let Ok(client) = RawQuic::connect(link, &certs, LINK_ALPN, Some("client-guest")).await {
            within("the node closes the connection", client.connection.closed()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn no_certificate() {
    let certs = Certs::make(1);
    refused_a_link(&certs, async |link| {
        if let Ok(client) = RawQuic::connect(link, &certs, LINK_ALPN, None).await {
            within("the node closes the connection", client.connection.closed()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_nodes_own_name() {
    let certs = Certs::make(1);
    let logged = refused_a_link(&certs, async |link| {
        if let Ok(client) = RawQuic::connect(link, &certs, LINK_ALPN, Some("node-127.0.0.1-1")).await {
            within("the node closes the connection", client.connection.closed()).await;
        }
    })
    .await;
    assert!(logged.contains("this very node"), "{logged}");
}

#[tokio::test]
async fn a_peer_of_another_authority_is_not_dialled_into() {
    let (certs, others) = (Certs::make(2), Certs::make(2));
    let impostor = Node::start(node_config(&others, 1)).await.unwrap();
    let mut command = NodeCommand::new(&certs, 0);
    command.peers = vec![format!("{}={}", name(1), impostor.link_addr())];
    let mut node = command.start().await;
    let (mut one, mut other) = two_clients(&node).await;
    node.process.stderr.until("can't reach the node").await;
    assert!(impostor.linked().is_empty());
    assert_eq!(node.process.stderr.count("link up"), 0);
    one.say(&other.address, "still here").await;
    other.reader.expect_message(&one.address, "still here").await;
}

#[tokio::test]
async fn a_node_of_the_cluster_under_another_name_than_the_peer_meant() {
    let certs = Certs::make(3);
    let honest = Node::start(node_config(&certs, 2)).await.unwrap();
    let mut command = NodeCommand::new(&certs, 0);
    command.peers = vec![format!("{}={}", name(1), honest.link_addr())];
    let mut node = command.start().await;
    let logged = node.process.stderr.until("can't reach the node").await;
    assert!(logged.contains("is 127.0.0.1:3, not 127.0.0.1:2"), "{logged}");
    assert_eq!(node.process.stderr.count("link up"), 0);
}

#[tokio::test]
async fn links_go_on_while_strangers_knock() {
    let cluster = Cluster::start(2).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    let (mut one, mut other) = (cluster.line(0).await, cluster.line(1).await);
    let link = cluster.nodes[0].link_addr();
    bystanders
        .during(async {
            for identity in [None, Some("client-guest"), Some("node-127.0.0.1-1")] {
                if let Ok(client) = RawQuic::connect(link, &cluster.certs, LINK_ALPN, identity).await {
                    within("the node closes the connection", client.connection.closed()).await;
                }
                one.say(&other.address, "over the link").await;
                other.reader.expect_message(&one.address, "over the link").await;
            }
        })
        .await;
    eventually("the link is still up", || cluster.nodes[0].linked() == [name(1)]).await;
}

#[tokio::test]
async fn who_is_refused_again_and_again_does_not_fill_the_log() {
    let certs = Certs::make(1);
    let mut node = NodeCommand::new(&certs, 0).start().await;
    for _ in 0..20 {
        if let Ok(client) = RawQuic::connect(node.link(), &certs, LINK_ALPN, Some("client-guest")).await {
            within("the node closes the connection", client.connection.closed()).await;
        }
    }
    // The first, the second, the fourth, the eighth and the sixteenth.
    let last = node.process.stderr.until("\"count\":16").await;
    assert!(last.contains("refused a link"), "{last}");
    assert_eq!(node.process.stderr.count("refused a link"), 5);
}
