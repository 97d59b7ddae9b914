//! What one call does while another is on its way to the disk: a checkpoint, a creation, an update, an end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::eventflow::{Broker, Codec, CodecError, ManualClock, OpenError, Topic};
use super::open;
use crate::journal::disk::sim::SimDisk;
use crate::journal::disk::{Access, Disk, DiskFile, Lock};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Event {
    text: String,
    gone: Option<Sender<()>>,
}
impl Drop for Event {
    fn drop(&mut self) {
        if let Some(gone) = &self.gone {
            let _ = gone.send(());
        }
    }
}
fn of(text: &str) -> Event {
    Event { text: text.into(), gone: None }
}

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
            let _ = self.begun.send(());
            let _ = self.free.recv_timeout(PATIENCE);
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
fn gate() -> (Gate, Control) {
    let armed = Arc::new(AtomicBool::new(false));
    let ((begun, begins), (free, freed)) = (unbounded(), unbounded());
    (Gate { armed: armed.clone(), begun, free: freed }, Control { armed, begun: begins, free })
}

fn texts(broker: &Broker, name: &str) -> usize {
    if !broker.topics().iter().any(|known| known == name) {
        return 0;
    }
    let topic: Topic<Event> = broker.topic(name).codec(gate().0).open().expect("it opens");
    let s = topic.subscription("s").open().expect("it opens");
    let mut count = 0;
    while let Ok(delivery) = s.try_recv() {
        count += 1;
        std::mem::forget(delivery);
    }
    count
}

#[test]
fn a_broker_that_is_dropped_during_a_checkpoint_keeps_what_it_accepted() {
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let (codec, control) = gate();
    let a: Topic<Event> = broker.topic("a").codec(codec).open().expect("a");
    let z: Topic<Event> = broker.topic("z").codec(gate().0).open().expect("z");
    let sa = a.subscription("s").open().expect("s");
    let sz = z.subscription("s").open().expect("s");
    let (gone, goes) = unbounded();
    a.publish(of("first")).expect("published");
    z.publish(Event { text: "0".into(), gone: Some(gone) }).expect("published");
    control.armed.store(true, Ordering::SeqCst);
    let mut count = 1;
    let x = "x".repeat(2_000);
    while control.begun.recv_timeout(Duration::from_millis(5)).is_err() {
        futures::executor::block_on(z.publish_async(of(&x))).expect("published");
        count += 1;
        assert!(count < 1_000);
    }
    // A thread of the broker's is writing a checkpoint.
    let free = control.free.clone();
    let freer = std::thread::spawn(move || {
        let torn = goes.recv_timeout(PATIENCE).is_ok();
        std::thread::sleep(Duration::from_millis(100));
        let _ = free.send(());
        torn
    });
    drop((sa, sz, a, z, broker));
    eprintln!("torn down during the checkpoint: {}", freer.join().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let broker = open(Arc::new(disk.kill()), &ManualClock::new()).expect("it opens");
    assert_eq!((texts(&broker, "a"), texts(&broker, "z")), (1, count));
}

#[derive(Clone, Debug)]
struct Held {
    disk: SimDisk,
    begun: Sender<()>,
    free: Receiver<bool>,
    armed: Arc<AtomicBool>,
}
impl Held {
    fn call(&self) -> io::Result<()> {
        if std::thread::current().name() == Some("creator") && self.armed.swap(false, Ordering::SeqCst) {
            let _ = self.begun.send(());
            if self.free.recv_timeout(PATIENCE) != Ok(true) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HeldFile { file, disk: self.clone() })
    }
}
impl Disk for Held {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.create(path).map(|file| self.file(file))
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, access).map(|file| self.file(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.disk.lock(path)
    }
}
#[derive(Debug)]
struct HeldFile {
    file: Arc<dyn DiskFile>,
    disk: Held,
}
impl DiskFile for HeldFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.call()?;
        self.file.write_at(bytes, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

fn creation(what: &str) -> Result<Broker, OpenError> {
    let sim = SimDisk::new();
    let ((begun, begins), (free, freed)) = (unbounded(), bounded(1));
    let held = Held { disk: sim.clone(), begun, free: freed, armed: Arc::new(AtomicBool::new(true)) };
    let broker = open(Arc::new(held), &ManualClock::new()).expect("it opens");
    let ((first, a_control), (last, z_control)) = (gate(), gate());
    let a: Topic<Event> = broker.topic("a").codec(first).open().expect("a");
    let m: Topic<String> = broker.topic("m").open().expect("m");
    let z: Topic<Event> = broker.topic("z").codec(last).open().expect("z");
    let _sa = a.subscription("s").open().expect("s");
    let _sz = z.subscription("s").open().expect("s");
    a.publish(of("first")).expect("published");
    z.publish(of("last")).expect("published");
    a_control.armed.store(true, Ordering::SeqCst);
    z_control.armed.store(true, Ordering::SeqCst);
    let publisher = {
        let p: Topic<String> = broker.topic("p").open().expect("p");
        let p2 = p.clone();
        let _sp = p.subscription("s").open().expect("s");
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let handle = std::thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                p2.publish("x".repeat(500)).expect("published");
            }
        });
        a_control.begun.recv_timeout(PATIENCE).expect("a checkpoint begins");
        over.store(true, Ordering::SeqCst);
        handle
    };
    // The image is being made: it is at the first topic.
    let create = {
        let existing = m.subscription("first").open().expect("first");
        let (broker, m, what) = (broker.clone(), m.clone(), what.to_owned());
        move || match &*what {
            "subscription" => m.subscription("s").open().map(drop),
            "snapshot" => existing.snapshot("snap"),
            _ => broker.topic::<String>("new").open().map(drop),
        }
    };
    let again = create.clone();
    let creator = std::thread::Builder::new().name("creator".into()).spawn(create).expect("a thread");
    begins.recv_timeout(PATIENCE).expect("it writes the creation");
    a_control.free.send(()).unwrap();
    z_control.begun.recv_timeout(PATIENCE).expect("the image is at the last topic");
    free.send(false).unwrap();
    let failed = creator.join().unwrap().expect_err("there is no space");
    eprintln!("{failed}");
    z_control.free.send(()).unwrap();
    publisher.join().unwrap();
    again().expect("now there is");
    open(Arc::new(sim.kill()), &ManualClock::new())
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
fn two_updates_at_a_time_are_after_a_restart_what_they_were() {
    let sim = SimDisk::new();
    let ((begun, begins), (free, freed)) = (unbounded(), bounded(1));
    let armed = Arc::new(AtomicBool::new(false));
    let held = Held { disk: sim.clone(), begun, free: freed, armed: armed.clone() };
    let broker = open(Arc::new(held), &ManualClock::new()).expect("it opens");
    let hour = Duration::from_secs(3_600);
    let topic: Topic<String> = broker.topic("t").open().expect("t");
    let s = topic.subscription("s").open().expect("s");
    armed.store(true, Ordering::SeqCst);
    let one = s.clone();
    let first = std::thread::Builder::new()
        .name("creator".into())
        .spawn(move || one.update().expire_after(hour).apply().map(drop))
        .unwrap();
    begins.recv_timeout(PATIENCE).expect("it is on its way");
    let two = s.clone();
    let second = std::thread::spawn(move || two.update().max_outstanding(10).apply().map(drop));
    std::thread::sleep(Duration::from_millis(200));
    free.send(true).unwrap();
    first.join().unwrap().expect("updated");
    second.join().unwrap().expect("updated");
    topic.subscription("s").expire_after(hour).open().expect("both count");
    let broker = open(Arc::new(sim.kill()), &ManualClock::new()).expect("it opens");
    let topic: Topic<String> = broker.topic("t").open().expect("t");
    if let Err(error) = topic.subscription("s").expire_after(hour).open() {
        panic!("{error}");
    }
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
    assert!(s.stats().backlog == 1);
    let broker = open(Arc::new(disk.kill()), &ManualClock::new()).expect("it opens");
    let t: Topic<String> = broker.topic("t").weigh(|event: &String| event.len() as u64).open().expect("t");
    let s = t.subscription("s").open().expect("s");
    assert_eq!(s.try_recv().expect("it is there").as_str(), "kept");
}

#[test]
fn what_is_settled_after_retention_became_forever_is_kept() {
    use super::eventflow::{Retention, Seek};
    use crate::sequence::Sequence;
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let t: Topic<String> = broker.topic("t").open().expect("t");
    let s = t.subscription("s").open().expect("s");
    for n in 0..4 {
        t.publish(format!("{n}")).expect("published");
    }
    let core = s.core.clone();
    let mut desk = core.desk.lock();
    let topic = core.topic.clone();
    let forgetter = std::thread::spawn(move || topic.forget());
    std::thread::sleep(Duration::from_millis(100));
    let updated = t.clone();
    let updater =
        std::thread::spawn(move || updated.update().retention(Retention::forever()).apply().map(drop));
    while core.topic.config().retention != Retention::forever() {
        std::thread::yield_now();
    }
    drop(core.change_unrecorded_in(&mut desk, |ledger| {
        ledger.handle_dropped(Sequence::new(1));
    }));
    drop(desk);
    let forgotten = forgetter.join().unwrap();
    updater.join().unwrap().expect("updated");
    s.seek(Seek::Earliest).expect("sought");
    let seen = std::iter::from_fn(|| s.try_recv().ok()).map(std::mem::forget).count();
    assert_eq!(seen, 4, "forgotten: {forgotten:?}");
}

#[test]
fn who_waits_for_a_message_does_not_wait_for_a_checkpoint() {
    use super::eventflow::Message;
    let disk = SimDisk::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let (codec, control) = gate();
    let a: Topic<Event> = broker.topic("a").codec(codec).open().expect("a");
    let z: Topic<String> = broker.topic("z").open().expect("z");
    let p: Topic<String> = broker.topic("p").open().expect("p");
    let _sa = a.subscription("s").open().expect("s");
    let sz = z.subscription("s").open().expect("s");
    let _sp = p.subscription("s").open().expect("s");
    a.publish(of("first")).expect("published");
    let store = broker.presence.core.store.clone().unwrap();
    let begin = |topic: &Topic<String>, text: String| {
        let core = topic.core.clone();
        let mut parcels = [core.parcel(Message::new(text)).ok().expect("a parcel")];
        let Err(flight) = core.take_off(core.stored.as_ref().unwrap(), &mut parcels) else {
            panic!("staged")
        };
        (core, flight, parcels)
    };
    for _ in 0..60 {
        let (_, flight, _) = begin(&p, "x".repeat(500));
        store.commit(flight.position).expect("safe");
    }
    let (told, tells) = unbounded();
    let receiver = std::thread::spawn(move || {
        let got = sz.recv().map(|delivery| delivery.len());
        let _ = told.send(());
        got.is_ok()
    });
    std::thread::sleep(Duration::from_millis(200));
    control.armed.store(true, Ordering::SeqCst);
    // Somebody is between the two halves of a publish, and somebody else begins a checkpoint.
    let (core, flight, mut parcels) = begin(&z, "news".into());
    let checkpointer = {
        let core = broker.presence.core.clone();
        std::thread::spawn(move || core.checkpoint_in_time())
    };
    control.begun.recv_timeout(PATIENCE).expect("a checkpoint begins");
    let known = store.known(flight.position, crate::engine::local::committer::Safety::Promised);
    eprintln!("the publish returns: {known:?}");
    assert!(core.land(flight, Ok(()), &mut parcels).is_ok(), "published");
    let got = tells.recv_timeout(Duration::from_secs(3));
    control.free.send(()).unwrap();
    checkpointer.join().unwrap();
    let later = tells.recv_timeout(PATIENCE);
    eprintln!("after the checkpoint: {later:?}");
    assert!(got.is_ok(), "it was published, and the receiver waits for the checkpoint to end");
    receiver.join().unwrap();
}

#[test]
fn a_snapshot_whose_creation_failed_is_taken_again_and_the_directory_opens() {
    creation("snapshot").map(drop).unwrap_or_else(|error| panic!("{error}"));
}
