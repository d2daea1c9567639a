//! Reads the streams of messages.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream};
use tokio::time::{Sleep, sleep_until};

use super::codec::{Arrived, Codec, Malformed};
use super::ended::{Ended, close};
use crate::delivery::Violation;
use crate::pace::Pace;

/// The first bytes of a stream do not count against what may be under way: a header is no message.
const UNCOUNTED: usize = 1024;

/// What is read of messages on one connection, in bytes. Of one task, which changes it without a locked instruction.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Of the streams that have not ended.
    open: AtomicUsize,
    /// Of all streams there were.
    ever: AtomicUsize,
}

fn add(sum: &AtomicUsize, more: usize) -> usize {
    let sum_now = sum.load(Ordering::Relaxed).wrapping_add(more);
    sum.store(sum_now, Ordering::Relaxed);
    sum_now
}

/// Reads the stream of one message to its end.
pub(super) struct Read<'a, C> {
    stream: RecvStream,
    codec: &'a C,
    reading: &'a Reading,
    /// The most bytes of a stream.
    max_stream: usize,
    /// The most bytes of all streams that have not ended.
    most: usize,
    pace: Option<Pace>,
    /// When it was first found that not all is there, and what was read of all streams then.
    begun: Option<(Instant, usize)>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What of it counts as read of streams that have not ended.
    counted: usize,
    /// The first piece, as long as it is the only one.
    whole: Bytes,
    pieces: BytesMut,
}

impl<'a, C: Codec> Read<'a, C> {
    /// To read this stream, of at most `max_stream` bytes, where those that have not ended may have `most` together.
    pub(super) fn new(
        stream: RecvStream,
        codec: &'a C,
        reading: &'a Reading,
        max_stream: usize,
        most: usize,
        pace: Option<Pace>,
    ) -> Self {
        Self {
            stream,
            codec,
            reading,
            max_stream,
            most,
            pace,
            begun: None,
            timer: None,
            counted: 0,
            whole: Bytes::new(),
            pieces: BytesMut::new(),
        }
    }

    /// One more piece has come; gives the message if it went over the limit.
    fn add(&mut self, piece: Bytes) -> Result<Option<Arrived>, Ended> {
        add(&self.reading.ever, piece.len());
        if self.whole.is_empty() && self.pieces.is_empty() {
            self.whole = piece;
        } else {
            self.pieces.extend_from_slice(&std::mem::take(&mut self.whole));
            self.pieces.extend_from_slice(&piece);
        }
        let length = self.whole.len() + self.pieces.len();
        let more = length.saturating_sub(UNCOUNTED).saturating_sub(self.counted);
        self.counted += more;
        if add(&self.reading.open, more) > self.most {
            return Err(Violation::OverBounds.into());
        }
        if length <= self.max_stream {
            return Ok(None);
        }
        // Fails only when the stream has ended by itself.
        let _ = self.stream.stop(close::DONE);
        let beginning = self.take();
        Ok(Some(self.codec.read_message(beginning, false)?))
    }

    fn take(&mut self) -> Bytes {
        if self.pieces.is_empty() {
            return std::mem::take(&mut self.whole);
        }
        self.pieces.extend_from_slice(&self.whole);
        self.pieces.split().freeze()
    }

    /// When the stream has to have ended.
    ///
    /// What is asked of the client is asked of all its streams together, as they share its connection: bytes of others give
    /// this one time too, but no more than all that there may be under way at once would.
    fn due(&mut self, pace: Pace) -> Instant {
        let ever = self.reading.ever.load(Ordering::Relaxed);
        let (begun, before) = *self.begun.get_or_insert_with(|| (Instant::now(), ever));
        begun + pace.allows(ever.wrapping_sub(before).min(self.most))
    }

    /// Waits until the stream should have ended.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Some(pace) = self.pace else {
            return Poll::Pending;
        };
        loop {
            let due = self.due(pace);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
            ready!(timer.as_mut().poll(cx));
            // Others may have got on meanwhile.
            if due <= Instant::now() {
                return Poll::Ready(Ended::Slow);
            }
            timer.as_mut().reset(due.into());
        }
    }
}

impl<C: Codec> Future for Read<'_, C> {
    type Output = Result<Arrived, Ended>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            // Two at once: a message that came in one piece, and that this was all, take the connection's lock once.
            let mut pieces = [const { Bytes::new() }; 2];
            let read = pin!(this.stream.read_chunks(&mut pieces)).poll(cx);
            match read {
                Poll::Ready(Ok(Some(count))) => {
                    for piece in pieces.into_iter().take(count) {
                        if let Some(over) = this.add(piece)? {
                            return Poll::Ready(Ok(over));
                        }
                    }
                }
                Poll::Ready(Ok(None)) => {
                    let stream = this.take();
                    return Poll::Ready(Ok(this.codec.read_message(stream, true)?));
                }
                Poll::Ready(Err(ReadError::Reset(_))) => {
                    return Poll::Ready(Err(Malformed::new("the stream of a message was reset").into()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return this.poll_late(cx).map(Err),
            }
        }
    }
}

impl<C> Drop for Read<'_, C> {
    fn drop(&mut self) {
        let open = self.reading.open.load(Ordering::Relaxed);
        self.reading
            .open
            .store(open.wrapping_sub(self.counted), Ordering::Relaxed);
    }
}
