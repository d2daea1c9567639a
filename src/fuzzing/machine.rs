//! The delivery machine, driven by any program of what users of it and a peer may do.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::{Input, control_comes_back};
use crate::delivery::{Bounds, CONFIRM_EVERY, Confirm, Control, Endpoint, Failure, RangeSet, Report, Violation};
use crate::outcome::{Code, Outcome};

/// Both sides keep as little as makes each bound reachable.
const BOUNDS: Bounds = Bounds {
    messages: 4,
    bytes: 1000,
};

/// So many messages that were taken may be without an end: their recipients' queues have bounds too.
const UNFINISHED: usize = 8;

/// The most that is remembered of ended messages. Several lists have a bound of their own, and each may go over it by what
/// was taken and had not ended when it was reached.
const REMEMBERED: usize = 8 * (4 * (BOUNDS.messages + CONFIRM_EVERY as usize) + UNFINISHED);

/// Steps of one program, repetitions counted.
const STEPS: usize = 1000;

/// The largest message, in bytes: one may go over the bound.
const LARGEST: usize = 2 * 255;

/// What happens. Numbers are told from where the exchange is, so that a step can be repeated.
#[derive(Debug, Clone, Copy)]
enum Step {
    Submit {
        conversation: u8,
        size: u8,
    },
    Transmit,
    Connect,
    Disconnect,
    Restart,
    /// `ahead` of the next number, or behind it; `back` to the one it names, 0 for none.
    Message {
        ahead: i8,
        back: u8,
        size: u8,
    },
    Finish {
        which: u8,
        how: u8,
    },
    Report {
        from: i8,
        length: u8,
        failed: bool,
    },
    /// Far behind the reports that were told is none of them.
    Confirm {
        below: i8,
        reports: i8,
    },
    Sync {
        below: i8,
        gap: u8,
        length: u8,
    },
    PollControl {
        eager: bool,
    },
    Expire {
        seconds: u8,
    },
    /// The largest numbers there are.
    Extreme {
        which: u8,
    },
}

/// Reads a program: a byte that says what, and those that say how. A repetition plays the last steps again.
fn program(data: &[u8]) -> Vec<Step> {
    let mut input = Input(data);
    let mut steps: Vec<Step> = Vec::new();
    while !input.is_empty() && steps.len() < STEPS {
        let what = input.byte();
        let mut byte = || input.byte();
        steps.push(match what % 15 {
            0 => Step::Submit {
                conversation: byte() % 4,
                size: byte(),
            },
            1 => Step::Transmit,
            2 => Step::Connect,
            3 => Step::Disconnect,
            4 => Step::Restart,
            5 | 6 => Step::Message {
                ahead: byte() as i8,
                back: byte(),
                size: byte(),
            },
            7 => Step::Finish {
                which: byte(),
                how: byte(),
            },
            8 => Step::Report {
                from: byte() as i8,
                length: byte(),
                failed: byte() % 2 == 1,
            },
            9 => Step::Confirm {
                below: byte() as i8,
                reports: byte() as i8,
            },
            10 => Step::Sync {
                below: byte() as i8,
                gap: byte(),
                length: byte(),
            },
            11 => Step::PollControl { eager: byte() % 2 == 1 },
            12 => Step::Expire { seconds: byte() },
            13 => Step::Extreme { which: byte() },
            _ => {
                let (times, last) = (usize::from(byte()), 1 + usize::from(byte()) % 8);
                let again = steps.split_off(steps.len().saturating_sub(last));
                for _ in 0..=times {
                    steps.extend_from_slice(&again);
                }
                continue;
            }
        });
    }
    steps.truncate(STEPS);
    steps
}

/// A number some way from another.
fn near(number: u64, by: i8) -> u64 {
    number.saturating_add_signed(i64::from(by))
}

/// One side of an exchange, with what its users know of it.
struct Play {
    endpoint: Endpoint<u64, u64>,
    now: Instant,
    is_connected: bool,
    /// How many messages were submitted.
    submitted: u64,
    /// The sizes of those without an end: not transmitted yet, and transmitted.
    waiting: BTreeMap<u64, usize>,
    under_way: BTreeMap<u64, usize>,
    /// The largest number transmitted on the present connection.
    cursor: u64,
    /// One above the largest number the peer gave.
    next: u64,
    /// Which of the peer's messages were taken.
    taken: HashSet<u64>,
    /// The peer has confirmed the ends of all below.
    confirmed: u64,
    /// Taken, and without an end.
    unfinished: VecDeque<(u32, u64)>,
    /// Reports told on the present connection.
    reports: u64,
}

/// The delivery machine, and a peer that may say anything: what it says is taken or a violation, after which the connection
/// is closed. Nothing is taken twice or before what it names, each message that was submitted ends once, and no more is
/// kept than the bounds allow.
pub fn machine(data: &[u8]) {
    let mut play = Play {
        endpoint: Endpoint::new(BOUNDS, BOUNDS),
        now: Instant::now(),
        is_connected: false,
        submitted: 0,
        waiting: BTreeMap::new(),
        under_way: BTreeMap::new(),
        cursor: 0,
        next: 1,
        taken: HashSet::new(),
        confirmed: 1,
        unfinished: VecDeque::new(),
        reports: 0,
    };
    for step in program(data) {
        if play.step(step).is_err() {
            play.disconnect();
        }
        play.drain();
        play.check();
    }
    play.endpoint.sender.give_up(Code::ShuttingDown);
    play.drain();
    assert!(play.waiting.is_empty() && play.under_way.is_empty() && play.endpoint.sender.is_idle());
}

impl Play {
    fn step(&mut self, step: Step) -> Result<(), Violation> {
        match step {
            Step::Submit { conversation, size } => {
                if self.endpoint.sender.has_room() {
                    self.submitted += 1;
                    let (number, size) = (self.submitted, usize::from(size) * 2);
                    self.waiting.insert(number, size);
                    let sender = &mut self.endpoint.sender;
                    sender.submit(self.now, conversation.into(), size, number, number);
                }
            }
            Step::Transmit => self.transmit(),
            Step::Connect => {
                self.disconnect();
                self.endpoint.connected();
                self.is_connected = true;
                (self.cursor, self.reports) = (0, 0);
            }
            Step::Disconnect => self.disconnect(),
            Step::Restart => {
                self.disconnect();
                // Half of the clients are granted their ids by name.
                self.endpoint.peer_restarted(|message| message % 2 == 0);
                self.taken.clear();
                (self.next, self.confirmed) = (1, 1);
            }
            Step::Message { ahead, back, size } => {
                let number = near(self.next, ahead);
                let after = if back == 0 {
                    0
                } else {
                    number.saturating_sub(back.into())
                };
                self.message(number, after, usize::from(size) * 2)?;
            }
            Step::Finish { which, how } => self.finish(which, how),
            Step::Report { from, length, failed } => {
                let first = near(self.endpoint.sender.oldest().unwrap_or(self.submitted), from);
                let last = first + u64::from(length);
                let failure = |number| Failure {
                    number,
                    outcome: Outcome::Unknown(Code::RecipientGone),
                };
                let report = if failed {
                    Report {
                        delivered: Vec::new(),
                        failed: (first..=last).map(failure).collect(),
                    }
                } else {
                    Report {
                        delivered: vec![(first, last)],
                        failed: Vec::new(),
                    }
                };
                self.control(Control::Report(report))?;
            }
            Step::Confirm { below, reports } => {
                let confirm = Confirm {
                    below: near(self.next, below),
                    reports: if reports < -64 { 0 } else { near(self.reports, reports) },
                };
                self.confirm(confirm)?;
            }
            Step::Sync { below, gap, length } => {
                let below = near(self.endpoint.sender.oldest().unwrap_or(self.submitted), below);
                let first = below + u64::from(gap);
                self.control(Control::Sync(RangeSet::from_parts(
                    below,
                    [(first, first + u64::from(length))],
                )))?;
            }
            Step::PollControl { eager } => {
                if let Some(control) = self.endpoint.poll_control(eager) {
                    assert!(self.is_connected);
                    control_comes_back(&control);
                    self.reports += u64::from(matches!(control, Control::Report(_)));
                }
            }
            Step::Expire { seconds } => {
                self.now += Duration::from_secs(seconds.into());
                self.endpoint.expire(self.now, Duration::from_secs(90));
            }
            Step::Extreme { which } => self.extreme(which)?,
        }
        Ok(())
    }

    fn disconnect(&mut self) {
        if std::mem::take(&mut self.is_connected) {
            self.endpoint.disconnected(self.now);
        }
    }

    fn transmit(&mut self) {
        let Some(transmit) = self.endpoint.sender.poll_transmit() else {
            return;
        };
        let (number, after) = (transmit.number, transmit.after);
        assert_eq!(number, *transmit.message);
        assert!(self.is_connected && number > self.cursor);
        self.cursor = number;
        // What it names went before it, and has no end.
        assert!(after == 0 || after < number && self.under_way.contains_key(&after));
        if let Some(size) = self.waiting.remove(&number) {
            self.under_way.insert(number, size);
        }
        assert!(self.under_way.contains_key(&number) && self.under_way.len() <= BOUNDS.messages);
        assert!(self.under_way.values().sum::<usize>() < BOUNDS.bytes + LARGEST);
    }

    fn message(&mut self, number: u64, after: u64, size: usize) -> Result<(), Violation> {
        if !self.is_connected {
            return Ok(());
        }
        let mut taken = Vec::new();
        self.endpoint.receiver.message(number, after, size, after, &mut taken)?;
        self.next = self.next.max(number.saturating_add(1));
        let incarnation = self.endpoint.receiver.incarnation();
        for (number, after) in taken {
            assert!(number >= self.confirmed && self.taken.insert(number));
            assert!(after < self.confirmed || self.taken.contains(&after));
            if self.unfinished.len() == UNFINISHED {
                self.finish(0, 0);
            }
            self.unfinished.push_back((incarnation, number));
        }
        Ok(())
    }

    fn finish(&mut self, which: u8, how: u8) {
        let at = usize::from(which) % self.unfinished.len().max(1);
        let Some((incarnation, number)) = self.unfinished.remove(at) else {
            return;
        };
        let outcome = match how % 3 {
            0 => Outcome::Delivered,
            1 => Outcome::Refused(Code::NoSuchClient),
            _ => Outcome::Unknown(Code::RecipientGone),
        };
        self.endpoint.receiver.finish(incarnation, number, outcome);
    }

    fn confirm(&mut self, confirm: Confirm) -> Result<(), Violation> {
        self.control(Control::Confirm(confirm))?;
        // It counts only once the two sides know of each other.
        self.confirmed = self
            .confirmed
            .max(confirm.below.min(self.endpoint.receiver.taken().below()));
        Ok(())
    }

    fn control(&mut self, control: Control) -> Result<(), Violation> {
        self.endpoint.control(control)
    }

    fn extreme(&mut self, which: u8) -> Result<(), Violation> {
        const MOST: u64 = u64::MAX;
        match which % 8 {
            0 => self.message(MOST, 0, 1),
            1 => self.message(MOST - 1, 0, 1),
            2 => self.message(MOST - 1, MOST - 2, 1),
            3 => self.control(Control::Report(Report {
                delivered: vec![(1, MOST), (MOST, 0)],
                failed: Vec::new(),
            })),
            4 => self.control(Control::Report(Report {
                delivered: vec![(MOST, 0), (0, 0), (0, MOST - 1)],
                failed: Vec::new(),
            })),
            5 => self.control(Control::Sync(RangeSet::from_parts(1, [(2, MOST), (MOST, MOST)]))),
            6 => self.confirm(Confirm {
                below: MOST,
                reports: 0,
            }),
            _ => self.confirm(Confirm {
                below: 1,
                reports: MOST,
            }),
        }
    }

    /// Takes note of the messages that ended.
    fn drain(&mut self) {
        for (number, outcome) in self.endpoint.sender.drain_settled() {
            // Nobody saw what was not sent, and of what was the peer never says that it refuses it.
            let once = match outcome {
                Outcome::Refused(_) => self.waiting.remove(&number),
                Outcome::Delivered | Outcome::Unknown(_) => self.under_way.remove(&number),
            };
            assert!(once.is_some(), "{number}: {outcome:?}");
        }
    }

    fn check(&self) {
        let receiver = &self.endpoint.receiver;
        assert!(receiver.held() <= BOUNDS.messages);
        assert!(receiver.held_bytes() < BOUNDS.bytes + 2 * LARGEST);
        assert!(receiver.remembered() <= REMEMBERED, "{}", receiver.remembered());
    }
}
