//! Nodes that are joined by Redis: nothing is lost whatever happens to it, and it learns nothing.
//!
//! The tests of `exchange`, `load`, `kill`, `shutdown` and others run over Redis too, with `TRUNKLINE_TEST_CARRIER=redis`.

use std::process::Command;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use trunkline::client::Event;
use trunkline::{Client, Node, Outcome, Peer, StartError};

use crate::support::{
    Certs, Redis, Relay, Talk, connect_quic, eventually, linked, name, node_config, redis_config, within,
};

/// Two nodes that are joined by Redis alone, and two clients of each.
struct Joined {
    certs: Certs,
    redis: Redis,
    nodes: [Node; 2],
}

impl Joined {
    async fn start() -> Self {
        let certs = Certs::make(2);
        let redis = Redis::start().await;
        let mut nodes = Vec::new();
        for index in 0..2 {
            let mut config = node_config(&certs, index);
            config.redis = Some(redis_config(&redis));
            nodes.push(Node::start(config).await.unwrap());
        }
        let nodes: [Node; 2] = nodes.try_into().unwrap();
        for node in &nodes {
            linked(node, 1).await;
        }
        Self { certs, redis, nodes }
    }

    async fn clients(&self) -> [Client; 4] {
        let client = |node: usize| connect_quic(self.nodes[node].quic_addr(), &self.certs);
        [client(0).await, client(1).await, client(0).await, client(1).await]
    }

    fn counted(&self, counter: &str) -> u64 {
        self.nodes.iter().map(|node| node.counters()[counter]).sum()
    }
}

/// Has two pairs of clients talk across the nodes while something happens. Whatever it is, each message comes once, in
/// order, and is answered as delivered.
async fn while_all_talk(clients: &[Client; 4], what: impl AsyncFnOnce(&Talk)) {
    let talk = Talk::new();
    let [one, two, three, four] = clients;
    let happening = async {
        talk.begins(4).await;
        what(&talk).await;
        talk.goes_on(100).await;
        talk.end();
    };
    tokio::join!(
        talk.quic(one, two.address()),
        talk.quic(two, one.address()),
        talk.quic(three, four.address()),
        talk.quic(four, three.address()),
        happening,
    );
    println!("{} messages", talk.messages());
}

fn signal(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn nothing_is_lost_when_redis_ends_its_connections() {
    let joined = Joined::start().await;
    let clients = joined.clients().await;
    while_all_talk(&clients, async |talk| {
        for kind in ["pubsub", "normal", "pubsub"] {
            talk.goes_on(100).await;
            joined.redis.ask(&format!("CLIENT KILL TYPE {kind}")).await;
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_when_redis_is_started_anew() {
    let mut joined = Joined::start().await;
    let clients = joined.clients().await;
    let redis = &mut joined.redis;
    while_all_talk(&clients, async |talk| {
        talk.goes_on(100).await;
        redis.kill();
        redis.start_again().await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_when_redis_is_stopped_for_a_while() {
    let joined = Joined::start().await;
    let clients = joined.clients().await;
    while_all_talk(&clients, async |talk| {
        talk.goes_on(100).await;
        signal("-STOP", joined.redis.pid());
        // Until the nodes have noticed, and given it up.
        eventually("the links are down", || {
            joined.nodes.iter().all(|node| node.linked().is_empty())
        })
        .await;
        signal("-CONT", joined.redis.pid());
    })
    .await;
}

/// The nodes have a way by QUIC as well, which is mended and cut: they take it, and go back.
#[tokio::test]
async fn a_pair_of_nodes_changes_over_to_quic_and_back() {
    let certs = Certs::make(2);
    let redis = Redis::start().await;
    let mut config = node_config(&certs, 1);
    config.redis = Some(redis_config(&redis));
    let second = Node::start(config).await.unwrap();
    let relay = Relay::cut_to(second.link_addr(), 0.0).await;
    let mut config = node_config(&certs, 0);
    config.redis = Some(redis_config(&redis));
    config.peers = vec![Peer {
        name: name(1),
        link: relay.addr().into(),
    }];
    let first = Node::start(config).await.unwrap();
    linked(&first, 1).await;
    linked(&second, 1).await;
    let one = connect_quic(first.quic_addr(), &certs).await;
    let two = connect_quic(second.quic_addr(), &certs).await;
    let three = connect_quic(first.quic_addr(), &certs).await;
    let four = connect_quic(second.quic_addr(), &certs).await;
    let clients = [one, two, three, four];
    let datagrams = || relay.stats().iter().map(|stats| stats.packets - stats.cut).sum::<u64>();
    while_all_talk(&clients, async |talk| {
        for _ in 0..2 {
            talk.goes_on(100).await;
            let before = datagrams();
            relay.mend();
            eventually("messages go by QUIC", || datagrams() > before + 1000).await;
            relay.cut();
            talk.goes_on(100).await;
        }
    })
    .await;
}

/// Has one client write to another, which must get that next.
async fn say(one: &Client, two: &Client, body: &str) {
    let receipt = one.send_with_receipt(two.address(), body.to_owned()).await.unwrap();
    let Some(Event::Message(message)) = within("a message", two.receive()).await else {
        panic!("no message");
    };
    assert_eq!((message.text(), &message.from), (body.to_owned(), one.address()));
    assert_eq!(within("a receipt", receipt).await, Outcome::Delivered);
}

/// What has come on a connection so far, up to this text.
async fn read_until(connection: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    within(format!("{text:?} is read"), async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert_ne!(connection.read_buf(&mut seen).await.unwrap(), 0);
        }
    })
    .await;
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn redis_learns_neither_what_is_said_nor_who_says_it() {
    let joined = Joined::start().await;
    let mut monitor = joined.redis.monitor().await;
    let [one, two, ..] = joined.clients().await;
    let body = "nobody-else-is-to-read-this";
    say(&one, &two, body).await;
    joined.redis.ask("ECHO the-end").await;
    let seen = read_until(&mut monitor, "the-end").await;
    assert!(seen.contains("PUBLISH"), "{seen}");
    for secret in [body, one.address().id.as_str(), two.address().id.as_str()] {
        assert!(!seen.contains(secret), "{secret} is in {seen}");
    }
}

/// Whoever may publish in that Redis sends the nodes what they have said, again, altered, or to the other node.
#[tokio::test]
async fn what_is_replayed_altered_or_moved_is_refused_and_counted() {
    let joined = Joined::start().await;
    let [one, two, ..] = joined.clients().await;
    let spy = Spy::start(&joined).await;
    say(&one, &two, "once").await;
    let heard = spy.heard().await;
    for (channel, packet) in &heard {
        spy.publish(channel, packet).await;
    }
    eventually("replays are counted", || {
        joined.counted("bus-replayed") >= heard.len() as u64
    })
    .await;

    let before = joined.counted("bus-forged");
    for (channel, packet) in &heard {
        let mut altered = packet.clone();
        // Of a packet that is still to come.
        altered[17] ^= 0x40;
        spy.publish(channel, &altered).await;
    }
    eventually("forgeries are counted", || {
        joined.counted("bus-forged") >= before + heard.len() as u64
    })
    .await;

    let before = joined.counted("bus-replayed") + joined.counted("bus-forged") + joined.counted("bus-stray");
    for (channel, packet) in &heard {
        let other = heard.iter().find(|(other, _)| other != channel).unwrap();
        spy.publish(&other.0, packet).await;
    }
    eventually("what was moved is counted", || {
        let counters = ["bus-replayed", "bus-forged", "bus-stray"];
        counters.iter().map(|counter| joined.counted(counter)).sum::<u64>() >= before + heard.len() as u64
    })
    .await;
    // The sessions are as they were, and nothing came of it.
    say(&one, &two, "twice").await;
    let up = joined.nodes.iter().map(|node| node.linked().len());
    assert_eq!(up.collect::<Vec<_>>(), [1, 1]);
}

/// Listens to all that is published, and publishes what it likes.
struct Spy {
    addr: std::net::SocketAddr,
    subscribed: parking_lot::Mutex<Option<TcpStream>>,
}

impl Spy {
    async fn start(joined: &Joined) -> Self {
        use tokio::io::AsyncWriteExt;
        let mut connection = TcpStream::connect(joined.redis.addr).await.unwrap();
        connection.write_all(b"PSUBSCRIBE test:to:*\r\n").await.unwrap();
        read_until(&mut connection, ":1\r\n").await;
        Self {
            addr: joined.redis.addr,
            subscribed: parking_lot::Mutex::new(Some(connection)),
        }
    }

    /// The packets so far: some of either direction.
    async fn heard(&self) -> Vec<(String, Vec<u8>)> {
        let mut connection = self.subscribed.lock().take().unwrap();
        let mut seen = Vec::new();
        let mut packets = Vec::new();
        within("packets of both directions", async {
            loop {
                assert_ne!(connection.read_buf(&mut seen).await.unwrap(), 0);
                packets.extend(messages(&mut seen));
                let first = packets.first().map(|(channel, _): &(String, Vec<u8>)| channel.clone());
                if packets.iter().any(|(channel, _)| Some(channel) != first.as_ref()) {
                    return;
                }
            }
        })
        .await;
        packets
    }

    async fn publish(&self, channel: &str, packet: &[u8]) {
        use tokio::io::AsyncWriteExt;
        let mut connection = TcpStream::connect(self.addr).await.unwrap();
        let mut out = format!(
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n",
            channel.len(),
            packet.len()
        )
        .into_bytes();
        out.extend_from_slice(packet);
        out.extend_from_slice(b"\r\n");
        connection.write_all(&out).await.unwrap();
        let mut answer = [0; 4];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(
            &answer,
            b":1\r\n".as_slice().first_chunk::<4>().unwrap(),
            "one node listens there, and no spy any more"
        );
    }
}

/// Takes whole messages of a pattern off the front: `*4`, then `pmessage`, the pattern, the channel and the payload.
fn messages(seen: &mut Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some((parts, length)) = parts(seen) {
        let channel = String::from_utf8(parts[2].clone()).unwrap();
        messages.push((channel, parts[3].clone()));
        seen.drain(..length);
    }
    messages
}

fn parts(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let line = |at: &mut usize| {
        let rest = bytes.get(*at..)?;
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        *at += end + 2;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    let count: usize = line(&mut at)?.strip_prefix('*')?.parse().ok()?;
    let mut parts = Vec::new();
    for _ in 0..count {
        let length: usize = line(&mut at)?.strip_prefix('$')?.parse().ok()?;
        parts.push(bytes.get(at..at + length)?.to_vec());
        bytes.get(at + length..at + length + 2)?;
        at += length + 2;
    }
    Some((parts, at))
}

#[tokio::test]
async fn a_redis_that_will_not_have_a_node_is_an_error_that_says_so() {
    let certs = Certs::make(1);
    let redis = Redis::start_with(&["--requirepass", "secret"]).await;
    let mut config = node_config(&certs, 0);
    config.redis = Some(redis_config(&redis));
    let error = Node::start(config).await.unwrap_err();
    let StartError::Config(text) = &error else {
        panic!("{error:?}");
    };
    assert!(text.contains("password"), "{text}");
}
