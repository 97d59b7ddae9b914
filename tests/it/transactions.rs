//! Transactions: acks and publishes that take effect together or not at all.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use eventflow::{
    Capacity, CommitReason, DeadLetter, DedupWindow, DeliveryMode, Message, Overflow, Receipt, Retention,
    Seek, Start, Subscription, Topic, Transaction, TryRecvError,
};

use crate::support::{DEADLINE, Desk, SECOND, desk, desk_with, manual, send, take};

/// A [`Desk`] whose messages are numbers, and a topic of results with a reader.
fn bench() -> (Desk<u32>, Topic<u32>, Subscription<u32>) {
    bench_with(|options| options)
}

fn bench_with(
    options: impl FnOnce(eventflow::SubscriptionBuilder<u32>) -> eventflow::SubscriptionBuilder<u32>,
) -> (Desk<u32>, Topic<u32>, Subscription<u32>) {
    let desk = desk_with(options);
    let results = desk.broker.topic::<u32>("results").create().expect("a new topic");
    let reader = results.subscription("reader").create().expect("a new subscription");
    (desk, results, reader)
}

/// A transaction of one ack and one publish, to a topic of results that is full.
fn squeeze() -> (Desk<u32>, Subscription<u32>, Transaction) {
    let (desk, results, reader) = bench();
    results.update().capacity(Capacity::messages(1)).apply().expect("a good option");
    send(&results, 0);
    send(&desk.topic, 1);
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&results, 2);
    (desk, reader, tx)
}

/// Commits on a thread of its own, and tells how it ended.
fn commit_elsewhere(tx: Transaction) -> mpsc::Receiver<Result<Vec<Receipt>, CommitReason>> {
    let (done, answer) = mpsc::channel();
    thread::spawn(move || done.send(tx.commit().map_err(|error| error.reason)));
    answer
}

fn is_empty(sub: &Subscription<u32>) -> bool {
    matches!(sub.try_recv(), Err(TryRecvError::Empty))
}

#[test]
fn p16_a_commit_settles_the_input_and_publishes_the_output() {
    let (desk, results, reader) = bench();
    send(&desk.topic, 7);
    let input = take(&desk.sub);
    let mut tx = desk.broker.transaction();
    tx.publish(&results, *input * 2);
    tx.ack(input);
    assert!(is_empty(&reader), "nothing is seen before the commit");
    let receipts = tx.commit().expect("it commits");
    assert_eq!(receipts.len(), 1);
    let output = take(&reader);
    assert_eq!((*output, output.id()), (14, receipts[0].id));
    desk.clock.advance(DEADLINE);
    assert!(is_empty(&desk.sub));
    let stats = desk.sub.stats();
    assert_eq!((stats.backlog, stats.acked, stats.outstanding), (0, 1, 0));
}

#[test]
fn p05_a_dropped_transaction_nacks_and_publishes_nothing() {
    let (desk, results, reader) = bench();
    send(&desk.topic, 7);
    for attempt in 1..=2 {
        let input = take(&desk.sub);
        assert_eq!(input.attempt(), attempt);
        let mut tx = desk.broker.transaction();
        tx.publish(&results, 1);
        tx.ack(input);
        if attempt == 1 { drop(tx) } else { tx.rollback() }
    }
    assert!(is_empty(&reader));
    assert_eq!(desk.sub.stats().nacked, 2);
    assert_eq!(take(&desk.sub).attempt(), 3);
}

#[test]
fn p08_a_lease_that_ended_fails_the_whole_by_the_clock() {
    let (desk, results, reader) = bench();
    send(&desk.topic, 1);
    let early = take(&desk.sub);
    desk.clock.advance(SECOND);
    send(&desk.topic, 2);
    let late = take(&desk.sub);
    let mut tx = desk.broker.transaction();
    tx.ack(early);
    tx.ack(late);
    tx.publish(&results, 3);
    desk.clock.advance(DEADLINE - SECOND);
    let failed = tx.commit().expect_err("a lease has ended");
    assert_eq!(failed.reason, CommitReason::LeaseExpired { count: 1 });
    assert!(is_empty(&reader));
    assert_eq!(desk.sub.stats().acked, 0);
    // The other lease runs on until the transaction goes.
    assert_eq!(desk.sub.stats().outstanding, 1);
    drop(failed);
    assert_eq!(desk.sub.stats().outstanding, 0);
    assert_eq!((*take(&desk.sub), *take(&desk.sub)), (1, 2));
}

#[test]
fn receipts_come_in_the_order_of_the_publishes() {
    let (desk, results, _reader) = bench();
    let mut tx = desk.broker.transaction();
    for n in 0..3 {
        tx.publish(&results, n);
        tx.publish(&desk.topic, n);
    }
    let receipts = tx.commit().expect("it commits");
    let sequences: Vec<_> = receipts.iter().map(|receipt| receipt.id.sequence()).collect();
    assert_eq!(sequences, [1, 1, 2, 2, 3, 3]);
    assert_eq!(receipts[0].id.incarnation(), receipts[2].id.incarnation());
    assert_ne!(receipts[0].id.incarnation(), receipts[1].id.incarnation());
}

#[test]
fn a_full_topic_counts_net_of_what_the_transaction_acks() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u32>("topic").capacity(Capacity::messages(2)).create().expect("new");
    let sub = topic.subscription("sub").create().expect("new");
    send(&topic, 1);
    send(&topic, 2);
    let mut tx = broker.transaction();
    tx.ack(take(&sub));
    tx.publish(&topic, 3);
    tx.try_commit().expect("what it acks makes room for what it publishes");
    let mut tx = broker.transaction();
    tx.ack(take(&sub));
    tx.publish(&topic, 4);
    tx.publish(&topic, 5);
    let failed = tx.try_commit().expect_err("one goes, two come");
    assert_eq!(failed.reason, CommitReason::Full);
    let mut tx = failed.transaction;
    tx.ack(take(&sub));
    tx.try_commit().expect("two go, two come");
    assert_eq!((*take(&sub), *take(&sub)), (4, 5));
}

#[test]
fn lack_of_space_spends_no_attempt() {
    let (desk, results, reader) = bench_with(|options| options.dead_letter(DeadLetter::discard().after(2)));
    results.update().capacity(Capacity::messages(1)).apply().expect("a good option");
    send(&results, 0);
    send(&desk.topic, 1);
    for _ in 0..5 {
        let input = take(&desk.sub);
        assert_eq!(input.attempt(), 1);
        let mut tx = desk.broker.transaction();
        tx.ack(input);
        tx.publish(&results, 2);
        let failed = tx.try_commit().expect_err("the topic is full");
        assert_eq!(failed.reason, CommitReason::Full);
    }
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&results, 2);
    let failed = tx.try_commit().expect_err("the topic is full");
    take(&reader).ack().expect("leased");
    failed.transaction.commit().expect("there is space now");
    assert_eq!(*take(&reader), 2);
    assert_eq!(desk.sub.stats().backlog, 0);
}

#[test]
fn a_commit_waits_for_space_until_its_first_lease_would_end() {
    let (desk, reader, tx) = squeeze();
    let answer = commit_elsewhere(tx);
    assert!(answer.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
    desk.clock.advance(DEADLINE);
    let answered = answer.recv_timeout(Duration::from_secs(60)).expect("it gave up");
    assert_eq!(answered.expect_err("no space"), CommitReason::Full);
    let again = take(&desk.sub);
    assert_eq!(again.attempt(), 1, "lack of space spends no attempt");
    assert_eq!(desk.sub.stats().leases_expired, 0);
    assert_eq!(*take(&reader), 0);
}

#[test]
fn a_commit_that_waits_goes_on_when_there_is_space() {
    let (_desk, reader, tx) = squeeze();
    let answer = commit_elsewhere(tx);
    take(&reader).ack().expect("leased");
    let answered = answer.recv_timeout(Duration::from_secs(60)).expect("it went on");
    assert_eq!(answered.expect("it commits").len(), 1);
    assert_eq!(*take(&reader), 2);
}

#[test]
fn overflow_reject_is_full_at_once_and_drop_oldest_drops() {
    let (desk, results, reader) = bench();
    results.update().capacity(Capacity::messages(1).overflow(Overflow::Reject)).apply().expect("good");
    send(&results, 0);
    let mut tx = desk.broker.transaction();
    tx.publish(&results, 1);
    let failed = tx.commit().expect_err("it does not wait");
    assert_eq!(failed.reason, CommitReason::Full);
    results.update().capacity(Capacity::messages(1).overflow(Overflow::DropOldest)).apply().expect("good");
    failed.transaction.commit().expect("the oldest goes");
    assert_eq!(*take(&reader), 1);
    assert_eq!(results.stats().dropped, 1);
}

#[test]
fn what_can_never_fit_is_too_large_at_once() {
    let (desk, results, _reader) = bench();
    results.update().capacity(Capacity::messages(1)).apply().expect("a good option");
    let mut tx = desk.broker.transaction();
    tx.publish(&results, 1);
    tx.publish(&results, 2);
    assert_eq!(tx.commit().expect_err("never").reason, CommitReason::TooLarge);
}

#[test]
fn p14_an_idempotency_id_counts_in_a_transaction_too() {
    let broker = crate::support::Broker::in_memory();
    let notes = broker.topic::<String>("notes").create().expect("new");
    let reader = notes.subscription("reader").create().expect("new");
    let note = |text: &str| Message::new(text.to_owned()).idempotency_id("a");
    let first = notes.publish(note("x")).expect("new");
    let mut tx = broker.transaction();
    tx.publish(&notes, note("x"));
    tx.publish(&notes, "other");
    let receipts = tx.commit().expect("a repeat is no error");
    assert_eq!((receipts[0].id, receipts[0].deduplicated), (first.id, true));
    assert!(!receipts[1].deduplicated);
    let mut tx = broker.transaction();
    tx.publish(&notes, "never seen");
    tx.publish(&notes, note("y"));
    assert_eq!(tx.commit().expect_err("another message").reason, CommitReason::IdempotencyConflict);
    assert_eq!(reader.stats().backlog, 2);
}

#[test]
fn a_deleted_topic_or_subscription_fails_the_whole() {
    let (desk, results, _reader) = bench();
    let other = desk.broker.topic::<u32>("other").create().expect("new");
    let watcher = other.subscription("watcher").create().expect("new");
    send(&desk.topic, 1);
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&results, 1);
    tx.publish(&other, 1);
    desk.broker.delete_topic("results").expect("it is there");
    assert_eq!(tx.commit().expect_err("deleted").reason, CommitReason::TopicDeleted);
    assert!(is_empty(&watcher));

    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&other, 1);
    desk.sub.delete().expect("it is there");
    assert_eq!(tx.commit().expect_err("deleted").reason, CommitReason::SubscriptionDeleted);
    assert!(is_empty(&watcher));
}

#[test]
fn a_seek_ends_the_leases_of_a_transaction() {
    let (desk, results, reader) = bench();
    send(&desk.topic, 1);
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&results, 1);
    desk.sub.seek(Seek::Earliest).expect("sought");
    assert_eq!(tx.commit().expect_err("ended").reason, CommitReason::LeaseExpired { count: 1 });
    assert!(is_empty(&reader));
}

#[test]
fn p12_one_transaction_may_ack_a_whole_run_of_a_key_in_any_order_of_words() {
    let desk = desk_with::<u32>(|options| options.ordered());
    for n in 1..=3 {
        send(&desk.topic, Message::new(n).ordering_key("k"));
    }
    let mut batch: Vec<_> = desk.sub.try_recv_batch(3).expect("three").into_iter().collect();
    assert_eq!(batch.len(), 3);
    let third = batch.pop().expect("three");
    let second = batch.pop().expect("three");
    let mut tx = desk.broker.transaction();
    tx.ack(third);
    tx.ack(second);
    let failed = tx.commit().expect_err("the first is not among them");
    assert_eq!(failed.reason, CommitReason::LeaseExpired { count: 2 });
    let mut tx = failed.transaction;
    tx.ack(batch.pop().expect("three"));
    tx.commit().expect("all of the run");
    assert_eq!(desk.sub.stats().backlog, 0);
}

#[test]
fn a_delivery_that_its_hand_out_settled_adds_nothing() {
    let desk = desk_with::<u32>(|options| options.delivery(DeliveryMode::AtMostOnce));
    send(&desk.topic, 1);
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.commit().expect("nothing stands against it");
}

#[test]
fn an_empty_transaction_commits() {
    assert_eq!(desk::<u32>().broker.transaction().commit().expect("nothing to do"), []);
}

#[test]
fn a_delivery_or_topic_of_another_broker_is_refused_and_comes_back() {
    let (here, there) = (desk::<u32>(), desk::<u32>());
    send(&here.topic, 1);
    send(&there.topic, 2);
    let mut tx = here.broker.transaction();
    tx.ack(take(&there.sub));
    tx.ack(take(&here.sub));
    let failed = tx.commit().expect_err("of two brokers");
    assert_eq!(failed.reason, CommitReason::OtherBroker);
    drop(failed);
    assert_eq!((*take(&here.sub), *take(&there.sub)), (1, 2));
    let mut tx = here.broker.transaction();
    tx.publish(&there.topic, 3);
    assert_eq!(tx.commit().expect_err("of two brokers").reason, CommitReason::OtherBroker);
    assert_eq!(there.topic.stats().published, 1);
}

#[test]
fn while_the_broker_shuts_down_what_is_outstanding_may_be_committed() {
    let (desk, results, _reader) = bench();
    let kept = desk.broker.topic::<u32>("kept").retention(Retention::forever()).create().expect("new");
    send(&desk.topic, 1);
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&kept, 1);
    let mut other = desk.broker.transaction();
    other.publish(&results, 1);
    let broker = desk.broker.clone();
    let (done, report) = mpsc::channel();
    thread::spawn(move || done.send(broker.shutdown(Duration::from_secs(60))));
    while !matches!(desk.sub.try_recv(), Err(TryRecvError::Closed)) {
        thread::yield_now();
    }
    assert_eq!(other.commit().expect_err("a new publish").reason, CommitReason::Closed);
    tx.commit().expect("outstanding work");
    let report = report.recv_timeout(Duration::from_secs(60)).expect("it ends").expect("the first shutdown");
    assert_eq!(report.outstanding, 0);
    let tx = desk.broker.transaction();
    assert_eq!(tx.commit().expect_err("closed").reason, CommitReason::Closed);
}

#[test]
fn a_transaction_of_a_message_and_its_copy_on_two_subscriptions() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u32>("topic").capacity(Capacity::messages(1)).create().expect("new");
    let (a, b) =
        (topic.subscription("a").create().expect("new"), topic.subscription("b").create().expect("new"));
    send(&topic, 1);
    let mut tx = broker.transaction();
    tx.ack(take(&a));
    tx.publish(&topic, 2);
    let failed = tx.try_commit().expect_err("b has it still");
    let mut tx = failed.transaction;
    tx.ack(take(&b));
    tx.try_commit().expect("the last of it goes");
    assert_eq!((*take(&a), *take(&b)), (2, 2));
    assert_eq!(topic.subscription("late").start(Start::Earliest).create().expect("new").stats().backlog, 1);
}

#[cfg(feature = "async")]
#[test]
fn a_dropped_commit_future_rolls_back() {
    let (desk, reader, tx) = squeeze();
    let mut commit = Box::pin(tx.commit_async());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(commit.as_mut().poll(&mut context).is_pending());
    drop(commit);
    assert_eq!(take(&desk.sub).attempt(), 1);
    assert_eq!((reader.stats().backlog, *take(&reader)), (1, 0));
}

#[cfg(feature = "async")]
#[test]
fn a_commit_future_wakes_for_space_and_for_its_first_deadline() {
    let (desk, results, reader) = bench();
    results.update().capacity(Capacity::messages(1)).apply().expect("a good option");
    for has_space in [true, false] {
        send(&results, 0);
        send(&desk.topic, 1);
        let mut tx = desk.broker.transaction();
        tx.ack(take(&desk.sub));
        tx.publish(&results, 2);
        let (done, answer) = mpsc::channel();
        thread::spawn(move || {
            let committed = futures::executor::block_on(tx.commit_async());
            done.send(committed.map_err(|error| error.reason))
        });
        assert!(answer.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
        if has_space {
            take(&reader).ack().expect("leased");
        } else {
            desk.clock.advance(DEADLINE);
        }
        let answered = answer.recv_timeout(Duration::from_secs(60)).expect("it was woken");
        assert_eq!(answered.is_ok(), has_space);
        while let Ok(delivery) = reader.try_recv() {
            delivery.ack().expect("leased");
        }
    }
}

#[test]
fn deliveries_that_join_after_a_full_commit_are_spared_too() {
    let (desk, results, _reader) = bench();
    results.update().capacity(Capacity::messages(1)).apply().expect("a good option");
    send(&results, 0);
    send(&desk.topic, 1);
    send(&desk.topic, 2);
    let mut tx = desk.broker.transaction();
    tx.publish(&results, 3);
    for _ in 0..2 {
        tx.ack(take(&desk.sub));
        let failed = tx.try_commit().expect_err("the topic is full");
        assert_eq!(failed.reason, CommitReason::Full);
        tx = failed.transaction;
    }
    desk.clock.advance(DEADLINE);
    assert_eq!((take(&desk.sub).attempt(), take(&desk.sub).attempt()), (1, 1));
    assert_eq!(desk.sub.stats().leases_expired, 0);
}

#[test]
fn a_delivery_that_its_hand_out_settled_neither_fails_a_commit_nor_counts_as_outstanding_work() {
    let (desk, results, reader) = bench_with(|options| options.delivery(DeliveryMode::AtMostOnce));
    send(&desk.topic, 1);
    let mut tx = desk.broker.transaction();
    tx.ack(take(&desk.sub));
    tx.publish(&results, 2);
    desk.sub.delete().expect("it is there");
    tx.commit().expect("nothing of it is needed");
    assert_eq!(*take(&reader), 2);
}

#[test]
fn drop_oldest_spares_what_the_transaction_acks() {
    let (broker, _clock) = manual();
    let limit = Capacity::messages(2).overflow(Overflow::DropOldest);
    let topic = broker.topic::<u32>("topic").capacity(limit).create().expect("new");
    let sub = topic.subscription("sub").create().expect("new");
    send(&topic, 1);
    send(&topic, 2);
    let mut tx = broker.transaction();
    tx.ack(take(&sub));
    tx.publish(&topic, 3);
    tx.publish(&topic, 4);
    tx.commit().expect("the one that is not its own goes");
    assert_eq!(topic.stats().dropped, 1);
    assert_eq!((*take(&sub), *take(&sub)), (3, 4));
}

#[test]
fn nothing_is_dropped_for_a_commit_that_another_topic_stands_against() {
    let (broker, _clock) = manual();
    let drops = Capacity::messages(1).overflow(Overflow::DropOldest);
    let loose = broker.topic::<u32>("loose").capacity(drops).create().expect("new");
    let tight = broker.topic::<u32>("tight").capacity(Capacity::messages(1)).create().expect("new");
    let readers = [&loose, &tight].map(|topic| topic.subscription("sub").create().expect("new"));
    send(&loose, 1);
    send(&tight, 1);
    let mut tx = broker.transaction();
    tx.publish(&loose, 2);
    tx.publish(&tight, 2);
    assert_eq!(tx.try_commit().expect_err("tight is full").reason, CommitReason::Full);
    assert_eq!((loose.stats().dropped, *take(&readers[0])), (0, 1));
}

#[test]
fn a_retry_after_dedup_was_turned_off_publishes() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<String>("topic").create().expect("new");
    let full = broker.topic::<u32>("full").capacity(Capacity::messages(1)).create().expect("new");
    let (reader, other) =
        (topic.subscription("sub").create().expect("new"), full.subscription("sub").create().expect("new"));
    let note = || Message::new("x".to_owned()).idempotency_id("a");
    send(&topic, note());
    send(&full, 0);
    let mut tx = broker.transaction();
    tx.publish(&topic, note());
    tx.publish(&full, 1);
    let failed = tx.try_commit().expect_err("full");
    topic.update().dedup(DedupWindow::off()).apply().expect("a good option");
    take(&other).ack().expect("leased");
    let receipts = failed.transaction.commit().expect("there is space now");
    assert!(!receipts[0].deduplicated);
    assert_eq!(reader.stats().backlog, 2);
}

#[test]
fn a_commit_in_waiting_wakes_when_something_else_dooms_it() {
    for doom in 0..3 {
        let (desk, results, _reader) = bench();
        results.update().capacity(Capacity::messages(1)).apply().expect("a good option");
        let other = desk.broker.topic::<u32>("other").create().expect("new");
        send(&results, 0);
        send(&desk.topic, 1);
        let mut tx = desk.broker.transaction();
        tx.ack(take(&desk.sub));
        tx.publish(&results, 2);
        tx.publish(&other, 2);
        let answer = commit_elsewhere(tx);
        assert!(answer.recv_timeout(Duration::from_millis(30)).is_err(), "it waits");
        let expected = match doom {
            0 => {
                desk.broker.delete_topic("other").expect("it is there");
                CommitReason::TopicDeleted
            }
            1 => {
                desk.sub.delete().expect("it is there");
                CommitReason::SubscriptionDeleted
            }
            _ => {
                desk.sub.seek(Seek::Latest).expect("sought");
                CommitReason::LeaseExpired { count: 1 }
            }
        };
        let answered = answer.recv_timeout(Duration::from_secs(60)).expect("it was woken");
        assert_eq!(answered.expect_err("doomed"), expected);
    }
}

#[test]
fn p21_events_that_panic_when_they_are_dropped_are_rolled_back_one_by_one() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("an event's own drop");
        }
    }
    let broker = crate::support::Broker::in_memory();
    let bombs = broker.topic::<Bomb>("bombs").create().expect("new");
    let mut tx = broker.transaction();
    tx.publish(&bombs, Bomb);
    tx.publish(&bombs, Bomb);
    tx.rollback();
    let mut tx = broker.transaction();
    tx.publish(&bombs, Bomb);
    tx.publish(&bombs, Bomb);
    broker.delete_topic("bombs").expect("it is there");
    let error: eventflow::Error = tx.commit().expect_err("deleted").into();
    assert_eq!(error, eventflow::Error::Commit(CommitReason::TopicDeleted));
}

#[test]
fn a_commit_in_waiting_wakes_when_its_input_is_dropped() {
    let (broker, _clock) = manual();
    let drops = Capacity::messages(1).overflow(Overflow::DropOldest);
    let input = broker.topic::<u32>("input").capacity(drops).create().expect("new");
    let output = broker.topic::<u32>("output").capacity(Capacity::messages(1)).create().expect("new");
    let readers = [&input, &output].map(|topic| topic.subscription("sub").create().expect("new"));
    send(&input, 1);
    send(&output, 1);
    let mut tx = broker.transaction();
    tx.ack(take(&readers[0]));
    tx.publish(&output, 2);
    let answer = commit_elsewhere(tx);
    assert!(answer.recv_timeout(Duration::from_millis(30)).is_err(), "it waits");
    send(&input, 2);
    let answered = answer.recv_timeout(Duration::from_secs(60)).expect("it was woken");
    assert_eq!(answered.expect_err("dropped"), CommitReason::LeaseExpired { count: 1 });
}
