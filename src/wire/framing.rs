//! Bytes into lines, with a limit on how long a line may be.

use memchr::memchr;

/// The least room made for one read.
const READ_MIN: usize = 4 * 1024;

/// The most room made for one read, unless a line that is already longer needs more.
pub(crate) const READ_MAX: usize = 64 * 1024;

/// Splits a stream of bytes into lines, each ended by `\n` or `\r\n`.
///
/// A line is lent out of the buffer, not split off it: who parses it at once and copies its body on pays neither an
/// allocation nor a reference count for it, and the buffer, shared with nobody, is used again for the next read.
/// What was lent is given up when the next bytes are asked for.
///
/// It holds no more than the limit and one read. A read is as big as the connection is busy: 4 KiB at first, up to
/// 64 KiB while reads fill the buffer.
#[derive(Debug)]
pub(crate) struct Lines {
    buf: Vec<u8>,
    /// Where the next line starts: before it is what was already lent.
    start: usize,
    /// Up to where no line end is.
    scanned: usize,
    /// The longest line, in bytes, without its end.
    limit: usize,
    /// How much room to make for the next read.
    read: usize,
    /// There was a line over the limit.
    unfollowable: bool,
}

/// A line is longer than the limit. Where the next one starts is not known, so there is nothing more to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the line is longer than {limit} bytes")]
pub(crate) struct TooLong {
    /// The limit.
    pub(crate) limit: usize,
}

impl Lines {
    /// Lines of up to `limit` bytes, line end not counted. Nothing is allocated yet.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            buf: Vec::new(),
            start: 0,
            scanned: 0,
            limit,
            read: READ_MIN,
            unfollowable: false,
        }
    }

    /// The buffer, with room for one read, to append the next bytes to.
    ///
    /// Take all lines out first: what is left over is moved to the front.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        if !self.buf.is_empty() && self.buf.len() == self.buf.capacity() {
            self.read = READ_MAX.min(self.read * 2);
        }
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        let len = self.buf.len();
        if self.buf.capacity() - len < self.read / 2 {
            // A long line doubles the room, so that it is not copied once a read, but never past the limit.
            let double = len.min(self.limit.saturating_add(1).saturating_sub(len));
            self.buf.reserve_exact(self.read.max(double));
        }
        &mut self.buf
    }

    /// The next whole line, without its end. `None`: more bytes are needed.
    ///
    /// One `\r` before the `\n` belongs to the line end; any other is data. A line over the limit is an error as
    /// soon as that is known, and stays one; what was read of it is given up at once, not when its sender is gone.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        if self.unfollowable {
            return Err(TooLong { limit: self.limit });
        }
        let start = self.start;
        let Some(found) = memchr(b'\n', self.buf.get(self.scanned..).unwrap_or_default()) else {
            self.scanned = self.buf.len();
            let line = without_cr(self.pending());
            return if line.len() > self.limit {
                Err(self.too_long())
            } else {
                Ok(None)
            };
        };
        let end = self.scanned + found;
        let line = without_cr(self.buf.get(start..end).unwrap_or_default());
        if line.len() > self.limit {
            return Err(self.too_long());
        }
        self.start = end + 1;
        self.scanned = end + 1;
        // Cut out once more: to the borrow checker the one above would still be lent where it is too long.
        Ok(Some(without_cr(self.buf.get(start..end).unwrap_or_default())))
    }

    /// There is nothing more to be had.
    fn too_long(&mut self) -> TooLong {
        self.discard();
        self.unfollowable = true;
        TooLong { limit: self.limit }
    }

    /// Throws away what was read and not lent, and gives the memory back.
    pub(crate) fn discard(&mut self) {
        self.buf = Vec::new();
        self.start = 0;
        self.scanned = 0;
    }

    /// At the end of the stream, when [`next_line`](Self::next_line) has no more: the last line, which lacks its end.
    ///
    /// A `\r` at the very end is half a line end, and left out.
    pub(crate) fn take_rest(&mut self) -> Option<&[u8]> {
        let start = self.start;
        self.start = self.buf.len();
        self.scanned = self.buf.len();
        let rest = self.buf.get(start..).unwrap_or_default();
        (!rest.is_empty()).then(|| without_cr(rest))
    }

    /// What was read and is not yet part of a line that was lent.
    pub(crate) fn pending(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    /// Gives the memory back if nothing is pending: an idle connection then holds no buffer.
    ///
    /// The next read starts half as big, so that a connection that was busy once comes down step by step.
    pub(crate) fn release(&mut self) -> Option<Vec<u8>> {
        if !self.pending().is_empty() || self.is_bare() {
            return None;
        }
        self.start = 0;
        self.scanned = 0;
        self.read = READ_MIN.max(self.read / 2);
        Some(std::mem::take(&mut self.buf))
    }

    /// Whether there is no memory to read into yet, or any more.
    pub(crate) const fn is_bare(&self) -> bool {
        self.buf.capacity() == 0
    }

    /// Gives an empty buffer to read into, where there is none.
    pub(crate) fn furnish(&mut self, buffer: Vec<u8>) {
        if self.is_bare() {
            self.buf = buffer;
        }
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All lines of `bytes` cut at `cuts`, or those before one that is too long.
    fn lines(limit: usize, bytes: &[u8], cuts: &[usize]) -> (Vec<Vec<u8>>, Result<(), TooLong>) {
        let mut lines = Lines::new(limit);
        let mut got = Vec::new();
        let mut rest = bytes;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            lines.buffer().extend_from_slice(piece);
            loop {
                match lines.next_line() {
                    Ok(Some(line)) => got.push(line.to_vec()),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(lines.next_line(), Err(error), "the error stays");
                        return (got, Err(error));
                    }
                }
            }
        }
        got.extend(lines.take_rest().map(<[u8]>::to_vec));
        assert_eq!(lines.take_rest(), None);
        (got, Ok(()))
    }

    /// The same, said as plainly as possible.
    fn reference(limit: usize, bytes: &[u8]) -> (Vec<Vec<u8>>, Result<(), TooLong>) {
        let mut got = Vec::new();
        let mut parts: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
        if parts.last().is_some_and(|last| last.is_empty()) {
            parts.pop();
        }
        for part in parts {
            let line = match part {
                [line @ .., b'\r'] => line,
                line => line,
            };
            if line.len() > limit {
                return (got, Err(TooLong { limit }));
            }
            got.push(line.to_vec());
        }
        (got, Ok(()))
    }

    #[test]
    fn line_ends() {
        let (got, end) = lines(10, b"a\r\n\nb\rc\n\r\r\nlast", &[]);
        assert_eq!(got, [&b"a"[..], b"", b"b\rc", b"\r", b"last"]);
        assert_eq!(end, Ok(()));
        assert_eq!(lines(10, b"", &[]).0, [b""; 0]);
        assert_eq!(lines(10, b"half\r", &[]).0, [b"half"]);
    }

    #[test]
    fn a_line_over_the_limit_is_known_before_its_end() {
        let mut lines = Lines::new(4);
        lines.buffer().extend_from_slice(b"1234\r\n1234\r");
        assert_eq!(lines.next_line(), Ok(Some(&b"1234"[..])));
        assert_eq!(lines.next_line(), Ok(None), "the line end may follow");
        lines.buffer().push(b'\r');
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }));

        let mut lines = Lines::new(4);
        lines.buffer().extend_from_slice(b"12345");
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }));

        let mut lines = Lines::new(4);
        lines.buffer().extend_from_slice(b"12345\r\nok\n");
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }));
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }));
    }

    #[test]
    fn memory_is_given_back_only_when_nothing_is_pending() {
        let mut lines = Lines::new(100);
        assert_eq!(lines.buf.capacity(), 0);
        lines.buffer().extend_from_slice(b"one\ntw");
        assert_eq!(lines.next_line(), Ok(Some(&b"one"[..])));
        lines.release();
        assert_eq!(lines.pending(), b"tw");
        lines.buffer().extend_from_slice(b"o\n");
        assert_eq!(lines.next_line(), Ok(Some(&b"two"[..])));
        lines.release();
        assert_eq!(lines.buf.capacity(), 0);
        lines.buffer().extend_from_slice(b"three\n");
        assert_eq!(lines.next_line(), Ok(Some(&b"three"[..])));
    }

    /// Reads as a socket does, as much as there is room for: what is held stays within the limit and one read.
    #[test]
    fn memory_is_bounded() {
        for (limit, length) in [
            (200, 200),
            (100_000, 100_000),
            (1 << 20, 1 << 20),
            (1 << 20, 70_000),
            (10, 0),
        ] {
            let mut stream = Vec::new();
            while stream.len() < 4 << 20 {
                stream.resize(stream.len() + length, b'x');
                stream.extend_from_slice(b"\r\n");
            }
            let (mut lines, mut rest, mut count) = (Lines::new(limit), &stream[..], 0);
            while !rest.is_empty() {
                let buffer = lines.buffer();
                let room = buffer.capacity() - buffer.len();
                assert!(
                    room >= READ_MIN / 2 && buffer.capacity() <= limit + 1 + READ_MAX,
                    "{limit} {room}"
                );
                let (piece, after) = rest.split_at(room.min(rest.len()));
                buffer.extend_from_slice(piece);
                rest = after;
                while let Some(line) = lines.next_line().unwrap() {
                    assert_eq!(line.len(), length);
                    count += 1;
                }
            }
            assert_eq!(count * (length + 2), stream.len());
        }
    }

    proptest! {
        #[test]
        fn a_line_without_end_is_refused_within_the_limit_and_one_read(limit in 0usize..200_000, reads in any::<u64>()) {
            let mut lines = Lines::new(limit);
            for read in 0.. {
                let buffer = lines.buffer();
                prop_assert!(buffer.capacity() <= limit + 1 + READ_MAX);
                // Some reads fill the room there is, others bring little.
                let room = buffer.capacity() - buffer.len();
                let brought = if reads >> (read % 64) & 1 == 0 { room } else { room.min(1000) };
                buffer.resize(buffer.len() + brought, b'x');
                let length = buffer.len();
                match lines.next_line() {
                    Ok(None) => prop_assert!(length <= limit),
                    end => {
                        prop_assert_eq!(end, Err(TooLong { limit }));
                        prop_assert!(length > limit);
                        prop_assert!(lines.is_bare(), "what can't be followed is not kept");
                        break;
                    }
                }
            }
        }

        #[test]
        fn how_it_is_cut_does_not_matter(
            limit in 0usize..8,
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'x'), Just(b'y')], 0..40),
            cuts in proptest::collection::vec(0usize..6, 0..20),
        ) {
            let expected = reference(limit, &bytes);
            for cuts in [&[][..], &cuts, &vec![1; bytes.len()]] {
                prop_assert_eq!(&lines(limit, &bytes, cuts), &expected);
            }
        }

        #[test]
        fn long_lines_come_through_whatever_the_pieces(
            lengths in proptest::collection::vec(0usize..20_000, 0..6),
            cuts in proptest::collection::vec(0usize..9_000, 0..12),
        ) {
            let mut bytes = Vec::new();
            for (index, length) in lengths.iter().enumerate() {
                bytes.resize(bytes.len() + length, b'a' + u8::try_from(index).unwrap());
                bytes.push(b'\n');
            }
            prop_assert_eq!(lines(15_000, &bytes, &cuts), reference(15_000, &bytes));
        }
    }
}
