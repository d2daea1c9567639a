//! Hostile input: one function for each reader of what comes from outside, given any bytes.
//!
//! A target panics when what it was given breaks a promise: a reader that panics, keeps more than it may, or reads
//! something else from the same bytes in other pieces; a writer whose line is none, or is not read as it was written.
//! `fuzz/` has the fuzzer play them (`scripts/fuzz.sh`); the tests here play them over the files of `fuzz/corpus` and
//! variations of those, so that what was found once stays mended without the fuzzer too.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a target tells what it found"
)]

#[cfg(test)]
mod corpus;
mod machine;

use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::address::{Address, ClientId, HostPort, MAX_ADDRESS, NodeName};
use crate::certs::{client_uri, node_uri};
use crate::config::{Congestion, Peer};
use crate::delivery::{Confirm, Control, RangeSet, Report};
use crate::network::Network;
use crate::outcome::{Code, Outcome};
use crate::permission::{Keys, MAX_TOKEN, Pattern};
use crate::redis::topology::{Redirect, SLOTS, Slots, slot_of};
use crate::tls::identity::{Holder, Identity};
use crate::wire::escape::escape_into;
use crate::wire::framing::{Lines, READ_MAX, TooLong};
use crate::wire::line::Format;
use crate::wire::packet::{self, Item, Packet};
use crate::wire::resp::{Answers, NotResp, Value};
use crate::wire::{client, handover, line, link};

pub use machine::machine;

/// What is given any bytes, and panics when it finds something.
pub type Target = fn(&[u8]);

/// Every target with its name: that of its folder in `fuzz/corpus` and of its file in `fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 13] = [
    ("legacy_stream", legacy_stream),
    ("legacy_line", legacy_line),
    ("legacy_writers", legacy_writers),
    ("client_header", client_header),
    ("client_control", client_control),
    ("link_frames", link_frames),
    ("link_message", link_message),
    ("names", names),
    ("certificates", certificates),
    ("tokens", tokens),
    ("redis_answers", redis_answers),
    ("packets", packets),
    ("machine", machine),
];

/// Choices read off the front of an input. Past its end each is 0.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    /// The next bytes, at most so many.
    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bytes in the pieces in which a connection may give them. Pace 0 gives one byte at a time, any other pieces of 1 to 24
/// bytes that look drawn by chance.
fn pieces(mut bytes: &[u8], pace: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u32::from(pace);
    std::iter::from_fn(move || {
        // The usual constants of a linear congruential generator (Numerical Recipes); its high bits are the better ones.
        let length = if pace == 0 { 1 } else { 1 + (state >> 27) as usize % 24 };
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What a legacy client sends: lines of up to a limit, in pieces. The first byte is a quarter of the limit, the second the
/// pace.
pub fn legacy_stream(data: &[u8]) {
    let mut input = Input(data);
    let (limit, pace) = (usize::from(input.byte()) * 4, input.byte());
    let stream = input.0;
    let (got, end) = lines(limit, pieces(stream, pace));
    assert_eq!((&got, end), (&lines(limit, [stream].into_iter()).0, end));

    let mut expected: Vec<&[u8]> = stream.split(|&byte| byte == b'\n').collect();
    if expected.last().is_some_and(|last| last.is_empty()) {
        expected.pop();
    }
    let expected = expected.iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let fits = |line: &&[u8]| line.len() <= limit;
    assert!(expected.clone().take_while(fits).eq(got.iter().map(|line| &line[..])));
    assert_eq!(end.is_ok(), expected.clone().all(|line| fits(&line)));

    for line in &got {
        // What it is answered with is for the other targets.
        let _ = line::parse(line);
    }
}

/// All lines up to one that is too long.
fn lines<'a>(limit: usize, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Result<(), TooLong>) {
    let mut lines = Lines::new(limit);
    let mut got = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            let buffer = lines.buffer();
            let room = buffer.capacity() - buffer.len();
            assert!(room > 0 && buffer.capacity() <= limit + 1 + READ_MAX);
            let (now, later) = piece.split_at(room.min(piece.len()));
            buffer.extend_from_slice(now);
            piece = later;
            loop {
                match lines.next_line() {
                    Ok(Some(line)) => got.push(line.to_vec()),
                    Ok(None) => break,
                    Err(error) => return (got, Err(error)),
                }
            }
            assert!(lines.pending().len() <= limit + 1);
            lines.release();
        }
    }
    got.extend(lines.take_rest().map(<[u8]>::to_vec));
    (got, Ok(()))
}

/// A line of a legacy client, without its end.
pub fn legacy_line(line: &[u8]) {
    if let Ok(text) = std::str::from_utf8(line) {
        assert_eq!(line::parse(line), line::parse_any(text));
    }
    match line::parse(line) {
        Ok(request) => {
            assert_eq!(line::stranger(line), None);
            let again = match &request {
                line::Request::Send { to, body, id } => json!({"to": to, "body": body, "id": id, "cmd": "sendMsg"}),
                line::Request::Login { token, id } => json!({"token": token, "id": id, "cmd": "login"}),
                line::Request::Hello { format: Format::Text } => json!({"cmd": "hello"}),
                line::Request::Hello { format: Format::Json } => json!({"cmd": "hello", "format": "json"}),
            };
            assert_eq!(line::parse(again.to_string().as_bytes()), Ok(request));
        }
        Err(rejected) => {
            assert!(!rejected.text.is_empty());
            written_error(rejected.code, &rejected.text);
            if let Some(id) = &rejected.id {
                assert!(!id.is_empty() && id.chars().count() <= 64);
                written_receipt(id, Outcome::Refused(rejected.code), &rejected.text);
            }
            if let Ok(Json::Object(_)) = serde_json::from_slice(line) {
                // What is wrong with it is not the JSON.
                let what = ["`", "there is no `cmd`"];
                assert!(
                    what.iter().any(|what| rejected.text.starts_with(what)),
                    "{}",
                    rejected.text
                );
            }
        }
    }
    claimed_from(line);
    // The first bytes settle whether it is another protocol.
    let first = &line[..line.len().min(line::STRANGER_BYTES)];
    assert_eq!(line::stranger(line), line::stranger(first));
    if let Some(text) = line::stranger(line) {
        written_error(Code::BadJson, text);
    }
}

/// Whom a line says that it is from, by a plainer reader where a key comes once.
fn claimed_from(line: &[u8]) {
    let claimed = handover::claimed_from(line);
    let Ok(Json::Object(fields)) = serde_json::from_slice(line) else {
        return;
    };
    let from: Vec<_> = fields
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case("from"))
        .collect();
    if let [(key, value)] = from.as_slice()
        && !line.contains(&b'\\')
        && line
            .windows(key.len())
            .filter(|part| part.eq_ignore_ascii_case(key.as_bytes()))
            .count()
            == 1
    {
        assert_eq!(claimed.as_deref(), value.as_str());
    }
    if from.is_empty() {
        assert_eq!(claimed, None);
    }
}

/// What a node writes to a legacy client or server: a code and how a message ended, the length of an id, the id, and
/// what is said.
pub fn legacy_writers(data: &[u8]) {
    let mut input = Input(data);
    let choice = usize::from(input.byte());
    let code = Code::ALL[choice % Code::ALL.len()];
    let outcomes = [Outcome::Delivered, Outcome::Refused(code), Outcome::Unknown(code)];
    let id = usize::from(input.byte());
    let id = String::from_utf8_lossy(input.take(id));
    let body = input.0;
    let text = String::from_utf8_lossy(body);

    let (from, to): (Address, Address) = (
        "127.0.0.1:1216:123456".parse().unwrap(),
        "[::1]:1215:a.b_c-D".parse().unwrap(),
    );
    let line = one_line("\r\n", |out| line::write_greeting(out, &from));
    assert_eq!(line, "you is  : 127.0.0.1:1216:123456");
    let line = one_line("\r\n", |out| line::write_message(out, Format::Text, &from, &to, body));
    assert!(line.starts_with("127.0.0.1:1216:123456 say : "));
    let line = one_line("\n", |out| line::write_message(out, Format::Json, &from, &to, body));
    let message: Json = serde_json::from_str(&line).unwrap();
    let field = |name: &str| message[name].as_str();
    assert_eq!(field("cmd"), Some("message"));
    assert_eq!(
        (field("from"), field("to")),
        (Some("127.0.0.1:1216:123456"), Some("[::1]:1215:a.b_c-D"))
    );
    let back = match (field("body"), field("body64")) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, base64) => STANDARD.decode(base64.unwrap()).unwrap(),
        (Some(_), Some(_)) => unreachable!("{line}"),
    };
    assert_eq!(back, body);

    let line = one_line("\r\n", |out| {
        assert!(!handover::Line::begin(out, &from, &to, body).fill(out, usize::MAX));
    });
    let passed_on: Json = serde_json::from_str(&line).unwrap();
    let mut shown = Vec::new();
    escape_into(&mut shown, body);
    let shown = std::str::from_utf8(body).unwrap_or_else(|_| std::str::from_utf8(&shown).unwrap());
    assert_eq!(
        passed_on,
        json!({"from": from.to_string(), "to": to.to_string(), "body": shown, "cmd": "sendMsg"})
    );
    assert_eq!(
        handover::claimed_from(line.as_bytes()).as_deref(),
        Some("127.0.0.1:1216:123456")
    );

    written_error(code, &text);
    written_receipt(&id, outcomes[choice / Code::ALL.len() % outcomes.len()], &text);
}

fn written_error(code: Code, text: &str) {
    let line = one_line("\r\n", |out| line::write_error(out, Format::Text, code, text));
    assert!(line.starts_with(&format!("error : {code} : ")));
    let line = one_line("\n", |out| line::write_error(out, Format::Json, code, text));
    let expected = json!({"cmd": "error", "code": code.as_str(), "text": text});
    assert_eq!(serde_json::from_str::<Json>(&line).unwrap(), expected);
}

fn written_receipt(id: &str, outcome: Outcome, text: &str) {
    let line = one_line("\n", |out| line::write_receipt(out, id, outcome, Some(text)));
    let mut expected = json!({"cmd": "receipt", "id": id, "status": outcome.status()});
    if let Some(code) = outcome.code() {
        expected["code"] = code.as_str().into();
        expected["text"] = text.into();
    }
    assert_eq!(serde_json::from_str::<Json>(&line).unwrap(), expected);
}

/// What was written, which must be one line that does nothing to a terminal.
fn one_line(end: &str, write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    let line = String::from_utf8(out).unwrap().strip_suffix(end).unwrap().to_owned();
    let is_harmless = |char: char| !char.is_control() && !matches!(char, '\u{2028}' | '\u{2029}');
    assert!(line.chars().all(is_harmless), "{line:?}");
    line
}

/// A message's stream of a QUIC client, or to one.
pub fn client_header(data: &[u8]) {
    let mut stream = Bytes::copy_from_slice(data);
    let head = &data[..data.len().min(client::MAX_HEADER)];
    let line = match client::split_header(&mut stream) {
        Ok(Some(line)) => line,
        Ok(None) => {
            assert!(data.len() < client::MAX_HEADER && !data.contains(&b'\n'));
            return;
        }
        Err(_) => {
            assert!(head.len() == client::MAX_HEADER && !head.contains(&b'\n'));
            return;
        }
    };
    assert_eq!([&line[..], b"\n", &stream].concat(), data);
    assert!(matches!(client::split_header(&mut line.clone()), Ok(None)));

    let from_client = client::read_header_from_client(&line);
    let header = client::read_header(&line);
    // Whichever way they were read.
    let by_serde = client::read_object::<client::Header<'_>>(&line);
    assert_eq!(header.as_ref().ok(), by_serde.as_ref().ok());
    let by_serde = client::read_object::<client::HeaderFromClient<'_>>(&line);
    assert_eq!(from_client.as_ref().ok(), by_serde.as_ref().ok());
    let Ok(header) = header else {
        return;
    };
    // Whatever is claimed to be its sender.
    let from_client = from_client.unwrap();
    let read = (&header.to, header.id, header.after);
    assert_eq!(read, (&from_client.to, from_client.id, from_client.after));

    let from = header.from.as_ref().map(|from| from.parse::<Address>());
    let (Ok(from), Ok(to)) = (from.transpose(), header.to.parse::<Address>()) else {
        return;
    };
    let mut out = BytesMut::new();
    client::write_header(&mut out, header.id, header.after, from.as_ref(), &to);
    assert!(out.len() <= client::MAX_HEADER);
    let mut again = out.freeze();
    let line = client::split_header(&mut again).unwrap().unwrap();
    assert!(again.is_empty());
    let again = client::read_header(&line).unwrap();
    assert_eq!(again, client::read_object(&line).unwrap());
    assert_eq!((again.id, again.after), (header.id, header.after));
    assert_eq!(again.from.map(|from| from.parse()), from.map(Ok));
    assert_eq!(again.to.parse(), Ok(to));
}

/// The control stream of a QUIC client. The first byte is the pace: an even one for what a client writes, an odd one for
/// what a node does.
pub fn client_control(data: &[u8]) {
    let mut input = Input(data);
    let pace = input.byte();
    if pace % 2 == 0 {
        for line in control_lines::<client::FromClient>(input.0, pace) {
            match line {
                client::FromClient::Receipt(receipt) => receipt_comes_back(receipt),
                client::FromClient::Confirm(confirm) => confirm_comes_back(confirm),
                client::FromClient::Hello { resume, .. } => {
                    if let Some(resume) = resume {
                        taken_comes_back(resume.taken);
                    }
                }
                client::FromClient::Login { .. } | client::FromClient::Goodbye | client::FromClient::Other => {}
            }
        }
        return;
    }
    for line in control_lines::<client::FromNode>(input.0, pace) {
        match line {
            client::FromNode::Receipt(receipt) => receipt_comes_back(receipt),
            client::FromNode::Confirm(confirm) => confirm_comes_back(confirm),
            client::FromNode::Welcome(welcome) => {
                if let Some(taken) = welcome.taken {
                    taken_comes_back(taken);
                }
            }
            client::FromNode::Error { .. }
            | client::FromNode::Login { .. }
            | client::FromNode::GoingAway
            | client::FromNode::Other => {}
        }
    }
}

/// All lines up to one that can't be read.
fn control_lines<L: Serialize + DeserializeOwned + PartialEq + Debug>(stream: &[u8], pace: u8) -> Vec<L> {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buffer, mut lines) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match client::read_line::<L>(&mut buffer) {
                    Ok(Some(line)) => lines.push(line),
                    Ok(None) => break,
                    Err(error) => return (lines, Some(error.to_string())),
                }
            }
            assert!(buffer.len() <= client::MAX_CONTROL_LINE);
        }
        (lines, None)
    };
    let (lines, end) = read(&mut pieces(stream, pace));
    let whole = read(&mut [stream].into_iter());
    assert_eq!((&lines, end), (&whole.0, whole.1));
    for line in &lines {
        let mut out = BytesMut::new();
        client::write_line(&mut out, line);
        assert_eq!(client::read_line::<L>(&mut out).unwrap().as_ref(), Some(line));
        assert!(out.is_empty());
    }
    lines
}

fn receipt_comes_back(receipt: client::Receipt) {
    let report = Report::from(receipt);
    assert_eq!(Report::from(client::Receipt::from(report.clone())), report);
}

fn confirm_comes_back(line: client::ConfirmLine) {
    assert_eq!(client::ConfirmLine::from(Confirm::from(line)), line);
}

fn taken_comes_back(taken: client::Taken) {
    let set = RangeSet::from(taken);
    assert_eq!(RangeSet::from(client::Taken::from(set.clone())), set);
}

/// The control stream of a link. The first byte is the pace.
pub fn link_frames(data: &[u8]) {
    let mut input = Input(data);
    let pace = input.byte();
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match link::read_frame(&mut buffer) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Err(error)),
                }
            }
        }
        (frames, Ok(()))
    };
    let (frames, end) = read(&mut [input.0].into_iter());
    assert_eq!((&frames, end), (&read(&mut pieces(input.0, pace)).0, end));
    for frame in &frames {
        frame_comes_back(frame);
    }
}

fn frame_comes_back(frame: &link::Frame) {
    let mut out = BytesMut::new();
    link::write_frame(&mut out, frame);
    assert_eq!(link::read_frame(&mut out), Ok(Some(frame.clone())));
    assert!(out.is_empty());
}

/// A control frame of the machine comes back from a link, and from a client.
fn control_comes_back(control: &Control) {
    let largest = match control {
        Control::Sync(set) => set
            .ranges()
            .map(|(_, last)| last)
            .max()
            .unwrap_or_default()
            .max(set.below() - 1),
        Control::Report(report) => {
            let delivered = report.delivered.iter().map(|(_, last)| *last);
            delivered
                .chain(report.failed.iter().map(|failure| failure.number))
                .max()
                .unwrap_or_default()
        }
        Control::Confirm(confirm) => confirm.below - 1,
    };
    // Clients may have given larger numbers, links not.
    if largest <= link::MAX_NUMBER {
        frame_comes_back(&link::Frame::Control(control.clone()));
    }
    match control.clone() {
        Control::Sync(set) => taken_comes_back(set.into()),
        Control::Report(report) => assert_eq!(Report::from(client::Receipt::from(report.clone())), report),
        Control::Confirm(confirm) => assert_eq!(Confirm::from(client::ConfirmLine::from(confirm)), confirm),
    }
}

/// A message's stream of a link.
pub fn link_message(data: &[u8]) {
    let ids = |from: &[u8], to: &[u8]| Ok((link::read_id(from)?, link::read_id(to)?));
    let Ok(parcel) = link::read_message(Bytes::copy_from_slice(data), ids) else {
        return;
    };
    assert!(data.ends_with(&parcel.body));
    assert!(parcel.after < parcel.number || parcel.after == 0);
    let mut out = BytesMut::new();
    let (from, to) = &parcel.between;
    link::write_header(&mut out, parcel.number, parcel.after, parcel.prompt, from, to);
    // One way to write a header is the shortest.
    assert!(out.len() <= link::MAX_HEADER && out.len() + parcel.body.len() <= data.len());
    out.extend_from_slice(&parcel.body);
    assert_eq!(link::read_message(out.freeze(), ids), Ok(parcel));
}

/// Names as users, clients and certificates write them: addresses, nodes, ids, peers, what to bind, and words of settings.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let address = canonical::<Address>(text);
    let node = canonical::<NodeName>(text);
    let pair = canonical::<HostPort>(text);
    let id = canonical::<ClientId>(text);
    canonical::<Congestion>(text);
    canonical::<Code>(text);
    canonical::<Network>(text);
    // A pattern without a star means the address that is spelled so, and no other.
    let pattern = canonical::<Pattern>(text);
    if let Some(address) = &address {
        assert!(pattern.is_some_and(|pattern| pattern.matches(address)));
    }

    // A node's name is what a socket can be bound to, but for port 0.
    assert_eq!(
        node.clone().map(HostPort::from),
        pair.clone().filter(|pair| pair.port() != 0)
    );
    if let Some(pair) = &pair {
        assert_eq!(&pair.with_port(pair.port()), pair);
    }
    if let Some(node) = &node {
        assert_eq!(node.port(), HostPort::from(node.clone()).port());
        let host = node.host();
        let written = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        assert_eq!(node.as_str(), format!("{written}:{}", node.port()));
    }
    // What the system reads as a socket's address is one, but for the scope.
    if let Ok(addr) = text.parse::<SocketAddr>()
        && !text.contains('%')
    {
        assert_eq!(pair, Some(HostPort::from(addr)));
    }
    if let Some(address) = &address {
        assert!(address.to_string().len() <= MAX_ADDRESS);
        // It is written into lines and JSON as it is.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        assert!(address.to_string().bytes().all(is_plain));
        assert!(crate::certs::node_stem(&address.node).bytes().all(|byte| byte != b'/'));
    }
    // An address is a name, a colon, and an id.
    let parts = text.rsplit_once(':').and_then(|(node, id)| {
        let (node, id) = (node.parse().ok()?, id.parse().ok()?);
        (text.len() <= MAX_ADDRESS).then_some(Address { node, id })
    });
    assert_eq!(address, parts);
    if let (Some(node), Some(id)) = (node, id) {
        unreachable!("{text:?} is {node} and {id}");
    }
    if let Ok(peer) = text.parse::<Peer>() {
        assert_eq!(format!("{}={}", peer.name, peer.link).parse(), Ok(peer));
    }
}

/// What a text is read as. Its own spelling is read as the same, and is how that one is written.
fn canonical<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    let written = value.to_string();
    let again = written.parse::<T>().ok();
    assert_eq!(again.as_ref().map(T::to_string), Some(written));
    assert_eq!(again.as_ref(), Some(&value));
    Some(value)
}

/// Who a certificate names: the input is read as a certificate in DER, and as the URI in one.
pub fn certificates(data: &[u8]) {
    let chain = [rustls::pki_types::CertificateDer::from(data)];
    if let Ok(identity) = Identity::of_chain(&chain) {
        assert_eq!(Identity::of_uri(&uri_of(&identity)), Ok(identity));
    }
    let Ok(uri) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(identity) = Identity::of_uri(uri) {
        // There is one spelling, so that what is compared as text is the same name.
        assert_eq!(uri_of(&identity), uri);
        // It is one of the two, and of no other cluster.
        let cluster = identity.cluster.clone();
        assert!(identity.clone().node_of(&cluster).is_ok() != identity.clone().client_of(&cluster).is_ok());
        assert!(identity.clone().node_of("another one").is_err() && identity.client_of("another one").is_err());
    } else if let Ok(node) = uri.parse() {
        let identity = Identity {
            cluster: crate::certs::DEFAULT_CLUSTER.to_owned(),
            holder: Holder::Node(node),
        };
        assert_eq!(Identity::of_uri(&uri_of(&identity)), Ok(identity));
    }
}

fn uri_of(identity: &Identity) -> String {
    match &identity.holder {
        Holder::Node(node) => node_uri(&identity.cluster, node),
        Holder::Client(id) => client_uri(&identity.cluster, id),
    }
}

/// What Redis answers, in pieces: strings of up to 32 bytes are kept. The first byte is the pace.
pub fn redis_answers(data: &[u8]) {
    const MAX_STRING: usize = 32;
    let mut input = Input(data);
    let pace = input.byte();
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| -> (Vec<Value>, Result<(), NotResp>) {
        let (mut answers, mut buffer, mut got) = (Answers::new(MAX_STRING), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match answers.next(&mut buffer) {
                    Ok(Some(answer)) => got.push(answer),
                    Ok(None) => break,
                    Err(error) => return (got, Err(error)),
                }
            }
        }
        (got, Ok(()))
    };
    let (answers, end) = read(&mut [input.0].into_iter());
    assert_eq!((&answers, end), (&read(&mut pieces(input.0, pace)).0, end));
    let from: HostPort = "me:7".parse().unwrap();
    for answer in &answers {
        let mut wire = BytesMut::new();
        write_answer(&mut wire, answer, MAX_STRING);
        assert_eq!(&read(&mut [&wire[..]].into_iter()).0, std::slice::from_ref(answer));
        if let Value::Error(error) = answer
            && let Some(Redirect::Moved(slot, _) | Redirect::Ask(slot, _)) = Redirect::read(error, &from)
        {
            assert!(slot < SLOTS);
        }
        if let Value::Bytes(key) = answer {
            assert!(slot_of(key) < SLOTS);
        }
        if let Some(mut slots) = Slots::read(answer, &from) {
            let masters = slots.masters();
            // To look at all of them takes longer than all else, and most answers tell of none.
            if masters.is_empty() {
                assert_eq!(slots.owner(slot_of(data)), None);
                continue;
            }
            let owned = |slots: &Slots| (0..SLOTS).filter(|slot| slots.owner(*slot).is_some()).count();
            assert!((0..SLOTS).all(|slot| slots.owner(slot).is_none_or(|owner| masters.contains(owner))));
            let (slot, before) = (slot_of(data), owned(&slots));
            let was_owned = slots.owner(slot).is_some();
            slots.set(slot, from.clone());
            assert_eq!(slots.owner(slot), Some(&from));
            assert_eq!(owned(&slots), before + usize::from(!was_owned));
        }
    }
}

/// An answer as Redis writes it; `max_string` is the longest string that is kept.
fn write_answer(wire: &mut BytesMut, answer: &Value, max_string: usize) {
    let line = |wire: &mut BytesMut, kind: u8, text: &[u8]| {
        wire.extend_from_slice(&[kind]);
        wire.extend_from_slice(text);
        wire.extend_from_slice(b"\r\n");
    };
    let number = |number: usize| number.to_string().into_bytes();
    match answer {
        Value::Status(text) => line(wire, b'+', text),
        Value::Error(text) => line(wire, b'-', text),
        Value::Integer(number) => line(wire, b':', number.to_string().as_bytes()),
        Value::Null => line(wire, b'$', b"-1"),
        Value::Bytes(bytes) => {
            assert!(bytes.len() <= max_string);
            line(wire, b'$', &number(bytes.len()));
            wire.extend_from_slice(bytes);
            wire.extend_from_slice(b"\r\n");
        }
        Value::Array(answers) => {
            line(wire, b'*', &number(answers.len()));
            for answer in answers {
                write_answer(wire, answer, max_string);
            }
        }
        Value::TooLong => {
            line(wire, b'$', &number(max_string + 1));
            line(wire, b'x', &vec![b'x'; max_string]);
        }
    }
}

/// What a token grants: the input is read as a token, and as the claims of one that a key has signed.
pub fn tokens(data: &[u8]) {
    const CLUSTER: &str = "test";
    // Long enough, and known to all.
    const KEY: [u8; 32] = [7; 32];
    let keys = Keys::new(&[], Some(&KEY));
    let judge = |token: &str| {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let judged = keys.judge(token, CLUSTER, now);
        if let Ok(login) = &judged {
            assert!(token.len() <= MAX_TOKEN && !login.subject.is_temporary());
            // Without an end no token is accepted.
            assert!(login.grant.until.is_some_and(|until| until > now));
        }
        judged
    };
    if let Ok(token) = std::str::from_utf8(data) {
        // Nobody who fuzzes finds a signature.
        assert!(judge(token).is_err());
    }
    let signed = |header: &[u8]| {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(data));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &KEY);
        let signature = hmac::sign(&key, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    };
    let token = signed(b"{\"alg\":\"HS256\"}");
    // What is passed over need not be text; then there is nothing to compare with.
    if let (Ok(login), Ok(claims)) = (judge(&token), serde_json::from_slice::<Json>(data)) {
        // What was claimed is there.
        assert_eq!(claims["sub"], login.subject.as_str());
        assert_eq!(login.grant.receive, claims["trunkline"]["receive"] != false);
        assert_eq!(login.grant.send.is_some(), !claims["trunkline"]["send"].is_null());
    }
    // Signed with the same bytes, and named as what they are not.
    for header in ["{\"alg\":\"none\"}", "{\"alg\":\"EdDSA\"}", "{\"alg\":\"HS384\"}"] {
        assert!(judge(&signed(header.as_bytes())).is_err());
    }
}

/// What comes by a bus: a packet, and the items of one that was opened.
pub fn packets(data: &[u8]) {
    if let Ok(read) = packet::read(Bytes::copy_from_slice(data)) {
        let written = match &read {
            Packet::Open {
                session,
                epoch,
                from,
                tls,
            } => packet::open(*session, *epoch, from, tls),
            Packet::Shake { session, epoch, tls } => packet::shake(*session, *epoch, tls),
            Packet::Sealed { bytes, .. } => bytes.clone(),
        };
        assert_eq!(packet::read(written), Ok(read));
    }
    let mut items = BytesMut::from(data);
    while let Ok(Some(item)) = packet::next_item(&mut items) {
        let mut out = BytesMut::new();
        match &item {
            Item::Message(content) => packet::write_message(&mut out, |out| out.extend_from_slice(content)),
            Item::Frame(content) => packet::write_frame(&mut out, |out| out.extend_from_slice(content)),
            Item::Close { code, reason } => packet::write_close(&mut out, *code, reason),
        }
        assert_eq!(packet::next_item(&mut out), Ok(Some(item)));
        assert!(out.is_empty());
    }
}
