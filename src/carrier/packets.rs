//! Drives an exchange over a session on a bus: sealed packets, with many messages and frames in one.
//!
//! Nothing is sent again here: when a packet is lost the session ends, and the next one begins with what each side has
//! taken, as connections do.

use std::pin::pin;
use std::time::Instant;

use bytes::BytesMut;
use futures_util::stream::{FuturesOrdered, StreamExt};

use super::Handler;
use super::codec::{Arrived, Codec, Malformed};
use super::control::Control;
use super::ended::Ended;
use super::heard::{Heard, Liveness};
use crate::exchange::Exchange;
use crate::redis::Publishing;
use crate::sealed::session::{Incoming, Outgoing, Session};
use crate::transport::VarInt;
use crate::turn::Turn;
use crate::wire::packet::{self, Item, TAG};

/// About how much goes into one packet while there is more to say. Measured over one redis-server: see
/// `docs/benchmarks.md`.
const PACKET: usize = 64 * 1024;

/// The least memory that a packet is begun with.
const ROOM: usize = 1024;

/// How many packets may be on their way to the bus. While they are, what comes gathers in the exchange, and the next
/// packet is the larger.
const UNDER_WAY: usize = 4;

/// One exchange on one session.
pub(crate) struct PacketCarrier<'a, T, C, H> {
    pub(crate) exchange: &'a Exchange<T>,
    pub(crate) codec: &'a C,
    pub(crate) handler: &'a H,
    /// The most bytes of a message with its header that this side takes.
    pub(crate) max_message: usize,
    /// And the other side. Of a longer one it is sent the beginning, so that it can refuse it: all of it might be more
    /// than it reads of the bus at all.
    pub(crate) peer_takes: usize,
    /// How much is taken in before the other tasks come.
    pub(crate) turn: Turn,
    pub(crate) liveness: Option<Liveness>,
    /// When the other side was last heard of.
    pub(crate) heard: &'a Heard,
}

impl<T: Send, C: Codec, H: Handler<T>> PacketCarrier<'_, T, C, H> {
    /// Carries until the session ends. What was under way stays in the exchange.
    pub(crate) async fn run(&self, session: Session) -> Ended {
        let Session {
            mut outgoing,
            mut incoming,
            unread,
            handle,
            ..
        } = session;
        let control = Control::new(self.exchange, self.codec, self.handler, self.liveness, self.heard);
        let ended = {
            let mut receiving = pin!(self.receive(&mut incoming, unread, &control));
            let mut sending = pin!(self.send(&mut outgoing, &control));
            tokio::select! {
                ended = &mut receiving => ended,
                ended = &mut sending => ended,
                ended = control.silent() => Err(ended),
                (code, reason) = handle.closed() => Err(Ended::ClosedHere { code, reason }),
            }
        };
        let (Ok(ended) | Err(ended)) = ended;
        handle.close(ended.close_code(), &ended.to_string());
        if ended.is_told() {
            let (code, reason) = handle.closed().await;
            outgoing.say_closed(code, &reason).await;
        }
        ended
    }

    async fn send(&self, outgoing: &mut Outgoing, control: &Control<'_, T, C, H>) -> Result<Ended, Ended> {
        let mut due = control.due();
        let mut under_way: FuturesOrdered<Publishing> = FuturesOrdered::new();
        // What was handed over last filled its packet: there may be more.
        let mut more = false;
        // As much as the last one took, so that it grows rarely.
        let mut room = ROOM;
        loop {
            let mut eager = false;
            if !more || under_way.len() >= UNDER_WAY {
                tokio::select! {
                    Some(published) = under_way.next() => {
                        match published {
                            Ok(0) => return Err(Ended::Unpublished("the node does not listen there now".to_owned())),
                            Ok(1) => {}
                            Ok(listeners) => outgoing.note_listeners(listeners),
                            Err(error) => return Err(Ended::Unpublished(error.to_string())),
                        }
                        if !more {
                            continue;
                        }
                    }
                    () = self.exchange.transmit_ready(), if under_way.len() < UNDER_WAY => {}
                    tick = control.wait(&mut due), if under_way.len() < UNDER_WAY => eager = tick,
                }
            }
            if outgoing.is_worn() {
                return Err(Ended::Worn);
            }
            let mut packet = outgoing.begin(room);
            let empty = packet.len();
            // In one packet with the messages they cost nothing, so nothing waits for company.
            control.write(&mut due, eager, |frame| {
                packet::write_frame(&mut packet, |out| control.append(frame, out));
            });
            more = false;
            self.exchange.transmit(|number, after, message| {
                packet::write_message(&mut packet, |out| {
                    let begin = out.len();
                    self.codec.write_header(number, after, message, out);
                    let room = self.peer_takes.saturating_add(1).saturating_sub(out.len() - begin);
                    out.extend_from_slice(message.body.get(..room).unwrap_or(&message.body));
                });
                more = packet.len() >= PACKET;
                !more
            });
            if packet.len() > empty {
                room = (packet.len() + TAG).next_power_of_two().clamp(ROOM, 2 * PACKET);
                under_way.push_back(outgoing.publish(packet).await);
            }
            if more {
                // Those who make messages, and the bus's own task, come first.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn receive(
        &self,
        incoming: &mut Incoming,
        mut items: BytesMut,
        control: &Control<'_, T, C, H>,
    ) -> Result<Ended, Ended> {
        let mut turn = self.turn.clone();
        let mut taken = Vec::new();
        loop {
            let now = Instant::now();
            self.heard.touch(now);
            self.handler.begins(now);
            while let Some(item) = packet::next_item(&mut items).map_err(Malformed::new)? {
                match item {
                    Item::Message(bytes) => {
                        // Over the limit it is answered by its beginning, as one on a stream is.
                        let whole = bytes.len() <= self.max_message;
                        let Arrived { number, after, message } = self.codec.read_message(bytes, whole)?;
                        let incarnation = self.exchange.message(number, after, message, &mut taken)?;
                        if !taken.is_empty() {
                            self.handler.taken(incarnation, &mut taken);
                        }
                    }
                    Item::Frame(mut bytes) => {
                        while let Some(frame) = self.codec.read_frame(&mut bytes)? {
                            control.follow(frame)?;
                        }
                    }
                    Item::Close { code, reason } => {
                        let code = VarInt::from_u32(code);
                        return Err(Ended::ClosedThere { code, reason });
                    }
                }
                turn.item().await;
            }
            self.handler.rests();
            items = incoming.next().await?;
        }
    }
}
