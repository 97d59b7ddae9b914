//! Retry policies, and the end of the retries.

use std::time::Duration;

use eventflow::{DeadLetter, DeliveryMode, ManualClock, RetryPolicy, Subscription, TryRecvError};

use crate::support::{
    DEADLINE, Desk, NANO, SECOND, assert_empty, desk_with, drain, drain_with, manual, take,
};

const STEP: Duration = Duration::from_millis(1);

/// How long, in steps of a millisecond, until a message is there; it is given with its delivery released.
fn wait(clock: &ManualClock, sub: &Subscription<u64>) -> Duration {
    let mut waited = Duration::ZERO;
    loop {
        match sub.try_recv() {
            Ok(delivery) => {
                delivery.release().unwrap();
                return waited;
            }
            Err(TryRecvError::Empty) => {
                clock.advance(STEP);
                waited += STEP;
                assert!(waited < Duration::from_secs(600), "never came back");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn p09_a_fixed_policy_brings_a_nacked_message_back_after_its_delay() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(5 * SECOND)));
    topic.publish(1).unwrap();
    for attempt in 1..=4 {
        let delivery = take(&sub);
        assert_eq!(delivery.attempt(), attempt);
        clock.advance(SECOND);
        match attempt {
            1 => delivery.nack().unwrap(),
            2 => drop(delivery),
            _ => delivery.extend(Duration::ZERO).unwrap(),
        }
        assert_eq!((sub.stats().delayed, sub.stats().outstanding, sub.stats().backlog), (1, 0, 1));
        clock.advance(5 * SECOND - NANO);
        assert_empty(&sub);
        clock.advance(NANO);
    }
    assert_eq!(drain(&sub), [1]);
}

#[test]
fn p09_after_an_expiry_the_delay_is_counted_from_the_expiry_not_from_when_it_was_noticed() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(5 * SECOND)));
    topic.publish_all([1, 2]).unwrap();
    std::mem::forget(take(&sub));
    clock.advance(SECOND);
    std::mem::forget(take(&sub));
    // One step over both expiries and the first return: 10 s + 5 s, and 11 s + 5 s.
    clock.advance(15 * SECOND - SECOND - NANO);
    assert_eq!((sub.stats().leases_expired, sub.stats().delayed), (2, 2));
    assert_empty(&sub);
    clock.advance(NANO);
    assert_eq!(drain(&sub), [1]);
    clock.advance(SECOND - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    assert_eq!(drain(&sub), [2]);
}

#[test]
fn p09_the_others_do_not_wait_for_a_message_that_awaits_its_retry() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(SECOND)));
    topic.publish_all(0..5).unwrap();
    take(&sub).nack().unwrap();
    assert_eq!(drain(&sub), [1, 2, 3, 4]);
    topic.publish(5).unwrap();
    assert_eq!(drain(&sub), [5]);
    clock.advance(SECOND);
    assert_eq!(drain(&sub), [0]);
}

#[test]
fn an_exponential_delay_lies_between_min_and_the_doubling_limit() {
    let (min, max) = (Duration::from_millis(100), Duration::from_millis(700));
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::exponential(min, max)));
    topic.publish_all(0..60).unwrap();
    for limit in [100, 200, 400, 700, 700, 700].map(Duration::from_millis) {
        sub.try_recv_batch(60).unwrap().nack().unwrap();
        clock.advance(min - NANO);
        assert_empty(&sub);
        // Step by step to the limit: how many are back by then.
        let mut back = vec![];
        for _ in 0..20 {
            back.push(60 - sub.stats().delayed);
            clock.advance((limit - min) / 20);
        }
        clock.advance(NANO);
        assert_eq!((sub.stats().delayed, sub.stats().backlog), (0, 60), "all are back after {limit:?}");
        if limit > min {
            back.dedup();
            assert!(back.len() > 5, "spread out, so that what failed together does not come back together");
            assert!(back[1] < 30 && back[back.len() - 1] > 30, "and over the whole range: {back:?}");
        }
    }
}

#[test]
fn the_first_exponential_delay_is_min_and_a_release_or_another_message_does_not_count() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::exponential(SECOND, 1_000 * SECOND)));
    for n in 0..5 {
        topic.publish(n).unwrap();
        take(&sub).release().unwrap();
        take(&sub).nack().unwrap();
        clock.advance(SECOND - NANO);
        assert_empty(&sub);
        clock.advance(NANO);
        assert_eq!(drain(&sub), [n]);
    }
}

#[test]
fn an_expiry_counts_for_the_exponential_delay_as_a_nack_does() {
    let policy = RetryPolicy::exponential(SECOND, 100 * SECOND);
    let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.retry(policy));
    topic.publish(1).unwrap();
    std::mem::forget(take(&sub));
    clock.advance(DEADLINE + SECOND - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    std::mem::forget(take(&sub));
    clock.advance(DEADLINE);
    let waited = wait(&clock, &sub);
    assert!(waited >= SECOND && waited <= 2 * SECOND + STEP, "{waited:?}");
}

#[test]
fn huge_retry_delays_are_clamped() {
    let policies = [
        RetryPolicy::fixed(Duration::MAX),
        RetryPolicy::exponential(Duration::MAX, Duration::MAX),
        RetryPolicy::exponential(SECOND, Duration::MAX),
        // Two hundred doublings of the least delay there is.
        RetryPolicy::exponential(NANO, NANO),
    ];
    for policy in policies {
        let (broker, clock) = manual();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").retry(policy).create().unwrap();
        topic.publish(1).unwrap();
        for _ in 0..200 {
            if let Ok(delivery) = sub.try_recv() {
                delivery.nack().unwrap();
            }
            clock.advance(Duration::from_secs(30 * 24 * 3600));
        }
        assert_eq!(sub.stats().backlog, 1, "{policy:?}");
    }
}

#[test]
fn p10_after_its_last_attempt_a_message_is_discarded_and_counted() {
    for attempts in [1, 2, 5] {
        let Desk { clock, topic, sub, .. } =
            desk_with::<u64>(|options| options.dead_letter(DeadLetter::discard().after(attempts)));
        topic.publish(1).unwrap();
        for attempt in 1..=attempts {
            let delivery = take(&sub);
            assert_eq!((*delivery, delivery.attempt()), (1, attempt));
            delivery.release().unwrap();
            let delivery = take(&sub);
            assert_eq!(delivery.attempt(), attempt, "a release spends nothing");
            match attempt % 3 {
                0 => delivery.nack().unwrap(),
                1 => drop(delivery),
                _ => {
                    std::mem::forget(delivery);
                    clock.advance(DEADLINE);
                }
            }
        }
        assert_empty(&sub);
        assert_eq!((sub.stats().discarded, sub.stats().dead_lettered, sub.stats().backlog), (1, 0, 0));
        topic.publish(2).unwrap();
        assert_eq!(drain(&sub), [2]);
    }
}

#[test]
fn five_attempts_are_given_unless_told_otherwise() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.dead_letter(DeadLetter::discard()));
    topic.publish(1).unwrap();
    let attempts: Vec<u32> =
        std::iter::from_fn(|| sub.try_recv().ok().map(|delivery| delivery.attempt())).collect();
    assert_eq!(attempts, [1, 2, 3, 4, 5]);
    assert_eq!((sub.stats().discarded, sub.stats().backlog), (1, 0));
}

#[test]
fn p10_a_release_of_the_last_attempt_gives_it_again() {
    let Desk { topic, sub, .. } =
        desk_with::<u64>(|options| options.dead_letter(DeadLetter::discard().after(1)));
    topic.publish(1).unwrap();
    for _ in 0..5 {
        let delivery = take(&sub);
        assert_eq!(delivery.attempt(), 1);
        delivery.release().unwrap();
    }
    assert_eq!(drain(&sub), [1]);
    assert_eq!(sub.stats().discarded, 0);
}

#[test]
fn p08_a_late_ack_cannot_bring_a_discarded_message_back() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.dead_letter(DeadLetter::discard().after(1)));
    topic.publish(1).unwrap();
    let held = take(&sub);
    clock.advance(DEADLINE);
    assert_eq!((sub.stats().discarded, sub.stats().backlog), (1, 0));
    assert!(held.ack().is_err(), "settled, but not by you");
    assert_eq!((sub.stats().acked, sub.stats().discarded), (0, 1));
}

#[test]
fn an_unsettled_message_expires_from_its_subscription_at_its_age_and_not_before() {
    let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.expire_after(60 * SECOND));
    let other = topic.subscription("other").create().unwrap();
    topic.publish(1).unwrap();
    clock.advance(SECOND);
    topic.publish(2).unwrap();
    clock.advance(59 * SECOND - NANO);
    take(&sub).nack().unwrap();
    assert_eq!((sub.stats().messages_expired, sub.stats().backlog), (0, 2));
    clock.advance(NANO);
    assert_eq!((sub.stats().messages_expired, sub.stats().backlog), (1, 1));
    assert_eq!(drain(&sub), [2]);
    clock.advance(60 * SECOND);
    assert_eq!(
        (sub.stats().messages_expired, sub.stats().acked),
        (1, 1),
        "a settled message does not expire"
    );
    assert_eq!(drain(&other), [1, 2], "its neighbour keeps what it has");
}

#[test]
fn what_is_delayed_or_awaits_its_retry_expires_too() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.expire_after(60 * SECOND).retry(RetryPolicy::fixed(100 * SECOND)));
    topic.publish(1).unwrap();
    topic.publish(eventflow::Message::new(2).deliver_after(90 * SECOND)).unwrap();
    take(&sub).nack().unwrap();
    clock.advance(60 * SECOND - NANO);
    assert_eq!((sub.stats().delayed, sub.stats().backlog), (2, 2));
    clock.advance(NANO);
    let stats = sub.stats();
    assert_eq!((stats.messages_expired, stats.delayed, stats.backlog), (2, 0, 0));
    clock.advance(100 * SECOND);
    assert_empty(&sub);
}

#[test]
fn retries_go_on_for_ever_without_a_dead_letter_in_exactly_once_mode_too() {
    let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| {
        options.delivery(DeliveryMode::ExactlyOnce).retry(RetryPolicy::fixed(SECOND))
    });
    topic.publish(1).unwrap();
    for attempt in 1..=100 {
        assert_eq!(take(&sub).attempt(), attempt);
        assert_empty(&sub);
        clock.advance(SECOND);
    }
    assert_eq!(drain_with(&sub, |delivery| delivery.attempt()), [101]);
}
