//! What a segment's messages lie in: places that are written once, in order, and then only read.

use std::fmt;
use std::sync::OnceLock;

use crate::contain::contained;
use crate::log::slot::{Seen, Slot};
use crate::log::spare::Buffer;
use crate::time::Tick;

/// How many batches of messages a segment holds at most.
const PARTS: usize = 8;

/// A batch of so many plain messages is better off with a place of its own: a place costs two atomic operations and some fifty bytes, a batch of its own an allocation.
pub(crate) const PART_LEN_MIN: usize = PARTS;

/// The places of a segment.
pub(crate) enum Body<E> {
    /// One for each message.
    Messages(Box<[OnceLock<Slot<E>>]>),
    /// One for each batch of messages that carry nothing but their event: they were published at one time, and lie as their publisher laid them.
    Parts(Box<[OnceLock<Part<E>>]>),
}

/// Messages that were published together.
///
/// Invariant: at least one.
pub(crate) struct Part<E> {
    /// Which message of the segment is its first.
    first: usize,
    published: Tick,
    buffer: Buffer<E>,
}

/// Where in a segment a message lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Which of the body's places it is, or is in.
    pub(super) number: u32,
    /// Which message of the segment it is.
    pub(super) index: u32,
}

impl<E> Part<E> {
    pub(super) fn new(first: usize, published: Tick, buffer: Buffer<E>) -> Self {
        Part { first, published, buffer }
    }

    fn holds(&self, index: usize) -> bool {
        index.checked_sub(self.first).is_some_and(|at| at < self.buffer.events().len())
    }

    /// What is in it from that message of the segment on.
    pub(super) fn from(&self, index: usize) -> &[E] {
        index.checked_sub(self.first).and_then(|at| self.buffer.events().get(at..)).unwrap_or(&[])
    }

    pub(super) fn published(&self) -> Tick {
        self.published
    }

    fn seen(&self, index: usize) -> Option<Seen<'_, E>> {
        let event = self.from(index).first()?;
        Some(Seen { event, published: self.published, extras: None })
    }
}

impl<E> Body<E> {
    pub(super) fn of_messages(count: usize) -> Self {
        Body::Messages((0..count).map(|_| OnceLock::new()).collect())
    }

    pub(super) fn of_parts() -> Self {
        Body::Parts((0..PARTS).map(|_| OnceLock::new()).collect())
    }

    /// How many places it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Body::Messages(slots) => slots.len(),
            Body::Parts(parts) => parts.len(),
        }
    }

    pub(super) fn is_of_parts(&self) -> bool {
        matches!(self, Body::Parts(_))
    }

    /// Where that message of the segment lies, if it is written.
    #[inline]
    pub(super) fn place_of(&self, index: usize) -> Option<Place> {
        let number = match self {
            Body::Messages(slots) => slots.get(index)?.get().map(|_| index)?,
            Body::Parts(parts) => part_of(parts, index)?,
        };
        Some(Place { number: u32::try_from(number).ok()?, index: u32::try_from(index).ok()? })
    }

    #[inline]
    pub(super) fn seen(&self, place: Place) -> Option<Seen<'_, E>> {
        match self {
            Body::Messages(slots) => slots.get(place.number as usize)?.get().map(Slot::seen),
            Body::Parts(parts) => parts.get(place.number as usize)?.get()?.seen(place.index as usize),
        }
    }

    pub(super) fn slot(&self, place: Place) -> Option<&Slot<E>> {
        match self {
            Body::Messages(slots) => slots.get(place.number as usize)?.get(),
            Body::Parts(_) => None,
        }
    }

    pub(super) fn part(&self, number: u32) -> Option<&Part<E>> {
        match self {
            Body::Messages(_) => None,
            Body::Parts(parts) => parts.get(number as usize)?.get(),
        }
    }

    pub(super) fn first_published(&self) -> Option<Tick> {
        match self {
            Body::Messages(slots) => slots.first()?.get().map(Slot::published),
            Body::Parts(parts) => parts.first()?.get().map(Part::published),
        }
    }

    /// Of the first so many messages, the last's.
    pub(super) fn last_published(&self, len: usize) -> Option<Tick> {
        let place = self.place_of(len.checked_sub(1)?)?;
        self.seen(place).map(|seen| seen.published)
    }

    /// Of the first so many messages, the first that was published at `time` or later.
    pub(super) fn first_at(&self, time: Tick, len: usize) -> Option<usize> {
        let index = match self {
            Body::Messages(slots) => {
                let written = slots.get(..len)?;
                written.partition_point(|slot| slot.get().is_some_and(|slot| slot.published() < time))
            }
            Body::Parts(parts) => {
                let mut written = parts.iter().map_while(OnceLock::get);
                written.find(|part| part.published >= time)?.first
            }
        };
        (index < len).then_some(index)
    }

    /// An event's own `Drop` is its author's code: when one panics, the others are dropped all the same, and whoever let go of the last
    /// message of a segment is not the one to be punished. Gives what batches lay in.
    pub(super) fn empty(&mut self) -> Vec<Buffer<E>> {
        match self {
            Body::Messages(slots) => {
                let mut left = slots.iter_mut();
                while contained(|| left.by_ref().map_while(OnceLock::take).for_each(drop)).is_none() {}
                Vec::new()
            }
            Body::Parts(parts) => {
                let parts = parts.iter_mut().map_while(OnceLock::take);
                parts.map(|part| part.buffer.emptied()).collect()
            }
        }
    }

    /// How much memory its places take.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Body::Messages(slots) => size_of_val::<[_]>(slots),
            Body::Parts(parts) => size_of_val::<[_]>(parts),
        }
    }
}

impl<E> fmt::Debug for Body<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("is_of_parts", &self.is_of_parts()).field("len", &self.len()).finish()
    }
}

/// Which part holds that message of the segment.
#[inline]
fn part_of<E>(parts: &[OnceLock<Part<E>>], index: usize) -> Option<usize> {
    // Batches are mostly of one length.
    let first = parts.first()?.get()?;
    let guess = index.checked_div(first.buffer.events().len())?;
    if parts.get(guess).and_then(OnceLock::get).is_some_and(|part| part.holds(index)) {
        return Some(guess);
    }
    parts.iter().map_while(OnceLock::get).position(|part| part.holds(index))
}
