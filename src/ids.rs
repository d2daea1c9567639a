//! The ids that a node gives to its clients.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};

use smol_str::SmolStr;

use crate::address::{ClientId, MAX_CLIENT_ID};

/// How many digits the first ids have. Legacy clients know six.
const FIRST_DIGITS: u32 = 6;

/// How many times the halves of a number are mixed. Four rounds make a permutation that can't be told from a random
/// one by its values (Luby and Rackoff, 1988), given round functions that can't.
const ROUNDS: u8 = 4;

/// Gives out ids in an order that can't be foreseen, and none of them twice.
///
/// The n-th id is the n-th number sent through a permutation of all ids of that length, keyed at the start of the
/// node: so nothing need be remembered of the ids that were given. When those of six digits are used up
/// (531,441 clients), seven follow.
#[derive(Debug)]
pub(crate) struct IdSequence {
    digits: u32,
    next: u64,
    keys: RandomState,
}

impl IdSequence {
    /// A sequence of its own.
    pub(crate) fn new() -> Self {
        Self::with_digits(FIRST_DIGITS)
    }

    fn with_digits(digits: u32) -> Self {
        Self {
            digits,
            next: 0,
            keys: RandomState::new(),
        }
    }

    /// How many ids of the present length there are.
    fn size(&self) -> u64 {
        9u64.saturating_pow(self.digits)
    }

    /// A Feistel network over the next even number of bits, walked until the result lies among the ids.
    fn permute(&self, number: u64) -> u64 {
        let size = self.size();
        let half_bits = (64 - (size - 1).leading_zeros()).div_ceil(2);
        let mask = (1 << half_bits) - 1;
        let mut number = number;
        loop {
            let (mut left, mut right) = (number >> half_bits, number & mask);
            for round in 0..ROUNDS {
                let mixed = self.keys.hash_one((self.digits, round, right)) & mask;
                (left, right) = (right, left ^ mixed);
            }
            number = left << half_bits | right;
            if number < size {
                return number;
            }
        }
    }

    /// The next id.
    pub(crate) fn next(&mut self) -> ClientId {
        if self.next == self.size() && (self.digits as usize) < MAX_CLIENT_ID.min(19) {
            self.digits += 1;
            self.next = 0;
        }
        let mut number = self.permute(self.next);
        self.next += 1;
        let mut text = String::with_capacity(self.digits as usize);
        for _ in 0..self.digits {
            // Writing to a string can't fail.
            let _ = write!(text, "{}", number % 9 + 1);
            number /= 9;
        }
        ClientId::from_digits(SmolStr::from(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_id_comes_twice_and_all_of_a_length_are_used() {
        let mut ids = IdSequence::with_digits(3);
        let given: HashSet<ClientId> = (0..9u32.pow(3)).map(|_| ids.next()).collect();
        assert_eq!(given.len(), 9usize.pow(3));
        assert!(given.iter().all(|id| id.as_str().len() == 3 && id.is_temporary()));
        let longer: HashSet<ClientId> = (0..1000).map(|_| ids.next()).collect();
        assert_eq!(longer.len(), 1000);
        assert!(longer.iter().all(|id| id.as_str().len() == 4));
    }

    #[test]
    fn two_nodes_give_them_in_different_orders() {
        let (mut one, mut other) = (IdSequence::new(), IdSequence::new());
        let same = (0..1000).filter(|_| one.next() == other.next()).count();
        assert!(same < 10, "{same} of 1000 ids are the same");
        assert_eq!(one.next().as_str().len(), 6);
    }
}
