//! What becomes of messages, on disk: settlements and attempts as records of the journal, each added under the lock of the book that it changes.

use std::time::Duration;

use crate::contain::contained;
use crate::delivery::hand_out::{Grant, Ticket};
use crate::delivery::ledger::{Ledger, Rules};
use crate::delivery::retry::Beyond;
use crate::delivery::settled::Outcome;
use crate::engine::local::dead_letter::Cemetery;
use crate::engine::local::replay::Snapshot;
use crate::engine::local::staging::Stored;
use crate::engine::local::store::Added;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{Book, TopicConfig, TopicCore, Weigh};
use crate::error::{RecvError, SettleError, StorageFault};
use crate::journal::record::{
    AttemptRange, BookOptions, DeadLetterTo, Envelope, List, OutcomeCode, Part, Record, SettledRange,
    SoughtTo, TopicOptions, encode_message, write_published,
};
use crate::journal::{JournalError, Space};
use crate::log::Spot;
use crate::message::Extras;
use crate::name::Name;
use crate::options::DeliveryMode;
use crate::sequence::Sequence;

/// A chunk of a checkpoint is about as long.
const CHUNK_LEN: usize = 1 << 20;

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

    pub(crate) fn add_creation(&self) -> Option<Added> {
        let stored = self.stored.as_ref()?;
        let unit = self.record_of_creation(self.config(), Sequence::FIRST);
        Some(stored.store.add(&unit, Space::Ordinary, None))
    }

    /// Waits until that is as safe as was promised.
    pub(crate) fn commit_creation(&self, added: Option<Added>) -> Result<(), StorageFault> {
        let (Some(stored), Some(added)) = (&self.stored, added) else { return Ok(()) };
        stored.store.commit(added?).map_err(|error| stored.store.fault_of(&error))
    }

    pub(crate) fn record_of_update(&self, config: TopicConfig) -> Vec<u8> {
        let mut unit = Vec::new();
        let topic = self.log.incarnation();
        Record::TopicUpdated { topic, options: self.record_options(config) }.encode(&mut unit);
        unit
    }

    /// All of the topic, for a checkpoint. What happens meanwhile may be in it or not: it is in the journal after the checkpoint's position, and replayed over it.
    pub(super) fn write_records(&self, out: &mut dyn FnMut(Vec<u8>)) {
        let Some(stored) = &self.stored else { return };
        let topic = self.log.incarnation();
        let (mut chunk, next) = {
            let state = self.state.lock();
            let next = state.writer.next();
            let mut chunk = self.record_of_creation(state.config, next);
            let (oldest, last_published) = (self.log.first_kept(), state.last_published);
            let dedup = state.dedup.image();
            for dedup in Part::all_of(&dedup) {
                Record::TopicImage { topic, next, oldest, last_published, dedup }.encode(&mut chunk);
            }
            (chunk, next)
        };
        // Before the books: a book that was sought to one of them has it.
        let snapshots: Vec<_> = {
            let books = self.books.read();
            let snapshots = books.iter().filter_map(|book| match book {
                Book::Snapshot(snapshot) => Some(snapshot.clone()),
                Book::Subscription(_) => None,
            });
            snapshots.collect()
        };
        for snapshot in snapshots {
            chunk.extend_from_slice(&self.record_of_snapshot(&snapshot));
        }
        for subscription in self.subscriptions() {
            subscription.write_records(&mut chunk);
            if chunk.len() >= CHUNK_LEN {
                out(std::mem::take(&mut chunk));
            }
        }
        // After the books: what they had not settled then is still there, or has been settled since, which the journal knows.
        let mut at = self.log.first_kept();
        while let Some(segment) = self.log.segment_from(at) {
            let end = segment.end().min(next);
            at = segment.end().max(segment.first().next());
            let mut sequence = segment.first();
            while sequence < end {
                if let Some(spot) = self.log.find(sequence) {
                    let (published, extras) = self.log.extras(&spot);
                    if let Some(message) = self.encode_again(stored, &spot, extras) {
                        write_published(&mut chunk, topic, sequence, published, [&*message]);
                    }
                }
                sequence = sequence.next();
                if chunk.len() >= CHUNK_LEN {
                    out(std::mem::take(&mut chunk));
                }
            }
        }
        out(chunk);
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

    pub(super) fn record_snapshot(&self, snapshot: &Snapshot) -> Result<(), StorageFault> {
        let Some(stored) = &self.stored else { return Ok(()) };
        stored.store.put(&self.record_of_snapshot(snapshot))
    }

    /// A message that is in the log, as the journal has it.
    fn encode_again(&self, stored: &Stored<E>, spot: &Spot<E>, extras: Option<&Extras>) -> Option<Vec<u8>> {
        let mut payload = Vec::new();
        // It was encoded once: a codec that does not do it again loses the message with the process, which is its author's to answer for.
        contained(|| stored.codec.encode(spot.event(), &mut payload))?.ok()?;
        let weight = match &self.weigh {
            Weigh::Size => payload.len() as u64,
            _ => self.weight_of(spot.event())?,
        };
        let mut message = Vec::new();
        let envelope = Envelope { weight, content: 0, origin: None, payload: &payload };
        encode_message(&mut message, &envelope, extras).ok()?;
        Some(message)
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

    /// That the subscription is there. `end`: the topic's end at that moment.
    pub(super) fn record_of_creation(&self, rules: &Rules, start: Sequence, end: Sequence) -> Vec<u8> {
        let mut unit = Vec::new();
        let (topic, book, name) = (self.topic.log.incarnation(), self.id, self.name.clone());
        let options = self.options_of(rules, self.cemetery_name(), self.expire_after());
        Record::BookCreated { topic, book, start, end, name, options }.encode(&mut unit);
        unit
    }

    /// What an update is going to change.
    pub(crate) fn record_update(
        &self,
        rules: &Rules,
        cemetery: &Option<Option<Cemetery<E>>>,
        expire_after: Option<Option<Duration>>,
    ) -> Result<(), StorageFault> {
        let Some(stored) = &self.topic.stored else { return Ok(()) };
        let mut unit = Vec::new();
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let name = match cemetery {
            Some(cemetery) => cemetery.as_ref().map(|cemetery| cemetery.name.clone()),
            None => self.cemetery_name(),
        };
        let expire_after = expire_after.unwrap_or_else(|| self.expire_after());
        let options = self.options_of(rules, name, expire_after);
        Record::BookUpdated { topic, book, options }.encode(&mut unit);
        stored.store.put(&unit)
    }

    /// Where a seek has put the book just now. Under its lock.
    pub(super) fn record_seek(&self, ledger: &Ledger, snapshot: Option<u64>) -> Option<Added> {
        let stored = self.topic.stored.as_ref()?;
        let (topic, book, generation) = (self.topic.log.incarnation(), self.id, ledger.generation());
        let to = snapshot.map_or(SoughtTo::Sequence(ledger.low()), SoughtTo::Snapshot);
        let mut unit = Vec::new();
        Record::Sought { topic, book, generation, to }.encode(&mut unit);
        Some(stored.store.add(&unit, Space::Ordinary, None))
    }

    /// That it delivers nothing, or does again.
    pub(crate) fn record_pause(&self, paused: bool) -> Result<(), RecvError> {
        let Some(stored) = &self.topic.stored else { return Ok(()) };
        let mut unit = Vec::new();
        Record::Paused { topic: self.topic.log.incarnation(), book: self.id, paused }.encode(&mut unit);
        stored.store.put(&unit).map_err(|fault| RecvError::Storage { fault })
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
        // What was settled in one go was settled alike.
        let ranges: Vec<_> = news
            .iter()
            .map(|&(from, to)| {
                let outcome = ledger.settled().outcome(from).unwrap_or(Outcome::Acked);
                SettledRange { from, to, outcome: OutcomeCode(outcome.code()) }
            })
            .collect();
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let mut unit = Vec::new();
        Record::Settled { topic, book, ranges: List::Items(&ranges) }.encode(&mut unit);
        // Acks free space: they may use what is kept for them.
        stored.store.add(&unit, Space::Reserve, None)
    }

    /// What a transaction acks, in order.
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

    /// A hand-out that did not count after all, where attempts are counted. Under the book's lock. Nobody waits for it.
    pub(super) fn record_release(&self, ledger: &Ledger, ticket: Ticket) {
        let Some(stored) = self.topic.stored.as_ref() else { return };
        if matches!(ledger.rules().beyond, Beyond::Retry) {
            return;
        }
        let (from, attempts) = (ticket.sequence, ticket.attempt.saturating_sub(1));
        let range = AttemptRange { from, to: from.next(), attempts };
        let (topic, book) = (self.topic.log.incarnation(), self.id);
        let mut unit = Vec::new();
        Record::Attempts { topic, book, ranges: List::Items(&[range]) }.encode(&mut unit);
        // If it is not added, nothing else will be.
        let _told_to_the_next = stored.store.add(&unit, Space::Reserve, None);
    }

    /// Before a hand-out: what it changes is written, and, where the hand-out settles, as safe as a publish.
    pub(super) fn make_hand_out_safe(
        &self,
        attempts: Option<Added>,
        settled: Option<Added>,
    ) -> Result<(), RecvError> {
        let Some(stored) = &self.topic.stored else { return Ok(()) };
        let failed = |error: JournalError| RecvError::Storage { fault: stored.store.fault_of(&error) };
        if let Some(added) = attempts {
            let position = added.map_err(|fault| RecvError::Storage { fault })?;
            stored.store.write(position).map_err(failed)?;
        }
        if let Some(added) = settled {
            let position = added.map_err(|fault| RecvError::Storage { fault })?;
            stored.store.commit(position).map_err(failed)?;
        }
        Ok(())
    }

    /// An ack is in the journal; where that is promised, as safe as a publish.
    #[inline]
    pub(super) fn make_ack_safe(
        &self,
        mode: DeliveryMode,
        recorded: Option<Added>,
    ) -> Result<(), SettleError> {
        let (Some(stored), Some(added)) = (&self.topic.stored, recorded) else { return Ok(()) };
        let position = added.map_err(|fault| SettleError::Storage { fault })?;
        if mode != DeliveryMode::ExactlyOnce {
            return Ok(());
        }
        stored.store.commit(position).map_err(|error| {
            let fault = stored.store.fault_of(&error);
            match error {
                JournalError::Indeterminate(_) => SettleError::Indeterminate { fault },
                _ => SettleError::Storage { fault },
            }
        })
    }
}
