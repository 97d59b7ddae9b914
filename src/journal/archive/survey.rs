//! Which of the files that are found are those of the extent, and what of it is not found.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::compact::ASIDE;
use super::file::{Entry, FileHeader, FileNumbers, HeaderRead};
use super::{ArchiveError, Extent, Folder, failed};
use crate::journal::disk::Access;
use crate::journal::error::Damage;
use crate::journal::layout::remove_if_there;
use crate::sequence::Sequence;

#[derive(Debug)]
pub(super) struct Found {
    pub(super) files: Vec<Entry>,
    pub(super) damages: Vec<Damage>,
    /// After all numbers that were found.
    pub(super) number_next: u64,
    /// Those before the extent, which a checkpoint before may name.
    pub(super) before: Vec<Entry>,
    pub(super) garbage: Garbage,
}

/// What a crash left behind an extent.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    needless: Vec<String>,
    /// The last file, if it is longer than what counts of it, and how much does.
    cut: Option<(String, u64)>,
}

/// A file of the extent, and how long it is on the disk.
struct Sized {
    header: FileHeader,
    size: u64,
}

pub(super) fn survey(folder: &Folder, extent: Extent) -> Result<Found, ArchiveError> {
    let mut found = Found {
        files: Vec::new(),
        damages: Vec::new(),
        number_next: 0,
        before: Vec::new(),
        garbage: Garbage::default(),
    };
    let names = match folder.disk.list(&folder.dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_there(folder)? => Vec::new(),
        names => names.map_err(failed("list", folder.name()))?,
    };
    let mut numbers = Vec::new();
    for name in names {
        match FileNumbers::of(&name) {
            Some(number) => {
                found.number_next = found.number_next.max(number.last.saturating_add(1));
                numbers.push(number);
            }
            None if name == ASIDE => found.garbage.needless.push(name),
            None => {}
        }
    }
    // A file before those that it was merged from.
    numbers.sort_unstable_by_key(|number| (number.first, u64::MAX - number.last));
    let mut files: Vec<Sized> = Vec::new();
    for number in numbers {
        let end = files.last().map_or(0, |file| file.header.numbers.last.saturating_add(1));
        if number.last < end || number.first >= extent.end {
            found.garbage.needless.push(number.name());
        } else if number.last < extent.first {
            found.before.push(before(folder, number)?);
        } else if let Some(file) = found.open(folder, number, end, extent)? {
            files.push(file);
        }
    }
    found.weigh(folder, &files, extent);
    Ok(found)
}

/// A file that only goes: of its content nothing is known.
fn before(folder: &Folder, numbers: FileNumbers) -> Result<Entry, ArchiveError> {
    let name = numbers.name();
    let file = folder.disk.open(&folder.path(&name), Access::Read).map_err(failed("open", &name))?;
    let size = file.len().map_err(failed("measure", &name))?;
    Ok(Entry::new(FileHeader::new(folder.topic, numbers, Sequence::FIRST, 0), size))
}

/// Whether there is a folder, by another call: an error is not to pass for a topic without files.
fn is_there(folder: &Folder) -> Result<bool, ArchiveError> {
    let home = folder.dir.parent().unwrap_or(Path::new(""));
    let names = folder.disk.list(home).map_err(failed("list", home.display().to_string()))?;
    Ok(names.contains(&folder.name()))
}

impl Found {
    fn open(
        &mut self,
        folder: &Folder,
        number: FileNumbers,
        end: u64,
        extent: Extent,
    ) -> Result<Option<Sized>, ArchiveError> {
        let name = number.name();
        let path = folder.path(&name);
        let file = folder.disk.open(&path, Access::Read).map_err(failed("open", &name))?;
        let size = file.len().map_err(failed("measure", &name))?;
        let header = FileHeader::read(&*file).map_err(failed("read", &name))?;
        let what = match header {
            HeaderRead::Version(major) => return Err(ArchiveError::Version { file: name, major }),
            HeaderRead::Good(header) if header.topic == folder.topic && header.numbers == number => {
                if number.first >= end && number.last < extent.end {
                    return Ok(Some(Sized { header, size }));
                }
                "stands for files that the checkpoint knows as others"
            }
            HeaderRead::Good(_) => "the header is of another file",
            HeaderRead::Bad => "neither copy of the header is whole",
        };
        self.damages.push(damage(folder, number, 0..size, what, 0..0));
        Ok(None)
    }

    /// Finds how long each is, and what is not there.
    fn weigh(&mut self, folder: &Folder, files: &[Sized], extent: Extent) {
        let mut end = extent.first;
        let mut sequence = 0;
        for (at, Sized { header, size }) in files.iter().enumerate() {
            let missing = FileNumbers { first: end, last: header.numbers.first.saturating_sub(1) };
            if missing.first < header.numbers.first {
                self.missing(folder, missing, sequence..header.first.get());
            }
            end = header.numbers.last.saturating_add(1);
            sequence = header.first.get();
            let next = files.get(at + 1);
            let follower = next.filter(|next| next.header.numbers.first == end);
            let len = match follower {
                _ if header.len > 0 => header.len,
                Some(next) => next.header.previous_len,
                None if end == extent.end => extent.len,
                // What would say it is gone.
                None => *size,
            };
            let last = next.map_or(extent.next, |next| next.header.first).get();
            if *size < len {
                let gone = damage(folder, header.numbers, *size..len, "the file was cut", sequence..last);
                self.damages.push(gone);
            }
            if end == extent.end && *size > len {
                self.garbage.cut = Some((header.numbers.name(), len));
            }
            self.files.push(Entry::new(*header, len));
        }
        if end < extent.end {
            let missing = FileNumbers { first: end, last: extent.end.saturating_sub(1) };
            self.missing(folder, missing, sequence..extent.next.get());
        }
    }

    fn missing(&mut self, folder: &Folder, numbers: FileNumbers, sequences: Range<u64>) {
        self.damages.push(damage(folder, numbers, 0..0, "missing, or of no use", sequences));
    }
}

impl Garbage {
    pub(super) fn clean(&self, folder: &Folder) -> Result<(), ArchiveError> {
        for name in &self.needless {
            remove_if_there(&*folder.disk, &folder.path(name)).map_err(failed("remove", name))?;
        }
        if let Some((name, len)) = &self.cut {
            let file = folder.disk.open(&folder.path(name), Access::Write).map_err(failed("open", name))?;
            file.set_len(*len).map_err(failed("cut", name))?;
        }
        Ok(())
    }
}

/// `sequences` are those that are gone, at most.
pub(super) fn damage(
    folder: &Folder,
    numbers: FileNumbers,
    bytes: Range<u64>,
    what: &'static str,
    sequences: Range<u64>,
) -> Damage {
    Damage {
        file: format!("{}/{}", folder.name(), numbers.name()),
        offset: bytes.start,
        len: bytes.end.saturating_sub(bytes.start),
        what,
        units: sequences,
    }
}
