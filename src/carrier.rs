//! Drives an exchange over one QUIC connection: a unidirectional stream a message, a control stream for the rest.
//!
//! The same code serves a link between two nodes, a node's side of a QUIC client, and the client's own. They differ
//! in how things are written ([`Codec`]) and in where messages go ([`Handler`]).
//!
//! All of it runs in the caller's task, as futures joined together: when the returned future is dropped, nothing goes
//! on.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::{interval, sleep_until};

use crate::delivery::{Control, Violation};
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
    /// Passes on messages that were taken, in this order.
    fn taken(&self, incarnation: u32, taken: Vec<(u64, Incoming)>);

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

/// What is read of messages on one connection, in bytes.
#[derive(Debug, Default)]
struct Reading {
    /// Of the streams that have not ended.
    open: AtomicUsize,
    /// Of all streams there were.
    ever: AtomicUsize,
}

/// The bytes of one stream among those of all streams that are being read.
struct Counted<'a> {
    own: usize,
    all: &'a AtomicUsize,
}

impl Counted<'_> {
    /// The stream has so many bytes now; gives those of all streams.
    fn grow_to(&mut self, own: usize) -> usize {
        let more = own.saturating_sub(self.own);
        self.own += more;
        self.all.fetch_add(more, Ordering::Relaxed) + more
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// How long a stream has been coming.
struct Clock<'a> {
    begun: Instant,
    /// What was read of all streams when it began.
    before: usize,
    /// And now.
    ever: &'a AtomicUsize,
}

impl Clock<'_> {
    /// When the stream has to have ended, where at most so many bytes count.
    fn due(&self, pace: Pace, most: usize) -> Instant {
        let read = self.ever.load(Ordering::Relaxed).wrapping_sub(self.before);
        self.begun + pace.allows(read.min(most))
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
                if batch.is_empty() {
                    break;
                }
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
                    // Fails only for a stream that was finished or reset before.
                    let _ = stream.finish();
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
        loop {
            tokio::select! {
                stream = self.connection.accept_uni() => reads.push(self.read_stream(stream?, &reading)),
                Some(arrived) = reads.next() => {
                    let arrived: Arrived = arrived?;
                    self.heard.touch(Instant::now());
                    let next = self.exchange.message(arrived.number, arrived.after, arrived.message)?;
                    if !next.taken.is_empty() {
                        self.handler.taken(next.incarnation, next.taken);
                    }
                    turn.item().await;
                }
            }
        }
    }

    /// The next bytes of a message's stream.
    ///
    /// What is asked of the client is asked of all its streams together, as they share its connection: bytes of others give
    /// this one time too, but no more than all that there may be under way at once would.
    async fn read_chunk(&self, stream: &mut RecvStream, clock: &Clock<'_>) -> Result<Option<Bytes>, Ended> {
        let reset = |error| match error {
            ReadError::Reset(_) => Malformed::new("the stream of a message was reset").into(),
            error => Ended::from(error),
        };
        let mut read = pin!(stream.read_chunk(usize::MAX, true));
        // Most of them are there at once: a timer would cost more than the read.
        if let Poll::Ready(chunk) = futures_util::poll!(read.as_mut()) {
            return Ok(chunk.map_err(reset)?.map(|chunk| chunk.bytes));
        }
        while let Some(pace) = self.pace {
            let due = clock.due(pace, self.most());
            tokio::select! {
                biased;
                chunk = &mut read => return Ok(chunk.map_err(reset)?.map(|chunk| chunk.bytes)),
                () = sleep_until(due.into()) => {}
            }
            // Others may have got on meanwhile.
            if clock.due(pace, self.most()) <= Instant::now() {
                return Err(Ended::Slow);
            }
        }
        Ok(read.await.map_err(reset)?.map(|chunk| chunk.bytes))
    }

    /// What a sender that keeps to its bounds has under way, and the one message that may go over them.
    fn most(&self) -> usize {
        self.exchange.incoming().bytes.saturating_add(self.max_stream)
    }

    async fn read_stream(&self, mut stream: RecvStream, reading: &Reading) -> Result<Arrived, Ended> {
        let most = self.most();
        let clock = Clock {
            begun: Instant::now(),
            before: reading.ever.load(Ordering::Relaxed),
            ever: &reading.ever,
        };
        let mut counted = Counted {
            own: 0,
            all: &reading.open,
        };
        let mut whole = Bytes::new();
        let mut pieces = BytesMut::new();
        while let Some(chunk) = self.read_chunk(&mut stream, &clock).await? {
            reading.ever.fetch_add(chunk.len(), Ordering::Relaxed);
            if whole.is_empty() && pieces.is_empty() {
                whole = chunk;
            } else {
                pieces.extend_from_slice(&std::mem::take(&mut whole));
                pieces.extend_from_slice(&chunk);
            }
            let length = whole.len() + pieces.len();
            if counted.grow_to(length.saturating_sub(UNCOUNTED)) > most {
                return Err(Violation::OverBounds.into());
            }
            if length > self.max_stream {
                // Fails only when the stream has ended by itself.
                let _ = stream.stop(close::DONE);
                pieces.extend_from_slice(&whole);
                return Ok(self.codec.read_message(pieces.freeze(), false)?);
            }
        }
        let stream = if pieces.is_empty() { whole } else { pieces.freeze() };
        Ok(self.codec.read_message(stream, true)?)
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
        loop {
            let eager = tokio::select! {
                () = self.exchange.control_ready() => false,
                _ = tick.tick() => true,
            };
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
