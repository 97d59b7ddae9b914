//! One stretch of a topic's log: slots that are written once and then only read.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};

use crate::contain::contained;
use crate::message::{Extras, MessageId, MessageRef};
use crate::sequence::Sequence;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Tick;

/// One message's place.
pub(crate) enum Slot<E> {
    /// The message itself.
    Own { event: E, published: NonZeroU64, extras: Option<Box<Extras>> },
    /// A dead letter: the event stays where it was published, and is kept by this.
    Shared(Box<Shared<E>>),
}

pub(crate) struct Shared<E> {
    origin: Spot<E>,
    published: Tick,
    extras: Extras,
}

impl<E> Slot<E> {
    pub(crate) fn own(event: E, published: Tick, extras: Option<Box<Extras>>) -> Self {
        // The start of the time line is 1970: a clock that reads it has nothing to lose by a nanosecond.
        let published = NonZeroU64::new(published.nanos()).unwrap_or(NonZeroU64::MIN);
        Slot::Own { event, published, extras }
    }

    /// The event of `origin` under new attributes. A dead letter of a dead letter shares the first origin.
    pub(crate) fn shared(origin: &Spot<E>, published: Tick, extras: Extras) -> Self {
        let origin = match origin.slot() {
            Slot::Own { .. } => origin.clone(),
            Slot::Shared(shared) => shared.origin.clone(),
        };
        Slot::Shared(Box::new(Shared { origin, published, extras }))
    }

    fn event(&self) -> &E {
        match self {
            Slot::Own { event, .. } => event,
            Slot::Shared(shared) => shared.origin.slot().event(),
        }
    }

    fn published(&self) -> Tick {
        match self {
            Slot::Own { published, .. } => Tick::from_nanos(published.get()),
            Slot::Shared(shared) => shared.published,
        }
    }

    fn extras(&self) -> Option<&Extras> {
        match self {
            Slot::Own { extras, .. } => extras.as_deref(),
            Slot::Shared(shared) => Some(&shared.extras),
        }
    }
}

impl<E> fmt::Debug for Slot<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.published()).finish()
    }
}

/// Who keeps a segment alive, as far as the topic last looked: see the topic's reclaiming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nobody has looked yet, or all had settled it when somebody looked.
    Nobody,
    /// The subscription or snapshot of this number still needed it.
    Book(u64),
}

/// Consecutive messages. Slots are written in order, by the topic's one writer; a slot below the log's tail never changes.
#[repr(C)]
pub(crate) struct Segment<E> {
    first: Sequence,
    slots: Slots<E>,
    watch: AtomicU64,
    /// What follows changes with each message, and readers need what is above: they are to share no cache line.
    _apart: [u64; 8],
    written: Written,
}

/// The places of a segment, each written once.
pub(crate) type Slots<E> = Box<[OnceLock<Slot<E>>]>;

/// How much is in a segment, for others than its writer.
struct Written {
    /// Only the writer, under the topic's lock, moves it.
    slots: AtomicU64,
    bytes: AtomicU64,
}

/// How much is in it, as its writer knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filled {
    slots: usize,
    bytes: u64,
}

impl<E> Segment<E> {
    pub(super) fn new(first: Sequence, slots: Slots<E>) -> Self {
        Segment {
            first,
            slots,
            watch: AtomicU64::new(0),
            _apart: [0; 8],
            written: Written { slots: AtomicU64::new(0), bytes: AtomicU64::new(0) },
        }
    }

    pub(super) fn make_slots(count: usize) -> Slots<E> {
        (0..count).map(|_| OnceLock::new()).collect()
    }

    /// Drops what is in it, and gives the places, to be written again. Call it outside every lock.
    pub(super) fn into_empty_slots(mut self) -> Slots<E> {
        self.empty();
        std::mem::take(&mut self.slots)
    }

    /// An event's own `Drop` is its author's code: when one panics, the others are dropped all the same, and whoever let go of the last
    /// message of a segment is not the one to be punished.
    fn empty(&mut self) {
        let mut left = self.slots.iter_mut();
        while contained(|| left.by_ref().map_while(OnceLock::take).for_each(drop)).is_none() {}
    }

    pub(crate) fn first(&self) -> Sequence {
        self.first
    }

    /// The sequence after the last one written.
    pub(crate) fn end(&self) -> Sequence {
        self.first + self.len()
    }

    pub(crate) fn len(&self) -> u64 {
        self.written.slots.load(Ordering::Acquire)
    }

    /// What its messages weigh.
    pub(crate) fn bytes(&self) -> u64 {
        self.written.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn covers(&self, sequence: Sequence) -> bool {
        self.first <= sequence && sequence < self.end()
    }

    pub(super) fn has_room_for(&self, filled: Filled, bytes: u64, slots_max: usize, bytes_max: u64) -> bool {
        let weight = filled.bytes.saturating_add(bytes);
        filled.slots < self.slots.len().min(slots_max) && (filled.slots == 0 || weight <= bytes_max)
    }

    /// The writer's alone.
    #[inline]
    pub(super) fn push(&self, filled: &mut Filled, slot: Slot<E>, bytes: u64) {
        let place = &self.slots[filled.slots];
        assert!(place.get().is_none(), "the writer writes each slot once");
        place.get_or_init(|| slot);
        filled.slots += 1;
        filled.bytes = filled.bytes.saturating_add(bytes);
        self.written.bytes.store(filled.bytes, Ordering::Relaxed);
        self.written.slots.store(filled.slots as u64, Ordering::Release);
    }

    pub(crate) fn watch(&self) -> Watch {
        match self.watch.load(Ordering::SeqCst) {
            0 => Watch::Nobody,
            book => Watch::Book(book),
        }
    }

    pub(crate) fn set_watch(&self, watch: Watch) {
        let number = match watch {
            Watch::Nobody => 0,
            Watch::Book(book) => book,
        };
        self.watch.store(number, Ordering::SeqCst);
    }

    pub(crate) fn first_published(&self) -> Option<Tick> {
        self.slots.first()?.get().map(Slot::published)
    }

    pub(crate) fn last_published(&self) -> Option<Tick> {
        let last = (self.len() as usize).checked_sub(1)?;
        self.slots.get(last)?.get().map(Slot::published)
    }

    /// The first message in here that was published at `time` or later.
    pub(super) fn first_at(&self, time: Tick) -> Option<Sequence> {
        let written = self.slots.get(..self.len() as usize)?;
        let at = written.partition_point(|slot| slot.get().is_some_and(|slot| slot.published() < time));
        (at < written.len()).then(|| self.first + at as u64)
    }
}

impl<E> Drop for Segment<E> {
    fn drop(&mut self) {
        self.empty();
    }
}

impl<E> fmt::Debug for Segment<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("first", &self.first)
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}

/// One message, kept from going for as long as this lives.
///
/// Invariant: its slot is written.
pub(crate) struct Spot<E> {
    segment: Arc<Segment<E>>,
    index: u32,
}

impl<E> Spot<E> {
    /// The segment comes back if it does not have the message.
    pub(crate) fn new(segment: Arc<Segment<E>>, sequence: Sequence) -> Result<Self, Arc<Segment<E>>> {
        let offset = sequence.get().checked_sub(segment.first.get());
        match offset.and_then(|offset| u32::try_from(offset).ok()) {
            Some(index) if segment.slots.get(index as usize).is_some_and(|slot| slot.get().is_some()) => {
                Ok(Spot { segment, index })
            }
            _ => Err(segment),
        }
    }

    /// How many messages there are in the segment from this one on.
    pub(crate) fn left_in_segment(&self) -> u64 {
        self.segment.len() - u64::from(self.index)
    }

    /// This message and those after it in the segment, `len` in all.
    pub(crate) fn run(&self, len: u64) -> impl Iterator<Item = SpotRef<'_, E>> {
        (u64::from(self.index)..).take(len as usize).filter_map(|index| {
            let slot = self.segment.slots.get(index as usize)?.get()?;
            Some(SpotRef { slot, sequence: self.segment.first + index })
        })
    }

    /// The message `sequence` if it lies in the same segment, without a look into the directory.
    pub(crate) fn neighbour(&self, sequence: Sequence) -> Option<Self> {
        self.segment.covers(sequence).then(|| Spot::new(self.segment.clone(), sequence).ok()).flatten()
    }

    pub(crate) fn segment(&self) -> &Arc<Segment<E>> {
        &self.segment
    }

    pub(crate) fn into_segment(self) -> Arc<Segment<E>> {
        self.segment
    }

    pub(crate) fn sequence(&self) -> Sequence {
        self.segment.first + u64::from(self.index)
    }

    fn slot(&self) -> &Slot<E> {
        match self.segment.slots[self.index as usize].get() {
            Some(slot) => slot,
            None => unreachable!("a spot's slot is written"),
        }
    }

    pub(crate) fn event(&self) -> &E {
        self.slot().event()
    }

    pub(super) fn message(&self, id: MessageId) -> MessageRef<'_, E> {
        let slot = self.slot();
        MessageRef { id, published: slot.published(), event: slot.event(), extras: slot.extras() }
    }

    pub(crate) fn published_and_extras(&self) -> (Tick, Option<&Extras>) {
        (self.slot().published(), self.slot().extras())
    }
}

/// A message in a segment that somebody else keeps.
pub(crate) struct SpotRef<'a, E> {
    slot: &'a Slot<E>,
    sequence: Sequence,
}

impl<'a, E> SpotRef<'a, E> {
    pub(crate) fn sequence(&self) -> Sequence {
        self.sequence
    }

    pub(super) fn message(&self, id: MessageId) -> MessageRef<'a, E> {
        let slot = self.slot;
        MessageRef { id, published: slot.published(), event: slot.event(), extras: slot.extras() }
    }
}

impl<E> Clone for Spot<E> {
    fn clone(&self) -> Self {
        Spot { segment: self.segment.clone(), index: self.index }
    }
}

impl<E> fmt::Debug for Spot<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spot").field(&self.sequence()).finish()
    }
}
