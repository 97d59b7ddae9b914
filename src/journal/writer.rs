//! The end of the stream that is written to: which segment, how much room, what is synced. One thread at a time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::disk::{Access, Disk, DiskFile};
use super::frame::{FRAME_HEADER_LEN, FrameHeader, UNITS};
use super::layout::{
    RESERVE_TMP, SPARE, checkpoint_name, is_full, remove_if_there, segment_name, write_zeros,
};
use super::segment::{Draft, DraftFrom, FRAMES_AT, NewSegment, Segment, WriteError};
use super::watermark::Watermark;

/// What a unit may be written to.
///
/// What is written together is as the last of them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// May use the reserve, and is no reason to look for space: what belongs to a checkpoint.
    Checkpoint,
    /// May use the reserve: for what frees space, such as an ack.
    Reserve,
    /// Refused when only the reserve is left.
    Ordinary,
}

/// A segment that is not written to any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retired {
    pub(super) number: u64,
    /// Its units are at or after this position.
    pub(super) base: u64,
    pub(super) len: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) segment_len: u64,
    pub(super) identity: u64,
    pub(super) current: Segment,
    /// In the order of their numbers.
    pub(super) retired: Vec<Retired>,
    /// The length of the file `spare`, if there is one.
    pub(super) spare: Option<u64>,
    /// The header checksum of the last frame.
    pub(super) chain: u32,
    /// The position after the last frame.
    pub(super) end: u64,
    /// The position after the last frame that is synced.
    pub(super) durable: u64,
    /// Retired segments with frames that are not synced.
    pub(super) unsynced: Vec<Arc<dyn DiskFile>>,
    pub(super) watermark: Watermark,
    /// Bytes of frames since the newest checkpoint.
    pub(super) since_checkpoint: u64,
    /// Newest last: the positions of the complete checkpoints.
    pub(super) checkpoints: Vec<(u64, u64)>,
    /// The length of the file that keeps room for a checkpoint, if there is one.
    pub(super) reserve: Option<u64>,
    /// Bytes of frames since checkpoints were last begun for the space that they free, without the checkpoints' own.
    pub(super) since_sweep: u64,
    /// There is not even room for the reserve.
    pub(super) is_tight: bool,
    /// What was given back is for the checkpoints that are being made, and for what frees space.
    pub(super) is_sweeping: bool,
}

/// No more is kept for a checkpoint: with what the segments give back it is mostly enough.
const RESERVE_LEN_MAX: u64 = 2 << 20;
/// One part of this many is for a checkpoint's own file, the others for what is written beside it.
const RESERVE_PARTS: u64 = 4;

/// What is kept free for [`Space::Reserve`] in a segment of this length.
pub(super) fn reserve_of(segment_len: u64) -> u64 {
    (segment_len / 8).min(256 << 10)
}

impl Writer {
    /// Writes one frame of units, in one piece. `frame` is room for the header, then the body.
    pub(super) fn append(
        &mut self,
        frame: &mut Vec<u8>,
        base: u64,
        count: u32,
        space: Space,
    ) -> Result<(), WriteError> {
        assert!(base >= self.end, "positions only rise");
        let mut header = FrameHeader::new(UNITS, base, count, &frame[FRAME_HEADER_LEN..]);
        header.durable = self.durable;
        header.previous = self.chain;
        self.make_room(header.frame_len(), base, space)?;
        self.current.push(&mut header, frame)?;
        self.chain = header.crc;
        self.end = header.end();
        self.since_checkpoint += header.frame_len();
        if space != Space::Checkpoint {
            self.since_sweep += header.frame_len();
        }
        Ok(())
    }

    /// What takes space waits until there is room for the next checkpoint again, which frees some.
    fn refuse_while_tight(&mut self, space: Space) -> Result<(), WriteError> {
        match space {
            Space::Ordinary if self.is_sweeping => Err(WriteError::Full(io::ErrorKind::StorageFull.into())),
            Space::Ordinary if self.is_tight => self.renew_reserve().map_err(WriteError::Full),
            _ => Ok(()),
        }
    }

    fn make_room(&mut self, len: u64, base: u64, space: Space) -> Result<(), WriteError> {
        self.refuse_while_tight(space)?;
        let reserve = reserve_of(self.segment_len);
        let wanted = if space == Space::Ordinary { reserve } else { 0 };
        if self.current.make_room(len, wanted)? {
            return Ok(());
        }
        let from = if self.spare.is_some() { DraftFrom::Spare } else { DraftFrom::Nothing };
        let new = NewSegment {
            identity: self.identity,
            number: self.current.number + 1,
            base,
            durable: self.durable,
            chain: self.chain,
            chain_broken: false,
            capacity: self.segment_len.max(FRAMES_AT + len + reserve),
            room: FRAMES_AT + len + reserve,
        };
        let draft = Draft::make(&*self.disk, &self.dir, from, &new)?;
        let next = draft.finish(&*self.disk, &self.dir)?;
        self.spare = None;
        let last = std::mem::replace(&mut self.current, next);
        // What is left of its room takes space like what was written.
        self.since_checkpoint += last.room.saturating_sub(last.offset);
        if self.end > self.durable {
            self.unsynced.push(last.file);
        }
        self.retired.push(Retired { number: last.number, base: last.base, len: last.room });
        Ok(())
    }

    /// Everything that was written is safe from a power cut.
    pub(super) fn sync(&mut self) -> Result<(), WriteError> {
        if self.end == self.durable {
            return Ok(());
        }
        let failed = |error: io::Error| WriteError::broken("sync", "the journal", &error);
        for file in std::mem::take(&mut self.unsynced) {
            file.sync().map_err(failed)?;
        }
        self.current.file.sync().map_err(failed)?;
        self.durable = self.end;
        // What it would have said goes without saying while all is well.
        let _ = self.watermark.note(self.durable, self.current.number);
        Ok(())
    }

    /// Notes in both pages that all was synced, and syncs that.
    pub(super) fn close(&mut self) -> Result<(), WriteError> {
        self.sync()?;
        let noted = (0..2).try_for_each(|_| self.watermark.note(self.durable, self.current.number));
        noted
            .and_then(|()| self.watermark.sync())
            .map_err(|error| WriteError::broken("sync", "the watermark", &error))
    }

    /// Lets segments go of which every unit is before `position`. One becomes the spare.
    fn release(&mut self, position: u64) {
        let had_spare = self.spare.is_some();
        self.let_segments_go(position);
        // Before it is written to: else its new header might be found under its old name.
        if !had_spare && self.spare.is_some() && self.disk.sync_dir(&self.dir).is_err() {
            self.spare = None;
        }
    }

    fn let_segments_go(&mut self, position: u64) {
        while let Some(&oldest) = self.retired.first() {
            let next = self.retired.get(1).map_or(self.current.base, |retired| retired.base);
            if next > position || !self.let_go(oldest) {
                break;
            }
            self.retired.remove(0);
        }
    }

    /// False: it is still there, and may go another time.
    fn let_go(&mut self, segment: Retired) -> bool {
        let path = self.dir.join(segment_name(segment.number));
        if self.spare.is_none() && segment.len <= self.segment_len {
            match self.disk.rename(&path, &self.dir.join(SPARE)) {
                Ok(()) => self.spare = Some(segment.len),
                // An earlier attempt did it, and said that it failed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => return false,
            }
            return true;
        }
        remove_if_there(&*self.disk, &path).is_ok()
    }

    /// Gives up the spare for its space.
    pub(super) fn drop_spare(&mut self) {
        if self.spare.take().is_some() {
            let _ = self.disk.remove(&self.dir.join(SPARE));
        }
    }

    /// Gives up what was taken of the disk ahead, but for what is kept for what frees space, and for a checkpoint's own file. Until it is swept nothing else gets any of it.
    pub(super) fn give_room_back(&mut self) {
        self.is_sweeping = true;
        self.drop_spare();
        self.current.give_room_back(reserve_of(self.segment_len));
        if let Some(reserve) = &mut self.reserve {
            let left = *reserve / RESERVE_PARTS;
            let file = self.disk.open(&self.dir.join(RESERVE_TMP), Access::Write);
            if file.and_then(|file| file.set_len(left)).is_ok() {
                *reserve = left;
            }
        }
    }

    /// The rest, for a checkpoint that finds no space elsewhere.
    pub(super) fn give_reserve_back(&mut self) {
        if self.reserve.take().is_some() {
            let _ = self.disk.remove(&self.dir.join(RESERVE_TMP));
        }
    }

    /// Takes the reserve, which a checkpoint gets when the disk is full. Fails if the disk is; another failure is not the journal's.
    pub(super) fn renew_reserve(&mut self) -> io::Result<()> {
        let len = self.segment_len.min(RESERVE_LEN_MAX);
        if self.reserve != Some(len) {
            self.give_reserve_back();
            // First what acks need: without them there is nothing for a checkpoint to let go of.
            self.current.keep_room(reserve_of(self.segment_len));
            match self.take_reserve(len) {
                Ok(()) => self.reserve = Some(len),
                Err(error) => {
                    let _ = self.disk.remove(&self.dir.join(RESERVE_TMP));
                    self.is_tight = is_full(&error);
                    return if self.is_tight { Err(error) } else { Ok(()) };
                }
            }
        }
        self.is_tight = false;
        Ok(())
    }

    fn take_reserve(&self, len: u64) -> io::Result<()> {
        let path = self.dir.join(RESERVE_TMP);
        remove_if_there(&*self.disk, &path)?;
        let file = self.disk.create(&path)?;
        write_zeros(&*file, 0, len).map_err(|(_, error)| error)?;
        file.sync()
    }

    /// A checkpoint is complete, so older ones and what only they need may go.
    pub(super) fn checkpointed(&mut self, position: u64, len: u64) {
        self.checkpoints.retain(|&(other, _)| other != position);
        self.checkpoints.push((position, len));
        self.since_checkpoint = 0;
        let needed = self.drop_checkpoints();
        self.release(needed);
    }

    /// Keeps the two newest checkpoints. The position from which on segments are needed: that of the older of the two; from the start, as long as there is but one.
    fn drop_checkpoints(&mut self) -> u64 {
        while self.checkpoints.len() > 2 {
            let (position, _) = self.checkpoints[0];
            if remove_if_there(&*self.disk, &self.dir.join(checkpoint_name(position))).is_err() {
                break;
            }
            self.checkpoints.remove(0);
        }
        match self.checkpoints[..] {
            [(older, _), .., _] => older,
            _ => 0,
        }
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        let retired: u64 = self.retired.iter().map(|segment| segment.len).sum();
        let checkpoints: u64 = self.checkpoints.iter().map(|(_, len)| len).sum();
        retired + checkpoints + self.current.room + self.spare.unwrap_or(0) + self.reserve.unwrap_or(0)
    }
}
