//! QUIC clients: the listener, and a session a connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, Incoming as NewConnection, RecvStream, SendStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, error};

use crate::address::Address;
use crate::carrier::{Arrived, Carrier, Codec, ControlStream, Frame, Handler, Heard, Malformed, close};
use crate::clients::ClientContext;
use crate::delivery::{Bounds, Control};
use crate::exchange::{Exchange, Incoming, Settled};
use crate::flow::Flow;
use crate::message::{MESSAGE_OVERHEAD, Message, Recipient, Settle, Tag, Ticket, settle_all};
use crate::outcome::{Code, Outcome};
use crate::phase::Phase;
use crate::wire::client::{self as wire, FromClient, FromNode, HeaderFromClient, Receipt, Welcome};

/// How long a client may take from its first packet to the end of its `hello`.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How many connections may be on their way to their `hello` at once.
const GREETINGS: usize = 1024;

/// When fewer places than this are left, one has to prove its address first: that costs it a round trip and the node
/// nothing.
const GREETINGS_PROVED: usize = 960;

/// How long a last word may take to reach the client before the connection is closed.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Bodies below this size do not fill the memory they come in.
const SMALL_BODY: usize = 32 * 1024;

/// The control stream goes before all others.
const CONTROL_PRIORITY: i32 = 1;

/// Accepts QUIC clients until the node shuts down, and refuses them then, until it stops.
pub(crate) async fn listen(endpoint: Endpoint, context: Arc<ClientContext>) {
    let greetings = Arc::new(Semaphore::new(GREETINGS));
    loop {
        let incoming = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Closing) => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            if !context.phase.has_reached(Phase::Draining) {
                error!("the UDP socket of QUIC clients has failed");
                context.failed.cancel();
            }
            return;
        };
        if context.phase.has_reached(Phase::Draining) {
            incoming.refuse();
            continue;
        }
        let unproved = !incoming.remote_address_validated() && incoming.may_retry();
        if unproved && greetings.available_permits() < GREETINGS_PROVED {
            // Fails only where `may_retry` says no.
            let _ = incoming.retry();
            continue;
        }
        let Ok(greeting) = Arc::clone(&greetings).try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let context = Arc::clone(&context);
        context
            .tracker
            .clone()
            .spawn(async move { greet_and_serve(incoming, greeting, &context).await });
    }
}

async fn greet_and_serve(incoming: NewConnection, greeting: OwnedSemaphorePermit, context: &ClientContext) {
    let remote = incoming.remote_address();
    let (connection, control) = match timeout(HELLO_DEADLINE, greet(incoming)).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => {
            debug!(%remote, "no client: {error}");
            return;
        }
        Err(_) => {
            debug!(%remote, "no client: no hello within {HELLO_DEADLINE:?}");
            return;
        }
    };
    drop(greeting);
    match context.admit() {
        Some(_admission) => serve(connection, control, context).await,
        None => {
            debug!(%remote, "refused: as many clients as there may be");
            let text = "this node has as many clients as it may; try again later, or another node";
            turn_away(&connection, control.send, Code::RateLimited, text).await;
        }
    }
}

/// Why a connection came to nothing before the client was let in.
#[derive(Debug, thiserror::Error)]
enum GreetingError {
    #[error(transparent)]
    Lost(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Read(#[from] quinn::ReadError),
    #[error("{0}")]
    Refused(String),
}

async fn greet(incoming: NewConnection) -> Result<(Connection, ControlStream), GreetingError> {
    let connection = incoming.await?;
    let (send, mut recv) = connection.accept_bi().await?;
    let mut buffer = BytesMut::new();
    let (code, text) = match read_hello(&mut recv, &mut buffer).await? {
        Ok(wire::VERSION) => return Ok((connection, ControlStream { send, recv, buffer })),
        Ok(version) => (
            Code::UnsupportedVersion,
            format!("version {version} is not spoken here, {} is", wire::VERSION),
        ),
        Err(text) => (Code::ProtocolError, text),
    };
    turn_away(&connection, send, code, &text).await;
    Err(GreetingError::Refused(text))
}

async fn read_hello(recv: &mut RecvStream, buffer: &mut BytesMut) -> Result<Result<u32, String>, quinn::ReadError> {
    loop {
        match wire::read_line(buffer) {
            Ok(Some(FromClient::Hello { version })) => return Ok(Ok(version)),
            Ok(Some(_)) => return Ok(Err("the first line is not hello".to_owned())),
            Ok(None) => {}
            Err(error) => return Ok(Err(error.to_string())),
        }
        match recv.read_chunk(wire::MAX_HEADER, true).await? {
            Some(chunk) => buffer.extend_from_slice(&chunk.bytes),
            None => return Ok(Err("the control stream ended before hello".to_owned())),
        }
    }
}

/// Says why, and closes once that has arrived.
async fn turn_away(connection: &Connection, mut send: SendStream, code: Code, text: &str) {
    let mut out = BytesMut::new();
    let error = FromNode::Error {
        code: code.as_str().to_owned(),
        text: text.to_owned(),
    };
    wire::write_line(&mut out, &error);
    let said = async {
        send.write_all(&out).await?;
        // Fails only for a stream that is gone.
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok::<(), quinn::WriteError>(())
    };
    // Heard or not, the connection is closed.
    let _ = timeout(LAST_WORD, said).await;
    let close_code = match code {
        Code::UnsupportedVersion => close::VERSION,
        Code::RateLimited => close::BUSY,
        _ => close::PROTOCOL,
    };
    connection.close(close_code, text.as_bytes());
}

/// A QUIC client.
struct QuicSession {
    address: Address,
    exchange: Exchange<Ticket>,
    /// What the client has under way, by the tags of its own messages.
    flow: Mutex<Flow<Tag>>,
    /// A message of this client has ended.
    ended: Notify,
    closed: AtomicBool,
    this: Weak<Self>,
}

async fn serve(connection: Connection, mut control: ControlStream, context: &ClientContext) {
    let limits = &context.limits;
    let window = limits.window();
    let registry = context.router.registry();
    let id = registry.fresh_id();
    let to_client = Bounds {
        messages: limits.outbox_bytes.div_ceil(MESSAGE_OVERHEAD),
        bytes: limits.outbox_bytes,
    };
    let from_client = Bounds {
        messages: window.messages,
        bytes: window.bytes,
    };
    let session = Arc::new_cyclic(|this| QuicSession {
        address: Address {
            node: context.router.name().clone(),
            id: id.clone(),
        },
        exchange: Exchange::new(to_client, from_client),
        flow: Mutex::new(Flow::new(window)),
        ended: Notify::new(),
        closed: AtomicBool::new(false),
        this: this.clone(),
    });
    let mut out = BytesMut::new();
    let welcome = Welcome {
        version: wire::VERSION,
        address: session.address.to_string(),
        max_message: limits.max_message,
        window,
    };
    wire::write_line(&mut out, &FromNode::Welcome(welcome));
    // Fail only when the connection is gone; then the carrier says so.
    let _ = control.send.set_priority(CONTROL_PRIORITY);
    // A client that gives no room for this line will not get far.
    let _ = timeout(HELLO_DEADLINE, control.send.write_all(&out)).await;

    // Neither side remembers anything of the other, so this can't be a violation.
    let _ = session.exchange.connected_afresh();
    let registration = registry.register(id, Arc::<QuicSession>::clone(&session));
    let handler = SessionHandler {
        session: &session,
        connection: &connection,
        context,
    };
    let heard = Heard::now();
    let carrier = Carrier {
        connection: &connection,
        exchange: &session.exchange,
        codec: &NodeCodec {
            client: session.address.clone(),
            max_message: limits.max_message,
        },
        handler: &handler,
        max_stream: wire::MAX_HEADER + limits.max_message,
        liveness: None,
        heard: &heard,
    };
    tokio::select! {
        ended = carrier.run(control) => debug!(client = %session.address, "gone: {ended}"),
        () = session.finish(context) => {}
        () = session.exchange.stalled(limits.stall) => {
            debug!(client = %session.address, "gone: it took nothing for {:?}", limits.stall);
        }
        never = session.give_up(context) => never,
        () = context.phase.reached(Phase::Closing) => {}
    }
    connection.close(close::DONE, b"the session has ended");
    drop(registration);
    session.closed.store(true, Ordering::SeqCst);
    settle_all(session.exchange.give_up(Code::RecipientGone));
}

impl QuicSession {
    /// When the grace of a shutdown is over: tells the senders of what this client has not taken. Never ends, so that
    /// the client is still told of its own messages.
    async fn give_up<N>(&self, context: &ClientContext) -> N {
        context.phase.reached(Phase::GivingUp).await;
        settle_all(self.exchange.give_up(Code::ShuttingDown));
        std::future::pending().await
    }

    /// When the node shuts down: waits until all that the client has sent, and was sent, has ended, tells it goodbye,
    /// and gives it time to close.
    async fn finish(&self, context: &ClientContext) {
        context.phase.reached(Phase::Draining).await;
        loop {
            let (ended, room) = (self.ended.notified(), self.exchange.room());
            let sent_all = self.flow.lock().is_idle();
            let got_all = self.exchange.is_idle();
            match (sent_all, got_all) {
                (true, true) => break,
                (false, _) => ended.await,
                (true, false) => room.await,
            }
        }
        self.exchange.say_goodbye();
        sleep(LAST_WORD).await;
    }
}

impl Settle for QuicSession {
    fn settle(&self, ends: &[(Tag, Outcome)]) {
        let replies: Vec<(Tag, Outcome)> = {
            let mut flow = self.flow.lock();
            ends.iter()
                .filter_map(|&(tag, outcome)| {
                    let key = usize::try_from(tag.number).ok()?;
                    Some((flow.settle(key)?, outcome))
                })
                .collect()
        };
        self.exchange.finish(&replies);
        self.ended.notify_waiters();
    }
}

impl Recipient for QuicSession {
    fn push(&self, mut message: Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        if self.closed.load(Ordering::SeqCst) {
            return Err((ticket, Code::RecipientGone));
        }
        // The body may be a small slice of a large buffer, and this may keep it for long.
        message.body = Bytes::copy_from_slice(&message.body);
        let pushed = self
            .exchange
            .submit(message, ticket)
            .map_err(|(_, ticket)| (ticket, Code::RecipientFull));
        // The session may have ended between the two; then nobody else would end this message.
        if self.closed.load(Ordering::SeqCst) {
            settle_all(self.exchange.give_up(Code::RecipientGone));
        }
        pushed
    }
}

/// Passes on what comes from a client.
struct SessionHandler<'a> {
    session: &'a Arc<QuicSession>,
    connection: &'a Connection,
    context: &'a ClientContext,
}

impl Handler<Ticket> for SessionHandler<'_> {
    async fn taken(&self, incarnation: u32, taken: Vec<(u64, Incoming)>) {
        let session = self.session;
        for (number, incoming) in taken {
            let tag = Tag { number, incarnation };
            let message = match incoming {
                Ok(_) if self.context.phase.has_reached(Phase::Draining) => Err(Code::ShuttingDown),
                incoming => incoming,
            };
            let message = match message {
                Ok(message) => message,
                Err(code) => {
                    session.exchange.finish(&[(tag, Outcome::Refused(code))]);
                    continue;
                }
            };
            // A client that keeps to its window never waits here; one that does not is not read from.
            loop {
                let ended = session.ended.notified();
                if session.flow.lock().has_room(&message.to) {
                    break;
                }
                ended.await;
            }
            let key = session.flow.lock().start(&message.to, message.size(), tag);
            let Some(origin) = session.this.upgrade() else {
                return;
            };
            let tag = Tag {
                number: key as u64,
                incarnation: 0,
            };
            self.context.route(message, Ticket { origin, tag }).await;
        }
    }

    fn settled(&self, settled: Settled<Ticket>) {
        settle_all(settled);
    }

    fn goodbye(&self) {
        self.connection.close(close::DONE, b"goodbye");
    }
}

/// A small body in memory of its own: as it comes it is a slice of all that the system read at once, up to 64 KiB, and
/// would keep that as long as it has to wait.
fn own(body: Bytes) -> Bytes {
    if body.len() < SMALL_BODY {
        Bytes::copy_from_slice(&body)
    } else {
        body
    }
}

/// How a node writes to a client and reads from it.
struct NodeCodec {
    client: Address,
    max_message: usize,
}

impl Codec for NodeCodec {
    fn write_header(&self, number: u64, after: u64, message: &Message, out: &mut BytesMut) {
        wire::write_header(out, number, after, Some(&message.from), &message.to);
    }

    fn read_message(&self, mut stream: Bytes, whole: bool) -> Result<Arrived, Malformed> {
        let line = wire::split_header(&mut stream)
            .map_err(Malformed::new)?
            .ok_or_else(|| Malformed::new(wire::Malformed::NoHeader))?;
        let header: HeaderFromClient<'_> = serde_json::from_slice(&line).map_err(Malformed::new)?;
        let message = match header.to.parse() {
            _ if !whole || stream.len() > self.max_message => Err(Code::TooLarge),
            Ok(to) => Ok(Message {
                from: self.client.clone(),
                to,
                body: own(stream),
            }),
            Err(_) => Err(Code::BadAddress),
        };
        Ok(Arrived {
            number: header.id,
            after: header.after,
            message,
        })
    }

    fn write_frame(&self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Control(Control::Report(report)) => {
                wire::write_line(out, &FromNode::Receipt(Receipt::from(report.clone())));
            }
            Frame::Goodbye => wire::write_line(out, &FromNode::GoingAway),
            // Said by the greeting, or not said on this kind of connection.
            Frame::Control(Control::Sync(_) | Control::Confirm(_)) | Frame::Ping(_) | Frame::Pong(_) => {}
        }
    }

    fn read_frame(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
        loop {
            match wire::read_line(buffer).map_err(Malformed::new)? {
                None => return Ok(None),
                Some(FromClient::Receipt(receipt)) => return Ok(Some(Frame::Control(Control::Report(receipt.into())))),
                Some(FromClient::Goodbye) => return Ok(Some(Frame::Goodbye)),
                Some(FromClient::Hello { .. }) => return Err(Malformed::new("a second hello")),
                Some(FromClient::Other) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Limits};
    use crate::node::Node;
    use crate::tls::ClientTls;
    use crate::{Client, endpoint};
    use tokio_util::task::TaskTracker;

    async fn node(limits: Limits) -> (Node, tempfile::TempDir) {
        let certs = tempfile::tempdir().unwrap();
        let name = "127.0.0.1:1215".parse().unwrap();
        crate::certs::make(certs.path(), std::slice::from_ref(&name), "test").unwrap();
        let config = Config {
            tcp: "127.0.0.1:0".parse().unwrap(),
            quic: Some("127.0.0.1:0".parse().unwrap()),
            link: Some("127.0.0.1:0".parse().unwrap()),
            advertise: Some(name),
            certs: certs.path().to_owned(),
            grace: Duration::from_secs(1),
            limits,
            ..Config::default()
        };
        (Node::start(config).await.unwrap(), certs)
    }

    /// A client that does as it likes, after the welcome.
    async fn stranger(node: &Node, certs: &tempfile::TempDir) -> (Endpoint, Connection, SendStream, RecvStream) {
        let config = endpoint::client_client(ClientTls::load(certs.path()).unwrap());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = endpoint::endpoint(quinn::EndpointConfig::default(), None, socket, &TaskTracker::new()).unwrap();
        let connecting = endpoint.connect_with(config, node.quic_addr(), "127.0.0.1").unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"{\"cmd\":\"hello\",\"version\":1}\n").await.unwrap();
        recv.read_chunk(4096, true).await.unwrap().unwrap();
        (endpoint, connection, send, recv)
    }

    #[tokio::test]
    async fn refusals_do_not_add_up() {
        let (node, certs) = node(Limits::default()).await;
        let quic: crate::NodeName = format!("127.0.0.1:{}", node.quic_addr().port()).parse().unwrap();
        let client = Client::connect(&quic, certs.path()).await.unwrap();
        let nobody: Address = "127.0.0.1:1215:nobody".parse().unwrap();
        for number in 0..20_000 {
            let receipt = client.send_with_receipt(&nobody, "x").await;
            assert!(receipt.is_ok(), "at message {number}");
        }
        client.close().await;
        node.shutdown().await;
    }

    #[tokio::test]
    async fn streams_that_never_end_are_bounded() {
        let (node, certs) = node(Limits::default()).await;
        let (_endpoint, connection, _send, _recv) = stranger(&node, &certs).await;
        let part = vec![b'x'; 500 * 1024];
        let mut streams = Vec::new();
        let filled = async {
            for id in 1..=20 {
                let mut stream = connection.open_uni().await?;
                let header = format!("{{\"to\":\"127.0.0.1:1215:1\",\"id\":{id}}}\n");
                stream.write_all(header.as_bytes()).await?;
                stream.write_all(&part).await?;
                streams.push(stream);
            }
            Ok::<(), quinn::WriteError>(())
        };
        assert!(timeout(Duration::from_secs(20), filled).await.unwrap().is_err());
        let closed = connection.closed().await;
        assert!(
            matches!(&closed, quinn::ConnectionError::ApplicationClosed(why) if why.error_code == close::PROTOCOL),
            "{closed}"
        );
        node.shutdown().await;
    }
}
