//! What a book that was read from disk remembers of messages that it has not looked at again.
//!
//! A book's image says of each unsettled message how often it was handed out and what became of that, but not its key or its life: those are the message's own, and are learnt
//! again by a look, as when it was new. So a book that is read from its image, or told by a journal what happened after it, begins at low water with *memories*, and looks at every
//! message up to the last of them before it believes that anything is plain. [`Ledger::poll_recall`] says what to look at; a receiver that comes first does the same.

use std::collections::{BTreeMap, HashSet};

use crate::delivery::intake::{Examination, Finding};
use crate::delivery::ledger::{Entry, Ledger, Standing};
use crate::delivery::ordering::Key;
use crate::delivery::retry::Reason;
use crate::delivery::settled::Outcome;
use crate::sequence::Sequence;
use crate::time::Tick;

/// Of a message without an attempt there is nothing to remember: it is as good as new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) attempts: u32,
    pub(super) was: Was,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Was {
    /// To be handed out again, not before this.
    Waiting {
        not_before: Tick,
    },
    Leased,
    /// Leased, and its transaction waited for space: the attempt is not spent.
    Spared,
    /// Leased, until everything ended.
    Ended {
        at: Tick,
    },
    /// On its way to the dead-letter topic, or kept from it.
    Parked {
        reason: Reason,
    },
}

/// By the first message of a range that does not overlap any other.
#[derive(Debug, Default)]
pub(super) struct Memories {
    ranges: BTreeMap<Sequence, (Sequence, Memory)>,
    /// Of a key's run of leases the first has been recalled: what follows it in the run was released with it.
    ended: HashSet<Key>,
}

impl Memories {
    pub(super) fn get(&self, sequence: Sequence) -> Option<&Memory> {
        let (_, (end, memory)) = self.ranges.range(..=sequence).next_back()?;
        (sequence < *end).then_some(memory)
    }

    /// Of these messages this is remembered, and nothing else any more.
    pub(super) fn set(&mut self, from: Sequence, to: Sequence, memory: Memory) {
        self.forget(from, to);
        if from < to {
            self.ranges.insert(from, (to, memory));
        }
    }

    pub(super) fn forget(&mut self, from: Sequence, to: Sequence) {
        if from >= to {
            return;
        }
        if let Some((&first, (end, memory))) = self.ranges.range_mut(..from).next_back()
            && *end > from
        {
            let (after, memory) = (*end, memory.clone());
            *end = from;
            debug_assert!(first < from);
            self.ranges.insert(from, (after, memory));
        }
        while let Some((&first, _)) = self.ranges.range(from..to).next() {
            if let Some((end, memory)) = self.ranges.remove(&first)
                && end > to
            {
                self.ranges.insert(to, (end, memory));
            }
        }
    }

    /// After the last that is remembered.
    pub(super) fn end(&self) -> Option<Sequence> {
        self.ranges.last_key_value().map(|(_, (end, _))| *end)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Sequence, Sequence, &Memory)> {
        self.ranges.iter().map(|(from, (to, memory))| (*from, *to, memory))
    }
}

/// Told by a journal, after the book was read from its image, what happened since.
impl Ledger {
    /// These were settled. Those of them that were already stay as they are.
    pub(crate) fn replay_settled(&mut self, from: Sequence, to: Sequence, outcome: Outcome) {
        let newly = self.settled.settle_range(from, to, outcome);
        let counts = &mut self.counts;
        let count = match outcome {
            Outcome::Acked => Some(&mut counts.acked),
            Outcome::Filtered => Some(&mut counts.filtered),
            Outcome::DeadLettered => Some(&mut counts.dead_lettered),
            Outcome::Discarded | Outcome::Dropped => Some(&mut counts.discarded),
            Outcome::Expired => Some(&mut counts.messages_expired),
            Outcome::Skipped | Outcome::Removed => None,
        };
        if let Some(count) = count {
            *count = count.saturating_add(newly);
        }
        self.forget_memories(from, to);
        self.cursor = self.cursor.max(self.settled.low());
    }

    /// These were handed out, for the `attempts`-th time. With none, they are as new.
    pub(crate) fn replay_attempts(&mut self, from: Sequence, to: Sequence, attempts: u32) {
        self.remember(from, to, Memory { attempts, was: Was::Leased });
    }

    /// This one is to come back at `until`; held by nobody meanwhile.
    pub(crate) fn replay_delayed(&mut self, sequence: Sequence, until: Tick, attempts: u32) {
        let was = Was::Waiting { not_before: until };
        self.remember(sequence, sequence.next(), Memory { attempts, was });
    }

    /// This one was due to be dead-lettered.
    pub(crate) fn replay_parked(&mut self, sequence: Sequence, reason: Reason, attempts: u32) {
        let was = Was::Parked { reason };
        self.remember(sequence, sequence.next(), Memory { attempts: attempts.max(1), was });
    }

    fn remember(&mut self, from: Sequence, to: Sequence, memory: Memory) {
        debug_assert!(self.entries.is_empty(), "a replay comes before all looks");
        let from = from.max(self.settled.low());
        let one_settled = to - from == 1 && self.settled.is_settled(from);
        if memory.attempts == 0 || one_settled {
            self.forget_memories(from, to);
        } else {
            self.memories.get_or_insert_default().set(from, to, memory);
        }
    }

    /// The replay is over and the book goes on: what was leased is leased no more, and failed at `now`.
    pub(crate) fn resume(&mut self, now: Tick) {
        let Some(memories) = &mut self.memories else { return };
        for (_, memory) in memories.ranges.values_mut() {
            if memory.was == Was::Leased {
                memory.was = Was::Ended { at: now };
            }
        }
        self.drop_memories_if_done();
    }

    /// No message from here on is settled or remembered. A book that reaches beyond its topic's end is no book of that topic.
    pub(crate) fn reach(&self) -> Sequence {
        let remembered = self.memories.as_ref().and_then(|memories| memories.end());
        self.settled.end().max(remembered.unwrap_or(Sequence::FIRST))
    }
}

/// Learning again what the image does not say.
impl Ledger {
    /// The next messages to look at because the book remembers something of them, or of later ones. To be answered, as any look, with
    /// [`handle_examined`](Ledger::handle_examined).
    pub(crate) fn poll_recall(&mut self, tail: Sequence) -> Option<Examination> {
        let end = self.memories.as_ref()?.end().unwrap_or(Sequence::FIRST);
        let examination = self.poll_examine(end.min(tail));
        if examination.is_none() {
            self.drop_memories_if_done();
        }
        examination
    }

    /// How many messages are to be dead-lettered that the book has not looked at again.
    pub(super) fn remembered_as_parked(&self) -> u64 {
        let parked = |memory: &Memory| matches!(memory.was, Was::Parked { .. });
        let Some(memories) = &self.memories else { return 0 };
        memories.iter().filter(|memory| parked(memory.2)).map(|(from, to, _)| to - from).sum()
    }

    pub(super) fn is_remembered_as_parked(&self, sequence: Sequence) -> bool {
        let memory = self.memories.as_ref().and_then(|memories| memories.get(sequence));
        matches!(memory, Some(Memory { was: Was::Parked { .. }, .. }))
    }

    pub(super) fn forget_memories(&mut self, from: Sequence, to: Sequence) {
        if let Some(memories) = &mut self.memories {
            memories.forget(from, to);
        }
    }

    /// Once everything is looked at, or settled, the book is as any other.
    pub(super) fn drop_memories_if_done(&mut self) {
        let end = self.memories.as_ref().map(|memories| memories.end());
        if self.examining == 0 && end.is_some_and(|end| end.is_none_or(|end| end <= self.cursor)) {
            self.memories = None;
        }
    }

    /// What the book remembers of a message that it looks at now; it will not ask again.
    pub(super) fn recollect(&mut self, sequence: Sequence) -> Option<Memory> {
        let memories = self.memories.as_mut()?;
        let memory = memories.get(sequence)?.clone();
        memories.forget(sequence, sequence.next());
        Some(memory)
    }

    /// [`take_in`](Ledger::take_in) of a message that was handed out before everything ended.
    pub(super) fn take_in_again(&mut self, sequence: Sequence, finding: Finding, memory: Memory, now: Tick) {
        let Memory { attempts, was } = memory;
        let (traits, panicked) = match finding {
            Finding::Taken(traits) => (traits, false),
            Finding::FilterPanicked(traits) => (traits, true),
            Finding::Gone => return self.settle(sequence, None, Outcome::Removed),
            Finding::FilteredOut => {
                // The filter took it once: what it says now must not lose a dead letter.
                if let Was::Parked { reason } = was {
                    let entry = Entry::waiting(attempts, None, Tick::NEVER);
                    return self.put_burying(sequence, entry, reason);
                }
                self.counts.filtered += 1;
                return self.settle(sequence, None, Outcome::Filtered);
            }
        };
        let key = traits.key.filter(|_| self.rules.ordered);
        let ends = self.end_again(&was, key);
        if traits.expires <= now {
            self.counts.messages_expired += 1;
            return self.settle(sequence, None, Outcome::Expired);
        }
        if let Some(key) = key {
            self.lanes.join(key, sequence);
        }
        // Its publish delay can still run: a filter that panicked spent the attempt.
        let due = if traits.due > now { traits.due } else { Tick::ZERO };
        let entry = Entry { not_before: due, ..Entry::waiting(attempts, key, traits.expires) };
        match (was, ends) {
            (Was::Parked { reason }, _) => self.put_burying(sequence, entry, reason),
            (_, End::Released) => {
                let entry = Entry { attempts: entry.attempts.saturating_sub(1), releases: 1, ..entry };
                self.wait_again(sequence, entry, panicked, now);
            }
            (Was::Ended { at }, _) if !panicked => self.fail(sequence, entry, at, None, Reason::Expired),
            (Was::Waiting { not_before }, _) if not_before > now => {
                self.wait_again(sequence, Entry { not_before: not_before.max(due), ..entry }, panicked, now);
            }
            _ => self.wait_again(sequence, entry, panicked, now),
        }
    }

    /// How the message's lease ended, and what that counts as. Of a key's run only the first failed; those after it were released with it.
    fn end_again(&mut self, was: &Was, key: Option<Key>) -> End {
        let first = match was {
            Was::Waiting { .. } | Was::Parked { .. } => return End::Long,
            Was::Leased | Was::Spared | Was::Ended { .. } => self.note_ended(key),
        };
        if first && *was != Was::Spared {
            self.counts.leases_expired += 1;
            End::Failed
        } else {
            self.counts.released += 1;
            End::Released
        }
    }

    /// A filter that panics spends an attempt at each look.
    fn wait_again(&mut self, sequence: Sequence, entry: Entry, panicked: bool, now: Tick) {
        if !panicked {
            return self.put_waiting(sequence, entry);
        }
        let entry = Entry { attempts: entry.attempts.saturating_add(1), ..entry };
        if entry.key.is_none_or(|key| self.lanes.is_head(key, sequence)) {
            let moment = now.max(entry.not_before);
            self.fail(sequence, entry, moment, None, Reason::FilterPanicked);
        } else {
            self.put_waiting(sequence, entry);
        }
    }

    /// False: an earlier lease of the same key's run has ended before this one.
    fn note_ended(&mut self, key: Option<Key>) -> bool {
        let Some(memories) = &mut self.memories else { return true };
        key.is_none_or(|key| memories.ended.insert(key))
    }
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Before everything did.
    Long,
    Failed,
    Released,
}

impl Entry {
    /// Nobody holds it; where it stands is for the caller to say.
    fn waiting(attempts: u32, key: Option<Key>, expires: Tick) -> Self {
        let (standing, not_before) = (Standing::Queued, Tick::ZERO);
        Entry { standing, attempts, releases: 0, key, expires, not_before, spared: false }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a list with a place for each message.
        #[test]
        fn ranges_are_what_single_messages_would_be(calls in prop::collection::vec((0..30_u64, 0..12_u64, 0..4_u32), 1..20)) {
            let mut memories = Memories::default();
            let mut list = [0_u32; 50];
            for (from, len, attempts) in calls {
                let (first, end) = (Sequence::new(from), Sequence::new(from + len));
                list[from as usize..(from + len) as usize].fill(attempts);
                match attempts {
                    0 => memories.forget(first, end),
                    _ => memories.set(first, end, Memory { attempts, was: Was::Leased }),
                }
                let told = |n: &u64| memories.get(Sequence::new(*n)).map_or(0, |memory| memory.attempts);
                prop_assert_eq!((0..50).map(|n| told(&n)).collect::<Vec<_>>(), list);
                let last = list.iter().rposition(|&attempts| attempts > 0);
                prop_assert_eq!(memories.end(), last.map(|last| Sequence::new(last as u64 + 1)));
                let ends: Vec<_> = memories.iter().map(|(from, to, _)| (from, to)).collect();
                prop_assert!(ends.iter().all(|(from, to)| from < to) && ends.is_sorted_by(|a, b| a.1 <= b.0), "{ends:?}");
            }
        }
    }
}
