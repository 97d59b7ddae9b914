//! One topic: its log, its books, and what publishing needs.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::contain::drop_contained;
use crate::delivery::dedup::Dedup;
use crate::engine::local::broker::{AnyTopic, BrokerCore, Phase, Totals};
use crate::engine::local::effect::{Creation, Effect, FollowUp, Turn};
use crate::engine::local::forgetting::Forgotten;
use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::occupancy::Occupancy;
use crate::engine::local::replay::Snapshot;
use crate::engine::local::staging::{Staging, Stored};
use crate::engine::local::subscription::{SubscriptionCore, unsettled_runs};
use crate::engine::timer::Alarm;
use crate::engine::waiters::WaitingRoom;
use crate::error::{CodecError, PublishErrorKind, RecvError, StorageFault};
use crate::journal::{Position, Space};
use crate::log::{ResidentLog, Segment, Writer};
use crate::message::MessageId;
use crate::name::Name;
use crate::options::{Capacity, DedupWindow, Keep, MessageStatus, Retention};
use crate::sequence::Sequence;
use crate::stats::TopicStats;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::time::{Tick, nanos};

/// What an event weighs.
pub(crate) enum Weigh<E> {
    /// What it takes by itself.
    Size,
    /// Raw bytes, their length.
    Raw(AsBytes<E>),
    /// The user's own say. Never asked under a lock.
    User(Arc<dyn Fn(&E) -> u64 + Send + Sync>),
}

/// By hand, because a derive would ask it of the event.
impl<E> Clone for Weigh<E> {
    fn clone(&self) -> Self {
        match self {
            Weigh::Size => Weigh::Size,
            Weigh::Raw(bytes) => Weigh::Raw(*bytes),
            Weigh::User(weigh) => Weigh::User(weigh.clone()),
        }
    }
}

/// An event that is raw bytes, as such.
pub(crate) type AsBytes<E> = fn(&E) -> Option<&[u8]>;

pub(crate) type Fingerprint<E> = Arc<dyn Fn(&E) -> Result<u64, CodecError> + Send + Sync>;

/// Everything about a topic that the user said, with the defaults filled in.
pub(crate) struct TopicOptions<E> {
    pub(crate) retention: Retention,
    pub(crate) capacity: Capacity,
    pub(crate) dedup: DedupWindow,
    pub(crate) weigh: Weigh<E>,
    /// None: payloads cannot be compared.
    pub(crate) fingerprint: Option<Fingerprint<E>>,
    /// Whether the user gave the fingerprint.
    pub(crate) has_own_fingerprint: bool,
    /// The codec's name.
    pub(crate) codec: Option<String>,
    /// None: it is in memory.
    pub(crate) stored: Option<Stored<E>>,
}

/// What is changed by an update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicConfig {
    pub(crate) retention: Retention,
    pub(crate) capacity: Capacity,
    pub(crate) dedup: DedupWindow,
}

/// A topic.
pub(crate) struct TopicCore<E> {
    pub(crate) name: Name,
    pub(crate) broker: Arc<BrokerCore>,
    pub(crate) log: ResidentLog<E>,
    pub(crate) weigh: Weigh<E>,
    pub(crate) fingerprint: Option<Fingerprint<E>>,
    pub(crate) has_own_fingerprint: bool,
    pub(crate) codec: Option<String>,
    pub(crate) stored: Option<Stored<E>>,
    pub(super) state: Mutex<TopicState<E>>,
    /// Who reads the topic. Written under the topic's lock as well, so that an append counts exactly those that exist.
    pub(super) books: RwLock<Vec<Book<E>>>,
    /// Receivers, a queue for each subscription.
    pub(crate) receivers: WaitingRoom,
    /// Publishers that wait for space.
    pub(crate) space: WaitingRoom,
    deleted: AtomicBool,
    pub(super) creation: Creation,
    /// Whether occupancy is counted. Set before the first message is counted, so that whoever settles that one sees it.
    pub(super) limited: AtomicBool,
    /// Counts how often there came to be room, for publishers that wait for it.
    pub(super) freed: AtomicU64,
    /// Whether a message with a delay or a life was ever published: from then on subscriptions look at each message.
    pub(super) timed: AtomicBool,
    /// The shortest `expire_after` of its subscriptions, in nanoseconds.
    pub(super) expire_after_min: AtomicU64,
    /// Whether some subscription has a filter.
    pub(super) filtered: AtomicBool,
    pub(super) deduplicated: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// On disk only.
    pub(super) forgotten: Forgotten,
}

/// Under the topic's lock.
pub(super) struct TopicState<E> {
    pub(super) config: TopicConfig,
    pub(super) writer: Writer<E>,
    /// On disk only.
    pub(super) staging: Staging,
    /// On disk: the unit of an update that is under way.
    pub(super) updated_by: Option<Position>,
    pub(super) last_published: Tick,
    pub(super) dedup: Dedup,
    pub(super) occupancy: Option<Occupancy>,
    /// Counts what makes a settled message needed again: new books, seeks. What was found before may be wrong after.
    pub(super) epoch: u64,
    /// Every segment before it was found to be needed by the book that watches it, which will say when it is not.
    pub(super) sweep_from: Sequence,
    /// Seeks and snapshots under way: nothing is removed meanwhile.
    pub(super) pending: u32,
    /// How many sequences were passed over when the directory was opened: they are of no message.
    pub(super) passed_over: u64,
    pub(super) resident_messages: u64,
    pub(super) resident_bytes: u64,
    /// When a message that carries a life dies.
    pub(super) lives: BTreeSet<(Tick, Sequence)>,
    pub(super) life_of: BTreeMap<Sequence, Tick>,
    /// Until when a message that carries a delay is delayed.
    pub(super) delays: BTreeMap<Sequence, Tick>,
    pub(super) delay_ends: BTreeSet<(Tick, Sequence)>,
    /// How many subscriptions there are.
    pub(super) subscriptions: u64,
    /// How many subscriptions and snapshots.
    pub(super) books: usize,
    /// The next alarm that is set.
    pub(super) alarm: Option<Tick>,
}

/// Who reads a topic, and so keeps its messages.
pub(crate) enum Book<E> {
    Subscription(Arc<SubscriptionCore<E>>),
    Snapshot(Arc<Snapshot>),
}

impl<E> Clone for Book<E> {
    fn clone(&self) -> Self {
        match self {
            Book::Subscription(subscription) => Book::Subscription(subscription.clone()),
            Book::Snapshot(snapshot) => Book::Snapshot(snapshot.clone()),
        }
    }
}

impl<E: Send + Sync + 'static> Book<E> {
    pub(super) fn id(&self) -> u64 {
        match self {
            Book::Subscription(subscription) => subscription.id,
            Book::Snapshot(snapshot) => snapshot.id,
        }
    }

    pub(super) fn has_settled(&self, from: Sequence, to: Sequence) -> bool {
        match self {
            Book::Subscription(subscription) => subscription.has_settled(from, to),
            Book::Snapshot(snapshot) => snapshot.settled.all_settled(from, to),
        }
    }

    fn low(&self) -> Sequence {
        match self {
            Book::Subscription(subscription) => subscription.low(),
            Book::Snapshot(snapshot) => snapshot.settled.low(),
        }
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    pub(crate) fn new(name: Name, broker: Arc<BrokerCore>, options: TopicOptions<E>) -> Arc<Self> {
        let number = broker.next_incarnation();
        let is_limited = options.capacity.is_limited();
        let topic = Self::numbered(name, broker, options, number);
        if is_limited {
            topic.start_counting(&mut topic.state.lock());
        }
        topic
    }

    /// One of this incarnation, which does not count its room yet.
    pub(super) fn numbered(
        name: Name,
        broker: Arc<BrokerCore>,
        options: TopicOptions<E>,
        number: u64,
    ) -> Arc<Self> {
        let config =
            TopicConfig { retention: options.retention, capacity: options.capacity, dedup: options.dedup };
        let mut writer = Writer::new();
        writer.set_limits(config.retention.messages_max, config.retention.bytes_max);
        let state = TopicState {
            config,
            last_published: Tick::ZERO,
            dedup: Dedup::new(config.dedup),
            occupancy: None,
            staging: Staging::new(writer.next()),
            updated_by: None,
            writer,
            epoch: 0,
            sweep_from: Sequence::FIRST,
            pending: 0,
            passed_over: 0,
            resident_messages: 0,
            resident_bytes: 0,
            lives: BTreeSet::new(),
            life_of: BTreeMap::new(),
            delays: BTreeMap::new(),
            delay_ends: BTreeSet::new(),
            subscriptions: 0,
            books: 0,
            alarm: None,
        };
        Arc::new(TopicCore {
            name,
            log: ResidentLog::new(number),
            broker,
            weigh: options.weigh,
            fingerprint: options.fingerprint,
            has_own_fingerprint: options.has_own_fingerprint,
            codec: options.codec,
            stored: options.stored,
            state: Mutex::new(state),
            books: RwLock::new(Vec::new()),
            receivers: WaitingRoom::new(),
            space: WaitingRoom::new(),
            deleted: AtomicBool::new(false),
            creation: Creation::done(),
            limited: AtomicBool::new(false),
            freed: AtomicU64::new(0),
            timed: AtomicBool::new(false),
            expire_after_min: AtomicU64::new(u64::MAX),
            filtered: AtomicBool::new(false),
            deduplicated: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            forgotten: Forgotten::default(),
        })
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::SeqCst)
    }

    pub(crate) fn config(&self) -> TopicConfig {
        self.state.lock().config
    }

    /// Why nothing can be published any more, if so.
    pub(super) fn closed_to_publishers(&self) -> Option<PublishErrorKind> {
        // Before the phase: a broker that closes tears its topics down after it has said so.
        let deleted = self.is_deleted();
        if self.broker.phase() != Phase::Open {
            Some(PublishErrorKind::Closed)
        } else if deleted {
            Some(PublishErrorKind::TopicDeleted)
        } else {
            None
        }
    }

    /// Why nothing can be settled, changed or sought here any more, if so.
    pub(crate) fn ended(&self) -> Option<RecvError> {
        // Before the phase, as above.
        let deleted = self.is_deleted();
        if self.broker.phase() == Phase::Closed {
            Some(RecvError::Closed)
        } else if deleted {
            Some(RecvError::Deleted)
        } else {
            None
        }
    }

    pub(crate) fn subscriptions(&self) -> Vec<Arc<SubscriptionCore<E>>> {
        let books = self.books.read();
        books
            .iter()
            .filter_map(|book| match book {
                Book::Subscription(subscription) => Some(subscription.clone()),
                Book::Snapshot(_) => None,
            })
            .collect()
    }

    pub(crate) fn find_subscription(&self, name: &str) -> Option<Arc<SubscriptionCore<E>>> {
        let books = self.books.read();
        books.iter().find_map(|book| match book {
            Book::Subscription(subscription) if subscription.name.as_str() == name => {
                Some(subscription.clone())
            }
            _ => None,
        })
    }

    /// Whether a message that is published now would be kept for anybody.
    pub(crate) fn keeps_something(&self) -> bool {
        let config = self.state.lock().config;
        // Nor does a broker that is closing: who saw it as a topic that keeps would try again and again to put a dead letter into it.
        self.ended().is_none() && (config.retention.keep != Keep::UntilAcked || !self.books.read().is_empty())
    }

    /// The oldest message that is kept. With `until_acked`, what everybody has settled up to there is gone, though its segment may stay a while.
    pub(super) fn oldest_kept(&self) -> Sequence {
        let first = self.log.first_kept();
        if self.state.lock().config.retention.keep != Keep::UntilAcked {
            return first;
        }
        let low = self.books.read().iter().map(Book::low).min();
        first.max(low.unwrap_or_else(|| self.log.tail())).min(self.log.tail())
    }

    pub(crate) fn status(&self, id: MessageId) -> Option<BTreeMap<String, MessageStatus>> {
        if id.incarnation() != self.log.incarnation() || self.is_deleted() {
            return None;
        }
        let sequence = Sequence::new(id.sequence());
        let spot = self.log.find(sequence).filter(|_| sequence < self.log.tail())?;
        let (published, extras) = self.log.extras(&spot);
        let due = extras.map_or(published, |extras| extras.due(published));
        let subscriptions = self.subscriptions();
        let statuses = subscriptions
            .iter()
            .map(|subscription| (subscription.name.as_str().to_owned(), subscription.status(sequence, due)));
        Some(statuses.collect())
    }

    pub(crate) fn stats(&self) -> TopicStats {
        let subscriptions = self.subscriptions().len() as u64;
        let state = self.state.lock();
        TopicStats {
            subscriptions,
            published: state.published(),
            deduplicated: self.deduplicated.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            resident_messages: state.resident_messages,
            resident_bytes: state.resident_bytes,
            disk_bytes: 0,
        }
    }

    pub(crate) fn update(self: &Arc<Self>, change: impl Fn(&mut TopicConfig)) -> Result<(), StorageFault> {
        let now = self.broker.now();
        let Some(stored) = &self.stored else {
            let mut state = self.state.lock();
            let mut config = state.config;
            change(&mut config);
            self.set_config(&mut state, config, now);
            drop(state);
            self.follow_up_update();
            return Ok(());
        };
        stored.store.put_in_turn(|| {
            let mut state = self.state.lock();
            if let Some(earlier) = state.updated_by {
                return Ok(Turn::After(earlier));
            }
            let mut config = state.config;
            change(&mut config);
            let this = self.clone();
            let effect = Effect::of(move |is_safe| -> FollowUp {
                let mut state = this.state.lock();
                state.updated_by = None;
                if is_safe {
                    this.set_config(&mut state, config, now);
                }
                drop(state);
                Box::new(move || this.follow_up_update())
            });
            let unit = self.record_of_update(config, state.staging.next, now);
            let added = stored.store.add(&unit, Space::Ordinary, Some(effect))?;
            state.updated_by = Some(added);
            Ok(Turn::Added(added))
        })
    }

    fn set_config(&self, state: &mut TopicState<E>, config: TopicConfig, now: Tick) {
        let before = std::mem::replace(&mut state.config, config);
        state.writer.set_limits(config.retention.messages_max, config.retention.bytes_max);
        if config.dedup != before.dedup {
            state.dedup.set_window(config.dedup, now);
        }
        match &mut state.occupancy {
            Some(occupancy) => occupancy.set_limits(config.capacity),
            None if config.capacity.is_limited() => self.start_counting(state),
            None => {}
        }
    }

    fn follow_up_update(self: &Arc<Self>) {
        self.count_all();
        self.state.lock().sweep_from = Sequence::FIRST;
        self.space.wake_everyone();
        self.sweep();
        self.arm();
    }

    /// Waits until the topic is as safe as was promised, which somebody else creates just now. With nothing locked.
    pub(crate) fn wait_for_creation(&self) -> Result<(), StorageFault> {
        self.stored.as_ref().map_or(Ok(()), |stored| self.creation.wait(&stored.store))
    }

    /// Counts what subscriptions had not settled when the counting began. Each is counted once, under its own lock: what it settles before is not in,
    /// and what it settles after is taken away.
    pub(super) fn count_all(&self) {
        let Some(from) = self.state.lock().occupancy.as_ref().map(Occupancy::counted_from) else { return };
        for subscription in self.subscriptions() {
            let runs = {
                let mut desk = subscription.desk.lock();
                if std::mem::replace(&mut desk.counted, true) {
                    continue;
                }
                unsettled_runs(&desk.ledger, from)
            };
            let mut state = self.state.lock();
            if let Some(occupancy) = &mut state.occupancy {
                for (from, to) in runs {
                    occupancy.add(from, to, 1);
                }
            }
        }
    }

    /// Sets an alarm for what is to happen next by itself, unless one is set that is early enough.
    pub(super) fn arm(self: &Arc<Self>) {
        if let Some(at) = self.next_alarm(self.broker.now()) {
            self.arm_at(at);
        }
    }

    pub(super) fn arm_at(self: &Arc<Self>, at: Tick) {
        {
            let mut state = self.state.lock();
            if state.alarm.is_some_and(|set| set <= at) {
                return;
            }
            state.alarm = Some(at);
        }
        let alarm: Weak<dyn Alarm> = Arc::downgrade(&(self.clone() as Arc<dyn Alarm>));
        self.broker.timer.set(at, alarm);
        self.broker.timer.catch_up(at);
    }

    fn next_alarm(&self, now: Tick) -> Option<Tick> {
        let (life, retention) = {
            let state = self.state.lock();
            (state.lives.first().map(|first| first.0), state.config.retention)
        };
        let age = match retention.keep {
            Keep::For(duration) => self.next_of_age(duration, now),
            _ => None,
        };
        let shortest = Duration::from_nanos(self.expire_after_min.load(Ordering::Relaxed));
        let aging = if shortest < Duration::from_nanos(u64::MAX) {
            let subscriptions = self.subscriptions();
            subscriptions.iter().filter_map(|subscription| subscription.next_unseen_expiry()).min()
        } else {
            None
        };
        let books = self.books.read();
        let snapshot = books.iter().filter_map(|book| match book {
            Book::Snapshot(snapshot) => Some(snapshot.expires),
            Book::Subscription(_) => None,
        });
        [life, age, aging, snapshot.min()].into_iter().flatten().min()
    }

    /// Messages whose life is over leave every subscription that has not looked at them.
    fn end_lives(self: &Arc<Self>, now: Tick) {
        loop {
            let sequence = {
                let mut state = self.state.lock();
                match state.lives.first().copied() {
                    Some((at, sequence)) if at <= now => {
                        state.lives.pop_first();
                        state.life_of.remove(&sequence);
                        sequence
                    }
                    _ => return,
                }
            };
            for subscription in self.subscriptions() {
                subscription.expire_unseen_one(sequence);
            }
        }
    }

    pub(super) fn note_expire_after(&self) {
        // Under the topic's lock: of two who come at a time, the second to look is the second to write.
        let _state = self.state.lock();
        let subscriptions = self.subscriptions();
        let shortest = subscriptions.iter().filter_map(|subscription| subscription.expire_after()).min();
        self.expire_after_min.store(shortest.map_or(u64::MAX, nanos), Ordering::Relaxed);
        let filtered = subscriptions.iter().any(|subscription| subscription.has_filter());
        self.filtered.store(filtered, Ordering::Relaxed);
    }
}

/// The keys of the room for those who wait for space: publishers, who need it as it is, and transactions, who need it net of what they ack.
pub(crate) const PUBLISHERS: u64 = 0;
pub(crate) const COMMITS: u64 = 1;

impl<E: Send + Sync + 'static> Alarm for TopicCore<E> {
    fn ring(self: Arc<Self>, now: Tick) {
        self.state.lock().alarm = None;
        if self.ended().is_some() {
            return;
        }
        match &self.stored {
            // The end of a snapshot waits for the disk, and time may pass in a future's poll, where nothing may.
            Some(stored) if self.has_snapshot_over(now) => {
                let this = self.clone();
                stored.store.here_or_elsewhere(move || this.do_what_is_due(now));
            }
            _ => self.do_what_is_due(now),
        }
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    fn do_what_is_due(self: &Arc<Self>, now: Tick) {
        self.end_lives(now);
        if self.expire_after_min.load(Ordering::Relaxed) < u64::MAX {
            for subscription in self.subscriptions() {
                subscription.expire_unseen(now);
            }
        }
        self.end_snapshots(now);
        self.sweep();
        // Publishers whose timeout passed, and transactions whose first lease ended; with the system clock only the blocked wake by themselves.
        self.space.wake_everyone();
        self.arm();
    }
}

impl<E: Send + Sync + 'static> AnyTopic for TopicCore<E> {
    fn event_type(&self) -> &'static str {
        std::any::type_name::<E>()
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn totals(&self) -> Totals {
        let mut totals = {
            let state = self.state.lock();
            let (published, resident_bytes) = (state.published(), state.resident_bytes);
            Totals { published, resident_bytes, ..Totals::default() }
        };
        for subscription in self.subscriptions() {
            let (backlog, outstanding) = subscription.backlog_and_outstanding();
            totals.subscriptions += 1;
            totals.backlog += backlog;
            totals.outstanding += outstanding;
        }
        totals
    }

    fn wake_everyone(&self) {
        self.receivers.wake_everyone();
        self.space.wake_everyone();
    }

    fn wake_commits(&self) {
        self.space.wake_all_of(COMMITS);
    }

    fn run_timeouts(&self) {
        for subscription in self.subscriptions() {
            subscription.run_timeouts();
        }
    }

    fn number(&self) -> u64 {
        self.log.incarnation()
    }

    fn write_image(&self, image: &mut ImageWriter<'_>) {
        if self.creation.is_safe() {
            self.write_records(image);
        }
    }

    fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::SeqCst);
    }

    fn tear_down(&self) {
        let segments: Vec<Arc<Segment<E>>>;
        let books;
        {
            let mut state = self.state.lock();
            self.deleted.store(true, Ordering::SeqCst);
            state.epoch += 1;
            segments = self.log.clear(&mut state.writer);
            state.resident_messages = 0;
            state.resident_bytes = 0;
            state.forget_times(Sequence::new(0), Sequence::new(u64::MAX));
            state.subscriptions = 0;
            state.books = 0;
            books = std::mem::take(&mut *self.books.write());
        }
        self.wake_everyone();
        self.broker.wake_commits();
        // Closures and events are the user's: what their drops throw must not keep the rest.
        books.into_iter().for_each(drop_contained);
        segments.into_iter().for_each(drop_contained);
    }

    fn forget_book(self: Arc<Self>, book: u64) -> FollowUp {
        let removed = self.take_book(book);
        Box::new(move || {
            self.follow_up_removal(removed);
            self.sweep();
        })
    }
}
