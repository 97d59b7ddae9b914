//! Memory of messages that went, for those to come.
//!
//! What a publisher allocates, whoever settles the message frees, mostly on another core: there the allocator makes the two wait for each other, which
//! costs more than all else on the road. So segments, and what batches lay in, go back to the publishers.

use std::fmt;
use std::sync::Arc;
// Not the model checkers': a count that nobody waits for, and that nothing is ordered by.
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

use crate::contain::contained;
use crate::log::segment::Segment;
use crate::sync::Mutex;

/// The most that a topic keeps, and all of the process's topics together.
const TOPIC_BUFFERS_MAX: usize = 64;
const TOPIC_SEGMENTS_MAX: usize = 16;
const TOPIC_BYTES_MAX: usize = 1 << 20;
const PROCESS_BYTES_MAX: usize = 1 << 24;

/// How much all topics of the process keep.
static PROCESS_BYTES: AtomicUsize = AtomicUsize::new(0);

/// What a batch lies in.
pub(crate) struct Buffer<E> {
    events: Vec<E>,
    /// If events are bytes that lie side by side: what is left of the memory that they lie in, and so a hold on it.
    arena: BytesMut,
    arena_len: usize,
}

impl<E> Buffer<E> {
    pub(super) fn new(events: Vec<E>) -> Self {
        Buffer { events, arena: BytesMut::new(), arena_len: 0 }
    }

    /// Whether it has no memory yet.
    pub(super) fn is_new(&self) -> bool {
        self.events.capacity() == 0 && self.arena_len == 0
    }

    pub(super) fn events(&self) -> &[E] {
        &self.events
    }

    pub(super) fn into_events(self) -> Vec<E> {
        self.events
    }

    /// Takes the events over.
    #[inline]
    pub(super) fn fill(&mut self, events: &mut Vec<E>) {
        self.events.reserve_exact(events.len());
        self.events.append(events);
    }

    /// A copy of what payloads have, side by side, in memory that comes back when all of them are gone.
    pub(super) fn lay(&mut self, payloads: &[u8]) -> Bytes {
        // In vain if a reader has kept one of the payloads that lay there, or if others of this very batch do.
        if self.arena_len < payloads.len() || !self.arena.try_reclaim(self.arena_len) {
            self.arena = BytesMut::with_capacity(payloads.len());
            self.arena_len = payloads.len();
        }
        self.arena.extend_from_slice(payloads);
        self.arena.split().freeze()
    }

    /// Drops the events. When the `Drop` of one panics, the others are dropped all the same.
    pub(super) fn emptied(mut self) -> Self {
        let mut left = self.events.drain(..);
        while contained(|| left.by_ref().for_each(drop)).is_none() {}
        drop(left);
        self
    }

    /// What it keeps for later use.
    fn bytes(&self) -> usize {
        self.events.capacity().saturating_mul(size_of::<E>()).saturating_add(self.arena_len)
    }
}

/// What a topic keeps for messages to come.
#[derive(Debug)]
pub(crate) struct Spares<E> {
    kept: Mutex<Kept<E>>,
}

struct Kept<E> {
    buffers: Vec<Buffer<E>>,
    /// Empty, and nobody else's.
    segments: Vec<Arc<Segment<E>>>,
    bytes: usize,
}

impl<E> Kept<E> {
    /// Whether there is use for so much more; then it counts.
    fn admit(&mut self, bytes: usize) -> bool {
        let all = PROCESS_BYTES.load(Ordering::Relaxed);
        let may = self.bytes.saturating_add(bytes) <= TOPIC_BYTES_MAX
            && all.saturating_add(bytes) <= PROCESS_BYTES_MAX;
        if may {
            self.bytes += bytes;
            PROCESS_BYTES.fetch_add(bytes, Ordering::Relaxed);
        }
        may
    }

    fn let_go(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        PROCESS_BYTES.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl<E> Spares<E> {
    pub(super) fn new() -> Self {
        Spares { kept: Mutex::new(Kept { buffers: Vec::new(), segments: Vec::new(), bytes: 0 }) }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.kept.lock().bytes
    }

    /// An empty buffer, mostly one that was used.
    pub(super) fn take(&self) -> Buffer<E> {
        self.take_used().unwrap_or_else(|| Buffer::new(Vec::new()))
    }

    fn take_used(&self) -> Option<Buffer<E>> {
        let mut kept = self.kept.lock();
        let buffer = kept.buffers.pop()?;
        kept.let_go(buffer.bytes());
        Some(buffer)
    }

    /// A segment that suits, to be begun anew.
    pub(super) fn take_segment(&self, suits: impl Fn(&Segment<E>) -> bool) -> Option<Arc<Segment<E>>> {
        let mut kept = self.kept.lock();
        let at = kept.segments.iter().rposition(|segment| suits(segment))?;
        let segment = kept.segments.swap_remove(at);
        kept.let_go(segment.bytes_of_places());
        Some(segment)
    }

    /// Keeps a segment that nobody else has, and what its batches lay in, as far as there is use for it. Drops what is in it: call it outside every lock.
    pub(super) fn put(&self, mut segment: Arc<Segment<E>>) {
        let Some(unique) = Arc::get_mut(&mut segment) else { return };
        let mut buffers = unique.empty();
        // What is not kept is dropped after the lock.
        let mut needless = Some(segment);
        let mut kept = self.kept.lock();
        if kept.segments.len() < TOPIC_SEGMENTS_MAX
            && let Some(segment) = needless.take_if(|segment| kept.admit(segment.bytes_of_places()))
        {
            kept.segments.push(segment);
        }
        while kept.buffers.len() < TOPIC_BUFFERS_MAX
            && let Some(buffer) = buffers.pop_if(|buffer| kept.admit(buffer.bytes()))
        {
            kept.buffers.push(buffer);
        }
        drop(kept);
    }
}

impl<E> Drop for Spares<E> {
    fn drop(&mut self) {
        PROCESS_BYTES.fetch_sub(self.kept.get_mut().bytes, Ordering::Relaxed);
    }
}

impl<E> fmt::Debug for Kept<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("buffers", &self.buffers.len())
            .field("segments", &self.segments.len())
            .field("bytes", &self.bytes)
            .finish()
    }
}
