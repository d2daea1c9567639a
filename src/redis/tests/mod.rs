//! The bus with real servers, and with such as are none.

mod cluster;
mod hostile;
mod presence;
mod single;

use std::fmt::Display;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::bus::{Bus, Event};
use super::error::{BusError, PublishError};
use super::url::RedisConfig;
use crate::phase::{Lead, Phase, phases};

/// How long anything that must happen may take. Far more than it does, so that a busy machine fails no test.
const DEADLINE: Duration = Duration::from_secs(40);

/// The longest payload in these tests.
const MAX_PAYLOAD: usize = 256 * 1024;

/// What the future gives, which must come before the deadline.
async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// A bus with all its tasks.
struct Node {
    bus: Bus,
    events: mpsc::Receiver<Event>,
    lead: Lead,
    tracker: TaskTracker,
    channel: String,
}

fn config(urls: &[String]) -> RedisConfig {
    RedisConfig {
        seeds: urls.iter().map(|url| url.parse().unwrap()).collect(),
        prefix: "t".to_owned(),
        ca: None,
        plaintext_allowed: false,
        max_payload: MAX_PAYLOAD,
    }
}

impl Node {
    /// One that subscribes to `t:to:NAME`.
    fn start(config: RedisConfig, name: &str) -> Self {
        let (lead, phase) = phases();
        let tracker = TaskTracker::new();
        let channel = format!("t:to:{name}");
        let (bus, events) = Bus::start(config, &channel, &tracker, &phase).unwrap();
        Self {
            bus,
            events,
            lead,
            tracker,
            channel,
        }
    }

    /// One that has subscribed.
    async fn up(urls: &[String], name: &str) -> Self {
        let mut node = Self::start(config(urls), name);
        within("the start", node.bus.started()).await.unwrap();
        assert_eq!(node.event().await, Event::Subscribed);
        node
    }

    /// How the first attempt ends.
    async fn failure(config: RedisConfig) -> BusError {
        let node = Self::start(config, "n");
        let error = within("the first attempt", node.bus.started()).await.unwrap_err();
        node.end().await;
        error
    }

    /// Why it does not even start.
    fn refused(config: RedisConfig) -> BusError {
        let (_lead, phase) = phases();
        Bus::start(config, "n", &TaskTracker::new(), &phase).expect_err("it does not start")
    }

    async fn event(&mut self) -> Event {
        within("an event", self.events.recv()).await.expect("the bus runs")
    }

    /// The next event, which is a payload.
    async fn payload(&mut self) -> BytesMut {
        match self.event().await {
            Event::Message(payload) => payload,
            other @ (Event::Subscribed | Event::Lost(_)) => panic!("{other:?}, and no payload"),
        }
    }

    /// Waits for the loss of the subscription, past payloads.
    async fn lost(&mut self) -> String {
        loop {
            match self.event().await {
                Event::Lost(why) => return why,
                Event::Message(_) => {}
                Event::Subscribed => panic!("subscribed without a loss"),
            }
        }
    }

    /// Publishes, and waits for what becomes of it.
    async fn publish(&self, channel: &str, payload: impl Into<Bytes>) -> Result<u64, PublishError> {
        let publishing = within("room to publish", self.bus.publish(channel, payload.into())).await;
        within("the end of a payload", publishing).await
    }

    /// Shuts down; nothing may run on after that.
    async fn end(self) {
        self.lead.enter(Phase::Stopped);
        self.tracker.close();
        within("the end of all tasks", self.tracker.wait()).await;
    }
}

/// A payload that says which it is.
fn numbered(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Which it is.
fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}
