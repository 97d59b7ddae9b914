//! `Subscription`: a named, lasting interest in a topic, and the handle that receives.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::channel;
use crate::engine::local::receive::NoMessage;
use crate::engine::local::subscription::SubscriptionCore;
use crate::error::{
    CreateError, DeleteError, Error, RecvError, RecvTimeoutError, Result, SeekError, TryRecvError,
};
use crate::few::Few;
use crate::handles::{Batch, Delivery};
use crate::options::Seek;
use crate::stats::SubscriptionStats;
use crate::subscribe::SubscriptionUpdate;
use crate::topic::{Topic, parse_name};

/// A named, lasting interest in a topic: the book of who got what.
///
/// It exists, and the topic stores for it, whether or not anybody is receiving. Every clone is one more *subscriber* of the same subscription, and
/// subscribers share its messages: no two hold one at the same time.
pub struct Subscription<E> {
    pub(crate) core: Arc<SubscriptionCore<E>>,
    pub(crate) topic: Topic<E>,
}

impl<E: Send + Sync + 'static> Subscription<E> {
    /// The subscription's name, unique within its topic.
    pub fn name(&self) -> &str {
        self.core.name.as_str()
    }

    /// Waits for a message and leases it to this subscriber.
    ///
    /// The lease lasts the subscription's ack deadline (10 s by default), counted from the hand-out.
    ///
    /// # Errors
    /// [`RecvError::Closed`] and [`RecvError::Deleted`] are final.
    ///
    /// # Examples
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish("order 7")?;
    /// let order = billing.recv()?;
    /// assert_eq!(*order, "order 7");
    /// order.ack()?; // without this line the message returns, now as it is dropped
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn recv(&self) -> Result<Delivery<E>, RecvError> {
        let held = self.core.wait_one(None).map_err(ended)?;
        Ok(Delivery::new(self.core.clone(), held))
    }

    /// Leases a message if there is one now. Never waits.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`]: there is nothing to receive now, also because all of it is outstanding, delayed or paused.
    pub fn try_recv(&self) -> Result<Delivery<E>, TryRecvError> {
        let held = self.core.take_one()?.ok_or(TryRecvError::Empty)?;
        Ok(Delivery::new(self.core.clone(), held))
    }

    /// Waits up to `timeout`, on the broker's clock, for a message and leases it to this subscriber.
    ///
    /// The lease lasts the subscription's ack deadline, counted from the hand-out. O(log n) in outstanding leases.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Timeout`]: nothing changed, ask again. The others are final.
    ///
    /// # Examples
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish("order 7")?;
    /// billing.recv_timeout(std::time::Duration::from_secs(1))?.ack()?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Delivery<E>, RecvTimeoutError> {
        let deadline = self.core.topic.broker.now() + timeout;
        match self.core.wait_one(Some(deadline)) {
            Ok(held) => Ok(Delivery::new(self.core.clone(), held)),
            Err(NoMessage::Timeout) => Err(RecvTimeoutError::Timeout),
            Err(NoMessage::Ended(error)) => Err(error.into()),
        }
    }

    /// Waits for at least one message and leases up to `max` at once. With a `max` of 0 the batch is empty, at once.
    ///
    /// What is there is given at once: a batch is never waited for to fill up. The messages have one ack deadline.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish_all(["order 7", "order 8"])?;
    /// let batch = billing.recv_batch(64)?;
    /// assert_eq!(batch.len(), 2);
    /// batch.ack()?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_batch(&self, max: usize) -> Result<Batch<E>, RecvError> {
        let mut lots = Few::new();
        if max > 0 {
            self.core.wait(max, None, &mut lots).map_err(ended)?;
        } else {
            self.core.ended().map_or(Ok(()), Err)?;
        }
        Ok(Batch::new(self.core.clone(), lots))
    }

    /// Leases up to `max` messages, if there are any now. Never waits. With a `max` of 0 the batch is empty.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn try_recv_batch(&self, max: usize) -> Result<Batch<E>, TryRecvError> {
        let mut lots = Few::new();
        if max == 0 {
            self.core.ended().map_or(Ok(()), Err)?;
            return Ok(Batch::new(self.core.clone(), lots));
        }
        if self.core.take(max, &mut lots)? {
            Ok(Batch::new(self.core.clone(), lots))
        } else {
            Err(TryRecvError::Empty)
        }
    }

    /// Deliveries, each waited for. Ends on an error; the next [`recv`](Self::recv) says which.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish_all(["order 7", "order 8"])?;
    /// for order in billing.iter().take(2) {
    ///     order.ack()?;
    /// }
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Delivery<E>> {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// A token whenever there is something to [`try_recv`](Self::try_recv), for `select!` over several subscriptions and other channels.
    ///
    /// No thread stands behind it, and no lease ages in it. A token says "look": somebody else may have been faster. After a successful
    /// `try_recv`, another token follows if there is more.
    ///
    /// ```
    /// use crossbeam_channel::select;
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// # let (_stop, stopped) = crossbeam_channel::bounded::<()>(0);
    /// let ready = billing.ready();
    /// orders.publish("order 7")?;
    /// select! {
    ///     recv(ready) -> _ => billing.try_recv()?.ack()?,
    ///     recv(stopped) -> _ => {}
    /// }
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn ready(&self) -> Receiver<()> {
        channel::ready(&self.core)
    }

    /// Deliveries through a channel of this capacity, for `select!`. A thread of the broker's feeds it.
    ///
    /// A delivery's lease runs from the moment it enters the channel, so give it no more capacity than is handled within the ack deadline; 65,536 at the most. What is
    /// unread when the channel is dropped is released. The channel disconnects when the broker closes or the subscription is deleted.
    pub fn channel(&self, capacity: usize) -> Receiver<Delivery<E>> {
        channel::pump(&self.core, capacity)
    }

    /// Starts a new generation of the subscription: what is kept from that place on (inclusive) is unsettled again, what is before it is settled.
    ///
    /// Every lease ends (`LeaseExpired`), attempts begin at 1, a publish delay that is not over still holds. A time or sequence before what is kept
    /// means the oldest kept. Other subscriptions notice nothing.
    ///
    /// ```
    /// use eventflow::{Retention, Seek};
    /// # let broker = eventflow::Broker::in_memory();
    /// let orders = broker.topic::<String>("orders").retention(Retention::forever()).open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish("order 7")?;
    /// billing.recv()?.ack()?;
    /// billing.seek(Seek::Earliest)?; // once more, from the start
    /// assert_eq!(*billing.recv()?, "order 7");
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`SeekError`]: nothing changed.
    pub fn seek(&self, seek: Seek) -> Result<(), SeekError> {
        self.core.seek(&seek)
    }

    /// Keeps, under a name, where the subscription stands, and all that it needs to be put back there with [`Seek::Snapshot`]: by any subscription of the topic, for 7 days.
    /// What is published later is kept for it as well.
    ///
    /// A snapshot outlives its subscription, not its topic.
    ///
    /// # Errors
    /// [`CreateError::AlreadyExists`]: names of snapshots are unique within the broker.
    pub fn snapshot(&self, name: &str) -> Result<(), CreateError> {
        self.core.snapshot(parse_name(name)?, None)
    }

    /// As [`snapshot`](Self::snapshot), for this long.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    pub fn snapshot_for(&self, name: &str, life: Duration) -> Result<(), CreateError> {
        self.core.snapshot(parse_name(name)?, Some(life))
    }

    /// Delivers nothing until [`resume`](Self::resume), to any subscriber. What is outstanding goes on, and what is published is stored. Lasting.
    ///
    /// # Errors
    /// The broker is shut down, or the subscription deleted.
    pub fn pause(&self) -> Result<()> {
        self.set_paused(true)
    }

    /// Delivers again.
    ///
    /// # Errors
    /// The broker is shut down, or the subscription deleted.
    pub fn resume(&self) -> Result<()> {
        self.set_paused(false)
    }

    fn set_paused(&self, paused: bool) -> Result<()> {
        match self.core.ended() {
            Some(RecvError::Closed) => Err(Error::Closed),
            Some(RecvError::Deleted) => Err(Error::Deleted),
            Some(error @ RecvError::Storage { .. }) => Err(error.into()),
            None => {
                self.core.set_paused(paused).map_err(|fault| RecvError::Storage { fault })?;
                Ok(())
            }
        }
    }

    /// Unsubscribes: the subscription is no more, for all of its subscribers. Who waits on it, wakes with an error; what only it needed is let go.
    ///
    /// # Errors
    /// [`DeleteError::NotFound`]: it was deleted before. [`DeleteError::Closed`]: the broker is shut down.
    pub fn delete(&self) -> Result<(), DeleteError> {
        self.core.delete()
    }

    /// Changes options of the subscription, for all of its subscribers.
    pub fn update(&self) -> SubscriptionUpdate<E> {
        SubscriptionUpdate::new(self.clone())
    }

    /// What the subscription has and did, now: leases that have run out by now have expired.
    pub fn stats(&self) -> SubscriptionStats {
        let survey = self.core.survey();
        let counts = survey.counts;
        SubscriptionStats {
            backlog: survey.backlog,
            outstanding: survey.outstanding,
            delayed: survey.delayed,
            parked: survey.parked,
            delivered: counts.delivered,
            redelivered: counts.redelivered,
            acked: counts.acked,
            nacked: counts.nacked,
            released: counts.released,
            leases_expired: counts.leases_expired,
            messages_expired: counts.messages_expired,
            dead_lettered: counts.dead_lettered,
            discarded: counts.discarded,
            filtered: counts.filtered,
            oldest_unsettled_age: survey.oldest_age,
        }
    }
}

/// A wait without a deadline ends with a message or for good.
pub(crate) fn ended(reason: NoMessage) -> RecvError {
    match reason {
        NoMessage::Ended(error) => error,
        NoMessage::Timeout => unreachable!("there was no timeout"),
    }
}

impl<E> Clone for Subscription<E> {
    fn clone(&self) -> Self {
        Subscription { core: self.core.clone(), topic: self.topic.clone() }
    }
}

impl<E> fmt::Debug for Subscription<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.core.name)
            .field("topic", &self.core.topic.name)
            .finish_non_exhaustive()
    }
}
