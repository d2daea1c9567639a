//! Wires that lose, delay, reorder, duplicate and break, all at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::sleep_until;
use trunkline::client::Event;
use trunkline::{Address, Client, Node, Peer};
use trunkline_lab::wire::Settings;

use crate::support::{Certs, LineClient, Relay, Talk, connect_quic, eventually, linked, name, node_config, within};

/// All that a wire can do to what it carries.
fn bad() -> Settings {
    Settings {
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(5),
        loss: 0.05,
        reorder: 0.05,
        reorder_by: Duration::from_millis(8),
        duplicate: 0.05,
        ..Settings::default()
    }
}

/// Two nodes, the first of which reaches the second by a wire, and wires to both for their QUIC clients.
struct Net {
    certs: Certs,
    nodes: [Node; 2],
    link: Relay,
    quic: [Relay; 2],
}

impl Net {
    async fn start(settings: &Settings) -> Self {
        let certs = Certs::make(2);
        // Some programs here take nothing for as long as a test lasts.
        let config = |index| {
            let mut config = node_config(&certs, index);
            config.limits.stall = Duration::from_secs(300);
            config
        };
        let second = Node::start(config(1)).await.unwrap();
        let link = Relay::bad_to(second.link_addr(), settings).await;
        let mut config = config(0);
        config.peers = vec![Peer {
            name: name(1),
            link: link.addr().into(),
        }];
        let first = Node::start(config).await.unwrap();
        linked(&first, 1).await;
        let quic = [
            Relay::bad_to(first.quic_addr(), settings).await,
            Relay::bad_to(second.quic_addr(), settings).await,
        ];
        Self {
            certs,
            nodes: [first, second],
            link,
            quic,
        }
    }

    async fn line(&self, node: usize) -> LineClient {
        LineClient::connect(self.nodes[node].tcp_addr()).await
    }

    async fn quic(&self, node: usize) -> Client {
        connect_quic(self.quic_addr(node), &self.certs).await
    }

    fn quic_addr(&self, node: usize) -> SocketAddr {
        self.quic[node].addr()
    }
}

/// Has pairs of clients of the two nodes talk while `body` runs: legacy, QUIC, and one of each.
async fn talk_during(net: &Net, body: impl AsyncFnOnce(&Talk)) {
    let talk = Talk::new();
    let lines = [
        (net.line(0).await, net.line(1).await),
        (net.line(0).await, net.line(1).await),
    ];
    let programs = [
        (net.quic(0).await, net.quic(1).await),
        (net.quic(0).await, net.quic(1).await),
    ];
    let mut mixed = (net.line(0).await, net.quic(1).await);
    let lines = join_all(lines.map(async |(mut one, mut other)| {
        let (first, second) = (one.address.clone(), other.address.clone());
        tokio::join!(talk.line(&mut one, &second), talk.line(&mut other, &first));
    }));
    let talking = async {
        let programs = join_all(programs.each_ref().map(async |(one, other)| {
            tokio::join!(talk.quic(one, other.address()), talk.quic(other, one.address()));
        }));
        let address = mixed.0.address.clone();
        let mixed = async {
            tokio::join!(
                talk.line(&mut mixed.0, mixed.1.address()),
                talk.quic(&mixed.1, &address)
            );
        };
        tokio::join!(lines, programs, mixed);
    };
    let disturbing = async {
        talk.begins(10).await;
        body(&talk).await;
        talk.end();
    };
    tokio::join!(talking, disturbing);
    println!("{} messages", talk.messages());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_faults_at_once_cost_no_message() {
    let net = Net::start(&bad()).await;
    talk_during(&net, async |talk| talk.goes_on(500).await).await;
    for wire in [&net.link, &net.quic[0], &net.quic[1]] {
        for stats in wire.stats() {
            println!("{stats:?}");
            assert!(
                stats.lost > 0 && stats.reordered > 0 && stats.duplicated > 0,
                "{stats:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_wire_does_may_change_while_it_is_in_use() {
    let net = Net::start(&Settings::default()).await;
    talk_during(&net, async |talk| {
        for settings in [bad(), Settings::default(), bad()] {
            for wire in [&net.link, &net.quic[0], &net.quic[1]] {
                wire.set(&settings);
            }
            talk.goes_on(100).await;
        }
        // A connection of a client goes on from its new port. A link has to be made anew: nodes stay where they are.
        for wire in [&net.link, &net.quic[0], &net.quic[1]] {
            wire.change_ports();
            eventually("it is seen at another port", || wire.is_seen_elsewhere()).await;
            talk.goes_on(100).await;
        }
    })
    .await;
}

/// What a node bears of silence on a link before it gives the connection up.
const SILENCE: Duration = Duration::from_secs(10);

/// How many messages wait for one who takes them late.
const LATE: usize = 50;

/// Cuts the link one way for so long in the middle of a talk.
async fn cut_one_way(cuts: &[fn(&Relay)], lasting: Duration) {
    let net = Net::start(&Settings::default()).await;
    // Those who take what has come to them only when all is over: the nodes know of what they have passed on, not of how
    // it ended, when the link breaks.
    let mut late = Vec::new();
    for node in 0..2 {
        let (mut sender, program) = (net.line(1 - node).await, net.quic(node).await);
        for number in 0..LATE {
            sender.say(program.address(), &number.to_string()).await;
        }
        sender.expect_nothing_else().await;
        late.push((sender, program));
    }
    talk_during(&net, async |talk| {
        for cut in cuts {
            talk.goes_on(50).await;
            let before = net.link.handshakes();
            let until = Instant::now() + lasting;
            cut(&net.link);
            sleep_until(until.into()).await;
            if lasting > SILENCE {
                eventually("another connection is tried", || net.link.handshakes() > before).await;
            }
            net.link.mend();
        }
        talk.goes_on(50).await;
    })
    .await;
    for (mut sender, program) in late {
        for number in 0..LATE {
            expect(&program, &sender.address, &number.to_string()).await;
        }
        program.send(program.address(), "to itself").await.unwrap();
        expect(&program, program.address(), "to itself").await;
        sender.expect_nothing_else().await;
    }
}

async fn expect(program: &Client, from: &Address, body: &str) {
    match within(format!("{body:?}"), program.receive()).await {
        Some(Event::Message(message)) => assert_eq!((&message.from, &message.body[..]), (from, body.as_bytes())),
        event => panic!("{event:?} in place of {body:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_cut_one_way_and_not_given_up_loses_nothing() {
    cut_one_way(&[Relay::cut_there, Relay::cut_back], SILENCE * 3 / 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_given_up_as_nothing_gets_there_loses_nothing() {
    cut_one_way(&[Relay::cut_there], SILENCE * 11 / 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_given_up_as_nothing_comes_back_loses_nothing() {
    cut_one_way(&[Relay::cut_back], SILENCE * 11 / 10).await;
}
