//! What a transaction acks, while others are at the same messages or at their neighbours.

use std::sync::Arc;
use std::time::Duration;

use eventflow::{CommitReason, Delivery, DeliveryMode, Message, Retention, Seek, SettleError, TryRecvError};
use shuttle::sync::atomic::{AtomicBool, Ordering};

use super::{Job, commit, expired, is_published, reader, topic};
use crate::{
    DEADLINE, EXPIRED, Scene, ack, assert_forgotten, drain, explore, join, join_all, recv, send, spawn,
};

const SECOND: Duration = Duration::from_secs(1);

/// One commits, and one lets the deadline pass and takes what is there. Exactly one of them has the message.
fn commit_against_expiry(mode: DeliveryMode) {
    let scene = Scene::new();
    let sub = scene.subscription_with("sub", |options| options.delivery(mode));
    let Job { scene, sub, readers, tx, .. } = Job::of(scene, sub);
    let clock = scene.clock.clone();
    let deadline = clock.now() + DEADLINE;
    let committer = spawn(move || (clock.now() >= deadline, commit(tx)));
    let clock = scene.clock.clone();
    let rival = spawn(move || {
        clock.advance(DEADLINE);
        sub.try_recv()
    });
    let (late, committed) = join(committer);
    assert!(!late || committed == expired(1), "P8: taken after the deadline");
    match (committed, join(rival)) {
        (Ok(()), Err(TryRecvError::Empty)) => assert!(is_published(&readers), "P5: settled, not published"),
        (Err(CommitReason::LeaseExpired { count: 1 }), Ok(delivery)) => {
            assert_eq!(delivery.attempt(), 2);
            assert!(!is_published(&readers), "P5: published, not settled");
        }
        both => panic!("both have it, or neither: {both:?}"),
    }
}

#[test]
fn p15_a_commit_and_an_expiry_do_not_both_win_with_exactly_once() {
    explore(|| commit_against_expiry(DeliveryMode::ExactlyOnce));
}

#[test]
fn p8_a_commit_and_an_expiry_do_not_both_win_with_at_least_once() {
    explore(|| commit_against_expiry(DeliveryMode::AtLeastOnce));
}

#[test]
fn p8_one_lease_that_ends_keeps_the_others_of_its_transaction_unsettled() {
    explore(|| {
        let scene = Scene::new();
        let subs = ["sub", "other"].map(|name| scene.subscription(name));
        send(&scene.topic, 1);
        let early = recv(&subs[0]);
        scene.clock.advance(SECOND);
        let late = recv(&subs[1]);
        let output = topic(&scene, "results");
        let results = reader(&output);
        let mut tx = scene.broker.transaction();
        tx.ack(late);
        tx.publish(&output, 1);
        tx.ack(early);
        let clock = scene.clock.clone();
        let time = spawn(move || {
            clock.advance(DEADLINE - SECOND);
            clock.advance(SECOND);
        });
        let committed = commit(tx);
        join(time);
        let acked = subs.each_ref().map(|sub| sub.stats().acked);
        if committed.is_ok() {
            assert_eq!((drain(&results), acked), (vec![1], [1, 1]));
            assert_forgotten(&scene.topic);
            return;
        }
        assert!(committed == expired(1) || committed == expired(2), "{committed:?}");
        assert_eq!((drain(&results), acked), (vec![], [0, 0]), "P5: a part");
        for sub in subs {
            assert_eq!(recv(&sub).attempt(), 2, "P9: expired, or nacked by the rollback");
        }
    });
}

/// Two messages are leased in one batch; one is committed while its neighbour is settled as `settle` does.
fn beside(settle: fn(Delivery<u64>) -> Result<(), SettleError>, comes_again: Option<u32>) {
    let scene = Scene::new();
    let sub = scene.subscription("sub");
    let other = topic(&scene, "results");
    let results = reader(&other);
    scene.topic.publish_all([1, 2]).expect("an open topic");
    let mut batch = sub.recv_batch(2).expect("an open broker");
    let mut tx = scene.broker.transaction();
    tx.ack(batch.pop().expect("two were leased"));
    tx.publish(&other, 1);
    let neighbour = batch.pop().expect("two were leased");
    let settler = spawn(move || settle(neighbour));
    let receiver = comes_again.map(|attempt| {
        let sub = sub.clone();
        spawn(move || {
            let delivery = recv(&sub);
            assert_eq!((*delivery, delivery.attempt()), (2, attempt));
            ack(delivery);
        })
    });
    assert_eq!(commit(tx), Ok(()));
    assert_eq!(join(settler), Ok(()));
    receiver.into_iter().for_each(join);
    assert_eq!((drain(&results), drain(&sub)), (vec![1], vec![]));
    assert_forgotten(&scene.topic);
}

#[test]
fn p8_a_commit_and_an_ack_of_its_neighbour_settle_one_each() {
    explore(|| beside(Delivery::ack, None));
}

#[test]
fn p9_a_commit_does_not_lose_the_neighbour_that_is_nacked() {
    explore(|| beside(Delivery::nack, Some(2)));
}

#[test]
fn p9_a_commit_does_not_lose_the_neighbour_that_is_released() {
    explore(|| beside(Delivery::release, Some(1)));
}

#[test]
fn p8_a_late_ack_does_not_settle_what_a_transaction_holds() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let stale = recv(&sub);
        scene.clock.advance(DEADLINE);
        let other = topic(&scene, "results");
        let results = reader(&other);
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        tx.publish(&other, 1);
        let late = spawn(move || stale.ack());
        assert_eq!(commit(tx), Ok(()));
        assert_eq!(join(late), EXPIRED, "P8: held by another, then settled by it");
        assert_eq!((drain(&results), drain(&sub)), (vec![1], vec![]));
    });
}

#[test]
fn p8_a_late_ack_and_a_rollback_leave_the_message_settled_or_waiting() {
    explore(|| {
        let Job { scene, sub, readers, .. } = Job::new();
        // The job's own transaction has nacked it.
        let stale = recv(&sub);
        scene.clock.advance(DEADLINE);
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        let late = spawn(move || stale.ack());
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        tx.rollback();
        let late = join(late);
        join(time);
        assert!(late == Ok(()) || late == EXPIRED, "{late:?}");
        let stats = sub.stats();
        assert_eq!(stats.nacked + stats.leases_expired, 3, "each lease ended once");
        assert_eq!(drain(&sub).len(), usize::from(late.is_err()), "P8");
        assert!(!is_published(&readers));
    });
}

#[test]
fn p8_a_seek_comes_before_a_commit_or_undoes_its_ack() {
    explore(|| {
        let scene = Scene::with(|options| options.retention(Retention::forever()));
        let sub = scene.subscription("sub");
        let Job { sub, readers, tx, scene, .. } = Job::of(scene, sub);
        let seeker = sub.clone();
        let seeker = spawn(move || seeker.seek(Seek::Earliest));
        let receiver = sub.clone();
        let receiver = spawn(move || {
            let delivery = recv(&receiver);
            assert_eq!((*delivery, delivery.attempt()), (7, 1), "sought back");
            ack(delivery);
        });
        let committed = commit(tx);
        assert_eq!(join(seeker), Ok(()));
        join(receiver);
        assert!(committed == Ok(()) || committed == expired(1), "{committed:?}");
        assert_eq!(is_published(&readers), committed.is_ok(), "P5");
        assert_eq!(drain(&sub), []);
        drop(scene);
    });
}

#[test]
fn p5_a_snapshot_has_all_acks_of_a_transaction_or_none() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("an open topic");
        let mut tx = scene.broker.transaction();
        tx.ack_all(sub.recv_batch(2).expect("an open broker"));
        let taker = sub.clone();
        let taker = spawn(move || taker.snapshot("then").expect("a new snapshot"));
        assert_eq!(commit(tx), Ok(()));
        join(taker);
        assert_eq!(sub.seek(Seek::Snapshot("then".into())), Ok(()));
        let again = drain(&sub);
        assert!(again.is_empty() || again == [1, 2], "P5: a half: {again:?}");
        scene.broker.delete_snapshot("then").expect("it is there");
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p9_a_commit_makes_room_for_the_receivers_that_wait_behind_max_outstanding() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.max_outstanding(1));
        let held = Arc::new(AtomicBool::new(false));
        let receivers = [sub.clone(), sub].map(|sub| {
            let (held, broker, topic) = (held.clone(), scene.broker.clone(), scene.topic.clone());
            spawn(move || {
                let delivery = recv(&sub);
                assert!(!held.swap(true, Ordering::SeqCst), "one at a time");
                let mut tx = broker.transaction();
                // The next receiver's, in the topic that this one reads.
                if *delivery == 1 {
                    tx.publish(&topic, 2);
                }
                tx.ack(delivery);
                held.store(false, Ordering::SeqCst);
                assert_eq!(commit(tx), Ok(()));
            })
        });
        send(&scene.topic, 1);
        join_all(receivers);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p12_a_commit_of_a_run_and_its_expiry_leave_no_gap_in_a_key() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.ordered());
        for event in [1, 2, 3] {
            send(&scene.topic, Message::new(event).ordering_key("key"));
        }
        let mut batch: Vec<_> = sub.recv_batch(3).expect("an open broker").into_iter().collect();
        let third = batch.pop().expect("the key's messages come together");
        let mut tx = scene.broker.transaction();
        batch.into_iter().rev().for_each(|delivery| tx.ack(delivery));
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        let releaser = spawn(move || third.release().is_ok());
        let committed = commit(tx);
        join(releaser);
        join(time);
        let again = drain(&sub);
        match committed {
            Ok(()) => assert_eq!(again, [3], "P12"),
            Err(CommitReason::LeaseExpired { .. }) => assert_eq!(again, [1, 2, 3], "P12: none of them"),
            Err(error) => panic!("while committing: {error:?}"),
        }
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p5_a_rollback_and_an_expiry_spend_one_attempt() {
    explore(|| {
        let Job { scene, sub, readers, tx, .. } = Job::new();
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        let receiver = sub.clone();
        let receiver = spawn(move || recv(&receiver).attempt());
        drop(tx);
        // Dropped unsettled as well.
        assert_eq!(join(receiver), 2);
        join(time);
        assert_eq!(recv(&sub).attempt(), 3);
        assert!(!is_published(&readers));
    });
}
