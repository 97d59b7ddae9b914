//! One file of the journal's stream: a header in two copies, then frames, then room.
//!
//! The room is written to before it is needed, with zeros, or is what an earlier life of the file left: so a commit changes no file's size, and its sync need
//! not wait for the file system's own journal. A segment gets its name only when its header and its room are synced: under its name there is never half a header.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Access, Disk, DiskFile};
use super::frame::{FRAME_HEADER_LEN, FrameHeader, padded, salts_clash};
use super::layout::{
    self, FileHeader, FileKind, HeaderRead, SECOND_COPY, SEGMENT_TMP, SPARE, is_full, random,
    remove_if_there, segment_name, write_all, write_zeros,
};

/// Where a segment's frames begin.
pub(super) const FRAMES_AT: u64 = 2 * SECOND_COPY;
/// No segment is longer, whatever its header says: it bounds what a search reads.
pub(super) const SEGMENT_FILE_LEN_MAX: u64 = 1 << 36;
/// How much room is made at a time, at most: a bigger step makes a commit wait longer, a smaller one makes more commits wait.
const ROOM_STEP: u64 = 1 << 20;

/// Why nothing was written, or who knows what.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Nothing was written that counts; later there may be space.
    Full(io::Error),
    Broken(String),
}

impl WriteError {
    pub(super) fn new(verb: &str, file: &str, error: io::Error) -> Self {
        if is_full(&error) { WriteError::Full(error) } else { Self::broken(verb, file, &error) }
    }

    pub(super) fn broken(verb: &str, file: &str, error: &io::Error) -> Self {
        WriteError::Broken(format!("{verb} {file}: {error}"))
    }

    pub(super) fn reason(self) -> Arc<str> {
        match self {
            WriteError::Full(error) => error.to_string().into(),
            WriteError::Broken(reason) => reason.into(),
        }
    }
}

/// What is told of a segment when it is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewSegment {
    pub(super) identity: u64,
    pub(super) number: u64,
    pub(super) base: u64,
    pub(super) durable: u64,
    pub(super) chain: u32,
    pub(super) chain_broken: bool,
    pub(super) capacity: u64,
    /// How much room there is to be when it is made.
    pub(super) room: u64,
}

/// A segment that is written to.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) number: u64,
    pub(super) base: u64,
    salt: u64,
    capacity: u64,
    /// Where the next frame goes.
    pub(super) offset: u64,
    /// How far the file is written already, so that frames find room.
    pub(super) room: u64,
}

/// A segment that is prepared and has not its name yet.
#[derive(Debug)]
pub(super) struct Draft {
    segment: Segment,
    path: PathBuf,
    from: DraftFrom,
}

/// What a new segment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DraftFrom {
    /// A segment that was let go: its room is there already.
    Spare,
    Nothing,
}

impl Draft {
    /// Out of the spare, or as a new file.
    pub(super) fn make(
        disk: &dyn Disk,
        dir: &Path,
        from: DraftFrom,
        new: &NewSegment,
    ) -> Result<Self, WriteError> {
        assert!(new.capacity <= SEGMENT_FILE_LEN_MAX, "a segment is at most SEGMENT_FILE_LEN_MAX");
        let name = match from {
            DraftFrom::Spare => SPARE,
            DraftFrom::Nothing => SEGMENT_TMP,
        };
        let path = dir.join(name);
        let filled = Self::opened(disk, &path, from).and_then(|file| Self::fill(file, new));
        let segment = filled.map_err(|error| {
            Self::clean_up(disk, &path, from, &error);
            WriteError::new("write", name, error)
        })?;
        Ok(Draft { segment, path, from })
    }

    fn opened(disk: &dyn Disk, path: &Path, from: DraftFrom) -> io::Result<Arc<dyn DiskFile>> {
        match from {
            DraftFrom::Spare => disk.open(path, Access::Write),
            DraftFrom::Nothing => {
                remove_if_there(disk, path)?;
                disk.create(path)
            }
        }
    }

    /// To be without space is no reason to take some.
    fn clean_up(disk: &dyn Disk, path: &Path, from: DraftFrom, error: &io::Error) {
        if from == DraftFrom::Nothing && is_full(error) {
            let _ = disk.remove(path);
        }
    }

    fn fill(file: Arc<dyn DiskFile>, new: &NewSegment) -> io::Result<Segment> {
        let salt = match FileHeader::read(FileKind::Segment, &*file)? {
            HeaderRead::Good(old) => salt_unlike(old.salt),
            _ => random(),
        };
        let header = FileHeader {
            salt,
            number: new.number,
            position: new.base,
            durable: new.durable,
            capacity: new.capacity,
            chain: new.chain,
            flags: if new.chain_broken { layout::CHAIN_BROKEN } else { 0 },
            ..FileHeader::new(FileKind::Segment, new.identity)
        };
        header.write(&*file)?;
        let len = file.len()?;
        let mut room = new.room.max(ROOM_STEP).max(len).min(new.capacity);
        match write_zeros(&*file, len, room) {
            // Less will do, where the disk is nearly full.
            Err((reached, error)) if is_full(&error) && reached >= new.room => room = reached,
            written => written.map_err(|(_, error)| error)?,
        }
        Ok(Segment {
            file,
            number: new.number,
            base: new.base,
            salt,
            capacity: new.capacity,
            offset: FRAMES_AT,
            room,
        })
    }

    /// Writes a frame into what nobody reads yet.
    pub(super) fn push(&mut self, header: &mut FrameHeader, body: &[u8]) -> io::Result<()> {
        let segment = &mut self.segment;
        let bytes = header.encode(segment.salt, segment.offset);
        write_all(&*segment.file, &bytes, segment.offset)?;
        write_all(&*segment.file, body, segment.offset + FRAME_HEADER_LEN as u64)?;
        segment.offset += header.frame_len();
        segment.room = segment.room.max(segment.offset);
        assert!(segment.offset <= segment.capacity, "a draft is made large enough");
        Ok(())
    }

    /// Syncs it, gives it its name, and syncs that.
    pub(super) fn finish(self, disk: &dyn Disk, dir: &Path) -> Result<Segment, WriteError> {
        let Draft { segment, path, from } = self;
        let name = segment_name(segment.number);
        segment.file.sync().map_err(|error| {
            Self::clean_up(disk, &path, from, &error);
            WriteError::new("sync", &name, error)
        })?;
        // From here on the segment may be there after a crash, and what is written to the one before it would not count.
        let named = disk.rename(&path, &dir.join(&name)).and_then(|()| disk.sync_dir(dir));
        named.map_err(|error| WriteError::broken("name", &name, &error))?;
        Ok(segment)
    }
}

fn salt_unlike(old: u64) -> u64 {
    loop {
        let salt = random();
        if !salts_clash(salt, old) {
            return salt;
        }
    }
}

impl Segment {
    /// Makes room for `len` bytes and `reserve` more behind them. False: not in this segment.
    pub(super) fn make_room(&mut self, len: u64, reserve: u64) -> Result<bool, WriteError> {
        let need = self.offset.saturating_add(len).saturating_add(reserve);
        if need <= self.room {
            return Ok(true);
        }
        if need > self.capacity {
            return Ok(false);
        }
        let to = need.max(self.room.saturating_add(ROOM_STEP)).min(self.capacity);
        // Not synced here: the sync of the frame that needs the room does it.
        match write_zeros(&*self.file, self.room, to) {
            Ok(()) => self.room = to,
            Err((reached, error)) => {
                self.room = reached.max(self.room);
                if need > self.room {
                    return Err(WriteError::new("extend", &segment_name(self.number), error));
                }
            }
        }
        Ok(true)
    }

    /// Makes just so much room, as far as the disk and the segment have it.
    pub(super) fn keep_room(&mut self, kept: u64) {
        let to = self.offset.saturating_add(kept).min(self.capacity);
        if to > self.room {
            // Not synced here, as above.
            self.room = match write_zeros(&*self.file, self.room, to) {
                Ok(()) => to,
                Err((reached, _)) => reached.max(self.room),
            };
        }
    }

    /// Gives back what room there is beyond so much.
    pub(super) fn give_room_back(&mut self, kept: u64) {
        let to = self.offset.saturating_add(kept);
        if to < self.room && self.file.set_len(to).is_ok() {
            self.room = to;
        }
    }

    /// Writes a frame, for which there is room, in one piece: `frame` is [`FRAME_HEADER_LEN`] bytes of room and the body, and is padded here.
    pub(super) fn push(&mut self, header: &mut FrameHeader, frame: &mut Vec<u8>) -> Result<(), WriteError> {
        let bytes = header.encode(self.salt, self.offset);
        frame[..FRAME_HEADER_LEN].copy_from_slice(&bytes);
        frame.resize(padded(frame.len() as u64) as usize, 0);
        assert_eq!(frame.len() as u64, header.frame_len(), "a frame is its header and its body");
        assert!(self.offset + header.frame_len() <= self.room, "room is made first");
        match write_all(&*self.file, frame, self.offset) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Err(self.take_back(error)),
            Err(error) => return Err(WriteError::broken("write", &segment_name(self.number), &error)),
        }
        self.offset += header.frame_len();
        Ok(())
    }

    /// After a write that found no space though there was room, as happens where a file system writes nothing in place. Who knows how much of it was
    /// written; when its header is gone for good, nothing of it counts.
    fn take_back(&self, full: io::Error) -> WriteError {
        let gone =
            write_all(&*self.file, &[0; FRAME_HEADER_LEN], self.offset).and_then(|()| self.file.sync());
        match gone {
            Ok(()) => WriteError::Full(full),
            Err(error) => WriteError::broken("write", &segment_name(self.number), &error),
        }
    }
}
