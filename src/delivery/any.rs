//! Any value of what goes on a wire, for the tests of those who write it.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Confirm, Failure, RangeSet, Report};
use crate::outcome::{Code, Outcome};

/// Numbers of every length, up to `most`.
pub(crate) fn number(most: u64) -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(move |(number, shift)| (number >> shift).min(most))
}

fn ranges(most: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let range = (number(most), number(most)).prop_map(|(one, other)| (one.min(other), one.max(other)));
    vec(range, 0..6)
}

pub(crate) fn taken(most: u64) -> impl Strategy<Value = RangeSet> {
    (number(most), ranges(most)).prop_map(|(below, ranges)| RangeSet::from_parts(below, ranges))
}

pub(crate) fn report(most: u64) -> impl Strategy<Value = Report> {
    let failure = (number(most), select(&Code::ALL[..]), any::<bool>()).prop_map(|(number, code, certain)| Failure {
        number,
        outcome: if certain {
            Outcome::Refused(code)
        } else {
            Outcome::Unknown(code)
        },
    });
    (ranges(most), vec(failure, 0..6)).prop_map(|(delivered, failed)| Report { delivered, failed })
}

pub(crate) fn confirm(most: u64) -> impl Strategy<Value = Confirm> {
    (number(most), number(most)).prop_map(|(below, reports)| Confirm { below, reports })
}
