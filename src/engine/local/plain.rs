//! The short road in: messages that carry nothing but their events. A batch of them is laid out before anything is locked, also as the journal is to hold it, and
//! goes into the log in one piece.

use std::sync::Arc;

use crate::contain::drop_contained;
use crate::engine::local::occupancy::Room;
use crate::engine::local::publish::Aftermath;
use crate::engine::local::staging::{Staging, Stored};
use crate::engine::local::store::Completion;
use crate::engine::local::topic::{TopicCore, TopicState, Weigh};
use crate::error::PublishErrorKind;
use crate::journal::record::PlainRecord;
use crate::journal::{JournalError, Space};
use crate::log::{EventBatch, Slot, Stage};
use crate::message::{Message, MessageId};
use crate::sequence::Sequence;
use crate::sync::Mutex;
use crate::time::Tick;

/// Why a batch did not take the short road. Nothing of it was published.
pub(crate) enum Unsent<E> {
    /// It has to go the long way.
    NotPlain(Vec<E>),
    /// The disk failed, or is full.
    Failed(PublishErrorKind, Vec<E>),
}

/// A batch that goes into the log when its unit is safe.
struct Bulk<E: 'static> {
    topic: Arc<TopicCore<E>>,
    first: Sequence,
    published: Tick,
    count: u64,
    bytes: u64,
    /// Taken when it goes into the log, or back to its publisher.
    batch: Mutex<Option<EventBatch<E>>>,
    after: Mutex<Aftermath>,
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// A message that carries nothing but its event, where that is all there is to it: the topic has room and calls no closure. It comes back if that is not so, or the topic
    /// has ended: then go the long way.
    #[inline]
    pub(crate) fn publish_plain(self: &Arc<Self>, message: Message<E>) -> Result<MessageId, Message<E>> {
        let Some(weight) = self.weight_in_batch(&message) else { return Err(message) };
        let now = self.broker.now();
        let mut after = Aftermath::default();
        let sequence = {
            let mut state = self.state.lock();
            let Some(subscriptions) = self.plain_readers(&state, 1, weight) else { return Err(message) };
            let published = state.publish_time(now);
            let slot = Slot::own(message.event, published, None);
            let sequence = self.keep(&mut state, slot, weight, subscriptions, &mut after);
            self.log.publish_tail(&state.writer);
            sequence
        };
        after.published = 1;
        self.follow_up_publish(&after);
        Ok(MessageId::new(self.log.incarnation(), sequence))
    }

    /// What a message weighs that may be part of a plain batch: see [`publish_all_plain`](Self::publish_all_plain).
    #[inline]
    pub(crate) fn weight_in_batch(&self, message: &Message<E>) -> Option<u64> {
        if message.extras.is_some() || self.stored.is_some() {
            None
        } else {
            self.plain_weight(&message.event)
        }
    }

    /// What a message weighs that may be part of a plain batch on disk: its payload is known without a codec of a user's.
    #[inline]
    pub(crate) fn weight_in_stored_batch(&self, message: &Message<E>) -> Option<u64> {
        let is_raw = self.stored.as_ref().is_some_and(|stored| stored.is_raw);
        if is_raw && message.extras.is_none() { self.plain_weight(&message.event) } else { None }
    }

    /// [`publish_plain`](Self::publish_plain) of a batch, all of them plain, which together weigh so much. Gives the first's id. They come back if that cannot be.
    pub(crate) fn publish_all_plain(
        self: &Arc<Self>,
        stage: Stage<'_, E>,
        bytes: u64,
    ) -> Result<MessageId, Unsent<E>> {
        let batch = EventBatch::new(stage, bytes, |event| self.own_weight(event).unwrap_or(0));
        if let Some(stored) = &self.stored {
            return self.publish_all_plain_stored(stored, batch, bytes);
        }
        let count = batch.len();
        let now = self.broker.now();
        let mut after = Aftermath::default();
        let first = {
            let mut state = self.state.lock();
            let Some(subscriptions) = self.plain_readers(&state, count, bytes) else {
                return Err(Unsent::NotPlain(batch.into_events().collect()));
            };
            let published = state.publish_time(now);
            let first = state.writer.next();
            self.keep_batch(&mut state, published, batch, subscriptions, &mut after);
            self.log.publish_tail(&state.writer);
            first
        };
        self.follow_up_publish(&after);
        Ok(MessageId::new(self.log.incarnation(), first))
    }

    /// [`keep`](Self::keep) of a plain batch.
    pub(super) fn keep_batch(
        &self,
        state: &mut TopicState<E>,
        published: Tick,
        batch: EventBatch<E>,
        subscriptions: u64,
        after: &mut Aftermath,
    ) {
        let weigh = |event: &E| self.own_weight(event).unwrap_or(0);
        if let Some(occupancy) = &mut state.occupancy {
            let first = state.writer.next();
            for (n, event) in (0..).zip(batch.events()) {
                occupancy.push(first + n, subscriptions, weigh(event));
            }
        }
        let appended = self.log.append_batch(&mut state.writer, published, batch, weigh);
        state.resident_messages += appended.count;
        state.resident_bytes = state.resident_bytes.saturating_add(appended.bytes);
        after.published = appended.count as usize;
        after.opened_segment = appended.opened;
        after.sweep = appended.opened && state.is_over_bounds();
    }

    /// [`readers`](Self::readers) where plain messages may take the short road: somebody keeps them, there is room, and nothing has ended.
    #[inline]
    pub(super) fn plain_readers(&self, state: &TopicState<E>, messages: u64, bytes: u64) -> Option<u64> {
        let (subscriptions, is_kept) = self.readers(state);
        let has_room = match &state.occupancy {
            Some(occupancy) => {
                let Staging { messages: staged, bytes: staged_bytes, .. } = state.staging;
                let (messages, bytes) = (messages.saturating_add(staged), bytes.saturating_add(staged_bytes));
                occupancy.has_room_for(messages, bytes, Room::default())
            }
            None => true,
        };
        (is_kept && has_room && self.closed_to_publishers().is_none()).then_some(subscriptions)
    }

    /// [`publish_all_plain`](Self::publish_all_plain) on disk.
    pub(super) fn publish_all_plain_stored(
        self: &Arc<Self>,
        stored: &Stored<E>,
        batch: EventBatch<E>,
        bytes: u64,
    ) -> Result<MessageId, Unsent<E>> {
        let Some(mut record) = self.record_of_batch(&batch, bytes) else {
            return Err(Unsent::NotPlain(batch.into_events().collect()));
        };
        let count = batch.len();
        let now = self.broker.now();
        let (bulk, added) = {
            let mut state = self.state.lock();
            if self.plain_readers(&state, count, bytes).is_none() {
                return Err(Unsent::NotPlain(batch.into_events().collect()));
            }
            let (first, published) = (state.staging.next, state.publish_time(now));
            let (batch, after) = (Mutex::new(Some(batch)), Mutex::new(Aftermath::default()));
            let bulk = Arc::new(Bulk { topic: self.clone(), first, published, count, bytes, batch, after });
            let unit = record.finish(self.log.incarnation(), first, published);
            let given = state.given_with(count);
            let added = stored.store.add_giving(unit, given, Space::Ordinary, Some(bulk.clone()));
            if let Ok(position) = added {
                state.staging.take_off(count, bytes, position);
            }
            (bulk, added)
        };
        let kind = match added {
            Ok(position) => match stored.store.commit(position) {
                Ok(()) => {
                    self.broker.checkpoint_in_time();
                    return Ok(MessageId::new(self.log.incarnation(), bulk.first));
                }
                Err(JournalError::NoSpace) if self.broker.makes_space() => {
                    // There is some now, and it is tried again the long way.
                    let batch = bulk.batch.lock().take();
                    return Err(Unsent::NotPlain(
                        batch.into_iter().flat_map(EventBatch::into_events).collect(),
                    ));
                }
                Err(error) => self.why_not_safe(stored, &error),
            },
            // It may have been closed just now.
            Err(fault) => self.closed_to_publishers().unwrap_or(PublishErrorKind::Storage { fault }),
        };
        let batch = bulk.batch.lock().take();
        Err(Unsent::Failed(kind, batch.into_iter().flat_map(EventBatch::into_events).collect()))
    }

    /// None: it does not go into one.
    fn record_of_batch(&self, batch: &EventBatch<E>, bytes: u64) -> Option<PlainRecord> {
        let Weigh::Raw(as_bytes) = &self.weigh else { return None };
        let mut record = PlainRecord::with_capacity(batch.len() as usize, usize::try_from(bytes).ok()?);
        batch
            .events()
            .all(|event| as_bytes(event).is_some_and(|payload| record.push(payload)))
            .then_some(record)
    }
}

impl<E: Send + Sync + 'static> Completion for Bulk<E> {
    fn complete(&self, outcome: Result<(), JournalError>) {
        let topic = &self.topic;
        let mut state = topic.state.lock();
        state.staging.land(self.count, self.bytes);
        if outcome.is_err() {
            return;
        }
        // Units between that found no space on the disk: their messages came to nothing.
        state.skip_to(self.first);
        let (subscriptions, is_kept) = topic.readers(&state);
        if !is_kept {
            // Nobody is to get them. They are dropped outside the lock.
            state.writer.skip(self.count);
        } else if let Some(batch) = self.batch.lock().take() {
            let mut after = self.after.lock();
            topic.keep_batch(&mut state, self.published, batch, subscriptions, &mut after);
        }
        topic.log.publish_tail(&state.writer);
    }

    fn follow_up(self: Arc<Self>) {
        let after = std::mem::take(&mut *self.after.lock());
        self.topic.follow_up_publish(&after);
    }
}

impl<E> Drop for Bulk<E> {
    /// What nobody keeps. One by one: several that panic in one go would be the end of the process.
    fn drop(&mut self) {
        let batch = self.batch.get_mut().take();
        batch.into_iter().flat_map(EventBatch::into_events).for_each(drop_contained);
    }
}
