//! Hands messages to a legacy server: for each a connection to its TCP port, as a client would make it, and one line.
//!
//! The server drops lines that arrive together, and what comes before it has greeted may be lost. It gives no receipts.
//! So a message that was written ends as unknown, whatever the server then does.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::LegacyNode;
use super::queue::Ends;
use crate::address::{Address, NodeName};
use crate::config::Limits;
use crate::counters::{Counter, Counters};
use crate::message::{Message, Ticket, settle_all};
use crate::outcome::{Code, Outcome};
use crate::pace::Pace;
use crate::phase::{Follow, Phase};
use crate::wire::handover::Line;

/// How long a dial may take: the system sends its first packet at 0, 1 and 3 s.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// How long the server may take to greet: it does so at once, unless it has more connections than it looks at.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// The longest greeting: an address has 326 bytes at the most.
const MAX_GREETING: usize = 1024;

/// How long the server has, after the line, to close the connection. It holds each for a second, and twice that is for
/// its network. One that leaves connections open has each message of a conversation wait so long for the one before.
const LINGER: Duration = Duration::from_secs(2);

/// How much of a line is written at a time.
const WRITE: usize = 64 * 1024;

/// How often it is looked at what has waited too long.
const LOOK: Duration = Duration::from_millis(250);

/// How often a server's name is looked up: as often as names of hosts that move are made to hold.
const LOOK_UP: Duration = Duration::from_secs(30);

/// What the deliveries to all legacy servers share.
#[derive(Debug)]
pub(crate) struct LegacyContext {
    /// This node's name.
    pub(crate) own: NodeName,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    /// How far the node's shutdown has come.
    pub(crate) phase: Follow,
}

/// Why a server could not be reached: nothing was written to it.
#[derive(Debug, thiserror::Error)]
enum Unreachable {
    #[error("its host can't be looked up: {0}")]
    LookUp(io::Error),
    #[error("it can't be dialled: {0}")]
    Dial(io::Error),
    #[error("it does not answer within {DIAL_DEADLINE:?}")]
    NoAnswer,
    #[error("it does not greet")]
    NoGreeting,
    #[error("it turns this node away: {0}")]
    TurnedAway(String),
    #[error("what answers there is this node itself; correct --legacy-node")]
    Itself,
    #[error("it had no turn within --link-wait")]
    NoTurn,
}

/// Hands over what comes for this server, until the node closes.
pub(crate) async fn run(server: Arc<LegacyNode>, context: Arc<LegacyContext>) {
    let mut closing = pin!(context.phase.reached(Phase::Closing));
    let mut handovers = FuturesUnordered::new();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some((number, message)) = server.start() {
            handovers.push(hand_over(&server, number, message, &context));
        }
        tokio::select! {
            biased;
            () = &mut closing => return,
            Some(()) = handovers.next() => {}
            () = server.ready() => {}
            // Where something waits, something is being handed over.
            _ = look.tick(), if !handovers.is_empty() => {
                let late = server.expire(context.limits.link_wait);
                refuse(&server, late, &Unreachable::NoTurn, &context);
            }
        }
    }
}

/// Keeps it known where this server is, until the node closes: its host is a name, and what that stands for may change.
pub(crate) async fn keep_looked_up(server: Arc<LegacyNode>, context: Arc<LegacyContext>) {
    loop {
        let looking = async {
            // What was known stays where the name can't be looked up now.
            if let Err(error) = look_up(&server).await {
                debug!(server = %server.name(), "can't look up a legacy server: {error}");
            }
            sleep(LOOK_UP).await;
        };
        tokio::select! {
            () = context.phase.reached(Phase::Closing) => return,
            () = looking => {}
        }
    }
}

/// Hands over one message, and ends it.
async fn hand_over(server: &LegacyNode, number: u64, message: Message, context: &LegacyContext) {
    let socket = match reach(server, &context.own).await {
        Ok(socket) => socket,
        Err(error) => return refuse(server, server.missed(number), &error, context),
    };
    if !server.reached(number) {
        return;
    }
    let outcome = match write(socket, &message, context.limits.reader_pace()).await {
        Ok(()) => Outcome::Unknown(Code::Unconfirmed),
        Err(error) => {
            if let Some(count) = context.counters.bump_logged(Counter::UnknownLegacy) {
                info!(server = %server.name(), count, "a message may not have come to a legacy server: {error}");
            }
            Outcome::Unknown(Code::NodeUnreachable)
        }
    };
    if let Some(ticket) = server.done(number) {
        ticket.settle(outcome);
    }
}

/// Tells the senders of messages that the server could not be reached.
fn refuse(server: &LegacyNode, ends: Ends<Ticket>, why: &Unreachable, context: &LegacyContext) {
    for _ in &ends {
        if let Some(count) = context.counters.bump_logged(Counter::RefusedLegacy) {
            let why = why.to_string();
            warn!(server = %server.name(), count, "can't reach a legacy server: {}", why.escape_debug());
        }
    }
    settle_all(ends);
}

/// A connection to the server, on which it has greeted: before that it does not read.
async fn reach(server: &LegacyNode, own: &NodeName) -> Result<TcpStream, Unreachable> {
    let dialling = async {
        let addrs = look_up(server).await.map_err(Unreachable::LookUp)?;
        TcpStream::connect(addrs.as_slice()).await.map_err(Unreachable::Dial)
    };
    let mut socket = timeout(DIAL_DEADLINE, dialling)
        .await
        .map_err(|_| Unreachable::NoAnswer)??;
    let greeting = timeout(GREETING_DEADLINE, first_line(&mut socket)).await;
    let Ok(Ok(Some(greeting))) = greeting else {
        return Err(Unreachable::NoGreeting);
    };
    check_greeting(&greeting, own)?;
    Ok(socket)
}

/// Looks up where the server is, and keeps that.
async fn look_up(server: &LegacyNode) -> io::Result<Vec<std::net::SocketAddr>> {
    let addrs: Vec<_> = lookup_host(server.name().as_str()).await?.collect();
    server.set_addresses(addrs.iter().map(std::net::SocketAddr::ip));
    Ok(addrs)
}

/// The first line on a connection, with its end; `None` if there is none.
async fn first_line(socket: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::with_capacity(MAX_GREETING);
    while line.len() < MAX_GREETING {
        if socket.read_buf(&mut line).await? == 0 {
            break;
        }
        if line.contains(&b'\n') {
            return Ok(Some(line));
        }
    }
    Ok(None)
}

/// What the greeting says does not matter, unless there will be nobody to read the message. A Trunkline node turns away
/// who is one too many; and a message for this node by another name would come back without end.
fn check_greeting(line: &[u8], own: &NodeName) -> Result<(), Unreachable> {
    let text = String::from_utf8_lossy(line);
    let text = text.lines().next().unwrap_or_default();
    if text.starts_with("error : ") {
        return Err(Unreachable::TurnedAway(text.to_owned()));
    }
    let address = text.rsplit(' ').next().map(str::parse::<Address>);
    if address.is_some_and(|address| address.is_ok_and(|address| address.node == *own)) {
        return Err(Unreachable::Itself);
    }
    Ok(())
}

/// Writes the message, ends the sending side, and waits until the server has closed, for a while: it may drop what it
/// has not read when its connection is closed.
async fn write(mut socket: TcpStream, message: &Message, pace: Pace) -> io::Result<()> {
    // The line is to arrive in one piece where it is small.
    let _ = socket.set_nodelay(true);
    let writing = async {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, message.from(), message.to(), &message.body);
        while line.fill(&mut out, WRITE) {
            socket.write_all(&out).await?;
            out.clear();
        }
        socket.write_all(&out).await?;
        socket.shutdown().await
    };
    timeout(pace.allows(message.size()), writing)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it takes the line too slowly"))??;
    let closed = async {
        let mut waste = vec![0; MAX_GREETING];
        while socket.read(&mut waste).await? > 0 {}
        Ok(())
    };
    // The deadline is the normal end where a server does not close.
    timeout(LINGER, closed).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_of_another_that_does_not_turn_this_node_away() {
        let own = "127.0.0.1:1215".parse().unwrap();
        for greeting in ["you is  : 127.0.0.1:1216:123456\r\n", "hello\n", "\n"] {
            assert!(check_greeting(greeting.as_bytes(), &own).is_ok(), "{greeting}");
        }
        assert!(matches!(
            check_greeting(b"you is  : 127.0.0.1:1215:123456\r\n", &own),
            Err(Unreachable::Itself)
        ));
        assert!(matches!(
            check_greeting(b"error : rate-limited : too many\r\n", &own),
            Err(Unreachable::TurnedAway(_))
        ));
    }
}
