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
}

const BODY: usize = 128;

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        name: "clean",
        title: "10 ms each way",
        wire: &["delay 10"],
        cut: None,
        body: BODY,
    },
    Row {
        name: "loss-1",
        title: "10 ms, 1 % lost",
        wire: &["delay 10", "loss 1"],
        cut: None,
        body: BODY,
    },
    Row {
        name: "loss-5",
        title: "10 ms, 5 % lost",
        wire: &["delay 10", "loss 5"],
        cut: None,
        body: BODY,
    },
    Row {
        name: "far",
        title: "25 ms, 1 % lost",
        wire: &["delay 25", "loss 1"],
        cut: None,
        body: BODY,
    },
    Row {
        name: "cut-5",
        title: "10 ms, cut for 5 s",
        wire: &["delay 10"],
        cut: Some(Duration::from_secs(5)),
        body: BODY,
    },
    Row {
        name: "cut-20",
        title: "10 ms, cut for 20 s",
        wire: &["delay 10"],
        cut: Some(Duration::from_secs(20)),
        body: BODY,
    },
    Row {
        name: "cut-60",
        title: "10 ms, cut for 60 s",
        wire: &["delay 10"],
        cut: Some(Duration::from_secs(60)),
        body: BODY,
    },
    // Bodies of 900 bytes at 2,000 a second are 14.4 Mbit/s, and about 16 with what surrounds them: 80 %. The queue holds
    // half a second.
    Row {
        name: "narrow",
        title: "10 ms, 20 Mbit/s, loaded to 80 %",
        wire: &["delay 10", "rate 20", "queue 1250000"],
        cut: None,
        body: 900,
    },
];

/// The row of this name.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}
