//! The disk under a broker: every change is a unit of the journal, and nobody sees a message before its unit is as safe as was promised.
//!
//! Who changes something adds the unit under the lock under which it is decided, so that the journal has things in the order in which they happened, and commits
//! after it has let go of every lock. Whoever commits first commits for all that have added, and completes what they added, in that order: see [`Completion`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::local::recovered::Recovered;
use crate::error::{OpenError, StorageFault};
use crate::journal::disk::{Disk, RealDisk};
use crate::journal::{
    self, Damage, Journal, JournalError, JournalOpenError, JournalOptions, Position, Replayed, Space,
};
use crate::options::{Durability, OnDamage};
use crate::stats::RecoveryReport;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, thread};

/// Something that takes effect when its unit is safe.
///
/// `complete` runs under the right to lead a commit: it takes locks of topics and subscriptions, which nobody holds who commits, and calls no code of a user's.
pub(super) trait Completion: Send + Sync {
    /// `Err`: the unit is not in the journal, or may not be.
    fn complete(&self, outcome: Result<(), JournalError>);
    /// What follows, with nothing locked: whoever waits, wakes.
    fn follow_up(self: Arc<Self>);
}

/// What comes with a unit.
pub(super) type Done = Option<Arc<dyn Completion>>;

/// A unit that was added.
pub(super) type Added = Result<Position, StorageFault>;

/// Acks that nobody waits for are written after this many.
const UNWRITTEN_MAX: u64 = 64;
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Some seconds at most.
const LET_GO_LOOKS_MAX: u32 = 10_000_000;

/// Where a broker on disk keeps what it accepts.
pub(crate) struct Store {
    /// None once it is closed: then the directory may be opened again.
    journal: Mutex<Option<Arc<Journal<Done>>>>,
    /// Once it was closed in good order: units before this were completed, and synced.
    synced_end: AtomicU64,
    /// Units that nobody waits for since the last was written.
    unwritten: AtomicU64,
    /// What the first failure said. It lives as long as the process, for errors are passed around by value: there is one for each disk that fails.
    fault: Mutex<Option<&'static str>>,
    /// How long the last checkpoint was, and whether somebody writes one.
    checkpoint_len: AtomicU64,
    checkpointing: AtomicBool,
}

/// What a directory was found to hold.
pub(crate) struct Opened {
    pub(crate) store: Arc<Store>,
    pub(crate) recovered: Recovered,
    pub(crate) report: RecoveryReport,
}

impl Store {
    pub(crate) fn open(dir: &Path, durability: Durability, on_damage: OnDamage) -> Result<Opened, OpenError> {
        let options = JournalOptions {
            on_damage: match on_damage {
                OnDamage::Refuse => journal::OnDamage::Refuse,
                OnDamage::Continue => journal::OnDamage::Continue,
            },
            ..JournalOptions::new(match durability {
                Durability::Always => journal::Durability::Always,
                Durability::Interval(interval) => journal::Durability::Interval(interval),
                Durability::Os => journal::Durability::Os,
            })
        };
        Self::open_on(Arc::new(RealDisk), dir, options)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
    ) -> Result<Opened, OpenError> {
        let mut recovered = Recovered::new();
        let mut visit = |replayed: Replayed<'_>| match replayed {
            Replayed::Begin { .. } => Ok(()),
            // What is lost is in the report.
            Replayed::Lost { .. } => {
                recovered.lost();
                Ok(())
            }
            Replayed::Chunk(bytes) => recovered.image_chunk(bytes),
            Replayed::Unit { bytes, .. } => recovered.unit(bytes),
        };
        let opened = Journal::open(disk, dir, options, &mut visit);
        let (journal, recovery) = opened.map_err(open_error)?;
        recovered.finish().map_err(rejected)?;
        let report = RecoveryReport {
            replayed: recovery.units,
            rewritten: recovery.rewritten,
            damaged: recovery.damages.iter().map(ToString::to_string).collect(),
            lost: recovery.damages.iter().map(|damage| damage.units.end - damage.units.start).sum(),
        };
        let store = Arc::new(Store {
            journal: Mutex::new(Some(Arc::new(journal))),
            synced_end: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            fault: Mutex::new(None),
            checkpoint_len: AtomicU64::new(0),
            checkpointing: AtomicBool::new(false),
        });
        if let journal::Durability::Interval(interval) = options.durability {
            sync_every(interval, &store).map_err(|error| OpenError::Io {
                verb: "start a thread for",
                file: dir.display().to_string(),
                reason: error.to_string(),
            })?;
        }
        Ok(Opened { store, recovered, report })
    }

    fn journal(&self) -> Result<Arc<Journal<Done>>, JournalError> {
        self.journal.lock().clone().ok_or(JournalError::Closed)
    }

    /// Adds a unit behind all others. Call it under the lock under which its content was decided; it takes no other but its own, and writes nothing.
    pub(super) fn add(&self, unit: &[u8], space: Space, done: Done) -> Added {
        let added = self.journal().and_then(|journal| journal.add(unit, space, done));
        added.map_err(|error| self.fault_of(&error))
    }

    fn act(
        &self,
        act: impl FnOnce(
            &Journal<Done>,
            &mut dyn FnMut(Done, Result<(), JournalError>),
        ) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let journal = self.journal()?;
        let mut completed = Vec::new();
        let outcome = act(&journal, &mut |done, outcome| complete(done, outcome, &mut completed));
        // Before others' code runs, which may let go of the broker: see `let_go`.
        drop(journal);
        completed.into_iter().for_each(Completion::follow_up);
        outcome
    }

    /// Waits until the unit is as safe as was promised, and completed. With nothing locked.
    pub(super) fn commit(&self, position: Position) -> Result<(), JournalError> {
        match self.act(|journal, act| journal.commit(position, act)) {
            // Closed meanwhile, which committed all that was added.
            Err(JournalError::Closed) if position.0 < self.synced_end.load(Ordering::Acquire) => Ok(()),
            outcome => outcome,
        }
    }

    /// Adds a unit of its own and waits until it is as safe as was promised. With nothing locked.
    pub(super) fn put(&self, unit: &[u8]) -> Result<(), StorageFault> {
        let position = self.add(unit, Space::Ordinary, None)?;
        self.commit(position).map_err(|error| self.fault_of(&error))
    }

    /// Waits until the unit survives a crash of the process. With nothing locked.
    pub(super) fn write(&self, position: Position) -> Result<(), JournalError> {
        self.unwritten.store(0, Ordering::Relaxed);
        self.act(|journal, act| journal.write(position, act))
    }

    /// The unit is to be written some time soon, and nobody waits for it. With nothing locked. True: it was written.
    pub(super) fn write_later(&self, position: Position) -> bool {
        let is_time = self.unwritten.fetch_add(1, Ordering::Relaxed) + 1 >= UNWRITTEN_MAX;
        if is_time {
            // A failure is told to whoever waits for something.
            let _told_later = self.write(position);
        }
        is_time
    }

    /// Writes what was added, without waiting for the disk, and accepts nothing more.
    pub(super) fn leave(&self) {
        let Ok(journal) = self.journal() else { return };
        if let Some(last) = journal.end().0.checked_sub(1) {
            let _nobody_to_tell = self.write(Position(last));
        }
        drop(journal);
        self.let_go();
    }

    /// Lets go of the directory, once those have who are at it just now: a commit takes no longer than the disk does.
    fn let_go(&self) {
        let Some(journal) = self.journal.lock().take() else { return };
        for _ in 0..LET_GO_LOOKS_MAX {
            if Arc::strong_count(&journal) == 1 {
                break;
            }
            thread::yield_now();
        }
    }

    /// Syncs all, and lets go of the directory.
    pub(crate) fn close(&self) -> Result<(), StorageFault> {
        let closed = self.act(|journal, act| {
            journal.close(act)?;
            self.synced_end.store(journal.end().0, Ordering::Release);
            Ok(())
        });
        self.let_go();
        match closed {
            Ok(()) | Err(JournalError::Closed) => Ok(()),
            Err(error) => Err(self.fault_of(&error)),
        }
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.journal().map_or(0, |journal| journal.disk_bytes())
    }

    /// Writes a checkpoint if it is time, and nobody else does. As much is written between two as an image holds, so that images cost no more than what they are of.
    ///
    /// `numbers` is a unit that says so when the image is complete: what is replayed after it, nothing of the image has seen.
    pub(super) fn checkpoint_in_time(
        &self,
        image: impl FnOnce() -> Vec<Vec<u8>>,
        numbers: impl FnOnce() -> Vec<u8>,
    ) {
        let Ok(journal) = self.journal() else { return };
        let written = journal.since_checkpoint();
        if !journal.wants_checkpoint() || written < self.checkpoint_len.load(Ordering::Relaxed) {
            return;
        }
        if self.checkpointing.swap(true, Ordering::Acquire) {
            return;
        }
        let position = journal.end();
        let mut image = Some(image);
        let mut numbers = Some(numbers);
        let mut chunks = Vec::new().into_iter();
        let mut len = 0;
        // Asked for the first chunk when all before the position is synced, and so completed.
        let mut lazily = std::iter::from_fn(|| {
            if let Some(image) = image.take() {
                chunks = image().into_iter();
                if let Some(numbers) = numbers.take() {
                    // If it is not added, nothing else will be.
                    let _told_to_the_next = journal.add(&numbers(), Space::Reserve, None);
                }
            }
            chunks.next().inspect(|chunk: &Vec<u8>| len += chunk.len() as u64)
        });
        // A failure is told to whoever adds the next unit.
        let _told_later = self.act(|journal, act| journal.checkpoint(position, &mut lazily, act));
        self.checkpoint_len.store(len, Ordering::Relaxed);
        self.checkpointing.store(false, Ordering::Release);
    }

    pub(super) fn fault_of(&self, error: &JournalError) -> StorageFault {
        if *error == JournalError::NoSpace {
            return StorageFault::FULL;
        }
        let mut fault = self.fault.lock();
        StorageFault::new(fault.get_or_insert_with(|| Box::leak(error.to_string().into_boxed_str())))
    }
}

fn complete(done: Done, outcome: Result<(), JournalError>, completed: &mut Vec<Arc<dyn Completion>>) {
    if let Some(done) = done {
        done.complete(outcome);
        completed.push(done);
    }
}

/// Syncs what was written every so often, for as long as the store lives.
fn sync_every(interval: Duration, store: &Arc<Store>) -> std::io::Result<()> {
    let store = Arc::downgrade(store);
    let sync = move || {
        loop {
            thread::park_timeout(interval.max(INTERVAL_MIN));
            let Some(store) = store.upgrade() else { return };
            if store.act(|journal, act| journal.sync_all(act)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("eventflow-sync".into()).spawn(sync).map(drop)
}

fn rejected(reason: String) -> OpenError {
    OpenError::Damaged { file: "journal".into(), offset: 0, len: 0, what: reason }
}

fn open_error(error: JournalOpenError) -> OpenError {
    match error {
        JournalOpenError::AlreadyOpen => OpenError::AlreadyOpen,
        JournalOpenError::Foreign { name } => OpenError::Foreign { name },
        JournalOpenError::Version { file, major } => {
            OpenError::Version { file, what: format!("version {major}") }
        }
        JournalOpenError::Kind { file, offset, kind } => {
            OpenError::Version { file, what: format!("a frame of kind {kind} at byte {offset}") }
        }
        JournalOpenError::Damaged(Damage { file, offset, len, what, .. }) => {
            OpenError::Damaged { file, offset, len, what: what.to_owned() }
        }
        JournalOpenError::Rejected { reason } => rejected(reason),
        JournalOpenError::Io { verb, file, error } => OpenError::Io { verb, file, reason: error.to_string() },
    }
}
