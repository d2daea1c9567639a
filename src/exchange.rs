//! A delivery endpoint shared by those who put messages in, those who end messages, and the carrier that drives it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::timeout;

use crate::delivery::{Bounds, Control, Endpoint, RangeSet, Taken, Violation};
use crate::message::{Message, Tag};
use crate::outcome::{Code, Outcome};
use crate::pace::Pace;

/// A message as it arrives: one that can be passed on, or why it can't be.
pub(crate) type Incoming = Result<Message, Code>;

/// Messages that ended, by their tickets.
pub(crate) type Settled<T> = Vec<(T, Outcome)>;

/// So many ends are told at once, whoever waits for them.
const MOST_UNTOLD: u64 = 32;

/// More messages than these that wait to be transmitted are a backlog.
const BACKLOG: u64 = 1024;

/// How long a client gives way to a backlog before it is read from once more: its next line may be for somebody else.
const GIVE_WAY: Duration = Duration::from_millis(2);

/// The same for each of those who wait, where the next line is hardly for somebody else: about what a client's turn takes.
const TURN: Duration = Duration::from_micros(200);

/// And that is all.
const MOST_PATIENCE: Duration = Duration::from_millis(200);

/// An [`Endpoint`] behind a lock, with the wake-ups of its carrier. The lock is never held across anything that waits, or that
/// calls out, but for [`close_if_idle`](Exchange::close_if_idle).
#[derive(Debug)]
pub(crate) struct Exchange<T> {
    endpoint: Mutex<Endpoint<Message, T, Incoming>>,
    /// What the other side may have under way.
    incoming: Bounds,
    progress: Mutex<Progress>,
    /// There may be something to transmit.
    transmit: Notify,
    /// There may be a control frame to send.
    control: Notify,
    /// There may be one that can wait for company.
    unhurried: Notify,
    /// There may be room for more.
    room: Notify,
    /// There is no backlog any more.
    caught_up: Notify,
    /// How many wait for that.
    giving_way: AtomicU32,
    /// Nothing more will be said once all that is due is said.
    goodbye: AtomicBool,
}

/// How the oldest unsettled message gets on.
#[derive(Debug)]
struct Progress {
    /// When it became that.
    since: Instant,
    /// How long the other side was away since then, up to its present absence.
    away: Duration,
    /// Since when the other side is away.
    gone: Option<Instant>,
}

/// One of those who are counted here, for as long as it lives.
struct Waiting<'a> {
    count: &'a AtomicU32,
    /// How many there were with it.
    all: u32,
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        let all = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Self { count, all }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Progress {
    fn start(&mut self) {
        (self.since, self.away) = (Instant::now(), Duration::ZERO);
    }
}

impl<T> Exchange<T> {
    /// An exchange that keeps at most `outgoing` for the other side, and at most `incoming` from it.
    pub(crate) fn new(outgoing: Bounds, incoming: Bounds) -> Self {
        Self {
            endpoint: Mutex::new(Endpoint::new(outgoing, incoming)),
            incoming,
            progress: Mutex::new(Progress {
                since: Instant::now(),
                away: Duration::ZERO,
                gone: None,
            }),
            transmit: Notify::new(),
            control: Notify::new(),
            unhurried: Notify::new(),
            room: Notify::new(),
            caught_up: Notify::new(),
            giving_way: AtomicU32::new(0),
            goodbye: AtomicBool::new(false),
        }
    }

    /// Takes a message for the other side; gives it back when there is no room.
    pub(crate) fn submit(&self, now: Instant, message: Message, ticket: T) -> Result<(), (Message, T)> {
        let mut endpoint = self.endpoint.lock();
        if !endpoint.sender.has_room() {
            return Err((message, ticket));
        }
        if endpoint.sender.is_idle() {
            self.progress.lock().start();
        }
        let wake = !endpoint.sender.wants_transmit();
        let (conversation, size) = (message.conversation.key(), message.size());
        endpoint.sender.submit(now, conversation, size, message, ticket);
        drop(endpoint);
        if wake {
            self.transmit.notify_one();
        }
        Ok(())
    }

    /// Takes nothing any more if nothing is unsettled and `when` holds; says whether it is so. `when` is asked with the lock
    /// held: who holds a lock that it takes must not use the exchange.
    pub(crate) fn close_if_idle(&self, when: impl FnOnce() -> bool) -> bool {
        let mut endpoint = self.endpoint.lock();
        let closes = endpoint.sender.is_idle() && when();
        if closes {
            endpoint.sender.close();
        }
        closes
    }

    /// Whether there is a backlog of messages to be transmitted on the present connection.
    pub(crate) fn is_behind(&self) -> bool {
        self.endpoint.lock().sender.backlog() > BACKLOG
    }

    /// Waits while there is a backlog, but not for long. Those who wait go on in the order in which they came, as many as
    /// there is room for; who `is_patient` waits for the turns of all of them.
    ///
    /// What is not read from clients stands in the system's buffers, where it costs least: in the node thousands of
    /// messages would be touched again long after the processor's caches have lost them. Measured with 16 clients at full
    /// speed, an earlier form of this, together with headers that are copied into larger pieces of memory: 1.7 times as
    /// many messages a second. With 1,000 clients, and 200 ms in place of 2: 1.45 times (1.19 to 1.61); with 16 clients
    /// that is too long, 0.94.
    pub(crate) async fn catch_up(&self, is_patient: bool) {
        if !self.is_behind() {
            return;
        }
        let waiting = Waiting::new(&self.giving_way);
        let patience = if is_patient { TURN * waiting.all } else { GIVE_WAY };
        let patience = patience.clamp(GIVE_WAY, MOST_PATIENCE);
        let is_called = timeout(patience, self.caught_up.notified()).await.is_ok();
        drop(waiting);
        // One after the other: all at once would make a backlog at once. Who is called goes on in any case: to wait once more
        // would be to wait behind all others.
        if is_called && !self.is_behind() {
            self.caught_up.notify_one();
        }
    }

    /// Waits until there may be room. The waiting starts at this call, before the future is polled, so: call, try once
    /// more, then await.
    pub(crate) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Messages that were taken have ended.
    pub(crate) fn finish(&self, ends: &[(Tag, Outcome)]) {
        let mut endpoint = self.endpoint.lock();
        let (mut any, mut prompt) = (false, false);
        for (tag, outcome) in ends {
            if endpoint.receiver.finish(tag.incarnation, tag.number, *outcome) {
                any = true;
                prompt |= tag.prompt || *outcome != Outcome::Delivered;
            }
        }
        prompt |= endpoint.receiver.untold() >= MOST_UNTOLD;
        drop(endpoint);
        if prompt {
            self.control.notify_one();
        } else if any {
            self.unhurried.notify_one();
        }
    }

    /// A message has arrived whole. What can be passed on now is added to `taken`; gives the incarnation of the other side
    /// that its numbers belong to.
    pub(crate) fn message(
        &self,
        number: u64,
        after: u64,
        message: Incoming,
        taken: &mut Vec<Taken<Incoming>>,
    ) -> Result<u32, Violation> {
        let size = message.as_ref().map_or(0, Message::size);
        let mut endpoint = self.endpoint.lock();
        endpoint.receiver.message(number, after, size, message, taken)?;
        Ok(endpoint.receiver.incarnation())
    }

    /// A control frame has come; gives the messages that ended by it.
    pub(crate) fn control(&self, control: Control) -> Result<Settled<T>, Violation> {
        let mut endpoint = self.endpoint.lock();
        let oldest = endpoint.sender.oldest();
        endpoint.control(control)?;
        let moved = endpoint.sender.oldest() != oldest;
        let settled = endpoint.sender.drain_settled();
        let wants_transmit = endpoint.sender.wants_transmit();
        let wants_confirm = endpoint.sender.wants_confirm();
        drop(endpoint);
        if wants_confirm {
            self.control.notify_one();
        }
        if wants_transmit {
            self.transmit.notify_one();
        }
        if moved {
            self.progress.lock().start();
        }
        if !settled.is_empty() {
            self.room.notify_waiters();
        }
        Ok(settled)
    }

    /// A new connection is there.
    pub(crate) fn connected(&self) {
        self.endpoint.lock().connected();
        self.control.notify_one();
    }

    /// A new connection is there, and what each side has taken was said in the greeting: the other side this.
    pub(crate) fn connected_knowing(&self, taken: &RangeSet) -> Result<(), Violation> {
        let mut endpoint = self.endpoint.lock();
        endpoint.connected();
        // It would be the `Sync` of this side.
        endpoint.poll_control(false);
        endpoint.control(Control::Sync(taken.clone()))?;
        let wants_transmit = endpoint.sender.wants_transmit();
        drop(endpoint);
        {
            let mut progress = self.progress.lock();
            if let Some(gone) = progress.gone.take() {
                progress.away += gone.elapsed();
            }
        }
        if wants_transmit {
            self.transmit.notify_one();
        }
        // Ends that the other side may not know are told again.
        self.control.notify_one();
        Ok(())
    }

    /// There will be one connection and no other: what is told on it need not be kept.
    pub(crate) fn tell_once(&self) {
        self.endpoint.lock().receiver.tell_once();
    }

    /// What was taken, to be said in the greeting of the next connection.
    pub(crate) fn taken(&self) -> RangeSet {
        self.endpoint.lock().receiver.taken().clone()
    }

    /// The connection is gone; the other side was last heard of at `heard`.
    pub(crate) fn disconnected(&self, heard: Instant) {
        self.endpoint.lock().disconnected(heard);
        self.progress.lock().gone.get_or_insert_with(Instant::now);
        // Who waits for room is to see that there may be none for long; and there is no backlog of a connection that is gone.
        self.room.notify_waiters();
        self.caught_up.notify_one();
    }

    /// The other side is another process than before; messages not sent yet for which `keep` does not hold end.
    pub(crate) fn peer_restarted(&self, keep: impl Fn(&Message) -> bool) -> Settled<T> {
        self.ending(|endpoint| endpoint.peer_restarted(keep))
    }

    /// Ends what has waited longer than `wait` for the other side.
    pub(crate) fn expire(&self, wait: Duration) -> Settled<T> {
        self.ending(|endpoint| {
            endpoint.expire(Instant::now(), wait);
        })
    }

    /// Ends everything that is unsettled, for this reason.
    pub(crate) fn give_up(&self, code: Code) -> Settled<T> {
        self.ending(|endpoint| endpoint.sender.give_up(code))
    }

    /// Changes what may be kept for the other side.
    pub(crate) fn set_bounds(&self, bounds: Bounds) {
        self.endpoint.lock().sender.set_bounds(bounds);
    }

    /// What the other side may have under way.
    pub(crate) fn incoming(&self) -> Bounds {
        self.incoming
    }

    /// Whether nothing is unsettled in the direction from here.
    pub(crate) fn is_idle(&self) -> bool {
        self.endpoint.lock().sender.is_idle()
    }

    /// Whether the other side has confirmed the ends of all that it sent and that has ended.
    pub(crate) fn all_is_confirmed(&self) -> bool {
        self.endpoint.lock().receiver.all_is_confirmed()
    }

    /// Has the carrier say goodbye, behind all that is due.
    pub(crate) fn say_goodbye(&self) {
        self.goodbye.store(true, Ordering::Release);
        self.control.notify_one();
    }

    /// For the carrier: whether a goodbye is due. It is told once.
    pub(crate) fn says_goodbye(&self) -> bool {
        self.goodbye.swap(false, Ordering::AcqRel)
    }

    /// For the carrier: something of its own is to be sent on the control stream.
    pub(crate) fn wake_control(&self) {
        self.control.notify_one();
    }

    /// Waits until the other side has left the oldest unsettled message without an end for longer than `pace` allows for
    /// it: bytes of it that get through one by one do not count. While it was away it could not end it, but for no longer
    /// than `grace` in all: who keeps coming back must get on, too.
    pub(crate) async fn stalled(&self, pace: Pace, grace: Duration) {
        loop {
            // In this order: a first message that comes in between has not waited yet.
            let oldest = self.endpoint.lock().sender.oldest_size();
            let deadline = {
                let progress = self.progress.lock();
                let since = oldest.map_or_else(Instant::now, |_| progress.since);
                since + pace.allows(oldest.unwrap_or_default()) + progress.away.min(grace)
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline.into()).await;
        }
    }

    /// For the carrier: waits until there may be something to transmit. Cancel safe.
    pub(crate) async fn transmit_ready(&self) {
        self.transmit.notified().await;
    }

    /// For the carrier: waits until there may be a control frame to send. Cancel safe.
    pub(crate) async fn control_ready(&self) {
        self.control.notified().await;
    }

    /// For the carrier: waits until there may be a control frame that can wait for others. Cancel safe.
    pub(crate) async fn unhurried(&self) {
        self.unhurried.notified().await;
    }

    /// For the carrier: hands over what is to be transmitted, message by message, until there is no more or `sink` has
    /// had enough (and says so with `false`). The lock is held meanwhile.
    pub(crate) fn transmit(&self, mut sink: impl FnMut(u64, u64, &Message) -> bool) {
        let mut endpoint = self.endpoint.lock();
        while let Some(transmit) = endpoint.sender.poll_transmit() {
            if !sink(transmit.number, transmit.after, transmit.message) {
                break;
            }
        }
        let is_behind = endpoint.sender.backlog() > BACKLOG;
        drop(endpoint);
        if !is_behind {
            self.caught_up.notify_one();
        }
    }

    /// For the carrier: hands over the control frames that are due. `eager`: those that could wait for company, too.
    pub(crate) fn controls(&self, eager: bool, mut sink: impl FnMut(Control)) {
        let mut endpoint = self.endpoint.lock();
        while let Some(control) = endpoint.poll_control(eager) {
            sink(control);
        }
    }

    fn ending(&self, end: impl FnOnce(&mut Endpoint<Message, T, Incoming>)) -> Settled<T> {
        let mut endpoint = self.endpoint.lock();
        end(&mut endpoint);
        let settled = endpoint.sender.drain_settled();
        drop(endpoint);
        if !settled.is_empty() {
            self.room.notify_waiters();
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Report;
    use futures_util::FutureExt;

    fn message() -> Message {
        Message::example("n:1:a", "n:2:b", "x")
    }

    #[test]
    fn who_waits_for_room_is_woken_when_the_connection_is_lost() {
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        let exchange = Exchange::new(bounds, bounds);
        exchange.connected_knowing(&RangeSet::new()).unwrap();
        exchange.submit(Instant::now(), message(), 1).unwrap();
        assert!(exchange.submit(Instant::now(), message(), 2).is_err());
        let room = exchange.room();
        exchange.disconnected(Instant::now());
        assert!(room.now_or_never().is_some());
    }

    #[tokio::test]
    async fn coming_back_is_no_progress() {
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        let (stall, grace) = (Duration::from_millis(50), Duration::from_millis(30));
        let exchange = Exchange::new(bounds, bounds);
        exchange.connected_knowing(&RangeSet::new()).unwrap();
        exchange.submit(Instant::now(), message(), 1).unwrap();
        let submitted = Instant::now();
        let pace = Pace {
            time: stall,
            rate: u32::MAX,
        };
        while exchange.stalled(pace, grace).now_or_never().is_none() {
            // Away all the time: of that no more counts than the grace.
            exchange.disconnected(Instant::now());
            exchange.connected_knowing(&RangeSet::new()).unwrap();
            assert!(submitted.elapsed() < 100 * stall, "it never stalls");
            std::thread::yield_now();
        }
        assert!(submitted.elapsed() >= stall);
    }

    #[tokio::test]
    async fn a_large_message_has_longer_to_be_taken_than_a_small_one() {
        let bounds = Bounds {
            messages: 2,
            bytes: 1_000_000,
        };
        let pace = Pace {
            time: Duration::from_millis(20),
            rate: 100_000,
        };
        for (length, allowed) in [(0, 22), (10_000, 122)] {
            let exchange = Exchange::new(bounds, bounds);
            exchange.connected_knowing(&RangeSet::new()).unwrap();
            let mut message = message();
            message.body = vec![b'x'; length].into();
            let submitted = Instant::now();
            exchange.submit(submitted, message, 1).unwrap();
            while exchange.stalled(pace, Duration::ZERO).now_or_never().is_none() {
                assert!(submitted.elapsed() < Duration::from_secs(20), "it never stalls");
                std::thread::yield_now();
            }
            assert!(submitted.elapsed() >= Duration::from_millis(allowed), "{length}");
        }
    }

    #[test]
    fn a_confirmation_that_is_due_wakes_the_carrier() {
        let bounds = Bounds {
            messages: 100,
            bytes: 100_000,
        };
        let exchange = Exchange::new(bounds, bounds);
        exchange.connected_knowing(&RangeSet::new()).unwrap();
        exchange.control_ready().now_or_never();
        for ticket in 0..10 {
            exchange.submit(Instant::now(), message(), ticket).unwrap();
        }
        exchange.transmit(|_, _, _| true);
        assert!(exchange.control_ready().now_or_never().is_none());
        let report = Report {
            delivered: vec![(1, 10)],
            failed: Vec::new(),
        };
        assert_eq!(exchange.control(Control::Report(report)).unwrap().len(), 10);
        assert!(exchange.control_ready().now_or_never().is_some());
    }

    /// An exchange with a backlog.
    fn behind() -> Exchange<u64> {
        let bounds = Bounds {
            messages: 1_000_000,
            bytes: 1 << 40,
        };
        let exchange = Exchange::new(bounds, bounds);
        exchange.connected_knowing(&RangeSet::new()).unwrap();
        for ticket in 0..=BACKLOG {
            exchange.submit(Instant::now(), message(), ticket).unwrap();
        }
        exchange
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_way_to_a_backlog_is_called_in_turn_once_there_is_none() {
        let exchange = behind();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(exchange.catch_up(true))).collect();
        for waits in &mut waiting {
            assert!(futures_util::poll!(waits).is_pending());
        }
        exchange.transmit(|_, _, _| true);
        // Each calls the next, while there is no backlog.
        let [first, second, third] = &mut waiting[..] else {
            unreachable!()
        };
        assert!(futures_util::poll!(&mut *third).is_pending() && futures_util::poll!(&mut *second).is_pending());
        assert!(futures_util::poll!(&mut *first).is_ready() && futures_util::poll!(&mut *third).is_pending());
        for ticket in 0..=BACKLOG {
            exchange.submit(Instant::now(), message(), ticket).unwrap();
        }
        // The one that is called goes on whatever has come meanwhile, and calls nobody.
        assert!(futures_util::poll!(&mut *second).is_ready() && futures_util::poll!(&mut *third).is_pending());
        assert_eq!(exchange.giving_way.load(Ordering::Relaxed), 1);
        drop(waiting);
        assert_eq!(exchange.giving_way.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_make_others_wait_gives_way_for_a_moment_and_who_does_not_for_the_turns_of_all() {
        let exchange = behind();
        let begun = tokio::time::Instant::now();
        exchange.catch_up(false).await;
        assert!((GIVE_WAY..2 * GIVE_WAY).contains(&begun.elapsed()));
        let alone = |_| async {
            exchange.catch_up(true).await;
            begun.elapsed()
        };
        for clients in [1_u32, 100, 2_000] {
            let begun = begun.elapsed();
            let all = futures_util::future::join_all((0..clients).map(alone)).await;
            let longest = all.into_iter().max().unwrap().saturating_sub(begun);
            let due = (TURN * clients).clamp(GIVE_WAY, MOST_PATIENCE);
            assert!(
                (due..due + Duration::from_millis(2)).contains(&longest),
                "{clients}: {longest:?}"
            );
        }
    }
}
