//! What has been sent and not settled, by number.

use std::collections::{BTreeMap, VecDeque};

/// Below this many slots the ring is not worth thinning. Tests reach a small one.
const SPARSE_FROM: usize = if cfg!(any(test, fuzzing)) { 2 } else { 4096 };

/// Values numbered in the order they are added, removed in any order.
///
/// A ring makes all operations O(1) while values leave roughly in order. One that stays (a message to a slow reader)
/// would keep every slot behind it, so when most slots of a long ring are empty, the oldest values move to a tree.
#[derive(Debug)]
pub(crate) struct Window<V> {
    /// The number of the ring's first slot.
    base: u64,
    ring: VecDeque<Option<V>>,
    /// Values whose numbers are below `base`.
    stragglers: BTreeMap<u64, V>,
    /// How many of the ring's slots hold a value.
    in_ring: usize,
}

impl<V> Window<V> {
    /// An empty window; the first number will be 1.
    pub(crate) const fn new() -> Self {
        Self {
            base: 1,
            ring: VecDeque::new(),
            stragglers: BTreeMap::new(),
            in_ring: 0,
        }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.in_ring + self.stragglers.len()
    }

    /// The number the next value will get.
    pub(crate) fn next_number(&self) -> u64 {
        self.base + self.ring.len() as u64
    }

    /// The lowest number that has a value.
    pub(crate) fn first(&self) -> Option<u64> {
        let straggler = self.stragglers.first_key_value().map(|(&number, _)| number);
        // The ring's front slot holds a value whenever the ring is not empty.
        straggler.or_else(|| (!self.ring.is_empty()).then_some(self.base))
    }

    /// Adds a value and gives it the next number.
    pub(crate) fn push(&mut self, value: V) -> u64 {
        let number = self.next_number();
        self.ring.push_back(Some(value));
        self.in_ring += 1;
        while self.ring.len() > SPARSE_FROM && self.in_ring * 4 < self.ring.len() {
            if let Some(Some(value)) = self.ring.pop_front() {
                self.stragglers.insert(self.base, value);
                self.in_ring -= 1;
            }
            self.base += 1;
        }
        self.trim();
        number
    }

    /// The value with this number.
    pub(crate) fn get(&self, number: u64) -> Option<&V> {
        match self.slot(number) {
            Some(slot) => self.ring.get(slot)?.as_ref(),
            None => self.stragglers.get(&number),
        }
    }

    /// The value with this number, to change it.
    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        match self.slot(number) {
            Some(slot) => self.ring.get_mut(slot)?.as_mut(),
            None => self.stragglers.get_mut(&number),
        }
    }

    /// Takes out the value with this number.
    pub(crate) fn remove(&mut self, number: u64) -> Option<V> {
        let Some(slot) = self.slot(number) else {
            return self.stragglers.remove(&number);
        };
        let value = self.ring.get_mut(slot)?.take()?;
        self.in_ring -= 1;
        self.trim();
        Some(value)
    }

    /// The lowest number in `first..=last` that has a value.
    pub(crate) fn first_in(&self, first: u64, last: u64) -> Option<u64> {
        if first > last {
            return None;
        }
        if first < self.base
            && let Some((&number, _)) = self.stragglers.range(first..=last).next()
        {
            return Some(number);
        }
        let start = usize::try_from(first.saturating_sub(self.base)).ok()?;
        let slots = usize::try_from(last.checked_sub(self.base)?).ok()?.saturating_add(1);
        let end = slots.min(self.ring.len());
        let offset = self.ring.range(start.min(end)..end).position(Option::is_some)?;
        Some(self.base + (start + offset) as u64)
    }

    /// The lowest number from `first` on that has a value.
    pub(crate) fn next_from(&self, first: u64) -> Option<u64> {
        self.first_in(first, u64::MAX)
    }

    /// The slot of a number in the ring; `None` when it is below the ring.
    fn slot(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.base)?).ok()
    }

    /// Drops the empty slots at the ring's front, and the ring's memory once it is empty.
    fn trim(&mut self) {
        while let Some(None) = self.ring.front() {
            self.ring.pop_front();
            self.base += 1;
        }
        if self.ring.is_empty() && self.ring.capacity() > SPARSE_FROM {
            self.ring = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(operations in proptest::collection::vec((0u8..4, 0usize..50), 0..200)) {
            let mut window = Window::new();
            let mut model = BTreeMap::new();
            for (kind, index) in operations {
                if kind < 2 {
                    let number = window.push(index);
                    prop_assert_eq!(model.insert(number, index), None);
                } else if let Some(&number) = model.keys().nth(index % model.len().max(1)) {
                    prop_assert_eq!(window.remove(number), model.remove(&number));
                    prop_assert_eq!(window.remove(number), None);
                }
                prop_assert_eq!(window.len(), model.len());
                prop_assert_eq!(window.first(), model.keys().next().copied());
                for number in 0..window.next_number() + 2 {
                    prop_assert_eq!(window.get(number), model.get(&number));
                    prop_assert_eq!(window.next_from(number), model.range(number..).next().map(|(&n, _)| n));
                    let (first, last) = (number, number + index as u64);
                    prop_assert_eq!(
                        window.first_in(first, last),
                        model.range(first..=last).next().map(|(&n, _)| n)
                    );
                }
            }
        }
    }

    #[test]
    fn one_that_stays_does_not_keep_the_slots_behind_it() {
        let mut window = Window::new();
        let stays = window.push(0);
        for value in 1..1_000_000 {
            let number = window.push(value);
            window.remove(number);
        }
        let newest = window.push(7);
        assert!(window.ring.len() <= SPARSE_FROM + 1, "{}", window.ring.len());
        assert_eq!((window.first(), window.len()), (Some(stays), 2));
        assert_eq!(window.next_from(stays + 1), Some(newest));
        assert_eq!(window.remove(stays), Some(0));
        assert_eq!(window.first(), Some(newest));
    }
}
