//! Transactions among others who publish, settle, wait and end things: whole or not at all, and nobody hangs.

mod ending;
mod leases;
mod waiting;

use eventflow::{
    Capacity, CommitReason, DeadLetter, Delivery, Message, Overflow, Retention, Seek, Start, Subscription,
    Topic, TopicBuilder, Transaction,
};

use crate::{Scene, ack, assert_forgotten, drain, explore, join, join_all, recv, send, spawn};

fn topic(scene: &Scene, name: &str) -> Topic<u64> {
    topic_with(scene, name, |options| options)
}

fn topic_with(
    scene: &Scene,
    name: &str,
    options: impl FnOnce(TopicBuilder<u64>) -> TopicBuilder<u64>,
) -> Topic<u64> {
    options(scene.broker.topic(name)).create().expect("a new topic")
}

fn reader(topic: &Topic<u64>) -> Subscription<u64> {
    topic.subscription("reader").create().expect("a new subscription")
}

/// Commits, and rolls back what failed.
fn commit(tx: Transaction) -> Result<(), CommitReason> {
    tx.commit().map(drop).map_err(|failed| failed.reason)
}

fn expired(count: u64) -> Result<(), CommitReason> {
    Err(CommitReason::LeaseExpired { count })
}

/// One message in, two out, in two topics.
struct Job {
    scene: Scene,
    /// Holds the 7 that `tx` acks, and nothing else.
    sub: Subscription<u64>,
    outputs: [Topic<u64>; 2],
    readers: [Subscription<u64>; 2],
    tx: Transaction,
}

impl Job {
    fn new() -> Self {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        Job::of(scene, sub)
    }

    fn of(scene: Scene, sub: Subscription<u64>) -> Self {
        send(&scene.topic, 7);
        let outputs = ["results", "audit"].map(|name| topic(&scene, name));
        let readers = outputs.each_ref().map(reader);
        let mut tx = scene.broker.transaction();
        // Not in the order of their making.
        tx.publish(&outputs[1], 1);
        tx.ack(recv(&sub));
        tx.publish(&outputs[0], 1);
        Job { scene, sub, outputs, readers, tx }
    }
}

/// Whether both outputs of a [`Job`] are there, or neither.
#[track_caller]
fn is_published(readers: &[Subscription<u64>; 2]) -> bool {
    let both = readers.each_ref().map(drain);
    assert_eq!(both[0], both[1], "P5: a half");
    assert!(both[0].is_empty() || both[0] == [1]);
    !both[0].is_empty()
}

/// Takes all that is there now, and settles nothing: to settle is to wait until a commit to the topic is over, who only looks may meet it in the middle.
fn see(subscription: &Subscription<u64>, seen: &mut Vec<Delivery<u64>>) {
    while let Ok(delivery) = subscription.try_recv() {
        seen.push(delivery);
    }
}

/// Publishes the event in both topics.
fn pair(scene: &Scene, topics: &[Topic<u64>; 2], event: u64) -> Transaction {
    let mut tx = scene.broker.transaction();
    topics.iter().for_each(|topic| tx.publish(topic, event));
    tx
}

#[test]
fn p5_transactions_that_name_the_same_in_opposite_order_come_one_after_the_other() {
    explore(|| {
        let scene = Scene::new();
        let topics = [scene.topic.clone(), topic(&scene, "other")];
        let subs = topics.each_ref().map(|topic| topic.subscription("sub").create().expect("a new one"));
        for topic in &topics {
            topic.publish_all([1, 2]).expect("an open topic");
        }
        let readers = topics.each_ref().map(reader);
        let held = [1, 2].map(|_| subs.each_ref().map(recv));
        let mut transactions = [3, 4].into_iter().zip(held).map(|(event, mut held)| {
            let mut topics = topics.clone();
            if event == 4 {
                held.reverse();
                topics.reverse();
            }
            let mut tx = pair(&scene, &topics, event);
            held.into_iter().for_each(|delivery| tx.ack(delivery));
            tx
        });
        let both = [(); 2].map(|()| transactions.next().expect("there are two"));
        join_all(both.map(|tx| spawn(move || assert_eq!(commit(tx), Ok(())))));
        let [one, other] = readers.each_ref().map(drain);
        assert_eq!(one, other, "one order in both");
        assert!(one == [3, 4] || one == [4, 3], "{one:?}");
        assert_eq!(subs.each_ref().map(drain), [one, other]);
        topics.iter().for_each(assert_forgotten);
    });
}

#[test]
fn p5_who_sees_one_output_of_a_transaction_sees_the_other() {
    explore(|| {
        let scene = Scene::new();
        let topics = [scene.topic.clone(), topic(&scene, "other")];
        let watchers = [0, 1].map(|first| {
            let name = format!("reader-{first}");
            let subs = topics.each_ref().map(|topic| {
                let options = topic.subscription(&name);
                // One of them looks at each message before it takes any.
                let options = if first == 0 { options } else { options.filter_fn(|_| true) };
                options.create().expect("a new subscription")
            });
            spawn(move || {
                let (mut seen, mut others) = (Vec::new(), Vec::new());
                for _ in 0..2 {
                    see(&subs[first], &mut seen);
                    see(&subs[1 - first], &mut others);
                    assert!(seen.len() <= others.len(), "P5: {} and {}", seen.len(), others.len());
                }
            })
        });
        let counters = topics.each_ref().map(reader);
        let counter = spawn(move || {
            let [first, second] = counters.map(|reader| reader.stats().backlog);
            assert!(first <= second, "P5: {first} of one, {second} of the other");
        });
        let topics = topics.clone();
        let committer = spawn(move || [1, 2].map(|event| commit(pair(&scene, &topics, event))));
        join_all(watchers);
        join(counter);
        assert_eq!(join(committer), [Ok(()), Ok(())]);
    });
}

#[test]
fn p5_who_is_woken_by_one_output_of_a_transaction_finds_the_other() {
    explore(|| {
        let scene = Scene::new();
        let topics = [scene.topic.clone(), topic(&scene, "other")];
        let receivers = [0, 1].map(|first| {
            let name = format!("reader-{first}");
            let [awaited, other] = [first, 1 - first]
                .map(|n| topics[n].subscription(&name).create().expect("a new subscription"));
            spawn(move || {
                let woken = if first == 0 {
                    recv(&awaited)
                } else {
                    shuttle::future::block_on(awaited.recv_async()).expect("an open broker")
                };
                assert_eq!(other.try_recv().map(|delivery| *delivery), Ok(1), "P5: the other is there too");
                ack(woken);
            })
        });
        let token = topics[1].subscription("token").create().expect("a new subscription");
        let ready = token.ready();
        let asker = spawn(move || {
            while ready.try_recv().is_err() || drain(&token).is_empty() {
                shuttle::thread::yield_now();
            }
        });
        assert_eq!(commit(pair(&scene, &topics, 1)), Ok(()));
        join_all(receivers);
        join(asker);
    });
}

#[test]
fn p5_plain_publishes_come_before_or_after_a_transaction_and_not_into_it() {
    explore(|| {
        let scene = Scene::new();
        let topics = [scene.topic.clone(), topic(&scene, "other")];
        let readers = topics.each_ref().map(reader);
        let mut tx = pair(&scene, &topics, 1);
        topics.iter().for_each(|topic| tx.publish(topic, 2));
        let committer = spawn(move || tx.commit().expect("nothing stands against it"));
        let publishers = topics.clone().map(|topic| spawn(move || (send(&topic, 8), send(&topic, 9))));
        let receipts = join(committer);
        for (n, (publisher, reader)) in publishers.into_iter().zip(&readers).enumerate() {
            let (eight, nine) = join(publisher);
            let (one, two) = (receipts[n].id.sequence(), receipts[n + 2].id.sequence());
            assert_eq!(one + 1, two, "P5: one stretch");
            let mut expected = [(eight, 8), (nine, 9), (one, 1), (two, 2)];
            expected.sort_unstable();
            assert_eq!(drain(reader), expected.map(|(_, event)| event), "P4: the order of the receipts");
        }
        topics.iter().for_each(assert_forgotten);
    });
}

#[test]
fn p9_a_commit_makes_room_for_the_publisher_that_waits() {
    explore(|| {
        let scene = Scene::with(|options| options.capacity(Capacity::messages(1)));
        let sub = scene.subscription("sub");
        let job = Job::of(scene, sub);
        let topic = job.scene.topic.clone();
        let publisher = spawn(move || send(&topic, 8));
        assert_eq!(commit(job.tx), Ok(()));
        join(publisher);
        assert!(is_published(&job.readers));
        assert_eq!(drain(&job.sub), [8]);
        assert_forgotten(&job.scene.topic);
    });
}

/// Two subscriptions, created one after the other, while a transaction is committed.
fn subscribe_meanwhile(has_reader: bool, start: Start) {
    let scene = Scene::new();
    let topics = [scene.topic.clone(), topic(&scene, "other")];
    let _readers = topics.each_ref().map(|topic| has_reader.then(|| reader(topic)));
    let mut tx = pair(&scene, &topics, 1);
    topics.iter().for_each(|topic| tx.publish(topic, 2));
    let committer = spawn(move || commit(tx));
    let late = topics
        .each_ref()
        .map(|topic| topic.subscription("late").start(start).create().expect("a new subscription"));
    assert_eq!(join(committer), Ok(()));
    let [first, second] = late.each_ref().map(drain);
    for events in [&first, &second] {
        assert!(events.is_empty() || events == &[1, 2], "P5: a half: {events:?}");
    }
    assert!(second.len() <= first.len(), "P1: the first existed before the second");
    for (topic, late) in topics.iter().zip(&late) {
        send(topic, 3);
        assert_eq!(drain(late), [3]);
    }
}

#[test]
fn p5_a_subscription_that_is_made_meanwhile_sees_all_of_a_transaction_or_nothing() {
    explore(|| subscribe_meanwhile(true, Start::Latest));
}

#[test]
fn p5_the_first_subscription_that_is_made_meanwhile_sees_all_of_a_transaction_or_nothing() {
    explore(|| subscribe_meanwhile(false, Start::Latest));
}

#[test]
fn p5_a_subscription_from_the_earliest_that_is_made_meanwhile_sees_all_of_a_transaction_or_nothing() {
    explore(|| subscribe_meanwhile(false, Start::Earliest));
}

#[test]
fn p5_a_seek_to_the_end_passes_over_all_of_a_transaction_or_nothing() {
    explore(|| {
        let scene = Scene::new();
        let topics = [scene.topic.clone(), topic(&scene, "other")];
        let readers = topics.each_ref().map(reader);
        let mut tx = pair(&scene, &topics, 1);
        topics.iter().for_each(|topic| tx.publish(topic, 2));
        let committer = spawn(move || commit(tx));
        for reader in &readers {
            assert_eq!(reader.seek(Seek::Latest), Ok(()));
        }
        assert_eq!(join(committer), Ok(()));
        let [first, second] = readers.each_ref().map(drain);
        for events in [&first, &second] {
            assert!(events.is_empty() || events == &[1, 2], "P5: a half: {events:?}");
        }
        assert!(second.len() <= first.len(), "the first was sought before the second");
        topics.iter().for_each(assert_forgotten);
    });
}

#[test]
fn p1_no_message_is_lost_when_a_transaction_fills_the_segment_that_it_settles() {
    explore(|| {
        let scene = Scene::new();
        let (sub, other) = (scene.subscription("sub"), scene.subscription("other"));
        // The first segment has room for one more.
        scene.topic.publish_all(1..=15).expect("an open topic");
        let mut tx = scene.broker.transaction();
        tx.ack_all(sub.recv_batch(15).expect("an open broker"));
        tx.publish(&scene.topic, 16);
        tx.publish(&scene.topic, 17);
        let batch = other.recv_batch(15).expect("an open broker");
        let acker = spawn(move || batch.ack());
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 18));
        assert_eq!(commit(tx), Ok(()));
        assert_eq!(join(acker), Ok(()));
        let events = if join(publisher) == 16 { [18, 16, 17] } else { [16, 17, 18] };
        assert_eq!((drain(&sub), drain(&other)), (events.to_vec(), events.to_vec()));
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p5_a_snapshot_has_all_outputs_of_a_transaction_or_they_come_after_it() {
    explore(|| {
        let job = Job::new();
        let taker = job.readers[0].clone();
        let taker = spawn(move || taker.snapshot("then").expect("a new snapshot"));
        let committer = spawn(move || commit(job.tx));
        let (acker, readers) = (job.readers[0].clone(), job.readers);
        let acker = spawn(move || drain(&acker));
        join(taker);
        assert_eq!(join(committer), Ok(()));
        let early = join(acker);
        assert_eq!([early, drain(&readers[0])].concat(), [1]);
        let missing = readers[0].seek(Seek::Snapshot("then".into()));
        assert_eq!(missing, Ok(()));
        let again = drain(&readers[0]);
        assert!(again.is_empty() || again == [1], "{again:?}");
        assert_eq!(drain(&readers[1]), [1]);
    });
}

#[test]
fn p11_a_dead_letter_goes_into_a_topic_while_a_transaction_does() {
    explore(|| {
        let scene = Scene::new();
        let topics = [topic(&scene, "failed"), topic(&scene, "other")];
        let readers = topics.each_ref().map(reader);
        let dead_letter = DeadLetter::to(&topics[0]).after(1);
        let mortal = scene.subscription_with("mortal", |options| options.dead_letter(dead_letter));
        send(&scene.topic, 9);
        let doomed = recv(&mortal);
        let nacker = spawn(move || doomed.nack());
        let watcher = {
            let [failed, other] = readers.clone();
            spawn(move || {
                let (mut seen, mut others) = (Vec::new(), Vec::new());
                see(&failed, &mut seen);
                see(&other, &mut others);
                assert!(others.len() == 1 || seen.iter().all(|delivery| **delivery != 1), "P5: a half");
                while seen.len() < 2 {
                    seen.push(recv(&failed));
                }
                seen.into_iter()
                    .chain(others)
                    .map(|delivery| {
                        let event = *delivery;
                        ack(delivery);
                        event
                    })
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(commit(pair(&scene, &topics, 1)), Ok(()));
        assert_eq!(join(nacker), Ok(()));
        let mut events = [join(watcher), drain(&readers[1])].concat();
        events.sort_unstable();
        assert_eq!(events, [1, 1, 9]);
        assert_eq!(mortal.stats().dead_lettered, 1);
        assert_forgotten(&topics[0]);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p8_what_a_transaction_drops_to_make_room_is_not_acked_as_well() {
    explore(|| {
        let scene =
            Scene::with(|options| options.capacity(Capacity::messages(1).overflow(Overflow::DropOldest)));
        let topics = [scene.topic.clone(), topic(&scene, "other")];
        let readers = topics.each_ref().map(reader);
        send(&scene.topic, 0);
        let held = recv(&readers[0]);
        let acker = spawn(move || held.ack());
        let publisher = topics[0].clone();
        let publisher = spawn(move || send(&publisher, 8));
        assert_eq!(commit(pair(&scene, &topics, 1)), Ok(()));
        let (acked, last) = (join(acker), join(publisher) == 3);
        assert!(acked == Ok(()) || acked == crate::EXPIRED, "{acked:?}");
        let dropped = 1 + u64::from(acked.is_err());
        assert_eq!(scene.topic.stats().dropped, dropped, "dropped or acked, not both");
        assert_eq!(drain(&readers[0]), [if last { 8 } else { 1 }], "the newest stays");
        assert_eq!(drain(&readers[1]), [1]);
        topics.iter().for_each(assert_forgotten);
    });
}

/// Two messages in, each by another transaction, and the same thing out.
fn one_id(plain: bool) {
    let scene = Scene::new();
    let sub = scene.subscription("sub");
    let outputs = ["results", "audit"].map(|name| topic(&scene, name));
    let readers = outputs.each_ref().map(reader);
    let payment = || Message::new(5).idempotency_id("payment-7");
    scene.topic.publish_all([7, 7]).expect("an open topic");
    let committers = [(), ()].map(|()| {
        let mut tx = scene.broker.transaction();
        tx.publish(&outputs[0], payment());
        tx.publish(&outputs[1], 1);
        tx.ack(recv(&sub));
        spawn(move || tx.commit().expect("a repeat is no error"))
    });
    let publisher = plain.then(|| {
        let topic = outputs[0].clone();
        spawn(move || topic.publish(payment()).expect("an open topic"))
    });
    let mut receipts = committers.map(|committer| join(committer)[0]).to_vec();
    receipts.extend(publisher.map(join));
    let first = receipts.iter().filter(|receipt| !receipt.deduplicated).count();
    assert_eq!(first, 1, "P14: published once: {receipts:?}");
    assert!(receipts.iter().all(|receipt| receipt.id == receipts[0].id), "P14: the first receipt");
    assert_eq!(readers.each_ref().map(drain), [vec![5], vec![1, 1]]);
    let stats = sub.stats();
    assert_eq!((stats.acked, stats.backlog), (2, 0), "P16: both settled");
    assert_forgotten(&scene.topic);
}

#[test]
fn p14_of_two_transactions_with_one_id_one_publishes_and_both_settle() {
    explore(|| one_id(false));
}

#[test]
fn p14_of_transactions_and_a_publish_with_one_id_one_publishes() {
    explore(|| one_id(true));
}

#[test]
fn p14_of_two_transactions_with_one_id_and_two_messages_one_does_nothing() {
    explore(|| {
        let scene =
            Scene::with(|options| options.fingerprint(|event| *event).retention(Retention::forever()));
        let other = topic(&scene, "other");
        let readers = [reader(&scene.topic), reader(&other)];
        let committers = [5, 6].map(|event| {
            let mut tx = scene.broker.transaction();
            tx.publish(&other, event);
            tx.publish(&scene.topic, Message::new(event).idempotency_id("payment-7"));
            spawn(move || commit(tx))
        });
        let expected = match committers.map(join) {
            [Ok(()), Err(CommitReason::IdempotencyConflict)] => [5],
            [Err(CommitReason::IdempotencyConflict), Ok(())] => [6],
            both => panic!("one of them: {both:?}"),
        };
        assert_eq!(readers.each_ref().map(drain), [expected, expected], "P5: a half");
    });
}
