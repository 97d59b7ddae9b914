//! Subscriptions in `ExactlyOnce` mode: P15, and P8 as far as that mode is stricter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eventflow::{
    DedupWindow, DeliveryMode, Message, Retention, RetryPolicy, Seek, SettleError, TryRecvError,
};

use crate::support::{
    Answer, Broker, DEADLINE, Desk, NANO, Numbers, SECOND, ask, assert_empty, desk_with, drain, manual, take,
};

const EXPIRED: Result<(), SettleError> = Err(SettleError::LeaseExpired { count: 1 });

fn once() -> Desk<u64> {
    desk_with(|options| options.delivery(DeliveryMode::ExactlyOnce))
}

#[test]
fn p15_a_settled_message_is_never_delivered_again() {
    let desk = once();
    desk.topic.publish_all(0..5u64).unwrap();
    assert_eq!(drain(&desk.sub), [0, 1, 2, 3, 4]);
    desk.clock.advance(DEADLINE * 1_000);
    assert_empty(&desk.sub);
    assert_empty(&desk.topic.subscription("sub").open().unwrap());
}

#[test]
fn p15_until_its_deadline_a_lease_is_its_holders_alone() {
    let desk = once();
    let rival = desk.sub.clone();
    desk.topic.publish(7u64).unwrap();
    let delivery = take(&desk.sub);
    desk.clock.advance(DEADLINE - NANO);
    assert_empty(&rival);
    delivery.ack().unwrap();
    desk.clock.advance(DEADLINE);
    assert_empty(&rival);
}

#[test]
fn p15_an_ack_at_the_deadline_is_refused_and_the_message_comes_again() {
    let desk = once();
    desk.topic.publish(7u64).unwrap();
    let late = take(&desk.sub);
    desk.clock.advance(DEADLINE);
    assert_eq!(late.ack(), EXPIRED, "at least once would take it: nobody else holds the message");
    let again = take(&desk.sub);
    assert_eq!((*again, again.attempt()), (7, 2));
    again.ack().unwrap();
    assert_empty(&desk.sub);
    let stats = desk.sub.stats();
    assert_eq!((stats.acked, stats.leases_expired, stats.backlog), (1, 1, 0));
}

#[test]
fn p15_a_late_ack_is_refused_by_the_clock_though_nobody_has_noticed_the_expiry() {
    let broker = Broker::in_memory();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let deadline = Duration::from_millis(1);
    let options = topic.subscription("s").delivery(DeliveryMode::ExactlyOnce).ack_deadline(deadline);
    let sub = options.create().unwrap();
    topic.publish(7u64).unwrap();
    let late = sub.recv().unwrap();
    // No call goes to the broker meanwhile; only time passes.
    let leased = Instant::now();
    while leased.elapsed() <= deadline * 2 {
        std::hint::spin_loop();
    }
    assert_eq!(late.ack(), EXPIRED);
    // Somebody gets it; how often it expired on the way is the machine's affair.
    assert_eq!(*sub.recv().unwrap(), 7);
}

#[test]
fn p15_a_late_settling_of_any_kind_changes_nothing() {
    let desk = once();
    desk.topic.publish(7u64).unwrap();
    for attempt in 1..=5u32 {
        let stale = take(&desk.sub);
        assert_eq!(stale.attempt(), attempt);
        desk.clock.advance(DEADLINE);
        let holder = take(&desk.sub);
        assert_eq!(stale.extend(SECOND), EXPIRED);
        let outcome = match attempt {
            1 => stale.ack(),
            2 => stale.nack(),
            3 => stale.nack_after(SECOND),
            4 => stale.release(),
            _ => stale.reject("too late"),
        };
        assert_eq!(outcome, EXPIRED, "attempt {attempt}");
        assert_empty(&desk.sub);
        desk.clock.advance(DEADLINE - NANO);
        assert_empty(&desk.sub);
        // The holder's lease ran on, undisturbed; giving it back takes the attempt with it.
        holder.release().unwrap();
    }
    let last = take(&desk.sub);
    assert_eq!(last.attempt(), 6);
    last.ack().unwrap();
    assert_eq!(desk.sub.stats().discarded, 0);
}

#[test]
fn p15_a_batch_ack_at_the_deadline_counts_what_it_did_not_settle() {
    let desk = once();
    desk.topic.publish_all(0..3u64).unwrap();
    let mut batch = desk.sub.try_recv_batch(10).unwrap();
    assert_eq!(batch.len(), 3);
    let first = batch.pop().unwrap();
    first.extend(DEADLINE * 2).unwrap();
    desk.clock.advance(DEADLINE);
    assert_eq!(batch.ack(), Err(SettleError::LeaseExpired { count: 2 }));
    first.ack().unwrap();
    assert_eq!(drain(&desk.sub), [1, 2]);
}

#[test]
fn p15_an_extended_lease_is_measured_by_its_new_deadline() {
    let desk = once();
    desk.topic.publish_all([1u64, 2]).unwrap();
    let longer = take(&desk.sub);
    let shorter = take(&desk.sub);
    longer.extend(DEADLINE * 2).unwrap();
    shorter.extend(SECOND).unwrap();
    desk.clock.advance(SECOND);
    assert_eq!(shorter.ack(), EXPIRED);
    desk.clock.advance(DEADLINE * 2 - SECOND - NANO);
    longer.ack().unwrap();
    assert_eq!(drain(&desk.sub), [2]);
}

#[test]
fn p15_no_lease_outlives_a_seek() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").delivery(DeliveryMode::ExactlyOnce).create().unwrap();
    topic.publish(7u64).unwrap();
    let before = take(&sub);
    sub.seek(Seek::Earliest).unwrap();
    assert_eq!(before.ack(), EXPIRED);
    let after = take(&sub);
    assert_eq!(after.attempt(), 1);
    after.ack().unwrap();
    assert_empty(&sub);
}

#[test]
fn p15_a_nacked_message_waits_for_its_retry_and_comes_once() {
    let desk: Desk<u64> =
        desk_with(|options| options.delivery(DeliveryMode::ExactlyOnce).retry(RetryPolicy::fixed(SECOND)));
    let rival = desk.sub.clone();
    desk.topic.publish(7u64).unwrap();
    take(&desk.sub).nack().unwrap();
    desk.clock.advance(SECOND - NANO);
    assert_empty(&rival);
    desk.clock.advance(NANO);
    let held = take(&rival);
    assert_empty(&desk.sub);
    held.ack().unwrap();
    desk.clock.advance(DEADLINE);
    assert_empty(&desk.sub);
}

/// What the workers of a test did: per message, how many acks were taken.
#[derive(Default)]
struct Record {
    acked: Mutex<HashMap<u64, u32>>,
    settled: AtomicU64,
}

#[test]
fn p15_each_message_is_acked_once_by_workers_that_fail_in_every_way_while_time_runs() {
    const MESSAGES: u64 = 2_000;
    let (broker, clock) = manual();
    // However fast time runs: of two publishers one may fall far behind.
    let window = DedupWindow::time(Duration::MAX);
    let topic = broker.topic::<u64>("t").dedup(window).create().unwrap();
    let sub = topic.subscription("s").delivery(DeliveryMode::ExactlyOnce).create().unwrap();
    let record = Arc::new(Record::default());
    let workers: Vec<_> = (0..3u64)
        .map(|worker| {
            let (sub, record) = (sub.clone(), record.clone());
            ask(move || fail_often(&sub, &record, Numbers(worker), MESSAGES))
        })
        .collect();
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let topic = topic.clone();
            // Both publish all of them, as a publisher does that retries.
            ask(move || {
                for n in 0..MESSAGES {
                    topic.publish(Message::new(n).idempotency_id(format!("{n}"))).unwrap();
                }
            })
        })
        .collect();
    let over = Arc::new(AtomicBool::new(false));
    let time = ask({
        let (clock, over) = (clock.clone(), over.clone());
        move || {
            while !over.load(Ordering::SeqCst) {
                clock.advance(SECOND / 20);
                std::thread::yield_now();
            }
        }
    });
    publishers.into_iter().for_each(Answer::get);
    workers.into_iter().for_each(Answer::get);
    over.store(true, Ordering::SeqCst);
    time.get();
    let acked = record.acked.lock().unwrap();
    assert_eq!(acked.len() as u64, MESSAGES);
    assert!(acked.values().all(|count| *count == 1), "some message was settled twice");
    clock.advance(DEADLINE * 2);
    assert_empty(&sub);
    assert_eq!(sub.stats().acked, MESSAGES);
}

/// Receives until all is settled; two in three deliveries are nacked, dropped, given back, or held past their deadline.
fn fail_often(sub: &eventflow::Subscription<u64>, record: &Record, mut numbers: Numbers, messages: u64) {
    let mut held = Vec::new();
    while record.settled.load(Ordering::SeqCst) < messages {
        let delivery = match sub.try_recv() {
            Ok(delivery) => delivery,
            Err(TryRecvError::Empty) => {
                held.clear();
                std::thread::yield_now();
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        let number = *delivery;
        match numbers.below(9) {
            0 => drop(delivery),
            1 => _ = delivery.nack(),
            2 => _ = delivery.release(),
            3 => _ = delivery.extend(Duration::ZERO),
            4 => _ = delivery.nack_after(SECOND),
            5 => held.push(delivery),
            _ => {
                if delivery.ack().is_ok() {
                    *record.acked.lock().unwrap().entry(number).or_default() += 1;
                    record.settled.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }
}
