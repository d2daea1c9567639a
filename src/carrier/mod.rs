//! Drives an exchange over one QUIC connection: a unidirectional stream a message, a control stream for the rest.
//!
//! The same code serves a link between two nodes, a node's side of a QUIC client, and the client's own. They differ
//! in how things are written ([`Codec`]) and in where messages go ([`Handler`]).
//!
//! All of it runs in the caller's task, as futures joined together: when the returned future is dropped, nothing goes
//! on.

mod codec;
mod control;
mod ended;
mod heard;
mod packets;
mod read;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

pub(crate) use codec::{Arrived, Codec, Frame, Malformed};
pub(crate) use ended::{BreakOff, CloseOnDrop, Ended, close};
pub(crate) use heard::{Heard, Liveness};
pub(crate) use packets::PacketCarrier;

use crate::delivery::Taken;
use crate::exchange::{Exchange, Incoming, Settled};
use crate::pace::Pace;
use crate::transport::{Connection, MessageWriter, RecvStream, SendStream};
use crate::turn::Turn;
use control::Control;
use read::Reader;

/// The most messages that are handed to the connection before it gets to run, and the most bytes of them that are
/// copied for it.
const BATCH_MESSAGES: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;

/// Bodies up to this size are copied behind their header; larger ones are handed over as they are.
const COPY_BODY: usize = 4096;

/// How much memory is had at once for what is copied. A message that is sent again and again keeps as much.
pub(crate) const COPIED: usize = 16 * 1024;

/// The control stream goes before all others.
pub(crate) const CONTROL_PRIORITY: i32 = 1;

/// How much of the control stream is read at once.
const CONTROL_READ: usize = 16 * 1024;

/// Where messages and their ends go.
pub(crate) trait Handler<T>: Sync {
    /// Passes on all messages that were taken, in this order.
    fn taken(&self, incarnation: u32, taken: &mut Vec<Taken<Incoming>>);

    /// What comes next is taken now: time has passed since what came before.
    fn begins(&self, _now: Instant) {}

    /// There is no more to be taken now.
    fn rests(&self) {}

    /// Waits while what was taken last makes up a backlog, but not for long. `count`: how many came at once. Cancel safe.
    fn give_way(&self, _count: usize) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

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

/// The control stream, once the two sides have greeted each other.
#[derive(Debug)]
pub(crate) struct ControlStream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// What was read beyond the greeting.
    pub(crate) buffer: BytesMut,
}

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

impl<T: Send, C: Codec, H: Handler<T>> Carrier<'_, T, C, H> {
    /// Carries until the connection ends, and closes it if it was this side that found a reason to. What was under way
    /// stays in the exchange.
    pub(crate) async fn run(&self, control: ControlStream) -> Ended {
        let ControlStream { send, recv, buffer } = control;
        let control = Control::new(self.exchange, self.codec, self.handler, self.liveness, self.heard);
        let mut receive_messages = pin!(self.receive_messages());
        let mut receive_control = pin!(self.receive_control(recv, buffer, &control));
        let mut send_messages = pin!(self.send_messages());
        let mut send_control = pin!(self.send_control(send, &control));
        let _closing = CloseOnDrop(self.connection);
        let ended = tokio::select! {
            ended = &mut receive_messages => ended,
            ended = &mut receive_control => ended,
            ended = &mut send_messages => ended,
            ended = &mut send_control => ended,
            ended = control.silent() => Err(ended),
        };
        let (Ok(ended) | Err(ended)) = ended;
        self.connection.close(ended.close_code(), ended.to_string().as_bytes());
        ended
    }

    async fn send_messages(&self) -> Result<Ended, Ended> {
        let mut batch = Vec::new();
        let mut copied = BytesMut::new();
        let mut writer = MessageWriter::new(self.connection);
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
                    let large = if message.body.len() > COPY_BODY {
                        message.body.clone()
                    } else {
                        copied.extend_from_slice(&message.body);
                        Bytes::new()
                    };
                    bytes += copied.len();
                    batch.push([copied.split().freeze(), large]);
                    batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES
                });
                let is_all = batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES;
                writer.write(&mut batch.drain(..)).await?;
                if is_all {
                    // Nothing is kept for a connection on which nothing is sent.
                    copied = BytesMut::new();
                    if batch.capacity() > BATCH_MESSAGES / 8 {
                        batch = Vec::new();
                    }
                    break;
                }
                // The connection's own task needs its turn to put them on the wire.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn receive_messages(&self) -> Result<Ended, Ended> {
        // What a sender that keeps to its bounds has under way, and the one message that may go over them.
        let most = self.exchange.incoming().bytes.saturating_add(self.max_stream);
        let mut reader = Reader::new(self.connection, self.codec, self.max_stream, most, self.pace);
        let mut turn = self.turn.clone();
        let mut taken = Vec::new();
        // Nothing was taken since the other tasks had their turns, or since there was something to wait for.
        let mut anew = true;
        // How many there were since.
        let mut count = 0;
        loop {
            let ready = poll_fn(|cx| Poll::Ready(reader.poll_next(cx))).await;
            let arrived = match ready {
                Poll::Ready(arrived) => arrived,
                Poll::Pending => {
                    anew = true;
                    self.handler.rests();
                    if count > 0 {
                        self.handler.give_way(std::mem::take(&mut count)).await;
                    }
                    reader.next().await
                }
            };
            let Arrived { number, after, message } = arrived?;
            if std::mem::take(&mut anew) {
                let now = Instant::now();
                self.heard.touch(now);
                self.handler.begins(now);
            }
            let incarnation = self.exchange.message(number, after, message, &mut taken)?;
            if !taken.is_empty() {
                self.handler.taken(incarnation, &mut taken);
            }
            count += 1;
            anew = turn.item().await;
            if anew {
                self.handler.give_way(std::mem::take(&mut count)).await;
            }
        }
    }

    async fn receive_control(
        &self,
        mut recv: RecvStream,
        mut buffer: BytesMut,
        control: &Control<'_, T, C, H>,
    ) -> Result<Ended, Ended> {
        let mut turn = self.turn.clone();
        loop {
            while let Some(frame) = self.codec.read_frame(&mut buffer)? {
                control.follow(frame)?;
                turn.item().await;
            }
            match recv.read(CONTROL_READ).await? {
                Some(bytes) => {
                    buffer.extend_from_slice(&bytes);
                    // Lines that mean nothing are passed over and make no frame.
                    turn.bytes(bytes.len()).await;
                }
                None => return Err(Ended::NoControl),
            }
            // The allocation of one long frame is not kept for the life of the connection.
            if buffer.is_empty() && buffer.capacity() > 4 * CONTROL_READ {
                buffer = BytesMut::new();
            }
        }
    }

    async fn send_control(&self, mut send: SendStream, control: &Control<'_, T, C, H>) -> Result<Ended, Ended> {
        let mut due = control.due();
        let mut out = BytesMut::new();
        loop {
            let eager = control.wait(&mut due).await;
            control.write(&mut due, eager, |frame| self.codec.write_frame(frame, &mut out));
            if out.has_remaining() {
                send.write(out.split().freeze()).await?;
            }
        }
    }
}
