//! How messages get into the book: what a look at them found, and where a seek puts it.

use crate::delivery::ledger::{Entry, Ledger, Standing};
use crate::delivery::ordering::Key;
use crate::delivery::retry::Reason;
use crate::delivery::runs::Run;
use crate::delivery::settled::{Outcome, Settled};
use crate::sequence::Sequence;
use crate::time::Tick;

/// Messages that the engine is to look at, outside every lock: filter, key, delay, life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Examination {
    pub(crate) from: Sequence,
    pub(crate) to: Sequence,
    pub(crate) generation: u32,
}

/// What a look at a message found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Taken(Traits),
    FilteredOut,
    /// The filter panicked: the attempt is spent, and the message counts as taken, because dropping it would lose it.
    FilterPanicked(Traits),
    /// The log does not have it any more.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    pub(crate) key: Option<Key>,
    pub(crate) due: Tick,
    pub(crate) expires: Tick,
}

/// The most messages that are examined at a time.
pub(crate) const EXAMINE_MAX: u64 = 64;

impl Ledger {
    /// The next messages to look at, if any; they count as under way until [`handle_examined`](Self::handle_examined).
    pub(crate) fn poll_examine(&mut self, tail: Sequence) -> Option<Examination> {
        let (from, end) = self.settled.next_unsettled_run(self.cursor, tail)?;
        let to = end.min(from + EXAMINE_MAX);
        self.cursor = to;
        self.examining += 1;
        if self.rules.ordered {
            self.looks.insert(from, None);
        }
        Some(Examination { from, to, generation: self.generation })
    }

    /// What the look found, one finding a message, in order.
    ///
    /// Where keys have an order, looks are believed in theirs: what a later one found waits for what an earlier one has yet to say.
    pub(crate) fn handle_examined(&mut self, examination: Examination, findings: &[Finding], now: Tick) {
        if examination.generation != self.generation {
            return;
        }
        if self.looks.first_key_value().is_some_and(|(&first, _)| first < examination.from) {
            self.looks.insert(examination.from, Some((examination, findings.to_vec())));
            return;
        }
        self.looks.remove(&examination.from);
        self.take_all_in(examination, findings, now);
        while let Some(look) = self.looks.first_entry()
            && look.get().is_some()
        {
            if let Some((examination, findings)) = look.remove() {
                self.take_all_in(examination, &findings, now);
            }
        }
    }

    fn take_all_in(&mut self, examination: Examination, findings: &[Finding], now: Tick) {
        self.examining -= 1;
        self.turn += 1;
        let mut sequence = examination.from;
        for finding in findings {
            if !self.settled.is_settled(sequence) {
                self.take_in(sequence, *finding, now);
            }
            sequence = sequence.next();
        }
        debug_assert_eq!(sequence, examination.to, "one finding a message");
        self.drop_memories_if_done();
    }

    fn take_in(&mut self, sequence: Sequence, finding: Finding, now: Tick) {
        if let Some(memory) = self.recollect(sequence) {
            return self.take_in_again(sequence, finding, memory, now);
        }
        let (traits, panicked) = match finding {
            Finding::Gone => return self.settle(sequence, None, Outcome::Removed),
            Finding::FilteredOut => {
                self.counts.filtered += 1;
                return self.settle(sequence, None, Outcome::Filtered);
            }
            Finding::Taken(traits) => (traits, false),
            Finding::FilterPanicked(traits) => (traits, true),
        };
        if traits.expires <= now {
            self.counts.messages_expired += 1;
            return self.settle(sequence, None, Outcome::Expired);
        }
        let key = traits.key.filter(|_| self.rules.ordered);
        let not_before = if traits.due > now { traits.due } else { Tick::ZERO };
        let first = key.is_none_or(|key| self.lanes.join(key, sequence));
        let standing = match not_before {
            _ if !first => Standing::Queued,
            Tick::ZERO => Standing::Fresh,
            until => Standing::Delayed { until },
        };
        let attempts = u32::from(panicked);
        let entry = Entry {
            standing,
            attempts,
            releases: 0,
            key,
            expires: traits.expires,
            not_before,
            spared: false,
        };
        if panicked && first {
            // A delay that still runs counts on, a retry delay of the policy comes on top of it.
            let moment = now.max(not_before);
            self.fail(sequence, entry, moment, None, Reason::FilterPanicked);
        } else {
            self.put(sequence, entry);
        }
    }

    /// The life of a message is over that the subscription has not looked at. One that it has looked at is found by its own timer.
    pub(crate) fn handle_unseen_expired(&mut self, sequence: Sequence) {
        if sequence >= self.cursor && !self.settled.is_settled(sequence) {
            self.counts.messages_expired += 1;
            self.settle(sequence, None, Outcome::Expired);
        }
    }

    /// The topic dropped the message to make room: whoever holds it, holds it no more. False: it was settled already.
    pub(crate) fn handle_dropped(&mut self, sequence: Sequence) -> bool {
        if self.settled.is_settled(sequence) {
            return false;
        }
        self.dissolve_run_of(sequence);
        let key = self.end_hold(sequence);
        self.counts.discarded += 1;
        self.settle(sequence, key, Outcome::Dropped);
        true
    }

    /// The messages `[from, to)` are not in the log any more: whoever holds one, holds it no more.
    pub(crate) fn handle_removed(&mut self, from: Sequence, to: Sequence) {
        for sequence in self.entered_within(from, to) {
            let key = self.end_hold(sequence);
            self.settle(sequence, key, Outcome::Removed);
        }
        if self.settled.settle_range(from, to, Outcome::Removed) > 0 {
            self.note(from, to);
            self.forget_memories(from, to);
        }
        self.cursor = self.cursor.max(self.settled.low());
    }

    /// The messages of a range that the book holds, each with an entry of its own from now on.
    fn entered_within(&mut self, from: Sequence, to: Sequence) -> Vec<Sequence> {
        let overlaps = |run: &Run| run.open_sequences().any(|sequence| (from..to).contains(&sequence));
        let runs: Vec<_> =
            self.runs.iter().filter(|(_, run)| overlaps(run)).map(|(lease, _)| lease).collect();
        for lease in runs {
            self.dissolve_run(lease);
        }
        // A single message is the common case, and the book may be large.
        if to - from == 1 {
            return self.entries.contains_key(&from).then_some(from).into_iter().collect();
        }
        let within = |sequence: &Sequence| (from..to).contains(sequence);
        let mut entered: Vec<_> = self.entries.keys().copied().filter(within).collect();
        entered.sort_unstable();
        entered
    }

    /// A new generation: what is at `start` or after it is unsettled again, what is before it is settled; every lease has ended.
    pub(crate) fn seek_to(&mut self, start: Sequence) {
        self.new_generation();
        self.settled.restart_at(start);
        self.cursor = start;
    }

    /// A new generation that stands where the image was taken.
    pub(crate) fn seek_to_image(&mut self, image: Settled) {
        self.new_generation();
        self.settled = image;
        self.cursor = self.settled.low();
    }

    fn new_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.entries.clear();
        self.runs.clear();
        self.deadlines.clear();
        self.fresh.clear();
        self.again.clear();
        self.delayed.clear();
        self.expiring.clear();
        self.parked.clear();
        self.burying.clear();
        self.memories = None;
        self.lanes.clear();
        self.looks.clear();
        self.events.clear();
        self.news.clear();
        self.examining = 0;
        self.outstanding = 0;
        self.last_was_again = false;
    }

    /// Turns the run that holds the message, if one does, into single leases: they can then differ.
    pub(super) fn dissolve_run_of(&mut self, sequence: Sequence) {
        if let Some(lease) = self.runs.holder_of(sequence) {
            self.dissolve_run(lease);
        }
    }

    /// Gives every message a new end of life, after the subscription's rule for it changed.
    pub(crate) fn set_expiries(&mut self, expiry_of: impl Fn(Sequence) -> Tick) {
        self.dissolve_all_runs();
        for sequence in self.entries.keys().copied().collect::<Vec<_>>() {
            let (parked, burying) = (self.parked.remove(&sequence), self.burying.remove(&sequence));
            if let Some(entry) = self.lift(sequence) {
                self.put(sequence, Entry { expires: expiry_of(sequence), ..entry });
            }
            self.parked.extend(parked.map(|reason| (sequence, reason)));
            self.burying.extend(burying.map(|reason| (sequence, reason)));
        }
    }
}
