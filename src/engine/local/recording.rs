//! What becomes of messages, on disk: settlements and attempts as records of the journal, each added under the lock of the book that it changes.

use std::sync::Arc;
use std::time::Duration;

use crate::contain::contained;
use crate::delivery::hand_out::{Grant, Ticket};
use crate::delivery::ledger::{Ledger, Returned, Rules};
use crate::delivery::retry::{Beyond, Reason};
use crate::delivery::settled::Outcome;
use crate::engine::local::ahead::Given;
use crate::engine::local::archiving::Dead;
use crate::engine::local::effect::{Creation, Entry};
use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::replay::Snapshot;
use crate::engine::local::staging::Stored;
use crate::engine::local::store::Added;
use crate::engine::local::subscription::{SubscriptionChange, SubscriptionCore};
use crate::engine::local::topic::{Book, TopicConfig, TopicCore, Weigh};
use crate::error::{SettleError, StorageFault};
use crate::few::Few;
use crate::journal::archive::Mortality;
use crate::journal::record::{
    AttemptRange, BookOptions, DeadLetterTo, Envelope, List, OutcomeCode, Part, Record, SettledRange,
    SoughtTo, TopicOptions, encode_message,
};
use crate::journal::{JournalError, Position, Space};
use crate::log::Spot;
use crate::message::Extras;
use crate::name::Name;
use crate::options::DeliveryMode;
use crate::sequence::Sequence;
use crate::time::Tick;

/// What a message takes at least, beside its payload.
const MESSAGE_LEN: u64 = 24;

impl<E: Send + Sync + 'static> TopicCore<E> {
    fn record_options(&self, config: TopicConfig) -> TopicOptions<'_> {
        TopicOptions {
            retention: config.retention,
            capacity: config.capacity,
            dedup: config.dedup,
            codec: self.codec.as_deref(),
            has_fingerprint: self.has_own_fingerprint,
            has_weigh: matches!(self.weigh, Weigh::User(_)),
        }
    }

    /// That the topic is there, from `next` on.
    pub(super) fn record_of_creation(&self, config: TopicConfig, next: Sequence) -> Vec<u8> {
        let mut unit = Vec::new();
        let (topic, name) = (self.log.incarnation(), self.name.clone());
        Record::TopicCreated { topic, next, name, options: self.record_options(config) }.encode(&mut unit);
        unit
    }

    /// Adds that to the journal.
    pub(crate) fn add_creation(self: &Arc<Self>) -> Result<(), StorageFault> {
        let Some(stored) = self.stored.as_ref() else { return Ok(()) };
        let unit = self.record_of_creation(self.config(), Sequence::FIRST);
        let given = Given::topic(self.log.incarnation());
        Creation::add(&stored.store, &unit, given, self, |topic| &topic.creation).map(drop)
    }

    pub(super) fn record_of_update(&self, config: TopicConfig, next: Sequence, now: Tick) -> Vec<u8> {
        let mut unit = Vec::new();
        let topic = self.log.incarnation();
        // What a shorter window forgets, it forgets as of now.
        Record::Clock { now }.encode(&mut unit);
        let oldest = self.log.first_kept().min(next);
        Record::TopicUpdated { topic, next, oldest, options: self.record_options(config) }.encode(&mut unit);
        unit
    }

    /// All of the topic, for a checkpoint. What happens meanwhile may be in it or not: it is in the journal after the checkpoint's position, and replayed over it.
    pub(super) fn write_records(&self, image: &mut ImageWriter<'_>) {
        let Some(stored) = &self.stored else { return };
        let topic = self.log.incarnation();
        let dead = Dead::new(self.forget());
        let (mut chunk, next) = {
            let state = self.state.lock();
            let next = state.writer.next();
            let mut chunk = self.record_of_creation(state.config, next);
            let (oldest, last_published) = (self.log.first_kept(), state.last_published);
            // An id of a message that is still on its way counts when that has arrived, which the journal will know.
            let dedup = state.dedup.image(next);
            for dedup in Part::all_of(&dedup) {
                Record::TopicImage { topic, next, oldest, last_published, dedup }.encode(&mut chunk);
            }
            if state.passed_over > 0 {
                Record::PassedOver { topic, next, count: state.passed_over }.encode(&mut chunk);
            }
            (chunk, next)
        };
        // Before the books: a book that was sought to one of them has it.
        let snapshots: Vec<_> = {
            let books = self.books.read();
            let snapshots = books.iter().filter_map(|book| match book {
                Book::Snapshot(snapshot) => {
                    Some(snapshot.clone()).filter(|snapshot| snapshot.creation.is_safe())
                }
                Book::Subscription(_) => None,
            });
            snapshots.collect()
        };
        for snapshot in snapshots {
            chunk.extend_from_slice(&self.record_of_snapshot(&snapshot));
        }
        for subscription in
            self.subscriptions().into_iter().filter(|subscription| subscription.creation.is_safe())
        {
            subscription.write_records(&mut chunk);
            image.records(&std::mem::take(&mut chunk));
        }
        image.records(&chunk);
        // After the books: what they had not settled then is still there, or has been settled since, which the journal knows.
        let oldest = self.log.first_kept();
        let live_before = |to, enough| self.live_before(to, enough, &dead);
        let mut messages = image.messages(topic, oldest, live_before, Some(&dead));
        let mut at = self.log.segment_of(messages.from()).map_or(messages.from(), |segment| segment.first());
        while let Some(segment) = self.log.segment_from(at) {
            let end = segment.end().min(next);
            at = segment.end().max(segment.first().next());
            let mut sequence = segment.first().max(messages.from());
            while sequence < end {
                if dead.lives(sequence)
                    && let Some(spot) = self.log.find(sequence)
                {
                    let (published, extras) = self.log.extras(&spot);
                    messages.push(sequence, published, |out| self.encode_again(stored, &spot, extras, out));
                }
                sequence = sequence.next();
            }
        }
        messages.finish();
    }

    /// About how many bytes live before this message, as far as it is not more than `enough`.
    fn live_before(&self, to: Sequence, enough: u64, dead: &Dead) -> u64 {
        let mut bytes = 0;
        let mut at = self.log.first_kept();
        while bytes <= enough
            && let Some(segment) = self.log.segment_from(at).filter(|segment| segment.first() < to)
        {
            at = segment.end().max(segment.first().next());
            let (len, live) = (segment.len().max(1), dead.living(segment.first(), segment.end()));
            // A message takes some space even if it weighs nothing.
            bytes += live * (segment.bytes() / len + MESSAGE_LEN);
        }
        bytes
    }

    fn record_of_snapshot(&self, snapshot: &Snapshot) -> Vec<u8> {
        let (topic, book, expires) = (self.log.incarnation(), snapshot.id, snapshot.expires);
        let image = snapshot.settled.image();
        let mut unit = Vec::new();
        for (n, image) in Part::all_of(&image).enumerate() {
            let record = match n {
                0 => Record::SnapshotCreated { topic, book, name: snapshot.name.clone(), expires, image },
                _ => Record::BookImage { topic, book, image },
            };
            record.encode(&mut unit);
        }
        unit
    }

    pub(super) fn record_snapshot(&self, snapshot: &Arc<Snapshot>) -> Result<(), StorageFault> {
        let Some(stored) = &self.stored else { return Ok(()) };
        let unit = self.record_of_snapshot(snapshot);
        let given = Given::NOTHING;
        Creation::add(&stored.store, &unit, given, snapshot, |snapshot| &snapshot.creation)?;
        snapshot.creation.wait(&stored.store)
    }

    /// Appends a message that is in the log, as the journal has it. False: it cannot.
    fn encode_again(
        &self,
        stored: &Stored<E>,
        spot: &Spot<E>,
        extras: Option<&Extras>,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut payload = Vec::new();
        // It was encoded once: a codec that does not do it again loses the message with the process, which is its author's to answer for.
        if !matches!(contained(|| stored.codec.encode(spot.event(), &mut payload)), Some(Ok(()))) {
            return false;
        }
        let weight = match &self.weigh {
            Weigh::Size => Some(payload.len() as u64),
            _ => self.weight_of(spot.event()),
        };
        let weight = weight.unwrap_or(payload.len() as u64);
        let envelope = Envelope { weight, content: 0, origin: None, payload: &payload };
        encode_message(out, &envelope, extras).is_ok()
    }
}

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    /// How the subscription was made, as of now.
    fn options_of(
        &self,
        rules: &Rules,
        cemetery: Option<Name>,
        expire_after: Option<Duration>,
    ) -> BookOptions<'_> {
        BookOptions {
            ack_deadline: rules.ack_deadline,
            mode: rules.mode,
            ordered: rules.ordered,
            filter: self.filter.as_ref().map(|filter| filter.source()),
            has_filter_fn: self.has_filter_fn(),
            retry: rules.retry,
            dead_letter: match (rules.beyond, cemetery) {
                (Beyond::Retry, _) => DeadLetterTo::None,
                (Beyond::DeadLetter { after }, Some(name)) => DeadLetterTo::Topic { after, name },
                (Beyond::Discard { after } | Beyond::DeadLetter { after }, _) => {
                    DeadLetterTo::Discard { after }
                }
            },
            expire_after,
            outstanding_max: rules.outstanding_max,
        }
    }

    /// That the subscription is there, and that these messages are not, which it would else begin with.
    pub(super) fn record_of_new(
        &self,
        ledger: &Ledger,
        start: Sequence,
        end: Sequence,
        gaps: &[(Sequence, Sequence)],
    ) -> Vec<u8> {
        let mut unit = self.record_of_creation(ledger.rules(), start, end);
        if !gaps.is_empty() {
            self.write_settled(ledger, gaps, &mut unit);
        }
        unit
    }

    /// That the subscription is there. `end`: the topic's end at that moment.
    fn record_of_creation(&self, rules: &Rules, start: Sequence, end: Sequence) -> Vec<u8> {
        let mut unit = Vec::new();
        let (topic, book, name) = (self.topic.log.incarnation(), self.id, self.name.clone());
        let options = self.options_of(rules, self.cemetery_name(), self.expire_after());
        Record::BookCreated { topic, book, start, end, name, options }.encode(&mut unit);
        unit
    }

    /// What an update is going to change.
    pub(super) fn record_of_update(&self, change: &SubscriptionChange<E>) -> Vec<u8> {
        let mut unit = Vec::new();
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let name = match &change.cemetery {
            Some(cemetery) => cemetery.as_ref().map(|cemetery| cemetery.name.clone()),
            None => self.cemetery_name(),
        };
        let expire_after = change.expire_after.unwrap_or_else(|| self.expire_after());
        let options = self.options_of(&change.rules, name, expire_after);
        Record::BookUpdated { topic, book, options }.encode(&mut unit);
        unit
    }

    /// Where a seek has put the book just now. Under its lock. `is_plain`: all from its low water on is there, and unsettled.
    ///
    /// Otherwise the record says by itself how all stands: a snapshot may be deleted before it, and the journal may still have what the topic has let go of.
    pub(super) fn record_seek(&self, ledger: &Ledger, is_plain: bool) -> Option<Added> {
        let stored = self.topic.stored.as_ref()?;
        let (topic, book, generation) = (self.topic.log.incarnation(), self.id, ledger.generation());
        let mut unit = Vec::new();
        if is_plain {
            let to = SoughtTo::Sequence(ledger.low());
            Record::Sought { topic, book, generation, to }.encode(&mut unit);
        } else {
            let image = ledger.settled().image();
            for (n, image) in Part::all_of(&image).enumerate() {
                let record = match n {
                    0 => Record::Sought { topic, book, generation, to: SoughtTo::Image(image) },
                    _ => Record::BookImage { topic, book, image },
                };
                record.encode(&mut unit);
            }
        }
        Some(stored.store.add(&unit, Space::Ordinary, None))
    }

    fn write_records(&self, out: &mut Vec<u8>) {
        let (image, rules, start) = {
            let desk = self.desk.lock();
            (desk.ledger.image(), desk.ledger.rules().clone(), desk.ledger.low())
        };
        out.extend_from_slice(&self.record_of_creation(&rules, start, start));
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        for image in Part::all_of(&image) {
            Record::BookImage { topic, book, image }.encode(out);
        }
    }

    /// What was settled just now. Under the book's lock.
    pub(super) fn record_settled(
        &self,
        stored: &Stored<E>,
        ledger: &Ledger,
        news: &[(Sequence, Sequence)],
    ) -> Added {
        let mut unit = Vec::new();
        self.write_settled(ledger, news, &mut unit);
        // Acks free space: they may use what is kept for them.
        stored.store.add(&unit, Space::Reserve, None)
    }

    fn write_settled(&self, ledger: &Ledger, news: &[(Sequence, Sequence)], unit: &mut Vec<u8>) {
        let settled = ledger.settled();
        let mut ranges: Vec<SettledRange> = Vec::new();
        for &(mut at, to) in news {
            // What became settled side by side may have been settled in different ways.
            while at < to {
                let outcome = OutcomeCode(settled.outcome(at).unwrap_or(Outcome::Acked).code());
                let end = settled.alike_to(at).min(to);
                match ranges.last_mut() {
                    Some(last) if last.to == at && last.outcome == outcome => last.to = end,
                    _ => ranges.push(SettledRange { from: at, to: end, outcome }),
                }
                at = end;
            }
        }
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        Record::Settled { topic, book, ranges: List::Items(&ranges) }.encode(unit);
    }

    /// What is handed out at most once just now, on disk: it is settled when that is safe, and else is as if nobody had asked for it. Under the book's lock.
    ///
    /// The grants are then those of what is settled; if that could not even be added, there are none.
    pub(super) fn record_hand_out(
        self: &Arc<Self>,
        ledger: &mut Ledger,
        grants: &mut Few<Grant>,
    ) -> Option<Added> {
        let stored = self.topic.stored.as_ref().filter(|_| self.mode == DeliveryMode::AtMostOnce)?;
        if grants.is_empty() {
            return None;
        }
        let leased: Arc<[Grant]> = grants.as_slice().into();
        let mut unit = Vec::new();
        self.record_acks(leased.iter().flat_map(Grant::tickets).map(|ticket| ticket.sequence), &mut unit);
        let settled = leased.clone();
        let done = Entry::alone(self.clone(), move |ledger, is_safe| ledger.end_hand_out(&settled, is_safe));
        // It frees space, as an ack does.
        let added = stored.store.add(&unit, Space::Reserve, Some(done));
        if added.is_ok() {
            grants.as_mut_slice().iter_mut().for_each(|grant| grant.lease = None);
        } else {
            ledger.end_hand_out(&leased, false);
            grants.clear();
        }
        Some(added)
    }

    /// What is acked together, as safe as a publish: it takes effect when it is, and else counts as a drop of each. Under the book's lock.
    pub(super) fn record_safe_acks(
        self: &Arc<Self>,
        stored: &Stored<E>,
        ledger: &mut Ledger,
        tickets: Vec<Ticket>,
    ) -> Added {
        let tickets: Arc<[Ticket]> = tickets.into();
        let mut unit = Vec::new();
        self.record_acks(tickets.iter().map(|ticket| ticket.sequence), &mut unit);
        let (acked, broker) = (tickets.clone(), self.topic.broker.clone());
        let done =
            Entry::alone(self.clone(), move |ledger, is_safe| ledger.end_acks(&acked, is_safe, broker.now()));
        // Acks free space: they may use what is kept for them.
        let added = stored.store.add(&unit, Space::Reserve, Some(done));
        if added.is_err() {
            ledger.end_acks(&tickets, false, self.topic.broker.now());
        }
        added
    }

    /// What is acked, in order.
    pub(super) fn record_acks(&self, sequences: impl Iterator<Item = Sequence>, unit: &mut Vec<u8>) {
        let outcome = OutcomeCode(Outcome::Acked.code());
        let mut ranges: Vec<SettledRange> = Vec::new();
        for from in sequences {
            match ranges.last_mut() {
                Some(last) if last.to == from => last.to = from.next(),
                _ => ranges.push(SettledRange { from, to: from.next(), outcome }),
            }
        }
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        Record::Settled { topic, book, ranges: List::Items(&ranges) }.encode(unit);
    }

    /// What is handed out just now, where attempts are counted. Under the book's lock; to be written before the hand-out, so that a message that takes the process down has spent its attempt.
    pub(super) fn record_attempts(&self, ledger: &Ledger, grants: &[Grant]) -> Option<Added> {
        let stored = self.topic.stored.as_ref()?;
        if matches!(ledger.rules().beyond, Beyond::Retry) || grants.is_empty() {
            return None;
        }
        let ranges: Vec<_> = grants
            .iter()
            .map(|grant| AttemptRange {
                from: grant.first,
                to: grant.first + grant.len,
                attempts: grant.first_ticket().attempt,
            })
            .collect();
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let mut unit = Vec::new();
        Record::Attempts { topic, book, ranges: List::Items(&ranges) }.encode(&mut unit);
        Some(stored.store.add(&unit, Space::Reserve, None))
    }

    /// What came back just now: what was released is as if it had not been handed out, where attempts are counted, and what is delayed stays so. Under the book's lock.
    pub(super) fn record_returns(&self, stored: &Stored<E>, ledger: &mut Ledger) -> Option<Added> {
        let returns = ledger.take_returns();
        if returns.is_empty() {
            return None;
        }
        let counts = !matches!(ledger.rules().beyond, Beyond::Retry);
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let mut unit = Vec::new();
        for Returned { sequence, attempts, until } in returns {
            if let Some(until) = until {
                Record::Delayed { topic, book, sequence, until, attempts }.encode(&mut unit);
            } else if counts {
                let range = AttemptRange { from: sequence, to: sequence.next(), attempts };
                Record::Attempts { topic, book, ranges: List::Items(&[range]) }.encode(&mut unit);
            }
        }
        (!unit.is_empty()).then(|| stored.store.add(&unit, Space::Reserve, None))
    }

    /// That it is due to be dead-lettered, and why, and is kept here as yet. Under the book's lock.
    pub(super) fn record_parked(&self, sequence: Sequence, attempts: u32, reason: &Reason) -> Option<Added> {
        let stored = self.topic.stored.as_ref()?;
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let mut unit = Vec::new();
        Record::Parked { topic, book, sequence, attempts, reason: reason.as_str() }.encode(&mut unit);
        Some(stored.store.add(&unit, Space::Reserve, None))
    }

    /// What a nack or a rejection has settled is in the journal; where that is promised of acks, as safe as a publish.
    pub(super) fn make_discard_safe(&self, recorded: Option<Added>) -> Result<(), SettleError> {
        let position = added_by(recorded)?.filter(|_| self.mode == DeliveryMode::ExactlyOnce);
        match (&self.topic.stored, position) {
            (Some(stored), Some(position)) => self.settled(stored.store.commit(position)),
            _ => Ok(()),
        }
    }

    /// What an ack answers when the disk has.
    pub(crate) fn settled(&self, outcome: Result<(), JournalError>) -> Result<(), SettleError> {
        let (Err(error), Some(stored)) = (outcome, &self.topic.stored) else { return Ok(()) };
        Err(stored.store.fault_of(&error).into())
    }
}

/// Where the journal has it.
#[inline]
pub(super) fn added_by(recorded: Option<Added>) -> Result<Option<Position>, SettleError> {
    Ok(recorded.transpose()?)
}
