//! The bus: what nodes say to each other through Redis or Valkey, one server or a cluster.
//!
//! Each node subscribes to a channel of its own, and publishes to those of others. The bus brings payloads there as
//! pub/sub does: in order while a connection lives, at most once, and with losses when one breaks. It says when that
//! was; what is to be made up for is for its user to find.
//!
//! | file | what it is | pure |
//! |---|---|---|
//! | `url` | settings, and what is wrong with them | yes |
//! | `error` | what Redis refuses, in words | yes |
//! | `topology` | which master of a cluster has which slot | yes |
//! | `lanes` | what waits to be published, in order, and where it goes | no I/O |
//! | `connection` | one connection: dialled, secured, logged in | |
//! | `scout` `publisher` `subscriber` `presence` | the tasks, with what they have in common in `shared` | |
//! | `bus` | all of it together | |

mod bus;
mod connection;
mod error;
mod lanes;
mod presence;
mod publisher;
mod scout;
mod shared;
mod subscriber;
#[cfg(test)]
mod tests;
pub(crate) mod topology;
mod url;

pub use url::{RedisUrl, UrlError};
pub(crate) use {
    bus::{Bus, Event, Publishing},
    error::PublishError,
    presence::Listing,
    shared::Trouble,
    url::RedisConfig,
};
