//! What is measured: a row of the table is a wire, and the load on it.

use std::time::Duration;

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it is called on the command line and in files.
    pub name: &'static str,
    /// What it is called in the table.
    pub title: &'static str,
    /// What the wire is told beforehand.
    pub wire: &'static [&'static str],
    /// How long the wire is cut.
    pub cut: Option<Duration>,
    /// Bytes of a body.
    pub body: usize,
    /// How many links share the wire, each between two nodes of its own and with a load of its own.
    pub links: usize,
}

/// What a row shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// How long messages take.
    Latency,
    /// What becomes of messages when the wire is cut, and how soon the backlog is delivered.
    Cut,
    /// How links that want more than the wire holds share it.
    Shared,
}

impl Row {
    /// What it shows.
    pub fn kind(&self) -> Kind {
        match (self.cut, self.links) {
            (Some(_), _) => Kind::Cut,
            (None, 0 | 1) => Kind::Latency,
            (None, _) => Kind::Shared,
        }
    }
}

const BODY: usize = 128;
const NARROW_BODY: usize = 900;

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        name: "clean",
        title: "10 ms each way",
        wire: &["delay 10"],
        cut: None,
        body: BODY,
        links: 1,
    },
    Row {
        name: "loss-1",
        title: "10 ms, 1 % lost",
        wire: &["delay 10", "loss 1"],
        cut: None,
        body: BODY,
        links: 1,
    },
    Row {
        name: "loss-5",
        title: "10 ms, 5 % lost",
        wire: &["delay 10", "loss 5"],
        cut: None,
        body: BODY,
        links: 1,
    },
    Row {
        name: "far",
        title: "25 ms, 1 % lost",
        wire: &["delay 25", "loss 1"],
        cut: None,
        body: BODY,
        links: 1,
    },
    Row {
        name: "cut-5",
        title: "10 ms, cut for 5 s",
        wire: &["delay 10"],
        cut: Some(Duration::from_secs(5)),
        body: BODY,
        links: 1,
    },
    Row {
        name: "cut-20",
        title: "10 ms, cut for 20 s",
        wire: &["delay 10"],
        cut: Some(Duration::from_secs(20)),
        body: BODY,
        links: 1,
    },
    Row {
        name: "cut-60",
        title: "10 ms, cut for 60 s",
        wire: &["delay 10"],
        cut: Some(Duration::from_secs(60)),
        body: BODY,
        links: 1,
    },
    // Bodies of 900 bytes at 2,000 a second are 14.4 Mbit/s, and about 16 with what surrounds them: 80 %. The queue holds
    // half a second.
    Row {
        name: "narrow",
        title: "10 ms, 20 Mbit/s, loaded to 80 %",
        wire: &["delay 10", "rate 20", "queue 1250000"],
        cut: None,
        body: NARROW_BODY,
        links: 1,
    },
    // The same twice: more than the wire holds. How long messages wait then is up to the senders; what counts is how
    // much each link gets.
    Row {
        name: "shared",
        title: "10 ms, 20 Mbit/s, two links at 80 % each",
        wire: &["delay 10", "rate 20", "queue 1250000"],
        cut: None,
        body: NARROW_BODY,
        links: 2,
    },
];

/// The row of this name.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}
