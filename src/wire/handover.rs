//! What legacy servers say to each other: the line of a client, passed on as it is, `from` with it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::escape::{escape_into, json_into};
use super::line::{Value, ValueSeed, address_into};
use crate::address::Address;

/// How much of a body is escaped at a time, in bytes: escapes are up to six times as long.
const PIECE: usize = 16 * 1024;

/// A message as its sender's server would pass it on, written bit by bit, so that the escapes of a large body are never
/// all there at once.
///
/// A body that is no UTF-8, which the server could not read, goes as the text that a legacy client here would see of
/// it.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// What is not written yet.
    body: &'a [u8],
    is_text: bool,
}

impl<'a> Line<'a> {
    /// Begins the line.
    pub(crate) fn begin(out: &mut Vec<u8>, from: &Address, to: &Address, body: &'a [u8]) -> Self {
        out.extend_from_slice(br#"{"from":""#);
        address_into(out, from);
        out.extend_from_slice(br#"","to":""#);
        address_into(out, to);
        out.extend_from_slice(br#"","body":""#);
        Self {
            body,
            is_text: std::str::from_utf8(body).is_ok(),
        }
    }

    /// Goes on until there are `most` bytes, or a piece more, or the line has ended. Says whether there is more of it.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, most: usize) -> bool {
        while out.len() < most {
            if self.body.is_empty() {
                out.extend_from_slice(b"\",\"cmd\":\"sendMsg\"}\r\n");
                return false;
            }
            let piece = self.next_piece();
            match std::str::from_utf8(piece) {
                Ok(text) if self.is_text => json_into(out, text),
                _ => {
                    let mut text = Vec::with_capacity(piece.len());
                    escape_into(&mut text, piece);
                    json_into(out, &String::from_utf8_lossy(&text));
                }
            }
        }
        true
    }

    /// Cuts a piece off the body, between two characters.
    fn next_piece(&mut self) -> &'a [u8] {
        let is_inside = |at: usize| self.body.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
        // Of a character there are three bytes at the most behind its first.
        let at = (PIECE - 3..=PIECE).rev().find(|&at| !is_inside(at)).unwrap_or(PIECE);
        let (piece, rest) = self.body.split_at(at.min(self.body.len()));
        self.body = rest;
        piece
    }
}

/// What a line says of whom it is from, as it is written there: for whom that is true, the caller knows. `None`:
/// nothing, or the line can't be read.
pub(crate) fn claimed_from(line: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(line).ok()?;
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(FromVisitor).ok()?
}

struct FromVisitor;

impl<'a> Visitor<'a> for FromVisitor {
    type Value = Option<Cow<'a, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut from = None;
        while let Some(is_from) = map.next_key_seed(IsFrom)? {
            if !is_from {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match map.next_value_seed(ValueSeed)? {
                Value::Text(text) => from = Some(text),
                // As with the other keys: what was there stays.
                Value::Null => {}
                Value::Other => from = None,
            }
        }
        Ok(from)
    }
}

/// Whether a key is `from`, in any case.
struct IsFrom;

impl<'a> DeserializeSeed<'a> for IsFrom {
    type Value = bool;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsFrom {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(text.eq_ignore_ascii_case("from"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::line::{Request, parse};
    use proptest::prelude::*;

    fn written(body: &[u8]) -> String {
        let (from, to) = ("127.0.0.1:1216:123456", "[::1]:1215:651444");
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, &from.parse().unwrap(), &to.parse().unwrap(), body);
        assert!(!line.fill(&mut out, usize::MAX));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_large_body_is_written_in_pieces_without_a_seam() {
        for before in 0..5 {
            let text = format!("{}{}", "x".repeat(before), "é日🦀\n".repeat(PIECE));
            let bytes = [&b"\xff"[..], text.as_bytes()].concat();
            for body in [text.as_bytes(), &bytes] {
                let (mut out, mut all) = (Vec::new(), Vec::new());
                let (from, to) = ("a:1:1".parse().unwrap(), "b:1:1".parse().unwrap());
                let mut line = Line::begin(&mut out, &from, &to, body);
                let mut fills = 0;
                loop {
                    let more = line.fill(&mut out, 1);
                    assert!(out.len() <= 7 * PIECE);
                    all.append(&mut out);
                    fills += 1;
                    if !more {
                        break;
                    }
                }
                assert!(fills > 5);
                let Ok(Request::Send { body: read, .. }) = parse(all.trim_ascii_end()) else {
                    panic!("not a message");
                };
                let mut escaped = Vec::new();
                escape_into(&mut escaped, body);
                let expected =
                    std::str::from_utf8(body).map_or_else(|_| String::from_utf8(escaped).unwrap(), str::to_owned);
                assert_eq!(read, expected);
            }
        }
    }

    #[test]
    fn the_line_byte_for_byte() {
        assert_eq!(
            written(b"1234567"),
            concat!(
                r#"{"from":"127.0.0.1:1216:123456","to":"[::1]:1215:651444","body":"1234567","cmd":"sendMsg"}"#,
                "\r\n"
            )
        );
        assert!(written("\"\\\r\n\u{1b}é".as_bytes()).contains(r#""body":"\"\\\r\n\u001bé""#));
        assert!(written(b"a\xff\n").contains(r#""body":"a\\xff\\n""#));
    }

    #[test]
    fn whom_a_line_claims_to_be_from() {
        for (line, from) in [
            (r#"{"from":"a:1:2","to":"b","cmd":"sendMsg"}"#, Some("a:1:2")),
            (r#" {"FROM":"a\u003a1:2"} "#, Some("a:1:2")),
            (r#"{"from":"a","From":"b","from":null}"#, Some("b")),
            (r#"{"from":"a","from":7}"#, None),
            (r#"{"from":{"from":"a"},"x":{"from":"b"}}"#, None),
            (r#"{"to":"a"}"#, None),
            (r#"{"from":"a""#, None),
            (r#"["from","a"]"#, None),
            ("", None),
        ] {
            assert_eq!(claimed_from(line.as_bytes()).as_deref(), from, "{line}");
        }
        assert_eq!(claimed_from(b"{\"from\":\"a\",\"x\":\"\xff\"}"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_one_line_and_is_read_as_it_was_meant(body: Vec<u8>) {
            let line = written(&body);
            let line = line.strip_suffix("\r\n").unwrap();
            prop_assert!(!line.chars().any(char::is_control));
            let from = claimed_from(line.as_bytes());
            prop_assert_eq!(from.as_deref(), Some("127.0.0.1:1216:123456"));
            let Ok(Request::Send { to, body: read, .. }) = parse(line.as_bytes()) else {
                panic!("{line}");
            };
            prop_assert_eq!(to, "[::1]:1215:651444");
            if let Ok(text) = std::str::from_utf8(&body) {
                prop_assert_eq!(read, text);
            }
        }
    }
}
