//! What may change later: `Topic::update` and `Subscription::update`.

use std::time::Duration;

use eventflow::{
    Capacity, CreateError, DeadLetter, DedupWindow, DeliveryMode, Message, Overflow, PublishError, Retention,
    RetryPolicy, Start, UpdateError,
};

use crate::support::{
    Counted, DEADLINE, Drops, NANO, SECOND, ask, assert_empty, desk, desk_with, drain, drain_with, manual,
    take,
};

#[track_caller]
fn assert_invalid(outcome: Result<(), UpdateError>, name: &str) {
    match outcome {
        Err(UpdateError::InvalidOption { option, reason, .. }) => {
            assert_eq!(option, name, "{reason}");
            assert!(!reason.is_empty());
        }
        other => panic!("expected InvalidOption of {name}, found {other:?}"),
    }
}

#[test]
fn an_update_without_any_option_changes_nothing() {
    let desk = desk::<u64>();
    desk.topic.publish(1u64).unwrap();
    let held = take(&desk.sub);
    desk.topic.update().apply().unwrap();
    desk.sub.update().apply().unwrap();
    held.ack().unwrap();
}

#[test]
fn a_new_ack_deadline_holds_for_leases_that_begin_after_it() {
    let desk = desk::<u64>();
    desk.topic.publish_all([1u64, 2]).unwrap();
    let old = take(&desk.sub);
    desk.sub.update().ack_deadline(SECOND).apply().unwrap();
    let new = take(&desk.sub);
    desk.clock.advance(SECOND - NANO);
    assert_eq!(desk.sub.stats().outstanding, 2);
    desk.clock.advance(NANO);
    assert_eq!(desk.sub.stats().outstanding, 1, "the new lease ended, the old one runs");
    assert_eq!(*take(&desk.sub), 2);
    desk.clock.advance(DEADLINE - SECOND - NANO);
    old.ack().unwrap();
    drop(new);
}

#[test]
fn a_new_retry_policy_holds_for_failures_that_come_after_it() {
    let desk = desk::<u64>();
    desk.topic.publish(1u64).unwrap();
    take(&desk.sub).nack().unwrap();
    let held = take(&desk.sub);
    desk.sub.update().retry(RetryPolicy::fixed(SECOND)).apply().unwrap();
    held.nack().unwrap();
    assert_empty(&desk.sub);
    desk.clock.advance(SECOND);
    let held = take(&desk.sub);
    desk.sub.update().retry(RetryPolicy::immediate()).apply().unwrap();
    held.nack().unwrap();
    assert_eq!(take(&desk.sub).attempt(), 4);
}

#[test]
fn a_new_dead_letter_holds_for_failures_that_come_after_it() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish_all([1u64, 2]).unwrap();
    for attempt in 1..=7 {
        let delivery = sub.try_recv_batch(1).unwrap().pop().unwrap();
        if *delivery == 1 {
            assert!(delivery.attempt() <= attempt);
            delivery.nack().unwrap();
        } else {
            delivery.ack().unwrap();
        }
    }
    sub.update().dead_letter(DeadLetter::to(&dead).after(3)).apply().unwrap();
    // It has failed more often than that already: the next failure is its last.
    take(&sub).nack().unwrap();
    assert_eq!(drain(&undertaker), [1]);
    sub.update().dead_letter(DeadLetter::discard().after(1)).apply().unwrap();
    topic.publish(3u64).unwrap();
    take(&sub).nack().unwrap();
    assert_empty(&undertaker);
    assert_eq!((sub.stats().dead_lettered, sub.stats().discarded, sub.stats().backlog), (1, 1, 0));
}

#[test]
fn more_room_for_leases_wakes_who_waits_for_it() {
    let desk = desk_with::<u64>(|options| options.max_outstanding(1));
    desk.topic.publish_all([1u64, 2, 3]).unwrap();
    let held = take(&desk.sub);
    assert_empty(&desk.sub);
    let waiting = ask({
        let sub = desk.sub.clone();
        move || {
            let delivery = sub.recv().unwrap();
            let number = *delivery;
            delivery.ack().unwrap();
            number
        }
    });
    waiting.assert_pending();
    desk.sub.update().max_outstanding(2).apply().unwrap();
    assert_eq!(waiting.get(), 2);
    let other = take(&desk.sub);
    desk.sub.update().max_outstanding(1).apply().unwrap();
    other.release().unwrap();
    assert_empty(&desk.sub);
    held.ack().unwrap();
    assert_eq!(drain(&desk.sub), [3]);
}

#[test]
fn a_new_age_limit_holds_for_what_is_waiting_already() {
    let desk = desk::<u64>();
    desk.topic.publish(1u64).unwrap();
    desk.clock.advance(SECOND * 30);
    desk.topic.publish(2u64).unwrap();
    desk.sub.update().expire_after(SECOND * 20).apply().unwrap();
    assert_eq!(desk.sub.stats().messages_expired, 1, "it was over when the update returned");
    assert_eq!(desk.sub.stats().backlog, 1);
    desk.clock.advance(SECOND * 20 - NANO);
    let delivery = take(&desk.sub);
    assert_eq!(*delivery, 2);
    delivery.release().unwrap();
    desk.clock.advance(NANO);
    assert_empty(&desk.sub);
    assert_eq!(desk.sub.stats().messages_expired, 2);
}

#[test]
fn an_update_is_one_subscriptions_own_affair_and_seen_by_all_its_handles() {
    let desk = desk::<u64>();
    let other = desk.topic.subscription("other").create().unwrap();
    let clone = desk.sub.clone();
    desk.sub.update().ack_deadline(SECOND).apply().unwrap();
    desk.topic.publish(1u64).unwrap();
    let held = (take(&clone), take(&other));
    desk.clock.advance(SECOND);
    assert_eq!((desk.sub.stats().outstanding, other.stats().outstanding), (0, 1));
    drop(held);
}

#[test]
fn a_subscription_opens_with_its_updated_options_and_not_with_the_old_ones() {
    let desk = desk_with::<u64>(|options| options.ack_deadline(SECOND).max_outstanding(5));
    desk.sub.update().ack_deadline(SECOND * 2).apply().unwrap();
    let open =
        |deadline: Duration| desk.topic.subscription("sub").ack_deadline(deadline).max_outstanding(5).open();
    open(SECOND * 2).unwrap();
    match open(SECOND) {
        Err(CreateError::ConfigMismatch { option: "ack_deadline", .. }) => {}
        other => panic!("expected ConfigMismatch of ack_deadline, found {other:?}"),
    }
}

#[test]
fn subscription_options_outside_their_range_are_refused_and_nothing_is_applied() {
    let desk = desk::<u64>();
    let update = || desk.sub.update().retry(RetryPolicy::fixed(SECOND * 60));
    assert_invalid(update().ack_deadline(Duration::from_millis(1) - NANO).apply(), "ack_deadline");
    assert_invalid(update().ack_deadline(Duration::ZERO).apply(), "ack_deadline");
    assert_invalid(update().max_outstanding(0).apply(), "max_outstanding");
    assert_invalid(update().dead_letter(DeadLetter::discard().after(0)).apply(), "dead_letter");
    assert_invalid(update().dead_letter(DeadLetter::to(&desk.topic)).apply(), "dead_letter");
    let nowhere = desk.broker.topic::<u64>("nowhere").create().unwrap();
    assert_invalid(update().dead_letter(DeadLetter::to(&nowhere)).apply(), "dead_letter");
    // The retry policy named beside the bad option was not taken either.
    desk.topic.publish(1u64).unwrap();
    take(&desk.sub).nack().unwrap();
    assert_eq!(take(&desk.sub).attempt(), 2);
}

#[test]
fn at_most_once_has_nothing_to_retry_and_nothing_to_bury() {
    let desk = desk_with::<u64>(|options| options.delivery(DeliveryMode::AtMostOnce));
    assert_invalid(desk.sub.update().retry(RetryPolicy::fixed(SECOND)).apply(), "retry");
    assert_invalid(desk.sub.update().dead_letter(DeadLetter::discard()).apply(), "dead_letter");
}

#[test]
fn updating_what_is_gone_is_an_error() {
    let desk = desk::<u64>();
    desk.sub.delete().unwrap();
    assert!(matches!(desk.sub.update().ack_deadline(SECOND).apply(), Err(UpdateError::Deleted)));
    desk.broker.delete_topic("topic").unwrap();
    assert!(matches!(desk.topic.update().retention(Retention::forever()).apply(), Err(UpdateError::Deleted)));
    let desk = self::desk::<u64>();
    desk.broker.shutdown(Duration::ZERO).unwrap();
    assert!(matches!(desk.sub.update().ack_deadline(SECOND).apply(), Err(UpdateError::Closed)));
    assert!(matches!(desk.topic.update().retention(Retention::forever()).apply(), Err(UpdateError::Closed)));
}

#[test]
fn more_capacity_wakes_who_waits_for_it() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish(1u64).unwrap();
    let waiting = ask({
        let topic = topic.clone();
        move || topic.publish(2u64)
    });
    waiting.assert_pending();
    topic.update().capacity(Capacity::messages(2)).apply().unwrap();
    waiting.get().unwrap();
    assert!(matches!(topic.try_publish(3u64), Err(PublishError::Full(_))));
    topic.update().capacity(Capacity::unlimited()).apply().unwrap();
    topic.try_publish(3u64).unwrap();
    assert_eq!(drain(&sub), [1, 2, 3]);
}

#[test]
fn less_capacity_drops_nothing_and_waits_for_room() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish_all([1u64, 2, 3]).unwrap();
    topic.update().capacity(Capacity::messages(2).overflow(Overflow::Reject)).apply().unwrap();
    assert!(matches!(topic.publish(4u64), Err(PublishError::Full(_))));
    take(&sub).ack().unwrap();
    assert!(matches!(topic.publish(4u64), Err(PublishError::Full(_))));
    take(&sub).ack().unwrap();
    topic.publish(4u64).unwrap();
    assert_eq!(drain(&sub), [3, 4]);
}

#[test]
fn an_overflow_that_no_longer_blocks_frees_who_waits() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish(1u64).unwrap();
    let waiting = ask({
        let topic = topic.clone();
        move || topic.publish(2u64)
    });
    waiting.assert_pending();
    topic.update().capacity(Capacity::messages(1).overflow(Overflow::DropOldest)).apply().unwrap();
    waiting.get().unwrap();
    assert_eq!(drain(&sub), [2]);
}

#[test]
fn a_shorter_retention_frees_at_once_and_a_longer_one_keeps_from_now_on() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    for number in 0..1_000 {
        topic.publish(drops.event(number)).unwrap();
    }
    assert_eq!(drain_with(&sub, |_| ()).len(), 1_000);
    clock.advance(SECOND * 10);
    topic.update().retention(Retention::for_duration(SECOND * 10 + NANO)).apply().unwrap();
    assert_eq!(drops.count(), 0);
    clock.advance(NANO);
    assert_eq!(drops.count(), 1_000);
    topic.publish(drops.event(1_000)).unwrap();
    take(&sub).ack().unwrap();
    assert_eq!(drops.count(), 1_000);
    topic.update().retention(Retention::until_acked()).apply().unwrap();
    assert_eq!(drops.count(), 1_001);
    topic.update().retention(Retention::forever()).apply().unwrap();
    topic.publish(drops.event(1_001)).unwrap();
    take(&sub).ack().unwrap();
    clock.advance(SECOND * 1_000);
    let late = topic.subscription("late").start(Start::Earliest).create().unwrap();
    assert_eq!(drain_with(&late, |delivery| delivery.number), [1_001]);
}

#[test]
fn a_shorter_retention_takes_nothing_that_is_unsettled() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish_all(0..1_000u64).unwrap();
    clock.advance(SECOND * 100);
    topic.update().retention(Retention::for_duration(SECOND)).apply().unwrap();
    topic.update().retention(Retention::forever().max_messages(1)).apply().unwrap();
    topic.update().retention(Retention::until_acked()).apply().unwrap();
    assert_eq!(drain(&sub), (0..1_000).collect::<Vec<_>>());
}

#[test]
fn a_smaller_dedup_window_forgets_at_once() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let once = |number: u64| Message::new(number).idempotency_id(number.to_string());
    topic.publish_all((0..10u64).map(once)).unwrap();
    topic.update().dedup(DedupWindow::time(SECOND).max_ids(5)).apply().unwrap();
    assert!(topic.publish(once(5)).unwrap().deduplicated);
    assert!(!topic.publish(once(4)).unwrap().deduplicated);
    clock.advance(SECOND);
    assert!(!topic.publish(once(9)).unwrap().deduplicated);
    topic.update().dedup(DedupWindow::off()).apply().unwrap();
    assert!(!topic.publish(once(9)).unwrap().deduplicated);
    topic.update().dedup(DedupWindow::time(SECOND)).apply().unwrap();
    assert!(!topic.publish(once(9)).unwrap().deduplicated, "while it was off nothing was recorded");
    assert!(topic.publish(once(9)).unwrap().deduplicated);
}

#[test]
fn a_topic_opens_with_its_updated_options_and_not_with_the_old_ones() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    topic.update().capacity(Capacity::messages(2)).retention(Retention::forever()).apply().unwrap();
    let open = |capacity: Capacity| broker.topic::<u64>("t").capacity(capacity).open();
    open(Capacity::messages(2)).unwrap();
    broker.topic::<u64>("t").retention(Retention::forever()).open().unwrap();
    match open(Capacity::messages(1)) {
        Err(CreateError::ConfigMismatch { option: "capacity", .. }) => {}
        other => panic!("expected ConfigMismatch of capacity, found {other:?}"),
    }
}

#[test]
fn topic_options_that_make_no_sense_are_refused_and_nothing_is_applied() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let update = || topic.update().capacity(Capacity::messages(1));
    assert_invalid(update().retention(Retention::until_acked().max_messages(1)).apply(), "retention");
    assert_invalid(update().retention(Retention::until_acked().max_bytes(1)).apply(), "retention");
    let sub = topic.subscription("s").create().unwrap();
    topic.try_publish(1u64).unwrap();
    topic.try_publish(2u64).expect("the capacity named beside the bad option was not taken");
    assert_eq!(drain(&sub), [1, 2]);
}
