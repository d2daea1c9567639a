//! Reads messages out of the streams of a connection.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use tokio::time::{Sleep, sleep_until};

use super::codec::{Arrived, Codec, Malformed};
use super::ended::{Ended, close};
use crate::delivery::Violation;
use crate::pace::Pace;
use crate::transport::{Connection, Piece, StreamId, Want};

/// The first bytes of a stream do not count against what may be under way: a header is no message.
const UNCOUNTED: usize = 1024;

/// How many messages, and how many bytes, are read before they are passed on.
const RUN_MESSAGES: usize = 64;
const RUN_BYTES: usize = 64 * 1024;

/// Reads messages.
pub(super) struct Reader<'a, C> {
    connection: &'a Connection,
    codec: &'a C,
    streams: Streams,
    pace: Option<Pace>,
    /// Set to when the first of the streams should have ended, or earlier.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What was read of streams.
#[derive(Default)]
struct Streams {
    /// The most bytes of a stream.
    max_stream: usize,
    /// The most bytes of all streams that have not ended.
    most: usize,
    /// Those of which the rest is not there yet.
    parts: HashMap<StreamId, Part, RandomState>,
    /// The first piece of a stream that is being read, if it is the only one yet: most streams are that, and their end.
    first: Bytes,
    /// What counts of all `parts`, in bytes.
    open: usize,
    /// What was read of all streams that there were, in bytes.
    ever: usize,
    /// What has come whole, or went over the limit, and was not passed on.
    arrived: VecDeque<(Bytes, bool)>,
    /// What was read since something was asked for, in bytes.
    run_bytes: usize,
    /// What is wrong with what comes behind that.
    broken: Option<Ended>,
}

/// A stream of which the rest is not there yet.
struct Part {
    pieces: BytesMut,
    /// What of it counts.
    counted: usize,
    /// When it was first found that not all is there, and what was read of all streams by then.
    begun: (Instant, usize),
}

impl Streams {
    fn visit(&mut self, id: StreamId, piece: Piece) -> Want {
        match piece {
            Piece::Data(piece) => self.add(id, piece),
            Piece::End => {
                let stream = self.end(id);
                self.arrive(stream, true)
            }
            Piece::Pause => {
                self.keep(id);
                self.want()
            }
            Piece::Reset => {
                self.end(id);
                self.broken = Some(Malformed::new("the stream of a message was reset").into());
                Want::Enough
            }
        }
    }

    /// One more piece has come.
    fn add(&mut self, id: StreamId, piece: Bytes) -> Want {
        self.ever = self.ever.wrapping_add(piece.len());
        self.run_bytes = self.run_bytes.saturating_add(piece.len());
        let want = self.want();
        let is_known = !self.parts.is_empty() && self.parts.contains_key(&id);
        if !is_known && self.first.is_empty() {
            self.first = piece;
            if self.first.len() > self.max_stream {
                let beginning = std::mem::take(&mut self.first);
                return self.over(beginning);
            }
            if want != Want::More {
                self.keep(id);
            }
            return want;
        }
        self.keep(id);
        let Some(part) = self.parts.get_mut(&id) else {
            return Want::More;
        };
        part.pieces.extend_from_slice(&piece);
        let length = part.pieces.len();
        self.count(id);
        if self.broken.is_some() {
            return Want::Enough;
        }
        if length <= self.max_stream {
            return want;
        }
        let beginning = self.end(id);
        self.over(beginning)
    }

    /// A stream has more than one piece, or its rest is for later.
    fn keep(&mut self, id: StreamId) {
        if self.parts.contains_key(&id) {
            return;
        }
        let part = Part {
            pieces: BytesMut::from(std::mem::take(&mut self.first)),
            counted: 0,
            begun: (Instant::now(), self.ever),
        };
        self.parts.insert(id, part);
        self.count(id);
    }

    /// Counts what there is of a stream.
    fn count(&mut self, id: StreamId) {
        if let Some(part) = self.parts.get_mut(&id) {
            let counted = part.pieces.len().saturating_sub(UNCOUNTED);
            self.open += counted - part.counted;
            part.counted = counted;
            if self.open > self.most {
                self.broken = Some(Violation::OverBounds.into());
            }
        }
    }

    /// What there is of a stream, of which there will be no more.
    fn end(&mut self, id: StreamId) -> Bytes {
        let part = if self.parts.is_empty() {
            None
        } else {
            self.parts.remove(&id)
        };
        match part {
            None => std::mem::take(&mut self.first),
            Some(part) => {
                self.open -= part.counted;
                part.pieces.freeze()
            }
        }
    }

    /// It went over the limit.
    fn over(&mut self, beginning: Bytes) -> Want {
        self.arrive(beginning, false);
        Want::Stop(close::DONE)
    }

    fn arrive(&mut self, stream: Bytes, whole: bool) -> Want {
        self.arrived.push_back((stream, whole));
        self.want()
    }

    fn want(&self) -> Want {
        if self.arrived.len() < RUN_MESSAGES && self.run_bytes < RUN_BYTES && self.broken.is_none() {
            Want::More
        } else {
            Want::Enough
        }
    }

    /// When the first of the streams should have ended.
    ///
    /// What is asked of the client is asked of all its streams together, as they share its connection: bytes of others give
    /// one time too, but no more than all that there may be under way at once would.
    fn due(&self, pace: Pace) -> Option<Instant> {
        let due = |part: &Part| {
            let (begun, before) = part.begun;
            begun + pace.allows(self.ever.wrapping_sub(before).min(self.most))
        };
        self.parts.values().map(due).min()
    }
}

impl<'a, C: Codec> Reader<'a, C> {
    /// To read streams of at most `max_stream` bytes, where those that have not ended may have `most` together.
    pub(super) fn new(
        connection: &'a Connection,
        codec: &'a C,
        max_stream: usize,
        most: usize,
        pace: Option<Pace>,
    ) -> Self {
        let streams = Streams {
            max_stream,
            most,
            ..Streams::default()
        };
        Self {
            connection,
            codec,
            streams,
            pace,
            timer: None,
        }
    }

    /// Waits for the next message. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Arrived, Ended> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, Ended>> {
        loop {
            if let Some((stream, whole)) = self.streams.arrived.pop_front() {
                return Poll::Ready(Ok(self.codec.read_message(stream, whole)?));
            }
            if let Some(broken) = self.streams.broken.take() {
                return Poll::Ready(Err(broken));
            }
            self.streams.run_bytes = 0;
            let visit = |id, piece| self.streams.visit(id, piece);
            match self.connection.poll_streams(cx, visit) {
                Poll::Ready(read) => read?,
                Poll::Pending => return self.poll_late(cx).map(Err),
            }
            if self.is_late() {
                self.streams.broken.get_or_insert(Ended::Slow);
            } else if self.streams.run_bytes >= RUN_BYTES && self.streams.arrived.is_empty() {
                // There was a lot to read, and no message among it: the other tasks come first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Whether a stream should have ended, while there is always something of others.
    fn is_late(&self) -> bool {
        let due = self.pace.and_then(|pace| self.streams.due(pace));
        due.is_some_and(|due| due <= Instant::now())
    }

    /// Waits until a stream should have ended.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Some(pace) = self.pace else {
            return Poll::Pending;
        };
        loop {
            let Some(due) = self.streams.due(pace) else {
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
            // Later is early enough to be found out when it fires.
            if due < timer.deadline().into_std() {
                timer.as_mut().reset(due.into());
            }
            ready!(timer.as_mut().poll(cx));
            // Others may have got on meanwhile.
            if due <= Instant::now() {
                return Poll::Ready(Ended::Slow);
            }
            timer.as_mut().reset(due.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn id(number: usize) -> StreamId {
        StreamId::from(crate::transport::VarInt::from_u32(
            u32::try_from(number).unwrap() * 4 + 2,
        ))
    }

    fn streams(max_stream: usize, most: usize) -> Streams {
        Streams {
            max_stream,
            most,
            ..Streams::default()
        }
    }

    fn take(streams: &mut Streams) -> Vec<(Bytes, bool)> {
        streams.arrived.drain(..).collect()
    }

    /// A stream's pieces, by their lengths.
    fn pieces() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(prop_oneof![8 => 1..300_usize, 1 => 1..40_000_usize], 0..6)
    }

    proptest! {
        /// However pieces of streams come, and wherever the reader has enough: each stream is passed on as it is.
        #[test]
        fn streams_are_not_mixed_up(
            all in prop::collection::vec(pieces(), 1..12),
            order in prop::collection::vec((any::<prop::sample::Index>(), 1..4_usize), 0..200),
        ) {
            let mut streams = streams(1 << 20, 1 << 30);
            let whole = |number: usize| {
                let fill = |(piece, length): (usize, &usize)| vec![u8::try_from(number * 6 + piece).unwrap(); *length];
                all[number].iter().enumerate().map(fill).collect::<Vec<_>>()
            };
            // What each has read of its pieces; those that are through are gone.
            let mut left: BTreeMap<usize, usize> = (0..all.len()).map(|number| (number, 0)).collect();
            let mut expected = Vec::new();
            let mut came = Vec::new();
            let mut order = order.into_iter();
            while !left.is_empty() {
                // In the end, one after the other.
                let (which, count) = order.next().map_or((0, 9), |(which, count)| (which.index(left.len()), count));
                let number = *left.keys().nth(which).unwrap();
                let mut read = left[&number];
                let pieces = whole(number);
                let mut want = Want::More;
                for piece in pieces.iter().skip(read).take(count) {
                    want = streams.visit(id(number), Piece::Data(piece.clone().into()));
                    read += 1;
                    if want != Want::More {
                        break;
                    }
                }
                left.insert(number, read);
                if want == Want::More {
                    if read == pieces.len() {
                        want = streams.visit(id(number), Piece::End);
                        left.remove(&number);
                        expected.push((Bytes::from(pieces.concat()), true));
                    } else {
                        want = streams.visit(id(number), Piece::Pause);
                    }
                }
                if want != Want::More {
                    came.extend(take(&mut streams));
                    streams.run_bytes = 0;
                }
            }
            came.extend(take(&mut streams));
            prop_assert_eq!(came, expected);
            prop_assert_eq!((streams.open, streams.parts.len(), streams.first.len()), (0, 0, 0));
            prop_assert_eq!(streams.ever, all.iter().flatten().sum::<usize>());
            prop_assert!(streams.broken.is_none());
        }
    }

    #[test]
    fn of_what_goes_over_the_limit_the_beginning_is_passed_on() {
        let mut streams = streams(100, 1 << 20);
        let piece = |length| Piece::Data(vec![1; length].into());
        assert_eq!(streams.visit(id(0), piece(101)), Want::Stop(close::DONE));
        assert_eq!(streams.visit(id(1), piece(60)), Want::More);
        assert_eq!(streams.visit(id(1), Piece::Pause), Want::More);
        assert_eq!(streams.visit(id(1), piece(60)), Want::Stop(close::DONE));
        let came: Vec<_> = take(&mut streams)
            .iter()
            .map(|(stream, whole)| (stream.len(), *whole))
            .collect();
        assert_eq!(came, [(101, false), (120, false)]);
        assert_eq!((streams.open, streams.parts.len()), (0, 0));
    }

    #[test]
    fn streams_that_do_not_end_break_the_protocol_when_they_are_too_much() {
        let mut streams = streams(5_000, 10_000);
        for number in 0..3 {
            assert_eq!(
                streams.visit(id(number), Piece::Data(vec![0; 4_000].into())),
                Want::More
            );
            assert_eq!(streams.visit(id(number), Piece::Pause), Want::More);
        }
        streams.visit(id(3), Piece::Data(vec![0; 4_000].into()));
        assert_eq!(streams.visit(id(3), Piece::Pause), Want::Enough);
        assert!(matches!(streams.broken, Some(Ended::Violation(Violation::OverBounds))));
    }

    #[test]
    fn a_stream_is_due_by_its_beginning_and_by_what_others_bring() {
        let mut streams = streams(1 << 20, 1 << 20);
        let pace = Pace {
            time: Duration::from_secs(10),
            rate: 1_000,
        };
        assert_eq!(streams.due(pace), None);
        streams.visit(id(0), Piece::Data(vec![0; 10].into()));
        streams.visit(id(0), Piece::Pause);
        let due = streams.due(pace).unwrap();
        // Another one, all at once.
        streams.visit(id(1), Piece::Data(vec![0; 5_000].into()));
        streams.visit(id(1), Piece::End);
        assert_eq!(streams.due(pace), Some(due + Duration::from_secs(5)));
        streams.visit(id(0), Piece::End);
        assert_eq!(streams.due(pace), None);
    }
}
