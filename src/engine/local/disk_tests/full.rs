//! A broker whose disk is full: what takes space is refused, what frees it is taken, and then there is space again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::audit::event;
use super::eventflow::{
    Broker, Capacity, Codec, CodecError, CommitReason, DeliveryMode, ManualClock, OpenError, Overflow,
    PublishError, PublishErrorKind, Subscription, Topic,
};
use super::open;
use crate::journal::disk::sim::{Full, SimDisk};

const CAPACITY: u64 = 200 << 10;
const LEN: usize = 2_000;
/// Where it is found that the disk is full, and what may be in the way then, is another thing in each.
const CAPACITIES: [u64; 3] = [140_000, 172_900, CAPACITY];

struct Desk {
    broker: Broker,
    topic: Topic<String>,
    billing: Subscription<String>,
}

impl Desk {
    fn open(disk: &SimDisk) -> Result<Desk, OpenError> {
        Self::open_with(disk, Meanwhile::default())
    }

    fn open_with(disk: &SimDisk, codec: Meanwhile) -> Result<Desk, OpenError> {
        let broker = open(Arc::new(disk.clone()), &ManualClock::new())?;
        let topic = broker.topic::<String>("u0").codec(codec).open().expect("there is space for it");
        let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open();
        Ok(Desk { billing: billing.expect("there is space for it"), topic, broker })
    }

    /// False: there is no space.
    fn publish(&self, number: usize) -> bool {
        match self.topic.publish(event(number, LEN)) {
            Ok(_) => true,
            Err(PublishError::Storage { .. }) => false,
            Err(error) => panic!("{number}: {error:?}"),
        }
    }

    /// Publishes until there is no space. The first that was refused.
    fn fill(&self, first: usize) -> usize {
        (first..first + CAPACITY as usize).find(|&number| !self.publish(number)).expect("it is full")
    }

    fn ack_all(&self) -> Vec<usize> {
        let deliveries = std::iter::from_fn(|| self.billing.try_recv().ok());
        let numbers = deliveries.map(|delivery| {
            let number = delivery.split(':').next().and_then(|number| number.parse().ok());
            delivery.ack().expect("an ack frees space");
            number.expect("it begins with its number")
        });
        numbers.collect()
    }
}

impl Desk {
    /// Acks and fills the disk, until no ack is refused. How many fitted then: this one is the first.
    fn ack_and_fill(&self, first: usize) -> usize {
        for _ in 0..3 {
            let deliveries = std::iter::from_fn(|| self.billing.try_recv().ok());
            let refused = deliveries.filter_map(|delivery| delivery.ack().err()).take(100).count();
            let fitted = self.fill(first) - first;
            if refused == 0 {
                return fitted;
            }
        }
        0
    }
}

/// A codec that does something when it encodes for a checkpoint.
#[derive(Clone, Default)]
struct Meanwhile(Arc<Plan>);

#[derive(Default)]
struct Plan {
    /// It is the turn at so many messages from now. 0: it is not.
    turn: AtomicUsize,
    act: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Meanwhile {
    fn plan(&self, act: impl Fn() + Send + 'static) {
        *self.0.act.lock().expect("nobody panicked") = Some(Box::new(act));
    }

    /// `publish` encodes its own message first: it is done if that makes a checkpoint.
    fn during(&self, publish: impl FnOnce() -> bool) -> bool {
        self.0.turn.store(2, Ordering::SeqCst);
        let is_published = publish();
        self.0.turn.store(0, Ordering::SeqCst);
        is_published
    }
}

impl Codec<String> for Meanwhile {
    fn name(&self) -> &str {
        "meanwhile"
    }

    fn encode(&self, event: &String, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let less = |turn: usize| turn.checked_sub(1);
        if self.0.turn.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) == Ok(1)
            && let Some(act) = &*self.0.act.lock().expect("nobody panicked")
        {
            act();
        }
        out.extend_from_slice(event.as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

const WAYS: [Full; 2] = [Full::Refuses, Full::WritesShort];

#[test]
fn p02_a_full_disk_refuses_what_takes_space_and_recovers_when_there_is_some() {
    for full in WAYS {
        let disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        disk.set_capacity(CAPACITY, full);
        let end = desk.fill(0);
        assert!((end + 1..end + 10).all(|number| !desk.publish(number)), "it stays full");
        disk.set_capacity(u64::MAX, full);
        assert!(desk.publish(end + 100), "there is space again");
        let disk = disk.kill();
        for _ in 0..2 {
            let found = Desk::open(&disk.fork()).expect("there is space").ack_all();
            assert_eq!(found, (0..end).chain([end + 100]).collect::<Vec<_>>(), "{full:?}");
        }
    }
}

#[test]
fn p02_a_batch_that_finds_no_space_comes_back_and_takes_no_room() {
    for full in WAYS {
        let disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        disk.set_capacity(CAPACITY, full);
        let end = desk.fill(0);
        let batch: Vec<_> = (end..end + 3).map(|number| event(number, LEN)).collect();
        let failed = desk.topic.publish_all(batch.clone()).expect_err("there is no space");
        assert!(matches!(failed.kind, PublishErrorKind::Storage { fault } if fault.is_full()), "{failed:?}");
        let back: Vec<_> = failed.messages.iter().map(|message| message.event.clone()).collect();
        assert_eq!(back, batch, "all of it, in order");
        disk.set_capacity(u64::MAX, full);
        let capacity = Capacity::messages(end as u64 + 3).overflow(Overflow::Reject);
        desk.topic.update().capacity(capacity).apply().expect("there is space again");
        let receipts = desk.topic.publish_all(batch.clone()).expect("there is room for just that many");
        assert_eq!(receipts.len(), 3);
        let failed = desk.topic.publish_all(batch).expect_err("and no more");
        assert_eq!(failed.kind, PublishErrorKind::Full);
        let found = Desk::open(&disk.kill()).expect("there is space").ack_all();
        assert_eq!(found, (0..end + 3).collect::<Vec<_>>(), "{full:?}");
    }
}

#[test]
fn p5_p16_a_transaction_that_finds_no_space_acks_nothing_either() {
    for full in WAYS {
        let disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        disk.set_capacity(CAPACITY, full);
        let end = desk.fill(0);
        let held = desk.billing.try_recv().expect("it was published");
        let mut tx = desk.broker.transaction();
        tx.ack(held);
        tx.publish(&desk.topic, event(end + 1, LEN));
        let failed = tx.commit().expect_err("there is no space");
        assert!(matches!(failed.reason, CommitReason::Storage { .. }), "{:?}", failed.reason);
        disk.set_capacity(u64::MAX, full);
        // What is behind it in the journal is safe, and so would it be.
        assert!(desk.publish(end + 2), "there is space again");
        let killed = disk.fork();
        let found = Desk::open(&killed).expect("there is space").ack_all();
        assert_eq!(found, (0..end).chain([end + 2]).collect::<Vec<_>>(), "{full:?}");
        failed.transaction.commit().expect("what came back is committed when there is space");
        let found = Desk::open(&disk.kill()).expect("there is space").ack_all();
        assert_eq!(found, (1..end).chain([end + 2, end + 1]).collect::<Vec<_>>(), "{full:?}");
    }
}

#[test]
fn p17_what_is_acked_makes_room_on_a_full_disk() {
    for (full, capacity) in WAYS.into_iter().flat_map(|full| CAPACITIES.map(|capacity| (full, capacity))) {
        let disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        disk.set_capacity(capacity, full);
        let mut next = 0;
        for round in 0..5 {
            let end = desk.fill(next);
            let fitted = end - next;
            assert!(fitted >= 20, "{full:?}, {capacity} bytes, round {round}: {fitted} fitted");
            assert_eq!(
                desk.ack_all(),
                (next..end).collect::<Vec<_>>(),
                "{full:?}, {capacity} bytes, round {round}"
            );
            next = end + 1;
        }
        let end = desk.fill(next);
        assert_eq!(desk.ack_all().len(), end - next);
        next = end + 1;
        let batch = (next..next + 20).map(|number| event(number, LEN));
        desk.topic.publish_all(batch).expect("a batch makes room as well");
        assert_eq!(desk.ack_all(), (next..next + 20).collect::<Vec<_>>());
        let disk = disk.kill();
        disk.set_capacity(u64::MAX, full);
        assert!(Desk::open(&disk).expect("there is space").ack_all().is_empty(), "all was acked");
    }
}

#[test]
fn p18_a_directory_on_a_full_disk_opens_or_says_why_and_loses_nothing() {
    for full in WAYS {
        let mut disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        disk.set_capacity(CAPACITY, full);
        let end = desk.fill(0);
        drop(desk);
        for _ in 0..3 {
            disk = disk.kill();
            disk.set_capacity(disk.used(), full);
            match open(Arc::new(disk.clone()), &ManualClock::new()) {
                Ok(broker) => drop(broker),
                Err(OpenError::Io { reason, .. }) => assert!(reason.contains("space"), "{reason}"),
                Err(error) => panic!("{error}"),
            }
        }
        disk.set_capacity(u64::MAX, full);
        assert_eq!(Desk::open(&disk.kill()).expect("there is space").ack_all(), (0..end).collect::<Vec<_>>());
    }
}

/// Fills a disk of so many bytes, and lets `meanwhile` run in another thread while the first checkpoint is made for space. What it came to.
fn meanwhile_of(
    capacity: u64,
    meanwhile: impl Fn(&Topic<String>, &Subscription<String>) -> usize + Send + Sync + 'static,
) -> (Desk, usize) {
    let trial = SimDisk::new();
    let desk = Desk::open(&trial).expect("it is new");
    trial.set_capacity(capacity, Full::Refuses);
    let fits = desk.fill(0);
    drop(desk);
    let disk = SimDisk::new();
    let codec = Meanwhile::default();
    let desk = Desk::open_with(&disk, codec.clone()).expect("it is new");
    disk.set_capacity(capacity, Full::Refuses);
    assert!((0..fits).all(|number| desk.publish(number)), "they did fit");
    let count = Arc::new(AtomicUsize::new(0));
    let (topic, billing, counts) = (desk.topic.clone(), desk.billing.clone(), count.clone());
    codec.plan(move || {
        let elsewhere = std::thread::scope(|scope| scope.spawn(|| meanwhile(&topic, &billing)).join());
        counts.fetch_add(elsewhere.expect("it does not panic"), Ordering::SeqCst);
    });
    // The first ack is what a checkpoint for space is made for.
    desk.billing.try_recv().expect("it was published").ack().expect("an ack frees space");
    codec.during(|| desk.publish(fits));
    codec.plan(|| ());
    (desk, count.load(Ordering::SeqCst))
}

#[test]
fn p17_what_is_acked_while_a_checkpoint_is_made_makes_room_for_the_next_publish() {
    let mut acked_meanwhile = 0;
    for capacity in (120_000..220_000).step_by(6_100) {
        let (desk, acked) = meanwhile_of(capacity, |_, billing| {
            let deliveries = std::iter::from_fn(|| billing.try_recv().ok());
            deliveries.map_while(|held| held.ack().ok()).count()
        });
        desk.ack_all();
        let next = 1_000;
        let fitted = desk.fill(next) - next;
        assert!(fitted >= 20, "{capacity} bytes, {acked} acked meanwhile: {fitted} fitted");
        acked_meanwhile += acked;
    }
    assert!(acked_meanwhile >= 100, "{acked_meanwhile} were acked while a checkpoint was made");
}

#[test]
fn p17_what_a_checkpoint_needs_on_a_full_disk_is_not_taken_by_who_publishes_meanwhile() {
    for capacity in (120_000..220_000).step_by(6_100) {
        let (desk, published) = meanwhile_of(capacity, |topic, _| {
            (5_000..5_100).take_while(|&number| topic.publish(event(number, LEN)).is_ok()).count()
        });
        assert_eq!(published, 0, "{capacity} bytes: they took it");
        desk.ack_all();
        let next = 1_000;
        let fitted = desk.fill(next) - next;
        assert!(fitted >= 20, "{capacity} bytes: {fitted} fitted");
    }
}

#[test]
fn p17_what_is_acked_makes_room_on_a_full_disk_after_a_restart() {
    let mut opened = 0;
    for (full, capacity) in WAYS.into_iter().flat_map(|full| CAPACITIES.map(|capacity| (full, capacity))) {
        let disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        disk.set_capacity(capacity, full);
        let end = desk.fill(0);
        drop(desk);
        let disk = disk.kill();
        disk.set_capacity(capacity, full);
        // It may say that there is no space.
        let Ok(desk) = Desk::open(&disk) else { continue };
        opened += 1;
        let fitted = desk.ack_and_fill(end);
        assert!(fitted >= 20, "{full:?}, {capacity} bytes: {fitted} fitted");
    }
    assert!(opened > 0, "none could be opened");
}

#[test]
fn p17_what_keeps_all_can_be_deleted_on_a_full_disk_and_makes_room() {
    for (full, capacity) in WAYS.into_iter().flat_map(|full| CAPACITIES.map(|capacity| (full, capacity))) {
        let disk = SimDisk::new();
        let desk = Desk::open(&disk).expect("it is new");
        let other = desk.topic.subscription("other").open().expect("there is space for it");
        other.snapshot("before").expect("there is space for it");
        disk.set_capacity(capacity, full);
        let end = desk.fill(0);
        desk.broker.delete_snapshot("before").expect("that frees space");
        other.delete().expect("that frees space");
        let fitted = desk.ack_and_fill(end);
        assert!(fitted >= 20, "{full:?}, {capacity} bytes: {fitted} fitted once what kept all was deleted");
        desk.broker.delete_topic("u0").expect("that frees space");
        desk.broker.topic::<String>("u1").open().expect("there is space again");
    }
}
