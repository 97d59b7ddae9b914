//! A topic's own files: what still lives of its messages when a segment of the journal is let go.
//!
//! A record is a sequence and bytes that mean nothing here. The files of a topic lie in a folder named by its number, and hold its records in the order of
//! their sequences; see [`file`] for what is in them. Frames are the journal's own, and their checksums are verified at every read.
//!
//! What is there is said by an [`Extent`], which the owner notes in every checkpoint of the journal. What a crash left behind its end is cut, because the journal still
//! has it; what is missing before its end is damage. Nothing that an extent of a kept checkpoint needs is ever changed: [`Archive::drop_before`] only forgets, and
//! [`Archive::let_go`] and [`Archive::compact`] are given the oldest extent that is kept.

mod compact;
mod file;
mod reader;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::compact::Mortality;
use self::compact::Weighed;
use self::file::{Entry, FRAMES_AT, FileHeader, FileNumbers, FrameWriter};
pub(crate) use self::reader::{ReadError, Records};
use super::disk::{Access, Disk, DiskFile};
use super::error::Damage;
use super::frame::UNIT_LEN_MAX;
use super::layout::{number_in, remove_if_there, write_all};
use crate::sequence::Sequence;

/// What one record may hold.
pub(crate) const RECORD_LEN_MAX: u32 = UNIT_LEN_MAX - 16;

/// Which files there are, how far the last one reaches, and what is in them: what a checkpoint notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first file number.
    pub(crate) first: u64,
    /// The one after the last. Equal to `first`: there is no file.
    pub(crate) end: u64,
    /// How many bytes of the last file are in use.
    pub(crate) len: u64,
    /// All records come before it: what the journal has from here on is to be appended.
    pub(crate) next: Sequence,
}

impl Extent {
    /// A new topic's.
    pub(crate) const EMPTY: Extent = Extent { first: 0, end: 0, len: 0, next: Sequence::FIRST };
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// A newer version of this crate wrote it. Nothing was changed.
    #[error("{file} is of format version {major}, which is unknown here")]
    Version { file: String, major: u16 },
    /// The disk failed, or is full.
    #[error("{verb} {file}: {error}")]
    Io { verb: &'static str, file: String, error: io::Error },
}

fn failed(verb: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> ArchiveError {
    move |error| ArchiveError::Io { verb, file: file.into(), error }
}

/// One topic's files, open.
///
/// Invariant: the numbers of `files` rise, all below `end`.
#[derive(Debug)]
pub(crate) struct Archive {
    folder: Folder,
    file_len: u64,
    files: Vec<Arc<Entry>>,
    /// The number that the next file begins with.
    end: u64,
    /// Larger than any that a file was ever given, also one that failed.
    number_next: u64,
    /// All records come before it.
    next: Sequence,
    /// Forgotten and not yet unlinked.
    going: Vec<Arc<Entry>>,
    garbage: survey::Garbage,
    /// The last file, while it is appended to.
    active: Option<Active>,
    unsynced: Unsynced,
    /// The file number where compaction goes on.
    compacted: u64,
    /// By file number.
    weighed: BTreeMap<u64, Weighed>,
    /// A rename failed, so that nobody knows whether it was done: no more compaction until the archive is opened again.
    is_unsure: bool,
}

/// Where the files of a topic lie.
#[derive(Clone, Debug)]
struct Folder {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    topic: u64,
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// As messages name it.
    fn name(&self) -> String {
        folder_name(self.topic)
    }

    fn sync(&self) -> Result<(), ArchiveError> {
        self.disk.sync_dir(&self.dir).map_err(failed("sync", self.name()))
    }
}

#[derive(Debug)]
struct Active {
    file: Arc<dyn DiskFile>,
    name: String,
    frames: FrameWriter,
    len: u64,
}

/// What was done since the last sync: to be synced, or undone.
#[derive(Debug, Default)]
struct Unsynced {
    /// The files that were written to.
    handles: Vec<Arc<dyn DiskFile>>,
    /// How many files were made; they are the last ones.
    made: usize,
    /// How long the file before them was, if it was appended to.
    len: Option<u64>,
    /// What `next` was, if anything was appended.
    next: Option<Sequence>,
}

impl Archive {
    /// Opens the files of a topic, as `extent` says they are. `home`, where the folder is made when there is something to put into it, must be there. Reads the headers of the files, no more, and
    /// changes nothing: what is behind the extent is taken away by [`clean`](Self::clean), and what is before it by [`let_go`](Self::let_go).
    ///
    /// What is missing or cannot be read is listed, and left out of what is read. What a crash may do is not listed.
    ///
    /// # Errors
    /// The disk failed, or a newer version wrote it.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        home: &Path,
        topic: u64,
        extent: Extent,
        file_len: u64,
    ) -> Result<(Archive, Vec<Damage>), ArchiveError> {
        let folder = Folder { disk, dir: home.join(folder_name(topic)), topic };
        let found = survey::survey(&folder, extent)?;
        let archive = Archive {
            folder,
            file_len: file_len.max(FRAMES_AT + 1),
            files: found.files.into_iter().map(Arc::new).collect(),
            end: extent.end,
            number_next: found.number_next.max(extent.end),
            next: extent.next,
            going: found.before.into_iter().map(Arc::new).collect(),
            garbage: found.garbage,
            active: None,
            unsynced: Unsynced::default(),
            compacted: 0,
            weighed: BTreeMap::new(),
            is_unsure: false,
        };
        Ok((archive, found.damages))
    }

    /// Takes away what a crash has left behind the extent.
    ///
    /// # Errors
    /// It stays, and is no hindrance.
    pub(crate) fn clean(&mut self) -> Result<(), ArchiveError> {
        mem::take(&mut self.garbage).clean(&self.folder)
    }

    /// All records come before it.
    pub(crate) fn next(&self) -> Sequence {
        self.next
    }

    /// Forgets all that was appended, so that it may be appended anew: for when a part of it was lost. What is not synced must be nothing.
    pub(crate) fn begin_again(&mut self) {
        self.active = None;
        self.going.append(&mut self.files);
        self.end = self.number_next;
        self.next = Sequence::FIRST;
        self.compacted = 0;
    }

    /// Appends records, whose sequences rise and come after all that are there. They are read from now on, and safe after [`sync`](Self::sync).
    ///
    /// # Errors
    /// Nothing that was appended since the last sync is in the archive: append it again. When there is space, or the disk is well again, that succeeds.
    ///
    /// # Panics
    /// When the sequences do not rise, or a record is longer than [`RECORD_LEN_MAX`].
    pub(crate) fn append<B: AsRef<[u8]>>(
        &mut self,
        records: impl IntoIterator<Item = (Sequence, B)>,
    ) -> Result<(), ArchiveError> {
        self.try_append(records).inspect_err(|_| self.go_back())
    }

    fn try_append<B: AsRef<[u8]>>(
        &mut self,
        records: impl IntoIterator<Item = (Sequence, B)>,
    ) -> Result<(), ArchiveError> {
        for (sequence, bytes) in records {
            let bytes = bytes.as_ref();
            assert!(sequence >= self.next, "{sequence:?} comes before {:?}", self.next);
            assert!(bytes.len() <= RECORD_LEN_MAX as usize, "a record is at most RECORD_LEN_MAX");
            self.unsynced.next.get_or_insert(self.next);
            // A frame is of one file, so that the file is there before its first record is taken.
            let mut active = match self.active.take() {
                Some(active) if !active.frames.is_full(bytes.len()) => active,
                Some(active) => self.write_frame(active)?,
                None => self.begin_file(sequence)?,
            };
            if active.len >= self.file_len && active.frames.is_empty() {
                active = self.begin_file(sequence)?;
            }
            active.frames.push(sequence, bytes);
            self.next = sequence.next();
            self.active = Some(active);
        }
        if let Some(active) = self.active.take() {
            self.active = Some(self.write_frame(active)?);
        }
        Ok(())
    }

    /// Writes what is gathered, if anything.
    fn write_frame(&mut self, mut active: Active) -> Result<Active, ArchiveError> {
        let Some((base, bytes)) = active.frames.take(active.len) else { return Ok(active) };
        if !self.unsynced.handles.iter().any(|file| Arc::ptr_eq(file, &active.file)) {
            self.unsynced.handles.push(active.file.clone());
        }
        write_all(&*active.file, bytes, active.len).map_err(failed("write", &active.name))?;
        let at = active.len;
        active.len += bytes.len() as u64;
        let entry = self.files.last_mut().expect("the active file is the last one");
        entry.index.note(base, at);
        *entry = Arc::new(entry.of_len(active.len));
        Ok(active)
    }

    fn begin_file(&mut self, first: Sequence) -> Result<Active, ArchiveError> {
        self.make_folder()?;
        let numbers = FileNumbers { first: self.end, last: self.number_next };
        let name = numbers.name();
        let previous_len = self.files.last().map_or(0, |before| before.len);
        let header = FileHeader::new(self.folder.topic, numbers, first, previous_len);
        self.number_next += 1;
        let path = self.folder.path(&name);
        let file = self.folder.disk.create(&path).map_err(failed("create", &name))?;
        self.end = self.number_next;
        self.unsynced.made += 1;
        self.files.push(Arc::new(Entry::new(header, FRAMES_AT)));
        self.unsynced.handles.push(file.clone());
        header.write(&*file).map_err(failed("write", &name))?;
        Ok(Active { file, name, frames: FrameWriter::new(header.salt), len: FRAMES_AT })
    }

    fn make_folder(&self) -> Result<(), ArchiveError> {
        if !self.files.is_empty() || !self.going.is_empty() {
            return Ok(());
        }
        let Folder { disk, dir, .. } = &self.folder;
        disk.create_dir(dir).map_err(failed("create", self.folder.name()))?;
        let home = dir.parent().unwrap_or(Path::new(""));
        disk.sync_dir(home).map_err(failed("sync", self.folder.name()))
    }

    /// Makes safe what was appended, and says what a checkpoint is to note.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub(crate) fn sync(&mut self) -> Result<Extent, ArchiveError> {
        self.try_sync().inspect_err(|_| self.go_back())
    }

    fn try_sync(&mut self) -> Result<Extent, ArchiveError> {
        if self.unsynced.next.is_some() {
            for file in &self.unsynced.handles {
                file.sync().map_err(failed("sync", self.folder.name()))?;
            }
            if self.unsynced.made > 0 {
                self.folder.sync()?;
            }
            let len = self.active.as_ref().map(|active| active.len);
            self.unsynced = Unsynced { len, ..Unsynced::default() };
        }
        Ok(self.extent())
    }

    /// Undoes what was done since the last sync. A file that failed is never written to or synced again: what the disk then said of it is not to be believed.
    fn go_back(&mut self) {
        let unsynced = mem::take(&mut self.unsynced);
        self.active = None;
        for _ in 0..unsynced.made {
            if let Some(entry) = self.files.pop() {
                self.end = entry.header.numbers.first;
                entry.goes();
                // If it stays, the next file stands for its number too.
                let _ = self.folder.disk.remove(&self.folder.path(&entry.header.numbers.name()));
            }
        }
        if let Some((entry, len)) = self.files.last_mut().zip(unsynced.len) {
            *entry = Arc::new(entry.of_len(len));
        }
        if let Some(next) = unsynced.next {
            self.next = next;
        }
    }

    fn extent(&self) -> Extent {
        let first = self.files.first().map_or(self.end, |file| file.header.numbers.first);
        Extent { first, end: self.end, len: self.files.last().map_or(0, |file| file.len), next: self.next }
    }

    /// The records from this sequence on, as the files are now. What is appended later is not among them.
    pub(crate) fn read_from(&self, sequence: Sequence) -> Records {
        // The last file that begins at or before it.
        let at = self.files.partition_point(|file| file.header.first <= sequence).saturating_sub(1);
        let files = self.files.get(at..).unwrap_or_default().to_vec();
        Records::new(self.folder.clone(), files, sequence, self.next)
    }

    /// Forgets the files all of whose records come before this sequence. They are not read any more, and the next extent begins after them; [`let_go`](Self::let_go) unlinks them.
    pub(crate) fn drop_before(&mut self, sequence: Sequence) {
        let is_synced = self.unsynced.next.is_none();
        let ends = self.files.iter().skip(1).map(|next| next.header.first).chain([self.next]);
        let mut dropped = ends.take_while(|end| *end <= sequence).count();
        if !is_synced {
            // What is not safe yet stays, and so does the file before it, which it may be in.
            dropped = dropped.min(self.files.len().saturating_sub(self.unsynced.made + 1));
        } else if dropped == self.files.len() {
            self.active = None;
            self.unsynced = Unsynced::default();
        }
        let first = self.files.get(dropped).map_or(self.end, |file| file.header.numbers.first);
        self.weighed.retain(|number, _| *number >= first);
        self.going.extend(self.files.drain(..dropped));
    }

    /// Unlinks what was forgotten and is not in `kept`, the oldest extent that a kept checkpoint notes. Gives the bytes freed.
    ///
    /// # Errors
    /// The rest is unlinked the next time.
    pub(crate) fn let_go(&mut self, kept: &Extent) -> Result<u64, ArchiveError> {
        let mut freed = 0;
        while let Some(entry) = self.going.first().filter(|entry| entry.header.numbers.last < kept.first) {
            let name = entry.header.numbers.name();
            entry.goes();
            remove_if_there(&*self.folder.disk, &self.folder.path(&name)).map_err(failed("remove", name))?;
            freed += entry.len;
            self.going.remove(0);
        }
        Ok(freed)
    }

    /// What all files take, also those that are only forgotten.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.files.iter().chain(&self.going).map(|file| file.len).sum()
    }

    /// Deletes the folder of a topic, if there is one, with all that is in it. For when the deletion of the topic is safe.
    ///
    /// # Errors
    /// Any part of it may be gone.
    pub(crate) fn remove(disk: &dyn Disk, home: &Path, topic: u64) -> Result<(), ArchiveError> {
        let name = folder_name(topic);
        match disk.remove_dir(&home.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(failed("remove", &name))?,
        }
        disk.sync_dir(home).map_err(failed("sync", &name))
    }

    /// The topics that have a folder in `home`. Those that are no topics any more are to be removed.
    ///
    /// # Errors
    /// `home` cannot be read.
    pub(crate) fn topics(disk: &dyn Disk, home: &Path) -> Result<Vec<u64>, ArchiveError> {
        let names = disk.list(home).map_err(failed("list", home.display().to_string()))?;
        Ok(names.iter().filter_map(|name| number_in(name, TOPIC)).collect())
    }

    /// How long a topic's files are, as far as can be seen. None of them is read.
    pub(crate) fn len_on_disk(disk: &dyn Disk, home: &Path, topic: u64) -> u64 {
        let dir = home.join(folder_name(topic));
        let len = |name: &String| disk.open(&dir.join(name), Access::Read).and_then(|file| file.len());
        let names = disk.list(&dir).unwrap_or_default();
        names.iter().map(|name| len(name).unwrap_or(0)).sum()
    }
}

const TOPIC: &str = "topic";

fn folder_name(topic: u64) -> String {
    format!("{TOPIC}-{topic:016x}")
}
