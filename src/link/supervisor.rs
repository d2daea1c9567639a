//! Looks after one link: dials the other node, adopts connections, carries messages over the one that is the link,
//! notices when it is gone, and ends what has waited too long.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::adoption::{Decision, Rank};
use super::handshake::{Admitted, Greeted, GreetingError, Own, greet, greet_on_bus};
use super::path::Path;
use super::{Link, LinkCodec};
use crate::address::{HostPort, NodeName};
use crate::backoff::Backoff;
use crate::carrier::{Ended, Handler, Heard, Liveness, close};
use crate::config::{Congestion, Limits};
use crate::counters::Counters;
use crate::course::Course;
use crate::delivery::Taken;
use crate::exchange::{Incoming, Settled};
use crate::message::{Tag, Ticket, settle_all};
use crate::outcome::Outcome;
use crate::phase::{Follow, Phase};
use crate::router::Router;
use crate::sealed::hub::Hub;
use crate::sealed::session::{self, OpenError};
use crate::tls::credentials::{Credentials, NoGood, Role};
use crate::tls::identity::IdentityError;
use crate::tls::node_of;
use crate::transport::{self, ConnectError, Connection, ConnectionError, Endpoint};
use crate::wire::link as wire;

/// How often each node pings the other.
const PING: Duration = Duration::from_millis(500);

/// After this silence, or this long (and a round trip) without an answer to a ping, another connection is tried beside the
/// present one.
const SUSPECT_AFTER: Duration = Duration::from_millis(1500);

/// After this silence a connection is given up, if `link_wait` is not shorter still.
const SILENCE: Duration = Duration::from_secs(10);

/// How often a link is looked at: whether it has become silent, whether a message has waited too long.
const LOOK: Duration = Duration::from_millis(250);

/// The first and the longest wait from the start of one dial to that of the next. Dials cost little, and a node that is
/// back is wanted back. They overlap: QUIC sends its first packet at 0, 0.3, 0.9 and 2.1 s, so one dial alone would
/// leave a network that has come back unnoticed for up to 1.2 s (measured: a backlog delivered 2 s after its return).
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_millis(400);

/// The longest wait from one opening of a session on the bus to the next. Each is a key exchange, and whoever may write in that
/// Redis can say that there are nodes by the thousand: 1,024 links that lead nowhere make some hundreds of openings a second.
const LONGEST_WAIT_TO_OPEN: Duration = Duration::from_secs(3);

/// How long a dial may take up to the greeting: enough for a round trip of a second.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);

/// The wait from one dial to the next while all is well and only a certificate is to be shown anew.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(2);

/// How often at the most it is told why the other node can't be reached, whatever the reasons.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// How long the end of a session may take to be published, and how long when another one waits to take its place.
const LAST_WORD: Duration = Duration::from_millis(500);
const PARTING_WORD: Duration = Duration::from_millis(100);

/// A link that was up for less time was hardly up: the next session on the bus waits as after one that came to nothing. It is less
/// than what ends connections to a Redis again and again leaves them (`scripts/redis.sh`).
const LASTING: Duration = Duration::from_millis(500);

/// The wait from one dial to the next while the link goes by a bus and a straight way would be better.
const BETTER_WAIT: Duration = Duration::from_secs(5);

/// So long a straight way is tried alone, where one is configured, before a session on the bus is opened.
const STRAIGHT_FIRST: Duration = Duration::from_millis(1000);

/// How many dials may be under way to one node: what is started within the deadline, at the shortest of the longest
/// waits.
const MOST_DIALS: usize = 16;

/// What all links of a node share.
pub(crate) struct LinkContext {
    pub(crate) router: Arc<Router>,
    pub(crate) endpoint: Endpoint,
    /// Where there is a bus beside.
    pub(crate) hub: Option<Arc<Hub>>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) cluster: String,
    /// The only nodes there may be links to; `None`: all of the cluster.
    pub(crate) allowed: Option<HashSet<NodeName>>,
    pub(crate) congestion: Congestion,
    /// Drawn at the node's start.
    pub(crate) epoch: u64,
    pub(crate) limits: Limits,
    /// What is counted of connections that come to nothing.
    pub(crate) counters: Arc<Counters>,
    /// How far the node's shutdown has come.
    pub(crate) phase: Follow,
    /// The endpoint has failed, and the node with it.
    pub(crate) failed: CancellationToken,
}

impl LinkContext {
    /// What this node says of itself.
    pub(super) fn own(&self) -> Own {
        Own {
            epoch: self.epoch,
            bounds: self.limits.link(),
            max_message: self.limits.max_message,
        }
    }

    /// Whether there may be a link to this node.
    pub(super) fn is_allowed(&self, peer: &NodeName) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(peer))
    }
}

type Carrying = Pin<Box<dyn Future<Output = Ended> + Send>>;
type Dialling = Pin<Box<dyn Future<Output = Result<Greeted, DialError>> + Send>>;

/// The connection that is the link.
struct Active {
    path: Path,
    since: Instant,
    heard: Arc<Heard>,
    carrying: Carrying,
    admitted: Admitted,
}

/// Where to dial.
#[derive(Debug, Clone)]
enum Target {
    /// As the configuration says.
    Named(HostPort),
    /// Where the other node's present connection comes from: a node dials from the port that it is dialled at.
    Present(SocketAddr),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(target) => target.fmt(f),
            Self::Present(addr) => addr.fmt(f),
        }
    }
}

/// Looks after one link until the node stops.
pub(crate) struct Supervisor {
    context: Arc<LinkContext>,
    link: Arc<Link>,
    /// Where to dial; `None` if the other side has to.
    target: Option<HostPort>,
    arrivals: mpsc::Receiver<Greeted>,
    active: Option<Active>,
    dialling: FuturesUnordered<Dialling>,
    backoff: Backoff,
    dial_at: Instant,
    /// The session on the bus that is being opened, if one is: it is there at once or not at all.
    opening: FuturesUnordered<Dialling>,
    open_at: Instant,
    open_backoff: Backoff,
    /// Since when there is no connection.
    down_since: Instant,
    /// The last failure that was logged, so that the same one is not logged at every attempt.
    last_failure: String,
    told_at: Option<Instant>,
}

impl Supervisor {
    pub(crate) fn new(
        context: Arc<LinkContext>,
        link: Arc<Link>,
        target: Option<HostPort>,
        arrivals: mpsc::Receiver<Greeted>,
    ) -> Self {
        Self {
            context,
            link,
            target,
            arrivals,
            active: None,
            dialling: FuturesUnordered::new(),
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            dial_at: Instant::now(),
            opening: FuturesUnordered::new(),
            open_at: Instant::now(),
            open_backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT_TO_OPEN),
            down_since: Instant::now(),
            last_failure: String::new(),
            told_at: None,
        }
    }

    /// Runs until the node stops.
    pub(crate) async fn run(mut self) {
        let context = Arc::clone(&self.context);
        let stopped = context.phase.reached(Phase::Stopped);
        tokio::pin!(stopped);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.dial_if_wanted();
            self.open_if_wanted();
            let (waiting, waiting_to_open) = (self.may_dial(), self.wants_bus());
            let carrying = OptionFuture::from(self.active.as_mut().map(|active| &mut active.carrying));
            tokio::select! {
                biased;
                () = &mut stopped => break,
                () = self.link.retired.cancelled() => break,
                Some(ended) = carrying => self.lost(&ended),
                Some(greeted) = self.arrivals.recv() => self.consider(greeted).await,
                Some(dialled) = self.dialling.next() => match dialled {
                    Ok(greeted) => self.consider(greeted).await,
                    Err(error) => self.dial_failed(&error),
                },
                Some(opened) = self.opening.next() => match opened {
                    Ok(greeted) => self.consider(greeted).await,
                    Err(error) if self.link.is_up() => debug!(peer = %self.link.peer(), "no session is needed: {error}"),
                    // Whoever may write in that Redis can name nodes by the thousand.
                    Err(error @ DialError::Open(OpenError::NotThere)) => {
                        debug!(peer = %self.link.peer(), "no session: {error}");
                    }
                    Err(error) => self.dial_failed(&error),
                },
                () = sleep_until(self.dial_at.into()), if waiting => {}
                () = sleep_until(self.open_at.into()), if waiting_to_open => {}
                _ = look.tick() => self.look(),
            }
        }
        if let Some(active) = self.active.take() {
            active.path.close(close::DONE, "the node shuts down");
            if let Path::Bus(_) = active.path {
                // What is said last is published by the carrier, and waited for by nobody else.
                let _ = timeout(LAST_WORD, active.carrying).await;
            }
        }
    }

    /// Where to dial, if that is wanted now.
    fn target(&self) -> Option<Target> {
        if self.context.phase.has_reached(Phase::Leaving) || self.link.adoption.lock().live(Rank::Direct) != 0 {
            return None;
        }
        let present = || {
            // One that is in doubt is dialled by whoever is told to.
            match self.active.as_ref().filter(|_| self.link.is_up())?.path {
                Path::Quic(ref connection) => Some(Target::Present(connection.remote_address())),
                Path::Bus(_) => None,
            }
        };
        self.target.clone().map(Target::Named).or_else(present)
    }

    /// Whether a session on the bus is wanted now.
    fn wants_bus(&self) -> bool {
        let straight = self.target.is_some() && self.down_since.elapsed() < STRAIGHT_FIRST;
        self.context.hub.is_some()
            && !self.context.phase.has_reached(Phase::Leaving)
            && self.link.adoption.lock().live(Rank::Relayed) == 0
            && !straight
            && self.opening.is_empty()
    }

    fn wants_dial(&self) -> bool {
        self.target().is_some()
    }

    fn may_dial(&self) -> bool {
        self.wants_dial() && self.dialling.len() < MOST_DIALS
    }

    fn dial_if_wanted(&mut self) {
        if !self.wants_dial() {
            // The node that follows sees its dials through: the other may have adopted one of them, and closed the
            // connection that is the link here.
            if self.link.decides {
                self.dialling.clear();
            }
            return;
        }
        if self.may_dial()
            && self.dial_at <= Instant::now()
            && let Some(target) = self.target()
        {
            let dialling = dial(Arc::clone(&self.context), Arc::clone(&self.link), target);
            self.dialling.push(Box::pin(dialling));
            let wait = self.backoff.next(rand::random());
            // Nothing waits for a connection that replaces a good one.
            let wait = match &self.active {
                Some(active) if self.link.is_up() && active.path.rank() == Rank::Relayed => wait.max(BETTER_WAIT),
                Some(_) if self.link.is_up() => wait.max(REPLACEMENT_WAIT),
                Some(_) | None => wait,
            };
            self.dial_at = Instant::now() + wait;
        }
    }

    fn open_if_wanted(&mut self) {
        // As with dials: the node that follows sees it through.
        if self.link.decides && !self.opening.is_empty() && self.link.adoption.lock().live(Rank::Relayed) != 0 {
            self.opening.clear();
        }
        if self.wants_bus()
            && self.open_at <= Instant::now()
            && let Some(hub) = &self.context.hub
        {
            let opening = open(Arc::clone(&self.context), Arc::clone(hub), Arc::clone(&self.link));
            self.opening.push(Box::pin(opening));
            self.open_at = Instant::now() + self.open_backoff.next(rand::random());
        }
    }

    fn dial_failed(&mut self, error: &DialError) {
        // Some of it may be another's text.
        let (peer, failure) = (self.link.peer(), error.to_string().escape_debug().to_string());
        let is_told = failure == self.last_failure || self.told_at.is_some_and(|at| at.elapsed() < TOLD_EVERY);
        if matches!(error, DialError::Greeting(error) if error.is_duplicate()) || is_told {
            debug!(%peer, "dial failed: {failure}");
        } else {
            warn!(%peer, "can't reach the node, and go on trying: {failure}");
            self.last_failure = failure;
            self.told_at = Some(Instant::now());
        }
    }

    /// A connection has come this far: makes it the link, or closes it.
    async fn consider(&mut self, greeted: Greeted) {
        let Greeted {
            mut carriage,
            hello,
            generation,
            admitted,
        } = greeted;
        let path = carriage.path();
        if self.context.phase.has_reached(Phase::Leaving) {
            carriage.refuse(close::DONE, "the node shuts down").await;
            return;
        }
        let decision = {
            let mut adoption = self.link.adoption.lock();
            match generation {
                Some(generation) => adoption.follow(hello.epoch, generation, path.rank()),
                None => adoption.decide(hello.epoch, hello.live, path.rank()),
            }
        };
        let Decision::Adopt { generation, restarted } = decision else {
            carriage
                .refuse(close::DUPLICATE, "the link is well without this connection")
                .await;
            return;
        };
        let peer = self.link.peer().clone();
        let exchange = self.link.exchange();
        if let Some(old) = self.active.take() {
            old.path
                .close(close::DUPLICATE, "another connection has replaced this one");
            if let Path::Bus(_) = old.path {
                // The carrier itself says so, and ends with that.
                let _ = timeout(PARTING_WORD, old.carrying).await;
            }
            exchange.disconnected(old.heard.at());
        }
        if restarted {
            // A client that was granted its name is itself again on the new process; ids given out are not.
            let settled = exchange.peer_restarted(|message| !message.to().id.is_temporary());
            info!(%peer, ended = settled.len(), "the node has started anew");
            settle_all(settled);
        }
        exchange.set_bounds(self.context.limits.link().min(hello.bounds));
        if self.link.decides {
            // A fresh way takes these few bytes at once, or it is no good.
            let told = timeout(PING, carriage.greet_with(&wire::Frame::Adopt(generation))).await;
            if told != Ok(true) {
                debug!(%peer, remote = %path, "the way is lost before it was the link");
                path.close(close::SILENT, "it takes nothing");
                self.link.adoption.lock().lost();
                self.down_since = Instant::now();
                return;
            }
        }
        path.follow_distance();
        exchange.connected();
        info!(%peer, remote = %path, generation, "link up");
        self.backoff.reset();
        self.last_failure.clear();
        self.told_at = None;

        let heard = Arc::new(Heard::now());
        let silence = SILENCE.min(self.context.limits.link_wait.max(SUSPECT_AFTER));
        let peer_takes = hello.max_message.saturating_add(wire::MAX_HEADER);
        let own = self.context.router.name().clone();
        let codec = LinkCodec::new(own, peer, self.context.limits.max_message);
        let handler = LinkHandler {
            link: Arc::clone(&self.link),
            router: Arc::clone(&self.context.router),
            course: Mutex::new(Course::new()),
            path: path.clone(),
        };
        let carrying = {
            let heard = Arc::clone(&heard);
            async move {
                let max_stream = codec.max_message + wire::MAX_HEADER;
                let liveness = Liveness { ping: PING, silence };
                carriage
                    .carry(
                        handler.link.exchange(),
                        &codec,
                        &handler,
                        [max_stream, peer_takes],
                        liveness,
                        &heard,
                    )
                    .await
            }
        };
        self.active = Some(Active {
            path,
            since: Instant::now(),
            heard,
            carrying: Box::pin(carrying),
            admitted,
        });
    }

    fn lost(&mut self, ended: &Ended) {
        let Some(active) = self.active.take() else {
            return;
        };
        let peer = self.link.peer();
        if ended.is_own() {
            // Why was said where it was closed.
            info!(%peer, "link down: this node has closed it");
        } else if ended.is_farewell() {
            info!(%peer, "link down: the node has said goodbye");
        } else if ended.is_duplicate() {
            debug!(%peer, "the other node has taken another connection: {}", ended.to_string().escape_debug());
        } else {
            warn!(%peer, "link down: {}", ended.to_string().escape_debug());
        }
        self.link.adoption.lock().lost();
        self.link.exchange().disconnected(active.heard.at());
        self.down_since = Instant::now();
        self.open_at = Instant::now();
        if active.since.elapsed() < LASTING {
            self.open_at += self.open_backoff.next(rand::random());
        } else {
            self.open_backoff.reset();
        }
        self.dial_at = Instant::now() + self.backoff.next(rand::random());
    }

    fn look(&mut self) {
        match &self.active {
            Some(active) => {
                let round_trip = active.path.round_trip();
                active.path.follow_distance();
                let doubtful = active.heard.doubt(Instant::now()) > SUSPECT_AFTER + round_trip;
                let mut adoption = self.link.adoption.lock();
                adoption.set_suspect(doubtful);
                // The other node judges this one by what it was shown, and that ends some day.
                if active.admitted.shown != self.context.credentials.shown() {
                    adoption.set_outdated();
                }
            }
            None => settle_all(self.link.exchange().expire(self.context.limits.link_wait)),
        }
    }
}

/// Passes on what comes over a link.
struct LinkHandler {
    link: Arc<Link>,
    router: Arc<Router>,
    /// Locked by those who take what has come, of which there is one at a time.
    course: Mutex<Course>,
    path: Path,
}

impl Handler<Ticket> for LinkHandler {
    fn taken(&self, incarnation: u32, taken: &mut Vec<Taken<Incoming>>) {
        let mut course = self.course.lock();
        for (number, message) in taken.drain(..) {
            let prompt = message.as_ref().map_or(true, |message| message.prompt);
            let ticket = Ticket {
                origin: Arc::<Link>::clone(&self.link),
                tag: Tag {
                    number,
                    incarnation,
                    prompt,
                },
            };
            match message {
                Ok(message) => self.router.deliver_from_link(message, ticket, &mut course),
                Err(code) => ticket.settle(Outcome::Refused(code)),
            }
        }
    }

    fn begins(&self, now: Instant) {
        self.course.lock().time_is(now);
    }

    fn rests(&self) {
        self.course.lock().rest();
    }

    fn settled(&self, settled: Settled<Ticket>) {
        settle_all(settled);
    }

    fn goodbye(&self) {
        self.path.close(close::DONE, "goodbye");
    }
}

/// Why a dial came to nothing.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0} does not resolve: {1}")]
    Resolve(HostPort, std::io::Error),
    #[error("{0} has no address of the kind that this node's link port has ({1}); bind --link accordingly")]
    NoAddress(HostPort, SocketAddr),
    #[error("can't dial {0}: {1}")]
    Connect(SocketAddr, ConnectError),
    #[error("{0} does not let this node in: {1}")]
    Handshake(SocketAddr, ConnectionError),
    #[error("{0} does not answer")]
    TimedOut(Target),
    #[error("{0}: {1}")]
    Identity(SocketAddr, IdentityError),
    #[error("{0}: {1}")]
    NoGood(SocketAddr, NoGood),
    #[error("{0} is {1}, not {2}; correct --peer")]
    OtherNode(SocketAddr, NodeName, NodeName),
    #[error("by Redis: {0}")]
    Open(#[from] OpenError),
    #[error("by Redis the node does not answer")]
    OpenTimedOut,
    #[error("by Redis: {0}")]
    OpenIdentity(IdentityError),
    #[error("by Redis: {0}")]
    OpenNoGood(NoGood),
    #[error("by Redis: what listens there in the place of {1} is {0}")]
    OpenOtherNode(NodeName, NodeName),
    #[error(transparent)]
    Greeting(#[from] GreetingError),
}

async fn dial(context: Arc<LinkContext>, link: Arc<Link>, target: Target) -> Result<Greeted, DialError> {
    let (connection, admitted) = timeout(DIAL_DEADLINE, connect(&context, link.peer(), &target))
        .await
        .map_err(|_| DialError::TimedOut(target))??;
    Ok(greet(connection, admitted, true, &link, context.own()).await?)
}

/// Opens a session on the bus.
async fn open(context: Arc<LinkContext>, hub: Arc<Hub>, link: Arc<Link>) -> Result<Greeted, DialError> {
    let opening = async {
        let shown = context.credentials.shown();
        let crypto = context.credentials.current().bus_client();
        let mut session = Box::new(session::open(&hub, crypto, link.peer()).await?);
        let found = node_of(&session.chain, &context.cluster).map_err(DialError::OpenIdentity);
        let found = found.and_then(|found| {
            if found != *link.peer() {
                return Err(DialError::OpenOtherNode(found, link.peer().clone()));
            }
            let guest = Arc::new(session.handle.clone());
            let chain = std::mem::take(&mut session.chain);
            context
                .credentials
                .admit_by(Role::Node, chain, guest)
                .map_err(DialError::OpenNoGood)
        });
        match found {
            Ok(entry) => Ok((session, Admitted { _entry: entry, shown })),
            Err(error) => {
                session.say_closed(close::IDENTITY, &error.to_string()).await;
                Err(error)
            }
        }
    };
    let opened = timeout(DIAL_DEADLINE, opening).await;
    let (session, admitted) = opened.map_err(|_| DialError::OpenTimedOut)??;
    Ok(greet_on_bus(session, admitted, &link, context.own()).await?)
}

async fn resolve(context: &LinkContext, target: &HostPort) -> Result<SocketAddr, DialError> {
    let failed = |error| DialError::Resolve(target.clone(), error);
    let local = context.endpoint.local_addr().map_err(failed)?;
    tokio::net::lookup_host(target.as_str())
        .await
        .map_err(failed)?
        .find(|addr| addr.is_ipv4() == local.is_ipv4())
        .ok_or_else(|| DialError::NoAddress(target.clone(), local))
}

async fn connect(context: &LinkContext, peer: &NodeName, target: &Target) -> Result<(Connection, Admitted), DialError> {
    let addr = match target {
        Target::Named(target) => resolve(context, target).await?,
        Target::Present(addr) => *addr,
    };
    let shown = context.credentials.shown();
    let crypto = context.credentials.current().link_client();
    let config = transport::link_client(crypto, &context.limits, context.congestion);
    let connection = context
        .endpoint
        .connect(config, addr, peer.host())
        .map_err(|error| DialError::Connect(addr, error))?
        .await
        .map_err(|error| DialError::Handshake(addr, error))?;
    let found = match crate::tls::peer_node(&connection, &context.cluster) {
        Ok(found) => found,
        Err(error) => {
            connection.close(close::IDENTITY, error.to_string().as_bytes());
            return Err(DialError::Identity(addr, error));
        }
    };
    if found != *peer {
        connection.close(close::IDENTITY, b"this is not the node that was meant");
        return Err(DialError::OtherNode(addr, found, peer.clone()));
    }
    match context.credentials.admit(Role::Node, &connection) {
        Ok(entry) => Ok((connection, Admitted { _entry: entry, shown })),
        Err(error) => {
            connection.close(close::IDENTITY, error.to_string().as_bytes());
            Err(DialError::NoGood(addr, error))
        }
    }
}

impl std::fmt::Debug for LinkContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkContext")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
