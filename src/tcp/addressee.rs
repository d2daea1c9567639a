//! Whom a legacy client's last message was for.

use crate::address::{Address, AddressError};
use crate::course::{Backlog, Course};
use crate::message::Conversation;

/// Whom the last message of a client was for: mostly the next is for the same, and neither is its address read again nor
/// its way looked for.
#[derive(Debug)]
pub(super) struct Addressee {
    conversation: Option<Conversation>,
    pub(super) course: Course,
    /// How many lines the last read brought.
    brought: usize,
}

impl Addressee {
    /// There was no message yet.
    pub(super) fn new() -> Self {
        Self {
            conversation: None,
            course: Course::new(),
            brought: 0,
        }
    }

    /// Time has passed since the last message.
    pub(super) fn look_at_the_clock(&mut self) {
        self.course.look_at_the_clock();
    }

    /// One read brought so many lines.
    pub(super) fn brought(&mut self, lines: usize) {
        self.brought = lines;
    }

    /// That of the link that the last message took.
    pub(super) fn backlog(&self) -> Option<Backlog> {
        self.course.backlog(self.brought)
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
