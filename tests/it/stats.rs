//! What can be seen: the counts of a subscription, a topic and a broker.

use std::time::Duration;

use eventflow::{DeadLetter, DeliveryMode, Message, Retention, Start};

use crate::support::{
    DEADLINE, Desk, NANO, PATIENCE, SECOND, ask, assert_empty, desk, desk_with, drain, manual, send, take,
    within,
};

#[test]
fn a_subscriptions_counts_follow_its_messages() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    let stats = sub.stats();
    assert_eq!((stats.backlog, stats.outstanding, stats.delayed, stats.parked), (0, 0, 0, 0));
    assert_eq!((stats.delivered, stats.redelivered, stats.acked, stats.nacked), (0, 0, 0, 0));
    assert_eq!((stats.released, stats.leases_expired, stats.messages_expired), (0, 0, 0));
    assert_eq!((stats.dead_lettered, stats.discarded, stats.filtered), (0, 0, 0));
    assert_eq!(stats.oldest_unsettled_age, None);
    topic.publish_all(0..8).unwrap();
    let held: Vec<_> = (0..6).map(|_| take(&sub)).collect();
    let stats = sub.stats();
    assert_eq!((stats.backlog, stats.outstanding, stats.delivered, stats.redelivered), (8, 6, 6, 0));
    let mut held = held.into_iter();
    held.next().unwrap().ack().unwrap();
    held.next().unwrap().nack().unwrap();
    held.next().unwrap().nack_after(SECOND).unwrap();
    held.next().unwrap().release().unwrap();
    held.next().unwrap().reject("bad").unwrap();
    std::mem::forget(held.next());
    let stats = sub.stats();
    assert_eq!((stats.backlog, stats.outstanding, stats.delayed), (6, 1, 1));
    assert_eq!((stats.acked, stats.nacked, stats.released, stats.discarded), (1, 2, 1, 1));
    clock.advance(DEADLINE);
    let stats = sub.stats();
    assert_eq!((stats.backlog, stats.outstanding, stats.delayed, stats.leases_expired), (6, 0, 0, 1));
    assert_eq!(drain(&sub).len(), 6);
    let stats = sub.stats();
    assert_eq!((stats.backlog, stats.outstanding, stats.acked), (0, 0, 7));
    assert_eq!(stats.delivered, 12, "every hand-out");
    assert!((3..=4).contains(&stats.redelivered), "nacked, delayed and expired; {}", stats.redelivered);
}

#[test]
fn the_age_of_the_oldest_unsettled_message_is_exact() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    clock.advance(DEADLINE);
    assert_eq!(sub.stats().oldest_unsettled_age, None);
    topic.publish(1).unwrap();
    assert_eq!(sub.stats().oldest_unsettled_age, Some(Duration::ZERO));
    clock.advance(3 * SECOND + NANO);
    topic.publish(2).unwrap();
    assert_eq!(sub.stats().oldest_unsettled_age, Some(3 * SECOND + NANO));
    let one = take(&sub);
    clock.advance(SECOND);
    assert_eq!(sub.stats().oldest_unsettled_age, Some(4 * SECOND + NANO), "a lease settles nothing");
    one.ack().unwrap();
    assert_eq!(sub.stats().oldest_unsettled_age, Some(SECOND));
    take(&sub).nack_after(DEADLINE).unwrap();
    clock.advance(SECOND);
    assert_eq!(sub.stats().oldest_unsettled_age, Some(2 * SECOND), "nor does a delay");
    clock.advance(DEADLINE);
    assert_eq!(drain(&sub), [2]);
    assert_eq!(sub.stats().oldest_unsettled_age, None);
}

#[test]
fn p03_a_topic_holds_one_copy_however_many_subscriptions_there_are() {
    let (broker, _) = manual();
    let topic = broker.topic::<Vec<u8>>("topic").create().unwrap();
    let subs: Vec<_> = (0..8).map(|n| topic.subscription(&format!("s{n}")).create().unwrap()).collect();
    for _ in 0..100 {
        topic.publish(vec![0; 1_000]).unwrap();
    }
    let stats = topic.stats();
    assert_eq!((stats.subscriptions, stats.published, stats.resident_messages), (8, 100, 100));
    assert!(stats.resident_bytes >= 100_000 && stats.resident_bytes < 200_000, "{}", stats.resident_bytes);
    assert_eq!(stats.disk_bytes, 0);
    for sub in &subs[1..] {
        assert_eq!(drain(sub).len(), 100);
    }
    assert_eq!(topic.stats().resident_messages, 100, "one still needs them");
    assert_eq!(drain(&subs[0]).len(), 100);
    let stats = topic.stats();
    assert_eq!((stats.published, stats.resident_messages, stats.resident_bytes), (100, 0, 0));
}

#[test]
fn a_topic_counts_its_publishes_its_repeats_and_what_it_dropped() {
    let (broker, _) = manual();
    let capacity = eventflow::Capacity::messages(3).overflow(eventflow::Overflow::DropOldest);
    let topic = broker.topic::<u64>("topic").capacity(capacity).create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    for _ in 0..3 {
        topic.publish(Message::new(1).idempotency_id("one")).unwrap();
    }
    topic.publish_all(2..6).unwrap_err();
    topic.publish_all(2..5).unwrap();
    let stats = topic.stats();
    assert_eq!((stats.published, stats.deduplicated, stats.dropped), (4, 2, 1));
    assert_eq!(drain(&sub), [2, 3, 4]);
    sub.delete().unwrap();
    assert_eq!(topic.stats().subscriptions, 0);
}

#[test]
fn a_broker_adds_up_its_topics() {
    let (broker, _) = manual();
    let (a, b) = (broker.topic::<u64>("a").create().unwrap(), broker.topic::<String>("b").create().unwrap());
    let (x, y) = (a.subscription("x").create().unwrap(), a.subscription("y").create().unwrap());
    let z = b.subscription("z").create().unwrap();
    a.publish_all(0..10).unwrap();
    b.publish("text").unwrap();
    let (_one, _batch, _text) = (take(&x), y.try_recv_batch(4).unwrap(), take(&z));
    let stats = broker.stats();
    assert_eq!((stats.topics, stats.subscriptions, stats.published), (2, 3, 11));
    assert_eq!((stats.backlog, stats.outstanding), (21, 6));
    assert_eq!(stats.disk_bytes > 0, crate::storage::home().is_some(), "in memory it takes no disk");
    assert_eq!(stats.resident_bytes, a.stats().resident_bytes + b.stats().resident_bytes);
    broker.delete_topic("a").unwrap();
    let stats = broker.stats();
    assert_eq!((stats.topics, stats.subscriptions, stats.backlog, stats.outstanding), (1, 1, 1, 1));
}

#[test]
fn at_most_once_counts_its_hand_outs_and_keeps_no_backlog() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.delivery(DeliveryMode::AtMostOnce));
    topic.publish_all(0..5).unwrap();
    drop(sub.try_recv_batch(3).unwrap());
    let stats = sub.stats();
    assert_eq!((stats.delivered, stats.redelivered, stats.backlog, stats.outstanding), (3, 0, 2, 0));
    assert_eq!((stats.nacked, stats.leases_expired), (0, 0));
}

#[test]
fn dead_letters_discards_and_expiries_are_counted_apart() {
    let (broker, clock) = manual();
    let dead = broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let a = topic.subscription("a").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    let b = topic.subscription("b").dead_letter(DeadLetter::discard().after(1)).create().unwrap();
    let c = topic.subscription("c").expire_after(SECOND).create().unwrap();
    topic.publish_all(0..3).unwrap();
    for sub in [&a, &b] {
        take(sub).nack().unwrap();
        take(sub).reject("bad").unwrap();
        take(sub).ack().unwrap();
    }
    take(&c).ack().unwrap();
    clock.advance(SECOND);
    let (a, b, c) = (a.stats(), b.stats(), c.stats());
    assert_eq!((a.dead_lettered, a.discarded, a.messages_expired, a.acked, a.backlog), (2, 0, 0, 1, 0));
    assert_eq!((b.dead_lettered, b.discarded, b.messages_expired, b.acked, b.backlog), (0, 2, 0, 1, 0));
    assert_eq!((c.dead_lettered, c.discarded, c.messages_expired, c.acked, c.backlog), (0, 0, 2, 1, 0));
    assert_eq!(dead.stats().published, 2);
}

#[test]
fn a_late_subscriptions_backlog_is_what_is_kept_for_it() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").retention(Retention::forever()).create().unwrap();
    topic.publish_all(0..1_000).unwrap();
    let begin = |name: &str, start| topic.subscription(name).start(start).create().unwrap().stats().backlog;
    assert_eq!(begin("earliest", Start::Earliest), 1_000);
    assert_eq!(begin("latest", Start::Latest), 0);
    assert_eq!(begin("sequence", Start::Sequence(901)), 100);
}

#[test]
fn p22_stats_can_be_polled_beside_traffic_and_never_contradict_the_limits() {
    within(PATIENCE, || {
        let Desk { broker, topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(8));
        let publisher = ask(move || (0..5_000).for_each(|n| send(&topic, n)));
        let watcher = ask({
            let (broker, sub) = (broker.clone(), sub.clone());
            move || {
                while sub.stats().acked < 5_000 {
                    let stats = sub.stats();
                    assert!(stats.outstanding <= 8 && stats.outstanding <= stats.backlog, "{stats:?}");
                    assert!(stats.acked <= stats.delivered, "{stats:?}");
                    assert!(broker.stats().published <= 5_000);
                }
            }
        });
        let mut left = 5_000;
        while left > 0 {
            let batch = sub.recv_batch(5).unwrap();
            left -= batch.len();
            batch.ack().unwrap();
        }
        publisher.get();
        watcher.get();
        assert_empty(&sub);
    });
}
