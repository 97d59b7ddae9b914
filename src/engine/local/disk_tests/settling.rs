//! What is settled where there is no space left, not even what is kept for acks: nobody is told that it is, and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use super::eventflow::{
    Broker, Delivery, DeliveryMode, ManualClock, Message, RecvError, SettleError, Subscription, Topic,
    TryRecvError,
};
use super::open;
use crate::error::StorageFault;
use crate::journal::disk::sim::{Full, SimDisk};

struct Desk {
    disk: SimDisk,
    broker: Broker,
    topic: Topic<String>,
    /// Its acks use up what is kept for acks.
    other: Subscription<String>,
    published: usize,
}

const WAYS: [Full; 2] = [Full::Refuses, Full::WritesShort];

impl Desk {
    fn new() -> Self {
        let disk = SimDisk::new();
        let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
        let topic: Topic<String> = broker.topic("t").open().expect("t");
        let other = topic.subscription("other").delivery(DeliveryMode::ExactlyOnce).open().expect("other");
        Desk { disk, broker, topic, other, published: 0 }
    }

    fn subscription(&self, mode: DeliveryMode) -> Subscription<String> {
        self.topic.subscription("s").delivery(mode).open().expect("s")
    }

    /// Publishes until there is no space, and then acks until there is none for acks either.
    fn fill(&mut self, full: Full) {
        while self.published < 1_000 {
            self.publish().expect("there is space");
        }
        // What checkpoints free on the way, somebody else takes.
        let disk = self.disk.clone();
        let take_all = || disk.set_capacity(disk.used(), full);
        take_all();
        while self.publish().is_ok() {
            take_all();
        }
        let mut refused = 0;
        while refused < 3 {
            take_all();
            let held = self.other.try_recv().expect("what is kept for acks is less than all of them need");
            if let Err(error) = held.ack() {
                let fault = fault_of(error);
                assert!(fault.is_full(), "{fault}");
                refused += 1;
            }
        }
        take_all();
    }

    fn publish(&mut self) -> Result<(), String> {
        let message = Message::new(self.published.to_string()).ordering_key("k");
        self.topic.publish(message).map_err(|error| error.to_string())?;
        self.published += 1;
        Ok(())
    }

    fn make_space(&self) {
        self.disk.set_capacity(u64::MAX, Full::Refuses);
    }

    /// What its subscription `s` has after a crash of the process.
    fn found_after_a_crash(&self) -> Vec<usize> {
        let disk = self.disk.fork();
        disk.set_capacity(u64::MAX, Full::Refuses);
        let broker = open(Arc::new(disk), &ManualClock::new()).expect("it opens");
        let topic: Topic<String> = broker.topic("t").open().expect("t");
        all_of(&topic.subscription("s").open().expect("s"))
    }
}

fn fault_of(error: SettleError) -> StorageFault {
    match error {
        SettleError::Storage { fault } => fault,
        error => panic!("{error:?}"),
    }
}

fn number(delivery: &Delivery<String>) -> usize {
    delivery.parse().expect("a number")
}

/// All there is, acked one by one.
fn all_of(s: &Subscription<String>) -> Vec<usize> {
    let deliveries = std::iter::from_fn(|| s.try_recv().ok());
    let acked = deliveries.map(|delivery| {
        let number = number(&delivery);
        delivery.ack().expect("there is space");
        number
    });
    acked.collect()
}

#[test]
fn p08_p15_an_ack_that_finds_no_space_counts_as_a_drop() {
    for full in WAYS {
        let mut desk = Desk::new();
        let s = desk.subscription(DeliveryMode::ExactlyOnce);
        desk.fill(full);
        let backlog = s.stats().backlog;
        // It takes turns with new ones, as redeliveries do.
        for expected in [(0, 1), (0, 2), (1, 1), (0, 3)] {
            let held = s.try_recv().expect("it comes again");
            assert_eq!((number(&held), held.attempt()), expected, "{full:?}");
            assert!(fault_of(held.ack().expect_err("there is no space")).is_full());
            let stats = s.stats();
            assert_eq!((stats.acked, stats.outstanding, stats.backlog), (0, 0, backlog));
        }
        desk.make_space();
        let mut acked = all_of(&s);
        acked.sort_unstable();
        assert_eq!(acked, (0..desk.published).collect::<Vec<_>>(), "{full:?}");
        assert_eq!(s.stats().backlog, 0, "{full:?}");
        assert_eq!(desk.found_after_a_crash(), [0_usize; 0], "{full:?}");
    }
}

#[test]
fn p08_p15_a_batch_whose_ack_finds_no_space_counts_as_a_drop() {
    for full in WAYS {
        for ordered in [false, true] {
            let mut desk = Desk::new();
            let builder = desk.topic.subscription("s").delivery(DeliveryMode::ExactlyOnce);
            let s = if ordered { builder.ordered() } else { builder }.open().expect("s");
            desk.fill(full);
            let mut batch = s.try_recv_batch(10).expect("a batch");
            // Of an ordered subscription the first is to be acked first.
            let first = if ordered { None } else { batch.pop() };
            let held = u64::from(first.is_some());
            assert!(fault_of(batch.ack().expect_err("there is no space")).is_full());
            assert_eq!((s.stats().acked, s.stats().outstanding), (0, held), "{full:?}, ordered: {ordered}");
            desk.make_space();
            first.map(Delivery::ack).transpose().expect("there is space");
            let mut again = all_of(&s);
            assert!(ordered <= again.is_sorted(), "{again:?}");
            again.sort_unstable();
            assert_eq!(
                again,
                (held as usize..desk.published).collect::<Vec<_>>(),
                "{full:?}, ordered: {ordered}"
            );
            assert_eq!(desk.found_after_a_crash(), [0_usize; 0]);
        }
    }
}

#[test]
fn p13_a_hand_out_at_most_once_that_finds_no_space_loses_no_message() {
    for full in WAYS {
        for most in [1, 7] {
            let mut desk = Desk::new();
            let s = desk.subscription(DeliveryMode::AtMostOnce);
            desk.fill(full);
            let backlog = s.stats().backlog;
            for _ in 0..4 {
                let failed = s.try_recv_batch(most).expect_err("it cannot be settled");
                assert!(matches!(failed, TryRecvError::Storage { fault } if fault.is_full()), "{failed:?}");
                assert!(matches!(s.recv(), Err(RecvError::Storage { .. })), "who waits is told, too");
                let stats = s.stats();
                assert_eq!((stats.delivered, stats.acked, stats.outstanding), (0, 0, 0), "{full:?}");
                assert_eq!(stats.backlog, backlog, "{full:?}");
            }
            assert_eq!(desk.found_after_a_crash(), (0..desk.published).collect::<Vec<_>>(), "{full:?}");
            desk.make_space();
            let got: Vec<usize> = std::iter::from_fn(|| s.try_recv_batch(most).ok())
                .flat_map(|batch| batch.into_iter().map(|delivery| number(&delivery)).collect::<Vec<_>>())
                .collect();
            assert_eq!(got, (0..desk.published).collect::<Vec<_>>(), "{full:?}, in their order, and once");
            assert_eq!((s.stats().acked, s.stats().backlog), (desk.published as u64, 0));
            assert_eq!(desk.found_after_a_crash(), [0_usize; 0], "{full:?}");
        }
    }
}

#[test]
fn p13_what_found_no_space_and_is_in_a_checkpoint_comes_for_the_first_time() {
    let mut desk = Desk::new();
    let s = desk.subscription(DeliveryMode::AtMostOnce);
    desk.fill(Full::Refuses);
    s.try_recv_batch(5).expect_err("it cannot be settled");
    desk.make_space();
    let filler: Topic<String> = desk.broker.topic("filler").open().expect("filler");
    let _reader = filler.subscription("s").open().expect("s");
    for _ in 0..200 {
        filler.publish("x".repeat(1_000)).expect("there is space");
    }
    assert!(desk.disk.trace(200).contains("checkpoint"), "so much is followed by a checkpoint");
    let broker = open(Arc::new(desk.disk.kill()), &ManualClock::new()).expect("it opens");
    let topic: Topic<String> = broker.topic("t").open().expect("t");
    let s = topic.subscription("s").open().expect("s");
    let first = s.try_recv().expect("nobody had it");
    assert_eq!((number(&first), first.attempt()), (0, 1));
}

/// At least once an ack is not waited for, and answers `Ok` although there is no space for it.
fn acked_without_space(desk: &mut Desk) -> (Subscription<String>, usize) {
    let s = desk.subscription(DeliveryMode::AtLeastOnce);
    desk.fill(Full::Refuses);
    for _ in 0..100 {
        s.try_recv().expect("there are more").ack().expect("nobody waits for it");
    }
    (s, 100)
}

#[test]
fn p08_acks_that_found_no_space_are_recorded_when_there_is_some() {
    let mut desk = Desk::new();
    let (s, acked) = acked_without_space(&mut desk);
    desk.make_space();
    for _ in 0..2 {
        desk.publish().expect("there is space");
    }
    drop(s);
    assert_eq!(desk.found_after_a_crash(), (acked..desk.published).collect::<Vec<_>>());
}

#[test]
fn p08_of_acks_that_found_no_space_a_crash_undoes_the_newest() {
    let mut desk = Desk::new();
    let (s, acked) = acked_without_space(&mut desk);
    desk.make_space();
    for _ in 0..10 {
        s.try_recv().expect("there are more").ack().expect("nobody waits for it");
    }
    // What is waited for is written with all before it.
    desk.other.try_recv().expect("there are more").ack().expect("there is space");
    let found = desk.found_after_a_crash();
    assert!(found[0] <= acked, "{found:?}");
    assert_eq!(
        found,
        (found[0]..desk.published).collect::<Vec<_>>(),
        "no ack counts after one that does not"
    );
}

#[test]
fn p08_a_shutdown_records_the_acks_that_found_no_space_or_says_that_it_cannot() {
    for is_space in [true, false] {
        let mut desk = Desk::new();
        let (_s, acked) = acked_without_space(&mut desk);
        if is_space {
            desk.make_space();
        }
        let done = desk.broker.shutdown(Duration::ZERO);
        assert_eq!(done.is_ok(), is_space, "{done:?}");
        let found = desk.found_after_a_crash();
        assert_eq!(found.last(), Some(&(desk.published - 1)));
        assert_eq!(found.len() == desk.published - acked, is_space, "{found:?}");
    }
}

#[cfg(feature = "async")]
mod futures_too {
    use std::pin::pin;
    use std::task::{Context, Poll};

    use futures::executor::block_on;
    use futures::future::join_all;

    use super::*;

    /// Asks once, and gives up.
    fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
        pin!(future).poll(&mut Context::from_waker(futures::task::noop_waker_ref()))
    }

    #[test]
    fn p12_acks_of_one_key_that_are_under_way_at_one_time_settle_all() {
        let mut desk = Desk::new();
        let builder = desk.topic.subscription("s").delivery(DeliveryMode::ExactlyOnce).ordered();
        let s = builder.open().expect("s");
        for _ in 0..40 {
            desk.publish().expect("there is space");
        }
        let single = s.try_recv_batch(10).expect("a batch").into_iter().map(Delivery::ack_async);
        block_on(join_all(single)).into_iter().for_each(|done| done.expect("it is settled"));
        let mut batch = s.try_recv_batch(20).expect("a batch");
        let first: Vec<_> = std::iter::from_fn(|| batch.pop()).take(10).map(Delivery::ack_async).collect();
        let (first, rest) = block_on(futures::future::join(join_all(first), batch.ack_async()));
        first.into_iter().chain([rest]).for_each(|done| done.expect("it is settled"));
        assert_eq!((s.stats().acked, s.stats().backlog, s.stats().nacked), (30, 10, 0));
        assert_eq!(desk.found_after_a_crash(), (30..40).collect::<Vec<_>>());
    }

    #[test]
    fn p08_p15_an_ack_that_finds_no_space_counts_as_a_drop_also_when_nobody_waits_for_it() {
        for batch in [false, true] {
            let mut desk = Desk::new();
            let s = desk.subscription(DeliveryMode::ExactlyOnce);
            desk.fill(Full::Refuses);
            let begun = if batch {
                poll_once(s.try_recv_batch(3).expect("a batch").ack_async())
            } else {
                poll_once(s.try_recv().expect("a message").ack_async())
            };
            assert!(!matches!(begun, Poll::Ready(Ok(()))), "{begun:?}");
            // It is decided when what comes after it is.
            desk.publish().expect_err("there is no space");
            assert_eq!((s.stats().acked, s.stats().outstanding), (0, 0));
            desk.make_space();
            let mut acked = all_of(&s);
            acked.sort_unstable();
            assert_eq!(acked, (0..desk.published).collect::<Vec<_>>());
        }
    }

    #[test]
    fn p13_a_hand_out_that_finds_no_space_loses_no_message_also_when_nobody_waits_for_it() {
        let mut desk = Desk::new();
        let s = desk.subscription(DeliveryMode::AtMostOnce);
        desk.fill(Full::Refuses);
        for _ in 0..3 {
            assert!(!matches!(poll_once(s.recv_async()), Poll::Ready(Ok(_))));
            desk.publish().expect_err("there is no space");
            let failed = block_on(s.recv_async()).expect_err("there is no space");
            assert!(matches!(failed, RecvError::Storage { fault } if fault.is_full()), "{failed:?}");
        }
        desk.make_space();
        let got: Vec<_> =
            std::iter::from_fn(|| s.try_recv().ok()).map(|delivery| number(&delivery)).collect();
        assert_eq!(got, (0..desk.published).collect::<Vec<_>>(), "in their order, and once");
    }
}
