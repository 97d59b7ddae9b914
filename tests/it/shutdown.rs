//! The end of a broker: who wakes, what may still be settled, what the report says, and what every handle says after it.

use std::time::Duration;

use eventflow::{
    Capacity, CreateError, DeleteError, PublishError, PublishErrorKind, RecvError, RecvTimeoutError, Seek,
    SeekError, SettleError, TryRecvError, UpdateError,
};

use crate::support::{
    Broker, DEADLINE, Desk, Drops, PATIENCE, SECOND, ask, assert_empty, desk, drain, manual, send, take,
    within,
};

const LONG: Duration = Duration::from_secs(PATIENCE);

#[test]
fn an_idle_broker_shuts_down_at_once_with_nothing_left() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    assert_eq!(drain(&sub), [1]);
    let report = within(PATIENCE / 2, move || broker.shutdown(Duration::MAX).unwrap());
    assert_eq!((report.outstanding, report.backlog), (0, 0));
}

#[test]
fn waiting_messages_do_not_hold_up_a_shutdown_and_are_reported() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    let other = topic.subscription("other").create().unwrap();
    topic.publish_all(0..5).unwrap();
    assert_eq!(drain(&other).len(), 5);
    take(&sub).ack().unwrap();
    let report = within(PATIENCE / 2, move || broker.shutdown(LONG).unwrap());
    assert_eq!((report.outstanding, report.backlog), (0, 4));
}

#[test]
fn without_time_a_shutdown_reports_what_is_outstanding() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..5).unwrap();
    let (one, batch) = (take(&sub), sub.try_recv_batch(2).unwrap());
    let report = broker.shutdown(Duration::ZERO).unwrap();
    assert_eq!((report.outstanding, report.backlog), (3, 5), "the backlog holds what is outstanding");
    assert_eq!(*one, 0, "a live delivery still shows its event");
    assert_eq!(one.ack(), Err(SettleError::Closed));
    assert_eq!(batch.ack(), Err(SettleError::Closed));
}

/// Waits until the broker takes nothing more.
fn closing(topic: &eventflow::Topic<u64>) {
    while topic.try_publish(99).is_ok() {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_outstanding_may_be_settled_until_the_timeout_and_the_shutdown_waits_no_longer() {
    within(PATIENCE, || {
        let Desk { broker, topic, sub, .. } = desk::<u64>();
        topic.publish_all(0..6).unwrap();
        let held: Vec<_> = (0..4).map(|_| take(&sub)).collect();
        let batch = sub.try_recv_batch(2).unwrap();
        let ending = ask(move || broker.shutdown(Duration::MAX).unwrap());
        closing(&topic);
        assert!(matches!(sub.try_recv(), Err(TryRecvError::Closed)), "no new leases");
        let mut held = held.into_iter();
        let mut next = || held.next().unwrap();
        next().extend(DEADLINE).unwrap();
        assert_eq!(next().ack(), Ok(()));
        assert_eq!(next().nack(), Ok(()));
        assert_eq!(next().release(), Ok(()));
        ending.assert_pending();
        assert_eq!(batch.ack(), Ok(()));
        let report = ending.get();
        // 0 was dropped after its extension, 2 was nacked, 3 was released; and what `closing` still got in.
        assert_eq!(report.outstanding, 0);
        assert!(report.backlog >= 3, "{}", report.backlog);
        assert_eq!(sub.stats().acked, 3);
    });
}

#[test]
fn the_expiry_of_the_last_lease_ends_the_waiting() {
    within(PATIENCE, || {
        let Desk { broker, clock, topic, sub } = desk::<u64>();
        topic.publish(1).unwrap();
        let held = take(&sub);
        let ending = ask(move || broker.shutdown(Duration::MAX).unwrap());
        closing(&topic);
        ending.assert_pending();
        clock.advance(DEADLINE);
        assert_eq!(ending.get().outstanding, 0);
        assert_eq!(held.ack(), Err(SettleError::Closed));
    });
}

#[test]
fn every_kind_of_receiver_wakes_with_closed() {
    let Desk { broker, sub, .. } = desk::<u64>();
    let [a, b, c, d] = [(); 4].map(|()| sub.clone());
    let one = ask(move || a.recv().map(drop));
    let timed = ask(move || b.recv_timeout(Duration::MAX).map(drop));
    let batch = ask(move || c.recv_batch(2).map(drop));
    let iterated = ask(move || d.iter().next().is_none());
    timed.assert_pending();
    iterated.assert_pending();
    broker.shutdown(Duration::ZERO).unwrap();
    assert_eq!(one.get(), Err(RecvError::Closed));
    assert_eq!(timed.get(), Err(RecvTimeoutError::Closed));
    assert_eq!(batch.get(), Err(RecvError::Closed));
    assert!(iterated.get());
}

#[test]
fn receivers_wake_when_the_shutdown_begins_not_when_it_ends() {
    within(PATIENCE, || {
        let Desk { broker, topic, sub, .. } = desk::<u64>();
        topic.publish(1).unwrap();
        let held = take(&sub);
        let waiter = ask({
            let sub = sub.clone();
            move || sub.recv().map(drop)
        });
        waiter.assert_pending();
        let ending = ask(move || broker.shutdown(Duration::MAX).unwrap());
        assert_eq!(waiter.get(), Err(RecvError::Closed));
        ending.assert_pending();
        held.ack().unwrap();
        assert_eq!(ending.get().backlog, 0);
    });
}

#[test]
fn p02_blocked_publishers_wake_with_closed_and_their_message() {
    let (broker, _) = manual();
    let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("sub").create().unwrap();
    topic.publish(1).unwrap();
    let [a, b, c] = [(); 3].map(|()| topic.clone());
    let plain = ask(move || a.publish(2).map(drop).unwrap_err());
    let timed = ask(move || b.publish_timeout(3, Duration::MAX).map(drop).unwrap_err());
    let batch = ask(move || c.publish_all([4]).map(drop).unwrap_err());
    plain.assert_pending();
    batch.assert_pending();
    broker.shutdown(Duration::ZERO).unwrap();
    assert!(matches!(plain.get(), PublishError::Closed(m) if *m.event() == 2));
    assert!(matches!(timed.get(), PublishError::Closed(m) if *m.event() == 3));
    let error = batch.get();
    assert!(matches!(error.kind, PublishErrorKind::Closed) && error.messages.len() == 1);
    assert_eq!((topic.stats().published, sub.stats().backlog), (1, 1));
}

#[test]
fn after_a_shutdown_every_handle_says_closed_and_none_hangs() {
    within(PATIENCE, || {
        let Desk { broker, topic, sub, .. } = desk::<u64>();
        topic.publish_all(0..3).unwrap();
        broker.shutdown(Duration::ZERO).unwrap();
        assert!(matches!(topic.publish(1), Err(PublishError::Closed(m)) if *m.event() == 1));
        assert!(matches!(topic.try_publish(1), Err(PublishError::Closed(_))));
        assert!(matches!(topic.publish_timeout(1, SECOND), Err(PublishError::Closed(_))));
        assert!(matches!(topic.publish_all([1]).unwrap_err().kind, PublishErrorKind::Closed));
        assert!(matches!(topic.publish_all(Vec::<u64>::new()), Ok(_) | Err(_)));
        assert_eq!(sub.recv().map(drop), Err(RecvError::Closed));
        assert_eq!(sub.try_recv().map(drop), Err(TryRecvError::Closed));
        assert_eq!(sub.recv_timeout(Duration::MAX).map(drop), Err(RecvTimeoutError::Closed));
        assert_eq!(sub.recv_batch(1).map(drop), Err(RecvError::Closed));
        assert_eq!(sub.try_recv_batch(1).map(drop), Err(TryRecvError::Closed));
        assert!(sub.iter().next().is_none());
        assert!(sub.channel(1).recv().is_err());
        assert!(matches!(broker.topic::<u64>("topic").open(), Err(CreateError::Closed)));
        assert!(matches!(broker.topic::<u64>("new").create(), Err(CreateError::Closed)));
        assert!(matches!(topic.subscription("sub").open(), Err(CreateError::Closed)));
        assert!(matches!(topic.subscription("new").create(), Err(CreateError::Closed)));
        assert!(matches!(sub.snapshot("snapshot"), Err(CreateError::Closed)));
        assert_eq!(sub.seek(Seek::Earliest), Err(SeekError::Closed));
        assert!(matches!(sub.delete(), Err(DeleteError::Closed)));
        assert!(matches!(broker.delete_topic("topic"), Err(DeleteError::Closed)));
        assert!(matches!(broker.delete_snapshot("snapshot"), Err(DeleteError::Closed)));
        assert!(sub.pause().is_err() && sub.resume().is_err());
        assert!(matches!(topic.update().capacity(Capacity::messages(1)).apply(), Err(UpdateError::Closed)));
        assert!(matches!(sub.update().max_outstanding(1).apply(), Err(UpdateError::Closed)));
        let _ = (broker.topics(), topic.subscriptions(), broker.snapshots(), broker.capabilities());
        let _ = (broker.stats(), topic.stats(), sub.stats());
    });
}

#[cfg(feature = "async")]
#[test]
fn after_a_shutdown_every_future_says_closed() {
    use crate::support::Task;
    use futures::StreamExt;
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let held = take(&sub);
    broker.shutdown(Duration::ZERO).unwrap();
    assert!(matches!(Task::new(topic.publish_async(1)).ready(), Err(PublishError::Closed(_))));
    assert!(matches!(Task::new(sub.recv_async()).ready(), Err(RecvError::Closed)));
    assert!(Task::new(sub.stream().next()).ready().is_none());
    assert_eq!(Task::new(held.ack_async()).ready(), Err(SettleError::Closed));
}

#[test]
fn every_settlement_after_a_shutdown_is_closed() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..8).unwrap();
    let held: Vec<_> = (0..5).map(|_| take(&sub)).collect();
    let (nacked, released) = (sub.try_recv_batch(1).unwrap(), sub.try_recv_batch(1).unwrap());
    broker.shutdown(Duration::ZERO).unwrap();
    let mut held = held.into_iter();
    let mut next = || held.next().unwrap();
    assert_eq!(next().nack(), Err(SettleError::Closed));
    assert_eq!(next().nack_after(SECOND), Err(SettleError::Closed));
    assert_eq!(next().release(), Err(SettleError::Closed));
    assert_eq!(next().reject("no"), Err(SettleError::Closed));
    assert_eq!(next().extend(SECOND), Err(SettleError::Closed));
    assert_eq!(nacked.nack(), Err(SettleError::Closed));
    assert_eq!(released.release(), Err(SettleError::Closed));
}

#[test]
fn a_second_shutdown_neither_hangs_nor_panics_also_while_the_first_waits() {
    within(PATIENCE, || {
        let Desk { broker, topic, sub, .. } = desk::<u64>();
        topic.publish(1).unwrap();
        let held = take(&sub);
        let endings: Vec<_> = (0..3)
            .map(|_| {
                let broker = broker.clone();
                ask(move || broker.shutdown(Duration::MAX).map(drop))
            })
            .collect();
        closing(&topic);
        held.ack().unwrap();
        let answers: Vec<_> = endings.into_iter().map(|ending| ending.get()).collect();
        assert!(answers.iter().any(Result::is_ok));
        let _ = broker.shutdown(Duration::MAX);
    });
}

#[test]
fn a_shutdown_beside_busy_threads_ends_them_all() {
    within(PATIENCE, || {
        for _ in 0..20 {
            let broker = Broker::in_memory();
            let topic = broker.topic::<u64>("topic").capacity(Capacity::messages(16)).create().unwrap();
            let sub = topic.subscription("sub").create().unwrap();
            let publishers: Vec<_> = (0..3)
                .map(|_| {
                    let topic = topic.clone();
                    ask(move || {
                        let mut published = 0_u64;
                        while topic.publish(published).is_ok() {
                            published += 1;
                        }
                        published
                    })
                })
                .collect();
            let receivers: Vec<_> = (0..3)
                .map(|_| {
                    let sub = sub.clone();
                    ask(move || {
                        let mut acked = 0_u64;
                        while let Ok(delivery) = sub.recv() {
                            acked += u64::from(delivery.ack().is_ok());
                        }
                        acked
                    })
                })
                .collect();
            while sub.stats().acked < 100 {
                std::thread::yield_now();
            }
            let report = broker.shutdown(LONG).unwrap();
            let published: u64 = publishers.into_iter().map(|publisher| publisher.get()).sum();
            let acked: u64 = receivers.into_iter().map(|receiver| receiver.get()).sum();
            assert_eq!(report.outstanding, 0);
            assert_eq!(published, acked + report.backlog, "what was published is acked or reported");
        }
    });
}

#[test]
fn dropping_the_last_handle_closes_without_waiting() {
    let Desk { broker, clock, topic, sub } = desk();
    let drops = Drops::default();
    (0..5).for_each(|n| send(&topic, drops.event(n)));
    let (held, batch) = (take(&sub), sub.try_recv_batch(2).unwrap());
    within(PATIENCE, move || drop((broker, topic, sub)));
    assert_eq!(held.number, 0);
    assert_eq!(held.ack(), Err(SettleError::Closed));
    assert_eq!(batch.ack(), Err(SettleError::Closed));
    clock.advance(DEADLINE);
    assert_eq!(drops.count(), 5, "nothing is kept for nobody");
}

#[test]
fn any_one_handle_keeps_the_broker_open() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    drop(broker);
    topic.publish(1).unwrap();
    assert_eq!(drain(&sub), [1]);
    topic.publish(2).unwrap();
    drop(topic);
    let held = take(&sub);
    held.ack().unwrap();
    assert_empty(&sub);
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    drop((broker, sub));
    topic.publish(3).unwrap();
    assert_eq!(drain(&topic.subscription("sub").open().unwrap()), [3]);
}

#[test]
fn the_drop_of_the_last_handle_disconnects_what_is_left_of_it() {
    within(PATIENCE, || {
        let Desk { broker, topic, sub, .. } = desk::<u64>();
        let ready = sub.ready();
        drop((broker, topic, sub));
        let told = ready.recv_timeout(LONG);
        assert_ne!(told, Err(crossbeam_channel::RecvTimeoutError::Timeout), "a token or a disconnection");
    });
}

#[test]
fn a_delivery_dropped_on_a_closed_broker_is_quiet() {
    let Desk { broker, topic, sub, .. } = desk::<u64>();
    topic.publish_all(0..4).unwrap();
    let (one, batch, mut rest) =
        (take(&sub), sub.try_recv_batch(1).unwrap(), sub.try_recv_batch(2).unwrap().into_iter());
    let yielded = rest.next().unwrap();
    broker.shutdown(Duration::ZERO).unwrap();
    drop((one, batch, rest, yielded));
}

#[test]
fn p23_in_closing_time_still_passes_only_in_advance() {
    within(PATIENCE, || {
        let Desk { broker, clock, topic, sub } = desk::<u64>();
        topic.publish(1).unwrap();
        let held = take(&sub);
        let before = clock.now();
        let report = broker.shutdown(Duration::from_millis(20)).unwrap();
        assert_eq!((report.outstanding, clock.now()), (1, before), "the timeout itself is real time");
        assert_eq!(held.ack(), Err(SettleError::Closed));
    });
}
