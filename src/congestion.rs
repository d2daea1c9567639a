//! How much may be in flight on a connection: a congestion controller for many small messages over paths that lose
//! packets at random, and that others share.
//!
//! It takes a loss for what it mostly is on such paths, chance, and rests on a model of the path in place of it, as BBR
//! does (Cardwell et al., draft-ietf-ccwg-bbr; the rate of delivery as in draft-cheng-iccrg-delivery-rate-estimation):
//! the rate at which acknowledgements come back, and the least round trip. What may be in flight is what the two say
//! the path holds. A little more is tried for one round in eight, and the queue that it left is drained in the next.
//!
//! Why not a controller of quinn 0.11: Cubic and NewReno take each loss for congestion. Its BBR never lowers an estimate
//! of the rate, opens its window without end while it starts, and makes a new connection that has much to send wait for
//! 0.2 s (`docs/congestion.md` has the figures).
//!
//! [`Model`] is pure. quinn-proto asks a controller for a window only, and paces by 1.25 windows a round trip.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes in flight before the path is known, and again after an outage. The same as of quinn's BBR: 200 packets.
pub(crate) const INITIAL_WINDOW: u64 = 200 * 1200;

/// The least window, in packets: what quinn-proto's pacer lets go at once. Half as much while the path is emptied.
const LEAST_PACKETS: u64 = 10;

/// Round trip that is allowed for beside the least one: acknowledgements are late by as much when they are gathered and
/// hosts are busy. It is the queue that one connection leaves standing on a path it fills, too. Where more than that is
/// acknowledged at one time, round after round, that much is allowed for.
const SLACK: Duration = Duration::from_millis(10);

/// How much more is in flight in each round while the path is not known: 2 / ln 2, enough to double the rate.
const STARTUP_GAIN: f64 = 2.885;

/// The path is known when the rate grew by less than this for so many rounds.
const GROWTH: f64 = 1.25;
const ROUNDS_WITHOUT_GROWTH: u32 = 3;

/// Or when a packet took so many times as long as a round trip may: what is sent stands in a queue.
const QUEUED: u32 = 2;

/// What share of what the path holds is in flight, round by round.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

/// The rate is the highest of the last time: more round trips than a cycle has, and more than a few rounds, as a round
/// takes as long as the queue is.
const RATE_TRIPS: u32 = 10;
const RATE_ROUNDS: u64 = 4;

/// The least round trip is that of so long; and a path that was filled for so long is emptied for a round, to see it. So
/// is one on which all rounds take longer for a while than the least round trip and two queues explain.
const LEAST_TRIP_AGE: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_GAIN: f64 = 0.5;

/// Rounds in which more than this share was lost, of at least so many packets, were no bad luck: the window shrinks. Of
/// 100 packets, losses of 5 % by chance take as many less than once in 10,000 times; of 20, once in 60.
const HEAVY_LOSS: f64 = 0.15;
const HEAVY_LOSS_PACKETS: u64 = 100;
const SHRINK: f64 = 0.7;

/// It may grow again when losses were not heavy for so many rounds: it is too large most likely for a queue that is short,
/// and each time that this is tried costs packets.
const CALM: u64 = 16;

/// The state of the path when a packet was sent.
#[derive(Debug, Clone, Copy)]
struct Mark {
    sent_at: Instant,
    /// What was delivered by then, and when the last of it was.
    delivered: u64,
    delivered_at: Instant,
    /// When the packet was sent that was acknowledged last.
    acked_sent_at: Instant,
    app_limited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The rate is not known.
    Startup,
    /// It is, and now and then more is tried: the place in the cycle, and when it began.
    Cruise { step: usize, since: Instant },
    /// The path is emptied to see its least round trip: until this round, once little enough is in flight.
    Empty { until: Option<u64> },
}

/// The highest value of the last time.
#[derive(Debug, Clone, Default)]
struct Highest(VecDeque<(u64, Instant, f64)>);

impl Highest {
    fn add(&mut self, round: u64, now: Instant, age: Duration, value: f64) {
        while self.0.back().is_some_and(|&(.., other)| other <= value) {
            self.0.pop_back();
        }
        self.0.push_back((round, now, value));
        while self
            .0
            .front()
            .is_some_and(|&(of, at, _)| of + RATE_ROUNDS < round && at + age < now)
        {
            self.0.pop_front();
        }
    }

    fn get(&self) -> f64 {
        self.0.front().map_or(0.0, |&(.., value)| value)
    }
}

/// What is known of a path, and what may be in flight on it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    mtu: u64,
    window: u64,
    phase: Phase,
    /// Bytes acknowledged so far, and when the last were.
    delivered: u64,
    delivered_at: Instant,
    /// When the packet was sent that was acknowledged last.
    acked_sent_at: Instant,
    marks: VecDeque<Mark>,
    /// Nothing is in flight: the next packet begins anew.
    idle: bool,
    /// There was nothing more to send while what is delivered up to this was on its way.
    limited_until: Option<u64>,
    /// Since when there always was.
    busy_since: Option<Instant>,
    /// In bytes a second.
    rate: Highest,
    round: u64,
    /// The round ends when a packet is acknowledged that was sent when this much was delivered.
    round_end: u64,
    /// The least round trip of the present half of [`LEAST_TRIP_AGE`], and of the one before.
    trips: [Option<Duration>; 2],
    trips_since: Instant,
    /// The rate that the next rounds are measured by at the start, and how many were not above it.
    start_rate: f64,
    start_rounds: u32,
    /// Of the acknowledgements being taken in: bytes, and the newest packet.
    batch: u64,
    batch_sent_at: Option<Instant>,
    /// The least trip of the present round.
    round_trip: Option<Duration>,
    /// Bytes acknowledged at one time: now, at most in the present round, and at most in each of the rounds before.
    clump: u64,
    round_clump: u64,
    clumps: u64,
    /// How many rounds in a row took longer than the least round trip explains.
    long_rounds: u64,
    /// Bytes since losses were last judged.
    judged_acked: u64,
    judged_lost: u64,
    /// After heavy losses: the most that may be in flight.
    ceiling: Option<u64>,
    /// Rounds since losses were heavy.
    calm: u64,
}

impl Model {
    /// Nothing is known of the path.
    pub(crate) fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            window: INITIAL_WINDOW,
            phase: Phase::Startup,
            delivered: 0,
            delivered_at: now,
            acked_sent_at: now,
            marks: VecDeque::new(),
            idle: true,
            limited_until: None,
            busy_since: None,
            rate: Highest::default(),
            round: 0,
            round_end: 0,
            trips: [None; 2],
            trips_since: now,
            start_rate: 0.0,
            start_rounds: 0,
            batch: 0,
            batch_sent_at: None,
            round_trip: None,
            clump: 0,
            round_clump: 0,
            clumps: 0,
            long_rounds: 0,
            judged_acked: 0,
            judged_lost: 0,
            ceiling: None,
            calm: 1,
        }
    }

    /// Bytes that may be in flight.
    pub(crate) fn allowed(&self) -> u64 {
        self.window
    }

    /// Packets are as large as this now.
    pub(crate) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.into();
        self.window = self.window.max(self.least());
    }

    /// A packet was sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        if std::mem::take(&mut self.idle) {
            (self.delivered_at, self.acked_sent_at) = (now, now);
        }
        // Some marks a round trip are enough, and one for each acknowledgement: between two of them the earlier one holds.
        let apart = self.least_trip().unwrap_or_default() / 64;
        if let Some(mark) = self.marks.back()
            && (now < mark.sent_at + apart || self.delivered_at == mark.delivered_at)
        {
            return;
        }
        self.marks.push_back(Mark {
            sent_at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            acked_sent_at: self.acked_sent_at,
            app_limited: self.app_limited(),
        });
    }

    /// A packet of so many bytes that was sent at `sent_at` was acknowledged.
    pub(crate) fn acked(&mut self, now: Instant, sent_at: Instant, bytes: u64) {
        self.batch += bytes;
        self.batch_sent_at = self.batch_sent_at.max(Some(sent_at));
        let trip = now.saturating_duration_since(sent_at);
        if self.least_trip().is_some_and(|least| trip <= least) {
            // Somebody has emptied the path: all who see it do so again at one time, or it would not be empty.
            self.busy_since = None;
        }
        let [present, _] = &mut self.trips;
        for least in [present, &mut self.round_trip] {
            *least = Some(least.map_or(trip, |least| least.min(trip)));
        }
    }

    /// Packets were lost: in all this many bytes.
    pub(crate) fn lost(&mut self, bytes: u64) {
        self.judged_lost += bytes;
    }

    /// Nothing came through for long: whatever is there afterwards may be another path.
    pub(crate) fn outage(&mut self, now: Instant) {
        *self = Self {
            delivered: self.delivered,
            round_end: self.delivered,
            ..Self::new(now, u16::try_from(self.mtu).unwrap_or(u16::MAX))
        };
    }

    /// All acknowledgements that came together were told. `app_limited`: before, there was nothing more to send.
    pub(crate) fn end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool) {
        self.busy_since = if app_limited {
            None
        } else {
            self.busy_since.or(Some(now))
        };
        self.idle = in_flight == 0;
        let acked = std::mem::take(&mut self.batch);
        let Some(sent_at) = self.batch_sent_at.take() else {
            return;
        };
        if now.saturating_duration_since(self.trips_since) > LEAST_TRIP_AGE / 2 {
            let [present, _] = self.trips;
            self.trips = [None, present];
            self.trips_since = now;
        }
        self.clump = acked + if now == self.delivered_at { self.clump } else { 0 };
        self.round_clump = self.round_clump.max(self.clump);
        self.judged_acked += acked;
        self.delivered += acked;
        self.delivered_at = now;
        if app_limited {
            self.limited_until = Some(self.delivered + in_flight);
        }
        let round_over = self.measure(now, sent_at);
        self.acked_sent_at = self.acked_sent_at.max(sent_at);
        self.advance(
            now,
            now.saturating_duration_since(sent_at),
            in_flight,
            acked,
            round_over,
        );
        if round_over {
            self.judge_losses();
            self.round_trip = None;
            // A host that was busy once is no reason to have more in flight.
            let clump = std::mem::take(&mut self.round_clump);
            self.clumps = clump.min(self.clumps + clump.saturating_sub(self.clumps) / 4);
        }
        self.set_window(acked);
    }

    /// Takes a sample of the rate. Says whether a round is over.
    fn measure(&mut self, now: Instant, sent_at: Instant) -> bool {
        let mark = self
            .marks
            .partition_point(|mark| mark.sent_at <= sent_at)
            .saturating_sub(1);
        self.marks.drain(..mark);
        let Some(&mark) = self.marks.front() else {
            return false;
        };
        let round_over = mark.delivered >= self.round_end;
        if round_over {
            self.round += 1;
            self.round_end = self.delivered;
        }
        // The longer of the two: neither what was sent in a burst nor what was acknowledged in one tells of the path.
        let sending = sent_at.saturating_duration_since(mark.acked_sent_at);
        let arriving = now.saturating_duration_since(mark.delivered_at);
        let interval = sending.max(arriving);
        if interval.is_zero() || self.least_trip().is_some_and(|least| interval < least) {
            return round_over;
        }
        let rate = (self.delivered - mark.delivered) as f64 / interval.as_secs_f64();
        if !mark.app_limited || rate > self.rate.get() {
            self.rate.add(self.round, now, RATE_TRIPS * self.trip(), rate);
        }
        round_over
    }

    fn judge_losses(&mut self) {
        self.calm += 1;
        let (acked, lost) = (self.judged_acked, self.judged_lost);
        if acked + lost >= HEAVY_LOSS_PACKETS * self.mtu {
            (self.judged_acked, self.judged_lost) = (0, 0);
            // In the round after it shrank, what was sent before is still being lost.
            if lost as f64 > HEAVY_LOSS * (acked + lost) as f64 && self.calm > 1 {
                let window = self.window.max(self.held(1.0)).min(self.ceiling.unwrap_or(u64::MAX));
                self.ceiling = Some(((window as f64 * SHRINK) as u64).max(self.least()));
                self.calm = 0;
            }
        }
        if self.calm > CALM {
            let ceiling = self.ceiling.map(|ceiling| (ceiling as f64 * GROWTH) as u64);
            self.ceiling = ceiling.filter(|ceiling| *ceiling < self.held(1.0));
        }
    }

    /// Goes on from phase to phase.
    fn advance(&mut self, now: Instant, trip: Duration, in_flight: u64, acked: u64, round_over: bool) {
        match self.phase {
            Phase::Startup => {
                if round_over {
                    if self.app_limited() {
                        self.start_rounds = 0;
                    } else if self.rate.get() >= self.start_rate * GROWTH {
                        self.start_rate = self.rate.get();
                        self.start_rounds = 0;
                    } else {
                        self.start_rounds += 1;
                    }
                }
                let queued = !self.app_limited() && trip > QUEUED * self.trip();
                if queued || self.start_rounds >= ROUNDS_WITHOUT_GROWTH || self.ceiling.is_some() {
                    // With the step that drains what the start has put into the queue.
                    self.phase = Phase::Cruise { step: 1, since: now };
                }
            }
            Phase::Cruise { step, since } => {
                if round_over {
                    self.long_rounds = if self.far() { self.long_rounds + 1 } else { 0 };
                }
                let busy = self
                    .busy_since
                    .is_some_and(|since| now.saturating_duration_since(since) > PROBE_EVERY);
                if busy || self.long_rounds > RATE_ROUNDS && !self.app_limited() {
                    self.phase = Phase::Empty { until: None };
                    return;
                }
                let gain = CYCLE.get(step).copied().unwrap_or(1.0);
                let over = if gain < 1.0 {
                    in_flight <= self.held(1.0).max(self.least())
                } else {
                    // More is tried until it is in flight, or the estimate would not see it.
                    let tried = gain == 1.0 || self.app_limited() || in_flight + acked + 2 * self.mtu >= self.window;
                    tried && now.saturating_duration_since(since) > self.trip()
                };
                if over {
                    let step = (step + 1) % CYCLE.len();
                    self.phase = Phase::Cruise { step, since: now };
                }
            }
            Phase::Empty { until: None } => {
                if in_flight <= self.window {
                    // What comes back in the next round but one was sent when the queue was gone.
                    self.phase = Phase::Empty {
                        until: Some(self.round + 2),
                    };
                }
            }
            Phase::Empty { until: Some(until) } => {
                if self.round >= until {
                    self.busy_since = None;
                    self.long_rounds = 0;
                    // Those who emptied it together try more one by one.
                    let step = 2 + (self.delivered / self.mtu % 6) as usize;
                    self.phase = Phase::Cruise { step, since: now };
                    if self.far() {
                        // No queue of this connection is left to explain it: the path is a longer one.
                        self.trips = [self.round_trip, None];
                        self.trips_since = now;
                    }
                }
            }
        }
    }

    fn set_window(&mut self, acked: u64) {
        let window = match self.phase {
            // Not more than is used: a window that nothing tries is worth nothing.
            Phase::Startup if self.app_limited() => self.window,
            Phase::Startup => (self.window + acked).min(self.held(STARTUP_GAIN).max(INITIAL_WINDOW)),
            Phase::Cruise { step, .. } => self.held(CYCLE.get(step).copied().unwrap_or(1.0)),
            Phase::Empty { .. } => self.held(PROBE_GAIN),
        };
        self.window = window.min(self.ceiling.unwrap_or(u64::MAX)).max(self.least());
    }

    /// What was sent last tells of who sends, not of the path.
    fn app_limited(&self) -> bool {
        self.limited_until.is_some_and(|until| self.delivered <= until)
    }

    /// What the path holds, times `gain`, in bytes.
    fn held(&self, gain: f64) -> u64 {
        let late = (self.rate.get() * SLACK.as_secs_f64()).max(self.clumps as f64);
        let path = self.rate.get() * self.least_trip().unwrap_or_default().as_secs_f64();
        ((path + late) * gain) as u64
    }

    /// The present round takes longer than the least round trip and a queue that is meant to be there explain.
    fn far(&self) -> bool {
        self.round_trip.is_some_and(|trip| trip > self.trip() + SLACK)
    }

    /// How long a round trip may take.
    fn trip(&self) -> Duration {
        self.least_trip().unwrap_or_default() + SLACK
    }

    fn least(&self) -> u64 {
        let packets = match self.phase {
            Phase::Empty { .. } => LEAST_PACKETS / 2,
            Phase::Startup | Phase::Cruise { .. } => LEAST_PACKETS,
        };
        packets * self.mtu
    }

    fn least_trip(&self) -> Option<Duration> {
        self.trips.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PACKET: u64 = 1200;

    /// A connection that sends over the path.
    struct Flow {
        model: Model,
        in_flight: u64,
        /// Bytes it may send at once by quinn-proto's pacing, and since when those are counted.
        tokens: f64,
        trip: Duration,
        /// When it begins, and bytes a second that it has to send; `None`: as much as goes.
        begins: Duration,
        demand: Option<f64>,
        /// What it has to send comes so often.
        burst: Duration,
        /// How much longer its round trips are than those of others.
        farther: Duration,
        offered: f64,
        sent: u64,
        delivered: u64,
        lost: u64,
        /// Of packets that came through in the time that is looked at: the longest trip.
        slowest: Duration,
    }

    /// What comes back: when, the flow, when it was sent, whether it was lost.
    type Back = Reverse<(Duration, u64, usize, Duration, bool)>;

    /// A path with one queue, and what is sent over it, in steps of 0.1 ms.
    struct Path {
        rate: f64,
        delay: Duration,
        queue: f64,
        loss: f64,
        /// What comes back comes gathered: every so often.
        gather: Duration,
        /// Drops what is beyond this many bytes a second and in a burst, and how much is left of that.
        policer: Option<(f64, f64)>,
        allowance: f64,
        /// Nothing comes through until then.
        dark_until: Duration,
        free_at: Duration,
        now: Duration,
        start: Instant,
        back: BinaryHeap<Back>,
        count: u64,
        chance: SmallRng,
        flows: Vec<Flow>,
    }

    impl Path {
        fn new(megabits: f64, delay: Duration) -> Self {
            Self {
                rate: megabits * 1e6 / 8.0,
                delay,
                queue: f64::INFINITY,
                loss: 0.0,
                gather: Duration::ZERO,
                policer: None,
                allowance: 0.0,
                dark_until: Duration::ZERO,
                free_at: Duration::ZERO,
                now: Duration::ZERO,
                start: Instant::now(),
                back: BinaryHeap::new(),
                count: 0,
                chance: SmallRng::seed_from_u64(1),
                flows: Vec::new(),
            }
        }

        fn with_flow(mut self, begins: Duration, demand_megabits: Option<f64>) -> Self {
            self.flows.push(Flow {
                model: Model::new(self.start, PACKET as u16),
                in_flight: 0,
                tokens: 0.0,
                trip: 2 * self.delay,
                begins,
                demand: demand_megabits.map(|megabits| megabits * 1e6 / 8.0),
                burst: Duration::ZERO,
                farther: Duration::ZERO,
                offered: 0.0,
                sent: 0,
                delivered: 0,
                lost: 0,
                slowest: Duration::ZERO,
            });
            self
        }

        /// Goes on for some time; gives how many megabits a second each flow got through.
        fn run(&mut self, time: Duration) -> Vec<f64> {
            let until = self.now + time;
            for flow in &mut self.flows {
                (flow.delivered, flow.lost, flow.slowest) = (0, 0, Duration::ZERO);
            }
            while self.now < until {
                self.now += MS / 10;
                if let Some((rate, burst)) = self.policer {
                    self.allowance = (self.allowance + rate * 1e-4).min(burst);
                }
                self.take_back();
                for flow in 0..self.flows.len() {
                    self.send(flow);
                }
            }
            let megabits = |flow: &Flow| flow.delivered as f64 * 8.0 / 1e6 / time.as_secs_f64();
            self.flows.iter().map(megabits).collect()
        }

        fn take_back(&mut self) {
            let mut touched = vec![(false, 0); self.flows.len()];
            while let Some(&Reverse((at, _, index, sent_at, lost))) = self.back.peek()
                && at <= self.now
            {
                self.back.pop();
                let flow = &mut self.flows[index];
                if lost {
                    touched[index].1 += PACKET;
                } else {
                    touched[index].0 = true;
                    flow.in_flight -= PACKET;
                    flow.delivered += PACKET;
                    flow.slowest = flow.slowest.max(self.now - sent_at);
                    flow.trip = (flow.trip * 7 + (self.now - sent_at)) / 8;
                    flow.model.acked(self.start + self.now, self.start + sent_at, PACKET);
                }
            }
            for (flow, (acked, lost)) in self.flows.iter_mut().zip(touched) {
                if acked {
                    let limited = flow.demand.is_some() && flow.sent as f64 + PACKET as f64 > flow.offered;
                    flow.model.end_acks(self.start + self.now, flow.in_flight, limited);
                }
                // quinn-proto tells of losses after the acknowledgements that showed them.
                if lost > 0 {
                    flow.model.lost(lost);
                    flow.lost += lost;
                    flow.in_flight -= lost;
                    flow.sent -= lost;
                }
            }
        }

        fn send(&mut self, index: usize) {
            let flow = &mut self.flows[index];
            if self.now < flow.begins {
                return;
            }
            let step = 1e-4;
            let step_begins = self.now - MS / 10;
            if flow.burst.is_zero() {
                flow.offered += flow.demand.unwrap_or_default() * step;
            } else if self.now.as_micros() / flow.burst.as_micros() != step_begins.as_micros() / flow.burst.as_micros()
            {
                flow.offered += flow.demand.unwrap_or_default() * flow.burst.as_secs_f64();
            }
            let pace = 1.25 * flow.model.window as f64 / flow.trip.as_secs_f64();
            flow.tokens = (flow.tokens + pace * step).min(10.0 * PACKET as f64 + pace * step);
            while flow.in_flight + PACKET <= flow.model.window
                && flow.tokens >= PACKET as f64
                && (flow.demand.is_none() || flow.sent as f64 + PACKET as f64 <= flow.offered)
            {
                flow.tokens -= PACKET as f64;
                flow.sent += PACKET;
                flow.in_flight += PACKET;
                flow.model.sent(self.start + self.now);
                let wait = self.free_at.saturating_sub(self.now);
                let full = wait.as_secs_f64() * self.rate > self.queue
                    || self.policer.is_some() && self.allowance < PACKET as f64;
                self.allowance -= if full { 0.0 } else { PACKET as f64 };
                let dark = self.now < self.dark_until;
                let full = full || dark;
                let mut through = self.now + wait;
                if !full {
                    through += Duration::from_secs_f64(PACKET as f64 / self.rate);
                    self.free_at = through;
                }
                let lost = full || self.chance.random::<f64>() < self.loss;
                let mut at = through + 2 * self.delay + flow.farther;
                if dark {
                    at = self.dark_until + 2 * self.delay + flow.farther;
                }
                if !self.gather.is_zero() {
                    let rest = at.as_nanos() % self.gather.as_nanos();
                    at += self.gather - Duration::from_nanos(rest as u64);
                }
                self.count += 1;
                self.back.push(Reverse((at, self.count, index, self.now, lost)));
            }
        }
    }

    #[test]
    fn a_path_is_filled_and_its_queue_stays_short() {
        for megabits in [2.0, 20.0, 200.0] {
            let mut path = Path::new(megabits, 10 * MS).with_flow(Duration::ZERO, None);
            // On the narrowest, the first window alone takes a second.
            path.run(Duration::from_secs(5));
            let got = path.run(Duration::from_secs(20))[0];
            assert!(got > 0.9 * megabits, "{got} of {megabits}");
            let slowest = path.flows[0].slowest;
            assert!(slowest < 65 * MS, "{slowest:?} at {megabits}");
        }
    }

    #[test]
    fn loss_by_chance_costs_what_is_lost() {
        for loss in [0.01, 0.05, 0.1] {
            let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
            path.loss = loss;
            path.run(Duration::from_secs(2));
            let got = path.run(Duration::from_secs(10))[0];
            assert!(got > 0.85 * 50.0 * (1.0 - loss), "{got} at {loss}");
        }
    }

    #[test]
    fn a_fast_path_is_filled_soon() {
        let mut path = Path::new(500.0, 10 * MS).with_flow(Duration::ZERO, None);
        path.run(200 * MS);
        let got = path.run(100 * MS)[0];
        assert!(got > 0.8 * 500.0, "{got}");
    }

    #[test]
    fn two_share_a_path_whoever_came_first() {
        for queue in [62_500.0, 1_250_000.0] {
            let mut path = Path::new(20.0, 10 * MS)
                .with_flow(Duration::ZERO, None)
                .with_flow(Duration::from_secs(5), None);
            path.queue = queue;
            path.run(Duration::from_secs(8));
            let got = path.run(Duration::from_secs(20));
            let share = got[0] / (got[0] + got[1]);
            assert!(
                (0.35..=0.65).contains(&share) && got[0] + got[1] > 17.0,
                "{got:?}, queue {queue}"
            );
        }
    }

    #[test]
    fn a_path_that_changes_is_followed() {
        let mut path = Path::new(100.0, 10 * MS).with_flow(Duration::ZERO, None);
        path.run(Duration::from_secs(3));
        path.rate /= 10.0;
        path.run(Duration::from_secs(2));
        let got = path.run(Duration::from_secs(3))[0];
        let slowest = path.flows[0].slowest;
        assert!(got > 8.5 && slowest < 80 * MS, "narrower: {got}, {slowest:?}");
        path.rate *= 10.0;
        path.run(Duration::from_secs(3));
        let got = path.run(Duration::from_secs(3))[0];
        assert!(got > 85.0, "wider: {got}");
    }

    #[test]
    fn who_has_little_to_send_is_not_held() {
        let mut path = Path::new(100.0, 10 * MS).with_flow(Duration::ZERO, Some(3.0));
        path.loss = 0.05;
        path.run(Duration::from_secs(30));
        assert!(path.flows[0].model.window >= INITIAL_WINDOW);
        let flow = &path.flows[0];
        assert!(flow.slowest < 22 * MS, "{:?}", flow.slowest);
    }

    #[test]
    fn a_busy_host_does_not_choke_a_short_path() {
        // Loopback: 50 µs away, and acknowledged every 5 ms.
        let mut path = Path::new(2000.0, MS / 40).with_flow(Duration::ZERO, None);
        path.gather = 5 * MS;
        path.run(Duration::from_secs(1));
        let got = path.run(Duration::from_secs(3))[0];
        assert!(got > 0.8 * 2000.0, "{got}");
    }

    #[test]
    fn losses_beyond_chance_shrink_the_window_for_as_long_as_they_last() {
        let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
        path.run(Duration::from_secs(2));
        path.loss = 0.4;
        path.run(Duration::from_secs(2));
        let window = path.flows[0].model.window;
        assert!(window <= 2 * LEAST_PACKETS * PACKET, "{window}");
        path.loss = 0.0;
        path.run(Duration::from_secs(2));
        let got = path.run(Duration::from_secs(2))[0];
        assert!(got > 42.0, "{got}");
    }

    #[test]
    fn after_an_outage_the_path_is_learned_anew() {
        let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
        path.run(Duration::from_secs(2));
        let now = path.start + path.now;
        path.flows[0].model.outage(now);
        assert_eq!(path.flows[0].model.window, INITIAL_WINDOW);
        path.run(Duration::from_secs(1));
        assert!(path.run(Duration::from_secs(2))[0] > 45.0);
    }

    #[test]
    fn a_narrow_path_is_not_drowned() {
        let mut path = Path::new(1.0, 20 * MS).with_flow(Duration::ZERO, None);
        // The first window takes two.
        path.run(Duration::from_secs(4));
        let got = path.run(Duration::from_secs(20))[0];
        let slowest = path.flows[0].slowest;
        assert!(got > 0.9 && slowest < 120 * MS, "{got}, {slowest:?}");
    }

    #[test]
    fn a_path_that_grows_longer_is_followed() {
        for farther in [8, 24, 90] {
            let mut path = Path::new(50.0, 5 * MS).with_flow(Duration::ZERO, None);
            path.run(Duration::from_secs(2));
            path.flows[0].farther = farther * MS;
            path.run(Duration::from_secs(3));
            let got = path.run(Duration::from_secs(2))[0];
            assert!(got > 42.0, "{farther} ms farther: {got}");
            path.flows[0].farther = Duration::ZERO;
            path.run(Duration::from_secs(1));
            let got = path.run(Duration::from_secs(1))[0];
            let slowest = path.flows[0].slowest;
            assert!(got > 45.0 && slowest < 40 * MS, "back: {got}, {slowest:?}");
        }
    }

    #[test]
    fn acknowledgements_that_come_gathered_choke_nothing() {
        for gather in [20, 100] {
            let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
            path.run(Duration::from_secs(2));
            path.gather = gather * MS;
            path.run(Duration::from_secs(2));
            let got = path.run(Duration::from_secs(4))[0];
            let slowest = path.flows[0].slowest;
            assert!(got > 0.8 * 50.0, "{got} at {gather} ms");
            assert!(slowest < (60 + 2 * gather) * MS, "{slowest:?} at {gather} ms");
        }
    }

    #[test]
    fn many_share_a_path_and_its_queue_stays_short() {
        let mut path = Path::new(40.0, 10 * MS);
        for flow in 0..6 {
            path = path.with_flow(700 * flow * MS, None);
        }
        path.run(Duration::from_secs(15));
        let got = path.run(Duration::from_secs(10));
        let slowest = path.flows[0].slowest;
        assert!(got.iter().all(|got| *got > 2.0), "{got:?}");
        assert!(
            got.iter().sum::<f64>() > 38.0 && slowest < 80 * MS,
            "{got:?}, {slowest:?}"
        );
    }

    #[test]
    fn near_and_far_share_a_path() {
        let mut path = Path::new(50.0, 10 * MS)
            .with_flow(Duration::ZERO, None)
            .with_flow(Duration::ZERO, None);
        path.flows[1].farther = 80 * MS;
        path.run(Duration::from_secs(5));
        let got = path.run(Duration::from_secs(10));
        let slowest = path.flows[0].slowest;
        assert!(
            got.iter().all(|got| *got > 5.0) && slowest < 110 * MS,
            "{got:?}, {slowest:?}"
        );
    }

    #[test]
    fn a_queue_that_is_too_short_costs_few_packets() {
        for queue in [5, 8] {
            let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
            path.queue = path.rate * f64::from(queue) * 1e-3;
            path.run(Duration::from_secs(1));
            let got = path.run(Duration::from_secs(5))[0];
            let lost = path.flows[0].lost as f64 / path.flows[0].delivered as f64;
            assert!(got > 45.0 && lost < 0.06, "{got}, lost {lost}, queue {queue} ms");
        }
    }

    #[test]
    fn a_policer_is_kept_to() {
        let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
        path.policer = Some((20e6 / 8.0, 30_000.0));
        path.run(Duration::from_secs(1));
        let got = path.run(Duration::from_secs(5))[0];
        let lost = path.flows[0].lost as f64 / path.flows[0].delivered as f64;
        assert!(got > 17.0 && lost < 0.15, "{got}, lost {lost}");
    }

    #[test]
    fn bursts_tell_nothing_of_the_path() {
        let mut path = Path::new(100.0, 50 * MS).with_flow(Duration::ZERO, Some(3.0));
        path.loss = 0.05;
        path.flows[0].burst = 50 * MS;
        path.run(Duration::from_secs(15));
        let window = path.flows[0].model.window;
        assert!(window >= INITIAL_WINDOW, "{window}");
        // And when there is much to send, it goes soon.
        path.flows[0].demand = None;
        path.run(500 * MS);
        let got = path.run(500 * MS)[0];
        assert!(got > 70.0, "{got}");
    }

    #[test]
    fn a_short_outage_is_over_when_it_is_over() {
        let mut path = Path::new(50.0, 10 * MS).with_flow(Duration::ZERO, None);
        path.run(Duration::from_secs(2));
        path.dark_until = path.now + 100 * MS;
        path.run(200 * MS);
        let got = path.run(500 * MS)[0];
        assert!(got > 45.0, "{got}");
    }

    #[test]
    fn who_only_acknowledges_keeps_no_record() {
        let start = Instant::now();
        let mut model = Model::new(start, PACKET as u16);
        for packet in 0..100_000 {
            model.sent(start + packet * MS);
        }
        assert!(model.marks.len() < 3, "{}", model.marks.len());
    }
}
