//! The same verbs as futures and streams, on any runtime: wakers of our own, no executor.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use crate::contain::drop_contained;
use crate::delivery::hand_out::Ticket;
use crate::engine::local::committer::{NoWaiting, Pending, Safety};
use crate::engine::local::flight::Flight;
use crate::engine::local::publish::{Begun, Parcel};
use crate::engine::local::receive::{Lot, NoMessage, Precaution, only_held};
use crate::engine::local::settle::{AckBegun, tickets_of, unless_expired};
use crate::engine::local::staging::Stored;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{PUBLISHERS, TopicCore};
use crate::engine::waiters::{Look, Waiter};
use crate::error::{PublishAllError, PublishError, PublishErrorKind, RecvError, SettleError};
use crate::few::Few;
use crate::handles::{Batch, Delivery};
use crate::journal::JournalError;
use crate::message::Message;
use crate::subscription::{Subscription, ended};
use crate::topic::{Receipt, Topic, batch_sent, failed, receipt_of};

impl<E: Send + Sync + 'static> Subscription<E> {
    /// [`recv`](Self::recv) as a future, on any runtime. Dropping it before it is ready loses nothing: a message is leased only in the poll that returns it.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # let billing = orders.subscription("billing").open()?;
    /// # futures::executor::block_on(async {
    /// orders.publish_async("order 7").await?;
    /// billing.recv_async().await?.ack_async().await?;
    /// # Ok::<(), eventflow::Error>(())
    /// # })?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_async(&self) -> Result<Delivery<E>, RecvError> {
        let mut seat = Seat::new(self.core.clone());
        std::future::poll_fn(move |context| seat.poll(context)).await
    }

    /// Deliveries as a stream, on any runtime. It ends on an error; the next [`recv`](Self::recv) says which. Dropping it loses nothing.
    pub fn stream(&self) -> impl Stream<Item = Delivery<E>> + Send + Unpin + use<E> {
        Deliveries { seat: Seat::new(self.core.clone()), _handle: self.clone() }
    }
}

/// A place in the waiting room that is given up when the future is.
struct Seat<E: Send + Sync + 'static> {
    core: Arc<SubscriptionCore<E>>,
    waiter: Option<Arc<Waiter>>,
    /// On disk: it has been given something, which is yet to be safe.
    hand_out: Option<HandOut<E>>,
}

struct HandOut<E> {
    lots: Few<Lot<E>>,
    precaution: Precaution,
    pending: Pending,
}

impl<E: Send + Sync + 'static> Seat<E> {
    fn new(core: Arc<SubscriptionCore<E>>) -> Self {
        Seat { core, waiter: None, hand_out: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery<E>, RecvError>> {
        let _polling = self.core.topic.stored.as_ref().map(|_| NoWaiting::begin());
        loop {
            if let Some(HandOut { pending, .. }) = &mut self.hand_out {
                let outcome = ready!(Pin::new(pending).poll(context));
                return Poll::Ready(self.take_handed_out(outcome));
            }
            let (core, mut lots) = (&self.core, Few::new());
            let polled =
                core.topic.receivers.poll(core.id, &mut self.waiter, context, || core.look_once(&mut lots));
            match polled {
                Poll::Pending => {
                    // Nobody sleeps here: the timer sees to what becomes available by itself.
                    core.watch_time();
                    return Poll::Pending;
                }
                Poll::Ready(Err(NoMessage::Ended(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(reason @ NoMessage::Timeout)) => return Poll::Ready(Err(ended(reason))),
                Poll::Ready(Ok(precaution)) => match (precaution, &core.topic.stored) {
                    (Some(precaution), Some(stored)) => {
                        let Precaution { position, safety } = precaution;
                        let pending = stored.store.make_safe_later(position, safety);
                        self.hand_out = Some(HandOut { lots, precaution, pending });
                    }
                    _ => return Poll::Ready(Ok(Delivery::new(core.clone(), only_held(lots)))),
                },
            }
        }
    }

    fn take_handed_out(&mut self, outcome: Result<(), JournalError>) -> Result<Delivery<E>, RecvError> {
        let Some(HandOut { mut lots, .. }) = self.hand_out.take() else {
            unreachable!("what the disk has answered for was handed out")
        };
        self.core.end_take(&mut lots, outcome)?;
        Ok(Delivery::new(self.core.clone(), only_held(lots)))
    }
}

impl<E: Send + Sync + 'static> Drop for Seat<E> {
    fn drop(&mut self) {
        self.core.topic.receivers.abandon(self.core.id, &mut self.waiter);
        if let Some(HandOut { lots, precaution, .. }) = self.hand_out.take() {
            let _polling = NoWaiting::begin();
            self.core.abandon_take(lots, precaution);
        }
    }
}

/// A subscription as a stream.
struct Deliveries<E: Send + Sync + 'static> {
    seat: Seat<E>,
    /// Keeps the broker open.
    _handle: Subscription<E>,
}

impl<E: Send + Sync + 'static> Stream for Deliveries<E> {
    type Item = Delivery<E>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Delivery<E>>> {
        self.seat.poll(context).map(Result::ok)
    }
}

impl<E: Send + Sync + 'static> Topic<E> {
    /// [`publish`](Self::publish) as a future, on any runtime: it waits for space, and for the disk, without holding a thread.
    ///
    /// Dropped before it is ready, it has published nothing; but on disk a message that is on its way there may be published all the same, in whole. Who is to know gives it an
    /// [`idempotency_id`](Message::idempotency_id) and publishes it again.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn publish_async(&self, message: impl Into<Message<E>>) -> Result<Receipt, PublishError<E>> {
        let mut sending = Sending::new(self.core.clone(), [self.parcel(message.into())?]);
        let sent = std::future::poll_fn(|context| sending.poll(context)).await;
        let parcel = sending.parcels[0].take();
        match sent {
            Ok(()) => {
                let receipt = receipt_of(&parcel);
                drop_contained(parcel);
                Ok(receipt)
            }
            Err(kind) => Err(failed(kind, parcel)),
        }
    }

    /// [`publish_all`](Self::publish_all) as a future, on any runtime. Dropped before it is ready, it is as with [`publish_async`](Self::publish_async): all or none of it is published.
    ///
    /// ```
    /// # let broker = eventflow::Broker::in_memory();
    /// # let orders = broker.topic::<String>("orders").open()?;
    /// # futures::executor::block_on(async {
    /// let receipts = orders.publish_all_async(["order 7", "order 8"]).await?;
    /// assert_eq!(receipts.len(), 2);
    /// # Ok::<(), eventflow::Error>(())
    /// # })?;
    /// # Ok::<(), eventflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`publish_all`](Self::publish_all).
    pub async fn publish_all_async<M: Into<Message<E>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Vec<Receipt>, PublishAllError<E>> {
        let messages = messages.into_iter().map(Into::into).collect();
        let mut sending = Sending::new(self.core.clone(), self.parcels(messages)?);
        let sent = std::future::poll_fn(|context| sending.poll(context)).await;
        batch_sent(sent, std::mem::take(&mut sending.parcels))
    }
}

/// One message, or a batch, on its way in.
struct Sending<E: Send + Sync + 'static, P> {
    core: Arc<TopicCore<E>>,
    parcels: P,
    waiter: Option<Arc<Waiter>>,
    /// On disk.
    flight: Option<(Flight<E>, Pending)>,
}

impl<E: Send + Sync + 'static, P: AsMut<[Parcel<E>]>> Sending<E, P> {
    fn new(core: Arc<TopicCore<E>>, parcels: P) -> Self {
        Sending { core, parcels, waiter: None, flight: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PublishErrorKind>> {
        let (core, parcels) = (&self.core, self.parcels.as_mut());
        let _polling = core.stored.as_ref().map(|_| NoWaiting::begin());
        loop {
            if let Some((_, pending)) = &mut self.flight {
                let outcome = ready!(Pin::new(pending).poll(context));
                if let Some((flight, _)) = self.flight.take()
                    && core.land(flight, outcome, parcels)?
                {
                    return Poll::Ready(Ok(()));
                }
            }
            let polled =
                core.space.poll(PUBLISHERS, &mut self.waiter, context, || match core.begin(parcels) {
                    Ok(Begun::Done) => Look::Found(Ok(None)),
                    Ok(Begun::MustWait) => Look::Nothing { until: None },
                    Ok(Begun::UnderWay(flight)) if flight.is_of_a_repeat() => Look::GaveUp(Ok(Some(flight))),
                    Ok(Begun::UnderWay(flight)) => Look::Found(Ok(Some(flight))),
                    Err(kind) => Look::GaveUp(Err(kind)),
                });
            match (ready!(polled)?, &core.stored) {
                (Some(flight), Some(stored)) => {
                    let pending = stored.store.make_safe_later(flight.position, Safety::Promised);
                    self.flight = Some((flight, pending));
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<E: Send + Sync + 'static, P> Drop for Sending<E, P> {
    fn drop(&mut self) {
        self.core.space.abandon(PUBLISHERS, &mut self.waiter);
    }
}

impl<E: Send + Sync + 'static> Delivery<E> {
    /// [`ack`](Self::ack) as a future, on any runtime: where an ack waits for the disk, it holds no thread.
    ///
    /// From its first poll on, the message is acked as far as can be told; dropped then, the future only does not say so. Dropped before, it is a nack.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn ack_async(mut self) -> Result<(), SettleError> {
        let core = self.core().clone();
        let Some(stored) = core.settles_when_safe(core.mode) else {
            let (core, held) = self.take_held();
            let _polling = core.topic.stored.as_ref().map(|_| NoWaiting::begin());
            return core.ack_at_once(held, core.mode);
        };
        let ticket = {
            let (_, held) = self.take_held();
            held.ticket
        };
        core.ack_when_safe_later(stored, &[ticket]).await
    }
}

impl<E: Send + Sync + 'static> Batch<E> {
    /// [`ack`](Self::ack) as a future, on any runtime, as [`Delivery::ack_async`] is.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn ack_async(mut self) -> Result<(), SettleError> {
        let core = self.core().clone();
        let Some(stored) = core.settles_when_safe(core.mode) else {
            let grants = self.take_grants();
            let _polling = core.topic.stored.as_ref().map(|_| NoWaiting::begin());
            return core.ack_all_at_once(&grants, core.mode);
        };
        let tickets = tickets_of(&self.take_grants());
        core.ack_when_safe_later(stored, &tickets).await
    }
}

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    async fn ack_when_safe_later(
        self: &Arc<Self>,
        stored: &Stored<E>,
        tickets: &[Ticket],
    ) -> Result<(), SettleError> {
        let mut begun = {
            let _polling = NoWaiting::begin();
            self.begin_ack(stored, tickets)?
        };
        loop {
            begun = match begun {
                AckBegun::Waits { position, answer } => {
                    let earlier = stored.store.make_safe_later(position, Safety::Promised).await;
                    self.go_on_with_ack(stored, answer, earlier)?
                }
                AckBegun::Added { position, expired } => {
                    if let Some(position) = position {
                        self.settled(stored.store.make_safe_later(position, Safety::Promised).await)?;
                    }
                    return unless_expired(expired);
                }
            };
        }
    }
}
