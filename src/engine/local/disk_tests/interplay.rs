//! What one call does while another is on its way to the disk: a checkpoint, a creation, an update, an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::eventflow::{Broker, Codec, CodecError, ManualClock, Message, OpenError, Retention, Seek, Topic};
use super::open;
use super::watched::{PATIENCE, Watched};
use crate::engine::local::committer::Safety;
use crate::engine::local::flight::Flight;
use crate::engine::local::publish::Parcel;
use crate::journal::disk::sim::SimDisk;

#[derive(Debug)]
struct Event {
    text: String,
    gone: Option<Sender<()>>,
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(gone) = &self.gone {
            let _nobody_may_listen = gone.send(());
        }
    }
}

fn of(text: &str) -> Event {
    Event { text: text.into(), gone: None }
}

/// A codec by which a test holds up who encodes, as a checkpoint does.
struct Gate {
    armed: Arc<AtomicBool>,
    begun: Sender<()>,
    free: Receiver<()>,
}

impl Codec<Event> for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn encode(&self, event: &Event, out: &mut Vec<u8>) -> Result<(), CodecError> {
        if self.armed.swap(false, Ordering::SeqCst) {
            let _nobody_may_listen = self.begun.send(());
            let _free_now = self.free.recv_timeout(PATIENCE);
        }
        out.extend_from_slice(event.text.as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Event, CodecError> {
        Ok(of(&String::from_utf8_lossy(bytes)))
    }
}

struct Control {
    armed: Arc<AtomicBool>,
    begun: Receiver<()>,
    free: Sender<()>,
}

impl Control {
    /// Who encodes next is held.
    fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    #[track_caller]
    fn await_encode(&self) {
        self.begun.recv_timeout(PATIENCE).expect("an event is encoded");
    }

    fn free(&self) {
        self.free.send(()).expect("it is held");
    }
}

fn gate() -> (Gate, Control) {
    let armed = Arc::new(AtomicBool::new(false));
    let ((begun, begins), (free, freed)) = (unbounded(), unbounded());
    (Gate { armed: armed.clone(), begun, free: freed }, Control { armed, begun: begins, free })
}

/// A topic that keeps what is published to it, and what holds up its codec.
fn gated(broker: &Broker, name: &str) -> (Topic<Event>, Control) {
    let (codec, control) = gate();
    let topic = broker.topic(name).codec(codec).open().expect("a topic");
    let _stays_on_disk = topic.subscription("s").open().expect("s");
    (topic, control)
}

/// How many messages there are.
fn count(broker: &Broker, name: &str) -> usize {
    let s = gated(broker, name).0.subscription("s").open().expect("s");
    let all: Vec<_> = std::iter::from_fn(|| s.try_recv().ok()).collect();
    all.len()
}

fn take_off<E: Send + Sync + 'static>(topic: &Topic<E>, event: E) -> (Flight<E>, [Parcel<E>; 1]) {
    let core = &topic.core;
    let mut parcels = [core.parcel(Message::new(event)).ok().expect("a parcel")];
    match core.take_off(core.stored.as_ref().expect("it is on disk"), &mut parcels) {
        Err(flight) => (flight, parcels),
        Ok(_) => panic!("nothing is under way"),
    }
}

const ENOUGH: usize = 60;

/// Publishes so much that a checkpoint is due, for which nobody asks yet.
fn fill(topic: &Topic<Event>) {
    let store = topic.broker.presence.core.store.clone().expect("it is on disk");
    for _ in 0..ENOUGH {
        let (flight, _) = take_off(topic, of(&"x".repeat(500)));
        store.commit(flight.position).expect("safe");
    }
}

/// Somebody asks for it.
fn checkpoint(broker: &Broker) -> JoinHandle<()> {
    let core = broker.presence.core.clone();
    std::thread::spawn(move || core.checkpoint_in_time())
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it is to become so");
        std::thread::yield_now();
    }
}

#[test]
fn a_broker_that_is_dropped_during_a_checkpoint_keeps_what_it_accepted() {
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let ((a, control), (p, _), (z, _)) = (gated(&broker, "a"), gated(&broker, "p"), gated(&broker, "z"));
    let (gone, goes) = unbounded();
    a.publish(of("first")).expect("published");
    z.publish(Event { text: "last".into(), gone: Some(gone) }).expect("published");
    fill(&p);
    control.arm();
    let checkpointer = checkpoint(&broker);
    control.await_encode();
    let dropper = std::thread::spawn(move || drop((a, p, z, broker)));
    goes.recv_timeout(PATIENCE).expect("it is torn down during the checkpoint");
    control.free();
    dropper.join().unwrap();
    checkpointer.join().unwrap();
    let broker = open(Arc::new(disk.kill()), &ManualClock::new()).expect("it opens");
    assert_eq!(["a", "p", "z"].map(|name| count(&broker, name)), [1, ENOUGH, 1]);
}

/// Something is not created, for want of space, while a checkpoint is made; and then it is. Opens what is on the disk then.
fn creation(what: &'static str) -> Result<Broker, OpenError> {
    let disk = Watched::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let ((a, a_control), (p, _)) = (gated(&broker, "a"), gated(&broker, "p"));
    let m: Topic<String> = broker.topic("m").open().expect("m");
    let (z, z_control) = gated(&broker, "z");
    let existing = m.subscription("first").open().expect("first");
    a.publish(of("first")).expect("published");
    z.publish(of("last")).expect("published");
    fill(&p);
    a_control.arm();
    z_control.arm();
    let checkpointer = checkpoint(&broker);
    // The image is being made: it is at the first topic.
    a_control.await_encode();
    let create = move || match what {
        "subscription" => m.subscription("s").open().map(drop),
        "snapshot" => existing.snapshot("snap"),
        _ => broker.topic::<String>("new").open().map(drop),
    };
    let write = disk.hold_first_write_of("creator");
    let again = create.clone();
    let creator = std::thread::Builder::new().name("creator".into()).spawn(create).expect("a thread");
    write.await_write();
    a_control.free();
    // It is at the last.
    z_control.await_encode();
    write.finds_no_space();
    creator.join().unwrap().expect_err("there is no space");
    z_control.free();
    checkpointer.join().unwrap();
    again().expect("now there is");
    open(Arc::new(disk.disk().kill()), &ManualClock::new())
}

#[test]
fn a_subscription_whose_creation_failed_is_created_again_and_the_directory_opens() {
    creation("subscription").map(drop).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_topic_whose_creation_failed_is_created_again_and_the_directory_opens() {
    creation("topic").map(drop).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_snapshot_whose_creation_failed_is_taken_again_and_the_directory_opens() {
    creation("snapshot").map(drop).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn two_updates_at_a_time_are_after_a_restart_what_they_were() {
    let disk = Watched::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let hour = Duration::from_secs(3_600);
    let topic: Topic<String> = broker.topic("t").open().expect("t");
    let (one, two) = (topic.subscription("s").open().expect("s"), topic.subscription("s").open().expect("s"));
    let write = disk.hold_first_write_of("first");
    let first = std::thread::Builder::new()
        .name("first".into())
        .spawn(move || one.update().expire_after(hour).apply().map(drop))
        .expect("a thread");
    write.await_write();
    let (begun, begins) = unbounded();
    let second = std::thread::spawn(move || {
        begun.send(()).expect("somebody listens");
        two.update().max_outstanding(10).apply().map(drop)
    });
    begins.recv_timeout(PATIENCE).expect("it begins");
    // It waits for the first by now, or comes behind it: to the same end.
    write.goes_on();
    first.join().unwrap().expect("updated");
    second.join().unwrap().expect("updated");
    let is_as_updated = |topic: &Topic<String>| {
        topic.subscription("s").expire_after(hour).max_outstanding(10).open().expect("both count");
    };
    is_as_updated(&topic);
    let broker = open(Arc::new(disk.disk().kill()), &ManualClock::new()).expect("it opens");
    is_as_updated(&broker.topic("t").open().expect("t"));
}

#[test]
fn a_weigh_that_panics_during_a_checkpoint_loses_no_message() {
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let bad = Arc::new(AtomicBool::new(false));
    let is_bad = bad.clone();
    let weigh = move |event: &String| {
        assert!(!is_bad.load(Ordering::SeqCst), "user");
        event.len() as u64
    };
    let t: Topic<String> = broker.topic("t").weigh(weigh).open().expect("t");
    let p: Topic<String> = broker.topic("p").open().expect("p");
    let s = t.subscription("s").open().expect("s");
    t.publish("kept").expect("published");
    bad.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        p.publish("x".repeat(500)).expect("published");
    }
    bad.store(false, Ordering::SeqCst);
    assert_eq!(s.stats().backlog, 1);
    let broker = open(Arc::new(disk.kill()), &ManualClock::new()).expect("it opens");
    let t: Topic<String> = broker.topic("t").weigh(|event: &String| event.len() as u64).open().expect("t");
    let s = t.subscription("s").open().expect("s");
    assert_eq!(s.try_recv().expect("it is there").as_str(), "kept");
}

#[test]
fn what_is_settled_after_retention_became_forever_is_kept() {
    let broker = open(Arc::new(SimDisk::new()), &ManualClock::new()).expect("it opens");
    let t: Topic<String> = broker.topic("t").open().expect("t");
    let s = t.subscription("s").open().expect("s");
    for n in 0..4 {
        t.publish(format!("{n}")).expect("published");
    }
    let begun = t.core.begin_to_forget();
    t.update().retention(Retention::forever()).apply().expect("updated");
    s.try_recv().expect("it is there").ack().expect("acked");
    let forgotten = t.core.end_forgetting(begun);
    s.seek(Seek::Earliest).expect("sought");
    let all: Vec<_> = std::iter::from_fn(|| s.try_recv().ok()).collect();
    assert_eq!(all.len(), 4, "forgotten: {forgotten:?}");
}

#[test]
fn who_waits_for_a_message_does_not_wait_for_a_checkpoint() {
    let broker = open(Arc::new(SimDisk::new()), &ManualClock::new()).expect("it opens");
    let ((a, control), (p, _)) = (gated(&broker, "a"), gated(&broker, "p"));
    let z: Topic<String> = broker.topic("z").open().expect("z");
    let sz = z.subscription("s").open().expect("s");
    a.publish(of("first")).expect("published");
    fill(&p);
    let waiting = sz.core.clone();
    let (told, tells) = unbounded();
    let receiver = std::thread::spawn(move || {
        let _nobody_may_listen = told.send(sz.recv().map(|delivery| delivery.clone()));
    });
    wait_until(|| waiting.topic.receivers.has(waiting.id));
    control.arm();
    // Somebody is between the two halves of a publish, and somebody else begins a checkpoint.
    let (flight, mut parcels) = take_off(&z, "news".to_owned());
    let checkpointer = checkpoint(&broker);
    control.await_encode();
    let store = z.core.stored.as_ref().expect("it is on disk").store.clone();
    assert_eq!(store.known(flight.position, Safety::Promised), Some(Ok(())));
    assert!(z.core.land(flight, Ok(()), &mut parcels).is_ok(), "published");
    let got = tells.recv_timeout(PATIENCE / 2).expect("who receives does not wait for the checkpoint");
    assert_eq!(got.expect("a message"), "news");
    assert!(!checkpointer.is_finished());
    control.free();
    checkpointer.join().unwrap();
    receiver.join().unwrap();
}
