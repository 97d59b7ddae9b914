//! One stretch of a topic's log: slots that are written once and then only read.

use std::fmt;
use std::mem::needs_drop;
use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};

use crate::contain::drop_contained;
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

/// Who keeps a segment alive, as far as the topic last looked: see the topic's reclaiming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nobody has looked yet, or all had settled it when somebody looked.
    Nobody,
    /// The subscription or snapshot of this number still needed it.
    Book(u64),
}

/// Consecutive messages. Slots are written in order, by the topic's one writer; a slot below the log's tail never changes.
pub(crate) struct Segment<E> {
    first: Sequence,
    slots: Box<[OnceLock<Slot<E>>]>,
    /// How many slots are written. Only the writer, under the topic's lock, moves it.
    written: AtomicU64,
    bytes: AtomicU64,
    watch: AtomicU64,
}

impl<E> Segment<E> {
    pub(super) fn new(first: Sequence, slots: usize) -> Self {
        Segment {
            first,
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            written: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            watch: AtomicU64::new(0),
        }
    }

    pub(crate) fn first(&self) -> Sequence {
        self.first
    }

    /// The sequence after the last one written.
    pub(crate) fn end(&self) -> Sequence {
        self.first + self.len()
    }

    pub(crate) fn len(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// What its messages weigh.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn covers(&self, sequence: Sequence) -> bool {
        self.first <= sequence && sequence < self.end()
    }

    pub(super) fn has_room_for(&self, bytes: u64, slots_max: usize, bytes_max: u64) -> bool {
        let written = self.len();
        let weight = self.bytes().saturating_add(bytes);
        (written as usize) < self.slots.len().min(slots_max) && (written == 0 || weight <= bytes_max)
    }

    /// The writer's alone.
    pub(super) fn push(&self, slot: Slot<E>, bytes: u64) {
        let written = self.written.load(Ordering::Relaxed);
        let set = self.slots.get(written as usize).map(|place| place.set(slot).is_ok());
        assert_eq!(set, Some(true), "the writer looked for room, and writes each slot once");
        self.bytes.store(self.bytes().saturating_add(bytes), Ordering::Relaxed);
        self.written.store(written + 1, Ordering::Release);
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
    /// An event's own `Drop` is its author's code: when one panics, the others are dropped all the same, and whoever let go of the last
    /// message of a segment is not the one to be punished.
    fn drop(&mut self) {
        if !needs_drop::<Slot<E>>() {
            return;
        }
        for slot in &mut self.slots {
            if let Some(slot) = slot.take() {
                drop_contained(slot);
            }
        }
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
    pub(super) fn new(segment: Arc<Segment<E>>, sequence: Sequence) -> Option<Self> {
        let index = u32::try_from(sequence - segment.first).ok()?;
        segment.slots.get(index as usize)?.get()?;
        Some(Spot { segment, index })
    }

    /// The message `sequence` if it lies in the same segment, without a look into the directory.
    pub(crate) fn neighbour(&self, sequence: Sequence) -> Option<Self> {
        self.segment.covers(sequence).then(|| Spot::new(self.segment.clone(), sequence)).flatten()
    }

    pub(crate) fn segment(&self) -> &Arc<Segment<E>> {
        &self.segment
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
