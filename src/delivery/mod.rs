//! The machine under every link and every QUIC client: order within a conversation, no loss and no repeats, over
//! streams that arrive in any order and connections that come and go.
//!
//! It is pure: what happened and the time go in, what to do comes out. No socket, no task, no clock.
//!
//! Each direction numbers its messages. A message names the one before it in its conversation, while that one is not
//! settled; the [`Receiver`] holds a message only until the one it names was taken, so a lost packet holds up no other
//! conversation. The receiver remembers what it took as a low-water mark and ranges, which gives duplicate detection
//! and what to say when a connection comes back; the [`Sender`] keeps what is unsettled and then transmits again what
//! the other side lacks.
//!
//! A message is *settled* when its end is known: delivered, refused, or unknown. So the acknowledgement is the
//! receipt. Ends are told until the sender confirms that it knows them, so they survive a lost connection too.
//!
//! An [`Endpoint`] is one side of an exchange: a sender for one direction, a receiver for the other, and the control
//! frames between them.

pub(crate) mod ranges;
mod receiver;
mod sender;
mod window;

#[cfg(test)]
pub(crate) mod any;
#[cfg(test)]
mod simulation;

use std::time::{Duration, Instant};

pub(crate) use ranges::RangeSet;
pub(crate) use receiver::{Receiver, Report, Taken};
pub(crate) use sender::{Bounds, Sender};

#[cfg(any(test, fuzzing))]
pub(crate) use sender::CONFIRM_EVERY;

use crate::outcome::Outcome;

/// A message that did not end as delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its number.
    pub(crate) number: u64,
    /// Its end: refused or unknown.
    pub(crate) outcome: Outcome,
}

/// What a sender knows, so that the receiver need not remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Confirm {
    /// Every number below is settled.
    pub(crate) below: u64,
    /// How many reports came on the present connection.
    pub(crate) reports: u64,
}

impl Default for Confirm {
    fn default() -> Self {
        Self { below: 1, reports: 0 }
    }
}

/// What the two sides of an exchange say to each other beside the messages, in order, on one reliable stream a
/// connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    /// The first on a connection: what this side has taken. Messages flow once it has come.
    Sync(RangeSet),
    /// How messages ended.
    Report(Report),
    /// What is settled at its sender.
    Confirm(Confirm),
}

/// What no correct peer does. The connection it happened on is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a message number is out of place")]
    BadNumber,
    #[error("a message was acknowledged that was never sent")]
    NeverSent,
    #[error("the end of a message was told twice")]
    ToldAgain,
    #[error("more messages are under way than was agreed")]
    OverBounds,
    #[error("a control frame came where it has no meaning")]
    OutOfPlace,
}

/// One side of an exchange: sends messages `M`, whose ends are told by ticket `T`, and receives messages `I`.
#[derive(Debug)]
pub(crate) struct Endpoint<M, T, I = M> {
    /// The direction from here.
    pub(crate) sender: Sender<M, T>,
    /// The direction to here.
    pub(crate) receiver: Receiver<I>,
    /// A connection is there and its `Sync` is still to be sent.
    sync_due: bool,
    /// Whether a connection is there at all, and whether its `Sync` has come.
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    Syncing,
    Up,
}

impl<M, T, I> Endpoint<M, T, I> {
    /// A side that keeps at most `outgoing` unsettled, and takes it that the other side keeps at most `incoming`.
    pub(crate) fn new(outgoing: Bounds, incoming: Bounds) -> Self {
        Self {
            sender: Sender::new(outgoing),
            receiver: Receiver::new(incoming),
            sync_due: false,
            phase: Phase::Down,
        }
    }

    /// The process at the other side is another one than before. To be called between
    /// [`disconnected`](Self::disconnected) and [`connected`](Self::connected).
    pub(crate) fn peer_restarted(&mut self, keep: impl Fn(&M) -> bool) {
        self.sender.peer_restarted(keep);
        self.receiver.peer_restarted();
    }

    /// A new connection is there; an earlier one is gone.
    pub(crate) fn connected(&mut self) {
        self.receiver.connected();
        self.sync_due = true;
        self.phase = Phase::Syncing;
    }

    /// The connection is gone; the other side was last heard of at `heard`.
    pub(crate) fn disconnected(&mut self, heard: Instant) {
        self.sync_due = false;
        self.phase = Phase::Down;
        self.sender.disconnected(heard);
        self.receiver.disconnected();
    }

    /// A control frame came.
    pub(crate) fn control(&mut self, control: Control) -> Result<(), Violation> {
        match (self.phase, control) {
            (Phase::Syncing, Control::Sync(ranges)) => {
                self.sender.connected(&ranges)?;
                self.phase = Phase::Up;
                Ok(())
            }
            (Phase::Up, Control::Report(report)) => self.sender.report(&report.delivered, &report.failed),
            (Phase::Up, Control::Confirm(confirm)) => self.receiver.confirm(confirm),
            // Of a connection that is gone already.
            (Phase::Down, _) => Ok(()),
            (Phase::Syncing, Control::Report(_) | Control::Confirm(_)) | (Phase::Up, Control::Sync(_)) => {
                Err(Violation::OutOfPlace)
            }
        }
    }

    /// The next control frame to send on the present connection. `eager`: also tell what could wait for company.
    pub(crate) fn poll_control(&mut self, eager: bool) -> Option<Control> {
        if self.phase == Phase::Down {
            return None;
        }
        if std::mem::take(&mut self.sync_due) {
            return Some(Control::Sync(self.receiver.taken().clone()));
        }
        if let Some(report) = self.receiver.poll_report() {
            return Some(Control::Report(report));
        }
        self.sender.poll_confirm(eager).map(Control::Confirm)
    }

    /// Ends what has waited longer than `wait` for the other side; says when to ask again.
    pub(crate) fn expire(&mut self, now: Instant, wait: Duration) -> Option<Instant> {
        self.sender.expire(now, wait)
    }
}
