//! The greeting of two nodes on a new connection, up to the point where one of them has adopted it or can.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

use super::Link;
use super::adoption::Rank;
use super::path::Carriage;
use crate::carrier::{BreakOff, CONTROL_PRIORITY, ControlStream, close};
use crate::delivery::Bounds;
use crate::sealed::session::{Break, Session};
use crate::tls::credentials::Entry;
use crate::transport::{Connection, ConnectionError, RecvStream, StreamError, VarInt};
use crate::wire::link::{Frame, Hello, Malformed, VERSION, read_frame, write_frame};
use crate::wire::packet::{self, Item};

/// How long a greeting may take: a few round trips of the slowest path, or the other side is no node.
pub(crate) const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// A connection on which the other node has greeted this one.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) carriage: Carriage,
    /// What the other node said.
    pub(crate) hello: Hello,
    /// The generation under which the other node has adopted the connection, if it is the one that decides.
    pub(crate) generation: Option<u64>,
    /// By which the other node was let in.
    pub(crate) admitted: Admitted,
}

/// What this node says of itself in each greeting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub(crate) epoch: u64,
    pub(crate) bounds: Bounds,
    /// The longest body that it takes, in bytes.
    pub(crate) max_message: usize,
}

impl Own {
    fn hello(self, link: &Link, rank: Rank) -> Hello {
        Hello {
            version: VERSION,
            epoch: self.epoch,
            live: link.adoption.lock().live(rank),
            bounds: self.bounds,
            max_message: self.max_message,
        }
    }
}

/// What a connection was let in by.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Ends the connection when the other node's certificate is no good any more.
    pub(crate) _entry: Entry,
    /// Which of its own certificates this node has shown on it.
    pub(crate) shown: u64,
}

/// Why a greeting failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetingError {
    #[error("the connection is gone: {0}")]
    Lost(#[from] ConnectionError),
    #[error("the control stream broke: {0}")]
    Stream(#[from] StreamError),
    #[error("the other node broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("the other node broke the protocol: it did not greet")]
    NoGreeting,
    #[error("the other node speaks version {0} of the link protocol, this one {VERSION}; update the older of the two")]
    Version(u64),
    #[error("the other node did not greet within {GREETING_DEADLINE:?}")]
    TimedOut,
    #[error("the session broke: {0}")]
    Broken(#[from] Break),
    #[error("the other node has closed the session: {reason}")]
    Closed { code: VarInt, reason: String },
    #[error("the other node is another process than the one that the keys were agreed on with")]
    OtherEpoch,
}

impl GreetingError {
    /// Whether the other node has closed the connection because it holds another for the link.
    pub(crate) fn is_duplicate(&self) -> bool {
        if let Self::Closed { code, .. } = self {
            return *code == close::DUPLICATE || *code == close::DONE;
        }
        let (Self::Lost(lost) | Self::Stream(StreamError::Lost(lost))) = self else {
            return false;
        };
        // A dial that is dropped while it shakes hands says no more than that it is done.
        is_duplicate(lost)
            || matches!(lost, ConnectionError::ApplicationClosed(closed) if closed.error_code == close::DONE)
    }
}

/// Whether the other node has closed the connection because it holds another for the link.
pub(crate) fn is_duplicate(lost: &ConnectionError) -> bool {
    matches!(lost, ConnectionError::ApplicationClosed(closed) if closed.error_code == close::DUPLICATE)
}

/// Greets the other node on a connection; `dialled` says that it was this node that made it. The connection is closed
/// if it comes to nothing.
pub(crate) async fn greet(
    connection: Connection,
    admitted: Admitted,
    dialled: bool,
    link: &Link,
    own: Own,
) -> Result<Greeted, GreetingError> {
    let break_off = BreakOff::new(&connection);
    let greeted = match timeout(GREETING_DEADLINE, exchange_hellos(&connection, dialled, link, own)).await {
        Ok(greeted) => greeted,
        Err(_) => Err(GreetingError::TimedOut),
    };
    break_off.disarm();
    match greeted {
        Ok((control, hello, generation)) => Ok(Greeted {
            carriage: Carriage::Quic(connection, control),
            hello,
            generation,
            admitted,
        }),
        Err(error) => {
            let code = match error {
                GreetingError::Version(_) => close::VERSION,
                _ => close::PROTOCOL,
            };
            connection.close(code, error.to_string().as_bytes());
            Err(error)
        }
    }
}

async fn exchange_hellos(
    connection: &Connection,
    dialled: bool,
    link: &Link,
    own: Own,
) -> Result<(ControlStream, Hello, Option<u64>), GreetingError> {
    let (mut send, mut recv) = if dialled {
        connection.open_control().await?
    } else {
        connection.accept_control().await?
    };
    send.set_priority(CONTROL_PRIORITY);
    let mut out = BytesMut::new();
    write_frame(&mut out, &Frame::Hello(own.hello(link, Rank::Direct)));
    send.write_all(&out).await?;

    let mut buffer = BytesMut::new();
    let Frame::Hello(hello) = next_frame(&mut recv, &mut buffer).await? else {
        return Err(GreetingError::NoGreeting);
    };
    if hello.version != VERSION {
        return Err(GreetingError::Version(hello.version));
    }
    let generation = if link.decides {
        None
    } else {
        match next_frame(&mut recv, &mut buffer).await? {
            Frame::Adopt(generation) => Some(generation),
            _ => return Err(GreetingError::NoGreeting),
        }
    };
    Ok((ControlStream { send, recv, buffer }, hello, generation))
}

async fn next_frame(recv: &mut RecvStream, buffer: &mut BytesMut) -> Result<Frame, GreetingError> {
    loop {
        if let Some(frame) = read_frame(buffer)? {
            return Ok(frame);
        }
        match recv.read(4096).await? {
            Some(bytes) => buffer.extend_from_slice(&bytes),
            None => return Err(GreetingError::NoGreeting),
        }
    }
}

/// Greets the other node on a session. The session is closed if it comes to nothing.
pub(crate) async fn greet_on_bus(
    mut session: Box<Session>,
    admitted: Admitted,
    link: &Link,
    own: Own,
) -> Result<Greeted, GreetingError> {
    let greeting = exchange_hellos_on_bus(&mut session, link, own);
    let greeted = timeout(GREETING_DEADLINE, greeting)
        .await
        .unwrap_or(Err(GreetingError::TimedOut));
    match greeted {
        Ok((hello, generation)) => Ok(Greeted {
            carriage: Carriage::Bus(session),
            hello,
            generation,
            admitted,
        }),
        Err(error) => {
            if !matches!(error, GreetingError::Closed { .. } | GreetingError::Broken(_)) {
                let code = match error {
                    GreetingError::Version(_) => close::VERSION,
                    _ => close::PROTOCOL,
                };
                session.say_closed(code, &error.to_string()).await;
            }
            Err(error)
        }
    }
}

async fn exchange_hellos_on_bus(
    session: &mut Session,
    link: &Link,
    own: Own,
) -> Result<(Hello, Option<u64>), GreetingError> {
    let own = own.hello(link, Rank::Relayed);
    let mut packet = session.outgoing.begin(256);
    packet::write_frame(&mut packet, |out| write_frame(out, &Frame::Hello(own)));
    // An error shows as silence.
    drop(session.outgoing.publish(packet).await);
    let Frame::Hello(hello) = next_frame_on_bus(session).await? else {
        return Err(GreetingError::NoGreeting);
    };
    if hello.version != VERSION {
        return Err(GreetingError::Version(hello.version));
    }
    if hello.epoch != session.peer_epoch {
        return Err(GreetingError::OtherEpoch);
    }
    if link.decides {
        return Ok((hello, None));
    }
    match next_frame_on_bus(session).await? {
        Frame::Adopt(generation) => Ok((hello, Some(generation))),
        _ => Err(GreetingError::NoGreeting),
    }
}

async fn next_frame_on_bus(session: &mut Session) -> Result<Frame, GreetingError> {
    loop {
        match packet::next_item(&mut session.unread).map_err(|_| GreetingError::NoGreeting)? {
            Some(Item::Frame(mut bytes)) => {
                if let Some(frame) = read_frame(&mut bytes)? {
                    return Ok(frame);
                }
            }
            Some(Item::Message(_)) => return Err(GreetingError::NoGreeting),
            Some(Item::Close { code, reason }) => {
                let code = VarInt::from_u32(code);
                return Err(GreetingError::Closed { code, reason });
            }
            None => session.unread = session.incoming.next().await?,
        }
    }
}
