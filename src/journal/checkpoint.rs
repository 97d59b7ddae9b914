//! A complete image of what the stream says, up to a position: chunks as frames, and a last frame that says how many there are.
//!
//! Written aside, synced, named, and the name synced: under its name there is never half a checkpoint. The two newest are kept, and the segments that the older
//! needs, so that a damaged one costs nothing.

use std::io;
use std::path::Path;

use super::disk::{Access, Disk, DiskFile};
use super::frame::{BODY_LEN_MAX, CHECKPOINT_CHUNK, CHECKPOINT_END, FrameHeader, padded};
use super::layout::{
    CHECKPOINT_TMP, FileHeader, FileKind, HeaderRead, checkpoint_name, is_full, random, remove_if_there,
    write_all,
};
use super::read::FrameReader;
use super::segment::{FRAMES_AT, WriteError};

/// As much is gathered before it is written.
const GATHERED_LEN: usize = 1 << 20;

/// What a checkpoint says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckpointHeader {
    pub(super) identity: u64,
    /// It is the state as all units before made it.
    pub(super) position: u64,
    /// The position after the last frame that is synced.
    pub(super) durable: u64,
}

/// Writes one and returns its length. Nothing else is changed, also on failure.
pub(super) fn write(
    disk: &dyn Disk,
    dir: &Path,
    header: &CheckpointHeader,
    chunks: &mut dyn Iterator<Item = io::Result<Vec<u8>>>,
    before_it_counts: &mut dyn FnMut() -> io::Result<()>,
) -> Result<u64, WriteError> {
    let name = checkpoint_name(header.position);
    let aside = dir.join(CHECKPOINT_TMP);
    let written = remove_if_there(disk, &aside).and_then(|()| disk.create(&aside)).and_then(|file| {
        let len = Image::write(&*file, header, chunks)?;
        file.sync()?;
        before_it_counts()?;
        disk.rename(&aside, &dir.join(&name))?;
        Ok(len)
    });
    let len = written.map_err(|error| {
        if is_full(&error) {
            // To be without space is no reason to take some.
            let _ = disk.remove(&aside);
        }
        WriteError::new("write", &name, error)
    })?;
    disk.sync_dir(dir).map_err(|error| WriteError::broken("sync directory of", &name, &error))?;
    Ok(len)
}

/// The frames of a checkpoint on their way into a file.
struct Image<'a> {
    file: &'a dyn DiskFile,
    salt: u64,
    gathered: Vec<u8>,
    /// Where `gathered` goes.
    offset: u64,
    chain: u32,
}

impl Image<'_> {
    fn write(
        file: &dyn DiskFile,
        header: &CheckpointHeader,
        chunks: &mut dyn Iterator<Item = io::Result<Vec<u8>>>,
    ) -> io::Result<u64> {
        let salt = random();
        let &CheckpointHeader { identity, position, durable } = header;
        let header =
            FileHeader { salt, position, durable, ..FileHeader::new(FileKind::Checkpoint, identity) };
        header.write(file)?;
        let mut image = Image { file, salt, gathered: Vec::new(), offset: FRAMES_AT, chain: 0 };
        let (mut count, mut bytes) = (0_u64, 0_u64);
        for chunk in chunks {
            let chunk = chunk?;
            assert!(chunk.len() <= BODY_LEN_MAX as usize, "a chunk is at most BODY_LEN_MAX");
            image.push(CHECKPOINT_CHUNK, count, &chunk)?;
            count += 1;
            bytes += chunk.len() as u64;
        }
        let mut sum = count.to_le_bytes().to_vec();
        sum.extend_from_slice(&bytes.to_le_bytes());
        image.push(CHECKPOINT_END, count, &sum)?;
        image.flush()?;
        Ok(image.offset)
    }

    fn push(&mut self, kind: u8, base: u64, body: &[u8]) -> io::Result<()> {
        let mut header = FrameHeader { previous: self.chain, ..FrameHeader::new(kind, base, 1, body) };
        let bytes = header.encode(self.salt, self.offset + self.gathered.len() as u64);
        self.chain = header.crc;
        self.gathered.extend_from_slice(&bytes);
        self.gathered.extend_from_slice(body);
        self.gathered.resize(padded(self.gathered.len() as u64) as usize, 0);
        if self.gathered.len() >= GATHERED_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        write_all(self.file, &self.gathered, self.offset)?;
        self.offset += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

/// A checkpoint as it is found.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    reader: FrameReader,
    /// The position after the last frame that was synced when it was written.
    pub(super) durable: u64,
    /// Of the file.
    pub(super) len: u64,
}

/// What a file is that has a checkpoint's name.
#[derive(Debug)]
pub(super) enum Found {
    Checkpoint(CheckpointFile),
    Version(u16),
    /// Its header is bad in both copies, or is another file's. With the file's length.
    Bad(u64),
}

/// How reading the chunks ended.
#[derive(Debug)]
pub(super) enum Read {
    Complete,
    /// From this offset on it is not what was written.
    Damaged(u64),
    Rejected(String),
}

impl CheckpointFile {
    pub(super) fn open(disk: &dyn Disk, dir: &Path, identity: u64, position: u64) -> io::Result<Found> {
        let file = disk.open(&dir.join(checkpoint_name(position)), Access::Read)?;
        let len = file.len()?;
        match FileHeader::read(FileKind::Checkpoint, &*file)? {
            HeaderRead::Good(header) if header.identity == identity && header.position == position => {
                let reader = FrameReader::new(file, header.salt, u64::MAX)?;
                Ok(Found::Checkpoint(CheckpointFile { reader, durable: header.durable, len }))
            }
            HeaderRead::Version(major) => Ok(Found::Version(major)),
            _ => Ok(Found::Bad(len)),
        }
    }

    /// Verifies it once more, from the file: the read may have gone wrong in passing.
    pub(super) fn read_again(&mut self) -> io::Result<Read> {
        self.reader.forget();
        self.read(&mut |_| Ok(()))
    }

    /// Gives every chunk in order, each verified, though the next may not be: who needs all or nothing reads twice.
    pub(super) fn read(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<(), String>) -> io::Result<Read> {
        let (mut offset, mut chain, mut count, mut bytes) = (FRAMES_AT, 0, 0_u64, 0_u64);
        loop {
            let Some(header) = self.reader.header(offset)? else { return Ok(Read::Damaged(offset)) };
            if header.previous != chain || header.base != count {
                return Ok(Read::Damaged(offset));
            }
            let Some(body) = self.reader.body(offset, &header)? else { return Ok(Read::Damaged(offset)) };
            match header.kind {
                CHECKPOINT_CHUNK => {
                    if let Err(reason) = visit(body) {
                        return Ok(Read::Rejected(reason));
                    }
                    count = count.saturating_add(1);
                    bytes = bytes.saturating_add(body.len() as u64);
                }
                CHECKPOINT_END => {
                    let mut sum = count.to_le_bytes().to_vec();
                    sum.extend_from_slice(&bytes.to_le_bytes());
                    let complete = body == sum;
                    return Ok(if complete { Read::Complete } else { Read::Damaged(offset) });
                }
                _ => return Ok(Read::Damaged(offset)),
            }
            chain = header.crc;
            offset = offset.saturating_add(header.frame_len());
        }
    }
}
