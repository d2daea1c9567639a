//! A connection, and the task that drives it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use quinn_proto::{
    ConnectionError, ConnectionEvent, ConnectionHandle, Dir, EndpointEvent, StreamEvent, StreamId, Transmit,
    TransportError, TransportErrorCode, VarInt,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Sleep, sleep_until};

use super::control::{RecvStream, SendStream};
use super::endpoint::datagram;
use super::messages::Arrivals;
use super::socket::{Datagrams, Writable};

/// How many packets are given to the system at once: with many more, what they are put together in takes memory and gains
/// nothing.
const BURST_PACKETS: usize = 10;

/// How many packets are sent before the other tasks come, among them who has packets to take in.
const TURN_PACKETS: usize = 20;

/// What an endpoint says to a connection.
#[derive(Debug)]
pub(super) enum Event {
    Packet(ConnectionEvent),
    /// By which the other side may name the connection.
    Identifiers(ConnectionEvent),
    Rebind(Arc<dyn Datagrams>),
    Close(VarInt, Bytes),
}

/// A connection. Clones are the same; when the last one is dropped, with its streams, it is closed with code 0.
#[derive(Debug, Clone)]
pub(crate) struct Connection(Arc<Handle>);

/// What all that have a connection share.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(VarInt::from_u32(0), Bytes::new());
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// What a connection shares with its task.
struct Shared {
    state: Mutex<State>,
    /// It is established, or lost.
    changed: Notify,
}

pub(super) struct State {
    pub(super) protocol: quinn_proto::Connection,
    is_established: bool,
    /// Why it is no more.
    lost: Option<ConnectionError>,
    /// Wakes its task, which takes it away meanwhile.
    driver: Option<Waker>,
    /// Who waits for the control stream: for it to be there, to be read, to be written to.
    pub(super) opened: Option<Waker>,
    pub(super) readable: Option<Waker>,
    /// There may be something to be read of it.
    pub(super) may_be_read: bool,
    pub(super) writable: Option<Waker>,
    /// Who waits for a message, and what there is of them.
    pub(super) arrivals: Arrivals,
    /// Who waits for a message to be written.
    pub(super) departures: Option<Waker>,
}

impl Connection {
    pub(super) fn new(
        handle: ConnectionHandle,
        protocol: quinn_proto::Connection,
        events: mpsc::UnboundedReceiver<Event>,
        (endpoint, waiting): (
            mpsc::UnboundedSender<(ConnectionHandle, EndpointEvent)>,
            Arc<AtomicUsize>,
        ),
        socket: Arc<dyn Datagrams>,
    ) -> (Self, Driver) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                protocol,
                is_established: false,
                lost: None,
                driver: None,
                opened: None,
                readable: None,
                may_be_read: true,
                writable: None,
                arrivals: Arrivals::default(),
                departures: None,
            }),
            changed: Notify::new(),
        });
        let driver = Driver {
            shared: Arc::clone(&shared),
            handle,
            events,
            waiting,
            endpoint,
            socket,
            writable: None,
            unsent: None,
            packets: Vec::new(),
            timer: None,
        };
        (Self(Arc::new(Handle(shared))), driver)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.state.lock()
    }

    /// Waits until hands are shaken.
    pub(super) async fn established(self) -> Result<Self, ConnectionError> {
        loop {
            // Before it is looked: what comes in between is noticed.
            let changed = self.0.0.changed.notified();
            {
                let state = self.state();
                if state.is_established {
                    break;
                }
                if let Some(lost) = &state.lost {
                    return Err(lost.clone());
                }
            }
            changed.await;
        }
        Ok(self)
    }

    /// Waits until it is no more, and says why. Cancel safe.
    pub(crate) async fn closed(&self) -> ConnectionError {
        loop {
            let changed = self.0.0.changed.notified();
            if let Some(lost) = &self.state().lost {
                return lost.clone();
            }
            changed.await;
        }
    }

    /// Why it is no more, if it is.
    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        self.state().lost.clone()
    }

    /// Closes it at once; the other side is told the code and the reason. What was not sent yet is not sent any more.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        self.0.0.close(code, Bytes::copy_from_slice(reason));
    }

    /// Where the other side is.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.state().protocol.remote_address()
    }

    /// The present estimate of the round trip.
    pub(crate) fn rtt(&self) -> Duration {
        self.state().protocol.rtt()
    }

    /// What the other side has proved to be, as the TLS library says it.
    pub(crate) fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.state().protocol.crypto_session().peer_identity()
    }

    /// How many unidirectional streams the other side may have open.
    pub(crate) fn set_max_concurrent_uni_streams(&self, count: VarInt) {
        let mut state = self.state();
        state.protocol.set_max_concurrent_streams(Dir::Uni, count);
        // The other side may have to be told.
        state.wake_driver();
    }

    /// Opens the control stream. Of one task. Cancel safe.
    pub(crate) async fn open_control(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.control(|protocol| protocol.streams().open(Dir::Bi)).await
    }

    /// Waits for the other side to open the control stream. Of one task. Cancel safe.
    pub(crate) async fn accept_control(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.control(|protocol| protocol.streams().accept(Dir::Bi)).await
    }

    async fn control(
        &self,
        get: impl Fn(&mut quinn_proto::Connection) -> Option<StreamId>,
    ) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = std::future::poll_fn(|cx| {
            let mut state = self.state();
            if let Some(id) = get(&mut state.protocol) {
                return Poll::Ready(Ok(id));
            }
            let lost = state.lost.clone();
            lost.map_or_else(|| wait(&mut state.opened, cx), |lost| Poll::Ready(Err(lost)))
        })
        .await?;
        Ok((SendStream::new(self.clone(), id), RecvStream::new(self.clone(), id)))
    }
}

#[cfg(test)]
impl Connection {
    pub(super) fn lost_packets(&self) -> u64 {
        self.state().protocol.stats().path.lost_packets
    }

    /// Waits until the other side has as many streams open as it may.
    pub(super) async fn is_full(&self) {
        let is_full = || {
            let protocol = &mut self.state().protocol;
            protocol.streams().remote_open_streams(Dir::Uni) >= protocol.max_concurrent_streams(Dir::Uni)
        };
        while !is_full() {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until all that was written to unidirectional streams has arrived.
    pub(super) async fn all_acknowledged(&self) {
        // One is the control stream.
        while self.state().protocol.streams().send_streams() > 1 {
            tokio::task::yield_now().await;
        }
    }
}

/// Has the task woken that waits for this.
pub(super) fn wait<T>(waker: &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
    Poll::Pending
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Shared {
    fn close(&self, code: VarInt, reason: Bytes) {
        self.close_now(&mut self.state.lock(), code, reason);
    }

    fn close_now(&self, state: &mut State, code: VarInt, reason: Bytes) {
        // It may have been lost already, and for another reason.
        self.follow(state);
        if state.lost.is_none() {
            state.protocol.close(Instant::now(), code, reason);
            self.lose(state, ConnectionError::LocallyClosed);
            state.wake_driver();
        }
    }

    /// It is no more, and all who wait are told.
    fn lose(&self, state: &mut State, why: ConnectionError) {
        state.lost.get_or_insert(why);
        for waker in [
            &mut state.opened,
            &mut state.readable,
            &mut state.writable,
            &mut state.departures,
        ] {
            wake(waker);
        }
        state.arrivals.wake();
        self.changed.notify_waiters();
    }

    /// Tells who waits what has happened.
    fn follow(&self, state: &mut State) {
        while let Some(event) = state.protocol.poll() {
            match event {
                quinn_proto::Event::Connected => {
                    state.is_established = true;
                    self.changed.notify_waiters();
                }
                quinn_proto::Event::ConnectionLost { reason } => self.lose(state, reason),
                quinn_proto::Event::Stream(event) => state.follow(&event),
                quinn_proto::Event::HandshakeDataReady
                | quinn_proto::Event::DatagramReceived
                | quinn_proto::Event::DatagramsUnblocked => {}
            }
        }
    }
}

impl State {
    /// Why it is no more, if it is.
    pub(super) fn lost(&self) -> Result<(), ConnectionError> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    /// There is something to be sent.
    pub(super) fn wake_driver(&mut self) {
        wake(&mut self.driver);
    }

    fn follow(&mut self, event: &StreamEvent) {
        match *event {
            StreamEvent::Opened { dir: Dir::Uni } => self.arrivals.wake(),
            StreamEvent::Readable { id } if id.dir() == Dir::Uni => self.arrivals.readable(id),
            StreamEvent::Readable { .. } => {
                self.may_be_read = true;
                wake(&mut self.readable);
            }
            StreamEvent::Opened { dir: Dir::Bi } | StreamEvent::Available { dir: Dir::Bi } => wake(&mut self.opened),
            StreamEvent::Available { dir: Dir::Uni } => wake(&mut self.departures),
            StreamEvent::Writable { id } | StreamEvent::Stopped { id, .. } if id.dir() == Dir::Uni => {
                wake(&mut self.departures);
            }
            // Nobody waits for a message to be acknowledged by QUIC.
            StreamEvent::Finished { id } if id.dir() == Dir::Uni => {}
            StreamEvent::Writable { .. } | StreamEvent::Stopped { .. } | StreamEvent::Finished { .. } => {
                wake(&mut self.writable);
            }
        }
    }
}

/// The task of a connection: it leads in what has come, sends what there is to be sent, and keeps the time, until the
/// connection is drained.
pub(super) struct Driver {
    shared: Arc<Shared>,
    handle: ConnectionHandle,
    events: mpsc::UnboundedReceiver<Event>,
    /// How many packets are among them.
    waiting: Arc<AtomicUsize>,
    endpoint: mpsc::UnboundedSender<(ConnectionHandle, EndpointEvent)>,
    socket: Arc<dyn Datagrams>,
    /// The system has no room.
    writable: Option<Writable>,
    /// What it had no room for, in `packets`.
    unsent: Option<Transmit>,
    packets: Vec<u8>,
    /// Set to what is due next, or earlier.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Driver {
    /// Follows what the endpoint says. Says whether the connection can go on.
    fn receive(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        loop {
            match self.events.poll_recv(cx) {
                Poll::Ready(Some(Event::Packet(event))) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    state.protocol.handle_event(event);
                }
                Poll::Ready(Some(Event::Identifiers(event))) => state.protocol.handle_event(event),
                Poll::Ready(Some(Event::Rebind(socket))) => {
                    self.socket = socket;
                    self.writable = None;
                    state.protocol.local_address_changed();
                }
                Poll::Ready(Some(Event::Close(code, reason))) => self.shared.close_now(state, code, reason),
                Poll::Ready(None) => return false,
                Poll::Pending => return true,
            }
        }
    }

    /// Sends what there is to be sent. Says whether there may be more. The lock is let go for the time that the system takes.
    fn send(&mut self, cx: &mut Context<'_>, state: &mut MutexGuard<'_, State>) -> bool {
        let (burst, _) = self.socket.most_segments();
        let burst = burst.clamp(1, BURST_PACKETS);
        let now = Instant::now();
        let mut sent = 0;
        loop {
            if let Some(writable) = &mut self.writable {
                if writable.as_mut().poll(cx).is_pending() {
                    return false;
                }
                self.writable = None;
            }
            let transmit = match self.unsent.take() {
                Some(transmit) => transmit,
                None => {
                    self.packets.clear();
                    self.packets.reserve(state.protocol.current_mtu().into());
                    let Some(transmit) = state.protocol.poll_transmit(now, burst, &mut self.packets) else {
                        return false;
                    };
                    sent += transmit
                        .segment_size
                        .map_or(1, |size| transmit.size.div_ceil(size.max(1)));
                    transmit
                }
            };
            let contents = self.packets.get(..transmit.size).unwrap_or_default();
            let outcome = MutexGuard::unlocked(state, || self.socket.send(&datagram(&transmit, contents)));
            match outcome {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.unsent = Some(transmit);
                    self.writable = Some(Arc::clone(&self.socket).writable());
                }
                // As if it were lost on its way, which quinn-udp has logged: it may pass, and if not, the connection falls silent.
                Ok(()) | Err(_) => {}
            }
            if sent >= TURN_PACKETS {
                return true;
            }
        }
    }

    /// Says whether something was due.
    ///
    /// What is due moves on with almost each packet. The timer is left where it is then, and set anew when it fires: to set it costs
    /// more, and to set it earlier wakes the thread besides.
    fn keep_time(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        let Some(due) = state.protocol.poll_timeout() else {
            return false;
        };
        // The clock is asked, not the timer: that may say later than it is when the task has had much to do.
        let now = Instant::now();
        if now >= due {
            state.protocol.handle_timeout(now);
            return true;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        if due < timer.deadline().into_std() {
            timer.as_mut().reset(due.into());
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= due {
                state.protocol.handle_timeout(now);
                return true;
            }
            timer.as_mut().reset(due.into());
        }
        false
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let shared = Arc::clone(&this.shared);
        let mut state = shared.state.lock();
        // Set before the lock is let go: what is written meanwhile is noticed.
        wait::<()>(&mut state.driver, cx).is_pending();
        if !this.receive(cx, &mut state) {
            return Poll::Ready(());
        }
        let mut more = this.send(cx, &mut state);
        // What was sent may set a timer, and what a timer brings is to be sent.
        more |= this.keep_time(cx, &mut state);
        while let Some(event) = state.protocol.poll_endpoint_events() {
            // Fails when the endpoint's task has ended, as this one is about to.
            let _ = this.endpoint.send((this.handle, event));
        }
        shared.follow(&mut state);
        if state.protocol.is_drained() {
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
        let why = TransportError {
            code: TransportErrorCode::INTERNAL_ERROR,
            frame: None,
            reason: "the endpoint is gone".to_owned(),
        };
        self.shared.lose(&mut state, ConnectionError::TransportError(why));
        if !state.protocol.is_drained() {
            let _ = self.endpoint.send((self.handle, EndpointEvent::drained()));
        }
    }
}
