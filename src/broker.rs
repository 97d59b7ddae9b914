//! `Broker`: owns topics, subscriptions and time.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{Clock, Line, SystemClock, line_of};
use crate::engine::local::broker::{BrokerCore, Phase};
use crate::engine::local::progress::{Listener, Progress};
use crate::engine::local::recovered::Recovered;
use crate::engine::local::store::Store;
use crate::error::{DeleteError, Error, OpenError, RecvError, Result};
use crate::options::{Capabilities, Capability, Durability, OnDamage};
use crate::stats::{BrokerStats, RecoveryProgress, RecoveryReport, ShutdownReport};
use crate::topic::TopicBuilder;
use crate::transaction::Transaction;

/// A publish/subscribe broker in this process.
///
/// A cheap handle: clones are the same broker, and two brokers know nothing of each other. When the last `Broker`, [`Topic`](crate::Topic) and
/// [`Subscription`](crate::Subscription) handle is dropped, the broker closes without waiting; [`shutdown`](Self::shutdown) waits for what is outstanding.
///
/// ```
/// use eventflow::Broker;
///
/// let broker = Broker::in_memory();
/// let orders = broker.topic::<String>("orders").open()?;
/// let billing = orders.subscription("billing").open()?;
/// orders.publish("order 7")?;
/// billing.recv()?.ack()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) presence: Arc<Presence>,
}

/// Shared by all handles of a broker: the last one to go closes it.
#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) core: Arc<BrokerCore>,
    report: RecoveryReport,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.core.close();
    }
}

impl Broker {
    /// A broker that keeps its messages in memory, on the system's clock.
    pub fn in_memory() -> Broker {
        Broker::on(line_of(SystemClock))
    }

    /// A broker with options.
    ///
    /// ```
    /// use eventflow::{Broker, ManualClock};
    /// let clock = ManualClock::new();
    /// let broker = Broker::builder().clock(clock.clone()).build()?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    /// A broker that keeps its messages in a directory, which is made if it is not there, on the system's clock; every publish is synced before it returns. What was accepted there before is there again.
    ///
    /// Topics and subscriptions are there as they were; the program opens them again to say of what type the events are, and how they become bytes: a topic of `Bytes`, `Vec<u8>` or `String` knows that by
    /// itself, any other needs the [`codec`](TopicBuilder::codec) that it was created with, and its other closures. Leases have ended with the process that held them.
    ///
    /// ```
    /// use eventflow::Broker;
    /// # let dir = std::env::temp_dir().join(format!("eventflow-doc-open-{}", std::process::id()));
    /// let broker = Broker::open(&dir)?;
    /// let orders = broker.topic::<String>("orders").open()?;
    /// let billing = orders.subscription("billing").open()?;
    /// orders.publish("order 7")?;
    /// broker.shutdown(std::time::Duration::ZERO)?;
    ///
    /// let broker = Broker::open(&dir)?;
    /// let billing = broker.topic::<String>("orders").open()?.subscription("billing").open()?;
    /// let order = billing.recv()?;
    /// assert_eq!(*order, "order 7");
    /// order.ack()?;
    /// # drop((billing, broker));
    /// # std::fs::remove_dir_all(&dir).ok();
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`OpenError`]; one directory is open once at a time.
    pub fn open(dir: impl AsRef<Path>) -> Result<Broker, OpenError> {
        Broker::builder().dir(dir).build()
    }

    fn on(line: Line) -> Broker {
        let core = BrokerCore::new(line, None, Recovered::new());
        Broker { presence: Arc::new(Presence { core, report: RecoveryReport::default() }) }
    }

    /// On any disk there may be.
    #[cfg(test)]
    pub(crate) fn on_disk(
        disk: Arc<dyn crate::journal::disk::Disk>,
        dir: &Path,
        options: crate::journal::JournalOptions,
        clock: impl Clock,
    ) -> Result<Broker, OpenError> {
        let opened = Store::open_on(disk, dir, options, Progress::default())?;
        let line = line_of(clock).not_before(opened.recovered.now);
        let core = BrokerCore::new(line, Some(opened.store), opened.recovered);
        Ok(Broker { presence: Arc::new(Presence { core, report: opened.report }) })
    }

    fn core(&self) -> &Arc<BrokerCore> {
        &self.presence.core
    }

    /// Names a topic of events of type `E`, to be created or opened.
    ///
    /// A name is 1 to 255 bytes of `[A-Za-z0-9._~+%-]` and `/`, starting with a letter or digit; it is checked by `create` and `open`.
    pub fn topic<E: Send + Sync + 'static>(&self, name: &str) -> TopicBuilder<E> {
        TopicBuilder::new(self.clone(), name, PhantomData)
    }

    /// Deletes a topic with all that it holds: its messages, its subscriptions, its snapshots. Who waits on it, wakes with an error.
    ///
    /// Later use of its handles says so; a topic that is created again under the name is another one, with ids of its own.
    ///
    /// # Errors
    /// [`DeleteError::NotFound`]: there is none of this name. [`DeleteError::Closed`]: the broker is shut down.
    pub fn delete_topic(&self, name: &str) -> Result<(), DeleteError> {
        if self.core().phase() == Phase::Closed {
            return Err(DeleteError::Closed);
        }
        self.core().delete_topic(name)
    }

    /// The names of all topics, in order.
    pub fn topics(&self) -> Vec<String> {
        self.core().topic_names()
    }

    /// A transaction: acks and publishes that take effect together or not at all.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let invoices = broker.topic::<String>("invoices").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// # orders.publish("order 7")?;
    /// let order = billing.recv()?;
    /// let mut tx = broker.transaction();
    /// tx.publish(&invoices, format!("invoice for {}", *order));
    /// tx.ack(order);
    /// tx.commit()?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.core().clone())
    }

    /// The names of all snapshots, in order.
    pub fn snapshots(&self) -> Vec<String> {
        self.core().snapshot_names()
    }

    /// Deletes a snapshot: what only it kept is kept no more.
    ///
    /// # Errors
    /// [`DeleteError::NotFound`]: there is none of this name. [`DeleteError::Closed`]: the broker is shut down.
    pub fn delete_snapshot(&self, name: &str) -> Result<(), DeleteError> {
        if self.core().phase() == Phase::Closed {
            return Err(DeleteError::Closed);
        }
        self.core().delete_snapshot(name)
    }

    /// What this engine can keep: in memory and on disk, everything.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }

    /// What opening the directory found. In memory, nothing.
    pub fn recovery(&self) -> RecoveryReport {
        self.presence.report.clone()
    }

    /// Sums over all topics. One short look at each subscription's lock.
    pub fn stats(&self) -> BrokerStats {
        let mut stats = BrokerStats::default();
        for topic in self.core().all_topics() {
            let totals = topic.totals();
            stats.topics += 1;
            stats.subscriptions += totals.subscriptions;
            stats.published += totals.published;
            stats.backlog += totals.backlog;
            stats.outstanding += totals.outstanding;
            stats.resident_bytes += totals.resident_bytes;
        }
        // Those that nobody has opened since they were read back.
        for topic in self.core().recovered.lock().topics() {
            stats.topics += 1;
            stats.published += topic.published();
            for book in topic.books.values() {
                stats.subscriptions += 1;
                stats.backlog += book.ledger.settled().unsettled_before(topic.messages.end());
            }
        }
        stats.disk_bytes = self.core().store.as_ref().map_or(0, |store| store.disk_bytes());
        stats
    }

    /// Ends the broker in good order, and says what was left.
    ///
    /// From the start of the call nothing is published and nothing leased: receivers and blocked publishers wake with `Closed`. What is outstanding
    /// may still be settled, until all is or `timeout` has passed, in real time on every clock. Then the broker is closed: later use of any handle is a `Closed` error, never a hang
    /// or a panic.
    ///
    /// ```
    /// use std::time::Duration;
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish("order 7")?;
    /// let report = broker.shutdown(Duration::from_secs(1))?;
    /// assert_eq!((report.outstanding, report.backlog), (0, 1));
    /// assert!(orders.publish("order 8").is_err());
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Closed`]: it is shut down already. Of two calls at a time, both wait. On disk, what the disk says if the last of it cannot be synced; it is closed all the same.
    pub fn shutdown(&self, timeout: Duration) -> Result<ShutdownReport> {
        let core = self.core();
        if core.phase() == Phase::Closed {
            return Err(Error::Closed);
        }
        core.drain();
        let deadline = Instant::now().checked_add(timeout);
        let (backlog, outstanding) = core.wait_until_settled(deadline);
        let caught_up = core.catch_up_with_acks();
        let synced = core.store.as_ref().map_or(Ok(()), |store| store.close()).and(caught_up);
        core.close();
        synced.map_err(|fault| RecvError::Storage { fault })?;
        Ok(ShutdownReport { outstanding, backlog })
    }
}

/// Options of a broker.
#[derive(Clone, Default)]
pub struct BrokerBuilder {
    line: Option<Line>,
    required: Vec<Capability>,
    dir: Option<PathBuf>,
    durability: Durability,
    on_damage: OnDamage,
    on_progress: Option<Listener>,
}

impl fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerBuilder").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl BrokerBuilder {
    /// The broker's clock; the [`SystemClock`] unless told otherwise.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.line = Some(line_of(clock));
        self
    }

    /// Keeps messages in this directory, which is made if it is not there; its parent must be. See [`Broker::open`].
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// How safe a message is when its publish returns. [`Durability::Always`] unless told otherwise. It means nothing in memory.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What to do when the directory holds damage. [`OnDamage::Refuse`] unless told otherwise.
    pub fn on_damage(mut self, on_damage: OnDamage) -> Self {
        self.on_damage = on_damage;
        self
    }

    /// Is told how far the opening of a directory has come, by the thread that opens it: at its beginning, at each hundredth of what is to be read, and at its end. With nothing locked but the directory.
    ///
    /// What is read is bounded, whatever the history: one checkpoint and what was written since. A panic of the closure is contained; then it is called no more. In memory it is not called.
    ///
    /// ```
    /// use eventflow::Broker;
    /// # let dir = std::env::temp_dir().join(format!("eventflow-doc-progress-{}", std::process::id()));
    /// let broker = Broker::builder()
    ///     .dir(&dir)
    ///     .on_recovery_progress(|progress| eprintln!("{} of {} bytes", progress.read, progress.total))
    ///     .build()?;
    /// # drop(broker);
    /// # std::fs::remove_dir_all(&dir).ok();
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn on_recovery_progress(
        mut self,
        progress: impl Fn(RecoveryProgress) + Send + Sync + 'static,
    ) -> Self {
        self.on_progress = Some(Arc::new(progress));
        self
    }

    /// Refuses an engine that cannot keep this.
    pub fn require(mut self, capability: Capability) -> Self {
        self.required.push(capability);
        self
    }

    /// The broker.
    ///
    /// # Errors
    /// [`OpenError::Unsupported`]: the engine cannot keep what [`require`](Self::require) asked for. With a directory, what is wrong with it.
    pub fn build(self) -> Result<Broker, OpenError> {
        let capabilities = Capabilities::all();
        if let Some(&capability) = self.required.iter().find(|required| !capabilities.contains(**required)) {
            return Err(OpenError::Unsupported { capability });
        }
        let line = self.line.unwrap_or_else(|| line_of(SystemClock));
        let Some(dir) = self.dir else { return Ok(Broker::on(line)) };
        let progress = Progress::new(self.on_progress);
        let opened = Store::open(&dir, self.durability, self.on_damage, progress)?;
        let line = line.not_before(opened.recovered.now);
        let core = BrokerCore::new(line, Some(opened.store), opened.recovered);
        Ok(Broker { presence: Arc::new(Presence { core, report: opened.report }) })
    }
}
