//! What is carried, and how each kind of connection writes it.

use bytes::{Bytes, BytesMut};

use crate::delivery::Control;
use crate::exchange::Incoming;
use crate::message::Message;
use crate::wire::client::Token;

/// What travels on a control stream.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A frame of the delivery machine.
    Control(Control),
    /// Asks for a `Pong` with the same number.
    Ping(u64),
    /// Answers a `Ping`.
    Pong(u64),
    /// The other side will say nothing more and waits for the connection to be closed.
    Goodbye,
    /// A client shows a token.
    Login(Token),
    /// What came of that: accepted, or a code and a text.
    Judged(Result<(), (String, String)>),
}

/// A message read from a stream.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) number: u64,
    pub(crate) after: u64,
    pub(crate) message: Incoming,
}

/// What the other side wrote can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

impl Malformed {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// How messages and frames are written on one kind of connection.
pub(crate) trait Codec: Sync {
    /// Appends what comes before the body on a message's stream.
    fn write_header(&self, number: u64, after: u64, message: &Message, out: &mut BytesMut);

    /// Reads a message's stream. When it is not `whole`, it went over the limit and this is its beginning.
    fn read_message(&self, stream: Bytes, whole: bool) -> Result<Arrived, Malformed>;

    /// Appends a frame, if this kind of connection has it.
    fn write_frame(&self, frame: &Frame, out: &mut BytesMut);

    /// Takes a frame off the front; `None` while it is not all there.
    fn read_frame(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed>;
}
