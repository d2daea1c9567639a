//! A session between two nodes over a bus: sealed packets both ways, until one is lost, one side closes, or the bus breaks.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::handshake::{Agreed, Handshake, HandshakeError};
use super::hub::{Hub, Inbox, Opening};
use super::seal::{Opened, Opener, Refused, Sealer};
use crate::address::NodeName;
use crate::counters::{Counter, Counters};
use crate::redis::{PublishError, Publishing};
use crate::transport::VarInt;
use crate::wire::packet::{self, Packet, SessionId};

/// How long it may take to say that a session is over.
const LAST_WORD: Duration = Duration::from_millis(500);

/// A session on which both nodes have proved who they are.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    /// Items that came with the greeting and are not read yet.
    pub(crate) unread: BytesMut,
    pub(crate) handle: Handle,
    /// The certificates that the other node has proved.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The epoch of the other node that is bound into the keys.
    pub(crate) peer_epoch: u64,
}

impl Session {
    /// Tells the other side that the session is over, which it would else find out later. Takes half a second at the most.
    pub(crate) async fn say_closed(&mut self, code: VarInt, reason: &str) {
        self.outgoing.say_closed(code, reason).await;
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the handshake failed: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Publish(#[from] PublishError),
    #[error("the node does not listen there now")]
    NotThere,
    #[error("the subscription broke")]
    BusLost,
}

/// Why nothing more comes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Break {
    #[error("a packet was lost on its way")]
    Gap,
    #[error("the subscription broke")]
    BusLost,
}

/// Closes a session from outside of its carrier.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Arc<Closing>);

#[derive(Debug)]
struct Closing {
    peer: NodeName,
    wanted: CancellationToken,
    why: Mutex<Option<(VarInt, String)>>,
}

impl Handle {
    fn new(peer: NodeName) -> Self {
        Self(Arc::new(Closing {
            peer,
            wanted: CancellationToken::new(),
            why: Mutex::new(None),
        }))
    }

    /// The node at the other end.
    pub(crate) fn peer(&self) -> &NodeName {
        &self.0.peer
    }

    /// Has the session closed, with a code and a reason for the other side. The first call counts.
    pub(crate) fn close(&self, code: VarInt, reason: &str) {
        self.0.why.lock().get_or_insert_with(|| (code, reason.to_owned()));
        self.0.wanted.cancel();
    }

    /// Whether it is to be closed, or was.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.wanted.is_cancelled()
    }

    /// Waits until it is to be closed. Cancel safe.
    pub(crate) async fn closed(&self) -> (VarInt, String) {
        self.0.wanted.cancelled().await;
        self.0.why.lock().clone().unwrap_or_default()
    }
}

/// What goes to the other node.
#[derive(Debug)]
pub(crate) struct Outgoing {
    hub: Arc<Hub>,
    channel: String,
    sealer: Sealer,
}

impl Outgoing {
    /// A packet to append items to.
    pub(crate) fn begin(&self, capacity: usize) -> BytesMut {
        let mut packet = BytesMut::with_capacity(capacity);
        self.sealer.begin(&mut packet);
        packet
    }

    /// Whether the session has to end, as its keys have sealed enough.
    pub(crate) fn is_worn(&self) -> bool {
        self.sealer.is_worn()
    }

    /// More than one has taken a packet. Nobody else can read it, but if it is a second node of that name, the two take the
    /// link from each other.
    pub(crate) fn note_listeners(&self, listeners: u64) {
        if let Some(count) = self.hub.counters().bump_logged(Counter::BusTwins) {
            let channel = &self.channel;
            warn!(%channel, listeners, count, "more than one listens there: end the other node of that name, or who looks on");
        }
    }

    /// Seals a packet that was begun, and has it published behind those before it. Not cancel safe: a packet that was
    /// sealed and is not published is missed at the other side.
    pub(crate) async fn publish(&mut self, packet: BytesMut) -> Publishing {
        let sealed = self.sealer.seal(packet);
        self.hub.bus().publish(&self.channel, sealed).await
    }
}

impl Outgoing {
    /// Tells the other side that the session is over.
    pub(crate) async fn say_closed(&mut self, code: VarInt, reason: &str) {
        let mut packet = self.begin(256);
        let code = u32::try_from(code.into_inner()).unwrap_or(u32::MAX);
        packet::write_close(&mut packet, code, reason);
        // It is over in any case.
        let _ = timeout(LAST_WORD, async { self.publish(packet).await.await }).await;
    }
}

/// What comes from the other node.
#[derive(Debug)]
pub(crate) struct Incoming {
    inbox: Inbox,
    opener: Opener,
    counters: Arc<Counters>,
}

impl Incoming {
    /// Waits for the next packet, and gives the items in it. What is refused is counted and passed over, as anyone who can
    /// publish can send it. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<BytesMut, Break> {
        loop {
            let Some(packet) = self.inbox.next().await else {
                return Err(Break::BusLost);
            };
            let Packet::Sealed { number, bytes, .. } = packet else {
                self.counters.bump(Counter::BusForged);
                continue;
            };
            match self.opener.open(number, bytes) {
                Ok(Opened::Next(items)) => return Ok(items),
                Ok(Opened::Later) => return Err(Break::Gap),
                Err(Refused::Forged) => self.counters.bump(Counter::BusForged),
                Err(Refused::Replayed) => self.counters.bump(Counter::BusReplayed),
            }
        }
    }
}

/// Opens a session to a node. The caller has to look whether what it has proved is its name, and to set a deadline.
pub(crate) async fn open(hub: &Arc<Hub>, config: Arc<ClientConfig>, peer: &NodeName) -> Result<Session, OpenError> {
    let id = SessionId(rand::random());
    let inbox = hub.enter(id).ok_or(OpenError::BusLost)?;
    let handshake = Handshake::open(config, id, hub.own().clone(), peer.clone())?;
    shake(hub, handshake, inbox, id, peer, true).await
}

/// Answers a node that opens a session. The same holds for the caller.
pub(crate) async fn answer(hub: &Arc<Hub>, config: Arc<ServerConfig>, opening: Opening) -> Result<Session, OpenError> {
    let Opening { peer, tls, inbox } = opening;
    let id = inbox.session();
    let (name, epoch) = (peer.name.clone(), peer.epoch);
    let mut handshake = Handshake::answer(config, id, hub.own().clone(), peer)?;
    handshake.take(epoch, &tls)?;
    shake(hub, handshake, inbox, id, &name, false).await
}

async fn shake(
    hub: &Arc<Hub>,
    mut handshake: Handshake,
    mut inbox: Inbox,
    id: SessionId,
    peer: &NodeName,
    opens: bool,
) -> Result<Session, OpenError> {
    let own = hub.own();
    let channel = hub.channel_of(peer);
    let mut is_first = opens;
    loop {
        if let Some(tls) = handshake.due()? {
            let packet = match std::mem::take(&mut is_first) {
                true => packet::open(id, own.epoch, &own.name, &tls),
                false => packet::shake(id, own.epoch, &tls),
            };
            if hub.bus().publish(&channel, packet).await.await? == 0 {
                return Err(OpenError::NotThere);
            }
        }
        if handshake.is_done() {
            break;
        }
        match inbox.next().await {
            Some(Packet::Shake { epoch, tls, .. }) => handshake.take(epoch, &tls)?,
            // Nobody can have sealed anything yet.
            Some(Packet::Sealed { .. } | Packet::Open { .. }) => hub.counters().bump(Counter::BusForged),
            None => return Err(OpenError::BusLost),
        }
    }
    let Agreed {
        sealer,
        opener,
        chain,
        peer_epoch,
    } = handshake.agreed()?;
    inbox.proved();
    Ok(Session {
        outgoing: Outgoing {
            hub: Arc::clone(hub),
            channel,
            sealer,
        },
        incoming: Incoming {
            inbox,
            opener,
            counters: Arc::clone(hub.counters()),
        },
        unread: BytesMut::new(),
        handle: Handle::new(peer.clone()),
        chain,
        peer_epoch,
    })
}
