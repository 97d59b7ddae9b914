//! The lead of a group commit goes from one to the next: nobody is forgotten, nobody leads beside another, and all is acted on once and in order.
//!
//! `RUSTFLAGS="--cfg eventflow_shuttle" cargo test --release --lib shuttle_tests`

use std::path::Path;
use std::sync::Arc;

use crate::journal::disk::sim::SimDisk;
use crate::journal::{Durability, Journal, JournalError, JournalOptions, Position, Replayed, Space};
use crate::sync::Mutex;
use crate::sync::explore::explore;
use crate::sync::thread::{JoinHandle, spawn};

/// A journal, and the numbers of the units that were acted on.
#[derive(Clone)]
struct Scene {
    disk: SimDisk,
    journal: Arc<Journal<u64>>,
    acted: Arc<Mutex<Vec<(u64, bool)>>>,
}

impl Scene {
    fn new() -> Self {
        let disk = SimDisk::new();
        let (journal, _) = open(&disk);
        Scene { disk, journal: Arc::new(journal), acted: Arc::default() }
    }

    fn add(&self, number: u64) -> Result<Position, JournalError> {
        self.journal.add(&number.to_le_bytes(), Space::Ordinary, number)
    }

    fn commit(&self, position: Position) -> Result<(), JournalError> {
        self.journal
            .commit(position, &mut |number, outcome| self.acted.lock().push((number, outcome.is_ok())))
    }

    fn write(&self, position: Position) -> Result<(), JournalError> {
        self.journal.write(position, &mut |number, outcome| self.acted.lock().push((number, outcome.is_ok())))
    }

    fn close(&self) -> Result<(), JournalError> {
        self.journal.close(&mut |number, outcome| self.acted.lock().push((number, outcome.is_ok())))
    }

    /// What was acted on, and what lies on the disk: the same, in the same order.
    fn check(self) {
        let acted = self.acted.lock().clone();
        let safe: Vec<u64> =
            acted.iter().filter(|(_, is_safe)| *is_safe).map(|(number, _)| *number).collect();
        drop(self.journal);
        let (_, found) = open(&self.disk);
        assert!(found.starts_with(&safe), "{found:?} is there, {acted:?} was said");
    }
}

fn open(disk: &SimDisk) -> (Journal<u64>, Vec<u64>) {
    let options = JournalOptions { segment_len: 16 << 10, ..JournalOptions::new(Durability::Always) };
    let mut found = Vec::new();
    let mut visit = |replayed: Replayed<'_>| {
        if let Replayed::Unit { bytes, .. } = replayed {
            found.push(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        }
        Ok(())
    };
    let (journal, _) =
        Journal::open(Arc::new(disk.clone()), Path::new("/journal"), options, &mut visit).expect("it opens");
    (journal, found)
}

fn join_all<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().expect("it did not panic")).collect()
}

#[test]
fn each_who_waits_is_woken_or_leads() {
    explore(|| {
        let scene = Scene::new();
        let threads = (0..3).map(|n| {
            let scene = scene.clone();
            spawn(move || {
                for number in [2 * n, 2 * n + 1] {
                    let position = scene.add(number).expect("it is open");
                    // Some wait for less: they must not take the lead along that another waits for.
                    let outcome = if number == 2 { scene.write(position) } else { scene.commit(position) };
                    assert_eq!(outcome, Ok(()));
                    let is_acted_on = scene.acted.lock().contains(&(number, true));
                    assert!(is_acted_on || number == 2, "{number} is said to be safe");
                }
            })
        });
        join_all(threads.collect::<Vec<_>>());
        let syncs = scene.disk.syncs();
        assert_eq!(scene.close(), Ok(()));
        assert!(scene.disk.syncs() <= syncs + 3, "all was synced but for what was only to be written");
        assert_eq!(scene.acted.lock().len(), 6);
        scene.check();
    });
}

#[test]
fn a_close_beside_them_commits_what_was_added() {
    explore(|| {
        let scene = Scene::new();
        let threads = (0..3).map(|number| {
            let scene = scene.clone();
            spawn(move || match scene.add(number) {
                Ok(position) => assert_eq!(scene.commit(position), Ok(())),
                Err(error) => assert_eq!(error, JournalError::Closed),
            })
        });
        let threads: Vec<_> = threads.collect();
        assert_eq!(scene.close(), Ok(()));
        let (added, acted) = (scene.journal.end().0, scene.acted.lock().len() as u64);
        assert_eq!(acted, added, "what was added was acted on when it is closed");
        join_all(threads);
        scene.check();
    });
}

#[test]
fn a_failed_sync_is_told_to_each_who_waits() {
    explore(|| {
        let scene = Scene::new();
        let lost = scene.disk.syncs() + 2;
        scene.disk.lose_sync(lost);
        let threads = (0..3).map(|number| {
            let scene = scene.clone();
            spawn(move || {
                let outcome = scene.add(number).and_then(|position| scene.commit(position));
                match outcome {
                    Ok(()) => assert!(scene.acted.lock().contains(&(number, true))),
                    Err(JournalError::Indeterminate(_) | JournalError::Poisoned(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            })
        });
        join_all(threads.collect::<Vec<_>>());
        let acted = scene.acted.lock().clone();
        let first_bad = acted.iter().position(|(_, is_safe)| !is_safe).unwrap_or(acted.len());
        assert!(acted[first_bad..].iter().all(|(_, is_safe)| !is_safe), "a suffix is lost: {acted:?}");
        assert_eq!(first_bad < acted.len(), scene.disk.syncs() >= lost);
        if scene.disk.syncs() >= lost {
            scene.check();
        }
    });
}
