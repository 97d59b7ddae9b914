//! A message that a reader found, and keeps.

use std::fmt;
use std::sync::Arc;

use crate::log::body::Place;
use crate::log::segment::Segment;
use crate::log::slot::{Seen, Slot};
use crate::message::{Extras, MessageId, MessageRef};
use crate::sequence::Sequence;
use crate::time::Tick;

/// One message, kept from going for as long as this lives.
///
/// Invariant: its place is written.
pub(crate) struct Spot<E> {
    segment: Arc<Segment<E>>,
    place: Place,
}

impl<E> Spot<E> {
    /// The segment comes back if it does not have the message.
    #[inline]
    pub(crate) fn new(segment: Arc<Segment<E>>, sequence: Sequence) -> Result<Self, Arc<Segment<E>>> {
        match segment.place_of(sequence) {
            Some(place) => Ok(Spot { segment, place }),
            None => Err(segment),
        }
    }

    /// How many messages there are in the segment from this one on.
    pub(crate) fn left_in_segment(&self) -> u64 {
        self.segment.len() - u64::from(self.place.index)
    }

    /// This message and those after it in the segment, `len` in all.
    #[inline]
    pub(crate) fn run(&self, len: u64) -> impl Iterator<Item = SpotRef<'_, E>> {
        Run { segment: &self.segment, place: self.place, left: len, rest: &[], published: Tick::ZERO }
    }

    /// The message `sequence` if it lies in the same segment, without a look into the directory.
    pub(crate) fn neighbour(&self, sequence: Sequence) -> Option<Self> {
        let place = self.segment.place_of(sequence)?;
        Some(Spot { segment: self.segment.clone(), place })
    }

    pub(crate) fn segment(&self) -> &Arc<Segment<E>> {
        &self.segment
    }

    pub(crate) fn into_segment(self) -> Arc<Segment<E>> {
        self.segment
    }

    pub(crate) fn sequence(&self) -> Sequence {
        self.segment.first() + u64::from(self.place.index)
    }

    /// None: it lies in a batch.
    pub(super) fn slot(&self) -> Option<&Slot<E>> {
        self.segment.body().slot(self.place)
    }

    #[inline]
    fn seen(&self) -> Seen<'_, E> {
        match self.segment.body().seen(self.place) {
            Some(seen) => seen,
            None => unreachable!("a spot's place is written"),
        }
    }

    #[inline]
    pub(crate) fn event(&self) -> &E {
        self.seen().event
    }

    #[inline]
    pub(super) fn message(&self, id: MessageId) -> MessageRef<'_, E> {
        let Seen { event, published, extras } = self.seen();
        MessageRef { id, published, event, extras }
    }

    pub(crate) fn published_and_extras(&self) -> (Tick, Option<&Extras>) {
        let Seen { published, extras, .. } = self.seen();
        (published, extras)
    }
}

impl<E> Clone for Spot<E> {
    fn clone(&self) -> Self {
        Spot { segment: self.segment.clone(), place: self.place }
    }
}

impl<E> fmt::Debug for Spot<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spot").field(&self.sequence()).finish()
    }
}

/// A message in a segment that somebody else keeps.
pub(crate) struct SpotRef<'a, E> {
    seen: Seen<'a, E>,
    sequence: Sequence,
}

impl<'a, E> SpotRef<'a, E> {
    pub(crate) fn sequence(&self) -> Sequence {
        self.sequence
    }

    #[inline]
    pub(super) fn message(&self, id: MessageId) -> MessageRef<'a, E> {
        let Seen { event, published, extras } = self.seen;
        MessageRef { id, published, event, extras }
    }
}

/// See [`Spot::run`].
struct Run<'a, E> {
    segment: &'a Segment<E>,
    place: Place,
    left: u64,
    /// What is left of the batch that it is in.
    rest: &'a [E],
    published: Tick,
}

impl<'a, E> Run<'a, E> {
    /// The next one, where it does not lie beside the last.
    fn look(&mut self) -> Option<Seen<'a, E>> {
        let body = self.segment.body();
        if !body.is_of_parts() {
            let seen = body.seen(self.place);
            self.place.number += 1;
            return seen;
        }
        let part = body.part(self.place.number)?;
        let (event, rest) = part.from(self.place.index as usize).split_first()?;
        self.place.number += 1;
        self.rest = rest;
        self.published = part.published();
        Some(Seen { event, published: self.published, extras: None })
    }
}

impl<'a, E> Iterator for Run<'a, E> {
    type Item = SpotRef<'a, E>;

    #[inline]
    fn next(&mut self) -> Option<SpotRef<'a, E>> {
        self.left = self.left.checked_sub(1)?;
        let seen = match self.rest.split_first() {
            Some((event, rest)) => {
                self.rest = rest;
                Seen { event, published: self.published, extras: None }
            }
            None => self.look()?,
        };
        let sequence = self.segment.first() + u64::from(self.place.index);
        self.place.index += 1;
        Some(SpotRef { seen, sequence })
    }
}
