//! Settling one delivery: each verb, what it leaves, and what it answers.

use std::time::Duration;

use eventflow::{DeadLetter, DeliveryMode, RetryPolicy, SettleError};

use crate::support::{
    DEADLINE, Desk, Drops, NANO, PATIENCE, SECOND, assert_empty, desk, desk_with, drain, manual, take, within,
};

const EXPIRED: SettleError = SettleError::LeaseExpired { count: 1 };

#[test]
fn p08_an_ack_settles_on_its_own_subscription_only() {
    let Desk { topic, sub: a, .. } = desk::<u64>();
    let b = topic.subscription("b").create().unwrap();
    topic.publish(1).unwrap();
    take(&a).ack().unwrap();
    assert_empty(&a);
    assert_eq!(drain(&b), [1]);
}

#[test]
fn p08_acks_may_come_in_any_order() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..1_000).unwrap();
    let mut held: Vec<_> = (0..1_000).map(|_| Some(take(&sub))).collect();
    // 37 and 1,000 have no common divisor, so this visits each once.
    for step in 0..1_000 {
        let place = step * 37 % 1_000;
        if place % 10 != 3 {
            held[place].take().unwrap().ack().unwrap();
        }
    }
    assert_eq!((sub.stats().backlog, sub.stats().outstanding), (100, 100));
    held.into_iter().for_each(std::mem::forget);
    clock.advance(DEADLINE);
    assert_eq!(drain(&sub), (0..100).map(|n| n * 10 + 3).collect::<Vec<_>>());
}

#[test]
fn p09_a_nack_brings_the_message_back_at_once() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    for attempt in 1..=20 {
        let delivery = take(&sub);
        assert_eq!(delivery.attempt(), attempt);
        delivery.nack().unwrap();
        assert_eq!((sub.stats().outstanding, sub.stats().backlog), (0, 1));
    }
    assert_eq!(sub.stats().nacked, 20);
}

#[test]
fn p09_a_dropped_delivery_is_a_nack() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    drop(take(&sub));
    assert_eq!((sub.stats().nacked, sub.stats().outstanding), (1, 0));
    let again = take(&sub);
    assert_eq!((*again, again.attempt()), (1, 2));
}

#[test]
fn p09_a_delivery_settled_by_a_verb_is_not_nacked_by_its_drop() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    take(&sub).ack().unwrap();
    take(&sub).reject("bad").unwrap();
    take(&sub).nack_after(SECOND).unwrap();
    take(&sub).nack().unwrap();
    let extended = take(&sub);
    extended.extend(Duration::ZERO).unwrap();
    drop(extended);
    assert_eq!(sub.stats().nacked, 3, "one by one, and none twice");
}

#[test]
fn p09_nack_after_brings_the_message_back_after_its_delay_whatever_the_policy() {
    let fixed = RetryPolicy::fixed(Duration::from_secs(100));
    for policy in [RetryPolicy::immediate(), fixed] {
        let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.retry(policy));
        topic.publish_all([1, 2]).unwrap();
        take(&sub).nack_after(Duration::from_secs(3)).unwrap();
        assert_eq!(drain(&sub), [2], "the others do not wait for it");
        assert_eq!((sub.stats().delayed, sub.stats().backlog, sub.stats().outstanding), (1, 1, 0));
        clock.advance(Duration::from_secs(3) - NANO);
        assert_empty(&sub);
        clock.advance(NANO);
        let again = take(&sub);
        assert_eq!((*again, again.attempt(), sub.stats().delayed), (1, 2, 0));
        again.nack_after(Duration::ZERO).unwrap();
        assert_eq!(take(&sub).attempt(), 3, "zero is at once");
    }
}

#[test]
fn a_huge_delay_after_a_nack_is_clamped() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    take(&sub).nack_after(Duration::MAX).unwrap();
    clock.advance(Duration::from_secs(50 * 365 * 24 * 3600));
    assert_empty(&sub);
    assert_eq!(sub.stats().delayed, 1);
}

#[test]
fn p09_a_release_brings_the_message_back_at_once_whatever_the_policy() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| {
        options.retry(RetryPolicy::fixed(DEADLINE)).dead_letter(DeadLetter::discard().after(2))
    });
    topic.publish(1).unwrap();
    for _ in 0..10 {
        let delivery = take(&sub);
        assert_eq!(delivery.attempt(), 1);
        delivery.release().unwrap();
    }
    let stats = sub.stats();
    assert_eq!((stats.released, stats.nacked, stats.discarded, stats.backlog), (10, 0, 0, 1));
}

#[test]
fn a_rejected_message_is_discarded_and_counted_when_there_is_no_dead_letter() {
    let Desk { clock, topic, sub, .. } = desk();
    let drops = Drops::default();
    let other = topic.subscription("other").create().unwrap();
    topic.publish(drops.event(1)).unwrap();
    take(&sub).reject("not for us").unwrap();
    clock.advance(10 * DEADLINE);
    assert_empty(&sub);
    let stats = sub.stats();
    assert_eq!((stats.discarded, stats.dead_lettered, stats.backlog, stats.acked), (1, 0, 0, 0));
    assert_eq!(drops.count(), 0);
    take(&other).ack().unwrap();
    assert_eq!(drops.count(), 1, "rejected by one, acked by the other: settled by all");
}

#[test]
fn a_rejected_message_goes_to_the_dead_letter_topic_at_once_with_its_reason() {
    let (broker, _) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let morgue = dead.subscription("morgue").create().unwrap();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").dead_letter(DeadLetter::to(&dead).after(5)).create().unwrap();
    topic.publish(7).unwrap();
    take(&sub).reject(String::from("no such customer")).unwrap();
    assert_empty(&sub);
    let letter = take(&morgue);
    assert_eq!(
        (*letter, letter.message().attribute("eventflow.dead_letter.reason")),
        (7, Some("no such customer"))
    );
    assert_eq!(letter.message().attribute("eventflow.dead_letter.attempts"), Some("1"));
    assert_eq!((sub.stats().dead_lettered, sub.stats().discarded), (1, 0));
}

#[test]
fn p08_extend_of_zero_is_a_nack() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(SECOND)));
    topic.publish(1).unwrap();
    let held = take(&sub);
    held.extend(Duration::ZERO).unwrap();
    assert_eq!((sub.stats().nacked, sub.stats().outstanding, sub.stats().delayed), (1, 0, 1));
    assert_eq!(held.extend(DEADLINE), Err(EXPIRED), "its lease is over");
    clock.advance(SECOND - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    assert_eq!(take(&sub).attempt(), 2);
    drop(held);
    assert_eq!(sub.stats().nacked, 2, "its own, and that of the temporary above; not the stale drop");
}

#[test]
fn p13_in_at_most_once_mode_ack_and_drop_do_nothing_and_the_rest_is_lease_expired() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.delivery(DeliveryMode::AtMostOnce));
    topic.publish_all(0..20).unwrap();
    assert_eq!(take(&sub).ack(), Ok(()));
    drop(take(&sub));
    assert_eq!(take(&sub).nack(), Err(EXPIRED));
    assert_eq!(take(&sub).nack_after(SECOND), Err(EXPIRED));
    assert_eq!(take(&sub).release(), Err(EXPIRED));
    assert_eq!(take(&sub).reject("no"), Err(EXPIRED));
    assert_eq!(take(&sub).extend(SECOND), Err(EXPIRED));
    assert_eq!(take(&sub).extend(Duration::ZERO), Err(EXPIRED));
    assert_eq!(sub.try_recv_batch(2).unwrap().ack(), Ok(()));
    assert_eq!(sub.try_recv_batch(2).unwrap().nack(), Err(SettleError::LeaseExpired { count: 2 }));
    assert_eq!(sub.try_recv_batch(2).unwrap().release(), Err(SettleError::LeaseExpired { count: 2 }));
    drop(sub.try_recv_batch(2).unwrap());
    drop(sub.try_recv_batch(1).unwrap().into_iter());
    assert_eq!(drain(&sub), [17, 18, 19]);
    let stats = sub.stats();
    assert_eq!((stats.backlog, stats.nacked, stats.released, stats.discarded), (0, 0, 0, 0));
}

#[test]
fn p07_deliveries_settle_from_any_thread_and_after_their_subscriber_is_gone() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..4).unwrap();
    let subscriber = sub.clone();
    let held: Vec<_> = (0..4).map(|_| take(&subscriber)).collect();
    drop(subscriber);
    within(PATIENCE, move || held.into_iter().for_each(|delivery| delivery.ack().unwrap()));
    assert_eq!((sub.stats().acked, sub.stats().backlog), (4, 0));
}

#[test]
fn p09_the_drop_of_an_event_may_use_the_broker() {
    struct Loud(eventflow::Topic<u64>);
    impl Drop for Loud {
        fn drop(&mut self) {
            self.0.publish(1).unwrap();
        }
    }
    within(PATIENCE, || {
        let (broker, _) = manual();
        let heard = broker.topic::<u64>("heard").create().unwrap();
        let ear = heard.subscription("ear").create().unwrap();
        let loud = broker.topic::<Loud>("loud").create().unwrap();
        let sub = loud.subscription("sub").create().unwrap();
        loud.publish(Loud(heard.clone())).unwrap();
        loud.publish(Loud(heard.clone())).unwrap();
        take(&sub).ack().unwrap();
        take(&sub).ack().unwrap();
        assert_eq!(drain(&ear), [1, 1], "gone when the last ack returned");
    });
}

#[test]
fn a_settle_error_says_what_to_do_in_words() {
    assert_eq!(EXPIRED, EXPIRED.clone());
    let texts = [EXPIRED, SettleError::Closed, SettleError::Deleted].map(|error| error.to_string());
    for text in &texts {
        assert!(text.starts_with(char::is_lowercase), "{text}");
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
}
