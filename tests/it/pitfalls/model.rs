//! The whole broker against a naive model that shares no code with it: what is handed out, with which attempt, and what every settling
//! call answers, for two subscriptions with options of any mixture.

use std::collections::BTreeMap;
use std::time::Duration;

use eventflow::{
    DeadLetter, Delivery, DeliveryMode, ManualClock, Message, Retention, RetryPolicy, Seek, SettleError,
    Subscription, Topic, TryRecvError,
};
use proptest::prelude::*;

use crate::support::{Broker, manual};

/// Milliseconds, of the clock and of all options.
const DEADLINE: u64 = 10_000;
const SETTLE_DELAY: u64 = 2_000;

#[derive(Clone, Debug)]
struct Options {
    ordered: bool,
    exactly_once: bool,
    filtered: bool,
    retry: u64,
    attempts: Option<u32>,
    max_outstanding: usize,
}

#[derive(Clone, Debug)]
enum Op {
    Publish { key: u8, delay: u64, wanted: bool },
    Receive { book: usize, max: usize },
    Settle { held: usize, how: How },
    Advance(u64),
    Seek { book: usize, place: u64 },
    Snapshot(usize),
    SeekSnapshot(usize),
    Pause(usize, bool),
}

#[derive(Clone, Copy, Debug)]
enum How {
    Ack,
    Nack,
    NackAfter,
    Release,
    Reject,
    Drop,
    Extend,
    ExtendZero,
}

/// What has no entry in a book is settled there.
#[derive(Clone, Debug)]
struct Entry {
    standing: Standing,
    /// Hand-outs that were not released.
    spent: u32,
    handed: bool,
    /// A run expired as a whole: whether this member's own end or that of the one before it came first is not promised.
    unsure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    Waiting { from: u64 },
    Leased { lease: u64, deadline: u64 },
}

struct Book {
    options: Options,
    entries: BTreeMap<u64, Entry>,
    generation: u64,
    paused: bool,
    dead: u64,
    discarded: u64,
}

struct Published {
    key: u8,
    due: u64,
    wanted: bool,
}

struct Held {
    book: usize,
    sequence: u64,
    lease: u64,
    generation: u64,
    /// It gave its lease back itself: whether it may still ack late is not promised.
    gave_back: bool,
    delivery: Delivery<u64>,
}

struct Rig {
    broker: Broker,
    clock: ManualClock,
    topic: Topic<u64>,
    dead: Topic<u64>,
    subs: Vec<Subscription<u64>>,
    books: Vec<Book>,
    published: Vec<Published>,
    held: Vec<Held>,
    /// What a snapshot had unsettled, and the tail it was taken at.
    snapshot: Option<(Vec<u64>, u64)>,
    keeps: bool,
    now: u64,
    leases: u64,
}

impl Book {
    fn outstanding(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry.standing, Standing::Leased { .. })).count()
    }

    fn behind_its_key(&self, published: &[Published], sequence: u64) -> bool {
        let key = published[sequence as usize - 1].key;
        self.options.ordered
            && key > 0
            && self.entries.keys().any(|&other| other < sequence && published[other as usize - 1].key == key)
    }

    fn available(&self, published: &[Published], sequence: u64, now: u64) -> bool {
        let due = |entry: &Entry| matches!(entry.standing, Standing::Waiting { from } if from <= now);
        self.entries.get(&sequence).is_some_and(due) && !self.behind_its_key(published, sequence)
    }

    /// The lease of one member of a run has ended: those after it are released with it.
    fn release_run_after(&mut self, published: &[Published], sequence: u64, now: u64) {
        let key = published[sequence as usize - 1].key;
        if !self.options.ordered || key == 0 {
            return;
        }
        for (&other, entry) in self.entries.range_mut(sequence + 1..) {
            if let Standing::Leased { deadline, .. } = entry.standing
                && published[other as usize - 1].key == key
            {
                entry.standing = Standing::Waiting { from: 0 };
                entry.unsure = deadline <= now;
                entry.spent -= 1;
            }
        }
    }

    fn fail(&mut self, published: &[Published], sequence: u64, at: u64, delay: Option<u64>) {
        let entry = self.entries.get_mut(&sequence).unwrap();
        if self.options.attempts.is_some_and(|attempts| entry.spent >= attempts) {
            self.entries.remove(&sequence);
            self.dead += 1;
        } else {
            entry.standing = Standing::Waiting { from: at + delay.unwrap_or(self.options.retry) };
        }
        self.release_run_after(published, sequence, at);
    }

    fn holds(&self, sequence: u64, lease: u64) -> bool {
        let is_mine =
            |entry: &Entry| matches!(entry.standing, Standing::Leased { lease: own, .. } if own == lease);
        self.entries.get(&sequence).is_some_and(is_mine)
    }
}

impl Rig {
    fn new(options: [Options; 2], keeps: bool) -> Rig {
        let (broker, clock) = manual();
        let retention = if keeps { Retention::forever() } else { Retention::until_acked() };
        let dead = broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
        let topic = broker.topic::<u64>("topic").retention(retention).create().unwrap();
        let subscribe = |(number, options): (usize, &Options)| {
            let mut builder =
                topic.subscription(&format!("s{number}")).max_outstanding(options.max_outstanding);
            builder = if options.ordered { builder.ordered() } else { builder };
            builder = if options.filtered { builder.filter("attributes:wanted") } else { builder };
            if options.exactly_once {
                builder = builder.delivery(DeliveryMode::ExactlyOnce);
            }
            if options.retry > 0 {
                builder = builder.retry(RetryPolicy::fixed(Duration::from_millis(options.retry)));
            }
            if let Some(attempts) = options.attempts {
                builder = builder.dead_letter(DeadLetter::to(&dead).after(attempts));
            }
            builder.create().unwrap()
        };
        let subs: Vec<_> = options.iter().enumerate().map(subscribe).collect();
        let book = |options| Book {
            options,
            entries: BTreeMap::new(),
            generation: 0,
            paused: false,
            dead: 0,
            discarded: 0,
        };
        let books = options.map(book).into();
        let (published, held) = (Vec::new(), Vec::new());
        Rig {
            broker,
            clock,
            topic,
            dead,
            subs,
            books,
            published,
            held,
            snapshot: None,
            keeps,
            now: 0,
            leases: 0,
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Publish { key, delay, wanted } => self.publish(key, delay, wanted),
            Op::Receive { book, max } => self.receive(book, max),
            Op::Settle { held, how } if !self.held.is_empty() => self.settle(held % self.held.len(), how),
            Op::Settle { .. } => {}
            Op::Advance(by) => self.advance(by),
            Op::Seek { book, place } => self.seek(book, place),
            Op::Snapshot(book) => self.take_snapshot(book),
            Op::SeekSnapshot(book) => self.seek_snapshot(book),
            Op::Pause(book, true) => {
                self.subs[book].pause().unwrap();
                self.books[book].paused = true;
            }
            Op::Pause(book, false) => {
                self.subs[book].resume().unwrap();
                self.books[book].paused = false;
            }
        }
        self.compare();
    }

    fn publish(&mut self, key: u8, delay: u64, wanted: bool) {
        let sequence = self.published.len() as u64 + 1;
        let mut message = Message::new(sequence);
        message = if key > 0 { message.ordering_key(key.to_string()) } else { message };
        message = if wanted { message.attribute("wanted", "") } else { message };
        message = if delay > 0 { message.deliver_after(Duration::from_millis(delay)) } else { message };
        assert_eq!(self.topic.publish(message).unwrap().id.sequence(), sequence);
        self.published.push(Published { key, due: self.now + delay, wanted });
        for book in 0..self.books.len() {
            self.unsettle(book, sequence);
        }
    }

    fn unsettle(&mut self, book: usize, sequence: u64) {
        let message = &self.published[sequence as usize - 1];
        let book = &mut self.books[book];
        if message.wanted || !book.options.filtered {
            let standing = Standing::Waiting { from: message.due };
            book.entries.insert(sequence, Entry { standing, spent: 0, handed: false, unsure: false });
        }
    }

    fn receive(&mut self, number: usize, max: usize) {
        let (book, now) = (&self.books[number], self.now);
        let is_available = |sequence: &u64| book.available(&self.published, *sequence, now);
        let room = book.options.max_outstanding.saturating_sub(book.outstanding());
        let something = !book.paused && room > 0 && book.entries.keys().any(is_available);
        let batch = match self.subs[number].try_recv_batch(max) {
            Ok(batch) => batch,
            Err(TryRecvError::Empty) => {
                assert!(!something, "book {number} has something, and hands out nothing");
                return;
            }
            Err(error) => panic!("{error:?}"),
        };
        assert!(something, "book {number} has nothing to hand out");
        assert!((1..=max.min(room)).contains(&batch.len()), "{} of {max} with room for {room}", batch.len());
        let alone = batch.len() == 1;
        for delivery in batch {
            self.hand_out(number, delivery, alone);
        }
    }

    fn hand_out(&mut self, number: usize, delivery: Delivery<u64>, alone: bool) {
        let sequence = *delivery;
        assert_eq!(delivery.id().sequence(), sequence);
        let (published, now) = (&self.published, self.now);
        let book = &mut self.books[number];
        let entry = book.entries.get(&sequence).expect("a settled message is not handed out");
        assert!(
            matches!(entry.standing, Standing::Waiting { from } if from <= now),
            "{sequence} is {entry:?}"
        );
        let first_time = !entry.handed && published[sequence as usize - 1].due == 0;
        for (&other, before) in book.entries.range(..sequence) {
            let same_key = published[other as usize - 1].key == published[sequence as usize - 1].key;
            if book.options.ordered && same_key && published[sequence as usize - 1].key > 0 {
                // Only those that went out just before it, in the same batch.
                let in_run = matches!(before.standing, Standing::Leased { lease, .. }
                    if self.held.iter().any(|held| held.lease == lease && held.book == number));
                assert!(in_run && !alone, "{sequence} overtook {other} of its key");
            }
            let passed_over = first_time && !before.handed && published[other as usize - 1].due == 0;
            assert!(
                !(passed_over && book.available(published, other, now)),
                "{sequence} came before {other}"
            );
        }
        self.leases += 1;
        let entry = book.entries.get_mut(&sequence).unwrap();
        let attempts = entry.spent + 1..=entry.spent + 1 + u32::from(entry.unsure);
        assert!(
            attempts.contains(&delivery.attempt()),
            "{sequence} has attempt {}, not {attempts:?}",
            delivery.attempt()
        );
        if book.options.attempts == Some(delivery.attempt()) {
            assert!(alone, "{sequence} is on its last attempt");
        }
        entry.spent = delivery.attempt();
        entry.standing = Standing::Leased { lease: self.leases, deadline: now + DEADLINE };
        (entry.handed, entry.unsure) = (true, false);
        let (lease, generation) = (self.leases, book.generation);
        self.held.push(Held { book: number, sequence, lease, generation, gave_back: false, delivery });
    }

    fn settle(&mut self, index: usize, how: How) {
        if matches!(how, How::Extend | How::ExtendZero) {
            return self.extend(index, matches!(how, How::ExtendZero));
        }
        let how = if self.leads_a_run(index) && matches!(how, How::Reject) { How::Nack } else { how };
        let Held { book: number, sequence, lease, generation, gave_back, delivery } =
            self.held.swap_remove(index);
        let delay = Duration::from_millis(SETTLE_DELAY);
        let (outcome, real) = match how {
            How::Ack => (self.ack(number, sequence, lease, generation), delivery.ack()),
            How::Drop => {
                let outcome = self.give_back(number, sequence, lease, how);
                drop(delivery);
                (
                    outcome,
                    if outcome == Answer::Ok { Ok(()) } else { Err(SettleError::LeaseExpired { count: 1 }) },
                )
            }
            How::Nack => (self.give_back(number, sequence, lease, how), delivery.nack()),
            How::NackAfter => (self.give_back(number, sequence, lease, how), delivery.nack_after(delay)),
            How::Release => (self.give_back(number, sequence, lease, how), delivery.release()),
            _ => (self.give_back(number, sequence, lease, how), delivery.reject("no")),
        };
        let expired = Err(SettleError::LeaseExpired { count: 1 });
        match outcome {
            Answer::Ok => assert_eq!(real, Ok(()), "{how:?} of {sequence}"),
            Answer::Expired => assert_eq!(real, expired, "{how:?} of {sequence}"),
            Answer::Late if real == Ok(()) => _ = self.books[number].entries.remove(&sequence),
            Answer::Late => assert!(gave_back, "a late ack of {sequence} was refused"),
        }
    }

    /// Whether the lease of a later message of its key runs: what a `reject` does to that is asked elsewhere.
    fn leads_a_run(&self, index: usize) -> bool {
        let Held { book, sequence, .. } = self.held[index];
        let key = self.published[sequence as usize - 1].key;
        self.books[book].entries.range(sequence + 1..).any(|(&other, entry)| {
            let is_leased = matches!(entry.standing, Standing::Leased { .. });
            key > 0 && is_leased && self.published[other as usize - 1].key == key
        })
    }

    fn ack(&mut self, number: usize, sequence: u64, lease: u64, generation: u64) -> Answer {
        let (published, now) = (&self.published, self.now);
        let book = &mut self.books[number];
        let behind = book.behind_its_key(published, sequence);
        if book.holds(sequence, lease) {
            if behind {
                let entry = book.entries.get_mut(&sequence).unwrap();
                entry.standing = Standing::Waiting { from: 0 };
                entry.spent -= 1;
                book.release_run_after(published, sequence, now);
                return Answer::Expired;
            }
            book.entries.remove(&sequence);
            return Answer::Ok;
        }
        let unleased = |entry: &Entry| matches!(entry.standing, Standing::Waiting { .. });
        let takes_late = !book.options.exactly_once
            && generation == book.generation
            && book.entries.get(&sequence).is_some_and(unleased)
            && !behind;
        if takes_late { Answer::Late } else { Answer::Expired }
    }

    fn give_back(&mut self, number: usize, sequence: u64, lease: u64, how: How) -> Answer {
        let (published, now) = (&self.published, self.now);
        let book = &mut self.books[number];
        if !book.holds(sequence, lease) {
            return Answer::Expired;
        }
        match how {
            How::Release => {
                let entry = book.entries.get_mut(&sequence).unwrap();
                entry.standing = Standing::Waiting { from: 0 };
                entry.spent -= 1;
                book.release_run_after(published, sequence, now);
            }
            // Settled in publish order: it is as with an ack.
            How::Reject if book.behind_its_key(published, sequence) => {
                let entry = book.entries.get_mut(&sequence).unwrap();
                entry.standing = Standing::Waiting { from: 0 };
                entry.spent -= 1;
                book.release_run_after(published, sequence, now);
                return Answer::Expired;
            }
            How::Reject => {
                book.entries.remove(&sequence);
                if book.options.attempts.is_some() { book.dead += 1 } else { book.discarded += 1 }
            }
            How::NackAfter => book.fail(published, sequence, now, Some(SETTLE_DELAY)),
            _ => book.fail(published, sequence, now, None),
        }
        Answer::Ok
    }

    fn extend(&mut self, index: usize, zero: bool) {
        let held = &mut self.held[index];
        let by = if zero { 0 } else { SETTLE_DELAY };
        let real = held.delivery.extend(Duration::from_millis(by));
        let (number, sequence, lease) = (held.book, held.sequence, held.lease);
        let book = &mut self.books[number];
        if !book.holds(sequence, lease) {
            assert_eq!(real, Err(SettleError::LeaseExpired { count: 1 }), "extend of {sequence}");
            return;
        }
        assert_eq!(real, Ok(()), "extend of {sequence}");
        if zero {
            held.gave_back = true;
            book.fail(&self.published, sequence, self.now, None);
        } else {
            let standing = Standing::Leased { lease, deadline: self.now + by };
            book.entries.get_mut(&sequence).unwrap().standing = standing;
        }
    }

    fn advance(&mut self, by: u64) {
        self.clock.advance(Duration::from_millis(by));
        self.now += by;
        for book in &mut self.books {
            while let Some((deadline, sequence)) =
                next_expiry(book).filter(|(deadline, _)| *deadline <= self.now)
            {
                book.fail(&self.published, sequence, deadline, None);
            }
        }
    }

    /// Place 0 is the end; what is not kept for ever is not sought back, as what is still there is not promised.
    fn seek(&mut self, number: usize, place: u64) {
        let tail = self.published.len() as u64;
        if place == 0 || !self.keeps {
            self.subs[number].seek(Seek::Latest).unwrap();
            return self.begin_anew(number, []);
        }
        let first = place.min(tail + 1);
        self.subs[number].seek(Seek::Sequence(first)).unwrap();
        self.begin_anew(number, first..=tail);
    }

    fn take_snapshot(&mut self, number: usize) {
        if self.snapshot.is_some() {
            self.broker.delete_snapshot("x").unwrap();
        }
        self.subs[number].snapshot("x").unwrap();
        let unsettled = self.books[number].entries.keys().copied().collect();
        self.snapshot = Some((unsettled, self.published.len() as u64));
    }

    fn seek_snapshot(&mut self, number: usize) {
        // What a filter has not looked at counts as unsettled: only a book without a filter can be asked for another's snapshot.
        if self.books.iter().any(|book| book.options.filtered) {
            return;
        }
        let Some((unsettled, tail)) = self.snapshot.clone() else { return };
        self.subs[number].seek(Seek::Snapshot("x".into())).unwrap();
        let since = tail + 1..=self.published.len() as u64;
        self.begin_anew(number, unsettled.into_iter().chain(since));
    }

    fn begin_anew(&mut self, number: usize, unsettled: impl IntoIterator<Item = u64>) {
        self.books[number].generation += 1;
        self.books[number].entries.clear();
        for sequence in unsettled {
            self.unsettle(number, sequence);
        }
    }

    fn compare(&self) {
        for (number, (sub, book)) in self.subs.iter().zip(&self.books).enumerate() {
            let stats = sub.stats();
            assert_eq!(stats.outstanding, book.outstanding() as u64, "outstanding of book {number}");
            let unsettled = book.entries.len() as u64;
            if book.options.filtered {
                assert!(stats.backlog >= unsettled, "{} < {unsettled} of book {number}", stats.backlog);
            } else {
                assert_eq!(stats.backlog, unsettled, "backlog of book {number}");
            }
            assert_eq!((stats.dead_lettered, stats.discarded), (book.dead, book.discarded), "book {number}");
        }
        assert_eq!(self.dead.stats().published, self.books.iter().map(|book| book.dead).sum::<u64>());
    }

    /// All that is left can be received and settled, and then nothing is left.
    fn finish(&mut self) {
        self.held.clear();
        for book in &mut self.books {
            // The drops were nacks of what was still leased; what came of them is asked of the broker from here on.
            book.entries.clear();
        }
        for sub in &self.subs {
            sub.resume().unwrap();
        }
        self.clock.advance(Duration::from_secs(3_600));
        for sub in &self.subs {
            while let Ok(delivery) = sub.try_recv() {
                delivery.ack().unwrap();
            }
            let stats = sub.stats();
            assert_eq!((stats.backlog, stats.outstanding, stats.delayed), (0, 0, 0));
        }
        if self.snapshot.take().is_some() {
            self.broker.delete_snapshot("x").unwrap();
        }
        let kept = if self.keeps { self.published.len() as u64 } else { 0 };
        assert_eq!(self.topic.stats().resident_messages, kept);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Ok,
    Expired,
    /// A late ack that should be taken.
    Late,
}

fn next_expiry(book: &Book) -> Option<(u64, u64)> {
    let deadline = |(&sequence, entry): (&u64, &Entry)| match entry.standing {
        Standing::Leased { deadline, .. } => Some((deadline, sequence)),
        Standing::Waiting { .. } => None,
    };
    book.entries.iter().filter_map(deadline).min()
}

fn options() -> impl Strategy<Value = Options> {
    let attempts = prop_oneof![Just(None), (1..4u32).prop_map(Some)];
    let max_outstanding = prop_oneof![Just(1usize), Just(3), Just(1_000)];
    let retry = prop_oneof![Just(0u64), Just(1_500)];
    (any::<bool>(), any::<bool>(), prop::bool::weighted(0.25), retry, attempts, max_outstanding).prop_map(
        |(ordered, exactly_once, filtered, retry, attempts, max_outstanding)| Options {
            ordered,
            exactly_once,
            filtered,
            retry,
            attempts,
            max_outstanding,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        4 => Just(How::Ack), 2 => Just(How::Nack), 1 => Just(How::NackAfter), 2 => Just(How::Release),
        1 => Just(How::Reject), 1 => Just(How::Drop), 2 => Just(How::Extend), 1 => Just(How::ExtendZero),
    ];
    let delay = prop_oneof![5 => Just(0u64), 1 => 1..6_000u64];
    prop_oneof![
        8 => (0..4u8, delay, prop::bool::weighted(0.7))
            .prop_map(|(key, delay, wanted)| Op::Publish { key, delay, wanted }),
        10 => (0..2usize, 1..6usize).prop_map(|(book, max)| Op::Receive { book, max }),
        12 => (any::<usize>(), how).prop_map(|(held, how)| Op::Settle { held, how }),
        4 => prop_oneof![Just(1u64), Just(1_500), Just(2_000), Just(DEADLINE - 1), Just(DEADLINE)].prop_map(Op::Advance),
        1 => (0..2usize, 0..40u64).prop_map(|(book, place)| Op::Seek { book, place }),
        1 => (0..2usize).prop_map(Op::Snapshot),
        1 => (0..2usize).prop_map(Op::SeekSnapshot),
        1 => (0..2usize, any::<bool>()).prop_map(|(book, pause)| Op::Pause(book, pause)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_broker_does_what_a_naive_model_does(
        options in [options(), options()],
        keeps: bool,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut rig = Rig::new(options, keeps);
        ops.iter().for_each(|op| rig.run(op));
        rig.finish();
    }
}
