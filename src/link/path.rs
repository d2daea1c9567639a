//! The ways to another node that a link may take: a QUIC connection, or a session on a bus.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tracing::warn;

use super::adoption::Rank;
use crate::carrier::{Carrier, Codec, ControlStream, Ended, Handler, Heard, Liveness, PacketCarrier, close};
use crate::exchange::Exchange;
use crate::sealed::session::{Handle, Session};
use crate::tls::credentials::{Guest, TURNED_OUT};
use crate::transport::{Connection, VarInt, link_streams};
use crate::turn::Turn;
use crate::wire::link as wire;
use crate::wire::packet;

/// How long a packet may be on its way on a bus, to and fro, before that is strange.
const BUS_ROUND_TRIP: Duration = Duration::from_millis(500);

/// A way to another node, up to its end. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) enum Path {
    Quic(Connection),
    Bus(Handle),
}

/// A way with what is needed to carry messages over it.
#[derive(Debug)]
pub(crate) enum Carriage {
    Quic(Connection, ControlStream),
    Bus(Box<Session>),
}

impl Path {
    /// How good it is.
    pub(crate) fn rank(&self) -> Rank {
        match self {
            Self::Quic(_) => Rank::Direct,
            Self::Bus(_) => Rank::Relayed,
        }
    }

    /// Ends it; the other side is told the code and the reason.
    pub(crate) fn close(&self, code: VarInt, reason: &str) {
        match self {
            Self::Quic(connection) => connection.close(code, reason.as_bytes()),
            Self::Bus(handle) => handle.close(code, reason),
        }
    }

    /// How long an answer takes at least.
    pub(crate) fn round_trip(&self) -> Duration {
        match self {
            Self::Quic(connection) => connection.rtt(),
            Self::Bus(_) => BUS_ROUND_TRIP,
        }
    }

    /// Lets the other side have as many streams open as its distance wants.
    pub(crate) fn follow_distance(&self) {
        if let Self::Quic(connection) = self {
            connection.set_max_concurrent_uni_streams(link_streams(connection.rtt()).into());
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quic(connection) => connection.remote_address().fmt(f),
            Self::Bus(_) => f.write_str("by Redis"),
        }
    }
}

impl Guest for Handle {
    fn turn_out(&self, why: &str) {
        if !self.is_closed() {
            warn!(peer = %self.peer(), "closed a session, as the node's certificate is no good any more: {why}");
            self.close(close::IDENTITY, TURNED_OUT);
        }
    }
}

impl Carriage {
    /// The way itself.
    pub(crate) fn path(&self) -> Path {
        match self {
            Self::Quic(connection, _) => Path::Quic(connection.clone()),
            Self::Bus(session) => Path::Bus(session.handle.clone()),
        }
    }

    /// Turns away what is not to be the link; the other side is told.
    pub(crate) async fn refuse(self, code: VarInt, reason: &str) {
        match self {
            Self::Quic(connection, _) => connection.close(code, reason.as_bytes()),
            Self::Bus(mut session) => session.say_closed(code, reason).await,
        }
    }

    /// Writes a frame of the greeting. Says whether it is on its way; if not, the other side may miss it, and with it all
    /// that follows.
    pub(crate) async fn greet_with(&mut self, frame: &wire::Frame) -> bool {
        match self {
            Self::Quic(_, control) => {
                let mut out = BytesMut::new();
                wire::write_frame(&mut out, frame);
                control.send.write_all(&out).await.is_ok()
            }
            Self::Bus(session) => {
                let mut packet = session.outgoing.begin(256);
                packet::write_frame(&mut packet, |out| wire::write_frame(out, frame));
                matches!(session.outgoing.publish(packet).await.await, Ok(1..))
            }
        }
    }

    /// Carries until the way ends. `most` is the most bytes of a message with its header that this side takes, and that
    /// the other does.
    pub(crate) async fn carry<T: Send, C: Codec, H: Handler<T>>(
        self,
        exchange: &Exchange<T>,
        codec: &C,
        handler: &H,
        most: [usize; 2],
        liveness: Liveness,
        heard: &Arc<Heard>,
    ) -> Ended {
        let (turn, liveness) = (Turn::of_link(), Some(liveness));
        let [max_stream, peer_takes] = most;
        match self {
            Self::Quic(connection, control) => {
                let carrier = Carrier {
                    connection: &connection,
                    exchange,
                    codec,
                    handler,
                    max_stream,
                    pace: None,
                    turn,
                    liveness,
                    heard,
                };
                carrier.run(control).await
            }
            Self::Bus(session) => {
                let carrier = PacketCarrier {
                    exchange,
                    codec,
                    handler,
                    max_message: max_stream,
                    peer_takes,
                    turn,
                    liveness,
                    heard,
                };
                carrier.run(*session).await
            }
        }
    }
}
