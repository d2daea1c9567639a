//! A message on its way through a node, and what the parts of a node say to each other about it.
//!
//! A message comes in with a [`Ticket`], which goes with it to wherever it ends: a client's outbox, a link, a refusal.
//! There the ticket is settled, once, and so the one it came from (a client's session, a link) learns of its end.
//! None of the parts knows what the others are.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::address::Address;
use crate::outcome::{Code, Outcome};

/// What a message counts beside its body, in bytes, wherever bytes are bounded: about what is kept of it in memory.
pub const MESSAGE_OVERHEAD: usize = 256;

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Who sent it, as the node knows from the connection it came by.
    pub(crate) from: Address,
    /// Whom it is for.
    pub(crate) to: Address,
    /// What it says.
    pub(crate) body: Bytes,
    /// Its sender waits for its end, which is to be told at once. That of others may wait for company.
    pub(crate) prompt: bool,
}

impl Message {
    /// What the message counts, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + MESSAGE_OVERHEAD
    }
}

/// Which of its messages the origin is told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    /// The number the origin knows it by.
    pub(crate) number: u64,
    /// Which incarnation of the origin's peer the number belongs to, where numbers can start anew.
    pub(crate) incarnation: u32,
    /// Whether its end is to be told at once.
    pub(crate) prompt: bool,
}

impl Tag {
    /// A message whose end is to be told at once.
    pub(crate) fn prompt(number: u64, incarnation: u32) -> Self {
        Self {
            number,
            incarnation,
            prompt: true,
        }
    }
}

/// Where messages come from: told how each of them ended.
///
/// Never called with a lock held, so it may take its own.
pub(crate) trait Settle: Send + Sync {
    /// These messages have ended.
    fn settle(&self, ends: &[(Tag, Outcome)]);
}

/// Leads back from a message to its origin.
#[must_use = "a message without an end is a message lost in silence"]
pub(crate) struct Ticket {
    pub(crate) origin: Arc<dyn Settle>,
    pub(crate) tag: Tag,
}

impl Ticket {
    /// Tells the origin how the message ended.
    pub(crate) fn settle(self, outcome: Outcome) {
        self.origin.settle(&[(self.tag, outcome)]);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tag.fmt(f)
    }
}

/// Tells the origins of many messages at once; those that share an origin are told together.
pub(crate) fn settle_all(ends: impl IntoIterator<Item = (Ticket, Outcome)>) {
    let mut run: Vec<(Tag, Outcome)> = Vec::new();
    let mut origin: Option<Arc<dyn Settle>> = None;
    for (ticket, outcome) in ends {
        if let Some(of_run) = &origin
            && !Arc::ptr_eq(of_run, &ticket.origin)
        {
            of_run.settle(&run);
            run.clear();
        }
        run.push((ticket.tag, outcome));
        origin = Some(ticket.origin);
    }
    if let Some(origin) = origin {
        origin.settle(&run);
    }
}

/// A client as the rest of its node sees it.
pub(crate) trait Recipient: Send + Sync {
    /// Takes a message to be written to the client, or says why not and gives the ticket back.
    ///
    /// Of a small message this is called with a lock of the registry held: it takes locks of its client alone, and neither
    /// settles anything nor has anybody come or leave.
    fn push(&self, message: Message, ticket: Ticket) -> Result<(), (Ticket, Code)>;

    /// Another connection has come for the client's id, which has the better right to it: this one is to end.
    fn yield_place(&self);
}
