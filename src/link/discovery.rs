//! Nodes that find each other at a bus: who is there, and who opens a session with this one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use super::handshake::{Admitted, GREETING_DEADLINE, GreetingError, greet_on_bus};
use super::listener::{ensure_link, has_place};
use super::supervisor::LinkContext;
use crate::address::NodeName;
use crate::admission::Places;
use crate::carrier::close;
use crate::counters::Counter;
use crate::phase::Phase;
use crate::redis::{Listing, Trouble};
use crate::sealed::hub::{Hub, Opening};
use crate::sealed::session;
use crate::tls::credentials::Role;
use crate::tls::node_of;

/// How long an entry in the list of nodes holds without being refreshed: a node that has died is not looked for any more.
const PRESENCE: Duration = Duration::from_secs(15);

/// How often the list is read, though nobody has said that it changed.
const LOOK: Duration = Duration::from_secs(5);

/// The most links to names that stand in the list and that no node has proved to be its own. Whoever may write there can
/// write any number of them.
const MAX_UNPROVED: usize = 1024;

/// How long it waits after a look, whatever is said.
const PAUSE: Duration = Duration::from_millis(200);

/// Says that this node is there, and makes a link to every other one that does, until the node leaves.
///
/// What is read there is believed by nobody: that a node is who it says it is it has to prove when the link is made.
pub(crate) async fn discover(hub: Arc<Hub>, context: Arc<LinkContext>, tracker: TaskTracker) {
    let own = context.router.name().clone();
    if let Err(error) = hub.bus().announce(&own, Bytes::new(), PRESENCE) {
        error!("other nodes can't find this one through Redis: {error}");
    }
    let mut trouble = Trouble::default();
    // Names of nodes beyond that are not kept, as there may be any number.
    let mut told_full = false;
    let looking = async {
        loop {
            let missing = match hub.bus().nodes().await {
                Ok(Listing { nodes, missing }) => {
                    let listed: HashSet<NodeName> = nodes
                        .into_iter()
                        .map(|(node, _)| node)
                        .filter(|node| *node != own && context.is_allowed(node))
                        .collect();
                    if missing.is_none() {
                        context
                            .router
                            .retain_links(|link| listed.contains(link.peer()) || !link.retire());
                    }
                    if !link_to(&listed, &context, &tracker) && !std::mem::replace(&mut told_full, true) {
                        warn!("there are nodes in Redis without a link: as many as there may be lead nowhere");
                    }
                    missing
                }
                Err(error) => Some(error),
            };
            match missing {
                Some(error) => trouble.tell("the list of nodes can't be read, or not whole", &error),
                None => trouble.is_over(),
            }
            sleep(PAUSE).await;
            let _ = timeout(LOOK, hub.bus().news()).await;
        }
    };
    tokio::select! {
        biased;
        () = context.phase.reached(Phase::Leaving) => {}
        () = looking => {}
    }
}

/// Makes links to these nodes, where there are none. False: there are too many that lead nowhere.
fn link_to(listed: &HashSet<NodeName>, context: &Arc<LinkContext>, tracker: &TaskTracker) -> bool {
    let (router, mut is_room) = (&context.router, true);
    let mut unproved = router.links().iter().filter(|link| !link.is_of_a_node()).count();
    for node in listed {
        if router.link(node).is_some() {
            continue;
        }
        is_room = unproved < MAX_UNPROVED;
        if !is_room {
            break;
        }
        ensure_link(context, tracker, node, None);
        unproved += 1;
    }
    is_room
}

/// Answers nodes that open sessions, until the node leaves.
pub(crate) async fn answer(
    hub: Arc<Hub>,
    mut openings: mpsc::Receiver<Opening>,
    context: Arc<LinkContext>,
    tracker: TaskTracker,
) {
    // All come from where the bus is.
    let most = context.limits.max_handshakes;
    let greetings = Places::new(most, most);
    loop {
        let opening = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Leaving) => return,
            opening = openings.recv() => opening,
        };
        let Some(opening) = opening else {
            return;
        };
        let Ok(greeting) = greetings.take(std::net::IpAddr::from([0, 0, 0, 0]).into()) else {
            context.counters.bump(Counter::LinkHandshakesIgnored);
            continue;
        };
        let (hub, context, inner) = (Arc::clone(&hub), Arc::clone(&context), tracker.clone());
        tracker.spawn(async move {
            let _greeting = greeting;
            let phase = context.phase.clone();
            tokio::select! {
                () = phase.reached(Phase::Stopped) => {}
                () = take_in(opening, &hub, &context, &inner) => {}
            }
        });
    }
}

async fn take_in(opening: Opening, hub: &Arc<Hub>, context: &Arc<LinkContext>, tracker: &TaskTracker) {
    let claimed = opening.peer.name.clone();
    let refused = |counter, why: &str| {
        // Whoever reaches the bus can do this as often as it likes, and some of the text may be its own.
        match context.counters.bump_logged(counter) {
            Some(count) => warn!(%claimed, count, "refused a link by Redis: {}", why.escape_debug()),
            None => debug!(%claimed, "refused a link by Redis: {}", why.escape_debug()),
        }
    };
    if claimed == *context.router.name() || !context.is_allowed(&claimed) {
        let why = "it is not on this node's list (--allow-node), or has this node's own name";
        return refused(Counter::LinkHandshakesFailed, why);
    }
    // Of two nodes that open sessions to each other at once one breaks its own off, without a word.
    let has_crossed = || context.router.link(&claimed).is_some_and(|link| link.is_up());
    let shown = context.credentials.shown();
    let crypto = context.credentials.current().bus_server();
    let mut session = match timeout(GREETING_DEADLINE, session::answer(hub, crypto, opening)).await {
        Ok(Ok(session)) => Box::new(session),
        Ok(Err(error)) => return refused(Counter::LinkHandshakesFailed, &error.to_string()),
        Err(_) if has_crossed() => return debug!(%claimed, "broken off: there is a link by now"),
        Err(_) => {
            let why = format!("no handshake within {GREETING_DEADLINE:?}");
            return refused(Counter::LinkHandshakesLate, &why);
        }
    };
    let proved = node_of(&session.chain, &context.cluster).map_err(|error| error.to_string());
    let proved = proved.and_then(|proved| {
        if proved != claimed {
            return Err(format!("its certificate names {proved}"));
        }
        let chain = std::mem::take(&mut session.chain);
        let guest = Arc::new(session.handle.clone());
        let admitted = context.credentials.admit_by(Role::Node, chain, guest);
        admitted.map_err(|error| error.to_string())
    });
    let admitted = match proved {
        Ok(entry) => Admitted { _entry: entry, shown },
        Err(why) => {
            refused(Counter::LinkHandshakesFailed, &why);
            return session.say_closed(close::IDENTITY, &why).await;
        }
    };
    if !has_place(context, &claimed) {
        let why = "this node has as many links as it may";
        refused(Counter::LinkHandshakesFailed, why);
        return session.say_closed(close::BUSY, why).await;
    }
    let link = ensure_link(context, tracker, &claimed, None);
    match greet_on_bus(session, admitted, &link, context.own()).await {
        Ok(greeted) => {
            // Full only when a peer makes sessions faster than they can be looked at.
            if let Err(TrySendError::Full(greeted) | TrySendError::Closed(greeted)) = link.arrivals.try_send(greeted) {
                greeted.carriage.refuse(close::BUSY, "too many sessions at once").await;
            }
        }
        Err(error) if error.is_duplicate() || matches!(error, GreetingError::TimedOut) && has_crossed() => {
            debug!(peer = %claimed, "another connection is the link: {error}");
        }
        Err(error) => refused(Counter::LinkHandshakesFailed, &error.to_string()),
    }
}
