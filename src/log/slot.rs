//! One message's place, and what a reader sees of it.

use std::fmt;
use std::num::NonZeroU64;

use crate::log::spot::Spot;
use crate::message::Extras;
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

/// What there is to see of a message in its place.
pub(super) struct Seen<'a, E> {
    pub(super) event: &'a E,
    pub(super) published: Tick,
    pub(super) extras: Option<&'a Extras>,
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
            Some(Slot::Shared(shared)) => shared.origin.clone(),
            _ => origin.clone(),
        };
        Slot::Shared(Box::new(Shared { origin, published, extras }))
    }

    #[inline]
    pub(super) fn seen(&self) -> Seen<'_, E> {
        match self {
            Slot::Own { event, published, extras } => {
                Seen { event, published: Tick::from_nanos(published.get()), extras: extras.as_deref() }
            }
            Slot::Shared(shared) => {
                let Shared { origin, published, extras } = &**shared;
                Seen { event: origin.event(), published: *published, extras: Some(extras) }
            }
        }
    }

    pub(super) fn published(&self) -> Tick {
        self.seen().published
    }
}

impl<E> fmt::Debug for Slot<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.published()).finish()
    }
}
