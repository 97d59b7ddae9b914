//! `Topic`: a named log of events, and the handle that publishes.

mod opening;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::opening::TopicBuilder;
pub(crate) use self::opening::parse_name;
use crate::broker::Broker;
use crate::contain::drop_contained;
use crate::engine::local::plain::Unsent;
use crate::engine::local::publish::{Parcel, Patience};
use crate::engine::local::topic::TopicCore;
use crate::error::{PublishAllError, PublishError, PublishErrorKind, UpdateError};
use crate::log::Stage;
use crate::message::{Message, MessageId};
use crate::options::{Capacity, DedupWindow, MessageStatus, Retention};
use crate::stats::TopicStats;
use crate::subscribe::SubscriptionBuilder;

/// A named log of events of type `E`; the handle that publishes. A cheap clone.
///
/// A closure as an event needs its type said, because Rust gives every closure a type of its own:
///
/// ```
/// type Job = Box<dyn Fn() + Send + Sync>;
/// # let broker = eventflow::Broker::in_memory();
/// let jobs = broker.topic::<Job>("jobs").open()?;
/// let worker = jobs.subscription("worker").open()?;
/// jobs.publish(Box::new(|| println!("done")) as Job)?;
/// let job = worker.recv()?;
/// (*job)();
/// job.ack()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
pub struct Topic<E> {
    pub(crate) core: Arc<TopicCore<E>>,
    pub(crate) broker: Broker,
}

/// What a publish is acknowledged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Receipt {
    /// The message's identity; of a repeat, that of the first.
    pub id: MessageId,
    /// The idempotency id had been published within the topic's window: this call published nothing.
    pub deduplicated: bool,
}

impl<E: Send + Sync + 'static> Topic<E> {
    /// The topic's name.
    pub fn name(&self) -> &str {
        self.core.name.as_str()
    }

    /// Publishes a message, and waits for space while the topic is full and its overflow is `Block`.
    ///
    /// When it returns, every subscription that existed before the call will be given the message (if its filter takes it) until it settles it. The cost does
    /// not depend on the number of subscriptions.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// let receipt = orders.publish("order 7")?;
    /// assert_eq!(receipt.id.sequence(), 1);
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// Nothing was published and nothing will be; the message comes back. See [`PublishError`] for what each variant asks for.
    pub fn publish(&self, message: impl Into<Message<E>>) -> Result<Receipt, PublishError<E>> {
        self.publish_with(message.into(), Patience::Forever)
    }

    /// Publishes a message if there is space now.
    ///
    /// # Errors
    /// [`PublishError::Full`]: the topic is full. Else as [`publish`](Self::publish).
    pub fn try_publish(&self, message: impl Into<Message<E>>) -> Result<Receipt, PublishError<E>> {
        self.publish_with(message.into(), Patience::None)
    }

    /// Publishes a message, and waits for space at most this long, on the broker's clock.
    ///
    /// # Errors
    /// [`PublishError::Timeout`]: the topic was still full when the timeout passed. Else as [`publish`](Self::publish).
    pub fn publish_timeout(
        &self,
        message: impl Into<Message<E>>,
        timeout: Duration,
    ) -> Result<Receipt, PublishError<E>> {
        let deadline = self.core.broker.now() + timeout;
        self.publish_with(message.into(), Patience::Until(deadline))
    }

    #[inline]
    fn publish_with(&self, message: Message<E>, patience: Patience) -> Result<Receipt, PublishError<E>> {
        match self.core.publish_plain(message) {
            Ok(id) => Ok(Receipt { id, deduplicated: false }),
            Err(message) => self.publish_with_care(message, patience),
        }
    }

    fn publish_with_care(&self, message: Message<E>, patience: Patience) -> Result<Receipt, PublishError<E>> {
        let mut parcels = [self.parcel(message)?];
        match self.core.publish(&mut parcels, patience) {
            Ok(()) => {
                let [parcel] = parcels;
                let receipt = receipt_of(&parcel);
                if let Some(message) = parcel.message {
                    drop_contained(message);
                }
                Ok(receipt)
            }
            Err(kind) => {
                let [parcel] = parcels;
                Err(failed(kind, parcel))
            }
        }
    }

    pub(crate) fn parcel(&self, message: Message<E>) -> Result<Parcel<E>, PublishError<E>> {
        self.core.parcel(message).map_err(|refusal| match refusal.encode_error {
            Some(error) => PublishError::Encode { message: refusal.message, error },
            None => PublishError::new(refusal.kind, refusal.message),
        })
    }

    /// Publishes all messages as one batch, or none. Every reader sees them together; their sequences are consecutive, but for repeats.
    ///
    /// Waits for space as [`publish`](Self::publish) does. An idempotency id that stands twice in the batch counts as a repeat.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// let receipts = orders.publish_all(["order 7", "order 8"])?;
    /// assert_eq!(receipts.len(), 2);
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// None was published and none will be; all messages come back. A batch that is larger than the topic's capacity is `TooLarge`, at once.
    pub fn publish_all<M: Into<Message<E>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Vec<Receipt>, PublishAllError<E>> {
        let (stage, bytes) = match self.lay_out(messages.into_iter().map(Into::into)) {
            Ok(plain) => plain,
            Err(messages) => return self.publish_all_with_care(messages),
        };
        let count = stage.len() as u64;
        match self.core.publish_all_plain(stage, bytes) {
            Ok(first) => {
                let receipt = |n| Receipt { id: first.after(n), deduplicated: false };
                Ok((0..count).map(receipt).collect())
            }
            Err(Unsent::NotPlain(events)) => {
                self.publish_all_with_care(events.into_iter().map(Message::new).collect())
            }
            Err(Unsent::Failed(kind, events)) => {
                Err(PublishAllError { kind, messages: events.into_iter().map(Message::new).collect() })
            }
        }
    }

    /// The events of a batch side by side, and what they weigh, if there is nothing to them but that. Else the messages.
    fn lay_out(
        &self,
        mut messages: impl Iterator<Item = Message<E>>,
    ) -> Result<(Stage<'_, E>, u64), Vec<Message<E>>> {
        // What an iterator says of its length is not to be believed.
        let mut stage = self.core.log.stage(messages.size_hint().0.min(1_024));
        let mut bytes = 0_u64;
        for message in messages.by_ref() {
            let weight = self.core.weight_in_batch(&message);
            let Some(weight) = weight.or_else(|| self.core.weight_in_stored_batch(&message)) else {
                let before = stage.into_events().into_iter().map(Message::new);
                return Err(before.chain([message]).chain(messages).collect());
            };
            bytes = bytes.saturating_add(weight);
            stage.push(message.event);
        }
        if stage.is_empty() { Err(Vec::new()) } else { Ok((stage, bytes)) }
    }

    fn publish_all_with_care(&self, messages: Vec<Message<E>>) -> Result<Vec<Receipt>, PublishAllError<E>> {
        let mut parcels = self.parcels(messages)?;
        let sent = self.core.publish(&mut parcels, Patience::Forever);
        batch_sent(sent, parcels)
    }

    /// All of a batch, or none.
    pub(crate) fn parcels(&self, messages: Vec<Message<E>>) -> Result<Vec<Parcel<E>>, PublishAllError<E>> {
        let mut messages = messages.into_iter();
        let mut parcels: Vec<Parcel<E>> = Vec::with_capacity(messages.size_hint().0.min(1_024));
        while let Some(message) = messages.next() {
            match self.core.parcel(message) {
                Ok(parcel) => parcels.push(parcel),
                Err(refusal) => {
                    let before = parcels.into_iter().filter_map(|parcel| parcel.message);
                    let all = before.chain([refusal.message]).chain(messages).collect();
                    return Err(PublishAllError { kind: refusal.kind, messages: all });
                }
            }
        }
        Ok(parcels)
    }

    /// Names a subscription to this topic, to be created or opened.
    pub fn subscription(&self, name: &str) -> SubscriptionBuilder<E> {
        SubscriptionBuilder::new(self.clone(), name)
    }

    /// The names of the topic's subscriptions, in order.
    pub fn subscriptions(&self) -> Vec<String> {
        let subscriptions = self.core.subscriptions();
        let mut names: Vec<_> = subscriptions.iter().map(|s| s.name.as_str().to_owned()).collect();
        names.sort();
        names
    }

    /// How a message stands with each subscription, by name, while the message is kept: who has it, who has acked it, who is yet to get it.
    ///
    /// None when the message is not kept (any more), or is not this topic's. With [`Retention::until_acked`] a message that
    /// everybody has settled goes with its segment.
    ///
    /// ```
    /// use eventflow::{MessageStatus, Retention};
    /// # let broker = eventflow::Broker::in_memory();
    /// let orders = broker.topic::<String>("orders").retention(Retention::forever()).open()?;
    /// let billing = orders.subscription("billing").open()?;
    /// let shipping = orders.subscription("shipping").open()?;
    /// let id = orders.publish("order 7")?.id;
    /// billing.recv()?.ack()?;
    /// let status = orders.status(id).expect("it is kept");
    /// assert_eq!(status["billing"], MessageStatus::Acked);
    /// assert_eq!(status["shipping"], MessageStatus::Waiting);
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn status(&self, id: MessageId) -> Option<BTreeMap<String, MessageStatus>> {
        self.core.status(id)
    }

    /// Changes options of the topic, for all of its handles.
    pub fn update(&self) -> TopicUpdate<E> {
        TopicUpdate { topic: self.clone(), retention: None, capacity: None, dedup: None }
    }

    /// What the topic holds and did.
    pub fn stats(&self) -> TopicStats {
        self.core.stats()
    }
}

/// What a batch came to.
pub(crate) fn batch_sent<E>(
    sent: Result<(), PublishErrorKind>,
    parcels: Vec<Parcel<E>>,
) -> Result<Vec<Receipt>, PublishAllError<E>> {
    match sent {
        Ok(()) => {
            let receipts = parcels.iter().map(receipt_of).collect();
            // Repeats, and what nobody keeps.
            parcels.into_iter().filter_map(|parcel| parcel.message).for_each(drop_contained);
            Ok(receipts)
        }
        Err(kind) => {
            let messages = parcels.into_iter().filter_map(|parcel| parcel.message).collect();
            Err(PublishAllError { kind, messages })
        }
    }
}

pub(crate) fn receipt_of<E>(parcel: &Parcel<E>) -> Receipt {
    match parcel.receipt {
        Some((id, deduplicated)) => Receipt { id, deduplicated },
        None => unreachable!("what was published has a receipt"),
    }
}

pub(crate) fn failed<E>(kind: PublishErrorKind, parcel: Parcel<E>) -> PublishError<E> {
    match parcel.message {
        Some(message) => PublishError::new(kind, message),
        None => unreachable!("a publish that fails has not taken its message"),
    }
}

impl<E> Clone for Topic<E> {
    fn clone(&self) -> Self {
        Topic { core: self.core.clone(), broker: self.broker.clone() }
    }
}

impl<E> fmt::Debug for Topic<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.core.name).finish_non_exhaustive()
    }
}

/// Options of a topic that are to change. Nothing changes before [`apply`](Self::apply).
///
/// ```
/// use eventflow::Capacity;
/// # let broker = eventflow::Broker::in_memory();
/// # let orders = broker.topic::<String>("orders").open()?;
/// orders.update().capacity(Capacity::messages(1_000)).apply()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
#[must_use = "nothing changes before `apply`"]
pub struct TopicUpdate<E> {
    topic: Topic<E>,
    retention: Option<Retention>,
    capacity: Option<Capacity>,
    dedup: Option<DedupWindow>,
}

impl<E: Send + Sync + 'static> TopicUpdate<E> {
    /// Another retention. What it does not keep goes at once.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Another capacity. What the topic holds above it stays; publishers wait, or meet the overflow, until there is space.
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Another window. A longer one does not bring back what was forgotten.
    pub fn dedup(mut self, window: DedupWindow) -> Self {
        self.dedup = Some(window);
        self
    }

    /// Makes the changes, all or none.
    ///
    /// # Errors
    /// [`UpdateError`]: nothing changed.
    pub fn apply(self) -> Result<(), UpdateError> {
        let problem = [
            ("retention", self.retention.and_then(|retention| retention.problem())),
            ("capacity", self.capacity.and_then(|capacity| capacity.problem())),
            ("dedup", self.dedup.and_then(|dedup| dedup.problem())),
        ];
        for (option, reason) in problem {
            if let Some(reason) = reason {
                return Err(UpdateError::InvalidOption { option, reason: reason.to_owned() });
            }
        }
        if let Some(ended) = self.topic.core.ended() {
            return Err(ended.into());
        }
        let updated = self.topic.core.update(|config| {
            config.retention = self.retention.unwrap_or(config.retention);
            config.capacity = self.capacity.unwrap_or(config.capacity);
            config.dedup = self.dedup.unwrap_or(config.dedup);
        });
        updated.map_err(UpdateError::from)
    }
}

impl<E> fmt::Debug for TopicUpdate<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicUpdate").field("topic", &self.topic).finish_non_exhaustive()
    }
}
