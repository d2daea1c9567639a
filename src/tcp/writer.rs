//! Writes a legacy client's queue to its connection.

use std::io;
use std::time::{Duration, Instant};

use bytes::Buf;
use futures_util::FutureExt;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::tcp::WriteHalf;
use tokio::time::timeout_at;

use crate::config::Limits;
use crate::counters::{Counter, Counters};
use crate::message::settle_all;
use crate::outbox::Outbox;
use crate::outcome::{Code, Outcome};
use crate::turn::Turn;

/// The most bytes that are written at once: the system would copy, and on the way to a client of the same machine even
/// deliver, as many megabytes as it has room for.
const WRITE: usize = 256 * 1024;

/// Where a client's last write was less than this ago, and this one held more than one message, all other tasks have their
/// turns, so many times, before the next one, and what comes for it meanwhile goes out together. Measured: a backlog of
/// 120,000 messages to 100 clients took 0.6 of the time, and with a tenth of this time twice as long. Where messages come one
/// by one there is nothing to gather, and each turn would be a look at the system's events.
const BUSY: Duration = Duration::from_millis(20);
const TURNS: u32 = 4;

/// Where a client's lines are written to.
pub(super) trait Sink: AsyncWrite + Unpin {
    /// Whether the client has ended its sending side, as far as the system knows. It may read on, or be gone: one that was
    /// killed looks the same.
    fn may_be_gone(&self) -> bool;
}

impl Sink for WriteHalf<'_> {
    fn may_be_gone(&self) -> bool {
        // Writable it is as a rule, so this waits for nothing; and the end is seen whether the client is read from or not.
        let ready = self.ready(Interest::READABLE | Interest::WRITABLE).now_or_never();
        matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
    }
}

/// Writes what is queued until the queue has ended. A client that takes nothing for too long, or too little, is given up.
/// What is written to one that may be gone is not known to be delivered.
pub(super) async fn write(
    mut writer: impl Sink,
    outbox: &Outbox,
    limits: &Limits,
    counters: &Counters,
) -> io::Result<()> {
    let timed_out = |counter, text| {
        counters.bump(counter);
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    let mut last: Option<Instant> = None;
    let mut turn = Turn::new();
    while let Some(bytes) = outbox.take().await {
        let mut rest = bytes.as_slice();
        let mut piece = Piece::default();
        let mut messages = 0;
        while rest.has_remaining() {
            let now = Instant::now();
            if piece.left == 0 {
                piece.left = rest.len().min(WRITE);
                piece.due = Some(now + limits.reader_pace().allows(piece.left));
            }
            let stalled = now + limits.stall;
            let due = piece.due.map_or(stalled, |due| due.min(stalled));
            let bytes = rest.get(..piece.left).unwrap_or(rest);
            let written = timeout_at(due.into(), writer.write(bytes)).await.map_err(|_| {
                if due == stalled {
                    timed_out(Counter::EndedStalled, "it took nothing for too long")
                } else {
                    timed_out(Counter::EndedSlowReader, "it took what was written to it too slowly")
                }
            })??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            piece.left = piece.left.saturating_sub(written);
            rest.advance(written);
            let outcome = match writer.may_be_gone() {
                true => Outcome::Unknown(Code::RecipientGone),
                false => Outcome::Delivered,
            };
            let ends = outbox.written(written, outcome);
            messages += ends.len();
            settle_all(ends);
            turn.bytes(written).await;
        }
        outbox.give_back(bytes);
        // Where more is coming, the others' turns gather it: a write for each message is most of what it costs.
        let now = Instant::now();
        if last.replace(now).is_some_and(|last| now - last < BUSY) && messages > 1 {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        }
    }
    writer.shutdown().await
}

/// What is being written of the queue: so much of it is left, to be through by then.
#[derive(Debug, Default)]
struct Piece {
    left: usize,
    due: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Settle, Tag, Ticket};
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    impl Sink for DuplexStream {
        fn may_be_gone(&self) -> bool {
            false
        }
    }

    struct Origin(mpsc::UnboundedSender<Outcome>);

    impl Settle for Origin {
        fn settle(&self, ends: &[(Tag, Outcome)]) {
            for (_, outcome) in ends {
                let _ = self.0.send(*outcome);
            }
        }
    }

    /// How a message ends that is written to a client that has, or has not, ended its sending side with unread input left.
    async fn ended_when(client_ends: bool) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut node, _) = listener.accept().await.unwrap();
        client.write_all(b"not read").await.unwrap();
        if client_ends {
            client.shutdown().await.unwrap();
            while !node.ready(Interest::READABLE).await.unwrap().is_read_closed() {
                tokio::task::yield_now().await;
            }
        }
        let (origin, mut ends) = mpsc::unbounded_channel();
        let outbox = Outbox::new(1, Arc::default());
        let message = Message::example("n:1:a", "n:1:b", "x");
        let ticket = Ticket {
            origin: Arc::new(Origin(origin)),
            tag: Tag::prompt(1, 0),
        };
        outbox.push(&message, ticket).unwrap();
        outbox.finish();
        write(node.split().1, &outbox, &Limits::default(), &Counters::new())
            .await
            .unwrap();
        ends.recv().await.unwrap()
    }

    #[tokio::test]
    async fn what_is_written_to_a_client_that_may_be_gone_is_not_known_to_be_delivered() {
        assert_eq!(ended_when(false).await, Outcome::Delivered);
        assert_eq!(ended_when(true).await, Outcome::Unknown(Code::RecipientGone));
    }

    /// Has so many bytes written, to a reader that takes some every so often; says how that ended, and how long it took.
    async fn written_to(
        reader: (usize, Duration),
        bytes: usize,
        limits: &Limits,
    ) -> (io::Result<()>, Duration, Counters) {
        let (counters, outbox) = (Counters::new(), Outbox::new(1, Arc::default()));
        outbox.push_notice(|out, _| out.resize(bytes, b'x'));
        outbox.finish();
        // Far less than is written: nothing gets on but by what is read.
        let (near, mut far) = tokio::io::duplex(8);
        let reading = async move {
            let mut buffer = vec![0; reader.0];
            while far.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                sleep(reader.1).await;
            }
        };
        let started = Instant::now();
        let writing = async { (write(near, &outbox, limits, &counters).await, started.elapsed()) };
        let ((ended, took), ()) = tokio::join!(writing, reading);
        (ended, took, counters)
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_byte_now_and_then_is_given_up() {
        let limits = Limits {
            stall: Duration::from_millis(300),
            min_rate: 10_000,
            ..Limits::default()
        };
        let (ended, took, counters) = written_to((1, Duration::from_millis(20)), 1000, &limits).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(took >= Duration::from_millis(400), "{took:?}");
        assert_eq!(counters.snapshot()["ended-slow-reader"], 1);
        assert_eq!(counters.snapshot()["ended-stalled"], 0);
    }

    #[tokio::test]
    async fn a_reader_that_keeps_up_the_rate_may_take_longer_than_a_stall() {
        let limits = Limits {
            stall: Duration::from_millis(300),
            min_rate: 100,
            ..Limits::default()
        };
        let (ended, took, _) = written_to((8, Duration::from_millis(5)), 1000, &limits).await;
        assert!(ended.is_ok() && took > limits.stall, "{ended:?} after {took:?}");
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up_however_much_there_is() {
        let limits = Limits {
            stall: Duration::from_millis(100),
            min_rate: 1,
            ..Limits::default()
        };
        let (ended, _, counters) = written_to((8, Duration::from_millis(300)), 1000, &limits).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(counters.snapshot()["ended-stalled"], 1);
    }
}
