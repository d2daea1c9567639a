//! What the sessions of all clients share, whatever transport they come by.

use std::net::IpAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Full, Place, Places, Source};
use crate::config::{ClientRule, Limits};
use crate::counters::{Counter, Counters};
use crate::message::{Message, Ticket};
use crate::misses::Misses;
use crate::phase::Follow;
use crate::restraint::Restraint;
use crate::router::{Blocked, Router};
use crate::tls::credentials::Credentials;

/// What a session needs of its node.
pub(crate) struct ClientContext {
    pub(crate) router: Arc<Router>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) cluster: String,
    /// What lets a client in.
    pub(crate) rule: ClientRule,
    pub(crate) limits: Limits,
    /// Owns the sessions' tasks.
    pub(crate) tracker: TaskTracker,
    /// How far the node's shutdown has come.
    pub(crate) phase: Follow,
    /// The endpoint has failed, and the node with it.
    pub(crate) failed: CancellationToken,
    /// The places of clients that are connected.
    pub(crate) places: Arc<Places>,
    /// What their sources have tried in vain.
    pub(crate) misses: Arc<Misses>,
    /// What is counted of them all.
    pub(crate) counters: Arc<Counters>,
}

impl ClientContext {
    /// A place for one more client, or what to tell it. The source that it comes from now is the one that counts, also
    /// when it moves.
    pub(crate) fn admit(&self, remote: IpAddr) -> Result<Admission, &'static str> {
        let source = Source::from(remote);
        match self.places.take(source) {
            Ok(place) => Ok(Admission { source, _place: place }),
            Err(Full::All) => {
                self.counters.bump(Counter::RefusedClients);
                Err(FULL)
            }
            Err(Full::Source) => {
                self.counters.bump(Counter::RefusedSource);
                Err("this node has as many clients from your address as it may; close some, or try another node")
            }
        }
    }

    /// Passes a message on; waits while the link it has to take is full.
    pub(crate) async fn route(&self, message: Message, ticket: Ticket) {
        let mut routed = self.router.route(message, ticket);
        while let Err(Blocked { message, ticket, link }) = routed {
            // The waiting begins before the next try, so no room that comes in between is missed.
            let room = link.exchange().room();
            routed = self.router.route(message, ticket);
            if routed.is_err() {
                room.await;
            }
        }
    }
}

/// What a client is told for which there is no place.
pub(crate) const FULL: &str = "this node has as many clients as it may; try again later, or another node";

/// A client's place among those connected; dropping it frees the place.
pub(crate) struct Admission {
    source: Source,
    _place: Place,
}

impl Admission {
    /// What the client is held to.
    pub(crate) fn restraint(&self, context: &ClientContext) -> Restraint {
        let limits = &context.limits;
        let (rate, largest) = (limits.rate(), limits.max_line());
        Restraint::new(self.source, rate, largest, &context.misses, &context.counters)
    }
}

impl std::fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientContext")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
