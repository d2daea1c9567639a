//! Which clients are on this node.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::address::ClientId;
use crate::ids::IdSequence;
use crate::message::Recipient;

/// The clients of a node, by id. All use of the map is in here: no guard of it ever leaves.
pub(crate) struct Registry {
    clients: DashMap<ClientId, Arc<dyn Recipient>>,
    ids: Mutex<IdSequence>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            clients: DashMap::new(),
            ids: Mutex::new(IdSequence::new()),
        }
    }

    /// An id that nobody has had on this node.
    pub(crate) fn fresh_id(&self) -> ClientId {
        self.ids.lock().next()
    }

    /// Makes a client reachable under its id, until the registration is dropped.
    pub(crate) fn register(self: &Arc<Self>, id: ClientId, client: Arc<dyn Recipient>) -> Registration {
        self.clients.insert(id.clone(), Arc::clone(&client));
        Registration {
            registry: Arc::clone(self),
            id,
            client,
        }
    }

    /// The client with this id.
    pub(crate) fn get(&self, id: &ClientId) -> Option<Arc<dyn Recipient>> {
        self.clients.get(id).map(|client| Arc::clone(&client))
    }

    /// How many clients there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }
}

/// A client's place in the registry. Dropping it takes the client out, unless another has taken the id since.
pub(crate) struct Registration {
    registry: Arc<Registry>,
    id: ClientId,
    client: Arc<dyn Recipient>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry
            .clients
            .remove_if(&self.id, |_, client| Arc::ptr_eq(client, &self.client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Ticket};
    use crate::outcome::Code;

    // Not a zero-sized type: two of those may share an address.
    struct Client(#[expect(dead_code, reason = "gives it an address of its own")] u8);
    impl Recipient for Client {
        fn push(&self, _: Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
            Err((ticket, Code::RecipientGone))
        }
    }

    #[test]
    fn the_end_of_an_earlier_client_leaves_a_later_one_with_its_id() {
        let registry = Arc::new(Registry::new());
        let id: ClientId = "bob".parse().unwrap();
        let first = registry.register(id.clone(), Arc::new(Client(1)));
        let second = registry.register(id.clone(), Arc::new(Client(2)));
        drop(first);
        assert!(registry.get(&id).is_some());
        drop(second);
        assert!(registry.get(&id).is_none());
        assert_eq!(registry.len(), 0);
    }
}
