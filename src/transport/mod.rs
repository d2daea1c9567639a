//! QUIC connections: the sockets, timers and tasks around [`quinn_proto`], which is the protocol itself and does no I/O.
//!
//! It takes the place of `quinn`, which is made of the same core, for what is asked of it here: a control stream a connection,
//! and a great many streams of one message each. There a message takes the connection's lock six times, with a future, a
//! reference and an entry among those that wait for each of its two ends. Here [`messages`] takes the lock once for a run
//! of them. What that gave is in `docs/benchmarks.md`.
//!
//! - [`settings`] has every setting with its reason, and makes endpoints with them;
//! - [`mod@endpoint`] leads the datagrams of one [`socket`] to their connections, and takes in new ones;
//! - [`connection`] is one connection, with the task that drives it;
//! - [`control`] is its one bidirectional stream;
//! - [`messages`] are its unidirectional streams.

mod connection;
mod control;
mod endpoint;
mod messages;
mod settings;
mod socket;
#[cfg(test)]
mod tests;

pub(crate) use connection::Connection;
pub(crate) use control::{RecvStream, SendStream, StreamError};
pub(crate) use endpoint::{Endpoint, Incoming};
pub(crate) use messages::{MessageWriter, Piece, Want};
pub(crate) use settings::{bind_udp, client_client, client_server, endpoint, link_client, link_server, link_streams};
#[cfg(test)]
pub(crate) use socket::{Datagrams, Writable};

pub(crate) use quinn_proto::{
    ClientConfig, ConnectError, ConnectionError, EndpointConfig, StreamId, TransportErrorCode, VarInt,
};
