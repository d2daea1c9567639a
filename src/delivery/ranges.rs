//! A set of message numbers, kept as a low-water mark and ranges above it.

use std::collections::BTreeMap;

/// A set of numbers from 1 up that is mostly contiguous.
///
/// All numbers below a mark are in it; what is above lies in disjoint ranges that do not touch. Adding the number that
/// follows the mark costs O(1), any other O(log ranges).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Every number below this one is in the set.
    below: u64,
    /// First to last number (inclusive) of each range above the mark.
    above: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    pub(crate) const fn new() -> Self {
        Self {
            below: 1,
            above: BTreeMap::new(),
        }
    }

    /// A set from its parts, as a peer sends them. Ranges may come in any order and overlap.
    pub(crate) fn from_parts(below: u64, ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut set = Self::new();
        set.fill_below(below);
        for (first, last) in ranges {
            set.insert_range(first, last);
        }
        set
    }

    /// Every number below this is in the set.
    pub(crate) fn below(&self) -> u64 {
        self.below
    }

    /// The ranges above the mark, first and last number of each, in order.
    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.above.iter().map(|(&first, &last)| (first, last))
    }

    /// Whether the number is in the set. 0 always is: it stands for "no message".
    pub(crate) fn contains(&self, number: u64) -> bool {
        number < self.below
            || self
                .above
                .range(..=number)
                .next_back()
                .is_some_and(|(_, &last)| number <= last)
    }

    /// Adds a number. Says whether it is new.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        if number == self.below {
            self.below = self.below.saturating_add(1);
            self.absorb();
            return true;
        }
        self.insert_apart(number)
    }

    /// Adds a number that does not follow the mark. Says whether it is new.
    fn insert_apart(&mut self, number: u64) -> bool {
        if number < self.below {
            return false;
        }
        // As few searches as there can be: ends come in any order, one for each message.
        let mut joined = None;
        if let Some((&first, last)) = self.above.range_mut(..=number).next_back() {
            if *last >= number {
                return false;
            }
            if last.saturating_add(1) == number {
                *last = number;
                joined = Some(first);
            }
        }
        let behind = self.above.remove(&number.saturating_add(1));
        match (joined, behind) {
            (Some(_), None) => {}
            (Some(first), Some(last)) => {
                self.above.insert(first, last);
            }
            (None, behind) => {
                self.above.insert(number, behind.unwrap_or(number));
            }
        }
        true
    }

    /// Adds every number below this one.
    pub(crate) fn fill_below(&mut self, number: u64) {
        if number > self.below {
            self.below = number;
            self.absorb();
        }
    }

    fn insert_range(&mut self, mut first: u64, mut last: u64) {
        if first > last || last < self.below {
            return;
        }
        // A range that touches one before it, and all that it touches behind it, become one.
        if let Some((&before, &end)) = self.above.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            first = before;
            last = last.max(end);
        }
        while let Some((&next, &end)) = self.above.range(first..=last.saturating_add(1)).next() {
            self.above.remove(&next);
            last = last.max(end);
        }
        self.above.insert(first, last);
        self.absorb();
    }

    /// Lets the mark swallow the ranges it has reached.
    fn absorb(&mut self) {
        while let Some(entry) = self.above.first_entry()
            && *entry.key() <= self.below
        {
            self.below = self.below.max(entry.get().saturating_add(1));
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(
            operations in proptest::collection::vec((0u8..10, 1u64..60, 0u64..6), 0..80)
        ) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (kind, number, more) in operations {
                match kind {
                    0 => {
                        set.fill_below(number);
                        model.extend(1..number);
                    }
                    1 => {
                        set.insert_range(number, number + more);
                        model.extend(number..=number + more);
                    }
                    _ => prop_assert_eq!(set.insert(number), model.insert(number)),
                }
                for number in 1..70 {
                    prop_assert_eq!(set.contains(number), model.contains(&number));
                }
                // Ranges neither touch each other nor the mark.
                let mut end = set.below();
                for (first, last) in set.ranges() {
                    prop_assert!(first > end && last >= first, "{:?}", set);
                    end = last + 1;
                }
                let parts: Vec<_> = set.ranges().collect();
                prop_assert_eq!(&RangeSet::from_parts(set.below(), parts), &set);
            }
        }
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let mut set = RangeSet::from_parts(u64::MAX, [(u64::MAX, u64::MAX), (5, 1)]);
        assert!(set.contains(u64::MAX - 1));
        set.fill_below(u64::MAX);
        set.insert(u64::MAX);
        assert!(!RangeSet::new().contains(1) && RangeSet::new().contains(0));
    }
}
