//! Futures and threads that want something of the disk, and a broker that ends beside them: each is told, and nobody waits for ever.
//!
//! `RUSTFLAGS="--cfg eventflow_shuttle" cargo test --release --lib shuttle_tests`

// From outside, as a program sees it: what is tested here is the house, not this floor.
extern crate self as eventflow;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shuttle::future::block_on;

use self::eventflow::{Broker, ManualClock, PublishError, RecvError, Retention};
use super::{Outcome, Safety};
use crate::engine::local::progress::Progress;
use crate::engine::local::store::Store;
use crate::journal::disk::sim::SimDisk;
use crate::journal::{Durability, JournalError, JournalOptions, Position, Space};
use crate::options::DeliveryMode;
use crate::sync::explore::explore;
use crate::sync::thread::{JoinHandle, spawn};

fn options() -> JournalOptions {
    JournalOptions { segment_len: 16 << 10, ..JournalOptions::new(Durability::Always) }
}

fn store(disk: &SimDisk) -> Arc<Store> {
    let opened = Store::open_on(Arc::new(disk.clone()), Path::new("/broker"), options(), Progress::default());
    opened.unwrap_or_else(|error| panic!("it opens: {error}")).store
}

fn broker(disk: &SimDisk) -> Broker {
    Broker::on_disk(Arc::new(disk.clone()), Path::new("/broker"), options(), ManualClock::new())
        .expect("it opens")
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("it did not panic")
}

fn add(store: &Store) -> Position {
    store.add(b"", Space::Ordinary, None).expect("it is open")
}

fn as_future(store: &Arc<Store>, safety: Safety) -> JoinHandle<Outcome> {
    let store = store.clone();
    spawn(move || block_on(store.make_safe_later(add(&store), safety)))
}

#[test]
fn each_who_asks_is_told() {
    explore(|| {
        let store = store(&SimDisk::new());
        let futures = [Safety::Promised, Safety::Written, Safety::Promised].map(|s| as_future(&store, s));
        let blocking = {
            let store = store.clone();
            spawn(move || store.commit(add(&store)))
        };
        assert_eq!(futures.map(join), [Ok(()), Ok(()), Ok(())]);
        assert_eq!(join(blocking), Ok(()));
        // It may be asleep, or at its end.
        assert_eq!(join(as_future(&store, Safety::Promised)), Ok(()));
    });
}

#[test]
fn who_asks_beside_a_close_is_told() {
    explore(|| {
        let store = store(&SimDisk::new());
        let threads = [0, 1].map(|_| {
            let store = store.clone();
            spawn(move || match store.add(b"", Space::Ordinary, None) {
                Ok(position) => block_on(store.make_safe_later(position, Safety::Promised)),
                Err(_) => Err(JournalError::Closed),
            })
        });
        let closer = {
            let store = store.clone();
            spawn(move || store.close().is_ok())
        };
        for outcome in threads.map(join) {
            assert!(outcome == Ok(()) || outcome == Err(JournalError::Closed), "{outcome:?}");
        }
        assert!(join(closer));
        assert!(store.is_closed());
    });
}

#[test]
fn who_asks_beside_the_last_handle_that_leaves_is_told_the_truth() {
    explore(|| {
        let disk = SimDisk::new();
        let here = store(&disk);
        let position = add(&here);
        let thread = {
            let here = here.clone();
            spawn(move || block_on(here.make_safe_later(position, Safety::Promised)))
        };
        here.leave();
        let outcome = join(thread);
        assert!(
            matches!(outcome, Ok(()) | Err(JournalError::Indeterminate(_))),
            "it was written: {outcome:?}"
        );
        drop(here);
        // The directory is free.
        drop(store(&disk));
    });
}

#[test]
fn a_future_that_is_dropped_keeps_nobody_waiting() {
    explore(|| {
        let store = store(&SimDisk::new());
        let dropped = {
            let store = store.clone();
            spawn(move || {
                let mut pending = pin!(store.make_safe_later(add(&store), Safety::Promised));
                let polled = pending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(matches!(polled, Poll::Pending | Poll::Ready(Ok(()))), "{polled:?}");
            })
        };
        let waits = as_future(&store, Safety::Promised);
        join(dropped);
        assert_eq!(join(waits), Ok(()));
    });
}

#[test]
fn p02_publishes_acks_and_hand_outs_beside_a_shutdown_are_told() {
    explore(|| {
        let disk = SimDisk::new();
        let broker = broker(&disk);
        let topic = broker.topic::<String>("topic").retention(Retention::forever()).open().expect("it opens");
        let once = topic.subscription("once").delivery(DeliveryMode::AtMostOnce).open().expect("it opens");
        let publisher = {
            let topic = topic.clone();
            spawn(move || block_on(topic.publish_async("one")).map(drop))
        };
        let receiver = spawn(move || block_on(once.recv_async()).map(|delivery| delivery.attempt()));
        let shutdown = broker.shutdown(Duration::MAX).expect("the first shutdown");
        let published = join(publisher);
        let received = join(receiver);
        match &published {
            Ok(()) => assert_eq!(shutdown.backlog, u64::from(received.is_err())),
            Err(error) => assert!(matches!(error, PublishError::Closed(_)), "{error:?}"),
        }
        assert!(matches!(received, Ok(1) | Err(RecvError::Closed)), "{received:?}");
        drop((topic, broker));
        let again = self::broker(&disk);
        let topic = again.topic::<String>("topic").open().expect("it opens");
        assert_eq!(topic.stats().published, u64::from(published.is_ok()), "P1, P2");
    });
}
