//! What was said of a topic and a subscription holds when they are opened again, and what is said then must be the same.

use bytes::Bytes;
use eventflow::{
    Capacity, CreateError, DeadLetter, DedupWindow, DeliveryMode, Message, Retention, RetryPolicy,
    Subscription, Topic,
};

use crate::support::{Dir, Order, OrderCodec, SECOND, drain, end, order, orders, over_restarts, send, take};

#[track_caller]
fn mismatch<T>(outcome: Result<T, CreateError>) -> &'static str {
    match outcome {
        Err(CreateError::ConfigMismatch { option, .. }) => option,
        Err(error) => panic!("expected a mismatch, found: {error}"),
        Ok(_) => panic!("expected a mismatch, and it was opened"),
    }
}

#[test]
fn a_topics_options_are_stored() {
    over_restarts(
        |broker| broker.clone(),
        |broker, _| {
            let topic = broker.topic::<String>("orders");
            let topic = topic.retention(Retention::for_duration(SECOND).max_bytes(7).max_messages(8));
            let topic = topic.capacity(Capacity::bytes(9)).dedup(DedupWindow::time(SECOND).max_ids(3));
            (topic.create().unwrap(), ())
        },
        |broker, (), _, _| {
            let orders = || broker.topic::<String>("orders");
            // On disk, and then open: the same.
            for _ in 0..2 {
                let kept = Retention::for_duration(SECOND).max_bytes(7);
                assert_eq!(mismatch(orders().retention(kept).open()), "retention");
                assert_eq!(mismatch(orders().capacity(Capacity::messages(9)).open()), "capacity");
                assert_eq!(mismatch(orders().dedup(DedupWindow::time(SECOND)).open()), "dedup");
                assert!(matches!(orders().create(), Err(CreateError::AlreadyExists)));
                let kept = kept.max_messages(8);
                let window = DedupWindow::time(SECOND).max_ids(3);
                orders().retention(kept).capacity(Capacity::bytes(9)).dedup(window).open().unwrap();
                orders().open().unwrap();
            }
        },
    );
}

#[test]
fn a_subscriptions_options_are_stored() {
    over_restarts(
        |broker| (broker.topic::<String>("orders").open().unwrap(), ()),
        |(topic, ()), _| {
            let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).ordered();
            let billing = billing.ack_deadline(SECOND).retry(RetryPolicy::exponential(SECOND, 9 * SECOND));
            let billing = billing.filter("attributes:region").dead_letter(DeadLetter::discard().after(7));
            (billing.expire_after(60 * SECOND).max_outstanding(11).create().unwrap(), ())
        },
        |(topic, ()), (), _, _| {
            assert_eq!(topic.subscriptions(), ["billing"]);
            let billing = || topic.subscription("billing");
            assert_eq!(mismatch(billing().delivery(DeliveryMode::AtLeastOnce).open()), "delivery");
            assert_eq!(mismatch(billing().ack_deadline(2 * SECOND).open()), "ack_deadline");
            assert_eq!(mismatch(billing().retry(RetryPolicy::immediate()).open()), "retry");
            assert_eq!(mismatch(billing().filter("attributes:other").open()), "filter");
            assert_eq!(mismatch(billing().dead_letter(DeadLetter::discard()).open()), "dead_letter");
            assert_eq!(mismatch(billing().expire_after(SECOND).open()), "expire_after");
            assert_eq!(mismatch(billing().max_outstanding(12).open()), "max_outstanding");
            assert_eq!(mismatch(billing().filter_fn(|_| true).open()), "filter_fn");
            assert!(matches!(billing().create(), Err(CreateError::AlreadyExists)));
            let billing = billing().delivery(DeliveryMode::ExactlyOnce).ordered().filter("attributes:region");
            let billing = billing.ack_deadline(SECOND).retry(RetryPolicy::exponential(SECOND, 9 * SECOND));
            let billing = billing.dead_letter(DeadLetter::discard().after(7));
            billing.expire_after(60 * SECOND).max_outstanding(11).open().unwrap();
        },
    );
}

#[test]
fn updates_are_stored() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic, broker.clone())
        },
        |(billing, topic, broker), _| {
            let failed = broker.topic::<String>("failed").retention(Retention::forever()).open().unwrap();
            topic.update().retention(Retention::forever()).apply().unwrap();
            topic.update().capacity(Capacity::messages(5)).dedup(DedupWindow::off()).apply().unwrap();
            let update = billing.update().ack_deadline(SECOND).retry(RetryPolicy::fixed(SECOND));
            let update = update.dead_letter(DeadLetter::to(&failed).after(2)).max_outstanding(1);
            update.expire_after(60 * SECOND).apply().unwrap();
            // One that changes nothing but what it names.
            billing.update().max_outstanding(2).apply().unwrap();
            ((), ())
        },
        |(billing, topic, broker), (), _, clock| {
            let failed = broker.topic::<String>("failed").open().unwrap();
            let topic_again = broker.topic::<String>("orders").retention(Retention::forever());
            topic_again.capacity(Capacity::messages(5)).dedup(DedupWindow::off()).open().unwrap();
            let again = topic.subscription("billing").ack_deadline(SECOND).retry(RetryPolicy::fixed(SECOND));
            let again = again.dead_letter(DeadLetter::to(&failed).after(2)).max_outstanding(2);
            again.expire_after(60 * SECOND).open().unwrap();
            // And they act.
            topic.publish_all(orders(1..=5)).unwrap();
            assert!(topic.try_publish("order 6").is_err());
            let held = [take(billing), take(billing)];
            assert!(billing.try_recv().is_err(), "two are out");
            clock.advance(SECOND);
            assert_eq!(billing.stats().outstanding, 0);
            assert!(held.into_iter().all(|delivery| delivery.nack().is_err()));
            clock.advance(60 * SECOND);
            assert_eq!(billing.stats().backlog, 0);
        },
    );
}

#[test]
fn what_is_undone_by_an_update_stays_undone() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), _| {
            let update = billing.update().dead_letter(DeadLetter::discard().after(1));
            update.expire_after(SECOND).apply().unwrap();
            topic.update().capacity(Capacity::messages(1)).apply().unwrap();
            billing.update().no_dead_letter().never_expire().apply().unwrap();
            topic.update().capacity(Capacity::unlimited()).apply().unwrap();
            ((), ())
        },
        |(billing, topic), (), _, clock| {
            topic.publish_all(orders(1..=2)).unwrap();
            take(billing).nack().unwrap();
            clock.advance(60 * SECOND);
            assert_eq!(drain(billing).len(), 2);
        },
    );
}

#[test]
fn a_filter_filters_as_before() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let filter = r#"attributes.region = "eu" OR NOT attributes:region"#;
            let by_text = topic.subscription("text").filter(filter).open().unwrap();
            let by_fn = topic.subscription("closure").filter_fn(|message| message.len() > 3).open().unwrap();
            (by_text, by_fn, topic)
        },
        |(by_text, by_fn, topic), _| {
            let send =
                |text: &str, region| send(topic, Message::new(text.to_owned()).attribute("region", region));
            send("seen", "eu");
            // Looked at before the end, and after it.
            let held = (take(by_text), take(by_fn));
            send("a", "us");
            send("long a", "us");
            assert!(by_text.try_recv().is_err());
            send("b", "us");
            send("c", "eu");
            send("long d", "eu");
            (held, ())
        },
        |(by_text, by_fn, topic), (), _, _| {
            send(topic, "e");
            let mut seen = drain(by_text);
            seen.sort();
            assert_eq!(seen, ["c", "e", "long d", "seen"]);
            let mut seen = drain(by_fn);
            seen.sort();
            assert_eq!(seen, ["long a", "long d", "seen"]);
            assert_eq!((by_text.stats().backlog, by_fn.stats().backlog), (0, 0));
        },
    );
}

#[test]
fn without_its_closure_a_subscription_is_not_opened_and_nothing_is_lost() {
    over_restarts(
        |broker| (broker.topic::<String>("orders").open().unwrap(), ()),
        |(topic, ()), _| {
            let even = topic.subscription("even").filter_fn(|message| message.ends_with('2')).open().unwrap();
            topic.publish_all(orders(1..=3)).unwrap();
            (even, ())
        },
        |(topic, ()), (), _, _| {
            assert_eq!(mismatch(topic.subscription("even").open()), "filter_fn");
            let even = topic.subscription("even").filter_fn(|message| message.ends_with('2')).open().unwrap();
            assert_eq!(drain(&even), ["order 2"]);
            // It has one now.
            topic.subscription("even").open().unwrap();
            assert_eq!(mismatch(topic.subscription("even").filter_fn(|_| true).open()), "filter_fn");
        },
    );
}

#[test]
fn a_pause_lasts() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let book = |name| topic.subscription(name).open().unwrap();
            (book("paused"), book("resumed"), topic)
        },
        |(paused, resumed, topic), _| {
            paused.pause().unwrap();
            resumed.pause().unwrap();
            resumed.resume().unwrap();
            send(topic, "order 1");
            ((), ())
        },
        |(paused, resumed, _), (), _, _| {
            assert!(paused.try_recv().is_err());
            assert_eq!(paused.stats().backlog, 1);
            assert_eq!(drain(resumed), ["order 1"]);
            paused.resume().unwrap();
            assert_eq!(drain(paused), ["order 1"]);
        },
    );
}

#[test]
fn what_was_deleted_is_gone() {
    over_restarts(
        |broker| broker.clone(),
        |broker, _| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let [gone, _kept, again] =
                ["gone", "kept", "again"].map(|name| topic.subscription(name).open().unwrap());
            let old = topic.publish_all(orders(1..=3)).unwrap()[2].id;
            gone.delete().unwrap();
            again.delete().unwrap();
            topic.subscription("again").create().unwrap();
            send(&topic, "order 4");
            let removed = broker.topic::<String>("removed").open().unwrap();
            removed.subscription("a").open().unwrap();
            send(&removed, "order 1");
            broker.delete_topic("removed").unwrap();
            let replaced = broker.topic::<String>("replaced").open().unwrap();
            replaced.subscription("a").open().unwrap();
            let old_id = send(&replaced, Message::new("old".to_owned()).idempotency_id("1")).id;
            broker.delete_topic("replaced").unwrap();
            // Of other events, and with nothing of the old one's.
            let replaced = broker.topic::<Bytes>("replaced").create().unwrap();
            replaced.subscription("a").open().unwrap();
            let new_id = send(&replaced, Message::new(Bytes::from("new")).idempotency_id("1")).id;
            assert_ne!(old_id, new_id);
            ((), (old, new_id))
        },
        |broker, (old, new_id), _, _| {
            assert_eq!(broker.topics(), ["orders", "replaced"]);
            let topic = broker.topic::<String>("orders").open().unwrap();
            assert_eq!(topic.subscriptions(), ["again", "kept"]);
            assert_eq!(drain(&topic.subscription("again").open().unwrap()), ["order 4"]);
            assert_eq!(drain(&topic.subscription("kept").open().unwrap()), orders(1..=4));
            assert!(send(&topic, "order 5").id > old);
            let replaced = broker.topic::<Bytes>("replaced").open().unwrap();
            let delivery = take(&replaced.subscription("a").open().unwrap());
            assert_eq!((delivery.id(), &**delivery), (new_id, &b"new"[..]));
            let removed = broker.topic::<String>("removed").create().unwrap();
            assert_eq!(removed.subscriptions(), [""; 0]);
        },
    );
}

#[test]
fn a_topic_that_nobody_opened_can_be_deleted() {
    over_restarts(
        |broker| broker.clone(),
        |broker, _| {
            for name in ["a", "b"] {
                let topic = broker.topic::<Order>(name).codec(OrderCodec("order/1")).open().unwrap();
                topic.subscription("billing").open().unwrap();
                send(&topic, order(7));
            }
            ((), ())
        },
        |broker, (), _, _| {
            broker.delete_topic("a").unwrap();
            assert_eq!(broker.topics(), ["b"]);
            assert!(broker.delete_topic("a").is_err());
            // Another one, from the beginning.
            let topic = broker.topic::<String>("a").open().unwrap();
            assert_eq!(topic.subscriptions(), [""; 0]);
            let old = broker.topic::<Order>("b").codec(OrderCodec("order/1")).open().unwrap();
            assert_ne!(send(&topic, "order 1").id, send(&old, order(1)).id);
            assert_eq!(drain(&old.subscription("billing").open().unwrap()), [order(7), order(1)]);
        },
    );
}

#[test]
fn a_topic_deleted_unopened_stays_deleted() {
    let dir = Dir::new();
    let broker = dir.open();
    broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    end(broker);
    let broker = dir.open();
    broker.delete_topic("orders").unwrap();
    let broker_gone = dir.copy();
    end(broker);
    for dir in [dir, broker_gone] {
        let broker = dir.open();
        assert_eq!(broker.topics(), [""; 0]);
        broker.topic::<Bytes>("orders").create().unwrap();
        end(broker);
    }
}

#[test]
fn events_need_a_codec_and_keep_to_it() {
    let dir = Dir::new();
    let broker = dir.open();
    let coded =
        |broker: &eventflow::Broker, name| broker.topic::<Order>("orders").codec(OrderCodec(name)).open();
    assert!(matches!(
        broker.topic::<Order>("orders").open(),
        Err(CreateError::InvalidOption { option: "codec", .. })
    ));
    assert_eq!(broker.topics(), [""; 0], "nothing changed");
    let topic = coded(&broker, "order/1").unwrap();
    topic.subscription("billing").open().unwrap();
    send(&topic, order(1));
    assert_eq!(mismatch(coded(&broker, "order/2")), "codec");
    assert!(matches!(broker.topic::<String>("orders").open(), Err(CreateError::TypeMismatch { .. })));
    drop(topic);
    end(broker);

    for _ in 0..2 {
        let broker = dir.open();
        assert!(matches!(
            broker.topic::<Order>("orders").open(),
            Err(CreateError::InvalidOption { option: "codec", .. }
                | CreateError::ConfigMismatch { option: "codec", .. })
        ));
        assert_eq!(mismatch(coded(&broker, "order/2")), "codec");
        assert_eq!(mismatch(broker.topic::<String>("orders").open()), "codec");
        assert_eq!(mismatch(broker.topic::<Bytes>("orders").open()), "codec");
        let topic = coded(&broker, "order/1").unwrap();
        // A live one has its codec already.
        let billing = broker.topic::<Order>("orders").open().unwrap().subscription("billing").open().unwrap();
        assert!(matches!(broker.topic::<String>("orders").open(), Err(CreateError::TypeMismatch { .. })));
        assert_eq!(*take(&billing), order(1));
        drop((topic, billing));
        end(broker);
    }
}

#[test]
fn closures_are_asked_for_again() {
    let dir = Dir::new();
    let open = |broker: &eventflow::Broker, prints, weighs| {
        let mut topic = broker.topic::<String>("orders");
        if prints {
            topic = topic.fingerprint(|event| event.len() as u64);
        }
        if weighs {
            topic = topic.weigh(|event| event.len() as u64);
        }
        topic.open()
    };
    let broker = dir.open();
    open(&broker, true, true).unwrap();
    let _plain: Topic<String> = broker.topic("plain").open().unwrap();
    end(broker);
    let broker = dir.open();
    assert_eq!(mismatch(open(&broker, false, true)), "fingerprint");
    assert_eq!(mismatch(open(&broker, true, false)), "weigh");
    open(&broker, true, true).unwrap();
    let plain = || broker.topic::<String>("plain");
    assert_eq!(mismatch(plain().fingerprint(|_| 1).open()), "fingerprint");
    assert_eq!(mismatch(plain().weigh(|_| 1).open()), "weigh");
    plain().open().unwrap();
    end(broker);
}

#[test]
fn a_codec_that_cannot_read_what_is_there_loses_nothing() {
    struct Broken;
    impl eventflow::Codec<Order> for Broken {
        fn name(&self) -> &str {
            "order/1"
        }
        fn encode(&self, _: &Order, _: &mut Vec<u8>) -> Result<(), eventflow::CodecError> {
            Err(eventflow::CodecError::new("never"))
        }
        fn decode(&self, bytes: &[u8]) -> Result<Order, eventflow::CodecError> {
            match bytes {
                [.., b'2'] => panic!("a bug"),
                _ => Err(eventflow::CodecError::new("never")),
            }
        }
    }
    for number in [1, 2] {
        let dir = Dir::new();
        let broker = dir.open();
        let topic = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap();
        topic.subscription("billing").open().unwrap();
        send(&topic, order(number));
        drop(topic);
        end(broker);
        let broker = dir.open();
        let error = broker.topic::<Order>("orders").codec(Broken).open().map(drop).unwrap_err();
        assert!(matches!(error, CreateError::InvalidOption { option: "codec", .. }), "{error}");
        let topic = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap();
        let billing: Subscription<Order> = topic.subscription("billing").open().unwrap();
        assert_eq!(drain(&billing), [order(number)]);
        end(broker);
    }
}
