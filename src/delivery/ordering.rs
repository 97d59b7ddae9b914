//! Ordering keys: per key, one run of leases at a time, in publish order.

use std::collections::{HashMap, VecDeque};

use crate::sequence::Sequence;

/// An ordering key as the ledger knows it: its hash. Two keys of one hash wait for each other and lose nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

/// The unsettled messages of one key that the subscription has looked at, in publish order.
///
/// Invariant: `members` rises; the first `leased` of it are leased (a run, to one subscriber); the others wait.
#[derive(Debug, Default)]
struct Lane {
    members: VecDeque<Sequence>,
    leased: usize,
}

/// Every key's lane. A key with nothing unsettled has none.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: HashMap<Key, Lane>,
}

impl Lanes {
    /// Queues a message behind its key. True: it is the first, and may go.
    pub(crate) fn join(&mut self, key: Key, sequence: Sequence) -> bool {
        let lane = self.lanes.entry(key).or_default();
        debug_assert!(lane.members.back().is_none_or(|&last| last < sequence), "a lane rises");
        lane.members.push_back(sequence);
        lane.members.len() == 1
    }

    /// The first of the key that is unsettled.
    pub(crate) fn head(&self, key: Key) -> Option<Sequence> {
        self.lanes.get(&key)?.members.front().copied()
    }

    /// Whether no earlier message of the key is unsettled.
    pub(crate) fn is_head(&self, key: Key, sequence: Sequence) -> bool {
        self.head(key) == Some(sequence)
    }

    /// How many unsettled messages of the key are before this one.
    pub(crate) fn place(&self, key: Key, sequence: Sequence) -> Option<usize> {
        self.lanes.get(&key)?.members.binary_search(&sequence).ok()
    }

    /// The unsettled message of the key that is next before this one.
    pub(crate) fn before(&self, key: Key, sequence: Sequence) -> Option<Sequence> {
        let place = self.place(key, sequence)?;
        self.lanes.get(&key)?.members.get(place.checked_sub(1)?).copied()
    }

    /// The next of the key that could join the run that is being leased.
    pub(crate) fn follower(&self, key: Key) -> Option<Sequence> {
        let lane = self.lanes.get(&key)?;
        lane.members.get(lane.leased).copied()
    }

    /// The message joins the run at its end: it is the head, or the follower.
    pub(crate) fn lease(&mut self, key: Key, sequence: Sequence) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            debug_assert_eq!(lane.members.get(lane.leased), Some(&sequence), "a run has no gaps");
            lane.leased += 1;
        }
    }

    /// Ends the run from this member on: gives back every member from it to the run's end.
    pub(crate) fn cut_run(&mut self, key: Key, sequence: Sequence) -> Vec<Sequence> {
        let Some(lane) = self.lanes.get_mut(&key) else { return Vec::new() };
        let Ok(at) = lane.members.binary_search(&sequence) else { return Vec::new() };
        if at >= lane.leased {
            return Vec::new();
        }
        let cut = lane.members.range(at..lane.leased).copied().collect();
        lane.leased = at;
        cut
    }

    /// The message is settled. Gives the message that is now first and not leased, if this made one so.
    pub(crate) fn settle(&mut self, key: Key, sequence: Sequence) -> Option<Sequence> {
        let lane = self.lanes.get_mut(&key)?;
        let at = lane.members.binary_search(&sequence).ok()?;
        lane.members.remove(at);
        if at < lane.leased {
            lane.leased -= 1;
        }
        if lane.members.is_empty() {
            self.lanes.remove(&key);
            return None;
        }
        (at == 0 && lane.leased == 0).then(|| lane.members.front().copied()).flatten()
    }

    pub(crate) fn clear(&mut self) {
        self.lanes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key(7);

    fn seq(n: u64) -> Sequence {
        Sequence::new(n)
    }

    #[test]
    fn a_run_is_cut_from_a_member_to_its_end_and_the_head_is_freed_by_settling() {
        let mut lanes = Lanes::default();
        assert!(lanes.join(KEY, seq(1)));
        for n in [4, 6, 9] {
            assert!(!lanes.join(KEY, seq(n)));
        }
        for n in [1, 4, 6] {
            assert_eq!(lanes.follower(KEY), Some(seq(n)));
            lanes.lease(KEY, seq(n));
        }
        assert_eq!(lanes.cut_run(KEY, seq(4)), [seq(4), seq(6)]);
        assert_eq!(lanes.cut_run(KEY, seq(9)), []);
        assert!(lanes.is_head(KEY, seq(1)) && !lanes.is_head(KEY, seq(4)));
        assert_eq!(lanes.settle(KEY, seq(1)), Some(seq(4)), "the next of the key may go");
        assert_eq!(lanes.settle(KEY, seq(6)), None, "one in the middle frees nobody");
        assert_eq!(lanes.settle(KEY, seq(4)), Some(seq(9)));
        assert_eq!(lanes.settle(KEY, seq(9)), None);
        assert!(lanes.lanes.is_empty(), "an idle key costs nothing");
    }
}
