//! Publisher dedup by idempotency id: P14.

use std::time::Duration;

use bytes::Bytes;
use eventflow::{
    Capacity, DedupWindow, Message, Overflow, PublishError, PublishErrorKind, Receipt, RecvTimeoutError,
    Topic,
};
use uuid::Uuid;

use crate::support::{Answer, Checksum, NANO, SECOND, ask, assert_empty, desk, drain, manual, take, within};

const TEN_MINUTES: Duration = Duration::from_secs(600);

fn order(text: &str, id: &str) -> Message<String> {
    Message::new(text.to_owned()).idempotency_id(id)
}

fn number(number: u64, id: &str) -> Message<u64> {
    Message::new(number).idempotency_id(id)
}

#[track_caller]
fn assert_new(receipt: &Receipt) {
    assert!(!receipt.deduplicated, "a new message was taken for a repeat of {}", receipt.id);
}

#[track_caller]
fn assert_repeat(receipt: &Receipt, first: &Receipt) {
    assert!(receipt.deduplicated, "a repeat was published as {}", receipt.id);
    assert_eq!(receipt.id, first.id, "a repeat gets the first receipt");
}

/// The second publish is refused as another message under the same id, comes back, and leaves the first in place.
#[track_caller]
fn assert_conflict<E: Send + Sync + 'static>(topic: &Topic<E>, message: Message<E>) {
    let before = topic.stats().published;
    match topic.publish(message) {
        Err(PublishError::IdempotencyConflict(_)) => {}
        Err(error) => panic!("expected a conflict, found {error:?}"),
        Ok(receipt) => panic!("expected a conflict, found {} ({})", receipt.id, receipt.deduplicated),
    }
    assert_eq!(topic.stats().published, before, "a conflict publishes nothing");
}

#[test]
fn p14_a_repeat_returns_the_first_receipt_and_publishes_nothing() {
    let desk = desk::<String>();
    let first = desk.topic.publish(order("pay 7", "order-7")).unwrap();
    assert_new(&first);
    let other = desk.topic.publish(order("pay 8", "order-8")).unwrap();
    assert_new(&other);
    assert_repeat(&desk.topic.publish(order("pay 7", "order-7")).unwrap(), &first);
    assert_repeat(&desk.topic.try_publish(order("pay 7", "order-7")).unwrap(), &first);
    assert_repeat(&desk.topic.publish_timeout(order("pay 7", "order-7"), SECOND).unwrap(), &first);
    assert_eq!(drain(&desk.sub), ["pay 7", "pay 8"]);
    let stats = desk.topic.stats();
    assert_eq!((stats.published, stats.deduplicated), (2, 3));
    let next = desk.topic.publish("unmarked").unwrap();
    assert_eq!(next.id.sequence(), 3, "a repeat uses up no sequence");
}

#[test]
fn p14_the_default_window_is_ten_minutes_from_the_first_publish() {
    let desk = desk::<String>();
    let first = desk.topic.publish(order("x", "id")).unwrap();
    desk.clock.advance(TEN_MINUTES - NANO);
    assert_repeat(&desk.topic.publish(order("x", "id")).unwrap(), &first);
    desk.clock.advance(NANO);
    let second = desk.topic.publish(order("x", "id")).unwrap();
    assert_new(&second);
    assert_ne!(second.id, first.id);
    assert_eq!(drain(&desk.sub).len(), 2);
}

#[test]
fn p14_a_window_of_time_ends_on_its_boundary_and_a_repeat_does_not_renew_it() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").dedup(DedupWindow::time(SECOND)).create().unwrap();
    let first = topic.publish(number(1, "a")).unwrap();
    clock.advance(SECOND * 9 / 10);
    assert_repeat(&topic.publish(number(1, "a")).unwrap(), &first);
    clock.advance(SECOND / 10 - NANO);
    assert_repeat(&topic.publish(number(1, "a")).unwrap(), &first);
    clock.advance(NANO);
    let second = topic.publish(number(1, "a")).unwrap();
    assert_new(&second);
    // The second publish opened a window of its own.
    clock.advance(SECOND - NANO);
    assert_repeat(&topic.publish(number(1, "a")).unwrap(), &second);
}

#[test]
fn p14_ids_of_one_window_end_one_by_one() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").dedup(DedupWindow::time(SECOND * 10)).create().unwrap();
    let first: Vec<Receipt> = (0..10)
        .map(|n| {
            clock.advance(SECOND);
            topic.publish(number(n, &n.to_string())).unwrap()
        })
        .collect();
    // It is now 10 s: number `n` was published at `n + 1` s, so none has ended, and one ends every second from 11 s on.
    for ended in 0..10u64 {
        clock.advance(SECOND);
        for n in ended + 1..10 {
            assert_repeat(&topic.publish(number(n, &n.to_string())).unwrap(), &first[n as usize]);
        }
        assert_new(&topic.publish(number(ended, &ended.to_string())).unwrap());
    }
}

#[test]
fn p14_a_window_of_ids_forgets_the_oldest_first() {
    let (broker, _clock) = manual();
    let window = DedupWindow::time(TEN_MINUTES).max_ids(3);
    let topic = broker.topic::<u64>("t").dedup(window).create().unwrap();
    let first: Vec<Receipt> =
        ["a", "b", "c"].iter().map(|id| topic.publish(number(0, id)).unwrap()).collect();
    for (id, receipt) in ["a", "b", "c"].iter().zip(&first) {
        assert_repeat(&topic.publish(number(0, id)).unwrap(), receipt);
    }
    assert_new(&topic.publish(number(0, "d")).unwrap());
    assert_repeat(&topic.publish(number(0, "b")).unwrap(), &first[1]);
    assert_repeat(&topic.publish(number(0, "c")).unwrap(), &first[2]);
    assert_new(&topic.publish(number(0, "a")).unwrap());
    // "a" came back as the newest, so that "b" is out now.
    assert_repeat(&topic.publish(number(0, "c")).unwrap(), &first[2]);
    assert_new(&topic.publish(number(0, "b")).unwrap());
}

#[test]
fn p14_the_shorter_of_time_and_ids_decides() {
    let (broker, clock) = manual();
    let window = DedupWindow::time(SECOND).max_ids(2);
    let topic = broker.topic::<u64>("t").dedup(window).create().unwrap();
    topic.publish(number(1, "a")).unwrap();
    topic.publish(number(2, "b")).unwrap();
    topic.publish(number(3, "c")).unwrap();
    assert_new(&topic.publish(number(1, "a")).unwrap());
    clock.advance(SECOND);
    assert_new(&topic.publish(number(3, "c")).unwrap());
}

#[test]
fn p14_the_default_window_holds_a_million_ids() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<()>("t").create().unwrap();
    let message = |n: u64| Message::new(()).idempotency_id(Uuid::from_u128(u128::from(n)));
    let mut first = Vec::new();
    for thousand in 0..1_000 {
        let receipts = topic.publish_all((thousand * 1_000..(thousand + 1) * 1_000).map(message)).unwrap();
        receipts.iter().for_each(assert_new);
        first.push(receipts[0]);
    }
    assert_repeat(&topic.publish(message(0)).unwrap(), &first[0]);
    assert_new(&topic.publish(message(1_000_000)).unwrap());
    assert_repeat(&topic.publish(message(1_000)).unwrap(), &first[1]);
    assert_new(&topic.publish(message(0)).unwrap());
}

#[test]
fn p14_a_window_that_is_off_publishes_every_repeat_and_still_shows_the_id() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<String>("t").dedup(DedupWindow::off()).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    assert_new(&topic.publish(order("x", "id")).unwrap());
    assert_new(&topic.publish(order("x", "id")).unwrap());
    assert_new(&topic.publish(order("another", "id")).unwrap());
    let delivery = take(&sub);
    assert_eq!(delivery.message().idempotency_id().unwrap().to_string(), "id");
    assert_eq!(drain(&sub), ["x", "another"]);
}

#[test]
fn p14_messages_without_an_id_are_never_repeats() {
    let desk = desk::<String>();
    for _ in 0..3 {
        assert_new(&desk.topic.publish("same").unwrap());
    }
    assert_eq!(drain(&desk.sub).len(), 3);
    assert_eq!(desk.topic.stats().deduplicated, 0);
}

#[test]
fn p14_a_repeat_is_known_after_the_first_was_acked_and_removed() {
    let desk = desk::<String>();
    let first = desk.topic.publish(order("x", "id")).unwrap();
    take(&desk.sub).ack().unwrap();
    assert_eq!(desk.topic.stats().resident_messages, 0);
    assert_repeat(&desk.topic.publish(order("x", "id")).unwrap(), &first);
    assert_conflict(&desk.topic, order("y", "id"));
    assert_empty(&desk.sub);
}

#[test]
fn p14_another_payload_under_the_same_id_is_a_conflict_where_payloads_compare() {
    let (broker, _clock) = manual();
    let texts = broker.topic::<String>("texts").create().unwrap();
    texts.publish(order("x", "id")).unwrap();
    assert_conflict(&texts, order("y", "id"));

    let bytes = broker.topic::<Bytes>("bytes").create().unwrap();
    bytes.publish(Message::new(Bytes::from_static(b"x")).idempotency_id("id")).unwrap();
    assert_conflict(&bytes, Message::new(Bytes::from_static(b"y")).idempotency_id("id"));
    assert_conflict(&bytes, Message::new(Bytes::from_static(b"")).idempotency_id("id"));
    let same = Message::new(Bytes::from(b"x".to_vec())).idempotency_id("id");
    assert!(bytes.publish(same).unwrap().deduplicated);

    let vectors = broker.topic::<Vec<u8>>("vectors").create().unwrap();
    vectors.publish(Message::new(vec![1, 2]).idempotency_id("id")).unwrap();
    assert_conflict(&vectors, Message::new(vec![2, 1]).idempotency_id("id"));
    assert!(vectors.publish(Message::new(vec![1, 2]).idempotency_id("id")).unwrap().deduplicated);
}

#[test]
fn p14_a_fingerprint_lets_any_payload_compare() {
    let (broker, _clock) = manual();
    let plain = broker.topic::<(u64, u64)>("plain").create().unwrap();
    let first = plain.publish(Message::new((1, 1)).idempotency_id("id")).unwrap();
    // Nothing can be said about such a payload without a fingerprint.
    assert_repeat(&plain.publish(Message::new((2, 2)).idempotency_id("id")).unwrap(), &first);

    let marked = broker.topic::<(u64, u64)>("marked").fingerprint(|event| event.0).create().unwrap();
    let first = marked.publish(Message::new((1, 1)).idempotency_id("id")).unwrap();
    assert_repeat(&marked.publish(Message::new((1, 2)).idempotency_id("id")).unwrap(), &first);
    assert_conflict(&marked, Message::new((2, 1)).idempotency_id("id"));
    // The fingerprint is no id: other ids with the same fingerprint are other messages.
    assert_new(&marked.publish(Message::new((1, 1)).idempotency_id("other")).unwrap());
}

#[test]
fn p14_other_attributes_under_the_same_id_are_a_conflict_for_every_type() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let first = topic.publish(number(1, "id").attribute("ab", "c").attribute("k", "v")).unwrap();
    assert_conflict(&topic, number(1, "id"));
    assert_conflict(&topic, number(1, "id").attribute("ab", "c"));
    assert_conflict(&topic, number(1, "id").attribute("ab", "c").attribute("k", "w"));
    assert_conflict(&topic, number(1, "id").attribute("ab", "c").attribute("l", "v"));
    assert_conflict(&topic, number(1, "id").attribute("a", "bc").attribute("k", "v"));
    assert_conflict(&topic, number(1, "id").attribute("ab", "c").attribute("k", "v").attribute("m", ""));
    // Attributes are a map: the order in which they were set says nothing.
    assert_repeat(&topic.publish(number(1, "id").attribute("k", "v").attribute("ab", "c")).unwrap(), &first);
}

#[test]
fn p14_another_ordering_key_under_the_same_id_is_a_conflict_for_every_type() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let first = topic.publish(number(1, "keyed").ordering_key("k")).unwrap();
    topic.publish(number(2, "plain")).unwrap();
    assert_conflict(&topic, number(1, "keyed"));
    assert_conflict(&topic, number(1, "keyed").ordering_key("l"));
    assert_conflict(&topic, number(1, "keyed").attribute("k", "k"));
    assert_conflict(&topic, number(2, "plain").ordering_key("k"));
    assert_repeat(&topic.publish(number(1, "keyed").ordering_key("k")).unwrap(), &first);
}

#[test]
fn p14_a_conflict_gives_the_message_back_and_leaves_the_first_remembered() {
    let desk = desk::<String>();
    let first = desk.topic.publish(order("first", "id")).unwrap();
    let Err(PublishError::IdempotencyConflict(message)) = desk.topic.publish(order("second", "id")) else {
        panic!("expected a conflict");
    };
    assert_eq!(message.into_event(), "second");
    assert_conflict(&desk.topic, order("second", "id"));
    assert_repeat(&desk.topic.publish(order("first", "id")).unwrap(), &first);
    assert_eq!(drain(&desk.sub), ["first"]);
}

#[test]
fn p14_a_uuid_and_its_hyphenated_text_are_one_id() {
    let desk = desk::<String>();
    let uuid = Uuid::new_v4();
    let first = desk.topic.publish(Message::new("x".to_owned()).idempotency_id(uuid)).unwrap();
    assert_repeat(&desk.topic.publish(order("x", &uuid.hyphenated().to_string())).unwrap(), &first);
    let string: String = uuid.hyphenated().to_string();
    let text = desk.topic.publish(Message::new("x".to_owned()).idempotency_id(string)).unwrap();
    assert_repeat(&text, &first);
    assert_new(&desk.topic.publish(Message::new("x".to_owned()).idempotency_id(Uuid::new_v4())).unwrap());
}

#[test]
fn p14_twice_in_one_batch_counts_as_a_repeat() {
    let desk = desk::<String>();
    let batch = [order("a", "1"), order("b", "2"), order("a", "1"), Message::from("c"), order("a", "1")];
    let receipts = desk.topic.publish_all(batch).unwrap();
    assert_eq!(receipts.len(), 5);
    assert_new(&receipts[0]);
    assert_new(&receipts[1]);
    assert_repeat(&receipts[2], &receipts[0]);
    assert_new(&receipts[3]);
    assert_repeat(&receipts[4], &receipts[0]);
    assert_eq!(drain(&desk.sub), ["a", "b", "c"]);
    assert_eq!((desk.topic.stats().published, desk.topic.stats().deduplicated), (3, 2));
}

#[test]
fn p14_a_batch_repeats_what_was_published_before_it() {
    let desk = desk::<String>();
    let first = desk.topic.publish(order("a", "1")).unwrap();
    let receipts = desk.topic.publish_all([order("b", "2"), order("a", "1")]).unwrap();
    assert_new(&receipts[0]);
    assert_repeat(&receipts[1], &first);
    let again = desk.topic.publish_all([order("b", "2"), order("a", "1")]).unwrap();
    assert_repeat(&again[0], &receipts[0]);
    assert_repeat(&again[1], &first);
    assert_eq!(drain(&desk.sub), ["a", "b"]);
}

#[test]
fn p14_a_conflict_inside_a_batch_publishes_none_of_it_and_records_no_id() {
    let desk = desk::<String>();
    let before = desk.topic.publish(order("x", "taken")).unwrap();
    let batch = [order("a", "1"), order("y", "taken"), order("b", "2")];
    let error = desk.topic.publish_all(batch).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::IdempotencyConflict), "{:?}", error.kind);
    let back: Vec<String> = error.messages.into_iter().map(Message::into_event).collect();
    assert_eq!(back, ["a", "y", "b"]);

    let error = desk.topic.publish_all([order("a", "1"), order("other", "1")]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::IdempotencyConflict), "{:?}", error.kind);

    assert_new(&desk.topic.publish(order("any", "1")).unwrap());
    assert_new(&desk.topic.publish(order("any", "2")).unwrap());
    assert_repeat(&desk.topic.publish(order("x", "taken")).unwrap(), &before);
    assert_eq!(drain(&desk.sub), ["x", "any", "any"]);
}

#[test]
fn p14_a_publish_that_failed_for_space_records_no_id() {
    for overflow in [Overflow::Block, Overflow::Reject] {
        let (broker, clock) = manual();
        let capacity = Capacity::messages(1).overflow(overflow);
        let topic = broker.topic::<String>("t").capacity(capacity).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        topic.publish("fills").unwrap();
        assert!(matches!(topic.try_publish(order("x", "id")), Err(PublishError::Full(_))));
        let waiting = ask({
            let topic = topic.clone();
            move || topic.publish_timeout(order("x", "id"), SECOND)
        });
        // Whenever the thread starts to wait, a second on the clock after that ends it.
        let outcome = loop {
            clock.advance(SECOND);
            if let Some(outcome) = waiting.poll() {
                break outcome;
            }
        };
        assert!(matches!(outcome, Err(PublishError::Timeout(_) | PublishError::Full(_))), "{outcome:?}");
        let batch = [order("x", "id"), order("y", "other")];
        assert!(topic.publish_all(batch).is_err(), "larger than the capacity");
        assert_eq!(drain(&sub), ["fills"]);
        assert_new(&topic.publish(order("different", "id")).unwrap());
        assert_eq!(drain(&sub), ["different"]);
    }
}

#[test]
fn p14_a_publish_that_was_too_large_records_no_id() {
    let desk = desk::<String>();
    let huge = "v".repeat(1_025);
    let too_large = order("x", "id").attribute("k", huge);
    assert!(matches!(desk.topic.publish(too_large), Err(PublishError::TooLarge(_))));
    assert_new(&desk.topic.publish(order("y", "id")).unwrap());
}

#[test]
fn p14_a_repeat_needs_no_space() {
    let (broker, _clock) = manual();
    for (name, overflow) in
        [("block", Overflow::Block), ("reject", Overflow::Reject), ("drop", Overflow::DropOldest)]
    {
        let capacity = Capacity::messages(1).overflow(overflow);
        let topic = broker.topic::<String>(name).capacity(capacity).create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        let first = topic.publish(order("x", "id")).unwrap();
        assert_repeat(&topic.try_publish(order("x", "id")).unwrap(), &first);
        let again = within(60, {
            let topic = topic.clone();
            move || topic.publish(order("x", "id"))
        });
        assert_repeat(&again.unwrap(), &first);
        assert!(matches!(topic.try_publish(order("y", "id")), Err(PublishError::IdempotencyConflict(_))));
        assert_eq!(drain(&sub), ["x"], "{name}");
    }
}

/// A topic that is full, so that a `publish` with an id waits in the middle of it.
fn full_topic()
-> (crate::support::Broker, eventflow::ManualClock, Topic<String>, eventflow::Subscription<String>) {
    let (broker, clock) = manual();
    let topic = broker.topic::<String>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish("fills").unwrap();
    (broker, clock, topic, sub)
}

fn publisher(topic: &Topic<String>) -> Answer<Result<Receipt, PublishError<String>>> {
    let topic = topic.clone();
    ask(move || topic.publish(order("x", "id")))
}

#[test]
fn p14_a_repeat_while_the_first_is_under_way_waits_for_it() {
    let (_broker, _clock, topic, sub) = full_topic();
    let publishers: Vec<_> = (0..4).map(|_| publisher(&topic)).collect();
    publishers.iter().for_each(Answer::assert_pending);
    assert!(matches!(topic.try_publish(order("x", "id")), Err(PublishError::Full(_))), "it does not wait");
    take(&sub).ack().unwrap();
    let receipts: Vec<Receipt> = publishers.into_iter().map(|publisher| publisher.get().unwrap()).collect();
    assert_eq!(receipts.iter().filter(|receipt| !receipt.deduplicated).count(), 1);
    assert!(receipts.iter().all(|receipt| receipt.id == receipts[0].id));
    assert_eq!(drain(&sub), ["x"]);
}

#[test]
fn p14_a_repeat_goes_on_when_the_first_gives_up() {
    let (_broker, clock, topic, sub) = full_topic();
    let first = ask({
        let topic = topic.clone();
        move || topic.publish_timeout(order("x", "id"), SECOND)
    });
    first.assert_pending();
    let repeats: Vec<_> = (0..2).map(|_| publisher(&topic)).collect();
    repeats.iter().for_each(Answer::assert_pending);
    let gave_up = loop {
        clock.advance(SECOND);
        if let Some(outcome) = first.poll() {
            break outcome;
        }
    };
    assert!(matches!(gave_up, Err(PublishError::Timeout(_))), "{gave_up:?}");
    take(&sub).ack().unwrap();
    let receipts: Vec<Receipt> = repeats.into_iter().map(|repeat| repeat.get().unwrap()).collect();
    assert_eq!(receipts.iter().filter(|receipt| receipt.deduplicated).count(), 1);
    assert_eq!(receipts[0].id, receipts[1].id);
    assert_eq!(drain(&sub), ["x"]);
}

#[cfg(feature = "async")]
#[test]
fn p14_a_cancelled_first_lets_its_repeat_go_on() {
    use crate::support::Task;
    let (_broker, _clock, topic, sub) = full_topic();
    let first = Task::pending(topic.publish_async(order("x", "id")));
    let mut repeat = Task::pending(topic.publish_async(order("x", "id")));
    drop(first);
    assert_eq!(drain(&sub), ["fills"]);
    assert!(repeat.wakes() > 0, "somebody must tell the repeat that it may go on");
    assert_new(&repeat.ready().unwrap());
    assert_eq!(drain(&sub), ["x"]);
}

#[test]
fn p14_a_shutdown_ends_the_first_and_its_repeats() {
    let (broker, _clock, topic, _sub) = full_topic();
    let publishers: Vec<_> = (0..3).map(|_| publisher(&topic)).collect();
    publishers.iter().for_each(Answer::assert_pending);
    broker.shutdown(Duration::ZERO).unwrap();
    for publisher in publishers {
        let outcome = publisher.get();
        assert!(matches!(outcome, Err(PublishError::Closed(_))), "{outcome:?}");
    }
}

#[test]
fn p14_ids_belong_to_one_topic_and_one_life_of_it() {
    let (broker, _clock) = manual();
    let a = broker.topic::<String>("a").create().unwrap();
    let b = broker.topic::<String>("b").create().unwrap();
    let first = a.publish(order("x", "id")).unwrap();
    assert_new(&b.publish(order("y", "id")).unwrap());
    broker.delete_topic("a").unwrap();
    let a = broker.topic::<String>("a").create().unwrap();
    let again = a.publish(order("z", "id")).unwrap();
    assert_new(&again);
    assert_ne!(again.id, first.id, "a deleted topic's message ids are never given again");
}

#[test]
fn p14_many_publishers_of_the_same_ids_publish_each_once() {
    const IDS: u64 = 2_000;
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").fingerprint(|event| *event).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let publishers: Vec<_> = (0..4)
        .map(|_| {
            let topic = topic.clone();
            ask(move || {
                let publish = |n: u64| topic.publish(number(n, &format!("id {n}"))).unwrap();
                (0..IDS).map(publish).collect::<Vec<Receipt>>()
            })
        })
        .collect();
    let receipts: Vec<Vec<Receipt>> = publishers.into_iter().map(Answer::get).collect();
    for n in 0..IDS as usize {
        let of_id: Vec<&Receipt> = receipts.iter().map(|receipts| &receipts[n]).collect();
        assert!(of_id.iter().all(|receipt| receipt.id == of_id[0].id), "one receipt for id {n}");
        assert_eq!(of_id.iter().filter(|receipt| !receipt.deduplicated).count(), 1, "id {n}");
    }
    assert_eq!(Checksum::of(drain(&sub)), Checksum::of(0..IDS));
    assert!(matches!(sub.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout)));
}
