//! The bounded queue of what is still to be written to one line client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::buffers::Buffers;
use crate::message::{MESSAGE_OVERHEAD, Message, Ticket};
use crate::outcome::{Code, Outcome};
use crate::wire::line::{self, Format};

/// A client whose last write had as many bytes has large buffers to write from.
const LARGE_WRITE: usize = 4 * 1024;

/// What waits to be written to one client, as the bytes to write.
///
/// All lines stand in one buffer, which the writer swaps for an empty one; a message's ticket comes out once the last
/// byte of its line was written.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Something to write has come, or nothing will any more.
    ready: Notify,
    /// The writer has caught up with what was queued.
    drained: Notify,
    /// Bytes of lines that are no messages, which the writer has not taken. Changed with the queue locked, and readable
    /// without: it is asked for at each line of the client, and is nearly always 0.
    notices: AtomicUsize,
    /// The most bytes of messages that may wait.
    bound: usize,
    buffers: Arc<Buffers>,
}

#[derive(Debug, Default)]
struct Queue {
    format: Format,
    /// Encoded lines that the writer has not taken.
    buffer: Vec<u8>,
    /// How much the writer has taken at once last.
    taken: usize,
    /// How many bytes were ever put in, and how many of those were written.
    put: u64,
    written: u64,
    /// The messages among them, each with the position of its line's end.
    messages: VecDeque<(u64, usize, Ticket)>,
    /// What those count.
    message_bytes: usize,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Ends once all is written.
    Finishing,
    Closed,
}

impl Outbox {
    /// An empty queue that takes messages up to `bound` bytes.
    pub(crate) fn new(bound: usize, buffers: Arc<Buffers>) -> Self {
        Self {
            queue: Mutex::default(),
            ready: Notify::new(),
            drained: Notify::new(),
            notices: AtomicUsize::new(0),
            bound,
            buffers,
        }
    }

    /// Queues a message's line.
    pub(crate) fn push(&self, message: &Message, ticket: Ticket) -> Result<(), (Ticket, Code)> {
        let mut queue = self.queue.lock();
        if queue.state == State::Closed {
            return Err((ticket, Code::RecipientGone));
        }
        // One message may go over, so that none is too large for ever.
        if queue.message_bytes >= self.bound {
            return Err((ticket, Code::RecipientFull));
        }
        let was_empty = queue.buffer.is_empty();
        // Who takes little at a time is to hold little.
        if was_empty && queue.taken >= LARGE_WRITE && queue.buffer.capacity() == 0 {
            queue.buffer = self.buffers.take();
        }
        let before = queue.buffer.len();
        let format = queue.format;
        line::write_message(&mut queue.buffer, format, message.from(), message.to(), &message.body);
        let length = queue.buffer.len() - before;
        queue.put += length as u64;
        let (end, size) = (queue.put, length + MESSAGE_OVERHEAD);
        queue.message_bytes += size;
        queue.messages.push_back((end, size, ticket));
        drop(queue);
        if was_empty {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Queues a line that is no message: the greeting, an error, a receipt. Passed over once the queue is closed.
    pub(crate) fn push_notice(&self, write: impl FnOnce(&mut Vec<u8>, Format)) {
        let mut queue = self.queue.lock();
        if queue.state == State::Closed {
            return;
        }
        let was_empty = queue.buffer.is_empty();
        let before = queue.buffer.len();
        let format = queue.format;
        write(&mut queue.buffer, format);
        let length = queue.buffer.len() - before;
        queue.put += length as u64;
        self.notices.fetch_add(length, Ordering::Relaxed);
        drop(queue);
        if was_empty {
            self.ready.notify_one();
        }
    }

    /// Changes how the lines to come are written.
    pub(crate) fn set_format(&self, format: Format) {
        self.queue.lock().format = format;
    }

    /// How many bytes of notices are queued.
    pub(crate) fn notices(&self) -> usize {
        self.notices.load(Ordering::Relaxed)
    }

    /// Waits until at most `limit` bytes of notices are queued. A client that asks and never reads is not read from.
    pub(crate) async fn notices_below(&self, limit: usize) {
        loop {
            let drained = self.drained.notified();
            if self.notices() <= limit {
                return;
            }
            drained.await;
        }
    }

    /// For the writer: the next bytes to write; `None` when no more will come. Cancel safe.
    pub(crate) async fn take(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut queue = self.queue.lock();
                if !queue.buffer.is_empty() {
                    self.notices.store(0, Ordering::Relaxed);
                    queue.taken = queue.buffer.len();
                    self.drained.notify_waiters();
                    return Some(std::mem::take(&mut queue.buffer));
                }
                match queue.state {
                    State::Open => {}
                    State::Finishing => {
                        queue.state = State::Closed;
                        return None;
                    }
                    State::Closed => return None,
                }
            }
            self.ready.notified().await;
        }
    }

    /// For the writer: what it took is written.
    pub(crate) fn give_back(&self, bytes: Vec<u8>) {
        self.buffers.give_back(bytes);
    }

    /// For the writer: that many more bytes were written, which for a message that is out whole means `outcome`. Gives the
    /// tickets of those with it.
    pub(crate) fn written(&self, bytes: usize, outcome: Outcome) -> Vec<(Ticket, Outcome)> {
        let mut queue = self.queue.lock();
        queue.written += bytes as u64;
        let written = queue.written;
        let whole = queue.messages.partition_point(|&(end, ..)| end <= written);
        let mut tickets = Vec::with_capacity(whole);
        let mut size = 0;
        for (_, message_size, ticket) in queue.messages.drain(..whole) {
            size += message_size;
            tickets.push((ticket, outcome));
        }
        queue.message_bytes -= size;
        tickets
    }

    /// Gives the tickets of messages that were not written whole. Their lines may still be written.
    pub(crate) fn abandon(&self) -> Vec<Ticket> {
        let mut queue = self.queue.lock();
        queue.message_bytes = 0;
        let messages = std::mem::take(&mut queue.messages);
        drop(queue);
        messages.into_iter().map(|(.., ticket)| ticket).collect()
    }

    /// Ends the queue once all that is in it, and comes until then, is written.
    pub(crate) fn finish(&self) {
        let mut queue = self.queue.lock();
        if queue.state == State::Open {
            queue.state = State::Finishing;
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// Ends the queue now. Gives the tickets of messages that were not written whole, with their ends: nobody knows what
    /// the client made of a line that was written in part.
    pub(crate) fn close(&self) -> Vec<(Ticket, Outcome)> {
        let mut queue = self.queue.lock();
        queue.state = State::Closed;
        queue.buffer = Vec::new();
        queue.message_bytes = 0;
        let written = queue.written;
        let messages = std::mem::take(&mut queue.messages);
        drop(queue);
        self.ready.notify_one();
        self.drained.notify_waiters();
        messages
            .into_iter()
            .map(|(end, size, ticket)| {
                let start = end - (size - MESSAGE_OVERHEAD) as u64;
                let outcome = if start < written {
                    Outcome::Unknown(Code::RecipientGone)
                } else {
                    Outcome::Refused(Code::RecipientGone)
                };
                (ticket, outcome)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Settle, Tag};

    const DELIVERED: Outcome = Outcome::Delivered;

    struct Nobody;
    impl Settle for Nobody {
        fn settle(&self, _: &[(Tag, Outcome)]) {}
    }

    fn ticket(number: u64) -> Ticket {
        Ticket {
            origin: Arc::new(Nobody),
            tag: Tag::prompt(number, 0),
        }
    }

    fn message(body: &str) -> Message {
        Message::example("n:1:a", "n:1:b", body)
    }

    fn numbers(ends: &[(Ticket, Outcome)]) -> Vec<u64> {
        assert!(ends.iter().all(|(_, outcome)| *outcome == Outcome::Delivered));
        ends.iter().map(|(ticket, _)| ticket.tag.number).collect()
    }

    #[tokio::test]
    async fn a_ticket_comes_out_with_the_last_byte_of_its_line() {
        let outbox = Outbox::new(10_000, Arc::default());
        outbox.push_notice(|out, _| out.extend_from_slice(b"hi\r\n"));
        outbox.push(&message("1"), ticket(1)).unwrap();
        outbox.push(&message("22"), ticket(2)).unwrap();
        let bytes = outbox.take().await.unwrap();
        assert_eq!(bytes, b"hi\r\nn:1:a say : 1\r\nn:1:a say : 22\r\n");
        assert!(outbox.written(4, DELIVERED).is_empty());
        assert!(outbox.written(14, DELIVERED).is_empty());
        assert_eq!(numbers(&outbox.written(1, DELIVERED)), [1]);
        outbox.push(&message("3"), ticket(3)).unwrap();
        assert!(outbox.written(3, DELIVERED).is_empty());
        let ends: Vec<(u64, Outcome)> = outbox
            .close()
            .into_iter()
            .map(|(ticket, outcome)| (ticket.tag.number, outcome))
            .collect();
        let gone = Code::RecipientGone;
        assert_eq!(ends, [(2, Outcome::Unknown(gone)), (3, Outcome::Refused(gone))]);
        assert!(outbox.take().await.is_none());
        let refused = outbox.push(&message("4"), ticket(4)).unwrap_err();
        assert_eq!(refused.1, Code::RecipientGone);
    }

    #[tokio::test]
    async fn the_bound_holds_and_lets_go() {
        let outbox = Outbox::new(2 * MESSAGE_OVERHEAD, Arc::default());
        outbox.push(&message("1"), ticket(1)).unwrap();
        outbox.push(&message("2"), ticket(2)).unwrap();
        assert_eq!(
            outbox.push(&message("3"), ticket(3)).unwrap_err().1,
            Code::RecipientFull
        );
        let bytes = outbox.take().await.unwrap();
        assert_eq!(numbers(&outbox.written(bytes.len(), DELIVERED)), [1, 2]);
        outbox.push(&message("3"), ticket(3)).unwrap();
    }

    #[tokio::test]
    async fn finishing_writes_what_is_there_first() {
        let outbox = Outbox::new(10_000, Arc::default());
        outbox.push(&message("1"), ticket(1)).unwrap();
        outbox.finish();
        outbox.push(&message("2"), ticket(2)).unwrap();
        assert_eq!(outbox.take().await.unwrap().len(), 2 * "n:1:a say : 1\r\n".len());
        assert!(outbox.take().await.is_none());
    }
}
