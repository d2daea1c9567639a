//! Pure: what the relays that are measured speak with their clients.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Trunkline, legacy clients: TCP, JSON lines.
    Trunkline,
    /// nats-server, a subject for each receiver.
    Nats,
}

/// What a relay says to a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// The client's address, or that it may speak.
    Greeting(&'a str),
    /// A message, by its body.
    Body(&'a [u8]),
    /// It asks whether the client is alive.
    Ping,
    /// An error, or a receipt that says something else than `delivered`.
    Error(&'a str),
    /// A receipt that says `delivered`.
    Delivered,
    /// Something that does not matter here.
    Other,
}

impl Target {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trunkline => "Trunkline",
            Self::Nats => "NATS",
        }
    }

    /// What a client says first.
    pub fn hello(self, receiver: Option<usize>) -> String {
        match (self, receiver) {
            (Self::Trunkline, _) => String::new(),
            (Self::Nats, None) => "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n".to_owned(),
            (Self::Nats, Some(pair)) => {
                format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB lab.{pair} 1\r\nPING\r\n")
            }
        }
    }

    /// Where a receiver can be written to, by what it was greeted with.
    pub fn address(self, greeting: &str, pair: usize) -> String {
        match self {
            Self::Trunkline => greeting.to_owned(),
            Self::Nats => format!("lab.{pair}"),
        }
    }

    /// A message as its sender writes it. With an `id` a receipt is asked for, where there are such.
    pub fn message(self, to: &str, body: &str, id: Option<u64>, out: &mut Vec<u8>) {
        match self {
            Self::Trunkline => {
                let id = id.map_or_else(String::new, |id| format!(",\"id\":\"{id}\""));
                let line = format!("{{\"to\":\"{to}\",\"body\":\"{body}\",\"cmd\":\"sendMsg\"{id}}}\n");
                out.extend_from_slice(line.as_bytes());
            }
            Self::Nats => {
                out.extend_from_slice(format!("PUB {to} {}\r\n{body}\r\n", body.len()).as_bytes());
            }
        }
    }

    /// The first thing said in what has come in, and how many bytes it takes; `None` while it is not all there.
    pub fn said(self, bytes: &[u8]) -> Option<(Said<'_>, usize)> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let line = bytes.get(..end)?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let taken = end + 1;
        let Ok(text) = std::str::from_utf8(line) else {
            return Some((Said::Other, taken));
        };
        let said = match self {
            Self::Trunkline => {
                if let Some((_, body)) = text.split_once(" say : ") {
                    Said::Body(body.as_bytes())
                } else if let Some(address) = text.strip_prefix("you is  : ") {
                    Said::Greeting(address)
                } else if text.contains("\"status\":\"delivered\"") {
                    Said::Delivered
                } else {
                    Said::Error(text)
                }
            }
            Self::Nats => {
                if let Some(head) = text.strip_prefix("MSG ") {
                    let length: usize = head.rsplit(' ').next()?.parse().ok()?;
                    let body = bytes.get(taken..taken + length + 2)?;
                    return Some((Said::Body(body.get(..length)?), taken + length + 2));
                }
                match text {
                    "PING" => Said::Ping,
                    "PONG" => Said::Greeting(""),
                    _ if text.starts_with("-ERR") => Said::Error(text),
                    _ => Said::Other,
                }
            }
        };
        Some((said, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trunkline_speaks_lines() {
        let mut line = Vec::new();
        Target::Trunkline.message("h:1:2", "hi", Some(7), &mut line);
        assert_eq!(
            line,
            b"{\"to\":\"h:1:2\",\"body\":\"hi\",\"cmd\":\"sendMsg\",\"id\":\"7\"}\n"
        );
        for (bytes, said) in [
            ("you is  : h:1:2\r\n", Said::Greeting("h:1:2")),
            ("h:1:2 say : hi\r\n", Said::Body(b"hi")),
            ("error : no : x\r\n", Said::Error("error : no : x")),
            (
                "{\"cmd\":\"receipt\",\"id\":\"1\",\"status\":\"delivered\"}\r\n",
                Said::Delivered,
            ),
        ] {
            assert_eq!(Target::Trunkline.said(bytes.as_bytes()), Some((said, bytes.len())));
        }
        assert_eq!(Target::Trunkline.said(b"h:1:2 say : h"), None);
    }

    #[test]
    fn nats_speaks_of_lengths() {
        let message = b"MSG lab.3 1 4\r\na\r\nb\r\nPING\r\n";
        assert_eq!(Target::Nats.said(message), Some((Said::Body(b"a\r\nb"), 21)));
        assert_eq!(Target::Nats.said(&message[..18]), None);
        assert_eq!(Target::Nats.said(&message[21..]), Some((Said::Ping, 6)));
    }
}
