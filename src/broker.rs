//! `Broker`: owns topics, subscriptions and time.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{Clock, Line, SystemClock, line_of};
use crate::engine::local::broker::{BrokerCore, Phase};
use crate::error::{DeleteError, Error, OpenError, Result};
use crate::options::{Capabilities, Capability};
use crate::stats::{BrokerStats, ShutdownReport};
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
        BrokerBuilder { line: None, required: Vec::new() }
    }

    fn on(line: Line) -> Broker {
        Broker { presence: Arc::new(Presence { core: BrokerCore::new(line) }) }
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
        let topic = self.core().unregister_topic(name);
        let topic = topic.ok_or(DeleteError::NotFound)?;
        self.core().forget_snapshots_of(&topic);
        topic.tear_down();
        // Once more: one may have been taken while the topic went.
        self.core().forget_snapshots_of(&topic);
        Ok(())
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

    /// What this engine can keep: in memory, everything.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities::all()
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
    /// [`Error::Closed`]: it is shut down already. Of two calls at a time, both wait.
    pub fn shutdown(&self, timeout: Duration) -> Result<ShutdownReport> {
        let core = self.core();
        if core.phase() == Phase::Closed {
            return Err(Error::Closed);
        }
        core.drain();
        let deadline = Instant::now().checked_add(timeout);
        let (backlog, outstanding) = core.wait_until_settled(deadline);
        core.close();
        Ok(ShutdownReport { outstanding, backlog })
    }
}

/// Options of a broker.
#[derive(Clone, Debug)]
pub struct BrokerBuilder {
    line: Option<Line>,
    required: Vec<Capability>,
}

impl BrokerBuilder {
    /// The broker's clock; the [`SystemClock`] unless told otherwise.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.line = Some(line_of(clock));
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
    /// [`OpenError::Unsupported`]: the engine cannot keep what [`require`](Self::require) asked for. Memory keeps everything.
    pub fn build(self) -> Result<Broker, OpenError> {
        let capabilities = Capabilities::all();
        if let Some(&capability) = self.required.iter().find(|required| !capabilities.contains(**required)) {
            return Err(OpenError::Unsupported { capability });
        }
        Ok(Broker::on(self.line.unwrap_or_else(|| line_of(SystemClock))))
    }
}
