//! How far the opening of a directory has come.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use bytes::Bytes;
use eventflow::{Broker, Durability, OpenError, RecoveryProgress, Retention};

use crate::support::{Dir, drain, end, send};

type Told = Arc<Mutex<Vec<(RecoveryProgress, ThreadId)>>>;

/// Opens it, and gives what was told meanwhile.
fn open(dir: &Dir) -> (Broker, Vec<(RecoveryProgress, ThreadId)>) {
    let told = Told::default();
    let listener = {
        let told = told.clone();
        move |progress| told.lock().unwrap().push((progress, thread::current().id()))
    };
    let broker = Broker::builder()
        .dir(dir.path())
        .durability(Durability::Os)
        .on_recovery_progress(listener)
        .build()
        .expect("it opens");
    let told = told.lock().unwrap().clone();
    (broker, told)
}

fn write(broker: &Broker, messages: usize) {
    let topic = broker.topic::<Bytes>("kept").retention(Retention::forever()).open().unwrap();
    let blob = Bytes::from(vec![7; 8 << 10]);
    topic.publish_all((0..messages).map(|_| blob.clone())).unwrap();
}

#[test]
fn it_is_told_from_nothing_to_all_by_the_opening_thread() {
    // In the journal alone; and so much that most of it lies in the topic's own files.
    for batches in [100, 600] {
        let dir = Dir::new();
        let (broker, _) = open(&dir);
        (0..batches).for_each(|_| write(&broker, 10));
        end(broker);
        let (_broker, told) = open(&dir);
        assert!(told.iter().all(|(_, thread)| *thread == thread::current().id()));
        let (first, last) = (told[0].0, told[told.len() - 1].0);
        let written = batches * ((10 * 8) << 10);
        assert!(first.total >= written, "{first:?}: it is all there to be read");
        assert_eq!((first.read, last.read), (0, last.total));
        assert!(told.is_sorted_by_key(|(progress, _)| progress.read), "{told:?}");
        assert!(told.iter().all(|(progress, _)| progress.total == first.total));
        assert!(told.len() <= 102, "{} times", told.len());
        let between = told.iter().filter(|(progress, _)| progress.read > 0 && progress.read < progress.total);
        assert!(between.count() >= 20, "{told:?}");
    }
}

#[test]
fn a_new_directory_is_read_at_once() {
    let dir = Dir::new();
    let (_broker, told) = open(&dir);
    assert!(!told.is_empty() && told.len() <= 2, "{told:?}");
    assert_eq!(told[told.len() - 1].0.read, told[0].0.total);
}

#[test]
fn in_memory_there_is_nothing_to_tell() {
    let broker = Broker::builder().on_recovery_progress(|progress| panic!("{progress:?}")).build();
    assert!(broker.is_ok());
}

#[test]
fn p21_who_is_told_may_open_brokers_and_meets_no_lock() {
    let dir = Dir::new();
    write(&dir.open(), 100);
    let other = Dir::new();
    let (own, others) = (dir.path().to_owned(), other.path().to_owned());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let seen = seen.clone();
        move |_| {
            let again = Broker::open(&own).map(drop);
            let another = Broker::open(&others).map(drop);
            seen.lock().unwrap().push((again, another));
        }
    };
    let broker = Broker::builder().dir(dir.path()).on_recovery_progress(listener).build();
    assert!(broker.is_ok());
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|(own, other)| matches!(own, Err(OpenError::AlreadyOpen)) && other.is_ok()));
}

#[test]
fn p21_one_that_panics_is_told_no_more_and_the_broker_opens_with_all() {
    let dir = Dir::new();
    let broker = dir.open();
    let topic = broker.topic::<String>("orders").open().unwrap();
    topic.subscription("billing").open().unwrap();
    (0..50).for_each(|n| _ = send(&topic, format!("order {n}")));
    end(broker);
    let calls = Arc::new(Mutex::new(0));
    let listener = {
        let calls = calls.clone();
        move |_| {
            // The lock is free again when the panic begins.
            *calls.lock().unwrap() += 1;
            panic!("as the test wants it");
        }
    };
    let broker = Broker::builder().dir(dir.path()).on_recovery_progress(listener).build().unwrap();
    assert_eq!(*calls.lock().unwrap(), 1);
    let billing = broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    assert_eq!(drain(&billing).len(), 50);
}
