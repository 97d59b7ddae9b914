//! What a subscriber holds: one delivery, or a batch of them.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::channel::Mark;
use crate::delivery::hand_out::{Grant, Ticket};
use crate::engine::local::receive::{Held, Lot};
use crate::engine::local::subscription::SubscriptionCore;
use crate::error::SettleError;
use crate::few::Few;
use crate::message::{Message, MessageId, MessageRef};
use crate::options::DeliveryMode;

/// One message leased to one subscriber until its ack deadline. Dereferences to the event.
///
/// It is settled once: [`ack`](Self::ack), [`nack`](Self::nack), [`nack_after`](Self::nack_after), [`release`](Self::release) and [`reject`](Self::reject) consume it. Dropping it
/// unsettled is a nack, also when the subscriber panics: the message comes back.
///
/// In [`AtMostOnce`](DeliveryMode::AtMostOnce) mode the hand-out has settled it: `ack` and drop do nothing, the rest is `LeaseExpired`.
pub struct Delivery<E: Send + Sync + 'static> {
    core: Arc<SubscriptionCore<E>>,
    /// None once settled.
    held: Option<Held<E>>,
    mark: Option<Box<Mark<E>>>,
}

impl<E: Send + Sync + 'static> Delivery<E> {
    pub(crate) fn new(core: Arc<SubscriptionCore<E>>, held: Held<E>) -> Self {
        Delivery { core, held: Some(held), mark: None }
    }

    /// In a channel's buffer, until somebody reads it.
    pub(crate) fn marked(mut self, mark: Mark<E>) -> Self {
        self.mark = Some(Box::new(mark));
        self
    }

    fn held(&self) -> &Held<E> {
        if let Some(mark) = &self.mark {
            mark.touch();
        }
        match &self.held {
            Some(held) => held,
            None => unreachable!("settling consumes the delivery"),
        }
    }

    /// Takes what is held out, so that the drop that follows does nothing.
    fn take(&mut self) -> Held<E> {
        match self.held.take() {
            Some(held) => held,
            None => unreachable!("settling consumes the delivery"),
        }
    }

    #[cfg(feature = "async")]
    pub(crate) fn core(&self) -> &Arc<SubscriptionCore<E>> {
        &self.core
    }

    pub(crate) fn topic_name(&self) -> &str {
        self.core.topic.name.as_str()
    }

    pub(crate) fn subscription_name(&self) -> &str {
        self.core.name.as_str()
    }

    /// What is held, for a transaction: the delivery then neither acks nor nacks.
    pub(crate) fn take_held(&mut self) -> (&Arc<SubscriptionCore<E>>, Held<E>) {
        // Read it is, out of a channel's buffer.
        let _touched = self.held();
        let held = self.take();
        (&self.core, held)
    }

    /// The message as it was published.
    pub fn message(&self) -> MessageRef<'_, E> {
        self.core.topic.log.message(&self.held().spot)
    }

    /// The message's identity.
    pub fn id(&self) -> MessageId {
        self.message().id()
    }

    /// Which attempt this is, from 1: how often the message was handed out, this time included, hand-outs that were released not.
    pub fn attempt(&self) -> u32 {
        self.held().ticket.attempt
    }

    /// Done: the message is not delivered again on this subscription, short of a seek.
    ///
    /// In `AtLeastOnce` mode an ack after the deadline is still taken if nobody else holds the message, it was not sought back and, on an ordered subscription,
    /// no earlier message of its key is unsettled. In `ExactlyOnce` mode it is refused, by the clock.
    ///
    /// # Errors
    /// [`SettleError::LeaseExpired`]: not settled by you; it comes back, or somebody else has it.
    pub fn ack(mut self) -> Result<(), SettleError> {
        let held = self.take();
        self.core.ack(held, self.core.mode)
    }

    /// Failed: spends the attempt; the message comes back as the retry policy says, by default at once.
    ///
    /// # Errors
    /// [`SettleError::LeaseExpired`]: the lease had ended, and nothing changed.
    pub fn nack(mut self) -> Result<(), SettleError> {
        let ticket = self.take().ticket;
        self.core.nack(ticket, None)
    }

    /// Failed: spends the attempt; the message comes back after this long, whatever the retry policy says.
    ///
    /// # Errors
    /// As [`nack`](Self::nack).
    pub fn nack_after(mut self, delay: Duration) -> Result<(), SettleError> {
        let ticket = self.take().ticket;
        self.core.nack(ticket, Some(delay))
    }

    /// Not mine: the message comes back at once and the attempt is not spent.
    ///
    /// # Errors
    /// As [`nack`](Self::nack).
    pub fn release(mut self) -> Result<(), SettleError> {
        let ticket = self.take().ticket;
        self.core.release(ticket)
    }

    /// Never again: to the dead-letter topic now, with this reason; without one, the message is discarded and counted.
    ///
    /// # Errors
    /// As [`nack`](Self::nack). A later message of an ordered run cannot be rejected before the earlier ones are settled: it is released.
    pub fn reject(mut self, reason: impl Into<String>) -> Result<(), SettleError> {
        let ticket = self.take().ticket;
        self.core.reject(ticket, reason.into())
    }

    /// The ack deadline is now this far from now, at most 24 hours. Zero is a nack, as in Google's `modifyAckDeadline`.
    ///
    /// # Errors
    /// As [`nack`](Self::nack).
    pub fn extend(&self, by: Duration) -> Result<(), SettleError> {
        self.core.extend(self.held().ticket, by)
    }
}

/// The namespace of derived ids (RFC 9562, section 5.5), drawn once. Never to change: ids of one program are to be those of the next.
const DERIVED: Uuid = Uuid::from_u128(0x6b0f_3c52_91c7_4e0a_8d6e_2f54_a7c3_10be);

impl<E> Message<E> {
    /// Gives the message an idempotency id that follows from what it is made from: the `n`-th output of this delivery's message on this subscription has always the same id.
    ///
    /// So a subscriber that dies after it published its output and before it acked its input publishes the output once all the same: its second attempt is a repeat
    /// within the output topic's [`DedupWindow`](crate::DedupWindow). A [`Transaction`](crate::Transaction) needs no such id; a subscriber outside of one does.
    ///
    /// The id is a UUID of version 5 of the input's topic, subscription and idempotency id, and `n`. An input without an idempotency id counts by its
    /// [`MessageId`], which is its own only while the broker lives that gave it. It replaces an id that the message has.
    ///
    /// ```
    /// use eventflow::Message;
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<u64>("orders").open()?;
    /// # let invoices = broker.topic::<String>("invoices").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// orders.publish(1_999)?;
    /// let first = billing.recv()?;
    /// invoices.publish(Message::new(format!("{} cents", *first)).derived_from(&first, 0))?;
    /// drop(first); // dies before it acks: the order comes back
    ///
    /// let again = billing.recv()?;
    /// let receipt = invoices.publish(Message::new(format!("{} cents", *again)).derived_from(&again, 0))?;
    /// assert!(receipt.deduplicated);
    /// again.ack()?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    pub fn derived_from<I: Send + Sync + 'static>(self, input: &Delivery<I>, n: u64) -> Self {
        let message = input.message();
        // Names hold no NUL and a number none either, so that no two origins read the same.
        let origin = match message.idempotency_id() {
            Some(id) => format!("i{id}"),
            None => format!("m{}", message.id()),
        };
        let name = format!("{}\0{}\0{origin}\0{n}", input.topic_name(), input.subscription_name());
        self.idempotency_id(Uuid::new_v5(&DERIVED, name.as_bytes()))
    }
}

impl<E: Send + Sync + 'static> Deref for Delivery<E> {
    type Target = E;
    fn deref(&self) -> &E {
        self.held().spot.event()
    }
}

impl<E: Send + Sync + 'static> Drop for Delivery<E> {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let ticket = held.ticket;
        // What follows may let go of the log's last hold on the message: this one goes first.
        drop(held);
        if ticket.lease.is_none() {
            return;
        }
        let unread = self.mark.as_ref().is_some_and(|mark| mark.is_unread());
        let _stale = if unread { self.core.release(ticket) } else { self.core.nack(ticket, None) };
    }
}

impl<E: Send + Sync + 'static> fmt::Debug for Delivery<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ticket = self.held.as_ref().map(|held| held.ticket);
        f.debug_struct("Delivery")
            .field("subscription", &self.core.name)
            .field("sequence", &ticket.map(|ticket| ticket.sequence))
            .field("attempt", &ticket.map(|ticket| ticket.attempt))
            .finish_non_exhaustive()
    }
}

/// Messages leased together, in hand-out order, under one ack deadline.
///
/// [`ack`](Self::ack) settles all that is left in it at the cost of one. Single messages are taken out with [`pop`](Self::pop) or by iterating; what an abandoned
/// iterator has not yielded is released, what is left in a dropped batch is nacked.
pub struct Batch<E: Send + Sync + 'static> {
    core: Arc<SubscriptionCore<E>>,
    /// None: the batch is empty.
    front: Option<Lot<E>>,
    rest: VecDeque<Lot<E>>,
}

impl<E: Send + Sync + 'static> Batch<E> {
    pub(crate) fn new(core: Arc<SubscriptionCore<E>>, lots: Few<Lot<E>>) -> Self {
        let (front, rest) = lots.into_parts();
        Batch { core, front, rest: rest.into() }
    }

    #[cfg(feature = "async")]
    pub(crate) fn core(&self) -> &Arc<SubscriptionCore<E>> {
        &self.core
    }

    fn lots(&self) -> impl Iterator<Item = &Lot<E>> {
        self.front.iter().chain(&self.rest)
    }

    /// How many messages are left in it.
    pub fn len(&self) -> usize {
        self.lots().map(|lot| lot.grant.len as usize).sum()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    /// The messages that are left, in hand-out order.
    pub fn iter(&self) -> impl Iterator<Item = MessageRef<'_, E>> {
        self.lots().flat_map(Lot::places).map(|place| self.core.topic.log.message_at(place))
    }

    /// Takes the first that is left out, to be settled by itself.
    pub fn pop(&mut self) -> Option<Delivery<E>> {
        let held = self.pop_held()?;
        Some(Delivery::new(self.core.clone(), held))
    }

    fn pop_held(&mut self) -> Option<Held<E>> {
        let (held, rest) = self.front.take()?.split_first();
        self.front = rest.or_else(|| self.rest.pop_front());
        Some(held)
    }

    /// Empties it, so that the drop that follows does nothing. What it kept goes.
    pub(crate) fn take_grants(&mut self) -> Few<Grant> {
        let mut grants = Few::new();
        let lots = self.front.take().into_iter().chain(self.rest.drain(..));
        grants.extend(lots.map(|lot| lot.grant));
        grants
    }

    fn take_tickets(&mut self) -> Vec<Ticket> {
        self.take_grants().iter().flat_map(Grant::tickets).collect()
    }

    /// What is held, for a transaction: the batch then neither acks nor nacks.
    pub(crate) fn into_held(mut self) -> (Arc<SubscriptionCore<E>>, Vec<Held<E>>) {
        let held = std::iter::from_fn(|| self.pop_held()).collect();
        (self.core.clone(), held)
    }

    /// Settles all that is left, at the cost of one.
    ///
    /// # Errors
    /// [`SettleError::LeaseExpired`] with the number of messages that were not settled; the others were.
    pub fn ack(mut self) -> Result<(), SettleError> {
        let grants = self.take_grants();
        self.core.ack_all(&grants, self.core.mode)
    }

    /// All that is left failed: each spends its attempt and comes back as the retry policy says.
    ///
    /// # Errors
    /// [`SettleError::LeaseExpired`] with the number of messages whose lease had ended.
    pub fn nack(mut self) -> Result<(), SettleError> {
        let tickets = self.take_tickets();
        self.core.nack_all(&tickets)
    }

    /// All that is left comes back at once, and no attempt is spent.
    ///
    /// # Errors
    /// [`SettleError::LeaseExpired`] with the number of messages whose lease had ended.
    pub fn release(mut self) -> Result<(), SettleError> {
        let tickets = self.take_tickets();
        self.core.release_all(&tickets)
    }
}

impl<E: Send + Sync + 'static> Drop for Batch<E> {
    fn drop(&mut self) {
        if self.is_empty() || self.core.mode == DeliveryMode::AtMostOnce {
            return;
        }
        let tickets = self.take_tickets();
        let _stale = self.core.nack_all(&tickets);
    }
}

impl<E: Send + Sync + 'static> IntoIterator for Batch<E> {
    type Item = Delivery<E>;
    type IntoIter = BatchIter<E>;

    fn into_iter(self) -> BatchIter<E> {
        BatchIter { batch: self }
    }
}

impl<E: Send + Sync + 'static> fmt::Debug for Batch<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("subscription", &self.core.name)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The deliveries of a batch, one by one. What it has not yielded when it is dropped is released.
#[derive(Debug)]
pub struct BatchIter<E: Send + Sync + 'static> {
    batch: Batch<E>,
}

impl<E: Send + Sync + 'static> Iterator for BatchIter<E> {
    type Item = Delivery<E>;

    fn next(&mut self) -> Option<Delivery<E>> {
        self.batch.pop()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.batch.len(), Some(self.batch.len()))
    }
}

impl<E: Send + Sync + 'static> ExactSizeIterator for BatchIter<E> {}

impl<E: Send + Sync + 'static> Drop for BatchIter<E> {
    fn drop(&mut self) {
        if self.batch.is_empty() || self.batch.core.mode == DeliveryMode::AtMostOnce {
            return;
        }
        let tickets = self.batch.take_tickets();
        let _stale = self.batch.core.release_all(&tickets);
    }
}
