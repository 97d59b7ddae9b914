//! `publish_all`: one atomic batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use eventflow::{Capacity, DeadLetter, Message, Overflow, PublishErrorKind, TryRecvError};

use crate::support::{
    Desk, Drops, PATIENCE, SECOND, ask, assert_empty, desk, drain, drain_with, manual, take, within,
};

#[test]
fn p05_a_batch_is_published_as_one_run_in_its_order() {
    let Desk { clock, topic, sub, .. } = desk::<String>();
    topic.publish("before").unwrap();
    let published = clock.now();
    let receipts = topic
        .publish_all([
            Message::new("a".to_string()).attribute("n", "1").ordering_key("k"),
            Message::new("b".to_string()).idempotency_id("id"),
            Message::new("c".to_string()).deliver_after(SECOND),
        ])
        .unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.id.sequence()).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(receipts.iter().all(|receipt| !receipt.deduplicated));
    clock.advance(SECOND);
    let seen = drain_with(&sub, |delivery| {
        let seen = delivery.message();
        (seen.event().clone(), seen.attribute("n").map(str::to_owned), seen.publish_time())
    });
    let text = str::to_owned;
    assert_eq!(
        seen,
        [
            (text("before"), None, published),
            (text("a"), Some(text("1")), published),
            (text("b"), None, published),
            (text("c"), None, published),
        ]
    );
}

#[test]
fn p05_an_empty_batch_publishes_nothing() {
    let Desk { topic, sub, .. } = desk::<u64>();
    assert_eq!(topic.publish_all(Vec::<u64>::new()).unwrap().len(), 0);
    assert_eq!((topic.stats().published, sub.stats().backlog), (0, 0));
    assert_eq!(topic.publish(1).unwrap().id.sequence(), 1);
}

#[test]
fn p05_large_batches_stay_whole_over_segments_and_for_every_subscription() {
    let Desk { topic, sub: a, .. } = desk::<u64>();
    let b = topic.subscription("b").create().unwrap();
    for start in [0, 3_000] {
        let receipts = topic.publish_all(start..start + 3_000).unwrap();
        assert_eq!(receipts.len(), 3_000);
        assert_eq!(receipts[2_999].id.sequence(), start + 3_000);
    }
    let expected: Vec<u64> = (0..6_000).collect();
    assert_eq!((drain(&a), drain(&b)), (expected.clone(), expected));
}

#[test]
fn p05_no_reader_ever_sees_a_part_of_a_batch() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk::<u64>();
        let done = Arc::new(AtomicBool::new(false));
        let watcher = ask({
            let (topic, sub, done) = (topic.clone(), sub.clone(), done.clone());
            move || {
                let mut looks = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    assert_eq!(sub.stats().backlog % 7, 0, "part of a batch");
                    assert_eq!(topic.stats().published % 7, 0, "part of a batch");
                    looks += 1;
                }
                looks
            }
        });
        let publishers: Vec<_> = (0..2_u64)
            .map(|publisher| {
                let topic = topic.clone();
                ask(move || {
                    (0..1_000_u64).for_each(|n| drop(topic.publish_all([publisher * 1_000 + n; 7]).unwrap()));
                })
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.get());
        done.store(true, Ordering::SeqCst);
        assert!(watcher.get() > 0);
        let seen = drain(&sub);
        assert_eq!(seen.len(), 14_000);
        assert!(
            seen.chunks(7).all(|run| run.iter().all(|n| *n == run[0])),
            "another's message within a batch"
        );
    });
}

#[test]
fn p05_a_receiver_that_takes_all_there_is_has_taken_whole_batches() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk::<u64>();
        let publisher = ask(move || (0..2_000).for_each(|n| drop(topic.publish_all([n; 5]).unwrap())));
        let mut seen = 0;
        while seen < 10_000 {
            match sub.try_recv_batch(500) {
                Ok(batch) => {
                    seen += batch.len();
                    batch.ack().unwrap();
                }
                Err(error) => {
                    assert_eq!(error, TryRecvError::Empty);
                    assert_eq!(seen % 5, 0, "all that was visible is taken, so it was whole batches");
                }
            }
        }
        publisher.get();
        assert_eq!(seen, 10_000);
    });
}

#[test]
fn p05_a_batch_larger_than_the_capacity_fails_at_once_and_comes_back() {
    for overflow in [Overflow::Block, Overflow::Reject, Overflow::DropOldest] {
        let (broker, _) = manual();
        let topic =
            broker.topic::<u64>("topic").capacity(Capacity::messages(3).overflow(overflow)).create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        topic.publish(7).unwrap();
        within(PATIENCE, move || {
            let error = topic.publish_all([1, 2, 3, 4]).unwrap_err();
            assert!(matches!(error.kind, PublishErrorKind::TooLarge), "{:?}", error.kind);
            let back: Vec<u64> = error.messages.into_iter().map(Message::into_event).collect();
            assert_eq!(back, [1, 2, 3, 4]);
            assert_eq!(topic.stats().published, 1);
            assert_eq!(drain(&sub), [7], "and dropped nothing for it");
        });
    }
}

#[test]
fn p05_a_batch_that_does_not_fit_now_is_refused_whole() {
    let (broker, _) = manual();
    let topic = broker
        .topic::<u64>("topic")
        .capacity(Capacity::messages(3).overflow(Overflow::Reject))
        .create()
        .unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish_all([1, 2]).unwrap();
    let error = topic.publish_all([3, 4]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::Full), "{:?}", error.kind);
    assert_eq!(error.messages.iter().map(|m| *m.event()).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(topic.stats().published, 2);
    assert_eq!(drain(&sub), [1, 2]);
    topic.publish_all(error.messages).unwrap();
    assert_eq!(drain(&sub), [3, 4]);
}

#[test]
fn p05_a_batch_waits_until_all_of_it_fits() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(3)).create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish_all([1, 2, 3]).unwrap();
    let publisher = ask({
        let topic = topic.clone();
        move || topic.publish_all([4, 5]).unwrap().len()
    });
    publisher.assert_pending();
    take(&sub).ack().unwrap();
    publisher.assert_pending();
    assert_eq!(topic.stats().published, 3, "one place free, and none of it taken");
    take(&sub).ack().unwrap();
    assert_eq!(publisher.get(), 2);
    assert_eq!(drain(&sub), [3, 4, 5]);
}

#[test]
fn p05_one_message_over_a_limit_refuses_the_batch() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let bad = Message::new(2).attribute("k", "v".repeat(1_025));
    let error = topic.publish_all([Message::new(1), bad, Message::new(3)]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::TooLarge), "{:?}", error.kind);
    assert_eq!(error.messages.iter().map(|m| *m.event()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_empty(&sub);
    assert_eq!(topic.stats().published, 0);
}

#[test]
fn p05_a_batch_to_a_deleted_topic_or_a_closed_broker_comes_back() {
    let Desk { broker, topic, .. } = desk::<u64>();
    broker.delete_topic("topic").unwrap();
    let error = topic.publish_all([1, 2]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::TopicDeleted), "{:?}", error.kind);
    assert_eq!(error.messages.len(), 2);
    let other = broker.topic::<u64>("other").create().unwrap();
    broker.shutdown(std::time::Duration::ZERO).unwrap();
    let error = other.publish_all([1, 2, 3]).unwrap_err();
    assert!(matches!(error.kind, PublishErrorKind::Closed), "{:?}", error.kind);
    assert_eq!(error.messages.len(), 3);
}

#[test]
fn p05_an_iterator_that_panics_publishes_nothing_and_loses_no_event() {
    let Desk { topic, sub, .. } = desk();
    let drops = Drops::default();
    crate::support::panics(|| {
        let events = (0..10).map(|n| if n == 5 { panic!("from the iterator") } else { drops.event(n) });
        let _ = topic.publish_all(events);
    });
    assert_empty(&sub);
    assert_eq!(drops.count(), 5);
    topic.publish(drops.event(100)).unwrap();
    assert_eq!(take(&sub).number, 100);
}

#[test]
fn p05_an_iterator_may_use_the_topic_it_publishes_to() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let inner = topic.clone();
    let seen = within(PATIENCE, move || {
        let reader = sub.clone();
        let events = (0..3).inspect(|n| {
            inner.publish(100 + n).unwrap();
            assert_eq!(drain(&reader), [100 + n]);
            inner.subscription(&format!("s{n}")).create().unwrap();
        });
        topic.publish_all(events).unwrap();
        drain(&sub)
    });
    assert_eq!(seen, [0, 1, 2]);
}

#[test]
fn p03_a_batch_of_payloads_of_any_length_arrives_as_it_was_published() {
    let Desk { topic, sub, .. } = desk::<Bytes>();
    let payload = |n: usize| Bytes::from((0..n * 13 % 3_000).map(|at| (at ^ n) as u8).collect::<Vec<_>>());
    let given: Vec<_> = (0..500).map(payload).collect();
    let mut kept: Vec<Bytes> = Vec::new();
    for batch in given.chunks(90) {
        topic.publish_all(batch.to_vec()).unwrap();
        // What is acked makes room for the next batch: what a reader keeps of it does not change.
        while let Ok(batch) = sub.try_recv_batch(64) {
            kept.extend(batch.iter().map(|message| Bytes::clone(&message)));
            batch.ack().unwrap();
        }
    }
    assert_eq!(kept, given);
}

#[test]
fn p11_a_dead_letter_out_of_the_middle_of_a_batch_is_that_message() {
    let (broker, _clock) = manual();
    let failed = broker.topic::<String>("failed").open().unwrap();
    let inspection = failed.subscription("inspection").open().unwrap();
    let topic = broker.topic::<String>("topic").open().unwrap();
    let sub = topic.subscription("sub").dead_letter(DeadLetter::to(&failed)).open().unwrap();
    topic.publish_all((0..64).map(|n| format!("message {n}"))).unwrap();
    for delivery in sub.try_recv_batch(64).unwrap() {
        if delivery.ends_with('7') {
            delivery.reject("seven").unwrap();
        } else {
            delivery.ack().unwrap();
        }
    }
    // The batch is settled, and its memory used for others; what was rejected out of it is not.
    topic.publish_all((0..64).map(|n| format!("other {n}"))).unwrap();
    let letters = drain(&inspection);
    assert_eq!(letters, ["message 7", "message 17", "message 27", "message 37", "message 47", "message 57"]);
}

#[test]
fn p17_the_events_of_a_batch_go_when_all_of_its_segment_are_settled() {
    let Desk { topic, sub, .. } = desk();
    let drops = Drops::default();
    for _ in 0..3 {
        let before = drops.count();
        topic.publish_all((0..64).map(|n| drops.event(n))).unwrap();
        let mut batch = sub.try_recv_batch(64).unwrap();
        let last = batch.pop().unwrap();
        batch.ack().unwrap();
        assert_eq!(drops.count(), before);
        last.ack().unwrap();
        assert_eq!(drops.count(), before + 64);
    }
    assert_eq!(topic.stats().resident_messages, 0);
}
