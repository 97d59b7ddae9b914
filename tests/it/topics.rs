//! Topics as nouns: made, found, listed, deleted, and kept apart by name and type.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eventflow::{
    CreateError, DeleteError, MessageId, PublishError, Retention, SettleError, Start, TryRecvError,
};

use crate::support::{Bare, Broker, Desk, PATIENCE, ask, assert_empty, desk, drain, manual, take, within};

#[test]
fn the_hello_world_of_the_contract_runs() -> eventflow::Result<()> {
    #[derive(Debug)]
    struct OrderPlaced {
        id: u64,
        total_cents: u64,
    }
    let broker = Broker::in_memory();
    let orders = broker.topic::<OrderPlaced>("orders").open()?;
    let billing = orders.subscription("billing").open()?;
    orders.publish(OrderPlaced { id: 7, total_cents: 1999 })?;
    let order = billing.recv()?;
    assert_eq!((order.id, order.total_cents), (7, 1999));
    order.ack()?;
    assert_empty(&billing);
    Ok(())
}

#[test]
fn create_refuses_a_topic_that_exists_and_open_attaches_to_it() {
    let (broker, _) = manual();
    let first = broker.topic::<u64>("numbers").create().unwrap();
    assert!(matches!(broker.topic::<u64>("numbers").create(), Err(CreateError::AlreadyExists)));
    let sub = first.subscription("all").create().unwrap();
    let second = broker.topic::<u64>("numbers").open().unwrap();
    second.publish(7).unwrap();
    assert_eq!(drain(&sub), [7], "both handles are of one topic");
    assert_eq!(broker.topics(), ["numbers"]);
}

#[test]
fn create_refuses_a_subscription_that_exists_and_open_attaches_to_it() {
    let Desk { topic, sub, .. } = desk::<u64>();
    assert!(matches!(topic.subscription("sub").create(), Err(CreateError::AlreadyExists)));
    topic.publish(7).unwrap();
    let again = topic.subscription("sub").open().unwrap();
    let held = take(&again);
    assert_empty(&sub);
    held.ack().unwrap();
    assert_eq!(topic.subscriptions(), ["sub"]);
}

#[test]
fn handles_know_their_names_and_the_broker_lists_its_topics() {
    let (broker, _) = manual();
    assert!(broker.topics().is_empty());
    let b = broker.topic::<u64>("b").create().unwrap();
    let a = broker.topic::<String>("a/1.x_~+%-").create().unwrap();
    assert_eq!((a.name(), b.name()), ("a/1.x_~+%-", "b"));
    let mut topics = broker.topics();
    topics.sort();
    assert_eq!(topics, ["a/1.x_~+%-", "b"]);
    let (y, _x) = (a.subscription("y").create().unwrap(), a.subscription("x").create().unwrap());
    assert_eq!(y.name(), "y");
    let mut subscriptions = a.subscriptions();
    subscriptions.sort();
    assert_eq!(subscriptions, ["x", "y"]);
    assert!(b.subscriptions().is_empty());
}

#[test]
fn bad_names_are_refused_and_change_nothing() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let long = "a".repeat(256);
    for bad in ["", "-a", "/a", ".a", "a b", "a\n", "aé", "é", "a\0", "a*", "a:b", long.as_str()] {
        let topic_error = broker.topic::<u64>(bad).create().unwrap_err();
        assert!(
            matches!(&topic_error, CreateError::InvalidName { name, .. } if name == bad || bad.len() > 255),
            "{bad:?}"
        );
        assert!(matches!(broker.topic::<u64>(bad).open(), Err(CreateError::InvalidName { .. })), "{bad:?}");
        assert!(matches!(topic.subscription(bad).create(), Err(CreateError::InvalidName { .. })), "{bad:?}");
        assert!(matches!(topic.subscription(bad).open(), Err(CreateError::InvalidName { .. })), "{bad:?}");
        assert!(matches!(sub.snapshot(bad), Err(CreateError::InvalidName { .. })), "{bad:?}");
        assert!(matches!(broker.delete_topic(bad), Err(DeleteError::NotFound)), "{bad:?}");
    }
    assert_eq!((broker.topics().len(), topic.subscriptions().len()), (1, 1));
    let longest = "a".repeat(255);
    assert!(broker.topic::<u64>(&longest).create().is_ok());
    assert!(topic.subscription(&longest).create().is_ok());
}

#[test]
fn another_type_is_a_type_mismatch_that_names_both() {
    let (broker, _) = manual();
    let numbers = broker.topic::<u32>("numbers").create().unwrap();
    let sub = numbers.subscription("all").create().unwrap();
    match broker.topic::<String>("numbers").open().unwrap_err() {
        CreateError::TypeMismatch { topic, stored, asked, .. } => {
            assert_eq!(topic, "numbers");
            assert!(stored.contains("u32"), "{stored}");
            assert!(asked.contains("String"), "{asked}");
        }
        other => panic!("{other:?}"),
    }
    let text = broker.topic::<u64>("numbers").open().unwrap_err().to_string();
    assert!(text.contains("u32") && text.contains("u64") && text.contains("numbers"), "{text}");
    numbers.publish(7).unwrap();
    assert_eq!(drain(&sub), [7], "the topic is untouched");
}

#[test]
fn topics_of_any_type_live_side_by_side_and_a_subscription_name_belongs_to_its_topic() {
    let (broker, _) = manual();
    let bare = broker.topic::<Bare>("bare").create().unwrap();
    let texts = broker.topic::<String>("texts").create().unwrap();
    let units = broker.topic::<()>("units").create().unwrap();
    let (a, b, c) = (
        bare.subscription("same").create().unwrap(),
        texts.subscription("same").create().unwrap(),
        units.subscription("same").create().unwrap(),
    );
    bare.publish(Bare(5)).unwrap();
    texts.publish("six").unwrap();
    units.publish(()).unwrap();
    units.publish(()).unwrap();
    assert_eq!((take(&a).0, take(&b).as_str(), drain(&c).len()), (5, "six", 2));
}

#[test]
fn an_operation_can_be_a_message() {
    type Operation = Box<dyn Fn() + Send + Sync>;
    let (broker, _) = manual();
    let operations = broker.topic::<Operation>("operations").create().unwrap();
    let workers =
        [operations.subscription("a").create().unwrap(), operations.subscription("b").create().unwrap()];
    let ran = Arc::new(AtomicUsize::new(0));
    for step in [1, 10, 100] {
        let ran = ran.clone();
        let work = move || {
            ran.fetch_add(step, Ordering::SeqCst);
        };
        operations.publish(Box::new(work) as Operation).unwrap();
    }
    for worker in &workers {
        while let Ok(operation) = worker.try_recv() {
            operation();
            operation.ack().unwrap();
        }
    }
    assert_eq!(ran.load(Ordering::SeqCst), 222, "each of two subscriptions ran each operation once");
}

#[test]
fn two_brokers_do_not_know_each_other() {
    let (one, clock) = manual();
    let (two, _) = manual();
    let a = one.topic::<u64>("topic").create().unwrap();
    let b = two.topic::<String>("topic").create().unwrap();
    let (sub_a, sub_b) = (a.subscription("sub").create().unwrap(), b.subscription("sub").create().unwrap());
    a.publish(1).unwrap();
    b.publish("one").unwrap();
    std::mem::forget(take(&sub_b));
    clock.advance(crate::support::DEADLINE);
    assert_empty(&sub_b);
    assert_eq!(drain(&sub_a), [1]);
    one.shutdown(std::time::Duration::ZERO).unwrap();
    b.publish("two").unwrap();
    assert_eq!(drain(&sub_b), ["two"]);
}

#[test]
fn a_broker_and_its_handles_are_cheap_clones_for_any_thread() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    fn sent<T: Send + 'static>(_: &T) {}
    let Desk { broker, clock, topic, sub } = desk::<Bare>();
    shared(&broker);
    shared(&clock);
    shared(&topic);
    shared(&sub);
    topic.publish(Bare(1)).unwrap();
    topic.publish(Bare(2)).unwrap();
    sent(&take(&sub));
    sent(&sub.try_recv_batch(2).unwrap());
    let other = (broker.clone(), topic.clone());
    assert_eq!(
        (other.0.topics(), other.1.subscriptions()),
        (vec!["topic".to_string()], vec!["sub".to_string()])
    );
}

#[test]
fn every_handle_has_debug_for_every_event_and_none_shows_the_payload() {
    let Desk { broker, clock, topic, sub } = desk::<Bare>();
    topic.publish(Bare(987_654_321)).unwrap();
    topic.publish(Bare(987_654_321)).unwrap();
    let (one, batch) = (take(&sub), sub.try_recv_batch(2).unwrap());
    let text = format!("{broker:?} {clock:?} {topic:?} {sub:?} {one:?} {:?} {batch:?}", one.message());
    assert!(!text.contains("987654321"), "{text}");
    let texts = broker.topic::<String>("texts").create().unwrap();
    let sub = texts.subscription("sub").create().unwrap();
    texts.publish("a secret").unwrap();
    assert!(!format!("{:?}", take(&sub)).contains("a secret"));
}

#[test]
fn a_deleted_topic_is_gone_for_its_handles_and_its_name_is_free() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let old = topic.publish(1).unwrap().id;
    topic.publish(2).unwrap();
    let held = take(&sub);
    broker.delete_topic("topic").unwrap();
    assert!(broker.topics().is_empty());
    assert!(matches!(broker.delete_topic("topic"), Err(DeleteError::NotFound)));
    assert!(matches!(topic.publish(3), Err(PublishError::TopicDeleted(m)) if *m.event() == 3));
    assert!(matches!(topic.try_publish(4), Err(PublishError::TopicDeleted(m)) if *m.event() == 4));
    assert!(matches!(sub.try_recv(), Err(TryRecvError::Deleted)));
    assert_eq!(*held, 1, "a live delivery still shows its event");
    assert_eq!(held.ack(), Err(SettleError::Deleted));
    assert!(topic.subscription("late").create().is_err());
    let again = broker.topic::<String>("topic").create().unwrap();
    let fresh = again.subscription("sub").start(Start::Earliest).create().unwrap();
    let new = again.publish("one").unwrap().id;
    assert_ne!(old, new, "an incarnation is never used again");
    assert_eq!(new.sequence(), 1);
    assert_eq!(drain(&fresh), ["one"]);
    assert!(matches!(sub.try_recv(), Err(TryRecvError::Deleted)), "the old handle stays what it was");
}

#[test]
fn deleting_a_topic_wakes_its_receivers_and_its_blocked_publishers() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let full = broker.topic::<u64>("full").capacity(eventflow::Capacity::messages(1)).create().unwrap();
    let _keeper = full.subscription("keeper").create().unwrap();
    full.publish(1).unwrap();
    let receiver = ask(move || sub.recv().map(|_| ()));
    let batch = topic.subscription("sub").open().unwrap();
    let batch_receiver = ask(move || batch.recv_batch(3).map(|_| ()));
    let publisher = ask({
        let full = full.clone();
        move || full.publish(2)
    });
    receiver.assert_pending();
    batch_receiver.assert_pending();
    publisher.assert_pending();
    broker.delete_topic("topic").unwrap();
    broker.delete_topic("full").unwrap();
    assert_eq!(receiver.get(), Err(eventflow::RecvError::Deleted));
    assert_eq!(batch_receiver.get(), Err(eventflow::RecvError::Deleted));
    assert!(matches!(publisher.get(), Err(PublishError::TopicDeleted(m)) if *m.event() == 2));
}

#[test]
fn a_deleted_subscription_is_gone_for_every_clone_and_the_others_go_on() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let other = topic.subscription("other").create().unwrap();
    let clone = sub.clone();
    topic.publish(1).unwrap();
    topic.publish(2).unwrap();
    let (held, batch) = (take(&sub), sub.try_recv_batch(1).unwrap());
    let waiting = clone.clone();
    let waiter = ask(move || waiting.recv_timeout(std::time::Duration::MAX).map(|_| ()));
    waiter.assert_pending();
    sub.delete().unwrap();
    assert_eq!(waiter.get(), Err(eventflow::RecvTimeoutError::Deleted));
    assert!(matches!(clone.try_recv(), Err(TryRecvError::Deleted)));
    assert!(matches!(clone.recv(), Err(eventflow::RecvError::Deleted)));
    assert!(matches!(clone.try_recv_batch(1), Err(TryRecvError::Deleted)));
    assert!(clone.iter().next().is_none());
    assert_eq!(held.ack(), Err(SettleError::Deleted));
    assert_eq!(batch.ack(), Err(SettleError::Deleted));
    assert!(clone.delete().is_err());
    assert_eq!(topic.subscriptions(), ["other"]);
    let fresh = topic.subscription("sub").create().unwrap();
    assert_empty(&fresh);
    topic.publish(3).unwrap();
    assert_eq!((drain(&fresh), drain(&other)), (vec![3], vec![1, 2, 3]));
    assert!(
        matches!(clone.try_recv(), Err(TryRecvError::Deleted)),
        "a name reused is not the old subscription"
    );
    assert_eq!(broker.stats().subscriptions, 2);
}

#[test]
fn topics_and_subscriptions_outlive_their_handles_while_the_broker_lives() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").retention(Retention::forever()).create().unwrap();
    drop(topic.subscription("sub").create().unwrap());
    topic.publish(1).unwrap();
    drop(topic);
    let topic = broker.topic::<u64>("topic").open().unwrap();
    topic.publish(2).unwrap();
    assert_eq!(drain(&topic.subscription("sub").open().unwrap()), [1, 2]);
}

#[test]
fn of_many_threads_that_create_one_topic_exactly_one_does_and_all_open_the_same() {
    within(PATIENCE, || {
        let (broker, _) = manual();
        let created: Vec<_> = (0..16)
            .map(|_| {
                let broker = broker.clone();
                ask(move || {
                    let created = broker.topic::<u64>("one").create().is_ok();
                    let topic = broker.topic::<u64>("one").open().unwrap();
                    let subscribed = topic.subscription("sub").create().is_ok();
                    (created, subscribed, topic.publish(1).unwrap().id)
                })
            })
            .collect();
        let answers: Vec<_> = created.into_iter().map(|answer| answer.get()).collect();
        assert_eq!(answers.iter().filter(|answer| answer.0).count(), 1);
        assert_eq!(answers.iter().filter(|answer| answer.1).count(), 1);
        let ids: HashSet<MessageId> = answers.iter().map(|answer| answer.2).collect();
        assert_eq!(ids.len(), 16, "no id is given twice");
    });
}

#[test]
fn a_message_id_orders_as_the_topic_does_and_survives_its_text() {
    fn plain<T: Copy + Eq + Ord + std::hash::Hash + std::fmt::Debug + Send + Sync>(_: T) {}
    let Desk { topic, sub, .. } = desk::<u64>();
    let ids: Vec<MessageId> = (0..3).map(|n| topic.publish(n).unwrap().id).collect();
    plain(ids[0]);
    assert!(ids.is_sorted());
    assert_eq!(ids.iter().map(MessageId::sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(ids[1].to_string().parse::<MessageId>().unwrap(), ids[1]);
    assert!("nonsense".parse::<MessageId>().is_err());
    let delivery = take(&sub);
    assert_eq!((delivery.id(), delivery.message().id()), (ids[0], ids[0]));
}
