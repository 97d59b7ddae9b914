//! Who gets what, and who is woken for it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use eventflow::{Delivery, DeliveryMode, Message};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{Scene, ack, drain, explore, join, join_all, recv, send, spawn};

#[test]
fn p9_a_receiver_that_is_about_to_sleep_gets_what_is_published() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receiver = spawn(move || {
            for event in [1, 2] {
                let delivery = recv(&sub);
                assert_eq!((*delivery, delivery.attempt()), (event, 1), "P4: in publish order");
                ack(delivery);
            }
        });
        send(&scene.topic, 1);
        send(&scene.topic, 2);
        join(receiver);
    });
}

#[test]
fn p9_each_of_two_receivers_gets_one_of_two_messages() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receivers = [sub.clone(), sub].map(|sub| {
            spawn(move || {
                let delivery = recv(&sub);
                let event = *delivery;
                ack(delivery);
                event
            })
        });
        let publishers = [1, 2].map(|event| {
            let topic = scene.topic.clone();
            spawn(move || send(&topic, event))
        });
        join_all(publishers);
        let mut events = receivers.map(join);
        events.sort_unstable();
        assert_eq!(events, [1, 2]);
    });
}

/// Two receivers of one message; who is first gives it back, as `give_back` does, and only then the other has it.
fn one_message_for_two(give_back: fn(Delivery<u64>), second_attempt: u32) {
    let scene = Scene::new();
    let sub = scene.subscription("sub");
    let (held, turn) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let receivers = [sub.clone(), sub.clone()].map(|sub| {
        let (held, turn) = (held.clone(), turn.clone());
        spawn(move || {
            let delivery = recv(&sub);
            assert!(!held.swap(true, Ordering::SeqCst), "P6: two hold the message");
            let first = turn.fetch_add(1, Ordering::SeqCst) == 0;
            assert_eq!(delivery.attempt(), if first { 1 } else { second_attempt }, "P10");
            held.store(false, Ordering::SeqCst);
            if first { give_back(delivery) } else { ack(delivery) }
        })
    });
    send(&scene.topic, 7);
    join_all(receivers);
    assert_eq!(drain(&sub), [], "P8: an acked message does not come again");
}

#[test]
fn p6_p9_a_nacked_message_goes_to_the_receiver_that_waits() {
    explore(|| one_message_for_two(|delivery| delivery.nack().expect("the lease runs"), 2));
}

#[test]
fn p6_p9_a_dropped_message_goes_to_the_receiver_that_waits() {
    explore(|| one_message_for_two(drop, 2));
}

#[test]
fn p6_p9_a_released_message_goes_to_the_receiver_that_waits() {
    explore(|| one_message_for_two(|delivery| delivery.release().expect("the lease runs"), 1));
}

#[test]
fn p9_an_ack_makes_room_for_the_receiver_that_waits_behind_max_outstanding() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.max_outstanding(1));
        scene.topic.publish_all([1, 2, 3]).expect("an open topic");
        let held = Arc::new(AtomicBool::new(false));
        let receivers = [sub.clone(), sub.clone(), sub].map(|sub| {
            let held = held.clone();
            spawn(move || {
                let delivery = recv(&sub);
                assert!(!held.swap(true, Ordering::SeqCst), "one at a time");
                held.store(false, Ordering::SeqCst);
                ack(delivery);
            })
        });
        join_all(receivers);
    });
}

#[test]
fn p9_what_waits_behind_a_pause_is_received_when_it_ends() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        sub.pause().expect("an open broker");
        let receivers = [sub.clone(), sub.clone()].map(|sub| spawn(move || ack(recv(&sub))));
        let topic = scene.topic.clone();
        let publisher = spawn(move || topic.publish_all([1, 2]).expect("an open topic").len());
        sub.resume().expect("an open broker");
        join(publisher);
        join_all(receivers);
    });
}

#[test]
fn p9_a_dropped_future_passes_its_wake_on() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let other = sub.clone();
        let fickle = spawn(move || {
            let mut future = pin!(other.recv_async());
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // Dropped, whether it was given the message (then that is nacked) or a wake.
            drop(polled);
        });
        let receiver = spawn(move || ack(recv(&sub)));
        send(&scene.topic, 7);
        join(fickle);
        join(receiver);
    });
}

#[test]
fn p9_a_future_that_waits_is_woken() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receivers = [sub.clone(), sub].map(|sub| {
            spawn(move || {
                let delivery = shuttle::future::block_on(sub.recv_async()).expect("an open broker");
                ack(delivery);
            })
        });
        send(&scene.topic, 1);
        send(&scene.topic, 2);
        join_all(receivers);
    });
}

#[test]
fn p9_a_token_says_that_there_is_something() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let ready = sub.ready();
        let publishers = [1, 2].map(|event| {
            let topic = scene.topic.clone();
            spawn(move || send(&topic, event))
        });
        let receiver = spawn(move || {
            let mut received = 0;
            while received < 2 {
                // A token that never comes keeps us here, and shuttle counts.
                if ready.try_recv().is_ok() {
                    received += drain(&sub).len();
                } else {
                    shuttle::thread::yield_now();
                }
            }
        });
        join_all(publishers);
        join(receiver);
    });
}

#[test]
fn p5_a_batch_is_seen_whole() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let publishers = [[1, 2], [3, 4]].map(|pair| {
            let topic = scene.topic.clone();
            spawn(move || topic.publish_all(pair).expect("an open topic").len())
        });
        let receiver = spawn(move || {
            let mut events = Vec::new();
            while events.len() < 4 {
                let batch = sub.recv_batch(10).expect("an open broker");
                assert_eq!(batch.len() % 2, 0, "P5: a part of a batch");
                events.extend(batch.iter().map(|message| *message));
                assert_eq!(batch.ack(), Ok(()));
            }
            events
        });
        join_all(publishers);
        let events = join(receiver);
        assert!(events == [1, 2, 3, 4] || events == [3, 4, 1, 2], "P4: a batch is one stretch: {events:?}");
    });
}

#[test]
fn p12_messages_of_a_key_are_out_one_at_a_time_and_in_order() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.ordered());
        let (held, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let receivers = [sub.clone(), sub.clone(), sub].map(|sub| {
            let (held, last) = (held.clone(), last.clone());
            spawn(move || {
                let delivery = recv(&sub);
                assert!(!held.swap(true, Ordering::SeqCst), "P12: two of a key are out");
                assert_eq!(
                    last.swap(*delivery as usize, Ordering::SeqCst) + 1,
                    *delivery as usize,
                    "P12: the order"
                );
                held.store(false, Ordering::SeqCst);
                ack(delivery);
            })
        });
        for event in 1..=3 {
            send(&scene.topic, Message::new(event).ordering_key("key"));
        }
        join_all(receivers);
    });
}

#[test]
fn p1_what_a_filter_takes_reaches_the_receivers_that_wait() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.filter_fn(|message| *message % 2 == 0));
        let receivers = [sub.clone(), sub].map(|sub| {
            spawn(move || {
                let delivery = recv(&sub);
                assert_eq!(*delivery % 2, 0, "the filter refused it");
                ack(delivery);
            })
        });
        for event in 1..=4 {
            send(&scene.topic, event);
        }
        join_all(receivers);
    });
}

#[test]
fn p13_at_most_once_gives_each_message_once() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.delivery(DeliveryMode::AtMostOnce));
        let receivers = [sub.clone(), sub.clone()].map(|sub| spawn(move || *recv(&sub)));
        send(&scene.topic, 1);
        send(&scene.topic, 2);
        let mut events = receivers.map(join);
        events.sort_unstable();
        assert_eq!(events, [1, 2]);
        assert_eq!(drain(&sub), [], "P13: it came twice");
    });
}
