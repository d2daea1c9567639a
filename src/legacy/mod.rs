//! A legacy server as a member of the cluster: what waits for it, where it is, and how it is written to.
//!
//! [`LegacyNode`] is what the rest of the node sees: messages go in, and end. [`queue`] (pure) says which of them may
//! be handed over, [`deliver`] hands them over. What such a server sends comes in by the port of legacy clients, see
//! [`LegacyNode::is_at`].

pub(crate) mod deliver;
mod queue;

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::address::NodeName;
use crate::delivery::Bounds;
use crate::message::{Message, Ticket};
use crate::outcome::Code;
use queue::{Ends, Queue};

/// How many messages are handed to one server at once, each on a connection of its own. 64: it holds each for up to a
/// second, so that is what it takes of messages a second; and it is about what such a server has of clients.
pub(crate) const MOST_AT_ONCE: usize = 64;

/// A server that speaks the legacy protocol alone.
pub(crate) struct LegacyNode {
    name: NodeName,
    queue: Mutex<Queue<Ticket>>,
    /// There may be something to hand over.
    ready: Notify,
    /// There may be room for more.
    room: Notify,
    addresses: RwLock<Vec<IpAddr>>,
}

impl LegacyNode {
    /// A server of this name, for which so much may wait. Where it is is known if its host is an IP address.
    pub(crate) fn new(name: NodeName, bounds: Bounds) -> Self {
        let addresses = name.host().parse().map(|ip: IpAddr| ip.to_canonical());
        Self {
            name,
            queue: Mutex::new(Queue::new(bounds, MOST_AT_ONCE)),
            ready: Notify::new(),
            room: Notify::new(),
            addresses: RwLock::new(addresses.into_iter().collect()),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }

    /// Takes a message for a client of the server; gives it back when there is no room, or nothing is taken any more.
    pub(crate) fn submit(&self, message: Message, ticket: Ticket) -> Result<(), (Message, Ticket)> {
        self.queue.lock().submit(Instant::now(), message, ticket)?;
        self.ready.notify_one();
        Ok(())
    }

    /// Why a message that was given back is refused; `None`: it is to wait for [room](Self::room).
    pub(crate) fn refusal(&self) -> Option<Code> {
        self.queue.lock().refusal()
    }

    /// Waits until there may be room. The waiting starts at this call, before the future is polled, so: call, try once
    /// more, then await.
    pub(crate) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Whether no message for it is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.lock().is_idle()
    }

    /// Ends everything that has not ended, for this reason: as unknown if it may have been written. Nothing is taken
    /// any more.
    pub(crate) fn give_up(&self, code: Code) -> Ends<Ticket> {
        self.ending(|queue| queue.give_up(code))
    }

    /// Whether the server is known to be at this address: a connection from there may be its own.
    pub(crate) fn is_at(&self, ip: IpAddr) -> bool {
        self.addresses.read().contains(&ip.to_canonical())
    }

    /// It was found to be at these addresses, and at no others.
    fn set_addresses(&self, addresses: impl Iterator<Item = IpAddr>) {
        *self.addresses.write() = addresses.map(|ip| ip.to_canonical()).collect();
    }

    /// The next message to hand over, with its number.
    fn start(&self) -> Option<(u64, Message)> {
        self.queue.lock().start(Instant::now())
    }

    /// The server has greeted, on the connection for this message. Says whether it is to be written.
    fn reached(&self, number: u64) -> bool {
        self.queue.lock().reached(Instant::now(), number)
    }

    /// The server could not be reached for this message. Gives what has ended by it.
    fn missed(&self, number: u64) -> Ends<Ticket> {
        self.ending(|queue| queue.missed(Instant::now(), number))
    }

    /// The connection for this message has ended. Gives its ticket, if it had not ended before.
    fn done(&self, number: u64) -> Option<Ticket> {
        let ticket = self.queue.lock().done(Instant::now(), number);
        self.room.notify_waiters();
        ticket
    }

    /// Ends what has waited for so long that it is not handed over any more.
    fn expire(&self, wait: Duration) -> Ends<Ticket> {
        self.ending(|queue| queue.expire(Instant::now(), wait))
    }

    /// Waits until there may be something to hand over. Cancel safe.
    async fn ready(&self) {
        self.ready.notified().await;
    }

    fn ending(&self, end: impl FnOnce(&mut Queue<Ticket>) -> Ends<Ticket>) -> Ends<Ticket> {
        let ends = end(&mut self.queue.lock());
        if !ends.is_empty() {
            self.room.notify_waiters();
        }
        ends
    }
}

impl fmt::Debug for LegacyNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegacyNode")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Settle, Tag};
    use crate::outcome::Outcome;
    use futures_util::FutureExt;
    use std::sync::Arc;

    struct Nobody;
    impl Settle for Nobody {
        fn settle(&self, _: &[(Tag, Outcome)]) {}
    }

    fn submit(node: &LegacyNode) -> bool {
        let message = Message::example("n:1:a", "n:2:b", "x");
        let ticket = Ticket {
            origin: Arc::new(Nobody),
            tag: Tag::prompt(0, 0),
        };
        node.submit(message, ticket).is_ok()
    }

    fn node(name: &str) -> LegacyNode {
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        LegacyNode::new(name.parse().unwrap(), bounds)
    }

    #[test]
    fn an_address_as_a_host_is_known_and_a_name_is_not_until_it_is_looked_up() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(node("10.0.0.1:1").is_at(ip("10.0.0.1")) && node("10.0.0.1:1").is_at(ip("::ffff:10.0.0.1")));
        assert!(node("[::1]:1").is_at(ip("::1")));
        assert!(!node("10.0.0.1:1").is_at(ip("10.0.0.2")));
        let named = node("a.example:1");
        assert!(!named.is_at(ip("10.0.0.1")));
        named.set_addresses(["10.0.0.1", "::1"].map(ip).into_iter());
        assert!(named.is_at(ip("10.0.0.1")) && named.is_at(ip("::1")));
        named.set_addresses(["10.0.0.2"].map(ip).into_iter());
        assert!(!named.is_at(ip("10.0.0.1")));
    }

    #[test]
    fn who_waits_for_room_is_woken_however_it_comes() {
        let node = node("n:2");
        for way in 0..4 {
            assert!(submit(&node) && !submit(&node));
            let room = node.room();
            let number = node.start().map(|(number, _)| number);
            match way {
                0 => drop(node.done(number.unwrap())),
                1 => drop(node.missed(number.unwrap())),
                2 => {
                    drop(node.done(number.unwrap()));
                    assert!(room.now_or_never().is_some() && submit(&node));
                    let room = node.room();
                    drop(node.expire(Duration::ZERO));
                    assert!(room.now_or_never().is_some());
                    continue;
                }
                _ => drop(node.give_up(Code::ShuttingDown)),
            }
            assert!(room.now_or_never().is_some(), "{way}");
        }
        assert_eq!(node.refusal(), Some(Code::ShuttingDown));
    }
}
