//! The bus as a whole.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::connection::{Dialler, MAX_ENTRY};
use super::error::{BusError, PublishError};
use super::lanes::Outcome;
use super::presence::{Announcement, Listing};
use super::shared::Shared;
use super::url::RedisConfig;
use super::{presence, publisher, scout, subscriber};
use crate::address::NodeName;
use crate::phase::Follow;

/// How many events may wait to be taken. When they do, nothing more is read from Redis; it buffers for a while, and
/// then disconnects the node (`client-output-buffer-limit pubsub`), which is told as [`Event::Lost`].
pub(crate) const EVENTS: usize = 64;

/// What comes in on the node's own channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The subscription is confirmed, for the first time or again: what is published from now on comes in.
    Subscribed,
    /// A payload, of at most [`RedisConfig::max_payload`] bytes, which can be opened in place. Anyone who may publish
    /// in that Redis can send one.
    Message(BytesMut),
    /// The subscription broke, for this reason: what was published since, or just before, may be missing. Comes once
    /// for each [`Subscribed`](Self::Subscribed), and before the next one.
    Lost(String),
}

/// A node's way to the others through Redis. Clones are the same bus.
#[derive(Clone)]
pub(crate) struct Bus {
    shared: Arc<Shared>,
}

impl Bus {
    /// Starts the bus: it subscribes to the node's own channel, and goes on trying until the node has stopped. Its
    /// tasks end with [`Phase::Stopped`](crate::phase::Phase::Stopped); the subscription also when nobody takes events
    /// any more.
    ///
    /// # Errors
    ///
    /// When the settings make no sense, or the file of authorities can't be read. Redis itself is not waited for: see
    /// [`started`](Self::started).
    pub(crate) fn start(
        config: RedisConfig,
        own_channel: &str,
        tracker: &TaskTracker,
        phase: &Follow,
    ) -> Result<(Self, mpsc::Receiver<Event>), BusError> {
        let dialler = Dialler::new(config)?;
        let own = Bytes::copy_from_slice(own_channel.as_bytes());
        let shared = Arc::new(Shared::new(dialler, own, phase.clone()));
        let (sender, events) = mpsc::channel(EVENTS);
        tracker.spawn(scout::run(Arc::clone(&shared)));
        tracker.spawn(subscriber::run(Arc::clone(&shared), sender));
        tracker.spawn(publisher::run(Arc::clone(&shared), tracker.clone()));
        tracker.spawn(presence::run(Arc::clone(&shared)));
        Ok((Self { shared }, events))
    }

    /// Waits for the end of the first attempt to subscribe, and gives its result. It takes some seconds at the most for
    /// each seed. The bus goes on trying whatever it was. Cancel safe.
    pub(crate) async fn started(&self) -> Result<(), BusError> {
        let mut started = self.shared.started.subscribe();
        let started = started.wait_for(Option::is_some).await;
        started.map_or(Err(BusError::Closed), |started| started.clone().unwrap_or(Ok(())))
    }

    /// Puts a payload into the queue for a channel; the result comes from what is returned. What waits here is
    /// published in the order in which this function returned, for each channel, as long as the connection lives.
    ///
    /// Waits while too much is under way to the same server of Redis (in number and in bytes). What is in the queue
    /// is written at once when the connection is idle, and gathered under load. While there is no connection it stays
    /// in the queue, for some seconds. Cancel safe: when this is dropped, nothing was queued.
    pub(crate) async fn publish(&self, channel: &str, payload: Bytes) -> Publishing {
        self.shared.publish(channel.as_bytes(), payload, false).await
    }

    /// Keeps this entry in the list of nodes: `info` under the node's name, which goes after `ttl` unless it is
    /// refreshed; that happens at every third of it. The other nodes are told, so that they look at once. A later call
    /// replaces the entry. It is removed, and the others are told, when the node leaves
    /// ([`Phase::Leaving`](crate::phase::Phase::Leaving)).
    ///
    /// # Errors
    ///
    /// When `info` is longer than 64 KiB.
    pub(crate) fn announce(&self, node: &NodeName, info: Bytes, ttl: Duration) -> Result<(), BusError> {
        if info.len() > MAX_ENTRY {
            return Err(BusError::Config(format!(
                "what a node announces has at most {MAX_ENTRY} bytes, and this has {}",
                info.len()
            )));
        }
        self.shared.announcement.send_replace(Some(Announcement {
            node: node.clone(),
            info,
            ttl,
        }));
        Ok(())
    }

    /// The nodes that have an entry now, this one too, at most 16,384, with what they announced. Entries that are not a
    /// node's name, or longer than 64 KiB, are passed over. Whoever may write in that Redis can have written them.
    ///
    /// # Errors
    ///
    /// When no server answers. Where some of a cluster's masters do not, the list says that it may not be whole.
    pub(crate) async fn nodes(&self) -> Result<Listing, BusError> {
        presence::nodes(&self.shared).await
    }

    /// Waits until a node has said that it came or left, since the last call; several count as one. Anyone who may
    /// publish can make it return, so do not look more often than you can afford. Cancel safe; for one caller at a
    /// time.
    pub(crate) async fn news(&self) {
        self.shared.news.notified().await;
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("config", &self.shared.dialler.config)
            .finish_non_exhaustive()
    }
}

/// A payload under way. Gives how many subscribers Redis passed it to: 0 when the node is not there. Dropping it does
/// not take the payload back.
#[derive(Debug)]
pub(crate) struct Publishing(State);

#[derive(Debug)]
enum State {
    UnderWay(oneshot::Receiver<Outcome>),
    Ended(Option<Outcome>),
}

impl Publishing {
    pub(super) fn under_way(outcome: oneshot::Receiver<Outcome>) -> Self {
        Self(State::UnderWay(outcome))
    }

    pub(super) fn ended(outcome: Outcome) -> Self {
        Self(State::Ended(Some(outcome)))
    }
}

impl Future for Publishing {
    type Output = Result<u64, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let closed = || Err(PublishError::Unknown(BusError::Closed));
        match &mut self.0 {
            // An error: the tasks are gone, as the runtime ends.
            State::UnderWay(outcome) => outcome
                .poll_unpin(cx)
                .map(|outcome| outcome.unwrap_or_else(|_| closed())),
            State::Ended(outcome) => Poll::Ready(outcome.take().unwrap_or_else(closed)),
        }
    }
}
