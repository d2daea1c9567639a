//! What a node sends to those who did not ask for it: next to nothing to an address that has not proved itself, nothing at
//! all to one that a client names.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint};
use trunkline::Code;

use crate::support::{Cluster, own_port, tls_config};

/// How many addresses are forged: more than may be let in without proof.
const FORGED: usize = 200;

/// Bytes that may be sent back for each that came, before an address has proved itself (RFC 9000, section 8.1).
const FACTOR: usize = 3;

/// How long a victim listens: what a node sends it again it sends within this.
const LISTENING: Duration = Duration::from_secs(3);

/// The datagrams with which a QUIC client begins.
async fn first_flight(cluster: &Cluster, alpn: &[u8]) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    sink.set_nonblocking(true).unwrap();
    let sink = tokio::net::UdpSocket::from_std(sink).unwrap();
    let crypto = QuicClientConfig::try_from(tls_config(&cluster.certs, alpn, None)).unwrap();
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let config = ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, sink.local_addr().unwrap(), "127.0.0.1");
    let _connecting = connecting.unwrap();
    let mut flight = Vec::new();
    // A client hello with a post-quantum key share takes two.
    while flight.len() < 2 {
        let mut datagram = vec![0; 2048];
        let length = crate::support::within("a first packet", sink.recv(&mut datagram))
            .await
            .unwrap();
        datagram.truncate(length);
        flight.push(datagram);
    }
    flight
}

/// Sends that flight from many addresses which never answer, and compares what comes back to each.
async fn forge(cluster: &Cluster, to: SocketAddr, alpn: &[u8]) -> (usize, usize) {
    let mut victims = Vec::new();
    for number in 0..FORGED {
        let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
        victim.set_nonblocking(true).unwrap();
        let flight = first_flight(cluster, alpn).await;
        // Half of them send only the beginning.
        let flight = &flight[..1 + number % 2];
        for datagram in flight {
            victim.send_to(datagram, to).unwrap();
        }
        victims.push((victim, flight.iter().map(Vec::len).sum::<usize>(), 0));
    }
    let until = Instant::now() + LISTENING;
    let mut datagram = [0; 65_536];
    while Instant::now() < until {
        for (victim, sent, received) in &mut victims {
            match victim.recv(&mut datagram) {
                Ok(length) => *received += length,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(*received <= FACTOR * *sent, "{received} bytes for {sent}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let total = |sum: (usize, usize), (_, sent, received): &(UdpSocket, usize, usize)| (sum.0 + sent, sum.1 + received);
    victims.iter().fold((0, 0), total)
}

#[tokio::test]
async fn a_forged_address_gets_at_most_three_times_what_was_sent_in_its_name() {
    let cluster = Cluster::start(1).await;
    for (port, to, alpn) in [
        ("client", cluster.nodes[0].quic_addr(), &b"trunkline/1"[..]),
        ("link", cluster.nodes[0].link_addr(), &b"trunkline-link/1"[..]),
    ] {
        let (sent, received) = forge(&cluster, to, alpn).await;
        let factor = received as f64 / sent as f64;
        println!("{port} port: {sent} bytes from {FORGED} forged addresses, {received} back, {factor:.2} times");
        assert!(received > 0, "nothing was measured");
    }
}

#[tokio::test]
async fn an_address_that_is_no_known_node_is_never_dialled() {
    let cluster = Cluster::start(2).await;
    let clients = own_port();
    let links = SocketAddr::from(([127, 0, 0, 1], clients.port() + 1000));
    let tcp = TcpListener::bind(clients).unwrap();
    let udp = [UdpSocket::bind(clients).unwrap(), UdpSocket::bind(links).unwrap()];
    tcp.set_nonblocking(true).unwrap();
    udp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let mut line = cluster.line(0).await;
    let quic = cluster.quic(1).await;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1", "relay.invalid"] {
        let text = format!("{host}:{}:123456", clients.port());
        let Ok(to) = text.parse::<trunkline::Address>() else {
            let message = format!("{{\"to\":\"{text}\",\"body\":\"hello\",\"cmd\":\"sendMsg\"}}");
            line.writer.send(&message).await;
            line.reader.expect_error(Code::BadAddress).await;
            continue;
        };
        line.say(&to, "hello").await;
        line.reader.expect_error(Code::NoSuchNode).await;
        let receipt = quic.send_with_receipt(&to, "hello").await.unwrap().await;
        assert_eq!(receipt.code(), Some(Code::NoSuchNode), "{to}");
    }
    // Whatever it might have begun has had its turns by now.
    line.say(quic.address(), "and over the link").await;
    quic.receive().await.expect("a message");
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    for socket in udp {
        assert_eq!(socket.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
