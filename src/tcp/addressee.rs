//! Whom a legacy client's last message was for.

use std::sync::Arc;

use crate::address::{Address, AddressError};
use crate::link::Link;

/// Whom the last message of a client was for: mostly the next is for the same, and its address need not be read again.
#[derive(Debug, Default)]
pub(super) struct Addressee {
    text: String,
    address: Option<Address>,
    /// The link that it took.
    pub(super) link: Option<Arc<Link>>,
}

impl Addressee {
    /// Whether the link has a backlog.
    pub(super) fn is_held(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.exchange().is_behind())
    }

    /// Gives way while the link has more to send than it gets away.
    pub(super) async fn give_way(&self) {
        if let Some(link) = &self.link {
            link.exchange().catch_up().await;
        }
    }

    pub(super) fn parse(&mut self, text: &str) -> Result<Address, AddressError> {
        if let Some(address) = self.address.as_ref().filter(|_| self.text == text) {
            return Ok(address.clone());
        }
        let address: Address = text.parse()?;
        text.clone_into(&mut self.text);
        self.address = Some(address.clone());
        Ok(address)
    }
}
