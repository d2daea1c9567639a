//! A session of a legacy client without a connection, for the workloads of [`hot_paths`](crate::hot_paths).

#![expect(clippy::unwrap_used, reason = "what can't be set up is not to be measured")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addressee::Addressee;
use super::deadline::Deadline;
use super::session::LineSession;
use crate::address::{ClientId, NodeName};
use crate::admission::Places;
use crate::clients::{Admission, ClientContext};
use crate::config::{ClientRule, Limits};
use crate::counters::Counters;
use crate::keyring::Keyring;
use crate::message::settle_all;
use crate::misses::Misses;
use crate::outcome::Outcome;
use crate::phase::{Lead, phases};
use crate::registry::Registration;
use crate::router::Router;
use crate::tls::ClientCertificates;
use crate::tls::credentials::Credentials;
use crate::turn::Turn;
use crate::wire::framing::Lines;

/// What sessions need of a node, without a port.
pub(crate) struct BareNode {
    context: ClientContext,
    /// When it is dropped, the node has stopped.
    _lead: Lead,
}

impl BareNode {
    /// A node of this name, which has a certificate in this directory, with all limits as they are by default.
    pub(crate) fn new(certs: &Path, name: &NodeName) -> Self {
        let credentials = Credentials::load(certs, name, ClientCertificates::Unasked).unwrap();
        let cluster = credentials.current().cluster().to_owned();
        let limits = Limits::default();
        let (lead, phase) = phases();
        let context = ClientContext {
            router: Arc::new(Router::new(name.clone())),
            credentials,
            rule: ClientRule::Open,
            keyring: Keyring::unused(certs, &cluster),
            cluster,
            networks: None,
            tracker: TaskTracker::new(),
            phase,
            failed: CancellationToken::new(),
            places: Places::new(limits.max_clients, limits.max_per_source),
            misses: Arc::new(Misses::new(limits.miss_rate, limits.miss_burst)),
            counters: Arc::new(Counters::new()),
            buffers: Arc::default(),
            limits,
        };
        Self { context, _lead: lead }
    }

    /// Where its messages go.
    pub(crate) fn router(&self) -> &Router {
        &self.context.router
    }

    /// Its limits.
    pub(crate) fn limits(&self) -> &Limits {
        &self.context.limits
    }
}

/// A session that is given what its client wrote, and what is written to its client.
pub(crate) struct BareSession {
    session: Arc<LineSession>,
    lines: Lines,
    turn: Turn,
    deadline: Deadline,
    last: Addressee,
    _admission: Admission,
    _registration: Registration,
}

impl BareSession {
    /// Lets a client in under this id, as a node does.
    pub(crate) fn join(node: &BareNode, id: &ClientId) -> Self {
        let context = &node.context;
        let admission = context.admit(IpAddr::from(Ipv4Addr::LOCALHOST)).unwrap();
        let session = LineSession::new(id.clone(), None, &admission, context);
        let registering = context
            .router
            .registry()
            .register(id.clone(), Arc::<LineSession>::clone(&session));
        Self {
            session,
            lines: Lines::new(context.limits.max_line()),
            turn: Turn::new(),
            deadline: Deadline::new(&context.limits),
            last: Addressee::new(),
            _admission: admission,
            _registration: registering.now_or_never().flatten().unwrap(),
        }
    }

    /// One read: takes as much as there is room for off the front of `bytes`, and does what all whole lines say. Says
    /// whether the client can still be followed.
    pub(crate) fn read(&mut self, node: &BareNode, bytes: &mut &[u8]) -> bool {
        if self.lines.is_bare() {
            self.lines.furnish(node.context.buffers.take());
        }
        let buffer = self.lines.buffer();
        let (now, later) = bytes.split_at(bytes.len().min(buffer.capacity() - buffer.len()));
        buffer.extend_from_slice(now);
        *bytes = later;
        let (lines, turn, deadline) = (&mut self.lines, &mut self.turn, &mut self.deadline);
        let followed = self
            .session
            .follow_all(lines, turn, deadline, &mut self.last, &node.context);
        let followed = done(Box::pin(followed));
        if let Some(buffer) = self.lines.release() {
            node.context.buffers.give_back(buffer);
        }
        followed.is_ok()
    }

    /// Writes what is queued for the client, which takes it all at once. Gives how many bytes that was.
    pub(crate) fn write(&self) -> usize {
        let outbox = &self.session.outbox;
        let mut written = 0;
        while let Some(Some(bytes)) = outbox.take().now_or_never() {
            settle_all(outbox.written(bytes.len(), Outcome::Delivered));
            written += bytes.len();
            outbox.give_back(bytes);
        }
        written
    }

    /// Whether nothing of the client is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.session.flow.lock().is_idle()
    }
}

/// What a future gives that waits for nothing but its turn.
fn done<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}
