//! Who guesses ids: how many messages of one source may be for clients that are not there.
//!
//! What counts is a *miss*: a message that was answered with `no-such-client`. A source may have a burst of them, and then
//! so many a second; each one over that is a debt, and no client of the source that may be the one who guesses has a
//! message passed on until the debt is paid.
//!
//! A miss is known once it is answered, and by then more may be under way. So this is a bucket that can be
//! overdrawn, which the rate limiters of libraries can't.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::address::Address;
use crate::admission::Source;

/// How many addresses a client misses before it has forgotten the first of them: it may have had much under way to some
/// that have left.
const RECENT: usize = 8;

/// The longest that a source pays for what it had under way when it went over: who shares an address with one that guesses is
/// not shut out for longer.
const MOST_DEBT: Duration = Duration::from_secs(600);

/// The most sources that are remembered, some 4 MB. Who has more of them gains more by that than by being forgotten.
const MOST_SOURCES: usize = 65_536;

/// The misses of all sources.
#[derive(Debug)]
pub(crate) struct Misses {
    /// How long it takes until one more miss is free.
    each: Duration,
    /// How far ahead of the time a source may be: its burst.
    ahead: Duration,
    sources: Mutex<Sources>,
}

#[derive(Debug)]
struct Sources {
    /// When each source will have paid for all its misses. One for which that is over is the same as one that is not here.
    paid: HashMap<Source, Instant>,
    /// At how many of them those that have paid are removed.
    clean_at: usize,
}

/// At how many sources cleaning begins; the next is at twice what is left.
const CLEAN_AT: usize = 64;

impl Misses {
    /// A source may have `burst` misses, and `rate` a second.
    pub(crate) fn new(rate: NonZeroU32, burst: NonZeroU32) -> Self {
        let each = Duration::from_secs(1) / rate.get();
        Self {
            each,
            ahead: each * burst.get(),
            sources: Mutex::new(Sources {
                paid: HashMap::new(),
                clean_at: CLEAN_AT,
            }),
        }
    }

    /// A miss of this source; says whether it is over what it may.
    pub(crate) fn note(&self, now: Instant, source: Source) -> bool {
        let mut sources = self.sources.lock();
        if sources.paid.len() >= sources.clean_at {
            sources.paid.retain(|_, paid| *paid > now);
            sources.clean_at = CLEAN_AT.max(2 * sources.paid.len());
        }
        if sources.paid.len() >= MOST_SOURCES && !sources.paid.contains_key(&source) {
            return false;
        }
        let paid = sources.paid.entry(source).or_insert(now);
        *paid = (*paid).max(now) + self.each;
        let over = *paid > now + self.ahead;
        *paid = (*paid).min(now + self.ahead + MOST_DEBT);
        over
    }

    /// How long this source has to wait until it may miss once more; `None` if it may now.
    pub(crate) fn wait(&self, now: Instant, source: Source) -> Option<Duration> {
        let paid = self.sources.lock().paid.get(&source).copied()?;
        let free = paid + self.each;
        let wait = free.saturating_duration_since(now + self.ahead);
        (!wait.is_zero()).then_some(wait)
    }
}

/// What a client has to do with its source's misses.
#[derive(Debug, Default)]
pub(crate) struct Guesses {
    /// The addresses that it missed last.
    recent: VecDeque<Address>,
    /// One of its misses was over what its source may have.
    over: bool,
    /// One of its messages was delivered.
    proven: bool,
}

impl Guesses {
    /// A message to this address was answered with `no-such-client`; says whether that is a miss that counts.
    pub(crate) fn missed(&mut self, to: &Address) -> bool {
        if self.recent.contains(to) {
            return false;
        }
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(to.clone());
        true
    }

    /// A miss of the client was over what its source may have.
    pub(crate) fn go_over(&mut self) {
        self.over = true;
    }

    /// A message of the client was delivered.
    pub(crate) fn prove(&mut self) {
        self.proven = true;
    }

    /// Whether this client waits for its source's debts. One that has shown that it knows an address, and did not make
    /// them, does not; a new one does, or guessing would go on from a new connection each time.
    pub(crate) fn is_suspect(&self) -> bool {
        self.over || !self.proven
    }

    /// The source's debts are paid.
    pub(crate) fn clear(&mut self) {
        self.over = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn source(host: u32) -> Source {
        Source::V4(host.into())
    }

    #[test]
    fn a_burst_is_free_and_then_a_rate() {
        let misses = Misses::new(number(2), number(3));
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for _ in 0..3 {
            assert_eq!(misses.wait(at(0), source(1)), None);
            assert!(!misses.note(at(0), source(1)));
        }
        assert_eq!(misses.wait(at(0), source(1)), Some(Duration::from_millis(500)));
        assert_eq!(misses.wait(at(0), source(2)), None, "another source");
        assert_eq!(misses.wait(at(500), source(1)), None);
        assert!(!misses.note(at(500), source(1)));
        assert_eq!(misses.wait(at(500), source(1)), Some(Duration::from_millis(500)));
    }

    #[test]
    fn what_was_under_way_is_paid_for_up_to_a_bound() {
        let misses = Misses::new(number(1), number(1));
        let now = Instant::now();
        assert!(!misses.note(now, source(1)));
        for _ in 0..10 {
            assert!(misses.note(now, source(1)));
        }
        assert_eq!(misses.wait(now, source(1)), Some(Duration::from_secs(11)));
        for _ in 0..10_000 {
            misses.note(now, source(1));
        }
        assert_eq!(misses.wait(now, source(1)), Some(MOST_DEBT + Duration::from_secs(1)));
    }

    #[test]
    fn nothing_is_kept_of_sources_that_have_paid() {
        let misses = Misses::new(number(1), number(1));
        let start = Instant::now();
        for second in 0..100_000 {
            misses.note(start + Duration::from_secs(second.into()), source(second));
        }
        assert!(misses.sources.lock().paid.len() <= CLEAN_AT);
        for host in 0..100_000 {
            misses.note(start + Duration::from_secs(200_000), source(host));
        }
        assert_eq!(misses.sources.lock().paid.len(), MOST_SOURCES);
    }

    #[test]
    fn the_same_few_addresses_count_once() {
        let mut guesses = Guesses::default();
        let address = |id: usize| format!("n:1:{id}").parse::<Address>().unwrap();
        for round in 0..100 {
            for id in 0..RECENT {
                assert_eq!(guesses.missed(&address(id)), round == 0, "{id} in round {round}");
            }
        }
        for id in 0..10 * RECENT {
            assert!(guesses.missed(&address(1000 + id)), "another one");
        }
        assert_eq!(guesses.recent.len(), RECENT);
    }

    #[test]
    fn who_has_shown_that_it_knows_an_address_and_did_not_guess_waits_for_nobody() {
        let mut guesses = Guesses::default();
        assert!(guesses.is_suspect(), "it is new");
        guesses.prove();
        assert!(!guesses.is_suspect());
        guesses.go_over();
        guesses.prove();
        assert!(guesses.is_suspect());
        guesses.clear();
        assert!(!guesses.is_suspect());
    }
}
