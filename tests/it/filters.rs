//! Filters: what a subscription takes, in the language and by closure. What it does not take is settled, counted, and gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use eventflow::{CreateError, DeadLetter, Message, Retention, Seek, Start, Topic};

use crate::support::{
    Bare, Counted, Desk, Drops, PATIENCE, SECOND, ask, assert_empty, desk, drain, drain_with, manual, send,
    take, within,
};

/// Which of these messages a filter takes, by their events.
fn taken(filter: &str, messages: impl IntoIterator<Item = Message<u64>>) -> Vec<u64> {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub =
        topic.subscription("sub").filter(filter).create().unwrap_or_else(|error| panic!("{filter}: {error}"));
    topic.publish_all(messages).unwrap();
    drain(&sub)
}

/// 1: `a = 1, b = 2`. 2: `a = 1`. 3: `b = 2`. 4: nothing. 5: `a = "12"`.
fn five() -> Vec<Message<u64>> {
    vec![
        Message::new(1).attribute("a", "1").attribute("b", "2"),
        Message::new(2).attribute("a", "1"),
        Message::new(3).attribute("b", "2"),
        Message::new(4),
        Message::new(5).attribute("a", "12"),
    ]
}

#[test]
fn the_language_takes_what_it_says() {
    let cases: [(&str, &[u64]); 24] = [
        (r#"attributes.a = "1""#, &[1, 2]),
        (r#"attributes.a="1""#, &[1, 2]),
        (r#"attributes.a != "1""#, &[3, 4, 5]),
        ("attributes:a", &[1, 2, 5]),
        ("  attributes : a  ", &[1, 2, 5]),
        ("NOT attributes:a", &[3, 4]),
        ("-attributes:a", &[3, 4]),
        ("- attributes:a", &[3, 4]),
        (r#"hasPrefix(attributes.a, "1")"#, &[1, 2, 5]),
        (r#"hasPrefix(attributes.a, "12")"#, &[5]),
        (r#"hasPrefix(attributes.a, "")"#, &[1, 2, 5]),
        (r#"NOT hasPrefix(attributes.a, "1")"#, &[3, 4]),
        ("attributes:a AND attributes:b", &[1]),
        ("attributes:a OR attributes:b", &[1, 2, 3, 5]),
        ("attributes:a AND NOT attributes:b", &[2, 5]),
        ("NOT attributes:a AND NOT attributes:b", &[4]),
        ("NOT (attributes:a OR attributes:b)", &[4]),
        (r#"(attributes:a AND attributes:b) OR attributes.a = "12""#, &[1, 5]),
        (r#"attributes:a AND (attributes:b OR attributes.a = "12")"#, &[1, 5]),
        (r#"attributes:a AND attributes:b AND attributes.b = "2""#, &[1]),
        (r#"attributes."a" = "1""#, &[1, 2]),
        (r#"attributes:"a""#, &[1, 2, 5]),
        ("((attributes:b))", &[1, 3]),
        ("attributes:A", &[]),
    ];
    for (filter, expected) in cases {
        assert_eq!(taken(filter, five()), expected, "{filter}");
    }
}

#[test]
fn keys_and_values_may_be_any_text() {
    let odd = || {
        vec![
            Message::new(1).attribute("a b", "x"),
            Message::new(2).attribute("k", "say \"hi\""),
            Message::new(3).attribute("k", "back\\slash"),
            Message::new(4).attribute("größe", "ä"),
            Message::new(5).attribute("x-y_z9", ""),
        ]
    };
    assert_eq!(taken(r#"attributes:"a b""#, odd()), [1]);
    assert_eq!(taken(r#"attributes.k = "say \"hi\"""#, odd()), [2]);
    assert_eq!(taken(r#"attributes.k = "back\\slash""#, odd()), [3]);
    assert_eq!(taken(r#"attributes."größe" = "ä""#, odd()), [4]);
    assert_eq!(taken(r#"hasPrefix(attributes."größe", "ä")"#, odd()), [4]);
    assert_eq!(taken(r#"attributes.x-y_z9 = """#, odd()), [5]);
}

#[test]
fn a_bad_expression_is_an_invalid_filter_with_its_byte_position() {
    let Desk { topic, .. } = desk::<u64>();
    let cases = [
        ("attributes", 10),
        ("attributes.", 11),
        ("attributes.a", 12),
        (r#"attributes.a = 1"#, 15),
        ("attributes:a and attributes:b", 13),
        ("attributes:a AND", 16),
        ("attributes:a attributes:b", 13),
        ("(attributes:a", 13),
        ("attributes:a)", 12),
        ("attributes:a AND attributes:b OR attributes:c", 30),
        ("data:a", 0),
        (r#"hasPrefix(attributes.a "1")"#, 23),
        ("", 0),
    ];
    for (filter, at) in cases {
        for created in [
            topic.subscription("bad").filter(filter).create(),
            topic.subscription("bad").filter(filter).open(),
        ] {
            match created.map(drop).unwrap_err() {
                CreateError::InvalidFilter { position, .. } => assert_eq!(position, at, "{filter}"),
                other => panic!("{filter}: {other:?}"),
            }
        }
    }
    assert_eq!(topic.subscriptions(), ["sub"], "nothing was created");
    let deep = format!("{}attributes:a{}", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("attributes:{}", "a".repeat(5_000));
    for bad in
        [deep.as_str(), long.as_str(), "attributes:\"", "\u{0}", "attributes:é", "NOT", "- - -", "))))", "é"]
    {
        let error = topic.subscription("bad").filter(bad).create().map(drop).unwrap_err();
        assert!(matches!(error, CreateError::InvalidFilter { .. }), "{error:?}");
    }
}

#[test]
fn what_a_filter_passes_over_is_settled_counted_and_freed() {
    let (broker, _) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Counted>("topic").create().unwrap();
    let sub = topic.subscription("sub").filter("attributes:wanted").create().unwrap();
    for n in 0..10 {
        let message = Message::new(drops.event(n));
        topic.publish(if n % 5 == 0 { message.attribute("wanted", "") } else { message }).unwrap();
    }
    assert!(sub.stats().backlog >= 2, "an upper bound until the filter has looked");
    assert_eq!(drain_with(&sub, |event| event.number), [0, 5]);
    let stats = sub.stats();
    assert_eq!((stats.filtered, stats.acked, stats.backlog, stats.delivered), (8, 2, 0, 2));
    assert_eq!((drops.count(), topic.stats().resident_messages), (10, 0));
}

#[test]
fn each_subscription_has_its_own_filter() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let all = topic.subscription("all").create().unwrap();
    let even = topic.subscription("even").filter_fn(|event| *event % 2 == 0).create().unwrap();
    let odd = topic.subscription("odd").filter(r#"attributes.parity = "odd""#).create().unwrap();
    for n in 0..100 {
        topic.publish(Message::new(n).attribute("parity", if n % 2 == 0 { "even" } else { "odd" })).unwrap();
    }
    assert_eq!(drain(&all).len(), 100);
    assert_eq!(drain(&even), (0..50).map(|n| 2 * n).collect::<Vec<_>>());
    assert_eq!(drain(&odd), (0..50).map(|n| 2 * n + 1).collect::<Vec<_>>());
}

#[test]
fn a_closure_sees_the_whole_message() {
    let (broker, clock) = manual();
    let topic = broker.topic::<Bare>("topic").create().unwrap();
    let published = clock.now();
    let sub = topic
        .subscription("sub")
        .filter_fn(move |message| {
            message.event().0 == 7
                && message.attribute("a") == Some("1")
                && message.ordering_key() == Some("key")
                && message.idempotency_id().is_some_and(|id| id.to_string() == "id")
                && message.id().sequence() == 2
                && message.publish_time() == published
        })
        .create()
        .unwrap();
    let message = |id: &str| Message::new(Bare(7)).attribute("a", "1").ordering_key("key").idempotency_id(id);
    topic.publish(message("other")).unwrap();
    topic.publish(message("id")).unwrap();
    topic.publish(Bare(7)).unwrap();
    let delivery = take(&sub);
    assert_eq!(delivery.id().sequence(), 2);
    delivery.ack().unwrap();
    assert_empty(&sub);
}

#[test]
fn p01_a_filtered_subscription_is_given_all_that_its_filter_takes_beside_redeliveries() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").filter_fn(|event| *event % 3 == 0).create().unwrap();
    topic.publish_all(0..1_000).unwrap();
    let (mut seen, mut released) = (Vec::new(), HashSet::new());
    while let Ok(batch) = sub.try_recv_batch(10) {
        for delivery in batch {
            match (delivery.attempt(), *delivery % 7) {
                (1, 0) => delivery.nack().unwrap(),
                (1, 1) if released.insert(delivery.id()) => delivery.release().unwrap(),
                (1, 2) => delivery.nack_after(SECOND).unwrap(),
                _ => {
                    seen.push(*delivery);
                    delivery.ack().unwrap();
                }
            }
        }
    }
    clock.advance(SECOND);
    seen.extend(drain(&sub));
    seen.sort();
    assert_eq!(seen, (0..1_000).filter(|n| n % 3 == 0).collect::<Vec<_>>());
    assert_eq!((sub.stats().filtered, sub.stats().backlog), (666, 0));
}

#[test]
fn p09_a_waiting_receiver_sleeps_through_what_its_filter_passes_over() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").filter("attributes:wanted").create().unwrap();
    let waiter = ask(move || *sub.recv().unwrap());
    waiter.assert_pending();
    topic.publish_all(0..300).unwrap();
    waiter.assert_pending();
    topic.publish(Message::new(300).attribute("wanted", "")).unwrap();
    assert_eq!(waiter.get(), 300);
}

#[test]
fn p06_subscribers_share_a_filtered_subscription_under_load() {
    within(PATIENCE, || {
        let (broker, _) = manual();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let looks = Arc::new(AtomicU64::new(0));
        let counter = looks.clone();
        let sub = topic
            .subscription("sub")
            .filter_fn(move |event| {
                counter.fetch_add(1, Ordering::Relaxed);
                *event % 4 == 1
            })
            .create()
            .unwrap();
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let sub = sub.clone();
                ask(move || {
                    let mut seen = Vec::new();
                    while let Ok(delivery) = sub.recv() {
                        seen.push(*delivery);
                        delivery.ack().unwrap();
                    }
                    seen
                })
            })
            .collect();
        (0..10_000).for_each(|n| send(&topic, n));
        while sub.stats().backlog > 0 {
            std::thread::yield_now();
        }
        sub.delete().unwrap();
        let mut seen: Vec<u64> = readers.into_iter().flat_map(|reader| reader.get()).collect();
        seen.sort();
        assert_eq!(seen, (0..2_500).map(|n| 4 * n + 1).collect::<Vec<_>>());
        assert!(looks.load(Ordering::Relaxed) >= 10_000);
    });
}

#[test]
fn a_filter_looks_again_after_a_seek_and_at_what_was_there_before_the_subscription() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").retention(Retention::forever()).create().unwrap();
    topic.publish_all(0..10).unwrap();
    let open = Arc::new(AtomicBool::new(false));
    let door = open.clone();
    let sub = topic
        .subscription("sub")
        .start(Start::Earliest)
        .filter_fn(move |event| *event < 3 || door.load(Ordering::SeqCst))
        .create()
        .unwrap();
    assert_eq!(drain(&sub), [0, 1, 2]);
    open.store(true, Ordering::SeqCst);
    assert_empty(&sub);
    sub.seek(Seek::Sequence(2)).unwrap();
    assert_eq!(drain(&sub), (1..10).collect::<Vec<_>>());
}

#[test]
fn p21_a_filter_may_use_the_broker() {
    within(PATIENCE, || {
        let Desk { broker, topic, .. } = desk::<u64>();
        let log: Topic<u64> = broker.topic("log").create().unwrap();
        let readings = log.subscription("readings").create().unwrap();
        let (own, echo) = (topic.clone(), log.clone());
        let sub = topic
            .subscription("filtered")
            .filter_fn(move |event| {
                echo.publish(*event).unwrap();
                own.subscription("made-by-a-filter").open().is_ok() && own.stats().published > 0
            })
            .create()
            .unwrap();
        topic.publish_all(0..5).unwrap();
        assert_eq!(drain(&sub), [0, 1, 2, 3, 4]);
        let mut looked_at = drain(&readings);
        looked_at.sort();
        looked_at.dedup();
        assert_eq!(looked_at, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn p21_a_filter_that_panics_spends_an_attempt_and_the_message_counts_as_taken() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let panicky =
        |event: eventflow::MessageRef<'_, u64>| if *event == 3 { panic!("in the filter") } else { true };
    let sub = topic.subscription("sub").filter_fn(panicky).create().unwrap();
    let strict = topic
        .subscription("strict")
        .filter_fn(panicky)
        .dead_letter(DeadLetter::discard().after(1))
        .create()
        .unwrap();
    topic.publish_all(0..6).unwrap();
    let mut seen = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    seen.sort();
    assert_eq!(seen, [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1), (5, 1)]);
    assert_eq!(drain(&strict), [0, 1, 2, 4, 5]);
    assert_eq!((strict.stats().discarded, strict.stats().backlog), (1, 0));
}
