//! Limits, and arguments at the end of every range: P24.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use eventflow::{
    Capacity, CreateError, DedupWindow, DeliveryMode, Message, PublishError, PublishErrorKind, Retention,
    RetryPolicy, Seek, Start, Topic,
};

use crate::support::{Broker, SECOND, assert_empty, desk, drain, manual, take, within};

/// Ten megabytes, in the smaller reading and in the larger one.
const TEN_MB: usize = 10_000_000;
const TEN_MIB: usize = 10 << 20;

#[track_caller]
fn assert_fits<E: Send + Sync + 'static>(topic: &Topic<E>, message: Message<E>) {
    if let Err(error) = topic.publish(message) {
        panic!("it is within the limits: {error:?}");
    }
}

/// Refused by each way of publishing; the message comes back and nothing was published.
#[track_caller]
fn assert_too_large<E: Send + Sync + 'static>(topic: &Topic<E>, message: Message<E>) {
    let before = topic.stats().published;
    let Err(PublishError::TooLarge(message)) = topic.publish(message) else { panic!("expected TooLarge") };
    let Err(PublishError::TooLarge(message)) = topic.try_publish(message) else {
        panic!("expected TooLarge")
    };
    let Err(PublishError::TooLarge(message)) = topic.publish_timeout(message, SECOND) else {
        panic!("expected TooLarge");
    };
    let error = topic.publish_all([message]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::TooLarge), "{:?}", error.kind);
    assert_eq!(error.messages.len(), 1);
    assert_eq!(topic.stats().published, before);
}

fn text() -> Message<String> {
    Message::new("event".to_owned())
}

#[test]
fn a_payload_has_at_most_ten_megabytes() {
    let (broker, _clock) = manual();
    let texts = broker.topic::<String>("texts").create().unwrap();
    assert_fits(&texts, Message::new("x".repeat(TEN_MB)));
    assert_too_large(&texts, Message::new("x".repeat(TEN_MIB + 1)));
    let bytes = broker.topic::<Bytes>("bytes").create().unwrap();
    assert_fits(&bytes, Message::new(Bytes::from(vec![0; TEN_MB])));
    assert_too_large(&bytes, Message::new(Bytes::from(vec![0; TEN_MIB + 1])));
    let vectors = broker.topic::<Vec<u8>>("vectors").create().unwrap();
    assert_fits(&vectors, Message::new(vec![0; TEN_MB]));
    assert_too_large(&vectors, Message::new(vec![0; TEN_MIB + 1]));
    let weighed = broker.topic::<u64>("weighed").weigh(|event| *event).create().unwrap();
    assert_fits(&weighed, Message::new(TEN_MB as u64));
    assert_too_large(&weighed, Message::new(TEN_MIB as u64 + 1));
    assert_too_large(&weighed, Message::new(u64::MAX));
}

#[test]
fn a_message_has_at_most_a_hundred_attributes() {
    let topic = desk::<String>().topic;
    let with = |count: u32| (0..count).fold(text(), |message, n| message.attribute(format!("key {n}"), "v"));
    assert_fits(&topic, with(100));
    assert_too_large(&topic, with(101));
    assert_fits(&topic, with(100).attribute("key 7", "replaced, not added"));
}

#[test]
fn an_attributes_key_and_value_and_an_ordering_key_are_limited_in_bytes() {
    let topic = desk::<String>().topic;
    assert_fits(&topic, text().attribute("k".repeat(256), "v"));
    assert_too_large(&topic, text().attribute("k".repeat(257), "v"));
    assert_fits(&topic, text().attribute("é".repeat(128), "v"));
    assert_too_large(&topic, text().attribute("é".repeat(129), "v"));
    assert_fits(&topic, text().attribute("k", "v".repeat(1_024)));
    assert_too_large(&topic, text().attribute("k", "v".repeat(1_025)));
    assert_too_large(&topic, text().attribute("k", "é".repeat(513)));
    assert_fits(&topic, text().ordering_key("k".repeat(1_024)));
    assert_too_large(&topic, text().ordering_key("k".repeat(1_025)));
}

#[test]
fn one_message_too_large_fails_its_whole_batch() {
    let desk = desk::<String>();
    let batch = [text(), text().attribute("k", "v".repeat(1_025)), text()];
    let error = desk.topic.publish_all(batch).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::TooLarge), "{:?}", error.kind);
    assert_eq!(error.messages.len(), 3);
    assert_empty(&desk.sub);
}

#[test]
fn in_process_a_batch_may_be_large() {
    let desk = desk::<u64>();
    assert_eq!(desk.topic.publish_all(0..50_000u64).unwrap().len(), 50_000);
    assert_eq!(desk.sub.stats().backlog, 50_000);
    assert!(desk.topic.publish_all(std::iter::empty::<u64>()).unwrap().is_empty());
}

#[test]
fn what_can_never_fit_the_capacity_is_too_large() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<String>("t").capacity(Capacity::bytes(10)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    assert_fits(&topic, Message::new("x".repeat(10)));
    assert_too_large(&topic, Message::new("x".repeat(11)));
    let few = broker.topic::<u64>("few").capacity(Capacity::messages(2)).create().unwrap();
    let error = few.publish_all([1u64, 2, 3]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::TooLarge), "{:?}", error.kind);
    assert_eq!(drain(&sub).len(), 1);
}

#[test]
fn names_have_1_to_255_bytes_of_a_few_characters() {
    let (broker, _clock) = manual();
    let long = "x".repeat(255);
    for name in ["a", "0", "orders/eu-1.v2_a~b+c%20", "A/", &long] {
        let topic = broker.topic::<u64>(name).create().unwrap();
        assert_eq!(topic.name(), name);
        let sub = topic.subscription(name).create().unwrap();
        assert_eq!(sub.name(), name);
        sub.snapshot(name).unwrap();
    }
    let topic = broker.topic::<u64>("t").create().unwrap();
    let too_long = "x".repeat(256);
    for name in
        ["", "-a", "/a", ".", "_a", "%41", "~", "+", "a b", "a\n", "é", "aé", "a\0", "a\\b", "a:b", &too_long]
    {
        let outcome = broker.topic::<u64>(name).create();
        assert!(matches!(outcome, Err(CreateError::InvalidName { .. })), "topic {name:?}: {outcome:?}");
        let outcome = broker.topic::<u64>(name).open();
        assert!(matches!(outcome, Err(CreateError::InvalidName { .. })), "topic {name:?}: {outcome:?}");
        let outcome = topic.subscription(name).create();
        assert!(
            matches!(outcome, Err(CreateError::InvalidName { .. })),
            "subscription {name:?}: {outcome:?}"
        );
    }
    assert!(broker.delete_topic(&too_long).is_err());
}

fn filter(expression: &str) -> Result<(), CreateError> {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    topic.subscription("s").filter(expression).create().map(drop)
}

#[test]
fn a_filter_has_at_most_1024_bytes() {
    let of = |length: usize| format!("attributes:{}", "k".repeat(length - "attributes:".len()));
    filter(&of(200)).unwrap();
    let padded = |length: usize| format!("{}{}", of(200), " ".repeat(length - 200));
    filter(&padded(1_024)).unwrap();
    let outcome = filter(&padded(1_025));
    assert!(matches!(outcome, Err(CreateError::InvalidFilter { .. })), "{outcome:?}");
    let outcome = filter(&"(".repeat(1 << 20));
    assert!(matches!(outcome, Err(CreateError::InvalidFilter { .. })), "{outcome:?}");
}

#[test]
fn a_filter_nests_at_most_32_deep() {
    let parentheses = |depth: usize| format!("{}attributes:a{}", "(".repeat(depth), ")".repeat(depth));
    let negations = |depth: usize| format!("{}attributes:a{}", "NOT (".repeat(depth), ")".repeat(depth));
    filter(&parentheses(31)).unwrap();
    filter(&negations(31)).unwrap();
    for too_deep in [parentheses(33), parentheses(500), negations(33), negations(150)] {
        let outcome = filter(&too_deep);
        assert!(matches!(outcome, Err(CreateError::InvalidFilter { .. })), "{outcome:?}");
    }
}

#[test]
fn p24_durations_at_the_end_of_their_range_are_clamped() {
    within(60, || {
        let desk = desk::<u64>();
        let forever = Duration::MAX;
        desk.topic.publish(Message::new(1u64).expires_in(forever)).unwrap();
        desk.topic.publish(Message::new(2u64).deliver_after(forever)).unwrap();
        desk.topic.publish(Message::new(3u64).deliver_after(forever).expires_in(forever)).unwrap();
        desk.topic.publish_timeout(4u64, forever).unwrap();
        desk.topic.publish(Message::new(5u64).expires_in(Duration::ZERO)).unwrap();
        desk.topic.publish(Message::new(6u64).deliver_after(Duration::ZERO)).unwrap();
        let first = desk.sub.recv_timeout(forever).unwrap();
        assert_eq!(*first, 1);
        first.extend(forever).unwrap();
        desk.clock.advance(Duration::from_secs(3_600));
        first.nack_after(forever).unwrap();
        desk.clock.advance(Duration::from_secs(86_400 * 365));
        let seen = drain(&desk.sub);
        assert_eq!(seen, [4, 6]);
        assert_eq!(desk.sub.stats().delayed, 3);
    });
}

#[test]
fn p24_options_at_the_end_of_their_range_are_clamped() {
    let (broker, clock) = manual();
    let topic = broker
        .topic::<u64>("t")
        .retention(Retention::for_duration(Duration::MAX).max_bytes(u64::MAX).max_messages(u64::MAX))
        .capacity(Capacity::messages(u64::MAX))
        .dedup(DedupWindow::time(Duration::MAX).max_ids(usize::MAX))
        .create()
        .unwrap();
    let bytes =
        broker.topic::<u64>("bytes").capacity(Capacity::bytes(u64::MAX)).weigh(|_| 1 << 20).create().unwrap();
    let _reader = bytes.subscription("s").create().unwrap();
    bytes.publish_all(0..100u64).unwrap();
    let sub = topic
        .subscription("s")
        .start(Start::Sequence(u64::MAX))
        .delivery(DeliveryMode::ExactlyOnce)
        .retry(RetryPolicy::exponential(Duration::MAX, Duration::MAX))
        .expire_after(Duration::MAX)
        .max_outstanding(usize::MAX)
        .create()
        .unwrap();
    topic.publish_all([1u64, 1].map(|n| Message::new(n).idempotency_id("x"))).unwrap();
    sub.seek(Seek::Earliest).unwrap();
    let batch = sub.try_recv_batch(usize::MAX).unwrap();
    assert_eq!(batch.len(), 1);
    drop(batch);
    clock.advance(Duration::from_secs(86_400 * 365 * 100));
    assert_empty(&sub);
    assert_eq!(sub.stats().delayed, 1);
}

#[test]
fn p24_weights_that_overflow_their_sum_are_no_panic() {
    let (broker, _clock) = manual();
    let topic =
        broker.topic::<u64>("t").weigh(|_| 9_000_000).retention(Retention::forever()).create().unwrap();
    for _ in 0..100 {
        topic.publish_all(0..100u64).unwrap();
    }
    assert_eq!(topic.stats().resident_bytes, 9_000_000 * 10_000);
}

#[test]
fn p24_a_batch_of_none_is_no_panic_and_takes_nothing() {
    within(60, || {
        let desk = desk::<u64>();
        desk.topic.publish(1u64).unwrap();
        if let Ok(batch) = desk.sub.try_recv_batch(0) {
            assert!(batch.len() <= 1);
            batch.release().unwrap();
        }
        if let Ok(batch) = desk.sub.recv_batch(0) {
            assert!(batch.len() <= 1);
            batch.release().unwrap();
        }
        assert_eq!(drain(&desk.sub), [1]);
    });
}

#[test]
fn p24_places_far_away_are_no_panic() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).create().unwrap();
    let far = Duration::from_secs(1 << 40);
    let places = [SystemTime::UNIX_EPOCH + far, SystemTime::UNIX_EPOCH - far, clock.now() + far];
    for (number, place) in places.into_iter().enumerate() {
        let sub = topic.subscription(&format!("s{number}")).start(Start::Time(place)).create().unwrap();
        topic.publish(1u64).unwrap();
        sub.seek(Seek::Time(place)).unwrap();
        sub.seek(Seek::Sequence(u64::MAX)).unwrap();
        sub.seek(Seek::Sequence(0)).unwrap();
        assert!(!drain(&sub).is_empty());
    }
}

#[test]
fn p24_channels_of_any_capacity_are_no_panic() {
    within(60, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("t").create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        for capacity in [0, 1, usize::MAX] {
            let channel = sub.channel(capacity);
            topic.publish(7u64).unwrap();
            let delivery = channel.recv().unwrap();
            assert_eq!(*delivery, 7);
            delivery.ack().unwrap();
        }
    });
}

#[test]
fn p24_a_shutdown_that_may_take_for_ever_ends_when_nothing_is_outstanding() {
    within(60, || {
        let desk = desk::<u64>();
        desk.topic.publish(1u64).unwrap();
        let report = desk.broker.shutdown(Duration::MAX).unwrap();
        assert_eq!((report.outstanding, report.backlog), (0, 1));
    });
}

#[test]
fn payloads_never_reach_debug() {
    const SECRET: &str = "hunter2";
    let (broker, _clock) = manual();
    let topic = broker.topic::<String>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let message = || Message::new(SECRET.to_owned());
    topic.publish(message()).unwrap();
    let batch = topic.publish_all([message(), message()]).unwrap_err();
    let full = topic.try_publish(message()).unwrap_err();
    let mut texts =
        vec![format!("{:?}", message()), format!("{batch:?} {batch}"), format!("{full:?} {full}")];
    let error = eventflow::Error::from(full);
    texts.push(format!("{error:?} {error}"));
    let delivery = take(&sub);
    texts.push(format!("{delivery:?} {:?} {topic:?} {sub:?} {broker:?}", delivery.message()));
    delivery.release().unwrap();
    texts.push(format!("{:?}", sub.try_recv_batch(1).unwrap()));
    for text in texts {
        assert!(!text.contains(SECRET), "{text}");
    }
}
