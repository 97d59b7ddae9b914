//! When a checkpoint is written, and what into it.

use std::io;

use crate::engine::local::archiving::Archives;
use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::store::{Done, Store};
use crate::journal::{Journal, JournalError, Position, Space};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a store knows of its checkpoints.
pub(super) struct Checkpoints {
    /// How long the last one was.
    len: AtomicU64,
    /// Something is to be written anew, for it was found to be damaged.
    is_due: AtomicBool,
    /// Something that nobody waits for, such as an ack, found no space: the next checkpoint has it.
    is_behind: AtomicBool,
    /// What was settled since, and left to that.
    left_to_it: AtomicU64,
    /// Something found no space, and no checkpoint has made some since.
    is_short: AtomicBool,
    /// How often checkpoints have made space.
    sweeps: AtomicU64,
    /// None: somebody writes one, and has them.
    archives: Mutex<Option<Archives>>,
    /// What they take, as of the last one.
    archive_bytes: AtomicU64,
}

/// What a checkpoint is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Enough was written since the last.
    Time,
    /// The disk is full. What is settled goes when two are complete: then none that is kept needs it.
    Space,
}

/// What a store writes into its checkpoints.
pub(super) struct Contents<'a> {
    /// Everything. False: it was being torn down.
    pub(super) image: &'a dyn Fn(&mut ImageWriter<'_>) -> bool,
    /// A unit that says when the image is complete: what is replayed after it, nothing of the image has seen.
    pub(super) numbers: &'a dyn Fn() -> Vec<u8>,
}

impl Checkpoints {
    pub(super) fn new(archives: Archives) -> Self {
        Checkpoints {
            len: AtomicU64::new(0),
            is_due: AtomicBool::new(archives.were_damaged()),
            is_behind: AtomicBool::new(false),
            left_to_it: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
            sweeps: AtomicU64::new(0),
            archive_bytes: AtomicU64::new(archives.disk_bytes()),
            archives: Mutex::new(Some(archives)),
        }
    }

    /// As much is written between two as an image holds, so that images cost no more than what they are of.
    pub(super) fn is_wanted<T: Send>(&self, journal: &Journal<T>, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Time => {
                let is_enough = || journal.since_checkpoint() >= self.len.load(Ordering::Relaxed);
                let is_needed = self.is_due.load(Ordering::Relaxed) || self.is_behind();
                is_needed || (journal.wants_checkpoint() && is_enough())
            }
            Purpose::Space => self.is_short() && journal.since_sweep() > 0,
        }
    }

    /// Something found no space.
    pub(super) fn note_full(&self) {
        self.is_short.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// How often checkpoints have made space.
    pub(super) fn sweeps(&self) -> u64 {
        self.sweeps.load(Ordering::Acquire)
    }

    pub(super) fn note_behind(&self) {
        self.is_behind.store(true, Ordering::Relaxed);
    }

    /// The journal lacks something that nobody waits for. Of what follows, nothing of that kind is to be in it before that is, so that a crash undoes the newest.
    #[inline]
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    /// Something more was settled and left to the next checkpoint. True: it is to be tried, which is done ever more rarely as long as there is no space.
    pub(super) fn leave_to_next(&self) -> bool {
        let count = self.left_to_it.fetch_add(1, Ordering::Relaxed) + 1;
        count >= LEFT_MIN && count.is_power_of_two()
    }

    /// What the topics' own files take.
    pub(super) fn archive_bytes(&self) -> u64 {
        self.archive_bytes.load(Ordering::Relaxed)
    }
}

/// So much is settled before it is tried for the first time.
const LEFT_MIN: u64 = 64;

impl Store {
    /// Writes a checkpoint if it is wanted, and nobody else does.
    pub(super) fn checkpoint(&self, purpose: Purpose, contents: &Contents<'_>) {
        let Ok(journal) = self.journal() else { return };
        if !self.checkpoints.is_wanted(&journal, purpose) {
            return;
        }
        let Some(mut archives) = self.checkpoints.archives.lock().take() else { return };
        let _calling = self.calling();
        let done = match purpose {
            Purpose::Time => self.write_checkpoint(&journal, &mut archives, purpose, contents),
            Purpose::Space => Err(JournalError::NoSpace),
        };
        if done == Err(JournalError::NoSpace) {
            self.sweep(&journal, &mut archives, contents);
        }
        self.checkpoints.archive_bytes.store(archives.disk_bytes(), Ordering::Relaxed);
        *self.checkpoints.archives.lock() = Some(archives);
    }

    /// Makes space of what is settled.
    fn sweep(&self, journal: &Journal<Done>, archives: &mut Archives, contents: &Contents<'_>) {
        self.checkpoints.note_full();
        let seen = journal.since_sweep();
        let mut done = Ok(());
        for _ in 0..2 {
            // What the first did not find, the second does not either: then the rest is kept.
            done = done.and_then(|()| {
                journal.give_room_back();
                self.write_checkpoint(journal, archives, Purpose::Space, contents)
            });
        }
        journal.swept(seen);
        if done.is_ok() {
            self.checkpoints.is_short.store(false, Ordering::Relaxed);
            self.checkpoints.sweeps.fetch_add(1, Ordering::Release);
        }
    }

    fn write_checkpoint(
        &self,
        journal: &Journal<Done>,
        archives: &mut Archives,
        purpose: Purpose,
        contents: &Contents<'_>,
    ) -> Result<(), JournalError> {
        let position = journal.end();
        // What comes before it is completed, and whoever waits for that wakes, before the image is begun.
        self.sync()?;
        // Before the image: what finds no space from here on may not be in it.
        let was_behind = self.checkpoints.is_behind.swap(false, Ordering::Relaxed);
        let done = self.write_image(journal, archives, purpose, contents, position);
        if done.is_ok() {
            archives.checkpointed();
            self.checkpoints.is_due.store(false, Ordering::Relaxed);
            self.checkpoints.left_to_it.store(0, Ordering::Relaxed);
        } else if was_behind {
            self.checkpoints.note_behind();
        }
        done
    }

    /// The part of a checkpoint that may fail: the state as it is now.
    fn write_image(
        &self,
        journal: &Journal<Done>,
        archives: &mut Archives,
        purpose: Purpose,
        contents: &Contents<'_>,
        position: Position,
    ) -> Result<(), JournalError> {
        let mut writer = ImageWriter::new(archives);
        if !(contents.image)(&mut writer) {
            return Err(JournalError::Closed);
        }
        let image = writer.finish();
        let chunks: Vec<io::Result<Vec<u8>>> = match image {
            Ok(chunks) => {
                if purpose == Purpose::Space {
                    journal.give_reserve_back();
                }
                // If it is not added, nothing else will be.
                let _told_to_the_next = journal.add(&(contents.numbers)(), Space::Checkpoint, None);
                chunks.into_iter().map(Ok).collect()
            }
            Err(error) => vec![Err(error)],
        };
        let len: usize = chunks.iter().flatten().map(Vec::len).sum();
        // A failure is told to whoever adds the next unit.
        let done = self.act(|journal, act| journal.try_checkpoint(position, &mut chunks.into_iter(), act));
        self.checkpoints.len.store(len as u64, Ordering::Relaxed);
        done
    }
}
