//! Ours: the whole at-least-once cycle of publish, lease, read, acknowledge and free, in the forms in which it may be used.

use std::ops::Range;

use eventflow::{Broker, Capacity, Subscription, Topic};

use crate::contender::{BATCH_LEN, BOUND, Contender, Ends};
use crate::payload::Payload;
use crate::workload::Shape;

fn open<P: Payload>(
    shape: &Shape,
    capacity: Option<Capacity>,
) -> Ends<Topic<P::Event>, Subscription<P::Event>> {
    let broker = Broker::in_memory();
    let topic = broker.topic::<P::Event>("race");
    let topic = match capacity {
        Some(capacity) => topic.capacity(capacity),
        None => topic,
    };
    let topic = topic.create().expect("a new topic");
    let mut subscriptions = vec![];
    for group in 0..shape.groups {
        let subscription =
            topic.subscription(&format!("group-{group}")).create().expect("a new subscription");
        subscriptions.extend(vec![subscription; shape.workers as usize]);
    }
    (vec![topic; shape.publishers as usize], subscriptions)
}

fn send_singly<P: Payload>(topic: &Topic<P::Event>, numbers: Range<u64>) {
    for number in numbers {
        topic.publish(P::make(number)).expect("the topic is open");
    }
}

fn send_in_batches<P: Payload>(topic: &Topic<P::Event>, numbers: Range<u64>) {
    let mut from = numbers.start;
    while from < numbers.end {
        let to = numbers.end.min(from + BATCH_LEN as u64);
        topic.publish_all((from..to).map(P::make)).expect("the topic is open");
        from = to;
    }
}

fn receive_singly<P: Payload>(subscription: &Subscription<P::Event>, mut read: impl FnMut(&P::Event)) {
    let delivery = subscription.recv().expect("the broker runs");
    read(&delivery);
    delivery.ack().expect("the lease is ours");
}

fn receive_in_batches<P: Payload>(subscription: &Subscription<P::Event>, mut read: impl FnMut(&P::Event)) {
    let batch = subscription.recv_batch(BATCH_LEN).expect("the broker runs");
    batch.iter().for_each(|message| read(message.event()));
    batch.ack().expect("the leases are ours");
}

macro_rules! form {
    ($(#[$what:meta])* $name:ident: $capacity:expr, $send:ident, $receive:ident) => {
        $(#[$what])*
        pub(crate) struct $name;

        impl Contender for $name {
            type Publisher<P: Payload> = Topic<P::Event>;
            type Receiver<P: Payload> = Subscription<P::Event>;

            fn open<P: Payload>(
                shape: &Shape,
                _messages: u64,
            ) -> Ends<Self::Publisher<P>, Self::Receiver<P>> {
                open::<P>(shape, $capacity)
            }

            fn send<P: Payload>(publisher: &mut Self::Publisher<P>, numbers: Range<u64>) {
                $send::<P>(publisher, numbers);
            }

            fn receive<P: Payload>(receiver: &mut Self::Receiver<P>, read: impl FnMut(&P::Event)) {
                $receive::<P>(receiver, read);
            }
        }
    };
}

form!(
    /// `publish`, `recv`, `ack`.
    OneByOne: None, send_singly, receive_singly);
form!(
    /// `publish`, `recv_batch(64)`, `batch.ack()`.
    ReceiveInBatches: None, send_singly, receive_in_batches);
form!(
    /// `publish_all` of 64, `recv_batch(64)`, `batch.ack()`.
    AllInBatches: None, send_in_batches, receive_in_batches);
form!(
    /// The same on a topic that holds no more than a bounded channel; its publishers wait.
    BoundedInBatches: Some(Capacity::messages(BOUND as u64)), send_in_batches, receive_in_batches);
