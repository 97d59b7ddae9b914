//! Receiving: the verbs of it, the three shapes (fan-in, load-balanced, fan-out), pausing, and how much may be outstanding.

use std::collections::HashSet;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use eventflow::{Delivery, DeliveryMode, RecvTimeoutError, Start, Subscription, TryRecvError};

use crate::support::{
    Broker, Checksum, DEADLINE, Desk, NANO, Numbers, PATIENCE, SECOND, ask, assert_empty, desk, desk_with,
    drain, drain_with, send, take, within,
};

#[test]
fn p06_no_other_subscriber_is_given_a_leased_message() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    let (clone, opened) = (sub.clone(), topic.subscription("sub").open().unwrap());
    topic.publish(1).unwrap();
    let held = take(&sub);
    for other in [&sub, &clone, &opened] {
        assert_empty(other);
        assert_eq!(other.recv_timeout(Duration::ZERO).map(|_| ()), Err(RecvTimeoutError::Timeout));
        assert!(matches!(other.try_recv_batch(10), Err(TryRecvError::Empty)));
    }
    clock.advance(DEADLINE - NANO);
    assert_empty(&clone);
    drop(sub);
    assert_empty(&clone);
    held.ack().unwrap();
    clock.advance(DEADLINE);
    assert_empty(&clone);
}

#[test]
fn p06_of_many_threads_that_ask_for_one_message_exactly_one_is_given_it() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk::<u64>();
        for round in 0..200 {
            topic.publish(round).unwrap();
            let start = Arc::new(Barrier::new(4));
            let askers: Vec<_> = (0..4)
                .map(|_| {
                    let (sub, start) = (sub.clone(), start.clone());
                    ask(move || {
                        start.wait();
                        sub.try_recv().ok()
                    })
                })
                .collect();
            let given: Vec<Delivery<u64>> = askers.into_iter().filter_map(|asker| asker.get()).collect();
            assert_eq!(given.len(), 1);
            given.into_iter().for_each(|delivery| delivery.ack().unwrap());
        }
    });
}

/// Four subscribers share what four publishers publish; gives what each saw.
fn share(
    total: u64,
    work: impl Fn(&Subscription<u64>) -> Vec<u64> + Clone + Send + 'static,
) -> Vec<Vec<u64>> {
    let broker = Broker::in_memory();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    let subscribers: Vec<_> = (0..4)
        .map(|_| {
            let (sub, work) = (sub.clone(), work.clone());
            ask(move || work(&sub))
        })
        .collect();
    let publishers: Vec<_> = (0..4_u64)
        .map(|publisher| {
            let topic = topic.clone();
            ask(move || (0..total / 4).for_each(|n| send(&topic, publisher * (total / 4) + n)))
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.get());
    while sub.stats().backlog > 0 {
        std::thread::yield_now();
    }
    sub.delete().unwrap();
    subscribers.into_iter().map(|subscriber| subscriber.get()).collect()
}

#[test]
fn p06_ten_thousand_messages_are_shared_by_four_subscribers_and_none_is_given_twice() {
    let seen = within(PATIENCE, || {
        share(10_000, |sub| {
            let mut seen = Vec::new();
            while let Ok(delivery) = sub.recv() {
                assert_eq!(delivery.attempt(), 1);
                seen.push(*delivery);
                delivery.ack().unwrap();
            }
            seen
        })
    });
    assert!(seen.iter().all(|own| own.len() <= 10_000));
    assert_eq!(Checksum::of(seen.into_iter().flatten()), Checksum::of(0..10_000));
}

#[test]
fn p06_ten_thousand_messages_are_shared_in_batches_by_four_subscribers() {
    let seen = within(PATIENCE, || {
        share(10_000, |sub| {
            let mut seen = Vec::new();
            while let Ok(batch) = sub.recv_batch(32) {
                assert!((1..=32).contains(&batch.len()));
                seen.extend(batch.iter().map(|event| *event));
                batch.ack().unwrap();
            }
            seen
        })
    });
    assert_eq!(Checksum::of(seen.into_iter().flatten()), Checksum::of(0..10_000));
}

#[test]
fn p09_ten_thousand_messages_that_fail_release_and_drop_at_random_are_each_acked_once() {
    let seen = within(PATIENCE, || {
        share(10_000, |sub| {
            let mut seen = Vec::new();
            while let Ok(delivery) = sub.recv() {
                let chance = Numbers(delivery.id().sequence() * 31 + u64::from(delivery.attempt())).below(10);
                match chance {
                    0 => delivery.nack().unwrap(),
                    1 => drop(delivery),
                    2 if delivery.attempt() > 1 => delivery.nack_after(Duration::ZERO).unwrap(),
                    3 if Numbers(seen.len() as u64).below(2) == 0 => {
                        delivery.release().unwrap();
                        // Another look at what it just gave back may come at once: it is not counted as seen.
                        if let Ok(other) = sub.try_recv() {
                            seen.push(*other);
                            other.ack().unwrap();
                        }
                    }
                    _ => {
                        seen.push(*delivery);
                        delivery.ack().unwrap();
                    }
                }
            }
            seen
        })
    });
    assert_eq!(Checksum::of(seen.into_iter().flatten()), Checksum::of(0..10_000));
}

#[test]
fn p01_ten_thousand_messages_fan_out_to_eight_subscriptions_in_one_order() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let subscribers: Vec<_> = (0..8)
            .map(|n| {
                let sub = topic.subscription(&format!("s{n}")).create().unwrap();
                ask(move || {
                    let (mut seen, mut last) = (Checksum::default(), 0);
                    while seen.count < 10_000 {
                        let delivery = sub.recv().unwrap();
                        assert!(delivery.id().sequence() == last + 1 && delivery.attempt() == 1);
                        last = delivery.id().sequence();
                        seen.add(*delivery);
                        delivery.ack().unwrap();
                    }
                    (seen, sub.stats().backlog)
                })
            })
            .collect();
        let publishers: Vec<_> = (0..2_u64)
            .map(|publisher| {
                let topic = topic.clone();
                ask(move || (0..5_000).for_each(|n| send(&topic, publisher * 5_000 + n)))
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.get());
        for subscriber in subscribers {
            assert_eq!(subscriber.get(), (Checksum::of(0..10_000), 0));
        }
        assert_eq!(topic.stats().published, 10_000);
    });
}

#[test]
fn p22_a_stuck_subscription_holds_up_neither_publisher_nor_neighbours() {
    within(PATIENCE, || {
        let Desk { topic, sub: stuck, .. } = desk::<u64>();
        let neighbour = topic.subscription("neighbour").create().unwrap();
        topic.publish(0).unwrap();
        let held = take(&stuck);
        for n in 1..5_000 {
            topic.publish(n).unwrap();
        }
        assert_eq!(drain(&neighbour).len(), 5_000);
        held.ack().unwrap();
        assert_eq!(drain(&stuck).len(), 4_999);
    });
}

#[test]
fn a_delivery_is_its_event() {
    let Desk { topic, sub, .. } = desk::<String>();
    topic.publish("text").unwrap();
    let delivery = take(&sub);
    assert_eq!(delivery.len(), 4);
    assert_eq!(*delivery, "text");
    assert_eq!(delivery.message().event().as_str(), "text");
    fn outlives(delivery: &Delivery<String>) -> &str {
        delivery.message().event()
    }
    assert_eq!(outlives(&delivery), "text");
}

#[test]
fn recv_timeout_takes_what_is_there_also_with_no_time_at_all() {
    let Desk { topic, sub, .. } = desk::<u64>();
    assert_eq!(sub.recv_timeout(Duration::ZERO).map(|_| ()), Err(RecvTimeoutError::Timeout));
    topic.publish(1).unwrap();
    let delivery = sub.recv_timeout(Duration::ZERO).unwrap();
    assert_eq!(*delivery, 1);
}

#[test]
fn p23_the_timeout_of_a_receiver_runs_on_the_brokers_clock() {
    let Desk { clock, sub, .. } = desk::<u64>();
    let receiver = ask({
        let clock = clock.clone();
        move || {
            let start = clock.now();
            let outcome = sub.recv_timeout(DEADLINE).map(|_| ());
            (outcome, clock.now().duration_since(start).unwrap())
        }
    });
    receiver.assert_pending();
    let (outcome, waited) = loop {
        clock.advance(SECOND);
        if let Some(answer) = receiver.poll() {
            break answer;
        }
    };
    assert_eq!(outcome, Err(RecvTimeoutError::Timeout));
    assert!(waited >= DEADLINE, "{waited:?}");
}

#[test]
fn a_huge_timeout_is_clamped_and_ends_with_a_message() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let receiver = ask(move || sub.recv_timeout(Duration::MAX).map(|delivery| *delivery));
    receiver.assert_pending();
    topic.publish(1).unwrap();
    assert_eq!(receiver.get(), Ok(1));
}

#[test]
fn iter_gives_deliveries_and_ends_when_the_subscription_does() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    let reader = ask({
        let sub = sub.clone();
        move || {
            let mut seen = Vec::new();
            for delivery in sub.iter() {
                seen.push(*delivery);
                delivery.ack().unwrap();
            }
            (seen, sub.recv().map(|_| ()))
        }
    });
    reader.assert_pending();
    sub.delete().unwrap();
    assert_eq!(reader.get(), ((0..5).collect(), Err(eventflow::RecvError::Deleted)));
}

#[test]
fn p13_at_most_once_is_never_given_twice_whatever_happens_to_the_delivery() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.delivery(DeliveryMode::AtMostOnce));
    topic.publish_all(0..6).unwrap();
    drop(take(&sub));
    std::mem::forget(take(&sub));
    take(&sub).ack().unwrap();
    let _ = take(&sub).nack();
    let held = take(&sub);
    crate::support::panics(|| {
        let _held = take(&sub);
        panic!("with a delivery in hand");
    });
    clock.advance(DEADLINE);
    assert_empty(&sub);
    assert_eq!(sub.stats().backlog, 0, "settled at hand-out");
    assert_eq!(sub.stats().outstanding, 0);
    held.ack().unwrap();
    clock.advance(DEADLINE);
    assert_empty(&sub);
}

#[test]
fn p13_at_most_once_shares_ten_thousand_messages_without_a_repeat() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.delivery(DeliveryMode::AtMostOnce));
        let subscribers: Vec<_> = (0..4)
            .map(|_| {
                let sub = sub.clone();
                ask(move || {
                    let mut seen = Vec::new();
                    while let Ok(batch) = sub.recv_batch(7) {
                        seen.extend(batch.into_iter().map(|delivery| *delivery));
                    }
                    seen
                })
            })
            .collect();
        topic.publish_all(0..5_000).unwrap();
        (5_000..10_000).for_each(|n| send(&topic, n));
        while sub.stats().backlog > 0 {
            std::thread::yield_now();
        }
        sub.delete().unwrap();
        let seen: Vec<u64> = subscribers.into_iter().flat_map(|subscriber| subscriber.get()).collect();
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len(), "no repeat");
        assert_eq!(Checksum::of(seen), Checksum::of(0..10_000));
    });
}

#[test]
fn pausing_stops_hand_outs_until_resuming() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all([1, 2, 3]).unwrap();
    let (acked, nacked, late) = (take(&sub), take(&sub), take(&sub));
    sub.pause().unwrap();
    topic.publish(4).unwrap();
    assert_empty(&sub);
    assert_empty(&topic.subscription("sub").open().unwrap());
    acked.ack().unwrap();
    nacked.nack().unwrap();
    clock.advance(DEADLINE);
    assert_empty(&sub);
    assert_eq!((sub.stats().backlog, sub.stats().leases_expired), (3, 1));
    late.ack().unwrap();
    sub.pause().unwrap();
    sub.resume().unwrap();
    let mut seen = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    seen.sort();
    assert_eq!(seen, [(2, 2), (4, 1)], "twice paused, once resumed; a late ack counts also while paused");
    sub.resume().unwrap();
}

#[test]
fn pausing_one_subscription_leaves_the_others_alone_and_outlives_its_handles() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let other = topic.subscription("other").create().unwrap();
    sub.pause().unwrap();
    drop(sub);
    topic.publish(1).unwrap();
    assert_eq!(drain(&other), [1]);
    let again = broker.topic::<u64>("topic").open().unwrap().subscription("sub").open().unwrap();
    assert_empty(&again);
    again.resume().unwrap();
    assert_eq!(drain(&again), [1]);
}

#[test]
fn p09_resuming_wakes_those_who_waited() {
    let Desk { topic, sub, .. } = desk::<u64>();
    sub.pause().unwrap();
    topic.publish_all([1, 2]).unwrap();
    let receivers: Vec<_> = (0..2)
        .map(|_| {
            let sub = sub.clone();
            ask(move || *sub.recv().unwrap())
        })
        .collect();
    receivers.iter().for_each(|receiver| receiver.assert_pending());
    sub.resume().unwrap();
    receivers.into_iter().for_each(|receiver| assert!(receiver.get() > 0));
}

#[test]
fn max_outstanding_is_over_all_subscribers_of_the_subscription() {
    let Desk { clock, topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(3));
    let clone = sub.clone();
    let other = topic.subscription("other").create().unwrap();
    topic.publish_all(0..10).unwrap();
    let mut batch = sub.try_recv_batch(10).unwrap();
    assert_eq!(batch.len(), 3);
    assert_empty(&sub);
    assert_empty(&clone);
    assert_eq!(other.try_recv_batch(10).unwrap().len(), 10, "another subscription has its own");
    batch.pop().unwrap().ack().unwrap();
    let held = take(&clone);
    assert_eq!(*held, 3);
    assert_empty(&sub);
    held.release().unwrap();
    assert_eq!(*take(&sub), 3, "and dropped, it is there again");
    drop(batch);
    assert_eq!(sub.stats().outstanding, 0);
    std::mem::forget(sub.try_recv_batch(10).unwrap());
    assert_empty(&sub);
    clock.advance(DEADLINE);
    assert_eq!(sub.try_recv_batch(10).unwrap().len(), 3, "expired leases are not outstanding");
}

#[test]
fn a_thousand_are_outstanding_at_once_unless_told_otherwise() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..1_500).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| sub.try_recv().ok()).collect();
    assert_eq!((held.len(), sub.stats().outstanding), (1_000, 1_000));
    drop(held);
    let wide = topic.subscription("wide").max_outstanding(usize::MAX).create().unwrap();
    topic.publish_all(0..2_500).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| wide.try_recv().ok()).collect();
    assert_eq!(held.len(), 2_500);
}

#[test]
fn p09_an_ack_frees_an_outstanding_place_and_wakes_a_blocked_receiver() {
    type End = fn(Delivery<u64>);
    let ends: [End; 5] = [
        |delivery| delivery.ack().unwrap(),
        |delivery| delivery.nack().unwrap(),
        |delivery| delivery.release().unwrap(),
        |delivery| delivery.reject("bad").unwrap(),
        drop,
    ];
    for end in ends {
        let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(1));
        topic.publish_all([1, 2]).unwrap();
        let held = take(&sub);
        let receiver = ask({
            let sub = sub.clone();
            move || sub.recv().unwrap().ack().unwrap()
        });
        receiver.assert_pending();
        end(held);
        receiver.get();
    }
}

#[test]
fn start_says_where_a_subscription_begins() {
    let (broker, clock) = crate::support::manual();
    let topic = broker.topic::<u64>("topic").retention(eventflow::Retention::forever()).create().unwrap();
    topic.publish(1).unwrap();
    clock.advance(SECOND);
    let middle = clock.now();
    topic.publish_all([2, 3]).unwrap();
    clock.advance(SECOND);
    topic.publish(4).unwrap();
    let begin = |name: &str, start| topic.subscription(name).start(start).create().unwrap();
    assert_empty(&topic.subscription("default").create().unwrap());
    assert_empty(&begin("latest", Start::Latest));
    assert_eq!(drain(&begin("earliest", Start::Earliest)), [1, 2, 3, 4]);
    assert_eq!(drain(&begin("time", Start::Time(middle))), [2, 3, 4], "inclusive");
    assert_eq!(drain(&begin("after", Start::Time(middle + NANO))), [4]);
    assert_eq!(drain(&begin("ancient", Start::Time(std::time::SystemTime::UNIX_EPOCH))), [1, 2, 3, 4]);
    assert_empty(&begin("future", Start::Time(middle + 10 * DEADLINE)));
    assert_eq!(drain(&begin("sequence", Start::Sequence(3))), [3, 4], "inclusive");
    assert_eq!(drain(&begin("zero", Start::Sequence(0))), [1, 2, 3, 4]);
    assert_empty(&begin("next", Start::Sequence(5)));
    assert_empty(&begin("huge", Start::Sequence(u64::MAX)));
    topic.publish(5).unwrap();
    for name in ["default", "latest", "earliest", "time", "after", "sequence", "zero", "next"] {
        assert_eq!(drain(&topic.subscription(name).open().unwrap()), [5], "{name}");
    }
}
