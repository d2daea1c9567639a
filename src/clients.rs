//! What the sessions of all clients share, whatever transport they come by.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admission::{Full, Place, Places, Source};
use crate::buffers::Buffers;
use crate::config::{ClientRule, Limits, Rate};
use crate::counters::{Counter, Counters};
use crate::course::Course;
use crate::keyring::Keyring;
use crate::message::{Message, Ticket};
use crate::misses::Misses;
use crate::network::{Network, may_connect};
use crate::permission::{Login, Rates};
use crate::phase::Follow;
use crate::restraint::Restraint;
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
    pub(crate) limits: Limits,
    /// What TCP clients read into and write from.
    pub(crate) buffers: Arc<Buffers>,
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
            Ok(place) => Ok(Admission {
                source,
                remote,
                _place: place,
            }),
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

    /// Whether a legacy client may come from this address. Counts those who may not.
    pub(crate) fn lets_in_from(&self, ip: IpAddr) -> bool {
        let allowed = may_connect(ip, self.networks.as_deref());
        if !allowed && let Some(count) = self.counters.bump_logged(Counter::RefusedNetwork) {
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
            if let Some(count) = self.counters.bump_logged(Counter::RefusedTokens) {
                warn!(count, "refused a login");
            }
            sleep_until(came + REFUSED_AFTER).await;
        }
        judged
    }

    /// What a client may send in a second: the less of what each may and what its token says.
    pub(crate) fn rate(&self, login: Option<&Login>) -> Rate {
        let own = self.limits.rate();
        login.map_or(own, |login| {
            let Rates { messages, bytes } = login.grant.rates;
            own.and(Rate { messages, bytes })
        })
    }

    /// Passes a message on; waits while the way it has to take is full.
    pub(crate) async fn route(&self, message: Message, ticket: Ticket) {
        let mut course = Course::new();
        if let Err(blocked) = self.router.route(message, ticket, &mut course) {
            self.route_once_free(blocked, &mut course).await;
        }
    }

    /// Passes on a message for which there was no room, once there is.
    pub(crate) async fn route_once_free(&self, mut blocked: Blocked, course: &mut Course) {
        loop {
            let Blocked { message, ticket, way } = blocked;
            // The waiting begins before the next try, so no room that comes in between is missed.
            let room = way.room();
            blocked = match self.router.route(message, ticket, course) {
                Ok(()) => return,
                Err(blocked) => blocked,
            };
            room.await;
            course.look_at_the_clock();
        }
    }
}

/// What a client is told for which there is no place.
pub(crate) const FULL: &str = "this node has as many clients as it may; try again later, or another node";

/// A client's place among those connected; dropping it frees the place.
pub(crate) struct Admission {
    source: Source,
    remote: IpAddr,
    _place: Place,
}

impl Admission {
    /// The address that the client came from.
    pub(crate) fn remote(&self) -> IpAddr {
        self.remote
    }

    /// What a client is held to that was let in by this token, if by one.
    pub(crate) fn restraint(&self, context: &ClientContext, login: Option<&Login>) -> Restraint {
        let (rate, largest) = (context.rate(login), context.limits.max_line());
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
