//! Links: who dials, how many there are, and what becomes of messages while one is down.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use trunkline::client::Event;
use trunkline::{Address, Client, Code, Config, Node, Peer};

use crate::support::{
    Certs, LineClient, NodeCommand, NodeProcess, Relay, connect_quic, eventually, linked, name, node_config, within,
};

async fn talk(one: &mut LineClient, other: &mut LineClient) {
    for number in 0..20 {
        let body = number.to_string();
        one.say(&other.address, &body).await;
        other.reader.expect_message(&one.address, &body).await;
        other.say(&one.address, &body).await;
        one.reader.expect_message(&other.address, &body).await;
    }
}

fn peer(index: usize, link: std::net::SocketAddr) -> Peer {
    Peer {
        name: name(index),
        link: link.into(),
    }
}

#[tokio::test]
async fn one_side_that_names_the_other_is_enough() {
    for dialler in 0..2 {
        let certs = Certs::make(2);
        let other = Node::start(node_config(&certs, 1 - dialler)).await.unwrap();
        let mut config = node_config(&certs, dialler);
        config.peers = vec![peer(1 - dialler, other.link_addr())];
        let node = Node::start(config).await.unwrap();
        linked(&node, 1).await;
        linked(&other, 1).await;
        assert_eq!(node.linked(), [name(1 - dialler)]);
        assert_eq!(other.linked(), [name(dialler)]);
        let mut one = LineClient::connect(node.tcp_addr()).await;
        let mut two = LineClient::connect(other.tcp_addr()).await;
        talk(&mut one, &mut two).await;
    }
}

#[tokio::test]
async fn both_sides_that_name_each_other_make_one_link() {
    let certs = Certs::make(2);
    let mut first = NodeCommand::new(&certs, 0).start().await;
    let mut second = NodeCommand::new(&certs, 1);
    second.peers = vec![first.as_peer()];
    let mut second = second.start().await;
    first.process.stderr.until("link up").await;
    second.process.stderr.until("link up").await;
    // The first comes back on its ports, now with the second's name: both dial.
    let mut command = first.command.clone();
    command.peers = vec![second.as_peer()];
    first.process.kill();
    let mut first = command.start().await;
    first.process.stderr.until("link up").await;
    second.process.stderr.until("link up").await;
    let mut one = LineClient::connect(first.tcp()).await;
    let mut two = LineClient::connect(second.tcp()).await;
    // Dials that cross may both become the link, one after the other. Then it stays, for long enough for another connection
    // to come and go: a few waits between dials.
    let ups = |first: &mut NodeProcess, second: &mut NodeProcess| {
        [first, second].map(|node| node.process.stderr.count("link up"))
    };
    let mut rounds = 0;
    loop {
        let before = ups(&mut first, &mut second);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            talk(&mut one, &mut two).await;
        }
        if ups(&mut first, &mut second) == before {
            break;
        }
        rounds += 1;
        assert!(rounds < 3, "the link does not stay: {before:?}");
    }
    assert_eq!(first.process.stderr.count("link down"), 0);
}

/// Two nodes, the first of which reaches the second by a wire that is cut.
struct Apart {
    certs: Certs,
    nodes: [Node; 2],
    relay: Relay,
}

impl Apart {
    async fn start(adjust: impl Fn(&mut Config)) -> Self {
        Self::start_with_loss(0.0, adjust).await
    }

    /// The wire, once mended, loses this share of what goes through it.
    async fn start_with_loss(loss: f64, adjust: impl Fn(&mut Config)) -> Self {
        let certs = Certs::make(2);
        let mut config = node_config(&certs, 1);
        adjust(&mut config);
        let second = Node::start(config).await.unwrap();
        let relay = Relay::cut_to(second.link_addr(), loss).await;
        let mut config = node_config(&certs, 0);
        config.peers = vec![peer(1, relay.addr())];
        adjust(&mut config);
        let first = Node::start(config).await.unwrap();
        Self {
            certs,
            nodes: [first, second],
            relay,
        }
    }

    async fn clients(&self) -> (LineClient, LineClient) {
        (
            LineClient::connect(self.nodes[0].tcp_addr()).await,
            LineClient::connect(self.nodes[1].tcp_addr()).await,
        )
    }
}

#[tokio::test]
async fn messages_wait_for_a_link_and_arrive_when_it_comes_up() {
    let apart = Apart::start(|_| {}).await;
    let (mut sender, mut recipient) = apart.clients().await;
    for number in 0..500 {
        let body = number.to_string();
        sender.say_with_id(&recipient.address, &body, &body).await;
    }
    // All were read, as the client is answered behind them, and none was refused.
    sender.expect_nothing_else().await;
    assert!(apart.nodes[0].linked().is_empty());
    apart.relay.mend();
    for number in 0..500 {
        recipient
            .reader
            .expect_message(&sender.address, &number.to_string())
            .await;
    }
    for number in 0..500 {
        sender.reader.expect_delivered(&number.to_string()).await;
    }
    recipient.expect_nothing_else().await;
}

async fn expect(program: &Client, from: &Address, body: &str) {
    match within(format!("{body:?}"), program.receive()).await {
        Some(Event::Message(message)) => assert_eq!((&message.from, &message.body[..]), (from, body.as_bytes())),
        event => panic!("{event:?} in place of {body:?}"),
    }
}

#[tokio::test]
async fn nothing_is_lost_doubled_or_reordered_by_a_wire_that_breaks() {
    const PROGRAM: usize = 50;
    let apart = Apart::start(|_| {}).await;
    apart.relay.mend();
    let (mut sender, mut recipient) = apart.clients().await;
    // It takes what has reached its node only after each break.
    let program = connect_quic(apart.nodes[1].quic_addr(), &apart.certs).await;
    let from = sender.address.clone();
    let mut next = 0;
    let breaks: [fn(&Relay); 4] = [
        Relay::cut,
        Relay::end_connections,
        // The side that dials hears the other, and no answer.
        Relay::end_connections_on_the_way_there,
        // What has arrived is not known to have.
        Relay::end_connections_on_the_way_back,
    ];
    for (round, break_it) in breaks.into_iter().enumerate() {
        let last = next + 1000;
        for number in 0..PROGRAM {
            sender.say(program.address(), &format!("{round}/{number}")).await;
        }
        for number in next..last {
            let body = number.to_string();
            sender.say_with_id(&recipient.address, &body, &body).await;
            if number == next + 300 {
                break_it(&apart.relay);
            }
        }
        if round == 0 {
            eventually("the link is in doubt", || apart.nodes[0].linked().is_empty()).await;
            apart.relay.mend();
        }
        for number in next..last {
            recipient.reader.expect_message(&from, &number.to_string()).await;
        }
        for number in next..last {
            sender.reader.expect_delivered(&number.to_string()).await;
        }
        for number in 0..PROGRAM {
            expect(&program, &from, &format!("{round}/{number}")).await;
        }
        next = last;
    }
    program.send(program.address(), "to itself").await.unwrap();
    expect(&program, program.address(), "to itself").await;
    recipient.expect_nothing_else().await;
    sender.expect_nothing_else().await;
}

#[tokio::test]
async fn a_wire_that_loses_datagrams_reorders_nothing() {
    const MESSAGES: usize = 2000;
    let apart = Apart::start_with_loss(0.05, |_| {}).await;
    apart.relay.mend();
    linked(&apart.nodes[0], 1).await;
    let conversations = (0..4).map(|_| async {
        let (mut sender, mut recipient) = apart.clients().await;
        let (from, to) = (sender.address.clone(), recipient.address.clone());
        let writing = async {
            for number in 0..MESSAGES {
                sender.say(&to, &number.to_string()).await;
            }
        };
        let reading = async {
            for number in 0..MESSAGES {
                recipient.reader.expect_message(&from, &number.to_string()).await;
            }
        };
        tokio::join!(writing, reading);
        recipient.expect_nothing_else().await;
    });
    join_all(conversations).await;
    let lost = apart.relay.stats().map(|stats| stats.lost);
    assert!(lost.iter().all(|&lost| lost > 0), "{lost:?}");
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_at_once_hold_one_link() {
    let certs = Certs::make(2);
    // Only a node that is up has a port to dial, so each is started, and once more to be told of the other.
    let mut configs = [node_config(&certs, 0), node_config(&certs, 1)];
    let mut wires = Vec::new();
    for (index, config) in configs.iter_mut().enumerate() {
        let node = Node::start(config.clone()).await.unwrap();
        config.link = Some(node.link_addr().into());
        wires.push((index, Relay::cut_to(node.link_addr(), 0.0).await));
        assert!(node.shutdown().await);
    }
    for (index, wire) in &wires {
        configs[1 - index].peers = vec![peer(*index, wire.addr())];
    }
    let [first, second] = configs;
    let (first, second) = (Node::start(first).await.unwrap(), Node::start(second).await.unwrap());
    for (_, wire) in &wires {
        wire.mend();
    }
    let mut one = LineClient::connect(first.tcp_addr()).await;
    let mut two = LineClient::connect(second.tcp_addr()).await;
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        talk(&mut one, &mut two).await;
    }
    assert_eq!(first.linked(), [name(1)]);
    assert_eq!(second.linked(), [name(0)]);
}

#[tokio::test]
async fn a_message_for_a_node_that_stays_away_ends_when_link_wait_does() {
    const WAIT: Duration = Duration::from_secs(1);
    let apart = Apart::start(|config| config.limits.link_wait = WAIT).await;
    let (mut sender, recipient) = apart.clients().await;
    let started = Instant::now();
    for id in ["1", "2"] {
        sender.say_with_id(&recipient.address, "hello?", id).await;
    }
    sender.say(&recipient.address, "hello?").await;
    for id in ["1", "2"] {
        sender.reader.expect_refused(id, Code::NodeUnreachable).await;
    }
    sender.reader.expect_error(Code::NodeUnreachable).await;
    let took = started.elapsed();
    assert!(took >= WAIT, "given up after {took:?}");
    assert!(took < WAIT + Duration::from_secs(1), "answered only after {took:?}");
    sender.expect_nothing_else().await;
}
