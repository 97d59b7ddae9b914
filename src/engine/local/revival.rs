//! A topic that was read back from disk, once the program has said what its events are.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::Codec;
use crate::contain::contained;
use crate::delivery::filter::Filter;
use crate::engine::local::broker::BrokerCore;
use crate::engine::local::dead_letter::Cemetery;
use crate::engine::local::publish::Aftermath;
use crate::engine::local::recovered::{StoredBook, StoredSnapshot, StoredTopic};
use crate::engine::local::replay::Snapshot;
use crate::engine::local::staging::Staging;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{Book, TopicCore, TopicOptions};
use crate::journal::record::DeadLetterTo;
use crate::log::Slot;
use crate::message::MessageId;
use crate::sequence::Sequence;
use crate::sync::atomic::Ordering;

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// What is stored, with these closures and, in its messages' order, these events. Its options are those that are stored.
    pub(crate) fn revive(
        broker: &Arc<BrokerCore>,
        stored: StoredTopic,
        options: TopicOptions<E>,
        events: Vec<E>,
    ) -> Arc<Self> {
        let options = TopicOptions {
            retention: stored.retention,
            capacity: stored.capacity,
            dedup: stored.window,
            ..options
        };
        let topic = TopicCore::numbered(stored.name.clone(), broker.clone(), options, stored.number);
        topic.fill(stored, events);
        topic
    }

    /// Puts everything where it was. Nobody knows the topic yet.
    fn fill(self: &Arc<Self>, mut stored: StoredTopic, events: Vec<E>) {
        let dedup = stored.take_dedup(self.broker.now());
        let StoredTopic { next, last_published, messages, books, snapshots, .. } = stored;
        {
            let mut state = self.state.lock();
            state.dedup = dedup;
            let mut after = Aftermath::default();
            for ((sequence, message), event) in messages.into_iter().zip(events) {
                let gap = sequence - state.writer.next();
                if gap > 0 {
                    state.writer.skip(gap);
                }
                if let Some(extras) = &message.extras {
                    self.note_times(&mut state, sequence, message.at, extras, &mut after);
                }
                let slot = Slot::own(event, message.at, message.extras);
                self.keep(&mut state, slot, message.weight, 0, &mut after);
            }
            let gap = next - state.writer.next();
            if gap > 0 {
                state.writer.skip(gap);
            }
            state.last_published = last_published;
            state.staging = Staging::new(next);
            self.log.publish_tail(&state.writer);
        }
        for StoredSnapshot { number, name, expires, settled } in snapshots.into_values() {
            let snapshot = Arc::new(Snapshot { id: number, name, settled, expires });
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

/// The events of stored messages. With nothing locked.
///
/// # Errors
/// A message that the codec does not read, and why.
pub(crate) fn decode<E: 'static>(
    codec: &dyn Codec<E>,
    payloads: &[(MessageId, Bytes)],
) -> Result<Vec<E>, String> {
    let decode = |(id, payload): &(MessageId, Bytes)| match contained(|| codec.decode(payload)) {
        Some(Ok(event)) => Ok(event),
        Some(Err(error)) => Err(format!("message {id} cannot be decoded: {error}")),
        None => Err(format!("message {id} cannot be decoded: the codec panicked")),
    };
    payloads.iter().map(decode).collect()
}
