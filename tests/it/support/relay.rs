//! A wire between two nodes that a test can cut and mend, and that may lose datagrams.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// How long the connection ids of nodes are.
const ID: usize = 8;

/// Passes datagrams on between whoever writes to it and one address.
#[derive(Debug)]
pub(crate) struct Relay {
    addr: SocketAddr,
    ways: Arc<Mutex<Ways>>,
    /// Ends with this.
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Ways {
    there: Way,
    back: Way,
    /// The share of datagrams that is lost.
    loss: f64,
    random: StdRng,
}

/// What gets through in one direction.
#[derive(Debug, Default)]
struct Way {
    whole: bool,
    /// How many datagrams of handshakes have come, whether they get through or not.
    handshakes: usize,
    /// The ids of connections that have come through, and of those for which nothing does any more.
    seen: HashSet<[u8; ID]>,
    dead: HashSet<[u8; ID]>,
}

impl Relay {
    /// A wire to this address, cut, that loses this share of what goes through it.
    pub(crate) async fn cut_to(to: SocketAddr, loss: f64) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (front, back) = (UdpSocket::bind(any).await.unwrap(), UdpSocket::bind(any).await.unwrap());
        let addr = front.local_addr().unwrap();
        let seed = rand::random();
        println!("what the wire to {to} loses has the seed {seed}");
        let ways = Arc::new(Mutex::new(Ways {
            there: Way::default(),
            back: Way::default(),
            loss,
            random: StdRng::seed_from_u64(seed),
        }));
        let mut task = JoinSet::new();
        task.spawn(pass_on(front, back, to, Arc::clone(&ways)));
        Self {
            addr,
            ways,
            _task: task,
        }
    }

    /// Where to write to.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on datagrams get through.
    pub(crate) fn mend(&self) {
        let mut ways = self.ways.lock();
        (ways.there.whole, ways.back.whole) = (true, true);
    }

    /// From now on nothing gets through.
    pub(crate) fn cut(&self) {
        let mut ways = self.ways.lock();
        (ways.there.whole, ways.back.whole) = (false, false);
    }

    /// From now on nothing gets there; what comes back does.
    pub(crate) fn cut_there(&self) {
        self.ways.lock().there.whole = false;
    }

    /// How often someone has tried to connect, counted in datagrams.
    pub(crate) fn handshakes(&self) -> usize {
        self.ways.lock().there.handshakes
    }

    /// From now on nothing gets through of the connections so far; new ones do.
    pub(crate) fn end_connections(&self) {
        let mut ways = self.ways.lock();
        ways.there.end();
        ways.back.end();
    }

    /// The same for what comes back, while what is sent still arrives.
    pub(crate) fn end_connections_on_the_way_back(&self) {
        self.ways.lock().back.end();
    }
}

impl Way {
    fn end(&mut self) {
        self.dead.extend(self.seen.drain());
    }

    fn is_open_to(&mut self, datagram: &[u8]) -> bool {
        // One that begins otherwise is of a handshake.
        if let [0..=0x7f, rest @ ..] = datagram
            && let Some(id) = rest.first_chunk()
        {
            if self.dead.contains(id) {
                return false;
            }
            self.seen.insert(*id);
        } else {
            self.handshakes += 1;
        }
        self.whole
    }
}

async fn pass_on(front: UdpSocket, back: UdpSocket, to: SocketAddr, ways: Arc<Mutex<Ways>>) {
    let (mut there, mut here) = (vec![0; 65536], vec![0; 65536]);
    let mut dialler = None;
    loop {
        // An error is of a datagram that nobody took; UDP has more of those.
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut there) => {
                dialler = Some(from);
                let datagram = &there[..length];
                if passes(&ways, |ways| &mut ways.there, datagram) {
                    let _ = back.send_to(datagram, to).await;
                }
            }
            Ok((length, _)) = back.recv_from(&mut here) => {
                let datagram = &here[..length];
                if let Some(dialler) = dialler && passes(&ways, |ways| &mut ways.back, datagram) {
                    let _ = front.send_to(datagram, dialler).await;
                }
            }
            else => {}
        }
    }
}

fn passes(ways: &Mutex<Ways>, way: impl Fn(&mut Ways) -> &mut Way, datagram: &[u8]) -> bool {
    let mut ways = ways.lock();
    let loss = ways.loss;
    way(&mut ways).is_open_to(datagram) && !ways.random.random_bool(loss)
}
