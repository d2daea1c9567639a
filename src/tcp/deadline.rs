//! By when a legacy client has to have ended the line that it is writing.

use std::time::Instant;

use tokio::time::sleep_until;

use crate::config::Limits;
use crate::counters::Counter;
use crate::pace::Pace;

/// A line that does not come in time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Late {
    /// When that is so.
    at: Instant,
    pub(super) counter: Counter,
    pub(super) text: &'static str,
}

/// By when a client has to have ended its line.
#[derive(Debug)]
pub(super) struct Deadline {
    pace: Pace,
    /// Where there is one for the first line.
    first: Option<Late>,
    /// Since when a line is being read.
    begun: Option<Instant>,
}

impl Deadline {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            pace: limits.sender_pace().spread(rand::random()),
            first: limits.first_line.map(|time| Late {
                at: Instant::now() + time,
                counter: Counter::EndedFirstLine,
                text: "there was no line from you in time",
            }),
            begun: None,
        }
    }

    /// When the line of which so many bytes are there has to have ended. Asked for before each read, so a time in which the
    /// client was held does not count.
    pub(super) fn due(&mut self, pending: usize) -> Option<Late> {
        if pending == 0 {
            self.begun = None;
            return self.first;
        }
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let slow = Late {
            at: begun + self.pace.allows(pending),
            counter: Counter::EndedSlowLine,
            text: "your line did not end in time",
        };
        Some(self.first.filter(|first| first.at < slow.at).unwrap_or(slow))
    }

    pub(super) fn line_ended(&mut self) {
        (self.first, self.begun) = (None, None);
    }
}

/// Waits until a line is late.
pub(super) async fn late(due: Late) -> Late {
    sleep_until(due.at.into()).await;
    due
}
