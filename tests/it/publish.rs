//! Publishing one message: what is given back, what is delivered, in which order, and what a failure leaves (nothing).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Capacity, IdempotencyId, Message, Overflow, PublishError, Retention, Start};

use crate::support::{
    Bare, Broker, Checksum, DEADLINE, Desk, Drops, NANO, PATIENCE, SECOND, ask, assert_empty, desk, drain,
    drain_with, manual, send, take, within,
};

#[test]
fn p01_every_subscription_that_existed_is_given_the_message_until_it_settles_it() {
    let Desk { clock, topic, sub: a, .. } = desk::<u64>();
    let b = topic.subscription("b").create().unwrap();
    topic.publish(1).unwrap();
    let late = topic.subscription("late").create().unwrap();
    assert_eq!(drain(&a), [1]);
    for attempt in 1..=50 {
        let delivery = take(&b);
        assert_eq!((*delivery, delivery.attempt()), (1, attempt), "never given up");
        match attempt % 3 {
            0 => delivery.nack().unwrap(),
            1 => drop(delivery),
            _ => {
                std::mem::forget(delivery);
                clock.advance(DEADLINE);
            }
        }
    }
    assert_eq!(drain(&b), [1]);
    assert_empty(&a);
    assert_empty(&late);
}

#[test]
fn p01_a_subscription_stores_before_anybody_receives_and_while_nobody_holds_it() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    drop(sub);
    (0..1_000).for_each(|n| {
        topic.publish(n).unwrap();
    });
    assert_eq!(broker.stats().backlog, 1_000);
    assert_eq!(drain(&topic.subscription("sub").open().unwrap()), (0..1_000).collect::<Vec<_>>());
}

#[test]
fn p01_a_message_published_while_others_subscribe_reaches_each_that_was_there_before() {
    within(PATIENCE, || {
        let (broker, _) = manual();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let publisher = topic.clone();
        let publishing = ask(move || (0..2_000).for_each(|n| send(&publisher, n)));
        let mut missing = Vec::new();
        for n in 0..50_u64 {
            let sub = topic.subscription(&format!("s{n}")).create().unwrap();
            // Published after the subscription was there, beside the publisher's own.
            let mine = topic.publish(1_000_000 + n).unwrap().id;
            missing.push((sub, mine, n));
        }
        publishing.get();
        for (sub, mine, n) in missing {
            let seen = drain_with(&sub, |delivery| (delivery.id(), **delivery));
            assert!(seen.contains(&(mine, 1_000_000 + n)));
            assert!(seen.is_sorted_by_key(|(id, _)| *id));
            let run: Vec<u64> = seen.iter().map(|(id, _)| id.sequence()).collect();
            assert!(run.windows(2).all(|pair| pair[1] == pair[0] + 1), "from its start on, no gap");
        }
    });
}

#[test]
fn p02_a_failed_publish_published_nothing_and_gives_the_message_back() {
    let (broker, clock) = manual();
    let topic = broker.topic::<String>("topic").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish("kept").unwrap();
    let message = || {
        Message::new("lost".to_string())
            .attribute("k", "v")
            .ordering_key("key")
            .idempotency_id("id")
            .deliver_after(SECOND)
    };
    let Err(PublishError::Full(back)) = topic.try_publish(message()) else { panic!() };
    assert_eq!(back.event(), "lost");
    let Err(PublishError::Timeout(back)) = topic.publish_timeout(back, Duration::ZERO) else { panic!() };
    assert_eq!((topic.stats().published, sub.stats().backlog), (1, 1));
    assert_eq!(drain(&sub), ["kept"]);
    clock.advance(DEADLINE);
    assert_empty(&sub);
    // What came back is the whole message, and it can be published as it is.
    let receipt = topic.try_publish(back).unwrap();
    assert!(!receipt.deduplicated, "a failed publish records no idempotency id");
    assert_empty(&sub);
    clock.advance(SECOND);
    let delivery = take(&sub);
    let seen = delivery.message();
    assert_eq!(
        (seen.attribute("k"), seen.ordering_key(), seen.event().as_str()),
        (Some("v"), Some("key"), "lost")
    );
    assert_eq!(seen.idempotency_id(), Some(&IdempotencyId::from("id")));
}

#[test]
fn p03_what_is_delivered_equals_what_was_published() {
    let Desk { clock, topic, sub, .. } = desk::<String>();
    clock.advance(Duration::from_nanos(1_234_567_891));
    let published = clock.now();
    let uuid = uuid::Uuid::from_u128(0xFEED);
    let receipt = topic
        .publish(
            Message::new("größe".to_string())
                .attribute("a", "1")
                .attribute("ключ", "значение")
                .attribute("", "")
                .ordering_key("key\0 with anything")
                .idempotency_id(uuid),
        )
        .unwrap();
    clock.advance(SECOND);
    for attempt in 1..=2 {
        let delivery = take(&sub);
        let seen = delivery.message();
        assert_eq!(
            (delivery.as_str(), seen.event().as_str(), delivery.attempt()),
            ("größe", "größe", attempt)
        );
        assert_eq!((seen.id(), delivery.id()), (receipt.id, receipt.id));
        assert_eq!(seen.publish_time(), published);
        assert_eq!(seen.ordering_key(), Some("key\0 with anything"));
        assert_eq!(seen.idempotency_id(), Some(&IdempotencyId::from(uuid)));
        let mut attributes: Vec<_> = seen.attributes().collect();
        attributes.sort();
        assert_eq!(attributes, [("", ""), ("a", "1"), ("ключ", "значение")]);
        assert_eq!((seen.attribute("a"), seen.attribute("b")), (Some("1"), None));
    }
}

#[test]
fn p03_a_plain_message_has_no_attributes_no_key_and_no_id() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish(5).unwrap();
    let delivery = take(&sub);
    let seen = delivery.message();
    assert_eq!((seen.attributes().count(), seen.ordering_key(), seen.idempotency_id()), (0, None, None));
    let copy = seen;
    assert_eq!((*copy, *seen), (5, 5), "a view is `Copy`");
}

#[test]
fn p03_every_subscription_reads_the_same_one_copy() {
    let drops = Drops::default();
    {
        let Desk { topic, sub: a, .. } = desk();
        let b = topic.subscription("b").create().unwrap();
        let c = topic.subscription("c").create().unwrap();
        topic.publish(drops.event(5)).unwrap();
        let held = [take(&a), take(&b), take(&c)];
        assert!(held.iter().all(|delivery| std::ptr::eq(&**delivery, &*held[0])));
        assert_eq!(held[2].number, 5);
        let [one, two, three] = held;
        one.nack().unwrap();
        let again = take(&a);
        assert!(std::ptr::eq(&*again, &*two), "a redelivery reads it too");
        again.ack().unwrap();
        two.ack().unwrap();
        assert_eq!(drops.count(), 0, "one still has it");
        drop(three);
        assert_eq!(topic.stats().resident_messages, 1);
    }
    assert_eq!(drops.count(), 1, "one copy, dropped once");
}

#[test]
fn p03_a_live_delivery_keeps_its_event_when_everything_else_is_gone() {
    let drops = Drops::default();
    let Desk { broker, topic, sub, .. } = desk();
    topic.publish(drops.event(9)).unwrap();
    let held = take(&sub);
    sub.delete().unwrap();
    broker.delete_topic("topic").unwrap();
    drop((broker, topic, sub));
    assert_eq!((held.number, drops.count()), (9, 0));
    drop(held);
    assert_eq!(drops.count(), 1);
}

#[test]
fn p04_a_topic_has_one_order_and_its_sequences_count_from_one() {
    let Desk { topic, sub: a, .. } = desk::<u64>();
    let b = topic.subscription("b").create().unwrap();
    let receipts: Vec<_> = (0..700).map(|n| topic.publish(n).unwrap()).collect();
    assert!(receipts.iter().zip(1..).all(|(receipt, n)| receipt.id.sequence() == n && !receipt.deduplicated));
    for sub in [&a, &b] {
        let seen = drain_with(sub, |delivery| (delivery.id(), **delivery));
        assert!(seen.iter().zip(&receipts).zip(0..).all(|((seen, receipt), n)| *seen == (receipt.id, n)));
        assert_eq!(seen.len(), 700);
    }
}

#[test]
fn p04_many_publishers_have_one_order_and_each_its_own_order_in_it() {
    within(PATIENCE, || {
        let Desk { topic, sub: a, .. } = desk::<(u64, u64)>();
        let b = topic.subscription("b").create().unwrap();
        let publishers: Vec<_> = (0..4)
            .map(|publisher| {
                let topic = topic.clone();
                ask(move || (0..1_500).map(|n| topic.publish((publisher, n)).unwrap().id).collect::<Vec<_>>())
            })
            .collect();
        for publisher in publishers {
            assert!(publisher.get().is_sorted(), "a publisher's receipts rise");
        }
        let seen = drain_with(&a, |delivery| (delivery.id().sequence(), **delivery));
        assert_eq!(
            seen,
            drain_with(&b, |delivery| (delivery.id().sequence(), **delivery)),
            "the same to every reader"
        );
        assert!(seen.iter().zip(1..=6_000).all(|(seen, n)| seen.0 == n));
        for publisher in 0..4 {
            let own: Vec<u64> =
                seen.iter().filter(|seen| seen.1.0 == publisher).map(|seen| seen.1.1).collect();
            assert_eq!(own, (0..1_500).collect::<Vec<_>>());
        }
    });
}

#[test]
fn p04_publish_times_never_fall_along_the_sequence() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let publishers: Vec<_> = (0..4)
            .map(|_| {
                let topic = topic.clone();
                ask(move || (0..1_000).for_each(|n| send(&topic, n)))
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.get());
        let times = drain_with(&sub, |delivery| delivery.message().publish_time());
        assert!(times.len() == 4_000 && times.is_sorted());
    });
}

#[test]
fn p04_a_delayed_message_waits_alone_and_takes_its_place_by_time() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(Message::new(1).deliver_after(Duration::from_secs(5))).unwrap();
    topic.publish(Message::new(2).deliver_after(Duration::from_secs(3))).unwrap();
    topic.publish(3).unwrap();
    topic.publish(Message::new(4).deliver_after(Duration::ZERO)).unwrap();
    assert_eq!(drain(&sub), [3, 4]);
    assert_eq!((sub.stats().delayed, sub.stats().backlog), (2, 2));
    clock.advance(Duration::from_secs(3) - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    assert_eq!(drain(&sub), [2]);
    clock.advance(Duration::from_secs(2) - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    let delivery = take(&sub);
    assert_eq!((*delivery, delivery.attempt()), (1, 1));
    assert_eq!(delivery.message().publish_time() + Duration::from_secs(5), clock.now());
}

#[test]
fn a_delay_holds_for_every_subscription_also_for_one_that_comes_later() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("topic").retention(Retention::forever()).create().unwrap();
    let early = topic.subscription("early").create().unwrap();
    topic.publish(Message::new(1).deliver_after(DEADLINE)).unwrap();
    let late = topic.subscription("late").start(Start::Earliest).create().unwrap();
    clock.advance(DEADLINE - NANO);
    assert_empty(&early);
    assert_empty(&late);
    clock.advance(NANO);
    assert_eq!((drain(&early), drain(&late)), (vec![1], vec![1]));
}

#[test]
fn huge_delays_and_lives_are_clamped() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish(Message::new(1).deliver_after(Duration::MAX)).unwrap();
    topic.publish(Message::new(2).deliver_after(Duration::MAX).expires_in(Duration::MAX)).unwrap();
    topic.publish(Message::new(3).expires_in(Duration::MAX)).unwrap();
    clock.advance(Duration::from_secs(100 * 365 * 24 * 3600));
    assert_eq!(drain(&sub), [3]);
    assert_eq!(sub.stats().backlog, 2);
}

#[test]
fn a_message_with_a_life_leaves_when_it_ends_counted_from_when_it_is_due() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    let life = Duration::from_secs(4);
    topic.publish(Message::new(1).expires_in(life)).unwrap();
    topic.publish(Message::new(2).expires_in(life).deliver_after(Duration::from_secs(3))).unwrap();
    topic.publish(3).unwrap();
    clock.advance(life - NANO);
    take(&sub).release().unwrap();
    clock.advance(NANO);
    assert_eq!((sub.stats().messages_expired, sub.stats().backlog), (1, 2));
    clock.advance(Duration::from_secs(3) - NANO);
    let mut left = drain(&sub);
    left.sort();
    assert_eq!(left, [2, 3], "due at three seconds, it lives to seven");
    topic.publish(Message::new(4).expires_in(life).deliver_after(Duration::from_secs(3))).unwrap();
    clock.advance(life + Duration::from_secs(3));
    assert_empty(&sub);
    assert_eq!((sub.stats().messages_expired, sub.stats().backlog), (2, 0));
}

#[test]
fn a_publish_to_nobody_succeeds_and_is_kept_only_as_retention_says() {
    let (broker, _) = manual();
    let drops = Drops::default();
    let until = broker.topic("until").create().unwrap();
    let forever = broker.topic("forever").retention(Retention::forever()).create().unwrap();
    assert_eq!(until.publish(drops.event(1)).unwrap().id.sequence(), 1);
    assert_eq!(until.publish(drops.event(2)).unwrap().id.sequence(), 2);
    assert_eq!(forever.publish(drops.event(3)).unwrap().id.sequence(), 1);
    assert_eq!((until.stats().published, until.stats().resident_messages), (2, 0));
    assert_eq!(drops.count(), 2, "kept for nobody");
    assert_empty(&until.subscription("late").start(Start::Earliest).create().unwrap());
    let late = forever.subscription("late").start(Start::Earliest).create().unwrap();
    assert_eq!(take(&late).number, 3);
    until.publish(drops.event(4)).unwrap();
    assert_eq!(until.publish(drops.event(5)).unwrap().id.sequence(), 4, "the count goes on");
}

#[test]
fn text_and_bytes_convert_into_messages() {
    let (broker, _) = manual();
    let texts = broker.topic::<String>("texts").create().unwrap();
    let raw = broker.topic::<Bytes>("raw").create().unwrap();
    let (text, bytes) = (texts.subscription("s").create().unwrap(), raw.subscription("s").create().unwrap());
    texts.publish("a").unwrap();
    texts.publish("b".to_string()).unwrap();
    texts.try_publish(Message::new("c".to_string())).unwrap();
    texts.publish_timeout("d", SECOND).unwrap();
    assert_eq!(drain(&text), ["a", "b", "c", "d"]);
    raw.publish(vec![1_u8, 2]).unwrap();
    let fixed: &'static [u8] = b"fixed";
    raw.publish(fixed).unwrap();
    raw.publish(Bytes::from_static(b"own")).unwrap();
    assert_eq!(
        drain(&bytes),
        [Bytes::from_static(&[1, 2]), Bytes::from_static(b"fixed"), Bytes::from_static(b"own")]
    );
}

#[test]
fn a_message_gives_its_event_back_and_an_attribute_set_twice_has_its_last_value() {
    let message = Message::new(Bare(7)).attribute("a", "1").attribute("a", "2");
    assert_eq!(message.event().0, 7);
    let Desk { topic, sub, .. } = desk::<Bare>();
    topic.publish(message).unwrap();
    let delivery = take(&sub);
    assert_eq!(delivery.message().attributes().collect::<Vec<_>>(), [("a", "2")]);
    assert_eq!(Message::new(Bare(8)).into_event().0, 8);
}

#[test]
fn an_event_may_be_shared_unsized_or_large() {
    let (broker, _) = manual();
    let shared = broker.topic::<Arc<str>>("shared").create().unwrap();
    let large = broker.topic::<[u64; 4_096]>("large").create().unwrap();
    let (a, b) = (shared.subscription("s").create().unwrap(), large.subscription("s").create().unwrap());
    let text: Arc<str> = "text".into();
    shared.publish(text.clone()).unwrap();
    assert!(Arc::ptr_eq(&take(&a), &text));
    for n in 0..300 {
        large.publish([n; 4_096]).unwrap();
    }
    let sums = drain_with(&b, |event| event.iter().sum::<u64>());
    assert_eq!(sums, (0..300).map(|n| n * 4_096).collect::<Vec<_>>());
}

#[test]
fn publish_waits_only_where_the_overflow_says_so() {
    let (broker, _) = manual();
    let topic = broker
        .topic::<u64>("topic")
        .capacity(Capacity::messages(1).overflow(Overflow::Reject))
        .create()
        .unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish(1).unwrap();
    within(PATIENCE, move || {
        assert!(matches!(topic.publish(2), Err(PublishError::Full(m)) if *m.event() == 2));
        assert!(matches!(topic.publish_timeout(3, SECOND), Err(PublishError::Full(m)) if *m.event() == 3));
        assert_eq!(drain(&sub), [1]);
    });
}

#[test]
fn p01_ten_thousand_messages_of_four_publishers_fan_in_to_one_subscriber() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let publishers: Vec<_> = (0..4_u64)
            .map(|publisher| {
                let topic = topic.clone();
                ask(move || {
                    for n in 0..2_500 {
                        topic.publish(publisher * 2_500 + n).unwrap();
                    }
                })
            })
            .collect();
        let mut seen = Checksum::default();
        while seen.count < 10_000 {
            let delivery = sub.recv().unwrap();
            assert_eq!(delivery.attempt(), 1);
            seen.add(*delivery);
            delivery.ack().unwrap();
        }
        publishers.into_iter().for_each(|publisher| publisher.get());
        assert_eq!(seen, Checksum::of(0..10_000));
        assert_empty(&sub);
        assert_eq!((sub.stats().backlog, sub.stats().acked), (0, 10_000));
    });
}
