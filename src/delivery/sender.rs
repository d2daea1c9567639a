//! The sending half: numbers messages, keeps them until they are settled, says what to transmit next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::ranges::RangeSet;
use super::window::Window;
use super::{Confirm, Failure, Violation};
use crate::outcome::{Code, Outcome};

/// How many settled messages, or failures, may go unconfirmed while messages flow. It bounds what the other side
/// remembers of ended messages, at one small control frame for so many. Tests reach a small one.
pub(crate) const CONFIRM_EVERY: u64 = if cfg!(any(test, fuzzing)) { 3 } else { 1024 };

/// How much a sender may keep unsettled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Messages.
    pub(crate) messages: usize,
    /// Their sizes added up, in bytes.
    pub(crate) bytes: usize,
}

impl Bounds {
    /// Whether one more message may come: in bytes, one may go over.
    fn are_below(self, bounds: Self) -> bool {
        self.messages < bounds.messages && self.bytes < bounds.bytes
    }

    /// What both sides can keep.
    pub(crate) fn min(self, other: Self) -> Self {
        Self {
            messages: self.messages.min(other.messages),
            bytes: self.bytes.min(other.bytes),
        }
    }
}

/// One message as it goes on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transmit<'a, M> {
    /// Its number.
    pub(crate) number: u64,
    /// The number of the message that must be taken before this one; 0 for none.
    pub(crate) after: u64,
    /// The message.
    pub(crate) message: &'a M,
}

#[derive(Debug)]
struct Entry<M, T> {
    message: M,
    ticket: T,
    size: usize,
    conversation: u64,
    /// The message before it in its conversation, if that was unsettled when this one came; else 0.
    after: u64,
    submitted: Instant,
    /// Handed to a connection of the other side's present epoch: the other side may have it.
    sent: bool,
    /// The other side said so when the connection came: don't send it again.
    taken: bool,
}

impl<M, T> Entry<M, T> {
    /// How the message ends when nothing more is known about it: nobody saw what was never sent.
    fn given_up(&self, code: Code) -> Outcome {
        if self.sent {
            Outcome::Unknown(code)
        } else {
            Outcome::Refused(code)
        }
    }
}

/// The sending half of an exchange, for messages `M` whose ends are told by ticket `T`.
#[derive(Debug)]
pub(crate) struct Sender<M, T> {
    unsettled: Window<Entry<M, T>>,
    /// The last unsettled message of each conversation that has one.
    conversations: HashMap<u64, u64, RandomState>,
    bytes: usize,
    bounds: Bounds,
    /// What of the unsettled was sent.
    under_way: Bounds,
    /// Everything below was transmitted on the present connection, or needs no transmission.
    cursor: u64,
    connected: bool,
    /// Nothing more is taken.
    closed: bool,
    /// When the other side was last heard of before the connection was lost, until the next one is there.
    lost_at: Option<Instant>,
    /// What the other side was last told by [`poll_confirm`](Self::poll_confirm).
    confirmed: Confirm,
    /// Reports that came on the present connection.
    reports: u64,
    /// How many numbers those told the end of. Each is told once a connection.
    told: u64,
    /// Failures in them since the last confirmation.
    failures: u64,
    settled: Vec<(T, Outcome)>,
}

impl<M, T> Sender<M, T> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            unsettled: Window::new(),
            conversations: HashMap::default(),
            bytes: 0,
            bounds,
            under_way: Bounds { messages: 0, bytes: 0 },
            cursor: 1,
            connected: false,
            closed: false,
            lost_at: None,
            confirmed: Confirm::default(),
            reports: 0,
            told: 0,
            failures: 0,
            settled: Vec::new(),
        }
    }

    /// Whether one more message may be submitted. One message may go over the bound in bytes, so that a bound
    /// smaller than a message does not stop it for ever.
    pub(crate) fn has_room(&self) -> bool {
        let unsettled = Bounds {
            messages: self.unsettled.len(),
            bytes: self.bytes,
        };
        !self.closed && unsettled.are_below(self.bounds)
    }

    /// There is no room any more, for good.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether nothing is unsettled.
    pub(crate) fn is_idle(&self) -> bool {
        self.unsettled.len() == 0
    }

    /// The number of the oldest message that is unsettled.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.unsettled.first()
    }

    /// The size of that message, in bytes.
    pub(crate) fn oldest_size(&self) -> Option<usize> {
        self.unsettled.get(self.oldest()?).map(|entry| entry.size)
    }

    /// Changes the bounds, for messages to come.
    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Takes a message of `size` bytes. Messages with the same `conversation` are taken at the other side in the order
    /// of these calls. (Two conversations that share a number by chance are ordered with each other too, no more.)
    ///
    /// The caller asks [`has_room`](Self::has_room) before.
    pub(crate) fn submit(&mut self, now: Instant, conversation: u64, size: usize, message: M, ticket: T) {
        let number = self.unsettled.next_number();
        let after = self.conversations.insert(conversation, number);
        self.bytes += size;
        self.unsettled.push(Entry {
            message,
            ticket,
            size,
            conversation,
            after: after.unwrap_or_default(),
            submitted: now,
            sent: false,
            taken: false,
        });
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) would give a message, or will once some have ended.
    pub(crate) fn wants_transmit(&self) -> bool {
        self.connected && self.cursor < self.unsettled.next_number()
    }

    /// How many messages, at the most, wait to be transmitted on the present connection.
    pub(crate) fn backlog(&self) -> u64 {
        match self.connected {
            true => self.unsettled.next_number() - self.cursor,
            false => 0,
        }
    }

    /// The next message to transmit on the present connection, if there is one.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit<'_, M>> {
        if !self.connected {
            return None;
        }
        let number = loop {
            let Some(number) = self.unsettled.next_from(self.cursor) else {
                self.cursor = self.unsettled.next_number();
                return None;
            };
            let entry = self.unsettled.get(number)?;
            // The other side keeps less than what was taken here while it was not known.
            if !entry.sent && !self.under_way.are_below(self.bounds) {
                return None;
            }
            let taken = entry.taken;
            self.cursor = number + 1;
            if !taken {
                break number;
            }
        };
        // One that is settled was taken, or given up while no connection was there: the other side must not wait.
        let after = self.unsettled.get(number)?.after;
        let after = if self.unsettled.get(after).is_some() { after } else { 0 };
        let entry = self.unsettled.get_mut(number)?;
        if !std::mem::replace(&mut entry.sent, true) {
            self.under_way.messages += 1;
            self.under_way.bytes += entry.size;
        }
        Some(Transmit {
            number,
            after,
            message: &entry.message,
        })
    }

    /// A connection is there, to the same process as before (or the first), which has taken these numbers.
    pub(crate) fn connected(&mut self, taken: &RangeSet) -> Result<(), Violation> {
        if taken.below() > self.unsettled.next_number() {
            return Err(Violation::NeverSent);
        }
        let mut next = self.unsettled.first();
        self.cursor = next.unwrap_or_else(|| self.unsettled.next_number());
        while let Some(number) = next {
            if let Some(entry) = self.unsettled.get_mut(number) {
                entry.taken = entry.sent && taken.contains(number);
            }
            next = self.unsettled.next_from(number + 1);
        }
        self.connected = true;
        (self.reports, self.told, self.failures) = (0, 0, 0);
        // What was confirmed last may have been lost with its connection.
        self.confirmed = Confirm::default();
        self.lost_at = None;
        Ok(())
    }

    /// The connection is lost; the other side was last heard of at `heard`.
    pub(crate) fn disconnected(&mut self, heard: Instant) {
        self.connected = false;
        self.lost_at.get_or_insert(heard);
    }

    /// The process at the other side is another one than before, with no memory of what was sent: what was is unknown.
    /// Of the rest, messages that `keep` does not hold for are refused: they were meant for clients of the old process.
    pub(crate) fn peer_restarted(&mut self, keep: impl Fn(&M) -> bool) {
        let mut next = self.unsettled.first();
        while let Some(number) = next {
            if let Some(entry) = self.unsettled.get(number) {
                if entry.sent {
                    self.settle(number, Outcome::Unknown(Code::NodeRestarted));
                } else if !keep(&entry.message) {
                    self.settle(number, Outcome::Refused(Code::NodeRestarted));
                }
            }
            next = self.unsettled.next_from(number + 1);
        }
    }

    /// The other side told how messages ended. What is settled already is passed over.
    pub(crate) fn report(&mut self, delivered: &[(u64, u64)], failed: &[Failure]) -> Result<(), Violation> {
        let next_number = self.unsettled.next_number();
        for &(first, last) in delivered {
            if last >= next_number {
                return Err(Violation::NeverSent);
            }
            // Looking through a range costs as much as it is long.
            self.tell(last.saturating_sub(first).saturating_add(1))?;
            self.settled
                .reserve(self.unsettled.len().min((last.saturating_sub(first) + 1) as usize));
            let mut from = first;
            while let Some(number) = self.unsettled.first_in(from, last) {
                self.end(number, Outcome::Delivered)?;
                from = number + 1;
            }
        }
        for failure in failed {
            if failure.number >= next_number {
                return Err(Violation::NeverSent);
            }
            self.tell(1)?;
            if self.unsettled.get(failure.number).is_some() {
                self.end(failure.number, failure.outcome)?;
            }
        }
        self.reports += 1;
        self.failures += failed.len() as u64;
        Ok(())
    }

    /// Ends messages that have waited for the other side longer than `wait`. Says when to ask again, if anything
    /// still waits.
    ///
    /// A message waits from its submission, or from the loss of the connection, whichever came later; while a
    /// connection is there it does not wait.
    pub(crate) fn expire(&mut self, now: Instant, wait: Duration) -> Option<Instant> {
        if self.connected {
            return None;
        }
        while let Some(number) = self.unsettled.first() {
            let entry = self.unsettled.get(number)?;
            let since = self.lost_at.map_or(entry.submitted, |lost| lost.max(entry.submitted));
            let deadline = since + wait;
            if now < deadline {
                // Numbers rise with time, but for the moment that a sender's turn takes, so all behind it end later.
                return Some(deadline);
            }
            let outcome = entry.given_up(Code::NodeUnreachable);
            self.settle(number, outcome);
        }
        None
    }

    /// Gives up every message, for this reason.
    pub(crate) fn give_up(&mut self, code: Code) {
        while let Some(number) = self.unsettled.first() {
            let Some(entry) = self.unsettled.get(number) else {
                return;
            };
            let outcome = entry.given_up(code);
            self.settle(number, outcome);
        }
    }

    /// Whether [`poll_confirm`](Self::poll_confirm) would give a confirmation that can't wait.
    pub(crate) fn wants_confirm(&self) -> bool {
        let lag = self.settled_below().saturating_sub(self.confirmed.below);
        self.connected && lag.max(self.failures) >= CONFIRM_EVERY
    }

    /// Every number below this one is settled.
    fn settled_below(&self) -> u64 {
        self.unsettled.first().unwrap_or_else(|| self.unsettled.next_number())
    }

    /// What to tell the other side of what is settled here. `None` while telling it is not yet worth a frame;
    /// `eager` tells any change.
    pub(crate) fn poll_confirm(&mut self, eager: bool) -> Option<Confirm> {
        let confirm = Confirm {
            below: self.settled_below(),
            reports: self.reports,
        };
        let due = eager && confirm != self.confirmed;
        if !self.connected || !(due || self.wants_confirm()) {
            return None;
        }
        self.failures = 0;
        self.confirmed = confirm;
        Some(confirm)
    }

    /// The tickets of messages that ended since the last call, in the order they did.
    pub(crate) fn drain_settled(&mut self) -> Vec<(T, Outcome)> {
        std::mem::take(&mut self.settled)
    }

    fn tell(&mut self, numbers: u64) -> Result<(), Violation> {
        self.told = self.told.saturating_add(numbers);
        if self.told < self.unsettled.next_number() {
            Ok(())
        } else {
            Err(Violation::ToldAgain)
        }
    }

    fn end(&mut self, number: u64, outcome: Outcome) -> Result<(), Violation> {
        if self.unsettled.get(number).is_some_and(|entry| !entry.sent) {
            return Err(Violation::NeverSent);
        }
        self.settle(number, outcome);
        Ok(())
    }

    fn settle(&mut self, number: u64, outcome: Outcome) {
        let Some(entry) = self.unsettled.remove(number) else {
            return;
        };
        self.bytes -= entry.size;
        if entry.sent {
            self.under_way.messages -= 1;
            self.under_way.bytes -= entry.size;
        }
        if self.conversations.get(&entry.conversation) == Some(&number) {
            self.conversations.remove(&entry.conversation);
        }
        self.settled.push((entry.ticket, outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        messages: 100,
        bytes: 1000,
    };

    fn sender() -> Sender<u32, u32> {
        Sender::new(BOUNDS)
    }

    fn transmitted(sender: &mut Sender<u32, u32>) -> Vec<(u64, u64, u32)> {
        std::iter::from_fn(|| sender.poll_transmit().map(|t| (t.number, t.after, *t.message))).collect()
    }

    #[test]
    fn names_the_one_before_in_its_conversation_while_that_is_unsettled() {
        let (mut sender, now) = (sender(), Instant::now());
        for (conversation, message) in [(7, 1), (8, 2), (7, 3)] {
            sender.submit(now, conversation, 1, message, message);
        }
        assert_eq!(transmitted(&mut sender), [], "not connected");
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender), [(1, 0, 1), (2, 0, 2), (3, 1, 3)]);
        sender.report(&[(1, 3)], &[]).unwrap();
        sender.submit(now, 7, 1, 4, 4);
        assert_eq!(transmitted(&mut sender), [(4, 0, 4)]);
        let delivered = [1, 2, 3].map(|ticket| (ticket, Outcome::Delivered));
        assert_eq!(sender.drain_settled(), delivered);
    }

    #[test]
    fn sends_again_what_the_other_side_lacks() {
        let (mut sender, now) = (sender(), Instant::now());
        for message in 1..=4 {
            sender.submit(now, 7, 1, message, message);
        }
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender).len(), 4);
        sender.disconnected(now);
        sender.connected(&RangeSet::from_parts(2, [(3, 3)])).unwrap();
        assert_eq!(transmitted(&mut sender), [(2, 1, 2), (4, 3, 4)]);
    }

    #[test]
    fn what_waits_too_long_is_given_up_and_its_successor_does_not_name_it() {
        let (mut sender, start) = (sender(), Instant::now());
        let wait = Duration::from_secs(10);
        sender.submit(start, 7, 1, 1, 1);
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender).len(), 1);
        sender.submit(start, 7, 1, 2, 2);
        sender.disconnected(start + Duration::from_secs(5));
        sender.submit(start + Duration::from_secs(9), 7, 1, 3, 3);
        assert_eq!(
            sender.expire(start + Duration::from_secs(14), wait),
            Some(start + Duration::from_secs(15))
        );
        assert_eq!(
            sender.expire(start + Duration::from_secs(15), wait),
            Some(start + Duration::from_secs(19))
        );
        assert_eq!(
            sender.drain_settled(),
            [
                (1, Outcome::Unknown(Code::NodeUnreachable)),
                (2, Outcome::Refused(Code::NodeUnreachable)),
            ]
        );
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender), [(3, 0, 3)]);
    }

    #[test]
    fn a_new_process_at_the_other_side_makes_what_was_sent_unknown() {
        let (mut sender, now) = (sender(), Instant::now());
        sender.submit(now, 7, 1, 1, 1);
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender).len(), 1);
        sender.disconnected(now);
        sender.submit(now, 7, 1, 2, 2);
        sender.submit(now, 7, 1, 3, 3);
        sender.peer_restarted(|&message| message != 2);
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender), [(3, 0, 3)]);
        assert_eq!(
            sender.drain_settled(),
            [
                (1, Outcome::Unknown(Code::NodeRestarted)),
                (2, Outcome::Refused(Code::NodeRestarted)),
            ]
        );
        assert_eq!(sender.poll_confirm(true), Some(Confirm { below: 3, reports: 0 }));
        assert_eq!(sender.poll_confirm(true), None);
    }

    #[test]
    fn a_report_of_what_was_never_sent_is_a_violation() {
        let (mut sender, now) = (sender(), Instant::now());
        assert_eq!(sender.report(&[(1, 1)], &[]), Err(Violation::NeverSent));
        sender.submit(now, 7, 1, 1, 1);
        assert_eq!(
            sender.report(&[(1, 1)], &[]),
            Err(Violation::NeverSent),
            "not transmitted yet"
        );
        let all = RangeSet::from_parts(u64::MAX, []);
        assert_eq!(sender.connected(&all), Err(Violation::NeverSent));
    }

    #[test]
    fn ends_are_told_once_a_connection() {
        let (mut sender, now) = (sender(), Instant::now());
        for message in 1..=3 {
            sender.submit(now, 7, 1, message, message);
        }
        sender.connected(&RangeSet::new()).unwrap();
        assert_eq!(transmitted(&mut sender).len(), 3);
        sender.report(&[(2, 3)], &[]).unwrap();
        assert_eq!(sender.report(&[(2, 3)], &[]), Err(Violation::ToldAgain));
        sender.disconnected(now);
        sender.connected(&RangeSet::from_parts(1, [(2, 3)])).unwrap();
        sender.report(&[(2, 3)], &[]).unwrap();
    }

    #[test]
    fn what_waited_for_another_side_that_keeps_less_goes_there_bit_by_bit() {
        let (mut sender, now) = (sender(), Instant::now());
        for message in 1..=10 {
            sender.submit(now, message, 1, message as u32, message as u32);
        }
        sender.set_bounds(Bounds {
            messages: 4,
            bytes: 1000,
        });
        sender.connected(&RangeSet::new()).unwrap();
        let numbers = |sender: &mut Sender<u32, u32>| transmitted(sender).iter().map(|(number, ..)| *number).collect();
        let first: Vec<_> = numbers(&mut sender);
        assert_eq!(first, [1, 2, 3, 4]);
        assert!(sender.wants_transmit());
        sender.report(&[(2, 3)], &[]).unwrap();
        let more: Vec<_> = numbers(&mut sender);
        assert_eq!(more, [5, 6]);
        // On another connection the same ones come again, and no more.
        sender.disconnected(now);
        sender.connected(&RangeSet::new()).unwrap();
        let again: Vec<_> = numbers(&mut sender);
        assert_eq!(again, [1, 4, 5, 6]);
        sender.report(&[(1, 1), (4, 6)], &[]).unwrap();
        assert_eq!(transmitted(&mut sender).len(), 4);
    }

    #[test]
    fn the_bounds_hold() {
        let (mut sender, now) = (sender(), Instant::now());
        sender.submit(now, 7, 999, 1, 1);
        assert!(sender.has_room());
        sender.submit(now, 7, 10_000, 2, 2);
        assert!(!sender.has_room());
        sender.give_up(Code::ShuttingDown);
        assert!(sender.has_room() && sender.is_idle());
        for message in 0..100 {
            sender.submit(now, 7, 1, message, message);
        }
        assert!(!sender.has_room());
    }
}
