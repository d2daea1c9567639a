//! How what happened is written down: a line for each event, in any number of files, with times that can be compared.
//!
//! `NANOSECONDS WORD …`, where a client is its address and a node its number:
//!
//! ```text
//! joined CLIENT NODE confirms|written SINCE      sent NUMBER FROM TO
//! gone CLIENT                                    seen NUMBER FROM BY
//! cut-off CLIENT                                 told NUMBER delivered | refused CODE | unknown CODE
//! read-all CLIENT                                node-died | node-stopped | node-resumed NODE
//! ```

use std::collections::BTreeMap;
use std::fmt;

use crate::{Event, Outcome, Time};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Nanoseconds of a clock that all writers share.
    pub at: Time,
    /// What happened.
    pub event: Event<String>,
    /// Why a message did not end as delivered; empty for all else.
    pub code: String,
}

impl Line {
    /// A line without a code.
    pub fn new(at: Time, event: Event<String>) -> Self {
        Self {
            at,
            event,
            code: String::new(),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, event, code } = self;
        match event {
            Event::Joined {
                client,
                node,
                confirms,
                since,
            } => {
                let how = if *confirms { "confirms" } else { "written" };
                write!(f, "{at} joined {client} {node} {how} {since}")
            }
            Event::Gone { client } => write!(f, "{at} gone {client}"),
            Event::ReadAll { client } => write!(f, "{at} read-all {client}"),
            Event::CutOff { client } => write!(f, "{at} cut-off {client}"),
            Event::NodeDied { node } => write!(f, "{at} node-died {node}"),
            Event::NodeStopped { node } => write!(f, "{at} node-stopped {node}"),
            Event::NodeResumed { node } => write!(f, "{at} node-resumed {node}"),
            Event::Sent { message, from, to } => write!(f, "{at} sent {message} {from} {to}"),
            Event::Seen { message, from, by } => write!(f, "{at} seen {message} {from} {by}"),
            Event::Told { message, outcome } => match outcome {
                Outcome::Delivered => write!(f, "{at} told {message} delivered"),
                Outcome::Refused => write!(f, "{at} told {message} refused {code}"),
                Outcome::Unknown => write!(f, "{at} told {message} unknown {code}"),
            },
        }
    }
}

/// A line that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine(pub String);

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a line of a log: {:?}", self.0)
    }
}

impl std::error::Error for BadLine {}

impl std::str::FromStr for Line {
    type Err = BadLine;

    fn from_str(text: &str) -> Result<Self, BadLine> {
        parse(text).ok_or_else(|| BadLine(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Line> {
    let words: Vec<&str> = text.split(' ').collect();
    let (at, words) = words.split_first()?;
    let mut why = "";
    let event = match *words {
        ["joined", client, node, how @ ("confirms" | "written"), since] => Event::Joined {
            client: client.to_owned(),
            node: node.parse().ok()?,
            confirms: how == "confirms",
            since: since.parse().ok()?,
        },
        ["gone", client] => Event::Gone {
            client: client.to_owned(),
        },
        ["read-all", client] => Event::ReadAll {
            client: client.to_owned(),
        },
        ["cut-off", client] => Event::CutOff {
            client: client.to_owned(),
        },
        ["node-died", node] => Event::NodeDied {
            node: node.parse().ok()?,
        },
        ["node-stopped", node] => Event::NodeStopped {
            node: node.parse().ok()?,
        },
        ["node-resumed", node] => Event::NodeResumed {
            node: node.parse().ok()?,
        },
        ["sent", message, from, to] => Event::Sent {
            message: message.parse().ok()?,
            from: from.to_owned(),
            to: to.to_owned(),
        },
        ["seen", message, from, by] => Event::Seen {
            message: message.parse().ok()?,
            from: from.to_owned(),
            by: by.to_owned(),
        },
        ["told", message, ref end @ ..] => Event::Told {
            message: message.parse().ok()?,
            outcome: match *end {
                ["delivered"] => Outcome::Delivered,
                ["refused", code] => {
                    why = code;
                    Outcome::Refused
                }
                ["unknown", code] => {
                    why = code;
                    Outcome::Unknown
                }
                _ => return None,
            },
        },
        _ => return None,
    };
    Some(Line {
        at: at.parse().ok()?,
        event,
        code: why.to_owned(),
    })
}

/// Puts the lines of several logs in the order in which they happened. Lines of one log keep theirs.
///
/// # Errors
///
/// When a line is none. Logs are written whole lines at a time, so the last one of a killed writer is no exception.
pub fn merge<'a>(logs: impl IntoIterator<Item = &'a str>) -> Result<Vec<Line>, BadLine> {
    let mut lines = Vec::new();
    for log in logs {
        for line in log.lines() {
            lines.push(line.parse::<Line>()?);
        }
    }
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

/// How many messages were not delivered, by what their senders were told.
pub fn by_code(lines: &[Line]) -> BTreeMap<(&'static str, &str), u64> {
    let mut counts = BTreeMap::new();
    for line in lines {
        let status = match &line.event {
            Event::Told {
                outcome: Outcome::Refused,
                ..
            } => "refused",
            Event::Told {
                outcome: Outcome::Unknown,
                ..
            } => "unknown",
            _ => continue,
        };
        *counts.entry((status, line.code.as_str())).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Breach, Rules, check};
    use proptest::prelude::*;

    const A: &str = "1 joined n:1:a 0 confirms 1\n5 sent 1 n:1:a n:2:b\n9 told 1 delivered\n";
    const B: &str = "2 joined n:2:b 1 written 2\n7 seen 1 n:1:a n:2:b\n";

    #[test]
    fn lines_are_read_as_they_were_written() {
        for text in [
            "1 joined n:1:a 0 confirms 0",
            "1 joined n:1:a 0 written 1",
            "2 gone n:1:a",
            "2 read-all n:1:a",
            "2 cut-off n:1:a",
            "3 node-died 1",
            "3 node-stopped 1",
            "3 node-resumed 0",
            "4 sent 7 n:1:a n:2:b",
            "5 seen 7 n:1:a n:2:b",
            "6 told 7 delivered",
            "6 told 7 refused recipient-gone",
            "6 told 7 unknown node-restarted",
        ] {
            assert_eq!(text.parse::<Line>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "1",
            "x gone a",
            "1 told 7",
            "1 told 7 refused",
            "1 sent 7 a",
            "1 gone",
        ] {
            assert!(text.parse::<Line>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_a_line_that_is_read_again_or_none(
            at in "[0-9]{1,21}",
            event in "joined|gone|cut-off|read-all|node-died|node-stopped|node-resumed|sent|seen|told",
            words in proptest::collection::vec("confirms|written|delivered|refused|unknown|[0-9]{1,21}|\\PC{0,9}", 0..6),
        ) {
            let text = format!("{at} {event} {}", words.join(" "));
            if let Ok(line) = text.parse::<Line>() {
                prop_assert_eq!(line.to_string().parse(), Ok(line));
            }
        }
    }

    #[test]
    fn breaches_that_are_planted_into_logs_are_found() {
        let rules = Rules {
            deadline: Some(100),
            only_deaths_excuse: true,
            notice: 0,
        };
        let judge = |a: &str, b: &str| {
            let lines = merge([a, b]).unwrap();
            let (_, findings) = check(lines.into_iter().map(|line| (line.at, line.event)), rules);
            findings.iter().map(|finding| finding.breach).collect::<Vec<_>>()
        };
        assert_eq!(judge(A, B), []);
        let seen = "7 seen 1 n:1:a n:2:b\n";
        assert_eq!(judge(A, &B.replace(seen, "")), [Breach::Lost]);
        assert_eq!(judge(A, &B.replace(seen, &seen.repeat(2))), [Breach::Repeated]);
        assert_eq!(judge(&A.replace("9 told 1 delivered\n", ""), B), [Breach::Silent]);
        assert_eq!(judge(&A.replace("9 told", "109 told"), B), [Breach::Late]);
        assert_eq!(
            judge(&A.replace("delivered", "unknown node-restarted"), B),
            [Breach::Unfounded]
        );
    }
}
