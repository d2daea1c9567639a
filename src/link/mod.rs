//! A link: the connection between two nodes, with all that is kept about it while it is down.
//!
//! [`Link`] is what the rest of the node sees: messages go in, ends come back. [`adoption`] (pure) chooses among
//! connections, [`handshake`] greets the other node on a new one, [`listener`] takes in
//! those that others dial, [`discovery`] those that come by a bus, [`supervisor`] dials, adopts, carries and gives up.

pub(crate) mod adoption;
pub(crate) mod discovery;
pub(crate) mod handshake;
pub(crate) mod listener;
pub(crate) mod path;
pub(crate) mod supervisor;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::address::{Address, NodeName};
use crate::carrier::{self, Arrived, Codec, Malformed};
use crate::delivery::Bounds;
use crate::exchange::Exchange;
use crate::message::{Conversation, Message, Settle, Tag, Ticket};
use crate::outcome::{Code, Outcome};
use crate::wire::link as wire;
use adoption::Adoption;
use handshake::Greeted;

/// How many new connections may wait to be looked at; more come only from a peer that is out of order.
const ARRIVALS: usize = 4;

/// All that is kept about another node.
pub(crate) struct Link {
    peer: NodeName,
    exchange: Exchange<Ticket>,
    adoption: Mutex<Adoption>,
    /// Whether this node is the one that chooses among connections.
    decides: bool,
    /// Somebody wants it, whether or not there is such a node.
    is_configured: bool,
    arrivals: mpsc::Sender<Greeted>,
    /// It was given up.
    retired: CancellationToken,
}

impl Link {
    /// A link to `peer`, down, and where its supervisor is to take connections from that others dialled.
    pub(crate) fn new(
        own: &NodeName,
        peer: NodeName,
        bounds: Bounds,
        is_configured: bool,
    ) -> (Arc<Self>, mpsc::Receiver<Greeted>) {
        let (arrivals, receiver) = mpsc::channel(ARRIVALS);
        let link = Self {
            decides: *own < peer,
            is_configured,
            peer,
            exchange: Exchange::new(bounds, bounds),
            adoption: Mutex::new(Adoption::new()),
            arrivals,
            retired: CancellationToken::new(),
        };
        (Arc::new(link), receiver)
    }

    /// The node at the other end.
    pub(crate) fn peer(&self) -> &NodeName {
        &self.peer
    }

    /// Takes a message for a client of the peer; gives it back when the link has no room.
    pub(crate) fn submit(&self, now: Instant, message: Message, ticket: Ticket) -> Result<(), (Message, Ticket)> {
        self.exchange.submit(now, message, ticket)
    }

    /// The machine of the link.
    pub(crate) fn exchange(&self) -> &Exchange<Ticket> {
        &self.exchange
    }

    /// Whether a connection is there and not in doubt.
    pub(crate) fn is_up(&self) -> bool {
        self.adoption.lock().is_well()
    }
}

impl Link {
    /// Whether a node has proved by a certificate that the name is its own, now or before.
    pub(crate) fn is_proved(&self) -> bool {
        self.adoption.lock().is_proved()
    }

    /// Whether the name is that of a node, as far as this one knows: it was told so, or a node has proved it.
    pub(crate) fn is_of_a_node(&self) -> bool {
        self.is_configured || self.is_proved()
    }

    /// As if a node had proved the name by a connection that is gone.
    #[cfg(test)]
    pub(crate) fn prove(&self) {
        let mut adoption = self.adoption.lock();
        adoption.follow(1, 1, adoption::Rank::Direct);
        adoption.lost();
    }

    /// Gives the link up for good if nobody needs it: it leads to a name that somebody wrote somewhere, no node has proved
    /// that it is its own, and nothing waits for one that does. Says whether it was given up; then its supervisor ends, and
    /// it has no room for who still knows it.
    pub(crate) fn retire(&self) -> bool {
        let is_retired = !self.is_configured && self.exchange.close_if_idle(|| self.adoption.lock().retire());
        if is_retired {
            self.retired.cancel();
        }
        is_retired
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Settle for Link {
    fn settle(&self, ends: &[(Tag, Outcome)]) {
        self.exchange.finish(ends);
    }
}

/// How messages and frames are written on a link.
#[derive(Debug)]
pub(crate) struct LinkCodec {
    own: NodeName,
    peer: NodeName,
    max_message: usize,
    /// That of the message before, which most messages share.
    last: Mutex<Option<Conversation>>,
}

impl LinkCodec {
    /// That of a link from `own`, which takes messages of up to `max_message` bytes, to `peer`.
    pub(crate) fn new(own: NodeName, peer: NodeName, max_message: usize) -> Self {
        Self {
            own,
            peer,
            max_message,
            last: Mutex::default(),
        }
    }

    /// The conversation of the clients with these ids. Neither node is in a message: the sender's is the
    /// one that the certificate names, the recipient's is this.
    fn conversation(&self, from: &[u8], to: &[u8]) -> Result<Conversation, wire::Malformed> {
        let is_same =
            |last: &Conversation| last.from().id.as_str().as_bytes() == from && last.to().id.as_str().as_bytes() == to;
        let at = |node: &NodeName, id| {
            let (node, id) = (node.clone(), wire::read_id(id)?);
            Ok(Address { node, id })
        };
        let other = || Ok(Conversation::new(at(&self.peer, from)?, at(&self.own, to)?));
        Conversation::same_or(&mut self.last.lock(), is_same, other)
    }
}

impl Codec for LinkCodec {
    fn write_header(&self, number: u64, after: u64, message: &Message, out: &mut BytesMut) {
        wire::write_header(out, number, after, message.prompt, &message.from().id, &message.to().id);
    }

    fn read_message(&self, stream: Bytes, whole: bool) -> Result<Arrived, Malformed> {
        let parcel = wire::read_message(stream, |from, to| self.conversation(from, to)).map_err(Malformed::new)?;
        let message = Message {
            conversation: parcel.between,
            body: parcel.body,
            prompt: parcel.prompt,
        };
        let fits = whole && message.body.len() <= self.max_message;
        Ok(Arrived {
            number: parcel.number,
            after: parcel.after,
            message: if fits { Ok(message) } else { Err(Code::TooLarge) },
        })
    }

    fn write_frame(&self, frame: &carrier::Frame, out: &mut BytesMut) {
        let frame = match frame {
            carrier::Frame::Control(control) => wire::Frame::Control(control.clone()),
            carrier::Frame::Ping(number) => wire::Frame::Ping(*number),
            carrier::Frame::Pong(number) => wire::Frame::Pong(*number),
            carrier::Frame::Goodbye => wire::Frame::Goodbye,
            // A node shows its certificate.
            carrier::Frame::Login(_) | carrier::Frame::Judged(_) => return,
        };
        wire::write_frame(out, &frame);
    }

    fn read_frame(&self, buffer: &mut BytesMut) -> Result<Option<carrier::Frame>, Malformed> {
        let Some(frame) = wire::read_frame(buffer).map_err(Malformed::new)? else {
            return Ok(None);
        };
        Ok(Some(match frame {
            wire::Frame::Control(control) => carrier::Frame::Control(control),
            wire::Frame::Ping(number) => carrier::Frame::Ping(number),
            wire::Frame::Pong(number) => carrier::Frame::Pong(number),
            wire::Frame::Goodbye => carrier::Frame::Goodbye,
            wire::Frame::Hello(_) | wire::Frame::Adopt(_) => {
                return Err(Malformed::new("a greeting after the greeting"));
            }
        }))
    }
}
