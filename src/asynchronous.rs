//! The same verbs as futures and streams, on any runtime: wakers of our own, no executor.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::contain::drop_contained;
use crate::engine::local::publish::Parcel;
use crate::engine::local::receive::{NoMessage, only_held};
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{PUBLISHERS, TopicCore};
use crate::engine::waiters::{Look, Waiter};
use crate::error::{PublishError, PublishErrorKind, RecvError};
use crate::few::Few;
use crate::handles::Delivery;
use crate::message::Message;
use crate::subscription::{Subscription, ended};
use crate::topic::{Receipt, Topic, failed, receipt_of};

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
        let mut seat = Seat { core: self.core.clone(), waiter: None };
        std::future::poll_fn(move |context| seat.poll(context)).await
    }

    /// Deliveries as a stream, on any runtime. It ends on an error; the next [`recv`](Self::recv) says which. Dropping it loses nothing.
    pub fn stream(&self) -> impl Stream<Item = Delivery<E>> + Send + Unpin + use<E> {
        Deliveries { seat: Seat { core: self.core.clone(), waiter: None }, _handle: self.clone() }
    }
}

/// A place in the waiting room that is given up when the future is.
struct Seat<E: Send + Sync + 'static> {
    core: Arc<SubscriptionCore<E>>,
    waiter: Option<Arc<Waiter>>,
}

impl<E: Send + Sync + 'static> Seat<E> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery<E>, RecvError>> {
        let (core, mut lots) = (&self.core, Few::new());
        let look = || core.look(1, None, &mut lots);
        let polled = core.topic.receivers.poll(core.id, &mut self.waiter, context, look);
        match polled {
            Poll::Pending => {
                // Nobody sleeps here: the timer sees to what becomes available by itself.
                core.watch_time();
                Poll::Pending
            }
            Poll::Ready(Err(reason)) => Poll::Ready(Err(match reason {
                NoMessage::Ended(error) => error,
                NoMessage::Timeout => ended(reason),
            })),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(Delivery::new(core.clone(), only_held(lots)))),
        }
    }
}

impl<E: Send + Sync + 'static> Drop for Seat<E> {
    fn drop(&mut self) {
        self.core.topic.receivers.abandon(self.core.id, &mut self.waiter);
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
    /// [`publish`](Self::publish) as a future, on any runtime: it waits for space without holding a thread. Dropped before it is ready, it has published nothing.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn publish_async(&self, message: impl Into<Message<E>>) -> Result<Receipt, PublishError<E>> {
        let mut sending =
            Sending { core: self.core.clone(), parcels: [self.parcel(message.into())?], waiter: None };
        let sent = std::future::poll_fn(|context| sending.poll(context)).await;
        match sent {
            Ok(()) => {
                let parcel = sending.take();
                let receipt = receipt_of(&parcel);
                drop_contained(parcel);
                Ok(receipt)
            }
            Err(kind) => Err(failed(kind, sending.take())),
        }
    }
}

struct Sending<E: Send + Sync + 'static> {
    core: Arc<TopicCore<E>>,
    parcels: [Parcel<E>; 1],
    waiter: Option<Arc<Waiter>>,
}

impl<E: Send + Sync + 'static> Sending<E> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PublishErrorKind>> {
        let (core, parcels) = (&self.core, &mut self.parcels);
        core.space.poll(PUBLISHERS, &mut self.waiter, context, || match core.attempt(parcels) {
            Ok(true) => Look::Found(Ok(())),
            Ok(false) => Look::Nothing { until: None },
            Err(kind) => Look::GaveUp(Err(kind)),
        })
    }

    fn take(&mut self) -> Parcel<E> {
        self.parcels[0].take()
    }
}

impl<E: Send + Sync + 'static> Drop for Sending<E> {
    fn drop(&mut self) {
        self.core.space.abandon(PUBLISHERS, &mut self.waiter);
    }
}
