//! The twenty behaviours every engine must show, one test each; and, where it changes nothing of what is to be seen, over restarts of the broker.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventflow::{
    Capacity, DeadLetter, Message, Overflow, PublishAllError, PublishError, PublishErrorKind, RecvError,
    RecvTimeoutError, Retention, Start, Subscription, Topic, TryRecvError,
};

use crate::support::{
    Answer, Broker, Checksum, Counted, DEADLINE, Drops, NANO, Numbers, SECOND, ask, assert_empty, desk,
    desk_with, drain, drain_with, manual, take, within,
};

fn on_real_time() -> (Broker, Topic<u64>, Subscription<u64>) {
    let broker = Broker::in_memory();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    (broker, topic, sub)
}

/// What is there on the broker, after it has ended and come again.
fn restarted(broker: Broker) -> (Broker, Topic<u64>, Subscription<u64>) {
    let broker = broker.restarted();
    let topic = broker.topic::<u64>("t").open().unwrap();
    let sub = topic.subscription("s").open().unwrap();
    (broker, topic, sub)
}

#[test]
fn c01_a_hundred_messages_arrive_none_extra_each_equal_to_what_was_published() {
    let mut desk = desk::<String>();
    let mut published = HashMap::new();
    for n in 0..100u32 {
        let message = Message::new(format!("payload {n}"))
            .attribute("number", n.to_string())
            .attribute(format!("only-{n}"), "é".repeat(n as usize))
            .ordering_key(format!("key {}", n % 7))
            .idempotency_id(format!("id {n}"));
        published.insert(desk.topic.publish(message).unwrap().id, n);
    }
    assert_eq!(published.len(), 100, "distinct ids");
    for taken in 0..100 {
        if taken % 40 == 0 {
            desk = desk.restarted();
        }
        let delivery = take(&desk.sub);
        let n = published.remove(&delivery.id()).expect("a message that was published, once");
        let message = delivery.message();
        assert_eq!(*delivery, format!("payload {n}"));
        let attributes: HashMap<&str, &str> = message.attributes().collect();
        let (number, only, value) = (n.to_string(), format!("only-{n}"), "é".repeat(n as usize));
        assert_eq!(attributes, HashMap::from([("number", number.as_str()), (&only, &value)]));
        assert_eq!(message.ordering_key(), Some(format!("key {}", n % 7).as_str()));
        assert_eq!(message.idempotency_id().unwrap().to_string(), format!("id {n}"));
        assert_eq!(message.publish_time(), desk.clock.now());
        delivery.ack().unwrap();
    }
    assert_empty(&desk.sub);
}

/// Receives and acks until `left` messages were received by all together.
fn share(sub: &Subscription<u64>, left: &AtomicU64) -> Vec<u64> {
    let mut seen = Vec::new();
    while left.load(Ordering::SeqCst) > 0 {
        match sub.recv_timeout(Duration::from_millis(20)) {
            Ok(delivery) => {
                seen.push(*delivery);
                delivery.ack().unwrap();
                left.fetch_sub(1, Ordering::SeqCst);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    seen
}

#[test]
fn c02_fifty_publishers_and_fifty_subscribers_of_one_subscription_share_completely() {
    const MESSAGES: u64 = 5_000;
    let (_broker, topic, sub) = on_real_time();
    let left = Arc::new(AtomicU64::new(MESSAGES));
    let subscribers: Vec<_> = (0..50)
        .map(|_| {
            let (sub, left) = (sub.clone(), left.clone());
            ask(move || share(&sub, &left))
        })
        .collect();
    let publishers: Vec<_> = (0..50u64)
        .map(|publisher| {
            let topic = topic.clone();
            ask(move || (0..100).for_each(|n| _ = topic.publish(publisher * 100 + n).unwrap()))
        })
        .collect();
    publishers.into_iter().for_each(Answer::get);
    let seen: Vec<u64> = subscribers.into_iter().flat_map(Answer::get).collect();
    assert_eq!(Checksum::of(seen), Checksum::of(0..MESSAGES));
    assert_empty(&sub);
}

#[test]
fn c03_twenty_topics_in_parallel_each_yield_exactly_their_own() {
    let broker = Broker::in_memory();
    let topics: Vec<_> = (0..20u64)
        .map(|number| {
            let topic = broker.topic::<u64>(&format!("topic-{number}")).create().unwrap();
            let sub = topic.subscription("s").create().unwrap();
            ask(move || {
                for n in 0..200 {
                    topic.publish(number * 1_000 + n).unwrap();
                }
                drain(&sub)
            })
        })
        .collect();
    for (number, seen) in topics.into_iter().map(Answer::get).enumerate() {
        let number = number as u64;
        assert_eq!(seen, (number * 1_000..number * 1_000 + 200).collect::<Vec<_>>());
    }
}

#[test]
fn c04_when_the_first_two_deliveries_are_nacked_all_arrive_again() {
    let desk = desk::<u64>();
    desk.topic.publish_all(0..10u64).unwrap();
    let desk = desk.restarted();
    let nacked = [take(&desk.sub), take(&desk.sub)].map(|delivery| {
        let number = *delivery;
        delivery.nack().unwrap();
        number
    });
    assert_eq!(nacked, [0, 1]);
    let mut seen = drain_with(&desk.sub, |delivery| (**delivery, delivery.attempt()));
    seen.sort_unstable();
    let expected: Vec<(u64, u32)> = (0..10).map(|n| (n, if n < 2 { 2 } else { 1 })).collect();
    assert_eq!(seen, expected);
}

#[test]
fn c05_with_one_outstanding_at_a_time_there_is_nothing_until_the_ack_and_then_the_next() {
    let mut desk = desk_with::<u64>(|options| options.max_outstanding(1));
    desk.topic.publish_all(0..5u64).unwrap();
    for n in 0..5 {
        desk = desk.restarted();
        let other = desk.sub.clone();
        let delivery = take(&desk.sub);
        assert_eq!(*delivery, n);
        assert_empty(&desk.sub);
        assert_empty(&other);
        delivery.ack().unwrap();
    }
    assert_empty(&desk.sub);
}

#[test]
fn c06_subscribers_that_attach_read_a_few_and_go_over_and_over_see_all_between_them() {
    let (mut broker, mut topic, sub) = on_real_time();
    drop(sub);
    let mut seen = Vec::new();
    for round in 0..100u64 {
        if round % 10 == 9 {
            (broker, topic, _) = restarted(broker);
        }
        topic.publish_all(round * 10..(round + 1) * 10).unwrap();
        let sub = topic.subscription("s").open().unwrap();
        for _ in 0..9 {
            let delivery = take(&sub);
            seen.push(*delivery);
            delivery.ack().unwrap();
        }
        // It goes with one in hand.
        drop(take(&sub));
    }
    seen.extend(drain(&topic.subscription("s").open().unwrap()));
    assert_eq!(Checksum::of(seen), Checksum::of(0..1_000));
}

#[test]
fn c07_after_ten_subscribers_came_and_went_at_the_same_time_a_later_one_gets_all() {
    let (broker, topic, sub) = on_real_time();
    drop(sub);
    topic.publish_all(0..500u64).unwrap();
    let visitors: Vec<_> = (0..10)
        .map(|_| {
            let topic = topic.clone();
            ask(move || {
                let sub = topic.subscription("s").open().unwrap();
                for _ in 0..20 {
                    drop(sub.try_recv());
                    drop(sub.try_recv_batch(7));
                }
            })
        })
        .collect();
    visitors.into_iter().for_each(Answer::get);
    let (_broker, _topic, later) = restarted(broker);
    assert_eq!(Checksum::of(drain(&later)), Checksum::of(0..500));
}

#[test]
fn c08_of_a_thousand_messages_of_sixteen_kinds_each_kinds_order_holds() {
    let mut desk = desk_with::<u64>(|options| options.ordered());
    let mut numbers = Numbers(8);
    let kinds: Vec<u64> = (0..1_000).map(|_| numbers.below(16)).collect();
    let of_kind = |(n, kind): (usize, &u64)| Message::new(n as u64).ordering_key(kind.to_string());
    desk.topic.publish_all(kinds.iter().enumerate().map(of_kind)).unwrap();
    let mut last: HashMap<u64, u64> = HashMap::new();
    let mut seen = 0;
    while let Ok(batch) = desk.sub.try_recv_batch(13) {
        for delivery in batch {
            if numbers.below(4) == 0 {
                // Some fail, and take those of their kind behind them along.
                let _ = delivery.nack();
                continue;
            }
            let (kind, number) = (kinds[*delivery as usize], *delivery);
            if delivery.ack().is_ok() {
                let before = last.insert(kind, number);
                assert!(before < Some(number), "kind {kind}: {number} after {before:?}");
                seen += 1;
            }
        }
        if numbers.below(20) == 0 {
            desk = desk.restarted();
        }
    }
    assert_eq!(seen, 1_000);
}

#[test]
fn c09_ten_thousand_messages_by_twenty_publishers_before_anybody_reads_are_all_there() {
    let (broker, topic, _) = on_real_time();
    let publishers: Vec<_> = (0..20u64)
        .map(|publisher| {
            let topic = topic.clone();
            ask(move || (0..500).for_each(|n| _ = topic.publish(publisher * 500 + n).unwrap()))
        })
        .collect();
    publishers.into_iter().for_each(Answer::get);
    let (_broker, _topic, sub) = restarted(broker);
    let seen = drain(&sub);
    assert_eq!(Checksum::of(seen.iter().copied()), Checksum::of(0..10_000));
    for publisher in 0..20 {
        let own = seen.iter().filter(|n| **n / 500 == publisher);
        assert!(own.is_sorted(), "publisher {publisher}'s own order");
    }
}

#[cfg(feature = "async")]
#[test]
fn c10_a_recv_that_is_cancelled_loses_nothing() {
    use crate::support::Task;
    let desk = desk::<u64>();
    for n in 0..100u64 {
        // Cancelled before it was polled, while it waits, after it was woken, and with its delivery in hand.
        drop(Task::new(desk.sub.recv_async()));
        let waiting = Task::pending(desk.sub.recv_async());
        let woken = Task::pending(desk.sub.recv_async());
        let mut next = Task::pending(desk.sub.recv_async());
        drop(waiting);
        desk.topic.publish(n).unwrap();
        drop(woken);
        assert!(next.wakes() > 0, "the wake of a cancelled recv is passed on");
        drop(next.ready().unwrap());
        let delivery = take(&desk.sub);
        assert_eq!((*delivery, delivery.attempt()), (n, 2));
        delivery.ack().unwrap();
    }
    assert_empty(&desk.sub);
}

#[test]
fn c11_a_subscriber_that_never_reads_blocks_nobody_else() {
    let (broker, topic, _) = on_real_time();
    let name = |n: u64| format!("s{n}");
    (0..200).for_each(|n| _ = topic.subscription(&name(n)).create().unwrap());
    let _never_reads = topic.subscription("idle").create().unwrap();
    let _holds_on = topic.subscription("holds").create().unwrap();
    let publisher = topic.clone();
    within(60, move || (0..500u64).for_each(|n| _ = publisher.publish(n).unwrap()));
    let (_broker, topic, _) = restarted(broker);
    for n in 0..200 {
        let sub = topic.subscription(&name(n)).open().unwrap();
        assert_eq!(drain(&sub), (0..500).collect::<Vec<_>>());
    }
}

#[test]
fn c12_a_duplicate_gets_the_first_receipt_and_the_count_does_not_move() {
    let desk = desk::<u64>();
    let once = |n: u64| Message::new(n).idempotency_id(format!("{n}"));
    let first: Vec<_> = (0..100).map(|n| desk.topic.publish(once(n)).unwrap()).collect();
    let before = (desk.topic.stats().published, desk.sub.stats().backlog);
    let desk = desk.restarted();
    for (n, first) in first.iter().enumerate() {
        let repeat = desk.topic.publish(once(n as u64)).unwrap();
        assert_eq!((repeat.id, repeat.deduplicated), (first.id, true));
    }
    assert_eq!((desk.topic.stats().published, desk.sub.stats().backlog), before);
    assert_eq!(before, (100, 100));
}

#[test]
fn c13_extending_three_times_past_the_deadline_holds_the_lease_and_then_it_expires() {
    let desk = desk::<u64>();
    desk.topic.publish(7u64).unwrap();
    let held = take(&desk.sub);
    for _ in 0..3 {
        desk.clock.advance(DEADLINE - NANO);
        assert_empty(&desk.sub);
        held.extend(DEADLINE).unwrap();
    }
    desk.clock.advance(DEADLINE - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    assert_eq!(take(&desk.sub).attempt(), 2);
    assert!(held.extend(DEADLINE).is_err());
}

#[test]
fn c14_five_attempts_are_exactly_five_deliveries_and_then_a_dead_letter_with_its_reason() {
    let (mut broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    dead.subscription("undertaker").create().unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let mut sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(5)).create().unwrap();
    topic.publish(7u64).unwrap();
    let mut deliveries = 0;
    while let Ok(delivery) = sub.try_recv() {
        deliveries += 1;
        assert_eq!(delivery.attempt(), deliveries);
        drop(delivery);
        (broker, _, sub) = restarted(broker);
    }
    assert_eq!(deliveries, 5);
    let dead = broker.topic::<u64>("dead").open().unwrap();
    let undertaker = dead.subscription("undertaker").open().unwrap();
    let letter = take(&undertaker);
    assert_eq!(*letter, 7);
    assert_eq!(letter.message().attribute("eventflow.dead_letter.attempts"), Some("5"));
    assert_eq!(letter.message().attribute("eventflow.dead_letter.reason"), Some("nacked"));
}

#[test]
fn c15_until_acked_keeps_nothing_for_nobody_and_removes_only_what_all_have_acked() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::until_acked()).create().unwrap();
    topic.publish(drops.event(0)).unwrap();
    assert_eq!(drops.count(), 1);
    let subs = ["a", "b", "c"].map(|name| topic.subscription(name).create().unwrap());
    topic.publish(drops.event(1)).unwrap();
    for (n, sub) in subs.iter().enumerate() {
        assert_eq!(drops.count(), 1, "before ack {n}");
        take(sub).ack().unwrap();
    }
    assert_eq!(drops.count(), 2);
    let late = topic.subscription("late").start(Start::Earliest).create().unwrap();
    assert_empty(&late);
}

#[test]
fn c16_acks_out_of_order_move_the_low_water_correctly() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").max_outstanding(4_096).create().unwrap();
    for n in 0..4_096 {
        topic.publish(drops.event(n)).unwrap();
    }
    let mut held = Vec::new();
    while let Ok(delivery) = sub.try_recv() {
        held.push(Some(delivery));
    }
    let mut order: Vec<usize> = (0..held.len()).collect();
    let mut numbers = Numbers(16);
    for place in (1..order.len()).rev() {
        order.swap(place, numbers.below(place as u64 + 1) as usize);
    }
    for (acked, place) in order.into_iter().enumerate() {
        assert_eq!(sub.stats().backlog, 4_096 - acked as u64);
        held[place].take().unwrap().ack().unwrap();
        // What is still held is still there to be read.
        if let Some(delivery) = held.iter().flatten().next() {
            assert!(delivery.number < 4_096);
        }
    }
    assert_eq!(drops.count(), 4_096);
    assert_eq!((sub.stats().backlog, topic.stats().resident_messages), (0, 0));
}

#[test]
fn c17_twenty_five_thousand_delayed_nacks_drain_to_zero() {
    const MESSAGES: u64 = 25_000;
    let desk = desk_with::<u64>(|options| options.max_outstanding(usize::MAX));
    desk.topic.publish_all(0..MESSAGES).unwrap();
    let mut numbers = Numbers(17);
    while let Ok(delivery) = desk.sub.try_recv() {
        delivery.nack_after(SECOND + Duration::from_millis(numbers.below(60_000))).unwrap();
    }
    let stats = desk.sub.stats();
    assert_eq!((stats.delayed, stats.backlog, stats.nacked), (MESSAGES, MESSAGES, MESSAGES));
    let mut seen = Vec::new();
    for _ in 0..61 {
        desk.clock.advance(SECOND);
        seen.extend(drain_with(&desk.sub, |delivery| {
            assert_eq!(delivery.attempt(), 2);
            **delivery
        }));
    }
    assert_eq!(Checksum::of(seen), Checksum::of(0..MESSAGES));
    let stats = desk.sub.stats();
    assert_eq!((stats.delayed, stats.backlog, stats.outstanding), (0, 0, 0));
}

#[test]
fn c18_pause_delivers_nothing_until_resume() {
    let desk = desk::<u64>();
    desk.topic.publish(1u64).unwrap();
    desk.sub.pause().unwrap();
    let desk = desk.restarted();
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
    desk.topic.publish(2u64).unwrap();
    desk.clock.advance(DEADLINE * 10);
    waiting.assert_pending();
    desk.sub.resume().unwrap();
    assert_eq!(waiting.get(), 1);
    assert_eq!(drain(&desk.sub), [2]);
}

#[test]
fn c19_an_atomic_batch_with_one_bad_message_publishes_none() {
    let (broker, _clock) = manual();
    let capacity = Capacity::messages(10).overflow(Overflow::Reject);
    let topic = broker.topic::<String>("t").capacity(capacity).create().unwrap();
    topic.subscription("s").create().unwrap();
    topic.publish(Message::new("first".to_owned()).idempotency_id("taken")).unwrap();
    let broker = broker.restarted();
    let topic = broker.topic::<String>("t").open().unwrap();
    let sub = topic.subscription("s").open().unwrap();
    let good = || Message::new("good".to_owned());
    type Expected = fn(&PublishErrorKind) -> bool;
    let batches: [(Vec<Message<String>>, Expected); 4] = [
        (vec![good(), good().attribute("k", "v".repeat(2_000))], |kind| {
            matches!(kind, PublishErrorKind::TooLarge)
        }),
        (vec![good(), good().idempotency_id("taken")], |kind| {
            matches!(kind, PublishErrorKind::IdempotencyConflict)
        }),
        ((0..10).map(|_| good()).collect(), |kind| matches!(kind, PublishErrorKind::Full)),
        ((0..11).map(|_| good()).collect(), |kind| matches!(kind, PublishErrorKind::TooLarge)),
    ];
    for (batch, expected) in batches {
        let length = batch.len();
        let PublishAllError { kind, messages, .. } = topic.publish_all(batch).unwrap_err();
        assert!(expected(&kind), "{kind:?}");
        assert_eq!(messages.len(), length, "all come back");
    }
    assert_eq!(topic.stats().published, 1);
    assert_eq!(drain(&sub), ["first"]);
}

#[test]
fn c20_after_shutdown_publishing_and_receiving_are_errors_and_no_hangs() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let idle = topic.subscription("idle").create().unwrap();
    topic.publish(1u64).unwrap();
    take(&idle).ack().unwrap();
    let publisher = ask({
        let topic = topic.clone();
        move || topic.publish(2u64)
    });
    let receiver = ask(move || idle.recv().map(|delivery| *delivery));
    publisher.assert_pending();
    receiver.assert_pending();
    broker.shutdown(Duration::ZERO).unwrap();
    assert!(matches!(publisher.get(), Err(PublishError::Closed(_))));
    assert_eq!(receiver.get(), Err(RecvError::Closed));
    within(60, move || {
        assert!(matches!(topic.publish(3u64), Err(PublishError::Closed(_))));
        assert!(matches!(topic.try_publish(3u64), Err(PublishError::Closed(_))));
        assert!(matches!(topic.publish_timeout(3u64, SECOND), Err(PublishError::Closed(_))));
        assert!(matches!(topic.publish_all([3u64]).unwrap_err().kind, PublishErrorKind::Closed));
        assert!(matches!(sub.recv(), Err(RecvError::Closed)));
        assert!(matches!(sub.try_recv(), Err(TryRecvError::Closed)));
        assert!(matches!(sub.recv_timeout(SECOND), Err(RecvTimeoutError::Closed)));
        assert!(matches!(sub.recv_batch(3), Err(RecvError::Closed)));
        assert!(matches!(sub.try_recv_batch(3), Err(TryRecvError::Closed)));
        assert_eq!(sub.iter().count(), 0);
        assert!(broker.topic::<u64>("t").open().is_err());
        assert!(topic.subscription("another").create().is_err());
    });
}

#[test]
fn c02_no_two_subscribers_ever_hold_the_same_message() {
    const MESSAGES: u64 = 3_000;
    let (_broker, topic, sub) = on_real_time();
    let held = Arc::new(Mutex::new(HashSet::new()));
    let left = Arc::new(AtomicU64::new(MESSAGES));
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let (sub, held, left) = (sub.clone(), held.clone(), left.clone());
            ask(move || {
                let mut numbers = Numbers(worker);
                while left.load(Ordering::SeqCst) > 0 {
                    let Ok(delivery) = sub.recv_timeout(Duration::from_millis(20)) else { continue };
                    assert!(held.lock().unwrap().insert(*delivery), "{} is held twice", *delivery);
                    std::thread::yield_now();
                    assert!(held.lock().unwrap().remove(&*delivery));
                    if numbers.below(3) == 0 {
                        delivery.nack().unwrap();
                    } else {
                        delivery.ack().unwrap();
                        left.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    (0..MESSAGES).for_each(|n| _ = topic.publish(n).unwrap());
    workers.into_iter().for_each(Answer::get);
    assert_eq!(sub.stats().acked, MESSAGES);
}
