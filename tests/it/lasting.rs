//! What there is lasts while nobody looks: between two looks at it the broker ends and comes again, in a run with restarts.

use eventflow::{DeadLetter, DeliveryMode, Message, Retention, Seek, Subscription, Topic};

use crate::support::{Broker, NANO, SECOND, assert_empty, desk, desk_with, drain, manual, take};

/// What is there under these names, after a restart.
fn reopened(broker: Broker, topic: &str, sub: &str) -> (Broker, Topic<u64>, Subscription<u64>) {
    let broker = broker.restarted();
    let topic = broker.topic::<u64>(topic).open().unwrap();
    let sub = topic.subscription(sub).open().unwrap();
    (broker, topic, sub)
}

#[test]
fn a_delayed_message_comes_when_it_is_due() {
    let desk = desk::<u64>();
    desk.topic.publish(Message::new(1u64).deliver_after(SECOND * 60)).unwrap();
    desk.topic.publish(2u64).unwrap();
    desk.clock.advance(SECOND * 30);
    let desk = desk.restarted();
    assert_eq!(drain(&desk.sub), [2]);
    assert_eq!(desk.sub.stats().delayed, 1);
    let desk = desk.restarted();
    desk.clock.advance(SECOND * 30 - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    assert_eq!(drain(&desk.sub), [1]);
}

#[test]
fn p12_the_next_of_a_key_waits_for_the_first() {
    let mut desk = desk_with::<u64>(|options| options.ordered().max_outstanding(10));
    for n in 0..30u64 {
        desk.topic.publish(Message::new(n).ordering_key((n % 3).to_string())).unwrap();
    }
    let mut seen = vec![Vec::new(); 3];
    for round in 0..30 {
        let delivery = take(&desk.sub);
        seen[(*delivery % 3) as usize].push(*delivery);
        delivery.ack().unwrap();
        if round % 4 == 0 {
            desk = desk.restarted();
        }
    }
    assert_empty(&desk.sub);
    for (key, seen) in (0..3).zip(seen) {
        assert_eq!(seen, (0..10).map(|n| n * 3 + key).collect::<Vec<u64>>());
    }
}

#[test]
fn p11_what_is_parked_goes_to_its_dead_letter_topic_once_that_keeps_it() {
    let (broker, _clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    topic.publish_all([1u64, 2]).unwrap();
    undertaker.delete().unwrap();
    take(&sub).reject("unwanted").unwrap();
    assert_eq!(sub.stats().parked, 1);
    let (broker, _topic, sub) = reopened(broker, "topic", "sub");
    assert_eq!((sub.stats().parked, sub.stats().backlog), (1, 2));
    assert_eq!(drain(&sub), [2]);
    let dead = broker.topic::<u64>("dead").open().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let letter = take(&undertaker);
    assert_eq!(*letter, 1);
    assert_eq!(letter.message().attribute("eventflow.dead_letter.reason"), Some("unwanted"));
    assert_eq!(sub.stats().backlog, 0);
}

#[test]
fn a_snapshot_brings_back_what_was_not_settled_then_and_what_came_since() {
    let desk = desk::<u64>();
    desk.topic.publish_all(0..4u64).unwrap();
    take(&desk.sub).ack().unwrap();
    desk.sub.snapshot("noon").unwrap();
    desk.topic.publish(4u64).unwrap();
    assert_eq!(drain(&desk.sub), [1, 2, 3, 4]);
    let desk = desk.restarted();
    assert_eq!(desk.broker.snapshots(), ["noon"]);
    assert_empty(&desk.sub);
    desk.sub.seek(Seek::Snapshot("noon".into())).unwrap();
    let desk = desk.restarted();
    assert_eq!(drain(&desk.sub), [1, 2, 3, 4]);
}

#[test]
fn what_is_kept_for_ever_can_be_sought_back_to() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("topic").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish_all(0..5u64).unwrap();
    assert_eq!(drain(&sub).len(), 5);
    let (broker, _topic, sub) = reopened(broker, "topic", "sub");
    assert_empty(&sub);
    sub.seek(Seek::Sequence(3)).unwrap();
    let (_broker, _topic, sub) = reopened(broker, "topic", "sub");
    assert_eq!(drain(&sub), [2, 3, 4]);
}

#[test]
fn p05_a_transaction_is_there_whole() {
    let (broker, _clock) = manual();
    let (from, to) =
        (broker.topic::<u64>("from").create().unwrap(), broker.topic::<u64>("to").create().unwrap());
    from.subscription("sub").create().unwrap();
    to.subscription("sub").create().unwrap();
    from.publish_all(0..10u64).unwrap();
    let mut broker = broker;
    for n in 0..10 {
        let (open, _from, sub) = reopened(broker, "from", "sub");
        let to = open.topic::<u64>("to").open().unwrap();
        let mut transaction = open.transaction();
        let delivery = take(&sub);
        assert_eq!(*delivery, n);
        transaction.publish(&to, *delivery * 2);
        transaction.ack(delivery);
        transaction.commit().unwrap();
        broker = open;
    }
    let (broker, _from, sub) = reopened(broker, "from", "sub");
    assert_empty(&sub);
    let (_broker, _to, sub) = reopened(broker, "to", "sub");
    assert_eq!(drain(&sub), (0..10).map(|n| n * 2).collect::<Vec<u64>>());
}

#[test]
fn p15_what_was_settled_exactly_once_never_comes_again() {
    let mut desk = desk_with::<u64>(|options| options.delivery(DeliveryMode::ExactlyOnce));
    desk.topic.publish_all(0..20u64).unwrap();
    let mut seen = Vec::new();
    while let Ok(delivery) = desk.sub.try_recv() {
        seen.push(*delivery);
        delivery.ack().unwrap();
        if seen.len() % 6 == 0 {
            // It ends with one in hand.
            let held = take(&desk.sub);
            desk = desk.restarted();
            drop(held);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<u64>>());
}
