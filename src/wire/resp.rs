//! What is said to Redis and what it answers: RESP 2, which every Redis and Valkey speaks.
//!
//! A command is an array of strings. An answer is a [`Value`]. What may be kept of an answer is bounded, whatever is at
//! the other end, and a string that is too long is passed over without being kept.

use bytes::{Buf, BufMut, BytesMut};
use memchr::memchr;

/// The most bytes of an answer that is not whole yet, beside one longest string. The list of the slots of a cluster is
/// the longest that is asked for: of one whose 16,384 slots all lie apart, with two replicas each, about 5 MB.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// The most values in an answer, for the same list.
const MAX_VALUES: usize = 512 * 1024;

/// The longest line: errors and statuses.
const MAX_LINE: usize = 64 * 1024;

/// How deep arrays may lie in each other; those that are asked for go three deep, four with what later versions add.
const MAX_DEPTH: usize = 8;

/// Stands for a string that was too long where answers are read from; no answer begins so in RESP 2.
const OMITTED: &[u8] = b"!\r\n";

/// An answer, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// A short text: `OK`.
    Status(BytesMut),
    /// A refusal: a code in capitals, then a text.
    Error(BytesMut),
    /// A number.
    Integer(i64),
    /// Bytes. They are nobody else's, and can be changed in place.
    Bytes(BytesMut),
    /// Nothing, where bytes or an array could be.
    Null,
    /// Several.
    Array(Vec<Self>),
    /// Bytes that were longer than they may be.
    TooLong,
}

impl Value {
    /// The bytes or the short text that this is.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(text) | Self::Status(text) => Some(text),
            Self::Error(_) | Self::Integer(_) | Self::Null | Self::Array(_) | Self::TooLong => None,
        }
    }
}

/// What came is not RESP 2, or more than is ever asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what it says is not the protocol of Redis")]
pub(crate) struct NotResp;

/// Reads answers out of a buffer.
#[derive(Debug)]
pub(crate) struct Answers {
    max_string: usize,
    /// So many bytes behind the first `kept` ones of the buffer are to be dropped as they come: the rest of a string
    /// that is too long.
    omit: usize,
    kept: usize,
}

/// How far the first value in a buffer goes.
enum Extent {
    /// Up to here.
    Whole(usize),
    /// Further than the buffer.
    Beyond,
    /// There is a string in it that is too long: its line begins and ends here, and it has so many bytes.
    Long(usize, usize, usize),
}

impl Answers {
    /// A reader that passes over strings of more bytes than this.
    pub(crate) fn new(max_string: usize) -> Self {
        Self {
            max_string,
            omit: 0,
            kept: 0,
        }
    }

    /// Takes the next whole answer off the front of the buffer; `None`: more is needed. The buffer is to be appended to
    /// only, and to be read until `None` before that.
    ///
    /// # Errors
    ///
    /// When it is not RESP 2. The connection is of no more use then.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Value>, NotResp> {
        loop {
            if self.omit > 0 {
                let mut behind = buffer.split_off(self.kept.min(buffer.len()));
                let omitted = self.omit.min(behind.len());
                behind.advance(omitted);
                self.omit -= omitted;
                buffer.unsplit(behind);
                if self.omit > 0 {
                    return Ok(None);
                }
            }
            match self.extent(buffer, 0, 0, &mut 0)? {
                Extent::Whole(end) => {
                    let mut answer = buffer.split_to(end);
                    return Ok(Some(take(&mut answer)?));
                }
                Extent::Beyond if buffer.len() > MAX_ANSWER + self.max_string => return Err(NotResp),
                Extent::Beyond => return Ok(None),
                Extent::Long(line, end, length) => {
                    let behind = buffer.split_off(end);
                    buffer.truncate(line);
                    buffer.put_slice(OMITTED);
                    self.kept = buffer.len();
                    self.omit = length.checked_add(2).ok_or(NotResp)?;
                    buffer.unsplit(behind);
                }
            }
        }
    }

    fn extent(&self, buffer: &[u8], at: usize, depth: usize, values: &mut usize) -> Result<Extent, NotResp> {
        *values += 1;
        if depth > MAX_DEPTH || *values > MAX_VALUES {
            return Err(NotResp);
        }
        let Some(rest) = buffer.get(at..).filter(|rest| !rest.is_empty()) else {
            return Ok(Extent::Beyond);
        };
        let Some((kind, text, length)) = line(rest)? else {
            return Ok(Extent::Beyond);
        };
        let end = at + length;
        match kind {
            b'$' => {
                let Some(length) = size(text)? else {
                    return Ok(Extent::Whole(end));
                };
                if length > self.max_string {
                    return Ok(Extent::Long(at, end, length));
                }
                Ok(match buffer.get(end + length..end + length + 2) {
                    Some(b"\r\n") => Extent::Whole(end + length + 2),
                    Some(_) => return Err(NotResp),
                    None => Extent::Beyond,
                })
            }
            b'*' => {
                let mut end = end;
                for _ in 0..size(text)?.unwrap_or(0) {
                    match self.extent(buffer, end, depth + 1, values)? {
                        Extent::Whole(next) => end = next,
                        other @ (Extent::Beyond | Extent::Long(..)) => return Ok(other),
                    }
                }
                Ok(Extent::Whole(end))
            }
            b':' => number(text).map(|_| Extent::Whole(end)),
            b'+' | b'-' | b'!' => Ok(Extent::Whole(end)),
            _ => Err(NotResp),
        }
    }
}

/// A line: its first byte, the others, and its length with its end.
type Line<'a> = (u8, &'a [u8], usize);

/// The line that bytes begin with; `None`: more is needed.
fn line(bytes: &[u8]) -> Result<Option<Line<'_>>, NotResp> {
    let window = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let Some(end) = memchr(b'\r', window) else {
        // What is no line at all is not waited for.
        let is_known = bytes.first().is_some_and(|kind| b"$*:+-!".contains(kind));
        return if is_known && window.len() < MAX_LINE {
            Ok(None)
        } else {
            Err(NotResp)
        };
    };
    let (Some((&kind, text)), after) = (window.get(..end).and_then(<[u8]>::split_first), bytes.get(end + 1)) else {
        return Err(NotResp);
    };
    match after {
        Some(b'\n') => Ok(Some((kind, text, end + 2))),
        Some(_) => Err(NotResp),
        None => Ok(None),
    }
}

fn number(text: &[u8]) -> Result<i64, NotResp> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(NotResp)
}

/// A length; `None`: there is nothing.
fn size(text: &[u8]) -> Result<Option<usize>, NotResp> {
    match number(text)? {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| NotResp),
    }
}

/// Takes a value that is whole.
fn take(answer: &mut BytesMut) -> Result<Value, NotResp> {
    let (kind, text, length) = line(answer)?.ok_or(NotResp)?;
    let value = match kind {
        b'$' | b'*' => {
            let size = size(text)?;
            answer.advance(length);
            let Some(size) = size else {
                return Ok(Value::Null);
            };
            return if kind == b'*' {
                (0..size)
                    .map(|_| take(answer))
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            } else {
                let bytes = answer.split_to(size);
                answer.advance(2);
                Ok(Value::Bytes(bytes))
            };
        }
        b':' => Value::Integer(number(text)?),
        b'!' => Value::TooLong,
        b'+' | b'-' => {
            let mut text = answer.split_to(length);
            text.advance(1);
            text.truncate(length - 3);
            return Ok(if kind == b'+' {
                Value::Status(text)
            } else {
                Value::Error(text)
            });
        }
        _ => return Err(NotResp),
    };
    answer.advance(length);
    Ok(value)
}

/// Appends a command.
pub(crate) fn write_command(buffer: &mut BytesMut, parts: &[&[u8]]) {
    // A length has at most 20 digits.
    buffer.reserve(parts.iter().map(|part| part.len() + 25).sum::<usize>() + 25);
    write_length(buffer, b'*', parts.len());
    for part in parts {
        write_length(buffer, b'$', part.len());
        buffer.put_slice(part);
        buffer.put_slice(b"\r\n");
    }
}

fn write_length(buffer: &mut BytesMut, kind: u8, mut length: usize) {
    let mut digits = [0; 20];
    let mut written = 0;
    for digit in digits.iter_mut().rev() {
        // Less than 10.
        *digit = b'0' + (length % 10) as u8;
        length /= 10;
        written += 1;
        if length == 0 {
            break;
        }
    }
    buffer.put_u8(kind);
    buffer.put_slice(digits.get(20 - written..).unwrap_or_default());
    buffer.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(max_string: usize, bytes: &[u8], piece: usize) -> Result<Vec<Value>, NotResp> {
        let mut answers = Answers::new(max_string);
        let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            buffer.extend_from_slice(piece);
            while let Some(answer) = answers.next(&mut buffer)? {
                got.push(answer);
            }
        }
        assert!(buffer.is_empty(), "{buffer:?} is left");
        Ok(got)
    }

    fn bytes(text: &str) -> Value {
        Value::Bytes(text.into())
    }

    #[test]
    fn answers_are_read_whatever_pieces_they_come_in() {
        let wire =
            b"+OK\r\n-ERR no\r\n:-7\r\n$5\r\na\r\nb!\r\n$0\r\n\r\n$-1\r\n*-1\r\n*0\r\n*2\r\n*1\r\n:1\r\n$1\r\nx\r\n";
        let expected = [
            Value::Status("OK".into()),
            Value::Error("ERR no".into()),
            Value::Integer(-7),
            bytes("a\r\nb!"),
            bytes(""),
            Value::Null,
            Value::Null,
            Value::Array(vec![]),
            Value::Array(vec![Value::Array(vec![Value::Integer(1)]), bytes("x")]),
        ];
        for piece in 1..wire.len() {
            assert_eq!(all(100, wire, piece).unwrap(), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn a_string_that_is_too_long_is_passed_over_and_what_follows_is_read() {
        let wire =
            b"*3\r\n$7\r\nmessage\r\n$9\r\n123456789\r\n$8\r\n12345678\r\n+OK\r\n$3\r\nabc\r\n$10\r\n0123456789\r\n";
        let expected = [
            Value::Array(vec![bytes("message"), Value::TooLong, bytes("12345678")]),
            Value::Status("OK".into()),
            bytes("abc"),
            Value::TooLong,
        ];
        for piece in 1..wire.len() {
            assert_eq!(all(8, wire, piece).unwrap(), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn little_is_kept_of_a_string_that_is_too_long() {
        let mut answers = Answers::new(1000);
        let mut buffer = BytesMut::from(&b"$1000000000\r\n"[..]);
        for _ in 0..100_000 {
            buffer.extend_from_slice(&[7; 1000]);
            assert_eq!(answers.next(&mut buffer), Ok(None));
            assert!(buffer.len() < 10);
        }
    }

    #[test]
    fn what_is_not_resp_is_an_error_at_once() {
        for wire in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"x",
            b"\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"*-2\r\n",
            b":\r\n",
            b":1x\r\n",
            b"+OK\rx",
            b"$1\r\nabc",
            b"$99999999999999999999\r\n",
            b"%1\r\n",
            &b"*1\r\n".repeat(20),
            &[b'+'; MAX_LINE + 1],
        ] {
            let mut buffer = BytesMut::from(wire);
            assert_eq!(
                Answers::new(100).next(&mut buffer),
                Err(NotResp),
                "{:?}",
                buffer.escape_ascii()
            );
        }
    }

    #[test]
    fn an_answer_of_many_values_is_refused() {
        let mut buffer = BytesMut::from(&b"*999999999\r\n"[..]);
        buffer.extend_from_slice(&b":1\r\n".repeat(MAX_VALUES + 1));
        assert_eq!(Answers::new(100).next(&mut buffer), Err(NotResp));
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut buffer = BytesMut::new();
        write_command(&mut buffer, &[b"PUBLISH", b"a:b", b"", &[b'x'; 123]]);
        let mut expected = b"*4\r\n$7\r\nPUBLISH\r\n$3\r\na:b\r\n$0\r\n\r\n$123\r\n".to_vec();
        expected.extend_from_slice(&[b'x'; 123]);
        expected.extend_from_slice(b"\r\n");
        assert_eq!(&buffer[..], expected);
    }
}
