//! How much one sender has under way, in all and to each recipient: its flow control.
//!
//! A sender that has reached a limit is not read from until messages of its have ended. So a slow reader holds up those
//! who write to it and nobody else, and memory stays bounded.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use slab::Slab;

use crate::address::Address;
pub(crate) use crate::wire::client::Window;

/// The messages of one sender that are under way, with a reply `R` to be given when each ends.
#[derive(Debug)]
pub(crate) struct Flow<R> {
    window: Window,
    pending: Slab<Pending<R>>,
    conversations: Slab<Conversation>,
    by_recipient: HashMap<Address, usize, RandomState>,
    /// The key of the conversation that was asked for last.
    last: usize,
    bytes: usize,
}

/// A message that is under way now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    /// What [`Flow::settle`] wants when it ends.
    pub(crate) key: usize,
    /// Half of a limit is used up: its sender may soon have to wait for the end of this one.
    pub(crate) is_scarce: bool,
}

#[derive(Debug)]
struct Pending<R> {
    conversation: usize,
    size: usize,
    reply: R,
}

#[derive(Debug)]
struct Conversation {
    recipient: Address,
    messages: usize,
    bytes: usize,
}

impl<R> Flow<R> {
    /// Nothing under way yet.
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            pending: Slab::new(),
            conversations: Slab::new(),
            by_recipient: HashMap::default(),
            last: 0,
            bytes: 0,
        }
    }

    /// Counts a message as under way if it may be sent now, else gives the reply back. One message may go over a limit in
    /// bytes, so that no message is too large for ever.
    pub(crate) fn try_start(&mut self, recipient: &Address, size: usize, reply: R) -> Result<Started, R> {
        if self.pending.len() >= self.window.messages || self.bytes >= self.window.bytes {
            return Err(reply);
        }
        let key = self.conversation(recipient);
        let most = self.window.conversation_bytes;
        // One without messages is never full: none is left behind.
        let full = |conversation: &Conversation| conversation.messages > 0 && conversation.bytes >= most;
        let conversation = self.conversations.get(key);
        if conversation.is_some_and(full) {
            return Err(reply);
        }
        let in_conversation = conversation.map_or(0, |conversation| conversation.bytes);
        let is_scarce = self.pending.len() >= self.window.messages / 2
            || self.bytes + size >= self.window.bytes / 2
            || in_conversation + size >= most / 2;
        let key = self.count(key, size, reply);
        Ok(Started { key, is_scarce })
    }

    /// Whether a sender that keeps to the limits may have this message under way beside the others, wherever they come
    /// in another order than they were sent in: one message of at most `largest` bytes may go over a limit, and those
    /// sent before it may come after it.
    pub(crate) fn bears(&self, recipient: &Address, size: usize, largest: usize) -> bool {
        let conversation = self.by_recipient.get(recipient).copied();
        let in_conversation = conversation
            .and_then(|key| self.conversations.get(key))
            .map_or(0, |conversation| conversation.bytes);
        self.pending.len() < self.window.messages
            && self.bytes + size < self.window.bytes.saturating_add(largest)
            && in_conversation + size < self.window.conversation_bytes.saturating_add(largest)
    }

    /// Counts a message as under way; the key is what [`settle`](Self::settle) wants when it ends.
    pub(crate) fn start(&mut self, recipient: &Address, size: usize, reply: R) -> usize {
        let key = self.conversation(recipient);
        self.count(key, size, reply)
    }

    /// The key of the conversation with this recipient, new if there is none.
    fn conversation(&mut self, recipient: &Address) -> usize {
        // Most messages are for whom the one before was for.
        if let Some(last) = self.conversations.get(self.last)
            && last.recipient == *recipient
        {
            return self.last;
        }
        self.last = match self.by_recipient.get(recipient) {
            Some(&key) => key,
            None => {
                let key = self.conversations.insert(Conversation {
                    recipient: recipient.clone(),
                    messages: 0,
                    bytes: 0,
                });
                self.by_recipient.insert(recipient.clone(), key);
                key
            }
        };
        self.last
    }

    fn count(&mut self, key: usize, size: usize, reply: R) -> usize {
        if let Some(conversation) = self.conversations.get_mut(key) {
            conversation.messages += 1;
            conversation.bytes += size;
        }
        self.bytes += size;
        self.pending.insert(Pending {
            conversation: key,
            size,
            reply,
        })
    }

    /// Whom a message that is under way is for.
    pub(crate) fn recipient(&self, key: usize) -> Option<&Address> {
        let conversation = self.pending.get(key)?.conversation;
        Some(&self.conversations.get(conversation)?.recipient)
    }

    /// A message has ended; gives back what is to be replied. `None` if there is no such message.
    pub(crate) fn settle(&mut self, key: usize) -> Option<R> {
        let pending = self.pending.try_remove(key)?;
        self.bytes -= pending.size;
        let conversation = self.conversations.get_mut(pending.conversation)?;
        conversation.messages -= 1;
        conversation.bytes -= pending.size;
        if conversation.messages == 0 {
            let conversation = self.conversations.remove(pending.conversation);
            self.by_recipient.remove(&conversation.recipient);
        }
        Some(pending.reply)
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a message to this recipient could be sent.
    fn has_room<R: Default>(flow: &mut Flow<R>, recipient: &Address) -> bool {
        match flow.try_start(recipient, 0, R::default()) {
            Ok(Started { key, .. }) => flow.settle(key).is_some(),
            Err(_) => false,
        }
    }

    #[test]
    fn each_limit_holds_and_lets_go() {
        let window = Window {
            messages: 3,
            bytes: 100,
            conversation_bytes: 50,
        };
        let (a, b): (Address, Address) = ("n:1:a".parse().unwrap(), "n:1:b".parse().unwrap());
        let mut flow = Flow::new(window);

        let large = flow.start(&a, 60, "large");
        assert_eq!(flow.recipient(large), Some(&a));
        assert!(
            !has_room(&mut flow, &a) && has_room(&mut flow, &b),
            "the conversation is full"
        );
        let other = flow.start(&b, 45, "other");
        assert!(!has_room(&mut flow, &b), "all is full, in bytes");
        assert_eq!(flow.settle(large), Some("large"));
        assert_eq!((flow.settle(large), flow.recipient(large)), (None, None));
        assert!(has_room(&mut flow, &a) && has_room(&mut flow, &b));

        flow.start(&b, 1, "");
        flow.start(&a, 1, "");
        assert!(!has_room(&mut flow, &a), "all is full, in messages");
        flow.settle(other);
        assert!(has_room(&mut flow, &a));
    }

    #[test]
    fn a_sender_that_keeps_to_the_limits_is_borne_in_whatever_order_its_messages_come() {
        let window = Window {
            messages: 10,
            bytes: 100,
            conversation_bytes: 50,
        };
        let largest = 60;
        let (a, b, c): (Address, Address, Address) = (
            "n:1:a".parse().unwrap(),
            "n:1:b".parse().unwrap(),
            "n:1:c".parse().unwrap(),
        );
        let sent = [(&a, 49), (&b, 49), (&a, 1), (&c, 60)];
        let mut sender = Flow::new(window);
        for (to, size) in sent {
            assert!(has_room(&mut sender, to));
            sender.start(to, size, ());
        }
        let mut node = Flow::new(window);
        for (to, size) in sent.into_iter().rev() {
            assert!(node.bears(to, size, largest), "{size} to {to}");
            node.start(to, size, ());
        }
        assert!(!node.bears(&c, 1, largest), "no more than one message over");
    }

    #[test]
    fn nothing_is_kept_of_conversations_without_messages() {
        let mut flow = Flow::new(Window {
            messages: 10,
            bytes: 100,
            conversation_bytes: 50,
        });
        for id in 0..1000 {
            let key = flow.start(&format!("n:1:{id}").parse().unwrap(), 1, ());
            flow.settle(key);
        }
        assert!(flow.is_idle() && flow.by_recipient.is_empty() && flow.conversations.is_empty());
        assert_eq!(flow.bytes, 0);
    }
}
