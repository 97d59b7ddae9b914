//! A message's place in its topic's one order.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// A message's place in its topic's one order, from 1. Never given to a second message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sequence(u64);

impl Sequence {
    pub(crate) const FIRST: Sequence = Sequence(1);

    pub(crate) const fn new(sequence: u64) -> Self {
        Sequence(sequence)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Sequence(self.0.saturating_add(1))
    }
}

impl Add<u64> for Sequence {
    type Output = Sequence;
    fn add(self, count: u64) -> Sequence {
        Sequence(self.0.saturating_add(count))
    }
}

impl AddAssign<u64> for Sequence {
    fn add_assign(&mut self, count: u64) {
        *self = *self + count;
    }
}

/// How many messages lie from `other` (inclusive) to `self` (exclusive); 0 when `other` is not before `self`.
impl Sub for Sequence {
    type Output = u64;
    fn sub(self, other: Sequence) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
