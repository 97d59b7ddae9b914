//! What outlives the journal: each topic's own files, as the two kept checkpoints note them.
//!
//! Nothing that one of them may need is changed or removed: what a topic does not need any more is forgotten at one checkpoint, and goes when the next but one is complete.

mod opening;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub(super) use self::opening::Found;
use crate::journal::archive::{Archive, ArchiveError, Extent, Mortality};
use crate::journal::disk::Disk;
use crate::sequence::Sequence;

/// So much is read at most, to find out what may be written anew without what is dead, after a checkpoint: as many times what is written between two.
const COMPACTION_PART: u64 = 2;

/// The files of all topics that have some.
pub(super) struct Archives {
    disk: Arc<dyn Disk>,
    home: PathBuf,
    file_len: u64,
    checkpoint_len: u64,
    topics: BTreeMap<u64, Kept>,
    /// Where compaction goes on.
    compacted: u64,
    /// Some were damaged when they were opened, and are to be written anew.
    were_damaged: bool,
}

/// The files of one topic.
struct Kept {
    archive: Archive,
    /// What the older of the two newest checkpoints notes.
    older: Option<Extent>,
    /// What the newest one does.
    newest: Option<Extent>,
    /// What the image under way does.
    imaged: Option<Extent>,
    /// What nobody can ask for any more once the image under way counts; and up to where that was looked for.
    dead: Dead,
    dead_to: Option<Sequence>,
}

impl Archives {
    /// Of a disk with all the room there is in an image, so that none are made.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        let disk = Arc::new(crate::journal::disk::sim::SimDisk::new());
        let (home, file_len, checkpoint_len) = (PathBuf::from("/"), 1 << 20, u64::MAX);
        Archives {
            disk,
            home,
            file_len,
            checkpoint_len,
            topics: BTreeMap::new(),
            compacted: 0,
            were_damaged: false,
        }
    }

    pub(super) fn checkpoint_len(&self) -> u64 {
        self.checkpoint_len
    }

    pub(super) fn were_damaged(&self) -> bool {
        self.were_damaged
    }

    /// What they take.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.topics.values().map(|kept| kept.archive.disk_bytes()).sum()
    }

    pub(super) fn begin_image(&mut self) {
        self.topics.values_mut().for_each(|kept| kept.imaged = None);
    }

    /// What comes before it is in the topic's own files. None: it has none.
    pub(super) fn next_of(&self, topic: u64) -> Option<Sequence> {
        self.topics.get(&topic).map(|kept| kept.archive.next())
    }

    /// What is dead of all that the topic has in files of its own was said before.
    pub(super) fn knows_dead(&self, topic: u64) -> bool {
        self.topics.get(&topic).is_some_and(|kept| kept.dead_to == Some(kept.archive.next()))
    }

    /// What the topic has in files of its own is in the image again.
    pub(super) fn take_back(&mut self, topic: u64) {
        if let Some(kept) = self.topics.get_mut(&topic) {
            kept.archive.begin_again();
            kept.dead = Dead::default();
            kept.dead_to = None;
        }
    }

    /// Of what the topic has in files of its own, nobody needs what comes before `oldest`, nor what is dead.
    pub(super) fn died(&mut self, topic: u64, oldest: Sequence, dead: Dead) {
        if let Some(kept) = self.topics.get_mut(&topic) {
            kept.archive.drop_before(oldest);
            kept.dead = dead;
            kept.dead_to = Some(kept.archive.next());
        }
    }

    /// The topic's next messages, in order.
    pub(super) fn append(&mut self, topic: u64, records: Vec<(Sequence, Vec<u8>)>) -> io::Result<()> {
        let kept = match self.topics.entry(topic) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let (disk, file_len) = (self.disk.clone(), self.file_len);
                let opened = Archive::open(disk, &self.home, topic, Extent::EMPTY, file_len);
                vacant.insert(Kept::new(opened.map_err(to_io)?.0, None))
            }
        };
        kept.archive.append(records).map_err(to_io)
    }

    /// Makes safe what was appended. Gives what the image is to note, if anything.
    pub(super) fn sync(&mut self, topic: u64) -> io::Result<Option<Extent>> {
        let Some(kept) = self.topics.get_mut(&topic) else { return Ok(None) };
        let extent = kept.archive.sync().map_err(to_io)?;
        kept.imaged = Some(extent);
        Ok(kept.imaged)
    }

    /// The image counts. What neither it nor the one before needs goes; what cannot be removed now goes another time.
    pub(super) fn checkpointed(&mut self) {
        for kept in self.topics.values_mut() {
            kept.older = std::mem::replace(&mut kept.newest, kept.imaged.take());
            if let Some(older) = kept.older.or(kept.newest.is_some().then_some(Extent::EMPTY)) {
                let _another_time = kept.archive.let_go(&older);
            }
        }
        // Of a topic that neither knows, nothing is needed.
        let (disk, home) = (&self.disk, &self.home);
        self.topics.retain(|topic, kept| {
            let is_needed = kept.older.is_some() || kept.newest.is_some();
            is_needed || Archive::remove(&**disk, home, *topic).is_err()
        });
        self.compact();
    }

    fn compact(&mut self) {
        let mut budget = self.checkpoint_len.saturating_mul(COMPACTION_PART);
        let from = self.compacted;
        self.compacted = 0;
        for (topic, kept) in self.topics.range_mut(from..) {
            if budget == 0 {
                self.compacted = *topic;
                return;
            }
            if let (Some(older), Some(_)) = (kept.older, kept.newest) {
                // What fails leaves all as it was.
                let read = kept.archive.compact(&older, budget, &kept.dead).map_or(budget, |done| done.read);
                budget = budget.saturating_sub(read);
            }
        }
    }
}

impl Kept {
    fn new(archive: Archive, newest: Option<Extent>) -> Self {
        Kept { archive, older: None, newest, imaged: None, dead: Dead::default(), dead_to: None }
    }
}

/// What of a topic nobody can ask for any more: ranges in order, none of which touches the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Dead(Vec<DeadRange>);

#[derive(Clone, Copy, Debug)]
struct DeadRange {
    from: Sequence,
    to: Sequence,
    /// How many are dead in the ranges before.
    before: u64,
}

impl Dead {
    pub(super) fn new(ranges: Vec<(Sequence, Sequence)>) -> Self {
        let mut dead: Vec<DeadRange> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges.into_iter().filter(|(from, to)| from < to) {
            let before = dead.last().map_or(0, |last| last.before + (last.to - last.from));
            dead.push(DeadRange { from, to, before });
        }
        Dead(dead)
    }

    /// How many in this span are not dead.
    pub(super) fn living(&self, from: Sequence, to: Sequence) -> u64 {
        (to - from).saturating_sub(self.before(to).saturating_sub(self.before(from)))
    }

    /// How many come before it.
    fn before(&self, sequence: Sequence) -> u64 {
        let at = self.0.partition_point(|range| range.from < sequence);
        let last = at.checked_sub(1).and_then(|at| self.0.get(at));
        last.map_or(0, |last| last.before + (last.to.min(sequence) - last.from))
    }
}

impl Mortality for Dead {
    fn died(&self, from: Sequence, to: Sequence) -> Option<u64> {
        Some(self.before(to).saturating_sub(self.before(from)))
    }

    fn lives(&self, sequence: Sequence) -> bool {
        self.before(sequence.next()) == self.before(sequence)
    }
}

/// That a disk is full is said as the disk does.
fn to_io(error: ArchiveError) -> io::Error {
    let full = match &error {
        ArchiveError::Io { error, .. } => Some(error.kind()),
        ArchiveError::Version { .. } => None,
    };
    match full {
        Some(kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => {
            io::Error::new(kind, error.to_string())
        }
        _ => io::Error::other(error.to_string()),
    }
}
