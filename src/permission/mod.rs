//! What a client may do, and the tokens that say so.
//!
//! A client that shows nothing, or a certificate, may do everything. One that shows a token ([`token`]) may do what that
//! grants: a [`Grant`]. The keys that tokens are judged by are files of the certificate directory ([`files`]).

mod files;
mod pattern;
mod token;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use crate::address::Address;

pub use files::{Issued, Shown, SigningKey, issue, show};
pub(crate) use files::{KeyFileError, Stamps, read_keys};
pub use pattern::{Pattern, PatternError};
pub(crate) use token::{Fingerprint, Keys, Login, MAX_TOKEN, TokenError};
pub use token::{NewToken, Permissions};

/// How much a client may send. What is `None` is for the node to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rates {
    /// Messages a second.
    pub(crate) messages: Option<NonZeroU32>,
    /// Bytes of lines or bodies a second.
    pub(crate) bytes: Option<NonZeroU32>,
}

/// What a client may do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grant {
    /// Which addresses it may send to. `None`: all.
    pub(crate) send: Option<Arc<[Pattern]>>,
    /// Whether messages to it are delivered.
    pub(crate) receive: bool,
    /// How much it may send.
    pub(crate) rates: Rates,
    /// Up to when all this holds. `None`: as long as it is connected.
    pub(crate) until: Option<SystemTime>,
}

impl Grant {
    /// All that there is, of a client that was let in without a token.
    pub(crate) fn everything() -> Self {
        Self {
            send: None,
            receive: true,
            rates: Rates::default(),
            until: None,
        }
    }

    /// Whether there is any address that it may not send to, or it receives nothing.
    pub(crate) fn is_bounded(&self) -> bool {
        self.send.is_some() || !self.receive
    }

    /// Whether it may send to this address.
    pub(crate) fn may_send(&self, to: &Address) -> bool {
        match &self.send {
            Some(patterns) => patterns.iter().any(|pattern| pattern.matches(to)),
            None => true,
        }
    }
}
