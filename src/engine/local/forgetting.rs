//! What is still in memory, because a neighbour in its segment is needed, and on disk no more: at a checkpoint a topic forgets what all have settled, message by message.
//!
//! From then on nobody gets it back: to a seek, and to a subscription that starts before the end, it is as if its segment had gone. So what a topic takes on disk is what is needed,
//! and what a restart finds is what was promised.

use crate::delivery::ledger::Ledger;
use crate::delivery::settled::Settled;
use crate::engine::local::topic::{Book, TopicCore};
use crate::options::Keep;
use crate::sequence::Sequence;
use crate::sync::Mutex;

/// Ranges of messages in order, none of which touches the next.
pub(in crate::engine::local) type Ranges = Vec<(Sequence, Sequence)>;

/// A book is locked for so many messages at a time at most.
const WINDOW: u64 = 1 << 14;
/// More ranges are not remembered.
const RANGES_MAX: usize = 1 << 20;

/// What a topic has forgotten of what it has in memory.
#[derive(Debug, Default)]
pub(super) struct Forgotten(Mutex<Ranges>);

impl Forgotten {
    /// What is forgotten is settled, for who begins there.
    pub(super) fn mark(&self, ledger: &mut Ledger, start: Sequence) {
        let ranges = self.0.lock();
        let first = ranges.partition_point(|(_, to)| *to <= start);
        for &(from, to) in ranges.get(first..).unwrap_or_default() {
            ledger.handle_removed(from.max(start), to);
        }
    }
}

/// What a topic was like when it began to forget.
pub(super) struct Forgetting {
    epoch: u64,
    pending: u32,
    keep: Keep,
    next: Sequence,
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// Forgets what nobody needs. Gives all that a checkpoint is to leave out, up to where the log is written. To be called before the books are looked at: what they then have settled is
    /// in the checkpoint, too.
    pub(super) fn forget(&self) -> Ranges {
        let begun = self.begin_to_forget();
        self.end_forgetting(begun)
    }

    pub(super) fn begin_to_forget(&self) -> Forgetting {
        let state = self.state.lock();
        let (epoch, pending) = (state.epoch, state.pending);
        Forgetting { epoch, pending, keep: state.config.retention.keep, next: state.writer.next() }
    }

    /// What happened since it was begun may stand against it.
    pub(super) fn end_forgetting(&self, begun: Forgetting) -> Ranges {
        let Forgetting { epoch, pending, keep, next } = begun;
        let first = self.log.first_kept();
        if keep == Keep::UntilAcked && pending == 0 {
            let settled = self.settled_by_all(first, next);
            let state = self.state.lock();
            // What came back meanwhile, by a seek or a new subscription, is needed.
            if state.epoch == epoch && state.pending == 0 && state.config.retention.keep == keep {
                *self.forgotten.0.lock() = settled;
            }
        }
        let mut forgotten = self.forgotten.0.lock().clone();
        forgotten.retain(|(_, to)| *to > first);
        let gaps = self.log.gaps(Sequence::FIRST).into_iter().map(|(from, to)| (from, to.min(next)));
        united(forgotten, gaps)
    }

    fn settled_by_all(&self, first: Sequence, next: Sequence) -> Ranges {
        let books = self.books.read().clone();
        let mut all = Ranges::new();
        let mut from = first;
        while from < next && all.len() < RANGES_MAX {
            let to = next.min(from + WINDOW);
            let mut ranges = vec![(from, to)];
            for book in &books {
                ranges = match book {
                    Book::Subscription(subscription) => {
                        settled_within(subscription.desk.lock().ledger.settled(), &ranges)
                    }
                    Book::Snapshot(snapshot) => settled_within(&snapshot.settled, &ranges),
                };
                if ranges.is_empty() {
                    break;
                }
            }
            all = united(all, ranges.into_iter());
            from = to;
        }
        all
    }
}

/// Of these ranges, what is settled.
pub(in crate::engine::local) fn settled_within(settled: &Settled, ranges: &[(Sequence, Sequence)]) -> Ranges {
    let mut within = Ranges::new();
    for &(from, to) in ranges {
        let mut at = from;
        while let Some((unsettled, end)) = settled.next_unsettled_run(at, to) {
            if at < unsettled {
                within.push((at, unsettled));
            }
            at = end;
        }
        if at < to {
            within.push((at, to));
        }
    }
    within
}

/// Both, of which each is in order.
fn united(ranges: Ranges, more: impl Iterator<Item = (Sequence, Sequence)>) -> Ranges {
    let mut both = ranges;
    let is_sorted_behind = both.len();
    both.extend(more.filter(|(from, to)| from < to));
    if is_sorted_behind > 0 && is_sorted_behind < both.len() {
        both.sort_unstable();
    }
    let mut united: Ranges = Vec::with_capacity(both.len());
    for (from, to) in both {
        match united.last_mut() {
            Some((_, end)) if *end >= from => *end = (*end).max(to),
            _ => united.push((from, to)),
        }
    }
    united
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::settled::Outcome;

    fn ranges(pairs: &[(u64, u64)]) -> Ranges {
        pairs.iter().map(|&(from, to)| (Sequence::new(from), Sequence::new(to))).collect()
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let of = |one: &[(u64, u64)], other: &[(u64, u64)]| united(ranges(one), ranges(other).into_iter());
        assert_eq!(of(&[(1, 3), (9, 12)], &[(3, 4), (7, 10)]), ranges(&[(1, 4), (7, 12)]));
        assert_eq!(of(&[], &[(1, 2), (2, 3), (5, 5)]), ranges(&[(1, 3)]));
        assert_eq!(of(&[(1, 9)], &[(2, 3)]), ranges(&[(1, 9)]));
        assert_eq!(of(&[(1, 9)], &[]), ranges(&[(1, 9)]));
    }

    #[test]
    fn what_is_settled_is_found_between_what_is_not() {
        let mut settled = Settled::starting_at(Sequence::new(3));
        for n in [3, 4, 7, 8, 10] {
            settled.settle(Sequence::new(n), Outcome::Acked);
        }
        let within = |of: &[(u64, u64)]| settled_within(&settled, &ranges(of));
        assert_eq!(within(&[(1, 12)]), ranges(&[(1, 5), (7, 9), (10, 11)]));
        assert_eq!(within(&[(2, 4), (5, 7), (8, 11)]), ranges(&[(2, 4), (8, 9), (10, 11)]));
        assert_eq!(within(&[(5, 7)]), ranges(&[]));
    }
}
