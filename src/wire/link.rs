//! What two nodes write to each other: one message a stream, and frames on the control stream.
//!
//! `docs/protocol.md` draws the bytes. Numbers are QUIC varints. A control frame is a kind, the length of what follows,
//! and that; kinds from [`IGNORABLE`] on are skipped by a node that does not know them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::varint;
use crate::address::ClientId;
use crate::delivery::{Bounds, Confirm, Control, Failure, RangeSet, Report};
use crate::outcome::{Code, Outcome};

/// The version of the link protocol that this node speaks.
pub(crate) const VERSION: u64 = 1;

/// The longest control frame, in bytes. The longest that is ever sent is a `Sync` with a range for every message that
/// a peer may keep under way.
pub(crate) const MAX_FRAME: usize = 8 << 20;

/// The most a message's stream holds beside its body, in bytes.
pub(crate) const MAX_HEADER: usize = 8 + 8 + 2 * (1 + crate::address::MAX_CLIENT_ID);

/// The largest number of a message: it and the one that follows it can be written.
pub(crate) const MAX_NUMBER: u64 = varint::MAX - 1;

/// Frames of this kind and above may be skipped.
const IGNORABLE: u64 = 64;

const HELLO: u64 = 1;
const ADOPT: u64 = 2;
const SYNC: u64 = 3;
const REPORT: u64 = 4;
const CONFIRM: u64 = 5;
const PING: u64 = 6;
const PONG: u64 = 7;
const GOODBYE: u64 = 8;

/// What a node says first on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The version of the link protocol it speaks.
    pub(crate) version: u64,
    /// Drawn at the node's start: another number means another process, with no memory of the earlier one's.
    pub(crate) epoch: u64,
    /// The generation of the connection it holds for alive; 0 for none.
    pub(crate) live: u64,
    /// What it is ready to keep for the other side.
    pub(crate) bounds: Bounds,
    /// The longest body that it takes, in bytes.
    pub(crate) max_message: usize,
}

/// A frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The first frame, from both sides.
    Hello(Hello),
    /// From the node with the smaller name: this connection is the link now, under this generation.
    Adopt(u64),
    /// A frame of the delivery machine.
    Control(Control),
    /// Asks for a `Pong` with the same number.
    Ping(u64),
    /// Answers a `Ping`.
    Pong(u64),
    /// Nothing follows: the node shuts down, and the other side may close.
    Goodbye,
}

/// One message as its stream holds it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parcel<P> {
    pub(crate) number: u64,
    pub(crate) after: u64,
    /// Its sender waits for its end.
    pub(crate) prompt: bool,
    /// What was made of the ids of its sender and its recipient.
    pub(crate) between: P,
    pub(crate) body: Bytes,
}

/// What is wrong with bytes from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a frame of unknown kind")]
    UnknownFrame,
    #[error("a frame over the limit")]
    LongFrame,
    #[error("a frame whose content does not fit its kind")]
    BadFrame,
    #[error("a message without a whole header")]
    BadHeader,
}

/// Set in the length of the sender's id if the sender waits for the message's end. An id is shorter.
const PROMPT: u8 = 0x80;

/// Appends a message's header; the body follows it to the stream's end.
pub(crate) fn write_header(out: &mut BytesMut, number: u64, after: u64, prompt: bool, from: &ClientId, to: &ClientId) {
    varint::write(out, number);
    // The distance is short where the number is long.
    varint::write(out, if after == 0 { 0 } else { number - after });
    for (id, mark) in [(from, if prompt { PROMPT } else { 0 }), (to, 0)] {
        let id = id.as_str().as_bytes();
        out.put_u8(id.len() as u8 | mark);
        out.put_slice(id);
    }
}

/// Reads a stream that has ended. The body is a slice of it. `between` makes something of the ids of its sender and its
/// recipient as they are written, see [`read_id`].
pub(crate) fn read_message<P>(
    mut stream: Bytes,
    between: impl FnOnce(&[u8], &[u8]) -> Result<P, Malformed>,
) -> Result<Parcel<P>, Malformed> {
    let mut rest: &[u8] = &stream;
    let number = varint::read(&mut rest)
        .filter(|&number| number <= MAX_NUMBER)
        .ok_or(Malformed::BadHeader)?;
    let distance = varint::read(&mut rest).ok_or(Malformed::BadHeader)?;
    let after = match distance {
        0 => 0,
        _ => number
            .checked_sub(distance)
            .filter(|&after| after > 0)
            .ok_or(Malformed::BadHeader)?,
    };
    let (from, prompt) = split_id(&mut rest)?;
    let (to, marked) = split_id(&mut rest)?;
    if marked {
        return Err(Malformed::BadHeader);
    }
    let between = between(from, to)?;
    let header = stream.len() - rest.len();
    stream.advance(header);
    Ok(Parcel {
        number,
        after,
        prompt,
        between,
        body: stream,
    })
}

/// Takes off an id as it is written, and the mark on its length.
fn split_id<'a>(from: &mut &'a [u8]) -> Result<(&'a [u8], bool), Malformed> {
    let length = from.try_get_u8().map_err(|_| Malformed::BadHeader)?;
    let (id, rest) = from
        .split_at_checked(usize::from(length & !PROMPT))
        .ok_or(Malformed::BadHeader)?;
    *from = rest;
    Ok((id, length & PROMPT != 0))
}

/// The id that is written so.
pub(crate) fn read_id(id: &[u8]) -> Result<ClientId, Malformed> {
    let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
    id.ok_or(Malformed::BadHeader)
}

/// Appends a control frame.
pub(crate) fn write_frame(out: &mut BytesMut, frame: &Frame) {
    let mut content = BytesMut::new();
    let kind = match frame {
        Frame::Hello(hello) => {
            varint::write(&mut content, hello.version);
            content.put_u64(hello.epoch);
            varint::write(&mut content, hello.live);
            varint::write(&mut content, hello.bounds.messages as u64);
            varint::write(&mut content, hello.bounds.bytes as u64);
            varint::write(&mut content, hello.max_message as u64);
            HELLO
        }
        Frame::Adopt(generation) => {
            varint::write(&mut content, *generation);
            ADOPT
        }
        Frame::Control(Control::Sync(taken)) => {
            varint::write(&mut content, taken.below());
            let mut end = taken.below();
            for (first, last) in taken.ranges() {
                varint::write(&mut content, first - end);
                varint::write(&mut content, last - first);
                end = last;
            }
            SYNC
        }
        Frame::Control(Control::Report(report)) => {
            varint::write(&mut content, report.delivered.len() as u64);
            for &(first, last) in &report.delivered {
                varint::write(&mut content, first);
                varint::write(&mut content, last - first);
            }
            for failure in &report.failed {
                let (certain, code) = match failure.outcome {
                    Outcome::Refused(code) => (1, code.number()),
                    Outcome::Unknown(code) => (0, code.number()),
                    // Never written: a failure is no delivery.
                    Outcome::Delivered => continue,
                };
                varint::write(&mut content, failure.number);
                content.put_u8(certain);
                content.put_u8(code);
            }
            REPORT
        }
        Frame::Control(Control::Confirm(confirm)) => {
            varint::write(&mut content, confirm.below);
            varint::write(&mut content, confirm.reports);
            CONFIRM
        }
        Frame::Ping(number) => {
            varint::write(&mut content, *number);
            PING
        }
        Frame::Pong(number) => {
            varint::write(&mut content, *number);
            PONG
        }
        Frame::Goodbye => GOODBYE,
    };
    varint::write(out, kind);
    varint::write(out, content.len() as u64);
    out.put_slice(&content);
}

/// Takes a frame off the front; `None` while it is not all there. Frames that may be skipped are.
pub(crate) fn read_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    loop {
        let mut rest = &buffer[..];
        let (Some(kind), Some(length)) = (varint::read(&mut rest), varint::read(&mut rest)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| Malformed::LongFrame)?;
        if length > MAX_FRAME {
            return Err(Malformed::LongFrame);
        }
        if rest.len() < length {
            return Ok(None);
        }
        buffer.advance(buffer.len() - rest.len());
        let mut content = buffer.split_to(length).freeze();
        if let Some(frame) = read_content(kind, &mut content)? {
            // A later version may say more in the frames of this one.
            return Ok(Some(frame));
        }
    }
}

fn read_content(kind: u64, content: &mut Bytes) -> Result<Option<Frame>, Malformed> {
    let number = |content: &mut Bytes| varint::read(content).ok_or(Malformed::BadFrame);
    let further = |content: &mut Bytes, from: u64| {
        let sum = from.checked_add(number(content)?).filter(|&sum| sum <= MAX_NUMBER);
        sum.ok_or(Malformed::BadFrame)
    };
    let size = |content: &mut Bytes| usize::try_from(number(content)?).map_err(|_| Malformed::BadFrame);
    // With a bound of 0 nothing could ever pass, and those who have something to send would wait for ever.
    let bound = |content: &mut Bytes| {
        size(content).and_then(|size| if size == 0 { Err(Malformed::BadFrame) } else { Ok(size) })
    };
    Ok(Some(match kind {
        HELLO => Frame::Hello(Hello {
            version: number(content)?,
            epoch: content.try_get_u64().map_err(|_| Malformed::BadFrame)?,
            live: number(content)?,
            bounds: Bounds {
                messages: bound(content)?,
                bytes: bound(content)?,
            },
            max_message: size(content)?,
        }),
        ADOPT => Frame::Adopt(number(content)?),
        SYNC => {
            let below = number(content)?;
            let mut end = below;
            let mut ranges = Vec::new();
            while content.has_remaining() {
                let first = further(content, end)?;
                let last = further(content, first)?;
                ranges.push((first, last));
                end = last;
            }
            Frame::Control(Control::Sync(RangeSet::from_parts(below, ranges)))
        }
        REPORT => {
            let mut report = Report::default();
            for _ in 0..number(content)? {
                let first = number(content)?;
                let last = further(content, first)?;
                report.delivered.push((first, last));
            }
            while content.has_remaining() {
                let number = number(content)?;
                let certain = content.try_get_u8().map_err(|_| Malformed::BadFrame)?;
                let code = content.try_get_u8().map_err(|_| Malformed::BadFrame)?;
                // A code of a later version: what it means is lost, that the message failed is not.
                let code = Code::from_number(code).unwrap_or(Code::ProtocolError);
                let outcome = match certain {
                    1 => Outcome::Refused(code),
                    _ => Outcome::Unknown(code),
                };
                report.failed.push(Failure { number, outcome });
            }
            Frame::Control(Control::Report(report))
        }
        CONFIRM => Frame::Control(Control::Confirm(Confirm {
            below: number(content)?,
            reports: number(content)?,
        })),
        PING => Frame::Ping(number(content)?),
        PONG => Frame::Pong(number(content)?),
        GOODBYE => Frame::Goodbye,
        IGNORABLE.. => return Ok(None),
        _ => return Err(Malformed::UnknownFrame),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::any::{confirm, number, report, taken};
    use proptest::prelude::*;

    fn golden() -> Vec<(Frame, &'static str)> {
        let hello = Hello {
            version: 1,
            epoch: 0x0102_0304_0506_0708,
            live: 3,
            bounds: Bounds {
                messages: 64,
                bytes: 1 << 20,
            },
            max_message: 1 << 16,
        };
        let report = Report {
            delivered: vec![(1, 17), (20, 20)],
            failed: vec![
                Failure {
                    number: 18,
                    outcome: Outcome::Refused(Code::NoSuchClient),
                },
                Failure {
                    number: 19,
                    outcome: Outcome::Unknown(Code::RecipientGone),
                },
            ],
        };
        vec![
            (Frame::Hello(hello), "0114010102030405060708034040 80100000 80010000"),
            (Frame::Adopt(4), "020104"),
            (Frame::Control(Control::Sync(RangeSet::new())), "030101"),
            (
                Frame::Control(Control::Sync(RangeSet::from_parts(7, [(9, 9), (12, 20)]))),
                "0305 07 0200 0308",
            ),
            (
                Frame::Control(Control::Report(report)),
                "040b 02 0110 1400 120106 130009",
            ),
            (
                Frame::Control(Control::Confirm(Confirm { below: 300, reports: 2 })),
                "0503 412c 02",
            ),
            (Frame::Ping(5), "060105"),
            (Frame::Pong(5), "070105"),
            (Frame::Goodbye, "0800"),
        ]
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn frames_are_these_bytes() {
        for (frame, bytes) in golden() {
            let mut out = BytesMut::new();
            write_frame(&mut out, &frame);
            assert_eq!(out, hex(bytes), "{frame:?}: {out:02x?}");
            assert_eq!(read_frame(&mut out), Ok(Some(frame)));
            assert!(out.is_empty());
        }
    }

    fn read_ids(from: &[u8], to: &[u8]) -> Result<(ClientId, ClientId), Malformed> {
        Ok((read_id(from)?, read_id(to)?))
    }

    #[test]
    fn a_message_is_these_bytes() {
        let (from, to) = ("123456".parse().unwrap(), "bob".parse().unwrap());
        for (prompt, bytes) in [
            (false, "412c 02 06 313233343536 03 626f62"),
            (true, "412c 02 86 313233343536 03 626f62"),
        ] {
            let mut out = BytesMut::new();
            write_header(&mut out, 300, 298, prompt, &from, &to);
            assert_eq!(out, hex(bytes));
            out.put_slice(b"hello");
            let message = read_message(out.freeze(), read_ids).unwrap();
            assert_eq!((message.number, message.after, message.prompt), (300, 298, prompt));
            assert_eq!(message.between, (from.clone(), to.clone()));
            assert_eq!(&message.body[..], b"hello");
        }
        let marked = hex("412c 02 06 313233343536 83 626f62");
        assert_eq!(read_message(marked.into(), read_ids), Err(Malformed::BadHeader));
    }

    #[test]
    fn frames_come_in_any_pieces_and_unknown_ones_above_the_line_are_skipped() {
        let mut all = BytesMut::new();
        for (frame, _) in golden() {
            write_frame(&mut all, &frame);
            all.put_slice(&hex("4040 02 ffff"));
        }
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in all {
            buffer.put_u8(byte);
            frames.extend(read_frame(&mut buffer).unwrap());
        }
        assert!(frames.iter().eq(golden().iter().map(|(frame, _)| frame)));
        assert_eq!(
            read_frame(&mut BytesMut::from(&hex("3f00")[..])),
            Err(Malformed::UnknownFrame)
        );
        assert_eq!(
            read_frame(&mut BytesMut::from(&hex("01 bfffffff")[..])),
            Err(Malformed::LongFrame)
        );
    }

    #[test]
    fn numbers_that_could_not_be_written_again_are_malformed() {
        for frame in [
            "0312 ffffffffffffffff 00 ffffffffffffffff 00",
            "0312 01 fffffffffffffffe 01 00",
            "0409 01 fffffffffffffffe 01",
        ] {
            let mut frame = BytesMut::from(&hex(frame)[..]);
            frame[1] = frame.len() as u8 - 2;
            assert_eq!(read_frame(&mut frame), Err(Malformed::BadFrame));
        }
        let message = |number| [&hex(number)[..], &hex("00 01 61 01 62")].concat();
        assert!(read_message(message("fffffffffffffffe").into(), read_ids).is_ok());
        assert_eq!(
            read_message(message("ffffffffffffffff").into(), read_ids),
            Err(Malformed::BadHeader)
        );
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        // What a peer keeps is more than nothing, and fits a varint.
        let bound = || number(varint::MAX).prop_map(|bound| bound.max(1) as usize);
        let largest = number(varint::MAX).prop_map(|largest| largest as usize);
        let hello = (
            number(varint::MAX),
            any::<u64>(),
            number(varint::MAX),
            bound(),
            bound(),
            largest,
        );
        prop_oneof![
            hello.prop_map(|(version, epoch, live, messages, bytes, max_message)| {
                let bounds = Bounds { messages, bytes };
                Frame::Hello(Hello {
                    version,
                    epoch,
                    live,
                    bounds,
                    max_message,
                })
            }),
            number(varint::MAX).prop_map(Frame::Adopt),
            taken(MAX_NUMBER).prop_map(|taken| Frame::Control(Control::Sync(taken))),
            report(MAX_NUMBER).prop_map(|report| Frame::Control(Control::Report(report))),
            confirm(varint::MAX).prop_map(|confirm| Frame::Control(Control::Confirm(confirm))),
            number(varint::MAX).prop_map(Frame::Ping),
            number(varint::MAX).prop_map(Frame::Pong),
            Just(Frame::Goodbye),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written(frames in proptest::collection::vec(any_frame(), 0..4)) {
            let mut out = BytesMut::new();
            for frame in &frames {
                write_frame(&mut out, frame);
            }
            for frame in frames {
                prop_assert_eq!(read_frame(&mut out), Ok(Some(frame)));
            }
            prop_assert!(out.is_empty());
        }

        #[test]
        fn messages_are_read_as_they_were_written(
            number in number(MAX_NUMBER),
            before in number(MAX_NUMBER),
            prompt: bool,
            from in "[A-Za-z0-9._-]{1,64}",
            to in "[A-Za-z0-9._-]{1,64}",
            body: Vec<u8>,
        ) {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let after = if before < number { before } else { 0 };
            let mut out = BytesMut::new();
            write_header(&mut out, number, after, prompt, &from, &to);
            prop_assert!(out.len() <= MAX_HEADER);
            out.put_slice(&body);
            let body = body.into();
            let parcel = Parcel { number, after, prompt, between: (from, to), body };
            prop_assert_eq!(read_message(out.freeze(), read_ids), Ok(parcel));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), at in 0usize..20, value: u8) {
            let _ = read_message(Bytes::from(bytes.clone()), read_ids);
            let _ = read_frame(&mut BytesMut::from(&bytes[..]));
            for (frame, _) in golden() {
                let mut out = BytesMut::new();
                write_frame(&mut out, &frame);
                if let Some(byte) = out.get_mut(at) {
                    *byte = value;
                }
                let _ = read_frame(&mut out);
            }
        }
    }
}
