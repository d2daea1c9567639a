//! `trunkline node`: runs a node until it is told to stop.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use trunkline::address::AddressError;
use trunkline::config::{Redis, RedisUrl};
use trunkline::{ClientRule, Config, Congestion, HostPort, Limits, Network, Node, NodeName, Peer, StartError};

use super::{EXIT_UNAVAILABLE, EXIT_USAGE};

/// Run a node.
///
/// It stops on SIGINT or SIGTERM: accepts nothing more, delivers what it accepted, closes. A second signal ends it at
/// once. On SIGHUP it reads its certificates again.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Where legacy clients connect (TCP), or off; port 0 takes any free one
    #[arg(long, value_name = "HOST:PORT|off", default_value = "127.0.0.1:1215")]
    tcp: Listen,

    /// A network that legacy clients may come from, beside this machine; may be given several times
    #[arg(long, value_name = "NETWORK")]
    tcp_allow: Vec<Network>,

    /// Where QUIC clients connect (UDP) [default: the host and port of --tcp, or with that off 127.0.0.1:1215]
    #[arg(long, value_name = "HOST:PORT")]
    quic: Option<HostPort>,

    /// Where other nodes connect (UDP) [default: the host of --quic and its port + 1000]
    #[arg(long, value_name = "HOST:PORT")]
    link: Option<HostPort>,

    /// The node's name, as its certificate holds it and its clients know it [default: the bound TCP address, or
    /// with --tcp off the QUIC address]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<NodeName>,

    /// Another node to link to, by its name; the link address defaults to the name's host and port + 1000. One of
    /// two nodes naming the other is enough
    #[arg(long = "peer", value_name = "NAME[=LINK_HOST:PORT]")]
    peers: Vec<Peer>,

    #[command(flatten)]
    redis: RedisArgs,

    /// A legacy server, by its name, where its TCP port is, too: clients here can write to its clients, and it to
    /// clients here, for whose sender its IP address is taken as proof; may be given several times
    #[arg(long = "legacy-node", value_name = "HOST:PORT")]
    legacy_nodes: Vec<NodeName>,

    /// A node that a link may be had with, by its name, beside those that --peer names; may be given several times
    /// [default: any node of the cluster]
    #[arg(long = "allow-node", value_name = "NAME")]
    allowed_nodes: Vec<NodeName>,

    /// What lets a client in: open (whoever comes), certificate (of the client authority; by QUIC alone), token, or
    /// certificate,token (either of the two)
    #[arg(long, value_name = "RULE", default_value_t)]
    clients: ClientRule,

    /// Let in whoever reaches the ports of clients, also from other machines
    #[arg(long)]
    insecure_open: bool,

    /// Where the certificates and the keys of tokens are; read again when they change, or on SIGHUP
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,

    /// How long a shutdown may take before what is left is given up, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    grace: Duration,

    /// What decides how much may be in flight on links and to QUIC clients: model, bbr, cubic or new-reno; those but
    /// the first are quinn's, for comparison
    #[arg(long, value_name = "NAME", default_value_t)]
    congestion: Congestion,

    /// How many threads serve; one is enough for most, and takes the least CPU a message
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,

    #[command(flatten)]
    limits: LimitArgs,
}

/// Redis as a way between nodes; `docs/protocol.md` says what goes over it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Redis")]
struct RedisArgs {
    /// A Redis or Valkey by which nodes find each other, and by which links go where there is no way straight; of a
    /// cluster one or more of its servers. May be given several times
    #[arg(
        id = "redis",
        long = "redis",
        value_name = "redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB]"
    )]
    urls: Vec<RedisUrl>,

    /// What the names of all its channels and keys begin with; the same at all nodes
    #[arg(
        long = "redis-prefix",
        value_name = "PREFIX",
        default_value = "trunkline",
        requires = "redis"
    )]
    prefix: String,

    /// The authorities of its certificates, a file in PEM, for rediss:// [default: those of the system]
    #[arg(long = "redis-ca", value_name = "FILE", requires = "redis")]
    ca: Option<PathBuf>,

    /// Let redis:// lead to other machines: the password is sent in plain text, and who talks to whom can be seen; what is
    /// said can't
    #[arg(long = "redis-plaintext", requires = "redis")]
    plaintext: bool,
}

impl RedisArgs {
    fn config(self) -> Option<Redis> {
        (!self.urls.is_empty()).then_some(Redis {
            urls: self.urls,
            prefix: self.prefix,
            ca: self.ca,
            plaintext: self.plaintext,
        })
    }
}

/// Limits; `docs/architecture.md` says what they bound together.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// The longest body; a legacy client's line may have 1,024 bytes more
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_message)]
    max_message: usize,

    /// Clients connected at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_clients)]
    max_clients: usize,

    /// Clients connected at once from one source: an IPv4 address or an IPv6 /64
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_per_source)]
    max_per_source: usize,

    /// QUIC connections on their way to their greeting at once; of clients and of links, each
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_handshakes)]
    max_handshakes: usize,

    /// The same from one source
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_handshakes_per_source)]
    max_handshakes_per_source: usize,

    /// How long a QUIC client may take to the end of its hello, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    hello: Duration,

    /// How long a legacy client may take for its first line, in seconds [default: for ever, as some only listen]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    first_line: Option<Duration>,

    /// How long a client may be connected without a message from it or to it, in seconds [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle: Option<Duration>,

    /// How long a line that was begun, or a QUIC client's message, may take to its end, in seconds, beside its bytes at
    /// --min-rate
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    line_time: Duration,

    /// What must be kept up, in either direction, beyond --line-time and --stall, in bytes a second
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().min_rate)]
    min_rate: u32,

    /// Messages a second of one client before it is held; a burst of one second's worth is free [default: no limit]
    #[arg(long, value_name = "N")]
    client_message_rate: Option<NonZeroU32>,

    /// Bytes a second of one client before it is held; a burst of one second's worth, or of the largest message, is free
    /// [default: no limit]
    #[arg(long, value_name = "BYTES")]
    client_byte_rate: Option<NonZeroU32>,

    /// Messages a second of one source for clients that are not there, each time another, before it is held
    #[arg(long, value_name = "N", default_value_t = Limits::default().miss_rate)]
    miss_rate: NonZeroU32,

    /// How many of those are free at first
    #[arg(long, value_name = "N", default_value_t = Limits::default().miss_burst)]
    miss_burst: NonZeroU32,

    /// What may wait to be written to one client before messages to it are refused
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().outbox_bytes)]
    outbox_bytes: usize,

    /// What one client may have under way to one recipient before it is not read from for a while
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().conversation_bytes)]
    conversation_bytes: usize,

    /// What one client may have under way in all
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().client_bytes)]
    client_bytes: usize,

    /// Messages that one client may have under way in all
    #[arg(long, value_name = "N", default_value_t = Limits::default().client_messages)]
    client_messages: usize,

    /// What may be under way on a link or to a legacy server, or wait for it, before senders are held
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().link_bytes)]
    link_bytes: usize,

    /// Messages likewise
    #[arg(long, value_name = "N", default_value_t = Limits::default().link_messages)]
    link_messages: usize,

    /// How long a message waits for a node that can't be reached, or for its turn with a legacy server, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "90", value_parser = seconds)]
    link_wait: Duration,

    /// How long a QUIC client whose connection broke may take to come back to its session, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    resume_grace: Duration,

    /// How long a client may take nothing of what is written to it before it is disconnected, in seconds; with --min-rate,
    /// how long it may take for a piece
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    stall: Duration,

    /// How long a legacy client may take to show its token, where it has to, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    login: Duration,
}

/// Where to listen, or that nowhere.
#[derive(Debug, Clone)]
struct Listen(Option<HostPort>);

impl FromStr for Listen {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Ok(Self(match text {
            "off" => None,
            at => Some(at.parse()?),
        }))
    }
}

/// Seconds, with a fraction if need be; at most a year, so that no sum of times overflows.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.0..=31_536_000.0).contains(&number) {
        return Err("not from 0 seconds to a year".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}

impl From<NodeArgs> for Config {
    fn from(args: NodeArgs) -> Self {
        Self {
            tcp: args.tcp.0,
            tcp_allow: args.tcp_allow,
            quic: args.quic,
            link: args.link,
            advertise: args.advertise,
            peers: args.peers,
            redis: args.redis.config(),
            legacy_nodes: args.legacy_nodes,
            allowed_nodes: args.allowed_nodes,
            clients: args.clients,
            insecure_open: args.insecure_open,
            certs: args.certs,
            grace: args.grace,
            congestion: args.congestion,
            limits: Limits {
                max_message: args.limits.max_message,
                max_clients: args.limits.max_clients,
                max_per_source: args.limits.max_per_source,
                max_handshakes: args.limits.max_handshakes,
                max_handshakes_per_source: args.limits.max_handshakes_per_source,
                hello: args.limits.hello,
                first_line: args.limits.first_line,
                idle: args.limits.idle,
                line_time: args.limits.line_time,
                min_rate: args.limits.min_rate,
                client_message_rate: args.limits.client_message_rate,
                client_byte_rate: args.limits.client_byte_rate,
                miss_rate: args.limits.miss_rate,
                miss_burst: args.limits.miss_burst,
                outbox_bytes: args.limits.outbox_bytes,
                conversation_bytes: args.limits.conversation_bytes,
                client_bytes: args.limits.client_bytes,
                client_messages: args.limits.client_messages,
                link_bytes: args.limits.link_bytes,
                link_messages: args.limits.link_messages,
                link_wait: args.limits.link_wait,
                resume_grace: args.limits.resume_grace,
                stall: args.limits.stall,
                login: args.limits.login,
            },
        }
    }
}

/// Runs a node until a signal ends it.
pub(crate) fn run(args: NodeArgs) -> anyhow::Result<ExitCode> {
    let mut builder = match args.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads.into());
            builder
        }
    };
    let runtime = builder.enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        // Before the ports are bound: whoever finds them open may send a signal.
        let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
        let mut hangup = signal(SignalKind::hangup()).context("can't wait for SIGHUP")?;
        let node = match Node::start(args.into()).await {
            Ok(node) => node,
            Err(error) => {
                eprintln!("trunkline: {error}");
                let code = match error {
                    StartError::Bind { .. } => EXIT_UNAVAILABLE,
                    _ => EXIT_USAGE,
                };
                return Ok(ExitCode::from(code));
            }
        };
        let code = loop {
            tokio::select! {
                _ = interrupt.recv() => break ExitCode::SUCCESS,
                _ = terminate.recv() => break ExitCode::SUCCESS,
                () = node.failed() => break ExitCode::FAILURE,
                _ = hangup.recv() => node.reload(),
            }
        };
        tokio::select! {
            // Whether all had ended in time was logged, and told to the senders.
            _ = node.shutdown() => Ok(code),
            _ = interrupt.recv() => Ok(ExitCode::FAILURE),
            _ = terminate.recv() => Ok(ExitCode::FAILURE),
        }
    })
}
