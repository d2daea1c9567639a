//! What is written to clients, to other nodes and to Redis, byte by byte.
//!
//! Pure: bytes in, values out, and the other way round. No sockets, no clock.

pub(crate) mod client;
pub(crate) mod escape;
pub(crate) mod framing;
pub(crate) mod handover;
pub(crate) mod line;
pub(crate) mod link;
pub(crate) mod packet;
pub(crate) mod resp;
pub(crate) mod varint;
