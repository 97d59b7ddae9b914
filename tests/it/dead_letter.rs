//! Dead letters: P11, and P3 as far as it speaks of them.

use std::time::Duration;

use eventflow::{
    Capacity, CreateError, DeadLetter, Delivery, ManualClock, Message, MessageId, Overflow, Retention,
    RetryPolicy, Seek, SettleError, Subscription, SubscriptionBuilder, Topic,
};

use crate::support::{
    Answer, Bare, Broker, Checksum, DEADLINE, NANO, SECOND, ask, assert_empty, drain, drain_with, manual,
    take, within,
};

/// A topic `work` whose subscription `worker` sends its dead letters to the subscription `undertaker` of the topic `dead`.
struct Ward<E: Send + Sync + 'static> {
    broker: Broker,
    clock: ManualClock,
    work: Topic<E>,
    worker: Subscription<E>,
    dead: Topic<E>,
    undertaker: Subscription<E>,
}

fn ward<E: Send + Sync + 'static>(attempts: u32) -> Ward<E> {
    ward_with(attempts, Retention::until_acked(), |options| options)
}

fn ward_with<E: Send + Sync + 'static>(
    attempts: u32,
    retention: Retention,
    options: impl FnOnce(SubscriptionBuilder<E>) -> SubscriptionBuilder<E>,
) -> Ward<E> {
    let (broker, clock) = manual();
    let dead = broker.topic::<E>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let work = broker.topic::<E>("work").retention(retention).create().unwrap();
    let dead_letter = DeadLetter::to(&dead).after(attempts);
    let worker = options(work.subscription("worker").dead_letter(dead_letter)).create().unwrap();
    Ward { broker, clock, work, worker, dead, undertaker }
}

fn said<'a, E>(letter: &'a Delivery<E>, what: &str) -> Option<&'a str>
where
    E: Send + Sync + 'static,
{
    letter.message().attribute(&format!("eventflow.dead_letter.{what}"))
}

#[track_caller]
fn assert_invalid_dead_letter<E: Send + Sync + 'static>(
    outcome: Result<Subscription<E>, CreateError>,
) -> String {
    match outcome {
        Err(CreateError::InvalidOption { option: "dead_letter", reason, .. }) => reason,
        other => panic!("expected InvalidOption of dead_letter, found {other:?}"),
    }
}

#[test]
fn p11_without_after_a_message_is_dead_lettered_after_five_attempts() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let work = broker.topic::<u64>("work").create().unwrap();
    let worker = work.subscription("worker").dead_letter(DeadLetter::to(&dead)).create().unwrap();
    work.publish(7u64).unwrap();
    for attempt in 1..=5 {
        assert_empty(&undertaker);
        let delivery = take(&worker);
        assert_eq!(delivery.attempt(), attempt);
        delivery.nack().unwrap();
    }
    assert_empty(&worker);
    assert_eq!(drain(&undertaker), [7]);
    let stats = worker.stats();
    assert_eq!((stats.dead_lettered, stats.discarded, stats.backlog, stats.parked), (1, 0, 0, 0));
    assert_eq!((stats.delivered, stats.redelivered), (5, 4));
}

#[test]
fn p11_the_letter_is_in_its_topic_when_the_call_that_sent_it_returns() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish_all(1..=4u64).unwrap();
    take(&ward.worker).nack().unwrap();
    assert_eq!(ward.dead.stats().published, 1);
    take(&ward.worker).reject("unwanted").unwrap();
    assert_eq!(ward.dead.stats().published, 2);
    drop(take(&ward.worker));
    assert_eq!(ward.dead.stats().published, 3);
    let held = take(&ward.worker);
    ward.clock.advance(DEADLINE - NANO);
    assert_eq!(ward.dead.stats().published, 3);
    ward.clock.advance(NANO);
    assert_eq!(ward.dead.stats().published, 4);
    drop(held);
    assert_eq!(drain(&ward.undertaker), [1, 2, 3, 4]);
    assert_eq!(ward.worker.stats().dead_lettered, 4);
}

#[test]
fn p11_the_letter_keeps_attributes_key_and_event_and_says_where_it_comes_from() {
    let ward: Ward<Bare> = ward(2);
    ward.work.publish(Bare(0)).unwrap();
    take(&ward.worker).ack().unwrap();
    ward.clock.advance(SECOND);
    let message = Message::new(Bare(7))
        .attribute("region", "eu")
        .attribute("kind", "order")
        .ordering_key("customer 12");
    let origin = ward.work.publish(message.idempotency_id("order-7")).unwrap().id;
    take(&ward.worker).nack().unwrap();
    ward.clock.advance(SECOND);
    take(&ward.worker).reject("no such customer").unwrap();

    let letter = take(&ward.undertaker);
    assert_eq!(letter.0, 7);
    assert_eq!(letter.attempt(), 1);
    let message = letter.message();
    assert_eq!((message.attribute("region"), message.attribute("kind")), (Some("eu"), Some("order")));
    assert_eq!(message.ordering_key(), Some("customer 12"));
    assert_eq!(message.idempotency_id(), None, "a copy is no repeat");
    assert_ne!(letter.id(), origin);
    assert_eq!(letter.id().sequence(), 1, "it has its own place in its topic's order");
    assert_eq!(message.publish_time(), ward.clock.now(), "it is published when it dies");
    assert_eq!(said(&letter, "topic"), Some("work"));
    assert_eq!(said(&letter, "subscription"), Some("worker"));
    assert_eq!(said(&letter, "reason"), Some("no such customer"));
    assert_eq!(said(&letter, "attempts"), Some("2"));
    assert_eq!(said(&letter, "message_id").unwrap().parse::<MessageId>().unwrap(), origin);
    assert_eq!(said(&letter, "idempotency_id"), Some("order-7"));
    assert!(said(&letter, "publish_time").is_some_and(|time| !time.is_empty()));
    assert_eq!(message.attributes().count(), 9);
}

#[test]
fn p11_a_message_without_an_id_gets_no_attribute_for_it() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish(7u64).unwrap();
    take(&ward.worker).nack().unwrap();
    let letter = take(&ward.undertaker);
    assert_eq!(said(&letter, "idempotency_id"), None);
    assert_eq!(said(&letter, "attempts"), Some("1"));
    assert_eq!(letter.message().attributes().count(), 6);
    assert_eq!(letter.message().ordering_key(), None);
}

#[test]
fn p03_a_dead_letter_is_the_same_event_in_memory_not_a_copy() {
    let ward: Ward<Bare> = ward_with(1, Retention::forever(), |options| options);
    let witness = ward.work.subscription("witness").create().unwrap();
    ward.work.publish(Bare(7)).unwrap();
    let seen = take(&witness);
    take(&ward.worker).nack().unwrap();
    let letter = take(&ward.undertaker);
    assert!(std::ptr::eq(&raw const *seen, &raw const *letter), "the event was stored twice");
}

#[test]
fn p11_the_reason_tells_how_the_last_attempt_ended() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish_all(0..6u64).unwrap();
    take(&ward.worker).nack().unwrap();
    drop(take(&ward.worker));
    take(&ward.worker).extend(Duration::ZERO).unwrap();
    take(&ward.worker).nack_after(SECOND).unwrap();
    take(&ward.worker).reject("the reason given").unwrap();
    let expiring = take(&ward.worker);
    ward.clock.advance(DEADLINE);
    drop(expiring);
    let mut reasons =
        drain_with(&ward.undertaker, |letter| (**letter, said(letter, "reason").unwrap().to_owned()));
    reasons.sort();
    let reasons: Vec<String> = reasons.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["nacked", "nacked", "nacked", "nacked", "the reason given", "ack deadline expired"]);
}

#[test]
fn p11_only_the_last_attempt_decides_the_reason() {
    let ward: Ward<u64> = ward(2);
    ward.work.publish(7u64).unwrap();
    let first = take(&ward.worker);
    ward.clock.advance(DEADLINE);
    drop(first);
    take(&ward.worker).nack().unwrap();
    assert_eq!(said(&take(&ward.undertaker), "reason"), Some("nacked"));
}

#[test]
fn p11_a_release_brings_no_message_nearer_to_its_death() {
    let ward: Ward<u64> = ward(2);
    ward.work.publish(7u64).unwrap();
    take(&ward.worker).nack().unwrap();
    for _ in 0..10 {
        let delivery = take(&ward.worker);
        assert_eq!(delivery.attempt(), 2);
        delivery.release().unwrap();
    }
    assert_eq!(ward.dead.stats().published, 0);
    take(&ward.worker).ack().unwrap();
    assert_empty(&ward.undertaker);
}

#[test]
fn p11_the_last_failed_attempt_waits_for_no_retry() {
    let ward: Ward<u64> =
        ward_with(2, Retention::until_acked(), |options| options.retry(RetryPolicy::fixed(SECOND * 60)));
    ward.work.publish(7u64).unwrap();
    take(&ward.worker).nack().unwrap();
    ward.clock.advance(SECOND * 60);
    take(&ward.worker).nack().unwrap();
    assert_eq!(drain(&ward.undertaker), [7]);
    assert_eq!(ward.worker.stats().delayed, 0);
}

#[test]
fn p11_a_message_is_dead_lettered_once_per_generation() {
    let ward: Ward<u64> = ward_with(1, Retention::forever(), |options| options);
    ward.work.publish(7u64).unwrap();
    for generation in 1..=3 {
        let delivery = take(&ward.worker);
        assert_eq!(delivery.attempt(), 1, "a generation begins at attempt 1");
        delivery.nack().unwrap();
        assert_empty(&ward.worker);
        assert_eq!(drain(&ward.undertaker), [7]);
        assert_eq!(ward.worker.stats().dead_lettered, generation);
        ward.worker.seek(Seek::Earliest).unwrap();
    }
    take(&ward.worker).ack().unwrap();
    assert_empty(&ward.undertaker);
}

#[test]
fn p11_a_stale_delivery_buries_nothing_a_second_time() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish_all(0..5u64).unwrap();
    for settle in 0..5 {
        let stale = take(&ward.worker);
        ward.clock.advance(DEADLINE);
        let outcome = match settle {
            0 => stale.ack(),
            1 => stale.nack(),
            2 => stale.release(),
            3 => stale.reject("again"),
            _ => stale.extend(Duration::ZERO),
        };
        assert_eq!(outcome, Err(SettleError::LeaseExpired { count: 1 }), "way {settle}");
    }
    assert_eq!(drain(&ward.undertaker), [0, 1, 2, 3, 4]);
    assert_eq!(ward.dead.stats().published, 5);
}

#[test]
fn p11_every_subscription_sends_a_letter_of_its_own() {
    let ward: Ward<u64> = ward(1);
    let second =
        ward.work.subscription("second").dead_letter(DeadLetter::to(&ward.dead).after(1)).create().unwrap();
    let healthy = ward.work.subscription("healthy").create().unwrap();
    ward.work.publish(7u64).unwrap();
    take(&ward.worker).nack().unwrap();
    take(&second).nack().unwrap();
    let mut from = drain_with(&ward.undertaker, |letter| said(letter, "subscription").unwrap().to_owned());
    from.sort();
    assert_eq!(from, ["second", "worker"]);
    assert_eq!(drain(&healthy), [7], "another subscription's dead letter is no business of this one");
}

#[test]
fn p11_dead_letters_ignore_the_targets_capacity() {
    for overflow in [Overflow::Block, Overflow::Reject] {
        let (broker, _clock) = manual();
        let capacity = Capacity::messages(1).overflow(overflow);
        let dead = broker.topic::<u64>("dead").capacity(capacity).create().unwrap();
        let undertaker = dead.subscription("undertaker").create().unwrap();
        let work = broker.topic::<u64>("work").create().unwrap();
        let options = work.subscription("worker").dead_letter(DeadLetter::to(&dead).after(1));
        let worker = options.create().unwrap();
        dead.publish(100u64).unwrap();
        assert!(dead.try_publish(101u64).is_err(), "it is full");
        work.publish_all(0..3u64).unwrap();
        within(60, move || {
            for _ in 0..3 {
                take(&worker).nack().unwrap();
            }
        });
        assert_eq!(drain(&undertaker), [100, 0, 1, 2]);
    }
}

#[test]
fn p11_a_message_with_all_the_attributes_there_may_be_still_dies_in_order() {
    let ward: Ward<u64> = ward(1);
    let full = (0..100).fold(Message::new(7u64), |message, n| message.attribute(format!("k{n}"), "v"));
    ward.work.publish(full).unwrap();
    take(&ward.worker).nack().unwrap();
    let letter = take(&ward.undertaker);
    assert_eq!(letter.message().attributes().count(), 106);
    assert_eq!(said(&letter, "topic"), Some("work"));
}

#[test]
fn p11_a_long_reason_is_no_hindrance() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish(7u64).unwrap();
    let reason = "ö".repeat(20_000);
    take(&ward.worker).reject(reason.clone()).unwrap();
    let letter = take(&ward.undertaker);
    let told = said(&letter, "reason").unwrap();
    assert!(!told.is_empty() && reason.starts_with(told), "the reason, or as much of it as fits");
}

#[test]
fn p11_dead_letters_form_chains() {
    let ward: Ward<Bare> = ward(1);
    let grave = ward.broker.topic::<Bare>("grave").create().unwrap();
    let digger = grave.subscription("digger").create().unwrap();
    let last = ward.dead.subscription("last").dead_letter(DeadLetter::to(&grave).after(2)).create().unwrap();
    ward.work.publish(Message::new(Bare(7)).attribute("region", "eu")).unwrap();
    take(&ward.worker).nack().unwrap();
    let first_copy = take(&last);
    let second_origin = first_copy.id();
    first_copy.nack().unwrap();
    take(&last).reject("beyond hope").unwrap();
    let letter = take(&digger);
    assert_eq!(letter.0, 7);
    assert_eq!(letter.message().attribute("region"), Some("eu"));
    assert_eq!(said(&letter, "topic"), Some("dead"));
    assert_eq!(said(&letter, "subscription"), Some("last"));
    assert_eq!(said(&letter, "attempts"), Some("2"));
    assert_eq!(said(&letter, "reason"), Some("beyond hope"));
    assert_eq!(said(&letter, "message_id"), Some(second_origin.to_string().as_str()));
    assert_eq!(letter.message().attributes().count(), 7, "one set of origins, the last one's");
    assert_eq!(take(&ward.undertaker).0, 7, "the first topic's other reader has its own copy");
}

#[test]
fn p11_expiries_send_a_message_down_a_chain_each_at_its_own_time() {
    let (broker, clock) = manual();
    let start = clock.now();
    let topics: Vec<Topic<u64>> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| broker.topic::<u64>(name).retention(Retention::forever()).create().unwrap())
        .collect();
    let subs: Vec<Subscription<u64>> = topics
        .windows(2)
        .map(|pair| {
            pair[0].subscription("s").dead_letter(DeadLetter::to(&pair[1]).after(1)).create().unwrap()
        })
        .collect();
    topics[0].publish(7u64).unwrap();
    let mut held = Vec::new();
    for sub in &subs {
        held.push(take(sub));
        clock.advance(DEADLINE);
    }
    let end = topics[3].subscription("end").start(eventflow::Start::Earliest).create().unwrap();
    let letter = take(&end);
    assert_eq!(letter.message().publish_time(), start + DEADLINE * 3);
    assert_eq!(said(&letter, "topic"), Some("c"));
}

#[test]
fn p11_a_receiver_of_the_dead_letter_topic_wakes() {
    let ward: Ward<u64> = ward(1);
    let waiting = ask({
        let undertaker = ward.undertaker.clone();
        move || *undertaker.recv().unwrap()
    });
    waiting.assert_pending();
    ward.work.publish(7u64).unwrap();
    take(&ward.worker).nack().unwrap();
    assert_eq!(waiting.get(), 7);
}

#[test]
fn p11_when_the_dead_letter_topic_is_gone_the_message_is_parked() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish_all([1u64, 2]).unwrap();
    ward.broker.delete_topic("dead").unwrap();
    take(&ward.worker).nack().unwrap();
    assert_eq!(drain(&ward.worker), [2], "a parked message is not delivered, and in nobody's way");
    ward.clock.advance(DEADLINE * 100);
    assert_empty(&ward.worker);
    let stats = ward.worker.stats();
    assert_eq!((stats.parked, stats.backlog, stats.outstanding, stats.dead_lettered), (1, 1, 0, 0));
    assert_eq!((stats.discarded, stats.delayed), (0, 0));
    assert!(ward.work.stats().resident_messages >= 1, "it is kept");
}

#[test]
fn p11_a_parked_message_goes_when_a_subscription_is_created_on_a_new_topic_of_that_name() {
    let ward: Ward<Bare> = ward(1);
    let id = ward.work.publish(Bare(7)).unwrap().id;
    ward.broker.delete_topic("dead").unwrap();
    take(&ward.worker).reject("unreadable").unwrap();
    let dead = ward.broker.topic::<Bare>("dead").create().unwrap();
    assert_eq!(ward.worker.stats().parked, 1, "the new topic would keep nothing yet");
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let letter = take(&undertaker);
    assert_eq!(letter.0, 7);
    assert_eq!(said(&letter, "reason"), Some("unreadable"));
    assert_eq!(said(&letter, "message_id"), Some(id.to_string().as_str()));
    let stats = ward.worker.stats();
    assert_eq!((stats.parked, stats.backlog, stats.dead_lettered), (0, 0, 1));
    letter.ack().unwrap();
    dead.subscription("another").create().unwrap();
    assert_empty(&undertaker);
}

#[test]
fn p11_a_letter_to_a_topic_that_lost_its_last_subscription_is_parked_until_there_is_one() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish_all(0..3u64).unwrap();
    ward.undertaker.delete().unwrap();
    for _ in 0..3 {
        take(&ward.worker).nack().unwrap();
    }
    assert_eq!(ward.worker.stats().parked, 3);
    assert_eq!(ward.dead.stats().published, 0);
    let undertaker = ward.dead.subscription("undertaker").create().unwrap();
    let mut letters = drain(&undertaker);
    letters.sort_unstable();
    assert_eq!(letters, [0, 1, 2]);
    let stats = ward.worker.stats();
    assert_eq!((stats.parked, stats.backlog, stats.dead_lettered), (0, 0, 3));
}

#[test]
fn p11_many_parked_messages_all_go_at_once() {
    let ward: Ward<u64> = ward(1);
    ward.undertaker.delete().unwrap();
    ward.work.publish_all(0..5_000u64).unwrap();
    for _ in 0..5_000 {
        take(&ward.worker).nack().unwrap();
    }
    assert_eq!(ward.worker.stats().parked, 5_000);
    let undertaker = ward.dead.subscription("undertaker").create().unwrap();
    assert_eq!(Checksum::of(drain(&undertaker)), Checksum::of(0..5_000));
    assert_eq!(ward.worker.stats().parked, 0);
}

#[test]
fn p11_a_topic_that_keeps_its_messages_needs_no_subscription_for_letters() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").retention(Retention::for_duration(SECOND * 60)).create().unwrap();
    let work = broker.topic::<u64>("work").create().unwrap();
    let worker = work.subscription("worker").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    work.publish(7u64).unwrap();
    take(&worker).nack().unwrap();
    assert_eq!((worker.stats().parked, worker.stats().dead_lettered), (0, 1));
    let late = dead.subscription("late").start(eventflow::Start::Earliest).create().unwrap();
    assert_eq!(drain(&late), [7]);
}

#[test]
fn p11_a_seek_takes_parked_messages_along() {
    let ward: Ward<u64> = ward(1);
    ward.work.publish_all([1u64, 2]).unwrap();
    ward.broker.delete_topic("dead").unwrap();
    take(&ward.worker).nack().unwrap();
    take(&ward.worker).nack().unwrap();
    ward.worker.seek(Seek::Sequence(2)).unwrap();
    assert_eq!(ward.worker.stats().parked, 0);
    let again = take(&ward.worker);
    assert_eq!((*again, again.attempt()), (2, 1));
    again.ack().unwrap();
    assert_empty(&ward.worker);
    let dead = ward.broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    assert_empty(&undertaker);
    assert_eq!(ward.worker.stats().backlog, 0);
}

#[test]
fn p11_a_dead_letter_topic_that_would_keep_nothing_is_an_invalid_option() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let work = broker.topic::<u64>("work").create().unwrap();
    let reason =
        assert_invalid_dead_letter(work.subscription("s").dead_letter(DeadLetter::to(&dead)).create());
    assert!(reason.contains("subscription"), "it says what to do: {reason}");
    assert!(work.subscriptions().is_empty(), "nothing was created");
    dead.subscription("undertaker").create().unwrap();
    work.subscription("s").dead_letter(DeadLetter::to(&dead)).create().unwrap();

    let kept = broker.topic::<u64>("kept").retention(Retention::forever()).create().unwrap();
    work.subscription("kept").dead_letter(DeadLetter::to(&kept)).create().unwrap();
}

#[test]
fn p11_a_topic_as_its_own_dead_letter_topic_is_an_invalid_option() {
    let (broker, _clock) = manual();
    let work = broker.topic::<u64>("work").retention(Retention::forever()).create().unwrap();
    work.subscription("first").create().unwrap();
    assert_invalid_dead_letter(work.subscription("s").dead_letter(DeadLetter::to(&work)).create());
    let again = broker.topic::<u64>("work").open().unwrap();
    assert_invalid_dead_letter(work.subscription("s").dead_letter(DeadLetter::to(&again)).open());
    assert_eq!(work.subscriptions(), ["first"]);
}

#[test]
fn p11_no_attempt_at_all_is_an_invalid_option() {
    let ward: Ward<u64> = ward(1);
    let builder = || ward.work.subscription("s");
    assert_invalid_dead_letter(builder().dead_letter(DeadLetter::to(&ward.dead).after(0)).create());
    assert_invalid_dead_letter(builder().dead_letter(DeadLetter::discard().after(0)).create());
}

#[test]
fn p11_a_dead_letter_topic_of_another_broker_is_refused() {
    let ward: Ward<u64> = ward(1);
    let other = Broker::in_memory();
    let work = other.topic::<u64>("work").create().unwrap();
    let outcome = work.subscription("s").dead_letter(DeadLetter::to(&ward.dead)).create();
    assert!(outcome.is_err(), "two brokers do not know each other");
}

#[test]
fn discarding_after_some_attempts_is_counted_and_needs_no_topic() {
    let (broker, _clock) = manual();
    let work = broker.topic::<u64>("work").create().unwrap();
    let sub = work.subscription("s").dead_letter(DeadLetter::discard().after(3)).create().unwrap();
    work.publish_all([1u64, 2]).unwrap();
    take(&sub).reject("at once").unwrap();
    for attempt in 1..=3 {
        let delivery = take(&sub);
        assert_eq!((*delivery, delivery.attempt()), (2, attempt));
        delivery.nack().unwrap();
    }
    assert_empty(&sub);
    let stats = sub.stats();
    assert_eq!((stats.discarded, stats.dead_lettered, stats.parked, stats.backlog), (2, 0, 0, 0));
    assert_eq!(work.stats().resident_messages, 0);
}

#[test]
fn a_rejected_message_without_a_dead_letter_is_discarded_and_counted() {
    let (broker, clock) = manual();
    let work = broker.topic::<u64>("work").create().unwrap();
    let sub = work.subscription("s").create().unwrap();
    work.publish(7u64).unwrap();
    take(&sub).reject("unwanted").unwrap();
    clock.advance(DEADLINE);
    assert_empty(&sub);
    assert_eq!((sub.stats().discarded, sub.stats().backlog, sub.stats().acked), (1, 0, 0));
}

#[test]
fn without_a_dead_letter_a_message_is_retried_for_ever() {
    let (broker, _clock) = manual();
    let work = broker.topic::<u64>("work").create().unwrap();
    let sub = work.subscription("s").create().unwrap();
    work.publish(7u64).unwrap();
    for attempt in 1..=1_000 {
        let delivery = take(&sub);
        assert_eq!(delivery.attempt(), attempt);
        drop(delivery);
    }
    assert_eq!(drain(&sub), [7]);
}

#[test]
fn letters_can_be_told_apart_by_filters() {
    let ward: Ward<u64> = ward(1);
    let filter = r#"attributes."eventflow.dead_letter.reason" = "spam""#;
    let spam = ward.dead.subscription("spam").filter(filter).create().unwrap();
    ward.work.publish_all([1u64, 2, 3]).unwrap();
    take(&ward.worker).reject("broken").unwrap();
    take(&ward.worker).reject("spam").unwrap();
    take(&ward.worker).nack().unwrap();
    assert_eq!(drain(&spam), [2]);
}

#[test]
fn p11_the_dead_letter_topic_needs_no_handle_to_be_alive() {
    let Ward { broker, clock, work, worker, dead, undertaker } = ward::<u64>(1);
    drop((dead, undertaker));
    work.publish(7u64).unwrap();
    take(&worker).nack().unwrap();
    clock.advance(DEADLINE);
    let dead = broker.topic::<u64>("dead").open().unwrap();
    assert_eq!(drain(&dead.subscription("undertaker").open().unwrap()), [7]);
}

#[test]
fn p11_workers_that_fail_in_every_way_bury_each_message_once() {
    const MESSAGES: u64 = 2_000;
    let ward: Ward<u64> = ward(3);
    ward.work.publish_all(0..MESSAGES).unwrap();
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let sub = ward.worker.clone();
            ask(move || {
                let mut turn = worker;
                while let Ok(delivery) = sub.try_recv() {
                    turn += 1;
                    match turn % 4 {
                        0 => delivery.nack().unwrap(),
                        1 => drop(delivery),
                        2 => delivery.extend(Duration::ZERO).unwrap(),
                        _ => drop(sub.try_recv_batch(7)),
                    }
                    if sub.stats().backlog == 0 {
                        break;
                    }
                }
            })
        })
        .collect();
    // A worker may leave while others still hold something; what is left over is buried here.
    workers.into_iter().for_each(|worker| Answer::get_within(worker, 120));
    while let Ok(delivery) = ward.worker.try_recv() {
        drop(delivery);
    }
    assert_eq!(Checksum::of(drain(&ward.undertaker)), Checksum::of(0..MESSAGES));
    assert_eq!(ward.worker.stats().dead_lettered, MESSAGES);
    assert_eq!(ward.worker.stats().backlog, 0);
}
