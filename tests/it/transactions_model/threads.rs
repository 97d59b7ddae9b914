//! Several writers commit transactions, several readers look at all topics at once, and what each sees has one serial order.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use eventflow::{Capacity, Delivery, DeliveryMode, Subscription, Topic, Transaction, TryRecvError};

use crate::support::{Broker, Numbers, PATIENCE, send, within};

const TOPICS: usize = 3;
const WRITERS: u64 = 3;
const READERS: usize = 3;
const INPUTS: u64 = 100;
/// Transactions of each writer, and topics that each of them publishes to as well, between those that are looked at: with many of them, a moment
/// in which half is seen would be a long one.
const SIZES: [(u64, usize); 2] = [(250, 0), (60, 150)];

fn size_of(seed: u64) -> (u64, usize) {
    SIZES[(seed % 2) as usize]
}

/// Everything about a transaction follows from its number.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// A bit for each topic.
    topics: u64,
    rolls_back: bool,
    acks: bool,
}

fn plan_of(seed: u64, number: u64) -> Plan {
    let mut numbers = Numbers(seed ^ number.wrapping_mul(0x9E37_79B9));
    Plan {
        topics: [0b011, 0b101, 0b110, 0b111][numbers.below(4) as usize],
        rolls_back: numbers.below(6) == 0,
        acks: numbers.below(2) == 0,
    }
}

impl Plan {
    fn has(self, topic: usize) -> bool {
        self.topics & (1 << topic) != 0
    }
}

/// What a transaction publishes to each of its topics.
#[derive(Clone, Copy, Debug)]
struct Output {
    number: u64,
    /// Whether it acks an input, too.
    acks: bool,
}

struct Scene {
    seed: u64,
    /// A topic has little space: writers meet and wait there.
    is_small: bool,
    broker: Broker,
    topics: Vec<Topic<Output>>,
    padding: Vec<Topic<Output>>,
    input: Subscription<u64>,
    writing: AtomicUsize,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let broker = Broker::in_memory();
        let is_small = seed.is_multiple_of(4);
        let (mut topics, mut padding) = (Vec::new(), Vec::new());
        for n in 0..TOPICS {
            let builder = broker.topic(&format!("topic-{n}"));
            let builder = if is_small && n == 1 { builder.capacity(Capacity::messages(5)) } else { builder };
            topics.push(builder.create().expect("a new topic"));
            for m in 0..size_of(seed).1 {
                padding.push(broker.topic(&format!("padding-{n}-{m}")).create().expect("a new topic"));
            }
        }
        let inputs = broker.topic::<u64>("inputs").create().expect("a new topic");
        let input = inputs
            .subscription("input")
            .delivery(DeliveryMode::ExactlyOnce)
            .ack_deadline(Duration::from_secs(2 * PATIENCE))
            .create()
            .expect("a new subscription");
        (1..=INPUTS).for_each(|n| send(&inputs, n));
        let writing = AtomicUsize::new(WRITERS as usize);
        Scene { seed, is_small, broker, topics, padding, input, writing }
    }

    fn publish(&self, tx: &mut Transaction, output: Output, numbers: &mut Numbers) {
        // In whatever order it is told, all of it is seen at once.
        let first = numbers.below(TOPICS as u64) as usize;
        for n in
            (0..TOPICS).map(|n| (n + first) % TOPICS).filter(|&n| plan_of(self.seed, output.number).has(n))
        {
            tx.publish(&self.topics[n], output);
        }
        self.padding.iter().for_each(|topic| tx.publish(topic, output));
    }

    /// Gives the inputs that were acked, by transaction.
    fn write(&self, writer: u64) -> Vec<(u64, u64)> {
        let _alarm = Alarm(self);
        let mut numbers = Numbers(self.seed.wrapping_add(writer));
        let mut acked = Vec::new();
        for number in (0..size_of(self.seed).0).map(|n| n * WRITERS + writer) {
            let plan = plan_of(self.seed, number);
            let mut tx = self.broker.transaction();
            let input = if plan.acks { self.input.try_recv().ok() } else { None };
            let input = input.map(|input| {
                let number = *input;
                tx.ack(input);
                number
            });
            self.publish(&mut tx, Output { number, acks: input.is_some() }, &mut numbers);
            match plan.rolls_back {
                true if numbers.below(2) == 0 => drop(tx),
                true => tx.rollback(),
                false => {
                    tx.commit().expect("its lease runs, and there will be space");
                    acked.extend(input.map(|input| (number, input)));
                }
            }
        }
        self.writing.fetch_sub(1, Ordering::SeqCst);
        acked
    }
}

/// When one of the threads panics, the others shall not wait for it.
struct Alarm<'a>(&'a Scene);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.broker.shutdown(Duration::ZERO);
        }
    }
}

/// One reader's subscriptions, and what it has seen on each.
struct Reader {
    seed: u64,
    subs: Vec<Subscription<Output>>,
    seen: Vec<Vec<u64>>,
    /// Acked when there is time: one look shall follow another at once.
    held: Vec<Delivery<Output>>,
    /// What it has seen elsewhere, and not here.
    owed: Vec<BTreeSet<u64>>,
    last_sequence: Vec<u64>,
    /// Transactions it has seen that acked an input.
    acking: BTreeSet<u64>,
}

impl Reader {
    fn new(scene: &Scene, n: usize) -> Self {
        let subscribe = |topic: &Topic<Output>| {
            topic.subscription(&format!("reader-{n}")).create().expect("a new subscription")
        };
        Reader {
            seed: scene.seed,
            subs: scene.topics.iter().map(subscribe).collect(),
            seen: vec![Vec::new(); TOPICS],
            held: Vec::new(),
            owed: vec![BTreeSet::new(); TOPICS],
            last_sequence: vec![0; TOPICS],
            acking: BTreeSet::new(),
        }
    }

    /// One look at a topic. False: there was nothing.
    fn look(&mut self, topic: usize) -> bool {
        match self.subs[topic].try_recv() {
            Ok(delivery) => {
                let (output, sequence) = (*delivery, delivery.id().sequence());
                self.held.push(delivery);
                assert!(sequence > self.last_sequence[topic], "P4: a topic has one order");
                self.last_sequence[topic] = sequence;
                self.note(topic, output);
                true
            }
            Err(error) => {
                assert_eq!(error, TryRecvError::Empty);
                let owed = &self.owed[topic];
                assert!(owed.is_empty(), "P5: topic {topic} shows nothing of {owed:?}, and others do");
                false
            }
        }
    }

    fn note(&mut self, topic: usize, Output { number, acks }: Output) {
        let plan = plan_of(self.seed, number);
        assert!(!plan.rolls_back, "P5: transaction {number} was rolled back, and topic {topic} shows it");
        assert!(plan.has(topic), "topic {topic} shows {number}, which is not of it");
        self.seen[topic].push(number);
        if acks {
            self.acking.insert(number);
        }
        if !self.owed[topic].remove(&number) {
            for other in (0..TOPICS).filter(|&other| other != topic && plan.has(other)) {
                self.owed[other].insert(number);
            }
        }
    }

    /// Until nobody writes any more and there is nothing left.
    fn read(mut self, scene: &Scene, n: usize) -> Vec<Vec<u64>> {
        let _alarm = Alarm(scene);
        let mut numbers = Numbers(scene.seed ^ ((n as u64 + 1) << 32));
        // To ack, and to look at the input, is to wait for the commit under way: who does so each time never looks in the middle of one.
        let pauses = if scene.is_small { 1 } else { 100 };
        loop {
            let written = scene.writing.load(Ordering::SeqCst) == 0;
            let mut found = false;
            for _ in 0..16 {
                // One here, and at once a look elsewhere.
                found |= self.look(numbers.below(TOPICS as u64) as usize);
            }
            if written || numbers.below(pauses) == 0 {
                found |= self.pause(scene);
            }
            if written && !found {
                return self.seen;
            }
        }
    }

    /// Acks, and compares what is seen with what is acked. True: there was something.
    fn pause(&mut self, scene: &Scene) -> bool {
        self.held.drain(..).for_each(|delivery| delivery.ack().expect("a running lease"));
        let acked = scene.input.stats().acked;
        assert!(acked >= self.acking.len() as u64, "P5: an output is seen, and its input is not acked");
        let mut found = false;
        for topic in 0..TOPICS {
            while self.look(topic) {
                found = true;
            }
        }
        assert!(acked <= self.acking.len() as u64, "P5: an input is acked, and its output is not seen");
        self.held.drain(..).for_each(|delivery| delivery.ack().expect("a running lease"));
        found
    }
}

/// Whether the orders of the topics are parts of one: what is first in all of them where it is goes first, and so on.
fn check_serial(orders: &[Vec<u64>]) {
    let places: BTreeMap<u64, Vec<usize>> =
        orders.iter().enumerate().fold(BTreeMap::new(), |mut places, (topic, order)| {
            order.iter().for_each(|&number| places.entry(number).or_default().push(topic));
            places
        });
    let mut at = vec![0; orders.len()];
    for _ in 0..places.len() {
        let head = |topic: usize| orders[topic].get(at[topic]);
        let is_first = |number: &&u64| places[number].iter().all(|&topic| head(topic) == Some(number));
        let heads: Vec<_> = (0..orders.len()).filter_map(head).collect();
        let Some(&&next) = heads.iter().find(|number| is_first(number)) else {
            panic!("P5: no transaction of {heads:?} is the next in all of its topics");
        };
        places[&next].iter().for_each(|&topic| at[topic] += 1);
    }
    assert!(at.iter().zip(orders).all(|(at, order)| *at == order.len()), "each of them once");
}

/// All threads of one scene.
fn play(seed: u64) {
    let scene = Arc::new(Scene::new(seed));
    let readers: Vec<_> = (0..READERS).map(|n| Reader::new(&scene, n)).collect();
    let readers: Vec<_> = readers
        .into_iter()
        .enumerate()
        .map(|(n, reader)| {
            let scene = scene.clone();
            thread::spawn(move || reader.read(&scene, n))
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let scene = scene.clone();
            thread::spawn(move || scene.write(writer))
        })
        .collect();
    let acked: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    let seen: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();

    let committed: Vec<_> =
        (0..WRITERS * size_of(seed).0).filter(|&number| !plan_of(seed, number).rolls_back).collect();
    for (topic, order) in seen[0].iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        let expected: Vec<_> =
            committed.iter().copied().filter(|&number| plan_of(seed, number).has(topic)).collect();
        assert_eq!(sorted, expected, "what topic {topic} shows");
    }
    assert!(seen.iter().all(|orders| *orders == seen[0]), "every reader sees the same order");
    check_serial(&seen[0]);

    let inputs: BTreeSet<_> = acked.iter().map(|(_, input)| *input).collect();
    assert_eq!(inputs.len(), acked.len(), "P16: an input is acked by one transaction");
    let stats = scene.input.stats();
    let count = inputs.len() as u64;
    assert!(count > 0, "some acked an input");
    assert_eq!((stats.acked, stats.backlog, stats.outstanding), (count, INPUTS - count, 0));
}

#[test]
fn p05_p16_every_reader_sees_transactions_of_several_threads_in_one_serial_order() {
    let number = |name| std::env::var(name).ok().and_then(|value: String| value.parse::<u64>().ok());
    let first = number("EVENTFLOW_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    for seed in (0..number("EVENTFLOW_SCENES").unwrap_or(12)).map(|n| first.wrapping_add(n)) {
        let run = std::panic::catch_unwind(|| within(PATIENCE, move || play(seed)));
        if let Err(panic) = run {
            eprintln!("the scene of seed {seed} has no serial order (EVENTFLOW_SEED={seed})");
            std::panic::resume_unwind(panic);
        }
    }
}
