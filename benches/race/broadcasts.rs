//! Channels of which every receiver gets every message.

use std::hint::spin_loop;
use std::ops::Range;
use std::thread::yield_now;

use disruptor::{
    BusySpin, EventPoller, MultiConsumerBarrier, MultiProducer, MultiProducerBarrier, Polling, Producer,
    SingleConsumerBarrier, SingleProducer, SingleProducerBarrier, build_multi_producer,
    build_single_producer,
};

use crate::contender::{BATCH_LEN, BOUND, Contender, Ends};
use crate::payload::Payload;
use crate::workload::Shape;

/// It never waits, but overwrites what a slow receiver has not read: its ring is as long as the run.
pub(crate) struct TokioBroadcast;

impl Contender for TokioBroadcast {
    type Publisher<P: Payload> = tokio::sync::broadcast::Sender<P::Event>;
    type Receiver<P: Payload> = tokio::sync::broadcast::Receiver<P::Event>;

    fn open<P: Payload>(shape: &Shape, messages: u64) -> Ends<Self::Publisher<P>, Self::Receiver<P>> {
        let (sender, _) = tokio::sync::broadcast::channel(messages as usize + 1);
        let receivers = (0..shape.groups).map(|_| sender.subscribe()).collect();
        (vec![sender; shape.publishers as usize], receivers)
    }

    fn send<P: Payload>(publisher: &mut Self::Publisher<P>, numbers: Range<u64>) {
        for number in numbers {
            assert!(publisher.send(P::make(number)).is_ok(), "receivers wait for the end");
        }
    }

    fn receive<P: Payload>(receiver: &mut Self::Receiver<P>, mut read: impl FnMut(&P::Event)) {
        read(&receiver.blocking_recv().expect("the ring holds the whole run"));
    }
}

/// With a bound, at which its publisher waits; as long as the run where a backlog is weighed.
pub(crate) struct AsyncBroadcast;

impl Contender for AsyncBroadcast {
    type Publisher<P: Payload> = async_broadcast::Sender<P::Event>;
    type Receiver<P: Payload> = async_broadcast::Receiver<P::Event>;

    fn open<P: Payload>(shape: &Shape, messages: u64) -> Ends<Self::Publisher<P>, Self::Receiver<P>> {
        let capacity = if shape.holds_backlog { messages as usize + 1 } else { BOUND };
        let (sender, receiver) = async_broadcast::broadcast(capacity);
        (vec![sender; shape.publishers as usize], vec![receiver; shape.groups as usize])
    }

    fn send<P: Payload>(publisher: &mut Self::Publisher<P>, numbers: Range<u64>) {
        for number in numbers {
            assert!(publisher.broadcast_blocking(P::make(number)).is_ok(), "receivers wait for the end");
        }
    }

    fn receive<P: Payload>(receiver: &mut Self::Receiver<P>, mut read: impl FnMut(&P::Event)) {
        read(&receiver.recv_blocking().expect("publishers say when it ends"));
    }
}

type Slot<P> = Option<<P as Payload>::Event>;

/// How often a poller looks before it lets another thread have its core: without that, more pollers than cores stand in each other's way.
const LOOKS: u32 = 200;

/// Waits a moment for what another thread is about to do.
fn pause(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS {
        spin_loop();
    } else {
        yield_now();
    }
}

/// `BATCH` at a time.
fn send_slots<const BATCH: u64, P: Payload>(producer: &mut impl Producer<Slot<P>>, numbers: Range<u64>) {
    let mut from = numbers.start;
    while from < numbers.end {
        let to = numbers.end.min(from + BATCH);
        let mut looks = 0;
        if BATCH == 1 {
            while producer.try_publish(|slot| *slot = Some(P::make(from))).is_err() {
                pause(&mut looks);
            }
        } else {
            let fill = |slot: &mut Slot<P>, number| *slot = Some(P::make(number));
            let count = (to - from) as usize;
            while producer
                .try_batch_publish(count, |slots| slots.zip(from..to).for_each(|(slot, n)| fill(slot, n)))
                .is_err()
            {
                pause(&mut looks);
            }
        }
        from = to;
    }
}

macro_rules! ring {
    ($name:ident: $producer:ty, $barrier:ty, $open:expr) => {
        /// A ring of slots that one publishes into and all receivers read in place; they poll.
        pub(crate) struct $name<const BATCH: u64>;

        impl<const BATCH: u64> Contender for $name<BATCH> {
            type Publisher<P: Payload> = $producer;
            type Receiver<P: Payload> = EventPoller<Slot<P>, $barrier>;

            fn open<P: Payload>(
                shape: &Shape,
                _messages: u64,
            ) -> Ends<Self::Publisher<P>, Self::Receiver<P>> {
                $open(shape)
            }

            fn send<P: Payload>(publisher: &mut Self::Publisher<P>, numbers: Range<u64>) {
                send_slots::<BATCH, P>(publisher, numbers);
            }

            fn receive<P: Payload>(receiver: &mut Self::Receiver<P>, read: impl FnMut(&P::Event)) {
                let mut looks = 0;
                loop {
                    match receiver.take(BATCH_LEN as u64) {
                        Ok(mut slots) => {
                            let filled = (&mut slots).map(|slot| slot.as_ref().expect("it was published"));
                            return filled.for_each(read);
                        }
                        Err(Polling::NoEvents) => pause(&mut looks),
                        Err(Polling::Shutdown) => panic!("publishers say when it ends"),
                    }
                }
            }
        }
    };
}

ring!(DisruptorPipe: SingleProducer<Slot<P>, SingleConsumerBarrier>, SingleProducerBarrier, |shape: &Shape| {
    assert_eq!((shape.publishers, shape.groups), (1, 1));
    let (poller, builder) = build_single_producer(BOUND, || None, BusySpin).new_event_poller();
    (vec![builder.build()], vec![poller])
});

ring!(DisruptorFanIn: MultiProducer<Slot<P>, SingleConsumerBarrier>, MultiProducerBarrier, |shape: &Shape| {
    assert_eq!(shape.groups, 1);
    let (poller, builder) = build_multi_producer(BOUND, || None, BusySpin).new_event_poller();
    (vec![builder.build(); shape.publishers as usize], vec![poller])
});

ring!(DisruptorFanOut: SingleProducer<Slot<P>, MultiConsumerBarrier>, SingleProducerBarrier, |shape: &Shape| {
    assert!(shape.publishers == 1 && shape.groups > 1);
    let (first, builder) = build_single_producer(BOUND, || None, BusySpin).new_event_poller();
    let (second, mut builder) = builder.new_event_poller();
    let mut pollers = vec![first, second];
    for _ in 2..shape.groups {
        let (poller, more) = builder.new_event_poller();
        pollers.push(poller);
        builder = more;
    }
    (vec![builder.build()], pollers)
});
