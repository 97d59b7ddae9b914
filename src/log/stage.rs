//! Where a publisher lays out a batch before it goes into the log.
//!
//! The memory of the log was last read by another core: each line of it that is written has to be fetched from there first, and whoever makes the next
//! event meanwhile may have to wait for that. So a batch is made in memory of the publisher's own, and goes over in one piece.

use std::any::Any;

use bytes::Bytes;

use crate::log::body::PART_LEN_MIN;
use crate::log::spare::{Buffer, Spares};

/// Payloads up to so many bytes are laid side by side: to copy one costs less than to free it where it is settled.
const LAID_LEN_MAX: usize = 1_024;
/// As many of them as go into one piece of memory.
const LAID_BYTES_MAX: usize = 1 << 16;

/// Events that are to be published together, and carry nothing else.
pub(crate) struct Stage<'a, E> {
    events: Vec<E>,
    /// How many there are to be, as far as is known.
    expected: usize,
    /// Payloads of the last events, side by side, that these do not know of yet: for now they are empty.
    payloads: Vec<u8>,
    laid: Vec<u16>,
    buffer: Buffer<E>,
    spares: &'a Spares<E>,
}

impl<'a, E: 'static> Stage<'a, E> {
    pub(super) fn new(spares: &'a Spares<E>, expected: usize) -> Self {
        Stage {
            events: Vec::with_capacity(expected),
            expected,
            payloads: Vec::new(),
            laid: Vec::new(),
            buffer: Buffer::new(Vec::new()),
            spares,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Adds an event. A small payload is copied beside the others, and freed here, where it was made.
    #[inline]
    pub(crate) fn push(&mut self, mut event: E) {
        if let Some(payload) = (&mut event as &mut dyn Any).downcast_mut::<Bytes>() {
            self.lay(payload);
        }
        self.events.push(event);
    }

    /// Adds an event that is but this part of shared memory, and stays there; false: events are something else.
    #[inline]
    pub(crate) fn push_part(&mut self, memory: &Bytes, payload: &[u8]) -> bool {
        self.tell();
        let mut part = Some(memory.slice_ref(payload));
        let part = (&mut part as &mut dyn Any).downcast_mut::<Option<E>>().and_then(Option::take);
        let is_event = part.is_some();
        self.events.extend(part);
        is_event
    }

    #[inline]
    fn lay(&mut self, payload: &mut Bytes) {
        let len = payload.len();
        if self.expected < PART_LEN_MIN || len > LAID_LEN_MAX {
            return self.tell();
        }
        if self.payloads.len() + len > self.payloads.capacity() {
            self.make_room(len);
        }
        self.payloads.extend_from_slice(payload);
        self.laid.push(len as u16);
        *payload = Bytes::new();
    }

    fn make_room(&mut self, len: usize) {
        if self.payloads.len() + len > LAID_BYTES_MAX {
            self.tell();
        }
        if self.laid.capacity() == 0 {
            self.laid.reserve(self.expected);
            self.payloads.reserve(self.expected.saturating_mul(len).min(LAID_BYTES_MAX));
        }
    }

    /// Tells the events where they lie.
    fn tell(&mut self) {
        if self.laid.is_empty() {
            return;
        }
        if self.buffer.is_new() {
            self.buffer = self.spares.take();
        }
        let mut rest = self.buffer.lay(&self.payloads);
        self.payloads.clear();
        let Some(events) = (&mut self.events as &mut dyn Any).downcast_mut::<Vec<Bytes>>() else { return };
        let from = events.len().saturating_sub(self.laid.len());
        for (event, len) in events.iter_mut().skip(from).zip(self.laid.drain(..)) {
            *event = rest.split_to(usize::from(len));
        }
    }

    pub(crate) fn into_events(mut self) -> Vec<E> {
        self.tell();
        self.events
    }

    /// The events in memory that is for the log.
    pub(super) fn into_buffer(mut self) -> Buffer<E> {
        self.tell();
        if self.buffer.is_new() {
            self.buffer = self.spares.take();
        }
        self.buffer.fill(&mut self.events);
        self.buffer
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }
}
