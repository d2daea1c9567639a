//! Where a node's packets come in from a bus: each goes to the session that it is of.

use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::mpsc;

use super::handshake::Party;
use crate::address::NodeName;
use crate::counters::{Counter, Counters};
use crate::redis::{Bus, Event, RedisConfig};
use crate::wire::packet::{self, Packet, SessionId};

/// How many packets may wait for one session. Its carrier waits for nobody, so this is for when it has its turn.
const INBOX: usize = 256;

/// How many nodes may wait to have their openings looked at; more are counted, and open again.
const OPENINGS: usize = 64;

/// A node that wants a session, as far as it says.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) peer: Party,
    pub(crate) tls: Bytes,
    pub(crate) inbox: Inbox,
}

/// The bus, as this node uses it.
#[derive(Debug)]
pub(crate) struct Hub {
    bus: Bus,
    own: Party,
    config: RedisConfig,
    sessions: DashMap<SessionId, mpsc::Sender<Packet>>,
    openings: mpsc::Sender<Opening>,
    counters: Arc<Counters>,
}

/// Where the packets of one session come in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inbox {
    session: SessionId,
    packets: mpsc::Receiver<Packet>,
    hub: Arc<Hub>,
}

impl Inbox {
    /// Whose packets these are.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// Waits for the next packet; `None` once the subscription has broken. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        self.packets.recv().await
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.hub.sessions.remove(&self.session);
    }
}

impl Hub {
    /// Gives the hub, and where nodes come in that want a session.
    pub(crate) fn new(
        bus: Bus,
        own: Party,
        config: RedisConfig,
        counters: Arc<Counters>,
    ) -> (Arc<Self>, mpsc::Receiver<Opening>) {
        let (openings, receiver) = mpsc::channel(OPENINGS);
        let hub = Self {
            bus,
            own,
            config,
            sessions: DashMap::new(),
            openings,
            counters,
        };
        (Arc::new(hub), receiver)
    }

    /// What carries the packets.
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// This node.
    pub(crate) fn own(&self) -> &Party {
        &self.own
    }

    /// What is counted of packets that are refused.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The channel that a node listens on.
    pub(crate) fn channel_of(&self, node: &NodeName) -> String {
        self.config.channel(node)
    }

    /// A place for a session's packets; `None` if there is a session with this id.
    pub(crate) fn enter(self: &Arc<Self>, session: SessionId) -> Option<Inbox> {
        let Entry::Vacant(place) = self.sessions.entry(session) else {
            return None;
        };
        let (sender, packets) = mpsc::channel(INBOX);
        place.insert(sender);
        Some(Inbox {
            session,
            packets,
            hub: Arc::clone(self),
        })
    }

    /// Passes on what comes, until the bus has ended.
    pub(crate) async fn run(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                // Of both the bus has told.
                Event::Subscribed => {}
                Event::Lost(_) => {
                    // Packets may be missing. Each session ends once it has read those that are there.
                    self.sessions.clear();
                }
                Event::Message(bytes) => self.pass_on(bytes.freeze()).await,
            }
        }
    }

    async fn pass_on(self: &Arc<Self>, bytes: Bytes) {
        let Ok(packet) = packet::read(bytes) else {
            return self.counters.bump(Counter::BusForged);
        };
        match packet {
            Packet::Open {
                session,
                epoch,
                from,
                tls,
            } => {
                let Some(inbox) = self.enter(session) else {
                    return self.counters.bump(Counter::BusReplayed);
                };
                let opening = Opening {
                    peer: Party { name: from, epoch },
                    tls,
                    inbox,
                };
                if self.openings.try_send(opening).is_err() {
                    self.counters.bump(Counter::LinkHandshakesIgnored);
                }
            }
            Packet::Shake { session, .. } | Packet::Sealed { session, .. } => {
                let inbox = self.sessions.get(&session).map(|inbox| inbox.clone());
                match inbox {
                    // An error: it has ended meanwhile.
                    Some(inbox) => drop(inbox.send(packet).await),
                    None => self.counters.bump(Counter::BusStray),
                }
            }
        }
    }
}
