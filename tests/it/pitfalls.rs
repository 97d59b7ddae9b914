//! The bugs other systems had, row by row, each under the name of the failure: this broker must not have them.

mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eventflow::{
    Capacity, DeadLetter, DeliveryMode, Message, Overflow, Retention, SettleError, Subscription, TryRecvError,
};

use crate::support::{
    Answer, Broker, Checksum, DEADLINE, Drops, NANO, Numbers, SECOND, ask, assert_empty, desk, desk_with,
    drain, drain_with, manual, take, within,
};

const EXPIRED: Result<(), SettleError> = Err(SettleError::LeaseExpired { count: 1 });
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

#[test]
fn pitfall_a_callback_under_a_lock_deadlocks() {
    within(60, || {
        let (broker, _clock) = manual();
        let capacity = Capacity::messages(1).overflow(Overflow::Reject);
        let topic = broker.topic::<u64>("t").capacity(capacity).create().unwrap();
        let (inside, again) = (broker.clone(), topic.clone());
        let filter = move |message: eventflow::MessageRef<'_, u64>| {
            // Its own topic is looked up, asked, published to, subscribed to, and unsubscribed from.
            let own = inside.topic::<u64>("t").open().unwrap();
            let sub = own.subscription("s").open().unwrap();
            let _ = (again.try_publish(*message), own.stats(), sub.stats(), inside.stats());
            drop(sub.try_recv());
            let other = own.subscription("other").create().unwrap();
            other.delete().unwrap();
            true
        };
        let sub = topic.subscription("s").create().unwrap();
        sub.delete().unwrap();
        let filtered = topic.subscription("filtered").filter_fn(filter).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        topic.publish(7u64).unwrap();
        assert_eq!(drain(&filtered), [7]);
        assert_eq!(drain(&sub), [7]);
    });
}

#[test]
fn pitfall_a_panic_of_a_handler_kills_dispatch_for_good() {
    let (topic, sub) = {
        let topic = Broker::in_memory().topic::<u64>("t").create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        (topic, sub)
    };
    topic.publish_all(0..100u64).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    // Every tenth handler dies with its delivery in hand; each is a thread of its own, and the next goes on.
    let mut panicked = 0;
    while done.load(Ordering::SeqCst) < 100 {
        let (sub, done) = (sub.clone(), done.clone());
        let handler = std::thread::spawn(move || {
            while let Ok(delivery) = sub.try_recv() {
                assert!(*delivery % 10 != 9 || delivery.attempt() > 1, "unlucky");
                delivery.ack().unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
        panicked += u32::from(handler.join().is_err());
    }
    assert_eq!(panicked, 10);
    assert_eq!((sub.stats().backlog, sub.stats().acked), (0, 100));
}

#[cfg(feature = "async")]
#[test]
fn pitfall_a_dropped_recv_future_loses_the_message() {
    use crate::support::Task;
    let desk = desk::<u64>();
    // Dropped after `polls` polls, of which the last ones come after the message.
    for polls in 0..4 {
        for published_before in 0..=polls {
            let mut future = Task::new(desk.sub.recv_async());
            let mut got = None;
            for poll in 0..polls {
                if poll == published_before {
                    desk.topic.publish(7u64).unwrap();
                }
                if let std::task::Poll::Ready(delivery) = future.poll() {
                    got = Some(delivery.unwrap());
                    break;
                }
            }
            if published_before >= polls {
                desk.topic.publish(7u64).unwrap();
            }
            drop(future);
            match got {
                Some(delivery) => delivery.ack().unwrap(),
                None => {
                    let delivery = take(&desk.sub);
                    assert_eq!(delivery.attempt(), 1, "nobody had it");
                    delivery.ack().unwrap();
                }
            }
            assert_empty(&desk.sub);
        }
    }
}

#[cfg(feature = "async")]
#[test]
fn pitfall_the_wake_of_a_dropped_future_is_lost_for_the_others() {
    use crate::support::Task;
    let desk = desk::<u64>();
    for _ in 0..50 {
        let mut waiting: Vec<_> = (0..5).map(|_| Task::pending(desk.sub.recv_async())).collect();
        desk.topic.publish(7u64).unwrap();
        // Whoever was woken goes, until one is left.
        while waiting.len() > 1 {
            let woken = waiting.iter().position(|task| task.wakes() > 0).expect("somebody is awake");
            drop(waiting.swap_remove(woken));
        }
        let mut last = waiting.pop().unwrap();
        assert!(last.wakes() > 0);
        last.ready().unwrap().ack().unwrap();
    }
}

#[test]
fn pitfall_a_wake_up_is_lost() {
    const ROUNDS: u64 = 5_000;
    let broker = Broker::in_memory();
    let ping = broker.topic::<u64>("ping").create().unwrap();
    let pong = broker.topic::<u64>("pong").create().unwrap();
    let pings = ping.subscription("s").create().unwrap();
    let pongs = pong.subscription("s").create().unwrap();
    // Either side sleeps until the other has published: a wake-up that is lost stops both.
    let answering = ask(move || {
        for _ in 0..ROUNDS {
            let delivery = pings.recv().unwrap();
            pong.publish(*delivery + 1).unwrap();
            delivery.ack().unwrap();
        }
    });
    let asking = ask(move || {
        for round in 0..ROUNDS {
            ping.publish(round).unwrap();
            let delivery = pongs.recv().unwrap();
            assert_eq!(*delivery, round + 1);
            delivery.ack().unwrap();
        }
    });
    asking.get();
    answering.get();
}

#[test]
fn pitfall_a_wake_up_is_lost_among_many_receivers() {
    const MESSAGES: u64 = 5_000;
    let broker = Broker::in_memory();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(3)).create().unwrap();
    let sub = topic.subscription("s").max_outstanding(2).create().unwrap();
    let receivers: Vec<_> = (0..4u64)
        .map(|receiver| {
            let sub = sub.clone();
            ask(move || {
                let (mut seen, mut numbers) = (Checksum::default(), Numbers(receiver));
                while let Ok(delivery) = sub.recv() {
                    let number = *delivery;
                    // Every way of settling has to wake somebody: a receiver, a publisher, or both.
                    match numbers.below(5) {
                        0 => delivery.nack().unwrap(),
                        1 => delivery.release().unwrap(),
                        2 => drop(delivery),
                        _ => delivery.ack().map(|()| seen.add(number)).unwrap(),
                    }
                }
                seen
            })
        })
        .collect();
    let publishers: Vec<_> = (0..2u64)
        .map(|publisher| {
            let topic = topic.clone();
            ask(move || (publisher..MESSAGES).step_by(2).for_each(|n| _ = topic.publish(n).unwrap()))
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.get_within(120));
    within(120, {
        let sub = sub.clone();
        move || {
            while sub.stats().backlog > 0 {
                std::thread::yield_now();
            }
        }
    });
    broker.shutdown(SECOND).unwrap();
    let mut seen = Checksum::default();
    receivers.into_iter().for_each(|receiver| seen.merge(receiver.get()));
    assert_eq!(seen, Checksum::of(0..MESSAGES));
}

#[test]
fn pitfall_a_poison_message_starves_the_rest() {
    const MESSAGES: u64 = 1_000;
    let desk = desk::<u64>();
    desk.topic.publish_all(0..MESSAGES).unwrap();
    let (mut hand_outs, mut new, mut again_before) = (0, 0, false);
    while new < MESSAGES {
        let delivery = take(&desk.sub);
        let again = delivery.attempt() > 1;
        assert!(!(again && again_before), "two redeliveries in a row, after {new} new ones");
        again_before = again;
        hand_outs += 1;
        new += u64::from(!again);
        if *delivery == 0 { delivery.nack().unwrap() } else { delivery.ack().unwrap() }
    }
    assert!(hand_outs <= 2 * MESSAGES);
    assert_eq!(desk.sub.stats().backlog, 1);
}

#[test]
fn pitfall_a_poison_message_takes_its_batch_along_to_the_dead_letters() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(3)).create().unwrap();
    topic.publish_all(0..200u64).unwrap();
    let mut healthy = Vec::new();
    while let Ok(batch) = sub.try_recv_batch(10) {
        // A handler that fails as a whole when the poison is in its batch.
        if batch.iter().any(|message| *message == 42) {
            batch.nack().unwrap();
            continue;
        }
        healthy.extend(batch.iter().map(|message| *message));
        batch.ack().unwrap();
    }
    assert_eq!(drain(&undertaker), [42]);
    healthy.sort_unstable();
    assert_eq!(healthy, (0..200).filter(|n| *n != 42).collect::<Vec<_>>());
}

#[test]
fn pitfall_a_stuck_message_keeps_the_acked_backlog_behind_it() {
    const MESSAGES: u64 = 200_000;
    const SEGMENT: u64 = 256;
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let mut stuck = Vec::new();
    for thousand in 0..MESSAGES / 1_000 {
        topic.publish_all(thousand * 1_000..(thousand + 1) * 1_000).unwrap();
        stuck.push(take(&sub));
        while let Ok(batch) = sub.try_recv_batch(512) {
            batch.ack().unwrap();
        }
        let resident = topic.stats().resident_messages;
        // The tail's open segment may be there beside those of the stuck messages.
        assert!(resident <= (stuck.len() as u64 + 1) * SEGMENT, "{} stuck keep {resident}", stuck.len());
        stuck.iter().for_each(|delivery| delivery.extend(SECOND * 3_600).unwrap());
    }
    assert_eq!(sub.stats().backlog, stuck.len() as u64);
    for (n, delivery) in stuck.into_iter().enumerate() {
        assert_eq!(*delivery, n as u64 * 1_000);
        delivery.ack().unwrap();
    }
    assert_eq!(topic.stats().resident_messages, 0);
}

#[test]
fn pitfall_freeing_a_long_backlog_overflows_the_stack() {
    const SEGMENTS: u64 = 20_000;
    let drops = Drops::default();
    let counting = drops.clone();
    within(300, move || {
        let (broker, _clock) = manual();
        // A message of a mebibyte fills a segment.
        let topic = broker.topic::<crate::support::Counted>("t").weigh(|_| 1 << 20).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        (0..SEGMENTS).for_each(|n| _ = topic.publish(drops.event(n)).unwrap());
        let small = std::thread::Builder::new().stack_size(256 * 1_024);
        let freeing = small.spawn(move || {
            let held = take(&sub);
            sub.delete().unwrap();
            drop(held);
        });
        freeing.unwrap().join().unwrap();
    });
    assert_eq!(counting.count() as u64, SEGMENTS);
}

#[test]
fn pitfall_one_stuck_subscriber_eats_the_memory() {
    const MESSAGES: u64 = 50_000;
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let capacity = Capacity::messages(1_000).overflow(Overflow::DropOldest);
    let topic = broker.topic::<crate::support::Counted>("t").capacity(capacity).create().unwrap();
    let quick = topic.subscription("quick").create().unwrap();
    let stuck = topic.subscription("stuck").create().unwrap();
    let mut seen = Checksum::default();
    let mut held = None;
    for n in 0..MESSAGES {
        topic.publish(drops.event(n)).unwrap();
        let delivery = take(&quick);
        seen.add(delivery.number);
        delivery.ack().unwrap();
        held.get_or_insert_with(|| take(&stuck));
        let alive = n as usize + 1 - drops.count();
        assert!(alive <= 1_000 + 3 * 256, "{alive} are in memory after {n}");
    }
    assert_eq!(seen, Checksum::of(0..MESSAGES), "who keeps up loses nothing");
    assert_eq!(held.unwrap().ack(), EXPIRED, "its message was dropped");
    let left = drain_with(&stuck, |delivery| delivery.number);
    assert_eq!(left, (MESSAGES - 1_000..MESSAGES).collect::<Vec<_>>());
    assert!(topic.stats().dropped >= MESSAGES - 1_000);
}

#[test]
fn pitfall_a_stale_ack_settles_somebody_elses_lease() {
    for mode in [DeliveryMode::AtLeastOnce, DeliveryMode::ExactlyOnce] {
        for way in 0..6 {
            let desk = desk_with::<u64>(|options| options.delivery(mode));
            desk.topic.publish(7u64).unwrap();
            let stale = take(&desk.sub);
            desk.clock.advance(DEADLINE);
            let holder = take(&desk.sub);
            let outcome = match way {
                0 => stale.ack(),
                1 => stale.nack(),
                2 => stale.release(),
                3 => stale.reject("stale"),
                4 => stale.extend(Duration::ZERO),
                _ => stale.extend(SECOND * 3_600),
            };
            assert_eq!(outcome, EXPIRED, "way {way}");
            assert_empty(&desk.sub);
            // The holder's deadline is its own.
            desk.clock.advance(DEADLINE - NANO);
            assert_empty(&desk.sub);
            holder.ack().unwrap();
            assert_eq!((desk.sub.stats().acked, desk.sub.stats().discarded), (1, 0));
        }
    }
}

#[test]
fn pitfall_a_leaked_handle_keeps_its_message_for_ever() {
    let desk = desk::<u64>();
    desk.topic.publish_all(0..3u64).unwrap();
    std::mem::forget(take(&desk.sub));
    std::mem::forget(desk.sub.try_recv_batch(2).unwrap());
    desk.clock.advance(DEADLINE - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    let seen = drain_with(&desk.sub, |delivery| (**delivery, delivery.attempt()));
    assert_eq!(seen, [(0, 2), (1, 2), (2, 2)]);
}

#[test]
fn pitfall_a_mass_expiry_starves_the_acks() {
    const MESSAGES: u64 = 100_000;
    let desk = desk_with::<u64>(|options| options.max_outstanding(usize::MAX));
    let other = desk.topic.subscription("other").max_outstanding(usize::MAX).create().unwrap();
    desk.topic.publish_all(0..MESSAGES).unwrap();
    let take_all = |sub: &Subscription<u64>| {
        let mut held = Vec::new();
        while let Ok(batch) = sub.try_recv_batch(1_000) {
            held.push(batch);
        }
        held
    };
    let expiring = take_all(&desk.sub);
    let kept = take_all(&other);
    desk.clock.advance(DEADLINE / 2);
    let acking = ask(move || kept.into_iter().for_each(|batch| batch.ack().unwrap()));
    acking.get();
    desk.clock.advance(DEADLINE / 2);
    let stats = desk.sub.stats();
    assert_eq!((stats.leases_expired, stats.outstanding, stats.backlog), (MESSAGES, 0, MESSAGES));
    assert_eq!((other.stats().backlog, other.stats().leases_expired), (0, 0));
    // Every other one is still taken late; the rest comes again.
    let mut late = 0;
    for (n, batch) in expiring.into_iter().enumerate() {
        if n % 2 == 0 {
            late += batch.len() as u64;
            batch.ack().unwrap();
        }
    }
    let again = drain_with(&desk.sub, |delivery| assert_eq!(delivery.attempt(), 2));
    assert_eq!(again.len() as u64, MESSAGES - late);
    assert_eq!(desk.sub.stats().backlog, 0);
}

#[test]
fn pitfall_an_ordered_key_is_stuck_after_a_dead_letter() {
    let (broker, clock) = manual();
    let dead = broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let options = topic.subscription("s").ordered().dead_letter(DeadLetter::to(&dead).after(1));
    let sub = options.create().unwrap();
    topic.publish_all((0..40u64).map(|n| Message::new(n).ordering_key("k"))).unwrap();
    let mut acked = Vec::new();
    for n in 0..40 {
        let delivery = take(&sub);
        assert_eq!(*delivery, n);
        match n % 5 {
            0 => delivery.nack().unwrap(),
            1 => delivery.reject("no").unwrap(),
            2 => drop(delivery),
            3 => {
                clock.advance(DEADLINE);
                assert_eq!(delivery.ack(), EXPIRED);
            }
            _ => {
                acked.push(n);
                delivery.ack().unwrap();
            }
        }
    }
    assert_empty(&sub);
    assert_eq!((acked.len(), dead.stats().published, sub.stats().backlog), (8, 32, 0));
}

#[test]
fn pitfall_an_ordered_message_is_overtaken_after_a_nack() {
    let desk = desk_with::<u64>(|options| options.ordered());
    desk.topic.publish_all((0..30u64).map(|n| Message::new(n).ordering_key("k"))).unwrap();
    let mut next = 0;
    for turn in 0.. {
        let delivery = match desk.sub.try_recv() {
            Ok(delivery) => delivery,
            Err(TryRecvError::Empty) => break,
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(*delivery, next, "turn {turn}");
        match turn % 4 {
            0 => delivery.nack().unwrap(),
            1 => drop(delivery),
            2 => delivery.release().unwrap(),
            _ => {
                delivery.ack().unwrap();
                next += 1;
            }
        }
    }
    assert_eq!(next, 30);
}

#[test]
fn pitfall_drop_blocks_or_deadlocks() {
    within(60, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("t").capacity(Capacity::messages(5)).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        topic.publish_all(0..5u64).unwrap();
        let held = sub.try_recv_batch(2).unwrap();
        let channel = sub.channel(1);
        let ready = sub.ready();
        let waiting = ask({
            let topic = topic.clone();
            move || topic.publish(5u64)
        });
        waiting.assert_pending();
        sub.seek(eventflow::Seek::Latest).unwrap();
        waiting.get().unwrap();
        // Everything goes at once, with leases, a pump, a token and a backlog outstanding.
        drop((broker, topic, sub));
        drop((ready, channel, held));
    });
}

#[test]
fn pitfall_drop_inside_a_callback_deadlocks() {
    within(60, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("t").create().unwrap();
        let handles = std::sync::Mutex::new(Some((broker, topic.clone())));
        let filter = move |_: eventflow::MessageRef<'_, u64>| {
            drop(handles.lock().unwrap().take());
            true
        };
        let sub = topic.subscription("s").filter_fn(filter).create().unwrap();
        topic.publish(7u64).unwrap();
        drop(topic);
        assert_eq!(drain(&sub), [7]);
    });
}

#[cfg(feature = "async")]
#[test]
fn pitfall_drop_inside_an_async_function_blocks_or_deadlocks() {
    within(60, || {
        futures::executor::block_on(async {
            let broker = Broker::in_memory();
            let topic = broker.topic::<u64>("t").create().unwrap();
            let sub = topic.subscription("s").create().unwrap();
            topic.publish_async(7u64).await.unwrap();
            let delivery = sub.recv_async().await.unwrap();
            drop((broker, topic, sub));
            drop(delivery);
        });
    });
}

#[test]
fn pitfall_the_clock_jumps() {
    let desk = desk::<u64>();
    let start = desk.clock.now();
    desk.topic.publish_all(0..3u64).unwrap();
    let held = take(&desk.sub);
    take(&desk.sub).nack_after(TEN_YEARS * 2).unwrap();
    desk.clock.advance(TEN_YEARS);
    let seen = drain_with(&desk.sub, |delivery| (**delivery, delivery.attempt()));
    assert_eq!(Checksum::of(seen.iter().map(|(n, _)| *n)), Checksum::of([0, 2]));
    assert!(held.nack().is_err());
    desk.topic.publish(3u64).unwrap();
    let later = take(&desk.sub);
    assert_eq!(later.message().publish_time(), start + TEN_YEARS);
    later.ack().unwrap();
    desk.clock.advance(TEN_YEARS);
    assert_eq!(drain(&desk.sub), [1]);
}

#[test]
fn pitfall_a_lease_is_stuck_behind_a_thread_that_is_gone() {
    let desk = desk::<u64>();
    desk.topic.publish(7u64).unwrap();
    let sub = desk.sub.clone();
    // The thread ends with its delivery in a place that nobody drops.
    let gone = ask(move || std::mem::forget(sub.recv().unwrap()));
    Answer::get(gone);
    assert_empty(&desk.sub);
    desk.clock.advance(DEADLINE);
    assert_eq!(drain(&desk.sub), [7]);
}
