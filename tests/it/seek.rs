//! Replay: seek in its five ways, and start positions as far as they are the same places.

use std::time::{Duration, SystemTime};

use eventflow::{
    DeliveryMode, ManualClock, Message, Retention, RetryPolicy, Seek, SeekError, SettleError, Start,
    Subscription, Topic, TryRecvError,
};

use crate::support::{
    Answer, Broker, Checksum, DEADLINE, NANO, SECOND, ask, assert_empty, drain, drain_with, manual, take,
    within,
};

const EXPIRED: Result<(), SettleError> = Err(SettleError::LeaseExpired { count: 1 });

/// A topic that keeps everything, with one subscription.
struct Archive {
    broker: Broker,
    clock: ManualClock,
    topic: Topic<u64>,
    sub: Subscription<u64>,
}

fn archive() -> Archive {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    Archive { broker, clock, topic, sub }
}

/// Messages 1 to 10, one a second from the clock's start on; message `n` has the sequence `n`. It is 10 s when this returns.
fn ten_in_ten_seconds() -> (Archive, SystemTime) {
    let archive = archive();
    let start = archive.clock.now();
    for number in 1..=10u64 {
        assert_eq!(archive.topic.publish(number).unwrap().id.sequence(), number);
        archive.clock.advance(SECOND);
    }
    (archive, start)
}

fn from(first: u64) -> Vec<u64> {
    (first..=10).collect()
}

#[test]
fn seek_earliest_brings_all_that_is_kept_in_order_and_at_attempt_one() {
    let (archive, _) = ten_in_ten_seconds();
    for _ in 0..3 {
        let seen = drain_with(&archive.sub, |delivery| (**delivery, delivery.attempt()));
        assert_eq!(seen, from(1).into_iter().map(|n| (n, 1)).collect::<Vec<_>>());
        archive.sub.seek(Seek::Earliest).unwrap();
        assert_eq!(archive.sub.stats().backlog, 10);
    }
}

#[test]
fn seek_latest_settles_what_is_there_and_nothing_that_comes() {
    let (archive, _) = ten_in_ten_seconds();
    let held = take(&archive.sub);
    archive.sub.seek(Seek::Latest).unwrap();
    assert_empty(&archive.sub);
    assert_eq!((archive.sub.stats().backlog, archive.sub.stats().outstanding), (0, 0));
    assert_eq!(held.ack(), EXPIRED);
    archive.topic.publish(11u64).unwrap();
    assert_eq!(drain(&archive.sub), [11]);
}

#[test]
fn seek_to_a_sequence_includes_it() {
    let (archive, _) = ten_in_ten_seconds();
    assert_eq!(drain(&archive.sub), from(1));
    for first in [10, 4, 1, 7] {
        archive.sub.seek(Seek::Sequence(first)).unwrap();
        assert_eq!(archive.sub.stats().backlog, 11 - first);
        assert_eq!(drain(&archive.sub), from(first));
    }
    archive.sub.seek(Seek::Sequence(11)).unwrap();
    assert_empty(&archive.sub);
}

#[test]
fn seek_forward_settles_what_is_skipped() {
    let (archive, _) = ten_in_ten_seconds();
    assert_eq!(*take(&archive.sub), 1);
    archive.sub.seek(Seek::Sequence(8)).unwrap();
    assert_eq!(drain(&archive.sub), [8, 9, 10]);
    archive.clock.advance(DEADLINE);
    assert_empty(&archive.sub);
}

#[test]
fn seek_to_a_time_includes_what_was_published_then() {
    let (archive, start) = ten_in_ten_seconds();
    let published = |n: u32| start + SECOND * (n - 1);
    assert_eq!(drain(&archive.sub), from(1));
    for first in [10, 4, 1] {
        archive.sub.seek(Seek::Time(published(first))).unwrap();
        assert_eq!(drain(&archive.sub), from(u64::from(first)), "at the instant of publish");
        archive.sub.seek(Seek::Time(published(first) - NANO)).unwrap();
        assert_eq!(drain(&archive.sub), from(u64::from(first)), "just before");
        archive.sub.seek(Seek::Time(published(first) + NANO)).unwrap();
        assert_eq!(drain(&archive.sub), from(u64::from(first) + 1), "just after");
    }
}

#[test]
fn seek_to_a_time_takes_all_messages_of_that_instant() {
    let archive = archive();
    archive.topic.publish(1u64).unwrap();
    archive.clock.advance(SECOND);
    archive.topic.publish_all(2..=400u64).unwrap();
    let instant = archive.clock.now();
    archive.clock.advance(SECOND);
    archive.topic.publish(401u64).unwrap();
    archive.sub.seek(Seek::Time(instant)).unwrap();
    assert_eq!(drain(&archive.sub), (2..=401).collect::<Vec<_>>());
}

#[test]
fn a_place_before_what_is_kept_means_the_oldest_kept() {
    let (archive, start) = ten_in_ten_seconds();
    let year = Duration::from_secs(365 * 86_400);
    let places = [
        Seek::Sequence(0),
        Seek::Time(start - NANO),
        Seek::Time(start - year),
        Seek::Time(SystemTime::UNIX_EPOCH),
        Seek::Time(SystemTime::UNIX_EPOCH - year),
    ];
    for place in places {
        let name = format!("{place:?}");
        archive.sub.seek(place).unwrap();
        assert_eq!(drain(&archive.sub), from(1), "{name}");
    }
}

#[test]
fn a_place_behind_the_end_settles_all_that_is_there() {
    let (archive, start) = ten_in_ten_seconds();
    let century = Duration::from_secs(100 * 365 * 86_400);
    for place in [Seek::Sequence(u64::MAX), Seek::Sequence(12), Seek::Time(start + century)] {
        archive.sub.seek(Seek::Earliest).unwrap();
        let name = format!("{place:?}");
        archive.sub.seek(place).unwrap();
        assert_empty(&archive.sub);
        assert_eq!(archive.sub.stats().backlog, 0, "{name}");
    }
}

#[test]
fn what_is_no_longer_kept_does_not_come_back() {
    let (broker, clock) = manual();
    let retention = Retention::for_duration(SECOND * 60);
    let topic = broker.topic::<u64>("t").retention(retention).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish_all(1..=2_000u64).unwrap();
    assert_eq!(drain(&sub).len(), 2_000);
    clock.advance(SECOND * 30);
    topic.publish_all(2_001..=4_000u64).unwrap();
    clock.advance(SECOND * 30);
    for place in [Seek::Earliest, Seek::Sequence(1), Seek::Time(SystemTime::UNIX_EPOCH)] {
        sub.seek(place).unwrap();
        let seen = drain(&sub);
        assert!((2_000..2_256).contains(&seen.len()), "{}", seen.len());
        assert_eq!(seen, (4_001 - seen.len() as u64..=4_000).collect::<Vec<_>>());
    }
}

#[test]
fn until_acked_replays_only_what_another_subscription_still_needs() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let slow = topic.subscription("slow").create().unwrap();
    topic.publish_all(1..=3_000u64).unwrap();
    assert_eq!(drain(&sub).len(), 3_000);
    sub.seek(Seek::Earliest).unwrap();
    assert_eq!(drain(&sub), (1..=3_000).collect::<Vec<_>>());
    assert_eq!(drain(&slow).len(), 3_000);
    sub.seek(Seek::Earliest).unwrap();
    assert_empty(&sub);
}

#[test]
fn p08_every_lease_of_before_a_seek_is_expired() {
    for way in 0..7 {
        let (archive, _) = ten_in_ten_seconds();
        let held = take(&archive.sub);
        archive.sub.seek(Seek::Earliest).unwrap();
        assert_eq!(archive.sub.stats().outstanding, 0);
        let outcome = match way {
            0 => held.ack(),
            1 => held.nack(),
            2 => held.nack_after(SECOND),
            3 => held.release(),
            4 => held.reject("old"),
            5 => held.extend(SECOND),
            _ => held.extend(Duration::ZERO),
        };
        assert_eq!(outcome, EXPIRED, "way {way}");
        let seen = drain_with(&archive.sub, |delivery| (**delivery, delivery.attempt()));
        assert_eq!(seen, from(1).into_iter().map(|n| (n, 1)).collect::<Vec<_>>(), "way {way}");
        assert_eq!(archive.sub.stats().discarded, 0);
    }
}

#[test]
fn p08_a_late_ack_is_not_taken_for_a_message_that_was_sought_back() {
    let (archive, _) = ten_in_ten_seconds();
    let late = take(&archive.sub);
    archive.clock.advance(DEADLINE);
    // Unsettled and leased to nobody: without the seek this ack would be taken.
    archive.sub.seek(Seek::Earliest).unwrap();
    assert_eq!(late.ack(), EXPIRED);
    assert_eq!(drain(&archive.sub), from(1));
}

#[test]
fn p08_a_late_ack_of_before_a_seek_is_not_taken_for_what_failed_again_after_it() {
    let (archive, _) = ten_in_ten_seconds();
    let late = take(&archive.sub);
    archive.clock.advance(DEADLINE);
    archive.sub.seek(Seek::Earliest).unwrap();
    take(&archive.sub).nack_after(SECOND).unwrap();
    // Known to the book, unsettled and leased to nobody, as it was before the seek.
    assert_eq!(late.ack(), EXPIRED);
    archive.clock.advance(SECOND);
    assert_eq!(Checksum::of(drain(&archive.sub)), Checksum::of(1..=10));
}

#[test]
fn a_lease_of_before_a_seek_does_not_disturb_the_lease_of_after_it() {
    let (archive, _) = ten_in_ten_seconds();
    let before = take(&archive.sub);
    archive.sub.seek(Seek::Earliest).unwrap();
    let after = take(&archive.sub);
    assert_eq!((*before, *after, after.attempt()), (1, 1, 1));
    drop(before);
    assert_eq!(*take(&archive.sub), 2, "the drop gave nothing back");
    after.ack().unwrap();
    assert_eq!(archive.sub.stats().acked, 1);
}

#[test]
fn a_batch_of_before_a_seek_counts_all_of_itself_as_not_settled() {
    let (archive, _) = ten_in_ten_seconds();
    let batch = archive.sub.try_recv_batch(4).unwrap();
    archive.sub.seek(Seek::Sequence(3)).unwrap();
    assert_eq!(batch.ack(), Err(SettleError::LeaseExpired { count: 4 }));
    assert_eq!(drain(&archive.sub), from(3));
}

#[test]
fn attempts_begin_at_one_after_a_seek() {
    let archive = archive();
    archive.topic.publish(7u64).unwrap();
    for failures in 0..5 {
        for attempt in 1..=failures {
            let delivery = take(&archive.sub);
            assert_eq!(delivery.attempt(), attempt);
            delivery.nack().unwrap();
        }
        archive.sub.seek(Seek::Earliest).unwrap();
    }
    let delivery = take(&archive.sub);
    assert_eq!(delivery.attempt(), 1);
    delivery.ack().unwrap();
    let stats = archive.sub.stats();
    assert_eq!((stats.nacked, stats.acked, stats.backlog), (10, 1, 0));
}

#[test]
fn a_publish_delay_that_is_not_over_still_holds_after_a_seek() {
    let archive = archive();
    archive.topic.publish(Message::new(1u64).deliver_after(SECOND * 10)).unwrap();
    archive.topic.publish(2u64).unwrap();
    assert_eq!(drain(&archive.sub), [2]);
    archive.clock.advance(SECOND * 3);
    archive.sub.seek(Seek::Earliest).unwrap();
    assert_eq!(drain(&archive.sub), [2]);
    archive.clock.advance(SECOND * 7 - NANO);
    assert_empty(&archive.sub);
    archive.clock.advance(NANO);
    assert_eq!(drain(&archive.sub), [1]);
    archive.sub.seek(Seek::Earliest).unwrap();
    assert_eq!(drain(&archive.sub), [1, 2], "it is over");
}

#[test]
fn a_retry_delay_does_not_outlive_a_seek() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").retry(RetryPolicy::fixed(SECOND * 60)).create().unwrap();
    topic.publish_all([1u64, 2]).unwrap();
    take(&sub).nack().unwrap();
    take(&sub).nack_after(SECOND * 3_600).unwrap();
    assert_eq!(sub.stats().delayed, 2);
    sub.seek(Seek::Earliest).unwrap();
    assert_eq!(sub.stats().delayed, 0);
    assert_eq!(drain(&sub), [1, 2]);
}

#[test]
fn a_seek_is_one_subscriptions_own_affair() {
    let (archive, _) = ten_in_ten_seconds();
    let other = archive.topic.subscription("other").start(Start::Earliest).create().unwrap();
    let held = take(&other);
    archive.sub.seek(Seek::Latest).unwrap();
    archive.sub.seek(Seek::Earliest).unwrap();
    held.ack().unwrap();
    assert_eq!(drain(&other), from(2));
    assert_eq!(drain(&archive.sub), from(1));
}

#[test]
fn a_seek_wakes_who_waits() {
    let (archive, _) = ten_in_ten_seconds();
    assert_eq!(drain(&archive.sub), from(1));
    let waiting = ask({
        let sub = archive.sub.clone();
        move || *sub.recv().unwrap()
    });
    waiting.assert_pending();
    archive.sub.seek(Seek::Sequence(10)).unwrap();
    assert_eq!(waiting.get(), 10);
}

#[cfg(feature = "async")]
#[test]
fn a_seek_wakes_a_future_that_waits() {
    use crate::support::Task;
    let (archive, _) = ten_in_ten_seconds();
    assert_eq!(drain(&archive.sub), from(1));
    let mut waiting = Task::pending(archive.sub.recv_async());
    archive.sub.seek(Seek::Sequence(10)).unwrap();
    assert!(waiting.wakes() > 0);
    assert_eq!(*waiting.ready().unwrap(), 10);
}

#[test]
fn a_paused_subscription_stays_paused_over_a_seek() {
    let (archive, _) = ten_in_ten_seconds();
    archive.sub.pause().unwrap();
    archive.sub.seek(Seek::Earliest).unwrap();
    assert_empty(&archive.sub);
    archive.sub.resume().unwrap();
    assert_eq!(drain(&archive.sub), from(1));
}

#[test]
fn a_seek_asks_for_what_was_handed_out_at_most_once_too() {
    let archive = archive();
    let once = archive.topic.subscription("once").delivery(DeliveryMode::AtMostOnce).create().unwrap();
    archive.topic.publish_all(1..=3u64).unwrap();
    assert_eq!(drain(&once), [1, 2, 3]);
    once.seek(Seek::Sequence(2)).unwrap();
    assert_eq!(drain(&once), [2, 3]);
}

#[test]
fn a_seek_brings_back_what_was_rejected_and_what_the_filter_takes() {
    let archive = archive();
    let even = archive.topic.subscription("even").filter_fn(|message| *message % 2 == 0).create().unwrap();
    archive.topic.publish_all(1..=6u64).unwrap();
    take(&even).reject("no").unwrap();
    assert_eq!(drain(&even), [4, 6]);
    even.seek(Seek::Earliest).unwrap();
    assert_eq!(drain(&even), [2, 4, 6]);
}

#[test]
fn a_seek_frees_the_places_of_its_outstanding_leases() {
    let archive = archive();
    let narrow = archive.topic.subscription("narrow").max_outstanding(1).create().unwrap();
    archive.topic.publish_all([1u64, 2]).unwrap();
    let held = take(&narrow);
    assert_empty(&narrow);
    narrow.seek(Seek::Earliest).unwrap();
    let again = take(&narrow);
    assert_eq!(*again, 1);
    drop(held);
    assert_empty(&narrow);
    again.ack().unwrap();
    assert_eq!(drain(&narrow), [2]);
}

#[test]
fn seek_errors_say_what_is_wrong() {
    let (archive, _) = ten_in_ten_seconds();
    assert!(matches!(archive.sub.seek(Seek::Snapshot("nobody".into())), Err(SeekError::NotFound)));
    assert!(matches!(archive.sub.seek(Seek::Snapshot("not a name!".into())), Err(SeekError::NotFound)));
    let held = take(&archive.sub);
    assert!(matches!(archive.sub.seek(Seek::Snapshot("nobody".into())), Err(SeekError::NotFound)));
    held.ack().expect("a seek that failed changed nothing");
    archive.sub.delete().unwrap();
    assert_eq!(archive.sub.seek(Seek::Earliest), Err(SeekError::Deleted));
    let other = archive.topic.subscription("other").create().unwrap();
    archive.broker.shutdown(Duration::ZERO).unwrap();
    assert_eq!(other.seek(Seek::Earliest), Err(SeekError::Closed));
}

#[test]
fn starts_are_the_same_places_as_seeks() {
    let (archive, start) = ten_in_ten_seconds();
    let begin =
        |name: &str, place: Start| drain(&archive.topic.subscription(name).start(place).create().unwrap());
    assert_eq!(begin("latest", Start::Latest), Vec::<u64>::new());
    assert_eq!(begin("earliest", Start::Earliest), from(1));
    assert_eq!(begin("sequence", Start::Sequence(4)), from(4));
    assert_eq!(begin("sequence-zero", Start::Sequence(0)), from(1));
    assert_eq!(begin("time", Start::Time(start + SECOND * 3)), from(4));
    assert_eq!(begin("time-before", Start::Time(start + SECOND * 3 - NANO)), from(4));
    assert_eq!(begin("time-after", Start::Time(start + SECOND * 3 + NANO)), from(5));
    assert_eq!(begin("time-long-ago", Start::Time(SystemTime::UNIX_EPOCH)), from(1));
}

#[test]
fn a_start_acts_at_creation_only_and_is_never_compared() {
    let (archive, _) = ten_in_ten_seconds();
    let sub = archive.topic.subscription("x").start(Start::Sequence(8)).create().unwrap();
    take(&sub).ack().unwrap();
    let again = archive.topic.subscription("x").start(Start::Earliest).open().unwrap();
    assert_eq!(drain(&again), [9, 10]);
}

#[test]
fn seeks_among_working_threads_lose_nothing_and_hang_nobody() {
    const MESSAGES: u64 = 500;
    within(120, || {
        let archive = archive();
        archive.topic.publish_all(1..=MESSAGES).unwrap();
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let sub = archive.sub.clone();
                ask(move || {
                    loop {
                        match sub.try_recv_batch(1 + worker * 5) {
                            Ok(batch) => _ = batch.ack(),
                            Err(TryRecvError::Empty) => std::thread::yield_now(),
                            Err(_) => return,
                        }
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            archive.sub.seek(Seek::Earliest).unwrap();
            archive.sub.seek(Seek::Sequence(MESSAGES / 2)).unwrap();
        }
        archive.sub.pause().unwrap();
        archive.sub.seek(Seek::Earliest).unwrap();
        let settled = archive.sub.stats().acked;
        archive.sub.resume().unwrap();
        while archive.sub.stats().backlog > 0 {
            std::thread::yield_now();
        }
        assert_eq!(archive.sub.stats().acked - settled, MESSAGES, "once each after the last seek");
        archive.broker.shutdown(Duration::ZERO).unwrap();
        workers.into_iter().for_each(Answer::get);
    });
}
