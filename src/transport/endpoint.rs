//! An endpoint: one UDP socket, and the connections that go by it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use quinn_proto::{
    ClientConfig, ConnectError, ConnectionError, ConnectionEvent, ConnectionHandle, DatagramEvent, EcnCodepoint,
    EndpointConfig, EndpointEvent, ServerConfig, Transmit, VarInt,
};
use quinn_udp::{BATCH_SIZE, RecvMeta};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::connection::{Connection, Event};
use super::socket::{Datagrams, Socket};

/// How many events of connections are followed before the other tasks come.
const TURN_EVENTS: usize = 160;

/// Into how many buffers is received while one at a time is enough, of up to [`BATCH_SIZE`]: each of them costs, filled or not.
const QUIET_BATCH: usize = if BATCH_SIZE < 2 { BATCH_SIZE } else { 2 };

/// How many packets may wait for a connection's task; what is over that is as if it were lost on its way. Of packets of 1,452
/// bytes that is more than the socket's own buffer holds.
const MOST_WAITING: usize = 4_096;

/// The most bytes that one packet may have on any way.
const MOST_PACKET: u64 = 64 * 1024;

/// An endpoint. Clones are the same. When nobody has it and all its connections are drained, its task ends and the port
/// is free.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint(Arc<Handle>);

/// What all that have an endpoint share.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.left.store(true, Ordering::Release);
        self.0.driver.wake();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// What an endpoint shares with its task.
struct Shared {
    state: Mutex<State>,
    driver: AtomicWaker,
    /// Nobody has the endpoint.
    left: AtomicBool,
    /// A connection wants in, or none will any more.
    incoming: Notify,
    /// There are no connections.
    idle: Notify,
    /// What connections say to the endpoint.
    events: mpsc::UnboundedSender<(ConnectionHandle, EndpointEvent)>,
    tracker: TaskTracker,
}

struct State {
    protocol: quinn_proto::Endpoint,
    socket: Arc<dyn Datagrams>,
    /// The one before it, which is read until something has come by the present one.
    former: Option<Arc<dyn Datagrams>>,
    incoming: VecDeque<quinn_proto::Incoming>,
    /// What is said to each connection.
    connections: HashMap<ConnectionHandle, Inbox, RandomState>,
    /// With what all connections were closed.
    closed: Option<(VarInt, Bytes)>,
    /// Its task has ended.
    failed: bool,
}

/// Where a connection's task is told what there is.
struct Inbox {
    events: mpsc::UnboundedSender<Event>,
    /// How many packets are in there.
    waiting: Arc<AtomicUsize>,
}

impl Inbox {
    /// Fails when that task has ended, of which the endpoint is about to hear.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn packet(&self, event: ConnectionEvent) {
        if self.waiting.load(Ordering::Relaxed) < MOST_WAITING {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.tell(Event::Packet(event));
        }
    }
}

impl Endpoint {
    /// An endpoint on this socket, with its task and those of its connections on `tracker`. It ends at once when `end` is
    /// cancelled, and they with it. To be called within a Tokio runtime.
    pub(super) fn new(
        config: EndpointConfig,
        server: Option<ServerConfig>,
        socket: std::net::UdpSocket,
        tracker: &TaskTracker,
        end: &CancellationToken,
    ) -> io::Result<Self> {
        let socket: Arc<dyn Datagrams> = Arc::new(Socket::new(socket)?);
        let (_, segments) = socket.most_segments();
        let packet = config.get_max_udp_payload_size().min(MOST_PACKET);
        let room = usize::try_from(packet).unwrap_or(usize::MAX).saturating_mul(segments);
        let find_size = !socket.may_fragment();
        let protocol = quinn_proto::Endpoint::new(Arc::new(config), server.map(Arc::new), find_size, None);
        let (sender, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                protocol,
                socket,
                former: None,
                incoming: VecDeque::new(),
                connections: HashMap::default(),
                closed: None,
                failed: false,
            }),
            driver: AtomicWaker::new(),
            left: AtomicBool::new(false),
            incoming: Notify::new(),
            idle: Notify::new(),
            events: sender,
            tracker: tracker.clone(),
        });
        let driver = Driver {
            shared: Arc::clone(&shared),
            events,
            // Of which memory is what something was received into.
            buffer: vec![0; room * BATCH_SIZE].into(),
            metas: [RecvMeta::default(); BATCH_SIZE],
            is_busy: false,
        };
        tracker.spawn(end.clone().run_until_cancelled_owned(driver));
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Waits for the next connection that wants in; `None` once the endpoint is closed or has failed. Cancel safe.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        let shared = &*self.0.0;
        loop {
            // Before it is looked: what comes in between is noticed.
            let more = shared.incoming.notified();
            {
                let mut state = shared.state.lock();
                if state.failed {
                    return None;
                }
                if let Some(incoming) = state.incoming.pop_front() {
                    return Some(Incoming {
                        remote: incoming.remote_address(),
                        incoming: Some(incoming),
                        endpoint: self.clone(),
                    });
                }
                if state.closed.is_some() {
                    return None;
                }
            }
            more.await;
        }
    }

    /// Dials; the certificate of who answers must hold for `server_name`. The connection is closed if the future is dropped.
    pub(crate) fn connect(
        &self,
        config: ClientConfig,
        addr: SocketAddr,
        server_name: &str,
    ) -> Result<impl Future<Output = Result<Connection, ConnectionError>> + Send + use<>, ConnectError> {
        let shared = &*self.0.0;
        let mut state = shared.state.lock();
        if state.failed || state.closed.is_some() {
            return Err(ConnectError::EndpointStopping);
        }
        let addr = match (addr, state.socket.local_addr()) {
            (SocketAddr::V4(v4), Ok(SocketAddr::V6(_))) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            (SocketAddr::V6(_), Ok(SocketAddr::V4(_))) => return Err(ConnectError::InvalidRemoteAddress(addr)),
            _ => addr,
        };
        let (handle, protocol) = state.protocol.connect(Instant::now(), config, addr, server_name)?;
        let connection = shared.insert(&mut state, handle, protocol);
        Ok(connection.established())
    }

    /// Goes by another socket from now on, with all connections.
    pub(crate) fn rebind(&self, socket: std::net::UdpSocket) -> io::Result<()> {
        let socket: Arc<dyn Datagrams> = Arc::new(Socket::new(socket)?);
        self.rebind_to(&socket);
        Ok(())
    }

    pub(crate) fn rebind_to(&self, socket: &Arc<dyn Datagrams>) {
        let shared = &*self.0.0;
        let state = &mut *shared.state.lock();
        state.former = Some(std::mem::replace(&mut state.socket, Arc::clone(socket)));
        state.tell(|| Event::Rebind(Arc::clone(socket)));
        // It has to be told when there is something to be read from the new one.
        shared.driver.wake();
    }

    /// How connections are accepted from now on.
    pub(crate) fn set_server_config(&self, config: ServerConfig) {
        self.0.0.state.lock().protocol.set_server_config(Some(Arc::new(config)));
    }

    /// Where its socket is bound.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.0.state.lock().socket.local_addr()
    }

    /// How many connections there are, with those that were closed and are not drained yet.
    pub(crate) fn open_connections(&self) -> usize {
        self.0.0.state.lock().protocol.open_connections()
    }

    /// Closes all connections, and accepts none any more.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        let reason = Bytes::copy_from_slice(reason);
        let shared = &*self.0.0;
        let mut state = shared.state.lock();
        state.closed = Some((code, reason.clone()));
        state.tell(|| Event::Close(code, reason.clone()));
        shared.incoming.notify_waiters();
    }

    /// Waits until all connections are drained. Cancel safe.
    pub(crate) async fn wait_idle(&self) {
        let shared = &*self.0.0;
        loop {
            let idle = shared.idle.notified();
            if shared.state.lock().connections.is_empty() {
                return;
            }
            idle.await;
        }
    }
}

impl Shared {
    /// Sets a new connection going.
    fn insert(&self, state: &mut State, handle: ConnectionHandle, protocol: quinn_proto::Connection) -> Connection {
        let (sender, events) = mpsc::unbounded_channel();
        let inbox = Inbox {
            events: sender,
            waiting: Arc::default(),
        };
        if let Some((code, reason)) = &state.closed {
            inbox.tell(Event::Close(*code, reason.clone()));
        }
        let to_endpoint = (self.events.clone(), Arc::clone(&inbox.waiting));
        state.connections.insert(handle, inbox);
        let socket = Arc::clone(&state.socket);
        let (connection, driver) = Connection::new(handle, protocol, events, to_endpoint, socket);
        self.tracker.spawn(driver);
        connection
    }
}

impl State {
    fn tell(&self, event: impl Fn() -> Event) {
        for connection in self.connections.values() {
            connection.tell(event());
        }
    }

    /// Answers for no connection. Where the system has no room it is as if the answer were lost on its way.
    fn respond(&self, transmit: &Transmit, contents: &[u8]) {
        let _ = self.socket.send(&datagram(transmit, contents));
    }

    /// Follows one datagram. Says whether it was a connection's.
    fn follow(&mut self, now: Instant, meta: &RecvMeta, datagram: BytesMut) -> bool {
        let ecn = meta.ecn.map(|ecn| match ecn {
            quinn_udp::EcnCodepoint::Ect0 => EcnCodepoint::Ect0,
            quinn_udp::EcnCodepoint::Ect1 => EcnCodepoint::Ect1,
            quinn_udp::EcnCodepoint::Ce => EcnCodepoint::Ce,
        });
        let mut answer = Vec::new();
        match self
            .protocol
            .handle(now, meta.addr, meta.dst_ip, ecn, datagram, &mut answer)
        {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = self.connections.get(&handle) {
                    connection.packet(event);
                }
                return true;
            }
            Some(DatagramEvent::NewConnection(incoming)) if self.closed.is_none() => self.incoming.push_back(incoming),
            Some(DatagramEvent::NewConnection(incoming)) => {
                let transmit = self.protocol.refuse(incoming, &mut answer);
                self.respond(&transmit, &answer);
            }
            Some(DatagramEvent::Response(transmit)) => self.respond(&transmit, &answer),
            None => {}
        }
        false
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for incoming in self.incoming.drain(..) {
            self.protocol.ignore(incoming);
        }
    }
}

/// As the system takes it.
pub(super) fn datagram<'a>(transmit: &Transmit, contents: &'a [u8]) -> quinn_udp::Transmit<'a> {
    quinn_udp::Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn.map(|ecn| match ecn {
            EcnCodepoint::Ect0 => quinn_udp::EcnCodepoint::Ect0,
            EcnCodepoint::Ect1 => quinn_udp::EcnCodepoint::Ect1,
            EcnCodepoint::Ce => quinn_udp::EcnCodepoint::Ce,
        }),
        contents,
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    }
}

/// The task of an endpoint. It ends when nobody has the endpoint and there are no connections, or with the socket.
struct Driver {
    shared: Arc<Shared>,
    events: mpsc::UnboundedReceiver<(ConnectionHandle, EndpointEvent)>,
    buffer: Box<[u8]>,
    metas: [RecvMeta; BATCH_SIZE],
    /// All buffers that there were for it were filled the last time.
    is_busy: bool,
}

impl Driver {
    /// Takes in what has come, once around. Says whether there may be more.
    fn receive(&mut self, cx: &mut Context<'_>, state: &mut State) -> io::Result<bool> {
        let mut more_of_former = false;
        if let Some(former) = state.former.clone() {
            match self.receive_from(&*former, cx, state) {
                Ok((more, _)) => more_of_former = more,
                // What is wrong with it concerns nobody.
                Err(_) => state.former = None,
            }
        }
        let socket = Arc::clone(&state.socket);
        let (more, known) = self.receive_from(&*socket, cx, state)?;
        if known {
            state.former = None;
        }
        Ok(more || more_of_former)
    }

    /// Says too whether something was for a connection that there is.
    fn receive_from(
        &mut self,
        socket: &dyn Datagrams,
        cx: &mut Context<'_>,
        state: &mut State,
    ) -> io::Result<(bool, bool)> {
        let mut known = false;
        loop {
            let room = if self.is_busy { BATCH_SIZE } else { QUIET_BATCH };
            let mut pieces = self.buffer.chunks_mut(self.buffer.len() / BATCH_SIZE);
            let mut buffers: [_; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(pieces.next().unwrap_or_default()));
            let (buffers, _) = buffers.split_at_mut(room);
            let count = match socket.poll_receive(cx, buffers, &mut self.metas) {
                Poll::Ready(Ok(count)) => count,
                // Undefined in QUIC; whoever may send to this port can bring it about.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok((false, known)),
            };
            let now = Instant::now();
            for (meta, buffer) in self.metas.iter().zip(buffers).take(count) {
                let mut data = BytesMut::from(buffer.get(..meta.len).unwrap_or_default());
                while !data.is_empty() {
                    let datagram = data.split_to(meta.stride.clamp(1, data.len()));
                    known |= state.follow(now, meta, datagram);
                }
            }
            self.is_busy = count == room;
            if count == BATCH_SIZE {
                return Ok((true, known));
            }
        }
    }

    /// Follows what connections say. Says whether there may be more.
    fn follow(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        for _ in 0..TURN_EVENTS {
            // Never ends: the endpoint has a sender itself.
            let Poll::Ready(Some((handle, event))) = self.events.poll_recv(cx) else {
                return false;
            };
            if event.is_drained() {
                state.connections.remove(&handle);
                if state.connections.is_empty() {
                    self.shared.idle.notify_waiters();
                }
            }
            if let Some(answer) = state.protocol.handle_event(handle, event)
                && let Some(connection) = state.connections.get(&handle)
            {
                connection.tell(Event::Identifiers(answer));
            }
        }
        true
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let shared = Arc::clone(&this.shared);
        shared.driver.register(cx.waker());
        let mut state = shared.state.lock();
        let more = match this.receive(cx, &mut state) {
            Ok(more) => more,
            Err(error) => {
                error!("a UDP socket has failed: {error}");
                return Poll::Ready(());
            }
        };
        let more = this.follow(cx, &mut state) || more;
        if !state.incoming.is_empty() {
            shared.incoming.notify_waiters();
        }
        if shared.left.load(Ordering::Acquire) && state.connections.is_empty() {
            return Poll::Ready(());
        }
        if more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.failed = true;
        // They see that nothing will come any more.
        state.connections.clear();
        self.shared.incoming.notify_waiters();
        self.shared.idle.notify_waiters();
    }
}

/// A connection that wants in. Refused when it is dropped.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// `None` once it was decided on.
    incoming: Option<quinn_proto::Incoming>,
    remote: SocketAddr,
    endpoint: Endpoint,
}

impl Incoming {
    /// Where it comes from.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// Whether it is known that it really comes from there.
    pub(crate) fn is_validated(&self) -> bool {
        self.incoming
            .as_ref()
            .is_some_and(quinn_proto::Incoming::remote_address_validated)
    }

    /// Asks for a proof of the address, where that is possible; else it is refused.
    pub(crate) fn retry(mut self) {
        self.decide(|state, incoming, answer| match state.protocol.retry(incoming, answer) {
            Ok(transmit) => Some(transmit),
            Err(error) => Some(state.protocol.refuse(error.into_incoming(), answer)),
        });
    }

    /// Whether a proof of the address can be asked for.
    pub(crate) fn may_retry(&self) -> bool {
        self.incoming.as_ref().is_some_and(quinn_proto::Incoming::may_retry)
    }

    /// Says that it is not wanted.
    pub(crate) fn refuse(mut self) {
        self.refuse_now();
    }

    /// Says nothing.
    pub(crate) fn ignore(mut self) {
        self.decide(|state, incoming, _| {
            state.protocol.ignore(incoming);
            None
        });
    }

    /// Shakes hands. The connection is closed if the future is dropped.
    pub(crate) async fn accept(mut self) -> Result<Connection, ConnectionError> {
        let connection = self.begin(None)?;
        connection.established().await
    }

    /// The same, by this in place of what the endpoint accepts connections by.
    pub(crate) async fn accept_with(mut self, config: ServerConfig) -> Result<Connection, ConnectionError> {
        let connection = self.begin(Some(Arc::new(config)))?;
        connection.established().await
    }

    fn begin(&mut self, config: Option<Arc<ServerConfig>>) -> Result<Connection, ConnectionError> {
        let shared = &*self.endpoint.0.0;
        let Some(incoming) = self.incoming.take() else {
            return Err(ConnectionError::LocallyClosed);
        };
        let mut state = shared.state.lock();
        if state.failed {
            state.protocol.ignore(incoming);
            return Err(ConnectionError::LocallyClosed);
        }
        let mut answer = Vec::new();
        match state.protocol.accept(incoming, Instant::now(), &mut answer, config) {
            Ok((handle, protocol)) => Ok(shared.insert(&mut state, handle, protocol)),
            Err(error) => {
                if let Some(transmit) = error.response {
                    state.respond(&transmit, &answer);
                }
                Err(error.cause)
            }
        }
    }

    fn refuse_now(&mut self) {
        self.decide(|state, incoming, answer| Some(state.protocol.refuse(incoming, answer)));
    }

    fn decide(&mut self, what: impl FnOnce(&mut State, quinn_proto::Incoming, &mut Vec<u8>) -> Option<Transmit>) {
        let Some(incoming) = self.incoming.take() else {
            return;
        };
        let mut state = self.endpoint.0.0.state.lock();
        let mut answer = Vec::new();
        if let Some(transmit) = what(&mut state, incoming, &mut answer) {
            state.respond(&transmit, &answer);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.refuse_now();
    }
}
