//! A directory on a file system of a few MiB that is full.
//!
//! A user that may mount nothing is given a mount of its own, where the system allows that; where not, these say that they are skipped. The same on a simulated disk is tested in any case, beside the broker.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Broker, DeliveryMode, PublishError, Subscription, Topic};

use crate::process::{run_through, test_process};
use crate::support::{Dir, watched};

const PATIENCE: Duration = Duration::from_secs(120);
/// Makes a test below the process whose directory is on a small file system. Also set by `scripts/torture`, to one that it has made.
const SMALL: &str = "EVENTFLOW_TEST_SMALL_FILE_SYSTEM";
const SIZE_MIB: u64 = 24;
const BLOB_LEN: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// Runs the test again, in a process whose directory is a file system of [`SIZE_MIB`], or says that it cannot.
fn on_a_small_file_system(test: &str, act: impl FnOnce(&Path)) {
    if let Ok(dir) = std::env::var(SMALL) {
        let own = Path::new(&dir).join(test.replace("::", "-"));
        fs::create_dir(&own).expect("a new directory");
        act(&own);
        fs::remove_dir_all(&own).expect("it can be removed");
        println!("\nall is well");
        return;
    }
    let test = test.to_owned();
    watched(PATIENCE, move || {
        for unshare in ["unshare --user --map-root-user --mount", "unshare --mount"] {
            let dir = Dir::new();
            let mount = format!("mount -t tmpfs -o size={SIZE_MIB}m none \"${SMALL}\" || exit 77");
            let before = format!("exec {unshare} sh -c '{mount}; exec \"$0\" \"$@\"' \"$0\" \"$@\"");
            let (status, said) = run_through(test_process(&before, &test).env(SMALL, dir.path()));
            if said.contains("running 1 test") {
                assert!(status.success() && said.contains("all is well"), "{said}");
                said.lines().filter(|line| line.contains("figures: ")).for_each(|line| println!("{line}"));
                return;
            }
        }
        println!("SKIPPED: nobody lets this process mount a small file system");
    });
}

struct Desk {
    _broker: Broker,
    blobs: Topic<Bytes>,
    billing: Subscription<Bytes>,
}

impl Desk {
    fn open(dir: &Path) -> Desk {
        let broker = Broker::open(dir.join("store")).expect("it opens");
        let blobs = broker.topic::<Bytes>("blobs").open().unwrap();
        let billing = blobs.subscription("billing").delivery(DeliveryMode::ExactlyOnce);
        Desk { billing: billing.max_outstanding(1_000_000).open().unwrap(), blobs, _broker: broker }
    }

    /// False: there is no space.
    fn publish(&self, number: u64) -> bool {
        let mut blob = number.to_be_bytes().to_vec();
        blob.resize(BLOB_LEN, number as u8);
        match self.blobs.publish(Bytes::from(blob)) {
            Ok(_) => true,
            Err(PublishError::Storage { .. }) => false,
            Err(error) => panic!("{number}: {error:?}"),
        }
    }

    /// Publishes until there is no space. The first that was refused.
    fn fill(&self, first: u64) -> u64 {
        let most = SIZE_MIB * (MIB / BLOB_LEN) as u64;
        (first..).find(|&number| !self.publish(number)).filter(|end| end - first <= most).expect("it is full")
    }

    /// Acks so many, or all there are. Their numbers.
    fn ack(&self, most: usize) -> Vec<u64> {
        let deliveries = std::iter::from_fn(|| self.billing.try_recv().ok()).take(most);
        deliveries
            .map(|delivery| {
                let number = u64::from_be_bytes(*delivery.first_chunk().expect("its number"));
                assert!(delivery.len() == BLOB_LEN && delivery[8..].iter().all(|byte| *byte == number as u8));
                delivery.ack().unwrap_or_else(|error| panic!("the ack of {number}: {error}"));
                number
            })
            .collect()
    }
}

/// Takes space until it is removed.
fn ballast(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("ballast");
    fs::write(&path, vec![1; 4 * MIB]).expect("there is space for it");
    path
}

#[test]
fn p02_a_full_file_system_refuses_publishes_takes_acks_and_recovers_when_there_is_space() {
    let name = "full::p02_a_full_file_system_refuses_publishes_takes_acks_and_recovers_when_there_is_space";
    on_a_small_file_system(name, |dir| {
        let ballast = ballast(dir);
        let desk = Desk::open(dir);
        let end = desk.fill(0);
        assert!((end + 1..end + 10).all(|number| !desk.publish(number)), "it stays full");
        let acked = desk.ack(50);
        assert_eq!(acked, (0..50).collect::<Vec<_>>());
        fs::remove_file(ballast).unwrap();
        assert!(desk.publish(end + 100), "there is space again");
        drop(desk);
        for _ in 0..2 {
            let desk = Desk::open(dir);
            assert_eq!(desk.billing.stats().backlog, end - 50 + 1);
        }
        let found = Desk::open(dir).ack(usize::MAX);
        assert_eq!(found, (50..end).chain([end + 100]).collect::<Vec<_>>());
        println!("figures: {end} published, 10 refused, {} acked", acked.len() + found.len());
    });
}

#[test]
fn p17_what_is_acked_makes_room_on_a_full_file_system() {
    let name = "full::p17_what_is_acked_makes_room_on_a_full_file_system";
    on_a_small_file_system(name, |dir| {
        let desk = Desk::open(dir);
        let mut next = 0;
        for round in 0..5 {
            let end = desk.fill(next);
            assert!(end - next >= 50, "round {round}: {} fitted", end - next);
            assert_eq!(desk.ack(usize::MAX), (next..end).collect::<Vec<_>>(), "round {round}");
            next = end + 1;
        }
        println!("figures: {next} published, 5 times full");
    });
}

#[test]
fn p18_a_directory_on_a_full_file_system_opens_or_says_why_not() {
    let name = "full::p18_a_directory_on_a_full_file_system_opens_or_says_why_not";
    on_a_small_file_system(name, |dir| {
        let ballast = ballast(dir);
        let desk = Desk::open(dir);
        let end = desk.fill(0);
        drop(desk);
        for _ in 0..3 {
            match Broker::open(dir.join("store")) {
                Ok(broker) => drop(broker),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("os error 28") || text.contains("no storage space"), "{text}");
                }
            }
        }
        fs::remove_file(ballast).unwrap();
        assert_eq!(Desk::open(dir).ack(usize::MAX), (0..end).collect::<Vec<_>>());
    });
}
