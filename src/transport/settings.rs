//! Every setting of QUIC with its reason.
//!
//! Links and clients have an endpoint (a UDP port) each: what is right for a few trusted peers is too much for many
//! strangers.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig,
    VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Endpoint;
use crate::config::{Congestion, Limits};
use crate::congestion::{INITIAL_WINDOW, Model};

/// UDP buffers that are asked for, in bytes. Measured: 4 MB in place of the usual 208 KiB gave 1.26 times the messages a
/// second between two nodes; fewer packets are dropped, so fewer are sent again.
const UDP_BUFFER: usize = 4 << 20;

/// The largest packet, in bytes of UDP payload, where the way between two nodes takes such: some networks do (frames of 9,000
/// bytes), and the loopback device. quinn looks for what does get through (RFC 8899). With larger ones the ten that quinn
/// gives the system at once would be more than the 65,507 bytes that IPv4 allows for that. Measured on one machine, against
/// the usual 1,452: bodies of 16 KiB 1.5 times the messages a second, bodies of 128 bytes about 1.05.
const LARGEST_PACKET: u16 = 6_500;

/// Streams with a message that a peer may have open. A slot costs memory whether it is used or not (measured with
/// quinn 0.11.12: 4,096 of them 672 KiB a connection, and with 16,384 a link takes 2.5 MB), and the limit caps the rate at
/// limit / round trip: 330,000 messages a second at 50 ms.
const LINK_STREAMS: u32 = 16_384;

/// The same while the round trip is short, up to this: 800,000 messages a second with it. What is looked up for each message
/// stays in the processor's caches.
const NEAR_STREAMS: u32 = 4_096;
const NEAR: Duration = Duration::from_millis(5);

/// How many streams the peer of a link with this round trip may have open.
pub(crate) fn link_streams(round_trip: Duration) -> u32 {
    if round_trip <= NEAR { NEAR_STREAMS } else { LINK_STREAMS }
}

/// The same until the connection is the link. Each dial and each stranger who knocks takes up that memory: 30 nodes that were
/// away cost one that dialled them 345 MB with as many as a link has.
const GREETING_STREAMS: u32 = 128;

/// The same for a client: about 61 KiB a connection, 2,500 messages a second at 50 ms.
const CLIENT_STREAMS: u32 = 128;

/// How many packets are acknowledged at once, by a peer that knows how to be asked for that, and how long the first of them
/// waits for others; one that comes out of order, as behind a lost one, is acknowledged at once. Where messages come one by
/// one an acknowledgement costs as much as a message.
const ACK_EVERY: u32 = 8;
const ACK_DELAY: Duration = Duration::from_millis(10);

/// Bytes in flight on a link, each way: 320 MB/s at a round trip of 50 ms.
const LINK_WINDOW: u32 = 16 << 20;

/// Bytes in flight of a client, each way.
const CLIENT_WINDOW: u32 = 1 << 20;

/// Half a second of handshake packets lost on the way is noticed after this guess of the round trip times three.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// How long QUIC keeps a link on which nothing is heard. Links ping by themselves and know sooner.
const LINK_IDLE: Duration = Duration::from_secs(15);

/// How long QUIC keeps a client of which nothing is heard, and how often a quiet one is probed.
const CLIENT_IDLE: Duration = Duration::from_secs(30);
const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The same where the client is this library's: it can come back, so it had better find out soon that it must.
const OWN_IDLE: Duration = Duration::from_secs(6);
const OWN_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How many handshakes may wait to be looked at, and what they may send meanwhile (no data is sent early here).
const PENDING_HANDSHAKES: usize = 1024;
const PENDING_BYTES: u64 = 64 * 1024;
const PENDING_BYTES_TOTAL: u64 = 8 << 20;

fn transport(streams: u32, max_message: usize, window: u32, idle: Duration, congestion: Congestion) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_EVERY.into())
        .reordering_threshold(1u32.into())
        .max_ack_delay(Some(ACK_DELAY));
    // A stream must never wait for its own window while the connection has room: a whole message and its header.
    let stream_window = u32::try_from(max_message).unwrap_or(u32::MAX).saturating_add(16 * 1024);
    transport
        .max_concurrent_uni_streams(streams.into())
        // The control stream.
        .max_concurrent_bidi_streams(1u32.into())
        .stream_receive_window(stream_window.into())
        .receive_window(window.max(stream_window).into())
        .send_window(u64::from(window.max(stream_window)))
        // Streams are short: round robin among them would only cost.
        .send_fairness(false)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle_timeout(idle)))
        .initial_rtt(INITIAL_RTT)
        .ack_frequency_config(Some(acks))
        .allow_spin(false)
        .congestion_controller_factory(controllers(congestion));
    transport
}

fn idle_timeout(idle: Duration) -> IdleTimeout {
    let milliseconds = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
    VarInt::from_u32(milliseconds).into()
}

/// How it is found out how large packets may be. A node sends no such to its clients: what a connection once had to send at
/// once it keeps the memory for, up to ten packets.
fn large_packets() -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LARGEST_PACKET);
    discovery
}

fn link_transport(limits: &Limits, congestion: Congestion) -> Arc<TransportConfig> {
    let mut transport = transport(GREETING_STREAMS, limits.max_message, LINK_WINDOW, LINK_IDLE, congestion);
    transport.mtu_discovery_config(Some(large_packets()));
    Arc::new(transport)
}

fn client_transport(max_message: usize, congestion: Congestion) -> TransportConfig {
    let mut transport = transport(CLIENT_STREAMS, max_message, CLIENT_WINDOW, CLIENT_IDLE, congestion);
    transport.keep_alive_interval(Some(CLIENT_KEEP_ALIVE));
    transport
}

fn server_config(crypto: Arc<QuicServerConfig>, transport: Arc<TransportConfig>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(crypto);
    config
        .transport_config(transport)
        .max_incoming(PENDING_HANDSHAKES)
        .incoming_buffer_size(PENDING_BYTES)
        .incoming_buffer_size_total(PENDING_BYTES_TOTAL);
    config
}

/// How links are accepted.
pub(crate) fn link_server(crypto: Arc<QuicServerConfig>, limits: &Limits, congestion: Congestion) -> ServerConfig {
    let mut config = server_config(crypto, link_transport(limits, congestion));
    // A node stays where it is.
    config.migration(false);
    config
}

/// How links are dialled.
pub(crate) fn link_client(crypto: Arc<QuicClientConfig>, limits: &Limits, congestion: Congestion) -> ClientConfig {
    let mut config = ClientConfig::new(crypto);
    config.transport_config(link_transport(limits, congestion));
    config
}

/// How QUIC clients are accepted.
pub(crate) fn client_server(crypto: Arc<QuicServerConfig>, limits: &Limits, congestion: Congestion) -> ServerConfig {
    server_config(crypto, Arc::new(client_transport(limits.max_message, congestion)))
}

/// How a client dials its node. What it may send is for the node to say; what it takes is the largest legal message.
pub(crate) fn client_client(crypto: Arc<QuicClientConfig>) -> ClientConfig {
    let mut config = ClientConfig::new(crypto);
    let mut transport = client_transport(Limits::MOST_MAX_MESSAGE, Congestion::default());
    transport
        .max_idle_timeout(Some(idle_timeout(OWN_IDLE)))
        .keep_alive_interval(Some(OWN_KEEP_ALIVE))
        .mtu_discovery_config(Some(large_packets()));
    config.transport_config(Arc::new(transport));
    config
}

/// Binds a UDP socket with large buffers.
pub(crate) fn bind_udp(addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // The system gives what it allows; less is slower, not wrong.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER);
    let _ = socket.set_send_buffer_size(UDP_BUFFER);
    socket.bind(&addr.into())?;
    let granted = socket.recv_buffer_size()?;
    if granted < UDP_BUFFER {
        warn!(
            %addr, granted, wanted = UDP_BUFFER,
            "the system grants small UDP buffers, so bursts will lose packets: raise net.core.rmem_max and wmem_max"
        );
    }
    Ok(socket.into())
}

/// Makes an endpoint of a socket. Its tasks belong to `tracker`: when those have ended, the port is free. They end by
/// themselves once nobody has the endpoint and all connections are drained, or at once when `end` is cancelled: a closed
/// connection is drained for nine of its round trips (three probe timeouts, RFC 9000, section 10.2), and how long those are is
/// for the other side to say.
pub(crate) fn endpoint(
    mut config: EndpointConfig,
    server: Option<ServerConfig>,
    socket: std::net::UdpSocket,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> io::Result<Endpoint> {
    // A node takes large packets. Room for 2,048 of them is had for each endpoint (of which memory is what comes in), which a
    // client that gets none had better not have. Only sizes that are no packet's are refused.
    if server.is_some() {
        let _ = config.max_udp_payload_size(LARGEST_PACKET);
    }
    Endpoint::new(config, server, socket, tracker, end)
}

/// Makes a controller for each connection.
fn controllers(congestion: Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Model => Arc::new(Models),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::NewReno => Arc::new(NewRenoConfig::default()),
    }
}

/// Makes a [`Model`] for each path.
#[derive(Debug)]
struct Models;

impl ControllerFactory for Models {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Model::new(now, mtu))
    }
}

impl Controller for Model {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        self.sent(now);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &quinn_proto::RttEstimator,
    ) {
        self.acked(now, sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        self.end_acks(now, in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if is_persistent_congestion {
            self.outage(now);
        } else {
            self.lost(lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.allowed()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
