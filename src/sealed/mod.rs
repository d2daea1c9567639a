//! Sessions between two nodes over a bus that anyone may listen to, write to, and lose things on.
//!
//! [`seal`] and [`handshake`] (pure) make what is said secret and known to be the other node's; [`session`] opens one and
//! answers; [`hub`] leads what comes in to the session it is of. What is lost is not sent again here: the session ends.

pub(crate) mod handshake;
pub(crate) mod hub;
mod seal;
pub(crate) mod session;
