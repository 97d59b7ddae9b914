//! What an ack answers when others are at the same message.

use eventflow::{DeliveryMode, SettleError, TryRecvError};

use crate::{DEADLINE, EXPIRED, Scene, drain, explore, join, recv, send, spawn};

/// One acks, and one lets the deadline pass and takes what is there. Exactly one of them has the message.
fn ack_against_expiry(mode: DeliveryMode) {
    let scene = Scene::new();
    let sub = scene.subscription_with("sub", |options| options.delivery(mode));
    send(&scene.topic, 7);
    let held = recv(&sub);
    let acker = spawn(move || held.ack());
    let clock = scene.clock.clone();
    let rival = spawn(move || {
        clock.advance(DEADLINE);
        sub.try_recv()
    });
    match (join(acker), join(rival)) {
        (Ok(()), Err(TryRecvError::Empty)) => {}
        (Err(SettleError::LeaseExpired { count: 1 }), Ok(delivery)) => assert_eq!(delivery.attempt(), 2),
        both => panic!("both have it, or neither: {both:?}"),
    }
}

#[test]
fn p15_an_ack_and_an_expiry_do_not_both_win_with_exactly_once() {
    explore(|| ack_against_expiry(DeliveryMode::ExactlyOnce));
}

#[test]
fn p8_an_ack_and_an_expiry_do_not_both_win_with_at_least_once() {
    explore(|| ack_against_expiry(DeliveryMode::AtLeastOnce));
}

#[test]
fn p8_an_ack_after_the_deadline_is_refused_by_the_clock_with_exactly_once() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription_with("sub", |options| options.delivery(DeliveryMode::ExactlyOnce));
        send(&scene.topic, 7);
        let held = recv(&sub);
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        let acker = spawn(move || {
            let late = held.message().publish_time() + DEADLINE <= scene.clock.now();
            (late, held.ack())
        });
        let (late, acked) = join(acker);
        join(time);
        assert!(!late || acked == EXPIRED, "P8: taken after the deadline");
        assert_eq!(drain(&sub).len(), usize::from(acked.is_err()));
    });
}

#[test]
fn p8_a_nack_and_an_expiry_spend_one_attempt() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        send(&scene.topic, 7);
        let held = recv(&sub);
        let nacker = spawn(move || held.nack());
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        let nacked = join(nacker);
        join(time);
        assert!(nacked == Ok(()) || nacked == EXPIRED, "{nacked:?}");
        let stats = sub.stats();
        assert_eq!((stats.nacked, stats.leases_expired), if nacked.is_ok() { (1, 0) } else { (0, 1) });
        assert_eq!(recv(&sub).attempt(), 2);
    });
}

#[test]
fn p8_of_a_batch_each_message_is_settled_or_comes_again() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 2, 3]).expect("an open topic");
        let batch = sub.recv_batch(3).expect("an open broker");
        let acker = spawn(move || batch.ack());
        let (clock, rival) = (scene.clock.clone(), sub.clone());
        let rival = spawn(move || {
            clock.advance(DEADLINE);
            rival.try_recv_batch(3).map_or(0, |batch| {
                let len = batch.len() as u64;
                assert_eq!(batch.ack(), Ok(()), "the lease runs");
                len
            })
        });
        let refused = match join(acker) {
            Ok(()) => 0,
            Err(SettleError::LeaseExpired { count }) => count,
            Err(error) => panic!("while acking: {error:?}"),
        };
        assert_eq!(join(rival), refused);
        let stats = sub.stats();
        assert_eq!((stats.backlog, stats.acked), (0, 3));
        crate::assert_forgotten(&scene.topic);
    });
}
