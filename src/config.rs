//! What a node can be told: where to listen, whom to link to, and its limits, each with its default and the reason.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::{AddressError, HostPort, NodeName};
use crate::delivery::Bounds;
use crate::flow::Window;
use crate::network::Network;
use crate::pace::Pace;
pub use crate::redis::{RedisUrl, UrlError};

/// The port that clients know nodes by where none is given.
pub const DEFAULT_PORT: u16 = 1215;

/// How far the port for links lies above the port for clients where none is given.
pub const LINK_PORT_OFFSET: u16 = 1000;

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where legacy clients connect, TCP. Port 0: any free one. `None`: nowhere.
    pub tcp: Option<HostPort>,
    /// Where legacy clients may come from, beside this machine. Empty: from nowhere else.
    pub tcp_allow: Vec<Network>,
    /// Where QUIC clients connect, UDP. `None`: the host and the port that `tcp` was bound to, or without it the default
    /// of `tcp`.
    pub quic: Option<HostPort>,
    /// Where other nodes connect, UDP. `None`: the host of `quic` and its port + 1000.
    pub link: Option<HostPort>,
    /// The node's name. `None`: the TCP address that was bound, or without one the QUIC address.
    pub advertise: Option<NodeName>,
    /// Nodes to link to. Nodes that dial this one need not be named.
    pub peers: Vec<Peer>,
    /// Redis, or Valkey, by which nodes find each other, and by which links go where there is no way straight.
    pub redis: Option<Redis>,
    /// Legacy servers whose clients can be written to, and can write to clients here. Each is known by its name, where
    /// its TCP port is, too; and trusted by the IP addresses that its host stands for.
    pub legacy_nodes: Vec<NodeName>,
    /// The only nodes that links are had with, beside `peers`. Empty: all that have a certificate of the cluster.
    pub allowed_nodes: Vec<NodeName>,
    /// What lets a client in.
    pub clients: ClientRule,
    /// The node may be reached from beyond this machine by clients that show nothing, and legacy clients may come from
    /// anywhere unless `tcp_allow` says from where. Otherwise it does not start so.
    pub insecure_open: bool,
    /// Where the certificates and the keys of tokens are. They are looked at every second, and read again when they have
    /// changed.
    pub certs: PathBuf,
    /// How long a shutdown may take before what is left is given up.
    pub grace: Duration,
    /// How much may be in flight on links and to QUIC clients.
    pub congestion: Congestion,
    /// The limits.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tcp: Some(default_listen()),
            tcp_allow: Vec::new(),
            quic: None,
            link: None,
            advertise: None,
            peers: Vec::new(),
            redis: None,
            legacy_nodes: Vec::new(),
            allowed_nodes: Vec::new(),
            clients: ClientRule::default(),
            insecure_open: false,
            certs: PathBuf::from("certs"),
            grace: Duration::from_secs(10),
            congestion: Congestion::default(),
            limits: Limits::default(),
        }
    }
}

/// Where clients connect where nothing is said.
pub(crate) fn default_listen() -> HostPort {
    std::net::SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)).into()
}

/// How Redis is reached: one server, or a cluster.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Where to look first, one or more; the servers of a cluster are found from there.
    pub urls: Vec<RedisUrl>,
    /// What the names of all channels and keys begin with: up to 64 letters, digits, `.`, `_`, `-`. The same at all nodes.
    pub prefix: String,
    /// The authorities of its certificates, a file in PEM, for `rediss://`. `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Whether `redis://` may lead to other machines.
    pub plaintext: bool,
}

/// Another node to link to: `NAME[=LINK_HOST:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, which its certificate must hold.
    pub name: NodeName,
    /// Where it listens for links.
    pub link: HostPort,
}

impl FromStr for Peer {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (name, link) = match text.split_once('=') {
            Some((name, link)) => (name.parse()?, Some(link.parse::<HostPort>()?)),
            None => (text.parse::<NodeName>()?, None),
        };
        let link = match link {
            Some(link) if link.port() == 0 => return Err(AddressError::BadPort),
            Some(link) => link,
            None => {
                let port = name.port().checked_add(LINK_PORT_OFFSET).ok_or(AddressError::BadPort)?;
                HostPort::from(name.clone()).with_port(port)
            }
        };
        Ok(Self { name, link })
    }
}

/// What lets a client in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ClientRule {
    /// Whoever comes, by TCP or QUIC, and gets an id that the node gives out.
    #[default]
    Open,
    /// A certificate of the client authority, which names the client's id. Only QUIC clients can show one.
    Certificate,
    /// A token, which names the client's id and says what it may do.
    Token,
    /// Either of the two.
    CertificateOrToken,
}

/// There is no rule of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of open, certificate, token and certificate,token")]
pub struct UnknownClientRule;

impl ClientRule {
    /// Whether a client may show a token.
    pub(crate) fn takes_tokens(self) -> bool {
        matches!(self, Self::Token | Self::CertificateOrToken)
    }
}

impl FromStr for ClientRule {
    type Err = UnknownClientRule;

    fn from_str(text: &str) -> Result<Self, UnknownClientRule> {
        match text {
            "open" => Ok(Self::Open),
            "certificate" => Ok(Self::Certificate),
            "token" => Ok(Self::Token),
            "certificate,token" | "token,certificate" => Ok(Self::CertificateOrToken),
            _ => Err(UnknownClientRule),
        }
    }
}

impl fmt::Display for ClientRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::CertificateOrToken => "certificate,token",
        })
    }
}

/// What decides how much may be in flight on a QUIC connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Congestion {
    /// Trunkline's own: by the rate and the round trip that were measured. Losses by chance cost no more than what was
    /// lost, and connections that fill a path share it.
    #[default]
    Model,
    /// quinn's BBR.
    Bbr,
    /// quinn's Cubic.
    Cubic,
    /// quinn's NewReno.
    NewReno,
}

/// There is no controller of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of model, bbr, cubic and new-reno")]
pub struct UnknownCongestion;

impl Congestion {
    const ALL: [Self; 4] = [Self::Model, Self::Bbr, Self::Cubic, Self::NewReno];

    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Bbr => "bbr",
            Self::Cubic => "cubic",
            Self::NewReno => "new-reno",
        }
    }
}

impl FromStr for Congestion {
    type Err = UnknownCongestion;

    fn from_str(text: &str) -> Result<Self, UnknownCongestion> {
        Self::ALL
            .into_iter()
            .find(|one| one.name() == text)
            .ok_or(UnknownCongestion)
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The limits of a node. Bytes of messages count each message's body and
/// [`MESSAGE_OVERHEAD`](crate::MESSAGE_OVERHEAD).
///
/// What a node may hold of messages in all is at most, and one message more for each:
///
/// - for each client, `outbox_bytes` on the way to it, and from it `client_bytes` under way; of a legacy client one line
///   and 64 KiB that are being read, of a QUIC client `client_bytes` in streams that have not ended;
/// - for each link, `link_bytes` out, and as much in;
/// - for each legacy server, `link_bytes` out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest body in bytes. A legacy client's line may have 1,024 bytes more, for the rest of the JSON. 1 MiB:
    /// relays of small messages need no more, and a reader at 1 MB/s waits a second for one.
    pub max_message: usize,
    /// Clients connected at once, over TCP and QUIC. 10,000: with idle ones the node stays under a few hundred MB.
    pub max_clients: usize,
    /// Clients connected at once from one source: an IPv4 address, or an IPv6 network of 64 bits. 1,024: an office behind
    /// one address has room, and it takes ten such sources to take all places.
    pub max_per_source: usize,
    /// QUIC connections on their way to their greeting at once; links likewise, beside them. 1,024: at 61 KiB each some
    /// 64 MB, and at a round trip of 200 ms 2,500 new clients a second.
    pub max_handshakes: usize,
    /// The same from one source. 64: a sixteenth, so that no one source can lock out
    /// others, and still 160 new clients a second at a round trip of 200 ms.
    pub max_handshakes_per_source: usize,
    /// How long a QUIC client may take from its first packet to the end of its `hello`. 5 s: the handshake takes two round
    /// trips, and a lost packet of it is sent again after one second at the most.
    pub hello: Duration,
    /// How long a legacy client may take for its first line. `None`, the default: for ever, as one that only listens never
    /// says a word.
    pub first_line: Option<Duration>,
    /// How long a client may be connected without a message from it or to it. `None`, the default: for ever, as who waits
    /// for a message may wait for long.
    pub idle: Option<Duration>,
    /// How long a line that was begun, or the stream of a message of a QUIC client, may take to its end, beside its bytes at
    /// `min_rate`. 60 s: a person at a terminal that sends as it is typed may think.
    pub line_time: Duration,
    /// The bytes a second that what is being sent, in either direction, must keep up beyond `line_time` and `stall`. 4,096:
    /// 33 kbit/s, which a telephone modem gave.
    pub min_rate: u32,
    /// Messages a second that a client may send; over it, it is held. It may have a burst of one second's worth. `None`, the
    /// default: as many as it can, as its window and its turns already keep it from harming the others.
    pub client_message_rate: Option<NonZeroU32>,
    /// Bytes a second that a client may send, of lines or bodies; over it, it is held. It may have a burst of one second's
    /// worth, or of the largest message if that is more. `None`, the default: likewise.
    pub client_byte_rate: Option<NonZeroU32>,
    /// Misses (messages for a client that is not there, each time another) a second that a source may have after a burst;
    /// over it, its clients are held. 1: more than a person's mistakes, and the 531,441 shortest ids take six days.
    pub miss_rate: NonZeroU32,
    /// The burst of misses. 100: who comes back to a list of addresses after a restart may find that many gone.
    pub miss_burst: NonZeroU32,
    /// Bytes that may wait to be written to one client before messages to it are refused (`recipient-full`). 16 MiB:
    /// room for 32 senders at a full conversation window.
    pub outbox_bytes: usize,
    /// Bytes that one client may have under way to one recipient before it is not read from for a while. 512 KiB:
    /// about 10 MB/s at a round trip of 50 ms.
    pub conversation_bytes: usize,
    /// Bytes that one client may have under way in all. 2 MiB: four conversations at full speed.
    pub client_bytes: usize,
    /// Messages that one client may have under way in all. 8,192: what `client_bytes` is worth in small messages.
    pub client_messages: usize,
    /// Bytes that may be under way on one link, or to one legacy server, or wait for it, before senders are held. 64
    /// MiB: a minute of 2,000 small messages a second.
    pub link_bytes: usize,
    /// Messages likewise. 262,144: what `link_bytes` is worth in messages without a body.
    pub link_messages: usize,
    /// How long a message waits for a node that can't be reached before it ends as `node-unreachable`; for a legacy
    /// server, how long it waits for its turn, or for the message before it in its conversation. 90 s: longer than a
    /// reboot of most machines.
    pub link_wait: Duration,
    /// How long a QUIC client whose connection broke may take to come back to its session. 30 s: a change of network,
    /// not a night's sleep.
    pub resume_grace: Duration,
    /// How long a client may take nothing of what is to be written to it before it is disconnected; what is being
    /// written, a piece of up to 256 KiB or a QUIC client's message, has this time and its bytes at `min_rate` to get
    /// through. 30 s: a stopped laptop is no reason, a dead one is.
    pub stall: Duration,
    /// How long a legacy client may take to show its token, where it has to. 10 s: programs need none of it, and a
    /// person that pastes one has the time.
    pub login: Duration,
}

/// The default burst of misses.
const MISS_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

/// What one client may send in a second; `None` is without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rate {
    /// Messages: lines, of a legacy client.
    pub(crate) messages: Option<NonZeroU32>,
    /// Bytes of lines or bodies.
    pub(crate) bytes: Option<NonZeroU32>,
}

impl Rate {
    /// Whether there is any limit.
    pub(crate) fn is_limited(self) -> bool {
        self != Self::default()
    }

    /// Where both limit, the less of the two.
    pub(crate) fn and(self, other: Self) -> Self {
        let less = |one: Option<NonZeroU32>, other: Option<NonZeroU32>| one.into_iter().chain(other).min();
        Self {
            messages: less(self.messages, other.messages),
            bytes: less(self.bytes, other.bytes),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: 1 << 20,
            max_clients: 10_000,
            max_per_source: 1024,
            max_handshakes: 1024,
            max_handshakes_per_source: 64,
            hello: Duration::from_secs(5),
            first_line: None,
            idle: None,
            line_time: Duration::from_secs(60),
            min_rate: 4096,
            client_message_rate: None,
            client_byte_rate: None,
            miss_rate: NonZeroU32::MIN,
            miss_burst: MISS_BURST,
            outbox_bytes: 16 << 20,
            conversation_bytes: 512 << 10,
            client_bytes: 2 << 20,
            client_messages: 8192,
            link_bytes: 64 << 20,
            link_messages: 262_144,
            link_wait: Duration::from_secs(90),
            resume_grace: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            login: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The smallest legal `max_message`, in bytes: less is no message.
    pub const LEAST_MAX_MESSAGE: usize = 1;
    /// The largest legal `max_message`, in bytes: messages are held in memory whole.
    pub const MOST_MAX_MESSAGE: usize = 64 << 20;

    /// The longest line of a legacy client, in bytes, without its line end.
    pub(crate) fn max_line(&self) -> usize {
        self.max_message + 1024
    }

    /// What a client may have under way.
    pub(crate) fn window(&self) -> Window {
        Window {
            messages: self.client_messages,
            bytes: self.client_bytes,
            conversation_bytes: self.conversation_bytes,
        }
    }

    /// What a client may send in a second, where nothing else is said for it.
    pub(crate) fn rate(&self) -> Rate {
        Rate {
            messages: self.client_message_rate,
            bytes: self.client_byte_rate,
        }
    }

    /// What is asked of who sends a line or a message.
    pub(crate) fn sender_pace(&self) -> Pace {
        Pace {
            time: self.line_time,
            rate: self.min_rate,
        }
    }

    /// What is asked of who reads.
    pub(crate) fn reader_pace(&self) -> Pace {
        Pace {
            time: self.stall,
            rate: self.min_rate,
        }
    }

    /// What may be under way on a link, in each direction.
    pub(crate) fn link(&self) -> Bounds {
        Bounds {
            messages: self.link_messages,
            bytes: self.link_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_where_its_links_are() {
        for (text, name, link) in [
            ("127.0.0.1:1215", "127.0.0.1:1215", "127.0.0.1:2215"),
            ("[::1]:1215", "[::1]:1215", "[::1]:2215"),
            ("a.example:1215=10.0.0.1:99", "a.example:1215", "10.0.0.1:99"),
        ] {
            let peer: Peer = text.parse().unwrap();
            assert_eq!((peer.name.as_str(), peer.link.as_str()), (name, link));
        }
        for text in ["", "a", "a:0", "a:65000", "a:1=", "a:1=b", "a:1=b:0"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_rule_has_a_name_and_no_other_rule_can_be_named() {
        use ClientRule::{Certificate, CertificateOrToken, Open, Token};
        for (text, rule) in [
            ("open", Open),
            ("certificate", Certificate),
            ("token", Token),
            ("certificate,token", CertificateOrToken),
            ("token,certificate", CertificateOrToken),
        ] {
            assert_eq!(text.parse(), Ok(rule));
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        for text in ["", "Open", "open,token", "token,token", "certificate, token", "none"] {
            assert_eq!(text.parse::<ClientRule>(), Err(UnknownClientRule), "{text}");
        }
    }

    #[test]
    fn each_controller_has_a_name() {
        for one in Congestion::ALL {
            assert_eq!(one.to_string().parse(), Ok(one));
        }
        assert_eq!("reno".parse::<Congestion>(), Err(UnknownCongestion));
    }
}
