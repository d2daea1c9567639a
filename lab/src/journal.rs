//! The file that a process of the fault run writes: a line for each event, in one `write` each and with no buffer of
//! its own, so that `kill -9` takes nothing of what was written.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use trunkline_checker::log::Line;
use trunkline_checker::{Event, Outcome};

/// Nanoseconds of the clock that all processes of a machine share, and that goes on while they are stopped.
pub fn now() -> u64 {
    // Fails only for a clock that there is not.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
    })
}

/// An open file of events.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Opens a file to add to, and makes it if need be.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().append(true).create(true).open(path);
        Ok(Self(file.with_context(|| format!("can't write {}", path.display()))?))
    }

    /// Writes that something happens now.
    pub fn write(&self, event: Event<String>) -> std::io::Result<()> {
        self.write_line(&Line::new(now(), event))
    }

    /// Writes that the sender of a message is told its end now. `code`: why, if it was not delivered.
    pub fn write_told(&self, message: u64, outcome: Outcome, code: &str) -> std::io::Result<()> {
        let event = Event::Told { message, outcome };
        self.write_line(&Line {
            at: now(),
            event,
            code: code.to_owned(),
        })
    }

    fn write_line(&self, line: &Line) -> std::io::Result<()> {
        (&self.0).write_all(format!("{line}\n").as_bytes())
    }
}

/// What a message of the fault run says: its number, and bytes that follow from it.
pub fn body(message: u64) -> String {
    let length = usize::try_from(message.wrapping_mul(31) % 700).unwrap_or_default();
    format!("{message} {}", "x".repeat(length))
}

/// The number of a message that says this; `None` when no message says it.
pub fn number_in(text: &str) -> Option<u64> {
    let message = text.split(' ').next()?.parse().ok()?;
    (body(message) == text).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_leads_back_to_its_number_and_a_damaged_one_does_not() {
        for message in [0, 1, 77, u64::from(u32::MAX), 1 << 32 | 5] {
            let body = body(message);
            assert_eq!(number_in(&body), Some(message));
            assert_eq!(number_in(&format!("{body}x")), None);
            assert_eq!(number_in(body.get(..body.len() - 1).unwrap()), None);
        }
        assert_eq!(number_in("hello"), None);
    }
}
