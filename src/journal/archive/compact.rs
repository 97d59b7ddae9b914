//! Files that are mostly dead are written anew without what is dead, and small ones put together.

use std::mem;
use std::sync::Arc;

use super::file::{Entry, FRAMES_AT, FileHeader, FileNumbers, FrameWriter, RECORD_PREFIX_LEN};
use super::reader::{ReadError, Records};
use super::{Archive, ArchiveError, Extent, Unsynced, failed};
use crate::journal::disk::DiskFile;
use crate::journal::layout::{remove_if_there, write_all};
use crate::sequence::Sequence;

/// Written under this name, and renamed when it is whole and safe.
pub(super) const ASIDE: &str = "compact.tmp";

/// So many small files are worth one.
const SMALL_FILES: usize = 4;

/// A file is read again when this part of its messages has died since it was read.
const LOOK_AGAIN: u64 = 8;

/// Adjacent files, and what of them lives.
#[derive(Debug, Default)]
struct Group {
    files: Vec<Arc<Entry>>,
    live: u64,
    /// One of them is at least half dead.
    is_dead: bool,
}

/// What is known of a file that was read for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighed {
    salt: u64,
    len: u64,
    /// How many messages were dead then.
    died: u64,
    /// None: it is damaged.
    live: Option<u64>,
}

/// What a compaction came to, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Compacted {
    pub(crate) read: u64,
    #[cfg_attr(not(test), expect(dead_code, reason = "the owner asks how much is in use"))]
    pub(crate) freed: u64,
}

/// What is dead in an archive.
pub(crate) trait Mortality {
    /// How many sequences in this span are known to be dead; it only rises. None: a file is to be read to learn it.
    fn died(&self, from: Sequence, to: Sequence) -> Option<u64>;
    /// Whether somebody may ask for it, also after a crash.
    fn lives(&self, sequence: Sequence) -> bool;
}

impl Archive {
    /// Writes anew the files at least half of which is dead, and puts small files together, so that use stays within twice what lives.
    /// Only files that no kept checkpoint still needs as they are, of which `kept` is the oldest's extent, are changed.
    /// Reads about `read_max` bytes at most, and goes on from there the next time.
    ///
    /// A file that is damaged is left as it is.
    ///
    /// # Errors
    /// Nothing that lives is lost; what was done until then is done.
    pub(crate) fn compact(
        &mut self,
        kept: &Extent,
        read_max: u64,
        mortality: &dyn Mortality,
    ) -> Result<Compacted, ArchiveError> {
        if self.is_unsure {
            return Ok(Compacted::default());
        }
        let before = self.disk_bytes();
        let mut group = Group::default();
        let mut read = 0;
        // What was appended to since may have to be cut.
        let last_is_old = kept.end == self.end
            && self.unsynced.next.is_none()
            && self.files.last().is_some_and(|last| last.len == kept.len);
        let is_old = |entry: &Entry| {
            let end = entry.header.numbers.last.saturating_add(1);
            end < kept.end || (end == kept.end && last_is_old)
        };
        let old: Vec<Arc<Entry>> = self.files.iter().filter(|entry| is_old(entry)).cloned().collect();
        for entry in old {
            if entry.header.numbers.first < self.compacted {
                continue;
            }
            if read >= read_max {
                self.rewrite(group, mortality)?;
                return Ok(Compacted { read, freed: before.saturating_sub(self.disk_bytes()) });
            }
            self.compacted = entry.header.numbers.last.saturating_add(1);
            let live = self.weigh(&entry, mortality, &mut read)?;
            let is_dead =
                live.is_some_and(|live| live.saturating_mul(2) <= entry.len.saturating_sub(FRAMES_AT));
            let is_small = entry.len.saturating_sub(FRAMES_AT) < (self.file_len - FRAMES_AT) / 2;
            let is_adjacent = group
                .files
                .last()
                .is_none_or(|last| last.header.numbers.last.saturating_add(1) == entry.header.numbers.first);
            let live = live.filter(|_| is_dead || is_small);
            let fits = live.is_some_and(|live| group.live.saturating_add(live) <= self.file_len);
            if !is_adjacent || !fits {
                self.rewrite(mem::take(&mut group), mortality)?;
            }
            if let Some(live) = live {
                group.live += live;
                group.is_dead |= is_dead && (entry.len > FRAMES_AT || !group.files.is_empty());
                group.files.push(entry);
            }
        }
        self.rewrite(group, mortality)?;
        self.compacted = 0;
        Ok(Compacted { read, freed: before.saturating_sub(self.disk_bytes()) })
    }

    /// How much of it lives. Reads it, unless little can have died since it was read. None: it is damaged.
    fn weigh(
        &mut self,
        entry: &Arc<Entry>,
        mortality: &dyn Mortality,
        read: &mut u64,
    ) -> Result<Option<u64>, ArchiveError> {
        let (from, to) = self.span_of(entry);
        let died = mortality.died(from, to);
        let number = entry.header.numbers.first;
        if let (Some(died), Some(before)) = (died, self.weighed.get(&number)) {
            let is_same = before.salt == entry.header.salt && before.len == entry.len;
            if is_same && died.saturating_sub(before.died) <= (to - from) / LOOK_AGAIN {
                return Ok(before.live);
            }
        }
        *read += entry.len;
        let live = self.live_bytes(entry, mortality)?;
        let (salt, len) = (entry.header.salt, entry.len);
        self.weighed.insert(number, Weighed { salt, len, died: died.unwrap_or(0), live });
        Ok(live)
    }

    /// None: it is damaged.
    fn live_bytes(&self, entry: &Arc<Entry>, mortality: &dyn Mortality) -> Result<Option<u64>, ArchiveError> {
        let mut live = 0;
        for found in self.records_of(entry) {
            match found {
                Ok((sequence, bytes)) if mortality.lives(sequence) => {
                    live += (RECORD_PREFIX_LEN + bytes.len()) as u64
                }
                Ok(_) => {}
                Err(ReadError::Damaged(_) | ReadError::Moved) => return Ok(None),
                Err(ReadError::Disk(error)) => return Err(error),
            }
        }
        Ok(Some(live))
    }

    /// The sequences that its records have.
    fn span_of(&self, entry: &Entry) -> (Sequence, Sequence) {
        let follower = self.files.iter().find(|next| next.header.first > entry.header.first);
        (entry.header.first, follower.map_or(self.next, |next| next.header.first))
    }

    fn records_of(&self, entry: &Arc<Entry>) -> Records {
        let (first, end) = self.span_of(entry);
        Records::new(self.folder.clone(), vec![entry.clone()], first, end)
    }

    /// Puts one file in the place of a group, if that is worth it.
    fn rewrite(&mut self, group: Group, mortality: &dyn Mortality) -> Result<(), ArchiveError> {
        let (Some(first), Some(last)) = (group.files.first(), group.files.last()) else { return Ok(()) };
        if !group.is_dead && group.files.len() < SMALL_FILES {
            return Ok(());
        }
        let numbers = FileNumbers { first: first.header.numbers.first, last: last.header.numbers.last };
        let header =
            FileHeader::new(self.folder.topic, numbers, first.header.first, first.header.previous_len);
        let written = self.write_aside(header, &group, mortality).inspect_err(|_| {
            // It may be for want of space, of which it then takes some.
            let _ = self.folder.disk.remove(&self.folder.path(ASIDE));
        });
        let Some(entry) = written? else { return Ok(()) };
        let name = numbers.name();
        let (disk, dir) = (&self.folder.disk, &self.folder.dir);
        let renamed = disk.rename(&dir.join(ASIDE), &dir.join(&name));
        // If it failed and was done all the same, both are there, or the new one alone: either is read, as long as no other takes in a part of them.
        self.is_unsure = renamed.is_err();
        renamed.map_err(failed("rename", ASIDE))?;
        // From here on the new one is read. Should its name be lost in a crash, the old ones are there.
        let at = self.files.partition_point(|file| file.header.numbers.first < numbers.first);
        self.files.splice(at..at + group.files.len(), [Arc::new(entry)]);
        if at + 1 == self.files.len() {
            // What is appended next begins a file.
            self.active = None;
            self.unsynced = Unsynced::default();
        }
        self.weighed.retain(|number, _| *number < numbers.first || *number > numbers.last);
        self.folder.sync()?;
        for old in group.files.iter().filter(|old| old.header.numbers != numbers) {
            let name = old.header.numbers.name();
            old.goes();
            remove_if_there(&**disk, &self.folder.path(&name)).map_err(failed("remove", name))?;
        }
        Ok(())
    }

    /// None: there is damage after all.
    fn write_aside(
        &self,
        mut header: FileHeader,
        group: &Group,
        mortality: &dyn Mortality,
    ) -> Result<Option<Entry>, ArchiveError> {
        let path = self.folder.path(ASIDE);
        remove_if_there(&*self.folder.disk, &path).map_err(failed("remove", ASIDE))?;
        let file = self.folder.disk.create(&path).map_err(failed("create", ASIDE))?;
        let mut frames = FrameWriter::new(header.salt);
        let mut entry = Entry::new(header, FRAMES_AT);
        for old in &group.files {
            for found in self.records_of(old) {
                match found {
                    Ok((sequence, bytes)) if mortality.lives(sequence) => {
                        if frames.is_full(bytes.len()) {
                            write_frame(&*file, &mut frames, &mut entry)?;
                        }
                        frames.push(sequence, &bytes);
                    }
                    Ok(_) => {}
                    Err(ReadError::Damaged(_) | ReadError::Moved) => return Ok(None),
                    Err(ReadError::Disk(error)) => return Err(error),
                }
            }
        }
        write_frame(&*file, &mut frames, &mut entry)?;
        header.len = entry.len;
        entry.header = header;
        header.write(&*file).map_err(failed("write", ASIDE))?;
        file.sync().map_err(failed("sync", ASIDE))?;
        Ok(Some(entry))
    }
}

fn write_frame(file: &dyn DiskFile, frames: &mut FrameWriter, entry: &mut Entry) -> Result<(), ArchiveError> {
    if let Some((base, bytes)) = frames.take(entry.len) {
        write_all(file, bytes, entry.len).map_err(failed("write", ASIDE))?;
        entry.index.note(base, entry.len);
        entry.len += bytes.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
impl<F: Fn(Sequence) -> bool> Mortality for F {
    fn died(&self, _: Sequence, _: Sequence) -> Option<u64> {
        None
    }

    fn lives(&self, sequence: Sequence) -> bool {
        self(sequence)
    }
}
