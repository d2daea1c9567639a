//! A legacy client's session: its lines followed, its messages under way, what is for it.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::OptionFuture;
use parking_lot::Mutex;
use smol_str::SmolStr;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::addressee::Addressee;
use super::deadline::{Deadline, late};
use super::linger::{LINGER, linger};
use super::writer;
use crate::address::{Address, ClientId};
use crate::clients::{Admission, ClientContext, OTHER_SUBJECT};
use crate::counters::Counter;
use crate::course::Course;
use crate::flow::{Flow, Started};
use crate::keyring::Permit;
use crate::message::{Conversation, Message, Recipient, Settle, Tag, Ticket, settle_all};
use crate::outbox::Outbox;
use crate::outcome::{Code, Outcome};
use crate::permission::Login;
use crate::phase::Phase;
use crate::restraint::Restraint;
use crate::router::Blocked;
use crate::turn::Turn;
use crate::wire::framing::Lines;
use crate::wire::handover;
use crate::wire::line::{self, Request};

/// Bytes of errors and receipts that may wait for a client before no more is read from it.
const NOTICES: usize = 64 * 1024;

/// How long what has a client's id may take to make room for it.
const REGISTERED: Duration = Duration::from_secs(5);

/// What a client is told whose token holds no more.
const OVER: &str = "your token has expired or is not accepted any more; connect again with a new one";

/// After this silence the system asks a client's host whether the connection is still there, and ends it if not: a host
/// that vanished would hold its place for ever, as nothing is written to who gets no message.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The ends of messages with larger bodies are told at once: they are what a client's window is made of.
const SMALL_BODY: usize = 4096;

/// What a message of a line client is answered with.
type Reply = Option<SmolStr>;

/// What could not be done of a line at once.
enum Rest<'a> {
    /// Another token is to be judged.
    Login { token: Cow<'a, str>, reply: Reply },
    /// The client has as much under way as it may.
    WindowFull { message: Message, reply: Reply },
    /// There is no room where the message goes.
    Blocked(Blocked),
}

/// A legacy client.
pub(super) struct LineSession {
    address: Address,
    /// Where the connection comes from, if that matters: where there are legacy servers.
    remote: Option<Box<IpAddr>>,
    pub(super) outbox: Outbox,
    pub(super) flow: Mutex<Flow<Reply>>,
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
pub(super) enum Stop {
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

/// Serves a client that has logged in, or need not. What it wrote behind that stands in `lines`. Both are borrowed, as each
/// future on the way to where they are used would have a place for them of its own.
pub(super) async fn serve(
    socket: &mut TcpStream,
    lines: &mut Lines,
    login: Option<Box<Login>>,
    context: &ClientContext,
    admission: &Admission,
) {
    // Small lines are to leave at once; batching is done here, not by the kernel.
    let _ = socket.set_nodelay(true);
    keep_alive(socket);
    let registry = context.router.registry();
    let id = match &login {
        Some(login) => login.subject.clone(),
        None => registry.fresh_id(),
    };
    let session = LineSession::new(id.clone(), login.as_deref(), admission, context);
    drop(login);
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
        stop = session.converse(socket, lines, context) => stop,
        never = session.give_up(context) => never,
        () = session.replaced.cancelled() => Ok(Stop::Replaced),
    };
    drop(registration);
    settle_all(session.outbox.close());
    match stop {
        Ok(Stop::Unfollowable | Stop::Draining | Stop::Replaced | Stop::Over) => {
            lines.discard();
            linger(socket).await;
        }
        Ok(Stop::Eof | Stop::Broken) => {}
        Err(error) => debug!(client = %session.address, "gone: {error}"),
    }
}

/// Has the system look after a connection on which nothing is said.
fn keep_alive(socket: &TcpStream) {
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE / 6);
    let _ = SockRef::from(socket).set_tcp_keepalive(&keep_alive);
}

impl LineSession {
    /// A client that is let in under this id, with what its login allows.
    pub(super) fn new(
        id: ClientId,
        login: Option<&Login>,
        admission: &Admission,
        context: &ClientContext,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            address: Address {
                node: context.router.name().clone(),
                id,
            },
            remote: context.router.has_legacy().then(|| Box::new(admission.remote())),
            outbox: Outbox::new(context.limits.outbox_bytes, Arc::clone(&context.buffers)),
            flow: Mutex::new(Flow::new(context.limits.window())),
            restraint: admission.restraint(context, login),
            ended: Notify::new(),
            replaced: CancellationToken::new(),
            permit: context.keyring.permit(login),
            this: this.clone(),
        })
    }

    /// When the grace of a shutdown is over: tells the senders of what this client has not taken, which it may yet
    /// take in part. Never ends, so that the client is still told of its own messages.
    async fn give_up<N>(&self, context: &ClientContext) -> N {
        context.phase.reached(Phase::GivingUp).await;
        let abandoned = self.outbox.abandon().into_iter();
        settle_all(abandoned.map(|ticket| (ticket, Outcome::Unknown(Code::ShuttingDown))));
        std::future::pending().await
    }

    /// Reads and writes until one side has had enough. An error is one of writing.
    async fn converse(&self, socket: &mut TcpStream, lines: &mut Lines, context: &ClientContext) -> io::Result<Stop> {
        let (reader, writer) = socket.split();
        let writing = writer::write(writer, &self.outbox, &context.limits, &context.counters);
        tokio::pin!(writing);
        let reading = async {
            let stop = self.read(reader, lines, context).await;
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
    async fn read(&self, mut reader: ReadHalf<'_>, lines: &mut Lines, context: &ClientContext) -> Stop {
        let mut turn = Turn::new();
        // Who has logged in is none.
        let mut first = !context.rule.takes_tokens();
        let mut deadline = Deadline::new(&context.limits);
        let mut last = Addressee::new();
        let idle = context.limits.idle.map(|limit| Box::pin(self.restraint.idle(limit)));
        let mut idle = OptionFuture::from(idle);
        // What came with the login. On the heap, here and below, as what a client that says nothing does not need is not to be
        // part of its task: that is a kilobyte.
        let followed = Box::pin(self.follow_all(lines, &mut turn, &mut deadline, &mut last, context));
        if let Err(stop) = followed.await {
            return stop;
        }
        loop {
            if context.phase.has_reached(Phase::Draining) {
                self.error(Code::ShuttingDown, Code::ShuttingDown.advice());
                return Stop::Draining;
            }
            if let Some(backlog) = last.backlog() {
                Box::pin(backlog.give_way()).await;
            }
            if lines.is_bare() {
                lines.furnish(context.buffers.take());
            }
            // A read that does not fill its buffer has emptied the system's: it is not asked once more.
            let read = match futures_util::poll!(pin!(reader.read_buf(lines.buffer()))) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(_)) => return Stop::Broken,
                Poll::Pending => {
                    // Nothing is kept for a client that says nothing.
                    last.course.rest();
                    if let Some(buffer) = lines.release() {
                        context.buffers.give_back(buffer);
                    }
                    let due = deadline.due(lines.pending().len());
                    let late = OptionFuture::from(due.map(|due| Box::pin(late(due))));
                    tokio::select! {
                        biased;
                        // Above it is said what follows from it.
                        () = context.phase.reached(Phase::Draining) => {}
                        ready = reader.readable() => if ready.is_err() {
                            return Stop::Broken;
                        },
                        Some(late) = late => {
                            context.counters.bump(late.counter);
                            self.error(Code::ProtocolError, late.text);
                            return Stop::Unfollowable;
                        }
                        Some(()) = &mut idle => {
                            self.error(Code::NotAllowed, "there was no message from you or for you for too long");
                            return Stop::Unfollowable;
                        }
                    }
                    continue;
                }
            };
            if first {
                if let Some(text) = line::stranger(lines.pending()) {
                    context.counters.bump(Counter::EndedStranger);
                    self.error(Code::BadJson, text);
                    return Stop::Unfollowable;
                }
                first = lines.pending().len() < line::STRANGER_BYTES;
            }
            let followed = Box::pin(self.follow_all(lines, &mut turn, &mut deadline, &mut last, context));
            match followed.await {
                Ok(lines) => {
                    first &= lines == 0;
                    last.brought(lines);
                }
                Err(stop) => return stop,
            }
            // Not before: who is called to go on has to have put in what it brings before the next one is.
            turn.bytes(read).await;
        }
        if let Some(line) = lines.take_rest() {
            last.look_at_the_clock();
            Box::pin(self.follow_line(line, &mut last, context)).await;
        }
        Stop::Eof
    }

    /// Does what all whole lines say. Gives how many there were.
    pub(super) async fn follow_all(
        &self,
        lines: &mut Lines,
        turn: &mut Turn,
        deadline: &mut Deadline,
        last: &mut Addressee,
        context: &ClientContext,
    ) -> Result<usize, Stop> {
        let mut count = 0;
        last.look_at_the_clock();
        loop {
            match lines.next_line() {
                Ok(Some(line)) => {
                    deadline.line_ended();
                    self.restraint.busy();
                    self.follow_line(line, last, context).await;
                    // At each line: an empty one makes an answer of sixty bytes, and one read can bring a million.
                    if self.outbox.notices() > NOTICES {
                        self.outbox.notices_below(NOTICES).await;
                        last.look_at_the_clock();
                    }
                    if turn.is_over_after_item() {
                        last.brought(count);
                        tokio::task::yield_now().await;
                        if let Some(backlog) = last.backlog() {
                            backlog.give_way().await;
                        }
                        last.look_at_the_clock();
                    }
                }
                Ok(None) => return Ok(count),
                Err(too_long) => {
                    context.counters.bump(Counter::EndedLongLine);
                    self.error(Code::TooLarge, &too_long.to_string());
                    return Err(Stop::Unfollowable);
                }
            }
            count += 1;
        }
    }

    /// Does what one line says, once the client may send it.
    async fn follow_line(&self, line: &[u8], last: &mut Addressee, context: &ClientContext) {
        if !self.restraint.passes(line.len()) {
            self.restraint.hold(line.len(), &context.phase).await;
            last.look_at_the_clock();
        }
        // Of most lines there is no rest; what one needs is not to be part of this task.
        if let Some(rest) = self.follow(line, last, context) {
            Box::pin(self.follow_rest(rest, last, context)).await;
        }
    }

    /// Does what one line says, but for what has to wait.
    fn follow<'l>(&self, line: &'l [u8], last: &mut Addressee, context: &ClientContext) -> Option<Box<Rest<'l>>> {
        match line::parse(line) {
            Ok(Request::Send { to, body, id }) => {
                let reply = id.map(|id| SmolStr::new(&id));
                return self.send(line, &to, &body, reply, last, context).map(Box::new);
            }
            Ok(Request::Hello { format }) => self.outbox.set_format(format),
            Ok(Request::Login { token, id }) => {
                let reply = id.map(|id| SmolStr::new(&id));
                return Some(Box::new(Rest::Login { token, reply }));
            }
            Err(rejected) => {
                let reply = rejected.id.map(|id| SmolStr::new(&id));
                self.answer(reply, Outcome::Refused(rejected.code), Some(&rejected.text));
            }
        }
        None
    }

    /// Does the rest of what a line says. Waits for a token to be judged, for room in the client's window, or on the way
    /// that the message takes.
    async fn follow_rest(&self, rest: Box<Rest<'_>>, last: &mut Addressee, context: &ClientContext) {
        match *rest {
            Rest::Login { token, reply } => match self.log_in_again(&token, context).await {
                Ok(()) => self.answer(reply, Outcome::Delivered, None),
                Err(text) => self.answer(reply, Outcome::Refused(Code::NotAllowed), Some(&text)),
            },
            Rest::WindowFull { message, reply } => {
                let started = self.start(&message, reply).await;
                last.look_at_the_clock();
                if let Err(blocked) = self.pass_on(message, started, &mut last.course, context) {
                    context.route_once_free(blocked, &mut last.course).await;
                }
            }
            Rest::Blocked(blocked) => context.route_once_free(blocked, &mut last.course).await,
        }
        last.look_at_the_clock();
    }

    /// Whom a line is from that a legacy server passes on: it says so, and comes from where that server is. In a box, as
    /// it would be moved about with each message of all others, too.
    fn legacy_sender(&self, line: &[u8], context: &ClientContext) -> Option<Box<Address>> {
        let remote = *self.remote.as_deref()?;
        if !context.router.has_legacy_at(remote) {
            return None;
        }
        let from: Address = handover::claimed_from(line)?.parse().ok()?;
        context.router.speaks_for(remote, &from.node).then(|| Box::new(from))
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

    /// Sends a message, but for what has to wait.
    fn send(
        &self,
        line: &[u8],
        to: &str,
        body: &str,
        reply: Reply,
        last: &mut Addressee,
        context: &ClientContext,
    ) -> Option<Rest<'static>> {
        if body.len() > context.limits.max_message {
            let text = format!(
                "the body is over this node's limit of {} bytes",
                context.limits.max_message
            );
            self.answer(reply, Outcome::Refused(Code::TooLarge), Some(&text));
            return None;
        }
        let mut conversation = match last.conversation(&self.address, to) {
            Ok(conversation) => conversation,
            Err(error) => {
                let text = format!("`to` is not HOST:PORT:ID: {error}");
                self.answer(reply, Outcome::Refused(Code::BadAddress), Some(&text));
                return None;
            }
        };
        if let Some(from) = self.legacy_sender(line, context) {
            let to = conversation.to().clone();
            // One hop: else a legacy server could have this node speak to others for its clients.
            if to.node != *context.router.name() {
                context.counters.bump(Counter::RefusedHop);
                self.answer(reply, Outcome::Refused(Code::NoSuchClient), None);
                return None;
            }
            conversation = Conversation::new(*from, to);
        }
        if !self.permit.may_send(conversation.to()) {
            context.counters.bump(Counter::RefusedPermission);
            self.answer(reply, Outcome::Refused(Code::NotAllowed), None);
            return None;
        }
        let message = Message {
            conversation,
            prompt: reply.is_some() || body.len() > SMALL_BODY,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let started = self.flow.lock().try_start(message.to(), message.size(), reply);
        match started {
            Ok(started) => {
                let passed_on = self.pass_on(message, started, &mut last.course, context);
                passed_on.err().map(Rest::Blocked)
            }
            Err(reply) => Some(Rest::WindowFull { message, reply }),
        }
    }

    /// Passes on a message that counts as under way.
    fn pass_on(
        &self,
        mut message: Message,
        started: Started,
        course: &mut Course,
        context: &ClientContext,
    ) -> Result<(), Blocked> {
        message.prompt |= started.is_scarce;
        let Some(origin) = self.this.upgrade() else {
            return Ok(());
        };
        let ticket = Ticket {
            origin,
            tag: Tag::prompt(started.key as u64, 0),
        };
        context.router.route(message, ticket, course)
    }

    /// Counts a message as under way; waits while it may not be sent yet.
    async fn start(&self, message: &Message, mut reply: Reply) -> Started {
        loop {
            let ended = self.ended.notified();
            let started = self.flow.lock().try_start(message.to(), message.size(), reply);
            match started {
                Ok(started) => return started,
                Err(back) => reply = back,
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
            // All went as well as it can, and there is no line that says so.
            (None, Some(Code::Unconfirmed)) => {}
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
    fn push(&self, message: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        if !self.permit.may_receive() {
            return Err((ticket, Code::NotAllowed));
        }
        self.restraint.busy();
        self.outbox.push(message, ticket)
    }

    fn yield_place(&self) {
        self.replaced.cancel();
    }
}
