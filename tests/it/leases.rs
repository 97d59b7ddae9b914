//! Leases: how long they last, what ends them, what a late settlement is worth, and what an attempt is.

use std::time::Duration;

use eventflow::{Batch, Delivery, DeliveryMode, RetryPolicy, SettleError, Subscription};

use crate::support::{
    Broker, DEADLINE, Desk, NANO, PATIENCE, SECOND, ask, assert_empty, desk, desk_with, drain, panics, take,
    within,
};

const EXPIRED: SettleError = SettleError::LeaseExpired { count: 1 };

#[test]
fn p07_a_lease_ends_at_its_deadline_and_not_a_nanosecond_before() {
    for deadline in [Duration::from_millis(1), SECOND, DEADLINE, Duration::from_secs(24 * 3600)] {
        let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.ack_deadline(deadline));
        topic.publish(1).unwrap();
        let held = take(&sub);
        clock.advance(deadline - NANO);
        assert_empty(&sub);
        assert_eq!((sub.stats().outstanding, sub.stats().leases_expired), (1, 0));
        clock.advance(NANO);
        assert_eq!((sub.stats().outstanding, sub.stats().leases_expired), (0, 1));
        let again = take(&sub);
        assert_eq!((*again, again.attempt()), (1, 2));
        drop(held);
        assert_empty(&sub);
        again.ack().unwrap();
    }
}

#[test]
fn p07_the_default_deadline_is_ten_seconds_counted_from_the_hand_out() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    clock.advance(Duration::from_secs(3600));
    let _held = take(&sub);
    clock.advance(DEADLINE - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    assert_eq!(take(&sub).attempt(), 2);
}

#[test]
fn p07_a_forgotten_delivery_keeps_its_message_until_the_deadline_and_no_longer() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..100).unwrap();
    for _ in 0..50 {
        std::mem::forget(take(&sub));
    }
    std::mem::forget(sub.try_recv_batch(50).unwrap());
    assert_eq!(sub.stats().outstanding, 100);
    clock.advance(DEADLINE - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    let mut seen = drain(&sub);
    seen.sort();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    assert_eq!(sub.stats().leases_expired, 100);
}

#[test]
fn p07_a_thread_that_panics_or_dies_gives_its_message_back() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let reader = sub.clone();
    let thread = std::thread::spawn(move || {
        let _held = take(&reader);
        panic!("with a delivery in hand");
    });
    assert!(thread.join().is_err());
    let again = take(&sub);
    assert_eq!(again.attempt(), 2, "a panic drops the delivery, which is a nack");
    let thread = std::thread::spawn(move || std::mem::forget(again));
    thread.join().unwrap();
    assert_empty(&sub);
    clock.advance(DEADLINE);
    assert_eq!(take(&sub).attempt(), 3);
}

#[test]
fn p07_a_dropped_subscriber_leaves_its_leases_to_their_deadline() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all([1, 2]).unwrap();
    let clone = sub.clone();
    let held = take(&clone);
    drop(clone);
    assert_eq!(*take(&sub), 2, "and now 2 is dropped, too");
    held.extend(2 * DEADLINE).unwrap();
    clock.advance(2 * DEADLINE - NANO);
    assert_eq!(drain(&sub), [2]);
    held.ack().unwrap();
    clock.advance(DEADLINE);
    assert_empty(&sub);
}

#[test]
fn p07_each_lease_has_its_own_deadline() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    for _ in 0..5 {
        std::mem::forget(take(&sub));
        clock.advance(SECOND);
    }
    // Now: 5 s. The n-th lease began at n s.
    clock.advance(5 * SECOND - NANO);
    assert_empty(&sub);
    for n in 0..5 {
        clock.advance(if n == 0 { NANO } else { SECOND });
        let again = take(&sub);
        assert_eq!(*again, n);
        assert_empty(&sub);
        again.ack().unwrap();
    }
}

#[test]
fn p07_one_large_step_of_time_ends_every_lease_in_it() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..200).unwrap();
    for _ in 0..200 {
        std::mem::forget(take(&sub));
        clock.advance(Duration::from_millis(1));
    }
    clock.advance(Duration::from_secs(365 * 24 * 3600));
    assert_eq!(sub.stats().leases_expired, 200);
    assert_eq!(drain(&sub).len(), 200);
}

#[test]
fn p07_on_the_system_clock_a_waiting_receiver_is_given_what_expired() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").ack_deadline(Duration::from_millis(5)).create().unwrap();
        topic.publish(1).unwrap();
        for attempt in 1..=10 {
            let delivery = sub.recv().unwrap();
            assert_eq!(delivery.attempt(), attempt);
            std::mem::forget(delivery);
        }
        let late = sub.recv().unwrap();
        assert_eq!(sub.recv().unwrap().attempt(), 12, "also while the old handle is alive");
        drop(late);
    });
}

#[test]
fn p08_an_ack_in_time_settles_for_good() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let held = take(&sub);
    clock.advance(DEADLINE - NANO);
    assert_eq!(held.ack(), Ok(()));
    clock.advance(10 * DEADLINE);
    assert_empty(&sub);
    let stats = sub.stats();
    assert_eq!((stats.acked, stats.backlog, stats.leases_expired), (1, 0, 0));
}

#[test]
fn p08_a_late_ack_is_taken_while_nobody_else_holds_the_message() {
    for late in [Duration::ZERO, NANO, 100 * DEADLINE] {
        let Desk { clock, topic, sub, .. } = desk::<u64>();
        topic.publish(1).unwrap();
        let held = take(&sub);
        clock.advance(DEADLINE + late);
        assert_eq!(held.ack(), Ok(()), "late by {late:?}");
        assert_empty(&sub);
        assert_eq!((sub.stats().acked, sub.stats().backlog), (1, 0));
    }
}

#[test]
fn p08_a_late_ack_is_refused_when_another_holds_or_has_settled_the_message() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all([1, 2]).unwrap();
    let (first, second) = (take(&sub), take(&sub));
    clock.advance(DEADLINE);
    let (one, two) = (take(&sub), take(&sub));
    assert_eq!((*one, *two), (1, 2));
    assert_eq!(first.ack(), Err(EXPIRED));
    two.ack().unwrap();
    assert_eq!(second.ack(), Err(EXPIRED), "settled, but not by you");
    assert_eq!(sub.stats().outstanding, 1, "the lease of the other still runs");
    assert_empty(&sub);
    one.ack().unwrap();
    assert_eq!((sub.stats().acked, sub.stats().backlog), (2, 0));
}

#[test]
fn p08_a_late_ack_is_taken_when_the_other_lease_is_over_too() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let first = take(&sub);
    clock.advance(DEADLINE);
    take(&sub).nack().unwrap();
    assert_eq!(first.ack(), Ok(()), "unsettled, and leased to nobody");
    assert_empty(&sub);
}

#[test]
fn p08_a_late_ack_is_taken_while_the_message_waits_for_its_retry() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(Duration::from_secs(60))));
    topic.publish(1).unwrap();
    let held = take(&sub);
    clock.advance(DEADLINE + SECOND);
    assert_eq!(sub.stats().delayed, 1);
    assert_eq!(held.ack(), Ok(()));
    clock.advance(Duration::from_secs(60));
    assert_empty(&sub);
    assert_eq!((sub.stats().delayed, sub.stats().backlog), (0, 0));
}

#[test]
fn p08_an_ack_after_an_extend_of_zero_is_a_late_ack() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all([1, 2]).unwrap();
    let (one, two) = (take(&sub), take(&sub));
    one.extend(Duration::ZERO).unwrap();
    two.extend(Duration::ZERO).unwrap();
    assert_eq!(one.ack(), Ok(()));
    let again = take(&sub);
    assert_eq!((*again, again.attempt()), (2, 2));
    assert_eq!(two.ack(), Err(EXPIRED));
    again.ack().unwrap();
}

#[test]
fn p08_in_exactly_once_mode_a_late_ack_is_refused_by_the_clock() {
    let exactly = || desk_with::<u64>(|options| options.delivery(DeliveryMode::ExactlyOnce));
    let Desk { clock, topic, sub, .. } = exactly();
    topic.publish_all([1, 2]).unwrap();
    let (in_time, late) = (take(&sub), take(&sub));
    clock.advance(DEADLINE - NANO);
    assert_eq!(in_time.ack(), Ok(()));
    clock.advance(NANO);
    assert_eq!(late.ack(), Err(EXPIRED));
    assert_eq!((sub.stats().acked, sub.stats().backlog), (1, 1));
    let again = take(&sub);
    assert_eq!((*again, again.attempt()), (2, 2));
    again.ack().unwrap();
    let Desk { topic, sub, .. } = exactly();
    topic.publish(1).unwrap();
    let held = take(&sub);
    held.extend(Duration::ZERO).unwrap();
    assert_eq!(held.ack(), Err(EXPIRED), "its own nack ended the lease");
    assert_eq!(drain(&sub), [1]);
}

#[test]
fn p08_a_stale_nack_release_reject_or_extend_changes_nothing() {
    for mode in [DeliveryMode::AtLeastOnce, DeliveryMode::ExactlyOnce] {
        let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.delivery(mode));
        topic.publish_all(0..6).unwrap();
        let stale: Vec<_> = (0..6).map(|_| take(&sub)).collect();
        clock.advance(DEADLINE);
        let held: Vec<_> = (0..6).map(|_| take(&sub)).collect();
        let before = sub.stats();
        settle_all(stale);
        let after = sub.stats();
        assert_eq!(
            (after.nacked, after.released, after.discarded, after.outstanding),
            (before.nacked, before.released, before.discarded, 6)
        );
        assert_empty(&sub);
        clock.advance(DEADLINE - NANO);
        assert_empty(&sub);
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    }
}

/// Each stale delivery in another way; each way says so.
fn settle_all(stale: Vec<Delivery<u64>>) {
    let mut stale = stale.into_iter();
    let mut next = || stale.next().unwrap();
    assert_eq!(next().nack(), Err(EXPIRED));
    assert_eq!(next().nack_after(SECOND), Err(EXPIRED));
    assert_eq!(next().release(), Err(EXPIRED));
    assert_eq!(next().reject("stale"), Err(EXPIRED));
    let extended = next();
    assert_eq!(extended.extend(100 * DEADLINE), Err(EXPIRED));
    assert_eq!(extended.extend(Duration::ZERO), Err(EXPIRED));
    drop((extended, next()));
}

#[test]
fn p08_a_stale_settlement_changes_nothing_also_when_nobody_has_taken_the_message_since() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..6).unwrap();
    let stale: Vec<_> = (0..6).map(|_| take(&sub)).collect();
    clock.advance(DEADLINE);
    settle_all(stale);
    assert_eq!((sub.stats().nacked, sub.stats().released, sub.stats().discarded), (0, 0, 0));
    for _ in 0..6 {
        let again = take(&sub);
        assert_eq!(again.attempt(), 2, "a stale nack spends no further attempt");
        again.ack().unwrap();
    }
}

#[test]
fn p08_a_stale_handle_of_the_same_message_cannot_end_the_new_lease_of_its_own_subscriber() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let mut stale = Vec::new();
    for _ in 0..5 {
        stale.push(take(&sub));
        clock.advance(DEADLINE);
    }
    let current = take(&sub);
    for old in stale {
        assert_eq!(old.nack(), Err(EXPIRED));
        assert_empty(&sub);
    }
    assert_eq!(current.attempt(), 6);
    current.ack().unwrap();
}

#[test]
fn p08_of_two_racing_acks_of_one_message_exactly_one_is_told_ok() {
    within(PATIENCE, || {
        for _ in 0..300 {
            let Desk { clock, topic, sub, .. } = desk::<u64>();
            topic.publish(1).unwrap();
            let first = take(&sub);
            clock.advance(DEADLINE);
            let late = ask(move || first.ack());
            let second = ask({
                let sub = sub.clone();
                move || sub.try_recv().map(Delivery::ack)
            });
            let (late, second) = (late.get(), second.get());
            let settled = [late == Ok(()), matches!(second, Ok(Ok(())))].into_iter().filter(|ok| *ok).count();
            assert_eq!(settled, 1, "{late:?} {second:?}");
            assert_eq!((sub.stats().acked, sub.stats().backlog), (1, 0));
            assert_empty(&sub);
        }
    });
}

#[test]
fn extend_counts_from_now_and_can_shorten() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let held = take(&sub);
    for _ in 0..3 {
        clock.advance(DEADLINE - NANO);
        held.extend(DEADLINE).unwrap();
    }
    clock.advance(SECOND);
    held.extend(SECOND).unwrap();
    clock.advance(SECOND - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    let again = take(&sub);
    assert_eq!(again.attempt(), 2, "extending spends no attempt");
    assert_eq!(held.extend(SECOND), Err(EXPIRED));
}

#[test]
fn a_huge_extension_is_clamped() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let held = take(&sub);
    held.extend(Duration::MAX).unwrap();
    clock.advance(Duration::from_secs(24 * 3600) - NANO);
    assert_empty(&sub);
    held.extend(Duration::MAX).unwrap();
    held.ack().unwrap();
}

#[test]
fn p10_an_attempt_is_a_hand_out_that_was_not_released() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    let other = topic.subscription("other").create().unwrap();
    topic.publish(1).unwrap();
    let attempt = |expected: u32| {
        let delivery = take(&sub);
        assert_eq!(delivery.attempt(), expected);
        delivery
    };
    attempt(1).nack().unwrap();
    attempt(2).release().unwrap();
    attempt(2).release().unwrap();
    drop(attempt(2));
    std::mem::forget(attempt(3));
    clock.advance(DEADLINE);
    attempt(4).extend(Duration::ZERO).unwrap();
    attempt(5).nack_after(SECOND).unwrap();
    clock.advance(SECOND);
    panics(|| {
        let _held = attempt(6);
        panic!("with a delivery in hand");
    });
    attempt(7).ack().unwrap();
    assert_eq!(take(&other).attempt(), 1, "each subscription counts for itself");
}

#[test]
fn p10_a_released_first_hand_out_is_a_first_hand_out_again_also_in_batches() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..10).unwrap();
    let receive = |sub: &Subscription<u64>| -> Batch<u64> { sub.try_recv_batch(10).unwrap() };
    receive(&sub).release().unwrap();
    let batch = receive(&sub);
    assert!(batch.into_iter().all(|delivery| delivery.attempt() == 1 && delivery.ack().is_ok()));
    assert_eq!(sub.stats().released, 10);
}

#[test]
fn p09_nothing_is_lost_by_a_release_that_comes_too_late() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let held = take(&sub);
    clock.advance(DEADLINE);
    assert_eq!(held.release(), Err(EXPIRED));
    let again = take(&sub);
    assert_eq!(again.attempt(), 2, "the expired hand-out was an attempt");
    again.ack().unwrap();
}
