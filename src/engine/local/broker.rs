//! What all topics of a broker share: clock, timer, registry, and the broker's end.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::clock::Line;
use crate::delivery::ordering::Key;
use crate::engine::local::checkpointing::{Contents, Purpose};
use crate::engine::local::committer::waits_for_nothing;
use crate::engine::local::effect::FollowUp;
use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::recovered::{Recovered, StoredTopic};
use crate::engine::local::replay::Snapshot;
use crate::engine::local::store::Store;
use crate::engine::timer::Timer;
use crate::engine::waiters::{Look, WaitingRoom};
use crate::error::StorageFault;
use crate::journal::record::Record;
use crate::name::Name;
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{Mutex, RwLock};
use crate::time::Tick;

const EVERYBODY: u64 = 0;
const SETTLED_LOOK: Duration = Duration::from_millis(20);

/// One broker.
pub(crate) struct BrokerCore {
    pub(crate) line: Line,
    pub(crate) timer: Arc<Timer>,
    phase: AtomicU8,
    incarnations: AtomicU64,
    books: AtomicU64,
    hasher: RandomState,
    /// Whoever waits for the last settlement.
    settled: WaitingRoom,
    /// How many transactions wait for some topic's space.
    commits: AtomicUsize,
    pub(super) topics: RwLock<BTreeMap<Name, Arc<dyn AnyTopic>>>,
    pub(super) snapshots: Mutex<BTreeMap<Name, SnapshotEntry>>,
    /// By the name of the dead-letter topic: who has messages parked for it.
    parked: Mutex<HashMap<Name, Vec<Weak<dyn Parker>>>>,
    /// None: it is in memory.
    pub(crate) store: Option<Arc<Store>>,
    /// On disk: the topics that nobody has opened yet.
    pub(crate) recovered: Mutex<Recovered>,
}

/// A snapshot, or the promise of one while it is being taken.
pub(super) struct SnapshotEntry {
    pub(super) topic: Arc<dyn AnyTopic>,
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

/// How far the broker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open = 0,
    /// No new publishes and leases; what is outstanding may be settled.
    Draining = 1,
    Closed = 2,
}

/// A topic of whatever events.
pub(crate) trait AnyTopic: Send + Sync {
    fn event_type(&self) -> &'static str;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    /// Sums for the broker's own counters: subscriptions, published, backlog, outstanding, bytes.
    fn totals(&self) -> Totals;
    /// Receivers and publishers wake and look again.
    fn wake_everyone(&self);
    /// Transactions that wait for space wake and look again.
    fn wake_commits(&self);
    fn run_timeouts(&self);
    /// Its incarnation.
    fn number(&self) -> u64;
    /// On disk: all of it, as records of a checkpoint.
    fn write_image(&self, image: &mut ImageWriter<'_>);
    /// Nothing is done with it any more.
    fn mark_deleted(&self);
    /// The topic is no more; what it held is dropped by this call.
    fn tear_down(&self);
    /// The snapshot is no more; what only it kept goes with what follows.
    fn forget_book(self: Arc<Self>, book: u64) -> FollowUp;
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) subscriptions: u64,
    pub(crate) published: u64,
    pub(crate) backlog: u64,
    pub(crate) outstanding: u64,
    pub(crate) resident_bytes: u64,
}

/// See [`BrokerCore::note_commit`].
pub(super) struct WaitingCommit(Arc<BrokerCore>);

impl Drop for WaitingCommit {
    fn drop(&mut self) {
        self.0.commits.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A subscription with parked messages.
pub(crate) trait Parker: Send + Sync {
    fn retry_parked(&self);
}

impl BrokerCore {
    pub(crate) fn new(line: Line, store: Option<Arc<Store>>, recovered: Recovered) -> Arc<Self> {
        Arc::new(BrokerCore {
            timer: Timer::new(line.clone()),
            line,
            phase: AtomicU8::new(Phase::Open as u8),
            incarnations: AtomicU64::new(recovered.next_topic.saturating_sub(1)),
            books: AtomicU64::new(recovered.next_book.saturating_sub(1)),
            store,
            recovered: Mutex::new(recovered),
            hasher: RandomState::new(),
            settled: WaitingRoom::new(),
            commits: AtomicUsize::new(0),
            topics: RwLock::new(BTreeMap::new()),
            snapshots: Mutex::new(BTreeMap::new()),
            parked: Mutex::new(HashMap::new()),
        })
    }

    #[inline]
    pub(crate) fn now(&self) -> Tick {
        self.line.now()
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Open,
            1 => Phase::Draining,
            _ => Phase::Closed,
        }
    }

    /// A number for a subscription or snapshot, from 1. Never reused in a broker.
    pub(crate) fn next_book(&self) -> u64 {
        self.books.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn next_incarnation(&self) -> u64 {
        self.incarnations.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keyed, so that nobody outside can make keys collide.
    pub(crate) fn key_of(&self, key: &str) -> Key {
        Key(self.hasher.hash_one(key))
    }

    pub(crate) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    pub(crate) fn find_topic(&self, name: &str) -> Option<Arc<dyn AnyTopic>> {
        self.topics.read().get(name).cloned()
    }

    pub(crate) fn topic_names(&self) -> Vec<String> {
        let topics = self.topics.read();
        let mut names: Vec<_> = topics.keys().map(|name| name.as_str().to_owned()).collect();
        if self.store.is_some() {
            names.extend(self.recovered.lock().topics().map(|topic| topic.name.as_str().to_owned()));
            names.sort();
        }
        names
    }

    pub(crate) fn all_topics(&self) -> Vec<Arc<dyn AnyTopic>> {
        self.topics.read().values().cloned().collect()
    }

    /// Registers what `make` makes, unless there is one of this name: then gives that one back.
    pub(crate) fn register_topic(
        &self,
        name: &Name,
        make: impl FnOnce() -> Arc<dyn AnyTopic>,
    ) -> Result<Arc<dyn AnyTopic>, Arc<dyn AnyTopic>> {
        let mut topics = self.topics.write();
        if let Some(existing) = topics.get(name) {
            return Err(existing.clone());
        }
        let topic = make();
        topics.insert(name.clone(), topic.clone());
        Ok(topic)
    }

    /// Whether there is a topic of this name on disk that nobody has opened yet.
    pub(crate) fn is_recovered(&self, name: &Name) -> bool {
        self.with_recovered(name, |_| ()).is_some()
    }

    /// A look at a topic that is on disk and that nobody has opened yet.
    pub(crate) fn with_recovered<T>(&self, name: &Name, look: impl FnOnce(&StoredTopic) -> T) -> Option<T> {
        self.store.as_ref()?;
        let recovered = self.recovered.lock();
        let topic = recovered.topics().find(|topic| topic.name == *name)?;
        Some(look(topic))
    }

    /// Makes a topic that is on disk live. `make` calls no code of a user's. None: somebody else has.
    pub(crate) fn revive<T: AnyTopic + 'static>(
        &self,
        name: &Name,
        make: impl FnOnce(StoredTopic) -> Arc<T>,
    ) -> Option<Arc<T>> {
        // A checkpoint that begins just now waits, or it would find the topic nowhere.
        let mut topics = self.topics.write();
        let stored = self.recovered.lock().take_topic(name.as_str())?;
        let topic = make(stored);
        topics.insert(name.clone(), topic.clone());
        Some(topic)
    }

    /// The topic of this name, if it still is the one of this number, is no more.
    pub(crate) fn unregister_topic(&self, name: &str, number: u64) {
        let mut topics = self.topics.write();
        if topics.get(name).is_some_and(|topic| topic.number() == number) {
            topics.remove(name);
        }
    }

    /// `parker` has messages parked for the dead-letter topic `name`.
    pub(crate) fn add_parked(&self, name: &Name, parker: Weak<dyn Parker>) {
        let mut parked = self.parked.lock();
        let waiting = parked.entry(name.clone()).or_default();
        waiting.retain(|other| other.strong_count() > 0);
        if !waiting.iter().any(|other| other.ptr_eq(&parker)) {
            waiting.push(parker);
        }
    }

    /// The topic `name` keeps messages now: what was parked for it is tried again.
    pub(crate) fn retry_parked(&self, name: &Name) {
        let waiting = self.parked.lock().remove(name);
        for parker in waiting.into_iter().flatten().filter_map(|parker| parker.upgrade()) {
            parker.retry_parked();
        }
    }

    /// No new publishes and leases from now on; everybody who waits wakes.
    pub(crate) fn drain(&self) {
        let _ = self.phase.compare_exchange(
            Phase::Open as u8,
            Phase::Draining as u8,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        for topic in self.all_topics() {
            topic.wake_everyone();
        }
    }

    /// Waits until nothing is outstanding, or until then. Gives what is left: backlog and outstanding.
    pub(crate) fn wait_until_settled(&self, deadline: Option<Instant>) -> (u64, u64) {
        self.settled.wait(EVERYBODY, || {
            let (mut backlog, outstanding) = self.what_is_left();
            if outstanding == 0 {
                // A transaction may have published to a topic that was counted before it settled the last of what was outstanding: now nothing moves any more.
                backlog = self.what_is_left().0;
            }
            let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if outstanding == 0 || is_over || self.phase() == Phase::Closed {
                if let Some(store) = &self.store {
                    // What was on its way there is accepted. Whoever adds, did so under a lock that was taken just now to count.
                    store.commit_all();
                    return Look::Found(self.what_is_left());
                }
                return Look::Found((backlog, outstanding));
            }
            // Leases also end by their deadlines, of which nobody tells.
            let soon = Instant::now() + SETTLED_LOOK;
            Look::Nothing { until: Some(deadline.map_or(soon, |deadline| deadline.min(soon))) }
        })
    }

    /// A transaction waits for a topic's space, until this is dropped.
    pub(super) fn note_commit(self: &Arc<Self>) -> WaitingCommit {
        self.commits.fetch_add(1, Ordering::SeqCst);
        WaitingCommit(self.clone())
    }

    /// Something has ended that a transaction may be about, whichever topic's space it waits for: it looks again. To be called after that is so.
    pub(super) fn wake_commits(&self) {
        // Either this sees the transaction, which is counted before it looks again, or that look sees the end.
        fence(Ordering::SeqCst);
        if self.commits.load(Ordering::SeqCst) > 0 {
            self.all_topics().iter().for_each(|topic| topic.wake_commits());
        }
    }

    /// Backlog and outstanding, over all topics.
    fn what_is_left(&self) -> (u64, u64) {
        let totals = self.all_topics().into_iter().map(|topic| {
            topic.run_timeouts();
            topic.totals()
        });
        totals.fold((0, 0), |sum, totals| (sum.0 + totals.backlog, sum.1 + totals.outstanding))
    }

    /// Something was settled while the broker drains.
    pub(crate) fn note_settled(&self) {
        if self.phase() != Phase::Open {
            self.settled.wake_all_of(EVERYBODY);
        }
    }

    /// The end: nothing is accepted any more, and what topics held is dropped.
    pub(crate) fn close(&self) {
        self.phase.store(Phase::Closed as u8, Ordering::SeqCst);
        let topics = std::mem::take(&mut *self.topics.write());
        let snapshots = std::mem::take(&mut *self.snapshots.lock());
        drop(snapshots);
        self.parked.lock().clear();
        self.timer.clear();
        for topic in topics.into_values() {
            topic.wake_everyone();
            topic.tear_down();
        }
        if let Some(store) = &self.store {
            store.leave();
        }
    }

    /// What a checkpoint is to hold: everything.
    pub(super) fn write_image(&self, image: &mut ImageWriter<'_>) {
        let mut numbers = self.numbers();
        if let Some(store) = &self.store {
            store.ahead.record(&mut numbers);
        }
        image.records(&numbers);
        // Under both locks, so that a topic that somebody opens just now is in one of them.
        let topics = self.topics.read();
        self.recovered.lock().topics().for_each(|topic| topic.write_image(image));
        let live: Vec<_> = topics.values().cloned().collect();
        drop(topics);
        live.iter().for_each(|topic| topic.write_image(image));
    }

    fn numbers(&self) -> Vec<u8> {
        let mut unit = Vec::new();
        Record::Clock { now: self.now() }.encode(&mut unit);
        let (next_topic, next_book) =
            (self.incarnations.load(Ordering::SeqCst) + 1, self.books.load(Ordering::SeqCst) + 1);
        Record::Numbers { hash_key: 0, next_topic, next_book }.encode(&mut unit);
        unit
    }

    /// To be asked after something was committed, with nothing locked.
    pub(super) fn checkpoint_in_time(self: &Arc<Self>) {
        self.checkpoint(Purpose::Time);
    }

    /// To be asked when something found no space on the disk, or may find none soon. With nothing locked. True: there is some now, and it is to be tried again.
    pub(super) fn makes_space(self: &Arc<Self>) -> bool {
        let sweeps = || self.store.as_ref().map(|store| store.checkpoints.sweeps());
        let before = sweeps();
        self.checkpoint(Purpose::Space);
        sweeps() != before
    }

    fn checkpoint(self: &Arc<Self>, purpose: Purpose) {
        let Some(store) = &self.store else { return };
        if !waits_for_nothing() {
            self.checkpoint_here(purpose);
        } else if store.sends_for_checkpoint(purpose) {
            let broker = self.clone();
            store.here_or_elsewhere(move || {
                if let Some(store) = &broker.store {
                    store.is_at_checkpoint();
                }
                broker.checkpoint_here(purpose);
            });
        }
    }

    /// What was settled and found no space, so that nobody was told: it is on the disk now, or there is still no space.
    pub(crate) fn catch_up_with_acks(self: &Arc<Self>) -> Result<(), StorageFault> {
        let Some(store) = &self.store else { return Ok(()) };
        if store.checkpoints.is_behind() {
            self.checkpoint_here(Purpose::Time);
        }
        if store.checkpoints.is_behind() { Err(StorageFault::FULL) } else { Ok(()) }
    }

    fn checkpoint_here(&self, purpose: Purpose) {
        let Some(store) = &self.store else { return };
        let image = |image: &mut ImageWriter<'_>| {
            self.write_image(image);
            // Asked after the image is made: a topic is torn down only after this was said.
            self.phase() != Phase::Closed
        };
        store.checkpoint(purpose, &Contents { image: &image, numbers: &|| self.numbers() });
    }
}

impl fmt::Debug for BrokerCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerCore").field("phase", &self.phase()).finish_non_exhaustive()
    }
}
