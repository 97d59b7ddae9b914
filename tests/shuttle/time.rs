//! Time that passes while others set its alarms: nobody sleeps through what it brings.

use std::sync::Arc;
use std::time::Duration;

use eventflow::{Message, RecvTimeoutError, RetryPolicy};

use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{DEADLINE, Scene, ack, drain, explore, join, join_all, pass, recv, send, spawn};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn p7_a_receiver_that_waits_gets_what_expires() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        send(&scene.topic, 7);
        let held = recv(&sub);
        let turn = Arc::new(AtomicUsize::new(0));
        let receivers = [sub.clone(), sub].map(|sub| {
            let turn = turn.clone();
            spawn(move || {
                let delivery = recv(&sub);
                assert!(delivery.attempt() >= 2, "P10: the first attempt expired");
                // Not by the attempt: a lease may begin so late that it is over before its receiver has it.
                if turn.fetch_add(1, Ordering::SeqCst) == 0 {
                    drop(delivery);
                } else {
                    let _by_one_of_them = delivery.ack();
                }
            })
        });
        pass(&scene.clock, DEADLINE);
        join_all(receivers);
        drop(held);
    });
}

#[test]
fn p9_a_receiver_that_waits_gets_what_is_retried_later() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.retry(RetryPolicy::fixed(SECOND)));
        send(&scene.topic, 7);
        let held = recv(&sub);
        let receiver = spawn(move || ack(recv(&sub)));
        let nacker = spawn(move || held.nack());
        assert_eq!(join(nacker), Ok(()));
        pass(&scene.clock, SECOND);
        join(receiver);
    });
}

#[test]
fn p9_a_receiver_that_waits_gets_what_was_published_with_a_delay() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receivers = [sub.clone(), sub].map(|sub| spawn(move || ack(recv(&sub))));
        send(&scene.topic, Message::new(1).deliver_after(SECOND));
        send(&scene.topic, 2);
        pass(&scene.clock, SECOND);
        join_all(receivers);
    });
}

#[test]
fn p23_a_timeout_passes_with_the_clock_or_there_is_a_message() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receiver = sub.clone();
        let done = Arc::new(AtomicBool::new(false));
        let receiving = done.clone();
        let receiver = spawn(move || {
            let received = receiver.recv_timeout(SECOND);
            receiving.store(true, Ordering::SeqCst);
            match received {
                Ok(delivery) => {
                    ack(delivery);
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(error) => panic!("while receiving: {error:?}"),
            }
        });
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 7));
        // Who begins to wait late waits until later.
        while !done.load(Ordering::SeqCst) {
            scene.clock.advance(SECOND);
            shuttle::thread::yield_now();
        }
        join(publisher);
        let received = join(receiver);
        assert_eq!(drain(&sub), if received { vec![] } else { vec![7] }, "P9: received, or still there");
    });
}

#[test]
fn p7_time_that_passes_while_a_lease_begins_ends_it_too() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("an open topic");
        // Two messages for three, none of whom settles. Of the two who get one at once, at least one lets time pass: then nobody waits in vain.
        let still = sub.clone();
        let still = spawn(move || recv(&still));
        let holders = [sub.clone(), sub].map(|sub| {
            let clock = scene.clock.clone();
            spawn(move || {
                let delivery = recv(&sub);
                pass(&clock, DEADLINE);
                delivery
            })
        });
        let _held = (join(still), holders.map(join));
    });
}
