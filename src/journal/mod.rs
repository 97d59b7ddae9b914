//! The journal remembers on disk: the one commit point of a broker that keeps its messages in a directory.
//!
//! A journal is a stream of *units*, byte strings that are there after a crash whole or not at all, each at a [`Position`]; and now and then a checkpoint, an
//! image of all that the stream has said. What units and images mean is known above.
//!
//! | room | what |
//! |---|---|
//! | `layout` | what lies where in the directory, and the header of every file |
//! | `frame` | what was written together <-> bytes with checksums |
//! | `segment` | one file of the stream |
//! | `watermark` | what is known to be synced |
//! | `writer` | the end of the stream |
//! | `commit` | group commit |
//! | `checkpoint` | images, of which the two newest are kept |
//! | `read`, `survey`, `walk`, `recovery` | from what is found in a directory to a journal that goes on |
//! | `disk` | the few file verbs, as a trait |

pub(crate) mod disk;

pub(crate) mod archive;
mod checkpoint;
mod commit;
mod error;
mod frame;
mod layout;
mod read;
pub(crate) mod record;
mod recovery;
mod segment;
mod survey;
mod walk;
mod watermark;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::checkpoint::CheckpointHeader;
use self::commit::{Commits, Level};
use self::disk::{Disk, Lock};
pub(crate) use self::error::{Damage, JournalError, JournalOpenError};
pub(crate) use self::recovery::{Recovery, Replayed, quarantine};
use self::segment::WriteError;
pub(crate) use self::writer::Space;
use self::writer::{Writer, reserve_of};
use crate::sync::Mutex;

/// How safe a unit is when its commit returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It survives a power cut.
    Always,
    /// It survives a crash of the process; a power cut loses the newest, at most of this time if [`Journal::sync_all`] is called as often.
    Interval(Duration),
    /// It survives a crash of the process.
    Os,
}

/// What to do when bytes are found that are not what was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDamage {
    /// Open nothing and change nothing.
    Refuse,
    /// Copy them aside, leave them out, and say what is gone.
    Continue,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalOptions {
    pub(crate) durability: Durability,
    /// About how long a segment's file is, in bytes, from 16 KiB.
    pub(crate) segment_len: u64,
    /// As much is written between two checkpoints at least. Twice that is kept of the stream, and not quite two segments more.
    pub(crate) segments_per_checkpoint: u64,
    pub(crate) on_damage: OnDamage,
}

impl JournalOptions {
    const SEGMENT_LEN_MIN: u64 = 16 << 10;

    pub(crate) fn new(durability: Durability) -> Self {
        JournalOptions {
            durability,
            segment_len: 4 << 20,
            segments_per_checkpoint: 2,
            on_damage: OnDamage::Refuse,
        }
    }

    fn segment_len(&self) -> u64 {
        self.segment_len.clamp(Self::SEGMENT_LEN_MIN, 1 << 32)
    }

    /// See [`Journal::wants_checkpoint`].
    pub(crate) fn checkpoint_len(&self) -> u64 {
        self.segment_len() * self.segments_per_checkpoint.clamp(1, 64)
    }
}

/// A unit's place in the stream, from 0. Never given to a second unit, except that after a crash the positions of units that were not confirmed are given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Position(pub(crate) u64);

/// An open journal. `T` is what comes with a unit and is handed back when it is as safe as [`Durability`] promises.
///
/// Every unit's `T` is given to the `act` of one of the calls that commit, exactly once and in the order of the units: with `Ok` when the unit is as safe as
/// promised, with an error when it is not in the journal or may not be. Who calls `act` is whoever leads, so all callers pass the same function. It is called under no lock but
/// the right to lead, and may not call the journal. What was never committed is dropped with the journal.
///
/// Dropping a journal without [`close`](Self::close) is as if the process had crashed.
pub(crate) struct Journal<T> {
    commits: Commits<T>,
    commit_level: Level,
    segment_len: u64,
    checkpoint_len: u64,
    /// Held by who writes a checkpoint.
    checkpointing: Mutex<()>,
    disk: Arc<dyn Disk>,
    /// Last, so that it is let go when all else is.
    _lock: Box<dyn Lock>,
}

impl<T: Send> Journal<T> {
    /// Opens the journal in a directory, which is made if it is not there (its parent must be), and gives `visit` all that it holds, in order: the chunks of the newest checkpoint, then
    /// the units since. What a crash left unfinished is finished before it returns.
    ///
    /// # Errors
    /// See [`JournalOpenError`]. What `visit` was given up to then is void.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
        visit: &mut dyn FnMut(Replayed<'_>) -> Result<(), String>,
    ) -> Result<(Self, Recovery), JournalOpenError> {
        let opened = recovery::open(&disk, dir, &options, visit)?;
        let commit_level = match options.durability {
            Durability::Always => Level::Synced,
            Durability::Interval(_) | Durability::Os => Level::Written,
        };
        let next = opened.recovery.end.0;
        let journal = Journal {
            commits: Commits::new(opened.writer, next, commit_level),
            commit_level,
            segment_len: options.segment_len(),
            checkpoint_len: options.checkpoint_len(),
            checkpointing: Mutex::new(()),
            disk,
            _lock: opened.lock,
        };
        Ok((journal, opened.recovery))
    }

    /// Queues a unit behind all that were queued before. Touches no file; one short lock.
    ///
    /// # Errors
    /// The unit was not queued, is not in the journal, and its `T` is dropped: [`JournalError::Poisoned`], [`Closed`](JournalError::Closed), [`TooLarge`](JournalError::TooLarge).
    pub(crate) fn add(&self, unit: &[u8], space: Space, done: T) -> Result<Position, JournalError> {
        self.commits.add(unit, space, done, Level::Written).map(Position)
    }

    /// [`add`](Self::add) of what is to survive a power cut before anybody acts on it, whatever is promised: whoever commits or writes it, syncs.
    pub(crate) fn add_synced_first(
        &self,
        unit: &[u8],
        space: Space,
        done: T,
    ) -> Result<Position, JournalError> {
        self.commits.add(unit, space, done, Level::Synced).map(Position)
    }

    /// Queues a unit behind all others, and accepts nothing more: it is the last, if there is room for it. Nothing is done if that was so before.
    pub(crate) fn add_last(&self, unit: &[u8], done: T) {
        self.commits.add_last(unit, done);
    }

    /// Waits until the unit and all before it are as safe as promised and acted on. The first who waits does it, for all that have arrived.
    ///
    /// # Errors
    /// [`JournalError::NoSpace`]: this unit is not in the journal; what becomes of others is theirs to know. [`Poisoned`](JournalError::Poisoned) likewise.
    /// [`Indeterminate`](JournalError::Indeterminate): nobody knows before the directory is opened again.
    pub(crate) fn commit(
        &self,
        position: Position,
        act: &mut dyn FnMut(T, Result<(), JournalError>),
    ) -> Result<(), JournalError> {
        self.commits.settle(position.0, self.commit_level, act)
    }

    /// Waits until the unit and all before it survive a crash of the process. Nothing is synced for it but what is to be [synced first](Self::add_synced_first).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub(crate) fn write(
        &self,
        position: Position,
        act: &mut dyn FnMut(T, Result<(), JournalError>),
    ) -> Result<(), JournalError> {
        self.commits.settle(position.0, Level::Written, act)
    }

    /// What [`commit`](Self::commit) would answer at once. None: it would have to wait.
    pub(crate) fn committed(&self, position: Position) -> Option<Result<(), JournalError>> {
        self.commits.outcome(position.0, self.commit_level)
    }

    /// What [`write`](Self::write) would answer at once. None: it would have to wait.
    pub(crate) fn written(&self, position: Position) -> Option<Result<(), JournalError>> {
        self.commits.outcome(position.0, Level::Written)
    }

    /// Whether since this was last asked a unit was refused that may use the reserve: if nobody waited for it, nobody was told.
    pub(crate) fn take_refusal(&self) -> bool {
        self.commits.take_refusal()
    }

    /// Waits until all that was added survives a power cut.
    ///
    /// # Errors
    /// [`JournalError::Poisoned`] and [`Indeterminate`](JournalError::Indeterminate). That some unit found no space is no error here.
    pub(crate) fn sync_all(
        &self,
        act: &mut dyn FnMut(T, Result<(), JournalError>),
    ) -> Result<(), JournalError> {
        self.commits.settle_all(Level::Synced, act)
    }

    /// How much was written since the last checkpoint, in bytes.
    pub(crate) fn since_checkpoint(&self) -> u64 {
        self.commits.since_checkpoint()
    }

    /// As much was written since the last checkpoint as is to be: time for the next.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.commits.since_checkpoint() >= self.checkpoint_len
    }

    /// [`try_checkpoint`](Self::try_checkpoint) of what cannot fail.
    #[cfg(test)]
    pub(crate) fn checkpoint(
        &self,
        position: Position,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
        act: &mut dyn FnMut(T, Result<(), JournalError>),
    ) -> Result<(), JournalError> {
        self.try_checkpoint(position, &mut chunks.map(Ok), act)
    }

    /// Writes an image of the state as all units before `position` have made it, and lets go of what neither this checkpoint nor the one before needs. Others commit meanwhile.
    ///
    /// A chunk that is an error is as one that cannot be written.
    ///
    /// # Errors
    /// [`JournalError::NoSpace`]: nothing changed, and units may still be added. Otherwise the journal accepts nothing more.
    ///
    /// # Panics
    /// When `position` is after the end, or before that of an earlier checkpoint.
    pub(crate) fn try_checkpoint(
        &self,
        position: Position,
        chunks: &mut dyn Iterator<Item = io::Result<Vec<u8>>>,
        act: &mut dyn FnMut(T, Result<(), JournalError>),
    ) -> Result<(), JournalError> {
        let _one = self.checkpointing.lock();
        if let Some(reason) = self.poisoned() {
            return Err(JournalError::Poisoned(reason));
        }
        if let Some(last) = position.0.checked_sub(1) {
            match self.commits.settle(last, Level::Synced, act) {
                Ok(()) | Err(JournalError::NoSpace) => {}
                Err(error) => return Err(error),
            }
        }
        let (dir, header) = self.commits.with_writer(|writer| {
            assert!(
                writer.checkpoints.last().is_none_or(|&(newest, _)| newest <= position.0),
                "checkpoints only go forward"
            );
            let (identity, durable) = (writer.identity, writer.durable);
            (writer.dir.clone(), CheckpointHeader { identity, position: position.0, durable })
        });
        // The image may have seen units that came after the position: it must not outlive them.
        let mut sync_what_it_saw = || {
            self.commits.settle_all(Level::Synced, act).map_err(|error| io::Error::other(error.to_string()))
        };
        match checkpoint::write(&*self.disk, &dir, &header, chunks, &mut sync_what_it_saw) {
            Ok(len) => {
                self.commits.with_writer(|writer| {
                    writer.checkpointed(position.0, len);
                    // On a full disk it does without, and takes in nothing that takes space.
                    let _while_tight = writer.renew_reserve();
                });
                Ok(())
            }
            Err(error) => {
                if matches!(error, WriteError::Full(_)) {
                    // The image is gone with the iterator; the next attempt finds the space.
                    self.commits.with_writer(|writer| writer.drop_spare());
                }
                Err(self.commits.poison_outside(error))
            }
        }
    }

    /// How much was written since checkpoints were last begun for the space that they free, in bytes, without the checkpoints' own. 0: to do it again would free nothing more.
    pub(crate) fn since_sweep(&self) -> u64 {
        self.commits.since_sweep()
    }

    /// As much was written as makes it worth while to look on a full disk for what has become free, before somebody finds no space.
    pub(crate) fn wants_sweep(&self) -> bool {
        self.commits.since_sweep() >= reserve_of(self.segment_len) / 4
    }

    /// Gives back what was taken of the disk ahead of need, so that a checkpoint finds room on a full disk. What is kept for [`Space::Reserve`] stays, and nothing
    /// else is written before [`swept`](Self::swept).
    pub(crate) fn give_room_back(&self) {
        self.commits.with_writer(Writer::give_room_back);
    }

    /// Gives back what is kept for the checkpoint's own file: all else that it writes is written.
    pub(crate) fn give_reserve_back(&self) {
        self.commits.with_writer(Writer::give_reserve_back);
    }

    /// Checkpoints were made for the space that they free, or found none themselves. Takes again what the next ones need, if it can be had.
    ///
    /// `seen`: what [`since_sweep`](Self::since_sweep) was before the first. What came later may be in its image still, and another one is to let go of it.
    pub(crate) fn swept(&self, seen: u64) {
        self.commits.with_writer(|writer| {
            writer.since_sweep = writer.since_sweep.saturating_sub(seen);
            writer.is_sweeping = false;
            let _while_tight = writer.renew_reserve();
        });
    }

    /// The position that the next unit gets.
    pub(crate) fn end(&self) -> Position {
        Position(self.commits.next())
    }

    /// What the journal's files take.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.commits.disk_bytes()
    }

    /// Why nothing more is accepted, if so.
    pub(crate) fn poisoned(&self) -> Option<Arc<str>> {
        self.commits.poisoned()
    }

    /// Accepts nothing more, commits and syncs what was added, and notes that all is synced, so that the next opening has nothing to finish.
    ///
    /// # Errors
    /// As [`sync_all`](Self::sync_all).
    pub(crate) fn close(&self, act: &mut dyn FnMut(T, Result<(), JournalError>)) -> Result<(), JournalError> {
        self.commits.close(act)
    }
}

impl<T> fmt::Debug for Journal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("disk", &self.disk).finish_non_exhaustive()
    }
}
