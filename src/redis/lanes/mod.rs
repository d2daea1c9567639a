//! What is to be published: where it goes, in which order, and what became of it. No I/O.
//!
//! Each master has a queue of what waits to be written to it, and a list of what was written and is not answered. A
//! channel lies in one slot, and a slot is of one master at a time. When a slot gets another master, what is new for it
//! is held back until everything that was written to the old one is answered; then what that one has sent away goes to
//! the new one first. So the order of a channel outlives the move. It does not if the slot is back at the old one
//! within a round trip, as that refuses the first of what was written to it and takes the rest then; moves take longer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Duration, Instant};

use super::error::{BusError, PublishError};
use super::topology::{Redirect, Slots, slot_of};
use crate::address::HostPort;
use crate::wire::resp::Value;

/// What may be under way to one server, queued or written, in bytes; what is longer alone may be alone. 8 MiB are a
/// twentieth of a second of what a server on the same machine takes.
const MOST_UNDER_WAY: usize = 8 * 1024 * 1024;

/// What a payload counts beside its bytes: what is kept of it. So at most 16,384 are under way to one server.
const OVERHEAD: usize = 512;

/// How often a payload is sent on from master to master. A slot that moves needs one, two when that is seen late.
const MOST_REDIRECTS: u8 = 5;

/// The most servers that there are queues for: as many as a cluster may have masters.
const MOST_MASTERS: usize = 1024;

/// What became of a payload: subscribers, or an error.
pub(super) type Outcome = Result<u64, PublishError>;

/// An outcome, and who is to be told. Telling is for when no lock is held.
#[derive(Debug)]
#[must_use]
pub(super) struct Ended(oneshot::Sender<Outcome>, Outcome);

impl Ended {
    /// Tells all of them.
    pub(super) fn tell(ended: Vec<Self>) {
        for Self(answer, outcome) in ended {
            // An error: nobody waits for it any more.
            let _ = answer.send(outcome);
        }
    }
}

/// A payload on its way.
#[derive(Debug)]
pub(super) struct Item {
    channel: Bytes,
    payload: Bytes,
    slot: u16,
    /// To all masters of a cluster, not to the one of the slot alone.
    everywhere: bool,
    redirects: u8,
    queued: Instant,
    answer: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

/// What to write.
#[derive(Debug, PartialEq)]
pub(super) struct Command {
    pub(super) name: &'static [u8],
    pub(super) channel: Bytes,
    pub(super) payload: Bytes,
}

/// What was written.
#[derive(Debug)]
enum Flight {
    Item(Item),
    Ping,
}

impl Flight {
    fn slot(&self) -> Option<u16> {
        match self {
            Self::Item(item) => Some(item.slot),
            Self::Ping => None,
        }
    }
}

/// A server to publish at.
#[derive(Debug)]
struct Master {
    queue: VecDeque<Item>,
    flying: VecDeque<Flight>,
    room: Arc<Semaphore>,
    wake: Arc<Notify>,
    is_attended: bool,
}

/// A slot on its way from one master to another.
#[derive(Debug)]
struct Moving {
    to: HostPort,
    /// How many payloads are written to the old one and not answered.
    outstanding: usize,
    /// How many at the front of `waiting` were sent away by the old one.
    sent_away: usize,
    waiting: VecDeque<Item>,
}

/// What kind of Redis it is, as far as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topology {
    Unknown,
    Single(HostPort),
    Cluster(Slots),
}

impl Topology {
    /// The slot of a channel or key.
    pub(super) fn slot_of(&self, name: &[u8]) -> u16 {
        match self {
            Self::Cluster(_) => slot_of(name),
            Self::Unknown | Self::Single(_) => 0,
        }
    }

    /// Who has a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&HostPort> {
        match self {
            Self::Unknown => None,
            Self::Single(at) => Some(at),
            Self::Cluster(slots) => slots.owner(slot),
        }
    }

    /// All that have one.
    pub(super) fn masters(&self) -> Vec<HostPort> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Single(at) => vec![at.clone()],
            Self::Cluster(slots) => slots.masters(),
        }
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Lanes {
    topology: Topology,
    masters: HashMap<HostPort, Master>,
    moving: HashMap<u16, Moving>,
    is_closed: bool,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            topology: Topology::Unknown,
            masters: HashMap::new(),
            moving: HashMap::new(),
            is_closed: false,
        }
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The room that a payload takes.
    pub(super) fn room_of(payload: &Bytes) -> u32 {
        u32::try_from(payload.len().saturating_add(OVERHEAD).min(MOST_UNDER_WAY)).unwrap_or(u32::MAX)
    }

    /// The room of the server that a channel's payloads go to; `None`: there is none at the time.
    pub(super) fn room(&mut self, channel: &[u8]) -> Option<Arc<Semaphore>> {
        let slot = self.topology.slot_of(channel);
        let owner = match self.moving.get(&slot) {
            Some(moving) => moving.to.clone(),
            None => self.topology.owner(slot)?.clone(),
        };
        Some(Arc::clone(&self.master(&owner)?.room))
    }

    fn master(&mut self, at: &HostPort) -> Option<&mut Master> {
        if !self.masters.contains_key(at) && self.masters.len() >= MOST_MASTERS {
            return None;
        }
        Some(self.masters.entry(at.clone()).or_insert_with(|| Master {
            queue: VecDeque::new(),
            flying: VecDeque::new(),
            room: Arc::new(Semaphore::new(MOST_UNDER_WAY)),
            wake: Arc::new(Notify::new()),
            is_attended: false,
        }))
    }

    /// Whether there are servers with something to write that no task looks after.
    pub(super) fn has_unattended(&self) -> bool {
        self.masters.values().any(|master| !master.is_attended)
    }

    /// Servers with something to write that no task looks after; from now on one has to.
    pub(super) fn unattended(&mut self) -> Vec<(HostPort, Arc<Notify>)> {
        let masters = self.masters.iter_mut().filter(|(_, master)| !master.is_attended);
        masters
            .map(|(at, master)| {
                master.is_attended = true;
                (at.clone(), Arc::clone(&master.wake))
            })
            .collect()
    }

    /// Queues a payload; `None`: there is no server for it. Says whether it is at one that no task looks after yet.
    pub(super) fn push(
        &mut self,
        channel: Bytes,
        payload: Bytes,
        everywhere: bool,
        room: OwnedSemaphorePermit,
        now: Instant,
    ) -> Option<(oneshot::Receiver<Outcome>, bool)> {
        let (answer, outcome) = oneshot::channel();
        let item = Item {
            slot: self.topology.slot_of(&channel),
            channel,
            payload,
            everywhere,
            redirects: 0,
            queued: now,
            answer,
            _room: room,
        };
        if let Some(moving) = self.moving.get_mut(&item.slot) {
            moving.waiting.push_back(item);
            return Some((outcome, false));
        }
        let owner = self.topology.owner(item.slot).filter(|_| !self.is_closed)?.clone();
        let master = self.master(&owner)?;
        master.queue.push_back(item);
        if master.queue.len() == 1 {
            master.wake.notify_one();
        }
        Some((outcome, !master.is_attended))
    }

    /// Takes what is next to be written to a server: commands of up to about so many bytes, one at least.
    pub(super) fn take(&mut self, at: &HostPort, most: usize, commands: &mut Vec<Command>) {
        let sharded = matches!(self.topology, Topology::Cluster(_));
        let Some(master) = self.masters.get_mut(at) else {
            return;
        };
        let mut bytes = 0;
        while bytes < most
            && let Some(item) = master.queue.pop_front()
        {
            bytes += item.payload.len() + item.channel.len();
            commands.push(Command {
                name: if sharded && !item.everywhere {
                    b"SPUBLISH"
                } else {
                    b"PUBLISH"
                },
                channel: item.channel.clone(),
                payload: item.payload.clone(),
            });
            master.flying.push_back(Flight::Item(item));
        }
    }

    /// A `PING` was written to a server.
    pub(super) fn pinged(&mut self, at: &HostPort) {
        if let Some(master) = self.masters.get_mut(at) {
            master.flying.push_back(Flight::Ping);
        }
    }

    /// Whether a server owes an answer.
    pub(super) fn is_awaited(&self, at: &HostPort) -> bool {
        self.masters.get(at).is_some_and(|master| !master.flying.is_empty())
    }

    /// A server has answered to what was written to it first. Says whether a slot was moved.
    pub(super) fn answered(&mut self, at: &HostPort, answer: &Value, ended: &mut Vec<Ended>) -> Result<bool, BusError> {
        let flight = self.masters.get_mut(at).and_then(|master| master.flying.pop_front());
        let mut item = match flight {
            Some(Flight::Item(item)) => item,
            Some(Flight::Ping) => {
                return match answer {
                    Value::Status(_) => Ok(false),
                    Value::Error(error) => Err(BusError::of_answer(at, "PING", error)),
                    _ => Err(BusError::nonsense(at, "PING")),
                };
            }
            None => return Err(BusError::nonsense(at, "nothing")),
        };
        let slot = item.slot;
        let outcome = match answer {
            Value::Integer(receivers) => Ok(u64::try_from(*receivers).unwrap_or_default()),
            Value::Error(error) => match Redirect::read(error, at) {
                Some(Redirect::Moved(moved, to)) if moved == slot && to != *at && item.redirects < MOST_REDIRECTS => {
                    item.redirects += 1;
                    self.sent_away(item, at, to);
                    return Ok(true);
                }
                Some(_) | None => Err(PublishError::Unsent(BusError::of_answer(at, "PUBLISH", error))),
            },
            _ => Err(PublishError::Unknown(BusError::nonsense(at, "PUBLISH"))),
        };
        ended.push(Ended(item.answer, outcome));
        self.one_less(slot);
        Ok(false)
    }

    /// A server has sent a payload away: its slot has another master.
    fn sent_away(&mut self, item: Item, at: &HostPort, to: HostPort) {
        let slot = item.slot;
        if let Topology::Cluster(slots) = &mut self.topology {
            slots.set(slot, to.clone());
        }
        let was_counted = self.moving.contains_key(&slot);
        self.begin_move(slot, at, to);
        if let Some(moving) = self.moving.get_mut(&slot) {
            moving.outstanding -= usize::from(was_counted && moving.outstanding > 0);
            moving.waiting.insert(moving.sent_away, item);
            moving.sent_away += 1;
        }
        self.finish_move(slot);
    }

    /// Holds back what is for a slot that another master has now.
    fn begin_move(&mut self, slot: u16, from: &HostPort, to: HostPort) {
        if let Some(moving) = self.moving.get_mut(&slot) {
            moving.to = to;
            return;
        }
        let (mut outstanding, mut waiting) = (0, VecDeque::new());
        if let Some(master) = self.masters.get_mut(from) {
            outstanding = master
                .flying
                .iter()
                .filter(|flight| flight.slot() == Some(slot))
                .count();
            let queue = std::mem::take(&mut master.queue);
            let (moved, kept) = queue.into_iter().partition(|item| item.slot == slot);
            (waiting, master.queue) = (moved, kept);
        }
        let moving = Moving {
            to,
            outstanding,
            sent_away: 0,
            waiting,
        };
        self.moving.insert(slot, moving);
    }

    /// A payload for a slot is not at a server any more.
    fn one_less(&mut self, slot: u16) {
        if let Some(moving) = self.moving.get_mut(&slot) {
            moving.outstanding = moving.outstanding.saturating_sub(1);
            self.finish_move(slot);
        }
    }

    /// Lets go what was held back, if the old master has answered everything.
    fn finish_move(&mut self, slot: u16) {
        if self.moving.get(&slot).is_none_or(|moving| moving.outstanding > 0) {
            return;
        }
        let Some(moving) = self.moving.remove(&slot) else {
            return;
        };
        // Without one there are far too many masters: who waits learns that it came to nothing, as the sender is
        // dropped.
        if let Some(master) = self.master(&moving.to) {
            master.queue.extend(moving.waiting);
            master.wake.notify_one();
        }
    }

    /// The topology was read anew.
    pub(super) fn set_topology(&mut self, topology: Topology) {
        let before = std::mem::replace(&mut self.topology, topology);
        let is_other_kind = std::mem::discriminant(&before) != std::mem::discriminant(&self.topology);
        let mut moves = Vec::new();
        for (at, master) in &mut self.masters {
            if is_other_kind {
                // Slots are counted otherwise.
                for item in &mut master.queue {
                    item.slot = self.topology.slot_of(&item.channel);
                }
            }
            let queued = master.queue.iter().map(|item| item.slot);
            let flying = master.flying.iter().filter_map(Flight::slot);
            let mut slots: Vec<u16> = queued.chain(flying).collect();
            slots.sort_unstable();
            slots.dedup();
            for slot in slots {
                if let Some(owner) = self.topology.owner(slot).filter(|owner| *owner != at) {
                    moves.push((slot, at.clone(), owner.clone()));
                }
            }
        }
        for (slot, moving) in &mut self.moving {
            if let Some(owner) = self.topology.owner(*slot) {
                moving.to = owner.clone();
            }
        }
        for (slot, from, to) in moves {
            if !self.moving.contains_key(&slot) {
                self.begin_move(slot, &from, to);
                self.finish_move(slot);
            }
        }
    }

    /// A slot has another master, as somebody else was told.
    pub(super) fn moved(&mut self, slot: u16, to: &HostPort) {
        let mut topology = self.topology.clone();
        if let Topology::Cluster(slots) = &mut topology {
            slots.set(slot, to.clone());
            self.set_topology(topology);
        }
    }

    /// The connection to a server broke: of what was written nobody knows what became.
    pub(super) fn lost(&mut self, at: &HostPort, error: &BusError) -> Vec<Ended> {
        let flying = self
            .masters
            .get_mut(at)
            .map(|master| std::mem::take(&mut master.flying));
        let mut ended = Vec::new();
        for flight in flying.unwrap_or_default() {
            if let Flight::Item(item) = flight {
                ended.push(Ended(item.answer, Err(PublishError::Unknown(error.clone()))));
                self.one_less(item.slot);
            }
        }
        ended
    }

    /// Ends what has waited for a server for so long.
    pub(super) fn expire(&mut self, at: &HostPort, now: Instant, patience: Duration, error: &BusError) -> Vec<Ended> {
        let mut ended = Vec::new();
        if let Some(master) = self.masters.get_mut(at) {
            // One that was sent on by another server is older than those before it; it waits for those.
            while master.queue.front().is_some_and(|item| now >= item.queued + patience)
                && let Some(item) = master.queue.pop_front()
            {
                ended.push(Ended(item.answer, Err(PublishError::Unsent(error.clone()))));
            }
        }
        ended
    }

    /// Forgets a server that has no slot any more, if nothing waits for it. Says whether it did.
    pub(super) fn retire(&mut self, at: &HostPort) -> bool {
        let is_target = self.moving.values().any(|moving| moving.to == *at);
        let is_idle = |master: &Master| master.queue.is_empty() && master.flying.is_empty();
        if is_target || self.topology.masters().contains(at) || !self.masters.get(at).is_some_and(is_idle) {
            return false;
        }
        self.masters.remove(at);
        true
    }

    /// Ends everything, and takes nothing more.
    pub(super) fn close(&mut self) -> Vec<Ended> {
        self.is_closed = true;
        let mut ended = Vec::new();
        let unsent = |item: Item| Ended(item.answer, Err(PublishError::Unsent(BusError::Closed)));
        for (_, moving) in self.moving.drain() {
            ended.extend(moving.waiting.into_iter().map(unsent));
        }
        for (_, master) in self.masters.drain() {
            master.room.close();
            ended.extend(master.flying.into_iter().filter_map(|flight| match flight {
                Flight::Item(item) => Some(Ended(item.answer, Err(PublishError::Unknown(BusError::Closed)))),
                Flight::Ping => None,
            }));
            ended.extend(master.queue.into_iter().map(unsent));
        }
        ended
    }
}

#[cfg(test)]
mod tests;
