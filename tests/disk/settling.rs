//! What was settled stays settled, and what was not comes again.

use eventflow::{DeliveryMode, Message, SettleError};

use crate::support::{End, SECOND, drain, orders, over_restarts, send, take, take_many};

/// Without a wait, so many acks may be undone by the end of a process, in `AtLeastOnce` mode.
const UNWRITTEN_MAX: u64 = 64;

#[test]
fn p08_acks_in_any_order_are_kept() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=1_000)).unwrap();
            let mut held = take_many(billing, 1_000);
            // Every third, the last first.
            for n in (0..1_000).rev().filter(|n| n % 3 == 0) {
                held.remove(n).ack().unwrap();
            }
            (held, ())
        },
        |(billing, _), (), _, _| {
            assert_eq!(billing.stats().backlog, 666);
            let mut left = drain(billing);
            left.sort_by_key(|order| order[6..].parse::<u64>().unwrap());
            assert_eq!(left, orders((1..=1_000).filter(|n| n % 3 != 1)));
        },
    );
}

#[test]
fn p08_the_newest_acks_alone_may_be_undone() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=500)).unwrap();
            take_many(billing, 300).into_iter().for_each(|delivery| delivery.ack().unwrap());
            ((), ())
        },
        |(billing, _), (), end, _| {
            let left = drain(billing);
            let undone = left.len() as u64 - 200;
            let undone_max = if end == End::Killed { UNWRITTEN_MAX } else { 0 };
            assert!(undone <= undone_max, "{undone} acks are undone");
            assert_eq!(left, orders(301 - undone..=500), "the newest, and no others");
        },
    );
}

#[test]
fn p08_a_batch_is_acked_as_one() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=20)).unwrap();
            billing.recv_batch(5).unwrap().ack().unwrap();
            let mut batch = billing.recv_batch(5).unwrap();
            // Of these the first is held, and the others are acked.
            let first = batch.pop().unwrap();
            batch.ack().unwrap();
            let nacked = billing.recv_batch(3).unwrap();
            nacked.nack().unwrap();
            (first, ())
        },
        |(billing, _), (), _, _| {
            let mut left = drain(billing);
            left.sort_by_key(|order| order[6..].parse::<u64>().unwrap());
            assert_eq!(left, orders([6].into_iter().chain(11..=20)));
        },
    );
}

#[test]
fn p09_what_was_leased_nacked_or_released_comes_again() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=4)).unwrap();
            let [leased, nacked, released, late] = take_many(billing, 4).try_into().unwrap();
            nacked.nack_after(SECOND * 3_600).unwrap();
            released.release().unwrap();
            ((leased, late), ())
        },
        |(billing, _), (), _, clock| {
            assert_eq!(billing.stats().backlog, 4);
            // A retry delay may be over with its process, or not.
            clock.advance(SECOND * 3_600);
            let mut left = drain(billing);
            left.sort();
            assert_eq!(left, orders(1..=4));
        },
    );
}

#[test]
fn p15_what_an_exactly_once_subscription_settled_never_comes_again() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap(), topic)
        },
        |(billing, topic), clock| {
            topic.publish_all(orders(1..=6)).unwrap();
            let [one, two, three, four, five, six] = take_many(billing, 6).try_into().unwrap();
            one.ack().unwrap();
            three.reject("wrong").unwrap();
            six.ack().unwrap();
            clock.advance(SECOND * 10);
            assert_eq!(two.ack(), Err(SettleError::LeaseExpired { count: 1 }));
            ((four, five), ())
        },
        |(billing, _), (), _, _| {
            let mut left = drain(billing);
            left.sort();
            assert_eq!(left, orders([2, 4, 5]));
            assert_eq!(billing.stats().backlog, 0);
        },
    );
}

#[test]
fn p13_what_was_handed_out_at_most_once_never_comes_again() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("pings").delivery(DeliveryMode::AtMostOnce).open().unwrap(), topic)
        },
        |(pings, topic), _| {
            topic.publish_all(orders(1..=300)).unwrap();
            let held = take_many(pings, 3);
            drop(take(pings));
            let batch = pings.recv_batch(100).unwrap();
            assert_eq!(batch.len(), 100);
            ((held, batch), ())
        },
        |(pings, _), (), _, _| {
            assert_eq!(pings.stats().backlog, 196);
            assert_eq!(drain(pings), orders(105..=300));
        },
    );
}

#[test]
fn p12_keys_stay_in_order() {
    let keyed = |key: &str, n: u64| Message::new(format!("{key} {n}")).ordering_key(key);
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (
                topic.subscription("billing").ordered().delivery(DeliveryMode::ExactlyOnce).open().unwrap(),
                topic,
            )
        },
        |(billing, topic), _| {
            for n in 1..=4 {
                topic.publish_all([keyed("a", n), keyed("b", n)]).unwrap();
            }
            take(billing).ack().unwrap();
            let held = (take(billing), take(billing));
            assert_eq!((&**held.0, &**held.1), ("b 1", "a 2"));
            (held, ())
        },
        |(billing, topic), (), _, _| {
            send(topic, keyed("a", 5));
            let (first, second) = (take(billing), take(billing));
            let mut heads = [first.as_str(), second.as_str()];
            heads.sort_unstable();
            assert_eq!(heads, ["a 2", "b 1"]);
            assert!(billing.try_recv().is_err(), "others of these keys wait");
            first.ack().unwrap();
            second.ack().unwrap();
            let left = drain(billing);
            let of = |key: &str| -> Vec<_> { left.iter().filter(|event| event.starts_with(key)).collect() };
            assert_eq!(of("a"), ["a 3", "a 4", "a 5"]);
            assert_eq!(of("b"), ["b 2", "b 3", "b 4"]);
        },
    );
}

#[test]
fn p01_each_subscription_has_its_own_book() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let book = |name| topic.subscription(name).delivery(DeliveryMode::ExactlyOnce).open().unwrap();
            ([book("all"), book("some"), book("none")], topic)
        },
        |([all, some, _], topic), _| {
            topic.publish_all(orders(1..=700)).unwrap();
            assert_eq!(drain(all).len(), 700);
            some.recv_batch(400).unwrap().ack().unwrap();
            ((), ())
        },
        |([all, some, none], topic), (), _, _| {
            assert_eq!(topic.subscriptions(), ["all", "none", "some"]);
            assert_eq!(drain(all), [""; 0]);
            assert_eq!(drain(some), orders(401..=700));
            assert_eq!(drain(none), orders(1..=700));
            send(topic, "order 701");
            for book in [all, some, none] {
                assert_eq!(drain(book), ["order 701"]);
            }
        },
    );
}

#[cfg(feature = "async")]
#[test]
fn what_is_done_asynchronously_is_as_safe() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            futures::executor::block_on(async {
                for order in orders(1..=12) {
                    topic.publish_async(order).await.unwrap();
                }
                billing.recv_async().await.unwrap().ack_async().await.unwrap();
                billing.recv_batch(10).unwrap().ack_async().await.unwrap();
            });
            ((), ())
        },
        |(billing, _), (), _, _| assert_eq!(drain(billing), ["order 12"]),
    );
}
