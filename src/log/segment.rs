//! One stretch of a topic's log.

use std::fmt;

use crate::log::body::{Body, Part, Place};
use crate::log::slot::Slot;
use crate::log::spare::Buffer;
use crate::sequence::Sequence;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Tick;

/// Who keeps a segment alive, as far as the topic last looked: see the topic's reclaiming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nobody has looked yet, or all had settled it when somebody looked.
    Nobody,
    /// The subscription or snapshot of this number still needed it.
    Book(u64),
}

/// Consecutive messages. Places are written in order, by the topic's one writer; what is below the log's tail never changes.
#[repr(C)]
pub(crate) struct Segment<E> {
    first: Sequence,
    body: Body<E>,
    watch: AtomicU64,
    /// What follows changes with each message, and readers need what is above: they are to share no cache line.
    _apart: [u64; 8],
    written: Written,
}

/// How much is in a segment, for others than its writer.
struct Written {
    /// Only the writer, under the topic's lock, moves it.
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// How much is in it, as its writer knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filled {
    places: usize,
    messages: usize,
    bytes: u64,
}

/// How much may be in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages_max: usize,
    pub(super) bytes_max: u64,
}

impl<E> Segment<E> {
    pub(super) fn new(first: Sequence, body: Body<E>) -> Self {
        Segment {
            first,
            body,
            watch: AtomicU64::new(0),
            _apart: [0; 8],
            written: Written { messages: AtomicU64::new(0), bytes: AtomicU64::new(0) },
        }
    }

    /// Drops what is in it, and gives what batches lay in. Call it outside every lock.
    pub(super) fn empty(&mut self) -> Vec<Buffer<E>> {
        self.body.empty()
    }

    /// An empty one is as new, and starts here.
    pub(super) fn restart_at(&mut self, first: Sequence) {
        self.first = first;
        self.watch = AtomicU64::new(0);
        self.written = Written { messages: AtomicU64::new(0), bytes: AtomicU64::new(0) };
    }

    /// How much memory it takes when it is empty.
    pub(super) fn bytes_of_places(&self) -> usize {
        size_of::<Self>() + self.body.bytes()
    }

    pub(crate) fn first(&self) -> Sequence {
        self.first
    }

    /// The sequence after the last one written.
    pub(crate) fn end(&self) -> Sequence {
        self.first + self.len()
    }

    pub(crate) fn len(&self) -> u64 {
        self.written.messages.load(Ordering::Acquire)
    }

    /// What its messages weigh.
    pub(crate) fn bytes(&self) -> u64 {
        self.written.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn body(&self) -> &Body<E> {
        &self.body
    }

    pub(super) fn covers(&self, sequence: Sequence) -> bool {
        self.first <= sequence && sequence < self.end()
    }

    /// Where the message lies, if it is in here.
    #[inline]
    pub(super) fn place_of(&self, sequence: Sequence) -> Option<Place> {
        let offset = sequence.get().checked_sub(self.first.get())?;
        self.body.place_of(usize::try_from(offset).ok()?)
    }

    /// Whether so many messages of this weight have room, as one part or as a message of its own.
    #[inline]
    pub(super) fn has_room_for(&self, filled: Filled, messages: usize, bytes: u64, bounds: Bounds) -> bool {
        let weight = filled.bytes.saturating_add(bytes);
        let count = filled.messages + messages;
        filled.places < self.body.len()
            && (filled.messages == 0 || (count <= bounds.messages_max && weight <= bounds.bytes_max))
    }

    /// The writer's alone.
    #[inline]
    pub(super) fn push(&self, filled: &mut Filled, slot: Slot<E>, bytes: u64) {
        let was_free = match &self.body {
            Body::Messages(slots) => slots[filled.places].set(slot).is_ok(),
            Body::Parts(parts) => {
                let Slot::Own { event, published, extras: None } = slot else {
                    unreachable!("what goes among batches carries nothing but its event");
                };
                let part =
                    Part::new(filled.messages, Tick::from_nanos(published.get()), Buffer::new(vec![event]));
                parts[filled.places].set(part).is_ok()
            }
        };
        assert!(was_free, "the writer writes each place once");
        self.note(filled, 1, bytes);
    }

    /// The writer's alone. The events are in order, and at least one.
    pub(super) fn push_part(&self, filled: &mut Filled, published: Tick, buffer: Buffer<E>, bytes: u64) {
        let Body::Parts(parts) = &self.body else { unreachable!("a batch goes among batches") };
        let count = buffer.events().len();
        let was_free = parts[filled.places].set(Part::new(filled.messages, published, buffer)).is_ok();
        assert!(was_free, "the writer writes each place once");
        self.note(filled, count, bytes);
    }

    /// One place was written.
    #[inline]
    fn note(&self, filled: &mut Filled, messages: usize, bytes: u64) {
        filled.places += 1;
        filled.messages += messages;
        filled.bytes = filled.bytes.saturating_add(bytes);
        self.written.bytes.store(filled.bytes, Ordering::Relaxed);
        self.written.messages.store(filled.messages as u64, Ordering::Release);
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
        self.body.first_published()
    }

    pub(crate) fn last_published(&self) -> Option<Tick> {
        self.body.last_published(self.len() as usize)
    }

    /// The first message in here that was published at `time` or later.
    pub(super) fn first_at(&self, time: Tick) -> Option<Sequence> {
        self.body.first_at(time, self.len() as usize).map(|index| self.first + index as u64)
    }
}

impl<E> Drop for Segment<E> {
    fn drop(&mut self) {
        self.body.empty();
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
