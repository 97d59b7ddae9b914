//! A topic's capacity: what counts, what waits, what is refused, what is dropped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{
    Capacity, DeadLetter, Message, Overflow, PublishError, Retention, SettleError, Subscription, Topic,
};

use crate::support::{
    Answer, Broker, Checksum, DEADLINE, Desk, Drops, NANO, PATIENCE, SECOND, ask, assert_empty, desk, drain,
    drain_with, manual, send, take, within,
};

/// A topic of this capacity with subscription `a`.
fn limited<E: Send + Sync + 'static>(broker: &Broker, capacity: Capacity) -> (Topic<E>, Subscription<E>) {
    let topic = broker.topic::<E>("limited").capacity(capacity).create().unwrap();
    let sub = topic.subscription("a").create().unwrap();
    (topic, sub)
}

/// A topic for one message, which it holds, and a publisher who waits for its place.
fn blocked(broker: &Broker) -> (Topic<u64>, Subscription<u64>, Answer<u64>) {
    let (topic, sub) = limited(broker, Capacity::messages(1));
    topic.publish(1).unwrap();
    let publisher = waiting_publisher(&topic);
    (topic, sub, publisher)
}

fn waiting_publisher(topic: &Topic<u64>) -> Answer<u64> {
    let publisher = ask({
        let topic = topic.clone();
        move || topic.publish(2).unwrap().id.sequence()
    });
    publisher.assert_pending();
    publisher
}

#[test]
fn p22_by_default_a_subscriber_that_never_reads_stops_no_publisher() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let stuck = topic.subscription("stuck").create().unwrap();
    let held = (0..10).map(|n| topic.publish(n).map(|_| take(&stuck)).unwrap()).collect::<Vec<_>>();
    within(PATIENCE, move || {
        for n in 10..20_000 {
            topic.publish(n).unwrap();
        }
        assert_eq!(drain(&sub), (0..20_000).collect::<Vec<_>>());
        assert_eq!((stuck.stats().backlog, stuck.stats().outstanding), (20_000, 10));
        drop(held);
    });
}

#[test]
fn the_limit_in_messages_is_exact() {
    let (broker, _) = manual();
    let (topic, sub) = limited::<u64>(&broker, Capacity::messages(3));
    for n in 1..=3 {
        topic.try_publish(n).unwrap();
    }
    assert!(matches!(topic.try_publish(4), Err(PublishError::Full(m)) if *m.event() == 4));
    take(&sub).ack().unwrap();
    topic.try_publish(4).unwrap();
    assert!(matches!(topic.try_publish(5), Err(PublishError::Full(_))));
    assert_eq!(drain(&sub), [2, 3, 4]);
    assert_eq!(topic.stats().published, 4);
}

#[test]
fn what_counts_is_what_is_not_settled_by_all() {
    let (broker, _) = manual();
    let (topic, a) = limited::<u64>(&broker, Capacity::messages(2));
    let b = topic.subscription("b").create().unwrap();
    topic.try_publish(1).unwrap();
    topic.try_publish(2).unwrap();
    assert_eq!(drain(&a), [1, 2]);
    assert!(topic.try_publish(3).is_err(), "b has settled nothing");
    let (one, two) = (take(&b), take(&b));
    assert!(topic.try_publish(3).is_err(), "a lease is not a settlement");
    two.ack().unwrap();
    topic.try_publish(3).unwrap();
    assert!(topic.try_publish(4).is_err(), "1 and 3 are unsettled");
    one.nack().unwrap();
    assert!(topic.try_publish(4).is_err(), "a nack settles nothing");
    assert_eq!(drain(&b).len(), 2);
    topic.try_publish(4).unwrap();
    assert!(topic.try_publish(5).is_err(), "a has not settled 3, nobody has settled 4");
    assert_eq!(drain(&a), [3, 4]);
    topic.try_publish(5).unwrap();
}

#[test]
fn what_is_kept_but_settled_does_not_count() {
    let (broker, _) = manual();
    let capacity = Capacity::messages(2).overflow(Overflow::Reject);
    let topic =
        broker.topic::<u64>("kept").retention(Retention::forever()).capacity(capacity).create().unwrap();
    for n in 0..10 {
        topic.publish(n).unwrap();
    }
    let sub = topic.subscription("latest").create().unwrap();
    topic.publish_all([10, 11]).unwrap();
    assert!(matches!(topic.publish(12), Err(PublishError::Full(_))));
    assert_eq!(drain(&sub), [10, 11]);
    topic.publish_all([12, 13]).unwrap();
    assert_eq!(topic.stats().resident_messages, 14);
}

#[test]
fn a_delayed_message_counts() {
    let (broker, clock) = manual();
    let (topic, sub) = limited::<u64>(&broker, Capacity::messages(1));
    topic.try_publish(Message::new(1).deliver_after(SECOND)).unwrap();
    assert!(topic.try_publish(2).is_err());
    clock.advance(SECOND);
    assert_eq!(drain(&sub), [1]);
    topic.try_publish(2).unwrap();
}

#[test]
fn bytes_are_the_length_of_raw_bytes_and_strings() {
    let (broker, _) = manual();
    let (vectors, sub) = limited::<Vec<u8>>(&broker, Capacity::bytes(100));
    vectors.try_publish(vec![0; 60]).unwrap();
    assert!(matches!(vectors.try_publish(vec![0; 41]), Err(PublishError::Full(m)) if m.event().len() == 41));
    vectors.try_publish(vec![0; 40]).unwrap();
    vectors.try_publish(Vec::new()).unwrap();
    assert!(vectors.try_publish(vec![0]).is_err());
    assert_eq!(drain(&sub).len(), 3);
    let strings = broker.topic::<String>("strings").capacity(Capacity::bytes(4)).create().unwrap();
    let _s = strings.subscription("s").create().unwrap();
    strings.try_publish("é").unwrap();
    assert!(matches!(strings.try_publish("abc"), Err(PublishError::Full(_))));
    strings.try_publish("ab").unwrap();
    let raw = broker.topic::<Bytes>("raw").capacity(Capacity::bytes(4)).create().unwrap();
    let _r = raw.subscription("r").create().unwrap();
    raw.try_publish(vec![1; 4]).unwrap();
    assert!(matches!(raw.try_publish(vec![1]), Err(PublishError::Full(_))));
}

#[test]
fn bytes_are_the_size_of_the_type_or_what_weigh_says() {
    let (broker, _) = manual();
    let (sized, _a) = limited::<[u64; 4]>(&broker, Capacity::bytes(64));
    sized.try_publish([0; 4]).unwrap();
    sized.try_publish([0; 4]).unwrap();
    assert!(matches!(sized.try_publish([0; 4]), Err(PublishError::Full(_))));
    let weighed =
        broker.topic::<u64>("weighed").weigh(|n: &u64| *n).capacity(Capacity::bytes(10)).create().unwrap();
    let sub = weighed.subscription("s").create().unwrap();
    weighed.try_publish(7).unwrap();
    assert!(matches!(weighed.try_publish(4), Err(PublishError::Full(_))));
    weighed.try_publish(3).unwrap();
    weighed.try_publish(0).unwrap();
    assert!(matches!(weighed.publish(11), Err(PublishError::TooLarge(m)) if *m.event() == 11));
    assert!(matches!(weighed.publish(u64::MAX), Err(PublishError::TooLarge(_))));
    assert_eq!(drain(&sub), [7, 3, 0]);
    weighed.try_publish(10).unwrap();
}

#[test]
fn what_can_never_fit_fails_at_once_and_drops_nothing() {
    for overflow in [Overflow::Block, Overflow::Reject, Overflow::DropOldest] {
        let (broker, _) = manual();
        let (topic, sub) = limited::<Vec<u8>>(&broker, Capacity::bytes(10).overflow(overflow));
        topic.publish(vec![1; 10]).unwrap();
        within(PATIENCE, move || {
            assert!(
                matches!(topic.publish(vec![0; 11]), Err(PublishError::TooLarge(m)) if m.event().len() == 11)
            );
            assert_eq!(topic.stats().dropped, 0);
            assert_eq!(drain(&sub), [vec![1; 10]]);
        });
    }
}

#[test]
fn an_ack_frees_the_place_a_publisher_waits_for() {
    let (broker, _) = manual();
    let (topic, sub, publisher) = blocked(&broker);
    take(&sub).nack().unwrap();
    publisher.assert_pending();
    assert_eq!(topic.stats().published, 1);
    take(&sub).ack().unwrap();
    assert_eq!(publisher.get(), 2);
    assert_eq!(drain(&sub), [2]);
}

#[test]
fn a_batch_ack_frees_places_for_as_many_publishers() {
    let (broker, _) = manual();
    let (topic, sub) = limited::<u64>(&broker, Capacity::messages(5));
    topic.publish_all(0..5).unwrap();
    let publishers: Vec<_> = (0..5).map(|_| waiting_publisher(&topic)).collect();
    let batch = sub.try_recv_batch(5).unwrap();
    assert_eq!(batch.len(), 5);
    batch.ack().unwrap();
    let mut sequences: Vec<u64> = publishers.into_iter().map(Answer::get).collect();
    sequences.sort();
    assert_eq!(sequences, [6, 7, 8, 9, 10]);
}

#[test]
fn a_rejection_a_dead_letter_and_a_discard_free_the_place() {
    let (broker, _) = manual();
    let (_topic, sub, publisher) = blocked(&broker);
    take(&sub).reject("bad").unwrap();
    assert_eq!(publisher.get(), 2);
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::discard().after(2)).create().unwrap();
    topic.publish(1).unwrap();
    let publisher = waiting_publisher(&topic);
    take(&sub).nack().unwrap();
    publisher.assert_pending();
    take(&sub).nack().unwrap();
    assert_eq!(publisher.get(), 2);
}

#[test]
fn the_deletion_of_the_slow_subscription_frees_the_place() {
    let (broker, _) = manual();
    let (topic, sub) = limited::<u64>(&broker, Capacity::messages(1));
    let slow = topic.subscription("slow").create().unwrap();
    topic.publish(1).unwrap();
    let publisher = waiting_publisher(&topic);
    assert_eq!(drain(&sub), [1]);
    publisher.assert_pending();
    slow.delete().unwrap();
    assert_eq!(publisher.get(), 2);
    assert_eq!(drain(&sub), [2]);
}

#[test]
fn the_expiry_of_a_message_frees_the_place() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(1)).create().unwrap();
    let _sub = topic.subscription("s").expire_after(SECOND).create().unwrap();
    topic.publish(1).unwrap();
    let publisher = waiting_publisher(&topic);
    clock.advance(SECOND - NANO);
    publisher.assert_pending();
    clock.advance(NANO);
    assert_eq!(publisher.get(), 2);
}

#[test]
fn what_a_filter_passes_over_frees_the_place() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(2)).create().unwrap();
    let sub = topic.subscription("s").filter("attributes:wanted").create().unwrap();
    topic.try_publish(1).unwrap();
    topic.try_publish(2).unwrap();
    assert_empty(&sub);
    topic.try_publish(Message::new(3).attribute("wanted", "")).unwrap();
    assert_eq!(drain(&sub), [3]);
}

#[test]
fn a_larger_capacity_lets_a_waiting_publisher_in() {
    let (broker, _) = manual();
    let (topic, sub, publisher) = blocked(&broker);
    topic.update().capacity(Capacity::messages(2)).apply().unwrap();
    assert_eq!(publisher.get(), 2);
    assert!(matches!(topic.try_publish(3), Err(PublishError::Full(_))));
    assert_eq!(drain(&sub), [1, 2]);
    let (broker, _) = manual();
    let (topic, _sub, publisher) = blocked(&broker);
    topic.update().capacity(Capacity::unlimited()).apply().unwrap();
    assert_eq!(publisher.get(), 2);
}

#[test]
fn drop_oldest_drops_the_oldest_and_counts_it() {
    let (broker, _) = manual();
    let drops = Drops::default();
    let (topic, sub) = limited(&broker, Capacity::messages(3).overflow(Overflow::DropOldest));
    for n in 1..=5 {
        assert_eq!(topic.publish(drops.event(n)).unwrap().id.sequence(), n);
    }
    assert_eq!((topic.stats().dropped, sub.stats().backlog), (2, 3));
    assert_eq!(drain_with(&sub, |event| event.number), [3, 4, 5]);
    topic.try_publish(drops.event(6)).unwrap();
    assert_eq!(topic.stats().dropped, 2, "there was room");
    assert_eq!(drain_with(&sub, |event| event.number), [6]);
    assert_eq!(drops.count(), 6);
}

#[test]
fn drop_oldest_ends_the_lease_of_what_it_drops() {
    let (broker, clock) = manual();
    let (topic, a) = limited::<u64>(&broker, Capacity::messages(2).overflow(Overflow::DropOldest));
    let b = topic.subscription("b").create().unwrap();
    topic.publish_all([1, 2]).unwrap();
    let (one, two, other) = (take(&a), take(&a), take(&b));
    topic.publish(3).unwrap();
    assert_eq!(topic.stats().dropped, 1, "one message, whatever the number of subscriptions");
    assert_eq!(*one, 1, "a live delivery still shows its event");
    assert_eq!(one.extend(SECOND), Err(SettleError::LeaseExpired { count: 1 }));
    assert_eq!(one.ack(), Err(SettleError::LeaseExpired { count: 1 }));
    assert_eq!(other.nack(), Err(SettleError::LeaseExpired { count: 1 }));
    two.ack().unwrap();
    assert_eq!((drain(&a), drain(&b)), (vec![3], vec![2, 3]));
    clock.advance(DEADLINE);
    assert_empty(&a);
    assert_empty(&b);
    assert_eq!((a.stats().outstanding, b.stats().outstanding), (0, 0));
}

#[test]
fn drop_oldest_frees_the_outstanding_place_of_what_it_drops() {
    let (broker, _) = manual();
    let capacity = Capacity::messages(1).overflow(Overflow::DropOldest);
    let topic = broker.topic::<u64>("topic").capacity(capacity).create().unwrap();
    let sub = topic.subscription("s").max_outstanding(1).create().unwrap();
    topic.publish(1).unwrap();
    let held = take(&sub);
    topic.publish(2).unwrap();
    assert_eq!(*take(&sub), 2, "the lease of 1 is over");
    drop(held);
    assert_eq!(sub.stats().nacked, 1, "only the one that ran");
}

#[test]
fn drop_oldest_in_bytes_drops_as_many_as_it_must_and_no_more() {
    let (broker, _) = manual();
    let (topic, sub) = limited::<Vec<u8>>(&broker, Capacity::bytes(10).overflow(Overflow::DropOldest));
    for _ in 0..3 {
        topic.publish(vec![3; 3]).unwrap();
    }
    topic.publish(vec![5; 5]).unwrap();
    assert_eq!(topic.stats().dropped, 2, "3 + 5 fit beside each other, 3 + 3 + 5 do not");
    assert_eq!(drain(&sub), [vec![3; 3], vec![5; 5]]);
    topic.publish_all([vec![1; 4], vec![2; 4]]).unwrap();
    topic.publish_all([vec![3; 4], vec![4; 4]]).unwrap();
    assert_eq!((topic.stats().dropped, drain(&sub)), (4, vec![vec![3; 4], vec![4; 4]]));
}

#[test]
fn drop_oldest_drops_for_the_slow_only_what_the_fast_have_settled() {
    let (broker, _) = manual();
    let (topic, fast) = limited::<u64>(&broker, Capacity::messages(2).overflow(Overflow::DropOldest));
    let slow = topic.subscription("slow").create().unwrap();
    let mut seen = Vec::new();
    for n in 0..100 {
        topic.publish(n).unwrap();
        seen.extend(drain(&fast));
    }
    assert_eq!(seen, (0..100).collect::<Vec<_>>(), "a slow neighbour costs the fast one nothing");
    assert_eq!((topic.stats().dropped, drain(&slow)), (98, vec![98, 99]));
}

#[test]
fn p23_the_timeout_of_a_publish_runs_on_the_brokers_clock() {
    let (broker, clock) = manual();
    let (topic, sub, publisher) = {
        let (topic, sub) = limited::<u64>(&broker, Capacity::messages(1));
        topic.publish(1).unwrap();
        let publisher = ask({
            let (topic, clock) = (topic.clone(), clock.clone());
            move || {
                let start = clock.now();
                let error = topic.publish_timeout(2, DEADLINE).unwrap_err();
                (clock.now().duration_since(start).unwrap(), error)
            }
        });
        (topic, sub, publisher)
    };
    publisher.assert_pending();
    let (waited, error) = loop {
        clock.advance(SECOND);
        if let Some(answer) = publisher.poll() {
            break answer;
        }
    };
    assert!(waited >= DEADLINE, "{waited:?}");
    assert!(matches!(error, PublishError::Timeout(m) if *m.event() == 2));
    assert_eq!((topic.stats().published, drain(&sub)), (1, vec![1]));
}

#[test]
fn a_timeout_of_zero_does_not_wait_and_a_huge_one_does() {
    let (broker, clock) = manual();
    let (topic, sub) = limited::<u64>(&broker, Capacity::messages(1));
    topic.publish_timeout(1, Duration::ZERO).unwrap();
    assert!(matches!(topic.publish_timeout(2, Duration::ZERO), Err(PublishError::Timeout(_))));
    let publisher = ask({
        let topic = topic.clone();
        move || topic.publish_timeout(2, Duration::MAX).unwrap().id.sequence()
    });
    publisher.assert_pending();
    clock.advance(Duration::from_secs(365 * 24 * 3600));
    publisher.assert_pending();
    take(&sub).ack().unwrap();
    assert_eq!(publisher.get(), 2);
}

#[test]
fn p09_blocked_publishers_and_receivers_hand_on_ten_thousand_messages_through_a_narrow_topic() {
    for capacity in [1, 3, 64] {
        within(PATIENCE, move || {
            let broker = Broker::in_memory();
            let (topic, sub) = limited::<u64>(&broker, Capacity::messages(capacity));
            let publishers: Vec<_> = (0..4_u64)
                .map(|publisher| {
                    let topic = topic.clone();
                    ask(move || (0..850).for_each(|n| send(&topic, publisher * 850 + n)))
                })
                .collect();
            let mut seen = Checksum::default();
            while seen.count < 3_400 {
                let batch = sub.recv_batch(8).unwrap();
                assert!(batch.len() as u64 <= capacity);
                batch.iter().for_each(|event| seen.add(*event));
                batch.ack().unwrap();
                assert!(sub.stats().backlog <= capacity, "never more than the capacity");
            }
            publishers.into_iter().for_each(|publisher| publisher.get());
            assert_eq!(seen, Checksum::of(0..3_400));
        });
    }
}

#[test]
fn p01_no_message_is_lost_when_its_segment_fills_and_is_freed_at_the_same_time() {
    within(PATIENCE, || {
        const EACH: u64 = 30_000;
        let broker = Broker::in_memory();
        // So heavy that a segment of the log holds two, and so few that each is settled as soon as it is there.
        let topic =
            broker.topic::<u64>("topic").weigh(|_| 400_000).capacity(Capacity::messages(2)).create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                let sub = sub.clone();
                ask(move || {
                    let mut seen = Checksum::default();
                    while let Ok(delivery) = sub.recv() {
                        seen.add(*delivery);
                        delivery.ack().unwrap();
                    }
                    seen
                })
            })
            .collect();
        let publishers: Vec<_> = (0..2)
            .map(|own| {
                let topic = topic.clone();
                ask(move || (0..EACH).for_each(|n| send(&topic, own * EACH + n)))
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.get());
        while sub.stats().backlog > 0 {
            std::thread::yield_now();
        }
        sub.delete().unwrap();
        let mut seen = Checksum::default();
        receivers.into_iter().for_each(|receiver| seen.merge(receiver.get()));
        assert_eq!(seen, Checksum::of(0..2 * EACH));
    });
}

#[test]
fn huge_and_zero_capacities_neither_panic_nor_hang() {
    let (broker, _) = manual();
    for (n, capacity) in [Capacity::messages(u64::MAX), Capacity::bytes(u64::MAX)].into_iter().enumerate() {
        let topic = broker.topic::<Arc<str>>(&format!("t{n}")).capacity(capacity).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        topic.publish(Arc::<str>::from("a")).unwrap();
        assert_eq!(drain(&sub).len(), 1);
    }
    within(PATIENCE, move || {
        // Whether nobody may make such a topic or nobody may publish to it: nobody hangs.
        if let Ok(topic) = broker.topic::<u64>("zero").capacity(Capacity::messages(0)).create() {
            let _sub = topic.subscription("s").create().unwrap();
            assert!(matches!(topic.publish(1), Err(PublishError::TooLarge(_))));
        }
    });
}

#[test]
fn a_dead_letter_weighs_what_its_own_topic_says() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").weigh(|n| n * 5).create().unwrap();
    let _undertaker = dead.subscription("undertaker").create().unwrap();
    let work = broker.topic::<u64>("work").weigh(|_| 3).create().unwrap();
    let worker = work.subscription("worker").dead_letter(DeadLetter::to(&dead)).create().unwrap();
    work.publish(7u64).unwrap();
    assert_eq!(work.stats().resident_bytes, 3);
    take(&worker).reject("too light").unwrap();
    assert_eq!(dead.stats().resident_bytes, 35);
}
