//! When a checkpoint is written, and what into it.

use std::io;

use crate::engine::local::archiving::Archives;
use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::store::Store;
use crate::journal::{Journal, Space};
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
    /// None: somebody writes one, and has them.
    archives: Mutex<Option<Archives>>,
    /// What they take, as of the last one.
    archive_bytes: AtomicU64,
}

impl Checkpoints {
    pub(super) fn new(archives: Archives) -> Self {
        Checkpoints {
            len: AtomicU64::new(0),
            is_due: AtomicBool::new(archives.were_damaged()),
            is_behind: AtomicBool::new(false),
            left_to_it: AtomicU64::new(0),
            archive_bytes: AtomicU64::new(archives.disk_bytes()),
            archives: Mutex::new(Some(archives)),
        }
    }

    /// As much is written between two as an image holds, so that images cost no more than what they are of.
    pub(super) fn is_time<T: Send>(&self, journal: &Journal<T>) -> bool {
        let is_enough = || journal.since_checkpoint() >= self.len.load(Ordering::Relaxed);
        self.is_due.load(Ordering::Relaxed) || self.is_behind() || (journal.wants_checkpoint() && is_enough())
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
    /// Writes a checkpoint if it is time, and nobody else does.
    ///
    /// `numbers` is a unit that says so when the image is complete: what is replayed after it, nothing of the image has seen.
    pub(super) fn checkpoint_in_time(
        &self,
        image: impl FnOnce(&mut ImageWriter<'_>) -> bool,
        numbers: impl FnOnce() -> Vec<u8>,
    ) {
        let Ok(journal) = self.journal() else { return };
        if !self.checkpoints.is_time(&journal) {
            return;
        }
        let Some(mut archives) = self.checkpoints.archives.lock().take() else { return };
        let position = journal.end();
        // What comes before it is completed, and whoever waits for that wakes, before the image is begun.
        if self.sync().is_err() {
            *self.checkpoints.archives.lock() = Some(archives);
            return;
        }
        let mut what = Some((image, numbers));
        let mut chunks = Vec::new().into_iter();
        let mut len = 0;
        let mut was_behind = false;
        // Asked for the first chunk when all before the position is synced, and so completed.
        let mut lazily = std::iter::from_fn(|| {
            if let Some((image, numbers)) = what.take() {
                // Before the image: what finds no space from here on may not be in it.
                was_behind = self.checkpoints.is_behind.swap(false, Ordering::Relaxed);
                let mut writer = ImageWriter::new(&mut archives);
                if !image(&mut writer) {
                    return Some(Err(io::ErrorKind::StorageFull.into()));
                }
                chunks = match writer.finish() {
                    Ok(chunks) => chunks.into_iter(),
                    Err(error) => return Some(Err::<_, io::Error>(error)),
                };
                // If it is not added, nothing else will be.
                let _told_to_the_next = journal.add(&numbers(), Space::Reserve, None);
            }
            chunks.next().map(|chunk: Vec<u8>| {
                len += chunk.len() as u64;
                Ok(chunk)
            })
        });
        // A failure is told to whoever adds the next unit.
        let done = self.act(|journal, act| journal.try_checkpoint(position, &mut lazily, act));
        if done.is_ok() {
            archives.checkpointed();
            self.checkpoints.is_due.store(false, Ordering::Relaxed);
            self.checkpoints.left_to_it.store(0, Ordering::Relaxed);
        } else if was_behind {
            self.checkpoints.note_behind();
        }
        self.checkpoints.archive_bytes.store(archives.disk_bytes(), Ordering::Relaxed);
        self.checkpoints.len.store(len, Ordering::Relaxed);
        *self.checkpoints.archives.lock() = Some(archives);
    }
}
