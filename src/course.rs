//! Where the messages of one sender go: mostly each goes where the one before went.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::Link;
use crate::message::{Conversation, Recipient};

/// A client that brings fewer messages than these at once is not what a link has its backlog from.
const FEW: usize = 4;

/// The next message of a client that has written by one way alone for so long, or since it came, is hardly for somebody by
/// another.
pub(crate) const STRAIGHT: Duration = Duration::from_secs(10);

/// When a message is passed on, and where the one before went.
pub(crate) struct Course {
    now: Instant,
    last: Option<Last>,
    /// When a message last went another way than the one before.
    turned: Option<Instant>,
}

/// Where a message went.
pub(crate) enum Last {
    Link(Arc<Link>),
    Client(Conversation, Arc<dyn Recipient>),
}

impl Course {
    /// There was no message before.
    pub(crate) fn new() -> Self {
        Self {
            now: Instant::now(),
            last: None,
            turned: None,
        }
    }

    /// Time has passed since the one before.
    pub(crate) fn look_at_the_clock(&mut self) {
        self.time_is(Instant::now());
    }

    /// The same for who has looked.
    pub(crate) fn time_is(&mut self, now: Instant) {
        self.now = now;
    }

    /// When the clock was last looked at.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// The link that the one before took, if it took one.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        match &self.last {
            Some(Last::Link(link)) => Some(link),
            Some(Last::Client(..)) | None => None,
        }
    }

    /// The client here that the one before went to, if that was of this conversation.
    pub(crate) fn client(&self, of: &Conversation) -> Option<&dyn Recipient> {
        match &self.last {
            Some(Last::Client(conversation, client)) if conversation.is(of) => Some(&**client),
            _ => None,
        }
    }

    /// A message went there; `None`: to a legacy server, or it waits and it is not known where to.
    pub(crate) fn went(&mut self, to: Option<Last>) {
        let turns = match (&self.last, &to) {
            (None, _) | (Some(Last::Client(..)), Some(Last::Client(..))) => false,
            (Some(Last::Link(before)), Some(Last::Link(now))) => !Arc::ptr_eq(before, now),
            (Some(_), _) => true,
        };
        if turns {
            self.turned = Some(self.now);
        }
        self.last = to;
    }

    /// Keeps no client alive: it has left, or there may be no other message for long.
    pub(crate) fn rest(&mut self) {
        self.last.take_if(|last| matches!(last, Last::Client(..)));
    }

    /// That of the link which the last message took, for a client that has brought so many messages at once.
    pub(crate) fn backlog(&self, brought: usize) -> Option<Backlog> {
        let link = self.link().filter(|link| link.exchange().is_behind())?;
        Some(Backlog {
            link: Arc::clone(link),
            is_patient: brought >= FEW && self.is_straight(),
        })
    }

    /// Whether no message has gone another way than the one before for long enough.
    pub(crate) fn is_straight(&self) -> bool {
        self.turned
            .is_none_or(|turned| self.now.duration_since(turned) > STRAIGHT)
    }
}

impl fmt::Debug for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Course")
            .field("link", &self.link())
            .finish_non_exhaustive()
    }
}

/// More on a link than it gets away. What is not read from a client meanwhile stands where it costs least: with the client,
/// or in the system's buffers.
#[derive(Debug)]
pub(crate) struct Backlog {
    link: Arc<Link>,
    /// The client makes up the backlog, and makes nobody else wait when it waits.
    is_patient: bool,
}

impl Backlog {
    /// Waits until the link has caught up, or for long enough.
    pub(crate) async fn give_way(self) {
        self.link.exchange().catch_up(self.is_patient).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::NodeName;
    use crate::delivery::{Bounds, RangeSet};
    use crate::message::{Message, Settle, Tag, Ticket};
    use crate::outcome::Outcome;

    struct Nobody;

    impl Settle for Nobody {
        fn settle(&self, _: &[(Tag, Outcome)]) {}
    }

    /// A link with so many messages that it has not sent.
    fn link(messages: u64) -> Arc<Link> {
        let (own, peer): (NodeName, NodeName) = ("n:1".parse().unwrap(), "n:2".parse().unwrap());
        let bounds = Bounds {
            messages: 1 << 20,
            bytes: 1 << 30,
        };
        let (link, _) = Link::new(&own, peer, bounds, true);
        link.exchange().connected_knowing(&RangeSet::new()).unwrap();
        for number in 0..messages {
            let ticket = Ticket {
                origin: Arc::new(Nobody),
                tag: Tag::prompt(number, 0),
            };
            let message = Message::example("n:1:a", "n:2:b", "x");
            assert!(link.submit(Instant::now(), message, ticket).is_ok());
        }
        link
    }

    #[test]
    fn who_gives_way_to_what_backlog() {
        let mut course = Course::new();
        assert!(course.backlog(FEW).is_none(), "it has sent nothing");
        course.went(Some(Last::Link(link(10))));
        assert!(course.backlog(FEW).is_none(), "the link gets away what it has");
        let mut course = Course::new();
        course.went(Some(Last::Link(link(10_000))));
        assert!(course.backlog(FEW).is_some_and(|backlog| backlog.is_patient));
        assert!(course.backlog(FEW - 1).is_some_and(|backlog| !backlog.is_patient));
        course.went(Some(Last::Link(link(10_000))));
        assert!(
            course.backlog(FEW).is_some_and(|backlog| !backlog.is_patient),
            "by two ways"
        );
        course.time_is(course.now() + 2 * STRAIGHT);
        assert!(
            course.backlog(FEW).is_some_and(|backlog| backlog.is_patient),
            "long ago"
        );
        course.went(None);
        assert!(course.backlog(FEW).is_none());
    }
}
