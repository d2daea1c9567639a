//! How a node writes to a QUIC client and reads from it.

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::address::Address;
use crate::carrier::{Arrived, Codec, Frame, Malformed};
use crate::delivery::Control;
use crate::message::{Conversation, Message};
use crate::outcome::Code;
use crate::wire::client::{self as wire, FromClient, FromNode, Receipt};

/// Bodies below this size do not fill the memory they come in.
const SMALL_BODY: usize = 32 * 1024;

/// A small body in memory of its own: as it comes it is a slice of all that the system read at once, up to 64 KiB, and
/// would keep that as long as it has to wait.
fn own(body: Bytes) -> Bytes {
    if body.len() < SMALL_BODY {
        Bytes::copy_from_slice(&body)
    } else {
        body
    }
}

/// How a node writes to a client and reads from it.
pub(super) struct NodeCodec {
    client: Address,
    max_message: usize,
    /// Whether the two sides confirm what they know.
    resumable: bool,
    /// That of the message before.
    last: Mutex<Option<Conversation>>,
}

impl NodeCodec {
    /// That of this client, of which bodies of up to `max_message` bytes are taken.
    pub(super) fn new(client: Address, max_message: usize, resumable: bool) -> Self {
        Self {
            client,
            max_message,
            resumable,
            last: Mutex::default(),
        }
    }
}

impl Codec for NodeCodec {
    fn write_header(&self, number: u64, after: u64, message: &Message, out: &mut BytesMut) {
        wire::write_header(out, number, after, Some(message.from()), message.to());
    }

    fn read_message(&self, mut stream: Bytes, whole: bool) -> Result<Arrived, Malformed> {
        let line = wire::split_header(&mut stream)
            .map_err(Malformed::new)?
            .ok_or_else(|| Malformed::new(wire::Malformed::NoHeader))?;
        let header = wire::read_header_from_client(&line).map_err(Malformed::new)?;
        let conversation = Conversation::same_or(
            &mut self.last.lock(),
            |last| last.to().is_written(&header.to),
            || header.to.parse().map(|to| Conversation::new(self.client.clone(), to)),
        );
        let message = match conversation {
            _ if !whole || stream.len() > self.max_message => Err(Code::TooLarge),
            Ok(conversation) => Ok(Message {
                conversation,
                body: own(stream),
                // What it is told at once, it may have waited for.
                prompt: true,
            }),
            Err(_) => Err(Code::BadAddress),
        };
        Ok(Arrived {
            number: header.id,
            after: header.after,
            message,
        })
    }

    fn write_frame(&self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Control(Control::Report(report)) => {
                wire::write_line(out, &FromNode::Receipt(Receipt::from(report.clone())));
            }
            Frame::Control(Control::Confirm(confirm)) if self.resumable => {
                wire::write_line(out, &FromNode::Confirm((*confirm).into()));
            }
            Frame::Goodbye => wire::write_line(out, &FromNode::GoingAway),
            Frame::Judged(judged) => {
                let (code, text) = judged.clone().err().unzip();
                wire::write_line(out, &FromNode::Login { code, text });
            }
            // Said by the greeting, or not said on this kind of connection.
            Frame::Control(Control::Sync(_) | Control::Confirm(_))
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Login(_) => {}
        }
    }

    fn read_frame(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
        loop {
            match wire::read_line(buffer).map_err(Malformed::new)? {
                None => return Ok(None),
                Some(FromClient::Receipt(receipt)) => return Ok(Some(Frame::Control(Control::Report(receipt.into())))),
                // One that can't come back has nothing to confirm.
                Some(FromClient::Confirm(_)) if !self.resumable => {}
                Some(FromClient::Confirm(confirm)) => {
                    return Ok(Some(Frame::Control(Control::Confirm(confirm.into()))));
                }
                Some(FromClient::Goodbye) => return Ok(Some(Frame::Goodbye)),
                Some(FromClient::Login { token }) => return Ok(Some(Frame::Login(token))),
                Some(FromClient::Hello { .. }) => return Err(Malformed::new("a second hello")),
                Some(FromClient::Other) => {}
            }
        }
    }
}
