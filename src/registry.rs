//! Which clients are on this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::address::ClientId;
use crate::ids::IdSequence;
use crate::message::Recipient;

/// The clients of a node, by id. All use of the map is in here: no guard of it ever leaves.
pub(crate) struct Registry {
    clients: DashMap<ClientId, (u64, Arc<dyn Recipient>), RandomState>,
    /// How many have come.
    came: AtomicU64,
    ids: Mutex<IdSequence>,
    /// A client has left.
    left: Notify,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            clients: DashMap::default(),
            came: AtomicU64::new(0),
            ids: Mutex::new(IdSequence::new()),
            left: Notify::new(),
        }
    }

    /// An id that nobody has had on this node.
    pub(crate) fn fresh_id(&self) -> ClientId {
        self.ids.lock().next()
    }

    /// Makes a client reachable under its id, until the registration is dropped.
    ///
    /// An id that was granted by name may be in use: the connection that has it may be dead and not know it. So the
    /// last to come has the better right, the earlier one is told to end, and this waits until it has. `None`: a later one
    /// has come meanwhile. Cancel safe.
    pub(crate) async fn register(self: &Arc<Self>, id: ClientId, client: Arc<dyn Recipient>) -> Option<Registration> {
        let number = self.came.fetch_add(1, Ordering::Relaxed);
        loop {
            let left = self.left.notified();
            let earlier = match self.clients.entry(id.clone()) {
                Entry::Vacant(place) => {
                    place.insert((number, Arc::clone(&client)));
                    return Some(Registration {
                        registry: Arc::clone(self),
                        id,
                        client,
                    });
                }
                Entry::Occupied(place) if place.get().0 > number => return None,
                Entry::Occupied(place) => Arc::clone(&place.get().1),
            };
            earlier.yield_place();
            drop(earlier);
            left.await;
        }
    }

    /// The client with this id, if there is one now.
    pub(crate) fn find(&self, id: &ClientId) -> Option<Arc<dyn Recipient>> {
        self.clients.get(id).map(|client| Arc::clone(&client.1))
    }

    /// How many clients there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }
}

/// A client's place in the registry. Dropping it takes the client out.
pub(crate) struct Registration {
    registry: Arc<Registry>,
    id: ClientId,
    client: Arc<dyn Recipient>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry
            .clients
            .remove_if(&self.id, |_, (_, client)| Arc::ptr_eq(client, &self.client));
        self.registry.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, NodeName};
    use crate::message::{Conversation, Message, Settle, Tag, Ticket};
    use crate::outcome::{Code, Outcome};
    use futures_util::FutureExt;
    use std::sync::atomic::AtomicBool;

    #[derive(Default)]
    struct Client(AtomicBool);
    impl Recipient for Client {
        fn push(&self, _: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
            Err((ticket, Code::RecipientGone))
        }

        fn yield_place(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    struct Nobody;
    impl Settle for Nobody {
        fn settle(&self, _: &[(Tag, Outcome)]) {}
    }

    fn push(registry: &Registry, id: &ClientId) -> Code {
        let node: NodeName = "n:1".parse().unwrap();
        let address = Address { node, id: id.clone() };
        let message = Message {
            conversation: Conversation::new(address.clone(), address),
            body: "x".into(),
            prompt: false,
        };
        let ticket = Ticket {
            origin: Arc::new(Nobody),
            tag: Tag::prompt(0, 0),
        };
        let found = registry.find(id);
        found.map_or(Code::NoSuchClient, |client| {
            client.push(&message, ticket).unwrap_err().1
        })
    }

    #[test]
    fn the_last_to_come_gets_the_id_once_the_earlier_one_has_left() {
        let registry = Arc::new(Registry::new());
        let id: ClientId = "bob".parse().unwrap();
        let earlier = Arc::new(Client::default());
        let first = registry
            .register(id.clone(), Arc::<Client>::clone(&earlier))
            .now_or_never()
            .unwrap()
            .unwrap();
        assert!(!earlier.0.load(Ordering::SeqCst));
        let later = Arc::new(Client::default());
        let mut second = Box::pin(registry.register(id.clone(), Arc::<Client>::clone(&later)));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(earlier.0.load(Ordering::SeqCst), "it was not told");
        drop(first);
        let second = second.now_or_never().unwrap().unwrap();
        assert_eq!(push(&registry, &id), Code::RecipientGone);
        assert!(!later.0.load(Ordering::SeqCst));
        drop(second);
        assert_eq!(push(&registry, &id), Code::NoSuchClient);
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn of_those_that_wait_for_an_id_the_last_one_gets_it_whoever_is_woken_first() {
        let registry = Arc::new(Registry::new());
        let id: ClientId = "bob".parse().unwrap();
        let come = || Box::pin(registry.register(id.clone(), Arc::new(Client::default())));
        let first = come().now_or_never().unwrap().unwrap();
        let (mut second, mut third) = (come(), come());
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.now_or_never().unwrap();
        assert!(third.is_some() && second.now_or_never().unwrap().is_none());
    }
}
