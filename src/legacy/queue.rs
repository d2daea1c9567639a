//! What waits for one legacy server, and what of it may be handed over now.
//!
//! Pure: what happened and the time go in, what to do comes out. It promises: of a conversation at most one message is
//! being handed over, in the order in which they came; conversations have their turns one after the other; what is kept
//! stays within its bounds; and each message comes out once with an end.

use std::collections::hash_map::{Entry, HashMap};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;

use crate::delivery::Bounds;
use crate::message::{Conversation, Message};
use crate::outcome::{Code, Outcome};

/// The messages for one legacy server that have not ended, each with a ticket `T`.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    bounds: Bounds,
    /// How many messages may be handed over at once.
    most: usize,
    conversations: HashMap<Conversation, Queued<T>, RandomState>,
    /// The conversations with messages that wait and none that is being handed over, in the order of their turns.
    turns: VecDeque<Conversation>,
    handovers: BTreeMap<u64, Handover<T>>,
    /// The number of the next handover.
    next: u64,
    /// Of all messages, those that are being handed over too.
    messages: usize,
    bytes: usize,
    /// When the server last took a connection and greeted.
    reached: Option<Instant>,
    /// It could not be reached since then.
    is_away: bool,
    /// Nothing is taken any more, for this reason.
    over: Option<Code>,
}

/// The messages of one conversation.
#[derive(Debug)]
struct Queued<T> {
    waiting: VecDeque<(Message, T)>,
    /// Since when its first message waits.
    since: Instant,
    /// One of its messages is being handed over.
    is_busy: bool,
}

/// A message that is being handed over.
#[derive(Debug)]
struct Handover<T> {
    conversation: Conversation,
    size: usize,
    ticket: T,
    begun: Instant,
    /// Bytes of it may have been written.
    is_written: bool,
}

/// Messages that have ended, by their tickets.
pub(crate) type Ends<T> = Vec<(T, Outcome)>;

impl<T> Queue<T> {
    /// An empty queue, from which up to `most` messages are handed over at once.
    pub(crate) fn new(bounds: Bounds, most: usize) -> Self {
        Self {
            bounds,
            most,
            conversations: HashMap::default(),
            turns: VecDeque::new(),
            handovers: BTreeMap::new(),
            next: 0,
            messages: 0,
            bytes: 0,
            reached: None,
            is_away: false,
            over: None,
        }
    }

    /// Takes a message; gives it back when there is no room.
    pub(crate) fn submit(&mut self, now: Instant, message: Message, ticket: T) -> Result<(), (Message, T)> {
        // One message may go over the bound in bytes, so that none is too large for ever.
        if self.over.is_some() || self.messages >= self.bounds.messages || self.bytes >= self.bounds.bytes {
            return Err((message, ticket));
        }
        self.messages += 1;
        self.bytes += message.size();
        match self.conversations.entry(message.conversation.clone()) {
            Entry::Occupied(mut place) => {
                let queued = place.get_mut();
                if queued.waiting.is_empty() {
                    queued.since = now;
                }
                queued.waiting.push_back((message, ticket));
            }
            Entry::Vacant(place) => {
                self.turns.push_back(place.key().clone());
                place.insert(Queued {
                    waiting: VecDeque::from([(message, ticket)]),
                    since: now,
                    is_busy: false,
                });
            }
        }
        Ok(())
    }

    /// Why a message that was given back is refused; `None`: it is to wait for room.
    pub(crate) fn refusal(&self) -> Option<Code> {
        // To wait for a server that is away would hold up all else that the sender has to say.
        self.over.or_else(|| self.is_away.then_some(Code::NodeUnreachable))
    }

    /// The next message to hand over, if there is one, with its number.
    pub(crate) fn start(&mut self, now: Instant) -> Option<(u64, Message)> {
        if self.handovers.len() >= self.most {
            return None;
        }
        let conversation = self.turns.pop_front()?;
        let queued = self.conversations.get_mut(&conversation)?;
        let (message, ticket) = queued.waiting.pop_front()?;
        (queued.is_busy, queued.since) = (true, now);
        let number = self.next;
        self.next += 1;
        let handover = Handover {
            conversation,
            size: message.size(),
            ticket,
            begun: now,
            is_written: false,
        };
        self.handovers.insert(number, handover);
        Some((number, message))
    }

    /// The server has taken the connection for this message and greeted. Says whether the message is to be written: not
    /// when it was given up meanwhile.
    pub(crate) fn reached(&mut self, now: Instant, number: u64) -> bool {
        self.reached = Some(now);
        self.is_away = false;
        let handover = self.handovers.get_mut(&number);
        handover.map(|handover| handover.is_written = true).is_some()
    }

    /// The server could not be reached for this message. If it took no other connection meanwhile, it is away, and what
    /// waits for it ends as well. Gives what has ended: nothing, if the message was given up before.
    pub(crate) fn missed(&mut self, now: Instant, number: u64) -> Ends<T> {
        let refused = Outcome::Refused(Code::NodeUnreachable);
        let Some(handover) = self.handovers.remove(&number) else {
            return Vec::new();
        };
        let is_away = self.reached.is_none_or(|reached| reached < handover.begun);
        let ticket = self.end(now, handover);
        let mut ends = vec![(ticket, refused)];
        if is_away {
            self.is_away = true;
            ends.extend(self.drop_waiting(|_| true).into_iter().map(|ticket| (ticket, refused)));
        }
        ends
    }

    /// The connection for this message has ended, after bytes of it may have been written. Gives its ticket, if it was
    /// not given up before.
    pub(crate) fn done(&mut self, now: Instant, number: u64) -> Option<T> {
        let handover = self.handovers.remove(&number)?;
        Some(self.end(now, handover))
    }

    /// Ends what has waited for its turn, or for the message before it, for `wait` or longer.
    pub(crate) fn expire(&mut self, now: Instant, wait: Duration) -> Ends<T> {
        let is_late = |conversation: &Queued<T>| now.saturating_duration_since(conversation.since) >= wait;
        let late = self.drop_waiting(is_late).into_iter();
        late.map(|ticket| (ticket, Outcome::Refused(Code::NodeUnreachable)))
            .collect()
    }

    /// Ends all there is, for this reason, and takes nothing any more.
    pub(crate) fn give_up(&mut self, code: Code) -> Ends<T> {
        self.over = Some(code);
        let refused = self.drop_waiting(|_| true).into_iter();
        let mut ends: Ends<T> = refused.map(|ticket| (ticket, Outcome::Refused(code))).collect();
        for (_, handover) in std::mem::take(&mut self.handovers) {
            ends.push(match handover.is_written {
                true => (handover.ticket, Outcome::Unknown(code)),
                false => (handover.ticket, Outcome::Refused(code)),
            });
        }
        self.conversations.clear();
        (self.messages, self.bytes) = (0, 0);
        ends
    }

    /// Whether no message is there.
    pub(crate) fn is_idle(&self) -> bool {
        self.messages == 0
    }

    fn end(&mut self, now: Instant, handover: Handover<T>) -> T {
        self.messages -= 1;
        self.bytes -= handover.size;
        if let Some(queued) = self.conversations.get_mut(&handover.conversation) {
            if queued.waiting.is_empty() {
                self.conversations.remove(&handover.conversation);
            } else {
                (queued.is_busy, queued.since) = (false, now);
                self.turns.push_back(handover.conversation);
            }
        }
        handover.ticket
    }

    /// Takes out what waits in the conversations of which `which` holds. Gives the tickets, each conversation's in
    /// order.
    fn drop_waiting(&mut self, which: impl Fn(&Queued<T>) -> bool) -> Vec<T> {
        let mut tickets = Vec::new();
        let (messages, bytes) = (&mut self.messages, &mut self.bytes);
        self.conversations.retain(|_, queued| {
            if which(queued) {
                for (message, ticket) in queued.waiting.drain(..) {
                    *messages -= 1;
                    *bytes -= message.size();
                    tickets.push(ticket);
                }
            }
            queued.is_busy || !queued.waiting.is_empty()
        });
        if !tickets.is_empty() {
            let conversations = &self.conversations;
            self.turns
                .retain(|conversation| conversations.contains_key(conversation));
        }
        tickets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MESSAGE_OVERHEAD;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const UNREACHABLE: Outcome = Outcome::Refused(Code::NodeUnreachable);

    fn queue(messages: usize, most: usize) -> Queue<u32> {
        let bounds = Bounds {
            messages,
            bytes: 1 << 20,
        };
        Queue::new(bounds, most)
    }

    fn message(from: u32, length: usize) -> Message {
        Message::example(&format!("n:1:{from}"), "n:2:b", &"x".repeat(length))
    }

    fn put(queue: &mut Queue<u32>, now: Instant, from: u32, tickets: impl IntoIterator<Item = u32>) {
        for ticket in tickets {
            queue.submit(now, message(from, 0), ticket).unwrap();
        }
    }

    #[test]
    fn a_conversation_waits_for_its_own_message_and_no_other_does() {
        let now = Instant::now();
        let mut queue = queue(100, 64);
        put(&mut queue, now, 1, [10, 11, 12]);
        put(&mut queue, now, 2, [20]);
        let (first, second) = (queue.start(now).unwrap(), queue.start(now).unwrap());
        assert_eq!((first.1.from().id.as_str(), second.1.from().id.as_str()), ("1", "2"));
        assert!(queue.start(now).is_none());
        assert!(queue.reached(now, first.0));
        assert_eq!(queue.done(now, first.0), Some(10));
        assert_eq!(queue.done(now, first.0), None);
        let third = queue.start(now).unwrap();
        assert!(queue.start(now).is_none());
        assert_eq!(queue.done(now, third.0), Some(11));
        assert_eq!(queue.done(now, second.0), Some(20));
        let last = queue.start(now).unwrap();
        assert!(!queue.is_idle());
        assert_eq!(queue.done(now, last.0), Some(12));
        assert!(queue.is_idle() && queue.conversations.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn each_bound_holds_and_lets_go() {
        let now = Instant::now();
        let mut queue = queue(3, 2);
        for from in 0..3 {
            put(&mut queue, now, from, [from]);
        }
        assert_eq!(queue.submit(now, message(3, 0), 3).unwrap_err().1, 3);
        assert_eq!(queue.refusal(), None, "it is to wait");
        let (first, _) = queue.start(now).unwrap();
        assert!(queue.start(now).is_some() && queue.start(now).is_none());
        assert_eq!(queue.done(now, first), Some(0));
        assert!(queue.start(now).is_some());
        put(&mut queue, now, 3, [3]);

        let bounds = Bounds {
            messages: 100,
            bytes: 2 * MESSAGE_OVERHEAD,
        };
        let mut queue = Queue::new(bounds, 1);
        put(&mut queue, now, 1, [1]);
        queue.submit(now, message(1, 10_000), 2).unwrap();
        assert!(queue.submit(now, message(2, 0), 3).is_err());
    }

    #[test]
    fn what_waits_for_a_server_that_is_away_ends_with_the_message_that_missed_it() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut queue = queue(3, 2);
        put(&mut queue, start, 1, [10, 11]);
        put(&mut queue, start, 2, [20]);
        let (first, _) = queue.start(start).unwrap();
        let (second, _) = queue.start(start).unwrap();
        assert_eq!(queue.missed(later, first), [(10, UNREACHABLE), (11, UNREACHABLE)]);
        assert!(queue.missed(later, first).is_empty());
        // What comes when there is no room is refused, what comes when there is some tries it again.
        put(&mut queue, later, 3, [30, 31]);
        assert!(queue.submit(later, message(4, 0), 40).is_err());
        assert_eq!(queue.refusal(), Some(Code::NodeUnreachable));
        let (third, _) = queue.start(later).unwrap();
        assert!(queue.reached(later, third));
        assert_eq!(queue.refusal(), None);
        // It was reached since that one began.
        assert_eq!(queue.missed(later, second), [(20, UNREACHABLE)]);
        assert_eq!(queue.refusal(), None);
        assert_eq!(queue.done(later, third), Some(30));
        assert!(queue.start(later).is_some(), "31 was not refused");
    }

    #[test]
    fn who_waits_too_long_for_a_turn_or_for_the_message_before_is_refused() {
        let start = Instant::now();
        let wait = Duration::from_secs(10);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut queue = queue(100, 1);
        put(&mut queue, start, 1, [10, 11, 12]);
        put(&mut queue, at(1), 2, [20]);
        let (first, _) = queue.start(start).unwrap();
        assert!(queue.expire(at(9), wait).is_empty());
        assert_eq!(queue.done(at(9), first), Some(10));
        // The first conversation has got on, and is behind the other now.
        let (second, _) = queue.start(at(9)).unwrap();
        assert!(queue.expire(at(18), wait).is_empty());
        assert_eq!(queue.expire(at(19), wait), [(11, UNREACHABLE), (12, UNREACHABLE)]);
        assert_eq!(queue.done(at(30), second), Some(20));
        assert!(queue.is_idle() && queue.turns.is_empty());
    }

    #[test]
    fn what_is_given_up_says_whether_it_may_have_been_written() {
        let now = Instant::now();
        let code = Code::ShuttingDown;
        let mut queue = queue(100, 2);
        for from in 1..=3 {
            put(&mut queue, now, from, [from]);
        }
        let (first, _) = queue.start(now).unwrap();
        let (second, _) = queue.start(now).unwrap();
        assert!(queue.reached(now, first));
        let ends = queue.give_up(code);
        let (refused, unknown) = (Outcome::Refused(code), Outcome::Unknown(code));
        assert_eq!(ends, [(3, refused), (1, unknown), (2, refused)]);
        assert!(!queue.reached(now, second), "it is not to be written any more");
        assert!(queue.done(now, first).is_none() && queue.missed(now, second).is_empty());
        assert!(queue.submit(now, message(1, 0), 4).is_err());
        assert_eq!(queue.refusal(), Some(code));
        assert!(queue.is_idle() && queue.start(now).is_none());
    }

    proptest! {
        /// Whatever happens in whatever order: no message is lost, none ends twice, a conversation's are handed over in
        /// order and one by one, and no conversation that could go on is forgotten.
        #[test]
        fn all_end_once_and_in_order(events in proptest::collection::vec((0u8..6, any::<u32>()), 1..200)) {
            let start = Instant::now();
            let mut queue = queue(20, 3);
            let mut under_way: Vec<(u64, u32)> = Vec::new();
            let (mut submitted, mut ended) = (Vec::new(), Vec::new());
            let mut last_started: HashMap<u32, u32> = HashMap::new();
            for (ticket, (event, choice)) in (0..).zip(events) {
                let now = start + Duration::from_millis(ticket.into());
                let pick = |from: &Vec<(u64, u32)>| choice as usize % from.len();
                match event {
                    0 | 1 => {
                        let from = choice % 5;
                        if queue.submit(now, message(from, choice as usize % 7), ticket * 5 + from).is_ok() {
                            submitted.push(ticket * 5 + from);
                        }
                    }
                    2 => while let Some((number, message)) = queue.start(now) {
                        let from: u32 = message.from().id.as_str().parse().unwrap();
                        prop_assert!(under_way.iter().all(|&(_, other)| other != from), "one by one");
                        under_way.push((number, from));
                        let ticket = queue.handovers[&number].ticket;
                        let last = last_started.insert(from, ticket);
                        prop_assert!(last.is_none_or(|last| last < ticket), "in order");
                    },
                    3 if !under_way.is_empty() => {
                        let (number, _) = under_way.swap_remove(pick(&under_way));
                        queue.reached(now, number);
                        ended.extend(queue.done(now, number));
                    }
                    4 if !under_way.is_empty() => {
                        let (number, _) = under_way.swap_remove(pick(&under_way));
                        ended.extend(queue.missed(now, number).into_iter().map(|(ticket, _)| ticket));
                    }
                    5 => {
                        let wait = Duration::from_millis(u64::from(choice % 50));
                        ended.extend(queue.expire(now, wait).into_iter().map(|(ticket, _)| ticket));
                    }
                    _ => {}
                }
                prop_assert!(queue.messages <= 20 && under_way.len() <= 3);
            }
            while let Some((number, _)) = queue.start(start) {
                ended.extend(queue.done(start, number));
            }
            for (number, _) in under_way {
                ended.extend(queue.done(start, number));
                while let Some((number, _)) = queue.start(start) {
                    ended.extend(queue.done(start, number));
                }
            }
            prop_assert!(queue.is_idle() && queue.conversations.is_empty() && queue.turns.is_empty());
            prop_assert_eq!(queue.bytes, 0);
            prop_assert_eq!(ended.len(), submitted.len());
            let ended: HashSet<u32> = ended.into_iter().collect();
            prop_assert_eq!(ended, submitted.into_iter().collect::<HashSet<u32>>());
        }
    }
}
