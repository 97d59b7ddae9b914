//! Seeks, starts and snapshots while messages are settled and forgotten: what is promised is still there.

use eventflow::{Retention, Seek, Start};

use crate::{EXPIRED, Scene, ack, assert_forgotten, drain, explore, join, join_all, recv, send, spawn};

#[test]
fn p17_a_seek_loses_nothing_that_is_not_settled() {
    explore(|| {
        let scene = Scene::new();
        let (sub, other) = (scene.subscription("sub"), scene.subscription("other"));
        scene.topic.publish_all([1, 2]).expect("an open topic");
        let held = [recv(&sub), recv(&sub)];
        let acker = spawn(move || held.map(|delivery| delivery.ack()));
        let seeker = sub.clone();
        let seeker = spawn(move || seeker.seek(Seek::Earliest));
        let others = spawn(move || drain(&other));
        let acked = join(acker);
        assert_eq!(join(seeker), Ok(()));
        assert_eq!(join(others), [1, 2]);
        let again = drain(&sub);
        for (event, acked) in [1, 2].into_iter().zip(acked) {
            assert!(acked == Ok(()) || acked == EXPIRED, "{acked:?}");
            assert!(acked.is_ok() || again.contains(&event), "P8: {event} is neither acked nor delivered");
        }
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p17_what_is_kept_for_ever_is_all_delivered_again_after_a_seek() {
    explore(|| {
        let scene = Scene::with(|options| options.retention(Retention::forever()));
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("an open topic");
        let held = recv(&sub);
        let acker = spawn(move || held.ack());
        let (seeker, topic) = (sub.clone(), scene.topic.clone());
        let seeker = spawn(move || seeker.seek(Seek::Earliest));
        let publisher = spawn(move || send(&topic, 3));
        join(publisher);
        assert_eq!(join(seeker), Ok(()));
        let _either = join(acker);
        // An ack before the seek is undone by it, and one after it is refused.
        assert_eq!(drain(&sub), [1, 2, 3]);
    });
}

#[test]
fn p1_a_receiver_that_waits_gets_what_a_seek_brings_back() {
    explore(|| {
        let scene = Scene::with(|options| options.retention(Retention::forever()));
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("an open topic");
        drain(&sub);
        let receivers = [sub.clone(), sub.clone()].map(|sub| spawn(move || ack(recv(&sub))));
        assert_eq!(sub.seek(Seek::Earliest), Ok(()));
        join_all(receivers);
    });
}

#[test]
fn p1_a_subscription_from_the_earliest_has_no_gaps() {
    explore(|| {
        let scene = Scene::new();
        let first = scene.subscription("first");
        let topic = scene.topic.clone();
        let publisher = spawn(move || [1, 2, 3].map(|event| send(&topic, event)));
        let reader = spawn(move || {
            for event in [1, 2, 3] {
                let delivery = recv(&first);
                assert_eq!(*delivery, event);
                ack(delivery);
            }
        });
        let topic = scene.topic.clone();
        let subscriber = spawn(move || {
            topic.subscription("late").start(Start::Earliest).create().expect("a new subscription")
        });
        let late = join(subscriber);
        join(publisher);
        join(reader);
        let events = drain(&late);
        let all: Vec<u64> = (4 - events.len() as u64..=3).collect();
        assert_eq!(events, all, "a gap");
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p17_a_snapshot_keeps_what_was_unsettled_at_one_moment() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("an open topic");
        let held = [recv(&sub), recv(&sub)];
        let acker = spawn(move || held.map(ack));
        let taker = sub.clone();
        let taker = spawn(move || taker.snapshot("then").expect("a new snapshot"));
        join(acker);
        join(taker);
        assert_eq!(sub.seek(Seek::Snapshot("then".into())), Ok(()));
        let again = drain(&sub);
        assert!([&[][..], &[2], &[1, 2]].contains(&&again[..]), "never so at any moment: {again:?}");
        scene.broker.delete_snapshot("then").expect("it is there");
        assert_forgotten(&scene.topic);
    });
}
