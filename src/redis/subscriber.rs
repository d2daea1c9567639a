//! The subscription to the node's own channel, and to the news of nodes that come and leave.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::bus::{EVENTS, Event};
use super::connection::{Connection, SILENCE, silent};
use super::error::BusError;
use super::lanes::Topology;
use super::shared::{Shared, Trouble, backoff};
use super::topology::Redirect;
use crate::address::HostPort;
use crate::wire::resp::Value;

/// How long nothing may come before the server is asked whether it still lives.
const IDLE: Duration = Duration::from_secs(1);

/// How often a redirect is followed without a wait.
const MOST_HOPS: u32 = 5;

/// Payloads of more bytes are passed on one at a time, so that those that wait are bound in bytes as well.
const LARGE: usize = 256 * 1024;

/// How long a new topology is waited for when a slot has left a master that does not say to whom.
const NEW_TOPOLOGY: Duration = Duration::from_secs(2);

/// How a subscription ended.
enum End {
    /// By trouble.
    Failed(BusError),
    /// The channel's slot is another master's: of that one, if it was named.
    Moved(Option<(u16, HostPort)>),
    /// It is another master's by a topology that was read since.
    Elsewhere,
    /// Nobody takes events any more.
    Unwanted,
}

impl From<BusError> for End {
    fn from(error: BusError) -> Self {
        Self::Failed(error)
    }
}

/// Subscribes, again and again, until the node has stopped.
pub(super) async fn run(shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    tokio::select! {
        () = shared.stopped() => {}
        () = subscribe(&shared, &events) => {}
    }
}

async fn subscribe(shared: &Shared, events: &mpsc::Sender<Event>) {
    let (mut backoff, mut trouble) = (backoff(), Trouble::default());
    let mut version = shared.version.subscribe();
    let mut hops = 0;
    loop {
        let topology = {
            version.mark_unchanged();
            shared.topology()
        };
        let slot = topology.slot_of(&shared.own);
        let Some(at) = topology.owner(slot) else {
            shared.look.notify_one();
            if version.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut is_subscribed = false;
        let subscription = Subscription {
            shared,
            events,
            at,
            slot,
            is_cluster: matches!(topology, Topology::Cluster(_)),
        };
        let end = subscription.follow(&mut version, &mut is_subscribed).await;
        if is_subscribed {
            backoff.reset();
            trouble.is_over();
            hops = 0;
        }
        let why = match &end {
            End::Failed(error) => error.to_string(),
            End::Moved(_) | End::Elsewhere => format!("its slot has left {at}"),
            End::Unwanted => return,
        };
        if is_subscribed {
            warn!("the bus has lost its subscription: {why}");
            if events.send(Event::Lost(why)).await.is_err() {
                return;
            }
        }
        match end {
            End::Moved(Some((slot, to))) if hops < MOST_HOPS => {
                hops += 1;
                shared.lanes.lock().moved(slot, &to);
                shared.attend.notify_one();
                shared.look.notify_one();
                continue;
            }
            End::Moved(None) if hops < MOST_HOPS => {
                hops += 1;
                // It may be a replica now, which subscribes all the same and gets no payloads then.
                shared.look.notify_one();
                let _ = timeout(NEW_TOPOLOGY, version.changed()).await;
                continue;
            }
            End::Elsewhere => continue,
            End::Failed(error) => {
                trouble.tell("the bus can't subscribe", &error);
                shared.set_started(Err(error));
            }
            End::Moved(_) | End::Unwanted => {}
        }
        hops = 0;
        shared.look.notify_one();
        sleep(backoff.next(rand::random())).await;
    }
}

/// A subscription at one server.
struct Subscription<'a> {
    shared: &'a Shared,
    events: &'a mpsc::Sender<Event>,
    at: &'a HostPort,
    slot: u16,
    is_cluster: bool,
}

impl Subscription<'_> {
    /// Subscribes, and passes on what comes, while the server is the one to subscribe at.
    async fn follow(&self, version: &mut watch::Receiver<u64>, is_subscribed: &mut bool) -> End {
        let &Self { shared, at, .. } = self;
        let mut connection = match shared.dialler.dial(at).await {
            Ok(connection) => connection,
            Err(error) => return error.into(),
        };
        let command: &'static str = if self.is_cluster { "SSUBSCRIBE" } else { "SUBSCRIBE" };
        let news = shared.dialler.config.news();
        // The own channel comes last: once that is confirmed, all is.
        connection.write(&[b"SUBSCRIBE", news.as_bytes()]);
        connection.write(&[command.as_bytes(), &shared.own]);
        let begun = Instant::now();
        let (mut heard, mut is_pinged) = (begun, false);
        loop {
            loop {
                let answer = match connection.reader.parse() {
                    Ok(Some(answer)) => answer,
                    Ok(None) => break,
                    Err(error) => return error.into(),
                };
                match said(answer, &shared.own, at, command) {
                    Ok(said) => {
                        if !self.pass_on(said, is_subscribed).await {
                            return End::Unwanted;
                        }
                    }
                    Err(end) => return end,
                }
                // While nobody took events, nothing was heard because nothing was read.
                (heard, is_pinged) = (Instant::now(), false);
            }
            if !*is_subscribed && begun.elapsed() > SILENCE {
                return silent(at).into();
            }
            let is_writing = connection.writer.has_more();
            let due = heard + if is_pinged { SILENCE } else { IDLE };
            let Connection { reader, writer, .. } = &mut connection;
            tokio::select! {
                filled = reader.fill() => {
                    if let Err(error) = filled {
                        return error.into();
                    }
                    (heard, is_pinged) = (Instant::now(), false);
                }
                written = writer.go_on(), if is_writing => {
                    if let Err(error) = written {
                        return error.into();
                    }
                }
                () = self.events.closed() => return End::Unwanted,
                changed = version.changed() => {
                    // Nobody says that a master has become a replica: the connection lives on, and nothing comes.
                    if changed.is_err() || shared.topology().owner(self.slot) != Some(at) {
                        return End::Elsewhere;
                    }
                }
                () = sleep_until(due) => {
                    if is_pinged {
                        return silent(at).into();
                    }
                    connection.write(&[b"PING"]);
                    (heard, is_pinged) = (Instant::now(), true);
                }
            }
        }
    }

    /// Passes on what has come. False: nobody takes it.
    async fn pass_on(&self, said: Said, is_subscribed: &mut bool) -> bool {
        let &Self { shared, events, at, .. } = self;
        match said {
            Said::Own if !*is_subscribed => {
                *is_subscribed = true;
                info!(%at, "the bus has subscribed");
                shared.set_started(Ok(()));
                shared.announce_again.notify_one();
                events.send(Event::Subscribed).await.is_ok()
            }
            Said::Message(payload) if *is_subscribed => {
                if payload.len() > LARGE {
                    // All places free: of those that wait none is large.
                    let Ok(mut places) = events.reserve_many(EVENTS).await else {
                        return false;
                    };
                    if let Some(place) = places.next() {
                        place.send(Event::Message(payload));
                    }
                    return true;
                }
                events.send(Event::Message(payload)).await.is_ok()
            }
            Said::News => {
                shared.news.notify_one();
                true
            }
            Said::Own | Said::Message(_) | Said::Else => true,
        }
    }
}

/// What has come.
enum Said {
    /// The subscription to the own channel holds.
    Own,
    /// A payload for it.
    Message(bytes::BytesMut),
    /// A node came or left.
    News,
    /// Nothing that matters.
    Else,
}

fn said(answer: Value, own: &[u8], at: &HostPort, command: &'static str) -> Result<Said, End> {
    let nonsense = || End::Failed(BusError::nonsense(at, command));
    let parts = match answer {
        Value::Array(parts) => parts,
        Value::Error(error) => {
            return Err(match Redirect::read(&error, at) {
                Some(Redirect::Moved(slot, to)) => End::Moved(Some((slot, to))),
                Some(Redirect::Ask(..)) | None => BusError::of_answer(at, command, &error).into(),
            });
        }
        // The answer to PING of one that has not subscribed yet.
        Value::Status(_) => return Ok(Said::Else),
        Value::Integer(_) | Value::Bytes(_) | Value::Null | Value::TooLong => return Err(nonsense()),
    };
    let mut parts = parts.into_iter();
    let (Some(kind), Some(channel)) = (parts.next(), parts.next()) else {
        return Err(nonsense());
    };
    let (Some(kind), is_own) = (kind.text(), channel.text() == Some(own)) else {
        return Err(nonsense());
    };
    match (kind, is_own) {
        (b"message" | b"smessage", true) => match parts.next() {
            Some(Value::Bytes(payload)) => Ok(Said::Message(payload)),
            // Longer than any node sends.
            Some(Value::TooLong) => Ok(Said::Else),
            _ => Err(nonsense()),
        },
        (b"message", false) => Ok(Said::News),
        (b"subscribe" | b"ssubscribe", true) => Ok(Said::Own),
        (b"unsubscribe" | b"sunsubscribe", true) => Err(End::Moved(None)),
        (b"subscribe" | b"pong", false) => Ok(Said::Else),
        _ => Err(nonsense()),
    }
}
