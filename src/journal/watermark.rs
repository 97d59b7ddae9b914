//! What is known to be synced, noted outside of what is synced.
//!
//! A frame says which units before it were synced; nothing after the last frame says so of the last one. After each sync this small file is written, into one of
//! two pages in turn, and never synced but when the journal closes. A process that dies leaves it in the system's memory, so it holds. A power cut may leave an
//! older one, which says less and nothing wrong. It is a file of its own because a page of the segment would have to be written to disk by each next sync: measured,
//! that makes a commit a fifth dearer, and this makes it no dearer.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Access, Disk, DiskFile};
use super::layout::{
    FILE_HEADER_LEN, FileHeader, FileKind, HeaderRead, SECOND_COPY, WATERMARK, WATERMARK_TMP, read_up_to,
    remove_if_there, write_all, write_zeros,
};

#[derive(Debug)]
pub(super) struct Watermark {
    file: Arc<dyn DiskFile>,
    identity: u64,
    written: u64,
}

impl Watermark {
    /// Opens it, or makes it anew where it is missing. Also what it says: the units that were synced, or 0.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, identity: u64) -> io::Result<Self> {
        let file = match disk.open(&dir.join(WATERMARK), Access::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::create(disk, dir)?;
                disk.open(&dir.join(WATERMARK), Access::Write)?
            }
            opened => opened?,
        };
        let written =
            Self::pages(&*file, identity)?.into_iter().flatten().map(|page| page.salt).max().unwrap_or(0);
        Ok(Watermark { file, identity, written })
    }

    /// Its pages are there before they are needed, so that noting needs no space.
    pub(super) fn create(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let aside = dir.join(WATERMARK_TMP);
        remove_if_there(disk, &aside)?;
        let file = disk.create(&aside)?;
        write_zeros(&*file, 0, 2 * SECOND_COPY).map_err(|(_, error)| error)?;
        file.sync()?;
        disk.rename(&aside, &dir.join(WATERMARK))
    }

    /// The units that it says were synced; 0 where it says nothing.
    pub(super) fn read(disk: &dyn Disk, dir: &Path, identity: u64) -> io::Result<u64> {
        let file = match disk.open(&dir.join(WATERMARK), Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            opened => opened?,
        };
        let pages = Self::pages(&*file, identity)?;
        Ok(pages.into_iter().flatten().map(|page| page.durable).max().unwrap_or(0))
    }

    fn pages(file: &dyn DiskFile, identity: u64) -> io::Result<[Option<FileHeader>; 2]> {
        let page = |offset| -> io::Result<Option<FileHeader>> {
            match FileHeader::decode(FileKind::Watermark, &read_up_to(file, offset, FILE_HEADER_LEN)?) {
                HeaderRead::Good(page) if page.identity == identity => Ok(Some(page)),
                _ => Ok(None),
            }
        };
        Ok([page(0)?, page(SECOND_COPY)?])
    }

    /// A failure is no loss: the watermark then says less, and nothing wrong.
    pub(super) fn note(&mut self, durable: u64, segment: u64) -> io::Result<()> {
        self.written = self.written.saturating_add(1);
        let page = FileHeader {
            salt: self.written,
            number: segment,
            durable,
            ..FileHeader::new(FileKind::Watermark, self.identity)
        };
        let offset = if self.written.is_multiple_of(2) { 0 } else { SECOND_COPY };
        write_all(&*self.file, &page.encode(), offset)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
