//! What a topic keeps, and for how long: P17.

use std::time::Duration;

use bytes::Bytes;
use eventflow::{
    Capacity, DeadLetter, DeliveryMode, Message, Overflow, PublishErrorKind, Retention, Seek, Start,
    Subscription, Topic, TryRecvError,
};

use crate::support::{
    Broker, Checksum, Counted, Drops, NANO, SECOND, ask, assert_empty, desk_with, drain, drain_with, manual,
    take, within,
};

/// A segment closes at this many messages, or at this many bytes: what one stuck message may keep beside itself.
const SEGMENT: usize = 256;
const SEGMENT_BYTES: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

fn publish(topic: &Topic<Counted>, drops: &Drops, numbers: std::ops::Range<u64>) {
    for number in numbers {
        topic.publish(drops.event(number)).unwrap();
    }
}

fn numbers(sub: &Subscription<Counted>) -> Vec<u64> {
    drain_with(sub, |delivery| delivery.number)
}

/// Acks what is there in batches, without looking at it, and says how many there were.
fn ack_all<E: Send + Sync + 'static>(sub: &Subscription<E>) -> usize {
    let mut count = 0;
    loop {
        match sub.try_recv_batch(512) {
            Ok(batch) => {
                count += batch.len();
                batch.ack().unwrap();
            }
            Err(TryRecvError::Empty) => return count,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn p17_a_message_goes_with_its_last_ack() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let first = topic.subscription("first").create().unwrap();
    let second = topic.subscription("second").create().unwrap();
    topic.publish(drops.event(1)).unwrap();
    take(&first).ack().unwrap();
    assert_eq!(drops.count(), 0, "the second subscription needs it");
    let last = take(&second);
    assert_eq!(drops.count(), 0);
    last.ack().unwrap();
    assert_eq!(drops.count(), 1, "nobody needs it");
    assert_eq!((topic.stats().resident_messages, topic.stats().resident_bytes), (0, 0));
}

#[test]
fn p17_until_acked_keeps_nothing_for_nobody() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::until_acked()).create().unwrap();
    publish(&topic, &drops, 0..1_000);
    assert_eq!(drops.count(), 1_000);
    assert_eq!(topic.stats().resident_messages, 0);
    let sub = topic.subscription("s").start(Start::Earliest).create().unwrap();
    assert_empty(&sub);
    publish(&topic, &drops, 0..1);
    assert_eq!(numbers(&sub), [0]);
}

#[test]
fn p17_every_acked_message_is_gone_whatever_the_order_of_the_acks() {
    let (broker, _clock) = manual();
    for order in ["forward", "backward", "odd first"] {
        let drops = Drops::default();
        let topic = broker.topic::<Counted>(&order.replace(' ', "-")).create().unwrap();
        let sub = topic.subscription("s").max_outstanding(2_000).create().unwrap();
        publish(&topic, &drops, 0..2_000);
        let mut held: Vec<_> = sub.try_recv_batch(2_000).unwrap().into_iter().collect();
        while let Ok(delivery) = sub.try_recv() {
            held.push(delivery);
        }
        assert_eq!(held.len(), 2_000);
        match order {
            "forward" => {}
            "backward" => held.reverse(),
            _ => held.sort_by_key(|delivery| (delivery.number % 2 == 0, delivery.number)),
        }
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
        assert_eq!(drops.count(), 2_000, "{order}");
        assert_eq!(topic.stats().resident_messages, 0, "{order}");
    }
}

#[test]
fn p17_one_stuck_message_keeps_at_most_its_segment() {
    const MESSAGES: u64 = 10_000;
    for stuck in [0, 1, 255, 256, 5_000, MESSAGES - 1] {
        let (broker, _clock) = manual();
        let drops = Drops::default();
        let topic = broker.topic::<Counted>("t").create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        publish(&topic, &drops, 0..MESSAGES);
        let mut held = None;
        while let Ok(delivery) = sub.try_recv() {
            if delivery.number == stuck {
                held = Some(delivery);
            } else {
                delivery.ack().unwrap();
            }
        }
        let kept = MESSAGES as usize - drops.count();
        assert!((1..=SEGMENT).contains(&kept), "message {stuck} keeps {kept}");
        let stats = topic.stats();
        assert!((1..=SEGMENT as u64).contains(&stats.resident_messages), "{stats:?}");
        let held = held.unwrap();
        assert_eq!(held.number, stuck);
        held.ack().unwrap();
        assert_eq!(drops.count(), MESSAGES as usize, "after message {stuck}");
    }
}

#[test]
fn p17_messages_stuck_here_and_there_keep_a_segment_each() {
    const MESSAGES: u64 = 50_000;
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..MESSAGES);
    let mut stuck = Vec::new();
    while let Ok(delivery) = sub.try_recv() {
        if delivery.number % 1_000 == 500 {
            stuck.push(delivery);
        } else {
            delivery.ack().unwrap();
        }
    }
    assert_eq!(stuck.len(), 50);
    let kept = MESSAGES as usize - drops.count();
    assert!(kept <= stuck.len() * SEGMENT, "50 stuck messages keep {kept}");
    stuck.drain(..25).for_each(|delivery| delivery.ack().unwrap());
    let kept = MESSAGES as usize - drops.count();
    assert!(kept <= stuck.len() * SEGMENT, "25 stuck messages keep {kept}");
    stuck.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert_eq!(drops.count(), MESSAGES as usize);
}

#[test]
fn p17_of_heavy_messages_a_stuck_one_keeps_a_segment_of_a_mebibyte() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").weigh(|_| SEGMENT_BYTES / 16).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..640);
    let stuck = take(&sub);
    assert_eq!(ack_all(&sub), 639);
    let kept = 640 - drops.count();
    assert!((1..=16).contains(&kept), "{kept}");
    assert!(topic.stats().resident_bytes <= SEGMENT_BYTES, "{:?}", topic.stats());
    stuck.ack().unwrap();
    assert_eq!(drops.count(), 640);
}

#[test]
fn p17_a_message_heavier_than_a_segment_keeps_itself_alone() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<Bytes>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let heavy = Bytes::from(vec![7; 2 * SEGMENT_BYTES as usize]);
    for _ in 0..5 {
        topic.publish(heavy.clone()).unwrap();
    }
    let stuck = take(&sub);
    assert_eq!(ack_all(&sub), 4);
    assert_eq!(topic.stats().resident_messages, 1);
    assert_eq!(topic.stats().resident_bytes, 2 * SEGMENT_BYTES);
    stuck.ack().unwrap();
    assert_eq!(topic.stats().resident_bytes, 0);
}

#[test]
fn p17_a_live_delivery_keeps_its_segment_and_stays_readable_after_it_was_settled() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..5_000);
    let held = take(&sub);
    sub.seek(Seek::Latest).unwrap();
    let kept = 5_000 - drops.count();
    assert!((1..=SEGMENT).contains(&kept), "{kept}");
    assert_eq!(held.number, 0);
    drop(held);
    assert_eq!(drops.count(), 5_000);
}

#[test]
fn p17_a_live_delivery_outlives_its_subscription_and_its_topic() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..3);
    let first = take(&sub);
    let second = take(&sub);
    sub.delete().unwrap();
    assert_eq!((first.number, second.number), (0, 1));
    drop(first);
    broker.delete_topic("t").unwrap();
    assert_eq!(second.number, 1);
    drop(second);
    assert_eq!(drops.count(), 3);
}

#[test]
fn p17_a_dead_letter_keeps_at_most_its_segment() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let dead = broker.topic::<Counted>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    publish(&topic, &drops, 0..5_000);
    while let Ok(delivery) = sub.try_recv() {
        if delivery.number == 2_500 {
            delivery.nack().unwrap();
        } else {
            delivery.ack().unwrap();
        }
    }
    assert_eq!(topic.stats().resident_messages, 0, "in its own topic nothing is needed any more");
    let kept = 5_000 - drops.count();
    assert!((1..=SEGMENT).contains(&kept), "{kept}");
    assert_eq!(numbers(&undertaker), [2_500]);
    assert_eq!(drops.count(), 5_000);
}

#[test]
fn p17_a_duration_keeps_settled_messages_until_it_is_over_and_not_longer() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::for_duration(MINUTE)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..1_000);
    assert_eq!(numbers(&sub).len(), 1_000);
    clock.advance(MINUTE - NANO);
    assert_eq!(drops.count(), 0);
    let late = topic.subscription("late").start(Start::Earliest).create().unwrap();
    assert_eq!(numbers(&late).len(), 1_000);
    clock.advance(NANO);
    assert_eq!(drops.count(), 1_000, "gone when advance returns");
    let later = topic.subscription("later").start(Start::Earliest).create().unwrap();
    assert_empty(&later);
}

#[test]
fn p17_a_duration_counts_from_publish_and_not_from_the_ack() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::for_duration(MINUTE)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..10);
    clock.advance(MINUTE * 10);
    assert_eq!(drops.count(), 0, "unsettled messages stay, however old");
    let deliveries: Vec<_> = sub.try_recv_batch(10).unwrap().into_iter().collect();
    assert_eq!(deliveries.len(), 10);
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert_eq!(drops.count(), 10, "long past their time, they go with the ack");
}

#[test]
fn p17_a_duration_is_kept_without_any_subscription() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::for_duration(MINUTE)).create().unwrap();
    publish(&topic, &drops, 0..600);
    clock.advance(MINUTE / 2);
    publish(&topic, &drops, 600..1_200);
    clock.advance(MINUTE / 2 - NANO);
    assert_eq!(drops.count(), 0);
    let sub = topic.subscription("s").start(Start::Earliest).create().unwrap();
    assert_eq!(numbers(&sub), (0..1_200).collect::<Vec<_>>());
    clock.advance(NANO);
    let gone = drops.count();
    // The first half may share its last segment with the second.
    assert!((600 - SEGMENT + 1..=600).contains(&gone), "{gone}");
    clock.advance(MINUTE / 2);
    assert_eq!(drops.count(), 1_200);
}

#[test]
fn p17_forever_keeps_all_for_replay() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..3_000);
    assert_eq!(numbers(&sub).len(), 3_000);
    sub.delete().unwrap();
    clock.advance(Duration::from_secs(100 * 365 * 86_400));
    assert_eq!(drops.count(), 0);
    let replay = topic.subscription("replay").start(Start::Earliest).create().unwrap();
    assert_eq!(numbers(&replay), (0..3_000).collect::<Vec<_>>());
    assert_eq!(topic.stats().resident_messages, 3_000);
}

#[test]
fn p17_a_bound_in_messages_drops_the_oldest_settled_ones() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let retention = Retention::forever().max_messages(1_000);
    let topic = broker.topic::<Counted>("t").retention(retention).create().unwrap();
    publish(&topic, &drops, 0..900);
    assert_eq!(drops.count(), 0, "within the bound nothing goes");
    publish(&topic, &drops, 900..5_000);
    let kept = 5_000 - drops.count();
    assert!((1_000..1_000 + SEGMENT).contains(&kept), "{kept}");
    let replay = topic.subscription("replay").start(Start::Earliest).create().unwrap();
    let seen = numbers(&replay);
    assert!((1_000..1_000 + SEGMENT).contains(&seen.len()), "{}", seen.len());
    assert_eq!(seen, (5_000 - seen.len() as u64..5_000).collect::<Vec<_>>(), "the newest, without a gap");
}

#[test]
fn p17_a_bound_in_bytes_drops_the_oldest_settled_ones() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let retention = Retention::for_duration(MINUTE).max_bytes(4 * SEGMENT_BYTES);
    let topic = broker.topic::<Counted>("t").retention(retention).weigh(|_| 10_000).create().unwrap();
    publish(&topic, &drops, 0..5_000);
    let kept = 5_000 - drops.count() as u64;
    assert!(kept * 10_000 + 10_000 > 4 * SEGMENT_BYTES, "{kept} are fewer than the bound allows");
    assert!(kept * 10_000 <= 5 * SEGMENT_BYTES, "{kept} are more than the bound and a segment");
    assert_eq!(topic.stats().resident_bytes, kept * 10_000);
}

#[test]
fn p17_bounds_drop_only_what_every_subscription_has_settled() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let retention = Retention::for_duration(MINUTE).max_messages(10).max_bytes(100);
    let topic = broker.topic::<Counted>("t").retention(retention).create().unwrap();
    let quick = topic.subscription("quick").create().unwrap();
    let slow = topic.subscription("slow").create().unwrap();
    publish(&topic, &drops, 0..3_000);
    assert_eq!(numbers(&quick).len(), 3_000);
    clock.advance(MINUTE * 2);
    assert_eq!(drops.count(), 0);
    assert_eq!(numbers(&slow), (0..3_000).collect::<Vec<_>>());
    assert_eq!(drops.count(), 3_000, "too old, and beyond both bounds");
}

#[test]
fn p17_deleting_the_subscription_that_was_behind_frees_what_it_held() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let quick = topic.subscription("quick").create().unwrap();
    let stuck = topic.subscription("stuck").create().unwrap();
    publish(&topic, &drops, 0..1_000);
    assert_eq!(ack_all(&quick), 1_000);
    assert_eq!(drops.count(), 0);
    stuck.delete().unwrap();
    assert_eq!(drops.count(), 1_000);
    publish(&topic, &drops, 0..10);
    quick.delete().unwrap();
    assert_eq!(drops.count(), 1_010, "kept for nobody when there is no subscription");
}

#[test]
fn p17_deleting_a_topic_frees_all_of_it() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::forever()).create().unwrap();
    let _sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..1_000);
    broker.delete_topic("t").unwrap();
    assert_eq!(drops.count(), 1_000, "though handles of it are alive");
}

#[test]
fn p17_dropping_every_handle_frees_all() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..1_000);
    drop((broker, topic));
    assert_eq!(drops.count(), 0, "a subscription is a handle too");
    drop(sub);
    assert_eq!(drops.count(), 1_000);
}

#[test]
fn p17_a_seek_forward_frees_what_it_settles() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..2_000);
    sub.seek(Seek::Sequence(1_001)).unwrap();
    let gone = drops.count();
    assert!((1_000 - SEGMENT + 1..=1_000).contains(&gone), "{gone}");
    sub.seek(Seek::Latest).unwrap();
    assert_eq!(drops.count(), 2_000);
}

#[test]
fn p17_what_expires_drops_or_is_filtered_out_is_freed() {
    let drops = Drops::default();
    let desk = desk_with::<Counted>(|options| options.expire_after(MINUTE));
    publish(&desk.topic, &drops, 0..1_000);
    desk.clock.advance(MINUTE - NANO);
    assert_eq!(drops.count(), 0);
    desk.clock.advance(NANO);
    assert_eq!(drops.count(), 1_000, "expired");

    let drops = Drops::default();
    let desk = desk_with::<Counted>(|options| options.filter("attributes:wanted"));
    publish(&desk.topic, &drops, 0..1_000);
    assert_empty(&desk.sub);
    assert_eq!(drops.count(), 1_000, "filtered");

    let drops = Drops::default();
    let desk = desk_with::<Counted>(|options| options.delivery(DeliveryMode::AtMostOnce));
    publish(&desk.topic, &drops, 0..1_000);
    while desk.sub.try_recv().is_ok() {}
    assert_eq!(drops.count(), 1_000, "handed out at most once");

    let drops = Drops::default();
    let desk = desk_with::<Counted>(|options| options);
    desk.topic.publish(Message::new(drops.event(0)).expires_in(SECOND)).unwrap();
    desk.clock.advance(SECOND);
    assert_eq!(drops.count(), 1, "its own life is over");
}

#[test]
fn p17_drop_oldest_frees_what_it_drops() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let capacity = Capacity::messages(100).overflow(Overflow::DropOldest);
    let topic = broker.topic::<Counted>("t").capacity(capacity).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    publish(&topic, &drops, 0..5_000);
    let kept = 5_000 - drops.count();
    assert!((100..100 + SEGMENT).contains(&kept), "{kept}");
    assert_eq!(numbers(&sub), (4_900..5_000).collect::<Vec<_>>());
    assert_eq!(drops.count(), 5_000);
}

#[test]
fn p17_a_message_nobody_starts_at_is_not_kept_for_a_new_subscription() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let old = topic.subscription("old").create().unwrap();
    publish(&topic, &drops, 0..1_000);
    let new = topic.subscription("new").start(Start::Latest).create().unwrap();
    assert_eq!(ack_all(&old), 1_000);
    assert_eq!(drops.count(), 1_000);
    assert_empty(&new);
}

#[test]
fn p17_every_event_is_dropped_once_under_threads() {
    const MESSAGES: u64 = 20_000;
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let subs: Vec<_> = (0..3).map(|n| topic.subscription(&format!("s{n}")).create().unwrap()).collect();
    let publisher = ask({
        let (topic, drops) = (topic.clone(), drops.clone());
        move || publish(&topic, &drops, 0..MESSAGES)
    });
    let readers: Vec<_> = subs
        .iter()
        .map(|sub| {
            let sub = sub.clone();
            ask(move || {
                let mut count = 0;
                while count < MESSAGES {
                    let batch = sub.recv_batch(100).unwrap();
                    count += batch.len() as u64;
                    batch.ack().unwrap();
                }
            })
        })
        .collect();
    publisher.get();
    readers.into_iter().for_each(|reader| reader.get());
    assert_eq!(drops.count() as u64, MESSAGES);
    assert_eq!(topic.stats().resident_messages, 0);
}

/// Publishes batches that take all the space there is, each at the very moment at which the last one is settled.
fn publish_into_every_gap(topic: &Topic<u64>, batch: u64, batches: u64) {
    for n in 0..batches {
        loop {
            match topic.publish_all(n * batch..(n + 1) * batch) {
                Ok(_) => break,
                Err(error) => assert!(matches!(error.kind, PublishErrorKind::Full), "{:?}", error.kind),
            }
            std::hint::spin_loop();
        }
    }
}

#[test]
fn p17_what_is_published_while_all_before_it_is_let_go_stays() {
    const BATCHES: u64 = 8_000;
    // Batches that end just before, at and just after the ends of segments of any likely size.
    for batch in [17, 33, 33, 65] {
        let broker = Broker::in_memory();
        let capacity = Capacity::messages(batch).overflow(Overflow::Reject);
        let topic = broker.topic::<u64>("t").capacity(capacity).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        let publisher = ask({
            let topic = topic.clone();
            move || publish_into_every_gap(&topic, batch, BATCHES)
        });
        let reader = ask({
            let sub = sub.clone();
            move || {
                let mut seen = Checksum::default();
                while let Ok(deliveries) = sub.recv_batch(64) {
                    deliveries.iter().for_each(|message| seen.add(*message));
                    deliveries.ack().unwrap();
                }
                seen
            }
        });
        publisher.get();
        within(60, move || {
            while sub.stats().backlog > 0 {
                std::thread::yield_now();
            }
        });
        broker.shutdown(SECOND).unwrap();
        assert_eq!(reader.get(), Checksum::of(0..batch * BATCHES), "in batches of {batch}");
        assert_eq!(topic.stats().resident_messages, 0, "in batches of {batch}");
    }
}

/// Every message closes its segment, so that as many segments as messages are let go at once, on a stack that is small even for that many
/// words: 50,000 calls within each other would not find room on it, nor would 200,000 on an ordinary one.
fn let_go_of_50_000_segments(how: impl FnOnce(&Broker, Subscription<()>) + Send + 'static) {
    within(120, move || {
        let (broker, _clock) = manual();
        let retention = Retention::forever();
        let topic = broker.topic::<()>("t").retention(retention).weigh(|()| SEGMENT_BYTES).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        for _ in 0..50 {
            topic.publish_all((0..1_000).map(|_| ())).unwrap();
        }
        drop(topic);
        let small = std::thread::Builder::new().stack_size(192 * 1_024);
        small.spawn(move || how(&broker, sub)).unwrap().join().unwrap();
    });
}

#[test]
fn p17_letting_go_of_a_long_log_does_not_overflow_the_stack() {
    let_go_of_50_000_segments(|_, _| {});
}

#[test]
fn p17_deleting_a_topic_with_a_long_log_does_not_overflow_the_stack() {
    let_go_of_50_000_segments(|broker, sub| {
        let held = take(&sub);
        broker.delete_topic("t").unwrap();
        drop(held);
    });
}

#[test]
fn p17_two_topics_do_not_keep_each_others_messages() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let a = broker.topic::<Counted>("a").create().unwrap();
    let b = broker.topic::<Counted>("b").create().unwrap();
    let of_a = a.subscription("s").create().unwrap();
    let of_b = b.subscription("s").create().unwrap();
    publish(&a, &drops, 0..10);
    publish(&b, &drops, 0..10);
    assert_eq!(numbers(&of_a).len(), 10);
    assert_eq!(drops.count(), 10);
    assert_eq!(drain_with(&of_b, |_| ()).len(), 10);
    assert_eq!(drops.count(), 20);
}

#[test]
fn p17_the_last_ack_of_a_batch_frees_the_batch() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<String>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish_all(["one", "two", "three"]).unwrap();
    assert_eq!(topic.stats().resident_bytes, 11);
    sub.try_recv_batch(3).unwrap().ack().unwrap();
    assert_eq!(topic.stats().resident_bytes, 0);
    assert_eq!(drain(&sub), Vec::<String>::new());
}
