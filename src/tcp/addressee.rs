//! Whom a legacy client's last message was for.

use std::time::{Duration, Instant};

use crate::address::{Address, AddressError};
use crate::message::Conversation;
use crate::router::Course;

/// A client that has written by one way alone for so long makes nobody else wait, as a rule, when that way is full.
const ALONE_AFTER: Duration = Duration::from_secs(10);

/// Whom the last message of a client was for: mostly the next is for the same, and neither is its address read again nor
/// its way looked for.
#[derive(Debug)]
pub(super) struct Addressee {
    conversation: Option<Conversation>,
    pub(super) course: Course,
    /// When it last wrote to another node than before.
    turned: Option<Instant>,
}

impl Addressee {
    /// There was no message yet.
    pub(super) fn new() -> Self {
        Self {
            conversation: None,
            course: Course::new(),
            turned: None,
        }
    }

    /// Time has passed since the last message.
    pub(super) fn look_at_the_clock(&mut self) {
        self.course.now = Instant::now();
    }

    /// Whether the link that the last message took has a backlog.
    pub(super) fn is_held(&self) -> bool {
        self.course.link().is_some_and(|link| link.exchange().is_behind())
    }

    /// Gives way while that has more to send than it gets away.
    pub(super) async fn give_way(&self) {
        if let Some(link) = self.course.link() {
            link.exchange().catch_up(self.is_alone(Instant::now())).await;
        }
    }

    /// Whether it has long written by one way alone.
    fn is_alone(&self, now: Instant) -> bool {
        self.turned
            .is_none_or(|turned| now.duration_since(turned) > ALONE_AFTER)
    }

    /// The conversation of `from`, who is always the same, with whom this text is the address of.
    pub(super) fn conversation(&mut self, from: &Address, text: &str) -> Result<Conversation, AddressError> {
        if let Some(last) = self.conversation.as_ref().filter(|last| last.to().is_written(text)) {
            return Ok(last.clone());
        }
        let conversation = Conversation::new(from.clone(), text.parse()?);
        let last = self.conversation.replace(conversation.clone());
        if last.is_some_and(|last| last.to().node != conversation.to().node) {
            self.turned = Some(self.course.now);
        }
        Ok(conversation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_turned_from_one_node_to_another_is_not_alone_for_a_while() {
        let from: Address = "n:1:a".parse().unwrap();
        let mut last = Addressee::new();
        let mut write = |to| {
            last.look_at_the_clock();
            let conversation = last.conversation(&from, to).unwrap();
            assert_eq!(
                (conversation.from(), conversation.to().to_string().as_str()),
                (&from, to)
            );
            let now = last.course.now;
            (last.is_alone(now), last.is_alone(now + 2 * ALONE_AFTER))
        };
        for to in ["n:2:b", "n:2:b", "n:2:c"] {
            assert_eq!(write(to), (true, true));
        }
        assert_eq!(write("n:1:d"), (false, true));
        assert_eq!(write("n:1:d"), (false, true));
    }
}
