//! A commit that waits for space: it gets it, or is told that it will not.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use eventflow::{
    Capacity, CommitReason, DeadLetter, Overflow, PublishError, Seek, Subscription, Topic, Transaction,
};

use super::{commit, pair, reader, topic_with};
use crate::{
    DEADLINE, EXPIRED, Scene, ack, assert_forgotten, drain, explore, join, join_all, recv, send, spawn,
};

/// A topic of one message, which is there, and its reader.
fn full(scene: &Scene, name: &str) -> (Topic<u64>, Subscription<u64>) {
    let topic = topic_with(scene, name, |options| options.capacity(Capacity::messages(1)));
    let reader = reader(&topic);
    send(&topic, 0);
    (topic, reader)
}

fn try_commit(tx: Transaction) -> Result<(), CommitReason> {
    tx.try_commit().map(drop).map_err(|failed| failed.reason)
}

/// One message in, one out, and no space for it.
struct Squeeze {
    scene: Scene,
    sub: Subscription<u64>,
    output: Topic<u64>,
    reader: Subscription<u64>,
    tx: Transaction,
}

impl Squeeze {
    fn new() -> Self {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        Squeeze::of(scene, sub)
    }

    fn of(scene: Scene, sub: Subscription<u64>) -> Self {
        send(&scene.topic, 7);
        let (output, reader) = full(&scene, "results");
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        tx.publish(&output, 1);
        Squeeze { scene, sub, output, reader, tx }
    }
}

#[test]
fn p9_a_commit_that_waits_for_space_gets_it() {
    explore(|| {
        let Squeeze { scene, sub, output, reader, tx } = Squeeze::new();
        let committer = spawn(move || commit(tx));
        let publisher = output.clone();
        let publisher = spawn(move || send(&publisher, 2));
        for _ in 0..3 {
            ack(recv(&reader));
        }
        assert_eq!(join(committer), Ok(()));
        join(publisher);
        assert_eq!(sub.stats().backlog, 0);
        [&scene.topic, &output].into_iter().for_each(assert_forgotten);
    });
}

#[test]
fn p9_a_commit_future_that_waits_for_space_gets_it() {
    explore(|| {
        let Squeeze { scene, output, reader, tx, .. } = Squeeze::new();
        let committer = spawn(move || shuttle::future::block_on(tx.commit_async()).is_ok());
        ack(recv(&reader));
        assert!(join(committer));
        assert_eq!(drain(&reader), [1]);
        [&scene.topic, &output].into_iter().for_each(assert_forgotten);
    });
}

/// Two transactions over two full topics, in opposite order of words, and plain publishers.
fn crowd(wait: fn(Transaction) -> bool) {
    let scene = Scene::new();
    let [(one, one_reader), (other, other_reader)] = ["one", "other"].map(|name| full(&scene, name));
    let topics = [one, other];
    let mut reversed = topics.clone();
    reversed.reverse();
    let committers = [(1, &topics), (2, &reversed)].map(|(event, topics)| {
        let tx = pair(&scene, topics, event);
        spawn(move || assert!(wait(tx)))
    });
    let publisher = topics[1].clone();
    let publisher = spawn(move || send(&publisher, 3));
    let receivers = [(one_reader, 3), (other_reader, 4)].map(|(reader, count)| {
        spawn(move || {
            let mut events = Vec::new();
            for _ in 0..count {
                let delivery = recv(&reader);
                events.push(*delivery);
                ack(delivery);
            }
            events
        })
    });
    join_all(committers);
    join(publisher);
    let [one, other] = receivers.map(join);
    let other: Vec<u64> = other.into_iter().filter(|event| *event != 3).collect();
    assert_eq!(one, other, "P5: one order in both");
    topics.iter().for_each(assert_forgotten);
}

#[test]
fn p9_commits_that_wait_for_space_in_two_topics_get_it_in_turn() {
    explore(|| crowd(|tx| commit(tx) == Ok(())));
}

#[test]
fn p9_commit_futures_that_wait_for_space_in_two_topics_get_it_in_turn() {
    explore(|| crowd(|tx| shuttle::future::block_on(tx.commit_async()).is_ok()));
}

#[test]
fn p9_a_commit_that_is_the_last_to_settle_what_is_in_its_way_goes_on() {
    explore(|| {
        let scene = Scene::with(|options| options.capacity(Capacity::messages(1)));
        let (sub, other) = (scene.subscription("sub"), scene.subscription("other"));
        send(&scene.topic, 1);
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        tx.publish(&scene.topic, 2);
        let committer = spawn(move || commit(tx));
        // With this, all but the transaction have settled it: it makes the room that it needs.
        ack(recv(&other));
        assert_eq!(join(committer), Ok(()));
        assert_eq!((drain(&sub), drain(&other)), (vec![2], vec![2]));
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p9_of_two_transactions_that_stand_in_each_others_way_one_goes_on_when_the_other_gives_up() {
    explore(|| {
        let scene = Scene::new();
        let [(one, one_reader), (other, other_reader)] = ["one", "other"].map(|name| full(&scene, name));
        let mut patient = scene.broker.transaction();
        patient.ack(recv(&one_reader));
        patient.publish(&other, 1);
        let mut hasty = scene.broker.transaction();
        hasty.ack(recv(&other_reader));
        hasty.publish(&one, 2);
        let patient = spawn(move || commit(patient));
        let hasty = spawn(move || {
            let failed = hasty.try_commit().expect_err("the other holds what is in its way");
            assert_eq!(failed.reason, CommitReason::Full);
            failed.transaction.rollback();
            let again = recv(&other_reader);
            assert_eq!(again.attempt(), 1, "lack of space spends no attempt");
            ack(again);
            other_reader
        });
        assert_eq!(join(patient), Ok(()));
        assert_eq!(drain(&join(hasty)), [1]);
        [&one, &other].into_iter().for_each(assert_forgotten);
    });
}

#[test]
fn transactions_that_stand_in_each_others_way_give_up_at_their_first_deadline() {
    explore(|| {
        let scene = Scene::new();
        let both @ [(one, one_reader), (other, other_reader)] =
            &["one", "other"].map(|name| full(&scene, name));
        let committers = [(one_reader, other), (other_reader, one)].map(|(reader, topic)| {
            let mut tx = scene.broker.transaction();
            tx.ack(recv(reader));
            tx.publish(topic, 1);
            spawn(move || commit(tx))
        });
        scene.clock.advance(DEADLINE);
        for (committer, (topic, reader)) in committers.into_iter().zip(both) {
            let committed = join(committer);
            let again = recv(reader);
            assert_eq!(*again, 0);
            match committed {
                Err(CommitReason::Full) => assert_eq!(again.attempt(), 1, "lack of space spends no attempt"),
                // It began, or found that it has to wait, after the deadline.
                Err(CommitReason::LeaseExpired { count: 1 }) => assert!(again.attempt() <= 2),
                committed => panic!("there was no space: {committed:?}"),
            }
            ack(again);
            assert_eq!(drain(reader), []);
            assert_forgotten(topic);
        }
    });
}

/// On its last attempt, a message meets a full topic until its lease runs out.
fn last_attempt(wait: fn(Transaction) -> Result<(), CommitReason>) {
    let scene = Scene::new();
    let failed = topic_with(&scene, "failed", |options| options);
    let letters = reader(&failed);
    let dead_letter = DeadLetter::to(&failed).after(1);
    let sub = scene.subscription_with("sub", |options| options.dead_letter(dead_letter));
    let Squeeze { scene, sub, reader, tx, .. } = Squeeze::of(scene, sub);
    let clock = scene.clock.clone();
    let time = spawn(move || clock.advance(DEADLINE));
    let committed = wait(tx);
    join(time);
    let letters = drain(&letters).len();
    match committed {
        Err(CommitReason::Full) => {
            assert_eq!(letters, 0, "lack of space spends no attempt");
            assert_eq!(recv(&sub).attempt(), 1);
        }
        Err(CommitReason::LeaseExpired { count: 1 }) => {
            assert_eq!(drain(&sub).len() + letters, 1, "P11: in one place")
        }
        committed => panic!("there was no space: {committed:?}"),
    }
    assert_eq!(drain(&reader), [0]);
}

#[test]
fn a_commit_that_waits_until_its_first_deadline_spends_no_attempt() {
    explore(|| last_attempt(commit));
}

#[test]
fn a_commit_future_that_waits_until_its_first_deadline_spends_no_attempt() {
    explore(|| {
        last_attempt(|tx| {
            let committed = shuttle::future::block_on(tx.commit_async());
            committed.map(drop).map_err(|failed| failed.reason)
        });
    });
}

#[test]
fn a_commit_that_does_not_wait_for_space_spends_no_attempt() {
    explore(|| last_attempt(try_commit));
}

#[test]
fn p5_space_that_comes_at_the_deadline_is_used_by_a_whole_commit_or_not_at_all() {
    explore(|| {
        let Squeeze { scene, sub, reader, tx, .. } = Squeeze::new();
        let committer = spawn(move || commit(tx));
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        ack_if_it_runs(recv(&reader));
        let committed = join(committer);
        join(time);
        let published = drain(&reader).contains(&1);
        assert_eq!(published, committed.is_ok(), "P5: {committed:?}");
        assert_eq!(drain(&sub).len(), usize::from(!published), "P16");
    });
}

fn ack_if_it_runs(delivery: eventflow::Delivery<u64>) {
    let _expired = delivery.ack();
}

#[test]
fn p2_a_commit_that_waits_on_a_deleted_topic_wakes() {
    explore(|| {
        let Squeeze { scene, sub, output, tx, .. } = Squeeze::new();
        let committer = spawn(move || commit(tx));
        let publisher = spawn(move || matches!(output.publish(2), Err(PublishError::TopicDeleted(_))));
        scene.broker.delete_topic("results").expect("it is there");
        assert_eq!(join(committer), Err(CommitReason::TopicDeleted));
        assert!(join(publisher));
        assert_eq!(drain(&sub), [7]);
    });
}

#[test]
fn p2_a_commit_that_waits_for_space_wakes_when_the_broker_closes() {
    explore(|| {
        let Squeeze { scene, tx, output, .. } = Squeeze::new();
        let mut other = scene.broker.transaction();
        other.publish(&output, 2);
        let committer = spawn(move || commit(tx));
        let future =
            spawn(move || shuttle::future::block_on(other.commit_async()).map_err(|error| error.reason));
        scene.broker.shutdown(Duration::ZERO).expect("the first shutdown");
        assert_eq!(join(committer), Err(CommitReason::Closed));
        assert_eq!(join(future), Err(CommitReason::Closed));
    });
}

#[test]
fn p8_a_commit_that_waits_gets_the_space_that_comes_while_the_broker_shuts_down() {
    explore(|| {
        let Squeeze { scene, reader, tx, .. } = Squeeze::new();
        let held = recv(&reader);
        let committer = spawn(move || commit(tx));
        let acker = spawn(move || held.ack());
        let report = scene.broker.shutdown(Duration::MAX).expect("the first shutdown");
        assert_eq!(join(acker), Ok(()));
        assert_eq!(join(committer), Ok(()), "what is outstanding may be committed");
        assert_eq!((report.outstanding, report.backlog), (0, 1));
    });
}

#[test]
fn p2_what_only_publishes_does_not_wait_for_space_in_a_broker_that_shuts_down() {
    explore(|| {
        let Squeeze { scene, reader, tx, output, .. } = Squeeze::new();
        tx.rollback();
        let held = recv(&reader);
        let mut tx = scene.broker.transaction();
        tx.publish(&output, 2);
        let committer = spawn(move || commit(tx));
        let broker = scene.broker.clone();
        let closer = spawn(move || broker.shutdown(Duration::MAX).expect("the first shutdown"));
        assert_eq!(join(committer), Err(CommitReason::Closed), "it does not wait for what is outstanding");
        ack(held);
        assert_eq!(join(closer).outstanding, 0);
    });
}

#[test]
fn p9_a_dropped_commit_future_leaves_the_space_to_others() {
    explore(|| {
        let Squeeze { sub, output, reader, tx, scene } = Squeeze::new();
        let fickle = spawn(move || {
            let mut future = pin!(tx.commit_async());
            future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        });
        let publisher = output.clone();
        let publisher = spawn(move || send(&publisher, 3));
        let mut events = Vec::new();
        while events.last() != Some(&3) {
            let delivery = recv(&reader);
            events.push(*delivery);
            ack(delivery);
        }
        let committed = join(fickle);
        join(publisher);
        events.extend(drain(&reader));
        assert_eq!(events.contains(&1), committed, "P5: dropped, it published nothing");
        match sub.try_recv() {
            Ok(again) => {
                assert_eq!((again.attempt(), committed), (1, false), "lack of space spends no attempt")
            }
            Err(_) => assert!(committed, "P5: neither settled nor given back"),
        }
        drop(scene);
    });
}

#[test]
fn p9_a_commit_future_wakes_whoever_polled_it_last() {
    explore(|| {
        let Squeeze { reader, tx, .. } = Squeeze::new();
        let acker = reader.clone();
        let acker = spawn(move || ack(recv(&acker)));
        let mut future = Box::pin(tx.commit_async());
        let first = spawn(move || {
            let ready = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            (ready, future)
        });
        let (ready, future) = join(first);
        if !ready {
            let second = spawn(move || shuttle::future::block_on(future).is_ok());
            assert!(join(second));
        }
        join(acker);
        assert_eq!(drain(&reader), [1]);
    });
}

#[test]
fn p5_a_commit_that_waits_while_its_input_is_sought_back_publishes_nothing() {
    explore(|| {
        let Squeeze { scene, sub, reader, tx, .. } = Squeeze::new();
        let committer = spawn(move || commit(tx));
        let seeker = sub.clone();
        let seeker = spawn(move || seeker.seek(Seek::Earliest));
        ack(recv(&reader));
        let committed = join(committer);
        assert_eq!(join(seeker), Ok(()));
        let published = drain(&reader);
        match committed {
            Ok(()) => assert_eq!(published, [1]),
            committed => assert_eq!((committed, published), (super::expired(1), vec![])),
        }
        drop(scene);
    });
}

#[test]
fn p9_a_commit_that_waits_gets_the_space_of_a_deleted_subscription() {
    explore(|| {
        let Squeeze { output, reader, tx, sub, .. } = Squeeze::new();
        let other = output.subscription("other").create().expect("a new subscription");
        let committer = spawn(move || commit(tx));
        let deleter = spawn(move || reader.delete());
        assert_eq!(join(committer), Ok(()));
        assert_eq!(join(deleter), Ok(()));
        assert_eq!((drain(&other), sub.stats().backlog), (vec![1], 0));
    });
}

#[test]
fn p9_a_commit_that_waits_gets_the_space_of_a_larger_capacity() {
    explore(|| {
        let Squeeze { output, reader, tx, .. } = Squeeze::new();
        let committer = spawn(move || commit(tx));
        output.update().capacity(Capacity::messages(2)).apply().expect("a good option");
        assert_eq!(join(committer), Ok(()));
        assert_eq!(drain(&reader), [0, 1]);
    });
}

/// A topic of so many messages that drops its oldest.
fn dropping(messages: u64) -> Scene {
    let capacity = Capacity::messages(messages).overflow(Overflow::DropOldest);
    Scene::with(|options| options.capacity(capacity))
}

#[test]
fn what_a_transaction_acks_is_not_what_it_drops_to_make_room() {
    explore(|| {
        let scene = dropping(2);
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("they fit");
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        tx.publish(&scene.topic, 3);
        tx.publish(&scene.topic, 4);
        let held = recv(&sub);
        let acker = spawn(move || held.ack());
        assert_eq!(commit(tx), Ok(()));
        let acked = join(acker);
        assert!(acked == Ok(()) || acked == EXPIRED, "{acked:?}");
        assert_eq!(scene.topic.stats().dropped, u64::from(acked.is_err()), "the 2, or nothing");
        assert_eq!(drain(&sub), [3, 4]);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn a_commit_that_drops_the_oldest_gets_its_space_though_another_has_what_it_acks() {
    explore(|| {
        let scene = dropping(1);
        let (sub, other) = (scene.subscription("sub"), scene.subscription("other"));
        send(&scene.topic, 1);
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        tx.publish(&scene.topic, 2);
        let reader = other.clone();
        let reader = spawn(move || reader.try_recv().map(|delivery| (*delivery, delivery.ack().is_ok())));
        assert_eq!(commit(tx), Ok(()));
        let acked = join(reader).is_ok_and(|seen| seen == (1, true));
        assert_eq!(scene.topic.stats().dropped, u64::from(!acked));
        let rest = drain(&other);
        assert!(rest == [2] || rest.is_empty(), "{rest:?}");
        assert_eq!(drain(&sub), [2]);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p2_a_commit_that_fails_for_one_topic_drops_nothing_in_another() {
    explore(|| {
        let scene = dropping(1);
        let sub = scene.subscription("sub");
        send(&scene.topic, 5);
        let (output, _reader) = full(&scene, "results");
        let tx = pair(&scene, &[scene.topic.clone(), output], 1);
        let committer = spawn(move || try_commit(tx));
        let drained = drain(&sub);
        assert_eq!(join(committer), Err(CommitReason::Full));
        assert_eq!(scene.topic.stats().dropped, 0, "nothing of it took effect");
        assert_eq!([drained, drain(&sub)].concat(), [5]);
    });
}

#[test]
fn what_is_added_to_a_transaction_that_found_no_space_spends_no_attempt_either() {
    explore(|| {
        let Squeeze { scene, sub, output, tx, .. } = Squeeze::new();
        let mut tx = tx.try_commit().expect_err("the topic is full").transaction;
        send(&scene.topic, 8);
        tx.ack(recv(&sub));
        let committer = spawn(move || tx.try_commit().expect_err("the topic is full"));
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        let failed = join(committer);
        join(time);
        if failed.reason == CommitReason::Full {
            let again = [recv(&sub), recv(&sub)].map(|delivery| delivery.attempt());
            assert_eq!(again, [1, 1], "lack of space spends no attempt");
        }
        drop((failed, output));
    });
}

#[test]
fn p9_a_transaction_that_came_back_can_be_committed_again() {
    explore(|| {
        let Squeeze { scene, sub, output, reader, mut tx } = Squeeze::new();
        let acker = reader.clone();
        let acker = spawn(move || ack(recv(&acker)));
        let receipts = loop {
            match tx.try_commit() {
                Ok(receipts) => break receipts,
                Err(failed) => {
                    assert_eq!(failed.reason, CommitReason::Full);
                    tx = failed.transaction;
                    shuttle::thread::yield_now();
                }
            }
        };
        join(acker);
        assert_eq!((receipts.len(), sub.stats().backlog), (1, 0));
        assert_eq!(drain(&reader), [1]);
        [&scene.topic, &output].into_iter().for_each(assert_forgotten);
    });
}
