//! A topic that was read back from disk, once the program has said what its events are.

use std::sync::Arc;

use crate::codec::Codec;
use crate::contain::contained;
use crate::delivery::filter::Filter;
use crate::engine::local::broker::BrokerCore;
use crate::engine::local::dead_letter::Cemetery;
use crate::engine::local::effect::Creation;
use crate::engine::local::publish::Aftermath;
use crate::engine::local::recovered::{
    PlainRow, Row, StoredBook, StoredMessage, StoredMessages, StoredSnapshot, StoredTopic,
};
use crate::engine::local::replay::Snapshot;
use crate::engine::local::staging::Staging;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{Book, TopicCore, TopicOptions, Weigh};
use crate::journal::record::DeadLetterTo;
use crate::log::{EventBatch, PART_LEN_MIN, Slot};
use crate::message::{Extras, MessageId};
use crate::name::Name;
use crate::options::{Capacity, DedupWindow, Retention};
use crate::sequence::Sequence;
use crate::sync::atomic::Ordering;
use crate::time::Tick;

/// What is looked up of a stored topic before it is made live, so that its events are made with nothing locked.
pub(crate) struct Revivable {
    number: u64,
    retention: Retention,
    capacity: Capacity,
    window: DedupWindow,
    messages: Arc<StoredMessages>,
}

impl From<&StoredTopic> for Revivable {
    fn from(stored: &StoredTopic) -> Self {
        let StoredTopic { number, retention, capacity, window, .. } = *stored;
        Revivable { number, retention, capacity, window, messages: stored.messages.clone() }
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// The stored topic's messages as events, under its own options and with these closures. Nobody knows it until it is [revived](Self::revive). With nothing locked.
    ///
    /// # Errors
    /// A message that the codec does not read, and why.
    pub(crate) fn of_stored(
        broker: &Arc<BrokerCore>,
        name: &Name,
        stored: Revivable,
        codec: &RevivingCodec<E>,
        options: TopicOptions<E>,
    ) -> Result<Arc<Self>, String> {
        let Revivable { number, retention, capacity, window, messages } = stored;
        let options = TopicOptions { retention, capacity, dedup: window, ..options };
        let topic = TopicCore::numbered(name.clone(), broker.clone(), options, number);
        let mut single: Vec<Decoded<E>> = Vec::new();
        for row in messages.rows(PART_LEN_MIN, AT_ONCE) {
            match row {
                Row::Plain(row) if matches!(topic.weigh, Weigh::Raw(_)) => {
                    topic.take_in_each(&mut single);
                    topic.take_in_row(&row, codec)?;
                }
                Row::Plain(row) => {
                    for (n, payload) in (0..).zip(row.payloads()) {
                        let sequence = row.first + n;
                        let event = codec.decode(number, sequence, payload)?;
                        let (at, weight) = (row.at, payload.len() as u64);
                        single.push(Decoded { sequence, at, weight, extras: None, event });
                    }
                    topic.take_in_each(&mut single);
                }
                Row::Message(sequence, StoredMessage { at, weight, extras, payload, .. }) => {
                    let event = codec.decode(number, sequence, payload)?;
                    single.push(Decoded { sequence, at, weight, extras, event });
                    if single.len() == AT_ONCE {
                        topic.take_in_each(&mut single);
                    }
                }
            }
        }
        topic.take_in_each(&mut single);
        Ok(topic)
    }

    /// Messages go into the log, in order.
    fn take_in_each(&self, decoded: &mut Vec<Decoded<E>>) {
        let mut state = self.state.lock();
        let mut after = Aftermath::default();
        for Decoded { sequence, at, weight, extras, event } in decoded.drain(..) {
            state.skip_to(sequence);
            if let Some(extras) = &extras {
                self.note_times(&mut state, sequence, at, extras, &mut after);
            }
            self.keep(&mut state, Slot::own(event, at, extras), weight, 0, &mut after);
        }
    }

    fn take_in_row(&self, row: &PlainRow<'_>, codec: &RevivingCodec<E>) -> Result<(), String> {
        let mut stage = self.log.stage(row.len());
        // Payloads that are events as they are stay where they were read.
        let memory = row.memory().filter(|_| codec.is_raw);
        let mut bytes = 0;
        for (n, payload) in (0..).zip(row.payloads()) {
            bytes += payload.len() as u64;
            let is_part = memory.is_some_and(|memory| stage.push_part(memory, payload));
            if !is_part {
                stage.push(codec.decode(self.log.incarnation(), row.first + n, payload)?);
            }
        }
        let weigh = |event: &E| self.own_weight(event).unwrap_or(0);
        let batch = EventBatch::new(stage, bytes, weigh);
        let mut state = self.state.lock();
        state.skip_to(row.first);
        self.keep_batch(&mut state, row.at, batch, 0, &mut Aftermath::default());
        Ok(())
    }

    /// Puts everything else where it was. Nobody knows the topic yet.
    pub(crate) fn revive(self: Arc<Self>, mut stored: StoredTopic) -> Arc<Self> {
        let dedup = stored.take_dedup(self.broker.now());
        let StoredTopic { next, passed_over, last_published, books, snapshots, .. } = stored;
        {
            let mut state = self.state.lock();
            state.dedup = dedup;
            state.skip_to(next);
            (state.last_published, state.passed_over) = (last_published, passed_over);
            state.staging = Staging::new(next);
            self.log.publish_tail(&state.writer);
        }
        for StoredSnapshot { number, name, expires, settled } in snapshots.into_values() {
            let snapshot =
                Arc::new(Snapshot { id: number, name, settled, expires, creation: Creation::done() });
            let mut state = self.state.lock();
            let mut books = self.books.write();
            books.push(Book::Snapshot(snapshot.clone()));
            state.books = books.len();
            drop(books);
            drop(state);
            self.broker.add_snapshot(self.clone(), snapshot);
        }
        for book in books.into_values() {
            self.revive_book(book);
        }
        self
    }

    fn revive_book(self: &Arc<Self>, stored: StoredBook) {
        let StoredBook { number, name, ledger, filter, has_filter_fn, expire_after, dead_letter, .. } =
            stored;
        // It was parsed when the subscription was made.
        let filter = filter.and_then(|source| Filter::parse(&source).ok());
        let cemetery = match dead_letter {
            DeadLetterTo::Topic { name, .. } => Some(Cemetery::named(name)),
            DeadLetterTo::None | DeadLetterTo::Discard { .. } => None,
        };
        let subscription = SubscriptionCore::with_book(
            number,
            name,
            self.clone(),
            filter,
            None,
            has_filter_fn,
            ledger,
            expire_after,
            cemetery,
        );
        let mut state = self.state.lock();
        let mut books = self.books.write();
        books.push(Book::Subscription(subscription));
        state.books = books.len();
        state.subscriptions += 1;
    }

    /// What is to follow once the topic is registered: leases that ran have ended, what went while nobody looked goes, and what is to happen by itself is set.
    pub(crate) fn resume(self: &Arc<Self>) {
        let now = self.broker.now();
        for subscription in self.subscriptions() {
            let tail = self.log.tail();
            subscription.change(|ledger| {
                let low = ledger.low();
                for (from, to) in self.log.gaps(low) {
                    ledger.handle_removed(from, to.min(tail));
                }
                ledger.resume(now);
            });
            while !subscription.lacks_filter_fn()
                && let Some(Some(examination)) = subscription.change(|ledger| ledger.poll_recall(tail))
            {
                subscription.examine_and_tell(examination);
            }
        }
        if self.config().capacity.is_limited() {
            self.count_from_now();
        }
        self.note_expire_after();
        self.state.lock().sweep_from = Sequence::FIRST;
        self.sweep();
        self.arm();
        self.broker.retry_parked(&self.name);
    }

    /// What is kept and not settled takes room.
    fn count_from_now(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            self.start_counting(&mut state);
        }
        self.count_all();
        debug_assert!(self.limited.load(Ordering::Relaxed), "counting says so");
    }
}

/// A message whose event was made.
struct Decoded<E> {
    sequence: Sequence,
    at: Tick,
    weight: u64,
    extras: Option<Box<Extras>>,
    event: E,
}

/// So many messages go into the log together.
const AT_ONCE: usize = 256;

/// How events are made of stored messages.
pub(crate) struct RevivingCodec<E> {
    pub(crate) codec: Arc<dyn Codec<E>>,
    /// The codec is the crate's own, of raw bytes or text.
    pub(crate) is_raw: bool,
}

impl<E: Send + Sync + 'static> RevivingCodec<E> {
    fn decode(&self, topic: u64, sequence: Sequence, payload: &[u8]) -> Result<E, String> {
        let why = match contained(|| self.codec.decode(payload)) {
            Some(Ok(event)) => return Ok(event),
            Some(Err(error)) => error.to_string(),
            None => "the codec panicked".to_owned(),
        };
        Err(format!("message {} cannot be decoded: {why}", MessageId::new(topic, sequence)))
    }
}
