//! The receiving half: takes each message once and in the order of its conversation, and tells how each ended.

use std::collections::{BTreeMap, HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::ranges::RangeSet;
use super::sender::CONFIRM_EVERY;
use super::{Bounds, Confirm, Failure, Violation};
use crate::outcome::Outcome;

/// The most ranges or failures one [`Report`] carries, so that a control frame stays small. Tests reach a small one.
const REPORT_LIMIT: usize = if cfg!(any(test, fuzzing)) { 2 } else { 1024 };

/// How many runs of delivered messages, not told yet, are looked through for those that follow each other. Tests reach a
/// small one.
const PUT_TOGETHER_FROM: usize = if cfg!(any(test, fuzzing)) { 4 } else { 4096 };

/// How messages ended, as told to their sender.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Report {
    /// First and last number of runs of delivered messages.
    pub(crate) delivered: Vec<(u64, u64)>,
    /// Messages that ended otherwise.
    pub(crate) failed: Vec<Failure>,
}

#[derive(Debug)]
struct Held<M> {
    number: u64,
    size: usize,
    message: M,
}

/// A message taken: its number and itself.
pub(crate) type Taken<M> = (u64, M);

/// The receiving half of an exchange, for messages `M`.
#[derive(Debug)]
pub(crate) struct Receiver<M> {
    bounds: Bounds,
    /// Every number that was passed on, or that the sender has settled.
    taken: RangeSet,
    /// Messages that came before the one they name, by the number of that one.
    held: HashMap<u64, Held<M>, RandomState>,
    held_bytes: usize,
    /// The largest size that was held on the present connection.
    held_largest: usize,
    /// Every number that ended, whether it was delivered or failed.
    ended: RangeSet,
    /// The ends other than delivery that the sender may not know yet.
    failures: BTreeMap<u64, Outcome>,
    /// How many reports were told on the present connection.
    reports: u64,
    /// The failed numbers of each of them that had some and is not confirmed, by which report it was.
    told: VecDeque<(u64, Vec<u64>)>,
    /// How many numbers that are.
    told_failures: usize,
    /// What the sender confirmed last: every number below `below` is settled there.
    confirmed: Confirm,
    /// What is still to be told on the present connection.
    report: Report,
    /// How many messages that is about.
    untold: u64,
    /// At so many runs of delivered messages they are put together.
    put_together_at: usize,
    incarnation: u32,
    /// There is one connection and no other, so what was told is known.
    tells_once: bool,
}

impl<M> Receiver<M> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            taken: RangeSet::new(),
            held: HashMap::default(),
            held_bytes: 0,
            held_largest: 0,
            ended: RangeSet::new(),
            failures: BTreeMap::new(),
            reports: 0,
            told: VecDeque::new(),
            told_failures: 0,
            confirmed: Confirm::default(),
            report: Report::default(),
            untold: 0,
            put_together_at: PUT_TOGETHER_FROM,
            incarnation: 0,
            tells_once: false,
        }
    }

    /// There will be no other connection than the one to come: what is told on it need not be kept, and the sender does
    /// not confirm it.
    pub(crate) fn tell_once(&mut self) {
        self.tells_once = true;
    }

    /// What has been taken, to be told when a connection comes.
    pub(crate) fn taken(&self) -> &RangeSet {
        &self.taken
    }

    /// Which process of the other side the numbers belong to, counted from 0. [`finish`](Self::finish) wants it back.
    pub(crate) fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// A message has arrived whole. What can be passed on now, it or it and those that waited for it, is added to
    /// `taken`.
    pub(crate) fn message(
        &mut self,
        number: u64,
        after: u64,
        size: usize,
        message: M,
        taken: &mut Vec<Taken<M>>,
    ) -> Result<(), Violation> {
        if number == 0 || number == u64::MAX || after >= number {
            return Err(Violation::BadNumber);
        }
        if self.taken.contains(number) {
            return Ok(());
        }
        if self.taken.contains(after) {
            // What a sender that keeps to its bounds has not confirmed: at most a window unsettled, and as many settled
            // as it may put off telling. Numbers given up before they were transmitted leave gaps like those under way.
            // And some more may settle while a confirmation is on its way, or is lost with its connection.
            let unconfirmed = self
                .bounds
                .messages
                .saturating_add(CONFIRM_EVERY as usize)
                .saturating_mul(4);
            // To confirm numbers is not enough: what was told is kept until its report is confirmed, and what is to be told
            // until the report is taken.
            let kept = [
                self.taken.ranges().len(),
                self.failures.len(),
                self.told_failures,
                self.report.failed.len(),
                self.report.delivered.len(),
            ];
            if kept.iter().any(|&kept| kept >= unconfirmed) {
                return Err(Violation::OverBounds);
            }
            self.take(number, message, taken);
            return Ok(());
        }
        if let Some(other) = self.held.get(&after) {
            // The same one again is a repeat; two messages can't be next after one.
            return if other.number == number {
                Ok(())
            } else {
                Err(Violation::BadNumber)
            };
        }
        // The last message a sender had room for may be of any size, and come first.
        let but_one = self.held_bytes.saturating_sub(self.held_largest);
        if self.held.len() >= self.bounds.messages || but_one >= self.bounds.bytes {
            return Err(Violation::OverBounds);
        }
        self.held_bytes += size;
        self.held_largest = self.held_largest.max(size);
        self.held.insert(after, Held { number, size, message });
        Ok(())
    }

    /// A message that was taken has ended. Ends of messages of an earlier process of the other side are passed over.
    /// Says whether it is one to tell.
    pub(crate) fn finish(&mut self, incarnation: u32, number: u64, outcome: Outcome) -> bool {
        if incarnation != self.incarnation || number < self.confirmed.below || !self.ended.insert(number) {
            return false;
        }
        self.untold += 1;
        match outcome {
            Outcome::Delivered => match self.report.delivered.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => self.report_alone(number),
            },
            Outcome::Refused(_) | Outcome::Unknown(_) => {
                self.failures.insert(number, outcome);
                self.report.failed.push(Failure { number, outcome });
            }
        }
        true
    }

    /// How many messages ended since a report was given that held all there was to tell.
    pub(crate) fn untold(&self) -> u64 {
        self.untold
    }

    /// Whether [`poll_report`](Self::poll_report) would give a report.
    pub(crate) fn wants_report(&self) -> bool {
        !self.report.delivered.is_empty() || !self.report.failed.is_empty()
    }

    /// What is to be told to the sender next, if anything.
    pub(crate) fn poll_report(&mut self) -> Option<Report> {
        fn some_of<V>(all: &mut Vec<V>) -> Vec<V> {
            let rest = all.split_off(all.len().min(REPORT_LIMIT));
            std::mem::replace(all, rest)
        }
        if !self.wants_report() {
            return None;
        }
        let report = Report {
            delivered: some_of(&mut self.report.delivered),
            failed: some_of(&mut self.report.failed),
        };
        if self.tells_once {
            for failure in &report.failed {
                self.failures.remove(&failure.number);
            }
        } else if !report.failed.is_empty() {
            let failed: Vec<_> = report.failed.iter().map(|failure| failure.number).collect();
            self.told_failures += failed.len();
            self.told.push_back((self.reports, failed));
        }
        if !self.wants_report() {
            self.untold = 0;
        }
        self.reports += 1;
        Some(report)
    }

    /// The sender has settled every number below a mark, and all that the first reports on this connection told: it
    /// will neither send them again nor ask about them.
    pub(crate) fn confirm(&mut self, confirm: Confirm) -> Result<(), Violation> {
        if confirm.reports > self.reports {
            return Err(Violation::NeverSent);
        }
        while let Some((_, failed)) = self.told.pop_front_if(|(report, _)| *report < confirm.reports) {
            self.told_failures -= failed.len();
            for number in failed {
                self.failures.remove(&number);
            }
        }
        self.confirmed.reports = self.confirmed.reports.max(confirm.reports);
        if confirm.below > self.confirmed.below {
            self.confirmed.below = confirm.below;
            self.taken.fill_below(confirm.below);
            self.ended.fill_below(confirm.below);
            self.failures = self.failures.split_off(&confirm.below);
        }
        Ok(())
    }

    /// Whether the sender has confirmed all ends.
    pub(crate) fn all_is_confirmed(&self) -> bool {
        self.ended.below() <= self.confirmed.below && self.ended.ranges().len() == 0
    }

    /// A connection is there, to the same process as before: whatever the sender may not know is told again.
    pub(crate) fn connected(&mut self) {
        self.report = Report {
            delivered: Vec::new(),
            failed: self
                .failures
                .iter()
                .map(|(&number, &outcome)| Failure { number, outcome })
                .collect(),
        };
        self.forget_told();
        let mut runs = vec![(self.confirmed.below, self.ended.below())];
        runs.extend(self.ended.ranges().map(|(first, last)| (first, last + 1)));
        for (mut first, end) in runs {
            // The failed ones cut a run in two.
            for (&failed, _) in self.failures.range(first..end.max(first)) {
                if first < failed {
                    self.report.delivered.push((first, failed - 1));
                }
                first = failed + 1;
            }
            if first < end {
                self.report.delivered.push((first, end - 1));
            }
        }
    }

    /// The connection is lost. What was held back will come again.
    pub(crate) fn disconnected(&mut self) {
        self.held.clear();
        (self.held_bytes, self.held_largest) = (0, 0);
        self.report = Report::default();
        self.forget_told();
    }

    /// The process at the other side is another one than before: its numbers start anew.
    pub(crate) fn peer_restarted(&mut self) {
        *self = Self {
            incarnation: self.incarnation.wrapping_add(1),
            ..Self::new(self.bounds)
        };
    }

    /// A message was delivered that does not follow the one before. Where many do, in any order, they may still make few
    /// runs: a client that takes no reports does not have a list of each of its messages kept.
    fn report_alone(&mut self, number: u64) {
        let delivered = &mut self.report.delivered;
        delivered.push((number, number));
        if delivered.len() < self.put_together_at {
            return;
        }
        delivered.sort_unstable();
        delivered.dedup_by(|&mut (first, last), (_, before)| {
            let follows = *before + 1 == first;
            if follows {
                *before = last;
            }
            follows
        });
        self.put_together_at = PUT_TOGETHER_FROM.max(2 * delivered.len());
    }

    fn forget_told(&mut self) {
        self.told.clear();
        self.told_failures = 0;
        (self.reports, self.confirmed.reports) = (0, 0);
    }

    /// How many messages wait for the one they name.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// What those messages count, in bytes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// How many entries are kept of messages that have ended, apart from the two marks.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn remembered(&self) -> usize {
        let to_tell = self.report.delivered.len() + self.report.failed.len();
        self.failures.len() + self.told_failures + to_tell + self.taken.ranges().len() + self.ended.ranges().len()
    }

    fn take(&mut self, number: u64, message: M, taken: &mut Vec<Taken<M>>) {
        self.taken.insert(number);
        taken.push((number, message));
        let mut last = number;
        while let Some(held) = self.release(last) {
            last = held.number;
            if self.taken.insert(held.number) {
                taken.push((held.number, held.message));
            }
        }
    }

    fn release(&mut self, after: u64) -> Option<Held<M>> {
        if self.held.is_empty() {
            return None;
        }
        let held = self.held.remove(&after)?;
        self.held_bytes -= held.size;
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Code;

    const GONE: Outcome = Outcome::Refused(Code::RecipientGone);

    fn receiver() -> Receiver<&'static str> {
        Receiver::new(Bounds {
            messages: 4,
            bytes: 100,
        })
    }

    fn message(
        receiver: &mut Receiver<&'static str>,
        number: u64,
        after: u64,
        text: &'static str,
    ) -> Result<Vec<Taken<&'static str>>, Violation> {
        let mut taken = Vec::new();
        receiver.message(number, after, 1, text, &mut taken)?;
        Ok(taken)
    }

    #[test]
    fn holds_a_message_until_the_one_it_names_was_taken() {
        let mut receiver = receiver();
        assert_eq!(message(&mut receiver, 4, 2, "c"), Ok(vec![]));
        assert_eq!(message(&mut receiver, 2, 1, "b"), Ok(vec![]));
        assert_eq!(message(&mut receiver, 3, 0, "other"), Ok(vec![(3, "other")]));
        assert_eq!(
            message(&mut receiver, 1, 0, "a"),
            Ok(vec![(1, "a"), (2, "b"), (4, "c")])
        );
        assert_eq!(receiver.taken().below(), 5);
    }

    #[test]
    fn takes_a_message_once() {
        let mut receiver = receiver();
        assert_eq!(message(&mut receiver, 1, 0, "a").map(|taken| taken.len()), Ok(1));
        assert_eq!(message(&mut receiver, 1, 0, "a"), Ok(vec![]));
        assert_eq!(message(&mut receiver, 3, 2, "c"), Ok(vec![]));
        assert_eq!(message(&mut receiver, 3, 2, "c"), Ok(vec![]));
        assert_eq!(message(&mut receiver, 2, 1, "b"), Ok(vec![(2, "b"), (3, "c")]));
        assert_eq!(message(&mut receiver, 3, 2, "c"), Ok(vec![]));
    }

    #[test]
    fn what_was_held_when_the_connection_broke_comes_again() {
        let mut receiver = receiver();
        assert_eq!(message(&mut receiver, 2, 1, "b"), Ok(vec![]));
        receiver.disconnected();
        receiver.connected();
        assert!(!receiver.taken().contains(2));
        assert_eq!(message(&mut receiver, 1, 0, "a"), Ok(vec![(1, "a")]));
        assert_eq!(message(&mut receiver, 2, 1, "b"), Ok(vec![(2, "b")]));
    }

    #[test]
    fn numbers_no_sender_gives_are_violations() {
        let mut receiver = receiver();
        for (number, after) in [(0, 0), (5, 5), (5, 6), (u64::MAX, 0)] {
            assert_eq!(message(&mut receiver, number, after, ""), Err(Violation::BadNumber));
        }
        assert_eq!(message(&mut receiver, 5, 2, ""), Ok(vec![]));
        assert_eq!(message(&mut receiver, 6, 2, ""), Err(Violation::BadNumber));
    }

    #[test]
    fn no_sender_makes_it_keep_more_than_its_bounds() {
        let mut holding = receiver();
        for number in 0..4 {
            assert_eq!(message(&mut holding, 10 + 2 * number, 9 + 2 * number, ""), Ok(vec![]));
        }
        assert_eq!(message(&mut holding, 30, 29, ""), Err(Violation::OverBounds));
        let mut gaps = receiver();
        let most = 4 * (4 + CONFIRM_EVERY);
        for number in 0..most {
            assert_eq!(
                message(&mut gaps, 10 + 2 * number, 0, "").map(|taken| taken.len()),
                Ok(1)
            );
        }
        assert_eq!(message(&mut gaps, 20 + 2 * most, 0, ""), Err(Violation::OverBounds));
    }

    #[test]
    fn who_confirms_ends_without_taking_reports_has_no_more_of_them_kept() {
        for takes_reports in [false, true] {
            let mut receiver = receiver();
            let played = (1..1000).try_for_each(|number| {
                message(&mut receiver, number, 0, "")?;
                // Every other one, so that the delivered ones make no run.
                receiver.finish(0, number, if number % 2 == 0 { GONE } else { Outcome::Delivered });
                if takes_reports {
                    assert!(receiver.poll_report().is_some());
                }
                let below = number + 1;
                receiver.confirm(Confirm { below, reports: 0 })
            });
            assert_eq!(played, Err(Violation::OverBounds), "{takes_reports}");
        }
    }

    #[test]
    fn the_one_message_over_the_bound_in_bytes_may_come_first() {
        let mut receiver = receiver();
        let mut taken = Vec::new();
        receiver.message(3, 2, 1000, "c", &mut taken).unwrap();
        receiver.message(2, 1, 1, "b", &mut taken).unwrap();
        receiver.message(1, 0, 1, "a", &mut taken).unwrap();
        assert_eq!(taken, [(1, "a"), (2, "b"), (3, "c")]);
    }

    #[test]
    fn numbers_given_up_before_they_were_sent_leave_gaps_that_are_no_violation() {
        let mut receiver = receiver();
        for number in (2..2 * (4 + CONFIRM_EVERY)).step_by(2) {
            assert_eq!(message(&mut receiver, number, 0, "").map(|taken| taken.len()), Ok(1));
        }
    }

    #[test]
    fn tells_how_each_ended_until_the_sender_confirms() {
        let mut receiver = receiver();
        for number in 1..=4 {
            message(&mut receiver, number, 0, "").unwrap();
        }
        assert!(receiver.finish(0, 1, Outcome::Delivered));
        assert!(!receiver.finish(0, 1, Outcome::Delivered), "it has ended already");
        assert!(receiver.finish(0, 2, Outcome::Delivered));
        assert!(receiver.finish(0, 4, GONE));
        assert_eq!(receiver.untold(), 3);
        let report = Report {
            delivered: vec![(1, 2)],
            failed: vec![Failure {
                number: 4,
                outcome: GONE,
            }],
        };
        assert_eq!(receiver.poll_report(), Some(report.clone()));
        assert_eq!((receiver.poll_report(), receiver.untold()), (None, 0));

        receiver.disconnected();
        receiver.finish(0, 3, Outcome::Delivered);
        receiver.connected();
        let told_again = Report {
            delivered: vec![(1, 3)],
            ..report
        };
        assert_eq!(receiver.poll_report(), Some(told_again));

        let confirm = Confirm { below: 2, reports: 1 };
        receiver.confirm(confirm).unwrap();
        assert!(receiver.failures.is_empty());
        assert_eq!(
            receiver.confirm(Confirm { below: 2, reports: 9 }),
            Err(Violation::NeverSent)
        );
        assert!(!receiver.all_is_confirmed());
        let confirm = Confirm { below: 5, reports: 1 };
        receiver.confirm(confirm).unwrap();
        assert!(receiver.all_is_confirmed());
        receiver.disconnected();
        receiver.connected();
        assert_eq!(receiver.poll_report(), None);
    }

    #[test]
    fn ends_in_another_order_than_the_numbers_are_kept_as_runs_while_nobody_takes_the_reports() {
        let mut receiver = receiver();
        for number in 1..=1000 {
            message(&mut receiver, number, 0, "").unwrap();
        }
        // Two at a time, the second first.
        for number in (1..=1000).step_by(2) {
            receiver.finish(0, number + 1, Outcome::Delivered);
            receiver.finish(0, number, Outcome::Delivered);
            assert!(receiver.report.delivered.len() <= PUT_TOGETHER_FROM);
        }
        let told: u64 = std::iter::from_fn(|| receiver.poll_report())
            .flat_map(|report| report.delivered)
            .map(|(first, last)| last - first + 1)
            .sum();
        assert_eq!(told, 1000);
    }

    #[test]
    fn reports_without_failures_are_counted_and_not_kept_until_they_are_confirmed() {
        let mut receiver = receiver();
        for number in 1..=100 {
            message(&mut receiver, number, 0, "").unwrap();
            let outcome = if number == 50 { GONE } else { Outcome::Delivered };
            receiver.finish(0, number, outcome);
            assert!(receiver.poll_report().is_some());
        }
        assert_eq!(receiver.told.len(), 1);
        receiver.confirm(Confirm { below: 1, reports: 49 }).unwrap();
        assert_eq!(receiver.failures.len(), 1);
        receiver.confirm(Confirm { below: 1, reports: 50 }).unwrap();
        assert_eq!((receiver.failures.len(), receiver.told.len()), (0, 0));
        let never = Confirm { below: 1, reports: 101 };
        assert_eq!(receiver.confirm(never), Err(Violation::NeverSent));
    }

    #[test]
    fn ends_of_an_earlier_process_are_not_told_to_a_new_one() {
        let mut receiver = receiver();
        message(&mut receiver, 1, 0, "old").unwrap();
        let incarnation = receiver.incarnation();
        receiver.peer_restarted();
        assert_eq!(message(&mut receiver, 1, 0, "new"), Ok(vec![(1, "new")]));
        assert!(!receiver.finish(incarnation, 1, GONE));
        assert_eq!(receiver.poll_report(), None);
    }

    #[test]
    fn what_was_told_is_forgotten_where_nobody_confirms_it() {
        let mut receiver = receiver();
        receiver.tell_once();
        for number in 1..=1000 {
            message(&mut receiver, number, 0, "refused").unwrap();
            assert!(receiver.finish(0, number, GONE));
            assert!(receiver.poll_report().is_some());
        }
        assert_eq!(receiver.remembered(), 0);
    }
}
