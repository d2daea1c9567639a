//! What the sessions of all clients share, whatever transport they come by.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::{ClientRule, Limits};
use crate::keyring::Keyring;
use crate::message::{Message, Ticket};
use crate::network::{Network, may_connect};
use crate::permission::Login;
use crate::phase::Follow;
use crate::router::{Blocked, Router};
use crate::tls::credentials::Credentials;

/// A login is refused this long after its token came, whatever is wrong with it: how long the judging took tells nothing,
/// and who guesses has to wait. Judging takes a tenth of a millisecond.
const REFUSED_AFTER: Duration = Duration::from_millis(100);

/// What a client is told that shows the token of another client in the middle of its session.
pub(crate) const OTHER_SUBJECT: &str = "the token is of another client; connect anew to be that one";

/// What a session needs of its node.
pub(crate) struct ClientContext {
    pub(crate) router: Arc<Router>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) cluster: String,
    /// What lets a client in.
    pub(crate) rule: ClientRule,
    /// What tokens are judged by.
    pub(crate) keyring: Arc<Keyring>,
    /// Where legacy clients may come from beside this machine. `None`: from anywhere.
    pub(crate) networks: Option<Vec<Network>>,
    /// Those who did not get in.
    pub(crate) refused: Refused,
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

    /// Whether a legacy client may come from this address. Counts those who may not.
    pub(crate) fn lets_in_from(&self, ip: IpAddr) -> bool {
        let allowed = may_connect(ip, self.networks.as_deref());
        if !allowed && let Some(count) = self.refused.networks.add() {
            warn!(%ip, count, "closed a TCP connection from outside the networks of --tcp-allow");
        }
        allowed
    }

    /// Judges the token that a client shows, or has failed to show. Why it is refused, a client may be told.
    pub(crate) async fn log_in(&self, token: Result<&str, &str>) -> Result<Login, String> {
        let came = Instant::now();
        let judged = match token {
            _ if !self.rule.takes_tokens() => {
                Err("this node takes no tokens: it does not run with --clients token; come without one".to_owned())
            }
            Ok(token) => self
                .keyring
                .judge(token)
                .map_err(|error| format!("the token is refused: {error}")),
            Err(text) => Err(text.to_owned()),
        };
        if judged.is_err() {
            if let Some(count) = self.refused.logins.add() {
                warn!(count, "refused a login");
            }
            sleep_until(came + REFUSED_AFTER).await;
        }
        judged
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

/// How many did not get in, by what they lacked.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Those who came from a network from where none may come.
    pub(crate) networks: Tally,
    /// Those who showed no token that is accepted.
    pub(crate) logins: Tally,
}

/// Counts what others do, who can do it as often as they like.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    /// One more. Gives the number at the first, the second, the fourth and so on: those are to be logged, so that nobody
    /// can fill the log.
    fn add(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        count.is_power_of_two().then_some(count)
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
