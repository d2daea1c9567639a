//! What a node and a QUIC client write to each other: one message a stream, and JSON lines on the control stream.
//!
//! `docs/protocol.md` is the reference for other implementations.

use std::borrow::Cow;
use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::line::address_into;
use crate::address::Address;
use crate::delivery::{Confirm, Failure, RangeSet, Report};
use crate::outcome::{Code, Outcome};

/// The version of the client protocol that this node speaks.
pub(crate) const VERSION: u32 = 1;

/// The longest header line of a message, in bytes, with its line end.
pub(crate) const MAX_HEADER: usize = 1024;

/// The longest line on the control stream, in bytes. The longest that a node or the library sends is a report of 1,024
/// ranges and 1,024 failures.
pub(crate) const MAX_CONTROL_LINE: usize = 512 * 1024;

/// A line a client writes on the control stream. Unknown keys are ignored, in every line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub(crate) enum FromClient {
    /// The first line.
    Hello {
        /// The version of the protocol the client speaks.
        version: u32,
        /// Whether it may come back to its session by another connection. Then it says `confirm`, and hears it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        resumable: bool,
        /// The session it comes back to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<Resume>,
        /// Who it is, and what it may do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Token>,
    },
    /// Shows another token of the same client, which holds from then on.
    Login {
        /// The token.
        token: Token,
    },
    /// How messages to the client ended: it took them, or refuses them.
    Receipt(Receipt),
    /// What the client knows of the ends of its messages.
    Confirm(ConfirmLine),
    /// The client will say nothing more, and waits for the node to close the connection.
    Goodbye,
    /// A command of a later version.
    #[serde(other)]
    Other,
}

/// A line a node writes on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub(crate) enum FromNode {
    /// Answers `hello`.
    Welcome(Welcome),
    /// How messages of the client ended.
    Receipt(Receipt),
    /// What the node knows of the ends of messages to the client.
    Confirm(ConfirmLine),
    /// What the client did wrong; the connection is closed after it.
    Error {
        /// Which kind of error.
        code: String,
        /// What happened, and what to do next.
        text: String,
    },
    /// Answers `login`: why the token is not accepted, or neither of the two.
    Login {
        /// Which kind of error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        /// What is wrong, and what to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// The node is shutting down: it takes no more messages from this client.
    GoingAway,
    /// A command of a later version.
    #[serde(other)]
    Other,
}

/// What a client logs in with: a secret, so it is shown nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// What a client is told when it is let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The version of the protocol spoken on this connection.
    pub(crate) version: u32,
    /// The client's address.
    pub(crate) address: String,
    /// The longest body, in bytes.
    pub(crate) max_message: usize,
    /// How much the client may have under way.
    pub(crate) window: Window,
    /// How it can come back, if it asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resume: Option<ResumeOffer>,
    /// It has come back, and the node has taken this of its messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) taken: Option<Taken>,
}

/// How a client can come back to its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResumeOffer {
    /// Proves that it is the same client: a secret.
    pub(crate) token: String,
    /// How long the node waits for it, in milliseconds from when it finds the connection lost.
    pub(crate) grace_ms: u64,
}

/// A client comes back to its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resume {
    /// From the session's `welcome`.
    pub(crate) token: String,
    /// What the client has taken of the node's messages.
    pub(crate) taken: Taken,
}

/// A set of messages that were taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Every id below.
    below: u64,
    /// And first and last id of ranges above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<(u64, u64)>,
}

impl From<RangeSet> for Taken {
    fn from(set: RangeSet) -> Self {
        Self {
            below: set.below(),
            ranges: set.ranges().collect(),
        }
    }
}

impl From<Taken> for RangeSet {
    fn from(taken: Taken) -> Self {
        Self::from_parts(taken.below, taken.ranges)
    }
}

/// What a sender knows of the ends of its messages, so that the receiver need not remember them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfirmLine {
    /// The ends of all messages below this id are known.
    below: u64,
    /// How many `receipt` lines have come on this connection.
    receipts: u64,
}

impl From<Confirm> for ConfirmLine {
    fn from(confirm: Confirm) -> Self {
        Self {
            below: confirm.below,
            receipts: confirm.reports,
        }
    }
}

impl From<ConfirmLine> for Confirm {
    fn from(line: ConfirmLine) -> Self {
        Self {
            below: line.below,
            reports: line.receipts,
        }
    }
}

/// How much a client may have under way, that is sent and without a receipt.
///
/// A message counts with its body and [`MESSAGE_OVERHEAD`](crate::message::MESSAGE_OVERHEAD) bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Messages in all.
    pub(crate) messages: usize,
    /// Bytes in all.
    pub(crate) bytes: usize,
    /// Bytes to one recipient.
    pub(crate) conversation_bytes: usize,
}

/// How messages ended, as their receiver tells their sender.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// First and last id of runs of delivered messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    delivered: Vec<(u64, u64)>,
    /// Messages that ended otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failed: Vec<FailedMessage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FailedMessage {
    id: u64,
    status: Status,
    code: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    text: Cow<'static, str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Refused,
    Unknown,
}

impl From<Report> for Receipt {
    fn from(report: Report) -> Self {
        let failed = report.failed.into_iter().filter_map(|Failure { number, outcome }| {
            let (status, code) = match outcome {
                Outcome::Refused(code) => (Status::Refused, code),
                Outcome::Unknown(code) => (Status::Unknown, code),
                Outcome::Delivered => return None,
            };
            Some(FailedMessage {
                id: number,
                status,
                code: Cow::Borrowed(code.as_str()),
                text: Cow::Borrowed(code.advice()),
            })
        });
        Self {
            failed: failed.collect(),
            delivered: report.delivered,
        }
    }
}

impl From<Receipt> for Report {
    fn from(receipt: Receipt) -> Self {
        let failed = receipt.failed.into_iter().map(|failed| {
            // A code of a later version: what it means is lost, that the message failed is not.
            let code = failed.code.parse().unwrap_or(Code::ProtocolError);
            Failure {
                number: failed.id,
                outcome: match failed.status {
                    Status::Refused => Outcome::Refused(code),
                    Status::Unknown => Outcome::Unknown(code),
                },
            }
        });
        Self {
            failed: failed.collect(),
            delivered: receipt.delivered,
        }
    }
}

/// The first line of a message's stream from a client. A `from` is not even read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct HeaderFromClient<'a> {
    /// Whom it is for.
    #[serde(borrow)]
    pub(crate) to: Cow<'a, str>,
    /// As in [`Header`].
    pub(crate) id: u64,
    /// As in [`Header`].
    #[serde(default)]
    pub(crate) after: u64,
}

/// The first line of a message's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header<'a> {
    /// Who sent it, from a node; a client leaves it out.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Cow<'a, str>>,
    /// Whom it is for.
    #[serde(borrow)]
    pub(crate) to: Cow<'a, str>,
    /// The message's number on this connection and in this direction, from 1, by one.
    pub(crate) id: u64,
    /// The message that must be taken before this one; 0 or missing for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) after: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What is wrong with what the other side wrote.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a message without a header line of at most {MAX_HEADER} bytes")]
    NoHeader,
    #[error("a control line over {MAX_CONTROL_LINE} bytes")]
    LongLine,
    #[error("a line that is not a JSON object")]
    NoObject,
    #[error("a line that is not the JSON expected: {0}")]
    BadJson(#[from] serde_json::Error),
}

/// Appends a message's header line; the body follows it to the stream's end.
pub(crate) fn write_header(out: &mut BytesMut, number: u64, after: u64, from: Option<&Address>, to: &Address) {
    // By hand, as each message has one.
    let mut digits = itoa::Buffer::new();
    if let Some(from) = from {
        out.extend_from_slice(b"{\"from\":\"");
        address_into(out, from);
        out.extend_from_slice(b"\",\"to\":\"");
    } else {
        out.extend_from_slice(b"{\"to\":\"");
    }
    address_into(out, to);
    out.extend_from_slice(b"\",\"id\":");
    out.extend_from_slice(digits.format(number).as_bytes());
    if after > 0 {
        out.extend_from_slice(b",\"after\":");
        out.extend_from_slice(digits.format(after).as_bytes());
    }
    out.extend_from_slice(b"}\n");
}

/// Reads the header of a message from a node.
pub(crate) fn read_header(line: &[u8]) -> Result<Header<'_>, Malformed> {
    read_plain(line).map_or_else(|| read_object(line), Ok)
}

/// Reads the header of a message from a client.
pub(crate) fn read_header_from_client(line: &[u8]) -> Result<HeaderFromClient<'_>, Malformed> {
    match read_plain(line) {
        Some(Header { from: _, to, id, after }) => Ok(HeaderFromClient { to, id, after }),
        None => read_object(line),
    }
}

/// Reads a header that is written as [`write_header`] does, which nearly all are, in less time than reading any JSON takes.
/// `None`: it is something else, or wrong.
fn read_plain(line: &[u8]) -> Option<Header<'_>> {
    let mut rest = line.strip_prefix(b"{")?;
    let mut from = None;
    if let Some(text) = rest.strip_prefix(b"\"from\":\"") {
        let (text, behind) = plain_text(text)?;
        from = Some(text.into());
        rest = behind.strip_prefix(b",")?;
    }
    let (to, rest) = plain_text(rest.strip_prefix(b"\"to\":\"")?)?;
    let (id, mut rest) = plain_number(rest.strip_prefix(b",\"id\":")?)?;
    let mut after = 0;
    if let Some(number) = rest.strip_prefix(b",\"after\":") {
        (after, rest) = plain_number(number)?;
    }
    let to = to.into();
    (rest == b"}").then_some(Header { from, to, id, after })
}

/// The text up to the next quote, if it is ASCII and nothing in it is escaped, and what stands behind the quote.
fn plain_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'"')?;
    let (text, behind) = (bytes.get(..end)?, bytes.get(end + 1..)?);
    let is_plain = text.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'\\');
    let text = std::str::from_utf8(text).ok()?;
    is_plain.then_some((text, behind))
}

/// The number up to what is no digit, and what stands there. JSON has no zeros before others.
fn plain_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, behind) = bytes.split_at_checked(end)?;
    if digits.is_empty() || (digits.len() > 1 && digits.starts_with(b"0")) {
        return None;
    }
    let mut number = 0_u64;
    for digit in digits {
        number = number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some((number, behind))
}

/// Splits what there is of a message's stream into its header line and what follows. `None` while the line has not
/// ended.
pub(crate) fn split_header(stream: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
    let head = stream.get(..stream.len().min(MAX_HEADER)).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\n', head) else {
        return if stream.len() >= MAX_HEADER {
            Err(Malformed::NoHeader)
        } else {
            Ok(None)
        };
    };
    let line = stream.split_to(end);
    stream.advance(1);
    Ok(Some(line))
}

/// Appends one JSON line.
pub(crate) fn write_line(out: &mut BytesMut, line: &impl Serialize) {
    // Writing these types into memory can't fail: no map with other keys than text, no writer that errs.
    if let Ok(json) = serde_json::to_vec(line) {
        out.extend_from_slice(&json);
        out.extend_from_slice(b"\n");
    }
}

/// Takes a line of JSON off the front; `None` while it is not all there.
pub(crate) fn read_line<L: for<'de> Deserialize<'de>>(buffer: &mut BytesMut) -> Result<Option<L>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', buffer) else {
        return if buffer.len() > MAX_CONTROL_LINE {
            Err(Malformed::LongLine)
        } else {
            Ok(None)
        };
    };
    let line = buffer.split_to(end + 1);
    if line.len() > MAX_CONTROL_LINE {
        return Err(Malformed::LongLine);
    }
    read_object(&line).map(Some)
}

/// Reads a line, or a header without its line end, as one JSON object: serde would take an array of the values too.
pub(crate) fn read_object<'a, L: Deserialize<'a>>(line: &'a [u8]) -> Result<L, Malformed> {
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(Malformed::NoObject);
    }
    Ok(serde_json::from_slice(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::any::{confirm, number, report, taken};
    use proptest::option;
    use proptest::prelude::*;

    fn line(value: &impl Serialize) -> String {
        let mut out = BytesMut::new();
        write_line(&mut out, value);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn hello(version: u32) -> FromClient {
        FromClient::Hello {
            version,
            resumable: false,
            resume: None,
            token: None,
        }
    }

    #[test]
    fn what_is_not_plain_is_not_read_fast() {
        let read = |line: &str| read_plain(line.as_bytes()).is_some();
        assert!(
            read("{\"to\":\"a:1:b\",\"id\":0}")
                && read("{\"from\":\"\",\"to\":\"\",\"id\":18446744073709551615,\"after\":0}")
        );
        let texts = ["\t", "\u{7f}", "\u{e9}", "\\\\", "\\u0061", "\r"].map(|text| format!("a{text}"));
        let numbers = "|-0|-1|01|00|1.0|1e3|18446744073709551616|99999999999999999999999|\"1\"| 1|1 ".split('|');
        let to = texts.iter().map(|text| format!("{{\"to\":\"{text}\",\"id\":1}}"));
        let from = texts
            .iter()
            .map(|text| format!("{{\"from\":\"{text}\",\"to\":\"a\",\"id\":1}}"));
        let id = numbers
            .clone()
            .map(|number| format!("{{\"to\":\"a\",\"id\":{number}}}"));
        let after = numbers.map(|number| format!("{{\"to\":\"a\",\"id\":1,\"after\":{number}}}"));
        for line in to.chain(from).chain(id).chain(after) {
            assert!(!read(&line), "{line:?}");
        }
        for line in [
            "",
            "{}",
            "{\"id\":1}",
            "{\"to\":\"a\"}",
            "{\"to\":\"a\",\"id\":1",
            "{\"to\":\"a\",\"id\":1}}",
            "{\"to\":\"a\",\"to\":\"a\",\"id\":1}",
        ] {
            assert!(!read(line), "{line}");
        }
    }

    #[test]
    fn lines_are_these_bytes() {
        assert_eq!(line(&hello(1)), "{\"cmd\":\"hello\",\"version\":1}\n");
        let back = FromClient::Hello {
            version: 1,
            resumable: true,
            resume: Some(Resume {
                token: "secret".to_owned(),
                taken: RangeSet::from_parts(3, [(5, 6)]).into(),
            }),
            token: Some(Token("a.b.c".to_owned())),
        };
        assert_eq!(
            line(&back),
            "{\"cmd\":\"hello\",\"version\":1,\"resumable\":true,\
             \"resume\":{\"token\":\"secret\",\"taken\":{\"below\":3,\"ranges\":[[5,6]]}},\"token\":\"a.b.c\"}\n"
        );
        assert!(!format!("{back:?}").contains("a.b.c"));
        let login = FromClient::Login {
            token: Token("a.b.c".to_owned()),
        };
        assert_eq!(line(&login), "{\"cmd\":\"login\",\"token\":\"a.b.c\"}\n");
        let accepted = FromNode::Login { code: None, text: None };
        assert_eq!(line(&accepted), "{\"cmd\":\"login\"}\n");
        let confirm = Confirm { below: 7, reports: 2 };
        assert_eq!(
            line(&FromNode::Confirm(confirm.into())),
            "{\"cmd\":\"confirm\",\"below\":7,\"receipts\":2}\n"
        );
        let welcome = FromNode::Welcome(Welcome {
            version: 1,
            address: "127.0.0.1:1215:123456".to_owned(),
            max_message: 100,
            window: Window {
                messages: 10,
                bytes: 1000,
                conversation_bytes: 500,
            },
            resume: None,
            taken: None,
        });
        assert_eq!(
            line(&welcome),
            "{\"cmd\":\"welcome\",\"version\":1,\"address\":\"127.0.0.1:1215:123456\",\"max_message\":100,\
             \"window\":{\"messages\":10,\"bytes\":1000,\"conversation_bytes\":500}}\n"
        );
        assert_eq!(line(&FromNode::GoingAway), "{\"cmd\":\"going-away\"}\n");
        let report = Report {
            delivered: vec![(1, 3), (5, 5)],
            failed: vec![Failure {
                number: 4,
                outcome: Outcome::Unknown(Code::RecipientGone),
            }],
        };
        let receipt = FromNode::Receipt(report.clone().into());
        let text = line(&receipt);
        assert!(
            text.starts_with(
                "{\"cmd\":\"receipt\",\"delivered\":[[1,3],[5,5]],\
                 \"failed\":[{\"id\":4,\"status\":\"unknown\",\"code\":\"recipient-gone\",\"text\":\""
            ),
            "{text}"
        );
        let Some(FromNode::Receipt(back)) = read_line(&mut BytesMut::from(text.as_str())).unwrap() else {
            panic!("{text}");
        };
        assert_eq!(Report::from(back), report);
    }

    #[test]
    fn a_message_is_a_line_and_its_body() {
        let (from, to) = ("a:1:1".parse().unwrap(), "b:2:bob".parse().unwrap());
        let mut out = BytesMut::new();
        write_header(&mut out, 7, 5, Some(&from), &to);
        assert_eq!(
            &out[..],
            b"{\"from\":\"a:1:1\",\"to\":\"b:2:bob\",\"id\":7,\"after\":5}\n"
        );
        out.extend_from_slice(b"\nbody");
        let mut stream = out.freeze();
        let header = split_header(&mut stream).unwrap().unwrap();
        let header: Header<'_> = read_object(&header).unwrap();
        assert_eq!((header.id, header.after, &stream[..]), (7, 5, &b"\nbody"[..]));
    }

    #[test]
    fn what_is_no_object_is_not_taken_for_its_values() {
        for line in ["[\"b:2:bob\",7]", " 7", "", "null"] {
            let header = read_object::<HeaderFromClient<'_>>(line.as_bytes());
            assert!(matches!(header, Err(Malformed::NoObject)), "{line}");
        }
        let mut control = BytesMut::from("[\"goodbye\"]\n");
        assert!(matches!(
            read_line::<FromClient>(&mut control),
            Err(Malformed::NoObject)
        ));
        assert!(read_object::<HeaderFromClient<'_>>(b" \t{\"to\":\"b:2:bob\",\"id\":7} ").is_ok());
    }

    #[test]
    fn what_is_too_long_or_unknown() {
        let mut stream = Bytes::from(vec![b'x'; MAX_HEADER]);
        assert!(matches!(split_header(&mut stream), Err(Malformed::NoHeader)));
        let mut control = BytesMut::from(&vec![b' '; MAX_CONTROL_LINE + 1][..]);
        assert!(matches!(read_line::<FromNode>(&mut control), Err(Malformed::LongLine)));
        let mut control =
            BytesMut::from("{\"cmd\":\"dance\",\"with\":[1]}\n{\"cmd\":\"hello\",\"version\":2,\"x\":{}}\n");
        assert_eq!(read_line::<FromClient>(&mut control).unwrap(), Some(FromClient::Other));
        assert_eq!(read_line(&mut control).unwrap(), Some(hello(2)));
        assert_eq!(read_line::<FromClient>(&mut control).unwrap(), None);
    }

    fn token() -> impl Strategy<Value = Token> {
        any::<String>().prop_map(Token)
    }

    fn any_line_of_a_client() -> impl Strategy<Value = FromClient> {
        let resume = (any::<String>(), taken(u64::MAX)).prop_map(|(token, taken)| Resume {
            token,
            taken: taken.into(),
        });
        prop_oneof![
            (any::<u32>(), any::<bool>(), option::of(resume), option::of(token())).prop_map(
                |(version, resumable, resume, token)| FromClient::Hello {
                    version,
                    resumable,
                    resume,
                    token,
                }
            ),
            token().prop_map(|token| FromClient::Login { token }),
            report(u64::MAX).prop_map(|report| FromClient::Receipt(report.into())),
            confirm(u64::MAX).prop_map(|confirm| FromClient::Confirm(confirm.into())),
            Just(FromClient::Goodbye),
        ]
    }

    fn any_line_of_a_node() -> impl Strategy<Value = FromNode> {
        let window = any::<(usize, usize, usize)>().prop_map(|(messages, bytes, conversation_bytes)| Window {
            messages,
            bytes,
            conversation_bytes,
        });
        let resume = any::<(String, u64)>().prop_map(|(token, grace_ms)| ResumeOffer { token, grace_ms });
        let welcome = (
            any::<(u32, String, usize)>(),
            window,
            option::of(resume),
            option::of(taken(u64::MAX)),
        );
        prop_oneof![
            welcome.prop_map(|((version, address, max_message), window, resume, taken)| {
                let taken = taken.map(Taken::from);
                FromNode::Welcome(Welcome {
                    version,
                    address,
                    max_message,
                    window,
                    resume,
                    taken,
                })
            }),
            report(u64::MAX).prop_map(|report| FromNode::Receipt(report.into())),
            confirm(u64::MAX).prop_map(|confirm| FromNode::Confirm(confirm.into())),
            any::<(String, String)>().prop_map(|(code, text)| FromNode::Error { code, text }),
            any::<(Option<String>, Option<String>)>().prop_map(|(code, text)| FromNode::Login { code, text }),
            Just(FromNode::GoingAway),
        ]
    }

    proptest! {
        #[test]
        fn control_lines_are_read_as_they_were_written(ours in any_line_of_a_client(), theirs in any_line_of_a_node()) {
            let mut out = BytesMut::new();
            write_line(&mut out, &ours);
            write_line(&mut out, &theirs);
            prop_assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 2);
            prop_assert_eq!(read_line(&mut out).unwrap(), Some(ours));
            prop_assert_eq!(read_line(&mut out).unwrap(), Some(theirs));
            prop_assert!(out.is_empty());
        }

        #[test]
        fn what_the_machine_says_survives_json(report in report(u64::MAX), taken in taken(u64::MAX), confirm in confirm(u64::MAX)) {
            prop_assert_eq!(Report::from(Receipt::from(report.clone())), report);
            prop_assert_eq!(RangeSet::from(Taken::from(taken.clone())), taken);
            prop_assert_eq!(Confirm::from(ConfirmLine::from(confirm)), confirm);
        }

        #[test]
        fn a_header_that_is_read_fast_is_read_the_same(
            line in "(\\{\"from\":\"[ -~\t\u{7f}\u{e9}]{0,5}\",|\\{)\"to\":\"[ -~\t\u{7f}\u{e9}]{0,9}\",\"id\":[0-9]{0,21}(,\"after\":-?[0-9]{0,21})? ?\\}",
        ) {
            if let Some(fast) = read_plain(line.as_bytes()) {
                let Header { to, id, after, .. } = fast.clone();
                prop_assert_eq!(read_object::<Header<'_>>(line.as_bytes()).ok(), Some(fast), "{}", line);
                let from_client = read_object::<HeaderFromClient<'_>>(line.as_bytes()).ok();
                prop_assert_eq!(from_client, Some(HeaderFromClient { to, id, after }), "{}", line);
            }
        }

        #[test]
        fn messages_are_read_as_they_were_written(
            id in number(u64::MAX),
            after in number(u64::MAX),
            ids in ("[A-Za-z0-9._-]{1,64}", "[A-Za-z0-9._-]{1,64}"),
            is_from_node: bool,
            body: Vec<u8>,
        ) {
            let address = |id| Address { node: "relay.example:1215".parse().unwrap(), id };
            let (from, to) = (address(ids.0.parse().unwrap()), address(ids.1.parse().unwrap()));
            let from = is_from_node.then_some(from);
            let mut out = BytesMut::new();
            write_header(&mut out, id, after, from.as_ref(), &to);
            out.extend_from_slice(&body);
            let mut stream = out.freeze();
            let line = split_header(&mut stream).unwrap().unwrap();
            let header: Header<'_> = read_object(&line).unwrap();
            let fast = read_plain(&line);
            prop_assert_eq!(fast.as_ref(), Some(&header), "what is written is read fast");
            prop_assert_eq!((header.id, header.after, &stream[..]), (id, after, &body[..]));
            prop_assert_eq!(header.from.map(|from| from.parse()), from.map(Ok));
            prop_assert_eq!(header.to.parse(), Ok(to));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = split_header(&mut Bytes::from(bytes.clone()));
            let _ = read_line::<FromClient>(&mut BytesMut::from(&bytes[..]));
            let _ = read_line::<FromNode>(&mut BytesMut::from(&bytes[..]));
            let _ = read_object::<Header<'_>>(&bytes);
        }
    }
}
