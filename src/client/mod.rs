//! A client over QUIC, for programs.
//!
//! [`way`] is how it gets to its node and comes back, [`carry`](mod@carry) what goes on over a connection.

mod carry;
mod way;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::address::{Address, ClientId, NodeName};
use crate::carrier::close;
use crate::delivery::Bounds;
use crate::exchange::{Exchange, Settled};
use crate::flow::{Flow, Started};
use crate::message::{Conversation, Message, Tag};
use crate::outcome::{Code, Outcome};
use crate::tls::ClientTls;
use crate::transport::{self, ClientConfig, Connection, Endpoint};
use crate::wire::client::Token;
use crate::wire::{escape, line};
use carry::carry;
use way::{Way, any_socket};

/// How long connecting may take, up to the node's `welcome`.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last packets may take when a client closes.
const LAST_WORD: Duration = Duration::from_millis(500);

/// The end of a message that arrived and that the program will not see.
const NOT_SEEN: Outcome = Outcome::Refused(Code::RecipientGone);

/// A client of a node, connected over QUIC.
///
/// When the connection breaks the client comes back to its session by itself, from a new UDP socket, within the grace that
/// the node gives (30 s by default): the address stays, and what was under way in both directions is completed, without
/// loss or repeat. A program that knows that its network has changed need not wait for that: see
/// [`rebind`](Self::rebind).
///
/// All methods take `&self`, so one task can receive while others send. Dropping a client closes its connection at
/// once; [`close`](Self::close) lets what was sent end first.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use trunkline::{Client, client::Event};
///
/// let client = Client::connect(&"127.0.0.1:1215".parse()?, "certs".as_ref()).await?;
/// println!("I am {}", client.address());
/// while let Some(event) = client.receive().await {
///     if let Event::Message(message) = event {
///         client.send(&message.from, message.body).await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<Queued>>,
    tracker: TaskTracker,
    stop: CancellationToken,
    drained: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    address: Address,
    max_message: usize,
    /// The connection that serves the session now, or served it last.
    connection: Mutex<Connection>,
    /// What that connection, or the latest attempt to come back, goes by.
    endpoint: Mutex<Endpoint>,
    exchange: Exchange<usize>,
    flow: Mutex<Flow<Reply>>,
    /// That of the message that was sent last.
    conversation: Mutex<Option<Conversation>>,
    /// A message has ended, or the connection, or another has come.
    ended: Notify,
    /// What `receive` gives. As many messages as the node lets be under way to a client: it is told that one was taken
    /// when `receive` gives it.
    events: Mutex<Option<mpsc::UnboundedSender<Queued>>>,
    /// A token that the node has not judged yet.
    renewal: Mutex<Option<Renewal>>,
    /// Whose turn it is to show one.
    renewing: Arc<tokio::sync::Mutex<()>>,
    closed: AtomicBool,
    /// What the node said of it.
    ended_because: Mutex<Option<String>>,
}

/// A token on its way to the node.
#[derive(Debug)]
struct Renewal {
    token: Token,
    /// Whether it was shown on the present connection.
    said: bool,
    answer: oneshot::Sender<Result<(), (String, String)>>,
    /// Held until the answer comes, also when nobody waits for that any more: answers do not say what they are to.
    _turn: OwnedMutexGuard<()>,
}

/// What a client shows of itself to its node. By default nothing.
#[derive(Clone, Default)]
pub struct Options {
    name: Option<ClientId>,
    token: Option<Token>,
}

impl Options {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The certificate `client-NAME.pem` with its key, from the directory where the node authority's is.
    pub fn name(self, name: ClientId) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    /// This token. White space at its ends is left out.
    pub fn token(self, token: &str) -> Self {
        Self {
            token: Some(Token(token.trim_ascii().to_owned())),
            ..self
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("name", &self.name)
            .field("token", &self.token)
            .finish()
    }
}

/// What is told to the program when a message of its ends.
#[derive(Debug)]
enum Reply {
    /// That it failed, as an event, if it did.
    Event(Address),
    Receipt(oneshot::Sender<Outcome>),
}

#[derive(Debug)]
enum Queued {
    Message(Tag, Received),
    Failed(Failed),
}

/// What [`Client::receive_unsettled`] gives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unsettled {
    /// A message to this client, for the program to accept.
    Message(Delivery),
    /// A message of this client, sent without a receipt, was refused, or its fate is unknown; not of one that was
    /// handed to a legacy server (`unconfirmed`), as all are.
    Failed(Failed),
}

/// A message to this client that has not ended yet: it is delivered when the program accepts it.
///
/// Dropped without that, it ends as unknown (`recipient-gone`): the program may have looked at it.
#[derive(Debug)]
pub struct Delivery {
    /// Not the client itself: that could not close while a program keeps this.
    shared: Weak<Shared>,
    /// Taken out by `accept`.
    tag: Option<Tag>,
    message: Received,
}

impl Delivery {
    /// The message, to look at before it is accepted.
    pub fn message(&self) -> &Received {
        &self.message
    }

    /// Accepts the message: its sender is told that it was delivered.
    pub fn accept(mut self) -> Received {
        self.end(Outcome::Delivered);
        self.message.clone()
    }

    fn end(&mut self, outcome: Outcome) {
        if let (Some(tag), Some(shared)) = (self.tag.take(), self.shared.upgrade()) {
            shared.exchange.finish(&[(tag, outcome)]);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.end(Outcome::Unknown(Code::RecipientGone));
    }
}

/// What a client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message to this client.
    Message(Received),
    /// A message of this client, sent without a receipt, was refused, or its fate is unknown; not of one that was
    /// handed to a legacy server (`unconfirmed`), as all are.
    Failed(Failed),
}

/// A message to this client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Who sent it, as the nodes vouch for.
    pub from: Address,
    /// This client's address.
    pub to: Address,
    /// What it says: any bytes.
    pub body: Bytes,
}

impl Received {
    /// The body on one line, with all that could drive a terminal or forge a line escaped, as a legacy client sees
    /// it.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        escape::escape_into(&mut out, &self.body);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The message as a line of JSON, without a line end, as a legacy client that asked for JSON sees it:
    /// `{"cmd":"message","from":…,"to":…,"body":…}`, with `"body64"` (base64) in place of `"body"` when that is no
    /// UTF-8.
    pub fn json(&self) -> String {
        let mut out = Vec::new();
        line::write_message(&mut out, line::Format::Json, &self.from, &self.to, &self.body);
        String::from_utf8_lossy(out.trim_ascii_end()).into_owned()
    }
}

/// A message that was not, or perhaps not, delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Whom it was for.
    pub to: Address,
    /// How it ended.
    pub outcome: Outcome,
}

/// What becomes of a message: a future of its [`Outcome`].
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Outcome>);

impl Future for Receipt {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        // The sender goes without a word only when the client is dropped.
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|outcome| outcome.unwrap_or(Outcome::Unknown(Code::NodeUnreachable)))
    }
}

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The node authority's certificate is missing or wrong; the text says what to do.
    #[error("{0}")]
    Certificates(String),
    /// The node's host has no address.
    #[error("{0} does not resolve: {1}")]
    Resolve(NodeName, io::Error),
    /// No socket could be had.
    #[error("no UDP socket: {0}")]
    Socket(io::Error),
    /// The connection failed.
    #[error(
        "can't connect to {0} by QUIC: {1}; is the node up, and was its certificate made by the authority in --certs?"
    )]
    Connection(NodeName, String),
    /// The node closed the connection in place of a welcome.
    #[error("{0} did not let this client in: {1}: {2}")]
    Refused(NodeName, String, String),
    /// The node did not answer in time.
    #[error("{0} did not answer within {CONNECT_DEADLINE:?}: is the node up, and does UDP get there?")]
    TimedOut(NodeName),
}

/// Why a token was not accepted in place of the one before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// The node refuses it: a code and a text. What the client could do before it still can.
    #[error("{0}: {1}")]
    Refused(String, String),
    /// The connection to the node is gone.
    #[error("the connection to the node is gone; connect again")]
    Closed,
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The body is longer than the node takes, in bytes.
    #[error("the body has {length} bytes, and the node takes at most {limit}")]
    TooLarge {
        /// The body's length.
        length: usize,
        /// The longest the node takes.
        limit: usize,
    },
    /// The connection to the node is gone.
    #[error("the connection to the node is gone; connect again")]
    Closed,
}

impl Client {
    /// Connects to a node, whose certificate must be of the node authority in `certs`. To be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// When the authority's certificate can't be read, the node can't be reached or proves to be another one, or does
    /// not let the client in. Takes at most 10 seconds.
    pub async fn connect(node: &NodeName, certs: &Path) -> Result<Self, ConnectError> {
        Self::connect_with(node, certs, Options::default()).await
    }

    /// The same, and shows what a node asks for that does not let in whoever comes.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect); and when the client's certificate or its key can't be read.
    pub async fn connect_with(node: &NodeName, certs: &Path, options: Options) -> Result<Self, ConnectError> {
        let Options { name, token } = options;
        let tls =
            ClientTls::load(certs, name.as_ref()).map_err(|error| ConnectError::Certificates(error.to_string()))?;
        let config = transport::client_client(tls);
        let connecting = async {
            let mut error = ConnectError::Resolve(node.clone(), io::Error::other("it has no address"));
            let addrs = tokio::net::lookup_host(node.as_str())
                .await
                .map_err(|error| ConnectError::Resolve(node.clone(), error))?;
            for addr in addrs {
                match Self::connect_to(addr, node, config.clone(), token.clone()).await {
                    Ok(client) => return Ok(client),
                    Err(failed) => error = failed,
                }
            }
            Err(error)
        };
        timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| ConnectError::TimedOut(node.clone()))?
    }

    async fn connect_to(
        addr: SocketAddr,
        node: &NodeName,
        config: ClientConfig,
        token: Option<Token>,
    ) -> Result<Self, ConnectError> {
        let tracker = TaskTracker::new();
        let drained = CancellationToken::new();
        let way = Way {
            tracker: tracker.clone(),
            drained: drained.clone(),
            config,
            addr,
            node: node.clone(),
            token: Mutex::new(token),
        };
        let endpoint = way.endpoint().map_err(ConnectError::Socket)?;
        let (connection, welcome, control) = way.connect(&endpoint, None).await?;
        let address: Address = welcome.address.parse().map_err(|error| {
            let text = format!("the welcome holds no address: {error}");
            ConnectError::Connection(node.clone(), text)
        })?;

        let (events, receiver) = mpsc::unbounded_channel();
        // What the node may send at once is for the node to bound; this only keeps a broken one from filling memory.
        let incoming = Bounds {
            messages: 1 << 20,
            bytes: 1 << 30,
        };
        let outgoing = Bounds {
            messages: welcome.window.messages,
            bytes: welcome.window.bytes,
        };
        let shared = Arc::new(Shared {
            address,
            max_message: welcome.max_message,
            connection: Mutex::new(connection),
            endpoint: Mutex::new(endpoint),
            exchange: Exchange::new(outgoing, incoming),
            flow: Mutex::new(Flow::new(welcome.window)),
            conversation: Mutex::default(),
            ended: Notify::new(),
            events: Mutex::new(Some(events)),
            renewal: Mutex::new(None),
            renewing: Arc::default(),
            closed: AtomicBool::new(false),
            ended_because: Mutex::new(None),
        });
        let stop = CancellationToken::new();
        let carry = carry(Arc::clone(&shared), way, control, welcome.resume, stop.clone());
        tracker.spawn(carry);
        Ok(Self {
            shared,
            events: tokio::sync::Mutex::new(receiver),
            tracker,
            stop,
            drained,
        })
    }

    /// The address that others reach this client by.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// The longest body that the node takes, in bytes.
    pub fn max_message(&self) -> usize {
        self.shared.max_message
    }

    /// Sends a message. Waits only while as much is under way, to this recipient or in all, as the node allows.
    ///
    /// Should the message not be delivered, [`receive`](Self::receive) tells. So a program that sends like this must
    /// receive too: what it is not told yet is kept, and a client that takes no messages is disconnected in the end.
    ///
    /// # Errors
    ///
    /// When the body is too large, or the connection is gone.
    pub async fn send(&self, to: &Address, body: impl Into<Bytes>) -> Result<(), SendError> {
        self.shared.submit(to, body.into(), Reply::Event(to.clone())).await
    }

    /// Sends a message and gives the receipt to come. Waits as [`send`](Self::send) does, not for the receipt.
    ///
    /// # Errors
    ///
    /// When the body is too large, or the connection is gone.
    pub async fn send_with_receipt(&self, to: &Address, body: impl Into<Bytes>) -> Result<Receipt, SendError> {
        let (sender, receiver) = oneshot::channel();
        self.shared.submit(to, body.into(), Reply::Receipt(sender)).await?;
        Ok(Receipt(receiver))
    }

    /// The next message, or news of one sent; `None` once the connection is gone and all has been given.
    ///
    /// A message counts as delivered when this gives it. Cancel safe.
    pub async fn receive(&self) -> Option<Event> {
        Some(match self.receive_unsettled().await? {
            Unsettled::Message(delivery) => Event::Message(delivery.accept()),
            Unsettled::Failed(failed) => Event::Failed(failed),
        })
    }

    /// The same for a program that has something to do before a message counts as delivered, such as to store it: the
    /// message ends when the program [accepts](Delivery::accept) it. Until then it takes up room at the node, and a
    /// client that ends no message for as long as the node's `--stall` is disconnected. Cancel safe.
    pub async fn receive_unsettled(&self) -> Option<Unsettled> {
        Some(match self.events.lock().await.recv().await? {
            Queued::Message(tag, message) => Unsettled::Message(Delivery {
                shared: Arc::downgrade(&self.shared),
                tag: Some(tag),
                message,
            }),
            Queued::Failed(failed) => Unsettled::Failed(failed),
        })
    }

    /// Once [`receive`](Self::receive) gives `None`: why the node has ended the session, in its words, if it had another
    /// reason than that it shuts down: the client's token has expired, say, or another has come with its name.
    pub fn ended_because(&self) -> Option<String> {
        self.shared.ended_because.lock().clone()
    }

    /// Shows the node another token of the same client, before the one that the client has come with expires. Waits for the
    /// node's answer, also while the connection breaks and comes back. Where this is cancelled the node may have accepted
    /// the token or not.
    ///
    /// # Errors
    ///
    /// When the node does not accept the token, or the connection is gone.
    pub async fn renew(&self, token: &str) -> Result<(), RenewError> {
        let turn = Arc::clone(&self.shared.renewing).lock_owned().await;
        let (answer, answered) = oneshot::channel();
        *self.shared.renewal.lock() = Some(Renewal {
            token: Token(token.trim_ascii().to_owned()),
            said: false,
            answer,
            _turn: turn,
        });
        // The connection may have ended between the two; then nobody else would end this.
        if self.shared.closed.load(Ordering::SeqCst) {
            self.shared.renewal.lock().take();
        }
        self.shared.exchange.wake_control();
        match answered.await {
            Ok(judged) => judged.map_err(|(code, text)| RenewError::Refused(code, text)),
            Err(_) => Err(RenewError::Closed),
        }
    }

    /// Moves the client to a new UDP socket, as when its machine has gone from one network to another. To be called within
    /// a Tokio runtime.
    ///
    /// Nothing is lost or repeated: the connection goes on from the new address (QUIC migration), and packets that were
    /// under way to the old one are sent again. Where that fails, because the node does not see the new address or the
    /// connection has broken already, the client comes back to its session as it does by itself. It notices that once it
    /// has heard nothing for 6 seconds, or, where the node is still heard by way of the old socket, once the node has
    /// given up: another 6 seconds. While it is coming back this moves the attempt that it makes.
    ///
    /// # Errors
    ///
    /// When no socket can be had. The client then stays on the old one.
    pub fn rebind(&self) -> io::Result<()> {
        let endpoint = self.shared.endpoint.lock();
        let socket = any_socket(self.shared.connection.lock().remote_address())?;
        endpoint.rebind(socket)
    }

    /// Waits until all that was sent has ended, tells the node what was received, and closes the connection. While the
    /// connection is broken this waits for the client to come back, if there is anything of that to be done.
    pub async fn close(self) {
        while !self.shared.closed.load(Ordering::Acquire) {
            let ended = self.shared.ended.notified();
            if self.shared.flow.lock().is_idle() {
                break;
            }
            ended.await;
        }
        // What came and was never given by `receive` will not be seen: its senders are told so.
        self.shared.events.lock().take();
        {
            let mut events = self.events.lock().await;
            while let Some(queued) = events.recv().await {
                if let Queued::Message(tag, _) = queued {
                    self.shared.exchange.finish(&[(tag, NOT_SEEN)]);
                }
            }
        }
        self.shared.say_goodbye().await;
        let endpoint = self.shared.endpoint.lock().clone();
        let _ = timeout(LAST_WORD, endpoint.wait_idle()).await;
        drop(endpoint);
        let (tracker, drained) = (self.tracker.clone(), self.drained.clone());
        tracker.close();
        drop(self);
        drained.cancel();
        tracker.wait().await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // With a word: whoever else has the connection, as a task that is about to end, would close it without one.
        self.shared.connection.lock().close(close::DONE, b"the client has left");
        self.stop.cancel();
    }
}

impl Shared {
    async fn submit(&self, to: &Address, body: Bytes, mut reply: Reply) -> Result<(), SendError> {
        if body.len() > self.max_message {
            return Err(SendError::TooLarge {
                length: body.len(),
                limit: self.max_message,
            });
        }
        let Ok(conversation) = Conversation::same_or(
            &mut self.conversation.lock(),
            |last| last.to() == to,
            || Ok::<_, Infallible>(Conversation::new(self.address.clone(), to.clone())),
        );
        let message = Message {
            conversation,
            body,
            prompt: true,
        };
        loop {
            let ended = self.ended.notified();
            if self.closed.load(Ordering::SeqCst) {
                return Err(SendError::Closed);
            }
            {
                let mut flow = self.flow.lock();
                match flow.try_start(to, message.size(), reply) {
                    Ok(Started { key, .. }) => {
                        // In the same order as others that send to this recipient; the flow's window is the exchange's.
                        if let Err((_, key)) = self.exchange.submit(Instant::now(), message, key) {
                            flow.settle(key);
                            return Err(SendError::Closed);
                        }
                        break;
                    }
                    Err(back) => reply = back,
                }
            }
            ended.await;
        }
        // The connection may have ended between the two; then nobody else would end this message.
        if self.closed.load(Ordering::SeqCst) {
            self.end(self.exchange.give_up(Code::NodeUnreachable));
        }
        Ok(())
    }

    /// Has the carrier say goodbye, and waits until the node closes: it does once it has read what comes before that.
    /// Waits for the next connection if there is none now and the node is yet to be told what was received.
    async fn say_goodbye(&self) {
        loop {
            let ended = self.ended.notified();
            let connection = self.connection.lock().clone();
            // Once a connection: what was said on one that broke may not have come.
            self.exchange.say_goodbye();
            match timeout(LAST_WORD, connection.closed()).await {
                // The carrying either ends or goes on over another connection, and says so.
                Ok(_) if !self.closed.load(Ordering::SeqCst) && !self.exchange.all_is_confirmed() => ended.await,
                _ => return connection.close(close::DONE, b"the client has left"),
            }
        }
    }

    fn end(&self, settled: Settled<usize>) {
        for (key, outcome) in settled {
            let reply = self.flow.lock().settle(key);
            match reply {
                // A receipt that nobody waits for any more.
                Some(Reply::Receipt(sender)) => drop(sender.send(outcome)),
                // All went as well as it can with a legacy server, and that is no event.
                Some(Reply::Event(to))
                    if !matches!(outcome, Outcome::Delivered | Outcome::Unknown(Code::Unconfirmed)) =>
                {
                    self.queue(Queued::Failed(Failed { to, outcome }));
                }
                Some(Reply::Event(_)) | None => {}
            }
        }
        self.ended.notify_waiters();
    }

    /// Queues what `receive` is to give. Says whether it may still come to that: not when the client is closing.
    fn queue(&self, event: Queued) -> bool {
        match &*self.events.lock() {
            Some(events) => events.send(event).is_ok(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use quinn_udp::{RecvMeta, Transmit};
    use tokio::time::sleep;

    use super::*;
    use crate::config::Config;
    use crate::node::Node;
    use crate::transport::{Datagrams, Writable};

    /// How long anything that must happen may take.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// How often a socket dies.
    const DEATHS: usize = 20;

    /// How many messages each sends between two deaths.
    const MESSAGES: usize = 200;

    /// How often a condition is looked at.
    const LOOK: Duration = Duration::from_millis(10);

    /// What a dead socket gives as its port.
    const DEAD_PORT: u16 = 1;

    /// A socket whose network is gone: what is sent is lost, and reading fails, or nothing comes.
    #[derive(Debug, Clone, Copy)]
    struct Dead {
        fails: bool,
    }

    impl Datagrams for Dead {
        fn send(&self, _: &Transmit<'_>) -> io::Result<()> {
            Ok(())
        }

        fn writable(self: Arc<Self>) -> Writable {
            Box::pin(std::future::ready(()))
        }

        fn poll_receive(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            match self.fails {
                true => Poll::Ready(Err(io::ErrorKind::NetworkDown.into())),
                false => Poll::Pending,
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], DEAD_PORT)))
        }
    }

    async fn node() -> (Node, tempfile::TempDir) {
        let certs = tempfile::tempdir().unwrap();
        let name: NodeName = "127.0.0.1:1215".parse().unwrap();
        crate::certs::make(certs.path(), std::slice::from_ref(&name), "test").unwrap();
        let config = Config {
            tcp: Some("127.0.0.1:0".parse().unwrap()),
            quic: Some("127.0.0.1:0".parse().unwrap()),
            link: Some("127.0.0.1:0".parse().unwrap()),
            advertise: Some(name),
            certs: certs.path().to_owned(),
            ..Config::default()
        };
        (Node::start(config).await.unwrap(), certs)
    }

    /// Sends numbered messages, all of which must be delivered.
    async fn send_all(client: &Client, to: &Address, messages: usize) {
        let mut receipts = Vec::new();
        for number in 0..messages {
            receipts.push(client.send_with_receipt(to, number.to_string()).await.unwrap());
        }
        for receipt in receipts {
            assert_eq!(timeout(DEADLINE, receipt).await.unwrap(), Outcome::Delivered);
        }
    }

    /// Receives numbered messages.
    async fn receive_all(client: &Client, from: &Address, messages: usize, dies: Option<Dead>) {
        for number in 0..messages {
            let Some(Event::Message(message)) = timeout(DEADLINE, client.receive()).await.unwrap() else {
                panic!("no message, {number} was due");
            };
            assert_eq!((&message.from, message.text()), (from, number.to_string()));
            if let Some(dead) = dies.filter(|_| number % MESSAGES == MESSAGES / 2) {
                die(client, dead).await;
            }
        }
    }

    /// Has the client's socket die, and waits until it has another.
    async fn die(client: &Client, dead: Dead) {
        let dead: Arc<dyn Datagrams> = Arc::new(dead);
        let port = || client.shared.endpoint.lock().local_addr().unwrap().port();
        // Twice: what comes to the socket before is still read.
        for _ in 0..2 {
            let endpoint = client.shared.endpoint.lock().clone();
            endpoint.rebind_to(&dead);
        }
        let another = async {
            while port() == DEAD_PORT {
                sleep(LOOK).await;
            }
        };
        timeout(DEADLINE, another).await.unwrap();
    }

    async fn survives(deaths: usize, dead: Dead) {
        let (node, certs) = node().await;
        let quic: NodeName = node.quic_addr().to_string().parse().unwrap();
        let client = Client::connect(&quic, certs.path()).await.unwrap();
        let peer = Client::connect(&quic, certs.path()).await.unwrap();
        let (own, other) = (client.address().clone(), peer.address().clone());
        let messages = deaths * MESSAGES;
        tokio::join!(
            send_all(&client, &other, messages),
            send_all(&peer, &own, messages),
            receive_all(&client, &other, messages, Some(dead)),
            receive_all(&peer, &own, messages, None),
        );
        client.close().await;
        peer.close().await;
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_client_whose_socket_fails_again_and_again_loses_and_repeats_nothing() {
        survives(DEATHS, Dead { fails: true }).await;
    }

    #[tokio::test]
    async fn a_client_closes_while_its_program_keeps_a_message_that_it_has_not_accepted() {
        let (node, certs) = node().await;
        let quic: NodeName = node.quic_addr().to_string().parse().unwrap();
        let client = Client::connect(&quic, certs.path()).await.unwrap();
        let peer = Client::connect(&quic, certs.path()).await.unwrap();
        let receipt = peer.send_with_receipt(client.address(), "kept").await.unwrap();
        let kept = timeout(DEADLINE, client.receive_unsettled()).await.unwrap();
        assert!(matches!(kept, Some(Unsettled::Message(_))), "{kept:?}");
        timeout(DEADLINE, client.close()).await.unwrap();
        let end = timeout(DEADLINE, receipt).await.unwrap();
        assert_eq!(end, Outcome::Unknown(Code::RecipientGone));
        drop(kept);
        peer.close().await;
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_client_whose_socket_falls_silent_loses_and_repeats_nothing() {
        survives(1, Dead { fails: false }).await;
    }
}
