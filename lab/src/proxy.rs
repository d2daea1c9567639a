//! A bad wire for UDP on loopback: what comes to one address goes to another through the model of `wire`, and back.
//! Each source of datagrams gets a socket of its own, as a NAT gives it, so that who changes its port looks moved.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::wire::Path;

/// Larger than any datagram.
const MOST_BYTES: usize = 65_536;

/// A wire between whoever sends to [`addr`](Self::addr) and one address. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    /// To the address, and back.
    paths: [Path; 2],
    to: SocketAddr,
    chance: StdRng,
}

/// A datagram under way: when it comes out, and a number that keeps the order of equals.
#[derive(Debug)]
struct UnderWay {
    due: (Duration, u64),
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for UnderWay {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for UnderWay {}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// What both directions work with.
#[derive(Debug, Clone)]
struct Wire {
    start: Instant,
    state: Arc<Mutex<State>>,
    under_way: UnboundedSender<UnderWay>,
}

impl Wire {
    /// Puts a datagram onto one direction of the wire.
    fn put(&self, direction: usize, socket: &Arc<UdpSocket>, to: Option<SocketAddr>, bytes: &[u8]) {
        let mut state = self.state.lock();
        let State {
            paths,
            chance,
            to: target,
        } = &mut *state;
        let to = to.unwrap_or(*target);
        let Some(path) = paths.get_mut(direction) else {
            return;
        };
        let arrivals = path.send(self.start.elapsed(), bytes.len(), chance);
        let number = path.stats.packets;
        for arrival in arrivals.into_iter().flatten() {
            // Fails only when the proxy ends.
            let _ = self.under_way.send(UnderWay {
                due: (arrival, number),
                socket: Arc::clone(socket),
                to,
                bytes: bytes.to_vec(),
            });
        }
    }
}

impl Proxy {
    /// A perfect wire to this address, until it is changed. To be called within a Tokio runtime.
    pub async fn to(to: SocketAddr, seed: u64) -> std::io::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let front = Arc::new(UdpSocket::bind(any).await?);
        let addr = front.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            paths: Default::default(),
            to,
            chance: StdRng::seed_from_u64(seed),
        }));
        let (under_way, arriving) = unbounded_channel();
        let wire = Wire {
            start: Instant::now(),
            state: Arc::clone(&state),
            under_way,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(deliver(wire.start, arriving));
        tasks.spawn(carry(front, wire));
        Ok(Self {
            addr,
            state,
            _tasks: tasks,
        })
    }

    /// Where to send to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on what comes goes to another address.
    pub fn aim(&self, to: SocketAddr) {
        self.state.lock().to = to;
    }

    /// Changes what the wire is like: there, and back.
    pub fn change(&self, change: impl FnOnce(&mut [Path; 2])) {
        change(&mut self.state.lock().paths);
    }
}

/// Carries what comes to the front, and what comes back to the socket of each source.
async fn carry(front: Arc<UdpSocket>, wire: Wire) {
    let mut sources: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; MOST_BYTES];
    loop {
        // An error is of a datagram that nobody took; UDP has more of those.
        let Ok((length, source)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        let socket = if let Some(socket) = sources.get(&source) {
            Arc::clone(socket)
        } else {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let Ok(socket) = UdpSocket::bind(any).await.map(Arc::new) else {
                continue;
            };
            back.spawn(carry_back(
                Arc::clone(&socket),
                Arc::clone(&front),
                source,
                wire.clone(),
            ));
            sources.insert(source, Arc::clone(&socket));
            socket
        };
        wire.put(0, &socket, None, buffer.get(..length).unwrap_or_default());
    }
}

async fn carry_back(socket: Arc<UdpSocket>, front: Arc<UdpSocket>, source: SocketAddr, wire: Wire) {
    let mut buffer = vec![0; MOST_BYTES];
    loop {
        if let Ok((length, _)) = socket.recv_from(&mut buffer).await {
            wire.put(1, &front, Some(source), buffer.get(..length).unwrap_or_default());
        }
    }
}

/// Sends each datagram when it is due.
async fn deliver(start: Instant, mut arriving: UnboundedReceiver<UnderWay>) {
    let mut heap: BinaryHeap<Reverse<UnderWay>> = BinaryHeap::new();
    loop {
        while let Some(Reverse(next)) = heap.peek()
            && next.due.0 <= start.elapsed()
            && let Some(Reverse(next)) = heap.pop()
        {
            // A socket that takes nothing loses datagrams, as wires do.
            let _ = next.socket.try_send_to(&next.bytes, next.to);
        }
        let due = heap.peek().map(|Reverse(next)| start + next.due.0);
        tokio::select! {
            more = arriving.recv() => match more {
                Some(more) => heap.push(Reverse(more)),
                None => return,
            },
            () = sleep_until(due.unwrap_or(start)), if due.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_go_there_and_back_unless_the_wire_is_cut() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let (here, there) = (UdpSocket::bind(any).await.unwrap(), UdpSocket::bind(any).await.unwrap());
            let proxy = Proxy::to(there.local_addr().unwrap(), 1).await.unwrap();
            proxy.change(|[there, _]| there.cut = true);
            here.send_to(b"lost", proxy.addr()).await.unwrap();
            // Taken by the proxy before the wire is whole again.
            while proxy.state.lock().paths[0].stats.cut == 0 {
                tokio::task::yield_now().await;
            }
            proxy.change(|[there, _]| there.cut = false);
            here.send_to(b"there", proxy.addr()).await.unwrap();
            let mut buffer = [0; 100];
            let (length, from) = there.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"there");
            there.send_to(b"back", from).await.unwrap();
            let (length, from) = here.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], from), (&b"back"[..], proxy.addr()));
        });
    }
}
