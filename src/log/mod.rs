//! The log remembers: a topic's messages in memory, each stored once, in segments that are listed in a directory.

mod body;
mod gate;
mod segment;
mod slot;
mod spare;
mod spot;
mod stage;

use std::collections::BTreeMap;

use crate::few::Few;
use crate::message::{Extras, MessageId, MessageRef};
use crate::sequence::Sequence;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Tick;

pub(crate) use body::Body;
pub(crate) use body::PART_LEN_MIN;
pub(crate) use gate::Gate;
use gate::Tail;
use segment::{Bounds, Filled};
pub(crate) use segment::{Segment, Watch};
pub(crate) use slot::Slot;
use spare::{Buffer, Spares};
pub(crate) use spot::{Spot, SpotRef};
pub(crate) use stage::Stage;

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
    spares: Spares<E>,
}

/// What the writer knows; it lives under the topic's lock.
#[derive(Debug)]
pub(crate) struct Writer<E> {
    next: Sequence,
    open: Option<Arc<Segment<E>>>,
    /// What is in the open segment.
    filled: Filled,
    /// How many places the next segment of single messages has.
    slots: usize,
    bounds: Bounds,
}

/// Events to be appended together, each piece of it as small as a segment. Made before the topic is locked.
pub(crate) struct EventBatch<E>(Few<(Buffer<E>, u64)>);

impl<E: 'static> EventBatch<E> {
    /// `bytes`: what all of them weigh.
    #[inline]
    pub(crate) fn new(stage: Stage<'_, E>, bytes: u64, weigh: impl Fn(&E) -> u64) -> Self {
        if stage.len() > segment_len_max::<E>() || bytes > SEGMENT_BYTES_MAX {
            return Self::in_pieces(stage.into_events(), weigh);
        }
        let mut pieces = Few::new();
        pieces.push((stage.into_buffer(), bytes));
        EventBatch(pieces)
    }

    fn in_pieces(events: Vec<E>, weigh: impl Fn(&E) -> u64) -> Self {
        let mut pieces = Few::new();
        let (mut piece, mut weight) = (Vec::new(), 0_u64);
        for event in events {
            let more = weigh(&event);
            let is_full =
                piece.len() == segment_len_max::<E>() || weight.saturating_add(more) > SEGMENT_BYTES_MAX;
            if is_full && !piece.is_empty() {
                pieces.push((Buffer::new(std::mem::take(&mut piece)), std::mem::take(&mut weight)));
            }
            piece.push(event);
            weight = weight.saturating_add(more);
        }
        pieces.push((Buffer::new(piece), weight));
        EventBatch(pieces)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|(buffer, _)| buffer.events().len() as u64).sum()
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = &E> {
        self.0.iter().flat_map(|(buffer, _)| buffer.events())
    }

    /// The events again, in order.
    pub(crate) fn into_events(self) -> impl Iterator<Item = E> {
        let (first, rest) = self.0.into_parts();
        first.into_iter().chain(rest).flat_map(|(buffer, _)| buffer.into_events())
    }
}

/// How many messages of this size a segment holds at most.
fn segment_len_max<E>() -> usize {
    (SEGMENT_BYTES_MAX as usize / size_of::<Slot<E>>().max(1)).clamp(1, SEGMENT_SLOTS_MAX)
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
            slots: SEGMENT_SLOTS_FIRST,
            bounds: Bounds { messages_max: segment_len_max::<E>(), bytes_max: SEGMENT_BYTES_MAX },
        }
    }

    /// Where so many messages or bytes are the most that is to be kept, segments are an eighth of that: they go as a whole.
    pub(crate) fn set_limits(&mut self, messages_max: Option<u64>, bytes_max: Option<u64>) {
        let eighth = |max: u64| (max / 8).max(1);
        let messages = messages_max.map_or(u64::MAX, eighth);
        self.bounds = Bounds {
            messages_max: usize::try_from(messages).unwrap_or(usize::MAX).min(segment_len_max::<E>()),
            bytes_max: bytes_max.map_or(SEGMENT_BYTES_MAX, eighth).min(SEGMENT_BYTES_MAX),
        };
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
            spares: Spares::new(),
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
        let is_plain = matches!(slot, Slot::Own { extras: None, .. });
        let (filled, bounds) = (writer.filled, writer.bounds);
        let fits = writer.open.as_ref().is_some_and(|open| {
            (is_plain || !open.body().is_of_parts()) && open.has_room_for(filled, 1, bytes, bounds)
        });
        if !fits {
            self.open_segment(writer, false);
        }
        let sequence = writer.next;
        if let Some(open) = &writer.open {
            open.push(&mut writer.filled, slot, bytes);
        }
        writer.next = sequence.next();
        (sequence, !fits)
    }

    /// Writes a batch behind the others; nobody sees it before [`publish_tail`](Self::publish_tail).
    pub(crate) fn append_batch(
        &self,
        writer: &mut Writer<E>,
        published: Tick,
        batch: EventBatch<E>,
        weigh: impl Fn(&E) -> u64,
    ) -> Appended
    where
        E: 'static,
    {
        let mut appended = Appended::default();
        for (buffer, bytes) in batch.0 {
            let (count, filled, bounds) = (buffer.events().len(), writer.filled, writer.bounds);
            let fits = writer.open.as_ref().is_some_and(|open| {
                open.body().is_of_parts() && open.has_room_for(filled, count, bytes, bounds)
            });
            // Where segments are to be small, and where a batch is hardly one, its messages go one by one.
            if !fits && (count < PART_LEN_MIN || count > bounds.messages_max || bytes > bounds.bytes_max) {
                appended.opened |= self.append_each(writer, published, buffer.into_events(), &weigh);
            } else {
                if !fits {
                    self.open_segment(writer, true);
                }
                if let Some(open) = &writer.open {
                    open.push_part(&mut writer.filled, published, buffer, bytes);
                }
                writer.next += count as u64;
                appended.opened |= !fits;
            }
            appended.count += count as u64;
            appended.bytes = appended.bytes.saturating_add(bytes);
        }
        appended
    }

    /// True: a new segment was opened.
    fn append_each(
        &self,
        writer: &mut Writer<E>,
        published: Tick,
        events: Vec<E>,
        weigh: &impl Fn(&E) -> u64,
    ) -> bool {
        let mut opened = false;
        for event in events {
            let bytes = weigh(&event);
            opened |= self.append(writer, Slot::own(event, published, None), bytes).1;
        }
        opened
    }

    #[inline(never)]
    fn open_segment(&self, writer: &mut Writer<E>, of_parts: bool) {
        if of_parts {
            // Places for single messages are not wasted on a publisher of batches who sends one of them at times.
            writer.slots = SEGMENT_SLOTS_FIRST;
        } else if writer.open.as_ref().is_some_and(|open| !open.body().is_of_parts()) {
            writer.slots = (writer.slots * SEGMENT_GROWTH).min(SEGMENT_SLOTS_MAX);
        }
        let segment = self.make_segment(writer, of_parts);
        self.directory.write().insert(writer.next, segment.clone());
        writer.open = Some(segment);
        writer.filled = Filled::default();
    }

    fn make_segment(&self, writer: &Writer<E>, of_parts: bool) -> Arc<Segment<E>> {
        let count = writer.slots.min(writer.bounds.messages_max);
        let suits = |segment: &Segment<E>| {
            segment.body().is_of_parts() == of_parts && (of_parts || segment.body().len() == count)
        };
        if let Some(mut spare) = self.spares.take_segment(suits)
            && let Some(unique) = Arc::get_mut(&mut spare)
        {
            unique.restart_at(writer.next);
            return spare;
        }
        let body = if of_parts { Body::of_parts() } else { Body::of_messages(count) };
        Arc::new(Segment::new(writer.next, body))
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
        }
        let mut directory = self.directory.write();
        let removed = directory.remove(&segment.first());
        let floor = directory.first_key_value().map_or(segment.end(), |(&first, _)| first);
        self.floor.store(floor.get(), Ordering::Relaxed);
        removed
    }

    /// A segment that was taken out is used again if nobody else holds it. Drops what is in it: call it outside every lock.
    pub(crate) fn recycle(&self, segment: Arc<Segment<E>>) {
        self.spares.put(segment);
    }

    /// To lay out a batch of so many events, as far as is known.
    pub(crate) fn stage(&self, expected: usize) -> Stage<'_, E>
    where
        E: 'static,
    {
        Stage::new(&self.spares, expected)
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
mod tests;
