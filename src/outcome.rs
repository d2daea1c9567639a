//! How a message ends, and the closed set of codes that say why.

use std::fmt;
use std::str::FromStr;

/// Why a message was refused, its fate is unknown, or a line could not be followed.
///
/// One set for every transport and for the links. On the wire a code is its [name](Code::as_str);
/// on a link it is its [number](Code::number).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// A line that is no JSON object of the expected form, or not UTF-8.
    BadJson,
    /// `to` is not `HOST:PORT:ID`.
    BadAddress,
    /// `cmd` is none that the node knows.
    UnknownCmd,
    /// The line, the header or the body is over the node's limit.
    TooLarge,
    /// The address names a node that this node has no link to, and no legacy server that it knows of.
    NoSuchNode,
    /// The node has no client with that id.
    NoSuchClient,
    /// The recipient's node could not be reached in time.
    NodeUnreachable,
    /// The recipient's node started anew: its clients and its memory are gone.
    NodeRestarted,
    /// The recipient went away before the message was written to it.
    RecipientGone,
    /// The recipient's queue is full.
    RecipientFull,
    /// The sender may not do this, or the recipient may not receive.
    NotAllowed,
    /// The sender sends more than it may.
    RateLimited,
    /// The node is shutting down.
    ShuttingDown,
    /// The other side speaks a version of the protocol that this one does not.
    UnsupportedVersion,
    /// The client broke the protocol of its transport, so that what it sends can't be followed.
    ProtocolError,
    /// The session that a client comes back to is no more.
    SessionGone,
    /// The message was handed to a legacy server, which does not say what becomes of it.
    Unconfirmed,
}

impl Code {
    /// Every code there is.
    pub const ALL: [Self; 17] = [
        Self::BadJson,
        Self::BadAddress,
        Self::UnknownCmd,
        Self::TooLarge,
        Self::NoSuchNode,
        Self::NoSuchClient,
        Self::NodeUnreachable,
        Self::NodeRestarted,
        Self::RecipientGone,
        Self::RecipientFull,
        Self::NotAllowed,
        Self::RateLimited,
        Self::ShuttingDown,
        Self::UnsupportedVersion,
        Self::ProtocolError,
        Self::SessionGone,
        Self::Unconfirmed,
    ];

    /// The code as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadJson => "bad-json",
            Self::BadAddress => "bad-address",
            Self::UnknownCmd => "unknown-cmd",
            Self::TooLarge => "too-large",
            Self::NoSuchNode => "no-such-node",
            Self::NoSuchClient => "no-such-client",
            Self::NodeUnreachable => "node-unreachable",
            Self::NodeRestarted => "node-restarted",
            Self::RecipientGone => "recipient-gone",
            Self::RecipientFull => "recipient-full",
            Self::NotAllowed => "not-allowed",
            Self::RateLimited => "rate-limited",
            Self::ShuttingDown => "shutting-down",
            Self::UnsupportedVersion => "unsupported-version",
            Self::ProtocolError => "protocol-error",
            Self::SessionGone => "session-gone",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// The code's number on a link, 1 to 255. Numbers are never given a second meaning.
    pub const fn number(self) -> u8 {
        match self {
            Self::BadJson => 1,
            Self::BadAddress => 2,
            Self::UnknownCmd => 3,
            Self::TooLarge => 4,
            Self::NoSuchNode => 5,
            Self::NoSuchClient => 6,
            Self::NodeUnreachable => 7,
            Self::NodeRestarted => 8,
            Self::RecipientGone => 9,
            Self::RecipientFull => 10,
            Self::NotAllowed => 11,
            Self::RateLimited => 12,
            Self::ShuttingDown => 13,
            Self::UnsupportedVersion => 14,
            Self::ProtocolError => 15,
            Self::SessionGone => 16,
            Self::Unconfirmed => 17,
        }
    }

    /// The code with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// What a sender is told of a message that ended with this code: what happened, and what to do next.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::BadJson => {
                "not one JSON object of text values in UTF-8; send {\"to\":ADDRESS,\"body\":TEXT,\"cmd\":\"sendMsg\"}"
            }
            Self::BadAddress => "`to` is not HOST:PORT:ID; use an address as the recipient's node gave it",
            Self::UnknownCmd => "`cmd` is none of sendMsg, hello, login",
            Self::TooLarge => "over this node's size limit; send less at a time",
            Self::NoSuchNode => "this node has no link to that node; check the address, or name the node with --peer",
            Self::NoSuchClient => "no client has that id there now; ask the recipient for its address",
            Self::NodeUnreachable => "the recipient's node could not be reached in time; try again later",
            Self::NodeRestarted => "the recipient's node started anew; ask the recipient for its new address",
            Self::RecipientGone => "the recipient left before the message was written to it",
            Self::RecipientFull => "the recipient's queue is full; try again more slowly",
            Self::NotAllowed => "your token does not allow this, or the recipient's does not let it receive",
            Self::RateLimited => "you send more than you may; slow down",
            Self::ShuttingDown => "the node is shutting down; connect again, or to another node",
            Self::UnsupportedVersion => "this version of the protocol is not spoken here; update the older side",
            Self::ProtocolError => "what was sent does not follow the protocol; see docs/protocol.md",
            Self::SessionGone => "the session to come back to is no more; connect as a new client",
            Self::Unconfirmed => "it was handed to a legacy server, which gives no receipts; ask the recipient",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL
            .into_iter()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownCode)
    }
}

/// A text that is the name of no [`Code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of no code this version knows")]
pub struct UnknownCode;

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It reached its recipient: a QUIC client said that it took it, or a legacy client's connection accepted all its
    /// bytes.
    Delivered,
    /// The recipient did not see it and will not.
    Refused(Code),
    /// The recipient may have seen it or not: the one who would know is gone, or does not tell.
    Unknown(Code),
}

impl Outcome {
    /// `delivered`, `refused` or `unknown`, as receipts name it.
    pub const fn status(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Refused(_) => "refused",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Why it was not, or perhaps not, delivered.
    pub const fn code(self) -> Option<Code> {
        match self {
            Self::Delivered => None,
            Self::Refused(code) | Self::Unknown(code) => Some(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_their_code() {
        for code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
            assert_eq!(Code::from_number(code.number()), Some(code));
        }
        assert_eq!("no-such-code".parse::<Code>(), Err(UnknownCode));
        assert_eq!(Code::from_number(0), None);
    }
}
