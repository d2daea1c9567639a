//! What the tasks of the bus have in common.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::bus::Publishing;
use super::connection::Dialler;
use super::error::{BusError, PublishError};
use super::lanes::{Ended, Lanes, Topology};
use super::presence::{Announcement, Commander};
use crate::backoff::Backoff;
use crate::phase::{Follow, Phase};

/// How long a payload may wait for a connection: as long as one that is there may be silent, and a second for the next.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The wait after the first failure. A connection that was killed is back before anyone notices much.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// The longest wait. A Redis that starts again is found within it.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How long the same trouble is told once.
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// What the tasks share.
pub(super) struct Shared {
    pub(super) dialler: Dialler,
    /// The node's own channel.
    pub(super) own: Bytes,
    pub(super) lanes: Mutex<Lanes>,
    /// Counts the readings of the topology.
    pub(super) version: watch::Sender<u64>,
    /// The topology is to be read anew.
    pub(super) look: Notify,
    /// A server may have something to write that no task looks after.
    pub(super) attend: Notify,
    /// A node has said that it came or left.
    pub(super) news: Notify,
    /// How the first attempt to subscribe ended.
    pub(super) started: watch::Sender<Option<Result<(), BusError>>>,
    /// Why there is no topology.
    pub(super) trouble: Mutex<Option<BusError>>,
    pub(super) announcement: watch::Sender<Option<Announcement>>,
    /// The entry in the list of nodes may be gone.
    pub(super) announce_again: Notify,
    /// For the list of nodes. A wait there does not hold up the node's own entry.
    pub(super) commander: tokio::sync::Mutex<Commander>,
    pub(super) phase: Follow,
}

impl Shared {
    pub(super) fn new(dialler: Dialler, own: Bytes, phase: Follow) -> Self {
        Self {
            lanes: Mutex::new(Lanes::new()),
            dialler,
            own,
            version: watch::Sender::new(0),
            look: Notify::new(),
            attend: Notify::new(),
            news: Notify::new(),
            started: watch::Sender::new(None),
            trouble: Mutex::new(None),
            announcement: watch::Sender::new(None),
            announce_again: Notify::new(),
            commander: tokio::sync::Mutex::default(),
            phase,
        }
    }

    /// The topology as it is known.
    pub(super) fn topology(&self) -> Topology {
        self.lanes.lock().topology().clone()
    }

    /// The topology was read.
    pub(super) fn set_topology(&self, topology: Topology) {
        {
            let mut lanes = self.lanes.lock();
            if *lanes.topology() != topology {
                lanes.set_topology(topology);
            }
        }
        *self.trouble.lock() = None;
        self.version.send_modify(|version| *version += 1);
        self.attend.notify_one();
    }

    /// The first attempt has come to this end, if there was none yet.
    pub(super) fn set_started(&self, result: Result<(), BusError>) {
        self.started.send_if_modified(|started| {
            let is_first = started.is_none();
            if is_first {
                *started = Some(result);
            }
            is_first
        });
    }

    /// Queues a payload, once there is room for it.
    pub(super) async fn publish(&self, channel: &[u8], payload: Bytes, everywhere: bool) -> Publishing {
        let max_payload = self.dialler.config.max_payload;
        if payload.len() > max_payload {
            return Publishing::ended(Err(PublishError::TooLong(payload.len(), max_payload)));
        }
        let unsent = |error| Publishing::ended(Err(PublishError::Unsent(error)));
        let (room, needed) = match self.room(channel, &payload).await {
            Ok(room) => room,
            Err(error) => return unsent(error),
        };
        let Ok(room) = room.acquire_many_owned(needed).await else {
            return unsent(BusError::Closed);
        };
        let channel = Bytes::copy_from_slice(channel);
        let pushed = {
            let mut lanes = self.lanes.lock();
            lanes.push(channel, payload, everywhere, room, Instant::now())
        };
        let Some((outcome, attend)) = pushed else {
            return unsent(self.why_nowhere());
        };
        if attend {
            self.attend.notify_one();
        }
        Publishing::under_way(outcome)
    }

    /// The room of the server that a channel's payloads go to, waited for until one is known.
    async fn room(&self, channel: &[u8], payload: &Bytes) -> Result<(Arc<tokio::sync::Semaphore>, u32), BusError> {
        let look = || {
            let mut lanes = self.lanes.lock();
            if lanes.is_closed() {
                return Err(BusError::Closed);
            }
            Ok(lanes.room(channel).map(|room| (room, Lanes::room_of(payload))))
        };
        if let Some(room) = look()? {
            return Ok(room);
        }
        let mut version = self.version.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(room) = look()? {
                return Ok(room);
            }
            self.look.notify_one();
            if !matches!(timeout_at(deadline, version.changed()).await, Ok(Ok(()))) {
                return Err(self.why_nowhere());
            }
        }
    }

    /// Why there is no server for what was asked.
    pub(super) fn why_nowhere(&self) -> BusError {
        if self.lanes.lock().is_closed() {
            return BusError::Closed;
        }
        self.trouble.lock().clone().unwrap_or_else(|| {
            let seed = self.dialler.seeds().next().cloned();
            seed.map_or(BusError::Closed, |at| {
                BusError::NotReady(at, "no server of the cluster has the slot".to_owned())
            })
        })
    }

    /// Waits until the node has stopped.
    pub(super) async fn stopped(&self) {
        self.phase.reached(Phase::Stopped).await;
    }

    /// Ends all that is to be published.
    pub(super) fn close(&self) {
        let ended = self.lanes.lock().close();
        Ended::tell(ended);
        self.set_started(Err(BusError::Closed));
        self.version.send_modify(|version| *version += 1);
    }
}

/// The waits of a task between its attempts.
pub(super) fn backoff() -> Backoff {
    Backoff::new(FIRST_WAIT, LONGEST_WAIT)
}

/// Tells of trouble: each kind once, until it is over.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    told: String,
    at: Option<Instant>,
}

impl Trouble {
    /// An attempt has failed.
    pub(crate) fn tell(&mut self, what: &str, error: &BusError) {
        let text = error.to_string();
        if self.told == text && self.at.is_some_and(|at| at.elapsed() < TOLD_EVERY) {
            debug!("{what}: {text}");
        } else {
            warn!("{what}, and goes on trying: {text}");
            self.told = text;
            self.at = Some(Instant::now());
        }
    }

    /// An attempt has succeeded.
    pub(crate) fn is_over(&mut self) {
        *self = Self::default();
    }
}
