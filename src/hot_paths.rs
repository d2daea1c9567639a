//! The ways that every message takes through a node, each as a small workload that does the same each time it is run.
//!
//! `budgets/` counts their instructions and `benches/` takes their time (`CONTRIBUTING.md`, "Speed"). They are no part of
//! what the library offers, and stand behind the feature `hot-paths`. What is here sets up, and hands things from one part
//! to the next as the tasks of a node do; the work is done by the parts themselves.

#![expect(clippy::unwrap_used, reason = "what can't be set up is not to be measured")]
#![expect(missing_debug_implementations, reason = "nobody prints a workload")]

use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::address::{Address, ClientId, NodeName};
use crate::carrier::{COPIED, Codec, Frame};
use crate::course::Course;
use crate::delivery::{Bounds, Confirm, Control, Endpoint, RangeSet, Report, Taken};
use crate::exchange::{Exchange, Incoming};
use crate::link::{Link, LinkCodec};
use crate::message::{Conversation, Message, Recipient, Settle, Tag, Ticket, settle_all};
use crate::outcome::{Code, Outcome};
use crate::registry::{Registration, Registry};
use crate::tcp::bare::{BareNode, BareSession};
use crate::wire::escape::escape_into;
use crate::wire::line::{self, Format};

/// How many messages go through in one run of a workload.
pub const MESSAGES: usize = 4096;

/// The length of their bodies, in bytes.
pub const BODY: usize = 128;

/// How many of them are on their way between two nodes at a time: what 100,000 a second make at a round trip of 20 ms.
const UNDER_WAY: usize = 2048;

/// So many are handed to a connection, or come from one, before others have their turn: as many as the carrier takes.
pub const BATCH: usize = 64;

/// The seed of the order in which streams arrive.
const SEED: u64 = 20_261_125;

/// The cluster of the certificates that [`LineToFrame`] and [`FrameToLine`] want.
pub const CLUSTER: &str = "hot-paths";

/// The node that the workloads run on, and the one it is linked to.
pub const NODES: [&str; 2] = ["127.0.0.1:1215", "127.0.0.1:1216"];

/// The two nodes by name: the one here and the other.
fn nodes() -> [NodeName; 2] {
    NODES.map(|name| name.parse().unwrap())
}

/// Ids of the form that nodes give out.
fn ids(count: usize) -> impl Iterator<Item = ClientId> {
    // In base 9 with the digits from 1 to 9, and of six digits: those that begin with a 2.
    (0..count).map(|number| {
        let digit = |place: u32| char::from(b'1' + (number / 9usize.pow(place) % 9) as u8);
        let digits: String = (0..5).rev().map(digit).collect();
        format!("2{digits}").parse().unwrap()
    })
}

/// A body that needs no escape.
fn body() -> String {
    "What is said to one another all day. "
        .chars()
        .cycle()
        .take(BODY)
        .collect()
}

/// A link between the two nodes that is up, as the one here has it.
fn link(node: &BareNode) -> (Arc<Link>, LinkCodec) {
    let [own, peer] = nodes();
    let bounds = node.limits().link();
    let link = node
        .router()
        .link_or_insert(&peer, || Link::new(&own, peer.clone(), bounds, true).0);
    link.exchange().connected_knowing(&RangeSet::new()).unwrap();
    let max_message = node.limits().max_message;
    (link, LinkCodec::new(own, peer, max_message))
}

/// Lines of one client come in, and leave as streams of a link; the other node says that the messages were delivered.
///
/// Bytes, [lines](crate::wire::framing), [parsing](crate::wire::line::parse), addresses, [flow](crate::flow), routing,
/// [exchange](crate::exchange), header; then the report, and the end of each message at its client.
pub struct LineToFrame {
    node: BareNode,
    client: BareSession,
    link: Arc<Link>,
    codec: LinkCodec,
    input: Vec<u8>,
    /// How many messages were sent, and how many of them have ended.
    sent: usize,
    ended: usize,
}

impl LineToFrame {
    /// With messages to so many clients of the other node in turn. `certs`: where the node's certificate is.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(certs: &Path, conversations: usize) -> Self {
        let [name, peer] = nodes();
        let node = BareNode::new(certs, &name);
        let client = BareSession::join(&node, &"111111".parse().unwrap());
        let (link, codec) = link(&node);
        let lines = |count| {
            let to: Vec<ClientId> = ids(conversations).collect();
            let line = |to: &ClientId| {
                let (to, body) = (to.as_str(), body());
                format!(r#"{{"from":"{name}:111111","to":"{peer}:{to}","body":"{body}","cmd":"sendMsg"}}"#) + "\r\n"
            };
            to.iter().cycle().take(count).map(line).collect::<String>().into_bytes()
        };
        let mut workload = Self {
            input: lines(1),
            node,
            client,
            link,
            codec,
            sent: 0,
            ended: 0,
        };
        // Who has had a message delivered is not looked at as closely as one that is new.
        workload.run();
        workload.input = lines(MESSAGES);
        workload
    }

    /// Gives how many messages have ended: all.
    pub fn run(&mut self) -> usize {
        let ended = self.ended;
        let exchange = self.link.exchange();
        let (mut copied, mut streams) = (BytesMut::new(), Vec::with_capacity(BATCH));
        let mut rest = &*self.input;
        while !rest.is_empty() && self.client.read(&self.node, &mut rest) {
            loop {
                if copied.capacity() < COPIED / 4 {
                    copied = BytesMut::with_capacity(COPIED);
                }
                exchange.transmit(|number, after, message| {
                    self.codec.write_header(number, after, message, &mut copied);
                    copied.extend_from_slice(&message.body);
                    streams.push(copied.split().freeze());
                    streams.len() < BATCH
                });
                if streams.is_empty() {
                    break;
                }
                self.sent += streams.len();
                black_box(&streams);
                streams.clear();
            }
            let to = self.sent.saturating_sub(UNDER_WAY);
            self.ended += report(exchange, &self.codec, self.ended..to, &mut copied);
        }
        self.ended += report(exchange, &self.codec, self.ended..self.sent, &mut copied);
        self.ended - ended
    }

    /// Whether nothing is left under way.
    pub fn is_idle(&self) -> bool {
        self.client.is_idle() && self.link.exchange().is_idle()
    }
}

/// The other node says that these were delivered, counted from 0. Gives how many that were.
fn report(exchange: &Exchange<Ticket>, codec: &LinkCodec, ended: Range<usize>, out: &mut BytesMut) -> usize {
    if ended.is_empty() {
        return 0;
    }
    // Numbers begin with 1.
    let report = Report {
        delivered: vec![(ended.start as u64 + 1, ended.end as u64)],
        failed: Vec::new(),
    };
    let settled = exchange.control(Control::Report(report)).unwrap_or_default();
    let count = settled.len();
    settle_all(settled);
    write_controls(exchange, codec, out);
    count
}

/// Writes the control frames that are due, as the carrier does. Gives how many.
fn write_controls(exchange: &Exchange<Ticket>, codec: &LinkCodec, out: &mut BytesMut) -> u64 {
    let mut count = 0;
    exchange.controls(false, |control| {
        codec.write_frame(&Frame::Control(control), out);
        count += 1;
    });
    black_box(out.split());
    count
}

/// Streams of a link come in, and leave as lines to clients; the other node is told that the messages were delivered.
///
/// Header, [exchange](crate::exchange), [registry](crate::registry), [outbox](crate::outbox), line; then its bytes taken by
/// the writer, the end of each message, and the report.
pub struct FrameToLine {
    node: BareNode,
    clients: Vec<BareSession>,
    link: Arc<Link>,
    codec: LinkCodec,
    course: Mutex<Course>,
    streams: Vec<Bytes>,
}

impl FrameToLine {
    /// With messages from as many clients of the other node, each to one here, in turn. `certs`: where the node's
    /// certificate is.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(certs: &Path, conversations: usize) -> Self {
        let [name, peer] = nodes();
        let node = BareNode::new(certs, &name);
        let clients = ids(conversations).map(|id| BareSession::join(&node, &id)).collect();
        let (link, codec) = link(&node);
        // What the other node sends, by its own machine.
        let bounds = node.limits().link();
        let exchange = Exchange::new(bounds, bounds);
        exchange.connected_knowing(&RangeSet::new()).unwrap();
        let to: Vec<ClientId> = ids(conversations).collect();
        for id in to.iter().cycle().take(MESSAGES) {
            let at = |node: &NodeName| Address {
                node: node.clone(),
                id: id.clone(),
            };
            let message = Message {
                conversation: Conversation::new(at(&peer), at(&name)),
                body: body().into(),
                prompt: false,
            };
            assert!(exchange.submit(Instant::now(), message, ()).is_ok());
        }
        let mut streams = Vec::new();
        exchange.transmit(|number, after, message| {
            let mut stream = BytesMut::new();
            codec.write_header(number, after, message, &mut stream);
            stream.extend_from_slice(&message.body);
            streams.push(stream.freeze());
            true
        });
        Self {
            node,
            clients,
            link,
            codec,
            course: Mutex::new(Course::new()),
            streams,
        }
    }

    /// Gives how many bytes were written to the clients. To be run once.
    pub fn run(&mut self) -> usize {
        let exchange = self.link.exchange();
        let (mut written, mut reports, mut told) = (0, 0, 0);
        let (mut out, mut taken) = (BytesMut::new(), Vec::new());
        let mut streams = std::mem::take(&mut self.streams).into_iter();
        let mut clients = self.clients.iter().cycle();
        while !streams.as_slice().is_empty() {
            let mut arrived = 0;
            for stream in streams.by_ref().take(BATCH) {
                self.take(stream, &mut taken);
                arrived += 1;
            }
            // Those that have something to write: the messages came to each client in turn.
            for client in clients.by_ref().take(self.clients.len().min(arrived)) {
                written += client.write();
            }
            told += arrived;
            // Reports alone: nothing goes the other way.
            reports += write_controls(exchange, &self.codec, &mut out);
            // Less often than by each batch, as the other node does it.
            if told % UNDER_WAY == 0 {
                let below = told as u64 + 1;
                let confirmed = exchange.control(Control::Confirm(Confirm { below, reports }));
                assert!(confirmed.is_ok());
            }
        }
        written
    }

    /// As the carrier and the link do with a stream that has arrived whole.
    fn take(&self, stream: Bytes, taken: &mut Vec<Taken<Incoming>>) {
        let exchange = self.link.exchange();
        let arrived = self.codec.read_message(stream, true).unwrap();
        let incarnation = exchange
            .message(arrived.number, arrived.after, arrived.message, taken)
            .unwrap();
        let mut course = self.course.lock();
        for (number, message) in taken.drain(..) {
            let ticket = Ticket {
                origin: Arc::<Link>::clone(&self.link),
                tag: Tag {
                    number,
                    incarnation,
                    prompt: message.as_ref().is_ok_and(|message| message.prompt),
                },
            };
            match message {
                Ok(message) => self.node.router().deliver_from_link(message, ticket, &mut course),
                Err(code) => ticket.settle(Outcome::Refused(code)),
            }
        }
    }

    /// Whether the other node knows the end of every message.
    pub fn is_idle(&self) -> bool {
        self.link.exchange().all_is_confirmed()
    }
}

/// In which order the streams of a run of messages arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// As they were sent.
    InOrder,
    /// Each up to a batch earlier or later, by a seed.
    Shuffled,
}

/// The machine of [`delivery`](crate::delivery) alone: two sides, without locks, sockets and real messages.
pub struct Machine {
    near: Endpoint<u64, u64>,
    far: Endpoint<u64, u64>,
    conversations: usize,
    /// Which of the streams under way is the next to arrive.
    order: Vec<usize>,
    sent: Vec<(u64, u64)>,
    taken: Vec<Taken<u64>>,
}

impl Machine {
    /// With messages of so many conversations in turn.
    pub fn new(conversations: usize, arrival: Arrival) -> Self {
        let bounds = Bounds {
            messages: MESSAGES,
            bytes: MESSAGES * message_size(),
        };
        let (mut near, mut far) = (Endpoint::new(bounds, bounds), Endpoint::new(bounds, bounds));
        near.connected();
        far.connected();
        speak(&mut near, &mut far);
        speak(&mut far, &mut near);
        let mut order: Vec<usize> = (0..UNDER_WAY).collect();
        if arrival == Arrival::Shuffled {
            let mut random = SmallRng::seed_from_u64(SEED);
            for batch in order.chunks_mut(BATCH) {
                batch.shuffle(&mut random);
            }
        }
        Self {
            near,
            far,
            conversations,
            order,
            sent: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// Gives how many messages have ended: all.
    pub fn run(&mut self) -> usize {
        let (now, size) = (Instant::now(), message_size());
        let mut ended = 0;
        for first in (0..MESSAGES).step_by(UNDER_WAY) {
            for message in first..first + UNDER_WAY {
                assert!(self.near.sender.has_room());
                let conversation = (message % self.conversations) as u64;
                let message = message as u64;
                self.near.sender.submit(now, conversation, size, message, message);
            }
            self.sent.clear();
            while let Some(stream) = self.near.sender.poll_transmit() {
                self.sent.push((stream.number, stream.after));
            }
            for batch in self.order.chunks(BATCH) {
                for &at in batch {
                    let (number, after) = self.sent.get(at).copied().unwrap_or_default();
                    let arrived = self.far.receiver.message(number, after, size, number, &mut self.taken);
                    assert!(arrived.is_ok());
                }
                let incarnation = self.far.receiver.incarnation();
                for (number, _) in self.taken.drain(..) {
                    self.far.receiver.finish(incarnation, number, Outcome::Delivered);
                }
                speak(&mut self.far, &mut self.near);
                ended += self.near.sender.drain_settled().len();
                speak(&mut self.near, &mut self.far);
            }
        }
        ended
    }
}

/// What a message of the workloads counts, in bytes.
fn message_size() -> usize {
    BODY + crate::MESSAGE_OVERHEAD
}

/// One side says what it has to.
fn speak(from: &mut Endpoint<u64, u64>, to: &mut Endpoint<u64, u64>) {
    while let Some(control) = from.poll_control(false) {
        assert!(to.control(control).is_ok());
    }
}

/// The registry of a node with many clients.
pub struct Clients {
    registry: Arc<Registry>,
    /// Each with a message to it.
    here: Vec<(Message, Registration)>,
    coming: Vec<ClientId>,
    client: Arc<Anyone>,
}

/// A client that takes nothing.
struct Anyone;

impl Recipient for Anyone {
    fn push(&self, _: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        Err((ticket, Code::RecipientGone))
    }

    fn yield_place(&self) {}
}

/// Where messages come from that nobody takes.
struct Nobody;

impl Settle for Nobody {
    fn settle(&self, _: &[(Tag, Outcome)]) {}
}

impl Clients {
    /// So many that are here, and as many that come.
    pub fn new(count: usize) -> Self {
        let (registry, client) = (Arc::new(Registry::new()), Arc::new(Anyone));
        let [node, _] = nodes();
        let mut all = ids(2 * count);
        let here = all.by_ref().take(count).map(|id| {
            let place = register(&registry, &id, &client);
            let node = node.clone();
            let address = Address { node, id };
            let message = Message {
                conversation: Conversation::new(address.clone(), address),
                body: Bytes::new(),
                prompt: false,
            };
            (message, place)
        });
        let here = here.collect();
        let clients = Self {
            here,
            coming: all.collect(),
            registry,
            client,
        };
        // Where the map has to grow depends on the keys that it has drawn for its hashes.
        clients.come_and_go();
        clients
    }

    /// Passes a message to each of those that are here, in turn, as often as there are messages. Gives how many were found.
    pub fn pass_on(&self) -> usize {
        let origin: Arc<dyn Settle> = Arc::new(Nobody);
        let messages = self.here.iter().map(|(message, _)| message).cycle().take(MESSAGES);
        messages
            .filter(|message| {
                let ticket = Ticket {
                    origin: Arc::clone(&origin),
                    tag: Tag::prompt(0, 0),
                };
                let found = self.registry.find(&message.to().id);
                found.is_some_and(|client| client.push(message, ticket).is_err())
            })
            .count()
    }

    /// The others come, and leave once all are here. Gives how many there were then.
    pub fn come_and_go(&self) -> usize {
        let coming = self.coming.iter();
        let come: Vec<Registration> = coming.map(|id| register(&self.registry, id, &self.client)).collect();
        let count = self.registry.len();
        drop(come);
        count
    }
}

fn register(registry: &Arc<Registry>, id: &ClientId, client: &Arc<Anyone>) -> Registration {
    let registering = registry.register(id.clone(), Arc::<Anyone>::clone(client));
    registering.now_or_never().flatten().unwrap()
}

/// An exchange that several threads use at once.
pub struct Shared {
    exchange: Exchange<()>,
    message: Message,
}

impl Default for Shared {
    fn default() -> Self {
        let bounds = Bounds {
            messages: usize::MAX,
            bytes: usize::MAX,
        };
        let exchange = Exchange::new(bounds, bounds);
        exchange.connected_knowing(&RangeSet::new()).unwrap();
        let [own, peer] = NODES.map(|node| format!("{node}:111111").parse().unwrap());
        let message = Message {
            conversation: Conversation::new(own, peer),
            body: body().into(),
            prompt: false,
        };
        Self { exchange, message }
    }
}

impl Shared {
    /// Submits a batch, transmits what is there to transmit by anyone, and has that reported as delivered. Gives how many
    /// have ended.
    pub fn pass(&self) -> usize {
        let now = Instant::now();
        for _ in 0..BATCH {
            assert!(self.exchange.submit(now, self.message.clone(), ()).is_ok());
        }
        let mut delivered = Vec::with_capacity(BATCH);
        self.exchange.transmit(|number, _, _| {
            delivered.push((number, number));
            delivered.len() < BATCH
        });
        let report = Report {
            delivered,
            failed: Vec::new(),
        };
        let settled = self.exchange.control(Control::Report(report)).unwrap_or_default();
        self.exchange.controls(false, |control| {
            black_box(control);
        });
        settled.len()
    }
}

/// Reads a line of a client. Says whether it can be followed.
pub fn parse(line: &[u8]) -> bool {
    black_box(line::parse(line)).is_ok()
}

/// Escapes a body into what `out` has room for.
pub fn escape(out: &mut Vec<u8>, body: &[u8]) {
    out.clear();
    escape_into(out, body);
}

/// Writes lines to a client.
pub struct Writer {
    format: Format,
    from: Address,
    to: Address,
}

impl Writer {
    /// Writes JSON, or what legacy clients expect.
    pub fn new(json: bool) -> Self {
        let [from, to] = NODES.map(|node| format!("{node}:111111").parse().unwrap());
        let format = if json { Format::Json } else { Format::Text };
        Self { format, from, to }
    }

    /// Writes a message into what `out` has room for.
    pub fn write(&self, out: &mut Vec<u8>, body: &[u8]) {
        out.clear();
        line::write_message(out, self.format, &self.from, &self.to, body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs;
    use tempfile::TempDir;

    const CONVERSATIONS: [usize; 2] = [16, 1000];

    fn made() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        certs::make(dir.path(), &nodes(), CLUSTER).unwrap();
        dir
    }

    #[test]
    fn all_lines_leave_as_streams_and_end_as_often_as_they_come() {
        let certs = made();
        for conversations in CONVERSATIONS {
            let mut workload = LineToFrame::new(certs.path(), conversations);
            for _ in 0..2 {
                assert_eq!(workload.run(), MESSAGES);
                assert!(workload.is_idle());
            }
        }
    }

    #[test]
    fn all_streams_are_written_to_clients_and_reported() {
        let certs = made();
        for conversations in CONVERSATIONS {
            let mut workload = FrameToLine::new(certs.path(), conversations);
            let line = format!("{}:211111 say : {}\r\n", NODES[1], body());
            assert_eq!(workload.run(), MESSAGES * line.len());
            assert!(workload.is_idle());
        }
    }

    #[test]
    fn the_machine_takes_and_ends_all_in_any_order() {
        for conversations in CONVERSATIONS {
            for arrival in [Arrival::InOrder, Arrival::Shuffled] {
                let mut workload = Machine::new(conversations, arrival);
                for _ in 0..2 {
                    assert_eq!(workload.run(), MESSAGES);
                }
            }
        }
    }

    #[test]
    fn shuffled_streams_wait_for_each_other() {
        let held = |arrival| {
            let workload = Machine::new(16, arrival);
            let order = workload.order.iter().enumerate();
            order.filter(|&(place, &at)| at != place).count()
        };
        assert_eq!(held(Arrival::InOrder), 0);
        assert!(held(Arrival::Shuffled) > UNDER_WAY / 2);
    }

    #[test]
    fn clients_are_found_come_and_go() {
        let clients = Clients::new(1000);
        for _ in 0..2 {
            assert_eq!((clients.pass_on(), clients.come_and_go()), (MESSAGES, 2000));
        }
        assert_eq!(clients.registry.len(), 1000);
    }

    #[test]
    fn two_threads_share_an_exchange() {
        let shared = Shared::default();
        let ended: usize = std::thread::scope(|scope| {
            let threads = [0, 1].map(|_| scope.spawn(|| (0..100).map(|_| shared.pass()).sum::<usize>()));
            threads.map(|thread| thread.join().unwrap()).into_iter().sum()
        });
        // A pass takes a batch of what is there, its own or not: none is left once all have passed.
        assert_eq!(ended, 2 * 100 * BATCH);
        assert!(shared.exchange.is_idle());
    }
}
