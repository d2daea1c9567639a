//! The two halves of a connection's one bidirectional stream.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn_proto::{ConnectionError, ReadError, StreamId, WriteError};

use super::connection::{Connection, wait};

/// Why a stream can't be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StreamError {
    /// The connection is gone.
    #[error("{0}")]
    Lost(#[from] ConnectionError),
    /// The other side has broken it off.
    #[error("the other side has broken off the control stream")]
    BrokenOff,
}

/// The half that is written to. Of one task. Dropping it says nothing to the other side.
#[derive(Debug)]
pub(crate) struct SendStream {
    connection: Connection,
    id: StreamId,
}

impl SendStream {
    pub(super) fn new(connection: Connection, id: StreamId) -> Self {
        Self { connection, id }
    }

    /// Its streams of higher priority a connection sends first. All have 0.
    pub(crate) fn set_priority(&self, priority: i32) {
        // Fails for a stream that is gone; then writing fails, too.
        let _ = self
            .connection
            .state()
            .protocol
            .send_stream(self.id)
            .set_priority(priority);
    }

    /// Writes all of it. What was written before the future is dropped is sent.
    pub(crate) async fn write_all(&mut self, data: &[u8]) -> Result<(), StreamError> {
        self.write(Bytes::copy_from_slice(data)).await
    }

    /// Writes all of it, without a copy. What was written before the future is dropped is sent.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<(), StreamError> {
        let mut rest = [data];
        poll_fn(|cx| self.poll_write(cx, &mut rest)).await
    }

    fn poll_write(&self, cx: &Context<'_>, rest: &mut [Bytes; 1]) -> Poll<Result<(), StreamError>> {
        let state = &mut *self.connection.state();
        while rest.iter().any(|rest| !rest.is_empty()) {
            state.lost()?;
            match state.protocol.send_stream(self.id).write_chunks(rest) {
                Ok(_) => state.wake_driver(),
                Err(WriteError::Blocked) => return wait(&mut state.writable, cx),
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    return Poll::Ready(Err(StreamError::BrokenOff));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more will be written.
    pub(crate) fn finish(&self) {
        let state = &mut *self.connection.state();
        // Fails for a stream that has ended.
        let _ = state.protocol.send_stream(self.id).finish();
        state.wake_driver();
    }

    /// Waits until the other side has all that was written and that this was all, or has broken it off, or is gone.
    pub(crate) async fn ended(&self) {
        poll_fn(|cx| {
            let state = &mut *self.connection.state();
            match state.protocol.send_stream(self.id).stopped() {
                Ok(None) if state.lost().is_ok() => wait(&mut state.writable, cx),
                Ok(_) | Err(_) => Poll::Ready(()),
            }
        })
        .await;
    }
}

/// The half that is read. Of one task. Dropping it says nothing to the other side.
#[derive(Debug)]
pub(crate) struct RecvStream {
    connection: Connection,
    id: StreamId,
}

impl RecvStream {
    pub(super) fn new(connection: Connection, id: StreamId) -> Self {
        Self { connection, id }
    }

    /// What comes next, of at most `most` bytes; `None` once the other side has ended the stream. Cancel safe.
    pub(crate) async fn read(&mut self, most: usize) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_read(cx, most)).await
    }

    fn poll_read(&self, cx: &Context<'_>, most: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        let state = &mut *self.connection.state();
        if !state.may_be_read {
            state.lost()?;
            return wait(&mut state.readable, cx);
        }
        let (piece, credit) = {
            let mut stream = state.protocol.recv_stream(self.id);
            let Ok(mut pieces) = stream.read(true) else {
                state.lost()?;
                return Poll::Ready(Err(StreamError::BrokenOff));
            };
            let piece = pieces.next(most);
            (piece, pieces.finalize().should_transmit())
        };
        if credit {
            state.wake_driver();
        }
        match piece {
            Ok(piece) => Poll::Ready(Ok(piece.map(|piece| piece.bytes))),
            Err(ReadError::Reset(_)) => Poll::Ready(Err(StreamError::BrokenOff)),
            Err(ReadError::Blocked) => {
                state.may_be_read = false;
                state.lost()?;
                wait(&mut state.readable, cx)
            }
        }
    }
}
