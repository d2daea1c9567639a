//! What is written to clients and to other nodes, byte by byte.
//!
//! Pure: bytes in, values out, and the other way round. No sockets, no clock.

pub(crate) mod client;
pub(crate) mod escape;
pub(crate) mod framing;
pub(crate) mod line;
pub(crate) mod link;
pub(crate) mod varint;
