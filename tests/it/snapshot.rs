//! Snapshots: what a subscription had not settled, kept for later.

use std::time::Duration;

use eventflow::{CreateError, DeleteError, ManualClock, Retention, Seek, SeekError, Subscription, Topic};

use crate::support::{Broker, Counted, Drops, NANO, SECOND, assert_empty, drain, drain_with, manual, take};

const WEEK: Duration = Duration::from_secs(7 * 86_400);

struct Shelf {
    broker: Broker,
    clock: ManualClock,
    topic: Topic<Counted>,
    sub: Subscription<Counted>,
    drops: Drops,
}

/// A topic that forgets what is acked, with one subscription and the messages 1 to `messages`.
fn shelf(messages: u64) -> Shelf {
    let (broker, clock) = manual();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let drops = Drops::default();
    let shelf = Shelf { broker, clock, topic, sub, drops };
    shelf.publish(1..=messages);
    shelf
}

impl Shelf {
    fn publish(&self, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            self.topic.publish(self.drops.event(number)).unwrap();
        }
    }
}

fn numbers(sub: &Subscription<Counted>) -> Vec<u64> {
    drain_with(sub, |delivery| delivery.number)
}

fn to(name: &str) -> Seek {
    Seek::Snapshot(name.to_owned())
}

#[test]
fn p17_a_snapshot_keeps_what_its_subscription_had_not_settled() {
    let shelf = shelf(10);
    for _ in 0..3 {
        take(&shelf.sub).ack().unwrap();
    }
    shelf.sub.snapshot("before").unwrap();
    assert_eq!(numbers(&shelf.sub), [4, 5, 6, 7, 8, 9, 10]);
    assert!(shelf.drops.count() <= 3, "what the snapshot needs is still there");
    shelf.sub.seek(to("before")).unwrap();
    assert_eq!(shelf.sub.stats().backlog, 7);
    assert_eq!(numbers(&shelf.sub), [4, 5, 6, 7, 8, 9, 10]);
    shelf.sub.seek(to("before")).unwrap();
    assert_eq!(numbers(&shelf.sub), [4, 5, 6, 7, 8, 9, 10], "as often as one likes");
    shelf.broker.delete_snapshot("before").unwrap();
    assert_eq!(shelf.drops.count(), 10);
}

#[test]
fn a_snapshot_remembers_acks_out_of_order() {
    let shelf = shelf(600);
    let mut held = Vec::new();
    while let Ok(delivery) = shelf.sub.try_recv() {
        if delivery.number % 3 == 0 {
            delivery.ack().unwrap();
        } else {
            held.push(delivery);
        }
    }
    shelf.sub.snapshot("gaps").unwrap();
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert_empty(&shelf.sub);
    shelf.sub.seek(to("gaps")).unwrap();
    assert_eq!(numbers(&shelf.sub), (1..=600).filter(|n| n % 3 != 0).collect::<Vec<_>>());
}

#[test]
fn what_is_outstanding_or_delayed_at_a_snapshot_is_unsettled_in_it() {
    let shelf = shelf(4);
    let held = take(&shelf.sub);
    take(&shelf.sub).nack_after(SECOND).unwrap();
    take(&shelf.sub).ack().unwrap();
    shelf.sub.snapshot("now").unwrap();
    held.ack().unwrap();
    shelf.clock.advance(SECOND);
    let mut seen = numbers(&shelf.sub);
    seen.sort_unstable();
    assert_eq!(seen, [2, 4]);
    shelf.sub.seek(to("now")).unwrap();
    let seen = drain_with(&shelf.sub, |delivery| (delivery.number, delivery.attempt()));
    assert_eq!(seen, [(1, 1), (2, 1), (4, 1)]);
}

#[test]
fn what_was_published_after_a_snapshot_is_unsettled_in_it() {
    let shelf = shelf(2);
    shelf.sub.snapshot("early").unwrap();
    assert_eq!(numbers(&shelf.sub), [1, 2]);
    shelf.publish(3..=700);
    assert_eq!(numbers(&shelf.sub).len(), 698);
    shelf.sub.seek(to("early")).unwrap();
    assert_eq!(numbers(&shelf.sub), (1..=700).collect::<Vec<_>>());
}

#[test]
fn a_snapshot_of_an_idle_subscription_brings_back_what_comes_after_it() {
    let shelf = shelf(3);
    assert_eq!(numbers(&shelf.sub), [1, 2, 3]);
    shelf.sub.snapshot("empty").unwrap();
    shelf.publish(4..=6);
    assert_eq!(numbers(&shelf.sub), [4, 5, 6]);
    shelf.sub.seek(to("empty")).unwrap();
    assert_eq!(numbers(&shelf.sub), [4, 5, 6]);
}

#[test]
fn a_snapshot_does_not_disturb_its_subscription() {
    let shelf = shelf(3);
    let held = take(&shelf.sub);
    let before = shelf.sub.stats();
    shelf.sub.snapshot("x").unwrap();
    let after = shelf.sub.stats();
    assert_eq!((before.backlog, before.outstanding), (after.backlog, after.outstanding));
    held.ack().unwrap();
    assert_eq!(numbers(&shelf.sub), [2, 3]);
}

#[test]
fn p17_a_snapshot_outlives_its_subscription_and_serves_another() {
    let shelf = shelf(5);
    take(&shelf.sub).ack().unwrap();
    shelf.sub.snapshot("legacy").unwrap();
    shelf.sub.delete().unwrap();
    assert!(shelf.drops.count() <= 1);
    assert_eq!(shelf.broker.snapshots(), ["legacy"]);
    shelf.publish(6..=7);
    let heir = shelf.topic.subscription("heir").create().unwrap();
    assert_empty(&heir);
    heir.seek(to("legacy")).unwrap();
    assert_eq!(numbers(&heir), [2, 3, 4, 5, 6, 7]);
}

#[test]
fn p17_a_snapshot_does_not_outlive_its_topic() {
    let shelf = shelf(5);
    shelf.sub.snapshot("x").unwrap();
    shelf.broker.delete_topic("t").unwrap();
    assert!(shelf.broker.snapshots().is_empty());
    assert!(matches!(shelf.broker.delete_snapshot("x"), Err(DeleteError::NotFound)));
    assert_eq!(shelf.drops.count(), 5);
    let again = shelf.broker.topic::<Counted>("t").create().unwrap();
    let sub = again.subscription("s").create().unwrap();
    assert!(matches!(sub.seek(to("x")), Err(SeekError::NotFound)));
    sub.snapshot("x").unwrap();
}

#[test]
fn p17_a_snapshot_is_kept_for_seven_days() {
    let shelf = shelf(300);
    shelf.sub.snapshot("week").unwrap();
    assert_eq!(numbers(&shelf.sub).len(), 300);
    shelf.clock.advance(WEEK - NANO);
    assert_eq!(shelf.broker.snapshots(), ["week"]);
    assert_eq!(shelf.drops.count(), 0);
    shelf.sub.seek(to("week")).unwrap();
    assert_eq!(numbers(&shelf.sub).len(), 300);
    shelf.clock.advance(NANO);
    assert!(shelf.broker.snapshots().is_empty());
    assert_eq!(shelf.drops.count(), 300, "gone when advance returns");
    assert!(matches!(shelf.sub.seek(to("week")), Err(SeekError::NotFound)));
    shelf.sub.snapshot("week").expect("the name is free again");
}

#[test]
fn p17_a_deleted_snapshot_frees_what_only_it_needed() {
    let shelf = shelf(1_000);
    shelf.sub.snapshot("one").unwrap();
    shelf.sub.seek(Seek::Sequence(901)).unwrap();
    shelf.sub.snapshot("two").unwrap();
    assert_eq!(numbers(&shelf.sub).len(), 100);
    assert_eq!(shelf.drops.count(), 0);
    shelf.broker.delete_snapshot("one").unwrap();
    let gone = shelf.drops.count();
    assert!((645..=900).contains(&gone), "{gone}");
    assert!(matches!(shelf.broker.delete_snapshot("one"), Err(DeleteError::NotFound)));
    shelf.broker.delete_snapshot("two").unwrap();
    assert_eq!(shelf.drops.count(), 1_000);
}

#[test]
fn a_snapshots_name_is_unique_within_its_broker() {
    let (broker, _clock) = manual();
    let a = broker.topic::<u64>("a").create().unwrap();
    let b = broker.topic::<u64>("b").create().unwrap();
    let of_a = a.subscription("s").create().unwrap();
    let of_b = b.subscription("s").create().unwrap();
    of_a.snapshot("x").unwrap();
    assert!(matches!(of_a.snapshot("x"), Err(CreateError::AlreadyExists)));
    assert!(matches!(of_b.snapshot("x"), Err(CreateError::AlreadyExists)));
    of_b.snapshot("y").unwrap();
    let mut names = broker.snapshots();
    names.sort();
    assert_eq!(names, ["x", "y"]);
    broker.delete_snapshot("x").unwrap();
    of_b.snapshot("x").unwrap();
}

#[test]
fn a_snapshot_of_another_topic_is_not_found() {
    let (broker, _clock) = manual();
    let a = broker.topic::<u64>("a").retention(Retention::forever()).create().unwrap();
    let b = broker.topic::<u64>("b").retention(Retention::forever()).create().unwrap();
    let of_a = a.subscription("s").create().unwrap();
    let of_b = b.subscription("s").create().unwrap();
    a.publish(1u64).unwrap();
    b.publish_all([2u64, 3]).unwrap();
    of_a.snapshot("x").unwrap();
    assert_eq!(drain(&of_b), [2, 3]);
    assert!(matches!(of_b.seek(to("x")), Err(SeekError::NotFound)));
    assert_empty(&of_b);
}

#[test]
fn a_snapshots_name_is_checked() {
    let shelf = shelf(0);
    for name in ["", "-x", "a b", "ä", &"x".repeat(256)] {
        let outcome = shelf.sub.snapshot(name);
        assert!(matches!(outcome, Err(CreateError::InvalidName { .. })), "{name:?}: {outcome:?}");
    }
    shelf.sub.snapshot(&"x".repeat(255)).unwrap();
}

#[test]
fn a_snapshot_of_what_is_gone_is_an_error() {
    let shelf = shelf(1);
    shelf.sub.delete().unwrap();
    assert!(shelf.sub.snapshot("late").is_err());
    let other = shelf.topic.subscription("other").create().unwrap();
    other.snapshot("kept").unwrap();
    shelf.broker.shutdown(Duration::ZERO).unwrap();
    assert!(matches!(other.snapshot("closed"), Err(CreateError::Closed)));
    assert_eq!(shelf.broker.delete_snapshot("kept"), Err(DeleteError::Closed));
}

#[test]
fn seeking_to_a_snapshot_ends_the_leases_and_begins_attempts_anew() {
    let shelf = shelf(2);
    take(&shelf.sub).nack().unwrap();
    shelf.sub.snapshot("x").unwrap();
    let held = take(&shelf.sub);
    shelf.sub.seek(to("x")).unwrap();
    assert!(held.ack().is_err());
    let seen = drain_with(&shelf.sub, |delivery| (delivery.number, delivery.attempt()));
    assert_eq!(seen, [(1, 1), (2, 1)]);
}

#[test]
fn p17_a_snapshot_keeps_no_more_than_the_segments_it_needs() {
    let shelf = shelf(10_000);
    let mut held = None;
    while let Ok(delivery) = shelf.sub.try_recv() {
        if delivery.number == 5_000 {
            held = Some(delivery);
        } else {
            delivery.ack().unwrap();
        }
    }
    shelf.sub.snapshot("one").unwrap();
    held.unwrap().ack().unwrap();
    let kept = 10_000 - shelf.drops.count();
    assert!((1..=256).contains(&kept), "{kept}");
    shelf.sub.seek(to("one")).unwrap();
    assert_eq!(numbers(&shelf.sub), [5_000]);
}
