//! Deleting and shutting down while others are in the middle of things: they are told, and nobody hangs.

use std::time::Duration;

use eventflow::{Capacity, PublishError, RecvError, SettleError};

use crate::{Scene, explore, join, recv, send, spawn};

#[test]
fn p7_receivers_of_a_deleted_subscription_wake() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receivers = [sub.clone(), sub.clone()].map(|sub| {
            spawn(move || {
                loop {
                    match sub.recv() {
                        Ok(delivery) => match delivery.ack() {
                            Ok(()) => {}
                            Err(error) => assert_eq!(error, SettleError::Deleted),
                        },
                        Err(error) => break error,
                    }
                }
            })
        });
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 7));
        assert_eq!(sub.delete(), Ok(()));
        assert_eq!(receivers.map(join), [RecvError::Deleted; 2]);
        join(publisher);
        crate::assert_forgotten(&scene.topic);
    });
}

#[test]
fn p2_who_waits_on_a_deleted_topic_wakes() {
    explore(|| {
        let scene = Scene::with(|options| options.capacity(Capacity::messages(1)));
        let sub = scene.subscription("sub");
        let other = scene.subscription("other");
        send(&scene.topic, 1);
        let topic = scene.topic.clone();
        let publisher = spawn(move || topic.publish(2));
        let held = recv(&sub);
        let receiver = spawn(move || sub.recv().map(|delivery| *delivery));
        let acker = spawn(move || held.ack());
        let subscriber = scene.topic.clone();
        let subscriber = spawn(move || subscriber.subscription("late").create().is_ok());
        scene.broker.delete_topic("topic").expect("it is there");
        assert!(matches!(join(publisher), Err(PublishError::TopicDeleted(_))), "one had not settled it");
        assert_eq!(join(receiver), Err(RecvError::Deleted));
        let acked = join(acker);
        assert!(acked == Ok(()) || acked == Err(SettleError::Deleted), "{acked:?}");
        join(subscriber);
        assert_eq!(other.try_recv().map(|delivery| *delivery), Err(eventflow::TryRecvError::Deleted));
    });
}

#[test]
fn p2_a_shutdown_counts_exactly_what_was_published() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let publishers = [1, 2].map(|event| {
            let topic = scene.topic.clone();
            spawn(move || match topic.publish(event) {
                Ok(_) => 1,
                Err(PublishError::Closed(message)) => {
                    assert_eq!(message.into_event(), event, "the message comes back");
                    0
                }
                Err(error) => panic!("while publishing: {error:?}"),
            })
        });
        let receiver = spawn(move || {
            let mut acked = 0;
            loop {
                match sub.recv() {
                    Ok(delivery) => match delivery.ack() {
                        Ok(()) => acked += 1,
                        Err(error) => panic!("it waits for what is outstanding: {error:?}"),
                    },
                    Err(error) => break assert_eq!(error, RecvError::Closed),
                }
            }
            acked
        });
        let report = scene.broker.shutdown(Duration::MAX).expect("the first shutdown");
        assert_eq!(report.outstanding, 0, "there was time");
        let published: u64 = publishers.map(join).iter().sum();
        assert_eq!(join(receiver) + report.backlog, published);
    });
}

#[test]
fn p2_a_publisher_that_waits_for_space_wakes_when_the_broker_shuts_down() {
    explore(|| {
        let scene = Scene::with(|options| options.capacity(Capacity::messages(1)));
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let topics = [scene.topic.clone(), scene.topic.clone()];
        let publishers =
            topics.map(|topic| spawn(move || matches!(topic.publish(2), Err(PublishError::Closed(_)))));
        let brokers = [scene.broker.clone(), scene.broker.clone()];
        let shutdowns = brokers.map(|broker| spawn(move || broker.shutdown(Duration::ZERO).is_ok()));
        assert_eq!(publishers.map(join), [true; 2]);
        assert!(shutdowns.map(join).contains(&true));
        assert_eq!(sub.recv().map(|delivery| *delivery), Err(RecvError::Closed));
    });
}

#[test]
fn p8_what_is_outstanding_is_settled_while_the_broker_shuts_down() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let held = recv(&sub);
        let acker = spawn(move || held.ack());
        let report = scene.broker.shutdown(Duration::MAX).expect("the first shutdown");
        assert_eq!(join(acker), Ok(()));
        assert_eq!((report.outstanding, report.backlog), (0, 0));
    });
}

#[test]
fn p8_a_delivery_outlives_the_last_handle() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        send(&scene.topic, 7);
        let held = recv(&sub);
        let holder = spawn(move || {
            assert_eq!(*held, 7, "P3");
            held.ack()
        });
        let stream = sub.stream();
        let (one, other) = (spawn(move || drop(scene)), spawn(move || drop(sub)));
        let last = spawn(move || drop(stream));
        let acked = join(holder);
        assert!(acked == Ok(()) || acked == Err(SettleError::Closed), "{acked:?}");
        join(one);
        join(other);
        join(last);
    });
}

#[test]
fn p1_a_broker_stays_open_for_the_handle_that_is_left() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receiver = spawn(move || recv(&sub).ack());
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 7));
        drop(scene);
        join(publisher);
        assert_eq!(join(receiver), Ok(()));
    });
}
