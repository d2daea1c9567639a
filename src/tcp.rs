//! Legacy clients: the TCP listener, and a session a connection.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use smol_str::SmolStr;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::address::Address;
use crate::clients::{Admission, ClientContext};
use crate::flow::Flow;
use crate::message::{Message, Recipient, Settle, Tag, Ticket, settle_all};
use crate::outbox::Outbox;
use crate::outcome::{Code, Outcome};
use crate::phase::Phase;
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

/// How many clients for which there is no place may be told so at once; more are closed without a word.
const TURNED_AWAY: usize = 64;

/// Accepts legacy clients until the node stops.
pub(crate) async fn listen(listener: TcpListener, context: Arc<ClientContext>) {
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
    loop {
        let accepted = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Draining) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, remote)) => {
                let (context, turned_away) = (Arc::clone(&context), Arc::clone(&turned_away));
                context.tracker.clone().spawn(async move {
                    match context.admit() {
                        Some(admission) => serve(socket, &context, admission).await,
                        None => {
                            debug!(%remote, "refused: as many clients as there may be");
                            if let Ok(_place) = turned_away.try_acquire() {
                                turn_away(socket).await;
                            }
                        }
                    }
                });
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
                warn!("can't accept TCP clients, and try again: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells a client that there is no place for it.
async fn turn_away(mut socket: TcpStream) {
    let mut out = Vec::new();
    let text = "this node has as many clients as it may; try again later, or another node";
    line::write_error(&mut out, line::Format::Text, Code::RateLimited, text);
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

/// Where a client's last write was less than this ago, all other tasks have their turns, so many times, before the next
/// one, and what comes for it meanwhile goes out together. Measured: a backlog of 120,000 messages to 100 clients took
/// 0.6 of the time.
const BUSY: Duration = Duration::from_millis(20);
const TURNS: u32 = 4;

/// What a message of a line client is answered with.
type Reply = Option<SmolStr>;

/// A legacy client.
struct LineSession {
    address: Address,
    outbox: Outbox,
    flow: Mutex<Flow<Reply>>,
    /// A message of this client has ended.
    ended: Notify,
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
    /// The connection broke.
    Broken,
}

async fn serve(mut socket: TcpStream, context: &ClientContext, _admission: Admission) {
    // Small lines are to leave at once; batching is done here, not by the kernel.
    let _ = socket.set_nodelay(true);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE / 6);
    let _ = SockRef::from(&socket).set_tcp_keepalive(&keep_alive);
    let registry = context.router.registry();
    let id = registry.fresh_id();
    let session = Arc::new_cyclic(|this| LineSession {
        address: Address {
            node: context.router.name().clone(),
            id: id.clone(),
        },
        outbox: Outbox::new(context.limits.outbox_bytes),
        flow: Mutex::new(Flow::new(context.limits.window())),
        ended: Notify::new(),
        this: this.clone(),
    });
    session
        .outbox
        .push_notice(|out, _| line::write_greeting(out, &session.address));
    let registration = registry.register(id, Arc::<LineSession>::clone(&session));

    let stop = tokio::select! {
        stop = session.converse(&mut socket, context) => stop,
        never = session.give_up(context) => never,
    };
    drop(registration);
    settle_all(session.outbox.close());
    match stop {
        Ok(Stop::Unfollowable | Stop::Draining) => linger(&mut socket).await,
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
    async fn converse(&self, socket: &mut TcpStream, context: &ClientContext) -> io::Result<Stop> {
        let (reader, writer) = socket.split();
        let writing = write(writer, &self.outbox, context.limits.stall);
        tokio::pin!(writing);
        let reading = async {
            let stop = self.read(reader, context).await;
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
        };
        if stop != Stop::Broken {
            tokio::select! {
                written = &mut writing => written?,
                () = context.phase.reached(Phase::Closing) => {}
            }
        }
        Ok(stop)
    }

    /// Reads and follows the client's lines until there are no more or there may be no more.
    async fn read(&self, reader: ReadHalf<'_>, context: &ClientContext) -> Stop {
        let mut lines = Lines::new(context.limits.max_line());
        let mut turn = Turn::new();
        let mut first = true;
        loop {
            // Nothing is kept for a client that says nothing.
            lines.release();
            let ready = tokio::select! {
                biased;
                () = context.phase.reached(Phase::Draining) => {
                    self.error(Code::ShuttingDown, Code::ShuttingDown.advice());
                    return Stop::Draining;
                }
                ready = reader.readable() => ready,
            };
            if ready.is_err() {
                return Stop::Broken;
            }
            match reader.try_read_buf(lines.buffer()) {
                Ok(0) => break,
                Ok(read) => turn.bytes(read).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Stop::Broken,
            }
            if first {
                if let Some(text) = line::stranger(lines.pending()) {
                    self.error(Code::BadJson, text);
                    return Stop::Unfollowable;
                }
                first = lines.pending().len() < STRANGER_BYTES;
            }
            loop {
                match lines.next_line() {
                    Ok(Some(line)) => {
                        self.follow(line, context).await;
                        // At each line: an empty one makes an answer of sixty bytes, and one read can bring a million.
                        self.outbox.notices_below(NOTICES).await;
                        turn.item().await;
                    }
                    Ok(None) => break,
                    Err(too_long) => {
                        self.error(Code::TooLarge, &too_long.to_string());
                        return Stop::Unfollowable;
                    }
                }
                first = false;
            }
        }
        if let Some(line) = lines.take_rest() {
            self.follow(line, context).await;
        }
        Stop::Eof
    }

    /// Does what one line says. Waits while the client has as much under way as it may.
    async fn follow(&self, line: &[u8], context: &ClientContext) {
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
                match to.parse() {
                    Ok(to) => {
                        let body = Bytes::copy_from_slice(body.as_bytes());
                        self.send(to, body, reply, context).await;
                    }
                    Err(error) => {
                        let text = format!("`to` is not HOST:PORT:ID: {error}");
                        self.answer(reply, Outcome::Refused(Code::BadAddress), Some(&text));
                    }
                }
            }
            Ok(Request::Hello { format }) => self.outbox.set_format(format),
            Err(rejected) => {
                let reply = rejected.id.map(|id| SmolStr::new(&id));
                self.answer(reply, Outcome::Refused(rejected.code), Some(&rejected.text));
            }
        }
    }

    async fn send(&self, to: Address, body: Bytes, reply: Reply, context: &ClientContext) {
        let message = Message {
            from: self.address.clone(),
            to,
            body,
        };
        loop {
            let ended = self.ended.notified();
            if self.flow.lock().has_room(&message.to) {
                break;
            }
            ended.await;
        }
        let key = self.flow.lock().start(&message.to, message.size(), reply);
        let Some(origin) = self.this.upgrade() else {
            return;
        };
        let ticket = Ticket {
            origin,
            tag: Tag {
                number: key as u64,
                incarnation: 0,
            },
        };
        context.route(message, ticket).await;
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
        for &(tag, outcome) in ends {
            let reply = usize::try_from(tag.number)
                .ok()
                .and_then(|key| self.flow.lock().settle(key));
            if let Some(reply) = reply {
                self.answer(reply, outcome, None);
            }
        }
        self.ended.notify_waiters();
    }
}

impl Recipient for LineSession {
    fn push(&self, message: Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        self.outbox.push(&message, ticket)
    }
}

/// Writes what is queued until the queue has ended. A client that takes nothing for as long as `stall` is given up.
async fn write(mut writer: WriteHalf<'_>, outbox: &Outbox, stall: Duration) -> io::Result<()> {
    let mut last: Option<Instant> = None;
    let mut turn = Turn::new();
    while let Some(bytes) = outbox.take().await {
        let mut rest = bytes.as_slice();
        while rest.has_remaining() {
            let piece = rest.get(..WRITE).unwrap_or(rest);
            let written = timeout(stall, writer.write(piece))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it took nothing for too long"))??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest.advance(written);
            settle_all(
                outbox
                    .written(written)
                    .into_iter()
                    .map(|ticket| (ticket, Outcome::Delivered)),
            );
            turn.bytes(written).await;
        }
        // Where more is coming, the others' turns gather it: a write for each message is most of what it costs.
        let now = Instant::now();
        if last.replace(now).is_some_and(|last| now - last < BUSY) {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        }
    }
    writer.shutdown().await
}

/// Lets the client read what was written to it before the connection is closed.
async fn linger(socket: &mut TcpStream) {
    // Fails where the other side is gone.
    let _ = socket.shutdown().await;
    let discard = async {
        let mut waste = vec![0; 64 * 1024];
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
