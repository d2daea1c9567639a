//! Where a node's packets come in from a bus: each goes to the session that it is of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::handshake::Party;
use crate::address::NodeName;
use crate::counters::{Counter, Counters};
use crate::redis::{Bus, Event, RedisConfig};
use crate::wire::packet::{self, Packet, SessionId};

/// How many packets may wait for one session, and how many bytes of them; a packet that is longer alone may wait alone. Its
/// carrier waits for nobody, so this is for when it has its turn.
const INBOX: usize = 256;
const INBOX_BYTES: u32 = 2 << 20;

/// How many bytes may wait for a session whose keys are not agreed on: handshakes and greetings. As anyone who can publish
/// can have written them, nobody else waits for their room.
const UNPROVED_BYTES: u32 = 64 << 10;

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
    sessions: DashMap<SessionId, Entrance>,
    openings: mpsc::Sender<Opening>,
    counters: Arc<Counters>,
}

/// A packet with its room.
type Waiting = (Packet, OwnedSemaphorePermit);

/// Where the packets of one session are put.
#[derive(Debug, Clone)]
struct Entrance {
    packets: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    is_proved: Arc<AtomicBool>,
}

/// Where the packets of one session come in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inbox {
    session: SessionId,
    packets: mpsc::Receiver<Waiting>,
    room: Arc<Semaphore>,
    is_proved: Arc<AtomicBool>,
    hub: Arc<Hub>,
}

impl Inbox {
    /// Whose packets these are.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// Waits for the next packet; `None` once the subscription has broken. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        self.packets.recv().await.map(|(packet, _)| packet)
    }

    /// The keys are agreed on: from now on what waits here may be as much as a link brings.
    pub(crate) fn proved(&self) {
        if !self.is_proved.swap(true, Ordering::Relaxed) {
            self.room.add_permits((INBOX_BYTES - UNPROVED_BYTES) as usize);
        }
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
        let room = Arc::new(Semaphore::new(UNPROVED_BYTES as usize));
        let is_proved = Arc::<AtomicBool>::default();
        place.insert(Entrance {
            packets: sender,
            room: Arc::clone(&room),
            is_proved: Arc::clone(&is_proved),
        });
        Some(Inbox {
            session,
            packets,
            room,
            is_proved,
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
        let length = bytes.len();
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
                let entrance = self.sessions.get(&session).map(|entrance| entrance.clone());
                match entrance {
                    Some(entrance) => {
                        if !entrance.put(packet, length).await {
                            self.counters.bump(Counter::BusForged);
                        }
                    }
                    None => self.counters.bump(Counter::BusStray),
                }
            }
        }
    }
}

impl Entrance {
    /// Passes a packet of so many bytes on, once there is room for it. False: there is none, and it is no packet that one
    /// would wait for.
    async fn put(&self, packet: Packet, length: usize) -> bool {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room);
        let is_proved = self.is_proved.load(Ordering::Relaxed);
        let room = if is_proved {
            room.acquire_many_owned(length.min(INBOX_BYTES)).await.ok()
        } else {
            room.try_acquire_many_owned(length).ok()
        };
        let Some(room) = room else {
            return false;
        };
        // An error: the session has ended meanwhile. A place is free where there is room, if not for many small ones.
        if is_proved {
            let _ = self.packets.send((packet, room)).await;
            return true;
        }
        !matches!(self.packets.try_send((packet, room)), Err(TrySendError::Full(_)))
    }
}
