//! Who has received and settled a given message: `Topic::status`.

use std::collections::BTreeMap;

use eventflow::{
    Capacity, DeadLetter, DeliveryMode, ManualClock, Message, MessageId, MessageStatus, Overflow, Retention,
    Seek, Start, Topic,
};

use crate::support::{Broker, DEADLINE, SECOND, assert_empty, drain, manual, take};

/// A broker with a topic that keeps everything, so that every message can be asked for.
fn archive() -> (Broker, ManualClock, Topic<u64>) {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).create().unwrap();
    (broker, clock, topic)
}

/// How `id` stands for the subscription `name`.
#[track_caller]
fn stands(topic: &Topic<u64>, id: MessageId, name: &str) -> MessageStatus {
    let status = topic.status(id).expect("the message is kept");
    *status.get(name).unwrap_or_else(|| panic!("{name} is missing in {status:?}"))
}

#[test]
fn a_message_that_is_kept_tells_how_it_stands_for_every_subscription() {
    let (_broker, _clock, topic) = archive();
    let early = topic.publish(1u64).unwrap().id;
    assert_eq!(topic.status(early), Some(BTreeMap::new()));
    let a = topic.subscription("a").create().unwrap();
    let b = topic.subscription("b").create().unwrap();
    let id = topic.publish(2u64).unwrap().id;
    let held = take(&a);
    take(&b).ack().unwrap();
    let names: Vec<String> = topic.status(id).unwrap().into_keys().collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(stands(&topic, id, "a"), MessageStatus::Leased);
    assert_eq!(stands(&topic, id, "b"), MessageStatus::Acked);
    assert_eq!(stands(&topic, early, "a"), MessageStatus::Skipped);
    held.ack().unwrap();
    assert_eq!(stands(&topic, id, "a"), MessageStatus::Acked);
    b.delete().unwrap();
    assert_eq!(topic.status(id).unwrap().len(), 1);
}

#[test]
fn a_message_goes_from_waiting_over_leased_and_delayed_to_acked() {
    let (_broker, clock, topic) = archive();
    let sub = topic.subscription("s").create().unwrap();
    let id = topic.publish(1u64).unwrap().id;
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting);
    let delivery = take(&sub);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Leased);
    delivery.nack().unwrap();
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting, "due at once");
    take(&sub).nack_after(SECOND).unwrap();
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Delayed);
    clock.advance(SECOND);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting);
    let delivery = take(&sub);
    clock.advance(DEADLINE);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting, "the lease expired");
    drop(delivery);
    take(&sub).ack().unwrap();
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Acked);
    sub.seek(Seek::Earliest).unwrap();
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting, "sought back");
}

#[test]
fn a_delayed_publish_is_delayed_until_it_is_due() {
    let (_broker, clock, topic) = archive();
    let sub = topic.subscription("s").create().unwrap();
    let id = topic.publish(Message::new(1u64).deliver_after(SECOND)).unwrap().id;
    assert_empty(&sub);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Delayed);
    clock.advance(SECOND);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting);
}

#[test]
fn failures_end_dead_lettered_parked_or_discarded() {
    let (broker, _clock, topic) = archive();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let buried = topic.subscription("buried").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    let thrown = topic.subscription("thrown").dead_letter(DeadLetter::discard().after(1)).create().unwrap();
    let plain = topic.subscription("plain").create().unwrap();
    let id = topic.publish(1u64).unwrap().id;
    take(&buried).nack().unwrap();
    take(&thrown).nack().unwrap();
    take(&plain).reject("no").unwrap();
    assert_eq!(stands(&topic, id, "buried"), MessageStatus::DeadLettered);
    assert_eq!(stands(&topic, id, "thrown"), MessageStatus::Discarded);
    assert_eq!(stands(&topic, id, "plain"), MessageStatus::Discarded);
    assert_eq!(drain(&undertaker), [1]);
    assert_eq!(stands(&topic, id, "buried"), MessageStatus::DeadLettered, "whatever becomes of the letter");

    broker.delete_topic("dead").unwrap();
    let id = topic.publish(2u64).unwrap().id;
    take(&buried).nack().unwrap();
    assert_eq!(stands(&topic, id, "buried"), MessageStatus::Parked);
    let dead = broker.topic::<u64>("dead").create().unwrap();
    dead.subscription("undertaker").create().unwrap();
    assert_eq!(stands(&topic, id, "buried"), MessageStatus::DeadLettered);
}

#[test]
fn what_grew_too_old_is_expired() {
    let (_broker, clock, topic) = archive();
    let sub = topic.subscription("s").expire_after(SECOND * 60).create().unwrap();
    let patient = topic.subscription("patient").create().unwrap();
    let aged = topic.publish(1u64).unwrap().id;
    let short = topic.publish(Message::new(2u64).expires_in(SECOND)).unwrap().id;
    clock.advance(SECOND);
    assert_eq!(stands(&topic, aged, "s"), MessageStatus::Waiting);
    assert_eq!(stands(&topic, short, "s"), MessageStatus::Expired);
    assert_eq!(stands(&topic, short, "patient"), MessageStatus::Expired);
    clock.advance(SECOND * 59);
    assert_eq!(stands(&topic, aged, "s"), MessageStatus::Expired);
    assert_eq!(stands(&topic, aged, "patient"), MessageStatus::Waiting);
    assert_eq!(drain(&patient), [1]);
    assert_empty(&sub);
}

#[test]
fn what_a_filter_turned_away_is_filtered() {
    let (_broker, _clock, topic) = archive();
    let sub = topic.subscription("s").filter("attributes:wanted").create().unwrap();
    let by_closure = topic.subscription("odd").filter_fn(|message| *message % 2 == 1).create().unwrap();
    let unwanted = topic.publish(2u64).unwrap().id;
    let wanted = topic.publish(Message::new(1u64).attribute("wanted", "")).unwrap().id;
    take(&sub).ack().unwrap();
    take(&by_closure).ack().unwrap();
    for name in ["s", "odd"] {
        assert_eq!(stands(&topic, unwanted, name), MessageStatus::Filtered);
        assert_eq!(stands(&topic, wanted, name), MessageStatus::Acked);
    }
}

#[test]
fn what_overflow_dropped_is_dropped() {
    let (broker, _clock) = manual();
    let capacity = Capacity::messages(2).overflow(Overflow::DropOldest);
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).capacity(capacity).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let ids: Vec<MessageId> = (1..=3u64).map(|number| topic.publish(number).unwrap().id).collect();
    assert_eq!(stands(&topic, ids[0], "s"), MessageStatus::Dropped);
    assert_eq!(stands(&topic, ids[1], "s"), MessageStatus::Waiting);
    assert_eq!(drain(&sub), [2, 3]);
    assert_eq!(stands(&topic, ids[0], "s"), MessageStatus::Dropped);
}

#[test]
fn what_lies_before_a_start_or_a_seek_is_skipped() {
    let (_broker, _clock, topic) = archive();
    let ids: Vec<MessageId> = (1..=4u64).map(|number| topic.publish(number).unwrap().id).collect();
    let sub = topic.subscription("s").start(Start::Sequence(3)).create().unwrap();
    assert_eq!(stands(&topic, ids[1], "s"), MessageStatus::Skipped);
    assert_eq!(stands(&topic, ids[2], "s"), MessageStatus::Waiting);
    take(&sub).ack().unwrap();
    sub.seek(Seek::Sequence(4)).unwrap();
    assert_eq!(stands(&topic, ids[3], "s"), MessageStatus::Waiting);
    assert_eq!(stands(&topic, ids[2], "s"), MessageStatus::Skipped);
    sub.seek(Seek::Sequence(2)).unwrap();
    assert_eq!(stands(&topic, ids[0], "s"), MessageStatus::Skipped);
    assert_eq!(stands(&topic, ids[1], "s"), MessageStatus::Waiting);
}

#[test]
fn handed_out_at_most_once_is_acked() {
    let (_broker, _clock, topic) = archive();
    let sub = topic.subscription("s").delivery(DeliveryMode::AtMostOnce).create().unwrap();
    let id = topic.publish(1u64).unwrap().id;
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Waiting);
    let held = take(&sub);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Acked, "settled at hand-out");
    drop(held);
    assert_eq!(stands(&topic, id, "s"), MessageStatus::Acked);
}

#[test]
fn a_paused_or_held_back_message_waits() {
    let (_broker, _clock, topic) = archive();
    let sub = topic.subscription("s").ordered().create().unwrap();
    let keyed = |number: u64| Message::new(number).ordering_key("k");
    let receipts = topic.publish_all([keyed(1), keyed(2)]).unwrap();
    let held = take(&sub);
    assert_eq!(stands(&topic, receipts[1].id, "s"), MessageStatus::Waiting);
    sub.pause().unwrap();
    held.release().unwrap();
    assert_eq!(stands(&topic, receipts[0].id, "s"), MessageStatus::Waiting);
}

#[test]
fn every_message_of_many_keeps_its_own_end() {
    let (broker, _clock, topic) = archive();
    let dead = broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead)).create().unwrap();
    let receipts = topic.publish_all(0..3_000u64).unwrap();
    while let Ok(delivery) = sub.try_recv() {
        match *delivery % 3 {
            0 => delivery.ack().unwrap(),
            _ if *delivery % 7 == 0 => delivery.reject("seven").unwrap(),
            1 => delivery.nack_after(SECOND).unwrap(),
            _ => delivery.ack().unwrap(),
        }
    }
    for (number, receipt) in receipts.iter().enumerate() {
        let expected = match number {
            n if n % 3 == 0 => MessageStatus::Acked,
            n if n % 7 == 0 => MessageStatus::DeadLettered,
            n if n % 3 == 1 => MessageStatus::Delayed,
            _ => MessageStatus::Acked,
        };
        assert_eq!(stands(&topic, receipt.id, "s"), expected, "message {number}");
    }
}

#[test]
fn a_message_that_is_not_kept_has_no_status() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let gone = topic.publish(1u64).unwrap().id;
    assert!(topic.status(gone).is_some());
    take(&sub).ack().unwrap();
    assert_eq!(topic.status(gone), None, "it was acked by all and is gone");
    let last = topic.publish(2u64).unwrap().id;
    let next = format!("{}-{}", last.to_string().rsplit_once('-').unwrap().0, last.sequence() + 1);
    assert_eq!(topic.status(next.parse().unwrap()), None, "not published yet");
    let other = broker.topic::<u64>("other").create().unwrap();
    other.subscription("s").create().unwrap();
    let elsewhere = other.publish(3u64).unwrap().id;
    assert_eq!(topic.status(elsewhere), None, "another topic's message");
    broker.delete_topic("t").unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    topic.subscription("s").create().unwrap();
    assert_ne!(topic.publish(4u64).unwrap().id, gone);
    assert_eq!(topic.status(gone), None, "an earlier life of the topic");
    for text in ["0-0", "0-1", "18446744073709551615-18446744073709551615"] {
        assert_eq!(topic.status(text.parse().unwrap()), None);
    }
}
