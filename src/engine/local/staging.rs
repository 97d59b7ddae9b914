//! The road in, on disk: a message is staged under the topic's lock, where it gets its sequence and its place in the journal, and goes into the log when its unit is safe.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::Codec;
use crate::contain::{contained, drop_contained};
use crate::delivery::settled::Outcome;
use crate::engine::local::ahead::Given;
use crate::engine::local::dead_letter::Grave;
use crate::engine::local::effect::Entry;
use crate::engine::local::publish::{Aftermath, Parcel, id_of};
use crate::engine::local::store::{Completion, Store};
use crate::engine::local::topic::{TopicCore, TopicState, Weigh};
use crate::error::{CodecError, PublishErrorKind};
use crate::journal::record::{
    Envelope, List, OutcomeCode, OverLimit, Record, SettledRange, encode_message, write_published,
};
use crate::journal::{JournalError, Position, Space};
use crate::log::{Gate, Slot, Spot};
use crate::message::{Extras, IdempotencyId, Message, MessageId};
use crate::sequence::Sequence;
use crate::sync::Mutex;
use crate::time::Tick;

crate::sync::thread_local! {
    /// Buffers of this thread, used again and again: what a codec makes, and messages as the journal is to hold them. To allocate and free one for each message of a large batch takes as long as all
    /// else that is done for it.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// As many are kept.
const BUFFERS_MAX: usize = 256;
/// A larger one is not.
const BUFFER_LEN_MAX: usize = 4 << 10;

/// An empty buffer.
fn take_buffer() -> Vec<u8> {
    // A thread that ends may have let go of them before it publishes for the last time.
    BUFFERS.try_with(|buffers| buffers.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

fn keep_buffer(mut buffer: Vec<u8>) {
    if !(1..=BUFFER_LEN_MAX).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    let _thread_ends = BUFFERS.try_with(|buffers| {
        let mut buffers = buffers.borrow_mut();
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
    });
}

/// What a topic on disk has beside one in memory.
pub(crate) struct Stored<E> {
    pub(crate) store: Arc<Store>,
    pub(crate) codec: Arc<dyn Codec<E>>,
    /// The codec is the crate's own, of raw bytes or text: a message's payload is what its event is.
    pub(crate) is_raw: bool,
}

/// A message as the journal is to hold it, and what is to be known of it beside.
pub(super) struct EncodedMessage {
    pub(super) bytes: Vec<u8>,
    pub(super) weight: u64,
    pub(super) content: u64,
}

/// What is on its way into the log. Under the topic's lock.
#[derive(Debug)]
pub(super) struct Staging {
    /// The sequence that the next message gets.
    pub(super) next: Sequence,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// The last unit that was added.
    last: Option<Position>,
}

impl Staging {
    pub(super) fn new(next: Sequence) -> Self {
        Staging { next, messages: 0, bytes: 0, last: None }
    }

    /// So many more are on their way, in the unit that was added there.
    pub(super) fn take_off(&mut self, messages: u64, bytes: u64, position: Position) {
        self.next += messages;
        self.messages += messages;
        self.bytes += bytes;
        self.last = Some(position);
    }

    /// They have gone into the log, or came to nothing.
    pub(super) fn land(&mut self, messages: u64, bytes: u64) {
        self.messages -= messages;
        self.bytes -= bytes;
    }
}

/// The messages of a transaction that go to one topic: see [`Together`].
pub(crate) trait Part: Send + Sync {
    /// They go into the log, behind the gate if there is one; or they came to nothing.
    fn enter(&self, is_safe: bool, gate: Option<&Arc<Gate>>);
    /// Of acks: nobody looks at the book until they have entered.
    fn hold(&self) -> Option<Box<dyn Held + '_>> {
        None
    }
    /// The gate is open.
    fn ungate(&self);
    fn follow_up(self: Arc<Self>);
}

/// See [`Part::hold`].
pub(crate) trait Held {
    /// They are safe, and take effect.
    fn enter(self: Box<Self>);
}

/// What takes effect at one instant when its unit is safe: a transaction.
pub(super) struct Together {
    /// Filled under the locks under which the unit was added, which a completion needs first.
    parts: Mutex<Option<Parts>>,
}

#[derive(Clone)]
struct Parts {
    messages: Vec<Arc<dyn Part>>,
    acks: Vec<Arc<dyn Part>>,
}

impl Together {
    pub(super) fn new() -> Self {
        Together { parts: Mutex::new(None) }
    }

    pub(super) fn fill(&self, messages: Vec<Arc<dyn Part>>, acks: Vec<Arc<dyn Part>>) {
        *self.parts.lock() = Some(Parts { messages, acks });
    }
}

impl Completion for Together {
    fn complete(&self, outcome: Result<(), JournalError>) {
        let Parts { messages, acks } = loop {
            // Who added it still holds the locks of its topics, and fills this before it lets go of them.
            if let Some(parts) = self.parts.lock().clone() {
                break parts;
            }
            crate::sync::thread::yield_now();
        };
        let is_safe = outcome.is_ok();
        match &*messages {
            [only] if acks.is_empty() => only.enter(is_safe, None),
            several if is_safe && !several.is_empty() => {
                let gate = Gate::new();
                several.iter().for_each(|part| part.enter(true, Some(&gate)));
                // In one order, by the books' numbers, as who stages locks them. Who sees a message and then asks a book finds what came with it.
                let held: Vec<_> = acks.iter().filter_map(|part| part.hold()).collect();
                gate.open();
                several.iter().for_each(|part| part.ungate());
                // Last: how far a book has come is also read without its lock, and who reads it so must find what was published.
                return held.into_iter().for_each(Held::enter);
            }
            several => several.iter().for_each(|part| part.enter(false, None)),
        }
        acks.iter().for_each(|part| part.enter(is_safe, None));
    }

    fn follow_up(self: Arc<Self>) {
        let parts = self.parts.lock().take();
        if let Some(Parts { messages, acks }) = parts {
            messages.into_iter().chain(acks).for_each(Part::follow_up);
        }
    }
}

/// Messages of one unit, in a row.
pub(super) struct Staged<E> {
    topic: Arc<TopicCore<E>>,
    first: Sequence,
    published: Tick,
    /// Emptied when they go into the log, or back to their publisher.
    letters: Mutex<Vec<Letter<E>>>,
    after: Mutex<Aftermath>,
    /// What a dead letter leaves.
    leaves: Option<Arc<dyn Part>>,
}

enum Letter<E> {
    Own {
        message: Message<E>,
        weight: u64,
    },
    /// A dead letter, which shares the event of its origin.
    Shared {
        origin: Spot<E>,
        extras: Extras,
        weight: u64,
    },
}

impl<E> Letter<E> {
    fn weight(&self) -> u64 {
        match self {
            Letter::Own { weight, .. } | Letter::Shared { weight, .. } => *weight,
        }
    }

    fn id(&self) -> Option<&IdempotencyId> {
        match self {
            Letter::Own { message, .. } => message.extras.as_ref()?.idempotency_id.as_ref(),
            Letter::Shared { .. } => None,
        }
    }
}

impl<E: Send + Sync + 'static> Staged<E> {
    /// What its publisher gets back of it.
    pub(super) fn take_back(&self, parcels: &mut [Parcel<E>]) {
        let letters = std::mem::take(&mut *self.letters.lock());
        let messages = letters.into_iter().filter_map(|letter| match letter {
            Letter::Own { message, .. } => Some(message),
            Letter::Shared { .. } => None,
        });
        let lacking = parcels.iter_mut().filter(|parcel| parcel.message.is_none());
        lacking.zip(messages).for_each(|(parcel, message)| {
            parcel.message = Some(message);
            // It is new again: the sequence is gone.
            parcel.receipt = None;
        });
    }

    fn go_into_log(
        &self,
        state: &mut TopicState<E>,
        letters: Vec<Letter<E>>,
        gate: Option<&Arc<Gate>>,
    ) -> Vec<Letter<E>> {
        let show = |state: &TopicState<E>| match gate {
            Some(gate) => self.topic.log.publish_tail_behind(gate, &state.writer),
            None => self.topic.log.publish_tail(&state.writer),
        };
        let topic = &self.topic;
        let mut after = self.after.lock();
        let (subscriptions, is_kept) = topic.readers(state);
        // Units between that found no space on the disk: their messages came to nothing.
        state.skip_to(self.first);
        if !is_kept {
            // Nobody is to get them. They are dropped outside the lock.
            state.writer.skip(letters.len() as u64);
            show(state);
            return letters;
        }
        for letter in letters {
            let weight = letter.weight();
            let slot = match letter {
                Letter::Own { message, .. } => {
                    if let Some(extras) = &message.extras {
                        topic.note_times(state, state.writer.next(), self.published, extras, &mut after);
                    }
                    Slot::own(message.event, self.published, message.extras)
                }
                Letter::Shared { origin, extras, .. } => Slot::shared(&origin, self.published, extras),
            };
            topic.keep(state, slot, weight, subscriptions, &mut after);
            after.published += 1;
        }
        show(state);
        Vec::new()
    }
}

impl<E: Send + Sync + 'static> Completion for Staged<E> {
    fn complete(&self, outcome: Result<(), JournalError>) {
        self.enter(outcome.is_ok(), None);
        if let Some(leaves) = &self.leaves {
            leaves.enter(outcome.is_ok(), None);
        }
    }

    fn follow_up(self: Arc<Self>) {
        let leaves = self.leaves.clone();
        Part::follow_up(self);
        leaves.into_iter().for_each(Part::follow_up);
    }
}

impl<E: Send + Sync + 'static> Part for Staged<E> {
    fn enter(&self, is_safe: bool, gate: Option<&Arc<Gate>>) {
        let mut state = self.topic.state.lock();
        let mut letters = self.letters.lock();
        state.staging.land(letters.len() as u64, letters.iter().map(Letter::weight).sum());
        if is_safe {
            let staged = std::mem::take(&mut *letters);
            *letters = self.go_into_log(&mut state, staged, gate);
        } else {
            for id in letters.iter().filter_map(Letter::id) {
                state.dedup.forget(id);
            }
        }
    }

    fn ungate(&self) {
        self.topic.log.ungate();
    }

    fn follow_up(self: Arc<Self>) {
        let after = std::mem::take(&mut *self.after.lock());
        self.topic.follow_up_publish(&after);
    }
}

impl<E> Drop for Staged<E> {
    /// What nobody keeps, and what came to nothing after its publisher had left. One by one: several that panic in one go would be the end of the process.
    fn drop(&mut self) {
        std::mem::take(self.letters.get_mut()).into_iter().for_each(drop_contained);
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// The message as bytes, with its weight: what the journal is to hold of it.
    pub(super) fn encode(
        &self,
        stored: &Stored<E>,
        message: &Message<E>,
        weight: Option<u64>,
    ) -> Result<EncodedMessage, (PublishErrorKind, Option<CodecError>)> {
        let mut payload = take_buffer();
        match contained(|| stored.codec.encode(&message.event, &mut payload)) {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err((PublishErrorKind::Encode, Some(error))),
            None => return Err((PublishErrorKind::Panicked, None)),
        }
        let weight = weight.unwrap_or(payload.len() as u64);
        let extras = message.extras.as_deref();
        let content = match extras {
            Some(extras) if extras.idempotency_id.is_some() => {
                let own = match self.fingerprint.as_ref().filter(|_| self.has_own_fingerprint) {
                    None => None,
                    Some(fingerprint) => match contained(|| fingerprint(&message.event)) {
                        Some(Ok(own)) => Some(own),
                        Some(Err(error)) => return Err((PublishErrorKind::Encode, Some(error))),
                        None => return Err((PublishErrorKind::Panicked, None)),
                    },
                };
                content_of(extras, own, &payload)
            }
            _ => 0,
        };
        let mut encoded = take_buffer();
        encoded.reserve(payload.len() + 16);
        let envelope = Envelope { weight, content, origin: None, payload: &payload };
        encode_message(&mut encoded, &envelope, extras)
            .map_err(|OverLimit(_)| (PublishErrorKind::TooLarge, None))?;
        keep_buffer(payload);
        Ok(EncodedMessage { bytes: encoded, weight, content })
    }

    /// Gives new messages their sequences and adds them to the journal, all or none. None: all were repeats.
    pub(super) fn stage(
        self: &Arc<Self>,
        state: &mut TopicState<E>,
        stored: &Stored<E>,
        parcels: &mut [Parcel<E>],
        now: Tick,
    ) -> Result<Option<UnderWay<E>>, PublishErrorKind> {
        let mut unit = take_buffer();
        self.record_new(state, parcels, now, &mut unit);
        if unit.is_empty() {
            self.give_receipts(state, parcels, &mut Vec::new(), now);
            return Ok(None);
        }
        let staged = self.staged(state, now, Vec::new(), None);
        let given = state.given_with(parcels.len() as u64);
        let added = stored.store.add_giving(&unit, given, Space::Ordinary, Some(staged.clone()));
        keep_buffer(unit);
        // It may have been closed just now.
        let refused = |fault| self.closed_to_publishers().unwrap_or(PublishErrorKind::Storage { fault });
        let position = added.map_err(refused)?;
        self.give_receipts(state, parcels, &mut staged.letters.lock(), now);
        // The journal has them.
        parcels.iter_mut().for_each(|parcel| keep_buffer(std::mem::take(&mut parcel.encoded)));
        state.staging.last = Some(position);
        Ok(Some((staged, position)))
    }

    /// New messages, as they come next. Nothing if there are none.
    pub(super) fn record_new(
        &self,
        state: &mut TopicState<E>,
        parcels: &[Parcel<E>],
        now: Tick,
        unit: &mut Vec<u8>,
    ) {
        let published = state.publish_time(now);
        let new = parcels.iter().filter(|parcel| parcel.receipt.is_none());
        if new.clone().next().is_some() {
            let first = state.staging.next;
            write_published(
                unit,
                self.log.incarnation(),
                first,
                published,
                new.map(|parcel| &*parcel.encoded),
            );
        }
    }

    fn staged(
        self: &Arc<Self>,
        state: &mut TopicState<E>,
        now: Tick,
        letters: Vec<Letter<E>>,
        leaves: Option<Arc<dyn Part>>,
    ) -> Arc<Staged<E>> {
        Arc::new(Staged {
            topic: self.clone(),
            first: state.staging.next,
            published: state.publish_time(now),
            letters: Mutex::new(letters),
            after: Mutex::new(Aftermath::default()),
            leaves,
        })
    }

    /// A transaction's messages, once its unit was added there: they wait for it.
    pub(super) fn stage_part(
        self: &Arc<Self>,
        state: &mut TopicState<E>,
        parcels: &mut [Parcel<E>],
        now: Tick,
        position: Position,
    ) -> Arc<Staged<E>> {
        let staged = self.staged(state, now, Vec::new(), None);
        self.give_receipts(state, parcels, &mut staged.letters.lock(), now);
        state.staging.last = Some(position);
        staged
    }

    fn give_receipts(
        &self,
        state: &mut TopicState<E>,
        parcels: &mut [Parcel<E>],
        letters: &mut Vec<Letter<E>>,
        now: Tick,
    ) {
        let incarnation = self.log.incarnation();
        let mut in_batch: HashMap<IdempotencyId, Sequence> = HashMap::new();
        for parcel in parcels.iter_mut() {
            if let Some((id, _)) = parcel.receipt {
                self.deduplicated.fetch_add(1, crate::sync::atomic::Ordering::Relaxed);
                if id.sequence() == 0
                    && let Some(&sequence) = id_of(parcel).and_then(|id| in_batch.get(id))
                {
                    parcel.receipt = Some((MessageId::new(incarnation, sequence), true));
                }
                continue;
            }
            let sequence = state.staging.next;
            parcel.receipt = Some((MessageId::new(incarnation, sequence), false));
            if !state.config.dedup.is_off()
                && let Some(id) = id_of(parcel)
            {
                state.dedup.record(id, parcel.content, sequence, now);
                in_batch.insert(id.clone(), sequence);
            }
            state.staging.next = sequence.next();
            let Some(message) = parcel.message.take() else { continue };
            state.staging.messages += 1;
            state.staging.bytes += parcel.weight;
            letters.push(Letter::Own { message, weight: parcel.weight });
        }
    }

    /// Appends a dead letter, and settles its origin, in one unit. False: nobody would keep it, or the disk failed.
    pub(super) fn append_shared_stored(
        self: &Arc<Self>,
        stored: &Stored<E>,
        origin: &Spot<E>,
        extras: Extras,
        grave: &Grave<'_, E>,
    ) -> bool {
        let mut payload = Vec::new();
        if !matches!(contained(|| stored.codec.encode(origin.event(), &mut payload)), Some(Ok(()))) {
            return false;
        }
        let len = payload.len() as u64;
        let weight = match &self.weigh {
            Weigh::Size => len,
            // A message that is on this road must not be lost to a closure.
            _ => self.weight_of(origin.event()).unwrap_or(len),
        };
        let mut encoded = Vec::new();
        let (topic, book) = (grave.core.topic.log.incarnation(), grave.core.id);
        let envelope =
            Envelope { weight, content: 0, origin: Some((topic, origin.sequence())), payload: &payload };
        if encode_message(&mut encoded, &envelope, Some(&extras)).is_err() {
            return false;
        }
        let now = self.broker.now();
        let position = {
            let mut state = self.state.lock();
            if self.ended().is_some() || !self.readers(&state).1 {
                return false;
            }
            let published = state.publish_time(now);
            let first = state.staging.next;
            // Under its lock: a seek stands before this in the journal, and then the message is not buried any more, or after it.
            let desk = grave.core.desk.lock();
            if desk.closed || !desk.ledger.is_burying(origin.sequence(), grave.generation) {
                return false;
            }
            let mut unit = Vec::new();
            write_published(&mut unit, self.log.incarnation(), first, published, [&*encoded]);
            let settled = SettledRange {
                from: origin.sequence(),
                to: origin.sequence().next(),
                outcome: OutcomeCode(Outcome::DeadLettered.code()),
            };
            Record::Settled { topic, book, ranges: List::Items(&[settled]) }.encode(&mut unit);
            let letter = Letter::Shared { origin: origin.clone(), extras, weight };
            let (sequence, generation) = (origin.sequence(), grave.generation);
            let leaves = Entry::part(grave.core.clone(), move |ledger, is_safe| {
                if is_safe {
                    ledger.handle_buried(sequence, generation);
                }
            });
            let staged = self.staged(&mut state, now, vec![letter], Some(leaves));
            // Acks and dead letters free space: they may use what is kept for them.
            let added = stored.store.add_giving(&unit, state.given_with(1), Space::Reserve, Some(staged));
            let Ok(position) = added else { return false };
            state.staging.take_off(1, weight, position);
            position
        };
        stored.store.commit(position).is_ok()
    }
}

impl<E> TopicState<E> {
    /// What a unit gives with so many messages at most, as they come next.
    pub(super) fn given_with(&self, messages: u64) -> Given {
        Given::sequences_before(self.staging.next + messages)
    }
}

/// Messages that wait for the unit that was added there.
pub(super) type UnderWay<E> = (Arc<Staged<E>>, Position);

/// The last unit that was added, if a repeat is of a message that is not in the log yet.
pub(super) fn under_way<E>(state: &TopicState<E>, parcels: &[Parcel<E>]) -> Option<Position> {
    let next = state.writer.next().get();
    let is_under_way = |parcel: &Parcel<E>| parcel.receipt.is_some_and(|(id, _)| id.sequence() >= next);
    parcels.iter().any(is_under_way).then_some(state.staging.last).flatten()
}

/// What must be the same of two messages under one idempotency id, also after the program was built anew: the first 64 bits of the SHA-1 that a UUID of version 5 is made of.
fn content_of(extras: &Extras, own: Option<u64>, payload: &[u8]) -> u64 {
    let mut attributes: Vec<_> = extras.attributes.iter().collect();
    attributes.sort();
    let mut bytes = Vec::new();
    let mut add = |part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    };
    for (key, value) in attributes {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    add(extras.ordering_key.as_deref().unwrap_or_default().as_bytes());
    match own {
        Some(fingerprint) => add(&fingerprint.to_le_bytes()),
        None => add(payload),
    }
    let hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &bytes).as_u64_pair();
    hash.0
}
