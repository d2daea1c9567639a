//! Whom a legacy client's last message was for.

use std::time::Duration;

use crate::address::{Address, AddressError};
use crate::message::Conversation;
use crate::router::Course;

/// A client of which one read brings fewer lines than these is not what a link has its backlog from.
const FEW: usize = 4;

/// The next line of a client that has written by one way alone for so long, or since it came, is hardly for somebody by
/// another.
const STRAIGHT: Duration = Duration::from_secs(10);

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

    /// Whether the link that the last message took has a backlog.
    pub(super) fn is_held(&self) -> bool {
        self.course.link().is_some_and(|link| link.exchange().is_behind())
    }

    /// Gives way while that has more to send than it gets away.
    pub(super) async fn give_way(&self) {
        if let Some(link) = self.course.link() {
            link.exchange().catch_up(self.is_patient()).await;
        }
    }

    /// Whether the client makes up the backlog, and makes nobody else wait when it waits.
    fn is_patient(&self) -> bool {
        self.brought >= FEW && self.course.is_straight(STRAIGHT)
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
