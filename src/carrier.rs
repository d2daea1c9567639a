//! Drives an exchange over one QUIC connection: a unidirectional stream a message, a control stream for the rest.
//!
//! The same code serves a link between two nodes, a node's side of a QUIC client, and the client's own. They differ
//! in how things are written ([`Codec`]) and in where messages go ([`Handler`]).
//!
//! All of it runs in the caller's task, as futures joined together: when the returned future is dropped, nothing goes
//! on.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::{Sleep, interval, sleep_until};

use crate::delivery::{Control, Taken, Violation};
use crate::exchange::{Exchange, Incoming, Settled};
use crate::message::Message;
use crate::pace::Pace;
use crate::turn::Turn;
use crate::wire::client::Token;

/// The most messages that are handed to the connection before it gets to run, and the most bytes of them that are
/// copied for it.
const BATCH_MESSAGES: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;

/// Bodies up to this size are copied behind their header; larger ones are handed over as they are.
const COPY_BODY: usize = 4096;

/// How much memory is had at once for what is copied. A message that is sent again and again keeps as much.
pub(crate) const COPIED: usize = 16 * 1024;

/// The first bytes of a stream do not count against what may be under way: a header is no message.
const UNCOUNTED: usize = 1024;

/// The control stream goes before all others.
pub(crate) const CONTROL_PRIORITY: i32 = 1;

/// How much of the control stream is read at once.
const CONTROL_READ: usize = 16 * 1024;

/// Why a connection was closed: the application error codes on the wire.
pub(crate) mod close {
    use quinn::VarInt;

    /// Nothing is wrong: one side is done.
    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    /// The other side broke the protocol.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// Another connection serves this pair of nodes.
    pub(crate) const DUPLICATE: VarInt = VarInt::from_u32(2);
    /// The other side speaks no version that this one does.
    pub(crate) const VERSION: VarInt = VarInt::from_u32(3);
    /// Nothing was heard for too long.
    pub(crate) const SILENT: VarInt = VarInt::from_u32(4);
    /// There are as many connections as there may be.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(5);
    /// The certificate or token does not say what it must, or is no good any more.
    pub(crate) const IDENTITY: VarInt = VarInt::from_u32(6);
    /// Another connection of the same client has its id now.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(7);
}

/// Closes a connection whose greeting is broken off, unless it is disarmed. A connection that is merely dropped would
/// be closed as if its side were done.
pub(crate) struct BreakOff(Option<Connection>);

impl BreakOff {
    /// Armed for this connection.
    pub(crate) fn new(connection: &Connection) -> Self {
        Self(Some(connection.clone()))
    }

    /// The greeting has come to its end.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for BreakOff {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close(close::DUPLICATE, b"another connection takes its place");
        }
    }
}

/// Closes a connection before its streams are dropped: quinn ends a stream that is dropped as if all had been written,
/// and the other side would take the beginning of a message for the whole.
struct CloseFirst<'a>(&'a Connection);

impl Drop for CloseFirst<'_> {
    fn drop(&mut self) {
        self.0.close(close::DONE, b"this side has ended it");
    }
}

/// What travels on a control stream.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A frame of the delivery machine.
    Control(Control),
    /// Asks for a `Pong` with the same number.
    Ping(u64),
    /// Answers a `Ping`.
    Pong(u64),
    /// The other side will say nothing more and waits for the connection to be closed.
    Goodbye,
    /// A client shows a token.
    Login(Token),
    /// What came of that: accepted, or a code and a text.
    Judged(Result<(), (String, String)>),
}

/// A message read from a stream.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) number: u64,
    pub(crate) after: u64,
    pub(crate) message: Incoming,
}

/// What the other side wrote can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

impl Malformed {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// How messages and frames are written on one kind of connection.
pub(crate) trait Codec: Sync {
    /// Appends what comes before the body on a message's stream.
    fn write_header(&self, number: u64, after: u64, message: &Message, out: &mut BytesMut);

    /// Reads a message's stream. When it is not `whole`, it went over the limit and this is its beginning.
    fn read_message(&self, stream: Bytes, whole: bool) -> Result<Arrived, Malformed>;

    /// Appends a frame, if this kind of connection has it.
    fn write_frame(&self, frame: &Frame, out: &mut BytesMut);

    /// Takes a frame off the front; `None` while it is not all there.
    fn read_frame(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed>;
}

/// Where messages and their ends go.
pub(crate) trait Handler<T>: Sync {
    /// Passes on all messages that were taken, in this order.
    fn taken(&self, incarnation: u32, taken: &mut Vec<Taken<Incoming>>);

    /// Messages that were submitted have ended.
    fn settled(&self, settled: Settled<T>);

    /// The other side has said goodbye; it will take what was sent, and wants the connection closed.
    fn goodbye(&self) {}

    /// A frame of a login has come.
    fn login(&self, _frame: Frame) -> Result<(), Malformed> {
        Ok(())
    }

    /// What is to be said of logins; asked for after [`Exchange::wake_control`].
    fn due_of_logins(&self) -> Vec<Frame> {
        Vec::new()
    }
}

/// How the carrier watches over the other side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Liveness {
    /// How often to ping.
    pub(crate) ping: Duration,
    /// How long a silence may last before the connection is given up.
    pub(crate) silence: Duration,
}

/// Why a carrier ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The connection is gone.
    #[error("{0}")]
    Lost(#[from] ConnectionError),
    /// The other side broke the rules of the exchange.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The other side wrote what can't be understood.
    #[error("the other side broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    /// The other side was too slow with a message, whose number can't be passed over.
    #[error("the other side broke the protocol: the stream of a message did not end in time")]
    Slow,
    /// The other side closed or reset a stream that lasts as long as the connection.
    #[error("the control stream ended")]
    NoControl,
    /// Nothing was heard for too long.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
}

impl Ended {
    /// Whether one of the two sides has simply gone, and said so.
    pub(crate) fn is_farewell(&self) -> bool {
        match self {
            Self::Lost(ConnectionError::LocallyClosed) => true,
            Self::Lost(ConnectionError::ApplicationClosed(closed)) => closed.error_code == close::DONE,
            _ => false,
        }
    }

    /// Whether the connection broke, so that its client may come back by another: neither side has ended the session.
    pub(crate) fn is_break(&self) -> bool {
        match self {
            Self::Lost(ConnectionError::LocallyClosed) => false,
            Self::Lost(ConnectionError::ApplicationClosed(closed)) => closed.error_code == close::DUPLICATE,
            Self::Lost(_) => true,
            _ => false,
        }
    }

    /// The code and the reason to close the connection with.
    fn close_code(&self) -> VarInt {
        match self {
            Self::Lost(_) => close::DONE,
            Self::Violation(_) | Self::Malformed(_) | Self::Slow | Self::NoControl => close::PROTOCOL,
            Self::Silent(_) => close::SILENT,
        }
    }
}

impl From<WriteError> for Ended {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::NoControl,
        }
    }
}

impl From<ReadError> for Ended {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Lost(error),
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::NoControl,
        }
    }
}

/// The control stream, once the two sides have greeted each other.
#[derive(Debug)]
pub(crate) struct ControlStream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// What was read beyond the greeting.
    pub(crate) buffer: BytesMut,
}

/// How long the end of a message waits for others, if its sender does not wait for it. Each report costs the other node a
/// wake-up. Measured at 5,000 messages a second, together with fewer acknowledgements and fewer system calls: 0.82 of the
/// processor time of both nodes.
const COMPANY: Duration = Duration::from_millis(5);

/// How many unanswered pings are remembered.
const MOST_PINGS: usize = 64;

/// One exchange on one connection.
pub(crate) struct Carrier<'a, T, C, H> {
    pub(crate) connection: &'a Connection,
    pub(crate) exchange: &'a Exchange<T>,
    pub(crate) codec: &'a C,
    pub(crate) handler: &'a H,
    /// The most bytes of a message's stream.
    pub(crate) max_stream: usize,
    /// What is asked of the other side while it sends a message; `None`: nothing.
    pub(crate) pace: Option<Pace>,
    /// How much is taken in before the other tasks come.
    pub(crate) turn: Turn,
    /// `None`: QUIC's own idle timeout is enough.
    pub(crate) liveness: Option<Liveness>,
    /// When the other side was last heard of.
    pub(crate) heard: &'a Heard,
}

/// What is read of messages on one connection, in bytes. Of one task, which changes it without a locked instruction.
#[derive(Debug, Default)]
struct Reading {
    /// Of the streams that have not ended.
    open: AtomicUsize,
    /// Of all streams there were.
    ever: AtomicUsize,
}

fn add(sum: &AtomicUsize, more: usize) -> usize {
    let sum_now = sum.load(Ordering::Relaxed).wrapping_add(more);
    sum.store(sum_now, Ordering::Relaxed);
    sum_now
}

/// Reads the stream of one message to its end.
struct Read<'a, C> {
    stream: RecvStream,
    codec: &'a C,
    reading: &'a Reading,
    /// The most bytes of a stream.
    max_stream: usize,
    /// The most bytes of all streams that have not ended.
    most: usize,
    pace: Option<Pace>,
    /// When it was first found that not all is there, and what was read of all streams then.
    begun: Option<(Instant, usize)>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What of it counts as read of streams that have not ended.
    counted: usize,
    /// The first piece, as long as it is the only one.
    whole: Bytes,
    pieces: BytesMut,
}

impl<C: Codec> Read<'_, C> {
    /// One more piece has come; gives the message if it went over the limit.
    fn add(&mut self, piece: Bytes) -> Result<Option<Arrived>, Ended> {
        add(&self.reading.ever, piece.len());
        if self.whole.is_empty() && self.pieces.is_empty() {
            self.whole = piece;
        } else {
            self.pieces.extend_from_slice(&std::mem::take(&mut self.whole));
            self.pieces.extend_from_slice(&piece);
        }
        let length = self.whole.len() + self.pieces.len();
        let more = length.saturating_sub(UNCOUNTED).saturating_sub(self.counted);
        self.counted += more;
        if add(&self.reading.open, more) > self.most {
            return Err(Violation::OverBounds.into());
        }
        if length <= self.max_stream {
            return Ok(None);
        }
        // Fails only when the stream has ended by itself.
        let _ = self.stream.stop(close::DONE);
        let beginning = self.take();
        Ok(Some(self.codec.read_message(beginning, false)?))
    }

    fn take(&mut self) -> Bytes {
        if self.pieces.is_empty() {
            return std::mem::take(&mut self.whole);
        }
        self.pieces.extend_from_slice(&self.whole);
        self.pieces.split().freeze()
    }

    /// When the stream has to have ended.
    ///
    /// What is asked of the client is asked of all its streams together, as they share its connection: bytes of others give
    /// this one time too, but no more than all that there may be under way at once would.
    fn due(&mut self, pace: Pace) -> Instant {
        let ever = self.reading.ever.load(Ordering::Relaxed);
        let (begun, before) = *self.begun.get_or_insert_with(|| (Instant::now(), ever));
        begun + pace.allows(ever.wrapping_sub(before).min(self.most))
    }

    /// Waits until the stream should have ended.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Some(pace) = self.pace else {
            return Poll::Pending;
        };
        loop {
            let due = self.due(pace);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
            ready!(timer.as_mut().poll(cx));
            // Others may have got on meanwhile.
            if due <= Instant::now() {
                return Poll::Ready(Ended::Slow);
            }
            timer.as_mut().reset(due.into());
        }
    }
}

impl<C: Codec> Future for Read<'_, C> {
    type Output = Result<Arrived, Ended>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            // Two at once: a message that came in one piece, and that this was all, take the connection's lock once.
            let mut pieces = [const { Bytes::new() }; 2];
            let read = pin!(this.stream.read_chunks(&mut pieces)).poll(cx);
            match read {
                Poll::Ready(Ok(Some(count))) => {
                    for piece in pieces.into_iter().take(count) {
                        if let Some(over) = this.add(piece)? {
                            return Poll::Ready(Ok(over));
                        }
                    }
                }
                Poll::Ready(Ok(None)) => {
                    let stream = this.take();
                    return Poll::Ready(Ok(this.codec.read_message(stream, true)?));
                }
                Poll::Ready(Err(ReadError::Reset(_))) => {
                    return Poll::Ready(Err(Malformed::new("the stream of a message was reset").into()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return this.poll_late(cx).map(Err),
            }
        }
    }
}

impl<C> Drop for Read<'_, C> {
    fn drop(&mut self) {
        let open = self.reading.open.load(Ordering::Relaxed);
        self.reading
            .open
            .store(open.wrapping_sub(self.counted), Ordering::Relaxed);
    }
}

/// When the other side was last heard of, and since when it owes an answer; readable while the carrier runs.
#[derive(Debug)]
pub(crate) struct Heard {
    state: Mutex<HeardState>,
}

#[derive(Debug)]
struct HeardState {
    at: Instant,
    /// Pings that are not answered, with their numbers, oldest first.
    pings: VecDeque<(u64, Instant)>,
}

impl Heard {
    pub(crate) fn now() -> Self {
        Self {
            state: Mutex::new(HeardState {
                at: Instant::now(),
                pings: VecDeque::new(),
            }),
        }
    }

    pub(crate) fn at(&self) -> Instant {
        self.state.lock().at
    }

    /// For how long the connection has been in doubt: nothing is heard, or what is heard answers none of the pings since
    /// then, as when what goes the other way is lost.
    pub(crate) fn doubt(&self, now: Instant) -> Duration {
        let state = self.state.lock();
        let since = state.pings.front().map_or(state.at, |&(_, sent)| sent.min(state.at));
        now.saturating_duration_since(since)
    }

    fn touch(&self, now: Instant) {
        self.state.lock().at = now;
    }

    fn pinged(&self, now: Instant, number: u64) {
        let mut state = self.state.lock();
        // The oldest one tells; without the rest, an answer to one of the first would tell nothing.
        if state.pings.len() < MOST_PINGS {
            state.pings.push_back((number, now));
        }
    }

    /// The newest ping that came is answered, and with it those before.
    fn ponged(&self, number: u64) {
        let mut state = self.state.lock();
        let answered = state.pings.partition_point(|(ping, _)| *ping <= number);
        state.pings.drain(..answered);
    }
}

/// What comes next of messages.
enum Next {
    /// A stream that was waited for is there.
    Arrived(Result<Arrived, Ended>),
    /// There is one more stream.
    Accepted(Result<RecvStream, ConnectionError>),
}

impl<T: Send, C: Codec, H: Handler<T>> Carrier<'_, T, C, H> {
    /// Carries until the connection ends, and closes it if it was this side that found a reason to. What was under way
    /// stays in the exchange.
    pub(crate) async fn run(&self, control: ControlStream) -> Ended {
        let ControlStream { send, recv, buffer } = control;
        // Pongs owed: read by one future, written by another of the same task.
        let pong = Mutex::new(None);
        let mut receive_messages = pin!(self.receive_messages());
        let mut receive_control = pin!(self.receive_control(recv, buffer, &pong));
        let mut send_messages = pin!(self.send_messages());
        let mut send_control = pin!(self.send_control(send, &pong));
        let mut watch = pin!(self.watch());
        // Behind them, so dropped before them, also when nobody waits for this any more.
        let _closed_first = CloseFirst(self.connection);
        let ended = tokio::select! {
            ended = &mut receive_messages => ended,
            ended = &mut receive_control => ended,
            ended = &mut send_messages => ended,
            ended = &mut send_control => ended,
            ended = &mut watch => ended,
        };
        let (Ok(ended) | Err(ended)) = ended;
        self.connection.close(ended.close_code(), ended.to_string().as_bytes());
        ended
    }

    async fn send_messages(&self) -> Result<Ended, Ended> {
        let mut batch = Vec::with_capacity(BATCH_MESSAGES);
        let mut copied = BytesMut::new();
        loop {
            self.exchange.transmit_ready().await;
            loop {
                let mut bytes = 0;
                // Without it each message would get memory of its own: what is split off is shared by all that it was split from.
                if copied.capacity() < COPIED / 4 {
                    copied = BytesMut::with_capacity(COPIED);
                }
                self.exchange.transmit(|number, after, message| {
                    self.codec.write_header(number, after, message, &mut copied);
                    let large = (message.body.len() > COPY_BODY).then(|| message.body.clone());
                    if large.is_none() {
                        copied.extend_from_slice(&message.body);
                    }
                    bytes += copied.len();
                    batch.push((copied.split().freeze(), large));
                    batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES
                });
                let is_all = batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES;
                for (head, large) in batch.drain(..) {
                    let mut stream = self.connection.open_uni().await?;
                    let mut written = stream.write_chunk(head).await;
                    if let (Ok(()), Some(body)) = (&written, large) {
                        written = stream.write_chunk(body).await;
                    }
                    match written {
                        // The message is too large for the other side, which answers it without the rest.
                        Ok(()) | Err(WriteError::Stopped(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                    // Dropped with all written, the stream is finished; to say so before would take the connection's lock
                    // once more.
                }
                if is_all {
                    // Nothing is kept for a connection on which nothing is sent.
                    copied = BytesMut::new();
                    break;
                }
                // The connection's own task needs its turn to put them on the wire.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn receive_messages(&self) -> Result<Ended, Ended> {
        let reading = Reading::default();
        let mut reads = FuturesUnordered::new();
        let mut turn = self.turn.clone();
        let mut taken = Vec::new();
        // Nothing was taken since the other tasks had their turns, or since there was something to wait for.
        let mut anew = true;
        loop {
            let mut accepting = pin!(self.connection.accept_uni());
            // In this order: what comes in pieces came first.
            let ready = match futures_util::poll!(reads.next()) {
                Poll::Ready(Some(arrived)) => Some(Next::Arrived(arrived)),
                Poll::Ready(None) | Poll::Pending => match futures_util::poll!(accepting.as_mut()) {
                    Poll::Ready(accepted) => Some(Next::Accepted(accepted)),
                    Poll::Pending => None,
                },
            };
            let next = match ready {
                Some(next) => next,
                None => {
                    anew = true;
                    tokio::select! {
                        Some(arrived) = reads.next() => Next::Arrived(arrived),
                        accepted = accepting => Next::Accepted(accepted),
                    }
                }
            };
            let arrived = match next {
                Next::Arrived(arrived) => arrived?,
                Next::Accepted(accepted) => {
                    let mut read = self.read(accepted?, &reading);
                    // Most are there whole. To have each of them as a future among the others would cost more than the read.
                    match futures_util::poll!(&mut read) {
                        Poll::Ready(arrived) => arrived?,
                        Poll::Pending => {
                            reads.push(read);
                            continue;
                        }
                    }
                }
            };
            let Arrived { number, after, message } = arrived;
            if std::mem::take(&mut anew) {
                self.heard.touch(Instant::now());
            }
            let incarnation = self.exchange.message(number, after, message, &mut taken)?;
            if !taken.is_empty() {
                self.handler.taken(incarnation, &mut taken);
            }
            anew = turn.item().await;
        }
    }

    fn read<'s>(&'s self, stream: RecvStream, reading: &'s Reading) -> Read<'s, C> {
        Read {
            stream,
            codec: self.codec,
            reading,
            max_stream: self.max_stream,
            // What a sender that keeps to its bounds has under way, and the one message that may go over them.
            most: self.exchange.incoming().bytes.saturating_add(self.max_stream),
            pace: self.pace,
            begun: None,
            timer: None,
            counted: 0,
            whole: Bytes::new(),
            pieces: BytesMut::new(),
        }
    }

    async fn receive_control(
        &self,
        mut recv: RecvStream,
        mut buffer: BytesMut,
        pong: &Mutex<Option<u64>>,
    ) -> Result<Ended, Ended> {
        let mut turn = self.turn.clone();
        loop {
            while let Some(frame) = self.codec.read_frame(&mut buffer)? {
                self.heard.touch(Instant::now());
                match frame {
                    Frame::Control(control) => {
                        let settled = self.exchange.control(control)?;
                        if !settled.is_empty() {
                            self.handler.settled(settled);
                        }
                    }
                    Frame::Ping(number) => {
                        *pong.lock() = Some(number);
                        self.exchange.wake_control();
                    }
                    Frame::Pong(number) => self.heard.ponged(number),
                    Frame::Goodbye => self.handler.goodbye(),
                    frame @ (Frame::Login(_) | Frame::Judged(_)) => self.handler.login(frame)?,
                }
                turn.item().await;
            }
            match recv.read_chunk(CONTROL_READ, true).await? {
                Some(chunk) => {
                    buffer.extend_from_slice(&chunk.bytes);
                    // Lines that mean nothing are passed over and make no frame.
                    turn.bytes(chunk.bytes.len()).await;
                }
                None => return Err(Ended::NoControl),
            }
            // The allocation of one long frame is not kept for the life of the connection.
            if buffer.is_empty() && buffer.capacity() > 4 * CONTROL_READ {
                buffer = BytesMut::new();
            }
        }
    }

    async fn send_control(&self, mut send: SendStream, pong: &Mutex<Option<u64>>) -> Result<Ended, Ended> {
        let period = self.liveness.map_or(Duration::from_secs(1), |liveness| liveness.ping);
        let mut tick = interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut out = BytesMut::new();
        let mut pings = 0;
        // By when what can wait for company is told without it.
        let mut due: Option<Instant> = None;
        loop {
            let eager = tokio::select! {
                () = self.exchange.control_ready() => false,
                _ = tick.tick() => true,
                () = self.exchange.unhurried(), if due.is_none() => {
                    due = Some(Instant::now() + COMPANY);
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => false,
            };
            due = None;
            self.exchange.controls(eager, |control| {
                self.codec.write_frame(&Frame::Control(control), &mut out);
            });
            let owed = pong.lock().take();
            if let Some(number) = owed {
                self.codec.write_frame(&Frame::Pong(number), &mut out);
            }
            if eager && self.liveness.is_some() {
                pings += 1;
                self.heard.pinged(Instant::now(), pings);
                self.codec.write_frame(&Frame::Ping(pings), &mut out);
            }
            for frame in self.handler.due_of_logins() {
                self.codec.write_frame(&frame, &mut out);
            }
            if self.exchange.says_goodbye() {
                self.codec.write_frame(&Frame::Goodbye, &mut out);
            }
            if out.has_remaining() {
                send.write_chunk(out.split().freeze()).await?;
            }
        }
    }

    async fn watch(&self) -> Result<Ended, Ended> {
        let Some(liveness) = self.liveness else {
            return Err(Ended::Lost(self.connection.closed().await));
        };
        loop {
            let deadline = self.heard.at() + liveness.silence;
            if deadline <= Instant::now() {
                return Err(Ended::Silent(liveness.silence));
            }
            tokio::select! {
                () = sleep_until(deadline.into()) => {}
                lost = self.connection.closed() => return Err(Ended::Lost(lost)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_in_doubt_since_it_was_heard_or_owes_an_answer() {
        let heard = Heard::now();
        let start = heard.at();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(heard.doubt(at(3)), Duration::from_secs(3), "silent");
        for number in 1..=4 {
            heard.pinged(at(number), number);
        }
        heard.touch(at(9));
        assert_eq!(heard.doubt(at(10)), Duration::from_secs(9), "heard, and not answered");
        heard.ponged(3);
        assert_eq!(
            heard.doubt(at(10)),
            Duration::from_secs(6),
            "the last one is not answered"
        );
        heard.ponged(4);
        assert_eq!(heard.doubt(at(10)), Duration::from_secs(1));
    }
}
