//! The same as futures, on a real disk: what they were told is there again, and what they were not told is there in whole or not at all.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use eventflow::{
    Broker, DeadLetter, DeliveryMode, Durability, Message, PublishError, Retention, SettleError, Subscription,
};
use futures::StreamExt;
use futures::executor::block_on;
use futures::future::join_all;

use crate::support::{Dir, ENDS, drain, ended, orders, take_many, watched};

const PATIENCE: Duration = Duration::from_secs(120);

/// None: it was dropped after so many polls.
async fn dropped_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[test]
fn p01_what_futures_were_told_is_there_again() {
    for how in ENDS {
        watched(PATIENCE, move || {
            let dir = Dir::new();
            let broker = dir.open();
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
            block_on(async {
                let sent = orders(1..=400);
                let published = join_all(sent.iter().map(|order| topic.publish_async(order.clone()))).await;
                assert!(published.iter().all(Result::is_ok));
                let mut stream = billing.stream();
                for _ in 0..20 {
                    stream.next().await.unwrap().ack_async().await.unwrap();
                }
                let held = take_many(&billing, 200);
                let acked = join_all(held.into_iter().map(|held| held.ack_async())).await;
                assert_eq!(acked, [const { Ok(()) }; 200]);
                billing.recv_batch(80).unwrap().ack_async().await.unwrap();
            });
            let dir = ended(how, dir, broker, (topic, billing));
            let broker = dir.open();
            let topic = broker.topic::<String>("orders").open().unwrap();
            let billing = topic.subscription("billing").open().unwrap();
            assert_eq!(drain(&billing), orders(301..=400), "{how:?}");
        });
    }
}

#[test]
fn p23_blocking_callers_and_futures_share_the_disk() {
    watched(PATIENCE, || {
        let dir = Dir::new();
        let broker = dir.open();
        let topic = broker.topic::<String>("orders").open().unwrap();
        let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let topic = topic.clone();
                scope.spawn(move || {
                    for m in 0..50 {
                        let text = format!("{n} {m}");
                        match n % 2 {
                            0 => drop(topic.publish(text).unwrap()),
                            _ => drop(block_on(topic.publish_async(text)).unwrap()),
                        }
                    }
                });
            }
            for n in 0..2 {
                let billing = billing.clone();
                scope.spawn(move || {
                    for _ in 0..100 {
                        match n {
                            0 => billing.recv().unwrap().ack().unwrap(),
                            _ => block_on(async { billing.recv_async().await.unwrap().ack_async().await })
                                .unwrap(),
                        }
                    }
                });
            }
        });
        assert_eq!((billing.stats().backlog, billing.stats().acked), (0, 200));
    });
}

/// What each order came to, by its text.
fn counts(subscription: &Subscription<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in drain(subscription) {
        *counts.entry(event).or_default() += 1;
    }
    counts
}

#[test]
fn p05_futures_that_are_dropped_at_any_poll_leave_nothing_half_done() {
    watched(PATIENCE, || {
        let dir = Dir::new();
        let broker = dir.open();
        let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
        let bills = broker.topic::<String>("bills").retention(Retention::forever()).open().unwrap();
        let last = broker.topic::<String>("last").retention(Retention::forever()).open().unwrap();
        let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce);
        let billing = billing.dead_letter(DeadLetter::to(&last).after(100)).open().unwrap();
        let once = topic.subscription("once").delivery(DeliveryMode::AtMostOnce).open().unwrap();
        let ledger = bills.subscription("ledger").open().unwrap();
        let mut seen = BTreeMap::new();
        block_on(async {
            for n in 0..60 {
                let order = format!("order {n}");
                let message = || Message::new(order.clone()).idempotency_id(order.as_str());
                // Whether it was published or not, the second says so.
                let first = dropped_after(n % 3, topic.publish_async(message())).await;
                let second = topic.publish_async(message()).await.unwrap();
                assert_eq!(second.deduplicated, second.deduplicated || first.is_some(), "{order}");
                if let Some(delivery) = dropped_after(n % 4, once.recv_async()).await {
                    *seen.entry(delivery.unwrap().clone()).or_default() += 1;
                }
                let Some(delivery) = dropped_after(n % 5, billing.recv_async()).await else { continue };
                let delivery = delivery.unwrap();
                let mut transaction = broker.transaction();
                transaction.publish(&bills, delivery.clone());
                transaction.ack(delivery);
                let _told_or_not = dropped_after(n % 2, transaction.commit_async()).await;
            }
        });
        // What was on its way has arrived: it lies before this in the journal.
        last.publish("the end").unwrap();
        let dir = dir.copy();
        let left = counts(&billing);
        let billed = counts(&ledger);
        let mut all = left.clone();
        billed.iter().for_each(|(order, count)| *all.entry(order.clone()).or_default() += count);
        let each: BTreeMap<_, _> = (0..60).map(|n| (format!("order {n}"), 1)).collect();
        assert_eq!(all, each, "each was billed, or is yet to be");
        assert!(billed.len() > 10 && left.len() > 10, "{} and {}", billed.len(), left.len());
        counts(&once).into_iter().for_each(|(order, count)| *seen.entry(order).or_default() += count);
        assert_eq!(seen, each, "P13: once, and P9: not lost with a future");

        let broker = dir.open();
        let topic = broker.topic::<String>("orders").open().unwrap();
        let bills = broker.topic::<String>("bills").open().unwrap();
        let _last = broker.topic::<String>("last").open().unwrap();
        assert_eq!(counts(&bills.subscription("ledger").open().unwrap()), billed);
        assert_eq!(counts(&topic.subscription("billing").open().unwrap()), left);
    });
}

#[test]
fn p02_futures_during_a_shutdown_are_told_the_truth() {
    watched(PATIENCE, || {
        for n in 0..20 {
            let dir = Dir::new();
            let broker = dir.open();
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
            topic.publish("first").unwrap();
            let held = billing.recv().unwrap();
            let (told, acked) = std::thread::scope(|scope| {
                let publishers = scope.spawn(|| {
                    let publish = |order: String| {
                        let topic = topic.clone();
                        async move { (order.clone(), topic.publish_async(order).await) }
                    };
                    block_on(join_all(orders(0..200).into_iter().map(publish)))
                });
                let acker = scope.spawn(|| block_on(held.ack_async()));
                broker.shutdown(Duration::from_secs(60)).unwrap();
                (publishers.join().unwrap(), acker.join().unwrap())
            });
            drop((topic, billing, broker));
            let broker = dir.open();
            let topic = broker.topic::<String>("orders").open().unwrap();
            let left = drain(&topic.subscription("billing").open().unwrap());
            assert!(matches!(acked, Ok(()) | Err(SettleError::Closed)), "{acked:?}");
            assert_eq!(left.contains(&"first".to_owned()), acked.is_err(), "{n}: {acked:?}");
            for (order, outcome) in told {
                assert!(matches!(outcome, Ok(_) | Err(PublishError::Closed(_))), "{outcome:?}");
                assert_eq!(left.contains(&order), outcome.is_ok(), "{n}: {order}");
            }
        }
    });
}

#[test]
fn p01_with_any_durability_futures_are_told_when_it_is_kept() {
    let durabilities = [Durability::Always, Durability::Os, Durability::Interval(Duration::from_millis(1))];
    for durability in durabilities {
        watched(PATIENCE, move || {
            let dir = Dir::new();
            let broker = Broker::builder().dir(dir.path()).durability(durability).build().unwrap();
            let topic = broker.topic::<String>("orders").open().unwrap();
            let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
            block_on(async {
                topic.publish_all_async(orders(1..=10)).await.unwrap();
                for order in orders(1..=5) {
                    let delivery = billing.recv_async().await.unwrap();
                    assert_eq!(*delivery, order);
                    delivery.ack_async().await.unwrap();
                }
            });
            // The process ends here, and the machine goes on.
            let again = dir.copy();
            let broker = again.open();
            let topic = broker.topic::<String>("orders").open().unwrap();
            let billing = topic.subscription("billing").open().unwrap();
            assert_eq!(drain(&billing), orders(6..=10), "{durability:?}");
        });
    }
}
