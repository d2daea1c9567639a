//! A wire that a test can cut and mend, make as bad as it likes, and move to other ports, while it is in use.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use trunkline_lab::wire::{Path, Settings, Stats};

/// How long the connection ids of nodes are.
const ID: usize = 8;

/// The longest datagram.
const DATAGRAM: usize = 65536;

/// Passes datagrams on between whoever writes to it and one address. Each who writes has a port of its own there, as
/// behind a NAT.
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
    chance: StdRng,
    /// The ports are those of this generation; earlier ones are closed.
    generation: usize,
    /// Where the latest datagram there came from, in which generation.
    latest: Option<(SocketAddr, usize)>,
    /// How often that changed.
    moves: usize,
}

/// What gets through in one direction.
#[derive(Debug, Default)]
struct Way {
    path: Path,
    /// How many datagrams of handshakes have come, whether they get through or not.
    handshakes: usize,
    /// The ids of connections that have come through, and of those for which nothing does any more.
    seen: HashSet<[u8; ID]>,
    dead: HashSet<[u8; ID]>,
}

impl Relay {
    /// A wire to this address, cut, that loses this share of what goes through it.
    pub(crate) async fn cut_to(to: SocketAddr, loss: f64) -> Self {
        let relay = Self::bad_to(to, &lossy(loss)).await;
        relay.cut();
        relay
    }

    /// A wire to this address that is like this, each way.
    pub(crate) async fn bad_to(to: SocketAddr, settings: &Settings) -> Self {
        let front = UdpSocket::bind(any_port()).await.unwrap();
        let addr = front.local_addr().unwrap();
        let seed = rand::random();
        println!("what the wire to {to} does has the seed {seed}");
        let ways = Arc::new(Mutex::new(Ways {
            there: Way::default(),
            back: Way::default(),
            chance: StdRng::seed_from_u64(seed),
            generation: 0,
            latest: None,
            moves: 0,
        }));
        let mut task = JoinSet::new();
        task.spawn(pass_on(front, to, Arc::clone(&ways)));
        let relay = Self {
            addr,
            ways,
            _task: task,
        };
        relay.set(settings);
        relay
    }

    /// Where to write to.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on the wire is like this, each way.
    pub(crate) fn set(&self, settings: &Settings) {
        let mut ways = self.ways.lock();
        ways.there.path.settings = settings.clone();
        ways.back.path.settings = settings.clone();
    }

    /// From now on datagrams get through.
    pub(crate) fn mend(&self) {
        let mut ways = self.ways.lock();
        (ways.there.path.cut, ways.back.path.cut) = (false, false);
    }

    /// From now on nothing gets through.
    pub(crate) fn cut(&self) {
        let mut ways = self.ways.lock();
        (ways.there.path.cut, ways.back.path.cut) = (true, true);
    }

    /// From now on nothing gets there; what comes back does.
    pub(crate) fn cut_there(&self) {
        self.ways.lock().there.path.cut = true;
    }

    /// From now on nothing comes back; what is sent there arrives.
    pub(crate) fn cut_back(&self) {
        self.ways.lock().back.path.cut = true;
    }

    /// From now on the other side sees all who write here at other ports, as when a NAT has forgotten them: what goes
    /// to the earlier ports is lost.
    pub(crate) fn change_ports(&self) {
        self.ways.lock().generation += 1;
    }

    /// How often the other side has seen a datagram come from another port than the one before it: with one who writes
    /// here, how often that one has moved. Not a number of ports, as the system may give a port out again.
    pub(crate) fn moves(&self) -> usize {
        self.ways.lock().moves
    }

    /// Whether the other side has seen someone since the ports changed last.
    pub(crate) fn is_seen_elsewhere(&self) -> bool {
        let ways = self.ways.lock();
        ways.latest.is_some_and(|(_, generation)| generation == ways.generation)
    }

    /// How often someone has tried to connect, counted in datagrams.
    pub(crate) fn handshakes(&self) -> usize {
        self.ways.lock().there.handshakes
    }

    /// What has become of datagrams so far: there, and back.
    pub(crate) fn stats(&self) -> [Stats; 2] {
        let ways = self.ways.lock();
        [ways.there.path.stats.clone(), ways.back.path.stats.clone()]
    }

    /// From now on nothing gets through of the connections so far; new ones do.
    pub(crate) fn end_connections(&self) {
        let mut ways = self.ways.lock();
        ways.there.end();
        ways.back.end();
    }

    /// The same for what is sent there, while what comes back still arrives.
    pub(crate) fn end_connections_on_the_way_there(&self) {
        self.ways.lock().there.end();
    }

    /// The same for what comes back, while what is sent still arrives.
    pub(crate) fn end_connections_on_the_way_back(&self) {
        self.ways.lock().back.end();
    }
}

fn lossy(loss: f64) -> Settings {
    Settings {
        loss,
        ..Settings::default()
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Ways {
    /// Notes where a datagram comes from. Gives the generation of the ports.
    fn comes_from(&mut self, dialler: SocketAddr) -> usize {
        let latest = self.latest.replace((dialler, self.generation));
        if latest.is_some() && latest != self.latest {
            self.moves += 1;
        }
        self.generation
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
        true
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    There,
    Back,
}

/// A datagram that is to come out.
struct Leaving {
    by: Arc<UdpSocket>,
    to: SocketAddr,
    datagram: Vec<u8>,
}

/// The datagrams under way, by when they come out and in which order they came in.
struct Wire {
    started: Instant,
    ways: Arc<Mutex<Ways>>,
    under_way: BTreeMap<(Duration, usize), Leaving>,
    count: usize,
}

impl Wire {
    /// A datagram comes in.
    fn take(&mut self, direction: Direction, leaving: &Leaving) {
        let Ways {
            there, back, chance, ..
        } = &mut *self.ways.lock();
        let way = match direction {
            Direction::There => there,
            Direction::Back => back,
        };
        if !way.is_open_to(&leaving.datagram) {
            return;
        }
        let (now, length) = (self.started.elapsed(), leaving.datagram.len());
        let arrivals = way.path.send(now, length, chance);
        for at in arrivals.into_iter().flatten() {
            self.count += 1;
            let leaving = Leaving {
                by: Arc::clone(&leaving.by),
                to: leaving.to,
                datagram: leaving.datagram.clone(),
            };
            self.under_way.insert((at, self.count), leaving);
        }
    }

    /// When the next one comes out.
    fn next(&self) -> Option<Instant> {
        self.under_way.keys().next().map(|(at, _)| self.started + *at)
    }

    /// Lets out what is due.
    async fn let_out(&mut self) {
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= self.started.elapsed()
        {
            let Leaving { by, to, datagram } = first.remove();
            // An error is of a datagram that nobody took; UDP has more of those.
            let _ = by.send_to(&datagram, to).await;
        }
    }
}

/// What the other side sees someone at.
struct Port {
    socket: Arc<UdpSocket>,
    generation: usize,
}

async fn pass_on(front: UdpSocket, to: SocketAddr, ways: Arc<Mutex<Ways>>) {
    let front = Arc::new(front);
    let mut buffer = vec![0; DATAGRAM];
    let mut ports: HashMap<SocketAddr, Port> = HashMap::new();
    let mut readers = JoinSet::new();
    let (answered, mut answers) = mpsc::unbounded_channel();
    let mut wire = Wire {
        started: Instant::now(),
        ways: Arc::clone(&ways),
        under_way: BTreeMap::new(),
        count: 0,
    };
    loop {
        let next = wire.next();
        tokio::select! {
            received = front.recv_from(&mut buffer) => if let Ok((length, dialler)) = received {
                let generation = ways.lock().comes_from(dialler);
                let known = ports.get(&dialler).filter(|port| port.generation == generation);
                let by = match known {
                    Some(port) => Arc::clone(&port.socket),
                    None => {
                        let socket = Arc::new(UdpSocket::bind(any_port()).await.unwrap());
                        let port = Port { socket: Arc::clone(&socket), generation };
                        ports.insert(dialler, port);
                        readers.spawn(read(Arc::clone(&socket), dialler, generation, answered.clone()));
                        socket
                    }
                };
                let datagram = buffer[..length].to_vec();
                wire.take(Direction::There, &Leaving { by, to, datagram });
            },
            Some((dialler, generation, datagram)) = answers.recv() => {
                if generation == ways.lock().generation {
                    let by = Arc::clone(&front);
                    wire.take(Direction::Back, &Leaving { by, to: dialler, datagram });
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
        }
        wire.let_out().await;
    }
}

/// Reads what comes back to a port.
async fn read(
    socket: Arc<UdpSocket>,
    dialler: SocketAddr,
    generation: usize,
    answered: mpsc::UnboundedSender<(SocketAddr, usize, Vec<u8>)>,
) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        if let Ok((length, _)) = socket.recv_from(&mut buffer).await
            && answered.send((dialler, generation, buffer[..length].to_vec())).is_err()
        {
            return;
        }
    }
}
