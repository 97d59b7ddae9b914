//! The two fairness rules: a poison message starves nobody, and takes nobody along.

use eventflow::{Batch, DeadLetter, DeliveryMode, Message, RetryPolicy, SubscriptionBuilder, TryRecvError};

use crate::support::{
    DEADLINE, Desk, Numbers, SECOND, assert_empty, desk, desk_with, drain, drain_with, manual, take,
};

#[test]
fn while_new_messages_wait_at_most_every_other_hand_out_is_a_redelivery() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..100).unwrap();
    let mut hand_outs = Vec::new();
    while sub.stats().backlog != 5 {
        let delivery = take(&sub);
        hand_outs.push((*delivery, delivery.attempt()));
        // Five messages are poison.
        if *delivery % 20 == 0 { delivery.nack().unwrap() } else { delivery.ack().unwrap() }
    }
    let last_new = hand_outs.iter().rposition(|(_, attempt)| *attempt == 1).unwrap();
    let while_new = &hand_outs[..=last_new];
    assert!(while_new.windows(2).all(|pair| pair[0].1 == 1 || pair[1].1 == 1), "two redeliveries in a row");
    assert!(while_new.len() <= 200);
    let new: Vec<u64> =
        while_new.iter().filter(|(_, attempt)| *attempt == 1).map(|(event, _)| *event).collect();
    assert_eq!(new, (0..100).collect::<Vec<_>>(), "new ones keep their order");
}

#[test]
fn the_rule_holds_where_messages_are_looked_at_before_they_are_handed_out() {
    type Option = fn(SubscriptionBuilder<u64>) -> SubscriptionBuilder<u64>;
    let options: [(&str, Option); 6] = [
        ("plain", |sub| sub),
        ("filter", |sub| sub.filter("NOT attributes:unwanted")),
        ("filter_fn", |sub| sub.filter_fn(|_| true)),
        ("ordered", |sub| sub.ordered()),
        ("expire_after", |sub| sub.expire_after(SECOND)),
        ("exactly once", |sub| sub.delivery(DeliveryMode::ExactlyOnce)),
    ];
    for (name, option) in options {
        for delayed in [false, true] {
            let Desk { topic, sub, .. } = desk_with::<u64>(option);
            if delayed {
                // One message with a delay anywhere in the topic must not change the rule for the others.
                topic.publish(Message::new(99).deliver_after(SECOND)).unwrap();
            }
            topic.publish(0).unwrap();
            take(&sub).nack().unwrap();
            // What comes now, comes after the poison was looked at.
            topic.publish_all(1..=5).unwrap();
            let mut seen = Vec::new();
            for _ in 0..10 {
                let delivery = take(&sub);
                seen.push(*delivery);
                if *delivery == 0 { delivery.nack().unwrap() } else { delivery.ack().unwrap() }
            }
            let new: Vec<u64> = seen.iter().copied().filter(|event| *event > 0).collect();
            assert_eq!(new, [1, 2, 3, 4, 5], "{name}, delayed {delayed}: starved by poison: {seen:?}");
        }
    }
}

#[test]
fn p09_a_nacked_message_comes_back_within_two_hand_outs_whatever_waits() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..1_000).unwrap();
    for round in 1..=20 {
        let mut given = vec![take(&sub)];
        if *given[0] != 0 {
            given.push(take(&sub));
        }
        let back = given.pop().unwrap();
        assert_eq!((*back, back.attempt()), (0, round));
        back.nack().unwrap();
        given.into_iter().for_each(|delivery| delivery.ack().unwrap());
    }
}

#[test]
fn the_rule_holds_within_batches_and_over_their_edges() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..600).unwrap();
    let mut numbers = Numbers(7);
    let (mut hand_outs, mut acked) = (Vec::new(), 0);
    while acked < 600 {
        let batch = sub.try_recv_batch(1 + numbers.below(40) as usize).unwrap();
        for delivery in batch {
            hand_outs.push((*delivery, delivery.attempt()));
            if numbers.below(3) == 0 {
                delivery.nack().unwrap();
            } else {
                delivery.ack().unwrap();
                acked += 1;
            }
        }
    }
    let last_new = hand_outs.iter().rposition(|(_, attempt)| *attempt == 1).unwrap();
    assert!(hand_outs[..=last_new].windows(2).all(|pair| pair[0].1 == 1 || pair[1].1 == 1));
    assert_eq!(hand_outs.iter().filter(|(_, attempt)| *attempt == 1).count(), 600);
}

#[test]
fn ten_thousand_expired_leases_do_not_keep_a_new_message_waiting() {
    let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(20_000));
    topic.publish_all(0..10_000).unwrap();
    while let Ok(batch) = sub.try_recv_batch(500) {
        std::mem::forget(batch);
    }
    clock.advance(DEADLINE);
    topic.publish(77_777).unwrap();
    let first_two = [take(&sub), take(&sub)];
    assert!(first_two.iter().any(|delivery| **delivery == 77_777 && delivery.attempt() == 1));
    drop(first_two);
    assert_eq!(drain(&sub).len(), 10_001);
}

#[test]
fn when_nothing_new_waits_redeliveries_follow_each_other() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..10).unwrap();
    sub.try_recv_batch(10).unwrap().nack().unwrap();
    let again = sub.try_recv_batch(10).unwrap();
    assert_eq!(again.len(), 10);
    assert!(again.into_iter().all(|delivery| delivery.attempt() == 2));
}

/// Takes batches until nothing is left, nacks event 3 each time and acks the others; gives each batch as `(event, attempt)`.
fn batches(mut next: impl FnMut() -> Result<Batch<u64>, TryRecvError>) -> Vec<Vec<(u64, u32)>> {
    let mut seen = Vec::new();
    while let Ok(batch) = next() {
        let deliveries: Vec<_> = batch.into_iter().collect();
        seen.push(deliveries.iter().map(|delivery| (**delivery, delivery.attempt())).collect());
        for delivery in deliveries {
            if *delivery == 3 { delivery.nack().unwrap() } else { delivery.ack().unwrap() }
        }
    }
    seen
}

#[test]
fn a_message_on_its_last_attempt_is_handed_out_alone() {
    let Desk { topic, sub, .. } =
        desk_with::<u64>(|options| options.dead_letter(DeadLetter::discard().after(3)));
    topic.publish_all(0..50).unwrap();
    let seen = batches(|| sub.try_recv_batch(8));
    for batch in &seen {
        let lasts = batch.iter().filter(|(_, attempt)| *attempt == 3).count();
        assert!(lasts == 0 || batch.len() == 1, "{batch:?}");
    }
    assert_eq!(seen.iter().flatten().filter(|(event, _)| *event == 3).count(), 3);
    assert_eq!(sub.stats().discarded, 1);
    assert!(seen.iter().any(|batch| batch.len() == 8), "the others still come in batches");
}

#[test]
fn a_batch_that_kills_its_subscriber_takes_only_the_poison_to_the_dead_letters() {
    let (broker, clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let morgue = dead.subscription("morgue").create().unwrap();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").dead_letter(DeadLetter::to(&dead).after(2)).create().unwrap();
    topic.publish_all(0..20).unwrap();
    let mut acked = Vec::new();
    // A subscriber that hangs for good as soon as its batch holds the poison.
    for _ in 0..100 {
        match sub.try_recv_batch(5) {
            Ok(batch) if batch.iter().any(|event| *event == 7) => {
                std::mem::forget(batch);
                clock.advance(DEADLINE);
            }
            Ok(batch) => {
                acked.extend(batch.iter().map(|event| *event));
                batch.ack().unwrap();
            }
            Err(_) => break,
        }
    }
    acked.sort();
    assert_eq!(acked, (0..20).filter(|n| *n != 7).collect::<Vec<_>>());
    assert_eq!(drain(&morgue), [7]);
}

#[test]
fn with_one_attempt_every_batch_is_of_one() {
    let Desk { topic, sub, .. } =
        desk_with::<u64>(|options| options.dead_letter(DeadLetter::discard().after(1)));
    topic.publish_all(0..10).unwrap();
    let seen = batches(|| sub.try_recv_batch(10));
    assert_eq!(seen, (0..10).map(|n| vec![(n, 1)]).collect::<Vec<_>>());
}

#[test]
fn without_a_dead_letter_no_attempt_is_the_last() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    for attempt in 1..=10 {
        let batch = sub.try_recv_batch(5).unwrap();
        assert_eq!(batch.len(), 5, "attempt {attempt}");
        batch.nack().unwrap();
    }
}

#[test]
fn a_poison_message_with_a_delayed_retry_costs_the_others_nothing() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(SECOND)));
    topic.publish_all(0..10).unwrap();
    take(&sub).nack().unwrap();
    assert_eq!(drain(&sub), (1..10).collect::<Vec<_>>());
    assert_empty(&sub);
    clock.advance(SECOND);
    assert_eq!(drain_with(&sub, |delivery| delivery.attempt()), [2]);
}
