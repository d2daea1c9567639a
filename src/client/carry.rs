//! Carries a client's messages over its connections: what comes goes to the program, what is sent to the node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::way::{Way, come_back};
use super::{NOT_SEEN, Queued, Received, Shared};
use crate::address::Address;
use crate::carrier::{Arrived, Carrier, Codec, ControlStream, Ended, Frame, Handler, Heard, Malformed, close};
use crate::config::Limits;
use crate::delivery::{Control, RangeSet, Taken};
use crate::exchange::{Incoming, Settled};
use crate::message::{Conversation, Message, Tag};
use crate::outcome::{Code, Outcome};
use crate::transport::{Connection, ConnectionError};
use crate::turn::Turn;
use crate::wire::client::{self as wire, FromClient, FromNode, Receipt as ReceiptLine, ResumeOffer};

/// Carries messages over one connection after the other, until the client or the node has left, or the session is no
/// more.
pub(super) async fn carry(
    shared: Arc<Shared>,
    way: Way,
    mut control: ControlStream,
    offer: Option<ResumeOffer>,
    stop: CancellationToken,
) {
    let codec = ClientCodec {
        client: shared.address.clone(),
        resumable: offer.is_some(),
        last: Mutex::default(),
    };
    if offer.is_none() {
        shared.exchange.tell_once();
    }
    let mut taken = RangeSet::new();
    loop {
        let connection = shared.connection.lock().clone();
        // What the node says it has taken and was never sent is the node's mistake; there is no going on with it.
        if shared.exchange.connected_knowing(&taken).is_err() {
            connection.close(close::PROTOCOL, b"messages were taken that were never sent");
            break;
        }
        let handler = ClientHandler {
            shared: &shared,
            way: &way,
            connection: &connection,
        };
        // What was said of it on an earlier connection may not have come.
        if let Some(renewal) = shared.renewal.lock().as_mut() {
            renewal.said = false;
        }
        let heard = Heard::now();
        let carrier = Carrier {
            connection: &connection,
            exchange: &shared.exchange,
            codec: &codec,
            handler: &handler,
            max_stream: wire::MAX_HEADER + Limits::MOST_MAX_MESSAGE,
            pace: None,
            turn: Turn::new(),
            liveness: None,
            heard: &heard,
        };
        let ended = tokio::select! {
            ended = carrier.run(control) => ended,
            () = stop.cancelled() => break,
        };
        shared.exchange.disconnected(Instant::now());
        let Some(offer) = &offer else {
            break;
        };
        if !ended.is_break() {
            *shared.ended_because.lock() = said(&ended);
            break;
        }
        let again = tokio::select! {
            again = come_back(&shared, &way, offer) => again,
            () = stop.cancelled() => break,
        };
        match again {
            Some((next, next_control, next_taken)) => {
                *shared.connection.lock() = next;
                // One that closes waits for this to say what it has to.
                shared.ended.notify_waiters();
                (control, taken) = (next_control, next_taken);
            }
            None => break,
        }
    }
    shared.closed.store(true, Ordering::SeqCst);
    shared.end(shared.exchange.give_up(Code::NodeUnreachable));
    shared.renewal.lock().take();
    shared.events.lock().take();
}

/// Why the node has closed the connection, if it said so, safe to be printed.
fn said(ended: &Ended) -> Option<String> {
    match ended {
        Ended::Lost(ConnectionError::ApplicationClosed(closed)) if closed.error_code != close::DONE => {
            Some(String::from_utf8_lossy(&closed.reason).escape_debug().to_string())
        }
        _ => None,
    }
}

/// Passes on what comes from the node.
struct ClientHandler<'a> {
    shared: &'a Shared,
    way: &'a Way,
    connection: &'a Connection,
}

impl Handler<usize> for ClientHandler<'_> {
    fn taken(&self, incarnation: u32, taken: &mut Vec<Taken<Incoming>>) {
        for (number, incoming) in taken.drain(..) {
            let tag = Tag::prompt(number, incarnation);
            match incoming {
                Ok(message) => {
                    let message = Received {
                        from: message.from().clone(),
                        to: message.to().clone(),
                        body: message.body,
                    };
                    if !self.shared.queue(Queued::Message(tag, message)) {
                        self.shared.exchange.finish(&[(tag, NOT_SEEN)]);
                    }
                }
                Err(code) => self.shared.exchange.finish(&[(tag, Outcome::Refused(code))]),
            }
        }
    }

    fn settled(&self, settled: Settled<usize>) {
        self.shared.end(settled);
    }

    fn goodbye(&self) {
        self.connection.close(close::DONE, b"goodbye");
    }

    fn login(&self, frame: Frame) -> Result<(), Malformed> {
        if let Frame::Judged(judged) = frame
            && let Some(renewal) = self.shared.renewal.lock().take()
        {
            if judged.is_ok() {
                *self.way.token.lock() = Some(renewal.token);
            }
            // Fails when nobody waits for it any more.
            let _ = renewal.answer.send(judged);
        }
        Ok(())
    }

    fn due_of_logins(&self) -> Vec<Frame> {
        let mut renewal = self.shared.renewal.lock();
        let unsaid = renewal.as_mut().filter(|renewal| !renewal.said);
        let said = unsaid.map(|renewal| {
            renewal.said = true;
            Frame::Login(renewal.token.clone())
        });
        said.into_iter().collect()
    }
}

/// How a client writes to its node and reads from it.
struct ClientCodec {
    client: Address,
    /// Whether the two sides confirm what they know.
    resumable: bool,
    /// That of the message before.
    last: Mutex<Option<Conversation>>,
}

impl Codec for ClientCodec {
    fn write_header(&self, number: u64, after: u64, message: &Message, out: &mut BytesMut) {
        wire::write_header(out, number, after, None, message.to());
    }

    fn read_message(&self, mut stream: Bytes, whole: bool) -> Result<Arrived, Malformed> {
        let line = wire::split_header(&mut stream)
            .map_err(Malformed::new)?
            .ok_or_else(|| Malformed::new(wire::Malformed::NoHeader))?;
        let header = wire::read_header(&line).map_err(Malformed::new)?;
        let from = header
            .from
            .ok_or_else(|| Malformed::new("a message without a sender"))?;
        let conversation = Conversation::same_or(
            &mut self.last.lock(),
            |last| last.from().is_written(&from),
            || from.parse().map(|from| Conversation::new(from, self.client.clone())),
        );
        let message = Message {
            conversation: conversation.map_err(Malformed::new)?,
            body: stream,
            prompt: true,
        };
        Ok(Arrived {
            number: header.id,
            after: header.after,
            message: if whole { Ok(message) } else { Err(Code::TooLarge) },
        })
    }

    fn write_frame(&self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Control(Control::Report(report)) => {
                wire::write_line(out, &FromClient::Receipt(ReceiptLine::from(report.clone())));
            }
            Frame::Control(Control::Confirm(confirm)) if self.resumable => {
                wire::write_line(out, &FromClient::Confirm((*confirm).into()));
            }
            Frame::Goodbye => wire::write_line(out, &FromClient::Goodbye),
            Frame::Login(token) => wire::write_line(out, &FromClient::Login { token: token.clone() }),
            // Said by the greeting, or not said on this kind of connection.
            Frame::Control(Control::Sync(_) | Control::Confirm(_))
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Judged(_) => {}
        }
    }

    fn read_frame(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
        loop {
            match wire::read_line(buffer).map_err(Malformed::new)? {
                None => return Ok(None),
                Some(FromNode::Receipt(receipt)) => return Ok(Some(Frame::Control(Control::Report(receipt.into())))),
                // One that can't come back has nothing to confirm.
                Some(FromNode::Confirm(_)) if !self.resumable => {}
                Some(FromNode::Confirm(confirm)) => {
                    return Ok(Some(Frame::Control(Control::Confirm(confirm.into()))));
                }
                Some(FromNode::GoingAway) => return Ok(Some(Frame::Goodbye)),
                Some(FromNode::Login { code, text }) => {
                    let judged = code.map_or(Ok(()), |code| Err((code, text.unwrap_or_default())));
                    return Ok(Some(Frame::Judged(judged)));
                }
                Some(FromNode::Error { code, text }) => return Err(Malformed(format!("{code}: {text}"))),
                Some(FromNode::Welcome(_)) => return Err(Malformed::new("a second welcome")),
                Some(FromNode::Other) => {}
            }
        }
    }
}
