//! Legacy clients: the TCP listener, and a session a connection.

#[cfg(feature = "hot-paths")]
pub(crate) mod bare;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use smol_str::SmolStr;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::ReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::address::{Address, AddressError};
use crate::admission::{Place, Places};
use crate::clients::{Admission, ClientContext, FULL, OTHER_SUBJECT};
use crate::config::Limits;
use crate::counters::{Counter, Counters};
use crate::flow::{Flow, Started};
use crate::keyring::Permit;
use crate::link::Link;
use crate::message::{Message, Recipient, Settle, Tag, Ticket, settle_all};
use crate::outbox::Outbox;
use crate::outcome::{Code, Outcome};
use crate::pace::Pace;
use crate::permission::{Login, MAX_TOKEN};
use crate::phase::Phase;
use crate::restraint::Restraint;
use crate::turn::Turn;
use crate::wire::framing::Lines;
use crate::wire::line::{self, Request};

/// How long to wait before accepting again when the system has no descriptor or memory for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of errors and receipts that may wait for a client before no more is read from it.
const NOTICES: usize = 64 * 1024;

/// The most bytes that are written at once: the system would copy, and on the way to a client of the same machine even
/// deliver, as many megabytes as it has room for.
const WRITE: usize = 256 * 1024;

/// After the last line: how long, and how much, is still read from a client and thrown away. Closing with unread input
/// would reset the connection, and the client might never see what was written to it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 << 20;

/// How much of that is read at once: little, as thousands of clients that are put out together have it all at once. With 64
/// KiB 500 of them took 25 MB.
const LINGER_READ: usize = 4 * 1024;

/// How many clients for which there is no place may be told so at once; more are closed without a word.
pub(crate) const TURNED_AWAY: usize = 64;

/// How many clients may be about to log in at once, in all and from one source; more are turned away.
const LOGINS: usize = 1024;
const LOGINS_OF_SOURCE: usize = 64;

/// How long a line with a token may be, in bytes: every byte of the token may be written as an escape.
const MAX_LOGIN_LINE: usize = 6 * MAX_TOKEN + 1024;

/// How long what has a client's id may take to make room for it.
const REGISTERED: Duration = Duration::from_secs(5);

/// What a client is told whose token holds no more.
const OVER: &str = "your token has expired or is not accepted any more; connect again with a new one";

/// Accepts legacy clients until the node stops, as many at once as there are `descriptors` for.
pub(crate) async fn listen(listener: TcpListener, descriptors: usize, context: Arc<ClientContext>) {
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
    let descriptors = Arc::new(Semaphore::new(descriptors.min(Semaphore::MAX_PERMITS)));
    let logins = Places::new(LOGINS, LOGINS_OF_SOURCE);
    loop {
        let accepted = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Draining) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, remote)) if !context.lets_in_from(remote.ip()) => {}
            Ok((mut socket, remote)) => {
                let (context, turned_away) = (Arc::clone(&context), Arc::clone(&turned_away));
                // Decided here, before the next is accepted: who is refused does not take up a descriptor meanwhile.
                match admit(remote, &descriptors, &logins, &context) {
                    Ok((places, login)) => {
                        context.tracker.clone().spawn(async move {
                            match come_in(&mut socket, login, &context).await {
                                Ok((lines, login)) => serve(socket, lines, login, &context, &places.0).await,
                                // Its places are its own until it is gone.
                                Err(Some((code, text))) => {
                                    debug!(%remote, "turned away: {text}");
                                    if let Ok(_place) = turned_away.try_acquire() {
                                        turn_away(socket, code, &text).await;
                                    }
                                }
                                Err(None) => {}
                            }
                            drop(places);
                        });
                    }
                    Err((code, text)) => {
                        debug!(%remote, "turned away: {text}");
                        if let Ok(place) = Arc::clone(&turned_away).try_acquire_owned() {
                            context.tracker.spawn(async move {
                                turn_away(socket, code, text).await;
                                drop(place);
                            });
                        }
                    }
                }
            }
            // Trouble of that connection alone.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                context.counters.bump(Counter::AcceptErrors);
                warn!("can't accept TCP clients, and try again: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A place among clients with a descriptor, and one among those that are to log in.
type Admitted = ((Admission, OwnedSemaphorePermit), Option<Place>);

/// What a client needs to be let in: a place, a descriptor, and a place among those that are to log in if it has to. Else
/// what it is told.
fn admit(
    remote: SocketAddr,
    descriptors: &Arc<Semaphore>,
    logins: &Arc<Places>,
    context: &ClientContext,
) -> Result<Admitted, (Code, &'static str)> {
    let Ok(descriptor) = Arc::clone(descriptors).try_acquire_owned() else {
        context.counters.bump(Counter::RefusedDescriptors);
        return Err((Code::RateLimited, FULL));
    };
    let login = match context.rule.takes_tokens() {
        true => match logins.take(remote.ip().into()) {
            Ok(place) => Some(place),
            Err(_) => {
                context.counters.bump(Counter::RefusedLogins);
                return Err((Code::RateLimited, FULL));
            }
        },
        false => None,
    };
    match context.admit(remote.ip()) {
        Ok(admission) => Ok(((admission, descriptor), login)),
        Err(text) => Err((Code::RateLimited, text)),
    }
}

/// What a client is told that begins with anything but its token.
const LOG_IN: &str = "this node asks for a token; say {\"cmd\":\"login\",\"token\":TOKEN} first, on one line";

/// What a client is told that is not let in; `None` if it has gone.
type Refusal = Option<(Code, String)>;

/// Has a client log in, if it has to. Gives what it wrote behind that as well.
async fn come_in(
    socket: &mut TcpStream,
    login: Option<Place>,
    context: &ClientContext,
) -> Result<(Lines, Option<Login>), Refusal> {
    let mut lines = Lines::new(context.limits.max_line());
    let Some(_place) = login else {
        return Ok((lines, None));
    };
    let mut first = Lines::new(MAX_LOGIN_LINE);
    let token = tokio::select! {
        biased;
        () = context.phase.reached(Phase::Draining) => {
            return Err(Some((Code::ShuttingDown, Code::ShuttingDown.advice().to_owned())));
        }
        token = timeout(context.limits.login, first_token(socket, &mut first, context)) => match token {
            Ok(token) => token?,
            Err(_) => Err("no token came in time; connect again and log in"),
        },
    };
    let judged = match &token {
        Ok(token) => context.log_in(Ok(token)).await,
        Err(text) => context.log_in(Err(text)).await,
    };
    let login = judged.map_err(|text| Some((Code::NotAllowed, text)))?;
    lines.buffer().extend_from_slice(first.pending());
    Ok((lines, Some(login)))
}

/// The token on the first line; in the inner place: what to say of another line.
async fn first_token(
    socket: &mut TcpStream,
    lines: &mut Lines,
    context: &ClientContext,
) -> Result<Result<String, &'static str>, Refusal> {
    loop {
        match socket.read_buf(lines.buffer()).await {
            Ok(0) | Err(_) => return Err(None),
            Ok(_) => {}
        }
        if let Some(text) = line::stranger(lines.pending()) {
            context.counters.bump(Counter::EndedStranger);
            return Err(Some((Code::BadJson, text.to_owned())));
        }
        match lines.next_line() {
            Ok(Some(line)) => {
                return Ok(match line::parse(line) {
                    Ok(Request::Login { token, .. }) => Ok(token.into_owned()),
                    Ok(Request::Send { .. } | Request::Hello { .. }) | Err(_) => Err(LOG_IN),
                });
            }
            Ok(None) => {}
            Err(_) => return Ok(Err(LOG_IN)),
        }
    }
}

/// Tells a client why it is not let in.
async fn turn_away(mut socket: TcpStream, code: Code, text: &str) {
    let mut out = Vec::new();
    line::write_error(&mut out, line::Format::Text, code, text);
    // Told or not, it is closed.
    let told = async {
        socket.write_all(&out).await?;
        socket.shutdown().await
    };
    if let Ok(Ok(())) = timeout(LINGER, told).await {
        linger(&mut socket).await;
    }
}

/// After this many bytes it is certain whether a client speaks another protocol: the longest word that tells is
/// `OPTIONS ` with its space.
pub(crate) const STRANGER_BYTES: usize = 8;

/// After this silence the system asks a client's host whether the connection is still there, and ends it if not: a host
/// that vanished would hold its place for ever, as nothing is written to who gets no message.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Where a client's last write was less than this ago, and this one held more than one message, all other tasks have their
/// turns, so many times, before the next one, and what comes for it meanwhile goes out together. Measured: a backlog of
/// 120,000 messages to 100 clients took 0.6 of the time, and with a tenth of this time twice as long. Where messages come one
/// by one there is nothing to gather, and each turn would be a look at the system's events.
const BUSY: Duration = Duration::from_millis(20);
const TURNS: u32 = 4;

/// The ends of messages with larger bodies are told at once: they are what a client's window is made of.
const SMALL_BODY: usize = 4096;

/// What a message of a line client is answered with.
type Reply = Option<SmolStr>;

/// A legacy client.
struct LineSession {
    address: Address,
    outbox: Outbox,
    flow: Mutex<Flow<Reply>>,
    restraint: Restraint,
    /// A message of this client has ended.
    ended: Notify,
    /// Another connection is to have its id.
    replaced: CancellationToken,
    permit: Permit,
    this: Weak<Self>,
}

/// Why nothing more is read from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It has ended its sending side.
    Eof,
    /// What it sends can't be followed any more.
    Unfollowable,
    /// The node is shutting down.
    Draining,
    /// Another connection has its id.
    Replaced,
    /// What it has shown holds no more.
    Over,
    /// The connection broke.
    Broken,
}

/// Serves a client that has logged in, or need not. What it wrote behind that stands in `lines`.
async fn serve(
    mut socket: TcpStream,
    lines: Lines,
    login: Option<Login>,
    context: &ClientContext,
    admission: &Admission,
) {
    // Small lines are to leave at once; batching is done here, not by the kernel.
    let _ = socket.set_nodelay(true);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE / 6);
    let _ = SockRef::from(&socket).set_tcp_keepalive(&keep_alive);
    let registry = context.router.registry();
    let id = match &login {
        Some(login) => login.subject.clone(),
        None => registry.fresh_id(),
    };
    let session = Arc::new_cyclic(|this| LineSession {
        address: Address {
            node: context.router.name().clone(),
            id: id.clone(),
        },
        outbox: Outbox::new(context.limits.outbox_bytes, Arc::clone(&context.buffers)),
        flow: Mutex::new(Flow::new(context.limits.window())),
        restraint: admission.restraint(context, login.as_ref()),
        ended: Notify::new(),
        replaced: CancellationToken::new(),
        permit: context.keyring.permit(login.as_ref()),
        this: this.clone(),
    });
    session
        .outbox
        .push_notice(|out, _| line::write_greeting(out, &session.address));
    let registering = registry.register(id, Arc::<LineSession>::clone(&session));
    let Ok(Some(registration)) = timeout(REGISTERED, registering).await else {
        // What has the id ends at once when it is told to.
        debug!(client = %session.address, "turned away: its id does not become free");
        return;
    };

    let stop = tokio::select! {
        stop = session.converse(&mut socket, lines, context) => stop,
        never = session.give_up(context) => never,
        () = session.replaced.cancelled() => Ok(Stop::Replaced),
    };
    drop(registration);
    settle_all(session.outbox.close());
    match stop {
        Ok(Stop::Unfollowable | Stop::Draining | Stop::Replaced | Stop::Over) => linger(&mut socket).await,
        Ok(Stop::Eof | Stop::Broken) => {}
        Err(error) => debug!(client = %session.address, "gone: {error}"),
    }
}

impl LineSession {
    /// When the grace of a shutdown is over: tells the senders of what this client has not taken, which it may yet
    /// take in part. Never ends, so that the client is still told of its own messages.
    async fn give_up<N>(&self, context: &ClientContext) -> N {
        context.phase.reached(Phase::GivingUp).await;
        let abandoned = self.outbox.abandon().into_iter();
        settle_all(abandoned.map(|ticket| (ticket, Outcome::Unknown(Code::ShuttingDown))));
        std::future::pending().await
    }

    /// Reads and writes until one side has had enough. An error is one of writing.
    async fn converse(&self, socket: &mut TcpStream, lines: Lines, context: &ClientContext) -> io::Result<Stop> {
        let (reader, writer) = socket.split();
        let writing = write(writer, &self.outbox, &context.limits, &context.counters);
        tokio::pin!(writing);
        let reading = async {
            let stop = self.read(reader, lines, context).await;
            if stop == Stop::Eof {
                self.outbox.doubt();
            }
            if stop != Stop::Broken {
                self.all_ended().await;
                self.outbox.finish();
            }
            stop
        };
        let stop = tokio::select! {
            // The queue does not end before the reading does, so this is an error.
            written = &mut writing => return written.map(|()| Stop::Broken),
            stop = reading => stop,
            () = context.phase.reached(Phase::Closing) => return Ok(Stop::Draining),
            () = self.permit.over() => {
                debug!(client = %self.address, "gone: its token is over");
                self.error(Code::NotAllowed, OVER);
                self.outbox.finish();
                // Told or not, it has to go.
                let _ = timeout(LINGER, &mut writing).await;
                return Ok(Stop::Over);
            }
        };
        if stop != Stop::Broken {
            tokio::select! {
                written = &mut writing => written?,
                () = context.phase.reached(Phase::Closing) => {}
                () = self.permit.over() => return Ok(Stop::Over),
            }
        }
        Ok(stop)
    }

    /// Reads and follows the client's lines until there are no more or there may be no more.
    async fn read(&self, mut reader: ReadHalf<'_>, mut lines: Lines, context: &ClientContext) -> Stop {
        let mut turn = Turn::new();
        // Who has logged in is none.
        let mut first = !context.rule.takes_tokens();
        let mut deadline = Deadline::new(&context.limits);
        let mut last = Addressee::default();
        let mut idle = pin!(self.restraint.idle(context.limits.idle));
        // What came with the login. On the heap, here and below, as what a client that says nothing does not need is not to be
        // part of its task: that is a kilobyte.
        let followed = Box::pin(self.follow_all(&mut lines, &mut turn, &mut deadline, &mut last, context));
        if let Err(stop) = followed.await {
            return stop;
        }
        loop {
            if context.phase.has_reached(Phase::Draining) {
                self.error(Code::ShuttingDown, Code::ShuttingDown.advice());
                return Stop::Draining;
            }
            last.give_way().await;
            if lines.is_bare() {
                lines.furnish(context.buffers.take());
            }
            // A read that does not fill its buffer has emptied the system's: it is not asked once more.
            match futures_util::poll!(pin!(reader.read_buf(lines.buffer()))) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(read)) => {
                    turn.bytes(read).await;
                }
                Poll::Ready(Err(_)) => return Stop::Broken,
                Poll::Pending => {
                    // Nothing is kept for a client that says nothing.
                    if let Some(buffer) = lines.release() {
                        context.buffers.give_back(buffer);
                    }
                    let due = deadline.due(lines.pending().len());
                    tokio::select! {
                        biased;
                        // Above it is said what follows from it.
                        () = context.phase.reached(Phase::Draining) => {}
                        ready = reader.readable() => if ready.is_err() {
                            return Stop::Broken;
                        },
                        late = late(due) => {
                            context.counters.bump(late.counter);
                            self.error(Code::ProtocolError, late.text);
                            return Stop::Unfollowable;
                        }
                        () = &mut idle => {
                            self.error(Code::NotAllowed, "there was no message from you or for you for too long");
                            return Stop::Unfollowable;
                        }
                    }
                    continue;
                }
            }
            if first {
                if let Some(text) = line::stranger(lines.pending()) {
                    context.counters.bump(Counter::EndedStranger);
                    self.error(Code::BadJson, text);
                    return Stop::Unfollowable;
                }
                first = lines.pending().len() < STRANGER_BYTES;
            }
            let followed = Box::pin(self.follow_all(&mut lines, &mut turn, &mut deadline, &mut last, context));
            match followed.await {
                Ok(any) => first &= !any,
                Err(stop) => return stop,
            }
        }
        if let Some(line) = lines.take_rest() {
            Box::pin(self.restraint.hold(line.len(), &context.phase)).await;
            Box::pin(self.follow(line, &mut last, context)).await;
        }
        Stop::Eof
    }

    /// Does what all whole lines say. Gives whether there were any.
    async fn follow_all(
        &self,
        lines: &mut Lines,
        turn: &mut Turn,
        deadline: &mut Deadline,
        last: &mut Addressee,
        context: &ClientContext,
    ) -> Result<bool, Stop> {
        let mut any = false;
        loop {
            match lines.next_line() {
                Ok(Some(line)) => {
                    deadline.line_ended();
                    self.restraint.busy();
                    if !self.restraint.passes(line.len()) {
                        self.restraint.hold(line.len(), &context.phase).await;
                    }
                    self.follow(line, last, context).await;
                    // At each line: an empty one makes an answer of sixty bytes, and one read can bring a million.
                    self.outbox.notices_below(NOTICES).await;
                    if turn.item().await {
                        last.give_way().await;
                    }
                }
                Ok(None) => return Ok(any),
                Err(too_long) => {
                    context.counters.bump(Counter::EndedLongLine);
                    self.error(Code::TooLarge, &too_long.to_string());
                    return Err(Stop::Unfollowable);
                }
            }
            any = true;
        }
    }

    /// Does what one line says. Waits while the client has as much under way as it may.
    async fn follow(&self, line: &[u8], last: &mut Addressee, context: &ClientContext) {
        match line::parse(line) {
            Ok(Request::Send { to, body, id }) => {
                let reply = id.map(|id| SmolStr::new(&id));
                if body.len() > context.limits.max_message {
                    let text = format!(
                        "the body is over this node's limit of {} bytes",
                        context.limits.max_message
                    );
                    return self.answer(reply, Outcome::Refused(Code::TooLarge), Some(&text));
                }
                match last.parse(&to) {
                    Ok(to) => {
                        let body = Bytes::copy_from_slice(body.as_bytes());
                        last.link = self.send(to, body, reply, context).await;
                    }
                    Err(error) => {
                        let text = format!("`to` is not HOST:PORT:ID: {error}");
                        self.answer(reply, Outcome::Refused(Code::BadAddress), Some(&text));
                    }
                }
            }
            Ok(Request::Hello { format }) => self.outbox.set_format(format),
            Ok(Request::Login { token, id }) => {
                let reply = id.map(|id| SmolStr::new(&id));
                match self.log_in_again(&token, context).await {
                    Ok(()) => self.answer(reply, Outcome::Delivered, None),
                    Err(text) => self.answer(reply, Outcome::Refused(Code::NotAllowed), Some(&text)),
                }
            }
            Err(rejected) => {
                let reply = rejected.id.map(|id| SmolStr::new(&id));
                self.answer(reply, Outcome::Refused(rejected.code), Some(&rejected.text));
            }
        }
    }

    /// Shows another token: if it is of the same client, that holds from now on.
    async fn log_in_again(&self, token: &str, context: &ClientContext) -> Result<(), String> {
        let login = context.log_in(Ok(token)).await?;
        if login.subject != self.address.id {
            return context.log_in(Err(OTHER_SUBJECT)).await.map(|_| ());
        }
        self.permit.renew(Some(&login));
        self.restraint.renew(context.rate(Some(&login)));
        Ok(())
    }

    /// Sends a message. Gives the link that it took, if it took one.
    async fn send(&self, to: Address, body: Bytes, reply: Reply, context: &ClientContext) -> Option<Arc<Link>> {
        if !self.permit.may_send(&to) {
            context.counters.bump(Counter::RefusedPermission);
            self.answer(reply, Outcome::Refused(Code::NotAllowed), None);
            return None;
        }
        let mut message = Message {
            from: self.address.clone(),
            to,
            prompt: reply.is_some() || body.len() > SMALL_BODY,
            body,
        };
        let Started { key, is_scarce } = self.start(&message, reply).await;
        message.prompt |= is_scarce;
        let origin = self.this.upgrade()?;
        let ticket = Ticket {
            origin,
            tag: Tag {
                number: key as u64,
                incarnation: 0,
                prompt: true,
            },
        };
        context.route(message, ticket).await
    }

    /// Counts a message as under way; waits while it may not be sent yet.
    async fn start(&self, message: &Message, mut reply: Reply) -> Started {
        let mut start = || {
            let started = self.flow.lock().try_start(&message.to, message.size(), reply.take());
            started.map_err(|back| reply = back)
        };
        if let Ok(started) = start() {
            return started;
        }
        loop {
            let ended = self.ended.notified();
            if let Ok(started) = start() {
                return started;
            }
            ended.await;
        }
    }

    /// Waits until every message of the client has ended.
    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.flow.lock().is_idle() {
                return;
            }
            ended.await;
        }
    }

    /// Tells the client how a message ended, if that is to be told: a receipt to one who asked, else an error.
    fn answer(&self, reply: Reply, outcome: Outcome, text: Option<&str>) {
        match (reply, outcome.code()) {
            (Some(id), _) => self
                .outbox
                .push_notice(|out, _| line::write_receipt(out, &id, outcome, text)),
            (None, Some(code)) => {
                let text = text.unwrap_or_else(|| code.advice());
                match outcome {
                    Outcome::Unknown(_) => self.error(code, &format!("it may have been delivered or not: {text}")),
                    Outcome::Delivered | Outcome::Refused(_) => self.error(code, text),
                }
            }
            (None, None) => {}
        }
    }

    fn error(&self, code: Code, text: &str) {
        self.outbox
            .push_notice(|out, format| line::write_error(out, format, code, text));
    }
}

impl Settle for LineSession {
    fn settle(&self, ends: &[(Tag, Outcome)]) {
        {
            let mut flow = self.flow.lock();
            for &(tag, outcome) in ends {
                let Ok(key) = usize::try_from(tag.number) else {
                    continue;
                };
                self.restraint.ended(outcome, || flow.recipient(key).cloned());
                if let Some(reply) = flow.settle(key) {
                    self.answer(reply, outcome, None);
                }
            }
        }
        self.ended.notify_waiters();
    }
}

impl Recipient for LineSession {
    fn push(&self, message: Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        if !self.permit.may_receive() {
            return Err((ticket, Code::NotAllowed));
        }
        self.restraint.busy();
        self.outbox.push(&message, ticket)
    }

    fn yield_place(&self) {
        self.replaced.cancel();
    }
}

/// Whom the last message of a client was for: mostly the next is for the same, and its address need not be read again.
#[derive(Debug, Default)]
struct Addressee {
    text: String,
    address: Option<Address>,
    /// The link that it took.
    link: Option<Arc<Link>>,
}

impl Addressee {
    /// Gives way while the link has more to send than it gets away.
    async fn give_way(&self) {
        if let Some(link) = &self.link {
            link.exchange().catch_up().await;
        }
    }

    fn parse(&mut self, text: &str) -> Result<Address, AddressError> {
        if let Some(address) = self.address.as_ref().filter(|_| self.text == text) {
            return Ok(address.clone());
        }
        let address: Address = text.parse()?;
        text.clone_into(&mut self.text);
        self.address = Some(address.clone());
        Ok(address)
    }
}

/// A line that does not come in time.
#[derive(Debug, Clone, Copy)]
struct Late {
    /// When that is so.
    at: Instant,
    counter: Counter,
    text: &'static str,
}

/// By when a client has to have ended its line.
#[derive(Debug)]
struct Deadline {
    pace: Pace,
    /// Where there is one for the first line.
    first: Option<Late>,
    /// Since when a line is being read.
    begun: Option<Instant>,
}

impl Deadline {
    fn new(limits: &Limits) -> Self {
        Self {
            pace: limits.sender_pace().spread(rand::random()),
            first: limits.first_line.map(|time| Late {
                at: Instant::now() + time,
                counter: Counter::EndedFirstLine,
                text: "there was no line from you in time",
            }),
            begun: None,
        }
    }

    /// When the line of which so many bytes are there has to have ended. Asked for before each read, so a time in which the
    /// client was held does not count.
    fn due(&mut self, pending: usize) -> Option<Late> {
        if pending == 0 {
            self.begun = None;
            return self.first;
        }
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let slow = Late {
            at: begun + self.pace.allows(pending),
            counter: Counter::EndedSlowLine,
            text: "your line did not end in time",
        };
        Some(self.first.filter(|first| first.at < slow.at).unwrap_or(slow))
    }

    fn line_ended(&mut self) {
        (self.first, self.begun) = (None, None);
    }
}

/// Waits until a line is late; for ever where none can be.
async fn late(due: Option<Late>) -> Late {
    let Some(late) = due else {
        return std::future::pending().await;
    };
    sleep_until(late.at.into()).await;
    late
}

/// Writes what is queued until the queue has ended. A client that takes nothing for too long, or too little, is given up.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    outbox: &Outbox,
    limits: &Limits,
    counters: &Counters,
) -> io::Result<()> {
    let timed_out = |counter, text| {
        counters.bump(counter);
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    let mut last: Option<Instant> = None;
    let mut turn = Turn::new();
    while let Some(bytes) = outbox.take().await {
        let mut rest = bytes.as_slice();
        let mut piece = Piece::default();
        let mut messages = 0;
        while rest.has_remaining() {
            let now = Instant::now();
            if piece.left == 0 {
                piece.left = rest.len().min(WRITE);
                piece.due = Some(now + limits.reader_pace().allows(piece.left));
            }
            let stalled = now + limits.stall;
            let due = piece.due.map_or(stalled, |due| due.min(stalled));
            let bytes = rest.get(..piece.left).unwrap_or(rest);
            let written = timeout_at(due.into(), writer.write(bytes)).await.map_err(|_| {
                if due == stalled {
                    timed_out(Counter::EndedStalled, "it took nothing for too long")
                } else {
                    timed_out(Counter::EndedSlowReader, "it took what was written to it too slowly")
                }
            })??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            piece.left = piece.left.saturating_sub(written);
            rest.advance(written);
            let ends = outbox.written(written);
            messages += ends.len();
            settle_all(ends);
            turn.bytes(written).await;
        }
        outbox.give_back(bytes);
        // Where more is coming, the others' turns gather it: a write for each message is most of what it costs.
        let now = Instant::now();
        if last.replace(now).is_some_and(|last| now - last < BUSY) && messages > 1 {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        }
    }
    writer.shutdown().await
}

/// What is being written of the queue: so much of it is left, to be through by then.
#[derive(Debug, Default)]
struct Piece {
    left: usize,
    due: Option<Instant>,
}

/// Lets the client read what was written to it before the connection is closed.
async fn linger(socket: &mut TcpStream) {
    // Fails where the other side is gone.
    let _ = socket.shutdown().await;
    let discard = async {
        let mut waste = vec![0; LINGER_READ];
        let mut total = 0;
        let mut turn = Turn::new();
        while total < LINGER_BYTES {
            match socket.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    total += length;
                    turn.bytes(length).await;
                }
            }
        }
    };
    // The deadline is the normal end for a client that goes on writing.
    let _ = timeout(LINGER, discard).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has so many bytes written, to a reader that takes some every so often; says how that ended, and how long it took.
    async fn written_to(
        reader: (usize, Duration),
        bytes: usize,
        limits: &Limits,
    ) -> (io::Result<()>, Duration, Counters) {
        let (counters, outbox) = (Counters::new(), Outbox::new(1, Arc::default()));
        outbox.push_notice(|out, _| out.resize(bytes, b'x'));
        outbox.finish();
        // Far less than is written: nothing gets on but by what is read.
        let (near, mut far) = tokio::io::duplex(8);
        let reading = async move {
            let mut buffer = vec![0; reader.0];
            while far.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                sleep(reader.1).await;
            }
        };
        let started = Instant::now();
        let writing = async { (write(near, &outbox, limits, &counters).await, started.elapsed()) };
        let ((ended, took), ()) = tokio::join!(writing, reading);
        (ended, took, counters)
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_byte_now_and_then_is_given_up() {
        let limits = Limits {
            stall: Duration::from_millis(300),
            min_rate: 10_000,
            ..Limits::default()
        };
        let (ended, took, counters) = written_to((1, Duration::from_millis(20)), 1000, &limits).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(took >= Duration::from_millis(400), "{took:?}");
        assert_eq!(counters.snapshot()["ended-slow-reader"], 1);
        assert_eq!(counters.snapshot()["ended-stalled"], 0);
    }

    #[tokio::test]
    async fn a_reader_that_keeps_up_the_rate_may_take_longer_than_a_stall() {
        let limits = Limits {
            stall: Duration::from_millis(300),
            min_rate: 100,
            ..Limits::default()
        };
        let (ended, took, _) = written_to((8, Duration::from_millis(5)), 1000, &limits).await;
        assert!(ended.is_ok() && took > limits.stall, "{ended:?} after {took:?}");
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up_however_much_there_is() {
        let limits = Limits {
            stall: Duration::from_millis(100),
            min_rate: 1,
            ..Limits::default()
        };
        let (ended, _, counters) = written_to((8, Duration::from_millis(300)), 1000, &limits).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(counters.snapshot()["ended-stalled"], 1);
    }
}
