//! The journal as a whole, on a disk in memory.
//!
//! What these tests keep in it is a list: a unit adds its bytes to the list, a checkpoint holds the list, a chunk an entry. So what is found is compared with what was
//! confirmed, entry by entry.

mod basics;
mod commits;
mod damage;
mod explore;
mod full;
mod hostile;

use std::path::Path;
use std::sync::Arc;

use super::disk::Disk;
use super::disk::sim::SimDisk;
use super::{Durability, Journal, JournalError, JournalOpenError, JournalOptions, OnDamage, Position};
use super::{Recovery, Replayed, Space};

pub(super) const DIR: &str = "journal";

/// Segments as small as they may be.
pub(super) fn small() -> JournalOptions {
    JournalOptions {
        segment_len: 16 << 10,
        segments_per_checkpoint: 1,
        ..JournalOptions::new(Durability::Always)
    }
}

/// What was replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) checkpoint: Option<Position>,
    pub(super) list: Vec<Vec<u8>>,
    pub(super) positions: Vec<u64>,
    pub(super) lost: Vec<(u64, u64)>,
}

impl Found {
    fn take(&mut self, replayed: Replayed<'_>) {
        match replayed {
            Replayed::Begin { checkpoint, .. } => {
                assert_eq!(*self, Found::default(), "the beginning comes once, and first");
                self.checkpoint = checkpoint;
            }
            Replayed::Chunk(chunk) => {
                assert!(self.positions.is_empty(), "chunks come before units");
                self.list.push(chunk.to_vec());
            }
            Replayed::Unit { position, bytes } => {
                let after = self.positions.last().is_none_or(|last| *last < position.0);
                assert!(after && self.checkpoint.is_none_or(|checkpoint| checkpoint <= position));
                self.positions.push(position.0);
                self.list.push(bytes.to_vec());
            }
            Replayed::Imaged => {}
            Replayed::Lost { from, to } => {
                assert!(from < to, "nothing is not lost");
                self.lost.push((from.0, to.0));
            }
        }
    }

    pub(super) fn texts(&self) -> Vec<String> {
        self.list.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

pub(super) struct Open {
    pub(super) journal: Journal<u64>,
    pub(super) recovery: Recovery,
    pub(super) found: Found,
}

pub(super) fn open_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: JournalOptions,
) -> Result<Open, JournalOpenError> {
    let mut found = Found::default();
    let (journal, recovery) = Journal::open(disk, dir, options, &mut |replayed| {
        found.take(replayed);
        Ok(())
    })?;
    Ok(Open { journal, recovery, found })
}

pub(super) fn open(disk: &SimDisk, options: JournalOptions) -> Result<Open, JournalOpenError> {
    open_on(Arc::new(disk.clone()), Path::new(DIR), options)
}

pub(super) fn opened(disk: &SimDisk) -> Open {
    open(disk, small()).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn continued(disk: &SimDisk) -> Open {
    let options = JournalOptions { on_damage: OnDamage::Continue, ..small() };
    open(disk, options).unwrap_or_else(|error| panic!("{error}"))
}

/// For who has no use for what comes with a unit.
pub(super) fn ignore(_: u64, _: Result<(), JournalError>) {}

impl Open {
    pub(super) fn add(&self, unit: &str) -> Position {
        self.journal.add(unit.as_bytes(), Space::Ordinary, 0).expect("the journal takes units")
    }

    /// Adds and commits.
    pub(super) fn put(&self, unit: &str) -> Position {
        let position = self.add(unit);
        self.journal.commit(position, &mut ignore).expect("the disk is well");
        position
    }

    /// Writes the list as a checkpoint.
    pub(super) fn checkpoint(&self, list: &[String]) -> Result<(), JournalError> {
        let mut chunks = list.iter().map(|entry| entry.as_bytes().to_vec());
        self.journal.checkpoint(self.journal.end(), &mut chunks, &mut ignore)
    }
}

/// A number that the environment may set.
pub(super) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Entries that differ in length and content.
pub(super) fn entries(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| format!("{number}:{}", "x".repeat((number as usize * 37) % 90))).collect()
}
