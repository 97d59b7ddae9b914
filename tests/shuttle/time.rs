//! Time that passes while others set its alarms: nobody sleeps through what it brings.

use std::time::Duration;

use eventflow::{Delivery, Message, RecvTimeoutError, RetryPolicy, Subscription};

use crate::{DEADLINE, Scene, ack, explore, join, join_all, recv, send, spawn};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn p7_a_receiver_that_waits_gets_what_expires() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        send(&scene.topic, 7);
        let held = recv(&sub);
        let receivers = [sub.clone(), sub].map(|sub| {
            spawn(move || {
                let delivery = recv(&sub);
                let attempt = delivery.attempt();
                // The other one gets it too, when this lease is not settled.
                if attempt == 2 {
                    drop(delivery)
                } else {
                    ack(delivery)
                }
                attempt
            })
        });
        scene.clock.advance(DEADLINE);
        let mut attempts = receivers.map(join);
        attempts.sort_unstable();
        assert_eq!(attempts, [2, 3]);
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
        scene.clock.advance(SECOND);
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
        scene.clock.advance(SECOND);
        join_all(receivers);
    });
}

#[test]
fn p23_a_timeout_passes_with_the_clock_or_there_is_a_message() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let receiver = sub.clone();
        let receiver = spawn(move || match receiver.recv_timeout(SECOND) {
            Ok(delivery) => {
                ack(delivery);
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(error) => panic!("while receiving: {error:?}"),
        });
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 7));
        // Twice: a receiver that comes after the first has until the second.
        let clock = scene.clock.clone();
        let time = spawn(move || (0..2).for_each(|_| clock.advance(SECOND)));
        join(publisher);
        join(time);
        // Who came after both waits for as long as nothing is published.
        let received = sub.try_recv().ok().map(ack).is_none();
        scene.clock.advance(SECOND);
        assert_eq!(join(receiver), received);
    });
}

/// What a subscriber does that dies with its delivery: the time passes while it holds it.
fn hold_on(scene_clock: &eventflow::ManualClock, sub: &Subscription<u64>) -> Delivery<u64> {
    let delivery = recv(sub);
    scene_clock.advance(DEADLINE);
    delivery
}

#[test]
fn p7_time_that_passes_while_a_lease_begins_ends_it_too() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2]).expect("an open topic");
        // Two messages for three, none of which settles. Of the two who get one at once at least one lets time pass, and then nobody waits in vain.
        let still = sub.clone();
        let still = spawn(move || recv(&still));
        let holders = [sub.clone(), sub].map(|sub| {
            let clock = scene.clock.clone();
            spawn(move || hold_on(&clock, &sub))
        });
        let _held = (join(still), holders.map(join));
    });
}
