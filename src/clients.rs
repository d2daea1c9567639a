//! What the sessions of all clients share, whatever transport they come by.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ClientRule, Limits};
use crate::message::{Message, Ticket};
use crate::phase::Follow;
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
    /// Clients that are connected.
    pub(crate) connected: Arc<AtomicUsize>,
}

impl ClientContext {
    /// A place for one more client, if there is one.
    pub(crate) fn admit(&self) -> Option<Admission> {
        let admission = Admission(Arc::clone(&self.connected));
        let connected = self.connected.fetch_add(1, Ordering::Relaxed);
        (connected < self.limits.max_clients).then_some(admission)
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

/// A client's place among those connected; dropping it frees the place.
pub(crate) struct Admission(Arc<AtomicUsize>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientContext")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
