//! What a topic keeps, and how much: retention, capacity, seeks and figures over restarts.

use eventflow::{
    Capacity, DeliveryMode, Message, MessageStatus, Overflow, PublishError, Retention, Seek, Start,
};

use crate::support::{End, Order, OrderCodec, drain, order, orders, over_restarts, send, take};

const EXACTLY: DeliveryMode = DeliveryMode::ExactlyOnce;

#[test]
fn p17_what_is_kept_for_ever_is_there_for_who_comes_late() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=600)).unwrap();
            billing.recv_batch(500).unwrap().ack().unwrap();
            ((), topic.stats().published)
        },
        |(billing, topic), published, _, _| {
            assert_eq!(published, 600);
            let late = topic.subscription("late").start(Start::Earliest).open().unwrap();
            assert_eq!(drain(&late), orders(1..=600));
            let middle = topic.subscription("middle").start(Start::Sequence(300)).open().unwrap();
            assert_eq!(drain(&middle), orders(300..=600));
            assert_eq!(drain(billing), orders(501..=600));
        },
    );
}

#[test]
fn p17_what_all_have_settled_is_gone() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let book = |name| topic.subscription(name).delivery(EXACTLY).open().unwrap();
            (book("fast"), book("slow"), topic)
        },
        |(fast, slow, topic), _| {
            topic.publish_all(orders(1..=1_000)).unwrap();
            fast.recv_batch(1_000).unwrap().ack().unwrap();
            slow.recv_batch(900).unwrap().ack().unwrap();
            ((), ())
        },
        |(fast, slow, topic), (), _, _| {
            let kept = topic.stats().resident_messages;
            assert!((100..=356).contains(&kept), "{kept} messages are kept where 100 are needed");
            let late = topic.subscription("late").start(Start::Earliest).open().unwrap();
            assert_eq!(drain(&late), orders(901..=1_000));
            assert_eq!(drain(fast), [""; 0]);
            assert_eq!(drain(slow), orders(901..=1_000));
        },
    );
}

#[test]
fn p17_bounds_drop_only_what_is_settled() {
    over_restarts(
        |broker| {
            let kept = Retention::forever().max_messages(300);
            let topic = broker.topic::<String>("orders").retention(kept).open().unwrap();
            (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=1_000)).unwrap();
            billing.recv_batch(200).unwrap().ack().unwrap();
            ((), ())
        },
        |(billing, topic), (), _, _| {
            assert_eq!(drain(billing), orders(201..=1_000), "none of them was settled");
            send(topic, "order 1001");
            let kept = topic.stats().resident_messages;
            assert!((300..=600).contains(&kept), "{kept} are kept where 300 are to be");
        },
    );
}

#[test]
fn a_full_topic_is_full_again() {
    for overflow in [Overflow::Reject, Overflow::Block] {
        over_restarts(
            |broker| {
                let capacity = Capacity::messages(10).overflow(overflow);
                let topic = broker.topic::<String>("orders").capacity(capacity).open().unwrap();
                (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
            },
            |(billing, topic), _| {
                topic.publish_all(orders(1..=10)).unwrap();
                assert!(matches!(topic.try_publish("more"), Err(PublishError::Full(_))));
                take(billing).ack().unwrap();
                send(topic, "order 11");
                ((), ())
            },
            |(billing, topic), (), _, _| {
                for _ in 0..2 {
                    assert!(matches!(topic.try_publish("more"), Err(PublishError::Full(_))));
                }
                let held = take(billing);
                assert!(
                    matches!(topic.try_publish("more"), Err(PublishError::Full(_))),
                    "leased is not settled"
                );
                held.ack().unwrap();
                assert!(topic.try_publish("order 12").is_ok());
                assert!(matches!(topic.try_publish("more"), Err(PublishError::Full(_))));
                assert_eq!(drain(billing), orders(3..=12));
            },
        );
    }
}

#[test]
fn a_capacity_in_bytes_weighs_as_before() {
    over_restarts(
        |broker| {
            let weighed = broker.topic::<Order>("weighed").codec(OrderCodec("order/1"));
            let weighed = weighed.weigh(|order| u64::from(order.number));
            let reject = |bytes| Capacity::bytes(bytes).overflow(Overflow::Reject);
            let encoded = broker.topic::<Order>("encoded").codec(OrderCodec("order/1"));
            (weighed.capacity(reject(100)).open().unwrap(), encoded.capacity(reject(64)).open().unwrap())
        },
        |(weighed, encoded), _| {
            weighed.subscription("a").open().unwrap();
            encoded.subscription("a").open().unwrap();
            send(weighed, order(60));
            // 4 bytes of a number and 10 of a customer.
            (0..4).for_each(|n| {
                send(encoded, order(n));
            });
            ((), ())
        },
        |(weighed, encoded), (), _, _| {
            assert!(matches!(weighed.try_publish(order(41)), Err(PublishError::Full(_))));
            assert!(weighed.try_publish(order(40)).is_ok());
            assert!(matches!(weighed.try_publish(order(1)), Err(PublishError::Full(_))));
            assert_eq!(encoded.stats().resident_bytes, 56);
            assert!(matches!(encoded.try_publish(order(1)), Err(PublishError::Full(_))), "56 of 64");
            let weighs_eight = Order { number: 0, customer: "1234".into() };
            assert!(encoded.try_publish(weighs_eight).is_ok());
        },
    );
}

#[test]
fn what_was_dropped_for_space_does_not_come_back() {
    over_restarts(
        |broker| {
            let capacity = Capacity::messages(10).overflow(Overflow::DropOldest);
            let topic = broker.topic::<String>("orders").capacity(capacity).open().unwrap();
            (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
        },
        |(_, topic), _| {
            (1..=25).for_each(|n| {
                send(topic, format!("order {n}"));
            });
            assert_eq!(topic.stats().dropped, 15);
            ((), ())
        },
        |(billing, topic), (), end, _| {
            assert_eq!(billing.stats().backlog, 10, "{end:?}");
            send(topic, "order 26");
            assert_eq!(drain(billing), orders(17..=26), "{end:?}");
        },
    );
}

#[test]
fn a_seek_on_a_kept_topic_lasts() {
    let seeks =
        [(Seek::Sequence(4), orders(4..=10)), (Seek::Earliest, orders(1..=10)), (Seek::Latest, orders([]))];
    for (seek, expected) in seeks {
        over_restarts(
            |broker| {
                let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
                (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
            },
            |(billing, topic), _| {
                topic.publish_all(orders(1..=10)).unwrap();
                billing.recv_batch(7).unwrap().ack().unwrap();
                let held = take(billing);
                billing.seek(seek.clone()).unwrap();
                (held, ())
            },
            |(billing, topic), (), _, _| {
                assert_eq!(billing.stats().backlog, expected.len() as u64, "{seek:?}");
                assert_eq!(drain(billing), expected, "{seek:?}");
                // Again, from what is settled now.
                billing.seek(Seek::Sequence(9)).unwrap();
                send(topic, "order 11");
                assert_eq!(drain(billing), orders(9..=11), "{seek:?}");
            },
        );
    }
}

#[test]
fn acks_after_a_seek_are_of_the_new_generation() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=10)).unwrap();
            for _ in 0..3 {
                assert_eq!(drain(billing).len(), 10);
                billing.seek(Seek::Earliest).unwrap();
            }
            billing.recv_batch(4).unwrap().ack().unwrap();
            ((), ())
        },
        |(billing, _), (), _, _| {
            assert_eq!(take(billing).attempt(), 1);
            assert_eq!(drain(billing).len(), 6);
        },
    );
}

#[test]
fn p16_a_seek_brings_back_what_all_have_settled_as_far_as_it_is_there() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let book = |name| topic.subscription(name).delivery(EXACTLY).open().unwrap();
            (book("billing"), book("stuck"), topic)
        },
        |(billing, stuck, topic), _| {
            topic.publish_all(orders(1..=700)).unwrap();
            billing.recv_batch(700).unwrap().ack().unwrap();
            stuck.recv_batch(1).unwrap().release().unwrap();
            let batch = stuck.recv_batch(700).unwrap();
            for (n, order) in batch.into_iter().enumerate() {
                // What is in the middle goes, and stays gone.
                if n > 0 && n < 650 {
                    order.ack().unwrap();
                }
            }
            billing.seek(Seek::Earliest).unwrap();
            let there = billing.stats().backlog;
            // The first message's segment is kept, and the last one's: of a batch, a segment holds 256.
            assert!((51..=512).contains(&there), "{there} of 700, of which two segments are kept");
            ((), there)
        },
        |(billing, _, _), there, end, _| {
            let again = drain(billing);
            assert_eq!(again.len() as u64, there, "{end:?}");
            assert_eq!(again.first().map(String::as_str), Some("order 1"));
        },
    );
}

#[test]
fn p16_a_start_at_the_earliest_finds_the_same_after_a_restart() {
    over_restarts(
        |broker| (broker.topic::<String>("orders").open().unwrap(), broker.clone()),
        |(topic, _), _| {
            let billing = topic.subscription("billing").delivery(EXACTLY).open().unwrap();
            topic.publish_all(orders(1..=600)).unwrap();
            let mut batch = billing.recv_batch(600).unwrap().into_iter();
            let first = batch.next().unwrap();
            batch.for_each(|order| order.ack().unwrap());
            let late = topic.subscription("late").start(Start::Earliest).open().unwrap();
            let there = late.stats().backlog;
            assert!((1..600).contains(&there), "{there}");
            (first, there)
        },
        |(topic, _), there, end, _| {
            let late = topic.subscription("late").open().unwrap();
            assert_eq!(drain(&late).len() as u64, there, "{end:?}");
        },
    );
}

#[test]
fn figures_are_those_of_what_is_there() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic, broker.clone())
        },
        |(billing, topic, _), _| {
            topic.publish_all(orders(1..=100)).unwrap();
            billing.recv_batch(30).unwrap().ack().unwrap();
            (take(billing), ())
        },
        |(billing, topic, broker), (), _, _| {
            let stats = billing.stats();
            assert_eq!((stats.backlog, stats.outstanding, stats.delayed, stats.parked), (70, 0, 0, 0));
            assert!(stats.oldest_unsettled_age.is_some());
            let of_topic = topic.stats();
            assert_eq!((of_topic.subscriptions, of_topic.published), (1, 100));
            let of_all = broker.stats();
            assert_eq!((of_all.topics, of_all.subscriptions, of_all.published), (1, 1, 100));
            assert_eq!((of_all.backlog, of_all.outstanding), (70, 0));
            assert!(of_all.disk_bytes > 0);
            let _held = take(billing);
            assert_eq!((billing.stats().outstanding, broker.stats().outstanding), (1, 1));
        },
    );
}

#[test]
fn where_a_message_stands_is_known() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            let billing = topic.subscription("billing").delivery(EXACTLY);
            (billing.filter(r#"attributes.region != "us""#).open().unwrap(), topic)
        },
        |(billing, topic), clock| {
            let [acked, rejected, waiting] =
                ["acked", "rejected", "waiting"].map(|text| send(topic, text).id);
            take(billing).ack().unwrap();
            take(billing).reject("wrong").unwrap();
            let filtered = send(topic, Message::new("far".to_owned()).attribute("region", "us")).id;
            let life = std::time::Duration::from_secs(1);
            let expired = send(topic, Message::new("short".to_owned()).expires_in(life)).id;
            clock.advance(life);
            let held = take(billing);
            assert!(billing.try_recv().is_err());
            (held, [acked, rejected, waiting, filtered, expired])
        },
        |(_, topic), ids, end, _| {
            let statuses = ids.map(|id| topic.status(id).expect("it is kept")["billing"]);
            use MessageStatus::{Acked, Discarded, Expired, Filtered, Waiting};
            let mut expected = [Acked, Discarded, Waiting, Filtered, Expired];
            if end == End::Killed {
                // What is not waited for is found out again: these are.
                expected[1] = statuses[1];
                expected[3] = statuses[3];
            }
            assert_eq!(statuses, expected, "{end:?}");
        },
    );
}

#[test]
fn p17_a_longer_retention_does_not_bring_back_what_is_gone() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").delivery(EXACTLY).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            topic.publish_all(orders(1..=600)).unwrap();
            billing.recv_batch(600).unwrap().ack().unwrap();
            topic.update().retention(Retention::forever()).apply().unwrap();
            topic.publish_all(orders(601..=700)).unwrap();
            billing.recv_batch(100).unwrap().ack().unwrap();
            assert!(topic.stats().resident_messages <= 256);
            ((), ())
        },
        |(_, topic), (), _, _| {
            let kept = topic.stats().resident_messages;
            assert!(kept <= 256, "{kept} messages are kept, of which 600 were gone");
        },
    );
}
