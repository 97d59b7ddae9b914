//! What everybody has settled goes, whoever is the last: the marks that say who is to look next are set without a common lock.

use eventflow::DeliveryMode;

use crate::{Scene, ack, assert_forgotten, drain, explore, join, join_all, recv, send, spawn};

#[test]
fn p17_whoever_settles_last_lets_the_message_go() {
    explore(|| {
        let scene = Scene::new();
        let subs = ["one", "two", "three"].map(|name| scene.subscription(name));
        send(&scene.topic, 7);
        let readers = subs.map(|sub| spawn(move || ack(recv(&sub))));
        join_all(readers);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p17_a_deleted_subscription_keeps_nothing() {
    explore(|| {
        let scene = Scene::new();
        let (one, two) = (scene.subscription("one"), scene.subscription("two"));
        scene.topic.publish_all([1, 2]).expect("an open topic");
        let reader = spawn(move || drain(&one));
        let deleter = spawn(move || two.delete());
        assert_eq!(join(reader), [1, 2]);
        assert_eq!(join(deleter), Ok(()));
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p17_what_is_forgotten_is_never_what_is_published_meanwhile() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.delivery(DeliveryMode::AtMostOnce));
        let other = scene.subscription("other");
        let topic = scene.topic.clone();
        let publisher = spawn(move || [1, 2, 3].map(|event| send(&topic, event)));
        let readers = [sub, other].map(|sub| {
            spawn(move || {
                for event in [1, 2, 3] {
                    let delivery = recv(&sub);
                    assert_eq!(*delivery, event, "P4");
                    ack(delivery);
                }
            })
        });
        join(publisher);
        join_all(readers);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p1_a_message_is_kept_for_a_subscription_that_is_made_while_it_is_published() {
    explore(|| {
        let scene = Scene::new();
        let first = scene.subscription("first");
        let reader = spawn(move || ack(recv(&first)));
        let topic = scene.topic.clone();
        let subscriber = spawn(move || topic.subscription("late").create().expect("a new subscription"));
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 1));
        let late = join(subscriber);
        send(&scene.topic, 2);
        join(publisher);
        join(reader);
        let events = drain(&late);
        assert!([&[1, 2][..], &[2], &[2, 1]].contains(&&events[..]), "P1: {events:?}");
    });
}
