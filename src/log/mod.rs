//! The log remembers: a topic's messages in memory, each stored once, in segments that are listed in a directory.

mod gate;
mod segment;

use std::collections::BTreeMap;

use crate::message::{Extras, MessageId, MessageRef};
use crate::sequence::Sequence;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Tick;

pub(crate) use gate::Gate;
use gate::Tail;
use segment::Filled;
pub(crate) use segment::{Segment, Slot, Slots, Spot, SpotRef, Watch};

use std::sync::Arc;

/// The first segment of a topic is small, so that ten thousand idle topics cost little; each that fills up is followed by a larger one.
const SEGMENT_SLOTS_FIRST: usize = 16;
const SEGMENT_SLOTS_MAX: usize = 256;
const SEGMENT_GROWTH: usize = 4;
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 20;

/// A topic's messages in memory. Readers walk it without a lock of the topic's; one writer at a time appends, under the topic's lock.
///
/// The directory is consulted once per look-up; no segment points to the next, so that a settled one in the middle goes while an older
/// message is stuck, and nothing is dropped recursively.
///
/// Invariant: every sequence below `tail` that is in the directory has its slot written.
#[derive(Debug)]
pub(crate) struct ResidentLog<E> {
    incarnation: u64,
    tail: Tail,
    /// At or before the oldest message that is kept; rises.
    floor: AtomicU64,
    directory: RwLock<BTreeMap<Sequence, Arc<Segment<E>>>>,
}

/// What the writer knows; it lives under the topic's lock.
#[derive(Debug)]
pub(crate) struct Writer<E> {
    next: Sequence,
    open: Option<Arc<Segment<E>>>,
    /// What is in the open segment.
    filled: Filled,
    /// Those of a segment that went, for the next one.
    spare: Option<Slots<E>>,
    slots: usize,
    slots_max: usize,
    bytes_max: u64,
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Appended {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) opened: bool,
}

impl<E> Writer<E> {
    pub(crate) fn new() -> Self {
        Writer {
            next: Sequence::FIRST,
            open: None,
            filled: Filled::default(),
            spare: None,
            slots: SEGMENT_SLOTS_FIRST,
            slots_max: SEGMENT_SLOTS_MAX,
            bytes_max: SEGMENT_BYTES_MAX,
        }
    }

    /// Where so many messages or bytes are the most that is to be kept, segments are an eighth of that: they go as a whole.
    pub(crate) fn set_limits(&mut self, messages_max: Option<u64>, bytes_max: Option<u64>) {
        let eighth = |max: u64| (max / 8).max(1);
        let messages = messages_max.map_or(u64::MAX, eighth);
        self.slots_max = usize::try_from(messages).unwrap_or(usize::MAX).min(SEGMENT_SLOTS_MAX);
        self.bytes_max = bytes_max.map_or(SEGMENT_BYTES_MAX, eighth).min(SEGMENT_BYTES_MAX);
    }

    /// The sequence that the next message gets.
    pub(crate) fn next(&self) -> Sequence {
        self.next
    }

    /// Sequences that nobody needs the messages of: they were published to nobody.
    pub(crate) fn skip(&mut self, count: u64) {
        self.open = None;
        self.next += count;
    }
}

impl<E> ResidentLog<E> {
    pub(crate) fn new(incarnation: u64) -> Self {
        ResidentLog {
            incarnation,
            tail: Tail::new(Sequence::FIRST),
            floor: AtomicU64::new(Sequence::FIRST.get()),
            directory: RwLock::new(BTreeMap::new()),
        }
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The sequence after the newest message that readers may see.
    pub(crate) fn tail(&self) -> Sequence {
        self.tail.get()
    }

    /// At or before the oldest message that is kept. One load.
    pub(crate) fn floor(&self) -> Sequence {
        Sequence::new(self.floor.load(Ordering::Relaxed))
    }

    /// Shows readers all that was appended.
    pub(crate) fn publish_tail(&self, writer: &Writer<E>) {
        self.tail.set(writer.next);
    }

    /// Shows readers all that was appended once the gate opens; then [`ungate`](Self::ungate) it, before anybody else appends.
    pub(crate) fn publish_tail_behind(&self, gate: &Arc<Gate>, writer: &Writer<E>) {
        self.tail.set_behind(gate, writer.next);
    }

    /// The gate is open: the tail is a plain number again.
    pub(crate) fn ungate(&self) {
        self.tail.ungate();
    }

    /// Writes one message behind the others; nobody sees it before [`publish_tail`](Self::publish_tail). True: it opened a new segment.
    #[inline]
    pub(crate) fn append(&self, writer: &mut Writer<E>, slot: Slot<E>, bytes: u64) -> (Sequence, bool) {
        let filled = writer.filled;
        let fits = writer
            .open
            .as_ref()
            .is_some_and(|open| open.has_room_for(filled, bytes, writer.slots_max, writer.bytes_max));
        if !fits {
            self.open_segment(writer);
        }
        let sequence = writer.next;
        if let Some(open) = &writer.open {
            open.push(&mut writer.filled, slot, bytes);
        }
        writer.next = sequence.next();
        (sequence, !fits)
    }

    /// [`append`](Self::append) of many, each with its weight.
    pub(crate) fn append_all(
        &self,
        writer: &mut Writer<E>,
        slots: impl Iterator<Item = (Slot<E>, u64)>,
    ) -> Appended {
        let mut appended = Appended::default();
        for (slot, bytes) in slots {
            let (_, opened) = self.append(writer, slot, bytes);
            appended.count += 1;
            appended.bytes = appended.bytes.saturating_add(bytes);
            appended.opened |= opened;
        }
        appended
    }

    #[inline(never)]
    fn open_segment(&self, writer: &mut Writer<E>) {
        if writer.open.take().is_some() {
            writer.slots = (writer.slots * SEGMENT_GROWTH).min(SEGMENT_SLOTS_MAX);
        }
        let by_size = (SEGMENT_BYTES_MAX as usize / size_of::<Slot<E>>().max(1)).max(1);
        let count = writer.slots.min(writer.slots_max).min(by_size);
        let spare = writer.spare.take().filter(|spare| spare.len() == count);
        let slots = spare.unwrap_or_else(|| Segment::make_slots(count));
        let segment = Arc::new(Segment::new(writer.next, slots));
        self.directory.write().insert(writer.next, segment.clone());
        writer.open = Some(segment);
        writer.filled = Filled::default();
    }

    /// Where a message is kept, if it is.
    pub(crate) fn find(&self, sequence: Sequence) -> Option<Spot<E>> {
        let segment = self.segment_of(sequence)?;
        Spot::new(segment, sequence).ok()
    }

    pub(crate) fn segment_of(&self, sequence: Sequence) -> Option<Arc<Segment<E>>> {
        let directory = self.directory.read();
        let (_, segment) = directory.range(..=sequence).next_back()?;
        segment.covers(sequence).then(|| segment.clone())
    }

    /// The segment that starts at `from` or after it, oldest first.
    pub(crate) fn segment_from(&self, from: Sequence) -> Option<Arc<Segment<E>>> {
        self.directory.read().range(from..).next().map(|(_, segment)| segment.clone())
    }

    /// The oldest message that is kept; the tail when none is.
    pub(crate) fn first_kept(&self) -> Sequence {
        self.directory.read().first_key_value().map_or_else(|| self.tail(), |(&first, _)| first)
    }

    /// The first message kept that was published at `time` or later; the tail when there is none. O(log n).
    pub(crate) fn first_at(&self, time: Tick) -> Sequence {
        // Publish times rise with sequences, so segments and slots are in order of time.
        let starts: Vec<_> = {
            let directory = self.directory.read();
            directory.values().cloned().collect()
        };
        let after =
            starts.partition_point(|segment| segment.first_published().is_some_and(|first| first < time));
        let inside = after.checked_sub(1).and_then(|at| starts[at].first_at(time));
        let next = || starts.get(after).map(|segment| segment.first());
        inside.or_else(next).unwrap_or_else(|| self.tail()).min(self.tail())
    }

    /// The stretches in `[from, tail)` that are not kept.
    pub(crate) fn gaps(&self, from: Sequence) -> Vec<(Sequence, Sequence)> {
        // The tail before the directory: what is appended in between is no gap.
        let tail = self.tail();
        let directory = self.directory.read();
        let mut gaps = Vec::new();
        let mut at = directory
            .range(..=from)
            .next_back()
            .filter(|(_, segment)| segment.covers(from))
            .map_or(from, |(_, segment)| segment.end());
        for (&first, segment) in directory.range(at..) {
            if at < first {
                gaps.push((at, first));
            }
            at = segment.end();
        }
        if at < tail {
            gaps.push((at, tail));
        }
        gaps
    }

    /// Takes a segment out. Its messages go when the last reader lets go of it; drop what this returns outside every lock.
    pub(crate) fn remove(
        &self,
        writer: &mut Writer<E>,
        segment: &Arc<Segment<E>>,
    ) -> Option<Arc<Segment<E>>> {
        if writer.open.as_ref().is_some_and(|open| Arc::ptr_eq(open, segment)) {
            writer.open = None;
            writer.slots = SEGMENT_SLOTS_FIRST;
            // An idle topic keeps little.
            writer.spare = writer.spare.take().filter(|spare| spare.len() <= SEGMENT_SLOTS_FIRST);
        }
        let mut directory = self.directory.write();
        let removed = directory.remove(&segment.first());
        let floor = directory.first_key_value().map_or(segment.end(), |(&first, _)| first);
        self.floor.store(floor.get(), Ordering::Relaxed);
        removed
    }

    /// The places of a segment that was taken out, if nobody else holds it, for [`keep_spare`](Self::keep_spare). Drops what is in it: call it outside every lock.
    pub(crate) fn empty(segment: Arc<Segment<E>>) -> Option<Slots<E>> {
        Arc::try_unwrap(segment).ok().map(Segment::into_empty_slots)
    }

    /// The next segment of this size is made of these. What is not needed comes back, to be dropped outside every lock.
    pub(crate) fn keep_spare(writer: &mut Writer<E>, slots: Slots<E>) -> Option<Slots<E>> {
        let wanted = if writer.open.is_some() { SEGMENT_SLOTS_MAX } else { SEGMENT_SLOTS_FIRST };
        if slots.len() != wanted {
            return Some(slots);
        }
        writer.spare.replace(slots)
    }

    /// Takes all segments out; drop them outside every lock.
    pub(crate) fn clear(&self, writer: &mut Writer<E>) -> Vec<Arc<Segment<E>>> {
        writer.open = None;
        std::mem::take(&mut *self.directory.write()).into_values().collect()
    }

    /// A view of the message in a place that a lot has.
    pub(crate) fn message_at<'a>(&self, place: SpotRef<'a, E>) -> MessageRef<'a, E> {
        place.message(MessageId::new(self.incarnation, place.sequence()))
    }

    /// A view of the message in a spot.
    pub(crate) fn message<'a>(&self, spot: &'a Spot<E>) -> MessageRef<'a, E> {
        spot.message(MessageId::new(self.incarnation, spot.sequence()))
    }

    pub(crate) fn extras<'a>(&self, spot: &'a Spot<E>) -> (Tick, Option<&'a Extras>) {
        spot.published_and_extras()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(event: u64, at: u64) -> Slot<u64> {
        Slot::own(event, Tick::from_nanos(at), None)
    }

    fn filled(count: u64) -> (ResidentLog<u64>, Writer<u64>) {
        let (log, mut writer) = (ResidentLog::new(1), Writer::new());
        for n in 1..=count {
            log.append(&mut writer, own(n * 10, n), 8);
        }
        log.publish_tail(&writer);
        (log, writer)
    }

    #[test]
    fn a_slot_of_a_plain_number_takes_no_more_than_four_words() {
        assert!(size_of::<std::sync::OnceLock<Slot<u64>>>() <= 32);
    }

    #[test]
    fn what_was_appended_is_found_by_its_sequence() {
        let (log, _writer) = filled(1_000);
        for n in 1..=1_000 {
            let spot = log.find(Sequence::new(n)).unwrap();
            assert_eq!(*log.message(&spot), n * 10);
        }
        assert!(log.find(Sequence::new(1_001)).is_none());
        assert!(log.find(Sequence::new(0)).is_none());
    }

    #[test]
    fn a_segment_in_the_middle_goes_alone_and_leaves_a_gap() {
        let (log, mut writer) = filled(1_000);
        let middle = log.segment_of(Sequence::new(100)).unwrap();
        drop(log.remove(&mut writer, &middle));
        assert!(log.find(Sequence::new(100)).is_none());
        assert!(log.find(middle.end()).is_some());
        assert_eq!(log.gaps(Sequence::new(1)), [(middle.first(), middle.end())]);
        assert_eq!(log.gaps(middle.first().next()), [(middle.first().next(), middle.end())]);
        assert_eq!(log.gaps(middle.end()), []);
    }

    #[test]
    fn a_time_finds_the_first_message_published_then_or_later() {
        let (log, _writer) = filled(1_000);
        for at in [0, 1, 16, 17, 500, 1_000] {
            assert_eq!(log.first_at(Tick::from_nanos(at)), Sequence::new(at.max(1)));
        }
        assert_eq!(log.first_at(Tick::from_nanos(1_001)), Sequence::new(1_001));
    }

    #[test]
    fn a_segment_closes_at_its_bytes_too() {
        let (log, mut writer) = (ResidentLog::new(1), Writer::new());
        for n in 0..4 {
            log.append(&mut writer, own(n, n + 1), SEGMENT_BYTES_MAX);
        }
        log.publish_tail(&writer);
        assert_eq!(log.directory.read().len(), 4, "one message of a segment's size is a segment");
    }
}
