//! The shapes of traffic: pipe, fan-out, fan-in and load-balanced, beside two well-known channels.
//!
//! Ours does the whole at-least-once cycle: publish, lease, read, acknowledge, free. The channels acknowledge nothing, keep nothing and
//! redeliver nothing: they are the measure of what the cycle costs, not rivals at equal guarantees.
//!
//! Each payload is made inside the measured time; both its ends are read by every receiver; counts and checksums are compared with those
//! of a plain loop, which is also the baseline. Runs of all contestants are interleaved. `cargo bench --bench shapes -- pipe` runs one shape.

mod harness;

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eventflow::{Broker, Subscription, Topic};
use harness::{Spread, Watchdog, is_asked_for, parameter, print_machine};

const BATCH_LEN: usize = 64;
const PAYLOAD_LEN: usize = 100;

/// The number of the message that ends a run: never one that counts.
const LAST: u64 = u64::MAX;

/// What is sent. Made afresh for each message, from its number.
trait Payload: Clone + Send + Sync + 'static {
    const NAME: &'static str;
    fn make(number: u64) -> Self;
    fn number(&self) -> u64;
    /// Depends on both ends of the payload.
    fn digest(&self) -> u64;
}

impl Payload for u64 {
    const NAME: &'static str = "u64";
    fn make(number: u64) -> u64 {
        black_box(number)
    }
    fn number(&self) -> u64 {
        *self
    }
    fn digest(&self) -> u64 {
        self.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17)
    }
}

impl Payload for Bytes {
    const NAME: &'static str = "100-byte Bytes";
    fn make(number: u64) -> Bytes {
        let mut bytes = vec![0x5A; PAYLOAD_LEN];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[PAYLOAD_LEN - 8..].copy_from_slice(&number.rotate_left(32).to_le_bytes());
        bytes.into()
    }
    fn number(&self) -> u64 {
        u64::from_le_bytes(self[..8].try_into().expect("eight bytes"))
    }
    fn digest(&self) -> u64 {
        let tail = u64::from_le_bytes(self[self.len() - 8..].try_into().expect("eight bytes"));
        self.number().wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17) ^ tail
    }
}

/// Who sends to whom.
struct Shape {
    name: &'static str,
    publishers: u64,
    /// Each gets every message.
    groups: usize,
    /// They share the messages of their group.
    workers: usize,
    messages: u64,
}

impl Shape {
    fn deliveries(&self) -> u64 {
        self.messages * self.groups as u64
    }

    /// The numbers that one publisher sends.
    fn share(&self, publisher: u64) -> std::ops::Range<u64> {
        self.messages * publisher / self.publishers..self.messages * (publisher + 1) / self.publishers
    }
}

fn shapes() -> [Shape; 4] {
    let messages = parameter("messages", 1_000, 400_000);
    [
        Shape { name: "pipe", publishers: 1, groups: 1, workers: 1, messages },
        Shape { name: "fan-out", publishers: 1, groups: 8, workers: 1, messages: messages / 4 },
        Shape { name: "fan-in", publishers: 4, groups: 1, workers: 1, messages },
        Shape { name: "load-balanced", publishers: 2, groups: 1, workers: 2, messages },
    ]
}

/// What receivers got.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Tally {
    count: u64,
    checksum: u64,
}

impl Tally {
    fn add(&mut self, payload: &impl Payload) {
        self.count += 1;
        self.checksum = self.checksum.wrapping_add(payload.digest());
    }

    fn join(self, other: Tally) -> Tally {
        Tally { count: self.count + other.count, checksum: self.checksum.wrapping_add(other.checksum) }
    }
}

type Publisher = Box<dyn FnOnce() + Send>;
type Receiver = Box<dyn FnOnce() -> Tally + Send>;

/// Starts everybody at once and waits for everybody; the time is from the first publisher's start to the last receiver's end, by their
/// own reading. `finish` runs when all publishers are done.
fn race(publishers: Vec<Publisher>, receivers: Vec<Receiver>, finish: impl FnOnce()) -> (Duration, Tally) {
    let barrier = Arc::new(Barrier::new(publishers.len() + receivers.len()));
    let receivers: Vec<_> = receivers
        .into_iter()
        .map(|receive| {
            let barrier = barrier.clone();
            thread::spawn(move || {
                barrier.wait();
                (receive(), Instant::now())
            })
        })
        .collect();
    let publishers: Vec<_> = publishers
        .into_iter()
        .map(|publish| {
            let barrier = barrier.clone();
            thread::spawn(move || {
                barrier.wait();
                let start = Instant::now();
                publish();
                start
            })
        })
        .collect();
    let starts = publishers.into_iter().map(|publisher| publisher.join().expect("a publisher panicked"));
    let start = starts.min().expect("at least one publisher");
    finish();
    let ends = receivers.into_iter().map(|receiver| receiver.join().expect("a receiver panicked"));
    let (tally, end) =
        ends.fold((Tally::default(), start), |(tally, end), (more, at)| (tally.join(more), end.max(at)));
    (end - start, tally)
}

/// No channel and no second thread: what making and reading the payloads costs by itself, and what the tally must be.
fn baseline<P: Payload>(shape: &Shape) -> (Duration, Tally) {
    let start = Instant::now();
    let mut tally = Tally::default();
    for number in 0..shape.messages {
        let payload = P::make(number);
        for _ in 0..shape.groups {
            tally.add(black_box(&payload));
        }
    }
    (start.elapsed(), tally)
}

fn receive_singly<P: Payload>(subscription: &Subscription<P>, topic: &Topic<P>) -> Tally {
    let mut tally = Tally::default();
    for delivery in subscription.iter() {
        let is_last = delivery.number() == LAST;
        if !is_last {
            tally.add(&*delivery);
        }
        delivery.ack().expect("the lease is ours");
        if is_last {
            // For the next worker of this group. A topic is first in, first out: whoever sees the last message has seen all.
            topic.publish(P::make(LAST)).expect("the topic has no limit");
            return tally;
        }
    }
    panic!("the broker ended before the last message");
}

fn receive_in_batches<P: Payload>(subscription: &Subscription<P>, topic: &Topic<P>) -> Tally {
    let mut tally = Tally::default();
    loop {
        let batch = subscription.recv_batch(BATCH_LEN).expect("the broker runs");
        let mut has_last = false;
        for message in batch.iter() {
            if message.number() == LAST {
                has_last = true;
            } else {
                tally.add(message.event());
            }
        }
        batch.ack().expect("the leases are ours");
        if has_last {
            topic.publish(P::make(LAST)).expect("the topic has no limit");
            return tally;
        }
    }
}

/// Publishes one by one; `receive` is how a worker receives.
fn eventflow<P: Payload>(
    shape: &Shape,
    receive: fn(&Subscription<P>, &Topic<P>) -> Tally,
    publish: fn(&Topic<P>, std::ops::Range<u64>),
) -> (Duration, Tally) {
    let broker = Broker::in_memory();
    let topic = broker.topic::<P>("shapes").create().expect("a new topic");
    let mut receivers: Vec<Receiver> = Vec::new();
    for group in 0..shape.groups {
        let subscription =
            topic.subscription(&format!("group-{group}")).create().expect("a new subscription");
        for _ in 0..shape.workers {
            let (subscription, topic) = (subscription.clone(), topic.clone());
            receivers.push(Box::new(move || receive(&subscription, &topic)));
        }
    }
    let publishers = (0..shape.publishers).map(|publisher| {
        let (topic, share) = (topic.clone(), shape.share(publisher));
        Box::new(move || publish(&topic, share)) as Publisher
    });
    race(publishers.collect(), receivers, || {
        topic.publish(P::make(LAST)).expect("the topic has no limit");
    })
}

fn publish_singly<P: Payload>(topic: &Topic<P>, share: std::ops::Range<u64>) {
    for number in share {
        topic.publish(P::make(number)).expect("the topic has no limit");
    }
}

fn publish_in_batches<P: Payload>(topic: &Topic<P>, share: std::ops::Range<u64>) {
    let mut from = share.start;
    while from < share.end {
        let to = share.end.min(from + BATCH_LEN as u64);
        topic.publish_all((from..to).map(P::make)).expect("the topic has no limit");
        from = to;
    }
}

fn crossbeam<P: Payload>(shape: &Shape) -> (Duration, Tally) {
    let (senders, channels): (Vec<_>, Vec<_>) =
        (0..shape.groups).map(|_| crossbeam_channel::unbounded::<P>()).unzip();
    let mut receivers: Vec<Receiver> = Vec::new();
    for channel in channels {
        for _ in 0..shape.workers {
            let channel = channel.clone();
            receivers.push(Box::new(move || {
                let mut tally = Tally::default();
                for payload in &channel {
                    tally.add(&payload);
                }
                tally
            }));
        }
    }
    let publishers = (0..shape.publishers).map(|publisher| {
        let (senders, share) = (senders.clone(), shape.share(publisher));
        Box::new(move || {
            let (last, others) = senders.split_last().expect("at least one group");
            for number in share {
                let payload = P::make(number);
                for sender in others {
                    sender.send(payload.clone()).expect("receivers wait for the end");
                }
                last.send(payload).expect("receivers wait for the end");
            }
        }) as Publisher
    });
    let publishers = publishers.collect();
    drop(senders); // the channel ends with the last publisher's
    race(publishers, receivers, || ())
}

/// A broadcast channel never waits: it overwrites what a slow receiver has not read. Its ring is therefore as long as the run.
fn tokio_broadcast<P: Payload>(shape: &Shape) -> (Duration, Tally) {
    let (sender, _) = tokio::sync::broadcast::channel::<P>(shape.messages as usize);
    let receivers = (0..shape.groups).map(|_| {
        let mut channel = sender.subscribe();
        Box::new(move || {
            let mut tally = Tally::default();
            while let Ok(payload) = channel.blocking_recv() {
                tally.add(&payload);
            }
            tally
        }) as Receiver
    });
    let receivers = receivers.collect();
    let publishers = (0..shape.publishers).map(|publisher| {
        let (sender, share) = (sender.clone(), shape.share(publisher));
        Box::new(move || {
            for number in share {
                assert!(sender.send(P::make(number)).is_ok(), "receivers wait for the end");
            }
        }) as Publisher
    });
    let publishers = publishers.collect();
    drop(sender);
    race(publishers, receivers, || ())
}

type Contestant = (&'static str, fn(&Shape) -> (Duration, Tally));

fn contestants<P: Payload>(shape: &Shape) -> Vec<Contestant> {
    let mut all: Vec<Contestant> = vec![
        ("no channel, one thread", baseline::<P>),
        ("eventflow recv", |shape| eventflow::<P>(shape, receive_singly, publish_singly)),
        ("eventflow recv_batch(64)", |shape| eventflow::<P>(shape, receive_in_batches, publish_singly)),
        ("eventflow publish_all(64), recv_batch(64)", |shape| {
            eventflow::<P>(shape, receive_in_batches, publish_in_batches)
        }),
        ("crossbeam-channel unbounded, no ack", crossbeam::<P>),
    ];
    // Every receiver of a broadcast channel gets every message: there is no sharing.
    if shape.workers == 1 {
        all.push(("tokio broadcast, no ack", tokio_broadcast::<P>));
    }
    all
}

/// Runs all contestants in turn, `runs` times over, and returns each one's millions of deliveries a second.
fn measure<P: Payload>(shape: &Shape, runs: u64) -> Vec<(&'static str, Vec<f64>)> {
    let contestants = contestants::<P>(shape);
    let mut rates: Vec<(&'static str, Vec<f64>)> =
        contestants.iter().map(|(name, _)| (*name, vec![])).collect();
    let (_, expected) = baseline::<P>(shape);
    assert_eq!(expected.count, shape.deliveries());
    for run in 1..=runs {
        for (place, (name, contestant)) in contestants.iter().enumerate() {
            let (elapsed, tally) = contestant(shape);
            assert_eq!(tally, expected, "{name} lost, repeated or changed messages");
            println!(
                "run={run} shape={} payload={:?} contestant={name:?} deliveries={} elapsed_us={} checksum={:016x}",
                shape.name,
                P::NAME,
                tally.count,
                elapsed.as_micros(),
                tally.checksum
            );
            rates[place].1.push(tally.count as f64 / elapsed.as_secs_f64() / 1e6);
        }
    }
    rates
}

fn report<P: Payload>(shape: &Shape, runs: u64) -> String {
    let mut table = format!(
        "\n{}: {} publisher(s), {} subscription(s) with {} subscriber(s) each, {}, {} messages, {runs} runs\n",
        shape.name,
        shape.publishers,
        shape.groups,
        shape.workers,
        P::NAME,
        shape.messages
    );
    for (name, rates) in measure::<P>(shape, runs) {
        table += &format!("  {name:<44} {} million deliveries/s\n", Spread::of(&rates));
    }
    table
}

fn main() {
    let _watchdog = Watchdog::start(Duration::from_secs(parameter("limit_seconds", 120, 300)));
    let runs = parameter("runs", 1, 5);
    print_machine();
    let mut tables = String::new();
    for shape in shapes().iter().filter(|shape| is_asked_for(shape.name)) {
        tables += &report::<u64>(shape, runs);
        tables += &report::<Bytes>(shape, runs);
    }
    println!("{tables}");
}
