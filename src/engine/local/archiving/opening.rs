//! The topics' own files when a directory is opened: as the checkpoint notes them, read between its image and the stream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Archives, Kept};
use crate::engine::local::progress::Progress;
use crate::engine::local::recovered::Recovered;
use crate::error::OpenError;
use crate::journal::archive::{Archive, ArchiveError, Extent, ReadError};
use crate::journal::disk::Disk;
use crate::journal::{Damage, JournalOptions, OnDamage, quarantine};
use crate::sequence::Sequence;

/// A read may go wrong in passing.
const ATTEMPTS: usize = 2;

/// What an opening finds. It only reads, up to [`finish`](Self::finish).
pub(in crate::engine::local) struct Found {
    disk: Arc<dyn Disk>,
    home: PathBuf,
    options: JournalOptions,
    topics: BTreeMap<u64, Kept>,
    damages: Vec<Damage>,
    is_read: bool,
    /// Why it cannot be opened, where a text does not tell enough.
    fault: Option<OpenError>,
}

impl Found {
    pub(in crate::engine::local) fn new(disk: Arc<dyn Disk>, dir: &Path, options: JournalOptions) -> Self {
        Found {
            disk,
            home: dir.to_owned(),
            options,
            topics: BTreeMap::new(),
            damages: Vec::new(),
            is_read: false,
            fault: None,
        }
    }

    /// About how many bytes there are to be read.
    pub(in crate::engine::local) fn bytes(&self) -> u64 {
        let topics = Archive::topics(&*self.disk, &self.home).unwrap_or_default();
        topics.into_iter().map(|topic| Archive::len_on_disk(&*self.disk, &self.home, topic)).sum()
    }

    /// All of the image is read: what it says to be in the topics' own files follows. Once.
    ///
    /// # Errors
    /// Why it cannot be; see [`fault`](Self::fault).
    pub(in crate::engine::local) fn read(
        &mut self,
        recovered: &mut Recovered,
        progress: &mut Progress,
    ) -> Result<(), String> {
        if std::mem::replace(&mut self.is_read, true) {
            return Ok(());
        }
        for (topic, oldest, extent) in recovered.archives() {
            let (mut archive, damages) = self.read_topic(recovered, progress, (topic, oldest, extent))?;
            if let Some(first) = damages.first() {
                if self.options.on_damage == OnDamage::Refuse {
                    return Err(self.fails(damaged(first)));
                }
                recovered.lost();
                // What could be read is written anew, with the next checkpoint.
                archive.begin_again();
                self.damages.extend(damages);
            }
            self.topics.insert(topic, Kept::new(archive, Some(extent)));
        }
        Ok(())
    }

    fn read_topic(
        &mut self,
        recovered: &mut Recovered,
        progress: &mut Progress,
        (topic, oldest, extent): (u64, Sequence, Extent),
    ) -> Result<(Archive, Vec<Damage>), String> {
        let mut attempt = 1;
        loop {
            let opened =
                Archive::open(self.disk.clone(), &self.home, topic, extent, self.options.segment_len);
            let (archive, mut damages) = opened.map_err(|error| self.fails(failed(error)))?;
            let mut records = archive.read_from(oldest);
            while let Some(found) = records.next_frame() {
                match found {
                    Ok(frame) => {
                        progress.advance(frame.bytes.len());
                        let places = frame.places().map(|(sequence, place)| (sequence, place.start));
                        recovered.archived(topic, &frame.bytes, frame.count, places)?;
                    }
                    Err(ReadError::Damaged(damage)) => damages.push(damage),
                    Err(ReadError::Moved) => return Err("files changed while they were read".to_owned()),
                    Err(ReadError::Disk(error)) => return Err(self.fails(failed(error))),
                }
            }
            if damages.is_empty() || attempt == ATTEMPTS {
                return Ok((archive, damages));
            }
            attempt += 1;
        }
    }

    fn fails(&mut self, error: OpenError) -> String {
        let text = error.to_string();
        self.fault = Some(error);
        text
    }

    /// Why it was not read, as far as more is known than the text that was given.
    pub(in crate::engine::local) fn fault(&mut self) -> Option<OpenError> {
        self.fault.take()
    }

    /// All is read and will be opened: damaged bytes are copied aside, and what nobody knows is taken away.
    ///
    /// # Errors
    /// The copies cannot be made.
    pub(in crate::engine::local) fn finish(
        mut self,
        recovered: &Recovered,
    ) -> Result<(Archives, Vec<Damage>), OpenError> {
        if let Err(error) = quarantine(&*self.disk, &self.home, &self.damages) {
            let (verb, file) = ("copy damaged bytes to", "quarantine".to_owned());
            return Err(OpenError::Io { verb, file, reason: error.to_string() });
        }
        for kept in self.topics.values_mut() {
            // What stays is found again, and is no hindrance.
            let _next_time = kept.archive.clean();
        }
        for topic in Archive::topics(&*self.disk, &self.home).unwrap_or_default() {
            if self.topics.contains_key(&topic) {
                continue;
            }
            if recovered.topics().any(|known| known.number == topic) {
                // Of a checkpoint that never counted.
                let _next_time = Archive::remove(&*self.disk, &self.home, topic);
            } else if let Some(kept) = self.unknown(topic) {
                self.topics.insert(topic, kept);
            }
        }
        let archives = Archives {
            disk: self.disk,
            home: self.home,
            file_len: self.options.segment_len,
            checkpoint_len: self.options.checkpoint_len(),
            topics: self.topics,
            compacted: 0,
            were_damaged: !self.damages.is_empty(),
        };
        Ok((archives, self.damages))
    }

    /// The files of a topic that is no more: an older checkpoint may still know it.
    fn unknown(&self, topic: u64) -> Option<Kept> {
        let opened =
            Archive::open(self.disk.clone(), &self.home, topic, Extent::EMPTY, self.options.segment_len);
        let (archive, _) = opened.ok()?;
        Some(Kept { older: Some(Extent::EMPTY), ..Kept::new(archive, None) })
    }
}

fn damaged(damage: &Damage) -> OpenError {
    let Damage { file, offset, len, what, .. } = damage;
    OpenError::Damaged { file: file.clone(), offset: *offset, len: *len, what: (*what).to_owned() }
}

fn failed(error: ArchiveError) -> OpenError {
    match error {
        ArchiveError::Version { file, major } => {
            OpenError::Version { file, what: format!("version {major}") }
        }
        ArchiveError::Io { verb, file, error } => OpenError::Io { verb, file, reason: error.to_string() },
    }
}
