//! The subscription to the node's own channel, and to the news of nodes that come and leave.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::bus::Event;
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

/// How a subscription ended.
enum End {
    /// By trouble.
    Failed(BusError),
    /// The channel's slot is another master's: of that one, if it was named.
    Moved(Option<(u16, HostPort)>),
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
        let end = follow(shared, events, at, &topology, &mut is_subscribed).await;
        if is_subscribed {
            backoff.reset();
            trouble.is_over();
            hops = 0;
        }
        let why = match &end {
            End::Failed(error) => error.to_string(),
            End::Moved(_) => format!("its slot has left {at}"),
            End::Unwanted => return,
        };
        if is_subscribed {
            warn!("the bus has lost its subscription: {why}");
            if events.send(Event::Lost(why)).await.is_err() {
                return;
            }
        }
        match end {
            End::Moved(to) if hops < MOST_HOPS => {
                hops += 1;
                if let Some((slot, to)) = to {
                    shared.lanes.lock().moved(slot, &to);
                    shared.attend.notify_one();
                }
                shared.look.notify_one();
                continue;
            }
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

/// Subscribes at one server, and passes on what comes.
async fn follow(
    shared: &Shared,
    events: &mpsc::Sender<Event>,
    at: &HostPort,
    topology: &Topology,
    is_subscribed: &mut bool,
) -> End {
    let mut connection = match shared.dialler.dial(at).await {
        Ok(connection) => connection,
        Err(error) => return error.into(),
    };
    let is_cluster = matches!(topology, Topology::Cluster(_));
    let command: &'static str = if is_cluster { "SSUBSCRIBE" } else { "SUBSCRIBE" };
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
                Ok(Said::Own) => {
                    if !*is_subscribed {
                        *is_subscribed = true;
                        info!(%at, "the bus has subscribed");
                        shared.set_started(Ok(()));
                        shared.announce_again.notify_one();
                        if events.send(Event::Subscribed).await.is_err() {
                            return End::Unwanted;
                        }
                    }
                }
                Ok(Said::Message(payload)) => {
                    if *is_subscribed && events.send(Event::Message(payload)).await.is_err() {
                        return End::Unwanted;
                    }
                }
                Ok(Said::News) => shared.news.notify_one(),
                Ok(Said::Else) => {}
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
            () = events.closed() => return End::Unwanted,
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
