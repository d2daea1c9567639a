//! A QUIC client's session: what outlives its connections, and what goes on while one is there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::future::OptionFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::LAST_WORD;
use super::codec::NodeCodec;
use super::sessions::{Arrival, Place, Sessions, replace};
use crate::address::{Address, ClientId};
use crate::carrier::{CONTROL_PRIORITY, Carrier, CloseOnDrop, Ended, Frame, Handler, Heard, Malformed, close};
use crate::clients::{Admission, ClientContext, OTHER_SUBJECT};
use crate::config::Limits;
use crate::counters::Counter;
use crate::course::Course;
use crate::delivery::{Bounds, Taken};
use crate::exchange::{Exchange, Incoming, Settled};
use crate::flow::Flow;
use crate::keyring::Permit;
use crate::message::{MESSAGE_OVERHEAD, Message, Recipient, Settle, Tag, Ticket, settle_all};
use crate::outcome::{Code, Outcome};
use crate::phase::Phase;
use crate::restraint::Restraint;
use crate::router::Blocked;
use crate::transport::Connection;
use crate::turn::Turn;
use crate::wire::client::{self as wire, FromNode, ResumeOffer, Token, Welcome};

/// A QUIC client.
struct Session {
    address: Address,
    exchange: Exchange<Ticket>,
    /// What the client has under way, by the tags of its own messages.
    flow: Mutex<Flow<Tag>>,
    restraint: Restraint,
    waiting: Mutex<Waiting>,
    /// There is something in `waiting`.
    waits: Notify,
    /// A message of this client has ended.
    ended: Notify,
    closed: AtomicBool,
    /// Another connection is to have its id.
    replaced: CancellationToken,
    permit: Permit,
    this: Weak<Self>,
}

/// Messages of a client that wait for room on a link, or because the client is held, so that its connection can be read
/// on. The client's window bounds them.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<Waits>,
    /// The one before the first in the queue is still on its way to a link: nothing may pass it.
    passing: bool,
}

struct Waits {
    message: Message,
    ticket: Ticket,
    /// It was counted among what the client may send.
    passed: bool,
}

/// Serves a client from its first connection until it is gone for good. With a name of its own that is its id.
pub(super) async fn serve(
    first: Arrival,
    name: Option<ClientId>,
    resumable: bool,
    sessions: &Arc<Sessions>,
    admission: &Admission,
    context: &ClientContext,
) {
    let limits = &context.limits;
    let registry = context.router.registry();
    let id = name.clone().unwrap_or_else(|| registry.fresh_id());
    let address = Address {
        node: context.router.name().clone(),
        id: id.clone(),
    };
    let permit = context.keyring.permit(first.login.as_deref());
    let restraint = admission.restraint(context, first.login.as_deref());
    let session = Session::new(address, limits, restraint, permit);
    let registering = registry.register(id, Arc::<Session>::clone(&session));
    let Ok(Some(registration)) = timeout(limits.hello, registering).await else {
        // What has the id ends at once when it is told to.
        debug!(client = %session.address, "turned away: its id does not become free");
        return;
    };
    let place = resumable.then(|| sessions.open(name));
    tokio::select! {
        // In this order: a connection that is there is told why it ends.
        biased;
        () = session.carry(first, place, context) => {}
        () = session.finish(context) => {}
        never = session.pass_on_what_waits(context) => never,
        never = session.give_up(context) => never,
        () = context.phase.reached(Phase::Closing) => {}
        () = session.replaced.cancelled() => {}
        () = session.permit.over() => {}
    }
    drop(registration);
    session.end();
}

impl Session {
    fn new(address: Address, limits: &Limits, restraint: Restraint, permit: Permit) -> Arc<Self> {
        let window = limits.window();
        let to_client = Bounds {
            messages: limits.outbox_bytes.div_ceil(MESSAGE_OVERHEAD),
            bytes: limits.outbox_bytes,
        };
        let from_client = Bounds {
            messages: window.messages,
            bytes: window.bytes,
        };
        Arc::new_cyclic(|this| Self {
            address,
            exchange: Exchange::new(to_client, from_client),
            flow: Mutex::new(Flow::new(window)),
            restraint,
            waiting: Mutex::default(),
            waits: Notify::new(),
            ended: Notify::new(),
            closed: AtomicBool::new(false),
            replaced: CancellationToken::new(),
            permit,
            this: this.clone(),
        })
    }

    /// The client is gone for good.
    fn end(&self) {
        self.closed.store(true, Ordering::SeqCst);
        settle_all(self.exchange.give_up(Code::RecipientGone));
        // Who wrote to it last may know it for a while: what it holds back is not to be kept as long.
        self.exchange.disconnected(Instant::now());
        // Their tickets lead back to this session: it would keep itself for ever.
        let waiting = std::mem::take(&mut *self.waiting.lock());
        drop(waiting);
    }

    /// Carries messages over one connection after the other, until the client has left, or was away for too long.
    async fn carry(&self, first: Arrival, place: Option<Place>, context: &ClientContext) {
        let Some(place) = place else {
            self.exchange.tell_once();
            if let Gone::Lost(why) | Gone::ForGood(why) =
                self.carry_over(first, None, context, std::future::pending()).await
            {
                debug!(client = %self.address, "gone: {why}");
            }
            return;
        };
        let grace = context.limits.resume_grace;
        let offer = ResumeOffer {
            token: place.token.clone(),
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        let mut next = Some((first, false));
        while let Some((arrival, resumed)) = next {
            let offer = Some((offer.clone(), resumed));
            let ended = self.carry_over(arrival, offer, context, place.berth.next()).await;
            self.exchange.disconnected(Instant::now());
            let again = match ended {
                Gone::Replaced(arrival) => Some(arrival),
                Gone::ForGood(why) => {
                    debug!(client = %self.address, "gone: {why}");
                    return;
                }
                Gone::Lost(why) => {
                    debug!(client = %self.address, "away: {why}");
                    tokio::select! {
                        again = timeout(grace, place.berth.next()) => again.ok(),
                        () = context.phase.reached(Phase::Draining) => None,
                    }
                }
            };
            // What it has shown last holds.
            if let Some(arrival) = &again {
                self.permit.renew(arrival.login.as_deref());
                self.restraint.renew(context.rate(arrival.login.as_deref()));
            }
            next = again.map(|arrival| (arrival, true));
        }
        debug!(client = %self.address, "gone: it did not come back");
    }

    /// Carries messages over one connection, until that is gone or `another` comes.
    async fn carry_over(
        &self,
        arrival: Arrival,
        offer: Option<(ResumeOffer, bool)>,
        context: &ClientContext,
        another: impl Future<Output = Arrival>,
    ) -> Gone {
        let limits = &context.limits;
        let Arrival {
            connection,
            mut control,
            taken,
            login: _,
            entry: _entry,
        } = arrival;
        let _closing = CloseOnDrop(&connection);
        let resumable = offer.is_some();
        let resumed = offer.as_ref().is_some_and(|(_, resumed)| *resumed);
        let welcome = Welcome {
            version: wire::VERSION,
            address: self.address.to_string(),
            max_message: limits.max_message,
            window: limits.window(),
            resume: offer.map(|(offer, _)| offer),
            taken: resumed.then(|| self.exchange.taken().into()),
        };
        let mut out = BytesMut::new();
        wire::write_line(&mut out, &FromNode::Welcome(welcome));
        control.send.set_priority(CONTROL_PRIORITY);
        // A client that gives no room for this line will not get far; if the connection is gone, the carrier says so.
        let _ = timeout(limits.hello, control.send.write_all(&out)).await;
        if let Err(violation) = self.exchange.connected_knowing(&taken) {
            connection.close(close::PROTOCOL, violation.to_string().as_bytes());
            return Gone::ForGood(Ended::Violation(violation).to_string());
        }
        let handler = SessionHandler {
            session: self,
            connection: &connection,
            context,
            course: Mutex::new(Course::new()),
            logins: Mutex::default(),
            shown: Notify::new(),
        };
        let heard = Heard::now();
        let carrier = Carrier {
            connection: &connection,
            exchange: &self.exchange,
            codec: &NodeCodec::new(self.address.clone(), limits.max_message, resumable),
            handler: &handler,
            max_stream: wire::MAX_HEADER + limits.max_message,
            pace: Some(limits.sender_pace().spread(rand::random())),
            turn: Turn::new(),
            liveness: None,
            heard: &heard,
        };
        let replaced = async {
            let arrival = another.await;
            // Said before the carrier is dropped, which would close the connection as at the end of the session.
            replace(&connection);
            arrival
        };
        let yielded = async {
            self.replaced.cancelled().await;
            // Likewise.
            connection.close(close::REPLACED, b"another connection has come with this client's name");
        };
        let over = async {
            self.permit.over().await;
            // Likewise.
            connection.close(close::IDENTITY, b"the token has expired or is not accepted any more");
        };
        tokio::select! {
            () = over => Gone::ForGood("its token is over".to_owned()),
            never = handler.log_in_again() => never,
            () = yielded => Gone::ForGood("another connection has its name".to_owned()),
            ended = carrier.run(control) => {
                match ended {
                    Ended::Slow => context.counters.bump(Counter::EndedSlowStream),
                    Ended::Violation(_) | Ended::Malformed(_) | Ended::NoControl => {
                        context.counters.bump(Counter::EndedProtocol);
                    }
                    // The last of these are of sessions between nodes.
                    Ended::Lost(_)
                    | Ended::Silent(_)
                    | Ended::Broken(_)
                    | Ended::Unpublished(_)
                    | Ended::Worn
                    | Ended::ClosedHere { .. }
                    | Ended::ClosedThere { .. } => {}
                }
                match ended {
                    ended if ended.is_break() => Gone::Lost(ended.to_string()),
                    ended => Gone::ForGood(ended.to_string()),
                }
            }
            arrival = replaced => Gone::Replaced(arrival),
            () = self.exchange.stalled(limits.reader_pace(), limits.resume_grace) => {
                context.counters.bump(Counter::EndedStalled);
                Gone::ForGood("it took nothing for too long".to_owned())
            }
            Some(()) = OptionFuture::from(limits.idle.map(|limit| Box::pin(self.restraint.idle(limit)))) => {
                let why = "there was no message from it or for it for too long";
                connection.close(close::DONE, why.as_bytes());
                Gone::ForGood(why.to_owned())
            }
        }
    }

    /// Passes on what had to wait for room on a link. Never ends.
    async fn pass_on_what_waits<N>(&self, context: &ClientContext) -> N {
        let mut turn = Turn::new();
        loop {
            let next = {
                let mut waiting = self.waiting.lock();
                let next = waiting.queue.pop_front();
                waiting.passing = next.is_some();
                next
            };
            match next {
                Some(Waits {
                    message,
                    ticket,
                    passed,
                }) => {
                    if !passed {
                        self.restraint.hold(message.body.len(), &context.phase).await;
                    }
                    context.route(message, ticket).await;
                    turn.item().await;
                }
                None => self.waits.notified().await,
            }
        }
    }

    /// When the grace of a shutdown is over: tells the senders of what this client has not taken. Never ends, so that
    /// the client is still told of its own messages.
    async fn give_up<N>(&self, context: &ClientContext) -> N {
        context.phase.reached(Phase::GivingUp).await;
        settle_all(self.exchange.give_up(Code::ShuttingDown));
        std::future::pending().await
    }

    /// When the node shuts down: waits until all that the client has sent, and was sent, has ended, tells it goodbye,
    /// and gives it time to close.
    async fn finish(&self, context: &ClientContext) {
        context.phase.reached(Phase::Draining).await;
        loop {
            let (ended, room) = (self.ended.notified(), self.exchange.room());
            let sent_all = self.flow.lock().is_idle();
            let got_all = self.exchange.is_idle();
            match (sent_all, got_all) {
                (true, true) => break,
                (false, _) => ended.await,
                (true, false) => room.await,
            }
        }
        self.exchange.say_goodbye();
        sleep(LAST_WORD).await;
    }
}

/// Why a connection serves its session no more.
enum Gone {
    /// Another connection of the same client has come.
    Replaced(Arrival),
    /// It broke; the client may come back.
    Lost(String),
    /// The client has left, or is to be left.
    ForGood(String),
}

impl Settle for Session {
    fn settle(&self, ends: &[(Tag, Outcome)]) {
        let replies: Vec<(Tag, Outcome)> = {
            let mut flow = self.flow.lock();
            ends.iter()
                .filter_map(|&(tag, outcome)| {
                    let key = usize::try_from(tag.number).ok()?;
                    self.restraint.ended(outcome, || flow.recipient(key).cloned());
                    Some((flow.settle(key)?, outcome))
                })
                .collect()
        };
        self.exchange.finish(&replies);
        self.ended.notify_waiters();
    }
}

impl Recipient for Session {
    fn push(&self, message: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        if self.closed.load(Ordering::SeqCst) {
            return Err((ticket, Code::RecipientGone));
        }
        if !self.permit.may_receive() {
            return Err((ticket, Code::NotAllowed));
        }
        self.restraint.busy();
        // The body may be a small slice of a large buffer, and this may keep it for long.
        let message = Message {
            conversation: message.conversation.clone(),
            body: Bytes::copy_from_slice(&message.body),
            prompt: message.prompt,
        };
        let pushed = self
            .exchange
            .submit(Instant::now(), message, ticket)
            .map_err(|(_, ticket)| (ticket, Code::RecipientFull));
        // The session may have ended between the two; then nobody else would end this message.
        if self.closed.load(Ordering::SeqCst) {
            settle_all(self.exchange.give_up(Code::RecipientGone));
        }
        pushed
    }

    fn yield_place(&self) {
        self.replaced.cancel();
    }
}

/// Passes on what comes from a client.
struct SessionHandler<'a> {
    session: &'a Session,
    connection: &'a Connection,
    context: &'a ClientContext,
    /// Locked by those who take what has come, of which there is one at a time.
    course: Mutex<Course>,
    logins: Mutex<Logins>,
    /// There is a token in `logins`, or what was told made room.
    shown: Notify,
}

/// Tokens that a client shows in the middle of its session.
#[derive(Default)]
struct Logins {
    /// Those not judged yet, in order.
    tokens: VecDeque<Token>,
    /// What is to be told of those judged.
    answers: Vec<Frame>,
}

/// How many of its tokens may wait to be judged: a client needs one.
const MOST_TOKENS: usize = 8;

impl SessionHandler<'_> {
    /// Judges the tokens that the client shows. Never ends.
    async fn log_in_again<N>(&self) -> N {
        loop {
            let next = {
                let mut logins = self.logins.lock();
                // A client that does not read what it is told has to wait.
                let told = logins.answers.len() < MOST_TOKENS;
                told.then(|| logins.tokens.pop_front()).flatten()
            };
            let Some(Token(token)) = next else {
                self.shown.notified().await;
                continue;
            };
            let judged = match self.context.log_in(Ok(&token)).await {
                Ok(login) if login.subject == self.session.address.id => {
                    self.session.permit.renew(Some(&login));
                    self.session.restraint.renew(self.context.rate(Some(&login)));
                    Ok(())
                }
                Ok(_) => self.context.log_in(Err(OTHER_SUBJECT)).await.map(|_| ()),
                Err(text) => Err(text),
            };
            let judged = judged.map_err(|text| (Code::NotAllowed.to_string(), text));
            self.logins.lock().answers.push(Frame::Judged(judged));
            self.session.exchange.wake_control();
        }
    }

    fn pass_on(&self, tag: Tag, message: Message, course: &mut Course) {
        let session = self.session;
        if !session.permit.may_send(message.to()) {
            self.context.counters.bump(Counter::RefusedPermission);
            session.exchange.finish(&[(tag, Outcome::Refused(Code::NotAllowed))]);
            return;
        }
        let key = {
            let mut flow = session.flow.lock();
            let largest = self.context.limits.max_message + MESSAGE_OVERHEAD;
            // A client that keeps to its window never comes here.
            if !flow.bears(message.to(), message.size(), largest) {
                drop(flow);
                self.context.counters.bump(Counter::RefusedWindow);
                session.exchange.finish(&[(tag, Outcome::Refused(Code::RateLimited))]);
                return;
            }
            flow.start(message.to(), message.size(), tag)
        };
        let Some(origin) = session.this.upgrade() else {
            return;
        };
        let tag = Tag::prompt(key as u64, 0);
        let ticket = Ticket { origin, tag };
        session.restraint.busy();
        let mut waiting = session.waiting.lock();
        let behind = waiting.passing || !waiting.queue.is_empty();
        if behind || !session.restraint.passes(message.body.len()) {
            waiting.queue.push_back(Waits {
                message,
                ticket,
                passed: false,
            });
            drop(waiting);
            // Where it goes is not known here: it is no reason to give way to a link.
            course.went(None);
            session.waits.notify_one();
            return;
        }
        drop(waiting);
        if let Err(Blocked { message, ticket, .. }) = self.context.router.route(message, ticket, course) {
            session.waiting.lock().queue.push_back(Waits {
                message,
                ticket,
                passed: true,
            });
            session.waits.notify_one();
        }
    }
}

impl Handler<Ticket> for SessionHandler<'_> {
    fn taken(&self, incarnation: u32, taken: &mut Vec<Taken<Incoming>>) {
        let mut course = self.course.lock();
        for (number, incoming) in taken.drain(..) {
            let tag = Tag::prompt(number, incarnation);
            match incoming {
                Ok(_) if self.context.phase.has_reached(Phase::Draining) => {
                    self.session
                        .exchange
                        .finish(&[(tag, Outcome::Refused(Code::ShuttingDown))]);
                }
                Ok(message) => self.pass_on(tag, message, &mut course),
                Err(code) => self.session.exchange.finish(&[(tag, Outcome::Refused(code))]),
            }
        }
    }

    fn begins(&self, now: Instant) {
        self.course.lock().time_is(now);
    }

    fn rests(&self) {
        self.course.lock().rest();
    }

    async fn give_way(&self, count: usize) {
        let backlog = self.course.lock().backlog(count);
        if let Some(backlog) = backlog {
            let give_way = async {
                tokio::select! {
                    () = backlog.give_way() => {}
                    // What it has sent is to be answered now.
                    () = self.context.phase.reached(Phase::Draining) => {}
                }
            };
            // On the heap: a client that is not held is not to have room for it.
            Box::pin(give_way).await;
        }
    }

    fn settled(&self, settled: Settled<Ticket>) {
        settle_all(settled);
    }

    fn goodbye(&self) {
        self.connection.close(close::DONE, b"goodbye");
    }

    fn login(&self, frame: Frame) -> Result<(), Malformed> {
        if let Frame::Login(token) = frame {
            let mut logins = self.logins.lock();
            if logins.tokens.len() >= MOST_TOKENS {
                return Err(Malformed::new(
                    "more tokens than a client needs; wait for the answer to one",
                ));
            }
            logins.tokens.push_back(token);
            drop(logins);
            self.shown.notify_one();
        }
        Ok(())
    }

    fn due_of_logins(&self) -> Vec<Frame> {
        let answers = std::mem::take(&mut self.logins.lock().answers);
        self.shown.notify_one();
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::keyring::Keyring;
    use crate::message::Conversation;
    use crate::misses::Misses;

    #[test]
    fn a_session_that_ends_is_not_kept_by_what_waited_for_a_link() {
        let address: Address = "n:1:a".parse().unwrap();
        let number = std::num::NonZeroU32::MIN;
        let restraint = Restraint::new(
            std::net::IpAddr::from([127, 0, 0, 1]).into(),
            crate::config::Rate::default(),
            1,
            &Arc::new(Misses::new(number, number)),
            &Arc::new(Counters::new()),
        );
        let keyring = Keyring::unused(std::path::Path::new("certs"), "test");
        let session = Session::new(address.clone(), &Limits::default(), restraint, keyring.permit(None));
        let message = Message {
            conversation: Conversation::new(address.clone(), address),
            body: "x".into(),
            prompt: true,
        };
        let tag = Tag::prompt(0, 0);
        let origin = Arc::<Session>::clone(&session);
        session.waiting.lock().queue.push_back(Waits {
            message,
            ticket: Ticket { origin, tag },
            passed: true,
        });
        session.end();
        let kept = Arc::downgrade(&session);
        drop(session);
        assert!(kept.upgrade().is_none());
    }
}
