//! Random histories on two subscriptions, beside a model so naive that it can be believed: every answer, every attempt and every
//! count must be the model's. What the model leaves open (which of several redeliveries comes first) may be either.

use std::collections::BTreeMap;
use std::time::Duration;

use eventflow::{
    Batch, DeadLetter, Delivery, DeliveryMode, ManualClock, Message, RetryPolicy, SettleError, Subscription,
    Topic, TryRecvError,
};

use crate::support::{Numbers, manual};

/// Nanoseconds since the start.
type Time = u64;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Ready,
    Delayed(Time),
    Leased { lease: u64, until: Time },
    Settled,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    /// Hand-outs that were not released.
    attempts: u32,
    /// It was handed out, or delayed, before: its place in the order is open.
    moved: bool,
}

#[derive(Clone, Copy)]
struct Options {
    exactly_once: bool,
    deadline: Time,
    retry: Time,
    attempts_max: Option<u32>,
    outstanding_max: usize,
    /// With a filter, which takes everything: messages are looked at before they are handed out.
    filtered: bool,
}

/// One subscription, as the contract has it.
struct Book {
    options: Options,
    entries: BTreeMap<u64, Entry>,
    paused: bool,
    leases: u64,
    last_was_redelivery: bool,
    delivered: u64,
    acked: u64,
    nacked: u64,
    released: u64,
    expired: u64,
    discarded: u64,
}

impl Book {
    fn new(options: Options) -> Self {
        Book {
            options,
            entries: BTreeMap::new(),
            paused: false,
            leases: 0,
            last_was_redelivery: false,
            delivered: 0,
            acked: 0,
            nacked: 0,
            released: 0,
            expired: 0,
            discarded: 0,
        }
    }

    fn count(&self, which: impl Fn(&Entry) -> bool) -> usize {
        self.entries.values().filter(|entry| which(entry)).count()
    }

    fn outstanding(&self) -> usize {
        self.count(|entry| matches!(entry.state, State::Leased { .. }))
    }

    /// How many may be handed out now, at most.
    fn available(&self) -> usize {
        let room = self.options.outstanding_max.saturating_sub(self.outstanding());
        if self.paused { 0 } else { room.min(self.count(|entry| entry.state == State::Ready)) }
    }

    fn is_last(&self, entry: &Entry) -> bool {
        self.options.attempts_max == Some(entry.attempts + 1)
    }

    /// Time passes to `now`: every lease that ends and every delay that is over, in the order of time.
    fn pass(&mut self, now: Time) {
        loop {
            let due = |entry: &Entry| match entry.state {
                State::Delayed(until) | State::Leased { until, .. } if until <= now => Some(until),
                _ => None,
            };
            let next =
                self.entries.iter().filter_map(|(sequence, entry)| Some((due(entry)?, *sequence))).min();
            let Some((at, sequence)) = next else { return };
            if let State::Leased { .. } = self.entries[&sequence].state {
                self.expired += 1;
                self.fail(sequence, at, self.options.retry);
            } else {
                self.entry(sequence).state = State::Ready;
            }
        }
    }

    fn entry(&mut self, sequence: u64) -> &mut Entry {
        self.entries.get_mut(&sequence).expect("the model knows every message")
    }

    fn fail(&mut self, sequence: u64, at: Time, delay: Time) {
        let attempts_max = self.options.attempts_max;
        let entry = self.entry(sequence);
        if attempts_max.is_some_and(|max| entry.attempts >= max) {
            entry.state = State::Settled;
            self.discarded += 1;
        } else {
            entry.state = if delay == 0 { State::Ready } else { State::Delayed(at + delay) };
        }
    }

    /// The broker handed this out: it must have been allowed to. Gives the lease.
    fn hand_out(&mut self, sequence: u64, attempt: u32, now: Time) -> u64 {
        assert!(self.available() > 0, "#{sequence} handed out, and nothing may be");
        let entry = self.entries[&sequence];
        assert_eq!(entry.state, State::Ready, "#{sequence} handed out");
        assert_eq!(attempt, entry.attempts + 1, "attempt of #{sequence}");
        let fresh = |entry: &Entry| entry.state == State::Ready && !entry.moved;
        let first_fresh = self.entries.iter().find(|(_, entry)| fresh(entry)).map(|(sequence, _)| *sequence);
        if !entry.moved {
            assert_eq!(Some(sequence), first_fresh, "new messages come in order");
        }
        if attempt > 1 && self.last_was_redelivery {
            assert_eq!(first_fresh, None, "two redeliveries in a row while a new message waits");
        }
        self.last_was_redelivery = attempt > 1;
        self.delivered += 1;
        self.leases += 1;
        let (lease, until) = (self.leases, now + self.options.deadline);
        *self.entry(sequence) =
            Entry { state: State::Leased { lease, until }, attempts: attempt, moved: true };
        lease
    }

    fn runs(&self, held: Held) -> bool {
        matches!(self.entries[&held.sequence].state, State::Leased { lease, .. } if lease == held.lease)
    }

    fn may_ack(&self, held: Held) -> bool {
        let free = matches!(self.entries[&held.sequence].state, State::Ready | State::Delayed(_));
        self.runs(held) || (free && !self.options.exactly_once)
    }

    fn ack(&mut self, held: Held) -> bool {
        let may = self.may_ack(held);
        if may {
            self.entry(held.sequence).state = State::Settled;
            self.acked += 1;
        }
        may
    }

    fn nack(&mut self, held: Held, now: Time, delay: Time) -> bool {
        let runs = self.runs(held);
        if runs {
            self.nacked += 1;
            self.fail(held.sequence, now, delay);
        }
        runs
    }

    fn release(&mut self, held: Held) -> bool {
        let runs = self.runs(held);
        if runs {
            self.released += 1;
            let entry = self.entry(held.sequence);
            entry.attempts -= 1;
            entry.state = State::Ready;
        }
        runs
    }
}

/// What the model knows of a delivery.
#[derive(Clone, Copy)]
struct Held {
    sequence: u64,
    lease: u64,
}

/// What is held on one subscription: single deliveries, and whole batches.
struct Desk {
    sub: Subscription<u64>,
    book: Book,
    singles: Vec<(Delivery<u64>, Held)>,
    batches: Vec<(Batch<u64>, Vec<Held>)>,
}

struct History {
    numbers: Numbers,
    clock: ManualClock,
    now: Time,
    topic: Topic<u64>,
    published: u64,
    /// Whether some messages are published with a delay.
    delays: bool,
    desks: Vec<Desk>,
}

fn answer(ok: bool) -> Result<(), SettleError> {
    if ok { Ok(()) } else { Err(SettleError::LeaseExpired { count: 1 }) }
}

fn nanos(time: Time) -> Duration {
    Duration::from_nanos(time)
}

const DEADLINE: Time = 10_000_000;

impl History {
    fn new(seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let (broker, clock) = manual();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let desks = (0..2)
            .map(|n| {
                let options = Options {
                    exactly_once: numbers.below(2) == 0,
                    deadline: DEADLINE,
                    retry: [0, 0, 3_000_000][numbers.below(3) as usize],
                    attempts_max: [None, Some(1), Some(2), Some(4)][numbers.below(4) as usize],
                    outstanding_max: [1, 3, 70, 1_000][numbers.below(4) as usize],
                    filtered: numbers.below(4) == 0,
                };
                Desk {
                    sub: subscribe(&topic, n, options),
                    book: Book::new(options),
                    singles: vec![],
                    batches: vec![],
                }
            })
            .collect();
        let delays = numbers.below(2) == 0;
        History { numbers, clock, now: 0, topic, published: 0, delays, desks }
    }

    fn step(&mut self) {
        let desk = self.numbers.below(2) as usize;
        match self.numbers.below(20) {
            0..3 => self.publish(),
            3..9 => self.receive(desk),
            9..11 => self.receive_batch(desk),
            11..16 => self.settle(desk),
            16 => self.settle_batch(desk),
            17..19 => self.advance(),
            _ => self.pause(desk),
        }
        self.compare();
    }

    fn publish(&mut self) {
        let count = 1 + self.numbers.below(5);
        let delay =
            if self.delays && self.numbers.below(6) == 0 { self.numbers.below(5) * 1_000_000 } else { 0 };
        let messages: Vec<Message<u64>> = (0..count)
            .map(|n| {
                let message = Message::new(self.published + n + 1);
                if delay > 0 { message.deliver_after(nanos(delay)) } else { message }
            })
            .collect();
        let receipts = self.topic.publish_all(messages).unwrap();
        for receipt in receipts {
            self.published += 1;
            assert_eq!(receipt.id.sequence(), self.published);
            for desk in &mut self.desks {
                let state = if delay > 0 { State::Delayed(self.now + delay) } else { State::Ready };
                let entry = Entry { state, attempts: 0, moved: delay > 0 };
                desk.book.entries.insert(self.published, entry);
            }
        }
    }

    fn receive(&mut self, desk: usize) {
        let desk = &mut self.desks[desk];
        match desk.sub.try_recv() {
            Ok(delivery) => {
                assert_eq!(*delivery, delivery.id().sequence());
                let lease = desk.book.hand_out(*delivery, delivery.attempt(), self.now);
                let held = Held { sequence: *delivery, lease };
                desk.singles.push((delivery, held));
            }
            Err(error) => {
                assert_eq!(error, TryRecvError::Empty);
                assert_eq!(desk.book.available(), 0, "nothing given, and something may be");
            }
        }
    }

    fn receive_batch(&mut self, desk: usize) {
        let max = 1 + self.numbers.below(12) as usize;
        let split = self.numbers.below(2) == 0;
        let desk = &mut self.desks[desk];
        let available = desk.book.available();
        let some_last = desk.book.entries.values().any(|e| e.state == State::Ready && desk.book.is_last(e));
        let batch = match desk.sub.try_recv_batch(max) {
            Ok(batch) => batch,
            Err(error) => {
                assert_eq!((error, available), (TryRecvError::Empty, 0));
                return;
            }
        };
        if !some_last {
            assert_eq!(batch.len(), max.min(available), "all that may be given, up to the maximum");
        }
        let sequences: Vec<u64> = batch.iter().map(|event| *event).collect();
        let mut held = Vec::new();
        for sequence in &sequences {
            let entry = desk.book.entries[sequence];
            assert!(!desk.book.is_last(&entry) || sequences.len() == 1, "a last attempt in company");
            let lease = desk.book.hand_out(*sequence, entry.attempts + 1, self.now);
            held.push(Held { sequence: *sequence, lease });
        }
        if split {
            for (delivery, held) in batch.into_iter().zip(held) {
                assert_eq!(delivery.attempt(), desk.book.entries[&held.sequence].attempts);
                desk.singles.push((delivery, held));
            }
        } else {
            desk.batches.push((batch, held));
        }
    }

    fn settle(&mut self, desk: usize) {
        let (desk, now) = (&mut self.desks[desk], self.now);
        if desk.singles.is_empty() {
            return;
        }
        let chosen = self.numbers.below(desk.singles.len() as u64) as usize;
        let (delivery, held) = desk.singles.swap_remove(chosen);
        let book = &mut desk.book;
        let retry = book.options.retry;
        match self.numbers.below(12) {
            0..4 => assert_eq!(delivery.ack(), answer(book.ack(held)), "ack"),
            4 => assert_eq!(delivery.nack(), answer(book.nack(held, now, retry)), "nack"),
            5 => {
                let delay = self.numbers.below(4) * 1_000_000;
                assert_eq!(
                    delivery.nack_after(nanos(delay)),
                    answer(book.nack(held, now, delay)),
                    "nack_after"
                );
            }
            6 => assert_eq!(delivery.release(), answer(book.release(held)), "release"),
            7 => {
                let runs = book.runs(held);
                if runs {
                    book.entry(held.sequence).state = State::Settled;
                    book.discarded += 1;
                }
                assert_eq!(delivery.reject("by chance"), answer(runs), "reject");
            }
            8 => {
                drop(delivery);
                book.nack(held, now, retry);
            }
            9 => std::mem::forget(delivery),
            10 => {
                let runs = book.nack(held, now, retry);
                assert_eq!(delivery.extend(Duration::ZERO), answer(runs), "extend of zero");
                desk.singles.push((delivery, held));
            }
            _ => {
                let until = now + (1 + self.numbers.below(30)) * 1_000_000;
                let runs = book.runs(held);
                if runs {
                    book.entry(held.sequence).state = State::Leased { lease: held.lease, until };
                }
                assert_eq!(delivery.extend(nanos(until - now)), answer(runs), "extend");
                desk.singles.push((delivery, held));
            }
        }
    }

    fn settle_batch(&mut self, desk: usize) {
        let (desk, now) = (&mut self.desks[desk], self.now);
        let Some((mut batch, mut held)) = desk.batches.pop() else { return };
        let book = &mut desk.book;
        let retry = book.options.retry;
        if self.numbers.below(2) == 0 {
            let first = held.remove(0);
            desk.singles.push((batch.pop().expect("what is left"), first));
        }
        let way = self.numbers.below(4);
        let mut failed = 0;
        for held in held {
            let done = match way {
                0 => book.ack(held),
                1 => book.release(held),
                _ => book.nack(held, now, retry),
            };
            failed += u64::from(!done);
        }
        let expected = if failed == 0 { Ok(()) } else { Err(SettleError::LeaseExpired { count: failed }) };
        match way {
            0 => assert_eq!(batch.ack(), expected, "batch ack"),
            1 => assert_eq!(batch.release(), expected, "batch release"),
            2 => assert_eq!(batch.nack(), expected, "batch nack"),
            _ => drop(batch),
        }
    }

    fn advance(&mut self) {
        let step = match self.numbers.below(6) {
            0 => 1,
            1 => 1_000_000 * self.numbers.below(5),
            2 => DEADLINE,
            3 => DEADLINE - 1,
            4 => 100_000_000,
            _ => self.next_due().map_or(0, |due| (due - self.now).saturating_sub(self.numbers.below(2))),
        };
        self.pass(step);
    }

    /// When the next lease or delay ends, on either subscription.
    fn next_due(&self) -> Option<Time> {
        let entries = self.desks.iter().flat_map(|desk| desk.book.entries.values());
        entries
            .filter_map(|entry| match entry.state {
                State::Delayed(until) | State::Leased { until, .. } => Some(until),
                _ => None,
            })
            .min()
    }

    fn pass(&mut self, step: Time) {
        self.clock.advance(nanos(step));
        self.now += step;
        for desk in &mut self.desks {
            desk.book.pass(self.now);
        }
    }

    fn pause(&mut self, desk: usize) {
        let desk = &mut self.desks[desk];
        if desk.book.paused {
            desk.sub.resume().unwrap()
        } else {
            desk.sub.pause().unwrap()
        }
        desk.book.paused = !desk.book.paused;
    }

    fn compare(&self) {
        for desk in &self.desks {
            let (book, stats) = (&desk.book, desk.sub.stats());
            let backlog = book.count(|entry| entry.state != State::Settled) as u64;
            let delayed = book.count(|entry| matches!(entry.state, State::Delayed(_))) as u64;
            assert_eq!(
                (stats.backlog, stats.outstanding, stats.delayed, stats.delivered),
                (backlog, book.outstanding() as u64, delayed, book.delivered),
                "backlog, outstanding, delayed, delivered"
            );
            assert_eq!(
                (stats.acked, stats.nacked, stats.released, stats.leases_expired, stats.discarded),
                (book.acked, book.nacked, book.released, book.expired, book.discarded),
                "acked, nacked, released, expired, discarded"
            );
        }
    }

    /// Nothing is stuck: with time, all that is left is received and acked.
    fn finish(&mut self) {
        for desk in 0..2 {
            if self.desks[desk].book.paused {
                self.pause(desk);
            }
        }
        self.pass(1_000 * DEADLINE);
        for desk in 0..2 {
            while self.desks[desk].book.available() > 0 {
                self.receive(desk);
                let (delivery, held) = self.desks[desk].singles.pop().unwrap();
                assert_eq!(delivery.ack(), answer(self.desks[desk].book.ack(held)));
            }
        }
        self.compare();
        assert!(self.desks.iter().all(|desk| desk.sub.stats().backlog == 0));
    }
}

fn subscribe(topic: &Topic<u64>, n: usize, options: Options) -> Subscription<u64> {
    let mode = if options.exactly_once { DeliveryMode::ExactlyOnce } else { DeliveryMode::AtLeastOnce };
    let builder = topic
        .subscription(&format!("s{n}"))
        .delivery(mode)
        .ack_deadline(nanos(options.deadline))
        .retry(RetryPolicy::fixed(nanos(options.retry)))
        .max_outstanding(options.outstanding_max);
    let builder = if options.filtered { builder.filter_fn(|_| true) } else { builder };
    match options.attempts_max {
        Some(attempts) => builder.dead_letter(DeadLetter::discard().after(attempts)),
        None => builder,
    }
    .create()
    .unwrap()
}

/// Runs histories from `seeds`; a failure names its seed.
fn histories(seeds: std::ops::Range<u64>, steps: usize) {
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut history = History::new(seed);
            (0..steps).for_each(|_| history.step());
            history.finish();
        });
        if let Err(panic) = run {
            eprintln!("the history of seed {seed} differs from the model");
            std::panic::resume_unwind(panic);
        }
    }
}

/// More of them, for a long run, by `EVENTFLOW_HISTORIES=20` times as many.
fn seeds(seeds: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let times = std::env::var("EVENTFLOW_HISTORIES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let count = seeds.end - seeds.start;
    seeds.start * times..(seeds.start + count) * times
}

#[test]
fn p09_short_random_histories_agree_with_the_naive_model() {
    histories(seeds(0..1_500), 60);
}

#[test]
fn p09_long_random_histories_agree_with_the_naive_model() {
    histories(seeds(10_000..10_060), 1_200);
}
