//! A message on its way through a node, and what the parts of a node say to each other about it.
//!
//! A message comes in with a [`Ticket`], which goes with it to wherever it ends: a client's outbox, a link, a refusal.
//! There the ticket is settled, once, and so the one it came from (a client's session, a link) learns of its end.
//! None of the parts knows what the others are.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use foldhash::quality::RandomState;

use crate::address::Address;
use crate::outcome::{Code, Outcome};

/// What a message counts beside its body, in bytes, wherever bytes are bounded: about what is kept of it in memory.
pub const MESSAGE_OVERHEAD: usize = 256;

/// Who writes to whom. All messages of the two share it: a message stays small, and nothing of it is worked out twice.
#[derive(Clone)]
pub(crate) struct Conversation(Arc<Pair>);

struct Pair {
    from: Address,
    to: Address,
    key: u64,
}

/// What keys are drawn by. Who chooses ids can't know what share a key.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::default);

impl Conversation {
    /// That of these two.
    pub(crate) fn new(from: Address, to: Address) -> Self {
        let key = KEYS.hash_one((&from, &to));
        Self(Arc::new(Pair { from, to, key }))
    }

    /// Whether it is this very value, or a copy of it. Others may be of the same two.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Who writes, as the node knows from the connection that messages come by.
    pub(crate) fn from(&self) -> &Address {
        &self.0.from
    }

    /// To whom.
    pub(crate) fn to(&self) -> &Address {
        &self.0.to
    }

    /// `last` if it is the one, else another, which is the last from now on: most messages are of the conversation of the
    /// message before.
    pub(crate) fn same_or<E>(
        last: &mut Option<Self>,
        is_same: impl FnOnce(&Self) -> bool,
        other: impl FnOnce() -> Result<Self, E>,
    ) -> Result<Self, E> {
        if let Some(last) = last.as_ref().filter(|&last| is_same(last)) {
            return Ok(last.clone());
        }
        let other = other()?;
        *last = Some(other.clone());
        Ok(other)
    }

    /// A number that few others have, while this process runs.
    pub(crate) fn key(&self) -> u64 {
        self.0.key
    }
}

impl PartialEq for Conversation {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || (self.from() == other.from() && self.to() == other.to())
    }
}

impl Eq for Conversation {}

impl Hash for Conversation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.key());
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from(), self.to())
    }
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Who sent it, and whom it is for.
    pub(crate) conversation: Conversation,
    /// What it says.
    pub(crate) body: Bytes,
    /// Its sender waits for its end, which is to be told at once. That of others may wait for company.
    pub(crate) prompt: bool,
}

impl Message {
    /// Who sent it.
    pub(crate) fn from(&self) -> &Address {
        self.conversation.from()
    }

    /// Whom it is for.
    pub(crate) fn to(&self) -> &Address {
        self.conversation.to()
    }

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
/// Called with no lock held that one of those who are told may take, so it may take its own.
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
    /// One that has left takes nothing, however long ago that was: who remembers it looks for its successor then.
    fn push(&self, message: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)>;

    /// Another connection has come for the client's id, which has the better right to it: this one is to end.
    fn yield_place(&self);
}

#[cfg(test)]
impl Message {
    /// One whose sender waits for its end. The addresses must be well formed.
    pub(crate) fn example(from: &str, to: &str, body: &str) -> Self {
        Self {
            conversation: Conversation::new(from.parse().unwrap(), to.parse().unwrap()),
            body: body.to_owned().into(),
            prompt: true,
        }
    }
}
