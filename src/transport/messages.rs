//! Unidirectional streams, a message each: read and written in runs, for which the connection's lock is taken once.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use foldhash::fast::RandomState;
use quinn_proto::{ConnectionError, Dir, FinishError, ReadError, StreamId, VarInt, WriteError};

use super::connection::{Connection, State, wait, wake};

/// What comes of a stream.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The bytes that come next.
    Data(Bytes),
    /// That was all of it.
    End,
    /// The other side has broken it off.
    Reset,
    /// The rest is not there yet.
    Pause,
}

/// What is to be read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// More.
    More,
    /// No more for now.
    Enough,
    /// Nothing more of this stream, of which the other side is told the code, and no other one for now.
    Stop(VarInt),
}

/// What there is left of a stream.
#[derive(Clone, Copy)]
enum Rest {
    /// It has ended, or was given up.
    Nothing,
    /// It is not there yet.
    ToCome,
    /// There may be some, and it was not wanted.
    ToRead,
}

/// The streams of the other side that did not come whole, and who waits for streams.
#[derive(Default)]
pub(super) struct Arrivals {
    waker: Option<Waker>,
    /// Whether it is in `readable`.
    parts: HashMap<StreamId, bool, RandomState>,
    /// Of which there is more.
    readable: VecDeque<StreamId>,
}

impl Arrivals {
    pub(super) fn wake(&mut self) {
        wake(&mut self.waker);
    }

    /// There is more of a stream. One that nobody has looked at yet is looked at as a whole.
    pub(super) fn readable(&mut self, id: StreamId) {
        if let Some(is_queued @ false) = self.parts.get_mut(&id) {
            *is_queued = true;
            self.readable.push_back(id);
            self.wake();
        }
    }

    /// Something was read of a stream, and this is what there is left of it.
    fn set_rest(&mut self, id: StreamId, rest: Rest) {
        match rest {
            Rest::Nothing if self.parts.is_empty() => {}
            Rest::Nothing => drop(self.parts.remove(&id)),
            Rest::ToCome => drop(self.parts.insert(id, false)),
            Rest::ToRead => {
                self.parts.insert(id, true);
                self.readable.push_front(id);
            }
        }
    }
}

impl State {
    /// The next stream of which there may be something, of those that were begun first.
    fn next_stream(&mut self) -> Option<StreamId> {
        self.arrivals
            .readable
            .pop_front()
            .or_else(|| self.protocol.streams().accept(Dir::Uni))
    }

    /// Reads what is there of a stream. Says whether other streams are wanted.
    fn read_stream(&mut self, id: StreamId, visit: &mut impl FnMut(StreamId, Piece) -> Want) -> bool {
        let mut stream = self.protocol.recv_stream(id);
        let Ok(mut pieces) = stream.read(true) else {
            self.arrivals.set_rest(id, Rest::Nothing);
            return true;
        };
        let mut goes_on;
        let (rest, stop) = loop {
            let (piece, rest) = match pieces.next(usize::MAX) {
                Ok(Some(piece)) => (Piece::Data(piece.bytes), None),
                Ok(None) => (Piece::End, Some(Rest::Nothing)),
                Err(ReadError::Reset(_)) => (Piece::Reset, Some(Rest::Nothing)),
                Err(ReadError::Blocked) => (Piece::Pause, Some(Rest::ToCome)),
            };
            let want = visit(id, piece);
            goes_on = want == Want::More;
            match (want, rest) {
                (Want::Stop(code), None | Some(Rest::ToCome)) => break (Rest::Nothing, Some(code)),
                (_, Some(rest)) => break (rest, None),
                (Want::Enough, None) => break (Rest::ToRead, None),
                (Want::More, None) => {}
            }
        };
        let mut is_due = pieces.finalize().should_transmit();
        if let Some(code) = stop {
            // Fails for a stream that has ended.
            is_due |= self.protocol.recv_stream(id).stop(code).is_ok();
        }
        self.arrivals.set_rest(id, rest);
        if is_due {
            self.wake_driver();
        }
        goes_on
    }
}

impl Connection {
    /// Reads what is there of the other side's streams, until `visit` wants no more of them; waits while there is nothing.
    /// What has come before the connection was lost is read. Of one task.
    pub(crate) fn poll_streams(
        &self,
        cx: &Context<'_>,
        mut visit: impl FnMut(StreamId, Piece) -> Want,
    ) -> Poll<Result<(), ConnectionError>> {
        let state = &mut *self.state();
        let mut is_some = false;
        while let Some(id) = state.next_stream() {
            is_some = true;
            if !state.read_stream(id, &mut visit) {
                break;
            }
        }
        if is_some {
            return Poll::Ready(Ok(()));
        }
        state.lost()?;
        wait(&mut state.arrivals.waker, cx)
    }
}

/// Writes messages, a stream each. Of one task.
#[derive(Debug)]
pub(crate) struct MessageWriter<'a> {
    connection: &'a Connection,
    /// What was not written yet of the message that was begun, and its stream, once there is one.
    begun: Option<(Option<StreamId>, [Bytes; 2])>,
}

impl<'a> MessageWriter<'a> {
    pub(crate) fn new(connection: &'a Connection) -> Self {
        Self {
            connection,
            begun: None,
        }
    }

    /// Writes all messages, each of the two parts of a message behind the other; waits while the other side lets nothing more be
    /// sent. A message that the other side wants no more of is passed over.
    ///
    /// When the future is dropped, the message that was begun is gone on with the next time.
    pub(crate) async fn write(
        &mut self,
        messages: &mut (impl Iterator<Item = [Bytes; 2]> + Send),
    ) -> Result<(), ConnectionError> {
        poll_fn(|cx| self.poll_write(cx, messages)).await
    }

    fn poll_write(
        &mut self,
        cx: &Context<'_>,
        messages: &mut impl Iterator<Item = [Bytes; 2]>,
    ) -> Poll<Result<(), ConnectionError>> {
        let state = &mut *self.connection.state();
        state.lost()?;
        let mut is_due = false;
        let written = loop {
            if self.begun.is_none() {
                self.begun = messages.next().map(|message| (None, message));
            }
            let Some((stream, message)) = &mut self.begun else {
                break Poll::Ready(Ok(()));
            };
            let Some(id) = stream.or_else(|| state.protocol.streams().open(Dir::Uni)) else {
                break Poll::Pending;
            };
            *stream = Some(id);
            is_due = true;
            if state.write_message(id, message).is_pending() {
                break Poll::Pending;
            }
            self.begun = None;
        };
        if is_due {
            state.wake_driver();
        }
        match written {
            Poll::Pending => wait(&mut state.departures, cx),
            written @ Poll::Ready(_) => written,
        }
    }
}

impl State {
    /// Writes what is left of a message, and ends its stream.
    fn write_message(&mut self, id: StreamId, message: &mut [Bytes; 2]) -> Poll<()> {
        let mut stream = self.protocol.send_stream(id);
        while message.iter().any(|part| !part.is_empty()) {
            match stream.write_chunks(message) {
                Ok(_) => {}
                Err(WriteError::Blocked) => return Poll::Pending,
                Err(WriteError::Stopped(code)) => {
                    // Fails for a stream that has ended.
                    let _ = stream.reset(code);
                    return Poll::Ready(());
                }
                Err(WriteError::ClosedStream) => return Poll::Ready(()),
            }
        }
        if let Err(FinishError::Stopped(code)) = stream.finish() {
            let _ = stream.reset(code);
        }
        Poll::Ready(())
    }
}
