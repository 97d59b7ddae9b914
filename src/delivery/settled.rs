//! Which messages of a topic one subscription has settled, and how: a low-water mark and its exceptions.
//!
//! Everything below the mark is settled. What is not said otherwise is told from the marks alone:
//!
//! ```text
//!   Skipped      | Acked                 | unsettled
//! ---------------+-----------------------+---------------------->  sequence
//!              start                    low
//! ```
//!
//! Only what differs from that picture is written down: whatever is settled above `low`, and below it whatever was
//! settled otherwise than by an ack. So a subscription that is acked in order writes nothing at all, and `low` rises
//! over a message without a look at any map.
//!
//! What is written down lies in *parts*, by pages of 1,024 sequences: a [`Page`] of its own where messages differ, and
//! one *stretch* for any number of whole pages in a row that were settled alike. A settled message stays as it is, so a
//! stretch can grow but is never split: settling ten million messages at once makes one part of them.

mod image;
mod page;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::sequence::Sequence;
use page::{PAGE_LEN, Page};

/// How a message was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Acked,
    Filtered,
    Skipped,
    DeadLettered,
    Discarded,
    Expired,
    Dropped,
    Removed,
}

impl Outcome {
    const ALL: [Outcome; 8] = {
        use Outcome::*;
        [Acked, Filtered, Skipped, DeadLettered, Discarded, Expired, Dropped, Removed]
    };
}

/// Which messages of a topic one subscription has settled, and how.
///
/// Invariants: `forgotten <= low < next_settled`, unless the sequences themselves are at an end; `low` is not settled;
/// of `low..next_settled` nothing is. Parts do not overlap, say nothing of what is below `start`, and say `Acked` of
/// nothing in a page that `low` has passed. Two stretches that touch differ in their outcome.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    /// What is before it was skipped when the subscription was created or sought.
    start: Sequence,
    /// How what is before it was settled is not known any more, and told as `Acked`.
    forgotten: Sequence,
    /// The first that is not settled.
    low: Sequence,
    /// The first settled one above `low`, or [`NONE`]. Saves acks in order the look at `parts`.
    next_settled: Sequence,
    /// How many are settled above `low`.
    settled_above: u64,
    /// By number of their first page.
    parts: BTreeMap<u64, Part>,
}

#[derive(Clone, Debug)]
enum Part {
    /// One page, neither empty nor settled alike throughout.
    Page(Page),
    /// Whole pages up to `end`, exclusive, all of whose messages were settled alike.
    Stretch { end: u64, outcome: Outcome },
}

impl Settled {
    /// All before `start` is settled as `Skipped`; nothing from `start` on is settled.
    pub(crate) fn starting_at(start: Sequence) -> Self {
        Settled {
            start,
            forgotten: Sequence::new(0),
            low: start,
            next_settled: NONE,
            settled_above: 0,
            parts: BTreeMap::new(),
        }
    }

    /// The first unsettled message: all below it are settled. Only rises, short of [`restart_at`](Self::restart_at).
    pub(crate) fn low(&self) -> Sequence {
        self.low
    }

    /// Settles one message; `false` if it was settled already, and then nothing changed.
    ///
    /// The ack of the lowest unsettled message costs a few instructions, whatever else is written down; any other is
    /// O(log n) in the parts.
    #[inline]
    pub(crate) fn settle(&mut self, sequence: Sequence, outcome: Outcome) -> bool {
        if sequence == self.low && outcome == Outcome::Acked && sequence < NONE {
            self.rise_to(sequence.next());
            return true;
        }
        self.settle_range(sequence, sequence.next(), outcome) == 1
    }

    /// Settles what is unsettled in `from..to`, and says how many that were. Earlier outcomes stay.
    ///
    /// Costs O(log n) a part that lies in the range, however many messages that are.
    pub(crate) fn settle_range(&mut self, from: Sequence, to: Sequence, outcome: Outcome) -> u64 {
        let from = from.max(self.low);
        if from >= to {
            return 0;
        }
        let in_order = from == self.low;
        let newly = if in_order && outcome == Outcome::Acked {
            // Below low water silence means acked: there is nothing to write down.
            let known = self.settled_within(from, to);
            self.settled_above -= known;
            (to - from) - known
        } else {
            let newly = self.write(from, to, outcome);
            self.settled_above += newly;
            if in_order {
                self.settled_above -= to - from;
            }
            newly
        };
        if in_order {
            self.rise_to(to);
        } else {
            self.next_settled = self.next_settled.min(from);
        }
        debug_assert!(self.low < self.next_settled || self.low == NONE, "low water is not settled");
        newly
    }

    pub(crate) fn is_settled(&self, sequence: Sequence) -> bool {
        sequence < self.low || (sequence >= self.next_settled && self.written(sequence).is_some())
    }

    /// Whether all of `from..to` is settled; also when there is nothing between them.
    pub(crate) fn all_settled(&self, from: Sequence, to: Sequence) -> bool {
        let from = from.max(self.low);
        from >= to || (from >= self.next_settled && self.first_unsettled(from) >= to)
    }

    /// How a message was settled; `None` if it is not.
    pub(crate) fn outcome(&self, sequence: Sequence) -> Option<Outcome> {
        if sequence < self.forgotten {
            Some(Outcome::Acked)
        } else if sequence < self.start {
            Some(Outcome::Skipped)
        } else if sequence < self.low {
            Some(self.written(sequence).unwrap_or(Outcome::Acked))
        } else if sequence < self.next_settled {
            None
        } else {
            self.written(sequence)
        }
    }

    /// Up to there, messages from `at` on stand alike: however many they are, where nothing that is written down differs.
    pub(crate) fn alike_to(&self, at: Sequence) -> Sequence {
        if let Some(&mark) = [self.forgotten, self.start].iter().find(|mark| at < **mark) {
            return mark;
        }
        let number = page_of(at);
        match self.parts.range(..=number).next_back() {
            Some((_, Part::Stretch { end, .. })) if *end > number => start_of(*end),
            Some((&page, Part::Page(_))) if page == number => at.next(),
            _ => {
                let next = self.parts.range(number..).next().map_or(NONE, |(&next, _)| start_of(next));
                if at < self.low { next.min(self.low) } else { next }
            }
        }
    }

    /// How many messages before `tail` are not settled. O(1): nothing from `tail` on may have been settled.
    pub(crate) fn unsettled_before(&self, tail: Sequence) -> u64 {
        debug_assert!(self.settled_above <= tail - self.low, "nothing is settled from the tail on");
        (tail - self.low).saturating_sub(self.settled_above)
    }

    /// The first run of unsettled messages in `from..tail`, as long as it can be: its first, and the end after its last.
    ///
    /// O(log n) in the parts, and a step for each part that is passed over.
    pub(crate) fn next_unsettled_run(&self, from: Sequence, tail: Sequence) -> Option<(Sequence, Sequence)> {
        let from = from.max(self.low);
        if from >= tail {
            return None;
        }
        if from < self.next_settled {
            return Some((from, self.next_settled.min(tail)));
        }
        let first = self.first_unsettled(from);
        (first < tail).then(|| (first, self.first_settled(first).min(tail)))
    }

    /// Frees what is known of messages below `floor`, as far as they are below `low` too: how they were settled is not
    /// asked any more, and told as `Acked` if it is.
    pub(crate) fn forget_before(&mut self, floor: Sequence) {
        let floor = floor.min(self.low);
        if floor <= self.forgotten {
            return;
        }
        self.forgotten = floor;
        if floor == self.low && self.settled_above == 0 {
            // Nothing is left to tell, not in the page that `low` is in either.
            self.parts = BTreeMap::new();
            return;
        }
        let first_kept = page_of(floor);
        while let Some(part) = self.parts.first_entry()
            && *part.key() < first_kept
        {
            cost::looked();
            if let Part::Stretch { end, outcome } = part.remove()
                && end > first_kept
            {
                self.parts.insert(first_kept, Part::Stretch { end, outcome });
            }
        }
        self.free_empty_map();
    }

    /// A seek: as if it had just been made by [`starting_at`](Self::starting_at). `start` may be below or above `low`.
    pub(crate) fn restart_at(&mut self, start: Sequence) {
        *self = Settled::starting_at(start);
    }

    /// What this has allocated, as near as can be told: a map that grew at its end, as this one mostly does.
    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let pages: usize = self.parts.values().map(Part::heap_bytes).sum();
        pages + map_bytes(self.parts.len())
    }

    /// Raises low water to `to`, and over what is settled from there on. All below `to` is settled.
    #[inline]
    fn rise_to(&mut self, to: Sequence) {
        let was = self.low;
        self.low = to;
        if to >= self.next_settled || page_of(was) != page_of(to) {
            self.low_rose(was);
        }
    }

    #[inline(never)]
    fn low_rose(&mut self, was: Sequence) {
        if self.low >= self.next_settled {
            let low = self.first_unsettled(self.low);
            self.settled_above -= low - self.low;
            self.low = low;
            self.next_settled = self.first_settled(low);
        }
        let passed = page_of(was)..page_of(self.low);
        if !passed.is_empty() && !self.parts.is_empty() {
            self.parts.extract_if(passed, |_, part| part.drop_acked()).for_each(drop);
            self.free_empty_map();
        }
    }

    /// A map that has become empty keeps a node, more than all else that an idle subscription has here.
    fn free_empty_map(&mut self) {
        if self.parts.is_empty() {
            self.parts = BTreeMap::new();
        }
    }

    /// Writes down what is unsettled in `from..to`, and says how many that were.
    fn write(&mut self, from: Sequence, to: Sequence, outcome: Outcome) -> u64 {
        let (first, last) = (page_of(from), page_of(to));
        if first == last {
            return self.write_page(first, place_of(from)..place_of(to), outcome);
        }
        let mut newly = 0;
        let mut whole = first..last;
        if place_of(from) > 0 {
            newly += self.write_page(first, place_of(from)..PAGE_LEN, outcome);
            whole.start += 1;
        }
        newly += self.write_pages(whole, outcome);
        if place_of(to) > 0 {
            newly += self.write_page(last, 0..place_of(to), outcome);
        }
        newly
    }

    fn write_page(&mut self, number: u64, places: Range<usize>, outcome: Outcome) -> u64 {
        cost::looked();
        match self.parts.range_mut(..=number).next_back() {
            Some((_, Part::Stretch { end, .. })) if *end > number => 0,
            Some((&at, Part::Page(page))) if at == number => {
                let newly = page.settle(places, outcome);
                if page.alike() == Some(outcome) {
                    self.parts.remove(&number);
                    self.write_stretch(number..number + 1, outcome);
                }
                newly as u64
            }
            _ => {
                debug_assert!(places.len() < PAGE_LEN, "a whole page is a stretch");
                let mut page = Page::default();
                let newly = page.settle(places, outcome);
                self.parts.insert(number, Part::Page(page));
                newly as u64
            }
        }
    }

    fn write_pages(&mut self, numbers: Range<u64>, outcome: Outcome) -> u64 {
        let mut newly = 0;
        let mut number = numbers.start;
        while number < numbers.end {
            let next = self.parts_from(number).next().map(|(&first, part)| (first, part.end(first)));
            match next {
                Some((first, end)) if first <= number => {
                    newly += self.write_page(number, 0..PAGE_LEN, outcome);
                    number = end;
                }
                _ => {
                    let end = next.map_or(numbers.end, |(first, _)| first.min(numbers.end));
                    newly += (end - number) * PAGE_LEN as u64;
                    self.write_stretch(number..end, outcome);
                    number = end;
                }
            }
        }
        newly
    }

    /// Writes down a stretch where there is no part, as one with its neighbours if they are like it.
    fn write_stretch(&mut self, numbers: Range<u64>, outcome: Outcome) {
        cost::looked();
        let Range { mut start, mut end } = numbers;
        if let Some((&before, part)) = self.parts.range(..start).next_back()
            && part.is_stretch_to(start, outcome)
        {
            start = before;
        }
        if let Some(&Part::Stretch { end: after, outcome: alike }) = self.parts.get(&end)
            && alike == outcome
        {
            self.parts.remove(&end);
            end = after;
        }
        self.parts.insert(start, Part::Stretch { end, outcome });
    }

    /// What is written down of a message.
    fn written(&self, sequence: Sequence) -> Option<Outcome> {
        let number = page_of(sequence);
        match self.parts.range(..=number).next_back()? {
            (_, Part::Stretch { end, outcome }) => (*end > number).then_some(*outcome),
            (&at, Part::Page(page)) => (at == number).then(|| page.outcome(place_of(sequence))).flatten(),
        }
    }

    /// The part that `number` lies in, if there is one, and all after it.
    fn parts_from(&self, number: u64) -> impl Iterator<Item = (&u64, &Part)> {
        let first = match self.parts.range(..=number).next_back() {
            Some((&first, Part::Stretch { end, .. })) if *end > number => first,
            _ => number,
        };
        self.parts.range(first..).inspect(|_| cost::looked())
    }

    /// The first unsettled message from `at` on, which is not below low water.
    fn first_unsettled(&self, mut at: Sequence) -> Sequence {
        for (&first, part) in self.parts_from(page_of(at)) {
            if start_of(first) > at {
                break;
            }
            match part {
                Part::Stretch { end, .. } => at = start_of(*end),
                Part::Page(page) => match page.first_unsettled(place_of(at)) {
                    Some(place) => return start_of(first) + place as u64,
                    None => at = start_of(first + 1),
                },
            }
        }
        at
    }

    /// The first settled message from `at` on, which is not below low water; or [`NONE`].
    fn first_settled(&self, at: Sequence) -> Sequence {
        for (&first, part) in self.parts_from(page_of(at)) {
            let from = at.max(start_of(first));
            match part {
                Part::Stretch { .. } => return from,
                Part::Page(page) => {
                    if let Some(place) = page.first_settled(place_of(from)) {
                        return start_of(first) + place as u64;
                    }
                }
            }
        }
        NONE
    }

    /// How many of `from..to` are settled; `from` is not below low water.
    fn settled_within(&self, from: Sequence, to: Sequence) -> u64 {
        if to <= self.next_settled {
            return 0;
        }
        let mut settled = 0;
        for (&first, part) in self.parts_from(page_of(from)) {
            if start_of(first) >= to {
                break;
            }
            let (page_from, page_to) = (from.max(start_of(first)), to.min(start_of(part.end(first))));
            settled += match part {
                Part::Stretch { .. } => page_to - page_from,
                Part::Page(page) => {
                    let from = place_of(page_from);
                    page.settled_within(from..from + (page_to - page_from) as usize) as u64
                }
            };
        }
        settled
    }
}

impl Part {
    /// The number of the first page after it.
    fn end(&self, first: u64) -> u64 {
        match self {
            Part::Page(_) => first + 1,
            Part::Stretch { end, .. } => *end,
        }
    }

    fn is_stretch_to(&self, number: u64, like: Outcome) -> bool {
        matches!(self, Part::Stretch { end, outcome } if *end == number && *outcome == like)
    }

    /// Drops what low water says as well, now that it has passed; `true` if nothing else is left.
    fn drop_acked(&mut self) -> bool {
        cost::looked();
        match self {
            Part::Page(page) => page.drop_acked(),
            Part::Stretch { outcome, .. } => *outcome == Outcome::Acked,
        }
    }

    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        match self {
            Part::Page(page) => page.heap_bytes(),
            Part::Stretch { .. } => 0,
        }
    }
}

fn page_of(sequence: Sequence) -> u64 {
    sequence.get() / PAGE_LEN as u64
}

fn place_of(sequence: Sequence) -> usize {
    (sequence.get() % PAGE_LEN as u64) as usize
}

fn start_of(number: u64) -> Sequence {
    Sequence::new(number.saturating_mul(PAGE_LEN as u64))
}

/// Above every message: no topic gives its last possible sequence away.
const NONE: Sequence = Sequence::new(u64::MAX);

/// What the map takes for so many parts. A node has room for 11; where a map grows at its end, each is left with 6 and one
/// more stands above it, in a node that has as many edges besides.
#[cfg(test)]
const fn map_bytes(parts: usize) -> usize {
    const NODE: usize = (size_of::<u64>() + size_of::<Part>()) * 11 + 16;
    const EDGES: usize = size_of::<usize>() * 12;
    let leaves = parts.div_ceil(7);
    leaves * NODE + leaves / 6 * (NODE + EDGES)
}

const _: () = assert!(size_of::<Part>() <= 40);

/// Counts parts looked at, so that a test can hold the cost of a call without a clock.
#[cfg(test)]
mod cost {
    use std::cell::Cell;

    thread_local! {
        static LOOKED: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn looked() {
        LOOKED.set(LOOKED.get() + 1);
    }

    /// How many parts `call` looks at.
    pub(super) fn of<R>(call: impl FnOnce() -> R) -> (R, u64) {
        let before = LOOKED.get();
        let result = call();
        (result, LOOKED.get() - before)
    }
}
#[cfg(not(test))]
mod cost {
    pub(super) fn looked() {}
}
