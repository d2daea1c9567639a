//! Any client can talk to any other, wherever each is.

use futures_util::future::join_all;
use trunkline::client::Event;
use trunkline::{Address, Client};

use crate::support::{Cluster, LineClient, within};

/// Messages each way.
const MESSAGES: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Legacy,
    Quic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    SameNode,
    OtherNode,
}

/// A client of either kind.
enum Talker {
    Legacy(LineClient),
    Quic(Client),
}

impl Talker {
    async fn join(cluster: &Cluster, node: usize, kind: Kind) -> Self {
        match kind {
            Kind::Legacy => Self::Legacy(cluster.line(node).await),
            Kind::Quic => Self::Quic(cluster.quic(node).await),
        }
    }

    fn address(&self) -> Address {
        match self {
            Self::Legacy(client) => client.address.clone(),
            Self::Quic(client) => client.address().clone(),
        }
    }

    async fn say(&mut self, to: &Address, body: &str) {
        match self {
            Self::Legacy(client) => client.say(to, body).await,
            Self::Quic(client) => client.send(to, body.to_owned()).await.unwrap(),
        }
    }

    async fn expect(&mut self, from: &Address, body: &str) {
        match self {
            Self::Legacy(client) => client.reader.expect_message(from, body).await,
            Self::Quic(client) => match within(format!("{body:?}"), client.receive()).await {
                Some(Event::Message(message)) => {
                    assert_eq!((&message.from, &message.body[..]), (from, body.as_bytes()));
                    assert_eq!(&message.to, client.address());
                }
                event => panic!("{event:?} in place of {body:?}"),
            },
        }
    }
}

async fn talk(cluster: &Cluster, kinds: (Kind, Kind), nodes: (usize, usize)) {
    let mut one = Talker::join(cluster, nodes.0, kinds.0).await;
    let mut other = Talker::join(cluster, nodes.1, kinds.1).await;
    let (first, second) = (one.address(), other.address());
    for number in 0..MESSAGES {
        one.say(&second, &format!("there {number}")).await;
        other.say(&first, &format!("back {number}")).await;
    }
    for number in 0..MESSAGES {
        other.expect(&first, &format!("there {number}")).await;
        one.expect(&second, &format!("back {number}")).await;
    }
    // Nothing came twice, and nothing that was for another: the next message is the one each sends itself.
    for talker in [&mut one, &mut other] {
        let own = talker.address();
        talker.say(&own, "to myself").await;
        talker.expect(&own, "to myself").await;
    }
}

#[tokio::test]
async fn every_pair_of_clients_exchanges_messages_in_order() {
    use Kind::{Legacy, Quic};
    use Place::{OtherNode, SameNode};
    let table = [
        (Legacy, Legacy, SameNode),
        (Legacy, Legacy, OtherNode),
        (Legacy, Quic, SameNode),
        (Legacy, Quic, OtherNode),
        (Quic, Legacy, SameNode),
        (Quic, Legacy, OtherNode),
        (Quic, Quic, SameNode),
        (Quic, Quic, OtherNode),
    ];
    let cluster = Cluster::start(3).await;
    for (one, other, place) in table {
        let nodes = (0..3).flat_map(|first| (0..3).map(move |second| (first, second)));
        let talks = nodes
            .filter(|(first, second)| (first == second) == (place == SameNode))
            .map(|nodes| talk(&cluster, (one, other), nodes));
        join_all(talks).await;
    }
}

#[tokio::test]
async fn a_quic_client_is_told_of_what_failed_and_of_what_arrived() {
    let cluster = Cluster::start(2).await;
    let (sender, recipient) = (cluster.quic(0).await, cluster.quic(1).await);
    let receipt = sender.send_with_receipt(recipient.address(), "hello").await.unwrap();
    let received = within("the message", recipient.receive()).await;
    assert!(matches!(received, Some(Event::Message(message)) if message.body == "hello"));
    assert_eq!(within("the receipt", receipt).await, trunkline::Outcome::Delivered);

    for (node, to) in [(0, "127.0.0.1:1:nobody"), (1, "127.0.0.1:2:nobody")] {
        let to: Address = to.parse().unwrap();
        sender.send(&to, "hello?").await.unwrap();
        match within("news of the message", sender.receive()).await {
            Some(Event::Failed(failed)) => {
                assert_eq!(failed.to, to);
                assert_eq!(
                    failed.outcome,
                    trunkline::Outcome::Refused(trunkline::Code::NoSuchClient)
                );
            }
            event => panic!("node {node}: {event:?}"),
        }
    }
    within("the close", sender.close()).await;
    within("the close", recipient.close()).await;
}
