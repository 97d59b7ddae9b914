//! Channels whose receivers share the messages: for a fan-out there is one channel for each group, and a copy of each message in each.

use std::marker::PhantomData;
use std::ops::Range;

use crossfire::{MRx, MTx, Rx, Tx, mpmc, mpsc, spsc};

use crate::contender::{BATCH_LEN, BOUND, Contender, Ends};
use crate::payload::Payload;
use crate::workload::Shape;

/// One channel.
pub(crate) trait Channel: 'static {
    type Sender<E: Send + Sync + 'static>: Send;
    type Receiver<E: Send + Sync + 'static>: Send;

    fn open<E: Send + Sync + 'static>(
        senders: usize,
        receivers: usize,
    ) -> Ends<Self::Sender<E>, Self::Receiver<E>>;

    fn send<E: Send + Sync + 'static>(sender: &Self::Sender<E>, event: E);

    fn receive<E: Send + Sync + 'static>(receiver: &mut Self::Receiver<E>, read: impl FnMut(&E));
}

/// As many channels as there are groups.
pub(crate) struct Copies<C>(PhantomData<C>);

impl<C: Channel> Contender for Copies<C> {
    type Publisher<P: Payload> = Vec<C::Sender<P::Event>>;
    type Receiver<P: Payload> = C::Receiver<P::Event>;

    fn open<P: Payload>(shape: &Shape, _messages: u64) -> Ends<Self::Publisher<P>, Self::Receiver<P>> {
        let mut publishers: Vec<Self::Publisher<P>> = (0..shape.publishers).map(|_| vec![]).collect();
        let mut receivers = vec![];
        for _ in 0..shape.groups {
            let (senders, workers) = C::open(shape.publishers as usize, shape.workers as usize);
            for (publisher, sender) in publishers.iter_mut().zip(senders) {
                publisher.push(sender);
            }
            receivers.extend(workers);
        }
        (publishers, receivers)
    }

    fn send<P: Payload>(publisher: &mut Self::Publisher<P>, numbers: Range<u64>) {
        let (last, others) = publisher.split_last().expect("at least one group");
        for number in numbers {
            let event = P::make(number);
            for sender in others {
                C::send(sender, event.clone());
            }
            C::send(last, event);
        }
    }

    fn receive<P: Payload>(receiver: &mut Self::Receiver<P>, read: impl FnMut(&P::Event)) {
        C::receive(receiver, read);
    }
}

/// What `clone` gives, or for one that has none, the one there is.
fn clones<T: Clone>(one: T, count: usize) -> Vec<T> {
    vec![one; count]
}

fn only<T>(one: T, count: usize) -> Vec<T> {
    assert_eq!(count, 1, "this channel has one such end");
    vec![one]
}

macro_rules! channel {
    ($name:ident: $sender:ty, $senders:ident, $receiver:ty, $receivers:ident, $open:expr) => {
        pub(crate) struct $name;

        impl Channel for $name {
            type Sender<E: Send + Sync + 'static> = $sender;
            type Receiver<E: Send + Sync + 'static> = $receiver;

            fn open<E: Send + Sync + 'static>(senders: usize, receivers: usize) -> Ends<$sender, $receiver> {
                let (sender, receiver) = $open;
                ($senders(sender, senders), $receivers(receiver, receivers))
            }

            fn send<E: Send + Sync + 'static>(sender: &$sender, event: E) {
                assert!(sender.send(event).is_ok(), "receivers wait for the end");
            }

            fn receive<E: Send + Sync + 'static>(receiver: &mut $receiver, mut read: impl FnMut(&E)) {
                read(&receiver.recv().expect("publishers say when it ends"));
            }
        }
    };
}

channel!(CrossbeamUnbounded: crossbeam_channel::Sender<E>, clones, crossbeam_channel::Receiver<E>, clones,
    crossbeam_channel::unbounded());
channel!(CrossbeamBounded: crossbeam_channel::Sender<E>, clones, crossbeam_channel::Receiver<E>, clones,
    crossbeam_channel::bounded(BOUND));
channel!(FlumeUnbounded: flume::Sender<E>, clones, flume::Receiver<E>, clones, flume::unbounded());
channel!(FlumeBounded: flume::Sender<E>, clones, flume::Receiver<E>, clones, flume::bounded(BOUND));
channel!(KanalUnbounded: kanal::Sender<E>, clones, kanal::Receiver<E>, clones, kanal::unbounded());
channel!(KanalBounded: kanal::Sender<E>, clones, kanal::Receiver<E>, clones, kanal::bounded(BOUND));
channel!(Std: std::sync::mpsc::Sender<E>, clones, std::sync::mpsc::Receiver<E>, only,
    std::sync::mpsc::channel());

channel!(CrossfireSpscUnbounded: Tx<spsc::List<E>>, only, Rx<spsc::List<E>>, only,
    spsc::unbounded_blocking());
channel!(CrossfireSpscBounded: Tx<spsc::Array<E>>, only, Rx<spsc::Array<E>>, only,
    spsc::bounded_blocking(BOUND));
channel!(CrossfireMpscUnbounded: MTx<mpsc::List<E>>, clones, Rx<mpsc::List<E>>, only,
    mpsc::unbounded_blocking());
channel!(CrossfireMpscBounded: MTx<mpsc::Array<E>>, clones, Rx<mpsc::Array<E>>, only,
    mpsc::bounded_blocking(BOUND));
channel!(CrossfireMpmcUnbounded: MTx<mpmc::List<E>>, clones, MRx<mpmc::List<E>>, clones,
    mpmc::unbounded_blocking());
channel!(CrossfireMpmcBounded: MTx<mpmc::Array<E>>, clones, MRx<mpmc::Array<E>>, clones,
    mpmc::bounded_blocking(BOUND));

/// Takes all that waits at once.
pub(crate) struct FlumeDrained;

impl Channel for FlumeDrained {
    type Sender<E: Send + Sync + 'static> = flume::Sender<E>;
    type Receiver<E: Send + Sync + 'static> = flume::Receiver<E>;

    fn open<E: Send + Sync + 'static>(
        senders: usize,
        receivers: usize,
    ) -> Ends<Self::Sender<E>, Self::Receiver<E>> {
        FlumeUnbounded::open(senders, receivers)
    }

    fn send<E: Send + Sync + 'static>(sender: &Self::Sender<E>, event: E) {
        FlumeUnbounded::send(sender, event);
    }

    fn receive<E: Send + Sync + 'static>(receiver: &mut Self::Receiver<E>, mut read: impl FnMut(&E)) {
        read(&receiver.recv().expect("publishers say when it ends"));
        receiver.drain().for_each(|event| read(&event));
    }
}

/// Takes all that waits at once, into a buffer that is used again.
pub(crate) struct KanalDrained;

pub(crate) struct Buffered<E> {
    receiver: kanal::Receiver<E>,
    buffer: Vec<E>,
}

impl Channel for KanalDrained {
    type Sender<E: Send + Sync + 'static> = kanal::Sender<E>;
    type Receiver<E: Send + Sync + 'static> = Buffered<E>;

    fn open<E: Send + Sync + 'static>(
        senders: usize,
        receivers: usize,
    ) -> Ends<Self::Sender<E>, Self::Receiver<E>> {
        let (senders, receivers) = KanalUnbounded::open(senders, receivers);
        let buffered = |receiver| Buffered { receiver, buffer: Vec::with_capacity(BATCH_LEN) };
        (senders, receivers.into_iter().map(buffered).collect())
    }

    fn send<E: Send + Sync + 'static>(sender: &Self::Sender<E>, event: E) {
        KanalUnbounded::send(sender, event);
    }

    fn receive<E: Send + Sync + 'static>(receiver: &mut Self::Receiver<E>, mut read: impl FnMut(&E)) {
        let Buffered { receiver, buffer } = receiver;
        read(&receiver.recv().expect("publishers say when it ends"));
        receiver.drain_into(buffer).expect("publishers say when it ends");
        buffer.drain(..).for_each(|event| read(&event));
    }
}
