//! A broker that ends while one of its threads is far from done with a checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::eventflow::{Broker, Codec, CodecError, ManualClock, Topic};
use super::open;
use crate::journal::disk::sim::SimDisk;
use crate::sync::Mutex;

const PATIENCE: Duration = Duration::from_secs(60);

/// A codec for texts that does something first, once it is armed: within a checkpoint, for what is published was encoded before.
struct Armed {
    is_armed: Arc<AtomicBool>,
    act: Box<dyn Fn() + Send + Sync>,
}

impl Codec<String> for Armed {
    fn name(&self) -> &str {
        "armed"
    }

    fn encode(&self, text: &String, out: &mut Vec<u8>) -> Result<(), CodecError> {
        if self.is_armed.swap(false, Ordering::SeqCst) {
            (self.act)();
        }
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

fn armed(act: impl Fn() + Send + Sync + 'static) -> (Armed, Arc<AtomicBool>) {
    let is_armed = Arc::new(AtomicBool::new(false));
    (Armed { is_armed: is_armed.clone(), act: Box::new(act) }, is_armed)
}

/// Of a topic that is in every image, and of which `act` is called while one is made, once it is armed.
fn with_slow_image(broker: &Broker, act: impl Fn() + Send + Sync + 'static) -> Arc<AtomicBool> {
    let (codec, is_armed) = armed(act);
    let topic: Topic<String> = broker.topic("a").codec(codec).open().expect("a");
    topic.subscription("s").open().expect("s");
    topic.publish("first".to_owned()).expect("published");
    is_armed
}

/// A checkpoint that is under way until it is told to go on.
struct Gate {
    is_armed: Arc<AtomicBool>,
    begins: Receiver<()>,
    free: Sender<()>,
}

fn gated(broker: &Broker) -> Gate {
    let ((begun, begins), (free, freed)) = (unbounded(), unbounded());
    let is_armed = with_slow_image(broker, move || {
        let _ = begun.send(());
        let _ = freed.recv_timeout(PATIENCE);
    });
    Gate { is_armed, begins, free }
}

fn count(broker: &Broker, name: &str) -> u64 {
    let topic: Topic<String> =
        if name == "a" { broker.topic(name).codec(armed(|| ()).0).open() } else { broker.topic(name).open() }
            .expect("it opens");
    topic.subscription("s").open().expect("it opens").stats().backlog
}

/// What was accepted until it was refused.
fn publish_while_it_lasts(topic: &Topic<String>) -> u64 {
    let mut accepted = 0;
    while topic.publish("x".repeat(2_000)).is_ok() {
        accepted += 1;
    }
    accepted
}

#[test]
fn p1_a_shutdown_during_a_long_checkpoint_keeps_what_was_accepted_and_leaves_the_directory() {
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let gate = gated(&broker);
    let topic: Topic<String> = broker.topic("z").open().expect("z");
    topic.subscription("s").open().expect("s");
    gate.is_armed.store(true, Ordering::SeqCst);
    let publisher = thread::spawn(move || publish_while_it_lasts(&topic));
    gate.begins.recv_timeout(PATIENCE).expect("a checkpoint begins");
    let store = broker.presence.core.store.clone().expect("it is on disk");
    let ending = thread::spawn(move || broker.shutdown(Duration::ZERO).expect("it ends"));
    while !store.is_closed() {
        thread::yield_now();
    }
    assert!(open(Arc::new(disk.clone()), &ManualClock::new()).is_err(), "somebody has the directory yet");
    gate.free.send(()).expect("it waits");
    ending.join().expect("it ends");
    let accepted = publisher.join().expect("no panic");
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("nobody has it any more");
    assert_eq!((count(&broker, "a"), count(&broker, "z")), (1, accepted));
}

#[test]
fn p21_a_codec_may_shut_the_broker_down_while_a_checkpoint_asks_it() {
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let (ended, ends) = unbounded();
    let own = Mutex::new(Some(broker.clone()));
    let is_armed = with_slow_image(&broker, move || {
        let broker = own.lock().take().expect("it is asked once");
        let _ = ended.send(broker.shutdown(Duration::ZERO).is_ok());
    });
    let topic: Topic<String> = broker.topic("z").open().expect("z");
    topic.subscription("s").open().expect("s");
    is_armed.store(true, Ordering::SeqCst);
    let accepted = publish_while_it_lasts(&topic);
    assert_eq!(ends.try_recv(), Ok(true), "it does not wait for the checkpoint that it is part of");
    let broker =
        open(Arc::new(disk.clone()), &ManualClock::new()).expect("it was let go of with the checkpoint");
    assert_eq!((count(&broker, "a"), count(&broker, "z")), (1, accepted));
}
