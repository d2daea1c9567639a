//! The legacy protocol: one line in, a request; what is to be told, one line out.
//!
//! The writers append to a `Vec<u8>`, as an outbox is one byte buffer that is written out and cleared, never shared.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::BufMut;
use memchr::memchr;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use super::escape::{escape_into, json_into};
use crate::address::Address;
use crate::outcome::{Code, Outcome};

/// The longest message id a client may choose, in characters.
const MAX_ID: usize = 64;

/// What the node writes to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// Lines for people, as legacy clients expect them.
    #[default]
    Text,
    /// JSON lines, for programs.
    Json,
}

/// What a client asks for with one line. Texts are borrowed from it, unless they had escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// Send a message.
    Send {
        /// The recipient, as the client wrote it: not yet known to be an address.
        to: Cow<'a, str>,
        /// The message.
        body: Cow<'a, str>,
        /// The client's own name for this message. It asks for a receipt.
        id: Option<Cow<'a, str>>,
    },
    /// Say how the node is to write to this client.
    Hello {
        /// The format from now on.
        format: Format,
    },
    /// Show who the client is, and what it may do.
    Login {
        /// The token: a secret.
        token: Cow<'a, str>,
        /// The client's own name for this line. It asks for a receipt.
        id: Option<Cow<'a, str>>,
    },
}

/// A line that can't be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejected<'a> {
    /// Why.
    pub(crate) code: Code,
    /// What is wrong with this line, and what to do.
    pub(crate) text: Cow<'static, str>,
    /// The id on the line, if one could be read: then a receipt answers it.
    pub(crate) id: Option<Cow<'a, str>>,
}

/// Reads one line, without its end.
pub(crate) fn parse(line: &[u8]) -> Result<Request<'_>, Rejected<'_>> {
    let Ok(text) = std::str::from_utf8(line) else {
        return Err(not_utf8(line));
    };
    read_plain(text).map_or_else(|| parse_any(text), Ok)
}

/// The same for a line of any kind, in more time.
pub(crate) fn parse_any(text: &str) -> Result<Request<'_>, Rejected<'_>> {
    let mut fields = Fields::default();
    if let Err(error) = read_object(text, &mut fields) {
        return Err(Rejected {
            code: Code::BadJson,
            text: what_is_wrong(text, &error),
            id: usable_id(fields.id).unwrap_or_default(),
        });
    }
    request(fields)
}

fn request(fields: Fields<'_>) -> Result<Request<'_>, Rejected<'_>> {
    let Ok(id) = usable_id(fields.id) else {
        return Err(Rejected {
            code: Code::BadJson,
            text: format!("`id` is longer than {MAX_ID} characters; send a shorter one").into(),
            id: None,
        });
    };
    if let Some(key) = fields.not_text {
        return Err(Rejected {
            code: Code::BadJson,
            text: format!("`{}` is no text; write its value in double quotes", key.as_str()).into(),
            id,
        });
    }
    match &*fields.cmd {
        "sendMsg" => Ok(Request::Send {
            to: fields.to,
            body: fields.body,
            id,
        }),
        "hello" => match &*fields.format {
            "" | "text" => Ok(Request::Hello { format: Format::Text }),
            "json" => Ok(Request::Hello { format: Format::Json }),
            _ => Err(Rejected {
                code: Code::BadJson,
                text: "`format` is none of text, json".into(),
                id,
            }),
        },
        "login" => Ok(Request::Login {
            token: fields.token,
            id,
        }),
        "" => Err(Rejected {
            code: Code::UnknownCmd,
            text: "there is no `cmd`; say \"cmd\":\"sendMsg\" to send a message".into(),
            id,
        }),
        _ => Err(Rejected {
            code: Code::UnknownCmd,
            text: Code::UnknownCmd.advice().into(),
            id,
        }),
    }
}

/// The id, if the client chose one; an error if it is over the limit.
fn usable_id(id: Cow<'_, str>) -> Result<Option<Cow<'_, str>>, IdTooLong> {
    if id.len() > MAX_ID && id.chars().count() > MAX_ID {
        return Err(IdTooLong);
    }
    Ok(Some(id).filter(|id| !id.is_empty()))
}

struct IdTooLong;

/// Reads a message whose texts have no escapes, which nearly all lines are, in less time than reading any JSON takes.
/// `None`: it is something else, for [`parse_any`] to find out.
fn read_plain(text: &str) -> Option<Request<'_>> {
    // A control character is an error in a text, and a tab between two is rare.
    let odd = |any: bool, &byte: &u8| any | (byte < 0x20) | (byte == b'\\');
    if text.as_bytes().iter().fold(false, odd) {
        return None;
    }
    let (mut to, mut body, mut cmd, mut id) = ("", "", "", "");
    let mut rest = behind(text, b'{')?;
    loop {
        let (key, after) = plain_key(behind(rest, b'"')?)?;
        let value = behind(behind(after, b':')?, b'"')?;
        let end = memchr(b'"', value.as_bytes())?;
        let (value, after) = (value.get(..end)?, value.get(end + 1..)?);
        match key {
            Some(Key::To) => to = value,
            Some(Key::Body) => body = value,
            Some(Key::Cmd) => cmd = value,
            Some(Key::Id) => id = value,
            // They are rarely on a message.
            Some(Key::Format | Key::Token) => return None,
            None => {}
        }
        match behind(after, b',') {
            Some(more) => rest = more,
            None => {
                let end = behind(after, b'}')?;
                let is_message = cmd == "sendMsg" && id.len() <= MAX_ID && end.trim_start_matches(' ').is_empty();
                return is_message.then(|| Request::Send {
                    to: to.into(),
                    body: body.into(),
                    id: (!id.is_empty()).then(|| id.into()),
                });
            }
        }
    }
}

/// What stands behind a mark, which spaces may stand before.
fn behind(text: &str, mark: u8) -> Option<&str> {
    match text.as_bytes() {
        [first, ..] if *first == mark => text.get(1..),
        [b' ', ..] => {
            let text = text.trim_start_matches(' ');
            (text.as_bytes().first() == Some(&mark))
                .then(|| text.get(1..))
                .flatten()
        }
        _ => None,
    }
}

/// The key up to the next quote, if it means something, and what stands behind the quote.
fn plain_key(text: &str) -> Option<(Option<Key>, &str)> {
    // As nearly all write them.
    let (key, length) = match text.as_bytes() {
        [b't', b'o', b'"', ..] => (Some(Key::To), 2),
        [b'b', b'o', b'd', b'y', b'"', ..] => (Some(Key::Body), 4),
        [b'c', b'm', b'd', b'"', ..] => (Some(Key::Cmd), 3),
        [b'i', b'd', b'"', ..] => (Some(Key::Id), 2),
        bytes => {
            let end = memchr(b'"', bytes)?;
            (Key::of(text.get(..end)?), end)
        }
    };
    Some((key, text.get(length + 1..)?))
}

fn read_object<'a>(text: &'a str, fields: &mut Fields<'a>) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(FieldsVisitor(fields))?;
    json.end()
}

fn what_is_wrong(text: &str, error: &serde_json::Error) -> Cow<'static, str> {
    let text = text.trim_ascii();
    let what = match text.as_bytes().first() {
        None => return "an empty line; send one JSON object a line".into(),
        Some(b'{') => "",
        Some(b'[') => "an array",
        Some(b'"') => "a text",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(_) if matches!(text, "true" | "false" | "null") => text,
        Some(_) => {
            return "this is no JSON; send one object a line, {\"to\":ADDRESS,\"body\":TEXT,\"cmd\":\"sendMsg\"}"
                .into();
        }
    };
    if !what.is_empty() {
        return format!("{what}, not an object; send one JSON object a line").into();
    }
    if error.classify() == Category::Eof {
        return "the line ends inside the object; send a whole object on one line".into();
    }
    let message = error.to_string();
    let message = message.split_once(" at line ").map_or(&*message, |(before, _)| before);
    if message == "trailing characters" {
        return format!(
            "something follows the object at byte {}; send one object a line and nothing else",
            error.column()
        )
        .into();
    }
    format!("broken JSON at byte {}: {message}", error.column()).into()
}

/// What to say of a line that is no UTF-8. Only here a copy of the line is made, to find the id on it.
fn not_utf8(line: &[u8]) -> Rejected<'static> {
    let text = String::from_utf8_lossy(line);
    let mut fields = Fields::default();
    let _ = read_object(&text, &mut fields);
    let id = usable_id(fields.id).unwrap_or_default();
    Rejected {
        code: Code::BadJson,
        text: "not UTF-8; write text in UTF-8, or as \\u escapes".into(),
        id: id
            .filter(|id| !id.contains(char::REPLACEMENT_CHARACTER))
            .map(|id| Cow::Owned(id.into_owned())),
    }
}

/// The keys that mean something. `from` is none of them: whom a line is from is known without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    To,
    Body,
    Cmd,
    Id,
    Format,
    Token,
}

impl Key {
    /// The key that is written like this, in any case.
    fn of(text: &str) -> Option<Self> {
        let of_length: &[Self] = match text.len() {
            2 => &[Self::To, Self::Id],
            3 => &[Self::Cmd],
            4 => &[Self::Body],
            5 => &[Self::Token],
            6 => &[Self::Format],
            _ => &[],
        };
        let mut keys = of_length.iter().copied();
        keys.find(|key| text.eq_ignore_ascii_case(key.as_str()))
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::To => "to",
            Self::Body => "body",
            Self::Cmd => "cmd",
            Self::Id => "id",
            Self::Format => "format",
            Self::Token => "token",
        }
    }
}

/// What was read of an object, up to where it broke.
#[derive(Default)]
struct Fields<'a> {
    to: Cow<'a, str>,
    body: Cow<'a, str>,
    cmd: Cow<'a, str>,
    id: Cow<'a, str>,
    format: Cow<'a, str>,
    token: Cow<'a, str>,
    /// The first key whose value is neither text nor null.
    not_text: Option<Key>,
}

impl<'a> Fields<'a> {
    fn field(&mut self, key: Key) -> &mut Cow<'a, str> {
        match key {
            Key::To => &mut self.to,
            Key::Body => &mut self.body,
            Key::Cmd => &mut self.cmd,
            Key::Id => &mut self.id,
            Key::Format => &mut self.format,
            Key::Token => &mut self.token,
        }
    }
}

struct FieldsVisitor<'f, 'a>(&'f mut Fields<'a>);

impl<'a> Visitor<'a> for FieldsVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let Some(key) = key else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            match map.next_value_seed(ValueSeed)? {
                Value::Text(text) => *self.0.field(key) = text,
                Value::Null => {}
                // Clients of other servers may mean something else by it. As a token it is none.
                Value::Other if matches!(key, Key::Token) => {}
                Value::Other => {
                    self.0.not_text.get_or_insert(key);
                }
            }
        }
        Ok(())
    }
}

struct KeySeed;

impl<'a> DeserializeSeed<'a> for KeySeed {
    type Value = Option<Key>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Option<Key>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Key::of(text))
    }
}

/// A value of a key that means something.
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    /// As in Go's `encoding/json`: no value, what was there stays.
    Null,
    /// A number, an array and so on. It is read to its end, so that an id after it is found.
    Other,
}

pub(super) struct ValueSeed;

impl<'a> DeserializeSeed<'a> for ValueSeed {
    type Value = Value<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for ValueSeed {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

/// Writes the greeting: the client's own address.
pub(crate) fn write_greeting(out: &mut Vec<u8>, address: &Address) {
    out.extend_from_slice(b"you is  : ");
    address_into(out, address);
    out.extend_from_slice(b"\r\n");
}

/// Writes a message to its recipient, one line whatever the body holds.
///
/// In JSON a body that is no UTF-8 goes as `body64`, in standard base64, in place of `body`.
pub(crate) fn write_message(out: &mut Vec<u8>, format: Format, from: &Address, to: &Address, body: &[u8]) {
    match format {
        Format::Text => {
            address_into(out, from);
            out.extend_from_slice(b" say : ");
            escape_into(out, body);
            out.extend_from_slice(b"\r\n");
        }
        Format::Json => {
            out.extend_from_slice(br#"{"cmd":"message","from":""#);
            address_into(out, from);
            out.extend_from_slice(br#"","to":""#);
            address_into(out, to);
            match std::str::from_utf8(body) {
                Ok(text) => {
                    out.extend_from_slice(br#"","body":""#);
                    json_into(out, text);
                }
                Err(_) => {
                    out.extend_from_slice(br#"","body64":""#);
                    // Writing to a `Vec` never fails.
                    let _ = write!(out, "{}", Base64Display::new(body, &STANDARD));
                }
            }
            out.extend_from_slice(b"\"}\n");
        }
    }
}

/// Writes that a line was not followed, or a message not delivered, and why.
pub(crate) fn write_error(out: &mut Vec<u8>, format: Format, code: Code, text: &str) {
    match format {
        Format::Text => {
            out.extend_from_slice(b"error : ");
            out.extend_from_slice(code.as_str().as_bytes());
            out.extend_from_slice(b" : ");
            escape_into(out, text.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Format::Json => {
            out.extend_from_slice(br#"{"cmd":"error""#);
            code_into(out, code, text);
            out.extend_from_slice(b"}\n");
        }
    }
}

/// Writes how the message with this `id` ended: a JSON line in both formats.
///
/// Without a `text` the code's own [advice](Code::advice) is given; `delivered` has neither.
pub(crate) fn write_receipt(out: &mut Vec<u8>, id: &str, outcome: Outcome, text: Option<&str>) {
    out.extend_from_slice(br#"{"cmd":"receipt","id":""#);
    json_into(out, id);
    out.extend_from_slice(br#"","status":""#);
    out.extend_from_slice(outcome.status().as_bytes());
    out.push(b'"');
    if let Some(code) = outcome.code() {
        code_into(out, code, text.unwrap_or_else(|| code.advice()));
    }
    out.extend_from_slice(b"}\n");
}

fn code_into(out: &mut Vec<u8>, code: Code, text: &str) {
    out.extend_from_slice(br#","code":""#);
    out.extend_from_slice(code.as_str().as_bytes());
    out.extend_from_slice(br#"","text":""#);
    json_into(out, text);
    out.push(b'"');
}

/// An address has no character that needs escaping in any format.
pub(super) fn address_into(out: &mut impl BufMut, address: &Address) {
    out.put_slice(address.node.as_str().as_bytes());
    out.put_u8(b':');
    out.put_slice(address.id.as_str().as_bytes());
}

/// After this many bytes it is certain whether a client speaks another protocol: the longest word that tells is
/// `OPTIONS ` with its space.
pub(crate) const STRANGER_BYTES: usize = 8;

/// What to tell a client whose first bytes are of another protocol, for an error line with [`Code::BadJson`].
///
/// Such a connection must be closed: otherwise a web page could have a browser send messages, in the body of a
/// request to this port. The bytes need not be a whole line; `None` may become more as more of the first line comes.
pub(crate) fn stranger(first_bytes: &[u8]) -> Option<&'static str> {
    const METHODS: [&[u8]; 10] = [
        b"GET ",
        b"POST ",
        b"PUT ",
        b"HEAD ",
        b"OPTIONS ",
        b"DELETE ",
        b"CONNECT ",
        b"PATCH ",
        b"TRACE ",
        b"PRI ",
    ];
    if first_bytes.starts_with(&[0x16, 0x03]) {
        Some("this port speaks JSON lines, not TLS; connect without TLS here, or encrypted by QUIC")
    } else if METHODS.iter().any(|method| first_bytes.starts_with(method)) {
        Some("this port speaks JSON lines, not HTTP; connect with nc, telnet or a Trunkline client")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    const FROM: &str = "127.0.0.1:1216:123456";
    const TO: &str = "[::1]:1215:651444";

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before\n".to_vec();
        write(&mut out);
        let out = String::from_utf8(out).unwrap();
        out.strip_prefix("before\n").unwrap().to_owned()
    }

    fn message(format: Format, body: &[u8]) -> String {
        let (from, to) = (FROM.parse().unwrap(), TO.parse().unwrap());
        written(|out| write_message(out, format, &from, &to, body))
    }

    fn send<'a>(to: &'a str, body: &'a str, id: Option<&'a str>) -> Request<'a> {
        Request::Send {
            to: to.into(),
            body: body.into(),
            id: id.map(Cow::from),
        }
    }

    /// One line end, at the end, and nothing a terminal would act on.
    fn is_one_harmless_line(line: &str, end: &str) -> bool {
        line.strip_suffix(end).is_some_and(|line| {
            !line
                .chars()
                .any(|char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}'))
        })
    }

    fn login<'a>(token: &'a str, id: Option<&'a str>) -> Request<'a> {
        Request::Login {
            token: token.into(),
            id: id.map(Cow::Borrowed),
        }
    }

    #[test]
    fn the_line_of_an_existing_client() {
        let line = br#"{"from":"127.0.0.1:1216:123456","to":"127.0.0.1:1215:651444","body":"1234567","cmd":"sendMsg"}"#;
        let request = parse(line).unwrap();
        assert_eq!(request, send("127.0.0.1:1215:651444", "1234567", None));
        let Request::Send { to, body, .. } = request else {
            panic!("a message");
        };
        assert!(matches!((to, body), (Cow::Borrowed(_), Cow::Borrowed(_))));
    }

    #[test]
    fn each_key_is_found_in_any_case() {
        for key in [Key::To, Key::Body, Key::Cmd, Key::Id, Key::Format, Key::Token] {
            for text in [key.as_str().to_owned(), key.as_str().to_uppercase()] {
                assert_eq!(Key::of(&text), Some(key));
                assert_eq!(plain_key(&format!("{text}\":")), Some((Some(key), ":")));
            }
        }
        assert_eq!(plain_key("from\":"), Some((None, ":")));
        assert_eq!(plain_key("to"), None);
    }

    #[test]
    fn what_most_clients_write_is_read_fast() {
        for line in [
            r#"{"to":"n:1:2","body":"hello","cmd":"sendMsg"}"#,
            r#"{ "cmd": "sendMsg", "to": "n:1:2", "body": "hello" }"#,
            r#"{"from":"n:1:1","to":"n:1:2","body":"hello","cmd":"sendMsg"}"#,
        ] {
            assert_eq!(read_plain(line), Some(send("n:1:2", "hello", None)), "{line}");
        }
        let with_id = r#"{"to":"n:1:2","body":"hello","cmd":"sendMsg","id":"7"}"#;
        assert_eq!(read_plain(with_id), Some(send("n:1:2", "hello", Some("7"))));
    }

    #[test]
    fn what_is_understood() {
        let text = Request::Hello { format: Format::Text };
        let json = Request::Hello { format: Format::Json };
        for (line, request) in [
            (r#"{"cmd":"sendMsg"}"#, send("", "", None)),
            (
                r#" {"TO":"a","Body":"b","cMd":"sendMsg","ID":"7"} "#,
                send("a", "b", Some("7")),
            ),
            ("\t{\"cmd\":\"sendMsg\"}\r", send("", "", None)),
            (r#"{"cmd":"login","token":"a.b.c"}"#, login("a.b.c", None)),
            (r#"{"CMD":"login","Token":"a.b.c","id":"7"}"#, login("a.b.c", Some("7"))),
            (r#"{"cmd":"login"}"#, login("", None)),
            // To others it may mean something else.
            (r#"{"cmd":"login","token":7}"#, login("", None)),
            (r#"{"cmd":"sendMsg","token":{"a":[]},"to":"b"}"#, send("b", "", None)),
            (
                r#"{"cmd":"sendMsg","to":null,"body":null,"id":null}"#,
                send("", "", None),
            ),
            (r#"{"cmd":"sendMsg","id":""}"#, send("", "", None)),
            (r#"{"cmd":"x","to":"1","TO":"2","cmd":"sendMsg"}"#, send("2", "", None)),
            (r#"{"cmd":"sendMsg","to":"1","to":null}"#, send("1", "", None)),
            (
                r#"{"x":[{"to":[1e9]}],"from":{},"y":"\ud800","cmd":"sendMsg"}"#,
                send("", "", None),
            ),
            (
                r#"{"cmd":"sendMsg","body":"a\n\"\\\u00e9\ud83e\udd80\u0000"}"#,
                send("", "a\n\"\\é🦀\0", None),
            ),
            (r#"{"cm\u0064":"s\u0065ndMsg"}"#, send("", "", None)),
            (r#"{"cmd":"hello"}"#, text.clone()),
            (r#"{"cmd":"hello","format":null}"#, text.clone()),
            (r#"{"cmd":"hello","format":"text"}"#, text),
            (r#"{"format":"json","cmd":"hello","body":"x"}"#, json),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(request), "{line}");
        }
        let id = "é".repeat(MAX_ID);
        let line = format!(r#"{{"cmd":"sendMsg","id":"{id}"}}"#);
        assert_eq!(parse(line.as_bytes()), Ok(send("", "", Some(&id))));
    }

    #[test]
    fn what_is_rejected() {
        use Code::{BadJson, UnknownCmd};
        let long = format!(r#"{{"cmd":"sendMsg","id":"{}"}}"#, "x".repeat(MAX_ID + 1));
        let long_and_open = long.trim_end_matches('}').to_owned();
        for (line, code, text, id) in [
            ("", BadJson, "an empty line", None),
            (" \t", BadJson, "an empty line", None),
            ("hi there", BadJson, "no JSON", None),
            ("GET / HTTP/1.1", BadJson, "no JSON", None),
            ("[{\"cmd\":\"sendMsg\"}]", BadJson, "an array, not", None),
            ("\"text\"", BadJson, "a text, not", None),
            ("-12", BadJson, "a number, not", None),
            ("null", BadJson, "null, not", None),
            ("nullify", BadJson, "no JSON", None),
            ("{", BadJson, "ends inside", None),
            (r#"{"id":"1","body":"ab"#, BadJson, "ends inside", Some("1")),
            (&long_and_open, BadJson, "ends inside", None),
            (
                r#"{"id":"1"}{"id":"2"}"#,
                BadJson,
                "follows the object at byte 11;",
                Some("1"),
            ),
            (r#"{"id":"1"} x"#, BadJson, "follows the object at byte 12;", Some("1")),
            (
                r#"{"id":"1",}"#,
                BadJson,
                "broken JSON at byte 11: trailing comma",
                Some("1"),
            ),
            (r#"{"id" "1"}"#, BadJson, "broken JSON at byte 7: expected `:`", None),
            (r#"{"id":"1",body:"x"}"#, BadJson, "key must be a string", Some("1")),
            (r#"{"body":"\ud83e"}"#, BadJson, "hex escape", None),
            (r#"{"body":"\udd80"}"#, BadJson, "surrogate", None),
            (r#"{"body":"\x41"}"#, BadJson, "invalid escape", None),
            ("{\"body\":\"a\tb\"}", BadJson, "control character", None),
            (r#"{"to":1e999}"#, BadJson, "number out of range", None),
            (
                r#"{"body":7,"to":[],"id":"1","cmd":"x"}"#,
                BadJson,
                "`body` is no text",
                Some("1"),
            ),
            (
                r#"{"TO":[1,{"a":[]}],"cmd":"sendMsg"}"#,
                BadJson,
                "`to` is no text",
                None,
            ),
            (r#"{"cmd":true}"#, BadJson, "`cmd` is no text", None),
            (r#"{"id":-5,"cmd":"sendMsg"}"#, BadJson, "`id` is no text", None),
            (
                r#"{"format":{"a":1.5},"cmd":"hello"}"#,
                BadJson,
                "`format` is no text",
                None,
            ),
            (
                r#"{"to":0.5,"to":"a","cmd":"sendMsg"}"#,
                BadJson,
                "`to` is no text",
                None,
            ),
            (&long, BadJson, "longer than 64", None),
            (
                r#"{"cmd":"hello","format":"JSON","id":"1"}"#,
                BadJson,
                "`format` is none of",
                Some("1"),
            ),
            ("{}", UnknownCmd, "there is no `cmd`", None),
            (
                r#"{"cmd":"sendmsg","id":"1"}"#,
                UnknownCmd,
                "none of sendMsg",
                Some("1"),
            ),
            (r#"{"cmd":"sendMsg\u0000"}"#, UnknownCmd, "none of sendMsg", None),
        ] {
            let rejected = parse(line.as_bytes()).unwrap_err();
            assert_eq!((rejected.code, rejected.id.as_deref()), (code, id), "{line}");
            assert!(rejected.text.contains(text), "{line}: {}", rejected.text);
        }
    }

    #[test]
    fn what_is_no_utf8_is_rejected_wherever_it_is() {
        for (line, id) in [
            (&b"{\"cmd\":\"sendMsg\",\"body\":\"\xe9\",\"id\":\"1\"}"[..], Some("1")),
            (b"{\"x\":\"\xff\",\"cmd\":\"hello\"}", None),
            (b"{\"id\":\"a\xff\",\"cmd\":\"hello\"}", None),
            (b"{\"id\":\"1\",\"cmd\":\"hello\"}\xc3", Some("1")),
            (b"\xff\xfe{\0}\0", None),
        ] {
            let rejected = parse(line).unwrap_err();
            assert_eq!((rejected.code, rejected.id.as_deref()), (Code::BadJson, id));
            assert!(rejected.text.starts_with("not UTF-8"));
        }
    }

    #[test]
    fn deep_nesting_does_not_end_the_stack() {
        let deep = "[".repeat(1 << 20);
        for line in [
            deep.clone(),
            format!("{{\"x\":{deep}"),
            format!("{{\"to\":{deep}"),
            format!("{{{}", "{\"to\":".repeat(1 << 18)),
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err().code, Code::BadJson);
        }
    }

    #[test]
    fn every_form_byte_for_byte() {
        let from: Address = FROM.parse().unwrap();
        assert_eq!(
            written(|out| write_greeting(out, &from)),
            "you is  : 127.0.0.1:1216:123456\r\n"
        );
        assert_eq!(
            message(Format::Text, b"1234567"),
            "127.0.0.1:1216:123456 say : 1234567\r\n"
        );
        assert_eq!(
            message(Format::Text, b"a\r\n\x1b[2J\\n\"\xff"),
            "127.0.0.1:1216:123456 say : a\\r\\n\\u001b[2J\\n\"\\xff\r\n"
        );
        assert_eq!(
            message(Format::Json, "a\n\"\\\u{9b}\u{7f}\u{2028}é".as_bytes()),
            concat!(
                r#"{"cmd":"message","from":"127.0.0.1:1216:123456","to":"[::1]:1215:651444","#,
                r#""body":"a\n\"\\\u009b\u007f\u2028é"}"#,
                "\n"
            )
        );
        assert_eq!(
            message(Format::Json, b"\xff\xfe!"),
            concat!(
                r#"{"cmd":"message","from":"127.0.0.1:1216:123456","to":"[::1]:1215:651444","body64":"//4h"}"#,
                "\n"
            )
        );
        assert_eq!(
            written(|out| write_error(out, Format::Text, Code::BadAddress, "x\ny")),
            "error : bad-address : x\\ny\r\n"
        );
        assert_eq!(
            written(|out| write_error(out, Format::Json, Code::BadAddress, "x\n\"y\"")),
            "{\"cmd\":\"error\",\"code\":\"bad-address\",\"text\":\"x\\n\\\"y\\\"\"}\n"
        );
        assert_eq!(
            written(|out| write_receipt(out, "7\"\n", Outcome::Delivered, Some("not said"))),
            "{\"cmd\":\"receipt\",\"id\":\"7\\\"\\n\",\"status\":\"delivered\"}\n"
        );
        assert_eq!(
            written(|out| write_receipt(out, "7", Outcome::Refused(Code::NotAllowed), None)),
            concat!(
                r#"{"cmd":"receipt","id":"7","status":"refused","code":"not-allowed","text":"your token does not allow this, or the recipient's does not let it receive"}"#,
                "\n"
            )
        );
        assert_eq!(
            written(|out| write_receipt(out, "7", Outcome::Unknown(Code::NodeRestarted), Some("gone"))),
            concat!(
                r#"{"cmd":"receipt","id":"7","status":"unknown","code":"node-restarted","text":"gone"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn strangers() {
        for first in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"POST /",
            b"OPTIONS * HTTP/1.1",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            b"CONNECT a:1 HTTP/1.1",
        ] {
            assert!(stranger(first).unwrap().contains("not HTTP"));
        }
        assert!(stranger(b"\x16\x03\x01\x02\0\x01").unwrap().contains("not TLS"));
        for first in [
            &b""[..],
            b"GE",
            b"GET",
            b"GETTING on",
            b"get it",
            b"{\"cmd\":\"GET \"}",
            b"\x16",
        ] {
            assert_eq!(stranger(first), None);
        }
    }

    /// Bytes near to what a client sends, so that more than the first byte is read.
    fn nearly_a_line() -> impl Strategy<Value = Vec<u8>> {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"cmd\"",
            "\"sendMsg\"",
            "\"to\"",
            "\"id\":\"x\"",
            "\\u",
            "\\ud83e",
            "d800",
            "null",
            "-1e5",
            "é",
            " ",
        ];
        let piece = prop_oneof![
            9 => proptest::sample::select(pieces.map(|piece| piece.as_bytes().to_vec()).to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..3),
        ];
        proptest::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
    }

    /// Objects of texts, most of them messages, some a little off.
    fn nearly_plain() -> impl Strategy<Value = String> {
        let key = proptest::sample::select(vec![
            "to", "body", "cmd", "id", "TO", "Body", "cMd", "iD", "from", "", "ids", "token", "format", "to ", "é",
        ]);
        let value = prop_oneof![
            3 => Just("sendMsg".to_owned()),
            3 => "[ -!#-~é]{0,20}",
            1 => "[a-z]{63,66}",
            1 => "[ -~\\t\u{7f}]{0,4}",
        ];
        let space = || proptest::sample::select(vec!["", "", "", " ", "  ", "\t"]);
        let field = (space(), key, space(), space(), value, space())
            .prop_map(|(a, key, b, c, value, d)| format!("{a}\"{key}\"{b}:{c}\"{value}\"{d}"));
        let fields = proptest::collection::vec(field, 0..6).prop_map(|fields| fields.join(","));
        let end = proptest::sample::select(vec!["}", "}", "}", "} ", ",}", "", "}}", "} x"]);
        (space(), fields, proptest::bool::weighted(0.8), end).prop_map(|(space, fields, whole, end)| {
            let message = if whole { ",\"cmd\":\"sendMsg\"" } else { "" };
            format!("{space}{{{fields}{message}{end}")
        })
    }

    /// Any bytes, more often than not text, with what a line must not hold mixed in.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            "[ -~]{0,50}".prop_map(String::into_bytes),
            "[\\x00-\\x1f\\x7f\u{80}-\u{9f}\u{2028}\u{2029}\"\\\\]{1,3}".prop_map(String::into_bytes),
            "\\PC{0,9}".prop_map(String::into_bytes),
        ];
        let text = proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat());
        prop_oneof![3 => text, 1 => any::<Vec<u8>>()]
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line: Vec<u8>, nearly in nearly_a_line()) {
            for line in [line, nearly] {
                if let Err(rejected) = parse(&line) {
                    let error = written(|out| write_error(out, Format::Text, rejected.code, &rejected.text));
                    prop_assert!(is_one_harmless_line(&error, "\r\n"));
                    prop_assert!(!rejected.text.is_empty());
                }
            }
        }

        #[test]
        fn what_is_read_fast_is_read_the_same(line in nearly_plain(), nearly in nearly_a_line()) {
            for line in [line.as_str(), &String::from_utf8_lossy(&nearly)] {
                let Some(fast) = read_plain(line) else { continue };
                prop_assert_eq!(Ok(fast), parse_any(line), "{}", line);
            }
        }

        #[test]
        fn a_request_comes_through(to: String, body in body(), id in proptest::option::of("\\PC{1,64}")) {
            let body = String::from_utf8_lossy(&body);
            let line = json!({"to": to, "body": body, "id": id, "cmd": "sendMsg"}).to_string();
            prop_assert_eq!(parse(line.as_bytes()), Ok(send(&to, &body, id.as_deref())));
        }

        #[test]
        fn a_message_is_one_harmless_line(body in body()) {
            prop_assert!(is_one_harmless_line(&message(Format::Text, &body), "\r\n"));
            prop_assert!(is_one_harmless_line(&message(Format::Json, &body), "\n"));
        }

        #[test]
        fn a_json_message_leads_back_to_its_body(body in body()) {
            let line: Json = serde_json::from_str(&message(Format::Json, &body)).unwrap();
            prop_assert_eq!((&line["from"], &line["to"]), (&json!(FROM), &json!(TO)));
            let back = match (&line["body"], &line["body64"]) {
                (Json::String(text), Json::Null) => text.clone().into_bytes(),
                (Json::Null, Json::String(base64)) => STANDARD.decode(base64).unwrap(),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(back, body);
        }

        #[test]
        fn an_error_is_one_harmless_line_of_text(code in proptest::sample::select(&Code::ALL[..]), text in body()) {
            let text = String::from_utf8_lossy(&text);
            let error = written(|out| write_error(out, Format::Text, code, &text));
            prop_assert!(is_one_harmless_line(&error, "\r\n"));
            let start = format!("error : {code} : ");
            prop_assert!(error.starts_with(&start));
        }

        #[test]
        fn errors_and_receipts_are_harmless_json(id: String, text in body()) {
            let text = String::from_utf8_lossy(&text);
            let error = written(|out| write_error(out, Format::Json, Code::TooLarge, &text));
            let receipt = written(|out| write_receipt(out, &id, Outcome::Refused(Code::TooLarge), Some(&text)));
            prop_assert!(is_one_harmless_line(&error, "\n") && is_one_harmless_line(&receipt, "\n"));
            prop_assert_eq!(
                serde_json::from_str::<Json>(&error).unwrap(),
                json!({"cmd": "error", "code": "too-large", "text": text})
            );
            prop_assert_eq!(
                serde_json::from_str::<Json>(&receipt).unwrap(),
                json!({"cmd": "receipt", "id": id, "status": "refused", "code": "too-large", "text": text})
            );
        }
    }
}
