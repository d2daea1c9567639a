//! The sessions of QUIC clients that can be resumed, and how a connection comes to the one that it is to serve.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::address::ClientId;
use crate::carrier::{ControlStream, close};
use crate::delivery::RangeSet;
use crate::permission::Login;
use crate::tls::credentials::Entry;
use crate::transport::Connection;

/// A connection that is to serve a session.
pub(super) struct Arrival {
    pub(super) connection: Connection,
    pub(super) control: ControlStream,
    /// What the client has taken of the node's messages.
    pub(super) taken: RangeSet,
    /// What the client may do, if it showed a token.
    pub(super) login: Option<Box<Login>>,
    /// Its certificate's place, if it showed one.
    pub(super) entry: Option<Entry>,
}

/// Where a connection waits for the session that it is to serve. A later one takes the place of an earlier one, which
/// its client has given up.
pub(super) struct Berth<A> {
    arrival: Mutex<Option<A>>,
    /// There is one.
    came: Notify,
}

impl<A> Berth<A> {
    fn new() -> Self {
        Self {
            arrival: Mutex::new(None),
            came: Notify::new(),
        }
    }

    /// Puts one in; gives back the one that was still waiting.
    fn put(&self, arrival: A) -> Option<A> {
        let earlier = self.arrival.lock().replace(arrival);
        self.came.notify_one();
        earlier
    }

    /// Waits for the next one. Cancel safe.
    pub(super) async fn next(&self) -> A {
        loop {
            if let Some(arrival) = self.arrival.lock().take() {
                return arrival;
            }
            self.came.notified().await;
        }
    }
}

/// The sessions that can be resumed, by token.
pub(super) struct Sessions(DashMap<String, Kept>);

/// A session that can be resumed.
struct Kept {
    berth: Arc<Berth<Arrival>>,
    /// The name that its client must have proved, if it has one.
    name: Option<ClientId>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self(DashMap::new())
    }

    /// A place under a new token.
    pub(super) fn open(self: &Arc<Self>, name: Option<ClientId>) -> Place {
        let place = Place {
            token: format!("{:032x}", rand::random::<u128>()),
            berth: Arc::new(Berth::new()),
            sessions: Arc::clone(self),
        };
        let berth = Arc::clone(&place.berth);
        self.0.insert(place.token.clone(), Kept { berth, name });
        place
    }

    /// Hands a connection of the client with this name to the session with this token; gives it back when there is none,
    /// or it is another client's.
    pub(super) fn hand_over(&self, token: &str, name: Option<&ClientId>, arrival: Arrival) -> Result<(), Arrival> {
        let earlier = match self.0.get(token) {
            // While it is held here: a session that ends takes its berth out first, so that none waits in one that is gone.
            Some(kept) if kept.name.as_ref() == name => kept.berth.put(arrival),
            Some(_) | None => return Err(arrival),
        };
        if let Some(earlier) = earlier {
            replace(&earlier.connection);
        }
        Ok(())
    }
}

/// Closes a connection whose client has come by another one. It is not told that it is done.
pub(super) fn replace(connection: &Connection) {
    connection.close(close::DUPLICATE, b"another connection has taken its place");
}

/// A session's place among those that can be resumed, until it is dropped.
pub(super) struct Place {
    pub(super) token: String,
    pub(super) berth: Arc<Berth<Arrival>>,
    sessions: Arc<Sessions>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.0.remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn of_the_connections_of_a_client_the_last_one_serves() {
        let berth = Berth::new();
        assert_eq!(berth.next().now_or_never(), None);
        assert_eq!(berth.put(1), None);
        assert_eq!(berth.put(2), Some(1));
        assert_eq!(berth.next().now_or_never(), Some(2));
        assert_eq!(berth.next().now_or_never(), None);
        let mut waiting = std::pin::pin!(berth.next());
        assert_eq!(waiting.as_mut().now_or_never(), None);
        assert_eq!(berth.put(3), None);
        assert_eq!(waiting.now_or_never(), Some(3));
    }
}
