//! Pure: what clients and relays that talk over TCP say to each other.

use memchr::memchr;

/// A protocol over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// Trunkline's lines.
    Line,
    /// NATS.
    Nats,
    /// Redis (RESP 2).
    Redis,
}

/// What a relay says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    /// A client may speak, or the receiver hears: with what it is to be written to, if the relay gives that out.
    Ready(&'a str),
    /// A message, by its body.
    Body(&'a [u8]),
    /// It asks whether the client is alive, and wants [`Speech::alive`].
    Ping,
    /// Something went wrong.
    Error(&'a str),
    /// Something that does not matter here.
    Other,
}

impl Speech {
    /// What a client says first: a sender, or a receiver on this channel.
    pub fn opening(self, receiver: Option<&str>) -> String {
        const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";
        match (self, receiver) {
            (Self::Line, _) => String::new(),
            (Self::Nats, None) => format!("{CONNECT}PING\r\n"),
            (Self::Nats, Some(channel)) => format!("{CONNECT}SUB {channel} 1\r\nPING\r\n"),
            (Self::Redis, None) => "PING\r\n".to_owned(),
            (Self::Redis, Some(channel)) => format!("SUBSCRIBE {channel}\r\n"),
        }
    }

    /// Where the receiver on this channel is written to, if it was told this when it was ready.
    pub fn address(self, ready: &str, channel: &str) -> String {
        match self {
            Self::Line => ready.to_owned(),
            Self::Nats | Self::Redis => channel.to_owned(),
        }
    }

    /// Appends a message. The body is to be plain ASCII without quotes, backslashes and control characters.
    pub fn message(self, to: &str, body: &[u8], out: &mut Vec<u8>) {
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        match self {
            Self::Line => put(&[
                b"{\"to\":\"",
                to.as_bytes(),
                b"\",\"body\":\"",
                body,
                b"\",\"cmd\":\"sendMsg\"}\n",
            ]),
            Self::Nats => {
                let length = body.len().to_string();
                put(&[b"PUB ", to.as_bytes(), b" ", length.as_bytes(), b"\r\n", body, b"\r\n"]);
            }
            Self::Redis => {
                let head = format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{to}\r\n${}\r\n", to.len(), body.len());
                put(&[head.as_bytes(), body, b"\r\n"]);
            }
        }
    }

    /// What answers a [`Said::Ping`].
    pub fn alive(self) -> &'static [u8] {
        match self {
            Self::Nats => b"PONG\r\n",
            Self::Line | Self::Redis => b"",
        }
    }

    /// The first thing said in what has come in, and how many bytes it takes; `None` while it is not all there.
    pub fn said(self, bytes: &[u8]) -> Option<(Said<'_>, usize)> {
        match self {
            Self::Line => {
                let (line, taken) = line(bytes)?;
                Some((said_in_line(line), taken))
            }
            Self::Nats => {
                let (line, taken) = line(bytes)?;
                let Some(head) = line.strip_prefix(b"MSG ") else {
                    let said = match line {
                        b"PING" => Said::Ping,
                        b"PONG" => Said::Ready(""),
                        _ if line.starts_with(b"-ERR") => Said::Error(text(line)),
                        _ => Said::Other,
                    };
                    return Some((said, taken));
                };
                let length: usize = text(head).rsplit(' ').next()?.parse().ok()?;
                let body = bytes.get(taken..taken.checked_add(length)?)?;
                let end = taken + length + 2;
                (bytes.len() >= end).then_some((Said::Body(body), end))
            }
            Self::Redis => said_in_resp(bytes),
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("(not UTF-8)")
}

/// The first line, without its end, and how many bytes it takes with it.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = memchr(b'\n', bytes)?;
    let line = bytes.get(..end)?;
    Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
}

fn said_in_line(line: &[u8]) -> Said<'_> {
    const SAY: &[u8] = b" say : ";
    // The address before it is short.
    let begins = line.get(..line.len().min(400)).unwrap_or(line);
    if let Some(at) = memchr::memmem::find(begins, SAY) {
        return Said::Body(line.get(at + SAY.len()..).unwrap_or(b""));
    }
    match line.strip_prefix(b"you is  : ") {
        Some(address) => Said::Ready(text(address)),
        None => Said::Error(text(line)),
    }
}

/// RESP: `+OK`, `-ERR …`, `:1`, `$5 hello`, `*3 …`; of the arrays only those of three come here.
fn said_in_resp(bytes: &[u8]) -> Option<(Said<'_>, usize)> {
    let (first, taken) = line(bytes)?;
    if first != b"*3" {
        let said = match first.first() {
            Some(b'+') => Said::Ready(""),
            Some(b'-') => Said::Error(text(first)),
            _ => Said::Other,
        };
        return Some((said, taken));
    }
    let (kind, taken) = bulk(bytes, taken)?;
    let (_, taken) = bulk(bytes, taken)?;
    match kind {
        b"message" => bulk(bytes, taken).map(|(body, taken)| (Said::Body(body), taken)),
        _ => {
            let (_, length) = line(bytes.get(taken..)?)?;
            Some((Said::Ready(""), taken + length))
        }
    }
}

/// A bulk string from this position on, and where it ends.
fn bulk(bytes: &[u8], from: usize) -> Option<(&[u8], usize)> {
    let (head, taken) = line(bytes.get(from..)?)?;
    let length: usize = text(head.strip_prefix(b"$")?).parse().ok()?;
    let start = from + taken;
    let body = bytes.get(start..start.checked_add(length)?)?;
    let end = start + length + 2;
    (bytes.len() >= end).then_some((body, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is said, whatever pieces it comes in.
    fn all(speech: Speech, bytes: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        let mut rest = bytes;
        while let Some((said, taken)) = speech.said(rest) {
            for cut in 0..taken {
                assert_eq!(speech.said(&rest[..cut]), None, "{:?}", text(&rest[..cut]));
            }
            all.push(format!("{said:?}"));
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
        all
    }

    #[test]
    fn lines() {
        let mut out = Vec::new();
        Speech::Line.message("h:1:2", b"hi", &mut out);
        assert_eq!(out, b"{\"to\":\"h:1:2\",\"body\":\"hi\",\"cmd\":\"sendMsg\"}\n");
        let heard = b"you is  : h:1:2\r\nh:1:2 say : hi say : hi\r\nerror : no : x\r\n";
        let body = format!("{:?}", Said::Body(b"hi say : hi"));
        assert_eq!(
            all(Speech::Line, heard),
            ["Ready(\"h:1:2\")", &body, "Error(\"error : no : x\")"]
        );
    }

    #[test]
    fn nats() {
        let mut out = Vec::new();
        Speech::Nats.message("bench.3", b"hi", &mut out);
        assert_eq!(out, b"PUB bench.3 2\r\nhi\r\n");
        let heard = b"INFO {}\r\nPONG\r\nMSG bench.3 1 4\r\na\r\nb\r\nPING\r\n-ERR 'x'\r\n";
        let body = format!("{:?}", Said::Body(b"a\r\nb"));
        assert_eq!(
            all(Speech::Nats, heard),
            ["Other", "Ready(\"\")", &body, "Ping", "Error(\"-ERR 'x'\")"]
        );
    }

    #[test]
    fn redis() {
        let mut out = Vec::new();
        Speech::Redis.message("bench.3", b"hi", &mut out);
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$7\r\nbench.3\r\n$2\r\nhi\r\n");
        let heard = b"+PONG\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$7\r\nbench.3\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$7\r\nbench.3\r\n$4\r\na\r\nb\r\n-ERR x\r\n";
        let body = format!("{:?}", Said::Body(b"a\r\nb"));
        assert_eq!(
            all(Speech::Redis, heard),
            ["Ready(\"\")", "Other", "Ready(\"\")", &body, "Error(\"-ERR x\")"]
        );
    }
}
