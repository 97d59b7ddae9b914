//! Files that are mostly dead are written anew without what is dead, and small ones put together.

use std::mem;
use std::sync::Arc;

use super::file::{Entry, FRAMES_AT, FileHeader, FileNumbers, FrameWriter, RECORD_PREFIX_LEN};
use super::reader::{ReadError, Records};
use super::{Archive, ArchiveError, Extent, failed};
use crate::journal::disk::DiskFile;
use crate::journal::layout::{remove_if_there, write_all};
use crate::sequence::Sequence;

/// Written under this name, and renamed when it is whole and safe.
pub(super) const ASIDE: &str = "compact.tmp";

/// So many small files are worth one.
const SMALL_FILES: usize = 4;

/// Adjacent files, and what of them lives.
#[derive(Debug, Default)]
struct Group {
    files: Vec<Arc<Entry>>,
    live: u64,
    /// One of them is at least half dead.
    is_dead: bool,
}

impl Archive {
    /// Writes anew the files at least half of which is dead, and puts small files together, so that use stays within twice what lives. `lives` says whether a record does, and must say so of every
    /// record that somebody may ask for after a crash. Only files before the last one of `kept`, the oldest extent that a kept checkpoint notes, are changed.
    /// Reads about `read_max` bytes at most, and goes on from there the next time. Gives how many bytes less are in use.
    ///
    /// A file that is damaged is left as it is.
    ///
    /// # Errors
    /// Nothing that lives is lost; what was done until then is done.
    pub(crate) fn compact(
        &mut self,
        kept: &Extent,
        read_max: u64,
        lives: &mut dyn FnMut(Sequence) -> bool,
    ) -> Result<u64, ArchiveError> {
        if self.is_unsure {
            return Ok(0);
        }
        let before = self.disk_bytes();
        let mut group = Group::default();
        let mut read = 0;
        let is_old = |entry: &Entry| entry.header.numbers.last.saturating_add(1) < kept.end;
        let old: Vec<Arc<Entry>> = self.files.iter().filter(|entry| is_old(entry)).cloned().collect();
        for entry in old {
            if entry.header.numbers.first < self.compacted {
                continue;
            }
            if read >= read_max {
                self.rewrite(group, lives)?;
                return Ok(before.saturating_sub(self.disk_bytes()));
            }
            read += entry.len;
            self.compacted = entry.header.numbers.last.saturating_add(1);
            let live = self.live_bytes(&entry, lives)?;
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
                self.rewrite(mem::take(&mut group), lives)?;
            }
            if let Some(live) = live {
                group.live += live;
                group.is_dead |= is_dead && (entry.len > FRAMES_AT || !group.files.is_empty());
                group.files.push(entry);
            }
        }
        self.rewrite(group, lives)?;
        self.compacted = 0;
        Ok(before.saturating_sub(self.disk_bytes()))
    }

    /// None: it is damaged.
    fn live_bytes(
        &self,
        entry: &Arc<Entry>,
        lives: &mut dyn FnMut(Sequence) -> bool,
    ) -> Result<Option<u64>, ArchiveError> {
        let mut live = 0;
        for found in self.records_of(entry) {
            match found {
                Ok((sequence, bytes)) if lives(sequence) => live += (RECORD_PREFIX_LEN + bytes.len()) as u64,
                Ok(_) => {}
                Err(ReadError::Damaged(_) | ReadError::Moved) => return Ok(None),
                Err(ReadError::Disk(error)) => return Err(error),
            }
        }
        Ok(Some(live))
    }

    fn records_of(&self, entry: &Arc<Entry>) -> Records {
        let follower = self.files.iter().find(|next| next.header.first > entry.header.first);
        let end = follower.map_or(self.next, |next| next.header.first);
        Records::new(self.folder.clone(), vec![entry.clone()], entry.header.first, end)
    }

    /// Puts one file in the place of a group, if that is worth it.
    fn rewrite(&mut self, group: Group, lives: &mut dyn FnMut(Sequence) -> bool) -> Result<(), ArchiveError> {
        let (Some(first), Some(last)) = (group.files.first(), group.files.last()) else { return Ok(()) };
        if !group.is_dead && group.files.len() < SMALL_FILES {
            return Ok(());
        }
        let numbers = FileNumbers { first: first.header.numbers.first, last: last.header.numbers.last };
        let header =
            FileHeader::new(self.folder.topic, numbers, first.header.first, first.header.previous_len);
        let Some(entry) = self.write_aside(header, &group, lives)? else { return Ok(()) };
        let name = numbers.name();
        let (disk, dir) = (&self.folder.disk, &self.folder.dir);
        let renamed = disk.rename(&dir.join(ASIDE), &dir.join(&name));
        // If it failed and was done all the same, both are there, or the new one alone: either is read, as long as no other takes in a part of them.
        self.is_unsure = renamed.is_err();
        renamed.map_err(failed("rename", ASIDE))?;
        // From here on the new one is read. Should its name be lost in a crash, the old ones are there.
        let at = self.files.partition_point(|file| file.header.numbers.first < numbers.first);
        self.files.splice(at..at + group.files.len(), [Arc::new(entry)]);
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
        lives: &mut dyn FnMut(Sequence) -> bool,
    ) -> Result<Option<Entry>, ArchiveError> {
        let path = self.folder.path(ASIDE);
        remove_if_there(&*self.folder.disk, &path).map_err(failed("remove", ASIDE))?;
        let file = self.folder.disk.create(&path).map_err(failed("create", ASIDE))?;
        let mut frames = FrameWriter::new(header.salt);
        let mut entry = Entry::new(header, FRAMES_AT);
        for old in &group.files {
            for found in self.records_of(old) {
                match found {
                    Ok((sequence, bytes)) if lives(sequence) => {
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
