//! Two nodes over a hostile network, played from one seed, and a checker that knows nothing of the machine.
//!
//! The network breaks at any time, is noticed to be broken late, loses what was under way, delivers messages in any
//! order and sometimes twice; nodes start anew; recipients are slow, full, absent, or leave. What happened is written
//! to a log as clients and the network saw it, and [`check`] judges the log: what clients saw by the same judge as that
//! of real clients (`checker/`), and beside it how long messages waited and what they waited for.
//!
//! `TRUNKLINE_SIM_SCHEDULES=N` plays N seeds, from 0 on or from `TRUNKLINE_SIM_FIRST`; `TRUNKLINE_SIM_SEED=S` plays that
//! one and prints its log when it fails.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trunkline_checker::{Breach as Broken, Checker as Judge, Event as Observed, Outcome as End, Rules, Tally};

use super::{Bounds, Control, Endpoint, Taken};
use crate::outcome::{Code, Outcome};

/// Microseconds since the start of a schedule.
type Time = u64;

const MS: Time = 1000;

/// How many schedules a normal test run plays.
const SCHEDULES: u64 = 20_000;

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    node: usize,
    /// The process it was given out by; `None` for one that a client was granted by name, which outlives processes.
    process: Option<u32>,
    id: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    /// Counts all messages of a schedule, in the order they were submitted.
    serial: usize,
    from: Name,
    to: Name,
    size: usize,
}

// ---- The checker --------------------------------------------------------------------------------------------------

/// What clients and the network saw.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// A process starts; the one before it on this node, its clients and what they sent are gone.
    Started { node: usize },
    /// A client sends.
    Submitted { message: Message, conversation: u64 },
    /// A message is handed to the network.
    Transmitted { serial: usize, attempt: usize },
    /// A message comes out of the network, whole.
    Arrived { serial: usize, attempt: usize },
    /// A message is passed on towards its recipient.
    Handed { serial: usize },
    /// A message reached its end at a recipient: seen, when it is delivered.
    Ended {
        message: Message,
        at: Name,
        outcome: Outcome,
    },
    /// The sender is told the end.
    Told { serial: usize, outcome: Outcome },
    /// A node takes note that the link is lost, and when it last heard of the other side.
    Lost { node: usize, heard: Time },
    /// The first frame of a new connection came to this node.
    Synced { node: usize },
    /// A node learns that the process at the other side is another one.
    PeerRestarted { node: usize },
    /// Whether the network carries whatever is sent, both ways.
    Steady(bool),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Logged {
    at: Time,
    event: Event,
}

/// The times within which messages are to be answered.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How long a message may wait for a lost link.
    wait: Time,
    /// The longest way through a steady network, a recipient's queue and back.
    settle: Time,
}

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breach {
    /// A promise to clients is broken.
    Promise(Broken),
    /// It had to wait for a message of another conversation.
    HeldUp,
    /// Transmitted although the other side had said that it has it.
    Wasted,
}

/// Of a message that was never sent.
const FORGED: Breach = Breach::Promise(Broken::Forged);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Finding {
    breach: Breach,
    serial: usize,
    at: Time,
}

/// What became of one message.
#[derive(Debug)]
struct Fate {
    message: Message,
    conversation: u64,
    process: usize,
    submitted: Time,
    /// The position in the log.
    handed: Option<usize>,
    ended: Option<Outcome>,
    /// The position in the log, and the outcome.
    told: Option<(usize, Outcome)>,
}

/// A node as the checker follows it.
#[derive(Debug, Default)]
struct Witness {
    process: usize,
    /// Serials its present process submitted. Those before `answered` were told.
    submitted: Vec<usize>,
    answered: usize,
    /// Since when it knows the link to be lost.
    down: Option<Time>,
    /// Since when it can't know whether the other side gets anything.
    doubt: Option<Time>,
    peer_restarted: Option<Time>,
    /// The positions in the log at which it last noticed a loss, and last heard what the other side has.
    lost: Option<usize>,
    synced: Option<usize>,
}

impl Witness {
    /// When a message that waits for the link must, and may, be given up.
    fn deadline(&self, submitted: Time, limits: Limits) -> Option<Time> {
        let waits_since = self.doubt.unwrap_or_default().max(submitted);
        Some((waits_since + limits.wait).max(self.down?))
    }
}

#[derive(Debug)]
struct Checker {
    fates: Vec<Fate>,
    nodes: [Witness; 2],
    /// The positions in the log at which messages were handed to the network, by attempt.
    attempts: HashMap<usize, usize>,
    steady: Option<Time>,
    /// Judges what clients saw. Its times are positions in the log.
    judge: Judge<Name>,
    /// The clients that have sent something.
    known: HashSet<Name>,
}

/// Judges what happened by what clients were promised.
fn check(log: &[Logged], limits: Limits) -> Result<Tally, Finding> {
    let mut checker = Checker {
        fates: Vec::new(),
        nodes: Default::default(),
        attempts: HashMap::new(),
        steady: None,
        judge: Judge::new(Rules::default()),
        known: HashSet::new(),
    };
    let mut arrived = None;
    for (position, &Logged { at, event }) in log.iter().enumerate() {
        let finding = |(breach, serial)| Finding { breach, serial, at };
        if !matches!(event, Event::Handed { .. })
            && let Some((serial, attempt)) = arrived.take()
        {
            checker.check_arrival(serial, attempt).map_err(finding)?;
        }
        checker.check_time(at, limits).map_err(finding)?;
        if let Event::Arrived { serial, attempt } = event {
            arrived = Some((serial, attempt));
        }
        checker.follow(position, at, event, limits).map_err(finding)?;
    }
    let (tally, findings) = checker.judge.finish();
    match findings.first() {
        None => Ok(tally),
        Some(finding) => Err(Finding {
            breach: Breach::Promise(finding.breach),
            serial: serial_of(finding.message),
            at: log.last().map_or(0, |last| last.at),
        }),
    }
}

/// What befalls a client has no message; here nothing does.
fn serial_of(message: Option<u64>) -> usize {
    message
        .and_then(|message| usize::try_from(message).ok())
        .unwrap_or(usize::MAX)
}

impl Checker {
    fn follow(&mut self, position: usize, at: Time, event: Event, limits: Limits) -> Result<(), (Breach, usize)> {
        match event {
            Event::Started { node } => {
                let process = self.nodes[node].process + 1;
                self.nodes[node] = Witness {
                    process,
                    down: Some(at),
                    ..Witness::default()
                };
                self.known.retain(|name| name.node != node);
                self.judge(position, Observed::NodeDied { node })?;
            }
            Event::Submitted { message, conversation } => {
                let node = &mut self.nodes[message.from.node];
                node.submitted.push(message.serial);
                self.fates.push(Fate {
                    message,
                    conversation,
                    process: node.process,
                    submitted: at,
                    handed: None,
                    ended: None,
                    told: None,
                });
                let Message { serial, from, to, .. } = message;
                if self.known.insert(from) {
                    let joined = Observed::Joined {
                        client: from,
                        node: from.node,
                        confirms: true,
                        since: position as u64,
                    };
                    self.judge(position, joined)?;
                }
                let message = serial as u64;
                self.judge(position, Observed::Sent { message, from, to })?;
            }
            Event::Transmitted { serial, attempt } => {
                self.attempts.insert(attempt, position);
                let fate = self.fates.get(serial).ok_or((FORGED, serial))?;
                let node = fate.message.from.node;
                // What was passed on before a connection was lost is told at the start of the next.
                let (lost, synced) = (self.nodes[1 - node].lost, self.nodes[node].synced);
                if fate.handed.is_some() && fate.handed < lost && lost < synced {
                    return Err((Breach::Wasted, serial));
                }
            }
            Event::Arrived { .. } => {}
            Event::Handed { serial } => {
                let fate = self.fates.get_mut(serial).ok_or((FORGED, serial))?;
                fate.handed.get_or_insert(position);
            }
            Event::Ended { message, at, outcome } => self.ended(position, message, at, outcome)?,
            Event::Told { serial, outcome } => self.told(position, at, serial, outcome, limits)?,
            Event::Lost { node, heard } => {
                let node = &mut self.nodes[node];
                node.down.get_or_insert(at);
                node.doubt.get_or_insert(heard);
                node.lost = Some(position);
            }
            Event::Synced { node } => {
                let node = &mut self.nodes[node];
                node.down = None;
                node.doubt = None;
                node.synced = Some(position);
            }
            Event::PeerRestarted { node } => self.nodes[node].peer_restarted = Some(at),
            Event::Steady(steady) => self.steady = steady.then_some(at),
        }
        Ok(())
    }

    /// Has the judge of what clients saw look at it.
    fn judge(&mut self, position: usize, event: Observed<Name>) -> Result<(), (Breach, usize)> {
        let judged = self.judge.follow(position as u64, event);
        judged.map_err(|finding| (Breach::Promise(finding.breach), serial_of(finding.message)))
    }

    /// The oldest message of a node's clients that is not answered.
    fn oldest(&mut self, node: usize) -> Option<&Fate> {
        let node = &mut self.nodes[node];
        loop {
            let fate = self.fates.get(*node.submitted.get(node.answered)?)?;
            if fate.told.is_none() {
                return Some(fate);
            }
            node.answered += 1;
        }
    }

    fn check_time(&mut self, at: Time, limits: Limits) -> Result<(), (Breach, usize)> {
        for node in 0..2 {
            let steady = self.steady;
            let Some((serial, submitted)) = self.oldest(node).map(|fate| (fate.message.serial, fate.submitted)) else {
                continue;
            };
            let given_up = self.nodes[node].deadline(submitted, limits);
            let answered = steady.map(|since| since.max(submitted) + limits.settle);
            if given_up.is_some_and(|by| at > by) || answered.is_some_and(|by| at > by) {
                return Err((Breach::Promise(Broken::Late), serial));
            }
        }
        Ok(())
    }

    /// A message that came whole must be passed on at once, unless one before it in its conversation is still to come.
    fn check_arrival(&self, serial: usize, attempt: usize) -> Result<(), (Breach, usize)> {
        let fate = self.fates.get(serial).ok_or((FORGED, serial))?;
        let &transmitted = self.attempts.get(&attempt).ok_or((FORGED, serial))?;
        let waits = |before: &Fate| {
            before.conversation == fate.conversation
                && before.message.from.node == fate.message.from.node
                && before.process == fate.process
                && before.handed.is_none()
                && before.told.is_none_or(|(told, _)| told > transmitted)
        };
        let settled = fate.told.is_some_and(|(told, _)| told < transmitted);
        if fate.handed.is_some() || settled || self.fates[..serial].iter().any(waits) {
            Ok(())
        } else {
            Err((Breach::HeldUp, serial))
        }
    }

    fn ended(&mut self, position: usize, message: Message, at: Name, outcome: Outcome) -> Result<(), (Breach, usize)> {
        let serial = message.serial;
        let fate = self.fates.get_mut(serial).ok_or((FORGED, serial))?;
        let again = fate.ended.replace(outcome).is_some();
        if outcome == Outcome::Delivered {
            let seen = Observed::Seen {
                message: serial as u64,
                from: message.from,
                by: at,
            };
            self.judge(position, seen)?;
        }
        if again {
            return Err((Breach::Promise(Broken::Repeated), serial));
        }
        Ok(())
    }

    fn told(
        &mut self,
        position: usize,
        at: Time,
        serial: usize,
        outcome: Outcome,
        limits: Limits,
    ) -> Result<(), (Breach, usize)> {
        let told = Observed::Told {
            message: serial as u64,
            outcome: match outcome {
                Outcome::Delivered => End::Delivered,
                Outcome::Refused(_) => End::Refused,
                Outcome::Unknown(_) => End::Unknown,
            },
        };
        self.judge(position, told)?;
        let fate = self.fates.get_mut(serial).ok_or((FORGED, serial))?;
        fate.told = Some((position, outcome));
        let node = &self.nodes[fate.message.from.node];
        let peer_restarted = node.peer_restarted == Some(at);
        let unreachable = node.deadline(fate.submitted, limits).is_some_and(|since| at >= since);
        let founded = fate.ended == Some(outcome)
            || match outcome {
                Outcome::Refused(Code::NodeUnreachable) | Outcome::Unknown(Code::NodeUnreachable) => unreachable,
                Outcome::Unknown(Code::NodeRestarted) => peer_restarted,
                Outcome::Refused(Code::NodeRestarted) => peer_restarted && fate.message.to.process.is_some(),
                _ => false,
            };
        if founded {
            Ok(())
        } else {
            Err((Breach::Promise(Broken::Unfounded), serial))
        }
    }
}

// ---- The world ----------------------------------------------------------------------------------------------------

/// What one schedule is made of.
#[derive(Debug)]
struct Plan {
    /// What each node keeps unsettled.
    bounds: [Bounds; 2],
    clients: u32,
    /// The most messages a client sends in its life.
    sends: u32,
    largest: usize,
    /// Some clients are granted their ids by name and come back under them.
    named: bool,
    /// Conversations share numbers.
    shared: bool,
    /// The longest way through the network.
    delay: Time,
    /// The longest that a driver puts off transmitting, and how often it does.
    stall: Time,
    stalls: f64,
    /// How often a message comes twice.
    repeats: f64,
    eager: f64,
    breaks: bool,
    /// The longest life of a connection, time to the next, and time to notice a loss.
    life: Time,
    gap: Time,
    notice: Time,
    /// How much of what was under way a loss takes with it.
    swallows: f64,
    crashes: u32,
    leaves: u32,
    /// How many messages wait for one client, and the longest it takes for one.
    outbox: usize,
    pace: Time,
    wait: Time,
    /// When no more faults and messages come.
    stop: Time,
    /// Whether the link comes back after that.
    heals: bool,
}

impl Plan {
    fn draw(rng: &mut SmallRng) -> Self {
        fn one_of<V: Copy>(rng: &mut SmallRng, values: &[V]) -> V {
            values[rng.random_range(0..values.len())]
        }
        let bounds = |rng: &mut SmallRng| Bounds {
            messages: one_of(rng, &[1, 2, 3, 5, 8, 50]),
            bytes: one_of(rng, &[1, 20, 60, 10_000]),
        };
        let named = rng.random_bool(0.4);
        let faults = rng.random_bool(0.85);
        Self {
            bounds: [bounds(rng), bounds(rng)],
            clients: rng.random_range(1..=3),
            sends: one_of(rng, &[2, 5, 10]),
            largest: one_of(rng, &[1, 30, 100]),
            named,
            // Where one number is two conversations', a restart may end one of them in the midst of the other, which
            // then loses its order.
            shared: !named && rng.random_bool(0.1),
            delay: one_of(rng, &[0, MS, 30 * MS, 150 * MS]),
            stall: one_of(rng, &[MS, 50 * MS]),
            stalls: one_of(rng, &[0.0, 0.2, 0.6]),
            repeats: one_of(rng, &[0.0, 0.2]),
            eager: one_of(rng, &[0.0, 0.3, 1.0]),
            breaks: faults,
            life: one_of(rng, &[50 * MS, 300 * MS, 1000 * MS]),
            gap: one_of(rng, &[MS, 100 * MS, 500 * MS]),
            notice: one_of(rng, &[0, 20 * MS, 300 * MS]),
            swallows: one_of(rng, &[0.0, 0.3, 1.0]),
            crashes: if faults { one_of(rng, &[0, 0, 1, 2]) } else { 0 },
            leaves: one_of(rng, &[0, 0, 2]),
            outbox: one_of(rng, &[1, 3, 20]),
            pace: one_of(rng, &[0, 10 * MS, 100 * MS]),
            wait: one_of(rng, &[100 * MS, 400 * MS, 2000 * MS]),
            stop: one_of(rng, &[300 * MS, 1500 * MS]),
            heals: rng.random_bool(0.8),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            wait: self.wait,
            settle: 3 * self.delay + self.stall + self.outbox as Time * self.pace,
        }
    }
}

/// What is to happen.
#[derive(Debug)]
enum Step {
    Send {
        node: usize,
        process: u32,
        id: Name,
    },
    Connect,
    Break {
        connection: usize,
    },
    Open {
        connection: usize,
        node: usize,
    },
    Notice {
        connection: usize,
        node: usize,
    },
    Control {
        connection: usize,
        node: usize,
        control: Control,
    },
    Arrive {
        connection: usize,
        node: usize,
        number: u64,
        after: u64,
        message: Message,
        attempt: usize,
    },
    Take {
        client: Name,
        node: usize,
        process: u32,
        stay: u32,
    },
    Leave {
        client: Name,
        process: u32,
    },
    Return {
        client: Name,
        process: u32,
    },
    Wake {
        node: usize,
        process: u32,
    },
    Crash {
        node: usize,
    },
    Stop,
}

#[derive(Debug)]
struct Client {
    name: Name,
    present: bool,
    /// Counts its departures.
    stay: u32,
    /// What waits to be seen by it: incarnation and number, and the message.
    outbox: VecDeque<(u32, u64, Message)>,
}

#[derive(Debug)]
struct Node {
    endpoint: Endpoint<Message, usize>,
    process: u32,
    peer: Option<u32>,
    connection: Option<usize>,
    /// Connections below this one are of the past.
    connections: usize,
    clients: Vec<Client>,
    /// Who waits for room.
    waiting: VecDeque<Name>,
    /// When it is to be woken to expire messages.
    expires: Option<Time>,
    /// It puts off transmitting until it is woken.
    stalled: bool,
}

#[derive(Debug)]
struct Connection {
    processes: [u32; 2],
    opens: [Time; 2],
    broken: Option<Time>,
    /// When the last control frame towards each node arrives.
    control: [Time; 2],
    /// Control frames towards this node were lost; no later one may come.
    cut: [bool; 2],
}

#[derive(Debug)]
struct World {
    rng: SmallRng,
    plan: Plan,
    base: Instant,
    now: Time,
    queue: BTreeMap<(Time, u64), Step>,
    queued: u64,
    nodes: [Node; 2],
    connections: Vec<Connection>,
    addresses: [Vec<Name>; 2],
    stopped: bool,
    /// All that can be told is told.
    eager: bool,
    serials: usize,
    attempts: usize,
    log: Vec<Logged>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
        let node = |node: usize| Node {
            endpoint: Endpoint::new(plan.bounds[node], plan.bounds[1 - node]),
            process: 0,
            peer: None,
            connection: None,
            connections: 0,
            clients: Vec::new(),
            waiting: VecDeque::new(),
            expires: None,
            stalled: false,
        };
        let mut world = Self {
            rng,
            base: Instant::now(),
            now: 0,
            queue: BTreeMap::new(),
            queued: 0,
            nodes: [node(0), node(1)],
            connections: Vec::new(),
            addresses: [Vec::new(), Vec::new()],
            stopped: false,
            eager: false,
            serials: 0,
            attempts: 0,
            log: Vec::new(),
            plan,
        };
        for node in 0..2 {
            // Nobody ever has this one.
            world.addresses[node].push(Name {
                node,
                process: Some(0),
                id: 99,
            });
            world.start(node);
        }
        for _ in 0..world.plan.crashes {
            let node = world.rng.random_range(0..2);
            world.within(world.plan.stop, Step::Crash { node });
        }
        world.within(world.plan.gap, Step::Connect);
        world.after(world.plan.stop, Step::Stop);
        world
    }

    fn run(&mut self) -> Result<Tally, String> {
        while let Some(((at, _), step)) = self.queue.pop_first() {
            self.now = at;
            self.step(step)?;
            if self.queue.is_empty() && !self.eager {
                self.eager = true;
                for node in 0..2 {
                    self.drive(node);
                }
            }
        }
        let tally = check(&self.log, self.plan.limits()).map_err(|finding| format!("{finding:?}"))?;
        for node in &self.nodes {
            let held = node.endpoint.receiver.held();
            let remembered = node.endpoint.receiver.remembered();
            if !node.endpoint.sender.is_idle() || held != 0 || self.plan.heals && remembered != 0 {
                return Err(format!("memory is kept: {:?}", node.endpoint));
            }
        }
        Ok(tally)
    }

    // -- Time and the log.

    fn after(&mut self, delay: Time, step: Step) {
        self.queued += 1;
        self.queue.insert((self.now + delay, self.queued), step);
    }

    fn within(&mut self, most: Time, step: Step) {
        let delay = self.upto(most);
        self.after(delay, step);
    }

    fn upto(&mut self, most: Time) -> Time {
        self.rng.random_range(0..=most)
    }

    fn log(&mut self, event: Event) {
        self.log.push(Logged { at: self.now, event });
    }

    fn instant(&self, at: Time) -> Instant {
        self.base + Duration::from_micros(at)
    }

    // -- What happens.

    fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Send { node, process, id } => {
                if self.nodes[node].process == process && !self.stopped {
                    self.nodes[node].waiting.push_back(id);
                    self.drive(node);
                }
            }
            Step::Connect => self.connect(),
            Step::Break { connection } => self.break_connection(connection),
            Step::Open { connection, node } => self.open(connection, node),
            Step::Notice { connection, node } => {
                if self.nodes[node].connection == Some(connection) {
                    self.lose(node);
                    self.drive(node);
                }
            }
            Step::Control {
                connection,
                node,
                control,
            } => self.control(connection, node, control)?,
            Step::Arrive {
                connection,
                node,
                number,
                after,
                message,
                attempt,
            } => {
                if self.nodes[node].connection != Some(connection) || self.swallowed(connection) {
                    return Ok(());
                }
                let serial = message.serial;
                self.log(Event::Arrived { serial, attempt });
                let mut taken = Vec::new();
                let receiver = &mut self.nodes[node].endpoint.receiver;
                receiver
                    .message(number, after, message.size, message, &mut taken)
                    .map_err(|violation| format!("{violation} at {}: message {number}", self.now))?;
                self.hand(node, taken);
                self.drive(node);
            }
            Step::Take {
                client,
                node,
                process,
                stay,
            } => self.take(node, process, client, stay),
            Step::Leave { client, process } => self.leave(client, process),
            Step::Return { client, process } => {
                if let Some(client) = self.client(client, process) {
                    client.present = true;
                }
            }
            Step::Wake { node, process } => {
                if self.nodes[node].process == process {
                    self.nodes[node].expires.take_if(|at| *at <= self.now);
                    self.drive(node);
                    self.nodes[node].stalled = false;
                    while self.transmit_one(node) {}
                }
            }
            Step::Crash { node } => {
                if let Some(connection) = self.connections.len().checked_sub(1) {
                    self.break_connection(connection);
                }
                self.start(node);
            }
            Step::Stop => {
                self.stopped = true;
                if !self.plan.heals
                    && let Some(connection) = self.connections.len().checked_sub(1)
                {
                    self.break_connection(connection);
                }
            }
        }
        Ok(())
    }

    /// A new process, with new clients and those that were granted a name.
    fn start(&mut self, node: usize) {
        let process = self.nodes[node].process + 1;
        let left = self.plan.stop.saturating_sub(self.now);
        let clients: Vec<_> = (0..self.plan.clients)
            .map(|id| Name {
                node,
                process: (!(self.plan.named && id % 2 == 0)).then_some(process),
                id,
            })
            .collect();
        self.log(Event::Started { node });
        self.nodes[node] = Node {
            endpoint: Endpoint::new(self.plan.bounds[node], self.plan.bounds[1 - node]),
            process,
            peer: None,
            connection: None,
            connections: 0,
            clients: Vec::new(),
            waiting: VecDeque::new(),
            expires: None,
            stalled: false,
        };
        for &name in &clients {
            self.addresses[node].push(name);
            let present = process == 1 || name.process.is_some();
            self.nodes[node].clients.push(Client {
                name,
                present,
                stay: 0,
                outbox: VecDeque::new(),
            });
            if !present {
                self.within(self.plan.gap, Step::Return { client: name, process });
            }
            // Some send all at once, some now and then.
            let burst = self.rng.random_bool(0.3).then(|| self.upto(left));
            for _ in 0..self.rng.random_range(0..=self.plan.sends) {
                let delay = match burst {
                    Some(delay) => delay,
                    None => self.upto(left),
                };
                self.after(
                    delay,
                    Step::Send {
                        node,
                        process,
                        id: name,
                    },
                );
            }
        }
        for _ in 0..self.plan.leaves {
            let client = clients[self.rng.random_range(0..clients.len())];
            self.within(left, Step::Leave { client, process });
        }
    }

    fn connect(&mut self) {
        if self.stopped && !self.plan.heals {
            return;
        }
        let connection = self.connections.len();
        let opens = [0, 1].map(|_| self.now + self.upto(self.plan.delay));
        self.connections.push(Connection {
            processes: [self.nodes[0].process, self.nodes[1].process],
            opens,
            broken: None,
            control: opens,
            cut: [false; 2],
        });
        for (node, opens) in opens.into_iter().enumerate() {
            self.after(opens - self.now, Step::Open { connection, node });
        }
        if self.plan.breaks && !self.stopped {
            self.within(self.plan.life, Step::Break { connection });
        }
    }

    fn break_connection(&mut self, connection: usize) {
        let broken = &mut self.connections[connection].broken;
        if broken.is_some() || self.stopped && self.plan.heals {
            return;
        }
        *broken = Some(self.now);
        self.log(Event::Steady(false));
        for node in 0..2 {
            let opens = self.connections[connection].opens[node].max(self.now);
            let delay = opens - self.now + self.upto(self.plan.notice);
            self.after(delay, Step::Notice { connection, node });
        }
        self.within(self.plan.gap, Step::Connect);
    }

    fn open(&mut self, connection: usize, node: usize) {
        let Connection { processes, broken, .. } = self.connections[connection];
        if self.nodes[node].process != processes[node] || connection < self.nodes[node].connections {
            return;
        }
        self.lose(node);
        let peer = processes[1 - node];
        let this = &mut self.nodes[node];
        this.connection = Some(connection);
        this.connections = connection + 1;
        if this.peer.replace(peer).is_some_and(|before| before != peer) {
            this.endpoint.peer_restarted(|message| message.to.process.is_none());
            self.log(Event::PeerRestarted { node });
        }
        self.nodes[node].endpoint.connected();
        if broken.is_none() && self.nodes[1 - node].connection == Some(connection) {
            self.log(Event::Steady(true));
        }
        self.drive(node);
    }

    /// The node takes note that its connection is gone.
    fn lose(&mut self, node: usize) {
        let Some(connection) = self.nodes[node].connection.take() else {
            return;
        };
        let connection = &self.connections[connection];
        let heard = connection.broken.unwrap_or(self.now).max(connection.opens[node]);
        self.nodes[node].endpoint.disconnected(self.instant(heard));
        self.log(Event::Lost { node, heard });
    }

    /// Whether something that was under way is lost with its connection.
    fn swallowed(&mut self, connection: usize) -> bool {
        self.connections[connection].broken.is_some() && self.rng.random_bool(self.plan.swallows)
    }

    fn control(&mut self, connection: usize, node: usize, control: Control) -> Result<(), String> {
        if self.nodes[node].connection != Some(connection) || self.connections[connection].cut[node] {
            return Ok(());
        }
        if self.swallowed(connection) {
            self.connections[connection].cut[node] = true;
            return Ok(());
        }
        if let Control::Sync(_) = control {
            self.log(Event::Synced { node });
        }
        self.nodes[node]
            .endpoint
            .control(control)
            .map_err(|violation| format!("{violation} at {}: a control frame", self.now))?;
        self.drive(node);
        Ok(())
    }

    // -- The recipients.

    fn client(&mut self, name: Name, process: u32) -> Option<&mut Client> {
        let node = &mut self.nodes[name.node];
        if node.process != process {
            return None;
        }
        node.clients.iter_mut().find(|client| client.name == name)
    }

    /// Passes messages on to their recipients.
    fn hand(&mut self, node: usize, taken: Vec<Taken<Message>>) {
        let (process, incarnation) = (
            self.nodes[node].process,
            self.nodes[node].endpoint.receiver.incarnation(),
        );
        let (outbox, pace) = (self.plan.outbox, self.plan.pace);
        for &(_, Message { serial, .. }) in &taken {
            self.log(Event::Handed { serial });
        }
        for (number, message) in taken {
            let refused = match self.client(message.to, process) {
                Some(client) if client.present => {
                    if client.outbox.len() < outbox {
                        let stay = client.stay;
                        client.outbox.push_back((incarnation, number, message));
                        if client.outbox.len() == 1 {
                            self.within(
                                pace,
                                Step::Take {
                                    client: message.to,
                                    node,
                                    process,
                                    stay,
                                },
                            );
                        }
                        continue;
                    }
                    Code::RecipientFull
                }
                _ => Code::NoSuchClient,
            };
            self.finish(node, (incarnation, number, message), Outcome::Refused(refused));
        }
    }

    fn finish(&mut self, node: usize, (incarnation, number, message): (u32, u64, Message), outcome: Outcome) {
        self.log(Event::Ended {
            message,
            at: message.to,
            outcome,
        });
        self.nodes[node].endpoint.receiver.finish(incarnation, number, outcome);
    }

    /// A client sees what is next for it.
    fn take(&mut self, node: usize, process: u32, name: Name, stay: u32) {
        let Some(client) = self.client(name, process) else {
            return;
        };
        if client.stay != stay {
            return;
        }
        let Some(first) = client.outbox.pop_front() else {
            return;
        };
        if !client.outbox.is_empty() {
            self.within(
                self.plan.pace,
                Step::Take {
                    client: name,
                    node,
                    process,
                    stay,
                },
            );
        }
        self.finish(node, first, Outcome::Delivered);
        self.drive(node);
    }

    /// A client goes away, perhaps in the middle of a message, and one with a name of its own comes back.
    fn leave(&mut self, name: Name, process: u32) {
        let half_written = self.rng.random_bool(0.3);
        let Some(client) = self.client(name, process) else {
            return;
        };
        client.present = false;
        client.stay += 1;
        let left = std::mem::take(&mut client.outbox);
        for (index, message) in left.into_iter().enumerate() {
            let outcome = if index == 0 && half_written {
                Outcome::Unknown(Code::RecipientGone)
            } else {
                Outcome::Refused(Code::RecipientGone)
            };
            self.finish(name.node, message, outcome);
        }
        if name.process.is_none() {
            self.within(self.plan.gap, Step::Return { client: name, process });
        }
        self.drive(name.node);
    }

    // -- The driver of one endpoint.

    /// Does all that the endpoint asks for, after anything happened to it.
    fn drive(&mut self, node: usize) {
        let (now, wait) = (self.instant(self.now), Duration::from_micros(self.plan.wait));
        self.nodes[node].endpoint.expire(now, wait);
        self.tell(node);
        self.admit(node);
        self.transmit(node);
        let eager = self.eager || self.rng.random_bool(self.plan.eager);
        while let Some(control) = self.nodes[node].endpoint.poll_control(eager) {
            self.send_control(node, control);
        }
        if let Some(at) = self.nodes[node].endpoint.expire(now, wait) {
            let at = Time::try_from(at.duration_since(self.base).as_micros()).unwrap();
            let process = self.nodes[node].process;
            if self.nodes[node].expires.is_none_or(|planned| planned > at) {
                self.nodes[node].expires = Some(at);
                self.after(at - self.now, Step::Wake { node, process });
            }
        }
    }

    fn tell(&mut self, node: usize) {
        for (serial, outcome) in self.nodes[node].endpoint.sender.drain_settled() {
            self.log(Event::Told { serial, outcome });
        }
    }

    /// Lets those send who wait for room.
    fn admit(&mut self, node: usize) {
        while self.nodes[node].endpoint.sender.has_room() {
            let Some(from) = self.nodes[node].waiting.pop_front() else {
                return;
            };
            let addresses = &self.addresses[1 - node];
            // Mostly those of the present process.
            let recent = addresses.len().saturating_sub(self.plan.clients as usize);
            let first = if self.rng.random_bool(0.9) { recent } else { 0 };
            let to = addresses[self.rng.random_range(first..addresses.len())];
            let message = Message {
                serial: self.serials,
                from,
                to,
                size: self.rng.random_range(0..=self.plan.largest),
            };
            self.serials += 1;
            let number = |name: Name| u64::from(name.process.unwrap_or(0)) << 8 | u64::from(name.id);
            let conversation = match number(from) << 32 | number(to) {
                conversation if self.plan.shared => conversation & 1,
                conversation => conversation,
            };
            self.log(Event::Submitted { message, conversation });
            let now = self.instant(self.now);
            let sender = &mut self.nodes[node].endpoint.sender;
            sender.submit(now, conversation, message.size, message, message.serial);
        }
    }

    fn transmit(&mut self, node: usize) {
        if self.nodes[node].stalled || !self.nodes[node].endpoint.sender.wants_transmit() {
            return;
        }
        if self.plan.stalls > 0.0 && self.rng.random_bool(self.plan.stalls) {
            self.nodes[node].stalled = true;
            let process = self.nodes[node].process;
            self.within(self.plan.stall, Step::Wake { node, process });
            // Some may go before the stall.
            if self.rng.random_bool(0.5) {
                self.transmit_one(node);
            }
            return;
        }
        while self.transmit_one(node) {}
    }

    fn transmit_one(&mut self, node: usize) -> bool {
        let Some(transmit) = self.nodes[node].endpoint.sender.poll_transmit() else {
            return false;
        };
        let (number, after, message) = (transmit.number, transmit.after, *transmit.message);
        let attempt = self.attempts;
        self.attempts += 1;
        self.log(Event::Transmitted {
            serial: message.serial,
            attempt,
        });
        let Some(connection) = self.nodes[node].connection else {
            return true;
        };
        if self.connections[connection].broken.is_some() {
            return true;
        }
        let opens = self.connections[connection].opens[1 - node].max(self.now);
        let copies = if self.rng.random_bool(self.plan.repeats) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = opens.max(self.now + self.upto(self.plan.delay)) - self.now;
            self.after(
                delay,
                Step::Arrive {
                    connection,
                    node: 1 - node,
                    number,
                    after,
                    message,
                    attempt,
                },
            );
        }
        true
    }

    fn send_control(&mut self, node: usize, control: Control) {
        let Some(connection) = self.nodes[node].connection else {
            return;
        };
        let arrives = self.now + self.upto(self.plan.delay);
        let Connection {
            broken, control: last, ..
        } = &mut self.connections[connection];
        if broken.is_some() {
            return;
        }
        let arrives = arrives.max(last[1 - node]);
        last[1 - node] = arrives;
        self.after(
            arrives - self.now,
            Step::Control {
                connection,
                node: 1 - node,
                control,
            },
        );
    }
}

// ---- The schedules ------------------------------------------------------------------------------------------------

/// Says how to play a schedule again if the machine panics in it.
struct Replay(u64);

impl Replay {
    fn command(&self) -> String {
        format!("TRUNKLINE_SIM_SEED={} cargo test --lib delivery::simulation", self.0)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to play it again: {}", self.command());
        }
    }
}

fn play(seed: u64, verbose: bool) -> Tally {
    let replay = Replay(seed);
    let mut world = World::new(seed);
    let result = world.run();
    if verbose && result.is_err() {
        eprintln!("{:#?}", world.plan);
        for Logged { at, event } in &world.log {
            eprintln!("{at:>9} {event:?}");
        }
    }
    match result {
        Ok(tally) => tally,
        Err(failure) => panic!("schedule {seed}: {failure}\n{}", replay.command()),
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

#[test]
fn every_schedule_keeps_the_promises() {
    if let Some(seed) = number_from("TRUNKLINE_SIM_SEED") {
        eprintln!("{:?}", play(seed, true));
        return;
    }
    let schedules = number_from("TRUNKLINE_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number_from("TRUNKLINE_SIM_FIRST").unwrap_or(0);
    let mut total = Tally::default();
    for seed in first..first.saturating_add(schedules) {
        let tally = play(seed, false);
        total.sent += tally.sent;
        total.delivered += tally.delivered;
        total.refused += tally.refused;
        total.unknown += tally.unknown;
    }
    eprintln!("{schedules} schedules: {total:?}");
    // Every end is met often enough to be tested.
    let rare = total.sent / 100;
    assert!(
        total.delivered > rare && total.refused > rare && total.unknown > rare,
        "{total:?}"
    );
}

#[test]
fn a_schedule_is_the_same_each_time_it_is_played() {
    for seed in 0..20 {
        let [one, other] = [0, 1].map(|_| {
            let mut world = World::new(seed);
            world.run().unwrap();
            world.log
        });
        assert_eq!(one, other);
    }
}
// ---- The checker's own test ---------------------------------------------------------------------------------------

/// Changes a history so that it holds a breach, unless it gives no occasion.
type Plant = fn(Vec<Logged>) -> Option<Vec<Logged>>;

/// The first position whose event `wanted` gives something for.
fn find<V>(log: &[Logged], wanted: impl Fn(usize, Event) -> Option<V>) -> Option<(usize, V)> {
    log.iter()
        .enumerate()
        .find_map(|(position, logged)| Some((position, wanted(position, logged.event)?)))
}

/// The first message that is seen, and its sender told so.
fn seen_and_told(log: &[Logged]) -> Option<(usize, Message, usize)> {
    let (told, serial) = find(log, |_, event| match event {
        Event::Told {
            serial,
            outcome: Outcome::Delivered,
        } => Some(serial),
        _ => None,
    })?;
    let (seen, message) = find(log, |_, event| match event {
        Event::Ended { message, .. } if message.serial == serial => Some(message),
        _ => None,
    })?;
    Some((seen, message, told))
}

fn lose(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (seen, ..) = seen_and_told(&log)?;
    log.remove(seen);
    Some(log)
}

fn repeat(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (seen, ..) = seen_and_told(&log)?;
    log.insert(seen + 1, log[seen]);
    Some(log)
}

/// Two that are seen while neither sender was told change places.
fn swap(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let mut seen = Vec::new();
    let mut told = Vec::new();
    let mut submitted = Vec::new();
    for (position, logged) in log.iter().enumerate() {
        match logged.event {
            Event::Submitted { message, .. } => submitted.push((position, message.serial)),
            Event::Told { serial, .. } => told.push((position, serial)),
            Event::Ended {
                message,
                outcome: Outcome::Delivered,
                ..
            } => seen.push((position, message)),
            _ => {}
        }
    }
    let before = |all: &[(usize, usize)], serial, position| all.iter().any(|&(p, s)| s == serial && p < position);
    for (index, &(first, one)) in seen.iter().enumerate() {
        for &(second, other) in &seen[index + 1..] {
            if (one.from, one.to) == (other.from, other.to)
                && before(&submitted, other.serial, first)
                && !before(&told, one.serial, second)
            {
                (log[first].event, log[second].event) = (log[second].event, log[first].event);
                return Some(log);
            }
        }
    }
    None
}

fn misdeliver(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (seen, ..) = seen_and_told(&log)?;
    let Event::Ended { at, .. } = &mut log[seen].event else {
        return None;
    };
    at.id += 1;
    Some(log)
}

fn forge(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (seen, ..) = seen_and_told(&log)?;
    let Event::Ended { message, .. } = &mut log[seen].event else {
        return None;
    };
    message.from.id += 1;
    Some(log)
}

fn silence(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let restarts = |log: &[Logged], from| {
        find(log, |at, event| {
            (at > from && matches!(event, Event::Started { .. })).then_some(())
        })
    };
    let (told, _) = find(&log, |at, event| {
        (matches!(event, Event::Told { .. }) && restarts(&log, at).is_none()).then_some(())
    })?;
    log.remove(told);
    Some(log)
}

fn tell_twice(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (.., told) = seen_and_told(&log)?;
    log.insert(told + 1, log[told]);
    Some(log)
}

fn deny(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (_, message, told) = seen_and_told(&log)?;
    log[told].event = Event::Told {
        serial: message.serial,
        outcome: Outcome::Refused(Code::RecipientFull),
    };
    Some(log)
}

fn doubt(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let (_, message, told) = seen_and_told(&log)?;
    log[told].event = Event::Told {
        serial: message.serial,
        outcome: Outcome::Unknown(Code::NodeRestarted),
    };
    Some(log)
}

/// All that follows an answer, and itself, happens an hour later.
fn delay(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let mut steady = false;
    let (told, ()) = log
        .iter()
        .enumerate()
        .find_map(|(position, logged)| match logged.event {
            Event::Steady(now) => {
                steady = now;
                None
            }
            Event::Told { .. } if steady => Some((position, ())),
            _ => None,
        })?;
    for logged in &mut log[told..] {
        logged.at += 3_600_000 * MS;
    }
    Some(log)
}

/// A message that came is not passed on.
fn hold_up(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let arrives = log.windows(2).position(|pair| match (pair[0].event, pair[1].event) {
        (Event::Arrived { serial, .. }, Event::Handed { serial: handed }) => serial == handed,
        _ => false,
    })?;
    log.remove(arrives + 1);
    Some(log)
}

/// What the other side said it has is transmitted again.
fn waste(mut log: Vec<Logged>) -> Option<Vec<Logged>> {
    let synced = log
        .iter()
        .rposition(|logged| logged.event == Event::Synced { node: 0 })?;
    let before = log.get(..synced)?;
    let lost = before
        .iter()
        .rposition(|logged| matches!(logged.event, Event::Lost { node: 1, .. }))?;
    let started = before
        .iter()
        .rposition(|logged| matches!(logged.event, Event::Started { .. }))?;
    let serial = before
        .get(started..lost)?
        .iter()
        .find_map(|logged| match logged.event {
            Event::Ended { message, .. } if message.from.node == 0 => Some(message.serial),
            _ => None,
        })?;
    let event = Event::Transmitted {
        serial,
        attempt: usize::MAX,
    };
    let at = log[synced].at;
    log.insert(synced + 1, Logged { at, event });
    Some(log)
}

#[test]
fn every_planted_breach_is_found() {
    let plants: [(Plant, &[Breach]); 12] = [
        (lose, &[Breach::Promise(Broken::Lost)]),
        (repeat, &[Breach::Promise(Broken::Repeated)]),
        (swap, &[Breach::Promise(Broken::Reordered)]),
        (misdeliver, &[Breach::Promise(Broken::Misdelivered)]),
        (forge, &[Breach::Promise(Broken::Forged)]),
        // Where time goes on, silence is first of all late.
        (
            silence,
            &[Breach::Promise(Broken::Silent), Breach::Promise(Broken::Late)],
        ),
        (tell_twice, &[Breach::Promise(Broken::ToldTwice)]),
        (deny, &[Breach::Promise(Broken::SeenThoughRefused)]),
        (doubt, &[Breach::Promise(Broken::Unfounded)]),
        (delay, &[Breach::Promise(Broken::Late)]),
        (hold_up, &[Breach::HeldUp]),
        (waste, &[Breach::Wasted]),
    ];
    let mut planted = [0; 12];
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.run().unwrap();
        for ((plant, breaches), planted) in plants.iter().zip(&mut planted) {
            if let Some(log) = plant(world.log.clone()) {
                *planted += 1;
                let found = check(&log, world.plan.limits()).map_err(|finding| finding.breach);
                assert!(
                    found.is_err_and(|breach| breaches.contains(&breach)),
                    "{breaches:?} {found:?} in {seed}"
                );
            }
        }
    }
    assert!(planted.iter().all(|&planted| planted > 20), "{planted:?}");
}
