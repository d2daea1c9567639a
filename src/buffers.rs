//! Memory that clients read into and write from, passed on from one to the next.
//!
//! A client that says nothing holds no buffer, so one is had and given up each time that it says something. To have it from
//! the allocator would mean cold memory, and pages that the system has to clear: measured with 1,000 busy clients, a tenth of
//! the node's processor time.

use parking_lot::Mutex;

/// How many are kept, and of which sizes: with room for 128 KiB each that is 8 MiB at the most.
const KEPT: usize = 64;
const LEAST: usize = 4 * 1024;
const MOST: usize = 128 * 1024;

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer: the one that was given back last, or one without any room.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    /// Gives a buffer back. What is in it is thrown away.
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        if !(LEAST..=MOST).contains(&buffer.capacity()) {
            return;
        }
        buffer.clear();
        let mut kept = self.0.lock();
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_no_more_are_kept_than_may_be() {
        let buffers = Buffers::default();
        assert_eq!(buffers.take().capacity(), 0);
        let mut buffer = Vec::with_capacity(LEAST);
        buffer.extend_from_slice(b"somebody's");
        buffers.give_back(buffer);
        let again = buffers.take();
        assert!(again.is_empty() && again.capacity() >= LEAST);
        for capacity in [1, MOST + 1] {
            buffers.give_back(Vec::with_capacity(capacity));
            assert_eq!(buffers.take().capacity(), 0);
        }
        for _ in 0..2 * KEPT {
            buffers.give_back(Vec::with_capacity(LEAST));
        }
        assert_eq!(buffers.0.lock().len(), KEPT);
    }
}
