//! UDP sockets, on Tokio.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use tracing::debug;

/// Waits until a socket can be written to, for one of those who do.
pub(crate) type Writable = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What an endpoint sends and receives datagrams by.
pub(crate) trait Datagrams: fmt::Debug + Send + Sync {
    /// Sends, or says that the system has no room (`WouldBlock`).
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// Waits until there may be room.
    fn writable(self: Arc<Self>) -> Writable;

    /// Receives into as many buffers as there are; says how many were used. Called by one task.
    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>>;

    /// Where it is bound.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Whether what is larger than the way allows is cut up under way.
    fn may_fragment(&self) -> bool {
        false
    }

    /// How many packets of one size the system takes, and gives, at once.
    fn most_segments(&self) -> (usize, usize) {
        (1, 1)
    }
}

/// How many connections wait for room in a socket with a descriptor of their own each. The others look every so often.
const MOST_TOLD: usize = 8;
const BLIND_WAIT: Duration = Duration::from_millis(1);

/// A UDP socket.
///
/// It makes fewer system calls than Tokio's, and quinn's on it, where packets come one by one. What does not fill all buffers
/// has emptied the socket, and it is not asked once more to hear that. And nobody is told that it can be written to but who
/// waits for it: the system says so of a UDP socket for each packet that has left it, and each time the process would wake up
/// for nothing.
#[derive(Debug)]
pub(super) struct Socket {
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// How many connections wait for room.
    waiting: AtomicUsize,
}

/// One that waits for room, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Socket {
    /// To be called within a Tokio runtime.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self {
            state: UdpSocketState::new((&socket).into())?,
            io: register(socket, Interest::READABLE)?,
            waiting: AtomicUsize::new(0),
        })
    }
}

/// Has Tokio say when this is so of a socket, and nothing else.
#[expect(
    deprecated,
    reason = "what takes its place is unsafe, for types that may close their descriptor; std's sockets do not"
)]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl Datagrams for Socket {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.send(self.io.get_ref().into(), transmit)
    }

    fn writable(self: Arc<Self>) -> Writable {
        Box::pin(async move {
            let before = self.waiting.fetch_add(1, Ordering::Relaxed);
            let _waiting = Waiting(&self.waiting);
            let socket = (before < MOST_TOLD).then(|| self.io.get_ref().try_clone());
            match socket.map(|socket| socket.and_then(|socket| register(socket, Interest::WRITABLE))) {
                // An error shows when it is written to.
                Some(Ok(io)) => drop(io.writable().await),
                // The process may have no more descriptors.
                Some(Err(_)) | None => sleep(BLIND_WAIT).await,
            }
        })
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = buffers.len().min(metas.len());
        loop {
            let mut ready = ready!(self.io.poll_read_ready(cx))?;
            let received = self.state.recv(self.io.get_ref().into(), buffers, metas);
            let is_empty = match &received {
                Ok(received) => *received < most,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            if is_empty {
                // An event that came while this was received is not passed over.
                ready.clear_ready();
            }
            match received {
                Ok(received) => return Poll::Ready(Ok(received)),
                Err(_) if is_empty => {}
                // An earlier packet has met with it, which concerns its connection alone.
                Err(error) => debug!("an error of a UDP socket: {error}"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn most_segments(&self) -> (usize, usize) {
        (self.state.max_gso_segments(), self.state.gro_segments())
    }
}
