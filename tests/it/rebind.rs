//! Clients whose own address changes while they talk: QUIC takes the connection along.

use trunkline_lab::wire::Settings;

use crate::support::{Cluster, Relay, Talk, connect_quic, eventually};

/// How often the address changes.
const MOVES: usize = 20;

/// Has a QUIC client of one node talk to one of another while its address as its node sees it changes again and again,
/// and sees to it that its connection stays the same.
async fn keeps_its_connection(change: impl Fn(&trunkline::Client, &Relay)) {
    let cluster = Cluster::start(2).await;
    let wire = Relay::bad_to(cluster.nodes[0].quic_addr(), &Settings::default()).await;
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let peer = cluster.quic(1).await;
    let talk = Talk::new();
    let moving = async {
        talk.begins(2).await;
        let handshakes = wire.handshakes();
        for number in 1..=MOVES {
            change(&client, &wire);
            // What was under way before may be all that is heard at first.
            eventually("the node sees it elsewhere", || wire.moves() == number).await;
            talk.goes_on(100).await;
        }
        assert_eq!(wire.moves(), MOVES, "moves that the node has seen");
        // Whoever comes back to its session has to shake hands first.
        assert_eq!(wire.handshakes(), handshakes, "packets of handshakes");
        talk.end();
    };
    tokio::join!(
        moving,
        talk.quic(&client, peer.address()),
        talk.quic(&peer, client.address())
    );
    println!("{} messages", talk.messages());
    client.close().await;
    peer.close().await;
    eventually("both are gone", || cluster.nodes.iter().all(|node| node.clients() == 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_to_another_socket_keeps_its_connection() {
    keeps_its_connection(|client, _| client.rebind().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_nat_gives_it_another_port_keeps_its_connection() {
    keeps_its_connection(|_, wire| wire.change_ports()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_while_it_is_away_comes_back() {
    let cluster = Cluster::start(1).await;
    let wire = Relay::bad_to(cluster.nodes[0].quic_addr(), &Settings::default()).await;
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let peer = cluster.quic(0).await;
    let talk = Talk::new();
    let moving = async {
        talk.begins(2).await;
        wire.cut();
        let handshakes = wire.handshakes();
        eventually("it tries to come back", || wire.handshakes() > handshakes).await;
        client.rebind().unwrap();
        wire.mend();
        talk.goes_on(100).await;
        talk.end();
    };
    tokio::join!(
        moving,
        talk.quic(&client, peer.address()),
        talk.quic(&peer, client.address())
    );
}
