//! Takes in the connections that other nodes dial, and makes the links for them.

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use super::Link;
use super::handshake::{Admitted, GREETING_DEADLINE, GreetingError, greet};
use super::supervisor::{LinkContext, Supervisor};
use crate::address::{HostPort, NodeName};
use crate::admission::{Full, Places};
use crate::carrier::close;
use crate::counters::Counter;
use crate::phase::Phase;
use crate::tls::credentials::Role;
use crate::tls::peer_node;
use crate::transport::{self, ConnectionError, Endpoint, Incoming, TransportErrorCode};

/// The most nodes that a node links to, in its life, beside those it is told to dial. Each costs memory, and each name needs
/// a certificate of the cluster's authority, so only a cluster of a thousand nodes comes here, or one whose nodes take new
/// names all the time.
const MAX_LINKS: usize = 1024;

/// Whether there may be a link to this node, which has proved its name.
pub(super) fn has_place(context: &LinkContext, peer: &NodeName) -> bool {
    let links = context.router.links();
    let others = links
        .iter()
        .filter(|link| link.peer() != peer && !link.is_configured && link.is_proved());
    others.count() < MAX_LINKS
}

/// The link to this node: the one there is, or a new one with a supervisor of its own that dials `target`.
pub(crate) fn ensure_link(
    context: &Arc<LinkContext>,
    tracker: &TaskTracker,
    peer: &NodeName,
    target: Option<HostPort>,
) -> Arc<Link> {
    let mut arrivals = None;
    let link = context.router.link_or_insert(peer, || {
        let (link, receiver) = Link::new(
            context.router.name(),
            peer.clone(),
            context.limits.link(),
            target.is_some(),
        );
        arrivals = Some(receiver);
        link
    });
    if let Some(arrivals) = arrivals {
        let supervisor = Supervisor::new(Arc::clone(context), Arc::clone(&link), target, arrivals);
        tracker.spawn(supervisor.run());
    }
    link
}

/// Accepts links until the node leaves, and refuses them then, until it stops.
pub(crate) async fn listen(endpoint: Endpoint, context: Arc<LinkContext>, tracker: TaskTracker) {
    let (limits, counters) = (&context.limits, &context.counters);
    // More are not answered, and dial again. With what each may send before it is known, that is some 60 MB at most.
    let greetings = Places::new(limits.max_handshakes, limits.max_handshakes_per_source);
    loop {
        let incoming = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Stopped) => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            if !context.phase.has_reached(Phase::Leaving) {
                error!("the UDP socket of links has failed");
                context.failed.cancel();
            }
            return;
        };
        if context.phase.has_reached(Phase::Leaving) {
            counters.bump(Counter::LinkHandshakesRefused);
            incoming.refuse();
            continue;
        }
        // Proof of the address first: a handshake costs signatures, and peers are few.
        if !incoming.is_validated() && incoming.may_retry() {
            counters.bump(Counter::LinkRetries);
            incoming.retry();
            continue;
        }
        let greeting = match greetings.take(incoming.remote_address().ip().into()) {
            Ok(greeting) => greeting,
            Err(full) => {
                counters.bump(match full {
                    Full::All => Counter::LinkHandshakesIgnored,
                    Full::Source => Counter::LinkHandshakesIgnoredSource,
                });
                incoming.ignore();
                continue;
            }
        };
        let (context, inner) = (Arc::clone(&context), tracker.clone());
        tracker.spawn(async move {
            let _greeting = greeting;
            let phase = context.phase.clone();
            tokio::select! {
                () = phase.reached(Phase::Stopped) => {}
                () = take_in(incoming, context, inner) => {}
            }
        });
    }
}

async fn take_in(incoming: Incoming, context: Arc<LinkContext>, tracker: TaskTracker) {
    let remote = incoming.remote_address();
    let shown = context.credentials.shown();
    // Not by what held when the first packet came: that may have changed while it waited.
    let crypto = context.credentials.current().link_server();
    let config = transport::link_server(crypto, &context.limits, context.congestion);
    let accepting = incoming.accept_with(config);
    let refused = |counter, why: &str| {
        // Whoever reaches the port can do this as often as it likes, and some of the text may be its own.
        match context.counters.bump_logged(counter) {
            Some(count) => warn!(%remote, count, "refused a link: {}", why.escape_debug()),
            None => debug!(%remote, "refused a link: {}", why.escape_debug()),
        }
    };
    let connection = match timeout(GREETING_DEADLINE, accepting).await {
        Ok(Ok(connection)) => connection,
        // It has another connection by now.
        Ok(Err(ConnectionError::ConnectionClosed(closed)))
            if closed.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            debug!(%remote, "a dial was broken off: {}", closed.to_string().escape_debug());
            return;
        }
        Ok(Err(error)) => return refused(Counter::LinkHandshakesFailed, &error.to_string()),
        Err(_) => {
            let why = format!("no handshake within {GREETING_DEADLINE:?}");
            return refused(Counter::LinkHandshakesLate, &why);
        }
    };
    let refuse = |code, reason: &str| {
        refused(Counter::LinkHandshakesFailed, reason);
        connection.close(code, reason.as_bytes());
    };
    let peer = match peer_node(&connection, &context.cluster) {
        Ok(peer) if peer == *context.router.name() => {
            return refuse(close::IDENTITY, "the certificate names this very node");
        }
        Ok(peer) if !context.is_allowed(&peer) => {
            return refuse(
                close::IDENTITY,
                &format!("{peer} is not on this node's list (--allow-node)"),
            );
        }
        Ok(peer) => peer,
        Err(error) => return refuse(close::IDENTITY, &error.to_string()),
    };
    let admitted = match context.credentials.admit(Role::Node, &connection) {
        Ok(entry) => Admitted { _entry: entry, shown },
        Err(error) => return refuse(close::IDENTITY, &error.to_string()),
    };
    if !has_place(&context, &peer) {
        return refuse(close::BUSY, "this node has as many links as it may");
    }
    let link = ensure_link(&context, &tracker, &peer, None);
    let greeting = greet(connection.clone(), admitted, false, &link, context.own());
    match greeting.await {
        Ok(greeted) => {
            // Full only when a peer makes connections faster than they can be looked at.
            if link.arrivals.try_send(greeted).is_err() {
                connection.close(close::BUSY, b"too many connections at once");
            }
        }
        Err(error) if error.is_duplicate() => debug!(%peer, "another connection is the link: {error}"),
        Err(error) => {
            let counter = match error {
                GreetingError::TimedOut => Counter::LinkHandshakesLate,
                _ => Counter::LinkHandshakesFailed,
            };
            refused(counter, &format!("with {peer} it came to nothing: {error}"));
        }
    }
}
