//! A node: binds its ports, starts its tasks, and ends them.
//!
//! Every task of a node, down to those of its QUIC connections, is spawned on one tracker, and all follow the phases of
//! its shutdown (`phase.rs`). So after [`Node::shutdown`] nothing of the node runs on, and its ports are free.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::address::{HostPort, NodeName};
use crate::admission::Places;
use crate::carrier::close;
use crate::clients::ClientContext;
use crate::config::{ClientRule, Config, LINK_PORT_OFFSET, Limits, default_listen};
use crate::counters::{Counters, changes};
use crate::keyring::Keyring;
use crate::legacy::LegacyNode;
use crate::legacy::deliver::{self, LegacyContext};
use crate::link::discovery;
use crate::link::listener::{ensure_link, listen};
use crate::link::supervisor::LinkContext;
use crate::message::settle_all;
use crate::misses::Misses;
use crate::network::is_loopback;
use crate::outcome::Code;
use crate::phase::{Follow, Lead, Phase, phases};
use crate::redis::{Bus, Event, RedisConfig};
use crate::router::Router;
use crate::sealed::handshake::Party;
use crate::sealed::hub::Hub;
use crate::tls::credentials::Credentials;
use crate::tls::{CLIENT_ALPN, ClientCertificates, LINK_ALPN, NodeTls};
use crate::transport::{self, Endpoint};
use crate::wire::link::MAX_FRAME;
use crate::{descriptors, legacy, quic, tcp};

/// How long the last words (answers, goodbyes) may take once everything has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often what was counted is told in the log, if there is something new.
const COUNTERS_EVERY: Duration = Duration::from_secs(60);

/// How often the drain is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// A running node.
///
/// Dropping it without [`shutdown`](Self::shutdown) ends it at once: what is under way is lost, as in a crash.
#[derive(Debug)]
pub struct Node {
    name: NodeName,
    tcp: Option<SocketAddr>,
    quic: SocketAddr,
    link: SocketAddr,
    grace: Duration,
    tasks: Tasks,
    links: Arc<LinkContext>,
    clients: Arc<ClientContext>,
    quic_endpoint: Endpoint,
    /// Cancelled once nothing more is to be said on any connection.
    drained: CancellationToken,
    failed: CancellationToken,
}

/// The tasks, which end when this is dropped.
#[derive(Debug)]
struct Tasks {
    tracker: TaskTracker,
    phase: Lead,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port can't be bound.
    #[error("can't bind {proto} {addr} ({flag}): {source}")]
    Bind {
        /// `TCP` or `UDP`.
        proto: &'static str,
        /// What was to be bound.
        addr: HostPort,
        /// The flag that names it.
        flag: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificates are missing or wrong; the text says which file, what is wrong, and how to make it.
    #[error("{0}")]
    Certificates(String),
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),
}

impl Node {
    /// Binds the ports and starts. To be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When a port can't be bound, a certificate is missing or wrong, or the configuration makes no sense. Nothing is
    /// left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        check(&config)?;
        let tcp_listener = match &config.tcp {
            Some(at) => {
                let listener = bind_tcp(at, &config).await?;
                let addr = local(listener.local_addr(), "TCP", at, "--tcp")?;
                Some((listener, addr))
            }
            None => None,
        };
        let tcp_addr = tcp_listener.as_ref().map(|(_, addr)| *addr);
        let at_quic = config.quic.clone().unwrap_or_else(|| {
            let at = config.tcp.clone().unwrap_or_else(default_listen);
            tcp_addr.map_or_else(|| at.clone(), |addr| at.with_port(addr.port()))
        });
        let quic_socket = bind_quic(&at_quic, &config).await?;
        let quic_addr = local(quic_socket.local_addr(), "UDP", &at_quic, "--quic")?;
        let known_by = tcp_addr.unwrap_or(quic_addr);
        let name = match config.advertise.clone() {
            Some(name) => name,
            None if known_by.ip().is_unspecified() => {
                let text = format!(
                    "nobody can reach a node by {}: say what its clients know it by with --advertise HOST:PORT",
                    known_by.ip()
                );
                return Err(StartError::Config(text));
            }
            None => known_by.into(),
        };
        if let Some(peer) = config.peers.iter().find(|peer| peer.name == name) {
            let text = format!("--peer {} is this node itself: name others only", peer.name);
            return Err(StartError::Config(text));
        }
        check_legacy(&name, &config)?;
        let certificates = match config.clients {
            ClientRule::Open | ClientRule::Token => ClientCertificates::Unasked,
            ClientRule::Certificate => ClientCertificates::Required,
            ClientRule::CertificateOrToken => ClientCertificates::Welcome,
        };
        let credentials = Credentials::load(&config.certs, &name, certificates)
            .map_err(|error| StartError::Certificates(error.to_string()))?;
        let tls = credentials.current();
        let keyring = if config.clients.takes_tokens() {
            Keyring::load(&config.certs, tls.cluster()).map_err(|error| StartError::Certificates(error.to_string()))?
        } else {
            Keyring::unused(&config.certs, tls.cluster())
        };
        let allowed = allowed_nodes(&config);

        let at_link = match config.link.clone() {
            Some(link) => link,
            None => match quic_addr.port().checked_add(LINK_PORT_OFFSET) {
                Some(port) => at_quic.with_port(port),
                None => {
                    let text = format!(
                        "there is no port {LINK_PORT_OFFSET} above {}: say where links come in with --link HOST:PORT",
                        quic_addr.port()
                    );
                    return Err(StartError::Config(text));
                }
            },
        };
        let link_socket = bind_link(&at_link).await?;
        let link_addr = local(link_socket.local_addr(), "UDP", &at_link, "--link")?;

        let (lead, phase) = phases();
        let tasks = Tasks {
            tracker: TaskTracker::new(),
            phase: lead,
        };
        let (failed, drained) = (CancellationToken::new(), CancellationToken::new());
        let tracker = &tasks.tracker;
        let limits = config.limits;
        let unusable = |at: &HostPort, flag: &'static str, source| StartError::Bind {
            proto: "UDP",
            addr: at.clone(),
            flag,
            source,
        };
        let quic_endpoint = transport::endpoint(
            tls.endpoint_config(CLIENT_ALPN),
            Some(transport::client_server(
                tls.client_server(),
                &limits,
                config.congestion,
            )),
            quic_socket,
            tracker,
            &drained,
        )
        .map_err(|error| unusable(&at_quic, "--quic", error))?;
        let link_endpoint = transport::endpoint(
            tls.endpoint_config(LINK_ALPN),
            Some(transport::link_server(tls.link_server(), &limits, config.congestion)),
            link_socket,
            tracker,
            &drained,
        )
        .map_err(|error| unusable(&at_link, "--link", error))?;

        let descriptors = match tcp_listener {
            Some(_) => {
                let handovers = legacy::MOST_AT_ONCE.saturating_mul(config.legacy_nodes.len());
                descriptors::claim(limits.max_clients, tcp::TURNED_AWAY.saturating_add(handovers))
            }
            None => 0,
        };
        let counters = Arc::new(Counters::new());
        let own = Party {
            name: name.clone(),
            epoch: rand::random(),
        };
        let epoch = own.epoch;
        let (hub, openings) = match config.redis {
            Some(redis) => {
                let redis = RedisConfig {
                    seeds: redis.urls,
                    prefix: redis.prefix,
                    ca: redis.ca,
                    plaintext_allowed: redis.plaintext,
                    max_payload: limits.max_message + BESIDE_MESSAGE,
                };
                if limits.max_message > LARGE_FOR_REDIS {
                    warn!(
                        max_message = limits.max_message,
                        "so long a message only gets through a Redis with a higher client-output-buffer-limit for pubsub \
                         than its default of 32 MB; without that the links by Redis break at each"
                    );
                }
                let (bus, events) = start_bus(&redis, &name, tracker, &phase).await?;
                let (hub, openings) = Hub::new(bus, own, redis, Arc::clone(&counters));
                tracker.spawn(Arc::clone(&hub).run(events));
                (Some(hub), Some(openings))
            }
            None => (None, None),
        };
        let servers = config.legacy_nodes.iter();
        let servers = servers.map(|server| LegacyNode::new(server.clone(), limits.link()));
        let router = Arc::new(Router::new(name.clone()).beside(servers));
        let handovers = Arc::new(LegacyContext {
            own: name.clone(),
            limits: limits.clone(),
            counters: Arc::clone(&counters),
            phase: phase.clone(),
        });
        for server in router.legacy() {
            tracker.spawn(deliver::run(Arc::clone(server), Arc::clone(&handovers)));
            if server.name().host().parse::<IpAddr>().is_err() {
                tracker.spawn(deliver::keep_looked_up(Arc::clone(server), Arc::clone(&handovers)));
            }
        }
        let links = Arc::new(LinkContext {
            hub: hub.clone(),
            router: Arc::clone(&router),
            endpoint: link_endpoint.clone(),
            credentials: Arc::clone(&credentials),
            cluster: tls.cluster().to_owned(),
            allowed,
            congestion: config.congestion,
            epoch,
            limits: limits.clone(),
            counters: Arc::clone(&counters),
            phase: phase.clone(),
            failed: failed.clone(),
        });
        tracker.spawn(tell_counters(Arc::clone(&counters), phase.clone()));
        let clients = Arc::new(ClientContext {
            router,
            credentials: Arc::clone(&credentials),
            cluster: tls.cluster().to_owned(),
            buffers: Arc::default(),
            rule: config.clients,
            keyring: Arc::clone(&keyring),
            networks: (!config.insecure_open || !config.tcp_allow.is_empty()).then_some(config.tcp_allow),
            places: Places::new(limits.max_clients, limits.max_per_source),
            misses: Arc::new(Misses::new(limits.miss_rate, limits.miss_burst)),
            counters,
            limits: limits.clone(),
            tracker: tracker.clone(),
            phase: phase.clone(),
            failed: failed.clone(),
        });
        for peer in config.peers {
            ensure_link(&links, tracker, &peer.name, Some(peer.link));
        }
        if let (Some(hub), Some(openings)) = (hub, openings) {
            tracker.spawn(discovery::answer(
                Arc::clone(&hub),
                openings,
                Arc::clone(&links),
                tracker.clone(),
            ));
            tracker.spawn(discovery::discover(hub, Arc::clone(&links), tracker.clone()));
        }
        let renew = {
            let (quic_endpoint, link_endpoint) = (quic_endpoint.clone(), link_endpoint.clone());
            // For those that come from now on; the others have been judged by what holds now.
            move |tls: &NodeTls| {
                let clients = transport::client_server(tls.client_server(), &limits, config.congestion);
                quic_endpoint.set_server_config(clients);
                let links = transport::link_server(tls.link_server(), &limits, config.congestion);
                link_endpoint.set_server_config(links);
            }
        };
        if config.clients.takes_tokens() {
            tracker.spawn(keyring.watch(phase.clone()));
        }
        tracker.spawn(Arc::clone(&credentials).watch(phase, renew));
        tracker.spawn(listen(link_endpoint, Arc::clone(&links), tracker.clone()));
        tracker.spawn(quic::listen(quic_endpoint.clone(), Arc::clone(&clients)));
        if let Some((listener, _)) = tcp_listener {
            tracker.spawn(tcp::listen(listener, descriptors, Arc::clone(&clients)));
        }
        let tcp = tcp_addr.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
        info!(%name, %tcp, clients = %config.clients, quic = %quic_addr, link = %link_addr, "node up");
        Ok(Self {
            name,
            tcp: tcp_addr,
            quic: quic_addr,
            link: link_addr,
            grace: config.grace,
            tasks,
            links,
            clients,
            quic_endpoint,
            drained,
            failed,
        })
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Where legacy clients connect, TCP; `None`: nowhere.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Where QUIC clients connect, UDP.
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic
    }

    /// Where other nodes connect, UDP.
    pub fn link_addr(&self) -> SocketAddr {
        self.link
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.clients.router.registry().len()
    }

    /// What the node has counted so far, by name: each kind of refusal, hold and disconnection by which it keeps to its
    /// limits, as `docs/architecture.md` lists them. All of them are there, also those at zero.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.clients.counters.snapshot()
    }

    /// The nodes that this one has a link to which is up now.
    pub fn linked(&self) -> Vec<NodeName> {
        let links = self.clients.router.links();
        links
            .into_iter()
            .filter(|link| link.is_up())
            .map(|link| link.peer().clone())
            .collect()
    }

    /// Has the certificates and the keys of tokens read again at once; within a second or two that happens by itself. What is wrong with them is
    /// logged, and what was there stays in force then.
    pub fn reload(&self) {
        self.links.credentials.reload();
        self.clients.keyring.reload();
    }

    /// Waits until the node can't go on: a socket of its has failed for good. To be answered by
    /// [`shutdown`](Self::shutdown) and a new start. Cancel safe.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Stops accepting, delivers what was accepted, closes, and frees the ports. What has not ended when the grace of
    /// the configuration is over is given up, and its senders are told.
    ///
    /// Says whether everything had ended in time.
    pub async fn shutdown(self) -> bool {
        let Self {
            name,
            grace,
            tasks,
            links,
            clients,
            quic_endpoint,
            drained,
            ..
        } = self;
        info!(%name, clients = clients.router.registry().len(), "shutting down");
        let router = Arc::clone(&clients.router);
        router.drain();
        tasks.phase.enter(Phase::Draining);

        let deadline = Instant::now() + grace;
        let all_ended = || {
            router.registry().len() == 0
                && router.links().iter().all(|link| link.exchange().is_idle())
                && router.legacy().all(|server| server.is_idle())
        };
        while !all_ended() && Instant::now() < deadline {
            sleep(DRAIN_LOOK).await;
        }
        let in_time = all_ended();
        if !in_time {
            warn!(%name, clients = router.registry().len(), "the grace is over: giving up what is left");
            router.give_up();
            for link in router.links() {
                settle_all(link.exchange().give_up(Code::ShuttingDown));
            }
            for server in router.legacy() {
                settle_all(server.give_up(Code::ShuttingDown));
            }
            tasks.phase.enter(Phase::GivingUp);
            // Answers that this made get their chance to be written.
            sleep(LAST_WORDS).await;
        }
        tasks.phase.enter(Phase::Closing);
        tasks.phase.enter(Phase::Leaving);
        // The other nodes close once they have read all that was said before the goodbye.
        for link in router.links() {
            link.exchange().say_goodbye();
        }
        let said = async {
            while router.links().iter().any(|link| link.is_up()) {
                sleep(DRAIN_LOOK).await;
            }
        };
        // Said or not, the links are closed.
        let _ = timeout(LAST_WORDS, said).await;
        tasks.phase.enter(Phase::Stopped);
        let link_endpoint = links.endpoint.clone();
        for endpoint in [&quic_endpoint, &link_endpoint] {
            endpoint.close(close::DONE, b"the node shuts down");
        }
        // The last packets of each connection go out, or are waited for in vain: for no longer, whatever the other sides do.
        let _ = timeout(LAST_WORDS, async {
            quic_endpoint.wait_idle().await;
            link_endpoint.wait_idle().await;
        })
        .await;
        drained.cancel();
        tasks.tracker.close();
        let tracker = tasks.tracker.clone();
        let counters = Arc::clone(&clients.counters);
        drop((tasks, links, clients, router, quic_endpoint, link_endpoint));
        tracker.wait().await;
        if let Some(counted) = changes(&BTreeMap::new(), &counters.snapshot()) {
            info!(%name, "counted in all: {counted}");
        }
        info!(%name, in_time, "node down");
        in_time
    }
}

/// The most bytes that come over a bus beside one message: what is said of all that is under way, and a packet of messages.
const BESIDE_MESSAGE: usize = 2 * MAX_FRAME;

/// A Redis ends a subscription for which more than 32 MB wait, unless it is configured otherwise; a packet has one message at
/// least.
const LARGE_FOR_REDIS: usize = 30 << 20;

/// Starts what carries messages through Redis. A Redis that is away is waited for by the bus itself, and no reason not
/// to start; one that will not have this node is.
async fn start_bus(
    redis: &RedisConfig,
    name: &NodeName,
    tracker: &TaskTracker,
    phase: &Follow,
) -> Result<(Bus, mpsc::Receiver<Event>), StartError> {
    redis.check().map_err(|error| StartError::Config(error.to_string()))?;
    let (bus, events) = Bus::start(redis.clone(), &redis.channel(name), tracker, phase)
        .map_err(|error| StartError::Config(error.to_string()))?;
    match bus.started().await {
        Err(error) if error.needs_attention() => return Err(StartError::Config(error.to_string())),
        Err(error) => warn!(%name, "Redis is not to be reached yet, and is tried again: {error}"),
        Ok(()) => {}
    }
    Ok((bus, events))
}

/// What is wrong with the legacy servers of the configuration, if anything is.
fn check_legacy(own: &NodeName, config: &Config) -> Result<(), StartError> {
    for server in &config.legacy_nodes {
        if server == own {
            let text = format!("--legacy-node {server} is this node itself: name others only");
            return Err(StartError::Config(text));
        }
        if config.peers.iter().any(|peer| peer.name == *server) {
            let text = format!(
                "{server} is named by --peer and by --legacy-node: leave out --peer if it speaks the legacy protocol \
                 alone, --legacy-node if it is a Trunkline node"
            );
            return Err(StartError::Config(text));
        }
    }
    Ok(())
}

/// The only nodes there may be links to, if that is limited.
fn allowed_nodes(config: &Config) -> Option<HashSet<NodeName>> {
    let named = config.peers.iter().map(|peer| &peer.name);
    let listed = &config.allowed_nodes;
    (!listed.is_empty()).then(|| listed.iter().chain(named).cloned().collect())
}

fn check(config: &Config) -> Result<(), StartError> {
    check_limits(&config.limits)?;
    let wrong = |text: &str| Err(StartError::Config(text.to_owned()));
    match &config.tcp {
        Some(_) if config.clients == ClientRule::Certificate => wrong(
            "--clients certificate: a legacy client can't show a certificate; add --tcp off, or let them show tokens by \
             --clients certificate,token",
        ),
        None if !config.tcp_allow.is_empty() => {
            wrong("--tcp-allow says from where legacy clients may come, and --tcp off that none may: leave out one")
        }
        Some(_) | None => Ok(()),
    }
}

/// What is wrong with listening at this address for legacy clients, if anything is.
fn check_tcp(addr: SocketAddr, config: &Config) -> Result<(), StartError> {
    if is_loopback(addr.ip()) || config.insecure_open || !config.tcp_allow.is_empty() {
        return Ok(());
    }
    Err(StartError::Config(format!(
        "--tcp {addr} can be reached from other machines, and what legacy clients send is not encrypted: say from where \
         they may come with --tcp-allow NETWORK, or add --tcp off; or --insecure-open, to let them come from anywhere"
    )))
}

/// The same for QUIC clients.
fn check_quic(addr: SocketAddr, config: &Config) -> Result<(), StartError> {
    if is_loopback(addr.ip()) || config.insecure_open || config.clients != ClientRule::Open {
        return Ok(());
    }
    Err(StartError::Config(format!(
        "--quic {addr} can be reached from other machines, and --clients open lets in whoever comes: add --clients \
         certificate or --clients token, or keep --quic on 127.0.0.1; or add --insecure-open, to let in whoever comes"
    )))
}

fn check_limits(limits: &Limits) -> Result<(), StartError> {
    let legal = Limits::LEAST_MAX_MESSAGE..=Limits::MOST_MAX_MESSAGE;
    if !legal.contains(&limits.max_message) {
        return Err(StartError::Config(format!(
            "--max-message {} is not from {} to {} bytes",
            limits.max_message,
            legal.start(),
            legal.end()
        )));
    }
    let bounds = [
        ("--outbox-bytes", limits.outbox_bytes),
        ("--conversation-bytes", limits.conversation_bytes),
        ("--client-bytes", limits.client_bytes),
        ("--client-messages", limits.client_messages),
        ("--link-bytes", limits.link_bytes),
        ("--link-messages", limits.link_messages),
        ("--max-clients", limits.max_clients),
        ("--max-per-source", limits.max_per_source),
        ("--max-handshakes", limits.max_handshakes),
        ("--max-handshakes-per-source", limits.max_handshakes_per_source),
        ("--min-rate", limits.min_rate as usize),
    ];
    match bounds.iter().find(|(_, bound)| *bound == 0) {
        Some((flag, _)) => Err(StartError::Config(format!("{flag} is 0: nothing could ever pass"))),
        None => check_times(limits),
    }
}

fn check_times(limits: &Limits) -> Result<(), StartError> {
    let times = [
        ("--stall", Some(limits.stall)),
        ("--hello", Some(limits.hello)),
        ("--line-time", Some(limits.line_time)),
        ("--first-line", limits.first_line),
        ("--idle", limits.idle),
    ];
    match times.iter().find(|(_, time)| time.is_some_and(|time| time.is_zero())) {
        Some((flag, _)) => {
            let text = format!("{flag} is 0: each client would be disconnected at once");
            Err(StartError::Config(text))
        }
        None if limits.login.is_zero() => {
            let text = "--login is 0: nobody could log in".to_owned();
            Err(StartError::Config(text))
        }
        None => Ok(()),
    }
}

/// Tells in the log what was counted since it was told last, until the node stops.
async fn tell_counters(counters: Arc<Counters>, phase: Follow) {
    let mut told = counters.snapshot();
    loop {
        tokio::select! {
            () = phase.reached(Phase::Stopped) => return,
            () = sleep(COUNTERS_EVERY) => {}
        }
        let now = counters.snapshot();
        if let Some(changed) = changes(&told, &now) {
            info!("counted so far: {changed}");
        }
        told = now;
    }
}

async fn resolve(at: &HostPort, proto: &'static str, flag: &'static str) -> Result<Vec<SocketAddr>, StartError> {
    let failed = |source| StartError::Bind {
        proto,
        addr: at.clone(),
        flag,
        source,
    };
    let addrs: Vec<_> = tokio::net::lookup_host(at.as_str()).await.map_err(failed)?.collect();
    if addrs.is_empty() {
        return Err(failed(std::io::Error::other("the host has no address")));
    }
    Ok(addrs)
}

async fn bind_tcp(at: &HostPort, config: &Config) -> Result<TcpListener, StartError> {
    let addrs = resolve(at, "TCP", "--tcp").await?;
    addrs.iter().try_for_each(|addr| check_tcp(*addr, config))?;
    TcpListener::bind(addrs.as_slice())
        .await
        .map_err(|source| StartError::Bind {
            proto: "TCP",
            addr: at.clone(),
            flag: "--tcp",
            source,
        })
}

async fn bind_quic(at: &HostPort, config: &Config) -> Result<std::net::UdpSocket, StartError> {
    let addrs = resolve(at, "UDP", "--quic").await?;
    addrs.iter().try_for_each(|addr| check_quic(*addr, config))?;
    bind_udp(at, "--quic", addrs)
}

async fn bind_link(at: &HostPort) -> Result<std::net::UdpSocket, StartError> {
    bind_udp(at, "--link", resolve(at, "UDP", "--link").await?)
}

/// Binds the first of these addresses that can be bound.
fn bind_udp(at: &HostPort, flag: &'static str, addrs: Vec<SocketAddr>) -> Result<std::net::UdpSocket, StartError> {
    let mut failure = std::io::Error::other("the host has no address");
    for addr in addrs {
        match transport::bind_udp(addr) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(StartError::Bind {
        proto: "UDP",
        addr: at.clone(),
        flag,
        source: failure,
    })
}

fn local(
    addr: std::io::Result<SocketAddr>,
    proto: &'static str,
    at: &HostPort,
    flag: &'static str,
) -> Result<SocketAddr, StartError> {
    addr.map_err(|source| StartError::Bind {
        proto,
        addr: at.clone(),
        flag,
        source,
    })
}
