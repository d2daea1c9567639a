//! Nodes that are joined by Redis: nothing is lost whatever happens to it, and it learns nothing.
//!
//! The tests of `exchange`, `load`, `kill`, `shutdown` and others run over Redis too, with `TRUNKLINE_TEST_CARRIER=redis`,
//! and over three masters of a cluster with `TRUNKLINE_TEST_CARRIER=redis-cluster`.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use trunkline::client::Event;
use trunkline::{Client, Code, Node, Outcome, Peer, StartError};
use trunkline_lab::redis_server::Answer;

use crate::support::{
    Carrier, Certs, LineClient, NodeCommand, Redis, RedisCluster, Relay, Talk, channel_of, connect_quic, eventually,
    linked, message_line_with_id, name, node_config, redis_config, within,
};

/// Two nodes that are joined by Redis alone, and two clients of each.
struct Joined<R = Redis> {
    certs: Certs,
    redis: R,
    nodes: [Node; 2],
}

impl Joined {
    async fn start() -> Self {
        let redis = Redis::start().await;
        let urls = [redis.url()];
        Self::by(redis, &urls).await
    }
}

impl<R> Joined<R> {
    async fn by(redis: R, urls: &[String]) -> Self {
        let certs = Certs::make(2);
        let mut nodes = Vec::new();
        for index in 0..2 {
            let mut config = node_config(&certs, index);
            config.redis = Some(redis_config(urls));
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

#[tokio::test]
async fn nothing_is_lost_when_redis_ends_its_connections() {
    let joined = Joined::start().await;
    let clients = joined.clients().await;
    while_all_talk(&clients, async |talk| {
        for kind in ["pubsub", "normal", "pubsub"] {
            talk.goes_on(100).await;
            joined.redis.ask(&["CLIENT", "KILL", "TYPE", kind]);
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
        joined.redis.signal("STOP");
        // Until the nodes have noticed, and given it up.
        eventually("the links are down", || {
            joined.nodes.iter().all(|node| node.linked().is_empty())
        })
        .await;
        joined.redis.signal("CONT");
    })
    .await;
}

/// The nodes have a way by QUIC as well, which is mended and cut: they take it, and go back.
#[tokio::test]
async fn a_pair_of_nodes_changes_over_to_quic_and_back() {
    let certs = Certs::make(2);
    let redis = Redis::start().await;
    let mut config = node_config(&certs, 1);
    config.redis = Some(redis_config(&[redis.url()]));
    let second = Node::start(config).await.unwrap();
    let relay = Relay::cut_to(second.link_addr(), 0.0).await;
    let mut config = node_config(&certs, 0);
    config.redis = Some(redis_config(&[redis.url()]));
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

/// One of the nodes takes longer messages than the other reads from Redis at all.
#[tokio::test]
async fn a_message_that_is_far_too_long_for_the_other_node_is_refused_and_holds_up_nothing() {
    let certs = Certs::make(2);
    let redis = Redis::start().await;
    let mut nodes = Vec::new();
    for index in 0..2 {
        let mut config = node_config(&certs, index);
        config.redis = Some(redis_config(&[redis.url()]));
        if index == 0 {
            config.limits.max_message = 24 << 20;
        }
        nodes.push(Node::start(config).await.unwrap());
    }
    for node in &nodes {
        linked(node, 1).await;
    }
    let one = connect_quic(nodes[0].quic_addr(), &certs).await;
    let two = connect_quic(nodes[1].quic_addr(), &certs).await;
    let receipt = one
        .send_with_receipt(two.address(), vec![b'x'; 20 << 20])
        .await
        .unwrap();
    let outcome = within("a receipt", receipt).await;
    assert_eq!(outcome, Outcome::Refused(Code::TooLarge));
    say(&one, &two, "next").await;
    say(&two, &one, "back").await;
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
    joined.redis.ask(&["ECHO", "the-end"]);
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
    config.redis = Some(redis_config(&[redis.url()]));
    let error = Node::start(config).await.unwrap_err();
    let StartError::Config(text) = &error else {
        panic!("{error:?}");
    };
    assert!(text.contains("password"), "{text}");
}

/// Each node's channel goes to another master, again and again, back to where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_slot_of_a_node_moves() {
    let cluster = RedisCluster::start().await;
    let urls = cluster.urls();
    let joined = Joined::by(cluster, &urls).await;
    let cluster = &joined.redis;
    let clients = joined.clients().await;
    while_all_talk(&clients, async |talk| {
        for round in 0..6 {
            talk.goes_on(100).await;
            let channel = channel_of(&name(round % 2));
            let master = cluster.move_on(channel.clone()).await;
            eventually("the node has followed", || cluster.subscribers(master, &channel) == 1).await;
        }
    })
    .await;
}

/// A node that does not read for a while is thrown out by Redis, with what Redis had for it, while much is said to its
/// clients; and then perhaps again, as it comes back to more than it may leave unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_throws_a_node_out() {
    const PAIRS: usize = 8;
    const MESSAGES: usize = 4000;
    // More than one packet, and less than two of them.
    let redis = Arc::new(Redis::start_with(&["--client-output-buffer-limit", "pubsub 96kb 64kb 1"]).await);
    let carrier = Carrier::Redis(Arc::clone(&redis));
    let certs = Certs::make(2);
    let mut config = node_config(&certs, 0);
    // More may be under way than the system's buffers take.
    (config.limits.conversation_bytes, config.limits.client_bytes) = (4 << 20, 4 << 20);
    carrier.join(&mut config, Vec::new());
    let mut command = NodeCommand::new(&certs, 1);
    carrier.join_process(&mut command, &[]);
    let mut there = command.start().await;
    let here = Node::start(config).await.unwrap();
    linked(&here, 1).await;

    let body = |number: usize| format!("{number} {}", ".".repeat(2000));
    let mut talks = JoinSet::new();
    let begun = Arc::new(Semaphore::new(0));
    for _ in 0..PAIRS {
        let (sender, mut recipient) = (
            LineClient::connect(here.tcp_addr()).await,
            LineClient::connect(there.tcp()).await,
        );
        let LineClient {
            address: from,
            mut reader,
            mut writer,
        } = sender;
        let to = recipient.address.clone();
        let begun = Arc::clone(&begun);
        talks.spawn(async move {
            let writing = async {
                for number in 0..MESSAGES {
                    let line = message_line_with_id(&to, &body(number), &number.to_string());
                    writer.send(&line).await;
                }
            };
            let reading = async {
                for number in 0..MESSAGES {
                    recipient.reader.expect_message(&from, &body(number)).await;
                    if number == 100 {
                        begun.add_permits(1);
                    }
                }
                recipient.expect_nothing_else().await;
            };
            let answers = async {
                let mut answered = HashSet::new();
                while answered.len() < MESSAGES {
                    let receipt = reader.json().await;
                    assert_eq!(receipt["status"], "delivered", "{receipt}");
                    assert!(answered.insert(receipt["id"].as_str().unwrap().to_owned()), "{receipt}");
                }
            };
            tokio::join!(writing, reading, answers);
        });
    }
    let begin = begun.acquire_many(PAIRS.try_into().unwrap());
    within("all have begun", begin).await.unwrap().forget();
    there.process.signal("STOP");
    let channel = channel_of(&name(1));
    eventually("the node is thrown out", || {
        let subscribers = redis.ask(&["PUBSUB", "NUMSUB", &channel]);
        subscribers == Answer::Array(vec![Answer::Bytes(channel.clone().into_bytes()), Answer::Integer(0)])
    })
    .await;
    there.process.signal("CONT");
    while let Some(talk) = talks.join_next().await {
        talk.unwrap();
    }
    let times = there.process.stderr.count("has lost its subscription");
    println!("thrown out {times} times");
    assert!(times > 0);
}

/// What `--redis` leads to may be anything. Each is told with what is to be done.
#[tokio::test]
async fn a_redis_that_is_of_no_use_is_an_error_that_says_what_to_do() {
    let certs = Certs::make(1);
    let why = async |urls: &[String]| {
        let mut config = node_config(&certs, 0);
        config.redis = Some(redis_config(urls));
        match within("the start", Node::start(config)).await {
            Err(StartError::Config(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let redis = Redis::start().await;
    redis.ask(&["ACL", "SETUSER", "me", "on", ">pw", "~*", "&*", "+@all", "-subscribe"]);
    let text = why(&[redis.url().replace("//", "//me:pw@")]).await;
    for part in ["SUBSCRIBE", "ACL SETUSER", "&PREFIX:*", "--redis-prefix"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let old = RedisCluster::start_with(&["--rename-command", "SSUBSCRIBE", ""]).await;
    let text = why(&old.urls()).await;
    assert!(text.contains("must be Redis 7.0 or Valkey, or later"), "{text}");

    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", other.local_addr().unwrap());
    let serving = async {
        loop {
            let (mut stream, _) = other.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    };
    tokio::select! {
        text = async { why(std::slice::from_ref(&url)).await } => {
            assert!(text.contains("is not Redis") && text.contains("correct --redis"), "{text}");
        }
        () = serving => unreachable!(),
    }
}
