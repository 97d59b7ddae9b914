//! Topics' own files and the two checkpoints that name them: whichever is found, all is there that was promised.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::eventflow::{Broker, Delivery, DeliveryMode, ManualClock, Subscription};
use super::{DIR, open, setting};
use crate::journal::disk::sim::{Random, SimDisk};
use crate::journal::disk::{Access, Disk};

const TOPICS: usize = 3;

/// What a subscription of each topic has not settled, by name.
type Left = Vec<BTreeSet<String>>;

struct Writer {
    random: Random,
    broker: Broker,
    /// The names change when a topic is deleted.
    names: [usize; TOPICS],
    left: Left,
    held: Vec<Vec<Delivery<String>>>,
    count: u64,
}

impl Writer {
    fn subscription(broker: &Broker, name: usize) -> Subscription<String> {
        let topic = broker.topic::<String>(&format!("t{name}")).open().expect("it opens");
        topic.subscription("s").delivery(DeliveryMode::ExactlyOnce).open().expect("it opens")
    }

    fn step(&mut self) {
        let which = self.random.below(TOPICS as u64) as usize;
        let subscription = Self::subscription(&self.broker, self.names[which]);
        let topic = self.broker.topic::<String>(&format!("t{}", self.names[which])).open().expect("it opens");
        match self.random.below(40) {
            0 => {
                self.held[which].clear();
                self.broker.delete_topic(topic.name()).expect("it is there");
                self.left[which].clear();
                self.names[which] += TOPICS;
                Self::subscription(&self.broker, self.names[which]);
            }
            1..16 => {
                for _ in 0..1 + self.random.below(4) {
                    self.count += 1;
                    let event = format!("{}:{}", self.count, "x".repeat(self.random.below(600) as usize));
                    topic.publish(event.clone()).expect("it is published");
                    self.left[which].insert(event);
                }
            }
            16..22 => self.held[which].extend(subscription.try_recv()),
            // Some stay for long, and many go.
            _ => {
                let taken = match self.random.below(3) {
                    0 if !self.held[which].is_empty() => Some(self.held[which].remove(0)),
                    _ => subscription.try_recv().ok(),
                };
                if let Some(delivery) = taken {
                    let event = String::clone(&delivery);
                    delivery.ack().expect("we hold it");
                    self.left[which].remove(&event);
                }
            }
        }
    }
}

fn found(disk: SimDisk, names: [usize; TOPICS]) -> Result<Left, String> {
    let broker = open(Arc::new(disk), &ManualClock::new()).map_err(|error| error.to_string())?;
    let known: BTreeSet<String> = broker.topics().into_iter().collect();
    assert_eq!(known, names.iter().map(|name| format!("t{name}")).collect());
    let drain = |name: &usize| {
        let subscription = Writer::subscription(&broker, *name);
        let mut events = BTreeSet::new();
        while let Ok(delivery) = subscription.try_recv() {
            events.insert(String::clone(&delivery));
            std::mem::forget(delivery);
        }
        events
    };
    Ok(names.iter().map(drain).collect())
}

fn checkpoints(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).expect("it is there");
    let checkpoints = names.into_iter().filter(|name| name.starts_with("checkpoint-"));
    checkpoints.map(|name| Path::new(DIR).join(name)).collect()
}

fn folders(disk: &SimDisk) -> usize {
    let names = disk.list(Path::new(DIR)).expect("it is there");
    names.iter().filter(|name| name.starts_with("topic-")).count()
}

/// The newest checkpoint is not what was written: the one before is used, with the files as that knows them.
fn harm_newest(disk: &SimDisk) -> bool {
    let checkpoints = checkpoints(disk);
    let [_, newest] = &checkpoints[..] else { return false };
    let file = disk.open(newest, Access::Write).expect("it is there");
    let middle = file.len().expect("it has a length") / 2;
    file.write_at(&[0x55; 32], middle.max(8_192)).expect("it is written");
    true
}

fn run(seed: u64) -> (u64, u64, usize) {
    let disk = SimDisk::new();
    let clock = ManualClock::new();
    let (mut looks, mut older, mut most) = (0, 0, 0);
    let mut names = std::array::from_fn(|n| n);
    let (mut left, mut count): (Left, u64) = (vec![BTreeSet::new(); TOPICS], 0);
    let mut random = Random::new(seed);
    for _ in 0..4 {
        let broker = open(Arc::new(disk.clone()), &clock).expect("it opens");
        names.iter().for_each(|name| drop(Writer::subscription(&broker, *name)));
        let held = (0..TOPICS).map(|_| Vec::new()).collect();
        let mut writer = Writer { random, broker, names, left, held, count };
        for _ in 0..120 {
            writer.step();
            let folders = folders(&disk);
            most = most.max(folders);
            if writer.random.below(4) > 0 {
                continue;
            }
            let copy = disk.fork();
            let is_older = writer.random.below(2) == 0 && harm_newest(&copy);
            let found = found(copy, writer.names).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            assert_eq!(found, writer.left, "seed {seed}, older: {is_older}");
            looks += 1;
            older += u64::from(is_older && folders > 0);
        }
        let Writer { random: next, broker, names: new, left: now, held, count: last } = writer;
        drop(held);
        (random, names, left, count) = (next, new, now, last);
        broker.shutdown(Duration::ZERO).expect("the disk is well");
    }
    (looks, older, most)
}

#[test]
fn whichever_checkpoint_is_found_the_files_that_it_names_are_there() {
    let seeds = setting("EVENTFLOW_DISK_SEEDS", 12);
    let (mut looks, mut older) = (0, 0);
    for seed in 1..=seeds {
        let (looked, of_older, folders) = run(seed);
        assert!(folders <= 2 * TOPICS + 2, "seed {seed}: folders of topics that are no more stay");
        looks += looked;
        older += of_older;
    }
    println!("{looks} openings, {older} of them of the older checkpoint with files of topics");
    assert!(older > seeds, "only {older}");
}
