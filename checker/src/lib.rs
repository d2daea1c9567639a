//! Judges what clients sent, saw and were told, by what they were promised. Pure, and knows nothing of the relay.
//!
//! Events go into a [`Checker`] in the order in which they happened; at the end it says what was broken, if anything.
//! The same judge serves logs of real clients ([`log`]) and simulated ones.

pub mod log;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

/// When something happened. In what unit is for the caller to choose, who gives the rules in the same.
pub type Time = u64;

/// How a message ended, as its sender was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was seen.
    Delivered,
    /// It was not seen, and will not be.
    Refused,
    /// Either.
    Unknown,
}

/// What was seen from outside, by clients `C` of nodes that are numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<C> {
    /// A client has come. `confirms`: what it is sent counts as delivered when it says that it saw it, not when it was
    /// written to its connection.
    Joined {
        /// The client.
        client: C,
        /// Its node.
        node: usize,
        /// Whether it says what it saw.
        confirms: bool,
        /// When it began to connect. A node that died since then may have been the one that let it in.
        since: Time,
    },
    /// A client was killed, or begins to leave: it may see nothing any more.
    Gone {
        /// The client.
        client: C,
    },
    /// A client that does not confirm has read its connection to the end: it saw all that was ever written to it.
    ReadAll {
        /// The client.
        client: C,
    },
    /// A client found that it has no session any more.
    CutOff {
        /// The client.
        client: C,
    },
    /// A node was killed, and with it the sessions of its clients.
    NodeDied {
        /// The node.
        node: usize,
    },
    /// A node is stopped: it does nothing until it goes on.
    NodeStopped {
        /// The node.
        node: usize,
    },
    /// A stopped node goes on.
    NodeResumed {
        /// The node.
        node: usize,
    },
    /// A client sends a message. Numbers are given once, and those of one client rise.
    Sent {
        /// The message.
        message: u64,
        /// Its sender.
        from: C,
        /// Its recipient.
        to: C,
    },
    /// A client saw a message.
    Seen {
        /// The message.
        message: u64,
        /// Whom the client takes for its sender.
        from: C,
        /// Who saw it.
        by: C,
    },
    /// The sender is told the end.
    Told {
        /// The message.
        message: u64,
        /// How it ended.
        outcome: Outcome,
    },
}

/// What is asked of a history beyond what always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// The longest from sending to being told.
    pub deadline: Option<Time>,
    /// Nothing but the end of the sender's node, the recipient or its node may end a message otherwise than delivered,
    /// nor nothing but the end of its node a session. A node that was started again is excused for as long as the
    /// sender's node has not got anything delivered there since: it may not know that there is another one.
    pub only_deaths_excuse: bool,
    /// How long a node that is not stopped may take to notice that the connection of a client was closed. Until then what is
    /// written to it may be told as delivered.
    pub notice: Time,
}

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Breach {
    /// Its sender was told that it was delivered, and nobody saw it.
    Lost,
    /// Seen twice.
    Repeated,
    /// Seen after a later one of the same sender.
    Reordered,
    /// Seen by another than its addressee.
    Misdelivered,
    /// Seen with another sender than it has, or sent by nobody.
    Forged,
    /// Its sender was never told.
    Silent,
    /// Its sender was told twice.
    ToldTwice,
    /// Its sender was told that nobody saw it.
    SeenThoughRefused,
    /// Nothing that happened explains what its sender was told.
    Unfounded,
    /// Its sender was not told in time.
    Late,
    /// A client lost its session, and nothing that happened explains it.
    CutOff,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Repeated => "repeated",
            Self::Reordered => "reordered",
            Self::Misdelivered => "misdelivered",
            Self::Forged => "forged",
            Self::Silent => "never told",
            Self::ToldTwice => "told twice",
            Self::SeenThoughRefused => "seen though refused",
            Self::Unfounded => "unfounded",
            Self::Late => "late",
            Self::CutOff => "cut off",
        })
    }
}

/// A breach, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub breach: Breach,
    /// The message; `None` for what befell a client.
    pub message: Option<u64>,
    /// When it was found.
    pub at: Time,
}

/// How many messages ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages sent.
    pub sent: u64,
    /// Times that a message was seen.
    pub seen: u64,
    /// Told as delivered.
    pub delivered: u64,
    /// Told as refused.
    pub refused: u64,
    /// Told as unknown.
    pub unknown: u64,
    /// Not told, because the sender was gone, or the only connection it could be told on.
    pub nobody_to_tell: u64,
    /// Delivered to the connection of a client that does not confirm, which was gone before it was seen to read it:
    /// nobody can say whether it saw it. Only what was told after the last message that it saw was sent, and after
    /// which it saw nothing of the same sender, can be among these.
    pub unverifiable: u64,
    /// The longest that a sender waited to be told.
    pub slowest: Time,
}

/// A client as the checker follows it.
#[derive(Debug, Clone, Copy)]
struct Life {
    node: usize,
    confirms: bool,
    /// When it was gone, itself or with its node.
    gone: Option<Time>,
    /// When its node can have begun to notice that, if it was stopped then.
    resumed: Option<Time>,
    /// When its node died, if that came first or at all.
    node_died: Option<Time>,
    /// When one with the same name was gone that came before it.
    before: Option<Time>,
    /// Its node died while it connected: whether before or after it was let in will show.
    doubtful: bool,
    /// When the latest of the messages that it saw was sent.
    latest_seen: Option<Time>,
    /// It read its connection to the end, while its node lived.
    read_all: bool,
}

impl Life {
    /// Something came to it by its node: it was let in by the one that lives.
    fn show(&mut self) {
        if std::mem::take(&mut self.doubtful) {
            self.gone = None;
            self.node_died = None;
        }
    }
}

/// What became of one message.
#[derive(Debug)]
struct Fate<C> {
    from: C,
    to: C,
    sent: Time,
    seen: bool,
    /// When, and what.
    told: Option<(Time, Outcome)>,
}

/// Follows a history.
#[derive(Debug)]
pub struct Checker<C> {
    rules: Rules,
    now: Time,
    clients: HashMap<C, Life>,
    /// When each node died last.
    deaths: HashMap<usize, Time>,
    /// When each node was stopped last.
    stops: HashMap<usize, Time>,
    /// When a sender on one node was told first, since the other node's last death, that a message to there was
    /// delivered.
    in_touch: HashMap<(usize, usize), Time>,
    fates: HashMap<u64, Fate<C>>,
    /// The last message seen of each sender by each recipient.
    last_seen: HashMap<(C, C), u64>,
    tally: Tally,
}

impl<C: Clone + Eq + Hash> Checker<C> {
    /// A checker of a history that has not begun.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            now: 0,
            clients: HashMap::new(),
            deaths: HashMap::new(),
            stops: HashMap::new(),
            in_touch: HashMap::new(),
            fates: HashMap::new(),
            last_seen: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// Something happened, not before what was followed so far. What it breaks is judged at once; what can only be
    /// judged by all that happened is left to [`finish`](Self::finish).
    pub fn follow(&mut self, at: Time, event: Event<C>) -> Result<(), Finding> {
        self.now = self.now.max(at);
        let finding = |(breach, message)| Finding {
            breach,
            message: Some(message),
            at,
        };
        match event {
            Event::Joined {
                client,
                node,
                confirms,
                since,
            } => {
                let died = self.deaths.get(&node).copied().filter(|&died| died >= since);
                let life = Life {
                    node,
                    confirms,
                    gone: died,
                    resumed: None,
                    node_died: died,
                    before: self.clients.get(&client).and_then(|life| life.gone),
                    doubtful: died.is_some(),
                    latest_seen: None,
                    read_all: false,
                };
                self.clients.insert(client, life);
                Ok(())
            }
            Event::Gone { client } => {
                if let Some(life) = self.clients.get_mut(&client) {
                    life.doubtful = false;
                    life.gone.get_or_insert(at);
                }
                Ok(())
            }
            Event::ReadAll { client } => {
                if let Some(life) = self.clients.get_mut(&client) {
                    life.read_all = life.node_died.is_none();
                }
                Ok(())
            }
            Event::NodeDied { node } => {
                self.deaths.insert(node, at);
                self.in_touch.retain(|&(_, to), _| to != node);
                for life in self.clients.values_mut().filter(|life| life.node == node) {
                    life.doubtful = false;
                    life.node_died.get_or_insert(at);
                    life.gone.get_or_insert(at);
                }
                Ok(())
            }
            Event::NodeStopped { node } => {
                self.stops.insert(node, at);
                Ok(())
            }
            Event::NodeResumed { node } => {
                if let Some(stopped) = self.stops.remove(&node) {
                    let unnoticed = stopped.saturating_sub(self.rules.notice);
                    for life in self.clients.values_mut().filter(|life| life.node == node) {
                        if life.gone.is_some_and(|gone| gone >= unnoticed) {
                            life.resumed.get_or_insert(at);
                        }
                    }
                }
                Ok(())
            }
            Event::CutOff { client } => self.cut_off(at, &client),
            Event::Sent { message, from, to } => {
                let fate = Fate {
                    from,
                    to,
                    sent: at,
                    seen: false,
                    told: None,
                };
                self.tally.sent += 1;
                match self.fates.insert(message, fate) {
                    None => Ok(()),
                    // The number says nothing any more.
                    Some(_) => Err(finding((Breach::Forged, message))),
                }
            }
            Event::Seen { message, from, by } => self.seen(message, &from, &by).map_err(finding),
            Event::Told { message, outcome } => self.told(at, message, outcome).map_err(finding),
        }
    }

    /// The history is over: judges what was never told or never seen.
    pub fn finish(mut self) -> (Tally, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut messages: Vec<u64> = self.fates.keys().copied().collect();
        messages.sort_unstable();
        for message in messages {
            let Some(fate) = self.fates.get(&message) else {
                continue;
            };
            let breach = match fate.told {
                None => match self.nobody_to_tell(fate) {
                    true => {
                        self.tally.nobody_to_tell += 1;
                        None
                    }
                    false => Some(Breach::Silent),
                },
                // Of those that confirm it was found when it was told.
                Some((told, Outcome::Delivered)) if !fate.seen && !self.confirms(&fate.to) => {
                    match self.is_unverifiable(message, fate, told) {
                        true => {
                            self.tally.unverifiable += 1;
                            None
                        }
                        false => Some(Breach::Lost),
                    }
                }
                Some(_) => None,
            };
            findings.extend(breach.map(|breach| Finding {
                breach,
                message: Some(message),
                at: self.now,
            }));
        }
        (self.tally, findings)
    }

    fn cut_off(&mut self, at: Time, client: &C) -> Result<(), Finding> {
        let Some(life) = self.clients.get_mut(client) else {
            return Ok(());
        };
        let founded = life.node_died.is_some();
        life.gone.get_or_insert(at);
        if founded || !self.rules.only_deaths_excuse {
            return Ok(());
        }
        Err(Finding {
            breach: Breach::CutOff,
            message: None,
            at,
        })
    }

    fn seen(&mut self, message: u64, from: &C, by: &C) -> Result<(), (Breach, u64)> {
        self.tally.seen += 1;
        let fate = self.fates.get_mut(&message).ok_or((Breach::Forged, message))?;
        if *from != fate.from {
            return Err((Breach::Forged, message));
        }
        if *by != fate.to {
            return Err((Breach::Misdelivered, message));
        }
        if let Some(life) = self.clients.get_mut(by) {
            life.show();
            life.latest_seen = life.latest_seen.max(Some(fate.sent));
        }
        if std::mem::replace(&mut fate.seen, true) {
            return Err((Breach::Repeated, message));
        }
        if fate.told.is_some_and(|(_, outcome)| outcome == Outcome::Refused) {
            return Err((Breach::SeenThoughRefused, message));
        }
        let last = self.last_seen.entry((from.clone(), by.clone())).or_insert(message);
        if *last > message {
            return Err((Breach::Reordered, message));
        }
        *last = message;
        Ok(())
    }

    /// Whether what is told as delivered to a client must have been seen by then. Nothing may be told as delivered to one
    /// that never joined.
    fn confirms(&self, client: &C) -> bool {
        self.clients.get(client).is_none_or(|life| life.confirms)
    }

    fn told(&mut self, at: Time, message: u64, outcome: Outcome) -> Result<(), (Breach, u64)> {
        let fate = self.fates.get_mut(&message).ok_or((Breach::Forged, message))?;
        if fate.told.replace((at, outcome)).is_some() {
            return Err((Breach::ToldTwice, message));
        }
        if let Some(life) = self
            .clients
            .get_mut(&fate.from)
            .filter(|_| outcome == Outcome::Delivered)
        {
            life.show();
        }
        let took = at.saturating_sub(fate.sent);
        self.tally.slowest = self.tally.slowest.max(took);
        let (sender, recipient) = (self.clients.get(&fate.from), self.clients.get(&fate.to));
        let confirms = recipient.is_none_or(|life| life.confirms);
        let nodes = sender.zip(recipient).map(|(from, to)| (from.node, to.node));
        if let Some(nodes) = nodes.filter(|_| outcome == Outcome::Delivered)
            && recipient.is_some_and(|life| life.gone.is_none())
        {
            self.in_touch.entry(nodes).or_insert(at);
        }
        match outcome {
            Outcome::Delivered => self.tally.delivered += 1,
            Outcome::Refused => self.tally.refused += 1,
            Outcome::Unknown => self.tally.unknown += 1,
        }
        match outcome {
            Outcome::Delivered if confirms && !fate.seen => return Err((Breach::Lost, message)),
            Outcome::Refused if fate.seen => return Err((Breach::SeenThoughRefused, message)),
            Outcome::Refused | Outcome::Unknown if self.rules.only_deaths_excuse => {
                let recipient_gone = recipient.is_none_or(|life| life.gone.is_some());
                let node_died = sender.is_none_or(|life| life.node_died.is_some());
                let not_in_touch = nodes.is_some_and(|nodes| {
                    let since = self.in_touch.get(&nodes);
                    nodes.0 != nodes.1
                        && self.deaths.contains_key(&nodes.1)
                        && since.is_none_or(|&since| fate.sent < since)
                });
                if !recipient_gone && !node_died && !not_in_touch {
                    return Err((Breach::Unfounded, message));
                }
            }
            Outcome::Delivered | Outcome::Refused | Outcome::Unknown => {}
        }
        match self.rules.deadline {
            Some(deadline) if took > deadline => Err((Breach::Late, message)),
            _ => Ok(()),
        }
    }

    /// Whether a message that was not answered could not be, and was gone before it had to be.
    fn nobody_to_tell(&self, fate: &Fate<C>) -> bool {
        let Some(life) = self.clients.get(&fate.from) else {
            return false;
        };
        let by = self
            .rules
            .deadline
            .map_or(Time::MAX, |deadline| fate.sent.saturating_add(deadline));
        life.gone.is_some_and(|gone| gone <= by) || life.before.is_some_and(|gone| fate.sent <= gone && gone <= by)
    }

    /// Whether a message that was told as delivered, then, and not seen may have been on its way from a connection to its
    /// reader, when one of them was gone, and its node had not noticed.
    fn is_unverifiable(&self, message: u64, fate: &Fate<C>, told: Time) -> bool {
        let Some(life) = self.clients.get(&fate.to).filter(|life| !life.confirms) else {
            return false;
        };
        // A connection is one stream, and what is told as delivered is in it. Who has seen a later message of the same
        // sender, or one of anybody that was not yet sent then, has passed this one.
        let last = self.last_seen.get(&(fate.from.clone(), fate.to.clone()));
        let passed = last.is_some_and(|&last| last > message) || life.latest_seen.is_some_and(|sent| sent > told);
        let noticed = life
            .gone
            .max(life.resumed)
            .map(|since| since.saturating_add(self.rules.notice));
        noticed.is_some_and(|noticed| noticed >= fate.sent) && !life.read_all && !passed
    }
}

/// Judges a whole history. Events at the same time are taken in the order given.
pub fn check<C: Clone + Eq + Hash>(
    events: impl IntoIterator<Item = (Time, Event<C>)>,
    rules: Rules,
) -> (Tally, Vec<Finding>) {
    let mut checker = Checker::new(rules);
    let mut findings = Vec::new();
    for (at, event) in events {
        findings.extend(checker.follow(at, event).err());
    }
    let (tally, rest) = checker.finish();
    findings.extend(rest);
    (tally, findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        deadline: Some(100),
        only_deaths_excuse: true,
        notice: 0,
    };

    type History = Vec<(Time, Event<&'static str>)>;

    fn joined(client: &'static str, node: usize, confirms: bool) -> Event<&'static str> {
        Event::Joined {
            client,
            node,
            confirms,
            since: 0,
        }
    }

    fn sent(message: u64, from: &'static str, to: &'static str) -> Event<&'static str> {
        Event::Sent { message, from, to }
    }

    fn seen(message: u64, from: &'static str, by: &'static str) -> Event<&'static str> {
        Event::Seen { message, from, by }
    }

    fn told(message: u64, outcome: Outcome) -> Event<&'static str> {
        Event::Told { message, outcome }
    }

    /// Two clients that confirm on two nodes, one that does not, two messages that are seen and told.
    fn good() -> History {
        vec![
            (0, joined("a", 0, true)),
            (0, joined("b", 1, true)),
            (0, joined("line", 1, false)),
            (1, sent(1, "a", "b")),
            (2, sent(2, "a", "b")),
            (3, seen(1, "a", "b")),
            (4, seen(2, "a", "b")),
            (5, told(2, Outcome::Delivered)),
            (6, told(1, Outcome::Delivered)),
        ]
    }

    fn breaches(history: History) -> Vec<Breach> {
        check(history, RULES).1.iter().map(|finding| finding.breach).collect()
    }

    fn with(more: impl IntoIterator<Item = (Time, Event<&'static str>)>) -> History {
        good().into_iter().chain(more).collect()
    }

    #[test]
    fn a_good_history_has_no_breach() {
        let (tally, findings) = check(good(), RULES);
        assert_eq!(findings, []);
        assert_eq!((tally.sent, tally.seen, tally.delivered, tally.slowest), (2, 2, 2, 5));
    }

    #[test]
    fn every_planted_breach_is_found() {
        type Plant = fn(&mut History);
        let plants: [(Plant, &[Breach]); 11] = [
            (
                |log| {
                    log.remove(6);
                },
                &[Breach::Lost],
            ),
            (|log| log.insert(7, log[6].clone()), &[Breach::Repeated]),
            (|log| log.swap(5, 6), &[Breach::Reordered]),
            (
                |log| log[5].1 = seen(1, "a", "line"),
                &[Breach::Misdelivered, Breach::Lost],
            ),
            (|log| log[5].1 = seen(1, "line", "b"), &[Breach::Forged, Breach::Lost]),
            (|log| log[5].1 = seen(77, "a", "b"), &[Breach::Forged, Breach::Lost]),
            (|log| log.truncate(8), &[Breach::Silent]),
            (|log| log.push(log[8].clone()), &[Breach::ToldTwice]),
            (|log| log[8].1 = told(1, Outcome::Refused), &[Breach::SeenThoughRefused]),
            (|log| log[8].1 = told(1, Outcome::Unknown), &[Breach::Unfounded]),
            (|log| log[8].0 = 102, &[Breach::Late]),
        ];
        for (index, (plant, expected)) in plants.into_iter().enumerate() {
            let mut history = good();
            plant(&mut history);
            assert_eq!(breaches(history), expected, "plant {index}");
        }
    }

    #[test]
    fn what_is_delivered_to_one_that_confirms_was_seen_before_it_is_told() {
        let mut history = good();
        history.swap(6, 7);
        assert_eq!(breaches(history), [Breach::Lost]);
    }

    #[test]
    fn what_is_refused_is_not_seen_later() {
        let history = with([
            (7, Event::Gone { client: "b" }),
            (8, sent(3, "a", "b")),
            (9, told(3, Outcome::Refused)),
            (10, seen(3, "a", "b")),
        ]);
        assert_eq!(breaches(history), [Breach::SeenThoughRefused]);
    }

    #[test]
    fn deaths_excuse_and_nothing_else_does() {
        let unknown = [(8, sent(3, "a", "b")), (9, told(3, Outcome::Unknown))];
        assert_eq!(breaches(with(unknown.clone())), [Breach::Unfounded]);
        for death in [
            Event::Gone { client: "b" },
            Event::NodeDied { node: 0 },
            Event::NodeDied { node: 1 },
        ] {
            let history = with([(7, death)].into_iter().chain(unknown.clone()));
            assert_eq!(breaches(history), []);
        }
        for death in [Event::Gone { client: "line" }, Event::Gone { client: "a" }] {
            let history = with([(7, death)].into_iter().chain(unknown.clone()));
            assert_eq!(breaches(history), [Breach::Unfounded]);
        }
        // A death that comes after what it would have to explain.
        let late = with(unknown.into_iter().chain([(10, Event::NodeDied { node: 1 })]));
        assert_eq!(breaches(late), [Breach::Unfounded]);
    }

    #[test]
    fn a_node_that_is_another_one_excuses_until_something_gets_there() {
        let again = Event::Joined {
            client: "new",
            node: 1,
            confirms: true,
            since: 8,
        };
        let refused = |at, message| {
            [
                (at, sent(message, "a", "new")),
                (at + 5, told(message, Outcome::Refused)),
            ]
        };
        let history = |more: Vec<(Time, Event<&'static str>)>| {
            with(
                [(7, Event::NodeDied { node: 1 }), (8, again.clone())]
                    .into_iter()
                    .chain(more),
            )
        };
        assert_eq!(breaches(history(refused(9, 3).to_vec())), []);
        let delivered = [
            (20, sent(4, "a", "new")),
            (21, seen(4, "a", "new")),
            (22, told(4, Outcome::Delivered)),
        ];
        let told_late = [(9, sent(3, "a", "new"))].into_iter().chain(delivered.clone());
        let told_late = told_late.chain([(23, told(3, Outcome::Refused))]);
        assert_eq!(breaches(history(told_late.collect())), []);
        let later = delivered.into_iter().chain(refused(23, 5));
        assert_eq!(breaches(history(later.collect())), [Breach::Unfounded]);
        // On the node itself everyone knows.
        let beside = [(9, joined("beside", 1, true)), (9, sent(3, "new", "beside"))];
        let beside = beside.into_iter().chain([(10, told(3, Outcome::Refused))]);
        assert_eq!(
            breaches(history(beside.map(|(at, event)| (at, since_now(event))).collect())),
            [Breach::Unfounded]
        );
    }

    /// Began to connect just before.
    fn since_now(event: Event<&'static str>) -> Event<&'static str> {
        match event {
            Event::Joined {
                client, node, confirms, ..
            } => Event::Joined {
                client,
                node,
                confirms,
                since: 8,
            },
            other => other,
        }
    }

    #[test]
    fn a_session_ends_with_its_node_only() {
        let cut_off = (8, Event::CutOff { client: "a" });
        assert_eq!(breaches(with([cut_off.clone()])), [Breach::CutOff]);
        assert_eq!(
            breaches(with([(7, Event::NodeDied { node: 1 }), cut_off.clone()])),
            [Breach::CutOff]
        );
        assert_eq!(breaches(with([(7, Event::NodeDied { node: 0 }), cut_off])), []);
    }

    #[test]
    fn a_node_that_died_while_a_client_connected_may_have_been_the_one_that_let_it_in() {
        let joined_late = [
            (7, Event::NodeDied { node: 1 }),
            (
                8,
                Event::Joined {
                    client: "late",
                    node: 1,
                    confirms: true,
                    since: 7,
                },
            ),
        ];
        let cut_off = (20, Event::CutOff { client: "late" });
        let history = |more: &[(Time, Event<&'static str>)]| with(joined_late.iter().chain(more).cloned());
        assert_eq!(breaches(history(std::slice::from_ref(&cut_off))), []);
        // What it was sent came: it is on the node that lives.
        let came = [
            (9, sent(3, "a", "late")),
            (10, seen(3, "a", "late")),
            (11, told(3, Outcome::Delivered)),
        ];
        assert_eq!(breaches(history(&came)), []);
        let [one, two, three] = came;
        assert_eq!(breaches(history(&[one, two, three, cut_off])), [Breach::CutOff]);
    }

    #[test]
    fn who_is_gone_is_told_nothing_but_who_stays_is() {
        let dead = with([(7, sent(3, "a", "b")), (8, Event::Gone { client: "a" })]);
        assert_eq!(check(dead, RULES).0.nobody_to_tell, 1);
        let too_late = with([(7, sent(3, "a", "b")), (108, Event::Gone { client: "a" })]);
        assert_eq!(breaches(too_late), [Breach::Silent]);
        let other = with([(7, sent(3, "a", "b")), (8, Event::Gone { client: "b" })]);
        assert_eq!(breaches(other), [Breach::Silent]);
    }

    #[test]
    fn a_client_that_comes_again_under_its_name_is_told_what_it_sends_since() {
        let again = Event::Joined {
            client: "a",
            node: 0,
            confirms: true,
            since: 9,
        };
        let again = [(7, sent(3, "a", "b")), (8, Event::NodeDied { node: 0 }), (9, again)];
        let (tally, findings) = check(with(again.clone()), RULES);
        assert_eq!((tally.nobody_to_tell, findings), (1, Vec::new()));
        let silent = with(again.into_iter().chain([(10, sent(4, "a", "b"))]));
        assert_eq!(breaches(silent), [Breach::Silent]);
    }

    #[test]
    fn what_was_in_a_dead_connection_is_unverifiable_and_nothing_else_is() {
        let delivered = |message| (8, told(message, Outcome::Delivered));
        let gone = (9, Event::Gone { client: "line" });
        let sends = [(7, sent(3, "a", "line")), (7, sent(4, "a", "line"))];
        let all = |more: &[(Time, Event<&'static str>)]| with(sends.iter().chain(more).cloned());
        let (tally, findings) = check(all(&[delivered(3), delivered(4), gone.clone()]), RULES);
        assert_eq!((tally.unverifiable, findings), (2, Vec::new()));
        // Its reader lives.
        assert_eq!(
            breaches(all(&[delivered(3), delivered(4)])),
            [Breach::Lost, Breach::Lost]
        );
        // A later one was seen.
        let passed = all(&[delivered(3), delivered(4), (8, seen(4, "a", "line")), gone]);
        assert_eq!(breaches(passed), [Breach::Lost]);
        // One of another sender was seen that was not sent when these were told; one that was may be before them.
        for (at, expected) in [(9, [Breach::Lost; 2].as_slice()), (8, &[])] {
            let other = [
                delivered(3),
                delivered(4),
                (at, sent(5, "b", "line")),
                (10, seen(5, "b", "line")),
                (11, told(5, Outcome::Delivered)),
                (12, Event::Gone { client: "line" }),
            ];
            assert_eq!(breaches(all(&other)), expected, "sent at {at}");
        }
        // One that confirms saw what it confirmed.
        let confirmed = with([(7, sent(3, "a", "b")), delivered(3), (9, Event::Gone { client: "b" })]);
        assert_eq!(breaches(confirmed), [Breach::Lost]);
    }

    #[test]
    fn what_is_sent_to_a_dead_connection_is_not_delivered_unless_its_node_had_not_noticed() {
        let late = |stop: &[(Time, Event<&'static str>)], sent_at| {
            let gone = (9, Event::Gone { client: "line" });
            let after = [(sent_at, sent(3, "a", "line")), (30, told(3, Outcome::Delivered))];
            with(stop.iter().cloned().chain([gone]).chain(after))
        };
        let stopped = |from, to| {
            let node = 1;
            [(from, Event::NodeStopped { node }), (to, Event::NodeResumed { node })]
        };
        let judge = |mut history: History, notice| {
            history.sort_by_key(|event| event.0);
            let (_, findings) = check(history, Rules { notice, ..RULES });
            findings.iter().map(|finding| finding.breach).collect::<Vec<_>>()
        };
        assert_eq!(judge(late(&[], 10), 0), [Breach::Lost]);
        assert_eq!(judge(late(&[], 10), 1), []);
        assert_eq!(judge(late(&stopped(8, 20), 20), 0), []);
        assert_eq!(judge(late(&stopped(8, 20), 21), 0), [Breach::Lost]);
        assert_eq!(judge(late(&stopped(10, 20), 12), 0), [Breach::Lost], "it had noticed");
        assert_eq!(judge(late(&stopped(10, 20), 12), 1), []);
    }

    #[test]
    fn who_read_its_connection_to_the_end_saw_all_that_was_delivered_unless_its_node_died() {
        let history = |death: Option<(Time, Event<&'static str>)>| {
            let delivered = [(7, sent(3, "a", "line")), (8, told(3, Outcome::Delivered))];
            let left = [
                (10, Event::Gone { client: "line" }),
                (11, Event::ReadAll { client: "line" }),
            ];
            with(delivered.into_iter().chain(death).chain(left))
        };
        assert_eq!(breaches(history(None)), [Breach::Lost]);
        assert_eq!(breaches(history(Some((9, Event::NodeDied { node: 1 })))), []);
        assert_eq!(
            breaches(history(Some((9, Event::NodeDied { node: 0 })))),
            [Breach::Lost]
        );
    }
}
