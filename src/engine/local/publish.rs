//! The road in: limits, dedup, capacity, the log, and whoever waits.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::contain::contained;
use crate::delivery::dedup::Admission;
use crate::engine::local::dead_letter::Grave;
use crate::engine::local::flight::Flight;
use crate::engine::local::occupancy::Occupancy;
use crate::engine::local::staging::EncodedMessage;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{PUBLISHERS, TopicCore, TopicState, Weigh};
use crate::engine::timer::Alarm;
use crate::engine::waiters::Look;
use crate::error::{CodecError, PublishErrorKind};
use crate::log::{Slot, Spot};
use crate::message::{Extras, IdempotencyId, Message, MessageId};
use crate::options::{
    ATTRIBUTE_KEY_LEN_MAX, ATTRIBUTE_VALUE_LEN_MAX, ATTRIBUTES_MAX, IDEMPOTENCY_ID_LEN_MAX, Keep,
    ORDERING_KEY_LEN_MAX, Overflow, PAYLOAD_BYTES_MAX,
};
use crate::sequence::Sequence;
use crate::sync::atomic::Ordering;
use crate::time::Tick;

/// A message on its way in.
pub(crate) struct Parcel<E> {
    /// None once it is in the log.
    pub(crate) message: Option<Message<E>>,
    pub(super) weight: u64,
    pub(super) content: u64,
    /// On disk: the message as the journal is to hold it.
    pub(super) encoded: Vec<u8>,
    pub(crate) receipt: Option<(MessageId, bool)>,
}

impl<E> Parcel<E> {
    /// The parcel, leaving one without a message.
    #[cfg(feature = "async")]
    pub(crate) fn take(&mut self) -> Parcel<E> {
        Parcel {
            message: self.message.take(),
            weight: self.weight,
            content: self.content,
            encoded: std::mem::take(&mut self.encoded),
            receipt: self.receipt,
        }
    }
}

/// A message that is not let in.
pub(crate) struct Refusal<E> {
    pub(crate) kind: PublishErrorKind,
    pub(crate) message: Message<E>,
    pub(crate) encode_error: Option<CodecError>,
}

/// How long a publisher waits for space.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    None,
    Until(Tick),
    Forever,
}

/// What one attempt to append came to.
pub(crate) enum Append {
    Done,
    Refused(PublishErrorKind),
    /// The topic is full, and its overflow says to wait.
    MustWait,
    /// The topic is full, and its overflow says to drop the oldest: this one.
    MustDrop(Sequence),
}

/// What a publish came to that waits for nothing.
pub(crate) enum Begun<E> {
    Done,
    /// The topic is full, and the publisher is to wait.
    MustWait,
    /// On disk: the rest is to follow when the disk has answered.
    UnderWay(Flight<E>),
}

/// What follows an append, outside the lock.
#[derive(Default)]
pub(super) struct Aftermath {
    pub(super) published: usize,
    pub(super) opened_segment: bool,
    /// When the first of the messages dies that carry a life.
    expiry: Option<Tick>,
    pub(super) sweep: bool,
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// Checks a message against the limits, and calls the user's `weigh` and `fingerprint`. No lock is held.
    #[inline]
    pub(crate) fn parcel(&self, message: Message<E>) -> Result<Parcel<E>, Refusal<E>> {
        if let Some(weight) = self.weight_in_batch(&message) {
            return Ok(Parcel {
                message: Some(message),
                weight,
                content: 0,
                encoded: Vec::new(),
                receipt: None,
            });
        }
        self.parcel_with_care(message)
    }

    fn parcel_with_care(&self, message: Message<E>) -> Result<Parcel<E>, Refusal<E>> {
        let Some(weight) = self.weight_of(&message.event) else {
            return Err(Refusal { kind: PublishErrorKind::Panicked, message, encode_error: None });
        };
        let extras = message.extras.as_deref();
        if weight > PAYLOAD_BYTES_MAX || extras.is_some_and(is_too_large) {
            return Err(Refusal { kind: PublishErrorKind::TooLarge, message, encode_error: None });
        }
        if let Some(stored) = &self.stored {
            let own = (!matches!(self.weigh, Weigh::Size)).then_some(weight);
            return match self.encode(stored, &message, own) {
                Ok(EncodedMessage { bytes: encoded, weight, content }) => {
                    Ok(Parcel { message: Some(message), weight, content, encoded, receipt: None })
                }
                Err((kind, encode_error)) => Err(Refusal { kind, message, encode_error }),
            };
        }
        let content = match extras {
            Some(extras) if extras.idempotency_id.is_some() => {
                contained(|| self.content_of(&message.event, extras))
            }
            _ => Some(Ok(0)),
        };
        let content = match content {
            Some(Ok(content)) => content,
            Some(Err(error)) => {
                return Err(Refusal { kind: PublishErrorKind::Encode, message, encode_error: Some(error) });
            }
            None => return Err(Refusal { kind: PublishErrorKind::Panicked, message, encode_error: None }),
        };
        Ok(Parcel { message: Some(message), weight, content, encoded: Vec::new(), receipt: None })
    }

    /// None: the user's `weigh` panicked.
    pub(super) fn weight_of(&self, event: &E) -> Option<u64> {
        match &self.weigh {
            Weigh::User(weigh) => contained(|| weigh(event)),
            _ => self.own_weight(event),
        }
    }

    /// None: that is the user's say.
    #[inline]
    pub(super) fn own_weight(&self, event: &E) -> Option<u64> {
        match &self.weigh {
            Weigh::Size => Some(size_of::<E>() as u64),
            Weigh::Raw(bytes) => Some(bytes(event).map_or(0, |bytes| bytes.len() as u64)),
            Weigh::User(_) => None,
        }
    }

    /// An event's weight where that is no user's say, and within the limit.
    #[inline]
    pub(super) fn plain_weight(&self, event: &E) -> Option<u64> {
        self.own_weight(event).filter(|&weight| weight <= PAYLOAD_BYTES_MAX)
    }

    /// What must be the same of two messages under one idempotency id.
    fn content_of(&self, event: &E, extras: &Extras) -> Result<u64, CodecError> {
        let mut hasher = self.broker.hasher().build_hasher();
        let mut attributes: Vec<_> = extras.attributes.iter().collect();
        attributes.sort();
        attributes.hash(&mut hasher);
        extras.ordering_key.hash(&mut hasher);
        let payload = self.fingerprint.as_ref().map(|fingerprint| fingerprint(event)).transpose()?;
        payload.hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// Publishes all or none, and waits for space as far as patience and the topic's overflow allow.
    pub(crate) fn publish(
        self: &Arc<Self>,
        parcels: &mut [Parcel<E>],
        patience: Patience,
    ) -> Result<(), PublishErrorKind> {
        let line = &self.broker.line;
        let seen = Cell::new(self.freed.load(Ordering::Relaxed));
        let near = || self.freed.load(Ordering::Relaxed) != seen.replace(self.freed.load(Ordering::Relaxed));
        self.space.wait_near(PUBLISHERS, near, || match self.attempt(parcels) {
            Err(kind) => Look::GaveUp(Err(kind)),
            Ok(true) => Look::Found(Ok(())),
            Ok(false) => match patience {
                Patience::None => Look::GaveUp(Err(PublishErrorKind::Full)),
                Patience::Forever => Look::Nothing { until: None },
                Patience::Until(deadline) if line.now() >= deadline => {
                    Look::GaveUp(Err(PublishErrorKind::Timeout))
                }
                Patience::Until(deadline) => {
                    if line.is_manual() {
                        self.call_at(deadline);
                    }
                    Look::Nothing { until: line.instant_of(deadline) }
                }
            },
        })
    }

    /// Whoever waits for space then looks again. To be said before each wait: an alarm that rang for something else was the only one.
    pub(super) fn call_at(self: &Arc<Self>, deadline: Tick) {
        let alarm: Weak<dyn Alarm> = Arc::downgrade(&(self.clone() as Arc<dyn Alarm>));
        self.broker.timer.set(deadline, alarm);
    }

    /// Ok(false): the topic is full, and the publisher is to wait.
    fn attempt(self: &Arc<Self>, parcels: &mut [Parcel<E>]) -> Result<bool, PublishErrorKind> {
        loop {
            match self.begin(parcels)? {
                Begun::Done => return Ok(true),
                Begun::MustWait => return Ok(false),
                Begun::UnderWay(flight) => {
                    if self.wait_for(flight, parcels)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Publishes as far as it goes without waiting, be it for space or for the disk.
    pub(crate) fn begin(self: &Arc<Self>, parcels: &mut [Parcel<E>]) -> Result<Begun<E>, PublishErrorKind> {
        let mut looked_ahead = false;
        loop {
            let appended = match &self.stored {
                None => self.append(parcels),
                Some(stored) => match self.take_off(stored, parcels) {
                    Ok(appended) => appended,
                    Err(flight) => return Ok(Begun::UnderWay(flight)),
                },
            };
            match appended {
                Append::Done => return Ok(Begun::Done),
                // Before anybody meets a full topic, it is made sure that no filter and no deadline would have let its messages go.
                Append::Refused(PublishErrorKind::Full) | Append::MustDrop(_) | Append::MustWait
                    if !looked_ahead =>
                {
                    self.catch_up();
                    looked_ahead = true;
                }
                Append::Refused(kind) => return Err(kind),
                Append::MustDrop(sequence) => self.drop_oldest(sequence, &|_| false),
                Append::MustWait => {
                    self.watch_leases();
                    return Ok(Begun::MustWait);
                }
            }
        }
    }

    /// Who waits for space waits for leases to run out, too: the timer sees to that.
    pub(super) fn watch_leases(&self) {
        if !self.space.nobody() {
            self.subscriptions().iter().for_each(SubscriptionCore::watch_time);
        }
    }

    fn append(self: &Arc<Self>, parcels: &mut [Parcel<E>]) -> Append {
        let now = self.broker.now();
        let mut after = Aftermath::default();
        {
            let mut state = self.state.lock();
            if let Some(kind) = self.closed_to_publishers() {
                return Append::Refused(kind);
            }
            if let Err(kind) = self.admit(&mut state, parcels, now) {
                return Append::Refused(kind);
            }
            if let Some(refusal) = refuse_for_space(&state, parcels, &[], (0, 0)) {
                return refusal;
            }
            self.write(&mut state, parcels, now, &mut after);
            self.log.publish_tail(&state.writer);
        }
        self.follow_up_publish(&after);
        Append::Done
    }

    /// Finds the repeats: those published before, and those of an earlier one in the batch. Records nothing.
    pub(super) fn admit(
        &self,
        state: &mut TopicState<E>,
        parcels: &mut [Parcel<E>],
        now: Tick,
    ) -> Result<(), PublishErrorKind> {
        if state.config.dedup.is_off() {
            // It may have been on when this was last tried.
            parcels.iter_mut().for_each(|parcel| parcel.receipt = None);
            return Ok(());
        }
        if !parcels.iter().any(|parcel| id_of(parcel).is_some()) {
            return Ok(());
        }
        let incarnation = self.log.incarnation();
        let mut in_batch: HashMap<IdempotencyId, u64> = HashMap::new();
        let several = parcels.len() > 1;
        for parcel in parcels.iter_mut() {
            parcel.receipt = None;
            let Some(id) = id_of(parcel) else { continue };
            match state.dedup.admit(id, parcel.content, now) {
                Admission::Conflict => return Err(PublishErrorKind::IdempotencyConflict),
                Admission::Repeat(sequence) => {
                    parcel.receipt = Some((MessageId::new(incarnation, sequence), true));
                }
                Admission::New if several => match in_batch.get(id) {
                    Some(&content) if content != parcel.content => {
                        return Err(PublishErrorKind::IdempotencyConflict);
                    }
                    // Its receipt follows once the first has its sequence.
                    Some(_) => parcel.receipt = Some((MessageId::new(incarnation, Sequence::new(0)), true)),
                    None => drop(in_batch.insert(id.clone(), parcel.content)),
                },
                Admission::New => {}
            }
        }
        Ok(())
    }

    pub(super) fn write(
        self: &Arc<Self>,
        state: &mut TopicState<E>,
        parcels: &mut [Parcel<E>],
        now: Tick,
        after: &mut Aftermath,
    ) {
        let published = state.publish_time(now);
        let (subscriptions, is_kept) = self.readers(state);
        let incarnation = self.log.incarnation();
        let dedups = !state.config.dedup.is_off() && parcels.iter().any(|parcel| id_of(parcel).is_some());
        // The window may be too small for the batch: what is repeated in it is found here.
        let mut in_batch: BTreeMap<IdempotencyId, Sequence> = BTreeMap::new();
        let several = parcels.len() > 1;
        for parcel in parcels.iter_mut() {
            if is_kept
                && let Some(Message { extras: None, .. }) = &parcel.message
                && let Some(message) = parcel.message.take()
            {
                // Nothing but its event: most messages.
                parcel.receipt = Some((MessageId::new(incarnation, state.writer.next()), false));
                self.keep(
                    state,
                    Slot::own(message.event, published, None),
                    parcel.weight,
                    subscriptions,
                    after,
                );
                after.published += 1;
                continue;
            }
            if let Some((id, _)) = parcel.receipt {
                self.deduplicated.fetch_add(1, Ordering::Relaxed);
                if id.sequence() == 0
                    && let Some(&sequence) = id_of(parcel).and_then(|id| in_batch.get(id))
                {
                    parcel.receipt = Some((MessageId::new(incarnation, sequence), true));
                }
                continue;
            }
            let sequence = state.writer.next();
            parcel.receipt = Some((MessageId::new(incarnation, sequence), false));
            if dedups && let Some(id) = id_of(parcel) {
                state.dedup.record(id, parcel.content, sequence, now);
                if several {
                    in_batch.insert(id.clone(), sequence);
                }
            }
            if !is_kept {
                // Nobody is to get it. It is dropped by the publisher, outside the lock.
                state.writer.skip(1);
                continue;
            }
            let Some(message) = parcel.message.take() else { continue };
            if let Some(extras) = &message.extras {
                self.note_times(state, sequence, published, extras, after);
            }
            let slot = Slot::own(message.event, published, message.extras);
            self.keep(state, slot, parcel.weight, subscriptions, after);
            after.published += 1;
        }
    }

    /// How many subscriptions there are, and whether anybody or anything keeps what is appended now. Under the topic's lock.
    pub(super) fn readers(&self, state: &TopicState<E>) -> (u64, bool) {
        let is_kept = state.config.retention.keep != Keep::UntilAcked || state.books > 0;
        (state.subscriptions, is_kept)
    }

    #[inline]
    pub(super) fn keep(
        &self,
        state: &mut TopicState<E>,
        slot: Slot<E>,
        weight: u64,
        subscriptions: u64,
        after: &mut Aftermath,
    ) -> Sequence {
        let (sequence, opened) = self.log.append(&mut state.writer, slot, weight);
        state.resident_messages += 1;
        state.resident_bytes = state.resident_bytes.saturating_add(weight);
        after.opened_segment |= opened;
        if let Some(occupancy) = &mut state.occupancy {
            occupancy.push(sequence, subscriptions, weight);
        }
        after.sweep |= opened && state.is_over_bounds();
        sequence
    }

    pub(super) fn note_times(
        &self,
        state: &mut TopicState<E>,
        sequence: Sequence,
        published: Tick,
        extras: &Extras,
        after: &mut Aftermath,
    ) {
        if !extras.is_timed() {
            return;
        }
        // Before the tail shows the message: a receiver that sees the tail sees that it has to look.
        self.timed.store(true, Ordering::Release);
        let due = extras.due(published);
        if due > published {
            state.end_delays(published);
            state.delays.insert(sequence, due);
            state.delay_ends.insert((due, sequence));
        }
        let expiry = extras.expiry(published);
        if expiry != Tick::NEVER {
            state.lives.insert((expiry, sequence));
            state.life_of.insert(sequence, expiry);
            after.expiry = Some(after.expiry.map_or(expiry, |first| first.min(expiry)));
        }
    }

    #[inline]
    pub(super) fn follow_up_publish(self: &Arc<Self>, after: &Aftermath) {
        if after.published > 0 && !self.receivers.nobody() {
            self.receivers.wake_each(after.published);
        }
        if let Some(expiry) = after.expiry {
            self.arm_at(expiry);
        }
        if after.opened_segment && matches!(self.config().retention.keep, Keep::For(_)) {
            self.arm();
        }
        let shortest = self.expire_after_min.load(Ordering::Relaxed);
        if shortest < u64::MAX {
            self.arm_at(self.broker.now() + Duration::from_nanos(shortest));
        }
        if after.sweep {
            self.sweep();
        }
    }

    /// Appends a dead letter, which shares the event of its origin, whatever the capacity, and settles its origin. False: nobody would keep it.
    pub(crate) fn append_shared(
        self: &Arc<Self>,
        origin: &Spot<E>,
        extras: Extras,
        grave: &Grave<'_, E>,
    ) -> bool {
        if let Some(stored) = &self.stored {
            return self.append_shared_stored(stored, origin, extras, grave);
        }
        // A message that is on this road must not be lost to a closure.
        let weight = self.weight_of(origin.event()).unwrap_or(size_of::<E>() as u64);
        let now = self.broker.now();
        let mut after = Aftermath::default();
        {
            let mut state = self.state.lock();
            let (subscriptions, is_kept) = self.readers(&state);
            if self.ended().is_some() || !is_kept {
                return false;
            }
            let published = state.publish_time(now);
            let slot = Slot::shared(origin, published, extras);
            self.keep(&mut state, slot, weight, subscriptions, &mut after);
            self.log.publish_tail(&state.writer);
        }
        if after.opened_segment || after.sweep {
            self.follow_up_publish(&after);
        }
        grave.core.change(|ledger| ledger.handle_buried(origin.sequence(), grave.generation));
        true
    }

    /// The oldest message that is not settled by all is settled by all.
    pub(super) fn drop_oldest(self: &Arc<Self>, sequence: Sequence, spared: &dyn Fn(u64) -> bool) {
        let mut dropped = false;
        for subscription in self.subscriptions().iter().filter(|subscription| !spared(subscription.id)) {
            dropped |= subscription.drop_message(sequence);
        }
        if dropped {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.broker.wake_commits();
        } else {
            // All settled it meanwhile, and their news is on its way to the count.
            crate::sync::thread::yield_now();
        }
    }

    /// Counts from now on, under the topic's lock: what is kept and not settled by all takes room.
    pub(super) fn start_counting(&self, state: &mut TopicState<E>) {
        let mut occupancy = Occupancy::new(state.config.capacity, state.writer.next());
        let mut at = self.log.first_kept();
        while let Some(segment) = self.log.segment_from(at) {
            let mean = segment.bytes().checked_div(segment.len()).unwrap_or(0);
            for n in 0..segment.len() {
                occupancy.push(segment.first() + n, 0, mean);
            }
            at = segment.end();
        }
        state.occupancy = Some(occupancy);
        self.limited.store(true, Ordering::SeqCst);
    }
}

impl<E> TopicState<E> {
    /// The next message gets this sequence, if it would get one before.
    pub(super) fn skip_to(&mut self, next: Sequence) {
        let gap = next - self.writer.next();
        if gap > 0 {
            self.writer.skip(gap);
        }
    }

    /// How many messages were given a sequence.
    pub(super) fn published(&self) -> u64 {
        (self.writer.next() - Sequence::FIRST).saturating_sub(self.passed_over)
    }

    /// When what is published now is published: never before what was published before it.
    #[inline]
    pub(super) fn publish_time(&mut self, now: Tick) -> Tick {
        self.last_published = self.last_published.max(now);
        self.last_published
    }

    /// Publish delays that are over need not be known any more.
    pub(super) fn end_delays(&mut self, now: Tick) {
        while let Some(&(until, sequence)) = self.delay_ends.first()
            && until <= now
        {
            self.delay_ends.pop_first();
            self.delays.remove(&sequence);
        }
    }

    /// The messages of a segment that went: their times need not be known any more.
    pub(super) fn forget_times(&mut self, from: Sequence, to: Sequence) {
        if self.life_of.is_empty() && self.delays.is_empty() {
            return;
        }
        let dead: Vec<_> = self.life_of.range(from..to).map(|(&sequence, &at)| (at, sequence)).collect();
        for life in dead {
            self.life_of.remove(&life.1);
            self.lives.remove(&life);
        }
        let delays: Vec<_> =
            self.delays.range(from..to).map(|(&sequence, &until)| (until, sequence)).collect();
        for delay in delays {
            self.delays.remove(&delay.1);
            self.delay_ends.remove(&delay);
        }
    }

    /// Whether the retention's own bounds are passed.
    pub(super) fn is_over_bounds(&self) -> bool {
        let retention = self.config.retention;
        retention.messages_max.is_some_and(|max| self.resident_messages > max)
            || retention.bytes_max.is_some_and(|max| self.resident_bytes > max)
    }
}

/// `acked`: what is settled together with the publish, in order. `under_way`: messages and bytes that are not in the log yet.
pub(super) fn refuse_for_space<E>(
    state: &TopicState<E>,
    parcels: &[Parcel<E>],
    acked: &[Sequence],
    under_way: (u64, u64),
) -> Option<Append> {
    let occupancy = state.occupancy.as_ref()?;
    let new = parcels.iter().filter(|parcel| parcel.receipt.is_none());
    let (messages, bytes) =
        new.fold((0_u64, 0_u64), |(count, bytes), parcel| (count + 1, bytes.saturating_add(parcel.weight)));
    let all = (messages.saturating_add(under_way.0), bytes.saturating_add(under_way.1));
    if messages == 0 || occupancy.has_room_for(all.0, all.1, occupancy.room_of(acked)) {
        return None;
    }
    if !occupancy.could_ever_fit(messages, bytes) {
        return Some(Append::Refused(PublishErrorKind::TooLarge));
    }
    Some(match occupancy.limits().overflow {
        Overflow::Block => Append::MustWait,
        Overflow::Reject => Append::Refused(PublishErrorKind::Full),
        Overflow::DropOldest => match occupancy.oldest_beyond(acked) {
            Some(sequence) => Append::MustDrop(sequence),
            None => Append::MustWait,
        },
    })
}

pub(super) fn id_of<E>(parcel: &Parcel<E>) -> Option<&IdempotencyId> {
    parcel.message.as_ref()?.extras.as_ref()?.idempotency_id.as_ref()
}

fn is_too_large(extras: &Extras) -> bool {
    extras.attributes.len() > ATTRIBUTES_MAX
        || extras
            .attributes
            .iter()
            .any(|(key, value)| key.len() > ATTRIBUTE_KEY_LEN_MAX || value.len() > ATTRIBUTE_VALUE_LEN_MAX)
        || extras.ordering_key.as_ref().is_some_and(|key| key.len() > ORDERING_KEY_LEN_MAX)
        || extras.idempotency_id.as_ref().is_some_and(|id| id.len() > IDEMPOTENCY_ID_LEN_MAX)
}
