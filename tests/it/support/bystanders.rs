//! Clients with no part in what is tested, whose conversations must go on untouched.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::sleep;
use trunkline::Client;
use trunkline::client::Event;

use super::{Cluster, LineClient, within};

/// Between two rounds, so that they take no more of the machine than they need.
const PAUSE: Duration = Duration::from_millis(2);

/// Two legacy clients and a QUIC client of one node.
#[derive(Debug)]
pub(crate) struct Bystanders {
    one: LineClient,
    other: LineClient,
    quic: Client,
    round: u64,
}

impl Bystanders {
    pub(crate) async fn join(cluster: &Cluster, node: usize) -> Self {
        Self {
            one: cluster.line(node).await,
            other: cluster.line(node).await,
            quic: cluster.quic(node).await,
            round: 0,
        }
    }

    /// One of the addresses that others might try to reach.
    pub(crate) fn address(&self) -> trunkline::Address {
        self.one.address.clone()
    }

    /// Talks while `body` runs, and once more after it. Fails when a line is late, lost, or not one of theirs.
    pub(crate) async fn during<T>(&mut self, body: impl Future<Output = T>) -> T {
        let over = Cell::new(false);
        let body = async {
            let done = body.await;
            over.set(true);
            done
        };
        let talk = async {
            self.talk().await;
            while !over.get() {
                self.talk().await;
                sleep(PAUSE).await;
            }
            self.talk().await;
        };
        tokio::join!(body, talk).0
    }

    async fn talk(&mut self) {
        let Self {
            one,
            other,
            quic,
            round,
        } = self;
        *round += 1;
        let body = format!("round {round}");
        one.say(&other.address, &body).await;
        other.reader.expect_message(&one.address, &body).await;
        other.say(quic.address(), &body).await;
        match within("a bystander's message", quic.receive()).await {
            Some(Event::Message(message)) => {
                assert_eq!((&message.from, &message.body[..]), (&other.address, body.as_bytes()));
            }
            event => panic!("a bystander got {event:?}"),
        }
        quic.send(&one.address, body.clone()).await.unwrap();
        one.reader.expect_message(quic.address(), &body).await;
    }
}
