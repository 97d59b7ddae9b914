//! `Transaction`: acks and publishes that take effect together or not at all.

use std::fmt;
use std::sync::Arc;

use crate::engine::local::broker::BrokerCore;
use crate::engine::local::transaction::TransactionCore;
use crate::error::{CommitReason, Error};
use crate::handles::{Batch, Delivery};
use crate::message::{Message, MessageId};
use crate::topic::{Receipt, Topic};

/// Acks and publishes, over any number of topics and subscriptions, that take effect together or not at all.
///
/// This is consume, transform, produce, exactly once: the input is settled if and only if the output is published. Before [`commit`](Self::commit) returns, nothing of it is
/// seen by anybody, and nobody ever sees a part of it. Dropping it rolls it back: its deliveries are nacked, its messages are never published.
///
/// ```
/// use eventflow::{Broker, DeliveryMode};
///
/// let broker = Broker::in_memory();
/// let orders = broker.topic::<u64>("orders").open()?;
/// let invoices = broker.topic::<String>("invoices").open()?;
/// let audit = broker.topic::<String>("audit").open()?;
/// let billing = orders.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open()?;
/// let ledger = invoices.subscription("ledger").open()?;
/// orders.publish(1_999)?;
///
/// let order = billing.recv()?;
/// let mut tx = broker.transaction();
/// tx.publish(&invoices, format!("please pay {} cents", *order));
/// tx.publish(&audit, format!("billed {}", order.id()));
/// tx.ack(order);
/// assert!(ledger.try_recv().is_err()); // nobody sees the invoice yet
/// let receipts = tx.commit()?;         // in the order of the two publishes
///
/// assert_eq!(receipts.len(), 2);
/// assert_eq!(*ledger.recv()?, "please pay 1999 cents");
/// assert_eq!(billing.stats().backlog, 0);
/// # Ok::<(), eventflow::Error>(())
/// ```
///
/// The leases go on running while the transaction is open: commit before the first of them ends. A delivery of an `AtMostOnce` subscription was settled by its hand-out,
/// and adds nothing. Every ordering key's messages must be acked in their order, which one transaction may do for a whole run of a key.
///
/// All deliveries and topics must be of the broker that made the transaction. It does not keep the broker open.
#[must_use = "dropped without a commit, it nacks its deliveries and publishes nothing"]
pub struct Transaction {
    core: TransactionCore,
}

impl Transaction {
    pub(crate) fn new(broker: Arc<BrokerCore>) -> Self {
        Transaction { core: TransactionCore::new(broker) }
    }

    /// Settles this delivery if the transaction is committed. It nacks it if not.
    pub fn ack<E: Send + Sync + 'static>(&mut self, mut delivery: Delivery<E>) {
        let (core, held) = delivery.take_held();
        self.core.ack(core, [held]);
    }

    /// Settles all that is left in this batch if the transaction is committed. It nacks it if not.
    pub fn ack_all<E: Send + Sync + 'static>(&mut self, batch: Batch<E>) {
        let (core, held) = batch.into_held();
        self.core.ack(&core, held);
    }

    /// Publishes this message if the transaction is committed.
    ///
    /// The topic's `weigh` and `fingerprint` are called here. What is wrong with the message, [`commit`](Self::commit) says.
    pub fn publish<E: Send + Sync + 'static>(&mut self, topic: &Topic<E>, message: impl Into<Message<E>>) {
        self.core.publish(&topic.core, message.into());
    }

    /// Commits: all of it takes effect, at one instant. Gives the receipts in the order of the publishes.
    ///
    /// While a topic is full (net of what the transaction itself acks) and its overflow is `Block`, it waits for space, but not beyond the end of its
    /// first lease. Without a delivery in it, it waits for as long as it takes.
    ///
    /// While the broker shuts down, a transaction with deliveries in it may still be committed; one that only publishes may not.
    ///
    /// It takes the locks of the topics and subscriptions that take part, in one order, for as long as it takes to write to memory: O(log n) a message.
    ///
    /// # Errors
    /// Nothing of it took effect, and the transaction comes back in [`CommitError::transaction`]: commit it again where that can help (see [`CommitReason`]), or drop it.
    /// Whether it waited or not, lack of space spends no attempt: after [`CommitReason::Full`], rolling back releases the deliveries, and a lease that runs out is as if released.
    pub fn commit(self) -> Result<Vec<Receipt>, CommitError> {
        self.commit_with(true)
    }

    /// [`commit`](Self::commit) without waiting for space.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`CommitReason::Full`] at once.
    pub fn try_commit(self) -> Result<Vec<Receipt>, CommitError> {
        self.commit_with(false)
    }

    fn commit_with(mut self, waits: bool) -> Result<Vec<Receipt>, CommitError> {
        match self.core.commit(waits) {
            Ok(()) => Ok(self.core.receipts(receipt)),
            Err(reason) => Err(CommitError { reason, transaction: self }),
        }
    }

    /// [`commit`](Self::commit) as a future, on any runtime: it waits for space, and for the disk, without holding a thread.
    ///
    /// Dropped before it is ready, it has rolled back; but on disk one that is on its way there is committed, in whole, if it arrives.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    #[cfg(feature = "async")]
    pub async fn commit_async(mut self) -> Result<Vec<Receipt>, CommitError> {
        // After the transaction, so that the place in the queue is given up first.
        let mut seat = crate::engine::local::transaction::CommitSeat::default();
        let committed = std::future::poll_fn(|context| self.core.poll_commit(&mut seat, context)).await;
        match committed {
            Ok(()) => Ok(self.core.receipts(receipt)),
            Err(reason) => Err(CommitError { reason, transaction: self }),
        }
    }

    /// Nacks its deliveries and publishes nothing, as dropping it does. After a commit that failed for lack of space, the deliveries are released instead.
    pub fn rollback(self) {
        drop(self);
    }
}

fn receipt(id: MessageId, deduplicated: bool) -> Receipt {
    Receipt { id, deduplicated }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.core.roll_back();
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("acks", &self.core.acks())
            .field("publishes", &self.core.publishes())
            .finish_non_exhaustive()
    }
}

/// A transaction that was not committed, and why. Nothing of it took effect; dropping this rolls it back.
///
/// ```
/// use eventflow::{Broker, Capacity, CommitReason};
/// # let broker = Broker::in_memory();
/// let jobs = broker.topic::<u32>("jobs").open()?;
/// let results = broker.topic::<u32>("results").capacity(Capacity::messages(1)).open()?;
/// let worker = jobs.subscription("worker").open()?;
/// let collector = results.subscription("collector").open()?;
/// jobs.publish(7)?;
/// results.publish(1)?;
///
/// let job = worker.recv()?;
/// let mut tx = broker.transaction();
/// tx.publish(&results, *job * 2);
/// tx.ack(job);
/// let failed = tx.try_commit().unwrap_err();
/// assert_eq!(failed.reason, CommitReason::Full);
///
/// collector.recv()?.ack()?;         // there is space now
/// failed.transaction.try_commit()?; // and the same transaction fits
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct CommitError {
    /// Why.
    pub reason: CommitReason,
    /// The transaction, as it was.
    pub transaction: Transaction,
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        Error::Commit(error.reason)
    }
}
