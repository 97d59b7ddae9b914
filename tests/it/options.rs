//! Options: their ranges, their comparison at `open`, what is clamped; and the errors as a family.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use eventflow::{
    Capacity, CreateError, DeadLetter, DedupWindow, DeleteError, DeliveryMode, Overflow, PublishAllError,
    PublishError, RecvError, RecvTimeoutError, Retention, RetryPolicy, SeekError, SettleError, Start,
    Subscription, SubscriptionBuilder, Topic, TopicBuilder, TryRecvError, UpdateError,
};

use crate::support::{Bare, Broker, DEADLINE, Desk, NANO, SECOND, desk, drain, manual, take};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[track_caller]
fn invalid<T>(outcome: Result<T, CreateError>, expected: &str) -> String {
    match outcome.map(drop) {
        Err(CreateError::InvalidOption { option, reason, .. }) => {
            assert_eq!(option, expected, "{reason}");
            assert!(!reason.is_empty());
            reason
        }
        other => panic!("expected {expected} to be invalid, found {other:?}"),
    }
}

#[track_caller]
fn mismatch<T>(outcome: Result<T, CreateError>, expected: &str) {
    match outcome.map(drop) {
        Err(CreateError::ConfigMismatch { option, .. }) => assert_eq!(option, expected),
        other => panic!("expected {expected} to differ, found {other:?}"),
    }
}

#[test]
fn the_ack_deadline_lies_between_a_millisecond_and_a_day() {
    let Desk { topic, .. } = desk::<u64>();
    for (n, deadline) in [Duration::from_millis(1), DAY].into_iter().enumerate() {
        topic.subscription(&format!("good{n}")).ack_deadline(deadline).create().unwrap();
    }
    for deadline in [Duration::ZERO, Duration::from_millis(1) - NANO, DAY + NANO] {
        invalid(topic.subscription("bad").ack_deadline(deadline).create(), "ack_deadline");
        invalid(topic.subscription("bad").ack_deadline(deadline).open(), "ack_deadline");
    }
    assert_eq!(topic.subscriptions().len(), 3, "what is invalid creates nothing");
}

#[test]
fn a_dead_letter_topic_that_would_keep_nothing_is_refused_with_advice() {
    let Desk { broker, topic, .. } = desk::<u64>();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let bad = || topic.subscription("bad").dead_letter(DeadLetter::to(&dead).after(3)).create();
    let reason = invalid(bad(), "dead_letter");
    assert!(reason.contains("subscription") || reason.contains("retention"), "says what to do: {reason}");
    let keeper = dead.subscription("keeper").create().unwrap();
    bad().unwrap();
    let keeps = broker.topic::<u64>("keeps").retention(Retention::for_duration(SECOND)).create().unwrap();
    topic.subscription("other").dead_letter(DeadLetter::to(&keeps)).create().unwrap();
    drop(keeper);
}

#[test]
fn a_topic_is_not_its_own_dead_letter_topic() {
    let Desk { topic, .. } = desk::<u64>();
    invalid(topic.subscription("bad").dead_letter(DeadLetter::to(&topic)).create(), "dead_letter");
    invalid(
        topic.subscription("bad").dead_letter(DeadLetter::to(&topic.clone()).after(9)).open(),
        "dead_letter",
    );
}

#[test]
fn bounds_on_until_acked_are_refused() {
    let (broker, _) = manual();
    for retention in [
        Retention::until_acked().max_bytes(1_000),
        Retention::until_acked().max_messages(1_000),
        Retention::until_acked().max_messages(u64::MAX).max_bytes(u64::MAX),
    ] {
        invalid(broker.topic::<u64>("bad").retention(retention).create(), "retention");
    }
    let good = Retention::forever().max_bytes(1_000).max_messages(1_000);
    broker.topic::<u64>("good").retention(good).create().unwrap();
    assert_eq!(broker.topics(), ["good"]);
}

#[test]
fn at_most_once_takes_neither_retries_nor_dead_letters() {
    let Desk { topic, .. } = desk::<u64>();
    let once = || topic.subscription("once").delivery(DeliveryMode::AtMostOnce);
    invalid(once().retry(RetryPolicy::fixed(SECOND)).create(), "retry");
    invalid(once().dead_letter(DeadLetter::discard()).create(), "dead_letter");
    once().create().unwrap();
}

#[test]
fn zero_is_refused_where_it_is_nonsense() {
    let Desk { broker, topic, .. } = desk::<u64>();
    invalid(topic.subscription("bad").max_outstanding(0).create(), "max_outstanding");
    invalid(topic.subscription("bad").dead_letter(DeadLetter::discard().after(0)).create(), "dead_letter");
    invalid(broker.topic::<u64>("bad").capacity(Capacity::messages(0)).create(), "capacity");
    invalid(broker.topic::<u64>("bad").capacity(Capacity::bytes(0)).create(), "capacity");
    let backwards = RetryPolicy::exponential(2 * SECOND, SECOND);
    invalid(topic.subscription("bad").retry(backwards).create(), "retry");
}

#[test]
fn huge_values_are_clamped() {
    let (broker, clock) = manual();
    let topic = broker
        .topic::<u64>("topic")
        .retention(Retention::for_duration(Duration::MAX).max_bytes(u64::MAX).max_messages(u64::MAX))
        .capacity(Capacity::bytes(u64::MAX).overflow(Overflow::DropOldest))
        .dedup(DedupWindow::time(Duration::MAX).max_ids(usize::MAX))
        .create()
        .unwrap();
    let sub = topic
        .subscription("sub")
        .start(Start::Earliest)
        .retry(RetryPolicy::exponential(NANO, Duration::MAX))
        .dead_letter(DeadLetter::discard().after(u32::MAX))
        .expire_after(Duration::MAX)
        .max_outstanding(usize::MAX)
        .create()
        .unwrap();
    topic.publish(eventflow::Message::new(1).idempotency_id("id")).unwrap();
    clock.advance(Duration::from_secs(100 * 365 * 24 * 3600));
    take(&sub).nack().unwrap();
    clock.advance(SECOND);
    assert_eq!(drain(&sub), [1]);
    assert!(topic.publish(eventflow::Message::new(1).idempotency_id("id")).unwrap().deduplicated);
    assert_eq!(topic.stats().resident_messages, 1);
    let early = topic.subscription("early").start(Start::Time(SystemTime::UNIX_EPOCH)).create().unwrap();
    assert_eq!(drain(&early), [1]);
}

#[test]
fn an_endless_step_of_time_neither_panics_nor_hangs() {
    crate::support::within(crate::support::PATIENCE, || {
        let Desk { clock, topic, sub, .. } = desk::<u64>();
        topic.publish(1).unwrap();
        std::mem::forget(take(&sub));
        clock.advance(Duration::MAX);
        clock.advance(Duration::MAX);
        let _ = (clock.now(), sub.stats(), topic.publish(2), sub.try_recv());
    });
}

/// One way of asking for a topic.
type TopicOption = fn(TopicBuilder<u64>) -> TopicBuilder<u64>;

#[test]
fn a_topic_opened_with_another_option_is_a_config_mismatch_that_names_it() {
    let differing: [(&str, TopicOption); 8] = [
        ("retention", |topic| topic.retention(Retention::forever())),
        ("retention", |topic| topic.retention(Retention::for_duration(SECOND + NANO).max_messages(9))),
        ("retention", |topic| topic.retention(Retention::for_duration(SECOND))),
        ("capacity", |topic| topic.capacity(Capacity::messages(11))),
        ("capacity", |topic| topic.capacity(Capacity::messages(10).overflow(Overflow::Reject))),
        ("capacity", |topic| topic.capacity(Capacity::bytes(10))),
        ("dedup", |topic| topic.dedup(DedupWindow::off())),
        ("dedup", |topic| topic.dedup(DedupWindow::time(SECOND).max_ids(8))),
    ];
    let (broker, _) = manual();
    let stored: TopicOption = |topic| {
        topic
            .retention(Retention::for_duration(SECOND).max_messages(9))
            .capacity(Capacity::messages(10))
            .dedup(DedupWindow::time(SECOND).max_ids(9))
    };
    stored(broker.topic("topic")).create().unwrap();
    stored(broker.topic("topic")).open().unwrap();
    broker.topic::<u64>("topic").open().unwrap();
    for (option, ask) in differing {
        mismatch(ask(broker.topic("topic")).open(), option);
    }
    broker.topic::<u64>("plain").create().unwrap();
    let defaults: TopicOption = |topic| {
        topic
            .retention(Retention::until_acked())
            .capacity(Capacity::unlimited())
            .dedup(DedupWindow::time(Duration::from_secs(600)).max_ids(1_000_000))
    };
    defaults(broker.topic("plain")).open().expect("the defaults, said aloud, are the defaults");
    mismatch(broker.topic::<u64>("plain").capacity(Capacity::messages(10)).open(), "capacity");
}

#[test]
fn closures_of_a_topic_are_compared_by_presence() {
    let (broker, _) = manual();
    let weighed = || broker.topic::<u64>("weighed").weigh(|_| 1);
    let printed = || broker.topic::<u64>("printed").fingerprint(|n| *n);
    weighed().create().unwrap();
    printed().create().unwrap();
    broker.topic::<u64>("weighed").open().expect("attaching without it is fine");
    broker.topic::<u64>("printed").open().expect("attaching without it is fine");
    mismatch(weighed().open(), "weigh");
    mismatch(printed().open(), "fingerprint");
    broker.topic::<u64>("plain").create().unwrap();
    mismatch(broker.topic::<u64>("plain").weigh(|_| 1).open(), "weigh");
    mismatch(broker.topic::<u64>("plain").fingerprint(|n| *n).open(), "fingerprint");
}

/// One way of asking for a subscription.
type SubscriptionOption = fn(SubscriptionBuilder<u64>, &Topic<u64>) -> SubscriptionBuilder<u64>;

#[test]
fn a_subscription_opened_with_another_option_is_a_config_mismatch_that_names_it() {
    let differing: [(&str, SubscriptionOption); 11] = [
        ("ack_deadline", |sub, _| sub.ack_deadline(DEADLINE + NANO)),
        ("delivery", |sub, _| sub.delivery(DeliveryMode::ExactlyOnce)),
        ("ordered", |sub, _| sub.ordered()),
        ("filter", |sub, _| sub.filter("attributes:b")),
        ("filter_fn", |sub, _| sub.filter_fn(|_| true)),
        ("retry", |sub, _| sub.retry(RetryPolicy::fixed(SECOND + NANO))),
        ("dead_letter", |sub, dead| sub.dead_letter(DeadLetter::to(dead).after(4))),
        ("dead_letter", |sub, _| sub.dead_letter(DeadLetter::discard().after(3))),
        ("expire_after", |sub, _| sub.expire_after(SECOND)),
        ("max_outstanding", |sub, _| sub.max_outstanding(9)),
        ("retry", |sub, _| sub.retry(RetryPolicy::immediate())),
    ];
    let stored: SubscriptionOption = |sub, dead| {
        sub.ack_deadline(DEADLINE)
            .delivery(DeliveryMode::AtLeastOnce)
            .filter("attributes:a")
            .retry(RetryPolicy::fixed(SECOND))
            .dead_letter(DeadLetter::to(dead).after(3))
            .expire_after(DAY)
            .max_outstanding(10)
    };
    let Desk { broker, topic, .. } = desk::<u64>();
    let dead = broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
    stored(topic.subscription("stored"), &dead).create().unwrap();
    stored(topic.subscription("stored"), &dead).open().unwrap();
    topic.subscription("stored").open().unwrap();
    topic.subscription("stored").start(Start::Earliest).open().expect("start is never compared");
    for (option, ask) in differing {
        mismatch(ask(topic.subscription("stored"), &dead).open(), option);
    }
    let other = broker.topic::<u64>("other-dead").retention(Retention::forever()).create().unwrap();
    mismatch(topic.subscription("stored").dead_letter(DeadLetter::to(&other).after(3)).open(), "dead_letter");
}

#[test]
fn a_subscription_opened_with_its_defaults_said_aloud_is_the_same() {
    let Desk { topic, .. } = desk::<u64>();
    topic
        .subscription("sub")
        .start(Start::Latest)
        .ack_deadline(DEADLINE)
        .delivery(DeliveryMode::AtLeastOnce)
        .retry(RetryPolicy::immediate())
        .max_outstanding(1_000)
        .open()
        .unwrap();
    let asks: [SubscriptionOption; 5] = [
        |sub, _| sub.ordered(),
        |sub, _| sub.filter("attributes:a"),
        |sub, _| sub.filter_fn(|_| true),
        |sub, _| sub.dead_letter(DeadLetter::discard()),
        |sub, _| sub.expire_after(DAY),
    ];
    for (ask, option) in
        asks.into_iter().zip(["ordered", "filter", "filter_fn", "dead_letter", "expire_after"])
    {
        mismatch(ask(topic.subscription("sub"), &topic).open(), option);
    }
}

#[test]
fn the_closure_of_a_subscription_is_compared_by_presence() {
    let Desk { topic, .. } = desk::<u64>();
    let odd = || topic.subscription("odd").filter_fn(|event| *event % 2 == 1);
    odd().create().unwrap();
    mismatch(odd().open(), "filter_fn");
    let again = topic.subscription("odd").open().expect("attaching without it is fine");
    topic.publish_all(0..4).unwrap();
    assert_eq!(drain(&again), [1, 3], "and it still filters");
    let ordered = topic.subscription("ordered").ordered().create().unwrap();
    topic.subscription("ordered").ordered().open().unwrap();
    topic.subscription("ordered").open().unwrap();
    drop(ordered);
}

#[test]
fn option_values_can_be_compared_copied_and_shown() {
    fn plain<T: Clone + PartialEq + std::fmt::Debug + Send + Sync>(value: T) {
        assert!(value.clone() == value && !format!("{value:?}").is_empty());
    }
    plain(Retention::for_duration(SECOND).max_bytes(1));
    plain(Capacity::messages(1).overflow(Overflow::DropOldest));
    plain(DedupWindow::time(SECOND).max_ids(5));
    plain(RetryPolicy::exponential(SECOND, DEADLINE));
    assert!(Capacity::messages(1) != Capacity::bytes(1));
    assert!(RetryPolicy::fixed(Duration::ZERO) != RetryPolicy::fixed(SECOND));
    assert!(DedupWindow::off() != DedupWindow::time(SECOND));
}

#[test]
fn memory_has_every_capability_and_the_builder_may_require_them() {
    let broker = Broker::in_memory();
    let capabilities = broker.capabilities();
    let wanted = [
        eventflow::Capability::FencedAcks,
        eventflow::Capability::Snapshots,
        eventflow::Capability::OrderingKeys,
        eventflow::Capability::Release,
    ];
    assert!(wanted.into_iter().all(|capability| capabilities.contains(capability)));
    let builder =
        wanted.into_iter().fold(Broker::builder(), |builder, capability| builder.require(capability));
    assert!(builder.build().is_ok());
}

/// What every error is, whatever the event.
fn family<T: StdError + Send + Sync + 'static + Into<eventflow::Error>>() {}

#[test]
fn every_error_is_an_error_for_every_event_and_converts_into_the_umbrella() {
    family::<CreateError>();
    family::<DeleteError>();
    family::<UpdateError>();
    family::<eventflow::OpenError>();
    family::<PublishError<Bare>>();
    family::<PublishAllError<Bare>>();
    family::<PublishError<Box<dyn Fn() + Send + Sync>>>();
    family::<RecvError>();
    family::<TryRecvError>();
    family::<RecvTimeoutError>();
    family::<SettleError>();
    family::<SeekError>();
    fn umbrella<T: StdError + std::fmt::Debug + Send + Sync + 'static>() {}
    umbrella::<eventflow::Error>();
}

#[test]
fn a_question_mark_carries_every_error_out_and_drops_the_message_it_carried() {
    fn publish(topic: &Topic<Bare>) -> eventflow::Result<()> {
        topic.publish(Bare(1))?;
        topic.publish_all([Bare(2)])?;
        Ok(())
    }
    fn receive(sub: &Subscription<Bare>) -> eventflow::Result<()> {
        sub.recv_timeout(Duration::ZERO)?.ack()?;
        sub.recv()?.nack()?;
        sub.try_recv()?.release()?;
        sub.try_recv_batch(1)?.ack()?;
        sub.seek(eventflow::Seek::Latest)?;
        sub.snapshot("snapshot")?;
        sub.update().max_outstanding(5).apply()?;
        sub.pause()?;
        sub.delete()?;
        Ok(())
    }
    let Desk { broker, topic, sub, .. } = desk::<Bare>();
    assert!(receive(&sub).unwrap_err().to_string().starts_with(char::is_lowercase));
    publish(&topic).unwrap();
    publish(&topic).unwrap();
    receive(&sub).unwrap();
    broker.delete_topic("topic").unwrap();
    assert!(publish(&topic).unwrap_err().to_string().contains("delete"));
    let shown =
        format!("{:?} {:?}", topic.publish(Bare(3)).unwrap_err(), topic.publish_all([Bare(4)]).unwrap_err());
    assert!(!shown.contains("Bare"), "payloads never reach a log by accident: {shown}");
}

#[test]
fn error_texts_are_lower_case_without_a_full_stop_and_name_what_matters() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let long = "a".repeat(300);
    let texts = [
        broker.topic::<u64>("topic").create().map(drop).unwrap_err().to_string(),
        broker.topic::<String>("topic").open().map(drop).unwrap_err().to_string(),
        broker.topic::<u64>(&long).open().map(drop).unwrap_err().to_string(),
        topic.subscription("a").ack_deadline(Duration::ZERO).open().map(drop).unwrap_err().to_string(),
        topic.subscription("sub").max_outstanding(7).open().map(drop).unwrap_err().to_string(),
        topic.subscription("a").filter("x").open().map(drop).unwrap_err().to_string(),
        broker.delete_topic("nobody").unwrap_err().to_string(),
        sub.try_recv().map(drop).unwrap_err().to_string(),
        sub.recv_timeout(Duration::ZERO).map(drop).unwrap_err().to_string(),
        sub.seek(eventflow::Seek::Snapshot("nobody".into())).unwrap_err().to_string(),
    ];
    for text in &texts {
        assert!(text.starts_with(|first: char| !first.is_uppercase()) && !text.ends_with('.'), "{text}");
    }
    assert!(texts[3].contains("ack_deadline") && texts[4].contains("max_outstanding"));
}
