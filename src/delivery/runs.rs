//! Runs: consecutive plain messages, leased together on their first attempt, under one deadline and one word.

use std::collections::VecDeque;

use crate::delivery::ledger::LeaseId;
use crate::sequence::Sequence;
use crate::time::Tick;

/// The longest run: one word.
pub(crate) const RUN_LEN_MAX: u64 = 64;

/// Messages without key or life. Bit `n` of `open`: `first + n` is still leased.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first: Sequence,
    pub(super) open: u64,
    pub(super) deadline: Tick,
}

impl Run {
    fn bit(&self, sequence: Sequence) -> Option<u64> {
        let offset = sequence.get().checked_sub(self.first.get())?;
        (offset < RUN_LEN_MAX).then(|| 1 << offset)
    }

    /// `len` messages from `from` on; none if they are not all of them in here.
    fn bits(&self, from: Sequence, len: u64) -> Option<u64> {
        let offset = from.get().checked_sub(self.first.get())?;
        (len > 0 && offset + len <= RUN_LEN_MAX).then(|| mask(len) << offset)
    }

    pub(super) fn holds(&self, sequence: Sequence) -> bool {
        self.bit(sequence).is_some_and(|bit| self.open & bit != 0)
    }

    pub(super) fn open_sequences(&self) -> impl Iterator<Item = Sequence> + use<> {
        let run = *self;
        (0..RUN_LEN_MAX).filter(move |n| run.open & (1 << n) != 0).map(move |n| run.first + n)
    }
}

/// The lowest `len` bits, of 1 to 64.
fn mask(len: u64) -> u64 {
    u64::MAX >> (RUN_LEN_MAX - len)
}

/// All runs, in the order in which they were granted, which is that of their deadlines.
///
/// A run's number is its place in that order, and its lease says the number: finding it is a subtraction.
///
/// Invariants: deadlines do not fall; the first has something open; `live` is how many have.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// The number of the first.
    first: u64,
    runs: VecDeque<Run>,
    live: usize,
}

/// What is done may stand between what is not, up to this many, and four times what is not.
const DONE_MAX: usize = 64;

impl Runs {
    /// Leases `len` messages, of 1 to 64. `deadline` is not before that of the run before it, or is moved there: two who ask at a time may have read the clock in one order and
    /// come here in the other.
    pub(super) fn grant(&mut self, first: Sequence, len: u64, deadline: Tick) -> LeaseId {
        let number = self.first + self.runs.len() as u64;
        let deadline = self.runs.back().map_or(deadline, |last| last.deadline.max(deadline));
        self.runs.push_back(Run { first, open: mask(len), deadline });
        self.live += 1;
        LeaseId::of_run(number)
    }

    /// The run of this lease, while something in it is open.
    pub(super) fn get(&self, lease: LeaseId) -> Option<&Run> {
        self.runs.get(self.place(lease)?).filter(|run| run.open != 0)
    }

    fn place(&self, lease: LeaseId) -> Option<usize> {
        usize::try_from(lease.run_number()?.checked_sub(self.first)?).ok()
    }

    /// Takes one message out. False: the run does not hold it.
    pub(super) fn take(&mut self, lease: LeaseId, sequence: Sequence) -> bool {
        self.take_range(lease, sequence, 1)
    }

    /// Takes messages in a row out, if the run holds all of them. False: it does not, and nothing changed.
    pub(super) fn take_range(&mut self, lease: LeaseId, from: Sequence, len: u64) -> bool {
        let Some(place) = self.place(lease) else { return false };
        let Some(run) = self.runs.get_mut(place) else { return false };
        let Some(bits) = run.bits(from, len).filter(|bits| run.open & bits == *bits) else { return false };
        run.open &= !bits;
        if run.open == 0 {
            self.live -= 1;
            self.trim();
        }
        true
    }

    pub(super) fn remove(&mut self, lease: LeaseId) -> Option<Run> {
        let place = self.place(lease)?;
        let run = self.runs.get_mut(place).filter(|run| run.open != 0)?;
        let removed = *run;
        run.open = 0;
        self.live -= 1;
        self.trim();
        Some(removed)
    }

    fn trim(&mut self) {
        while self.runs.front().is_some_and(|run| run.open == 0) {
            self.runs.pop_front();
            self.first += 1;
        }
    }

    /// The one that ends first.
    pub(super) fn first(&self) -> Option<(LeaseId, Tick)> {
        self.runs.front().map(|run| (LeaseId::of_run(self.first), run.deadline))
    }

    /// Too much that is done stands behind a first that is not: that one is to become entries.
    pub(super) fn are_crowded(&self) -> bool {
        self.runs.len() > DONE_MAX + 4 * self.live
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LeaseId, &Run)> {
        let numbered = self.runs.iter().zip(self.first..);
        numbered.filter(|(run, _)| run.open != 0).map(|(run, number)| (LeaseId::of_run(number), run))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Run> {
        self.iter().map(|(_, run)| run)
    }

    pub(super) fn holder_of(&self, sequence: Sequence) -> Option<LeaseId> {
        self.iter().find(|(_, run)| run.holds(sequence)).map(|(lease, _)| lease)
    }

    /// Ends all. Their numbers are not used again.
    pub(super) fn clear(&mut self) {
        self.first += self.runs.len() as u64;
        self.runs.clear();
        self.live = 0;
    }
}

#[cfg(test)]
impl Runs {
    pub(super) fn check(&self) {
        assert_eq!(self.live, self.iter().count(), "{self:?}");
        assert!(self.runs.front().is_none_or(|run| run.open != 0), "the first is done: {self:?}");
        assert!(self.runs.iter().is_sorted_by_key(|run| run.deadline), "{self:?}");
        assert!(!self.are_crowded(), "{self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Sequence {
        Sequence::new(n)
    }

    #[test]
    fn a_run_of_a_whole_word_is_taken_apart_and_its_number_stays_its_own() {
        let mut runs = Runs::default();
        let (a, b) =
            (runs.grant(seq(1), 64, Tick::from_nanos(5)), runs.grant(seq(65), 1, Tick::from_nanos(4)));
        assert_eq!(runs.get(b).map(|run| run.deadline), Some(Tick::from_nanos(5)), "deadlines do not fall");
        assert!(runs.take_range(a, seq(2), 63) && !runs.take(a, seq(64)) && !runs.take_range(a, seq(1), 2));
        assert!(runs.take_range(a, seq(1), 1) && runs.get(a).is_none());
        assert_eq!(runs.first().map(|first| first.0), Some(b));
        runs.clear();
        assert!(!runs.take(b, seq(65)));
        let c = runs.grant(seq(65), 1, Tick::from_nanos(6));
        assert!(c != b && runs.holder_of(seq(65)) == Some(c));
    }
}
