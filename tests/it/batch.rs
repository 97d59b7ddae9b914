//! Batches: taken whole, settled whole, in part, or not at all.

use eventflow::{Batch, Capacity, DeliveryMode, Overflow, Seek, SettleError, TryRecvError};

use crate::support::{
    DEADLINE, Desk, NANO, PATIENCE, SECOND, ask, assert_empty, desk, desk_with, drain, drain_with, manual,
    take, within,
};

/// A way to settle what is left in a batch.
type Way = fn(Batch<u64>) -> Result<(), SettleError>;

fn expired(count: u64) -> Result<(), SettleError> {
    Err(SettleError::LeaseExpired { count })
}

#[test]
fn a_batch_gives_up_to_max_in_the_topics_order() {
    let Desk { topic, sub, .. } = desk::<u64>();
    assert!(matches!(sub.try_recv_batch(5), Err(TryRecvError::Empty)));
    topic.publish_all(0..300).unwrap();
    let first = sub.try_recv_batch(5).unwrap();
    assert_eq!((first.len(), first.is_empty()), (5, false));
    assert_eq!(first.iter().map(|event| *event).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(first.iter().map(|event| event.id().sequence()).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let second = sub.try_recv_batch(200).unwrap();
    assert_eq!(second.iter().map(|event| *event).collect::<Vec<_>>(), (5..205).collect::<Vec<_>>());
    let third = sub.try_recv_batch(usize::MAX).unwrap();
    assert_eq!(third.len(), 95);
    assert_eq!(sub.stats().outstanding, 300);
    assert!(first.into_iter().chain(second).chain(third).all(|delivery| delivery.attempt() == 1));
}

#[test]
fn a_batch_of_at_most_none_takes_no_more_than_one_and_does_not_panic() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..3).unwrap();
    if let Ok(batch) = sub.try_recv_batch(0) {
        assert!(batch.len() <= 1);
        batch.release().unwrap();
    }
    assert_eq!(sub.stats().outstanding, 0);
    assert_eq!(drain_with(&sub, |delivery| delivery.attempt()), [1; 3]);
}

#[test]
fn p09_recv_batch_waits_for_at_least_one() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let receiver = ask(move || {
        let batch = sub.recv_batch(10).unwrap();
        batch.iter().map(|event| *event).collect::<Vec<_>>()
    });
    receiver.assert_pending();
    topic.publish(7).unwrap();
    assert_eq!(receiver.get(), [7], "and not for more");
}

#[test]
fn p08_a_batch_ack_settles_all_that_is_left_in_it() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..100).unwrap();
    let mut batch = sub.try_recv_batch(100).unwrap();
    let nacked = batch.pop().unwrap();
    let acked = batch.pop().unwrap();
    assert_eq!((*nacked, *acked, batch.len()), (0, 1, 98));
    nacked.nack().unwrap();
    acked.ack().unwrap();
    batch.ack().unwrap();
    assert_eq!((sub.stats().acked, sub.stats().backlog), (99, 1));
    assert_eq!(drain(&sub), [0]);
    clock.advance(DEADLINE);
    assert_empty(&sub);
}

#[test]
fn what_is_popped_lives_on_without_its_batch() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..3).unwrap();
    let mut batch = sub.try_recv_batch(3).unwrap();
    let popped = batch.pop().unwrap();
    drop(batch);
    assert_eq!((sub.stats().nacked, sub.stats().outstanding), (2, 1));
    let mut back = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    back.sort();
    assert_eq!(back, [(1, 2), (2, 2)]);
    popped.ack().unwrap();
    assert_empty(&sub);
}

#[test]
fn a_batch_that_was_popped_empty_settles_nothing() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..2).unwrap();
    let ways: [Way; 3] = [Batch::ack, Batch::nack, Batch::release];
    for way in ways {
        let mut batch = sub.try_recv_batch(2).unwrap();
        let held = [batch.pop().unwrap(), batch.pop().unwrap()];
        assert!(batch.pop().is_none() && batch.is_empty() && batch.iter().next().is_none());
        assert_eq!(way(batch), Ok(()));
        assert_eq!(sub.stats().outstanding, 2, "what was popped is not the batch's");
        drop(held);
    }
}

#[test]
fn p09_what_is_left_in_a_dropped_batch_is_nacked() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    drop(sub.try_recv_batch(5).unwrap());
    assert_eq!((sub.stats().nacked, sub.stats().outstanding), (5, 0));
    let mut back = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    back.sort();
    assert_eq!(back, (0..5).map(|n| (n, 2)).collect::<Vec<_>>());
}

#[test]
fn p09_what_an_abandoned_iterator_has_not_yielded_is_released() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    for delivery in sub.try_recv_batch(5).unwrap() {
        if *delivery == 2 {
            break; // Dropped here: a nack of 2, and a release of 3 and 4.
        }
        delivery.ack().unwrap();
    }
    let stats = sub.stats();
    assert_eq!((stats.acked, stats.nacked, stats.released, stats.outstanding), (2, 1, 2, 0));
    let mut back = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    back.sort();
    assert_eq!(back, [(2, 2), (3, 1), (4, 1)]);
}

#[test]
fn an_iterated_batch_yields_each_delivery_once_in_order() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..130).unwrap();
    let mut batch = sub.try_recv_batch(130).unwrap();
    let first = batch.pop().unwrap();
    let rest: Vec<_> = batch.into_iter().collect();
    assert_eq!(rest.iter().map(|delivery| **delivery).collect::<Vec<_>>(), (1..130).collect::<Vec<_>>());
    assert_eq!(sub.stats().outstanding, 130);
    rest.into_iter().rev().for_each(|delivery| delivery.ack().unwrap());
    first.ack().unwrap();
    assert_eq!((sub.stats().acked, sub.stats().backlog), (130, 0));
}

#[test]
fn p10_a_released_batch_spends_no_attempt_and_a_nacked_one_does() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..4).unwrap();
    sub.try_recv_batch(4).unwrap().release().unwrap();
    let batch = sub.try_recv_batch(4).unwrap();
    assert_eq!(batch.iter().map(|event| *event).collect::<Vec<_>>(), [0, 1, 2, 3], "back in their places");
    batch.nack().unwrap();
    assert_eq!((sub.stats().released, sub.stats().nacked), (4, 4));
    assert_eq!(drain_with(&sub, |delivery| delivery.attempt()), [2; 4]);
}

#[test]
fn p07_all_leases_of_a_batch_end_at_their_deadline() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..100).unwrap();
    let mut batch = sub.try_recv_batch(100).unwrap();
    let kept = batch.pop().unwrap();
    let extended = batch.pop().unwrap();
    clock.advance(SECOND);
    extended.extend(DEADLINE).unwrap();
    clock.advance(DEADLINE - SECOND - NANO);
    assert_empty(&sub);
    assert_eq!(sub.stats().outstanding, 100);
    clock.advance(NANO);
    assert_eq!((sub.stats().outstanding, sub.stats().leases_expired), (1, 99));
    assert_eq!(drain(&sub).len(), 99);
    clock.advance(SECOND - NANO);
    assert_empty(&sub);
    clock.advance(NANO);
    assert_eq!(take(&sub).attempt(), 2);
    assert_eq!(batch.ack(), expired(98));
    assert_eq!(kept.ack(), expired(1));
    extended.ack().unwrap();
    assert_eq!(sub.stats().acked, 100, "the last one by a late ack, after the temporary's nack");
}

#[test]
fn p08_a_batch_ack_says_how_many_were_not_settled_and_settles_the_others() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..10).unwrap();
    let late = sub.try_recv_batch(10).unwrap();
    clock.advance(DEADLINE);
    let mut held = vec![take(&sub), take(&sub), take(&sub)];
    held.pop().unwrap().ack().unwrap();
    assert_eq!(late.ack(), expired(3), "two are another's, one is settled, seven are taken late");
    assert_eq!((sub.stats().acked, sub.stats().outstanding, sub.stats().backlog), (8, 2, 2));
    assert_empty(&sub);
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
}

#[test]
fn p08_a_late_batch_is_refused_whole_in_exactly_once_mode() {
    let Desk { clock, topic, sub, .. } =
        desk_with::<u64>(|options| options.delivery(DeliveryMode::ExactlyOnce));
    topic.publish_all(0..6).unwrap();
    let in_time = sub.try_recv_batch(3).unwrap();
    let late = sub.try_recv_batch(3).unwrap();
    clock.advance(DEADLINE - NANO);
    assert_eq!(in_time.ack(), Ok(()));
    clock.advance(NANO);
    assert_eq!(late.ack(), expired(3));
    assert_eq!((sub.stats().acked, sub.stats().backlog), (3, 3));
    assert_eq!(drain(&sub), [3, 4, 5]);
}

#[test]
fn p08_a_stale_batch_nack_or_release_changes_nothing() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..9).unwrap();
    let [nacked, released, dropped] = [0, 1, 2].map(|_| sub.try_recv_batch(3).unwrap());
    clock.advance(DEADLINE);
    let held: Vec<_> = (0..9).map(|_| take(&sub)).collect();
    assert_eq!(nacked.nack(), expired(3));
    assert_eq!(released.release(), expired(3));
    drop(dropped.into_iter());
    assert_eq!((sub.stats().nacked, sub.stats().released, sub.stats().outstanding), (0, 0, 9));
    assert_empty(&sub);
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
}

#[test]
fn p08_a_batch_in_part_stale_nacks_or_releases_what_it_still_holds() {
    let ways: [(Way, u32); 2] = [(Batch::nack, 2), (Batch::release, 1)];
    for (way, attempt) in ways {
        let (broker, _) = manual();
        let capacity = Capacity::messages(4).overflow(Overflow::DropOldest);
        let topic = broker.topic::<u64>("topic").capacity(capacity).create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        topic.publish_all(0..4).unwrap();
        let batch = sub.try_recv_batch(4).unwrap();
        // Drops 0 and 1, and so ends their leases.
        topic.publish_all([4, 5]).unwrap();
        assert_eq!(way(batch), expired(2));
        let mut back = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
        back.sort();
        assert_eq!(back, [(2, attempt), (3, attempt), (4, 1), (5, 1)]);
    }
}

#[test]
fn p08_a_seek_makes_a_whole_batch_stale() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..4).unwrap();
    let batch = sub.try_recv_batch(4).unwrap();
    sub.seek(Seek::Sequence(3)).unwrap();
    assert_eq!(batch.ack(), expired(4));
    assert_eq!(drain_with(&sub, |delivery| (**delivery, delivery.attempt())), [(2, 1), (3, 1)]);
}

#[test]
fn p07_a_thread_that_panics_between_two_messages_of_a_batch_loses_none() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    let reader = sub.clone();
    let thread = std::thread::spawn(move || {
        let mut batch = reader.try_recv_batch(5).unwrap();
        batch.pop().unwrap().ack().unwrap();
        let _held = batch.pop();
        panic!("between two messages");
    });
    assert!(thread.join().is_err());
    let mut back = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    back.sort();
    assert_eq!(back, [(1, 2), (2, 2), (3, 2), (4, 2)]);
}

#[test]
fn batches_of_two_subscriptions_do_not_touch_each_other() {
    let Desk { topic, sub: a, .. } = desk::<u64>();
    let b = topic.subscription("b").create().unwrap();
    topic.publish_all(0..70).unwrap();
    let (of_a, of_b) = (a.try_recv_batch(70).unwrap(), b.try_recv_batch(70).unwrap());
    of_a.ack().unwrap();
    assert_eq!((a.stats().backlog, b.stats().outstanding), (0, 70));
    of_b.release().unwrap();
    assert_eq!(drain(&b).len(), 70);
}

#[test]
fn p08_the_members_of_one_batch_settle_from_many_threads_at_once() {
    within(PATIENCE, || {
        for _ in 0..20 {
            let Desk { topic, sub, .. } = desk::<u64>();
            topic.publish_all(0..240).unwrap();
            let mut members: Vec<_> = sub.try_recv_batch(240).unwrap().into_iter().collect();
            let mut threads = Vec::new();
            while !members.is_empty() {
                let own = members.split_off(members.len() - 60);
                threads.push(ask(move || {
                    for delivery in own {
                        match *delivery % 4 {
                            0 => delivery.nack().unwrap(),
                            1 => delivery.release().unwrap(),
                            _ => delivery.ack().unwrap(),
                        }
                    }
                }));
            }
            threads.into_iter().for_each(|thread| thread.get());
            let stats = sub.stats();
            assert_eq!((stats.acked, stats.nacked, stats.released, stats.outstanding), (120, 60, 60, 0));
            assert_eq!((stats.backlog, drain(&sub).len()), (120, 120));
        }
    });
}
