//! Holds one client to its rate and to its source's misses, whatever transport it comes by, and knows when it was last busy.
//!
//! A client that is *held* is not read from, or what it has sent waits: nothing of it is refused or lost.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::{Mutex, RwLock};
use tokio::time::sleep;

use crate::address::Address;
use crate::admission::Source;
use crate::config::Rate;
use crate::counters::{Counter, Counters};
use crate::misses::{Guesses, Misses};
use crate::outcome::{Code, Outcome};
use crate::phase::{Follow, Phase};

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<Instant>>;

/// How many times within `--idle` it is looked at whether a client was busy: it ends after the time, or up to a quarter of
/// it later.
const LOOKS: u32 = 4;

/// How long a held client waits at most until it is looked at again: another rate may hold by then, or none.
const RENEWED: Duration = Duration::from_secs(1);

/// What may be sent at once to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bucket {
    Full,
    Empty,
}

/// What a client has used of its rates.
#[derive(Debug)]
struct Meter {
    messages: Option<Limiter>,
    bytes: Option<Limiter>,
    /// The next message, which waits for its bytes, was counted as a message.
    counted: AtomicBool,
}

impl Meter {
    /// A bucket of a second's worth, and of a message of `largest` bytes at least: else that could never pass.
    fn new(rate: Rate, largest: usize, begins: Bucket) -> Self {
        let largest = u32::try_from(largest).unwrap_or(u32::MAX);
        let limiter = |rate: NonZeroU32, burst: NonZeroU32| {
            let quota = Quota::per_second(rate).allow_burst(burst);
            let limiter = RateLimiter::direct_with_clock(quota, MonotonicClock);
            if begins == Bucket::Empty {
                // All of a bucket that is full: this can't fail.
                let _ = limiter.check_n(burst);
            }
            limiter
        };
        Self {
            counted: AtomicBool::new(false),
            messages: rate.messages.map(|rate| limiter(rate, rate)),
            bytes: rate
                .bytes
                .map(|rate| limiter(rate, NonZeroU32::new(largest).map_or(rate, |largest| rate.max(largest)))),
        }
    }

    /// Counts the next message, of so many bytes, or says how long it has to wait before that can be.
    fn take(&self, bytes: usize) -> Result<(), Duration> {
        if !self.counted.load(Ordering::Relaxed) {
            take(self.messages.as_ref(), NonZeroU32::MIN)?;
        }
        let bytes = NonZeroU32::new(u32::try_from(bytes).unwrap_or(u32::MAX));
        let taken = bytes.map_or(Ok(()), |bytes| take(self.bytes.as_ref(), bytes));
        self.counted.store(taken.is_err(), Ordering::Relaxed);
        taken
    }
}

fn take(limiter: Option<&Limiter>, cells: NonZeroU32) -> Result<(), Duration> {
    let Some(limiter) = limiter else {
        return Ok(());
    };
    match limiter.check_n(cells) {
        Ok(Err(not_until)) => Err(not_until.wait_time_from(MonotonicClock.now())),
        // An error: more than the bucket ever holds, which the size limit does not let come here.
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// What one client is held to.
#[derive(Debug)]
pub(crate) struct Restraint {
    source: Source,
    meter: RwLock<(Rate, Meter)>,
    /// What `meter` says, readable without its lock: most clients have no rate.
    metered: AtomicBool,
    /// The largest message, in bytes.
    largest: usize,
    misses: Arc<Misses>,
    guesses: Mutex<Guesses>,
    /// What `guesses` says, readable without its lock: most clients are none.
    suspect: AtomicBool,
    counters: Arc<Counters>,
    /// Counts the messages from the client and to it.
    busy: AtomicU64,
}

impl Restraint {
    /// A client from this source that may send at this rate, messages of up to `largest` bytes.
    pub(crate) fn new(
        source: Source,
        rate: Rate,
        largest: usize,
        misses: &Arc<Misses>,
        counters: &Arc<Counters>,
    ) -> Self {
        Self {
            source,
            metered: AtomicBool::new(rate.is_limited()),
            meter: RwLock::new((rate, Meter::new(rate, largest, Bucket::Full))),
            largest,
            misses: Arc::clone(misses),
            guesses: Mutex::default(),
            suspect: AtomicBool::new(true),
            counters: Arc::clone(counters),
            busy: AtomicU64::new(0),
        }
    }

    /// Whether the client's next message, of so many bytes, may be followed now; then it is counted.
    pub(crate) fn passes(&self, bytes: usize) -> bool {
        self.owes().is_none() && self.take(bytes).is_ok()
    }

    /// Waits until the client's next message, of so many bytes, may be followed, and counts it. Once the node shuts down
    /// nobody is held: what was read is to be followed.
    pub(crate) async fn hold(&self, bytes: usize, phase: &Follow) {
        let mut counter = Some(Counter::HeldMisses);
        while let Some(wait) = self.owes() {
            if !self.wait(wait, &mut counter, phase).await {
                return;
            }
        }
        let mut counter = Some(Counter::HeldRate);
        while let Err(wait) = self.take(bytes) {
            if !self.wait(wait, &mut counter, phase).await {
                return;
            }
        }
    }

    /// From now on the client may send at this rate; one that is held notices within a second. Where that is no other, what
    /// it has used of it stays used.
    pub(crate) fn renew(&self, rate: Rate) {
        let mut meter = self.meter.write();
        if meter.0 != rate {
            // Empty, else each change would be worth a burst.
            *meter = (rate, Meter::new(rate, self.largest, Bucket::Empty));
            self.metered.store(rate.is_limited(), Ordering::Relaxed);
        }
    }

    fn take(&self, bytes: usize) -> Result<(), Duration> {
        if !self.metered.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.meter.read().1.take(bytes)
    }

    /// Counts the hold, if it is the first wait of one. Says whether it goes on.
    async fn wait(&self, wait: Duration, counter: &mut Option<Counter>, phase: &Follow) -> bool {
        if let Some(counter) = counter.take() {
            self.counters.bump(counter);
        }
        tokio::select! {
            () = sleep(wait.min(RENEWED)) => true,
            () = phase.reached(Phase::Draining) => false,
        }
    }

    /// How long the client still waits for its source's misses.
    fn owes(&self) -> Option<Duration> {
        if !self.suspect.load(Ordering::Relaxed) {
            return None;
        }
        let wait = self.misses.wait(Instant::now(), self.source);
        if wait.is_none() {
            self.note(Guesses::clear);
        }
        wait
    }

    /// A message of the client has ended; `to` finds whom it was for.
    pub(crate) fn ended(&self, outcome: Outcome, to: impl FnOnce() -> Option<Address>) {
        match outcome {
            Outcome::Delivered if self.suspect.load(Ordering::Relaxed) => self.note(Guesses::prove),
            Outcome::Refused(Code::NoSuchClient) => {
                self.counters.bump(Counter::RefusedNoClient);
                let to = to();
                self.note(|guesses| {
                    if to.is_some_and(|to| guesses.missed(&to)) {
                        self.counters.bump(Counter::Misses);
                        if self.misses.note(Instant::now(), self.source) {
                            guesses.go_over();
                        }
                    }
                });
            }
            Outcome::Delivered | Outcome::Refused(_) | Outcome::Unknown(_) => {}
        }
    }

    fn note(&self, what: impl FnOnce(&mut Guesses)) {
        let mut guesses = self.guesses.lock();
        what(&mut guesses);
        self.suspect.store(guesses.is_suspect(), Ordering::Relaxed);
    }

    /// A message came from the client, or one for it.
    pub(crate) fn busy(&self) {
        // Not as one step: of two messages at the same time one may go uncounted, and both were in time.
        let count = self.busy.load(Ordering::Relaxed);
        self.busy.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// Waits until there was no message from the client, nor one for it, for so long. Counts it.
    pub(crate) async fn idle(&self, limit: Duration) {
        let (mut seen, mut quiet) = (self.busy.load(Ordering::Relaxed), 0);
        while quiet < LOOKS {
            sleep(limit / LOOKS).await;
            let now = self.busy.load(Ordering::Relaxed);
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
        self.counters.bump(Counter::EndedIdle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::phases;
    use futures_util::FutureExt;
    use tokio::time::timeout;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn restraint(rate: Rate) -> Restraint {
        let misses = Arc::new(Misses::new(number(1), number(2)));
        let source = std::net::IpAddr::from([192, 0, 2, 1]).into();
        Restraint::new(source, rate, 10_000, &misses, &Arc::new(Counters::new()))
    }

    fn count(restraint: &Restraint, counter: Counter) -> u64 {
        restraint.counters.snapshot()[counter.as_str()]
    }

    #[test]
    fn a_rate_of_messages_has_a_burst_of_one_second() {
        let restraint = restraint(Rate {
            messages: Some(number(5)),
            bytes: None,
        });
        let passed = (0..100).filter(|_| restraint.passes(1_000_000)).count();
        // A busy machine may have given it time for more.
        assert!((5..20).contains(&passed), "{passed}");
    }

    #[test]
    fn a_rate_of_bytes_lets_the_largest_message_pass() {
        let restraint = restraint(Rate {
            messages: None,
            bytes: Some(number(1)),
        });
        assert!(restraint.passes(9_000));
        assert!(!restraint.passes(9_000));
    }

    #[test]
    fn a_message_that_waits_for_its_bytes_is_counted_once() {
        let restraint = restraint(Rate {
            messages: Some(number(3)),
            bytes: Some(number(1)),
        });
        assert!(restraint.passes(10_000));
        for _ in 0..100 {
            assert!(!restraint.passes(10_000));
        }
        // Of three messages two were used, the second of which waits.
        assert!(restraint.passes(0));
        assert!(restraint.passes(0));
    }

    #[test]
    fn another_rate_is_worth_no_burst_however_high_it_is() {
        let restraint = restraint(Rate::default());
        restraint.renew(Rate {
            messages: Some(number(5)),
            bytes: Some(number(u32::MAX)),
        });
        assert!(!restraint.passes(1));
    }

    #[tokio::test]
    async fn who_is_held_is_let_go_when_another_rate_allows_it() {
        let restraint = restraint(Rate {
            messages: None,
            bytes: Some(number(1)),
        });
        let (_lead, phase) = phases();
        assert!(restraint.passes(9_000));
        // By the first rate it would take an hour or two.
        let held = timeout(60 * RENEWED, restraint.hold(9_000, &phase));
        let (held, ()) = tokio::join!(held, async { restraint.renew(Rate::default()) });
        assert!(held.is_ok());
    }

    #[test]
    fn without_a_rate_all_passes() {
        let restraint = restraint(Rate::default());
        assert!((0..100_000).all(|_| restraint.passes(1 << 20)));
    }

    #[tokio::test]
    async fn who_is_over_its_rate_is_held_and_counted_and_let_go() {
        let restraint = restraint(Rate {
            messages: Some(number(20)),
            bytes: None,
        });
        let (_lead, phase) = phases();
        let started = Instant::now();
        for _ in 0..30 {
            restraint.hold(1, &phase).await;
        }
        // Twenty at once, and ten more at twenty a second.
        assert!(
            started.elapsed() >= Duration::from_millis(450),
            "{:?}",
            started.elapsed()
        );
        assert!((1..=30).contains(&count(&restraint, Counter::HeldRate)));
        assert_eq!(count(&restraint, Counter::HeldMisses), 0);
    }

    #[tokio::test]
    async fn nobody_is_held_once_the_node_shuts_down() {
        let restraint = restraint(Rate {
            messages: Some(number(1)),
            bytes: None,
        });
        let (lead, phase) = phases();
        assert!(restraint.hold(1, &phase).now_or_never().is_some());
        assert!(restraint.hold(1, &phase).now_or_never().is_none());
        lead.enter(Phase::Draining);
        assert!(restraint.hold(1, &phase).now_or_never().is_some());
    }

    #[test]
    fn who_guesses_is_held_and_so_is_a_new_client_of_the_same_source() {
        let guesser = restraint(Rate::default());
        let fresh = |source: [u8; 4]| {
            let source = std::net::IpAddr::from(source).into();
            Restraint::new(source, Rate::default(), 1, &guesser.misses, &guesser.counters)
        };
        let (friend, other) = (fresh([192, 0, 2, 1]), fresh([192, 0, 2, 2]));
        let to = |id: usize| format!("n:1:{id}").parse::<Address>().unwrap();
        let missed = Outcome::Refused(Code::NoSuchClient);
        friend.ended(Outcome::Delivered, || None);
        for _ in 0..1000 {
            guesser.ended(missed, || Some(to(0)));
        }
        assert!(guesser.passes(1), "the same one again and again is no guess");
        for id in 1..50 {
            guesser.ended(missed, || Some(to(id)));
        }
        assert_eq!(count(&guesser, Counter::Misses), 50);
        assert!(!guesser.passes(1) && !fresh([192, 0, 2, 1]).passes(1));
        assert!(friend.passes(1) && other.passes(1));
    }

    #[tokio::test]
    async fn who_is_busy_is_not_idle() {
        let restraint = restraint(Rate::default());
        let limit = Duration::from_millis(200);
        let busy = async {
            for _ in 0..20 {
                sleep(limit / 10).await;
                restraint.busy();
            }
            Instant::now()
        };
        let idle = async {
            restraint.idle(limit).await;
            Instant::now()
        };
        let (busy, idle) = tokio::join!(busy, idle);
        assert!(idle >= busy + limit, "{:?}", idle.saturating_duration_since(busy));
        assert_eq!(count(&restraint, Counter::EndedIdle), 1);
    }
}
