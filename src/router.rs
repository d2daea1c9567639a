//! Where a message goes: to a client here, to the link of another node, to a legacy server, or back to its sender with
//! a refusal.
//!
//! One hop, no loops: what comes from a link or a legacy server goes to a client here or nowhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use foldhash::quality::RandomState;
use tokio::sync::futures::Notified;

use crate::address::NodeName;
use crate::course::{Course, Last};
use crate::legacy::LegacyNode;
use crate::link::Link;
use crate::message::{Message, Ticket};
use crate::outcome::{Code, Outcome};
use crate::registry::Registry;

/// What a node knows of where clients are: its own, the nodes it is linked to, and legacy servers.
pub(crate) struct Router {
    name: NodeName,
    registry: Arc<Registry>,
    links: DashMap<NodeName, Arc<Link>, RandomState>,
    legacy: HashMap<NodeName, Arc<LegacyNode>, RandomState>,
    draining: AtomicBool,
    giving_up: AtomicBool,
}

/// What leads to the clients of another node.
#[derive(Debug)]
pub(crate) enum Way {
    Link(Arc<Link>),
    Legacy(Arc<LegacyNode>),
}

impl Way {
    /// Waits until there may be room. The waiting starts at this call, before the future is polled, so: call, try once
    /// more, then await.
    pub(crate) fn room(&self) -> Notified<'_> {
        match self {
            Self::Link(link) => link.exchange().room(),
            Self::Legacy(server) => server.room(),
        }
    }
}

/// A message that has to wait for room on its way.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub(crate) message: Message,
    pub(crate) ticket: Ticket,
    pub(crate) way: Way,
}

impl Router {
    /// A node of this name, without clients and links.
    pub(crate) fn new(name: NodeName) -> Self {
        Self {
            name,
            registry: Arc::new(Registry::new()),
            links: DashMap::default(),
            legacy: HashMap::default(),
            draining: AtomicBool::new(false),
            giving_up: AtomicBool::new(false),
        }
    }

    /// The same beside these legacy servers.
    pub(crate) fn beside(self, servers: impl IntoIterator<Item = LegacyNode>) -> Self {
        let servers = servers.into_iter();
        Self {
            legacy: servers
                .map(|server| (server.name().clone(), Arc::new(server)))
                .collect(),
            ..self
        }
    }

    /// This node's name.
    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }

    /// The clients of this node.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The link to this node, if there is one.
    pub(crate) fn link(&self, peer: &NodeName) -> Option<Arc<Link>> {
        self.links.get(peer).map(|link| Arc::clone(&link))
    }

    /// The link to this node, made by `make` if there is none.
    pub(crate) fn link_or_insert(&self, peer: &NodeName, make: impl FnOnce() -> Arc<Link>) -> Arc<Link> {
        Arc::clone(&self.links.entry(peer.clone()).or_insert_with(make))
    }

    /// Forgets the links for which this is false.
    pub(crate) fn retain_links(&self, mut keep: impl FnMut(&Link) -> bool) {
        self.links.retain(|_, link| keep(link));
    }

    /// Every link there is.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.links.iter().map(|link| Arc::clone(&link)).collect()
    }

    /// Every legacy server there is.
    pub(crate) fn legacy(&self) -> impl Iterator<Item = &Arc<LegacyNode>> {
        self.legacy.values()
    }

    /// Whether there is any legacy server.
    pub(crate) fn has_legacy(&self) -> bool {
        !self.legacy.is_empty()
    }

    /// Whether there may be a legacy server at this address.
    pub(crate) fn has_legacy_at(&self, ip: IpAddr) -> bool {
        self.legacy().any(|server| server.is_at(ip))
    }

    /// Whether a connection from this address speaks for the clients of this node: it is a legacy server that is there.
    /// Once a node has proved by its certificate that the name is its own, or where one is configured, an address proves
    /// nothing any more.
    pub(crate) fn speaks_for(&self, ip: IpAddr, node: &NodeName) -> bool {
        self.legacy.get(node).is_some_and(|server| server.is_at(ip))
            && !self.links.get(node).is_some_and(|link| link.is_of_a_node())
    }

    /// From now on messages of other nodes are refused: their recipients are about to be gone.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// From now on messages of clients here are refused too: what they would wait for is given up.
    pub(crate) fn give_up(&self) {
        self.giving_up.store(true, Ordering::Release);
    }

    /// Passes on a message of a client here.
    pub(crate) fn route(&self, message: Message, ticket: Ticket, course: &mut Course) -> Result<(), Blocked> {
        if self.giving_up.load(Ordering::Acquire) {
            ticket.settle(Outcome::Refused(Code::ShuttingDown));
            return Ok(());
        }
        let (mut message, mut ticket) = (message, ticket);
        if let Some(link) = course.link()
            && *link.peer() == message.to().node
            && self.is_way(link)
        {
            // It may have been forgotten since, and then has no room.
            match link.submit(course.now(), message, ticket) {
                Ok(()) => return Ok(()),
                Err(back) => (message, ticket) = back,
            }
        }
        if message.to().node == self.name {
            self.deliver(message, ticket, course);
            return Ok(());
        }
        let Some(link) = self.link(&message.to().node).filter(|link| self.is_way(link)) else {
            return self.route_to_legacy(message, ticket, course);
        };
        match link.submit(course.now(), message, ticket) {
            Ok(()) => course.went(Some(Last::Link(link))),
            // To wait for a node that is away would hold up all else that the sender has to say.
            Err((_, ticket)) if !link.is_up() => ticket.settle(Outcome::Refused(Code::NodeUnreachable)),
            Err((message, ticket)) => {
                let way = Way::Link(link);
                return Err(Blocked { message, ticket, way });
            }
        }
        Ok(())
    }

    /// Whether what is for the link's node goes by the link. Where there is a legacy server of that name it does not while
    /// there may only be somebody who says that there is a node.
    fn is_way(&self, link: &Link) -> bool {
        self.legacy.is_empty() || !self.legacy.contains_key(link.peer()) || link.is_of_a_node()
    }

    /// Passes on a message for a node without a link.
    fn route_to_legacy(&self, message: Message, ticket: Ticket, course: &mut Course) -> Result<(), Blocked> {
        let Some(server) = self.legacy.get(&message.to().node) else {
            ticket.settle(Outcome::Refused(Code::NoSuchNode));
            return Ok(());
        };
        let Err((message, ticket)) = server.submit(message, ticket) else {
            course.went(None);
            return Ok(());
        };
        match server.refusal() {
            Some(code) => ticket.settle(Outcome::Refused(code)),
            None => {
                let way = Way::Legacy(Arc::clone(server));
                return Err(Blocked { message, ticket, way });
            }
        }
        Ok(())
    }

    /// Passes on a message of a client of another node.
    pub(crate) fn deliver_from_link(&self, message: Message, ticket: Ticket, course: &mut Course) {
        if self.draining.load(Ordering::Acquire) {
            ticket.settle(Outcome::Refused(Code::ShuttingDown));
        } else {
            self.deliver(message, ticket, course);
        }
    }

    fn deliver(&self, message: Message, mut ticket: Ticket, course: &mut Course) {
        if let Some(client) = course.client(&message.conversation) {
            match client.push(&message, ticket) {
                Ok(()) => return,
                // It may have left, and its id be another's now.
                Err((back, _)) => ticket = back,
            }
            course.rest();
        }
        let pushed = match self.registry.find(&message.to().id) {
            Some(client) => client.push(&message, ticket).map(|()| client),
            None => Err((ticket, Code::NoSuchClient)),
        };
        match pushed {
            Ok(client) => course.went(Some(Last::Client(message.conversation, client))),
            Err((ticket, code)) => {
                let code = match code {
                    // The client has left because the node shuts down, while a line that was read before had its turn.
                    Code::NoSuchClient | Code::RecipientGone if self.draining.load(Ordering::Acquire) => {
                        Code::ShuttingDown
                    }
                    code => code,
                };
                ticket.settle(Outcome::Refused(code));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::course::STRAIGHT;
    use crate::delivery::Bounds;
    use crate::message::{Recipient, Settle, Tag};
    use futures_util::FutureExt;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Ends(Mutex<Vec<(Tag, Outcome)>>);

    impl Ends {
        /// A ticket of a message, by its number, of which the end is noted here.
        fn ticket(self: &Arc<Self>, number: u64) -> Ticket {
            let origin = Arc::<Self>::clone(self);
            let tag = Tag::prompt(number, 0);
            Ticket { origin, tag }
        }
    }

    impl Settle for Ends {
        fn settle(&self, ends: &[(Tag, Outcome)]) {
            self.0.lock().extend_from_slice(ends);
        }
    }

    #[test]
    fn who_writes_to_a_client_that_has_left_a_node_that_shuts_down_is_told_so() {
        let router = Router::new("n:1".parse().unwrap());
        let ends = Arc::new(Ends::default());
        for number in 0..2 {
            let message = Message::example("n:1:a", "n:1:b", "x");
            let ticket = ends.ticket(number);
            assert!(router.route(message, ticket, &mut Course::new()).is_ok());
            router.drain();
        }
        let codes: Vec<_> = ends.0.lock().iter().map(|(_, outcome)| *outcome).collect();
        assert_eq!(codes, [Code::NoSuchClient, Code::ShuttingDown].map(Outcome::Refused));
    }

    /// A client that takes what is for it until it is gone.
    #[derive(Default)]
    struct Client {
        is_gone: AtomicBool,
        taken: Mutex<Vec<Ticket>>,
    }

    impl Recipient for Client {
        fn push(&self, _: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
            if self.is_gone.load(Ordering::Relaxed) {
                return Err((ticket, Code::RecipientGone));
            }
            self.taken.lock().push(ticket);
            Ok(())
        }

        fn yield_place(&self) {}
    }

    #[test]
    fn where_a_message_went_the_next_goes_too_until_another_has_the_id() {
        let router = Router::new("n:1".parse().unwrap());
        let ends = Arc::new(Ends::default());
        let mut course = Course::new();
        let message = Message::example("n:1:a", "n:1:b", "x");
        let mut number = 0;
        let mut route = |message: &Message| {
            let ticket = ends.ticket(number);
            number += 1;
            assert!(router.route(message.clone(), ticket, &mut course).is_ok());
        };
        let come = |client: &Arc<Client>| {
            let coming = router
                .registry()
                .register("b".parse().unwrap(), Arc::<Client>::clone(client));
            coming.now_or_never().flatten().unwrap()
        };
        let (earlier, later) = (Arc::new(Client::default()), Arc::new(Client::default()));
        let place = come(&earlier);
        route(&message);
        route(&message);
        assert_eq!(earlier.taken.lock().len(), 2);
        earlier.is_gone.store(true, Ordering::Relaxed);
        drop(place);
        route(&message);
        let place = come(&later);
        route(&message);
        route(&Message::example("n:1:a", "n:1:c", "x"));
        route(&message);
        assert_eq!((earlier.taken.lock().len(), later.taken.lock().len()), (2, 2));
        drop(place);
        let refused = Outcome::Refused(Code::NoSuchClient);
        let told = [2, 4].map(|number| (Tag::prompt(number, 0), refused));
        assert_eq!(*ends.0.lock(), told);
    }

    #[test]
    fn who_writes_by_two_ways_in_turn_is_known_to() {
        let own: NodeName = "n:1".parse().unwrap();
        let bounds = Bounds {
            messages: 99,
            bytes: 100_000,
        };
        let router = Router::new(own.clone()).beside([LegacyNode::new("n:4".parse().unwrap(), bounds)]);
        for peer in ["n:2", "n:3"] {
            let peer: NodeName = peer.parse().unwrap();
            router.link_or_insert(&peer, || Link::new(&own, peer.clone(), bounds, true).0);
        }
        let client = Arc::new(Client::default());
        let coming = router
            .registry()
            .register("b".parse().unwrap(), Arc::<Client>::clone(&client));
        let _place = coming.now_or_never().flatten().unwrap();
        let ends = Arc::new(Ends::default());
        let is_straight = |ways: &[&str]| {
            let mut course = Course::new();
            for to in ways {
                let message = Message::example("n:1:a", to, "x");
                assert!(router.route(message, ends.ticket(0), &mut course).is_ok());
            }
            let is_straight = course.is_straight();
            course.time_is(course.now() + 2 * STRAIGHT);
            assert!(course.is_straight());
            is_straight
        };
        assert!(is_straight(&[]) && is_straight(&["n:1:b", "n:1:b"]) && is_straight(&["n:2:b", "n:2:c", "n:2:b"]));
        // What went nowhere is no other way.
        assert!(is_straight(&["n:2:b", "n:1:nobody", "n:9:b", "n:2:b"]));
        for other in ["n:1:b", "n:3:b", "n:4:b"] {
            assert!(!is_straight(&["n:2:b", other]), "{other}");
        }
    }

    #[test]
    fn who_still_knows_a_link_that_is_forgotten_puts_nothing_into_it() {
        let own: NodeName = "n:1".parse().unwrap();
        let bounds = Bounds {
            messages: 9,
            bytes: 10_000,
        };
        let router = Router::new(own.clone());
        let peer: NodeName = "n:2".parse().unwrap();
        let link = router.link_or_insert(&peer, || Link::new(&own, peer.clone(), bounds, false).0);
        let ends = Arc::new(Ends::default());
        let mut course = Course::new();
        let mut route = |number| {
            let message = Message::example("n:1:a", "n:2:b", "x");
            let ticket = ends.ticket(number);
            assert!(router.route(message, ticket, &mut course).is_ok());
        };
        route(0);
        crate::message::settle_all(link.exchange().give_up(Code::NodeUnreachable));
        router.retain_links(|link| !link.retire());
        assert!(router.links().is_empty());
        route(1);
        assert!(link.exchange().is_idle());
        let told = [(0, Code::NodeUnreachable), (1, Code::NoSuchNode)];
        let told = told.map(|(number, code)| (Tag::prompt(number, 0), Outcome::Refused(code)));
        assert_eq!(*ends.0.lock(), told);
    }

    #[test]
    fn nothing_goes_on_into_what_is_given_up() {
        let router = Router::new("n:1".parse().unwrap());
        let own: NodeName = "n:1".parse().unwrap();
        let peer: NodeName = "n:2".parse().unwrap();
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        let link = router.link_or_insert(&peer, || Link::new(&own, peer.clone(), bounds, true).0);
        let ends = Arc::new(Ends::default());
        router.give_up();
        for (number, to) in [(0, "n:1:b"), (1, "n:2:b")] {
            let message = Message::example("n:1:a", to, "x");
            let ticket = ends.ticket(number);
            assert!(router.route(message, ticket, &mut Course::new()).is_ok());
        }
        let outcomes: Vec<_> = ends.0.lock().iter().map(|(_, outcome)| *outcome).collect();
        assert_eq!(outcomes, [Outcome::Refused(Code::ShuttingDown); 2]);
        assert!(link.exchange().is_idle());
    }

    #[test]
    fn an_address_speaks_for_the_legacy_servers_that_are_there_and_have_no_link() {
        let own: NodeName = "n:1".parse().unwrap();
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        let names = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1"].map(|name| name.parse::<NodeName>().unwrap());
        let router = Router::new(own.clone()).beside(names.clone().map(|name| LegacyNode::new(name, bounds)));
        let (here, there, elsewhere) = (
            "10.0.0.1".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
            "10.0.0.3".parse().unwrap(),
        );
        let speaks = |ip| names.clone().map(|name| router.speaks_for(ip, &name));
        assert_eq!(speaks(here), [true, true, false]);
        assert_eq!(speaks(there), [false, false, true]);
        assert_eq!(speaks(elsewhere), [false; 3]);
        assert!(!router.speaks_for(here, &own) && !router.speaks_for(here, &"10.0.0.1:3".parse().unwrap()));
        assert!(router.has_legacy_at(here) && !router.has_legacy_at(elsewhere));
        // Somebody says that there is a node, or it is configured, or it has proved that it is one.
        router.link_or_insert(&names[1], || Link::new(&own, names[1].clone(), bounds, true).0);
        assert_eq!(speaks(here), [true, false, false]);
        let link = router.link_or_insert(&names[0], || Link::new(&own, names[0].clone(), bounds, false).0);
        assert_eq!(speaks(here), [true, false, false]);
        assert!(!router.is_way(&link));
        link.prove();
        assert_eq!(speaks(here), [false; 3]);
        assert!(router.is_way(&link));
    }

    #[test]
    fn a_link_is_forgotten_that_nobody_has_proved_asked_for_or_written_to() {
        let own: NodeName = "n:1".parse().unwrap();
        let bounds = Bounds {
            messages: 9,
            bytes: 10_000,
        };
        let router = Router::new(own.clone());
        let names = ["n:2", "n:3", "n:4", "n:5"].map(|name| name.parse::<NodeName>().unwrap());
        let [nothing, configured, proved, written_to] = names.clone();
        let links = names.map(|name| {
            let is_configured = name == configured;
            router.link_or_insert(&name, || Link::new(&own, name.clone(), bounds, is_configured).0)
        });
        links[2].prove();
        let ends = Arc::new(Ends::default());
        let ticket = ends.ticket(0);
        let message = Message::example("n:1:a", &format!("{written_to}:b"), "x");
        assert!(router.route(message, ticket, &mut Course::new()).is_ok());
        router.retain_links(|link| !link.retire());
        let mut left: Vec<_> = router.links().iter().map(|link| link.peer().clone()).collect();
        left.sort();
        assert_eq!(left, [configured, proved, written_to]);
        assert!(links[0].peer() == &nothing && ends.0.lock().is_empty());
    }

    #[test]
    fn who_writes_to_a_legacy_server_waits_for_room_and_not_for_one_that_is_gone() {
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        let server = LegacyNode::new("n:2".parse().unwrap(), bounds);
        let router = Router::new("n:1".parse().unwrap()).beside([server]);
        let ends = Arc::new(Ends::default());
        let route = |number| {
            let message = Message::example("n:1:a", "n:2:b", "x");
            let ticket = ends.ticket(number);
            router.route(message, ticket, &mut Course::new())
        };
        assert!(route(0).is_ok());
        assert!(matches!(
            route(1),
            Err(Blocked {
                way: Way::Legacy(_),
                ..
            })
        ));
        let server = router.legacy().next().unwrap();
        crate::message::settle_all(server.give_up(Code::ShuttingDown));
        assert!(route(2).is_ok());
        let shutting_down = Outcome::Refused(Code::ShuttingDown);
        let told = [0, 2].map(|number| (Tag::prompt(number, 0), shutting_down));
        assert_eq!(*ends.0.lock(), told);
    }

    #[test]
    fn nobody_waits_for_room_on_a_link_that_is_down() {
        let own: NodeName = "n:1".parse().unwrap();
        let router = Router::new(own.clone());
        let peer: NodeName = "n:2".parse().unwrap();
        let bounds = Bounds {
            messages: 1,
            bytes: 1000,
        };
        router.link_or_insert(&peer, || Link::new(&own, peer.clone(), bounds, true).0);
        let ends = Arc::new(Ends::default());
        for number in 0..2 {
            let message = Message::example("n:1:a", "n:2:b", "x");
            let ticket = ends.ticket(number);
            assert!(router.route(message, ticket, &mut Course::new()).is_ok());
        }
        let refused = Tag::prompt(1, 0);
        assert_eq!(*ends.0.lock(), [(refused, Outcome::Refused(Code::NodeUnreachable))]);
    }
}
