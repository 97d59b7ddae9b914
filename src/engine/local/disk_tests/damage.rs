//! Every bit, every length, every sector and every name of a broker's directory: all that was promised is there, or the opening says what is not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::audit::{Found, audit, drain, event};
use super::eventflow::{
    Broker, DeadLetter, DeliveryMode, ManualClock, Message, MessageId, OpenError, Retention, Seek, Topic,
};
use super::{DIR, SEGMENT_LEN, open, setting};
use crate::journal::disk::harm::{Figures, Files, Harm, cuts, files, flips, judge_each, names, sectors};
use crate::journal::disk::sim::SimDisk;
use crate::journal::{Durability, JournalOptions, OnDamage};

/// A directory with everything in it that a broker writes, and what it holds.
struct Store {
    disk: SimDisk,
    /// By number.
    published: BTreeMap<usize, MessageId>,
    found: Found,
    files: Files,
    /// The same files some time before.
    earlier: Files,
}

struct Writer {
    published: BTreeMap<usize, MessageId>,
}

impl Writer {
    fn publish(&mut self, topic: &Topic<String>, len: usize) {
        let number = self.published.len();
        let message = Message::new(event(number, len)).idempotency_id(format!("id{number}"));
        let message = if number.is_multiple_of(3) { message.ordering_key("a") } else { message };
        let receipt = topic.publish(message.attribute("k", "1")).expect("the disk is well");
        self.published.insert(number, receipt.id);
    }
}

impl Store {
    fn new() -> Store {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut writer = Writer { published: BTreeMap::new() };
        let broker = open(Arc::new(disk.clone()), &clock).expect("it is new");
        let topic = |name: &str, retention: Retention| {
            broker.topic::<String>(name).retention(retention).create().expect("it is new")
        };
        let dead = topic("dead", Retention::forever());
        let kept = topic("f0", Retention::forever());
        let passing = topic("u0", Retention::until_acked());
        let exactly =
            kept.subscription("exactly").delivery(DeliveryMode::ExactlyOnce).create().expect("it is new");
        let flaky =
            kept.subscription("flaky").dead_letter(DeadLetter::to(&dead).after(1)).create().expect("new");
        let once =
            passing.subscription("once").delivery(DeliveryMode::AtMostOnce).create().expect("it is new");
        let rest = passing.subscription("rest").ordered().create().expect("it is new");
        let work = |writer: &mut Writer| {
            for len in [20, 60, 30] {
                writer.publish(&kept, len);
                writer.publish(&passing, len);
            }
            let take = || exactly.try_recv().expect("it was published");
            take().ack().expect("we hold it");
            take().release().expect("we hold it");
            flaky.try_recv().expect("it was published").nack().expect("we hold it");
            drop(once.try_recv());
            rest.try_recv().expect("it was published").ack().expect("we hold it");
        };
        work(&mut writer);
        exactly.snapshot("snapshot").expect("it is new");
        // Checkpoints come by themselves, and there are two.
        for _ in 0..12 {
            writer.publish(&passing, 5_000);
            clock.advance(Duration::from_millis(1));
            while let Ok(delivery) = rest.try_recv() {
                delivery.ack().expect("we hold it");
            }
            drop(once.try_recv_batch(10));
        }
        exactly.seek(Seek::Snapshot("snapshot".to_owned())).expect("it is there");
        work(&mut writer);
        let earlier = files(&disk, Path::new(DIR));
        work(&mut writer);
        broker.shutdown(Duration::ZERO).expect("the disk is well");
        let disk = disk.kill();
        let (files, found) =
            (files(&disk, Path::new(DIR)), audit(&disk.fork(), 0, false).expect("it is whole"));
        let checkpoints = files.keys().filter(|file| file.to_string_lossy().contains("checkpoint-")).count();
        assert_eq!(checkpoints, 2, "{:?}", files.keys());
        Store { disk, published: writer.published, found, files, earlier }
    }

    fn open(disk: &SimDisk, on_damage: OnDamage) -> Result<(Broker, ManualClock), OpenError> {
        let options = JournalOptions {
            segment_len: SEGMENT_LEN,
            segments_per_checkpoint: 1,
            on_damage,
            ..JournalOptions::new(Durability::Always)
        };
        let clock = ManualClock::new();
        let broker = Broker::on_disk(Arc::new(disk.clone()), Path::new(DIR), options, clock.clone())?;
        Ok((broker, clock))
    }

    fn judge(&self, disk: &SimDisk, harm: &Harm) -> Figures {
        let mut figures = Figures { tried: 1, ..Figures::default() };
        let before = disk.fork();
        match Self::open(disk, OnDamage::Refuse) {
            Ok((broker, clock)) => {
                assert_eq!(broker.recovery().lost, 0, "{harm}: it lost something, and opens");
                let found = drain(&broker, &clock, false).unwrap_or_else(|what| panic!("{harm}: {what}"));
                assert_eq!(found, self.found, "{harm}: not what it was, in silence");
                figures.whole += 1;
                return figures;
            }
            Err(OpenError::Damaged { file, .. }) => {
                assert!(!file.is_empty(), "{harm}");
                assert_eq!(disk.fingerprint(), before.fingerprint(), "{harm}: refused and changed");
                figures.refused += 1;
            }
            Err(error) => panic!("{harm}: {error}"),
        }
        match Self::open(&before, OnDamage::Continue) {
            Ok((broker, clock)) => {
                assert!(!broker.recovery().damaged.is_empty(), "{harm}: refused, and then nothing is said");
                let found = drain(&broker, &clock, false).unwrap_or_else(|what| panic!("{harm}: {what}"));
                self.is_of_what_was(&found, harm);
                figures.rest += 1;
            }
            // Nothing is left that says whose directory it is.
            Err(OpenError::Damaged { file, .. }) => assert_eq!(file, "eventflow", "{harm}"),
            Err(error) => panic!("{harm}: {error}"),
        }
        figures
    }

    /// Every message is one that was published, as it was.
    fn is_of_what_was(&self, found: &Found, harm: &Harm) {
        for (name, topic) in &found.topics {
            let was = self.found.topics.get(name).unwrap_or_else(|| panic!("{harm}: a topic {name}"));
            for (book, found) in &topic.subscriptions {
                assert!(was.subscriptions.contains_key(book), "{harm}: a subscription {book}");
                assert!(
                    found.deliveries.iter().all(|seen| self.published.contains_key(&seen.message)),
                    "{harm}"
                );
            }
            for seen in topic.kept.iter().filter(|seen| seen.origin.is_none()) {
                assert_eq!(self.published.get(&seen.message), Some(&seen.id), "{harm}");
            }
        }
    }

    fn judge_all(&self, what: &str, harms: Vec<Harm>, one_of: u64) -> Figures {
        let (one_of, first) = (setting("EVENTFLOW_DISK_ONE_OF", one_of), setting("EVENTFLOW_DISK_SEED", 0));
        let harms: Vec<Harm> =
            (0..).zip(harms).filter(|(n, _)| n % one_of == first % one_of).map(|(_, harm)| harm).collect();
        judge_each(what, &self.disk, &harms, |disk, harm| self.judge(disk, harm))
    }
}

#[test]
fn p18_no_harm_to_any_file_of_a_broker_goes_unnoticed() {
    let store = Store::new();
    let mut figures = store.judge_all("bit flips", flips(&store.files, 1), 331);
    figures += store.judge_all("truncations", cuts(&store.files, 1), 41);
    figures += store.judge_all("bad sectors", sectors(&store.files, &store.earlier), 31);
    figures += store.judge_all("files gone or swapped", names(&store.files), 1);
    assert!(figures.whole > 0 && figures.refused > 0 && figures.rest > 0, "{figures:?}");
}
