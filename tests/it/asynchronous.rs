//! Futures and streams, polled by hand, dropped at every point, and run on real executors.

use std::task::Poll;
use std::time::Duration;

use eventflow::{Capacity, Delivery, Message, Overflow, PublishError, RecvError, SettleError, Topic};
use futures::StreamExt;
use futures::executor::block_on;

use crate::support::{
    Broker, Checksum, DEADLINE, Desk, Drops, NANO, PATIENCE, SECOND, Task, ask, assert_empty, desk,
    desk_with, drain, drain_with, manual, take, within,
};

fn event<E: Copy + Send + Sync + 'static>(outcome: Result<Delivery<E>, RecvError>) -> E {
    *outcome.unwrap()
}

#[test]
fn recv_async_is_ready_at_once_when_a_message_is_there() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let delivery = Task::new(sub.recv_async()).ready().unwrap();
    assert_eq!((*delivery, delivery.attempt(), sub.stats().outstanding), (1, 1, 1));
    delivery.ack().unwrap();
}

#[test]
fn p09_a_waiting_future_is_woken_by_a_publish() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    assert_eq!(task.wakes(), 0);
    topic.publish(1).unwrap();
    assert!(task.wakes() >= 1);
    assert_eq!(event(task.ready()), 1);
}

#[test]
fn p09_a_message_is_leased_in_the_poll_that_gives_it_and_not_before() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    topic.publish(1).unwrap();
    assert_eq!(sub.stats().outstanding, 0, "woken is not leased");
    assert_eq!(drain(&sub), [1]);
    assert!(task.poll().is_pending(), "another was faster");
    topic.publish(2).unwrap();
    assert_eq!(event(task.ready()), 2);
}

#[test]
fn p09_a_future_dropped_at_any_point_loses_nothing() {
    let Desk { topic, sub, .. } = desk::<u64>();
    drop(sub.recv_async());
    drop(Task::pending(sub.recv_async()));
    let woken = Task::pending(sub.recv_async());
    topic.publish(1).unwrap();
    assert!(woken.wakes() >= 1);
    drop(woken);
    assert_eq!(drain_with(&sub, |delivery| (**delivery, delivery.attempt())), [(1, 1)]);
    let mut finished = Task::pending(sub.recv_async());
    topic.publish(2).unwrap();
    let delivery = finished.ready().unwrap();
    drop(finished);
    assert_eq!(delivery.ack(), Ok(()), "its delivery is the caller's");
}

#[test]
fn p09_a_woken_future_that_is_dropped_hands_its_wake_on_to_the_next_future() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut tasks: Vec<_> = (0..5).map(|_| Task::pending(sub.recv_async())).collect();
    topic.publish(1).unwrap();
    // Whoever was woken is dropped, until one is left: it must have been woken by then.
    for _ in 0..4 {
        let woken = tasks.iter().position(|task| task.wakes() > 0).expect("somebody is woken");
        drop(tasks.remove(woken));
    }
    assert!(tasks[0].wakes() > 0);
    assert_eq!(event(tasks[0].ready()), 1);
}

#[test]
fn p09_a_woken_future_that_is_dropped_hands_its_wake_on_to_a_sleeping_thread() {
    for _ in 0..20 {
        let Desk { topic, sub, .. } = desk::<u64>();
        let first = Task::pending(sub.recv_async());
        let sleeper = ask({
            let sub = sub.clone();
            move || *sub.recv().unwrap()
        });
        sleeper.assert_pending();
        topic.publish(1).unwrap();
        drop(first);
        assert_eq!(sleeper.get(), 1);
    }
}

#[test]
fn p09_the_newest_waker_is_the_one_that_is_woken() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    for _ in 0..3 {
        task.renew();
        assert!(task.poll().is_pending());
    }
    topic.publish(1).unwrap();
    assert!(task.wakes() >= 1);
    assert_eq!(event(task.ready()), 1);
}

#[test]
fn p09_a_future_that_was_woken_for_another_ones_message_waits_on() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    for n in 0..50 {
        topic.publish(n).unwrap();
        assert_eq!(drain(&sub), [n]);
        assert!(task.poll().is_pending());
    }
    task.renew();
    assert!(task.poll().is_pending());
    topic.publish(50).unwrap();
    assert!(task.wakes() >= 1);
    assert_eq!(event(task.ready()), 50);
}

#[test]
fn p09_every_cause_wakes_a_waiting_future() {
    type Cause = fn(&Desk<u64>, Delivery<u64>);
    let causes: [(&str, Cause); 9] = [
        ("nack", |_, held| held.nack().unwrap()),
        ("release", |_, held| held.release().unwrap()),
        ("drop", |_, held| drop(held)),
        ("extend", |_, held| held.extend(Duration::ZERO).unwrap()),
        ("expiry", |desk, held| {
            std::mem::forget(held);
            desk.clock.advance(DEADLINE);
        }),
        ("retry", |desk, held| {
            held.nack_after(SECOND).unwrap();
            desk.clock.advance(SECOND);
        }),
        ("resume", |desk, held| {
            desk.sub.pause().unwrap();
            held.nack().unwrap();
            desk.sub.resume().unwrap();
        }),
        ("seek", |desk, held| {
            desk.sub.seek(eventflow::Seek::Earliest).unwrap();
            drop(held);
        }),
        ("max_outstanding", |desk, held| {
            desk.sub.update().max_outstanding(1).apply().unwrap();
            desk.topic.publish(1).unwrap();
            held.ack().unwrap();
        }),
    ];
    for (name, cause) in causes {
        let desk = desk::<u64>();
        desk.topic.publish(1).unwrap();
        let held = take(&desk.sub);
        let mut task = Task::pending(desk.sub.recv_async());
        cause(&desk, held);
        assert!(task.wakes() >= 1, "{name}");
        assert_eq!(event(task.ready()), 1, "{name}");
    }
}

#[test]
fn p23_time_wakes_a_future_at_its_deadline_and_not_before() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    topic.publish(Message::new(1).deliver_after(DEADLINE)).unwrap();
    clock.advance(DEADLINE - NANO);
    assert!(task.poll().is_pending());
    task.renew();
    assert!(task.poll().is_pending());
    clock.advance(NANO);
    assert!(task.wakes() >= 1);
    assert_eq!(event(task.ready()), 1);
}

#[test]
fn p09_the_system_clock_wakes_a_future_that_nobody_polls() {
    let (attempt, delayed) = within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").ack_deadline(Duration::from_millis(5)).create().unwrap();
        topic.publish(1).unwrap();
        std::mem::forget(take(&sub));
        let again = block_on(sub.recv_async()).unwrap();
        let attempt = again.attempt();
        again.ack().unwrap();
        topic.publish(Message::new(2).deliver_after(Duration::from_millis(5))).unwrap();
        (attempt, event(block_on(sub.recv_async())))
    });
    assert_eq!((attempt, delayed), (2, 2));
}

#[test]
fn recv_async_says_closed_or_deleted_and_a_waiting_one_is_woken_to_say_it() {
    let Desk { sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    sub.delete().unwrap();
    assert!(task.wakes() >= 1);
    assert!(matches!(task.ready(), Err(RecvError::Deleted)));
    assert!(matches!(Task::new(sub.recv_async()).ready(), Err(RecvError::Deleted)));
    let Desk { broker, sub, .. } = desk::<u64>();
    let mut task = Task::pending(sub.recv_async());
    broker.shutdown(Duration::ZERO).unwrap();
    assert!(task.wakes() >= 1);
    assert!(matches!(task.ready(), Err(RecvError::Closed)));
}

#[test]
fn a_stream_gives_deliveries_waits_and_ends_with_its_subscription() {
    fn plain<T: Send + Unpin>(_: &T) {}
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut stream = sub.stream();
    plain(&stream);
    topic.publish_all(0..3).unwrap();
    for n in 0..3 {
        let delivery = Task::new(stream.next()).ready().unwrap();
        assert_eq!(*delivery, n);
        delivery.ack().unwrap();
    }
    let mut next = Task::pending(stream.next());
    topic.publish(3).unwrap();
    assert!(next.wakes() >= 1);
    assert_eq!(*next.ready().unwrap(), 3);
    drop(next);
    drain(&sub);
    let mut last = Task::pending(stream.next());
    sub.delete().unwrap();
    assert!(last.wakes() >= 1);
    assert!(last.ready().is_none());
    drop(last);
    assert!(matches!(sub.recv(), Err(RecvError::Deleted)), "the next recv says which");
}

#[test]
fn p09_a_stream_dropped_after_it_was_woken_hands_its_wake_on() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut stream = sub.stream();
    let woken = Task::pending(stream.next());
    let mut other = Task::pending(sub.recv_async());
    topic.publish(1).unwrap();
    drop(woken);
    drop(stream);
    assert!(other.wakes() >= 1);
    assert_eq!(event(other.ready()), 1);
}

#[test]
fn a_stream_outlives_the_handle_it_came_from() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let mut stream = sub.stream();
    drop(sub);
    topic.publish(1).unwrap();
    assert_eq!(*Task::new(stream.next()).ready().unwrap(), 1);
}

#[test]
fn ack_async_settles_and_one_that_is_never_polled_is_a_drop() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..6).unwrap();
    assert_eq!(Task::new(take(&sub).ack_async()).ready(), Ok(()));
    assert_eq!(Task::new(sub.try_recv_batch(3).unwrap().ack_async()).ready(), Ok(()));
    assert_eq!((sub.stats().acked, sub.stats().backlog), (4, 2));
    drop(take(&sub).ack_async());
    drop(sub.try_recv_batch(1).unwrap().ack_async());
    assert_eq!((sub.stats().nacked, sub.stats().outstanding, sub.stats().backlog), (2, 0, 2));
    let held = take(&sub);
    sub.delete().unwrap();
    assert_eq!(Task::new(held.ack_async()).ready(), Err(SettleError::Deleted));
}

#[test]
fn publish_async_is_ready_when_there_is_room_and_says_why_when_there_can_be_none() {
    let (broker, _) = manual();
    let topic = broker
        .topic::<u64>("topic")
        .capacity(Capacity::messages(2).overflow(Overflow::Reject))
        .create()
        .unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    let receipt = Task::new(topic.publish_async(1)).ready().unwrap();
    assert_eq!((receipt.id.sequence(), receipt.deduplicated), (1, false));
    Task::new(topic.publish_async(Message::new(2).attribute("k", "v"))).ready().unwrap();
    assert!(
        matches!(Task::new(topic.publish_async(3)).ready(), Err(PublishError::Full(m)) if *m.event() == 3)
    );
    let long = Message::new(4).attribute("k", "v".repeat(1_025));
    assert!(matches!(Task::new(topic.publish_async(long)).ready(), Err(PublishError::TooLarge(_))));
    assert_eq!(drain(&sub), [1, 2]);
    broker.delete_topic("topic").unwrap();
    assert!(matches!(Task::new(topic.publish_async(5)).ready(), Err(PublishError::TopicDeleted(_))));
}

/// A topic of one place, which is taken, and the subscription that can free it.
fn full<E: Send + Sync + 'static>(event: E) -> (Broker, Topic<E>, eventflow::Subscription<E>) {
    let (broker, _) = manual();
    let topic = broker.topic::<E>("topic").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish(event).unwrap();
    (broker, topic, sub)
}

#[test]
fn p09_a_publish_that_waits_for_room_is_woken_by_an_ack() {
    let (_broker, topic, sub) = full(1_u64);
    let mut task = Task::pending(topic.publish_async(2));
    take(&sub).nack().unwrap();
    assert!(task.poll().is_pending());
    task.renew();
    assert!(task.poll().is_pending());
    take(&sub).ack().unwrap();
    assert!(task.wakes() >= 1);
    assert_eq!(task.ready().unwrap().id.sequence(), 2);
    assert_eq!(drain(&sub), [2]);
}

#[test]
fn p02_a_publish_that_is_dropped_while_it_waits_published_nothing_and_never_will() {
    let drops = Drops::default();
    let (_broker, topic, sub) = full(drops.event(1));
    let task = Task::pending(topic.publish_async(drops.event(2)));
    drop(task);
    assert_eq!(drops.count(), 1);
    take(&sub).ack().unwrap();
    assert_empty(&sub);
    let woken = Task::pending({
        topic.publish(drops.event(3)).unwrap();
        topic.publish_async(drops.event(4))
    });
    take(&sub).ack().unwrap();
    assert!(woken.wakes() >= 1);
    drop(woken);
    assert_empty(&sub);
    assert_eq!((topic.stats().published, drops.count()), (2, 4));
    drop(topic.publish_async(drops.event(5)));
    assert_eq!((topic.stats().published, drops.count()), (2, 5), "never polled, never published");
}

#[test]
fn p09_a_publisher_that_is_dropped_after_it_was_woken_hands_its_place_on() {
    let (_broker, topic, sub) = full(1_u64);
    let mut tasks: Vec<_> = (2..6).map(|n| Task::pending(topic.publish_async(n))).collect();
    let thread = ask({
        let topic = topic.clone();
        move || topic.publish(6).map(drop).is_ok()
    });
    thread.assert_pending();
    take(&sub).ack().unwrap();
    while let Some(woken) = tasks.iter().position(|task| task.wakes() > 0) {
        drop(tasks.remove(woken));
    }
    // Whoever was woken is gone: the place is free, and of those who are left only the thread can have taken it.
    assert!(thread.get());
}

#[test]
fn a_waiting_publish_is_woken_by_the_end_of_its_topic_or_broker() {
    let (broker, topic, _sub) = full(1_u64);
    let mut task = Task::pending(topic.publish_async(2));
    broker.delete_topic("topic").unwrap();
    assert!(task.wakes() >= 1);
    assert!(matches!(task.ready(), Err(PublishError::TopicDeleted(m)) if *m.event() == 2));
    let (broker, topic, _sub) = full(1_u64);
    let mut task = Task::pending(topic.publish_async(2));
    broker.shutdown(Duration::ZERO).unwrap();
    assert!(task.wakes() >= 1);
    assert!(matches!(task.ready(), Err(PublishError::Closed(m)) if *m.event() == 2));
}

#[test]
fn p09_ten_thousand_messages_go_through_futures_on_a_runtime_of_threads() {
    fn sent<T: Send>(future: T) -> T {
        future
    }
    within(PATIENCE, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(64)).create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let mut stream = sub.stream();
                runtime.spawn(async move {
                    let mut seen = Checksum::default();
                    while let Some(delivery) = stream.next().await {
                        seen.add(*delivery);
                        delivery.ack_async().await.unwrap();
                    }
                    seen
                })
            })
            .collect();
        let writers: Vec<_> = (0..4_u64)
            .map(|writer| {
                let topic = topic.clone();
                runtime.spawn(async move {
                    for n in 0..2_500 {
                        sent(topic.publish_async(writer * 2_500 + n)).await.unwrap();
                    }
                })
            })
            .collect();
        let seen = runtime.block_on(async {
            for writer in writers {
                writer.await.unwrap();
            }
            while sub.stats().backlog > 0 {
                tokio::task::yield_now().await;
            }
            sub.delete().unwrap();
            let mut seen = Checksum::default();
            for reader in readers {
                seen.merge(reader.await.unwrap());
            }
            seen
        });
        assert_eq!(seen, Checksum::of(0..10_000));
    });
}

#[test]
fn p09_futures_cancelled_at_random_on_real_threads_lose_nothing() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let canceller = ask({
            let sub = sub.clone();
            move || {
                let mut seen = Vec::new();
                loop {
                    let mut task = Task::new(sub.recv_async());
                    match task.poll() {
                        Poll::Ready(Ok(delivery)) => {
                            seen.push(*delivery);
                            delivery.ack().unwrap();
                        }
                        Poll::Ready(Err(_)) => return seen,
                        // Dropped while it waits, or just as it is woken.
                        Poll::Pending => std::thread::yield_now(),
                    }
                }
            }
        });
        let patient = ask({
            let sub = sub.clone();
            move || {
                let mut seen = Vec::new();
                while let Ok(delivery) = block_on(sub.recv_async()) {
                    seen.push(*delivery);
                    delivery.ack().unwrap();
                }
                seen
            }
        });
        for n in 0..5_000 {
            topic.publish(n).unwrap();
            while n % 10 == 0 && sub.stats().backlog > 0 {
                std::thread::yield_now();
            }
        }
        while sub.stats().backlog > 0 {
            std::thread::yield_now();
        }
        sub.delete().unwrap();
        let seen = Checksum::of(canceller.get().into_iter().chain(patient.get()));
        assert_eq!(seen, Checksum::of(0..5_000));
    });
}

#[test]
fn a_task_that_only_waits_costs_no_attempt_and_no_lease() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(1));
    let tasks: Vec<_> = (0..100).map(|_| Task::pending(sub.recv_async())).collect();
    topic.publish(1).unwrap();
    assert_eq!(sub.stats().outstanding, 0);
    drop(tasks);
    assert_eq!(drain_with(&sub, |delivery| delivery.attempt()), [1]);
}
