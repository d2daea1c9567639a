//! Whom a legacy client's last message was for.

use std::time::Instant;

use crate::address::{Address, AddressError};
use crate::message::Conversation;
use crate::router::Course;

/// Whom the last message of a client was for: mostly the next is for the same, and neither is its address read again nor
/// its way looked for.
#[derive(Debug)]
pub(super) struct Addressee {
    conversation: Option<Conversation>,
    pub(super) course: Course,
}

impl Addressee {
    /// There was no message yet.
    pub(super) fn new() -> Self {
        Self {
            conversation: None,
            course: Course::new(),
        }
    }

    /// Time has passed since the last message.
    pub(super) fn look_at_the_clock(&mut self) {
        self.course.now = Instant::now();
    }

    /// Whether the link that the last message took has a backlog.
    pub(super) fn is_held(&self) -> bool {
        self.course
            .link
            .as_ref()
            .is_some_and(|link| link.exchange().is_behind())
    }

    /// Gives way while that has more to send than it gets away.
    pub(super) async fn give_way(&self) {
        if let Some(link) = &self.course.link {
            link.exchange().catch_up().await;
        }
    }

    /// The conversation of `from`, who is always the same, with whom this text is the address of.
    pub(super) fn conversation(&mut self, from: &Address, text: &str) -> Result<Conversation, AddressError> {
        Conversation::same_or(
            &mut self.conversation,
            |last| last.to().is_written(text),
            || Ok(Conversation::new(from.clone(), text.parse()?)),
        )
    }
}
