//! Conversations that go on while a test does its worst to what is under them.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use trunkline::client::Event;
use trunkline::{Address, Client, Outcome};

use super::{LineClient, eventually, message_line_with_id, within};

/// How many messages of a client may be unanswered.
const UNANSWERED: usize = 512;

/// Each so manyth message fills several packets.
const LARGE: usize = 64;

/// Clients that write to each other as fast as they can until it is over. Each message must come once and in order,
/// and be answered as delivered, once.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    over: AtomicBool,
    /// How many messages each has received.
    heard: Mutex<BTreeMap<String, usize>>,
}

impl Talk {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// From now on nothing is sent; what was sent must still come.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Waits until each has received so many messages more.
    pub(crate) async fn goes_on(&self, messages: usize) {
        let before = self.heard.lock().clone();
        let what = format!("each receives {messages} messages more");
        eventually(what, || {
            let now = self.heard.lock();
            let mut each = before.iter().map(|(who, heard)| (now[who], heard));
            !before.is_empty() && each.all(|(now, heard)| now >= heard + messages)
        })
        .await;
    }

    /// Waits until this many clients have received something.
    pub(crate) async fn begins(&self, clients: usize) {
        let what = format!("{clients} clients have received something");
        eventually(what, || self.heard.lock().len() == clients).await;
    }

    /// How many messages were received in all.
    pub(crate) fn messages(&self) -> usize {
        self.heard.lock().values().sum()
    }

    /// The body of a message, and whether it is the last one.
    fn next(&self, number: usize) -> (String, bool) {
        let over = self.over.load(Ordering::SeqCst);
        let word = if over { "last" } else { "next" };
        let filling = if number.is_multiple_of(LARGE) { 4000 } else { 20 };
        (format!("{word} {number} {}", ".".repeat(filling)), over)
    }

    /// A message was received: it must be the one that was due. Says whether it is the last one.
    fn hear(&self, own: &Address, body: &str, number: usize) -> bool {
        let mut words = body.split(' ');
        let last = words.next() == Some("last");
        assert_eq!(words.next(), Some(&number.to_string()[..]), "{own} got {body:?}");
        *self.heard.lock().entry(own.to_string()).or_default() += 1;
        last
    }

    /// Has a QUIC client write to this address, and read what comes from there.
    pub(crate) async fn quic(&self, client: &Client, peer: &Address) {
        let own = client.address();
        let (sent, mut receipts) = mpsc::channel(UNANSWERED);
        let writing = async move {
            for number in 0.. {
                let (body, last) = self.next(number);
                let receipt = within("there is room", client.send_with_receipt(peer, body)).await;
                within("receipts come", sent.send(receipt.unwrap())).await.unwrap();
                if last {
                    return;
                }
            }
        };
        let answers = async {
            while let Some(receipt) = receipts.recv().await {
                assert_eq!(within("a receipt", receipt).await, Outcome::Delivered);
            }
        };
        let reading = async {
            for number in 0.. {
                if self.hear(own, &receive(client, peer).await, number) {
                    return;
                }
            }
        };
        tokio::join!(writing, answers, reading);
        client.send(own, "is there anything else?").await.unwrap();
        assert_eq!(receive(client, own).await, "is there anything else?");
    }

    /// Has a legacy client write to this address, and read what comes from there.
    pub(crate) async fn line(&self, client: &mut LineClient, peer: &Address) {
        let LineClient {
            address,
            reader,
            writer,
        } = client;
        let from = format!("{peer} say : ");
        let room = Semaphore::new(UNANSWERED);
        let total = Mutex::new(None);
        let writing = async {
            for number in 0.. {
                within("receipts come", room.acquire()).await.unwrap().forget();
                let (body, last) = self.next(number);
                if last {
                    *total.lock() = Some(number + 1);
                }
                writer
                    .send(&message_line_with_id(peer, &body, &number.to_string()))
                    .await;
                if last {
                    return;
                }
            }
        };
        let reading = async {
            let (mut heard, mut heard_all) = (0, false);
            let mut answered = HashSet::new();
            while !heard_all || *total.lock() != Some(answered.len()) {
                let line = reader.line().await;
                if let Some(body) = line.strip_prefix(&from) {
                    heard_all = self.hear(address, body, heard);
                    heard += 1;
                    continue;
                }
                let mut receipt: serde_json::Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                let id = receipt["id"].take().as_str().unwrap().parse::<usize>().unwrap();
                assert_eq!(
                    receipt,
                    json!({"cmd": "receipt", "id": null, "status": "delivered"}),
                    "{id}"
                );
                assert!(answered.insert(id), "{id} was answered twice");
                room.add_permits(1);
            }
        };
        tokio::join!(writing, reading);
        client.expect_nothing_else().await;
    }
}

/// The body of the client's next message, which must come from this address.
async fn receive(client: &Client, from: &Address) -> String {
    match within("a message", client.receive()).await {
        Some(Event::Message(message)) if message.from == *from => message.text(),
        event => panic!("{event:?} in place of a message from {from}"),
    }
}
