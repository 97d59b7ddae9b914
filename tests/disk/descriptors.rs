//! A process that may have 64 files open, and one that has none left.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Broker, DeliveryMode, OpenError, PublishError};

use crate::process::{ALWAYS, Process, Random, Told, run_through, setting, test_process};
use crate::support::{Dir, drain, orders, send, watched, write_much};

const PATIENCE: Duration = Duration::from_secs(60);
const LIMIT: &str = "ulimit -n 64 || exit 3";
/// Makes a test below the process with the limit.
const LIMITED: &str = "EVENTFLOW_TEST_FEW_DESCRIPTORS";

/// Runs the test again, in a process with the limit. True: this is that process.
fn in_a_limited_process(test: &str, act: impl FnOnce(&Path)) {
    if let Ok(dir) = std::env::var(LIMITED) {
        act(Path::new(&dir));
        println!("\nall was there");
        return;
    }
    let (dir, test) = (Dir::new(), test.to_owned());
    watched(PATIENCE, move || {
        let (status, said) = run_through(test_process(LIMIT, &test).env(LIMITED, dir.path()));
        assert!(status.success() && said.contains("all was there"), "{said}");
    });
}

#[test]
fn a_hundred_topics_need_no_hundred_descriptors() {
    const TOPICS: usize = 100;
    in_a_limited_process("descriptors::a_hundred_topics_need_no_hundred_descriptors", |dir| {
        for life in 0..3 {
            let broker = Broker::open(dir).expect("it opens");
            let mut topics = Vec::new();
            for n in 0..TOPICS {
                let topic = broker.topic::<String>(&format!("topic-{n}")).open().unwrap();
                let books = ["a", "b"]
                    .map(|book| topic.subscription(book).delivery(DeliveryMode::ExactlyOnce).open().unwrap());
                if life > 0 {
                    assert_eq!(drain(&books[0]), orders(life..=life), "topic {n}, life {life}");
                }
                topics.push((topic, books));
            }
            for (topic, _) in &topics {
                send(topic, format!("order {}", life + 1));
            }
            // Checkpoints, and what goes with them.
            write_much(&broker);
            for (n, (_, [_, b])) in topics.iter().enumerate() {
                assert_eq!(drain(b), orders(life + 1..=life + 1), "topic {n}, life {life}");
            }
        }
    });
}

/// Opens what can be opened.
fn take_all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn p02_p19_without_a_descriptor_nothing_is_lost_and_nothing_is_pretended() {
    let name = "descriptors::p02_p19_without_a_descriptor_nothing_is_lost_and_nothing_is_pretended";
    in_a_limited_process(name, |dir| {
        drop(Broker::open(dir).expect("it opens"));
        let taken = take_all_descriptors();
        let opened = Broker::open(dir).map(drop);
        assert!(matches!(opened, Err(OpenError::Io { .. })), "{opened:?}");
        drop(taken);
        let blob = |n: u64| {
            let mut blob = n.to_be_bytes().to_vec();
            blob.resize(1 << 20, n as u8);
            Bytes::from(blob)
        };
        // Segments are 16 MiB: this needs a new one, and a checkpoint.
        let (mut confirmed, mut unsure) = (BTreeSet::new(), BTreeSet::new());
        for life in 0..2 {
            let broker = Broker::open(dir).expect("it opens");
            let topic = broker.topic::<Bytes>("blobs").open().unwrap();
            topic.subscription("reader").open().unwrap();
            let taken = take_all_descriptors();
            for n in life * 100..life * 100 + 40 {
                match topic.publish(blob(n)) {
                    Ok(_) => drop(confirmed.insert(n)),
                    Err(PublishError::Indeterminate { .. }) => drop(unsure.insert(n)),
                    Err(PublishError::Storage { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            drop(taken);
        }
        let broker = Broker::open(dir).expect("it opens");
        let topic = broker.topic::<Bytes>("blobs").open().unwrap();
        let found = drain(&topic.subscription("reader").open().unwrap());
        let found: BTreeSet<u64> =
            found.iter().map(|blob| u64::from_be_bytes(*blob.first_chunk().expect("its number"))).collect();
        assert!(found.is_superset(&confirmed), "{confirmed:?}, {found:?}");
        assert!(
            found.iter().all(|n| confirmed.contains(n) || unsure.contains(n)),
            "{confirmed:?}, {found:?}"
        );
        assert!(confirmed.contains(&0) && confirmed.contains(&100), "{confirmed:?}");
    });
}

#[test]
fn p01_eight_publishers_and_eight_subscribers_need_few_descriptors() {
    let (seed, lives) = (setting("EVENTFLOW_SEED", 0xfd), setting("EVENTFLOW_LIVES", 2));
    println!("EVENTFLOW_SEED={seed} EVENTFLOW_LIVES={lives}");
    watched(PATIENCE * lives as u32, move || {
        let (dir, mut told, mut random) = (Dir::new(), Told::default(), Random(seed));
        for life in 0..lives {
            let mut process = Process::start(dir.path(), ALWAYS, &told, LIMIT);
            process.hear(&mut told, 1_000 + random.below(1_000));
            process.kill(&mut told);
            told.verify_twice(dir.path(), ALWAYS, &format!("life {life}"));
        }
        println!("figures: {lives} lives with 64 descriptors, {}", told.figures());
        assert!(told.has_done_something());
    });
}
