//! How a connection ends: the codes on the wire, and why a carrier stopped.

use std::time::Duration;

use super::codec::Malformed;
use crate::delivery::Violation;
use crate::sealed::session::Break;
use crate::transport::{Connection, ConnectionError, StreamError, VarInt};

/// Why a connection was closed: the application error codes on the wire.
pub(crate) mod close {
    use crate::transport::VarInt;

    /// Nothing is wrong: one side is done.
    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    /// The other side broke the protocol.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// Another connection serves this pair of nodes.
    pub(crate) const DUPLICATE: VarInt = VarInt::from_u32(2);
    /// The other side speaks no version that this one does.
    pub(crate) const VERSION: VarInt = VarInt::from_u32(3);
    /// Nothing was heard for too long.
    pub(crate) const SILENT: VarInt = VarInt::from_u32(4);
    /// There are as many connections as there may be.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(5);
    /// The certificate or token does not say what it must, or is no good any more.
    pub(crate) const IDENTITY: VarInt = VarInt::from_u32(6);
    /// Another connection of the same client has its id now.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(7);
}

/// Closes a connection whose greeting is broken off, unless it is disarmed. A connection that is merely dropped would
/// be closed as if its side were done.
pub(crate) struct BreakOff(Option<Connection>);

impl BreakOff {
    /// Armed for this connection.
    pub(crate) fn new(connection: &Connection) -> Self {
        Self(Some(connection.clone()))
    }

    /// The greeting has come to its end.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for BreakOff {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close(close::DUPLICATE, b"another connection takes its place");
        }
    }
}

/// Closes a connection when nobody serves, or carries over, it any more.
pub(crate) struct CloseOnDrop<'a>(pub(crate) &'a Connection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close(close::DONE, b"this side has ended it");
    }
}

/// Why a carrier ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The connection is gone.
    #[error("{0}")]
    Lost(#[from] ConnectionError),
    /// The other side broke the rules of the exchange.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The other side wrote what can't be understood.
    #[error("the other side broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    /// The other side was too slow with a message, whose number can't be passed over.
    #[error("the other side broke the protocol: the stream of a message did not end in time")]
    Slow,
    /// The other side closed or reset a stream that lasts as long as the connection.
    #[error("the control stream ended")]
    NoControl,
    /// Nothing was heard for too long.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// What was said did not all come.
    #[error("{0}")]
    Broken(#[from] Break),
    /// What was to be said may not have been published.
    #[error("{0}")]
    Unpublished(String),
    /// The keys have sealed as much as they should.
    #[error("the session's keys are worn; the next session has others")]
    Worn,
    /// This side has closed the session.
    #[error("{reason}")]
    ClosedHere { code: VarInt, reason: String },
    /// The other side has closed the session, and said this.
    #[error("closed by the other node: {reason}")]
    ClosedThere { code: VarInt, reason: String },
}

impl Ended {
    /// Whether one of the two sides has simply gone, and said so.
    pub(crate) fn is_farewell(&self) -> bool {
        match self {
            Self::Lost(ConnectionError::LocallyClosed) | Self::ClosedHere { .. } => true,
            Self::Lost(ConnectionError::ApplicationClosed(closed)) => closed.error_code == close::DONE,
            Self::ClosedThere { code, .. } => *code == close::DONE,
            _ => false,
        }
    }

    /// Whether it was this side that closed, and has told why.
    pub(crate) fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Lost(ConnectionError::LocallyClosed) | Self::ClosedHere { .. } | Self::Worn
        )
    }

    /// Whether the other side has closed because it holds another connection for the link.
    pub(crate) fn is_duplicate(&self) -> bool {
        match self {
            Self::Lost(ConnectionError::ApplicationClosed(closed)) => closed.error_code == close::DUPLICATE,
            Self::ClosedThere { code, .. } => *code == close::DUPLICATE,
            _ => false,
        }
    }

    /// Whether the other side of a session is to be told.
    pub(super) fn is_told(&self) -> bool {
        !matches!(self, Self::ClosedThere { .. } | Self::Unpublished(_))
    }

    /// Whether the connection broke, so that its client may come back by another: neither side has ended the session.
    pub(crate) fn is_break(&self) -> bool {
        match self {
            Self::Lost(ConnectionError::LocallyClosed) => false,
            Self::Lost(ConnectionError::ApplicationClosed(closed)) => closed.error_code == close::DUPLICATE,
            Self::Lost(_) => true,
            _ => false,
        }
    }

    /// The code and the reason to close the connection with.
    pub(super) fn close_code(&self) -> VarInt {
        match self {
            Self::Lost(_) | Self::ClosedThere { .. } | Self::Worn => close::DONE,
            Self::ClosedHere { code, .. } => *code,
            Self::Violation(_) | Self::Malformed(_) | Self::Slow | Self::NoControl => close::PROTOCOL,
            Self::Silent(_) | Self::Broken(_) | Self::Unpublished(_) => close::SILENT,
        }
    }
}

impl From<StreamError> for Ended {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Lost(lost) => Self::Lost(lost),
            StreamError::BrokenOff => Self::NoControl,
        }
    }
}
