//! Random transactions over three topics, step by step beside a model that knows only the promises; and from several threads at once, in `threads`.

mod naive;
mod threads;

use std::collections::HashMap;
use std::time::Duration;

use eventflow::{
    Batch, Capacity, CommitReason, DedupWindow, Delivery, DeliveryMode, ManualClock, Message, MessageId,
    PublishError, Retention, Seek, SettleError, Start, Subscription, Topic, Transaction, TryRecvError,
};
use proptest::prelude::*;

use crate::support::{Broker, manual};
use naive::{Counts, DEADLINE, DEDUP_WINDOW, Held, Letter, Naive, Plan, Receipt, SubPlan, Time, TopicPlan};

const TOPICS: usize = 3;
/// Two subscriptions a topic.
const SEATS: usize = 6;
const OPEN: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Way {
    Ack,
    Nack,
    Release,
    Drop,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Earliest,
    Latest,
    Sequence(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Receive {
        seat: usize,
        max: usize,
        whole: bool,
    },
    Publish {
        topic: usize,
        posts: Vec<Post>,
    },
    Settle {
        which: usize,
        way: Way,
    },
    SettleBatch {
        which: usize,
        way: Way,
    },
    TxAck {
        tx: usize,
        which: usize,
    },
    TxAckAll {
        tx: usize,
        which: usize,
    },
    TxPublish {
        tx: usize,
        topic: usize,
        post: Post,
    },
    /// Receives, and puts all of it and some publishes into a transaction.
    Work {
        tx: usize,
        takes: Vec<(usize, usize)>,
        posts: Vec<(usize, Post)>,
    },
    /// `again`: what fails stays open; what finds no space does anyway.
    Commit {
        tx: usize,
        waits: bool,
        again: bool,
    },
    RollBack {
        tx: usize,
        by_drop: bool,
    },
    Seek {
        seat: usize,
        place: Place,
    },
    Unsubscribe {
        seat: usize,
    },
    Subscribe {
        seat: usize,
        plan: SubPlan,
    },
    Replace {
        topic: usize,
        plan: TopicPlan,
        subs: [Option<SubPlan>; 2],
    },
    Advance {
        by: Time,
    },
}

/// A key, an idempotency id and which of two texts goes under it.
#[derive(Clone, Copy, Debug)]
struct Post {
    key: Option<u8>,
    id: Option<(u8, bool)>,
}

fn topic_plans() -> impl Strategy<Value = TopicPlan> {
    let capacity = prop_oneof![2 => Just(None), 3 => (1..8_u64).prop_map(Some)];
    (capacity, any::<bool>()).prop_map(|(capacity, forever)| TopicPlan { capacity, forever })
}

fn sub_plans() -> impl Strategy<Value = SubPlan> {
    let mode = prop_oneof![
        4 => Just(DeliveryMode::AtLeastOnce),
        4 => Just(DeliveryMode::ExactlyOnce),
        1 => Just(DeliveryMode::AtMostOnce),
    ];
    let outstanding_max = prop_oneof![1 => 1..4_usize, 4 => Just(1_000)];
    (mode, any::<bool>(), any::<bool>(), outstanding_max).prop_map(
        |(mode, ordered, earliest, outstanding_max)| SubPlan { mode, ordered, earliest, outstanding_max },
    )
}

fn pairs() -> impl Strategy<Value = [Option<SubPlan>; 2]> {
    (sub_plans(), prop::option::of(sub_plans())).prop_map(|(first, second)| [Some(first), second])
}

fn posts() -> impl Strategy<Value = Post> {
    let key = prop_oneof![1 => Just(None), 2 => (0..2_u8).prop_map(Some)];
    let other = prop::bool::weighted(0.1);
    let id = prop_oneof![3 => Just(None), 2 => (0..4_u8, other).prop_map(Some)];
    (key, id).prop_map(|(key, id)| match id {
        // A true repeat has the same key.
        Some((number, false)) => Post { key: Some(number % 2), id },
        _ => Post { key, id },
    })
}

fn ways() -> impl Strategy<Value = Way> {
    prop_oneof![4 => Just(Way::Ack), 1 => Just(Way::Nack), 1 => Just(Way::Release), 1 => Just(Way::Drop)]
}

fn ops() -> impl Strategy<Value = Op> {
    let (topic, seat, tx) = (0..TOPICS, 0..SEATS, 0..OPEN);
    // Mostly the newest hand-outs; the others may be stale.
    let which = prop_oneof![3 => Just(0), 3 => 0..4_usize, 1 => 0..50_usize];
    let places = prop_oneof![
        2 => Just(Place::Earliest),
        1 => Just(Place::Latest),
        2 => (1..12_u64).prop_map(Place::Sequence),
    ];
    let times = prop_oneof![4 => 1..4_000_u64, 1 => Just(DEADLINE - 1), 1 => Just(1), 1 => Just(DEADLINE), 1 => 1..60_000_u64];
    let takes = prop::collection::vec((seat.clone(), 1..4_usize), 1..4);
    let works = prop::collection::vec((topic.clone(), posts()), 0..4);
    let sending = prop_oneof![
        12 => (topic.clone(), prop::collection::vec(posts(), 1..4)).prop_map(|(topic, posts)| Op::Publish { topic, posts }),
        7 => (tx.clone(), topic.clone(), posts())
            .prop_map(|(tx, topic, post)| Op::TxPublish { tx, topic, post }),
        10 => (tx.clone(), which.clone()).prop_map(|(tx, which)| Op::TxAck { tx, which }),
        4 => (tx.clone(), which.clone()).prop_map(|(tx, which)| Op::TxAckAll { tx, which }),
        14 => (tx.clone(), takes, works).prop_map(|(tx, takes, posts)| Op::Work { tx, takes, posts }),
        18 => (tx.clone(), any::<bool>(), prop::bool::weighted(0.4))
            .prop_map(|(tx, waits, again)| Op::Commit { tx, waits, again }),
        2 => (tx, any::<bool>()).prop_map(|(tx, by_drop)| Op::RollBack { tx, by_drop }),
    ];
    let receiving = prop_oneof![
        20 => (seat.clone(), 1..5_usize, prop::bool::weighted(0.3))
            .prop_map(|(seat, max, whole)| Op::Receive { seat, max, whole }),
        5 => (which.clone(), ways()).prop_map(|(which, way)| Op::Settle { which, way }),
        2 => (which, ways()).prop_map(|(which, way)| Op::SettleBatch { which, way }),
    ];
    let changing = prop_oneof![
        10 => times.prop_map(|by| Op::Advance { by }),
        2 => (seat.clone(), places).prop_map(|(seat, place)| Op::Seek { seat, place }),
        1 => seat.clone().prop_map(|seat| Op::Unsubscribe { seat }),
        3 => (seat, sub_plans()).prop_map(|(seat, plan)| Op::Subscribe { seat, plan }),
        1 => (topic, topic_plans(), pairs())
            .prop_map(|(topic, plan, subs)| Op::Replace { topic, plan, subs }),
    ];
    prop_oneof![5 => sending, 3 => receiving, 1 => changing]
}

/// The broker and the model, side by side; `usize`s are the model's numbers.
struct Pair {
    broker: Broker,
    clock: ManualClock,
    naive: Naive,
    topics: Vec<(Topic<String>, usize)>,
    seats: [Option<(Subscription<String>, usize)>; SEATS],
    held: Vec<(Delivery<String>, Held)>,
    batches: Vec<(Batch<String>, Vec<Held>)>,
    open: [Option<(Transaction, Plan)>; OPEN],
    /// The model's number of each topic's incarnation.
    incarnations: HashMap<u64, usize>,
    /// So that no two messages without an id are the same.
    texts: u64,
}

fn millis(time: Time) -> Duration {
    Duration::from_millis(time)
}

/// The `which`-th from the end.
fn place_of(len: usize, which: usize) -> Option<usize> {
    (len > 0).then(|| len - 1 - which % len)
}

impl Pair {
    fn new(plans: [(TopicPlan, [Option<SubPlan>; 2]); TOPICS]) -> Self {
        let (broker, clock) = manual();
        let mut pair = Pair {
            broker,
            clock,
            naive: Naive::default(),
            topics: vec![],
            seats: Default::default(),
            held: vec![],
            batches: vec![],
            open: Default::default(),
            incarnations: HashMap::new(),
            texts: 0,
        };
        for (n, (plan, subs)) in plans.into_iter().enumerate() {
            let topic = pair.create_topic(n, plan);
            pair.topics.push(topic);
            pair.fill(n, subs);
        }
        pair
    }

    fn create_topic(&mut self, n: usize, plan: TopicPlan) -> (Topic<String>, usize) {
        let retention = if plan.forever { Retention::forever() } else { Retention::until_acked() };
        let window = DedupWindow::time(millis(DEDUP_WINDOW) + Duration::from_micros(500));
        let builder = self.broker.topic(&format!("topic-{n}")).retention(retention).dedup(window);
        let builder = match plan.capacity {
            Some(capacity) => builder.capacity(Capacity::messages(capacity)),
            None => builder,
        };
        (builder.create().expect("a new topic"), self.naive.create_topic(plan))
    }

    fn fill(&mut self, topic: usize, subs: [Option<SubPlan>; 2]) {
        for (n, plan) in subs.into_iter().enumerate() {
            if let Some(plan) = plan {
                self.subscribe(topic * 2 + n, plan);
            }
        }
    }

    fn subscribe(&mut self, seat: usize, plan: SubPlan) {
        if self.seats[seat].is_some() {
            return;
        }
        let (topic, number) = &self.topics[seat / 2];
        // Where settled messages need not be kept, how many of them are is not promised.
        let plan = SubPlan { earliest: plan.earliest && self.naive.keeps_all(*number), ..plan };
        let start = if plan.earliest { Start::Earliest } else { Start::Latest };
        let builder = topic
            .subscription(&format!("sub-{seat}"))
            .start(start)
            .delivery(plan.mode)
            .ack_deadline(millis(DEADLINE))
            .max_outstanding(plan.outstanding_max);
        let builder = if plan.ordered { builder.ordered() } else { builder };
        let sub = builder.create().expect("a new subscription");
        self.seats[seat] = Some((sub, self.naive.subscribe(*number, plan)));
    }

    fn letter(&mut self, post: Post) -> (Letter, Message<String>) {
        self.texts += 1;
        let text = match post.id {
            Some((id, other)) => format!("{id} {other}"),
            None => format!("text {}", self.texts),
        };
        let message = Message::new(text.clone());
        let message = match post.key {
            Some(key) => message.ordering_key(format!("key {key}")),
            None => message,
        };
        let message = match post.id {
            Some((id, _)) => message.idempotency_id(format!("id {id}")),
            None => message,
        };
        (Letter { text, key: post.key, id: post.id.map(|id| id.0) }, message)
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Receive { seat, max, whole } => self.receive(*seat, *max, *whole),
            Op::Publish { topic, posts } => posts.iter().for_each(|post| self.publish(*topic, *post)),
            Op::Settle { which, way } => self.settle(*which, *way),
            Op::SettleBatch { which, way } => self.settle_batch(*which, *way),
            Op::Advance { by } => {
                self.clock.advance(millis(*by));
                self.naive.advance(*by);
            }
            Op::Seek { seat, place } => self.seek(*seat, *place),
            Op::Unsubscribe { seat } => {
                if let Some((sub, number)) = self.seats[*seat].take() {
                    sub.delete().expect("it is there");
                    self.naive.unsubscribe(number);
                }
            }
            Op::Subscribe { seat, plan } => self.subscribe(*seat, *plan),
            Op::Replace { topic, plan, subs } => {
                self.broker.delete_topic(self.topics[*topic].0.name()).expect("it is there");
                self.naive.delete_topic(self.topics[*topic].1);
                self.seats[topic * 2..topic * 2 + 2].fill_with(|| None);
                self.topics[*topic] = self.create_topic(*topic, *plan);
                self.fill(*topic, *subs);
            }
            Op::Work { tx, takes, posts } => {
                let before = self.held.len();
                takes.iter().for_each(|(seat, max)| self.receive(*seat, *max, false));
                while self.held.len() > before {
                    self.add(&Op::TxAck { tx: *tx, which: 0 });
                }
                posts.iter().for_each(|(topic, post)| {
                    self.add(&Op::TxPublish { tx: *tx, topic: *topic, post: *post });
                });
            }
            Op::Commit { tx, waits, again } => self.commit(*tx, *waits, *again),
            Op::RollBack { tx, by_drop } => self.roll_back(*tx, *by_drop),
            _ => self.add(op),
        }
        self.compare();
    }

    /// One more to an open transaction, or to a new one.
    fn add(&mut self, op: &Op) {
        let Pair { held, batches, open, .. } = self;
        let fresh = || (self.broker.transaction(), Plan::default());
        match *op {
            Op::TxAck { tx, which } => {
                let Some(at) = place_of(held.len(), which) else { return };
                let (delivery, held) = held.remove(at);
                let (real, plan) = open[tx].get_or_insert_with(fresh);
                real.ack(delivery);
                plan.acks.push(held);
            }
            Op::TxAckAll { tx, which } => {
                let Some(at) = place_of(batches.len(), which) else { return };
                let (batch, held) = batches.remove(at);
                let (real, plan) = open[tx].get_or_insert_with(fresh);
                real.ack_all(batch);
                plan.acks.extend(held);
            }
            Op::TxPublish { tx, topic, post } => {
                let (letter, message) = self.letter(post);
                let (topic, number) = &self.topics[topic];
                let fresh = || (self.broker.transaction(), Plan::default());
                let (real, plan) = self.open[tx].get_or_insert_with(fresh);
                real.publish(topic, message);
                plan.posts.push((*number, letter));
            }
            _ => unreachable!("not of a transaction: {op:?}"),
        }
    }

    fn roll_back(&mut self, tx: usize, by_drop: bool) {
        if let Some((real, plan)) = self.open[tx].take() {
            if by_drop {
                drop(real)
            } else {
                real.rollback()
            }
            self.naive.roll_back(&plan);
        }
    }

    fn commit(&mut self, tx: usize, waits: bool, again: bool) {
        let Some((real, mut plan)) = self.open[tx].take() else { return };
        let reasons = self.naive.reasons(&plan);
        // A commit that is to wait for space would wait for ever here.
        let waits = waits && !reasons.contains(&CommitReason::Full);
        match if waits { real.commit() } else { real.try_commit() } {
            Ok(receipts) => {
                assert_eq!(reasons, [], "what stands against this commit: {plan:?}");
                let expected = self.naive.commit(&plan);
                assert_eq!(receipts.len(), expected.len(), "a receipt for each publish");
                for (receipt, expected) in receipts.iter().zip(expected) {
                    self.check_receipt(receipt.id, receipt.deduplicated, expected);
                }
            }
            Err(failed) => {
                assert!(reasons.contains(&failed.reason), "{:?} of {reasons:?}", failed.reason);
                let is_full = failed.reason == CommitReason::Full;
                if is_full {
                    self.naive.spare(&mut plan);
                }
                self.open[tx] = Some((failed.transaction, plan));
                if !again && !is_full {
                    self.compare();
                    self.roll_back(tx, waits);
                }
            }
        }
    }

    fn check_receipt(&mut self, id: MessageId, deduplicated: bool, (topic, sequence, repeat): Receipt) {
        let known = *self.incarnations.entry(id.incarnation()).or_insert(topic);
        assert_eq!((known, id.sequence(), deduplicated), (topic, sequence, repeat), "a receipt");
    }

    /// A publish outside is a transaction of one.
    fn publish(&mut self, topic: usize, post: Post) {
        let (letter, message) = self.letter(post);
        let (topic, number) = (&self.topics[topic].0, self.topics[topic].1);
        let plan = Plan { posts: vec![(number, letter)], ..Plan::default() };
        let reasons = self.naive.reasons(&plan);
        match topic.try_publish(message) {
            Ok(receipt) => {
                assert_eq!(reasons, [], "what stands against this publish");
                let expected = self.naive.commit(&plan)[0];
                self.check_receipt(receipt.id, receipt.deduplicated, expected);
            }
            Err(PublishError::Full(_)) => assert_eq!(reasons, [CommitReason::Full]),
            Err(PublishError::IdempotencyConflict(_)) => {
                assert_eq!(reasons, [CommitReason::IdempotencyConflict]);
            }
            Err(error) => panic!("while publishing: {error:?}"),
        }
    }

    fn receive(&mut self, seat: usize, max: usize, whole: bool) {
        let Some((sub, number)) = &self.seats[seat] else { return };
        let number = *number;
        let batch = match sub.try_recv_batch(max) {
            Ok(batch) => batch,
            Err(error) => {
                assert_eq!(error, TryRecvError::Empty);
                assert_eq!(self.naive.receive(number, max, &[]).len(), 0);
                return;
            }
        };
        if whole {
            // What a batch does not tell, its first and only delivery does.
            let sequences: Vec<u64> = batch.iter().map(|message| message.id().sequence()).collect();
            let given: Vec<_> = sequences
                .iter()
                .map(|&sequence| (sequence, self.naive.next_attempt(number, sequence)))
                .collect();
            let held = self.naive.receive(number, max, &given);
            self.batches.push((batch, held));
            return;
        }
        let deliveries: Vec<_> = batch.into_iter().collect();
        let given: Vec<_> = deliveries.iter().map(|one| (one.id().sequence(), one.attempt())).collect();
        let held = self.naive.receive(number, max, &given);
        for (delivery, held) in deliveries.into_iter().zip(held) {
            assert_eq!(*delivery, self.naive.letter(held).text, "P3: the message as it was published");
            self.held.push((delivery, held));
        }
    }

    fn answer(&self, held: &[Held], failed: u64) -> Result<(), SettleError> {
        if held.iter().any(|held| self.naive.is_deleted(held.sub)) {
            return Err(SettleError::Deleted);
        }
        if failed == 0 { Ok(()) } else { Err(SettleError::LeaseExpired { count: failed }) }
    }

    fn settle(&mut self, which: usize, way: Way) {
        let Some(at) = place_of(self.held.len(), which) else { return };
        let (delivery, held) = self.held.remove(at);
        let found = match way {
            Way::Ack => delivery.ack(),
            Way::Nack => delivery.nack(),
            Way::Release => delivery.release(),
            Way::Drop => {
                drop(delivery);
                self.naive.nack(held);
                return;
            }
        };
        let failed = u64::from(!self.settle_in_model(held, way));
        assert_eq!(found, self.answer(&[held], failed), "{way:?}");
    }

    fn settle_in_model(&mut self, held: Held, way: Way) -> bool {
        match way {
            _ if self.naive.is_deleted(held.sub) => false,
            Way::Ack => self.naive.ack(held),
            Way::Release => self.naive.release(held),
            Way::Nack | Way::Drop => self.naive.nack(held),
        }
    }

    fn settle_batch(&mut self, which: usize, way: Way) {
        let Some(at) = place_of(self.batches.len(), which) else { return };
        let (batch, mut held) = self.batches.remove(at);
        let found = match way {
            Way::Ack => Some(batch.ack()),
            Way::Nack => Some(batch.nack()),
            Way::Release => Some(batch.release()),
            Way::Drop => {
                drop(batch);
                None
            }
        };
        if !matches!(way, Way::Ack) {
            // Each comes back by its own, and takes none of the batch along.
            held.reverse();
        }
        let failed = held.iter().filter(|&&held| !self.settle_in_model(held, way)).count() as u64;
        if let Some(found) = found {
            assert_eq!(found, self.answer(&held, failed), "{way:?} of a batch");
        }
    }

    fn seek(&mut self, seat: usize, place: Place) {
        let Some((sub, number)) = &self.seats[seat] else { return };
        let topic = self.topics[seat / 2].1;
        let end = self.naive.len(topic) + 1;
        let (seek, sequence) = match place {
            Place::Latest => (Seek::Latest, end),
            // What is not promised to be kept is not sought.
            _ if !self.naive.keeps_all(topic) => return,
            Place::Earliest => (Seek::Earliest, 1),
            Place::Sequence(sequence) => (Seek::Sequence(sequence.min(end)), sequence.min(end)),
        };
        sub.seek(seek).expect("sought");
        self.naive.seek(*number, sequence);
    }

    fn compare(&self) {
        for (sub, number) in self.seats.iter().flatten() {
            let stats = sub.stats();
            let found = Counts {
                backlog: stats.backlog,
                outstanding: stats.outstanding,
                delivered: stats.delivered,
                acked: stats.acked,
                nacked: stats.nacked,
                released: stats.released,
                leases_expired: stats.leases_expired,
            };
            assert_eq!(found, self.naive.counts(*number), "of {}", sub.name());
        }
        for (topic, number) in &self.topics {
            let stats = topic.stats();
            let expected = (self.naive.len(*number), self.naive.deduplicated(*number));
            assert_eq!((stats.published, stats.deduplicated), expected, "of {}", topic.name());
        }
    }

    /// All is given up, and every reader gets what is left for it, in order.
    fn finish(&mut self) {
        for tx in 0..OPEN {
            self.step(&Op::RollBack { tx, by_drop: true });
        }
        while !self.held.is_empty() {
            self.step(&Op::Settle { which: 0, way: Way::Drop });
        }
        while !self.batches.is_empty() {
            self.step(&Op::SettleBatch { which: 0, way: Way::Drop });
        }
        for seat in 0..SEATS {
            let Some(number) = self.seats[seat].as_ref().map(|seat| seat.1) else { continue };
            while self.naive.counts(number).backlog > 0 {
                self.step(&Op::Receive { seat, max: 1, whole: false });
                while !self.held.is_empty() {
                    self.step(&Op::Settle { which: 0, way: Way::Ack });
                }
            }
            self.step(&Op::Receive { seat, max: 1, whole: false });
        }
    }
}

fn cases() -> u32 {
    std::env::var("EVENTFLOW_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn p05_p08_p16_random_transactions_over_three_topics_agree_with_the_naive_model(
        plans in prop::array::uniform3((topic_plans(), pairs())),
        ops in prop::collection::vec(ops(), 1..150),
    ) {
        let mut pair = Pair::new(plans);
        for op in &ops {
            pair.step(op);
        }
        pair.finish();
    }
}
